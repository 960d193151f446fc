"""What the rooms are told, through a real Synapse: cards that move along, answers in their place, timely warnings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ravebot.errors import Forbidden, Unacceptable, Unavailable
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.incoming import Removed
from ravebot.matrix.rooms import RoomDirectory
from ravebot.notify.delivery import Sent
from ravebot.notify.matrix import MatrixSender
from ravebot.sandboxes.model import Sandbox, SandboxState
from ravebot.store import outbox, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.outbox import Message
from ravebot.store.targets import MATRIX, Kind, RoomLane
from tests.support.records import BY_ALICE, World, a_database_of_version_1, a_merge_request, a_world
from tests.support.synapse import MatrixUser, Synapse

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

ALIAS = "#dev:localhost"


@dataclass
class Desk:
    """A sender, and the row that it is to send next."""

    world: World
    client: MatrixClient
    rooms: RoomDirectory
    sender: MatrixSender
    room: str

    async def put(self, kind: Kind, lane: str = ALIAS, sandbox: Sandbox | None = None, **body: object) -> None:
        await self.world.write(
            partial(
                outbox.add,
                lane=RoomLane(lane),
                kind=kind,
                sandbox_id=sandbox.id if sandbox else None,
                body=body,
            )
        )

    async def send(self, lane: str = ALIAS) -> str:
        """Send the oldest row of the lane and note it, as the delivery does."""
        message = await self.world.read(lambda tx: outbox.head(tx, MATRIX, lane))
        assert isinstance(message, Message)
        sent = await self.transmit(message)
        if sent.keep:
            await self.world.write(sent.keep)
        await self.world.write(lambda tx: outbox.delivered(tx, message.id, sent.result))
        return sent.result

    async def transmit(self, message: Message) -> Sent:
        facts = await self.world.read(lambda tx: self.sender.look(tx, message))
        return await self.sender.send(message, facts)

    async def put_and_send(self, kind: Kind, lane: str = ALIAS, sandbox: Sandbox | None = None, **body: object) -> str:
        await self.put(kind, lane, sandbox, **body)
        return await self.send(lane)

    async def change(self, sandbox: Sandbox) -> None:
        """Let its card have something else to show."""

        def later(tx: Transaction) -> None:
            now = sandboxes.get(tx, sandbox.id)
            assert now
            assert now.expires_at
            sandboxes.save(tx, replace(now, expires_at=now.expires_at + timedelta(minutes=1)))

        await self.world.write(later)

    async def sandbox(self) -> Sandbox:
        """One that is ready, of alice's merge request; what is told of it by itself counts as told."""
        found = await self.world.ready(a_merge_request())
        await self.world.empty_outbox()
        return found


@pytest_asyncio.fixture(loop_scope="module")
async def desk(synapse: Synapse, account: MatrixUser, alice: MatrixUser, tmp_path: Path) -> AsyncIterator[Desk]:
    settings = {
        "homeserver": synapse.url,
        "user_id": account.user_id,
        "users": {alice.user_id: "alice"},
        "rooms": [{"room": ALIAS, "projects": ["group/*"]}],
    }
    room = await alice.create_room("dev", public=True)
    async with a_world(tmp_path, matrix=settings) as world:
        client = MatrixClient(world.config.matrix, account.password, tmp_path)
        await client.open()
        rooms = RoomDirectory(client, world.config.matrix.rooms, world.clock)
        yield Desk(
            world,
            client,
            rooms,
            MatrixSender(world.config.matrix, world.database, world.views, client, rooms),
            room,
        )
        await client.close()
    await alice.call("DELETE", "directory", "room", ALIAS)


def reply(text: str, thread: str | None = None, to: str | None = None) -> dict[str, object]:
    content: dict[str, object] = {"msgtype": "m.notice", "body": text}
    if thread:
        relation = {"rel_type": "m.thread", "event_id": thread, "m.in_reply_to": {"event_id": to or thread}}
        content["m.relates_to"] = relation
    return content


