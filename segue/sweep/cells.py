"""The cells of a sweep's grid: each is a run folder, the command that makes it, and what is there of it already."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segue.errors import UserError
from segue.sweep.file import Settings, Sweep

State = Literal["new", "begun", "finished"]


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of the grid."""

    label: str
    method: str
    command: str  # train, run or finetune
    dataset: str
    seeds: tuple[int, ...]
    settings: Settings
    folder: Path
    parent: Cell | None  # the run that `finetune` goes on from

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.label} on {self.dataset}, seed {' '.join(map(str, self.seeds))}"

    @property
    def log(self) -> Path:
        """What the run's process says."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def words(self) -> list[str]:
        """The command line after `segue`."""
        if self.parent is None:
            head = [self.command, self.method, "--dataset", self.dataset, "--seeds", *map(str, self.seeds)]
        else:
            head = [self.command, str(self.parent.folder), "--method", self.method]
        options = [word for name, value in self.settings.items() for word in _option(name, value)]
        return [*head, *options, "--out", str(self.folder)]

    def to_do(self) -> list[str]:
        """The command line after `segue` for what is left of it."""
        return self.words() if state(self.folder) == "new" else ["resume", str(self.folder)]

    def line(self) -> list[list[str]]:
        """Its command and those of the runs that it goes on from, the first one first."""
        return [*(self.parent.line() if self.parent else []), self.words()]


def _option(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return ["--" + name.replace("_", "-"), *map(str, values)]


def cells(sweep: Sweep) -> list[Cell]:
    """The grid, seed by seed, so that a sweep that is stopped early has something to show of every method."""
    size = sweep.seeds_per_run
    groups = [sweep.seeds[start : start + size] for start in range(0, len(sweep.seeds), size)]
    labels = _folders({method.label: method.label for method in sweep.methods}, f"{sweep.path}: two labels")
    datasets = _folders({name: short_dataset(name) for name in sweep.datasets}, f"{sweep.path}: two datasets")
    methods = {method.label: method for method in sweep.methods}
    made: dict[tuple[str, str, tuple[int, ...]], Cell] = {}

    def make(label: str, dataset: str, seeds: tuple[int, ...]) -> Cell:
        key = (label, dataset, seeds)
        if key not in made:
            method = methods[label]
            own = f"seed{'s' if len(seeds) > 1 else ''}-{'-'.join(map(str, seeds))}"
            made[key] = Cell(
                label=label,
                method=method.name,
                command=method.command,
                dataset=dataset,
                seeds=seeds,
                settings=sweep.settings_of(method, dataset),
                folder=sweep.out / labels[label] / datasets[dataset] / own,
                parent=make(method.parent, dataset, seeds) if method.parent else None,
            )
        return made[key]

    return [make(label, dataset, seeds) for seeds in groups for dataset in sweep.datasets for label in methods]


def short_dataset(reference: str) -> str:
    """A dataset in a few words: `segue/hopper-medium` is `hopper-medium`, a file is its name."""
    scheme, _, rest = reference.rpartition(":")
    if reference.startswith("segue/"):
        return reference.removeprefix("segue/")
    return rest if scheme == "minari" else Path(rest).stem


def _folders(names: dict[str, str], two: str) -> dict[str, str]:
    """A folder for each of `names` (name -> its short form). Raises UserError if two would have the same."""
    folders: dict[str, str] = {}
    for name, short in names.items():
        folder = re.sub(r"[^\w.+=-]+", "-", short).strip("-.") or "-"
        for other, taken in folders.items():
            if taken.lower() == folder.lower():
                raise UserError(f"{two}, '{other}' and '{name}', would share the folder '{folder}': rename one of them")
        folders[name] = folder
    return folders


# -- what is on the disk; read without JAX, so that a sweep's own process stays small


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a run's; {} if there is none, or it is damaged (which `segue resume` will tell)."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def state(folder: Path) -> State:
    """How far a run is. What a kill left of a folder before its config was written is nothing."""
    if not (folder / "config.json").exists():
        return "new"
    planned = [phase["name"] for phase in read_json(folder / "config.json").get("phases", [])]
    done = [phase["name"] for phase in read_json(folder / "summary.json").get("phases", [])]
    models = all((folder / "models" / name / "manifest.json").is_file() for name in planned)
    return "finished" if planned and planned == done and models else "begun"


def clear_left_over(folder: Path) -> None:
    """Remove a folder in which a kill left nothing but files of a run that had not begun."""
    if (folder / "config.json").exists() or not folder.is_dir():
        return
    if all(path.name.startswith(".") or path.name == "metrics.jsonl" for path in folder.iterdir()):
        shutil.rmtree(folder)


def is_locked(folder: Path) -> bool:
    """Another process works on the run: one that outlived the sweep which started it, or a user's own."""
    try:
        with (folder / "config.json").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def check_same(cell: Cell) -> None:
    """Raise UserError if the cell's folder holds a run that another command made: its results are not this cell's."""
    if state(cell.folder) == "new":
        return
    config = read_json(cell.folder / "config.json")
    made = shlex.split(str(config.get("command", "")))
    remedy = f"give the method another `label`, the sweep another `out`, or remove {cell.folder}"
    if config and (len(made) < 3 or made[0] != "segue"):
        raise UserError(f"{cell.folder} holds a run that no sweep made: {remedy}")
    if config and (difference := _difference(_parts(made[1:]), _parts(cell.words()))):
        raise UserError(f"{cell.folder} holds a run of other settings ({difference}): {remedy}")


def _parts(words: list[str]) -> dict[str, str]:
    """A command line as what decides its result: the command, its subject, its options."""
    parts = {"command": words[0]}
    if words[0] != "finetune":  # that names its parent's folder, which may have moved together with this one
        parts["method"] = words[1]
    key = ""
    for word in words[2:]:
        if word.startswith("--"):
            key = word
            parts[key] = ""
        else:
            parts[key] = f"{parts.get(key, '')} {word}".strip()
    parts.pop("--out", None)
    return parts


def _difference(there: dict[str, str], here: dict[str, str]) -> str:
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return "; ".join(f"{key}: {there.get(key, 'none')} there, {here.get(key, 'none')} here" for key in keys)
