"""Wrong input: one line that says what to mend, exit code 2, nothing written. And what `--help` promises."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces

import segue
from segue import checkpoint
from segue.cli.main import COMMANDS, main
from segue.cli.options import FRAME, RULE, first_words, names
from segue.core.learn import initial_state, make_keys
from segue.core.types import Spec
from segue.experiment import make_config, phases_of
from segue.preparation import Preparation
from segue.recipes import METHODS, recipe_type
from segue.run_folder import RunFolder
from segue.session import Evaluation
from segue.settings import with_changes
from tests.small import ENVIRONMENT, NETWORKS, SSAR, options, pendulum_data, write_pendulum_data


class Unbounded(gym.Env):
    """Actions without bounds."""

    observation_space = spaces.Box(-1, 1, (4,), np.float32)
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


gym.register("SegueUnbounded-v0", entry_point=lambda **_: Unbounded())


def fabricate(path: Path, finished: bool, method: str = "td3_bc") -> Path:
    """A run of seeds 0 and 1 whose models nobody trained."""
    recipe = with_changes(recipe_type(method)(), NETWORKS)
    environment = ENVIRONMENT
    online = not recipe.needs_dataset
    config = make_config(
        offline=None if online else (method, recipe),
        online=(method, recipe) if online else None,
        dataset=None,
        environment=environment,
        environment_kwargs={},
        updates=10,
        online_steps=10,
        seeds=(0, 1),
        evaluation=Evaluation(),
    )
    config["action_bounds"] = [[-3.0], [3.0]]
    folder = RunFolder.create(path, config)
    if finished:
        (phase,) = phases_of(config)
        spec = Spec(4, 1)
        models = phase.algorithm.export(initial_state(phase.algorithm, {}, spec, make_keys((0, 1), 0)))
        manifest = {"preparation": Preparation.identity(4).as_dict(), "spec": list(spec)}
        checkpoint.save(folder.models_path(phase.name), jax.device_get(models), manifest)
        folder.write_summary({"phases": [{"name": phase.name}]})
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the words of a command line below may name in braces."""
    tmp = tmp_path_factory.mktemp("cli")
    places = {"tmp": tmp, "data": write_pendulum_data(tmp), "run": fabricate(tmp / "run", finished=True)}
    places["unfinished"] = fabricate(tmp / "unfinished", finished=False)
    places["sac"] = fabricate(tmp / "sac", finished=True, method="sac")
    for name, spoil in SPOILT.items():
        places[name] = tmp / name
        shutil.copytree(places["run"], places[name])
        config = places[name] / "config.json"
        config.write_text(spoil(config.read_text()))
    places["cut_models"] = tmp / "cut_models"
    shutil.copytree(places["run"], places["cut_models"])
    arrays = places["cut_models"] / "models" / "offline" / checkpoint.ARRAYS
    arrays.write_bytes(arrays.read_bytes()[:-50])
    return places


def without_seeds(text: str) -> str:
    config = json.loads(text)
    del config["seeds"]
    return json.dumps(config)


SPOILT: dict[str, Callable[[str], str]] = {
    "cut_config": lambda text: text[:100],
    "list_config": lambda text: "[]",
    "keyless": without_seeds,
    "other_method": lambda text: text.replace('"method": "td3_bc"', '"method": "td4"'),
    "other_setting": lambda text: text.replace('"alpha": 2.5', '"alfa": 2.5'),
}

