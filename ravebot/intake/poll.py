"""Polls GitLab for what webhooks missed: open merge requests, those no longer open, and their comments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import structlog

from ravebot.backoff import Backoff
from ravebot.clock import Clock, from_us, is_due, to_us
from ravebot.config.model import Config
from ravebot.config.patterns import matches_project
from ravebot.errors import Forbidden, NotFound, RavebotError, SlowDown, Unavailable
from ravebot.gitlab.addressing import for_us
from ravebot.gitlab.client import MOST_NOTES, GitLab
from ravebot.gitlab.events import CommentPosted
from ravebot.gitlab.kept import kept
from ravebot.gitlab.transport import TokenRefused
from ravebot.gitlab.webhook import note_key
from ravebot.intake.coverage import cover, put_off
from ravebot.sandboxes.intents import Intents
from ravebot.sandboxes.model import RAVEBOT, MergeRequest, MergeRequestRef, ProjectId
from ravebot.sandboxes.projectfiles import ProjectFiles
from ravebot.store import inbox, merge_requests, outbox, restored
from ravebot.store.database import Database, Transaction, get_meta, set_meta
from ravebot.store.signals import POLL
from ravebot.store.targets import Kind, NoteLane, RoomLane

log = structlog.get_logger()

_MOST_IN_A_ROW = 3
"""After this many projects, or merge requests of one, in a row that do not answer, GitLab counts as unavailable."""
_LONGEST_WAIT_SECONDS = 60.0
"""Upper bound of the pause after a failed poll, so that recovery is noticed within a minute."""
_LIST_EVERY = 6
"""The list of projects is asked for at every sixth poll: a webhook of a new one is obeyed at once all the same. Then
also all open merge requests of a group are, and in between only what was updated in it."""
_REPORTER = 20
"""https://docs.gitlab.com/api/access_requests/#valid-access-levels ; who has less may not read merge requests."""
_SETTLED = timedelta(minutes=5)
"""Age of a merge request's last update from which on a new comment is sure to change `updated_at`: GitLab touches it at
most once a minute (app/models/concerns/throttled_touch.rb). The rest is for clocks that differ."""
_THROTTLED = timedelta(minutes=1)
_OVERLAP = _SETTLED + timedelta(minutes=10)
"""By how much what was updated since the last poll is asked for again: until a merge request is settled, and for clocks
that differ."""
MAX_COMMAND_AGE = timedelta(days=7)
"""A missed command that is older than this is not executed."""


@dataclass(frozen=True)
class GroupListing:
    """A group's merge requests, by project. `whole`: all that are open; otherwise what was updated lately."""

    began: datetime
    whole: bool
    of: Mapping[int, Sequence[MergeRequest]]


@dataclass(frozen=True)
class Gaps:
    """What of a project could not be read, though its list of merge requests could."""

    refused: str = ""
    """Comments that GitLab refuses; they are read when everything is asked for again."""
    trouble: Unavailable | None = None


