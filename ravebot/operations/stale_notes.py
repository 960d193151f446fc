"""Corrects status notes of an earlier state or instance that still say "ready" though the machine is gone."""

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
    """Looks for them where the database says so; what it finds is ours again, and edited as any status note.

    `machines_known` says whether all machines of ours are known: until somebody decides about those that a lost
    database knew, they run, and a note that shows the way in stays as it is.
    """

    def __init__(
        self, database: Database, gitlab: GitLab, journal: Journal, machines_known: Callable[[], bool]
    ) -> None:
        self._database = database
        self._gitlab = gitlab
        self._journal = journal
        self._machines_known = machines_known

    async def run(self) -> None:
        """Until cancelled; what it has to do begins with the first look at a project, or with a cleanup."""
        while True:
            pause = LOOK_SECONDS
            try:
                await self.look()
            except RavebotError as error:
                log.warning("stale notes could not be looked for", error=str(error))
                pause = _AGAIN_SECONDS
            # Whatever an odd answer brings to light must not end the bot.
            except Exception:
                log.exception("stale notes could not be looked for: this is a bug of ravebot's")
                pause = _AGAIN_SECONDS
            await asyncio.sleep(pause)

    async def look(self) -> None:
        """Look through every merge request that is still to be; the next call goes on with those that failed.

        Raises Unavailable when one failed, at once when several did in a row: then it is GitLab that is away.
        """
        if not self._machines_known():
            return
        todo = await self._database.read(stale_notes.to_search)
        predecessors = await self._database.read(stale_notes.predecessors)
        trouble: Unavailable | None = None
        in_a_row = 0
        for mr in todo:
            try:
                await self._look_through(mr, predecessors)
                in_a_row = 0
            except Unavailable as error:  # perhaps only this one's comments can't be listed
                trouble, in_a_row = error, in_a_row + 1
                if isinstance(error, SlowDown) or in_a_row == _MOST_IN_A_ROW:
                    raise
            except (NotFound, Forbidden) as error:
                log.warning("stale note can't be looked for", mr=mr.full_ref, error=str(error))
                await self._database.write(partial(stale_notes.searched, ref=mr.ref))

        if trouble is not None:
            raise trouble

    async def _look_through(self, mr: MergeRequest, predecessors: tuple[str, ...]) -> None:
        """The first note that is found becomes ours, if we have none; the others say that they were replaced."""
        writers = predecessors if mr.note_id is not None else (self._database.instance_id, *predecessors)
        me, ours = (await self._gitlab.me()).id, mr.note_id
        for mark in (marker(mr.ref, instance_id) for instance_id in writers):
            note_id = await self._gitlab.find_note(mr.ref, me, mark)
            if note_id is not None and ours is not None:
                # Nobody else edits this one, and the same edit again changes nothing: it needs no outbox.
                await self._gitlab.edit_note(mr.ref, note_id, render_elsewhere(mark))
            ours = ours if ours is not None else note_id
        found = ours
        await self._database.write(lambda tx: self._keep(tx, mr, found))

    def _keep(self, tx: Transaction, mr: MergeRequest, note_id: int | None) -> None:
        now = merge_requests.get(tx, mr.ref)
        if now is None or now.note_id != mr.note_id:  # meanwhile ours was posted: the next look sees both
            return
        stale_notes.searched(tx, mr.ref)
        if note_id is not None and mr.note_id is None:
            log.info("stale note found", mr=mr.full_ref, note=note_id)
            merge_requests.set_note(tx, mr.ref, note_id)
            self._journal.refresh_note(tx, mr.ref)
