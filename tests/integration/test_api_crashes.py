"""What serves the API is killed as by a power cut at each step of an act; its client repeats the act with its key."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ravebot.operations.tokens.reports import TokenMade
from ravebot.sandboxes.model import MergeRequest
from tests.support.api_dying import serve_until_killed
from tests.support.api_yard import ApiYard, Heard, an_api_yard
from tests.support.forks import FORKS
from tests.support.gitlab import GitLabServer

pytestmark = pytest.mark.integration
_MOST_STEPS = 12
_EVENTS = "SELECT COUNT(*) FROM events WHERE kind = '{}' AND project_id = ? AND iid = ?"
_OF_MR = "WHERE project_id = ? AND iid = ?"
_RUNS = f"SELECT COUNT(*) FROM runs WHERE sandbox_id IN (SELECT id FROM sandboxes {_OF_MR})"
_TURNS = f"SELECT COUNT(*) FROM agent_turns WHERE conversation_id IN (SELECT id FROM conversations {_OF_MR})"


@dataclass(frozen=True)
class Act:
    """What is asked for, and the query that counts how often it was done to a merge request.

    `to`: the merge request that is ready, one that is queued, or one without a sandbox.
    """

    path: str
    body: dict[str, Any]
    counted: str
    to: str


ACTS = (
    Act("/sandboxes/{}/extend", {"by": "1m"}, _EVENTS.format("sandbox.extended"), "ready"),
    Act("/sandboxes/{}/runs", {"command": "make"}, _RUNS, "ready"),
    Act("/messages", {"agent": "coder", "ref": "{}", "text": "look"}, _TURNS, "ready"),
    Act("/sandboxes/{}/stop", {}, _EVENTS.format("sandbox.ended"), "queued"),
    Act("/sandboxes/{}/start", {}, f"SELECT COUNT(*) FROM sandboxes {_OF_MR}", "none"),
)


@dataclass
class Server:
    """The process that serves, and another one after each death. `to`: merge requests to act on; `tokens`: for one act
    each, as the first use of one is a step of its own."""

    yard: ApiYard
    folder: Path
    to: dict[str, Iterator[MergeRequest]]
    tokens: Iterator[TokenMade]
    process: BaseProcess | None = None
    there_now: ApiYard = field(init=False)

    async def there(self) -> None:
        """It serves, under `there_now`."""
        if self.process is not None and self.process.is_alive():
            return
        (self.folder / "url").unlink(missing_ok=True)
        bot = self.yard.server.state.user_named("ravebot")
        assert bot
        given = (self.folder, self.yard.server.url, self.yard.server.token_for(bot))
        self.process = FORKS.Process(target=serve_until_killed, args=given)
        self.process.start()
        async with asyncio.timeout(60):
            while not (self.folder / "url").exists():
                assert self.process.is_alive()
                await asyncio.sleep(0.005)
        self.there_now = replace(self.yard, url=(self.folder / "url").read_text())

    async def dies_at(self, step: int) -> None:
        """The next request's n-th step; 0: at none."""
        await self.there()
        (self.folder / "next").write_text(str(step))
        (self.folder / "next").rename(self.folder / "step")
        async with asyncio.timeout(60):
            while (self.folder / "step").exists():
                await asyncio.sleep(0.005)

    async def survives(self, act: Act, step: int) -> bool:
        """Whether it has fewer steps than that to take for an act, which is done and answered once in any case."""
        mr, made = next(self.to[act.to]), next(self.tokens)
        before = self.done(act, mr, made)
        await self.dies_at(step)
        first: Heard | None = None
        try:
            first = await self.ask(act, mr, made)
        except aiohttp.ClientError:
            assert self.process
            self.process.join(10)
            assert self.process.exitcode == -signal.SIGKILL
        else:
            await self.dies_at(0)
        await self.there()
        answers = [await self.ask(act, mr, made) for _ in range(2)]
        assert [one.status for one in answers] == [200, 200], answers[0].body
        assert "Idempotency-Replayed" in answers[1].headers
        assert answers[0].body == answers[1].body == (first or answers[0]).body
        assert self.done(act, mr, made) == [before[0] + 1, 1], (act.path, step)
        return first is not None

    async def ask(self, act: Act, mr: MergeRequest, made: TokenMade) -> Heard:
        body = {name: value.replace("{}", mr.full_ref) for name, value in act.body.items()}
        return await self.there_now.post(act.path.format(mr.full_ref), made, body, key="the key")

    def done(self, act: Act, mr: MergeRequest, made: TokenMade) -> list[int]:
        """How often it was done to that merge request, and how often by that token."""
        calls = "SELECT COUNT(*) FROM events WHERE kind = 'api.call' AND json_extract(data, '$.token') = ?"
        with closing(sqlite3.connect(f"file:{self.folder / 'ravebot.db'}?mode=ro", uri=True, timeout=5)) as connection:
            both = ((act.counted, (mr.ref.project_id, mr.ref.iid)), (calls, (made.line.id,)))
            return [connection.execute(sql, given).fetchone()[0] for sql, given in both]


async def test_an_act_whose_server_is_killed_at_any_step_is_done_once_when_its_client_repeats_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "state"
    async with GitLabServer() as gitlab, aiohttp.ClientSession() as session:
        async with an_api_yard(folder, gitlab_server=gitlab) as yard:
            await yard.ready()
            queued, none = [
                [await yard.open_merge_request(f"{what} {number}") for number in range(_MOST_STEPS)]
                for what in ("queued", "none")
            ]
            for mr in queued:
                await yard.world.yard.told(mr)
            tokens = [await yard.token() for _ in range(len(ACTS) * _MOST_STEPS)]
        to = {"ready": iter([yard.mr] * len(tokens)), "queued": iter(queued), "none": iter(none)}
        server = Server(replace(yard, session=session), folder, to, iter(tokens))
        try:
            for act in ACTS:
                for step in count(1):
                    if await server.survives(act, step):
                        break
        finally:
            if server.process is not None:
                server.process.kill()
                server.process.join()
    struck = (folder / "struck").read_text().splitlines()
    print(f"killed at {len(struck)} steps")
    assert len(struck) >= 30, struck
    assert set(struck) == {"before a transaction", "in a transaction", "after a commit"}
