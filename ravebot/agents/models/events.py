"""Cuts a stream of server-sent events into whole events, of bounded length. Pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html: an empty line ends an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST_EVENT_BYTES = 8 * 1024**2
_END = re.compile(rb"\n\n|\r\n\r\n|\r\r|\n\r\n")
_OVERLAP = 3


class EventTooLong(Exception):
    """An event of a stream is longer than ravebot takes."""


class EventCutter:
    """Takes the bytes as they come; gives events as they were, each with the empty line that ends it."""

    def __init__(self, longest: int = LONGEST_EVENT_BYTES) -> None:
        self._longest = longest
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events that are whole now. Raises EventTooLong."""
        look_from = max(0, len(self._rest) - _OVERLAP)  # an end may begin in what came before
        self._rest += data
        taken = 0
        while found := _END.search(self._rest, max(look_from, taken)):
            yield bytes(self._rest[taken : found.end()])
            taken = found.end()
        del self._rest[:taken]
        if len(self._rest) > self._longest:
            raise EventTooLong

    def rest(self) -> bytes:
        """What came after the last whole event."""
        return bytes(self._rest)
