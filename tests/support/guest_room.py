"""A mount namespace in a guest's place: what is run in guests is run in it for real, by Debian's shell and su."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from ravebot.errors import GuestError
from ravebot.providers.base import RunResult
from ravebot.providers.guest import larger_than
from ravebot.providers.memory import MemoryProvider


class Room(MemoryProvider):
    """Runs what a guest would, as root, where /run and /srv are empty folders of its own."""

    def __init__(self, holder_pid: int = 0) -> None:
        """`holder_pid`: the one that another process made."""
        super().__init__()
        self.slow_copy = 0.0
        self.path = "/usr/sbin:/usr/bin:/sbin:/bin"
        self.holder_pid = holder_pid
        if holder_pid:
            return
        hold = "mount -t tmpfs none /run && mount -t tmpfs none /srv && echo made && exec sleep 600"
        self.holder = subprocess.Popen(["unshare", "-m", "sh", "-c", hold], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout
        assert self.holder.stdout.readline() == "made\n"
        self.holder_pid = self.holder.pid

    def close_room(self) -> None:
        self.holder.kill()
        self.holder.communicate()

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        process = await asyncio.create_subprocess_exec(
            *("nsenter", "-m", "-t", str(self.holder_pid)), *argv,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={"PATH": self.path, **(environment or {})},
        )  # fmt: skip
        output, _ = await asyncio.shield(asyncio.ensure_future(process.communicate()))  # a guest's goes on, too
        return RunResult(process.returncode or 0, output.decode(errors="replace"))

    async def copy_in(self, name: str, source: Path, target: str, *, mode: int = 0o600) -> bool:
        await asyncio.sleep(self.slow_copy)
        subprocess.run(
            ["nsenter", "-m", "-t", str(self.holder_pid), "tee", target],
            input=source.read_bytes(), stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        return False

    async def copy_out(self, name: str, source: str, *, max_bytes: int) -> bytes:
        command = ["nsenter", "-m", "-t", str(self.holder_pid), "head", "-c", str(max_bytes + 1), source]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
        if done.returncode != 0:
            raise GuestError(done.stderr.decode())
        if len(done.stdout) > max_bytes:
            raise larger_than(source, max_bytes)
        return done.stdout

    def sh(self, script: str) -> str:
        command = ["nsenter", "-m", "-t", str(self.holder_pid), "sh", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
