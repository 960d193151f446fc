"""What every provider must do, whatever runs its machines: one suite, subclassed for each back end.

A module subclasses `ProviderContract` and `GuestContract`: the first takes a `ProviderBench` from its fixture `bench`,
the second a machine that runs from its fixture `guest`.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import uuid
from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path

import asyncssh
import pytest

from ravebot.errors import GuestError, MachineNotFound, ProviderError, Unavailable
from ravebot.providers.base import Holdings, Listing, MachineSpec, ObservedMachine, Provider, ProviderEvent, Remains
from ravebot.sandboxes.model import Observed

GIB = 1024**3
SECOND = timedelta(seconds=1)


class ProviderBench(ABC):
    """One provider, what is needed to make machines with it, and a way to act behind its back."""

    provider: Provider

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instance_id = secrets.token_hex(8)
        self.subnet = IPv4Network("10.80.0.0/24")
        self._numbers = itertools.count(10)
        self._tokens: set[str] = set()

    def spec(self, knobs: str = "") -> MachineSpec:
        """A new machine with a small disk. `knobs` go to its kernel, if it has one."""
        while (token := secrets.token_hex(3)) in self._tokens:  # among a thousand, one in thirty times
            pass
        self._tokens.add(token)
        return MachineSpec(
            name=f"rave-test-{token}",
            uuid=str(uuid.uuid4()),
            mac=f"52:54:00:{token[:2]}:{token[2:4]}:{token[4:]}",
            address=str(self.subnet.network_address + next(self._numbers)),
            tap=f"rvt{token}",
            memory_bytes=256 * 1024**2,
            vcpus=1,
            disk_bytes=GIB,
            image=self.folder / "image",
            cmdline=knobs,
        )

    @abstractmethod
    def beside(self, *, apart: bool = True) -> ProviderBench:
        """Another instance's provider on the same host; not `apart`, it is to have its disks in the same place."""

    @abstractmethod
    def remains(self, instance_id: str) -> Remains:
        """What finds an instance's things by its id alone."""

    @abstractmethod
    async def clear(self) -> None:
        """Remove whatever a test left, also when it failed, and close the provider."""

    @abstractmethod
    def machine_names(self) -> set[str]:
        """All machines of the host, everyone's."""

    @abstractmethod
    def plant_foreign(self, name: str) -> None:
        """Define someone else's machine."""

    @abstractmethod
    def lose_definition(self, name: str) -> None:
        """Take a machine's definition away, and leave its disk."""

    @abstractmethod
    def suspend(self, name: str) -> None:
        """Pause a machine, as a person does."""

    @abstractmethod
    def shared(self) -> list[str]:
        """What is there that our machines share (storage, network)."""

    @abstractmethod
    def lose_storage(self) -> None:
        """Take the place of our disks away."""

    @abstractmethod
    async def file_in(self, name: str, path: str) -> tuple[int, bytes]:
        """Mode and content of a file in a guest."""

    @abstractmethod
    async def authorized(self, name: str, user: str) -> list[str]:
        """The authorized SSH keys of a user in a guest."""


async def observed(provider: Provider, name: str) -> ObservedMachine | None:
    listing = await provider.list()
    return next((machine for machine in listing.machines if machine.name == name), None)


