"""The Online Decision Transformer: what its network sees, what it learns from, how it acts on a history."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import segue
from segue.core.learn import Program, initial_state, learn, make_keys
from segue.core.model import Adam, Lamb, Model, Scalar
from segue.core.phases import Online, Phase, check
from segue.core.reference import NO_SCORE
from segue.core.replay import Memory, Ring, empty_rows, gather
from segue.core.types import Batch, Spec
from segue.environment import Environment
from segue.errors import UserError
from segue.evaluate import Evaluator, Player
from segue.experiment import form_after, load_models
from segue.methods.cql import CQL
from segue.methods.odt import ODT, Draws, History, State
from segue.nets.transformer import LOG_STD_MAX, LOG_STD_MIN, SequencePolicy
from segue.online import OnlineLoop
from segue.preparation import Preparation
from segue.recipes import METHODS, preset_recipe
from segue.replay_start import phase_data, return_rule
from segue.settings import flat, with_changes
from segue.stop import Interrupted, StopSignals
from tests.small import ENVIRONMENT, pendulum_data
from tests.test_every_method import SCARCE

SPEC = Spec(3, 2)
K = 4
SMALL: dict[str, Any] = {
    "batch_size": 5,
    "context_length": K,
    "acting_context_length": 3,
    "width": 8,
    "num_layers": 1,
    "num_heads": 2,
    "learning_rate_warmup_updates": 2,
    "actor_learning_rate": 0.1,
}
# Compiled, for one by one the operations would take seconds.
update = jax.jit(ODT.update, static_argnums=(0, 4))
act_in = jax.jit(ODT.act_in, static_argnums=(0, 6))
apply = jax.jit(SequencePolicy.apply, static_argnums=0)
NET = SequencePolicy(3, 2, width=8, num_layers=2, num_heads=2, context_length=K, ordering=True)


def sequence(length: int = K, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    returns, obs, action = rng.normal(size=length), rng.normal(size=(length, 3)), rng.uniform(-1, 1, (length, 2))
    return jnp.asarray(returns, jnp.float32), jnp.asarray(obs, jnp.float32), jnp.asarray(action, jnp.float32)


def outputs(params: Any, *inputs: jax.Array) -> np.ndarray:
    """[T, 2 A]."""
    return np.concatenate(apply(NET, params, *inputs), axis=-1)


@pytest.fixture(scope="module")
def params() -> Any:
    """With biases and norms away from their start, so that nothing hides in a zero."""
    fresh: Any = jax.device_get(jax.jit(NET.init)(jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), fresh)


# -- what the network sees


@pytest.mark.parametrize("t", range(K))
def test_an_action_is_read_off_the_past_its_own_return_and_observation(params: Any, t: int) -> None:
    """A change at step t moves the outputs from t on; that of a_t, which is what is predicted, only those after t."""
    before = outputs(params, *sequence())
    for i, first in ((0, t), (1, t), (2, t + 1)):
        changed = list(sequence())
        changed[i] = changed[i].at[t].add(1.0)
        moved = (np.abs(outputs(params, *changed) - before) > 1e-6).any(-1)
        assert moved.tolist() == [step >= first for step in range(K)], ("return", "observation", "action")[i]


def test_what_fills_a_short_sequence_is_not_seen(params: Any) -> None:
    short, filled = sequence(), sequence(seed=1)
    mixed = [jnp.concatenate([a[:2], b[2:]]) for a, b in zip(short, filled, strict=True)]
    alone = [x[:2] for x in short]
    np.testing.assert_allclose(outputs(params, *mixed)[:2], outputs(params, *alone), atol=1e-5)


def test_with_ordering_a_step_knows_its_place(params: Any) -> None:
    """Two equal steps: without it only what attention mixes in tells them apart, and among equals that is nothing."""
    same = [jnp.stack([x[0], x[0]]) for x in sequence()]
    none = replace(NET, ordering=False)
    for net, differ in ((NET, True), (none, False)):
        # Of two equal steps the second sees the first one's action too, unless attention gives every token the same.
        first, second = np.concatenate(apply(net, _without_attention(params), *same), axis=-1)
        assert (np.abs(first - second).max() > 1e-4) == differ


def _without_attention(params: Any) -> Any:
    layers = {name: layer for name, layer in params.items() if name.startswith("layer_")}
    return params | {
        name: layer | {"attention_out": jax.tree.map(jnp.zeros_like, layer["attention_out"])}
        for name, layer in layers.items()
    }


def test_the_network_is_the_transformer_of_its_docstring(params: Any) -> None:
    """Written out again in NumPy, token by token."""
    returns, obs, action = (np.asarray(x, np.float64) for x in sequence())
    p: Any = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def affine(layer: Any, x: np.ndarray) -> np.ndarray:
        return x @ layer["kernel"] + layer["bias"]

    def norm(layer: Any, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * layer["scale"] + layer["bias"]

    tokens = []
    for t in range(K):
        for name, value in (("return", returns[t : t + 1]), ("obs", obs[t]), ("action", action[t])):
            tokens.append(affine(p[f"embed_{name}"], value) + p["places"][t])
    x = norm(p["norm_tokens"], np.stack(tokens))
    for i in range(2):
        layer = p[f"layer_{i}"]
        parts = np.split(affine(layer["attention_in"], norm(layer["norm_attention"], x)), 3, axis=-1)
        mixed = np.zeros_like(x)
        for head in (slice(0, 4), slice(4, 8)):
            query, key, value = (part[:, head] for part in parts)
            for n in range(3 * K):
                weights = np.exp([query[n] @ key[m] / 2 for m in range(n + 1)])  # sqrt of 4, a head's width
                mixed[n, head] = weights @ value[: n + 1] / weights.sum()
        x = x + affine(layer["attention_out"], mixed)
        x = x + affine(layer["mlp_out"], np.maximum(affine(layer["mlp_in"], norm(layer["norm_mlp"], x)), 0))
    mean, raw = np.split(affine(p["head"], norm(p["norm_last"], x)[1::3]), 2, axis=-1)
    found = apply(NET, params, *sequence())
    np.testing.assert_allclose(found[0], mean, atol=1e-5)
    np.testing.assert_allclose(found[1], -5 + 3.5 * (np.tanh(raw) + 1), atol=1e-5)


def test_the_log_std_stays_in_its_range(params: Any) -> None:
    for sign, end in ((-1, LOG_STD_MIN), (1, LOG_STD_MAX)):
        far = {"kernel": jnp.zeros((8, 4)), "bias": jnp.full(4, 1e4 * sign)}
        np.testing.assert_allclose(apply(NET, params | {"head": far}, *sequence())[1], end, atol=1e-5)


def test_dropout_masks_are_the_factors_that_the_network_takes(params: Any) -> None:
    masks = NET.dropout_masks(jax.random.key(0), 0.25, 6)
    assert [m.shape[1:] for m in masks] == [(12, 8), *[(2, 12, 12), (12, 8), (12, 8)] * 2]
    assert np.mean([np.mean(m) for m in masks]) == pytest.approx(0.75, abs=0.03)
    many = [jnp.stack([x] * 6) for x in sequence()]
    plain = np.concatenate(apply(NET, params, *many), axis=-1)
    ones = np.concatenate(apply(NET, params, *many, *[jnp.ones_like(m) for m in masks]), axis=-1)
    np.testing.assert_allclose(ones, plain, atol=1e-6)
    for i in range(len(masks)):  # each of them matters
        factors = [m if i == j else jnp.ones_like(m) for j, m in enumerate(masks)]
        assert np.abs(np.concatenate(apply(NET, params, *many, *factors), axis=-1) - plain).max() > 1e-3, i
    assert NET.dropout_masks(jax.random.key(0), 0.0, 6) == ()


# -- the optimizer


def test_lamb_scales_each_array_to_its_own_norm() -> None:
    """Its first step by hand: Adam's is the gradient's sign; plus decay; times the array's norm over the step's."""
    params = {"a": jnp.asarray([3.0, 4.0]), "b": jnp.asarray([0.0])}
    model = Model(params, None, Lamb(0.1, None, 0.5).transform().init(params), None, Lamb(0.1, None, 0.5))
    after = model.step({"a": jnp.asarray([2.0, -1.0]), "b": jnp.asarray([1.0])}).params
    step = np.array([1 + 1.5, -1 + 2.0])
    np.testing.assert_allclose(after["a"], [3, 4] - 0.1 * step * 5 / np.linalg.norm(step), rtol=1e-5)
    np.testing.assert_allclose(after["b"], [-0.1], rtol=1e-5)  # an array of norm 0 moves as with Adam


def test_lamb_clips_as_adam_does_and_adam_is_what_it_was() -> None:
    grads = {"a": jnp.asarray([3.0, 4.0])}
    for optimizer in (Lamb(0.1, 0.25), Adam(0.1, 0.25)):
        np.testing.assert_allclose(optimizer.clipped(grads)["a"], [0.15, 0.2], rtol=1e-5)
    assert Lamb(0.1).clipped(grads) is grads
    state = Adam(0.1).transform().init(grads)
    want: Any = jax.tree.structure(optax.adam(0.1, eps=1e-8).init(grads))
    assert jax.tree.structure(state) == want


# -- the losses


class Plain:
    """A policy whose mean [A] is a parameter plus the return that it is shown, times its dropout's factors, its log-std
    [A] another parameter. The losses around it are those of any network, and it compiles soon."""

    kind, observation_dim, action_dim = "sequence", 3, 1

    def init(self, key: jax.Array) -> Any:
        return {"mean": jnp.asarray([0.3]), "log_std": jnp.asarray([-0.4])}

    def apply(self, params: Any, returns: jax.Array, obs: jax.Array, action: jax.Array, *dropout: jax.Array) -> Any:
        mean = (params["mean"] + returns[..., None]) * (dropout[0] if dropout else 1.0)
        return mean, jnp.broadcast_to(params["log_std"], mean.shape)


PLAIN = Plain()


def stretch(to_go: Any, present: Any, action: Any, time_step: Any = None) -> Batch:
    """Batch of sequences, [B, K] each; observations and what no loss reads are noise."""
    to_go, present, action = (np.asarray(x, np.float32) for x in (to_go, present, action))
    noise: Any = np.random.default_rng(0).normal(size=(*to_go.shape, 3)).astype(np.float32)
    steps = np.broadcast_to(np.arange(7, 7 + to_go.shape[1]), to_go.shape) if time_step is None else time_step
    extras: Any = {"return_to_go": to_go, "present": present, "time_step": np.asarray(steps, np.float32)}
    return Batch(noise, action.reshape(*to_go.shape, -1), to_go, noise, np.zeros_like(to_go), extras)


def plain_state(algorithm: ODT) -> State:
    adam = Adam(algorithm.temperature_learning_rate)
    actor = Model.create(PLAIN, Lamb(0.1), jax.random.key(0))
    temperature = Model.create(Scalar(math.log(algorithm.initial_temperature)), adam, jax.random.key(0))
    return State(actor, temperature, jnp.float32(NO_SCORE), jnp.int32(0))


def log_density(x: float, mean: float, log_std: float = -0.4) -> float:
    """Of the action tanh(x)."""
    normal = -0.5 * ((x - mean) / math.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return normal - math.log(1 - math.tanh(x) ** 2)


def test_losses_by_hand() -> None:
    """Two sequences of two steps, one of them padding: mean over the three true steps, not over sequences. The network
    is shown a thousandth of the returns; what dropout keeps counts twice, as it keeps half."""
    algorithm = ODT(**SMALL | {"batch_size": 2, "context_length": 2}, actor_dropout=0.5)
    actions, noise = [[0.5, -0.2], [0.1, 0.9]], [[0.7, -1.1], [0.2, 5.0]]
    batch = stretch([[200.0, 100.0], [300.0, 300.0]], [[1, 1], [1, 0]], actions)
    state = plain_state(algorithm)
    draws = Draws(jnp.asarray(noise)[..., None], (jnp.asarray([[1.0, 0.0], [1.0, 1.0]])[..., None],))
    after, metrics = update(algorithm, state, batch, draws, True)
    means = (1.0, 0.0, 1.2)  # 0.3 and the returns' thousandth, dropped in the second step
    taken, sampled = zip((0.5, -0.2, 0.1), means, strict=True), zip((0.7, -1.1, 0.2), means, strict=True)
    likelihood = np.mean([log_density(math.atanh(a), mean) for a, mean in taken])
    entropy = -np.mean([log_density(mean + math.exp(-0.4) * n, mean) for n, mean in sampled])
    assert metrics["log_likelihood"] == pytest.approx(likelihood, rel=1e-5)
    assert metrics["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert metrics["actor_loss"] == pytest.approx(-likelihood - 0.1 * entropy, rel=1e-5)
    assert metrics["steps_per_sequence"] == 1.5
    # lambda: its gradient has the sign of H + A; Adam's first step is one learning rate long.
    sign = np.sign(entropy + 1.0)
    assert float(after.temperature()) == pytest.approx(math.log(0.1) - 1e-4 * sign, rel=1e-6)


@pytest.mark.parametrize(("log_std", "rises"), [(-3.0, True), (-0.4, False)])
def test_lambda_rises_where_the_entropy_is_below_that_of_one_action(log_std: float, rises: bool) -> None:
    """H_min is -A for every single action: summed over the K steps of a sequence it would be met here."""
    algorithm = ODT(**SMALL, actor_dropout=0.0)
    state = plain_state(algorithm)
    state = replace(state, actor=replace(state.actor, params={"mean": jnp.zeros(1), "log_std": jnp.asarray([log_std])}))
    noise = jax.random.normal(jax.random.key(0), (5, K, 1))
    batch = stretch(np.zeros((5, K)), np.ones((5, K)), np.zeros((5, K, 1)))
    after, metrics = update(algorithm, state, batch, Draws(noise, ()), True)
    assert -K < metrics["entropy"] < 1 and (metrics["entropy"] < -1) == rises
    assert (after.temperature() > state.temperature()) == rises


def plain() -> tuple[ODT, State, Draws, Batch]:
    """All that an update of the plain policy takes."""
    algorithm = ODT(**SMALL, actor_dropout=0.0)
    state = jax.tree.map(lambda x: jnp.array(x, x.dtype), plain_state(algorithm))
    batch = stretch(np.zeros((5, K)), np.ones((5, K)), np.full((5, K, 1), 0.4))
    return algorithm, state, Draws(jax.random.normal(jax.random.key(0), (5, K, 1)), ()), batch


def test_padding_and_unfinished_episodes_teach_nothing() -> None:
    """Whatever stands there; and a batch without any true step leaves all but the count of updates as it is."""
    algorithm, state, draws, _ = plain()
    present, rng = np.ones((5, K), np.float32), np.random.default_rng(0)
    present[0, 2:], present[1] = 0, 0
    batch = stretch(1000 * rng.normal(size=(5, K)), present, rng.uniform(-1, 1, (5, K, 1)))
    other = batch._replace(action=jnp.where(present[..., None] > 0, batch.action, 0.123))
    to_go: Any = np.where(present > 0, batch.extras["return_to_go"], -np.inf)
    unfinished = batch._replace(extras=batch.extras | {"present": jnp.ones((5, K)), "return_to_go": to_go})
    want = update(algorithm, state, batch, draws, True)[0]
    for one in (other, unfinished):
        found = update(algorithm, state, one, draws, True)[0]
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    empty = batch._replace(extras=batch.extras | {"present": jnp.zeros((5, K))})
    nothing = update(algorithm, state, empty, draws, True)[0]
    for a, b in zip(jax.tree.leaves(replace(state, updates=jnp.int32(1))), jax.tree.leaves(nothing), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_learning_rate_rises_linearly() -> None:
    """With a warm-up of two updates the first is half as long as the second's full length, from the same state."""
    algorithm, state, draws, batch = plain()
    steps = []
    for done in (0, 1, 5):
        after = update(algorithm, replace(state, updates=jnp.int32(done)), batch, draws, True)[0]
        steps.append(np.asarray(after.actor.params["mean"] - state.actor.params["mean"]))
    np.testing.assert_allclose(steps[0], steps[1] / 2, atol=1e-6)
    np.testing.assert_array_equal(steps[1], steps[2])


