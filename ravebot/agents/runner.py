"""The loop over conversations with agents: each that has something to do is driven, beside the others.

A wake-up reads the first unfinished turn of each conversation, and wakes only the drivers that it concerns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta

import structlog

from ravebot.agents.model import ConversationId, TurnState
from ravebot.agents.transports.contract import ConversationTransport, Nudge
from ravebot.errors import StoreError
from ravebot.store import agent_work
from ravebot.store.agent_work import AgentWork
from ravebot.store.database import Database
from ravebot.store.signals import AGENTS

log = structlog.get_logger()

MOST_DRIVEN = 100
"""Conversations that are driven at once; beyond that idle ones leave."""
_LOOK_SECONDS = 5.0
_STORE_SECONDS = 1.0
_BETWEEN_LOOKS_SECONDS = 0.02
_LONGEST_PAUSE = timedelta(minutes=5)
"""A moment that lies further ahead comes from a clock that was set back."""


class AgentRunner:
    """Has conversations driven."""

    def __init__(self, database: Database, transport: ConversationTransport, most: int = MOST_DRIVEN) -> None:
        self._database = database
        self._transport = transport
        self._most = most
        self._nudges: dict[ConversationId, Nudge] = {}
        self._seen: dict[ConversationId, object] = {}
        self._begun: dict[ConversationId, int] = {}  # which start was a conversation's last
        self._starts = 0
        self._left: dict[ConversationId, tuple[object, float]] = {}  # how it was when its driver ended, and when

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    now, heads = await self._database.read(lambda tx: (tx.now, agent_work.heads(tx)))
                except StoreError as error:
                    log.warning("what agents have to do could not be read", error=str(error))
                    await asyncio.sleep(_STORE_SECONDS)
                    continue
                self._nudge(heads)
                for one in self._to_begin(heads, now):
                    self._nudges[one.conversation_id] = Nudge()
                    group.create_task(self._drive(one.conversation_id))
                await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)
                await self._database.signals.wait(AGENTS, _until_due(heads, now))

    def _nudge(self, heads: Iterable[AgentWork]) -> None:
        """Wake the drivers whose conversation changed since the last look."""
        seen = {one.conversation_id: _mark(one) for one in heads}
        for conversation_id, nudge in self._nudges.items():
            if seen.get(conversation_id) != self._seen.get(conversation_id):
                nudge.wake()
        self._seen = dict(seen)

    def _to_begin(self, heads: Iterable[AgentWork], now: datetime) -> list[AgentWork]:
        """The conversations to begin with: the one whose last start is longest ago comes first."""
        ready = [one for one in heads if one.conversation_id not in self._nudges and self._can_go_on(one, now)]
        ready.sort(key=lambda one: (self._begun.get(one.conversation_id, 0), one.turn_id))
        free = self._most - len(self._nudges)
        if len(ready) > free:
            self._make_room(len(ready) - free, {one.conversation_id for one in heads})
        begun = ready[: max(0, free)]
        for one in begun:
            self._starts += 1
            self._begun[one.conversation_id] = self._starts
        return begun

    def _make_room(self, places: int, at_work: set[ConversationId]) -> None:
        idle = [conversation_id for conversation_id in self._nudges if conversation_id not in at_work]
        for conversation_id in idle[:places]:
            self._nudges[conversation_id].leave = True
            self._nudges[conversation_id].wake()

    async def _drive(self, conversation_id: ConversationId) -> None:
        try:
            await self._transport.drive(conversation_id, self._nudges[conversation_id])
        except StoreError as error:  # nothing is changed, and it is tried again when the database is writable
            log.warning("a conversation waits for the database", conversation=conversation_id, error=str(error))
            await asyncio.sleep(_STORE_SECONDS)
        # A bug that an agent triggers must not end the bot.
        except Exception:
            log.exception(
                "a conversation could not be driven: this is a bug of ravebot's", conversation=conversation_id
            )
            await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._left[conversation_id] = self._seen.get(conversation_id), asyncio.get_running_loop().time()
            del self._nudges[conversation_id]
            self._database.signals.wake(AGENTS)

    def _can_go_on(self, one: AgentWork, now: datetime) -> bool:
        """Whether a driver can do something; where the last one found nothing, another looks in a while."""
        mark, left_at = self._left.get(one.conversation_id, (None, 0.0))
        if mark == _mark(one) and asyncio.get_running_loop().time() < left_at + _LOOK_SECONDS:
            return False
        if not _due(one, now):
            return False
        if one.given or one.cancelled:
            return True
        return one.state is TurnState.QUEUED and not one.paused


def _mark(one: AgentWork) -> object:
    return one.turn_id, one.state, one.given, one.cancelled, one.paused, one.decided, one.tries


def _due(one: AgentWork, now: datetime) -> bool:
    at = one.next_try_at
    return at is None or at <= now or at > now + _LONGEST_PAUSE


def _until_due(heads: Iterable[AgentWork], now: datetime) -> float:
    waits = [(one.next_try_at - now).total_seconds() for one in heads if one.next_try_at and not _due(one, now)]
    return max(0.05, min([_LOOK_SECONDS, *waits]))
