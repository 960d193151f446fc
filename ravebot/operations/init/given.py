"""What is given before the first question: answers of the command line, and what an existing installation has."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ravebot.config.file import InvalidConfigError, judge, read_text
from ravebot.config.secrets import MAX_BYTES, read_secret
from ravebot.config.tree import Value, dotted, parse
from ravebot.operations.init.inquiry import Inquiry, Question, lookup
from ravebot.operations.init.questions import BY_NAME, QUESTIONS
from ravebot.terminal import clean, output


class CommandMistake(Exception):
    """A mistake on the command line."""


def answers(options: Mapping[str, object]) -> dict[str, str]:
    """The answers of the command line. Secrets are read from their files, at most one of them from stdin."""
    texts = {one.name: str(text) for one in QUESTIONS if (text := options.get(one.name)) is not None}
    from_stdin = [BY_NAME[name].option for name, text in texts.items() if BY_NAME[name].secret and text == "-"]
    if len(from_stdin) > 1:
        raise CommandMistake(f"only one of {' and '.join(from_stdin)} can be - (standard input)")
    if "matrix_password" in texts and "matrix_token" in texts:
        raise CommandMistake("give one of --matrix-password-file and --matrix-token-file")
    return {name: _from_file(name, text) if BY_NAME[name].secret else text for name, text in texts.items()}


def _from_file(name: str, place: str) -> str:
    option = BY_NAME[name].option
    try:
        if place == "-":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(place).open("rb") as file:
                facts = os.fstat(file.fileno())
                if stat.S_ISREG(facts.st_mode) and facts.st_mode & (stat.S_IRGRP | stat.S_IROTH):
                    output.complain(clean(f"others may read {place}: remove it when init is done"), "yellow")
                raw = file.read(MAX_BYTES + 1)
        text = raw.decode().strip()
    except OSError as error:
        raise CommandMistake(f"{option}: {place} can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise CommandMistake(f"{option}: {place} is not UTF-8 text") from None
    if not text or len(raw) > MAX_BYTES or not text.isprintable():
        where = "standard input" if place == "-" else place
        raise CommandMistake(f"{option}: {where} must hold the secret in one line")
    return text


def begin(path: Path) -> tuple[Inquiry, str]:
    """What there is already: the configuration and the secrets that it names."""
    text = read_text(path) if path.exists() else ""
    tree = parse(text)
    if text:
        _check(path, text)
    existing: dict[str, Value] = tree.value if isinstance(tree.value, dict) else {}
    inquiry = Inquiry(BY_NAME, path, existing)
    owners = {0, os.geteuid()}
    with suppress(OSError):
        owners.add(Path(str(existing.get("state_dir", "/var/lib/ravebot"))).stat().st_uid)
    kept: dict[str, str] = {}
    for question in QUESTIONS:
        if not question.secret:
            continue
        place = inquiry.secret_file(question)
        named = lookup(existing, question.key) is not None
        if named or (not existing and question.name in ("webhook_secret", "alertmanager_token")):
            with suppress(ValueError):
                kept[question.name] = read_secret(place, owners)
    login = lookup(existing, ("gitlab", "proxy_login_file"))
    with suppress(ValueError):
        if isinstance(login, str):
            kept["gitlab_proxy_login"] = read_secret(Path(login), owners)
    inquiry.kept_secrets = kept
    return inquiry, text


def _check(path: Path, text: str) -> None:
    """Refuse a configuration with mistakes that no answer mends. Raises InvalidConfigError."""
    try:
        judge(path, text)
    except InvalidConfigError as error:
        asked = [dotted(question.key) for question in QUESTIONS]
        sections = {name[: name.rfind(".")] for name in asked if "." in name}
        below = tuple(f"{name}{sign}" for name in asked for sign in ".[")
        left = [one for one in error.problems if one.path not in sections and not f"{one.path}[".startswith(below)]
        if left:
            raise InvalidConfigError(path, tuple(left)) from None


def list_missing(lacking: Sequence[Question]) -> str:
    """All that a script did not give, a line for each."""
    lines = [f"  {one.option:<26} {one.prompt}" + (f" ({one.variable})" if one.variable else "") for one in lacking]
    what = f"{len(lines)} answers are missing" if len(lines) > 1 else "an answer is missing"
    return "\n".join([f"{what}, and there is no terminal to ask at; give each as an option or variable:", *lines])
