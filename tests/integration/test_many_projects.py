"""Patterns, new, archived, renamed and moved projects, and merge requests whose fork was deleted; an expired token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ravebot.errors import Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.route import GitlabRoute
from ravebot.gitlab.transport import TokenRefused
from ravebot.intake.poll import Poller
from ravebot.store import merge_requests, sandboxes
from ravebot.store.database import Transaction
from tests.integration.test_intake_gitlab import Desk, a_desk
from tests.support.gitlab import DEVELOPER, GUEST, MergeRequest, Project
from tests.support.gitlab.published import described, misfits, published

pytestmark = pytest.mark.integration
OPERATORS = "#ops:example.org"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_desk(tmp_path, matrix={"operations_room": OPERATORS}) as made:
        yield made


def new_project(desk: Desk, path: str) -> Project:
    project = desk.server.add_project(path)
    for user in (desk.bot, desk.alice):
        desk.server.set_role(project, user, DEVELOPER)
    return project


async def live(desk: Desk) -> list[str]:
    """The merge requests with a sandbox."""

    def look(tx: Transaction) -> list[str]:
        refs = [sandbox.mr for sandbox in sandboxes.live(tx)]
        return sorted(mr.full_ref for ref in refs if (mr := merge_requests.get(tx, ref)))

    return await desk.world.read(look)


async def test_a_new_project_of_a_group_is_served_by_its_first_webhook(desk: Desk) -> None:
    await desk.poller.look()
    project = new_project(desk, "group/tools/new/deep")
    mr = desk.server.open_merge_request(project, desk.alice, "The first", "first")
    await desk.tell(mr)
    await desk.work()
    assert await live(desk) == ["group/tools/new/deep!1"]


async def test_a_new_project_of_a_group_is_served_by_polling_alone(desk: Desk) -> None:
    await desk.poller.look()
    project = new_project(desk, "group/sub/new")
    await desk.poller.look()  # what was open before ravebot saw the project gets no sandbox
    desk.server.open_merge_request(project, desk.alice, "The first", "first")
    await desk.poller.look()
    assert await live(desk) == ["group/sub/new!1"]


async def asked_by(desk: Desk, *, again: bool = False) -> list[str]:
    """What one poll asks of GitLab; the moments left out."""
    before = len(desk.server.requests)
    await desk.poller.look(again=again)
    return [one.path.removeprefix("/api/v4") for one in desk.server.requests[before:]]


def some_projects(desk: Desk, count: int) -> list[Project]:
    return [new_project(desk, f"group/sub{number % 3}/app-{number}") for number in range(count)]


def opened_in(desk: Desk, project: Project, branch: str = "later") -> MergeRequest:
    """One that was opened just now, by ravebot's clock."""
    mr = desk.server.open_merge_request(project, desk.alice, "Later", branch)
    mr.created_at = mr.updated_at = desk.world.clock.now()
    return mr


async def test_all_projects_of_a_group_take_one_request_a_poll(desk: Desk) -> None:
    some_projects(desk, 19)
    await desk.poller.look()
    assert await asked_by(desk) == ["/groups/group/merge_requests"]
    assert await asked_by(desk, again=True) == ["/projects", "/projects", "/groups/group/merge_requests"]


async def test_what_changes_in_a_group_is_found_by_its_one_request(desk: Desk) -> None:
    one, other = some_projects(desk, 2)
    await desk.poller.look()
    desk.world.pass_by(seconds=300)
    first, second = opened_in(desk, one), opened_in(desk, other)
    await desk.poller.look(again=False)
    assert await live(desk) == [f"{one.path}!1", f"{other.path}!1"]
    desk.world.pass_by(seconds=300)
    desk.server.close(first)
    sha = desk.server.push(second, {"new.txt": "new"})
    note = desk.server.comment(second, desk.alice, "/sandbox stop")
    assert note
    first.updated_at = second.updated_at = note.created_at = note.updated_at = desk.world.clock.now()
    asked = await asked_by(desk)
    assert asked[0] == "/groups/group/merge_requests"
    assert f"/projects/{one.id}/merge_requests/1" not in asked, "its state was in the listing"
    await desk.work()
    assert await live(desk) == []
    assert [mr.head_sha for mr in await desk.world.read(merge_requests.opened)] == [sha]