TRAIN = "train td3_bc --dataset {data} --out {tmp}/new"
SSAR_TRAIN = "train td3_bc_ssar --dataset {data} --out {tmp}/new"
TUNE = "finetune {run} --out {tmp}/new"
WRONG: dict[str, tuple[str, str]] = {
    # commands and methods
    "unknown command": ("trian td3_bc", "did you mean 'train'"),
    "no method": ("train", f"the first argument is the METHOD: choose one of {', '.join(METHODS)}"),
    "option before method": ("train --steps 3 td3_bc", "the first argument is the METHOD"),
    "unknown method": ("train td3bc --dataset {data}", "method 'td3bc' is unknown; did you mean td3_bc"),
    "unknown offline method": ("run td3 --offline td3bc --dataset {data} --out {tmp}/new", "'td3bc' is unknown"),
    "no run": ("finetune", "the first argument is the RUN"),
    "methods takes none": ("methods extra", "unrecognized arguments: extra"),
    # options
    "unknown option": (TRAIN + " --hiden-sizes 3 4", "--hiden-sizes, 3, 4; did you mean --hidden-sizes?"),
    "option of another method": (TRAIN + " --n-start 1", "Unrecognized options: --n-start"),
    "left-over word": (TRAIN + " hello", "Unrecognized options: hello"),
    "no number": (TRAIN + " --batch-size many", "--batch-size"),
    "no value": (TRAIN + " --batch-size", "Missing value for argument '--batch-size'"),
    "no such choice": (TRAIN + " --replay some", "'all', 'half', 'part', 'none'"),
    "no preset name": ("train td3_bc_ssar --preset", "--preset needs a value"),
    "unknown preset": (SSAR_TRAIN + " --preset hopper-medum-v2", "did you mean hopper-medium-v2"),
    "preset of another method": (TRAIN + " --preset hopper-medium-v2", "td3_bc has no presets"),
    # numbers
    "zero steps": (TRAIN + " --steps 0", "0 steps: give at least 1"),
    "negative steps": (TRAIN + " --steps -5", "-5 steps: give at least 1"),
    "zero online steps": ("run td3_bc --dataset {data} --out {tmp}/new --online-steps 0", "0 steps"),
    "a seed twice": (TRAIN + " --seeds 0 0", "--seeds 0 0: give at least one seed, and each once"),
    "no seed": (TRAIN + " --seeds", "--seeds"),
    "negative seed": (TRAIN + " --seeds -1", "--seeds -1: give seeds from 0"),
    "huge seed": (TRAIN + " --seeds 99999999999", "give seeds from 0 to 2147483647"),
    "zero batch": (TRAIN + " --batch-size 0", "--batch-size 0: give at least 1"),
    "zero width": (TRAIN + " --hidden-sizes 16 0", "--hidden-sizes 16 0: give widths of at least 1"),
    "no widths": (TRAIN + " --hidden-sizes", "--hidden-sizes"),
    "discount 1": (TRAIN + " --discount 1", "--discount 1.0: give from 0 to below 1"),
    "negative rate": (TRAIN + " --actor-learning-rate -1", "--actor-learning-rate -1.0: give above 0"),
    "infinite": (TRAIN + " --alpha inf", "--alpha inf: give a finite number"),
    "negative ratio": (TRAIN + " --updates-per-step -1", "--updates-per-step -1.0: give not below 0"),
    "negative warm-up": (TRAIN + " --warmup-steps -1", "--warmup-steps -1: give not below 0"),
    "zero interval": (TRAIN + " --eval-interval 0", "--eval-interval 0: give at least 1"),
    "zero log interval": (TRAIN + " --log-interval 0", "--log-interval 0: give at least 1"),
    "no episodes": (TRAIN + " --eval-episodes 0", "--eval-episodes 0: give at least 1"),
    "no result episodes": (TRAIN + " --result-episodes 0", "--result-episodes 0: give at least 1"),
    "quantile": (SSAR_TRAIN + " --return-quantile 1.5", "--return-quantile 1.5: give from 0 to 1"),
    "expectile": (SSAR_TRAIN + " --iql-expectile 1", "--iql-expectile 1.0: give between 0 and 1"),
    "zero transitions": (TRAIN + " --transitions 0", "transitions=0"),
    # data
    "no data": ("train td3_bc --out {tmp}/new", "td3_bc learns from a dataset: give one (--dataset)"),
    "unknown data": ("train td3_bc --dataset segue/hopper-medum --out {tmp}/new", "did you mean segue/hopper-medium"),
    "missing file": ("train td3_bc --dataset {tmp}/none.npz --out {tmp}/new", "none.npz"),
    "run without data": ("run td3_bc --out {tmp}/new", "give a dataset (--dataset)"),
    # environments
    "unknown environment": (TRAIN + " --env InvertedPendulm-v5", "did you mean InvertedPendulum-v5"),
    "other environment": (TRAIN + " --env Hopper-v5", "give bounds, or an environment, that fit the data"),
    "discrete actions": (TRAIN + " --env CartPole-v1", "is not a Box"),
    "unbounded actions": (TRAIN + " --env SegueUnbounded-v0", "no bounds"),
    "online, no environment": ("train sac --out {tmp}/new", "sac learns online: give an environment (--env)"),
    "online, unknown environment": ("train sac --env Hoper-v5 --out {tmp}/new", "did you mean Hopper-v5"),
    "online, discrete actions": ("train sac --env CartPole-v1 --out {tmp}/new", "only Box actions"),
    "online, unbounded actions": ("train sac --env SegueUnbounded-v0 --out {tmp}/new", "need finite bounds"),
    "online, replay of no data": (f"train sac --env {ENVIRONMENT} --replay all --out {{tmp}}/new", "--replay none"),
    # the run folder
    "folder in use": ("train td3_bc --dataset {data} --out {run}", "segue resume"),
    "folder with other things": ("train td3_bc --dataset {data} --out {tmp}", "is not empty: choose another --out"),
    "folder is a file": ("train td3_bc --dataset {data} --out {data}", "is a file: choose another folder"),
    # phases that cannot follow each other
    "no offline phase": ("run sac --dataset {data} --out {tmp}/new", "name one with --offline"),
    "sac after td3_bc": ("run sac --offline td3_bc --dataset {data} --out {tmp}/new", "go on with td3, td3_bc"),
    "offline method without data": ("run td3 --offline sac --dataset {data} --out {tmp}/new", "sac has no offline"),
    "finetune td3_bc by sac": (TUNE + " --method sac", "go on with td3, td3_bc"),
    "finetune sac by td3_bc": ("finetune {sac} --method td3_bc --out {tmp}/new --replay none", "go on with sac"),
    "no selector": (TUNE + " --method td3_bc_ssar --selection iql_advantage", "choose --selection return"),
    # selection
    "none trusted": (SSAR_TRAIN + " --return-threshold 1e9", "trusts none of the 600 rows; choose --return-threshold"),
    "all trusted": (SSAR_TRAIN + " --return-threshold -1", "trusts all of the 600 rows"),
    # fine-tuning
    "missing run": ("finetune {tmp}/none --out {tmp}/new", "none is not a run folder"),
    "file as run": ("finetune {data} --out {tmp}/new", "is not a run folder"),
    "unfinished run": ("finetune {unfinished} --out {tmp}/new --replay none", "finish the run first: segue resume"),
    "seed the run has not": (TUNE + " --seeds 1 7 --replay none", "has no seed 7; it has 0 1"),
    "zero online steps of a run": (TUNE + " --steps 0", "0 steps"),
    "other environment than the run's": (TUNE + " --env Hopper-v5 --replay none", "choose the environment that it"),
    "data of no run": (TUNE, "give one with --dataset, or --replay none"),
    "unknown finetune method": (TUNE + " --method td9", "method 'td9' is unknown"),
    # damaged runs
    **{
        f"{command} {kind}": (f"{command} {{{kind}}}" + (" --out {tmp}/new" if command == "finetune" else ""), words)
        for command in ("finetune", "evaluate", "resume")
        for kind, words in {
            "cut_config": "config.json: not valid JSON",
            "list_config": "is missing; it is damaged or of another version",
            "keyless": "config.json: 'seeds' is missing",
            "other_method": "method 'td4' is unknown",
            "other_setting": "setting 'alfa' is unknown",
        }.items()
    },
    "evaluate cut models": ("evaluate {cut_models}", "cannot be read"),
    "finetune cut models": ("finetune {cut_models} --replay none --out {tmp}/new", "cannot be read"),
    # the other commands
    "evaluate nothing": ("evaluate", "the following arguments are required: run"),
    "evaluate a missing run": ("evaluate {tmp}/none", "is not a run folder"),
    "evaluate an unfinished run": ("evaluate {unfinished}", "finish the run first"),
    "evaluate no episodes": ("evaluate {run} --episodes 0", "--episodes 0: at least 1"),
    "evaluate in an unknown environment": ("evaluate {run} --env Hoper-v5", "did you mean Hopper-v5"),
    "evaluate in another environment": ("evaluate {run} --env Hopper-v5", "11 observations"),
    "resume nothing": ("resume", "the following arguments are required: run"),
    "resume a missing run": ("resume {tmp}/none", "is not a run folder"),
    "report without --out": ("report {run}", "required: --out"),
    "report of a missing run": ("report {tmp}/none --out {tmp}/new", "none"),
    "report of a damaged run": ("report {cut_config} --out {tmp}/new", "config.json"),
    "data without a command": ("data", "COMMAND"),
    "demo with an unknown option": ("demo --fast", "unrecognized arguments: --fast"),
}


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(
    case: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, words = WRONG[case]
    monkeypatch.chdir(places["tmp"])
    before = contents(places["tmp"])
    assert main([word.format(**places) for word in command.split()]) == 2
    output, errors = capsys.readouterr()
    assert words in errors
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("segue")
    assert "Traceback" not in output + errors
    assert contents(places["tmp"]) == before
    assert not (places["tmp"] / "new").exists()


def test_a_full_selection_is_a_warning_in_the_released_profile(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "td3_bc_ssar", "--dataset", places["data"], "--out", tmp_path / "run", "--profile", "released"]
    small = options(SSAR | {"return_threshold": -1.0, "eval_interval": 100, "result_episodes": 1})
    with pytest.warns(UserWarning, match="trusts all of the 600 rows"):
        assert main([*map(str, command), "--steps", "2", *small]) == 0
    assert "|D-hat|/|D| = 1.000" in capsys.readouterr().out


def test_a_folder_without_permission_is_one_line(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "/locked/run")

    monkeypatch.setattr(Path, "mkdir", denied)
    assert main(["train", "td3_bc", "--dataset", str(places["data"]), "--out", "/locked/run"]) == 2
    assert capsys.readouterr().err == "segue train: /locked/run: permission denied\n"


def test_tensorboard_without_its_library_is_one_line(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    out = places["tmp"] / "new"
    command = ["train", "td3_bc", "--dataset", str(places["data"]), "--out", str(out), "--tensorboard"]
    assert main(command) == 2
    assert 'pip install "segue[tensorboard]"' in capsys.readouterr().err
    assert not out.exists()


# -- help


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from segue.cli.main import main; code = main(['--help']); "
        "sys.exit(code or int(bool({'jax', 'numpy', 'tyro', 'rich'} & set(sys.modules))))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0  # of a core, however busy it is
    for command in COMMANDS:
        assert f"  {command}" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == segue.__version__


@pytest.mark.parametrize("words", [["methods"], ["train", "--help"], ["run", "--help"]])
def test_each_method_says_what_it_does_when_to_choose_it_and_its_paper(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(words) == 0
    except SystemExit as stop:
        assert stop.code == 0
    output = capsys.readouterr().out
    assert len(METHODS) > 0
    for name, recipe in METHODS.items():
        for text in (recipe.summary, recipe.choose_when, recipe.paper):
            assert text.strip() and "\n" not in text and len(text) < 110, name
        block = f"  {name}\n    what   {recipe.summary}\n    when   {recipe.choose_when}\n    paper  {recipe.paper}\n"
        assert block in output


def helped(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Option -> its text in `--help`, without the form of its value."""
    monkeypatch.setenv("COLUMNS", "80")  # where it is wide, tyro puts boxes side by side
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code in (0, None)
    texts: dict[str, str] = {}
    name = ""
    for line in capsys.readouterr().out.splitlines():
        line = line.strip(FRAME)
        if RULE.search(line):
            name = ""
        if found := re.match(r"(--[a-z0-9-]+)(.*)", line):
            name, line = found[1], found[2].replace("[INT [INT ...]]", "").replace("{None}", "")
            texts[name] = ""
        if name:
            texts[name] += f" {line}"
    return {name: " ".join(text.split()) for name, text in texts.items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_is_in_the_help_with_its_default_and_source(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = helped(["train", method], capsys, monkeypatch)
    for part in (METHODS[method](), Evaluation()):
        for name, default in names(part):
            if name in ("--coefficient", "--weighting"):  # sockets that the recipe fills
                continue
            assert name in texts
            assert re.search(r"\[[^\]]*\w[^\]]*\]", texts[name]), f"{name} names no source: {texts[name]}"
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            assert f"(default: {shown})" in texts[name]


@pytest.mark.parametrize("words", [["train", "td3_bc"], ["run", "td3_bc_ssar"], ["train", "sac"]])
def test_common_options_are_in_the_help(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = helped(words, capsys, monkeypatch)
    assert {"--dataset", "--env", "--steps", "--seeds", "--out", "--quiet", "--tensorboard"} <= set(texts)
    assert ("--online-steps" in texts) == (words[0] == "run")


@pytest.mark.parametrize("command", ["train", "run", "finetune", "evaluate", "resume", "report", "demo", "data"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code in (0, None)
    assert f"usage: segue {command}" in capsys.readouterr().out


def test_switches_need_no_value() -> None:
    from segue.cli.options import with_switches

    default = Evaluation()
    words = ["--eval-episodes", "3"]
    assert with_switches(default, ["--tensorboard", *words]) == ["--tensorboard", "True", *words]
    assert with_switches(default, ["--no-tensorboard"]) == ["--tensorboard", "False"]
    assert with_switches(default, ["--tensorboard", "False"]) == ["--tensorboard", "False"]


def test_data_that_names_no_environment_takes_the_bounds_of_the_one_given(tmp_path: Path) -> None:
    path = write_pendulum_data(tmp_path, environment=False)
    with np.load(path) as file:
        columns = {name: file[name] for name in file.files if name != "segue"}
    np.savez(path, **columns)
    run = segue.train("td3_bc", str(path), ENVIRONMENT, out=tmp_path / "run", steps=2, settings=NETWORKS, quiet=True,
                      evaluation=Evaluation(eval_interval=100, result_episodes=1))  # fmt: skip
    assert run.folder.config["action_bounds"] == [[-3.0], [3.0]]
    assert len(pendulum_data()) == 600


@pytest.mark.parametrize(
    "box",
    [
        "╭─ Value error ──╮\n│ Error parsing  │\n│ --alpha: no    │\n│ ────────────── │\n│ Argument       │\n",
        " Value error     \n --------------- \n  Error parsing  \n  --alpha: no    \n  -------------- \n  Argument\n",
    ],
)  # fmt: skip
def test_boxes_of_errors_become_one_line(box: str) -> None:
    assert first_words(box) == "Error parsing --alpha: no"
