"""The loop that makes GitLab show what it should of each sandbox: due rows, a few at a time, in turns by project."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import structlog

from ravebot.backoff import Backoff, jitter
from ravebot.config.model import GitLabConfig
from ravebot.errors import Forbidden, NotFound, RavebotError, SlowDown, StoreError, Unavailable
from ravebot.gitlab.transport import Unanswered
from ravebot.notify.environments.keeping import (
    Change,
    answered,
    asking,
    at_peace,
    in_time,
    looked_for,
    refused,
    status_answered,
    without_refusals,
)
from ravebot.notify.environments.sightings import Sighting, take_note
from ravebot.notify.environments.steps import EnvironmentSteps, Foreign, ShowTask, Unseen
from ravebot.notify.environments.wording import refusal
from ravebot.sandboxes.environments.model import EnvironmentRecord
from ravebot.sandboxes.environments.plan import Deed, Presence, ShownSandbox, ShowStep, decide, wanted
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef
from ravebot.store import environments, merge_requests
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import ENVIRONMENTS

log = structlog.get_logger()

AT_ONCE = 2
_GATHER_SECONDS = 0.2
_LOOK_SECONDS = 5.0
_STORE_SECONDS = 1.0
_PAUSES = Backoff.growing(1.0, 60.0)
_BUG_PAUSE = timedelta(minutes=5)


@dataclass(frozen=True)
class _Taken:
    tasks: tuple[ShowTask, ...]
    more: bool  # there may be more rows to look at
    seconds: float | None  # to the next one


class EnvironmentLoop:
    """Takes one step after the other of each merge request; nothing here delays a note."""

    def __init__(
        self,
        database: Database,
        views: Views,
        lifecycle: Lifecycle,
        steps: EnvironmentSteps,
        gather_seconds: float = _GATHER_SECONDS,
    ) -> None:
        self._database = database
        self._views = views
        self._lifecycle = lifecycle
        self._steps = steps
        self._gather_seconds = gather_seconds
        self._busy: set[MergeRequestRef] = set()
        self._paused_until = 0.0  # by the monotonic clock; rows that GitLab slowed down wait in the database

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    taken = await self._database.write(self._take)
                except StoreError as error:
                    log.warning("environments could not be read or written", error=str(error))
                    await asyncio.sleep(_STORE_SECONDS)
                    continue
                for task in taken.tasks:
                    self._busy.add(task.known.ref)
                    group.create_task(self._work(task))
                if taken.more:
                    continue
                look_in = min(_LOOK_SECONDS, max(0.05, taken.seconds if taken.seconds is not None else _LOOK_SECONDS))
                if len(self._busy) >= AT_ONCE:
                    look_in = _LOOK_SECONDS
                if await self._database.signals.wait(ENVIRONMENTS, look_in):
                    await asyncio.sleep(self._gather_seconds)

    def _take(self, tx: Transaction) -> _Taken:
        pause = self._paused_until - time.monotonic()
        free = AT_ONCE - len(self._busy)
        if pause > 0.0 or free <= 0:
            return _Taken((), more=False, seconds=max(pause, 0.0) or None)
        refs = environments.due(tx, frozenset(self._busy), free)
        tasks = tuple(task for ref in refs if (task := self._next(tx, ref)))
        return _Taken(tasks, more=len(tasks) < len(refs), seconds=environments.seconds_to_next(tx))

    def _next(self, tx: Transaction, ref: MergeRequestRef) -> ShowTask | None:
        """Record the attempt at the next step; None if there is none now."""
        known, mr = environments.get(tx, ref), merge_requests.get(tx, ref)
        if known is None or mr is None:
            return None
        try:
            return self._decided(tx, known, mr)
        except Exception:  # a bug, which must stop neither the others nor the bot
            log.exception("what GitLab should show can't be decided: this is a bug of ravebot's", mr=mr.full_ref)
            environments.save(tx, replace(known, looked_at=tx.now, next_at=tx.now + _BUG_PAUSE))
            return None

    def _decided(self, tx: Transaction, known: EnvironmentRecord, mr: MergeRequest) -> ShowTask | None:
        ref = known.ref
        view = self._views.latest(tx, ref)
        web_url = view.access.web_url if view and view.access else None
        cases = view.cases.in_short if view and view.cases else ""
        shown = wanted(view.sandbox if view else None, mr, web_url, tx.now, cases)
        step = decide(_switched(shown, self._views.config.gitlab), known, tx.now)
        known = replace(in_time(known, tx.now), looked_at=tx.now, next_at=None)
        if step is None:
            over = shown.place is Presence.GONE and known.environment_id is None
            known = replace(without_refusals(known) if over else known, settled=known.changes)
            environments.save(tx, known)
            return None
        if not isinstance(step, ShowStep):
            environments.save(tx, replace(known, next_at=step))
            return None
        environments.save(tx, asking(known, step, tx.now))
        return ShowTask(step, known, mr, view.sandbox.id if view else 0)

    async def _work(self, first: ShowTask) -> None:
        ref = first.known.ref
        task: ShowTask | None = first
        try:
            while task:
                outcome = await self._carry_out(task)
                task = await self._database.write(partial(self._keep, task=task, outcome=outcome))
        except StoreError as error:
            # What GitLab carried out and was not recorded is found again, or done again to no effect.
            log.warning("environments could not be written", mr=str(ref), error=str(error))
            await asyncio.sleep(_STORE_SECONDS)
        finally:
            self._busy.discard(ref)
            self._database.signals.wake(ENVIRONMENTS)

    async def _carry_out(self, task: ShowTask) -> Change | Sighting | RavebotError:
        try:
            return await self._steps.carry_out(task, task.known.looked_at or self._database.opened_at)
        except RavebotError as error:
            log.info("gitlab did not take it", mr=task.mr.full_ref, step=task.step.deed.value, error=str(error))
            return error
        except Exception as error:  # a bug, which must stop neither the others nor the bot
            log.exception("environment step failed: this is a bug of ravebot's", mr=task.mr.full_ref)
            return Unavailable(f"{type(error).__name__}")

    def _keep(self, tx: Transaction, task: ShowTask, outcome: Change | Sighting | RavebotError) -> ShowTask | None:
        """Record how the step went; returns the next one, recorded too."""
        known = environments.get(tx, task.known.ref)
        assert known
        before, step = known.hint, task.step
        if isinstance(outcome, Unseen):
            known, step, outcome = answered(known), ShowStep(Deed.LOOK_AT_ENVIRONMENT), outcome.why
        deed = step.deed
        if isinstance(outcome, Sighting):
            known = at_peace(answered(known), deed)  # nothing was asked for
        elif isinstance(outcome, RavebotError):
            known = self._failed(tx, known, step, outcome)
        else:
            known = at_peace(outcome(known), deed)
        environments.save(tx, known)
        if isinstance(outcome, Sighting):
            take_note(tx, self._lifecycle, task.known, outcome)
        if known.hint != before:
            self._lifecycle.journal.refresh_note(tx, known.ref)
        if isinstance(outcome, SlowDown):
            until = known.status_until if deed.is_of_status else known.environment_until
            environments.save(tx, replace(known, next_at=until))
            return None
        return self._next(tx, known.ref)

    def _failed(
        self, tx: Transaction, known: EnvironmentRecord, step: ShowStep, error: RavebotError
    ) -> EnvironmentRecord:
        deed = step.deed
        finding = deed in (Deed.FIND_ENVIRONMENT, Deed.FIND_DEPLOYMENT, Deed.FIND_STATUS)
        answer = isinstance(error, Forbidden | NotFound | SlowDown) and not isinstance(error, Unanswered)
        if answer and (not finding or isinstance(error, Foreign)):
            known = status_answered(known) if deed.is_of_status else answered(known)
        elif not finding and not isinstance(error, Unanswered):
            known = looked_for(known, deed)
        if isinstance(error, Forbidden | NotFound):
            return refused(known, deed, tx.now, str(error) if isinstance(error, Foreign) else refusal(deed, error))
        failures = (known.status_failures if deed.is_of_status else known.environment_failures) + 1
        wait = error.retry_after_seconds if isinstance(error, Unavailable) else None
        pause = _PAUSES.after(failures, wait, jitter())
        if isinstance(error, SlowDown):
            self._paused_until = time.monotonic() + pause
        until = tx.now + timedelta(seconds=pause)
        if deed.is_of_status:
            return replace(known, status_failures=failures, status_since=tx.now, status_until=until)
        return replace(known, environment_failures=failures, environment_since=tx.now, environment_until=until)


def _switched(shown: ShownSandbox, config: GitLabConfig) -> ShownSandbox:
    """Without what the configuration switches off; environments that are there already are removed, and a status that
    is under way still ends, as it would hold up the merge for ever."""
    if not config.environments:
        shown = replace(shown, place=Presence.GONE, deployment=None)
    if not config.commit_status and shown.status:
        shown = replace(shown, status=replace(shown.status, only_ends=True))
    return shown
