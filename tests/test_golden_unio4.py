"""Uni-O4's fine-tuning against the released program's numbers, in float64.

The record has the program's two switches on: a clipped value loss and a second tanh on the log-std. Its value ends in
a ReLU, so it cannot be negative; the library's is linear there, and the fault is supplied here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam, Model
from segue.core.types import Batch, Models, PyTree, Spec
from segue.methods.ppo import Steps, clipped_gain, generalized_advantages, minibatch_step, normalised
from segue.methods.uni_o4 import UniO4, clipped_error
from segue.nets.networks import MLP
from segue.nets.policies import BoundedGaussianPolicy, gaussian_log_density, sample_in_box
from tests.golden_files import Record, assert_gradient, assert_near, assert_parameters, hidden_sizes, model

SPEC = Spec(5, 2)
UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))


@dataclass(frozen=True)
class Rectified(MLP):
    """The released value network."""

    def apply(self, params: PyTree, x: jax.Array, *dropout: jax.Array) -> jax.Array:
        return jax.nn.relu(super().apply(params, x, *dropout))


def learner(h: dict[str, Any]) -> UniO4:
    """The algorithm with the record's settings."""
    assert h["log_std_bounds"] == [-5.0, 0.0] and h["log_std_squash"].startswith("tanh a second time")
    return UniO4(
        value_clip=h["value_clip_epsilon"],
        second_tanh=True,
        batch_size=h["rollout_length"],
        minibatch_size=h["minibatch_size"],
        epochs=h["epochs"],
        discount=h["discount"],
        gae_lambda=h["gae_lambda"],
        ratio_clip=h["clip_epsilon"],
        entropy_coefficient=h["entropy_coefficient"],
        gradient_clip_norm=h["gradient_clip_norm"],
        actor_learning_rate=h["actor_lr"],
        value_learning_rate=h["critic_lr"],
        learning_rate_decay_steps=h["lr_decay_total_steps"],
    )


def start(record: Record, algorithm: UniO4) -> Any:
    """The algorithm's own start from the recorded networks, whose log-std had one tanh offline."""
    tree, other = record.tree("init"), Adam(1.0)  # new optimizers take its place
    policy = BoundedGaussianPolicy(*SPEC, hidden_sizes(tree["actor"]))
    value = Rectified((SPEC.observation_dim, *hidden_sizes(tree["critic"]), 1))
    models: Models = {"actor": model(policy, tree["actor"], other), "value": model(value, tree["critic"], other)}
    return algorithm.init(models, SPEC, jax.random.key(0))


def rollout(record: Record, at: str) -> Batch:
    names = ("observations", "rewards", "next_observations", "terminals", "episode_ends")
    obs, reward, next_obs, terminal, last = (jnp.asarray(record[f"{at}/batch/{name}"]) for name in names)
    action = jnp.asarray(record[f"{at}/intermediates/rollout_actions"])
    return Batch(obs, action, reward, next_obs, terminal, {"last": last})


@partial(jax.jit, static_argnums=0)
def whole(algorithm: UniO4, s: Any, batch: Batch, noise: jax.Array) -> dict[str, Any]:
    """What an update makes of the rollout as a whole, by the record's names."""
    mean, log_std = s.actor(batch.obs)
    advantage, target = generalized_advantages(algorithm, s.value, batch)
    values, next_values = s.value(batch.obs), s.value(batch.next_obs)
    going_on = algorithm.discount * (1 - batch.terminal)[:, None]
    return {
        "rollout_actions": sample_in_box(mean, log_std, noise),
        "rollout_action_log_probs": gaussian_log_density(batch.action, mean, log_std),
        "values": values,
        "next_values": next_values,
        "td_errors": batch.reward[:, None] + going_on * next_values - values,
        "gae_advantages": advantage[:, None],
        "value_targets": target[:, None],
        "normalised_advantages": normalised(advantage)[:, None],
    }


