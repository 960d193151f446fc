"""A pool at work with agents: the desk, the turns' progress and their binding to sandboxes, without any transport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ravebot.agents.desk import Addressed, Desk, DeskOutcome
from ravebot.agents.model import (
    AgentDoor,
    Approval,
    ApprovalKind,
    ApprovalState,
    Conversation,
    ConversationId,
    Process,
    Turn,
    TurnId,
    TurnState,
)
from ravebot.agents.progress import TurnProgress
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.waiting import SandboxBinding, WaitingLoop
from ravebot.config.model import AgentConfig, Budgets, Config, PersonBudget
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.store import approvals, conversations, machines, sandboxes
from ravebot.store.database import Database, Transaction
from tests.support.records import a_merge_request
from tests.support.yard import Yard, a_yard

MR = a_merge_request()
ALICE = Actor("matrix", "@alice:example.org")
GINA = Actor("matrix", "@gina:example.org")
ROOM_ID = "!room:example.org"
LIMIT = AgentConfig(name="x").limits.turn


def an_agent(name: str = "coder", **facts: Any) -> AgentConfig:
    known: dict[str, Any] = {"owner": "alice", "projects": ["group/*"], "acp": {"command": ["agent"]}}
    return AgentConfig.model_validate({"name": name, **known, **facts})


@dataclass
class AgentYard:
    """What tests of the desk work with."""

    yard: Yard
    config: Config
    desk: Desk
    binding: SandboxBinding
    progress: TurnProgress
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def addressed(self, text: str = "please look", **facts: Any) -> Addressed:
        known: dict[str, Any] = {
            "agent": "coder", "door": AgentDoor.MATRIX, "place": ROOM_ID, "thread": "$thread", "own_thread": True,
            "mr": MR.ref, "key": f"$event{next(self._numbers)}", "author": ALICE, "text": text,
        }  # fmt: skip
        return Addressed(**{**known, **facts})

    async def say(self, text: str = "please look", **facts: Any) -> DeskOutcome:
        said = self.addressed(text, **facts)
        return await self.yard.write(lambda tx: self.desk.accept(tx, said))

    async def taken(self, text: str = "please look", **facts: Any) -> TurnId:
        """Say something that is taken; returns its turn."""
        outcome = await self.say(text, **facts)
        assert outcome.accepted, outcome
        assert outcome.turn_id, outcome
        return outcome.turn_id

    async def turn(self, turn_id: TurnId) -> Turn:
        found = await self.yard.read(lambda tx: conversations.turn(tx, turn_id))
        assert found
        return found

    async def state(self, turn_id: TurnId) -> TurnState:
        return (await self.turn(turn_id)).state

    async def conversation(self, agent: str = "coder", thread: str = "$thread") -> Conversation:
        found = await self.yard.read(lambda tx: conversations.find(tx, agent, AgentDoor.MATRIX, ROOM_ID, thread))
        assert found
        return found

    async def waiting(self, conversation_id: ConversationId) -> list[str]:
        """What was said in the turns that are not over, in the order in which it is given."""

        def read(tx: Transaction) -> list[str]:
            turns = conversations.open_turns(tx, conversation_id)
            return [conversations.message(tx, turn.message_id).text for turn in turns]

        return await self.yard.read(read)

    async def given(self, turn_id: TurnId) -> Process:
        """The agent has the turn, as its transport does it; returns its process."""

        def give(tx: Transaction) -> Process:
            turn = conversations.turn(tx, turn_id)
            assert turn
            process = conversations.live_process(tx, turn.conversation_id) or self._begin(tx, turn)
            assert self.progress.given(tx, turn_id, process.id, LIMIT)
            self.progress.delivered(tx, turn_id)
            return process

        return await self.yard.write(give)

    def _begin(self, tx: Transaction, turn: Turn) -> Process:
        conversation = conversations.get(tx, turn.conversation_id)
        sandbox = sandboxes.current(tx, conversation.mr) if conversation and conversation.mr else None
        machine = machines.get(tx, sandbox.machine_id if sandbox else None)
        assert sandbox
        assert machine
        return conversations.begin_process(tx, turn.conversation_id, sandbox.id, machine, f"folder-{turn.id}")

    async def ended(self, turn_id: TurnId, answer: str = "", state: TurnState = TurnState.DONE) -> None:
        def end(tx: Transaction) -> None:
            if answer:
                self.progress.words(tx, turn_id, answer)
            self.progress.ended(tx, turn_id, state)

        await self.yard.write(end)

    async def answered(self, turn_id: TurnId, answer: str) -> None:
        """The agent has the turn, and answers it."""
        await self.given(turn_id)
        await self.ended(turn_id, answer)

    async def promote(self) -> int:
        """One round of the loop that binds turns to sandboxes."""
        return await WaitingLoop(self.yard.database, self.binding).look()

    async def remarks(self) -> list[str]:
        """What was said in conversations by ravebot itself, the oldest first."""
        rows = await self.yard.read(lambda tx: tx.all("SELECT json_extract(body, '$.text') AS text FROM outbox"
                                                      " WHERE kind = 'remark' ORDER BY id"))  # fmt: skip
        return [row["text"] for row in rows]

    async def start_asked(self) -> list[Approval]:
        """The questions whether to start a sandbox."""
        found = await self.yard.read(lambda tx: approvals.newest(tx, 100))
        return [approval for approval in reversed(found) if approval.kind is ApprovalKind.START]

    async def decide(self, approval: Approval, state: ApprovalState, by: Actor = ALICE) -> None:
        assert await self.yard.write(lambda tx: approvals.decide(tx, approval, state, by))

    async def ready(self, mr: MergeRequest = MR) -> None:
        await self.yard.ready(mr)


@asynccontextmanager
async def an_agent_yard(
    folder: Path, *agents: AgentConfig, person: int = 500, opens: type[Database] = Database
) -> AsyncIterator[AgentYard]:
    """A pool that is run step by step, and these agents; without any, there is `coder`. `person`: messages a day."""
    async with a_yard(folder, opens=opens) as yard:
        budgets = Budgets(person=PersonBudget(messages_per_day=person))
        config = yard.config.model_copy(update={"agents": agents or (an_agent(),), "budgets": budgets})
        telling = ConversationTelling(config)
        yield AgentYard(yard, config, Desk(config, telling), SandboxBinding(config, telling), TurnProgress(telling))
