"""One event and what tells of it: together in one transaction, or not at all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ravebot.sandboxes.model import EventKind, Sandbox
from ravebot.sandboxes.telling import TELLINGS
from ravebot.store import outbox
from ravebot.store.database import Transaction
from tests.support.records import ROOM, World, a_merge_request, a_world

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


async def record(world: World, sandbox: Sandbox, kind: str, **data: object) -> None:
    await world.write(lambda tx: world.lifecycle.journal.record(tx, EventKind(kind), sandbox=sandbox, data=data))


@pytest.mark.parametrize("kind", TELLINGS)
async def test_every_telling_goes_where_the_table_says(world: World, kind: EventKind) -> None:
    sandbox = await world.queued(a_merge_request())
    await world.empty_outbox()
    await record(world, sandbox, kind)
    telling = TELLINGS[kind]
    expected = ["matrix card", "gitlab note"] * telling.card
    if kind in ("sandbox.update_failed", "sandbox.kept"):
        expected[0] = "matrix call"
    expected += ["matrix history"] * bool(telling.thread({})) + ["matrix say"] * telling.say
    expected += ["matrix warning", "gitlab warning"] * telling.warn
    assert await world.told_kinds() == expected
    assert (await world.kinds())[-1] == kind


@pytest.mark.parametrize(
    ("kind", "room", "heard"),
    [
        ("build.held", "#ops:example.org", [ROOM, "#ops:example.org"]),
        ("build.resumed", "#ops:example.org", [ROOM, "#ops:example.org"]),
        ("firewall.repaired", "#ops:example.org", [ROOM]),
        ("build.held", ROOM, [ROOM]),
    ],
)
async def test_an_image_that_is_held_is_said_to_the_operators_too_and_to_no_room_twice(
    tmp_path: Path, kind: str, room: str, heard: list[str]
) -> None:
    async with a_world(tmp_path, matrix={"operations_room": room}) as world:
        sandbox = await world.queued(a_merge_request())
        await world.empty_outbox()
        await record(world, sandbox, kind, why="it does not boot")
        assert [lane for _, lane, told, _ in await world.outbox() if told == "say"] == heard


async def test_the_operators_room_is_told_once_also_when_a_project_has_it_by_another_name(tmp_path: Path) -> None:
    async with a_world(tmp_path, matrix={"operations_room": "!dev:example.org"}) as world:
        await world.write(lambda tx: outbox.set_room(tx, ROOM, "!dev:example.org"))
        sandbox = await world.queued(a_merge_request())
        await world.empty_outbox()
        await record(world, sandbox, "build.held", why="it does not boot")
        assert [lane for _, lane, told, _ in await world.outbox() if told == "say"] == [ROOM]


async def test_what_is_only_for_the_log_is_told_to_nobody(world: World) -> None:
    sandbox = await world.queued(a_merge_request())
    await world.empty_outbox()
    await record(world, sandbox, "access.first", source="10.0.0.1")
    assert await world.outbox() == []
    assert (await world.events())[-1].data == {"source": "10.0.0.1"}


async def test_changes_in_quick_succession_are_one_card_and_one_note_but_every_line_of_history(world: World) -> None:
    sandbox = await world.queued(a_merge_request())
    for _ in range(3):
        await record(world, sandbox, "sandbox.extended", seconds=60)
    kinds = await world.told_kinds()
    assert sorted(kinds) == ["gitlab note", "matrix card"] + ["matrix history"] * 3


async def test_a_line_of_history_carries_its_words_and_goes_to_the_projects_room(world: World) -> None:
    sandbox = await world.queued(a_merge_request())
    await record(world, sandbox, "sandbox.extended", seconds=3600, by="alice (gitlab)")
    [(_, lane, _, body)] = [row for row in await world.outbox() if row[2] == "history"]
    assert lane == ROOM
    assert json.loads(body) == {"calls": False, "text": "extended by 1 h by alice (gitlab)"}


async def test_notes_have_the_lane_of_their_merge_request(world: World) -> None:
    await world.queued(a_merge_request(3))
    assert {lane for target, lane, _, _ in await world.outbox() if target == "gitlab"} == {"7!3"}


async def test_a_project_with_two_rooms_is_told_of_in_both_and_one_with_none_only_in_its_note(tmp_path: Path) -> None:
    rooms = [{"room": "#a:x", "projects": ["group/*"]}, {"room": "#b:x", "projects": ["group/app"]}]
    served = {"projects": ["group/*", "elsewhere/*"]}
    async with a_world(tmp_path, matrix={"rooms": rooms}, gitlab=served) as world:
        await world.queued(a_merge_request(1))
        await world.queued(a_merge_request(2, project_path="elsewhere/app"))
        assert [(lane, kind) for _, lane, kind, _ in await world.outbox()] == [
            ("#a:x", "card"), ("#b:x", "card"), ("7!1", "note"), ("7!2", "note"),
        ]  # fmt: skip


async def test_when_the_transaction_fails_neither_event_nor_telling_remains(world: World) -> None:
    sandbox = await world.queued(a_merge_request())
    before = (await world.kinds(), await world.outbox())

    def fails(tx: Transaction) -> None:
        world.lifecycle.journal.record(tx, EventKind.SANDBOX_EXTENDED, sandbox=sandbox, data={"seconds": 1})
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await world.write(fails)
    assert (await world.kinds(), await world.outbox()) == before


async def test_the_time_to_ready_is_measured_once_a_sandbox(world: World) -> None:
    mr = a_merge_request()
    await world.claimed(mr)
    world.pass_by(seconds=20)
    await world.announced(await world.latest(mr))
    world.pass_by(hours=1)
    restarted = await world.latest(mr)
    await record(world, restarted, "sandbox.ready", seconds=5)
    text = world.metrics.exposition().decode()
    assert "ravebot_sandbox_start_seconds_count 1.0" in text
    assert "ravebot_sandbox_start_seconds_sum 20.0" in text
