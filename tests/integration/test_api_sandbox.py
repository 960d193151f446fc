"""MCP in a sandbox: the socket says which one asks; it reads always, acts only within a turn, and reaches no other."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from ravebot.agents.model import TurnId
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.tools.callers.sandbox import OWN, SandboxCaller
from ravebot.tools.problems import ToolProblem
from ravebot.web.api.server import SandboxMcp
from tests.support.agent_yard import ALICE, GINA
from tests.support.api_yard import ApiYard, an_api_yard
from tests.support.gitlab import DEVELOPER, GUEST

pytestmark = pytest.mark.integration


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[ApiYard]:
    async with an_api_yard(tmp_path / "state") as running:
        await running.ready()
        yield running


@asynccontextmanager
async def inside(yard: ApiYard, mr: MergeRequest, path: Path) -> AsyncIterator[Client]:
    """A client in that merge request's sandbox, behind the forward."""
    sandbox = await yard.world.yard.latest(mr)
    door = SandboxMcp(yard.calls)
    async with door.serve(sandbox.id, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(path))) as http:
            transport: Any = streamable_http_client(f"http://127.0.0.1:{door.port}/mcp", http_client=http)
            async with Client(transport) as client:
                yield client
    assert not path.exists()


async def told(client: Client, tool: str, **given: Any) -> tuple[bool, str]:
    result = await client.call_tool(tool, given)
    return not result.is_error, str(result.structured_content or result.content)


async def a_turn(yard: ApiYard, mr: MergeRequest) -> TurnId:
    """Alice asks, in a direct chat, and the agent has it."""
    turn = await yard.world.taken("look", mr=mr.ref, author=ALICE, place="!direct:example.org", thread=f"${mr.ref.iid}")
    await yard.world.given(turn)
    return turn


async def test_outside_a_turn_it_looks_and_does_nothing(yard: ApiYard, tmp_path: Path) -> None:
    async with inside(yard, yard.mr, tmp_path / "s") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {"whoami", "sandbox_get", "logs", "changes", "run_start", "sandbox_extend"} <= set(tools)
        assert not {"inbox_take", "answer", "message_send", "message_read", "sandbox_start"} & set(tools)
        assert "ref" not in tools["run_start"].input_schema["properties"]
        ok, text = await told(client, "whoami")
        assert ok
        assert yard.mr.full_ref in text
        assert (await told(client, "sandbox_get"))[0]
        before = await yard.world.yard.latest(yard.mr)
        for tool, given in (
            ("sandbox_stop", {}), ("sandbox_extend", {"by": "1h"}), ("run_start", {"command": "id"}), ("changes", {}),
        ):  # fmt: skip
            ok, text = await told(client, tool, **given)
            assert (ok, "No turn of an agent runs in this sandbox." in text) == (False, True)
        ok, text = await told(client, "inbox_take")
        assert (ok, "There is no tool inbox_take" in text) == (False, True)
        assert await yard.world.yard.latest(yard.mr) == before
        assert await yard.world.yard.log("command.refused") == [], "a guest can't fill the log"


async def test_within_a_turn_it_acts_with_the_turns_rights_and_is_recorded(yard: ApiYard, tmp_path: Path) -> None:
    turn = await a_turn(yard, yard.mr)
    async with inside(yard, yard.mr, tmp_path / "s") as client:
        ok, text = await told(client, "sandbox_extend", by="5m")
        assert ok, text
        ok, text = await told(client, "run_start", command="make")
        assert ok, text
        yard.server.set_role(yard.app, yard.users["alice"], GUEST)
        yard.people._levels.clear()  # half a minute later
        ok, text = await told(client, "sandbox_extend", by="5m")
        assert (ok, "alice is Guest in group/app." in text) == (False, True)
        yard.server.set_role(yard.app, yard.users["alice"], 30)
        yard.people._levels.clear()
        await yard.world.ended(turn)
        ok, text = await told(client, "sandbox_extend", by="5m")
        assert (ok, "No turn of an agent runs" in text) == (False, True)
    calls = await yard.world.yard.log("api.call")
    sandbox = await yard.world.yard.latest(yard.mr)
    assert [(one["tool"], one["status"]) for one in calls] == [
        ("sandbox_extend", 200), ("run_start", 200), ("sandbox_extend", 403),
    ]  # fmt: skip
    assert {one["sandbox"] for one in calls} == {sandbox.id}
    [run] = await yard.world.yard.read(lambda tx: tx.all("SELECT by, by_kind FROM runs"))
    assert (run["by"], run["by_kind"]) == ("coder", "agent")


