"""What a job may ask: how its merge request's sandbox is, that one starts or ends, and which file is its image.

A job's code is the merge request's code, and it may no more than that: its own merge request, never another; never past
a fork's approval; and only what `start` of the project allows. Each call can be repeated: a job starts at most one
sandbox, and to stop what has ended is no mistake. A scheduled job on the default branch may only ask that ravebot looks
at its project now.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Protocol

from ravebot.config.model import Config
from ravebot.gitlab.ci.places import JobPlace, JobPlaces
from ravebot.gitlab.ci.tokens import JobClaims
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Intents
from ravebot.sandboxes.model import RAVEBOT, Actor, EndReason, EventKind, MergeRequest, Sandbox
from ravebot.sandboxes.projectfiles import ProjectFiles
from ravebot.sandboxes.settings import of_merge_request
from ravebot.sandboxes.starting import start_gate
from ravebot.store import events, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.tools.waiting import LookAgain
from ravebot.web.ci import standing
from ravebot.web.ci.answers import JobAnswer

LONGEST_WAIT_SECONDS = 25
_CLOCKS_DIFFER = timedelta(seconds=5)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ImageNews(Protocol):
    """What is told of images that pipelines built."""

    def announced(
        self, tx: Transaction, mr: MergeRequest, sha: str, pipeline_id: int, job: str, path: str, sha256: str
    ) -> str:
        """A job says which file of which job is the image of that commit; "" for what `.rave.yml` says. Returns why
        that can't be, or an empty text. Told twice, it is as told once."""


@dataclass(frozen=True)
class ImageTold:
    """What a job says of an image, as it was sent."""

    job: str = ""
    path: str = ""
    sha256: str = ""

    def problem(self) -> str:
        """What is wrong with it; empty if nothing is."""
        parts = self.path.split("/")
        if len(self.job) > 255 or not self.job.isprintable():
            return "job is a job's name, of at most 255 characters"
        odd = not {"", ".", ".."}.isdisjoint(parts)
        if self.path and (len(self.path) > 500 or not self.path.isprintable() or odd):
            return "path is the path of a file in the job's artifacts, like image/sandbox.qcow2"
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            return "sha256 is the file's SHA-256 in hexadecimal, as sha256sum prints it"
        return ""


@dataclass(frozen=True)
class JobCaller:
    """Who asks: a token that GitLab signed, and a project that may know its job, as the request says."""

    claims: JobClaims
    hint: int | None = None


