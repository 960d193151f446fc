"""What was used: each sandbox's account, its sums by project, person, agent and week, and the event log beside them."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.agents.model import AGENT, AgentDoor, TurnId, TurnState
from ravebot.errors import Refused, StoreError
from ravebot.operations.reports import AgentUsageLine, UsageBy, UsageLine, UsageLines, UsageQuery
from ravebot.operations.spans import span
from ravebot.operations.usage import report
from ravebot.operations.usage.show import as_csv, as_records
from ravebot.operations.usage.weekly import render_usage
from ravebot.operations.weekly import Week, Weekly, WeeklyNews
from ravebot.providers.base import Usage
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.model import Actor, EndReason, MergeRequestRef, Person, SandboxId
from ravebot.store import agent_figures, connections, conversations, model_uses
from ravebot.store.connections import Visit
from ravebot.store.database import Transaction
from ravebot.store.model_uses import ModelUser
from tests.support.records import NOON, a_merge_request
from tests.support.yard import HOW_A_JOB_GOES, Yard, a_yard, job_ended

pytestmark = pytest.mark.integration
MR, SECOND, THIRD = a_merge_request(1), a_merge_request(2), a_merge_request(3)
GIB = 1024**3


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path) as yard:
        yield yard


async def used(yard: Yard, *by: UsageBy, **more: Any) -> UsageLines:
    query = UsageQuery(by=by or (UsageBy.PROJECT,), **more)
    return await yard.read(lambda tx: report.report(tx, query))


async def the_only(yard: Yard, **more: Any) -> UsageLine:
    [line] = await used(yard, **more)
    assert isinstance(line, UsageLine)
    return line


async def end(yard: Yard, mr: Any) -> None:
    await yard.told(replace(mr, state="merged"))
    await yard.until(lambda: yard.is_in(mr, "ended"))


async def test_an_hour_is_an_hour_of_the_sandbox_its_machine_and_its_memory(yard: Yard) -> None:
    yard.provider.used = Usage(1800.0, GIB, 3 * GIB, received_bytes=700, sent_bytes=300)
    await yard.make_ready(MR)
    yard.pass_by(hours=1)
    await end(yard, MR)
    line = await the_only(yard)
    given = yard.config.sandbox.memory
    assert (line.group, line.sandboxes) == (("group/app",), 1)
    assert line.hours == pytest.approx(1, abs=0.02)
    assert line.machine_hours == pytest.approx(1, abs=0.03)
    assert line.memory_gib_hours == pytest.approx(line.machine_hours * given / GIB)
    assert (line.cpu_hours, line.memory_peak_bytes, line.disk_peak_bytes) == (0.5, GIB, 3 * GIB)
    assert (line.received_bytes, line.sent_bytes) == (700, 300)


async def test_what_a_machine_used_before_it_was_restarted_counts_as_well(yard: Yard) -> None:
    yard.provider.used = Usage(100.0, GIB, GIB, received_bytes=700, sent_bytes=300)
    await yard.make_ready(MR)
    await yard.until(lambda: yard.provider.count("usage") > 0)
    await yard.provider.destroy((await yard.machine(MR)).name)
    yard.provider.used = Usage(10.0, GIB // 2, GIB, received_bytes=70, sent_bytes=30)

    async def seen_again() -> bool:
        return (await yard.machine(MR)).received_bytes > 700

    await yard.until(seen_again)
    await end(yard, MR)
    line = await the_only(yard)
    assert (line.received_bytes, line.sent_bytes, round(line.cpu_hours * 3600)) == (770, 330, 110)


async def test_waiting_in_the_queue_is_counted_apart(yard: Yard) -> None:
    await yard.make_ready(MR)
    await yard.make_ready(SECOND)
    await yard.told(THIRD)
    await yard.go()
    yard.pass_by(minutes=30)
    waiting = await the_only(yard)
    assert waiting.sandboxes == 3
    assert waiting.queue_hours == pytest.approx(0.5, abs=0.01)
    await end(yard, MR)
    await yard.until(lambda: yard.is_in(THIRD, "ready"))
    assert (await the_only(yard)).queue_hours == pytest.approx(0.5, abs=0.03)


async def test_one_that_is_kept_after_its_set_up_failed_counts_from_then_on(tmp_path: Path) -> None:
    async with a_yard(tmp_path, sandbox={"keep_failed": "15m"}) as yard:
        yard.provider.answers[HOW_A_JOB_GOES] = job_ended(3)
        await yard.make_ready(MR)  # in the database it is ready
        yard.pass_by(minutes=12)
        await end(yard, MR)
        assert (await the_only(yard)).hours == pytest.approx(0.2, abs=0.02)


async def test_a_sandbox_counts_in_the_week_in_which_it_ended_and_that_week_changes_no_more(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.pass_by(hours=1)
    await end(yard, MR)
    ended = (await yard.latest(MR)).ended_at
    assert ended
    over = await used(yard, UsageBy.WEEK)
    yard.pass_by(days=7)
    await yard.make_ready(SECOND)
    lines = await used(yard, UsageBy.WEEK)
    assert [line.group for line in lines] == [(report.week_of(ended),), (report.week_of(yard.clock.now()),)]
    assert lines[:1] == over
    assert (await the_only(yard, since=ended, until=ended + timedelta(seconds=1))).sandboxes == 1
    assert (await the_only(yard, since=ended + timedelta(seconds=1))).sandboxes == 1  # the other, which lives
    assert await used(yard, since=ended + timedelta(seconds=1), until=ended + timedelta(seconds=2)) == ()
    assert await used(yard, since=yard.clock.now() + timedelta(days=1)) == ()


async def test_a_person_is_the_author_and_groups_go_together(yard: Yard) -> None:
    theirs = replace(SECOND, author=Person(77, "zoe"))
    await yard.make_ready(MR)
    await yard.make_ready(theirs)
    assert [line.group for line in await used(yard, UsageBy.PERSON, UsageBy.PROJECT)] == [
        ("alice", "group/app"), ("zoe", "group/app"),
    ]  # fmt: skip


async def test_what_was_renamed_is_one_group_under_its_new_name(yard: Yard) -> None:
    await yard.make_ready(MR)
    await end(yard, MR)
    later, person = NOON + timedelta(days=1), Person(MR.author.id, "alicia")
    await yard.told(replace(SECOND, project_path="group/moved", author=person, updated_at=later))
    [line] = await used(yard, UsageBy.PERSON, UsageBy.PROJECT)
    assert line.group == ("alicia", "group/moved")
    assert isinstance(line, UsageLine)
    assert line.sandboxes == 2


async def test_a_span_that_begins_in_another_time_zone_has_the_whole_of_its_first_day_in_utc(yard: Yard) -> None:
    user = ModelUser(SandboxId(1), TurnId(1), "coder", Actor("gitlab", "alice"), "2026-03-01")
    await yard.write(lambda tx: model_uses.settle(tx, model_uses.reserve(tx, user, "m", 1000), 400))
    since, until = span("2026-03-02T00:00+14:00", "2026-03-04T00:00+14:00", NOON)
    [line] = await used(yard, UsageBy.AGENT, since=since, until=until)
    assert line.model_tokens == 400


async def test_agents_have_turns_hours_and_tokens_by_week(yard: Yard) -> None:
    day, alice = f"{NOON:%Y-%m-%d}", Actor("gitlab", "alice")

    def spend(tx: Transaction) -> None:
        user = ModelUser(SandboxId(1), TurnId(1), "coder", alice, day)
        model_uses.settle(tx, model_uses.reserve(tx, user, "m", 1000), 400)
        begun = conversations.begin(tx, "coder", AgentDoor.SHELL, "", "thread", own_thread=True, mr=None)
        said = conversations.add_message(tx, begun.id, "key", alice, alice, "go", 0)
        assert said
        half_an_hour_on = tx.now + timedelta(minutes=30)
        for given in (tx.now, None):  # the second never reached the agent
            turn = conversations.add_turn(tx, said, TurnState.QUEUED)
            done = replace(turn, state=TurnState.DONE, given_at=given, ended_at=half_an_hour_on)
            conversations.save_turn(tx, done)

    await yard.write(spend)
    week = report.week_of(NOON)
    expected = (AgentUsageLine(("coder", week), turns=2, hours=0.5, model_tokens=400),)
    assert await used(yard, UsageBy.AGENT, UsageBy.WEEK) == expected
    yard.pass_by(days=60)
    await yard.write(lambda tx: agent_figures.forget_days(tx, f"{tx.now:%Y-%m-%d}"))
    assert await used(yard, UsageBy.AGENT, UsageBy.WEEK) == expected
    assert await yard.read(lambda tx: model_uses.tokens_on(tx, day, alice)) == 0
    assert await yard.read(lambda tx: model_uses.tokens_on(tx, day, Actor(AGENT, "coder"))) == 400
    with pytest.raises(Refused, match="by agent, or by agent and week"):
        await used(yard, UsageBy.AGENT, UsageBy.PROJECT)


@pytest.mark.parametrize("seed", [2])
async def test_sums_agree_with_the_event_log_after_many_lives(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with a_yard(tmp_path, sandbox={"keep_failed": "15m"}, pool={"max_running": 3}) as yard:
        for number in range(1, 9):
            mr = replace(a_merge_request(number), author=Person(number % 3 + 1, f"person{number % 3}"))
            yard.provider.used = Usage(
                chance.uniform(0, 1e5), chance.randrange(GIB), chance.randrange(GIB),
                received_bytes=chance.randrange(10**12), sent_bytes=chance.randrange(10**12),
            )  # fmt: skip
            yard.provider.answers[HOW_A_JOB_GOES] = job_ended(chance.choice([0, 0, 0, 3]))
            await yard.told(mr)
            for _ in range(chance.randrange(6)):
                await yard.go()
                yard.pass_by(seconds=chance.randrange(3000))
            await _visited(yard, mr, chance.randrange(10**6))
            if chance.random() < 0.7:
                reason = chance.choice([EndReason.STOPPED, EndReason.MERGED, EndReason.EXPIRED])
                await yard.happens(await yard.latest(mr), Happened.END_ASKED, reason=reason)
        yard.pass_by(days=2)
        while not await _all_ended(yard):
            await yard.go()
            yard.pass_by(minutes=10)
        logged = await yard.log("sandbox.ended")
        for by in (UsageBy.PROJECT, UsageBy.PERSON, UsageBy.WEEK):
            lines = [line for line in await used(yard, by) if isinstance(line, UsageLine)]
            assert sum(line.sandboxes for line in lines) == len(logged) == 8

            def told(key: str) -> Any:
                return sum(data[key] for data in logged)

            assert sum(line.hours for line in lines) * 3600 == pytest.approx(told("up_seconds"))
            assert sum(line.queue_hours for line in lines) * 3600 == pytest.approx(told("queued_seconds"))
            assert sum(line.machine_hours for line in lines) * 3600 == pytest.approx(told("machine_seconds"))
            assert sum(line.cpu_hours for line in lines) * 3600 == pytest.approx(told("cpu_seconds"))
            gib_hours = told("memory_byte_seconds") / GIB / 3600
            assert sum(line.memory_gib_hours for line in lines) == pytest.approx(gib_hours)
            for key in ("received_bytes", "sent_bytes", "visitor_bytes"):
                assert sum(getattr(line, key) for line in lines) == told(key)
            for key in ("memory_peak_bytes", "disk_peak_bytes"):
                assert max(getattr(line, key) for line in lines) == max(data[key] for data in logged)  # type: ignore[type-var]
        assert told("machine_seconds") > 0
        assert told("visitor_bytes") > 0


async def _all_ended(yard: Yard) -> bool:
    row = await yard.read(lambda tx: tx.one("SELECT COUNT(*) AS n FROM sandboxes WHERE state <> 'ended'"))
    assert row
    return bool(row["n"] == 0)


async def _visited(yard: Yard, mr: Any, amount: int) -> None:
    sandbox = await yard.latest(mr)
    if sandbox.ended_at:  # it has no ports any more
        return
    visit = Visit(sandbox.id, "ssh", "192.0.2.1", yard.clock.now(), yard.clock.now(), 1, 0, amount)
    await yard.write(lambda tx: connections.add(tx, visit))


async def test_a_database_is_read_while_no_bot_runs_and_a_missing_one_is_told(tmp_path: Path) -> None:
    async with a_yard(tmp_path / "state") as yard:
        await yard.make_ready(MR)
    [line] = await report.read_offline(tmp_path / "state", UsageQuery())
    assert line.group == ("group/app",)
    with pytest.raises(StoreError, match="there is no database"):
        await report.read_offline(tmp_path / "none", UsageQuery())


def test_csv_can_be_read_by_programs_and_no_name_is_a_formula_or_a_second_line() -> None:
    figures: dict[str, Any] = {
        "sandboxes": 1, "hours": 1.23456, "queue_hours": 0.0, "queue_median_seconds": 0.0, "machine_hours": 0.0,
        "cpu_hours": 0.0, "memory_gib_hours": 0.0, "memory_peak_bytes": 0, "disk_peak_bytes": 0, "received_bytes": 0,
        "sent_bytes": 0, "visitor_bytes": 0, "model_tokens": 0,
    }  # fmt: skip
    names = ["group/app", '=HYPERLINK("http://x")', "a\nb,c", "@me", " =1+1", "＝1+1"]
    by = (UsageBy.PERSON,)
    lines = tuple(UsageLine((name,), **figures) for name in names)
    rows = list(csv.DictReader(io.StringIO(as_csv(lines, by))))
    assert [row["person"] for row in rows] == ["group/app", "'" + names[1], "a\\nb,c", "'@me", "' =1+1", "'＝1+1"]
    assert rows[0]["hours"] == "1.2346"
    assert as_records(lines, by)[0]["person"] == "group/app"
    assert as_csv((), (UsageBy.AGENT, UsageBy.WEEK)) == "agent,week,turns,hours,model_tokens"


WEEK = Week.of(NOON)


async def told_of(yard: Yard, room: str = "#dev:localhost") -> list[str]:
    """What the weekly look adds to that room's messages."""
    await Weekly(yard.database, [WeeklyNews("usage", room, render_usage, catch_up=2)]).look(
        WeeklyNews("usage", room, render_usage, catch_up=2)
    )
    rows = await yard.read(lambda tx: tx.all("SELECT body FROM outbox WHERE lane = ? ORDER BY id", (room,)))
    return [json.loads(row["body"])["content"]["body"] for row in rows if '"content"' in row["body"]]


