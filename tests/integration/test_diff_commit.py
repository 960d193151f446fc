"""What was approved becomes one commit in GitLab, once, or is refused with what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.diff.keeping import MAX_KEPT_BYTES
from ravebot.agents.diff.model import Change, ChangeKind, CommitOrder, Committed, Diff, canonical, hash_of
from ravebot.errors import Refused, Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.providers.memory import MemoryProvider
from ravebot.sandboxes.model import MergeRequestRef
from tests.support.gitlab import DEVELOPER, MAINTAINER, REPORTER, GitLabServer, MergeRequest, Project, User
from tests.support.records import World, a_world

pytestmark = pytest.mark.integration

CREATED, UPDATED, DELETED = ChangeKind
CHANGES = (
    Change("bin/run", UPDATED, executable=False),
    Change("new/größe.sh", CREATED, b"#!/bin/sh\n", executable=True),
    Change("old.txt", DELETED),
    Change("src/app.py", UPDATED, b"\xff\0binary"),
)


@dataclass
class Scene:
    """A merge request, and what was approved for it. `diffs` is as another process would have it, too."""

    gitlab: GitLabServer
    client: GitLab
    diffs: Diffs
    bot: User
    alice: User
    project: Project
    mr: MergeRequest
    base_sha: str
    world: World

    def diff(self, *changes: Change) -> Diff:
        made = changes or CHANGES
        return Diff(self.base_sha, made, "", hash_of(canonical(self.base_sha, made)))

    async def order(self, *changes: Change, attempted: bool = False) -> CommitOrder:
        kept = await self.diffs.keep(self.diff(*changes))
        ref = MergeRequestRef(self.project.id, self.mr.iid)
        return CommitOrder(ref, self.base_sha, kept, "coder", "alice", "bob", 12, "0a1b2c3d", attempted)

    @property
    def posts(self) -> int:
        return len([one for one in self.gitlab.requests if one.method == "POST" and "/commits" in one.path])

    def commits_of_ours(self) -> int:
        history = self.gitlab.state.history(self.project, self.mr.sha)
        return sum("Ravebot-Approval: 12.0a1b2c3d" in self.project.facts[sha].message for sha in history)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with a_world(tmp_path) as world, GitLabServer() as gitlab:
        bot, alice = gitlab.add_user("ravebot"), gitlab.add_user("alice")
        files = {"src/app.py": "one\n", "old.txt": "old\n", "bin/run": "#!/bin/sh\n", "kept.txt": "kept\n"}
        project = gitlab.add_project("group/app", files)
        gitlab.set_role(project, bot, DEVELOPER)
        mr = gitlab.open_merge_request(project, alice, branch="alice/feature")
        client = GitLab(gitlab.url, gitlab.token_for(bot), timeout_seconds=2)
        diffs = Diffs(world.database, MemoryProvider(), client, "agent", tmp_path, 1024**2)
        try:
            yield Scene(gitlab, client, diffs, bot, alice, project, mr, mr.sha, world)
        finally:
            gitlab.restore()
            await client.close()


async def test_one_commit_holds_every_change_with_its_mode_and_trailers(scene: Scene) -> None:
    hooked = scene.gitlab.add_hook(scene.project, "http://127.0.0.1:1/hook")
    made = await scene.diffs.commit(await scene.order())
    assert made == Committed(scene.mr.sha, f"{scene.gitlab.url}/group/app/-/commit/{scene.mr.sha}")
    assert scene.gitlab.files_of(scene.mr) == {
        "src/app.py": b"\xff\0binary",
        "bin/run": b"#!/bin/sh\n",
        "kept.txt": b"kept\n",
        "new/größe.sh": b"#!/bin/sh\n",
    }
    facts = scene.project.facts[made.sha]
    assert facts.parent == scene.base_sha
    assert facts.executable == {"new/größe.sh"}
    assert facts.message.endswith(
        "\n\nRavebot-Agent: coder\nRavebot-Asked-By: alice\nRavebot-Approved-By: bob\nRavebot-Approval: 12.0a1b2c3d\n"
    )
    await scene.gitlab.settle()
    assert hooked.id in [attempt.message.hook.id for attempt in scene.gitlab.deliveries]


async def test_a_file_and_a_folder_take_each_others_place(scene: Scene) -> None:
    changes = (
        Change("old.txt", DELETED),
        Change("old.txt/a", CREATED, b"1"),
        Change("src", CREATED, b"2"),
        Change("src/app.py", DELETED),
    )
    await scene.diffs.commit(await scene.order(*changes))
    files = scene.gitlab.files_of(scene.mr)
    assert (files["old.txt/a"], files["src"]) == (b"1", b"2")
    assert not {"old.txt", "src/app.py"} & files.keys()


@pytest.mark.parametrize("hangs_up", [True, False])
async def test_a_commit_whose_answer_was_lost_is_found_and_not_made_again(scene: Scene, hangs_up: bool) -> None:
    lose = scene.gitlab.hang_up if hangs_up else partial(scene.gitlab.fail, 502)
    lose(count=1, method="POST", path="/repository/commits", after=True)
    order = await scene.order()
    with pytest.raises(Unavailable):
        await scene.diffs.commit(order)
    made = await scene.diffs.commit(replace(order, attempted=True))
    assert (made.sha, made.found) == (scene.mr.sha, True)
    assert (scene.commits_of_ours(), scene.posts) == (1, 1)


async def test_a_commit_that_was_attempted_and_not_made_is_made(scene: Scene) -> None:
    scene.gitlab.hang_up(count=1, method="POST", path="/repository/commits")
    order = await scene.order()
    with pytest.raises(Unavailable):
        await scene.diffs.commit(order)
    made = await scene.diffs.commit(replace(order, attempted=True))
    assert not made.found
    assert scene.commits_of_ours() == 1


async def test_a_request_that_is_still_under_way_does_not_become_a_second_commit(scene: Scene) -> None:
    scene.gitlab.hold(count=1, method="POST", path="/repository/commits")
    order = await scene.order()
    with pytest.raises(Unavailable):
        await scene.diffs.commit(order)
    scene.gitlab.fail(500, count=1, method="POST", path="/repository/commits")
    with pytest.raises(Unavailable):
        await scene.diffs.commit(replace(order, attempted=True))
    await scene.gitlab.let_go()
    made = await scene.diffs.commit(replace(order, attempted=True))
    assert made.found
    assert scene.commits_of_ours() == 1


async def test_a_late_first_request_wins_over_the_second_and_is_found(scene: Scene) -> None:
    """The first is carried out between the look for it and the second: GitLab refuses the second as overtaken."""
    order = await scene.order()
    await scene.diffs.commit(order)
    behind = scene.gitlab.state.branch
    seen = [scene.base_sha]

    class Late:
        """What was seen before the first request was carried out."""

        def __getattr__(self, name: str) -> object:
            return getattr(scene.client, name)

        async def branch(self, project_id: int, name: str) -> object:
            head = await scene.client.branch(project_id, name)
            assert head is not None
            return replace(head, sha=seen[0])

        async def merge_request(self, ref: MergeRequestRef) -> object:
            return replace(await scene.client.merge_request(ref), head_sha=seen[0])

    scene.diffs.repository = Late()  # type: ignore[assignment]
    made = await scene.diffs.commit(order)
    assert (made.sha, made.found) == (behind(scene.project, "alice/feature"), True)
    assert scene.commits_of_ours() == 1


async def test_it_is_found_behind_later_commits_and_after_the_branch_is_gone(scene: Scene) -> None:
    order = await scene.order()
    made = await scene.diffs.commit(order)
    for number in range(120):
        scene.gitlab.push(scene.mr, {"later": str(number)})
    again = await scene.diffs.commit(replace(order, attempted=True))
    assert (again.sha, again.found) == (made.sha, True)
    scene.gitlab.merge(scene.mr)
    scene.gitlab.delete_branch(scene.project, "alice/feature")
    again = await scene.diffs.commit(replace(order, attempted=True))
    assert (again.sha, again.found) == (made.sha, True)
    assert scene.posts == 1


def moved(scene: Scene) -> None:
    scene.gitlab.push(scene.mr, {"later": "1"})


def merged(scene: Scene) -> None:
    scene.gitlab.merge(scene.mr)


def closed(scene: Scene) -> None:
    scene.gitlab.close(scene.mr)


def protected(scene: Scene) -> None:
    scene.gitlab.protect(scene.project, "alice/feature")


def without_role(scene: Scene) -> None:
    scene.gitlab.set_role(scene.project, scene.bot, REPORTER)


def gone(scene: Scene) -> None:
    scene.gitlab.delete_branch(scene.project, "alice/feature")


def unseen(scene: Scene) -> None:
    scene.gitlab.set_role(scene.project, scene.bot, 0)


@pytest.mark.parametrize(
    ("happened", "why"),
    [
        (moved, "approve that"),
        (merged, "is merged: reopen it"),
        (closed, "is closed: reopen it"),
        (protected, "Protected branches"),
        (without_role, "role Developer"),
        (gone, "branch is gone: push it again"),
        (unseen, "role Developer"),
    ],
)
async def test_what_can_not_be_committed_is_refused_with_what_to_do_and_not_tried(
    scene: Scene, happened: Callable[[Scene], None], why: str
) -> None:
    order = await scene.order()
    happened(scene)
    for attempted in (False, True):
        with pytest.raises(Refused, match=why):
            await scene.diffs.commit(replace(order, attempted=attempted))
    assert scene.posts == 0


async def test_a_protected_branch_that_we_may_push_to_takes_it(scene: Scene) -> None:
    scene.gitlab.protect(scene.project, "alice/feature", DEVELOPER)
    assert (await scene.diffs.commit(await scene.order())).sha == scene.mr.sha


async def test_a_forks_branch_is_refused(scene: Scene) -> None:
    fork = scene.gitlab.add_project("bob/app")
    theirs = scene.gitlab.open_merge_request(fork, scene.alice, branch="fix", fork_of=scene.project)
    order = replace(await scene.order(), mr=MergeRequestRef(scene.project.id, theirs.iid), head_sha=theirs.sha)
    with pytest.raises(Refused, match="comes from a fork"):
        await scene.diffs.commit(order)


async def test_a_token_that_may_only_read_is_refused_with_the_scope_that_it_needs(scene: Scene) -> None:
    reader = GitLab(scene.gitlab.url, scene.gitlab.token_for(scene.bot, ("read_api",)), timeout_seconds=2)
    scene.diffs.repository = reader
    try:
        with pytest.raises(Refused, match="token with scope api"):
            await scene.diffs.commit(await scene.order())
    finally:
        await reader.close()


async def test_a_push_between_the_look_and_the_commit_is_not_overwritten(scene: Scene) -> None:
    order = await scene.order()

    class Pushed:
        """Somebody pushes when everything was looked at."""

        def __getattr__(self, name: str) -> object:
            return getattr(scene.client, name)

        async def commit(self, *arguments: object) -> object:
            scene.gitlab.push(scene.mr, {"src/app.py": "theirs\n"})
            return await scene.client.commit(*arguments)  # type: ignore[arg-type]

    scene.diffs.repository = Pushed()  # type: ignore[assignment]
    with pytest.raises(Refused, match="has moved on"):
        await scene.diffs.commit(order)
    assert scene.gitlab.files_of(scene.mr)["src/app.py"] == b"theirs\n"
    assert scene.commits_of_ours() == 0


async def test_a_file_that_gitlab_has_already_is_not_overwritten(scene: Scene) -> None:
    with pytest.raises(Refused, match="has moved on"):
        await scene.diffs.commit(await scene.order(Change("kept.txt", CREATED, b"mine")))
    assert scene.gitlab.files_of(scene.mr)["kept.txt"] == b"kept\n"


async def test_what_gitlab_does_not_take_is_told_in_its_words(scene: Scene) -> None:
    scene.gitlab.fail(422, count=1, method="POST", path="/repository/commits")
    with pytest.raises(Refused, match="did not take the commit"):
        await scene.diffs.commit(await scene.order())


async def test_gitlab_that_is_slow_or_away_is_asked_again_later(scene: Scene) -> None:
    for status in (429, 502):
        scene.gitlab.fail(status, count=1, retry_after=7)
        with pytest.raises(Unavailable) as caught:
            await scene.diffs.commit(await scene.order())
        assert caught.value.retry_after_seconds == 7


async def test_a_diff_that_was_forgotten_changed_or_never_kept_is_refused(scene: Scene, tmp_path: Path) -> None:
    order = await scene.order()
    path = tmp_path / "diffs" / order.diff_hash
    form = path.read_bytes()
    path.write_bytes(form.replace(b"#!/bin/sh", b"#!/bin/xx"))
    with pytest.raises(Refused, match="was changed on this host"):
        await scene.diffs.commit(order)
    path.write_bytes(form[:-1])
    with pytest.raises(Refused, match="damaged"):
        await scene.diffs.commit(order)
    await scene.diffs.forget(order.diff_hash)
    for diff_hash in (order.diff_hash, "../../etc/passwd", ""):
        with pytest.raises(Refused, match="approve that"):
            await scene.diffs.commit(replace(order, diff_hash=diff_hash))
    assert scene.posts == 0


async def test_a_diff_of_another_commit_is_refused(scene: Scene) -> None:
    order = await scene.order()
    scene.gitlab.push(scene.mr, {"later": "1"})
    with pytest.raises(Refused, match="has moved on"):
        await scene.diffs.commit(replace(order, head_sha=scene.mr.sha))


async def test_kept_diffs_outlive_the_process_and_those_that_nobody_needs_are_dropped(
    scene: Scene, tmp_path: Path
) -> None:
    one, other = await scene.order(), await scene.order(Change("old.txt", DELETED))
    await scene.diffs.keep(scene.diff())
    assert {path.name for path in (tmp_path / "diffs").iterdir()} == {one.diff_hash, other.diff_hash}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "diffs").iterdir())
    fresh = Diffs(scene.world.database, MemoryProvider(), scene.client, "agent", tmp_path, 1024**2)
    fresh.clear()
    await fresh.keep_only({one.diff_hash})
    assert [path.name for path in (tmp_path / "diffs").iterdir()] == [one.diff_hash]
    assert (await fresh.commit(one)).sha == scene.mr.sha
    await fresh.forget(one.diff_hash)
    await fresh.forget(one.diff_hash)


async def test_no_more_diffs_are_kept_than_there_is_room_for(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "diffs").mkdir()
    with (tmp_path / "diffs" / "large").open("wb") as file:
        file.truncate(MAX_KEPT_BYTES)
    with pytest.raises(Unavailable, match="approve or deny"):
        await scene.diffs.keep(scene.diff())


async def test_our_role_lends_nobody_a_push_to_a_branch_that_is_protected_against_developers(scene: Scene) -> None:
    scene.gitlab.protect(scene.project, "alice/feature")
    scene.gitlab.set_role(scene.project, scene.bot, MAINTAINER)
    before = scene.mr.sha
    with pytest.raises(Refused, match="not everybody who may approve this"):
        await scene.diffs.commit(await scene.order())
    assert scene.mr.sha == before
