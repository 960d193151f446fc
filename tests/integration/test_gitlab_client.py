"""The client against the stand-in: answers, roles, paging, and every way of not answering."""

from __future__ import annotations

import asyncio
import os
import tarfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import asyncssh
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ravebot.agents.diff.model import BranchHead
from ravebot.errors import Forbidden, NotFound, Refused, Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.transport import Unanswered
from ravebot.notify.delivery import LANES_AT_ONCE
from ravebot.sandboxes.model import MergeRequestRef, Person
from tests.support.clock import ManualClock
from tests.support.gitlab import DEVELOPER, GUEST, MAINTAINER, GitLabServer, MergeRequest, Project, User
from tests.support.tls import self_signed

pytestmark = pytest.mark.integration

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HALF = b'{"id": 7, "us'


def public_key(kind: str = "ssh-ed25519") -> str:
    return asyncssh.generate_private_key(kind).export_public_key("openssh").decode().strip()


@dataclass
class Scene:
    """A GitLab with a project, the bot and an author, and the client under test."""

    gitlab: GitLabServer
    client: GitLab
    token: str
    bot: User
    alice: User
    project: Project
    mr: MergeRequest

    @property
    def ref(self) -> MergeRequestRef:
        return MergeRequestRef(self.project.id, self.mr.iid)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with GitLabServer() as gitlab:
        bot, alice = gitlab.add_user("ravebot"), gitlab.add_user("alice")
        project = gitlab.add_project("group/sub/app", {"README.md": "hello", "bin/run": "#!/bin/sh\n"})
        gitlab.set_role(project, bot, MAINTAINER)
        gitlab.set_role(project, alice, DEVELOPER)
        mr = gitlab.open_merge_request(project, alice, "Add login", "login", {"src/login.py": "x = 1\n"})
        token = gitlab.token_for(bot)
        client = GitLab(gitlab.url, token, ManualClock(NOW), timeout_seconds=2)
        try:
            yield Scene(gitlab, client, token, bot, alice, project, mr)
        finally:
            gitlab.restore()
            await client.close()


async def test_who_we_are_and_what_we_talk_to(scene: Scene) -> None:
    assert await scene.client.me() == Person(scene.bot.id, "ravebot")
    assert await scene.client.version() == "18.0.0-ee"


async def test_a_project_is_found_by_path_and_by_id(scene: Scene) -> None:
    there = (scene.project.id, "group/sub/app")
    assert await scene.client.project("group/sub/app") == there
    assert await scene.client.project(scene.project.id) == there


async def test_a_project_we_may_not_see_is_not_found(scene: Scene) -> None:
    scene.gitlab.add_project("secret/app")
    with pytest.raises(NotFound):
        await scene.client.project("secret/app")
    with pytest.raises(NotFound):
        await scene.client.project("../../user")


async def test_a_merge_request_is_read_whole(scene: Scene) -> None:
    bob = scene.gitlab.add_user("bob")
    fork = scene.gitlab.add_project("bob/app")
    theirs = scene.gitlab.open_merge_request(
        fork,
        bob,
        "Fix",
        "fix",
        fork_of=scene.project,
        draft=True,
        assignees=(scene.alice,),
        reviewers=(bob, scene.alice),
    )
    mr = await scene.client.merge_request(MergeRequestRef(scene.project.id, theirs.iid))
    assert mr.full_ref == "group/sub/app!2"
    assert (mr.title, mr.source_branch, mr.head_sha) == ("Draft: Fix", "fix", theirs.sha)
    assert mr.author == Person(bob.id, "bob")
    assert mr.people == (Person(scene.alice.id, "alice"), Person(bob.id, "bob"))
    assert mr.draft
    assert mr.from_fork
    assert mr.source_project_id == fork.id
    assert mr.state == "opened"
    assert mr.updated_at == theirs.updated_at.replace(microsecond=0)
    assert mr.web_url == f"{scene.gitlab.url}/group/sub/app/-/merge_requests/2"


