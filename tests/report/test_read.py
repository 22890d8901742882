"""Reading run folders: whole, unfinished, cut off, resumed, fine-tuned, damaged."""

import json
from pathlib import Path

import pytest

from segue.errors import UserError
from segue.report.read import read_run

from .make_runs import make_run


def test_whole_run(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", method="td3_bc_ssar"))
    assert [(p.name, p.online, p.finished) for p in run.phases] == [("offline", False, True), ("online", True, True)]
    assert len(run.phases[0].training) == 300  # two seeds, 150 lines each
    assert len(run.phases[1].final) == 2 and run.phases[1].final[0].episodes == 50
    assert run.phases[1].drop[0] == {"drop_return": -420.0, "drop_normalised": -12.9}
    assert run.behaviour and run.selection == {"trusted_fraction": 0.31, "rule": "return > 1600"}
    assert run.notes == []


def test_unfinished_run_says_where_it_stands(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", finished=False))
    assert len(run.notes) == 1
    assert "online phase stands at step 10,000 of 30,000" in run.notes[0]
    assert run.phases[0].evaluations and not run.phases[0].final


def test_last_line_cut_off_is_tolerated(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    whole = read_run(folder)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[:-40])
    run = read_run(folder)
    assert "cut off" in run.notes[0]
    assert len(run.phases[1].evaluations) == len(whole.phases[1].evaluations) - 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"kind": "train"', "line 3"),
        ('{"kind": "train", "phase": "offline", "seed": 0}', "'step' is missing"),
        ("[1, 2]", "line 3"),
        ('{"kind": "evaluation", "phase": "offline", "step": 1, "seed": 0, "return_mean": "high"}', "line 3"),
    ],
)
def test_damaged_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    folder = make_run(tmp_path / "a")
    lines = (folder / "metrics.jsonl").read_text().split("\n")
    lines[2] = line
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=told) as error:
        read_run(folder)
    assert "metrics.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run folder"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"dataset": "x"}')
    with pytest.raises(UserError, match="does not say its method"):
        read_run(tmp_path)


def test_damaged_summary_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text())
    del summary["phases"][0]["final"][0]["return_mean"]
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match="return_mean"):
        read_run(folder)


def test_lines_that_a_resumed_run_repeats_count_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", seeds=(0,))
    before = read_run(folder).phases[0].training
    resumed = [dict(r, critic_1_mean=-1.0) for r in before if r["step"] > 100_000]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(r) + "\n" for r in resumed[:10])
    after = read_run(folder).phases[0].training
    # What came after the checkpoint is superseded, also where the resumed run has not got that far yet.
    assert [r["step"] for r in after] == list(range(1_000, 111_000, 1_000))
    assert [r["critic_1_mean"] for r in after[100:]] == [-1.0] * 10


def test_fine_tuned_run_starts_with_its_parents_phases(tmp_path: Path) -> None:
    parent = make_run(tmp_path / "parent", online_steps=0)
    child = make_run(tmp_path / "child", method="sac", offline_steps=0, parent=parent)
    run = read_run(child)
    assert run.method == "td3_bc → sac"
    assert [p.name for p in run.phases] == ["offline", "online"]
    assert run.settings["parent.alpha"] == 2.5


def test_missing_parent_is_told(tmp_path: Path) -> None:
    child = make_run(tmp_path / "child", offline_steps=0, parent=tmp_path / "gone")
    run = read_run(child)
    assert [p.name for p in run.phases] == ["online"]
    assert "was not found" in run.notes[0]


def test_parent_is_found_beside_the_run_when_both_were_moved(tmp_path: Path) -> None:
    make_run(tmp_path / "new" / "parent", online_steps=0)
    child = make_run(tmp_path / "new" / "child", offline_steps=0, parent=tmp_path / "old" / "parent")
    assert read_run(child).parent is not None


def test_run_that_names_itself_as_parent_ends(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", parent=tmp_path / "a"))
    assert run.parent is None
