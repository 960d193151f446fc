"""Cuts a stream of server-sent events into whole events, of bounded length. Pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html: an empty line ends an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST_EVENT_BYTES = 8 * 1024**2
_END = re.compile(rb"\n\n|\r\n\r\n|\r\r|\n\r\n")
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n")
_LONGEST_END = max(map(len, _ENDS))


class EventTooLong(Exception):
    """An event of a stream is longer than ravebot takes."""


class EventCutter:
    """Takes the bytes as they come; gives whole events as they were, each with the empty line that ends it."""

    def __init__(self, longest: int = LONGEST_EVENT_BYTES) -> None:
        self._longest = longest
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """The events that are whole now, one after the other. Raises EventTooLong."""
        rest = self._rest
        if not rest and data.endswith(b"\n\n"):  # as it mostly is
            return data
        unseen = max(0, len(rest) - _LONGEST_END + 1)
        rest += data
        possible = _ENDS if rest.find(b"\r", unseen) >= 0 else _ENDS[:1]
        ends = max(at + len(end) if (at := rest.rfind(end, unseen)) >= 0 else 0 for end in possible)
        if len(rest) - ends > self._longest:
            raise EventTooLong
        whole = bytes(memoryview(rest)[:ends])
        del rest[:ends]
        return whole

    def rest(self) -> bytes:
        """What came after the last whole event."""
        return bytes(self._rest)


def each(events: bytes) -> Iterator[bytes]:
    """One event after the other."""
    begins = 0
    for found in _END.finditer(events):
        yield events[begins : found.end()]
        begins = found.end()
