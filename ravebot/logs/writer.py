"""Writes entries so that a full pipe or a journald that hangs does not hold up ravebot's work.

Usually an entry is written when the call that logs it returns, so that no crash takes it back. Where that would have to
wait, a thread writes it. The call waits for that a moment only; then entries are held in memory, up to a bound, and how
many were dropped beyond it is told afterwards.
"""

from __future__ import annotations

import logging
import os
import select
from collections import deque
from threading import Condition, Thread, current_thread
from typing import Protocol, TextIO

_MOST_HELD = 4_000_000  # characters


class Sink(Protocol):
    """What writes records that have the text only."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, however long that takes."""

    def emit_at_once(self, record: logging.LogRecord) -> bool:
        """Write it if that can't take long; returns whether it was written."""

    def close(self) -> None: ...


class LogWriter(logging.Handler):
    """Formats where the facts are as they were told, and has `writes` write the text."""

    def __init__(
        self,
        writes: Sink,
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
            if not self._held and self.writes.emit_at_once(written):
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


class MemorySink(logging.StreamHandler[TextIO]):
    """Writes lines to a stream that never has to wait."""

    def emit_at_once(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True


class DescriptorSink(logging.Handler):
    """Writes lines to a file descriptor, without the lock of a stream, for which the end of this process would wait."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number
        self._room = select.poll()
        self._room.register(number, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        data = _line(record)
        try:
            while data:
                data = data[os.write(self._number, data) :]
        except OSError:
            self.handleError(record)

    def emit_at_once(self, record: logging.LogRecord) -> bool:
        """A pipe that has room takes that much at once: pipe(7)."""
        if len(_line(record)) > select.PIPE_BUF or not self._room.poll(0):
            return False
        self.emit(record)
        return True


def sink_of(stream: TextIO) -> MemorySink | DescriptorSink:
    """What writes to the stream."""
    try:
        return DescriptorSink(stream.fileno())
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return MemorySink(stream)


def _line(record: logging.LogRecord) -> bytes:
    return f"{record.getMessage()}\n".encode(errors="backslashreplace")


def _record(name: str, level: int, text: str, **facts: object) -> logging.LogRecord:
    record = logging.LogRecord(name, level, "", 0, text, None, None)
    vars(record).update(facts)
    return record
