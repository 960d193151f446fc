"""Limits the memory for unproven webhook bodies, whose signatures are not checked yet: one limit for all together."""

from __future__ import annotations

import asyncio

from ravebot.errors import RavebotError

FREE_BYTES = 16 * 1024
"""This much of each body is not counted: most webhooks are smaller, so other senders can't make them wait. The HTTP
server accepts at most 1000 connections, so this is at most 16 MiB in all."""
_MOST_WAITING = 32
"""The received part of a waiting body is in its connection's buffers, which are not counted: up to 300 KiB each."""


class NoRoom(RavebotError):
    """Other bodies take all the room, and none was freed in time."""


class Unproven:
    """Room of `most_bytes` for all bodies; FREE_BYTES of each, and the buffers of waiting ones, are not counted."""

    def __init__(self, most_bytes: int, patience_seconds: float) -> None:
        self._most_bytes = most_bytes
        self._patience_seconds = patience_seconds
        self._held_bytes = 0
        self._waiting = 0
        self._given_back = asyncio.Event()

    async def take(self, size_bytes: int) -> None:
        """Wait until there is that much room. Raises NoRoom after `patience_seconds`, or at once if too many wait."""
        if not self._has(size_bytes):
            await self._wait(size_bytes)
        self._held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes
        self._given_back.set()
        self._given_back = asyncio.Event()

    def _has(self, size_bytes: int) -> bool:
        return self._held_bytes + size_bytes <= self._most_bytes

    async def _wait(self, size_bytes: int) -> None:
        """A small body may get room before a large one that has waited longer."""
        if self._waiting >= _MOST_WAITING:
            raise NoRoom
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience_seconds):
                while not self._has(size_bytes):
                    await self._given_back.wait()
        except TimeoutError as error:
            raise NoRoom from error
        finally:
            self._waiting -= 1


class Share:
    """The room that one body takes; the code that makes a share must give it back, however the request ends."""

    def __init__(self, unproven: Unproven) -> None:
        self._unproven = unproven
        self._taken_bytes = 0

    async def grow(self, size_bytes: int) -> None:
        """Take the room that a body of that size needs in addition to what it has already. Raises NoRoom."""
        more = size_bytes - FREE_BYTES - self._taken_bytes
        if more > 0:
            await self._unproven.take(more)
            self._taken_bytes += more

    def give_back(self) -> None:
        """The body was dropped, or its signature was checked."""
        if self._taken_bytes:
            self._unproven.give_back(self._taken_bytes)
        self._taken_bytes = 0
