"""Segue from Python: `train`, `finetune`, `run`, `resume`, `open_run`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from segue.checkpoint import write_atomically
from segue.core.types import Spec
from segue.data import Dataset
from segue.environment import Environment, EnvironmentMaker
from segue.errors import UserError
from segue.evaluate import Evaluator, Score
from segue.experiment import (
    DATASET_FILE,
    Policy,
    action_bounds,
    check_fit,
    execute,
    for_seeds,
    load_models,
    load_policy,
    load_run_dataset,
    load_shown,
    make_config,
    named_environment,
    recipe_of,
    spec_of,
)
from segue.guard import Guard
from segue.offline_evaluation import Evaluator as OfflineEvaluator
from segue.offline_evaluation import OfflineEvaluation, OfflineReport, check_data
from segue.outside import Outside, PolicySource, accept
from segue.recipes import METHODS, recipe_type
from segue.recipes.base import Recipe
from segue.run_folder import OFFLINE_EVALUATION, RunFolder, as_json
from segue.session import Evaluation
from segue.settings import check_values, flat, with_changes

DEFAULT_UPDATES = 1_000_000  # offline gradient updates [all papers on MuJoCo]
DEFAULT_ONLINE_STEPS = 250_000  # environment steps [ssar.md 2.9]
LARGEST_SEED = 2**31 - 1


class Run:
    """A run on disk."""

    def __init__(self, path: str | Path):
        self.folder = RunFolder.open(Path(path))
        self.path = self.folder.path

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`: steps, times and scores of each finished phase."""
        return self.folder.summary or {}

    def policy(self, seed: int | None = None, phase: str | None = None) -> Policy:
        """A function of an observation [S] that returns an action [A] in the environment's own units."""
        return load_policy(self.folder, seed, phase)

    def evaluate(self, episodes: int = 50, environment: EnvironmentMaker | None = None) -> dict[int, Score]:
        """Scores of every seed's last policy over fresh episodes."""
        config = self.folder.config
        maker = environment or named_environment(config, "open_run(...).evaluate(environment=...)")
        if maker is None:
            raise UserError(f"{self.path}: the run has no environment; give one (--env)")
        kwargs = config["environment_kwargs"] if maker == config["environment"] else {}
        scores = {}
        for seed in config["seeds"]:
            policy = load_policy(self.folder, seed)
            check_fit(None, Spec(len(policy.preparation.mean), len(policy.low)), maker, kwargs)
            evaluator = Evaluator(maker, kwargs, policy.preparation)
            score = evaluator.score(policy.prepared, episodes, seed)
            assert score is not None
            scores[seed] = score
        return scores

    def evaluate_offline(
        self,
        dataset: str | Dataset | None = None,
        options: OfflineEvaluation | None = None,
        *,
        seeds: tuple[int, ...] | None = None,
        transitions: int | None = None,
        settings: dict[str, Any] | None = None,
        quiet: bool = False,
    ) -> OfflineReport:
        """The discounted value of every seed's last policy by fitted Q evaluation: no environment is touched.

        For `seeds` (default: all), on `dataset` (default: the run's). `settings` change `methods.fqe.FQE`. Written
        to the run's folder as `offline_evaluation.json` too. Raises Diverged where no value can be told.
        """
        options = options or OfflineEvaluation()
        options.check()
        if transitions is not None and not isinstance(dataset, str):
            raise UserError("--transitions says how much of --dataset to use: name the dataset too")
        check_values(settings or {})
        config = self.folder.config
        models, phase, spec, preparation = load_models(self.folder)
        if phase.algorithm.policy_kind is None:
            raise UserError(f"{self.path}: phase '{phase.name}' has no policy")
        have = tuple(config["seeds"])
        chosen = [(seed, for_seeds(models, have, (seed,))) for seed in seeds or have]
        if isinstance(dataset, str):
            environment = None if config.get("environment_from_python") else config["environment"]
            dataset = load_shown(dataset, transitions, environment)
        data = dataset or load_run_dataset(self.folder)
        if data is None:
            raise UserError(f"{self.path}: the run has no dataset; give one (--dataset)")
        check_data(data, spec, *action_bounds(self.folder))
        discount = phase.algorithm.discount if options.discount is None else options.discount
        evaluator = OfflineEvaluator(data, preparation, options, discount, settings or {})
        estimates = [
            evaluator.evaluate(phase.algorithm, jax.tree.map(lambda x: x[0], one), seed, quiet) for seed, one in chosen
        ]
        report = evaluator.report(phase.algorithm, estimates)
        write_atomically(self.path / OFFLINE_EVALUATION, json.dumps(as_json(report.as_dict()), indent=1) + "\n")
        return report


def make_recipe(method: str, settings: dict[str, Any] | Recipe | None) -> Recipe:
    """A method's settings: a whole recipe as it is, or the defaults with flat changes."""
    if isinstance(settings, Recipe):
        return settings
    recipe: Recipe = with_changes(recipe_type(method)(), settings or {})
    return recipe


