"""The tensors in a file of `torch.save`, read without PyTorch and without unpickling.

Such a file is an archive of raw numbers and a pickle that says how they make up tensors. A pickle is a program that can
call anything. Here its instructions are read as data: strings, numbers, tuples, dicts, and the few names that tensors
need. Every other name or instruction is refused; nothing is imported or called.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from typing import Any, NamedTuple

import numpy as np

from segue.errors import UserError

ORDERED_DICT, REBUILD = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
STORAGES = {
    "torch DoubleStorage": "f8", "torch FloatStorage": "f4", "torch HalfStorage": "f2", "torch LongStorage": "i8",
    "torch IntStorage": "i4", "torch ShortStorage": "i2", "torch CharStorage": "i1", "torch ByteStorage": "u1",
    "torch BoolStorage": "?",
}  # fmt: skip
GLOBALS = {ORDERED_DICT, REBUILD, *STORAGES}
CONSTANTS = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
SKIPPED = {"PROTO", "FRAME"}
MARK = object()


class Global(NamedTuple):
    """A name that the pickle mentions."""

    name: str


class Storage(NamedTuple):
    """Raw numbers in the archive."""

    kind: str
    key: str
    length: int


class Tensor(NamedTuple):
    """How a part of a storage makes a tensor; all in numbers, not bytes."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_tensors(content: bytes, where: str) -> dict[str, np.ndarray]:
    """Name -> tensor of a saved state dict. Raises UserError if it is damaged, or holds anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (listing,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
            folder = listing.removesuffix("data.pkl")
            tensors = state_dict(archive.read(listing), where)
            order = "<"
            if folder + "byteorder" in archive.namelist() and archive.read(folder + "byteorder") == b"big":
                order = ">"
            return {name: _numbers(archive, folder, order, tensor) for name, tensor in tensors.items()}
    except (zipfile.BadZipFile, EOFError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"{where}: it is damaged, or was not written by torch.save 1.6 or newer ({words})") from None


def state_dict(pickle: bytes, where: str) -> dict[str, Tensor]:
    """What the pickle of a state dict describes. Raises UserError for what it may not hold, ValueError for nonsense."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def from_mark() -> list[Any]:
        at = max(i for i, x in enumerate(stack) if x is MARK)
        taken = stack[at + 1 :]
        del stack[at:]
        return taken

    for opcode, arg, _ in pickletools.genops(pickle):
        name = opcode.name
        if name in CONSTANTS:
            stack.append(arg)
        elif name in FIXED:
            stack.append(FIXED[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(str(arg))] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(arg))])
        elif name == "TUPLE":
            stack.append(tuple(from_mark()))
        elif name in TUPLES:
            taken = tuple(stack[-TUPLES[name] :])
            del stack[-TUPLES[name] :]
            stack.append(taken)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                last, first = stack.pop(), stack.pop()
                if not (isinstance(first, str) and isinstance(last, str)):
                    raise ValueError("a name in it is malformed")
                arg = f"{first} {last}"
            if arg not in GLOBALS:
                raise UserError(
                    f"{where}: it asks for '{str(arg).replace(' ', '.')}', which no file of tensors needs; it was not "
                    "run, and the file is not read: get it from a source that you trust"
                )
            stack.append(Global(str(arg)))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(_made(called, arguments))
        elif name in ("SETITEM", "SETITEMS"):
            items = from_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "BUILD":
            stack.pop()  # a state dict's notes on versions
        elif name == "STOP":
            break
        elif name not in SKIPPED:
            raise UserError(f"{where}: the instruction {name} has no place in a file of tensors; the file is not read")
    (result,) = stack
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in result.items()):
        raise ValueError("it is no state dict, of tensors by name")
    return dict(result)


def _storage(reference: Any) -> Storage:
    tag, kind, key, _, count = reference
    if tag != "storage" or not isinstance(key, str) or not isinstance(count, int):
        raise ValueError("a reference to its numbers is malformed")
    return Storage(STORAGES[kind.name], key, count)


def _made(called: Any, arguments: Any) -> Any:
    """What the two functions that tensors need would make."""
    if called == Global(ORDERED_DICT) and arguments == ():
        return {}
    if called == Global(REBUILD):
        storage, offset, size, stride = arguments[:4]
        if isinstance(storage, Storage) and all(isinstance(x, int) and x >= 0 for x in (offset, *size, *stride)):
            return Tensor(storage, offset, size, stride)
    raise ValueError("a call in it is malformed")


def _numbers(archive: zipfile.ZipFile, folder: str, order: str, tensor: Tensor) -> np.ndarray:
    storage, offset, size, stride = tensor
    flat = np.frombuffer(archive.read(f"{folder}data/{storage.key}"), order + storage.kind)
    if len(size) != len(stride) or len(flat) != storage.length or max((math.prod(size), *size)) > storage.length:
        raise ValueError("the numbers of a tensor are missing")
    index = np.full(size, offset)
    for axis, (length, step) in enumerate(zip(size, stride, strict=True)):
        index += step * np.arange(length).reshape([-1 if i == axis else 1 for i in range(len(size))])
    return flat[index]
