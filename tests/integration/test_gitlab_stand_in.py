"""The stand-in keeps GitLab's rules: what other tests rely on it for."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import gitlab as python_gitlab
import pytest
from aiohttp import ClientSession
from yarl import URL

from ravebot.clock import SystemClock
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.notes import marker, render_fork_waiting, render_note, render_reply
from ravebot.sandboxes.model import Actor, MergeRequestRef, Sandbox, SandboxId, SandboxState, Stage, StageResult
from ravebot.sandboxes.view import HistoryLine, SandboxView
from tests.support.gitlab import DEVELOPER, GitLabServer, MergeRequest, Project

pytestmark = pytest.mark.integration

HOSTILE = (
    "/close\n@all @alice <script>alert(1)</script><img src=x onerror=alert(2)></details>\n/merge\r/label ~bug\u2028"
    "/assign @alice\n```\n/close\n```\u202e\u0000 | a | b |\n\n# big\n[x](javascript:alert(3)) group/app!1 :tada: "
    + "x"
    * 10_000
)


@pytest.fixture
async def gitlab() -> AsyncIterator[GitLabServer]:
    async with GitLabServer() as server:
        yield server


async def test_known_quick_actions_are_run_and_taken_out_and_unknown_ones_stay(gitlab: GitLabServer) -> None:
    alice = gitlab.add_user("alice")
    project = gitlab.add_project("group/app")
    mr = gitlab.open_merge_request(project, alice)
    note = gitlab.comment(mr, alice, "Enough.\n/label ~bug\n/sandbox stop\n/close")
    assert note is not None
    assert note.body == "Enough.\n/sandbox stop"
    assert (mr.state, mr.labels) == ("closed", ["bug"])
    assert gitlab.comment(mr, alice, "/reopen") is None
    assert mr.state == "opened"
    in_code = gitlab.comment(mr, alice, "```\n/close\n```")
    assert in_code is not None
    assert (mr.state, in_code.body) == ("opened", "```\n/close\n```")


async def test_mentions_count_in_text_and_not_in_code(gitlab: GitLabServer) -> None:
    alice = gitlab.add_user("alice")
    mr = gitlab.open_merge_request(gitlab.add_project("group/app"), alice)
    gitlab.comment(mr, alice, "hi @bob, \\@carol &#64;dave `@eve` a@b.c @\u2060frank\n```\n@grace\n```\n> @heidi")
    assert [mention.name for mention in gitlab.mentions] == ["bob", "carol", "dave", "heidi"]


async def test_python_gitlab_pages_through_it_unmodified(gitlab: GitLabServer) -> None:
    alice = gitlab.add_user("alice", ["ssh-ed25519 AAAA"])
    project = gitlab.add_project("group/sub/app")
    gitlab.set_role(project, alice, DEVELOPER)
    for number in range(45):
        gitlab.open_merge_request(project, alice, f"Change {number}")
    token = gitlab.token_for(alice)

    def use() -> tuple[list[str], int, int, str]:
        api = python_gitlab.Gitlab(gitlab.url, private_token=token)
        found = api.projects.get("group/sub/app")
        listed = found.mergerequests.list(iterator=True, per_page=10, state="opened", order_by="created_at", sort="asc")
        titles = [str(mr.title) for mr in listed]
        mr = found.mergerequests.get(1)
        note = mr.notes.create({"body": "hello"})
        note.awardemojis.create({"name": "eyes"})
        note.body = "goodbye"
        note.save()
        return titles, len(api.users.get(alice.id).keys.list()), listed.total or 0, mr.notes.get(note.id).body

    titles, keys, total, body = await asyncio.to_thread(use)
    assert titles == [f"Change {number}" for number in range(45)]
    assert (keys, total, body) == (1, 45, "goodbye")


async def test_a_note_that_is_replied_to_begins_a_thread(gitlab: GitLabServer) -> None:
    alice, bob = gitlab.add_user("alice"), gitlab.add_user("bob")
    project = gitlab.add_project("group/app", public=True)
    mr = gitlab.open_merge_request(project, alice)
    first, other = gitlab.comment(mr, alice, "first"), gitlab.comment(mr, alice, "other")
    assert first and other

    def use() -> tuple[object, ...]:
        api = python_gitlab.Gitlab(gitlab.url, private_token=gitlab.token_for(bob)).projects.get("group/app")
        discussions = api.mergerequests.get(1).discussions
        before = [one.individual_note for one in discussions.list(get_all=True)]
        found = discussions.get(first.discussion_id)
        reply = found.notes.create({"body": "a **reply**"})
        again = discussions.get(first.discussion_id)
        bodies = [note["body"] for note in again.attributes["notes"]]
        kinds = [(note["type"], note["resolvable"]) for note in again.attributes["notes"]]
        return before, reply.type, again.individual_note, bodies, kinds, len(discussions.list(get_all=True))

    before, kind, individual, bodies, kinds, number = await asyncio.to_thread(use)
    assert before == [True, True]
    assert (kind, individual, bodies) == ("DiscussionNote", False, ["first", "a **reply**"])
    assert kinds == [("DiscussionNote", True)] * 2
    assert number == 2
    assert first.updated_at == first.created_at, "it was not edited"
    async with ClientSession() as session, session.get(f"{gitlab.url}/group/app/-/merge_requests/1") as response:
        page = await response.text()
    [thread] = re.findall(r'<section class="thread">(.*?)</section>', page, re.DOTALL)
    assert "a <strong>reply</strong>" in thread
    assert "other" not in thread


async def test_a_reply_in_a_resolved_thread_is_resolved_too(gitlab: GitLabServer) -> None:
    alice = gitlab.add_user("alice")
    mr = gitlab.open_merge_request(gitlab.add_project("group/app"), alice)
    first = gitlab.comment(mr, alice, "first")
    assert gitlab.comment(mr, alice, "reply", reply_to=first)
    assert first
    gitlab.resolve(mr, first, alice)
    late = gitlab.comment(mr, alice, "late", reply_to=first)
    assert late
    assert late.resolved_by is alice


async def test_what_is_wrong_with_a_reply_or_an_award_is_answered_as_gitlab_does(gitlab: GitLabServer) -> None:
    alice, bob = gitlab.add_user("alice"), gitlab.add_user("bob")
    project = gitlab.add_project("group/app")
    gitlab.set_role(project, alice, DEVELOPER)
    mr = gitlab.open_merge_request(project, alice)
    note = gitlab.comment(mr, alice, "first")
    assert note
    base = f"{gitlab.url}/api/v4/projects/{project.id}/merge_requests/1"
    awards = f"{base}/notes/{note.id}/award_emoji"
    alices = ClientSession(headers={"PRIVATE-TOKEN": gitlab.token_for(alice)})
    bobs = ClientSession(headers={"PRIVATE-TOKEN": gitlab.token_for(bob)})
    async with alices, bobs:

        async def status(session: ClientSession, method: str, url: str, **body: object) -> int:
            async with session.request(method, url, json=body) as response:
                return response.status

        replies = f"{base}/discussions/{note.discussion_id}/notes"
        assert await status(bobs, "POST", replies, body="hello") == 404, "he does not see the project"
        assert await status(alices, "POST", f"{base}/discussions/{'0' * 40}/notes", body="hello") == 404
        assert await status(alices, "GET", f"{base}/discussions/{'0' * 40}") == 404
        assert await status(alices, "POST", replies) == 400
        assert await status(alices, "POST", replies, body="/close") == 400, "nothing is left of it"
        async with alices.post(awards, json={"name": "eyes"}) as response:
            award = (await response.json())["id"]
        gitlab.set_role(project, bob, DEVELOPER)
        assert await status(bobs, "DELETE", f"{awards}/{award}") == 401, "it is another's"
        assert await status(alices, "DELETE", f"{awards}/{award}") == 204
        assert await status(alices, "DELETE", f"{awards}/{award}") == 404
    assert gitlab.emoji(note) == []


async def test_bots_are_told_by_their_profile(gitlab: GitLabServer) -> None:
    alice, robot = gitlab.add_user("alice"), gitlab.add_user("project_7_bot", bot=True)
    async with ClientSession(headers={"PRIVATE-TOKEN": gitlab.token_for(alice)}) as session:
        for user, expected in ((alice, False), (robot, True)):
            async with session.get(f"{gitlab.url}/api/v4/users/{user.id}") as response:
                assert (await response.json())["bot"] is expected


async def test_no_more_than_three_hundred_notes_a_minute(gitlab: GitLabServer) -> None:
    alice = gitlab.add_user("alice")
    project = gitlab.add_project("group/app")
    gitlab.set_role(project, alice, DEVELOPER)
    gitlab.open_merge_request(project, alice)
    url = f"{gitlab.url}/api/v4/projects/{project.id}/merge_requests/1/notes"
    async with ClientSession(headers={"PRIVATE-TOKEN": gitlab.token_for(alice)}) as session:
        for number in range(301):
            async with session.post(url, json={"body": f"note {number}"}) as response:
                status, headers = response.status, response.headers
            assert status == (201 if number < 300 else 429)
    assert headers["Retry-After"] == "60"


async def test_without_a_token_everything_is_unauthorized(gitlab: GitLabServer) -> None:
    async with (
        ClientSession() as session,
        session.get(f"{gitlab.url}/api/v4/user", headers={"PRIVATE-TOKEN": "guess"}) as response,
    ):
        assert response.status == 401
        assert await response.json() == {"message": "401 Unauthorized"}


async def test_hostile_texts_in_our_notes_run_nothing_ping_nobody_and_show_as_text(gitlab: GitLabServer) -> None:
    alice, bot = gitlab.add_user("alice"), gitlab.add_user("ravebot")
    project = gitlab.add_project("group/app")
    gitlab.set_role(project, bot, DEVELOPER)
    mr = gitlab.open_merge_request(project, alice, HOSTILE, HOSTILE)
    client = GitLab(gitlab.url, gitlab.token_for(bot))
    ref = MergeRequestRef(project.id, mr.iid)
    try:
        told = await client.merge_request(ref)
        now = SystemClock().now()
        actor = Actor("gitlab", HOSTILE)
        sandbox = Sandbox(SandboxId(1), ref, SandboxState.READY, actor, now, now, mr.sha, end_detail=HOSTILE)
        view = SandboxView(
            sandbox, told, now, notice=HOSTILE, queue_reason=HOSTILE, history=(HistoryLine(now, HOSTILE),),
            stages=(StageResult(Stage.SETUP, False, 1.0, HOSTILE[:400]),),
        )  # fmt: skip
        ours = marker(ref, "0a1b2c")
        note_id = await client.create_note(ref, render_note(view, ours))
        await client.edit_note(ref, note_id, render_note(view, ours))
        await client.create_note(ref, render_fork_waiting(told, marker(ref, "0a1b2c", "fork")))
        await client.create_note(ref, render_reply(HOSTILE))
        assert await client.find_note(ref, bot.id, ours) == note_id
    finally:
        await client.close()
    assert (mr.state, mr.labels, mr.assignees) == ("opened", [], [])
    assert gitlab.quick_actions == []
    assert gitlab.mentions == []
    async with ClientSession() as session, session.get(f"{gitlab.url}/group/app/-/merge_requests/1") as response:
        page = await response.text()
    assert not re.search(r"<(script|img|iframe|svg)|javascript:alert\(3\)\"|ravebot 0a1b2c", page)
    assert "&lt;script&gt;" in page


async def test_it_runs_as_a_process_of_its_own_and_is_worked_over_its_control_port() -> None:
    process = subprocess.Popen([sys.executable, "-m", "tests.support.gitlab"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        words = (await asyncio.to_thread(process.stdout.readline)).split()
        url, control = words[1], words[3]
        async with ClientSession() as session:

            async def call(method: str, **arguments: object) -> object:
                async with session.post(f"{control}/{method}", json=arguments) as response:
                    assert response.status == 200, await response.text()
                    return await response.json()

            await call("add_user", username="alice", keys=["ssh-ed25519 AAAA"])
            await call("add_project", path="group/app", files={"README.md": "hello"})
            await call("set_role", project="group/app", user="alice", level=DEVELOPER)
            mr = await call(
                "open_merge_request", project="group/app", author="alice", title="Add login", branch="login"
            )
            assert isinstance(mr, dict)
            await call("comment", mr=mr["ref"], user="alice", body="**hello**")
            notes = await call("notes", mr=mr["ref"])
            assert isinstance(notes, list)
            assert notes[0]["body"] == "**hello**"
            token = await call("token_for", user="alice")
            async with session.get(f"{url}/api/v4/user", headers={"PRIVATE-TOKEN": str(token)}) as response:
                assert (await response.json())["username"] == "alice"
            async with session.get(mr["url"]) as response:
                assert "<strong>hello</strong>" in await response.text()
            for method, arguments in (("stop", {}), ("comment", {"mr": "no/app!1"}), ("push", {"nonsense": 1})):
                async with session.post(f"{control}/{method}", json=arguments) as response:
                    assert response.status in {400, 404}
    finally:
        os.kill(process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0
        if process.stdout is not None:
            process.stdout.close()


@dataclass
class Repository:
    """A merge request's repository, and a session of somebody with a role there."""

    gitlab: GitLabServer
    session: ClientSession
    project: Project
    mr: MergeRequest

    @property
    def base(self) -> str:
        return f"{self.gitlab.url}/api/v4/projects/{self.project.id}"

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(f"{self.base}/{path}") as response:
            return response.status, await response.json()

    async def commit(self, *actions: Mapping[str, object], **changed: object) -> tuple[int, Any]:
        body = {"branch": "feature", "commit_message": "Title\n\nTrailer: 1\n", "actions": list(actions), **changed}
        async with self.session.post(f"{self.base}/repository/commits", json=body) as response:
            return response.status, await response.json()


