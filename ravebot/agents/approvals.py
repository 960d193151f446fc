"""Takes people's answers to approvals: by reaction, command, comment or at the shell. What follows is in `carryout`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ravebot.agents.asking import Asking
from ravebot.agents.model import AgentDoor, Approval, ApprovalId, ApprovalKind, ApprovalState
from ravebot.agents.questions import whom
from ravebot.agents.ruling import GivenAnswer, Rights, Ruling, judge
from ravebot.commands.people import NOBODY_S_ROLE, People
from ravebot.commands.permissions import SHELL, Decision, Right
from ravebot.config.patterns import matches_project
from ravebot.sandboxes.model import Actor, EventKind, MergeRequest, Person
from ravebot.store import approvals, conversations, events, merge_requests, outbox
from ravebot.store.database import Database, Transaction

_ELSEWHERE = Decision(False, "This question is about another project.", "Answer it where it was asked.")
_ADMINS_ONLY = Decision(False, "Only an admin of ravebot may allow that.", "They answer in Matrix or at the shell.")
_NOT_MAPPED = Decision(False, "This room is not mapped to that project.", "Answer it where it was asked.")
_LOOKS_AT_HEAD = frozenset({ApprovalKind.FORK, ApprovalKind.START, ApprovalKind.COMMIT})


@dataclass(frozen=True)
class Answered:
    """What an answer did, and the reply to who gave it; without `text`, nothing is said."""

    ruling: Ruling | None  # None: there is no such question
    text: str = ""

    @property
    def taken(self) -> bool:
        return self.ruling in (Ruling.GRANTED, Ruling.DENIED)


Answering = Callable[[Transaction], Answered]
"""Takes an answer, inside the caller's transaction."""


