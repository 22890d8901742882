"""Every offline method x every way to go online x every replay start: it builds, runs and resumes, or is refused in
a line that names the phase and the remedy, before anything is compiled."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import segue
from segue.core.learn import make_keys, models_after
from segue.core.phases import MIXES, ReplayStart, check
from segue.core.types import Models, Spec
from segue.errors import UserError
from segue.experiment import form_after, load_models
from segue.recipes import METHODS
from segue.recipes.base import Recipe
from segue.settings import flat, with_changes
from segue.stop import Interrupted, StopSignals
from tests.small import ENVIRONMENT, pendulum_data
from tests.test_every_method import OFFLINE as WITH_DATA
from tests.test_every_method import SCARCE, SMALL

OFFLINE = [method for method in WITH_DATA if method != "odt"]  # which no other method goes on from: tests/test_odt.py
REPLAYS: tuple[ReplayStart, ...] = tuple(MIXES)
DIRECT = {"deterministic": "td3", "tanh_gaussian": "sac", "gaussian": "ppo"}
ONLINE = ("direct", "o2sac", "o2td3", "o2ppo", "uni_o4")
ON_POLICY = ("ppo", "o2ppo", "uni_o4")
TINY: dict[str, Any] = SMALL | {
    "clone_updates": 4, "reevaluation_updates": 4, "alignment_updates": 4, "minibatch_size": 4, "epochs": 2,
    "value_hidden_sizes": (8,), "iql_steps": 4,
}  # fmt: skip
# In `make test`, beside the interrupted hand-over below; tests/test_every_method.py runs each method.
COVERING = [("iql", "o2ppo", "none"), ("awac", "direct", "none")]


def tiny(method: str, **settings: Any) -> Recipe:
    known = dict(flat(METHODS[method]()))
    left_out = ("warmup_steps",) if method in ON_POLICY else ()  # fixed there
    changes = {name: value for name, value in TINY.items() if name in known and name not in left_out} | settings
    if method not in DIRECT.values():
        return with_changes(METHODS[method](), changes)
    direct = {"clone_updates": 0, "reevaluation_updates": 0, "alignment_updates": 0}
    changes |= {name: value for name, value in direct.items() if name in known} | settings
    changes |= {"random_warmup": False} if "random_warmup" in known else {}
    return with_changes(METHODS[method](), changes)


def successor(offline: str, online: str) -> str:
    """The method of "direct": the one that has the policy's form."""
    if online != "direct":
        return online
    form = form_after(tiny(offline).offline_phases(4), None)
    assert form is not None
    return DIRECT[form]


@cache
def phases(offline: str, method: str, replay: ReplayStart) -> tuple[Any, ...]:
    first, then = tiny(offline), tiny(method, replay=replay)
    before = first.offline_phases(4)
    return (*before, *then.handover_phases(form_after(before, None)), then.online_phase(16))


@pytest.mark.parametrize("online", ONLINE)
@pytest.mark.parametrize("offline", OFFLINE)
def test_every_combination_builds_or_is_refused(offline: str, online: str) -> None:
    """Without a compilation: states of every phase, from the models that the one before it hands on."""
    method = successor(offline, online)
    for replay in REPLAYS:
        chain = phases(offline, method, replay)
        if method in ON_POLICY and replay != "none":
            with pytest.raises(UserError, match=r"phase 'online' \(\w+\) .* has no replay: leave --replay out"):
                check(chain, set(), None)
            continue
        check(chain, set(), None)
    models, keys = Models(), make_keys((0,), 0)
    for phase in chain:
        models = models_after(phase, models, Spec(4, 1), keys)
    assert models["actor"].net.kind == chain[-1].algorithm.policy_kind


