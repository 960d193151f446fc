"""What the firewall should hold, as plain facts: the pool computes them, the firewall makes them true."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

GUEST_SSH_PORT = 22
"""Where a guest's sshd listens (the guest contract)."""

DNS_PER_SECOND, DNS_BURST = 20, 100
"""How many packets a guest may send to the host's DNS server. A page of a browser takes a few dozen."""


class Service(StrEnum):
    """What a port leads to."""

    SSH = "ssh"
    WEB = "web"


@dataclass(frozen=True, order=True)
class Guest:
    """A live machine: only its own address, from its own MAC, on its own interface, gets through."""

    tap: str
    mac: str  # lower case, colons
    address: str


@dataclass(frozen=True, order=True)
class Forward:
    """One opened port of the host."""

    service: Service
    port: int
    address: str
    guest_port: int


@dataclass(frozen=True)
class Rules:
    """The whole desired state of one instance's firewall, beside its static part."""

    guests: frozenset[Guest] = frozenset()
    forwards: frozenset[Forward] = frozenset()


@dataclass(frozen=True)
class Connections:
    """Who connected to one of our ports since the last reading: the access audit's raw material."""

    source: str
    port: int  # of the host
    connections: int  # new ones since the last reading
    dropped: int  # new ones refused by the limit since the last reading
    bytes: int
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True)
class Repair:
    """What one `ensure` found and did. `flushed`: the static part was missing or altered by someone else."""

    flushed: bool = False
    added: int = 0
    removed: int = 0


class Firewall(Protocol):
    """Keeps `Rules` true. Raises `Unavailable` when nftables can't be asked."""

    async def open(self) -> None:
        """Write the static part and the policy routing rules; ready for `ensure`. May be called again."""
        ...

    async def ensure(self, rules: Rules) -> Repair:
        """Read what is there, mend what differs, and verify. Counters are read before anything is rewritten."""
        ...

    async def connections(self) -> tuple[Connections, ...]:
        """What was counted since the last call; each connection is returned once."""
        ...

    def changes(self) -> AsyncIterator[None]:
        """Yields when someone else touched the ruleset: look again now."""
        ...

    async def find_conflicts(self) -> list[str]:
        """What else on the host drops what we accept, each with its mend. Raises Unavailable."""
        ...

    @property
    def weakness(self) -> str:
        """What would not hold if someone removed the rules, and why; empty when all would."""
        ...

    async def close(self) -> None:
        """Stop watching. The rules stay: sandboxes outlive the bot."""
        ...

    async def remove(self) -> tuple[str, ...]:
        """Take our tables and routing rules away, when nothing runs any more; returns in words what they were."""
        ...


class NoFirewall:
    """For `network: none`: machines without a network need no guarding, and get no ports."""

    async def open(self) -> None:
        """Nothing to write."""

    async def ensure(self, rules: Rules) -> Repair:
        return Repair()

    async def connections(self) -> tuple[Connections, ...]:
        return ()

    async def changes(self) -> AsyncIterator[None]:
        return
        yield  # makes this an iterator: nothing ever changes

    async def find_conflicts(self) -> list[str]:
        return []

    @property
    def weakness(self) -> str:
        return ""

    async def close(self) -> None:
        """Nothing to stop."""

    async def remove(self) -> tuple[str, ...]:
        return ()