def test_an_extreme_action_has_a_finite_likelihood() -> None:
    algorithm, state, draws, batch = plain()
    after, metrics = update(algorithm, state, batch._replace(action=jnp.ones((5, K, 1))), draws, True)
    assert np.isfinite(metrics["actor_loss"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


# -- acting


def test_the_best_return_is_that_of_an_episode_from_its_start() -> None:
    algorithm, state, draws, _ = plain()
    steps = np.arange(K) + np.array([[0], [3], [0], [0], [9]])
    to_go = np.array([[5.0], [99.0], [-2.0], [8.0], [50.0]]) + np.zeros((5, K))
    present = np.ones((5, K))
    present[3] = 0
    batch = stretch(to_go, present, np.zeros((5, K, 1)), steps)
    assert algorithm.wanted_return(state, False) == 0
    after = update(algorithm, state, batch, draws, True)[0]
    assert after.best_return == 5 and algorithm.wanted_return(after, False) == 5
    assert algorithm.wanted_return(after, True) == 10
    worse = batch._replace(extras=batch.extras | {"return_to_go": batch.extras["return_to_go"] - 1})
    assert update(algorithm, after, worse, draws, True)[0].best_return == 5
    chosen_one = replace(algorithm, target_return=-40.0)
    assert [float(chosen_one.wanted_return(after, explore)) for explore in (False, True)] == [-40, 0]


@cache
def acting() -> tuple[ODT, State]:
    """A policy and its state."""
    algorithm = ODT(**SMALL, target_return=900.0, ordering=True)
    return algorithm, jax.jit(lambda: algorithm.init({}, SPEC, jax.random.key(0)))()


def on_stretch(actor: Any, returns: Any, obs: Any, actions: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log-std [A] of the last of `returns` and `obs`; filled up, so that one program serves all lengths."""
    filled = [np.concatenate([x, np.zeros((3 - len(x), *x.shape[1:]))]) for x in (returns, obs, actions)]
    mean, log_std = apply(actor.net, actor.params, *(x.astype(np.float32) for x in filled))
    return np.asarray(mean[len(returns) - 1]), np.asarray(log_std[len(returns) - 1])


def played(algorithm: ODT, state: State, steps: int, explore: bool = False) -> tuple[list[Any], list[Any], History]:
    """Observations, rewards; the actions that a policy took on them one by one."""
    rng: Any = np.random.default_rng(3)
    obs, rewards = rng.normal(size=(steps, 3)).astype(np.float32), [0.0, *rng.normal(size=steps).tolist()]
    history, actions = algorithm.context(SPEC), []
    for t in range(steps):
        step = (obs[t], np.float32(rewards[t]), jax.random.key(t))
        action, history = act_in(algorithm, state, history, *step, explore)
        actions.append(np.asarray(action))
    return [obs, rewards], actions, history


def test_acting_sees_the_last_steps_and_what_is_left_of_the_return() -> None:
    """Against the network on the stretch itself: C = 3 steps at most, g_t = G - what was earned before t."""
    algorithm, state = acting()
    (obs, rewards), actions, history = played(algorithm, state, 7)
    left = 0.001 * (900 - np.cumsum(rewards))
    done = np.stack(actions)
    for t in range(7):
        past = slice(max(0, t - 2), t + 1)
        mean, _ = on_stretch(state.actor, left[past], obs[past], done[max(0, t - 2) : t])
        np.testing.assert_allclose(actions[t], np.tanh(mean), atol=1e-6)
    assert history.length == 3 and history.total == pytest.approx(sum(rewards[:7]), rel=1e-5)
    np.testing.assert_allclose(history.action, done[-3:], atol=1e-7)


def test_exploring_samples_with_a_higher_return_and_evaluating_does_not() -> None:
    algorithm, state = acting()
    obs: Any = np.ones(3, np.float32)

    def first(key: int, explore: bool) -> jax.Array:
        history, reward = algorithm.context(SPEC), np.float32(0)
        return act_in(algorithm, state, history, obs, reward, jax.random.key(key), explore)[0]

    np.testing.assert_array_equal(first(0, False), first(1, False))
    one, other = (first(key, True) for key in (0, 1))
    assert np.abs(one - other).max() > 1e-3
    mean, log_std = on_stretch(state.actor, np.full(1, 1.8), obs[None], np.zeros((0, 2)))
    noise = jax.random.normal(jax.random.key(0), (2,))
    np.testing.assert_allclose(one, np.tanh(mean + np.exp(log_std) * noise), atol=1e-6)


# -- stretches of episodes


def three_episodes() -> tuple[Batch, dict[str, Any]]:
    """Of 3, 1 and 4 rows, the last one not ended yet; a row's observation is its number, its reward 1 + its number."""
    number: Any = np.arange(8, dtype=np.float32)
    column: Any = np.repeat(number[:, None], 3, axis=1)
    extras: Any = {
        "time_step": np.asarray([0, 1, 2, 0, 0, 1, 2, 3], np.float32),
        "return_to_go": np.asarray([6, 5, 3, 4, *[-np.inf] * 4], np.float32),
    }
    return Batch(column, column[:, :2], number + 1, column + 1, number, {}), extras


def test_a_stretch_ends_at_its_row_and_does_not_leave_its_episode() -> None:
    rows, columns = three_episodes()
    batch = gather("offline", Memory(rows, columns), jnp.asarray([2, 0, 3, 7, 5]), window=3)
    assert batch.obs[..., 0].tolist() == [[0, 1, 2], [0, 0, 0], [3, 3, 3], [5, 6, 7], [4, 5, 5]]
    assert batch.extras["present"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]
    assert batch.action.shape == (5, 3, 2) and batch.reward[0].tolist() == [1, 2, 3]
    assert batch.extras["return_to_go"][0].tolist() == [6, 5, 3]
    assert batch.extras["time_step"][3].tolist() == [1, 2, 3]


@pytest.mark.parametrize("mix", ["online", "joined", "half"])
def test_stretches_of_every_mix_stay_on_their_side(mix: Any) -> None:
    """A ring whose first row begins an episode does not reach back into the dataset, nor the dataset's end into it."""
    rows, columns = three_episodes()
    ring = Ring(rows._replace(obs=rows.obs + 100, extras=columns), jnp.int32(5))
    memory = Memory(rows, columns, ring)
    chosen = {"online": [1, 4], "joined": [9, 7], "half": [1, 7]}[mix]
    want = {
        "online": [[100, 101, 101], [104, 104, 104]],
        "joined": [[100, 101, 101], [5, 6, 7]],
        "half": [[100, 101, 101], [5, 6, 7]],
    }[mix]
    batch = gather(mix, memory, jnp.asarray(chosen), window=3)
    assert batch.obs[..., 0].tolist() == want


def pendulum_phase(**online: Any) -> Phase:
    return Phase("online", ODT(**SMALL), online=Online(200, replay="all", **online), updates=0)


def test_returns_to_go_are_undiscounted_and_steps_are_counted_from_the_episodes_start() -> None:
    dataset = pendulum_data()
    data = phase_data(pendulum_phase(), dataset, Preparation.identity(4), {}, 2)
    starts, lengths = dataset.episode_starts, dataset.episode_lengths
    steps, to_go = data.columns["time_step"][1], data.columns["return_to_go"][1]
    np.testing.assert_array_equal(steps, np.concatenate([np.arange(n) for n in lengths]))
    for start, length in zip(starts, lengths, strict=True):
        rewards = dataset.rewards[start : start + length].astype(np.float64)
        np.testing.assert_allclose(to_go[start : start + length], np.cumsum(rewards[::-1])[::-1], rtol=1e-6)
    cal_ql = replace(pendulum_phase(), algorithm=CQL(calibrate=True))
    discounted = phase_data(cal_ql, dataset, Preparation.identity(4), {}, 1).columns["return_to_go"][0]
    assert np.abs(discounted - to_go).max() > 0.1  # the wrong rule


# -- online, and in evaluation


def pendulum_loop(seeds: tuple[int, ...] = (0, 1), **settings: Any) -> OnlineLoop:
    """ODT on InvertedPendulum, learning at every third step from the data and what is new."""
    dataset, spec, keys = pendulum_data(), Spec(4, 1), make_keys(seeds, 0)
    phase = pendulum_phase(updates_per_step=1 / 3, warmup_steps=2)
    phase = replace(phase, algorithm=ODT(**SMALL | {"target_return": 30.0} | settings))
    data = phase_data(phase, dataset, Preparation.identity(4), {}, len(seeds))
    assert phase.online is not None
    empty = empty_rows(spec, 200, tuple(data.columns))
    return OnlineLoop(
        Program(phase.algorithm, "joined", spec),
        phase.online,
        [Environment(ENVIRONMENT) for _ in seeds],
        Preparation.identity(4),
        initial_state(phase.algorithm, {}, spec, keys),
        jax.tree.map(lambda x: jnp.repeat(x[None], len(seeds), 0), empty),
        {name: jnp.asarray(column) for name, column in data.columns.items()},
        data.rows,
        keys,
        seeds,
        new_row_extras=data.new_row_extras,
        return_rule=return_rule(phase),
    )


def forever() -> bool:
    return False


def test_the_loop_acts_on_each_seeds_own_history_and_forgets_it_with_the_episode() -> None:
    """Every action of two seeds is the network's sample on the stored rows, from their own episode's start on."""
    loop = pendulum_loop()
    loop.schedule = replace(loop.schedule, updates_per_step=0.0)  # one policy throughout
    loop.begin()
    _, episodes = loop.advance(forever, 60)
    rows, algorithm = jax.device_get(loop.rows), loop.program.algorithm
    assert isinstance(algorithm, ODT)
    assert len({e["step"] for e in episodes}) > 2 and {e["seed"] for e in episodes} == {0, 1}
    for k in (0, 1):
        one = jax.tree.map(lambda x, k=k: x[k], loop.state.actor)
        steps = rows.extras["time_step"][k][:60].astype(int)
        for t in range(60):
            first = t - min(steps[t], 2)
            earned = [rows.reward[k][i - steps[i] : i].sum() for i in range(first, t + 1)]
            to_go = np.asarray([0.001 * (60.0 - e) for e in earned])  # twice the evaluation's 30
            mean, log_std = on_stretch(one, to_go, rows.obs[k][first : t + 1], rows.action[k][first:t])
            noise = jax.random.normal(jax.random.fold_in(loop.keys.act[k], t), (1,))
            np.testing.assert_allclose(rows.action[k][t], np.tanh(mean + np.exp(log_std) * noise), atol=1e-5)
        ends = [e["step"] for e in episodes if e["seed"] == loop.seeds[k]]
        assert set(np.flatnonzero(steps == 0)) == {0, *ends} - {60}
        known = np.isfinite(rows.extras["return_to_go"][k][:60])
        assert known.tolist() == [t < max(ends) for t in range(60)]
        np.testing.assert_allclose(rows.extras["return_to_go"][k][0], rows.reward[k][: ends[0]].sum(), rtol=1e-6)


@pytest.mark.slow
def test_a_loop_saved_in_the_middle_of_an_episode_goes_on_to_the_bit() -> None:
    whole, first = pendulum_loop(), pendulum_loop()
    for loop in (whole, first):
        loop.begin()
    whole.advance(forever, 45)
    first.advance(forever, 23)
    assert int(first.contexts.length.max()) == 3 and (first.episode_length > 0).any()
    host, other = (json.loads(json.dumps(first.host_state())) for _ in range(2))
    lost = pendulum_loop()  # one environment's state could not be saved: that episode begins anew, the other goes on
    lost.state, lost.rows = first.state, first.rows
    lost.restore(other | {"environments": [None, other["environments"][1]]})
    assert lost.contexts.length.tolist() == [1, int(first.contexts.length[1])]
    np.testing.assert_array_equal(lost.contexts.obs[0, 0], lost.obs[0])
    np.testing.assert_array_equal(lost.contexts.action[0, 0], lost.action[0])
    np.testing.assert_array_equal(lost.contexts.obs[1], first.contexts.obs[1])
    again = pendulum_loop()
    again.state, again.rows = jax.tree.map(jnp.copy, (first.state, first.rows))
    again.restore(host)
    player = Player(again.program.algorithm, jax.tree.map(lambda x: x[0], again.state), Spec(4, 1))
    Evaluator(ENVIRONMENT, None, Preparation.identity(4)).score(player, 3, 0)  # touches nothing of the training's
    again.advance(forever, 45)
    for a, b in zip(jax.tree.leaves((whole.rows, whole.state, whole.contexts)),
                    jax.tree.leaves((again.rows, again.state, again.contexts)), strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_an_evaluation_plays_each_episode_by_its_own_history() -> None:
    """Three side by side as each alone, step by step, and again the same: nothing is left over from before."""
    loop = pendulum_loop((0,))
    algorithm, state = loop.program.algorithm, jax.tree.map(lambda x: x[0], loop.state)
    evaluator = Evaluator(ENVIRONMENT, None, Preparation.identity(4))
    player = Player(algorithm, state, Spec(4, 1))
    first, second = (evaluator.score(player, 3, 0, trace=True) for _ in range(2))
    assert first is not None and second is not None and first.trace is not None
    np.testing.assert_array_equal(first.returns, second.returns)
    trace = first.trace
    for episode in range(3):
        mine = trace.episode == episode
        history, reward = algorithm.context(Spec(4, 1)), 0.0
        for obs, action, earned in zip(trace.obs[mine], trace.action[mine], trace.reward[mine], strict=True):
            want, history = act_in(algorithm, state, history, obs, np.float32(reward), jax.random.key(0), False)
            np.testing.assert_allclose(action, want, atol=1e-5)
            reward = earned


# -- what it learns, and what goes with what

CUE_STEPS = 3
LEARNER = ODT(
    batch_size=64, context_length=CUE_STEPS, acting_context_length=CUE_STEPS, width=16, num_layers=1, num_heads=2,
    learning_rate_warmup_updates=20, actor_learning_rate=0.02, weight_decay=0.0, return_scale=1.0, actor_dropout=0.0,
)  # fmt: skip


def cued_episodes() -> tuple[Batch, dict[str, Any]]:
    """The first observation is a cue, 1 or -1, the others are 0; an episode's actions are its cue times 0.8 if it goes
    well, times 0.2 if not, and its last reward says which: 1 or 0."""
    rng = np.random.default_rng(0)
    cue, good = rng.choice([-1.0, 1.0], 200), rng.integers(0, 2, 200)
    first = np.eye(CUE_STEPS)[0]
    obs = (cue[:, None] * first).reshape(-1, 1).astype(np.float32)
    action = np.repeat(cue * np.where(good, 0.8, 0.2), CUE_STEPS).reshape(-1, 1)
    action = (action + 0.05 * rng.normal(size=action.shape)).astype(np.float32)
    reward: Any = (good[:, None] * np.eye(CUE_STEPS)[-1]).reshape(-1).astype(np.float32)
    columns: Any = {
        "time_step": np.tile(np.arange(CUE_STEPS), 200).astype(np.float32),
        "return_to_go": np.repeat(good, CUE_STEPS).astype(np.float32),
    }
    obs_column: Any = obs
    return Batch(obs_column, action, reward, obs, np.zeros_like(reward), {}), columns  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_does_what_the_wanted_return_asks_for_and_remembers_the_cue() -> None:
    rows, columns = cued_episodes()
    spec, keys = Spec(1, 1), make_keys((0,), 0)
    state = jax.jit(lambda: initial_state(LEARNER, {}, spec, keys))()
    columns = {name: jnp.asarray(column)[None] for name, column in columns.items()}
    program = Program(LEARNER, "offline", spec)
    state, _ = learn(program, state, columns, keys.learn, rows, np.int32(0), np.int32(300))
    state = jax.tree.map(lambda x: x[0], state)
    assert state.best_return == 1  # so that without a target it asks for the best
    for wanted, size in ((1.0, 0.8), (0.0, 0.2)):
        state = replace(state, best_return=jnp.float32(wanted))
        for cue in (-1.0, 1.0):
            history = LEARNER.context(spec)
            for t in range(CUE_STEPS):
                obs: Any = np.full(1, cue if t == 0 else 0.0, np.float32)
                action, history = act_in(LEARNER, state, history, obs, np.float32(0), jax.random.key(0), False)
                assert float(action[0]) == pytest.approx(cue * size, abs=0.15), (wanted, cue, t)


def chain(offline: str, online: str) -> tuple[Phase, ...]:
    first, then = METHODS[offline](), METHODS[online]()
    before = first.offline_phases(4)
    return (*before, *then.handover_phases(form_after(before, None)), then.online_phase(16))


@pytest.mark.parametrize("online", ["sac", "td3", "ppo", "o2sac", "o2td3", "o2ppo", "td3_bc", "iql"])
def test_no_other_method_goes_on_from_it(online: str) -> None:
    with pytest.raises(UserError, match="cannot go on from a policy that acts on an episode's history: go on with odt"):
        check(chain("odt", online), set(), None)


@pytest.mark.parametrize("offline", ["td3_bc", "cql", "iql"])
def test_after_another_method_it_learns_afresh_from_the_data(offline: str) -> None:
    phases = chain(offline, "odt")
    assert [phase.name for phase in phases] == ["offline", "pre-training", "online"]
    check(phases, set(), None)
    recipe = METHODS["odt"]()
    with pytest.raises(UserError, match="continues a sequence policy, but the policy so far is"):
        check((phases[0], recipe.online_phase(16)), set(), None)  # the wrong rule: without that phase


def test_settings_that_do_not_fit_together_are_refused() -> None:
    for wrong, option in (({"width": 10, "num_heads": 4}, "--width 10"), ({"context_length": 3}, "--acting-context")):
        with pytest.raises(UserError, match=option):
            with_changes(METHODS["odt"](), wrong).offline_phases(10)


def test_presets_are_those_of_the_specification() -> None:
    hopper = dict(flat(preset_recipe("odt", "hopper-medium-replay-v2")))
    want = {"target_return": 3600, "ordering": True, "actor_learning_rate": 2e-3, "weight_decay": 1e-4, "width": 512}
    assert {name: hopper[name] for name in want} == want
    walker = dict(flat(preset_recipe("odt", "walker2d-medium-v2")))
    want = {"target_return": 5000, "ordering": False, "pretraining_updates": 10_000, "weight_decay": 1e-3}
    assert {name: walker[name] for name in want} == want
    maze = dict(flat(preset_recipe("odt", "antmaze-large-play-v2")))
    want = {"target_return": 1, "return_scale": 1, "width": 1024, "weight_decay": 0, "part_trajectories": 1500}
    assert {name: maze[name] for name in want} == want
    updates = METHODS["odt"].preset_updates
    assert [updates[name] for name in ("", "hopper-medium-v2", "walker2d-medium-v2", "antmaze-umaze-v2")] == [
        5_000, 5_000, 10_000, 7_000,
    ]  # fmt: skip


TINY: dict[str, Any] = {
    "batch_size": 4, "context_length": 4, "acting_context_length": 3, "width": 8, "num_layers": 1, "num_heads": 2,
    "learning_rate_warmup_updates": 1, "actor_learning_rate": 0.01, "pretraining_updates": 6, "warmup_steps": 5,
}  # fmt: skip


def fine_tuned(out: Path, stop_at: int | None = None) -> segue.Run:
    """From behaviour cloning; with `stop_at` interrupted after that many of the 40 online steps, and resumed."""
    steps = 0

    def interact(loop: OnlineLoop, episodes: Any, original: Any = OnlineLoop._interact) -> Any:
        nonlocal steps
        steps += 1
        return original(loop, episodes)

    with pytest.MonkeyPatch.context() as patch:
        if stop_at is not None:
            patch.setattr(OnlineLoop, "_interact", interact)
            patch.setattr(StopSignals, "requested", lambda signals: steps >= stop_at)
        try:
            return segue.run(
                "odt", pendulum_data(), ENVIRONMENT, offline="bc", out=out, steps=4, online_steps=40, seeds=(0, 1),
                settings=TINY, offline_settings={"batch_size": 4, "hidden_sizes": (8,)}, evaluation=SCARCE, quiet=True,
            )  # fmt: skip
        except Interrupted:
            pass
    return segue.resume(out, quiet=True)


@pytest.mark.slow
def test_a_run_handed_over_and_interrupted_in_an_episode_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole, cut = fine_tuned(tmp_path / "whole"), fine_tuned(tmp_path / "cut", stop_at=23)
    assert [phase["name"] for phase in whole.summary["phases"]] == ["offline", "pre-training", "online"]
    a, b = (jax.tree.leaves(load_models(run.folder)[0]) for run in (whole, cut))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    policy = cut.policy(seed=1)
    obs: Any = np.full(4, 0.1, np.float32)
    first, second = policy(obs), policy(obs)  # it remembers the first
    policy.rewarded(1.0)
    assert first != second and policy(obs) != second
    policy.reset()
    assert policy(obs) == first
    with pytest.raises(UserError, match="acts on an episode's history"):
        cut.evaluate_offline(quiet=True)
