"""Status notes that a lost database, or another instance of before, left on merge requests: made true again, once."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.errors import Unavailable
from ravebot.operations.cleanup import Cleaner, Wish
from ravebot.operations.stale_notes import StaleNotes
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import Actor
from ravebot.store import merge_requests, stale_notes
from ravebot.store.database import Database, get_meta, migrate, migrations
from tests.integration.test_cli import Installation
from tests.integration.test_cli_run import here, running
from tests.integration.test_delivery_gitlab import Post
from tests.integration.test_intake_gitlab import Desk, desk
from tests.support.clock import ManualClock
from tests.support.gitlab import DEVELOPER, GitLabServer, MergeRequest, Note, User
from tests.support.records import a_merge_request, make_config
from tests.support.yard import a_yard

pytestmark = pytest.mark.integration
__all__ = ["desk", "here"]  # the fixtures, from where they are made

OURS = "0123456789"
READY = "### 🟢 Sandbox is ready\n\n```sh\nssh -p 2200 agent@sandboxes.example.org\n```\n"


def status(mr: MergeRequest, instance_id: str = OURS) -> str:
    """What an earlier state wrote, as the first version of ravebot did."""
    return f"<!-- ravebot {instance_id} {mr.project.id}!{mr.iid} status -->\n{READY}"


def written(server: GitLabServer, mr: MergeRequest, by: User, text: str) -> Note:
    note = server.comment(mr, by, text)
    assert note
    return note


async def test_a_database_that_is_lost_leaves_no_note_that_says_ready(here: Installation) -> None:
    async with GitLabServer() as server:
        bot, alice = server.add_user("ravebot"), server.add_user("alice")
        project = server.add_project("group/app", public=True)
        for user in (bot, alice):
            server.set_role(project, user, DEVELOPER)
        mr = server.open_merge_request(project, alice, "Add a feature", "feature")
        note = written(server, mr, bot, status(mr))
        here.secret.write_text(server.token_for(bot))
        here.config.write_text(here.config.read_text().replace("  url: http://127.0.0.1:1", f"  url: {server.url}"))
        (here.state / "instance-id").write_text(f"{OURS}\n")
        async with running(here):
            for _ in range(200):
                if note.body != status(mr):
                    break
                await asyncio.sleep(0.05)
        assert "ready" not in note.body
        assert "/sandbox start" in note.body
        assert len(server.notes(mr)) == 1


async def lose_database(desk: Desk) -> None:
    """As if the database had been made a moment ago, beside an id that was there before."""
    await desk.world.write(stale_notes.expect)


def looker(desk: Desk, *, machines_known: bool = True) -> StaleNotes:
    world = desk.world
    return StaleNotes(world.database, desk.gitlab, world.lifecycle.journal, lambda: machines_known)


async def corrected(desk: Desk, mr: MergeRequest) -> list[str]:
    """Look, deliver, and return the bot's notes on the merge request."""
    await looker(desk).look()
    post = Post(desk, mr)
    await post.drain()
    return [note.body for note in post.notes()]


def own(desk: Desk, mr: MergeRequest) -> str:
    return status(mr, desk.world.database.instance_id)


async def test_the_note_of_a_lost_database_is_rewritten_once_and_is_ours_again(desk: Desk) -> None:
    mr, untouched = desk.open(), desk.open("other")
    written(desk.server, mr, desk.bot, "An answer of long ago")
    written(desk.server, mr, desk.bot, own(desk, mr))
    await desk.poller.look()
    await lose_database(desk)
    [_, body] = await corrected(desk, mr)
    assert "### ⚪ No sandbox" in body
    assert body.startswith(own(desk, mr).splitlines()[0])
    assert "`/sandbox start`" in body
    assert desk.server.notes(untouched) == []
    before = len(desk.server.requests)
    await corrected(desk, mr)
    assert len(desk.server.requests) == before
    await desk.say(mr, desk.alice, "/sandbox start")
    await desk.work()
    assert "waits in the queue" in (await corrected(desk, mr))[1]


async def test_nothing_is_looked_for_where_no_state_was_lost(desk: Desk) -> None:
    mr = desk.open()
    await desk.poller.look()
    before = len(desk.server.requests)
    await looker(desk).look()
    assert len(desk.server.requests) == before
    assert await desk.world.outbox() == []
    assert [one.ref.iid for one in await desk.world.read(merge_requests.opened)] == [mr.iid]


async def test_a_note_that_shows_the_way_in_stays_while_nobody_has_decided_about_its_machine(desk: Desk) -> None:
    mr = desk.open()
    note = written(desk.server, mr, desk.bot, own(desk, mr))
    await desk.poller.look()
    await lose_database(desk)
    await looker(desk, machines_known=False).look()
    await Post(desk, mr).drain()
    assert note.body == own(desk, mr)
    assert "No sandbox" in (await corrected(desk, mr))[0]


