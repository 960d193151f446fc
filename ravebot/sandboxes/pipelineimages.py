"""The image that a job of a merge request's pipeline builds: how far it is, and what follows. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from ravebot.backoff import Backoff
from ravebot.clock import Wait
from ravebot.sandboxes.model import MergeRequestRef

LOOK_EVERY = timedelta(seconds=20)
_SECOND_LOOK_AFTER = timedelta(seconds=10)
_PIPELINES_COME_WITHIN = timedelta(minutes=2)
_TRIES_AT_THE_END = 3
_SHORT_REST = timedelta(minutes=1)
_PAUSES = Backoff.growing(5.0, 60.0)
_LONGEST_WORDS = 400
_MOST_BEGUN = 5
_UNFINISHED_BEGINNINGS = frozenset({"created", "preparing", "waiting_for_resource", "waiting_for_callback"})
"""Of a pipeline that may not have all of its jobs yet."""
_ENDED_BADLY = frozenset({"failed", "canceled", "canceling", "skipped"})
_WAITS, _IS_MADE = "it waits for the image of its pipeline", "its image is"
NOT_ASKED_YET = f"{_WAITS}: GitLab is asked"
_UNDER_WAY = {
    "manual": "a person has to start it",
    "scheduled": "it is scheduled for later",
    "running": "it runs",
    "pending": "no runner has taken it yet",
}


class ImageState(StrEnum):
    """How far the image of a commit is."""

    WAITING = "waiting"
    FETCHING = "fetching"
    CONVERTING = "converting"
    READY = "ready"
    FAILED = "failed"


_MAKING = frozenset({ImageState.FETCHING, ImageState.CONVERTING})


@dataclass(frozen=True)
class PipelineImage:
    """One row: the image that sandboxes of a merge request's commit boot. `words` may repeat a job's name."""

    ref: MergeRequestRef
    sha: str
    state: ImageState
    since: datetime
    changed_at: datetime
    words: str = ""
    announced_job: str = ""
    announced_path: str = ""
    announced_sha256: str = ""
    pipeline_id: int | None = None
    job_project_id: int | None = None
    job_id: int | None = None
    job_name: str = ""
    job_url: str = ""
    path: str = ""
    digest: str = ""
    image: str = ""
    virtual_bytes: int = 0
    tries: int = 0
    begun: int = 0
    looked_at: datetime | None = None
    next_look_at: datetime | None = None

    @property
    def key(self) -> ImageKey:
        return ImageKey(self.ref, self.sha)

    @property
    def told(self) -> tuple[str, str, str]:
        """What was announced: the job, the path and the SHA-256, as far as they were."""
        return self.announced_job, self.announced_path, self.announced_sha256

    def goes_on_from(self, earlier: PipelineImage) -> bool:
        """Whether what was begun with the row as it was then still counts."""
        same = (self.state, self.job_project_id, self.job_id, self.path, self.told)
        return same == (earlier.state, earlier.job_project_id, earlier.job_id, earlier.path, earlier.told)

    @property
    def waits_for(self) -> str:
        """Why its sandbox is not started yet. What follows the colon changes often."""
        match self.state:
            case ImageState.FETCHING:
                return f"{_IS_MADE} downloaded: from the job {self.job_name}"
            case ImageState.CONVERTING:
                return f"{_IS_MADE} checked and converted: from the job {self.job_name}"
            case _:
                return f"{_WAITS}: {self.words}" if self.words else NOT_ASKED_YET


@dataclass(frozen=True, order=True)
class ImageKey:
    """What an image is for."""

    ref: MergeRequestRef
    sha: str


@dataclass(frozen=True)
class ImageFile:
    """One file that is kept. `project_id`: whose pipeline built it; `digest`: SHA-256 of what the job left."""

    project_id: int
    digest: str
    image: str
    bytes: int
    virtual_bytes: int
    made_at: datetime
    used_at: datetime


@dataclass(frozen=True)
class ImageWish:
    """What `.rave.yml` says, cut down to what the operator allows."""

    job: str
    path: str
    may_fall_back: bool
    wait: timedelta


@dataclass(frozen=True)
class FoundPipeline:
    """The head pipeline of a merge request, as GitLab tells of it."""

    id: int
    project_id: int
    sha: str
    ref: str
    status: str
    url: str


@dataclass(frozen=True)
class FoundJob:
    """A job of it. Its name is untrusted text. `parents`: of the commit that its pipeline runs on."""

    id: int
    name: str
    status: str
    url: str
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class PipelineLook:
    """What a look at GitLab showed."""

    pipeline: FoundPipeline | None = None
    job: FoundJob | None = None


def waits_for_image(reason: str) -> bool:
    """Whether that is why a sandbox waits."""
    return reason.startswith((_WAITS, _IS_MADE))


def wanted(ref: MergeRequestRef, sha: str, now: datetime) -> PipelineImage:
    """A row for an image that is needed for the first time."""
    return PipelineImage(ref, sha, ImageState.WAITING, since=now, changed_at=now)


def anew(known: PipelineImage, now: datetime) -> PipelineImage:
    """The same, after a failure: what was announced stays."""
    return replace(
        wanted(known.ref, known.sha, now),
        announced_job=known.announced_job,
        announced_path=known.announced_path,
        announced_sha256=known.announced_sha256,
    )


def _to(known: PipelineImage, state: ImageState, now: datetime, words: str = "") -> PipelineImage:
    changed = known.changed_at if known.state is state else now
    words, (begun, tries) = words[:_LONGEST_WORDS], (known.begun, known.tries) if state in _MAKING else (0, 0)
    return replace(known, state=state, changed_at=changed, words=words, tries=tries, begun=begun, next_look_at=None)


def failed(known: PipelineImage, why: str, now: datetime) -> PipelineImage:
    return _to(known, ImageState.FAILED, now, why)


def failed_twice(known: PipelineImage, why: str, now: datetime) -> PipelineImage:
    """A look showed no image. It counts once the next look shows the same: GitLab runs a job again a moment after it
    failed, another pipeline follows one that was canceled, and a replica of its database may lag behind."""
    if known.state is ImageState.WAITING and known.words == why[:_LONGEST_WORDS]:
        return failed(known, why, now)
    waiting = _to(known, ImageState.WAITING, now, why)
    return replace(waiting, looked_at=now, next_look_at=now + _SECOND_LOOK_AFTER)


def fetching(known: PipelineImage, now: datetime) -> PipelineImage:
    return _to(known, ImageState.FETCHING, now)


def begun(known: PipelineImage, now: datetime) -> PipelineImage:
    """It is about to be made. One with which ravebot ends each time is given up."""
    if known.begun >= _MOST_BEGUN:
        return failed(
            known,
            f"ravebot ended {_MOST_BEGUN} times while it made the image that the job {known.job_name} left: an "
            "operator can look why, in ravebot's log; then `/sandbox retry`",
            now,
        )
    return replace(fetching(known, now), begun=known.begun + 1)


def interrupted(known: PipelineImage) -> PipelineImage:
    """Its making was ended in order, as when ravebot is stopped: that is no sign that the image ends ravebot."""
    return replace(known, begun=max(0, known.begun - 1))


def asked_for(known: PipelineImage, since: datetime, now: datetime) -> PipelineImage:
    """As a sandbox that was asked for at `since` needs it: its time begins then, and nothing of an earlier one's counts
    but what is ready. A row from a time that has not come yet is an earlier one's: the clock was set back."""
    since = min(since, now)
    failed_before = known.state is ImageState.FAILED and not since <= known.changed_at <= now
    if failed_before or (known.state in _MAKING and known.since < since):
        known = anew(known, now)
    if known.state is ImageState.READY or since <= known.since <= now:
        return known
    return replace(known, since=since, begun=0)


