"""ACA against the released program's recorded numbers, update by update, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam, Scalar
from segue.core.types import Batch, Metrics, Models, PyTree, Spec
from segue.losses import td_target
from segue.methods import aca, sac_ml
from segue.methods.aca import ACA, clipped_preference
from segue.methods.sac_ml import SACML, baseline_net, log_density, sampled
from segue.nets.gaussian import SigmoidGaussianPolicy, is_squashed, point_log_density, point_of, sample_point
from segue.nets.networks import Critics
from segue.nets.policies import TanhGaussianPolicy
from tests.golden_files import (
    Record,
    assert_gradient,
    assert_near,
    assert_parameters,
    batch_of,
    cases,
    draws_of,
    hidden_sizes,
    model,
    twin,
)

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec(5, 2)
ONLINE = [f"ocr_cft/{name}" for name in cases("ocr_cft/aca_online*")]
# Record's name of a scalar -> ours; its temperature and weight are those after the step.
OURS = {"alpha_loss": "temperature_loss", "policy_loss": "actor_loss", "policy_weight": "value_weight"}


def policy_of(tree: dict[str, Any]) -> PyTree:
    """Our parameters: one last layer for both heads of the squashed policy, one vector of the other's log-std."""
    if "log_std_parameter" in tree:
        return tree | {"log_std_parameter": tree["log_std_parameter"][0]}
    heads = [tree["layers_2"], tree["layers_3"]]
    joined = {name: jnp.concatenate([head[name] for head in heads], -1) for name in ("kernel", "bias")}
    return {"layers_0": tree["layers_0"], "layers_1": tree["layers_1"], "layers_2": joined}


def form_of(h: dict[str, Any]) -> TanhGaussianPolicy | SigmoidGaussianPolicy:
    widths = (h["hidden_width"],) * h["hidden_layers"]
    if h["squashed_policy"]:
        assert h["log_std_clip"] == [-20.0, 2.0]
        return TanhGaussianPolicy(*SPEC, widths)
    return SigmoidGaussianPolicy(*SPEC, widths, tuple(h["log_std_bounds"]))


def models_of(record: Record) -> Models:
    """The recorded start. Its target of the actor, which follows the actor and which nothing reads, is left out."""
    h, tree = record.hparams, record.tree("init")
    critics, baselines, rate = twin(tree, "critic"), twin(tree, "baseline"), Adam(h["critic_lr"])
    assert hidden_sizes(critics[0]) == hidden_sizes(baselines[0]) == (h["hidden_width"],) * h["hidden_layers"]
    net = Critics(*SPEC, hidden_sizes(critics[0]))
    return {
        "actor": model(form_of(h), policy_of(tree["actor"]), Adam(h["actor_lr"])),
        "critic": model(net, critics, rate, twin(tree, "target_critic")),
        "baseline": model(baseline_net(SPEC, net.hidden_sizes), baselines, Adam(h["baseline_lr"])),
        "temperature": model(Scalar(0.0), tree["log_alpha"][0, 0], Adam(h["alpha_lr"])),
    }


def rates_of(h: dict[str, Any]) -> dict[str, Any]:
    return {
        "squashed_policy": h["squashed_policy"],
        "batch_size": h["batch_size"],
        "discount": h["discount"],
        "target_update_rate": h["target_update_rate"],
        "actor_learning_rate": h["actor_lr"],
        "critic_learning_rate": h["critic_lr"],
        "temperature_learning_rate": h["alpha_lr"],
        "target_entropy_per_dimension": h["target_entropy_added"] / h["action_dim"],
    }


def assert_step(
    record: Record, step: int, found: Metrics, metrics: Metrics, after: Any, omega: jax.Array | None = None
) -> None:
    """Intermediates, scalars, gradients and parameters, where they were recorded."""
    at = f"step_{step}"
    for key in record.names(f"{at}/intermediates"):
        values = found[key]
        assert_near(values if values.ndim == 2 else values[:, None], record[f"{at}/intermediates/{key}"], f"{at} {key}")
    ends = {"alpha_after": metrics["temperature"], "alignment_weight_after": omega}
    for key in record.names(f"{at}/scalars"):
        got = ends[key] if key in ends else metrics[OURS.get(key, key)]
        assert_near(got, record[f"{at}/scalars/{key}"], f"{at} {key}")
    networks = {"actor": after.actor, "critic": after.critic, "temperature": after.temperature}
    networks |= {"baseline": after.baseline} if hasattr(after, "baseline") else {}
    for where in ("gradients", "after"):
        tree = record.tree(f"{at}/{where}")
        if not tree:
            continue
        want = {"actor": policy_of(tree["actor"]), "temperature": tree["log_alpha"][0, 0]}
        want |= {name: twin(tree, name) for name in ("critic", "baseline") if f"{name}_1" in tree}
        for name, net in networks.items():
            if where == "gradients":
                assert_gradient(net, want[name], record.hparams["adam"]["b1"], name)
            else:
                assert_parameters(net.params, want[name], f"{at} {name}")
        if where == "after":
            assert_parameters(after.critic.target, twin(tree, "target_critic"), f"{at} target")


