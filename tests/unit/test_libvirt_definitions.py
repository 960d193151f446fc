"""What is defined in libvirt: every part of the isolation is in the XML, and no text breaks out of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ravebot.config.model import BridgeConfig
from ravebot.providers.base import MachineSpec
from ravebot.providers.libvirt.definitions import (
    NAMESPACE,
    dhcp_host_xml,
    dnsmasq_options,
    domain_xml,
    gateway,
    instance_in,
    network_xml,
    overlay_xml,
)

SPEC = MachineSpec(
    name="rave-main-0a1b2c",
    uuid="6f6a1f0e-6b1d-4b8e-9a52-0f4a0f1d2c3b",
    mac="52:54:00:0a:1b:2c",
    address="10.80.0.10",
    tap="rv0a1b2c",
    memory_bytes=4 * 1024**3,
    vcpus=2,
    disk_bytes=20 * 1024**3,
    image=Path("/images/sandbox.qcow2"),
)
BRIDGE = BridgeConfig(name="ravebot0", subnet=IPv4Network("10.80.0.0/24"))


def domain(spec: MachineSpec = SPEC, kind: str = "kvm", network: str | None = "rave-0011") -> ElementTree.Element:
    return ElementTree.fromstring(
        domain_xml(
            spec,
            instance="main",
            instance_id="00112233",
            kind=kind,
            disk="/disks/one.qcow2",
            network=network,
            console=Path("/state/console/one.log"),
        )
    )


def attribute(root: ElementTree.Element, path: str, name: str) -> str | None:
    found = root.find(path)
    assert found is not None, path
    return found.get(name)


def test_a_machine_has_the_size_that_was_asked_for() -> None:
    root = domain()
    assert (root.findtext("memory"), attribute(root, "memory", "unit")) == (str(4 * 1024**3), "bytes")
    assert root.findtext("vcpu") == "2"


def test_an_emulated_processor_has_everything_that_the_emulator_can_do() -> None:
    assert attribute(domain(kind="qemu"), "cpu", "mode") == "maximum"
    assert attribute(domain(kind="kvm"), "cpu", "mode") == "host-passthrough"
    assert domain(kind="test").find("cpu") is None


def test_a_machine_carries_its_instances_name_and_tag() -> None:
    assert domain().findtext("title") == "ravebot sandbox of instance main"
    tag = domain().find(f"metadata/{{{NAMESPACE}}}machine")
    assert tag is not None
    assert instance_in(ElementTree.tostring(tag, encoding="unicode")) == "00112233"


@pytest.mark.parametrize("metadata", ["", "<", "<other/>"])
def test_metadata_that_is_not_ours_names_no_instance(metadata: str) -> None:
    assert instance_in(metadata) is None


def test_a_machine_is_isolated_from_its_neighbours_and_knows_only_its_own_port() -> None:
    root = domain()
    assert attribute(root, "devices/interface/port", "isolated") == "yes"
    assert attribute(root, "devices/interface/mac", "address") == SPEC.mac
    assert attribute(root, "devices/interface/target", "dev") == SPEC.tap
    assert attribute(root, "devices/interface/source", "network") == "rave-0011"


def test_without_a_network_there_is_no_interface() -> None:
    assert domain(network=None).find("devices/interface") is None


def test_nobody_can_look_at_a_screen_and_nothing_can_be_plugged_in() -> None:
    root = domain()
    assert root.find("devices/graphics") is None
    assert attribute(root, "devices/controller[@type='usb']", "model") == "none"


def test_a_crash_ends_a_machine_and_a_full_disk_pauses_it() -> None:
    root = domain()
    assert root.findtext("on_crash") == "destroy"
    assert attribute(root, "devices/disk/driver", "error_policy") == "stop"


def test_a_guest_can_not_put_itself_to_sleep() -> None:
    for depth in ("mem", "disk"):
        assert attribute(domain(), f"pm/suspend-to-{depth}", "enabled") == "no"


def test_a_kernel_is_booted_directly_and_else_the_disk() -> None:
    assert attribute(domain(), "os/boot", "dev") == "hd"
    direct = domain(replace(SPEC, kernel=Path("/k"), initrd=Path("/i"), cmdline="quiet"))
    assert [direct.findtext(f"os/{part}") for part in ("kernel", "initrd", "cmdline")] == ["/k", "/i", "quiet"]


def test_text_never_becomes_markup() -> None:
    hostile = "</cmdline><evil a='\"'>&amp;"
    root = domain(replace(SPEC, kernel=Path("/k"), initrd=Path("/i"), cmdline=hostile))
    assert root.findtext("os/cmdline") == hostile
    assert root.find(".//evil") is None


def test_libvirt_makes_no_firewall_rules_for_our_network() -> None:
    root = ElementTree.fromstring(network_xml("rave-1", BRIDGE, instance_id="1", dns=True))
    assert attribute(root, "forward", "mode") == "open"
    assert attribute(root, "ip", "address") == gateway(BRIDGE) == "10.80.0.1"
    assert root.find("dns") is None
    assert [ip.get("family") for ip in root.findall("ip")] == [None]


def test_no_guest_takes_anothers_mac_on_the_bridge_since_libvirt_keeps_its_table() -> None:
    root = ElementTree.fromstring(network_xml("rave-1", BRIDGE, instance_id="1", dns=True))
    assert attribute(root, "bridge", "macTableManager") == "libvirt"


def test_without_egress_names_are_not_resolved_either() -> None:
    root = ElementTree.fromstring(network_xml("rave-1", BRIDGE, instance_id="1", dns=False))
    assert attribute(root, "dns", "enable") == "no"
    assert dnsmasq_options(root) == []


@pytest.mark.parametrize(("subnet", "questions"), [("10.80.0.0/24", 256 * 300), ("10.0.0.0/8", 10_000 * 300)])
def test_the_dns_server_has_room_for_what_all_guests_together_may_ask(subnet: str, questions: int) -> None:
    bridge = BridgeConfig(name="ravebot0", subnet=IPv4Network(subnet))
    root = ElementTree.fromstring(network_xml("rave-1", bridge, instance_id="1", dns=True))
    assert dnsmasq_options(root) == [f"dns-forward-max={questions}"]


def test_a_lease_names_machine_mac_and_address() -> None:
    host = ElementTree.fromstring(dhcp_host_xml(name="one", mac=SPEC.mac, address=SPEC.address))
    assert host.attrib == {"name": "one", "mac": SPEC.mac, "ip": SPEC.address}
    assert (attribute(host, "lease", "expiry"), attribute(host, "lease", "unit")) == ("2", "minutes")


def test_an_overlay_says_the_format_of_its_base_so_that_nobody_guesses_it() -> None:
    root = ElementTree.fromstring(overlay_xml("v", capacity_bytes=5, base=Path("/images/base.qcow2")))
    assert attribute(root, "backingStore/format", "type") == "qcow2"
    assert (root.findtext("capacity"), root.findtext("backingStore/path")) == ("5", "/images/base.qcow2")