@dataclass(frozen=True)
class Approvals(Asking):
    """Asks and takes answers."""

    database: Database
    people: People

    async def answer(
        self,
        approval_id: ApprovalId,
        yes: bool,
        who: Actor | Person,
        *,
        place: str = "",
        direct: bool = False,
        spoken: bool = True,
        seen_hash: str = "",
    ) -> Answering:
        """Look up what somebody may, and return what takes their answer. Raises as GitLab answers.

        `who`: a Matrix user, somebody at the shell, or a GitLab user. `place`: in Matrix the room's id, in GitLab
        `PROJECT_ID!IID`; `direct`: it is a direct chat. Not `spoken`: a reaction, which is answered only if it can't be
        taken and somebody should know, once for each question. `seen_hash`: of the payload that was seen.
        """
        actor = Actor("gitlab", who.username) if isinstance(who, Person) else who
        found = await self.database.read(lambda tx: self._found(tx, approval_id, place))
        if found is None:
            return lambda _: Answered(
                None,
                f"There is no approval {approval_id}: the number stands in the question's message." if spoken else "",
            )
        approval, mr, here, patterns = found
        decision, allowed_here = await self._may(
            approval,
            mr,
            who,
            place,
            here,
            patterns,
            direct,
            as_admin=not yes or approval.kind is not ApprovalKind.COMMIT,
        )
        head = None
        if yes and decision.allowed and allowed_here and _is_bound(approval) and approval.mr:
            head = await self.people.present(approval.mr)
        rights = Rights(actor, decision.allowed, allowed_here, head.head_sha if head else "")
        answer = GivenAnswer(yes, seen_hash)
        return lambda tx: self._take(tx, approval_id, answer, rights, decision, head, spoken=spoken)

    def _found(
        self, tx: Transaction, approval_id: ApprovalId, place: str
    ) -> tuple[Approval, MergeRequest | None, bool, tuple[str, ...]] | None:
        """The question, its merge request, whether the place is where it is shown, and the place's projects."""
        approval = approvals.get(tx, approval_id)
        if approval is None:
            return None
        names = {name for name, room_id in outbox.rooms(tx).items() if room_id == place} | {place}
        rooms = self.config.matrix.rooms
        patterns = tuple(pattern for room in rooms if room.room in names for pattern in room.projects)
        mr = merge_requests.get(tx, approval.mr) if approval.mr else None
        here = approval.door is AgentDoor.MATRIX and approval.place in names
        if approval.kind is ApprovalKind.EXTENSION:  # the operators are told of it
            here = here or self.config.matrix.operations_room in names
        return approval, mr, here, patterns

    async def _may(
        self,
        approval: Approval,
        mr: MergeRequest | None,
        who: Actor | Person,
        place: str,
        here: bool,
        patterns: tuple[str, ...],
        direct: bool,
        *,
        as_admin: bool,
    ) -> tuple[Decision, bool]:
        """Whether they have the right that this kind needs, and whether they may answer in this place.

        Not `as_admin`, for a yes to a commit: nobody pushes through ravebot who may not push themselves.
        """
        project = mr.project_path if mr else ""
        admins = approval.kind is ApprovalKind.EXTENSION or approval.mr is None
        if isinstance(who, Person):
            if approval.mr is None or place.partition("!")[0] != str(approval.mr.project_id):
                return _ELSEWHERE, False
            if admins:
                return _ADMINS_ONLY, True
            ref = approval.mr
            return await self.people.from_comment(Right.COMMAND, ref.project_id, project or "that project", who), True
        if who.kind == "shell":
            return (SHELL if as_admin else NOBODY_S_ROLE), True
        mapped = bool(project) and matches_project(patterns, project)
        if admins:
            if not here and not mapped and not direct:
                return _NOT_MAPPED, False
            is_admin = who.name in self.config.matrix.admins
            return (Decision(True, "You are an admin of ravebot.") if is_admin else _ADMINS_ONLY), True
        if not mapped and not direct:
            return _NOT_MAPPED, False
        decision = await self.people.from_room(
            Right.COMMAND,
            who.name,
            project_id=approval.mr.project_id if approval.mr else None,
            mapped=mapped,
            direct=direct,
            project=project,
            as_admin=as_admin,
        )
        return decision, True

    def _take(
        self,
        tx: Transaction,
        approval_id: ApprovalId,
        answer: GivenAnswer,
        rights: Rights,
        decision: Decision,
        head: MergeRequest | None,
        *,
        spoken: bool,
    ) -> Answered:
        approval = approvals.get(tx, approval_id)
        assert approval
        approval = self.brought_back(tx, approval)
        mr = merge_requests.observe(tx, head)[1] if head else None
        ruling = judge(approval, answer, rights, tx.now)
        text = f"Approval {approval.id} "
        match ruling:
            case Ruling.GRANTED | Ruling.DENIED:
                self._decide(tx, approval, ruling, rights.who)
                text += "is approved." if answer.yes else "is denied."
                return Answered(ruling, text if spoken else "")
            case Ruling.CHANGED:
                text = self._changed(tx, approval, mr)
            case Ruling.TOO_LATE:
                if approval.state is ApprovalState.OPEN:
                    self.expire(tx, approval)
                text += "is over: no answer came in time, which is a no."
            case Ruling.ANSWERED:
                was = "approved" if approval.state is ApprovalState.GRANTED else "denied"
                text += f"was answered by {approval.decided_by} before: it is {was}."
            case Ruling.WITHDRAWN:
                text += f"is not asked any more: {approval.outcome}."
            case Ruling.NO_PERSON:
                return Answered(ruling)
            case Ruling.ELSEWHERE | Ruling.NO_RIGHT | Ruling.ANOTHER:
                return Answered(ruling, self._refusal(tx, approval, ruling, rights.who, decision, spoken=spoken))
        return Answered(ruling, text if spoken else "")

    def _decide(self, tx: Transaction, approval: Approval, ruling: Ruling, by: Actor) -> None:
        state = ApprovalState.GRANTED if ruling is Ruling.GRANTED else ApprovalState.DENIED
        approvals.decide(tx, approval, state, by)
        self.telling.question(tx, approval)
        if approval.kind is ApprovalKind.FORK and approval.mr:  # it was asked in each of the project's rooms
            for other in approvals.of_merge_request(tx, approval.mr, ApprovalKind.FORK):
                if other.head_sha == approval.head_sha:
                    self.withdraw(tx, other, f"approval {approval.id}, the same question, was answered by {by}")

    def _changed(self, tx: Transaction, approval: Approval, mr: MergeRequest | None) -> str:
        """Take it back, and ask for the same as it is now."""
        why = "what is asked is not what was shown"
        if mr and approval.head_sha and mr.head_sha != approval.head_sha:
            why = f"the head of {mr.full_ref} is {mr.head_sha[:12]} now, not {approval.head_sha[:12]}"
        self.withdraw(tx, approval, why)
        if mr:
            self.ask_again(tx, approval, mr)
        follows = "It is asked again as it is now: look at it first."
        if approval.kind is ApprovalKind.COMMIT and approval.mr:
            ref = mr.full_ref if mr else f"!{approval.mr.iid}"
            follows = f"To commit it all the same, let the sandbox take the new commit, then ask for the diff of {ref}."
        text = f"Approval {approval.id} was not granted: {why}. {follows}"
        conversation = conversations.get(tx, approval.conversation_id) if approval.conversation_id else None
        if conversation is not None:
            self.telling.remark(tx, conversation, text)
            return ""
        return text

    def _refusal(
        self, tx: Transaction, approval: Approval, ruling: Ruling, who: Actor, decision: Decision, *, spoken: bool
    ) -> str:
        """What somebody is told who may not answer; of reactions only the first for each question."""
        if not spoken:
            if approval.hinted_at is not None or approval.state is not ApprovalState.OPEN:
                return ""
            approvals.save(tx, replace(approval, hinted_at=tx.now))
        mr = merge_requests.get(tx, approval.mr) if approval.mr else None
        text = decision.refusal
        if ruling is Ruling.ANOTHER or (ruling is Ruling.NO_RIGHT and not spoken):
            project = mr.project_path if mr else ""
            text = f"Approval {approval.id} waits for another answer. Who may give it: {whom(approval, project)}."
        rule = ruling.value if ruling is Ruling.ANOTHER else decision.rule
        data: dict[str, object] = {"verb": "approval", "approval": approval.id, "rule": rule}
        events.append(tx, EventKind.COMMAND_REFUSED, who, mr=approval.mr, data=data)
        return text


def _is_bound(approval: Approval) -> bool:
    """Whether it is only granted while the merge request's head is what it was."""
    return approval.kind in _LOOKS_AT_HEAD and bool(approval.head_sha) and approval.state is ApprovalState.OPEN
