"""Corrects status notes of an earlier state or instance that still say "ready" although the machine is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from ravebot.errors import Forbidden, NotFound, RavebotError, SlowDown, Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.notes import marker, render_elsewhere
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.model import MergeRequest
from ravebot.store import merge_requests, stale_notes
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()

LOOK_SECONDS = 5.0
_AGAIN_SECONDS = 60.0
_MOST_IN_A_ROW = 3


class StaleNotes:
    """Searches for them where the database says so. A note that is found becomes ours, and is edited like any other.

    `machines_known` says whether all machines of ours are known. Until somebody decides about the machines of a lost
    database, these run, and notes with their access details stay as they are.
    """

    def __init__(
        self, database: Database, gitlab: GitLab, journal: Journal, machines_known: Callable[[], bool]
    ) -> None:
        self._database = database
        self._gitlab = gitlab
        self._journal = journal
        self._machines_known = machines_known

    async def run(self) -> None:
        """Run until cancelled. There is something to do after the first look at a project, or after a cleanup."""
        while True:
            pause = LOOK_SECONDS
            try:
                await self.look()
            except RavebotError as error:
                log.warning("search for stale notes failed", error=str(error))
                pause = _AGAIN_SECONDS
            # An unexpected answer must not end the bot.
            except Exception:
                log.exception("search for stale notes failed: this is a bug of ravebot")
                pause = _AGAIN_SECONDS
            await asyncio.sleep(pause)

    async def look(self) -> None:
        """Search every merge request that is still to be searched; the next call continues with those that failed.

        Raises Unavailable if one failed; at once if several in a row did, since then GitLab itself is away.
        """
        if not self._machines_known():
            return
        todo = await self._database.read(stale_notes.to_search)
        predecessors = await self._database.read(stale_notes.predecessors)
        trouble: Unavailable | None = None
        in_a_row = 0
        for mr in todo:
            try:
                await self._search(mr, predecessors)
                in_a_row = 0
            except Unavailable as error:  # perhaps only this one's comments can't be listed
                trouble, in_a_row = error, in_a_row + 1
                if isinstance(error, SlowDown) or in_a_row == _MOST_IN_A_ROW:
                    raise
            except (NotFound, Forbidden) as error:
                log.warning("stale note can't be searched for", mr=mr.full_ref, error=str(error))
                await self._database.write(partial(stale_notes.searched, ref=mr.ref))

        if trouble is not None:
            raise trouble

    async def _search(self, mr: MergeRequest, predecessors: tuple[str, ...]) -> None:
        """The first note that is found becomes ours, if we have none; the others are edited to point to it."""
        writers = predecessors if mr.note_id is not None else (self._database.instance_id, *predecessors)
        me, ours = await self._gitlab.own_id(), mr.note_id
        for mark in (marker(mr.ref, instance_id) for instance_id in writers):
            note_id = await self._gitlab.find_note(mr.ref, me, mark)
            if note_id is not None and ours is not None:
                # Nobody else edits this note, and a repeated edit changes nothing, so it needs no outbox.
                await self._gitlab.edit_note(mr.ref, note_id, render_elsewhere(mark))
            ours = ours if ours is not None else note_id
        found = ours
        await self._database.write(lambda tx: self._keep(tx, mr, found))

    def _keep(self, tx: Transaction, mr: MergeRequest, note_id: int | None) -> None:
        now = merge_requests.get(tx, mr.ref)
        if now is None or now.note_id != mr.note_id:  # meanwhile ours was posted: the next search finds both
            return
        stale_notes.searched(tx, mr.ref)
        if note_id is not None and mr.note_id is None:
            log.info("stale note found", mr=mr.full_ref, note=note_id)
            merge_requests.set_note(tx, mr.ref, note_id)
            self._journal.refresh_note(tx, mr.ref)
