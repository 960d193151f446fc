"""Whether GitLab answers now, asked of the stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ravebot.gitlab.client import GitLab
from ravebot.gitlab.reachable import Reachable
from tests.support.gitlab import GitLabServer

pytestmark = pytest.mark.integration

FRESH_SECONDS = 0.2


@pytest.fixture
async def server() -> AsyncIterator[GitLabServer]:
    async with GitLabServer() as server:
        yield server


@pytest.fixture
async def gitlab(server: GitLabServer) -> AsyncIterator[GitLab]:
    client = GitLab(server.url, server.token_for(server.add_user("ravebot")))
    yield client
    await client.close()


async def test_many_who_ask_at_once_cost_one_request(server: GitLabServer, gitlab: GitLab) -> None:
    reachable = Reachable(gitlab, FRESH_SECONDS)
    answers = await asyncio.gather(*(reachable.problem() for _ in range(20)))
    assert set(answers) == {""}
    assert len(server.requests) == 1


async def test_an_outage_and_its_end_are_seen_as_soon_as_the_last_answer_is_old(
    server: GitLabServer, gitlab: GitLab
) -> None:
    reachable = Reachable(gitlab, FRESH_SECONDS)
    assert await reachable.problem() == ""
    server.fail(500)
    assert await reachable.problem() == ""
    await asyncio.sleep(FRESH_SECONDS * 1.5)
    assert "GitLab answers 500" in await reachable.problem()
    server.restore()
    await asyncio.sleep(FRESH_SECONDS * 1.5)
    assert await reachable.problem() == ""


async def test_who_loses_patience_leaves_the_question_to_the_next(server: GitLabServer, gitlab: GitLab) -> None:
    reachable = Reachable(gitlab, FRESH_SECONDS)
    server.drop()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reachable.problem()
    server.restore()
    assert "does not answer" in await reachable.problem()
    assert len(server.requests) == 1
