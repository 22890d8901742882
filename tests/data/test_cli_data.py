"""`segue data` on good input."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segue.cli.data import main
from segue.data.summary import coverage

Columns = dict[str, Any]


@pytest.fixture
def good(columns: Columns, tmp_path: Path) -> str:
    columns["actions"][:, 0] = 1
    path = tmp_path / "good.npz"
    metadata = json.dumps({"environment_id": "Swimmer-v5", "reference_scores": [0.0, 10.0]})
    np.savez(path, **columns, segue=np.array(metadata))
    return str(path)


def test_info(good: str, columns: Columns, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", good, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["transitions"] == 12
    assert summary["episodes"] == 3
    assert (summary["terminated"], summary["truncated"]) == (1, 2)
    assert summary["lengths"] == {"min": 3, "mean": 4, "max": 5}
    first = float(columns["rewards"][:5].astype(float).sum())
    assert any(value == pytest.approx(first) for value in summary["returns"].values())
    assert summary["normalised_returns"]["mean"] == pytest.approx(10 * summary["returns"]["mean"])
    assert summary["action_saturation"]["per_dimension"] == [1, 0]
    assert summary["action_saturation"]["overall"] == 0.5
    assert 0 < summary["coverage"] <= 12 / 400

    assert main(["info", good]) == 0
    text = capsys.readouterr().out
    for word in ("12", "Swimmer-v5", "normalised return", "1 terminated, 2 truncated", "coverage"):
        assert word in text


@pytest.mark.parametrize("suffix", (".png", ".svg"))
def test_plot(good: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"returns{suffix}"
    assert main(["info", good, "--plot", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    assert path.stat().st_size > 2000


def test_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    assert main(["list"]) == 0
    assert "segue/hopper-random" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    (record,) = [r for r in json.loads(capsys.readouterr().out) if r["reference"] == "segue/hopper-random"]
    assert record["transitions"] == 1_000_000
    assert record["cached"] is False


def test_generate_and_convert(capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    out = tmp_path / "out.npz"
    assert main(["convert", "segue/hopper-random", str(out), "--transitions", "300"]) == 0
    printed = capsys.readouterr()
    assert "300 transitions" in printed.out
    assert "300 of 300" in printed.err
    assert main(["validate", str(out), "--env", "Hopper-v5"]) == 0
    assert "spaces of Hopper-v5" in capsys.readouterr().out
    assert main(["validate", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True


def test_help_is_quick_to_import() -> None:
    heavy = ("numpy", "jax", "h5py", "gymnasium", "matplotlib", "rich")
    code = f"import sys, segue.cli.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_data_layer_needs_no_jax() -> None:
    code = "import sys, segue.data, segue.data.summary, segue.data.convert; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_coverage() -> None:
    rng = np.random.default_rng(0)
    square = np.concatenate([rng.uniform(-1, 1, (50_000, 2)), np.zeros((50_000, 3))], axis=1)
    assert coverage(square) > 0.6  # equal directions may be turned: a square on its tip fills half to all of its box
    line = np.linspace(-1, 1, 5000)[:, None] * np.array([[1.0, 1.0, 1.0]])
    assert coverage(line) <= 21 / 400
    assert coverage(rng.uniform(size=(5000, 1))) > 0.95
    assert coverage(np.ones((10, 2))) <= 1 / 400
