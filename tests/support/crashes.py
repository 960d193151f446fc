"""Kills ravebot as a power cut would, right after chosen steps of its database, and starts it again."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.stage import Stage

_STEP = """
SELECT (SELECT kind || ' by ' || actor_kind FROM events ORDER BY id DESC LIMIT 1),
       (SELECT COUNT(*) FROM events),
       (SELECT state FROM machines ORDER BY id DESC LIMIT 1),
       (SELECT state || ' ' || COALESCE(stage, '') FROM sandboxes ORDER BY id DESC LIMIT 1),
       (SELECT COUNT(*) FROM inbox),
       (SELECT COUNT(*) FROM inbox WHERE handled_at IS NOT NULL),
       (SELECT COUNT(*) FROM outbox WHERE attempted_at IS NOT NULL),
       (SELECT COUNT(*) FROM outbox WHERE delivered_at IS NOT NULL),
       (SELECT group_concat(target || ' ' || kind || CASE WHEN delivered_at IS NULL THEN ' in flight' ELSE '' END)
          FROM (SELECT * FROM outbox WHERE attempted_at IS NOT NULL ORDER BY id DESC LIMIT 1))
"""


@dataclass
class Reaper:
    """Kills after every few steps, at places that are not yet in `struck`; `points` are the places of this run.

    `in_request`: how many kills struck while GitLab worked on something that changes it.
    """

    stage: Stage
    seed: int
    steps_between: tuple[int, int] = (1, 4)
    struck: set[str] = field(default_factory=set)
    points: list[str] = field(default_factory=list)
    in_request: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._stop = threading.Event()

    async def work(self, most: int) -> None:
        """Kill and restart until it was done `most` times or `rest` is called."""
        self._stop.clear()
        done = 0
        while done < most and not self._stop.is_set():
            steps = self._random.randint(*self.steps_between)
            delay = self._random.choice((0.0, 0.0, 0.003, 0.01, 0.03))
            if not await asyncio.to_thread(self._wait_for_steps, steps, delay):
                return
            await self.stage.bot.kill()
            self.points.append(_where(_look(self.stage.state_dir / "ravebot.db")))
            self.struck.add(self.points[-1])
            self.stage.bot.start()
            done += 1

    def rest(self) -> None:
        self._stop.set()

    def _wait_for_steps(self, steps: int, delay: float) -> bool:
        process = self.stage.bot.process
        assert process
        path = self.stage.state_dir / "ravebot.db"
        log = path.with_name("ravebot.db-wal")
        written: object = None
        before = _look(path)
        while steps and not self._stop.is_set():
            assert process.poll() is None, f"it ended by itself: {self.stage.bot.log.read_text()[-4000:]}"
            time.sleep(0.001)
            last, written = written, _written(log)
            if written == last:
                continue  # a look each time would take a third of a processor from everything else
            now = _look(path)
            if now is None:
                written = None  # it can't be read at this moment
            elif now != before:
                before, steps = now, steps - 1
                if steps == 0 and _where(now) in self.struck:
                    steps = 1
        if self._stop.is_set():
            return False
        time.sleep(delay)
        process.kill()
        self.in_request += any(method != "GET" for method in self.stage.gitlab.under_way)
        return True


def _where(row: tuple[object, ...] | None) -> str:
    return " | ".join(str(part) for part in row[0:1] + row[2:4] + row[8:9]) if row else "empty"


def _written(log: Path) -> object:
    """Another value after each commit, of which SQLite's log tells before the database does."""
    try:
        facts = log.stat()
    except FileNotFoundError:
        return None
    return facts.st_size, facts.st_mtime_ns


def _look(path: Path) -> tuple[object, ...] | None:
    if not path.exists():
        return None
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)
    try:
        found: tuple[object, ...] | None = connection.execute(_STEP).fetchone()
    except sqlite3.OperationalError:  # the tables are not there yet, or it was killed a moment ago
        return None
    else:
        return found
    finally:
        connection.close()


def rows(stage: Stage, sql: str, *parameters: object) -> list[sqlite3.Row]:
    """Read ravebot's database from another process."""
    connection = sqlite3.connect(f"file:{stage.state_dir / 'ravebot.db'}?mode=ro", uri=True, timeout=5)
    connection.row_factory = sqlite3.Row
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()
