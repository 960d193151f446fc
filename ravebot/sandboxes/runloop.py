"""The loop over commands in sandboxes: starts each that may start, reads what it prints, ends it.

It may be ended at any point, and another goes on from what `runs` has stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

import structlog

from ravebot.backoff import Backoff
from ravebot.config.model import Config
from ravebot.errors import GuestError, ProviderError, StoreError, Unavailable
from ravebot.sandboxes.chain.guestjobs import BLOCK_BYTES, PIECE_BYTES, GuestJobs
from ravebot.sandboxes.chain.stages import environment
from ravebot.sandboxes.model import Actor, Machine, MergeRequest, RunId, RunState, SandboxId
from ravebot.sandboxes.runs import MOST_OUTPUT_BYTES, Scene, finish, give, scene_of, take, why_killed
from ravebot.store import runs
from ravebot.store.database import Database
from ravebot.store.signals import RUNS

log = structlog.get_logger()

_UNREACHABLE = timedelta(minutes=5)
"""How long after its time a command that can't be ended is waited for."""
_LOOK_SECONDS = 2.0
_STORE_SECONDS = 1.0
_POLLS = Backoff.growing(0.1, 2.0, factor=1.5)
_PAUSES = Backoff.growing(1.0, 30.0)
_KILLED = 137

WhyNot = Callable[[SandboxId, MergeRequest, Actor], Awaitable[str]]
"""Why somebody may not run commands in that sandbox now, in a sentence; empty: they may. Raises Unavailable."""


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
        look = partial(scene_of, run_id=run_id)
        try:
            while scene := await self.database.read(look):
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
                        if not await self.database.write(partial(give, run_id=run_id, boot=boot)):
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

    async def _refusal(self, scene: Scene) -> str:
        """Why whoever asked for a run may not have it started any more; empty: they may. Raises Unavailable."""
        if self.why_not is None or scene.mr is None:
            return ""
        return await self.why_not(scene.run.sandbox_id, scene.mr, Actor(scene.run.by_kind, scene.run.by))

    async def _start(self, scene: Scene, machine: Machine) -> bool:
        """Start it, unless that was done; False when that can't be any more."""
        assert scene.sandbox
        assert scene.mr
        run = scene.run
        facts = environment(self.config, replace(scene.sandbox, sha=run.sha), scene.mr)
        return await self.jobs.start(
            machine.name, run.guest_key, run.command, facts, run.boot, most_blocks=MOST_OUTPUT_BYTES // BLOCK_BYTES + 1
        )

    async def _go_on(self, scene: Scene, machine: Machine) -> bool:
        """Take what it printed, and its end; returns whether it is over."""
        run, key = scene.run, scene.run.guest_key
        ending = bool(run.cancelled_by) or scene.late >= timedelta(0)
        if ending:
            await self.jobs.kill(machine.name, key)
        look = await self.jobs.look(machine.name, key, run.taken_bytes)
        if not look.found:
            await self._ended(run.id, RunState.LOST, "its machine was restarted")
            return True
        taken = await self.database.write(partial(take, run_id=run.id, look=look))
        while taken is not None and look.piece and not taken.cut:  # what is left out has no end in a hostile guest
            if look.exit_code is None and len(look.piece) < PIECE_BYTES:
                break
            look = await self.jobs.look(machine.name, key, taken.taken_bytes)
            if not look.found:
                await self._ended(run.id, RunState.LOST, "its machine was restarted")
                return True
            taken = await self.database.write(partial(take, run_id=run.id, look=look))
        if taken is None:
            return True
        if look.exit_code is None:
            if scene.late > _UNREACHABLE:
                await self._ended(run.id, RunState.LOST, "its guest does not end it")
                return True
            return False
        state, why = RunState.DONE, ""
        if look.exit_code == _KILLED:
            state, why = why_killed(scene)
        await self._ended(run.id, state, why, look.exit_code)
        await self.jobs.forget(machine.name, key)
        return True

    async def _ended(self, run_id: RunId, state: RunState, why: str, exit_code: int | None = None) -> None:
        await self.database.write(partial(finish, run_id=run_id, state=state, why=why, exit_code=exit_code))
