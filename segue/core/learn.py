"""The only compiled training code: sample, draw, update, thousands of times in one call; seeds are a vmap.

Every random number comes from `fold_in(key of the seed, count of the update)`, so a run's course does not depend
on how it was cut into calls, and a resumed run repeats an unbroken one bit for bit. For the same reason the fused
loop takes its length as a value: one program serves every length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segue.core import sampling
from segue.core.algorithm import Algorithm
from segue.core.phases import Phase
from segue.core.reference import chosen
from segue.core.replay import Memory, Mix, Ring, draw_indices, gather
from segue.core.sampling import Sampler, Sampling
from segue.core.types import Batch, Metrics, Models, PyTree, Spec


class Program(NamedTuple):
    """The static part of a compiled call. Equal programs compile once."""

    algorithm: Algorithm
    mix: Mix
    spec: Spec
    online_share: float = 0.5  # of a batch, where the mix has such a share
    sampler: Sampler | None = None  # in whose proportion a joined pool is drawn from; None: every row alike


class Keys(NamedTuple):
    """Separate streams of random numbers, each [seeds] keys."""

    init: jax.Array
    learn: jax.Array
    act: jax.Array


def make_keys(seeds: tuple[int, ...], phase: int) -> Keys:
    """The streams of phase number `phase`; each seed's are the same whatever seeds run beside it."""
    roots = [jax.random.fold_in(jax.random.key(seed), phase) for seed in seeds]
    return Keys(*(jnp.stack([jax.random.fold_in(root, stream) for root in roots]) for stream in range(3)))


def over_seeds(f: Callable[..., Any], mapped: tuple[Any, ...], shared: tuple[Any, ...]) -> Any:
    """`f(*mapped, *shared)` vmapped over the leading seed axis of `mapped`; a single seed runs unbatched."""
    if jax.tree.leaves(mapped)[0].shape[0] == 1:
        out = f(*jax.tree.map(lambda x: x.squeeze(0), mapped), *shared)
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), out)
    axes = (0,) * len(mapped) + (None,) * len(shared)
    return jax.vmap(f, in_axes=axes)(*mapped, *shared)


def one_update(
    program: Program, policy_step: bool, state: PyTree, memory: Memory, key: jax.Array, t: jax.Array
) -> tuple[PyTree, Memory, Metrics]:
    """Update number `t` (from 0) of one seed. Of the memory only the priorities change."""
    algorithm, sampler = program.algorithm, program.sampler
    sample_key, draw_key = jax.random.split(jax.random.fold_in(key, t))
    wants_next, size = "next_action" in algorithm.columns, algorithm.batch_size
    if sampler is None:
        indices = draw_indices(program.mix, memory, sample_key, size, program.online_share)
        batch = gather(program.mix, memory, indices, wants_next, program.online_share, algorithm.window)
    else:
        batch, indices = sampling.sampled(sampler, memory, sample_key, size, wants_next)
    state, metrics = algorithm.update(state, batch, algorithm.draw(draw_key, program.spec), policy_step)
    if sampler is not None:
        memory, more = sampling.learned(sampler, memory, batch, indices, jax.random.fold_in(sample_key, 1))
        metrics = metrics | more
    return state, memory, metrics


def several_updates(
    program: Program, flags: tuple[bool, ...], state: PyTree, memory: Memory, key: jax.Array, t: jax.Array
) -> tuple[PyTree, Memory, Metrics]:
    """`len(flags)` updates of one seed, policy steps where the flag says; the metrics are the last update's."""
    metrics: Metrics = {}
    for policy_step, group in groupby(flags):
        count = len(list(group))
        update = partial(one_update, program, policy_step)
        if count > 1:  # the memory rides in the carry: XLA on a CPU copies a loop's captured arrays at every turn

            def body(i: jax.Array, carry: Any, update: Any = update, start: jax.Array = t) -> Any:
                return update(*carry, key, start + i)[:2]

            state, memory = lax.fori_loop(0, count - 1, body, (state, memory))
        state, memory, metrics = update(state, memory, key, t + count - 1)
        t = t + count
    return state, memory, metrics


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def learn(
    program: Program,
    state: PyTree,
    columns: dict[str, jax.Array],
    keys: jax.Array,
    offline: Batch,
    start: jax.Array,
    rounds: jax.Array,
) -> tuple[PyTree, Metrics]:
    """`rounds` rounds from update number `start`; a round is `policy_update_interval` updates, the last a policy step.

    State, columns and keys carry a leading seed axis. Returns the state and each metric's mean over the rounds [seeds].
    """
    interval = program.algorithm.policy_update_interval
    flags = (False,) * (interval - 1) + (True,)

    def of_seed(state: PyTree, columns: dict[str, jax.Array], key: jax.Array, offline: Batch) -> Any:
        memory = Memory(offline, columns)

        def body(i: jax.Array, carry: Any) -> Any:
            state, sums, memory = carry
            state, memory, metrics = several_updates(program, flags, state, memory, key, start + interval * i)
            return state, jax.tree.map(jnp.add, sums, metrics), memory

        shapes = jax.eval_shape(partial(several_updates, program, flags), state, memory, key, start)[2]
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        state, sums, _ = lax.fori_loop(0, rounds, body, (state, sums, memory))
        return state, jax.tree.map(lambda x: x / rounds, sums)

    return over_seeds(of_seed, (state, columns, keys), (offline,))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def learn_singly(
    program: Program,
    flags: tuple[bool, ...],
    state: PyTree,
    columns: dict[str, jax.Array],
    keys: jax.Array,
    offline: Batch,
    start: jax.Array,
) -> tuple[PyTree, Metrics]:
    """The updates that do not fill a round, offline."""

    def of_seed(state: PyTree, columns: dict[str, jax.Array], key: jax.Array, offline: Batch) -> Any:
        state, _, metrics = several_updates(program, flags, state, Memory(offline, columns), key, start)
        return state, metrics

    return over_seeds(of_seed, (state, columns, keys), (offline,))


