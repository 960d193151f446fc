"""What we define in libvirt, as XML: domains, the network, the storage pool and its volumes.

Formats: https://libvirt.org/formatdomain.html, formatnetwork.html, formatstorage.html.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ravebot.access.rules import DNS_BURST, DNS_PER_SECOND
from ravebot.config.model import MOST_MACHINES, BridgeConfig
from ravebot.providers.base import MachineSpec

NAMESPACE = "urn:ravebot:machine:1"
"""Namespace of the element in a definition's metadata that says which instance it belongs to."""

_DNSMASQ = "http://libvirt.org/schemas/network/dnsmasq/1.0"
_DNSMASQ_WAITS_SECONDS = 10
"""How long an unanswered query occupies a place in dnsmasq's table: TIMEOUT in its src/config.h."""

ElementTree.register_namespace("rave", NAMESPACE)
ElementTree.register_namespace("dnsmasq", _DNSMASQ)


def domain_xml(
    spec: MachineSpec, *, instance: str, instance_id: str, kind: str, disk: str, network: str | None, console: Path
) -> str:
    """A machine's definition. `kind` is libvirt's domain type (kvm, qemu, test), `disk` the overlay's path."""
    root = Element("domain", type=kind)
    _add(root, "name", spec.name)
    _add(root, "uuid", spec.uuid)
    _add(root, "title", f"ravebot sandbox of instance {instance}")
    _add_metadata(root, instance_id)
    _add(root, "memory", str(spec.memory_bytes), unit="bytes")
    _add(root, "vcpu", str(spec.vcpus))
    _add_boot(root, spec, kind)
    features = _add(root, "features")
    _add(features, "acpi")
    _add(features, "apic")
    # Under emulation the default is the oldest processor, on which some agents' programs do not run (they need AVX2).
    if kind in ("kvm", "qemu"):
        _add(root, "cpu", mode="host-passthrough" if kind == "kvm" else "maximum")
    _add(root, "clock", offset="utc")
    _add(root, "on_poweroff", "destroy")
    _add(root, "on_reboot", "restart")
    _add(root, "on_crash", "destroy")
    # A guest that suspends itself would keep its memory but answer nobody.
    sleep = _add(root, "pm")
    for depth in ("mem", "disk"):
        _add(sleep, f"suspend-to-{depth}", enabled="no")
    devices = _add(root, "devices")
    _add_disk(devices, disk)
    if network is not None:
        _add_interface(devices, spec, network)
    serial = _add(devices, "serial", type="file")
    _add(serial, "source", path=str(console), append="on")
    _add(serial, "target", port="0")
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _add(devices, "controller", type="usb", model="none")
    if kind != "test":
        _add(devices, "controller", type="pci", index="0", model="pcie-root")
        # One for each virtio device (also the controller of the agent's channel), and a spare one for a parcel.
        for _ in range(5 if network is None else 6):
            _add(devices, "controller", type="pci", model="pcie-root-port")
    _add(devices, "memballoon", model="virtio")
    _add(_add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    if kind != "test":
        _add(devices, "panic", model="isa")
    return ElementTree.tostring(root, encoding="unicode")


PLACEHOLDER_MAC = "02:00:00:00:00:01"
"""MAC of a fixed lease that always exists: libvirt restarts dnsmasq, which takes two seconds, when the first lease is
added and when the last one is removed. Its address is the host's own; the firewall drops guest packets with either."""


def network_xml(name: str, bridge: BridgeConfig, *, instance_id: str, dns: bool) -> str:
    """A bridge on which libvirt runs DHCP (and DNS, if `dns`). libvirt makes no firewall rules: those are ours.

    libvirt itself enters each machine's MAC in the bridge's table, so that the bridge learns none from frames.
    """
    root = Element("network")
    _add(root, "name", name)
    _add_metadata(root, instance_id)
    _add(root, "forward", mode="open")
    _add(root, "bridge", name=bridge.name, stp="off", delay="0", macTableManager="libvirt")
    if not dns:
        _add(root, "dns", enable="no")
    ip = _add(root, "ip", address=gateway(bridge), netmask=str(bridge.subnet.netmask))
    _add(_add(ip, "dhcp"), "host", mac=PLACEHOLDER_MAC, ip=gateway(bridge))
    if dns:
        # By default dnsmasq handles 150 queries at once, and refuses everybody's queries beyond that.
        most = DNS_BURST + DNS_PER_SECOND * _DNSMASQ_WAITS_SECONDS
        value = f"dns-forward-max={most * min(bridge.subnet.num_addresses, MOST_MACHINES)}"
        SubElement(SubElement(root, f"{{{_DNSMASQ}}}options"), f"{{{_DNSMASQ}}}option", value=value)
    return ElementTree.tostring(root, encoding="unicode")


def learning_network_xml(xml: str) -> str:
    """The same network with a bridge that learns MACs from frames."""
    root = ElementTree.fromstring(xml)  # noqa: S314 - ours, or as libvirt prints it
    for bridge in root.iterfind("bridge"):
        bridge.attrib.pop("macTableManager", None)
    return ElementTree.tostring(root, encoding="unicode")


def dnsmasq_options(network: Element) -> list[str]:
    """The additional options for dnsmasq in a network's definition, ours or another."""
    return [option.get("value", "") for option in network.iter(f"{{{_DNSMASQ}}}option")]


def gateway(bridge: BridgeConfig) -> str:
    """The host's own address on the bridge: the first of the subnet."""
    return str(bridge.subnet.network_address + 1)


def dhcp_host_xml(*, name: str, mac: str, address: str) -> str:
    """A fixed lease, found again by `name`. It is short: until it expires, dnsmasq gives its address to nobody else."""
    host = Element("host", mac=mac, name=name, ip=address)
    _add(host, "lease", expiry="2", unit="minutes")
    return ElementTree.tostring(host, encoding="unicode")


POOL_PREFIX = "rave-"
"""Prefix of each instance's pool name; the instance id follows (pools have no metadata)."""


def pool_xml(name: str, folder: Path) -> str:
    """A storage pool in a folder, which libvirt makes if it is missing."""
    root = Element("pool", type="dir")
    _add(root, "name", name)
    target = _add(root, "target")
    _add(target, "path", str(folder))
    _add(_add(target, "permissions"), "mode", "0711")
    return ElementTree.tostring(root, encoding="unicode")


def overlay_xml(name: str, *, capacity_bytes: int, base: Path) -> str:
    """A qcow2 volume that holds only the differences from `base`, which is qcow2 too."""
    root = Element("volume", type="file")
    _add(root, "name", name)
    _add(root, "capacity", str(capacity_bytes), unit="bytes")
    _add(root, "allocation", "0", unit="bytes")  # it grows as it is written to
    target = _add(root, "target")
    _add(target, "format", type="qcow2")
    _add(target, "compat", "1.1")
    _add(_add(target, "permissions"), "mode", "0600")
    backing = _add(root, "backingStore")
    _add(backing, "path", str(base))
    _add(backing, "format", type="qcow2")
    return ElementTree.tostring(root, encoding="unicode")


def raw_xml(name: str, *, capacity_bytes: int) -> str:
    """A raw volume of that size, fully allocated."""
    root = Element("volume", type="file")
    _add(root, "name", name)
    _add(root, "capacity", str(capacity_bytes), unit="bytes")
    target = _add(root, "target")
    _add(target, "format", type="raw")
    _add(_add(target, "permissions"), "mode", "0600")
    return ElementTree.tostring(root, encoding="unicode")


def parcel_xml(path: str, *, target: str, serial: str) -> str:
    """A read-only disk, to be attached to a running machine as `target` (vdb, for example).

    The guest finds it by its serial, of at most 20 characters.
    """
    disk = Element("disk", type="file", device="disk")
    _add(disk, "driver", name="qemu", type="raw")
    _add(disk, "source", file=path)
    _add(disk, "target", dev=target, bus="virtio")
    _add(disk, "serial", serial)
    _add(disk, "readonly")
    return ElementTree.tostring(disk, encoding="unicode")


def instance_in(metadata: str) -> str | None:
    """The instance id in our metadata element; None if the element is not as we write it."""
    try:
        return ElementTree.fromstring(metadata).get("instance")  # noqa: S314 - libvirt made it, not a guest
    except ElementTree.ParseError:
        return None


def owner(root: Element) -> str | None:
    """The instance id in the definition of a domain or network of ravebot's; None for any other."""
    machine = root.find(f"metadata/{{{NAMESPACE}}}machine")
    return None if machine is None else machine.get("instance")


def _add_metadata(root: Element, instance_id: str) -> None:
    SubElement(_add(root, "metadata"), f"{{{NAMESPACE}}}machine", instance=instance_id)


def _add_boot(root: Element, spec: MachineSpec, kind: str) -> None:
    system = _add(root, "os")
    kind_of_machine = _add(system, "type", "hvm", arch="x86_64")
    if kind != "test":
        kind_of_machine.set("machine", "q35")
    if spec.kernel is not None and spec.initrd is not None:
        _add(system, "kernel", str(spec.kernel))
        _add(system, "initrd", str(spec.initrd))
        _add(system, "cmdline", spec.cmdline)
    else:
        _add(system, "boot", dev="hd")


def _add_disk(devices: Element, path: str) -> None:
    disk = _add(devices, "disk", type="file", device="disk")
    # With these policies, a full host disk pauses the machine, which continues once there is space again.
    _add(disk, "driver", name="qemu", type="qcow2", discard="unmap", error_policy="stop", rerror_policy="stop")
    _add(disk, "source", file=path)
    _add(disk, "target", dev="vda", bus="virtio")


def _add_interface(devices: Element, spec: MachineSpec, network: str) -> None:
    interface = _add(devices, "interface", type="network")
    _add(interface, "source", network=network)
    _add(interface, "mac", address=spec.mac)
    _add(interface, "target", dev=spec.tap)
    _add(interface, "model", type="virtio")
    _add(interface, "port", isolated="yes")
    _add(interface, "rom", enabled="no")  # no network boot: it only costs time


def _add(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    child = SubElement(parent, tag, attributes)
    child.text = text
    return child