@pytest.mark.parametrize("fails", ["GET", "PUT"])
async def test_an_outage_in_between_loses_no_correction(desk: Desk, fails: str) -> None:
    mr = desk.open()
    written(desk.server, mr, desk.bot, own(desk, mr))
    await desk.poller.look()
    await lose_database(desk)
    desk.server.fail(502, method=fails, path="/notes")
    with pytest.raises(Unavailable):
        await corrected(desk, mr)
    desk.server.restore()
    assert ["No sandbox" in body for body in await corrected(desk, mr)] == [True]


@pytest.mark.parametrize("status", [403, 404])
async def test_a_merge_request_that_we_may_not_see_holds_up_no_other(desk: Desk, status: int) -> None:
    hidden, mr = desk.open("hidden"), desk.open()
    for one in (hidden, mr):
        written(desk.server, one, desk.bot, own(desk, one))
    await desk.poller.look()
    await lose_database(desk)
    desk.server.fail(status, path=rf"/merge_requests/{hidden.iid}/notes")
    assert "No sandbox" in (await corrected(desk, mr))[0]
    await desk.poller.look()
    asked = len(desk.server.requests)
    await looker(desk).look()
    assert len(desk.server.requests) == asked


async def test_the_note_of_a_fork_says_what_it_waits_for(desk: Desk) -> None:
    mallory = desk.server.add_user("mallory")
    fork = desk.server.add_project("mallory/app", public=True)
    mr = desk.server.open_merge_request(fork, mallory, fork_of=desk.project)
    written(desk.server, mr, desk.bot, own(desk, mr))
    await desk.poller.look()
    await lose_database(desk)
    assert "waits for a Developer" in (await corrected(desk, mr))[0]


@pytest.mark.parametrize(("drafts", "says"), [("start", "### ⚪ No sandbox"), ("wait", "this is a draft")])
async def test_the_note_of_a_draft_says_that_it_waits_only_where_drafts_wait(
    desk: Desk, drafts: str, says: str
) -> None:
    folder = desk.world.config.state_dir
    desk.world.views = Views(make_config(folder, gitlab={"url": desk.server.url, "drafts": drafts}))
    mr = desk.server.open_merge_request(desk.project, desk.alice, "Draft: not yet", "draft")
    written(desk.server, mr, desk.bot, own(desk, mr))
    await desk.poller.look()
    await lose_database(desk)
    assert says in (await corrected(desk, mr))[0]


async def test_a_note_that_was_found_again_says_what_is_true_when_its_merge_request_ends(desk: Desk) -> None:
    mr = desk.open()
    written(desk.server, mr, desk.bot, own(desk, mr))
    await desk.poller.look()
    await lose_database(desk)
    await corrected(desk, mr)
    desk.server.merge(mr)
    await desk.poller.look()
    assert "No sandbox: the merge request is merged" in (await corrected(desk, mr))[0]


async def test_a_note_that_somebody_else_copied_is_left_alone(desk: Desk) -> None:
    mr = desk.open()
    copy = written(desk.server, mr, desk.gina, own(desk, mr))
    await desk.poller.look()
    await lose_database(desk)
    assert await corrected(desk, mr) == []
    assert copy.body == own(desk, mr)


async def test_the_note_of_an_instance_that_was_cleaned_away_is_taken_over(desk: Desk) -> None:
    mr = desk.open()
    written(desk.server, mr, desk.bot, status(mr, "0ld0ld0ld0"))
    await desk.poller.look()
    await desk.world.write(lambda tx: stale_notes.expect(tx, "0ld0ld0ld0"))
    [body] = await corrected(desk, mr)
    assert "No sandbox" in body
    assert desk.world.database.instance_id in body.splitlines()[0]
    assert await desk.world.read(stale_notes.predecessors) == ("0ld0ld0ld0",)


async def test_beside_our_own_note_that_of_an_instance_that_was_cleaned_away_points_to_ours(desk: Desk) -> None:
    mr = desk.open()
    old = written(desk.server, mr, desk.bot, status(mr, "0ld0ld0ld0"))
    await desk.tell(mr)
    await desk.work()
    post = Post(desk, mr)
    await post.drain()
    await desk.world.write(lambda tx: stale_notes.expect(tx, "0ld0ld0ld0"))
    [_, ours] = await corrected(desk, mr)
    assert "waits in the queue" in ours
    assert "the other comment by this bot shows the current state" in old.body
    assert "ssh" not in old.body


