"""The manual page ravebot(1), made from the commands themselves, so that it says what they do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from ravebot.operations.service.commands import group

FILES = {
    "/etc/ravebot/config.yaml": "The configuration.",
    "/etc/ravebot/secrets/": "One file for each secret, readable by ravebot's user only.",
    "/var/lib/ravebot/": "The database, the instance's id, the Matrix login and the machines' consoles.",
}


def page() -> str:
    """The page in the language man(7)."""
    commands = group()
    summary = commands.help or ""
    lines = [
        f'.TH RAVEBOT 1 "" "ravebot {version("ravebot")}" "User Commands"',
        ".SH NAME",
        f"ravebot \\- {_escaped(summary.rstrip('.')[:1].lower() + summary.rstrip('.')[1:])}",
        ".SH SYNOPSIS",
        ".B ravebot",
        ".I COMMAND",
        "[\\fIOPTIONS\\fR]",
        ".SH COMMANDS",
        *_commands(commands, "ravebot"),
        ".SH EXIT STATUS",
        _escaped(commands.epilog or ""),
        ".SH ENVIRONMENT",
        ".TP",
        ".B RAVEBOT_CONFIG",
        "The configuration file, instead of \\fB\\-\\-config\\fR.",
        ".SH FILES",
    ]
    for path, what in FILES.items():
        lines += [".TP", f".I {_escaped(path)}", _escaped(what)]
    return "\n".join(line for line in lines if line) + "\n"


def _commands(commands: TyperGroup, name: str) -> Iterator[str]:
    for word, command in commands.commands.items():
        if command.hidden:
            continue
        called = f"{name} {word}"
        if isinstance(command, TyperGroup):
            yield from _commands(command, called)
            continue
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [
            one for one in command.params if one.param_type_name == "option" and not getattr(one, "hidden", False)
        ]
        shown = [f"\\fI{_escaped(_metavar(one))}\\fR" for one in arguments]
        words = [called, *(name if one.required else f"[{name}]" for one, name in zip(arguments, shown, strict=True))]
        if options:
            words.append("[\\fIOPTIONS\\fR]")
        yield f".SS {_quoted(' '.join([_escaped(words[0]), *words[1:]]))}"
        for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
            if number:
                yield ".PP"
            yield _escaped(" ".join(paragraph.split()))
        if command.epilog:
            yield ".PP"
            yield _escaped(" ".join(command.epilog.split()))
        for one in (*arguments, *options):
            yield from _parameter(one)


def _parameter(one: Any) -> Iterator[str]:
    """One argument or option, with its default."""
    if one.param_type_name == "argument":
        head = f"\\fI{_escaped(_metavar(one))}\\fR"
    else:
        names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in (*one.opts, *one.secondary_opts))
        head = names if one.is_flag else f"{names} \\fI{_escaped(_metavar(one))}\\fR"
    text = str(getattr(one, "help", None) or "")
    default = one.default.value if isinstance(one.default, Enum) else one.default
    if isinstance(default, str | int | Path) and not isinstance(default, bool) and str(default):
        text += f" Default: {default}."
    yield from (".TP", head)
    if text:
        yield _escaped(" ".join(text.split()))


def _metavar(one: Any) -> str:
    if one.metavar:
        return str(one.metavar)
    kind = one.type_descriptor
    if kind.choices:
        return "|".join(str(getattr(choice, "value", choice)) for choice in kind.choices)
    if one.param_type_name == "argument":
        return str(one.name).upper()
    return "FILE" if kind.is_path else "NUMBER" if kind.annotation is int else "TEXT"


_SPECIAL: Mapping[str, str] = {
    "\\": "\\e",
    "-": "\\-",
    "'": "\\(aq",
    "`": "\\(ga",
    "^": "\\(ha",
    "~": "\\(ti",
    "…": "\\[u2026]",
}


def _escaped(text: str) -> str:
    """So that every character is printed as it is, also at the start of a line. Backquoted words become bold."""
    parts = text.split("`")
    if len(parts) % 2:
        made = "".join(f"\\fB{_plain(part)}\\fR" if number % 2 else _plain(part) for number, part in enumerate(parts))
    else:
        made = _plain(text)
    return f"\\&{made}" if made.startswith(".") else made


def _plain(text: str) -> str:
    return "".join(_SPECIAL.get(char, char) for char in text)


def _quoted(text: str) -> str:
    return f'"{text.replace(chr(34), chr(34) * 2)}"'
