"""XQL and PROTO against the released program's recorded numbers, update by update, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from segue.core.model import Adam, Model, Scalar
from segue.core.proximal import Proximal
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import td_target
from segue.methods.proto_sac import Draws as SACDraws
from segue.methods.proto_sac import ProtoSAC
from segue.methods.proto_td3 import Draws as TD3Draws
from segue.methods.proto_td3 import ProtoTD3
from segue.methods.xql import XQL, NoDraws
from segue.nets.policies import gaussian_log_density
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
CASES = cases("ocr_cft/proto_*")
Method = XQL | ProtoSAC | ProtoTD3


def method_of(h: dict[str, Any]) -> Method:
    """The algorithm with the record's settings."""
    shared: dict[str, Any] = {
        "batch_size": h["batch_size"],
        "discount": h["discount"],
        "target_update_rate": h["target_update_rate"],
        "actor_learning_rate": h["actor_lr"],
        "critic_learning_rate": h["critic_lr"],
        "hidden_sizes": (h["hidden_width"],) * h["hidden_layers"],
        "critic_layer_norm": h["layer_norm"],
    }
    if h["case"] == "proto_offline":
        return XQL(
            value_temperature=h["initial_temperature"],
            gumbel_clip=h["gumbel_clip"],
            advantage_weight_max=h["exp_advantage_max"],
            clone_behaviour=True,
            value_learning_rate=h["value_lr"],
            **shared,
        )
    start = h["proximal_weight_start"]
    proximal = Proximal(start, h["proximal_weight_decrement"] / start, 1, h["reference_update_rate"])
    if h["case"] == "proto_sac_online":
        target_entropy = h["target_entropy"] / h["action_dim"]
        shared |= {"target_entropy_per_dimension": target_entropy, "temperature_learning_rate": h["alpha_lr"]}
        return ProtoSAC(proximal, **shared)
    return ProtoTD3(
        proximal,
        loss_actions="sample",  # as released
        alpha=h["q_weight"],
        target_noise_std=h["noise_std"],
        target_noise_clip=h["noise_clip"],
        policy_update_interval=h["policy_delay"],
        **shared,
    )


def models_of(record: Record) -> Models:
    """The recorded start, in the networks that XQL makes, but for the recorded width."""
    h, tree = record.hparams, record.tree("init")
    offline = XQL(hidden_sizes=hidden_sizes(tree["actor"]))
    made: Any = jax.eval_shape(lambda: offline.init({}, SPEC, jax.random.key(0)))  # for its networks alone
    assert made.actor.net.log_std_min == h["log_std_clip"][0] and made.actor.net.tanh_mean
    assert made.critic.net.norm_epsilon == h["layer_norm_epsilon"] == made.value.net.norm_epsilon
    adam, critic_adam = Adam(h["actor_lr"]), Adam(h["critic_lr"])
    models: Models = {
        "actor": model(made.actor.net, tree["actor"], adam),
        "critic": model(made.critic.net, twin(tree, "critic"), critic_adam, twin(tree, "target_critic")),
        "behaviour_policy": model(made.actor.net, tree["behaviour_actor"], adam),
        "updates": jnp.int32(0),
    }
    if "value" in tree:
        models["value"] = model(made.value.net, tree["value"], Adam(h["value_lr"]))
    if "reference_actor" in tree:
        models["proximal_reference"] = model(made.actor.net, tree["reference_actor"], adam).frozen()
        models["proximal_origin"] = jnp.int32(0)
        models["offline_actor"] = model(made.actor.net, tree["offline_actor"], adam)
    if "log_alpha" in tree:
        models["temperature"] = model(Scalar(0.0), tree["log_alpha"], Adam(h["alpha_lr"]))
    return models


def noise_of(record: Record, step: int) -> Any:
    """The recorded noise in the form that the algorithm draws, zeros where this step needs none; and as it is."""
    draws = draws_of(record, step)
    kind: Any = {"proto_offline": NoDraws, "proto_sac_online": SACDraws, "proto_td3_online": TD3Draws}
    kind = kind[record.hparams["case"]]
    none = jnp.zeros((record.hparams["batch_size"], 2))
    fields = {name: jnp.zeros(()) if name == "target_critic" else draws.get(name, none) for name in kind._fields}
    return kind(**fields), draws


def likelihood(policy: Model, obs: jax.Array, action: jax.Array) -> jax.Array:
    """Log-density [B]."""
    return gaussian_log_density(action, *policy(obs)).sum(-1)


def of_values(q: jax.Array, y: jax.Array) -> Metrics:
    return {"td_target": y, "mean_q1": q[0].mean(), "mean_q2": q[1].mean()}


def of_policy(models: Models, s: Any, batch: Batch, action: jax.Array, draws: dict[str, jax.Array]) -> Metrics:
    """What the record says of the policy's actions in the actor's loss, which no update needs."""
    mean, log_std = models["offline_actor"](batch.obs)
    offline = mean + jnp.exp(log_std) * draws["offline_actor_noise"]
    return {
        "negative_log_prob": -likelihood(s.actor, batch.obs, action).mean(),
        "behaviour_negative_log_prob": -likelihood(models["behaviour_policy"], batch.obs, action).mean(),
        "offline_actor_negative_log_prob": -likelihood(models["offline_actor"], batch.obs, action).mean(),
        "reference_negative_log_prob": -likelihood(s.proximal.policy, batch.obs, action).mean(),
        "squared_distance_to_data": jnp.square(action - batch.action).mean(),
        "squared_distance_to_offline_sample": jnp.square(action - offline).mean(),
    }


