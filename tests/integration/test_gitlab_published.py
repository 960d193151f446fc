"""What ravebot asks of GitLab, and what the stand-in answers, are as GitLab publishes it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable
from pathlib import Path

import aiohttp
import pytest

from ravebot.errors import Unacceptable
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.discussions import Discussions
from ravebot.gitlab.environments import Environments
from ravebot.gitlab.hookapi import HookApi
from ravebot.sandboxes.model import MergeRequestRef
from tests.support.clock import ManualClock
from tests.support.gitlab import MAINTAINER, GitLabServer
from tests.support.gitlab.published import described, fields_of, misfits, published

pytestmark = pytest.mark.integration

_NOT_DESCRIBED = {
    "GET /user", "GET /users", "GET /users/N", "GET /users/N/keys",
    "POST /projects/N/merge_requests/N/notes", "PUT /projects/N/merge_requests/N/notes/N",
    "GET /projects/N/merge_requests/N/notes", "GET /projects/N/merge_requests/N/discussions",
    "GET /projects/N/merge_requests/N/discussions/N", "POST /projects/N/merge_requests/N/discussions/N/notes",
}  # fmt: skip
"""What ravebot asks for and the published file leaves out; the stand-in follows GitLab's documentation there."""
_OF_PREMIUM = {"approvals", "approval_summary", "pending_approval_count", "vulnerability_events"}


class Calls:
    """Waits for calls of one group's methods, and knows which were made."""

    def __init__(self) -> None:
        self.made: set[str] = set()

    async def all_of(self, group: type, **calls: Awaitable[object]) -> None:
        """Each of the group's methods must be among them."""
        methods = {name for name, _ in inspect.getmembers(group, inspect.iscoroutinefunction) if name[0] != "_"}
        assert methods - {"close"} == set(calls), "a new call belongs into this test"
        for call in calls.values():
            await call


async def test_every_request_that_ravebot_can_make_is_as_gitlab_describes_it(tmp_path: Path) -> None:
    published()
    async with GitLabServer() as server:
        bot = server.add_user("ravebot")
        project = server.add_project("group/app", {"README.md": "hello"})
        server.set_role(project, bot, MAINTAINER)
        mr = server.open_merge_request(project, bot, "Add login", "login", {"login.py": "x = 1\n"})
        ref, n, sha = MergeRequestRef(project.id, mr.iid), project.id, mr.sha
        gitlab = GitLab(server.url, server.token_for(bot), ManualClock(), timeout_seconds=5)
        hooks = HookApi(server.url, server.token_for(bot), timeout_seconds=5)
        try:
            note = await gitlab.create_note(ref, "<!-- marker -->")
            talk, shown = gitlab.discussions, gitlab.environments
            thread = await talk.of_note(ref, note)
            award = await talk.award(ref, note, "eyes")
            environment = (await shown.create(n, "review/mr-1", "https://h/")).id
            deployment, _ = await shown.deploy(n, "review/mr-1", sha, "login", "running")
            pipeline = await shown.set_status(
                n, sha, "ravebot/sandbox", "login", "running", "It starts", "https://h/", None
            )
            nowhere = "http://127.0.0.1:1/webhooks"  # where nothing listens
            hook = server.add_hook(project, nowhere).id
            change = [{"action": "create", "file_path": "new.txt", "content": "eA==", "encoding": "base64"}]
            calls = Calls()
            await calls.all_of(
                GitLab, me=gitlab.me(), own_id=gitlab.own_id(), version=gitlab.version(),
                project=gitlab.project("group/app"), merge_request=gitlab.merge_request(ref),
                projects=gitlab.projects(("group/*",)), group_merge_requests=gitlab.group_merge_requests("group", None),
                open_merge_requests=gitlab.open_merge_requests(n),
                access_level=gitlab.access_level(n, bot.id), user=gitlab.user("ravebot"), is_bot=gitlab.is_bot(bot.id),
                ssh_keys=gitlab.ssh_keys(bot.id), archive=gitlab.archive(n, sha, tmp_path / "archive", 1 << 20),
                file=gitlab.file(n, "README.md", sha, 100), branch=gitlab.branch(n, "login"),
                branch_commits=gitlab.branch_commits(n, "login", project.head),
                merge_request_commits=gitlab.merge_request_commits(ref),
                last_commits=gitlab.last_commits(n, sha, ["README.md"]),
                commit=gitlab.commit(n, "login", "Say more", change), create_note=gitlab.create_note(ref, "more"),
                edit_note=gitlab.edit_note(ref, note, "<!-- marker --> edited"),
                find_note=gitlab.find_note(ref, bot.id, "<!-- marker -->"), notes_after=gitlab.notes_after(ref, 0),
                react=gitlab.react(ref, note, "eyes"),
            )  # fmt: skip
            await calls.all_of(
                Discussions, reply=talk.reply(ref, thread, "yes"), of_note=talk.of_note(ref, note),
                find_reply=talk.find_reply(ref, thread, bot.id, "yes"), award=talk.award(ref, note, "tada"),
                remove_award=talk.remove_award(ref, note, award),
            )  # fmt: skip
            await calls.all_of(
                Environments, find=shown.find(n, "review/mr-1"), get=shown.get(n, environment),
                available=shown.available(n, "review/mr-"), create=shown.create(n, "review/mr-2", ""),
                set_url=shown.set_url(n, environment, "https://h2/"),
                deploy=shown.deploy(n, "review/mr-1", sha, "login", "success"),
                set_deployment=shown.set_deployment(n, deployment, "failed"),
                deployments=shown.deployments(n, "review/mr-1", sha),
                is_deployed=shown.is_deployed(n, "review/mr-1"),
                set_status=shown.set_status(n, sha, "ravebot/sandbox", "login", "failed", "No", "https://h/", pipeline),
                find_status=shown.find_status(n, sha, "ravebot/sandbox"), stop=shown.stop(n, environment),
                delete=shown.delete(n, environment),
            )  # fmt: skip
            body: dict[str, object] = {"url": nowhere, "token": "x", "note_events": True}
            await calls.all_of(
                HookApi, me=hooks.me(), project=hooks.project("group/app"), matching=hooks.matching(("group/*",)),
                hooks=hooks.hooks(n), create=hooks.create(n, body), edit=hooks.edit(n, hook, body),
                latest_was_refused=hooks.latest_was_refused(n, hook), test=_refused(hooks.test(n, hook)),
                delete=hooks.delete(n, hook),
            )  # fmt: skip
        finally:
            await gitlab.close()
            await hooks.close()
        assert misfits(server.requests) == []
        unknown = {f"{one.method} {_pattern(one.path)}" for one in server.requests if described(one) is None}
        assert unknown == _NOT_DESCRIBED