def start(
    *,
    offline: tuple[str, Recipe] | None,
    online: tuple[str, Recipe] | None,
    dataset: str | Dataset | None,
    environment: EnvironmentMaker | None,
    out: str | Path,
    updates: int = DEFAULT_UPDATES,
    online_steps: int = DEFAULT_ONLINE_STEPS,
    seeds: tuple[int, ...] = (0,),
    evaluation: Evaluation = Evaluation(),
    transitions: int | None = None,
    parent: Path | None = None,
    policy: PolicySource | None = None,
    guard: Guard = Guard(),
    quiet: bool = False,
) -> Run:
    """Check everything, create the run folder, run. It begins from the run `parent`, or from an outside `policy`."""
    recipes = [entry[1] for entry in (offline, online) if entry is not None]
    check_options(recipes, updates if offline else 1, online_steps if online else 1, seeds, evaluation)
    check_values(asdict(guard))
    RunFolder.check_free(Path(out))
    environment_id = environment if isinstance(environment, str) else None
    data = load_shown(dataset, transitions, environment_id) if isinstance(dataset, str) else dataset
    kwargs: dict[str, Any] = {}
    if data is not None:
        environment = environment or data.environment_id
        kwargs = data.environment_kwargs if environment == data.environment_id else {}
    outside = _accept(policy, data, environment, kwargs) if policy is not None else None
    config = make_config(
        offline=offline,
        online=online,
        dataset=None if data is None else (data.source or "in memory"),
        environment=environment,
        environment_kwargs=kwargs,
        updates=updates,
        online_steps=online_steps,
        seeds=seeds,
        evaluation=evaluation,
        parent=parent,
        policy=outside.as_config() if outside else None,
        guard=guard,
    )
    config["action_bounds"] = _action_bounds(data, environment, kwargs)
    if outside and environment is not None:
        spec, episodes = spec_of(data, environment, kwargs), evaluation.result_episodes
        check_fit(data, spec, environment, kwargs)
        mean, error = outside.score(environment, kwargs, spec, episodes, seeds[0])
        config["policy"] |= {"return_mean": mean, "return_standard_error": error, "episodes": episodes}
        if not quiet:
            policy_score = f"return {mean:.1f} ± {error:.1f} over {episodes} episodes"
            print(f"{outside.policy.name} ({outside.policy.description}): {policy_score}", flush=True)
    folder = RunFolder.create(Path(out), config)
    try:
        if isinstance(dataset, Dataset) and not dataset.source:
            from segue.data.convert import convert

            convert(dataset, folder.path / DATASET_FILE)
        if outside:
            outside.keep(folder, data)
        execute(folder, data, environment if callable(environment) else None, quiet)
    except UserError:
        folder.discard_if_unused()
        raise
    return Run(folder.path)


def _accept(
    policy: PolicySource,
    data: Dataset | None,
    environment: EnvironmentMaker | None,
    kwargs: dict[str, Any],
) -> Outside:
    if data is None and environment is None:
        raise UserError("a policy from outside needs to know its task: give --dataset or --env")
    outside = accept(policy, spec_of(data, environment, kwargs), _action_bounds(data, environment, kwargs))
    if outside.native is None and data is None:
        raise UserError(
            f"{outside.policy.name} is known by its actions alone: give a dataset (--dataset), on whose "
            "observations it can be cloned"
        )
    return outside


