"""PPO, O2PPO, the value of returns and the scaling of rewards against the released program's numbers, in float64.

The released program adds every step's auxiliary advantage to every step's advantage (../spec/ocr_cft.md D1). The
library does not; where the record does, the fault is supplied here.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.learn import Program, make_keys, scored
from segue.core.model import Adam, Model
from segue.core.phases import Online
from segue.core.replay import empty_rows
from segue.core.types import Batch, Metrics, Models, Spec
from segue.environment import Environment
from segue.evaluate import Evaluator
from segue.methods.o2ppo import O2PPO, auxiliary_advantage, excess_log_density
from segue.methods.o2ppo import State as O2PPOState
from segue.methods.ppo import PPO, Steps, generalized_advantages, minibatch_step, normalised
from segue.methods.return_value import ReturnValue, State
from segue.nets.networks import MLP
from segue.nets.policies import GaussianPolicy, gaussian_log_density, sample_in_box
from segue.online import OnlineLoop
from segue.preparation import Preparation
from segue.reward_scaling import RunningReturn
from tests.golden_files import (
    FIELDS,
    Record,
    assert_gradient,
    assert_near,
    assert_parameters,
    cases,
    hidden_sizes,
    model,
)

SPEC = Spec(5, 2)
FLOAT32_PARAMETERS, FLOAT32 = 5e-6, 2e-5  # as the record's README asks
Learner = PPO | O2PPO


@dataclass(frozen=True)
class Released(O2PPO):
    """With the released program's combined advantage [T, T]: of step i, with the auxiliary one of step j."""

    def combined(self, advantage: jax.Array, auxiliary: jax.Array, beta: jax.Array) -> jax.Array:
        return super().combined(advantage[:, None], auxiliary, beta)


def released_gain(ratio: jax.Array, advantage: jax.Array, ratio_clip: float) -> jax.Array:
    """The clipped gain [M, T] of minibatch ratios [M], where advantages are [M, T]."""
    ratio = ratio.reshape(-1, *[1] * (advantage.ndim - 1))
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - ratio_clip, 1 + ratio_clip) * advantage)


def learner(h: dict[str, Any]) -> Learner:
    """The algorithm with the record's settings."""
    settings: dict[str, Any] = {
        "batch_size": h["rollout_length"],
        "minibatch_size": h["minibatch_size"],
        "epochs": h["epochs"],
        "discount": h["discount"],
        "gae_lambda": h["gae_lambda"],
        "ratio_clip": h["clip_epsilon"],
        "entropy_coefficient": h["entropy_coefficient"],
        "gradient_clip_norm": h["gradient_clip_norm"],
        "actor_learning_rate": h["actor_lr"],
        "value_learning_rate": h["critic_lr"],
        "learning_rate_decay_steps": h["lr_decay_total_steps"],
    }
    if not h["use_auxiliary_advantage"]:
        return PPO(**settings)
    kind = Released if h["auxiliary_advantage_shape"].startswith("as released") else O2PPO
    cap = float(np.exp(h["log_std_reset_limit"])) if "log_std_reset_limit" in h else None
    settings |= {"auxiliary_weight": h["auxiliary_coefficient"], "auxiliary_decay_steps": h["auxiliary_decay_steps"]}
    return kind(initial_std_cap=cap, **settings)


def start(record: Record, algorithm: Learner) -> Any:
    """The algorithm's own start from the recorded networks."""
    tree = record.tree("init")
    policy = GaussianPolicy(*SPEC, hidden_sizes(tree["actor"]), tanh_mean=True)
    other = Adam(1.0)  # new optimizers take its place
    models: Models = {
        "actor": model(policy, tree["actor"], other),
        "value": model(value_net(tree["critic"]), tree["critic"], other),
        "reference": model(policy, tree["reference_actor"], other).frozen(),
        "reference_score": jnp.zeros(()),
    }
    return algorithm.init(models, SPEC, jax.random.key(0))


