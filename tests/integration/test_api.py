"""The API by real HTTP: what each tool gives, whom it refuses, and that a request is carried out once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ravebot.agents.answers import LONGEST_PIECE
from ravebot.config.model import ApiConfig
from ravebot.store import api_tokens
from ravebot.store.api_tokens import TokenId
from ravebot.tools.calls import ToolCalls
from ravebot.tools.once import Kept, Once
from ravebot.tools.shapes import StartRun
from ravebot.web.api.gate import Gate
from ravebot.web.api.server import serve_api
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
    assert (await yard.post("/messages", made, {"agent": "x" * 1_100_000})).status == 413
    longest = {"text": "\U0001f600" * LONGEST_PIECE}  # in JSON as two escapes each
    assert (await yard.post("/inbox/1/answer", made, longest)).status == 403
    assert (await yard.get("/sandboxes?page=1&page=2", made)).body[
        "detail"
    ] == "A parameter is given twice: give each once."
    assert (await yard.get("/runs/1?id=2", made)).body["detail"] == "id is in the path: leave it out elsewhere."
    assert (await yard.post("/sandboxes/group/app!1/stop", made, key="k" * 201)).status == 422
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
    foreign = await yard.post(f"/sandboxes/{ref}/extend", await yard.token(), {"by": "10m"}, key="k1")
    assert (foreign.status, "Idempotency-Replayed" in foreign.headers) == (200, False), "another token's key"
    other = await yard.post(f"/sandboxes/{ref}/extend", made, {"by": "20m"}, key="k1")
    assert (other.status, "another request" in other.body["detail"]) == (422, True)
    yard.world.yard.pass_by(hours=25)
    assert "Idempotency-Replayed" not in (await yard.post(f"/sandboxes/{ref}/stop", made, key="k1")).headers


async def test_a_token_that_keeps_too_many_answers_begins_nothing_new_and_forgets_none(yard: ApiYard) -> None:
    made, other, ref = await yard.token(), await yard.token(), yard.mr.full_ref
    await yard.ready()
    yard.calls.room.most_keys = 2
    path, run = f"/sandboxes/{ref}/runs", {"command": "make " + "x" * 5000}
    first = await yard.post(path, made, run, key="k1")
    assert (await yard.post(path, made, run, key="k2")).status == 200
    refused = await yard.post(path, made, run, key="k3")
    assert (refused.status, "leave the key out" in refused.body["detail"]) == (429, True)
    assert refused.headers["Retry-After"] == str(24 * 3600)
    again = await yard.post(path, made, run, key="k1")
    assert (again.status, again.body, "Idempotency-Replayed" in again.headers) == (200, first.body, True)
    assert len(await yard.world.yard.log("run.asked")) == 2
    assert (await yard.post(path, made, run)).status == 200, "without a key"
    assert (await yard.post(path, other, run, key="k3")).status == 200, "another token"
    yard.world.yard.pass_by(hours=25)
    assert (await yard.post(path, made, run, key="k4")).status == 429, "it was counted less than a minute ago"
    yard.calls.room.count_every_seconds = 0
    assert (await yard.post(f"/sandboxes/{ref}/stop", made, key="k3")).status == 200


async def test_the_answers_that_are_kept_do_not_repeat_what_was_asked_and_are_limited_in_bytes(yard: ApiYard) -> None:
    made, ref = await yard.token(), yard.mr.full_ref
    await yard.ready()
    yard.calls.room.most_bytes = 700
    path, run = f"/sandboxes/{ref}/runs", {"command": "make " + "ä" * 5000, "timeout": 60}
    heard = [await yard.post(path, made, run, key=f"k{number}") for number in range(5)]
    kept = await yard.world.yard.read(lambda tx: api_tokens.kept(tx, made.line.id))  # type: ignore[arg-type]
    assert heard[0].body["command"] == run["command"]
    assert 700 <= kept.bytes < 1400
    assert [one.status for one in heard] == [200] * kept.keys + [429] * (5 - kept.keys)
    assert (await yard.post(path, made, run, key="k0")).body == heard[0].body
    assert (await yard.post(path, made, {**run, "command": "make"}, key="k0")).status == 422


async def test_what_an_answer_says_otherwise_than_it_was_asked_is_given_again_as_it_was(yard: ApiYard) -> None:
    made = await yard.token()
    token_id, body = TokenId(made.line.id), {"ref": "group/app!1", "state": "ready", "command": "make"}
    once = Once("run_start", StartRun(ref="group/app!01", command="make"), token_id, "k")
    await yard.world.yard.write(lambda tx: once.keep(tx, 200, body))
    again = await yard.world.yard.read(once.answered)
    assert again == Kept(200, body)


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


async def test_an_answer_that_never_arrived_is_given_again_also_by_a_restarted_ravebot(yard: ApiYard) -> None:
    made, ref = await yard.token(), yard.mr.full_ref
    await yard.ready()
    host, _, port = yard.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /api/v1/sandboxes/{ref}/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {made.text}\r\n"
        "Idempotency-Key: lost\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n"
        '{"command": "make"}'.encode()
    )
    async with asyncio.timeout(10):
        while not await yard.world.yard.log("api.call"):
            await asyncio.sleep(0.01)
    writer.transport.abort()  # nobody has read the answer
    api = ApiConfig.model_construct(listen="127.0.0.1:0")
    again = ToolCalls(yard.bench)
    async with serve_api(api, again, Gate(yard.world.yard.database)) as (other, number):
        restarted = replace(yard, url=f"http://{other}:{number}")
        heard = await restarted.post(f"/sandboxes/{ref}/runs", made, {"command": "make"}, key="lost")
    assert (heard.status, heard.headers.get("Idempotency-Replayed")) == (200, "true")
    assert len(await yard.world.yard.log("run.asked")) == 1


async def test_what_fails_half_way_leaves_neither_its_act_nor_an_answer_for_its_key(yard: ApiYard) -> None:
    made, ref = await yard.token(), yard.mr.full_ref
    await yard.ready()
    await yard.world.yard.write(
        lambda tx: tx.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON api_answers BEGIN SELECT RAISE(ABORT, 'the disk is on fire'); END"
        )
    )
    failed = await yard.post(f"/sandboxes/{ref}/runs", made, {"command": "make"}, key="k")
    assert failed.status == 500
    assert "fire" not in str(failed.body)
    assert await yard.world.yard.log("run.asked") == []
    await yard.world.yard.write(lambda tx: tx.execute("DROP TRIGGER broken"))
    done = await yard.post(f"/sandboxes/{ref}/runs", made, {"command": "make"}, key="k")
    assert (done.status, "Idempotency-Replayed" in done.headers) == (200, False)
    assert len(await yard.world.yard.log("run.asked")) == 1


async def test_slow_and_silent_clients_are_let_go_and_do_not_keep_others_out(yard: ApiYard) -> None:
    made = await yard.token()
    host, _, port = yard.url.removeprefix("http://").partition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
    for _, writer in silent[:25]:
        writer.write(b"GET /api/v1/whoami HTTP/1.1\r\n")
    assert (await yard.get("/whoami", made)).status == 200
    smuggled, sender = await asyncio.open_connection(host, int(port))
    sender.write(
        b"POST /api/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    assert b" 40" in (await smuggled.readline())
    async with asyncio.timeout(25):
        for reader, writer in silent:
            assert await reader.read(1000) == b"", "closed, without a word"
            writer.close()
    sender.close()
