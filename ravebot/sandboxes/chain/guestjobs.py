"""Commands inside a guest: unpacking the code, and jobs (setup, tests) that outlive our process.

A job runs under a lock in the guest that is keyed by sandbox, commit and attempt: after a restart the same call adopts
the one still running, or reads how it ended. The scripts are constants; everything that varies goes in as arguments
or environment, never as shell text.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ravebot.backoff import Backoff
from ravebot.errors import GuestError, GuestTimeout
from ravebot.providers.base import OUTPUT_LIMIT_BYTES, Provider, RunResult
from ravebot.sandboxes.model import CODE_FOLDER
from ravebot.sandboxes.view import in_words

_ARCHIVE = "/srv/.merge-request"
_CALL = timedelta(seconds=30)
_JOBS = "/run/ravebot/jobs"
_MOST_OUTPUT = OUTPUT_LIMIT_BYTES - 64  # bytes of a job's: the first line is ours
_NUMBER = re.compile(r"[0-9]{1,3}")
_BOOT_ID = re.compile(r"[0-9a-f-]{36}")
_POLLS = Backoff.growing(0.05, 1.0, factor=1.5)

# Commands reach su's shell on its standard input: with -c, the su of util-linux would put them into a session of their
# own, and killing the job's would miss them. What varies is in the environment.

# Ends job $1: kills its processes and says so in its status. One that has not yet written its process id finds that it
# was killed.
_END_JOB = """
end_job() {
  [ ! -f "$1/status" ] || return 0
  : > "$1/killed"
  [ ! -f "$1/pid" ] || kill -KILL "-$(cat "$1/pid")" 2>/dev/null || true
  echo 137 > "$1/status.part" && mv "$1/status.part" "$1/status"
}
"""

# $1 archive, $2 user, $3 folder. Unpacked beside the old folder, then renamed; as the user, so that a hostile archive
# can do no more than that user could anyway. Archives that earlier calls left are removed. Processes of an earlier call
# are ended first; one that had not yet written its process id finds another archive wanted, and touches nothing.
_UNPACK = (
    _END_JOB
    + """