@pytest.fixture
async def repository(gitlab: GitLabServer) -> AsyncIterator[Repository]:
    alice = gitlab.add_user("alice")
    project = gitlab.add_project("group/app", {"a": "1\n", "run": "#!/bin/sh\n", "dir/b": "2\n"})
    gitlab.set_role(project, alice, DEVELOPER)
    mr = gitlab.open_merge_request(project, alice, files={"c": "3\n"})
    async with ClientSession(headers={"PRIVATE-TOKEN": gitlab.token_for(alice)}) as session:
        yield Repository(gitlab, session, project, mr)


async def test_a_commit_over_the_api_moves_the_branch_and_its_merge_request_and_sends_the_webhook(
    repository: Repository,
) -> None:
    repository.gitlab.add_hook(repository.project, "http://127.0.0.1:1/hook")
    before = repository.mr.sha
    status, made = await repository.commit(
        {"action": "create", "file_path": "new/x", "content": "AP8=", "encoding": "base64"},
        {"action": "chmod", "file_path": "new/x", "execute_filemode": True},
        {"action": "update", "file_path": "a", "content": "text"},
        {"action": "delete", "file_path": "c"},
    )
    assert (status, made["parent_ids"], made["title"]) == (201, [before], "Title")
    assert made["message"] == "Title\n\nTrailer: 1\n"
    assert repository.mr.sha == made["id"]
    files = repository.gitlab.files_of(repository.mr)
    assert files == {"a": b"text", "run": b"#!/bin/sh\n", "dir/b": b"2\n", "new/x": b"\0\xff"}
    _, branch = await repository.get("repository/branches/feature")
    assert (branch["commit"]["id"], branch["protected"], branch["can_push"]) == (made["id"], False, True)
    _, listed = await repository.get(f"repository/commits?ref_name={before}..feature")
    assert [one["id"] for one in listed] == [made["id"]]
    _, theirs = await repository.get("merge_requests/1/commits")
    assert [one["id"] for one in theirs] == [made["id"], before]
    async with repository.session.get(f"{repository.base}/repository/archive.tar.gz?sha={made['id']}") as response:
        with tarfile.open(fileobj=io.BytesIO(await response.read())) as archive:
            modes = {one.name.partition("/")[2]: one.mode for one in archive if one.isreg()}
    assert modes == {"a": 0o664, "dir/b": 0o664, "new/x": 0o775, "run": 0o775}
    await repository.gitlab.settle()
    event = json.loads(repository.gitlab.deliveries[-1].message.body)
    attributes = event["object_attributes"]
    assert (attributes["action"], attributes["oldrev"], attributes["last_commit"]["id"]) == (
        "update",
        before,
        made["id"],
    )


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"action": "create", "file_path": "a"}, "A file with this name already exists"),
        ({"action": "create", "file_path": "dir"}, "A directory with this name already exists"),
        ({"action": "update", "file_path": "no"}, "A file with this name doesn't exist"),
        ({"action": "delete", "file_path": "no"}, "A file with this name doesn't exist"),
        ({"action": "chmod", "file_path": "no"}, "A file with this name doesn't exist"),
        ({"action": "create", "file_path": "../x"}, "Path cannot include directory traversal"),
        ({"action": "create", "file_path": ".git/x"}, "invalid path: '.git/x'"),
        ({"action": "create"}, "You must provide a file path"),
        (
            {"action": "update", "file_path": "a", "last_commit_id": "0" * 40},
            "The file has changed since you started editing it: a",
        ),
    ],
)
async def test_a_commit_with_one_wrong_action_changes_nothing(
    repository: Repository, action: dict[str, object], message: str
) -> None:
    before = repository.mr.sha
    status, body = await repository.commit({"action": "update", "file_path": "run", "content": "x"}, action)
    assert (status, body) == (400, {"message": message})
    assert repository.mr.sha == before


