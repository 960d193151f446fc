"""What is to be done: the design's two tables, as tables.

Pure: the pool observes machines and asks here what to do; the lifecycle asks here what follows for a sandbox.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from ravebot.sandboxes.model import Machine, MachineState, Observed, Sandbox, SandboxState, Stage

M, O = MachineState, Observed  # noqa: E741 - the table reads better with one letter each


class Do(StrEnum):
    """The one step to take with a machine."""

    NOTHING = "nothing"
    CREATE = "create"
    START = "start"
    PROBE = "probe"  # ask the agent whether it answers
    CLAIM = "claim"  # it is up: assign it to its sandbox
    GIVE_UP = "give up"  # the build failed: stop it, count the failure
    STOP = "stop"  # it is not needed any more
    REFILL = "refill"  # a warm machine is lost: replace it
    LOST = "lost"  # tell, end its sandbox (or try it on another machine)
    RESTART = "restart"  # tell, restart once
    CHECK = "check"  # health, usage, expiry
    RESUME = "resume"
    FREE_SPACE = "free space"  # the host's disk is full: tell, resume when there is room; never restart
    SHUT_DOWN = "shut down"  # ask once; destroy it after the grace period
    DESTROY = "destroy"
    DELETE = "delete"  # undefine, delete the disk
    FORGET = "forget"  # free disk, lease, rules, then ports


MACHINES: Final = MappingProxyType(
    {
        (M.BUILDING, O.ABSENT): Do.CREATE,
        (M.BUILDING, O.OFF): Do.START,
        (M.BUILDING, O.AGENT_SILENT): Do.PROBE,
        (M.BUILDING, O.AGENT_ANSWERS): Do.CLAIM,
        (M.BUILDING, O.CRASHED): Do.GIVE_UP,
        (M.BUILDING, O.PAUSED): Do.GIVE_UP,
        (M.WARM, O.ABSENT): Do.REFILL,
        (M.WARM, O.OFF): Do.STOP,
        (M.WARM, O.AGENT_SILENT): Do.PROBE,
        (M.WARM, O.AGENT_ANSWERS): Do.CLAIM,
        (M.WARM, O.CRASHED): Do.STOP,
        (M.WARM, O.PAUSED): Do.RESUME,
        (M.LEASED, O.ABSENT): Do.LOST,
        (M.LEASED, O.OFF): Do.RESTART,
        (M.LEASED, O.AGENT_SILENT): Do.CHECK,
        (M.LEASED, O.AGENT_ANSWERS): Do.CHECK,
        (M.LEASED, O.CRASHED): Do.RESTART,
        (M.LEASED, O.PAUSED): Do.FREE_SPACE,
        (M.STOPPING, O.ABSENT): Do.FORGET,
        (M.STOPPING, O.OFF): Do.DELETE,
        (M.STOPPING, O.AGENT_SILENT): Do.SHUT_DOWN,
        (M.STOPPING, O.AGENT_ANSWERS): Do.SHUT_DOWN,
        (M.STOPPING, O.CRASHED): Do.DESTROY,
        (M.STOPPING, O.PAUSED): Do.DESTROY,
    }
)
"""Wanted × observed. UNKNOWN is in no cell: nothing is done with a machine that could not be observed."""


@dataclass(frozen=True)
class MachineFacts:
    """What else the action depends on, beside the two states."""

    build_timeout: timedelta = timedelta(minutes=5)
    state_age: timedelta = timedelta(0)  # since it began to build, or was asked to stop
    grace: timedelta = timedelta(seconds=30)
    restarts: int = 0
    silent_for: timedelta | None = None  # how long a leased machine's agent was seen silent; None: it answers
    starting: bool = False  # its sandbox's chain is under way, and has time limits of its own
    paused_by_us: bool = False


UNHEALTHY_AFTER = timedelta(minutes=1)
RESTART_AFTER = timedelta(minutes=3)
LOOKS_APART = timedelta(minutes=1)
"""If two checks are further apart (downtime, libvirt away, a clock jump), the time between them is not silence."""
MAX_RESTARTS = 1


def decide_machine(wanted: MachineState, observed: Observed, facts: MachineFacts) -> Do:
    """The one step for a machine. Raises KeyError for a machine that is gone."""
    if observed is O.UNKNOWN:
        return Do.NOTHING
    step = MACHINES[wanted, observed]
    if step is Do.CREATE and facts.restarts:
        return Do.LOST  # it was in use before: a new, empty machine can't replace it
    if wanted is M.BUILDING and step in (Do.CREATE, Do.START, Do.PROBE) and facts.state_age >= facts.build_timeout:
        return Do.GIVE_UP
    if wanted is M.WARM and step is Do.RESUME and not facts.paused_by_us:
        return Do.STOP
    if step is Do.RESTART and facts.restarts >= MAX_RESTARTS:
        return Do.LOST
    if step is Do.CHECK and not facts.starting and facts.silent_for is not None:
        if facts.silent_for >= RESTART_AFTER and facts.restarts < MAX_RESTARTS:
            return Do.RESTART
    elif step is Do.SHUT_DOWN and facts.state_age >= facts.grace:
        return Do.DESTROY
    return step


def seen_silent(machine: Machine, now: datetime) -> timedelta | None:
    """How long every check found the agent silent; None when it answered, or was not checked lately."""
    if machine.silent_since is None or machine.silent_seen_at is None:
        return None
    recent = abs(now - machine.silent_seen_at) <= LOOKS_APART
    return machine.silent_seen_at - machine.silent_since if recent else None


class Happened(StrEnum):
    """What may happen to a sandbox: the columns of the table."""

    MACHINE_READY = "machine ready"  # a place is free; later its machine is up, and each stage is done
    CODE_UPDATED = "code updated"
    END_ASKED = "end asked"  # merged, closed, stop
    START_ASKED = "start asked"  # reopened, start
    STAGE_TIMEOUT = "stage timeout"
    EXPIRED = "expired"  # a warning is due, or its lifetime is over
    MACHINE_LOST = "machine lost"  # also: nothing is left of a machine that was taken down
    RESTARTED = "restarted"
    STAGE_FAILED = "stage failed"
    REBUILD = "rebuild"
    RETRY = "retry"


class Then(StrEnum):
    """What follows for the sandbox; the lifecycle carries it out."""

    NOTHING = "nothing"
    BEGIN = "begin"  # → starting
    TAKE_SHA = "take the new SHA"
    END = "end"  # → ended, once no machine has to be taken down
    NEXT_STAGE = "next stage"  # after the last one → ready
    RESTART_AT_COPY = "restart at copy"
    STOP = "stop"  # → stopping
    FAIL = "fail"  # tell, → stopping (failed), after `sandbox.keep_failed`
    EXPIRE = "expire"  # warn before, → stopping (expired)
    RETRY = "retry"  # on a new machine, at most MAX_ATTEMPTS
    CHAIN_AGAIN = "chain again"  # → starting
    UPDATE = "update"  # copy, setup, tests again; ports stay
    KEEP = "keep"  # tell, and keep it as it is
    END_LOST = "end, lost"  # tell, → stopping (lost)
    REBUILD = "rebuild"  # → stopping, new one behind
    NEW_BEHIND = "new one, queued behind it"
    NEW = "new one"
    DROP_BACKOFF = "drop the backoff"


MAX_ATTEMPTS = 3

S, H = SandboxState, Happened
SANDBOXES: Final = MappingProxyType(
    {
        (S.QUEUED, H.MACHINE_READY): Then.BEGIN,
        (S.QUEUED, H.CODE_UPDATED): Then.TAKE_SHA,
        (S.QUEUED, H.END_ASKED): Then.END,
        (S.QUEUED, H.RETRY): Then.DROP_BACKOFF,
        (S.STARTING, H.MACHINE_READY): Then.NEXT_STAGE,
        (S.STARTING, H.CODE_UPDATED): Then.RESTART_AT_COPY,
        (S.STARTING, H.END_ASKED): Then.STOP,
        (S.STARTING, H.STAGE_TIMEOUT): Then.FAIL,
        (S.STARTING, H.EXPIRED): Then.EXPIRE,
        (S.STARTING, H.MACHINE_LOST): Then.RETRY,
        (S.STARTING, H.RESTARTED): Then.CHAIN_AGAIN,
        (S.STARTING, H.STAGE_FAILED): Then.FAIL,
        (S.STARTING, H.REBUILD): Then.REBUILD,
        (S.READY, H.MACHINE_READY): Then.NEXT_STAGE,
        (S.READY, H.CODE_UPDATED): Then.UPDATE,
        (S.READY, H.END_ASKED): Then.STOP,
        (S.READY, H.STAGE_TIMEOUT): Then.KEEP,
        (S.READY, H.EXPIRED): Then.EXPIRE,
        (S.READY, H.MACHINE_LOST): Then.END_LOST,
        (S.READY, H.RESTARTED): Then.CHAIN_AGAIN,
        (S.READY, H.STAGE_FAILED): Then.KEEP,
        (S.READY, H.REBUILD): Then.REBUILD,
        (S.READY, H.RETRY): Then.UPDATE,
        (S.STOPPING, H.START_ASKED): Then.NEW_BEHIND,
        (S.STOPPING, H.MACHINE_LOST): Then.END,
        (S.STOPPING, H.REBUILD): Then.NEW_BEHIND,
        (S.STOPPING, H.RETRY): Then.NEW_BEHIND,
        (S.ENDED, H.START_ASKED): Then.NEW,
        (S.ENDED, H.REBUILD): Then.NEW,
        (S.ENDED, H.RETRY): Then.NEW,
    }
)
"""State × what happened; a pair that is not listed changes nothing."""

_BEFORE_COPY = (None, Stage.HOST_KEYS, Stage.AUTHORIZE)


def decide_sandbox(sandbox: Sandbox, happened: Happened, unbuilt: Machine | None = None) -> Then:
    """What follows for a sandbox. `unbuilt`: its machine, when that is lost because it did not come up."""
    then = SANDBOXES.get((sandbox.state, happened), Then.NOTHING)
    match then:
        case Then.RETRY if unbuilt and unbuilt.restarts:
            return Then.END_LOST  # it was in use: people's data in it is lost
        case Then.RETRY if not unbuilt and sandbox.attempt >= MAX_ATTEMPTS:
            return Then.END_LOST  # failed builds hold the image instead
        case Then.RESTART_AT_COPY if sandbox.stage in _BEFORE_COPY:
            return Then.TAKE_SHA
        case Then.NEXT_STAGE if sandbox.state is S.READY and sandbox.stage is None:
            return Then.NOTHING  # it is not being updated
        case Then.UPDATE if happened is H.RETRY and sandbox.stage is not None:
            return Then.NOTHING  # it is being updated
        case Then.KEEP if sandbox.is_kept:
            return Then.FAIL  # it never was ready
        case Then.EXPIRE if sandbox.is_kept and sandbox.stage is not None:
            return Then.NOTHING  # its stages have time limits of their own
    return then


def kept_until(sandbox: Sandbox, keep: timedelta, longest: timedelta, now: datetime) -> datetime | None:
    """Until when the machine is kept of a sandbox whose stage failed; None: it is not.

    It must have its SSH keys already, and must never have been ready. If it is kept already it is kept no shorter, and
    in all not longer than `longest`.
    """
    if not keep or sandbox.stage in _BEFORE_COPY or sandbox.ready_at is not None:
        return None
    until = min(now + keep, (sandbox.time_since or now) + longest)
    if sandbox.is_kept and sandbox.expires_at:
        until = max(until, sandbox.expires_at)
    return until if until > now else None


@dataclass(frozen=True)
class Expiry:
    """Which warning or expiry is due for a sandbox that is ready or kept."""

    expire: bool = False
    warn: int | None = None  # the threshold to warn of, in seconds
    warned: frozenset[int] = frozenset()  # the thresholds that need no warning after this
    expires_at: datetime | None = None  # a new one, when nobody would have been warned in time

    @property
    def is_due(self) -> bool:
        return self.expire or self.warn is not None


LAST_CHANCE = timedelta(minutes=10)
"""How far the expiry is moved ahead when nobody was warned in time (downtime, a clock jump)."""
LATE = timedelta(minutes=1)
"""If the last warning is at least this late, it was delayed by downtime."""


def time_runs(sandbox: Sandbox) -> bool:
    """Whether a sandbox was ready, or is kept, and can expire; also while its machine starts again after a restart."""
    return sandbox.expires_at is not None and decide_sandbox(sandbox, H.EXPIRED) is not Then.NOTHING


def decide_expiry(sandbox: Sandbox, warn_before: tuple[timedelta, ...], now: datetime) -> Expiry:
    """Warn, expire or wait. If several thresholds have passed, only the nearest one is warned of."""
    assert sandbox.expires_at
    thresholds = sorted(int(span.total_seconds()) for span in warn_before)
    left = (sandbox.expires_at - now).total_seconds()
    if left <= 0:
        if not thresholds or thresholds[0] in sandbox.warned:
            return Expiry(expire=True)
        return Expiry(warn=thresholds[0], warned=frozenset(thresholds), expires_at=now + LAST_CHANCE)
    due = [threshold for threshold in thresholds if left <= threshold and threshold not in sandbox.warned]
    if not due:
        return Expiry(warned=sandbox.warned)
    late = due[0] == thresholds[0] and left <= thresholds[0] - LATE.total_seconds()
    chance = now + LAST_CHANCE if late and sandbox.expires_at < now + LAST_CHANCE else None
    settled = sandbox.warned | frozenset(threshold for threshold in thresholds if left <= threshold)
    return Expiry(warn=due[0], warned=settled, expires_at=chance)


def settled_thresholds(warn_before: tuple[timedelta, ...], left: timedelta) -> frozenset[int]:
    """Thresholds that a sandbox with `left` to go has passed from the start, and that need no warning."""
    return frozenset(int(span.total_seconds()) for span in warn_before if span >= left)