def of_sac(algorithm: ProtoSAC, models: Models, s: Any, batch: Batch, draws: SACDraws, raw: Any) -> Metrics:
    alpha, beta, reference = jnp.exp(s.temperature()), algorithm.proximal.weight(s.proximal, s.updates), s.proximal
    action, log_prob, excess = algorithm.sample(s.actor, reference.policy, batch.next_obs, draws.next_policy_noise)
    regulariser, values = alpha * log_prob + beta * excess, s.critic.slow(batch.next_obs, action)
    y = td_target(batch, algorithm.discount, values.min(0) - regulariser)
    found = {"next_actions": action, "next_regulariser": regulariser, "next_target_q_both": values, "alpha": alpha}
    own, _, _ = algorithm.sample(s.actor, reference.policy, batch.obs, draws.policy_noise)
    found |= of_policy(models, s, batch, own, raw) | {"proximal_weight": beta}
    return found | of_values(s.critic(batch.obs, batch.action), y)


def of_td3(algorithm: ProtoTD3, models: Models, s: Any, batch: Batch, draws: TD3Draws, raw: Any) -> Metrics:
    beta = algorithm.proximal.weight(s.proximal, s.updates)
    kept, distance = algorithm.backup(s, batch.next_obs, draws)
    action = algorithm.action(s.actor, batch.next_obs, draws.next_policy_noise)
    shift = jnp.clip(0.2 * draws.target_noise, -0.5, 0.5)
    values = s.critic.slow(batch.next_obs, kept)
    y = td_target(batch, algorithm.discount, values.min(0) - beta * distance)
    found = {
        "next_actions": action,
        "clipped_noise": shift,
        "next_noisy_actions": action + shift,
        "next_reference_actions": kept,
        "next_regulariser": beta * distance,
        "next_target_q_both": values,
        "proximal_weight": beta,
    }
    if "policy_noise" in raw:
        found |= of_policy(models, s, batch, algorithm.action(s.actor, batch.obs, draws.policy_noise), raw)
    return found | of_values(s.critic(batch.obs, batch.action), y)


def of_offline(algorithm: XQL, s: Any, after: Any, batch: Batch) -> Metrics:
    advantage = s.critic.slow(batch.obs, batch.action).min(0) - after.value(batch.obs)[..., 0]
    y = td_target(batch, algorithm.discount, after.value(batch.next_obs)[..., 0])
    return {"advantage": advantage} | of_values(s.critic(batch.obs, batch.action), y)


OURS = {"behaviour_actor": "behaviour", "log_alpha": "temperature"}  # record's name of a network -> ours
RENAMED = {  # our name of a scalar -> the record's
    "actor_loss": "policy_loss", "temperature_loss": "alpha_loss", "value_mean": "mean_value",
    "behaviour_loss": "behaviour_negative_log_prob",
}  # fmt: skip


@partial(jax.jit, static_argnums=(0, 1))
def both(
    algorithm: Method, flag: bool, models: Models, s: Any, batch: Batch, draws: Any, raw: dict[str, jax.Array]
) -> tuple[Any, Metrics]:
    """An update, and all that the record may say of it."""
    after, metrics = algorithm.update(s, batch, draws, flag)
    if isinstance(algorithm, XQL):
        found = of_offline(algorithm, s, after, batch)
    elif isinstance(algorithm, ProtoSAC):
        found = of_sac(algorithm, models, s, batch, draws, raw)
    else:
        found = of_td3(algorithm, models, s, batch, draws, raw)
    return after, {RENAMED.get(key, key): value for key, value in metrics.items()} | found


@pytest.mark.parametrize("name", CASES)
def test_updates_equal_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(f"ocr_cft/{name}")
    h, algorithm, models = record.hparams, method_of(record.hparams), models_of(record)
    s: Any = algorithm.init(models, SPEC, jax.random.key(0))
    seen = 0
    for step in range(1, h["num_steps"] + 1):
        at = f"step_{step}"
        batch, (draws, raw) = batch_of(record, step), noise_of(record, step)
        flag = step % algorithm.policy_update_interval == 0
        s, found = both(algorithm, flag, models, s, batch, draws, raw)
        for part in ("inputs", "scalars", "intermediates"):
            for key in record.names(f"{at}/{part}"):
                assert_near(found[key], record[f"{at}/{part}/{key}"], f"{at} {key}")
                seen += 1
        if step in h["parameters_recorded_after_steps"]:
            assert_after(s, record.tree(f"{at}/after"))
        gradients = record.tree(f"{at}/gradients")
        if "critic_1" in gradients:
            gradients["critic"] = gradients.pop("critic_1"), gradients.pop("critic_2")
        for network, want in gradients.items():
            assert_gradient(getattr(s, OURS.get(network, network)), want, h["adam"]["b1"], network)
            seen += 1
    assert seen > 30
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def assert_after(s: Any, after: dict[str, Any]) -> None:
    """Every network that moves; the record keeps those that do not beside them."""
    assert_parameters(s.actor.params, after["actor"], "actor")
    assert_parameters(s.critic.params, twin(after, "critic"), "critic")
    assert_parameters(s.critic.target, twin(after, "target_critic"), "target_critic")
    if hasattr(s, "value"):
        assert_parameters(s.value.params, after["value"], "value")
        assert_parameters(s.behaviour.params, after["behaviour_actor"], "behaviour")
    else:
        assert_parameters(s.proximal.policy.params, after["reference_actor"], "reference")
    if "log_alpha" in after:
        assert_parameters(s.temperature.params, after["log_alpha"], "temperature")


def test_the_folder_holds_the_cases() -> None:
    assert CASES == ["proto_offline", "proto_sac_online", "proto_td3_online"]
