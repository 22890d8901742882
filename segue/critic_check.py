"""Does the critic know its policy? Its values beside the returns that followed, and what it thinks of the actions.

On the steps of evaluation episodes, with the phase's discount and stored rewards:

    G_t   = sum_i discount^i r_{t+i}                                    Monte-Carlo return
    Q_t   = min_j Q_j(s_t, a_t),  a_t the policy's greedy action         (V(s_t) of a method without a Q)
    rank  = share of other actions a' at s_t with min_j Q_j(s_t, a') < Q_t     ties count half

A rank of 1: the critic prefers the policy's action to all others; 0.5: it prefers as many as it does not. The other
actions are either uniform in [-1, 1]^A or the policy's own with a little noise, clipped.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from segue.core.types import Models, PyTree
from segue.evaluate import Trace

ROWS = 1024  # at most [ours: a standard error of a few percent of the spread, a second of work]
SAMPLED_ACTIONS = 64  # of each kind at every row [ours]
NEARBY_STD = 0.2  # of the noise around the policy's action [ours: TD3's smoothing noise]
NEGLIGIBLE = 0.05  # weight of what a time limit hid from a row's return [ours]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of values and returns, in this order
BINS = 20  # of the ranks' histograms
RANDOM_SEED = 20_241_218  # of numbers that nothing else shares; the same actions in every phase, so phases compare
ROWS_AT_ONCE = 64  # their sampled actions' activations fit a processor's cache


class Rows(NamedTuple):
    """Steps whose return is known."""

    obs: np.ndarray  # [n, S]
    action: np.ndarray  # [n, A]
    returns: np.ndarray  # [n]


def check_critic(
    models: Models, made: tuple[str, ...], trace: Trace, discount: float, seed: int, k: int
) -> dict[str, Any] | None:
    """The entry of seed number `k`, called `seed`; None without a critic or value, or without a row to compare.

    `models` have a leading seed axis; of "critic" and "value" the one counts that the phase `made`, or else an
    earlier phase's.
    """
    role = next((role for roles in (made, models) for role in ("critic", "value") if role in roles), None)
    rng = np.random.default_rng([RANDOM_SEED, seed])
    rows = known_rows(trace, discount, rng)
    if role is None or role not in models or not len(rows.returns):
        return None
    net, params = models[role].net, jax.tree.map(lambda x: x[k], models[role].params)
    entry: dict[str, Any] = {"estimate": "Q" if role == "critic" else "V", "discount": discount}
    entry["rows"] = len(rows.returns)
    if role == "value":
        value = np.asarray(_values(net, params, _padded(rows.obs)))[: len(rows.obs)]
        return entry | _agreement(value, rows.returns)
    value, uniform, nearby = _ranked(net, params, rows, rng)
    entry |= _agreement(value, rows.returns)
    for name, ranks in (("uniform", uniform), ("nearby", nearby)):
        counts = np.histogram(ranks, bins=BINS, range=(0, 1))[0]
        entry |= {f"rank_{name}_mean": float(ranks.mean()), f"rank_{name}_histogram": counts.tolist()}
    return entry


def known_rows(trace: Trace, discount: float, rng: np.random.Generator) -> Rows:
    """Up to ROWS rows, evenly over the episodes; of an episode cut by a time limit only those long before its end."""
    returns, usable = np.empty(len(trace.reward)), np.ones(len(trace.reward), bool)
    for number, ended in enumerate(trace.terminated):
        at = np.flatnonzero(trace.episode == number)
        following = 0.0
        for i in at[::-1]:
            following = returns[i] = trace.reward[i] + discount * following
        if not ended:
            usable[at] = discount ** np.arange(len(at), 0, -1) <= NEGLIGIBLE
    found = rng.permutation(np.flatnonzero(usable))
    turn = np.empty(len(found), int)  # a row's place among its episode's: all first ones come before all second ones
    for number in range(len(trace.terminated)):
        mine = trace.episode[found] == number
        turn[mine] = np.arange(mine.sum())
    chosen = np.sort(found[np.argsort(turn, kind="stable")[:ROWS]])
    return Rows(trace.obs[chosen], trace.action[chosen], returns[chosen])


def _agreement(value: np.ndarray, returns: np.ndarray) -> dict[str, Any]:
    """Values [n] and returns [n], apart and together; no correlation where one of them is the same everywhere."""
    value = value.astype(np.float64)
    spread = value.std() * returns.std()
    covariance = float(np.mean((value - value.mean()) * (returns - returns.mean())))
    return {
        "estimate_mean": float(value.mean()),
        "estimate_quantiles": np.quantile(value, QUANTILES).tolist(),
        "return_mean": float(returns.mean()),
        "return_quantiles": np.quantile(returns, QUANTILES).tolist(),
        "difference_mean": float((value - returns).mean()),
        "correlation": covariance / float(spread) if spread > 0 else None,
    }


def _ranked(net: Any, params: PyTree, rows: Rows, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """min_j Q_j of the policy's actions [n], their ranks among uniform actions [n] and among nearby ones [n]."""
    n, size = rows.action.shape
    shape = (ROWS, SAMPLED_ACTIONS, size)  # whatever n: the same numbers, and one program
    uniform = rng.uniform(-1, 1, shape).astype(np.float32)
    noise = rng.normal(0, NEARBY_STD, shape).astype(np.float32)
    action = _padded(rows.action)[:, None]
    actions = np.concatenate([action, uniform, np.clip(action + noise, -1, 1)], axis=1)
    q = np.asarray(_least_q(net, params, _padded(rows.obs), actions))[:n]
    own, others = q[:, :1], np.split(q[:, 1:], 2, axis=1)
    return own[:, 0], *(((other < own) + 0.5 * (other == own)).mean(1) for other in others)


def _padded(x: np.ndarray) -> np.ndarray:
    """[n, ...] -> [ROWS, ...], filled up with the first row, so that one program serves every n."""
    return np.concatenate([x, np.repeat(x[:1], ROWS - len(x), axis=0)])


@partial(jax.jit, static_argnums=0)
def _least_q(net: Any, params: PyTree, obs: jax.Array, actions: jax.Array) -> jax.Array:
    """min_j Q_j [n, K] of several actions [n, K, A] at each observation [n, S]."""

    def of_some(some: tuple[jax.Array, jax.Array]) -> jax.Array:
        return net.of_several(params, *some).min(0)

    parts = [x.reshape(-1, ROWS_AT_ONCE, *x.shape[1:]) for x in (obs, actions)]
    return jax.lax.map(of_some, tuple(parts)).reshape(actions.shape[:2])


@partial(jax.jit, static_argnums=0)
def _values(net: Any, params: PyTree, obs: jax.Array) -> jax.Array:
    """V [n]."""
    return net.apply(params, obs)[..., 0]
