"""Periodic work: old rows and logs are removed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog

from ravebot.agents.limits import day_of
from ravebot.clock import Clock
from ravebot.errors import StoreError
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
from ravebot.store.database import Database

log = structlog.get_logger()

KEEP_HANDLED = timedelta(days=14)
"""GitLab and Matrix may deliver something again: its key must be kept for longer than that."""
KEEP_OUTPUT = timedelta(days=7)
KEEP_TEXTS = timedelta(days=30)
"""What people and agents said to each other."""
KEEP_ALERTS = timedelta(days=30)
"""After they were resolved, or heard of last."""
_ROWS_AT_ONCE = 500
_DAY_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Housekeeping:
    """Forgets; events are kept for good."""

    clock: Clock
    database: Database
    logs: tuple[tuple[Path, str], ...]  # folders, and the pattern of our machines' logs in each

    async def forget(self) -> None:
        """Daily: remove old rows and machines' logs, and log the event log's head, so that a cut end is noticed."""
        while True:
            try:
                await self._forget()
            except StoreError as error:
                log.warning("old rows could not be dropped", error=str(error))
            await asyncio.sleep(_DAY_SECONDS)

    async def _forget(self) -> None:
        await self.database.write(lambda tx: inbox.forget_handled(tx, KEEP_HANDLED))
        await self.database.write(lambda tx: outbox.forget_delivered(tx, KEEP_HANDLED))
        await self.database.write(lambda tx: sandboxes.forget_output(tx, KEEP_OUTPUT))
        await self.database.write(lambda tx: results.forget_output(tx, KEEP_OUTPUT))
        await self.database.write(lambda tx: project_files.forget(tx, KEEP_TEXTS))
        await self.database.write(lambda tx: pipeline_images.forget(tx, KEEP_TEXTS))
        await self.database.write(lambda tx: alerts.forget(tx, KEEP_ALERTS))
        while await self.database.write(lambda tx: agent_texts.forget(tx, KEEP_TEXTS, _ROWS_AT_ONCE)):
            await asyncio.sleep(0)  # others write in between
        while await self.database.write(lambda tx: runs.forget(tx, KEEP_OUTPUT, _ROWS_AT_ONCE)):
            await asyncio.sleep(0)
        while await self.database.write(lambda tx: api_tokens.forget_answers(tx, _ROWS_AT_ONCE)):
            await asyncio.sleep(0)
        await self.database.write(lambda tx: agent_figures.forget_days(tx, day_of(tx.now - KEEP_TEXTS)))
        live = frozenset(machine.name for machine in await self.database.read(machines.live))
        for folder, pattern in self.logs:
            await asyncio.to_thread(_forget_logs, folder, pattern, KEEP_OUTPUT, live)
        log.info("event log", head=await self.database.read(events.head))


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