async def test_open_merge_requests_are_found_over_many_pages_in_matching_projects_only(scene: Scene) -> None:
    for number in range(120):
        scene.gitlab.open_merge_request(scene.project, scene.alice, f"Change {number}")
    scene.gitlab.close(scene.mr)
    other = scene.gitlab.add_project("other/app")
    scene.gitlab.set_role(other, scene.bot, DEVELOPER)
    scene.gitlab.open_merge_request(other, scene.alice)
    strange = scene.gitlab.add_project("group/strange", public=True)
    scene.gitlab.open_merge_request(strange, scene.alice)
    (mine,) = await scene.client.projects(("group/*",))
    assert mine == (scene.project.id, "group/sub/app")
    found = await scene.client.open_merge_requests(scene.project.id)
    assert [mr.ref.iid for mr in found] == list(range(2, 122))
    assert {mr.project_path for mr in found} == {"group/sub/app"}


async def test_roles_are_asked_by_id_and_strangers_have_none(scene: Scene) -> None:
    guest, stranger = scene.gitlab.add_user("guest"), scene.gitlab.add_user("stranger")
    scene.gitlab.set_role(scene.project, guest, GUEST)
    people = (scene.alice.id, guest.id, stranger.id, 999_999)
    assert [await scene.client.access_level(scene.project.id, one) for one in people] == [30, 10, 0, 0]
    scene.alice.state = "blocked"
    assert await scene.client.access_level(scene.project.id, scene.alice.id) == 0


async def test_a_user_is_found_by_name_whatever_its_case(scene: Scene) -> None:
    assert await scene.client.user("Alice") == Person(scene.alice.id, "alice")
    assert await scene.client.user("nobody") is None


async def test_only_keys_to_log_in_with_are_given_and_only_type_and_blob(scene: Scene) -> None:
    good, rsa, signing, expired, soon = (
        public_key(), public_key("ssh-rsa"), public_key(), public_key(), public_key("ecdsa-sha2-nistp256")
    )  # fmt: skip
    add = scene.gitlab.add_key
    add(scene.alice, good + " alice@laptop\nssh-ed25519 AAAA injected")
    add(scene.alice, f"{rsa} comment with spaces")
    add(scene.alice, signing, usage_type="signing")
    add(scene.alice, expired, expires_at=(NOW - timedelta(days=1)).isoformat())
    add(scene.alice, soon, expires_at=(NOW + timedelta(days=1)).isoformat(), usage_type="auth")
    add(scene.alice, 'command="rm -rf /" ' + public_key())
    add(scene.alice, "not a key at all")
    keys = await scene.client.ssh_keys(scene.alice.id)
    assert keys == tuple(" ".join(key.split()[:2]) for key in (good, rsa, soon))


async def test_the_archive_of_a_commit_is_saved_whole(scene: Scene, tmp_path: Path) -> None:
    target = tmp_path / "source.tar.gz"
    size = await scene.client.archive(scene.project.id, scene.mr.sha, target, 10_000_000)
    assert size == target.stat().st_size
    with tarfile.open(target) as archive:
        top = f"app-{scene.mr.sha}-{scene.mr.sha}"
        names = {entry.name: entry.mode for entry in archive}
    assert {f"{top}/README.md", f"{top}/src/login.py", f"{top}/bin/run"} <= set(names)
    assert names[f"{top}/bin/run"] & 0o100


async def test_an_archive_that_is_too_large_is_refused_and_leaves_nothing(scene: Scene, tmp_path: Path) -> None:
    sha = scene.gitlab.push(scene.mr, {"large.bin": os.urandom(400_000)})
    target = tmp_path / "source.tar.gz"
    with pytest.raises(Refused, match=r"larger than 98 KiB.*sandbox\.max_source"):
        await scene.client.archive(scene.project.id, sha, target, 100_000)
    assert not target.exists()


async def test_an_archive_cut_short_is_no_archive(scene: Scene, tmp_path: Path) -> None:
    scene.gitlab.truncate_archives()
    target = tmp_path / "source.tar.gz"
    with pytest.raises(Unavailable):
        await scene.client.archive(scene.project.id, scene.mr.sha, target, 10_000_000)
    assert not target.exists()


