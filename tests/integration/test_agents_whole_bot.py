"""The whole way from a room on Synapse to agents and back, while the bot is killed, and when agents echo each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_room import AgentRoom, an_agent_room, scripted
from tests.support.agent_soak import soak
from tests.support.sshd import SshGuest
from tests.support.synapse import MatrixError, Message, Synapse
from tests.support.synapse.user import reactions

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
MOST_KILLS = 60


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[SshGuest]:
    (tmp_path / "key").mkdir()
    with SshGuest(tmp_path, tmp_path / "key") as running:
        yield running


async def says_yes(room: AgentRoom) -> None:
    """Alice allows whatever an agent asks, once."""
    looked_at = 0
    while True:
        for event_id, event in list(room.reader.events.items())[looked_at:]:
            looked_at += 1
            asks = event["sender"] == room.bot.user_id and "m.mentions" in event["content"]
            if asks and event["content"]["m.mentions"].get("user_ids"):
                with suppress(MatrixError):
                    await room.alice.react(room.bot.room, event_id, "✅")
        await asyncio.sleep(0.02)


def in_thread(messages: list[Message], room: AgentRoom, root: str) -> list[str]:
    return [one.body for one in messages if one.sender == room.bot.user_id and one.thread_root == root]


async def test_a_kill_at_any_point_between_room_and_agent_loses_and_repeats_nothing(
    synapse: Synapse, guest: SshGuest, tmp_path: Path
) -> None:
    async with an_agent_room(synapse, guest, tmp_path / "bot") as room:
        yes = asyncio.create_task(says_yes(room))
        await room.begin()
        roots = []
        for number in range(MOST_KILLS):
            room.armed.value = 1
            root = await room.say(f"@coder !1 say a{number}-\nask edit Change\nsay b")
            again = await room.say(f"say c{number}-", root)
            roots.append((root, again))
            await room.until(lambda: room.counts() == (2 * len(roots), 0), 60, restarts=True)
            if room.armed.value:  # no step is left at which it was not killed
                break
        yes.cancel()
        struck = room.kills()
        room.kill()
        events = await room.alice.events(room.bot.room)
        messages = await room.messages()
    for number, (root, again) in enumerate(roots):
        shown = in_thread(messages, room, root)
        wanted = (f"a{number}-", f"c{number}-", "asks: Change", "gets it after the one before it")
        assert [sum(text in one for one in shown) for text in wanted] == [1, 1, 1, 1], shown
        assert len(shown) == 4, shown
        texts = [text for _, text in room.prompts(root)]
        assert texts == [f"say a{number}-\nask edit Change\nsay b", f"say c{number}-"]
        assert [reactions(events, one) for one in (root, again)] == [[(room.bot.user_id, "✅")]] * 2
    print(*struck, sep="\n")
    assert len(struck) == len(set(struck)) >= 30


@pytest.mark.parametrize(
    ("option", "why"),
    [("echo", "agents wrote the same text 3 times in a row"), ("more", "agents passed a message on more than 4 times")],
)
async def test_two_agents_that_echo_each_other_end_at_the_cap_and_the_room_is_told_once(
    synapse: Synapse, guest: SshGuest, tmp_path: Path, option: str, why: str
) -> None:
    pair: tuple[dict[str, Any], ...] = (scripted("ping", f"{option}=pong"), scripted("pong", f"{option}=ping"))
    async with an_agent_room(synapse, guest, tmp_path / "bot", *pair) as room:
        await room.begin()
        root = await room.say("@ping !1 hello")

        def told() -> bool:
            return any(why in str(one["content"].get("body")) for one in room.reader.events.values())

        await room.until(told)
        over, _ = room.counts()
        await asyncio.sleep(2)
        assert room.counts()[0] == over, "nothing goes on"
        await room.until(lambda: room.counts() == (over, 0))
        shown = in_thread(await room.messages(), room, root)
    print("\n".join(shown))
    assert sum(why in one for one in shown) == 1, shown
    assert len(room.prompts()) == over == (3 if option == "echo" else 5)


async def test_threads_stay_in_order_with_slow_and_fast_agents_while_the_bot_is_killed(
    synapse: Synapse, guest: SshGuest, tmp_path: Path
) -> None:
    async with an_agent_room(synapse, guest, tmp_path / "bot") as room:
        soaked = await soak(room, threads=6, messages=10, pauses=(1.0, 3.0))
    assert soaked.kills >= 2
    assert soaked.is_right, soaked
