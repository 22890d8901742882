"""From a run's config to its execution: the one road for new, fine-tuned and resumed runs."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue import __version__, checkpoint
from segue.core.learn import acting_state, make_keys, models_after
from segue.core.phases import CLONING, Phase, check
from segue.core.types import Models, Spec
from segue.data import Dataset, load_dataset
from segue.data.prepare import return_range_scale
from segue.data.validate import check_environment
from segue.environment import Environment, EnvironmentMaker, flatten
from segue.errors import UserError
from segue.evaluate import Player
from segue.guard import Guard, check_guard
from segue.outside import outside_labels, outside_models
from segue.preparation import Preparation
from segue.recipes import recipe_type
from segue.recipes.base import Recipe
from segue.run_folder import RunFolder
from segue.selection import DEFAULT_EPISODE_LIMIT
from segue.session import Evaluation, Session
from segue.settings import as_dict, flat, from_dict

DATASET_FILE = "dataset.npz"  # a dataset that was handed over in Python is kept with its run


def versions() -> dict[str, str]:
    """Of everything that decides a run's numbers."""
    names = ("jax", "jaxlib", "optax", "numpy", "gymnasium", "mujoco")
    own = {"segue": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in names}


def recipe_of(entry: dict[str, Any]) -> Recipe:
    """The settings that `config.json` holds."""
    recipe: Recipe = from_dict(recipe_type(entry["method"])(), entry["settings"])
    return recipe


def entry_of(method: str, recipe: Recipe) -> dict[str, Any]:
    """The inverse of `recipe_of`."""
    return {"method": method, "settings": as_dict(recipe)}


def phases_of(config: dict[str, Any]) -> tuple[Phase, ...]:
    """The phases of a run, without its parent's."""
    phases: tuple[Phase, ...] = ()
    if config["offline"] is not None:
        phases += recipe_of(config["offline"]).offline_phases(config["updates"])
    if config["online"] is not None:
        earlier, outside = before(config)
        form = form_after((*earlier, *phases), outside)
        recipe = recipe_of(config["online"]).adapted(form)
        if config.get("handover"):
            phases += recipe.handover_phases(form)
        if not any("behaviour" in phase.algorithm.gives for phase in (*earlier, *phases)):
            phases += recipe.behaviour_phases()
        online = recipe.online_phase(config["online_steps"])
        if earlier and earlier[-1].online and _last_method(config) == config["online"]["method"]:
            online = replace(online, fresh=())  # it was made anew in the run that goes on
        phases += (online,)
    return phases


def before(config: dict[str, Any]) -> tuple[tuple[Phase, ...], dict[str, Any] | None]:
    """The phases of a run's parents, and the outside policy that the first of them all began from, if any."""
    if not config["parent"]:
        return (), config.get("policy")
    parent = RunFolder.open(Path(config["parent"]))
    return all_phases(parent), before(parent.config)[1]


def form_after(phases: tuple[Phase, ...], outside: dict[str, Any] | None) -> str | None:
    """The form of the policy after `phases`; None if there is none, or one known by its actions alone."""
    forms = [phase.algorithm.policy_kind for phase in phases if phase.algorithm.policy_kind]
    return forms[-1] if forms else (outside or {}).get("form")


