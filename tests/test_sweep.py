"""`segue sweep`: the file, the grid, failures, interruptions, the table."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from segue.cli.main import main
from segue.cli.sweep import EXAMPLE
from segue.errors import UserError
from segue.statistics import bootstrap_interval
from segue.sweep import machine, schedule
from segue.sweep.cells import Cell, cells, check_same, clear_left_over, is_locked, state
from segue.sweep.check import check_line
from segue.sweep.entry import Entry
from segue.sweep.file import read
from segue.sweep.results import position
from segue.sweep.schedule import Schedule
from segue.sweep.show import Show
from segue.sweep.table import lines as table_lines
from segue.sweep.table import rows, write
from tests.small import NETWORKS, finish, lines, start, write_pendulum_data

QUICK = {"steps": 40, "eval_interval": 20, "eval_episodes": 1, "result_episodes": 2, "log_interval": 20}


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(x)}" for key, x in value.items()) + "}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def write_file(folder: Path, methods: list[dict[str, Any]], **keys: Any) -> Path:
    """A sweep's file, its output in `folder`/out."""
    text = "".join(f"{key} = {toml(value)}\n" for key, value in ({"out": str(folder / "out")} | keys).items())
    for method in methods:
        text += "[[methods]]\n" + "".join(f"{toml(key)} = {toml(value)}\n" for key, value in method.items())
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def grid(folder: Path, methods: list[dict[str, Any]], **keys: Any) -> list[Cell]:
    return cells(read(write_file(folder, methods, **({"datasets": ["segue/hopper-medium"]} | keys))))


