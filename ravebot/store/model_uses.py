"""What agents used of models: exact for each sandbox, and by day for each agent and person.

A reservation counts at once. Settling it replaces it with what was used; one that is never settled stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from ravebot.agents.model import AGENT, TurnId
from ravebot.sandboxes.model import Actor, SandboxId
from ravebot.store.database import Transaction, Value

ModelUseId = NewType("ModelUseId", int)


@dataclass(frozen=True)
class ModelUser:
    """Who a use counts for. `day`: the UTC day, by which agents and persons are counted."""

    sandbox_id: SandboxId
    turn_id: TurnId
    agent: str
    person: Actor
    day: str


@dataclass(frozen=True)
class TokensUsed:
    """How many tokens count so far, those that are reserved included."""

    sandbox: int
    agent: int
    person: int


def used_by(tx: Transaction, user: ModelUser) -> TokensUsed:
    """What counts for the sandbox over its life, and for the agent and the person on that day."""
    agent, person = (tokens_on(tx, user.day, who) for who in (Actor(AGENT, user.agent), user.person))
    return TokensUsed(used_in(tx, user.sandbox_id), agent, person)


def used_in(tx: Transaction, sandbox_id: SandboxId) -> int:
    """What counts for a sandbox, over its life."""
    row = tx.one("SELECT tokens FROM sandbox_tokens WHERE sandbox_id = ?", (sandbox_id,))
    return int(row["tokens"]) if row else 0


def tokens_on(tx: Transaction, day: str, who: Actor) -> int:
    """What counts for an agent or a person on a day."""
    sql = "SELECT tokens FROM agent_budgets WHERE day = ? AND kind = ? AND name = ?"
    row = tx.one(sql, (day, who.kind, who.name))
    return int(row["tokens"]) if row else 0


def reserve(tx: Transaction, user: ModelUser, model: str, tokens: int) -> ModelUseId:
    """Count the most that a request can use, before it is sent."""
    row: dict[str, Value] = {
        "sandbox_id": user.sandbox_id, "turn_id": user.turn_id, "agent": user.agent, "day": user.day, "model": model,
        "person_kind": user.person.kind, "person": user.person.name, "reserved": tokens, "began_at": tx.now_us,
    }  # fmt: skip
    use_id = tx.insert("model_uses", row)
    _count(tx, user, tokens)
    return ModelUseId(use_id)


def settle(tx: Transaction, use_id: ModelUseId, used: int) -> None:
    """Count what was used instead of what was reserved; the first time counts."""
    row = tx.one("SELECT * FROM model_uses WHERE id = ? AND used IS NULL", (use_id,))
    if row is None:
        return
    tx.execute("UPDATE model_uses SET used = ? WHERE id = ?", (used, use_id))
    person = Actor(row["person_kind"], row["person"])
    user = ModelUser(row["sandbox_id"], row["turn_id"], row["agent"], person, row["day"])
    _count(tx, user, used - row["reserved"])


def _count(tx: Transaction, user: ModelUser, tokens: int) -> None:
    tx.execute(
        "INSERT INTO sandbox_tokens (sandbox_id, tokens) VALUES (?, ?)"
        " ON CONFLICT (sandbox_id) DO UPDATE SET tokens = tokens + excluded.tokens",
        (user.sandbox_id, tokens),
    )
    for who in (Actor(AGENT, user.agent), user.person):
        tx.execute(
            "INSERT INTO agent_budgets (day, kind, name, messages, tokens) VALUES (?, ?, ?, 0, ?)"
            " ON CONFLICT (day, kind, name) DO UPDATE SET tokens = tokens + excluded.tokens",
            (user.day, who.kind, who.name, tokens),
        )


def first_remark(tx: Transaction, turn_id: TurnId) -> bool:
    """Whether nothing was said yet in this turn of a model that is used up; from now on it was."""
    return bool(
        tx.changed(
            "INSERT INTO model_remarks (turn_id, said_at) VALUES (?, ?) ON CONFLICT (turn_id) DO NOTHING",
            (turn_id, tx.now_us),
        )
    )