def make_config(
    *,
    offline: tuple[str, Recipe] | None,
    online: tuple[str, Recipe] | None,
    dataset: str | None,
    environment: EnvironmentMaker | None,
    environment_kwargs: dict[str, Any],
    updates: int,
    online_steps: int,
    seeds: tuple[int, ...],
    evaluation: Evaluation,
    parent: Path | None = None,
    policy: dict[str, Any] | None = None,
    guard: Guard = Guard(),
) -> dict[str, Any]:
    """The resolved settings of a new run, as JSON. Raises UserError for phases that cannot follow each other."""
    names = list(dict.fromkeys(entry[0] for entry in (offline, online) if entry is not None))
    settings = dict(pair for entry in (offline, online) if entry is not None for pair in flat(entry[1]))
    config: dict[str, Any] = {
        "method": " → ".join(names),
        "dataset": dataset or "none",
        "environment": environment if isinstance(environment, str) else getattr(environment, "__name__", None),
        "environment_from_python": callable(environment),
        "environment_kwargs": environment_kwargs,
        "seeds": list(seeds),
        "offline": entry_of(*offline) if offline else None,
        "online": entry_of(*online) if online else None,
        "updates": updates,
        "online_steps": online_steps,
        "evaluation": asdict(evaluation),
        "policy": policy,
        "guard": asdict(guard),
        "parent": str(parent.resolve()) if parent else None,
        "settings": settings,
        "versions": versions(),
        "command": shlex.join(["segue", *sys.argv[1:]]) if Path(sys.argv[0]).name == "segue" else "python",
    }
    config["handover"] = online is not None and _last_method(config) not in (None, online[0])
    phases = phases_of(config)
    if not phases:
        raise UserError(f"{config['method']} learns online only: give --env and environment steps")
    config["phases"] = [
        {"name": p.name, "kind": "online" if p.online else "offline", "steps": p.steps} for p in phases
    ]
    earlier, outside = before(config)
    form = (outside or {}).get("form")
    if policy:
        _check_used(policy, names[-1], phases, normalized=bool(online and online[1].normalize_observations))
    check((*earlier, *phases), {"actor"} if form else set(), form)
    check_guard(guard, phases[-1])
    if any(phase.online for phase in phases) and environment is None:
        raise UserError("an online phase needs an environment: give one with --env")
    return config


def _check_used(policy: dict[str, Any], method: str, phases: tuple[Phase, ...], normalized: bool) -> None:
    """Refuse an outside policy that `phases` would not go on from."""
    if any("actor" in phase.fresh for phase in phases):
        raise UserError(
            f"{method} makes a policy of its own and would not use {policy['source']}: leave the policy out, or go on "
            f"with {CLONING}"
        )
    if policy["form"] and normalized:
        raise UserError(f"{policy['source']} sees observations as they are: leave --normalize-observations out")


def _last_method(config: dict[str, Any]) -> str | None:
    """The method that made the policy that the online phase begins from; "" if another program did."""
    if config["offline"]:
        return str(config["offline"]["method"])
    if not config["parent"]:
        return "" if config["policy"] else None
    parent = RunFolder.open(Path(config["parent"])).config
    return str((parent["online"] or parent["offline"])["method"])


def all_phases(folder: RunFolder) -> tuple[Phase, ...]:
    """The phases of a run, its parents' first."""
    config = folder.config
    return (*before(config)[0], *phases_of(config))


def load_models(folder: RunFolder, phase_name: str | None = None) -> tuple[Models, Phase, Spec, Preparation]:
    """The models that a finished phase (the last one, or the one named) handed on, and what is needed to use them.

    Raises UserError if it is not finished.
    """
    config = folder.config
    own = phases_of(config)
    finished = [phase for phase in own if (folder.models_path(phase.name) / checkpoint.MANIFEST).is_file()]
    if phase_name is not None:
        finished = [phase for phase in finished if phase.name == phase_name]
    if not finished:
        raise UserError(f"{folder.path}: no finished phase to use; finish the run first: segue resume {folder.path}")
    last = finished[-1]
    path = folder.models_path(last.name)
    manifest = checkpoint.read_manifest(path)
    spec, keys = Spec(*manifest["spec"]), make_keys(tuple(config["seeds"]), 0)
    models = outside_models(folder, spec, len(config["seeds"]))
    for phase in all_phases(folder):
        models = models_after(phase, models, spec, keys)
        if phase == last:
            break
    return checkpoint.load(path, models), last, spec, Preparation.from_dict(manifest["preparation"])


def named_environment(config: dict[str, Any], remedy: str) -> str | None:
    """The id of a run's environment. Raises UserError if only Python code knows how to build it."""
    if config.get("environment_from_python"):
        raise UserError(
            f"the run's environment is built by a Python function ('{config['environment']}'), which a file cannot "
            f"hold; from Python, give it again: segue.{remedy}"
        )
    name: str | None = config["environment"]
    return name