def offline_step(
    algorithm: SACML, s: sac_ml.State, batch: Batch, draws: sac_ml.Draws
) -> tuple[sac_ml.State, Metrics, Metrics]:
    """The update, and what it computes on the way, from the networks that each of its parts sees."""
    after, metrics = algorithm.update(s, batch, draws, True)
    alpha = jnp.exp(after.temperature())
    _, next_log_prob = sampled(s.actor, batch.next_obs, draws.baseline_next_policy_noise)
    z = sac_ml.values(s.baseline, batch.next_obs).min(0)
    target_action, target_log_prob = sampled(s.actor, batch.next_obs, draws.next_policy_noise)
    action, log_prob = sampled(s.actor, batch.obs, draws.policy_noise)
    return after, metrics, {
        "next_actions": target_action,
        "next_log_prob": target_log_prob,
        "next_min_target_q": s.critic.slow(batch.next_obs, target_action).min(0),
        "next_min_baseline": z,
        "next_baseline_plus_log_prob": z + next_log_prob,
        "baseline_td_target": td_target(batch, algorithm.discount, z + next_log_prob - alpha * next_log_prob),
        "data_log_prob": log_density(s.actor, batch.obs, batch.action),
        "policy_actions": action,
        "log_prob": log_prob,
        "policy_min_q": after.critic(batch.obs, action).min(0),
    }


def test_the_offline_updates_equal_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    record = Record("ocr_cft/aca_offline")
    h = record.hparams
    algorithm = SACML(
        value_weight=h["likelihood_alpha"], baseline_learning_rate=h["baseline_lr"], **rates_of(h)
    )
    s = algorithm.init(models_of(record), SPEC, jax.random.key(0))
    step_of = jax.jit(offline_step, static_argnums=0)
    for step in range(1, h["num_steps"] + 1):
        draws = sac_ml.Draws(**draws_of(record, step))
        s, metrics, found = step_of(algorithm, s, batch_of(record, step), draws)
        assert_step(record, step, found, metrics, s)
    with capsys.disabled():
        print("\ngolden case passed: aca_offline")


def online_step(
    algorithm: ACA, s: aca.State, batch: Batch, draws: aca.Draws
) -> tuple[aca.State, Metrics, Metrics]:
    """The update, and what it computes on the way."""
    after, metrics = algorithm.update(s, batch, draws, True)
    omega, squashed, alpha = algorithm.omega(s), is_squashed(s.actor.net), jnp.exp(after.temperature())
    found: Metrics = {}

    def of(where: str, obs: jax.Array, point: jax.Array) -> jax.Array:
        policy = s.aligned_policy(obs)
        clipped = omega * clipped_preference(point, policy, algorithm.density_floor_deviations, squashed)
        found[f"{where}reference_log_prob"] = point_log_density(point, policy, squashed)
        found[f"{where}clipped_reference_log_prob"] = clipped
        return clipped

    point, action, log_prob = sample_point(s.actor(batch.next_obs), draws.next_policy_noise, squashed)
    residual = s.critic.slow(batch.next_obs, action).min(0)
    found |= {"next_actions": action, "next_log_prob": log_prob, "next_min_residual": residual}
    next_value = residual + of("next_", batch.next_obs, point) - alpha * log_prob
    found["td_target"] = td_target(batch, algorithm.discount, next_value)
    data = of("data_", batch.obs, point_of(batch.action, squashed))
    found["q1"], found["q2"] = s.critic(batch.obs, batch.action) + data
    point, action, log_prob = sample_point(s.actor(batch.obs), draws.policy_noise, squashed)
    residual = after.critic(batch.obs, action).min(0)
    found |= {"policy_actions": action, "log_prob": log_prob, "policy_min_residual": residual}
    found["policy_q"] = residual + of("", batch.obs, point)
    return after, metrics, found


@pytest.mark.parametrize("name", ONLINE)
def test_the_switch_and_the_online_updates_equal_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(name)
    h, tree = record.hparams, record.tree("init")
    schedule = h["alignment_weight_schedule"]
    algorithm = ACA(
        alignment_weight=schedule["start"],
        alignment_fall_updates=round(schedule["start"] / schedule["decrement_per_update"]),
        alignment_weight_floor=schedule["floor"],
        density_floor_deviations=h["log_prob_clip_beta"],
        actor_gradient_clip=h["gradient_clip_norm"],
        initial_temperature=float(np.exp(tree["log_alpha"][0, 0])),
        **rates_of(h),
    )
    models = models_of(record)
    s = algorithm.init(models, SPEC, jax.random.key(0))
    rebuilt = record.tree("after_reconstruction")
    assert_parameters(s.critic.params, twin(rebuilt, "critic"), "reconstruction")
    assert_parameters(s.critic.target, twin(rebuilt, "target_critic"), "reconstruction")
    policy = models["actor"].net
    reference = model(policy, policy_of(tree["reference_actor"]), Adam(0.0)).frozen()
    # The record's pi_0 is not the actor that it starts from, so that no mistake hides behind their equality.
    s = aca.State(s.actor, s.critic, s.temperature, reference, s.aligned_updates, s.updates)
    step_of = jax.jit(online_step, static_argnums=0)
    for step in range(1, h["num_steps"] + 1):
        draws = aca.Draws(**draws_of(record, step))
        s, metrics, found = step_of(algorithm, s, batch_of(record, step), draws)
        assert_step(record, step, found, metrics, s, algorithm.omega(s))
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def test_the_folder_holds_the_cases() -> None:
    assert len(ONLINE) == 2 and cases("ocr_cft/aca_offline")
