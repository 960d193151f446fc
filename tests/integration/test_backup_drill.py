"""The drill: a bot at work is backed up, killed and restored elsewhere, with Synapse and a stand-in for GitLab.

Its libvirt is the test driver, whose machines don't boot and end with the process; a file says which are there.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.provider_libvirt import plain_image
from tests.support.crashes import rows
from tests.support.gitlab import GitLabServer, MergeRequest
from tests.support.stage import Bot, Stage
from tests.support.synapse import Message, Synapse

pytestmark = pytest.mark.integration

EMPTY = "<node><pool type='dir'><name>other</name><target><path>/nowhere</path></target></pool></node>"
UNKNOWN = "rave-from-after-the-backup"
WITH_UNKNOWN = """\
<node>
  <domain type='test'>
    <name>{name}</name>
    <metadata><rave:machine xmlns:rave="urn:ravebot:machine:1" instance="{instance_id}"/></metadata>
    <memory unit='MiB'>16</memory>
    <os><type>hvm</type></os>
  </domain>
</node>
"""


class Bootless(Stage):
    """A stage whose machines don't boot."""

    async def _set_up(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ravebot-drill-"))
        self.state = self.folder / "state"
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.image = plain_image(self.folder / "image.qcow2")
        self.libvirt = self.folder / "host.xml"
        self.libvirt.write_text(EMPTY)
        self._machine = {
            "gitlab": {"poll": "5s"},
            "sandbox": {"memory": "64MiB", "disk": "1GiB"},
            "provider": {"uri": f"test://{self.libvirt}", "network": "none"},
        }
        self.gitlab = await self._stack.enter_async_context(GitLabServer(0))
        self.synapse = await self._stack.enter_async_context(Synapse(self.folder / "synapse"))
        await self._people()
        self._configure()
        self.bot = Bot(self.folder / "config.yaml", self.folder / "ravebot.log")
        self._stack.push_async_callback(self.bot.kill)

    @property
    def state_dir(self) -> Path:
        return self.state

    def move_state(self) -> None:
        """Configure another state folder, which is not there yet."""
        self.state = self.folder / "restored"
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "state_dir": str(self.state)}))

    async def answers(self, to: str) -> list[Message]:
        """What the bot replied to that message."""
        return [one for one in await self.matrix_ops.messages(self.room) if to in str(one.content.get("m.relates_to"))]

    async def check(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.readiness())["checks"][name]
        return found

    def notes(self, mr: MergeRequest) -> list[str]:
        return [note.body for note in self.gitlab.notes(mr) if note.author is self.ravebot]


async def test_a_bot_restored_elsewhere_tells_nothing_twice_and_leaves_alone_what_it_does_not_know() -> None:
    async with Bootless() as stage:
        stage.bot.start()
        await stage.until(stage.is_ready, 40, "ravebot is not ready")
        instance_id = (stage.state_dir / "instance-id").read_text().strip()
        first = stage.open_merge_request("Before", "before")
        await stage.note_says(first, "Sandbox")
        asked = await stage.matrix_alice.send(stage.room, "!rave whoami")
        await stage.until(lambda: stage.answers(asked), 20, "no answer before the backup")
        backup = stage.folder / "backup.tar"
        done = await stage.bot.command("backup", str(backup))
        assert done.returncode == 0, done.stderr

        second = stage.open_merge_request("After", "after")
        await stage.note_says(second, "Sandbox")
        stopped = await stage.matrix_alice.send(stage.room, f"!rave stop {first.iid}")
        await stage.until(lambda: stage.answers(stopped), 20, "no answer after the backup")
        refused = await stage.bot.command("restore", str(backup), "--yes")
        assert (refused.returncode, "stop it first" in refused.stderr) == (1, True)
        await stage.bot.kill()
        lost = await stage.matrix_alice.send(stage.room, f"!rave stop {second.iid}")

        stage.move_state()
        stage.libvirt.write_text(WITH_UNKNOWN.format(name=UNKNOWN, instance_id=instance_id))
        done = await stage.bot.command("restore", str(backup), "--yes")
        assert done.returncode == 0, done.stderr
        told = len(await stage.matrix_ops.messages(stage.room))
        stage.bot.start()

        async def blocked() -> bool:
            try:
                return UNKNOWN in (await stage.check("provider"))["detail"]
            except OSError:  # it does not listen yet
                return False

        await stage.until(blocked, 30, "it does not say what it does not know")

        def outcomes() -> dict[str, str]:
            found = rows(stage, "SELECT delivery_key, outcome FROM inbox WHERE source = 'matrix'")
            return {row["delivery_key"]: row["outcome"] or "" for row in found}

        await stage.until(lambda: lost in outcomes(), 20, "it has not read the room")
        for command in (stopped, lost):
            assert "said before the state was restored" in outcomes()[command]
        news = (await stage.matrix_ops.messages(stage.room))[told:]
        cards_anew = [one.body for one in news if "m.in_reply_to" not in str(one.content)]
        assert len(news) == len(cards_anew)
        assert all(f"!{second.iid}" in body for body in cards_anew)  # its card of before is in no database
        states = {row["iid"]: row["state"] for row in rows(stage, "SELECT iid, state FROM sandboxes")}
        assert states[first.iid] in ("queued", "starting")
        assert not rows(stage, "SELECT 1 FROM events WHERE kind = 'orphan.removed'")

        adopted = await stage.bot.command("cleanup", "--adopt", "--force")
        assert (adopted.returncode, UNKNOWN in adopted.stdout) == (0, True), adopted.stderr
        await stage.until(stage.is_ready, 30, "it does not go on")
        again = await stage.matrix_alice.send(stage.room, "!rave whoami")
        await stage.until(lambda: stage.answers(again), 20, "no answer after the restore")
        for command in (asked, stopped):
            assert len(await stage.answers(command)) == 1
        assert await stage.answers(lost) == []
        for mr in (first, second):
            assert len(stage.notes(mr)) == 1
        assert len(await stage.cards(first)) == 1
        audit = await stage.bot.command("audit", "--verify")
        assert audit.returncode == 0, audit.stdout + audit.stderr