def check_options(
    recipes: list[Recipe], updates: int, online_steps: int, seeds: tuple[int, ...], evaluation: Evaluation
) -> None:
    """Refuse numbers that make no sense before a dataset is loaded or generated."""
    if len(set(seeds)) != len(seeds) or not seeds:
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: give at least one seed, and each once")
    if not all(0 <= seed <= LARGEST_SEED for seed in seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: give seeds from 0 to {LARGEST_SEED}")
    for steps in (updates, online_steps):
        if steps < 1:
            raise UserError(f"{steps} steps: give at least 1")
    for recipe in recipes:
        check_values(dict(flat(recipe)))
    check_values(asdict(evaluation))


def _action_bounds(
    data: Dataset | None, environment: EnvironmentMaker | None, kwargs: dict[str, Any]
) -> list[list[float]]:
    if data is not None:
        return [data.action_low.tolist(), data.action_high.tolist()]
    assert environment is not None
    made = Environment(environment, kwargs)
    bounds = [made.action_low.tolist(), made.action_high.tolist()]
    made.close()
    return bounds


def train(
    method: str,
    dataset: str | Dataset | None = None,
    environment: EnvironmentMaker | None = None,
    *,
    out: str | Path,
    steps: int = DEFAULT_UPDATES,
    settings: dict[str, Any] | Recipe | None = None,
    **options: Any,
) -> Run:
    """Learn from `dataset` for `steps` gradient updates; a method that needs none learns online for `steps` steps.

    `environment` (an id or a function that builds one) is for evaluation. Options as of `start`.
    """
    recipe = make_recipe(method, settings)
    if not recipe.needs_dataset:
        if environment is None:
            raise UserError(f"{method} learns online: give an environment (--env)")
        return start(
            offline=None, online=(method, recipe), dataset=dataset, environment=environment, out=out,
            online_steps=steps, **options,
        )
    if dataset is None:
        raise UserError(f"{method} learns from a dataset: give one (--dataset)")
    return start(
        offline=(method, recipe), online=None, dataset=dataset, environment=environment, out=out, updates=steps,
        **options,
    )


def finetune(
    run: Run | str | Path | None = None,
    environment: EnvironmentMaker | None = None,
    *,
    out: str | Path,
    steps: int = DEFAULT_ONLINE_STEPS,
    method: str | None = None,
    settings: dict[str, Any] | Recipe | None = None,
    dataset: str | Dataset | None = None,
    seeds: tuple[int, ...] | None = None,
    policy: PolicySource | None = None,
    **options: Any,
) -> Run:
    """Go on from a run's last policy in `environment` for `steps` steps, by its own method or another.

    The replay starts from `dataset`, by default the one that the run learned from. Without a run it goes on from
    `policy`, by `method`: a function observation -> action, or a file of another program (`segue.policies`).
    """
    if (run is None) == (policy is None):
        raise UserError("finetune goes on from a run or from a policy: give one of the two")
    if run is None:
        if method is None:
            raise UserError("a policy has no method of its own: name one with --method, such as o2sac or o2td3")
        return start(
            offline=None,
            online=(method, continuing(make_recipe(method, None), settings or {}) if not isinstance(settings, Recipe)
                    else settings),
            dataset=dataset, environment=environment, out=out, online_steps=steps, seeds=seeds or (0,), policy=policy,
            **options,
        )  # fmt: skip
    parent = run if isinstance(run, Run) else Run(run)
    config = parent.folder.config
    before = config["online"] or config["offline"]
    if isinstance(settings, Recipe):
        recipe = settings
    elif method is None or method == before["method"]:
        recipe = with_changes(recipe_of(before), settings or {})
    else:
        recipe = continuing(make_recipe(method, None), settings or {})
    kept = parent.path / DATASET_FILE
    if dataset is None and config["dataset"] != "none":
        dataset = str(kept) if kept.is_file() else config["dataset"]
    return start(
        offline=None,
        online=(method or before["method"], recipe),
        dataset=dataset,
        environment=environment or named_environment(config, "finetune(..., environment=...)"),
        out=out,
        online_steps=steps,
        seeds=tuple(config["seeds"]) if seeds is None else seeds,
        parent=parent.path,
        **options,
    )


def continuing(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """The settings of a method that goes on from another's policy, with flat changes."""
    continued: Recipe = with_changes(recipe.continuing(), settings)
    return continued


def run(
    method: str,
    dataset: str | Dataset,
    environment: EnvironmentMaker | None = None,
    *,
    out: str | Path,
    offline: str | None = None,
    steps: int = DEFAULT_UPDATES,
    online_steps: int = DEFAULT_ONLINE_STEPS,
    settings: dict[str, Any] | Recipe | None = None,
    offline_settings: dict[str, Any] | Recipe | None = None,
    **options: Any,
) -> Run:
    """Offline by `offline` (default: the same method), then online by `method`."""
    online_recipe = make_recipe(method, settings)
    if offline is None and not online_recipe.needs_dataset:
        offline_methods = ", ".join(name for name, kind in METHODS.items() if kind.needs_dataset)
        raise UserError(f"{method} has no offline phase: name one with --offline ({offline_methods})")
    if offline is not None and offline != method:
        first = (offline, make_recipe(offline, offline_settings))
        if not isinstance(settings, Recipe):
            online_recipe = continuing(make_recipe(method, None), settings or {})
    else:
        first = (method, online_recipe)
    if not first[1].needs_dataset:
        raise UserError(f"{first[0]} has no offline phase: choose --offline td3_bc or td3_bc_ssar")
    return start(
        offline=first, online=(method, online_recipe), dataset=dataset, environment=environment, out=out,
        updates=steps, online_steps=online_steps, **options,
    )


def resume(path: str | Path, environment: EnvironmentMaker | None = None, quiet: bool = False) -> Run:
    """Go on with a run that was interrupted, from its last checkpoint; nothing happens to a finished one.

    An environment built by a function must be given again: a file cannot hold it.
    """
    folder = RunFolder.open(Path(path))
    execute(folder, environment=environment, quiet=quiet)
    return Run(folder.path)


def open_run(path: str | Path) -> Run:
    """An existing run."""
    return Run(path)

