"""How far each kind of caller reaches, also when what was known of it is not so any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.agents.model import AgentDoor, ApprovalKind, TurnId
from ravebot.commands.people import People
from ravebot.errors import RavebotError
from ravebot.gitlab.client import GitLab
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.store import api_tokens, approvals, merge_requests, sandboxes
from ravebot.store.database import Transaction
from ravebot.tools import messages
from ravebot.tools.callers.contract import Caller
from ravebot.tools.callers.sandbox import OWN, SandboxCaller
from ravebot.tools.callers.token import TokenCaller
from ravebot.tools.calls import ToolAnswer, ToolCalls
from ravebot.tools.shapes import SendMessage
from ravebot.tools.table import BY_NAME
from tests.support.agent_yard import ALICE, an_agent
from tests.support.api_yard import ApiYard, an_api_yard
from tests.support.gitlab import DEVELOPER, GUEST

pytestmark = pytest.mark.integration


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[ApiYard]:
    async with an_api_yard(tmp_path / "state") as running:
        yield running


async def caller_of(yard: ApiYard, owner: str = "alice", **facts: Any) -> TokenCaller:
    made = await yard.token(owner, **facts)
    found = await yard.world.yard.read(lambda tx: api_tokens.get(tx, made.line.id))  # type: ignore[arg-type]
    assert found
    return TokenCaller(found)


async def inside(yard: ApiYard) -> SandboxCaller:
    """Whoever is in the sandbox, while alice's turn runs there."""
    await yard.ready()
    turn = await yard.world.taken("look", mr=yard.mr.ref, author=ALICE, place="!direct:example.org", thread="$1")
    await yard.world.given(turn)
    return SandboxCaller((await yard.world.yard.latest(yard.mr)).id)


async def told(yard: ApiYard, caller: Caller, tool: str, calls: ToolCalls | None = None, **given: Any) -> ToolAnswer:
    return await (calls or yard.calls).call(caller, BY_NAME[tool], given)


async def demote(yard: ApiYard) -> None:
    yard.server.set_role(yard.app, yard.users["alice"], GUEST)
    yard.people._levels.clear()  # half a minute later


async def test_a_project_that_ravebot_serves_no_more_is_not_reached(yard: ApiYard) -> None:
    bob = await caller_of(yard, "bob")
    fewer = yard.bench.config.gitlab.model_copy(update={"projects": ("group/app",)})
    bench = replace(yard.bench, config=yard.bench.config.model_copy(update={"gitlab": fewer}))
    assert await bob.may_see(yard.bench, yard.hidden)
    assert not await bob.may_see(bench, yard.hidden)
    await bob.reach(yard.bench, yard.hidden.full_ref)
    with pytest.raises(RavebotError, match="ravebot does not serve group/secret"):
        await bob.reach(bench, yard.hidden.full_ref)


class OldNames:
    """GitLab, which knows a project by its old name, too, as it does after a move."""

    def __init__(self, gitlab: GitLab, moved: int) -> None:
        self._gitlab, self._moved = gitlab, moved
        self.user, self.access_level, self.merge_request = gitlab.user, gitlab.access_level, gitlab.merge_request
        self.file = gitlab.file

    async def project(self, path_or_id: str | int) -> tuple[int, str]:
        return await self._gitlab.project(self._moved if path_or_id == "group/app" else path_or_id)


async def test_a_project_that_was_moved_out_of_a_tokens_patterns_is_not_reached_by_its_old_name(yard: ApiYard) -> None:
    narrow, wide = await caller_of(yard, projects=("group/app",)), await caller_of(yard)
    people = People(yard.bench.config, yard.world.yard.database, OldNames(yard.gitlab, yard.app.id))
    bench = replace(yard.bench, people=people)
    yard.app.path = "group/moved"
    assert (await wide.reach(bench, "group/app!1")).mr.project_path == "group/moved"
    with pytest.raises(RavebotError, match="There is no group/app!1"):
        await narrow.reach(bench, "group/app!1")


