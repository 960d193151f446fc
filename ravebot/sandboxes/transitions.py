"""A sandbox or a machine in its next state. Pure: `lifecycle` decides when, and reports it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from ravebot.sandboxes.model import EndReason, Machine, MachineId, MachineState, Sandbox, SandboxState, Stage


def _enter(sandbox: Sandbox, state: SandboxState, now: datetime) -> Sandbox:
    """With no stage under way, and the ports closed."""
    return replace(sandbox, state=state, state_since=now, stage=None, stage_started_at=None, ports_open=False)


def starting(sandbox: Sandbox, machine_id: MachineId, ssh_port: int, web_port: int, now: datetime) -> Sandbox:
    """It is given a machine and ports."""
    placed = replace(sandbox, machine_id=machine_id, ssh_port=ssh_port, web_port=web_port)
    return replace(_enter(placed, SandboxState.STARTING, now), wait_reason="", not_before=None)


def starting_again(sandbox: Sandbox, now: datetime) -> Sandbox:
    """Its machine is restarted. One that was kept starts as if for the first time."""
    again = _enter(sandbox, SandboxState.STARTING, now)
    if not sandbox.is_kept:
        return again
    return replace(again, end_reason=None, end_detail="", expires_at=None, warned=frozenset())


def queued_again(sandbox: Sandbox, wait_reason: str, not_before: datetime | None, now: datetime) -> Sandbox:
    """It needs a new machine. The queue is ordered by request time, so it returns to the front."""
    bare = replace(sandbox, machine_id=None, ssh_port=None, web_port=None, attempt=sandbox.attempt + 1)
    return replace(_enter(bare, SandboxState.QUEUED, now), wait_reason=wait_reason, not_before=not_before)


def at_first_stage(sandbox: Sandbox, stage: Stage, now: datetime) -> Sandbox:
    """A chain begins with that stage, for the first time or again."""
    return replace(sandbox, stage=stage, stage_started_at=now, stage_attempt=sandbox.stage_attempt + 1)


def ready(sandbox: Sandbox, lifetime: timedelta, settled: frozenset[int], now: datetime) -> Sandbox:
    """The chain is done. The first time, the lifetime starts, and the thresholds `settled` need no warning."""
    fresh = replace(
        sandbox,
        state=SandboxState.READY,
        state_since=sandbox.state_since if sandbox.state is SandboxState.READY and not sandbox.is_kept else now,
        end_reason=None,
        end_detail="",
        stage=None,
        stage_started_at=None,
        running_sha=sandbox.sha,
        notice="",
        refreshed_at=now,
    )
    if sandbox.ready_at is not None:
        return fresh
    created = min(fresh.created_at, now)  # the clock may have been set back
    return replace(fresh, created_at=created, ready_at=now, expires_at=now + lifetime, warned=settled)


def kept(sandbox: Sandbox, why: str, until: datetime, settled: frozenset[int], now: datetime) -> Sandbox:
    """Its set-up failed, and its machine stays until then, with the SSH port open."""
    return replace(
        _enter(sandbox, SandboxState.READY, now),
        state_since=sandbox.state_since if sandbox.is_kept else now,
        ports_open=True,
        web_scheme=None,
        expires_at=until,
        warned=settled,
        end_reason=EndReason.FAILED,
        end_detail=why,
        notice="",
    )


def stopping(sandbox: Sandbox, reason: EndReason, detail: str, now: datetime) -> Sandbox:
    """Its machine is taken down."""
    return replace(_enter(sandbox, SandboxState.STOPPING, now), end_reason=reason, end_detail=detail)


def ended(sandbox: Sandbox, reason: EndReason, detail: str, now: datetime) -> Sandbox:
    """Its machine is gone. It ended for the reason for which it was stopped."""
    if sandbox.end_reason is None:
        sandbox = replace(sandbox, end_reason=reason, end_detail=detail)
    ready_at = min(sandbox.ready_at, now) if sandbox.ready_at else None  # the clock may have been set back
    return replace(_enter(sandbox, SandboxState.ENDED, now), ready_at=ready_at, ended_at=now, wait_reason="")


def building_again(machine: Machine, now: datetime) -> Machine:
    """It was switched off, and is started again from its disk."""
    return replace(
        machine,
        state=MachineState.BUILDING,
        state_since=now,
        restarts=machine.restarts + 1,
        silent_since=None,
        silent_seen_at=None,
        unhealthy_told=False,
        paused_since=None,
        cpu_before_restart=machine.cpu_seconds,
        received_before_restart=machine.received_bytes,
        sent_before_restart=machine.sent_bytes,
    )