def is_finished(folder: RunFolder) -> bool:
    """Every phase ended, and its models and its results are there."""
    names = [phase.name for phase in phases_of(folder.config)]
    done = [entry["name"] for entry in (folder.summary or {}).get("phases", [])]
    return done == names and all((folder.models_path(name) / checkpoint.MANIFEST).is_file() for name in names)


def load_run_dataset(folder: RunFolder) -> Dataset | None:
    """The dataset of a run, from its folder if it was handed over in Python."""
    kept, name = folder.path / DATASET_FILE, folder.config["dataset"]
    if kept.is_file():
        return load_dataset(str(kept))
    return None if name == "none" else load_shown(name)


def load_shown(reference: str, transitions: int | None = None, environment_id: str | None = None) -> Dataset:
    """`load_dataset`, with a progress bar where data has to be generated."""
    from segue.cli.data import shown_progress

    with shown_progress(f"generating {reference}") as progress:
        return load_dataset(reference, transitions=transitions, environment_id=environment_id, progress=progress)


def execute(
    folder: RunFolder,
    dataset: Dataset | None = None,
    environment: EnvironmentMaker | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is left of a run; its summary.

    `dataset` and `environment` stand in for what the config names (an environment built by a function of the caller's
    cannot be named in a file). Raises UserError, Interrupted, Diverged.
    """
    if is_finished(folder):
        return folder.summary or {}
    config = folder.config
    phases, seeds = phases_of(config), tuple(config["seeds"])
    environment = environment or named_environment(config, f"resume({str(folder.path)!r}, environment=...)")
    if dataset is None:
        dataset = load_run_dataset(folder)
    models: Models = {}
    first_phase = 0
    if config["parent"]:
        parent = RunFolder.open(Path(config["parent"]))
        models, _, spec, preparation = load_models(parent)
        models = for_seeds(models, tuple(parent.config["seeds"]), seeds)
        first_phase = len(all_phases(parent))
    else:
        spec = spec_of(dataset, environment, config["environment_kwargs"])
        models = outside_models(folder, spec, len(seeds))
        preparation = preparation_of(recipe_of(config["offline"] or config["online"]), dataset, spec)
    if environment is not None:
        check_fit(dataset, spec, environment, config["environment_kwargs"])
    session = Session(
        folder=folder,
        phases=phases,
        spec=spec,
        dataset=dataset,
        preparation=preparation,
        environment=environment,
        environment_kwargs=config["environment_kwargs"],
        seeds=seeds,
        models=models,
        first_phase=first_phase,
        evaluation=Evaluation(**config["evaluation"]),
        quiet=quiet,
        labels=outside_labels(folder),
        guard=Guard(**config.get("guard", {})),
    )
    return session.run()


def preparation_of(recipe: Recipe, dataset: Dataset | None, spec: Spec) -> Preparation:
    """What a run does to observations and rewards. Raises UserError if there is no range of returns to scale by."""
    scale, bias = recipe.reward_scale, recipe.reward_bias
    if recipe.reward_scale_by_return_range:
        option = "--reward-scale-by-return-range"
        if dataset is None:
            raise UserError(f"{option} needs a dataset: give one with --dataset, or set --reward-scale")
        limit = dataset.max_episode_steps or DEFAULT_EPISODE_LIMIT
        try:
            scale *= return_range_scale(dataset.rewards, dataset.terminated, limit)
        except (ValueError, ZeroDivisionError):
            raise UserError(
                f"{option}: the dataset has no two whole episodes of different returns: set --reward-scale instead"
            ) from None
    if dataset is None:
        return replace(Preparation.identity(spec.observation_dim), reward_scale=scale, reward_bias=bias)
    preparation = Preparation.of_dataset(dataset.observations, recipe.normalize_observations, scale, bias)
    return replace(preparation, action_limit=recipe.action_limit)


def for_seeds(models: Models, have: tuple[int, ...], want: tuple[int, ...]) -> Models:
    """The models of seeds `want` from those of seeds `have`. Raises UserError for a seed that is not there."""
    missing = [seed for seed in want if seed not in have]
    if missing:
        raise UserError(f"the run has no seed {missing[0]}; it has {' '.join(map(str, have))}")
    rows = np.asarray([have.index(seed) for seed in want])
    return jax.tree.map(lambda x: np.asarray(x)[rows], models)


def spec_of(dataset: Dataset | None, environment: EnvironmentMaker | None, kwargs: dict[str, Any]) -> Spec:
    """Sizes of the task, from its data or else its environment."""
    if dataset is not None:
        return Spec(dataset.observation_dim, dataset.action_dim)
    assert environment is not None
    made = Environment(environment, kwargs)
    spec = Spec(made.observation_dim, made.action_dim)
    made.close()
    return spec


def check_fit(dataset: Dataset | None, spec: Spec, environment: EnvironmentMaker, kwargs: dict[str, Any]) -> None:
    """Raise UserError before anything compiles if the environment's spaces are not those of the data."""
    made = Environment(environment, kwargs)
    if dataset is not None:
        check_environment(dataset, made.gym)
    elif (made.observation_dim, made.action_dim) != tuple(spec):
        raise UserError(
            f"environment {made.id} has {made.observation_dim} observations and {made.action_dim} actions, the policy "
            f"{spec.observation_dim} and {spec.action_dim}: choose the environment that it was trained for"
        )
    made.close()


class Policy:
    """A trained policy: observation [S] (or [n, S], or a Dict) -> action [A] (or [n, A]) in the environment's units.

    One that acts on an episode's history (of the method odt) has to be told more: `reset` when an episode begins, and
    `rewarded` with what each action earned. The n rows are then n episodes side by side. Others need neither.
    """

    def __init__(self, phase: Phase, state: Any, preparation: Preparation, low: np.ndarray, high: np.ndarray):
        self.phase, self.state, self.preparation, self.low, self.high = phase, state, preparation, low, high
        # Prepared observations [n, S] -> actions [n, A] in [-1, 1].
        self.prepared = Player(phase.algorithm, state, Spec(len(preparation.mean), len(low)))

    def reset(self) -> None:
        """An episode begins: what was remembered is forgotten."""
        self.prepared.reset()

    def rewarded(self, reward: float | np.ndarray) -> None:
        """What the latest action earned, a raw reward; or [n] of them, where it chose for n observations."""
        self.prepared.rewarded(np.atleast_1d(np.asarray(self.preparation.reward(np.asarray(reward)))))

    def __call__(self, observation: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """The greedy action."""
        observation = flatten(observation) if isinstance(observation, dict) else np.asarray(observation, np.float32)
        batch = np.atleast_2d(observation)
        action = np.clip(self.prepared(self.preparation.observation(batch)), -1, 1)
        native = np.clip(self.low + (action + 1) / 2 * (self.high - self.low), self.low, self.high)
        return native[0] if observation.ndim == 1 else native


def load_policy(folder: RunFolder, seed: int | None = None, phase_name: str | None = None) -> Policy:
    """The policy of one seed (default: the first) after a finished phase (default: the last)."""
    models, phase, spec, preparation = load_models(folder, phase_name)
    if phase.algorithm.policy_kind is None:
        raise UserError(f"{folder.path}: phase '{phase.name}' has no policy")
    seeds = tuple(folder.config["seeds"])
    chosen = for_seeds(models, seeds, (seeds[0] if seed is None else seed,))
    state = acting_state(phase.algorithm, jax.tree.map(jnp.asarray, chosen), spec, make_keys((0,), 0))
    low, high = action_bounds(folder)
    return Policy(phase, jax.tree.map(lambda x: x[0], state), preparation, low, high)


def action_bounds(folder: RunFolder) -> tuple[np.ndarray, np.ndarray]:
    """Action bounds of the run's environment or, without one, of its dataset."""
    bounds = folder.config.get("action_bounds")
    if bounds is None:
        raise UserError(f"{folder.config_path}: no action bounds; it is of another version")
    return np.asarray(bounds[0], np.float32), np.asarray(bounds[1], np.float32)
