"""Commands that people and agents run in sandboxes: asked for, started at most once, read on, ended.

Each step here is one transaction, or reads; `runloop` takes them. A command is given to one boot of one machine,
which is stored first; in another one it is not started again.
"""

from __future__ import annotations

import codecs
import secrets
from dataclasses import dataclass, replace
from datetime import timedelta

from ravebot.errors import Refused
from ravebot.sandboxes.chain.guestjobs import PIECE_BYTES, JobLook
from ravebot.sandboxes.model import (
    RAVEBOT,
    Actor,
    EventKind,
    GuestRun,
    Machine,
    MachineState,
    MergeRequest,
    RunId,
    RunState,
    Sandbox,
    SandboxState,
)
from ravebot.sandboxes.view import in_words
from ravebot.store import events, machines, merge_requests, restored, runs, sandboxes
from ravebot.store.database import Transaction

MOST_RUNNING = 4
"""Of a sandbox, at once."""
MOST_WAITING = 20
LONGEST = timedelta(hours=1)
LONGEST_COMMAND = 8000
"""Characters."""
MOST_OUTPUT_BYTES = 1024 * 1024
_LONGEST_WHY = 500


@dataclass(frozen=True)
class RunOutput:
    """A part of what a run printed: the text is the guest's. `next_offset`: where to read on, in characters.

    `more`: whether there is more already, or may come. `cut`: it printed more than is kept.
    """

    text: str
    next_offset: int
    more: bool
    cut: bool


def run_start(tx: Transaction, sandbox: Sandbox, command: str, timeout: timedelta, by: Actor) -> GuestRun:
    """Ask for a command to be run in a sandbox.

    It waits while the sandbox starts, gets new code, or runs other commands. Raises Refused.
    """
    if sandbox.state in (SandboxState.STOPPING, SandboxState.ENDED):
        raise Refused("the sandbox has ended, so nothing can be run in it: start it again first")
    if not command.strip() or "\0" in command or len(command) > LONGEST_COMMAND:
        raise Refused(
            f"the command must be a text of at most {LONGEST_COMMAND} characters without NUL: put a longer script into "
            "the repository, and run that"
        )
    if not timedelta(seconds=1) <= timeout <= LONGEST:
        raise Refused("a command may take from a second to an hour: choose another timeout")
    if runs.count(tx, sandbox.id, RunState.WAITING) >= MOST_WAITING:
        raise Refused(
            f"{MOST_WAITING} commands wait in this sandbox already, of which {MOST_RUNNING} run at once: wait until "
            "some are done, or cancel them"
        )
    fresh = GuestRun(
        RunId(0), sandbox.id, by.kind, by.name, command, int(timeout.total_seconds()), RunState.WAITING,
        secrets.token_hex(6), tx.now,
    )  # fmt: skip
    run = runs.insert(tx, fresh)
    _record(tx, EventKind.RUN_ASKED, by, sandbox, run, {"timeout": run.timeout_seconds})
    return run


def run_cancel(tx: Transaction, run: GuestRun, by: Actor) -> GuestRun:
    """End a run; one that has started ends when the guest has ended it. Does nothing to one that is over."""
    if run.state.is_over or run.cancelled_by:
        return run
    asked = replace(run, cancelled_by=by.name)
    if run.state is RunState.WAITING:
        return _end(tx, asked, RunState.CANCELLED, "it was cancelled before it was started", by=by)
    runs.save(tx, asked)
    return asked


def run_read(tx: Transaction, run: GuestRun, offset: int, most: int = 64 * 1024) -> RunOutput:
    """What a run printed from that character on."""
    offset = max(0, min(offset, run.characters))
    text = runs.output(tx, run.id, offset, most)
    after = offset + len(text)
    return RunOutput(text, after, not run.state.is_over or after < run.characters, run.cut)


def why_lost(run: GuestRun, sandbox: Sandbox | None, machine: Machine | None) -> str:
    """Why a run can't be started or go on any more, as a clause; empty: it may."""
    if sandbox is None or sandbox.state in (SandboxState.STOPPING, SandboxState.ENDED):
        return "its sandbox ended"
    if run.state is RunState.WAITING:
        return ""
    if machine is None or sandbox.machine_id != run.machine_id:
        return "its sandbox got a new machine"
    if machine.restarts != run.restarts:
        return "its machine was restarted"
    return "" if machine.state is MachineState.LEASED else "its machine is taken down"


def may_start(sandbox: Sandbox) -> bool:
    """Whether commands may be started in a sandbox now: new code would end them."""
    return sandbox.state is SandboxState.READY and (sandbox.is_kept or sandbox.stage is None)


@dataclass(frozen=True)
class Scene:
    """What the next step of a run depends on."""

    run: GuestRun
    sandbox: Sandbox | None
    machine: Machine | None
    mr: MergeRequest | None
    since_start: timedelta
    lost: str

    @property
    def late(self) -> timedelta:
        """By how much its time is over; negative while it is not."""
        return self.since_start - timedelta(seconds=self.run.timeout_seconds)


