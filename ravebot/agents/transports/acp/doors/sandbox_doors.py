"""Which doors stand in which sandboxes: made before an agent gets its turn, made again when they fall, closed when no
conversation needs them or the sandbox is gone.

Nothing of it is stored: after a crash they are made anew. A client that an earlier process left ends by itself, because
its input is closed.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ravebot.agents.model import ConversationId
from ravebot.agents.transports.acp.control import (
    PATIENCE_SECONDS,
    ControlConnections,
    Destination,
    KeyRefused,
    RemoteForward,
)
from ravebot.agents.transports.acp.doors.forward import ForwardFailed, StandingForward, open_forward
from ravebot.agents.transports.acp.doors.served import ServedDoor
from ravebot.agents.transports.contract import DoorServer
from ravebot.backoff import Backoff
from ravebot.config.model import AgentConfig
from ravebot.errors import RavebotError, StoreError
from ravebot.sandboxes.model import Machine, MachineId, MachineState, SandboxId, SandboxState
from ravebot.store import machines, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.owner import give

log = structlog.get_logger()

FOLDER = "doors"
"""In the state folder: a folder for each machine, in which the sockets are."""
_LOOK_SECONDS = 5.0
_BEGINS = 8
"""Clients that are started at once."""
TRIES_IF_TAKEN = Backoff.growing(0.5, 4.0)
"""The port may still be held by a connection of ravebot's own that has just ended."""
_TRIES = 5
GRACE_SECONDS = 30.0
"""How long doors stand that nobody needs: an agent at work has them also while its own connection is made again."""
_PAUSES = Backoff.growing(0.5, 60.0)
_LONG_SECONDS = 60.0
"""Doors that stood for so long fell for no reason of the guest's."""


class DoorRefused(RavebotError):
    """A door can't be made in a sandbox until a person does what the text says."""


@dataclass(frozen=True)
class DoorsNeeded:
    """A conversation whose agent works, or is about to, in that machine. `where`: how the machine is reached."""

    conversation_id: ConversationId
    agent: AgentConfig
    sandbox_id: SandboxId
    machine: Machine
    where: Destination


