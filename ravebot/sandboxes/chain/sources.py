"""The code of a commit, which a sandbox needs from GitLab before people can use it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ravebot.errors import Unavailable
from ravebot.sandboxes.edges import CodeHost
from ravebot.sandboxes.model import Sandbox, SandboxId
from ravebot.store.owner import give


@dataclass
class Sources:
    """Downloads a sandbox's code, once for concurrent callers; file names begin with the sandbox's id."""

    host: CodeHost
    folder: Path
    max_bytes: int
    _numbers: count[int] = field(default_factory=count)  # a cancelled download may still write to its file
    _locks: dict[SandboxId, asyncio.Lock] = field(default_factory=dict)

    def clear(self) -> None:
        """Delete the files of an earlier process."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        give(self.folder)
        for path in self.folder.iterdir():
            path.unlink()

    async def archive(self, sandbox: Sandbox) -> Path:
        """The archive of the commit that it should run; call `forget` when the code is in the guest.

        Raises `Unavailable` also while our own disk is full.
        """
        path = self.folder / f"{sandbox.id}-{sandbox.sha}.tar.gz"
        async with self._locks.setdefault(sandbox.id, asyncio.Lock()):
            if not await asyncio.to_thread(path.exists):
                await asyncio.to_thread(self._remove, sandbox.id)  # code that is not wanted any more
                part = path.with_name(f"{path.name}.{next(self._numbers)}.part")
                try:
                    await self.host.archive(sandbox.mr.project_id, sandbox.sha, part, self.max_bytes)
                    await asyncio.to_thread(part.replace, path)
                except OSError as error:
                    raise Unavailable(f"the code can't be kept in {self.folder} ({error.strerror})") from error
        return path

    async def forget(self, sandbox_id: SandboxId) -> None:
        """Delete a sandbox's files: its code is in the guest, or it ended."""
        async with self._locks.setdefault(sandbox_id, asyncio.Lock()):
            await asyncio.to_thread(self._remove, sandbox_id)

    def drop(self, sandbox_id: SandboxId | None) -> None:
        """Drop a sandbox's lock: its machine is gone, so nothing is downloaded for it any more."""
        if sandbox_id is not None:
            self._locks.pop(sandbox_id, None)

    def _remove(self, sandbox_id: SandboxId) -> None:
        for path in self.folder.glob(f"{sandbox_id}-*"):
            path.unlink(missing_ok=True)