async def test_a_turn_that_ends_while_an_act_is_prepared_keeps_it_from_being_done(yard: ApiYard) -> None:
    caller = await inside(yard)
    reached = await caller.reach(yard.bench, OWN, acts=True)
    await yard.world.ended(TurnId(1))
    with pytest.raises(RavebotError, match="No turn of an agent runs"):
        await yard.world.yard.read(lambda tx: caller.acting(tx, reached))


async def test_a_sandbox_sees_its_own_merge_request_and_nothing_once_it_has_ended(yard: ApiYard) -> None:
    caller = await inside(yard)
    assert await caller.may_see(yard.bench, yard.mr)
    assert not await caller.may_see(yard.bench, yard.hidden)

    def end(tx: Transaction) -> None:
        sandbox = sandboxes.get(tx, caller.sandbox_id)
        assert sandbox
        sandboxes.save(tx, replace(sandbox, ended_at=tx.now))

    await yard.world.yard.write(end)
    for tool in ("sandbox_get", "logs", "sandbox_stop"):
        answer = await told(yard, caller, tool, ref=OWN)
        assert (answer.status, "has ended" in str(answer.body["detail"])) == (404, True)


async def test_a_sandbox_in_whose_turn_somebody_may_no_more_does_nothing_and_that_is_recorded(yard: ApiYard) -> None:
    caller = await inside(yard)
    run = await told(yard, caller, "run_start", ref=OWN, command="make")
    assert run.status == 200
    await demote(yard)
    for tool, given in (
        ("run_start", {"ref": OWN, "command": "id"}), ("run_cancel", {"id": run.body["id"]}),
        ("sandbox_stop", {"ref": OWN}), ("changes", {"ref": OWN}),
    ):  # fmt: skip
        answer = await yard.calls.call(caller, BY_NAME[tool], given)
        assert (answer.status, "alice is Guest" in str(answer.body["detail"])) == (403, True), tool
    refused = [one["verb"] for one in await yard.world.yard.log("command.refused")]
    assert refused == ["run_start", "run_cancel", "stop"]
    assert len(await yard.world.yard.log("run.asked")) == 1


async def test_an_owner_who_lost_their_role_starts_no_command_and_sends_no_message(yard: ApiYard) -> None:
    alice = await caller_of(yard)
    await yard.ready()
    await demote(yard)
    for answer in (
        await told(yard, alice, "run_start", ref=yard.mr.full_ref, command="id"),
        await told(yard, alice, "message_send", ref=yard.mr.full_ref, agent="coder", text="hello"),
    ):
        assert (answer.status, "alice is Guest" in str(answer.body["detail"])) == (403, True)
    assert await yard.world.yard.log("run.asked") == []
    assert await yard.world.yard.read(lambda tx: tx.all("SELECT 1 FROM agent_turns")) == []


async def a_question(yard: ApiYard, kind: ApprovalKind, mr: MergeRequest, turn_id: TurnId | None = None) -> int:
    def ask(tx: Transaction) -> int:
        merge_requests.observe(tx, mr)
        return approvals.add(
            tx, kind, title="May it?", payload="{}", payload_hash="0" * 64, asked_by=Actor("gitlab", "bob"),
            door=AgentDoor.MATRIX, place="!room:example.org", thread="", within=timedelta(hours=1), mr=mr.ref,
            turn_id=turn_id,
        ).id  # fmt: skip

    return await yard.world.yard.write(ask)


