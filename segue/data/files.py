"""Reading and writing files safely: pickles refused, writes all or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segue.data.errors import DataError

PICKLE_SUFFIXES = (".pkl", ".pickle")


def check_readable(path: Path) -> None:
    """Raise `DataError` unless `path` is a file with content that is no pickle (by name or by its first bytes)."""
    if path.is_dir():
        raise DataError(f"{path}: this is a folder; name a file in it")
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    # Protocols 2 and up start with 0x80 and the protocol's number; older ones are plain text, caught by their name.
    if path.suffix.lower() in PICKLE_SUFFIXES or (len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5):
        raise pickle_refused(path)
    if not head:
        raise DataError(f"{path}: the file is empty; fetch or write it again")


def pickle_refused(path: Path) -> DataError:
    """The error for a pickle: loading one runs whatever code it holds."""
    return DataError(
        f"{path}: pickle files are refused, because loading one can run any code; "
        "save the columns with numpy.savez(...) and load that .npz"
    )


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what was written there replaces `path` when the block ends without error.

    The content is on the disk before the name changes, so a crash leaves the old file or the new one. Raises
    `DataError` when the folder cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be written ({reason}); choose a place with permission and space") from None
    finally:
        with suppress(OSError):  # nothing was written, or it has become `path`
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable (Windows cannot open folders and needs no such step)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
