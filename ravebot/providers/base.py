"""The provider contract: what the pool may ask of whatever runs machines.

Every method may raise `Unavailable` (the connection is down, try later), `MachineNotFound` or another
`ProviderError` (it will not work as asked), and, where the guest is spoken to, `GuestError` or `GuestTimeout`.
Everything is asked by name, and every method may be called again after a crash: doing twice is doing once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from ravebot.sandboxes.model import Observed

OUTPUT_LIMIT_BYTES = 64 * 1024
"""How much of a guest command's output is kept: its end."""


@dataclass(frozen=True)
class MachineSpec:
    """What to create. `name`, `uuid`, `mac`, `address` and `tap` were chosen by us and are already stored."""

    name: str
    uuid: str
    mac: str
    address: str
    tap: str  # host-side interface name, at most 15 characters
    memory_bytes: int
    vcpus: int
    disk_bytes: int
    image: Path  # base of the qcow2 overlay
    kernel: Path | None = None  # with `initrd` and `cmdline`: direct boot
    initrd: Path | None = None
    cmdline: str = ""


@dataclass(frozen=True)
class ObservedMachine:
    """One machine of our instance as the provider sees it, without asking the guest.

    `state` is OFF, CRASHED, PAUSED or AGENT_SILENT (running; whether the agent answers is `ping`'s to say).
    """

    name: str
    uuid: str
    state: Observed
    pause_reason: str = ""  # e.g. "ioerror" when the host's disk is full


@dataclass(frozen=True)
class Listing:
    """Everything of our instance that the provider holds. A listing that failed raises; there are no partial ones."""

    machines: tuple[ObservedMachine, ...]
    volumes: tuple[str, ...] = ()  # disks, by name
    addresses: tuple[str, ...] = ()  # DHCP entries of ours, by MAC


@dataclass(frozen=True)
class Holdings:
    """Everything of one instance that the provider holds, found by the instance's id alone."""

    machines: tuple[ObservedMachine, ...] = ()
    volumes: tuple[str, ...] = ()  # disks, by name
    addresses: tuple[str, ...] = ()  # DHCP entries: MAC and address
    networks: tuple[str, ...] = ()  # in words
    pools: tuple[str, ...] = ()  # storage pools, in words
    bridges: frozenset[str] = frozenset()  # interfaces of the host that the networks are


@dataclass(frozen=True)
class RunResult:
    """A guest command's end. `output` is the last OUTPUT_LIMIT_BYTES of stdout and stderr together, as text."""

    exit_code: int
    output: str


@dataclass(frozen=True)
class Usage:
    """What a machine used since it was started."""

    cpu_seconds: float
    memory_peak_bytes: int
    disk_bytes: int  # really allocated


@dataclass(frozen=True)
class HostUsage:
    """What the host has left. `disk_promised_bytes`: what our overlays may still grow by."""

    memory_available_bytes: int
    disk_free_bytes: int
    disk_promised_bytes: int


@dataclass(frozen=True)
class ProviderEvent:
    """Something happened to a machine (or, with an empty name, to the connection): look again now."""

    name: str
    what: str = ""


class Provider(Protocol):
    """What runs machines."""

    async def open(self) -> None:
        """Connect and prepare what all machines share (storage pool, network). May be called again."""
        ...

    async def close(self) -> None: ...

    async def connected(self) -> bool:
        """Whether the last word from the provider is recent and good."""
        ...

    async def create(self, spec: MachineSpec) -> None:
        """Make the disk, the DHCP entry and the definition, and start nothing. Done already: nothing changes."""
        ...

    async def start(self, name: str) -> None:
        """Start it if it is off."""
        ...

    async def resume(self, name: str) -> None:
        """Go on after a pause."""
        ...

    async def shutdown(self, name: str) -> None:
        """Ask the guest to end itself, by agent and by power button; returns at once, may achieve nothing."""
        ...

    async def destroy(self, name: str) -> None:
        """Pull the plug. Off or absent already: nothing happens."""
        ...

    async def delete(self, name: str) -> None:
        """Remove definition, disks and DHCP entry of a machine, running or not, whatever of them is left."""
        ...

    async def delete_volume(self, volume: str) -> None:
        """Remove a disk of our instance that belongs to no machine."""
        ...

    async def delete_address(self, mac: str) -> None:
        """Remove a DHCP entry of our instance that belongs to no machine."""
        ...

    async def remove(self) -> tuple[str, ...]:
        """Take away what all machines share, until `open` or `create` makes it again; returns in words what it was.

        Raises ProviderError while something of ours is left in it.
        """
        ...

    async def list(self) -> Listing:
        """Everything that carries our instance's tag. Makes nothing: what was taken away stays away.

        Raises Unavailable.
        """
        ...

    async def ping(self, name: str, timeout: timedelta) -> bool:
        """Whether the guest agent answers in time."""
        ...

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        """Run a command in the guest as root and wait for its end; on a timeout it is left running."""
        ...

    async def copy_in(self, name: str, source: Path, target: str, *, mode: int = 0o600) -> None:
        """Write a host file to an absolute path in the guest, by whole-file replacement."""
        ...

    async def authorize_keys(self, name: str, user: str, keys: Sequence[str]) -> None:
        """Make these the only authorized SSH keys of that user."""
        ...

    async def host_keys(self, name: str) -> tuple[str, ...]:
        """The guest's public SSH host keys ("ssh-ed25519 AAAA…", comment cut off), parsed and checked for form."""
        ...

    async def usage(self, name: str) -> Usage: ...

    async def host(self) -> HostUsage: ...

    def events(self) -> AsyncIterator[ProviderEvent]:
        """Lifecycle events as they come; none are replayed, so every reconnect yields one with an empty name."""
        ...


class Remains(Protocol):
    """What an instance has at the provider that left neither database nor configuration.

    Nothing is touched but what carries exactly that instance's id.
    """

    async def look(self) -> Holdings:
        """What there is; makes nothing. Raises Unavailable, ProviderError."""
        ...

    async def delete(self, name: str) -> None:
        """End a machine, running or not, and remove its definition. Its disk is one of the volumes.

        Raises Unavailable, ProviderError.
        """
        ...

    async def delete_volume(self, volume: str) -> None:
        """Remove a disk. Raises Unavailable, ProviderError."""
        ...

    async def remove(self) -> tuple[str, ...]:
        """Take away networks, with their DHCP entries, and storage pools, whose folders stay; returns which, in words.

        Raises ProviderError while a machine or a disk is left.
        """
        ...

    async def close(self) -> None: ...
