"""Tokens at the API: whom they let in, how far they reach, and that wrong ones cost others nothing."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from statistics import quantiles

import pytest
import structlog

from ravebot.clock import SystemClock
from ravebot.errors import Refused
from ravebot.sandboxes.model import Actor
from ravebot.store import api_tokens
from ravebot.store.database import Database
from ravebot.tools import tokens
from ravebot.tools.limits import CallRate
from ravebot.web.api.gate import MOST_AT_ONCE
from tests.support.api_yard import ROOT, ApiYard, an_api_yard
from tests.support.gitlab import DEVELOPER, GUEST

pytestmark = pytest.mark.integration
WRONG = 10_000


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[ApiYard]:
    async with an_api_yard(tmp_path / "state") as running:
        yield running


async def test_only_the_hash_of_a_token_is_stored(yard: ApiYard) -> None:
    made = await yard.token()
    await yard.get("/whoami", made)
    stored = b"".join(path.read_bytes() for path in (await yard_files(yard)))
    assert made.text.encode() not in stored
    assert made.text[5:30].encode() not in stored
    digest = tokens.hash_of(made.text)
    assert digest
    assert digest.encode() in stored
    assert made.text not in repr(made)


async def yard_files(yard: ApiYard) -> list[Path]:
    return [path for path in yard.world.yard.database.path.parent.iterdir() if path.is_file()]


async def test_malformed_guessed_expired_and_revoked_tokens_are_refused_with_what_to_do(yard: ApiYard) -> None:
    made = await yard.token(expires=timedelta(hours=1))
    changed = made.text[:-1] + ("A" if made.text[-1] != "A" else "B")
    for text in ("", "x", made.text[:-1], changed, f"{made.text}=", "Basic x", "rave_" + "ä" * 40):
        heard = await yard.get("/whoami", text.encode("utf-8").decode("latin-1"))
        assert heard.status == 401, text
        assert heard.headers["WWW-Authenticate"] == 'Bearer realm="ravebot"'
    assert (await yard.get("/whoami")).status == 401
    guessed = await yard.get("/whoami", tokens.new())
    assert (guessed.status, "is not known" in guessed.body["detail"]) == (401, True)
    assert (await yard.get("/whoami", made)).status == 200
    yard.world.yard.pass_by(hours=2)
    expired = await yard.get("/whoami", made)
    assert (expired.status, "has expired" in expired.body["detail"]) == (401, True)
    fresh = await yard.token()
    assert (await yard.get("/whoami", fresh)).status == 200
    assert (await yard.tokens.revoke_token(fresh.line.id, ROOT)).accepted
    revoked = await yard.get("/whoami", fresh)
    assert (revoked.status, "was revoked" in revoked.body["detail"]) == (401, True)


async def test_a_token_that_is_revoked_while_its_call_is_prepared_does_nothing(yard: ApiYard) -> None:
    made = await yard.token()
    await yard.ready()
    yard.server.hold(1, method="GET", path=f"/projects/{yard.app.id}/members")
    under_way = asyncio.create_task(yard.post(f"/sandboxes/{yard.mr.full_ref}/stop", made))
    while not yard.server.under_way:
        await asyncio.sleep(0.01)
    await yard.tokens.revoke_token(made.line.id, ROOT)
    await yard.server.let_go()
    heard = await under_way
    assert (heard.status, "was revoked" in heard.body["detail"]) == (401, True)
    assert (await yard.world.yard.latest(yard.mr)).state.value == "ready"


async def test_a_token_of_one_project_reaches_no_other(yard: ApiYard) -> None:
    await yard.world.yard.told(yard.hidden)
    await yard.world.yard.told(yard.mr)
    narrow = await yard.token(projects=("group/app",))
    wide = await yard.token(projects=("group/*",))  # but its owner is no member there
    nobodys = await yard.token(owner="bob", projects=("group/app",))  # nor has this one's owner any role here
    secret, ref = yard.hidden.full_ref, yard.mr.full_ref
    calls = [
        ("GET", "/sandboxes/{}", None), ("GET", "/sandboxes/{}/logs", None), ("GET", "/sandboxes/{}/changes", None),
        ("POST", "/sandboxes/{}/start", None), ("POST", "/sandboxes/{}/extend", None),
        ("POST", "/sandboxes/{}/stop", None), ("POST", "/sandboxes/{}/runs", {"command": "id"}),
    ]  # fmt: skip
    for method, path, body in calls:
        for made, target, status in ((narrow, secret, 403), (wide, secret, 404), (nobodys, ref, 404)):
            heard = await yard.ask(method, f"/api/v1{path.format(target)}", made, json=body)
            assert (heard.status, path) == (status, path)
    said = {"agent": "coder", "ref": secret, "text": "hello"}
    assert (await yard.post("/messages", narrow, said)).status == 403
    assert (await yard.post("/messages", wide, said)).status == 404
    assert [one["ref"] for one in (await yard.get("/sandboxes", wide)).body["items"]] == [ref]
    assert (await yard.get("/sandboxes", nobodys)).body["items"] == []
    assert {view.sandbox.status for view in await yard.world.yard.read(yard.bench.views.live)} == {"queued"}
    assert await yard.world.yard.log("api.call") == []


async def test_others_messages_and_runs_are_not_read(yard: ApiYard) -> None:
    yard.server.set_role(yard.app, yard.users["bob"], DEVELOPER)
    alice, bob = await yard.token(), await yard.token(owner="bob")
    await yard.ready()
    sent = await yard.post("/messages", alice, {"agent": "coder", "ref": yard.mr.full_ref, "text": "secret plan"})
    assert (await yard.get(f"/messages/{sent.body['turn']}", alice)).status == 200
    assert (await yard.get(f"/messages/{sent.body['turn']}", bob)).status == 404
    on = {"agent": "coder", "ref": yard.mr.full_ref, "text": "x", "conversation": sent.body["conversation"]}
    assert (await yard.post("/messages", bob, on)).status == 404
    run = await yard.post(f"/sandboxes/{yard.mr.full_ref}/runs", alice, {"command": "make"})
    assert run.status == 200, run.body
    outsider = await yard.token(owner="gina")
    assert (await yard.get(f"/runs/{run.body['id']}", outsider)).status == 404
    assert (await yard.post(f"/runs/{run.body['id']}/cancel", outsider)).status == 404


async def test_a_scope_that_is_missing_is_named(yard: ApiYard) -> None:
    made = await yard.token(scopes=("read",))
    heard = await yard.post(f"/sandboxes/{yard.mr.full_ref}/start", made)
    assert (heard.status, "scope sandbox" in heard.body["detail"]) == (403, True)
    other = await yard.token(scopes=("sandbox",))
    assert (await yard.get("/sandboxes", other)).status == 403


async def test_whoever_loses_their_role_loses_what_their_tokens_may(yard: ApiYard) -> None:
    made = await yard.token()
    await yard.ready()
    assert (await yard.get(f"/sandboxes/{yard.mr.full_ref}", made)).status == 200
    yard.server.set_role(yard.app, yard.users["alice"], GUEST)
    yard.people._levels.clear()  # half a minute later
    for method, path in (("GET", ""), ("POST", "/stop")):
        heard = await yard.ask(method, f"/api/v1/sandboxes/{yard.mr.full_ref}{path}", made)
        assert (heard.status, "alice is Guest in group/app." in heard.body["detail"]) == (403, True)
    [refusal] = await yard.world.yard.log("command.refused")
    assert refusal["verb"] == "stop"
    assert (await yard.get("/sandboxes", made)).body["items"] == []


async def test_a_message_whose_token_is_revoked_before_the_agent_had_it_is_not_given(yard: ApiYard) -> None:
    made = await yard.token()
    await yard.ready()
    sent = await yard.post("/messages", made, {"agent": "coder", "ref": yard.mr.full_ref, "text": "look"})
    assert (await yard.still_may(sent.body["turn"])).allowed
    await yard.tokens.revoke_token(made.line.id, ROOT)
    decision = await yard.still_may(sent.body["turn"])
    assert (decision.allowed, "was revoked" in decision.rule) == (False, True)


async def test_ten_thousand_wrong_tokens_cost_nothing_that_others_notice(yard: ApiYard) -> None:
    """Also those who are behind the same proxy, and so have the same address; and none of them is in the log."""
    made = await yard.token()
    guesses = [tokens.new() for _ in range(WRONG)]
    assert (await yard.get("/whoami", made)).status == 200

    statuses: Counter[int] = Counter()
    left = iter(guesses)

    async def flood() -> None:
        """One connection, without a client's own costs."""
        host, _, port = yard.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for text in left:
            writer.write(f"GET /api/v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {text}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            statuses[int(head.split(" ", 2)[1])] += 1
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
        writer.close()

    took, found = [], []
    with structlog.testing.capture_logs() as logged:
        floods = [asyncio.create_task(flood()) for _ in range(8)]
        while not all(one.done() for one in floods):
            began = time.monotonic()
            found.append((await yard.get("/whoami", made)).status)
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.1)
        await asyncio.gather(*floods)
        new = await yard.token()
        await asyncio.sleep(5.1)
        assert (await yard.get("/whoami", new)).status == 200, "a new token is known after a moment"
    p95 = quantiles(took, n=20)[-1] * 1000
    print(f"{WRONG} wrong tokens: {statuses[429]} were not looked up; {len(took)} right ones, p95 {p95:.1f} ms")
    assert set(statuses) == {401, 429}
    assert statuses.total() == WRONG
    assert statuses[401] < 100
    assert set(found) == {200}
    assert p95 < 1000, "milliseconds, beside the flood's own work in this process"
    assert not [line for line in logged if line["log_level"] != "debug"]


