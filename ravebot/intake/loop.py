"""Processes the inbox lane by lane: in order within a lane, with retries while a part is unavailable."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Protocol

import structlog

from ravebot.backoff import Backoff
from ravebot.errors import Forbidden, NotFound, RavebotError, StoreError, Unacceptable, Unavailable
from ravebot.store import inbox
from ravebot.store.database import Database, Transaction
from ravebot.store.inbox import Request
from ravebot.store.signals import INTAKE

log = structlog.get_logger()

AT_ONCE = 8
MOST_OF_A_SOURCE = 7
"""Slots, of `AT_ONCE`, that one source may hold."""
_PAUSES = Backoff.growing(1.0, 60.0)
_LOOK_SECONDS = 5.0
_STORE_SECONDS = 1.0


class NotYet(RavebotError):
    """A request can't be understood before something of ours is recorded: it is kept, and nobody is told."""


Step = Callable[[Transaction], str]
"""A request's effect, run in the transaction that marks it as handled; returns the outcome for the log."""


def only(outcome: str) -> Step:
    """A step without an effect."""

    def step(_: Transaction) -> str:
        return outcome

    return step


class Handler(Protocol):
    """Reads a request, asks GitLab if necessary, returns the step; after `Unavailable` it is called again."""

    async def handle(self, request: Request) -> Step: ...

    def delayed(self, tx: Transaction, request: Request, why: str) -> None:
        """Called once when a request has to wait: tell the person who asked."""

    def failed(self, tx: Transaction, request: Request, why: str) -> None:
        """Called when a request fails for good: tell the person who asked."""


class Intake:
    """The loop over the inbox."""

    def __init__(self, database: Database, handlers: Mapping[str, Handler]) -> None:
        self._database = database
        self._handlers = handlers
        self._busy: set[tuple[str, str]] = set()
        self._ended: set[int] = set()  # requests that ended while the heads were read, which may still list them

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._ended.clear()
                try:
                    heads = await self._database.read(lambda tx: inbox.heads(tx, 4 * AT_ONCE))
                except StoreError as error:
                    log.warning("inbox could not be read", error=str(error))
                    await asyncio.sleep(_STORE_SECONDS)
                    continue
                for request in self._turns(heads):
                    self._busy.add((request.source, request.lane))
                    group.create_task(self._work(request))
                await self._database.signals.wait(INTAKE, _LOOK_SECONDS)

    def _turns(self, heads: Iterable[Request]) -> Iterator[Request]:
        """The requests to begin now: each free slot goes to the source that has the fewest, and none gets all of them.

        So a GitLab that does not answer never keeps what is said in the rooms from being handled.
        """
        free = [
            request
            for request in heads
            if (request.source, request.lane) not in self._busy and request.id not in self._ended
        ]
        slots = Counter(source for source, _ in self._busy)
        while free and slots.total() < AT_ONCE:
            request = min(free, key=lambda one: slots[one.source])
            if slots[request.source] >= MOST_OF_A_SOURCE:
                break
            free.remove(request)
            slots[request.source] += 1
            yield request

    async def _work(self, request: Request) -> None:
        try:
            await self._act(request)
        except StoreError as error:  # the row is unchanged, and is retried when the database is writable again
            log.warning("request waits for the database", request=request.id, error=str(error))
            await asyncio.sleep(_STORE_SECONDS)
        finally:
            self._busy.discard((request.source, request.lane))
            self._ended.add(request.id)
            self._database.signals.wake(INTAKE)

    async def _act(self, request: Request) -> None:
        handler = self._handlers[request.source]
        try:
            step = await handler.handle(request)
            outcome = await self._database.write(partial(_finish, request=request, step=step))
        except Unavailable as error:
            delay = _PAUSES.after(request.attempts + 1, error.retry_after_seconds)
            log.warning("request waits", request=request.id, error=str(error), in_s=delay)
            waits = partial(_delay, request=request, handler=handler, why=_in_words(error), seconds=delay)
            await self._database.write(waits)
        except NotYet:
            delay = _PAUSES.after(request.attempts + 1)
            await self._database.write(lambda tx: inbox.postpone(tx, request.id, timedelta(seconds=delay)))
        except StoreError:
            raise
        except RavebotError as error:
            log.warning("request refused", request=request.id, kind=request.kind, error=str(error))
            await self._give_up(request, handler, _in_words(error), str(error))
        # A bug that a hostile payload triggers must not end the bot, nor be retried for ever.
        except Exception:
            log.exception("request could not be handled: this is a bug of ravebot's", request=request.id)
            why = "I could not make sense of that, which is a bug of mine. My log says more: tell an admin of ravebot."
            await self._give_up(request, handler, why, "a bug")
        else:
            log.info("request handled", request=request.id, source=request.source, lane=request.lane, outcome=outcome)

    async def _give_up(self, request: Request, handler: Handler, why: str, cause: str) -> None:
        """Tell the person who asked, if they can be identified, and mark the request as failed."""
        try:
            await self._database.write(partial(_refuse, request=request, handler=handler, why=why, cause=cause))
        except StoreError:
            raise
        # A payload that can't be read can't be answered either.
        except Exception:
            log.exception("no answer could be given to a request that was given up", request=request.id)
            await self._database.write(partial(inbox.handled, request_id=request.id, outcome=f"given up: {cause}"))


def _in_words(error: RavebotError) -> str:
    """GitLab's error for the person who asked; the log has it as it is."""
    match error:
        case Unavailable():
            return "GitLab does not answer as it should right now."
        case NotFound():
            return "GitLab does not have that, or I may not see it. Ask a Maintainer of the project to add me."
        case Forbidden() if not isinstance(error, Unacceptable):
            return "GitLab does not let me do that. Ask a Maintainer of the project to give me the role Developer."
        case _:
            return "I could not make sense of GitLab's answer. Try again later, or tell an admin of ravebot."


def _finish(tx: Transaction, request: Request, step: Step) -> str:
    if not inbox.waits(tx, request.id):
        return "was handled before"
    outcome = step(tx)
    inbox.handled(tx, request.id, outcome)
    return outcome


def _delay(tx: Transaction, request: Request, handler: Handler, why: str, seconds: float) -> None:
    if request.attempts == 0:
        handler.delayed(tx, request, why)
    inbox.postpone(tx, request.id, timedelta(seconds=seconds))


def _refuse(tx: Transaction, request: Request, handler: Handler, why: str, cause: str) -> None:
    handler.failed(tx, request, why)
    inbox.handled(tx, request.id, f"given up: {cause}")
