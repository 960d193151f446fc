"""The steps of a sandbox's life, each one transaction: the change, its event and what tells of it.

Both sides use these: the intents (people, GitLab) and the pool (the clock, the machines).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from ravebot.backoff import Backoff
from ravebot.config.model import Config
from ravebot.sandboxes.decide import Happened, Then, decide_sandbox, settled_thresholds
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.model import (
    RAVEBOT,
    Actor,
    EndReason,
    Machine,
    MachineState,
    MergeRequest,
    Sandbox,
    SandboxState,
    Stage,
)
from ravebot.sandboxes.steps import sandbox_on
from ravebot.store import images, machines, sandboxes
from ravebot.store.database import Transaction
from ravebot.store.images import ImageRecord
from ravebot.store.signals import POOL

BUILD_FAILURES_THAT_HOLD = 3
_BUILD_PAUSES = Backoff.growing(10.0, 270.0, factor=3.0)


@dataclass(frozen=True)
class Lifecycle:
    """Takes the steps. Every sandbox and machine handed in was read in the same transaction."""

    config: Config
    journal: Journal

    def queue(self, tx: Transaction, mr: MergeRequest, actor: Actor) -> Sandbox:
        """A new sandbox, waiting for its place."""
        sandbox = sandboxes.insert(tx, mr.ref, mr.head_sha, actor)
        data: dict[str, object] = {"sha": mr.head_sha, "by": str(actor)}
        self.journal.record(tx, "sandbox.queued", actor, sandbox=sandbox, data=data)
        tx.wake(POOL)
        return sandbox

    def begin(
        self, tx: Transaction, sandbox: Sandbox, machine: Machine, ssh_port: int, web_port: int
    ) -> tuple[Sandbox, Machine]:
        """Give a queued sandbox its place: a machine to be built, and ports."""
        machine = machines.insert(tx, replace(machine, sandbox_id=sandbox.id))
        sandbox = replace(
            sandbox,
            state=SandboxState.STARTING,
            state_since=tx.now,
            machine_id=machine.id,
            ssh_port=ssh_port,
            web_port=web_port,
            wait_reason="",
            not_before=None,
        )
        sandboxes.save(tx, sandbox)
        data: dict[str, object] = {"machine": machine.name}
        self.journal.record(tx, "sandbox.starting", sandbox=sandbox, machine_id=machine.id, data=data)
        return sandbox, machine

    def wait(self, tx: Transaction, sandbox: Sandbox, reason: str) -> None:
        """Tell once why a sandbox stays in the queue: figures after the colon change with every look."""
        if reason.partition(":")[0] == sandbox.wait_reason.partition(":")[0]:
            return
        waiting = replace(sandbox, wait_reason=reason)
        sandboxes.save(tx, waiting)
        if reason:
            self.journal.record(tx, "sandbox.waiting", sandbox=waiting, data={"reason": reason})

    def end_asked(
        self, tx: Transaction, sandbox: Sandbox, reason: EndReason, actor: Actor, detail: str = ""
    ) -> Sandbox:
        """End it: at once when it has nothing yet, else by taking its machine down."""
        then = decide_sandbox(sandbox.state, Happened.END_ASKED)
        if then is Then.END:
            return self._end(tx, replace(sandbox, end_reason=reason, end_detail=detail), actor)
        if then is Then.STOP:
            return self.stop(tx, sandbox, reason, actor, detail)
        return sandbox

    def stop(
        self, tx: Transaction, sandbox: Sandbox, reason: EndReason, actor: Actor = RAVEBOT, detail: str = ""
    ) -> Sandbox:
        """Close the ports and have the machine taken down; `machine_gone` ends it."""
        stopping = replace(
            sandbox,
            state=SandboxState.STOPPING,
            state_since=tx.now,
            stage=None,
            stage_started_at=None,
            ports_open=False,
            end_reason=reason,
            end_detail=detail,
        )
        sandboxes.save(tx, stopping)
        data: dict[str, object] = {"reason": reason.value, "detail": detail}
        if actor != RAVEBOT:
            data["by"] = str(actor)
        self.journal.record(tx, "sandbox.stopping", actor, sandbox=stopping, data=data)
        machine = machines.get(tx, sandbox.machine_id)
        if machine and machine.state is not MachineState.GONE:
            self.take_down(tx, machine)
            return stopping
        return self._end(tx, stopping, actor)

    def take_down(self, tx: Transaction, machine: Machine) -> None:
        """Want a machine gone."""
        if machine.state not in (MachineState.STOPPING, MachineState.GONE):
            machines.save(tx, replace(machine, state=MachineState.STOPPING, state_since=tx.now))
        tx.wake(POOL)

    def machine_gone(self, tx: Transaction, machine: Machine) -> None:
        """Nothing of it is left at the provider and in the firewall: free its place, end its sandbox."""
        machines.save(tx, replace(machine, state=MachineState.GONE, state_since=tx.now))
        tx.wake(POOL)
        sandbox = sandbox_on(tx, machine)
        if sandbox and sandbox.state is SandboxState.STOPPING:
            self._end(tx, sandbox, RAVEBOT)

    def _end(self, tx: Transaction, sandbox: Sandbox, actor: Actor) -> Sandbox:
        ready_at = min(sandbox.ready_at, tx.now) if sandbox.ready_at else None  # the clock may have been set back
        ended = replace(
            sandbox,
            state=SandboxState.ENDED,
            state_since=tx.now,
            ready_at=ready_at,
            ended_at=tx.now,
            wait_reason="",
        )
        sandboxes.save(tx, ended)
        had = machines.of_sandbox(tx, sandbox.id)
        data: dict[str, object] = {
            "reason": ended.end_reason.value if ended.end_reason else "",
            "detail": ended.end_detail,
            "lived_seconds": tx.seconds_since(ended.ready_at) if ended.ready_at else None,
            "cpu_seconds": sum(machine.cpu_seconds for machine in had),
            "memory_peak_bytes": max((machine.memory_peak_bytes for machine in had), default=0),
        }
        self.journal.record(tx, "sandbox.ended", actor, sandbox=ended, machine_id=sandbox.machine_id, data=data)
        tx.wake(POOL)
        return ended

    def machine_lost(self, tx: Transaction, sandbox: Sandbox, machine: Machine, why: str) -> None:
        """The machine went from under the sandbox: another one while it was starting, else the end."""
        self.take_down(tx, machine)
        then = decide_sandbox(sandbox.state, Happened.MACHINE_LOST, sandbox.attempt)
        if then is Then.RETRY:
            self.requeue(tx, sandbox, why, not_before=None)
        elif then is Then.END_LOST:
            self.stop(tx, sandbox, EndReason.LOST, detail=why)

    def requeue(
        self, tx: Transaction, sandbox: Sandbox, why: str, not_before: timedelta | None, wait_reason: str = ""
    ) -> None:
        """Back to the queue's front (it is in order of asking), for a new machine."""
        waiting = replace(
            sandbox,
            state=SandboxState.QUEUED,
            state_since=tx.now,
            machine_id=None,
            ssh_port=None,
            web_port=None,
            ports_open=False,
            stage=None,
            stage_started_at=None,
            attempt=sandbox.attempt + 1,
            wait_reason=wait_reason,
            not_before=tx.now + not_before if not_before else None,
        )
        sandboxes.save(tx, waiting)
        data: dict[str, object] = {"why": why, "attempt": waiting.attempt}
        self.journal.record(tx, "sandbox.requeued", sandbox=waiting, machine_id=sandbox.machine_id, data=data)
        tx.wake(POOL)

    def build_failed(self, tx: Transaction, machine: Machine, why: str, *, for_good: bool) -> None:
        """Take the machine down, try again later; three in a row, or one that can't work, hold the image.

        A machine that was in use and does not come back after its restart is lost, which is no fault of the image's.
        """
        self.take_down(tx, machine)
        sandbox = sandbox_on(tx, machine)
        starting = sandbox if sandbox and sandbox.state is SandboxState.STARTING else None
        if machine.restarts:
            if starting:
                self.stop(tx, starting, EndReason.LOST, detail=f"after its restart: {why}")
            return
        record = images.get(tx, machine.image)
        failures = record.failures + 1
        hold = for_good or failures >= BUILD_FAILURES_THAT_HOLD
        images.save(tx, ImageRecord(machine.image, failures, why if hold else ""))
        if starting:
            pause = timedelta(seconds=_BUILD_PAUSES.after(failures))
            held = f"no machines are built: {why}" if hold else ""
            self.requeue(tx, starting, why, pause, wait_reason=held)
            if hold and not record.held:
                data: dict[str, object] = {"why": why, "image": machine.image}
                self.journal.record(tx, "build.held", sandbox=starting, machine_id=machine.id, data=data)
                for other in sandboxes.live(tx):
                    if other.state is SandboxState.QUEUED and not other.wait_reason:
                        self.wait(tx, other, held)

    def claim(self, tx: Transaction, machine: Machine) -> Sandbox | None:
        """The agent answers: lease the machine to its sandbox, whose chain begins; None when nobody wants it."""
        sandbox = sandbox_on(tx, machine)
        if sandbox is None:
            self.take_down(tx, machine)
            return None
        if decide_sandbox(sandbox.state, Happened.MACHINE_READY) is not Then.NEXT_STAGE:
            return None
        machines.save(
            tx, replace(machine, state=MachineState.LEASED, state_since=tx.now, booted_at=tx.now, silent_since=None)
        )
        claimed = replace(
            sandbox, stage=Stage.HOST_KEYS, stage_started_at=tx.now, stage_attempt=sandbox.stage_attempt + 1
        )
        sandboxes.save(tx, claimed)
        data: dict[str, object] = {"seconds": tx.seconds_since(machine.state_since)}
        self.journal.record(tx, "machine.booted", sandbox=claimed, machine_id=machine.id, data=data)
        return claimed

    def ready(self, tx: Transaction, sandbox: Sandbox) -> Sandbox:
        """The chain is through: announce it. Lifetime starts at the first time."""
        pool = self.config.pool
        first = sandbox.ready_at is None
        update = sandbox.state is SandboxState.READY
        fresh = replace(
            sandbox,
            state=SandboxState.READY,
            state_since=sandbox.state_since if update else tx.now,
            stage=None,
            stage_started_at=None,
            running_sha=sandbox.sha,
            notice="",
            refreshed_at=tx.now,
        )
        if first:
            fresh = replace(
                fresh,
                created_at=min(fresh.created_at, tx.now),  # the clock may have been set back
                ready_at=tx.now,
                expires_at=tx.now + pool.lifetime,
                warned=settled_thresholds(pool.warn_before, pool.lifetime),
            )
        sandboxes.save(tx, fresh)
        if update:
            self.journal.record(tx, "sandbox.updated", sandbox=fresh, data={"sha": fresh.sha})
        else:
            since = fresh.created_at if first else sandbox.state_since
            data: dict[str, object] = {"seconds": tx.seconds_since(since), "sha": fresh.sha}
            self.journal.record(tx, "sandbox.ready", sandbox=fresh, machine_id=fresh.machine_id, data=data)
        tx.wake(POOL)
        return fresh
