"""What the merge request shows, through the stand-in: one status note, warnings and answers once, whatever crashes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from ravebot.errors import Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.notify.gitlab import GitLabSender
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import MergeRequestRef, SandboxId, SandboxState
from ravebot.store import merge_requests, outbox, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.targets import GITLAB, Kind, NoteLane
from tests.integration.test_intake_gitlab import Desk, desk
from tests.support.gitlab import DEVELOPER, MergeRequest, Note
from tests.support.records import a_database_of_version_1

pytestmark = pytest.mark.integration
__all__ = ["desk"]  # the fixture, from where it is made


class Post:
    """Delivers the outbox by hand, a row at a time, so that a test can stop between any two steps."""

    def __init__(self, desk: Desk, mr: MergeRequest) -> None:
        self.desk, self.mr = desk, mr
        self.ref = MergeRequestRef(mr.project.id, mr.iid)
        self.restart()

    def restart(self) -> None:
        """As a new process begins."""
        self.sender = GitLabSender(self.desk.world.database, self.desk.world.views, self.desk.gitlab)

    async def send(self, *, crash: bool = False, again: bool = False) -> str | None:
        """Send the oldest row, or the one that writes the note `again` after an outage; what came of it.

        With `crash` nothing is noted after it was sent.
        """
        world, lane = self.desk.world, NoteLane(self.ref, again).text
        message = await world.read(lambda tx: outbox.head(tx, GITLAB, lane))
        if message is None:
            return None
        await world.write(lambda tx: outbox.attempt(tx, message.id))
        facts = await world.read(lambda tx: self.sender.look(tx, message))
        sent = await self.sender.send(message, facts)
        if crash:
            self.restart()
            return sent.result
        await world.write(partial(outbox.delivered, message_id=message.id, result=sent.result))
        if sent.keep:
            await world.write(sent.keep)
        return sent.result

    async def drain(self) -> None:
        while await self.send() is not None:
            pass

    async def prepare(self, kind: Kind) -> int:
        """Have a row of that kind as the next; returns how many notes there are before it."""
        if kind is not Kind.NOTE:
            await self.drain()
        if kind is Kind.WARNING:
            await self.warn(600)
        elif kind is Kind.REPLY:
            await self.tell(kind, text="refused: you may not")
        return len(self.notes())

    async def tell(self, kind: Kind, **body: object) -> None:
        add = partial(outbox.add, lane=NoteLane(self.ref), kind=kind, body=body)
        await self.desk.world.write(partial(add, sandbox_id=SandboxId(1)))

    async def warn(self, *warned: int) -> None:
        """The sandbox is ready, and its owner is to be told that it ends in ten minutes."""
        world = self.desk.world

        def write(tx: Transaction) -> None:
            sandbox = sandboxes.get(tx, SandboxId(1))
            assert sandbox
            ends = tx.now + timedelta(minutes=10)
            ready = replace(sandbox, state=SandboxState.READY, expires_at=ends, warned=frozenset(warned))
            sandboxes.save(tx, ready)

        await world.write(write)
        await self.tell(Kind.WARNING, threshold=600)

    async def refresh(self) -> None:
        await self.desk.world.write(lambda tx: self.desk.world.lifecycle.journal.refresh_note(tx, self.ref))

    def notes(self) -> list[Note]:
        return [note for note in self.desk.server.notes(self.mr) if note.author is self.desk.bot]


@pytest.fixture
async def post(desk: Desk) -> Post:
    """The post of a merge request whose sandbox is queued, its note not yet posted."""
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    return Post(desk, mr)


async def test_the_status_note_is_posted_once_and_then_edited(post: Post) -> None:
    await post.drain()
    [note] = post.notes()
    assert "Sandbox waits in the queue" in note.body
    post.desk.server.merge(post.mr)
    await post.desk.tell(post.mr, "merge")
    await post.desk.work()
    await post.drain()
    [edited] = post.notes()
    assert edited is note
    assert "Sandbox ended: the merge request was merged" in note.body


async def test_a_crash_between_the_posting_and_its_note_leaves_one_note(post: Post) -> None:
    await post.send(crash=True)
    assert len(post.notes()) == 1
    await post.drain()
    [note] = post.notes()
    known = await post.desk.world.read(lambda tx: merge_requests.get(tx, post.ref))
    assert known
    assert known.note_id == note.id


async def test_an_answer_that_was_lost_leaves_one_note(post: Post) -> None:
    post.desk.server.fail(502, 1, method="POST", path="/notes$", after=True)
    with pytest.raises(Unavailable):
        await post.send()
    await post.drain()
    assert len(post.notes()) == 1


async def test_a_note_that_somebody_deleted_is_posted_anew(post: Post) -> None:
    await post.drain()
    [note] = post.notes()
    post.desk.server.delete_note(post.mr, note)
    await post.refresh()
    await post.drain()
    [again] = post.notes()
    assert again.id != note.id
    await post.refresh()
    await post.drain()
    assert post.notes() == [again]


async def test_a_note_of_the_user_whose_token_we_had_before_is_left_and_another_posted(post: Post) -> None:
    await post.drain()
    desk, (old,) = post.desk, post.notes()
    successor = desk.server.add_user("ravebot2")
    desk.server.set_role(desk.project, successor, DEVELOPER)
    gitlab = GitLab(desk.server.url, desk.server.token_for(successor), desk.world.clock, 2)
    try:
        post.sender = GitLabSender(desk.world.database, desk.world.views, gitlab)
        for _ in range(2):
            await post.refresh()
            await post.drain()
    finally:
        await gitlab.close()
    fresh = [note for note in desk.server.notes(post.mr) if note.author is successor]
    assert len(fresh) == 1
    assert post.notes() == [old]


@pytest.mark.parametrize("kind", [Kind.NOTE, Kind.REPLY])
async def test_gitlab_that_is_only_slow_makes_no_second_note(post: Post, kind: Kind) -> None:
    before = await post.prepare(kind)
    desk = post.desk
    gitlab = GitLab(desk.server.url, desk.server.token_for(desk.bot), desk.world.clock, 1)
    post.sender = GitLabSender(desk.world.database, desk.world.views, gitlab)
    desk.server.hold(1, method="POST", path="/notes$")
    try:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await post.send()
        await desk.server.let_go()
        await post.drain()
    finally:
        await gitlab.close()
    assert len(post.notes()) == before + 1


@pytest.mark.parametrize("kind", [Kind.NOTE, Kind.REPLY, Kind.WARNING])
async def test_what_a_killed_process_left_gitlab_at_work_on_is_not_posted_again_by_the_next(
    post: Post, kind: Kind
) -> None:
    before = await post.prepare(kind)
    desk = post.desk
    desk.server.hold(1, method="POST", path="/notes$")
    killed = asyncio.create_task(post.send())
    async with asyncio.timeout(60):
        while "POST" not in desk.server.under_way:
            await asyncio.sleep(0.005)
    killed.cancel()
    await asyncio.wait({killed})
    await desk.world.database.__aexit__(None, None, None)
    async with Database(desk.world.database.path, desk.world.clock) as database:
        desk.world = replace(desk.world, database=database)
        post.restart()
        for _ in range(3):
            with pytest.raises(Unavailable):
                await post.send()
        assert desk.server.under_way == ["POST"]
        await desk.server.let_go()
        await post.drain()
    assert len(post.notes()) == before + 1


async def test_a_note_that_got_lost_on_its_way_is_posted_when_gitlab_must_be_done_with_it(post: Post) -> None:
    post.desk.server.hang_up(1, method="POST", path="/notes$")
    for seconds in (0, 20, 20, 39):
        post.desk.world.pass_by(seconds=seconds)
        with pytest.raises(Unavailable):
            await post.send()
    assert post.notes() == []
    post.desk.world.pass_by(seconds=1)
    await post.send()
    assert len(post.notes()) == 1


async def test_a_gitlab_that_may_take_longer_for_a_request_is_given_that_time(post: Post) -> None:
    config = post.desk.world.config
    patient = config.model_copy(
        update={"gitlab": config.gitlab.model_copy(update={"request_limit": timedelta(minutes=5)})}
    )
    post.sender = GitLabSender(post.desk.world.database, Views(patient), post.desk.gitlab)
    post.desk.server.hang_up(1, method="POST", path="/notes$")
    for seconds in (0, 319):
        post.desk.world.pass_by(seconds=seconds)
        with pytest.raises(Unavailable):
            await post.send()
    post.desk.world.pass_by(seconds=1)
    await post.send()
    assert len(post.notes()) == 1


async def test_a_clock_that_was_set_back_makes_a_lost_note_wait_no_longer_than_before(post: Post) -> None:
    post.desk.server.hang_up(1, method="POST", path="/notes$")
    for span in (timedelta(), timedelta(hours=-1), timedelta(seconds=79)):
        post.desk.world.clock.advance(span)
        with pytest.raises(Unavailable):
            await post.send()
    assert post.notes() == []
    post.desk.world.pass_by(seconds=1)
    await post.send()
    assert len(post.notes()) == 1


@pytest.mark.parametrize("status", [200, 408, 499, 502, 503, 504, 520, 524])
async def test_a_proxy_that_gave_up_on_gitlab_is_no_answer_of_gitlabs_also_when_it_says_when_to_come_back(
    post: Post, status: int
) -> None:
    post.desk.server.fail(status, 1, method="POST", path="/notes$", retry_after=1)
    for seconds in (0, 79):
        post.desk.world.pass_by(seconds=seconds)
        with pytest.raises(Unavailable):
            await post.send()
    assert post.notes() == []
    post.desk.world.pass_by(seconds=1)
    await post.send()
    assert len(post.notes()) == 1


async def test_an_edit_that_got_no_answer_does_not_undo_a_newer_one(post: Post) -> None:
    await post.drain()
    desk, (note,) = post.desk, post.notes()
    gitlab = GitLab(desk.server.url, desk.server.token_for(desk.bot), desk.world.clock, 1)
    post.sender = GitLabSender(desk.world.database, desk.world.views, gitlab)
    await post.refresh()
    desk.server.hold(1, method="PUT", path="/notes/")
    with pytest.raises(Unavailable):
        await post.send()
    desk.server.merge(post.mr)
    await desk.tell(post.mr, "merge")
    await desk.work()
    await post.send()  # what is true now is written at once …
    assert "Sandbox ended" in note.body
    await desk.server.let_go()
    desk.world.pass_by(seconds=80)
    assert "Sandbox waits" in note.body, "that GitLab carried the old edit out is what this is about"
    assert await post.send(again=True)  # … and once more when GitLab must be done with what it was asked before
    assert await post.send(again=True) is None
    await gitlab.close()
    assert "Sandbox ended" in note.body
    assert post.notes() == [note]


async def test_what_waited_in_a_restored_backup_is_looked_for_before_it_is_posted(post: Post, tmp_path: Path) -> None:
    await post.drain()
    desk = post.desk
    for text in ("refused: one", "refused: two"):
        await post.tell(Kind.REPLY, text=text)
    backup = desk.world.back_up(tmp_path / "backup")
    await post.drain()
    assert len(post.notes()) == 3
    desk.world.pass_by(seconds=1)
    async with Database(backup, desk.world.clock) as restored:
        desk.world = replace(desk.world, database=restored)
        post.restart()
        await post.drain()
    assert len(post.notes()) == 3


async def test_what_gitlab_refused_for_now_is_posted_at_the_next_try(post: Post) -> None:
    post.desk.server.fail(500, 1, method="POST", path="/notes$")
    with pytest.raises(Unavailable):
        await post.send()
    await post.send()
    assert len(post.notes()) == 1


async def test_what_the_version_before_may_have_left_under_way_is_not_posted_right_after_the_upgrade(
    post: Post, tmp_path: Path
) -> None:
    desk, lane = post.desk, NoteLane(post.ref).text
    row = {"id": 7, "target": GITLAB.name, "lane": lane, "kind": "reply", "body": {"text": "hello"}, "attempted_at": 1}
    async with Database(a_database_of_version_1(tmp_path / "old", row), desk.world.clock) as upgraded:
        desk.world = replace(desk.world, database=upgraded)
        post.restart()
        for seconds in (0, 79):
            desk.world.pass_by(seconds=seconds)
            with pytest.raises(Unavailable):
                await post.send()
        assert post.notes() == []
        desk.world.pass_by(seconds=1)
        await post.send()
    assert [" reply7 -->" in note.body for note in post.notes()] == [True]


async def test_a_fork_that_is_closed_unseen_is_not_said_to_wait_any_more(desk: Desk) -> None:
    mallory = desk.server.add_user("mallory")
    fork = desk.server.add_project("mallory/app", public=True)
    mr = desk.server.open_merge_request(fork, mallory, fork_of=desk.project)
    await desk.tell(mr)
    await desk.work()
    post = Post(desk, mr)
    await post.drain()
    desk.server.close(mr)
    await desk.tell(mr, "close")
    await desk.work()
    await post.drain()
    [note] = post.notes()
    assert "No sandbox: the merge request is closed" in note.body
    assert "/sandbox start" not in note.body


async def test_somebody_elses_copy_of_our_marker_is_not_taken_for_our_note(post: Post) -> None:
    await post.drain()
    [note] = post.notes()
    post.desk.server.delete_note(post.mr, note)
    copy = post.desk.server.comment(post.mr, post.desk.gina, note.body)
    assert copy
    await post.refresh()
    await post.drain()
    assert len(post.notes()) == 1
    assert copy.body == note.body


@pytest.mark.parametrize("how", ["crash", "lost answer"])
@pytest.mark.parametrize("kind", [Kind.WARNING, Kind.REPLY])
async def test_warnings_and_answers_are_not_doubled(post: Post, kind: Kind, how: str) -> None:
    await post.drain()
    if kind is Kind.WARNING:
        await post.warn(600)
    else:
        await post.tell(kind, text="refused: you may not", username="alice")
    if how == "crash":
        await post.send(crash=True)
    else:
        post.desk.server.fail(502, 1, method="POST", path="/notes$", after=True)
        with pytest.raises(Unavailable):
            await post.send()
    assert len(post.notes()) == 2
    await post.drain()
    assert len(post.notes()) == 2
    assert [mention.name for mention in post.desk.server.mentions] == ["alice"]


async def test_two_answers_with_the_same_words_are_two_notes(post: Post) -> None:
    await post.drain()
    for _ in range(2):
        await post.tell(Kind.REPLY, text="refused: you may not")
    await post.send(crash=True)
    await post.drain()
    assert len(post.notes()) == 3


async def test_after_a_backup_was_restored_an_old_answer_is_not_taken_for_a_new_one(post: Post, tmp_path: Path) -> None:
    await post.drain()
    desk = post.desk
    backup = desk.world.back_up(tmp_path / "backup")
    await post.tell(Kind.REPLY, text="before the disk broke")
    await post.drain()
    async with Database(backup, desk.world.clock) as restored:
        desk.world = replace(desk.world, database=restored)
        post.restart()
        await post.tell(Kind.REPLY, text="after the restore")
        desk.server.fail(502, 1, method="POST", path="/notes$")
        with pytest.raises(Unavailable):
            await post.send()
        desk.world.pass_by(minutes=2)
        post.restart()
        await post.drain()
    bodies = [note.body for note in post.notes()]
    assert len(bodies) == 3
    assert "before the disk broke" in bodies[1]
    assert "after the restore" in bodies[2]


async def test_what_the_version_before_had_posted_is_found_after_the_upgrade(post: Post, tmp_path: Path) -> None:
    desk, lane = post.desk, NoteLane(post.ref).text
    row = {"id": 7, "target": GITLAB.name, "lane": lane, "kind": "reply", "body": {"text": "hello"}, "attempted_at": 1}
    async with Database(a_database_of_version_1(tmp_path / "old", row), desk.world.clock) as upgraded:
        body = f"<!-- ravebot {upgraded.instance_id} {lane} reply7 -->\nhello\n"
        note_id = await desk.gitlab.create_note(post.ref, body)
        desk.world = replace(desk.world, database=upgraded)
        post.restart()
        assert await post.send() == str(note_id)
    assert [note.id for note in post.notes()] == [note_id]


async def test_a_warning_that_comes_after_the_end_is_not_sent(post: Post) -> None:
    await post.drain()
    await post.warn(600)
    post.desk.server.close(post.mr)
    await post.desk.tell(post.mr, "close")
    await post.desk.work()
    assert await post.send() == "dropped: nothing to tell any more"
    await post.drain()
    assert len(post.notes()) == 1


async def test_after_an_outage_only_the_last_of_several_warnings_is_posted(post: Post) -> None:
    await post.drain()
    for _ in range(2):
        await post.warn(600)
    await post.drain()
    assert len(post.notes()) == 2


async def test_a_warning_that_an_extension_took_back_is_not_posted(post: Post) -> None:
    await post.drain()
    await post.warn()
    assert await post.send() == "dropped: nothing to tell any more"


async def test_an_emoji_is_put_on_the_comment_once(post: Post) -> None:
    comment = post.desk.server.comment(post.mr, post.desk.alice, "/sandbox stop")
    assert comment
    await post.drain()
    await post.tell(Kind.EMOJI, note_id=comment.id, emoji="white_check_mark")
    await post.send(crash=True)
    await post.drain()
    assert post.desk.server.emoji(comment) == ["white_check_mark"]


async def test_an_emoji_for_a_comment_that_is_gone_is_dropped_and_the_lane_goes_on(post: Post) -> None:
    await post.drain()
    await post.tell(Kind.EMOJI, note_id=987654, emoji="white_check_mark")
    await post.tell(Kind.REPLY, text="refused: you may not")
    dropped = await post.send()
    assert dropped
    assert dropped.startswith("dropped: ")
    await post.drain()
    assert len(post.notes()) == 2


async def test_a_forks_merge_request_shows_the_line_to_say(desk: Desk) -> None:
    mallory = desk.server.add_user("mallory")
    fork = desk.server.add_project("mallory/app", public=True)
    mr = desk.server.open_merge_request(fork, mallory, "/close @all <script>", fork_of=desk.project)
    await desk.tell(mr)
    await desk.work()
    post = Post(desk, mr)
    await post.drain()
    [note] = post.notes()
    assert f"/sandbox start {mr.sha}" in note.body
    assert desk.server.quick_actions == []
    assert desk.server.mentions == []


async def test_rate_limits_say_when_to_come_back(post: Post) -> None:
    post.desk.server.fail(429, 1, retry_after=17)
    with pytest.raises(Unavailable) as caught:
        await post.send()
    assert caught.value.retry_after_seconds == timedelta(seconds=17).total_seconds()
