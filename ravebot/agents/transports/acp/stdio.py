"""Durable standard input and output of a program in a guest: the script `attach.sh`, as the host sees it.

The program survives the connection. A line is given under a key: once it is there, giving it again does nothing, also
over another connection. Output is read from an offset in bytes.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources

from ravebot.agents.transports.acp.control import PATIENCE_SECONDS, ControlConnections, Destination, SshClient
from ravebot.agents.transports.acp.lines import Bucket
from ravebot.errors import GuestError, Unavailable
from ravebot.sandboxes.model import CODE_FOLDER

CHUNK_BYTES = 16 * 1024
_HELD_BYTES = 256 * 1024
"""Output that waits to be handled; then the pipes fill, and the program in the guest waits."""
_MOST_HELD_BYTES = 16 * 1024 * 1024
"""The same while an acknowledgement is waited for, which comes after the output that is under way."""
BYTES_PER_SECOND = 2 * 1024 * 1024
_BURST_BYTES = 4 * 1024 * 1024
_ACK_SECONDS = 30.0
_LAST_WORDS_SECONDS = 2.0
_NOTE_BYTES = 4000
_NOTES_PER_SECOND, _NOTES_AT_ONCE = 256 * 1024, 1024 * 1024
"""Bytes. A guest that floods them waits."""
_NOTES_PER_ATTACHMENT = 100_000
_KEY = re.compile(r"[a-z0-9-]{1,60}")
_END = "#end"

LOADER = (
    'exec sh -c \'s=; n=$(echo; echo .); n=${n%.}; while IFS= read -r l; do [ "$l" = "' + _END + '" ] && break; '
    's="$s$l$n"; done; eval "$s"\''
)
"""The command that SSH runs, the same every time: it reads the script, whatever the user's shell is."""


class GuestUnfit(GuestError):
    """No program can be started in the guest as it is; the text is the guest's word."""


class InGuest(StrEnum):
    """What the script found in the guest."""

    NEW = "new"  # the program was started
    AGAIN = "again"  # it was started before
    MISSING = "missing"  # the image has no such program
    GONE = "gone"  # it was started before, and its folder is not there any more
    BROKEN = "broken"


class Given(StrEnum):
    """What became of a line."""

    OK = "ok"  # it is in the queue, now or since earlier
    NO = "no"  # the program had ended
    FULL = "full"  # it could not be written


@dataclass(frozen=True)
class Program:
    """What runs in the guest: its folder there, which no other run uses, its command and its variables."""

    folder: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    working_folder: str = CODE_FOLDER


@dataclass(frozen=True)
class ProgramEnd:
    """How the program ended (None: not known), how many bytes it wrote, and the last lines of its errors."""

    code: int | None
    size: int
    errors: tuple[str, ...] = ()


def script() -> str:
    """The constant script, without its comments."""
    text = (resources.files("ravebot.agents.transports.acp") / "attach.sh").read_text("utf-8")
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))


def words(program: Program, nonce: str, offset: int, *, may_start: bool) -> str:
    """The line that follows the script."""
    variables = [f"{name}={value}" for name, value in program.environment.items()]
    how = "start" if may_start else "again"
    given = (how, nonce, program.folder, str(offset), program.working_folder, str(len(variables)))
    return " ".join(_quoted(word) for word in (*given, *variables, *program.command))


def _quoted(word: str) -> str:
    """One word for the shell, on one line; `$n` is a line break in the loader."""
    return "'" + word.replace("'", "'\\''").replace("\n", "'\"$n\"'").replace("\r", "") + "'"


