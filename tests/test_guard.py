"""The guard for the hand-over: what it measures, when it warns, what it goes back to, and that none of it gets lost."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.learn import Program, Turn, act, initial_state, make_keys, online_turn
from segue.core.phases import Online, Phase
from segue.core.replay import empty_rows
from segue.core.types import Spec
from segue.errors import UserError
from segue.guard import Guard, Lines, Watch, check_guard, told
from segue.methods.o2sac import ConstrainedSAC
from segue.methods.o2td3 import ConstrainedTD3
from segue.methods.td3 import TD3
from segue.online import OnlineLoop
from segue.preparation import Preparation
from segue.run_folder import RunFolder
from segue.session import Evaluation, Session
from segue.settings import check_values
from tests.small import assert_same_lines, lines

GUARD = Guard(guard=True, guard_episodes=2)
START = np.array([90.0, 110.0])  # warning below 90, bound 70


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """`weight` stands for all that is learned."""

    weight: jax.Array
    tightness: jax.Array
    updates: jax.Array


class Tightening:
    """An algorithm as far as the guard needs one."""

    def tightened(self, s: State) -> State:
        return replace(s, tightness=s.tightness / 2)


class Course:
    """A watch of two seeds and scripted learning: each seed's weight is 10 x the episode, plus the seed."""

    def __init__(self, guard: Guard = GUARD, start: np.ndarray = START) -> None:
        self.watch = Watch(guard, Tightening(), self.state_at(0), (7, 8))
        self.watch.begin([start, start], self.state_at(0))
        self.events: list[dict[str, Any]] = []
        self.step = 0

    def state_at(self, step: int) -> State:
        weight, updates = jnp.array([10.0 * step, 10.0 * step + 1]), jnp.full(2, 3 * step, jnp.int32)
        return State(weight, jnp.ones(2), updates)

    def play(self, k: int, *returns: float) -> State:
        """Episodes of one step each; the state after the last."""
        for value in returns:
            self.step += 1
            state, events = self.watch.episode(k, value, self.step, self.state_at(self.step))
            self.events += events
        return state

    def said(self) -> list[tuple[int, str]]:
        return [(event["step"], event["event"]) for event in self.events]


# -- windows and lines


def test_the_lines_are_shares_of_the_starts_return_or_of_its_spread_if_that_is_larger() -> None:
    assert Lines.of(START, GUARD) == pytest.approx((100, 90, 70))
    assert Lines.of(-START, GUARD) == pytest.approx((-100, -110, -130))
    assert Lines.of(np.array([-20.0, 22.0]), GUARD) == pytest.approx((1, 1 - 2.1, 1 - 6.3))
    assert Lines.of(np.zeros(3), GUARD) == (0, 0, 0)  # nothing to scale by: any return below 0 is a fall


def test_episodes_are_measured_in_disjoint_windows_of_their_mean() -> None:
    course = Course()
    course.play(0, 85, 100, 100, 75, 100, 100, 100)  # 92.5, 87.5, 100; the last window is not full
    assert course.said() == [(4, "warning")]
    assert course.events[0] == {
        "kind": "guard", "step": 4, "seed": 7, "event": "warning", "return_mean": 87.5, "start_return": 100.0,
        "bound": 70.0,
    }  # fmt: skip
    assert course.watch.windows == [[100], []]


@pytest.mark.parametrize(
    ("mean", "want"), [(90, []), (89.9, ["warning"]), (70, ["warning"]), (69.9, ["held"]), (np.nan, ["held"])]
)
def test_on_a_line_is_not_below_it(mean: float, want: list[str]) -> None:
    course = Course()
    course.play(0, mean, mean)
    assert [event for _, event in course.said()] == want


def test_a_window_on_the_warning_line_is_good() -> None:
    course = Course()
    course.play(0, 100, 100, 90, 90, 0, 0)
    assert course.events[-1]["good_step"] == 2


def test_one_bad_episode_among_good_ones_is_no_fall() -> None:
    course = Course()
    course.play(0, 45, 100)
    assert course.said() == [(2, "warning")]


# -- going back


def test_it_goes_back_to_where_the_last_good_window_began_but_for_the_count_of_updates() -> None:
    course = Course()
    state = course.play(0, 100, 100, 100, 100, 80, 80, 20, 20)  # good from 0, good from 2, a warning from 4, a fall
    assert course.said() == [(6, "warning"), (8, "held")]
    assert course.events[1]["good_step"] == 2
    np.testing.assert_array_equal(state.weight, [20, 81])  # seed 8 is not touched
    np.testing.assert_array_equal(state.updates, [24, 24])
    np.testing.assert_array_equal(course.watch.mask, [True, False])


