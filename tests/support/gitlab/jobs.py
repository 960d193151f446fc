"""Pipelines, jobs and their artifacts over the API, with the checks of GitLab's own code.

https://docs.gitlab.com/api/jobs/, https://docs.gitlab.com/api/pipelines/, https://docs.gitlab.com/api/job_artifacts/
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from tests.support.gitlab import entities
from tests.support.gitlab.actions import Actions
from tests.support.gitlab.faults import Faults
from tests.support.gitlab.paging import page
from tests.support.gitlab.pipelines import Job, Pipeline
from tests.support.gitlab.refusal import Refusal
from tests.support.gitlab.state import Project

_SCOPES = frozenset(
    {
        "created", "waiting_for_resource", "preparing", "waiting_for_callback", "pending", "running", "success",
        "failed", "canceling", "canceled", "skipped", "manual", "scheduled",
    }
)  # fmt: skip
_CHUNK_BYTES = 256 * 1024


class JobEndpoints:
    """Handlers over the state; `project` gives the request's project, or refuses who may not read its code."""

    def __init__(self, actions: Actions, faults: Faults, project: Callable[[web.Request], Project]) -> None:
        self._actions, self._state, self._faults, self._project = actions, actions.state, faults, project

    def routes(self, base: str) -> list[web.RouteDef]:
        job, pipeline = base + "/jobs/{job:[0-9]+}", base + "/pipelines/{pipeline:[0-9]+}"
        return [
            web.get(job, self._one_job),
            web.get(job + "/artifacts/{path:.+}", self._artifact),
            web.get(pipeline, self._one_pipeline),
            web.get(pipeline + "/jobs", self._jobs),
            web.get(base + "/merge_requests/{iid:[0-9]+}/pipelines", self._of_merge_request),
        ]

    def _job(self, request: web.Request) -> Job:
        """`find_build!`: of the project that was asked for, or none."""
        number = int(request.match_info["job"])
        jobs = (job for pipeline in self._project(request).pipelines for job in pipeline.jobs)
        found = next((job for job in jobs if job.id == number), None)
        if found is None:
            raise Refusal(404, "404 Not found")
        return found

    def _pipeline(self, request: web.Request) -> Pipeline:
        number = int(request.match_info["pipeline"])
        found = next((one for one in self._project(request).pipelines if one.id == number), None)
        if found is None:
            raise Refusal(404, "404 Not found")
        return found

    async def _one_job(self, request: web.Request) -> web.Response:
        with self._state.lock:
            return web.json_response(entities.job(self._actions.url, self._job(request), self._state.now()))

    async def _one_pipeline(self, request: web.Request) -> web.Response:
        with self._state.lock:
            return web.json_response(entities.pipeline(self._actions.url, self._pipeline(request)))

    async def _jobs(self, request: web.Request) -> web.Response:
        """Newest first; those that were retried only when asked for."""
        scopes = set(request.query.getall("scope[]", [])) | set(request.query.getall("scope", []))
        if scopes - _SCOPES:
            raise Refusal(400, "scope does not have a valid value", "error")
        retried = request.query.get("include_retried") == "true"
        with self._state.lock:
            shown = [
                entities.job(self._actions.url, job, self._state.now())
                for job in reversed(self._pipeline(request).jobs)
                if (retried or not job.retried) and (not scopes or job.status in scopes)
            ]
            return page(request, self._actions.url, shown)

    async def _of_merge_request(self, request: web.Request) -> web.Response:
        """Those of the merge request and of its branch, wherever they ran, the newest first."""
        with self._state.lock:
            project = self._project(request)
            mr = self._state.merge_request(project, int(request.match_info["iid"]))
            if mr is None:
                raise Refusal(404, "404 Not found")
            found = [
                one
                for where in self._state.projects.values()
                for one in where.pipelines
                if one.mr is mr or (where is mr.source_project and one.mr is None and one.ref == mr.branch)
            ]
            found.sort(key=lambda one: one.id, reverse=True)
            return page(request, self._actions.url, [entities.basic_pipeline(self._actions.url, one) for one in found])

    async def _artifact(self, request: web.Request) -> web.StreamResponse:
        """One file out of the archive (lib/api/ci/job_artifacts.rb)."""
        path = request.match_info["path"]
        with self._state.lock:
            job = self._job(request)
            if not job.has_artifacts(self._state.now()):
                raise Refusal(404, "404 Not found")
            content = job.artifacts.get(path)
        if path.startswith("/") or ".." in path.split("/"):
            raise Refusal(400, "400 Bad request")
        if content is None:
            raise Refusal(404, "404 Not found")
        return await _streamed(request, content, cut=self._faults.truncate_archives)


async def _streamed(request: web.Request, content: bytes | Path, *, cut: bool) -> web.StreamResponse:
    """Workhorse unpacks the file while it sends it, so that there is a length but no range.

    `cut`: the connection breaks in the middle.
    """
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Disposition": f'attachment; filename="{request.match_info["path"].rpartition("/")[2]}"',
        }
    )
    await response.prepare(request)
    left = size // 2 if cut else size
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            await response.write(chunk)
    if cut and request.transport is not None:
        request.transport.abort()
    else:
        await response.write_eof()
    return response