def row_of(folder: Path, method: str) -> dict[str, str]:
    with (folder / "table.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["method"] == method)


# -- whole sweeps, as processes


@pytest.mark.slow  # the other whole sweep is the quick one
def test_a_sweep_goes_on_past_failures_and_tries_them_again(tmp_path: Path) -> None:
    data = str(write_pendulum_data(tmp_path))
    good = {"name": "td3_bc", "settings": NETWORKS}
    tuned = {"name": "td3", "label": "tuned", "from": "td3_bc", "settings": NETWORKS | {"warmup_steps": 10}}
    ssar = {"coefficient_hidden_sizes": [16, 16, 16], "return_threshold": 1e9}
    bad = {"name": "td3_bc_ssar", "label": "bad", "settings": NETWORKS | ssar}
    after_bad = {"name": "td3", "label": "after", "from": "bad", "settings": NETWORKS}
    keys: dict[str, Any] = {"datasets": [data], "settings": QUICK, "cores_per_job": 1}
    file, out = write_file(tmp_path, [tuned, bad, after_bad, good], **keys), tmp_path / "out"
    errors = finish(start("sweep", file), 1)

    run = out / "td3_bc" / "pendulum" / "seed-0"
    assert state(run) == state(out / "tuned" / "pendulum" / "seed-0") == "finished"
    assert "2 of 4 runs failed" in errors
    assert f"bad on {data}, seed 0: segue train: selection 'return > 1000000000.0' trusts none of the 600 r" in errors
    assert f"  after on {data}, seed 0: not begun: bad on {data}, seed 0 failed" in errors
    assert f"log: {out / 'bad' / 'pendulum' / 'seed-0.log'}" in errors
    assert "finished: td3_bc on" in errors
    assert (out / "sweep.toml").read_bytes() == file.read_bytes()
    config = json.loads((run / "config.json").read_text())
    assert shlex.split(config["command"])[:3] == ["segue", "train", "td3_bc"]
    final = json.loads((run / "summary.json").read_text())["phases"][0]["final"][0]
    assert float(row_of(out, "td3_bc")["mean"]) == final["normalised_mean"]
    assert row_of(out, "tuned")["before"]
    assert row_of(out, "bad")["seeds"] == "0"
    statuses = [one["status"] for one in json.loads((out / "results.json").read_text())["runs"]]
    assert statuses == ["finished", "failed", "failed", "finished"]

    before = (run / "summary.json").stat().st_mtime_ns
    write_file(tmp_path, [tuned, good | {"label": "bad"}, good], **keys)
    said = finish(start("sweep", file), 0)
    assert "3 runs, 2 finished" in said
    assert [line for line in said.splitlines() if "begins" in line or "goes on" in line] == [
        f"[2/3]  begins: bad on {data}, seed 0 (cores {min(os.sched_getaffinity(0))})"
    ]
    assert (run / "summary.json").stat().st_mtime_ns == before
    assert row_of(out, "bad")["mean"]


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    data = str(write_pendulum_data(tmp_path, environment=False))
    often = NETWORKS | {"steps": 2500, "log_interval": 20, "checkpoint_seconds": 0.0}
    file = write_file(tmp_path, [{"name": "td3_bc"}], datasets=[data], settings=often, jobs=1)
    run = tmp_path / "out" / "td3_bc" / "pendulum" / "seed-0"

    def until_at_work(step: int) -> Any:
        process = start("sweep", file)
        for _ in range(4000):
            found = position(run)
            if found and found.step >= step:
                return process
            time.sleep(0.03)
        raise AssertionError(process.communicate(timeout=1))

    killed = until_at_work(20)
    killed.send_signal(signal.SIGKILL)  # of the sweep alone: its run is told, saves and ends
    finish(killed, -signal.SIGKILL)
    said = until_at_work(lines(run)[-1]["step"] + 60)  # it waits for that run to end, then goes on with it
    said.send_signal(signal.SIGTERM)
    errors = finish(said, 143)
    assert "goes on: td3_bc on" in errors
    assert "stopped: td3_bc on" in errors
    assert (
        f"0 of 1 runs are finished, the others are saved as far as they came. Go on with: segue sweep {file}" in errors
    )
    assert state(run) == "begun"
    assert not is_locked(run)
    finish(start("sweep", file, "--quiet"), 0)
    assert state(run) == "finished"
    assert [line["step"] for line in lines(run, "train")] == list(range(20, 2520, 20))
    assert main(["sweep", str(file)]) == 0  # nothing is left
    assert row_of(tmp_path / "out", "td3_bc")["mean"] == ""  # without an environment there is no score


# -- the file


def test_the_example_is_checked_and_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE.parent)
    before = sorted(EXAMPLE.parent.iterdir())
    assert main(["sweep", EXAMPLE.name, "--dry-run"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 2 * 3 * 5
    assert all(line.startswith("new       segue ") for line in listed)
    of_ssar = next(line for line in listed if "ssar/hopper-medium-replay/seed-0" in line)
    assert "--steps 200000 --mask-regularizer True --return-quantile 0.9" in of_ssar
    assert sorted(EXAMPLE.parent.iterdir()) == before
    assert EXAMPLE.read_text().strip() in (Path(__file__).parent.parent / "docs" / "sweep.md").read_text()


def test_help_shows_a_complete_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    shown = capsys.readouterr().out
    assert all(line.strip() in shown for line in EXAMPLE.read_text().splitlines())


TD3BC = {"name": "td3_bc"}
DATA = {"datasets": ["segue/hopper-medium"]}
WRONG: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "unknown key": ([TD3BC], DATA | {"seed": [0]}, "unknown key 'seed'; did you mean 'seeds'?"),
    "option at the top": ([TD3BC], DATA | {"alpha": 1}, "options of the command belong under `settings`"),
    "no data": ([TD3BC], {}, "`datasets` is missing: give a list of texts"),
    "no datasets": ([TD3BC], {"datasets": []}, "datasets = []: give a list of texts, each once"),
    "no methods": ([], DATA, "`methods` is missing: give at least one [[methods]]"),
    "a seed twice": ([TD3BC], DATA | {"seeds": [1, 1]}, "seeds = [1, 1]: give a list of whole numbers from 0"),
    "no jobs": ([TD3BC], DATA | {"jobs": 0}, "jobs = 0: give a whole number of at least 1"),
    "no memory": ([TD3BC], DATA | {"memory_gb_per_job": 0}, "give a number above 0"),
    "finetune for all": ([TD3BC], DATA | {"command": "finetune"}, 'give "train" or "run"'),
    "settings elsewhere": ([TD3BC], DATA | {"settings_for": {"segue/hopper-medum": {}}}, "did you mean 'segue/h"),
    "set by the sweep": ([TD3BC], DATA | {"settings": {"seeds": [1]}}, "settings.seeds is set by the sweep: see its `"),
    "a table as a value": ([TD3BC], DATA | {"settings": {"alpha": {}}}, "settings.alpha: give a number, text, true"),
    "method without a name": ([{"label": "x"}], DATA, "[[methods]] number 1: `name` is missing: give text"),
    "unknown key of a method": ([TD3BC | {"lable": "x"}], DATA, "number 1: unknown key 'lable'; did you mean 'label'?"),
    "option as a key": ([TD3BC | {"preset": "x"}], DATA, "options of the command belong under `settings`"),
    "two of a name": ([TD3BC, TD3BC], DATA, "two methods are called 'td3_bc': give each a `label` of its own"),
    "two of a folder": ([TD3BC, TD3BC | {"label": "TD3_BC"}], DATA, "would share the folder 'TD3_BC'"),
    "two data of a folder": ([TD3BC], {"datasets": ["a/x.npz", "b/x.npz"]}, "would share the folder 'x'"),
    "no such parent": ([TD3BC | {"from": "td3bc"}], DATA, "no method is called 'td3bc'; did you mean 'td3_bc'?"),
    "its own parent": ([TD3BC | {"from": "td3_bc"}], DATA, "goes on from itself: td3_bc from td3_bc"),
    "finetune from nothing": ([TD3BC | {"command": "finetune"}], DATA, "go together"),
    "train from something": ([TD3BC | {"command": "train", "from": "x"}], DATA, "go together"),
    "vary one": ([TD3BC | {"vary": {"alpha": 1}}], DATA, "vary.alpha: give a list of values"),
    "vary and set": ([TD3BC | {"vary": {"alpha": [1]}, "settings": {"alpha": 1}}], DATA, "choose one"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods, keys, words = WRONG[case]
    assert main(["sweep", str(write_file(tmp_path, methods, **keys))]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.startswith(f"segue sweep: {tmp_path / 'sweep.toml'}: ")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_or_broken_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text("out = \n")
    places = {"none.toml": "no such file; `segue sweep --help`", "bad.toml": "not valid TOML", "": "this is a folder"}
    for name, words in places.items():
        assert main(["sweep", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
    assert main(["sweep", str(tmp_path / "bad.toml"), "--jobs", "0"]) == 2
    assert "--jobs 0: give at least 1" in capsys.readouterr().err


def test_a_wrong_setting_surfaces_before_anything_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_file(tmp_path, [TD3BC, TD3BC | {"label": "b", "settings": {"alfa": 1}}], **DATA)
    assert main(["sweep", str(file), "--dry-run"]) == 2
    errors = capsys.readouterr().err
    assert f"{file}: b on segue/hopper-medium: Unrecognized options: --alfa, 1; did you mean --alpha?" in errors
    assert not (tmp_path / "out").exists()


SAC = {"name": "sac", "label": "next", "from": "first"}
BAD_COMMANDS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "method": ([{"name": "td3bc"}], "method 'td3bc' is unknown; did you mean td3_bc"),
    "value": ([TD3BC | {"settings": {"discount": 1.0}}], "--discount 1.0: give from 0 to below 1"),
    "kind of value": ([TD3BC | {"settings": {"batch_size": "many"}}], "--batch-size"),
    "steps": ([TD3BC | {"settings": {"steps": 0}}], "0 steps: give at least 1"),
    "another policy": ([SAC, TD3BC | {"label": "first"}], "continues a tanh_gaussian policy"),
    "no offline phase": ([{"name": "sac", "command": "run"}], "sac has no offline phase: name one with `offline`"),
    "option of run": ([TD3BC | {"settings": {"online_steps": 9}}], "Unrecognized options: --online-steps"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_a_wrong_command_is_found_without_running_it(case: str, tmp_path: Path) -> None:
    methods, words = BAD_COMMANDS[case]
    with pytest.raises(UserError, match=words.replace("`", ".")):
        check_line(grid(tmp_path, methods)[0].line())


def test_right_commands_pass_and_tell_their_data(tmp_path: Path) -> None:
    first = {"name": "td3_bc_ssar", "label": "first", "settings": {"transitions": 600, "tensorboard": True}}
    after = {"name": "td3", "from": "first", "settings": {"hidden_sizes": [8, 8]}}
    both = {"name": "td3", "label": "run", "command": "run", "settings": {"offline": "td3_bc", "online_steps": 9}}
    scratch = {"name": "sac"}
    for cell in grid(tmp_path, [first, after, both, scratch]):
        rows_asked = 600 if cell.label in ("first", "td3") else None
        assert check_line(cell.line()) == ("segue/hopper-medium", rows_asked, None), cell.words()


# -- the grid


def test_cells_go_seed_by_seed_and_parents_belong_to_their_children(tmp_path: Path) -> None:
    methods: list[dict[str, Any]] = [
        {"name": "td3", "from": "a alpha=2"},
        TD3BC | {"label": "a", "vary": {"alpha": [1, 2], "replay": ["all"]}},
    ]
    with pytest.raises(UserError, match="no method is called 'a alpha=2'; did you mean 'a alpha=2, replay=all'"):
        grid(tmp_path, methods)
    methods[0]["from"] = "a alpha=2, replay=all"
    made = grid(tmp_path, methods, datasets=["segue/hopper-medium", "minari:x/y-v0"], seeds=[3, 4, 5], seeds_per_run=2)
    assert len(made) == 2 * 2 * 3
    assert [cell.seeds for cell in made] == [(3, 4)] * 6 + [(5,)] * 6
    assert made[0].parent is made[2]
    assert made[0].words()[:2] == ["finetune", str(made[2].folder)]
    assert made[2].folder == tmp_path / "out" / "a-alpha=2-replay=all" / "hopper-medium" / "seeds-3-4"
    assert made[11].folder == tmp_path / "out" / "a-alpha=2-replay=all" / "x-y-v0" / "seed-5"
    assert made[2].words()[:7] == ["train", "td3_bc", "--dataset", "segue/hopper-medium", "--seeds", "3", "4"]


def test_the_special_overrules_the_general(tmp_path: Path) -> None:
    name = "segue/hopper-medium"
    method = TD3BC | {"settings": {"c": 3, "d": 3}, "settings_for": {name: {"d-d": 4, "d": 4}}}
    (cell,) = grid(tmp_path, [method], settings={"a": 1, "b": 1}, settings_for={name: {"b": 2, "c": 2, "d": 2}})
    assert cell.settings == {"a": 1, "b": 2, "c": 3, "d": 4, "d_d": 4}


def fabricate(cell: Cell, score: float, normalised: bool = True, handover: float | None = None) -> None:
    """The folder of a finished run with this score."""

    def entry(value: float) -> list[dict[str, Any]]:
        means = {"return_mean": 10 * value, "normalised_mean": value if normalised else None}
        return [{"seed": seed, **means} for seed in cell.seeds]

    kind = "offline" if handover is None else "online"
    phase = {"name": kind, "kind": kind, "steps": 50, "wall_time_s": 20.0 + score, "steps_per_second": 5.0}
    behaviour = {"return_mean": 40.0, "normalised_mean": 4.0 if normalised else None}
    config = {"command": shlex.join(["segue", *cell.words()]), "phases": [phase]}
    phase |= {"final": entry(score), "handover": [] if handover is None else entry(handover)}
    (cell.folder / "models" / kind).mkdir(parents=True)
    (cell.folder / "models" / kind / "manifest.json").touch()
    (cell.folder / "config.json").write_text(json.dumps(config))
    (cell.folder / "summary.json").write_text(json.dumps({"behaviour": behaviour, "phases": [phase]}))


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    (cell,) = grid(tmp_path, [TD3BC | {"settings": {"steps": 10}}])
    check_same(cell)
    fabricate(cell, 1.0)
    check_same(cell)
    (other,) = grid(tmp_path, [TD3BC | {"settings": {"steps": 20}}])
    with pytest.raises(UserError, match=r"other settings .--steps: 10 there, 20 here.: give the method another"):
        check_same(other)
    (cell.folder / "config.json").write_text(json.dumps({"command": "python"}))
    with pytest.raises(UserError, match="holds a run that no sweep made"):
        check_same(cell)


def test_what_a_kill_left_of_a_folder_is_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    (run / ".config.json.12").touch()
    assert state(run) == "new"
    clear_left_over(run)
    assert not run.exists()
    run.mkdir()
    (run / "thesis.txt").touch()
    clear_left_over(run)
    assert (run / "thesis.txt").exists()


def test_only_one_sweep_works_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from segue.cli.sweep import _locked

    file = write_file(tmp_path, [TD3BC], **DATA)
    fabricate(cells(read(file))[0], 1.0)
    with _locked(read(file)):
        assert main(["sweep", str(file)]) == 2
    assert "another sweep is at work in this folder" in capsys.readouterr().err
    assert main(["sweep", str(file)]) == 0


# -- cores and memory


def test_cores_are_shared_out() -> None:
    assert machine.share(None, None, 8, 100.0) == (8, 1)
    assert machine.share(None, None, 8, 2.5) == (2, 4)  # memory for two
    assert machine.share(None, None, 8, 0.3) == (1, 8)
    assert machine.share(None, 2, 8, float("inf")) == (4, 2)
    assert machine.share(1, None, 8, 100.0) == (1, 8)
    assert machine.share(3, None, 2, 100.0) == (3, 1)
    assert machine.places(2, 2, [3, 5, 6, 7]) == [[3, 5], [6, 7]]
    assert machine.places(3, 1, [0, 1]) == [[0], [1], [0]]


def test_free_memory_is_the_machines_or_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CONTAINERS", ((tmp_path, "limit", "use", "inactive_file"),))
    assert machine.free_memory() == 4000 * 1024
    (tmp_path / "limit").write_text("max\n")
    (tmp_path / "use").write_text("900000\n")
    assert machine.free_memory() == 4000 * 1024
    (tmp_path / "limit").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 50000\n")
    assert machine.free_memory() == 150_000
    assert machine.resident(os.getpid()) > 1e7


def test_a_run_begins_only_when_memory_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = grid(tmp_path, [TD3BC], seeds=[0, 1, 2])
    plan = Schedule(made, [[], [], []], 1.5, Show(3, quiet=True), "")
    begun: list[int] = []

    class Process:
        def __init__(self, words: list[str], log: object) -> None:
            self.pid = len(begun)
            begun.append(self.pid)

    monkeypatch.setattr(schedule, "_process", Process)
    monkeypatch.setattr(schedule, "resident", lambda pid: 1e9)
    monkeypatch.setattr(schedule, "free_memory", lambda: 0.1e9)
    plan._begin_what_can()
    assert begun == [0]  # the first one always
    monkeypatch.setattr(schedule, "free_memory", lambda: 2.1e9)  # 0.5 of that is still the first one's
    plan._begin_what_can()
    assert begun == [0, 1]
    plan._begin_what_can()
    assert begun == [0, 1]


# -- the table


def test_the_tables_figures(tmp_path: Path) -> None:
    methods = [TD3BC, {"name": "td3", "label": "tuned", "from": "td3_bc"}]
    made = grid(tmp_path, methods, datasets=["segue/hopper-medium", "segue/hopper-expert"], seeds=[0, 1, 2, 3])
    values = {"hopper-medium": [10.0, 20.0, 30.0, 60.0], "hopper-expert": [100.0, 100.0, 100.0, 140.0]}
    entries = [Entry(cell, "finished") for cell in made]
    for entry in entries:
        value = values[entry.cell.dataset.removeprefix("segue/")][entry.cell.seeds[0]]
        if entry.cell.label == "td3_bc":
            fabricate(entry.cell, value)
        elif entry.cell.seeds[0] < 2:
            fabricate(entry.cell, value + 1, handover=value)
        else:
            entry.status, entry.error = "failed", "segue finetune: no luck"
    medium, medium_tuned, expert, _, both, both_tuned = rows(entries)
    assert (medium.dataset, medium.label, medium.done, medium.planned) == ("hopper-medium", "td3_bc", 4, 4)
    assert medium.mean == 30.0
    assert medium.std == pytest.approx((1400 / 3) ** 0.5)  # (20² + 10² + 0² + 30²) / (4 - 1)
    assert medium.iqm == 25.0  # of 20 and 30
    assert medium.interval == bootstrap_interval([[10.0, 20.0, 30.0, 60.0]])
    assert medium.wall_time_s == 50.0
    assert medium.behaviour == 4.0
    assert medium.before is None
    assert (expert.mean, expert.iqm) == (110.0, 100.0)
    assert both.mean == 70.0
    assert both.std is None  # over seeds and datasets it would mean nothing
    assert both.iqm == 72.5  # of 30, 60, 100 and 100: two cut off at either end
    assert both.interval == bootstrap_interval([values["hopper-medium"], values["hopper-expert"]])
    assert (medium_tuned.mean, medium_tuned.before, medium_tuned.done) == (16.0, 15.0, 2)
    assert medium_tuned.std == pytest.approx(50**0.5)
    assert medium_tuned.interval is None  # of two seeds
    assert both_tuned.interval is None

    write(tmp_path, entries, {"jobs": 1})
    text = (tmp_path / "table.md").read_text()
    low, high = medium.interval
    assert (
        f"| hopper-medium | td3_bc | 4 | 4.0 | - | 30.0 | 21.6 | 25.0 | {low:.1f} to {high:.1f} | 0:00:50 | 5 u" in text
    )
    assert "| hopper-medium | tuned | 2 of 4 | 4.0 | 15.0 | 16.0 | 7.1 | 16.0 | - | 0:00:36 | 5 env steps/s |" in text
    assert "- tuned on segue/hopper-expert, seed 3: segue finetune: no luck" in text
    assert float(row_of(tmp_path, "td3_bc")["interval_low"]) == low
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["final"][0]["normalised_mean"] for run in runs[:4]] == [10.0, 11.0, 100.0, 101.0]


def test_returns_stand_in_where_nothing_is_normalised(tmp_path: Path) -> None:
    made = grid(tmp_path, [TD3BC], seeds=[0, 1], seeds_per_run=2)
    fabricate(made[0], 3.0, normalised=False)
    (row,) = rows([Entry(made[0], "finished")])
    assert (row.mean, row.normalised, row.behaviour, row.done, row.scores) == (30.0, False, 40.0, 2, {0: 30.0, 1: 30.0})
    assert table_lines([row])[1][4] == "30.0 (return)"