def test_without_a_good_window_it_goes_back_to_the_hand_over() -> None:
    course = Course()
    assert course.watch.mask is None
    np.testing.assert_array_equal(course.play(1, 80, 80, 0, 0).weight, [40, 1])
    assert course.events[1] == {
        "kind": "guard", "step": 4, "seed": 8, "event": "held", "return_mean": 0.0, "start_return": 100.0,
        "bound": 70.0, "good_step": 0,
    }  # fmt: skip


def test_a_window_after_a_bad_one_must_itself_be_followed_by_good_episodes() -> None:
    """A state is good only if the window that it began was: that of a warning's end is a candidate, no more."""
    course = Course()
    course.play(0, 80, 80, 100, 100, 85, 85, 0, 0)
    assert course.events[-1]["good_step"] == 2


def test_where_nothing_was_learned_there_is_nothing_to_go_back_from() -> None:
    course = Course()
    for step in (1, 2, 3, 4):  # the warm-up
        course.events += course.watch.episode(0, 0.0, step, course.state_at(0))[1]
    assert course.said() == [(2, "warning"), (4, "warning")]
    course.watch.episode(0, 0.0, 5, course.state_at(0))
    assert course.watch.episode(0, 0.0, 6, course.state_at(6))[1][0]["event"] == "held"


def test_nor_is_there_where_nothing_was_learned_since_going_back() -> None:
    course = Course(replace(GUARD, guard_continue=True))
    state = course.play(0, 0, 0)
    for step in (3, 4):
        state, events = course.watch.episode(0, 0.0, step, state)
        course.events += events
    assert course.said() == [(2, "restored"), (4, "warning")]


def test_a_seed_that_is_held_is_measured_on_and_only_warned_of() -> None:
    course = Course()
    course.play(0, 0, 0, 0, 0, 100, 100)
    assert course.said() == [(2, "held"), (4, "warning")]
    np.testing.assert_array_equal(course.watch.mask, [True, False])


def test_going_on_tightens_again_at_every_fall() -> None:
    course = Course(replace(GUARD, guard_continue=True))
    state = course.play(0, 100, 100, 100, 100, 0, 0)
    np.testing.assert_array_equal(state.weight, [20, 61])
    np.testing.assert_array_equal(state.tightness, [0.5, 1])
    assert course.watch.mask is None
    state = course.play(0, 0, 0)
    np.testing.assert_array_equal(state.weight, [20, 81])
    np.testing.assert_array_equal(state.tightness, [0.25, 1])
    assert course.said() == [(6, "restored"), (8, "restored")]


@pytest.mark.parametrize("kind", [ConstrainedSAC, ConstrainedTD3])
def test_what_can_be_tightened_goes_back_whole_but_for_its_constraint(kind: Any) -> None:
    algorithm = kind(hidden_sizes=(4,), critic_hidden_sizes=(4,))
    spec, keys, guard = Spec(3, 2), make_keys((7, 8), 0), replace(GUARD, guard_continue=True)
    check_guard(guard, phase_of(algorithm))
    start = initial_state(algorithm, {}, spec, keys)
    watch = Watch(guard, algorithm, start, (7, 8))
    watch.begin([START, START], start)
    learned = jax.tree.map(lambda x: x + jnp.ones_like(x), start)
    state, (event,) = watch.episode(1, 0.0, 2, watch.episode(1, 0.0, 1, learned)[0])
    assert event["event"] == "restored"

    multiplier, was = state.constraint.multiplier[1], start.constraint.multiplier[1]
    assert multiplier == pytest.approx(2 * was)
    assert state.constraint.tightness[1] == start.constraint.tightness[1] / 2
    others = [replace(s, constraint=s.constraint.reference, updates=None) for s in (state, start, learned)]
    for now, at_start, before in zip(*map(jax.tree.leaves, others), strict=True):
        np.testing.assert_array_equal(now[1], at_start[1])
        np.testing.assert_array_equal(now[0], before[0])
    np.testing.assert_array_equal(state.updates, learned.updates)
    kinds = [[(x.aval, x.weak_type) for x in jax.tree.leaves(s)] for s in (state, start)]
    assert kinds[0] == kinds[1]  # the next turn compiles nothing


def test_the_seeds_windows_do_not_mix() -> None:
    course = Course()
    state, said = course.state_at(1), []
    for step, (k, value) in enumerate([(0, 0), (1, 100), (1, 100), (0, 0)], start=1):
        state, events = course.watch.episode(k, value, step, state)
        said += [(event["seed"], event["event"]) for event in events]
    assert said == [(7, "held")]
    np.testing.assert_array_equal(state.weight, [0, 11])


