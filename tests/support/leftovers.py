"""What an instance still has in libvirt, nftables and its database; after the end that is nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt

from tests.support.crashes import rows
from tests.support.stage import Stage


def described(things: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """The name and XML of libvirt's objects, without those of another test that were removed since they were listed."""
    for thing in things:
        with suppress(libvirt.libvirtError):
            yield thing.name(), thing.XMLDesc()


def machines(stage: Stage) -> list[str]:
    """Domains of the stage's instance."""
    connection = libvirt.open("qemu:///system")
    try:
        return sorted(d.name() for d in connection.listAllDomains() if d.name().startswith(f"rave-t{stage.mark}-"))
    finally:
        connection.close()


def images(stage: Stage) -> list[Path]:
    """The files that its machines' disks are based on."""
    connection = libvirt.open("qemu:///system")
    try:
        found = [xml for name, xml in described(connection.listAllDomains()) if name.startswith(f"rave-t{stage.mark}-")]
    finally:
        connection.close()
    return [_base(ElementTree.fromstring(xml)) for xml in found]


def _base(domain: ElementTree.Element) -> Path:
    disk = domain.find("./devices/disk/source[@file]")
    assert disk is not None
    asked = ["qemu-img", "info", "-U", "--output=json", disk.attrib["file"]]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True)
    return Path(json.loads(shown.stdout)["full-backing-filename"])


def disks(stage: Stage) -> list[str]:
    """Files in the storage pool's folder."""
    folder = stage.folder / "disks"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def addresses(stage: Stage) -> list[str]:
    """Machines' DHCP entries in the stage's network."""
    connection = libvirt.open("qemu:///system")
    try:
        networks = [xml for _, xml in described(connection.listAllNetworks()) if f"'{stage.bridge}'" in xml]
    finally:
        connection.close()
    return [line.strip() for xml in networks for line in xml.splitlines() if "<host " in line and " name=" in line]


def rules(stage: Stage) -> list[str]:
    """Elements of the instance's nftables maps and sets that name a guest or a port (not the visitors' counters)."""
    instance_id = (stage.state_dir / "instance-id").read_text().strip()
    listed = subprocess.run(["nft", "-j", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    found = []
    for item in json.loads(listed)["nftables"]:
        for kind in ("map", "set"):
            one = item.get(kind)
            if one and instance_id in one["table"] and "timeout" not in one.get("flags", []):
                found += [f"{one['name']}: {element}" for element in one.get("elem", [])]
    return [line for line in found if str(stage.subnet.network_address).rsplit(".", 1)[0] + "." in line]


def ports(stage: Stage) -> list[int]:
    """Ports that are given out."""
    found = rows(stage, "SELECT ssh_port, web_port FROM sandboxes WHERE state <> 'ended'")
    return [port for row in found for port in row if port is not None]
