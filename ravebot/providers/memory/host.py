"""The host of the machines in memory: everything on it, and the instance that each thing belongs to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass, field

from ravebot.errors import ProviderError
from ravebot.providers.base import Holdings, ObservedMachine, ProviderEvent
from ravebot.sandboxes.model import Observed

INSTANCE_ID = "0123456789abcdef"
"""The instance that things belong to by default."""

_WHAT_HAPPENED = {
    Observed.OFF: "stopped",
    Observed.AGENT_SILENT: "started",
    Observed.PAUSED: "suspended",
    Observed.CRASHED: "crashed",
}


@dataclass(frozen=True)
class GuestFile:
    """A file that was copied into a guest."""

    content: bytes
    mode: int


@dataclass
class MemoryMachine:
    """A machine and its guest. `instance_id` is the tag of the instance that made it, empty for someone else's."""

    name: str
    uuid: str
    instance_id: str
    state: Observed
    host_keys: tuple[str, ...]
    pause_reason: str = ""
    authorized: dict[str, tuple[str, ...]] = field(default_factory=dict)  # SSH keys, by user
    files: dict[str, GuestFile] = field(default_factory=dict)  # by absolute path


@dataclass(frozen=True)
class Disk:
    """A disk. The name of a machine's disk contains the machine's name."""

    instance_id: str = INSTANCE_ID
    size_bytes: int = 0


@dataclass(frozen=True)
class MemoryLease:
    """The address that a machine was given."""

    instance_id: str = INSTANCE_ID
    machine: str = ""
    address: str = ""


@dataclass
class MemoryHost:
    """Everything on one host. A test may change it directly, as root can on a real host."""

    machines: dict[str, MemoryMachine] = field(default_factory=dict)  # by name
    volumes: dict[str, Disk] = field(default_factory=dict)  # by name
    addresses: dict[str, MemoryLease] = field(default_factory=dict)  # by MAC
    storage: dict[str, str] = field(default_factory=dict)  # by storage name: the id of the instance that uses it
    listeners: list[tuple[str, asyncio.Queue[ProviderEvent]]] = field(default_factory=list)  # by instance id

    def put(
        self,
        name: str,
        state: Observed = Observed.AGENT_SILENT,
        *,
        instance_id: str = INSTANCE_ID,
        uuid: str = "",
        disk: bool = True,
    ) -> MemoryMachine:
        """Add a machine in that state, with a disk. With an empty `instance_id` it is someone else's."""
        machine = MemoryMachine(name, uuid or f"uuid of {name}", instance_id, state, (_host_key(name),))
        self.machines[name] = machine
        if disk and instance_id:
            self.volumes.setdefault(volume_of(name), Disk(instance_id))
        self._tell(machine, "defined")
        return machine

    def set(self, name: str, state: Observed, pause_reason: str = "") -> None:
        """Change a machine's state: it starts, is paused, crashes or goes off."""
        machine = self.machines[name]
        machine.state, machine.pause_reason = state, pause_reason
        self._tell(machine, _WHAT_HAPPENED.get(state, "changed"))

    def find(self, name: str, instance_id: str) -> MemoryMachine | None:
        """That instance's machine of that name, if there is one. Raises ProviderError when it is another's."""
        machine = self.machines.get(name)
        if machine is not None and machine.instance_id != instance_id:
            raise ProviderError(f"a machine named {name} exists and is not ours: it is left alone")
        return machine

    def undefine(self, name: str) -> None:
        """Remove a machine, running or not, and neither its disk nor its address."""
        machine = self.machines.pop(name, None)
        if machine is not None:
            self._tell(machine, "undefined")

    def holdings(self, instance_id: str) -> Holdings:
        """Everything that belongs to an instance."""
        return Holdings(
            machines=tuple(
                ObservedMachine(one.name, one.uuid, one.state, one.pause_reason)
                for one in self.machines.values()
                if one.instance_id == instance_id
            ),
            volumes=tuple(name for name, disk in self.volumes.items() if disk.instance_id == instance_id),
            addresses=tuple(f"{mac} {one.address}" for mac, one in self.leases(instance_id).items()),
            pools=tuple(f"storage {place}" for place, owner in self.storage.items() if owner == instance_id),
        )

    def leases(self, instance_id: str) -> dict[str, MemoryLease]:
        """The addresses of an instance, by MAC."""
        return {mac: one for mac, one in self.addresses.items() if one.instance_id == instance_id}

    def clear(self, instance_id: str) -> tuple[str, ...]:
        """Remove what an instance's machines share; returns descriptions. Raises ProviderError while one is left."""
        held = self.holdings(instance_id)
        left = (*(machine.name for machine in held.machines), *held.volumes)
        if left:
            raise ProviderError(f"the storage stays: {left[0]} still uses it")
        self.storage = {place: owner for place, owner in self.storage.items() if owner != instance_id}
        for mac in self.leases(instance_id):
            del self.addresses[mac]
        return held.pools

    def _tell(self, machine: MemoryMachine, what: str) -> None:
        for instance_id, queue in self.listeners:
            if instance_id == machine.instance_id:
                queue.put_nowait(ProviderEvent(machine.name, what))


def volume_of(machine: str) -> str:
    """The name of a machine's disk."""
    return f"{machine}.disk"


def _host_key(name: str) -> str:
    """The host key of one machine, in SSH's form."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + hashlib.sha256(name.encode()).digest()
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"
