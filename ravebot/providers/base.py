"""The provider contract: what the pool may ask of the part that runs machines.

Every method may raise `Unavailable` (the connection is down, try later), `MachineNotFound` or another
`ProviderError` (the request can't be fulfilled), and, if it talks to the guest, `GuestError` or `GuestTimeout`.
Machines are addressed by name. Every method is idempotent, so it may be called again after a crash.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from ravebot.sandboxes.model import Observed

OUTPUT_LIMIT_BYTES = 64 * 1024
"""How much of a guest command's output is kept: the last part."""


@dataclass(frozen=True)
class MachineSpec:
    """What to create. `name`, `uuid`, `mac`, `address` and `tap` are chosen by us and already stored."""

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

    `state` is OFF, CRASHED, PAUSED or AGENT_SILENT (running; only `ping` tells whether the agent answers).
    """

    name: str
    uuid: str
    state: Observed
    pause_reason: str = ""  # e.g. "ioerror" when the host's disk is full


@dataclass(frozen=True)
class Listing:
    """Everything of our instance that the provider holds. It is complete: a listing that fails raises an error."""

    machines: tuple[ObservedMachine, ...]
    volumes: tuple[str, ...] = ()  # disks, by name
    addresses: tuple[str, ...] = ()  # DHCP entries of ours, by MAC


@dataclass(frozen=True)
class Holdings:
    """Everything of one instance that the provider holds, found by the instance's id alone."""

    machines: tuple[ObservedMachine, ...] = ()
    volumes: tuple[str, ...] = ()  # disks, by name
    addresses: tuple[str, ...] = ()  # DHCP entries: MAC and address
    networks: tuple[str, ...] = ()  # descriptions for people
    pools: tuple[str, ...] = ()  # storage pools, as descriptions for people
    bridges: frozenset[str] = frozenset()  # the networks' interfaces on the host


@dataclass(frozen=True)
class RunResult:
    """The result of a guest command. `output` is the last OUTPUT_LIMIT_BYTES of stdout and stderr together, as text."""

    exit_code: int
    output: str


@dataclass(frozen=True)
class Console:
    """What a machine printed on its console. `tail`: the end, as text; empty if there is none, or it can't be read.

    `where`: where all of it is, for operators.
    """

    tail: str
    where: str


@dataclass(frozen=True)
class Usage:
    """What a machine used since it was started."""

    cpu_seconds: float
    memory_peak_bytes: int
    disk_bytes: int  # actually allocated
    received_bytes: int = 0  # by the guest from its network; 0 without one
    sent_bytes: int = 0
    open_files: int = 0  # descriptors of the machine's own process; 0: not known


@dataclass(frozen=True)
class HostUsage:
    """What the host has free. `disk_promised_bytes`: by how much our overlays may still grow."""

    memory_available_bytes: int
    disk_free_bytes: int
    disk_promised_bytes: int


@dataclass(frozen=True)
class ProviderEvent:
    """Something happened to a machine (or, with an empty name, to the connection), which should be checked now."""

    name: str
    what: str = ""


class Provider(Protocol):
    """Runs machines."""

    async def open(self) -> None:
        """Connect and prepare what all machines share (storage pool, network). May be called again."""

    async def close(self) -> None: ...

    async def connected(self) -> bool:
        """Whether the provider answers."""

    async def create(self, spec: MachineSpec) -> None:
        """Make the disk, the DHCP entry and the definition, if they are missing; starts nothing."""

    async def start(self, name: str) -> None:
        """Start it if it is off."""

    async def resume(self, name: str) -> None:
        """Continue after a pause."""

    async def shutdown(self, name: str) -> None:
        """Ask the guest to shut down, by agent and by power button. Returns at once; the guest may ignore it."""

    async def destroy(self, name: str) -> None:
        """Power it off at once; does nothing if it is off or absent."""

    async def delete(self, name: str) -> None:
        """Remove a machine, running or not: its definition, disks and DHCP entry, if they exist."""

    async def delete_volume(self, volume: str) -> None:
        """Remove a disk of our instance that belongs to no machine."""

    async def delete_address(self, mac: str) -> None:
        """Remove a DHCP entry of our instance that belongs to no machine."""

    async def remove(self) -> tuple[str, ...]:
        """Remove what all machines share, until `open` or `create` makes it again; returns descriptions of it.

        Raises ProviderError while it still contains something of ours.
        """

    async def list(self) -> Listing:
        """Everything that carries our instance's tag; makes nothing that is missing. Raises Unavailable."""

    async def ping(self, name: str, timeout: timedelta) -> bool:
        """Whether the guest agent answers in time."""

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        """Run a command in the guest as root and wait until it ends; after a timeout it keeps running."""

    async def copy_in(self, name: str, source: Path, target: str, *, mode: int = 0o600) -> bool:
        """Write a host file to an absolute path in the guest, by whole-file replacement.

        Returns whether it took a faster way than the agent's channel, as providers have for large files.
        """

    async def copy_out(self, name: str, source: str, *, max_bytes: int) -> bytes:
        """Read a file at an absolute path in the guest, as root. Raises GuestError if it is missing or is larger."""

    async def authorize_keys(self, name: str, user: str, keys: Sequence[str]) -> None:
        """Make these the only authorized SSH keys of that user."""

    async def host_keys(self, name: str) -> tuple[str, ...]:
        """The guest's public SSH host keys ("ssh-ed25519 AAAA…", without comment), checked for correct form."""

    async def console(self, name: str) -> Console:
        """What it printed on its console; also after it was removed. Raises nothing."""

    async def usage(self, name: str) -> Usage: ...

    async def host(self) -> HostUsage: ...

    def events(self) -> AsyncIterator[ProviderEvent]:
        """Lifecycle events as they come. None are replayed: every reconnect yields one with an empty name."""


class Remains(Protocol):
    """Finds and removes what the provider holds of an instance whose database and configuration are lost.

    It touches only what carries exactly that instance's id.
    """

    async def look(self) -> Holdings:
        """Find what there is; changes nothing. Raises Unavailable, ProviderError."""

    async def delete(self, name: str) -> None:
        """End a machine, running or not, and remove its definition. Its disk, one of the volumes, stays.

        Raises Unavailable, ProviderError.
        """

    async def delete_volume(self, volume: str) -> None:
        """Remove a disk. Raises Unavailable, ProviderError."""

    async def remove(self) -> tuple[str, ...]:
        """Remove networks with their DHCP entries, and storage pools without their folders; returns descriptions.

        Raises ProviderError while a machine or a disk is left.
        """

    async def close(self) -> None: ...