async def test_a_week_is_reported_once_it_is_over_and_a_quiet_one_is_not(yard: Yard) -> None:
    yard.provider.used = Usage(7200.0, GIB, GIB)
    await yard.make_ready(MR)
    yard.pass_by(hours=2)
    await end(yard, MR)
    assert await told_of(yard) == []
    yard.pass_by(days=7)
    [said] = await told_of(yard)
    assert said.splitlines()[0].startswith(f"Usage in the week {WEEK} (")
    assert "1 sandbox, 2.0 h, 2.0 CPU hours, " in said
    assert "\ngroup/app: 1 sandbox, " in said
    assert await told_of(yard) == [said]
    yard.pass_by(days=7)
    assert await told_of(yard) == [said]


async def test_many_projects_are_cut_and_no_name_can_ping_or_be_html(yard: Yard) -> None:
    for number in range(8):
        project, path = 70 + number, f"group/<b>{number}@room"
        mr = a_merge_request(ref=MergeRequestRef(project, 1), source_project_id=project, project_path=path)
        await yard.told(mr)
        await yard.happens(await yard.latest(mr), Happened.END_ASKED, reason=EndReason.STOPPED)
    content = await yard.read(lambda tx: render_usage(tx, WEEK))
    assert content
    assert content["body"].splitlines()[-1] == "3 more projects: 0.0 h"
    assert len(content["formatted_body"].split("<br>")) == len(content["body"].splitlines())
    assert "<b>" not in content["formatted_body"]
    assert "@room" not in content["body"]


async def test_a_clock_that_jumps_reports_no_week_twice(yard: Yard) -> None:
    await yard.make_ready(MR)
    await end(yard, MR)
    yard.pass_by(days=7)
    said = await told_of(yard)
    assert len(said) == 1
    for jump in ({"days": 400}, {"days": -400}, {"days": -3}, {"days": 3}):
        yard.pass_by(**jump)
        assert await told_of(yard) == said
