"""From a merge request's opening to its announcement, stage by stage, without the time of the machine's boot, and from
a push to the page that shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from benchmarks.figures import Figure, median
from benchmarks.scene import told_everything
from tests.support.crashes import rows
from tests.support.gitlab import MergeRequest, Note
from tests.support.stage import Guest, Stage

RUNS = 5
AIM_SECONDS = 1.0

STEPS = (
    ("opened to webhook kept", "inbox"),
    ("to queued", "sandbox.queued"),
    ("to a place", "sandbox.starting"),
    ("to the machine's making", "created"),
    ("to its start", "started"),
    ("the machine boots", "machine.booted"),
    ("host keys", "stage.done host keys"),
    ("authorize", "stage.done authorize"),
    ("copy", "stage.done copy"),
    ("setup (none) to open ports", "stage.done open ports"),
    ("to ready", "sandbox.ready"),
    ("to the card's edit sent", "card"),
)


@dataclass(frozen=True)
class Run:
    """When each of STEPS was done, in seconds since the opening."""

    at: dict[str, float]
    pushed_to_page: float

    @property
    def boot(self) -> float:
        return self.at["machine.booted"] - self.at["started"]

    @property
    def whole(self) -> float:
        return self.at["card"]

    def step(self, index: int) -> float:
        return self.at[STEPS[index][1]] - (self.at[STEPS[index - 1][1]] if index else 0.0)


async def measure(guests: Iterable[Guest] = (Guest.TINY,)) -> tuple[Figure, ...]:
    """One guest after the other, and never two machines at once."""
    return tuple([figure for guest in guests for figure in await _measure(guest)])


async def _measure(guest: Guest) -> tuple[Figure, ...]:
    """The first run is shown separately: no cache is warm."""
    runs: list[Run] = []
    async with Stage({"gitlab": {"poll": "1h"}, "pool": {"shutdown_grace": "30s"}}, guest=guest) as stage:
        await stage.start()
        for number in range(RUNS):
            began = datetime.now(UTC)
            mr = stage.open_merge_request(f"Cold start {number}", f"branch-{number}")
            note = await stage.ready(mr, 180)
            await told_everything(stage)
            at = _steps(stage, mr, began)  # before the push, which begins some of them anew
            runs.append(Run(at, await _push(stage, mr, note)))
            await told_everything(stage)
            stage.gitlab.merge(mr)
            await stage.note_says(mr, "Sandbox ended", 120)
    added = [run.whole - run.boot for run in runs]
    breakdown = [
        Figure(f"  {name}", f"{median([run.step(index) for run in runs]):.2f} s")
        for index, (name, _) in enumerate(STEPS)
    ]
    return (
        Figure(
            f"opened to announced, {guest} guest",
            f"{median([run.whole for run in runs]):.2f} s",
            note=f"median of {RUNS}",
        ),
        Figure("of which the boot", f"{median([run.boot for run in runs]):.2f} s", note="start to the agent's answer"),
        Figure(
            "what ravebot adds",
            f"{median(added):.2f} s",
            f"< {AIM_SECONDS:.0f} s",
            median(added) < AIM_SECONDS,
            f"each run: {', '.join(f'{one:.2f}' for one in added)}",
        ),
        Figure("pushed to the page's new text", f"{median([run.pushed_to_page for run in runs]):.2f} s"),
        *breakdown,
    )


async def _push(stage: Stage, mr: MergeRequest, note: Note) -> float:
    """Seconds from a push until the sandbox's page shows it."""
    began, url = time.monotonic(), stage.web_url(note)
    stage.gitlab.push(mr, {"index.html": "pushed"})

    async def shown() -> bool:
        with suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                return await answer.text() == "pushed"
        return False

    await stage.until(shown, 120, "the page does not show what was pushed")
    return time.monotonic() - began


def _steps(stage: Stage, mr: MergeRequest, began: datetime) -> dict[str, float]:
    """When each of STEPS was done, in seconds since the opening."""
    start_us = began.timestamp() * 1e6
    sandbox = rows(stage, "SELECT * FROM sandboxes WHERE iid = ?", mr.iid)[0]
    machine = rows(stage, "SELECT * FROM machines WHERE id = ?", sandbox["machine_id"])[0]
    inbox = rows(stage, "SELECT received_at FROM inbox WHERE lane LIKE ? ORDER BY id LIMIT 1", f"%!{mr.iid}")[0]
    at = {"inbox": inbox["received_at"], "created": machine["created_at"]}
    for event in rows(
        stage, "SELECT kind, at, json_extract(data, '$.stage') AS stage FROM events WHERE sandbox_id = ?", sandbox["id"]
    ):
        at[f"{event['kind']} {event['stage']}" if event["stage"] else event["kind"]] = event["at"]
    card = rows(
        stage,
        "SELECT MIN(delivered_at) AS at FROM outbox"
        " WHERE sandbox_id = ? AND kind IN ('card', 'call') AND attempted_at >= ?",
        sandbox["id"],
        at["sandbox.ready"],
    )[0]
    at |= {"card": card["at"], "started": _started(stage, machine["name"])}
    return {key: (value - start_us) / 1e6 for key, value in at.items()}


def _started(stage: Stage, machine: str) -> float:
    """When ravebot asked libvirt to start the machine, from ravebot's log, in microseconds since 1970."""
    for line in stage.bot.log.read_text(errors="replace").splitlines():
        if '"machine starts"' in line and machine in line:
            return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp() * 1e6
    raise AssertionError(f"{machine} was never started")
