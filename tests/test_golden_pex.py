"""PEX and the IQL before it against the released program's recorded numbers, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, Spec
from segue.losses import td_target
from segue.methods.iql import IQL, IQLState
from segue.methods.pex import EVEN, PEX, Draws, State
from segue.nets.networks import MLP, Critics
from segue.nets.policies import GaussianPolicy, gaussian_log_density
from tests.golden_files import (
    Record,
    assert_gradient,
    assert_near,
    assert_parameters,
    batch_of,
    hidden_sizes,
    model,
    twin,
)

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec(5, 2)


def common(h: dict[str, Any]) -> dict[str, Any]:
    """Settings that both phases of a record share."""
    return {
        "expectile": h["expectile"],
        "inverse_temperature": h["inverse_temperature_advantage"],
        "advantage_weight_max": h["exp_advantage_max"],
        "log_std_min": h["log_std_clip"][0],
        "batch_size": h["batch_size"],
        "discount": h["discount"],
        "target_update_rate": h["target_update_rate"],
        "actor_learning_rate": h["actor_lr"],
        "critic_learning_rate": h["critic_lr"],
        "value_learning_rate": h["value_lr"],
        "hidden_sizes": (h["critic_hidden_width"],) * h["critic_hidden_layers"],
    }


def models_of(record: Record, algorithm: IQL | PEX) -> dict[str, Model]:
    """The recorded start."""
    tree, hidden = record.tree("init"), algorithm.hidden_sizes
    for network in ("actor", "value", "critic_1", "critic_2"):
        assert hidden_sizes(tree[network]) == hidden
    policy = GaussianPolicy(*SPEC, hidden, tanh_mean=True, log_std_min=algorithm.log_std_min)
    critic_adam = Adam(algorithm.critic_learning_rate)
    models = {
        "actor": model(policy, tree["actor"], Adam(algorithm.actor_learning_rate)),
        "critic": model(Critics(*SPEC, hidden), twin(tree, "critic"), critic_adam, twin(tree, "target_critic")),
        "value": model(MLP((5, *hidden, 1)), tree["value"], Adam(algorithm.value_learning_rate)),
    }
    if "offline_actor" in tree:
        models["offline_actor"] = model(policy, tree["offline_actor"], Adam(1.0)).frozen()
    return models


def of_values(h: dict[str, Any], s: State | IQLState, batch: Batch) -> Metrics:
    """What the record knows of V's and the critics' step, from the networks before it."""
    q, value = s.critic.slow(batch.obs, batch.action).min(0), s.value(batch.obs)[:, 0]
    next_value = s.value(batch.next_obs)[:, 0]
    y = td_target(batch, h["discount"], next_value)
    found = {"min_target_q": q, "value": value, "advantage": q - value, "next_value": next_value, "td_target": y}
    found["value_loss"] = (jnp.where(q < value, 1 - h["expectile"], h["expectile"]) * (q - value) ** 2).mean()
    return found


def check(record: Record, at: str, found: Metrics) -> None:
    """Everything that is recorded of a step's course is met."""
    for group in ("intermediates", "scalars", "outputs"):
        for name in record.names(f"{at}/{group}"):
            assert_near(found[name], record[f"{at}/{group}/{name}"], f"{at} {name}")


def check_networks(record: Record, at: str, s: State | IQLState) -> None:
    """Parameters where they are recorded, and the gradients of the first step."""
    if record.names(f"{at}/gradients"):
        gradients, b1 = record.tree(f"{at}/gradients"), record.hparams["adam"]["b1"]
        wanted = ((s.critic, twin(gradients, "critic")), (s.value, gradients["value"]), (s.actor, gradients["actor"]))
        for net, want in wanted:
            assert_gradient(net, want, b1, at)
    if record.names(f"{at}/after"):
        after = record.tree(f"{at}/after")
        assert_parameters(s.actor.params, after["actor"], f"{at} actor")
        assert_parameters(s.critic.params, twin(after, "critic"), f"{at} critic")
        assert_parameters(s.critic.target, twin(after, "target_critic"), f"{at} target_critic")
        assert_parameters(s.value.params, after["value"], f"{at} value")
        if isinstance(s, State) and "offline_actor" in after:
            assert_parameters(s.offline_actor.params, after["offline_actor"], f"{at} offline_actor")


@partial(jax.jit, static_argnums=0)
def offline_step(algorithm: IQL, s: IQLState, batch: Batch) -> tuple[IQLState, Metrics]:
    after, metrics = algorithm.update(s, batch, (), True)
    advantage = s.critic.slow(batch.obs, batch.action).min(0) - s.value(batch.obs)[:, 0]
    weight = jnp.minimum(jnp.exp(algorithm.inverse_temperature * advantage), algorithm.advantage_weight_max)
    found = {
        "policy_weight": weight,
        "negative_log_prob": -gaussian_log_density(batch.action, *s.actor(batch.obs)).sum(-1),
        "policy_loss": metrics["actor_loss"],
        "actor_lr_after": jnp.asarray(algorithm.actor_learning_rate * algorithm.actor_rate(after, batch.reward)),
    }
    return after, metrics | found


