"""The domains of our instance, which are found by the tag in their metadata; other domains are never touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from string import ascii_lowercase
from xml.etree import ElementTree

import libvirt

from ravebot.errors import MachineNotFound, ProviderError
from ravebot.providers.base import ObservedMachine
from ravebot.providers.libvirt.connection import Handle, found
from ravebot.providers.libvirt.definitions import NAMESPACE, instance_in, parcel_xml
from ravebot.sandboxes.model import Observed

AGENT_TIMEOUT_SECONDS = 5
"""For agent calls that libvirt makes by itself; without a timeout these may never return."""

_NO_METADATA = {libvirt.VIR_ERR_NO_DOMAIN_METADATA}
_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: Observed.AGENT_SILENT,
    libvirt.VIR_DOMAIN_BLOCKED: Observed.AGENT_SILENT,
    libvirt.VIR_DOMAIN_SHUTDOWN: Observed.AGENT_SILENT,
    libvirt.VIR_DOMAIN_PAUSED: Observed.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Observed.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: Observed.OFF,
    libvirt.VIR_DOMAIN_CRASHED: Observed.CRASHED,
}
_BY_REASON = {
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP): Observed.AGENT_SILENT,
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_CRASHED): Observed.CRASHED,
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED): Observed.CRASHED,
}
_PAUSE_REASONS = {
    libvirt.VIR_DOMAIN_PAUSED_USER: "user",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "ioerror",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "migration",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "save",
    libvirt.VIR_DOMAIN_PAUSED_DUMP: "dump",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "watchdog",
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: "snapshot",
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "shutting down",
}
_UNDEFINE = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
_UNDEFINE_IN_QEMU = _UNDEFINE | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM


def observed(state: int, reason: int) -> Observed:
    """What libvirt's state and reason mean. An unfamiliar state is UNKNOWN, and nothing is done about it."""
    return _BY_REASON.get((state, reason)) or _STATES.get(state, Observed.UNKNOWN)


def pause_reason(state: int, reason: int) -> str:
    """Why a machine is paused, in libvirt's words; empty if it is not."""
    return _PAUSE_REASONS.get(reason, "unknown") if state == libvirt.VIR_DOMAIN_PAUSED else ""


