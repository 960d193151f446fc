"""Programs that the builder runs: their last lines are kept, and none outlives the builder."""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from ravebot.errors import ImageBuildFailed

KEPT_LINES = 20
_CHUNK_BYTES = 64 * 1024
_LONGEST_LINE = 4000
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")


async def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    heard: Callable[[str], bool] = lambda _: True,
    describe: Callable[[], str] | None = None,
    kept: deque[str] | None = None,
) -> None:
    """Run a program to its end; `heard` gets each line of its output and says whether `kept` gets it, the last lines.

    Raises ImageBuildFailed with the last lines. When cancelled, the program's process group is killed and waited for.
    """
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    )
    kept = deque(maxlen=KEPT_LINES) if kept is None else kept
    try:
        process = await asyncio.shield(starting)
        await _read(process, kept, heard)
        code = await process.wait()
    finally:
        process = await starting  # cancelled while it starts, asyncio would end the program, but not its group
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code:
        what = describe() if describe else argv[0]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
        full = any("No space left on device" in line for line in kept)
        raise ImageBuildFailed(f"{what} {how}" + (": the disk is full" if full else ""), tuple(kept))


async def lines(argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """What a program prints. Raises ImageBuildFailed."""
    printed: list[str] = []

    def hear(line: str) -> bool:
        printed.append(line)
        return True

    await run(argv, environment, hear)
    return printed


async def _read(process: asyncio.subprocess.Process, kept: deque[str], heard: Callable[[str], bool]) -> None:
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while chunk := await process.stdout.read(_CHUNK_BYTES):
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        rest = rest[-_LONGEST_LINE:]
        for line in lines:
            _hear(line, kept, heard)
    if rest:
        _hear(rest, kept, heard)


def _hear(line: str, kept: deque[str], heard: Callable[[str], bool]) -> None:
    text = _CREDENTIALS.sub("", line.rstrip("\r").rpartition("\r")[2])[:_LONGEST_LINE]
    if heard(text) and text.strip():
        kept.append(text)