async def _refused(call: Awaitable[object]) -> None:
    with pytest.raises(Unacceptable, match="422"):
        await call


def _pattern(path: str) -> str:
    return re.sub(r"/(?:[0-9]+|[0-9a-f]{40})(?=/|$)", "/N", path.removeprefix("/api/v4"))


async def test_the_stand_in_s_answers_have_the_fields_of_gitlab_s() -> None:
    published()
    async with GitLabServer() as server:
        bot = server.add_user("ravebot")
        project = server.add_project("group/app", {"README.md": "hello"})
        server.set_role(project, bot, MAINTAINER)
        mr = server.open_merge_request(project, bot, "Add login", "login", {"login.py": "x = 1\n"})
        deployment = {"environment": "review/mr-1", "sha": mr.sha, "ref": "login", "tag": False, "status": "running"}
        status: dict[str, object] = {"state": "running", "name": "ravebot/sandbox", "ref": "login"}
        base = f"/projects/{project.id}"
        asked: list[tuple[str, str, dict[str, object]]] = [
            ("POST", f"{base}/environments", {"name": "review/mr-2"}),
            ("POST", f"{base}/deployments", deployment),
            ("POST", f"{base}/statuses/{mr.sha}", status),
            ("POST", f"{base}/hooks", {"url": "https://h/webhooks"}),
            ("GET", f"{base}/environments", {}),
            ("GET", f"{base}/deployments", {}),
            ("GET", f"{base}/repository/commits/{mr.sha}/statuses", {}),
            ("GET", f"{base}/repository/branches/login", {}),
            ("GET", f"{base}/hooks", {}),
        ]
        async with aiohttp.ClientSession(headers={"PRIVATE-TOKEN": server.token_for(bot)}) as session:
            for method, path, body in asked:
                async with session.request(method, f"{server.url}/api/v4{path}", json=body or None) as answer:
                    told = await answer.json()
                item = told[0] if isinstance(told, list) else told
                request = server.requests[-1]
                assert fields_of(request) - set(item) - _OF_PREMIUM <= {"last_deployment"}, (method, path)
            (number,) = [one.id for one in project.environments.values() if one.name == "review/mr-1"]
            async with session.get(f"{server.url}/api/v4{base}/environments/{number}") as answer:
                assert (await answer.json())["last_deployment"]["status"] == "running"