class Past(NamedTuple):
    """What a policy goes by beside the observation where it acts on an episode's history."""

    context: PyTree  # leaves [seeds, ...], `Algorithm.context`
    reward: jax.Array  # [seeds] stored, of the step before
    begins: jax.Array  # [seeds] bool: no step was before, an episode begins


class Turn(NamedTuple):
    """The numbers of one environment step."""

    obs: jax.Array  # [seeds, S] where to act next
    size: jax.Array  # [] live rows of the ring
    slot: jax.Array  # [] of the row that has just been stored
    env_step: jax.Array  # [] environment steps taken
    updates: jax.Array  # [] updates made before this turn
    held: jax.Array | None = None  # [seeds] bool: who acts, greedily, and does not learn; None: nobody
    past: Past | None = None  # None: it acts by the observation alone


def acted(
    program: Program, state: PyTree, past: Past | None, obs: jax.Array, key: jax.Array, explore: bool
) -> tuple[jax.Array, PyTree]:
    """One seed's action [A] at `obs` [S], and its context after that, None without one."""
    algorithm = program.algorithm
    if past is None:
        return algorithm.act(state, obs, key, explore), None
    context = chosen(past.begins, algorithm.context(program.spec), past.context)
    return algorithm.act_in(state, context, obs, jnp.where(past.begins, 0.0, past.reward), key, explore)


@partial(jax.jit, static_argnums=(0, 1))
def begin_sampling(
    sampler: Sampler,
    start: int,
    models: Models,
    rows: Batch,
    columns: dict[str, jax.Array],
    keys: Keys,
    offline: Batch | None,
) -> Sampling:
    """Every seed's priorities at the beginning of an online phase whose rings (`rows`) hold `start` rows already."""

    def of_seed(
        key: jax.Array, models: Models, rows: Batch, columns: dict[str, jax.Array], offline: Batch | None
    ) -> Sampling:
        return sampling.begin(sampler, models, Memory(offline, columns, Ring(rows, jnp.int32(start))), start, key)

    begun: Sampling = over_seeds(of_seed, (keys.init, models, rows, columns), (offline,))
    return begun


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def online_turn(
    program: Program,
    flags: tuple[bool, ...],
    state: PyTree,
    priorities: Sampling | None,
    rows: Batch,
    columns: dict[str, jax.Array],
    keys: Keys,
    turn: Turn,
    offline: Batch | None,
) -> tuple[PyTree, Sampling | None, jax.Array, PyTree, Metrics]:
    """Learn `len(flags)` times, then act: one dispatch an environment step.

    `rows` are the ring's, leaves [seeds, capacity, ...]; `priorities` are None without a sampler. Returns the state,
    the priorities, actions [seeds, A], contexts (None without) and metrics [seeds].
    """

    def of_seed(
        state: PyTree,
        priorities: Sampling | None,
        rows: Batch,
        columns: dict[str, jax.Array],
        learn_key: jax.Array,
        act_key: jax.Array,
        obs: jax.Array,
        held: jax.Array | None,
        past: Past | None,
        offline: Batch | None,
    ) -> Any:
        memory = Memory(offline, columns, Ring(rows, turn.size), priorities)
        act_key = jax.random.fold_in(act_key, turn.env_step)
        if program.sampler is not None:
            memory = sampling.stored(program.sampler, memory, turn.slot)
        before, known = program.algorithm.begin_step(state, turn.env_step), memory.sampling
        state, memory, metrics = several_updates(program, flags, before, memory, learn_key, turn.updates)
        action, context = acted(program, state, past, obs, act_key, True)
        after = memory.sampling
        if held is not None:  # but for the count of updates, which all seeds share
            state = replace(chosen(held, before, state), updates=state.updates)
            calm = acted(program, state, past, obs, act_key, False)
            action, context = chosen(held, calm, (action, context))
            after = chosen(held, known, after)
        return state, after, action, context, metrics

    mapped = (state, priorities, rows, columns, keys.learn, keys.act, turn.obs, turn.held, turn.past)
    return over_seeds(of_seed, mapped, (offline,))


