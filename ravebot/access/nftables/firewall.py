"""Implements the firewall's contract: keeps tables, routing rules and filters as the pool wants them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import timedelta

import structlog

from ravebot.access.nftables.attempts import AttemptCounters
from ravebot.access.nftables.conflicts import another_instance, conflicts
from ravebot.access.nftables.counts import Count
from ravebot.access.nftables.ingress import Ingress
from ravebot.access.nftables.nft import JsonObject, NetworkTools
from ravebot.access.nftables.reading import Reader
from ravebot.access.nftables.routing import Routing
from ravebot.access.nftables.ruleset import (
    FAMILIES,
    FORWARD_SETS,
    GUEST_SETS,
    GUESTS,
    LIVE,
    SETS,
    TABLE_PREFIX,
    TAPS,
    UNCOUNTED,
    Elements,
    NamedSet,
    Ruleset,
    element_commands,
    elements,
)
from ravebot.access.nftables.snapshot import Form, Snapshot
from ravebot.access.nftables.uplinks import uplinks
from ravebot.access.nftables.visits import Visits
from ravebot.access.nftables.watch import Monitor
from ravebot.access.rules import GUEST_SSH_PORT, Attempts, Connections, Guest, Repair, Rules, Service
from ravebot.clock import Clock
from ravebot.config.model import AccessConfig, BridgeConfig, SandboxConfig
from ravebot.errors import Unavailable
from ravebot.sandboxes import naming

log = structlog.get_logger()

_SLOW_CHECK_EVERY = timedelta(seconds=15)


async def conflicts_on_host(
    tools: NetworkTools, own_table: str, bridge: BridgeConfig, sandbox: SandboxConfig
) -> list[str]:
    """Chains of other tables that drop what we accept, each with its fix. Raises Unavailable."""
    listed, ways_in = await asyncio.gather(tools.ruleset(), uplinks(tools, sandbox.host))
    return conflicts(
        listed,
        own_table=own_table,
        bridge=bridge.name,
        egress=sandbox.egress == "internet",
        ports=(range(span.first, span.last + 1) for span in (sandbox.ssh_ports, sandbox.web_ports)),
        guest_ports=(GUEST_SSH_PORT, sandbox.web_port),
        uplinks=ways_in,
    )


class NftFirewall:
    """Implements `ravebot.access.rules.Firewall` with the nft command.

    `prefix` precedes every command (such as `ip netns exec NAME`). A flush of nftables does not touch the routing rules
    and the ingress filters, so these are checked only every `slow_check_every`, and after each repair; the filters also
    when the bridge or a guest's tap is new.
    """

    def __init__(
        self,
        *,
        instance_id: str,
        bridge: BridgeConfig,
        sandbox: SandboxConfig,
        access: AccessConfig,
        clock: Clock,
        prefix: Sequence[str] = (),
        slow_check_every: timedelta = _SLOW_CHECK_EVERY,
    ) -> None:
        if not naming.is_instance_id(instance_id):
            raise ValueError("an instance id for nftables is made of letters, digits, '.', '_' and '-'")
        self._tools = NetworkTools(prefix)
        self._ruleset = Ruleset(f"{TABLE_PREFIX}{instance_id}", bridge, sandbox, access)
        self._reader = Reader(self._tools, self._ruleset.table, bridge.name)
        self._routing = Routing(self._tools, bridge.name, sandbox)
        self._ingress = Ingress(self._tools, bridge, sandbox)
        self._monitor = Monitor(self._tools)
        self._clock = clock
        self._slow_check_every = slow_check_every.total_seconds()
        self._slow_checked: float | None = None
        self._lock = asyncio.Lock()
        self._forms: Mapping[str, Form] = {}  # as the kernel lists what we wrote; empty before `open`
        self._visits = Visits(self._ruleset.table)
        self._attempts = AttemptCounters()

    async def open(self) -> None:
        """Write the static part and the routing rules; elements of an earlier run stay."""
        async with self._lock:
            await self._open()

    async def ensure(self, rules: Rules) -> Repair:
        """Compare, repair and verify. Raises Unavailable if that fails."""
        wanted = elements(rules)
        async with self._lock:
            if not self._forms:
                await self._open()
            found = await self._look()
            self._check_for_rivals(found)
            flushed = found.forms != self._forms
            added, removed = _differences(wanted, found.elements)
            # A new guest may be on a new bridge.
            repaired = await self._ensure_routing_and_ingress(rules.guests, now=bool(added[TAPS]))
            if flushed:
                await self._rewrite(wanted)
                repaired |= await self._ensure_routing_and_ingress(rules.guests, now=True)
            elif any(added.values()) or any(removed.values()):
                # A new guest must not inherit connections of the last guest with its address, even after a crash.
                await self._forget_connections(str(address) for *_, address in added[GUESTS])
                await self._tools.apply(
                    [
                        *element_commands("delete", self._ruleset.table, removed),
                        *element_commands("add", self._ruleset.table, added),
                    ]
                )
                await self._forget_connections(str(address) for (address,) in removed[LIVE])
                await self._verify(wanted)
            return Repair(flushed=flushed or repaired, added=_count(added), removed=_count(removed))

    async def connections(self) -> tuple[Connections, ...]:
        """What was counted since the last call, also by an earlier run; each connection is returned once.

        `bytes` counts both directions; `dropped` counts every attempt, a client's automatic retries included. The time
        of the last packet is exact to a second. For the first of several connections, it is the previous reading's.
        """
        async with self._lock:
            now = self._clock.now()
            found = await self._look(with_audit=True)
            if "inet" in found.forms:
                if marking := self._visits.mark_reported(found):
                    await self._tools.apply(marking)
                _report(found)
            return self._visits.take_unread(now)

    def attempts(self) -> Mapping[Service, Attempts]:
        return self._attempts.take()

    @property
    def weakness(self) -> str:
        """The protection that would fail after a flush of nftables, and why; empty if none would."""
        return self._ingress.problem

    def changes(self) -> AsyncIterator[None]:
        return self._monitor.changes()

    async def find_conflicts(self) -> list[str]:
        ruleset = self._ruleset
        return await conflicts_on_host(self._tools, ruleset.table, ruleset.bridge, ruleset.sandbox)

    async def close(self) -> None:
        await self._monitor.close()

    async def remove(self) -> tuple[str, ...]:
        """Remove our tables, routing rules and filters. IP forwarding, and what another instance also needs, stays."""
        async with self._lock:
            found = await self._reader.read()
            await self._tools.apply(self._ruleset.delete())
            await self._forget_connections(str(address) for (address,) in found.elements.get(LIVE, ()))
            self._forms = {}
            gone = [f"firewall table {family} {self._ruleset.table}" for family in FAMILIES if family in found.forms]
            if not found.rivals:
                gone += await self._routing.remove()
            taps = [str(tap) for (tap,) in found.elements.get(TAPS, ())]
            gone += await self._ingress.remove(taps if found.rivals else [self._ruleset.bridge.name, *taps])
            return tuple(gone)

    async def _open(self) -> None:
        found = await self._look()
        self._check_for_rivals(found)
        await self._ensure_routing_and_ingress(now=True)
        if not self._forms or found.forms != self._forms:
            await self._rewrite(found.elements)

    async def _forget_connections(self, addresses: Iterable[str]) -> None:
        """Remove ended guests' connections from the kernel's table, where they would stay for up to 5 days."""
        gone = sorted(addresses)
        try:
            if gone:
                await self._tools.forget_connections(gone)
        except Unavailable as error:  # continue: without rules for the guest its connections lead nowhere
            log.warning("connections of ended guests stay in the kernel's table", addresses=gone, reason=str(error))

    async def _ensure_routing_and_ingress(self, guests: frozenset[Guest] = frozenset(), *, now: bool = False) -> bool:
        """Repair the routing rules and ingress filters; returns whether someone had altered them."""
        time = asyncio.get_running_loop().time()
        recent = self._slow_checked is not None and time - self._slow_checked < self._slow_check_every
        if recent and not now:
            return self._ingress.devices_changed(guests) and await self._ingress.ensure(guests)
        rerouted = await self._routing.ensure()
        refiltered = await self._ingress.ensure(guests)
        self._slow_checked = time
        return rerouted or refiltered

    def _check_for_rivals(self, found: Snapshot) -> None:
        if found.rivals:
            raise Unavailable(another_instance(found.rivals[0], self._ruleset.bridge.name))

    async def _look(self, with_audit: bool = False) -> Snapshot:
        found = await self._reader.read(with_audit=with_audit)
        self._attempts.update(found)
        if found.with_audit and "inet" in found.forms:
            self._visits.update(found, self._clock.now())
        return found

    async def _rewrite(self, wanted: Elements) -> None:
        static = self._ruleset.write()
        await self._tools.apply(
            [*static, *element_commands("add", self._ruleset.table, wanted), *self._visits.save_unread()]
        )
        written = await self._verify(wanted)
        for family in FAMILIES:
            if len(written.forms.get(family, ())) != _definitions(static, family):
                raise Unavailable(f"the {family} firewall table was altered while it was written; trying again")
        self._forms = written.forms

    async def _verify(self, wanted: Elements) -> Snapshot:
        found = await self._look()
        added, removed = _differences(wanted, found.elements)
        if any(added.values()) or any(removed.values()):
            raise Unavailable(
                "the firewall does not hold what was just written: someone else is changing it; trying again"
            )
        return found


def _differences(wanted: Elements, found: Elements) -> tuple[Elements, Elements]:
    """What to add and what to remove, for each set."""
    none: frozenset[tuple[str | int, ...]] = frozenset()
    added = {one: wanted.get(one, none) - found.get(one, none) for one in SETS}
    removed = {one: found.get(one, none) - wanted.get(one, none) for one in SETS}
    return added, removed


def _count(changes: Elements) -> int:
    """How many guests and forwards changed: each of them is an element of several sets."""

    def most(group: tuple[NamedSet, ...]) -> int:
        return max(len(changes[one]) for one in group)

    return most(FORWARD_SETS) + most(GUEST_SETS)


def _report(found: Snapshot) -> None:
    """Log what is missing from the audit."""
    missed = {counted: found.uncounted.get(name, Count(0, 0, 0)) for counted, name in UNCOUNTED.items()}
    if any(count.packets for count in missed.values()):
        log.warning(
            "access audit is incomplete: too many visitors at once",
            connections=missed["seen"].packets,
            dropped=missed["dropped"].packets,
            bytes=missed["traffic"].bytes,
        )


def _definitions(commands: list[JsonObject], family: str) -> int:
    """How many tables, sets, chains and rules of that family these commands create."""
    made = [body for command in commands for body in _added(command) if body.get("family") == family]
    return sum("table" in body for body in made) + 1


def _added(command: JsonObject) -> list[JsonObject]:
    added = command.get("add")
    return [body for body in added.values() if isinstance(body, dict)] if isinstance(added, dict) else []
