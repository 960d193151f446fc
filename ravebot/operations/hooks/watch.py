"""Watches ravebot's webhooks in GitLab: one that GitLab disabled or somebody changed is mended, and operators are told.

Polling does without webhooks, so nothing is lost meanwhile, but everything is later.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from ravebot.clock import Clock, is_due
from ravebot.config.file import LoadedConfig
from ravebot.errors import RavebotError
from ravebot.gitlab.hooks import HookCondition
from ravebot.operations.hooks import registry
from ravebot.operations.hooks.wording import INSTALL, HookState
from ravebot.store import hooks, outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.hooks import HookRecord
from ravebot.store.targets import Kind, RoomLane

log = structlog.get_logger()

LOOK_EVERY = timedelta(hours=1)
"""How often one project is looked at, at most; that takes a request."""
LATEST = timedelta(days=1)
"""How often each of many projects is looked at, at least."""
PAUSE = timedelta(minutes=15)
_FIRST_LOOK_SECONDS = 60.0
_NEVER = datetime.min.replace(tzinfo=UTC)
ServedProject = tuple[int, str]
"""Id and path."""
TOLD_AGAIN_AFTER = timedelta(days=1)
_MENDED = frozenset({HookCondition.DISABLED, HookCondition.WRONG, HookCondition.DOUBLED})
_REMOVED = frozenset({HookCondition.MISSING, HookCondition.FOREIGN})


@dataclass(frozen=True)
class HookChange:
    """What follows from a look: `record` is kept, `news` is told to operators unless it is empty."""

    record: HookRecord
    news: str = ""


def should_mend(state: HookState) -> bool:
    """One that is there and wrong; one that is not there was removed by a person, or is not wanted."""
    return state.condition in _MENDED


def changed(before: HookRecord | None, found: HookState, after: HookState, now: datetime) -> HookChange | None:
    """What follows when it was `found` in that state, and is `after` an attempt to mend it; None: nothing is known."""
    if after.condition is HookCondition.FAILED and not should_mend(found):
        return None  # it could not be looked at
    was = before.condition if before else ""
    told_at = before.told_at if before else None
    name = found.project
    if found.ok:
        back = told_at is not None and was != HookCondition.RIGHT
        news = f"The webhook of {name} works again." if back else ""
        return HookChange(HookRecord(name, HookCondition.RIGHT, told_at), news)
    record = HookRecord(name, after.condition if after.ok else found.condition, told_at)
    never_there = found.condition in _REMOVED and was != HookCondition.RIGHT and told_at is None
    if never_there or (told_at is not None and was == found.condition and not after.ok):
        return HookChange(record)
    if not is_due(told_at, TOLD_AGAIN_AFTER, now) and after.ok:
        return HookChange(record)
    return HookChange(HookRecord(name, record.condition, now), _news(found, after))


def _news(found: HookState, after: HookState) -> str:
    trouble = f"The webhook of {found.project} was not right: {found.detail}."
    if after.ok:
        return f"{trouble} ravebot mended it: {after.detail}."
    if found.condition in _REMOVED:
        return (
            f"The webhook of {found.project} is gone: {found.detail}. Until there is one again, ravebot only polls."
            f" {INSTALL} makes it."
        )
    return f"{trouble} ravebot could not mend it ({after.detail}). To mend it, {after.fix or found.fix}."


def due(
    projects: Iterable[ServedProject], looked_at: Mapping[str, datetime], now: datetime
) -> tuple[ServedProject, ...]:
    """The projects to look at now, those first that were not for longest: one each `PAUSE`, and only of more than can
    be looked at so within `LATEST` several."""
    everything = tuple(projects)
    most = max(1, math.ceil(len(everything) * (PAUSE / LATEST)))
    waiting = [one for one in everything if is_due(looked_at.get(one[1]), LOOK_EVERY, now)]
    # After a start the order is that of the paths' hashes, which is another one in each process.
    waiting.sort(key=lambda one: (looked_at.get(one[1], _NEVER), hash(one[1])))
    return tuple(waiting[:most])


@dataclass(frozen=True)
class HookWatch:
    """The loop. `projects`: ids and paths of those that are served; `refused_at`: when a webhook was last refused."""

    loaded: LoadedConfig
    database: Database
    clock: Clock
    projects: Callable[[], Sequence[ServedProject]]
    refused_at: Callable[[], datetime | None] = lambda: None
    _looked_at: dict[str, datetime] = field(default_factory=dict)
    _answered_at: dict[str, datetime] = field(default_factory=dict)
    _right_at: dict[str, datetime] = field(default_factory=dict)

    def is_right(self, path: str) -> bool:
        """Whether the project's webhook was right at its last look, a day ago at most."""
        at = self._right_at.get(path)
        return at is not None and not is_due(at, LATEST + LOOK_EVERY, self.clock.now())

    async def run(self) -> None:
        """Run until cancelled."""
        pause = _FIRST_LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = PAUSE.total_seconds()
            try:
                await self.look(due(self.projects(), self._looked_at, self.clock.now()))
            except RavebotError as error:
                log.info("webhooks could not be looked at", error=str(error))
            # An unexpected answer must not end the bot.
            except Exception:
                log.exception("webhooks could not be looked at: this is a bug of ravebot's")

    async def look(self, projects: Iterable[ServedProject]) -> None:
        """Look at these once. Raises RavebotError if GitLab can't be used at all."""
        now, refused_at = self.clock.now(), self.refused_at()
        for project in projects:
            last = self._answered_at.get(project[1])
            refused = refused_at is not None and (last is None or refused_at >= last)
            self._looked_at[project[1]] = now
            (found,) = await registry.glance(self.loaded, [project], deliveries=refused)
            if found.condition is not HookCondition.FAILED:
                self._answered_at[project[1]] = now
            after = found
            if should_mend(found) and self.loaded.config.http.public_url is not None:
                # By its id: since the list was made it may have been renamed, and another have taken its path.
                (after,) = await registry.install(self.loaded, projects=[project[0]])
                if after.project == str(project[0]):  # GitLab did not say
                    after = replace(after, project=found.project)
                found = replace(found, project=after.project)
                log.warning("webhook was mended" if after.ok else "webhook can't be mended", project=found.project,
                            was=found.detail, result=after.detail)  # fmt: skip
            self._right_at.pop(project[1], None)
            if after.condition is HookCondition.RIGHT:
                self._right_at[found.project] = now
            await self.database.write(partial(self._keep, found=found, after=after))

    def _keep(self, tx: Transaction, found: HookState, after: HookState) -> None:
        change = changed(hooks.get(tx, found.project), found, after, self.clock.now())
        if change is None:
            return
        hooks.save(tx, change.record)
        room = self.loaded.config.matrix.operations_room
        if change.news:
            log.warning("a webhook's state is told", project=found.project, text=change.news)
            if room is not None:
                outbox.add(tx, RoomLane(room), Kind.NEWS, body={"text": change.news})
