"""Drives one conversation with an agent in a sandbox: its process, its connection, its turns one after the other.

Everything that must survive is in the database: a driver may be ended at any point, and another goes on from there.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from ravebot.agents.allowed import StillAllowed, StillMay
from ravebot.agents.model import ConversationId, Process, Turn, TurnState
from ravebot.agents.progress import TurnProgress
from ravebot.agents.transports.acp.control import (
    ControlConnections,
    Destination,
    KeyRefused,
    NoSshClient,
    OtherHostKey,
)
from ravebot.agents.transports.acp.doors.sandbox_doors import DoorRefused, DoorsNeeded, SandboxDoors
from ravebot.agents.transports.acp.lines import AgentBreaksLimits, LineReader
from ravebot.agents.transports.acp.session import AgentSession, AgentUnusable, ProgramEnded
from ravebot.agents.transports.acp.situation import Settling, Situation, look
from ravebot.agents.transports.acp.stdio import GuestUnfit, InGuest, Program, attach
from ravebot.agents.transports.acp.turn import RunningTurn
from ravebot.agents.transports.contract import Nudge
from ravebot.config.model import Config
from ravebot.errors import GuestError, RavebotError, StoreError, Unavailable
from ravebot.sandboxes.model import Machine, MergeRequest
from ravebot.store import agent_work, conversations
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()

IDLE_SECONDS = 600.0
"""After that long without anything to do the connection is ended; the agent lives on."""
MOST_OUTPUT = 32 * 1024 * 1024
"""Of a process in all its turns, before another one goes on. The script in the guest ends one that writes 64 MiB."""
_KILL_SECONDS = 15.0
_NO_MEMORY = "The agent begins without memory of what was said here before."

Authorize = Callable[[Machine, MergeRequest], Awaitable[object]]
"""Writes the keys into a machine again; raises RavebotError."""


@dataclass(frozen=True)
class AcpDriver:
    """What drives conversations over `acp`; `connecting` limits how many connections are begun at once."""

    config: Config
    database: Database
    progress: TurnProgress
    connections: ControlConnections
    authorize: Authorize
    ssh_port: int = 22
    idle_seconds: float = IDLE_SECONDS
    may_give: StillMay | None = None  # None: whatever was taken
    doors: SandboxDoors | None = None
    connecting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(8))

    async def drive(self, conversation_id: ConversationId, nudge: Nudge) -> None:
        """Work until there was nothing to do for a while, or until nothing can be done now."""
        await ConversationDriver(self, conversation_id, nudge).run()


@dataclass
class ConversationDriver:
    """One conversation at work."""

    parts: AcpDriver
    conversation_id: ConversationId
    nudge: Nudge
    _session: AgentSession | None = None
    _process: Process | None = None  # the one that the session is with
    _authorized: bool = False

    @property
    def _settling(self) -> Settling:
        return Settling(self.parts.progress)

    @property
    def _allowed(self) -> StillAllowed:
        settling = self._settling
        return StillAllowed(
            self.parts.database, lambda tx, turn, why: settling.give_up(tx, turn, None, why), self.parts.may_give
        )

    async def run(self) -> None:
        try:
            while True:
                self.nudge.take()  # before the look: what changes after it is news
                situation = await self._look()
                if situation is None:
                    return
                try:
                    if not await self._step(situation):
                        return
                except (StoreError, asyncio.CancelledError):
                    raise
                except RavebotError as error:
                    await self._end_useless(error)
                    await self._detach()
                    if not await self._failed(error):
                        return
        finally:
            await self._detach()
            if self.parts.doors is not None:
                self.parts.doors.release(self.conversation_id)

    async def _end_useless(self, error: RavebotError) -> None:
        """An agent that can't be used must not stay in the guest."""
        if self._session is not None and isinstance(error, AgentUnusable | AgentBreaksLimits):
            with suppress(RavebotError):
                await self._session.kill(_KILL_SECONDS)

    async def _look(self) -> Situation | None:
        return await self.parts.database.read(lambda tx: look(tx, self.parts.config, self.conversation_id))

    async def _step(self, now: Situation) -> bool:
        """Do what comes next; False when there is nothing to do."""
        process, turn = now.process, now.turn
        if process is not None and now.lost:
            await self._detach()
            await self._write(self._settling.end_process, process, now.lost)
            return True
        if self._process is not None and (process is None or process.id != self._process.id):
            await self._detach()
        if turn is None or not now.may_go_on:
            return await self._idle()
        if not now.given and turn.cancelled_by:
            await self._write(self._settling.end_turn, turn, TurnState.CANCELLED)
            return True
        if turn.process_id is not None and (process is None or process.id != turn.process_id):
            await self._write(self._settling.end_turn, turn, TurnState.UNCERTAIN, "Its process has ended.")
            return True
        if why := _unusable(now):
            await self._write(self._settling.give_up, turn, process, why)
            return True
        if not now.given and not await self._allowed.ask(turn):
            return False
        if process is None:
            return await self._begin_process(now)
        await self._open_doors(now, process)
        if self._session is None:
            return await self._connect(now, process)
        if not now.given and process.offset > MOST_OUTPUT:
            await self._session.kill(_KILL_SECONDS)
            await self._write(self._settling.end_process, process, "its output became long; another process goes on")
            return True
        if now.agent is None:  # it was taken from the configuration while it worked
            await self._session.kill(_KILL_SECONDS)
            await self._write(self._settling.end_process, process, f"{_not_configured(now)}, so it was ended")
            return True
        if not process.session:
            return await self._begin_session(now, process, self._session)
        await self._turn(now, process, self._session, turn)
        return True

    async def _begin_process(self, now: Situation) -> bool:
        """Store a process before its folder is made in the guest."""
        sandbox, machine = now.ready, now.machine
        if sandbox is None or machine is None:
            return await self._idle()
        folder = f"{self.conversation_id}-{secrets.token_hex(6)}"

        def begin(tx: Transaction) -> None:
            if conversations.live_process(tx, self.conversation_id) is None:
                conversations.begin_process(tx, self.conversation_id, sandbox.id, machine, folder)

        await self.parts.database.write(begin, urgent=True)
        return True

    def _destination(self, machine: Machine) -> Destination:
        return replace(Destination.of(machine, self.parts.config.sandbox.user), port=self.parts.ssh_port)

    async def _open_doors(self, now: Situation, process: Process) -> None:
        """The agent's doors stand before it begins and before each turn. One that has its turn goes on without them
        until they stand again. Raises DoorRefused, and what a connection raises."""
        if self.parts.doors is None or now.agent is None or now.machine is None:
            return
        where = self._destination(now.machine)
        needs = DoorsNeeded(self.conversation_id, now.agent, process.sandbox_id, now.machine, where)
        if now.given:
            self.parts.doors.hold(needs)
            return
        try:
            await self.parts.doors.ensure(needs)
        except KeyRefused as error:
            await self._authorize_once(now, error)
            await self.parts.doors.ensure(needs)

    async def _authorize_once(self, now: Situation, error: KeyRefused) -> None:
        """Write our key into a machine from before ravebot had it, or whose keys were changed; the second time, raises
        the error."""
        if self._authorized or now.mr is None or now.machine is None:
            raise error
        self._authorized = True
        await self.parts.authorize(now.machine, now.mr)

    def _urls(self, now: Situation) -> Mapping[str, str]:
        return self.parts.doors.urls(now.agent) if self.parts.doors and now.agent else {}

    async def _connect(self, now: Situation, process: Process) -> bool:
        assert now.machine
        acp = now.agent.acp if now.agent else None  # without one, it is only looked for
        destination = self._destination(now.machine)
        doors = {f"RAVEBOT_{name.upper()}_URL": url for name, url in self._urls(now).items()}
        program = Program(process.folder, acp.command if acp else (), {**doors, **(acp.environment if acp else {})})
        offset = process.offset if process.session else 0
        try:
            async with self.parts.connecting:
                attached, found = await attach(
                    self.parts.connections, destination, program, offset,
                    may_start=not now.given, changed=self.nudge.event,
                )  # fmt: skip
        except KeyRefused as error:
            await self._authorize_once(now, error)
            return True
        if found is InGuest.MISSING:
            await attached.close()
            raise AgentUnusable(
                f"The sandbox's image has no program `{acp.command[0] if acp else ''}`: install it in the image and "
                f"rebuild the sandbox, or change agents[].acp.command of {now.conversation.agent}."
            )
        if found is InGuest.GONE:
            await attached.close()
            await self._write(self._settling.end_process, process, "its folder in the guest is gone")
            return True
        log.debug("agent attached", conversation=self.conversation_id, process=process.id, found=found.value)
        self._session, self._process = AgentSession(attached, LineReader(offset)), process
        return True

    async def _begin_session(self, now: Situation, process: Process, session: AgentSession) -> bool:
        """Have the agent begin, or load what it remembers. Until that is stored, its output is read from the start."""

        def before(tx: Transaction) -> tuple[str, bool]:
            last = conversations.last_process(tx, self.conversation_id, process.sandbox_id)
            return (last.session if last and last.can_load else ""), agent_work.had_session(tx, self.conversation_id)

        earlier, had_one = await self.parts.database.read(before)
        turn = now.turn
        assert turn

        begun = await session.begin(earlier, lambda: not self.nudge.news, self._urls(now).get("mcp", ""))
        if begun is None:  # something changed: look, and begin again from the start
            await self._detach()
            return True

        def store(tx: Transaction) -> None:
            stored = conversations.process(tx, process.id)
            if stored is None or stored.ended_at is not None:
                return
            offset = session.reader.offset
            conversations.save_process(
                tx, replace(stored, session=begun.session, can_load=begun.can_load, offset=offset)
            )
            if had_one and not begun.remembers:
                self.parts.progress.telling.remark(tx, now.conversation, _NO_MEMORY)

        await self.parts.database.write(store, urgent=True)
        self._process = replace(process, session=begun.session)
        return True

    async def _turn(self, now: Situation, process: Process, session: AgentSession, turn: Turn) -> None:
        assert now.agent
        running = RunningTurn(
            self.parts.database, self.parts.progress, self._settling, now.agent, session, process, turn, now.text,
            self._look, self.nudge.take,
        )  # fmt: skip
        try:
            await running.run()
        except AgentBreaksLimits as error:
            await running.break_off(error)
            await self._detach()

    async def _idle(self) -> bool:
        """Wait for something to do; what the agent says meanwhile is dropped. False after a while without anything."""
        session, process = self._session, self._process
        if session is None or process is None or not process.session:
            await self._detach()
            return False
        loop = asyncio.get_running_loop()
        until = loop.time() + self.parts.idle_seconds
        session.next_turn()
        while loop.time() < until and not self.nudge.leave:
            if self.nudge.news:
                return True
            offset = await session.drop()
            if offset is not None:
                await self._write(_save_offset, process, offset)
                await asyncio.sleep(0.2)
            else:
                await session.more(max(0.0, until - loop.time()))
        return False

    async def _failed(self, error: RavebotError) -> bool:
        """Record that something failed; True when something else can be done at once."""
        now = await self._look()
        if now is None or now.turn is None:
            if now is not None and now.process is not None and isinstance(error, ProgramEnded):
                await self._write(self._settling.end_process, now.process, str(error))
            return False
        log.warning("agent's turn can't go on", conversation=self.conversation_id, turn=now.turn.id, error=str(error))
        match error:
            case ProgramEnded() if now.process is not None:
                await self._write(self._ended_by_itself, now, error)
            case AgentUnusable() | OtherHostKey() | NoSshClient() | AgentBreaksLimits() if not now.given:
                await self._write(self._settling.give_up, now.turn, now.process, str(error))
                return True
            case DoorRefused() if not now.given:
                await self._write(self._settling.give_up, now.turn, None, str(error))
                return True
            case OtherHostKey() if now.process is not None:
                await self._write(self._settling.end_process, now.process, str(error))
                return True
            case GuestUnfit() if now.process is not None and not now.given:
                await self._write(self._settling.unfit, now.turn, now.process, str(error))
            case KeyRefused() if not now.given:
                await self._write(self._settling.give_up, now.turn, now.process, str(error))
                return True
            case _:
                if (
                    isinstance(error, GuestError)
                    and not isinstance(error, Unavailable)
                    and now.process
                    and not now.given
                ):
                    await self._write(self._settling.end_process, now.process, str(error))
                await self._write(self._settling.postpone, now.turn, now.process, str(error))
        return False

    def _ended_by_itself(self, tx: Transaction, now: Situation, error: ProgramEnded) -> None:
        assert now.process
        assert now.turn
        self._settling.end_process(tx, now.process, str(error))
        if not now.given:  # it may be started again, a few times
            turn = conversations.turn(tx, now.turn.id)
            if turn is not None and turn.tries >= 2:
                self._settling.give_up(tx, turn, None, f"The agent does not start: {error}.")
            elif turn is not None:
                self._settling.postpone(tx, turn, None, str(error))

    async def _write(self, step: Callable[..., None], *arguments: object) -> None:
        await self.parts.database.write(partial(_call, step, arguments))

    async def _detach(self) -> None:
        session, self._session, self._process = self._session, None, None
        if session is not None:
            await session.attached.close()


def _call(step: Callable[..., None], arguments: tuple[object, ...], tx: Transaction) -> None:
    step(tx, *arguments)


def _save_offset(tx: Transaction, process: Process, offset: int) -> None:
    stored = conversations.process(tx, process.id)
    if stored is not None:
        conversations.save_process(tx, replace(stored, offset=offset))


def _not_configured(now: Situation) -> str:
    return f"no agent called {now.conversation.agent} with `acp` is configured any more"


def _unusable(now: Situation) -> str:
    """Why a turn can't be given at all; empty: it can. What runs already goes on."""
    if now.given:
        return ""
    if now.agent is None:
        return f"The configuration changed: {_not_configured(now)}."
    if now.mr is not None and now.mr.from_fork and not now.agent.forks:
        return f"{now.agent.name} is off in forks: agents[].forks allows it."
    return ""
