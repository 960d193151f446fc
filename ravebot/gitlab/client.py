"""The part of GitLab's API that ravebot uses: async methods that run python-gitlab, which blocks, in threads.

Raises NotFound, Forbidden, Refused (the archive is too large), and Unavailable, which may say when to try again.
Nothing is retried here, because a repeated POST could post twice; callers retry, since their rows say what was sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import structlog

from ravebot.agents.diff.model import BranchCommit, BranchHead, Committed
from ravebot.clock import Clock, SystemClock, age
from ravebot.config.patterns import matches_project
from ravebot.errors import NotFound
from ravebot.gitlab import answers, download, repository
from ravebot.gitlab.addressing import for_us
from ravebot.gitlab.calls import in_thread, mr_address, readable
from ravebot.gitlab.ci.jobs import CiJobs
from ravebot.gitlab.discussions import Discussions
from ravebot.gitlab.environments import Environments
from ravebot.gitlab.events import CommentPosted
from ravebot.gitlab.fields import Json
from ravebot.gitlab.pipelines import Pipelines
from ravebot.gitlab.route import DIRECT, GitlabRoute
from ravebot.gitlab.transport import TIMEOUT_SECONDS, Told, Transport, tell_nobody
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Person

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_THREADS = 4
_SLOW_THREADS = 2
_NOTES_PER_PAGE = "20"  # a note may be a megabyte, and a whole page is held in memory
MOST_NOTES = 300
"""How many comments are held in memory at a time, each of which may be a whole message to an agent."""
_ENVIRONMENT_THREADS = 3
_CI_THREADS, _IMAGE_THREADS, _LOOK_THREADS = 4, 4, 3
MOST_KEYS, _MOST_KEYS_READ, _LONGEST_KEY = 20, 100, 3_000
"""A person's keys that are let in, that are read, and characters of one: a guest takes 128 KiB of keys in all."""
_ACTIVE_FOR = timedelta(minutes=5)
_MOST_ACTIVE = 10_000
_NOTE_THREADS = 8
"""As many threads as notes are posted at once. A note that waited for a thread would be posted later than
`last_attempt_at` says."""