def is_due(known: PipelineImage, now: datetime) -> bool:
    """Whether its pause is over."""
    if known.next_look_at is None or known.looked_at is None:
        return True
    return Wait(known.looked_at, known.next_look_at).is_over(now)


def converting(known: PipelineImage, digest: str, now: datetime) -> PipelineImage:
    return replace(_to(known, ImageState.CONVERTING, now), digest=digest)


def ready(known: PipelineImage, file: ImageFile, now: datetime) -> PipelineImage:
    made = _to(known, ImageState.READY, now)
    return replace(made, digest=file.digest, image=file.image, virtual_bytes=file.virtual_bytes)


def again(known: PipelineImage, why: str, now: datetime, pause_seconds: float | None = None) -> PipelineImage:
    """It is tried again after a while: GitLab, or a part of the host, has no answer now."""
    tries = known.tries + 1
    pause = timedelta(seconds=_PAUSES.after(tries, pause_seconds))
    waiting = replace(known, state=ImageState.WAITING, words=why[:_LONGEST_WORDS])
    return replace(waiting, tries=tries, begun=0, looked_at=now, next_look_at=now + pause)


def is_late(known: PipelineImage, wish: ImageWish, now: datetime) -> bool:
    """Whether its time is over, and GitLab was asked at the end of it, or wants to be left alone for longer. A trouble
    must have come three times in a row. What is there already may be fetched, and waiting for ravebot itself is no
    lateness."""
    over = known.state is ImageState.WAITING and now - known.since >= wish.wait
    if not over or known.looked_at is None:
        return False
    rest = known.next_look_at - now if known.next_look_at is not None else timedelta(0)
    if 0 < known.tries < _TRIES_AT_THE_END:
        return rest > _SHORT_REST
    rests = rest > timedelta(0)
    return rests or known.looked_at - known.since >= wish.wait


