"""Puts the logging of this process together, from structlog and the standard library to where it goes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TextIO

import structlog
from structlog.typing import Processor

from ravebot.logs.journal import JOURNAL, JournalHandler, is_journal
from ravebot.logs.redaction import redaction
from ravebot.logs.rendering import as_json, drop_record, facts_first, printable
from ravebot.logs.writer import LogWriter, sink_of

QUIET = ("nio", "aiohttp", "asyncio", "urllib3", "gitlab", "httpcore", "asyncssh", "peewee", "uvicorn", "mcp")
"""Libraries whose messages below warnings are of no use to operators."""


def set_up(level: str, secrets: Iterable[str] = (), stream: TextIO | None = None, instance: str = "") -> None:
    """Write the logs of structlog and the standard library to `stream` (default: stderr), without these secrets.

    If that is the journal, entries get fields, `instance` among them.
    May be called again; what was hidden stays hidden.
    """
    stream = sys.stderr if stream is None else stream
    pretty = stream.isatty()
    redaction.add(secrets)
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
        [printable, structlog.dev.ConsoleRenderer(colors=True, pad_event_to=36)]
        if pretty
        else [facts_first, structlog.processors.JSONRenderer(as_json)]
    )
    goes = sink_of(stream)
    handler = LogWriter(JournalHandler(JOURNAL, instance, goes) if is_journal(stream) else goes)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[drop_record, redaction, *renderer], use_get_message=True
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, LogWriter):
            old.close()
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
