"""Runs a program that reads what a job built: without privileges, with limits, and without network where possible.

Where ravebot is root with the right to change users, the program is `nobody`. Where ravebot is a user of its own, it is
that user, without its capability. Where ravebot is root without that right, a program would keep what ravebot may do,
so none is started. Where setpriv and the kernel can do it, it opens no file but programs, libraries and those of its
folder, and no socket. It is never told of another file than the one in its folder, and ends when the thread that
started it does, so also when ravebot is killed. Everything here blocks.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, BinaryIO

from ravebot.errors import RavebotError, Unavailable
from ravebot.images.pipelines.qcow2 import PipelineImageRefused
from ravebot.images.pipelines.room import PERHAPS_LACKING_BYTES, HostDiskShort

_NOBODY = 65534
_SETTING_USERS = (1 << 0) | (1 << 6) | (1 << 7)  # CAP_CHOWN, CAP_SETGID, CAP_SETUID: capabilities(7)
_LOOK_SECONDS = 0.2
_KEPT_BYTES = 4096
_PIECE_BYTES = 1024**2
_POLITE = 10
_PROBE_SECONDS = 5.0
_PROGRAMS = ("/usr", "/bin", "/lib", "/lib64", "/nix/store")
_OF_ALL = ("/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom")
_X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64
_X32 = 0x40000000  # from here on are the calls of another ABI
_FORBIDDEN = (41, 42, 49, 101, 310, 311, 425, 438)
"""Calls of x86-64 that reach others: socket, connect, bind, ptrace, process_vm_readv and _writev, io_uring_setup,
pidfd_getfd."""
_NO_ROOM = ("No space left on device", "Disk quota exceeded")


class TooLarge(PipelineImageRefused):
    """The program wanted to write more than it may."""


@dataclass(frozen=True)
class CageLimits:
    """The most that a program may take."""

    cpu_seconds: int
    memory_bytes: int
    file_bytes: int


def missing(programs: Sequence[str]) -> list[str]:
    """Which of these, or of those that every program here needs, are not installed."""
    return [name for name in ("setpriv", "prlimit", "nice", *programs) if shutil.which(name) is None]


@cache
def user() -> int | None:
    """The id of the user that programs get; None where they keep ours."""
    if os.geteuid() != 0:
        return None
    status = Path("/proc/self/status").read_text("ascii", "replace")
    held = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    return _NOBODY if held & _SETTING_USERS == _SETTING_USERS else None


def refused() -> str:
    """Why no program may run here; nothing if it may: root's programs get every capability that root may have."""
    if os.geteuid() != 0 or user() is not None:
        return ""
    return (
        "images of pipelines need ravebot to run as a user of its own: it is root here without the right to change "
        "users, so an operator sets User= and AmbientCapabilities=CAP_NET_ADMIN in its unit"
    )