def value_net(params: Any) -> MLP:
    return MLP((SPEC.observation_dim, *hidden_sizes(params), 1), activation="tanh")


def rollout(record: Record, step: int) -> Batch:
    names = (name for name in FIELDS if name != "actions")
    obs, reward, next_obs, terminal = (jnp.asarray(record[f"step_{step}/batch/{name}"]) for name in names)
    action = jnp.asarray(record[f"step_{step}/intermediates/rollout_actions"])
    last = jnp.asarray(record[f"step_{step}/batch/episode_ends"])
    return Batch(obs, action, reward, next_obs, terminal, {"last": last})


UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))


@partial(jax.jit, static_argnums=0)
def whole(algorithm: Any, s: Any, batch: Batch, noise: jax.Array) -> dict[str, Any]:
    """What an update makes of the rollout as a whole, by the record's names."""
    mean, log_std = s.actor(batch.obs)
    advantage, target = generalized_advantages(algorithm, s.value, batch)
    values, next_values = s.value(batch.obs), s.value(batch.next_obs)
    found = {
        "rollout_actions": sample_in_box(mean, log_std, noise),
        "rollout_action_log_probs": gaussian_log_density(batch.action, mean, log_std),
        "values": values,
        "next_values": next_values,
        "gae_advantages": advantage[:, None],
        "value_targets": target[:, None],
        "normalised_advantages": normalised(advantage)[:, None],
    }
    if isinstance(algorithm, PPO):
        return found
    x, beta = excess_log_density(s.reference.policy, batch), algorithm.auxiliary_share(s.env_step)
    auxiliary = auxiliary_advantage(x, SPEC.action_dim)
    combined = algorithm.combined(advantage, auxiliary, beta)
    shape = (-1, 1) if combined.ndim == 1 else combined.shape
    return found | {
        "reference_log_prob_plus_entropy": x,
        "clipped_reference_advantage": auxiliary * SPEC.action_dim,
        "auxiliary_advantage": (algorithm.auxiliary_weight * advantage.std(ddof=1) * auxiliary).reshape(
            (-1, 1) if combined.ndim == 1 else (-1,)
        ),
        "combined_advantages": combined.reshape(shape),
        "normalised_advantages": normalised(combined).reshape(shape),
    }


