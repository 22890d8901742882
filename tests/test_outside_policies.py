"""Runs that begin from a policy of another program."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import segue
from segue.cli.main import main
from segue.errors import UserError
from segue.experiment import load_models
from segue.run_folder import RunFolder
from tests.small import ENVIRONMENT, options, pendulum_data, write_pendulum_data
from tests.test_composition import tiny
from tests.test_every_method import SCARCE

FOREIGN = Path(__file__).parent / "data" / "foreign"
FEEDBACK = np.asarray([0.0, 2.0, 0.0, 0.5])  # of the pendulum's angle and its speed


def balancing(observation: np.ndarray) -> np.ndarray:
    """Observation [n, 4] -> action [n, 1], in the environment's units."""
    return np.clip(observation @ FEEDBACK[:, None], -3, 3)


def finetune(policy: Any, method: str, out: Path, **settings: Any) -> segue.Run:
    return segue.finetune(
        policy=policy, dataset=pendulum_data(), environment=ENVIRONMENT, method=method, out=out, steps=24,
        settings=tiny(method, **settings), evaluation=SCARCE, quiet=True,
    )  # fmt: skip


@pytest.mark.slow  # the command line's run below is the quick one
@pytest.mark.parametrize("method", ["o2sac", "o2td3", "o2ppo"])
def test_a_function_is_cloned_and_goes_on(method: str, tmp_path: Path) -> None:
    long = {"clone_updates": 2_000, "batch_size": 64} if method == "o2td3" else {}
    run = finetune(balancing, method, tmp_path / "run", **long)
    names = [phase["name"] for phase in run.summary["phases"]]
    assert names[0] == "clone" and names[-1] == "online"
    assert run.folder.config["policy"]["return_mean"] > 100  # its own score, beside the clone's
    if method == "o2td3":
        data = pendulum_data()
        clone = run.policy(phase="clone")
        error = np.abs(clone(data.observations[:100]) - balancing(data.observations[:100]))
        assert error.mean() < 0.3
    again = segue.open_run(run.path)
    assert np.isfinite(again.policy()(np.zeros(4, np.float32))).all()


@pytest.mark.slow
def test_it_resumes_without_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segue.stop import Interrupted, StopSignals

    questions = count(1)
    monkeypatch.setattr(StopSignals, "requested", lambda self: next(questions) >= 5)
    with pytest.raises(Interrupted):
        finetune(balancing, "o2td3", tmp_path / "run")
    monkeypatch.undo()
    resumed = segue.resume(tmp_path / "run", quiet=True)
    whole = finetune(balancing, "o2td3", tmp_path / "whole")
    pairs = zip(jax.tree.leaves(load_models(resumed.folder)[0]), jax.tree.leaves(load_models(whole.folder)[0]),
                strict=True)  # fmt: skip
    assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "method", "phases"), [
    ("td3.zip", "o2td3", ["re-evaluation", "alignment", "online"]),
    ("sac.zip", "o2td3", ["clone", "re-evaluation", "alignment", "online"]),
    ("ppo.zip", "o2ppo", ["clone", "re-evaluation", "online"]),
])  # fmt: skip
def test_a_stable_baselines3_policy_goes_on(file: str, method: str, phases: list[str], tmp_path: Path) -> None:
    run = finetune(FOREIGN / file, method, tmp_path / "run")
    assert [phase["name"] for phase in run.summary["phases"]] == phases


@pytest.mark.slow
def test_its_weights_are_the_ones_that_go_on(tmp_path: Path) -> None:
    """The policy after re-evaluation acts as Stable-Baselines3's own did."""
    run = finetune(FOREIGN / "sac.zip", "o2sac", tmp_path / "run")
    assert [phase["name"] for phase in run.summary["phases"]] == ["re-evaluation", "alignment", "online"]
    with np.load(FOREIGN / "expected.npz") as expected:
        observations, actions = expected["observations"], expected["sac"]
    np.testing.assert_allclose(run.policy(phase="re-evaluation")(observations), actions, atol=1e-4)
    after = segue.finetune(run, out=tmp_path / "after", steps=8, evaluation=SCARCE, quiet=True)
    assert RunFolder.open(after.path).config["handover"] is False
    assert [phase["name"] for phase in after.summary["phases"]] == ["online"]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_pendulum_data(tmp_path)
    words = ["--dataset", str(data), "--env", ENVIRONMENT, "--method", "o2td3", "--steps", "12", "--quiet"]
    small = {"hidden_sizes": (8,), "critic_hidden_sizes": (8,), "batch_size": 8, "clone_updates": 4,
             "reevaluation_updates": 4, "alignment_updates": 4, "warmup_steps": 4, "eval_episodes": 1,
             "result_episodes": 1}  # fmt: skip
    function = f"{__name__}:balancing"
    code = main(["finetune", "--policy", function, *words, *options(small), "--out", str(tmp_path / "run")])
    assert code == 0, capsys.readouterr().err
    assert segue.open_run(tmp_path / "run").summary["phases"][0]["name"] == "clone"


@pytest.mark.parametrize(("words", "said"), [
    (["--policy", str(FOREIGN / "sac.zip"), "--method", "o2sac"], "give --dataset or --env"),
    (["--policy", str(FOREIGN / "sac.zip")], "name one with --method"),
    (["--policy", "nothing.zip", "--method", "o2sac", "--env", ENVIRONMENT], "nothing.zip"),
    (["--policy", str(FOREIGN / "ppo.zip"), "--method", "o2ppo", "--env", ENVIRONMENT], "give a dataset (--dataset)"),
    (["--policy", str(FOREIGN / "sac.zip"), "--method", "o2sac", "--env", "Hopper-v5"], "observation"),
    (["--policy", str(FOREIGN / "sac.zip"), "--method", "odt", "--env", ENVIRONMENT], "would not use"),
    (["--policy", str(FOREIGN / "sac.zip"), "--method", "rlpd", "--env", ENVIRONMENT], "would not use"),
    (["--policy", str(FOREIGN / "sac.zip"), "--method", "o2sac", "--env", ENVIRONMENT, "--normalize-observations"],
     "sees observations as they are"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str],
                                    tmp_path: Path) -> None:  # fmt: skip
    code = main(["finetune", *words, "--out", str(tmp_path / "run"), "--quiet"])
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


def test_a_method_that_does_not_clone_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="clone it first, with --clone-updates 100000"):
        finetune(FOREIGN / "ppo.zip", "ppo", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_stable_baselines3_itself_hands_over(tmp_path: Path) -> None:
    """Trained, saved and asked by the real library; then read without it and fine-tuned."""
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # beside other processes its threads wait for each other
    agent = stable_baselines3.SAC("MlpPolicy", ENVIRONMENT, seed=1, learning_starts=100, device="cpu")
    agent.learn(1_500)
    agent.save(tmp_path / "agent.zip")
    run = finetune(tmp_path / "agent.zip", "o2sac", tmp_path / "run")
    observations = pendulum_data().observations[:200].astype(np.float32)
    wanted = agent.predict(observations, deterministic=True)[0]
    np.testing.assert_allclose(run.policy(phase="re-evaluation")(observations), wanted, atol=1e-4)
    assert [phase["name"] for phase in run.summary["phases"]] == ["re-evaluation", "alignment", "online"]
    assert np.isfinite(run.summary["phases"][-1]["final"][0]["return_mean"])