@cache
def apart() -> tuple[str, ...]:
    """The words that run a program without any network, where the host lets us: a unit may forbid namespaces."""
    words, other = ("unshare", "--user", "--net", "--ipc", "--"), user()
    try:
        done = subprocess.run(
            [*words, "true"], capture_output=True, timeout=_PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL,
            cwd="/", user=other, group=other, extra_groups=[] if other is not None else None,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return words if done.returncode == 0 else ()


@cache
def _filter() -> int:
    """An open file with the seccomp program that forbids those calls."""
    load, equal, from_on, end = 0x20, 0x15, 0x35, 0x06  # BPF: an absolute word, two comparisons, the verdict
    count = len(_FORBIDDEN)
    program = [
        (load, 0, 0, 4), (equal, 0, count + 3, _X86_64), (load, 0, 0, 0), (from_on, count + 1, 0, _X32),
        *((equal, count - at, 0, number) for at, number in enumerate(_FORBIDDEN)),
        (end, 0, 0, 0x7FFF0000), (end, 0, 0, 0x00050001),  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
    ]  # fmt: skip
    kept = os.memfd_create("ravebot-cage")
    os.write(kept, b"".join(struct.pack("=HBBI", *one) for one in program))
    return kept


def _closed(folder: int) -> tuple[str, ...]:
    """The words that run a program which opens only what is in that open folder, and no socket."""
    rules = [
        *(f"read-file,read-dir,execute:{path}" for path in _PROGRAMS if Path(path).exists()),
        *(f"read-file:{path}" for path in _OF_ALL if Path(path).exists()),
        "write-file:/dev/null",
        f"read-file,read-dir,write-file,make-reg,remove-file,truncate:/proc/self/fd/{folder}",
    ]
    return (
        "setpriv", "--no-new-privs", "--seccomp-filter", f"/proc/self/fd/{_filter()}",
        "setpriv", "--landlock-access", "fs", *(f"--landlock-rule=path-beneath:{rule}" for rule in rules),
    )  # fmt: skip


@cache
def closes() -> bool:
    """Whether files and sockets can be kept from programs: by setpriv of util-linux 2.41, and Landlock on x86-64."""
    if os.uname().machine != "x86_64":
        return False
    other, root = user(), os.open("/usr", os.O_PATH | os.O_DIRECTORY)
    try:
        done = subprocess.run(
            [*_closed(root), "true"], capture_output=True, timeout=_PROBE_SECONDS, check=False, cwd="/",
            stdin=subprocess.DEVNULL, pass_fds=(root, _filter()), user=other, group=other,
            extra_groups=[] if other is not None else None,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        os.close(root)
    return done.returncode == 0


def give(path: Path) -> None:
    """Give a file or folder to the user that programs get."""
    if (owner := user()) is not None:
        os.chown(path, owner, owner, follow_symlinks=False)


def run(
    argv: Sequence[str],
    folder: Path,
    limits: CageLimits,
    guard: Callable[[], None],
    hear: Callable[[bytes], object],
    stdin: BinaryIO | None = None,
) -> None:
    """Run a program in that folder to its end; `hear` gets what it prints, `guard` raises when it shall end sooner.

    Raises PipelineImageRefused if it fails, with its last line, and HostDiskShort if the disk is full.
    """
    process = _start(argv, folder, limits, stdin)
    said = bytearray()

    def keep(piece: bytes) -> None:
        said.extend(piece)
        del said[:-_KEPT_BYTES]

    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with process.stdout as printed, process.stderr as errors:
            _listen({printed: hear, errors: keep}, guard)
        while True:
            guard()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)
                break
    finally:
        _kill(process)
    if process.returncode:
        raise _problem(process.returncode, argv[0], bytes(said))


def _start(argv: Sequence[str], folder: Path, limits: CageLimits, stdin: BinaryIO | None) -> subprocess.Popen[bytes]:
    limited = [
        "prlimit", f"--cpu={limits.cpu_seconds}:{limits.cpu_seconds + 5}", f"--as={limits.memory_bytes}",
        f"--fsize={limits.file_bytes}", "--core=0", "--nofile=64", "nice", "-n", str(_POLITE),
    ]  # fmt: skip
    powerless = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--pdeathsig=KILL"]
    other = user()
    if why := refused():
        raise Unavailable(why)
    own = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    closed = _closed(own) if closes() else ()
    try:
        return subprocess.Popen(
            [*apart(), *closed, *powerless, *limited, *argv],
            cwd=folder,
            pass_fds=(own, _filter()) if closed else (),
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pipesize=_PIECE_BYTES,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "MALLOC_ARENA_MAX": "2"},
            start_new_session=True,
            umask=0o077,
            user=other,
            group=other,
            extra_groups=[] if other is not None else None,
        )
    except FileNotFoundError as error:
        raise Unavailable(
            f"{error.filename} is not installed where ravebot runs: an operator can install it"
        ) from error
    finally:
        os.close(own)


def _listen(pipes: Mapping[IO[bytes], Callable[[bytes], object]], guard: Callable[[], None]) -> None:
    with selectors.DefaultSelector() as selector:
        for pipe, hear in pipes.items():
            selector.register(pipe, selectors.EVENT_READ, hear)
        while selector.get_map():
            guard()
            for key, _ in selector.select(_LOOK_SECONDS):
                if piece := os.read(key.fd, _PIECE_BYTES):
                    key.data(piece)
                else:
                    selector.unregister(key.fileobj)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it and what it started, and wait for it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _problem(code: int, what: str, said: bytes) -> RavebotError:
    text, how = said.decode("utf-8", "replace"), "make it with `qemu-img convert -O qcow2`"
    if code == -signal.SIGXCPU:
        return PipelineImageRefused(f"{what} took more time over it than an image may take: {how}")
    if code == -signal.SIGKILL:
        return PipelineImageRefused(f"{what} took more time or memory over it than an image may take: {how}")
    if any(words in text for words in _NO_ROOM):
        return HostDiskShort(PERHAPS_LACKING_BYTES)
    if code == -signal.SIGXFSZ or "File too large" in text:
        return TooLarge("it becomes larger than it may be when it is unpacked: make it smaller")
    if code < 0:
        return PipelineImageRefused(f"{what} broke over it ({signal.Signals(-code).name}): {how}")
    lines = [line for line in ("".join(filter(str.isprintable, one)).strip() for one in text.splitlines()) if line]
    return PipelineImageRefused(f"{what} can't read it" + (f" ({lines[-1][:160]})" if lines else ""))
