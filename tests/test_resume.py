"""Nothing is lost: killed, stopped, damaged and diverged runs."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import safe_open

import segue
from segue import checkpoint
from segue.cli.main import main
from segue.data import Dataset
from segue.data.convert import convert
from segue.errors import UserError
from segue.run_folder import RunFolder
from segue.session import Evaluation
from segue.stop import Diverged
from tests.small import (
    ENVIRONMENT,
    SSAR,
    assert_same_lines,
    finish,
    lines,
    options,
    pendulum_data,
    start,
    write_pendulum_data,
)

KILLED = -signal.SIGKILL
OFTEN: dict[str, Any] = {"log_interval": 20, "checkpoint_seconds": 0.0}
ADVANCE = "segue.workers:OfflineWorker.advance"  # a fused call of 20 updates


def models(run: Path, phase: str) -> bytes:
    return (run / "models" / phase / checkpoint.ARRAYS).read_bytes()


def saves(run: Path) -> int:
    """Number of the newest checkpoint."""
    return max((int(path.name) for path in (run / "checkpoints").glob("[0-9]*")), default=0)


def stopped(command: list[str], run: Path, number: signal.Signals) -> None:
    """`segue COMMAND`, asked to stop when it is at work: it does so in under 10 s, and says how to go on."""
    before = saves(run)
    process = start(*command)
    for _ in range(4000):
        if saves(run) >= before + 3:
            break
        time.sleep(0.03)
    clock = time.perf_counter()
    process.send_signal(number)
    message = finish(process, 128 + number)
    assert time.perf_counter() - clock < 10
    assert f"segue resume {run}" in message
    assert len(message.splitlines()) == 1


def killed(command: list[str], function: str, calls: int) -> None:
    """`segue COMMAND`, ended as `kill -9` does when `function` is called for the `calls`th time."""
    finish(start(function, str(calls), *command, module="tests.killed"), KILLED)


@pytest.mark.slow
def test_killed_offline_run_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    data = write_pendulum_data(tmp_path, environment=False)
    command = ["train", "td3_bc_ssar", "--dataset", str(data), "--steps", "400", *options(SSAR | OFTEN), "--quiet"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(*command, "--out", whole))

    rng = random.Random(0)
    again = ["resume", str(broken), "--quiet"]
    killed([*command, "--out", str(broken)], ADVANCE, rng.randint(2, 6))
    assert not (broken / "models").exists()
    killed(again, "segue.checkpoint:_sync", 4)  # the new folder is written but not in its place
    assert list((broken / "checkpoints").glob(".*"))
    killed(again, "segue.checkpoint:_sync", 9)  # the new folder is in its place, the oldest not yet dropped
    killed(again, ADVANCE, rng.randint(2, 6))
    killed(again, "segue.run_folder:RunFolder.write_summary", 1)  # all is learned, but for the results
    finish(start(*again))

    assert models(whole, "offline") == models(broken, "offline")
    assert_same_lines(whole, broken)
    assert [line["step"] for line in lines(broken, "train")] == list(range(20, 401, 20))
    left_over = [path for path in broken.rglob("*") if path.name.startswith(".")]
    assert not left_over
    assert len(list((broken / "checkpoints").iterdir())) <= 2


def test_killed_online_run_of_two_seeds_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    data = write_pendulum_data(tmp_path)
    often = OFTEN | {"eval_interval": 100, "online_eval_interval": 100, "eval_episodes": 2, "result_episodes": 3}
    sizes = ["--steps", "200", "--online-steps", "600", "--warmup-steps", "50", "--seeds", "0", "1"]
    command = ["run", "td3_bc_ssar", "--dataset", str(data), *sizes, *options(SSAR | often), "--quiet"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(*command, "--out", whole))

    rng = random.Random(1)
    again = ["resume", str(broken), "--quiet"]
    killed([*command, "--out", str(broken)], ADVANCE, rng.randint(2, 6))
    killed(again, "segue.run_folder:RunFolder.write_summary", 1)  # on the border of the phases
    stopped(again, broken, signal.SIGTERM)
    killed(again, "segue.environment:Environment.step", rng.randint(500, 700))  # evaluations step environments too
    killed(again, "segue.checkpoint:_sync", 1)
    stopped(again, broken, signal.SIGINT)
    finish(start(*again))

    for phase in ("offline", "online"):
        assert models(whole, phase) == models(broken, phase), phase
    assert_same_lines(whole, broken)
    of_whole, of_broken = (RunFolder.open(path).summary for path in (whole, broken))
    for summary in (of_whole, of_broken):
        assert summary is not None
        for phase in summary["phases"]:
            del phase["wall_time_s"], phase["steps_per_second"]
    assert of_whole == of_broken


@pytest.mark.slow
def test_a_call_that_takes_long_does_not_keep_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = write_pendulum_data(tmp_path, environment=False)
    command = ["train", "td3_bc_ssar", "--dataset", str(data), "--steps", "100", *options(SSAR | OFTEN), "--quiet"]
    process = start(ADVANCE, "-3", *command, "--out", run, module="tests.killed")
    for _ in range(4000):
        if saves(run) == 3:  # one before each call
            break
        time.sleep(0.03)
    time.sleep(0.5)
    clock = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    message = finish(process, 143)
    assert 5 < time.perf_counter() - clock < 10
    assert message == f"stopped amid a long call; go on from the last checkpoint: segue resume {run}\n"
    assert saves(run) == 3
    assert RunFolder.open(run).latest_whole() == run / "checkpoints" / "000003"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished offline run, to be copied."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train(pendulum_data(), path)
    return path


def train(data: Dataset, out: Path, **changes: Any) -> segue.Run:
    return segue.train(
        "td3_bc_ssar",
        data,
        out=out,
        steps=100,
        settings=SSAR | changes,
        evaluation=Evaluation(eval_episodes=1, result_episodes=2, eval_interval=100, **OFTEN),
        quiet=True,
    )


def unfinished(finished: Path, folder: Path) -> Path:
    """The run as it was before its last checkpoint's end: results and models are taken away."""
    run = folder / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "models")
    (run / "summary.json").unlink()
    return run


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = contents(finished)
    assert main(["resume", str(finished)]) == 0
    assert contents(finished) == before


