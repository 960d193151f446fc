"""Work in a thread that ends soon after its caller is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from ravebot.errors import RavebotError
from ravebot.store.database import uninterrupted

T = TypeVar("T")


class Stopped(RavebotError):
    """The work was told to stop, and left nothing behind."""


class Stop:
    """Tells the work whether to stop."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def now(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raises Stopped if the work is to stop."""
        if self._event.is_set():
            raise Stopped("interrupted")


async def in_thread(work: Callable[[Stop], T]) -> T:
    """Run it in a thread. When the caller is cancelled, it is told to stop, and waited for."""
    stop = Stop()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.now()
        await uninterrupted(_ended(task))
        raise


async def _ended(task: asyncio.Future[T]) -> None:
    await asyncio.wait({task})
    task.exception()  # it was told to stop: how it ended does not matter