@partial(jax.jit, static_argnums=0)
def minibatch(
    algorithm: UniO4, actor: Model, value: Model, before: Model, steps: Steps, rate: jax.Array
) -> Any:
    """One minibatch's step, and its numbers by the record's names; `before` is the value as the update began."""

    def value_error(v: jax.Array, obs: jax.Array, y: jax.Array) -> jax.Array:
        assert algorithm.value_clip is not None
        return clipped_error(v, before(obs)[..., 0], y, algorithm.value_clip)

    mean, log_std = actor(steps.obs)
    ratio = jnp.exp(gaussian_log_density(steps.action, mean, log_std).sum(-1) - steps.old_log_density)
    entropy = (log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e)).sum(-1)  # [M] of each state
    terms = -clipped_gain(ratio, steps.advantage, algorithm.ratio_clip) - algorithm.entropy_coefficient * entropy
    stepped = minibatch_step(algorithm, actor, value, steps, rate, value_error)
    return stepped, {
        "ratio": ratio[:, None],
        "policy_loss_terms": terms[:, None],
        "values": value(steps.obs),
        "critic_loss": stepped[2]["value_loss"],
    }


def test_updates_equal_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    record = Record("ocr_cft/unio4_ppo_finetune")
    algorithm = learner(record.hparams)
    with jax.enable_x64(True):
        s = start(record, algorithm)
        for step in range(1, record.hparams["num_steps"] + 1):
            s = check_update(record, algorithm, s, step)
    with capsys.disabled():
        print("\ngolden case passed: unio4_ppo_finetune")


def check_update(record: Record, algorithm: UniO4, s: Any, step: int) -> Any:
    """Update `step` from state `s`, in parts and as a whole; the state after it."""
    at, h, batch = f"step_{step}", record.hparams, rollout(record, f"step_{step}")
    s = algorithm.begin_step(s, jnp.int32(int(record[f"{at}/inputs/total_steps"])))
    found = whole(algorithm, s, batch, jnp.asarray(record[f"{at}/draws/action_noise"]))
    for key in found:
        assert_near(found[key], record[f"{at}/intermediates/{key}"], f"{at} {key}")

    orders = np.stack([record[f"{at}/draws/minibatch_permutation_{i + 1}"] for i in range(h["epochs"])])
    size, rate = h["minibatch_size"], algorithm.rate(s.learned_at)
    old = found["rollout_action_log_probs"].sum(-1)
    target, advantage = found["value_targets"][:, 0], found["normalised_advantages"][:, 0]
    steps = Steps(batch.obs, batch.action, old, advantage, target)
    actor, value, losses = s.actor, s.value, []
    parts = [order[i : i + size] for order in orders for i in range(0, len(order), size)]
    for n, part in enumerate(parts):
        one = jax.tree.map(lambda x, rows=part: x[rows], steps)
        (actor, value, metrics), numbers = minibatch(algorithm, actor, value, s.value, one, rate)
        for key, number in numbers.items():
            kind = "scalars" if key == "critic_loss" else "intermediates"
            want = record[f"{at}/{kind}/minibatch_{n + 1}/{key}"]
            assert_near(number, want, f"{at} {n + 1} {key}")
        losses.append(float(metrics["actor_loss"]))
        if step == 1 and n == 0:
            gradients = record.tree(f"{at}/gradients")
            assert_gradient(actor, gradients["actor"], h["adam"]["b1"], "actor")
            assert_gradient(value, gradients["critic"], h["adam"]["b1"], "value")

    s, metrics = UPDATE(algorithm, s, batch, jnp.asarray(orders), True)
    assert_near(metrics["actor_loss"], np.mean(losses), f"{at} actor loss")
    assert_near(metrics["actor_loss"], record[f"{at}/scalars/mean_policy_loss"], f"{at} actor loss")
    assert_near(metrics["value_loss"], record[f"{at}/scalars/mean_critic_loss"], f"{at} value loss")
    assert_near(h["actor_lr"] * algorithm.rate(s.learned_at), record[f"{at}/scalars/actor_lr_after"], f"{at} rate")
    assert_near(h["critic_lr"] * algorithm.rate(s.learned_at), record[f"{at}/scalars/critic_lr_after"], f"{at} rate")
    if step in h["parameters_recorded_after_steps"]:
        after = record.tree(f"{at}/after")
        for got, role in ((s.actor, "actor"), (actor, "actor"), (s.value, "critic"), (value, "critic")):
            assert_parameters(got.params, after[role], f"{at} {role}")
    return s
