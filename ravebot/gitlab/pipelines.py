"""What GitLab's API says of merge requests' pipelines, and the files that their jobs leave.

https://docs.gitlab.com/api/merge_requests/, https://docs.gitlab.com/api/jobs/, https://docs.gitlab.com/api/job_artifacts/
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import requests
import urllib3

from ravebot.errors import Refused, Unavailable
from ravebot.gitlab import fields
from ravebot.gitlab.calls import in_thread, mr_address
from ravebot.gitlab.fields import Json, Malformed
from ravebot.gitlab.transport import Transport
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.sandboxes.pipelineimages import FoundJob, FoundPipeline, PipelineLook
from ravebot.sandboxes.view import in_bytes

_MOST_JOBS = 2_000
_PIECE_BYTES = 1024**2
_PIECES_AHEAD = 16
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class FetchedArtifact:
    """A file that is on our disk now."""

    bytes: int
    sha256: str


class Pipelines:
    """Raises what `GitLab` raises. Its threads are its own, so that a download holds up nothing else, and no look."""

    def __init__(self, transport: Transport, looks: ThreadPoolExecutor, downloads: ThreadPoolExecutor) -> None:
        self._transport = transport
        self._looks = looks
        self.downloads = downloads

    async def look(self, ref: MergeRequestRef, job: str) -> PipelineLook:
        """The merge request's head pipeline, and its newest job of that name; two requests, more for very many jobs."""

        def ask() -> PipelineLook:
            body = self._transport.get(mr_address(ref))
            head = body.get("head_pipeline")
            if not isinstance(head, dict):
                return PipelineLook()
            pipeline = _pipeline(head)
            if pipeline.project_id not in (ref.project_id, fields.optional_identifier(body, "source_project_id")):
                raise Malformed("the head pipeline is of another project")
            listed = self._transport.list(f"/projects/{pipeline.project_id:d}/pipelines/{pipeline.id:d}/jobs")
            found = [_job(one) for one in islice(listed, _MOST_JOBS) if one.get("name") == job]
            return PipelineLook(pipeline, max(found, key=lambda one: one.id, default=None))

        return await in_thread(self._looks, ask)

    async def fetch(
        self, project_id: int, job_id: int, path: str, target: Path, most_bytes: int, guard: WriteGuard
    ) -> FetchedArtifact:
        """Write one file that a job left. Raises NotFound, Refused if it is too large, and what `guard` raises."""
        address = f"/projects/{project_id:d}/jobs/{job_id:d}/artifacts/{quote(path)}"

        def look(to_come: int) -> None:
            if self._transport.stopping.is_set():
                raise Unavailable("ravebot is stopping")
            guard(to_come)

        return await in_thread(
            self.downloads,
            lambda: self._transport.stream(address, lambda response: save(response, target, most_bytes, look)),
        )


WriteGuard = Callable[[int], None]
"""Is told each second how many bytes are still to come, and raises if there is no room, no time or no need."""


def save(response: requests.Response, target: Path, most_bytes: int, guard: WriteGuard) -> FetchedArtifact:
    """Write an answer's body to a file, and hash it meanwhile in another thread; memory stays flat.

    It is not synced: after a crash it is fetched anew.
    """
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Unavailable("something between ravebot and GitLab compresses files: it must leave artifacts as they are")
    length = response.headers.get("Content-Length", "")
    announced = int(length) if length.isdecimal() and len(length) < 20 else 0
    if announced > most_bytes:
        raise _too_large(most_bytes)
    guard(announced)
    with target.open("xb", buffering=0) as file, _Hashing() as hashing:
        try:
            size = _copy(response, file, hashing, announced, most_bytes, guard)
        except urllib3.exceptions.HTTPError as error:
            raise _broke() from error
        written = os.fstat(file.fileno()).st_size
    if announced and size != announced:
        raise _broke()
    if written != size:
        raise Unavailable("the host of the sandboxes wrote only a part of the image: an operator can look at its disk")
    return FetchedArtifact(size, hashing.hexdigest)


def _copy(
    response: requests.Response, file: BinaryIO, hashing: _Hashing, announced: int, most_bytes: int, guard: WriteGuard
) -> int:
    """Each piece is what has come by now: a slow sender gets no longer than the guard allows."""
    size, looked_at = 0, -_LOOK_SECONDS
    while piece := response.raw.read1(_PIECE_BYTES, decode_content=False):
        size += len(piece)
        if size > most_bytes:
            raise _too_large(most_bytes)
        if (now := time.monotonic()) - looked_at >= _LOOK_SECONDS:
            looked_at = now
            guard(max(0, announced - size))
        hashing.take(piece)
        left = memoryview(piece)
        while left:
            left = left[file.write(left) :]
    return size


class _Hashing:
    """SHA-256 in a thread of its own; a few pieces may wait."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pieces: queue.Queue[bytes] = queue.Queue(_PIECES_AHEAD)
        self._thread = threading.Thread(target=self._run, name="pipeline-image-hash")
        self.hexdigest = ""

    def __enter__(self) -> _Hashing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.put(b"")
        self._thread.join()
        self.hexdigest = self._digest.hexdigest()

    def take(self, piece: bytes) -> None:
        self._pieces.put(piece)

    def _run(self) -> None:
        while piece := self._pieces.get():
            self._digest.update(piece)


def _broke() -> Unavailable:
    return Unavailable("the connection to GitLab broke while the image was downloaded")


def _too_large(most_bytes: int) -> Refused:
    return Refused(
        f"it is larger than {in_bytes(most_bytes)}: make it smaller, or have an operator raise "
        "provider.pipeline_images.largest"
    )


def _pipeline(body: Json) -> FoundPipeline:
    return FoundPipeline(
        id=fields.identifier(body, "id"),
        project_id=fields.identifier(body, "project_id"),
        sha=fields.sha(body, "sha"),
        ref=fields.text(body, "ref", 1024),
        status=fields.text(body, "status", 40),
        url=fields.web_url(body, "web_url"),
    )


def _job(body: Json) -> FoundJob:
    commit = body.get("commit")
    return FoundJob(
        id=fields.identifier(body, "id"),
        name=fields.text(body, "name", 255),
        status=fields.text(body, "status", 40),
        url=fields.web_url(body, "web_url"),
        parents=tuple(fields.texts(commit, "parent_ids", 64)) if isinstance(commit, dict) else (),
    )
