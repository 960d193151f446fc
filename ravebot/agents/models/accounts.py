"""Reserves a request's tokens before it is sent, and settles them afterwards: each in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ravebot.agents.limits import day_of, person_of
from ravebot.agents.models.budget import over_budget, turn_for
from ravebot.agents.models.refusals import forbidden
from ravebot.agents.telling import ConversationTelling
from ravebot.config.model import Config
from ravebot.sandboxes.model import SandboxId
from ravebot.store import agent_work, conversations, model_uses
from ravebot.store.agent_work import TurnUnderWay
from ravebot.store.database import Database, Transaction
from ravebot.store.model_uses import ModelUseId, ModelUser


@dataclass(frozen=True)
class Reservation:
    """What a request counts as, until it is settled. `use_id`: None for one that costs nothing."""

    turn: TurnUnderWay
    tokens: int
    now: datetime
    use_id: ModelUseId | None


@dataclass(frozen=True)
class ModelAccounts:
    """What agents used of models, by the store."""

    config: Config
    database: Database
    telling: ConversationTelling

    async def turn(self, sandbox_id: SandboxId, model: str) -> TurnUnderWay:
        """The turn that a request from a sandbox is of. Raises ModelRefusal."""
        running = await self.database.read(lambda tx: agent_work.running_in(tx, sandbox_id))
        return turn_for(self.config, running, model)[0]

    async def runs(self, sandbox_id: SandboxId, turn: TurnUnderWay) -> bool:
        """Whether that turn still runs in that sandbox."""
        running = await self.database.read(lambda tx: agent_work.running_in(tx, sandbox_id))
        return any(one.turn_id == turn.turn_id for one in running)

    async def reserve(self, sandbox_id: SandboxId, model: str, tokens: int) -> Reservation:
        """Count the most that a request may cost. Raises ModelRefusal if no turn runs, or a budget is used up."""
        if not tokens:
            turn = await self.turn(sandbox_id, model)
            return Reservation(turn, 0, await self.database.read(lambda tx: tx.now), None)
        found = await self.database.write(
            lambda tx: self._reserve(tx, sandbox_id, model, tokens), urgent=True, synced=False
        )
        if isinstance(found, Reservation):
            return found
        turn, why = found
        await self.database.write(lambda tx: self._tell(tx, turn, why))
        raise forbidden(why)

    # A power cut may take back the last of these and of reservations: they count tokens, and tell nobody anything.
    async def settle(self, reservation: Reservation, used: int) -> None:
        """Count what was used instead."""
        use_id = reservation.use_id
        if use_id is not None:
            await self.database.write(lambda tx: model_uses.settle(tx, use_id, used), urgent=True, synced=False)

    def _reserve(
        self, tx: Transaction, sandbox_id: SandboxId, model: str, tokens: int
    ) -> Reservation | tuple[TurnUnderWay, str]:
        """The reservation, or why there is none for that turn."""
        turn, agent = turn_for(self.config, agent_work.running_in(tx, sandbox_id), model)
        person = person_of(self.config, turn.root)
        user = ModelUser(sandbox_id, turn.turn_id, agent.name, person, day_of(tx.now))
        why = over_budget(self.config, agent, model_uses.used_by(tx, user), tokens)
        if why:
            return turn, why
        return Reservation(turn, tokens, tx.now, model_uses.reserve(tx, user, model, tokens))

    def _tell(self, tx: Transaction, turn: TurnUnderWay, why: str) -> None:
        """Once a turn, so that people know why the agent goes no further, whatever it says itself."""
        conversation = conversations.get(tx, turn.conversation_id)
        if conversation is not None and model_uses.first_remark(tx, turn.turn_id):
            self.telling.remark(tx, conversation, f"{turn.agent} gets no more of its model. {why}")
