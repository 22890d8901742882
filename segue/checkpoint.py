"""Checkpoints: a folder with `arrays.safetensors` and `manifest.json`, renamed into place when it is whole.

No pickle: reading one runs no code. Arrays are named by their path in the pytree; the tree's shape comes from the
program that reads it, and any difference is an error that names the array.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from segue.core.types import PyTree
from segue.errors import UserError

ARRAYS, MANIFEST = "arrays.safetensors", "manifest.json"


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(folder: Path, tree: PyTree, manifest: dict[str, Any]) -> None:
    """Write `tree` and `manifest` to `folder`, atomically; an older folder of that name is replaced."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    save_file({jax.tree_util.keystr(path): np.ascontiguousarray(x) for path, x in leaves}, temporary / ARRAYS)
    (temporary / MANIFEST).write_text(json.dumps(manifest))
    for name in (ARRAYS, MANIFEST):
        _sync(temporary / name)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    _sync(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was saved beside the arrays."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {folder}: cannot be read ({error})") from None
    return manifest


def load(folder: Path, template: PyTree) -> PyTree:
    """The saved arrays in the tree of `template` (arrays or shapes).

    Raises UserError if an array is missing, left over, or of another shape or type.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    found = []
    try:
        with safe_open(folder / ARRAYS, framework="numpy") as file:
            names = set(file.keys())
            for path, want in leaves:
                name = jax.tree_util.keystr(path)
                if name not in names:
                    raise UserError(f"checkpoint {folder}: array {name} is missing; it is of another method or version")
                array = file.get_tensor(name)
                if array.shape != want.shape or array.dtype != want.dtype:
                    raise UserError(
                        f"checkpoint {folder}: array {name} is {array.dtype}{list(array.shape)}, expected "
                        f"{want.dtype}{list(want.shape)}; it is of other settings"
                    )
                found.append(array)
    except OSError as error:
        raise UserError(f"checkpoint {folder}: cannot be read ({error})") from None
    left_over = names - {jax.tree_util.keystr(path) for path, _ in leaves}
    if left_over:
        raise UserError(f"checkpoint {folder}: array {min(left_over)} is not expected; it is of another method or version")
    return jax.tree_util.tree_unflatten(structure, found)
