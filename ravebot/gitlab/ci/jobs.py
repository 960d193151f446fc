"""What GitLab's API says of jobs and of the merge requests that their pipelines are for.

https://docs.gitlab.com/api/jobs/, https://docs.gitlab.com/api/pipelines/
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import requests

from ravebot.errors import NotFound, Unavailable
from ravebot.gitlab import answers, fields
from ravebot.gitlab.calls import in_thread, mr_address, readable
from ravebot.gitlab.ci.keys import LARGEST_BYTES
from ravebot.gitlab.fields import Json, Malformed
from ravebot.gitlab.transport import Transport
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Person

_MOST_OF_A_BRANCH, _MOST_PIPELINES = 20, 100
_PIECE_BYTES = 16 * 1024


@dataclass(frozen=True)
class JobPipeline:
    """`source`: what made GitLab run it. `sha` of a merged results pipeline is a commit that merges the head."""

    id: int
    project_id: int
    sha: str
    ref: str
    source: str


@dataclass(frozen=True)
class CiJob:
    """A job as GitLab knows it. Its name is untrusted text. `parents`: of the commit that its pipeline runs on."""

    id: int
    name: str
    status: str
    user: Person
    started_at: datetime | None
    of_tag: bool
    pipeline: JobPipeline
    parents: tuple[str, ...]


@dataclass(frozen=True)
class HeadOf:
    """A merge request, and the id of the pipeline that GitLab calls its head pipeline."""

    mr: MergeRequest
    pipeline_id: int | None


class CiJobs:
    """Raises what `GitLab` raises. Its threads are its own, so that jobs hold up nothing else."""

    def __init__(self, transport: Transport, pool: ThreadPoolExecutor, url: str) -> None:
        self._transport, self._pool, self._url = transport, pool, url

    async def keys(self) -> bytes:
        """GitLab's JSON Web Key Set, which everyone can read."""

        def take(response: requests.Response) -> bytes:
            read = bytearray()
            for piece in response.iter_content(_PIECE_BYTES):
                read += piece
                if len(read) > LARGEST_BYTES:
                    raise Malformed("the key set is too large")
            return bytes(read)

        try:
            return await in_thread(
                self._pool, lambda: self._transport.stream(f"{self._url}/oauth/discovery/keys", take)
            )
        except NotFound as error:
            raise Unavailable("GitLab has no page /oauth/discovery/keys: is gitlab.url right?") from error

    async def job(self, project_id: int, job_id: int) -> CiJob:
        address = f"/projects/{project_id:d}/jobs/{job_id:d}"
        return await in_thread(self._pool, lambda: _job(self._transport.get(address), project_id))

    async def head_of(self, ref: MergeRequestRef) -> HeadOf:
        """A merge request as it is now, and its head pipeline."""

        def ask() -> HeadOf:
            body = self._transport.get(mr_address(ref))
            head = body.get("head_pipeline")
            return HeadOf(
                answers.merge_request(body),
                fields.optional_identifier(head, "id") if isinstance(head, dict) else None,
            )

        return await in_thread(self._pool, ask)

    async def of_branch(self, project_id: int, branch: str) -> list[MergeRequest]:
        """The merge requests in a project that come from that branch of its own, the newest first."""

        def ask() -> list[MergeRequest]:
            listed = self._transport.list(
                f"/projects/{project_id:d}/merge_requests",
                source_branch=branch, state="all", scope="all", order_by="created_at", sort="desc",
                per_page=str(_MOST_OF_A_BRANCH),
            )  # fmt: skip
            found = readable(islice(listed, _MOST_OF_A_BRANCH), answers.merge_request)
            return [one for one in found if one.source_branch == branch and one.source_project_id == project_id]

        return await in_thread(self._pool, ask)

    async def has_pipeline(self, ref: MergeRequestRef, pipeline_id: int) -> bool:
        """Whether GitLab lists a pipeline as the merge request's; of very many only the newest are looked at."""

        def ask() -> bool:
            listed = self._transport.list(f"{mr_address(ref)}/pipelines", per_page="")
            return any(one.get("id") == pipeline_id for one in islice(listed, _MOST_PIPELINES))

        return await in_thread(self._pool, ask)

    async def default_branch(self, project_id: int) -> tuple[str, str]:
        """A project's path, and its default branch ("" if it has none)."""

        def ask() -> tuple[str, str]:
            body = self._transport.get(f"/projects/{project_id:d}")
            branch = body.get("default_branch")
            return answers.project(body)[1], branch[:1024] if isinstance(branch, str) else ""

        return await in_thread(self._pool, ask)


def _job(body: Json, project_id: int) -> CiJob:
    user, commit = body.get("user"), body.get("commit")
    pipeline = fields.mapping(body, "pipeline")
    return CiJob(
        id=fields.identifier(body, "id"),
        name=fields.text(body, "name", 255),
        status=fields.text(body, "status", 40),
        user=answers.person(user) if isinstance(user, dict) else Person(0, "somebody"),
        started_at=fields.moment(body, "started_at"),
        of_tag=fields.flag(body, "tag"),
        pipeline=JobPipeline(
            id=fields.identifier(pipeline, "id"),
            project_id=fields.optional_identifier(pipeline, "project_id") or project_id,
            sha=fields.sha(pipeline, "sha"),
            ref=fields.text(pipeline, "ref", 1024),
            source=fields.text(pipeline, "source", 100) if pipeline.get("source") else "",
        ),
        parents=tuple(fields.texts(commit, "parent_ids", 64)) if isinstance(commit, dict) else (),
    )