async def test_a_question_to_people_is_shown_to_whom_it_concerns(yard: ApiYard) -> None:
    yard.server.set_role(yard.app, yard.users["bob"], DEVELOPER)
    caller, alice, bob = await inside(yard), await caller_of(yard), await caller_of(yard, "bob")
    sent = await told(yard, alice, "message_send", ref=yard.mr.full_ref, agent="coder", text="hello")
    turn = TurnId(sent.body["turn"])  # type: ignore[arg-type]
    longer = await a_question(yard, ApprovalKind.EXTENSION, yard.mr)
    of_alices = await a_question(yard, ApprovalKind.TOOL, yard.mr, turn)
    start = await a_question(yard, ApprovalKind.START, yard.mr)
    elsewhere = await a_question(yard, ApprovalKind.EXTENSION, yard.hidden)
    seen = {
        name: [
            number
            for number in (longer, of_alices, start, elsewhere, 99)
            if (await told(yard, one, "approval_get", id=number)).ok
        ]
        for name, one in (("inside", caller), ("alice", alice), ("bob", bob))
    }
    assert seen == {
        "inside": [longer, of_alices],
        "alice": [longer, of_alices, start],
        "bob": [longer, start, elsewhere],
    }
    unknown = await told(yard, alice, "approval_get", id=elsewhere)
    assert (unknown.status, unknown.body["detail"]) == (404, f"There is no approval {elsewhere} that you may see.")


async def test_a_token_of_an_agent_that_is_anothers_now_takes_nothing(yard: ApiYard) -> None:
    agent = await caller_of(yard, scopes=("agent",), agent="helper")
    assert (await told(yard, agent, "inbox_take", wait=0)).status == 200
    bobs = tuple(one.model_copy(update={"owner": "bob"}) for one in yard.bench.config.agents)
    bench = replace(yard.bench, config=yard.bench.config.model_copy(update={"agents": bobs}))
    refused = await told(yard, agent, "inbox_take", ToolCalls(bench), wait=0)
    assert (refused.status, "is not alice's any more" in str(refused.body["detail"])) == (403, True)


async def test_another_agents_message_is_unknown_to_a_token_and_says_nothing_of_its_project(yard: ApiYard) -> None:
    helper = await caller_of(yard, scopes=("agent",), agent="helper")
    hers = await caller_of(yard)
    await told(yard, hers, "message_send", ref=yard.mr.full_ref, agent="helper", text="hello")
    taken = await told(yard, helper, "inbox_take", wait=0)
    assert taken.body["id"]
    second = replace(helper.token, agent="second", projects=("group/secret",))
    agents = (*yard.bench.config.agents, an_agent("second", acp=None, inbox=True))
    bench = replace(yard.bench, config=yard.bench.config.model_copy(update={"agents": agents}))
    for tool in ("inbox_ack", "answer"):
        answer = await told(yard, TokenCaller(second), tool, ToolCalls(bench), id=taken.body["id"])
        assert answer.status == 404, answer.body
    narrow = TokenCaller(replace(helper.token, projects=("group/secret",)))
    assert (await told(yard, narrow, "inbox_ack", id=taken.body["id"])).status == 403


async def test_who_may_call_nothing_without_a_token_is_told_so(yard: ApiYard) -> None:
    caller = await inside(yard)
    with pytest.raises(RavebotError, match="only for callers with a token"):
        await messages.send(yard.bench, caller, SendMessage(agent="coder", ref=yard.mr.full_ref, text="x"))


async def test_a_sandbox_reads_no_command_of_the_merge_requests_sandbox_before_it(yard: ApiYard) -> None:
    alice, first = await caller_of(yard), await inside(yard)
    run = await told(yard, alice, "run_start", ref=yard.mr.full_ref, command="make")
    number = run.body["id"]
    assert (await told(yard, first, "run_read", id=number)).status == 200
    await told(yard, alice, "sandbox_stop", ref=yard.mr.full_ref)
    await yard.world.yard.until(lambda: yard.world.yard.is_in(yard.mr, "ended"))
    await told(yard, alice, "sandbox_start", ref=yard.mr.full_ref)
    await yard.world.yard.until(lambda: yard.world.yard.is_in(yard.mr, "ready"))
    second = SandboxCaller((await yard.world.yard.latest(yard.mr)).id)
    assert second != first
    assert (await told(yard, second, "run_read", id=number)).status == 404
    assert (await told(yard, alice, "run_read", id=number)).status == 200