@partial(jax.jit, static_argnums=(0, 1))
def act(
    algorithm: Algorithm, explore: bool, state: PyTree, obs: jax.Array, keys: jax.Array, t: jax.Array
) -> jax.Array:
    """[seeds, S] -> [seeds, A]."""

    def of_seed(state: PyTree, obs: jax.Array, key: jax.Array) -> jax.Array:
        return algorithm.act(state, obs, jax.random.fold_in(key, t), explore)

    return over_seeds(of_seed, (state, obs, keys), ())


@partial(jax.jit, static_argnums=0)
def act_first(
    program: Program, state: PyTree, obs: jax.Array, keys: jax.Array, t: jax.Array
) -> tuple[jax.Array, PyTree]:
    """As `act`, exploring, where episodes begin: [seeds, S] -> [seeds, A], and the contexts after that."""

    def of_seed(state: PyTree, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, PyTree]:
        past = Past(program.algorithm.context(program.spec), jnp.zeros(()), jnp.bool_(True))
        return acted(program, state, past, obs, jax.random.fold_in(key, t), True)

    first: tuple[jax.Array, PyTree] = over_seeds(of_seed, (state, obs, keys), ())
    return first


@partial(jax.jit, static_argnums=0)
def act_greedily_in(
    algorithm: Algorithm, state: PyTree, contexts: PyTree, obs: jax.Array, rewards: jax.Array
) -> tuple[jax.Array, PyTree]:
    """As `act_greedily`, in n episodes side by side: also their contexts, leaves [n, ...], after that.

    `rewards` [n] are the stored ones of the step before, 0 at an episode's start.
    """

    def in_one(context: PyTree, obs: jax.Array, reward: jax.Array) -> tuple[jax.Array, PyTree]:
        return algorithm.act_in(state, context, obs, reward, jax.random.key(0), False)

    return jax.vmap(in_one)(contexts, obs, rewards)


@partial(jax.jit, static_argnums=0)
def act_greedily(algorithm: Algorithm, state: PyTree, obs: jax.Array) -> jax.Array:
    """One seed's state, many observations: [n, S] -> [n, A], without exploration."""
    return jax.vmap(lambda o: algorithm.act(state, o, jax.random.key(0), False))(obs)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def scored(algorithm: Algorithm, state: PyTree, scores: jax.Array) -> PyTree:
    """Tell every seed's algorithm the score [seeds] of its policy."""
    return over_seeds(algorithm.scored, (state, scores), ())


@partial(jax.jit, static_argnums=0)
def diagnose(algorithm: Algorithm, state: PyTree, columns: dict[str, jax.Array], rows: Batch) -> Metrics:
    """The algorithm's dear diagnostics for every seed, on rows shared by all (leaves [n, ...])."""

    def of_seed(state: PyTree, columns: dict[str, jax.Array], rows: Batch) -> Metrics:
        return algorithm.diagnose(state, rows._replace(extras=columns))

    return over_seeds(of_seed, (state, columns), (rows,))


def policy_flags(interval: int, start: int, count: int) -> tuple[bool, ...]:
    """Which of updates start + 1 ... start + count are policy steps: those whose number is a multiple of `interval`."""
    return tuple((start + i) % interval == 0 for i in range(1, count + 1))


def initial_state(algorithm: Algorithm, models: PyTree, spec: Spec, keys: Keys) -> PyTree:
    """A state with a leading seed axis; `models` (leaves with that axis too) go on.

    Every leaf is a buffer of its own, as donation asks, and strongly typed, so that the second call compiles nothing.
    """
    state = over_seeds(lambda key, models: algorithm.init(models, spec, key), (keys.init, models), ())
    return jax.tree.map(lambda x: jnp.array(x, x.dtype, copy=True), state)


def acting_state(algorithm: Algorithm, models: Models, spec: Spec, keys: Keys) -> PyTree:
    """The state in which `algorithm` acts by the policy that it made, `models` being what it handed on."""
    state = initial_state(algorithm, models, spec, keys)
    return replace(state, actor=models["actor"]) if algorithm.new_policy else state


def models_after(phase: Phase, models: Models, spec: Spec, keys: Keys) -> Models:
    """Shapes of the models after `phase`, given those (or their shapes) before it. Nothing is computed."""

    def handed_on(models: Models) -> Models:
        return phase.algorithm.export(initial_state(phase.algorithm, phase.continued(models), spec, keys))

    return models | jax.eval_shape(handed_on, models)
