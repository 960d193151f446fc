"""Reads the configuration file and the secrets it names, and lists everything wrong with them at once."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ravebot.config import checks, complaints
from ravebot.config.model import Config
from ravebot.config.secrets import SECRET_KEYS, Secrets, read_secret
from ravebot.config.tree import KeyPath, Problem, Tree, Value, dotted, parse
from ravebot.config.values import StateDir
from ravebot.errors import ConfigError

MAX_BYTES = 1024 * 1024
_STATE_DIR: TypeAdapter[Path] = TypeAdapter(StateDir)
_MAX_ROUNDS = 8
_STAND_INS: dict[str, Value] = {
    "matrix": {"homeserver": "https://matrix.invalid", "user_id": "@ravebot:matrix.invalid"},
    "gitlab": {"url": "https://gitlab.invalid", "token_file": "/dev/null", "projects": ["*"], "webhook": {}},
    "sandbox": {"host": "sandbox.invalid"},
    "provider": {"image": "/dev/null"},
}
"""For required keys that are missing or wrong, so that the others can be checked against one another all the same."""


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration that can be used."""

    config: Config
    secrets: Secrets
    warnings: tuple[str, ...] = ()
    path: Path | None = None


class InvalidConfigError(ConfigError):
    """The file can't be used; `problems` says everything that is wrong, in the order of its lines."""

    def __init__(self, path: Path, problems: tuple[Problem, ...]) -> None:
        self.path = path
        self.problems = problems
        lines = [f"{path}:{problem.line}: {problem}" if problem.line else f"{path}: {problem}" for problem in problems]
        super().__init__("\n".join(lines))


def load(path: Path) -> LoadedConfig:
    """Read, validate and cross-check the file, and read its secrets.

    Raises InvalidConfigError with every problem.
    """
    tree = parse(_read(path))
    config, problems, wrong = _validate(tree)
    problems = [*tree.problems, *problems]
    secrets, unreadable = _secrets(tree)
    problems += unreadable
    warnings: list[str] = []
    if config is not None:
        remarks = checks.check(config)
        problems += [
            Problem(tree.line_of(remark.path), dotted(remark.path), remark.message)
            for remark in remarks.errors
            if not any(_related(path, wrong) for path in remark.rests_on or (remark.path,))
        ]
        warnings = [f"{dotted(remark.path)}: {remark.message}" for remark in remarks.warnings]
    if config is None or problems:
        raise InvalidConfigError(path, tuple(sorted(set(problems))))
    return LoadedConfig(config, secrets, tuple(warnings), path)


def read_state_dir(path: Path) -> Path:
    """Only `state_dir`: who asks the running bot something need not wait for the rest of the file to be right."""
    tree = parse(_read(path))
    found = tree.value.get("state_dir") if isinstance(tree.value, dict) else None
    if tree.problems:
        raise InvalidConfigError(path, tuple(tree.problems))
    default = Config.model_fields["state_dir"].default
    try:
        return _STATE_DIR.validate_python(default if found is None else found)
    except ValidationError as error:
        (first, *_) = complaints.complaints(error, None)
        raise InvalidConfigError(path, (Problem(tree.line_of(("state_dir",)), "state_dir", first.message),)) from error


