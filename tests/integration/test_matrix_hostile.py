"""Homeservers and proxies that misbehave: real HTTP on loopback, answers that a good server never gives."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ravebot.clock import SystemClock
from ravebot.config.model import MatrixConfig
from ravebot.errors import Forbidden, StoreError, Unavailable
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.hearing import Hearing
from ravebot.matrix.incoming import MOST_TEXT, Heard, IncomingMessage
from ravebot.matrix.invites import Invites
from ravebot.matrix.rooms import RoomDirectory
from ravebot.matrix.sync import SyncLoop
from tests.support.clock import ManualClock

pytestmark = pytest.mark.integration

US = "@ravebot:localhost"
ROOM = "!room:localhost"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def homeserver(answer: Handler) -> AsyncIterator[str]:
    """A server that answers every request with `answer`; yields its URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client_of(url: str, folder: Path, *, timeout_seconds: float = 5.0) -> AsyncIterator[MatrixClient]:
    config = MatrixConfig.model_validate({"homeserver": url, "user_id": US, "access_token_file": "/unused"})
    client = MatrixClient(config, "syt_secret", folder, timeout_seconds=timeout_seconds)
    try:
        yield client
    finally:
        await client.close()


def direct(heard: Heard) -> bool:
    assert isinstance(heard, IncomingMessage)
    return heard.direct


class Journal:
    """In memory; listens since `s0`."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.next_batch: str | None = "s0"

    async def token(self) -> str | None:
        return self.next_batch

    async def save(self, messages: tuple[Heard, ...], next_batch: str) -> None:
        self.texts += [message.text for message in messages if isinstance(message, IncomingMessage)]
        self.next_batch = next_batch


class EnoughError(Exception):
    """The test has seen enough."""


class Pauses:
    """Stands in for sleeping: notes how long it would have been, and ends the loop after so many."""

    def __init__(self, most: int) -> None:
        self.seconds: list[float] = []
        self._most = most

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= self._most:
            raise EnoughError


def loop_of(client: MatrixClient, journal: Journal, admins: tuple[str, ...] = (), **how: Any) -> SyncLoop:
    clock = SystemClock()
    return SyncLoop(client, journal, clock, Invites(client, admins, clock, lambda _: None), **how)


async def listen(url: str, folder: Path, pauses: Pauses, journal: Journal | None = None) -> list[str]:
    """Run the loop until it ends by itself or has paused often enough; returns how its rounds went."""
    results: list[str] = []
    async with client_of(url, folder) as client:
        loop = loop_of(client, journal or Journal(), on_result=results.append, sleep=pauses, jitter=lambda: 1.0)
        with pytest.raises(EnoughError):
            await asyncio.wait_for(loop.run(), 30)
    return results


def said(number: int) -> dict[str, Any]:
    return {
        "type": "m.room.message",
        "event_id": f"${number}",
        "sender": "@alice:localhost",
        "origin_server_ts": number,
        "content": {"msgtype": "m.text", "body": str(number)},
    }


def synced(token: str, **rooms: Any) -> web.Response:
    return web.json_response({"next_batch": token, "rooms": rooms})


def limited(*events: dict[str, Any]) -> dict[str, Any]:
    return {ROOM: {"timeline": {"events": list(events), "limited": True, "prev_batch": "p1"}}}


async def test_a_failing_server_is_asked_ever_more_slowly(tmp_path: Path) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=502, text="<html>Bad Gateway</html>")

    pauses = Pauses(10)
    async with homeserver(answer) as url:
        results = await listen(url, tmp_path, pauses)
    assert pauses.seconds == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert asked == 10
    assert results == ["unavailable"] * 10


async def test_a_limiting_server_is_left_alone_for_as_long_as_its_header_says(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"errcode": "M_LIMIT_EXCEEDED"}, status=429, headers={"Retry-After": "77"})

    pauses = Pauses(2)
    async with homeserver(answer) as url:
        await listen(url, tmp_path, pauses)
    assert pauses.seconds == [77, 77]


async def test_a_server_that_answers_nothing_at_once_is_not_polled_hot(tmp_path: Path) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return synced("s1")

    pauses = Pauses(4)
    async with homeserver(answer) as url:
        results = await listen(url, tmp_path, pauses)
    assert pauses.seconds == [0.5, 1, 2, 4]
    assert asked <= 8
    assert set(results) == {"ok"}


@pytest.mark.parametrize(("status", "code"), [(404, "M_UNRECOGNIZED"), (403, "M_FORBIDDEN"), (400, "M_INVALID_PARAM")])
async def test_a_sync_that_is_refused_is_tried_again_and_told(tmp_path: Path, status: int, code: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"errcode": code, "error": "not here"}, status=status)

    pauses = Pauses(3)
    async with homeserver(answer) as url, client_of(url, tmp_path) as client:
        loop = loop_of(client, Journal(), sleep=pauses, jitter=lambda: 1.0)
        with pytest.raises(EnoughError):
            await asyncio.wait_for(loop.run(), 30)
    assert pauses.seconds == [0.5, 1, 2]
    assert "not here" in loop.problem


class LockedJournal(Journal):
    """One that can't be written at first."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    async def save(self, messages: tuple[Heard, ...], next_batch: str) -> None:
        if self.failures and messages:
            self.failures -= 1
            raise StoreError("the database is full")
        await super().save(messages, next_batch)


