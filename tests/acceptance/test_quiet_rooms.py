"""How much a room of three hears of one sandbox's life, and whom it notifies, by the homeserver's own counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.crashes import rows
from tests.support.gitlab import MergeRequest
from tests.support.stage import Stage
from tests.support.synapse import MatrixUser
from tests.support.synapse.user import Message, timeline

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]
SHORT = {"lifetime": "50s", "max_lifetime": "50s", "warn_before": ["20s", "10s"], "shutdown_grace": "10s"}
MAPPED = {"rooms": [{"room": "#dev:localhost", "projects": ["group/app"]}]}
FAILS = "#!/bin/sh\nfor n in $(seq 40); do echo line $n; done\necho 'ERROR: no libfoo-dev'\nexit 3\n"


class Heard:
    """What ravebot sent to the room, and how often the server counts that as news for each member."""

    def __init__(self, stage: Stage, events: list[dict[str, Any]]) -> None:
        ours = [event for event in events if event["sender"] == stage.matrix_bot.user_id]
        self.events = [event for event in ours if event["type"] != "m.room.member"]
        self.messages = timeline(self.events)

    @property
    def told(self) -> str:
        return "\n".join(f"{m.edits} edits {'thread' if m.thread_root else 'room'}: {m.body}" for m in self.messages)

    def lines(self) -> list[str]:
        """The thread's lines."""
        return [message.body for message in self.messages if message.thread_root]

    def card(self) -> Message:
        [card] = [m for m in self.messages if "\nOwner " in m.body]
        return card


@asynccontextmanager
async def a_room_that_read_everything(changes: dict[str, Any]) -> AsyncIterator[Stage]:
    async with Stage({"pool": changes, "matrix": MAPPED}) as stage:
        await stage.start()
        last = (await stage.matrix_ops.events(stage.room))[-1]["event_id"]
        for member in members(stage):
            await member.call("POST", "rooms", stage.room, "receipt", "m.read", last, body={})
            assert await counted(stage, member) == (0, 0)
        yield stage


def members(stage: Stage) -> tuple[MatrixUser, MatrixUser, MatrixUser]:
    return stage.matrix_alice, stage.matrix_ops, stage.matrix_gina


async def counted(stage: Stage, member: MatrixUser) -> tuple[int, int]:
    """Unread messages that notify, and those that are highlighted, since the member read last."""
    joined: dict[str, Any] = (await member.sync())["rooms"]["join"]
    counts = joined[stage.room]["unread_notifications"]
    return counts["notification_count"], counts["highlight_count"]


async def heard(stage: Stage, mr: MergeRequest) -> Heard:
    def all_told() -> bool:
        return not rows(stage, "SELECT 1 FROM outbox WHERE delivered_at IS NULL AND target = 'matrix'")

    await stage.note_says(mr, "**Ended**", 120)
    await stage.until(all_told, 20, "it still tells")
    return Heard(stage, await stage.matrix_ops.events(stage.room))


async def test_a_life_with_two_pushes_and_two_warnings_is_few_events_and_notifies_its_owner_alone() -> None:
    async with a_room_that_read_everything(SHORT) as stage:
        mr = stage.open_merge_request()
        await stage.ready(mr)
        for number in range(2):
            sha = stage.gitlab.push(mr, {"feature.txt": f"newer {number}\n"})
            await stage.note_says(mr, f"now runs {sha[:8]}")
        found = await heard(stage, mr)
        assert len(found.messages) <= 7, found.told
        assert len(found.events) <= 18, found.told  # mentions need edits
        assert await counted(stage, stage.matrix_alice) == (3, 3), found.told  # ready and two warnings
        for other in (stage.matrix_ops, stage.matrix_gina):
            assert await counted(stage, other) == (0, 0), found.told
        assert [line.split(maxsplit=1)[1].partition(" ")[0] for line in found.lines()] == [
            "ready",
            "now",
            "now",
            "ended:",
        ]
        assert all(line.startswith(f"!{mr.iid} ") for line in found.lines())
        warnings = [m for m in found.messages if not m.thread_root and "\nOwner " not in m.body]
        assert [("its time was up" in m.body, m.edits) for m in warnings] == [(True, 2)] * 2, found.told
        assert "Ended at" in found.card().body


async def test_a_set_up_that_fails_is_told_once_with_why_and_notifies_its_owner_alone() -> None:
    async with a_room_that_read_everything({}) as stage:
        mr = stage.open_merge_request("Fails", "fails", files={".rave/setup": FAILS})
        found = await heard(stage, mr)
        assert len(found.events) <= 6, found.told
        assert [line for line in found.lines() if "ended with code 3" in line] == found.lines()
        assert len(found.lines()) == 1, found.told
        assert found.told.count("ERROR: no libfoo-dev") == 1
        assert found.card().body.splitlines()[1].startswith("Set-up failed at ")
        assert await counted(stage, stage.matrix_alice) == (1, 1)
        for other in (stage.matrix_ops, stage.matrix_gina):
            assert await counted(stage, other) == (0, 0), found.told
        await a_card_that_was_removed_is_posted_anew_and_says_so(stage)


async def a_card_that_was_removed_is_posted_anew_and_says_so(stage: Stage) -> None:
    mr = stage.open_merge_request("Removed", "removed")
    await stage.ready(mr)
    [card] = await stage.until(lambda: stage.cards(mr), 20, "there is no card")
    await stage.matrix_ops.redact(stage.room, card.event_id)
    anew = await stage.matrix_ops.wait_for(
        stage.room, lambda m: m.event_id != card.event_id and f"!{mr.iid} Removed" in m.body, 30
    )
    assert "The card before this one was removed" in anew.body
