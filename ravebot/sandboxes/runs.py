"""Commands that people and agents run in sandboxes: asked for, started at most once, read on, ended.

Everything that must survive is in the database: the loop may be ended at any point, and another goes on from there.
A command is given to one boot of one machine, which is stored first; in another one it is not started again.
"""

from __future__ import annotations

import asyncio
import codecs
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

import structlog

from ravebot.backoff import Backoff
from ravebot.config.model import Config
from ravebot.errors import GuestError, ProviderError, Refused, StoreError, Unavailable
from ravebot.sandboxes.chain.guestjobs import BLOCK_BYTES, PIECE_BYTES, GuestJobs, JobLook
from ravebot.sandboxes.chain.stages import environment
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
    SandboxId,
    SandboxState,
)
from ravebot.sandboxes.view import in_words
from ravebot.store import events, machines, merge_requests, restored, runs, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import RUNS

log = structlog.get_logger()

MOST_RUNNING = 4
"""Of a sandbox, at once."""
MOST_WAITING = 20
LONGEST = timedelta(hours=1)
LONGEST_COMMAND = 8000
"""Characters."""
MOST_OUTPUT_BYTES = 1024 * 1024
_LONGEST_WHY = 500
_UNREACHABLE = timedelta(minutes=5)
"""How long after its time a command that can't be ended is waited for."""
_LOOK_SECONDS = 2.0
_STORE_SECONDS = 1.0
_POLLS = Backoff.growing(0.1, 2.0, factor=1.5)
_PAUSES = Backoff.growing(1.0, 30.0)
_KILLED = 137

WhyNot = Callable[[SandboxId, MergeRequest, Actor], Awaitable[str]]
"""Why somebody may not run commands in that sandbox now, in a sentence; empty: they may. Raises Unavailable."""


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
class _Scene:
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