async def test_the_notes_of_all_instances_that_were_cleaned_away_are_made_true(desk: Desk) -> None:
    mr = desk.open()
    await desk.poller.look()
    old = [written(desk.server, mr, desk.bot, status(mr, f"{number}0ld0ld0ld")) for number in (1, 2)]
    await desk.world.write(lambda tx: stale_notes.expect(tx, "10ld0ld0ld"))
    await desk.world.write(lambda tx: stale_notes.expect(tx, "20ld0ld0ld"))
    await corrected(desk, mr)
    assert ["ready" in note.body for note in old] == [False, False]


async def test_one_merge_request_whose_comments_can_not_be_listed_holds_up_no_other(desk: Desk) -> None:
    first, second = desk.open(), desk.open("other")
    await desk.poller.look()
    for mr in (first, second):
        written(desk.server, mr, desk.bot, own(desk, mr))
    await lose_database(desk)
    desk.server.fail(500, path=f"/merge_requests/{first.iid}/notes$")
    with pytest.raises(Unavailable):
        await looker(desk).look()
    await Post(desk, second).drain()
    assert "No sandbox" in desk.server.notes(second)[0].body


async def test_a_second_end_is_looked_for_again(desk: Desk) -> None:
    mr = desk.open()
    await desk.poller.look()
    await lose_database(desk)
    assert await corrected(desk, mr) == []
    written(desk.server, mr, desk.bot, own(desk, mr))
    await lose_database(desk)
    assert "No sandbox" in (await corrected(desk, mr))[0]


async def test_a_database_remembers_from_its_first_moment_that_it_replaces_a_lost_one(tmp_path: Path) -> None:
    async def generation(folder: Path) -> str | None:
        async with Database(folder / "ravebot.db", ManualClock()) as database:
            return await database.read(lambda tx: get_meta(tx, "stale_notes"))

    assert await generation(tmp_path) is None
    assert await generation(tmp_path) is None
    (tmp_path / "ravebot.db").unlink()
    with closing(sqlite3.connect(tmp_path / "ravebot.db", isolation_level=None)) as half_made:
        migrate(half_made, migrations(replaces_lost=True)[:1])  # and there the process was killed
    assert await generation(tmp_path) == "1"


async def test_a_database_of_the_first_version_keeps_its_notes_and_looks_for_none(tmp_path: Path) -> None:
    path = tmp_path / "ravebot.db"
    (tmp_path / "instance-id").write_text(f"{OURS}\n")
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        migrate(old, migrations()[:1])
        for iid, note_id in ((1, 4711), (2, None)):
            old.execute(
                "INSERT INTO merge_requests VALUES (7, ?, 'group/app', 'T', 'http://x', 'b', 7, 'abc', 1, 'alice',"
                " '[]', 0, 'opened', NULL, NULL, ?, 4712)",
                (iid, note_id),
            )
    async with Database(path, ManualClock()) as database:
        kept = await database.read(merge_requests.opened)
        assert [mr.note_id for mr in kept] == [4711, None]
        assert await database.read(lambda tx: merge_requests.last_comment(tx, kept[0].ref)) == 4712
        assert await database.read(stale_notes.to_search) == ()
        await database.write(stale_notes.expect)
        assert await database.read(stale_notes.to_search) == (kept[1],)


async def test_an_adoption_has_notes_looked_for_once_the_machines_are_decided_about(tmp_path: Path) -> None:
    host, mr = MemoryHost(), a_merge_request()
    async with a_yard(tmp_path, MemoryProvider(host)) as yard:
        host.put("rave-test-from-before")
        await yard.told(mr, may_start=False)
        await yard.go()
        assert not yard.core.pool.machines_known
        wish = Wish(None, everything=False, force=False, adopt=True, actor=Actor("shell", "root"))
        await Cleaner(yard.database, yard.core, yard.provider).beside_bot(wish, timedelta(seconds=1))
        await yard.go()
        assert yard.core.pool.machines_known
        assert [one.ref for one in await yard.read(stale_notes.to_search)] == [mr.ref]


async def test_a_cleanup_of_what_is_known_has_no_notes_looked_for(tmp_path: Path) -> None:
    async with a_yard(tmp_path) as yard:
        await yard.make_ready(a_merge_request())
        wish = Wish(None, everything=True, force=True, adopt=False, actor=Actor("shell", "root"))
        await Cleaner(yard.database, yard.core, yard.provider).alone(wish, timedelta(seconds=1), lambda _line: None)
        assert await yard.read(lambda tx: get_meta(tx, "stale_notes")) is None


async def test_while_the_provider_is_away_no_machine_is_known_to_be_gone(tmp_path: Path) -> None:
    async with a_yard(tmp_path) as yard:
        await yard.go()
        assert yard.core.pool.machines_known
        yard.provider.fails["list"] = Unavailable("libvirt is away")
        await yard.go()
        assert not yard.core.pool.machines_known