async def test_a_journal_that_cannot_be_written_now_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/joined_members"):
            return web.json_response({"joined": {}})
        if request.query.get("since") == "s0":
            return synced("s1", join={ROOM: {"timeline": {"events": [said(1)]}}})
        return synced("s1")

    journal, pauses = LockedJournal(2), Pauses(3)
    async with homeserver(answer) as url:
        results = await listen(url, tmp_path, pauses, journal)
    assert pauses.seconds[:2] == [0.5, 1]
    assert results.count("unavailable") == 2
    assert (journal.texts, journal.next_batch) == (["1"], "s1")


async def test_a_sync_of_the_wrong_shape_breaks_nothing(tmp_path: Path) -> None:
    odd: list[Any] = [
        {"join": []},
        {"join": {ROOM: []}},
        {"join": {ROOM: {"timeline": []}}},
        {"join": {ROOM: {"timeline": {"events": {}, "limited": True}}}},
        {"join": {ROOM: {"timeline": {"events": [None, 1, [], {"type": 5}, {"type": "m.room.member"}]}}}},
        {"invite": {ROOM: {"invite_state": {"events": "no"}}}, "leave": 7},
        [],
        None,
    ]
    answers = iter(odd)

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/joined_members"):
            return web.json_response({"joined": ["odd"]})
        if "since" not in request.query:
            return synced("s0")
        rooms = next(answers, None)
        last = {"join": {ROOM: {"timeline": {"events": [said(1)]}}}} if rooms is None else rooms
        return web.json_response({"next_batch": "s1", "rooms": last})

    journal = Journal()

    async with homeserver(answer) as url, client_of(url, tmp_path) as client:
        task = asyncio.create_task(loop_of(client, journal).run())
        while not journal.texts and not task.done():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
    assert journal.texts[0] == "1"


async def test_a_gap_that_breaks_off_is_read_again_whole(tmp_path: Path) -> None:
    pages = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal pages
        if request.path.endswith("/joined_members"):
            return web.json_response({"joined": {}})
        if request.path.endswith("/messages"):
            pages += 1
            assert request.query["to"] == "s0"
            if pages == 2:
                return web.Response(status=500)
            first = request.query["from"] == "p1"
            return web.json_response(
                {"chunk": [said(3), said(2)] if first else [said(1)]} | ({"end": "p2"} if first else {})
            )
        if request.query.get("since") == "s0":
            return synced("s1", join=limited(said(4)))
        return synced("s1")

    journal, pauses = Journal(), Pauses(2)
    async with homeserver(answer) as url:
        await listen(url, tmp_path, pauses, journal)
    assert journal.texts == ["1", "2", "3", "4"]
    assert pages == 4


