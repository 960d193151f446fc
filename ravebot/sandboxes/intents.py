"""Requests of people and of GitLab about a sandbox, and the replies. The caller has checked the permission.

The lifecycle decides what follows for the sandbox, and returns it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from ravebot.clock import moment
from ravebot.config.model import Config
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.decide import Happened, Then
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import (
    RAVEBOT,
    Actor,
    EndReason,
    EventKind,
    MergeRequest,
    MergeRequestRef,
    Sandbox,
    SandboxId,
    SandboxState,
)
from ravebot.sandboxes.settings import of_merge_request, of_sandbox
from ravebot.sandboxes.starting import StartGate, start_gate
from ravebot.sandboxes.view import in_words
from ravebot.store import environments, events, merge_requests, sandboxes
from ravebot.store.database import Transaction
from ravebot.store.signals import POOL

DEFAULT_EXTENSION = timedelta(hours=1)
LONGEST_EXTENSION = timedelta(days=7)
"""The most that an admin gives at a time past the longest lifetime."""


@dataclass(frozen=True)
class Advice:
    """What to type next, and what for ("To start one"). Each door says it as it is typed there."""

    purpose: str
    verb: str
    argument: str = ""  # what follows the merge request


@dataclass(frozen=True)
class Outcome:
    """The result of a request, and the reply to the person who made it."""

    accepted: bool
    message: str
    advice: Advice | None = None


class Asks(Protocol):
    """Asks people to allow what nobody allowed yet. Each method runs inside the caller's transaction."""

    def ask_fork(self, tx: Transaction, mr: MergeRequest) -> None:
        """Ask in the project's rooms whether the head of a fork's merge request may be let in; once for each head."""

    def ask_extension(self, tx: Transaction, sandbox: Sandbox, by: Actor, until: datetime) -> int | None:
        """Ask the admins to keep a sandbox past its longest lifetime; returns the question's number, None if there is
        nobody to answer it."""


def _no(message: str, *advice: str) -> Outcome:
    return Outcome(False, message, Advice(*advice) if advice else None)


def _not_served(mr: MergeRequest) -> str:
    return f"{mr.project_path} is not one of gitlab.projects"


