"""The runner is killed as by a power cut, before and after each commit and each line that it writes to an agent."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.support.agent_world import a_guest_with_the_agent, an_agent_world, run_until_killed
from tests.support.forks import FORKS
from tests.support.sshd import SshGuest

pytestmark = pytest.mark.integration
AGENT = "/home/agent/agent"
POINTS = 44
TEXT = "say a\ndo Look\nsay b\nask edit Change\nask read See\nwords 50\nsay c"
ANSWER = "a\n\nb[allow_once]\n\n[allow_once]" + "".join(f"{number} " for number in range(50)) + "c"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshGuest]:
    with a_guest_with_the_agent(tmp_path_factory.mktemp("guest")) as running:
        yield running


def look(folder: Path) -> tuple[int, int]:
    """How many turns are not over, and how many were done; open questions are answered with a yes."""
    with closing(sqlite3.connect(folder / "ravebot.db", timeout=5, isolation_level=None)) as connection:
        if connection.execute("SELECT 1 FROM approvals WHERE state = 'open'").fetchone():
            connection.execute(
                "UPDATE approvals SET state = 'granted', decided_at = created_at, decided_kind = 'matrix',"
                " decided_by = '@alice:example.org' WHERE state = 'open'"
            )
        row = connection.execute(
            "SELECT SUM(state NOT IN ('done', 'failed', 'cancelled', 'uncertain', 'dead')), SUM(state = 'done')"
            " FROM agent_turns"
        ).fetchone()
        return row[0], row[1]


def until_over(folder: Path, process: BaseProcess, seconds: float = 60) -> bool:
    """Wait until every turn is over; False when the process was killed before."""
    until = time.monotonic() + seconds
    while look(folder)[0]:
        if not process.is_alive():
            return False
        assert time.monotonic() < until
        time.sleep(0.01)
    return True


async def test_a_kill_at_any_point_loses_and_repeats_nothing(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT], runs=False):
        pass
    struck = 0
    for point in range(1, POINTS + 1):
        async with an_agent_world(guest, tmp_path, [AGENT], runs=False) as world:
            first = await world.say(TEXT, thread=f"${point}")
            second = await world.say("say next", thread=f"${point}")
        crash_at = point
        while True:
            process = FORKS.Process(target=run_until_killed, args=(tmp_path, guest.port, [AGENT], crash_at))
            process.start()
            ended = until_over(tmp_path, process)
            process.kill()
            process.join()
            if ended:
                break
            struck += 1
            crash_at = 0
        async with an_agent_world(guest, tmp_path, [AGENT], runs=False) as world:
            turns = [await world.turn(first), await world.turn(second)]
            assert [turn.state.value for turn in turns] == ["done", "done"], point
            assert [turn.answer for turn in turns] == [ANSWER, "next"], point
            lines = [json.loads(line) for line in guest.lines((await world.folders())[-1])]
            prompts = [line["id"] - 1000 for line in lines if line.get("method") == "session/prompt"]
            assert prompts == [first, second], point
            assert [line["id"] for line in lines if "result" in line] == ["q2", "q4"], point
            assert len(await world.folders()) == point
    assert struck >= 30