async def wait_for_state(provider: Provider, name: str, state: Observed, seconds: float = 20) -> ObservedMachine:
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
        assert spec.name not in bench.machine_names()

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
        beside = bench.beside()
        other = beside.provider
        try:
            await bench.provider.open()
            await other.open()
            mine, theirs = bench.spec(), beside.spec()
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
            await beside.clear()

    async def test_someone_elses_machine_with_our_name_is_refused_and_left_alone(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        spec = bench.spec()
        bench.plant_foreign(spec.name)
        for touching in (bench.provider.destroy, bench.provider.delete, bench.provider.start):
            with pytest.raises(ProviderError, match="not ours"):
                await touching(spec.name)
        with pytest.raises(ProviderError, match="not ours"):
            await bench.provider.create(spec)
        assert await bench.provider.list() == Listing(machines=())
        assert spec.name in bench.machine_names()

    async def test_a_disk_without_a_machine_is_listed_and_deleted(self, bench: ProviderBench) -> None:
        provider, spec = bench.provider, bench.spec()
        await provider.open()
        await provider.create(spec)
        bench.lose_definition(spec.name)
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
        bench.lose_definition(spec.name)
        await provider.create(spec)
        listing = await provider.list()
        assert [machine.name for machine in listing.machines] == [spec.name]
        assert len(listing.volumes) == 1

    async def test_a_paused_machine_is_seen_and_goes_on(self, bench: ProviderBench) -> None:
        provider, spec = bench.provider, bench.spec("rave.noagent")
        await provider.open()
        await provider.create(spec)
        await provider.start(spec.name)
        bench.suspend(spec.name)
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

    async def test_what_went_missing_is_made_again_by_open(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        bench.lose_storage()
        await bench.provider.open()
        await bench.provider.create(bench.spec())
        assert len((await bench.provider.list()).machines) == 1

    async def test_a_storage_folder_that_another_instance_has_is_refused_with_its_id(
        self, bench: ProviderBench
    ) -> None:
        await bench.provider.open()
        other = bench.beside(apart=False)
        try:
            with pytest.raises(ProviderError, match=f"`ravebot cleanup --instance-id {bench.instance_id} --all"):
                await other.provider.open()
        finally:
            await other.clear()

    async def test_what_was_taken_away_is_not_made_again_by_looking(self, bench: ProviderBench) -> None:
        await bench.provider.open()
        assert bench.shared()
        await bench.provider.remove()
        assert await bench.provider.list() == Listing(machines=())
        assert (await bench.provider.host()).disk_free_bytes > 0
        assert bench.shared() == []
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

    async def test_a_guest_that_is_off_is_an_error_of_the_guest(self, bench: ProviderBench) -> None:
        provider, spec, source = bench.provider, bench.spec(), bench.folder / "source"
        source.write_text("text")
        await provider.open()
        await provider.create(spec)
        assert not await provider.ping(spec.name, SECOND)
        for asking in (
            provider.host_keys(spec.name),
            provider.run(spec.name, ("true",), timeout=SECOND),
            provider.authorize_keys(spec.name, "agent", []),
            provider.copy_in(spec.name, source, "/srv/file"),
            provider.copy_out(spec.name, "/srv/file", max_bytes=10),
        ):
            with pytest.raises(GuestError):
                await asking

    async def test_what_is_left_of_an_instance_is_found_and_removed_by_its_exact_id(self, bench: ProviderBench) -> None:
        beside = bench.beside()
        mine, theirs = bench.spec(), beside.spec()
        remains, nothing = bench.remains(bench.instance_id), bench.remains(bench.instance_id[:-1])
        try:
            for provider, spec in ((bench.provider, mine), (beside.provider, theirs)):
                await provider.open()
                await provider.create(spec)
                await provider.start(spec.name)
            assert await nothing.look() == Holdings()
            found = await remains.look()
            assert [machine.name for machine in found.machines] == [mine.name]
            (volume,) = found.volumes
            assert all(address == f"{mine.mac} {mine.address}" for address in found.addresses)
            with pytest.raises(ProviderError, match="still uses"):
                await remains.remove()
            with pytest.raises(ProviderError, match="not ours"):
                await remains.delete(theirs.name)
            for _ in range(2):
                await remains.delete(mine.name)
                await remains.delete_volume(volume)
            assert await remains.remove() == (*found.networks, *found.pools) != ()
            assert await remains.look() == Holdings()
            assert bench.shared() == []
            assert await observed(beside.provider, theirs.name) is not None
        finally:
            await remains.close()
            await nothing.close()
            await beside.clear()


class GuestContract:
    """The tests of what guests are asked, on one that runs."""

    async def test_it_answers_and_a_command_comes_to_its_end(self, guest: tuple[ProviderBench, MachineSpec]) -> None:
        bench, spec = guest
        assert await bench.provider.ping(spec.name, 5 * SECOND)
        assert (await bench.provider.run(spec.name, ("true",), timeout=20 * SECOND)).exit_code == 0

    async def test_its_host_keys_are_public_keys_and_the_same_each_time(
        self, guest: tuple[ProviderBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        keys = await bench.provider.host_keys(spec.name)
        assert (
            [asyncssh.import_public_key(key).export_public_key().decode().strip() for key in keys] == list(keys) != []
        )
        assert await bench.provider.host_keys(spec.name) == keys

    async def test_the_keys_that_were_authorized_last_are_the_only_ones(
        self, guest: tuple[ProviderBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        for keys in (["ssh-ed25519 AAAAalice", "ssh-ed25519 AAAAbob"], ["ssh-ed25519 AAAAcarol"], []):
            await bench.provider.authorize_keys(spec.name, "agent", keys)
            assert sorted(await bench.authorized(spec.name, "agent")) == keys

    async def test_a_key_of_two_lines_is_refused(self, guest: tuple[ProviderBench, MachineSpec]) -> None:
        bench, spec = guest
        with pytest.raises(ProviderError, match="one line"):
            await bench.provider.authorize_keys(spec.name, "agent", ["ssh-ed25519 AAAA\nssh-rsa BBBB"])

    async def test_a_file_is_copied_with_its_mode_over_the_one_before(
        self, guest: tuple[ProviderBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        source = bench.folder / "source"
        for text, mode in ((b"first, and longer", 0o600), (b"second", 0o644)):
            source.write_bytes(text)
            await bench.provider.copy_in(spec.name, source, "/srv/copied", mode=mode)
            assert await bench.file_in(spec.name, "/srv/copied") == (mode, text)

    async def test_a_file_is_copied_to_an_absolute_path_only(self, guest: tuple[ProviderBench, MachineSpec]) -> None:
        bench, spec = guest
        source = bench.folder / "source"
        source.write_text("text")
        with pytest.raises(ProviderError, match="absolute"):
            await bench.provider.copy_in(spec.name, source, "srv/copied")

    async def test_a_file_is_copied_out_whole_or_not_at_all(self, guest: tuple[ProviderBench, MachineSpec]) -> None:
        bench, spec = guest
        source = bench.folder / "source"
        for size in (0, 1, 600_000):  # the largest takes several reads of an agent
            content = bytes(index * index % 251 for index in range(size))
            source.write_bytes(content)
            await bench.provider.copy_in(spec.name, source, "/srv/there and back")
            assert await bench.provider.copy_out(spec.name, "/srv/there and back", max_bytes=size) == content
        with pytest.raises(GuestError, match="larger"):
            await bench.provider.copy_out(spec.name, "/srv/there and back", max_bytes=599_999)
        with pytest.raises(GuestError):
            await bench.provider.copy_out(spec.name, "/srv/no such file", max_bytes=10)
        with pytest.raises(ProviderError, match="absolute"):
            await bench.provider.copy_out(spec.name, "srv/copied", max_bytes=10)

    async def test_a_file_that_can_not_be_read_here_is_our_trouble_and_not_the_guests(
        self, guest: tuple[ProviderBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        with pytest.raises(Unavailable, match="can't be read"):
            await bench.provider.copy_in(spec.name, bench.folder / "no such file", "/srv/file")

    async def test_an_address_or_mac_is_never_given_twice(self, guest: tuple[ProviderBench, MachineSpec]) -> None:
        bench, spec = guest
        taken = bench.spec()
        for change in ({"address": spec.address}, {"mac": spec.mac}):
            with pytest.raises(ProviderError, match="can't be given"):
                await bench.provider.create(MachineSpec(**{**vars(taken), **change}))
        listing = await bench.provider.list()
        assert (listing.addresses, len(listing.volumes)) == ((spec.mac,), 1)
