"""What serves agents elsewhere is killed as by a power cut, before and after each commit and each webhook."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ravebot.agents.model import TurnId
from tests.support.elsewhere import an_elsewhere_world
from tests.support.elsewhere_dying import STRUCK, ask_door, serve_until_killed
from tests.support.forks import FORKS
from tests.support.receivers import GotWebhook, Receiver, a_receiver

pytestmark = pytest.mark.integration
POINTS = 33


class Agents:
    """Both agents, which live on: one gets webhooks and answers, the other takes, acknowledges and answers."""

    def __init__(self, folder: Path, receiver: Receiver, group: asyncio.TaskGroup) -> None:
        self.folder, self.group = folder, group
        self.ids: defaultdict[str, set[str]] = defaultdict(set)  # of each message's text
        self.notices: defaultdict[str, set[str]] = defaultdict(set)  # of each cancelled message's id
        receiver.on_message = self.got
        self.inbox = group.create_task(self.take())

    async def got(self, one: GotWebhook) -> None:
        if one.type == "turn.cancelled":
            self.notices[one.data["id"]].add(one.id)
            return
        again = self.ids[one.data["text"]]
        if not again:  # as a good agent does: the same id again is the same message
            self.group.create_task(self.work(one))
        again.add(one.id)

    async def work(self, one: GotWebhook) -> None:
        if one.data["text"].startswith("cancel"):
            await ask_door(self.folder, "cancel", conversation=one.data["conversation"]["id"])
            return
        await ask_door(self.folder, "answer", agent="reviewer", id=one.id, status="at it")
        await ask_door(self.folder, "answer", agent="reviewer", id=one.id, text=one.data["text"], end="done")

    async def take(self) -> None:
        while True:
            taken = await ask_door(self.folder, "take")
            if taken:
                self.ids[taken["text"]].add(taken["id"])
                await ask_door(self.folder, "ack", id=taken["id"])
                await ask_door(self.folder, "answer", agent="helper", id=taken["id"], text=taken["text"], end="done")
            await asyncio.sleep(0.02)


async def test_a_kill_at_any_point_loses_no_message_and_gives_each_under_one_id(tmp_path: Path) -> None:
    said: dict[str, TurnId] = {}
    async with a_receiver() as receiver, asyncio.TaskGroup() as group:
        agents = Agents(tmp_path, receiver, group)
        for point in [*range(1, POINTS + 1), 0]:
            async with an_elsewhere_world(tmp_path, receiver.url, runs=False) as world:
                for agent, text in (("reviewer", "look"), ("helper", "help"), ("reviewer", "cancel")):
                    text = f"{text} {point}"
                    said[text] = await world.say(agent, text, f"${text}")
            only_webhooks = bool(point) and point % 3 == 0
            crash_at = 1 + point // 3 % 6 if only_webhooks else point
            process = FORKS.Process(target=serve_until_killed, args=(tmp_path, receiver.url, crash_at, only_webhooks))
            process.start()
            try:
                async with asyncio.timeout(60):
                    while process.is_alive() and not all_is_over(tmp_path):
                        await asyncio.sleep(0.02)
            finally:
                process.kill()
                process.join()
        agents.inbox.cancel()
        with suppress(asyncio.CancelledError):
            await agents.inbox
    async with an_elsewhere_world(tmp_path, receiver.url, runs=False) as world:
        for text, turn_id in said.items():
            turn, delivery = await world.turn(turn_id), await world.delivery(turn_id)
            assert delivery, text
            assert agents.ids[text] == {delivery.id}, text
            if text.startswith("cancel"):
                assert turn.state.value == "cancelled", turn
                assert len(agents.notices[delivery.id]) == 1, text
            else:
                assert (turn.state.value, turn.answer) == ("done", text)
    struck = (tmp_path / STRUCK).read_text().splitlines()
    assert len(struck) >= 30, struck
    assert set(struck) == {"a transaction", "before a webhook", "after a webhook"}


def all_is_over(folder: Path) -> bool:
    """Whether nothing is left to do, also as to telling who was cancelled."""
    with closing(sqlite3.connect(f"file:{folder / 'ravebot.db'}?mode=ro", uri=True, timeout=5)) as connection:
        return not connection.execute(
            "SELECT id FROM agent_turns WHERE ended_at IS NULL"
            " UNION ALL SELECT turn_id FROM deliveries WHERE settled_at IS NULL"
        ).fetchall()
