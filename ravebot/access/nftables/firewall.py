"""The firewall as observed state: keeps one instance's tables, routing rules and filters as the pool wants them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import timedelta

import structlog

from ravebot.access.nftables.conflicts import another_instance, conflicts
from ravebot.access.nftables.counts import Count
from ravebot.access.nftables.ingress import Ingress
from ravebot.access.nftables.nft import JsonObject, NetworkTools
from ravebot.access.nftables.reading import Reader
from ravebot.access.nftables.routing import Routing
from ravebot.access.nftables.ruleset import (
    FAMILIES,
    GUESTS,
    LIVE,
    OF_FORWARDS,
    OF_GUESTS,
    SETS,
    TABLE_PREFIX,
    TAPS,
    UNCOUNTED,
    Elements,
    Ruleset,
    SetOf,
    element_commands,
    elements,
)
from ravebot.access.nftables.snapshot import Form, Snapshot
from ravebot.access.nftables.uplinks import uplinks
from ravebot.access.nftables.visits import Visits
from ravebot.access.nftables.watch import Monitor
from ravebot.access.rules import GUEST_SSH_PORT, Connections, Guest, Repair, Rules
from ravebot.clock import Clock
from ravebot.config.model import AccessConfig, BridgeConfig, SandboxConfig
from ravebot.errors import Unavailable
from ravebot.sandboxes import naming

log = structlog.get_logger()

_UNFLUSHED_EVERY = timedelta(seconds=15)


async def conflicts_on_host(
    tools: NetworkTools, own_table: str, bridge: BridgeConfig, sandbox: SandboxConfig
) -> list[str]:
    """Other tables' chains that would drop what we accept, each with its mend. Raises Unavailable."""
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
    """`ravebot.access.rules.Firewall` over the nft command.

    `prefix` goes before every command (such as `ip netns exec NAME`). What a flush of nftables does not touch, the
    routing rules and the ingress filters, is looked at no more often than every `unflushed_every`, and after each
    repair; the filters also when the bridge or a guest's tap has come since.
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
        unflushed_every: timedelta = _UNFLUSHED_EVERY,
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
        self._unflushed_every = unflushed_every.total_seconds()
        self._unflushed_checked: float | None = None
        self._lock = asyncio.Lock()
        self._forms: Mapping[str, Form] = {}  # as the kernel lists what we wrote; empty before `open`
        self._visits = Visits(self._ruleset.table)

    async def open(self) -> None:
        """Write the static part and the routing rules; elements that are there (an earlier run's) stay."""
        async with self._lock:
            await self._open()

    async def ensure(self, rules: Rules) -> Repair:
        """Read what is there, mend what differs, and verify; raises Unavailable when that can't be done."""
        wanted = elements(rules)
        async with self._lock:
            if not self._forms:
                await self._open()
            found = await self._look()
            self._insist_on_the_bridge(found)
            flushed = found.forms != self._forms
            added, removed = _differences(wanted, found.elements)
            # A new guest may be on a bridge that is new itself.
            mended = await self._ensure_unflushed(rules.guests, now=bool(added[TAPS]))
            if flushed:
                await self._rewrite(wanted)
                mended |= await self._ensure_unflushed(rules.guests, now=True)
            elif any(added.values()) or any(removed.values()):
                # A new guest must not inherit entries of the last one with its address, even after a crash.
                await self._forget_connections(str(address) for *_, address in added[GUESTS])
                await self._tools.apply(
                    [
                        *element_commands("delete", self._ruleset.table, removed),
                        *element_commands("add", self._ruleset.table, added),
                    ]
                )
                await self._forget_connections(str(address) for (address,) in removed[LIVE])
                await self._verify(wanted)
            return Repair(flushed=flushed or mended, added=_count(added), removed=_count(removed))

    async def connections(self) -> tuple[Connections, ...]:
        """What was counted since the last call, also by an earlier run; each connection is returned once.

        `bytes` are those of both directions; `dropped` counts every try, a client's own repeats included. Times are as
        exact as the kernel's counters: a second for the last packet, and for the first of several connections the
        previous reading.
        """
        async with self._lock:
            now = self._clock.now()
            found = await self._look(books=True)
            if "inet" in found.forms:
                if settled := self._visits.settle(found):
                    await self._tools.apply(settled)
                _report(found)
            return self._visits.hand_out(now)

    @property
    def weakness(self) -> str:
        """What would not hold after a flush of nftables, and why; empty when all would."""
        return self._ingress.problem

    def changes(self) -> AsyncIterator[None]:
        """Yields when someone else touched the ruleset: look again now."""
        return self._monitor.changes()

    async def find_conflicts(self) -> list[str]:
        """Other tables' chains that would drop what we accept, each with the command that mends it."""
        ruleset = self._ruleset
        return await conflicts_on_host(self._tools, ruleset.table, ruleset.bridge, ruleset.sandbox)

    async def close(self) -> None:
        """Stop watching. The rules stay: sandboxes outlive the bot."""
        await self._monitor.close()

    async def remove(self) -> tuple[str, ...]:
        """Take our tables, routing rules and filters away; what another instance needs too, and forwarding, stays."""
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
        self._insist_on_the_bridge(found)
        await self._ensure_unflushed(now=True)
        if not self._forms or found.forms != self._forms:
            await self._rewrite(found.elements)

    async def _forget_connections(self, addresses: Iterable[str]) -> None:
        """Take gone guests' entries, which would stay for up to 5 days, from the kernel's connection table."""
        gone = sorted(addresses)
        try:
            if gone:
                await self._tools.forget_connections(gone)
        except Unavailable as error:  # go on: without rules for the guest its entries lead nowhere
            log.warning("gone guests' entries stay in the connection table", addresses=gone, reason=str(error))

    async def _ensure_unflushed(self, guests: frozenset[Guest] = frozenset(), *, now: bool = False) -> bool:
        """Mend what a flush of nftables leaves alone; whether someone had touched it."""
        time = asyncio.get_running_loop().time()
        recent = self._unflushed_checked is not None and time - self._unflushed_checked < self._unflushed_every
        if recent and not now:
            return self._ingress.awaits(guests) and await self._ingress.ensure(guests)
        rerouted = await self._routing.ensure()
        refiltered = await self._ingress.ensure(guests)
        self._unflushed_checked = time
        return rerouted or refiltered

    def _insist_on_the_bridge(self, found: Snapshot) -> None:
        if found.rivals:
            raise Unavailable(another_instance(found.rivals[0], self._ruleset.bridge.name))

    async def _look(self, books: bool = False) -> Snapshot:
        found = await self._reader.read(books=books)
        if found.with_books and "inet" in found.forms:
            self._visits.note(found, self._clock.now())
        return found

    async def _rewrite(self, wanted: Elements) -> None:
        static = self._ruleset.write()
        await self._tools.apply(
            [*static, *element_commands("add", self._ruleset.table, wanted), *self._visits.carry_over()]
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
    added = {of: wanted.get(of, none) - found.get(of, none) for of in SETS}
    removed = {of: found.get(of, none) - wanted.get(of, none) for of in SETS}
    return added, removed


def _count(changes: Elements) -> int:
    """How many guests and forwards are concerned: each is an element in several sets."""

    def most(group: tuple[SetOf, ...]) -> int:
        return max(len(changes[of]) for of in group)

    return most(OF_FORWARDS) + most(OF_GUESTS)


def _report(found: Snapshot) -> None:
    """Say in the log what the audit will not hold."""
    missed = {of: found.uncounted.get(name, Count(0, 0, 0)) for of, name in UNCOUNTED.items()}
    if any(count.packets for count in missed.values()):
        log.warning(
            "access audit is incomplete: more visitors at a time than it holds",
            connections=missed["seen"].packets,
            dropped=missed["dropped"].packets,
            bytes=missed["traffic"].bytes,
        )


def _definitions(commands: list[JsonObject], family: str) -> int:
    """How many tables, sets, chains and rules these commands leave in that family."""
    made = [body for command in commands for body in _added(command) if body.get("family") == family]
    return sum("table" in body for body in made) + 1


def _added(command: JsonObject) -> list[JsonObject]:
    added = command.get("add")
    return [body for body in added.values() if isinstance(body, dict)] if isinstance(added, dict) else []
