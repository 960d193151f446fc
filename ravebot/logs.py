"""Structured logs: one line an event and never a secret; with fields in the journal, else JSON except on a terminal."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

HIDDEN = "[hidden]"
QUIET = ("nio", "aiohttp", "asyncio", "urllib3", "gitlab", "httpcore", "asyncssh", "peewee", "uvicorn", "mcp")
"""Libraries whose messages below warnings are of no use to operators."""

JOURNAL = Path("/run/systemd/journal/socket")
"""Where journald takes entries with fields (systemd, "Native Journal Protocol")."""

_MIN_SECRET = 4
_MULTILINE = ("exception", "stack")
_TOLD = ("timestamp", "level", "event", "logger", *_MULTILINE)
"""What is in the journal's own fields, or first in the message."""
_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}  # syslog(3)
_NO_FIELD = re.compile(r"[^A-Z0-9_]")
_MOST_FIELD = 8000  # characters; a datagram has about 200 KB
_TOKENS = re.compile(
    r"""(?ix)
      (?<=[?&;]) (access_token|private_token|job_token|token|secret|password|key|signature) = [^&\s"'<>]+
    | (?<=://) [^/\s:@]+ : [^/\s@]+ (?=@)
    | \b (?: bearer | basic ) \s+ [\w.~+/=-]{8,}
    | \b (?: glpat | gloas | gldt | glrt | glcbt | glptt | glft | glsoat ) - [\w.-]{10,}
    | \b rave_ [\w-]{20,} | \b syt_ \w+ | \b whsec_ [\w+/=]{8,}
    """
)


class Redaction:
    """Replaces known secrets, and everything that looks like a token, in all that is logged."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[str, ...] = ()
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Also hide these from now on: the token of a new login, for example."""
        plain = [secret for secret in secrets if len(secret) >= _MIN_SECRET]
        known = {*self._secrets, *plain, *(quote(secret, safe="") for secret in plain)}
        # The longest first, because one secret may be part of another.
        self._secrets = tuple(sorted(known, key=len, reverse=True))

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {key: self.value(value) for key, value in event.items()}

    def value(self, value: object) -> object:
        """The same value without secrets. An object of another kind is replaced by its text if that contains one."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        shown = repr(value)
        hidden = self.text(shown)
        return value if hidden == shown and not isinstance(value, bytes | BaseException) else hidden

    def text(self, text: str) -> str:
        """The same text without secrets."""
        return _TOKENS.sub(_hide, self.without_known(text))

    def without_known(self, text: str) -> str:
        """The same text without the known secrets, whatever else looks like one."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


_redaction = Redaction()
"""One per process, like the logging that it belongs to."""


def hide(secret: str) -> None:
    """Hide a secret, such as the token of a new login, from now on in all that is logged."""
    _redaction.add([secret])


def hidden(text: str) -> str:
    """A text without the known secrets that the log hides, for what is shown elsewhere."""
    return _redaction.without_known(text)


def _hide(match: re.Match[str]) -> str:
    return f"{match[1]}={HIDDEN}" if match[1] else HIDDEN


def _drop_record(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event.pop("_record", None)
    event.pop("_from_structlog", None)
    return event


def _facts_first(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Puts time, level and event first, where people look."""
    first = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
    return {**first, **event}


def _printable(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escapes what could move the cursor, reverse a line or fake another one; tracebacks keep their line breaks."""
    return {key: _shown(value, "\n" if key in _MULTILINE else "") for key, value in event.items()}


def _shown(value: object, also: str = "") -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    if text.isprintable():
        return value
    return "".join(
        char if char.isprintable() or char in also else char.encode("unicode_escape").decode() for char in text
    )


def _json(event: EventDict, default: Callable[[object], object]) -> str:
    """JSON with the letters of all scripts, but with escapes for what could move the cursor or reverse a line: logs are
    also read in terminals."""
    text = json.dumps(event, ensure_ascii=False, default=default)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def is_journal(stream: TextIO) -> bool:
    """Whether systemd connected the stream to its journal (JOURNAL_STREAM, systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class JournalHandler(logging.Handler):
    """Sends entries with fields to the journal. What it does not take is written to `otherwise`, as JSON."""

    def __init__(self, path: Path, instance: str, otherwise: logging.Handler) -> None:
        super().__init__()
        self._path = os.fspath(path)
        self._instance = instance
        self._otherwise = otherwise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = json.loads(self._otherwise.format(record))
            # Addressed each time: journald may be restarted. It must not hold up the event loop.
            self._socket.sendto(_packed(_fields(event, self._instance)), socket.MSG_DONTWAIT, self._path)
        except Exception:  # noqa: BLE001 - also what is wrong with the record, which `otherwise` tells of and does not raise
            self._otherwise.handle(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _fields(event: Mapping[str, object], instance: str) -> dict[str, str]:
    """The fields of an entry: each fact as `RAVEBOT_…`, and all of it in `MESSAGE` for people."""
    facts = {key: value for key, value in event.items() if key not in _TOLD}
    said = [str(_shown(event.get("event", ""))), *(f"{key}={_quoted(value)}" for key, value in facts.items())]
    more = [str(event[key]) for key in _MULTILINE if event.get(key)]
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
        text = str(_shown(value, "\n"))[:_MOST_FIELD]
        data = text.encode(errors="replace")
        parts += [name.encode(), b"\n", struct.pack("<Q", len(data)), data, b"\n"]
    return b"".join(parts)


def set_up(level: str, secrets: Iterable[str] = (), stream: TextIO | None = None, instance: str = "") -> None:
    """Write the logs of structlog and the standard library to `stream` (default: stderr), without these secrets.

    If that is the journal, entries get fields, `instance` among them.
    May be called again; what was hidden stays hidden.
    """
    stream = sys.stderr if stream is None else stream
    pretty = stream.isatty()
    _redaction.add(secrets)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S" if pretty else "iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    renderer: list[Processor] = (
        [_printable, structlog.dev.ConsoleRenderer(colors=True, pad_event_to=36)]
        if pretty
        else [_facts_first, structlog.processors.JSONRenderer(_json)]
    )
    handler: logging.Handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[_drop_record, _redaction, *renderer], use_get_message=True
        )
    )
    if is_journal(stream):
        handler = JournalHandler(JOURNAL, instance, handler)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
