"""Notices when the state folder is lost while the bot runs, and tells the operators."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import structlog

from ravebot.clock import Clock, is_due, to_us
from ravebot.errors import RavebotError
from ravebot.operations.news import Operators
from ravebot.store.database import Database

log = structlog.get_logger()

LOOK_SECONDS = 5.0
LOG_AGAIN = timedelta(minutes=10)


class StateWatch:
    """Compares the files on disk with those that were opened. What was reported is kept in memory only: after a restart
    it compares with the files that exist then."""

    def __init__(self, clock: Clock, database: Database, operators: Operators) -> None:
        self._clock = clock
        self._database = database
        self._operators = operators
        self._problem = ""
        self._lost_at: datetime | None = None
        self._logged_at: datetime | None = None
        self._news: tuple[str, str] | None = None  # still to be told to the operators: text and key

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Check once; log and report what changed."""
        problem, now = await self._database.problem(), self._clock.now()
        if problem != self._problem:
            self._change(problem, now)
        if problem and is_due(self._logged_at, LOG_AGAIN, now):
            log.error("state lost", problem=problem)
            self._logged_at = now
        if self._news is not None:
            try:
                await self._operators.tell(*self._news)
            except RavebotError as error:
                log.info("a message to the operators is delayed", error=str(error))
            else:
                self._news = None

    def _change(self, problem: str, now: datetime) -> None:
        if problem:
            self._lost_at = self._lost_at or now
            news = problem
        else:
            since = f"{self._lost_at:%Y-%m-%d %H:%M:%S} UTC" if self._lost_at else "a while ago"
            news = f"{self._database.path.parent} is as it should be again (it was not since {since}): ravebot goes on"
            log.warning("state found again", lost_at=since)
            self._lost_at = None
        self._problem, self._logged_at = problem, None
        self._news = news, f"state-{to_us(now)}"
