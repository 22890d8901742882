"""Settings as plain data and back: what `config.json` holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from segue.core.coefficient import Coefficient
from segue.errors import UserError


def as_dict(settings: Any) -> dict[str, Any]:
    """A nested dataclass of settings as nested plain values; sockets that a recipe fills itself are left out."""
    result: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_socket(field.name, value):
            continue
        result[field.name] = as_dict(value) if is_dataclass(value) else value
    return result


def is_socket(name: str, value: Any) -> bool:
    """Fields that are parts of an algorithm rather than numbers that a user sets."""
    return name == "coefficient" and (value is None or isinstance(value, Coefficient))


def from_dict(default: Any, values: dict[str, Any]) -> Any:
    """`default` with the `values` of `as_dict`. Raises UserError for a name that it does not have."""
    names = {field.name for field in fields(default)}
    changes = {}
    for name, value in values.items():
        if name not in names:
            raise UserError(f"setting '{name}' is unknown to {type(default).__name__}; it is of another version")
        current = getattr(default, name)
        if is_dataclass(current):
            changes[name] = from_dict(current, value)
        else:
            changes[name] = tuple(value) if isinstance(current, tuple) else value
    return replace(default, **changes)


def flat(settings: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of every setting, groups opened."""
    for name, value in as_dict(settings).items():
        if isinstance(value, dict):
            yield from flat(getattr(settings, name))
        else:
            yield name, value


def with_changes(settings: Any, changes: dict[str, Any]) -> Any:
    """`settings` with flat `changes`, in whichever group a name lives. Raises UserError for an unknown name."""
    known = dict(flat(settings))
    unknown = [name for name in changes if name not in known]
    if unknown:
        from difflib import get_close_matches

        near = get_close_matches(unknown[0], known, n=3) or sorted(known)
        raise UserError(f"setting '{unknown[0]}' is unknown; did you mean {', '.join(near)}?")

    def apply(group: Any) -> Any:
        own = {}
        for field in fields(group):
            value = getattr(group, field.name)
            if is_dataclass(value) and not is_socket(field.name, value):
                own[field.name] = apply(value)
            elif field.name in changes:
                own[field.name] = changes[field.name]
        return replace(group, **own)

    return apply(settings)