def test_what_it_remembers_passes_through_a_checkpoint() -> None:
    course, other = Course(), Course(start=np.zeros(2))
    course.play(0, 100, 100, 100, 100, 80)
    course.play(1, 0, 0, 50)
    other.watch.restore(course.watch.tree(), json.loads(json.dumps(course.watch.host_state())))
    course.events, other.step = [], course.step
    weights = [one.play(0, 0).weight for one in (course, other)]
    np.testing.assert_array_equal(weights, [[20, 91], [20, 91]])
    assert course.events == other.events and course.said() == [(9, "held")]
    np.testing.assert_array_equal([course.watch.mask, other.watch.mask], np.ones((2, 2), bool))
    assert [one.play(1, 0).weight[1] for one in (course, other)] == [101, 101]  # held: measured on, not moved
    assert course.events == other.events and course.said()[1:] == [(10, "warning")]


def test_events_are_told_in_one_line() -> None:
    course = Course()
    course.play(0, 80, 80, 0, 0)
    warning, held = (told({"phase": "online"} | event, GUARD) for event in course.events)
    assert warning == (
        "online, step 2, seed 7: guard: the latest 2 episodes returned 80.0 on average, the start 100.0, the bound is "
        "70.0: warning"
    )
    assert held.endswith("70.0: back to the last good policy (step 0), which acts on without learning")


# -- what is refused


def phase_of(algorithm: Any, **schedule: Any) -> Phase:
    return Phase("online", algorithm, online=Online(100, **schedule))


@dataclass(frozen=True)
class Constrained(TD3):
    """TD3 with something to tighten."""

    def tightened(self, s: Any) -> Any:
        return s


@pytest.mark.parametrize(
    ("guard", "phase", "words"),
    [
        (replace(GUARD, guard_continue=True), phase_of(TD3()), r"phase 'online' \(TD3\) has no constraint .* o2td3"),
        (GUARD, phase_of(TD3(), random_warmup=True, warmup_steps=5), r"\(TD3\) begins with random .*--no-random-w"),
        (replace(GUARD, guard_bound=0.05), phase_of(TD3()), "--guard-bound 0.05: give at least .* 0.1"),
        (Guard(guard_bound=0.5), phase_of(TD3()), "--guard-bound does nothing without the guard: add --guard"),
    ],
)
def test_what_the_guard_cannot_do_is_refused(guard: Guard, phase: Phase, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_guard(guard, phase)


def test_what_the_guard_can_do_is_not_refused() -> None:
    check_guard(Guard(), phase_of(TD3(), random_warmup=True, warmup_steps=5))
    check_guard(GUARD, phase_of(TD3(), random_warmup=True))
    check_guard(replace(GUARD, guard_continue=True), phase_of(Constrained()))
    check_guard(replace(GUARD, guard_continue=True), Phase("offline", TD3(), updates=1))


@pytest.mark.parametrize("wrong", [{"guard_episodes": 0}, {"guard_warning": -0.1}, {"guard_bound": -0.1}])
def test_shares_and_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="guard"):
        check_values(vars(Guard()) | wrong)


# -- the compiled turn


def test_a_held_seed_acts_greedily_and_does_not_learn_while_the_other_goes_on() -> None:
    algorithm, spec, keys = TD3(hidden_sizes=(8,), batch_size=4), Spec(3, 2), make_keys((0, 1), 0)
    rng = np.random.default_rng(0)
    rows = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(2, *x.shape)), jnp.float32), empty_rows(spec, 16))
    obs = rng.normal(size=(2, 3)).astype(np.float32)

    def turn(held: np.ndarray | None) -> Any:
        state = initial_state(algorithm, {}, spec, keys)
        counts = (jnp.int32(16), jnp.int32(15), jnp.int32(16), jnp.int32(0))  # live rows, slot, steps, updates
        numbers = Turn(jnp.asarray(obs), *counts, None if held is None else jnp.asarray(held))
        return online_turn(Program(algorithm, "online", spec), (True,), state, None, rows, {}, keys, numbers, None)

    start = initial_state(algorithm, {}, spec, keys)
    state, _, action, *_ = turn(np.array([True, False]))
    free, _, free_action, *_ = turn(None)
    np.testing.assert_array_equal(state.updates, [1, 1])
    models = [jax.tree.leaves((s.actor, s.critic)) for s in (start, state, free)]
    for was, held, learned in zip(*models, strict=True):
        np.testing.assert_array_equal(held[0], was[0])
        np.testing.assert_allclose(held[1], learned[1], rtol=1e-5, atol=1e-7)
    assert all((was != learned).any() for was, learned in zip(models[0], models[2], strict=True))
    greedy = act(algorithm, False, start, jnp.asarray(obs), keys.act, jnp.int32(16))
    np.testing.assert_allclose(action[0], greedy[0], rtol=1e-5)
    np.testing.assert_allclose(action[1], free_action[1], rtol=1e-4, atol=1e-6)
    assert not np.allclose(free_action[0], greedy[0], atol=1e-3)


