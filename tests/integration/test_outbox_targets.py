"""The outbox's targets are a table: another one is a row with its lanes, and a sender."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from ravebot.notify.delivery import Delivery, Sent
from ravebot.operations.measuring import Measuring
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import outbox
from ravebot.store.database import Transaction
from ravebot.store.outbox import Message
from ravebot.store.targets import TARGETS, Kind, Lane, NoteLane, RoomLane, Target
from ravebot.web.checks import State
from ravebot.web.metrics import Metrics
from tests.integration.test_housekeeping import at_work
from tests.integration.test_readiness import a_ward
from tests.support.records import ROOM, World, a_world

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Mailbox:
    text: str

    @property
    def target(self) -> Target:
        return AGENT

    def name(self, _: Transaction) -> str:
        return f"agent {self.text}"


AGENT = Target("agent", Mailbox, frozenset({Kind.SAY}))
ALL = (*TARGETS, AGENT)
CODER = Mailbox("coder")


class Hook:
    """The new target's sender."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def look(self, _: Transaction, message: Message) -> object:
        return message.body["text"]

    async def send(self, message: Message, facts: object) -> Sent:
        self.told.append((message.lane, facts))
        return Sent("accepted")


async def say(world: World, lane: Lane, text: str) -> None:
    await world.write(lambda tx: outbox.add(tx, lane, Kind.SAY, body={"text": text}))


async def test_a_third_target_is_a_row_and_a_sender(tmp_path: Path) -> None:
    async with a_ward(tmp_path) as ward:
        ward.targets, yard, hook, metrics = ALL, ward.yard, Hook(), Metrics(ALL)
        await say(yard, CODER, "first")
        await say(yard, RoomLane(ROOM), "not for the agent")
        yard.pass_by(minutes=6)
        await say(yard, CODER, "second")
        counts = Measuring(yard.config, yard.clock, yard.database, yard.provider, metrics, ALL).run

        async def counted(pending: int) -> None:
            line = f'ravebot_outbox_pending{{target="agent"}} {pending}.0'
            async with at_work(counts()), asyncio.timeout(60):
                while line not in metrics.exposition().decode().splitlines():
                    await asyncio.sleep(0.01)

        await counted(2)
        check = await ward.check("outbox")
        assert check.state is State.FAILED
        assert "agent coder: 2 messages wait" in check.detail
        async with at_work(Delivery(yard.database, AGENT, hook, metrics.delivery_tried).run()), asyncio.timeout(60):
            while (await yard.read(lambda tx: outbox.backlog(tx, AGENT)))[0]:
                await asyncio.sleep(0.01)
        assert hook.told == [("coder", "first"), ("coder", "second")]
        await counted(0)
        assert 'ravebot_outbox_deliveries_total{result="delivered",target="agent"} 2.0' in metrics.exposition().decode()
        assert "agent" not in (await ward.check("outbox")).detail


async def test_a_target_takes_only_what_its_row_names(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        for lane, kind in (
            (CODER, Kind.CARD),
            (RoomLane(ROOM), Kind.NOTE),
            (NoteLane(MergeRequestRef(7, 1)), Kind.SAY),
        ):
            with pytest.raises(ValueError, match=f"takes no {kind}"):
                await world.write(lambda tx, lane=lane, kind=kind: outbox.add(tx, lane, kind))  # type: ignore[misc]
        assert await world.outbox() == []


@pytest.mark.parametrize(
    ("text", "lane"),
    [
        ("7!1", NoteLane(MergeRequestRef(7, 1))),
        ("7!1 again", NoteLane(MergeRequestRef(7, 1), again=True)),
        ("7!1 conversation 12", NoteLane(MergeRequestRef(7, 1), conversation=12)),
        ("7!1 conversation 12 receipts", NoteLane(MergeRequestRef(7, 1), conversation=12, receipts=True)),
        ("#dev:example.org", RoomLane("#dev:example.org")),
        ("!a:example.org 12", RoomLane("!a:example.org", 12)),
        ("!a:example.org 12 receipts", RoomLane("!a:example.org", 12, receipts=True)),
    ],
)
def test_a_lane_is_read_as_it_was_written(text: str, lane: Lane) -> None:
    assert lane.text == text
    assert lane.target.lane(text) == lane