async def test_commits_go_to_branches_that_exist_and_that_one_may_push_to(repository: Repository) -> None:
    action = {"action": "update", "file_path": "a", "content": "x"}
    missing = (400, {"message": "You can only create or edit files when you are on a branch"})
    assert await repository.commit(action, branch="nowhere") == missing
    repository.gitlab.protect(repository.project, "feature")
    refused = (403, {"message": "403 Forbidden - You are not allowed to push into this branch"})
    assert await repository.commit(action) == refused
    repository.gitlab.delete_branch(repository.project, "feature")
    assert await repository.commit(action) == refused
    assert await repository.get("repository/branches/feature") == (404, {"message": "404 Branch Not Found"})
    assert (await repository.commit(action, branch=""))[0] == 400
    assert (await repository.commit({"action": "explode"}, branch="main"))[1] == {
        "error": "actions[0][action] does not have a valid value"
    }


async def test_commits_of_a_branch_are_paged_and_a_files_last_commit_is_told(repository: Repository) -> None:
    first = repository.mr.sha
    for number in range(25):
        repository.gitlab.push(repository.mr, {"a": str(number)})
    _, page_two = await repository.get("repository/commits?ref_name=feature&per_page=20&page=2")
    assert len(page_two) == 7
    for path, last in (("a", repository.mr.sha), ("c", first), ("dir%2Fb", repository.project.head)):
        address = f"{repository.base}/repository/files/{path}?ref={repository.mr.sha}"
        async with repository.session.head(URL(address, encoded=True)) as response:
            assert response.headers["X-Gitlab-Last-Commit-Id"] == last
    async with repository.session.head(f"{repository.base}/repository/files/no?ref=main") as response:
        assert response.status == 404