set -eu
jobs=/run/ravebot/jobs last=/run/ravebot/unpack
mkdir -p "$jobs" && chmod 700 /run/ravebot "$jobs"
echo "$1" > "$last.wanted.part" && mv "$last.wanted.part" "$last.wanted"
[ ! -f "$last" ] || kill -KILL "-$(cat "$last")" 2>/dev/null || true
for job in "$jobs"/*; do [ ! -d "$job" ] || end_job "$job"; done
exec setsid sh -euc '
  echo $$ > "$4.part" && mv "$4.part" "$4"
  [ "$(cat "$4.wanted")" = "$1" ] || exit 75
  for left in "${1%/*}"/.merge-request.*; do [ "$left" != "$1" ] || break; rm -f "$left"; done
  rm -rf "$3.old" "$3.new"
  mkdir -p "$3.new"
  chown "$2" "$3.new"
  chmod 644 "$1"
  export RAVE_ARCHIVE="$1" RAVE_FOLDER="$3.new"
  echo "{ exec < /dev/null; cd \\"\\$RAVE_FOLDER\\" && tar -xzf \\"\\$RAVE_ARCHIVE\\"; }" | su "$2" -s /bin/sh
  set -- "$1" "$2" "$3" "$4" "$3.new"/*
  [ $# -eq 5 ] && [ -d "$5" ] || { echo "the archive does not hold exactly one folder" >&2; exit 65; }
  if [ -e "$3" ]; then mv "$3" "$3.old"; fi
  mv "$5" "$3"
  rm -rf "$3.old" "$3.new" "$1" "$4"
' unpack "$1" "$2" "$3" "$last"
"""
)

# $1 job folder, $2 user, $3 code folder, $4 blocks of 512 bytes; RAVE_COMMAND is what to run. So much of the output is
# kept, at once; the rest is read and dropped, so that a command that prints without end neither blocks nor fills the
# disk. With a $5, it is started only in that boot of the guest: a job's folder does not survive another one.
_START = """
set -u
[ -z "$5" ] || [ "$(cat /proc/sys/kernel/random/boot_id)" = "$5" ] || exit 76
mkdir -p "${1%/*}" && chmod 700 "${1%/*}" || exit 1
mkdir "$1" 2>/dev/null || exit 0
export RAVE_FOLDER="$3"
setsid sh -c '
  echo $$ > "$1/pid.part" && mv "$1/pid.part" "$1/pid"
  [ ! -f "$1/killed" ] || exit 0
  mkfifo "$1/pipe"
  : > "$1/out"
  { (trap "" XFSZ; ulimit -f "$3"; exec cat > "$1/out"); cat > /dev/null; } < "$1/pipe" &
  drain=$!
  echo "{ exec < /dev/null; cd \\"\\$RAVE_FOLDER\\" && eval \\"\\$RAVE_COMMAND\\"; }" |
    su "$2" -s /bin/sh > "$1/pipe" 2>&1
  code=$?
  for tick in 1 2 3 4 5; do kill -0 $drain 2>/dev/null || break; sleep 0.1; done
  echo $code > "$1/status.part" && mv "$1/status.part" "$1/status"
' job "$1" "$2" "$4" < /dev/null > /dev/null 2>&1 &
"""

# $1 job folder, $2 bytes. First line: the exit code, `running`, or `gone` when its process died without a status.
_POLL = """
if [ -f "$1/status" ]; then cat "$1/status"
elif [ ! -f "$1/pid" ] || kill -0 "$(cat "$1/pid")" 2>/dev/null; then echo running
elif [ -f "$1/status" ]; then cat "$1/status"
else echo gone; fi
[ -f "$1/out" ] && tail -c "$2" "$1/out"
exit 0
"""

# Without a folder, the job must not be started later.
_KILL = _END_JOB + 'mkdir -p "$1" && end_job "$1"; exit 0\n'

_BOOT = "cat /proc/sys/kernel/random/boot_id"

# $1 job folder, $2 the first byte that is wanted, $3 bytes. First line as for _POLL, or `missing`; then `more` if there
# is output, which is in the file `piece`.
_LOOK = """
if [ ! -d "$1" ]; then echo missing; exit 0
elif [ -f "$1/status" ]; then cat "$1/status"
elif [ ! -f "$1/pid" ] || kill -0 "$(cat "$1/pid")" 2>/dev/null; then echo running
elif [ -f "$1/status" ]; then cat "$1/status"
else echo gone; fi
[ -f "$1/out" ] || exit 0
tail -c "+$2" "$1/out" | head -c "$3" > "$1/piece"
[ ! -s "$1/piece" ] || echo more
exit 0
"""

# A job that is over, and must not be started again.
_FORGET = 'rm -rf "$1"; exit 0\n'

# Prints the numbers of the commands whose first word is a file in the code folder, or no file name at all.
_PRESENT = """
cd "$1" || exit 1
shift
n=0
for word in "$@"; do
  case "$word" in ./*|../*|/*) [ -e "$word" ] && echo $n ;; *) echo $n ;; esac
  n=$((n + 1))
done
exit 0
"""


@dataclass(frozen=True)
class JobResult:
    """How a job ended; `output` is its bounded tail."""

    exit_code: int
    output: str


@dataclass(frozen=True)
class JobLook:
    """How a job goes, and the next piece of its output. `found`: whether the guest knows of it."""

    found: bool
    exit_code: int | None  # None: it runs
    piece: bytes


OTHER_BOOT = 76
BLOCK_BYTES = 512
_BLOCKS_KEPT = 8 * 1024**2 // BLOCK_BYTES
PIECE_BYTES = 32 * 1024


@dataclass(frozen=True)
class GuestJobs:
    """Runs things in one provider's guests."""

    provider: Provider
    user: str

    async def put_code(self, machine: str, archive: Path, timeout: timedelta) -> None:
        """Replace the code folder by the archive's content; ends the jobs of older code. Raises GuestError."""
        # An earlier call may still use its own file, and must not remove this one: the shell sorts by name, so by time.
        target = f"{_ARCHIVE}.{time.time_ns():016x}{secrets.token_hex(2)}"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout.total_seconds()
        try:
            async with asyncio.timeout_at(deadline):
                await self.provider.copy_in(machine, archive, target)
        except TimeoutError as error:
            raise GuestTimeout(f"the guest did not take the code within {in_words(timeout)}") from error
        left = timedelta(seconds=max(1.0, deadline - loop.time()))
        done = await self._sh(machine, _UNPACK, target, self.user, CODE_FOLDER, timeout=left)
        if done.exit_code != 0:
            raise GuestError(f"the code could not be unpacked: {done.output.strip()[-500:] or 'no output'}")

    async def present(self, machine: str, commands: tuple[str, ...]) -> tuple[int, ...]:
        """The indexes of the commands whose script exists; a command without a path is always included."""
        if not commands:
            return ()
        first = [_first_word(command) for command in commands]
        done = await self._sh(machine, _PRESENT, CODE_FOLDER, *first, timeout=_CALL)
        found = {int(line) for line in done.output.split() if _NUMBER.fullmatch(line)}
        return tuple(index for index in range(len(commands)) if index in found)

    async def run_job(
        self, machine: str, key: str, command: str, environment: Mapping[str, str], timeout: timedelta
    ) -> JobResult:
        """Run a command as the sandbox user, or adopt the one that an earlier call with this key started.

        Ends the job after `timeout`, and raises GuestTimeout.
        """
        folder = f"{_JOBS}/{key}"
        variables = {**environment, "RAVE_COMMAND": command}
        await self._start(machine, folder, variables, _BLOCKS_KEPT)
        output = ""
        pauses = iter(_POLLS)
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                while True:
                    polled = await self._sh(machine, _POLL, folder, str(_MOST_OUTPUT), timeout=_CALL)
                    word, _, output = polled.output.partition("\n")
                    if _NUMBER.fullmatch(word.strip()):
                        return JobResult(int(word), _whole_lines(output))
                    if word.strip() == "gone":
                        return JobResult(137, _whole_lines(output))
                    if word.strip() != "running":
                        raise GuestError("the guest answered with nonsense when asked how its job goes")
                    await asyncio.sleep(next(pauses))
        except TimeoutError as error:
            await self._sh(machine, _KILL, folder, timeout=_CALL)
            raise GuestTimeout(f"not done after {in_words(timeout)}\n{end_of(output, 1500)}") from error

    async def output_of(
        self, machine: str, key: str, command: str, environment: Mapping[str, str], most_bytes: int, timeout: timedelta
    ) -> bytes:
        """Run a command as `run_job` does; returns the first `most_bytes` that it prints, which may be any bytes.

        Raises GuestError, also when it fails; GuestTimeout.
        """
        folder, blocks = f"{_JOBS}/{key}", -(-most_bytes // BLOCK_BYTES)
        deadline = asyncio.get_running_loop().time() + timeout.total_seconds()
        await self._start(machine, folder, {**environment, "RAVE_COMMAND": command}, blocks)
        done = await self.run_job(machine, key, command, environment, timeout)  # adopts it
        if done.exit_code != 0:
            raise GuestError(f"a job of ravebot's ended with code {done.exit_code}")
        try:
            async with asyncio.timeout_at(deadline + _CALL.total_seconds()):
                return await self.provider.copy_out(machine, f"{folder}/out", max_bytes=blocks * BLOCK_BYTES)
        except TimeoutError as error:
            raise GuestTimeout(f"the guest did not give a file within {in_words(timeout + _CALL)}") from error

    async def boot(self, machine: str) -> str:
        """What names this boot of the guest. Raises GuestError."""
        done = await self._sh(machine, _BOOT, timeout=_CALL)
        name = done.output.strip()
        if done.exit_code != 0 or not _BOOT_ID.fullmatch(name):
            raise GuestError("the guest does not say which boot it is in: /proc must be mounted in it")
        return name

    async def start(
        self, machine: str, key: str, command: str, environment: Mapping[str, str], boot: str, most_blocks: int
    ) -> bool:
        """Start a command as the sandbox user, unless one with this key was started; False in another boot.

        Its first `most_blocks` of BLOCK_BYTES of output are kept. Raises GuestError.
        """
        variables = {**environment, "RAVE_COMMAND": command}
        return await self._start(machine, f"{_JOBS}/{key}", variables, most_blocks, boot) == 0

    async def look(self, machine: str, key: str, offset: int) -> JobLook:
        """How a job goes, and what it printed from that byte on: the next piece. Raises GuestError."""
        folder = f"{_JOBS}/{key}"
        done = await self._sh(machine, _LOOK, folder, str(offset + 1), str(PIECE_BYTES), timeout=_CALL)
        word, _, more = done.output.partition("\n")
        word = word.strip()
        if word == "missing":
            return JobLook(False, None, b"")
        if word not in ("running", "gone") and not _NUMBER.fullmatch(word):
            raise GuestError("the guest answered with nonsense when asked how its job goes")
        piece = b""
        if more.strip() == "more":
            piece = await self.provider.copy_out(machine, f"{folder}/piece", max_bytes=PIECE_BYTES)
        return JobLook(True, None if word == "running" else 137 if word == "gone" else int(word), piece)

    async def kill(self, machine: str, key: str) -> None:
        """End a job with all its processes, and never start it later. Does nothing to one that has ended."""
        await self._sh(machine, _KILL, f"{_JOBS}/{key}", timeout=_CALL)

    async def forget(self, machine: str, key: str) -> None:
        """Remove what is left in the guest of a job that is over; it must never be started again."""
        await self._sh(machine, _FORGET, f"{_JOBS}/{key}", timeout=_CALL)

    async def _start(
        self, machine: str, folder: str, variables: Mapping[str, str], most_blocks: int, boot: str = ""
    ) -> int:
        """0, or OTHER_BOOT. Raises GuestError."""
        arguments = (folder, self.user, CODE_FOLDER, str(most_blocks), boot)
        started = await self._sh(machine, _START, *arguments, timeout=_CALL, environment=variables)
        if started.exit_code not in (0, OTHER_BOOT):
            raise GuestError(f"the guest could not start a job: {started.output.strip()[-500:]}")
        return started.exit_code

    async def _sh(
        self,
        machine: str,
        script: str,
        *arguments: str,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
    ) -> RunResult:
        argv = ["/bin/sh", "-c", script, "ravebot", *arguments]
        return await self.provider.run(machine, argv, timeout=timeout, environment=environment)


def _first_word(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    return words[0] if words else command


def end_of(output: str, most: int) -> str:
    """Whole lines from the end: half a token in the first would not be known as one when secrets are masked."""
    return output if len(output) <= most else output[-most:].partition("\n")[2]


def _whole_lines(output: str) -> str:
    """What the guest cut to so many bytes, without the line that the cut went through."""
    return output if len(output.encode(errors="replace")) < _MOST_OUTPUT else output.partition("\n")[2]
