"""What people and GitLab want, turned into steps of a sandbox's life. Whoever calls has checked that they may."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from ravebot.config.model import Config
from ravebot.sandboxes.decide import Happened, Then, decide_sandbox
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import Actor, EndReason, EventKind, MergeRequest, Sandbox, SandboxState, Stage
from ravebot.sandboxes.view import in_words
from ravebot.store import images, merge_requests, sandboxes
from ravebot.store.database import Transaction
from ravebot.store.images import ImageRecord
from ravebot.store.signals import POOL

DEFAULT_EXTENSION = timedelta(hours=1)


@dataclass(frozen=True)
class Outcome:
    """What became of a wish, in words for the one who had it."""

    accepted: bool
    message: str


@dataclass(frozen=True)
class Intents:
    """Each method runs inside the caller's transaction."""

    config: Config
    lifecycle: Lifecycle

    def merge_request_told(self, tx: Transaction, told: MergeRequest, actor: Actor, *, may_start: bool = True) -> str:
        """GitLab tells how a merge request is now; returns what was done, for the log.

        Without `may_start` (merge requests that were open before ravebot came) it is only noted.
        """
        before, mr = merge_requests.observe(tx, told)
        sandbox = sandboxes.current(tx, mr.ref)
        if mr.state in ("merged", "closed"):
            if sandbox is None:
                if before and before.state == "opened" and mr.note_id is not None:
                    self.lifecycle.journal.refresh_note(tx, mr.ref)
                return "nothing to end"
            reason = EndReason.MERGED if mr.state == "merged" else EndReason.CLOSED
            self.lifecycle.end_asked(tx, sandbox, reason, actor)
            return f"ending: {reason.value}"
        if sandbox is not None:
            if mr.head_sha and mr.head_sha != sandbox.sha:
                return self._new_code(tx, sandbox, mr, actor)
            if before and (before.people != mr.people or before.title != mr.title or before.draft != mr.draft):
                self.lifecycle.journal.refresh(tx, sandbox, mr)
                tx.wake(POOL)
                return "noted"
            return "nothing new"
        first_commit = before is not None and not before.head_sha and bool(mr.head_sha)
        fresh = mr.state == "opened" and (before is None or before.state in ("closed", "merged") or first_commit)
        undrafted = before is not None and before.draft and not mr.draft and self.config.gitlab.drafts == "wait"
        if not may_start or not (fresh or undrafted):
            if before and before.head_sha != mr.head_sha and self._must_wait(mr):
                self.lifecycle.journal.refresh_note(tx, mr.ref)
            return "noted"
        if why := self._must_wait(mr):
            self.lifecycle.journal.refresh_note(tx, mr.ref)
            return f"waits: {why}"
        self.lifecycle.queue(tx, mr, actor)
        return "queued"

    def _must_wait(self, mr: MergeRequest) -> str:
        if mr.from_fork and mr.approved_sha != mr.head_sha:
            return "a fork's code needs approval"
        if mr.draft and self.config.gitlab.drafts == "wait":
            return "drafts wait for a person"
        if not mr.head_sha:
            return "it has no commit yet"
        return ""

    def _new_code(self, tx: Transaction, sandbox: Sandbox, mr: MergeRequest, actor: Actor) -> str:
        if mr.from_fork and mr.approved_sha != mr.head_sha:
            self.lifecycle.journal.refresh(tx, sandbox, mr)
            return "a fork's new code needs approval"
        self._take(tx, sandbox, mr.head_sha, actor)
        return "new code"

    def _take(self, tx: Transaction, sandbox: Sandbox, sha: str, actor: Actor) -> None:
        then = decide_sandbox(sandbox.state, Happened.CODE_UPDATED)
        if then is Then.NOTHING:
            return
        taken = replace(sandbox, sha=sha)
        restart = then is Then.UPDATE or (
            then is Then.RESTART_AT_COPY and sandbox.stage not in (None, Stage.HOST_KEYS, Stage.AUTHORIZE)
        )
        if restart:
            taken = replace(taken, stage=Stage.COPY, stage_started_at=tx.now, stage_attempt=sandbox.stage_attempt + 1)
        if then is Then.RESTART_AT_COPY:
            taken = replace(taken, ports_open=False)  # nothing was announced yet
        sandboxes.save(tx, taken)
        data: dict[str, object] = {"sha": sha, "by": str(actor)}
        self.lifecycle.journal.record(tx, EventKind.SANDBOX_CODE, actor, sandbox=taken, data=data)
        tx.wake(POOL)

    def start(self, tx: Transaction, mr: MergeRequest, actor: Actor, sha: str | None = None) -> Outcome:
        """Give it a sandbox; of a fork only with the very head's SHA, which lets that commit in."""
        if mr.state != "opened":
            return Outcome(False, f"{mr.full_ref} is {mr.state}: only an open merge request gets a sandbox")
        if not mr.head_sha:
            return Outcome(False, f"{mr.full_ref} has no commit yet: push one, its sandbox starts by itself")
        if sha is not None and (len(sha) < 7 or not mr.head_sha.startswith(sha.lower())):
            return Outcome(False, f"the head of {mr.full_ref} is {mr.head_sha[:12]}, not {sha[:40]}: look at it first")
        approves = False
        if mr.from_fork and mr.approved_sha != mr.head_sha:
            # In full: of a shorter one the fork's author can make a second commit, to be let in unseen.
            if sha is None or sha.lower() != mr.head_sha.lower():
                return Outcome(
                    False,
                    f"{mr.full_ref} comes from a fork: look at its code, then say start with its whole commit,"
                    f" {mr.head_sha}",
                )
            merge_requests.approve(tx, mr.ref, mr.head_sha)
            mr, approves = replace(mr, approved_sha=mr.head_sha), True
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is not None:
            if sandbox.sha != mr.head_sha:
                self._take(tx, sandbox, mr.head_sha, actor)
                if approves:
                    self._approved(tx, sandbox, mr, actor)
                return Outcome(True, f"the sandbox of {mr.full_ref} takes commit {mr.head_sha[:8]}")
            return Outcome(True, f"{mr.full_ref} has a sandbox already: it is {sandbox.state.value}")
        fresh = self.lifecycle.queue(tx, mr, actor)
        if approves:
            self._approved(tx, fresh, mr, actor)
        return Outcome(True, f"a sandbox for {mr.full_ref} is on its way")

    def _approved(self, tx: Transaction, sandbox: Sandbox, mr: MergeRequest, actor: Actor) -> None:
        data: dict[str, object] = {"sha": mr.head_sha, "by": str(actor)}
        self.lifecycle.journal.record(tx, EventKind.FORK_APPROVED, actor, sandbox=sandbox, data=data)

    def stop(self, tx: Transaction, mr: MergeRequest, actor: Actor) -> Outcome:
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is None:
            latest = sandboxes.latest(tx, mr.ref)
            if latest and latest.state is SandboxState.STOPPING:
                return Outcome(True, f"the sandbox of {mr.full_ref} is stopping already")
            return Outcome(False, f"{mr.full_ref} has no sandbox")
        self.lifecycle.end_asked(tx, sandbox, EndReason.STOPPED, actor)
        return Outcome(True, f"the sandbox of {mr.full_ref} is being stopped")

    def extend(self, tx: Transaction, mr: MergeRequest, actor: Actor, by: timedelta | None = None) -> Outcome:
        """Add to the lifetime, up to `max_lifetime` after it became ready."""
        by = by or DEFAULT_EXTENSION
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is None or sandbox.expires_at is None or sandbox.ready_at is None:
            state = f"it is {sandbox.state.value}" if sandbox else "there is none"
            return Outcome(False, f"only a sandbox that was ready can be extended, and {state} for {mr.full_ref}")
        if by <= timedelta(0):
            return Outcome(False, "an extension is longer than nothing: say for example extend 1h")
        longest = self.config.pool.max_lifetime
        end = sandbox.ready_at + longest
        until = min(max(sandbox.expires_at, tx.now) + min(by, longest), max(end, sandbox.expires_at))
        granted = until - sandbox.expires_at
        if granted <= timedelta(0):
            return Outcome(
                False, f"{mr.full_ref} has its longest lifetime already ({in_words(longest)}); rebuild starts anew"
            )
        left = until - tx.now
        extended = replace(
            sandbox,
            expires_at=until,
            warned=frozenset(threshold for threshold in sandbox.warned if left <= timedelta(seconds=threshold)),
            refreshed_at=tx.now,
        )
        sandboxes.save(tx, extended)
        data: dict[str, object] = {"seconds": granted.total_seconds(), "by": str(actor)}
        self.lifecycle.journal.record(tx, EventKind.SANDBOX_EXTENDED, actor, sandbox=extended, data=data)
        limited = f" (not {in_words(by)}: {in_words(longest)} is the longest)" if granted < by else ""
        return Outcome(
            True,
            f"{mr.full_ref} is extended by {in_words(granted)}{limited}, until {until:%H:%M} UTC, in {in_words(left)}",
        )

    def rebuild(self, tx: Transaction, mr: MergeRequest, actor: Actor) -> Outcome:
        """End it and start a new one on a fresh machine."""
        if mr.state != "opened":
            return Outcome(False, f"{mr.full_ref} is {mr.state}: only an open merge request gets a sandbox")
        if not mr.head_sha:
            return Outcome(False, f"{mr.full_ref} has no commit yet: push one, its sandbox starts by itself")
        if why := (mr.from_fork and self._must_wait(mr)):
            return Outcome(False, f"{mr.full_ref}: {why}: say start {mr.head_sha}")
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is not None and sandbox.state is SandboxState.QUEUED:
            return Outcome(True, f"{mr.full_ref} is in the queue: it gets a fresh machine anyway")
        if sandbox is not None:
            self.lifecycle.end_asked(tx, sandbox, EndReason.SUPERSEDED, actor, "rebuilt")
        self.lifecycle.queue(tx, mr, actor)
        return Outcome(True, f"{mr.full_ref} gets a fresh machine" + (", the old one ends first" if sandbox else ""))

    def retry(self, tx: Transaction, mr: MergeRequest, actor: Actor) -> Outcome:
        """Go on after failures: lift the image's hold, drop the backoff, run the chain or the sandbox again."""
        image = str(self.config.provider.image)
        record = images.get(tx, image)
        sandbox, started = sandboxes.current(tx, mr.ref), None
        if sandbox is None:
            started = self.start(tx, mr, actor)
            sandbox = sandboxes.current(tx, mr.ref)
            if sandbox is None:
                return started
        if record != ImageRecord(image):
            images.save(tx, ImageRecord(image))
        if record.held:
            self.lifecycle.journal.record(tx, EventKind.BUILD_RESUMED, actor, sandbox=sandbox, data={"by": str(actor)})
            for other in sandboxes.live(tx):
                if other.state is SandboxState.QUEUED and other.id != sandbox.id:
                    self.lifecycle.wait(tx, other, "")
        tx.wake(POOL)
        if started is not None:
            return started
        if sandbox.state is SandboxState.QUEUED:
            sandboxes.save(tx, replace(sandbox, not_before=None, wait_reason=""))
            return Outcome(True, f"{mr.full_ref} is tried again")
        if sandbox.state is SandboxState.READY and sandbox.stage is None:
            self._take(tx, sandbox, mr.head_sha if not self._must_wait(mr) else sandbox.sha, actor)
            return Outcome(True, f"{mr.full_ref}: the code is copied in and set up again")
        return Outcome(True, f"{mr.full_ref} is {sandbox.state.value}: nothing to retry")
