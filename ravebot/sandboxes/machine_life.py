"""A machine's lifecycle: what happens to it, and what that means for its sandbox.

Each step is part of the caller's transaction; `change` gives it one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from ravebot.clock import age
from ravebot.providers.base import Usage
from ravebot.sandboxes import settings
from ravebot.sandboxes.decide import LOOKS_APART, UNHEALTHY_AFTER, Happened, Then
from ravebot.sandboxes.lifecycle import BUILD_FAILURES_THAT_HOLD, Lifecycle, take_down
from ravebot.sandboxes.model import (
    RAVEBOT,
    Actor,
    EventKind,
    Machine,
    MachineState,
    MergeRequest,
    Sandbox,
    SandboxState,
)
from ravebot.sandboxes.telling import TRIED_AGAIN
from ravebot.store import granted_keys, images, machines, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.images import ImageRecord
from ravebot.store.signals import POOL

MEASURE_EVERY = timedelta(seconds=30)
BUSY = 0.95
"""The share of its processors' time that a machine uses which does nothing but compute."""

log = structlog.get_logger()

BY_HAND = frozenset({"user", "migration", "save", "dump", "snapshot"})
"""libvirt's reasons for a pause that a person made, and has to end."""


async def change(database: Database, machine: Machine, step: Callable[[Transaction, Machine], object]) -> None:
    """Run `step` in a transaction of its own, with the current machine; skip it when the machine is gone."""

    def write(tx: Transaction) -> None:
        fresh = machines.get(tx, machine.id)
        if fresh and fresh.state is not MachineState.GONE:
            step(tx, fresh)

    await database.write(write)


def sandbox_on(tx: Transaction, machine: Machine) -> Sandbox | None:
    """The sandbox that uses this machine; None when there is none, or it has another machine."""
    sandbox = sandboxes.get(tx, machine.sandbox_id) if machine.sandbox_id else None
    return sandbox if sandbox and sandbox.machine_id == machine.id else None


def sandbox_and_merge_request(tx: Transaction, machine: Machine) -> tuple[Sandbox, MergeRequest] | tuple[None, None]:
    sandbox = sandbox_on(tx, machine)
    mr = merge_requests.get(tx, sandbox.mr) if sandbox else None
    return (sandbox, mr) if sandbox and mr else (None, None)


def _happened(
    tx: Transaction, life: Lifecycle, machine: Machine, what: Happened, why: str = "", unbuilt: Machine | None = None
) -> Then:
    """Apply what happened to the sandbox that uses the machine, if any."""
    sandbox = sandbox_on(tx, machine)
    return life.happened(tx, sandbox, what, why=why, unbuilt=unbuilt) if sandbox else Then.NOTHING


def claim(tx: Transaction, life: Lifecycle, machine: Machine) -> bool:
    """The agent answers: start its sandbox's chain. False when no sandbox needs the machine any more."""
    if sandbox_on(tx, machine) is None:
        take_down(tx, machine)
    return _happened(tx, life, machine, Happened.MACHINE_READY) is Then.NEXT_STAGE


def restarted(tx: Transaction, life: Lifecycle, machine: Machine) -> None:
    """The machine was off or silent, and is off: start it again from its disk, with the whole chain."""
    _happened(tx, life, machine, Happened.RESTARTED, "it was off or did not answer")


def lost(tx: Transaction, life: Lifecycle, machine: Machine) -> None:
    """The machine was lost while in use: take down what is left of it."""
    take_down(tx, machine)
    _happened(tx, life, machine, Happened.MACHINE_LOST, "its machine is gone")


def gone(tx: Transaction, life: Lifecycle, machine: Machine) -> None:
    """Provider and firewall hold nothing of it any more: free its place, and let its sandbox end."""
    machines.save(tx, replace(machine, state=MachineState.GONE, state_since=tx.now))
    granted_keys.forget(tx, machine.id)
    tx.wake(POOL)
    _happened(tx, life, machine, Happened.MACHINE_LOST)


@dataclass(frozen=True)
class BuildFailure:
    """Why a machine could not be built. `why` is for operators, `told` for everybody else.

    `for_good`: trying again does not help.
    """

    why: str
    told: str
    for_good: bool = False


