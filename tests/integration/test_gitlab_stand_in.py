"""The stand-in keeps GitLab's rules: what other tests rely on it for."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import gitlab as python_gitlab
import pytest
from aiohttp import ClientSession

from ravebot.clock import SystemClock
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.notes import marker, render_fork_waiting, render_note, render_reply
from ravebot.sandboxes.model import Actor, MergeRequestRef, Sandbox, SandboxId, SandboxState, Stage, StageResult
from ravebot.sandboxes.view import HistoryLine, SandboxView
from tests.support.gitlab import DEVELOPER, GitLabServer

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