def test_data_given_in_python_is_kept_with_its_run(finished: Path, tmp_path: Path) -> None:
    run = unfinished(finished, tmp_path)
    assert (run / "dataset.npz").is_file()
    for path in (run / "checkpoints").iterdir():
        shutil.rmtree(path)
    segue.resume(run, quiet=True)
    assert models(run, "offline") == models(finished, "offline")


@pytest.mark.parametrize("damage", ["cut short", "altered", "no arrays", "no manifest", "manifest cut short"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(damage: str, finished: Path, tmp_path: Path) -> None:
    run = unfinished(finished, tmp_path)
    spoil(sorted((run / "checkpoints").iterdir())[-1], damage)
    with pytest.warns(UserWarning, match="going on from the one before it"):
        segue.resume(run, quiet=True)
    assert models(run, "offline") == models(finished, "offline")
    assert_same_lines(run, finished)


def spoil(folder: Path, damage: str) -> None:
    arrays, manifest = folder / checkpoint.ARRAYS, folder / checkpoint.MANIFEST
    if damage == "cut short":
        arrays.write_bytes(arrays.read_bytes()[:-100])
    elif damage == "altered":
        content = bytearray(arrays.read_bytes())
        content[-100] ^= 1
        arrays.write_bytes(content)
    elif damage == "no arrays":
        arrays.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:-50])


