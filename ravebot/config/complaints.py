"""Turns pydantic's errors into messages for the person who wrote the file.

No message repeats a value: somebody may have put a secret where a file name belongs.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ravebot.config.model import Config
from ravebot.config.tree import KeyPath, Value, dotted
from ravebot.config.values import PortRange

_FORMATS = {
    "user_id": 'write a Matrix id in quotes, like "@ravebot:example.org"',
    "admins": 'write Matrix ids in quotes, like "@ops:example.org"',
    "users": 'write Matrix id: GitLab user name, like "@alice:example.org": alice',
    "operations_room": 'write a room in quotes, like "#ops:example.org" or "!id:example.org"',
    "room": 'write a room in quotes, like "#dev:example.org" or "!id:example.org"',
    "command_prefix": 'write the word that commands begin with, in quotes, like "!rave"',
    "listen": 'write an address and a port, like "127.0.0.1:8080"',
    "instance": "write up to 16 lower-case letters, digits and inner hyphens",
    "name": "write up to 15 lower-case letters, digits, - and _, beginning with a letter",
    "user": "write a Unix user name",
    "http": "write a path that begins with /",
}


@dataclass(frozen=True)
class Complaint:
    """One error at a key path. `unknown`: ravebot has no such key."""

    path: KeyPath
    message: str
    unknown: bool = False


def complaints(error: ValidationError, value: Value, root: type[BaseModel] = Config) -> list[Complaint]:
    """Pydantic's errors, each once, in pydantic's order; `root`: the model of the whole file."""
    found: dict[Complaint, None] = {}
    details = error.errors(include_url=False, include_input=False)
    for detail in details:
        where = detail["loc"]
        if detail["type"] == "too_short" and any(
            other["loc"][: len(where)] == where and other is not detail for other in details
        ):
            continue  # pydantic counts valid items only; the invalid ones have errors of their own
        found.setdefault(_complaint(detail, value, root))
    return list(found)


def _complaint(detail: ErrorDetails, value: Value, root: type[BaseModel]) -> Complaint:
    path, variant = _real_path(detail["loc"], value, root)
    kind = detail["type"]
    if variant:
        return Complaint(path, f"write it as {variant}")
    if kind == "missing":
        return Complaint(path, "this key is missing")
    if kind == "extra_forbidden":
        return Complaint(path, _unknown(path, root), unknown=True)
    if kind in ("string_pattern_mismatch", "string_type") and root is Config:
        named = next((key for key in reversed(path) if isinstance(key, str) and key in _FORMATS), None)
        if named:
            return Complaint(path, _FORMATS[named])
    if kind == "string_pattern_mismatch":
        return Complaint(path, "wrong format: config.example.yaml shows the right one")
    if kind.startswith("url_"):
        example = "http://proxy.example.org:3128" if path[-1:] == ("proxy",) else "https://example.org"
        return Complaint(path, f"write an address that begins with https:// or http://, like {example}")
    if kind == "string_type":
        return Complaint(path, "write text here; put quotes around a number, yes or no, and what begins with @, ! or #")
    if kind == "path_type":
        return Complaint(path, "write an absolute path")
    if kind in ("model_type", "dict_type"):
        return Complaint(path, "write keys with values here")
    if kind == "tuple_type":
        return Complaint(
            path, "write a list here, like [one, two]; or each entry on a line of its own, with a - before it"
        )
    if kind == "too_short":
        return Complaint(path, "give at least one")
    return Complaint(path, detail["msg"].removeprefix("Value error, ").replace("Input should be", "this should be"))


def _real_path(location: tuple[int | str, ...], value: Value, root: type[BaseModel]) -> tuple[KeyPath, str]:
    """The key path of pydantic's location and, inside a union, how its variants are written.

    Pydantic also puts the names of a union's variants and `[key]` into its locations.
    """
    path: list[int | str] = []
    for place, key in enumerate(location):
        if isinstance(value, dict) and isinstance(key, str) and (key in value or place == len(location) - 1):
            if key == "[key]" and key not in value:
                break
            path.append(key)
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            path.append(key)
            value = value[key]
        else:
            forms = _forms(tuple(path), root)
            if len(forms) > 1:
                return tuple(path), " or ".join(f"{{{next(iter(keys_of(form)))}: …}}" for form in forms)
            break
    return tuple(path), ""


def _unknown(path: KeyPath, root: type[BaseModel]) -> str:
    *parents, key = path
    known = {name for form in _forms(tuple(parents), root) for name in keys_of(form)}
    near = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    elsewhere = sorted(dotted(other) for other in every_key(root) if other[-1] == key)
    if elsewhere:
        return f"unknown key here; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key; known here: {', '.join(sorted(known))}"


def every_key(model: type[BaseModel] = Config, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every key of the configuration, without list positions."""
    for name, annotation in keys_of(model).items():
        yield (*path, name)
        for form in _models_in(annotation):
            yield from every_key(form, (*path, name))


def keys_of(model: type[BaseModel]) -> dict[str, object]:
    """A section's keys as they are written in the file, with their types."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _forms(path: KeyPath, root: type[BaseModel]) -> list[type[BaseModel]]:
    """The sections that are allowed at that path; several for a union."""
    forms: list[type[BaseModel]] = [root]
    for key in path:
        if isinstance(key, int):
            continue
        forms = [inner for form in forms if key in keys_of(form) for inner in _models_in(keys_of(form)[key])]
    return forms


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if annotation is PortRange else [annotation]  # written as a string
    if get_origin(annotation) in (tuple, Union, types.UnionType, Annotated, dict):
        return [model for argument in get_args(annotation) for model in _models_in(argument)]
    return []