class GitLab:
    """One GitLab, one token. Safe to call from many tasks; `close` when done."""

    def __init__(
        self,
        url: str,
        token: str,
        clock: Clock | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        route: GitlabRoute = DIRECT,
        told: Told = tell_nobody,
    ) -> None:
        self.url = url.rstrip("/")
        self._clock = clock or SystemClock()
        self._own_id: tuple[int, int] | None = None  # after so many renewals of the token
        self._active: dict[int, datetime] = {}  # who was seen to be allowed to use GitLab, and when
        self._transport = Transport(self.url, token, self._clock, timeout_seconds, route, told)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="gitlab")
        # Archives take long: they have threads of their own, so that they delay no note.
        self._slow_pool = ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="gitlab-archive")
        self._note_pool = ThreadPoolExecutor(_NOTE_THREADS, thread_name_prefix="gitlab-note")
        # Environments delay no note, and no note delays them.
        self._environment_pool = ThreadPoolExecutor(_ENVIRONMENT_THREADS, thread_name_prefix="gitlab-environment")
        # Downloads of images take long, and hold up no look at pipelines.
        self._image_pool = ThreadPoolExecutor(_IMAGE_THREADS, thread_name_prefix="gitlab-image")
        self._look_pool = ThreadPoolExecutor(_LOOK_THREADS, thread_name_prefix="gitlab-pipeline")
        self.discussions = Discussions(self._transport, self._pool, self._note_pool)
        self.environments = Environments(self._transport, self._environment_pool)
        # Jobs ask at any time, and as often as they like: they delay nothing.
        self._ci_pool = ThreadPoolExecutor(_CI_THREADS, thread_name_prefix="gitlab-ci")
        self.ci = CiJobs(self._transport, self._ci_pool, self.url)
        self.pipelines = Pipelines(self._transport, self._look_pool, self._image_pool)

    async def close(self) -> None:
        """Accept no more calls, and wait for running ones (a download stops at its next chunk)."""
        self._transport.stopping.set()
        pools = (self._pool, self._slow_pool, self._note_pool, self._environment_pool, self._ci_pool)
        for pool in (*pools, self._image_pool, self._look_pool):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        self._transport.close()

    async def me(self) -> Person:
        """The user that the token belongs to: the bot."""
        found = await self._call(lambda: answers.person(self._transport.get("/user")))
        self._own_id = self._transport.renewals, found.id
        return found

    async def own_id(self) -> int:
        """The bot's user id; GitLab is asked once for each token."""
        known = self._own_id
        return known[1] if known and known[0] == self._transport.renewals else (await self.me()).id

    async def version(self) -> str:
        """GitLab's version, such as `18.0.0-ee`."""
        return await self._call(lambda: answers.version(self._transport.get("/version")))

    async def project(self, path_or_id: str | int) -> tuple[int, str]:
        """A project's numeric id and full path."""
        address = f"/projects/{quote(str(path_or_id), safe='')}"
        return await self._call(lambda: answers.project(self._transport.get(address)))

    async def merge_request(self, ref: MergeRequestRef) -> MergeRequest:
        """A merge request as it is now."""
        return await self._call(lambda: answers.merge_request(self._transport.get(mr_address(ref))))

    async def projects(self, patterns: tuple[str, ...], level: int = 0) -> list[tuple[int, str]]:
        """Id and path of every project that matches and in which the token's user has that role or more."""
        least = {"min_access_level": str(level)} if level else {}

        def gather() -> list[tuple[int, str]]:
            listed = self._transport.list("/projects", membership="true", simple="true", archived="false", **least)
            return [one for one in readable(listed, answers.project) if matches_project(patterns, one[1])]

        return await self._call(gather)

    async def open_merge_requests(self, project_id: int) -> list[MergeRequest]:
        """Every open merge request of a project, oldest first."""
        address = f"/projects/{project_id:d}/merge_requests"

        def gather() -> list[MergeRequest]:
            listed = self._transport.list(address, state="opened", scope="all", sort="asc")
            return list(readable(listed, answers.merge_request))

        return await self._call(gather)

    async def group_merge_requests(self, group: str, updated_after: datetime | None) -> list[MergeRequest]:
        """The open merge requests of a group's projects and its subgroups', oldest first; with a moment, also those
        that ended, but only what was updated after it. Archived projects are left out."""
        address = f"/groups/{quote(group, safe='')}/merge_requests"
        which = {"updated_after": updated_after.isoformat()} if updated_after else {"state": "opened"}

        def gather() -> list[MergeRequest]:
            return list(
                readable(self._transport.list(address, scope="all", sort="asc", **which), answers.merge_request)
            )

        return await self._call(gather)

    async def access_level(self, project_id: int, user_id: int) -> int:
        """The user's role on the project, inherited ones included (30 is Developer); 0 for none."""

        def ask() -> int:
            try:
                return answers.access_level(self._transport.get(f"/projects/{project_id:d}/members/all/{user_id:d}"))
            except NotFound:
                return 0

        return await self._call(ask)

    async def user(self, username: str) -> Person | None:
        """The user of that name, whatever its case."""

        def ask() -> Person | None:
            people = readable(self._transport.list("/users", username=username), answers.person)
            return next((one for one in people if one.username.lower() == username.lower()), None)

        return await self._call(ask)

    async def is_bot(self, user_id: int) -> bool:
        """Whether a user is no person: a token's user, a service account, one of GitLab's own, or gone."""

        def ask() -> bool:
            try:
                return answers.is_bot(self._transport.get(f"/users/{user_id:d}"))
            except NotFound:
                return True

        return await self._call(ask)

    def _is_active(self, user_id: int, now: datetime) -> bool:
        seen_at = self._active.get(user_id)
        if seen_at is not None and age(seen_at, now) < _ACTIVE_FOR:
            return True
        self._active.pop(user_id, None)
        if not answers.is_active(self._transport.get(f"/users/{user_id:d}")):
            return False
        if len(self._active) >= _MOST_ACTIVE:
            self._active.clear()
        self._active[user_id] = now
        return True

    async def ssh_keys(self, user_id: int) -> tuple[str, ...]:
        """The SSH keys with which the user may log in, as type and Base64; without expired and signing-only keys.

        Who is blocked, banned or deactivated has none; GitLab goes on to list them, so that is asked for by itself, and
        believed for five minutes of who may use GitLab.
        """
        now = self._clock.now()

        def ask() -> tuple[str, ...]:
            if not self._is_active(user_id, now):
                return ()
            listed = self._transport.list(f"/users/{user_id:d}/keys")
            keys = readable(islice(listed, _MOST_KEYS_READ), lambda item: answers.ssh_key(item, now))
            usable = dict.fromkeys(key for key in keys if key and len(key) <= _LONGEST_KEY)
            return tuple(islice(usable, MOST_KEYS))

        return await self._call(ask)

    async def archive(self, project_id: int, sha: str, target: Path, max_bytes: int) -> int:
        """Write the source at that commit to `target` as tar.gz; returns its size in bytes.

        Raises Refused when it is larger than `max_bytes`. When it raises, nothing is left at `target`.
        """
        address = f"/projects/{project_id:d}/repository/archive.tar.gz"
        return await self._call(
            lambda: download.save(self._transport, address, sha, target, max_bytes), self._slow_pool
        )

    async def file(self, project_id: int, path: str, ref: str, max_bytes: int) -> bytes:
        """A file's content at a commit or branch; of a longer one, so much and one byte more.

        Raises FileNotFound if the commit is there and has none, and otherwise NotFound.

        Of a symbolic link it is the name of its target.
        """
        return await self._call(lambda: repository.file(self._transport, project_id, path, ref, max_bytes))

    async def branch(self, project_id: int, name: str) -> BranchHead | None:
        """A branch; None if there is none of that name."""
        return await self._call(lambda: repository.branch(self._transport, project_id, name))

    async def branch_commits(self, project_id: int, name: str, until_sha: str) -> list[BranchCommit] | None:
        """The branch's commits after that one, the newest first, at most 500; None if the branch is gone."""
        return await self._call(lambda: repository.branch_commits(self._transport, project_id, name, until_sha))

    async def merge_request_commits(self, ref: MergeRequestRef) -> list[BranchCommit]:
        """The merge request's commits, the newest first, at most 500; also when its branch is gone."""
        return await self._call(lambda: repository.merge_request_commits(self._transport, ref))

    async def last_commits(self, project_id: int, sha: str, paths: Sequence[str]) -> Mapping[str, str]:
        """The last commit of each file, seen from that commit; a file that is not there has none."""

        async def some(of: Sequence[str]) -> Mapping[str, str]:
            return await self._call(lambda: repository.last_commits(self._transport, project_id, sha, of))

        found = await asyncio.gather(*(some(paths[number::_THREADS]) for number in range(_THREADS)))
        return {path: commit for part in found for path, commit in part.items()}

    async def commit(
        self, project_id: int, branch: str, message: str, actions: Sequence[Mapping[str, object]]
    ) -> Committed:
        """Make one commit on a branch. Raises Overtaken if the files there are not those that the actions expect, and
        Unavailable also when GitLab may have made it."""
        return await self._call(lambda: repository.commit(self._transport, project_id, branch, message, actions))

    async def create_note(self, ref: MergeRequestRef, body: str) -> int:
        """Post a plain comment; returns its id."""
        return await self._call(
            lambda: answers.note_id(self._transport.post(f"{mr_address(ref)}/notes", {"body": body})), self._note_pool
        )

    async def edit_note(self, ref: MergeRequestRef, note_id: int, body: str) -> None:
        """Rewrite a comment of the bot, which notifies nobody. Raises NotFound if it was deleted."""
        await self._call(lambda: self._transport.put(f"{mr_address(ref)}/notes/{note_id:d}", {"body": body}))

    async def find_note(self, ref: MergeRequestRef, author_id: int, marker: str) -> int | None:
        """The first comment by that author that begins with the marker."""

        def search() -> int | None:
            for note in readable(self._notes(ref, "asc"), answers.note):
                if note.author.id == author_id and note.text.startswith(marker):
                    return note.id
            return None

        return await self._call(search)

    async def notes_after(self, ref: MergeRequestRef, note_id: int, project_path: str = "") -> list[CommentPosted]:
        """People's comments newer than that one, oldest first, to catch up on lost webhooks.

        At most the `MOST_NOTES` oldest, and of each text only what is for us: there may be any number of comments, of a
        million characters each. In an edited one nothing is for us, as for webhooks.
        """

        def gather() -> list[CommentPosted]:
            found: deque[CommentPosted] = deque(maxlen=MOST_NOTES)  # the newest fall out
            for note in readable(self._notes(ref, "desc"), answers.note):
                if note.id <= note_id:
                    break
                if not note.system:
                    said = for_us(note.text)
                    if said and note.changed_at and not self._has_reaction_of(ref, note.id, note.changed_at):
                        _log.info("edited_comment_ignored", note=note.id, mr=str(ref))
                        said = ""
                    found.append(CommentPosted(ref, project_path, note.id, note.author, said, None, note.created_at))
            return list(reversed(found))

        return await self._call(gather)

    async def react(self, ref: MergeRequestRef, note_id: int, emoji: str) -> None:
        """Add an emoji (`eyes`, `white_check_mark`, …) to a comment; it may be there already."""
        await self.discussions.award(ref, note_id, emoji)

    def _has_reaction_of(self, ref: MergeRequestRef, note_id: int, moment: datetime) -> bool:
        """Whether somebody reacted to a note then, which also moves its `updated_at`."""
        listed = self._transport.list(f"{mr_address(ref)}/notes/{note_id:d}/award_emoji")
        return any(answers.at_once(moment, answers.awarded_at(item)) for item in listed)

    def _notes(self, ref: MergeRequestRef, sort: str) -> Iterator[Json]:
        address = f"{mr_address(ref)}/notes"
        return self._transport.list(
            address,
            sort=sort,
            order_by="created_at",
            activity_filter="only_comments",
            per_page=_NOTES_PER_PAGE,
        )

    async def _call(self, function: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        return await in_thread(pool or self._pool, function)