async def test_a_token_is_limited_and_told_when_to_go_on(tmp_path: Path) -> None:
    async with an_api_yard(tmp_path / "state", CallRate(burst=3, per_second=0.01)) as yard:
        made, other = await yard.token(), await yard.token()
        *answered, refused = [await yard.get("/whoami", made) for _ in range(4)]
        assert ([one.status for one in answered], refused.status) == ([200] * 3, 429)
        assert 50 < int(refused.headers["Retry-After"]) <= 100
        assert "Wait" in refused.body["detail"]
        assert (await yard.get("/whoami", other)).status == 200


async def test_a_token_has_so_many_requests_under_way_and_others_go_on(yard: ApiYard) -> None:
    made, other = await yard.token(), await yard.token()
    await yard.ready()
    sent = await yard.post("/messages", made, {"agent": "coder", "ref": yard.mr.full_ref, "text": "look"})
    path = f"/messages/{sent.body['turn']}?wait=20"
    waiting = [asyncio.create_task(yard.get(path, made)) for _ in range(MOST_AT_ONCE)]
    async with asyncio.timeout(20):
        while (refused := await yard.get("/whoami", made)).status == 200:
            await asyncio.sleep(0.02)
    assert (refused.status, "under way" in refused.body["detail"]) == (429, True)
    assert (await yard.get("/whoami", other)).status == 200
    await yard.world.answered(sent.body["turn"], "Done.")
    assert {one.status for one in await asyncio.gather(*waiting)} == {200}
    assert (await yard.get("/whoami", made)).status == 200


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"owner": "nobody"}, "GitLab has no user nobody"),
        ({"scopes": ("everything",)}, "at least one of the scopes"),
        ({"scopes": ()}, "at least one of the scopes"),
        ({"projects": ()}, "at least one project"),
        ({"projects": ("elsewhere/*",)}, "not among gitlab.projects"),
        ({"expires": timedelta(days=400)}, "at most a year"),
        ({"agent": "coder"}, "give both"),
        ({"scopes": ("agent",)}, "give both"),
        ({"scopes": ("agent",), "agent": "nobody"}, "No agent called nobody"),
        ({"scopes": ("agent",), "agent": "coder"}, "coder works in sandboxes"),
        ({"scopes": ("agent",), "agent": "helper", "owner": "bob"}, "helper is alice's"),
    ],
)
async def test_a_token_that_could_do_nothing_is_not_made(yard: ApiYard, facts: dict[str, object], word: str) -> None:
    with pytest.raises(Refused, match=word):
        await yard.token(**facts)  # type: ignore[arg-type]
    assert await yard.tokens.tokens() == ()


