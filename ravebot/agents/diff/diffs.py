"""Reads what differs in a sandbox, keeps it for an approval, and commits what was approved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path

from ravebot.agents.diff import committing
from ravebot.agents.diff.comparing import Comparison, comparison
from ravebot.agents.diff.edges import Repository
from ravebot.agents.diff.guestfiles import GuestFiles
from ravebot.agents.diff.keeping import KeptDiffs
from ravebot.agents.diff.model import BranchCommit, CommitOrder, Committed, Diff, Overtaken
from ravebot.errors import (
    Forbidden,
    GuestError,
    GuestTimeout,
    NotFound,
    ProviderError,
    Refused,
    Unacceptable,
    Unavailable,
)
from ravebot.providers.base import Provider
from ravebot.sandboxes.model import Machine, MachineId, MergeRequest, Sandbox, SandboxId, SandboxState, Stage
from ravebot.sandboxes.view import in_words
from ravebot.store import sandboxes
from ravebot.store.database import Database
from ravebot.store.owner import give

_AT_ONCE = 4


@dataclass
class Diffs:
    """What leaves sandboxes. `max_archive_bytes`: the largest archive that is downloaded to compare with. `limit`: how
    long a guest may take to be read; whoever asked waits for it."""

    database: Database
    provider: Provider
    repository: Repository
    user: str
    state_dir: Path
    max_archive_bytes: int
    limit: timedelta = timedelta(seconds=100)
    _numbers: count[int] = field(default_factory=count)
    _reading: set[MachineId] = field(default_factory=set)
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    @property
    def kept(self) -> KeptDiffs:
        return KeptDiffs(self.state_dir / "diffs")

    def clear(self) -> None:
        """Delete what an earlier process had not finished; blocking."""
        if self._scratch.is_dir():
            for path in self._scratch.iterdir():
                path.unlink()

    async def read(self, sandbox: Sandbox, machine: Machine, mr: MergeRequest) -> Diff:
        """What differs in the sandbox now from the commit that was copied in.

        Raises Refused if its code is being replaced or it is being read already, GuestError, and Unavailable.
        """
        base_sha = _settled(sandbox)
        if machine.id in self._reading:
            raise Refused("The sandbox is being compared already: wait a moment, then ask again.")
        self._reading.add(machine.id)
        try:
            async with self._turns, self._archive(mr, base_sha) as archive, comparison(archive, base_sha) as compared:
                diff = await self._compare(compared, machine)
        finally:
            self._reading.discard(machine.id)
        now = await self.database.read(lambda tx: sandboxes.get(tx, sandbox.id))
        if now is None or _copies(now) != _copies(sandbox):
            raise Refused("The sandbox's code was replaced while it was compared: ask again when that is done.")
        return diff

    async def _compare(self, compared: Comparison, machine: Machine) -> Diff:
        files = GuestFiles.of(self.provider, machine.name, self.user, self._scratch)
        try:
            async with asyncio.timeout(self.limit.total_seconds()):
                hashes = await files.hashes(await compared.listed(await files.list()))
                return await compared.read(await files.contents(await compared.hashed(hashes)))
        except TimeoutError as error:
            raise GuestTimeout(
                f"the sandbox was not compared within {in_words(self.limit)}: ask again when less is running there"
            ) from error
        finally:
            with suppress(GuestError, ProviderError, Unavailable):
                await files.done()

    async def keep(self, diff: Diff) -> str:
        """Store a diff until `forget`, for an approval of its hash."""
        return await asyncio.to_thread(self.kept.keep, diff)

    async def forget(self, diff_hash: str) -> None:
        """Drop a kept diff: its approval came to its end, and no other open one names it."""
        await asyncio.to_thread(self.kept.forget, diff_hash)

    async def keep_only(self, hashes: Collection[str]) -> None:
        """Drop the kept diffs that no approval names any more."""
        await asyncio.to_thread(self.kept.keep_only, hashes)

    async def commit(self, order: CommitOrder) -> Committed:
        """Commit what was approved, once however often it is called.

        The caller stores that it was attempted before it calls. Raises Refused with what to do when it is not
        possible, Unavailable when it may have been made or may work later: call again with `attempted`.
        """
        try:
            return await self._commit(order)
        except Unacceptable as error:
            raise Refused(f"GitLab did not take the commit: {error}") from error
        except Forbidden as error:
            raise Refused(f"ravebot may not commit there: {error}") from error
        except NotFound as error:
            raise Refused(
                f"The merge request can't be seen in GitLab any more: give ravebot's user the role Developer ({error})"
            ) from error

    async def _commit(self, order: CommitOrder) -> Committed:
        mr = await self.repository.merge_request(order.mr)
        if order.attempted and (made := await self._made(order, mr)):
            return made
        refusal = committing.merge_request_refusal(mr, order)
        if refusal:
            raise Refused(refusal)
        diff = await asyncio.to_thread(self.kept.load, order.diff_hash)
        head = await self.repository.branch(mr.source_project_id, mr.source_branch)
        refusal = committing.diff_refusal(diff, order) or committing.branch_refusal(head, order)
        if refusal:
            raise Refused(refusal)
        paths = committing.guarded(diff.changes)
        last = await self.repository.last_commits(mr.source_project_id, order.head_sha, paths)
        actions = await asyncio.to_thread(committing.actions, diff, last)
        try:
            return await self.repository.commit(
                mr.source_project_id, mr.source_branch, committing.message(order), actions
            )
        except Overtaken as error:
            # An earlier request of ours may have been carried out meanwhile.
            if made := await self._made(order, mr):
                return made
            raise Refused(committing.moved(order)) from error

    async def _made(self, order: CommitOrder, mr: MergeRequest) -> Committed | None:
        """The commit that an earlier call made, if it did."""
        commits: list[BranchCommit] | None = None
        if not mr.from_fork:
            commits = await self.repository.branch_commits(mr.source_project_id, mr.source_branch, order.head_sha)
        if commits is None:
            commits = await self.repository.merge_request_commits(order.mr)
        found = committing.made_by(commits, order)
        return Committed(found.sha, found.web_url, found=True) if found else None

    @property
    def _scratch(self) -> Path:
        return self.state_dir / "comparing"

    @asynccontextmanager
    async def _archive(self, mr: MergeRequest, sha: str) -> AsyncIterator[Path]:
        """GitLab's archive of the commit, in a file that is removed afterwards."""
        path = self._scratch / f"{mr.ref.project_id}-{sha}-{next(self._numbers)}.tar.gz"
        try:
            await asyncio.to_thread(_make_folder, self._scratch)
            try:
                await self.repository.archive(mr.ref.project_id, sha, path, self.max_archive_bytes)
            except OSError as error:
                raise Unavailable(f"The commit can't be kept in {self._scratch} ({error.strerror})") from error
            yield path
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)


def _settled(sandbox: Sandbox) -> str:
    """The commit that the sandbox's code was. Raises Refused while there is none."""
    if sandbox.running_sha is None or sandbox.state not in (SandboxState.STARTING, SandboxState.READY):
        raise Refused("The sandbox holds no code to compare: start it, and wait until it is ready.")
    if sandbox.stage is Stage.COPY:
        raise Refused("The sandbox's code is being replaced by a new commit: ask again when that is done.")
    return sandbox.running_sha


def _copies(sandbox: Sandbox) -> tuple[SandboxId, str | None, MachineId | None, bool, int]:
    """What changes when code is copied in anew."""
    return sandbox.id, sandbox.running_sha, sandbox.machine_id, sandbox.stage is Stage.COPY, sandbox.stage_attempt


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    give(folder)
