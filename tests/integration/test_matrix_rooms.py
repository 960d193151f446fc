"""Rooms, and who is notified there, against a real Synapse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ravebot.config.model import MatrixConfig
from ravebot.errors import Forbidden, NotFound, Unavailable
from ravebot.matrix.cards import Owner, Style, as_text, render_card, render_line, render_warning
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.content import calling_edit, edit_of, in_thread
from ravebot.matrix.rooms import RoomDirectory, RoomFault, RoomStatus
from ravebot.sandboxes.model import (
    Actor,
    MergeRequest,
    MergeRequestRef,
    Person,
    Sandbox,
    SandboxId,
    SandboxState,
)
from ravebot.sandboxes.view import SandboxView
from tests.support.clock import ManualClock
from tests.support.synapse import MatrixUser, Synapse

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bob(synapse: Synapse) -> MatrixUser:
    return await synapse.user("bob")


def config(synapse: Synapse, account: MatrixUser, *rooms: tuple[str, str]) -> MatrixConfig:
    return MatrixConfig.model_validate(
        {
            "homeserver": synapse.url,
            "user_id": account.user_id,
            "password_file": "/unused",
            "rooms": [{"room": room, "projects": [project]} for room, project in rooms],
        }
    )


@pytest_asyncio.fixture(loop_scope="module")
async def client(synapse: Synapse, account: MatrixUser, tmp_path: Path) -> AsyncIterator[MatrixClient]:
    client = MatrixClient(config(synapse, account), account.password, tmp_path)
    await client.open()
    yield client
    await client.close()


def directory(client: MatrixClient, clock: ManualClock, settings: MatrixConfig) -> RoomDirectory:
    return RoomDirectory(client, settings.rooms, clock)


async def refreshed(rooms: RoomDirectory) -> list[RoomStatus]:
    return [status async for status in rooms.refresh()]


def entered(rooms: RoomDirectory) -> dict[str, str | None]:
    """The ids of the configured rooms that we are in."""
    return {status.name: status.room_id for status in rooms.statuses() if status.joined}


async def test_a_public_room_is_joined_by_its_alias_and_mapped_to_its_projects(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    room = await alice.create_room("open", public=True)
    rooms = directory(
        client, ManualClock(), config(synapse, account, ("#open:localhost", "group/*"), (room, "tools/x"))
    )
    assert entered(rooms) == {}
    assert await rooms.ensure("#open:localhost") == room
    assert entered(rooms) == {"#open:localhost": room}
    await refreshed(rooms)
    assert entered(rooms) == {"#open:localhost": room, room: room}
    assert [status.problem for status in rooms.statuses()] == ["", ""]


async def test_a_private_room_says_that_an_invite_is_missing_and_works_after_it(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    clock = ManualClock()
    room = await alice.create_room("closed")
    rooms = directory(client, clock, config(synapse, account, ("#closed:localhost", "group/*")))
    with pytest.raises(Forbidden, match="invite @ravebot:localhost"):
        await rooms.ensure("#closed:localhost")
    await alice.invite(room, client.user_id)
    with pytest.raises(Unavailable) as raised:
        await rooms.ensure("#closed:localhost")
    assert raised.value.retry_after_seconds == 30
    clock.advance(timedelta(seconds=30))
    assert await rooms.ensure("#closed:localhost") == room


async def test_a_join_elsewhere_lets_the_configured_room_be_tried_at_once(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    room = await alice.create_room("invited")
    rooms = directory(client, ManualClock(), config(synapse, account, ("#invited:localhost", "group/*")))
    with pytest.raises(Forbidden):
        await rooms.ensure("#invited:localhost")
    await alice.invite(room, client.user_id)
    await client.join(room)
    rooms.joined(room)
    assert await rooms.ensure("#invited:localhost") == room


async def test_a_room_that_does_not_exist_is_told_and_hinders_no_other(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    room = await alice.create_room("beside", public=True)
    settings = config(synapse, account, ("#nowhere:localhost", "a/*"), ("#beside:localhost", "b/*"))
    rooms = directory(client, ManualClock(), settings)
    statuses = await refreshed(rooms)
    assert [status.joined for status in statuses] == [False, True]
    assert "matrix.rooms" in statuses[0].problem
    assert entered(rooms) == {"#beside:localhost": room}
    with pytest.raises(Unavailable):
        await rooms.ensure("#nowhere:localhost")
    fresh = directory(client, ManualClock(), settings)
    with pytest.raises(NotFound):
        await fresh.ensure("#nowhere:localhost")


async def encrypt(user: MatrixUser, room: str) -> None:
    encryption = {"algorithm": "m.megolm.v1.aes-sha2"}
    await user.call("PUT", "rooms", room, "state", "m.room.encryption", "", body=encryption)


async def test_an_encrypted_room_is_never_written_to_in_clear(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    room = await alice.create_room("secret", public=True)
    await encrypt(alice, room)
    rooms = directory(client, ManualClock(), config(synapse, account, ("#secret:localhost", "group/*")))
    with pytest.raises(Forbidden, match="without encryption"):
        await rooms.ensure("#secret:localhost")
    assert entered(rooms) == {}
    assert "encrypted" in rooms.statuses()[0].problem


async def test_the_operators_room_is_entered_like_the_others_and_mapped_to_no_project(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    room = await alice.create_room("operators", public=True)
    settings = config(synapse, account, ("#dev-of-operators:localhost", "*"))
    rooms = RoomDirectory(client, settings.rooms, ManualClock(), "#operators:localhost")
    assert await rooms.ensure("#operators:localhost") == room
    assert [status.key for status in rooms.statuses() if status.joined] == ["matrix.operations_room"]
    assert await rooms.is_configured(room)


async def test_what_is_wrong_with_the_operators_room_names_its_key(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    room = await alice.create_room("secret-operators", public=True)
    await encrypt(alice, room)
    for name in ("#secret-operators:localhost", "#no-operators:localhost"):
        rooms = RoomDirectory(client, (), ManualClock(), name)
        [status] = await refreshed(rooms)
        assert not status.joined
        assert "matrix.operations_room" in status.problem


async def test_an_operators_room_that_is_mapped_as_well_keeps_its_projects(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    room = await alice.create_room("both", public=True)
    settings = config(synapse, account, ("#both:localhost", "group/*"))
    rooms = RoomDirectory(client, settings.rooms, ManualClock(), "#both:localhost")
    assert await rooms.ensure("#both:localhost") == room
    assert [(status.room_id, status.key) for status in rooms.statuses()] == [(room, "matrix.rooms")]


async def test_a_room_that_is_no_longer_configured_is_not_found(
    synapse: Synapse, client: MatrixClient, account: MatrixUser
) -> None:
    rooms = directory(client, ManualClock(), config(synapse, account))
    with pytest.raises(NotFound, match=r"matrix\.rooms"):
        await rooms.ensure("#gone:localhost")


async def test_a_room_we_were_put_out_of_is_no_longer_mapped(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    room = await alice.create_room("left", public=True)
    rooms = directory(client, ManualClock(), config(synapse, account, ("#left:localhost", "group/*")))
    await rooms.ensure("#left:localhost")
    rooms.left(room)
    assert entered(rooms) == {}
    assert "invite" in rooms.statuses()[0].problem


async def upgrade(user: MatrixUser, room: str) -> str:
    answer = await user.call("POST", "rooms", room, "upgrade", body={"new_version": "11"})
    return str(answer["replacement_room"])


async def test_an_upgraded_room_is_left_for_the_one_that_its_alias_means_now(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    clock = ManualClock()
    room = await alice.create_room("upgraded", public=True)
    rooms = directory(client, clock, config(synapse, account, ("#upgraded:localhost", "group/*")))
    assert await rooms.ensure("#upgraded:localhost") == room
    newer = await upgrade(alice, room)
    rooms.changed(room)
    with pytest.raises(Unavailable) as raised:
        await rooms.ensure("#upgraded:localhost")
    assert raised.value.retry_after_seconds == 2
    clock.advance(timedelta(seconds=2))
    assert await rooms.ensure("#upgraded:localhost") == newer


async def test_an_upgraded_room_that_is_configured_by_its_id_is_told_and_not_written_to(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    clock = ManualClock()
    room = await alice.create_room(public=True)
    rooms = directory(client, clock, config(synapse, account, (room, "group/*")))
    await rooms.ensure(room)
    await upgrade(alice, room)
    rooms.changed(room)
    clock.advance(timedelta(seconds=2))
    with pytest.raises(Forbidden, match="upgraded"):
        await rooms.ensure(room)
    assert entered(rooms) == {}
    assert r"matrix.rooms" in rooms.statuses()[0].problem


async def test_a_room_that_is_encrypted_later_is_no_longer_written_to(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    clock = ManualClock()
    room = await alice.create_room("later", public=True)
    rooms = directory(client, clock, config(synapse, account, ("#later:localhost", "group/*")))
    await rooms.ensure("#later:localhost")
    await encrypt(alice, room)
    rooms.changed(room)
    assert entered(rooms) == {}
    clock.advance(timedelta(seconds=2))
    with pytest.raises(Forbidden, match="without encryption"):
        await rooms.ensure("#later:localhost")
    assert "encrypted" in rooms.statuses()[0].problem


async def test_a_room_that_refuses_what_we_send_is_entered_anew_after_a_while(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    clock = ManualClock()
    room = await alice.create_room("silent", public=True)
    rooms = directory(client, clock, config(synapse, account, ("#silent:localhost", "group/*")))
    await rooms.ensure("#silent:localhost")
    rooms.refused("#silent:localhost", Forbidden("no power"))
    assert (entered(rooms), rooms.statuses()[0].problem) == ({}, "no power")
    with pytest.raises(Unavailable, match="no power"):
        await rooms.ensure("#silent:localhost")
    clock.advance(timedelta(seconds=30))
    assert await rooms.ensure("#silent:localhost") == room


async def mute(user: MatrixUser, room: str, level: int) -> None:
    """Let only members of that level write."""
    levels = await user.call("GET", "rooms", room, "state", "m.room.power_levels", "")
    body = {**levels, "events_default": level}
    await user.call("PUT", "rooms", room, "state", "m.room.power_levels", "", body=body)


@pytest.mark.parametrize("how", ["creator", "additional"])
async def test_who_made_a_room_of_version_12_may_write_there_though_no_list_says_so(
    client: MatrixClient, account: MatrixUser, alice: MatrixUser, how: str
) -> None:
    body: dict[str, Any] = {
        "room_version": "12",
        "preset": "public_chat",
        "power_level_content_override": {"events_default": 50},
    }
    if how == "creator":
        room = (await account.call("POST", "createRoom", body=body))["room_id"]
    else:
        more = {"creation_content": {"additional_creators": [account.user_id]}}
        room = (await alice.call("POST", "createRoom", body={**body, **more}))["room_id"]
        await client.join(room)
    assert await client.send(room, {"msgtype": "m.text", "body": "x"}, f"txn-{how}")
    assert await client.may_write(room)
    other = (await alice.call("POST", "createRoom", body=body))["room_id"]
    await client.join(other)
    assert not await client.may_write(other)


async def test_a_room_that_mutes_us_stays_refused_until_we_may_write_there(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    clock = ManualClock()
    room = await alice.create_room("muted", public=True)
    rooms = directory(client, clock, config(synapse, account, ("#muted:localhost", "group/*")))
    await rooms.ensure("#muted:localhost")
    await mute(alice, room, 50)
    with pytest.raises(Forbidden) as refusal:
        await client.send(room, {"msgtype": "m.text", "body": "x"}, "muted")
    rooms.refused("#muted:localhost", refusal.value)
    for _ in range(3):
        clock.advance(timedelta(seconds=30))
        [status] = await refreshed(rooms)
        assert not status.joined
        assert f"give {account.user_id} the power to send messages" in status.problem
    await mute(alice, room, 0)
    rooms.changed(room)
    clock.advance(timedelta(seconds=2))
    assert await rooms.ensure("#muted:localhost") == room


async def test_what_a_person_must_mend_is_a_fault_and_what_passes_by_itself_is_none(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    await alice.create_room("not-invited")
    muted, old = await alice.create_room("quiet", public=True), await alice.create_room(public=True)
    await encrypt(alice, await alice.create_room("dark", public=True))
    await mute(alice, muted, 50)
    await client.join(old)
    await upgrade(alice, old)
    names = ("#none:localhost", "#not-invited:localhost", "#dark:localhost", old, "#quiet:localhost")
    clock = ManualClock()
    rooms = directory(client, clock, config(synapse, account, *((name, "a/*") for name in names)))
    assert [status.fault for status in await refreshed(rooms)] == list(RoomFault)
    problems = [status.problem for status in rooms.statuses()]
    assert [problem for problem in problems if not (problem[0].isupper() or problem.startswith("ravebot "))] == []
    rooms.changed(muted)
    assert rooms.statuses()[-1].fault is RoomFault.MUTED
    await mute(alice, muted, 0)
    clock.advance(timedelta(seconds=2))
    await rooms.ensure("#quiet:localhost")
    rooms.refused("#quiet:localhost", Unavailable("away"))
    assert [status.fault for status in rooms.statuses()][-1] is None


async def test_a_configured_room_is_known_as_such_before_we_were_ever_in(
    synapse: Synapse, client: MatrixClient, account: MatrixUser, alice: MatrixUser
) -> None:
    room, other = await alice.create_room("early"), await alice.create_room()
    settings = config(synapse, account, ("#missing:localhost", "a/*"), ("#early:localhost", "b/*"))
    rooms = directory(client, ManualClock(), settings)
    assert await rooms.is_configured(room)
    assert not await rooms.is_configured(other)


def sandbox_of(username: str, expires_in: timedelta) -> SandboxView:
    ref = MergeRequestRef(1, 42)
    title = f"@room @{username}:localhost {username}"
    mr = MergeRequest(ref, "group/app", title, "https://gitlab.example.org/x", "b", 1, "a" * 40, Person(1, username))
    sandbox = Sandbox(
        SandboxId(1),
        ref,
        SandboxState.READY,
        Actor("gitlab", username),
        NOW,
        NOW,
        "a" * 40,
        expires_at=NOW + expires_in,
    )
    return SandboxView(sandbox, mr, NOW)


async def highlights(user: MatrixUser, room: str) -> tuple[int, int]:
    """Unread messages that notify, and those of them that are highlighted."""
    joined: dict[str, Any] = (await user.sync())["rooms"]["join"]
    counts = joined[room]["unread_notifications"]
    return counts["notification_count"], counts["highlight_count"]


async def test_a_card_notifies_nobody_and_a_warning_highlights_its_owner_only(
    client: MatrixClient, alice: MatrixUser, bob: MatrixUser
) -> None:
    room = await alice.create_room(invite=[client.user_id, bob.user_id])
    await bob.join(room)
    await client.join(room)
    for user in (alice, bob):
        last = (await user.events(room))[-1]["event_id"]
        await user.call("POST", "rooms", room, "receipt", "m.read", last, body={})
    view = sandbox_of("alice", timedelta(minutes=10))
    owner, style = Owner(alice.user_id, "Alice"), Style()
    card = await client.send(room, render_card(view, style), "card")
    await client.send(room, edit_of(card, render_card(view, style)), "edit")
    warning = render_warning(view, style, owner)
    warned = await client.send(room, warning, "warning")
    assert await highlights(alice, room) == (0, 0)
    await client.send(room, calling_edit(warned, warning, owner.user_id, "news"), "call")
    assert await highlights(alice, room) == (1, 1)
    assert await highlights(bob, room) == (0, 0)
    await client.send(room, as_text(warning, owner), "text")
    assert await highlights(alice, room) == (2, 2)
    assert await highlights(bob, room) == (1, 0), "this is why it is not the default"


async def test_an_edited_card_is_read_as_one_message_and_its_thread_hangs_under_it(
    client: MatrixClient, alice: MatrixUser
) -> None:
    room = await alice.create_room(invite=[client.user_id])
    await client.join(room)
    before, after = sandbox_of("alice", timedelta(hours=2)), sandbox_of("alice", timedelta(hours=3))
    card = await client.send(room, render_card(before, Style()), "c1")
    await client.send(room, in_thread(card, render_line(before, "a line", Style())), "c2")
    await client.send(room, edit_of(card, render_card(after, Style())), "c3")
    messages = await alice.messages(room)
    assert [message.thread_root for message in messages] == [None, card]
    assert messages[0].edits == 1
    assert "Ready until" in messages[0].body
    assert "<strong>Ready</strong> until" in messages[0].html