def too_late(known: PipelineImage, wish: ImageWish, now: datetime) -> PipelineImage:
    minutes = wish.wait.total_seconds() / 60
    return failed(known, f"there was no image after {minutes:g} minutes: {known.words or 'GitLab was not asked'}", now)


def is_of(look: PipelineLook, ref: MergeRequestRef, sha: str) -> bool:
    """Whether the pipeline is of that commit: it runs on it, or on one that merges exactly it into the target."""
    pipeline, job = look.pipeline, look.job
    if pipeline is None:
        return False
    if pipeline.sha == sha:
        return True
    merges = pipeline.ref in (f"refs/merge-requests/{ref.iid}/merge", f"refs/merge-requests/{ref.iid}/train")
    return merges and job is not None and job.parents[1:] == (sha,)  # the first parent is the target's


def after_look(known: PipelineImage, wish: ImageWish, look: PipelineLook, now: datetime) -> PipelineImage:
    """What a look makes of one that waits."""
    name, path = known.announced_job or wish.job, known.announced_path or wish.path
    pipeline, job = look.pipeline, look.job
    known = replace(known, looked_at=now)
    if pipeline is None or (job is not None and not is_of(look, known.ref, known.sha)):
        return _later(known, wish, f"no pipeline of {known.sha[:8]} has begun yet", now)
    known = replace(known, pipeline_id=pipeline.id, job_project_id=pipeline.project_id, path=path)
    if job is None:
        if pipeline.status in _UNFINISHED_BEGINNINGS or not is_of(look, known.ref, known.sha):
            return _later(known, wish, f"its pipeline has no job {name} yet", now)
        if not pipeline.ref.startswith("refs/merge-requests/") and now - known.since < _PIPELINES_COME_WITHIN:
            return _later(known, wish, f"its branch's pipeline has no job {name}; another may follow", now)
        known = replace(known, job_id=None, job_name=name, job_url=pipeline.url)
        return failed_twice(known, f"the pipeline has no job {name}: image_job in .rave.yml names it", now)
    tries = known.tries if job.id == known.job_id else 0  # what troubled it may be what that job left
    seen = known.words if job.id == known.job_id else ""
    known = replace(known, job_id=job.id, job_name=job.name, job_url=job.url, tries=tries)
    if job.status == "success":
        return fetching(known, now)
    if job.status in _ENDED_BADLY:
        why = f"the job {job.name}, which builds the image, ended as {job.status}"
        return failed_twice(replace(known, words=seen), why, now)
    how = _UNDER_WAY.get(job.status, f"it is {job.status}")
    return _later(known, wish, f"the job {job.name} is not done, {how}", now)


def _later(known: PipelineImage, wish: ImageWish, words: str, now: datetime) -> PipelineImage:
    """GitLab is asked again after a while, and at the end of the time."""
    end, usual = known.since + wish.wait, now + LOOK_EVERY
    return replace(_to(known, ImageState.WAITING, now, words), next_look_at=min(usual, end) if end > now else usual)
