"""Conversations with agents that work elsewhere: one takes webhooks, one has an inbox; no sandbox is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ravebot.agents.allowed import StillAllowed, StillMay
from ravebot.agents.answers import AgentAnswers, AnswerEnd, AnswerTaken, TakenMessage
from ravebot.agents.desk import Addressed, Desk, DeskOutcome
from ravebot.agents.elsewhere import ElsewhereTurns
from ravebot.agents.model import AgentDelivery, AgentDoor, ConversationId, DeliveryKind, Turn, TurnId
from ravebot.agents.progress import TurnProgress
from ravebot.agents.runner import AgentRunner
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.transports.choice import ChosenTransport
from ravebot.agents.transports.contract import Nudge
from ravebot.agents.transports.elsewhere import ElsewhereDriver
from ravebot.agents.transports.webhook.poster import WebhookPoster
from ravebot.agents.transports.webhook.sender import WebhookSender
from ravebot.agents.waiting import SandboxBinding, WaitingLoop
from ravebot.clock import Clock, SystemClock
from ravebot.config.model import AgentConfig, Budgets, Config, PersonBudget
from ravebot.config.secrets import signing_key
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.store import conversations, deliveries, merge_requests
from ravebot.store.database import Database, Transaction
from tests.support.receivers import SIGNING_KEY
from tests.support.records import a_merge_request, make_config

ALICE_IN_ROOM = Actor("matrix", "@alice:example.org")
ROOM_ID = "!room:example.org"
MR = a_merge_request()


def elsewhere_config(folder: Path, url: str, **facts: Any) -> Config:
    known: dict[str, Any] = {"owner": "alice", "projects": ["group/*"], **facts}
    hook = {"url": url or "http://127.0.0.1:1/", "signing_key_file": str(folder / "key")}
    agents = (
        AgentConfig.model_validate({"name": "reviewer", "webhook": hook, **known}),
        AgentConfig.model_validate({"name": "helper", "inbox": True, **known}),
    )
    budgets = Budgets(person=PersonBudget(messages_per_day=1_000_000))
    return make_config(folder).model_copy(update={"agents": agents, "budgets": budgets})


class NoSandboxes:
    """The transport of agents in sandboxes, which no conversation here needs."""

    async def drive(self, conversation_id: ConversationId, nudge: Nudge) -> None:
        raise AssertionError(f"conversation {conversation_id} is driven as one in a sandbox")


@dataclass
class ElsewhereWorld:
    """What tests of such agents work with."""

    config: Config
    database: Database
    desk: Desk
    answers: AgentAnswers
    runner: AgentRunner
    driver: ElsewhereDriver
    sender: WebhookSender
    waiting: WaitingLoop
    mr: MergeRequest = MR

    async def say(self, agent: str = "reviewer", text: str = "please look", thread: str = "$root") -> TurnId:
        """A person says something to an agent; returns the turn."""
        outcome = await self.database.write(lambda tx: self.accept(tx, agent, text, thread))
        assert outcome.accepted, outcome
        assert outcome.turn_id, outcome
        return outcome.turn_id

    def accept(self, tx: Transaction, agent: str, text: str, thread: str) -> DeskOutcome:
        if merge_requests.get(tx, self.mr.ref) is None:
            merge_requests.observe(tx, self.mr)
        key = f"${time.monotonic_ns()}"
        return self.desk.accept(
            tx, Addressed(agent, AgentDoor.MATRIX, ROOM_ID, thread, True, self.mr.ref, key, ALICE_IN_ROOM, text)
        )

    async def turn(self, turn_id: TurnId) -> Turn:
        found = await self.database.read(lambda tx: conversations.turn(tx, turn_id))
        assert found
        return found

    async def delivery(self, turn_id: TurnId, kind: DeliveryKind = DeliveryKind.MESSAGE) -> AgentDelivery | None:
        return await self.database.read(lambda tx: deliveries.of_turn(tx, turn_id, kind))

    async def until(self, condition: Callable[[Turn], object], turn_id: TurnId, seconds: float = 30) -> Turn:
        """Wait until it is so with a turn."""
        until = time.monotonic() + seconds
        while not condition(turn := await self.turn(turn_id)):
            assert time.monotonic() < until, turn
            await asyncio.sleep(0.01)
        return turn

    async def over(self, turn_id: TurnId, seconds: float = 30) -> Turn:
        return await self.until(lambda turn: turn.state.is_over, turn_id, seconds)

    async def cancel(self, turn_id: TurnId) -> None:
        conversation = (await self.turn(turn_id)).conversation_id
        outcome = await self.database.write(lambda tx: self.desk.cancel(tx, conversation, ALICE_IN_ROOM))
        assert outcome.accepted, outcome

    async def take(self, agent: str = "helper") -> TakenMessage | None:
        """As the API does it: look without waiting, then take."""
        found = await self.answers.next_for(agent)
        return await self.database.write(lambda tx: self.answers.take(tx, agent, found)) if found else None

    async def ack(self, delivery_id: str, agent: str = "helper") -> AnswerTaken:
        return await self.database.write(lambda tx: self.answers.ack(tx, agent, delivery_id))

    async def answer(
        self, delivery_id: str, text: str = "", end: AnswerEnd | None = None, agent: str = "reviewer", **more: str
    ) -> AnswerTaken:
        return await self.database.write(lambda tx: self.answers.answer(tx, agent, delivery_id, text, end=end, **more))

    async def remarks(self) -> list[str]:
        """What was said in conversations by ravebot itself, the oldest first."""
        rows = await self.database.read(lambda tx: tx.all("SELECT json_extract(body, '$.text') AS text FROM outbox"
                                                          " WHERE kind = 'remark' ORDER BY id"))  # fmt: skip
        return [row["text"] for row in rows]


def make_world(
    config: Config, database: Database, may_give: StillMay | None = None, seconds: float = 15.0
) -> ElsewhereWorld:
    telling = ConversationTelling(config)
    turns = ElsewhereTurns(config, TurnProgress(telling))
    allowed = StillAllowed(database, turns.give_up, may_give)
    driver = ElsewhereDriver(database, turns, allowed)
    return ElsewhereWorld(
        config,
        database,
        Desk(config, telling),
        AgentAnswers(config, database, turns, allowed),
        AgentRunner(database, ChosenTransport(config, database, NoSandboxes(), driver)),
        driver,
        WebhookSender(database, turns, allowed, WebhookPoster(seconds), {"reviewer": signing_key(SIGNING_KEY)}),
        WaitingLoop(database, SandboxBinding(config, telling)),
    )


@asynccontextmanager
async def an_elsewhere_world(
    folder: Path,
    url: str = "",
    *,
    clock: Clock | None = None,
    runs: bool = True,
    may_give: StillMay | None = None,
    seconds: float = 15.0,
    **agent: Any,
) -> AsyncIterator[ElsewhereWorld]:
    """`runs`: the runner and the loop over webhooks run; `seconds`: the longest time for a webhook's answer."""
    folder.mkdir(exist_ok=True)
    config = elsewhere_config(folder, url, **agent)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(folder / "ravebot.db", clock or SystemClock()))
        world = make_world(config, database, may_give, seconds)
        tasks = [asyncio.create_task(loop) for loop in (world.runner.run(), world.sender.run())] if runs else []
        try:
            yield world
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task
