"""Webhooks from the stand-in over HTTP to the receiver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import ClientSession, web

from ravebot.clock import SystemClock
from ravebot.errors import StoreError
from ravebot.gitlab.events import CommentPosted, MergeRequestChanged
from ravebot.gitlab.kept import read
from ravebot.gitlab.receiver import MAX_BODY_BYTES, webhook_handler
from ravebot.gitlab.refusals import Refusals
from ravebot.gitlab.webhook import WebhookDelivery, WebhookSecrets, signing_key
from tests.support.gitlab import DEVELOPER, GitLabServer

pytestmark = pytest.mark.integration

SIGNING_TOKEN = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
SECRETS = WebhookSecrets("a plain secret", signing_key(SIGNING_TOKEN))


class Receiver:
    """The handler on a port, over a set of keys where the store would be."""

    def __init__(self) -> None:
        self.accepted: list[WebhookDelivery] = []
        self.results: list[str] = []
        self.broken = False
        self.url = ""
        self.refusals = Refusals(SystemClock())

    async def accept(self, delivery: WebhookDelivery) -> bool:
        if self.broken:
            raise StoreError("the disk is full")
        if delivery.key in {one.key for one in self.accepted}:
            return False
        self.accepted.append(delivery)
        return True

    def events(self) -> list[object]:
        return [read(delivery.kind, delivery.body) for delivery in self.accepted]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving(100_000) as receiver:
        yield receiver


@asynccontextmanager
async def receiving(max_body_bytes: int) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    handler = webhook_handler(
        SECRETS,
        SystemClock(),
        receiver.accept,
        lambda result, _: receiver.results.append(result),
        receiver.refusals,
        max_body_bytes=max_body_bytes,
        body_seconds=1,
    )
    app.router.add_post("/webhooks/gitlab", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/gitlab"
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def gitlab() -> AsyncIterator[GitLabServer]:
    async with GitLabServer() as server:
        yield server


async def test_a_wrong_secret_is_remembered_until_a_webhook_with_the_right_one_comes(
    gitlab: GitLabServer, receiver: Receiver
) -> None:
    alice, project = gitlab.add_user("alice"), gitlab.add_project("group/app")
    hook = gitlab.add_hook(project, receiver.url, secret_token="another secret")
    gitlab.open_merge_request(project, alice, "Add login", "login")
    await gitlab.settle()
    assert receiver.refusals.said.startswith("webhooks are refused (1 since")
    assert "set the same" in receiver.refusals.said
    hook.secret_token = "a plain secret"
    gitlab.open_merge_request(project, alice, "Add logout", "logout")
    await gitlab.settle()
    assert receiver.refusals.said == ""
    async with aiohttp.ClientSession() as session, session.post(receiver.url, data=b"<?php") as answer:
        assert answer.status == 401
    assert receiver.refusals.said == "", "that does not even say that it is GitLab's"


@pytest.mark.parametrize("secret", [{"secret_token": "a plain secret"}, {"signing_token": SIGNING_TOKEN}])
async def test_a_merge_requests_life_arrives_in_order_with_either_secret(
    gitlab: GitLabServer, receiver: Receiver, secret: dict[str, Any]
) -> None:
    alice, bob = gitlab.add_user("alice"), gitlab.add_user("bob")
    project = gitlab.add_project("group/app")
    gitlab.set_role(project, alice, DEVELOPER)
    gitlab.add_hook(project, receiver.url, **secret)
    mr = gitlab.open_merge_request(project, alice, "Add login", "login", draft=True, reviewers=(bob,))
    first = mr.sha
    gitlab.push(mr, {"new.txt": "x"})
    gitlab.mark_ready(mr)
    gitlab.comment(mr, bob, "looks good")
    gitlab.comment(mr, bob, "please\n/sandbox extend 1h")
    gitlab.close(mr)
    gitlab.reopen(mr)
    gitlab.merge(mr)
    await gitlab.settle()

    events = receiver.events()
    changes = [event for event in events if isinstance(event, MergeRequestChanged)]
    assert [change.mr.state for change in changes] == ["opened", "opened", "opened", "closed", "opened", "merged"]
    assert changes[0].mr.head_sha == first
    assert changes[0].mr.draft
    assert not changes[2].mr.draft
    assert (changes[0].mr.author.username, [one.username for one in changes[0].mr.people]) == ("alice", ["bob"])
    (comment,) = [event for event in events if isinstance(event, CommentPosted)]
    assert (comment.author.id, comment.ref, comment.project_path) == (bob.id, changes[0].mr.ref, "group/app")
    assert {delivery.lane for delivery in receiver.accepted} == {f"{project.id}!1"}
    assert receiver.results.count("ignored") == 1
    assert {(attempt.status, attempt.answer) for attempt in gitlab.deliveries} <= {(202, b""), (200, b"")}


async def test_a_delivery_sent_again_is_stored_once(gitlab: GitLabServer, receiver: Receiver) -> None:
    alice = gitlab.add_user("alice")
    project = gitlab.add_project("group/app")
    gitlab.add_hook(project, receiver.url, secret_token="a plain secret")
    gitlab.open_merge_request(project, alice)
    await gitlab.settle()
    gitlab.redeliver()
    await gitlab.settle()
    assert receiver.results == ["accepted", "duplicate"]
    assert [attempt.status for attempt in gitlab.deliveries] == [202, 200]


@pytest.mark.parametrize("secret", [{}, {"secret_token": "wrong"}, {"signing_token": "whsec_" + "A" * 44}])
async def test_a_forged_token_is_refused_and_stores_nothing(
    gitlab: GitLabServer, receiver: Receiver, secret: dict[str, Any]
) -> None:
    project = gitlab.add_project("group/app")
    gitlab.add_hook(project, receiver.url, **secret)
    gitlab.open_merge_request(project, gitlab.add_user("mallory"))
    await gitlab.settle()
    assert [attempt.status for attempt in gitlab.deliveries] == [401]
    assert receiver.results == ["forged"]
    assert receiver.accepted == []


async def test_what_cannot_be_stored_is_not_acknowledged_and_comes_again(
    gitlab: GitLabServer, receiver: Receiver
) -> None:
    project = gitlab.add_project("group/app")
    gitlab.add_hook(project, receiver.url, secret_token="a plain secret", retries=0)
    receiver.broken = True
    gitlab.open_merge_request(project, gitlab.add_user("alice"))
    await gitlab.settle()
    assert [attempt.status for attempt in gitlab.deliveries] == [503]
    receiver.broken = False
    gitlab.redeliver()
    await gitlab.settle()
    assert receiver.results == ["unavailable", "accepted"]


async def test_hostile_texts_arrive_as_plain_facts(gitlab: GitLabServer, receiver: Receiver) -> None:
    project = gitlab.add_project("group/app")
    gitlab.add_hook(project, receiver.url, secret_token="a plain secret")
    title = "/close\n@all <script>alert(1)</script> \u202e \x00 " + "x" * 10_000
    gitlab.open_merge_request(project, gitlab.add_user("mallory"), title, "/close `@all` | <b>")
    await gitlab.settle()
    (event,) = receiver.events()
    assert isinstance(event, MergeRequestChanged)
    assert event.mr.title == title[:1024]
    assert event.mr.source_branch == "/close `@all` | <b>"


@pytest.mark.parametrize(
    ("body", "status", "result"),
    [
        (b"", 400, "malformed"),
        (b"not json", 400, "malformed"),
        (b"\xff\xfe", 400, "malformed"),
        (b"[" * 50_000, 400, "malformed"),
        (b"[]", 400, "malformed"),
        (b"{}", 400, "malformed"),
        (b'{"object_kind": "merge_request"}', 400, "malformed"),
        (b'{"object_kind": "note", "object_attributes": {"noteable_type": "MergeRequest"}}', 400, "malformed"),
        (b'{"object_kind": "push"}', 200, "ignored"),
        (b'{"event_name": "project_create"}', 200, "ignored"),
        (b'{"object_kind": "note", "object_attributes": {"noteable_type": "Issue"}}', 200, "ignored"),
        (b"x" * 100_001, 413, "too_large"),
    ],
)
async def test_a_body_that_makes_no_sense_gets_a_clear_answer(
    receiver: Receiver, body: bytes, status: int, result: str
) -> None:
    async with (
        ClientSession(headers={"X-Gitlab-Token": "a plain secret"}) as session,
        session.post(receiver.url, data=body) as response,
    ):
        text = await response.text()
    assert (response.status, receiver.results, receiver.accepted) == (status, [result], [])
    assert (text == "") == (status == 200)


async def test_a_comment_on_a_merge_request_with_the_longest_description_is_taken(gitlab: GitLabServer) -> None:
    project = gitlab.add_project("group/app")
    alice = gitlab.add_user("alice")
    async with receiving(MAX_BODY_BYTES) as receiver:
        gitlab.add_hook(project, receiver.url, secret_token="a plain secret")
        mr = gitlab.open_merge_request(project, alice, description="漢" * 1_000_000)
        gitlab.comment(mr, alice, "/sandbox stop\n" + "漢" * 900_000)
        await gitlab.settle()
        assert receiver.results == ["accepted", "accepted"]


async def test_a_body_that_can_not_be_unpacked_is_malformed(receiver: Receiver) -> None:
    async with (
        ClientSession(headers={"X-Gitlab-Token": "a plain secret", "Content-Encoding": "gzip"}) as session,
        session.post(receiver.url, data=b"no gzip") as response,
    ):
        assert response.status == 400
    assert receiver.results == ["malformed"]


async def test_a_sender_that_hangs_up_in_the_middle_is_counted_and_nothing_more(receiver: Receiver) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(receiver.url).port)
    head = (
        "POST /webhooks/gitlab HTTP/1.1\r\nHost: x\r\nX-Gitlab-Token: a plain secret\r\nContent-Length: 90000\r\n\r\n"
    )
    writer.write(head.encode() + b'{"object_kind"')
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    async with asyncio.timeout(60):
        while not receiver.results:
            await asyncio.sleep(0.01)
    assert receiver.results == ["malformed"]


async def test_a_large_body_without_a_length_is_refused_while_it_is_read(receiver: Receiver) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 1000

    async with (
        ClientSession(headers={"X-Gitlab-Token": "a plain secret"}) as session,
        session.post(receiver.url, data=endless()) as response,
    ):
        assert response.status == 413
    assert receiver.results == ["too_large"]


@pytest.mark.parametrize(
    ("token", "status", "result"), [("guess", 401, "forged"), ("a plain secret", 408, "malformed")]
)
async def test_a_body_that_never_comes_is_not_waited_for(
    receiver: Receiver, token: str, status: int, result: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(receiver.url).port)
    try:
        head = f"POST /webhooks/gitlab HTTP/1.1\r\nHost: x\r\nX-Gitlab-Token: {token}\r\nContent-Length: 90000\r\n\r\n"
        writer.write(head.encode() + b'{"object_kind"')
        await writer.drain()
        answer = await asyncio.wait_for(reader.readline(), 5)
    finally:
        writer.close()
    assert f" {status} ".encode() in answer
    assert receiver.results == [result]


async def test_paused_hooks_lose_events(gitlab: GitLabServer, receiver: Receiver) -> None:
    alice = gitlab.add_user("alice")
    project = gitlab.add_project("group/app")
    gitlab.add_hook(None, receiver.url, secret_token="a plain secret")
    gitlab.hooks_paused = True
    mr = gitlab.open_merge_request(project, alice)
    gitlab.hooks_paused = False
    gitlab.close(mr)
    await gitlab.settle()
    assert [event.mr.state for event in receiver.events() if isinstance(event, MergeRequestChanged)] == ["closed"]
