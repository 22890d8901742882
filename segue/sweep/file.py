"""A sweep's TOML file, read and checked as far as that goes without knowing methods and their settings."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from segue.errors import UserError

MEMORY_GB_PER_JOB = 1.5  # SSAR on 1,000,000 Hopper transitions, offline and online, peaks at 1.2 [results/benchmarks]
SET_BY_THE_SWEEP = {"dataset": "datasets", "seeds": "seeds", "out": "out", "method": "name"}  # settings -> their keys

Settings = dict[str, Any]
SETTINGS = ("settings", "settings_for")
PLACES = ("seeds_per_run", "jobs", "cores_per_job", "memory_gb_per_job")
KEYS = ("out", "datasets", "seeds", "command", "methods", *SETTINGS, *PLACES)
METHOD_KEYS = ("name", "label", "command", "from", "vary", *SETTINGS)


@dataclass(frozen=True)
class Method:
    """A line of the table: a method with its settings on each dataset."""

    name: str
    label: str
    command: str  # train, run or finetune
    parent: str | None  # label of the method whose runs `finetune` goes on from
    settings: Settings
    settings_for: dict[str, Settings]  # by dataset


@dataclass(frozen=True)
class Sweep:
    """The whole file."""

    path: Path
    out: Path
    methods: tuple[Method, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    seeds_per_run: int
    jobs: int | None
    cores_per_job: int | None
    memory_gb_per_job: float
    settings: Settings
    settings_for: dict[str, Settings]

    def settings_of(self, method: Method, dataset: str) -> Settings:
        """From the most general to the most special, the later overrules."""
        layers = (self.settings, self.settings_for, method.settings, method.settings_for)
        general, on_dataset, own, own_on_dataset = layers
        return general | on_dataset.get(dataset, {}) | own | own_on_dataset.get(dataset, {})


def read(path: Path) -> Sweep:
    """Read a sweep's file. Raises UserError in one line that names the file and the place in it."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `segue sweep --help` shows an example") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder; name the sweep's .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    table = _Table(content, str(path), KEYS)
    out, datasets = table.take("out", TEXT), tuple(table.take("datasets", TEXTS))
    command = table.take("command", COMMAND, "train")
    entries = table.take("methods", TABLES)
    sweep = Sweep(
        path=path,
        out=Path(out).expanduser(),
        methods=(),
        datasets=datasets,
        seeds=tuple(table.take("seeds", SEEDS, [0])),
        seeds_per_run=table.take("seeds_per_run", COUNT, 1),
        jobs=table.take("jobs", COUNT, None),
        cores_per_job=table.take("cores_per_job", COUNT, None),
        memory_gb_per_job=table.take("memory_gb_per_job", AMOUNT, MEMORY_GB_PER_JOB),
        settings=table.settings("settings"),
        settings_for=table.settings_for(datasets),
    )
    methods = [
        method
        for number, entry in enumerate(entries, start=1)
        for method in _methods(_Table(entry, f"{path}: [[methods]] number {number}", METHOD_KEYS), command, datasets)
    ]
    _check_labels(path, methods)
    return replace(sweep, methods=tuple(methods))


def _methods(table: _Table, command: str, datasets: tuple[str, ...]) -> Iterable[Method]:
    """An entry of [[methods]]: one method, or one for each combination of the values that it varies."""
    name = table.take("name", TEXT)
    label, parent = table.take("label", TEXT, name), table.take("from", TEXT, None)
    command = table.take("command", ANY_COMMAND, "finetune" if parent else command)
    settings, settings_for = table.settings("settings"), table.settings_for(datasets)
    varied = table.settings("vary")
    if (command == "finetune") != (parent is not None):
        raise UserError(
            f"{table.where}: command = \"finetune\" and `from` (the label of the method whose runs it goes on from) "
            "go together"
        )  # fmt: skip
    for key, values in varied.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{table.where}: vary.{key}: give a list of values, one method is made for each")
        if any(key in own for own in (settings, *settings_for.values())):
            raise UserError(f"{table.where}: {key} is under both `vary` and the method's settings: choose one")
    for combination in itertools.product(*varied.values()):
        chosen = dict(zip(varied, combination, strict=True))
        words = ", ".join(f"{key}={_shown(value)}" for key, value in chosen.items())
        full = f"{label} {words}" if words else label
        yield Method(name, full, command, parent, settings | chosen, settings_for)


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_labels(path: Path, methods: list[Method]) -> None:
    labels = [method.label for method in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{path}: two methods are called '{label}': give each a `label` of its own")
    parents = {method.label: method.parent for method in methods}
    for method in methods:
        if method.parent is not None and method.parent not in labels:
            hint = _near(method.parent, labels)
            raise UserError(f"{path}: '{method.label}': no method is called '{method.parent}'{hint}")
        line, at = [method.label], method.parent
        while at is not None:
            if at in line:
                raise UserError(f"{path}: '{method.label}' goes on from itself: {' from '.join([*line, at])}")
            line.append(at)
            at = parents[at]


# -- values and what they have to be: a test and its words

Kind = tuple[Callable[[Any], bool], str]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are(value: Any, test: Callable[[Any], bool]) -> bool:
    """A list with something in it, all of it right, nothing twice."""
    return isinstance(value, list) and bool(value) and all(map(test, value)) and len(set(value)) == len(value)


def _is_setting(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, list) and all(map(_is_setting, value)))


