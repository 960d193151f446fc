"""This machine with a system of its own: private /etc, /run and the like, with D-Bus, polkit and libvirt in them.

What is installed, which users there are and what libvirt has is seen only in here, and gone at the end: it is a mount
and a process namespace. The network is this machine's own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.stage import Bot

ROOT = Path(__file__).resolve().parents[2]
_PRIVATE = ("/etc", "/var/lib", "/var/log", "/usr/local", "/opt")
_SET_UP = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 private /mnt
cover() {
    mkdir -p "/mnt$1/upper" "/mnt$1/work"
    chmod "$2" "/mnt$1/upper"
    mount -t overlay -o "lowerdir=$1,upperdir=/mnt$1/upper,workdir=/mnt$1/work" overlay "$1"
}
for folder in $1; do cover "$folder" 755; done
for folder in $2; do cover "$folder" 711; done
mount -t tmpfs -o mode=755 private /run
mkdir -p /run/dbus /run/lock /run/private
rm -rf /etc/libvirt/qemu/*.xml /etc/libvirt/qemu/autostart /etc/libvirt/qemu/networks /etc/libvirt/storage
dbus-daemon --system --fork --nopidfile
/usr/lib/polkit-1/polkitd --no-debug &
virtlogd -d
libvirtd -d
while :; do sleep 0.1; done  # as the first process it has to wait for those whose parents are gone
"""
_NAMESPACES = ("--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
_WAIT_SECONDS = 20.0


class Host:
    """`with Host() as host:`; `host.enter` precedes a command that shall run in it, as root."""

    _process: subprocess.Popen[bytes]
    enter: tuple[str, ...]

    def __enter__(self) -> Self:
        closed = " ".join(_closed_folders())
        script = ["sh", "-c", _SET_UP, "host", " ".join(_PRIVATE), closed]
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", *_NAMESPACES, *script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            first = self._first()
            self.enter = ("nsenter", f"--target={first}", "--mount", "--pid", f"--wd={ROOT}", "--")
            asked = "test -d /run/private && timeout 3 virsh -q -c qemu:///system version"
            while self.run("sh", "-c", asked, check=False).returncode:
                self._pause("libvirtd does not answer in the private host")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _first(self) -> int:
        """The number of the namespace's first process, as seen from outside."""
        self._deadline = time.monotonic() + _WAIT_SECONDS
        pid = self._process.pid
        while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            self._pause("the private host did not start")
        return int(children[0])

    def _pause(self, what: str) -> None:
        assert self._process.poll() is None, f"{what}: its set-up failed"
        assert time.monotonic() < self._deadline, what
        time.sleep(0.05)

    def _end(self) -> None:
        self._process.kill()  # and with it its first process, and all others
        self._process.wait()

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root."""
        done = subprocess.run([*self.enter, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def put(self, path: str, text: str, mode: str) -> None:
        """Write a file in it, as root."""
        command = [*self.enter, "install", "-D", f"--mode={mode}", "/dev/stdin", path]
        subprocess.run(command, input=text, text=True, check=True)

    def python(self, code: str, *arguments: str) -> str:
        """What a program of ours prints in it."""
        return self.run(sys.executable, "-c", code, *arguments).stdout


@dataclass
class InstalledBot(Bot):
    """ravebot as a service manager of that host starts it."""

    host: Host = field(kw_only=True)
    started_by: list[str] = field(kw_only=True)

    @property
    def inner(self) -> str:
        """The process's number in the host."""
        return self.host.run("pgrep", "-x", "-u", "ravebot", "ravebot", check=False).stdout.strip()

    def start(self) -> None:
        environment = [f"{key}={value}" for key, value in self.environment.items()]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.host.enter, "env", *environment, *self.started_by],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def stop(self) -> None:
        await self._signal("TERM", 20)
        await self.kill()

    async def kill(self) -> None:
        await self._signal("KILL", 20)
        self.process = None

    async def _signal(self, name: str, patience: float) -> None:
        if self.process is not None and self.process.poll() is None and (pid := self.inner):
            self.host.run("kill", f"-{name}", pid, check=False)
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self.process.wait, patience)

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ravebot …` as root types it there."""
        return await asyncio.to_thread(self.host.run, "/usr/local/bin/ravebot", *arguments, check=False)


def _closed_folders() -> list[str]:
    """Folders on the way to our code and to Python that only their owners may enter."""
    base = Path(sys.base_prefix).resolve()
    ways = {parent for path in (ROOT, base) for parent in (path, *path.parents)}
    return sorted(str(folder) for folder in ways if not os.stat(folder).st_mode & 0o001)