async def test_a_commit_that_is_gone_is_not_found(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await scene.client.archive(scene.project.id, "0" * 40, tmp_path / "source.tar.gz", 10_000_000)
    assert list(tmp_path.iterdir()) == []


async def test_a_note_is_posted_found_edited_and_missed_when_deleted(scene: Scene) -> None:
    marker = "<!-- ravebot:abc -->"
    scene.gitlab.comment(scene.mr, scene.alice, f"{marker}\nI am not the bot")
    for number in range(130):
        scene.gitlab.comment(scene.mr, scene.alice, f"chatter {number}")
    assert await scene.client.find_note(scene.ref, scene.bot.id, marker) is None
    note_id = await scene.client.create_note(scene.ref, f"{marker}\nfirst")
    assert await scene.client.find_note(scene.ref, scene.bot.id, marker) == note_id
    await scene.client.edit_note(scene.ref, note_id, f"{marker}\nsecond")
    note = scene.mr.notes[note_id]
    assert note.body == f"{marker}\nsecond"
    scene.gitlab.delete_note(scene.mr, note)
    with pytest.raises(NotFound):
        await scene.client.edit_note(scene.ref, note_id, f"{marker}\nthird")
    assert await scene.client.find_note(scene.ref, scene.bot.id, marker) is None


async def test_comments_after_one_are_listed_oldest_first_without_gitlabs_own(scene: Scene) -> None:
    first = scene.gitlab.comment(scene.mr, scene.alice, "first")
    assert first is not None
    scene.gitlab.push(scene.mr, {"a": "b"})
    scene.gitlab.comment(scene.mr, scene.alice, "/sandbox stop")
    scene.gitlab.comment(scene.mr, scene.bot, "done")
    found = await scene.client.notes_after(scene.ref, first.id, "group/sub/app")
    assert [(one.author.username, one.text) for one in found] == [("alice", "/sandbox stop"), ("ravebot", "")]
    assert await scene.client.notes_after(scene.ref, found[-1].note_id) == []


async def test_of_long_comments_only_the_command_is_held(scene: Scene) -> None:
    for _ in range(25):  # more than a page
        scene.gitlab.comment(scene.mr, scene.alice, f"/sandbox extend 1h\n{'x' * 500_000}")
    tracemalloc.start()
    found = await scene.client.notes_after(scene.ref, 0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [one.text for one in found] == ["/sandbox extend 1h"] * 25
    assert held < 6_000_000  # of 12.5 MB


async def test_reacting_twice_gives_one_emoji(scene: Scene) -> None:
    note = scene.gitlab.comment(scene.mr, scene.alice, "/sandbox start")
    assert note is not None
    await scene.client.react(scene.ref, note.id, "eyes")
    await scene.client.react(scene.ref, note.id, "eyes")
    await scene.client.react(scene.ref, note.id, "white_check_mark")
    assert scene.gitlab.emoji(note) == ["eyes", "white_check_mark"]
    with pytest.raises(NotFound):
        await scene.client.react(scene.ref, 424242, "eyes")


async def test_a_revoked_token_says_what_to_do_and_not_what_it_was(scene: Scene) -> None:
    scene.gitlab.revoke(scene.token)
    with pytest.raises(Unavailable, match=r"gitlab\.token_file") as caught:
        await scene.client.me()
    assert scene.token not in str(caught.value)
    assert scene.token not in repr(caught.value.__cause__)


async def test_a_token_of_too_small_a_scope_says_which_one_is_needed(scene: Scene) -> None:
    reader = GitLab(scene.gitlab.url, scene.gitlab.token_for(scene.bot, ("read_api",)), ManualClock(NOW))
    try:
        assert (await reader.me()).username == "ravebot"
        with pytest.raises(Forbidden, match="put a token with scope api into"):
            await reader.create_note(scene.ref, "hello")
    finally:
        await reader.close()


async def test_json_of_another_form_is_an_answer_that_is_not_gitlabs() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"login": "please"})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        client = GitLab(str(server.make_url("/")), "token")
        try:
            for call in (client.projects(("*",)), client.open_merge_requests(1), client.ssh_keys(1), client.me()):
                with pytest.raises(Unavailable, match="not its API"):
                    await call
        finally:
            await client.close()


async def test_a_role_too_low_is_forbidden(scene: Scene) -> None:
    scene.gitlab.set_role(scene.project, scene.bot, GUEST)
    with pytest.raises(Forbidden, match="403"):
        await scene.client.create_note(scene.ref, "hello")