@partial(jax.jit, static_argnums=0)
def minibatch(algorithm: Any, actor: Model, value: Model, steps: Steps, rate: jax.Array) -> Any:
    """One minibatch's step, and its numbers by the record's names."""
    mean, log_std = actor(steps.obs)
    ratio = jnp.exp(gaussian_log_density(steps.action, mean, log_std).sum(-1) - steps.old_log_density)
    advantage = steps.advantage.reshape(len(ratio), -1)
    stepped = minibatch_step(algorithm, actor, value, steps, rate)
    return stepped, {
        "ratio": ratio[:, None],
        "policy_loss_terms": -released_gain(ratio, advantage, algorithm.ratio_clip),
        "values": value(steps.obs),
        "critic_loss": stepped[2]["value_loss"],
    }


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", cases("ocr_cft/o2ppo_finetune_*"))
def test_updates_equal_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(f"ocr_cft/{name}")
    h = record.hparams
    algorithm = learner(h)
    s = start(record, algorithm)
    if "std_clip" in name:
        capped = record.tree("init_after_std_reset")
        assert_near(s.actor.params["log_std"], capped["actor"]["log_std"], "actor's std")
        assert_near(s.reference.policy.params["log_std"], capped["reference_actor"]["log_std"], "reference's std")
    with patch("segue.methods.ppo.clipped_gain", released_gain) if isinstance(algorithm, Released) else nullcontext():
        for step in range(1, h["num_steps"] + 1):
            s = check_update(record, algorithm, s, step)
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def check_update(record: Record, algorithm: Learner, s: Any, step: int) -> Any:
    """Update `step` from state `s`, in parts and as a whole; the state after it."""
    at, h, batch = f"step_{step}", record.hparams, rollout(record, step)
    total = jnp.int32(int(record[f"{at}/inputs/total_steps"]))
    s = algorithm.begin_step(s, total)
    found = whole(algorithm, s, batch, jnp.asarray(record[f"{at}/draws/action_noise"]))
    for key in found:
        assert_near(found[key], record[f"{at}/intermediates/{key}"], f"{at} {key}")

    orders = np.stack([record[f"{at}/draws/minibatch_permutation_{i + 1}"] for i in range(h["epochs"])])
    size, rate = h["minibatch_size"], algorithm.rate(s.learned_at)
    target = found["value_targets"][:, 0]
    advantage = jnp.asarray(found["normalised_advantages"])
    advantage = advantage if isinstance(algorithm, Released) else advantage[:, 0]
    old = found["rollout_action_log_probs"].sum(-1)
    steps = Steps(batch.obs, batch.action, old, advantage, target)
    actor, value, losses = s.actor, s.value, []
    parts = [order[i : i + size] for order in orders for i in range(0, len(order), size)]
    assert len({len(part) for part in parts}) == (1 if size == 8 else 2)  # 6, 6, 4
    for n, part in enumerate(parts):
        one = jax.tree.map(lambda x, rows=part: x[rows], steps)
        (actor, value, metrics), numbers = minibatch(algorithm, actor, value, one, rate)
        entropy_term = float(metrics["actor_loss"]) - float(numbers["policy_loss_terms"].mean())
        for key, number in numbers.items():
            kind = "scalars" if key == "critic_loss" else "intermediates"
            want = record[f"{at}/{kind}/minibatch_{n + 1}/{key}"]
            assert_near(number + (entropy_term if key == "policy_loss_terms" else 0), want, f"{at} {n + 1} {key}")
        losses.append(float(metrics["actor_loss"]))
        if step == 1 and n == 0:
            assert_near(numbers["ratio"], np.ones((size, 1)), "the first minibatch's ratios")
            gradients = record.tree(f"{at}/gradients")
            assert_gradient(actor, gradients["actor"], h["adam"]["b1"], "actor")
            assert_gradient(value, gradients["critic"], h["adam"]["b1"], "value")

    s, metrics = UPDATE(algorithm, s, batch, jnp.asarray(orders), True)
    assert_near(metrics["actor_loss"], np.mean(losses), f"{at} actor loss")
    assert_near(metrics["actor_loss"], record[f"{at}/scalars/mean_policy_loss"], f"{at} actor loss")
    assert_near(metrics["value_loss"], record[f"{at}/scalars/mean_critic_loss"], f"{at} value loss")
    assert_near(h["actor_lr"] * algorithm.rate(s.learned_at), record[f"{at}/scalars/actor_lr_after"], f"{at} rate")
    assert_near(h["critic_lr"] * algorithm.rate(s.learned_at), record[f"{at}/scalars/critic_lr_after"], f"{at} rate")
    if "auxiliary_weight" in metrics:
        assert_near(metrics["auxiliary_weight"], record[f"{at}/scalars/auxiliary_weight"], f"{at} beta")
        x = record[f"{at}/intermediates/reference_log_prob_plus_entropy"]
        assert_near(metrics["penalty"], -x.mean(), f"{at} penalty")
    after = record.tree(f"{at}/after")
    for got, role in ((s.actor, "actor"), (actor, "actor"), (s.value, "critic"), (value, "critic")):
        assert_parameters(got.params, after[role], f"{at} {role}")
    if "reference_actor" in after and isinstance(algorithm, O2PPO):
        assert_parameters(s.reference.policy.params, after["reference_actor"], f"{at} reference")
    return s


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", cases("ocr_cft/o2ppo_value_fit*"))
def test_the_value_fit_equals_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its returns run on through time limits (D5), so they are taken from it; ours in tests/test_ppo.py."""
    record = Record(f"ocr_cft/{name}")
    h, params = record.hparams, record.tree("init")["critic"]
    algorithm = ReturnValue(batch_size=h["batch_size"], discount=h["discount"], learning_rate=h["value_lr"])
    fresh = algorithm.init({}, SPEC, jax.random.key(0)).value
    s = State(model(value_net(params), params, fresh.optimizer), jnp.int32(0))
    obs, returns = record["buffer_ready/observations"], record["buffer_ready/returns"]
    update = jax.jit(algorithm.update, static_argnums=3)
    for step in range(1, h["num_steps"] + 1):
        rows = record[f"step_{step}/draws/sample_indices"]
        zeros, here = jnp.zeros(len(rows)), jnp.asarray(obs[rows])
        extras = {"return_to_go": jnp.asarray(returns[rows]), "end_discount": zeros, "end_obs": jnp.ones_like(here)}
        batch = Batch(here, jnp.zeros((len(rows), 2)), zeros, here, zeros, extras)
        s, metrics = update(s, batch, (), True)
        assert_near(metrics["value_loss"], record[f"step_{step}/scalars/value_loss"], f"step {step}")
        if step == 1:
            assert_gradient(s.value, record.tree("step_1/gradients")["critic"], h["adam"]["b1"], "value")
        assert_parameters(s.value.params, record.tree(f"step_{step}/after")["critic"], f"step {step}")
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def test_scaled_rewards_equal_the_record() -> None:
    """There R runs on through time limits: only terminals are ends."""
    record = Record("ocr_cft/o2ppo_value_fit_dynamic_reward_scaling")
    running = RunningReturn(record.hparams["discount"])
    terminal = record["buffer_loaded/masks"] == 0
    scaled = running.over_dataset(record["buffer_loaded/rewards"], terminal, terminal)
    assert_near(scaled, record["buffer_reward_scaled/rewards"], "dataset")
    running = RunningReturn(**running.as_dict())
    online = []
    for reward, reset in zip(record["online_rewards/raw"], record["online_rewards/reset_before"], strict=True):
        if reset:
            running.restart()
        online.append(running.scaled(float(reward)))
    assert_near(online, record["outputs/online_rewards_scaled"], "online")


class Toy(gym.Env):
    """The record's environment; starts in their order, or always the same one."""

    def __init__(self, record: Record, always: int | None = None):
        self.matrices = [record[f"environment/{name}"] for name in "ABc"]
        self.starts, self.limit = record["environment/starts"], record.hparams["environment_limit"]
        self.horizon, self.always, self.episode = record.hparams["environment_horizon"], always, 0
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (5,), np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        number = self.episode if self.always is None else self.always
        self.state, self.steps = self.starts[number % len(self.starts)], 0
        self.episode += 1
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        a, b, c = self.matrices
        action = np.clip(action, -1, 1)
        self.state, self.steps = a @ self.state + b @ action, self.steps + 1
        reward = float(c @ self.state - 0.1 * np.square(action).sum())
        return self.state, reward, bool(self.state[0] > self.limit), self.steps == self.horizon, {}


