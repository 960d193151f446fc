"""`kill -9` at any moment of a sandbox's life: nothing lost, nothing told twice, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from ravebot.operations.housekeeping import LOOKED_AT
from tests.support import leftovers
from tests.support.crashes import Reaper, rows
from tests.support.gitlab import MergeRequest
from tests.support.stage import Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

QEMU_LOGS = Path("/var/log/libvirt/qemu")
DAY_SECONDS = 24 * 3600
DIFFERENT_POINTS = 25
KILLS_IN_REQUESTS = 3
ONCE = ("sandbox.queued", "sandbox.starting", "machine.booted", "sandbox.ready", "sandbox.extended", "sandbox.ended")
NEVER = ("machine.restarted", "machine.lost", "sandbox.requeued", "stage.failed", "orphan.removed", "build.held")


async def one_life(stage: Stage, number: int, reaper: Reaper, kills: int) -> MergeRequest:
    """Opened, ready, extended, new code, closed, ended, with a kill after every few steps."""
    mr = stage.open_merge_request(f"Life {number}", f"life-{number}")
    reaping = asyncio.create_task(reaper.work(kills))
    try:
        await stage.ready(mr, 180)
        stage.gitlab.comment(mr, stage.alice, "/sandbox extend 1h")
        await stage.note_says(mr, "extended by 1 h", 90)
        sha = stage.gitlab.push(mr, {"feature.txt": "newer\n"})
        await stage.note_says(mr, f"now runs {sha[:8]}", 90)
        stage.gitlab.merge(mr)
        await stage.note_says(mr, "Sandbox ended", 120)
    finally:
        reaper.rest()
        await reaping
    return mr


def remember_a_look(stage: Stage, at: float) -> None:
    """As if housekeeping had its turn then: a day has to pass until it forgets something."""
    with closing(sqlite3.connect(stage.state_dir / "ravebot.db", timeout=30)) as connection, connection:
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (LOOKED_AT, str(int(at * 1e6))))


async def told_everything(stage: Stage) -> bool:
    """Whether all was told and ended. A note that was written during a kill is written a second time later, when
    GitLab can't be at work on the first any more: that says nothing new, and is not waited for."""
    to_tell = rows(stage, "SELECT 1 FROM outbox WHERE delivered_at IS NULL AND lane NOT LIKE '% again'")
    return not to_tell and not leftovers.machines(stage)


async def test_killed_after_any_step_it_ends_with_one_note_one_card_and_nothing_left() -> None:
    # GitLab tries a webhook again that found nobody; what is lost all the same is found by polling.
    async with Stage({"gitlab": {"poll": "5s", "request_limit": "5s"}}) as stage:
        stage.gitlab.slow(0.4)  # so that kills strike while it works on a request: before its change, and after
        old = QEMU_LOGS / f"rave-t{stage.mark}-0123456789.log"  # of a machine of a month ago
        old.touch()
        os.utime(old, (time.time() - 30 * DAY_SECONDS,) * 2)
        await stage.start()
        remember_a_look(stage, time.time() - DAY_SECONDS)
        struck: set[str] = set()
        reapers = [Reaper(stage, seed, steps, struck) for seed, steps in ((1, (1, 3)), (2, (2, 5)), (3, (1, 4)))]
        lives = [await one_life(stage, number, reaper, 14) for number, reaper in enumerate(reapers, 1)]
        await stage.until(stage.is_ready, 40, "ravebot is not ready in the end")
        await stage.until(lambda: told_everything(stage), 120, "something is still to be told")
        points = Counter(point for reaper in reapers for point in reaper.points)
        print("\n".join(f"{count} x {point}" for point, count in points.items()))

        for mr in lives:
            assert stage.note(mr) is not None
            ours = [note for note in stage.gitlab.notes(mr) if note.author is stage.ravebot]
            assert len(ours) == 1, [note.body for note in ours]
            assert len(await stage.cards(mr)) == 1
            sandboxes = rows(stage, "SELECT id, state, end_reason FROM sandboxes WHERE iid = ?", mr.iid)
            assert [(row["state"], row["end_reason"]) for row in sandboxes] == [("ended", "merged")]
            kinds = Counter(row["kind"] for row in rows(stage, "SELECT kind FROM events WHERE iid = ?", mr.iid))
            assert {kind: kinds[kind] for kind in ONCE} == dict.fromkeys(ONCE, 1), kinds
            assert not {kind: kinds[kind] for kind in NEVER if kinds[kind]}
        await every_message_was_sent_once(stage)
        assert leftovers.machines(stage) == []
        assert leftovers.disks(stage) == []
        assert leftovers.addresses(stage) == []
        assert leftovers.rules(stage) == []
        assert leftovers.ports(stage) == []
        assert not old.exists()
        audit = await stage.bot.command("audit", "--verify")
        assert audit.returncode == 0, audit.stdout + audit.stderr
        assert len(points) >= DIFFERENT_POINTS, points
        assert sum(reaper.in_request for reaper in reapers) >= KILLS_IN_REQUESTS


async def every_message_was_sent_once(stage: Stage) -> None:
    """What the room holds is what the outbox says it sent, event by event."""
    events = await stage.matrix_ops.events(stage.room)
    sent = [e["event_id"] for e in events if e["sender"] == stage.matrix_bot.user_id and e["type"] == "m.room.message"]
    noted = [row["result"] for row in rows(stage, "SELECT result FROM outbox WHERE target = 'matrix'")]
    assert sorted(sent) == sorted(result for result in noted if result.startswith("$"))