def scene_of(tx: Transaction, run_id: RunId) -> Scene | None:
    """What the next step of a run depends on; None: there is nothing to do now."""
    run = runs.get(tx, run_id)
    if run is None or run.state.is_over:
        return None
    sandbox = sandboxes.get(tx, run.sandbox_id)
    machine = machines.get(tx, run.machine_id or (sandbox.machine_id if sandbox else None))
    lost = why_lost(run, sandbox, machine)
    before = restored.seen(tx)
    if before is not None and run.created_at < before:  # it may have run since the backup was made
        lost = "the state was restored from a backup after it was asked for"
    if not lost and run.state is RunState.WAITING:
        running = runs.count(tx, run.sandbox_id, RunState.RUNNING)
        earlier = runs.count(tx, run.sandbox_id, RunState.WAITING, before=run_id)
        if sandbox is None or machine is None or not may_start(sandbox) or running + earlier >= MOST_RUNNING:
            return None
    mr = merge_requests.get(tx, sandbox.mr) if sandbox else None
    since = timedelta(seconds=tx.seconds_since(run.started_at or tx.now))
    return Scene(run, sandbox, machine, mr, since, lost)


def give(tx: Transaction, run_id: RunId, boot: str) -> bool:
    """Store to which machine a waiting run is given, before it is; False when it has to wait after all."""
    run = runs.get(tx, run_id)
    sandbox = sandboxes.get(tx, run.sandbox_id) if run else None
    machine = machines.get(tx, sandbox.machine_id) if sandbox else None
    if run is None or sandbox is None or machine is None or run.state is not RunState.WAITING:
        return False
    if not may_start(sandbox) or runs.count(tx, sandbox.id, RunState.RUNNING) >= MOST_RUNNING:
        return False
    runs.save(
        tx,
        replace(
            run, state=RunState.RUNNING, machine_id=machine.id, restarts=machine.restarts, boot=boot,
            sha=sandbox.sha, started_at=tx.now,
        ),
    )  # fmt: skip
    return True


def take(tx: Transaction, run_id: RunId, look: JobLook) -> GuestRun | None:
    """Store a piece of output together with the offset behind it; None when the run is over."""
    run = runs.get(tx, run_id)
    if run is None or run.state.is_over:
        return None
    piece = look.piece[: max(0, MOST_OUTPUT_BYTES - run.taken_bytes)]
    cut = run.cut or len(piece) < len(look.piece)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = cut or (look.exit_code is not None and len(look.piece) < PIECE_BYTES)
    text = decoder.decode(piece, last).replace("\0", "\ufffd")
    begun = decoder.getstate()[0]  # the first bytes of a character, whose others come with the next piece
    taken = replace(
        run,
        taken_bytes=run.taken_bytes + len(look.piece) - len(begun),
        characters=run.characters + len(text),
        cut=cut,
    )
    if text:
        runs.add_output(tx, run, text)
    if taken != run:
        runs.save(tx, taken)
    return taken


def why_killed(scene: Scene) -> tuple[RunState, str]:
    """What it means that a run's processes were killed."""
    run = scene.run
    if run.cancelled_by:
        return RunState.CANCELLED, f"{run.cancelled_by} cancelled it"
    if scene.late >= timedelta(0):
        return RunState.TIMEOUT, f"it was not done after {in_words(timedelta(seconds=run.timeout_seconds))}"
    if scene.sandbox and scene.sandbox.sha != run.sha:
        return RunState.CANCELLED, "new code came into the sandbox"
    return RunState.DONE, "something in the sandbox killed it"


def finish(tx: Transaction, run_id: RunId, state: RunState, why: str, exit_code: int | None) -> None:
    """End a run, unless it is over."""
    run = runs.get(tx, run_id)
    if run is not None and not run.state.is_over:
        _end(tx, run, state, why, exit_code)


def _end(
    tx: Transaction, run: GuestRun, state: RunState, why: str = "", exit_code: int | None = None, by: Actor = RAVEBOT
) -> GuestRun:
    ended = replace(run, state=state, why=why[:_LONGEST_WHY], exit_code=exit_code, ended_at=tx.now)
    runs.save(tx, ended)
    sandbox = sandboxes.get(tx, run.sandbox_id)
    _record(tx, EventKind.RUN_ENDED, by, sandbox, ended, {"state": state.value, "code": exit_code})
    return ended


def _record(
    tx: Transaction, kind: EventKind, by: Actor, sandbox: Sandbox | None, run: GuestRun, data: dict[str, object]
) -> None:
    events.append(
        tx, kind, by, mr=sandbox.mr if sandbox else None, sandbox_id=run.sandbox_id, machine_id=run.machine_id,
        data={"run": run.id, **data},
    )  # fmt: skip