# -- whole runs


POORLY: dict[str, Any] = {"hidden_sizes": (16, 16), "batch_size": 32, "actor_learning_rate": 1.0}  # ruins the actor
STEPS, WARMUP, SEEDS = 240, 100, (4, 5)


def session(folder: RunFolder, guard: Guard | None, algorithm: type[TD3] = TD3) -> Session:
    """An online phase that begins with policies which keep the pendulum up for a while, and unlearns it."""
    return Session(
        folder=folder,
        phases=(Phase("online", algorithm(**POORLY), online=Online(STEPS, warmup_steps=WARMUP)),),
        spec=Spec(4, 1),
        dataset=None,
        preparation=Preparation.identity(4),
        environment=lambda: gym.make("InvertedPendulum-v5", max_episode_steps=100),
        environment_kwargs={},
        seeds=SEEDS,
        models={},
        first_phase=0,
        evaluation=Evaluation(
            online_eval_interval=120, eval_episodes=5, result_episodes=5, log_interval=20, checkpoint_seconds=0.0
        ),
        quiet=True,
        guard=guard,
    )


def new_folder(path: Path) -> RunFolder:
    config: dict[str, Any] = {"method": "td3", "dataset": "none", "environment": "pendulum", "seeds": list(SEEDS)}
    return RunFolder.create(path, config | dict.fromkeys(("offline", "online", "updates", "online_steps", "parent")))


def run(path: Path, guard: Guard | None, algorithm: type[TD3] = TD3) -> dict[str, Any]:
    """The online phase's record."""
    (phase,) = session(new_folder(path), guard, algorithm).run()["phases"]
    assert isinstance(phase, dict)
    return phase


def start_and_end(path: Path) -> tuple[list[list[float]], list[list[float]]]:
    """Returns of every seed's evaluation at the first and the last step."""
    scores = lines(path, "evaluation")
    start, end = ([line["returns"] for line in scores if line["step"] == step] for step in (0, STEPS))
    return start, end


def models(path: Path) -> bytes:
    return (path / "models" / "online" / "arrays.safetensors").read_bytes()


def test_a_run_that_unlearns_ends_as_it_began_with_the_guard_and_far_below_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phase = run(tmp_path / "guarded", GUARD)
    said = capsys.readouterr().err.splitlines()
    assert "guard" not in run(tmp_path / "alone", None)
    assert "guard" not in capsys.readouterr().err

    start, end = start_and_end(tmp_path / "guarded")
    assert end == start
    start_alone, end_alone = start_and_end(tmp_path / "alone")
    assert start_alone == start
    assert np.mean(start, 1).min() > 20 and np.max(end_alone) < 5

    events = lines(tmp_path / "guarded", "guard")
    assert events == phase["guard"]
    assert said == [told(event, GUARD) for event in events]  # though the run is quiet
    held = {event["seed"]: event["step"] for event in events if event["event"] == "held"}
    assert set(held) == set(SEEDS) and min(held.values()) > WARMUP and held[4] != held[5]
    learning = ["critic_loss" in lines(tmp_path / name, "train")[-1] for name in ("guarded", "alone")]
    assert learning == [False, True]
    for event in events:
        assert event["phase"] == "online"
        assert event["start_return"] == np.mean(start[SEEDS.index(event["seed"])])


def test_a_guard_that_never_has_to_act_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "guarded", replace(GUARD, guard_bound=10.0))
    run(tmp_path / "alone", None)
    assert models(tmp_path / "guarded") == models(tmp_path / "alone")
    assert {line["event"] for line in lines(tmp_path / "guarded", "guard")} == {"warning"}


@pytest.mark.parametrize("go_on", [False, True])
def test_a_broken_run_ends_like_an_unbroken_one(go_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = replace(GUARD, guard_continue=go_on)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    phase = run(whole, guard, Constrained)
    went_back = [event["step"] for event in phase["guard"] if event["event"] != "warning"]
    assert len(went_back) > 2 if go_on else len(went_back) == 2

    interact, last = OnlineLoop._interact, [0]

    def deadly(self: OnlineLoop, *arguments: Any) -> Any:
        if self.env_step == last[0]:
            raise KeyboardInterrupt
        return interact(self, *arguments)

    monkeypatch.setattr(OnlineLoop, "_interact", deadly)
    new_folder(broken)
    for last[0] in (WARMUP - 3, went_back[0], went_back[1] + 21, STEPS):
        try:
            session(RunFolder.open(broken), guard, Constrained).run()
        except KeyboardInterrupt:
            assert last[0] < STEPS
    assert models(broken) == models(whole)
    assert_same_lines(whole, broken)
    (of_broken,) = (RunFolder.open(broken).summary or {})["phases"]
    assert of_broken["guard"] == phase["guard"]
