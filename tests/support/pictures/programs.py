"""Runs programs, each in a process group of its own, and ends them by its id: also when a task is cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

_END_SECONDS = 5


class PictureError(Exception):
    """A picture can't be made; the message says why."""


@asynccontextmanager
async def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a program in the background while the block runs; what it prints goes to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            pass_fds=pass_fds,
            start_new_session=True,  # a terminal's Ctrl-C is not for it: who started it ends it
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                await _wait(process)


async def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        await asyncio.to_thread(process.wait, _END_SECONDS)
    except subprocess.TimeoutExpired:
        return


async def run(
    *command: str, environment: Mapping[str, str] | None = None, given: bytes | None = None, timeout: float = 30
) -> bytes:
    """What the program prints. Raises PictureError when it fails or takes too long."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if given is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environment) if environment is not None else None,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout):
            printed, complaints = await process.communicate(given)
    except TimeoutError as error:
        raise PictureError(f"`{' '.join(command)}` did not end within {timeout:.0f} s") from error
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise PictureError(f"`{' '.join(command)}` failed: {complaints.decode(errors='replace').strip()[-500:]}")
    return printed
