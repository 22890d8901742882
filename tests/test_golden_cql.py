"""CQL, Cal-QL and SSAR on CQL against the authors' recorded numbers, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam, Scalar
from segue.core.types import Batch, Metrics
from segue.methods.cql import CQL, FLOOR_N, Draws, State, threshold_log_density
from segue.methods.ssar import Annealed, CoefficientNet, CoefficientState, StateAdaptive
from segue.nets.networks import Critics
from segue.nets.policies import TanhGaussianPolicy, sample_tanh_gaussian, tanh_gaussian_log_density
from tests.golden_files import (
    Record,
    assert_gradient,
    assert_near,
    assert_parameters,
    assert_scalars,
    batch_of,
    cases,
    draws_of,
    hidden_sizes,
    model,
    twin,
)

pytestmark = pytest.mark.usefixtures("float64")

UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))
CASES = cases("cql", "cql_*", "calql_*")
OCR_CFT = [f"ocr_cft/{name}" for name in cases("ocr_cft/cql_offline*")]


@dataclass(frozen=True)
class WarmUpOnASample(CQL):
    """The released plain CQL's fault: its cloning warm-up never looks at the data's actions (golden surprise 5).

    The second fresh sample's noise comes in as a column of the batch.
    """

    def _log_likelihood(self, mean: jax.Array, log_std: jax.Array, batch: Batch) -> jax.Array:
        return sample_tanh_gaussian(mean, log_std, batch.extras["warmup_noise"])[1]


def limit(value: Any) -> float | None:
    return None if value in ("inf", "-inf") else value


def algorithm_of(h: dict[str, Any], step: int) -> CQL:
    """The algorithm with the record's settings at update `step`."""
    weight = h["conservative_weight"]
    for start, value in h.get("conservative_weight_from_step", {}).items():
        weight = value if step >= int(start) else weight
    coefficient: Any = None
    if "n_start" in h:
        coefficient = StateAdaptive(
            coefficient_learning_rate=h["coefficient_lr"],
            n_start=h["n_start"],
            n_end=h["n_end"],
            threshold_update_interval=h["threshold_update_interval"],
            mask_coefficient_loss=h["threshold_on_subset"],
            mask_regularizer=h["constrain_subset_only"],
        )
        if h["online_steps"][step - 1] > 0:
            coefficient = Annealed(coefficient, h["decay_steps"], shape="cosine")
    plain = coefficient is None
    return (WarmUpOnASample if plain and h["bc_warmup_steps"] else CQL)(
        coefficient=coefficient,
        conservative_weight=weight,
        calibrate=step in h.get("calibrated_steps", []),
        num_sampled_actions=h["num_sampled_actions"],
        importance_sampling=h["importance_sampling"],
        conservative_temperature=h["conservative_temperature"],
        max_target_backup=h["max_target_backup"],
        backup_entropy=h["backup_entropy"],
        lagrange=h["lagrange"],
        lagrange_gap=h["lagrange_gap"],
        gap_clip_min=limit(h["gap_clip_min"]),
        gap_clip_max=limit(h["gap_clip_max"]),
        cloning_weight=0.5 if h.get("antmaze") else 0.0,
        cloning_warmup_updates=h["bc_warmup_steps"],
        automatic_temperature=h["automatic_temperature"],
        temperature_multiplier=h["temperature_multiplier"],
        target_entropy_per_dimension=h["target_entropy"] / h["action_dim"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        target_update_interval=h["target_update_interval"],
    )


def state_of(record: Record) -> State:
    h, tree = record.hparams, record.tree("init")
    critics, sizes = twin(tree, "critic"), (h["observation_dim"], h["action_dim"])
    actor = {k: v for k, v in tree["actor"].items() if k.startswith("layers_")}
    policy = TanhGaussianPolicy(*sizes, hidden_sizes(actor), trained_scale=True)
    first, second = (hidden_sizes(params) for params in critics)
    net = Critics(*sizes, first, layer_norm="norm_0" in critics[0], later_hidden_sizes=second)
    beta: Any = ()
    if "coefficient_net" in tree:
        params = tree["coefficient_net"]
        coefficient = CoefficientNet(sizes[0], hidden_sizes(params), h["conservative_weight"])
        fitted = model(coefficient, params, Adam(h["coefficient_lr"], 0.5))
        beta = CoefficientState(fitted, tree["threshold_n"], tree["threshold_frozen"] > 0, jnp.int32(0))
    log_alpha = tree.get("log_alpha", jnp.zeros(()))
    return State(
        actor=model(policy, tree["actor"], Adam(h["actor_lr"])),
        critic=model(net, critics, Adam(h["critic_lr"]), twin(tree, "target_critic")),
        temperature=model(Scalar(0.0), log_alpha, Adam(h["temperature_lr"])),
        multiplier=model(Scalar(1.0), tree["log_alpha_prime"], Adam(h["lagrange_lr"])),
        beta=beta,
        updates=jnp.int32(int(tree["total_steps"])),
    )


def rows_of(record: Record, step: int) -> Batch:
    """The batch with what SSAR and Cal-QL know of its rows."""
    at = f"step_{step}"
    extras = {
        name: jnp.asarray(record[f"{at}/{key}"])
        for name, key in (
            ("trust", "batch/subset_mask"),
            ("return_to_go", "batch/return_lower_bounds"),
            ("warmup_noise", "draws/bc_warmup_log_prob_noise"),
        )
        if f"{at}/{key}" in record.file.files
    }
    batch = batch_of(record, step)
    extras.setdefault("warmup_noise", jnp.zeros_like(batch.action))  # after the warm-up its draw is not recorded
    return batch._replace(extras=extras)


def noise_of(record: Record, step: int) -> Draws:
    """The recorded noise in the form that the algorithm draws."""
    draws = draws_of(record, step)
    target = draws["target_next_policy_noise"]
    names = ("uniform_actions", "current_policy_noise", "next_policy_noise")
    return Draws(
        draws["policy_noise"], target if target.ndim == 3 else target[:, None], *(draws[name] for name in names)
    )


def coefficient_scalars(h: dict[str, Any], before: State, after: State, batch: Batch) -> dict[str, Any]:
    """What the record tells of the coefficient's step, from its parts: beta from before it, the actor after its own."""
    mean, log_std = after.actor(batch.obs)
    data = tanh_gaussian_log_density(jnp.arctanh(batch.action), mean, log_std)
    data = jnp.maximum(data, threshold_log_density(mean, log_std, FLOOR_N))
    threshold = threshold_log_density(mean, log_std, before.beta.n)
    gap, beta = (data - threshold).mean(-1), before.beta.net(batch.obs)
    found = {"threshold_log_prob_mean": threshold.mean(), "data_log_prob_mean": data.mean()}
    for name, x in (("log_prob_gap", gap), ("coefficient", beta)):
        found |= {f"{name}_min": x.min(), f"{name}_mean": x.mean(), f"{name}_max": x.max()}
    return found


def assert_state(s: State, after: dict[str, Any]) -> None:
    """The networks, and the scalars that were recorded."""
    assert_parameters(s.actor.params, after["actor"], "actor")
    assert_parameters(s.critic.params, twin(after, "critic"), "critic")
    assert_parameters(s.critic.target, twin(after, "target_critic"), "target_critic")
    for name, scalar in (("log_alpha", s.temperature), ("log_alpha_prime", s.multiplier)):
        if name in after:
            assert_parameters(scalar.params, after[name], name)


@pytest.mark.parametrize("name", CASES)
def test_updates_equal_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(name)
    h, s = record.hparams, state_of(record)
    for step in range(1, h["num_steps"] + 1):
        algorithm, batch = algorithm_of(h, step), rows_of(record, step)
        online = h.get("online_steps", [0] * h["num_steps"])[step - 1]
        if online > 0:  # N counts online updates: this update is number `online`
            s = replace(s, beta=replace(s.beta, online_origin=jnp.int32(step - online)))
        before = s
        s, metrics = UPDATE(algorithm, s, batch, noise_of(record, step), True)

        off = {"lagrange_loss": 0, "lagrange_multiplier": 0, "entropy_temperature_loss": 0}
        scalars = off | metrics | {f"critic_{i}_data_mean": metrics[f"critic_{i}_mean"] for i in (1, 2)}
        scalars["action_distance"] = metrics["action_distance"] / h["action_dim"] ** 0.5  # as the record has it
        names = record.names(f"step_{step}/scalars")
        if "return_to_go" in batch.extras:  # the rates are measured before the calibration, and without one too
            rates = UPDATE(replace(algorithm, calibrate=True), before, batch, noise_of(record, step), True)[1]
            scalars |= {name: value for name, value in rates.items() if name.endswith("below_bound_rate")}
        if "log_prob_gap_mean" in names:
            scalars |= coefficient_scalars(h, before, s, batch)
        assert_scalars(record, f"step_{step}/scalars", scalars, names)
        after = record.tree(f"step_{step}/after")
        assert_state(s, after)
        assert ("log_alpha" in after, "log_alpha_prime" in after) == (h["automatic_temperature"], True)
        assert int(s.updates) == int(after["total_steps"])
        if s.beta:
            assert_parameters(s.beta.net.params, after["coefficient_net"], "coefficient_net")
            assert abs(float(s.beta.n) - float(after["threshold_n"])) < 1e-12
            assert bool(s.beta.frozen) == bool(after["threshold_frozen"])
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


@pytest.mark.parametrize("name", CASES)
def test_networks_equal_the_probe(name: str) -> None:
    record = Record(name)
    s, batch = state_of(record), rows_of(record, 1)
    mean, log_std = s.actor(batch.obs)
    found = {"actor_pre_tanh_mean": mean}
    found["critic_1_output"], found["critic_2_output"] = s.critic(batch.obs, batch.action)
    several = s.critic.net.of_several(s.critic.params, batch.obs, jnp.stack([batch.action, -batch.action], 1))
    np.testing.assert_allclose(several[:, :, 0], s.critic(batch.obs, batch.action), rtol=0, atol=1e-12)
    if s.beta:
        found["coefficient_output"] = s.beta.net(batch.obs)
        found["data_action_log_prob"] = tanh_gaussian_log_density(jnp.arctanh(batch.action), mean, log_std)
        found["threshold_action_log_prob"] = threshold_log_density(mean, log_std, s.beta.n)
        found["floor_action_log_prob"] = threshold_log_density(mean, log_std, FLOOR_N)
    for probe, value in found.items():
        np.testing.assert_allclose(value, record[f"probe/{probe}"], rtol=0, atol=1e-10, err_msg=probe)
    np.testing.assert_allclose(log_std, np.clip(record["probe/actor_log_std_unclipped"], -20, 2), rtol=0, atol=1e-10)


def assert_gradients(s: State, gradients: dict[str, Any], b1: float) -> None:
    """What the first update handed to the optimizers."""
    assert_gradient(s.critic, twin(gradients, "critic"), b1, "critic")
    for name, net in (("actor", s.actor), ("log_alpha", s.temperature), ("log_alpha_prime", s.multiplier)):
        if name in gradients:
            assert_gradient(net, gradients[name], b1, name)
    assert {"actor", "log_alpha"} <= gradients.keys()


def ocr_cft_algorithm(h: dict[str, Any]) -> CQL:
    return CQL(
        conservative_weight=h["cql_weight"],
        num_sampled_actions=h["num_sampled_actions"],
        importance_sampling=h["importance_sampling"],
        conservative_temperature=h["logsumexp_temperature"],
        max_target_backup=h["max_target_backup"],
        backup_entropy=h["backup_entropy"],
        lagrange=h["lagrange"],
        lagrange_gap=h["target_action_gap"],
        gap_clip_min=None if h["clip_difference_min"] == "-inf" else float(h["clip_difference_min"]),
        gap_clip_max=None if h["clip_difference_max"] == "inf" else float(h["clip_difference_max"]),
        cloning_warmup_updates=h["behaviour_cloning_steps"],
        temperature_multiplier=h["alpha_multiplier"],
        target_entropy_per_dimension=h["target_entropy"] / h["action_dim"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        target_update_interval=h["target_update_period"],
    )


def ocr_cft_state(record: Record) -> State:
    h, tree = record.hparams, record.tree("init")
    policy = TanhGaussianPolicy(5, 2, (16, 16, 16), trained_scale=True)
    net = Critics(5, 2, (16, 16, 16))
    assert hidden_sizes(tree["actor"]) == hidden_sizes(tree["critic_1"]) == (16, 16, 16)
    return State(
        actor=model(policy, tree["actor"], Adam(h["actor_lr"])),
        critic=model(net, twin(tree, "critic"), Adam(h["critic_lr"]), twin(tree, "target_critic")),
        temperature=model(Scalar(0.0), tree["log_alpha"], Adam(h["alpha_lr"])),
        multiplier=model(Scalar(1.0), tree["log_alpha_prime"], Adam(h["alpha_prime_lr"])),
        beta=(),
        updates=jnp.int32(0),
    )


def watched(algorithm: CQL, s: State, batch: Batch, draws: Draws) -> tuple[State, Metrics, dict[str, jax.Array]]:
    """The update, and what it computes on the way, from the networks and the parts of the equations."""
    here, following = s.actor(batch.obs), s.actor(batch.next_obs)
    k = algorithm.num_sampled_actions
    action, log_prob = sample_tanh_gaussian(here[0], here[1], draws.policy_noise)
    mean, log_std = (x[:, None] for x in following)
    next_action, next_log_prob = sample_tanh_gaussian(mean, log_std, draws.target_noise)  # [B, 1 or K, A]
    target = s.critic.net.of_several(s.critic.target, batch.next_obs, next_action).min(0)
    best = jnp.take_along_axis(next_log_prob, target.argmax(1)[:, None], 1)[:, 0]
    bonus = jnp.exp(s.temperature()) * best if algorithm.backup_entropy else 0.0
    actions, log_density = algorithm._samples(batch, draws, here, following)
    q = s.critic.net.of_several(s.critic.params, batch.obs, actions)  # [2, B, 3 K + 1]
    values = q[:, :, :-1] - log_density if algorithm.importance_sampling else q
    t = algorithm.conservative_temperature
    z = t * jnp.log(jnp.exp(values / t).sum(-1))
    only = (next_action, next_log_prob) if algorithm.max_target_backup else (next_action[:, 0], next_log_prob[:, 0])
    found = {
        "policy_actions": action,
        "log_prob": log_prob,
        "q1": q[0, :, -1],
        "q2": q[1, :, -1],
        "next_actions": only[0],
        "next_log_prob": only[1],
        "next_log_prob_of_maximum": best,
        "td_target": batch.reward + algorithm.discount * (1 - batch.terminal) * (target.max(1) - bonus),
        "next_policy_actions_log_prob": log_density[:, k : 2 * k],
        "policy_actions_log_prob": log_density[:, 2 * k :],
        "q1_random_actions": q[0, :, :k],
        "q1_next_policy_actions": q[0, :, k : 2 * k],
        "q1_policy_actions": q[0, :, 2 * k : 3 * k],
        "logsumexp_1": z[0],
        "logsumexp_2": z[1],
    }
    return *algorithm.update(s, batch, draws, True), found


@pytest.mark.parametrize("name", OCR_CFT)
def test_updates_equal_the_other_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded from another program, which keeps gradients too; some of its data's actions lie at the bounds."""
    record = Record(name)
    h, s, algorithm = record.hparams, ocr_cft_state(record), ocr_cft_algorithm(record.hparams)
    update = jax.jit(watched, static_argnums=0)
    for step in range(1, h["num_steps"] + 1):
        at = f"step_{step}"
        draw = {key: jnp.asarray(record[f"{at}/draws/{key}"]) for key in record.names(f"{at}/draws")}
        target = draw["next_policy_noise"]
        several = (draw["random_actions"], draw["repeated_policy_noise"], draw["repeated_next_policy_noise"])
        draws = Draws(draw["policy_noise"], target if target.ndim == 3 else target[:, None], *several)
        s, metrics, found = update(algorithm, s, rows_of(record, step), draws)
        for key in record.names(f"{at}/intermediates"):
            assert_near(found[key], record[f"{at}/intermediates/{key}"], f"{at} {key}")
        scalars = metrics | {
            "alpha": metrics["entropy_temperature"],
            "alpha_loss": metrics["entropy_temperature_loss"],
            "policy_loss": metrics["actor_loss"],
            "alpha_prime": metrics.get("lagrange_multiplier", 0.0),
            "alpha_prime_loss": metrics.get("lagrange_loss", 0.0),
            "mean_q1": metrics["critic_1_mean"],
        }
        for i in (1, 2):
            scalars[f"td_loss_{i}"] = metrics[f"critic_{i}_td_loss"]
            scalars[f"conservative_gap_{i}"] = metrics[f"critic_{i}_conservative_gap_mean"]
        for key in record.names(f"{at}/scalars"):
            assert_near(scalars[key], record[f"{at}/scalars/{key}"], f"{at} {key}")
        if step == 1:
            assert_gradients(s, record.tree(f"{at}/gradients"), h["adam"]["b1"])
        if step in h["parameters_recorded_after_steps"]:
            assert_state(s, record.tree(f"{at}/after"))
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def test_the_folder_holds_the_cases() -> None:
    assert len(OCR_CFT) == 3
    assert len(CASES) >= 12, "golden cases of CQL are missing in the folder that SEGUE_GOLDEN names"
