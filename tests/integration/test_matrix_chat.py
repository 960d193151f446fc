"""The bot's presence in Matrix at a homeserver in trouble: it comes back by itself and says what is the matter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ravebot.chat import Chat
from ravebot.clock import SystemClock
from ravebot.config.model import MatrixConfig
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.invites import Invites
from ravebot.matrix.rooms import RoomDirectory
from ravebot.matrix.sync import SyncLoop
from ravebot.notify.delivery import Delivery
from ravebot.operations.roomwatch import RoomWatch
from ravebot.store import outbox, room_problems
from ravebot.store.database import Database
from ravebot.store.targets import MATRIX
from ravebot.web.metrics import Metrics
from tests.integration.test_matrix_hostile import US, homeserver
from tests.support.edges import FarEnd

pytestmark = pytest.mark.integration

FAR, NEAR, SLOW = "#far:away.example", "#near:localhost", "#slow:localhost"


def refusal(status: int, code: str, **more: Any) -> web.Response:
    return web.json_response({"errcode": code, "error": "no"}, status=status, **more)


class Homeserver:
    """Takes logins by password and ends them when it is told to; joins take what `rooms` says."""

    def __init__(self) -> None:
        self.logins: list[float] = []
        self.devices: list[str | None] = []
        self.good_token = ""
        self.lives = 0  # how many syncs a token is good for; 0: for ever
        self.refuses: list[web.Response] = []  # the next logins
        self.sync_answers: list[web.Response] = []  # the next syncs
        self.over = asyncio.Event()
        self.bars = ""  # a room that may not be joined
        self.replaced = False  # all rooms; nothing can be sent there
        self._synced = 0

    async def answer(self, request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        if name == "login":
            return await self._log_in(request)
        if request.headers.get("Authorization") != f"Bearer {self.good_token}":
            return refusal(401, "M_UNKNOWN_TOKEN")
        if name == "whoami":
            return web.json_response({"user_id": US, "device_id": "D"})
        if name == "sync":
            return await self._sync(request)
        if name == "joined_rooms":
            return web.json_response({"joined_rooms": []})
        if "/join/" in request.path:
            if name == SLOW:
                await self.over.wait()
            if name == self.bars:
                words = {"errcode": "M_FORBIDDEN", "error": "https://evil.example @room"}  # of a remote server, perhaps
                return web.json_response(words, status=403)
            return web.Response(status=502) if name == FAR else web.json_response({"room_id": f"!{name[1:]}"})
        if self.replaced and "m.room.tombstone" in request.path:
            return web.json_response({"replacement_room": "!newer:localhost"})
        return refusal(404, "M_NOT_FOUND")

    async def _log_in(self, request: web.Request) -> web.Response:
        self.logins.append(asyncio.get_running_loop().time())
        self.devices.append((await request.json()).get("device_id"))
        if self.refuses:
            return self.refuses.pop(0)
        self.good_token, self._synced = f"opaque {len(self.logins)}", 0
        return web.json_response({"access_token": self.good_token, "device_id": "D"})

    async def _sync(self, request: web.Request) -> web.Response:
        self._synced += 1
        if self.lives and self._synced > self.lives:
            self.good_token = ""
            return refusal(401, "M_UNKNOWN_TOKEN")
        if self.sync_answers:
            return self.sync_answers.pop(0)
        await asyncio.sleep(0.02)
        return web.json_response({"next_batch": "s1"})


@asynccontextmanager
async def chatting(server: Homeserver, folder: Path, *rooms: str) -> AsyncIterator[Chat]:
    """The bot's side, running inside the block."""
    clock, metrics = SystemClock(), Metrics()
    async with homeserver(server.answer) as url, Database(folder / "ravebot.db", clock) as database:
        config = MatrixConfig.model_validate(
            {
                "homeserver": url,
                "user_id": US,
                "password_file": "/unused",
                "rooms": [{"room": room, "projects": ["group/*"]} for room in rooms],
            }
        )
        client = MatrixClient(config, "password", folder, timeout_seconds=5)
        directory = RoomDirectory(client, config.rooms, clock)
        invites = Invites(client, (), clock, directory.joined, directory.is_configured)
        chat = Chat(
            client,
            directory,
            RoomWatch(database, client, directory, config.operations_room, config.admins),
            SyncLoop(client, MatrixJournal(database, "!rave"), clock, invites, on_changed=directory.changed),
            Delivery(database, MATRIX, FarEnd(), lambda _target, _result: None),
            database,
            metrics,
        )
        task = asyncio.create_task(chat.run())
        try:
            yield chat
            assert not task.done(), task
        finally:
            server.over.set()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await client.close()


