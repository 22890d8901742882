"""The folder that generated datasets are kept in, and the files in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from segue.data.files import written_atomically


def cache_folder() -> Path:
    """SEGUE_CACHE, else `segue` in the user's cache folder of the platform."""
    if os.environ.get("SEGUE_CACHE"):
        return Path(os.environ["SEGUE_CACHE"]).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "segue"


def read(path: Path) -> dict[str, np.ndarray] | None:
    """The columns kept at `path`; None if there are none, or the file is damaged and has to be made again."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.exists():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        return None


def write(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Keep the columns at `path`, all or nothing. Raises `DataError` if the folder cannot be written."""
    from safetensors.numpy import save_file

    with written_atomically(path) as temporary:
        save_file(columns, temporary)