TEXT: Kind = (_is_text, "text in quotes")
TEXTS: Kind = (lambda x: _are(x, _is_text), "a list of texts, each once")
COUNT: Kind = (_is_count, "a whole number of at least 1")
SEEDS: Kind = (lambda x: _are(x, lambda seed: _is_count(seed, 0)), "a list of whole numbers from 0, each once")
AMOUNT: Kind = (lambda x: isinstance(x, int | float) and not isinstance(x, bool) and x > 0, "a number above 0")
COMMAND: Kind = (lambda x: x in ("train", "run"), '"train" or "run"')
ANY_COMMAND: Kind = (lambda x: x in ("train", "run", "finetune"), '"train", "run" or "finetune"')
TABLE: Kind = (lambda x: isinstance(x, dict), "a table of settings")
TABLES: Kind = (
    lambda x: isinstance(x, list) and bool(x) and all(isinstance(one, dict) for one in x),
    "at least one [[methods]] with a `name`",
)
REQUIRED = object()


class _Table:
    """A TOML table: its values by key, each of its kind."""

    def __init__(self, content: dict[str, Any], where: str, keys: tuple[str, ...]):
        """Raises UserError for a key that is none of `keys`."""
        self.content, self.where = content, where
        unknown = [key for key in content if key not in keys]
        if unknown:
            known = f": it knows {', '.join(keys)}; options of the command belong under `settings`"
            raise UserError(f"{where}: unknown key '{unknown[0]}'{_near(unknown[0], keys) or known}")

    def take(self, key: str, kind: Kind, default: Any = REQUIRED) -> Any:
        """The value of `key`. Raises UserError if it is missing without a default, or of another kind."""
        test, words = kind
        if key not in self.content and default is not REQUIRED:
            return default
        if key not in self.content:
            raise UserError(f"{self.where}: `{key}` is missing: give {words}")
        if not test(self.content[key]):
            raise UserError(f"{self.where}: {key} = {self.content[key]!r}: give {words}")
        return self.content[key]

    def settings(self, key: str) -> Settings:
        """A table of settings, their names with underscores."""
        return self._checked(self.take(key, TABLE, {}), key)

    def settings_for(self, datasets: tuple[str, ...]) -> dict[str, Settings]:
        """Tables of settings by dataset."""
        tables = self.take("settings_for", TABLE, {})
        for dataset, settings in tables.items():
            if dataset not in datasets:
                hint = _near(dataset, datasets)
                raise UserError(f'{self.where}: settings_for."{dataset}" is none of the sweep\'s datasets{hint}')
            if not isinstance(settings, dict):
                raise UserError(f'{self.where}: settings_for: write [settings_for."DATASET"], then the settings')
        return {dataset: self._checked(settings, f'settings_for."{dataset}"') for dataset, settings in tables.items()}

    def _checked(self, settings: Settings, key: str) -> Settings:
        named = {name.replace("-", "_"): value for name, value in settings.items()}
        for name, value in named.items():
            if name in SET_BY_THE_SWEEP:
                raise UserError(f"{self.where}: {key}.{name} is set by the sweep: see its `{SET_BY_THE_SWEEP[name]}`")
            if not _is_setting(value):
                raise UserError(f"{self.where}: {key}.{name}: give a number, text, true, false or a list of them")
        return named


def _near(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