async def test_after_a_room_upgrade_the_card_is_posted_anew_where_its_thread_hangs_under_it(
    desk: Desk, alice: MatrixUser
) -> None:
    sandbox = await desk.sandbox()
    old = await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    await desk.change(sandbox)
    await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    upgraded = await alice.call("POST", "rooms", desk.room, "upgrade", body={"new_version": "11"})
    desk.rooms.changed(desk.room)
    desk.world.pass_by(seconds=2)
    early = await desk.put_and_send(Kind.HISTORY, sandbox=sandbox, text="before the card")
    new = await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    await desk.change(sandbox)
    await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    await desk.put_and_send(Kind.HISTORY, sandbox=sandbox, text="after it")
    before, after = await alice.messages(desk.room), await alice.messages(str(upgraded["replacement_room"]))
    assert [(message.event_id, message.edits) for message in before] == [(old, 1)]
    assert [message.event_id for message in after[:2]] == [early, new]
    assert [message.edits for message in after] == [0, 1, 0]
    assert [message.thread_root for message in after] == [None, None, new]


async def test_a_room_that_refuses_a_message_is_looked_up_anew(desk: Desk, alice: MatrixUser) -> None:
    await desk.put_and_send(Kind.REPLY, content=reply("in the old one"))
    upgraded = await alice.call("POST", "rooms", desk.room, "upgrade", body={"new_version": "11"})
    await desk.put(Kind.REPLY, content=reply("in the new one"))
    with pytest.raises(Forbidden):
        await desk.send()
    with pytest.raises(Unavailable):
        await desk.send()
    desk.world.pass_by(seconds=30)
    await desk.send()
    said = await alice.messages(str(upgraded["replacement_room"]))
    assert [message.body for message in said] == ["in the new one"]


async def test_an_answer_in_a_thread_that_the_server_does_not_know_is_given_beside_it_and_once(
    desk: Desk, alice: MatrixUser
) -> None:
    await desk.put(Kind.REPLY, content=reply("here", thread="$nowhere:localhost"))
    message = await desk.world.read(lambda tx: outbox.head(tx, MATRIX, ALIAS))
    assert message
    first = await desk.transmit(message)
    assert await desk.transmit(message) == first
    await desk.send()
    assert [(said.body, said.thread_root) for said in await alice.messages(desk.room)] == [("here", None)]


async def test_what_cannot_be_sent_with_or_without_its_thread_is_refused(desk: Desk) -> None:
    await desk.put(Kind.REPLY, content=reply("x" * 70_000, thread="$nowhere:localhost"))
    with pytest.raises(Forbidden, match="413"):
        await desk.send()


async def test_after_a_backup_was_restored_the_room_gets_what_is_said_then(
    desk: Desk, alice: MatrixUser, tmp_path: Path
) -> None:
    backup = desk.world.back_up(tmp_path / "backup")
    lost = await desk.put_and_send(Kind.REPLY, content=reply("before the disk broke"))
    async with Database(backup, desk.world.clock) as restored:
        world = replace(desk.world, database=restored)
        sender = MatrixSender(world.config.matrix, restored, world.views, desk.client, desk.rooms)
        after = await replace(desk, world=world, sender=sender).put_and_send(
            Kind.REPLY, content=reply("after the restore")
        )
    said = [(message.event_id, message.body) for message in await alice.messages(desk.room)]
    assert said == [(lost, "before the disk broke"), (after, "after the restore")]


async def test_what_the_version_before_had_sent_is_not_sent_again_after_the_upgrade(
    desk: Desk, alice: MatrixUser, tmp_path: Path
) -> None:
    content = reply("hello")
    row = {
        "id": 7,
        "target": MATRIX.name,
        "lane": ALIAS,
        "kind": "reply",
        "body": {"content": content},
        "attempted_at": 1,
    }
    async with Database(a_database_of_version_1(tmp_path / "old", row), desk.world.clock) as upgraded:
        room_id = await desk.rooms.ensure(ALIAS)
        sent = await desk.client.send(room_id, content, f"rave-{upgraded.instance_id}-7")
        world = replace(desk.world, database=upgraded)
        sender = MatrixSender(world.config.matrix, upgraded, world.views, desk.client, desk.rooms)
        assert await replace(desk, world=world, sender=sender).send() == sent
    assert [message.event_id for message in await alice.messages(desk.room)] == [sent]


