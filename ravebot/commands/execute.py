"""Executes the commands of all doors, or refuses them."""

from __future__ import annotations

from collections.abc import Sequence

from ravebot.commands.permissions import Asker
from ravebot.commands.verbs import VERBS, AgentAct, Command, Door, Show, Takes, Verb, at
from ravebot.sandboxes.intents import Intents, Outcome
from ravebot.sandboxes.model import EventKind, MergeRequest, MergeRequestRef
from ravebot.store import events, merge_requests
from ravebot.store.database import Transaction

Subject = MergeRequest | MergeRequestRef
"""The merge request of a command: as it was looked up, or only its reference, if the stored state is enough."""

CANNOT = "That can't be done here."
"""The answer where a door does not render what a verb shows."""


def execute(
    intents: Intents, tx: Transaction, command: Command, asker: Asker, target: Subject | None = None
) -> Outcome:
    """Execute a command, and return its outcome. A refusal is recorded.

    For a verb that needs the head, `target` is the merge request's present state at GitLab.
    """
    if not asker.decision.allowed:
        return _refuse(tx, command, asker, target)
    if isinstance(command.verb.does, Show | AgentAct):
        return Outcome(False, CANNOT)
    mr = _merge_request(tx, command.verb, target)
    if mr is None:
        return Outcome(False, "This merge request has no sandbox.")
    return command.verb.does(intents, tx, mr, asker.actor, command)


def in_full(outcome: Outcome, door: Door, prefix: str, ref: str, verbs: Sequence[Verb] = VERBS) -> str:
    """The reply at a door: the outcome, and what to type next as it is typed there."""
    advice = outcome.advice
    verb = next((verb for verb in at(door, verbs) if advice and verb.name == advice.verb), None)
    if advice is None or verb is None:
        return outcome.message
    words = {Takes.REF: ref, Takes.SHA: advice.argument, Takes.DURATION: advice.argument}
    return f"{outcome.message} {advice.purpose}, type `{verb.typed(door, prefix, words)}`."


def _refuse(tx: Transaction, command: Command, asker: Asker, target: Subject | None) -> Outcome:
    data: dict[str, object] = {"verb": command.verb.name, "rule": asker.decision.rule}
    mr = target if isinstance(target, MergeRequestRef) else None
    if mr is None:
        data["ref"] = str(command.ref or "")
    events.append(tx, EventKind.COMMAND_REFUSED, asker.actor, mr=mr, data=data)
    return Outcome(False, asker.decision.refusal)


def _merge_request(tx: Transaction, verb: Verb, target: Subject | None) -> MergeRequest | None:
    if target is None or isinstance(target, MergeRequestRef):
        return merge_requests.get(tx, target) if target else None
    mr = merge_requests.get(tx, target.ref)
    if mr is None or verb.needs_head:  # otherwise the stored state may be newer than the target
        _, mr = merge_requests.observe(tx, target)
    return mr
