"""Writes entries in a thread of its own, so that a full pipe or a journald that hangs does not hold up ravebot's work.

Usually an entry is written when the call that logs it returns, so that no crash takes it back. A call waits for that a
moment only; then entries are held in memory, up to a bound, and how many were dropped beyond it is told afterwards.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from threading import Condition, Thread, current_thread
from typing import TextIO

_MOST_HELD = 4_000_000  # characters


class LogWriter(logging.Handler):
    """Formats at once, where the facts are as they were told; `writes` then gets records that have the text only."""

    def __init__(
        self,
        writes: logging.Handler,
        *,
        patience_seconds: float = 0.1,
        closing_seconds: float = 1.0,
        most_held: int = _MOST_HELD,
    ) -> None:
        super().__init__()
        self._closing_seconds = closing_seconds
        self._patience_seconds = patience_seconds
        self.writes = writes
        self._most_held = most_held
        self._held = deque[logging.LogRecord]()  # the first is being written
        self._characters = 0
        self._dropped = 0
        self._is_late = False
        self._is_closing = False
        self._changed = Condition()
        self._thread: Thread | None = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the handler's own lock: the garbage collector may have something log while this thread has ours."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        written = self._written(record)
        with self._changed:
            if self._is_closing and not self._held:
                self.writes.emit(written)  # no lock: the end of this process would wait for it
                return
            # Once some were dropped, more are until there is room for many: they are told of together.
            if self._characters > (self._most_held / 2 if self._dropped else self._most_held):
                self._dropped += 1
                return
            self._hold(written)
            if not self._is_late and current_thread() is not self._thread:
                self._is_late = not self._changed.wait_for(lambda: not self._held, self._patience_seconds)

    def flush(self) -> None:
        """Wait until all is written, or for a while."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held, self._closing_seconds)

    def close(self) -> None:
        self.flush()
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            if not self._held:
                self.writes.close()
        super().close()

    def _written(self, record: logging.LogRecord) -> logging.LogRecord:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - a library's wrong use of logging, which is not to fail for that
            facts = {"logged": repr(record.msg), "error": repr(error), "path": record.pathname, "line": record.lineno}
            text = self.format(_record(record.name, logging.ERROR, "a message can't be written", **facts))
        return _record(record.name, record.levelno, text)

    def _hold(self, written: logging.LogRecord) -> None:
        self._held.append(written)
        self._characters += len(written.msg)
        if self._thread is None:
            self._thread = Thread(target=self._write, name="log", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._is_closing)
                if not self._held:
                    return
                written = self._held[0]
            self.writes.emit(written)  # no lock: the end of this process would wait for it
            with self._changed:
                self._held.popleft()
                self._characters -= len(written.msg)
                if self._dropped and self._characters <= self._most_held / 2:
                    what = "the log could not be written for a while: messages were dropped"
                    self._hold(self._written(_record(__name__, logging.ERROR, what, count=self._dropped)))
                    self._dropped = 0
                if not self._held:
                    self._is_late = False
                    self._changed.notify_all()


class Descriptor:
    """A stream's file descriptor, without the stream's lock, for which the end of this process would wait."""

    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")
        while data:
            data = data[os.write(self._number, data) :]


def descriptor_of(stream: TextIO) -> TextIO | Descriptor:
    """The stream's descriptor, or the stream if it has none."""
    try:
        return Descriptor(stream.fileno())
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return stream


def _record(name: str, level: int, text: str, **facts: object) -> logging.LogRecord:
    record = logging.LogRecord(name, level, "", 0, text, None, None)
    vars(record).update(facts)
    return record