async def test_a_login_that_ends_inside_a_gap_loses_nothing(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/messages"):
            return web.json_response({"errcode": "M_UNKNOWN_TOKEN"}, status=401)
        return synced("s1", join=limited(said(4)))

    journal = Journal()
    async with homeserver(answer) as url, client_of(url, tmp_path) as client:
        with pytest.raises(LoginLost, match="access_token_file"):
            await loop_of(client, journal).run()
    assert (journal.texts, journal.next_batch) == ([], "s0")


async def test_a_gap_without_end_is_given_up_and_told(tmp_path: Path) -> None:
    pages = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal pages
        if request.path.endswith("/joined_members"):
            return web.json_response({"joined": {}})
        if request.path.endswith("/messages"):
            pages += 1
            return web.json_response({"chunk": [said(pages)], "end": f"q{pages}"})
        return synced("s1", join=limited()) if request.query.get("since") == "s0" else synced("s1")

    journal = Journal()
    async with homeserver(answer) as url:
        await listen(url, tmp_path, Pauses(1), journal)
    assert pages == len(journal.texts) == 200


async def test_a_long_gap_full_of_long_messages_takes_little_memory(tmp_path: Path) -> None:
    text = "x" * 60_000
    pages = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal pages
        if request.path.endswith("/joined_members"):
            return web.json_response({"joined": {}})
        if request.path.endswith("/messages"):
            pages += 1
            chunk = [said(20 * pages + n) | {"content": {"msgtype": "m.text", "body": text}} for n in range(20)]
            return web.json_response({"chunk": chunk} | ({"end": f"q{pages}"} if pages < 40 else {}))
        return synced("s1", join=limited()) if request.query.get("since") == "s0" else synced("s1")

    class Measured(Journal):
        async def save(self, messages: tuple[Heard, ...], next_batch: str) -> None:
            await super().save(messages, next_batch)
            held.append(tracemalloc.get_traced_memory()[0])

    held: list[int] = []
    journal = Measured()
    async with homeserver(answer) as url:
        tracemalloc.start()
        await listen(url, tmp_path, Pauses(1), journal)
        tracemalloc.stop()
    assert len(journal.texts) == 800
    assert (len(journal.texts[0]), len(journal.texts[-1])) == (601, MOST_TEXT), "the newest are kept whole"
    assert max(held) < 16_000_000, "they are 48 MB"


async def test_an_empty_page_does_not_end_a_gap_and_a_page_that_leads_nowhere_does(tmp_path: Path) -> None:
    pages = {"p1": ([], "p2"), "p2": ([said(2)], "p3"), "p3": ([said(1)], "p3")}
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/joined_members"):
            return web.json_response({"joined": {}})
        if request.path.endswith("/messages"):
            asked.append(request.query["from"])
            chunk, end = pages[request.query["from"]]
            return web.json_response({"chunk": chunk, "end": end})
        return synced("s1", join=limited(said(3))) if request.query.get("since") == "s0" else synced("s1")

    journal = Journal()
    async with homeserver(answer) as url:
        await listen(url, tmp_path, Pauses(1), journal)
    assert journal.texts == ["1", "2", "3"]
    assert asked == ["p1", "p2", "p3"]


OTHER = "!other:localhost"


@pytest.mark.parametrize("gap_of_other", [False, True])
@pytest.mark.parametrize("broken", ["/messages", "/joined_members"])
async def test_a_room_that_can_never_be_read_does_not_keep_the_others_from_being_heard(
    tmp_path: Path, broken: str, gap_of_other: bool
) -> None:
    tried = 0
    heard_after: list[int] = []  # so many failed rounds

    async def answer(request: web.Request) -> web.Response:
        nonlocal tried
        if request.path.endswith(broken) and ROOM in request.path:
            tried += 1
            return web.Response(status=500)
        if request.path.endswith("/joined_members"):
            return web.json_response({"joined": {US: {}, "@alice:localhost": {}}})
        if request.path.endswith("/messages"):
            return web.json_response({"chunk": [said(1)] if ROOM in request.path else []})
        if request.query.get("since") == "s0":
            other = {"events": [said(7)], "limited": gap_of_other, "prev_batch": "p1"}
            return synced("s1", join=limited(said(2)) | {OTHER: {"timeline": other}})
        return synced("s1")

    class Noting(Journal):
        async def save(self, messages: tuple[Heard, ...], next_batch: str) -> None:
            if next_batch == "s0":
                assert [(message.room_id, direct(message)) for message in messages] == [(OTHER, True)]
                heard_after.append(len(pauses.seconds))
            else:
                found.extend(
                    (message.room_id, message.text, message.direct)
                    for message in messages
                    if isinstance(message, IncomingMessage) and message.room_id == ROOM
                )
            await super().save(messages, next_batch)

    found: list[tuple[str, str, bool]] = []
    journal, pauses = Noting(), Pauses(5)
    async with homeserver(answer) as url:
        await listen(url, tmp_path, pauses, journal)
    assert heard_after[0] == 0
    assert journal.next_batch == "s1"
    assert tried == 5
    assert pauses.seconds[:4] == [0.5, 1, 2, 4]
    whole = [(ROOM, "1", False), (ROOM, "2", False)]
    assert found == ([(ROOM, "2", True)] if broken == "/messages" else whole)


async def test_an_answer_to_an_invite_that_hangs_delays_neither_the_sync_nor_an_admins_invite(tmp_path: Path) -> None:
    over, joined = asyncio.Event(), asyncio.Event()

    def invite(by: str) -> dict[str, Any]:
        event = {"type": "m.room.member", "state_key": US, "sender": by, "content": {"membership": "invite"}}
        return {"invite_state": {"events": [event]}}

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/leave"):
            await over.wait()
        if "/join/" in request.path:
            joined.set()
            return web.json_response({"room_id": OTHER})
        if request.path.endswith("/joined_members"):
            return web.json_response({"joined": {}})
        if request.path.endswith("/sync") and request.query.get("since") == "s0":
            evil = {f"!evil{number}:x": invite("@mallory:x") for number in range(3)}
            return synced("s1", invite=evil | {OTHER: invite("@ops:localhost")})
        if request.path.endswith("/sync") and request.query.get("since") == "s1":
            return synced("s2", join={ROOM: {"timeline": {"events": [said(1)]}}})
        return synced("s2")

    journal = Journal()
    async with homeserver(answer) as url, client_of(url, tmp_path) as client:
        loop = loop_of(client, journal, ("@ops:localhost",))
        tasks = [asyncio.create_task(loop.run()), asyncio.create_task(loop.invites.run())]
        try:
            async with asyncio.timeout(3):
                while not journal.texts:
                    await asyncio.sleep(0.01)
                await joined.wait()
        finally:
            over.set()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def test_an_alias_on_a_server_that_is_away_hinders_no_other_room_and_is_left_alone_for_a_while(
    tmp_path: Path,
) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if "/join/" in request.path:
            name = request.path.rpartition("/")[2]
            asked.append(name)
            if name == "#far:away.example":
                return web.Response(status=502, text="<html>Bad Gateway</html>")
            return web.json_response({"room_id": ROOM})
        return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)

    config = MatrixConfig.model_validate(
        {
            "homeserver": "http://unused",
            "user_id": US,
            "access_token_file": "/unused",
            "rooms": [{"room": name, "projects": ["a/*"]} for name in ("#far:away.example", "#near:localhost")],
        }
    )
    clock = ManualClock()
    async with homeserver(answer) as url, client_of(url, tmp_path) as client:
        rooms = RoomDirectory(client, config.rooms, clock)
        statuses = [status async for status in rooms.refresh()]
        assert [status.joined for status in statuses] == [False, True]
        assert "502" in statuses[0].problem
        assert [status async for status in rooms.refresh()] == statuses
        assert asked == ["#far:away.example", "#near:localhost"]
        waits = []
        for _ in range(6):
            wait = rooms.statuses()[0].wait
            assert wait
            waits.append(wait.left(clock.now()).total_seconds())
            clock.advance(wait.left(clock.now()))
            [status async for status in rooms.refresh()]
    assert waits == [5, 10, 20, 40, 60, 60]
    assert asked.count("#near:localhost") == 1


