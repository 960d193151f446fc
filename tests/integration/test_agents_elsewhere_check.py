"""What `ravebot agent check` and `show` say of agents that work elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from ravebot.agents.approvals import Approvals
from ravebot.agents.reception import Reception
from ravebot.agents.transports.acp.driver import AcpDriver
from ravebot.commands.people import People
from ravebot.errors import FileNotFound
from ravebot.operations.agents.check import TrialParts
from ravebot.operations.agents.elsewhere import ElsewhereTrial
from ravebot.operations.agents.operator import AgentOperator
from ravebot.operations.agents.reports import CheckStep
from ravebot.operations.agents.trials import Trials
from ravebot.sandboxes.model import Actor, Person
from ravebot.store import api_tokens
from ravebot.store.api_tokens import ApiToken, TokenId
from tests.support.agent_world import make_driver
from tests.support.clock import ManualClock
from tests.support.elsewhere import ElsewhereWorld, an_elsewhere_world
from tests.support.receivers import a_receiver
from tests.support.records import NOON, a_merge_request

pytestmark = pytest.mark.integration
ROOT = Actor("shell", "root")


class Everybody:
    """What GitLab says of people: all are Developers."""

    level = 30

    async def user(self, username: str) -> Person:
        return Person(101, username)

    async def access_level(self, project_id: int, user_id: int) -> int:
        return self.level

    async def merge_request(self, ref: Any) -> Any:
        return a_merge_request(ref.iid)

    async def file(self, project_id: int, path: str, ref: str, max_bytes: int) -> bytes:
        raise FileNotFound(path)

    async def project(self, path_or_id: str | int) -> tuple[int, str]:
        return 7, "group/app"


@asynccontextmanager
async def an_operator(
    folder: Path, url: str = "", clock: ManualClock | None = None
) -> AsyncIterator[tuple[ElsewhereWorld, AgentOperator, Everybody]]:
    async with an_elsewhere_world(folder, url, clock=clock, runs=False) as world:
        gitlab = Everybody()
        people = People(world.config, world.database, cast(Any, gitlab))
        reception = Reception(world.config, people, world.desk)
        driver: AcpDriver = make_driver(world.config, world.database, 22)
        trials = Trials(TrialParts(world.config, world.database, reception, driver, world.sender))
        approvals = Approvals(world.config, world.desk.telling, world.database, people)
        yield world, AgentOperator(world.config, world.database, reception, approvals, trials), gitlab


async def checked(world: ElsewhereWorld, operator: AgentOperator, name: str, prompt: str = "") -> list[CheckStep]:
    agent = next(one for one in world.config.agents if one.name == name)
    trial = ElsewhereTrial(operator.trials.parts, agent, "group/app!1", prompt, ROOT)
    await trial.run()
    assert trial.over
    return trial.steps


async def make_token(world: ElsewhereWorld, agent: str) -> None:
    token = ApiToken(
        TokenId(0), "alice", "laptop", ("agent",), ("group/*",), agent, NOON, "root", NOON + timedelta(days=10_000)
    )
    await world.database.write(lambda tx: api_tokens.add(tx, token, f"hash of {agent}", ROOT))


async def test_a_webhook_is_tried_with_a_signed_event_that_is_no_message(tmp_path: Path) -> None:
    async with a_receiver() as receiver, an_operator(tmp_path, receiver.url) as (world, operator, _):
        await make_token(world, "reviewer")
        steps = await checked(world, operator, "reviewer", "hello")
        assert [(one.name, one.result.value) for one in steps] == [
            ("configuration", "ok"), ("rights", "ok"), ("token", "ok"), ("webhook", "ok"), ("prompt", "skipped"),
        ]  # fmt: skip
        assert steps[3].detail == "it answered 204 to a signed event of the type agent.check"
        assert [one.type for one in receiver.got] == ["agent.check"]
        assert await world.database.read(lambda tx: tx.all("SELECT * FROM agent_turns")) == []


async def test_what_is_wrong_with_a_webhook_its_token_or_its_owner_is_said_with_what_to_do(tmp_path: Path) -> None:
    async with a_receiver(401) as receiver, an_operator(tmp_path, receiver.url) as (world, operator, gitlab):
        gitlab.level = 10
        _, rights, token, webhook = await checked(world, operator, "reviewer")
        assert (rights.result.value, token.result.value, webhook.result.value) == ("failed", "failed", "failed")
        assert rights.detail.startswith("reviewer may do at most what its owner alice may: ")
        assert token.fix == (
            "Make one: `ravebot token create --owner alice --name reviewer --agent reviewer --scope agent"
            " --project 'group/*'`."
        )
        assert webhook.detail == (
            "The webhook wants another proof of who sends: compare the signing key on both sides (401)."
        )


async def test_an_inbox_is_well_if_its_agent_asked_lately(tmp_path: Path) -> None:
    clock = ManualClock()
    async with an_operator(tmp_path, clock=clock) as (world, operator, _):
        await make_token(world, "helper")
        never = await checked(world, operator, "helper")
        assert (never[3].result.value, never[3].detail) == ("failed", "helper has never asked for messages.")
        assert (await operator.agent("helper")).reached == "from its inbox; it has never asked"
        await world.take()
        assert [one.result.value for one in await checked(world, operator, "helper")] == ["ok"] * 4
        assert (await operator.agent("helper")).reached == "from its inbox; it last asked at 2026-01-01 12:00 UTC"
        clock.advance(timedelta(minutes=6))
        late = await checked(world, operator, "helper")
        assert late[3].detail == "helper has not asked for messages since 2026-01-01 12:00 UTC."


async def test_a_check_by_name_takes_the_trial_for_where_the_agent_works(tmp_path: Path) -> None:
    async with an_operator(tmp_path, "http://127.0.0.1:1/hook?secret=1") as (_, operator, _):
        number = await operator.start_check("reviewer", "group/app!1", "", ROOT)
        [trial] = operator.trials._trials.values()
        assert isinstance(trial, ElsewhereTrial)
        await trial.run()
        progress = await operator.check_progress(number)
        assert progress.over
        assert progress.steps[3].detail == "The webhook can't be reached: connection refused."
        assert (await operator.agent("reviewer")).reached == "by webhook, at http://127.0.0.1:1/hook"
        assert {one.name for one in await operator.agents()} == {"reviewer", "helper"}
