"""What every provider must do, whatever runs its machines: one suite, subclassed for each back end.

A subclass's module has a fixture `bench` that gives a `ProviderBench`.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import libvirt
import pytest

from ravebot.config.model import BridgeConfig, LibvirtConfig
from ravebot.errors import ImageError, MachineNotFound, ProviderError
from ravebot.providers.base import Listing, MachineSpec, ObservedMachine, ProviderEvent
from ravebot.providers.libvirt import LibvirtProvider
from ravebot.sandboxes.model import Observed

GIB = 1024**3


def plain_image(path: Path, size: str = "1G") -> Path:
    """An empty qcow2 image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), size], check=True)
    return path


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that QEMU, which libvirt runs as another user, can get into; pytest's own it can not."""
    folder = Path(tempfile.mkdtemp(prefix="ravebot-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class ProviderBench:
    """One provider on a libvirt, what is needed to make machines with it, and a way to act behind its back."""

    config: LibvirtConfig
    folder: Path
    instance_id: str = field(default_factory=lambda: secrets.token_hex(8))
    egress: str = "none"

    def __post_init__(self) -> None:
        self.provider = self.another(self.instance_id)
        self.stranger: Any = libvirt.open(self.config.uri)
        self._numbers = itertools.count(10)
        self._tokens: set[str] = set()

    def another(self, instance_id: str, config: LibvirtConfig | None = None) -> LibvirtProvider:
        """A second provider beside the first."""
        return LibvirtProvider(
            config or self.config,
            instance="test",
            instance_id=instance_id,
            egress=self.egress,
            state_dir=self.folder / f"state-{instance_id}",
        )

    def spec(self, knobs: str = "") -> MachineSpec:
        """A new machine with a small disk."""
        while (token := secrets.token_hex(3)) in self._tokens:  # among a thousand, one in thirty times
            pass
        self._tokens.add(token)
        address = self.config.bridge.subnet.network_address + next(self._numbers)
        return MachineSpec(
            name=f"rave-test-{token}",
            uuid=str(uuid.uuid4()),
            mac=f"52:54:00:{token[:2]}:{token[2:4]}:{token[4:]}",
            address=str(address),
            tap=f"rvt{token}",
            memory_bytes=256 * 1024**2,
            vcpus=1,
            disk_bytes=GIB,
            image=self.config.image,
            kernel=self.config.kernel,
            initrd=self.config.initrd,
            cmdline=f"{self.config.cmdline} {knobs}".strip(),
        )

    def plant_foreign(self, name: str) -> None:
        """Define someone else's machine."""
        kind = "test" if self.stranger.getType() == "TEST" else "qemu"
        self.stranger.defineXML(
            f"<domain type='{kind}'><name>{name}</name><memory unit='MiB'>16</memory>"
            "<os><type arch='x86_64'>hvm</type></os></domain>"
        )

    def remove_foreign(self, name: str) -> None:
        with suppress(libvirt.libvirtError):
            self.stranger.lookupByName(name).undefine()

    def reconnected(self) -> Any:
        """A new connection behind the provider's back, after libvirt restarted."""
        with suppress(libvirt.libvirtError):
            self.stranger.close()
        return libvirt.open(self.config.uri)

    def names_in_libvirt(self) -> set[str]:
        return {domain.name() for domain in self.stranger.listAllDomains()}

    def clean(self, *instance_ids: str) -> None:
        """Remove whatever a test left, also when it failed."""
        self.stranger = self.reconnected()
        try:
            for instance_id in (self.instance_id, *instance_ids):
                asyncio.run(self.clean_instance(instance_id))
            asyncio.run(self.provider.close())
        finally:
            self.stranger.close()

    async def clean_instance(self, instance_id: str) -> None:
        provider = self.another(instance_id)
        with suppress(ProviderError):
            listing = await provider.list()
            for machine in listing.machines:
                await provider.delete(machine.name)
            for volume in (await provider.list()).volumes:
                await provider.delete_volume(volume)
        await provider.close()
        for lookup, name in (
            (self.stranger.networkLookupByName, f"rave-{instance_id[:8]}"),
            (self.stranger.storagePoolLookupByName, f"rave-{instance_id}"),
        ):
            with suppress(libvirt.libvirtError):
                found = lookup(name)
                with suppress(libvirt.libvirtError):
                    found.destroy()
                found.undefine()


def bridge_of_its_own() -> BridgeConfig:
    """A bridge and subnet that no other test run is likely to have."""
    token = secrets.token_bytes(2)
    return BridgeConfig(name=f"rvb{token.hex()}", subnet=IPv4Network(f"10.{200 + token[0] % 50}.{token[1]}.0/24"))


async def observed(provider: LibvirtProvider, name: str) -> ObservedMachine | None:
    listing = await provider.list()
    return next((machine for machine in listing.machines if machine.name == name), None)


async def wait_for_state(provider: LibvirtProvider, name: str, state: Observed, seconds: float = 20) -> ObservedMachine:
    """Poll until the machine is in that state."""
    async with asyncio.timeout(seconds):
        while (machine := await observed(provider, name)) is None or machine.state is not state:
            await asyncio.sleep(0.05)
    return machine


class ProviderContract:
    """The tests. `open` is called by each, since a fixture's event loop is not theirs."""

    async def test_creating_twice_is_creating_once_and_starts_nothing(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        spec = bench.spec()
        await bench.provider.create(spec)
        first = await bench.provider.list()
        await bench.provider.create(spec)
        assert await bench.provider.list() == first
        assert [(machine.name, machine.uuid, machine.state) for machine in first.machines] == [
            (spec.name, spec.uuid, Observed.OFF)
        ]
        assert len(first.volumes) == 1
        assert spec.name in first.volumes[0]
        assert bench.stranger.lookupByName(spec.name).autostart() == 0

    async def test_the_same_name_with_another_uuid_is_refused(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        spec = bench.spec()
        await bench.provider.create(spec)
        with pytest.raises(ProviderError, match="another UUID"):
            await bench.provider.create(replace(spec, uuid=str(uuid.uuid4())))

    async def test_every_step_of_a_life_may_be_taken_twice(self, bench: ProviderBench) -> None:
        provider, spec = bench.provider, bench.spec("rave.noagent")
        await provider.open()
        await provider.create(spec)
        for _ in range(2):
            await provider.start(spec.name)
        assert (await wait_for_state(provider, spec.name, Observed.AGENT_SILENT)).uuid == spec.uuid
        for _ in range(2):
            await provider.resume(spec.name)
        for _ in range(2):
            await provider.destroy(spec.name)
        await wait_for_state(provider, spec.name, Observed.OFF)
        await provider.shutdown(spec.name)
        for _ in range(2):
            await provider.delete(spec.name)
        assert await provider.list() == Listing(machines=())

    async def test_a_running_machine_is_deleted_whole(self, bench: ProviderBench) -> None:
        provider, spec = bench.provider, bench.spec("rave.noagent")
        await provider.open()
        await provider.create(spec)
        await provider.start(spec.name)
        await provider.delete(spec.name)
        assert await provider.list() == Listing(machines=())
        assert spec.name not in bench.names_in_libvirt()

    async def test_a_machine_that_is_not_there_is_said_to_be_missing(self, bench: ProviderBench) -> None:
        provider, name = bench.provider, "rave-test-absent"
        await provider.open()
        await provider.destroy(name)
        await provider.delete(name)
        for asking in (provider.start(name), provider.resume(name), provider.shutdown(name), provider.usage(name)):
            with pytest.raises(MachineNotFound):
                await asking
        with pytest.raises(MachineNotFound):
            await provider.ping(name, timedelta(seconds=1))

    async def test_two_instances_never_see_or_touch_each_other(self, bench: ProviderBench) -> None:
        other_id = secrets.token_hex(8)
        other_config = bench.config.model_copy(
            update={"storage_pool": bench.folder / "other-disks", "bridge": bridge_of_its_own()}
        )
        other = bench.another(other_id, other_config)
        try:
            await bench.provider.open()
            await other.open()
            mine, theirs = bench.spec(), bench.spec()
            theirs = replace(theirs, address=str(other_config.bridge.subnet.network_address + 9))
            await bench.provider.create(mine)
            await other.create(theirs)
            assert [machine.name for machine in (await bench.provider.list()).machines] == [mine.name]
            assert [machine.name for machine in (await other.list()).machines] == [theirs.name]
            for touching in (other.destroy, other.delete, other.start, other.shutdown):
                with pytest.raises(ProviderError, match="not ours"):
                    await touching(mine.name)
            with pytest.raises(ProviderError, match="not belong"):
                await other.delete_volume((await bench.provider.list()).volumes[0])
            await other.delete(theirs.name)
            assert await observed(bench.provider, mine.name) is not None
        finally:
            await other.close()
            await bench.clean_instance(other_id)

    async def test_someone_elses_machine_with_our_name_is_refused_and_left_alone(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        spec = bench.spec()
        bench.plant_foreign(spec.name)
        try:
            for touching in (bench.provider.destroy, bench.provider.delete, bench.provider.start):
                with pytest.raises(ProviderError, match="not ours"):
                    await touching(spec.name)
            with pytest.raises(ProviderError, match="not ours"):
                await bench.provider.create(spec)
            assert await bench.provider.list() == Listing(machines=())
            assert spec.name in bench.names_in_libvirt()
        finally:
            bench.remove_foreign(spec.name)

    async def test_an_image_that_can_not_be_a_base_is_refused_by_its_config_key(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        text = bench.folder / "text.qcow2"
        text.write_text("not an image" * 100)
        leaning = bench.folder / "leaning.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(text), str(leaning), "1G"],
            check=True,
        )
        for image, message in (
            (bench.folder / "missing.qcow2", "provider.image"),
            (text, "provider.image"),
            (leaning, "refers to another file"),
            (plain_image(bench.folder / "large.qcow2", "30G"), "sandbox.disk"),
        ):
            with pytest.raises(ImageError, match=message):
                await bench.provider.create(replace(bench.spec(), image=image))
        assert await bench.provider.list() == Listing(machines=())

    async def test_a_missing_kernel_is_refused_by_its_config_key(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        missing = bench.folder / "no-kernel"
        with pytest.raises(ImageError, match=r"provider\.kernel"):
            await bench.provider.create(replace(bench.spec(), kernel=missing, initrd=missing))

    async def test_a_disk_without_a_machine_is_listed_and_deleted(self, bench: ProviderBench) -> None:
        provider, spec = bench.provider, bench.spec()
        await provider.open()
        await provider.create(spec)
        bench.stranger.lookupByName(spec.name).undefine()
        listing = await provider.list()
        assert listing.machines == ()
        (volume,) = listing.volumes
        for _ in range(2):
            await provider.delete_volume(volume)
        assert (await provider.list()).volumes == ()

    async def test_a_half_made_machine_is_completed(self, bench: ProviderBench) -> None:
        provider, spec = bench.provider, bench.spec()
        await provider.open()
        await provider.create(spec)
        bench.stranger.lookupByName(spec.name).undefine()
        await provider.create(spec)
        listing = await provider.list()
        assert [machine.name for machine in listing.machines] == [spec.name]
        assert len(listing.volumes) == 1

    async def test_a_paused_machine_is_seen_and_goes_on(self, bench: ProviderBench) -> None:
        provider, spec = bench.provider, bench.spec("rave.noagent")
        await provider.open()
        await provider.create(spec)
        await provider.start(spec.name)
        bench.stranger.lookupByName(spec.name).suspend()
        assert (await wait_for_state(provider, spec.name, Observed.PAUSED)).pause_reason == "user"
        await provider.resume(spec.name)
        await wait_for_state(provider, spec.name, Observed.AGENT_SILENT)

    async def test_what_happens_to_our_machines_is_told_and_others_are_not(self, bench: ProviderBench) -> None:
        provider, spec = bench.provider, bench.spec("rave.noagent")
        await provider.open()
        told: list[ProviderEvent] = []
        ready = asyncio.Event()

        async def listen() -> None:
            async for event in provider.events():
                told.append(event)
                ready.set()

        listening = asyncio.create_task(listen())
        foreign = bench.spec().name
        try:
            await asyncio.sleep(0.1)
            bench.plant_foreign(foreign)
            await provider.create(spec)
            await provider.start(spec.name)
            await provider.destroy(spec.name)
            async with asyncio.timeout(10):
                while not any(event.what == "stopped" for event in told):
                    ready.clear()
                    await ready.wait()
            assert {event.name for event in told} <= {spec.name, ""}
        finally:
            listening.cancel()
            bench.remove_foreign(foreign)

    async def test_what_went_missing_is_made_again_by_open(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        pool = bench.stranger.storagePoolLookupByName(f"rave-{bench.instance_id}")
        pool.destroy()
        pool.undefine()
        await bench.provider.open()
        await bench.provider.create(bench.spec())
        assert len((await bench.provider.list()).machines) == 1

    async def test_a_storage_folder_that_another_instance_has_is_refused_with_its_id(
        self, bench: ProviderBench
    ) -> None:
        await bench.provider.open()
        other = bench.another(secrets.token_hex(8), bench.config.model_copy(update={"bridge": bridge_of_its_own()}))
        try:
            with pytest.raises(ProviderError, match=f"`ravebot cleanup --instance-id {bench.instance_id} --all"):
                await other.open()
        finally:
            await other.close()

    async def test_what_was_taken_away_is_not_made_again_by_looking(self, bench: ProviderBench) -> None:
        def shared() -> list[str]:
            found = [*bench.stranger.listAllStoragePools(), *bench.stranger.listAllNetworks()]
            return [one.name() for one in found if bench.instance_id[:8] in one.name()]

        await bench.provider.open()
        assert shared()
        await bench.provider.remove()
        assert await bench.provider.list() == Listing(machines=())
        assert (await bench.provider.host()).disk_free_bytes > 0
        assert shared() == []
        await bench.provider.open()
        await bench.provider.create(bench.spec())
        assert len((await bench.provider.list()).machines) == 1

    async def test_what_machines_share_stays_while_one_of_them_needs_it(self, bench: ProviderBench) -> None:
        spec = bench.spec()
        await bench.provider.open()
        await bench.provider.create(spec)
        with pytest.raises(ProviderError, match="still"):
            await bench.provider.remove()
        assert len((await bench.provider.list()).volumes) == 1
        await bench.provider.delete(spec.name)
        await bench.provider.remove()

    async def test_usage_and_host_are_told(self, bench: ProviderBench) -> None:
        provider, spec = bench.provider, bench.spec("rave.noagent")
        await provider.open()
        await provider.create(spec)
        assert (await provider.usage(spec.name)).memory_peak_bytes == 0
        await provider.start(spec.name)
        await asyncio.sleep(0.5)
        usage, host = await provider.usage(spec.name), await provider.host()
        assert usage.cpu_seconds > 0
        assert host.memory_available_bytes > 0
        assert host.disk_free_bytes > 0
        assert host.disk_promised_bytes > 0

    async def test_a_provider_that_was_closed_opens_again(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        await bench.provider.close()
        await bench.provider.open()
        assert await bench.provider.connected()
