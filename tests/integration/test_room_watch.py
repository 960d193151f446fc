"""Who can mend a room that can't be used is told so, once, through a real Synapse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from ravebot.matrix.client import MatrixClient
from ravebot.matrix.rooms import RoomDirectory
from ravebot.notify.delivery import Delivery
from ravebot.notify.matrix import MatrixSender
from ravebot.operations.roomwatch import RoomWatch
from ravebot.store import outbox
from ravebot.store.targets import MATRIX, Kind, RoomLane
from tests.integration.test_matrix_rooms import encrypt, mute, upgrade
from tests.support.records import World, a_world
from tests.support.synapse import MatrixUser, Synapse

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

DEV, OPS = "#dev:localhost", "#ops:localhost"


@dataclass
class Desk:
    """The rooms of a bot, and alice, who made them."""

    world: World
    client: MatrixClient
    rooms: RoomDirectory
    watch: RoomWatch
    alice: MatrixUser
    dev: str
    ops: str

    @classmethod
    def of(cls, world: World, client: MatrixClient, alice: MatrixUser, dev: str, ops: str) -> Desk:
        matrix = world.config.matrix
        rooms = RoomDirectory(client, matrix.rooms, world.clock, matrix.operations_room)
        watch = RoomWatch(world.database, client, rooms, matrix.operations_room, matrix.admins)
        return cls(world, client, rooms, watch, alice, dev, ops)

    def restarted(self) -> Desk:
        """The same after a restart: what was in memory is gone."""
        return Desk.of(self.world, self.client, self.alice, self.dev, self.ops)

    async def looked(self, times: int = 1) -> None:
        """Look at every room, half a minute apart, and deliver what is told."""
        for _ in range(times):
            async for status in self.rooms.refresh():
                await self.watch.look(status)
            await self._delivered()
            self.world.pass_by(seconds=30)

    async def _delivered(self) -> None:
        sender = MatrixSender(self.world.config.matrix, self.world.database, self.world.views, self.client, self.rooms)
        delivery = Delivery(self.world.database, MATRIX, sender, lambda _target, _result: None)
        task = asyncio.create_task(delivery.run())
        unusable = {status.name for status in self.rooms.statuses() if not status.joined}
        async with asyncio.timeout(10):
            while any(lane not in unusable for _, lane, _, _ in await self.world.outbox()):
                await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def said(self, room: str) -> list[str]:
        """What the bot said there."""
        return [one.body for one in await self.alice.messages(room) if one.sender == self.client.user_id]

    async def queue(self, text: str) -> None:
        await self.world.write(lambda tx: outbox.add(tx, RoomLane(DEV), Kind.NEWS, body={"text": text}))


@asynccontextmanager
async def a_desk(
    synapse: Synapse, account: MatrixUser, alice: MatrixUser, folder: Path, *, room: str = DEV, ops: str | None = OPS
) -> AsyncIterator[Desk]:
    """A bot in two public rooms; `room` is how the configuration names the first."""
    dev, ops_id = await alice.create_room("dev", public=True), await alice.create_room("ops", public=True)
    settings = {
        "homeserver": synapse.url,
        "user_id": account.user_id,
        "admins": [alice.user_id],
        "operations_room": ops,
        "rooms": [{"room": room or dev, "projects": ["group/*"]}],
    }
    try:
        async with a_world(folder, matrix=settings) as world:
            client = MatrixClient(world.config.matrix, account.password, folder)
            await client.open()
            yield Desk.of(world, client, alice, dev, ops_id)
            await client.close()
    finally:
        for alias in (DEV, OPS):
            await alice.call("DELETE", "directory", "room", alias)
        for left in await account.joined_rooms():
            await account.leave(left)


@pytest_asyncio.fixture(loop_scope="module")
async def desk(synapse: Synapse, account: MatrixUser, alice: MatrixUser, tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_desk(synapse, account, alice, tmp_path) as desk:
        await desk.looked(2)
        assert await desk.said(desk.ops) == []
        yield desk


async def test_a_room_that_becomes_encrypted_is_told_to_the_operators_once_and_not_in_that_room(desk: Desk) -> None:
    await encrypt(desk.alice, desk.dev)
    desk.rooms.changed(desk.dev)
    desk.world.pass_by(seconds=2)
    for number in (1, 2):
        await desk.queue(f"message {number}")
    await desk.looked(3)
    await desk.restarted().looked(3)
    [text] = await desk.said(desk.ops)
    first, then = text.split("\n")
    assert first == f"ravebot can't use {DEV}: it gets no cards and no answers; 2 messages wait for it."
    assert "encrypted" in then
    assert "Create a room without encryption, name it in `matrix.rooms` and restart ravebot." in then
    assert await desk.said(desk.dev) == []


async def test_a_room_that_mutes_us_is_told_and_told_again_only_after_it_worked_again(desk: Desk) -> None:
    for _ in range(2):
        await mute(desk.alice, desk.dev, 50)
        desk.rooms.changed(desk.dev)
        desk.world.pass_by(seconds=2)
        await desk.queue("a message")
        await desk.looked(2)
        await mute(desk.alice, desk.dev, 0)
        await desk.restarted().looked(2)
        desk = desk.restarted()
        await desk.looked(2)
    broken, mended, *again = await desk.said(desk.ops)
    assert "1 message waits for it" in broken
    assert f"A moderator must give {desk.client.user_id} the power to send messages" in broken
    assert mended == f"{DEV} works again. It did not since 2026-01-01 12:01 UTC; what waited for it is sent."
    assert [text.split("\n")[0] for text in again[:1]] == [broken.split("\n")[0]]
    assert [text.startswith(f"{DEV} works again.") for text in again] == [False, True]
    assert await desk.said(desk.dev) == ["a message"] * 2


async def test_a_room_that_we_were_removed_from_says_whom_to_ask(desk: Desk) -> None:
    await desk.alice.call("PUT", "rooms", desk.dev, "state", "m.room.join_rules", "", body={"join_rule": "invite"})
    await desk.alice.kick(desk.dev, desk.client.user_id)
    desk.rooms.left(desk.dev)
    await desk.looked(3)
    [text] = await desk.said(desk.ops)
    assert f"Let one of `matrix.admins` type `/invite {desk.client.user_id}` there" in text
    await desk.alice.invite(desk.dev, desk.client.user_id)
    await desk.looked()
    assert (await desk.said(desk.ops))[1].startswith(f"{DEV} works again.")


@pytest.mark.parametrize("encrypted", [False, True])
async def test_an_upgraded_room_is_told_of_there_too_if_we_may_write_and_it_is_not_encrypted(
    synapse: Synapse, account: MatrixUser, alice: MatrixUser, tmp_path: Path, encrypted: bool
) -> None:
    async with a_desk(synapse, account, alice, tmp_path, room="") as desk:
        await desk.looked(2)
        levels = await alice.call("GET", "rooms", desk.dev, "state", "m.room.power_levels", "")
        body = {**levels, "users": {**levels["users"], account.user_id: 50}}
        await alice.call("PUT", "rooms", desk.dev, "state", "m.room.power_levels", "", body=body)
        if encrypted:
            await encrypt(alice, desk.dev)
        newer = await upgrade(alice, desk.dev)
        desk.rooms.changed(desk.dev)
        desk.world.pass_by(seconds=2)
        await desk.looked(2)
        await desk.restarted().looked(2)
        [told], there = await desk.said(desk.ops), await desk.said(desk.dev)
        assert ("room is encrypted" if encrypted else "Name that one in `matrix.rooms`") in told
        assert ["no cards and no answers here" in text for text in there] == ([] if encrypted else [True])
        assert await desk.said(newer) == []


async def test_without_an_operations_room_the_admins_are_told_in_their_direct_chats(
    synapse: Synapse, account: MatrixUser, alice: MatrixUser, tmp_path: Path
) -> None:
    async with a_desk(synapse, account, alice, tmp_path, ops=None) as desk:
        mallory = await synapse.user("mallory")
        chats = [await user.direct_chat(account.user_id) for user in (alice, mallory)]
        for chat in chats:
            await desk.client.join(chat)
        await mallory.send(chats[1], "hello")
        await desk.looked()
        await mute(alice, desk.dev, 50)
        desk.rooms.changed(desk.dev)
        desk.world.pass_by(seconds=2)
        await desk.looked(2)
        await mute(alice, desk.dev, 0)
        await desk.restarted().looked(2)
        broken, mended = await desk.said(chats[0])
        assert broken.startswith(f"ravebot can't use {DEV}")
        assert mended.startswith(f"{DEV} works again.")
        assert [one.body for one in await mallory.messages(chats[1])] == ["hello"]


async def test_trouble_of_the_operations_room_goes_to_the_admins_and_the_others_wait_for_it(
    desk: Desk, account: MatrixUser
) -> None:
    chat = await desk.alice.direct_chat(account.user_id)
    await desk.client.join(chat)
    for room in (desk.ops, desk.dev):
        await mute(desk.alice, room, 50)
        desk.rooms.changed(room)
    desk.world.pass_by(seconds=2)
    await desk.looked(3)
    [text] = await desk.said(chat)
    assert text.startswith(f"ravebot can't use {OPS}: it gets no news.")
    await mute(desk.alice, desk.ops, 0)
    await desk.looked(2)
    mended, broken = await desk.said(desk.ops)
    assert mended.startswith(f"{OPS} works again.")
    assert broken.startswith(f"ravebot can't use {DEV}")
    assert len(await desk.said(chat)) == 1
