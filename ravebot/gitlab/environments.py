"""The calls of GitLab's API for environments, deployments and commit statuses.

https://docs.gitlab.com/api/environments/, https://docs.gitlab.com/api/deployments/ and
https://docs.gitlab.com/api/commits/#set-commit-pipeline-status
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from ravebot.errors import NotFound, Unacceptable
from ravebot.gitlab import fields
from ravebot.gitlab.calls import in_thread, readable
from ravebot.gitlab.fields import Json
from ravebot.gitlab.transport import Transport

_MOST_LISTED = 500
_MOST_SEARCHED = 100
_TAKEN = "already been taken"
_NO_TRANSITION = "annot transition"
"""How GitLab refuses to set the state that something has already."""


class NameTaken(Unacceptable):
    """The project has an environment of that name."""


@dataclass(frozen=True)
class FoundEnvironment:
    """An environment as the API tells of it."""

    id: int
    name: str
    state: str
    external_url: str
    created_at: datetime | None


@dataclass(frozen=True)
class FoundDeployment:
    """A deployment as the API tells of it. `of_a_job`: a job of a pipeline made it, and no request of ours."""

    id: int
    status: str
    created_at: datetime | None
    of_a_job: bool


class Environments:
    """Raises what `GitLab` raises. Requests that are repeated change nothing, but for the three that create."""

    def __init__(self, transport: Transport, pool: ThreadPoolExecutor) -> None:
        self._transport = transport
        self._pool = pool

    async def find(self, project_id: int, name: str) -> FoundEnvironment | None:
        """The environment of exactly that name."""

        def search() -> FoundEnvironment | None:
            listed = readable(self._transport.list(_environments(project_id), name=name), _environment)
            return next((one for one in listed if one.name == name), None)

        return await in_thread(self._pool, search)

    async def get(self, project_id: int, environment_id: int) -> FoundEnvironment:
        address = f"{_environments(project_id)}/{environment_id:d}"
        return await in_thread(self._pool, lambda: _environment(self._transport.get(address)))

    async def available(self, project_id: int, prefix: str) -> frozenset[int]:
        """The ids of the available environments whose names begin so; of very many, some are left out."""

        def gather() -> frozenset[int]:
            listed = self._transport.list(_environments(project_id), states="available", search=prefix)
            found = islice(readable(listed, _environment), _MOST_LISTED)
            return frozenset(one.id for one in found if one.state == "available")

        return await in_thread(self._pool, gather)

    async def create(self, project_id: int, name: str, external_url: str) -> FoundEnvironment:
        """Raises NameTaken if there is one of that name."""
        body = {"name": name, "tier": "development"} | ({"external_url": external_url} if external_url else {})

        def ask() -> FoundEnvironment:
            try:
                return _environment(self._transport.post(_environments(project_id), body))
            except Unacceptable as error:
                if _TAKEN in str(error):
                    raise NameTaken(str(error)) from error
                raise

        return await in_thread(self._pool, ask)

    async def set_url(self, project_id: int, environment_id: int, external_url: str) -> None:
        address = f"{_environments(project_id)}/{environment_id:d}"
        await in_thread(self._pool, lambda: self._transport.put(address, {"external_url": external_url}))

    async def stop(self, project_id: int, environment_id: int) -> str:
        """Stop it without its jobs; returns its state, which stays as it was if we may not stop it."""
        address = f"{_environments(project_id)}/{environment_id:d}/stop"
        stopped = await in_thread(self._pool, lambda: self._transport.post(address, {"force": True}))
        return fields.text(stopped, "state", 20)

    async def delete(self, project_id: int, environment_id: int) -> None:
        """Delete a stopped one, and its deployments; it may be gone already."""

        def take() -> None:
            with suppress(NotFound):
                self._transport.delete(f"{_environments(project_id)}/{environment_id:d}")

        await in_thread(self._pool, take)

    async def deploy(self, project_id: int, name: str, sha: str, ref: str, status: str) -> tuple[int, int]:
        """Create a deployment to the environment of that name; returns its id and the environment's.

        GitLab makes the environment again if it is gone.
        """
        body = {"environment": name, "sha": sha, "ref": ref, "tag": False, "status": status}

        def ask() -> tuple[int, int]:
            made = self._transport.post(f"/projects/{project_id:d}/deployments", body)
            return fields.identifier(made, "id"), fields.identifier(fields.mapping(made, "environment"), "id")

        return await in_thread(self._pool, ask)

    async def set_deployment(self, project_id: int, deployment_id: int, status: str) -> None:
        """Set a deployment's status; it may have it already."""
        address = f"/projects/{project_id:d}/deployments/{deployment_id:d}"

        def ask() -> None:
            try:
                self._transport.put(address, {"status": status})
            except Unacceptable as error:
                if _NO_TRANSITION not in str(error):
                    raise

        await in_thread(self._pool, ask)

    async def deployments(self, project_id: int, name: str, sha: str) -> tuple[FoundDeployment, ...]:
        """The newest deployments of a commit to the environment of that name, the newest first."""

        def search() -> tuple[FoundDeployment, ...]:
            address = f"/projects/{project_id:d}/deployments"
            listed = self._transport.list(address, environment=name, order_by="id", sort="desc")
            return tuple(_deployment(one) for one in islice(listed, _MOST_SEARCHED) if one.get("sha") == sha)

        return await in_thread(self._pool, search)

    async def is_deployed(self, project_id: int, name: str) -> bool:
        """Whether anything was ever deployed to the environment of that name."""

        def look() -> bool:
            return any(True for _ in self._transport.list(f"/projects/{project_id:d}/deployments", environment=name))

        return await in_thread(self._pool, look)

    async def set_status(
        self, project_id: int, sha: str, name: str, ref: str, state: str, description: str, url: str,
        pipeline_id: int | None,
    ) -> int | None:  # fmt: skip
        """Set the status of that name of a commit, which may have it already; returns the id of its pipeline, if GitLab
        tells it (since 15.4)."""
        address = f"/projects/{project_id:d}/statuses/{sha}"
        body: dict[str, object] = {
            "state": state, "name": name, "ref": ref, "description": description, "target_url": url,
        }  # fmt: skip
        if pipeline_id is not None:
            body["pipeline_id"] = pipeline_id

        def ask() -> int | None:
            try:
                return fields.optional_identifier(self._transport.post(address, body), "pipeline_id")
            except Unacceptable as error:
                if _NO_TRANSITION not in str(error):
                    raise
                return pipeline_id

        return await in_thread(self._pool, ask)

    async def find_status(self, project_id: int, sha: str, name: str) -> tuple[str, int | None] | None:
        """State and pipeline of a commit's newest status of that name."""

        def search() -> tuple[str, int | None] | None:
            address = f"/projects/{project_id:d}/repository/commits/{sha}/statuses"
            listed = islice(self._transport.list(address, name=name), _MOST_SEARCHED)
            found = [one for one in listed if one.get("name") == name]
            newest = max(found, key=lambda one: fields.identifier(one, "id"), default=None)
            if newest is None:
                return None
            return fields.text(newest, "status", 20), fields.optional_identifier(newest, "pipeline_id")

        return await in_thread(self._pool, search)


def _environments(project_id: int) -> str:
    return f"/projects/{project_id:d}/environments"


def _environment(body: Json) -> FoundEnvironment:
    url = body.get("external_url")
    return FoundEnvironment(
        fields.identifier(body, "id"),
        fields.text(body, "name", 255),
        fields.text(body, "state", 20) if "state" in body else "",
        url[:1024] if isinstance(url, str) else "",
        fields.moment(body, "created_at"),
    )


def _deployment(body: Json) -> FoundDeployment:
    return FoundDeployment(
        fields.identifier(body, "id"),
        fields.text(body, "status", 20),
        fields.moment(body, "created_at"),
        body.get("deployable") is not None,
    )
