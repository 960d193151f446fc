"""Reads `.rave.yml` once for each commit, before the step that needs what it says."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Protocol

from ravebot.clock import is_due
from ravebot.config.repository import FILE_NAME, MAX_FILE_BYTES, ProjectFileError, read_project_file
from ravebot.errors import FileNotFound, Forbidden, NotFound
from ravebot.sandboxes.model import MergeRequest
from ravebot.sandboxes.settings import file_at
from ravebot.store import merge_requests, project_files
from ravebot.store.database import Database, Transaction
from ravebot.store.project_files import BRANCH, FileProblem, ProjectFileRow

_BRANCH_FOR = timedelta(minutes=5)
"""How long what a branch had is taken for what it has: commits do not change, branches do."""
_REFUSED_FOR = timedelta(minutes=15)
"""How soon a file that GitLab refused is asked for again, while its merge request is not older than `_ASKED_FOR`."""
_ASKED_FOR = timedelta(days=1)
_LONGEST_PROBLEM = 300
_PARSER = ThreadPoolExecutor(1, thread_name_prefix="project-file")
"""One at a time: parsing one takes up to a second of a processor, whoever wrote it."""


class FileHost(Protocol):
    """What is asked of GitLab. Raises `Unavailable` for now, `FileNotFound` for good, and `NotFound` or `Forbidden`
    until somebody does something."""

    async def file(self, project_id: int, path: str, ref: str, max_bytes: int) -> bytes:
        """The file's content; of a longer one, so much and one byte more."""


@dataclass(frozen=True)
class ProjectFiles:
    """Keeps what the files say."""

    database: Database
    host: FileHost

    async def know(self, told: MergeRequest, *, approves: bool = False) -> None:
        """Have what is said for a merge request as it is now, if it changed; what was read before is not asked again.

        `approves`: what follows may let a fork's head in, so its own file is needed too. Raises `Unavailable`.
        """
        if not told.head_sha or told.state in ("closed", "merged"):
            return
        for at in await self.database.read(lambda tx: self._missing(tx, told, approves)):
            row = await self._read(told.ref.project_id, at)
            await self.database.write(partial(project_files.put, project_id=told.ref.project_id, at=at, file=row))

    def _missing(self, tx: Transaction, told: MergeRequest, approves: bool) -> list[str]:
        known = merge_requests.get(tx, told.ref)
        same = known is not None and not approves and _decisive(known) == _decisive(told)
        if same and not self._is_refused(tx, told):
            return []  # as most that are polled: nothing follows
        at = [file_at(told)]
        if told.from_fork and (approves or (known is not None and known.approved_sha == told.head_sha)):
            at = [told.head_sha]
        return [one for one in at if one != BRANCH and not self._has(tx, told.ref.project_id, one, approves)]

    def _has(self, tx: Transaction, project_id: int, at: str, asked_for: bool) -> bool:
        row = project_files.get(tx, project_id, at)
        if row is None or row.read_at is None:
            return False
        if _was_refused(row) and (asked_for or is_due(row.read_at, _REFUSED_FOR, tx.now)):  # perhaps it can be read now
            return False
        return not at.startswith(BRANCH) or not is_due(row.read_at, _BRANCH_FOR, tx.now)

    def _is_refused(self, tx: Transaction, told: MergeRequest) -> bool:
        """Whether its file could not be read when it was new; of an old one, that stays so until somebody asks."""
        row = project_files.get(tx, told.ref.project_id, told.head_sha)
        lately = told.updated_at is None or tx.now - told.updated_at < _ASKED_FOR
        return row is not None and _was_refused(row) and lately

    async def _read(self, project_id: int, at: str) -> ProjectFileRow:
        try:
            raw = await self.host.file(project_id, FILE_NAME, at, MAX_FILE_BYTES)
        except FileNotFound:
            return ProjectFileRow()
        except NotFound as error:
            if at.startswith(BRANCH):  # it is asked for again anyway
                return ProjectFileRow()
            why = f"GitLab does not find the commit, ravebot asks again: {error}"
            return ProjectFileRow(problems=(FileProblem(0, 0, why[:_LONGEST_PROBLEM]),))
        except Forbidden as error:
            return ProjectFileRow(problems=(FileProblem(0, 0, f"ravebot may not read it: {error}"[:_LONGEST_PROBLEM]),))
        return await asyncio.get_running_loop().run_in_executor(_PARSER, _parsed, raw)


def _was_refused(row: ProjectFileRow) -> bool:
    """Whether it could not be read; what is wrong in a file has a line, at least the first of it."""
    return bool(row.problems) and not row.problems[0].line


def _decisive(mr: MergeRequest) -> tuple[object, ...]:
    """What may have a sandbox start or take new code."""
    return mr.state, mr.head_sha, mr.draft, mr.labels, mr.target_branch


def _parsed(raw: bytes) -> ProjectFileRow:
    try:
        file = read_project_file(raw)
    except ProjectFileError as error:
        found = [FileProblem(one.line, one.column, str(one)[:_LONGEST_PROBLEM]) for one in error.problems]
        return ProjectFileRow(problems=tuple(found))
    return ProjectFileRow(content=file.model_dump_json(exclude_unset=True))
