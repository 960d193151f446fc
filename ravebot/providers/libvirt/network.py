"""The network that all our machines share: a bridge with fixed leases, and without libvirt's own firewall rules."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from xml.etree import ElementTree

import libvirt
import structlog

from ravebot.config.model import BridgeConfig
from ravebot.errors import ProviderError
from ravebot.providers.libvirt.connection import Handle, found, undefine
from ravebot.providers.libvirt.definitions import (
    PLACEHOLDER_MAC,
    dhcp_host_xml,
    dnsmasq_options,
    gateway,
    learning_network_xml,
    network_xml,
    owner,
)
from ravebot.sandboxes import naming

log = structlog.get_logger()


@dataclass(frozen=True)
class Lease:
    """One fixed DHCP entry; `name` is the machine's name."""

    name: str
    mac: str
    address: str


class Network:
    """The network `rave-<start of the instance id>`. Every method is called in a worker thread."""

    def __init__(self, instance_id: str, bridge: BridgeConfig, *, dns: bool) -> None:
        self.name = f"rave-{instance_id[:8]}"
        self._instance_id = instance_id
        self._bridge = bridge
        self._dns = dns
        self._making = threading.Lock()  # so that only one of several worker threads makes a missing network
        self._xml = network_xml(self.name, bridge, instance_id=instance_id, dns=dns)

    def prepare(self, handle: Handle) -> None:
        """Make and activate the network. One with another definition that has machines stays as it is."""
        with self._making:
            network = self._lookup(handle)
            if network is None or not self._must_stay_outdated(handle, network):
                network = self._ensure(handle)
            elif not network.isActive():
                self._activate(handle, network)
            if not self._is_current(network):
                log.warning(
                    "network has an outdated definition",
                    network=self.name,
                    advice="it is made anew once it has no machine: stop all sandboxes, then start one",
                )

    def ensure(self, handle: Handle) -> Handle:
        """The network, active and as configured. Raises ProviderError if that is impossible."""
        with self._making:
            return self._ensure(handle)

    def _ensure(self, handle: Handle) -> Handle:
        network = self._lookup(handle)
        if network is not None and self._must_stay_outdated(handle, network):
            raise ProviderError(
                f"the network {self.name} was made with another provider.bridge or sandbox.egress and still"
                " has machines: stop the sandboxes first, or restore the configuration"
            )
        if network is not None and not self._is_current(network) and not self.leases(handle):
            with suppress(libvirt.libvirtError):
                network.destroy()
            network.undefine()
            network = None
        try:
            if network is None:
                network = handle.networkDefineXML(self._xml)
            if not network.isActive():
                self._activate(handle, network)
        except libvirt.libvirtError as error:
            name, subnet = self._bridge.name, self._bridge.subnet
            if other := self._other_instance(handle):
                does = f"uses the bridge {name} or addresses of {subnet}"
                raise ProviderError(naming.another_instance(other, does, naming.CHANGE_BRIDGE)) from error
            raise ProviderError(
                f"the bridge {name} with {subnet} can't be made ({error}): change provider.bridge if it is in use"
            ) from error
        return network

    def _activate(self, handle: Handle, network: Handle) -> None:
        try:
            network.create()
        except libvirt.libvirtError as error:
            if "vlan_filtering" not in str(error):  # which libvirt switches on together with its own table of MACs
                raise
            log.warning("the bridge learns MACs from frames", network=self.name, error=str(error))
            definition = network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE)
            handle.networkDefineXML(learning_network_xml(definition)).create()  # in place: the leases stay

    def _other_instance(self, handle: Handle) -> str | None:
        """The id of the instance whose network uses our bridge, or addresses of our subnet."""
        for network in handle.listAllNetworks():
            with suppress(libvirt.libvirtError):  # gone meanwhile
                root = parsed(network.XMLDesc())
                bridge, other = root.find("bridge"), owner(root)
                if other in (None, self._instance_id):
                    continue
                subnet = subnet_of(root)
                same_bridge = bridge is not None and bridge.get("name") == self._bridge.name
                if same_bridge or (subnet is not None and subnet.overlaps(self._bridge.subnet)):
                    return other
        return None

    def remove(self, handle: Handle) -> tuple[str, ...]:
        """Remove the network and its bridge, if they exist. Raises ProviderError while a machine is in it."""
        with self._making:
            network = self._lookup(handle)
            if network is None:
                return ()
            if leases := self.leases(handle):
                raise ProviderError(
                    f"the network {self.name} can't be removed: {leases[0].name} still has its address there;"
                    " run the command again"
                )
            undefine(network)
            return (f"network {self.name}",)

    def leases(self, handle: Handle) -> tuple[Lease, ...]:
        """The fixed entries of all machines."""
        network = self._lookup(handle)
        if network is None:
            return ()
        flags = 0 if network.isActive() else libvirt.VIR_NETWORK_XML_INACTIVE
        root = parsed(network.XMLDesc(flags))
        return tuple(
            Lease(host.get("name", ""), host.get("mac", "").lower(), host.get("ip", ""))
            for host in root.iterfind("ip/dhcp/host")
            if host.get("mac", "").lower() != PLACEHOLDER_MAC
        )

    def add_lease(self, handle: Handle, lease: Lease) -> None:
        """Give a machine its address. Raises ProviderError if another machine has the address or the MAC."""
        with self._making:  # otherwise `remove` might find the network empty in between
            network = self._ensure(handle)
            for other in self.leases(handle):
                if other == lease:
                    return
                if other.name == lease.name:
                    self._update(network, other, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE)
                elif other.mac == lease.mac or other.address == lease.address:
                    raise ProviderError(
                        f"{lease.address} ({lease.mac}) can't be given to {lease.name}: {other.name} has"
                        f" {other.address} ({other.mac})"
                    )
            self._update(network, lease, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST)

    def remove_lease(self, handle: Handle, *, name: str | None = None, mac: str | None = None) -> None:
        """Remove the entries of that machine name or MAC, if there are any."""
        network = self._lookup(handle)
        if network is None:
            return
        for lease in self.leases(handle):
            if (name is not None and lease.name == name) or (mac is not None and lease.mac == mac.lower()):
                self._update(network, lease, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE)

    def _update(self, network: Handle, lease: Lease, command: int) -> None:
        flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
        if network.isActive():
            flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE
        xml = dhcp_host_xml(name=lease.name, mac=lease.mac, address=lease.address)
        network.update(command, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1, xml, flags)

    def _must_stay_outdated(self, handle: Handle, network: Handle) -> bool:
        """Whether it differs from the configuration but can't be replaced, because it has machines."""
        return not self._as_configured(network) and bool(self.leases(handle))

    def _is_current(self, network: Handle) -> bool:
        """Whether it is exactly what we would define now."""
        root = parsed(network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE))
        return self._as_configured(network) and _unconfigured(root) == _unconfigured(parsed(self._fitting_xml()))

    def _fitting_xml(self) -> str:
        """What we would define for this kernel, if its bridge shows whether it can filter VLANs."""
        bridge = Path("/sys/class/net", self._bridge.name, "bridge")
        lacks_vlans = bridge.is_dir() and not (bridge / "vlan_filtering").exists()
        return learning_network_xml(self._xml) if lacks_vlans else self._xml

    def _as_configured(self, network: Handle) -> bool:
        root = parsed(network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE))
        bridge, dns, ip = root.find("bridge"), root.find("dns"), root.find("ip")
        return (
            bridge is not None
            and bridge.get("name") == self._bridge.name
            and (dns is None or dns.get("enable") != "no") == self._dns
            and ip is not None
            and ip.get("address") == gateway(self._bridge)
            and ip.get("netmask") == str(self._bridge.subnet.netmask)
        )

    def _lookup(self, handle: Handle) -> Handle | None:
        return found(handle.networkLookupByName, self.name, libvirt.VIR_ERR_NO_NETWORK)


def _unconfigured(root: ElementTree.Element) -> tuple[object, ...]:
    """What another version of ravebot may define otherwise for the same configuration."""
    return dnsmasq_options(root), [bridge.get("macTableManager") for bridge in root.iterfind("bridge")]


def subnet_of(root: ElementTree.Element) -> IPv4Network | None:
    """The subnet of a network, from its definition."""
    ip = root.find("ip")
    return None if ip is None else IPv4Network(f"{ip.get('address')}/{ip.get('netmask')}", strict=False)


def parsed(xml: str) -> ElementTree.Element:
    """Parse a definition that libvirt prints."""
    return ElementTree.fromstring(xml)  # noqa: S314 - libvirt made it, not a guest
