"""Parsing with one-line errors, which name the nearest known option."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import tyro

from segue.errors import UserError

CONFIG = (
    tyro.conf.OmitArgPrefixes,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.AvoidSubcommands,
    tyro.conf.FlagConversionOff,
    tyro.conf.SuppressFixed,
)
FRAME = "│╭╮╰╯|+ "  # in Unicode, or in ASCII where the output's encoding is not known
RULE = re.compile("[─-]{5,}")


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong option is a one-line user error like every other."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; {self.prog} --help shows the options")


def parse(kind: Any, default: Any, argv: list[str], program: str, description: str) -> Any:
    """A `kind` (a dataclass of groups of options, their names flat) from `argv`, what is left out from `default`.

    Raises UserError in one line.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(
                kind, default=default, args=with_switches(default, argv), prog=program, description=description,
                config=CONFIG,
            )  # fmt: skip
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    raise UserError(f"{first_words(output.getvalue())}{_nearest(default, argv)}; {program} --help shows the options")


def first_words(box: str) -> str:
    """What tyro says in the first part of its box, below the title, as one line."""
    said: list[str] = []
    for line in box.splitlines()[1:]:
        if not RULE.search(line):
            said.append(line.strip(FRAME))
        elif said:
            break
    return " ".join(" ".join(said).split()).rstrip(".") or "the options cannot be read"


def names(settings: Any) -> Iterable[tuple[str, Any]]:
    """(option, default) of every field, groups opened."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from names(value)
        else:
            yield "--" + field.name.replace("_", "-"), value


def with_switches(default: Any, argv: list[str]) -> list[str]:
    """`--quiet` for `--quiet True`, and `--no-quiet` for `--quiet False`."""
    switches = {name for name, value in names(default) if isinstance(value, bool)}
    result: list[str] = []
    for i, word in enumerate(argv):
        if word in switches and (i + 1 == len(argv) or argv[i + 1] not in ("True", "False")):
            result += [word, "True"]
        elif word.startswith("--no-") and "--" + word[5:] in switches:
            result += ["--" + word[5:], "False"]
        else:
            result.append(word)
    return result


def _nearest(default: Any, argv: list[str]) -> str:
    known = [name for name, _ in names(default)]
    for word in argv:
        name = word.split("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known and not name.startswith("--no-"):
            near = difflib.get_close_matches(name, known, n=1)
            return f"; did you mean {near[0]}?" if near else ""
    return ""
