"""Parses the answers of guest agents, which may be false or of any form."""

from __future__ import annotations

import base64
import json
from typing import Any

from ravebot.errors import GuestError
from ravebot.providers.base import OUTPUT_LIMIT_BYTES, RunResult
from ravebot.sshkeys import HOST_TYPES, parse

_MOST_KEYS = 8
_LONGEST_LINE = 4096


def returned(text: str, command: str) -> object:
    """The return value in the agent's answer to that command. Raises GuestError for an answer of any other form."""
    try:
        return json.loads(text)["return"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GuestError(f"the guest agent's answer to {command} is malformed") from error


def field(answer: object, name: str, kind: type[Any]) -> Any:
    """A field of an answer. Raises GuestError if it is missing or of another type."""
    value = answer.get(name) if isinstance(answer, dict) else None
    if type(value) is not kind:
        raise GuestError(f"the guest agent's answer is malformed: it lacks {name}")
    return value


def run_result(status: object) -> RunResult:
    """A command's result, from the answer to `guest-exec-status`. Raises GuestError for an impossible result."""
    given = status if isinstance(status, dict) else {}
    code, signal = given.get("exitcode"), given.get("signal")
    if type(code) is not int:
        code = 128 + signal if type(signal) is int else -1  # as shells do
    if not 0 <= code <= 255:
        raise GuestError("the guest agent's answer is malformed: no command ends with such an exit code or signal")
    try:
        output = base64.b64decode(str(given.get("out-data", "")), validate=True)
    except ValueError as error:  # also for text that is not ASCII
        raise GuestError("the guest agent's answer is malformed: its output is not base64") from error
    return RunResult(code, output[-OUTPUT_LIMIT_BYTES:].decode(errors="replace"))


def file_piece(answer: object, asked_bytes: int) -> tuple[bytes, bool]:
    """What one `guest-file-read` gave, and whether the file ends there. Raises GuestError for an impossible answer."""
    try:
        piece = base64.b64decode(field(answer, "buf-b64", str), validate=True)
    except ValueError as error:  # also for text that is not ASCII
        raise GuestError("the guest agent's answer is malformed: a file's content is not base64") from error
    if len(piece) > asked_bytes:
        raise GuestError("the guest agent's answer is malformed: it holds more than was asked for")
    return piece, field(answer, "eof", bool)


def host_keys(text: str) -> tuple[str, ...]:
    """The SSH host keys in the text of `*.pub` files, one a line, as type and Base64 in canonical form.

    Raises GuestError for anything else.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= _MOST_KEYS:
        raise GuestError(f"the guest shows {len(lines)} SSH host keys: 1 to {_MOST_KEYS} are expected")
    return tuple(dict.fromkeys(_host_key(line) for line in lines))


def _host_key(line: str) -> str:
    if len(line) > _LONGEST_LINE or line.split()[0] not in HOST_TYPES or not line.isascii():
        raise GuestError("the guest shows something as an SSH host key that is none")
    try:
        return parse(line)
    except ValueError as error:
        raise GuestError("the guest shows a damaged SSH host key") from error
