"""`segue train`, `segue finetune`, `segue run`."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from segue.api import DEFAULT_ONLINE_STEPS, DEFAULT_UPDATES, Run, continuing
from segue.api import finetune as api_finetune
from segue.api import run as api_run
from segue.api import train as api_train
from segue.cli.options import parse
from segue.cli.table import print_result
from segue.errors import UserError
from segue.experiment import recipe_of
from segue.guard import Guard
from segue.recipes import METHODS, preset_recipe, recipe_type
from segue.recipes.base import Recipe
from segue.run_folder import RunFolder
from segue.session import Evaluation


@dataclass(frozen=True)
class Common:
    """What every training command takes."""

    dataset: str | None = None  # segue/NAME, minari:ID, d4rl:PATH, ogbench:PATH, or a .npz, .parquet or .csv file
    transitions: int | None = None  # size of built-in data, or how many rows of a file to use
    env: str | None = None  # Gymnasium id; default: the dataset's own
    seeds: tuple[int, ...] = (0,)  # several are trained side by side; finetune: some or all of the run's
    out: Path | None = None  # run folder; default: runs/METHOD-DATASET-N
    evaluation: Evaluation = field(default_factory=Evaluation)
    quiet: bool = False  # no progress on the terminal


@dataclass(frozen=True)
class TrainOptions(Common):
    """Offline training."""

    steps: int = DEFAULT_UPDATES  # gradient updates (sac, td3: environment steps) [1,000,000 in the papers]


@dataclass(frozen=True)
class FinetuneOptions(Common):
    """Online training from a run."""

    steps: int = DEFAULT_ONLINE_STEPS  # environment steps, warm-up included [250,000 in the SSAR paper]
    guard: Guard = Guard()


@dataclass(frozen=True)
class RunOptions(Common):
    """Offline, then online."""

    steps: int = DEFAULT_UPDATES  # offline gradient updates [1,000,000 in the papers]
    online_steps: int = DEFAULT_ONLINE_STEPS  # environment steps, warm-up included [250,000 in the SSAR paper]
    guard: Guard = Guard()


def _split(command: str, argv: list[str], what: str) -> tuple[str, list[str]]:
    """The first argument and the others. Raises UserError if there is none; `--help` alone explains it and ends."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: segue {command} {what} [OPTIONS]\n\n{method_table()}\n")
        print(f"segue {command} {what} --help shows its options")
        if what == "RUN":
            print("segue finetune --policy FILE --method METHOD begins from a policy of another program: .onnx, a")
            print("Stable-Baselines3 .zip, TorchScript .pt, or module:function (observation -> action)")
        raise SystemExit(0)
    if not argv or argv[0].startswith("-"):
        hint = f"choose one of {', '.join(METHODS)}" if what == "METHOD" else "name the folder of a run"
        raise UserError(f"the first argument is the {what}: {hint}")
    return argv[0], argv[1:]


def method_table() -> str:
    """A block a method: what it does, when to choose it, its paper."""
    return "\n\n".join(
        f"  {name}\n    what   {cls.summary}\n    when   {cls.choose_when}\n    paper  {cls.paper}"
        for name, cls in METHODS.items()
    )


def _take(argv: list[str], option: str) -> tuple[str | None, list[str]]:
    """Cut `option VALUE` out of `argv`: options that decide which other options there are."""
    for i, word in enumerate(argv):
        if word == option:
            if i + 1 == len(argv):
                raise UserError(f"{option} needs a value")
            return argv[i + 1], argv[:i] + argv[i + 2 :]
        if word.startswith(option + "="):
            return word.split("=", 1)[1], argv[:i] + argv[i + 1 :]
    return None, argv


def _parse(program: str, options: Common, recipe: Recipe, argv: list[str], note: str = "") -> tuple[Any, Recipe]:
    """Run options and method settings from one flat list of options, the defaults being `recipe`'s."""
    kind: Any = type(recipe)
    both: Any = make_dataclass("Options", [("run", type(options)), ("method", kind)])
    description = f"{kind.summary}. When: {kind.choose_when}. {kind.paper}.{note}"
    parsed = parse(both, both(options, recipe), argv, program, description)
    return parsed.run, parsed.method


def _updates(method: str, preset: str | None) -> int:
    """The default number of offline updates."""
    known = recipe_type(method).preset_updates
    return next((known[name] for name in (preset or "").split(",") if name in known), DEFAULT_UPDATES)


def _preset_note(method: str) -> str:
    names = list(recipe_type(method).presets)
    fast = " 'fast' is not a paper's: less work, for a CPU; NAME,fast joins both." if "fast" in names else ""
    return f" --preset NAME takes the settings for one of: {', '.join(names)}.{fast}" if names else ""


def default_out(name: str) -> Path:
    """The first free `runs/NAME-N`."""
    n = 1
    while (path := Path("runs") / f"{name}-{n}").exists():
        n += 1
    return path


