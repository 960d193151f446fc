"""Who may have a machine now: places, memory and disk that is promised, ports, and the queue."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.clock import Wait
from ravebot.providers.base import HostUsage
from ravebot.sandboxes.model import Machine, Sandbox, SandboxState

MEMORY_RESERVE_BYTES = 256 * 1024**2
"""Memory reserved for the host itself, beside what is already in use."""


def shortage(host: HostUsage, machines: Iterable[Machine], memory_bytes: int, disk_bytes: int) -> str:
    """Why the host can't take one more machine that needs so much, in words for people; empty when it can."""
    growth = sum(max(0, machine.memory_bytes - machine.memory_peak_bytes) for machine in machines)
    memory = host.memory_available_bytes - growth - MEMORY_RESERVE_BYTES
    if memory < memory_bytes:
        return f"the host is short of memory: {_gib(max(0, memory))} left, {_gib(memory_bytes)} needed"
    disk = host.disk_free_bytes - host.disk_promised_bytes
    if disk < disk_bytes:
        return f"the host is short of disk: {_gib(max(0, disk))} not promised yet, {_gib(disk_bytes)} needed"
    return ""


def too_large(host: HostUsage, machines: Iterable[Machine], memory_bytes: int, disk_bytes: int) -> str:
    """Why the host can't take a machine of that size even when all of these are gone; empty when it can."""
    ours = list(machines)
    used = sum(min(machine.memory_bytes, machine.memory_peak_bytes) for machine in ours)
    memory = max(0, host.memory_available_bytes + used - MEMORY_RESERVE_BYTES)
    if memory < memory_bytes:
        return f"the host is too small for it: at most {_gib(memory)} of memory, {_gib(memory_bytes)} needed"
    disk = max(0, host.disk_free_bytes - host.disk_promised_bytes + sum(machine.disk_bytes for machine in ours))
    if disk < disk_bytes:
        return f"the host is too small for it: at most {_gib(disk)} of disk, {_gib(disk_bytes)} needed"
    return ""


PASSED_FOR = timedelta(minutes=30)
"""How long smaller sandboxes may start before a larger one that the host has no room for yet."""


def may_be_passed(sandbox: Sandbox, now: datetime) -> bool:
    """Whether smaller sandboxes may start before this one, which is larger than usual and does not fit.

    Only for a while: after that, nobody behind it starts before it, so that what ends makes room for it. That is
    bounded too: each running sandbox ends by its lifetime, and one that would not fit even then is `too_large`.
    """
    return not Wait(sandbox.state_since, sandbox.state_since + PASSED_FOR).is_over(now)


def _gib(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB"


def admit(sandboxes: Iterable[Sandbox], machines: Iterable[Machine], max_running: int, now: datetime) -> list[Sandbox]:
    """The queued sandboxes that have a place now, oldest first.

    A machine takes its place until it is gone. A sandbox whose predecessor on the same merge request still stops, or
    that waits after a failed build, lets others pass.
    """
    everything = list(sandboxes)
    free = max_running - sum(1 for _ in machines)
    stopping = {sandbox.mr for sandbox in everything if sandbox.state is SandboxState.STOPPING}
    admitted: list[Sandbox] = []
    for sandbox in everything:
        if len(admitted) >= free:
            break
        # The pause began when it was queued.
        waits = sandbox.not_before is not None and not Wait(sandbox.state_since, sandbox.not_before).is_over(now)
        if sandbox.state is SandboxState.QUEUED and sandbox.mr not in stopping and not waits:
            admitted.append(sandbox)
    return admitted


@dataclass(frozen=True)
class QueuePlace:
    """Where in the queue a sandbox stands: 1 is next; `wait` is an estimate."""

    position: int
    wait: timedelta


def queue(
    sandboxes: Iterable[Sandbox], max_running: int, lifetime: timedelta, now: datetime
) -> Mapping[int, QueuePlace]:
    """The place of every queued sandbox, by its id: a running one that expires first frees the first place."""
    everything = list(sandboxes)
    waiting = [sandbox for sandbox in everything if sandbox.state is SandboxState.QUEUED]
    others = [sandbox for sandbox in everything if sandbox.state is not SandboxState.QUEUED]
    return {sandbox.id: place(n, others, max_running, lifetime, now) for n, sandbox in enumerate(waiting, 1)}


def place(position: int, others: Iterable[Sandbox], max_running: int, lifetime: timedelta, now: datetime) -> QueuePlace:
    """The place of the n-th sandbox in the queue (`position`), while the `others` have a machine."""
    ends = sorted(
        max(now, sandbox.expires_at or now + lifetime)
        for sandbox in others
        if sandbox.state in (SandboxState.STARTING, SandboxState.READY)
    )
    free = [now] * max(0, max_running - len(ends))  # one that stops frees its place in seconds
    places = sorted(free + ends)[-max_running:]  # above the limit, the first ones to end free no place
    rounds, slot = divmod(position - 1, len(places))
    return QueuePlace(position, places[slot] - now + rounds * lifetime)


def pick_port(ports: Iterable[int], taken: frozenset[int], last_use: Mapping[int, int]) -> int | None:
    """The least recently used free port; None when every one is taken."""
    free = [port for port in ports if port not in taken]
    return min(free, key=lambda port: (last_use.get(port, 0), port), default=None)


def pick_address(subnet: ipaddress.IPv4Network, taken: frozenset[str], last: str | None) -> str | None:
    """The next free guest address after the one given out last; the subnet's first is the bridge's own."""
    first, end = int(subnet.network_address) + 2, int(subnet.broadcast_address)
    count = end - first
    start = int(ipaddress.IPv4Address(last)) + 1 - first if last else 0
    for step in range(count):
        address = str(ipaddress.IPv4Address(first + (start + step) % count))
        if address not in taken:
            return address
    return None
