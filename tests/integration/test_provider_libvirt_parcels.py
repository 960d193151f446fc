"""Large files go into a real guest on a disk, or else by its agent."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from ravebot.errors import GuestError
from ravebot.providers.base import MachineSpec
from ravebot.providers.libvirt.disks import Disks
from ravebot.providers.libvirt.parcels import LARGE_BYTES
from tests.integration.provider_contract import SECOND
from tests.integration.provider_libvirt import LibvirtBench
from tests.integration.provider_qemu import boot_up, qemu_bench, running_guest

pytestmark = pytest.mark.integration


@pytest.fixture
def bench() -> Iterator[LibvirtBench]:
    with qemu_bench() as bench:
        yield bench


@pytest.fixture(scope="module")
def guest() -> Iterator[tuple[LibvirtBench, MachineSpec]]:
    with running_guest() as guest:
        yield guest


async def copied(bench: LibvirtBench, spec: MachineSpec) -> float:
    """Copy the folder's `source` in and compare; how many seconds the copying took."""
    source = bench.folder / "source"
    started = time.monotonic()
    await bench.provider.copy_in(spec.name, source, "/srv/copied", mode=0o640)
    seconds = time.monotonic() - started
    command = ("sh", "-c", "sha256sum </srv/copied; stat -c %a /srv/copied; ls /srv | grep -c copied")
    done = await bench.provider.run(spec.name, command, timeout=60 * SECOND)
    assert done.output == f"{hashlib.sha256(source.read_bytes()).hexdigest()}  -\n640\n1\n"
    return seconds


def disks_of(bench: LibvirtBench, spec: MachineSpec) -> list[str]:
    """The disks that a running machine has now."""
    definition = bench.stranger.lookupByName(spec.name).XMLDesc(0)
    return re.findall(r"<target dev='(vd.)'", definition)


class TestALargeFile:
    async def test_a_large_file_goes_in_by_a_disk_which_is_faster_and_gone_afterwards(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        seconds = []
        for size in (LARGE_BYTES - 1, 4 * LARGE_BYTES + 1, 4 * LARGE_BYTES):
            (bench.folder / "source").write_bytes(os.urandom(size))
            seconds.append(await copied(bench, spec))
            assert disks_of(bench, spec) == ["vda"]
            assert len((await bench.provider.list()).volumes) == 1
        assert seconds[1] < seconds[0]
        assert seconds[2] < seconds[0]

    async def test_a_large_file_can_not_be_copied_where_there_is_no_folder_either(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        source = bench.folder / "source"
        source.write_bytes(bytes(LARGE_BYTES))
        with pytest.raises(GuestError, match="could not be written in the guest"):
            await bench.provider.copy_in(spec.name, source, "/no/such/folder/file")
        assert disks_of(bench, spec) == ["vda"]
        assert len((await bench.provider.list()).volumes) == 1

    async def test_it_goes_by_the_agent_where_the_guest_sees_no_new_disks(self, bench: LibvirtBench) -> None:
        spec = bench.spec("acpiphp.disable=1")
        await boot_up(bench.provider, spec)
        (bench.folder / "source").write_bytes(os.urandom(LARGE_BYTES))
        for _ in range(2):  # the second time there is no free place for a disk either
            await copied(bench, spec)
            assert len((await bench.provider.list()).volumes) == 1

    async def test_the_space_of_a_disk_that_the_guest_keeps_is_promised_to_nobody_else(
        self, bench: LibvirtBench
    ) -> None:
        provider, spec, disks = bench.provider, bench.spec("acpiphp.disable=1"), bench.config.storage_pool
        disks.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m,mode=711", "disks", str(disks)], check=True)
        try:
            await boot_up(provider, spec)
            (bench.folder / "source").write_bytes(os.urandom(4 * LARGE_BYTES))
            before = await provider.host()
            await copied(bench, spec)
            after = await provider.host()
            assert disks_of(bench, spec) == ["vda", "vdb"]
            assert len((await provider.list()).volumes) == 1
            await provider.destroy(spec.name)
            hosts = (before, after, await provider.host())
            # Not the free space alone: the guest's file system writes in the background, to a disk that is promised.
            left = [host.disk_free_bytes - host.disk_promised_bytes for host in hosts]
            assert left[0] - left[1] == pytest.approx(4 * LARGE_BYTES, abs=1024**2), "counted once"
            assert left[2] - left[1] == pytest.approx(4 * LARGE_BYTES, abs=1024**2), "free again"
        finally:
            await bench.clean_instance(bench.instance_id)
            subprocess.run(["umount", "--lazy", str(disks)], check=True)

    async def test_a_disk_of_the_hosts_that_is_full_keeps_nothing_of_it(self, bench: LibvirtBench) -> None:
        provider, spec, disks = bench.provider, bench.spec(), bench.config.storage_pool
        source = bench.folder / "source"
        source.write_bytes(os.urandom(2 * LARGE_BYTES))
        disks.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m,mode=711", "disks", str(disks)], check=True)
        try:
            await provider.open()
            with pytest.raises(libvirt.libvirtError):
                Disks(bench.instance_id, disks).upload(bench.stranger, spec.name, "0123", source)
            assert (await provider.list()).volumes == ()
        finally:
            await bench.clean_instance(bench.instance_id)
            subprocess.run(["umount", "--lazy", str(disks)], check=True)

    async def test_what_a_crash_left_of_it_goes_with_the_machine(self, bench: LibvirtBench) -> None:
        provider, spec, other = bench.provider, bench.spec(), bench.spec()
        await provider.open()
        await provider.create(spec)
        await provider.create(other)
        disks = Disks(bench.instance_id, bench.config.storage_pool)
        source = bench.folder / "source"
        source.write_bytes(b"some code")
        _, path = disks.upload(bench.stranger, spec.name, "0123", source)
        assert Path(path).read_bytes() == b"some code".ljust(512, b"\0")
        assert len((await provider.list()).volumes) == 3
        await provider.delete(spec.name)
        (left,) = (await provider.list()).volumes
        assert other.name in left
