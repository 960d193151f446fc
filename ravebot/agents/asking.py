"""Asks people to allow something, and takes questions back. Each method runs inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from ravebot.agents.model import (
    AgentDoor,
    Approval,
    ApprovalId,
    ApprovalKind,
    ApprovalState,
    Conversation,
    ConversationId,
    Turn,
    TurnId,
)
from ravebot.agents.questions import hash_of, parts_of, payload_of
from ravebot.agents.telling import ConversationTelling
from ravebot.config.model import Config
from ravebot.sandboxes.model import RAVEBOT, Actor, MergeRequest, MergeRequestRef, Sandbox, SandboxId
from ravebot.sandboxes.view import in_words
from ravebot.store import approvals, merge_requests, outbox
from ravebot.store.database import Transaction
from ravebot.store.targets import Kind, RoomLane

FORK_WITHIN = timedelta(days=3)
START_WITHIN = timedelta(minutes=30)
STOP_WITHIN = timedelta(minutes=1)
COMMIT_WITHIN = timedelta(hours=8)
_SOON = timedelta(minutes=1)
MOST_FORKS_AN_HOUR, MOST_COMMITS_A_DAY = 10, 5
"""How often the rooms are asked about forks of a project, and about the commits of one merge request: anybody may open
and push them. The status note says what to type also of those that are not asked about."""

DIFF = "SHA-256 of the diff"
"""The part of a commit's payload to which the answer is bound, beside the payload's own hash."""
_COMMIT = "commit"
_UNTIL = "it would end at"
_MOMENT = "%Y-%m-%d %H:%M:%S UTC"


@dataclass(frozen=True)
class Place:
    """Where a question is shown. `thread`: empty for the room itself."""

    door: AgentDoor
    place: str
    thread: str = ""
    conversation_id: ConversationId | None = None


@dataclass(frozen=True)
class Asking:
    """Implements `sandboxes.intents.Asks`, and asks for conversations with agents."""

    config: Config
    telling: ConversationTelling

    def ask_fork(self, tx: Transaction, mr: MergeRequest) -> None:
        """Ask in the project's rooms whether the head of a fork's merge request may be let in; once for each head."""
        before = approvals.of_merge_request(tx, mr.ref, ApprovalKind.FORK)
        for old in before:
            if old.state is ApprovalState.OPEN and old.head_sha != mr.head_sha:
                self.withdraw(tx, old, f"there is a newer commit, {mr.head_sha[:12]}")
        if any(old.head_sha == mr.head_sha and old.state is not ApprovalState.WITHDRAWN for old in before):
            return
        rooms = self.config.rooms_of(mr.project_path)
        if self._is_crowd(tx, mr.ref, len(rooms)):
            return
        ids = outbox.rooms(tx)
        parts = {
            "merge request": mr.full_ref,
            "title": mr.title,
            "author": mr.author.username,
            "branch": mr.source_branch,
            _COMMIT: mr.head_sha,
            "link": mr.web_url,
        }
        for room in rooms:
            self._ask(
                tx,
                ApprovalKind.FORK,
                f"May commit {mr.head_sha[:12]}, which comes from a fork, run in a sandbox for {mr.full_ref}?",
                parts,
                RAVEBOT,
                Place(AgentDoor.MATRIX, ids.get(room, room)),
                FORK_WITHIN,
                mr=mr.ref,
                head_sha=mr.head_sha,
            )

    def _is_crowd(self, tx: Transaction, ref: MergeRequestRef, rooms: int) -> bool:
        hour, day = tx.now - timedelta(hours=1), tx.now - timedelta(days=1)
        of_project = approvals.asked_since(tx, hour, ApprovalKind.FORK, ref.project_id)
        of_one = approvals.asked_since(tx, day, ApprovalKind.FORK, ref.project_id, ref.iid)
        return of_project >= MOST_FORKS_AN_HOUR * rooms or of_one >= MOST_COMMITS_A_DAY * rooms

    def ask_extension(self, tx: Transaction, sandbox: Sandbox, by: Actor, until: datetime) -> ApprovalId | None:
        """Ask the admins to keep a sandbox until then; None if there is none, or no room in which to ask."""
        mr = merge_requests.get(tx, sandbox.mr)
        place = self._place_of(tx, by, mr) if mr and self.config.matrix.admins else None
        if mr is None or place is None or sandbox.expires_at is None:
            return None
        parts = {
            "merge request": mr.full_ref,
            "title": mr.title,
            "asked by": str(by),
            "it ends at": f"{sandbox.expires_at:{_MOMENT}}",
            _UNTIL: f"{until:{_MOMENT}}",
            "longest lifetime": in_words(self.config.pool.max_lifetime),
        }
        for old in approvals.of_merge_request(tx, mr.ref, ApprovalKind.EXTENSION):
            if old.state is ApprovalState.OPEN:
                if old.payload == payload_of(parts):
                    return old.id
                self.withdraw(tx, old, f"{by} asks for another time")
        asked = self._ask(
            tx,
            ApprovalKind.EXTENSION,
            f"May {mr.full_ref} stay until {parts[_UNTIL]}, past its longest lifetime?",
            parts,
            by,
            place,
            max(_SOON, sandbox.expires_at - tx.now),
            mr=mr.ref,
            sandbox_id=sandbox.id,
        )
        operations = self.config.matrix.operations_room
        if operations is not None and outbox.rooms(tx).get(operations, operations) != place.place:
            answer = f"{self.config.matrix.command_prefix} approve {asked.id}"
            text = f"{by} asks an admin of ravebot: {asked.title} To allow it, type {answer}."
            outbox.add(tx, RoomLane(operations), Kind.NEWS, body={"text": text})
        return asked.id

    def ask_stop(self, tx: Transaction, sandbox: Sandbox, only_by: str, *, place: str, thread: str) -> Approval:
        """Ask the one who reacted with 🛑 to a card whether they mean it; once at a time."""
        mr = merge_requests.get(tx, sandbox.mr)
        assert mr
        for old in approvals.of_merge_request(tx, mr.ref, ApprovalKind.STOP):
            same = (old.sandbox_id, old.only_by, old.place) == (sandbox.id, only_by, place)
            if old.state is ApprovalState.OPEN and same and tx.now < old.expires_at:
                return old
        return self._ask(
            tx,
            ApprovalKind.STOP,
            f"Stop the sandbox of {mr.full_ref}? Everything in it is deleted.",
            {"merge request": mr.full_ref, "title": mr.title},
            Actor("matrix", only_by),
            Place(AgentDoor.MATRIX, place, thread),
            STOP_WITHIN,
            mr=mr.ref,
            sandbox_id=sandbox.id,
            only_by=only_by,
        )

    def ask_start(
        self, tx: Transaction, turn: Turn, conversation: Conversation, mr: MergeRequest, asker: Actor
    ) -> Approval:
        """Ask who wrote to an agent whether a sandbox is to be started for it. At the shell, anybody there may answer.

        Of a fork the answer lets in the head as it is now.
        """
        fork = mr.from_fork and mr.approved_sha != mr.head_sha
        for old in approvals.of_turn(tx, turn.id):
            if old.kind is ApprovalKind.START and old.state is ApprovalState.OPEN:
                if old.head_sha == (mr.head_sha if fork else ""):
                    return old
                self.withdraw(tx, old, f"there is a newer commit, {mr.head_sha[:12]}")
        lets_in = f", and let in commit {mr.head_sha[:12]}, which comes from a fork" if fork else ""
        return self._ask(
            tx,
            ApprovalKind.START,
            f"Start a sandbox for {mr.full_ref}{lets_in}? {conversation.agent} waits for it.",
            {"merge request": mr.full_ref, "title": mr.title, "agent": conversation.agent, _COMMIT: mr.head_sha},
            asker,
            _place(conversation),
            START_WITHIN,
            mr=mr.ref,
            turn_id=turn.id,
            head_sha=mr.head_sha if fork else "",
            only_by="" if asker.kind == "shell" else asker.name,
        )

    def ask_commit(
        self,
        tx: Transaction,
        conversation: Conversation,
        sandbox: Sandbox,
        *,
        by: Actor,
        diff_hash: str,
        head_sha: str,
        summary: Mapping[str, str],
    ) -> Approval:
        """Ask whether a diff is committed to the source branch, on top of that head; `summary`: what it holds.

        Another diff, or another head, is another question, and takes the one before it back.
        """
        mr = merge_requests.get(tx, sandbox.mr)
        assert mr
        parts: dict[str, str | Mapping[str, str]] = {
            "merge request": mr.full_ref,
            "branch": mr.source_branch,
            "on top of commit": head_sha,
            "agent": conversation.agent,
            "asked by": str(by),
            "changes": dict(summary),
            DIFF: diff_hash,
        }
        payload = payload_of(parts)
        for old in approvals.of_merge_request(tx, mr.ref, ApprovalKind.COMMIT):
            if old.state is ApprovalState.OPEN and old.conversation_id == conversation.id:
                if (old.payload, old.sandbox_id) == (payload, sandbox.id):
                    return old
                self.withdraw(tx, old, "what would be committed has changed since, and is asked again")
        return self._ask(
            tx,
            ApprovalKind.COMMIT,
            f"Commit what {conversation.agent} changed to the branch of {mr.full_ref}?",
            parts,
            by,
            _place(conversation),
            COMMIT_WITHIN,
            mr=mr.ref,
            sandbox_id=sandbox.id,
            head_sha=head_sha,
        )

    def ask_again(self, tx: Transaction, old: Approval, mr: MergeRequest) -> Approval | None:
        """Ask for the same as it is now; None where nobody can say what that is without looking into the sandbox."""
        if old.kind is ApprovalKind.FORK:
            self.ask_fork(tx, mr)
        elif old.kind is ApprovalKind.START and old.turn_id and old.conversation_id:
            title = old.title.replace(old.head_sha[:12], mr.head_sha[:12]) if old.head_sha else old.title
            parts = {"merge request": mr.full_ref, "title": mr.title, _COMMIT: mr.head_sha}
            place = Place(old.door, old.place, old.thread, old.conversation_id)
            return self._ask(
                tx, old.kind, title, parts, old.asked_by, place, START_WITHIN,
                mr=mr.ref, turn_id=old.turn_id, head_sha=mr.head_sha, only_by=old.only_by,
            )  # fmt: skip
        return None

    def withdraw(self, tx: Transaction, approval: Approval, why: str) -> bool:
        """Take an open question back, and say why where it is shown; False when it is not open."""
        taken = approvals.decide(tx, approval, ApprovalState.WITHDRAWN, RAVEBOT, why)
        if taken:
            self.telling.question(tx, approval)
        return taken

    def expire(self, tx: Transaction, approval: Approval) -> None:
        """Nobody answered in time: a no."""
        if approvals.decide(tx, approval, ApprovalState.EXPIRED, RAVEBOT):
            self.telling.question(tx, approval)

    def brought_back(self, tx: Transaction, approval: Approval) -> Approval:
        """The question with its whole time before it, if the clock was set back to before it was asked."""
        if approval.state is not ApprovalState.OPEN or approval.created_at <= tx.now:
            return approval
        moved = replace(approval, created_at=tx.now, expires_at=tx.now + (approval.expires_at - approval.created_at))
        approvals.save(tx, moved)
        return moved

    def _ask(
        self,
        tx: Transaction,
        kind: ApprovalKind,
        title: str,
        parts: Mapping[str, str | Mapping[str, str]],
        by: Actor,
        place: Place,
        within: timedelta,
        *,
        mr: MergeRequestRef,
        sandbox_id: SandboxId | None = None,
        turn_id: TurnId | None = None,
        head_sha: str = "",
        only_by: str = "",
    ) -> Approval:
        payload = payload_of(parts)
        asked = approvals.add(
            tx, kind, title=title, payload=payload, payload_hash=hash_of(payload), asked_by=by, door=place.door,
            place=place.place, thread=place.thread, within=within, mr=mr, sandbox_id=sandbox_id, turn_id=turn_id,
            conversation_id=place.conversation_id, head_sha=head_sha, only_by=only_by,
        )  # fmt: skip
        self.telling.question(tx, asked)
        return asked

    def _place_of(self, tx: Transaction, by: Actor, mr: MergeRequest) -> Place | None:
        """Where the admins are asked: where it was said, if that is a room; else where they are told things."""
        mapped = self.config.rooms_of(mr.project_path)
        room = by.place or self.config.matrix.operations_room or next(iter(mapped), "")
        thread = by.thread if by.place else ""
        return Place(AgentDoor.MATRIX, outbox.rooms(tx).get(room, room), thread) if room else None


def until_of(approval: Approval) -> datetime:
    """The end that an extension asks for. Raises ValueError if its text was changed."""
    text = _part(approval, _UNTIL)
    return datetime.strptime(text, _MOMENT).replace(tzinfo=UTC)


def diff_of(approval: Approval) -> str:
    """The hash of the diff that a commit asks for; empty if its text was changed."""
    return _part(approval, DIFF)


def _part(approval: Approval, name: str) -> str:
    return next((part.text for part in reversed(parts_of(approval.payload)) if part.name == name), "")


def _place(conversation: Conversation) -> Place:
    return Place(conversation.door, conversation.place, conversation.thread, conversation.id)
