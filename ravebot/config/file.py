"""Reads the configuration file and the secrets that it names, and reports all their errors at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ravebot.config import checks, complaints
from ravebot.config.certificates import check_certificates
from ravebot.config.model import Config
from ravebot.config.secrets import LISTED_SECRETS, SECRET_KEYS, Secrets, read_secret, signing_key
from ravebot.config.tree import KeyPath, Problem, Tree, Value, dotted, parse
from ravebot.config.values import StateDir
from ravebot.errors import ConfigError

MAX_BYTES = 1024 * 1024
_STATE_DIR: TypeAdapter[Path] = TypeAdapter(StateDir)
_MAX_ROUNDS = 8
_FORMS: dict[str, Callable[[str], object]] = {"agent_signing": signing_key}
"""What raises ValueError for a listed secret that can't be one."""
_PLACEHOLDERS: dict[str, Value] = {
    "matrix": {"homeserver": "https://matrix.invalid", "user_id": "@ravebot:matrix.invalid"},
    "gitlab": {"url": "https://gitlab.invalid", "token_file": "/dev/null", "projects": ["*"], "webhook": {}},
    "sandbox": {"host": "sandbox.invalid"},
    "provider": {"image": "/dev/null"},
}
"""Values for required keys that are missing or wrong, so that the other keys can still be checked."""


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration with its secrets."""

    config: Config
    secrets: Secrets
    warnings: tuple[str, ...] = ()
    path: Path | None = None


class InvalidConfigError(ConfigError):
    """The file can't be used; `problems` lists every error, in the order of lines."""

    def __init__(self, path: Path, problems: tuple[Problem, ...]) -> None:
        self.path = path
        self.problems = problems
        lines = [f"{path}:{problem.line}: {problem}" if problem.line else f"{path}: {problem}" for problem in problems]
        super().__init__("\n".join(lines))


def load(path: Path) -> LoadedConfig:
    """Read, validate and cross-check the file, and read its secrets.

    Raises InvalidConfigError with every problem.
    """
    tree = parse(read_text(path))
    secrets, unreadable = _secrets(tree)
    config, warnings = _checked(path, tree, unreadable)
    return LoadedConfig(config, secrets, warnings, path)


def read(path: Path) -> Config:
    """The same without the secrets, for what needs none. Raises InvalidConfigError."""
    return _checked(path, parse(read_text(path)), [])[0]


def judge(path: Path, text: str) -> tuple[Config, tuple[str, ...]]:
    """A text that is not in its file yet: the configuration and warnings. Raises InvalidConfigError."""
    return _checked(path, parse(text), [])


def fill(value: dict[str, Value]) -> dict[str, Value]:
    """An unfinished configuration, with placeholders for required keys that it lacks."""
    return _with_placeholders(value, _PLACEHOLDERS)


def defaults(image: Path) -> Config:
    """A configuration of which only the image is given, for what needs no servers: theirs are placeholders."""
    return Config.model_validate(_with_placeholders({"provider": {"image": str(image)}}, _PLACEHOLDERS))


def _checked(path: Path, tree: Tree, unreadable: list[Problem]) -> tuple[Config, tuple[str, ...]]:
    """The configuration and warnings. Raises InvalidConfigError with every problem, the secrets' included."""
    config, problems, wrong = _validate(tree)
    problems = [*tree.problems, *problems, *unreadable]
    warnings: list[str] = []
    if config is not None:
        remarks = checks.check(config)
        problems += [
            Problem(tree.line_of(remark.path), dotted(remark.path), remark.message)
            for remark in remarks.errors
            if not any(_related(path, wrong) for path in remark.depends_on or (remark.path,))
        ]
        warnings = [f"{dotted(remark.path)}: {remark.message}" for remark in remarks.warnings]
    if config is None or problems:
        raise InvalidConfigError(path, tuple(sorted(set(problems))))
    return config, tuple(warnings)


def read_state_dir(path: Path) -> Path:
    """Read only `state_dir`, so that commands to the running bot work even if the rest of the file is wrong."""
    tree = parse(read_text(path))
    found = tree.value.get("state_dir") if isinstance(tree.value, dict) else None
    if tree.problems:
        raise InvalidConfigError(path, tuple(tree.problems))
    default = Config.model_fields["state_dir"].default
    try:
        return _STATE_DIR.validate_python(default if found is None else found)
    except ValidationError as error:
        (first, *_) = complaints.complaints(error, None)
        raise InvalidConfigError(path, (Problem(tree.line_of(("state_dir",)), "state_dir", first.message),)) from error


