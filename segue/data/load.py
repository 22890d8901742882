"""References to datasets and the one function that loads them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from segue.data import builtin, d4rl, minari_store, ogbench, recipes, tables
from segue.data.dataset import Dataset
from segue.data.errors import DataError

Progress = Callable[[int, int], None]  # (rows done, rows in all)

FILE_READERS = {"d4rl": d4rl.load, "ogbench": ogbench.load}


def load_dataset(
    reference: str,
    *,
    transitions: int | None = None,
    environment_id: str | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Load the dataset that `reference` names.

    `segue/NAME` is generated on first use and kept in `cache_dir` (default: SEGUE_CACHE or the user's cache folder);
    `minari:ID`, `d4rl:PATH`, `ogbench:PATH` and a plain .npz, .parquet or .csv path are read. `transitions` is the size
    to generate, or the number of first rows to keep. `environment_id` replaces the id the data names, and its action
    bounds those of the file. `progress` is called while generating. Raises `DataError`.
    """
    reference, options = split_options(reference)
    asked = options.get("transitions") if transitions is None else transitions
    transitions = None if asked is None else _positive(asked)
    environment_id = environment_id or options.get("env")
    if reference.startswith("segue/"):
        cache = None if cache_dir is None else Path(cache_dir)
        return builtin.load(reference.removeprefix("segue/"), transitions, environment_id, cache, progress)
    scheme, _, rest = reference.partition(":")
    if scheme == "minari":
        return minari_store.load(rest, transitions, environment_id, _source(reference, transitions, environment_id))
    if scheme in FILE_READERS:
        path = Path(rest).expanduser().resolve()
        source = _source(f"{scheme}:{path}", transitions, environment_id)
        return FILE_READERS[scheme](path, transitions, environment_id, source)
    path = Path(reference).expanduser()
    if path.suffix.lower() in tables.READERS or path.exists():
        path = path.resolve()
        return tables.load(path, transitions, environment_id, _source(str(path), transitions, environment_id))
    raise unknown_reference(reference)


def list_datasets(cache_dir: str | Path | None = None) -> list[dict[str, object]]:
    """The built-in datasets: reference, environment, default size, whether usable here, and a line about each."""
    return builtin.describe(None if cache_dir is None else Path(cache_dir))


def split_options(reference: str) -> tuple[str, dict[str, str]]:
    """`NAME?transitions=10&env=E` as ("NAME", {"transitions": "10", "env": "E"})."""
    match = re.search(r"\?((?:transitions|env)=[^?]*)$", reference)
    if match is None:
        return reference, {}
    return reference[: match.start()], dict(parse_qsl(match[1]))


def unknown_reference(reference: str) -> DataError:
    """The error for a reference of no known form, with the nearest built-in names."""
    known = [f"segue/{name}" for name in recipes.names()]
    nearest = difflib.get_close_matches(reference, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return DataError(
        f"unknown dataset '{reference}'; {hint}A dataset is segue/NAME, minari:ID, d4rl:PATH, ogbench:PATH, or a .npz, "
        ".parquet or .csv file; `segue data list` shows the built-in ones"
    )


def _source(reference: str, transitions: int | None, environment_id: str | None) -> str:
    """The reference with what else is needed to load the same rows again."""
    options = {"transitions": transitions, "env": environment_id}
    given = {name: value for name, value in options.items() if value is not None}
    return f"{reference}?{urlencode(given, safe='/:')}" if given else reference


def _positive(transitions: int | str) -> int:
    try:
        value = int(transitions)
    except ValueError:
        value = 0
    if value < 1:
        raise DataError(f"transitions={transitions}: give a whole number of at least 1")
    return value
