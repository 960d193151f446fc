"""Ends sandboxes whose environments somebody stopped in GitLab: no webhook tells of it, so each project is asked."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import structlog

from ravebot.clock import Clock, is_due
from ravebot.config.model import Config
from ravebot.errors import NotFound, RavebotError
from ravebot.gitlab.environments import Environments
from ravebot.notify.environments.steps import without_environment
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.environments.model import NAME_PREFIX, EnvironmentRecord, EnvironmentState
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import Actor, ProjectId
from ravebot.store import environments, sandboxes
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()

LOOK_EVERY = timedelta(minutes=1)
_PERIOD_SECONDS = 5.0
GITLAB = Actor("gitlab", "somebody")
STOPPED, DELETED = "its environment was stopped in GitLab", "its environment was deleted in GitLab"


@dataclass(frozen=True)
class _Sighting:
    """What GitLab said of an environment that should be available, and is not."""

    state: EnvironmentState
    changed_at: datetime | None = None


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
        """Look at every project that is due."""
        now = self._clock.now()
        known = await self._database.read(environments.available)
        wanted, self._wanted = self._wanted, set()
        due = dict.fromkeys(
            one.ref.project_id for one in known if one.ref.project_id in wanted or is_due(one.seen_at, self._every, now)
        )
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

    async def look_at(self, project_id: int) -> None:
        """Compare what GitLab lists of a project with what should be there."""
        began = self._clock.now()
        ids = await self._gitlab.available(project_id, NAME_PREFIX)
        known = await self._database.read(partial(environments.available, project_id=ProjectId(project_id)))
        there = [one.ref for one in known if one.environment_id in ids]
        await self._database.write(partial(environments.seen, refs=there, at=began))
        for one in known:
            if one.environment_id not in ids and (one.seen_at is None or one.seen_at < began):
                await self._database.write(partial(self._missed, missing=one, sighting=await self._ask(one)))

    async def _ask(self, missing: EnvironmentRecord) -> _Sighting:
        """A list may be cut, so that the one itself is asked for."""
        try:
            found = await self._gitlab.get(missing.ref.project_id, missing.environment_id or 0)
        except NotFound:
            return _Sighting(EnvironmentState.NONE)
        known = {state.value: state for state in EnvironmentState}
        return _Sighting(known.get(found.state, EnvironmentState.STOPPING), found.updated_at)

    def _missed(self, tx: Transaction, missing: EnvironmentRecord, sighting: _Sighting) -> None:
        """Somebody stopped or deleted it: end its sandbox, if that was there at the time."""
        known = environments.get(tx, missing.ref)
        if known is None or (known.environment_id, known.state) != (missing.environment_id, EnvironmentState.AVAILABLE):
            return  # meanwhile we stopped it ourselves
        if sighting.state is EnvironmentState.AVAILABLE:
            environments.seen(tx, [known.ref], tx.now)
            return
        gone = sighting.state is EnvironmentState.NONE
        # One that only stops is stopped by us, too: then no job of a pipeline has to end for it.
        after = without_environment(known) if gone else replace(known, state=EnvironmentState.STOPPING)
        environments.save(tx, after)
        environments.touch(tx, known.ref)
        sandbox = sandboxes.current(tx, known.ref)
        if sandbox is None:
            return
        was_there = known.seen_at is not None and sandbox.created_at <= known.seen_at
        if was_there or (sighting.changed_at is not None and sighting.changed_at >= sandbox.created_at):
            why = DELETED if gone else STOPPED
            self._lifecycle.happened(tx, sandbox, Happened.END_ASKED, GITLAB, why=why)