class Domains:
    """All operations on domains. Every method except `is_known` is called in a worker thread."""

    def __init__(self, instance_id: str) -> None:
        self._instance_id = instance_id
        self._tags: dict[str, bool] = {}  # by UUID: whether it is ours; saves a call per domain and listing

    def is_known(self, uuid: str) -> bool:
        """Whether a domain is known to be ours, without a call to libvirt: for libvirt's event thread."""
        return self._tags.get(uuid, False)

    def find(self, handle: Handle, name: str) -> Handle | None:
        """Our domain of that name, if there is one. Raises ProviderError if someone else's domain has the name."""
        domain = found(handle.lookupByName, name, libvirt.VIR_ERR_NO_DOMAIN)
        if domain is not None and not self._is_ours(domain):
            raise ProviderError(
                f"a machine named {name} exists in libvirt and is not ours: it is left alone; rename or remove it"
            )
        return domain

    def get(self, handle: Handle, name: str) -> Handle:
        """The same. Raises MachineNotFound if there is none."""
        domain = self.find(handle, name)
        if domain is None:
            raise MachineNotFound(f"libvirt has no machine {name}")
        return domain

    def define(self, handle: Handle, xml: str) -> None:
        """Define a domain, without starting it; it does not start with the host either."""
        domain = handle.defineXML(xml)
        self._tags[domain.UUIDString()] = True

    def start(self, handle: Handle, name: str) -> None:
        domain = self.get(handle, name)
        if not domain.isActive():
            try:
                domain.create()
            except libvirt.libvirtError:
                if not domain.isActive():  # if it is active, someone else has just started it
                    raise
        self.limit_agent(domain)

    def limit_agent(self, domain: Handle) -> None:
        """Set a time limit for agent calls on this running domain."""
        with suppress(libvirt.libvirtError):  # the test driver has no agent; a domain may just have ended
            domain.agentSetResponseTimeout(AGENT_TIMEOUT_SECONDS, 0)

    def resume(self, handle: Handle, name: str) -> None:
        domain = self.get(handle, name)
        state = domain.state()[0]
        if state == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()
        elif state == libvirt.VIR_DOMAIN_PMSUSPENDED:  # suspended by the guest, and not affected by `resume`
            domain.pMWakeup(0)

    def plug_in(self, handle: Handle, name: str, path: str, serial: str) -> str:
        """Attach a read-only disk to a running machine until it is off; returns the XML that `unplug` needs."""
        domain = self.get(handle, name)
        disks = ElementTree.fromstring(domain.XMLDesc()).iterfind("./devices/disk/target")  # noqa: S314 - libvirt's own
        taken = {disk.get("dev") for disk in disks}
        free = next((f"vd{letter}" for letter in ascii_lowercase if f"vd{letter}" not in taken), None)
        if free is None:
            raise ProviderError(f"no more disks can be attached to {name}")
        xml = parcel_xml(path, target=free, serial=serial)
        domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        return xml

    def unplug(self, handle: Handle, name: str, xml: str) -> None:
        """Ask the guest, for some seconds, to release a disk; otherwise it keeps the disk until it is off."""
        domain = self.find(handle, name)
        if domain is not None:
            with suppress(libvirt.libvirtError):
                domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def press_power_button(self, handle: Handle, name: str) -> bool:
        """Request a shutdown by ACPI; returns False if it is off already."""
        domain = self.get(handle, name)
        if not domain.isActive():
            return False
        flags = 0 if _is_test_driver(handle) else libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
        try:
            domain.shutdownFlags(flags)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:  # off or paused by now
                raise
        return True

    def destroy(self, handle: Handle, name: str) -> None:
        domain = self.find(handle, name)
        if domain is not None and domain.isActive():
            try:
                domain.destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                    raise

    def remove(self, handle: Handle, name: str) -> None:
        """Power it off and remove its definition, if it exists."""
        self.destroy(handle, name)
        domain = self.find(handle, name)
        if domain is not None:
            try:
                domain.undefineFlags(_UNDEFINE if _is_test_driver(handle) else _UNDEFINE_IN_QEMU)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise

    def observe(self, handle: Handle) -> tuple[ObservedMachine, ...]:
        """All machines of ours, in as few calls as libvirt allows."""
        seen: dict[str, bool] = {}
        machines = []
        for domain, state, reason in self._states(handle):
            uuid = domain.UUIDString()
            try:
                seen[uuid] = self._is_ours(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
                continue
            if seen[uuid]:
                machines.append(
                    ObservedMachine(domain.name(), uuid, observed(state, reason), pause_reason(state, reason))
                )
        self._forget_all_but(seen)
        return tuple(machines)

    def _states(self, handle: Handle) -> Iterator[tuple[Handle, int, int]]:
        try:
            stats = handle.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # by the test driver
                raise
        else:
            for domain, values in stats:
                yield domain, values["state.state"], values["state.reason"]
            return
        for domain in handle.listAllDomains():
            with suppress(libvirt.libvirtError):  # gone meanwhile
                state, reason = domain.state()
                yield domain, state, reason

    def _is_ours(self, domain: Handle) -> bool:
        uuid = domain.UUIDString()
        ours = self._tags.get(uuid)
        if ours is None:
            try:
                element = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0)
                ours = instance_in(element) == self._instance_id
            except libvirt.libvirtError as error:
                if error.get_error_code() not in _NO_METADATA:
                    raise
                ours = False
            self._tags[uuid] = ours
        return ours

    def _forget_all_but(self, seen: dict[str, bool]) -> None:
        for uuid in self._tags.keys() - seen.keys():
            self._tags.pop(uuid, None)


def _is_test_driver(handle: Handle) -> bool:
    """Whether this is libvirt's in-memory driver, which knows fewer flags."""
    return bool(handle.getType() == "TEST")
