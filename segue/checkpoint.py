"""Checkpoints: a folder with `arrays.safetensors` and `manifest.json`, renamed into place when it is whole.

No pickle: reading one runs no code. Arrays are named by their path in the pytree; the tree's shape comes from the
program that reads it, and any difference is an error that names the array.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
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


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


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
    manifest = manifest | {"arrays_crc32": _checksum(temporary / ARRAYS)}
    (temporary / MANIFEST).write_text(json.dumps(manifest))
    for name in (ARRAYS, MANIFEST):
        _sync(temporary / name)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    _sync(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was saved beside the arrays."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {folder}: cannot be read ({error})") from None
    if not isinstance(manifest, dict):
        raise UserError(f"checkpoint {folder}: cannot be read ({MANIFEST} holds no JSON object)")
    return manifest


def check_whole(folder: Path) -> None:
    """Raise UserError if a file of the checkpoint is missing, cut short or altered."""
    manifest = read_manifest(folder)
    try:
        checksum = _checksum(folder / ARRAYS)
    except OSError as error:
        raise UserError(f"checkpoint {folder}: cannot be read ({error})") from None
    if checksum != manifest.get("arrays_crc32"):
        raise UserError(f"checkpoint {folder}: {ARRAYS} is damaged")


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
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder}: cannot be read ({error})") from None
    left_over = names - {jax.tree_util.keystr(path) for path, _ in leaves}
    if left_over:
        name = min(left_over)
        raise UserError(f"checkpoint {folder}: array {name} is not expected; it is of another method or version")
    return jax.tree_util.tree_unflatten(structure, found)
