"""The story that the demo tells: a merge request is opened, becomes a machine, is used, warned of, extended, ended.

Its machine boots an image that a job of its pipeline left (`pipeline`). Before its end a coding agent works in it
(`agent`).
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import libvirt

from tests.support.demo import agent, environment, sample, times
from tests.support.demo.doors import Doors, fingerprints, hand_over
from tests.support.demo.pipeline import Pipeline
from tests.support.demo.play import page, playground
from tests.support.demo.screen import Screen
from tests.support.demo.watch import DemoError, Said, Watch, fact
from tests.support.gitlab import MergeRequest
from tests.support.stage import Guest, Stage

SETTINGS = {
    # Hours become ten minutes, and the warning comes while you look: ten seconds after the sandbox is ready. The rest
    # is for machines on which it takes long to log in.
    "pool": {"lifetime": "10m", "warn_before": ["590s"]},
    "provider": {"accelerator": "auto", "pipeline_images": {}},
    "limits": {"memory": sample.MOST_MEMORY.replace(" ", "")},
    # So that a stop on GitLab's page is found sooner than in a minute; and jobs of pipelines may ask.
    "gitlab": {"poll": "5s", "ci": {}},
    "agents": [agent.CONFIGURED],
}
"""What the demo's ravebot is configured with, on top of the stage's own."""

_BOOT_SECONDS = 900  # without KVM, on a host that others use, too
_WARNING_SECONDS = 90


@dataclass
class Story:
    """Tells it on a stage that is set. Raises DemoError at the first thing that does not happen."""

    stage: Stage
    screen: Screen
    watch: Watch
    keep: bool = False
    through: bool = False  # told to its end

    async def tell(self) -> None:
        """From the first webhook to the last figure; with `keep`, until it is cancelled."""
        tasks = [asyncio.create_task(one) for one in (self._chapters(), self.watch.room(), self.watch.merge_request())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _chapters(self) -> None:
        mr = await self._opened()
        pipeline = Pipeline(self.stage, self.screen, self.watch, mr) if self.stage.guest is Guest.DEBIAN else None
        doors = await self._ready(pipeline)
        await self._used(mr, doors)
        await self._extended(mr)
        if self.stage.guest is Guest.DEBIAN:
            await agent.Chapter(self.stage, self.screen, self.watch, mr, doors).tell()
        asked = None if self.keep else await self._ended(mr, doors)
        await self._times(asked)
        self.through = True
        if self.keep:
            async with playground(self.stage, mr, self.screen):
                await asyncio.Event().wait()

    async def _opened(self) -> MergeRequest:
        stage, screen = self.stage, self.screen
        screen.chapter("1 · Alice opens a merge request")
        self.opened = datetime.now(UTC)
        files = sample.change(with_image=stage.guest is Guest.DEBIAN)
        mr = stage.gitlab.open_merge_request(
            stage.project, stage.alice, sample.TITLE, sample.BRANCH, files, description=sample.DESCRIPTION
        )
        self.watch.mr = mr
        screen.said("MR", "alice", f"opens group/app!{mr.iid}: {mr.title}\n{page(stage, mr)}")
        return mr

    async def _ready(self, pipeline: Pipeline | None) -> Doors:
        watch, screen = self.watch, self.screen
        await watch.until("a card in the room", lambda: watch.cards)
        await watch.until("a note on the merge request", lambda: watch.note)
        review = await pipeline.build() if pipeline else None
        async with screen.waiting("A virtual machine boots, and gets the branch's code"):
            if pipeline and review:
                await pipeline.review(review)
            await watch.until(
                "a card and a note that say ready",
                lambda: (
                    (watch.card_state().startswith("Ready") and "ready" in watch.note_headline())
                    or self._given_up(watch.card_is_over())
                ),
                _BOOT_SECONDS,
            )
        self.ready_seen = datetime.now(UTC)
        screen.message("GitLab: the status note of the merge request", watch.note_rows, "red")
        screen.message("Matrix: the card in #dev", watch.cards[-1].rows, "magenta")
        self._asked_for()
        await environment.Page(self.stage, screen, watch).shows()
        if pipeline and review:
            await pipeline.shown(review)
        return Doors.announced_by(watch.note_rows)

    def _asked_for(self) -> None:
        """The branch's `.rave.yml` is at work, and the operator's limits win."""
        rows = self.watch.note_rows
        if fact(rows, "Pages") != sample.LINK:
            raise DemoError(f"the note should link “{sample.LINK}”, as .rave.yml says: {fact(rows, 'Pages')}")
        if "tests done" not in fact(rows, "Set-up and tests"):
            raise DemoError(f"the smoke test of .rave.yml did not run: {fact(rows, 'Set-up and tests')}")
        if not any(f"it gets {sample.MOST_MEMORY}, the most here" in row.text for row in rows):
            raise DemoError("the note should say that .rave.yml asks for more memory than the operator's limits give")
        self.screen.seen(
            "the branch's .rave.yml is at work: a smoke test, a page, and memory up to the operator's limit"
        )

    def _given_up(self, ended: bool) -> bool:
        if ended:
            raise DemoError(f"the sandbox ended before it was ready: {self.watch.card_state()}")
        return False

    async def _used(self, mr: MergeRequest, doors: Doors) -> None:
        stage, screen = self.stage, self.screen
        screen.chapter("2 · Alice goes in, with the SSH key that she has on GitLab")
        key, known = stage.keys["alice"], stage.folder / "known_hosts"
        script = 'echo "I am $(whoami) on Linux $(uname -r), and here is the branch\'s code:"; ls /srv/merge-request'
        done = await doors.log_in(key, known, script)
        if done.returncode != 0 or "page.html" not in done.stdout:
            raise DemoError(f"Alice's key does not let her in: {done.stdout}{done.stderr}")
        screen.said("SSH", "alice", done.stdout.strip())
        screen.seen("Alice's key opens the door, and she finds her branch's code inside")
        if fingerprints(known) != [doors.fingerprint]:
            raise DemoError(f"the host key is {fingerprints(known)}, announced was {doors.fingerprint}")
        screen.seen(f"the host key is the announced one, {doors.fingerprint}")
        stranger = await doors.log_in(stage.keys["mallory"], known, "true")
        if stranger.returncode == 0 or "Permission denied" not in stranger.stderr:
            raise DemoError(f"another key should be refused, but: {stranger.stderr or 'it was let in'}")
        screen.seen("Mallory's key does not open it")
        page = await doors.fetch()
        if mr.sha not in page:
            raise DemoError(f"{doors.web} does not show commit {mr.sha}: {page[:200]}")
        screen.seen(f"{doors.web} answers with a page of commit {mr.sha[:12]}:")
        screen.say(f"  {page.splitlines()[0]}", "green")
        hand_over(key, known)
        screen.say(
            "Try it from another terminal of this host, as long as the sandbox lives (the key is throwaway, too):"
        )
        screen.copyable(shlex.join(doors.command(key, known)))

    async def _extended(self, mr: MergeRequest) -> None:
        stage, watch, screen = self.stage, self.watch, self.screen
        screen.chapter("3 · Time: extended from the room, warned, extended from the merge request")
        before = await self._expires()
        await stage.matrix_alice.send(stage.room, f"!rave extend !{mr.iid} 10s")
        await watch.until("an answer in the room", lambda: self._from_bot(lambda said: "(10 s more)" in said.body))
        async with screen.waiting("The end comes nearer, and with it a warning"):
            alice = stage.matrix_alice.user_id
            await watch.until(
                "a warning in the room that mentions Alice",
                lambda: watch.was_said(lambda said: said.mentions == (alice,) and " ends at " in said.body),
                _WARNING_SECONDS,
            )
            await watch.until("a warning on the merge request", lambda: self._comment_of_bot(mr, "@alice: "))
        screen.seen("warned, in both places, and only Alice is mentioned")
        note, card = watch.note_headline(), watch.card_state()
        await self._command(mr, "/sandbox extend 1h")
        await watch.until("the note's new end", lambda: watch.note_headline() != note)
        await watch.until("the card's new end", lambda: watch.card_state() != card)
        gained = await self._expires() - before
        if abs(gained.total_seconds() - 3610) > 1:
            raise DemoError(f"the sandbox should live 1 h and 10 s longer, but it is {gained}")
        screen.seen("it lives an hour longer, and note and card say so")

    async def _ended(self, mr: MergeRequest, doors: Doors) -> datetime:
        stage, watch, screen = self.stage, self.watch, self.screen
        screen.chapter("The end: Alice presses Stop on GitLab's environments page")
        asked = datetime.now(UTC)
        async with screen.waiting("The machine shuts down"):
            await environment.Page(stage, screen, watch).stop()
            await watch.until("a card that says ended", lambda: watch.card_state().startswith("Ended"), 180)
            await watch.until("a note that says ended", lambda: "ended" in watch.note_headline())
        screen.message("GitLab: the status note, at the end", watch.note_rows, "red")
        await environment.Page(stage, screen, watch).is_gone()
        if left := await asyncio.to_thread(machines, stage):
            raise DemoError(f"the sandbox ended, but libvirt still has {', '.join(left)}")
        if not await doors.closed():
            raise DemoError(f"the sandbox ended, but port {doors.port} still answers")
        screen.seen("the machine is gone, and its ports are closed")
        done = await stage.bot.command("audit", "--verify", "--json")
        if done.returncode != 0 or json.loads(done.stdout)["broken_at"] is not None:
            raise DemoError(f"the event log is not intact: {done.stdout[-500:]}{done.stderr[-500:]}")
        rows = json.loads(done.stdout)["checked_rows"]
        screen.seen(f"every step is in the event log: {rows} rows, each with the hash of the one before")
        return asked

    async def _times(self, asked: datetime | None) -> None:
        self.screen.chapter("Where the time went")
        events = times.read((await self.stage.bot.command("audit", "--json")).stdout)
        card_seen = self.watch.first_card_at
        assert card_seen
        rows = times.start_rows(events, self.opened, card_seen, self.ready_seen)
        if asked:
            rows.append(times.stop_row(events, asked))
        self.screen.table(("step", "took", "done after"), rows)

    async def _command(self, mr: MergeRequest, text: str) -> None:
        """Alice comments; ravebot acknowledges it with an emoji."""
        gitlab = self.stage.gitlab
        comment = gitlab.comment(mr, self.stage.alice, text)
        assert comment
        await self.watch.until(f"an acknowledgement of {text}", lambda: "white_check_mark" in gitlab.emoji(comment))

    def _from_bot(self, fits: Callable[[Said], bool]) -> bool:
        said = [message for message in self.watch.messages.values() if message.sender == "ravebot"]
        return any(fits(message) for message in said if not message.card and not message.thread)

    def _comment_of_bot(self, mr: MergeRequest, text: str) -> bool:
        gitlab = self.stage.gitlab
        return any(text in note.body for note in gitlab.notes(mr) if note.author is self.stage.ravebot)

    async def _expires(self) -> datetime:
        listed = json.loads((await self.stage.bot.command("list", "--json")).stdout)
        return datetime.fromisoformat(listed[0]["expires_at"])


def machines(stage: Stage) -> list[str]:
    """The machines of that stage's ravebot that libvirt knows."""
    connection = libvirt.open("qemu:///system")
    try:
        names = [domain.name() for domain in connection.listAllDomains()]
    finally:
        connection.close()
    return [name for name in names if name.startswith(f"rave-t{stage.mark}-")]
