"""What is needed from the code host to commit a diff; GitLab's adapter fulfils it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ravebot.agents.diff.model import BranchCommit, BranchHead, Committed
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef


class Repository(Protocol):
    """The repository of a project. Raises `Unavailable` for now; `NotFound`, `Forbidden` or `Refused` for good."""

    async def archive(self, project_id: int, sha: str, target: Path, max_bytes: int) -> int:
        """Write the gzipped tar of a commit to `target`; returns its size."""

    async def merge_request(self, ref: MergeRequestRef) -> MergeRequest:
        """A merge request as it is now."""

    async def branch(self, project_id: int, name: str) -> BranchHead | None:
        """A branch; None if there is none of that name."""

    async def branch_commits(self, project_id: int, name: str, until_sha: str) -> list[BranchCommit] | None:
        """The branch's commits after that one, the newest first, of a limited number; None if the branch is gone."""

    async def merge_request_commits(self, ref: MergeRequestRef) -> list[BranchCommit]:
        """The merge request's commits, the newest first, of a limited number; also when its branch is gone."""

    async def last_commits(self, project_id: int, sha: str, paths: Sequence[str]) -> Mapping[str, str]:
        """The last commit of each file, seen from that commit; a file that is not there has none."""

    async def commit(
        self, project_id: int, branch: str, message: str, actions: Sequence[Mapping[str, object]]
    ) -> Committed:
        """Make one commit on a branch. Raises `Overtaken` if the files are not those that the actions expect, and
        `Unavailable` also when it may have been made."""
