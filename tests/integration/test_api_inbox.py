"""Agents that work elsewhere, by the API: they take, acknowledge and answer their messages, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from ravebot.operations.tokens.reports import TokenMade
from ravebot.store.signals import inbox_of
from tests.support.api_yard import ROOT, ApiYard, an_api_yard
from tests.support.gitlab import GUEST

pytestmark = pytest.mark.integration


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[ApiYard]:
    async with an_api_yard(tmp_path / "state") as running:
        await running.world.yard.told(running.mr)
        yield running


async def helper(yard: ApiYard, *projects: str) -> TokenMade:
    return await yard.token(scopes=("agent",), agent="helper", projects=projects or ("group/*",))


async def asked(yard: ApiYard, text: str = "please look") -> tuple[TokenMade, int]:
    """Alice says something to it; returns her token and the turn."""
    hers = await yard.token()
    sent = await yard.post("/messages", hers, {"agent": "helper", "ref": yard.mr.full_ref, "text": text})
    assert sent.status == 200, sent.body
    return hers, int(sent.body["turn"])


async def test_a_message_is_taken_acknowledged_and_answered_in_pieces_each_once(yard: ApiYard) -> None:
    agent = await helper(yard)
    waiting = asyncio.create_task(yard.post("/inbox/take", agent, {"wait": 20}))
    await asyncio.sleep(0.05)
    hers, turn = await asked(yard)
    taken = await asyncio.wait_for(waiting, 5)
    assert (taken.status, taken.body["message"]["text"], taken.body["again"]) == (200, "please look", False)
    message = taken.body["id"]
    assert (await yard.post("/inbox/take", agent, {"wait": 0})).body["id"] == "", "it is leased"
    assert (await yard.post(f"/inbox/{message}/ack", agent)).status == 200
    for _ in range(2):  # the second is a client's retry
        piece = await yard.post(f"/inbox/{message}/answer", agent, {"text": "I have "}, key="piece 1")
        assert piece.body["said"] == 7
    over = await yard.post(f"/inbox/{message}/answer", agent, {"text": "looked.", "end": "done"}, key="piece 2")
    assert (over.status, over.body["state"]) == (200, "done")
    assert (await yard.get(f"/messages/{turn}", hers)).body["text"] == "I have looked."
    late = await yard.post(f"/inbox/{message}/answer", agent, {"text": "more"})
    assert (late.status, "already" in late.body["detail"]) == (409, True)
    assert [one["tool"] for one in await yard.world.yard.log("api.call")] == ["message_send", "inbox_take", "inbox_ack"]


async def test_nobody_else_takes_or_answers_them(yard: ApiYard) -> None:
    agent, other = await helper(yard), await helper(yard, "group/secret")
    hers, _ = await asked(yard)
    assert (await yard.post("/inbox/take", hers, {"wait": 0})).status == 403
    narrow = await yard.post("/inbox/take", other, {"wait": 0})
    assert (narrow.status, narrow.body["id"]) == (200, "")
    taken = await yard.post("/inbox/take", agent, {"wait": 0})
    assert taken.body["id"]
    for made in (hers, other):
        assert (await yard.post(f"/inbox/{taken.body['id']}/answer", made, {"text": "x"})).status == 403
    assert (await yard.post("/inbox/msg_none/ack", agent)).status == 404


async def test_an_agent_whose_owner_lost_their_role_says_nothing_more(yard: ApiYard) -> None:
    agent = await helper(yard)
    _, turn = await asked(yard)
    taken = await yard.post("/inbox/take", agent, {"wait": 0})
    yard.server.set_role(yard.app, yard.users["alice"], GUEST)
    yard.people._levels.clear()  # half a minute later
    refused = await yard.post(f"/inbox/{taken.body['id']}/answer", agent, {"text": "x"})
    assert refused.status == 403
    assert (await yard.world.turn(turn)).answer == ""  # type: ignore[arg-type]


async def test_a_message_is_not_given_to_a_client_that_is_gone(yard: ApiYard) -> None:
    agent = await helper(yard)
    by_mcp = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "inbox_take", "arguments": {}}}
    both = {"Accept": "application/json, text/event-stream"}
    for asking in (
        yard.post("/inbox/take", agent, {"wait": 20}, timeout=aiohttp.ClientTimeout(0.3)),
        yard.ask("POST", "/mcp", agent, json=by_mcp, headers=both, timeout=aiohttp.ClientTimeout(0.3)),
    ):
        with pytest.raises(TimeoutError):
            await asking
    await asyncio.sleep(0.1)
    await asked(yard)
    yard.world.yard.database.signals.wake(inbox_of("helper"))  # as the loop over conversations does
    await asyncio.sleep(0.3)
    assert (await yard.post("/inbox/take", agent, {"wait": 0})).body["id"]


async def test_a_token_that_is_revoked_while_it_waits_for_an_answer_hears_nothing_of_it(yard: ApiYard) -> None:
    hers, turn = await asked(yard)
    other = await yard.token()
    waiting = asyncio.create_task(yard.get(f"/messages/{turn}?wait=20", other))
    await asyncio.sleep(0.2)
    await yard.tokens.revoke_token(other.line.id, actor=ROOT)
    agent = await helper(yard)
    message = (await yard.post("/inbox/take", agent, {"wait": 0})).body["id"]
    await yard.post(f"/inbox/{message}/answer", agent, {"text": "for alice", "end": "done"})
    refused = await asyncio.wait_for(waiting, 5)
    assert (refused.status, "revoked" in refused.body["detail"]) == (401, True)
    assert (await yard.get(f"/messages/{turn}", hers)).body["text"] == "for alice"