async def test_an_answer_for_a_direct_chat_that_put_us_out_is_dropped(desk: Desk, alice: MatrixUser) -> None:
    direct = await alice.create_room(invite=[desk.client.user_id])
    await desk.client.join(direct)
    assert (await desk.put_and_send(Kind.REPLY, direct, content=reply("hello"))).startswith("$")
    await alice.kick(direct, desk.client.user_id)
    assert (await desk.put_and_send(Kind.REPLY, direct, content=reply("bye"))).startswith("dropped: ")
    assert (await desk.put_and_send(Kind.REPLY, "!never:localhost", content=reply("?"))).startswith("dropped: ")


async def test_a_login_that_is_lost_drops_no_answer(desk: Desk, account: MatrixUser, alice: MatrixUser) -> None:
    direct = await alice.direct_chat(desk.client.user_id)
    await desk.client.join(direct)
    proof = {"type": "m.login.password", "user": account.user_id, "password": account.password}
    await account.call("DELETE", "devices", desk.client.device_id, body={"auth": proof})
    for lane in (direct, ALIAS):
        await desk.put(Kind.REPLY, lane, content=reply("hello"))
        with pytest.raises(Forbidden):
            await desk.send(lane)
    await desk.client.open()
    assert (await desk.send(direct)).startswith("$")
    assert (await desk.send()).startswith("$")


async def test_cards_of_a_room_that_is_no_longer_configured_are_dropped_also_by_its_id(desk: Desk) -> None:
    sandbox = await desk.sandbox()
    assert (await desk.put_and_send(Kind.CARD, desk.room, sandbox)).startswith("dropped: ")


async def near_its_end(desk: Desk, minutes: float, *warned: int) -> Sandbox:
    sandbox = replace(
        await desk.sandbox(),
        expires_at=desk.world.clock.now() + timedelta(minutes=minutes),
        warned=frozenset(warned),
    )
    await desk.world.write(lambda tx: sandboxes.save(tx, sandbox))
    return sandbox


async def test_after_an_outage_only_the_last_of_several_warnings_is_given(desk: Desk, alice: MatrixUser) -> None:
    sandbox = await near_its_end(desk, 5, 1800, 600)
    for _ in range(2):
        await desk.put(Kind.WARNING, sandbox=sandbox, threshold=600)
    results = [await desk.send(), await desk.send()]
    assert results[0].startswith("dropped: ")
    [warning] = await alice.messages(desk.room)
    assert warning.event_id == results[1]


@pytest.mark.parametrize(
    ("minutes", "warned", "threshold"),
    [(80, (), 1800), (25, (1800,), 600), (25, (), 1800), (25, (1800,), None)],
)
async def test_a_warning_that_an_extension_made_untrue_is_not_given(
    desk: Desk, minutes: float, warned: tuple[int, ...], threshold: int | None
) -> None:
    sandbox = await near_its_end(desk, minutes, *warned)
    body: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    assert (await desk.put_and_send(Kind.WARNING, sandbox=sandbox, **body)).startswith("dropped: ")


async def test_a_warning_that_is_still_true_is_given(desk: Desk) -> None:
    sandbox = await near_its_end(desk, 25, 1800)
    assert (await desk.put_and_send(Kind.WARNING, sandbox=sandbox, threshold=1800)).startswith("$")


async def test_a_warning_calls_its_owner_and_is_edited_when_it_is_over(desk: Desk, alice: MatrixUser) -> None:
    await alice.set_display_name("Alice in <b>bold</b> @room")
    sandbox = await near_its_end(desk, 25, 1800)
    warned = await desk.put_and_send(Kind.WARNING, sandbox=sandbox, threshold=1800)
    await desk.send()  # the row that calls the owner
    [warning] = await alice.messages(desk.room)
    assert (warning.event_id, warning.edits) == (warned, 1)
    assert warning.mentions == {"user_ids": [alice.user_id]}
    assert warning.body.startswith("Alice in <b>bold</b> @\u2060room: group/app!1 ends at 12:25 UTC, in 25 min.")
    assert "<b>" not in warning.html
    extended = replace(sandbox, warned=frozenset(), expires_at=desk.world.clock.now() + timedelta(hours=2))
    await desk.world.write(lambda tx: sandboxes.save(tx, extended))
    await desk.put_and_send(Kind.OVER, sandbox=sandbox, threshold=1800)
    [warning] = await alice.messages(desk.room)
    assert warning.body == "group/app!1 was extended until 14:00 UTC."
    assert (await desk.put_and_send(Kind.OVER, sandbox=sandbox, threshold=1800)).startswith("dropped: ")