async def test_a_restored_database_has_no_valid_token(yard: ApiYard, tmp_path: Path) -> None:
    made = await yard.token()
    restored = yard.world.yard.back_up(tmp_path / "restored")
    with closing(sqlite3.connect(restored)) as connection:
        [(revoked, by)] = connection.execute("SELECT revoked_at, revoked_by FROM api_tokens").fetchall()
    assert revoked is not None
    assert by == "the restore of a backup"
    assert (await yard.get("/whoami", made)).status == 200, "the one that was backed up goes on"


async def test_making_and_revoking_are_events_and_the_last_use_is_written_once_a_minute(yard: ApiYard) -> None:
    made = await yard.token(name="ci")
    for _ in range(3):
        await yard.get("/whoami", made)
    first = (await yard.tokens.tokens())[0].used_at
    yard.world.yard.pass_by(seconds=30)
    await yard.get("/whoami", made)
    assert (await yard.tokens.tokens())[0].used_at == first
    yard.world.yard.pass_by(seconds=31)
    await yard.get("/whoami", made)
    assert (await yard.tokens.tokens())[0].used_at != first
    await yard.tokens.revoke_token(made.line.id, Actor("shell", "root"))
    again = await yard.tokens.revoke_token(made.line.id, ROOT)
    assert "was revoked before" in again.message
    [created] = await yard.world.yard.log("token.created")
    assert (created["owner"], created["name"], created["projects"]) == ("alice", "ci", ["group/*"])
    assert len(await yard.world.yard.log("token.revoked")) == 1
    assert await yard.world.yard.read(api_tokens.valid_hashes) == frozenset()


async def test_amid_wrong_tokens_from_the_same_address_every_request_with_a_valid_one_is_served(yard: ApiYard) -> None:
    made = await yard.token()
    await asyncio.gather(*(yard.get("/whoami", tokens.new()) for _ in range(20)))  # the next is one too many
    heard = await asyncio.gather(*(yard.get("/whoami", made) for _ in range(10)))
    assert {one.status for one in heard} == {200}


async def test_a_database_that_can_not_be_read_makes_the_api_unavailable_and_no_mistake(
    yard: ApiYard, tmp_path: Path
) -> None:
    made = await yard.token()
    async with Database(tmp_path / "other.db", SystemClock()) as closed:
        pass
    yard.gate.database = closed
    for heard in (await yard.get("/whoami", made), await yard.ask("POST", "/mcp", made, json={})):
        assert (heard.status, heard.headers["Content-Type"]) == (503, "application/problem+json")
        assert heard.headers["Retry-After"]
