"""The provider contract on libvirt's own in-memory driver: fast, and with a thousand machines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ravebot.config.model import LibvirtConfig
from ravebot.errors import GuestError, ProviderError
from ravebot.providers.base import Holdings
from ravebot.providers.libvirt import LibvirtRemains
from ravebot.providers.libvirt.definitions import network_xml
from tests.integration.provider_libvirt import LibvirtBench, LibvirtContract, plain_image

pytestmark = pytest.mark.integration


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LibvirtBench]:
    image = plain_image(tmp_path / "image.qcow2")
    config = LibvirtConfig(uri="test:///default", network="none", image=image, storage_pool=tmp_path / "disks")
    bench = LibvirtBench(config, tmp_path)
    yield bench
    bench.clean()


class TestLibvirtTestDriver(LibvirtContract):
    async def test_a_guest_without_an_agent_is_an_error_of_the_guest(self, bench: LibvirtBench) -> None:
        spec = bench.spec()
        await bench.provider.open()
        await bench.provider.create(spec)
        await bench.provider.start(spec.name)
        with pytest.raises(GuestError):
            await bench.provider.host_keys(spec.name)

    async def test_a_listing_of_a_thousand_machines_takes_under_a_tenth_of_a_second(self, bench: LibvirtBench) -> None:
        await bench.provider.open()
        for _ in range(1000):
            spec = bench.spec()
            await bench.provider.create(spec)
            await bench.provider.start(spec.name)
        assert len((await bench.provider.list()).machines) == 1000
        fastest = 1.0
        for _ in range(5):
            started = time.perf_counter()
            await bench.provider.list()
            fastest = min(fastest, time.perf_counter() - started)
        assert fastest < 0.1


async def test_what_an_instance_left_is_found_by_its_exact_id_and_nothing_else_is_touched(bench: LibvirtBench) -> None:
    other_id = f"{bench.instance_id}0"
    other = bench.another(other_id, bench.config.model_copy(update={"storage_pool": bench.folder / "others"}))
    specs = bench.spec(), bench.spec()
    for provider, spec in zip((bench.provider, other), specs, strict=True):
        await provider.open()
        await provider.create(spec)
        await provider.start(spec.name)
    await other.close()
    foreign = "rave-test-a11e11"
    bench.plant_foreign(foreign)
    for name, xml in (
        ("rave-one", network_xml("rave-one", bench.config.bridge, instance_id=bench.instance_id, dns=True)),
        ("rave-two", network_xml("rave-two", bench.config.bridge, instance_id=other_id, dns=True)),
        ("rave-three", "<network><name>rave-three</name></network>"),
    ):
        bench.stranger.networkDefineXML(xml.replace("</dhcp>", DHCP_ENTRY) if name == "rave-one" else xml).create()
    remains, nothing = (LibvirtRemains(bench.config.uri, one) for one in (bench.instance_id, bench.instance_id[:-1]))
    try:
        before = everything(bench)
        assert await nothing.look() == Holdings()
        assert await nothing.remove() == ()
        found = await remains.look()
        assert everything(bench) == before
        assert [machine.name for machine in found.machines] == [specs[0].name]
        assert found.volumes == (f"rave-{bench.instance_id}-{specs[0].name}.qcow2",)
        assert found.addresses == ("52:54:00:00:00:09 10.80.0.9",)
        bridge = bench.config.bridge
        assert found.networks == (f"network rave-one ({bridge.name}, {bridge.subnet})",)
        assert found.pools == (f"storage pool rave-{bench.instance_id} in {bench.config.storage_pool}",)
        assert found.bridges == {bridge.name}
        with pytest.raises(ProviderError, match="still uses them"):
            await remains.remove()
        with pytest.raises(ProviderError, match="not ours"):
            await remains.delete(foreign)
        await remains.delete_volume(f"rave-{other_id}-{specs[1].name}.qcow2")
        for machine in found.machines:
            await remains.delete(machine.name)
        for volume in found.volumes:
            await remains.delete_volume(volume)
        assert await remains.remove() == (*found.networks, *found.pools)
        gone = {specs[0].name, "rave-one", f"rave-{bench.instance_id}", *found.volumes}
        assert before - everything(bench) == gone
        assert await remains.look() == Holdings()
    finally:
        await remains.close()
        await nothing.close()
        for network in bench.stranger.listAllNetworks():
            if network.name().startswith("rave-"):
                network.destroy()
                network.undefine()
        await bench.clean_instance(other_id)


DHCP_ENTRY = "<host mac='52:54:00:00:00:09' name='rave-test' ip='10.80.0.9'/></dhcp>"


def everything(bench: LibvirtBench) -> set[str]:
    """The names of all that is in this libvirt, of everyone."""
    libvirt = bench.stranger
    found = [*libvirt.listAllDomains(), *libvirt.listAllNetworks(), *libvirt.listAllStoragePools()]
    volumes = [name for pool in libvirt.listAllStoragePools() if pool.isActive() for name in pool.listVolumes()]
    return {*(one.name() for one in found), *volumes}
