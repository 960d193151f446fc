"""Everything that people may be shown of one sandbox; the card and the status note render it.

All texts from people or guests (title, branch, stage tails, details) are raw here: the renderers escape them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.sandboxes.model import MergeRequest, Sandbox, SandboxState, StageResult
from ravebot.sandboxes.results import CaseCounts, CommandResult
from ravebot.sshkeys import fingerprint

_TERMINAL_CODE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_PATH = re.compile(r"(?<![\w.<])/[\w.+@-]+(?:/[\w.+@-]*)*")


def without_paths(why: str) -> str:
    """A provider's error for everybody: where things lie on the host is for its operators alone."""
    return _PATH.sub("…", why)


def without_terminal_codes(output: str) -> str:
    """A program's output without the codes for colours, titles and the cursor."""
    return _TERMINAL_CODE.sub("", output)


@dataclass(frozen=True)
class HistoryLine:
    """One event as a person reads it."""

    at: datetime
    text: str


@dataclass(frozen=True)
class Access:
    """How to get in, set while the ports are open."""

    host: str
    user: str
    ssh_port: int
    web_port: int | None  # None while only the SSH port is open
    web_scheme: str | None
    host_key_alias: str
    host_keys: tuple[str, ...]

    @property
    def ssh_command(self) -> str:
        """For a shell; the alias avoids false host key warnings when a port is used again."""
        return f"ssh -o HostKeyAlias={self.host_key_alias} -p {self.ssh_port} {self.user}@{self.host}"

    @property
    def web_url(self) -> str | None:
        """None where nothing answered on the guest's web port."""
        if self.web_scheme is None or self.web_port is None:
            return None
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.web_scheme}://{host}:{self.web_port}/"

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(fingerprint(key) for key in self.host_keys)


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the machine of a sandbox: it is paused, or it does not answer."""

    paused: bool
    since: datetime

    @property
    def sign(self) -> str:
        return "⏸" if self.paused else "🟠"

    @property
    def words(self) -> str:
        """The words that follow "ready, but"."""
        what = "has been paused" if self.paused else "has not answered"
        return f"its machine {what} since {self.since:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class Summary:
    """The summary of an ended sandbox."""

    lived: timedelta | None  # from ready to end; None when it never was ready
    cpu_seconds: float
    memory_peak_bytes: int


@dataclass(frozen=True)
class FileNews:
    """What is to be said of the project's `.rave.yml`: `remarks` of what it asked for and did not get; `troubles`, for
    which it does not count. They repeat words of the file."""

    remarks: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()


NO_NEWS = FileNews()


@dataclass(frozen=True)
class SandboxView:
    """One sandbox, ready to be rendered."""

    sandbox: Sandbox
    mr: MergeRequest
    now: datetime
    access: Access | None = None
    queue_position: int | None = None  # 1 is next
    queue_wait: timedelta | None = None  # an estimate; None when there is none
    queue_reason: str = ""  # why it waits, when it is not only its turn
    stages: tuple[StageResult, ...] = ()  # of the latest run of the chain
    history: tuple[HistoryLine, ...] = ()  # oldest first; empty where it was not asked for
    summary: Summary | None = None
    notice: str = ""  # e.g. "the last update failed: …"
    trouble: Trouble | None = None  # with its machine; None while that is well
    links: tuple[tuple[str, str], ...] = ()  # names of pages, and their paths behind the web address
    file: FileNews = NO_NEWS
    model_tokens: int = 0  # that agents used in it, over its life
    environment_url: str | None = None  # of its environment's page in GitLab
    image_job: tuple[str, str] | None = None  # the pipeline's job that builds its image: name, and address of its page
    hint: str = ""  # what to do about something that GitLab refuses
    commands: tuple[CommandResult, ...] = ()  # of set-up and tests, of the latest run of the chain
    cases: CaseCounts | None = None  # what its JUnit reports say

    @property
    def live(self) -> bool:
        return self.sandbox.state is not SandboxState.ENDED


def in_words(span: timedelta) -> str:
    """A duration as people say it, rounded: `25 s`, `7 min`, `1 h 40 min`, `2 d 3 h`."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def in_bytes(count: int) -> str:
    """A size as people say it: `1.5 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
