"""Starts libvirt's daemons where no init system does, as in a container, and restarts them for tests."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import libvirt

SYSTEM_URI = "qemu:///system"
_PID_FILE = Path("/run/libvirtd.pid")
_LOG_PID_FILE = Path("/run/virtlogd.pid")
_LOCK = Path("/tmp/ravebot-tests-libvirtd.lock")
_GATE = Path("/tmp/ravebot-tests-libvirtd.gate")  # held by who waits for all others: new ones wait behind it
_WAIT_SECONDS = 20.0


class LibvirtdError(Exception):
    """libvirtd could not be started here; the message says what it said."""


@contextmanager
def with_libvirtd() -> Iterator[None]:
    """Keeps tests in other processes from ending libvirtd while the block runs."""
    with ExitStack() as stack:
        with _locked(_GATE, fcntl.LOCK_EX):
            stack.enter_context(_locked(_LOCK, fcntl.LOCK_SH))
        yield


@asynccontextmanager
async def without_others() -> AsyncIterator[None]:
    """For who ends libvirtd: waits for other tests `with_libvirtd`, and keeps new ones waiting."""
    with ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, _locked(_GATE, fcntl.LOCK_EX))
        await asyncio.to_thread(stack.enter_context, _locked(_LOCK, fcntl.LOCK_EX))
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield


def ensure_libvirtd() -> None:
    """Make `qemu:///system` answer: start virtlogd and libvirtd unless they run already. Needs root."""
    if _opens():
        return
    if os.geteuid() != 0:
        raise LibvirtdError("libvirtd does not run and only root can start it: run the tests as root")
    if _running(_LOG_PID_FILE) is None:
        _start("virtlogd")
    if _running(_PID_FILE) is None:
        _start("libvirtd")
    _wait_until_it_opens()


def restart_libvirtd() -> None:
    """End the running libvirtd, by its pid file, and start it again. Machines go on running meanwhile."""
    pid = _running(_PID_FILE)
    if pid is None:
        raise LibvirtdError(f"no libvirtd to restart: {_PID_FILE} names no running process")
    if _managed_by_systemd():
        subprocess.run(["systemctl", "restart", "libvirtd"], check=True, capture_output=True)
    else:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _WAIT_SECONDS
        while _alive(pid):
            if time.monotonic() > deadline:
                raise LibvirtdError(f"libvirtd (process {pid}) does not end")
            time.sleep(0.05)
        _start("libvirtd")
    _wait_until_it_opens()


def _start(program: str) -> None:
    done = subprocess.run([program, "-d"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LibvirtdError(f"{program} -d failed: {done.stderr.strip()[-500:]}")


def _opens() -> bool:
    libvirt.registerErrorHandler(_keep_quiet, None)
    with suppress(libvirt.libvirtError):
        libvirt.open(SYSTEM_URI).close()
        return True
    return False


def _keep_quiet(_context: object, _error: object) -> None:
    """libvirt prints every error to stderr otherwise, also those that are caught."""


def _wait_until_it_opens() -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not _opens():
        if time.monotonic() > deadline:
            raise LibvirtdError(f"{SYSTEM_URI} did not open within {_WAIT_SECONDS:.0f} s: run libvirtd -v to see why")
        time.sleep(0.05)


def _running(pid_file: Path) -> int | None:
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if _alive(pid) else None


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def _managed_by_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()
