"""What tests of several files need: machines in memory, a place of images, a homeserver with a file's accounts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ravebot.providers.memory import MemoryHost
from tests.support.image_place import Place, a_place
from tests.support.synapse import MatrixUser, Synapse


@pytest.fixture
def host() -> MemoryHost:
    return MemoryHost()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(tmp_path) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def synapse(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Synapse]:
    async with Synapse(tmp_path_factory.mktemp("synapse")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def account(synapse: Synapse) -> MatrixUser:
    return await synapse.user("ravebot")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(synapse: Synapse) -> MatrixUser:
    return await synapse.user("alice")
