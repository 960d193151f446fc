"""The API by real HTTP: what each tool gives, whom it refuses, and that a request is carried out once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api_yard import ApiYard, an_api_yard

pytestmark = pytest.mark.integration


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[ApiYard]:
    async with an_api_yard(tmp_path / "state") as running:
        yield running


async def test_a_token_says_whose_it_is_and_what_it_may(yard: ApiYard) -> None:
    made = await yard.token(scopes=("read", "sandbox"), name="laptop")
    heard = await yard.get("/whoami", made)
    assert heard.status == 200
    assert (heard.body["owner"], heard.body["token"]) == ("alice", "laptop")
    assert heard.body["scopes"] == ["read", "sandbox"]
    [line] = await yard.tokens.tokens()
    assert line.used_at is not None


async def test_a_sandbox_is_started_shown_extended_and_stopped(yard: ApiYard) -> None:
    made, ref = await yard.token(), yard.mr.full_ref
    started = await yard.post(f"/sandboxes/{ref}/start", made)
    assert (started.status, started.body["message"]) == (200, f"A sandbox for {ref} is on its way.")
    assert started.body["sandbox"]["state"] == "queued"
    await yard.world.yard.until(lambda: yard.world.yard.is_in(yard.mr, "ready"))
    shown = await yard.get(f"/sandboxes/{ref.replace('/', '%2F')}", made)
    assert shown.status == 200
    assert shown.body["state"] == "ready"
    assert shown.body["ssh_command"].startswith("ssh -o HostKeyAlias=")
    extended = await yard.post(f"/sandboxes/{ref}/extend", made, {"by": "30m"})
    assert (extended.status, "30 min more" in extended.body["message"]) == (200, True)
    stopped = await yard.post(f"/sandboxes/{ref}/stop", made)
    assert (stopped.status, stopped.body["sandbox"]["state"]) == (200, "stopping")
    calls = await yard.world.yard.log("api.call")
    assert [call["tool"] for call in calls] == ["sandbox_start", "sandbox_extend", "sandbox_stop"]
    assert {call["token"] for call in calls} == {made.line.id}


async def test_lists_come_in_pages_that_say_where_the_others_are(yard: ApiYard) -> None:
    made = await yard.token()
    for number in range(3):
        await yard.world.yard.told(await yard.open_merge_request(f"MR {number}"))
    await yard.world.yard.told(yard.hidden)
    first = await yard.get("/sandboxes?per_page=2", made)
    assert [one["ref"] for one in first.body["items"]] == ["group/app!2", "group/app!3"]
    assert (first.body["total"], first.body["next_page"]) == (3, 2)
    assert first.headers["X-Next-Page"] == "2"
    assert '</api/v1/sandboxes?per_page=2&page=2>; rel="next"' in first.headers["Link"]
    last = await yard.get("/sandboxes?per_page=2&page=2", made)
    assert [one["ref"] for one in last.body["items"]] == ["group/app!4"]
    assert last.headers["X-Next-Page"] == ""
    none = await yard.get("/sandboxes?project=group/secret", made)
    assert none.body["items"] == []


async def test_a_problem_says_what_is_wrong_and_what_to_do(yard: ApiYard) -> None:
    made = await yard.token()
    heard = await yard.get("/sandboxes?per_page=1000", made)
    assert (heard.status, heard.headers["Content-Type"]) == (422, "application/problem+json")
    assert heard.body["title"] == "The request does not fit"
    assert "per_page" in heard.body["detail"]
    assert (await yard.get("/nothing", made)).status == 404
    assert (await yard.post("/whoami", made)).status == 405
    assert (await yard.post("/messages", made, {"agent": "x" * 300_000})).status == 413
    plain = await yard.ask("POST", "/api/v1/messages", made, data=b"agent=coder")
    assert plain.status == 415
    wrong = await yard.ask(
        "POST", "/api/v1/messages", made, data=b'{"agent": }', headers={"Content-Type": "application/json"}
    )
    assert wrong.status == 400
    missing = await yard.get("/sandboxes/group/app!99", made)
    assert (missing.status, missing.body["detail"]) == (404, "There is no group/app!99, or I may not see it.")
    nothing = await yard.get(f"/sandboxes/{yard.mr.full_ref}", made)
    assert (nothing.status, "sandbox_start" in nothing.body["detail"]) == (404, True)


async def test_the_same_key_gives_the_first_answer_and_does_it_once(yard: ApiYard) -> None:
    made, ref = await yard.token(), yard.mr.full_ref
    await yard.ready()
    before = (await yard.world.yard.latest(yard.mr)).expires_at
    answers = await asyncio.gather(
        *(yard.post(f"/sandboxes/{ref}/extend", made, {"by": "10m"}, key="k1") for _ in range(8))
    )
    assert {one.status for one in answers} == {200}
    assert len({one.body["message"] for one in answers}) == 1
    assert sum("Idempotency-Replayed" in one.headers for one in answers) == 7
    after = (await yard.world.yard.latest(yard.mr)).expires_at
    assert before
    assert after
    assert (after - before).total_seconds() == 600
    other = await yard.post(f"/sandboxes/{ref}/extend", made, {"by": "20m"}, key="k1")
    assert (other.status, "another request" in other.body["detail"]) == (422, True)
    yard.world.yard.pass_by(hours=25)
    assert "Idempotency-Replayed" not in (await yard.post(f"/sandboxes/{ref}/stop", made, key="k1")).headers


async def test_what_was_refused_stays_refused_for_its_key(yard: ApiYard) -> None:
    made, ref = await yard.token(), yard.mr.full_ref
    first = await yard.post(f"/sandboxes/{ref}/stop", made, key="k")
    await yard.post(f"/sandboxes/{ref}/start", made)
    await yard.world.yard.until(lambda: yard.world.yard.is_in(yard.mr, "ready"))
    again = await yard.post(f"/sandboxes/{ref}/stop", made, key="k")
    assert (first.status, again.status, again.body) == (409, 409, first.body)
    assert (await yard.world.yard.latest(yard.mr)).state.value == "ready"


async def test_an_agent_is_spoken_to_and_its_answer_read_on(yard: ApiYard) -> None:
    made = await yard.token()
    await yard.ready()
    sent = await yard.post("/messages", made, {"agent": "coder", "ref": yard.mr.full_ref, "text": "look"}, key="m1")
    assert (sent.status, sent.body["message"]) == (200, "coder gets it.")
    turn = sent.body["turn"]
    waiting = asyncio.create_task(yard.get(f"/messages/{turn}?wait=10", made))
    await asyncio.sleep(0.05)
    await yard.world.answered(turn, "It is done.")
    heard = await waiting
    assert (heard.body["text"], heard.body["ok"] or not heard.body["over"]) == ("It is done.", True)
    later = await yard.get(f"/messages/{turn}?offset={heard.body['offset']}", made)
    assert (later.body["text"], later.body["state"], later.body["over"]) == ("", "done", True)
    more = {"agent": "coder", "ref": yard.mr.full_ref, "text": "more", "conversation": sent.body["conversation"]}
    assert (await yard.post("/messages", made, more)).body["conversation"] == sent.body["conversation"]
    assert (await yard.post("/messages", made, {**more, "agent": "nobody"})).status == 404


async def test_what_set_up_printed_is_shown(yard: ApiYard) -> None:
    made = await yard.token()
    await yard.ready()
    heard = await yard.get(f"/sandboxes/{yard.mr.full_ref}/logs", made)
    [run] = heard.body["runs"]
    assert run["ok"]
    assert [stage["output"] for stage in run["stages"]] == ["its output\n"]