@dataclass(frozen=True)
class Intents:
    """Each method runs inside the caller's transaction."""

    config: Config
    lifecycle: Lifecycle
    asking: Asks | None = None  # None: nobody is asked

    def merge_request_reported(
        self, tx: Transaction, told: MergeRequest, actor: Actor, *, may_start: bool = True
    ) -> str:
        """Handle the current state of a merge request at GitLab; returns what was done, for the log.

        Without `may_start` (the merge request was open before ravebot was installed) it is only recorded. So is one of
        a project that is served no longer: its sandbox gets no new code, and ends in its time.
        """
        served = self.config.serves(told.project_path)
        if not served and merge_requests.get(tx, told.ref) is None:
            return _not_served(told)
        before, mr = merge_requests.observe(tx, told)
        if mr.state in ("merged", "closed"):
            reason = EndReason.MERGED if mr.state == "merged" else EndReason.CLOSED
            if self.lifecycle.asked(tx, mr, Happened.END_ASKED, actor, reason=reason) is not Then.NOTHING:
                return f"ending: {reason.value}"
            if before and before.state == "opened":  # what to type next is another thing now
                if latest := sandboxes.latest(tx, mr.ref):
                    self.lifecycle.journal.refresh(tx, latest, mr)
                elif mr.note_id is not None:
                    self.lifecycle.journal.refresh_note(tx, mr.ref)
            return "nothing to end"
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is not None:
            if served and mr.head_sha and mr.head_sha != sandbox.sha:
                return self._new_code(tx, sandbox, mr, actor)
            if before and self._shown(before) != self._shown(mr):
                self.lifecycle.journal.refresh(tx, sandbox, mr)
                environments.touch(tx, mr.ref)  # one without a web page links to the merge request
                tx.wake(POOL)
                return "noted"
            return "nothing new"
        if not served:
            return _not_served(mr)
        first_commit = before is not None and not before.head_sha and bool(mr.head_sha)
        fresh = mr.state == "opened" and (before is None or before.state in ("closed", "merged") or first_commit)
        gate = self._gate(tx, mr)
        was = self._gate(tx, before) if before else None
        let_go = before is not None and before.state == mr.state == "opened" and was is not None and gate is None
        why = self._must_wait(tx, mr)
        if not may_start or not (fresh or let_go):
            if before and why and (before.head_sha, was) != (mr.head_sha, gate):
                self._waits(tx, mr)
            return "noted"
        if why:
            self._waits(tx, mr)
            return f"waits: {why}"
        latest = sandboxes.latest(tx, mr.ref)
        if latest and self._stays_stopped(tx, latest, mr):
            self.lifecycle.journal.refresh(tx, latest, mr)  # what to type next is another thing now
            return "noted: a person stopped it"
        self.lifecycle.asked(tx, mr, Happened.START_ASKED, actor)
        return "queued"

    def _stays_stopped(self, tx: Transaction, latest: Sandbox, mr: MergeRequest) -> bool:
        """Whether a person stopped it at this commit: only a person's command starts it again. Whoever may reopen a
        merge request, or mark it as ready, may not undo that: the author of a fork's could."""
        if latest.sha != mr.head_sha:
            return False
        if latest.end_reason is EndReason.STOPPED:
            return True
        stopping = [one for one in events.of_sandbox(tx, latest.id) if one.kind is EventKind.SANDBOX_STOPPING]
        return any(one.data.get("kept") == EndReason.STOPPED for one in stopping)

    def _shown(self, mr: MergeRequest) -> tuple[object, ...]:
        """What card and note show of it, or follows from it."""
        labels = self.config.gitlab.labels
        return mr.project_path, mr.people, mr.title, mr.draft, {labels.skip, labels.large}.intersection(mr.labels)

    def approval_reported(
        self, tx: Transaction, ref: MergeRequestRef, kind: EventKind, by: Actor, *, complete: bool
    ) -> str:
        """Tell of somebody's approval of the merge request, given or taken back, where its sandbox is told of."""
        sandbox = sandboxes.current(tx, ref)
        if sandbox is None:
            return "an approval, but there is no sandbox"
        data: dict[str, object] = {"complete": complete} | ({} if by == RAVEBOT else {"by": str(by)})
        self.lifecycle.journal.record(tx, kind, by, sandbox=sandbox, data=data)
        return kind.value

    def _gate(self, tx: Transaction, mr: MergeRequest) -> StartGate | None:
        return start_gate(self.config, mr, of_merge_request(tx, self.config, mr))

    def _must_wait(self, tx: Transaction, mr: MergeRequest) -> str:
        if mr.from_fork and mr.approved_sha != mr.head_sha:
            return "a fork's code needs approval"
        if gate := self._gate(tx, mr):
            return gate.value
        if not mr.head_sha:
            return "it has no commit yet"
        return ""

    def _waits(self, tx: Transaction, mr: MergeRequest) -> None:
        """Say in the note what it waits for, and of a fork ask in the rooms; but not while nothing starts by itself.

        A label that says that there is to be none needs no note.
        """
        gate = self._gate(tx, mr)
        if gate is not StartGate.SKIP or mr.note_id is not None:
            self.lifecycle.journal.refresh_note(tx, mr.ref)
        if gate is None:
            self._ask_fork(tx, mr)

    def _ask_fork(self, tx: Transaction, mr: MergeRequest) -> None:
        if self.asking and mr.from_fork and mr.head_sha and mr.approved_sha != mr.head_sha:
            self.asking.ask_fork(tx, mr)

    def _new_code(self, tx: Transaction, sandbox: Sandbox, mr: MergeRequest, actor: Actor) -> str:
        if mr.from_fork and mr.approved_sha != mr.head_sha:
            self.lifecycle.journal.refresh(tx, sandbox, mr)
            self._ask_fork(tx, mr)
            return "a fork's new code needs approval"
        self.lifecycle.happened(tx, sandbox, Happened.CODE_UPDATED, actor, sha=mr.head_sha)
        return "new code"

    def _refused(self, mr: MergeRequest, sha: str | None = None) -> Outcome | None:
        """Why it gets no sandbox; None when it may have one."""
        if mr.state != "opened":
            return _no(f"{mr.full_ref} is {mr.state}. Only an open merge request gets a sandbox.")
        if not mr.head_sha:
            return _no(f"{mr.full_ref} has no commit yet. Push one: its sandbox then starts by itself.")
        if sha is not None and (len(sha) < 7 or not mr.head_sha.startswith(sha.lower())):
            why = f"The head of {mr.full_ref} is {mr.head_sha[:12]}, not {sha[:40]}. Look at it first."
            return _no(why, "To start it then", "start", mr.head_sha)
        # Only the full SHA: the fork's author could make another commit with the same short one.
        if mr.from_fork and mr.head_sha not in (mr.approved_sha, (sha or "").lower()):
            why = f"{mr.full_ref} comes from a fork, and nobody let its commit in yet. Look at its code first."
            return _no(why, "To let in exactly this commit", "start", mr.head_sha)
        return None

    def start(self, tx: Transaction, mr: MergeRequest, actor: Actor, sha: str | None = None) -> Outcome:
        """Start a sandbox. A fork needs the full SHA of its head; that approves exactly that commit."""
        if refused := self._refused(mr, sha):
            return refused
        approves = mr.from_fork and mr.approved_sha != mr.head_sha
        if approves:
            merge_requests.approve(tx, mr.ref, mr.head_sha)
            mr = replace(mr, approved_sha=mr.head_sha)
        then = self.lifecycle.asked(tx, mr, Happened.START_ASKED, actor)
        sandbox = sandboxes.current(tx, mr.ref)
        assert sandbox
        message, advice = f"A sandbox for {mr.full_ref} is on its way.", None
        if then is Then.NOTHING:
            message = f"{mr.full_ref} has a sandbox already: it is {sandbox.status}."
            advice = Advice("To see all about it", "show")
            if sandbox.sha != mr.head_sha:
                self.lifecycle.happened(tx, sandbox, Happened.CODE_UPDATED, actor, sha=mr.head_sha)
                message, advice = f"The sandbox of {mr.full_ref} gets commit {mr.head_sha[:8]}.", None
        if approves:
            data: dict[str, object] = {"sha": mr.head_sha, "by": str(actor)}
            self.lifecycle.journal.record(tx, EventKind.FORK_APPROVED, actor, sandbox=sandbox, data=data)
        return Outcome(True, message, advice)

    def stop(self, tx: Transaction, mr: MergeRequest, actor: Actor) -> Outcome:
        if self.lifecycle.asked(tx, mr, Happened.END_ASKED, actor) is not Then.NOTHING:
            return Outcome(True, f"The sandbox of {mr.full_ref} is being stopped.")
        latest = sandboxes.latest(tx, mr.ref)
        if latest and latest.state is SandboxState.STOPPING:
            return Outcome(True, f"The sandbox of {mr.full_ref} is being stopped already.")
        return _no(f"{mr.full_ref} has no sandbox.")

    def extend(self, tx: Transaction, mr: MergeRequest, actor: Actor, by: timedelta | None = None) -> Outcome:
        """Add to the lifetime, up to `max_lifetime` after it became ready, or was kept. Past that an admin decides:
        one who extends it has decided, and for others the admins are asked."""
        by = by or DEFAULT_EXTENSION
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is None:
            return _no(f"{mr.full_ref} has no sandbox, so there is nothing to extend.", "To start one", "start")
        since = sandbox.time_since
        if sandbox.expires_at is None or since is None:
            why = f"The sandbox of {mr.full_ref} is {sandbox.state.value}."
            return _no(f"{why} Only a sandbox that was ready can be extended.")
        if by <= timedelta(0):
            return _no("An extension must be longer than nothing.", "For an hour", "extend", "1h")
        longest = self.config.pool.max_lifetime
        end = since + longest
        wanted = max(sandbox.expires_at, tx.now) + min(by, LONGEST_EXTENSION)
        admin = self._is_admin(actor)
        until = wanted if admin else min(wanted, max(end, sandbox.expires_at))
        granted = until - sandbox.expires_at
        if granted <= timedelta(0):
            why = f"{mr.full_ref} has its longest lifetime already, {in_words(longest)}: it ends at"
            why = f"{why} {moment(sandbox.expires_at, tx.now)}."
            number = self.asking.ask_extension(tx, sandbox, actor, wanted) if self.asking else None
            if number is not None:
                asked = f"An admin of ravebot is asked to keep it until {moment(wanted, tx.now)}: approval {number}."
                return _no(f"{why} {asked}")
            return _no(why, "For a fresh machine with a new end", "rebuild")
        self.lifecycle.extend(tx, sandbox, until, granted, actor)
        limit = f"{in_words(LONGEST_EXTENSION)} at a time" if admin else f"{in_words(longest)} is the longest lifetime"
        limited = f", not {in_words(by)}: {limit}" if granted < by else ""
        more = f"{in_words(granted)} more{limited}"
        return Outcome(True, f"{mr.full_ref} stays until {moment(until, tx.now)} ({more}).")

    def extend_until(
        self, tx: Transaction, mr: MergeRequest, sandbox_id: SandboxId, admin: Actor, until: datetime
    ) -> Outcome:
        """Keep that sandbox until then, past its longest lifetime too: an admin granted it. A later end stays."""
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is None or sandbox.id != sandbox_id or sandbox.expires_at is None or sandbox.time_since is None:
            return _no(f"The sandbox of {mr.full_ref} that was asked for is not there any more.")
        if until <= sandbox.expires_at:
            return Outcome(True, f"{mr.full_ref} stays until {moment(sandbox.expires_at, tx.now)} already.")
        self.lifecycle.extend(tx, sandbox, until, until - sandbox.expires_at, admin)
        return Outcome(True, f"{mr.full_ref} stays until {moment(until, tx.now)}.")

    def _is_admin(self, actor: Actor) -> bool:
        return actor.kind == "matrix" and actor.name in self.config.matrix.admins

    def rebuild(self, tx: Transaction, mr: MergeRequest, actor: Actor) -> Outcome:
        """Replace the sandbox by one on a new machine; without a sandbox, start one."""
        if refused := self._refused(mr):
            return refused
        then = self.lifecycle.asked(tx, mr, Happened.REBUILD, actor)
        if then is Then.NOTHING:
            return Outcome(True, f"{mr.full_ref} waits in the queue, and gets a fresh machine anyway.")
        ends = " The old one ends first." if then is Then.REBUILD else ""
        return Outcome(True, f"{mr.full_ref} gets a fresh machine.{ends}")

    def retry(self, tx: Transaction, mr: MergeRequest, actor: Actor) -> Outcome:
        """Go on after failures: lift the image's hold, drop the backoff, run the chain or start the sandbox again."""
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is None and (refused := self._refused(mr)):
            return refused

        def resume(of: Sandbox) -> None:
            asked = of_sandbox(tx, self.config, of)
            machine_life.resume_builds(tx, self.lifecycle, asked.image_held or asked.image_key, of, by=actor)

        if sandbox:  # first, so that what is said of the image comes before what follows
            resume(sandbox)
        may_not = not mr.head_sha or (mr.from_fork and mr.approved_sha != mr.head_sha)
        sha = sandbox.sha if sandbox and may_not else mr.head_sha
        then = self.lifecycle.asked(tx, mr, Happened.RETRY, actor, sha=sha)
        if sandbox is None:
            sandbox = sandboxes.current(tx, mr.ref)
            assert sandbox
            resume(sandbox)
        match then:
            case Then.NEW | Then.NEW_BEHIND:
                return Outcome(True, f"A sandbox for {mr.full_ref} is on its way.")
            case Then.DROP_BACKOFF:
                return Outcome(True, f"{mr.full_ref} is tried again now.")
            case Then.UPDATE:
                return Outcome(True, f"The code of {mr.full_ref} is copied in and set up again.")
            case _:
                return Outcome(True, f"{mr.full_ref} is {sandbox.state.value}: there is nothing to retry.")
