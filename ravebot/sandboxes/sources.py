"""What a sandbox needs from GitLab before people can use it: the code of a commit, and the keys of its people."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ravebot.errors import Unavailable
from ravebot.sandboxes.edges import CodeHost
from ravebot.sandboxes.model import MergeRequest


@dataclass
class Sources:
    """Fetches, each thing once however many ask for it at the same time."""

    host: CodeHost
    folder: Path
    max_bytes: int
    _numbers: count[int] = field(default_factory=count)  # a cancelled download may still write to its file
    _locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def clear(self) -> None:
        """Drop what an earlier process left half fetched."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self.folder.iterdir():
            path.unlink()

    async def archive(self, mr: MergeRequest, sha: str) -> Path:
        """The commit's archive as a file of ours; `forget` it when it is in the guest.

        Raises `Unavailable` also while our own disk is full.
        """
        name = f"{mr.ref.project_id}-{sha}.tar.gz"
        path = self.folder / name
        async with self._locks[name]:
            if not await asyncio.to_thread(path.exists):
                part = path.with_name(f"{name}.{next(self._numbers)}.part")
                try:
                    await self.host.archive(mr.ref.project_id, sha, part, self.max_bytes)
                    await asyncio.to_thread(part.replace, path)
                except OSError as error:
                    raise Unavailable(f"the code can't be kept in {self.folder} ({error.strerror})") from error
        return path

    async def forget(self, mr: MergeRequest, sha: str) -> None:
        name = f"{mr.ref.project_id}-{sha}.tar.gz"
        async with self._locks[name]:
            await asyncio.to_thread((self.folder / name).unlink, missing_ok=True)

    async def keys(self, mr: MergeRequest, agents: Iterable[str]) -> tuple[str, ...]:
        """The keys of author, assignees and reviewers, and of the configured agents; each once, in that order."""
        people = {person.id: person for person in (mr.author, *mr.people)}
        found = await asyncio.gather(*(self.host.ssh_keys(person_id) for person_id in people))
        return tuple(dict.fromkeys([*(key for keys in found for key in keys), *agents]))
