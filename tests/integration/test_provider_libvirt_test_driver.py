"""The provider contract on libvirt's own in-memory driver: fast, and with a thousand machines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ravebot.config import LibvirtConfig
from ravebot.errors import GuestError
from tests.integration.provider_contract import ProviderBench, ProviderContract, plain_image

pytestmark = pytest.mark.integration


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ProviderBench]:
    image = plain_image(tmp_path / "image.qcow2")
    config = LibvirtConfig(uri="test:///default", network="none", image=image, storage_pool=tmp_path / "disks")
    bench = ProviderBench(config, tmp_path)
    yield bench
    bench.clean()


class TestLibvirtTestDriver(ProviderContract):
    async def test_a_guest_without_an_agent_is_an_error_of_the_guest(self, bench: ProviderBench) -> None:
        spec = bench.spec()
        await bench.provider.open()
        await bench.provider.create(spec)
        await bench.provider.start(spec.name)
        with pytest.raises(GuestError):
            await bench.provider.host_keys(spec.name)

    async def test_a_listing_of_a_thousand_machines_takes_under_a_tenth_of_a_second(self, bench: ProviderBench) -> None:
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
