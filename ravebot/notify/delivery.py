"""Sends the outbox's rows of one target: in order within a lane, and retried for as long as it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import structlog

from ravebot.backoff import Backoff, jitter
from ravebot.errors import Forbidden, NotFound, SlowDown, StoreError, Unacceptable, Unavailable
from ravebot.store import outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.outbox import Message
from ravebot.store.targets import Target

log = structlog.get_logger()

LANES_AT_ONCE = 8
_PAUSES = Backoff.growing(0.5, 15.0)
_REFUSED_SECONDS = 60.0
_LOOK_SECONDS = 5.0
_STORE_SECONDS = 1.0


@dataclass(frozen=True)
class Sent:
    """The far end has the message. `keep` runs in the transaction that records this."""

    result: str
    keep: Callable[[Transaction], None] | None = None


class Sender(Protocol):
    """Renders and sends one row; a row that it sent before a crash it must not send twice.

    Raises Unavailable, Forbidden or NotFound: the row is tried again and the rest of its lane waits; after SlowDown
    every row with the same `Target.limit` waits. Raises Unacceptable for a row that can never be sent: it is given up,
    so that the lane goes on.
    """

    def look(self, tx: Transaction, message: Message) -> Any:
        """What there is to tell, read in the transaction that records the attempt; given to `send`."""

    async def send(self, message: Message, facts: Any) -> Sent: ...


@dataclass(frozen=True)
class _Attempt:
    """A row that is being sent, and what its sender looked up for it, or the error that it raised."""

    message: Message
    facts: Any


@dataclass(frozen=True)
class _Later:
    delay: timedelta
    refused: str = ""


class Delivery:
    """The loop of one target; calls `on_result` with its name and `delivered`, `retried` or `given up`."""

    def __init__(
        self, database: Database, target: Target, sender: Sender, on_result: Callable[[str, str], None]
    ) -> None:
        self._database = database
        self._target = target
        self._to = target.name
        self._sender = sender
        self._on_result = on_result
        self._busy: set[str] = set()
        # By `Target.limit` and the monotonic clock; the server asked for it. What waits for it is postponed in the
        # database, so that after a restart only rows that were queued since ask again.
        self._paused_until: dict[str, float] = {}

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    taken, due = await self._database.write(partial(self._take, busy=frozenset(self._busy)))
                except StoreError as error:
                    log.warning("outbox could not be read or written", to=self._to, error=str(error))
                    await asyncio.sleep(_STORE_SECONDS)
                    continue
                for attempt in taken:
                    self._busy.add(attempt.message.lane)
                    group.create_task(self._drain(attempt))
                look_in = min(_LOOK_SECONDS, max(0.05, due or _LOOK_SECONDS))
                if await self._database.signals.wait(self._target.signal, look_in):
                    await asyncio.sleep(self._target.gather_seconds)

    def _take(self, tx: Transaction, busy: frozenset[str]) -> tuple[list[_Attempt], float | None]:
        """Record an attempt at the heads of due lanes that are not busy; also returns the seconds to the next one."""
        taken: list[_Attempt] = []
        for lane in outbox.due_lanes(tx, self._target):
            if len(busy) + len(taken) >= LANES_AT_ONCE:
                break
            if lane not in busy and (attempt := self._attempt_head(tx, lane)):
                taken.append(attempt)
        return taken, outbox.seconds_to_next(tx, self._target)

    async def _drain(self, first: _Attempt) -> None:
        """Send a lane's due rows; one transaction records the result of one row and the attempt at the next."""
        lane = first.message.lane
        attempt: _Attempt | None = first
        try:
            while attempt:
                outcome = await self._deliver(attempt)
                attempt = await self._database.write(partial(self._next, message=attempt.message, outcome=outcome))
        except StoreError as error:
            # A row that was sent but not recorded is sent again: under the same transaction id, or found by its marker.
            log.warning("outbox could not be written", to=self._to, lane=lane, error=str(error))
            await asyncio.sleep(_STORE_SECONDS)
        finally:
            self._busy.discard(lane)
            self._database.signals.wake(self._target.signal)

    def _next(self, tx: Transaction, message: Message, outcome: Sent | _Later) -> _Attempt | None:
        if isinstance(outcome, _Later):
            outbox.postpone(tx, message.id, outcome.delay)
            if outcome.refused:
                outbox.note_refusal(tx, message.id, outcome.refused)
            return None
        outbox.delivered(tx, message.id, outcome.result)
        if outcome.keep:
            outcome.keep(tx)
        return self._attempt_head(tx, message.lane)

    def _attempt_head(self, tx: Transaction, lane: str) -> _Attempt | None:
        following = outbox.head(tx, self._target, lane)
        if following is None:
            return None
        pause = self._paused_until.get(self._limit(following), 0.0) - time.monotonic()
        if pause > 0.0:
            outbox.postpone(tx, following.id, timedelta(seconds=pause))
            return None
        outbox.attempt(tx, following.id)
        try:
            return _Attempt(following, self._sender.look(tx, following))
        except Exception as error:  # noqa: BLE001 - a bug, which must stop neither the other lanes nor the bot
            return _Attempt(following, error)

    def _limit(self, message: Message) -> str:
        return self._target.limit(message.kind, message.lane)

    def _slow_down(self, message: Message, seconds: float) -> None:
        now = time.monotonic()
        limit = self._limit(message)
        ahead = {known: until for known, until in self._paused_until.items() if until > now}
        self._paused_until = {**ahead, limit: max(ahead.get(limit, 0.0), now + seconds)}
        log.warning("told to slow down", to=self._to, limit=limit, in_s=round(seconds, 1))

    async def _deliver(self, attempt: _Attempt) -> Sent | _Later:
        message, refused = attempt.message, ""
        try:
            if isinstance(attempt.facts, Exception):
                raise attempt.facts  # noqa: TRY301 - handled like one of `send`
            sent = await self._sender.send(message, attempt.facts)
        except Unavailable as error:
            seconds = error.retry_after_seconds
            failures = message.attempts + 1
            if isinstance(error, SlowDown):
                self._slow_down(message, seconds or 0.0)
                if seconds:  # it says when to come again: a longer pause would let everybody else go first
                    failures = 1
            delay = _PAUSES.after(failures, seconds, jitter())
        except Unacceptable as error:
            log.warning("message given up", to=self._to, lane=message.lane, row=message.id, error=str(error))
            self._on_result(self._to, "given up")
            return Sent(f"refused: {error}")
        except (Forbidden, NotFound) as error:
            delay, refused = _REFUSED_SECONDS, str(error)
            log.warning("message refused, tried again", to=self._to, lane=message.lane, error=str(error))
        except StoreError:
            raise
        # A bug that an unusual answer triggers must not end the bot; the lane goes on when it is fixed.
        except Exception:
            delay = _REFUSED_SECONDS
            log.exception("message could not be sent: this is a bug of ravebot's", to=self._to, row=message.id)
        else:
            self._on_result(self._to, "delivered")
            return sent
        self._on_result(self._to, "retried")
        log.info("message not delivered yet", to=self._to, lane=message.lane, row=message.id, in_s=round(delay, 1))
        return _Later(timedelta(seconds=delay), refused)