async def test_a_comment_in_a_group_that_does_not_move_its_merge_request_is_found(desk: Desk) -> None:
    """GitLab moves `updated_at` once a minute at most, so what was updated before the last poll is asked for again."""
    one, _ = some_projects(desk, 2)
    await desk.poller.look()
    desk.world.pass_by(seconds=300)
    mr = opened_in(desk, one)
    unmoved = mr.updated_at
    desk.world.pass_by(seconds=20)
    await desk.poller.look(again=False)
    assert await live(desk) == [f"{one.path}!1"]
    desk.world.pass_by(seconds=20)
    note = desk.server.comment(mr, desk.alice, "/sandbox stop")
    assert note
    note.created_at = note.updated_at = desk.world.clock.now()
    mr.updated_at = unmoved
    desk.world.pass_by(seconds=280)
    assert await asked_by(desk) == ["/groups/group/merge_requests", f"/projects/{one.id}/merge_requests/1/notes"]
    await desk.work()
    assert await live(desk) == []


async def test_a_comment_in_a_group_is_found_though_our_clock_is_ahead(desk: Desk) -> None:
    one, _ = some_projects(desk, 2)
    await desk.poller.look()
    mr = opened_in(desk, one)
    theirs = desk.world.clock.now()
    desk.world.pass_by(minutes=6)
    await desk.poller.look(again=False)
    assert await live(desk) == [f"{one.path}!1"]
    note = desk.server.comment(mr, desk.alice, "/sandbox stop")
    assert note
    note.created_at = note.updated_at = mr.updated_at = theirs  # in the minute in which nothing moves it
    desk.world.pass_by(minutes=5)
    await desk.poller.look(again=False)
    await desk.work()
    assert await live(desk) == []


async def test_after_a_poll_that_failed_everything_of_a_group_is_asked_for(desk: Desk) -> None:
    one, _ = some_projects(desk, 2)
    await desk.poller.look()
    mr = opened_in(desk, one)
    desk.server.fail(500, path="/groups/")
    for _ in range(2):
        desk.world.pass_by(hours=3)
        with pytest.raises(Unavailable):
            await desk.poller.look(again=False)
    desk.server.restore()
    await desk.poller.look(again=False)
    assert await live(desk) == [f"{mr.project.path}!1"]


async def test_one_whose_file_could_not_be_read_is_told_at_the_next_poll_though_nothing_was_updated(desk: Desk) -> None:
    one, _ = some_projects(desk, 2)
    await desk.poller.look()
    mr = opened_in(desk, one)
    desk.world.pass_by(hours=3)
    desk.server.fail(500, path="/repository/files")
    await desk.poller.look()
    assert await live(desk) == []
    desk.server.restore()
    desk.world.pass_by(hours=3)
    await desk.poller.look(again=False)
    assert await live(desk) == [f"{mr.project.path}!1"]


async def test_a_project_of_a_group_that_may_not_be_read_is_asked_for_alone_and_named(desk: Desk) -> None:
    some_projects(desk, 2)
    closed = desk.server.add_project("group/closed")
    desk.server.set_role(closed, desk.bot, GUEST)
    await desk.poller.look()
    assert await asked_by(desk) == ["/groups/group/merge_requests", f"/projects/{closed.id}/merge_requests"]
    assert "403" in desk.poller.refusals["group/closed"]


async def test_a_group_that_gitlab_does_not_show_has_its_projects_asked_for_one_by_one(desk: Desk) -> None:
    projects = some_projects(desk, 2)
    desk.server.fail(404, path="/groups/")
    await desk.poller.look()
    mr = opened_in(desk, projects[0])
    await desk.poller.look(again=False)
    assert await live(desk) == [f"{mr.project.path}!1"]


async def test_a_project_that_is_new_in_a_group_is_listed_at_the_next_poll_and_one_that_is_not_ours_never(
    desk: Desk,
) -> None:
    some_projects(desk, 2)
    await desk.poller.look()
    foreign = desk.server.add_project("group/foreign", public=True)
    opened_in(desk, foreign)
    await desk.poller.look(again=False)
    assert desk.poller.has_new_projects
    await desk.poller.look()
    assert not desk.poller.has_new_projects
    await desk.poller.look(again=False)
    assert not desk.poller.has_new_projects
    mr = opened_in(desk, new_project(desk, "group/new"))
    await desk.poller.look(again=False)
    assert desk.poller.has_new_projects
    await desk.poller.look()
    mr = opened_in(desk, mr.project, "another")
    await desk.poller.look(again=False)
    assert await live(desk) == [f"group/new!{mr.iid}"]