class Recovering:
    """A homeserver that a proxy says is away, until it is `well`."""

    def __init__(self) -> None:
        self.well = False

    async def answer(self, request: web.Request) -> web.Response:
        if not self.well:
            return web.Response(status=502, text="<html>Bad Gateway</html>")
        if request.path.endswith("/joined_members"):
            return web.json_response({"joined": {US: {}, "@alice:localhost": {}}})
        if "/join/" in request.path:
            return web.json_response({"room_id": ROOM})
        return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)


async def test_an_admins_invite_that_the_server_never_accepts_is_declined_with_what_the_server_says(
    tmp_path: Path,
) -> None:
    clock, joins, reasons = ManualClock(), 0, list[str]()

    async def answer(request: web.Request) -> web.Response:
        nonlocal joins
        if request.path.endswith("/leave"):
            reasons.append((await request.json())["reason"])
            return web.json_response({})
        joins += 1
        return web.json_response({"errcode": "M_UNSUPPORTED_ROOM_VERSION", "error": "version 99"}, status=400)

    event = {"type": "m.room.member", "state_key": US, "sender": "@ops:x", "content": {"membership": "invite"}}
    async with homeserver(answer) as url, client_of(url, tmp_path) as client:
        invites = Invites(client, ("@ops:x",), clock, lambda _: None)
        invites.note({OTHER: {"invite_state": {"events": [event]}}})
        for _ in range(10):
            await invites.answer()
            clock.advance(timedelta(seconds=30))
    assert joins == 7
    [reason] = reasons
    assert "does not let it join" in reason
    assert "version 99" in reason


async def test_a_clock_that_was_set_back_does_not_put_off_an_invite(tmp_path: Path) -> None:
    server, clock, joined = Recovering(), ManualClock(), list[str]()
    event = {"type": "m.room.member", "state_key": US, "sender": "@ops:x", "content": {"membership": "invite"}}
    async with homeserver(server.answer) as url, client_of(url, tmp_path) as client:
        invites = Invites(client, ("@ops:x",), clock, joined.append)
        invites.note({OTHER: {"invite_state": {"events": [event]}}})
        await invites.answer()
        server.well = True
        await invites.answer()
        assert joined == []
        clock.advance(timedelta(hours=-3))
        await invites.answer()
    assert joined == [OTHER]


