"""The whole report: its files, its page, its errors, its command."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from segue.cli.report import main
from segue.errors import UserError
from segue.report import write_report

from .make_runs import make_comparison, make_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    return write_report(make_comparison(root / "runs"), root / "out")


def without_plotly(page: str) -> str:
    from plotly.offline import get_plotlyjs

    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def test_files(report: Path) -> None:
    assert report.name == "report.html"
    assert {path.name for path in report.parent.iterdir()} == {
        "report.html",
        "report.csv",
        "learning-curves.png",
        "returns.png",
        "q-values.png",
        "coefficients-td3-bc-ssar-mask-regularizer-true.png",
        "coefficients-td3-bc-ssar-mask-regularizer-false.png",
    }
    for picture in report.parent.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_page_needs_nothing_else(report: Path) -> None:
    own = without_plotly(report.read_text())
    assert "Content-Security-Policy" in own
    assert not re.search(r"https?://", own)
    assert not re.search(r"<(script|img|iframe)[^>]+src=|@import|url\(", own)


def test_page_is_well_formed_and_holds_every_figure(report: Path) -> None:
    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "link", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    own = without_plotly(report.read_text())
    parser = Balance()
    parser.feed(own)
    assert parser.open == []
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', own)
    assert data
    assert set(json.loads(data[1])) == {path.stem for path in report.parent.glob("*.png")}
    for name in json.loads(data[1]):
        assert f'id="{name}"' in own


def test_page_tells_what_was_run_and_what_is_missing(report: Path) -> None:
    page = report.read_text()
    assert "segue run td3_bc_ssar --dataset segue/hopper-medium" in page
    assert "jax 0.10.2" in page
    assert "unfinished" in page and "10,000 of 30,000" in page
    assert "31.0% of the data trusted" in page


def test_text_from_runs_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>$x^2$"
    runs = [make_run(tmp_path / "<b>", method=evil, dataset="a</script>&", settings={"k": "<i>"})]
    own = without_plotly(write_report(runs, tmp_path / "out").read_text())
    for raw in ("<script>alert", "a</script>", "<i>", "<b>"):
        assert raw not in own
    assert "&lt;script&gt;alert(1)" in own


def test_several_datasets_have_their_own_figures(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / d, dataset=f"segue/{d}", seeds=(0,)) for d in ("hopper", "walker")]
    page = write_report(runs, tmp_path / "out").read_text()
    assert (tmp_path / "out" / "learning-curves-segue-hopper.png").exists()
    assert (tmp_path / "out" / "learning-curves-segue-walker.png").exists()
    assert "Over the datasets that all methods share" in page


def test_names_that_would_collide_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / d, dataset=d, seeds=(0,)) for d in ("a/b", "a-b")]
    write_report(runs, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("returns*.png"))) == 2


def test_fine_tuned_run_shows_its_parents_command(tmp_path: Path) -> None:
    parent = make_run(tmp_path / "parent", online_steps=0)
    child = make_run(tmp_path / "child", method="sac", offline_steps=0, parent=parent)
    page = write_report([child], tmp_path / "out").read_text()
    assert "segue run td3_bc " in page and "segue run sac " in page


def test_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", finished=False)
    (folder / "metrics.jsonl").write_text("")
    page = write_report([folder], tmp_path / "out").read_text()
    assert "Nothing has been measured yet" in page


def test_nothing_is_written_when_a_run_cannot_be_read(tmp_path: Path) -> None:
    good = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="no run at"):
        write_report([good, tmp_path / "gone"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_must_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="file of that name"):
        write_report([make_run(tmp_path / "a")], tmp_path / "out")
    with pytest.raises(UserError, match="at least one"):
        write_report([], tmp_path / "new")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "a", seeds=(0,))
    assert main([str(folder), str(folder), "--out", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out
    with pytest.raises(UserError, match="--out"):
        main([str(folder)])


def test_reports_need_no_jax_and_the_command_imports_little() -> None:
    code = (
        "import sys, segue.cli.report; assert not {'numpy', 'matplotlib', 'plotly'} & set(sys.modules);"
        "import segue.report; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
