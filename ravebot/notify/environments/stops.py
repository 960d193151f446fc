"""Ends sandboxes whose environments somebody stopped in GitLab: no webhook tells of it, so each project is asked."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from functools import partial

import structlog

from ravebot.clock import Clock, is_due
from ravebot.config.model import Config
from ravebot.errors import RavebotError, SlowDown
from ravebot.gitlab.environments import Environments
from ravebot.gitlab.transport import Unanswered
from ravebot.notify.environments.sightings import look, take_note
from ravebot.sandboxes.environments.model import NAME_PREFIX, EnvironmentRecord
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import ProjectId
from ravebot.store import environments, sandboxes
from ravebot.store.database import Database

log = structlog.get_logger()

LOOK_EVERY = timedelta(minutes=1)
_PERIOD_SECONDS = 5.0


class EnvironmentStops:
    """Asks each project with an available environment of ours once a minute, in one request for all of them; more often
    only where `gitlab.poll` is shorter."""

    def __init__(
        self, config: Config, database: Database, gitlab: Environments, lifecycle: Lifecycle, clock: Clock
    ) -> None:
        self._every = min(LOOK_EVERY, config.gitlab.poll)
        self._database = database
        self._gitlab = gitlab
        self._lifecycle = lifecycle
        self._clock = clock
        self._wanted: set[int] = set()
        self._paused_until = 0.0  # by the monotonic clock: GitLab asks to slow down
        self._asked_at: dict[int, float] = {}  # by the monotonic clock: a project that refuses is not asked more often

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                await self.look()
            except RavebotError as error:
                log.warning("environments can't be looked at", error=str(error))
            # An unexpected answer must not end the bot.
            except Exception:
                log.exception("environments can't be looked at: this is a bug of ravebot")
            await asyncio.sleep(min(_PERIOD_SECONDS, self._every.total_seconds() / 2))

    def ask_for(self, project_id: int) -> None:
        """Look at a project's environments at the next look, within seconds."""
        self._wanted.add(project_id)

    async def look(self) -> None:
        """Look at every project that is due; none while GitLab asks to slow down."""
        if time.monotonic() < self._paused_until:
            return
        now = self._clock.now()
        known = await self._database.read(environments.available)
        wanted, self._wanted = self._wanted, set()
        due = dict.fromkeys(
            one.ref.project_id for one in known if one.ref.project_id in wanted or is_due(one.seen_at, self._every, now)
        )
        looked_at: set[int] = set()
        for project_id in due:
            asked = self._asked_at.get(project_id)
            late = asked is None or time.monotonic() - asked >= self._every.total_seconds() / 2
            if not late and project_id not in wanted:
                continue
            self._asked_at[project_id] = time.monotonic()
            try:
                await self.look_at(project_id)
            except RavebotError as error:
                log.warning("a project's environments can't be listed", project=project_id, error=str(error))
                if isinstance(error, SlowDown):
                    self._wanted |= wanted - looked_at
                    del self._asked_at[project_id]  # it is asked first when the pause is over
                    self._paused_until = time.monotonic() + (error.retry_after_seconds or self._every.total_seconds())
                    return
            looked_at.add(project_id)

    async def look_at(self, project_id: int) -> None:
        """Compare what GitLab lists of a project with what should be there."""
        began, newest = self._clock.now(), await self._database.read(sandboxes.newest_id)
        ids = await self._gitlab.available(project_id, NAME_PREFIX)
        known = await self._database.read(partial(environments.available, project_id=ProjectId(project_id)))
        there = [one.ref for one in known if one.environment_id in ids]
        await self._database.write(partial(environments.seen, refs=there, at=began, sandbox=newest))
        for one in known:
            meanwhile = one.seen_at is not None and began <= one.seen_at <= self._clock.now()  # it was seen, or made
            if one.environment_id not in ids and not meanwhile:
                await self._look_at_one(one)

    async def _look_at_one(self, missing: EnvironmentRecord) -> None:
        """A list may be cut, so that the one itself is asked for. A refusal of that says nothing of the others."""
        began, newest = self._clock.now(), await self._database.read(sandboxes.newest_id)
        try:
            sighting = await look(self._gitlab, missing, began, newest)
        except (SlowDown, Unanswered):
            raise
        except RavebotError as error:
            log.warning("an environment can't be looked at", name=missing.name, error=str(error))
            return
        step = partial(take_note, lifecycle=self._lifecycle, looked_at=missing, sighting=sighting)
        await self._database.write(step)