async def test_projects_that_are_listed_one_by_one_are_polled_in_turn_while_their_webhooks_are_right(
    tmp_path: Path,
) -> None:
    paths = ["group/app", "tools/one", "tools/two", "tools/three"]
    heard = {"tools/one", "tools/two"}
    async with a_desk(tmp_path) as made:
        config = made.world.config
        config = config.model_copy(update={"gitlab": config.gitlab.model_copy(update={"projects": tuple(paths)})})
        world = made.world
        made.poller = Poller(
            config,
            world.database,
            made.gitlab,
            replace(world.intents, config=config),
            world.clock,
            lambda _: None,
            heard.__contains__,
        )
        projects = {made.project.path: made.project} | {path: new_project(made, path) for path in paths[1:]}

        async def polled(*, again: bool = False) -> list[str]:
            asked = await asked_by(made, again=again)
            return [path for path in paths if f"/projects/{projects[path].id}/merge_requests" in asked]

        assert await polled(again=True) == paths
        mr = opened_in(made, projects["tools/two"])
        assert await polled() == ["group/app", "tools/one", "tools/three"]
        assert await live(made) == []
        assert await polled() == ["group/app", "tools/two", "tools/three"]
        assert await live(made) == ["tools/two!1"]
        made.server.merge(mr)
        assert await polled() == ["group/app", "tools/one", "tools/three"]
        assert await live(made) == ["tools/two!1"], "what is not looked at is not over"
        heard.clear()
        assert await polled() == paths
        assert await live(made) == []


async def test_a_poll_in_which_none_that_was_asked_answered_is_no_success(tmp_path: Path) -> None:
    paths = ("group/app", "other/one", "other/two")
    async with a_desk(tmp_path) as made:
        for path in paths[1:]:
            new_project(made, path)
        world = made.world
        config = world.config
        config = config.model_copy(update={"gitlab": config.gitlab.model_copy(update={"projects": paths})})
        intents = replace(world.intents, config=config)
        poller = Poller(config, world.database, made.gitlab, intents, world.clock, lambda _: None, lambda _path: True)
        await poller.look()
        made.server.fail(401)
        with pytest.raises(TokenRefused):
            await poller.look(again=False)
        made.server.restore()
        made.server.fail(500)
        with pytest.raises(Unavailable):
            await poller.look(again=False)


async def test_one_whose_comments_are_refused_makes_not_every_poll_ask_for_everything_of_its_group(desk: Desk) -> None:
    one, _ = some_projects(desk, 2)
    await desk.poller.look()
    mr = opened_in(desk, one)
    notes = f"/projects/{one.id}/merge_requests/{mr.iid}/notes"
    desk.server.fail(403, path=notes)
    await desk.poller.look(again=False)
    assert "403" in desk.poller.refusals[one.path]
    note = desk.server.comment(mr, desk.alice, "/sandbox stop")
    assert note
    note.created_at = note.updated_at = mr.updated_at = desk.world.clock.now()
    for _ in range(4):
        desk.world.pass_by(minutes=5)
        before = len(desk.server.requests)
        await desk.poller.look(again=False)
        [group] = [request for request in desk.server.requests[before:] if "/groups/" in request.path]
        assert "updated_after" in group.query
        assert "403" in desk.poller.refusals[one.path]
    assert await live(desk) == [f"{one.path}!1"]
    desk.server.restore()
    desk.world.pass_by(minutes=5)
    await desk.poller.look()  # as every sixth does
    assert desk.poller.refusals == {}
    await desk.work()
    assert await live(desk) == []


async def test_the_requests_about_groups_are_as_gitlab_describes_them(desk: Desk) -> None:
    published()
    some_projects(desk, 2)
    await desk.poller.look()
    await desk.poller.look(again=False)
    asked = [one for one in desk.server.requests if "/groups/" in one.path or one.path.endswith("/projects")]
    assert len(asked) == 4
    assert misfits(asked) == []
    assert all(described(one) for one in asked)


async def test_what_is_no_project_of_the_pattern_gets_nothing(desk: Desk) -> None:
    other = new_project(desk, "groups/app")
    await desk.poller.look()
    mr = desk.server.open_merge_request(other, desk.alice, "Not ours", "first")
    await desk.tell(mr)
    await desk.work()
    await desk.poller.look()
    assert await live(desk) == []


async def test_an_archived_project_keeps_its_sandbox_until_it_expires_and_gets_no_new_one(desk: Desk) -> None:
    await desk.poller.look()
    mr = desk.open()
    await desk.poller.look()
    desk.server.archive(desk.project)
    new_project(desk, "group/other")
    await desk.poller.look()
    assert await live(desk) == [f"group/app!{mr.iid}"]
    desk.open("later")
    await desk.poller.look()
    assert await live(desk) == [f"group/app!{mr.iid}"]
    desk.server.merge(mr)
    await desk.poller.look()
    assert await live(desk) == []