class Poller:
    """Reads GitLab's present state at start and every `gitlab.poll`, and handles it like webhooks.

    The first poll of a project only records what is open: old merge requests get no sandbox.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        gitlab: GitLab,
        intents: Intents,
        clock: Clock,
        on_result: Callable[[bool], None],
        is_heard: Callable[[str], bool] = lambda _path: False,
        on_missed: Callable[[], None] = lambda: None,
    ) -> None:
        """`is_heard`: whether a project's webhook is known to be right; `on_missed` is called after something was found
        that a webhook should have told."""
        self._config = config
        self._database = database
        self._gitlab = gitlab
        self._intents = intents
        self._clock = clock
        self._on_result = on_result
        self._is_heard = is_heard
        self._on_missed = on_missed
        self._turn = 0  # of those that are asked for in turn
        self.looked_at: datetime | None = None
        """When the last poll ended, successful or not."""
        self.problem = ""
        """Why the last poll failed; empty when it did not."""
        self.projects: tuple[tuple[int, str], ...] = ()
        """Ids and paths of those that are served, as far as the last poll knew."""
        self._groups: Mapping[str, frozenset[int]] = {}
        self._began: dict[str, datetime] = {}  # by group, when it was last asked for with success
        self._seen_in_groups: set[int] = set()  # projects that the list does not have, though their path fits
        self._strangers: set[int] = set()  # those of them that it does not have either when it is asked for again
        self._due: dict[int, str] = {}
        self._seen: dict[MergeRequestRef, tuple[datetime | None, datetime]] = {}  # updates that may not be settled
        self.refusals: Mapping[str, str] = {}
        """Projects that the last poll could not read, wholly or in part, and why."""

    async def run(self) -> None:
        """Poll until cancelled; a failed poll is repeated sooner."""
        failures, polls = 0, 0
        period = self._config.gitlab.poll.total_seconds()
        pauses = Backoff.growing(2.0, min(period, _LONGEST_WAIT_SECONDS))
        while True:
            try:
                await self.look(again=polls % _LIST_EVERY == 0 or self.has_new_projects)
            except RavebotError as error:
                self.problem = str(error)
                await self._tell_of_token(error)
                log.warning("gitlab could not be polled", error=str(error))
            # A bug that an odd answer triggers must not end the bot.
            except Exception:
                self.problem = "ravebot could not make sense of GitLab's answer; its log says more"
                log.exception("gitlab could not be polled: this is a bug of ravebot's")
            else:
                self.problem, failures, polls = "", 0, polls + 1
                await self._tell_of_token(None)
                self.looked_at = self._clock.now()
                self._on_result(True)
                await self._rest(period)
                continue
            self.looked_at = self._clock.now()
            self._on_result(False)
            failures, polls = failures + 1, 0
            await asyncio.sleep(pauses.after(failures))

    @property
    def has_new_projects(self) -> bool:
        """Whether a group has a project that the list of projects may have by now."""
        return bool(self._seen_in_groups - self._strangers)

    def ask_for(self, project_id: int, path: str) -> None:
        """Look at a project soon, before the next poll; asked for again before that, it is looked at once."""
        self._due[project_id] = path
        self._database.signals.wake(POLL)

    async def _rest(self, seconds: float) -> None:
        """Wait for the next poll, and meanwhile look at what is asked for."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await self._database.signals.wait(POLL, left)
            while self._due:
                project_id, path = self._due.popitem()
                try:
                    await self.look_at(project_id)
                except RavebotError as error:  # the next poll sees it
                    log.warning("project can't be looked at", project=path, error=str(error))
                # A bug that an odd answer triggers must not end the bot.
                except Exception:
                    log.exception("project can't be looked at: this is a bug of ravebot's", project=path)

    async def look_at(self, project_id: int) -> None:
        """Poll one project, and its merge requests that are open no longer."""
        missing = {mr.ref for mr in await self._database.read(merge_requests.opened) if mr.ref.project_id == project_id}
        gaps = await self._project(project_id, None, missing)
        ended = await self._closed(missing)
        if trouble := gaps.trouble or ended.get(project_id):
            raise trouble

    async def _tell_of_token(self, error: RavebotError | None) -> None:
        """Tell the operators, once, that GitLab refuses the token, and when it takes it again."""
        refused = isinstance(error, TokenRefused)
        if error is not None and not refused:
            return
        try:
            if (await self._database.read(lambda tx: get_meta(tx, _TOKEN_REFUSED)) or "") == ("yes" if refused else ""):
                return
            await self._database.write(
                partial(_note_token, room=self._config.matrix.operations_room, refusal=str(error) if error else "")
            )
        except RavebotError as trouble:  # the next poll tells
            log.info("a message to the operators is delayed", error=str(trouble))

    async def look(self, *, again: bool = True) -> None:
        """Poll everything once. A project or merge request that can't be read does not delay the others.

        `again`: also ask which projects there are, and for everything that is open, not only what was updated.

        Raises Forbidden when we may see no project, Unavailable when none answers, or none wholly: at once when several
        in a row don't.
        """
        refusals: dict[str, str] = {}
        unseen: dict[int, RavebotError] = {}
        troubles: dict[int, Unavailable] = {}  # of projects that were seen, but not wholly
        in_a_row = 0
        missing = {mr.ref for mr in await self._database.read(merge_requests.opened)}
        self._seen = {ref: seen for ref, seen in self._seen.items() if ref in missing}
        if again:
            await self._list()
        projects = self.projects
        listed: dict[int, GroupListing] = {}
        last, self._began = self._began, {}  # after a poll that fails, everything is asked for
        for group, ids in self._groups.items():
            found = await self._group(group, ids, None if again else last.get(group))
            listed |= dict.fromkeys(ids, found) if isinstance(found, GroupListing) else {}
            unseen |= dict.fromkeys(ids, found) if isinstance(found, Unavailable) else {}
        later = frozenset[int]()
        if not again:
            alone = [one for one in projects if one[0] not in listed and one[0] not in unseen]
            later, self._turn = put_off(alone, self._is_heard, self._turn), self._turn + 1
        for project_id, path in projects:
            if project_id in later:
                if why := self.refusals.get(path):
                    refusals[path] = why
                continue
            try:
                if isinstance(error := unseen.get(project_id), Unavailable):
                    raise error
                gaps = await self._project(project_id, listed.get(project_id), missing)
                in_part = (seen := listed.get(project_id)) is not None and not seen.whole
                if why := gaps.refused or (in_part and self.refusals.get(path)) or "":
                    refusals[path] = why
                if gaps.trouble:
                    troubles[project_id] = gaps.trouble
                in_a_row = 0
            except (NotFound, Forbidden, Unavailable) as error:
                log.warning("project can't be looked at", project=path, error=str(error))
                refusals[path] = str(error)
                unseen[project_id] = error
                in_a_row = in_a_row + 1 if isinstance(error, Unavailable) else 0
                if isinstance(error, SlowDown) or in_a_row == _MOST_IN_A_ROW:
                    raise
            if self.looked_at and not self.problem:  # a poll of many projects may take longer than the interval
                self.looked_at = self._clock.now()

        def may_be_over(ref: MergeRequestRef) -> bool:
            in_part = (seen := listed.get(ref.project_id)) is not None and not seen.whole
            elsewhere = not again and all(ref.project_id != number for number, _ in projects)
            return not (
                in_part or elsewhere or ref.project_id in later or isinstance(unseen.get(ref.project_id), Unavailable)
            )

        troubles = await self._closed(set(filter(may_be_over, missing))) | troubles
        refusals |= {path: str(troubles[number]) for number, path in projects if number in troubles}
        for pattern in self._config.gitlab.projects:
            if not any(matches_project((pattern,), path) for _, path in projects):
                refusals[pattern] = (
                    "the bot's user is a member of no such project, or it is archived: add the user as Developer,"
                    " or correct gitlab.projects"
                )
        self._began = {
            group: seen.began
            for group, ids in self._groups.items()
            if (seen := next((listed[number] for number in ids if number in listed), None))
            and not ids & (unseen.keys() | troubles.keys())
        }
        self.refusals = refusals
        asked = {number for number, _ in projects} - later
        if asked <= unseen.keys() | troubles.keys():
            failed = (*unseen.values(), *troubles.values())
            if trouble := next((error for error in failed if isinstance(error, Unavailable)), None):
                raise trouble
        if len(unseen) == len(projects):
            path, why = next(iter(refusals.items()))
            raise Forbidden(f"there is no project that ravebot may look at; {path}: {why}")

    async def _list(self) -> None:
        """Ask which projects there are, and which of them are asked for by their group."""
        patterns = self._config.gitlab.projects
        self.projects = tuple(await self._gitlab.projects(patterns))
        readable = frozenset[int]()
        if cover(patterns, self.projects, frozenset(number for number, _ in self.projects)):
            readable = frozenset(number for number, _ in await self._gitlab.projects(patterns, _REPORTER))
        self._groups = cover(patterns, self.projects, readable)
        self._strangers = self._seen_in_groups - {number for number, _ in self.projects}

    async def _group(self, group: str, ids: frozenset[int], last: datetime | None) -> GroupListing | RavebotError:
        """What of a group is open, or was updated since `last`; or why it can't be told."""
        began = self._clock.now()
        since = None if last is None or last > began else last - _OVERLAP
        try:
            found = await self._gitlab.group_merge_requests(group, since)
        except (NotFound, Forbidden) as error:  # it is no group, or none of ours: each project is asked for
            log.debug("group can't be looked at", group=group, error=str(error))
            return error
        except Unavailable as error:
            if isinstance(error, SlowDown):
                raise
            return error
        of: dict[int, list[MergeRequest]] = {number: [] for number in ids}
        known = ids | {number for number, _ in self.projects}
        for mr in found:
            if mr.ref.project_id in ids:
                of[mr.ref.project_id].append(mr)
            elif mr.ref.project_id not in known and matches_project(self._config.gitlab.projects, mr.project_path):
                self._seen_in_groups.add(mr.ref.project_id)
        return GroupListing(began, since is None, of)

    async def _closed(self, missing: set[MergeRequestRef]) -> dict[int, Unavailable]:
        """Ask for those that are not listed as open any more; returns why some could not be seen, by project."""
        troubles: dict[int, Unavailable] = {}
        in_a_row = 0
        for ref in sorted(missing):
            try:
                await self._told(await self._gitlab.merge_request(ref))
            except (NotFound, Forbidden) as error:
                log.info("merge request can't be seen any more", project=ref.project_id, iid=ref.iid, error=str(error))
            except Unavailable as error:
                in_a_row += 1
                troubles[ref.project_id] = _passed_over(ref, error, in_a_row)
                continue
            in_a_row = 0
        return troubles

    async def _project(self, project_id: int, listed: GroupListing | None, missing: set[MergeRequestRef]) -> Gaps:
        """Look at one; what was seen is not `missing` any more. One merge request that can't be read hides no other."""
        began, gaps, in_a_row = (listed.began if listed else self._clock.now()), Gaps(), 0
        looked_at = await self._database.read(lambda tx: _first_look(tx, ProjectId(project_id)))
        if looked_at is not None and looked_at > began:  # the clock was set back since
            since = began - _OVERLAP - _LIST_EVERY * self._config.gitlab.poll  # the longest between two looks at one
            await self._database.write(partial(_note_look, project_id=ProjectId(project_id), began=since))
        first = looked_at is None
        found = listed.of[project_id] if listed else await self._gitlab.open_merge_requests(project_id)
        for mr in found:
            if mr.state != "opened" and mr.ref not in missing:
                continue  # it ended, as we know
            missing.discard(mr.ref)
            try:
                why = await self._merge_request(mr, began, first)
            except Unavailable as error:
                in_a_row += 1
                gaps = replace(gaps, trouble=_passed_over(mr.ref, error, in_a_row))
                continue
            if why is not None:
                in_a_row = 0
            if why:
                gaps = replace(gaps, refused=f"comments on !{mr.ref.iid}: {why}")
        if first or listed is None or listed.whole:
            await self._database.write(partial(_note_look, project_id=ProjectId(project_id), began=began))
        return gaps

    async def _merge_request(self, mr: MergeRequest, began: datetime, first: bool) -> str | None:
        """Handle one that is listed, and its comments; returns why they can't be read, None if they were not asked for.

        The first poll executes no comment: those from before it need not be read.
        """
        await self._told(mr)
        if mr.state != "opened" or await self._database.read(partial(merge_requests.comments_are_read, mr=mr)):
            return None
        settled = mr.updated_at is not None and began - mr.updated_at >= _SETTLED
        why = None if first and settled else await self._comments(mr)
        if settled and not why and (first or self._was_seen(mr, began)):
            self._seen.pop(mr.ref, None)
            await self._database.write(partial(merge_requests.set_comments_read, mr=mr))
        return why

    def _was_seen(self, mr: MergeRequest, began: datetime) -> bool:
        """Whether an earlier look saw this update: by its time alone, a clock of ours that is ahead takes it for an old
        one, of which every comment is read."""
        update, since = self._seen.get(mr.ref, (None, began))
        if update != mr.updated_at:
            self._seen[mr.ref] = mr.updated_at, began
            return False
        return is_due(since, _THROTTLED, began)

    async def _told(self, mr: MergeRequest) -> None:
        def write(tx: Transaction) -> bool:
            may_start = _first_look(tx, ProjectId(mr.ref.project_id)) is not None
            is_new = merge_requests.get(tx, mr.ref) is None
            self._intents.merge_request_reported(tx, mr, RAVEBOT, may_start=may_start)
            return may_start and is_new

        known = await self._database.read(lambda tx: _first_look(tx, ProjectId(mr.ref.project_id)))
        if known and self._config.serves(mr.project_path):  # it may have been moved since
            await ProjectFiles(self._database, self._gitlab).know(mr)
        if await self._database.write(write):
            self._on_missed()

    async def _comments(self, mr: MergeRequest) -> str:
        """Store what new comments ask of us; returns why comments can't be read, or an empty text."""
        seen = await self._database.read(lambda tx: merge_requests.last_comment(tx, mr.ref)) or 0
        while True:
            try:
                comments = await self._gitlab.notes_after(mr.ref, seen, mr.project_path)
            except (NotFound, Forbidden) as error:
                log.warning("comments can't be read", mr=mr.full_ref, error=str(error))
                return str(error)
            if not comments:
                return ""
            if await self._database.write(partial(_keep, mr=mr, comments=comments)):
                self._on_missed()
            if len(comments) < MOST_NOTES:
                return ""
            seen = comments[-1].note_id


