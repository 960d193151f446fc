"""Passes events of machines from libvirt's event thread to subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import libvirt

from ravebot.providers.base import ProviderEvent
from ravebot.providers.libvirt.connection import Handle

_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: "defined",
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: "undefined",
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
}
_AGENT = {
    libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED: "agent connected",
    libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_DISCONNECTED: "agent disconnected",
}


class Subscription:
    """The events for one listener, in order. To limit their number, only the latest of each machine is kept."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: dict[str, ProviderEvent] = {}
        self._some = asyncio.Event()

    def put_from_any_thread(self, event: ProviderEvent) -> None:
        with suppress(RuntimeError):  # the listener's loop has ended
            self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: ProviderEvent) -> None:
        self._events.pop(event.name, None)
        self._events[event.name] = event
        self._some.set()

    async def take(self) -> tuple[ProviderEvent, ...]:
        """Wait for at least one event and return all."""
        await self._some.wait()
        self._some.clear()
        events, self._events = tuple(self._events.values()), {}
        return events


class Events:
    """Registers with each new connection and passes on the events of our machines."""

    def __init__(self, is_ours: Callable[[str], bool]) -> None:
        self._is_ours = is_ours
        self._subscriptions: set[Subscription] = set()

    def subscribe(self) -> Subscription:
        subscription = Subscription()
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def register(self, handle: Handle) -> None:
        """Register with a new connection, and report that it is new. Called in a worker thread."""
        handle.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
        with suppress(libvirt.libvirtError):  # libvirt's test driver has none of these
            handle.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR, self._io_error, None)
            handle.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, self._agent, None)
        self._tell(ProviderEvent("", "connected"))

    def lost(self) -> None:
        """Report that the connection is lost. May be called in any thread."""
        self._tell(ProviderEvent("", "disconnected"))

    def _lifecycle(self, _handle: Handle, domain: Handle, event: int, _detail: int, _opaque: object) -> None:
        self._tell_of(domain, _LIFECYCLE.get(event, "changed"))

    def _io_error(
        self, _handle: Handle, domain: Handle, _source: str, _alias: str, _action: int, _opaque: object
    ) -> None:
        self._tell_of(domain, "disk error")

    def _agent(self, _handle: Handle, domain: Handle, state: int, _reason: int, _opaque: object) -> None:
        self._tell_of(domain, _AGENT.get(state, "agent changed"))

    def _tell_of(self, domain: Handle, what: str) -> None:
        if self._is_ours(domain.UUIDString()):
            self._tell(ProviderEvent(domain.name(), what))

    def _tell(self, event: ProviderEvent) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.put_from_any_thread(event)