async def test_a_lock_that_another_request_holds_is_waited_for(scene: Scene) -> None:
    scene.gitlab.fail(409, 1, retry_after=3)
    with pytest.raises(Unavailable, match="409") as caught:
        await scene.client.create_note(scene.ref, "hello")
    assert caught.value.retry_after_seconds == 3


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_server_error_is_unavailable_and_is_not_tried_again_behind_our_back(scene: Scene, status: int) -> None:
    scene.gitlab.fail(status)
    with pytest.raises(Unavailable, match=str(status)):
        await scene.client.create_note(scene.ref, "hello")
    assert len(scene.gitlab.requests) == 1
    scene.gitlab.restore()
    await scene.client.create_note(scene.ref, "hello")
    assert [note.body for note in scene.gitlab.notes(scene.mr)] == ["hello"]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("999999999", 3600.0),
        ("soon", None),
        (None, None),
    ],
)
async def test_how_long_to_wait_is_read_from_a_number_or_a_date(
    scene: Scene, header: str | None, seconds: float | None
) -> None:
    scene.gitlab.fail(429, retry_after=header)
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await scene.client.merge_request(scene.ref)
    assert caught.value.retry_after_seconds == seconds
    assert time.monotonic() - started < 5


async def test_the_rate_limit_is_told_and_passes(scene: Scene) -> None:
    scene.gitlab.rate_limit(2, per_seconds=0.3)
    await scene.client.me()
    await scene.client.me()
    with pytest.raises(Unavailable) as caught:
        await scene.client.me()
    assert caught.value.retry_after_seconds == 1
    await asyncio.sleep(0.35)
    await scene.client.me()


async def test_a_silent_server_is_unavailable_in_time_and_leaves_the_loop_free(scene: Scene) -> None:
    scene.gitlab.drop()
    started = time.monotonic()
    results = await asyncio.gather(*(scene.client.me() for _ in range(4)), return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert time.monotonic() - started < 7  # four threads, so all four wait at once
    scene.gitlab.restore()
    assert (await scene.client.me()).username == "ravebot"


async def test_a_post_whose_answer_was_lost_is_found_again_by_marker(scene: Scene) -> None:
    scene.gitlab.drop(1, method="POST", after=True)
    with pytest.raises(Unavailable):
        await scene.client.create_note(scene.ref, "<!-- m -->\nonce")
    scene.gitlab.restore()
    found = await scene.client.find_note(scene.ref, scene.bot.id, "<!-- m -->")
    assert [note.id for note in scene.gitlab.notes(scene.mr)] == [found]


async def test_nothing_listening_is_unavailable() -> None:
    client = GitLab("http://127.0.0.1:9", "token", timeout_seconds=1)
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            await client.me()
    finally:
        await client.close()


async def test_a_connection_that_is_closed_is_unavailable(scene: Scene) -> None:
    scene.gitlab.hang_up(method="POST", after=True)
    with pytest.raises(Unavailable, match="does not answer"):
        await scene.client.create_note(scene.ref, "hello")
    assert len(scene.gitlab.notes(scene.mr)) == 1


@pytest.mark.parametrize("location", ["{}/api/v4/user", "http://[/"])
async def test_the_token_does_not_follow_a_redirect_to_another_host(scene: Scene, location: str) -> None:
    headers = {"Location": location.format(scene.gitlab.url)}
    async with _answering(lambda: web.Response(status=302, headers=headers)) as url:
        client = GitLab(url, scene.token, timeout_seconds=1)
        try:
            with pytest.raises(Unavailable, match=r"set gitlab\.url to where it redirects to"):
                await client.me()
        finally:
            await client.close()
    assert scene.gitlab.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(text="<h1>Welcome</h1>", content_type="text/html"),
        lambda: web.Response(text="not json", content_type="application/json"),
        lambda: web.json_response(["a", "list"]),
        lambda: web.json_response({"id": "seven", "username": None}),
    ],
)
async def test_an_answer_that_is_not_gitlabs_is_unavailable_with_a_reason(answer: Callable[[], web.Response]) -> None:
    async with _answering(answer) as url:
        client = GitLab(url, "token", timeout_seconds=1)
        try:
            with pytest.raises(Unavailable, match="not its API"):
                await client.me()
        finally:
            await client.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 30\r\n\r\n" + HALF,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1e\r\n" + HALF,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + HALF,
        b"HTTP/1.1 200 OK\r\nContent-Ty",
        b"HTTP/1.1 2",
        b"",
    ],
    ids=["body", "chunk", "body without a length", "headers", "status", "nothing"],
)
async def test_half_an_answer_is_none_so_that_what_was_asked_may_have_been_done(answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        client = GitLab(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "token", timeout_seconds=1)
        try:
            with pytest.raises(Unanswered):
                await client.create_note(MergeRequestRef(1, 1), "hello")
        finally:
            await client.close()


async def test_one_item_that_makes_no_sense_does_not_hide_the_others() -> None:
    people = [{"id": None, "username": "alice"}, {"id": 7, "username": "alice"}]
    async with _answering(lambda: web.json_response(people)) as url:
        client = GitLab(url, "token", timeout_seconds=1)
        try:
            assert await client.user("alice") == Person(7, "alice")
        finally:
            await client.close()


@asynccontextmanager
async def _answering(answer: Callable[[], web.Response]) -> AsyncIterator[str]:
    """A server that answers everything the same."""

    async def handle(_request: web.Request) -> web.Response:
        return answer()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_as_many_notes_as_are_posted_at_once_reach_gitlab_at_once(scene: Scene) -> None:
    scene.gitlab.drop(method="POST", path="/notes$")
    posting = [asyncio.create_task(scene.client.create_note(scene.ref, f"note {n}")) for n in range(LANES_AT_ONCE)]
    while scene.gitlab.under_way.count("POST") < LANES_AT_ONCE and not any(task.done() for task in posting):
        await asyncio.sleep(0.01)
    assert scene.gitlab.under_way.count("POST") == LANES_AT_ONCE
    scene.gitlab.restore()
    await asyncio.wait(posting)
    assert [type(task.exception()).__name__ for task in posting] == ["Unanswered"] * LANES_AT_ONCE


async def test_a_certificate_is_trusted_if_this_host_trusts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": "18.0.0"})

    app = web.Application()
    app.router.add_get("/api/v4/version", version)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self_signed(tmp_path)).start()
        url = f"https://localhost:{runner.addresses[0][1]}"
        for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(variable, raising=False)
        stranger = GitLab(url, "token")
        with pytest.raises(Unavailable, match=r"is not trusted: name the file of its own CA in gitlab\.ca_file"):
            await stranger.version()
        await stranger.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls.pem"))
        trusting = GitLab(url, "token")
        assert await trusting.version() == "18.0.0"
        await trusting.close()
    finally:
        await runner.cleanup()


