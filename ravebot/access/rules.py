"""The contract of the firewall: the rules that the pool wants, as plain data, and what the firewall reports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

GUEST_SSH_PORT = 22
"""The port of a guest's sshd (the guest contract)."""

DNS_PER_SECOND, DNS_BURST = 20, 100
"""Packets per second, and at once, that a guest may send to the host's DNS server. A web page takes a few dozen."""


class Service(StrEnum):
    """What a forwarded port leads to."""

    SSH = "ssh"
    WEB = "web"


@dataclass(frozen=True, order=True)
class Guest:
    """A live machine: only packets with its own address and MAC, on its own interface, are let through."""

    tap: str
    mac: str  # lower case, colons
    address: str


@dataclass(frozen=True, order=True)
class Forward:
    """One port of the host that is forwarded to a guest."""

    service: Service
    port: int
    address: str
    guest_port: int


@dataclass(frozen=True)
class Rules:
    """The whole desired state of one instance's firewall, apart from its static part."""

    guests: frozenset[Guest] = frozenset()
    forwards: frozenset[Forward] = frozenset()


@dataclass(frozen=True)
class Connections:
    """The connections of one source to one port since the last reading; input of the access audit."""

    source: str
    port: int  # of the host
    connections: int  # new ones since the last reading
    dropped: int  # new ones refused by the limit since the last reading
    bytes: int
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True)
class Attempts:
    """New connections to sandboxes since the last reading, whether or not anything answers; retries count again."""

    passed: int = 0  # on to the guest
    refused: int = 0  # from outside of access.allow_from


@dataclass(frozen=True)
class Repair:
    """What one `ensure` changed. `flushed`: the static part was missing or had been altered by someone else."""

    flushed: bool = False
    added: int = 0
    removed: int = 0


class Firewall(Protocol):
    """Keeps `Rules` applied. Raises `Unavailable` if nftables can't be asked."""

    async def open(self) -> None:
        """Write the static part and the policy routing rules, before the first `ensure`. May be called again."""

    async def ensure(self, rules: Rules) -> Repair:
        """Compare, repair and verify. Counters are read before anything is rewritten."""

    async def connections(self) -> tuple[Connections, ...]:
        """What was counted since the last call; each connection is returned once."""

    def attempts(self) -> Mapping[Service, Attempts]:
        """What was counted since the last call, as of the last look at the tables."""

    def changes(self) -> AsyncIterator[None]:
        """Yields when someone else changed the ruleset, so that it is checked at once."""

    async def find_conflicts(self) -> list[str]:
        """Other rules on this host that drop what we accept, each with its fix. Raises Unavailable."""

    @property
    def weakness(self) -> str:
        """The protection that would fail if someone removed the rules, and why; empty if none would."""

    async def close(self) -> None:
        """Stop watching. The rules stay, because sandboxes outlive the bot."""

    async def remove(self) -> tuple[str, ...]:
        """Remove our tables and routing rules once no machine runs; returns descriptions of what was removed."""


class NoFirewall:
    """For `network: none`: machines without a network need no firewall and get no ports."""

    async def open(self) -> None:
        """Nothing to write."""

    async def ensure(self, rules: Rules) -> Repair:
        return Repair()

    async def connections(self) -> tuple[Connections, ...]:
        return ()

    def attempts(self) -> Mapping[Service, Attempts]:
        return {}

    async def changes(self) -> AsyncIterator[None]:
        return
        yield  # makes this a generator, which yields nothing

    async def find_conflicts(self) -> list[str]:
        return []

    @property
    def weakness(self) -> str:
        return ""

    async def close(self) -> None:
        """Nothing to stop."""

    async def remove(self) -> tuple[str, ...]:
        return ()
