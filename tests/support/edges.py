"""Edges in memory, for tests of our own logic where no real part could be made to behave so."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from ravebot.access.rules import Connections, Repair, Rules
from ravebot.errors import GuestError, MachineNotFound, RavebotError, Unavailable
from ravebot.notify.delivery import Sent
from ravebot.providers.base import (
    HostUsage,
    Listing,
    MachineSpec,
    ObservedMachine,
    Provider,
    ProviderEvent,
    RunResult,
    Usage,
)
from ravebot.sandboxes.model import Observed
from ravebot.store.outbox import Message

GIB = 1024**3


def _host_key(name: str) -> str:
    """A machine's own, in the form that SSH has."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + hashlib.sha256(name.encode()).digest()
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


class Guests:
    """A provider whose machines have guests that talk: everything else is done by the provider within.

    libvirt's test driver runs no guests, and a real one can't be told to lie. `fails` names calls that raise.
    """

    def __init__(self, inner: Provider) -> None:
        self.inner = inner
        self.fails: dict[str, RavebotError] = {}
        self.calls: list[tuple[str, str]] = []
        self.silent: set[str] = set()
        self.answering = True
        self.hold: dict[str, asyncio.Event] = {}  # calls that wait until they are let go
        self.host_usage = HostUsage(64 * GIB, 640 * GIB, 0)
        self.authorized: dict[str, tuple[str, ...]] = {}
        self.exit_code = 0
        self.used = Usage(1.5, 32 * 1024**2, 0)
        self.ignores_shutdown = False
        self.keys_of: dict[str, tuple[str, ...]] = {}  # host keys of guests that do not show their own

    async def _called(self, call: str, name: str = "") -> None:
        self.calls.append((call, name))
        if call in self.hold:
            await self.hold[call].wait()
        if call in self.fails:
            raise self.fails[call]

    def count(self, call: str) -> int:
        return sum(1 for one, _ in self.calls if one == call)

    async def open(self) -> None:
        await self._called("open")
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def remove(self) -> tuple[str, ...]:
        await self._called("remove")
        return await self.inner.remove()

    async def connected(self) -> bool:
        return "connected" not in self.fails and await self.inner.connected()

    async def create(self, spec: MachineSpec) -> None:
        await self._called("create", spec.name)
        await self.inner.create(spec)

    async def start(self, name: str) -> None:
        await self._called("start", name)
        await self.inner.start(name)

    async def resume(self, name: str) -> None:
        await self._called("resume", name)
        await self.inner.resume(name)

    async def shutdown(self, name: str) -> None:
        await self._called("shutdown", name)
        if not self.ignores_shutdown:
            await self.inner.destroy(name)

    async def destroy(self, name: str) -> None:
        await self._called("destroy", name)
        await self.inner.destroy(name)

    async def delete(self, name: str) -> None:
        await self._called("delete", name)
        await self.inner.delete(name)

    async def delete_volume(self, volume: str) -> None:
        await self._called("delete_volume", volume)
        await self.inner.delete_volume(volume)

    async def delete_address(self, mac: str) -> None:
        await self._called("delete_address", mac)
        await self.inner.delete_address(mac)

    async def list(self) -> Listing:
        await self._called("list")
        return await self.inner.list()

    async def ping(self, name: str, timeout: timedelta) -> bool:
        await self._called("ping", name)
        return self.answering and name not in self.silent

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        await self._called("run", name)
        if argv[2].lstrip().startswith('if [ -f "$1/status" ]'):  # asked how a job goes
            return RunResult(0, f"{self.exit_code}\nits output\n")
        if "n=$((n + 1))" in argv[2]:  # asked which commands there are
            return RunResult(0, "0\n")
        return RunResult(0, "")

    async def copy_in(self, name: str, source: Path, target: str, *, mode: int = 0o600) -> None:
        await self._called("copy_in", name)
        if not source.is_file():
            raise GuestError(f"nothing to copy at {source}")

    async def authorize_keys(self, name: str, user: str, keys: Sequence[str]) -> None:
        await self._called("authorize_keys", name)
        self.authorized[name] = tuple(keys)

    async def host_keys(self, name: str) -> tuple[str, ...]:
        await self._called("host_keys", name)
        return self.keys_of.get(name, (_host_key(name),))

    async def usage(self, name: str) -> Usage:
        await self._called("usage", name)
        return self.used

    async def host(self) -> HostUsage:
        await self._called("host")
        return self.host_usage

    def events(self) -> AsyncIterator[ProviderEvent]:
        return self.inner.events()


