"""The operators are told in their room, through a real Synapse, also while the database can't be written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from ravebot.matrix.client import MatrixClient
from ravebot.matrix.rooms import RoomDirectory
from ravebot.notify.delivery import Delivery
from ravebot.notify.matrix import MatrixSender
from ravebot.operations.news import Operators
from ravebot.operations.statewatch import LOG_AGAIN, StateWatch
from ravebot.store.targets import MATRIX
from tests.support.edges import LosesAnswers
from tests.support.records import World, a_world
from tests.support.synapse import MatrixUser, Synapse

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

OPS = "#ops:localhost"


@dataclass
class Desk:
    """The watch over a state folder, the operators' room and who reads it."""

    world: World
    watch: StateWatch
    sender: MatrixSender
    line: LosesAnswers
    alice: MatrixUser
    room: str

    @property
    def state(self) -> Path:
        return self.world.database.path.parent

    async def heard(self) -> list[tuple[str, str]]:
        """What was said in the room by others than alice: how, and the text."""
        said = await self.alice.messages(self.room)
        return [(one.kind, one.body) for one in said if one.sender != self.alice.user_id]

    async def delivered(self) -> None:
        """Run the outbox's delivery until it is empty."""
        delivery = Delivery(self.world.database, MATRIX, self.sender, lambda _target, _result: None)
        task = asyncio.create_task(delivery.run())
        async with asyncio.timeout(10):
            while await self.world.outbox():
                await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest_asyncio.fixture(loop_scope="module")
async def desk(synapse: Synapse, account: MatrixUser, alice: MatrixUser, tmp_path: Path) -> AsyncIterator[Desk]:
    room = await alice.create_room("ops", public=True)
    settings = {"homeserver": synapse.url, "user_id": account.user_id, "rooms": [], "operations_room": OPS}
    (tmp_path / "state").mkdir()
    async with a_world(tmp_path / "state", matrix=settings) as world:
        config = world.config.matrix
        client = MatrixClient(config, account.password, tmp_path)
        await client.open()
        rooms = RoomDirectory(client, config.rooms, world.clock, config.operations_room)
        line = LosesAnswers(client)
        watch = StateWatch(world.clock, world.database, Operators(OPS, world.database, line, rooms))
        yield Desk(world, watch, MatrixSender(config, world.database, world.views, line, rooms), line, alice, room)
        await client.close()
    await alice.call("DELETE", "directory", "room", OPS)


async def test_a_lost_state_is_told_at_once_and_once_and_so_is_its_return(desk: Desk) -> None:
    await desk.watch.look()
    assert await desk.heard() == []
    away = desk.state.rename(desk.state.with_name("away"))
    for _ in range(3):
        await desk.watch.look()
        desk.world.pass_by(seconds=5)
    [(kind, text)] = await desk.heard()
    assert kind == "m.text"  # notices notify nobody
    assert f"{desk.world.database.path} was deleted or moved away" in text
    assert f"ravebot cleanup --instance-id {desk.world.database.instance_id} --all --force" in text
    away.rename(desk.state)
    for _ in range(2):
        await desk.watch.look()
    await desk.delivered()
    [_, (kind, text)] = await desk.heard()
    assert (kind, "is as it should be again" in text, "12:00:00 UTC" in text) == ("m.text", True, True)


async def test_news_whose_answer_got_lost_are_sent_again_as_the_same_event(desk: Desk) -> None:
    desk.line.to_lose = 2
    away = desk.state.rename(desk.state.with_name("away"))
    for _ in range(4):
        await desk.watch.look()
        desk.world.pass_by(seconds=5)
    assert (desk.line.to_lose, len(await desk.heard())) == (0, 1)
    away.rename(desk.state)


async def test_a_state_that_is_lost_twice_is_told_twice(desk: Desk) -> None:
    for _ in range(2):
        away = desk.state.rename(desk.state.with_name("away"))
        await desk.watch.look()
        desk.world.pass_by(seconds=5)
        away.rename(desk.state)
        await desk.watch.look()
        await desk.delivered()
    assert ["again" in text for _, text in await desk.heard()] == [False, True, False, True]


async def test_the_log_says_it_once_and_again_now_and_then(desk: Desk) -> None:
    away = desk.state.rename(desk.state.with_name("away"))
    with capture_logs() as logs:
        for _ in range(3):
            await desk.watch.look()
        errors = [line for line in logs if line["log_level"] == "error"]
        assert [line["event"] for line in errors] == ["state lost"]
        desk.world.clock.advance(LOG_AGAIN)
        await desk.watch.look()
        desk.world.clock.advance(timedelta(days=-2))  # a clock may be set back
        await desk.watch.look()
        away.rename(desk.state)
        await desk.watch.look()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["state lost"] * 3
    assert "state found again" in [line["event"] for line in logs]


async def test_without_a_room_nobody_is_told_and_the_log_says_it_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    async with a_world(tmp_path / "state") as world:
        client = MatrixClient(world.config.matrix, "unused", tmp_path)
        rooms = RoomDirectory(client, world.config.matrix.rooms, world.clock)
        watch = StateWatch(world.clock, world.database, Operators(None, world.database, client, rooms))
        away = (tmp_path / "state").rename(tmp_path / "away")
        with capture_logs() as logs:
            await watch.look()
        assert [line["log_level"] for line in logs] == ["error"]
        away.rename(tmp_path / "state")
        await watch.look()
        assert await world.outbox() == []
        await client.close()
