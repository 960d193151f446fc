"""Catches up on what webhooks missed: open merge requests, those no longer open, and comments on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial

import structlog

from ravebot.clock import Clock
from ravebot.config import Config, matches_project
from ravebot.errors import Forbidden, NotFound, RavebotError
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.commands import parse_comment
from ravebot.gitlab.events import CommentPosted
from ravebot.gitlab.webhook import note_key
from ravebot.intake.gitlab import POLLED_NOTE, polled
from ravebot.sandboxes.intents import Intents
from ravebot.sandboxes.journal import note_lane
from ravebot.sandboxes.model import RAVEBOT, MergeRequest
from ravebot.store import inbox, merge_requests
from ravebot.store.database import Database, Transaction, get_meta, set_meta

log = structlog.get_logger()


class Poller:
    """At start and every `gitlab.poll`: GitLab's present state, told like a webhook that was not lost.

    The first look ever at a project only notes what is open: nobody wants a sandbox for every old merge request.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        gitlab: GitLab,
        intents: Intents,
        clock: Clock,
        on_result: Callable[[bool], None],
    ) -> None:
        self._config = config
        self._database = database
        self._gitlab = gitlab
        self._intents = intents
        self._clock = clock
        self._on_result = on_result
        self.last_success: datetime | None = None
        self.last_error = ""

    async def run(self) -> None:
        """Until cancelled; a look that failed is repeated sooner."""
        wait = 1.0
        period = self._config.gitlab.poll.total_seconds()
        while True:
            try:
                await self.look()
            except RavebotError as error:
                self.last_error = str(error)
                self._on_result(False)
                wait = min(period, wait * 2)
                log.warning("gitlab could not be polled", error=str(error), in_s=wait)
                await asyncio.sleep(wait)
                continue
            self.last_success, self.last_error, wait = self._clock.now(), "", 1.0
            self._on_result(True)
            await asyncio.sleep(period)

    async def look(self) -> None:
        """One look at everything."""
        present = await self._gitlab.open_merge_requests(self._config.gitlab.projects)
        known = {mr.ref: mr for mr in await self._database.read(merge_requests.opened)}
        for mr in present:
            known.pop(mr.ref, None)
            await self._told(mr)
            await self._comments(mr)
        for ref in known:
            try:
                await self._told(await self._gitlab.merge_request(ref))
            except (NotFound, Forbidden) as error:
                log.info("merge request can't be seen any more", project=ref.project_id, iid=ref.iid, error=str(error))
        await self._database.write(self._note_look)

    async def _told(self, mr: MergeRequest) -> None:
        def write(tx: Transaction) -> str:
            return self._intents.merge_request_told(tx, mr, RAVEBOT, may_start=self._looked_at(tx, mr))

        await self._database.write(write)

    async def _comments(self, mr: MergeRequest) -> None:
        seen = await self._database.read(lambda tx: merge_requests.last_comment(tx, mr.ref))
        comments = await self._gitlab.notes_after(mr.ref, seen or 0, mr.project_path)
        if comments:
            await self._database.write(partial(self._keep, mr=mr, comments=comments))

    def _keep(self, tx: Transaction, mr: MergeRequest, comments: list[CommentPosted]) -> None:
        if self._looked_at(tx, mr):
            for comment in comments:
                if parse_comment(comment.text) is None:
                    continue
                inbox.add(
                    tx,
                    source="gitlab",
                    key=note_key(comment.note_id),
                    lane=note_lane(mr.ref),
                    kind=POLLED_NOTE,
                    body=polled(comment),
                )
        merge_requests.set_last_comment(tx, mr.ref, comments[-1].note_id)

    def _looked_at(self, tx: Transaction, mr: MergeRequest) -> bool:
        """Whether an earlier look, with one of today's patterns, would have seen this merge request's project."""
        for pattern in self._config.gitlab.projects:
            if matches_project((pattern,), mr.project_path) and get_meta(tx, f"looked_at:{pattern}"):
                return True
        return False

    def _note_look(self, tx: Transaction) -> None:
        for pattern in self._config.gitlab.projects:
            set_meta(tx, f"looked_at:{pattern}", "yes")