async def test_a_clock_that_was_set_back_does_not_put_off_a_room(tmp_path: Path) -> None:
    server, clock = Recovering(), ManualClock()
    settings = {"homeserver": "http://unused", "user_id": US, "access_token_file": "/unused"}
    config = MatrixConfig.model_validate({**settings, "rooms": [{"room": "#dev:localhost", "projects": ["a/*"]}]})
    async with homeserver(server.answer) as url, client_of(url, tmp_path) as client:
        rooms = RoomDirectory(client, config.rooms, clock)
        [away] = [status async for status in rooms.refresh()]
        server.well = True
        assert [status async for status in rooms.refresh()] == [away]
        clock.advance(timedelta(hours=-3))
        assert [status.room_id async for status in rooms.refresh()] == [ROOM]


async def test_a_clock_that_was_set_back_does_not_put_off_the_look_at_who_is_in_a_room(tmp_path: Path) -> None:
    server, clock = Recovering(), ManualClock()
    room = {"timeline": {"events": [said(1)]}}
    async with homeserver(server.answer) as url, client_of(url, tmp_path) as client:
        hearing = Hearing(client, clock)
        for _ in range(4):
            with pytest.raises(Unavailable):
                await hearing.heard(ROOM, room, "s0")
        for well in (False, True):
            server.well = well
            assert [direct(one) for one in await hearing.heard(ROOM, room, "s0")] == [False]
        clock.advance(timedelta(hours=-3))
        assert [direct(one) for one in await hearing.heard(ROOM, room, "s0")] == [True]


async def test_a_server_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    async with homeserver(answer) as url, client_of(url, tmp_path, timeout_seconds=0.2) as client:
        with pytest.raises(Unavailable, match="does not answer"):
            await asyncio.wait_for(client.resolve("#x:localhost"), 5)
        over.set()


async def test_an_answer_without_end_is_cut_off(tmp_path: Path) -> None:
    sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 200:
            await response.write(b" " * 1024 * 1024)
            sent += 1
        return response

    async with homeserver(answer) as url, client_of(url, tmp_path) as client:
        with pytest.raises(Unavailable, match="does not answer"):
            await client.resolve("#x:localhost")
    assert sent < 100


async def test_a_redirect_elsewhere_does_not_take_our_token_along(tmp_path: Path) -> None:
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"room_id": ROOM})

    async with homeserver(elsewhere) as target:

        async def answer(request: web.Request) -> web.Response:
            if request.path.endswith("/whoami"):
                seen.append(request.headers.get("Authorization"))
                return web.json_response({"user_id": US, "device_id": "D"})
            return web.Response(status=307, headers={"Location": target + request.path})

        async with homeserver(answer) as url, client_of(url, tmp_path) as client:
            await client.open()
            assert await client.resolve("#x:localhost") == ROOM
    assert seen == ["Bearer syt_secret", None]


async def test_no_secret_is_in_a_url_an_error_or_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    urls: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        urls.append(str(request.url))
        status = 200 if request.path.endswith("/whoami") else 403
        return web.json_response({"user_id": US, "device_id": "D", "errcode": "M_FORBIDDEN"}, status=status)

    caplog.set_level(logging.DEBUG)
    async with homeserver(answer) as url, client_of(url, tmp_path) as client:
        await client.open()
        with pytest.raises(Forbidden, match="refused") as raised:
            await client.sync(None, 0)
    written = capsys.readouterr()
    shown = "".join([*urls, str(raised.value), caplog.text, written.out, written.err])
    assert "syt_secret" not in shown
    assert len(urls) == 2


async def test_a_display_name_that_does_not_come_holds_nothing_up(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with homeserver(hang) as url:
        config = MatrixConfig.model_validate({"homeserver": url, "user_id": US, "access_token_file": "/unused"})
        client = MatrixClient(config, "token", tmp_path)
        try:
            for seconds in (5, 0.5):  # the second time it is not asked for
                async with asyncio.timeout(seconds):
                    assert await client.display_name("@alice:far.example") == "alice"
        finally:
            never.set()
            await client.close()


@pytest.mark.parametrize("name", [7, "", " ", None, ["Alice"]])
async def test_a_display_name_that_is_none_is_not_used(tmp_path: Path, name: object) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"displayname": name})

    async with homeserver(answer) as url:
        config = MatrixConfig.model_validate({"homeserver": url, "user_id": US, "access_token_file": "/unused"})
        client = MatrixClient(config, "token", tmp_path)
        assert await client.display_name("@alice:far.example") == "alice"
        await client.close()