def read_text(path: Path) -> str:
    """The file's text. Raises InvalidConfigError if it can't be read."""

    def fail(message: str) -> InvalidConfigError:
        return InvalidConfigError(path, (Problem(0, "", message),))

    try:
        # Non-blocking, because opening a named pipe could wait for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            raw = file.read(MAX_BYTES + 1) or b""
    except FileNotFoundError:
        raise fail("there is no such file; config.example.yaml shows what belongs in it") from None
    except IsADirectoryError:
        raise fail("this is a folder: name the YAML file in it") from None
    except OSError as error:
        raise fail(f"can't be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise fail("larger than 1 MiB: this is not a configuration file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InvalidConfigError(path, (Problem(line, "", "not UTF-8 text: save it as UTF-8"),)) from None


def _validate(tree: Tree) -> tuple[Config | None, list[Problem], set[KeyPath]]:
    """Validate; after errors, validate again without the wrong keys, to find errors that pydantic did not get to.

    Returns the configuration (None: too much is wrong), the problems, and the paths whose values were wrong.
    """
    if not isinstance(tree.value, dict):
        if tree.problems:
            return None, [], set()
        message = "this is not a mapping of keys to values; config.example.yaml shows one"
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
        value = _with_placeholders(_without(tree.value, unknown | wrong), _PLACEHOLDERS)
    unreadable = {problem.path for problem in tree.problems}  # null for the validator, which would report it again
    problems = [Problem(tree.line_of(item.path), dotted(item.path), item.message) for item in found]
    wrong |= {path for path in tree.marks if path and dotted(path) in unreadable}
    return config, [problem for problem in problems if problem.path not in unreadable], wrong


def _with_placeholders(value: dict[str, Value], placeholders: dict[str, Value]) -> dict[str, Value]:
    """Fill in missing values; an empty list counts as missing, because a list with an error was emptied."""
    whole = dict(value)
    for key, placeholder in placeholders.items():
        there = whole.get(key)
        if isinstance(there, dict) and isinstance(placeholder, dict):
            whole[key] = _with_placeholders(there, placeholder)
        elif there is None or there == []:
            whole[key] = placeholder
    return whole


def _related(path: KeyPath, wrong: set[KeyPath]) -> bool:
    """Whether one of the wrong paths is that path, below it or above it."""
    return any(item[: len(path)] == path[: len(item)] for item in wrong)


def _covers(path: KeyPath, wrong: set[KeyPath]) -> bool:
    """Whether the value at `path` was changed by removing a wrong key at or below it."""
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
        # A list with an error is emptied: without one item, the positions of the others would change.
        if any(path[: len(here)] == here and len(path) > len(here) for path in paths):
            return []
        return [_copy_without(child, paths, (*here, index)) for index, child in enumerate(value)]
    return value


def _secrets(tree: Tree) -> tuple[Secrets, list[Problem]]:
    found: dict[str, str] = {}
    listed: dict[str, dict[str, str]] = {}
    problems: list[Problem] = []
    owners = _owners(tree)

    def read(value: Value, keys: KeyPath, check: Callable[[str], object] = str) -> str | None:
        if not isinstance(value, str) or not Path(value).is_absolute():
            return None  # absent, or reported by the validation
        try:
            secret = read_secret(Path(value), owners)
            check(secret)
        except ValueError as error:
            problems.append(Problem(tree.line_of(keys), dotted(keys), str(error)))
            return None
        return secret

    for name, keys in SECRET_KEYS.items():
        if (secret := read(_at(tree.value, keys), keys)) is not None:
            found[name] = secret
    for name, (of, below) in LISTED_SECRETS.items():
        entries = _at(tree.value, (of,))
        for place, entry in enumerate(entries if isinstance(entries, list) else ()):
            owner = _at(entry, ("name",))
            secret = read(_at(entry, below), (of, place, *below), _FORMS.get(name, str))
            if secret is not None and isinstance(owner, str):
                listed.setdefault(name, {})[owner] = secret
    authority = _at(tree.value, ("gitlab", "ca_file"))
    if isinstance(authority, str) and Path(authority).is_absolute():
        try:
            check_certificates(Path(authority))
        except ValueError as error:
            problems.append(Problem(tree.line_of(("gitlab", "ca_file")), "gitlab.ca_file", str(error)))
    return Secrets(**found, **listed), problems  # type: ignore[arg-type]


def newest_gitlab_token(config: Config) -> str:
    """What stands in its file now. Raises ValueError."""
    return read_secret(config.gitlab.token_file, _owners_of(str(config.state_dir)))


def _at(value: Value, keys: tuple[str, ...]) -> Value:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _owners(tree: Tree) -> frozenset[int]:
    """Users whose secret files are accepted: our own and root; for root also the owner of the state folder."""
    return _owners_of(tree.value.get("state_dir") if isinstance(tree.value, dict) else None)


def _owners_of(state_dir: Value) -> frozenset[int]:
    owners = {0, os.geteuid()}
    if os.geteuid() == 0 and isinstance(state_dir, str):
        with suppress(OSError, ValueError):
            owners.add(Path(state_dir).stat().st_uid)
    return frozenset(owners)
