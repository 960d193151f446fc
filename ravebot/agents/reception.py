"""Receives what people say to agents, at any door: checks what they may, and gives it to the desk."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.agents.desk import Addressed, Desk, DeskOutcome
from ravebot.agents.rights import may_ask
from ravebot.commands.people import People
from ravebot.commands.permissions import Decision
from ravebot.config.model import Config
from ravebot.sandboxes.model import Actor, EventKind, MergeRequest
from ravebot.store import events, merge_requests
from ravebot.store.database import Transaction


@dataclass(frozen=True)
class Reception:
    """What both doors for comments and rooms do with a message to an agent."""

    config: Config
    people: People
    desk: Desk

    async def may(
        self, agent: str, root: Actor, mr: MergeRequest, *, mapped: bool = True, direct: bool = False
    ) -> Decision:
        """Whether somebody may ask that agent about a merge request, in a place of its project or a direct chat.

        Raises as GitLab answers.
        """
        return await may_ask(self.people, self.config, agent, root, mr, mapped=mapped, direct=direct)

    def accept(self, tx: Transaction, said: Addressed, mr: MergeRequest, *, steer: bool = False) -> DeskOutcome:
        """Take a message about a merge request; `mr`: as it was looked up. `steer`: instead of what runs now."""
        if merge_requests.get(tx, mr.ref) is None:
            merge_requests.observe(tx, mr)
        return self.desk.steer(tx, said) if steer else self.desk.accept(tx, said)


def refuse(tx: Transaction, actor: Actor, verb: str, about: str, decision: Decision) -> None:
    """Record a refusal, as those of commands are."""
    data: dict[str, object] = {"verb": verb, "rule": decision.rule, "ref": about}
    events.append(tx, EventKind.COMMAND_REFUSED, actor, data=data)