def test_only_damaged_checkpoints_are_an_error_and_nothing_is_lost(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unfinished(finished, tmp_path)
    for folder in (run / "checkpoints").iterdir():
        spoil(folder, "altered")
    before = contents(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["resume", str(run)]) == 2
    assert "arrays.safetensors is damaged, and no other is whole" in capsys.readouterr().err
    assert contents(run) == before


def test_one_process_at_a_time(finished: Path, tmp_path: Path) -> None:
    run = unfinished(finished, tmp_path)
    with RunFolder.open(run).locked(), pytest.raises(UserError, match="another process"):
        segue.resume(run, quiet=True)


def test_diverging_values_stop_the_run_and_keep_the_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pendulum.npz"
    convert(pendulum_data(), data)
    run = tmp_path / "run"
    often = options(SSAR | OFTEN | {"critic_learning_rate": 3.0, "hidden_sizes": (64, 64)})
    command = ["train", "td3_bc_ssar", "--dataset", str(data), "--steps", "2000", "--out", str(run), *often, "--quiet"]
    assert main([*command, "--eval-interval", "5000", "--critic-layer-norm", "False"]) == 3
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert "critic_1_mean of seed 0" in message or "critic_loss of seed 0" in message
    kept = RunFolder.open(run).latest()
    assert kept is not None and str(kept) in message
    assert "To go on from there would diverge again: start a new run with a lower learning rate or" in message
    assert not (run / "models").exists()
    assert_good(kept)
    assert main(["evaluate", str(run), "--episodes", "1"]) == 2
    assert "no finished phase to use" in capsys.readouterr().err
    assert main(["resume", str(run), "--quiet"]) == 3  # the same numbers again, to the same end
    again, first = capsys.readouterr().err.split(";")[0], message.split(";")[0]
    assert again == first.replace("segue train", "segue resume")


def assert_good(saved: Path) -> None:
    """The checkpoint is whole, and every number in it is one."""
    checkpoint.check_whole(saved)
    with safe_open(saved / checkpoint.ARRAYS, framework="numpy") as file:
        assert all(np.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118


def test_diverging_values_online_stop_the_run_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a dataset, values are judged by the rewards of the environment so far (1 here: at most 1,000)."""
    run = tmp_path / "run"
    settings = {"critic_learning_rate": 3.0, "hidden_sizes": (32, 32), "batch_size": 32, "warmup_steps": 50}
    words = options(OFTEN | settings | {"online_eval_interval": 5000, "result_episodes": 1, "steps": 2000, "out": run})
    assert main(["train", "td3", "--env", ENVIRONMENT, *words, "--quiet"]) == 3
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and "critic_1_mean of seed 0 is" in message
    kept = RunFolder.open(run).latest()
    assert kept is not None and str(kept) in message
    assert_good(kept)
    assert not (run / "models").exists()


def test_a_last_step_to_nan_is_seen_though_its_metrics_are_of_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segue.workers import OfflineWorker

    advance = OfflineWorker.advance

    def to_nan(self: OfflineWorker, *arguments: Any) -> list[dict[str, Any]]:
        episodes = advance(self, *arguments)
        self.state = jax.tree.map(lambda x: x * np.nan if x.dtype == np.float32 else x, self.state)
        return episodes

    monkeypatch.setattr(OfflineWorker, "advance", to_nan)
    with pytest.raises(Diverged, match=r"largest parameter of seed 0 is nan; the last good checkpoint is .*000001"):
        train(pendulum_data(), tmp_path / "run")
    assert not (tmp_path / "run" / "models").exists()


def test_nan_online_never_reaches_the_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segue.environment import Environment

    executed: list[np.ndarray] = []
    step = Environment.step

    def watched(self: Environment, action: np.ndarray) -> Any:
        executed.append(action)
        return step(self, action)

    monkeypatch.setattr(Environment, "step", watched)
    with pytest.raises(Diverged, match=r"phase 'online' diverged before step .*; the last good checkpoint is"):
        segue.train(
            "td3",
            environment=ENVIRONMENT,
            out=tmp_path / "run",
            steps=2000,
            settings={"hidden_sizes": (16, 16), "batch_size": 32, "warmup_steps": 50, "actor_learning_rate": 1e38},
            evaluation=Evaluation(online_eval_interval=5000, result_episodes=1, **OFTEN),
            quiet=True,
        )
    assert np.isfinite(executed).all()
    manifest = json.loads((tmp_path / "run" / "config.json").read_text())
    assert manifest["online"]["method"] == "td3"


def test_rewards_of_zero_are_no_divergence(tmp_path: Path) -> None:
    data = pendulum_data()
    silent = Dataset.from_arrays(
        data.observations, data.actions, 0 * data.rewards, data.terminated, data.truncated, data.next_observations,
        action_low=data.action_low, action_high=data.action_high,
    )  # fmt: skip
    train(silent, tmp_path / "run", selection="none")