@dataclass
class Runs:
    """The loop over runs: each that is not over is driven, beside the others. `why_not`: looked up right before a run
    starts; None: whatever was asked for is run."""

    database: Database
    jobs: GuestJobs
    config: Config
    why_not: WhyNot | None = None
    polls: Backoff = _POLLS
    _busy: set[RunId] = field(default_factory=set)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    waiting = await self.database.read(runs.open_ids)
                except StoreError as error:
                    log.warning("runs could not be read", error=str(error))
                    await asyncio.sleep(_STORE_SECONDS)
                    continue
                for run_id in waiting:
                    if run_id not in self._busy:
                        self._busy.add(run_id)
                        group.create_task(self._drive(run_id))
                await self.database.signals.wait(RUNS, _LOOK_SECONDS)

    async def _drive(self, run_id: RunId) -> None:
        """Work on one run until it is over, or has to wait."""
        polls, pauses, started = iter(self.polls), iter(_PAUSES), False
        try:
            while scene := await self._look(run_id):
                run, machine = scene.run, scene.machine
                if scene.lost:
                    await self._ended(run.id, RunState.LOST, scene.lost)
                    return
                assert scene.sandbox
                assert machine
                try:
                    if run.state is RunState.WAITING:
                        if why := await self._refusal(scene):
                            await self._ended(run.id, RunState.CANCELLED, f"it was not started: {why}")
                            return
                        boot = await self.jobs.boot(machine.name)
                        if not await self.database.write(partial(_give, run_id=run_id, boot=boot)):
                            return
                        continue
                    if not started:
                        started = await self._start(scene, machine)
                        if not started:
                            await self._ended(run.id, RunState.LOST, "its machine was restarted")
                            return
                    if await self._go_on(scene, machine):
                        return
                    await asyncio.sleep(next(polls))
                except (Unavailable, GuestError, ProviderError) as error:
                    log.warning("a run has to wait", run=run_id, machine=machine.name, error=str(error))
                    if run.state is RunState.RUNNING and scene.late > _UNREACHABLE:
                        await self._ended(run.id, RunState.LOST, f"its guest does not answer: {error}")
                        return
                    await asyncio.sleep(next(pauses))
        except StoreError as error:  # nothing is changed, and it is tried again when the database is writable
            log.warning("a run waits for the database", run=run_id, error=str(error))
            await asyncio.sleep(_STORE_SECONDS)
        except Exception:  # one that a guest triggers must not end the bot, nor be tried for ever
            log.exception("a run could not be driven: this is a bug of ravebot's", run=run_id)
            with suppress(StoreError):
                await self._ended(run_id, RunState.LOST, "ravebot made a mistake, which its log tells: tell an admin")
        finally:
            self._busy.discard(run_id)

    async def _refusal(self, scene: _Scene) -> str:
        """Why whoever asked for a run may not have it started any more; empty: they may. Raises Unavailable."""
        if self.why_not is None or scene.mr is None:
            return ""
        return await self.why_not(scene.run.sandbox_id, scene.mr, Actor(scene.run.by_kind, scene.run.by))

    async def _look(self, run_id: RunId) -> _Scene | None:
        """None: there is nothing to do now."""

        def read(tx: Transaction) -> _Scene | None:
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
            return _Scene(run, sandbox, machine, mr, since, lost)

        return await self.database.read(read)

    async def _start(self, scene: _Scene, machine: Machine) -> bool:
        """Start it, unless that was done; False when that can't be any more."""
        assert scene.sandbox
        assert scene.mr
        run = scene.run
        facts = environment(self.config, replace(scene.sandbox, sha=run.sha), scene.mr)
        return await self.jobs.start(
            machine.name, run.guest_key, run.command, facts, run.boot, most_blocks=MOST_OUTPUT_BYTES // BLOCK_BYTES + 1
        )

    async def _go_on(self, scene: _Scene, machine: Machine) -> bool:
        """Take what it printed, and its end; returns whether it is over."""
        run, key = scene.run, scene.run.guest_key
        ending = bool(run.cancelled_by) or scene.late >= timedelta(0)
        if ending:
            await self.jobs.kill(machine.name, key)
        look = await self.jobs.look(machine.name, key, run.taken_bytes)
        if not look.found:
            await self._ended(run.id, RunState.LOST, "its machine was restarted")
            return True
        taken = await self.database.write(partial(_take, run_id=run.id, look=look))
        while taken is not None and look.piece and not taken.cut:  # what is left out has no end in a hostile guest
            if look.exit_code is None and len(look.piece) < PIECE_BYTES:
                break
            look = await self.jobs.look(machine.name, key, taken.taken_bytes)
            if not look.found:
                await self._ended(run.id, RunState.LOST, "its machine was restarted")
                return True
            taken = await self.database.write(partial(_take, run_id=run.id, look=look))
        if taken is None:
            return True
        if look.exit_code is None:
            if scene.late > _UNREACHABLE:
                await self._ended(run.id, RunState.LOST, "its guest does not end it")
                return True
            return False
        state, why = RunState.DONE, ""
        if look.exit_code == _KILLED:
            state, why = _why_killed(scene)
        await self._ended(run.id, state, why, look.exit_code)
        await self.jobs.forget(machine.name, key)
        return True

    async def _ended(self, run_id: RunId, state: RunState, why: str, exit_code: int | None = None) -> None:
        def end(tx: Transaction) -> None:
            stored = runs.get(tx, run_id)
            if stored is not None and not stored.state.is_over:
                _end(tx, stored, state, why, exit_code)

        await self.database.write(end)


def _give(tx: Transaction, run_id: RunId, boot: str) -> bool:
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


def _take(tx: Transaction, run_id: RunId, look: JobLook) -> GuestRun | None:
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


def _why_killed(scene: _Scene) -> tuple[RunState, str]:
    """What it means that a run's processes were killed."""
    run = scene.run
    if run.cancelled_by:
        return RunState.CANCELLED, f"{run.cancelled_by} cancelled it"
    if scene.late >= timedelta(0):
        return RunState.TIMEOUT, f"it was not done after {in_words(timedelta(seconds=run.timeout_seconds))}"
    if scene.sandbox and scene.sandbox.sha != run.sha:
        return RunState.CANCELLED, "new code came into the sandbox"
    return RunState.DONE, "something in the sandbox killed it"


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