@dataclass(frozen=True)
class JobDoor:
    """Raises JobRefused, and what GitLab's client and the store raise. `look_now` polls a project of that id and path.

    `images`: None where this ravebot takes none from pipelines.
    """

    config: Config
    database: Database
    places: JobPlaces
    files: ProjectFiles
    intents: Intents
    views: Views
    look_now: Callable[[int, str], Awaitable[None]]
    images: ImageNews | None = None

    async def look(self, caller: JobCaller, wait_seconds: float, ends: asyncio.Event) -> JobAnswer:
        """How the sandbox stands; waits so long while it is on its way, but no longer once ravebot `ends`."""
        again, answer = LookAgain(wait_seconds), await self._look(caller)
        while answer.status == standing.COMING and not ends.is_set() and await again.wait():
            answer = await self._look(caller)
        return answer

    async def start(self, caller: JobCaller) -> JobAnswer:
        """Start one, where the project has sandboxes start by themselves."""
        place = await self._place(caller, fresh=True)
        if refused := self._unfit(place):
            return refused
        return await self.database.write(partial(self._start, place=place))

    async def stop(self, caller: JobCaller) -> JobAnswer:
        """End the job's own merge request's sandbox.

        GitLab runs `on_stop` jobs of old pipelines, and after the merge. That is safe: who can have such a job run can
        also push, or close the merge request, and what ends can be started again.
        """
        place = await self.places.place(caller.claims, hint=caller.hint, fresh=True)
        await self.places.must_belong(place)
        return await self.database.write(partial(self._stop, place=place))

    async def image(self, caller: JobCaller, told: ImageTold) -> JobAnswer:
        """Say which file is the image of the job's commit."""
        if self.images is None:
            return JobAnswer.error(
                404, "this ravebot takes no images from pipelines: its sandboxes boot the operator's"
            )
        if why := told.problem():
            return JobAnswer.error(400, f"{why}: correct the request")
        place = await self._place(caller, fresh=True)
        if refused := self._unfit(place):
            return refused
        return await self.database.write(partial(self._image, place=place, told=told, images=self.images))

    async def reconcile(self, caller: JobCaller) -> JobAnswer:
        """Compare a project with GitLab now, for a scheduled job on its default branch."""
        job, project_id, path = await self.places.scheduled(caller.claims, caller.hint)
        await self.look_now(project_id, path)
        return JobAnswer.of(200, state="due", project=path, job=str(job.id))

    async def _look(self, caller: JobCaller) -> JobAnswer:
        place = await self._place(caller)
        if refused := self._unfit(place):
            return refused
        return await self.database.read(partial(self._stands, mr=place.mr))

    async def _place(self, caller: JobCaller, *, fresh: bool = False) -> JobPlace:
        """Where the job belongs; what GitLab says of the merge request counts as from a webhook: one may be lost."""
        known = await self.places.place(caller.claims, hint=caller.hint, fresh=fresh)
        stored = await self.database.read(partial(merge_requests.get, ref=known.mr.ref))
        if stored is not None and stored.head_sha != known.mr.head_sha:
            known = await self.places.place(caller.claims, hint=caller.hint, head=stored.head_sha)
        if stored is None or _differs(stored, known.mr):
            await self.files.know(known.mr)
            await self.database.write(lambda tx: self.intents.merge_request_reported(tx, known.mr, RAVEBOT))
        return known

    def _unfit(self, place: JobPlace) -> JobAnswer | None:
        """For a job whose merge request has no use for a sandbox at the job's commit."""
        if place.is_head:
            return standing.closed(place.mr)
        return standing.closed(place.mr) or standing.overtaken(place.mr, place.job.pipeline.sha)

    def _stands(self, tx: Transaction, mr: MergeRequest) -> JobAnswer:
        stored = merge_requests.get(tx, mr.ref) or mr
        if stored.head_sha != mr.head_sha:
            return standing.overtaken(stored, mr.head_sha)
        refused = standing.closed(stored) or standing.unapproved(stored)
        return refused or standing.standing(stored, self.views.latest(tx, mr.ref), self._gate(tx, stored))

    def _gate(self, tx: Transaction, mr: MergeRequest) -> str:
        gate = start_gate(self.config, mr, of_merge_request(tx, self.config, mr))
        return gate.value if gate else ""

    def _start(self, tx: Transaction, place: JobPlace) -> JobAnswer:
        mr = merge_requests.get(tx, place.mr.ref)
        assert mr  # it was reported
        fits = mr.head_sha == place.mr.head_sha and mr.state == "opened" and standing.unapproved(mr) is None
        answer = self._stands(tx, place.mr)
        if not fits or sandboxes.current(tx, mr.ref) or self._gate(tx, mr):
            return answer
        if _had_one(tx, place):
            return standing.had_one(answer)
        outcome = self.intents.start(tx, mr, _actor(place))
        self._record(tx, place, "start")
        return self._stands(tx, place.mr).also(message=outcome.message)

    def _stop(self, tx: Transaction, place: JobPlace) -> JobAnswer:
        mr, ref = merge_requests.get(tx, place.mr.ref), place.mr.full_ref
        had = sandboxes.current(tx, mr.ref) if mr else None
        if mr is None or had is None:
            latest = sandboxes.latest(tx, place.mr.ref)
            state = "stopping" if latest and latest.ended_at is None else "none"
            return JobAnswer.of(200, state=state, message=f"{ref} has no sandbox that runs: there is nothing to stop")
        outcome = self.intents.stop(tx, mr, _actor(place))
        self._record(tx, place, "stop", had)
        return JobAnswer.of(200, state="stopping", message=outcome.message)

    def _image(self, tx: Transaction, place: JobPlace, told: ImageTold, images: ImageNews) -> JobAnswer:
        mr = merge_requests.get(tx, place.mr.ref)
        if mr is None or mr.head_sha != place.mr.head_sha:
            return standing.overtaken(mr or place.mr, place.mr.head_sha)
        pipeline = place.job.pipeline.id
        if why := images.announced(tx, mr, mr.head_sha, pipeline, told.job, told.path, told.sha256):
            return JobAnswer.error(422, why)
        return JobAnswer.of(200, state="noted", message=f"the image of {mr.full_ref} at {mr.head_sha[:8]} is known")

    def _record(self, tx: Transaction, place: JobPlace, did: str, sandbox: Sandbox | None = None) -> None:
        data: dict[str, object] = {"tool": f"ci_{did}", "job": place.job.id, "pipeline": place.job.pipeline.id}
        sandbox_id = sandbox.id if sandbox else None
        events.append(tx, EventKind.API_CALL, _actor(place), mr=place.mr.ref, sandbox_id=sandbox_id, data=data)


def _actor(place: JobPlace) -> Actor:
    """Who ran the job; the event says which job that was."""
    return Actor("gitlab", place.job.user.username)


def _differs(stored: MergeRequest, told: MergeRequest) -> bool:
    """Whether GitLab tells something newer of it."""
    if stored.updated_at and told.updated_at and told.updated_at < stored.updated_at:
        return False
    decisive = (told.head_sha, told.state, told.draft, set(told.labels))
    return (stored.head_sha, stored.state, stored.draft, set(stored.labels)) != decisive


def _had_one(tx: Transaction, place: JobPlace) -> bool:
    """Whether a sandbox was there in the job's time that was not ending already: then the job gets no other, however
    often it asks, and what a person has stopped meanwhile stays so. One that failed at an earlier commit counts for
    nothing: the job's commit may be what mends it."""
    latest, began = sandboxes.latest(tx, place.mr.ref), place.job.started_at
    if latest is None:
        return False
    if latest.sha != place.mr.head_sha and latest.end_reason in (EndReason.FAILED, EndReason.LOST):
        return False
    if began is None or latest.created_at >= began - _CLOCKS_DIFFER:
        return True
    ends = [one.at for one in events.of_sandbox(tx, latest.id) if one.kind is EventKind.SANDBOX_STOPPING]
    return bool(ends) and ends[-1] >= began - _CLOCKS_DIFFER
