"""Polling catches up on what webhooks missed, from the stand-in as it is."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from ravebot.errors import Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.intake.poll import Poller
from ravebot.sandboxes.model import RAVEBOT, MergeRequest
from ravebot.store import inbox, merge_requests, restored, sandboxes
from tests.integration.test_intake_gitlab import Desk, desk
from tests.support.gitlab import DEVELOPER, GUEST
from tests.support.records import pending

pytestmark = pytest.mark.integration
__all__ = ["desk"]  # the fixture, from where it is made


async def inbox_bodies(desk: Desk) -> int:
    return await desk.world.read(pending)


async def test_the_first_look_ever_only_notes_what_is_open_and_obeys_no_old_comment(desk: Desk) -> None:
    mr = desk.open()
    desk.server.comment(mr, desk.alice, "/sandbox start")
    await desk.poller.look()
    assert await desk.states() == []
    assert await inbox_bodies(desk) == 0
    assert [one.title for one in await desk.world.read(merge_requests.opened)] == ["Add a feature"]
    await desk.poller.look()
    assert await desk.states() == []
    assert await inbox_bodies(desk) == 0


async def test_a_merge_request_that_no_webhook_told_of_is_queued_at_the_next_look(desk: Desk) -> None:
    await desk.poller.look()
    desk.open()
    await desk.poller.look()
    assert await desk.states() == ["queued"]
    [event] = await desk.world.events()
    assert event.actor.kind == "ravebot"


@pytest.mark.parametrize("how", ["merge", "close"])
async def test_an_end_that_no_webhook_told_of_is_found(desk: Desk, how: str) -> None:
    await desk.poller.look()
    mr = desk.open()
    await desk.poller.look()
    getattr(desk.server, how)(mr)
    await desk.poller.look()
    assert await desk.states() == []
    assert (await desk.world.events())[-1].data["reason"] == {"merge": "merged", "close": "closed"}[how]


async def test_a_reopening_that_no_webhook_told_of_is_found(desk: Desk) -> None:
    await desk.poller.look()
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    for step in (desk.server.close, desk.server.reopen):
        step(mr)
        await desk.poller.look()
    assert len(await desk.world.read(lambda tx: tx.all("SELECT id FROM sandboxes"))) == 2
    assert await desk.states() == ["queued"]


async def test_new_code_that_no_webhook_told_of_is_found(desk: Desk) -> None:
    await desk.poller.look()
    mr = desk.open()
    await desk.poller.look()
    head = desk.server.push(mr, {"new.txt": "new"})
    await desk.poller.look()
    assert [sandbox.sha for sandbox in await desk.world.read(sandboxes.live)] == [head]


async def test_looking_again_changes_nothing(desk: Desk) -> None:
    await desk.poller.look()
    mr = desk.open()
    desk.server.comment(mr, desk.alice, "/sandbox start")
    await desk.poller.look()
    before = (await desk.world.kinds(), await desk.world.outbox(), await inbox_bodies(desk))
    for _ in range(3):
        await desk.poller.look()
    assert (await desk.world.kinds(), await desk.world.outbox(), await inbox_bodies(desk)) == before


async def test_a_comment_that_no_webhook_brought_is_obeyed(desk: Desk) -> None:
    mr = desk.open()
    await desk.poller.look()
    await desk.say(mr, desk.alice, "/sandbox start", webhook=False)
    await desk.poller.look()
    await desk.work()
    assert await desk.states() == ["queued"]
    assert await desk.answers() == ["white_check_mark"]


async def test_after_a_restore_no_comment_from_before_it_is_obeyed(desk: Desk) -> None:
    mr, world = desk.open(), desk.world
    await desk.poller.look()
    made_at = world.clock.now()
    world.pass_by(hours=1)
    await world.write(lambda tx: restored.mark(tx, made_at, "0" * 64, RAVEBOT))
    world.pass_by(hours=1)
    for text, minutes, states in (("/sandbox start", 30, []), ("/sandbox start", 90, ["queued"])):
        note = await desk.say(mr, desk.alice, text, webhook=False)
        note.created_at = note.updated_at = made_at + timedelta(minutes=minutes)
        await desk.poller.look()
        await desk.work()
        assert await desk.states() == states


async def test_a_lost_comment_is_found_also_when_a_later_webhook_came_through(desk: Desk) -> None:
    mr = desk.open()
    await desk.poller.look()
    await desk.say(mr, desk.alice, "/sandbox start", webhook=False)
    desk.server.push(mr, {"new.txt": "new"})
    await desk.tell(mr, "update")
    await desk.work()
    assert await desk.states() == []
    await desk.poller.look()
    await desk.work()
    assert await desk.states() == ["queued"]


async def test_comments_that_could_not_be_read_are_read_at_the_next_look(desk: Desk) -> None:
    mr = desk.open()
    await desk.poller.look()
    await desk.say(mr, desk.alice, "/sandbox start", webhook=False)
    desk.server.fail(500, path="/notes")
    with pytest.raises(Unavailable):
        await desk.poller.look()
    desk.server.restore()
    await desk.poller.look()
    await desk.work()
    assert await desk.states() == ["queued"]


async def test_one_merge_request_that_gitlab_can_not_show_hides_no_others_end(desk: Desk) -> None:
    await desk.poller.look()
    first, second = desk.open("one"), desk.open("two")
    await desk.poller.look()
    for mr in (first, second):
        desk.server.merge(mr)
    desk.server.fail(500, path=f"/merge_requests/{first.iid}$")
    with pytest.raises(Unavailable):
        await desk.poller.look()
    assert [mr.ref.iid for mr in await desk.world.read(merge_requests.opened)] == [first.iid]
    desk.server.restore()
    await desk.poller.look()
    assert await desk.states() == []


async def test_one_merge_request_whose_file_or_comments_gitlab_can_not_show_hides_no_other(desk: Desk) -> None:
    await desk.poller.look()
    first, second, third = desk.open("one"), desk.open("two"), desk.open("three")
    desk.server.push(first, {".rave.yml": "lifetime: 3h\n"})
    desk.server.fail(500, 1, path="/repository/files")
    desk.server.fail(500, path=f"/merge_requests/{second.iid}/notes")
    with pytest.raises(Unavailable):
        await desk.poller.look()
    seen = {mr.ref.iid for mr in await desk.world.read(merge_requests.opened)}
    assert seen == {second.iid, third.iid}
    await desk.say(third, desk.alice, "/sandbox stop", webhook=False)
    with pytest.raises(Unavailable):
        await desk.poll_again(third)
    await desk.work()
    assert await desk.states() == ["queued", "queued"], "that of the first and of the second"


async def test_a_gitlab_that_shows_no_merge_request_is_asked_for_three(desk: Desk) -> None:
    await desk.poller.look()
    for number in range(9):
        desk.open(f"branch-{number}")
    desk.server.fail(500, path="/notes")
    before = len(desk.server.requests)
    with pytest.raises(Unavailable):
        await desk.poller.look()
    assert sum(one.path.endswith("/notes") for one in desk.server.requests[before:]) == 3


async def test_only_what_asks_something_of_us_goes_to_the_inbox(desk: Desk) -> None:
    mr = desk.open()
    await desk.poller.look()
    for text in ("Looks good", "> /sandbox stop", "```\n/sandbox stop\n```"):
        await desk.say(mr, desk.alice, text, webhook=False)
    await desk.poller.look()
    assert await inbox_bodies(desk) == 0


async def test_more_merge_requests_and_comments_than_fit_on_a_page_are_all_seen(desk: Desk) -> None:
    await desk.poller.look()
    for number in range(105):
        desk.open(f"branch-{number}")
    first = desk.server.state.merge_requests[0]
    desk.server.comment(first, desk.alice, "/sandbox stop")
    for number in range(104):
        desk.server.comment(first, desk.alice, f"remark {number}")
    await desk.poller.look()
    assert len(await desk.states()) == 105
    assert await inbox_bodies(desk) == 1


async def comments_asked(desk: Desk) -> list[str]:
    """Of which merge requests a look asks for the comments."""
    before = len(desk.server.requests)
    await desk.poller.look()
    asked = desk.server.requests[before:]
    return [request.path.split("/merge_requests/")[1] for request in asked if request.path.endswith("/notes")]


async def test_a_look_asks_for_comments_only_where_something_was_updated(desk: Desk) -> None:
    now = desk.world.clock.now()
    opened = [desk.open(f"branch-{number}") for number in range(250)]
    for number, mr in enumerate(opened):
        mr.updated_at = now - timedelta(minutes=6, seconds=number)
    assert await comments_asked(desk) == []  # the first look obeys no comment
    before = len(desk.server.requests)
    assert await comments_asked(desk) == []
    assert len(desk.server.requests) - before <= 8, "three pages of merge requests, the project, who we are"
    note = await desk.say(opened[7], desk.alice, "/sandbox start", webhook=False)
    note.created_at = note.updated_at = now + timedelta(seconds=1)
    assert await comments_asked(desk) == [f"{opened[7].iid}/notes"]
    await desk.work()
    assert await desk.states() == ["queued"]


async def test_a_comment_that_does_not_move_its_merge_request_is_found(desk: Desk) -> None:
    """GitLab moves `updated_at` once a minute at most: what was just updated may have a newer comment."""
    now = desk.world.clock.now()
    mr = desk.open()
    mr.updated_at = now - timedelta(hours=1)
    await desk.poller.look()
    mr.updated_at = now - timedelta(seconds=50)
    assert await comments_asked(desk) == [f"{mr.iid}/notes"]
    unmoved = mr.updated_at
    note = await desk.say(mr, desk.alice, "/sandbox start", webhook=False)
    note.created_at = note.updated_at = now + timedelta(seconds=1)
    mr.updated_at = unmoved
    assert await comments_asked(desk) == [f"{mr.iid}/notes"]
    await desk.work()
    assert await desk.states() == ["queued"]


async def test_a_look_that_fails_concludes_nothing(desk: Desk) -> None:
    await desk.poller.look()
    desk.open()
    await desk.poller.look()
    for status in (500, 401, 429, None):
        if status is None:
            desk.server.hang_up()
        else:
            desk.server.fail(status)
        with pytest.raises(Exception, match="GitLab"):
            await desk.poller.look()
        desk.server.restore()
    assert await desk.states() == ["queued"]


@pytest.mark.parametrize("status", [403, 404])
async def test_a_merge_request_that_we_may_not_see_any_more_keeps_its_sandbox_and_holds_up_no_other(
    desk: Desk, status: int
) -> None:
    await desk.poller.look()
    mr = desk.open()
    await desk.poller.look()
    mr.state = "locked"  # not in the list of open ones
    other = desk.open("other")
    desk.server.fail(status, path=rf"/merge_requests/{mr.iid}$")
    await desk.poller.look()
    assert await desk.states() == ["queued", "queued"]
    assert other.iid == 2


async def test_a_project_that_we_may_not_read_holds_up_no_other(desk: Desk) -> None:
    await desk.poller.look()
    closed = desk.server.add_project("group/aaa-private")
    desk.server.set_role(closed, desk.bot, GUEST)
    desk.open()
    await desk.poller.look()
    assert await desk.states() == ["queued"]


@pytest.mark.parametrize("status", [403, 404])
async def test_comments_that_we_may_not_read_hold_up_no_other_merge_request(desk: Desk, status: int) -> None:
    await desk.poller.look()
    mr = desk.open()
    desk.open("other")
    desk.server.fail(status, path=rf"/merge_requests/{mr.iid}/notes")
    await desk.poller.look()
    assert await desk.states() == ["queued", "queued"]


async def test_a_project_that_we_are_invited_to_later_has_its_own_first_look(desk: Desk) -> None:
    await desk.poller.look()
    legacy = desk.server.add_project("group/legacy")
    old = desk.server.open_merge_request(legacy, desk.alice)
    desk.server.comment(old, desk.alice, "/sandbox start")
    desk.server.set_role(legacy, desk.bot, DEVELOPER)
    await desk.poller.look()
    await desk.poller.look()
    assert await desk.states() == []
    assert await inbox_bodies(desk) == 0
    desk.server.open_merge_request(legacy, desk.alice, branch="new")
    await desk.poller.look()
    assert await desk.states() == ["queued"]


async def test_a_command_that_was_obeyed_is_not_obeyed_again_when_its_merge_request_is_reopened_much_later(
    desk: Desk,
) -> None:
    await desk.poller.look()
    desk.world.clock.advance(datetime.now(UTC) - desk.world.clock.now())  # as the comments' times are
    mr = desk.open()
    await desk.tell(mr)
    await desk.say(mr, desk.alice, "/sandbox stop")
    await desk.work()
    desk.server.push(mr, {"new.txt": "new"})  # at the stopped commit it would start by command only
    desk.server.close(mr)
    await desk.tell(mr, "close")
    await desk.work()
    desk.world.clock.advance(timedelta(days=15))
    await desk.world.write(lambda tx: inbox.forget_handled(tx, timedelta(days=14)))
    desk.server.reopen(mr)
    await desk.poller.look()
    await desk.work()
    assert await desk.states() == ["queued"]


async def test_commands_are_found_also_when_the_first_look_ever_came_with_a_clock_that_was_ahead(desk: Desk) -> None:
    real = datetime.now(UTC) - desk.world.clock.now()  # as the comments' times are
    desk.world.clock.advance(real + timedelta(days=30))
    await desk.poller.look()
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    desk.world.clock.advance(timedelta(days=-30, minutes=-1))
    await desk.poller.look()
    await desk.say(mr, desk.alice, "/sandbox stop", webhook=False)
    await desk.poller.look()
    await desk.work()
    assert await desk.states() == []


async def test_a_comment_from_before_the_first_look_after_the_clock_was_set_back_is_obeyed(desk: Desk) -> None:
    desk.world.pass_by(days=1)
    await desk.poller.look()
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    desk.world.pass_by(days=-1, minutes=10)
    note = await desk.say(mr, desk.alice, "/sandbox stop", webhook=False)
    note.created_at = note.updated_at = mr.updated_at = desk.world.clock.now()
    desk.world.pass_by(minutes=5)
    await desk.poller.look()
    await desk.work()
    assert await desk.states() == []


async def test_a_merge_that_no_webhook_told_of_is_found_also_when_the_last_look_came_in_the_middle_of_it(
    desk: Desk,
) -> None:
    await desk.poller.look()
    mr = desk.open()
    await desk.poller.look()
    mr.state = "locked"
    await desk.poller.look()
    assert await desk.states() == ["queued"]
    mr.state = "merged"
    await desk.poller.look()
    assert await desk.states() == []


async def test_a_look_that_fails_is_repeated_soon(desk: Desk) -> None:
    tried: list[bool] = []
    world = desk.world
    poller = Poller(world.config, world.database, desk.gitlab, world.intents, world.clock, tried.append)
    desk.server.fail(401)
    task = asyncio.create_task(poller.run())
    try:
        async with asyncio.timeout(60):
            while not tried:
                await asyncio.sleep(0.01)
        assert tried == [False]
        assert not task.done()
        desk.server.restore()
        async with asyncio.timeout(10):
            while len(tried) < 2:
                await asyncio.sleep(0.01)
        assert tried == [False, True]
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_project_that_is_configured_later_has_its_own_first_look(desk: Desk) -> None:
    stranger = desk.server.add_project("elsewhere/app")
    desk.server.set_role(stranger, desk.bot, 40)
    desk.server.open_merge_request(stranger, desk.alice)
    await desk.poller.look()
    assert await desk.world.read(merge_requests.opened) == ()


async def test_what_is_asked_for_is_looked_at_before_the_next_poll_and_a_project_that_is_gone_ends_nothing(
    desk: Desk,
) -> None:
    running = asyncio.create_task(desk.poller.run())
    try:
        async with asyncio.timeout(10):
            while desk.poller.looked_at is None:
                await asyncio.sleep(0.005)
            mr = desk.open()
            desk.poller.ask_for(999_999, "group/gone")
            desk.poller.ask_for(desk.project.id, "group/app")
            while await desk.states() != ["queued"]:
                await asyncio.sleep(0.005)
            desk.server.close(mr)
            desk.poller.ask_for(desk.project.id, "group/app")
            while await desk.states():
                await asyncio.sleep(0.005)
    finally:
        running.cancel()


class OddAnswers(GitLab):
    """A GitLab whose list of merge requests can't be made sense of while it is `odd`."""

    odd = False

    async def open_merge_requests(self, project_id: int) -> list[MergeRequest]:
        if self.odd:
            raise KeyError("an odd answer")
        return await super().open_merge_requests(project_id)


async def test_a_bug_while_one_project_is_looked_at_does_not_end_the_poller(desk: Desk) -> None:
    gitlab, world = OddAnswers(desk.server.url, desk.server.token_for(desk.bot)), desk.world
    poller = Poller(world.config, world.database, gitlab, world.intents, world.clock, lambda _ok: None)
    running = asyncio.create_task(poller.run())
    try:
        async with asyncio.timeout(10):
            while poller.looked_at is None:
                await asyncio.sleep(0.005)
            gitlab.odd = True
            with capture_logs() as logs:
                poller.ask_for(desk.project.id, "group/app")
                while not logs and not running.done():
                    await asyncio.sleep(0.005)
            assert "a bug of ravebot's" in logs[0]["event"]
            gitlab.odd = False
            desk.open()
            poller.ask_for(desk.project.id, "group/app")
            while await desk.states() != ["queued"]:
                await asyncio.sleep(0.005)
    finally:
        running.cancel()
        await asyncio.wait({running})
        await gitlab.close()
