"""What is photographed: one sandbox from its start to its end, another whose set-up fails, and every answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.crashes import rows
from tests.support.gitlab import MergeRequest, User
from tests.support.pictures.album import Album
from tests.support.pictures.people import USERS
from tests.support.pictures.programs import PictureError
from tests.support.stage import Stage

SETTINGS = {
    # Hours become minutes, so that the warning and the end come while the pictures are taken.
    "pool": {"lifetime": "150s", "warn_before": ["50s"]},
    "matrix": {"users": USERS},
    "sandbox": {"smoke_tests": [{"http": "/"}]},
    "provider": {"accelerator": "auto"},
}
"""What ravebot is configured with, on top of the stage's own."""

_SLOW = """\
#!/bin/sh
echo "Building the page"
sleep {seconds}
echo "Built index.html, $(wc -c <index.html) bytes"
"""
_FAILING = """\
#!/bin/sh
for number in $(seq 60); do echo "step $number: resolving dependency number $number from the package index"; done
echo "ERROR: could not find package libfoo-dev" >&2
exit 3
"""
_HOSTILE = (
    "Fix <script>alert(1)</script> @room [x](https://evil.example) ![i](https://evil.example/i.png) `!rave stop 1`"
    " \u202egnp.exe www.evil.example"
)
_HOSTILE_OUTPUT = """\
#!/bin/sh
printf '\\033[31mred\\033[0m @room </code></pre><h1>big</h1> https://evil.example/x \\342\\200\\256evil ```\\n/close\\n'
exit 3
"""
_COMMANDS = {
    "help": "help",
    "help-extend": "help extend",
    "list": "list",
    "queue": "queue",
    "whoami": "whoami",
    "show-ready": "show !{ready}",
    "show-failed": "show !{failed}",
    "why-ready": "why !{ready}",
    "why-failed": "why !{failed}",
    "why-waiting": "why !{waiting}",
    "logs-ready": "logs !{ready}",
    "logs-failed": "logs !{failed}",
    "extend": "extend !{ready} 30m",
    "unknown-merge-request": "stop !99",
    "mistyped": "lsit",
    "mistyped-reference": "show everything",
}
"""What Alice says after the prefix, by the name of the pictures of it."""

_BOOT_SECONDS, _STEP_SECONDS, _ANSWER_SECONDS = 240, 240, 20
_QUIET_SECONDS = 2.0


