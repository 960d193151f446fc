"""What tests of several files need: a host of machines in memory, a homeserver with the accounts that a file shares."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from ravebot.providers.memory import MemoryHost
from tests.support.synapse import MatrixUser, Synapse


@pytest.fixture
def host() -> MemoryHost:
    return MemoryHost()


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
