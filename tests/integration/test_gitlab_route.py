"""How GitLab is reached: a CA of its own, a proxy, a path prefix, and a token that is replaced while ravebot runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ravebot.errors import Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.hookapi import HookApi
from ravebot.gitlab.route import GitlabRoute, with_login
from ravebot.operations.doctor import services
from ravebot.sandboxes.model import MergeRequestRef
from tests.support.gitlab import MAINTAINER, GitLabServer, User
from tests.support.httpproxy import http_proxy
from tests.support.tls import signed_by_own_ca

ENVIRONMENT = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY")


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GitLabServer]:
    """One that is below a path, by TLS, with a certificate of its own CA."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    async with GitLabServer(host="localhost", prefix="/gitlab", tls=signed_by_own_ca(tmp_path)) as gitlab:
        gitlab.add_user("ravebot")
        yield gitlab


def the_bot(server: GitLabServer) -> User:
    return next(user for user in server.state.users.values() if user.username == "ravebot")


def token_of(server: GitLabServer) -> str:
    return server.token_for(the_bot(server))


async def test_a_gitlab_with_a_ca_of_its_own_below_a_path_is_reached(server: GitLabServer, tmp_path: Path) -> None:
    bot, alice = the_bot(server), server.add_user("alice")
    project = server.add_project("group/sub/app", {"README.md": "hello"})
    server.set_role(project, bot, MAINTAINER)
    server.set_role(project, alice, MAINTAINER)
    opened = server.open_merge_request(project, alice, "Add login", "login", {"login.py": "x = 1\n"})
    route = GitlabRoute(ca_file=tmp_path / "ca.pem")
    gitlab = GitLab(server.url, token_of(server), route=route)
    hooks = HookApi(server.url, token_of(server), route=route)
    try:
        ref = MergeRequestRef(project.id, opened.iid)
        assert (await gitlab.me()).username == "ravebot"
        assert await gitlab.projects(("group/*",)) == [(project.id, "group/sub/app")]
        assert [one.ref for one in await gitlab.open_merge_requests(project.id)] == [ref]
        note = await gitlab.create_note(ref, "hello")
        assert await gitlab.find_note(ref, bot.id, "hello") == note
        assert await gitlab.archive(project.id, opened.sha, tmp_path / "source", 10**6) > 0
        assert (await hooks.project("group/sub/app")).id == project.id
        assert (await gitlab.merge_request(ref)).web_url.startswith(f"{server.url}/group/sub/app/")
    finally:
        await gitlab.close()
        await hooks.close()
    answer = await services.GitlabAccess(token_of(server), route).get(f"{server.url}/api/v4/user")
    assert answer.field("username") == "ravebot"


async def test_without_its_ca_it_is_not_trusted_and_the_error_says_where_to_name_it(server: GitLabServer) -> None:
    gitlab = GitLab(server.url, token_of(server))
    with pytest.raises(Unavailable, match=r"not trusted: name the file of its own CA in gitlab\.ca_file"):
        await gitlab.me()
    await gitlab.close()
    with pytest.raises(services.NotTrusted) as refused:
        await services.get(f"{server.url}/api/v4/user")
    assert "gitlab.ca_file" in services.mend(refused.value, "gitlab.url")


async def test_every_request_goes_through_the_proxy_with_its_login(server: GitLabServer, tmp_path: Path) -> None:
    async with http_proxy("rave bot:pass:word@") as proxy:
        route = GitlabRoute(tmp_path / "ca.pem", with_login(proxy.url, "rave bot:pass:word@"))
        gitlab = GitLab(server.url, token_of(server), route=route)
        assert (await gitlab.me()).username == "ravebot"
        await gitlab.close()
        answer = await services.GitlabAccess(token_of(server), route).get(f"{server.url}/api/v4/user")
        assert answer.status == 200
        assert len(proxy.asked) == 2
        assert all(line.startswith("CONNECT localhost:") for line in proxy.asked)


async def test_plain_http_goes_through_the_proxy_too() -> None:
    with GitLabServer() as server:
        token = server.token_for(server.add_user("ravebot"))
        async with http_proxy() as proxy:
            gitlab = GitLab(server.url, token, route=GitlabRoute(proxy=proxy.url))
            assert (await gitlab.me()).username == "ravebot"
            await gitlab.close()
            assert proxy.asked == [f"GET {server.url}/api/v4/user HTTP/1.1"]


async def test_a_proxy_that_refuses_is_named_without_its_login(server: GitLabServer, tmp_path: Path) -> None:
    async with http_proxy("name:right") as proxy:
        for address in (with_login(proxy.url, "name:wrong"), "http://name:wrong@127.0.0.1:9"):
            route = GitlabRoute(tmp_path / "ca.pem", address)
            gitlab = GitLab(server.url, token_of(server), route=route)
            with pytest.raises(Unavailable, match=r"check gitlab\.proxy and gitlab\.proxy_login_file") as refused:
                await gitlab.me()
            await gitlab.close()
            with pytest.raises(Unavailable, match=r"gitlab\.proxy") as unreached:
                await services.GitlabAccess("token", route).get(f"{server.url}/api/v4/user")
            assert "wrong" not in f"{refused.value} {unreached.value}"


async def test_the_environment_names_no_proxy(server: GitLabServer, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        gitlab = GitLab(server.url, token_of(server), route=GitlabRoute(tmp_path / "ca.pem"))
        assert (await gitlab.me()).username == "ravebot"
        await gitlab.close()


async def test_a_token_that_was_replaced_in_its_file_is_used_when_gitlab_refuses_the_old_one() -> None:
    with GitLabServer() as server:
        bot, successor = server.add_user("ravebot"), server.add_user("ravebot2")
        file = [server.token_for(bot)]
        gitlab = GitLab(server.url, file[0], route=GitlabRoute(newest_token=lambda: file[0]))
        try:
            assert await gitlab.own_id() == bot.id
            server.revoke(file[0])
            with pytest.raises(Unavailable, match=r"\(401\).*gitlab\.token_file, which ravebot then reads"):
                await gitlab.projects(("*",))
            file[0] = server.token_for(successor)
            found = await asyncio.gather(*(gitlab.projects(("*",)) for _ in range(8)))
            assert found == [[]] * 8
            assert await gitlab.own_id() == successor.id, "the new token may be another user's"
        finally:
            await gitlab.close()