@dataclass
class Story:
    """Tells it on a stage whose ravebot runs."""

    stage: Stage
    album: Album

    async def tell(self) -> None:
        """Raises PictureError or AssertionError when something does not happen."""
        _, failed = await self.life()
        await self.answers(failed)
        await self.hostile()

    async def life(self) -> tuple[MergeRequest, MergeRequest]:
        """The merge request whose sandbox lived, and the one whose sandbox failed."""
        stage, album = self.stage, self.album
        description = "People can log in. `.rave/setup` builds the page."
        first = self._open("Add a login page", "feature/login-page", stage.alice, _SLOW.format(seconds=12), description)
        await self._until(first, "state = 'starting' AND stage = 'setup'", _BOOT_SECONDS)
        await self._quiet(at_most=4)
        await album.moment("starting")
        await self._until(first, "state = 'ready'", _STEP_SECONDS)
        await self._quiet()
        await album.moment("ready", first)
        second = self._open("Upgrade libfoo", "bump/libfoo", stage.bob, _FAILING)
        stage.gitlab.push(first, {"feature.txt": "better\n", ".rave/setup": _SLOW.format(seconds=1)})
        await self._happened(first, "sandbox.updated")
        await self._until(second, "state = 'ended'", _BOOT_SECONDS)
        await self._quiet()
        await album.moment("failed", first, second)
        await self._happened(first, "sandbox.warned")
        await self._quiet()
        await album.moment("warned", first)
        await stage.matrix_alice.send(stage.room, f"!rave extend !{first.iid} 1m")
        await self._happened(first, "sandbox.extended")
        await self._quiet()
        await album.moment("extended", first)
        await self._happened(first, "sandbox.warned", times=2)
        stage.gitlab.comment(first, stage.alice, "/sandbox extend 1m")
        await self._happened(first, "sandbox.extended", times=2)
        await self._quiet()
        await album.moment("extended-again", first)
        await self._until(first, "state = 'ended'", _STEP_SECONDS)
        await self._quiet()
        await album.moment("ended", first)
        await self._thread()
        return first, second

    def _open(self, title: str, branch: str, author: User, setup: str, description: str = "") -> MergeRequest:
        stage = self.stage
        files = {".rave/setup": setup, "feature.txt": "new\n"}
        return stage.gitlab.open_merge_request(stage.project, author, title, branch, files, description=description)

    async def _thread(self) -> None:
        album = self.album
        folder = album.next_folder("thread")
        for label, client in album.clients.items():
            try:
                picture = await client.open_thread()
            except PictureError as error:  # the room's picture shows what is there instead
                print(f"{label}: {error}", flush=True)
                continue
            await album.keep(folder, "thread", f"thread-{label}", picture)
        await asyncio.gather(*(client.open(self.stage.room) for client in album.clients.values()))

    async def answers(self, failed: MergeRequest) -> None:
        stage = self.stage
        ready = self._open("Sort the list", "sort", stage.alice, _SLOW.format(seconds=1))
        other = self._open("Translate it", "translate", stage.bob, _SLOW.format(seconds=1))
        waiting = self._open("One more idea", "idea", stage.bob, _SLOW.format(seconds=1))
        for mr, author in ((ready, stage.alice), (other, stage.bob)):
            await self._until(mr, "state = 'ready'", _BOOT_SECONDS)
            stage.gitlab.comment(mr, author, "/sandbox extend 1h")
        await self._happened(other, "sandbox.extended")
        numbers = {"ready": ready.iid, "failed": failed.iid, "waiting": waiting.iid}
        folder = self.album.next_folder("answers")
        for name, typed in _COMMANDS.items():
            await self._quiet()
            await self._answer(folder, name, f"!rave {typed.format(**numbers)}")
        await self.album.write_words(folder)
        await self.album.page(folder, "answers", waiting)

    async def hostile(self) -> None:
        """A merge request that tries to link, mention, command and reorder text; then it is tried again."""
        stage, album = self.stage, self.album
        for other in [mr for mr in stage.gitlab.state.merge_requests if mr.state == "opened"]:
            stage.gitlab.close(other)
        await stage.matrix_alice.set_display_name("Alice </a><b>@room</b> https://evil.example \u202eecila")
        mr = self._open(_HOSTILE, "feature/@room/evil.example", stage.alice, _HOSTILE_OUTPUT)
        await self._until(mr, "state = 'ended'", _BOOT_SECONDS)
        await self._quiet()
        await album.moment("hostile", mr)
        folder = album.next_folder("hostile-answers")
        for verb in ("show", "why", "logs", "list", "retry"):
            await self._answer(folder, verb, f"!rave {verb} {'' if verb == 'list' else mr.iid}")
        await self._until(mr, "state = 'ended'", _BOOT_SECONDS)
        await self._quiet()
        await album.moment("retried", mr)

    async def _answer(self, folder: Path, name: str, typed: str) -> None:
        """What every client shows from the command on."""
        album, stage = self.album, self.stage
        before = await album.windows()
        seen = {message.event_id for message in await stage.matrix_ops.messages(stage.room)}
        await stage.matrix_alice.send(stage.room, typed)

        async def answered() -> bool:
            messages = await stage.matrix_ops.messages(stage.room)
            new = {message.event_id for message in messages if message.sender == stage.matrix_bot.user_id} - seen
            return bool(new)

        await self._wait(answered, _ANSWER_SECONDS, f"an answer to {typed}")
        await self._quiet()
        for label, after in (await album.windows()).items():
            picture = album.clients[label].added(before[label], after)
            await album.keep(folder, "answers", f"{name}-{label}", picture)

    async def _until(self, mr: MergeRequest, state: str, seconds: float) -> None:
        """Wait until the newest sandbox of that merge request is so, by ravebot's database."""
        sql = f"SELECT {state} AS so FROM sandboxes WHERE iid = ? ORDER BY id DESC LIMIT 1"

        def so() -> bool:
            found = rows(self.stage, sql, mr.iid)
            return bool(found and found[0]["so"])

        await self._wait(so, seconds, f"!{mr.iid}: {state}")

    async def _happened(self, mr: MergeRequest, kind: str, times: int = 1) -> None:
        """Wait until the event log has it so many times."""
        sql = "SELECT 1 FROM events WHERE iid = ? AND kind = ?"

        def seen() -> bool:
            return len(rows(self.stage, sql, mr.iid, kind)) >= times

        await self._wait(seen, _STEP_SECONDS, f"!{mr.iid}: {kind}")

    async def _wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        await self.stage.until(condition, seconds, f"this was waited for in vain: {what}")

    async def _quiet(self, at_most: float = 15) -> None:
        """Wait until nothing has been said or edited for a while, and nothing waits to be delivered."""
        deadline = time.monotonic() + at_most
        last, since = "", time.monotonic()
        while time.monotonic() < min(deadline, since + _QUIET_SECONDS):
            synced = await self.stage.matrix_ops.sync(at_most=1)
            newest = synced["rooms"]["join"][self.stage.room]["timeline"]["events"][-1]["event_id"]
            pending = rows(self.stage, "SELECT 1 FROM outbox WHERE delivered_at IS NULL")
            if newest != last or pending:
                last, since = newest, time.monotonic()
            await asyncio.sleep(0.2)
