"""Notices when someone else changes the ruleset: reads `nft monitor` and skips our own transactions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress

from ravebot.access.nftables.nft import NetworkTools
from ravebot.backoff import Backoff

_GENERATION = re.compile(rb"^# new generation \d+ by process (\d+)")
"""One such line ends each transaction in nft's text output; its JSON output does not say who made it."""

_PAUSE_SECONDS = 0.2
_SETTLE_SECONDS = 0.5  # until nft listens; it does not tell when
_PAUSES = Backoff((1.0, 2.0, 5.0, 15.0, 60.0))
_LINE_LIMIT = 4096


class Monitor:
    """Runs `nft monitor`, and restarts it whenever it ends."""

    def __init__(self, tools: NetworkTools) -> None:
        self._tools = tools
        self._closed = asyncio.Event()
        self._running: set[asyncio.subprocess.Process] = set()

    async def changes(self) -> AsyncIterator[None]:
        """Yields once per burst of others' transactions, and after each restart, since some may have been missed."""
        failures = 0
        while not self._closed.is_set():
            process = await self._start()
            if process is not None:
                try:
                    if failures:
                        await asyncio.sleep(_SETTLE_SECONDS)
                        yield
                    async for _ in self._foreign(process):
                        failures = 0
                        yield
                finally:
                    await self._end(process)
            failures += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), _PAUSES.after(failures))

    async def close(self) -> None:
        """End every running `changes`."""
        self._closed.set()
        for process in tuple(self._running):
            await self._end(process)

    async def _start(self) -> asyncio.subprocess.Process | None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._tools.prefix,
                "nft",
                "monitor",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return None
        self._running.add(process)
        return process

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process in self._running:  # with a second signal, asyncio might lose the exit code
            self._running.discard(process)
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()

    async def _foreign(self, process: asyncio.subprocess.Process) -> AsyncIterator[None]:
        assert process.stdout is not None
        rest = b""
        while chunk := await process.stdout.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[:_LINE_LIMIT]  # a set's elements make lines of any length; only their start matters
            if any(map(self._is_foreign, lines)):
                yield
                # The first change is reported at once; those that follow are collected and reported together.
                await asyncio.sleep(_PAUSE_SECONDS)

    def _is_foreign(self, line: bytes) -> bool:
        match = _GENERATION.match(line)
        return match is not None and not self._tools.is_own(int(match[1]))
