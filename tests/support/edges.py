"""Edges in memory, for tests of our own logic that need behaviour which no real part can be made to show."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path

from ravebot.access.rules import Attempts, Connections, Repair, Rules, Service
from ravebot.errors import GuestTimeout, NotFound, RavebotError, Unavailable
from ravebot.matrix.client import MatrixClient
from ravebot.notify.delivery import Sent
from ravebot.store.database import Transaction
from ravebot.store.outbox import Message


class Fence:
    """A firewall that stores what it is given; `away` makes it unreachable, `flush` acts like another program."""

    def __init__(self) -> None:
        self.rules = Rules()
        self.history: list[Rules] = []
        self.away = False
        self.hold: asyncio.Event | None = None
        """Rules are applied once it happened; `waiting` tells that some do wait."""
        self.waiting = False
        self.there = False  # whether its tables are
        self.conflicts: list[str] = []
        self.weakness = ""
        self._flushed = False
        self.counted: tuple[Connections, ...] = ()
        self.tried: dict[Service, Attempts] = {}

    def flush(self) -> None:
        self.rules, self._flushed = Rules(), True

    @property
    def ports(self) -> set[int]:
        return {forward.port for forward in self.rules.forwards}

    async def open(self) -> None:
        """Nothing to write."""

    async def ensure(self, rules: Rules) -> Repair:
        if self.away:
            raise Unavailable("nftables does not answer")
        if self.hold is not None:
            self.waiting = True
            await self.hold.wait()
        repair = Repair(
            self._flushed,
            len(rules.forwards - self.rules.forwards) + len(rules.guests - self.rules.guests),
            len(self.rules.forwards - rules.forwards) + len(self.rules.guests - rules.guests),
        )
        self.rules, self._flushed, self.there = rules, False, True
        self.history.append(rules)
        return repair

    async def connections(self) -> tuple[Connections, ...]:
        if self.away:
            raise Unavailable("nftables does not answer")
        counted, self.counted = self.counted, ()
        return counted

    def attempts(self) -> Mapping[Service, Attempts]:
        tried, self.tried = self.tried, {}
        return tried

    async def changes(self) -> AsyncIterator[None]:
        return
        yield  # makes this an iterator: nothing ever changes

    async def find_conflicts(self) -> list[str]:
        return self.conflicts

    async def close(self) -> None:
        """Nothing to stop."""

    async def remove(self) -> tuple[str, ...]:
        removed = ("firewall",) if self.there else ()
        self.rules, self.there = Rules(), False
        return removed


class FarEnd:
    """Accepts messages; each error in `errors` is raised once, for the next send."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.tried: list[tuple[int, float]] = []
        self.errors: list[Exception] = []
        self.refuses: dict[str, Exception] = {}  # by lane, for good
        self.unreadable: set[str] = set()  # lanes
        self.stuck: asyncio.Event | None = None  # sends arrive, and their answers wait for this

    def look(self, _: Transaction, message: Message) -> None:
        """Nothing: what is sent is in the row."""
        if message.lane in self.unreadable:
            raise KeyError(message.lane)

    async def send(self, message: Message, _facts: None) -> Sent:
        self.tried.append((message.id, asyncio.get_running_loop().time()))
        if message.lane in self.refuses:
            raise self.refuses[message.lane]
        if self.errors:
            raise self.errors.pop(0)
        self.got.append(message)
        if self.stuck is not None:
            await self.stuck.wait()
        return Sent(f"${message.id}")


class Web:
    """Guests' web ports, which no test reaches for real: a memory provider's machines have addresses of somebody."""

    def __init__(self) -> None:
        self.answer: str | None = "https"

    async def scheme(self, address: str, port: int) -> str | None:
        return self.answer

    async def expect(self, address: str, port: int, path: str, timeout: timedelta) -> None:
        if self.answer is None:
            raise GuestTimeout(f"nothing answered at {path}")


class Code:
    """GitLab as the pool needs it: keys by user, and an archive that is always there."""

    def __init__(self) -> None:
        self.keys: dict[int, tuple[str, ...]] = {}
        self.error: RavebotError | None = None
        self.disk_full = False
        self.fetched: list[str] = []
        self.asked_keys = 0
        self.gone: set[int] = set()  # users whose account was deleted
        self.elsewhere: dict[int, Callable[[int], Awaitable[tuple[str, ...]]]] = {}  # who tells of a user's keys
        self.silent: set[int] = set()  # users of whom GitLab does not tell

    async def ssh_keys(self, user_id: int) -> tuple[str, ...]:
        self.asked_keys += 1
        if user_id in self.elsewhere:
            return await self.elsewhere[user_id](user_id)
        if user_id in self.gone:
            raise NotFound("404 User Not Found")
        if self.error or user_id in self.silent:
            raise self.error or Unavailable("GitLab answered 500")
        return self.keys.get(user_id, ())

    async def archive(self, project_id: int, sha: str, target: Path, max_bytes: int) -> int:
        if self.error:
            raise self.error
        if self.disk_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.fetched.append(sha)
        return target.write_bytes(b"an archive")


class LosesAnswers:
    """Takes what is sent to Matrix there, and loses the answer as often as it is told to."""

    def __init__(self, client: MatrixClient) -> None:
        self.client = client
        self.to_lose = 0

    async def send(
        self, room_id: str, content: Mapping[str, object], txn_id: str, event_type: str = "m.room.message"
    ) -> str:
        event_id = await self.client.send(room_id, content, txn_id, event_type)
        if self.to_lose:
            self.to_lose -= 1
            raise Unavailable("the answer got lost")
        return event_id

    async def redact(self, room_id: str, event_id: str, txn_id: str) -> str:
        return await self.client.redact(room_id, event_id, txn_id)

    async def upload(self, data: bytes, name: str, kind: str) -> str:
        return await self.client.upload(data, name, kind)

    async def display_name(self, user_id: str) -> str:
        return await self.client.display_name(user_id)
