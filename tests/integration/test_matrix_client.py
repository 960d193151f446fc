"""One login and the requests we make, against a real Synapse."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ravebot.config.model import MatrixConfig
from ravebot.errors import Forbidden, NotFound, Unavailable
from ravebot.matrix.answers import LoginLost
from ravebot.matrix.client import MatrixClient
from tests.support.synapse import MatrixUser, Synapse

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def account(synapse: Synapse) -> MatrixUser:
    return await synapse.user("ravebot", password="correct horse")


def by_password(synapse: Synapse, account: MatrixUser) -> MatrixConfig:
    return MatrixConfig.model_validate(
        {"homeserver": synapse.url, "user_id": account.user_id, "password_file": "/unused"}
    )


def by_token(synapse: Synapse, user_id: str) -> MatrixConfig:
    return MatrixConfig.model_validate({"homeserver": synapse.url, "user_id": user_id, "access_token_file": "/unused"})


@pytest_asyncio.fixture(loop_scope="module")
async def client(synapse: Synapse, account: MatrixUser, tmp_path: Path) -> AsyncIterator[MatrixClient]:
    client = MatrixClient(by_password(synapse, account), account.password, tmp_path)
    await client.open()
    yield client
    await client.close()


async def devices(account: MatrixUser) -> set[str]:
    return {device["device_id"] for device in (await account.call("GET", "devices"))["devices"]}


async def test_a_restart_keeps_the_device_and_its_token(
    synapse: Synapse, account: MatrixUser, client: MatrixClient, tmp_path: Path
) -> None:
    before = await devices(account)
    again = MatrixClient(by_password(synapse, account), account.password, tmp_path)
    await again.open()
    await again.close()
    assert again.device_id == client.device_id != ""
    assert await devices(account) == before


async def test_the_kept_login_is_readable_by_its_owner_only(client: MatrixClient, tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "correct horse" not in file.read_text()


async def test_a_login_that_the_server_ended_is_renewed_on_the_same_device(
    synapse: Synapse, account: MatrixUser, client: MatrixClient, tmp_path: Path
) -> None:
    kept = json.loads((tmp_path / "matrix.json").read_text())
    (tmp_path / "matrix.json").write_text(json.dumps(kept | {"access_token": "stale"}))
    again = MatrixClient(by_password(synapse, account), account.password, tmp_path)
    await again.open()
    await again.close()
    assert again.device_id == client.device_id


async def test_every_token_that_comes_with_a_login_is_told_so_that_logs_can_hide_it(
    synapse: Synapse, account: MatrixUser, tmp_path: Path
) -> None:
    told: list[str] = []
    for _ in range(2):
        client = MatrixClient(by_password(synapse, account), account.password, tmp_path, on_token=told.append)
        await client.open()
        await client.close()
    token = json.loads((tmp_path / "matrix.json").read_text())["access_token"]
    assert told == [token, token]


async def test_a_login_that_cannot_be_kept_is_tried_again_on_the_same_device(
    synapse: Synapse, account: MatrixUser, tmp_path: Path
) -> None:
    before = await devices(account)
    state_dir = tmp_path / "later"
    client = MatrixClient(by_password(synapse, account), account.password, state_dir)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"matrix\.json can't be written"):
            await client.open()
    state_dir.mkdir()
    await client.open()
    await client.close()
    assert len(await devices(account) - before) == 1


async def test_a_damaged_login_file_leads_to_a_new_login(synapse: Synapse, account: MatrixUser, tmp_path: Path) -> None:
    (tmp_path / "matrix.json").write_text('{"device_id": ')
    client = MatrixClient(by_password(synapse, account), account.password, tmp_path)
    await client.open()
    await client.close()
    assert client.device_id


async def test_a_wrong_password_is_refused_and_names_the_file_to_check(
    synapse: Synapse, account: MatrixUser, tmp_path: Path
) -> None:
    client = MatrixClient(by_password(synapse, account), "wrong", tmp_path)
    with pytest.raises(Forbidden, match="password_file"):
        await client.open()
    await client.close()
    assert not (tmp_path / "matrix.json").exists()


async def test_a_given_access_token_is_used_as_it_is_and_never_written(
    synapse: Synapse, alice: MatrixUser, tmp_path: Path
) -> None:
    client = MatrixClient(by_token(synapse, alice.user_id), alice.access_token, tmp_path)
    await client.open()
    await client.close()
    assert client.device_id == alice.device_id
    assert list(tmp_path.iterdir()) == []


async def test_a_token_of_somebody_else_is_refused(
    synapse: Synapse, account: MatrixUser, alice: MatrixUser, tmp_path: Path
) -> None:
    client = MatrixClient(by_token(synapse, account.user_id), alice.access_token, tmp_path)
    with pytest.raises(Forbidden, match=r"matrix\.user_id"):
        await client.open()
    await client.close()


async def test_an_ended_token_says_what_to_do_and_does_not_show_itself(
    synapse: Synapse, alice: MatrixUser, tmp_path: Path
) -> None:
    client = MatrixClient(by_token(synapse, alice.user_id), "syt_gone", tmp_path)
    with pytest.raises(LoginLost, match="access_token_file") as raised:
        await client.open()
    await client.close()
    assert "syt_gone" not in str(raised.value)


async def test_the_same_transaction_twice_is_one_message(client: MatrixClient, alice: MatrixUser) -> None:
    room = await alice.create_room(invite=[client.user_id])
    await client.join(room)
    content = {"msgtype": "m.notice", "body": "once"}
    first = await client.send(room, content, "txn-1")
    assert await client.send(room, content, "txn-1") == first
    assert [message.body for message in await alice.messages(room)] == ["once"]


async def test_the_same_transaction_after_a_restart_is_one_message(
    synapse: Synapse, account: MatrixUser, client: MatrixClient, alice: MatrixUser, tmp_path: Path
) -> None:
    room = await alice.create_room(invite=[client.user_id])
    await client.join(room)
    content = {"msgtype": "m.notice", "body": "once"}
    first = await client.send(room, content, "txn-2")
    again = MatrixClient(by_password(synapse, account), account.password, tmp_path)
    await again.open()
    try:
        assert await again.send(room, content, "txn-2") == first
    finally:
        await again.close()
    assert [message.body for message in await alice.messages(room)] == ["once"]


async def test_rooms_are_found_by_alias_and_missing_ones_are_not_found(client: MatrixClient, alice: MatrixUser) -> None:
    room = await alice.create_room("found", public=True)
    assert await client.resolve("#found:localhost") == room
    assert await client.resolve(room) == room
    with pytest.raises(NotFound):
        await client.resolve("#missing:localhost")


async def test_a_room_we_are_not_in_takes_nothing_from_us(client: MatrixClient, alice: MatrixUser) -> None:
    room = await alice.create_room()
    assert client.user_id not in await alice.members(room)
    with pytest.raises(Forbidden):
        await client.send(room, {"msgtype": "m.notice", "body": "hello"}, "txn-3")
    with pytest.raises(Forbidden):
        await client.join(room)


async def test_a_message_that_is_too_large_is_refused_for_good(client: MatrixClient, alice: MatrixUser) -> None:
    room = await alice.create_room(invite=[client.user_id])
    await client.join(room)
    with pytest.raises(Forbidden, match="413"):
        await client.send(room, {"msgtype": "m.notice", "body": "x" * 70_000}, "txn-4")


async def test_who_is_in_a_room_is_told(client: MatrixClient, alice: MatrixUser) -> None:
    room = await alice.direct_chat(client.user_id)
    await client.join(room)
    assert await client.direct_members(room) == {client.user_id, alice.user_id}


async def test_people_are_called_by_the_name_that_they_chose(client: MatrixClient, alice: MatrixUser) -> None:
    assert await client.display_name("@nobody:localhost") == "nobody"
    await alice.set_display_name("Alice")
    assert await client.display_name(alice.user_id) == "Alice"


async def test_a_server_that_is_not_there_is_unavailable(synapse: Synapse, account: MatrixUser, tmp_path: Path) -> None:
    config = MatrixConfig.model_validate(
        {"homeserver": "http://127.0.0.1:1", "user_id": account.user_id, "password_file": "/unused"}
    )
    client = MatrixClient(config, account.password, tmp_path)
    with pytest.raises(Unavailable, match="does not answer"):
        await client.open()
    await client.close()


async def send_many(client: MatrixClient, room: str, count: int) -> None:
    for number in range(count):
        await client.send(room, {"msgtype": "m.notice", "body": "again"}, f"txn-{number}")


async def test_a_server_that_limits_us_says_how_long_to_wait(tmp_path: Path) -> None:
    async with Synapse(tmp_path / "synapse", strict_limits=True) as strict:
        account, alice = await strict.user("ravebot"), await strict.user("alice")
        client = MatrixClient(by_password(strict, account), account.password, tmp_path)
        await client.open()
        try:
            room = await alice.create_room(invite=[client.user_id])
            await client.join(room)
            with pytest.raises(Unavailable) as raised:
                await send_many(client, room, 20)
        finally:
            await client.close()
    assert raised.value.retry_after_seconds is not None
    assert 0 < raised.value.retry_after_seconds < 10