def test_a_whole_run_equals_the_record() -> None:
    """Environment, normaliser, rollouts, updates, evaluations, reference: our loop, in float32, with its draws."""
    record = Record("ocr_cft/o2ppo_end_to_end")
    h = record.hparams
    made: Any = learner(h)
    noise, orders = record["draws/action_noise"].astype(np.float32), record["draws/minibatch_permutations"]
    orders = orders.reshape(-1, h["epochs"], h["rollout_length"])

    class Scripted(Released):
        def act(self, s: O2PPOState, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
            mean, log_std = s.actor(obs)
            return sample_in_box(mean, log_std, jnp.asarray(noise)[s.env_step] if explore else jnp.zeros_like(mean))

        def update(self, s: O2PPOState, batch: Batch, draws: Any, policy_step: bool) -> tuple[O2PPOState, Metrics]:
            return super().update(s, batch, jnp.asarray(orders)[s.updates], policy_step)

    algorithm = Scripted(**vars(made))
    observed = record["dataset/observations"][:-1]  # all but the last row, as released
    mean, std = observed.mean(0), observed.std(0) + 1e-10
    preparation = Preparation(mean.astype(np.float32), std.astype(np.float32))
    start_state = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype.kind == "f" else x, start(record, algorithm))
    state = jax.tree.map(lambda x: jnp.array(x)[None], start_state)
    rows = jax.tree.map(lambda x: x[None], empty_rows(SPEC, h["rollout_length"], ("last",)))
    loop = OnlineLoop(
        program=Program(algorithm, "rollout", SPEC),
        schedule=Online(h["online_steps"], updates_per_step=1 / h["rollout_length"]),
        environments=[Environment(lambda: Toy(record))],
        preparation=preparation,
        state=state,
        rows=rows,
        columns={"last": jnp.ones((1, 0))},
        offline=None,
        keys=make_keys((0,), 0),
        seeds=(0,),
        new_row_extras=lambda step: {"last": np.zeros(1, np.float32)},
    )
    places = iter(range(h["evaluation_episodes"]))
    evaluator = Evaluator(lambda: Toy(record, next(places)), None, preparation)
    greedy = jax.jit(lambda actor, obs: actor(obs)[0])
    scores = []

    def evaluate() -> None:
        actor = jax.tree.map(lambda x: x[0], loop.state.actor)
        score = evaluator.score(lambda obs: np.asarray(greedy(actor, obs)), h["evaluation_episodes"], 0)
        assert score is not None
        scores.append(10 * score.mean)
        loop.state = scored(algorithm, loop.state, np.asarray([score.mean], np.float32))

    with patch("segue.methods.ppo.clipped_gain", released_gain):
        loop.begin()
        evaluate()
        for until in (16, 24, 32, 48):
            metrics, _ = loop.advance(lambda: False, until)
            if until % h["rollout_length"] == 0:
                check_rollout(record, until // h["rollout_length"], loop, metrics)
            if until % h["evaluation_interval"] == 0:
                evaluate()
    np.testing.assert_allclose(scores, record["logs/normalised_return/value"], rtol=1e-5)
    final = record.tree("final")
    for got, role in ((loop.state.actor, "actor"), (loop.state.value, "critic"), (loop.state.reference.policy, "ref")):
        near(got.params, final["reference_actor" if role == "ref" else role], f"final {role}")
    assert h["reference_changed_during_run"]


def near(got: Any, want: Any, where: str) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=0, atol=FLOAT32_PARAMETERS, err_msg=where)