@dataclass
class Attached:
    """A connection to a program. One task uses it: `give` and `read` one after the other."""

    client: SshClient
    nonce: bytes
    found: asyncio.Future[tuple[InGuest, str]]
    offset: int
    changed: asyncio.Event
    end: ProgramEnd | None = None
    received: int = 0  # bytes of output, from the offset on
    _held: bytearray = field(default_factory=bytearray)
    _acks: dict[str, asyncio.Future[Given]] = field(default_factory=dict)
    _errors: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _over: bool = False
    _tasks: tuple[asyncio.Task[None], ...] = ()

    def begin(self) -> None:
        self._tasks = tuple(asyncio.ensure_future(pump) for pump in (self._read_output(), self._read_notes()))

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended, and all that came over it was read."""
        return self._over and not self._held

    @property
    def has_output(self) -> bool:
        return bool(self._held)

    @property
    def is_read(self) -> bool:
        """Whether the program has ended, and all of its output was taken."""
        return self.end is not None and not self._held and (self._over or self.received >= self.end.size)

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until there is something new, or whoever else holds `changed` sets it; clear it and check before."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.changed.wait()
        except TimeoutError:
            pass

    def take(self) -> bytes:
        """The next piece of output; empty when there is none yet."""
        piece = bytes(self._held[:CHUNK_BYTES])
        del self._held[:CHUNK_BYTES]
        self._room.set()
        return piece

    async def give(self, key: str, line: bytes) -> Given:
        """Append a line to the program's input unless `key` is there; returns once the guest has it on its disk.

        Raises Unavailable when the connection ends before: whether the guest has it is not known then.
        """
        assert _KEY.fullmatch(key)
        assert b"\n" not in line
        ack = self._acks.setdefault(key, asyncio.get_running_loop().create_future())
        self._room.set()
        try:
            await self._send(key.encode() + b" " + line + b"\n")
            async with asyncio.timeout(_ACK_SECONDS):
                while not ack.done():
                    if self._over:
                        raise self.client.failure()
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError as error:
            raise Unavailable(f"the guest did not take a line within {_ACK_SECONDS:g} s") from error
        finally:
            self._acks.pop(key, None)
        return ack.result()

    async def kill(self) -> None:
        """Have the program and its process group killed; `end` tells when it happened."""
        await self._send(b"!kill\n")

    async def _send(self, line: bytes) -> None:
        stdin = self.client.process.stdin
        assert stdin
        try:
            stdin.write(line)
            async with asyncio.timeout(_ACK_SECONDS):
                await stdin.drain()
        except (ConnectionError, RuntimeError) as error:
            raise Unavailable("the connection to the guest ended") from error

    async def close(self) -> None:
        """End the connection; the program goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()

    def failure(self) -> Exception:
        """Why the connection ended."""
        return self.client.failure()

    async def _read_output(self) -> None:
        stdout = self.client.process.stdout
        assert stdout
        bucket = Bucket(BYTES_PER_SECOND, _BURST_BYTES)
        try:
            await self._skip_to_nonce(stdout)
            while chunk := await stdout.read(CHUNK_BYTES):
                self._held += chunk
                self.received += len(chunk)
                self.changed.set()
                while len(self._held) >= (_MOST_HELD_BYTES if self._acks else _HELD_BYTES):
                    self._room.clear()
                    await self._room.wait()
                if pause := bucket.take(len(chunk)):
                    await asyncio.sleep(pause)
        finally:
            self._over = True
            self.changed.set()
        await self.client.process.wait()
        if not self.found.done():
            self.found.set_exception(self.client.failure())
            self.found.exception()

    async def _skip_to_nonce(self, stdout: asyncio.StreamReader) -> None:
        """Drop what the user's shell prints before the script runs."""
        skipped = b""
        while self.nonce not in skipped:
            chunk = await stdout.read(CHUNK_BYTES)
            if len(skipped) > 4 * CHUNK_BYTES:  # no shell's greeting
                self.client.process.kill()
            if not chunk:
                return
            skipped += chunk
        rest = skipped.partition(self.nonce)[2]
        self._held += rest
        self.received += len(rest)
        self.changed.set()

    async def _read_notes(self) -> None:
        stderr = self.client.process.stderr
        assert stderr
        pending = b""
        lines = 0
        bucket = Bucket(_NOTES_PER_SECOND, _NOTES_AT_ONCE)
        while lines < _NOTES_PER_ATTACHMENT and (chunk := await stderr.read(CHUNK_BYTES)):
            *whole, pending = (pending + chunk).split(b"\n")
            pending = pending[-_NOTE_BYTES:]
            lines += len(whole)
            for line in whole:
                if line.startswith(b"rave: "):
                    self._note(line[6:_NOTE_BYTES].decode(errors="replace"))
            await asyncio.sleep(max(0.01 if len(whole) > 100 else 0, bucket.take(len(chunk))))
        if lines >= _NOTES_PER_ATTACHMENT:  # no program of ours does that
            self.client.process.kill()

    def _note(self, note: str) -> None:
        word, _, rest = note.partition(" ")
        if word in tuple(InGuest) and not self.found.done():
            self.found.set_result((InGuest(word), rest))
        elif word in tuple(Given) and rest in self._acks and not self._acks[rest].done():
            self._acks[rest].set_result(Given(word))
        elif word == "err":
            self._errors.append(rest)
        elif word == "ended" and self.end is None:
            code, _, size = rest.partition(" ")
            number = int(code) if re.fullmatch(r"[0-9]{1,3}", code) else None
            bytes_ = int(size) if re.fullmatch(r"[0-9]{1,15}", size) else 0
            self.end = ProgramEnd(number, bytes_ - self.offset, tuple(self._errors))
        else:
            return
        self.changed.set()


async def attach(
    connections: ControlConnections,
    destination: Destination,
    program: Program,
    offset: int,
    *,
    may_start: bool,
    changed: asyncio.Event | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> tuple[Attached, InGuest]:
    """Connect to a program, whose output is read from `offset` on; `may_start`: start it if it never was.

    Raises Unavailable, OtherHostKey, KeyRefused, NoSshClient; GuestError when the guest's shell can't do it.
    """
    client = await connections.start(destination, LOADER)
    nonce = secrets.token_hex(12)
    attached = Attached(
        client, f"{nonce}\n".encode(), asyncio.get_running_loop().create_future(), offset, changed or asyncio.Event()
    )
    attached.begin()
    try:
        try:
            async with asyncio.timeout(patience_seconds):
                text = f"{script()}{_END}\n{words(program, nonce, offset, may_start=may_start)}\n"
                await attached._send(text.encode())
                found, detail = await asyncio.shield(attached.found)
        except TimeoutError as error:
            raise Unavailable(
                f"the machine {destination.name} did not answer by SSH within {patience_seconds:g} s"
            ) from error
        except Unavailable:  # the client is ending: what it then writes to its log says why
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    await client.process.wait()
            raise client.failure() from None
    except BaseException:  # also when it is cancelled: no client may be left behind
        await attached.close()
        raise
    if found is InGuest.BROKEN:
        await attached.close()
        raise GuestUnfit(f"the agent can't be started: {detail[:400]}")
    return attached, found
