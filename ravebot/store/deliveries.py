"""What agents that work elsewhere are given: a row for each message, under an id that is never used twice."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from ravebot.agents.model import AgentDelivery, Channel, DeliveryId, DeliveryKind, Turn, TurnId
from ravebot.clock import from_us, to_us
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef
from ravebot.store import conversations, merge_requests
from ravebot.store.conversations import OPEN
from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load
from ravebot.store.signals import DELIVERIES

_VISIT_EVERY = timedelta(minutes=1)


def new_id() -> DeliveryId:
    """A fresh id; Standard Webhooks wants no full stop in it."""
    return DeliveryId(f"msg_{secrets.token_hex(16)}")


def add(
    tx: Transaction,
    delivery_id: DeliveryId,
    turn_id: TurnId,
    agent: str,
    channel: Channel,
    body: str,
    kind: DeliveryKind = DeliveryKind.MESSAGE,
) -> AgentDelivery:
    """A delivery of a turn, which has at most one of each kind."""
    fresh = AgentDelivery(delivery_id, turn_id, kind, agent, channel, body, tx.now)
    tx.insert("deliveries", dump(fresh))
    tx.wake(DELIVERIES)
    return fresh


def get(tx: Transaction, delivery_id: str) -> AgentDelivery | None:
    row = tx.one("SELECT * FROM deliveries WHERE id = ?", (delivery_id,))
    return load(AgentDelivery, row) if row else None


def of_turn(tx: Transaction, turn_id: TurnId, kind: DeliveryKind = DeliveryKind.MESSAGE) -> AgentDelivery | None:
    """The delivery of a turn; None: it was never given to an agent that works elsewhere."""
    row = tx.one("SELECT * FROM deliveries WHERE turn_id = ? AND kind = ?", (turn_id, kind))
    return load(AgentDelivery, row) if row else None


def save(tx: Transaction, changed: AgentDelivery) -> None:
    """Write the whole row; `changed` must have been read in this same transaction."""
    tx.upsert("deliveries", ("id",), dump(changed))
    tx.wake(DELIVERIES)


def settle(tx: Transaction, delivery: AgentDelivery) -> None:
    """It is not given any more, and its text is not needed."""
    save(tx, replace(delivery, settled_at=tx.now, body="", leased_until=None, next_try_at=None, sending_at=None))


def to_send(tx: Transaction, latest: timedelta, of_an_agent: int) -> tuple[AgentDelivery, ...]:
    """What is to be sent by webhook now, or is being sent, the oldest first; of each agent at most so many. A moment
    further ahead than `latest` comes from a clock that was set back."""
    rows = tx.all(
        """
        SELECT * FROM deliveries WHERE rowid IN (
            SELECT rowid FROM (
                SELECT rowid, ROW_NUMBER() OVER (PARTITION BY agent ORDER BY created_at, rowid) AS place
                  FROM deliveries
                 WHERE channel = 'webhook' AND settled_at IS NULL
                   AND (next_try_at IS NULL OR next_try_at <= ?1 OR next_try_at > ?2))
             WHERE place <= ?3)
         ORDER BY created_at, rowid
        """,
        (tx.now_us, to_us(tx.now + latest), of_an_agent),
    )
    return tuple(load(AgentDelivery, row) for row in rows)


def next_try(tx: Transaction) -> datetime | None:
    """When the next webhook is to be sent that is not to be sent yet."""
    row = tx.one(
        "SELECT MIN(next_try_at) AS at FROM deliveries"
        " WHERE channel = 'webhook' AND settled_at IS NULL AND next_try_at > ?",
        (tx.now_us,),
    )
    return from_us(row["at"]) if row and row["at"] is not None else None


def unsettled(tx: Transaction) -> tuple[AgentDelivery, ...]:
    """Every delivery that may be given again."""
    return tuple(load(AgentDelivery, row) for row in tx.all("SELECT * FROM deliveries WHERE settled_at IS NULL"))


def projects(tx: Transaction, agent: str) -> tuple[MergeRequest, ...]:
    """A merge request of each project from which something waits for that agent."""
    rows = tx.all(
        f"""
        SELECT c.project_id, MIN(c.iid) AS iid FROM conversations c
          JOIN merge_requests m ON m.project_id = c.project_id AND m.iid = c.iid
         WHERE c.agent = ? AND EXISTS (SELECT 1 FROM agent_turns t WHERE t.conversation_id = c.id AND t.{OPEN})
         GROUP BY c.project_id, m.project_path ORDER BY 1, 2
        """,  # noqa: S608 - a constant
        (agent,),
    )
    refs = (MergeRequestRef(row["project_id"], row["iid"]) for row in rows)
    return tuple(mr for ref in refs if (mr := merge_requests.get(tx, ref)))


def to_take(
    tx: Transaction,
    agent: str,
    lease: timedelta,
    limit: int,
    of: Sequence[MergeRequest] | None = None,
    turn_id: TurnId | None = None,
) -> tuple[Turn, ...]:
    """The turns that an agent can take, the oldest first: the first of each conversation, if it was not given yet or
    its lease was lost. A lease that lies further ahead than it can was made before the clock was set back.

    `of`: only of the projects of these merge requests, or of none; `turn_id`: only that one.
    """
    only = None if of is None else json.dumps([[mr.ref.project_id, mr.project_path] for mr in of])
    rows = tx.all(
        f"""
        SELECT t.id FROM agent_turns t
          JOIN conversations c ON c.id = t.conversation_id
          LEFT JOIN merge_requests m ON m.project_id = c.project_id AND m.iid = c.iid
          LEFT JOIN deliveries d ON d.turn_id = t.id AND d.kind = 'message'
         WHERE c.agent = ?1 AND t.{OPEN} AND t.cancelled_by = ''
           AND t.id = (SELECT MIN(f.id) FROM agent_turns f WHERE f.conversation_id = t.conversation_id AND f.{OPEN})
           AND (t.next_try_at IS NULL OR t.next_try_at <= ?2)
           AND CASE
               WHEN t.given_at IS NULL THEN t.state = 'queued' AND c.paused = ''
                    AND NOT EXISTS (SELECT 1 FROM paused_agents p WHERE p.agent = c.agent)
               ELSE d.channel = 'inbox' AND d.settled_at IS NULL
                    AND (d.leased_until IS NULL OR d.leased_until <= ?2 OR d.leased_until > ?3)
                    AND (d.next_try_at IS NULL OR d.next_try_at <= ?2)
               END
           AND (?6 IS NULL OR t.id = ?6)
           AND (?5 IS NULL OR m.iid IS NULL OR EXISTS (
               SELECT 1 FROM json_each(?5) one
                WHERE one.value ->> 0 = m.project_id AND one.value ->> 1 = m.project_path))
         ORDER BY t.id LIMIT ?4
        """,  # noqa: S608 - a constant
        (agent, tx.now_us, to_us(tx.now + lease), limit, only, turn_id),
    )
    return tuple(turn for row in rows if (turn := conversations.turn(tx, TurnId(row["id"]))))


def visited(tx: Transaction, agent: str) -> datetime | None:
    """When an agent last asked for messages, to the minute."""
    row = tx.one("SELECT at FROM inbox_visits WHERE agent = ?", (agent,))
    return from_us(row["at"]) if row else None


def is_visit_due(tx: Transaction, agent: str) -> bool:
    """Whether it is worth a transaction to record that an agent asks for messages."""
    last = visited(tx, agent)
    return last is None or not last <= tx.now < last + _VISIT_EVERY


def visit(tx: Transaction, agent: str) -> None:
    tx.upsert("inbox_visits", ("agent",), {"agent": agent, "at": tx.now_us})
