"""Shows in a room what was changed in a sandbox, and asks there whether it is committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ravebot.agents.approvals import Approvals
from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.diff.model import Diff
from ravebot.agents.diff.summary import FILE_NAME, summary
from ravebot.agents.model import AgentDoor, Conversation
from ravebot.errors import Forbidden, GuestError, NotFound, ProviderError, Refused
from ravebot.intake.concern import about_conversation
from ravebot.intake.loop import Step
from ravebot.intake.rooms import Rooms
from ravebot.matrix.agents import render_diff
from ravebot.matrix.incoming import IncomingMessage
from ravebot.matrix.replies import render_reply
from ravebot.sandboxes.model import Actor, Machine, MergeRequest, MergeRequestRef, Sandbox
from ravebot.store import conversations, machines, merge_requests, sandboxes
from ravebot.store.database import Transaction

_MOST_NAMED = 200


@dataclass(frozen=True)
class RoomDiffs:
    """Reads a diff, shows it, and asks for its approval in the conversation with the agent that worked there."""

    rooms: Rooms
    approvals: Approvals
    diffs: Diffs

    async def show(self, message: IncomingMessage, known: MergeRequest) -> Step:
        """What `diff` does; the asker's right on the merge request is checked. Raises Unavailable."""
        found = await self.rooms.database.read(lambda tx: _running(tx, known.ref))
        if found is None:
            text = f"{known.full_ref} has no machine to compare: its sandbox must be ready."
            return self.rooms.says(message, render_reply(text), "nothing to compare", aside=True)
        sandbox, machine = found
        mr = await self.rooms.people.present(known.ref)
        try:
            diff = await self.diffs.read(sandbox, machine, mr)
        except (Refused, GuestError, ProviderError, NotFound, Forbidden) as error:
            text = f"What was changed in {known.full_ref} can't be read now: {error}"
            return self.rooms.says(message, render_reply(text), "not compared", aside=True)
        refusal = _refusal(diff, mr)
        asks = not refusal and not diff.is_empty
        conversation = await self.rooms.database.read(lambda tx: _conversation(tx, message, mr.ref))
        if conversation is not None and asks:
            await self.diffs.keep(diff)

        def step(tx: Transaction) -> str:
            merge_requests.observe(tx, mr)
            then = refusal
            if conversation is None and asks:
                then = "It can be committed once an agent was spoken to about it here: who asks for it is then known."
            if conversation is not None and asks:
                actor = Actor("matrix", message.sender, place=self.rooms.name_of(tx, message))
                asked = self.approvals.ask_commit(
                    tx,
                    conversation,
                    sandbox,
                    by=actor,
                    diff_hash=diff.hash,
                    head_sha=mr.head_sha,
                    summary=_in_full(diff),
                )
                then = f"Whether it is committed is asked in the thread of {conversation.agent}: approval {asked.id}."
            self._tell(tx, message, mr, diff, then)
            return f"diff {diff.hash[:12]}"

        return step

    def _tell(self, tx: Transaction, message: IncomingMessage, mr: MergeRequest, diff: Diff, then: str) -> None:
        about = summary(diff)
        notes = [note for note in (about.left_out, *about.notes) if note and note != then]
        shown = render_diff(f"{mr.full_ref}: {about.title}", diff.text, " ".join([*notes, then]))
        file = None if shown.whole or diff.is_empty else (FILE_NAME, diff.text)
        self.rooms.reply(tx, message, shown.content, aside=True, file=file)


def _running(tx: Transaction, ref: MergeRequestRef) -> tuple[Sandbox, Machine] | None:
    sandbox = sandboxes.current(tx, ref)
    machine = machines.get(tx, sandbox.machine_id) if sandbox else None
    return (sandbox, machine) if sandbox and machine else None


def _conversation(tx: Transaction, message: IncomingMessage, ref: MergeRequestRef) -> Conversation | None:
    """The conversation in which it is asked: the message's own, else the newest of that merge request in the room."""
    about = about_conversation(tx, message)
    if about is not None and about.mr == ref:
        return about
    in_room = [
        one
        for one in conversations.of_merge_request(tx, ref)
        if one.door is AgentDoor.MATRIX and one.place == message.room_id
    ]
    here = [one for one in in_room if one.thread == message.thread_root]
    return next(reversed(here or in_room), None)


def _refusal(diff: Diff, mr: MergeRequest) -> str:
    """Why it is not asked whether to commit it; empty if it is, or if there is nothing to commit."""
    if diff.refusal or diff.is_empty:
        return diff.refusal
    if mr.from_fork:
        return f"{mr.full_ref} comes from a fork, to which ravebot does not commit: its author can apply the changes."
    if mr.head_sha != diff.base_sha:
        return (
            f"The branch is at commit {mr.head_sha[:8]} now. To commit the changes, let the sandbox take that commit,"
            " then ask for the diff again."
        )
    return ""


def _in_full(diff: Diff) -> Mapping[str, str]:
    """Everything that would be committed, by file, for the question."""
    about = summary(diff)
    changes = [f"{change.kind.value} {change.path} (+{change.added} −{change.removed})" for change in diff.changes]
    parts = {"changes": about.title, "files": "\n".join(changes[:_MOST_NAMED])}
    if about.notes:
        parts["note"] = " ".join(about.notes)
    parts["once committed"] = "GitLab's pipeline runs these files, with the CI variables that its jobs get."
    if diff.left_out:
        parts["not committed"] = "\n".join(f"{one.path}: {one.why}" for one in diff.left_out)
    return parts
