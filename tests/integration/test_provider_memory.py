"""The provider contract in memory, and the faults that tests can ask for."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.errors import GuestError, GuestTimeout, ProviderError, Unavailable
from ravebot.providers.base import MachineSpec, RunResult
from ravebot.providers.memory import GuestCommand, MemoryHost, MemoryProvider, MemoryRemains
from ravebot.sandboxes.model import Observed
from tests.integration.provider_contract import SECOND, GuestContract, ProviderBench, ProviderContract, observed

pytestmark = pytest.mark.integration


class MemoryBench(ProviderBench):
    def __init__(self, folder: Path, host: MemoryHost, storage: str = "") -> None:
        super().__init__(folder)
        self.host = host
        self.provider: MemoryProvider = MemoryProvider(host, instance_id=self.instance_id, storage=storage)

    def beside(self, *, apart: bool = True) -> MemoryBench:
        return MemoryBench(self.folder, self.host, "" if apart else next(iter(self.host.storage)))

    def remains(self, instance_id: str) -> MemoryRemains:
        return MemoryRemains(self.host, instance_id)

    async def clear(self) -> None:
        """It is all gone with the host."""

    def machine_names(self) -> set[str]:
        return set(self.host.machines)

    def plant_foreign(self, name: str) -> None:
        self.host.put(name, instance_id="")

    def lose_definition(self, name: str) -> None:
        self.host.undefine(name)

    def suspend(self, name: str) -> None:
        self.host.set(name, Observed.PAUSED, "user")

    def shared(self) -> list[str]:
        return list(self.host.holdings(self.instance_id).pools)

    def lose_storage(self) -> None:
        self.host.storage.clear()

    async def file_in(self, name: str, path: str) -> tuple[int, bytes]:
        file = self.host.machines[name].files[path]
        return file.mode, file.content

    async def authorized(self, name: str, user: str) -> list[str]:
        return list(self.host.machines[name].authorized[user])


@pytest.fixture
def bench(tmp_path: Path) -> MemoryBench:
    return MemoryBench(tmp_path, MemoryHost())


@pytest.fixture
async def guest(bench: MemoryBench) -> tuple[MemoryBench, MachineSpec]:
    spec = bench.spec()
    await bench.provider.create(spec)
    await bench.provider.start(spec.name)
    return bench, spec


class TestMemory(ProviderContract):
    """The shared contract."""


class TestAGuestInMemory(GuestContract):
    """What is asked of guests."""


class TestFaults:
    async def test_a_call_fails_with_what_a_test_says_and_does_nothing(self, bench: MemoryBench) -> None:
        provider, spec = bench.provider, bench.spec()
        provider.fails["create"] = Unavailable("away")
        for _ in range(2):
            with pytest.raises(Unavailable):
                await provider.create(spec)
        assert bench.machine_names() == set()
        provider.fails["create"] = [ProviderError("no"), Unavailable("away")]
        for error in (ProviderError, Unavailable):
            with pytest.raises(error):
                await provider.create(spec)
        await provider.create(spec)
        assert provider.calls == [("create", spec.name)] * provider.count("create")
        assert provider.count("create") == 5

    async def test_a_call_waits_until_it_is_let_go(self, bench: MemoryBench) -> None:
        hold = bench.provider.hold["create"] = asyncio.Event()
        creating = asyncio.create_task(bench.provider.create(bench.spec()))
        await asyncio.sleep(0.01)
        assert (creating.done(), bench.machine_names()) == (False, set())
        hold.set()
        await creating
        assert len(bench.machine_names()) == 1

    async def test_a_guest_can_ignore_its_shutdown_and_pause_again_at_once(
        self, guest: tuple[MemoryBench, MachineSpec]
    ) -> None:
        (bench, spec), seen = guest, []
        bench.provider.ignores |= {"shutdown", "resume"}
        await bench.provider.shutdown(spec.name)
        seen.append(await observed(bench.provider, spec.name))
        bench.host.set(spec.name, Observed.PAUSED, "ioerror")
        await bench.provider.resume(spec.name)
        seen.append(await observed(bench.provider, spec.name))
        bench.provider.ignores.clear()
        await bench.provider.resume(spec.name)
        await bench.provider.shutdown(spec.name)
        seen.append(await observed(bench.provider, spec.name))
        assert [(machine.state, machine.pause_reason) for machine in seen if machine] == [
            (Observed.AGENT_SILENT, ""), (Observed.PAUSED, "ioerror"), (Observed.OFF, ""),
        ]  # fmt: skip

    async def test_a_silent_guest_answers_nothing_and_holds_nobody_up(
        self, guest: tuple[MemoryBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        provider = bench.provider
        for provider.answering, provider.silent in ((True, {spec.name}), (False, set())):
            async with asyncio.timeout(1):
                assert not await provider.ping(spec.name, timedelta(minutes=1))
                with pytest.raises(GuestTimeout):
                    await provider.run(spec.name, ("true",), timeout=timedelta(minutes=1))
        machine = await observed(bench.provider, spec.name)
        assert machine
        assert machine.state is Observed.AGENT_SILENT

    async def test_a_crashed_machine_starts_again_with_its_keys_and_files(
        self, guest: tuple[MemoryBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        (bench.folder / "source").write_text("text")
        await bench.provider.copy_in(spec.name, bench.folder / "source", "/srv/file")
        keys = await bench.provider.host_keys(spec.name)
        bench.host.set(spec.name, Observed.CRASHED)
        with pytest.raises(GuestError):
            await bench.provider.host_keys(spec.name)
        await bench.provider.start(spec.name)
        assert await bench.provider.host_keys(spec.name) == keys
        assert await bench.file_in(spec.name, "/srv/file") == (0o600, b"text")

    async def test_every_guest_has_host_keys_of_its_own_unless_they_are_baked_into_the_image(
        self, bench: MemoryBench
    ) -> None:
        keys = []
        for baked_in in ((), (), ("ssh-ed25519 AAAA",), ("ssh-ed25519 AAAA",)):
            spec, bench.provider.baked_in_keys = bench.spec(), baked_in
            await bench.provider.create(spec)
            await bench.provider.start(spec.name)
            keys.append(await bench.provider.host_keys(spec.name))
        assert len(set(keys)) == 3
        assert keys[2] == keys[3] == ("ssh-ed25519 AAAA",)


class TestAnswers:
    async def test_a_command_ends_as_a_test_says_and_can_be_looked_at(
        self, guest: tuple[MemoryBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        bench.provider.answers["./setup"] = RunResult(3, "it broke")
        bench.provider.answers["whoami"] = lambda command: RunResult(0, command.environment["USER"])

        async def run(*argv: str) -> RunResult:
            return await bench.provider.run(
                spec.name, argv, timeout=SECOND, environment={"USER": "agent"}, stdin=b"words"
            )

        assert await run("sh", "-c", "cd /srv && ./setup") == RunResult(3, "it broke")
        assert await run("whoami") == RunResult(0, "agent")
        assert await run("true") == RunResult(0, "")
        assert bench.provider.commands[-1] == GuestCommand(spec.name, ("true",), SECOND, {"USER": "agent"}, b"words")

    async def test_of_a_long_output_the_end_is_kept(self, guest: tuple[MemoryBench, MachineSpec]) -> None:
        bench, spec = guest
        bench.provider.answers["yes"] = RunResult(0, "x" * 100_000 + "the end")
        done = await bench.provider.run(spec.name, ("yes",), timeout=SECOND)
        assert (len(done.output), done.output[-7:]) == (64 * 1024, "the end")