async def until(done: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not done():
            await asyncio.sleep(0.01)


async def test_a_login_that_was_ended_is_renewed_at_once_on_the_same_device(tmp_path: Path) -> None:
    server = Homeserver()
    async with chatting(server, tmp_path) as chat:
        await until(lambda: chat.sync.last_success is not None)
        server.good_token = ""
        await until(lambda: len(server.logins) == 2, 3)
        await until(lambda: not chat.problem, 3)
        last = chat.sync.last_success
        await until(lambda: chat.sync.last_success != last, 3)
    assert server.devices == [None, "D"]


async def test_a_server_that_ends_every_login_is_not_asked_for_the_next_at_once(tmp_path: Path) -> None:
    server = Homeserver()
    server.lives = 1
    async with chatting(server, tmp_path) as chat:
        await until(lambda: len(server.logins) == 2, 3)
        await until(lambda: "Matrix ended ravebot's login" in chat.problem, 3)
        await asyncio.sleep(0.5)
        assert len(server.logins) == 2
        assert "restart ravebot" in chat.problem


async def test_a_refused_password_says_that_a_new_one_takes_a_restart(tmp_path: Path) -> None:
    server = Homeserver()
    server.refuses = [refusal(403, "M_FORBIDDEN")] * 2
    async with chatting(server, tmp_path) as chat:
        await until(lambda: "restart ravebot" in chat.problem)
        assert "matrix.password_file" in chat.problem
        await asyncio.sleep(0.3)
    assert len(server.logins) == 1


async def test_a_server_that_limits_logins_is_left_alone_for_as_long_as_it_says(tmp_path: Path) -> None:
    server = Homeserver()
    server.refuses = [refusal(429, "M_LIMIT_EXCEEDED", headers={"Retry-After": "2"})]
    async with chatting(server, tmp_path) as chat:
        await until(lambda: not chat.problem)
    first, second = server.logins
    assert 2 <= second - first < 4


async def test_a_sync_that_is_unknown_for_a_while_ends_nothing(tmp_path: Path) -> None:
    server = Homeserver()
    server.sync_answers = [refusal(404, "M_UNRECOGNIZED"), refusal(403, "M_FORBIDDEN")]
    async with chatting(server, tmp_path) as chat:
        await until(lambda: "404" in chat.sync.problem)
        assert chat.problem == ""
        await until(lambda: chat.sync.last_success is not None)
        assert chat.sync.problem == ""
    assert len(server.logins) == 1


async def test_the_id_of_each_room_is_remembered_as_soon_as_it_is_known_whatever_the_others_do(tmp_path: Path) -> None:
    server = Homeserver()
    async with chatting(server, tmp_path, FAR, NEAR, SLOW) as chat:
        async with asyncio.timeout(3):
            while await chat.database.read(outbox.rooms) != {NEAR: "!near:localhost"}:
                await asyncio.sleep(0.01)
        far, near, slow = chat.rooms.statuses()
    assert (far.joined, near.joined, slow.joined) == (False, True, False)
    assert "502" in far.problem


async def test_a_room_that_a_person_must_mend_is_told_of_and_not_one_whose_server_is_away(tmp_path: Path) -> None:
    server = Homeserver()
    server.bars = NEAR
    async with chatting(server, tmp_path, FAR, NEAR) as chat:
        async with asyncio.timeout(3):
            while (told := await chat.database.read(lambda tx: room_problems.told(tx, NEAR))) is None:
                await asyncio.sleep(0.01)
        assert told.problem == "absent"
        problem = chat.rooms.statuses()[1].problem
        assert "evil" in problem
        assert "https://" not in problem
        assert "@room" not in problem
        assert await chat.database.read(lambda tx: room_problems.told(tx, FAR)) is None


async def test_an_upgraded_room_that_takes_no_message_is_told_of_elsewhere_all_the_same(tmp_path: Path) -> None:
    server = Homeserver()
    server.replaced = True
    async with chatting(server, tmp_path, NEAR) as chat, asyncio.timeout(3):
        while (told := await chat.database.read(lambda tx: room_problems.told(tx, NEAR))) is None:
            await asyncio.sleep(0.01)
    assert told.problem == "replaced"


async def test_a_damaged_login_file_and_one_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "matrix.json").mkdir()
    async with chatting(Homeserver(), tmp_path) as chat:
        await until(lambda: "can't be read" in chat.problem)
        (tmp_path / "matrix.json").rmdir()
        await until(lambda: not chat.problem)
    assert json.loads((tmp_path / "matrix.json").read_text())["device_id"] == "D"


async def test_a_login_that_is_renewed_while_the_state_folder_is_away_makes_no_other_in_its_place(
    tmp_path: Path,
) -> None:
    server, folder = Homeserver(), tmp_path / "state"
    async with chatting(server, folder) as chat:
        await until(lambda: chat.sync.last_success is not None)
        away = folder.rename(tmp_path / "away")
        server.good_token = ""
        await until(lambda: folder.exists() or "can't be written" in chat.problem)
        assert not folder.exists()
        away.rename(folder)
        await until(lambda: not chat.problem)
    assert json.loads((folder / "matrix.json").read_text())["access_token"] == server.good_token