async def test_an_edit_of_the_card_that_would_change_nothing_is_not_sent(desk: Desk) -> None:
    sandbox = await desk.sandbox()
    await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    assert await desk.put_and_send(Kind.CARD, sandbox=sandbox) == "dropped: the card shows this already"
    await desk.change(sandbox)
    assert (await desk.put_and_send(Kind.CARD, sandbox=sandbox)).startswith("$")


async def test_what_a_row_that_was_tried_before_left_on_the_card_is_not_known(desk: Desk, alice: MatrixUser) -> None:
    sandbox = await desk.sandbox()
    await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    await desk.change(sandbox)
    await desk.put(Kind.CARD, sandbox=sandbox)
    message = await desk.world.read(lambda tx: outbox.head(tx, MATRIX, ALIAS))
    assert message
    await desk.transmit(message)  # then we are killed
    await desk.world.write(lambda tx: outbox.attempt(tx, message.id))
    await desk.change(sandbox)
    await desk.send()
    await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    [card] = await alice.messages(desk.room)
    assert "Ready until 14:02 UTC" in card.body


async def test_a_card_that_can_not_be_edited_is_replaced_once_by_one_that_says_so(
    desk: Desk, alice: MatrixUser
) -> None:
    sandbox = await desk.sandbox()
    nowhere = outbox.Card(desk.room, "$gone")
    await desk.world.write(lambda tx: outbox.set_card(tx, sandbox.id, ALIAS, nowhere))
    posted = await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    [card] = await alice.messages(desk.room)
    assert card.event_id == posted
    assert "The card before this one was removed or could not be edited any more." in card.body
    await desk.change(sandbox)
    await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    [card] = await alice.messages(desk.room)
    assert (card.event_id, card.edits) == (posted, 1)
    gone_again = replace(nowhere, replaced=True)
    await desk.world.write(lambda tx: outbox.set_card(tx, sandbox.id, ALIAS, gone_again))
    await desk.put(Kind.CARD, sandbox=sandbox)
    with pytest.raises(Unacceptable):
        await desk.send()


async def test_a_card_that_was_removed_is_posted_anew_once(desk: Desk, alice: MatrixUser) -> None:
    sandbox = await desk.sandbox()
    journal = MatrixJournal(desk.world.database, "!rave")
    posted = [await desk.put_and_send(Kind.CARD, sandbox=sandbox)]
    for _ in range(2):
        await journal.save((Removed("!elsewhere:localhost", posted[-1]), Removed(desk.room, posted[-1])), "s1")
        posted.append(await desk.send())
    assert posted[2] == "dropped: the card was removed twice"
    cards = await alice.messages(desk.room)
    assert [card.event_id for card in cards] == posted[:2]
    assert cards[1].body.endswith("The card before this one was removed or could not be edited any more.")


async def test_the_card_of_a_sandbox_that_has_ended_may_be_removed(desk: Desk) -> None:
    sandbox = await desk.sandbox()
    posted = await desk.put_and_send(Kind.CARD, sandbox=sandbox)
    ended = replace(sandbox, state=SandboxState.ENDED)
    await desk.world.write(lambda tx: sandboxes.save(tx, ended))
    await MatrixJournal(desk.world.database, "!rave").save((Removed(desk.room, posted),), "s1")
    assert await desk.world.outbox() == []


async def test_the_card_calls_its_owner_alone(desk: Desk, alice: MatrixUser) -> None:
    sandbox = await desk.sandbox()
    await desk.put_and_send(Kind.CALL, sandbox=sandbox)  # posts the card, as a notice
    await desk.send()
    [card] = await alice.messages(desk.room)
    assert (card.edits, card.mentions) == (1, {"user_ids": [alice.user_id]})
    assert (await desk.put_and_send(Kind.CARD, sandbox=sandbox)).startswith("dropped: "), "nothing else to show"


async def test_an_older_sandbox_without_a_card_posts_none_beside_the_newer_one_s(desk: Desk) -> None:
    old = await desk.sandbox()
    await desk.world.write(lambda tx: desk.world.intents.rebuild(tx, a_merge_request(), BY_ALICE))
    await desk.world.empty_outbox()
    assert (await desk.put_and_send(Kind.CARD, sandbox=old)).startswith("dropped: ")