async def test_while_turns_of_several_people_run_it_acts_only_as_each_of_them_may(
    yard: ApiYard, tmp_path: Path
) -> None:
    async def turn_of(who: str) -> TurnId:
        turn = await yard.world.taken("look", mr=yard.mr.ref, author=Actor("gitlab", who), place=f"!{who}", thread=who)
        await yard.world.given(turn)
        return turn

    yard.server.set_role(yard.app, yard.users["bob"], DEVELOPER)
    first, newest = await turn_of("bob"), await turn_of("alice")
    async with inside(yard, yard.mr, tmp_path / "s") as client:
        ok, text = await told(client, "sandbox_extend", by="5m")
        assert ok, text
        yard.server.set_role(yard.app, yard.users["bob"], GUEST)
        yard.people._levels.clear()  # half a minute later
        ok, text = await told(client, "sandbox_extend", by="5m")
        assert (ok, "bob is Guest in group/app." in text) == (False, True), "the newest turn alone would allow it"
        await yard.world.ended(first)
        ok, text = await told(client, "sandbox_extend", by="5m")
        assert ok, text
    calls = [(one["status"], one["turns"]) for one in await yard.world.yard.log("api.call")]
    assert calls == [(200, [first, newest]), (403, [first, newest]), (200, [newest])]


async def test_a_turn_that_begins_while_an_act_is_prepared_keeps_it_from_being_done(yard: ApiYard) -> None:
    await a_turn(yard, yard.mr)
    sandbox = await yard.world.yard.latest(yard.mr)
    caller = SandboxCaller(sandbox.id)
    reached = await caller.reach(yard.bench, OWN, acts=True)
    assert reached.decision.allowed
    assert (await yard.world.yard.read(lambda tx: caller.acting(tx, reached))).name == "coder"
    other = await yard.world.taken("me too", mr=yard.mr.ref, author=GINA, place="!gina:example.org", thread="$gina")
    await yard.world.given(other)
    with pytest.raises(ToolProblem, match="Another turn of an agent began in this sandbox meanwhile"):
        await yard.world.yard.read(lambda tx: caller.acting(tx, reached))
    with pytest.raises(ToolProblem, match="No turn of an agent runs"):
        await yard.world.yard.read(lambda tx: caller.acting(tx, None))


async def test_an_agent_that_was_talked_into_it_does_not_flood_the_room(yard: ApiYard, tmp_path: Path) -> None:
    await a_turn(yard, yard.mr)
    async with inside(yard, yard.mr, tmp_path / "s") as client:
        answers = [await told(client, "sandbox_extend", by="1s") for _ in range(14)]
    assert [ok for ok, _ in answers] == [True] * 10 + [False] * 4
    assert "Too much was done from here lately" in answers[-1][1]
    assert len(await yard.world.yard.log("sandbox.extended")) == 10


async def test_a_sandboxs_socket_reaches_no_other_sandbox(yard: ApiYard, tmp_path: Path) -> None:
    other = await yard.open_merge_request("Another one")
    await yard.ready(other)
    await a_turn(yard, yard.mr)
    made = await yard.token()
    run = await yard.post(f"/sandboxes/{other.full_ref}/runs", made, {"command": "secret"})
    async with inside(yard, yard.mr, tmp_path / "s") as client:
        for tool, given in (
            ("sandbox_get", {}), ("logs", {}), ("changes", {}), ("sandbox_stop", {}), ("sandbox_extend", {}),
            ("run_start", {"command": "id"}),
        ):  # fmt: skip
            ok, text = await told(client, tool, ref=other.full_ref, **given)
            assert (ok, "only its own merge request" in text) == (False, True), tool
        for tool in ("run_read", "run_cancel"):
            ok, text = await told(client, tool, id=run.body["id"])
            assert (ok, "There is no run" in text) == (False, True)
        listed = await client.call_tool("sandbox_list", {})
        assert listed.structured_content
        assert [one["ref"] for one in listed.structured_content["items"]] == [yard.mr.full_ref]
    assert (await yard.world.yard.latest(other)).state.value == "ready"


async def test_a_sandbox_that_floods_is_slowed_and_others_are_not(yard: ApiYard, tmp_path: Path) -> None:
    sandbox = await yard.world.yard.latest(yard.mr)
    path = tmp_path / "s"
    async with SandboxMcp(yard.calls).serve(sandbox.id, path):
        async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(path))) as http:
            answers = [await http.post("http://127.0.0.1:4181/mcp", json={}) for _ in range(150)]
            wrong = await http.post("http://evil.example/mcp", json={})
            elsewhere = await http.get("http://127.0.0.1:4181/api/v1/sandboxes")
        assert {one.status_code for one in answers} == {400, 429} or {one.status_code for one in answers} == {406, 429}
        assert wrong.status_code in (421, 429)
        assert elsewhere.status_code == 404
        many = [await asyncio.open_unix_connection(path) for _ in range(100)]
        await asyncio.sleep(0.05)
        open_ones = sum(not reader.at_eof() for reader, _ in many)
        assert open_ones <= 33
        for _, writer in many:
            writer.close()
    made = await yard.token()
    assert (await yard.get("/whoami", made)).status == 200
