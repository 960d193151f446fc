"""The chain from a claimed machine to an announced sandbox, stage by stage; each ends in one transaction.

The current stage is in the database, so a chain continues at any stage, after a restart as well as after new
code. What follows after a failure is decided in `decide`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from ravebot.clock import Clock, age
from ravebot.config.model import Config, HttpTest
from ravebot.errors import Forbidden, GuestError, GuestTimeout, MachineNotFound, NotFound, ProviderError, Refused
from ravebot.providers.base import OUTPUT_LIMIT_BYTES, Provider
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.chain.guestjobs import GuestJobs, end_of
from ravebot.sandboxes.chain.letting import LettingIn
from ravebot.sandboxes.chain.results import Results, same
from ravebot.sandboxes.chain.sources import Sources
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.edges import Meter, WebProbe
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.machine_life import BuildFailure
from ravebot.sandboxes.model import EventKind, Machine, MergeRequest, Observed, Sandbox, SandboxId, Stage, StageResult
from ravebot.sandboxes.settings import SandboxSettings, of_sandbox
from ravebot.sandboxes.telling import TAIL_SHOWN
from ravebot.sandboxes.view import without_paths
from ravebot.store import machines, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()

_LEAST_TIME = timedelta(seconds=30)
_PING = timedelta(seconds=2)


@dataclass(frozen=True)
class Work:
    """What one stage works on, as it was when it began."""

    sandbox: Sandbox
    machine: Machine
    mr: MergeRequest
    settings: SandboxSettings


class BuildBrokenError(GuestError):
    """The machine is broken; the merge request is not to blame."""


@dataclass(frozen=True)
class Chain:
    """Runs stages. `guard` updates and verifies the firewall by the database, or raises `Unavailable`."""

    config: Config
    clock: Clock
    database: Database
    provider: Provider
    lifecycle: Lifecycle
    sources: Sources
    letting_in: LettingIn
    jobs: GuestJobs
    results: Results
    web: WebProbe
    guard: Callable[[], Awaitable[None]]
    meter: Meter

    async def run(self, sandbox_id: SandboxId) -> None:
        """Run stage after stage until the chain ends.

        Raises `Unavailable` when a part we depend on is away: the same stage is entered again later.
        """
        while work := await self.database.read(lambda tx: _load(tx, self.config, sandbox_id)):
            stage = work.sandbox.stage
            assert stage
            try:
                tail = await self._perform(stage, work)
            except MachineNotFound:
                raise
            except (GuestError, ProviderError, Refused, NotFound, Forbidden) as error:
                if await self._runs(work.machine):  # else the machine failed, which the table of machines handles
                    if stage in (Stage.SETUP, Stage.TEST):
                        await self.results.collect(work.sandbox, work.machine, work.settings.junit)
                    fail = self._build_broke if isinstance(error, BuildBrokenError) else self._failed
                    await fail(work, stage, error)
                return
            if not await self._advance(work, stage, tail):
                return

    async def _runs(self, machine: Machine) -> bool:
        listing = await self.provider.list()
        running = (Observed.AGENT_SILENT, Observed.AGENT_ANSWERS)
        return any(one.name == machine.name and one.state in running for one in listing.machines)

    async def _perform(self, stage: Stage, work: Work) -> str | None:
        """Do one stage; returns the tail of its output, or None when there was nothing to do."""
        match stage:
            case Stage.HOST_KEYS:
                await self._host_keys(work)
            case Stage.AUTHORIZE:
                await self.authorize(work.machine, work.mr)
            case Stage.COPY:
                archive = await self.sources.archive(work.sandbox)
                await self.jobs.put_code(work.machine.name, archive, self._time_left(work, stage))
                await self.sources.forget(work.sandbox.id)
            case Stage.SETUP:
                return await self._setup(work)
            case Stage.TEST:
                return await self._tests(work)
            case Stage.OPEN_PORTS:
                await self._open_ports(work)
            case Stage.ANNOUNCE:
                return None
        return ""

    def _time_left(self, work: Work, stage: Stage) -> timedelta:
        """The stage's remaining time; after downtime at least enough to read the job's result."""
        timeouts = self.config.sandbox.timeouts
        limits = {Stage.COPY: timeouts.copy_in, Stage.SETUP: timeouts.setup, Stage.TEST: timeouts.test}
        limit = limits.get(stage, timeouts.other)
        now = self.clock.now()
        taken = age(work.sandbox.stage_started_at or now, now)
        return max(min(_LEAST_TIME, limit), limit - taken)

    async def _host_keys(self, work: Work) -> None:
        name = work.machine.name
        limit = self._time_left(work, Stage.HOST_KEYS)
        keys: tuple[str, ...] = ()
        why = "does its image meet the guest contract?"
        try:
            async with asyncio.timeout(limit.total_seconds()):
                while not keys:
                    try:
                        if await self.provider.ping(name, timedelta(seconds=2)):
                            keys = await self.provider.host_keys(name)
                    except GuestError as error:  # its SSH server may be generating them
                        why = str(error)
                        if not await self._runs(work.machine):
                            raise
                    if not keys:
                        await asyncio.sleep(0.5)
        except TimeoutError as error:
            raise BuildBrokenError(f"the machine shows no SSH host key: {why}") from error

        def keep(tx: Transaction) -> Machine | None:
            machine = machines.get(tx, work.machine.id)
            assert machine
            return machine_life.keep_host_keys(tx, self.lifecycle, machine, keys)

        if other := await self.database.write(keep):
            raise BuildBrokenError(
                f"the machine shows the host key of another one, {other.name}: keys must not be baked in"
            )

    async def authorize(self, machine: Machine, mr: MergeRequest) -> tuple[str, ...]:
        """Let in exactly the keys of the merge request's people, of the agents, and our own; returns the others'."""
        return await self.letting_in.begin(machine, mr)

    async def _setup(self, work: Work) -> str | None:
        commands = work.settings.setup
        tail: str | None = None
        for index in await self.jobs.present(work.machine.name, commands):
            tail = await self._job(work, Stage.SETUP, index, commands[index])
        return tail

    async def _tests(self, work: Work) -> str | None:
        tail: str | None = None
        for index, test in enumerate(work.settings.smoke_tests):
            if isinstance(test, HttpTest):
                what, left = f"GET {test.http}", self._time_left(work, Stage.TEST)
                async with self.results.of_command(work.sandbox, Stage.TEST, index, what):
                    await self.web.expect(work.machine.address, self.config.sandbox.web_port, test.http, left)
                tail = (tail or "") + f"GET {test.http}: answered\n"
            else:
                tail = (tail or "") + await self._job(work, Stage.TEST, index, test.run)
            tail = end_of(tail, OUTPUT_LIMIT_BYTES)  # of them all: a project may have many
        await self.results.collect(work.sandbox, work.machine, work.settings.junit)
        return tail

    async def _job(self, work: Work, stage: Stage, index: int, command: str) -> str:
        """Run a command in the guest, or adopt it if it already runs; returns the tail of its output."""
        key = f"{work.sandbox.id}-{work.sandbox.sha[:12]}-{work.sandbox.stage_attempt}-{stage.value}-{index}"
        variables = environment(self.config, work.sandbox, work.mr)
        async with self.results.of_command(work.sandbox, stage, index, command):
            left = self._time_left(work, stage)
            done = await self.jobs.run_job(work.machine.name, key, command, variables, left)
            if done.exit_code != 0:
                raise GuestError(f"`{command}` ended with code {done.exit_code}\n{done.output}")
        return done.output

    async def _open_ports(self, work: Work) -> None:
        def opened(tx: Transaction) -> None:
            sandbox = sandboxes.get(tx, work.sandbox.id)
            if sandbox and same(sandbox, work.sandbox):
                self.lifecycle.open_ports(tx, sandbox)

        await self.database.write(opened)
        await self.guard()
        scheme = await self.web.scheme(work.machine.address, self.config.sandbox.web_port)

        def found(tx: Transaction) -> None:
            sandbox = sandboxes.get(tx, work.sandbox.id)
            if sandbox and same(sandbox, work.sandbox):
                # Only shown to people: it is not part of the sandbox's lifecycle.
                sandboxes.save(tx, replace(sandbox, web_scheme=scheme))

        await self.database.write(found)

    async def _advance(self, work: Work, stage: Stage, tail: str | None) -> bool:
        """Commit a stage's end and go to the next; False when the sandbox was changed meanwhile."""

        shown = self.results.mask(tail or "")

        def step(tx: Transaction) -> float | None:
            sandbox = sandboxes.get(tx, work.sandbox.id)
            if sandbox is None or not same(sandbox, work.sandbox):
                return None
            seconds = tx.seconds_since(sandbox.stage_started_at or tx.now)
            if tail is not None:
                result = StageResult(stage, ok=True, seconds=seconds, tail=shown)
                sandboxes.add_result(tx, sandbox, result)
                data: dict[str, object] = {"stage": stage.value, "seconds": seconds}
                self.lifecycle.journal.record(
                    tx, EventKind.STAGE_DONE, sandbox=sandbox, machine_id=work.machine.id, data=data
                )
            self.lifecycle.happened(tx, sandbox, Happened.MACHINE_READY)
            return seconds

        seconds = await self.database.write(step)
        if seconds is not None and tail is not None:
            self.meter.stage_done(stage.value, True, seconds)
        return seconds is not None

    async def _build_broke(self, work: Work, stage: Stage, error: Exception) -> None:
        def still(tx: Transaction) -> bool:
            sandbox = sandboxes.get(tx, work.sandbox.id)
            return sandbox is not None and same(sandbox, work.sandbox)

        seconds = age(work.sandbox.stage_started_at or self.clock.now(), self.clock.now()).total_seconds()
        self.meter.stage_done(stage.value, False, seconds)
        failure = BuildFailure(str(error), str(error))
        await machine_life.fail_build(self.database, self.lifecycle, work.machine, failure, still)

    async def _failed(self, work: Work, stage: Stage, error: Exception) -> None:
        why, _, tail = self.results.mask(str(error)).partition("\n")
        log.warning("stage failed", sandbox=work.sandbox.id, machine=work.machine.name, stage=stage.value, why=why)
        if isinstance(error, ProviderError):
            why, tail = without_paths(why), without_paths(tail)

        answers = bool(self.config.sandbox.keep_failed) and await self._answers(work.machine)

        def step(tx: Transaction) -> float:
            seconds = tx.seconds_since(work.sandbox.stage_started_at or tx.now)
            sandbox = sandboxes.get(tx, work.sandbox.id)
            machine = machines.get(tx, work.machine.id)
            if sandbox is None or machine is None or not same(sandbox, work.sandbox):
                return seconds
            result = StageResult(stage, ok=False, seconds=seconds, tail=tail or why)
            sandboxes.add_result(tx, sandbox, result)
            # Events are kept for ever, output is not: the event gets only the part that people are shown.
            shown = tail.strip()[-TAIL_SHOWN:]
            data: dict[str, object] = {"stage": stage.value, "seconds": seconds, "why": why, "tail": shown}
            self.lifecycle.journal.record(tx, EventKind.STAGE_FAILED, sandbox=sandbox, machine_id=machine.id, data=data)
            happened = Happened.STAGE_TIMEOUT if isinstance(error, GuestTimeout) else Happened.STAGE_FAILED
            self.lifecycle.happened(tx, sandbox, happened, why=why, answers=answers)
            return seconds

        self.meter.stage_done(stage.value, False, await self.database.write(step))
        if answers:
            await self.guard()  # the machine may be kept: its SSH port opens before people are told

    async def _answers(self, machine: Machine) -> bool:
        try:
            return await self.provider.ping(machine.name, _PING)
        except (GuestError, ProviderError):
            return False


def environment(config: Config, sandbox: Sandbox, mr: MergeRequest) -> dict[str, str]:
    """What every command in a guest is told of its sandbox."""
    return {
        "RAVE_PROJECT": mr.project_path,
        "RAVE_MR": str(mr.ref.iid),
        "RAVE_SHA": sandbox.sha,
        "RAVE_BRANCH": mr.source_branch.replace("\0", ""),
        "RAVE_WEB_URL": f"http://{config.sandbox.host}:{sandbox.web_port}/",
    }


def _load(tx: Transaction, config: Config, sandbox_id: SandboxId) -> Work | None:
    sandbox = sandboxes.get(tx, sandbox_id)
    if sandbox is None or sandbox.stage is None:
        return None
    machine = machines.get(tx, sandbox.machine_id)
    mr = merge_requests.get(tx, sandbox.mr)
    if machine is None or mr is None:
        return None
    return Work(sandbox, machine, mr, of_sandbox(tx, config, sandbox))
