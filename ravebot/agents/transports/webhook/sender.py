"""The loop over webhooks: each that is due is sent, beside the others, until the agent has it or it is given up.

That an attempt begins is stored before it is made: after a crash the next one counts it as one without an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from ravebot.agents import registry
from ravebot.agents.allowed import StillAllowed
from ravebot.agents.elsewhere import ElsewhereTurns
from ravebot.agents.model import AgentDelivery, DeliveryId, DeliveryKind, Turn
from ravebot.agents.transports.webhook import signing
from ravebot.agents.transports.webhook.outcomes import LONGEST_PAUSE, TOLD_TRIES, Posted, PostVerdict, Sequel, judge
from ravebot.agents.transports.webhook.poster import WebhookPoster
from ravebot.backoff import jitter
from ravebot.errors import StoreError
from ravebot.store import conversations, deliveries
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import DELIVERIES

log = structlog.get_logger()

MOST_OF_AN_AGENT = 4
"""Webhooks to one agent that are under way at once: one that hangs does not hold up the others."""
_LOOK_SECONDS = 5.0
_STORE_SECONDS = 1.0
_BETWEEN_LOOKS_SECONDS = 0.02
_LONGEST_PAUSE = timedelta(seconds=2 * LONGEST_PAUSE)
"""A moment that lies further ahead comes from a clock that was set back."""


@dataclass(frozen=True)
class ToPost:
    """What one attempt needs; `body` as it is sent, `tries` with this one."""

    delivery: AgentDelivery
    url: str
    body: bytes
    headers: Mapping[str, str]
    tries: int


@dataclass
class WebhookSender:
    """`keys`: of the agents with `webhook`, by name."""

    database: Database
    turns: ElsewhereTurns
    allowed: StillAllowed
    poster: WebhookPoster
    keys: Mapping[str, bytes] = field(repr=False)
    _under_way: dict[DeliveryId, str] = field(default_factory=dict)  # and whose agent's it is

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    waiting, pause = await self.database.read(_look)
                except StoreError as error:
                    log.warning("what is to be sent to agents could not be read", error=str(error))
                    await asyncio.sleep(_STORE_SECONDS)
                    continue
                for one in self._to_begin(waiting):
                    self._under_way[one.id] = one.agent
                    group.create_task(self._send(one))
                await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)
                await self.database.signals.wait(DELIVERIES, pause)

    def _to_begin(self, waiting: Iterable[AgentDelivery]) -> list[AgentDelivery]:
        busy = Counter(self._under_way.values())
        begun = []
        for one in waiting:
            if one.id not in self._under_way and busy[one.agent] < MOST_OF_AN_AGENT:
                busy[one.agent] += 1
                begun.append(one)
        return begun

    async def _send(self, one: AgentDelivery) -> None:
        try:
            await self._attempt(one)
        except StoreError as error:  # it is sent again under the same id when the database is writable
            log.warning("a webhook to an agent waits for the database", delivery=one.id, error=str(error))
            await asyncio.sleep(_STORE_SECONDS)
        # A bug that one message triggers must not end the bot.
        except Exception:
            log.exception("a webhook to an agent could not be sent: this is a bug of ravebot's", delivery=one.id)
            await asyncio.sleep(_LOOK_SECONDS)
        finally:
            del self._under_way[one.id]
            self.database.signals.wake(DELIVERIES)

    async def _attempt(self, one: AgentDelivery) -> None:
        if one.tries and one.kind is DeliveryKind.MESSAGE:
            turn = await self.database.read(lambda tx: conversations.turn(tx, one.turn_id))
            if turn is not None and not turn.state.is_over and not await self.allowed.ask(turn):
                return
        to_post = await self.database.write(lambda tx: self._begin(tx, one.id), urgent=True)
        if to_post is None:
            return
        posted = await self.poster.post(to_post.url, to_post.body, to_post.headers)
        sequel = judge(posted, to_post.tries, jitter())
        said = {"agent": one.agent, "delivery": one.id, "turn": one.turn_id, "tries": to_post.tries}
        log.info("webhook to an agent", kind=one.kind.value, end=posted.end.value, status=posted.status, **said)
        await self.database.write(lambda tx: self._ended(tx, one.id, posted, sequel), urgent=True)

    def _begin(self, tx: Transaction, delivery_id: DeliveryId) -> ToPost | None:
        """Store that an attempt begins; None: nothing is to be sent any more."""
        delivery = deliveries.get(tx, delivery_id)
        if delivery is None or delivery.settled_at is not None:
            return None
        turn = _open_turn(tx, delivery)
        if delivery.kind is DeliveryKind.MESSAGE and (turn is None or turn.cancelled_by):
            if turn is None:
                deliveries.settle(tx, delivery)
            return None
        agent = registry.find(self.turns.config, delivery.agent)
        key = self.keys.get(delivery.agent)
        if agent is None or agent.webhook is None or key is None:
            if turn is not None and delivery.kind is DeliveryKind.MESSAGE:
                self.turns.give_up(tx, turn, f"{delivery.agent} is not configured with `webhook` any more.")
            else:
                deliveries.settle(tx, delivery)
            return None
        begun = replace(
            delivery,
            tries=delivery.tries + 1,
            doubtful=delivery.doubtful or delivery.sending_at is not None,
            sending_at=tx.now,
            next_try_at=None,
        )
        deliveries.save(tx, begun)
        body = delivery.body.encode()
        headers = signing.headers(key, delivery.id, tx.now, body)
        return ToPost(begun, str(agent.webhook.url), body, headers, begun.tries)

    def _ended(self, tx: Transaction, delivery_id: DeliveryId, posted: Posted, sequel: Sequel) -> None:
        """Store what came of an attempt."""
        delivery = deliveries.get(tx, delivery_id)
        if delivery is None or delivery.settled_at is not None:
            return
        delivery = replace(
            delivery, sending_at=None, doubtful=delivery.doubtful or sequel.doubtful, problem=sequel.why[:300]
        )
        turn = _open_turn(tx, delivery) if delivery.kind is DeliveryKind.MESSAGE else None
        agent = registry.find(self.turns.config, delivery.agent)
        if sequel.then is PostVerdict.AGAIN:
            deliveries.save(tx, replace(delivery, next_try_at=tx.now + timedelta(seconds=sequel.pause_seconds)))
            if turn is not None and delivery.tries == TOLD_TRIES:
                self._remark(tx, turn, f"The webhook of {delivery.agent} {sequel.why}.")
        elif turn is None or agent is None:
            deliveries.settle(tx, delivery)
        elif sequel.then is PostVerdict.DONE:
            self.turns.accepted(tx, delivery, agent.limits.turn)
        else:
            deliveries.save(tx, delivery)
            self.turns.give_up(tx, turn, f"The webhook of {delivery.agent} {sequel.why}.")

    def _remark(self, tx: Transaction, turn: Turn, text: str) -> None:
        conversation = conversations.get(tx, turn.conversation_id)
        assert conversation
        told = f"{text} It is tried again for an hour; you need not ask again."
        self.turns.progress.telling.remark(tx, conversation, told)


def _open_turn(tx: Transaction, delivery: AgentDelivery) -> Turn | None:
    turn = conversations.turn(tx, delivery.turn_id)
    return None if turn is None or turn.state.is_over else turn


def _look(tx: Transaction) -> tuple[tuple[AgentDelivery, ...], float]:
    """What is to be sent now, and after how many seconds it is worth looking again.

    Of an agent twice as many as may be under way, because those are among them.
    """
    due, later = deliveries.to_send(tx, _LONGEST_PAUSE, 2 * MOST_OF_AN_AGENT), deliveries.next_try(tx)
    pause = (later - tx.now).total_seconds() if later else _LOOK_SECONDS
    return due, max(0.05, min(_LOOK_SECONDS, pause))