def _named(options: Common, method: str) -> Path:
    data = (options.dataset or options.env or "run").replace("\\", "/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
    return options.out or default_out(f"{method}-{data}")


def _common(options: Common) -> dict[str, Any]:
    return {
        "environment": options.env,
        "seeds": options.seeds,
        "evaluation": options.evaluation,
        "transitions": options.transitions,
        "quiet": options.quiet,
    }


@dataclass(frozen=True)
class Plan:
    """What a command line asks for: read, every option known and of its kind, nothing begun."""

    method: str
    options: Any  # TrainOptions, RunOptions or FinetuneOptions
    settings: Recipe
    offline: tuple[str, Recipe] | None = None  # of `run`: the method of its offline phase, if it is another one


def plan_train(argv: list[str]) -> Plan:
    """What follows `segue train`. Raises UserError."""
    method, rest = _split("train", argv, "METHOD")
    preset, rest = _take(rest, "--preset")
    recipe = preset_recipe(method, preset)
    own = TrainOptions(steps=_updates(method, preset))
    return Plan(method, *_parse(f"segue train {method}", own, recipe, rest, _preset_note(method)))


def plan_run(argv: list[str]) -> Plan:
    """What follows `segue run`. Raises UserError."""
    method, rest = _split("run", argv, "METHOD")
    offline, rest = _take(rest, "--offline")
    preset, rest = _take(rest, "--preset")
    offline_preset, rest = _take(rest, "--offline-preset")
    recipe, first = preset_recipe(method, preset), None
    own = RunOptions(steps=_updates(method, preset))
    if offline is not None and offline != method:
        recipe, first = continuing(recipe, {}), (offline, preset_recipe(offline, offline_preset))
        own = RunOptions(steps=_updates(offline, offline_preset))
    elif offline_preset is not None:
        raise UserError("--offline-preset belongs to the method of --offline: name one")
    note = " --offline METHOD learns offline by another method first, with the settings of --offline-preset NAME."
    note += _preset_note(method)
    options, settings = _parse(f"segue run {method}", own, recipe, rest, note)
    if options.dataset is None:
        raise UserError("run begins offline: give a dataset (--dataset)")
    return Plan(method, options, settings, first)


def plan_finetune(argv: list[str], before: tuple[str, Recipe], seeds: tuple[int, ...]) -> Plan:
    """What follows `segue finetune`, from a run of `seeds` that ended with the method `before`. Raises UserError."""
    path, rest = _split("finetune", argv, "RUN")
    method, rest = _take(rest, "--method")
    preset, rest = _take(rest, "--preset")
    if method is None or method == before[0]:
        method, recipe = before
        if preset is not None:
            raise UserError(f"--preset: the run goes on with its own settings of {method}; change them one by one")
    else:
        recipe = continuing(preset_recipe(method, preset), {})
    note = " --method NAME goes on by another method than the run's own." + _preset_note(method)
    return Plan(method, *_parse(f"segue finetune {path}", FinetuneOptions(seeds=seeds), recipe, rest, note))


def plan_policy(argv: list[str]) -> tuple[str, Plan]:
    """What follows `segue finetune` where it goes on from a policy of another program: that, and the plan."""
    policy, rest = _take(argv, "--policy")
    method, rest = _take(rest, "--method")
    preset, rest = _take(rest, "--preset")
    assert policy is not None
    if method is None:
        raise UserError("a policy has no method of its own: name one with --method, such as o2sac or o2td3")
    recipe = continuing(preset_recipe(method, preset), {})
    note = f" Begins from the policy in {policy}.{_preset_note(method)}"
    return policy, Plan(method, *_parse("segue finetune --policy FILE", FinetuneOptions(), recipe, rest, note))


def train(argv: list[str]) -> int:
    """`segue train METHOD`."""
    plan = plan_train(argv)
    options = plan.options
    out = _named(options, plan.method)
    result = api_train(
        plan.method, options.dataset, out=out, steps=options.steps, settings=plan.settings, **_common(options)
    )  # fmt: skip
    return print_result(result)


def run(argv: list[str]) -> int:
    """`segue run METHOD`."""
    plan = plan_run(argv)
    options = plan.options
    result = api_run(
        plan.method,
        options.dataset,
        out=_named(options, plan.method),
        offline=plan.offline[0] if plan.offline else None,
        offline_settings=plan.offline[1] if plan.offline else None,
        guard=options.guard,
        steps=options.steps,
        online_steps=options.online_steps,
        settings=plan.settings,
        **_common(options),
    )
    return print_result(result)


def finetune(argv: list[str]) -> int:
    """`segue finetune RUN`, or `segue finetune --policy FILE`."""
    if any(word.split("=")[0] == "--policy" for word in argv):
        return _finetune_policy(argv)
    path, _ = _split("finetune", argv, "RUN")
    parent = RunFolder.open(Path(path))
    before = parent.config["online"] or parent.config["offline"]
    plan = plan_finetune(argv, (before["method"], recipe_of(before)), tuple(parent.config["seeds"]))
    options = plan.options
    result = api_finetune(
        Run(Path(path)),
        out=options.out or default_out(f"{Path(path).name}-online"),
        steps=options.steps,
        method=plan.method,
        settings=plan.settings,
        dataset=options.dataset,
        guard=options.guard,
        **_common(options),
    )
    return print_result(result)


def _finetune_policy(argv: list[str]) -> int:
    policy, plan = plan_policy(argv)
    options = plan.options
    result = api_finetune(
        policy=policy,
        out=options.out or default_out(f"{Path(policy.split(':')[0]).stem}-{plan.method}"),
        steps=options.steps,
        method=plan.method,
        settings=plan.settings,
        dataset=options.dataset,
        guard=options.guard,
        **_common(options),
    )
    return print_result(result)