def test_the_offline_phase_equals_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    """It is our IQL with a log-std from -5 on."""
    record = Record("ocr_cft/pex_offline_iql")
    h = record.hparams
    algorithm = IQL(cosine_updates=h["actor_lr_cosine_steps"], **common(h))
    s = algorithm.init(models_of(record, algorithm), SPEC, jax.random.key(0))
    for step in range(1, h["num_steps"] + 1):
        at, batch = f"step_{step}", batch_of(record, step)
        known = of_values(h, s, batch)
        s, found = offline_step(algorithm, s, batch)
        check(record, at, known | found)
        check_networks(record, at, s)
    with capsys.disabled():
        print("\ngolden case passed: ocr_cft/pex_offline_iql")


@partial(jax.jit, static_argnums=0)
def online_step(algorithm: PEX, s: State, batch: Batch, draws: Draws) -> tuple[State, Metrics]:
    """The update, and what the record knows of the choice, from the policies before and the values after."""
    after, metrics = algorithm.update(s, batch, draws, True)
    choice = algorithm.choose(State(s.actor, s.offline_actor, after.critic, after.value, s.updates), batch.obs, draws)
    q, value = after.critic.slow(batch.obs, choice.action).min(0), after.value(batch.obs)[:, 0]
    weight = jnp.minimum(jnp.exp(algorithm.inverse_temperature * (q - value)), algorithm.advantage_weight_max)
    found = {
        "composite_actions": choice.action,
        "update_offline_actions": choice.candidates[0],
        "update_online_actions": choice.candidates[1],
        "update_selection_logits": choice.logits.T,
        "composite_min_target_q": q,
        "composite_value": value,
        "composite_advantage": q - value,
        "policy_weight": weight,
        "negative_log_prob": -gaussian_log_density(choice.action, *s.actor(batch.obs)).sum(-1),
        "policy_loss": metrics["actor_loss"],
    }
    return after, metrics | found


@partial(jax.jit, static_argnums=0)
def chosen(algorithm: PEX, s: State, obs: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
    choice = algorithm.choose(s, obs, draws)
    return choice.action, choice.candidates


def actions_of(record: Record, algorithm: PEX, s: State, at: str) -> Metrics:
    """Acting as in training, and as in the released evaluation: each draw counts where another is at most epsilon."""
    h, found = record.hparams, Metrics()
    for mode in ("act", "evaluate"):
        noise, uniform = record[f"{at}/draws/{mode}_policy_noise"], record[f"{at}/draws/{mode}_selection_uniform"]
        if mode == "evaluate":
            if record[f"{at}/draws/evaluate_policy_greedy_uniform"] > h["evaluation_epsilon"]:
                noise = np.zeros_like(noise)
            if record[f"{at}/draws/evaluate_selection_greedy_uniform"] > h["evaluation_epsilon"]:
                uniform = np.asarray(EVEN)
        obs = jnp.asarray(record[f"{at}/inputs/{mode}_observation"])
        action, (offline, online) = chosen(algorithm, s, obs, Draws(jnp.asarray(noise), jnp.asarray(uniform)))
        found |= {f"{mode}_action": action, f"{mode}_offline_action": offline, f"{mode}_online_action": online}
        if mode == "evaluate" and uniform == EVEN and not noise.any():  # as we act greedily, but for the box
            greedy = algorithm.act(s, obs, jax.random.key(3), False)
            assert_near(jnp.clip(record[f"{at}/outputs/evaluate_action"], -1, 1), greedy, at)
    return found


def test_the_online_phase_equals_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Acting, the released evaluation, and the update, from the two policies that it holds."""
    record = Record("ocr_cft/pex_online")
    h = record.hparams
    algorithm = PEX(selection_inverse_temperature=h["selection_inverse_temperature"], **common(h))
    s = algorithm.init(models_of(record, algorithm), SPEC, jax.random.key(0))
    for step in range(1, h["num_steps"] + 1):
        at, batch = f"step_{step}", batch_of(record, step)
        known = of_values(h, s, batch) | actions_of(record, algorithm, s, at)
        draws = Draws(*(jnp.asarray(record[f"{at}/draws/update_{name}"]) for name in Draws._fields))
        s, found = online_step(algorithm, s, batch, draws)
        check(record, at, known | found)
        check_networks(record, at, s)
        assert found["new_policy_fraction"] == h["coverage"]["fraction_online_policy_selected"][step - 1]
    with capsys.disabled():
        print("\ngolden case passed: ocr_cft/pex_online")
