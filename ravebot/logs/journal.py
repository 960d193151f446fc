"""Sends entries with fields to systemd's journal.

Its protocol (systemd, "Native Journal Protocol") is spoken by `_packed`, ten lines of our own, because of the libraries
logging-journald finds a journald again whose socket was made anew only from 0.6.12 on, but NixOS 26.05 has an older,
systemd-python is compiled against libsystemd, and cysystemd brings a copy of libsystemd along.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from ravebot.logs.rendering import MULTILINE, shown
from ravebot.logs.writer import Sink

JOURNAL = Path("/run/systemd/journal/socket")
"""Where journald takes entries with fields."""

_TOLD = ("timestamp", "level", "event", "logger", *MULTILINE)
"""What is in the journal's own fields, or first in the message."""
_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}  # syslog(3)
_NO_FIELD = re.compile(r"[^A-Z0-9_]")
_MOST_FIELD = 8000  # characters; a datagram has about 200 KB


def is_journal(stream: TextIO) -> bool:
    """Whether systemd connected the stream to its journal (JOURNAL_STREAM, systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class JournalHandler(logging.Handler):
    """Sends entries, which it gets as JSON, with fields to the journal. What that does not take, `otherwise` gets."""

    def __init__(self, path: Path, instance: str, otherwise: Sink) -> None:
        super().__init__()
        self._path = os.fspath(path)
        self._instance = instance
        self._otherwise = otherwise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(record)
        except Exception:  # noqa: BLE001 - whatever is wrong, the entry is not lost
            self._otherwise.emit(record)

    def emit_at_once(self, record: logging.LogRecord) -> bool:
        try:
            self._send(record, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except Exception:  # noqa: BLE001 - as above
            return self._otherwise.emit_at_once(record)
        return True

    def _send(self, record: logging.LogRecord, flags: int = 0) -> None:
        entry = _packed(_fields(json.loads(record.getMessage()), self._instance))
        self._socket.sendto(entry, flags, self._path)  # addressed each time: journald may be restarted

    def close(self) -> None:
        self._socket.close()
        super().close()


def _fields(event: Mapping[str, object], instance: str) -> dict[str, str]:
    """The fields of an entry: each fact as `RAVEBOT_…`, and all of it in `MESSAGE` for people."""
    facts = {key: value for key, value in event.items() if key not in _TOLD}
    said = [str(shown(event.get("event", ""))), *(f"{key}={_quoted(value)}" for key, value in facts.items())]
    more = [str(event[key]) for key in MULTILINE if event.get(key)]
    fields = {
        "MESSAGE": "\n".join([" ".join(said), *more]),
        "PRIORITY": str(_PRIORITIES.get(str(event.get("level")), 6)),
        "SYSLOG_IDENTIFIER": "ravebot",
        "RAVEBOT_INSTANCE": instance,
        "RAVEBOT_EVENT": str(event.get("event", "")),
        "RAVEBOT_LOGGER": str(event.get("logger", "")),
        "RAVEBOT_REF": str(event.get("ref") or event.get("mr") or ""),
    }
    for key, value in facts.items():
        fields.setdefault(f"RAVEBOT_{_NO_FIELD.sub('_', key.upper())[:50]}", _plain(value))
    return {name: value for name, value in fields.items() if value}


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _quoted(value: object) -> str:
    text = _plain(value)
    return text if re.fullmatch(r"[^\s\"'=]+", text) else json.dumps(text, ensure_ascii=False)


def _packed(fields: Mapping[str, str]) -> bytes:
    """As journald reads it: each value with its length, so that no line break in one begins another field."""
    parts = []
    for name, value in fields.items():
        text = str(shown(value, "\n"))[:_MOST_FIELD]
        data = text.encode(errors="replace")
        parts += [name.encode(), b"\n", struct.pack("<Q", len(data)), data, b"\n"]
    return b"".join(parts)