async def fail_build(
    database: Database,
    life: Lifecycle,
    machine: Machine,
    failure: BuildFailure,
    still: Callable[[Transaction], bool] = lambda _tx: True,
) -> None:
    """Record and log a failed build, unless the machine is gone or `still`, asked in the transaction, says no."""
    records: list[ImageRecord] = []

    def failed(tx: Transaction, fresh: Machine) -> None:
        if still(tx):
            count_failure(tx, life, fresh, failure)
            records.append(images.get(tx, fresh.image))

    await change(database, machine, failed)
    for record in records:
        log.warning(
            "build failed",
            machine=machine.name,
            why=failure.why,
            in_a_row=record.failures,
            held=record.held and f"no machines are built from the image; {TRIED_AGAIN}",
        )


def count_failure(tx: Transaction, life: Lifecycle, machine: Machine, failure: BuildFailure) -> None:
    """Take the machine down and retry later. Three failures in a row, or a permanent one, hold the image.

    A machine that was in use and does not come up after its restart is lost; the image is not to blame. Nor is it for
    one that is being taken down already.
    """
    if machine.state is MachineState.STOPPING:
        return
    before = images.get(tx, machine.image)
    take_down(tx, machine)
    if machine.restarts:
        _happened(tx, life, machine, Happened.MACHINE_LOST, f"after its restart: {failure.told}", machine)
        return
    record = replace(before, failures=before.failures + 1)
    if before.held or failure.for_good or record.failures >= BUILD_FAILURES_THAT_HOLD:
        record = replace(record, held=failure.why, told=failure.told, tried_at=before.tried_at or tx.now)
    images.save(tx, record)
    sandbox = sandbox_on(tx, machine)
    then = _happened(tx, life, machine, Happened.MACHINE_LOST, failure.told, machine)
    if sandbox and then is Then.RETRY and _gist(record.held) != _gist(before.held):
        data: dict[str, object] = {"why": failure.told, "for_operators": failure.why, "image": machine.image}
        if settings.from_pipeline(life.config, machine.image):
            data |= {"for_operators": "", "of_pipeline": True}
        life.journal.record(tx, EventKind.BUILD_HELD, sandbox=sandbox, machine_id=machine.id, data=data)
        for other in sandboxes.live(tx):
            queued = other.state is SandboxState.QUEUED and not other.wait_reason
            if queued and settings.of_sandbox(tx, life.config, other).image_key == machine.image:
                life.wait(tx, other, record.wait_reason)


def _gist(why: str) -> str:
    """What a cause has in common with the same cause on another machine."""
    return why.partition(":")[0]


def resume_builds(tx: Transaction, life: Lifecycle, image: str, sandbox: Sandbox, by: Actor) -> None:
    """Reset an image's failures and lift its hold, as `by` asked for this sandbox, or because a trial worked."""
    record = images.get(tx, image)
    fresh = ImageRecord(image, built_from=record.built_from)
    if record != fresh:
        images.save(tx, fresh)
    if record.held:
        data: dict[str, object] = {} if by == RAVEBOT else {"by": str(by)}
        if settings.from_pipeline(life.config, image):
            data |= {"of_pipeline": True}
        life.journal.record(tx, EventKind.BUILD_RESUMED, by, sandbox=sandbox, data=data)
        for waiting in sandboxes.live(tx):
            if settings.of_sandbox(tx, life.config, waiting).image_key == image:
                life.wait(tx, waiting, "")
    tx.wake(POOL)


def forced(tx: Transaction, life: Lifecycle, machine: Machine) -> None:
    """It did not shut down within the grace period and is switched off: report it once, and add it to the summary."""
    sandbox = sandbox_on(tx, machine)
    if sandbox and "switched off" not in sandbox.end_detail:
        detail = "; ".join(filter(None, [sandbox.end_detail, "switched off after the grace"]))
        sandboxes.save(tx, replace(sandbox, end_detail=detail))
        data: dict[str, object] = {"grace": life.config.pool.shutdown_grace.total_seconds()}
        life.journal.record(tx, EventKind.MACHINE_FORCED, sandbox=sandbox, machine_id=machine.id, data=data)


def keep_host_keys(tx: Transaction, life: Lifecycle, machine: Machine, keys: tuple[str, ...]) -> Machine | None:
    """Store its host keys: its build worked. If it was built while the image was held, end the hold.

    If another machine has one of the keys, store nothing and return that machine.
    """
    for key in keys:
        if other := machines.with_host_key(tx, key, machine.id):
            return other
    machines.save(tx, replace(machine, host_keys=keys))
    record, sandbox = images.get(tx, machine.image), sandbox_on(tx, machine)
    tried_since = record.tried_at is not None and record.tried_at <= machine.created_at
    if record.held and tried_since and sandbox:
        resume_builds(tx, life, machine.image, sandbox, RAVEBOT)
    elif record.failures:
        images.save(tx, replace(record, failures=0))  # a machine from before the hold says nothing about it
    return None


