"""Turns of agents that work elsewhere: how one is given, is the agent's, and ends.

Each method runs inside the caller's transaction. `answers` and the transport `webhook` are built of these steps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta

from ravebot.agents.model import AgentDelivery, Channel, DeliveryId, DeliveryKind, Turn, TurnState
from ravebot.agents.progress import TurnProgress
from ravebot.agents.wording import in_words, once_more
from ravebot.config.model import AgentConfig, Config
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import Actor, MergeRequest, SandboxState
from ravebot.store import conversations, deliveries, merge_requests
from ravebot.store.database import Transaction

ANSWER_PATH = "/api/v1/inbox/{id}/answer"
LONGEST_UNTAKEN = timedelta(days=1)
"""How long a message lies in an inbox until it is given up."""


def answer_url(config: Config, delivery_id: DeliveryId) -> str:
    """Where the agent answers; empty if the API is off."""
    api = config.api
    base = str(api.public_url or (f"http://{api.listen}" if api.listen else "")).rstrip("/")
    return f"{base}{ANSWER_PATH.format(id=delivery_id)}" if base else ""


@dataclass(frozen=True)
class ElsewhereTurns:
    """The steps of such turns."""

    config: Config
    progress: TurnProgress

    def begin(self, tx: Transaction, turn: Turn, agent: AgentConfig, channel: Channel) -> AgentDelivery | None:
        """The agent may have the turn from now on, under the id of this delivery. None: it is over or given already."""
        if not self.progress.given_elsewhere(tx, turn.id):
            return None
        delivery_id = deliveries.new_id()
        body = self._body(tx, turn, agent, delivery_id)
        return deliveries.add(tx, delivery_id, turn.id, agent.name, channel, body)

    def accepted(self, tx: Transaction, delivery: AgentDelivery, limit: timedelta) -> None:
        """The agent has it for good: it is not given again, and its time runs."""
        deliveries.settle(tx, replace(delivery, accepted_at=tx.now, problem=""))
        self.progress.accepted(tx, delivery.turn_id, TurnState.WORKING, limit)

    def end(self, tx: Transaction, turn: Turn, state: TurnState, why: str = "") -> None:
        """The turn is over; nothing more of it is given."""
        delivery = deliveries.of_turn(tx, turn.id)
        if delivery is not None and delivery.settled_at is None:
            deliveries.settle(tx, delivery)
        self.progress.ended(tx, turn.id, state, why)

    def give_up(self, tx: Transaction, turn: Turn, why: str) -> None:
        """The agent does not get it (again): a person has to do what `why` says."""
        delivery = deliveries.of_turn(tx, turn.id)
        may_have_it = delivery is not None and (delivery.doubtful or delivery.accepted_at is not None)
        if delivery is not None and may_have_it:
            conversation = conversations.get(tx, turn.conversation_id)
            assert conversation
            then = once_more(conversation.door, self.config.matrix.command_prefix, turn.id)
            why = f"It can't be known whether {delivery.agent} has it. {why} {then}"
        self.end(tx, turn, TurnState.UNCERTAIN if may_have_it else TurnState.DEAD, why)

    def cancel(self, tx: Transaction, turn: Turn) -> None:
        """A person does not want it any more: it is over at once, and who was sent it by webhook is told."""
        delivery = deliveries.of_turn(tx, turn.id)
        if delivery is not None and delivery.channel is Channel.WEBHOOK and delivery.tries:
            told: dict[str, object] = {"id": delivery.id, "agent": delivery.agent, "by": turn.cancelled_by}
            deliveries.add(
                tx, deliveries.new_id(), turn.id, delivery.agent, Channel.WEBHOOK,
                _json("turn.cancelled", tx, told), DeliveryKind.CANCELLED,
            )  # fmt: skip
        self.end(tx, turn, TurnState.CANCELLED)

    def end_if_late(self, tx: Transaction, turn: Turn, agent: AgentConfig) -> bool:
        """End a turn whose time is over."""
        if turn.deadline is None or tx.now < turn.deadline:
            return False
        limit = in_words(agent.limits.turn)
        self.end(tx, turn, TurnState.FAILED, f"{agent.name} did not end it within {limit}, the limit of a turn.")
        return True

    def _body(self, tx: Transaction, turn: Turn, agent: AgentConfig, delivery_id: DeliveryId) -> str:
        conversation = conversations.get(tx, turn.conversation_id)
        message = conversations.message(tx, turn.message_id)
        mr = merge_requests.get(tx, conversation.mr) if conversation and conversation.mr else None
        assert conversation
        facts: dict[str, object] = {
            "id": delivery_id,
            "agent": agent.name,
            "text": message.text,
            "author": _person(message.author),
            "asked_by": _person(message.root),
            "attempt": turn.attempt,
            "conversation": {"id": conversation.id, "door": conversation.door.value},
            "project": {"id": mr.ref.project_id, "path": mr.project_path} if mr else None,
            "merge_request": _merge_request(mr) if mr else None,
            "sandbox": self._sandbox(tx, mr) if mr else None,
            "answer_url": answer_url(self.config, delivery_id),
        }
        return _json("turn.given", tx, facts)

    def _sandbox(self, tx: Transaction, mr: MergeRequest) -> dict[str, object] | None:
        """How to get into the sandbox, if it is ready."""
        view = Views(self.config).latest(tx, mr.ref)
        if view is None or view.sandbox.state is not SandboxState.READY:
            return None
        access = view.access
        return {
            "id": view.sandbox.id,
            "state": view.sandbox.state.value,
            "commit": view.sandbox.running_sha or "",
            "ssh": access.ssh_command if access else None,
            "host_keys": list(access.host_keys) if access else [],
            "web": access.web_url if access else None,
        }


def _json(kind: str, tx: Transaction, data: dict[str, object]) -> str:
    """In the form that Standard Webhooks recommends."""
    whole = {"type": kind, "timestamp": f"{tx.now:%Y-%m-%dT%H:%M:%SZ}", "data": data}
    return json.dumps(whole, ensure_ascii=False)


def _person(who: Actor) -> dict[str, object]:
    return {"kind": who.kind, "name": who.name}


def _merge_request(mr: MergeRequest) -> dict[str, object]:
    return {
        "iid": mr.ref.iid,
        "ref": mr.full_ref,
        "title": mr.title,
        "url": mr.web_url,
        "branch": mr.source_branch,
        "head": mr.head_sha,
        "from_fork": mr.from_fork,
    }