@pytest.mark.parametrize("how", ["webhook", "poll"])
async def test_a_renamed_or_moved_project_keeps_its_sandbox_under_its_new_name(desk: Desk, how: str) -> None:
    await desk.poller.look()
    mr = desk.open()
    await desk.poller.look()
    desk.server.move(desk.project, "group/sub/renamed")
    desk.server.retitle(mr, "Another title")
    if how == "webhook":
        await desk.tell(mr, "update")
        await desk.work()
    else:
        await desk.poller.look()
    assert await live(desk) == [f"group/sub/renamed!{mr.iid}"]
    assert await desk.states() == ["queued"]


async def test_a_project_that_was_moved_out_of_the_patterns_is_not_served_any_more(desk: Desk) -> None:
    new_project(desk, "group/stays")
    await desk.poller.look()
    mr = desk.open()
    await desk.poller.look()
    desk.server.move(desk.project, "elsewhere/app")
    desk.open("later")
    await desk.poller.look()
    assert await live(desk) == [f"elsewhere/app!{mr.iid}"], "what runs ends in its time"
    desk.server.close(mr)
    await desk.poller.look()
    assert await live(desk) == []


async def test_a_project_that_was_moved_out_takes_no_new_code(desk: Desk) -> None:
    new_project(desk, "group/stays")
    await desk.poller.look()
    mr = desk.open()
    await desk.poller.look()
    [before] = await desk.world.read(sandboxes.live)
    desk.server.move(desk.project, "elsewhere/app")
    desk.server.push(mr, {"new.txt": "new"})
    desk.world.pass_by(minutes=30)
    await desk.poller.look()
    [after] = await desk.world.read(sandboxes.live)
    assert after.sha == before.sha != mr.sha
    assert await live(desk) == [f"elsewhere/app!{mr.iid}"], "it is recorded under its new name"


async def test_a_project_that_was_moved_out_gets_no_sandbox_for_one_that_waited(desk: Desk) -> None:
    new_project(desk, "group/stays")
    await desk.poller.look()
    mr = desk.open("waits", labels=["sandbox::off"])
    await desk.poller.look()
    desk.server.move(desk.project, "elsewhere/app")
    mr.labels = []
    desk.world.pass_by(minutes=30)
    await desk.poller.look()
    await desk.poller.look_at(desk.project.id)
    assert await live(desk) == []
    desk.open("later")
    await desk.poller.look_at(desk.project.id)
    assert [one.ref.iid for one in await desk.world.read(merge_requests.opened)] == [mr.iid]


@pytest.mark.parametrize("how", ["webhook", "poll"])
async def test_a_merge_request_whose_fork_was_deleted_counts_as_a_forks_and_can_end(desk: Desk, how: str) -> None:
    await desk.poller.look()
    mr = desk.open()
    await desk.poller.look()

    async def tell(action: str) -> None:
        if how == "webhook":
            await desk.tell(mr, action)
            await desk.work()
        else:
            await desk.poller.look()

    desk.server.delete_source(mr)
    await tell("update")
    known = await desk.world.read(merge_requests.opened)
    assert [one.source_project_id for one in known] == [0]
    desk.server.close(mr)
    await tell("close")
    assert await live(desk) == []


async def news(desk: Desk) -> list[str]:
    rows = await desk.world.read(
        lambda tx: tx.all("SELECT body FROM outbox WHERE lane = ? AND kind = 'news' ORDER BY id", (OPERATORS,))
    )
    return [json.loads(row["body"])["text"] for row in rows]


async def test_an_expired_token_is_told_once_and_heals_when_its_file_has_another(tmp_path: Path) -> None:
    async with a_desk(tmp_path, matrix={"operations_room": OPERATORS}) as desk:
        token = [desk.server.token_for(desk.bot)]
        gitlab = GitLab(desk.server.url, token[0], desk.world.clock, 2, GitlabRoute(newest_token=lambda: token[0]))
        world, polled = desk.world, list[bool]()
        poller = Poller(world.config, world.database, gitlab, world.intents, world.clock, polled.append)
        desk.server.revoke(token[0])
        for again in (False, True):  # the second as after a restart
            assert len(await news(desk)) == int(again)
            await _run_until(poller, polled, len(polled) + 1)
            assert len(await news(desk)) == 1
        assert "refuses our token (401)" in poller.problem
        assert "gitlab.token_file" in (await news(desk))[0]
        token[0] = desk.server.token_for(desk.bot)
        await _run_until(poller, polled, len(polled) + 1)
        assert polled[-1]
        assert poller.problem == ""
        assert (await news(desk))[1:] == ["GitLab takes ravebot's token again: ravebot goes on, and catches up."]
        await gitlab.close()


async def _run_until(poller: Poller, polled: list[bool], count: int) -> None:
    task = asyncio.create_task(poller.run())
    async with asyncio.timeout(60):
        while len(polled) < count:
            await asyncio.sleep(0.005)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
