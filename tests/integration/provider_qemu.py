"""A provider on real QEMU machines behind a real bridge."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ravebot.config.model import LibvirtConfig
from ravebot.providers.base import MachineSpec
from ravebot.providers.libvirt import LibvirtProvider
from tests.integration.provider_contract import SECOND
from tests.integration.provider_libvirt import LibvirtBench, bridge_of_its_own, open_folder
from tests.support.guest_image import build_guest
from tests.support.libvirtd import ensure_libvirtd

BOOT_SECONDS = 60


@contextmanager
def qemu_bench() -> Iterator[LibvirtBench]:
    ensure_libvirtd()
    with open_folder() as folder:
        guest = build_guest(folder / "guest")
        config = LibvirtConfig(
            uri="qemu:///system",
            accelerator="tcg",
            bridge=bridge_of_its_own(),
            image=guest.image,
            kernel=guest.kernel,
            initrd=guest.initrd,
            cmdline=guest.cmdline,
            storage_pool=folder / "disks",
        )
        bench = LibvirtBench(config, folder)
        try:
            yield bench
        finally:
            bench.clean()


@contextmanager
def running_guest() -> Iterator[tuple[LibvirtBench, MachineSpec]]:
    """One well-behaved guest that runs, to be shared by tests that leave it as it was."""
    with qemu_bench() as bench:
        spec = bench.spec()
        asyncio.run(boot_up(bench.provider, spec))
        yield bench, spec
        asyncio.run(bench.provider.close())


async def boot_up(provider: LibvirtProvider, spec: MachineSpec) -> None:
    await provider.open()
    await provider.create(spec)
    await provider.start(spec.name)
    await wait_for_agent(provider, spec.name)


async def wait_for_agent(provider: LibvirtProvider, name: str) -> None:
    async with asyncio.timeout(BOOT_SECONDS):
        while not await provider.ping(name, SECOND):
            await asyncio.sleep(0.05)
