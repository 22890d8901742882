"""Fine-tuning methods after offline methods, and samplers with whatever algorithm: what composes, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import segue
from segue.core.learn import make_keys, models_after
from segue.core.phases import Phase, check
from segue.core.types import Models, Spec
from segue.errors import UserError
from segue.experiment import form_after, load_models
from segue.recipes import METHODS
from segue.recipes.base import Recipe
from segue.settings import flat, with_changes
from segue.stop import Interrupted, StopSignals
from tests.small import ENVIRONMENT, pendulum_data
from tests.test_composition import TINY
from tests.test_every_method import SCARCE

ON_POLICY = ("ppo", "o2ppo", "uni_o4")
ALIGNED: dict[str, Any] = {"reevaluation_updates": 4, "alignment_updates": 4}
NOT_ALIGNED: dict[str, Any] = {"clone_updates": 0, "reevaluation_updates": 0, "alignment_updates": 0}
# Offline method, online method, settings of the latter; the same one twice: it goes on by itself.
COMBINATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("td3_bc_ssar", "td3_bc_ssar", {"sampling": "behaviour"}),  # BAQ's sampling with SSAR's coefficients
    ("cql_ssar", "cql_ssar", {"sampling": "behaviour", "replay": "all"}),
    ("td3_bc", "td3", {"sampling": "balanced", "replay": "all"}),
    ("cql", "o2sac", {"sampling": "behaviour", "replay": "all"} | ALIGNED),
    ("cql", "rlpd", {"from_scratch": False} | ALIGNED),  # alignment before RLPD
    ("bc", "rlpd", {}),  # from scratch, whatever there was
    ("cql", "wsrl", ALIGNED),
    ("cql", "wsrl", {}),
    *((offline, "pex", {}) for offline in ("bc", "td3_bc", "iql", "cql", "awac", "spot")),
    ("iql", "baq_iql", {}),
    ("cql", "baq_cql", {}),
    ("cql", "baq_cql", {"sampling": "uniform"}),
    ("cql", "off2on", {}),
    ("cql", "off2on", {"sampling": "behaviour"}),
    ("cql", "aca", {}),
    ("iql", "proto_sac", {}),
    ("cql", "proto_sac", {}),
    ("td3_bc", "proto_td3", {}),
    ("iql", "so2", {}),
    ("cql", "so2", {}),
    *((offline, "suf", {}) for offline in ("td3_bc", "iql", "cql")),
    ("iql", "uni_o4", {"reevaluation_updates": 4}),
]
QUICK = (0,)  # whole runs in `make test`; the others are slow
NAMES = [f"{offline}-{online}-{i}" for i, (offline, online, _) in enumerate(COMBINATIONS)]


def small(method: str, settings: dict[str, Any]) -> Recipe:
    known = dict(flat(METHODS[method]()))
    tiny = TINY | NOT_ALIGNED | {"num_critics": 3, "critic_minibatches": 2}
    tiny |= {"updates_per_step": 1.0, "policy_update_interval": 2} if method in ("rlpd", "so2", "suf") else {}
    left_out = ("warmup_steps",) if method in ON_POLICY else ()  # fixed there
    changes = {name: value for name, value in tiny.items() if name in known and name not in left_out}
    return with_changes(METHODS[method](), changes | settings)


def chain(offline: str, online: str, settings: dict[str, Any]) -> tuple[Phase, ...]:
    phases = small(offline, settings if offline == online else {}).offline_phases(4)
    form = form_after(phases, None)
    recipe = small(online, settings).adapted(form)
    phases += recipe.handover_phases(form) if offline != online else ()
    return (*phases, *recipe.behaviour_phases(), recipe.online_phase(16))


@pytest.mark.parametrize(("offline", "online", "settings"), COMBINATIONS, ids=NAMES)
def test_it_builds(offline: str, online: str, settings: dict[str, Any]) -> None:
    """By shapes, without a compilation."""
    phases = chain(offline, online, settings)
    check(phases, set(), None)
    models, keys = Models(), make_keys((0,), 0)
    for phase in phases:
        assert not set(phase.needs) - set(models)
        models = models_after(phase, models, Spec(4, 1), keys)
    assert models["actor"].net.kind == phases[-1].algorithm.policy_kind


def run(number: int, out: Path, stop_at: int | None = None) -> segue.Run:
    """The whole run; with `stop_at` it is interrupted at that question whether to stop, and resumed."""
    offline, online, settings = COMBINATIONS[number]
    questions = 0

    def requested(signals: StopSignals) -> bool:
        nonlocal questions
        questions += 1
        return stop_at is not None and questions >= stop_at

    options: dict[str, Any] = {"settings": small(online, settings)}
    if offline != online:
        options |= {"offline": offline, "offline_settings": small(offline, {})}
    with pytest.MonkeyPatch.context() as patch:
        if stop_at is not None:
            patch.setattr(StopSignals, "requested", requested)
        try:
            return segue.run(
                online, pendulum_data(), ENVIRONMENT, out=out, steps=4, online_steps=24, evaluation=SCARCE, quiet=True,
                **options,
            )  # fmt: skip
        except Interrupted:
            pass
    return segue.resume(out, quiet=True)


@pytest.mark.parametrize(
    "number",
    [i if i in QUICK else pytest.param(i, marks=pytest.mark.slow) for i in range(len(COMBINATIONS))],
)
def test_it_runs_and_resumes(number: int, tmp_path: Path) -> None:
    finished = run(number, tmp_path / "run", stop_at=14)
    assert [phase["name"] for phase in finished.summary["phases"]][-1] == "online"
    assert np.isfinite(finished.summary["phases"][-1]["final"][0]["return_mean"])


@pytest.mark.parametrize("number", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_sampler_goes_on_to_the_bit(number: int, tmp_path: Path) -> None:
    """Priorities, and what the density ratio has learned, are part of a checkpoint."""
    whole, cut = run(number, tmp_path / "whole"), run(number, tmp_path / "cut", stop_at=20)
    for a, b in zip(jax.tree.leaves(load_models(whole.folder)[0]), jax.tree.leaves(load_models(cut.folder)[0]),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("replay", ["half", "none"])
def test_priorities_need_one_pool(replay: str) -> None:
    phases = chain("td3_bc", "td3", {"sampling": "behaviour", "replay": replay})
    with pytest.raises(UserError, match=r"phase 'online' \(TD3\) cannot draw rows by priority.*--replay all or part"):
        check(phases, set(), None)


def test_methods_that_learn_from_rollouts_refuse_priorities() -> None:
    with pytest.raises(UserError, match="leave --sampling out"):
        small("ppo", {"sampling": "behaviour"}).online_phase(10)


def test_sampling_by_behaviour_needs_a_model_of_it() -> None:
    phases = chain("td3_bc", "td3", {"sampling": "behaviour", "replay": "all", "behaviour_updates": 0})
    with pytest.raises(UserError, match=r"needs behaviour.*keep --behaviour-updates above 0"):
        check(phases, set(), None)


def test_a_share_of_the_ring() -> None:
    """RLPD's and SO2's shares, as the phases say them."""
    half = METHODS["rlpd"]().online_phase(10)
    boosted = METHODS["so2"]().online_phase(10)
    assert half.mix == "half" and boosted.mix == "boosted"
    assert half.online is not None and boosted.online is not None
    assert (half.online.online_share, boosted.online.online_share_of_all) == (0.5, 0.1)
