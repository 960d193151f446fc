"""What only a real guest can do wrong: be silent, deaf or noisy, lie, show the host key of another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from ravebot.errors import GuestError
from ravebot.providers.base import MachineSpec, ProviderEvent
from ravebot.sandboxes.model import Observed
from tests.integration.provider_contract import SECOND, observed, wait_for_state
from tests.integration.provider_libvirt import LibvirtBench
from tests.integration.provider_qemu import boot_up, qemu_bench

pytestmark = pytest.mark.integration


@pytest.fixture
def bench() -> Iterator[LibvirtBench]:
    with qemu_bench() as bench:
        yield bench


# Takes the agent's place: answers what keeps libvirt in step, and lies (or pours out noise) after that.
LIAR = """\
#!/bin/sh
exec 3<>/dev/agent
while sleep 1; do
    while read -r line <&3; do
        case "$line" in
        *guest-sync*) echo "{\\"return\\":$(echo "$line" | tr -cd 0-9)}" >&3 ;;
        *) ANSWER ;;
        esac
    done
done
"""
LIES = """echo '{"return":{"pid":"many","handle":[],"exited":"maybe","count":-1}}' >&3"""
NOISE = "cat /dev/urandom >&3"


async def replace_agent(bench: LibvirtBench, spec: MachineSpec, answer: str) -> None:
    script = bench.folder / "liar"
    script.write_text(LIAR.replace("ANSWER", answer))
    await bench.provider.copy_in(spec.name, script, "/usr/sbin/liar", mode=0o755)

    async def reconnected() -> None:
        async for event in bench.provider.events():
            if event == ProviderEvent(spec.name, "agent connected"):
                return

    swap = "(sleep 1; mv /usr/sbin/liar /usr/sbin/qemu-ga; killall qemu-ga) >/dev/null 2>&1 &"
    swapped = asyncio.create_task(reconnected())
    await bench.provider.run(spec.name, ("sh", "-c", swap), timeout=20 * SECOND)
    await asyncio.wait_for(swapped, 20)


class TestAHostileGuest:
    async def test_one_that_never_answers_times_out_and_is_destroyed_at_once(self, bench: LibvirtBench) -> None:
        provider, spec = bench.provider, bench.spec("rave.noagent")
        await provider.open()
        await provider.create(spec)
        await provider.start(spec.name)
        started = time.monotonic()
        assert not await provider.ping(spec.name, SECOND)
        assert time.monotonic() - started < 3
        with pytest.raises(GuestError):
            await provider.host_keys(spec.name)
        started = time.monotonic()
        await provider.destroy(spec.name)
        assert time.monotonic() - started < 3

    async def test_an_agent_that_falls_silent_holds_up_neither_stop_nor_destroy(self, bench: LibvirtBench) -> None:
        provider, spec = bench.provider, bench.spec()
        await boot_up(provider, spec)
        await provider.run(
            spec.name, ("sh", "-c", "(sleep 1; killall -STOP qemu-ga) >/dev/null 2>&1 &"), timeout=20 * SECOND
        )
        await asyncio.sleep(2)
        stuck = [asyncio.create_task(provider.run(spec.name, ("true",), timeout=30 * SECOND)) for _ in range(8)]
        try:
            await asyncio.sleep(0.5)
            started = time.monotonic()
            assert not await provider.ping(spec.name, SECOND)
            await provider.shutdown(spec.name)
            await provider.destroy(spec.name)
            assert time.monotonic() - started < 5
            await wait_for_state(provider, spec.name, Observed.OFF)
        finally:
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)

    async def test_an_agent_that_lies_is_found_out(self, bench: LibvirtBench) -> None:
        provider, spec = bench.provider, bench.spec()
        await boot_up(provider, spec)
        await replace_agent(bench, spec, LIES)
        source = bench.folder / "source"
        source.write_text("text")
        for lie in (
            provider.run(spec.name, ("true",), timeout=5 * SECOND),
            provider.host_keys(spec.name),
            provider.copy_in(spec.name, source, "/srv/file"),
        ):
            with pytest.raises(GuestError, match="is malformed"):
                await lie

    async def test_an_agent_that_pours_out_noise_harms_nothing(self, bench: LibvirtBench) -> None:
        provider, spec, calm = bench.provider, bench.spec(), bench.spec()
        await asyncio.gather(boot_up(provider, spec), boot_up(provider, calm))
        await replace_agent(bench, spec, NOISE)
        started = time.monotonic()
        with pytest.raises(GuestError):
            await provider.run(spec.name, ("true",), timeout=5 * SECOND)
        assert time.monotonic() - started < 8
        assert await provider.ping(calm.name, 5 * SECOND)
        started = time.monotonic()
        await provider.delete(spec.name)
        assert time.monotonic() - started < 5

    async def test_one_that_hangs_at_shutdown_is_destroyed(self, bench: LibvirtBench) -> None:
        provider, spec = bench.provider, bench.spec("rave.noshutdown")
        await boot_up(provider, spec)
        await provider.shutdown(spec.name)
        await asyncio.sleep(4)
        machine = await observed(provider, spec.name)
        assert machine is not None
        assert machine.state is Observed.AGENT_SILENT
        await provider.destroy(spec.name)
        await wait_for_state(provider, spec.name, Observed.OFF)

    async def test_two_with_the_same_host_key_show_it(self, bench: LibvirtBench) -> None:
        provider = bench.provider
        specs = [bench.spec("rave.fixedhostkey"), bench.spec("rave.fixedhostkey"), bench.spec()]
        await asyncio.gather(*(boot_up(provider, spec) for spec in specs))
        first, second, honest = [await provider.host_keys(spec.name) for spec in specs]
        assert first == second != honest
