"""Keeps what set-up and tests give: how each command went, and the JUnit reports that they leave in the guest.

All is from guests: bounded, and masked before it is kept. Whatever a report is, no stage fails for it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import PurePosixPath

from ravebot.errors import GuestError, MachineNotFound, ProviderError
from ravebot.sandboxes.chain.guestjobs import GuestJobs
from ravebot.sandboxes.junit import read_report
from ravebot.sandboxes.masking import masked
from ravebot.sandboxes.model import Machine, Sandbox, Stage
from ravebot.sandboxes.results import LONGEST_NAME, LONGEST_TAIL, NO_CASES, CaseCounts, CommandResult
from ravebot.sandboxes.view import without_terminal_codes
from ravebot.store import results, sandboxes
from ravebot.store.database import Database, Transaction

MOST_FILES = 20
MOST_BYTES = 1024**2
_MOST_ANSWER = MOST_BYTES + MOST_FILES * 1024
_TIME = timedelta(seconds=30)
_MOST_PROBLEMS = 5
_HEADER = re.compile(rb"(file) ([0-9]{1,7}) ([^\n]{1,600})\n|(large|outside) ([^\n]{1,600})\n|(more)\n")
_LONGEST_HEADER = 700

# $RAVE_REPORTS: patterns, one a line. Prints each file that they name: `file SIZE NAME`, then its content. As the
# sandbox's user, in the code's folder; what a link leads out of it to is not read.
COLLECT = f"""exec 2>/dev/null
IFS='
'
root=$(pwd -P) files=0 left={MOST_BYTES}
for file in $RAVE_REPORTS; do
  case "$file" in *"$IFS"*) continue ;; esac
  [ -f "$file" ] || continue
  real=$(readlink -f -- "$file") || continue
  case "$real" in "$root"/*) ;; *) printf 'outside %s\\n' "$file"; continue ;; esac
  [ "$files" -lt {MOST_FILES} ] || {{ echo more; break; }}
  files=$((files + 1))
  size=$(wc -c < "$real") || continue
  [ "$size" -le "$left" ] || {{ printf 'large %s\\n' "$file"; continue; }}
  left=$((left - size))
  printf 'file %d %s\\n' "$size" "$file"
  head -c "$size" "$real"
done
exit 0"""

_THREADS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reports")


@dataclass(frozen=True)
class ReportFiles:
    """The reports that a guest gave, by name, and what is wrong with others."""

    files: tuple[tuple[str, bytes], ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """Stores results while a stage runs. `hidden`: a text without the secrets that ravebot itself knows."""

    database: Database
    jobs: GuestJobs
    hidden: Callable[[str], str]

    def mask(self, text: str) -> str:
        return masked(self.hidden(without_terminal_codes(text)))

    @asynccontextmanager
    async def of_command(self, sandbox: Sandbox, stage: Stage, position: int, what: str) -> AsyncIterator[None]:
        """Notes how a command went that the body runs. One that we were kept from watching goes on, as far as it is
        known."""
        command = CommandResult(stage, position, self.mask(what)[:LONGEST_NAME], None)
        await self._if_same(sandbox, lambda tx: results.begin(tx, sandbox, command))
        try:
            yield
        except GuestError as error:
            why, _, output = str(error).partition("\n")
            tail = f"{self.mask(why.removeprefix(f'`{what}` '))[:LONGEST_NAME]}\n{self.mask(output)[-LONGEST_TAIL:]}"
            await self._if_same(sandbox, lambda tx: results.end(tx, sandbox, stage, position, ok=False, tail=tail))
            raise
        await self._if_same(sandbox, lambda tx: results.end(tx, sandbox, stage, position, ok=True))

    async def collect(self, sandbox: Sandbox, machine: Machine, patterns: tuple[str, ...]) -> None:
        """Fetch and store what the reports say."""
        if not patterns:
            return
        key = f"{sandbox.id}-{sandbox.sha[:12]}-{sandbox.stage_attempt}-{sandbox.stage}-reports"
        variables = {"RAVE_REPORTS": "\n".join(patterns)}
        try:
            raw = await self.jobs.output_of(machine.name, key, COLLECT, variables, _MOST_ANSWER, _TIME)
        except MachineNotFound:
            raise
        except (GuestError, ProviderError):
            counts = CaseCounts(problems=("the reports could not be fetched from the machine",))
        else:
            counts = await asyncio.get_running_loop().run_in_executor(_THREADS, count, raw, self.mask)
        await self._if_same(sandbox, lambda tx: results.put_report(tx, sandbox, counts))

    async def _if_same(self, then: Sandbox, keep: Callable[[Transaction], None]) -> None:
        def step(tx: Transaction) -> None:
            now = sandboxes.get(tx, then.id)
            if now is not None and same(now, then):
                keep(tx)

        await self.database.write(step)


def same(now: Sandbox, then: Sandbox) -> bool:
    """Whether a stage's result still counts: no new code and no end came in between."""
    return (now.state, now.stage, now.stage_attempt, now.machine_id, now.sha) == (
        then.state,
        then.stage,
        then.stage_attempt,
        then.machine_id,
        then.sha,
    )


def count(raw: bytes, mask: Callable[[str], str] = masked) -> CaseCounts:
    """What all reports in the guest's answer say together, masked. May take seconds: use a thread."""
    found = unpack(raw, mask)
    counts = replace(NO_CASES, problems=found.problems)
    if not found.files and not found.problems:
        counts = CaseCounts(problems=("no file is where reports should be",))
    for name, content in found.files:
        one = read_report(content, mask)
        counts += replace(one, problems=tuple(f"`{name}` can't be used: {why}" for why in one.problems))
    more = len(counts.problems) - _MOST_PROBLEMS
    if more > 0:
        counts = replace(counts, problems=(*counts.problems[:_MOST_PROBLEMS], f"and {more} more files"))
    return counts


def unpack(raw: bytes, mask: Callable[[str], str] = masked) -> ReportFiles:
    """The files in a guest's answer. A file that two patterns name is one; what follows nonsense is not looked at."""
    files: dict[str, bytes] = {}

    def shown(name: bytes) -> str:
        return mask(_name(name))[:LONGEST_NAME]

    problems: list[str] = []
    at = 0
    while at < len(raw):
        header = _HEADER.match(raw, at, at + _LONGEST_HEADER)
        if header is None:
            problems.append("the machine's answer about the other reports makes no sense: they changed meanwhile")
            break
        at = header.end()
        if header[6]:
            problems.append(f"there are more than {MOST_FILES} reports: only the first {MOST_FILES} are read")
        elif header[4]:
            name = shown(header[5])
            what = "is too large: all reports together may have 1 MiB" if header[4] == b"large" else ""
            problems.append(f"`{name}` {what or 'is a link out of the code: put the report itself into its folder'}")
        elif (size := int(header[2])) > MOST_BYTES or at + size > len(raw):
            problems.append(f"`{shown(header[3])}` came incomplete: it changed while it was read")
            break
        else:
            files.setdefault(_name(header[3]), raw[at : at + size])
            at += size
    kept = tuple(files.items())[:MOST_FILES]
    return ReportFiles(tuple((mask(name)[:LONGEST_NAME], content) for name, content in kept), tuple(problems))


def _name(raw: bytes) -> str:
    return str(PurePosixPath(raw.decode("utf-8", "replace").replace("`", "'")))
