"""Readiness checks that are asked often: what they cost, and what is said when one hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.access.nftables.firewall import NftFirewall
from ravebot.clock import SystemClock
from ravebot.config.model import AccessConfig, BridgeConfig, SandboxConfig
from ravebot.gitlab.client import GitLab
from ravebot.web.checks import Check, Checks, Checkup, State
from tests.support.gitlab import GitLabServer
from tests.support.netns import Namespace

pytestmark = pytest.mark.integration

FRESH_SECONDS = 0.2


@asynccontextmanager
async def a_checkup(checks: Checks, timeout_seconds: float = 5.0) -> AsyncIterator[Checkup]:
    checkup = Checkup(checks, timeout_seconds=timeout_seconds, fresh_seconds=FRESH_SECONDS)
    try:
        yield checkup
    finally:
        await checkup.close()


class Gate:
    """A check that hangs until it is let go."""

    def __init__(self) -> None:
        self.made = 0
        self.open = asyncio.Event()

    async def __call__(self) -> Check:
        self.made += 1
        await self.open.wait()
        return Check(State.OK, "let go")


def said(check: Check) -> tuple[State, str]:
    return check.state, check.detail


async def fine() -> Check:
    return Check(State.OK, "answers")


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace("checks") as namespace:
        yield namespace


async def test_many_who_ask_about_the_firewall_start_no_more_processes_than_one(
    host: Namespace, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    count = ("sh", "-c", f'echo "$@" >> {started}; exec "$@"', "sh")
    firewall = NftFirewall(
        instance_id="test",
        bridge=BridgeConfig.model_validate({"name": "rvt0", "subnet": "10.78.1.0/24"}),
        sandbox=SandboxConfig.model_validate({"host": "192.0.2.7"}),
        access=AccessConfig(),
        clock=SystemClock(),
        prefix=(*count, *host.prefix),
    )

    async def conflicts() -> Check:
        return Check(State.FAILED if await firewall.find_conflicts() else State.OK)

    assert await conflicts() == Check(State.OK)
    once = len(started.read_text().splitlines())
    assert once > 0
    async with a_checkup({"firewall": conflicts}) as checkup:
        answers = await asyncio.gather(*(checkup.run() for _ in range(200)))
    assert {one["firewall"].state for one in answers} == {State.OK}
    assert len(started.read_text().splitlines()) == 2 * once


async def test_an_outage_and_its_end_are_seen_as_soon_as_the_last_answer_is_old() -> None:
    async with GitLabServer() as server:
        gitlab = GitLab(server.url, server.token_for(server.add_user("ravebot")))

        async def answers() -> Check:
            return Check(State.OK, (await gitlab.me()).username)

        async with a_checkup({"gitlab": answers}) as checkup:
            assert said((await checkup.run())["gitlab"]) == (State.OK, "ravebot")
            server.fail(500)
            assert (await checkup.run())["gitlab"].fit
            await asyncio.sleep(FRESH_SECONDS * 1.5)
            assert "GitLab answers 500" in (await checkup.run())["gitlab"].detail
            server.restore()
            await asyncio.sleep(FRESH_SECONDS * 1.5)
            assert (await checkup.run())["gitlab"].fit
        await gitlab.close()
        assert len(server.requests) == 3


async def test_a_check_that_hangs_is_not_ok_and_does_not_hold_up_the_others() -> None:
    async with a_checkup({"hangs": Gate(), "fine": fine}, timeout_seconds=0.05) as checkup:
        answers = await checkup.run()
    assert answers["hangs"] == Check(State.FAILED, "no answer within 0.05 s", None)
    assert said(answers["fine"]) == (State.OK, "answers")


async def test_a_check_that_hangs_is_answered_at_once_to_those_who_come_later_and_not_begun_again() -> None:
    gate = Gate()
    async with a_checkup({"hangs": gate}, timeout_seconds=0.2) as checkup:
        assert not (await checkup.run())["hangs"].fit
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(20):
            assert not (await checkup.run())["hangs"].fit
        assert loop.time() - began < 0.2
        assert gate.made == 1
        gate.open.set()
        await asyncio.sleep(0)
        assert said((await checkup.run())["hangs"]) == (State.OK, "let go")
        await asyncio.sleep(FRESH_SECONDS * 1.5)
        assert (await checkup.run())["hangs"].fit
    assert gate.made == 2


async def test_who_loses_patience_leaves_the_question_to_those_who_come_after() -> None:
    gate = Gate()
    async with a_checkup({"slow": gate}) as checkup:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await checkup.run()
        gate.open.set()
        assert said((await checkup.run())["slow"]) == (State.OK, "let go")
    assert gate.made == 1


async def test_an_answer_grows_older_while_it_is_remembered() -> None:
    async with a_checkup({"fine": fine}) as checkup:
        first = (await checkup.run())["fine"].age
        await asyncio.sleep(FRESH_SECONDS / 2)
        second = (await checkup.run())["fine"].age
    assert first is not None
    assert second is not None
    assert second - first >= timedelta(seconds=FRESH_SECONDS / 2)