def _passed_over(ref: MergeRequestRef, error: Unavailable, in_a_row: int) -> Unavailable:
    """Go on without a merge request that GitLab does not show for now; raises what concerns all the others too."""
    if isinstance(error, SlowDown | TokenRefused) or in_a_row == _MOST_IN_A_ROW:
        raise error
    log.warning("merge request can't be looked at", project=ref.project_id, iid=ref.iid, error=str(error))
    return error


def _keep(tx: Transaction, mr: MergeRequest, comments: list[CommentPosted]) -> bool:
    """Store what these notes ask of us, except those from before our first poll or the last restore, which may have
    been carried out, and old ones: the keys by which a webhook's delivery is recognised are deleted after a while.

    Returns whether there is something that was not stored before.
    """
    first = _first_look(tx, ProjectId(mr.ref.project_id))
    moments = (first and first.replace(microsecond=0), tx.now - MAX_COMMAND_AGE, restored.since(tx))
    since = max(moment for moment in moments if moment) if first else None
    added = False
    for comment in comments:
        recent = since is not None and comment.created_at is not None and comment.created_at >= since
        if recent and for_us(comment.text):
            kind, body = kept(comment)
            key, lane = note_key(comment.note_id), NoteLane(mr.ref).text
            added |= inbox.add(tx, source="gitlab", key=key, lane=lane, kind=kind, body=body)
    merge_requests.set_last_comment(tx, mr.ref, comments[-1].note_id)
    return added


_TOKEN_REFUSED = "gitlab_token_refused"  # noqa: S105 - a fact that is kept


def _note_token(tx: Transaction, room: str | None, refusal: str) -> None:
    set_meta(tx, _TOKEN_REFUSED, "yes" if refusal else "")
    text = refusal or "GitLab takes ravebot's token again: ravebot goes on, and catches up."
    log.warning("what gitlab says of the token is told", text=text)
    if room is not None:
        outbox.add(tx, RoomLane(room), Kind.NEWS, body={"text": text})


def _first_look(tx: Transaction, project_id: ProjectId) -> datetime | None:
    """When all of a project was polled for the first time; None before that."""
    known = get_meta(tx, f"looked_at:{project_id}")
    return from_us(int(known)) if known else None


def _note_look(tx: Transaction, project_id: ProjectId, began: datetime) -> None:
    first = _first_look(tx, project_id)
    if first is None or first > began:
        set_meta(tx, f"looked_at:{project_id}", str(to_us(began)))