@dataclass
class Shelf:
    """A provider's machines as plain entries: for states that libvirt's test driver does not know."""

    machines: dict[str, ObservedMachine] = field(default_factory=dict)
    volumes: set[str] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)

    def put(self, name: str, state: Observed = Observed.AGENT_SILENT, *, disk: bool = True) -> None:
        self.machines[name] = ObservedMachine(name, f"uuid of {name}", state)
        if disk:
            self.volumes.add(f"{name}.qcow2")

    def set(self, name: str, state: Observed) -> None:
        self.machines[name] = replace(self.machines[name], state=state)

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def connected(self) -> bool:
        return True

    async def create(self, spec: MachineSpec) -> None:
        if spec.name not in self.machines:
            self.put(spec.name, Observed.OFF)

    async def start(self, name: str) -> None:
        self._there(name)
        self.set(name, Observed.AGENT_SILENT)

    async def resume(self, name: str) -> None:
        self._there(name)
        self.set(name, Observed.AGENT_SILENT)

    async def shutdown(self, name: str) -> None:
        self._there(name)

    async def destroy(self, name: str) -> None:
        if name in self.machines:
            self.set(name, Observed.OFF)

    async def delete(self, name: str) -> None:
        self.machines.pop(name, None)
        self.volumes = {volume for volume in self.volumes if name not in volume}

    async def delete_volume(self, volume: str) -> None:
        self.volumes.discard(volume)

    async def delete_address(self, mac: str) -> None:
        self.addresses.discard(mac)

    async def remove(self) -> tuple[str, ...]:
        return ()

    async def list(self) -> Listing:
        return Listing(tuple(self.machines.values()), tuple(sorted(self.volumes)), tuple(sorted(self.addresses)))

    async def ping(self, name: str, timeout: timedelta) -> bool:
        return True

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        return RunResult(0, "")

    async def copy_in(self, name: str, source: Path, target: str, *, mode: int = 0o600) -> None:
        self._there(name)

    async def authorize_keys(self, name: str, user: str, keys: Sequence[str]) -> None:
        self._there(name)

    async def host_keys(self, name: str) -> tuple[str, ...]:
        return (_host_key(name),)

    async def usage(self, name: str) -> Usage:
        self._there(name)
        return Usage(1.0, 1024, 0)

    async def host(self) -> HostUsage:
        return HostUsage(64 * GIB, 640 * GIB, 0)

    async def events(self) -> AsyncIterator[ProviderEvent]:
        return
        yield ProviderEvent("")  # makes this an iterator: nothing ever happens

    def _there(self, name: str) -> None:
        if name not in self.machines:
            raise MachineNotFound(f"no machine {name}")


class Fence:
    """A firewall that holds what it is told; `away` makes it unreachable, `flush` is somebody else's doing."""

    def __init__(self) -> None:
        self.rules = Rules()
        self.history: list[Rules] = []
        self.away = False
        self.there = False  # whether its tables are
        self.conflicts: list[str] = []
        self.weakness = ""
        self._flushed = False
        self.counted: tuple[Connections, ...] = ()

    def flush(self) -> None:
        self.rules, self._flushed = Rules(), True

    @property
    def ports(self) -> set[int]:
        return {forward.port for forward in self.rules.forwards}

    async def open(self) -> None:
        """Nothing to write."""

    async def ensure(self, rules: Rules) -> Repair:
        if self.away:
            raise Unavailable("nftables does not answer")
        repair = Repair(
            self._flushed,
            len(rules.forwards - self.rules.forwards) + len(rules.guests - self.rules.guests),
            len(self.rules.forwards - rules.forwards) + len(self.rules.guests - rules.guests),
        )
        self.rules, self._flushed, self.there = rules, False, True
        self.history.append(rules)
        return repair

    async def connections(self) -> tuple[Connections, ...]:
        if self.away:
            raise Unavailable("nftables does not answer")
        counted, self.counted = self.counted, ()
        return counted

    async def changes(self) -> AsyncIterator[None]:
        return
        yield  # makes this an iterator: nothing ever changes

    async def find_conflicts(self) -> list[str]:
        return self.conflicts

    async def close(self) -> None:
        """Nothing to stop."""

    async def remove(self) -> tuple[str, ...]:
        removed = ("firewall",) if self.there else ()
        self.rules, self.there = Rules(), False
        return removed


class FarEnd:
    """Takes messages, and fails as it is told: each error in `errors` is raised once, for the next send."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.tried: list[tuple[int, float]] = []
        self.errors: list[Exception] = []
        self.refuses: dict[str, Exception] = {}  # by lane, for good
        self.stuck: asyncio.Event | None = None  # sends arrive, and their answers wait for this

    async def send(self, message: Message) -> Sent:
        self.tried.append((message.id, asyncio.get_running_loop().time()))
        if message.lane in self.refuses:
            raise self.refuses[message.lane]
        if self.errors:
            raise self.errors.pop(0)
        self.got.append(message)
        if self.stuck is not None:
            await self.stuck.wait()
        return Sent(f"${message.id}")


class Code:
    """GitLab as the pool needs it: keys by user, and an archive that is always there."""

    def __init__(self) -> None:
        self.keys: dict[int, tuple[str, ...]] = {}
        self.error: RavebotError | None = None
        self.disk_full = False
        self.fetched: list[str] = []

    async def ssh_keys(self, user_id: int) -> tuple[str, ...]:
        if self.error:
            raise self.error
        return self.keys.get(user_id, ())

    async def archive(self, project_id: int, sha: str, target: Path, max_bytes: int) -> int:
        if self.error:
            raise self.error
        if self.disk_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.fetched.append(sha)
        return target.write_bytes(b"an archive")
