"""A sandbox's lifecycle: callers say what happened, the table says what follows, and `happened` carries it out.

Each step is part of the caller's transaction: the change, its event and its messages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never

from ravebot.backoff import Backoff
from ravebot.clock import moment
from ravebot.config.model import Config
from ravebot.sandboxes import settings, transitions
from ravebot.sandboxes.decide import Happened, Then, decide_expiry, decide_sandbox, kept_until, settled_thresholds
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.model import (
    CLAIM_STAGES,
    RAVEBOT,
    UPDATE_STAGES,
    Actor,
    EndReason,
    EventKind,
    Machine,
    MachineId,
    MachineState,
    MergeRequest,
    MergeRequestRef,
    Sandbox,
    SandboxId,
    SandboxState,
    Stage,
)
from ravebot.sandboxes.pipelineimages import waits_for_image
from ravebot.sandboxes.telling import TELLINGS
from ravebot.sandboxes.wording import failed
from ravebot.store import images, machines, merge_requests, outbox, sandboxes, usage
from ravebot.store.database import Transaction
from ravebot.store.signals import IMAGES, POOL

BUILD_FAILURES_THAT_HOLD = 3
_BUILD_PAUSES = Backoff.growing(10.0, 270.0, factor=3.0)


@dataclass(frozen=True)
class Allocation:
    """What a queued sandbox is given to start: a machine to be built, and ports."""

    machine: Machine
    ssh_port: int
    web_port: int


@dataclass(frozen=True)
class Lifecycle:
    """Changes sandboxes. Every sandbox that is passed must have been read in the same transaction."""

    config: Config
    journal: Journal

    def asked(
        self,
        tx: Transaction,
        mr: MergeRequest,
        what: Happened,
        by: Actor,
        *,
        reason: EndReason = EndReason.STOPPED,
        sha: str = "",
    ) -> Then:
        """Apply a request to the newest sandbox of a merge request; `sha`: the commit, if not the head.

        A merge request that never had a sandbox is treated like one whose sandbox has ended.
        """
        never = Sandbox(SandboxId(0), mr.ref, SandboxState.ENDED, by, tx.now, tx.now, mr.head_sha)
        sandbox = sandboxes.latest(tx, mr.ref) or never
        return self.happened(tx, sandbox, what, by, reason=reason, sha=sha or mr.head_sha)

    def happened(
        self,
        tx: Transaction,
        sandbox: Sandbox,
        what: Happened,
        by: Actor = RAVEBOT,
        *,
        why: str = "",
        reason: EndReason = EndReason.STOPPED,
        sha: str = "",
        allocation: Allocation | None = None,
        unbuilt: Machine | None = None,
        answers: bool = False,
    ) -> Then:
        """Carry out what the table says follows for a sandbox; returns what that was.

        `why`: in words, of an end, a failure or a loss; `reason`: of an end that is asked for; `sha`: what it, or a
        new one, shall run; `allocation`: for one that is queued; `unbuilt`: its machine, when that did not come up;
        `answers`: whether its machine answers, when a stage failed.
        """
        then = decide_sandbox(sandbox, what, unbuilt)
        match then:
            case Then.NOTHING:
                pass
            case Then.BEGIN:
                assert allocation
                self._begin(tx, sandbox, allocation)
            case Then.NEXT_STAGE:
                self._go_on(tx, sandbox)
            case Then.CHAIN_AGAIN:
                self._chain_again(tx, sandbox, why)
            case Then.TAKE_SHA:
                self._take(tx, replace(sandbox, ports_open=False), sha, by)  # nothing was announced yet
                self.refresh(tx, replace(sandbox, ports_open=False, sha=sha))
            case Then.RESTART_AT_COPY:
                again = transitions.at_first_stage(sandbox, Stage.COPY, tx.now)
                self._take(tx, replace(again, ports_open=False), sha, by)
            case Then.UPDATE:
                self._take(tx, transitions.at_first_stage(sandbox, Stage.COPY, tx.now), sha, by)
            case Then.KEEP:
                why = f"{failed(sandbox.stage)}: {why}"
                inside = sandbox.running_sha == sandbox.sha
                went = "is in the machine, but its" if inside else "was not taken, because its"
                notice = f"commit {sandbox.sha[:8]} {went} {why}"
                kept = replace(sandbox, stage=None, stage_started_at=None, notice=notice)
                data: dict[str, object] = {"sha": sandbox.sha, "why": why, "inside": inside}
                self._step(tx, kept, EventKind.SANDBOX_UPDATE_FAILED, data)
            case Then.EXPIRE:
                self._expire(tx, sandbox)
            case Then.STOP:
                self._stop(tx, sandbox, by, reason, why)
            case Then.FAIL:
                self._fail(tx, sandbox, f"{failed(sandbox.stage)}: {why}", answers=answers)
            case Then.END_LOST:
                self._stop(tx, sandbox, by, EndReason.LOST, why)
            case Then.END:
                # That it stops tells why; without a machine it ends in the same step.
                told = reason is EndReason.FAILED and sandbox.state is SandboxState.QUEUED
                (self._stop if told else self._end)(tx, sandbox, by, reason, why)
            case Then.RETRY:
                self._queue_again(tx, sandbox, why, unbuilt)
            case Then.REBUILD:
                self._stop(tx, sandbox, by, EndReason.SUPERSEDED, "rebuilt")
                self._queue(tx, sandbox.mr, sha, by)
            case Then.NEW | Then.NEW_BEHIND:  # it waits until the one before it has ended
                queued = self._queue(tx, sandbox.mr, sha, by)
                if what is Happened.RETRY and sandbox.end_reason is EndReason.FAILED:
                    outbox.hand_over_cards(tx, sandbox.id, queued.id)
            case Then.DROP_BACKOFF:
                self.refresh(tx, replace(sandbox, not_before=None, wait_reason=""))
                tx.wake(POOL)
            case _:
                assert_never(then)
        return then

    def _step(
        self,
        tx: Transaction,
        sandbox: Sandbox,
        kind: EventKind,
        data: dict[str, object],
        actor: Actor = RAVEBOT,
        machine_id: MachineId | None = None,
    ) -> None:
        """Save the changed sandbox, and record the event."""
        if TELLINGS[kind].card:
            sandbox = replace(sandbox, refreshed_at=tx.now)
        sandboxes.save(tx, sandbox)
        self.journal.record(tx, kind, actor, sandbox=sandbox, machine_id=machine_id, data=data)

    def _queue(self, tx: Transaction, ref: MergeRequestRef, sha: str, actor: Actor) -> Sandbox:
        sandbox = replace(sandboxes.insert(tx, ref, sha, actor), refreshed_at=tx.now)
        sandboxes.save(tx, sandbox)
        mr = merge_requests.get(tx, ref)
        assert mr
        data: dict[str, object] = {"sha": sha, "by": str(actor), "ref": mr.full_ref}
        self.journal.record(tx, EventKind.SANDBOX_QUEUED, actor, sandbox=sandbox, data=data)
        tx.wake(POOL)
        tx.wake(IMAGES)
        return sandbox

    def _begin(self, tx: Transaction, sandbox: Sandbox, allocation: Allocation) -> None:
        machine = machines.insert(tx, replace(allocation.machine, sandbox_id=sandbox.id))
        begun = transitions.starting(sandbox, machine.id, allocation.ssh_port, allocation.web_port, tx.now)
        self._step(tx, begun, EventKind.SANDBOX_STARTING, {"machine": machine.name}, machine_id=machine.id)

    def _go_on(self, tx: Transaction, sandbox: Sandbox) -> None:
        """Go to the chain's first or next stage, or announce the sandbox after the last one."""
        first = sandbox.state is SandboxState.STARTING or sandbox.is_kept
        chain = CLAIM_STAGES if first else UPDATE_STAGES
        if sandbox.stage is None:
            machine = _machine(tx, sandbox)
            leased = replace(
                machine, state=MachineState.LEASED, state_since=tx.now, booted_at=tx.now, silent_since=None
            )
            machines.save(tx, leased)
            begun = transitions.at_first_stage(sandbox, chain[0], tx.now)
            seconds = tx.seconds_since(machine.state_since)
            self._step(tx, begun, EventKind.MACHINE_BOOTED, {"seconds": seconds}, machine_id=machine.id)
        elif sandbox.stage is chain[-1]:
            self._announce(tx, sandbox)
        else:
            following = chain[chain.index(sandbox.stage) + 1]
            inside = sandbox.sha if sandbox.stage is Stage.COPY else sandbox.running_sha
            sandboxes.save(tx, replace(sandbox, stage=following, stage_started_at=tx.now, running_sha=inside))

    def _announce(self, tx: Transaction, sandbox: Sandbox) -> None:
        lifetime = settings.of_sandbox(tx, self.config, sandbox).lifetime
        settled = settled_thresholds(self.config.pool.warn_before, lifetime)
        fresh = transitions.ready(sandbox, lifetime, settled, tx.now)
        if sandbox.state is fresh.state and not sandbox.is_kept:
            self._step(tx, fresh, EventKind.SANDBOX_UPDATED, {"sha": fresh.sha})
        else:
            since = sandbox.state_since if sandbox.ready_at else fresh.created_at
            data: dict[str, object] = {"seconds": tx.seconds_since(since), "sha": fresh.sha}
            self._step(tx, fresh, EventKind.SANDBOX_READY, data, machine_id=fresh.machine_id)
            if sandbox.is_kept:
                self.journal.warnings_over(tx, fresh, sandbox.warned)
        tx.wake(POOL)

    def _take(self, tx: Transaction, sandbox: Sandbox, sha: str, actor: Actor) -> None:
        taken = replace(sandbox, sha=sha)
        self._step(tx, taken, EventKind.SANDBOX_CODE, {"sha": sha, "by": str(actor)}, actor)
        tx.wake(POOL)
        tx.wake(IMAGES)

    def _chain_again(self, tx: Transaction, sandbox: Sandbox, why: str) -> None:
        machine = _machine(tx, sandbox)
        machines.save(tx, transitions.building_again(machine, tx.now))
        again = transitions.starting_again(sandbox, tx.now)
        self._step(tx, again, EventKind.MACHINE_RESTARTED, {"why": why}, machine_id=machine.id)
        if sandbox.is_kept:
            self.journal.warnings_over(tx, again, sandbox.warned)
        tx.wake(POOL)

    def _queue_again(self, tx: Transaction, sandbox: Sandbox, why: str, unbuilt: Machine | None) -> None:
        """Queue it for a new machine. After a failed build it waits for a backoff, or while the image is held."""
        held, not_before = "", None
        if unbuilt:
            record = images.get(tx, unbuilt.image)
            if record.held:
                held = record.wait_reason
            else:
                not_before = tx.now + timedelta(seconds=_BUILD_PAUSES.after(record.failures))
        again = transitions.queued_again(sandbox, held, not_before, tx.now)
        data: dict[str, object] = {"why": why, "attempt": again.attempt}
        self._step(tx, again, EventKind.SANDBOX_REQUEUED, data, machine_id=sandbox.machine_id)
        tx.wake(POOL)

    def _expire(self, tx: Transaction, sandbox: Sandbox) -> None:
        expiry = decide_expiry(sandbox, self.config.pool.warn_before, tx.now)
        if expiry.expire:
            self._stop(tx, sandbox, RAVEBOT, EndReason.EXPIRED, "")
        elif expiry.warn is not None:
            until = expiry.expires_at or sandbox.expires_at
            assert until
            warned = replace(sandbox, warned=expiry.warned, expires_at=until)
            left = (until - tx.now).total_seconds()
            self._step(tx, warned, EventKind.SANDBOX_WARNED, {"left": left, "threshold": expiry.warn})

    def _fail(self, tx: Transaction, sandbox: Sandbox, why: str, *, answers: bool) -> None:
        """Keep its machine for a while if people can look inside; else take it down."""
        keep, pool = self.config.sandbox.keep_failed, self.config.pool
        until = kept_until(sandbox, keep, pool.max_lifetime, tx.now) if answers else None
        if until is None:
            self._stop(tx, sandbox, RAVEBOT, EndReason.FAILED, why)
            return
        settled = settled_thresholds(pool.warn_before, until - tx.now)
        kept = transitions.kept(sandbox, why, until, settled, tx.now)
        data: dict[str, object] = {"sha": sandbox.sha, "why": why, "until": moment(until, tx.now)}
        self._step(tx, kept, EventKind.SANDBOX_KEPT, data, machine_id=kept.machine_id)
        if until != sandbox.expires_at:
            self.journal.warnings_over(tx, kept, sandbox.warned)
        tx.wake(POOL)

    def _stop(self, tx: Transaction, sandbox: Sandbox, actor: Actor, reason: EndReason, detail: str) -> None:
        data: dict[str, object] = {}
        if sandbox.is_kept and reason not in (EndReason.FAILED, EndReason.LOST):  # whatever ends it, it had failed
            data["kept"] = reason.value
            reason, detail = EndReason.FAILED, sandbox.end_detail
        stopping = transitions.stopping(sandbox, reason, detail, tx.now)
        data |= {"reason": reason.value, "detail": detail}
        if actor != RAVEBOT:
            data["by"] = str(actor)
        self._step(tx, stopping, EventKind.SANDBOX_STOPPING, data, actor)
        self._end(tx, stopping, actor, reason, detail)

    def _end(self, tx: Transaction, sandbox: Sandbox, actor: Actor, reason: EndReason, detail: str) -> None:
        """End it now, or take its machine down first."""
        machine = machines.get(tx, sandbox.machine_id)
        if machine and machine.state is not MachineState.GONE:
            take_down(tx, machine)
            return
        ended = transitions.ended(sandbox, reason, detail, tx.now)
        data: dict[str, object] = {
            "reason": ended.end_reason.value if ended.end_reason else "",
            "detail": ended.end_detail,
            "lived_seconds": tx.seconds_since(ended.ready_at) if ended.ready_at else None,
            **usage.of_sandbox(tx, sandbox.id).account(),
        }
        self._step(tx, ended, EventKind.SANDBOX_ENDED, data, actor, sandbox.machine_id)
        self.journal.warnings_over(tx, ended, ended.warned)
        tx.wake(POOL)

    # Changes that keep the state.

    def wait(self, tx: Transaction, sandbox: Sandbox, reason: str) -> None:
        """Report once why a sandbox waits. Figures after the colon change all the time and are not compared.

        How far its image is, is shown, but is no event.
        """
        if waits_for_image(reason) and waits_for_image(sandbox.wait_reason):
            if reason != sandbox.wait_reason:
                self.refresh(tx, replace(sandbox, wait_reason=reason))
            return
        if reason.partition(":")[0] == sandbox.wait_reason.partition(":")[0]:
            return
        waiting = replace(sandbox, wait_reason=reason)
        if reason:
            sandboxes.save(tx, waiting)
            self.journal.record(tx, EventKind.SANDBOX_WAITING, sandbox=waiting, data={"reason": reason})
        else:
            self.refresh(tx, waiting)

    def extend(self, tx: Transaction, sandbox: Sandbox, until: datetime, by: timedelta, actor: Actor) -> None:
        """Move the expiry to `until`, which is `by` later; thresholds that are ahead again will warn again."""
        left = until - tx.now
        warned = frozenset(threshold for threshold in sandbox.warned if left <= timedelta(seconds=threshold))
        extended = replace(sandbox, expires_at=until, warned=warned)
        data: dict[str, object] = {"seconds": by.total_seconds(), "until": moment(until, tx.now), "by": str(actor)}
        self._step(tx, extended, EventKind.SANDBOX_EXTENDED, data, actor)
        self.journal.warnings_over(tx, extended, sandbox.warned)

    def refresh(self, tx: Transaction, sandbox: Sandbox) -> None:
        """Save the changed sandbox, and queue a rewrite of card and note."""
        fresh = replace(sandbox, refreshed_at=tx.now)
        sandboxes.save(tx, fresh)
        mr = merge_requests.get(tx, fresh.mr)
        assert mr
        self.journal.refresh(tx, fresh, mr)

    def open_ports(self, tx: Transaction, sandbox: Sandbox) -> None:
        """Record that its ports should be open."""
        sandboxes.save(tx, replace(sandbox, ports_open=True))


def take_down(tx: Transaction, machine: Machine) -> None:
    """Record that a machine should be removed."""
    if machine.state not in (MachineState.STOPPING, MachineState.GONE):
        if not machine.host_keys:
            images.not_proved(tx, machine.image, machine.created_at)
        machines.save(tx, replace(machine, state=MachineState.STOPPING, state_since=tx.now))
    tx.wake(POOL)


def _machine(tx: Transaction, sandbox: Sandbox) -> Machine:
    found = machines.get(tx, sandbox.machine_id)
    assert found
    return found