@dataclass
class _Standing:
    """The doors of one machine; `lock` is held while they are changed."""

    sandbox_id: SandboxId
    machine: Machine
    where: Destination
    holders: dict[ConversationId, frozenset[str]] = field(default_factory=dict)
    served: dict[str, ServedDoor] = field(default_factory=dict)
    forwards: dict[StandingForward, frozenset[str]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    failures: int = 0
    not_before: float = 0.0
    free_since: float = 0.0
    gone: bool = False

    @property
    def missing(self) -> frozenset[str]:
        """The doors that a conversation needs and that do not stand."""
        wanted = frozenset[str]().union(*self.holders.values())
        return wanted.difference(*(names for forward, names in self.forwards.items() if forward.stands))


class SandboxDoors:
    """Makes, keeps and closes doors. `servers`: what is behind each."""

    def __init__(
        self,
        database: Database,
        connections: ControlConnections,
        servers: Sequence[DoorServer],
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        tries_if_taken: Backoff = TRIES_IF_TAKEN,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._database = database
        self._connections = connections
        self._servers = {server.name: server for server in servers}
        self._patience_seconds = patience_seconds
        self._tries_if_taken = tries_if_taken
        self._grace_seconds = grace_seconds
        self._standing: dict[MachineId, _Standing] = {}
        self._news = asyncio.Event()
        self._begins = asyncio.Semaphore(_BEGINS)
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, agent: AgentConfig) -> frozenset[str]:
        """The doors that an agent gets."""
        return frozenset(name for name, server in self._servers.items() if server.is_for(agent))

    def urls(self, agent: AgentConfig) -> Mapping[str, str]:
        """Where an agent finds its doors in the guest, by their names."""
        servers = (self._servers[name] for name in sorted(self.of(agent)))
        return {server.name: f"http://127.0.0.1:{server.port}{server.path}" for server in servers}

    async def ensure(self, needs: DoorsNeeded) -> None:
        """Returns when the agent's doors stand in that machine; they are kept until the conversation is released.

        Raises DoorRefused, Unavailable, OtherHostKey, KeyRefused, NoSshClient.
        """
        while (standing := self._hold(needs)) is not None:
            if standing.machine.restarts != needs.machine.restarts:
                await self._close(standing, keep=False)
                continue
            async with standing.lock:
                if standing.gone:
                    continue
                if missing := standing.missing:
                    await self._make_patiently(standing, missing)
                return

    def hold(self, needs: DoorsNeeded) -> None:
        """The same for an agent that is at work already: without waiting, and as well as it goes."""
        self._hold(needs)
        self._news.set()

    def release(self, conversation_id: ConversationId) -> None:
        """A conversation needs no doors any more."""
        for standing in self._standing.values():
            if standing.holders.pop(conversation_id, None) is not None:
                standing.free_since = asyncio.get_running_loop().time()
        self._news.set()

    def clear(self) -> None:
        """Remove what an earlier run left; may block."""
        shutil.rmtree(self._connections.state_dir / FOLDER, ignore_errors=True)

    async def run(self) -> None:
        """Run until cancelled; closes all doors then."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._news.clear()
                    try:
                        await self._look(group)
                    except StoreError as error:
                        log.warning("the agents' doors wait for the database", error=str(error))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._until_due()):
                            await self._news.wait()
        finally:
            for standing in tuple(self._standing.values()):
                await self._close(standing, keep=False)

    async def _look(self, group: asyncio.TaskGroup) -> None:
        """Close what is not needed or has no sandbox any more; make again what fell."""
        known = tuple(self._standing.values())
        if not known:
            return
        live = await self._database.read(lambda tx: {one.machine.id for one in known if _is_live(tx, one)})
        now = asyncio.get_running_loop().time()
        for standing in known:
            if standing.lock.locked():
                continue
            is_free = not standing.holders and now - standing.free_since >= self._grace_seconds
            if standing.machine.id not in live or is_free:
                await self._close(standing, keep=standing.machine.id in live)
            elif standing.missing and now >= standing.not_before:
                group.create_task(self._mend(standing))

    def _until_due(self) -> float:
        now = asyncio.get_running_loop().time()
        waits = [one.not_before - now for one in self._standing.values() if one.missing and not one.lock.locked()]
        waits += [one.free_since + self._grace_seconds - now for one in self._standing.values() if not one.holders]
        return max(0.05, min([_LOOK_SECONDS, *waits]))

    async def _mend(self, standing: _Standing) -> None:
        async with standing.lock:
            if standing.gone or not (missing := standing.missing):
                return
            try:
                await self._make(standing, missing)
            except RavebotError as error:
                self._put_off(standing)
                log.warning(
                    "the agents' doors could not be made again", machine=standing.machine.name, error=str(error)
                )
            # A bug that a guest triggers must not end the bot.
            except Exception:
                self._put_off(standing)
                log.exception(
                    "the agents' doors can't be made: this is a bug of ravebot's", machine=standing.machine.name
                )

    def _put_off(self, standing: _Standing) -> None:
        standing.failures += 1
        standing.not_before = asyncio.get_running_loop().time() + _PAUSES.after(standing.failures)

    def _hold(self, needs: DoorsNeeded) -> _Standing | None:
        wanted, machine = self.of(needs.agent), needs.machine
        for other in self._standing.values():
            if other.machine.id != machine.id:
                other.holders.pop(needs.conversation_id, None)
        if not wanted:
            return None
        standing = self._standing.get(machine.id)
        if standing is None:
            standing = self._standing[machine.id] = _Standing(needs.sandbox_id, machine, needs.where)
        standing.holders[needs.conversation_id] = wanted
        return standing

    async def _make_patiently(self, standing: _Standing, names: frozenset[str]) -> None:
        """Make doors; a port that is taken is tried a few times."""
        for tries in range(1, _TRIES + 1):
            try:
                await self._make(standing, names)
                return
            except ForwardFailed as error:
                if tries == _TRIES or (not error.taken and tries == 2):
                    self._put_off(standing)
                    raise self._refused(error) from error
            except KeyRefused:
                self._put_off(standing)
                raise
            await asyncio.sleep(self._tries_if_taken.after(tries))

    def _refused(self, error: ForwardFailed) -> DoorRefused:
        name = next((one.name for one in self._servers.values() if one.port == error.port), "")
        door = f"The agent's door `{name}`" if name else "A door of the agent's"
        if error.taken:
            return DoorRefused(
                f"{door} can't be opened in the sandbox: another program there listens on 127.0.0.1:{error.port}. End "
                "that program, or rebuild the sandbox, and ask again."
            )
        return DoorRefused(
            f"{door} can't be opened in the sandbox: its SSH server refuses to forward 127.0.0.1:{error.port}. Allow "
            "remote forwards in the image (OpenSSH: AllowTcpForwarding yes; dropbear: without -k), rebuild the "
            "sandbox, and ask again."
        )

    async def _make(self, standing: _Standing, names: frozenset[str]) -> None:
        """Make these doors; the caller holds the lock."""
        folder = f"{FOLDER}/{standing.machine.name}"
        for name in sorted(names - standing.served.keys()):
            await asyncio.to_thread(_make_folder, self._connections.state_dir, folder)
            served = ServedDoor(self._servers[name], standing.sandbox_id, self._connections.state_dir / folder)
            standing.served[name] = served
            try:
                await served.begin()
            except BaseException:  # also when it is cancelled: no socket may be left behind
                del standing.served[name]
                await served.close()
                raise
        wanted = [RemoteForward(self._servers[name].port, f"{folder}/{name}.sock") for name in sorted(names)]
        for old in [one for one in standing.forwards if not one.stands]:
            del standing.forwards[old]
            await old.close()
        async with self._begins:
            forward = await open_forward(self._connections, standing.where, wanted, self._patience_seconds)
        standing.forwards[forward] = names
        task = asyncio.create_task(self._watch(standing, forward))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        log.debug("the agents' doors stand", machine=standing.machine.name, doors=sorted(names))

    async def _watch(self, standing: _Standing, forward: StandingForward) -> None:
        """A guest that has its doors fall again and again gets them again more and more slowly."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await forward.ended()
        if loop.time() - began > _LONG_SECONDS:
            standing.failures, standing.not_before = 0, 0.0
        else:
            self._put_off(standing)
        self._news.set()

    async def _close(self, standing: _Standing, *, keep: bool) -> None:
        """Close a machine's doors, also if whoever waits for that is cancelled; `keep`: they are made again for whoever
        came to need them meanwhile."""
        task = asyncio.create_task(self._close_all(standing, keep=keep))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _close_all(self, standing: _Standing, *, keep: bool) -> None:
        async with standing.lock:
            if standing.gone:
                return
            standing.gone = True
            try:
                for forward in tuple(standing.forwards):
                    await forward.close()
                for served in tuple(standing.served.values()):
                    await served.close()
                folder = self._connections.state_dir / FOLDER / standing.machine.name
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            finally:
                del self._standing[standing.machine.id]
            if keep and standing.holders:
                again = _Standing(standing.sandbox_id, standing.machine, standing.where, standing.holders)
                self._standing[standing.machine.id] = again
                self._news.set()


def _is_live(tx: Transaction, standing: _Standing) -> bool:
    """Whether the sandbox still has that machine, in the boot in which it had it."""
    sandbox = sandboxes.get(tx, standing.sandbox_id)
    machine = machines.get(tx, standing.machine.id)
    return (
        sandbox is not None
        and machine is not None
        and sandbox.state is SandboxState.READY
        and sandbox.machine_id == machine.id
        and machine.state is MachineState.LEASED
        and machine.restarts == standing.machine.restarts
    )


def _make_folder(state_dir: Path, folder: str) -> None:
    for path in (state_dir / FOLDER, state_dir / folder):
        if not path.exists():
            path.mkdir(mode=0o700)
            give(path)
