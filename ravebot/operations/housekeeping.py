"""Periodic work: old rows and logs are removed.

By the clock alone everything would be old once it is ahead. So a day has to pass between two looks before something is
forgotten: after a jump of the clock, or after ravebot was off for days, only the next day's look does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog

from ravebot.agents.limits import day_of
from ravebot.clock import Clock, from_us
from ravebot.config.model import KeepConfig
from ravebot.errors import StoreError, Unavailable
from ravebot.providers.base import Provider
from ravebot.store import (
    agent_figures,
    agent_texts,
    alerts,
    api_tokens,
    events,
    inbox,
    machines,
    outbox,
    pipeline_images,
    project_files,
    results,
    runs,
    sandboxes,
)
from ravebot.store.database import Database, Transaction, get_meta, set_meta

log = structlog.get_logger()

_KEEP_ALERTS = timedelta(days=30)
"""After they were resolved, or heard of last."""
_KEEP_FACTS = timedelta(days=30)
"""What was read of projects, and what persons used: no text of anybody's."""
_ROWS_AT_ONCE = 500
_LOOK_SECONDS = 3600
_LEAST, _MOST = timedelta(hours=20), timedelta(days=3)
"""Between two looks of which the second forgets."""
LOOKED_AT = "housekeeping_at"
"""When the last look ended that forgot something, or that had to wait for the next day."""


@dataclass(frozen=True)
class Housekeeping:
    """Forgets; events are kept for good."""

    clock: Clock
    database: Database
    provider: Provider
    keep: KeepConfig
    logs: tuple[tuple[Path, str], ...]  # folders, and the pattern of our machines' logs in each

    async def forget(self) -> None:
        """Daily: remove old rows and machines' logs, and log the event log's head, so that a cut end is noticed."""
        while True:
            try:
                if await self.database.write(_is_due):
                    await self._forget()
                    await self._forget_logs()
                    await self.database.write(_looked)
            except StoreError as error:
                log.warning("old rows could not be dropped", error=str(error))
            except Unavailable as error:
                log.info("old logs are removed later: it is not known which machines there are", error=str(error))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _forget_logs(self) -> None:
        """Those of machines that neither the database nor the provider has."""
        there = {machine.name for machine in (await self.provider.list()).machines}
        live = frozenset(machine.name for machine in await self.database.read(machines.live))
        for folder, pattern in self.logs:
            await asyncio.to_thread(_forget_logs, folder, pattern, self.keep.consoles, live | there)

    async def _forget(self) -> None:
        keep = self.keep
        await self.database.write(lambda tx: inbox.forget_handled(tx, keep.requests))
        await self.database.write(lambda tx: outbox.forget_delivered(tx, keep.messages))
        await self.database.write(lambda tx: sandboxes.forget_output(tx, keep.output))
        await self.database.write(lambda tx: results.forget_output(tx, keep.output))
        await self.database.write(lambda tx: project_files.forget(tx, _KEEP_FACTS))
        await self.database.write(lambda tx: pipeline_images.forget(tx, _KEEP_FACTS))
        await self.database.write(lambda tx: alerts.forget(tx, _KEEP_ALERTS))
        while await self.database.write(lambda tx: agent_texts.forget(tx, keep.talks, _ROWS_AT_ONCE)):
            await asyncio.sleep(0)  # others write in between
        while await self.database.write(lambda tx: runs.forget(tx, keep.output, _ROWS_AT_ONCE)):
            await asyncio.sleep(0)
        while await self.database.write(lambda tx: api_tokens.forget_answers(tx, _ROWS_AT_ONCE)):
            await asyncio.sleep(0)
        await self.database.write(lambda tx: agent_figures.forget_days(tx, day_of(tx.now - _KEEP_FACTS)))
        log.info("event log", head=await self.database.read(events.head))


def _is_due(tx: Transaction) -> bool:
    """Whether something may be forgotten now. Where the clock can't be believed yet, a day begins."""
    known = get_meta(tx, LOOKED_AT)
    since = tx.now - from_us(int(known)) if known else None
    if since is None or not timedelta(0) <= since <= _MOST:
        _looked(tx)
        return False
    return since >= _LEAST


def _looked(tx: Transaction) -> None:
    set_meta(tx, LOOKED_AT, str(tx.now_us))


def _forget_logs(folder: Path, pattern: str, older_than: timedelta, live: Collection[str]) -> None:
    """Remove old logs of machines that are gone; a live machine may just have written nothing."""
    oldest = time.time() - older_than.total_seconds()
    for path in folder.glob(pattern):
        try:
            if path.name.partition(".")[0] not in live and path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:  # somebody else has removed it
            pass
        except OSError as error:
            log.warning("old log could not be removed", path=str(path), error=error.strerror)