@dataclass(frozen=True)
class Growth:
    """By how much a machine's totals grew since the last look."""

    cpu_seconds: float
    received_bytes: int
    sent_bytes: int


def used(tx: Transaction, machine: Machine, usage: Usage) -> Growth:
    """Store what it used so far, for the summary at the end and for metrics."""
    cpu_seconds = max(machine.cpu_seconds, machine.cpu_before_restart + usage.cpu_seconds)
    received = max(machine.received_bytes, machine.received_before_restart + usage.received_bytes)
    sent = max(machine.sent_bytes, machine.sent_before_restart + usage.sent_bytes)
    seen = replace(
        machine,
        cpu_seconds=cpu_seconds,
        received_bytes=received,
        sent_bytes=sent,
        memory_used_bytes=usage.memory_peak_bytes,
        memory_peak_bytes=max(machine.memory_peak_bytes, usage.memory_peak_bytes),
        disk_used_bytes=usage.disk_bytes,
        open_files=usage.open_files,
        disk_peak_bytes=max(machine.disk_peak_bytes, usage.disk_bytes),
    )
    machines.save(tx, _measured(seen, tx.now))
    return Growth(cpu_seconds - machine.cpu_seconds, received - machine.received_bytes, sent - machine.sent_bytes)


def _measured(machine: Machine, now: datetime) -> Machine:
    """Whether it uses all its processors, judged once a while: the time between two looks is not exact."""
    since = machine.measured_at
    if since is not None and timedelta(0) <= now - since < MEASURE_EVERY:
        return machine
    grown, elapsed = machine.cpu_seconds - machine.measured_cpu_seconds, age(since or now, now).total_seconds()
    busy = elapsed > 0 and grown >= BUSY * max(machine.vcpus, 1) * elapsed
    busy_since = (machine.busy_since or since) if busy else None
    return replace(machine, measured_at=now, measured_cpu_seconds=machine.cpu_seconds, busy_since=busy_since)


def looked_at(tx: Transaction, life: Lifecycle, machine: Machine, answers: bool) -> None:
    """Record a health check of a leased machine; report when it is silent for too long, and when it answers again."""
    sandbox = sandbox_on(tx, machine)
    if sandbox is None or machine.state is not MachineState.LEASED:
        return
    if answers:
        if machine.silent_since is None and machine.paused_since is None:
            return
        well = replace(machine, silent_since=None, silent_seen_at=None, unhealthy_told=False, paused_since=None)
        machines.save(tx, well)
        if machine.paused_since:
            life.journal.record(tx, EventKind.MACHINE_RESUMED, sandbox=sandbox, machine_id=machine.id)
        elif machine.unhealthy_told:
            life.journal.record(tx, EventKind.MACHINE_HEALTHY, sandbox=sandbox, machine_id=machine.id)
        return
    seen = machine.silent_seen_at
    silent_since = machine.silent_since if seen and abs(tx.now - seen) <= LOOKS_APART else None
    silent_since = silent_since or tx.now
    tell = tx.now - silent_since >= UNHEALTHY_AFTER and not machine.unhealthy_told
    silent = replace(machine, silent_since=silent_since, silent_seen_at=tx.now)
    machines.save(tx, replace(silent, unhealthy_told=machine.unhealthy_told or tell))
    if machine.is_paused and not tell:  # it runs again: what card and note say is out of date
        mr = merge_requests.get(tx, sandbox.mr)
        assert mr
        life.journal.refresh(tx, sandbox, mr)
    if tell:
        life.journal.record(tx, EventKind.MACHINE_UNHEALTHY, sandbox=sandbox, machine_id=machine.id)


def paused(tx: Transaction, life: Lifecycle, machine: Machine, reason: str) -> None:
    """The machine is paused, for the provider's `reason`: report it once, until it runs again."""
    sandbox = sandbox_on(tx, machine)
    if sandbox is None or machine.paused_since is not None:
        return
    machines.save(tx, replace(machine, paused_since=tx.now))
    kind, why = EventKind.MACHINE_SUSPENDED, "on the host" if reason in BY_HAND else reason
    if reason == "ioerror":
        kind, why = EventKind.MACHINE_DISK_FULL, "the host's disk is full"
    life.journal.record(tx, kind, sandbox=sandbox, machine_id=machine.id, data={"why": why})