def check_rollout(record: Record, k: int, loop: OnlineLoop, metrics: list[Metrics]) -> None:
    """Rollout `k` as it lies in the ring, its losses, and the networks after it."""
    at = f"update_{k}"
    assert int(record[f"{at}/environment_step"]) == loop.env_step
    rows = jax.tree.map(lambda x: np.asarray(x[0]), loop.rows)
    columns = {"episode_ends": rows.extras["last"]} | dict(
        zip(FIELDS, (rows.obs, rows.action, rows.reward, rows.next_obs, rows.terminal), strict=True)
    )
    for name, got in columns.items():
        want = record[f"{at}/rollout/{name}"]
        np.testing.assert_allclose(got, want, rtol=FLOAT32, atol=FLOAT32, err_msg=f"{at} {name}")
    assert len(metrics) == 1
    np.testing.assert_allclose(metrics[0]["actor_loss"], [record[f"{at}/outputs/mean_policy_loss"]], atol=FLOAT32)
    np.testing.assert_allclose(metrics[0]["value_loss"], [record[f"{at}/outputs/mean_critic_loss"]], rtol=FLOAT32)
    after = record.tree(f"{at}/after")
    near(loop.state.actor.params, after["actor"], f"{at} actor")
    near(loop.state.value.params, after["critic"], f"{at} value")


def test_the_folder_holds_the_cases() -> None:
    assert len(cases("ocr_cft/o2ppo_finetune_*")) == 5 and len(cases("ocr_cft/o2ppo_value_fit*")) == 2