def _read(path: Path) -> str:
    def fail(message: str) -> InvalidConfigError:
        return InvalidConfigError(path, (Problem(0, "", message),))

    try:
        # Not blocking: a named pipe must not hang the start.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            raw = file.read(MAX_BYTES + 1) or b""
    except FileNotFoundError:
        raise fail("there is no such file; config.example.yaml shows what belongs in it") from None
    except IsADirectoryError:
        raise fail("this is a folder: name the YAML file in it") from None
    except OSError as error:
        raise fail(f"can't be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise fail("larger than 1 MiB: this is no configuration")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InvalidConfigError(path, (Problem(line, "", "not UTF-8 text: save it as UTF-8"),)) from None


def _validate(tree: Tree) -> tuple[Config | None, list[Problem], set[KeyPath]]:
    """Validate; after errors go on without what was wrong, to find what only a whole file can show.

    Returns the configuration, if there is enough for one, the problems, and the paths that are not as in the file.
    """
    if not isinstance(tree.value, dict):
        if tree.problems:
            return None, [], set()
        message = "this is no mapping of keys; config.example.yaml shows what belongs here"
        return None, [Problem(1, "", message)], set()
    value: dict[str, Value] = tree.value
    found: dict[complaints.Complaint, None] = {}
    unknown: set[KeyPath] = set()
    wrong: set[KeyPath] = set()
    config = None
    for _ in range(_MAX_ROUNDS):
        try:
            config = Config.model_validate(value)
            break
        except ValidationError as error:
            fresh = [item for item in complaints.complaints(error, tree.value) if not _covers(item.path, wrong)]
        found.update(dict.fromkeys(fresh))
        if not fresh:
            break
        unknown |= {item.path for item in fresh if item.unknown}
        wrong |= {item.path for item in fresh if not item.unknown}
        value = _completed(_without(tree.value, unknown | wrong), _STAND_INS)
    unreadable = {problem.path for problem in tree.problems}  # null to the validator: one complaint is enough
    problems = [Problem(tree.line_of(item.path), dotted(item.path), item.message) for item in found]
    wrong |= {path for path in tree.lines if path and dotted(path) in unreadable}
    return config, [problem for problem in problems if problem.path not in unreadable], wrong


def _completed(value: dict[str, Value], stand_ins: dict[str, Value]) -> dict[str, Value]:
    """With something in the place of what is missing; an empty list is what is left of one that held an error."""
    whole = dict(value)
    for key, stand_in in stand_ins.items():
        there = whole.get(key)
        if isinstance(there, dict) and isinstance(stand_in, dict):
            whole[key] = _completed(there, stand_in)
        elif there is None or there == []:
            whole[key] = stand_in
    return whole


def _related(path: KeyPath, wrong: set[KeyPath]) -> bool:
    """Whether something wrong is at that path, in it or around it."""
    return any(item[: len(path)] == path[: len(item)] for item in wrong)


def _covers(path: KeyPath, wrong: set[KeyPath]) -> bool:
    """Whether what is at `path` was made different by leaving out something wrong at or below it."""
    return any(item[: len(path)] == path for item in wrong)


def _without(value: Value, paths: set[KeyPath]) -> dict[str, Value]:
    copy = _copy_without(value, paths, ())
    return copy if isinstance(copy, dict) else {}


def _copy_without(value: Value, paths: set[KeyPath], here: KeyPath) -> Value:
    if isinstance(value, dict):
        return {
            key: _copy_without(child, paths, (*here, key)) for key, child in value.items() if (*here, key) not in paths
        }
    if isinstance(value, list):
        # A list that holds an error goes as a whole: without one item, the others' places would move.
        if any(path[: len(here)] == here and len(path) > len(here) for path in paths):
            return []
        return [_copy_without(child, paths, (*here, index)) for index, child in enumerate(value)]
    return value


def _secrets(tree: Tree) -> tuple[Secrets, list[Problem]]:
    found: dict[str, str] = {}
    problems: list[Problem] = []
    owners = _owners(tree)
    for name, keys in SECRET_KEYS.items():
        value: Value = tree.value
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str) or not Path(value).is_absolute():
            continue  # absent, or wrong in a way that the validation tells
        try:
            found[name] = read_secret(Path(value), owners)
        except ValueError as error:
            problems.append(Problem(tree.line_of(keys), dotted(keys), str(error)))
    return Secrets(**found), problems


def _owners(tree: Tree) -> frozenset[int]:
    """Whose secret files are taken: ours and root's; root also asks for the user that runs ravebot."""
    owners = {0, os.geteuid()}
    state_dir = tree.value.get("state_dir") if isinstance(tree.value, dict) else None
    if os.geteuid() == 0 and isinstance(state_dir, str):
        with suppress(OSError, ValueError):
            owners.add(Path(state_dir).stat().st_uid)
    return frozenset(owners)