async def test_branches_and_their_commits_are_read_whatever_they_are_called(scene: Scene) -> None:
    name = "fix/a#b&ref_name=main%2Fé"
    mr = scene.gitlab.open_merge_request(scene.project, scene.alice, branch=name)
    first = mr.sha
    assert await scene.client.branch(scene.project.id, name) == BranchHead(first, protected=False, can_push=True)
    assert await scene.client.branch_commits(scene.project.id, name, first) == []
    pushed = [scene.gitlab.push(mr, {"n": str(number)}) for number in range(130)]
    found = await scene.client.branch_commits(scene.project.id, name, first)
    assert found is not None
    assert [one.sha for one in found] == pushed[::-1]
    assert found[0].web_url == f"{scene.gitlab.url}/group/sub/app/-/commit/{pushed[-1]}"
    ref = MergeRequestRef(scene.project.id, mr.iid)
    assert [one.sha for one in await scene.client.merge_request_commits(ref)] == [*pushed[::-1], first]


async def test_a_branch_that_is_gone_is_none_and_a_project_that_is_not_seen_is_an_error(scene: Scene) -> None:
    scene.gitlab.delete_branch(scene.project, "login")
    assert await scene.client.branch(scene.project.id, "login") is None
    assert await scene.client.branch_commits(scene.project.id, "login", scene.mr.sha) is None
    hidden = scene.gitlab.add_project("secret/app")
    with pytest.raises(NotFound):
        await scene.client.branch(hidden.id, "main")


async def test_the_commits_after_one_that_the_branch_does_not_know_are_unknown(scene: Scene) -> None:
    assert await scene.client.branch_commits(scene.project.id, "login", "f" * 40) is None


async def test_the_last_commit_of_each_file_is_read_and_one_that_is_not_there_has_none(scene: Scene) -> None:
    first = scene.mr.sha
    head = scene.gitlab.push(scene.mr, {"a/b c#?.txt": "x", **{f"f{number}": "x" for number in range(9)}})
    found = await scene.client.last_commits(
        scene.project.id, head, ["a/b c#?.txt", "src/login.py", "missing", *(f"f{number}" for number in range(9))]
    )
    assert found == {"a/b c#?.txt": head, "src/login.py": first, **{f"f{number}": head for number in range(9)}}