def run(offline: str, online: str, replay: ReplayStart, out: Path, stop_at: int | None = None) -> segue.Run:
    """The whole run; with `stop_at` it is interrupted at that question whether to stop, and resumed."""
    questions = 0

    def requested(signals: StopSignals) -> bool:
        nonlocal questions
        questions += 1
        return stop_at is not None and questions >= stop_at

    method = successor(offline, online)
    with pytest.MonkeyPatch.context() as patch:
        if stop_at is not None:
            patch.setattr(StopSignals, "requested", requested)
        try:
            return segue.run(
                method, pendulum_data(), ENVIRONMENT, offline=offline, out=out, steps=4, online_steps=24,
                settings=tiny(method, replay=replay), offline_settings=tiny(offline), evaluation=SCARCE, quiet=True,
            )  # fmt: skip
        except Interrupted:
            pass
    return segue.resume(out, quiet=True)


def check_run(offline: str, online: str, replay: ReplayStart, folder: Path) -> None:
    names = [phase["name"] for phase in phases_of(offline, online, replay)]
    finished = run(offline, online, replay, folder / "run", stop_at=12)
    assert [phase["name"] for phase in finished.summary["phases"]] == names
    assert np.isfinite(finished.summary["phases"][-1]["final"][0]["return_mean"])


def phases_of(offline: str, online: str, replay: ReplayStart) -> list[dict[str, str]]:
    return [{"name": phase.name} for phase in phases(offline, successor(offline, online), replay)]


@pytest.mark.parametrize(("offline", "online", "replay"), COVERING)
def test_it_runs_and_resumes(offline: str, online: str, replay: ReplayStart, tmp_path: Path) -> None:
    check_run(offline, online, replay, tmp_path)


EVERY = [
    (offline, online, replay)
    for offline in OFFLINE
    for online in ONLINE
    for replay in REPLAYS
    if not (successor(offline, online) in ON_POLICY and replay != "none")
]


@pytest.mark.slow
@pytest.mark.parametrize(("offline", "online", "replay"), [one for one in EVERY if one not in COVERING])
def test_every_combination_runs_and_resumes(offline: str, online: str, replay: ReplayStart, tmp_path: Path) -> None:
    check_run(offline, online, replay, tmp_path)


def test_an_interrupted_hand_over_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = run("td3_bc", "o2td3", "half", tmp_path / "whole")
    for stop_at in (5, 9, 14):
        cut = run("td3_bc", "o2td3", "half", tmp_path / f"cut-{stop_at}", stop_at)
        for a, b in zip(jax.tree.leaves(load_models(whole.folder)[0]), jax.tree.leaves(load_models(cut.folder)[0]),
                        strict=True):  # fmt: skip
            np.testing.assert_array_equal(a, b)


def test_a_policy_of_another_form_is_refused_without_a_clone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"phase 'online' \(SAC\) continues a tanh_gaussian policy.*clone it"):
        segue.run(
            "sac", pendulum_data(), ENVIRONMENT, offline="td3_bc", out=tmp_path / "run",
            settings=tiny("sac"), offline_settings=tiny("td3_bc"), quiet=True,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_alignment_without_a_critic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"phase 'alignment' needs critic.*keep --reevaluation-updates above 0"):
        segue.run(
            "o2td3", pendulum_data(), ENVIRONMENT, offline="bc", out=tmp_path / "run",
            settings=tiny("o2td3", reevaluation_updates=0), offline_settings=tiny("bc"), quiet=True,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_the_specification_calls_skippable_may_be_skipped(tmp_path: Path) -> None:
    """Constrained fine-tuning alone from CQL; alignment without re-evaluation from TD3+BC (ocr_cft.md 1, item 8)."""
    for offline, online, left_out in (
        ("cql", "o2sac", ("reevaluation_updates", "alignment_updates")),
        ("td3_bc", "o2td3", ("reevaluation_updates",)),
    ):
        settings = tiny(online, **dict.fromkeys(left_out, 0))
        finished = segue.run(
            online, pendulum_data(), ENVIRONMENT, offline=offline, out=tmp_path / online, steps=4, online_steps=12,
            settings=settings, offline_settings=tiny(offline), evaluation=SCARCE, quiet=True,
        )  # fmt: skip
        names = {phase["name"] for phase in finished.summary["phases"]}
        assert names == {"offline", "online"} | ({"alignment"} if len(left_out) == 1 else set())
