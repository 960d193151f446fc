"""What is run inside a guest: putting the code in place, and jobs (setup, tests) that outlive us.

A job runs under a lock in the guest that is keyed by sandbox, commit and attempt: after a restart the same call adopts
the one still running, or reads how it ended. The scripts are constants; everything that varies goes in as arguments
or environment, never as shell text.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ravebot.errors import GuestError, GuestTimeout
from ravebot.providers.base import OUTPUT_LIMIT_BYTES, Provider, RunResult
from ravebot.sandboxes.model import CODE_FOLDER
from ravebot.sandboxes.view import in_words

_ARCHIVE = "/srv/.merge-request.tar.gz"
_CALL = timedelta(seconds=30)

# $1 archive, $2 user, $3 folder. Unpacked beside the old folder, then renamed; as the user, so that a hostile archive
# can do no more than that user could anyway.
_UNPACK = """
set -eu
old="$3.old" new="$3.new"
for job in /run/ravebot/jobs/*; do
  [ -f "$job/pid" ] && [ ! -f "$job/status" ] && kill -KILL -- "-$(cat "$job/pid")" 2>/dev/null || true
done
rm -rf "$old" "$new"
mkdir -p "$new"
chown "$2" "$new"
chmod 644 "$1"
su "$2" -s /bin/sh -c 'cd "$0" && tar -xzf "$1"' "$new" "$1"
set -- "$1" "$2" "$3" "$new"/*
[ $# -eq 4 ] && [ -d "$4" ] || { echo "the archive does not hold exactly one folder" >&2; exit 65; }
if [ -e "$3" ]; then mv "$3" "$old"; fi
mv "$4" "$3"
rm -rf "$old" "$new" "$1"
"""

# $1 job folder, $2 user, $3 code folder; RAVE_COMMAND is what to run. The output's first 8 MiB are kept, the rest is
# read and dropped, so that a command that prints without end neither blocks nor fills the disk.
_START = """
set -u
mkdir -p "${1%/*}" && chmod 700 "${1%/*}" || exit 1
mkdir "$1" 2>/dev/null || exit 0
setsid sh -c '
  echo $$ > "$1/pid"
  mkfifo "$1/pipe"
  { head -c 8388608; cat > /dev/null; } < "$1/pipe" > "$1/out" &
  drain=$!
  su "$2" -s /bin/sh -c "cd \\"\\$0\\" && eval \\"\\$RAVE_COMMAND\\"" "$3" < /dev/null > "$1/pipe" 2>&1
  code=$?
  for tick in 1 2 3 4 5; do kill -0 $drain 2>/dev/null || break; sleep 0.1; done
  echo $code > "$1/status.part" && mv "$1/status.part" "$1/status"
' job "$1" "$2" "$3" < /dev/null > /dev/null 2>&1 &
"""

# $1 job folder, $2 bytes. First line: the exit code, `running`, or `gone` when its process died unaccounted for.
_POLL = """
if [ -f "$1/status" ]; then cat "$1/status"
elif [ ! -f "$1/pid" ] || kill -0 "$(cat "$1/pid")" 2>/dev/null; then echo running
elif [ -f "$1/status" ]; then cat "$1/status"
else echo gone; fi
[ -f "$1/out" ] && tail -c "$2" "$1/out"
exit 0
"""

_KILL = """
[ -f "$1/pid" ] && kill -KILL -- "-$(cat "$1/pid")" 2>/dev/null
exit 0
"""

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
class GuestJobs:
    """Runs things in one provider's guests."""

    provider: Provider
    user: str

    async def put_code(self, machine: str, archive: Path, timeout: timedelta) -> None:
        """Replace the code folder by what the archive holds; jobs of older code are ended. Raises GuestError."""
        await self.provider.copy_in(machine, archive, _ARCHIVE)
        done = await self._sh(machine, _UNPACK, _ARCHIVE, self.user, CODE_FOLDER, timeout=timeout)
        if done.exit_code != 0:
            raise GuestError(f"the code could not be unpacked: {done.output.strip()[-500:] or 'no output'}")

    async def present(self, machine: str, commands: tuple[str, ...]) -> tuple[str, ...]:
        """Those commands whose script is there; one that names no path is always kept."""
        if not commands:
            return ()
        first = [_first_word(command) for command in commands]
        done = await self._sh(machine, _PRESENT, CODE_FOLDER, *first, timeout=_CALL)
        found = {int(line) for line in done.output.split() if line.isdigit()}
        return tuple(command for index, command in enumerate(commands) if index in found)

    async def run_job(
        self, machine: str, key: str, command: str, environment: Mapping[str, str], timeout: timedelta
    ) -> JobResult:
        """Run a command as the sandbox user, or adopt the one that an earlier call with this key started.

        Raises GuestTimeout after `timeout` of waiting; the job is ended then.
        """
        folder = f"/run/ravebot/jobs/{key}"
        variables = {**environment, "RAVE_COMMAND": command}
        started = await self._sh(machine, _START, folder, self.user, CODE_FOLDER, timeout=_CALL, environment=variables)
        if started.exit_code != 0:
            raise GuestError(f"the guest could not start a job: {started.output.strip()[-500:]}")
        output = ""
        pause = 0.05
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                while True:
                    polled = await self._sh(machine, _POLL, folder, str(OUTPUT_LIMIT_BYTES - 64), timeout=_CALL)
                    word, _, output = polled.output.partition("\n")
                    if word.strip().isdigit():
                        return JobResult(int(word), output)
                    if word.strip() == "gone":
                        return JobResult(137, output)
                    if word.strip() != "running":
                        raise GuestError("the guest answered with nonsense when asked how its job goes")
                    await asyncio.sleep(pause)
                    pause = min(1.0, pause * 1.5)
        except TimeoutError as error:
            await self._sh(machine, _KILL, folder, timeout=_CALL)
            raise GuestTimeout(f"not done after {in_words(timeout)}\n{output[-1500:]}") from error

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
