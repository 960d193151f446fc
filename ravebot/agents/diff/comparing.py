"""Talks to the process that compares (`worker`), with a limit on its time."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from ravebot.agents.diff import worker
from ravebot.agents.diff.model import Diff, LeftOut, hash_of, parse_canonical
from ravebot.errors import GuestError, Refused, Unavailable

_STEP = timedelta(minutes=5)
_TOO_LONG = (
    "The sandbox can't be compared with its commit: that takes too long or too much memory. Look for patterns with many"
    " `*` in its .gitignore, or commit from your own clone."
)


class Comparison:
    """One running comparison; its methods are called once each, in this order."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def listed(self, answer: bytes) -> bytes:
        """Give it the guest's list of files; returns whose hashes are wanted, each ended by a zero byte."""
        return await self._ask(answer)

    async def hashed(self, answer: bytes) -> bytes:
        """Give it the guest's hashes; returns whose contents are wanted."""
        return await self._ask(answer)

    async def read(self, answer: bytes) -> Diff:
        """Give it the guest's contents."""
        facts = await self._ask(answer)
        return await asyncio.to_thread(_diff, facts, await self._take(), await self._take())

    async def _ask(self, answer: bytes) -> bytes:
        assert self._process.stdin
        with suppress(ConnectionError):  # it ended: what it said last tells why
            self._process.stdin.write(worker.HEADER.pack(worker.DATA, len(answer)) + answer)
            await self._process.stdin.drain()
        return await self._take()

    async def _take(self) -> bytes:
        """Raises GuestError, Unavailable, and Refused if it was ended by its limits."""
        assert self._process.stdout
        try:
            async with asyncio.timeout(_STEP.total_seconds()):
                kind, length = worker.HEADER.unpack(await self._process.stdout.readexactly(worker.HEADER.size))
                if length > worker.LARGEST_FRAME_BYTES:
                    raise Refused(_TOO_LONG)
                content = await self._process.stdout.readexactly(length)
        except (asyncio.IncompleteReadError, TimeoutError) as error:
            raise Refused(_TOO_LONG) from error
        if kind == worker.GUEST_ERROR:
            raise GuestError(content.decode())
        if kind == worker.ARCHIVE_ERROR:
            raise Unavailable(content.decode())
        return content


@asynccontextmanager
async def comparison(archive: Path, base_sha: str, command: Sequence[str] = ()) -> AsyncIterator[Comparison]:
    """A comparison with the archive of a commit; it is ended with the context. `command`: for tests."""
    argv = command or (sys.executable, "-m", "ravebot.agents.diff.worker", str(archive), base_sha)
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        yield Comparison(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _diff(facts: bytes, form: bytes, text: bytes) -> Diff:
    """The diff that these frames describe; takes a while for a large one."""
    read = json.loads(facts)
    base_sha, changes = parse_canonical(form)
    counted = tuple(
        replace(change, added=added, removed=removed, binary=binary)
        for change, (added, removed, binary) in zip(changes, read["counts"], strict=True)
    )
    left_out = tuple(LeftOut(path, why) for path, why in read["left_out"])
    return Diff(
        base_sha, counted, text.decode(), hash_of(form), left_out, int(read["left_out_more"]), str(read["refusal"])
    )
