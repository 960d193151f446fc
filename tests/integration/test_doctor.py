"""The doctor against services on loopback, a network namespace, libvirt and QEMU's own tools.

What goes wrong most often is made with real parts in test_typical_mistakes.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from ravebot.access.nftables.nft import NetworkTools
from ravebot.clock import SystemClock
from ravebot.config.file import LoadedConfig, load
from ravebot.config.model import HttpConfig, PipelineImagesConfig
from ravebot.images.pipelines import cage
from ravebot.intake.alerts import AlertIntake
from ravebot.operations.doctor import Finding, Verdict, alerts, examine, gitlab, machines, matrix, network, running
from ravebot.operations.init import proposals, trials
from ravebot.operations.init.inquiry import Inquiry
from ravebot.operations.init.questions import BY_NAME
from ravebot.operations.offline import database_path
from ravebot.store.database import Database
from ravebot.web.alerts.door import PATH
from ravebot.web.checks import Check, CheckFunction, State
from ravebot.web.metrics import Metrics
from ravebot.web.server import make_app, serve
from tests.support.clock import ManualClock
from tests.support.gitlab.actions import Actions as GitLabPages
from tests.support.synapse import MatrixUser, Synapse

pytestmark = pytest.mark.integration

TOKEN = "glpat-hush-hush-4711"
CONFIG = """\
state_dir: {folder}/state
matrix:
  homeserver: {url}
  user_id: "@ravebot:example.org"
  access_token_file: {folder}/secret
  rooms:
    - {{room: "#dev:example.org", projects: [group/app]}}
gitlab:
  url: {url}
  token_file: {folder}/secret
  projects: [group/app, "tools/*"]
  webhook: {{secret_token_file: {folder}/secret}}
http: {{public_url: "https://rave.example.org"}}
sandbox: {{host: 192.0.2.7, disk: 1GiB, memory: 64MiB}}
access: {{allow_from: [192.0.2.0/24]}}
provider: {{image: {folder}/image.qcow2, storage_pool: {folder}/disks}}
"""
GOOD: dict[str, tuple[int, object]] = {
    "/_matrix/client/versions": (200, {"versions": ["v1.11"]}),
    "/_matrix/client/v3/account/whoami": (200, {"user_id": "@ravebot:example.org", "device_id": "DEV"}),
    "/_matrix/client/v3/joined_rooms": (200, {"joined_rooms": ["!dev:example.org"]}),
    "/_matrix/client/v3/directory/room/#dev:example.org": (200, {"room_id": "!dev:example.org"}),
    "/api/v4/user": (200, {"id": 1, "username": "ravebot"}),
    "/api/v4/personal_access_tokens/self": (200, {"scopes": ["api"], "expires_at": "2999-01-01"}),
    "/api/v4/projects/group/app": (200, {"id": 7, "permissions": {"project_access": {"access_level": 30}}}),
    "/api/v4/projects/group/app/hooks": (
        200,
        [{"url": "https://rave.example.org/webhooks/gitlab", "merge_requests_events": True, "note_events": True}],
    ),
    "/api/v4/projects": (200, [{"path_with_namespace": "group/app"}, {"path_with_namespace": "tools/cli"}]),
    "/api/v4/projects/tools/cli": (200, {"id": 8, "permissions": {"group_access": {"access_level": 40}}}),
    "/api/v4/projects/tools/cli/hooks": (
        200,
        [{"url": "https://rave.example.org/webhooks/gitlab", "merge_requests_events": True, "note_events": True}],
    ),
}


@asynccontextmanager
async def services(answers: dict[str, tuple[int, object]]) -> AsyncIterator[str]:
    """Both services' JSON on one loopback port; what is not known is 404."""

    async def answer(request: web.Request) -> web.Response:
        status, body = answers.get(request.path, (404, {"errcode": "M_NOT_FOUND"}))
        if isinstance(body, str):
            return web.Response(text=body, status=status)
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with serve(app, "127.0.0.1", 0) as (host, port):
        yield f"http://{host}:{port}"


def loaded(folder: Path, url: str) -> LoadedConfig:
    secret = folder / "secret"
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(folder=folder, url=url))
    return load(file)


async def all_found(folder: Path, check: object, changes: dict[str, tuple[int, object]] | None = None) -> list[Finding]:
    async with services({**GOOD, **(changes or {})}) as url:
        found = [item async for item in check(loaded(folder, url)) if isinstance(item, Finding)]  # type: ignore[operator]
    assert all(TOKEN not in f"{finding}" for finding in found)
    return found


async def judged(
    folder: Path, check: object, changes: dict[str, tuple[int, object]] | None = None
) -> dict[str, Finding]:
    found = await all_found(folder, check, changes)
    return {finding.name: finding for finding in reversed(found)}  # the first of each name: the pattern's comes last


def with_alerts(folder: Path, token: str, http: str = "127.0.0.1:1") -> LoadedConfig:
    """A configuration that takes alerts."""
    plain = loaded(folder, "http://127.0.0.1:1")
    matrix_too = plain.config.matrix.model_copy(update={"operations_room": "#ops:example.org"})
    changed = plain.config.model_copy(update={"matrix": matrix_too, "http": HttpConfig(listen=http)})
    return replace(plain, config=changed, secrets=replace(plain.secrets, alertmanager_token=token))


async def alert_findings(given: LoadedConfig) -> list[tuple[Verdict, str]]:
    return [(finding.verdict, finding.detail) async for finding in alerts.check(given)]


async def test_alerts_are_not_looked_at_where_none_are_taken(tmp_path: Path) -> None:
    assert [finding async for finding in alerts.check(loaded(tmp_path, "http://127.0.0.1:1"))] == []


async def test_it_is_told_when_alertmanager_sent_something_last(tmp_path: Path) -> None:
    given = with_alerts(tmp_path, "t" * 40)
    [(verdict, detail)] = await alert_findings(given)
    assert (verdict, "no alert can be counted" in detail) == (Verdict.UNKNOWN, True)  # there is no database yet
    (tmp_path / "state").mkdir()
    async with Database(database_path(tmp_path / "state"), ManualClock()) as database:
        pass
    assert await alert_findings(given) == [(Verdict.UNKNOWN, "Alertmanager has sent nothing yet")]
    async with Database(database_path(tmp_path / "state"), ManualClock()) as database:
        await AlertIntake(database, "#ops:example.org").take((), 0)
    said = "Alertmanager sent something last at 2026-01-01 12:00:00 UTC; 0 alerts fire"
    assert await alert_findings(given) == [(Verdict.OK, said)]


async def test_a_token_that_can_be_guessed_and_a_bot_that_was_not_restarted_are_told(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    async with Database(database_path(tmp_path / "state"), ManualClock()), services({}) as url:
        findings = await alert_findings(with_alerts(tmp_path, "short", url.removeprefix("http://")))
    assert [verdict for verdict, _ in findings] == [Verdict.WARNING, Verdict.FAILED, Verdict.UNKNOWN]
    assert "only 5 characters" in findings[0][1]
    assert "takes no alerts yet" in findings[1][1]


async def test_who_was_refused_at_the_alerts_door_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    said = {
        "checks": {"alerts": {"state": "ok", "detail": "requests to /webhooks/alertmanager are refused (3 since …)"}}
    }
    async with (
        Database(database_path(tmp_path / "state"), ManualClock()),
        services({"/readyz": (503, said), PATH: (405, {})}) as url,
    ):
        findings = await alert_findings(with_alerts(tmp_path, "t" * 40, url.removeprefix("http://")))
    assert findings[0] == (Verdict.WARNING, said["checks"]["alerts"]["detail"])


async def test_right_services_are_all_right(tmp_path: Path) -> None:
    found = {**await judged(tmp_path, matrix.check), **await judged(tmp_path, gitlab.check)}
    assert {finding.verdict for finding in found.values()} == {Verdict.OK}
    assert set(found) == {
        "matrix", "matrix login", "matrix room", "gitlab", "gitlab token", "gitlab project", "gitlab webhook",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "answer", "name", "verdict", "says"),
    [
        ("/_matrix/client/versions", (404, "nginx"), "matrix", Verdict.FAILED, "not a Matrix homeserver"),
        ("/_matrix/client/versions", (200, ["x"]), "matrix", Verdict.FAILED, "not a Matrix homeserver"),
        (
            "/_matrix/client/v3/account/whoami",
            (401, {"errcode": "M_UNKNOWN_TOKEN"}),
            "matrix login",
            Verdict.FAILED,
            "M_UNKNOWN_TOKEN",
        ),
        (
            "/_matrix/client/v3/account/whoami",
            (200, {"user_id": "@other:example.org"}),
            "matrix login",
            Verdict.FAILED,
            "@other:example.org",
        ),
    ],
)
async def test_what_is_wrong_with_matrix_is_told(
    tmp_path: Path, path: str, answer: tuple[int, object], name: str, verdict: Verdict, says: str
) -> None:
    finding = (await judged(tmp_path, matrix.check, {path: answer}))[name]
    assert finding.verdict is verdict
    assert says in f"{finding.detail} {finding.fix}"
    assert finding.fix


HOOKS = "/api/v4/projects/group/app/hooks"
HOOK = {"url": "https://rave.example.org/webhooks/gitlab", "merge_requests_events": True, "note_events": True}


@pytest.mark.parametrize(
    ("path", "answer", "name", "verdict", "says"),
    [
        ("/api/v4/user", (200, "<html>"), "gitlab", Verdict.FAILED, "not GitLab"),
        ("/api/v4/user", (302, ""), "gitlab", Verdict.FAILED, "not GitLab"),
        (
            "/api/v4/personal_access_tokens/self",
            (200, {"scopes": ["api"], "expires_at": "2020-01-01"}),
            "gitlab token",
            Verdict.WARNING,
            "expires on 2020-01-01",
        ),
        ("/api/v4/projects/group/app", (404, {}), "gitlab project", Verdict.FAILED, "not visible"),
        (
            "/api/v4/projects/group/app",
            (200, {"permissions": {"project_access": {"access_level": 20}, "group_access": None}}),
            "gitlab project",
            Verdict.FAILED,
            "Developer",
        ),
        (
            "/api/v4/projects/group/app",
            (
                200,
                {"permissions": {"project_access": {"access_level": 30}}, "environments_access_level": "disabled"},
            ),
            "gitlab environments",
            Verdict.WARNING,
            "switched off",
        ),
        (HOOKS, (403, {}), "gitlab webhook", "unknown", "only a Maintainer"),
        (HOOKS, (200, []), "gitlab webhook", Verdict.FAILED, "https://rave.example.org/webhooks/gitlab"),
        (HOOKS, (200, [{**HOOK, "note_events": False}]), "gitlab webhook", Verdict.FAILED, "comments"),
        (HOOKS, (200, [{**HOOK, "alert_status": "disabled"}]), "gitlab webhook", Verdict.FAILED, "disabled"),
    ],
)
async def test_what_is_wrong_with_gitlab_is_told(
    tmp_path: Path, path: str, answer: tuple[int, object], name: str, verdict: Verdict, says: str
) -> None:
    finding = (await judged(tmp_path, gitlab.check, {path: answer}))[name]
    assert finding.verdict == verdict
    assert says in f"{finding.detail} {finding.fix}"
    assert finding.fix


async def test_without_a_public_url_the_webhook_is_known_by_its_path(tmp_path: Path) -> None:
    async with services(GOOD) as url:
        loaded(tmp_path, url)
        text = (tmp_path / "config.yaml").read_text().replace('http: {public_url: "https://rave.example.org"}\n', "")
        (tmp_path / "config.yaml").write_text(text)
        found = [item async for item in gitlab.check(load(tmp_path / "config.yaml")) if isinstance(item, Finding)]
    assert {finding.verdict for finding in found} == {Verdict.OK}


@pytest.mark.parametrize(
    ("answer", "verdict", "says"),
    [
        ((200, [{"id": 2, "username": "alice"}]), Verdict.OK, "coder: alice"),
        ((200, []), Verdict.FAILED, "coder: GitLab has no user alice"),
        ((403, {}), Verdict.UNKNOWN, "can't be looked up (403)"),
    ],
)
async def test_an_agent_s_owner_is_looked_up(
    tmp_path: Path, answer: tuple[int, object], verdict: Verdict, says: str
) -> None:
    async with services({**GOOD, "/api/v4/users": answer}) as url:
        loaded(tmp_path, url)
        agent = "{name: coder, owner: alice, projects: [group/app], acp: {command: [coder]}}"
        with (tmp_path / "config.yaml").open("a") as config:
            config.write(f"agents: [{agent}, {{name: keys}}]\n")
        items = [item async for item in gitlab.check(load(tmp_path / "config.yaml"))]
    [finding] = [item for item in items if isinstance(item, Finding) and item.name == "agent owner"]
    assert finding.verdict is verdict
    assert says in finding.detail
    assert bool(finding.fix) is (verdict is not Verdict.OK)


async def test_projects_under_a_pattern_are_looked_at_one_by_one(tmp_path: Path) -> None:
    found = await all_found(tmp_path, gitlab.check)
    about = [finding for finding in found if "tools/" in finding.detail]
    assert [finding.detail for finding in about if finding.name == "gitlab webhook"] == [
        "tools/cli: sends to https://rave.example.org/webhooks/gitlab"
    ]
    assert {finding.verdict for finding in about} == {Verdict.OK}
    found = await all_found(tmp_path, gitlab.check, {"/api/v4/projects/tools/cli/hooks": (200, [])})
    assert [finding.detail for finding in found if finding.verdict is Verdict.FAILED] == [
        "tools/cli: no webhook to https://rave.example.org/webhooks/gitlab"
    ]


@pytest.mark.parametrize(
    "listed", [(200, []), (200, [{"path_with_namespace": "group/app"}]), (200, {"x": 1}), (500, "")]
)
async def test_a_pattern_that_no_project_matches_is_a_failure(tmp_path: Path, listed: tuple[int, object]) -> None:
    found = await all_found(tmp_path, gitlab.check, {"/api/v4/projects": listed})
    [failure] = [finding for finding in found if finding.verdict is Verdict.FAILED]
    assert failure.name == "gitlab project"
    assert failure.fix


async def test_of_many_projects_under_a_pattern_it_is_said_how_many_were_not_looked_at(tmp_path: Path) -> None:
    many = [{"path_with_namespace": f"tools/t{number:02}"} for number in range(23)]
    found = await all_found(tmp_path, gitlab.check, {"/api/v4/projects": (200, many)})
    assert "tools/*: 23 projects match" in [finding.detail for finding in found]
    [unknown] = [finding for finding in found if finding.verdict.value == "unknown"]
    assert "3 more" in unknown.detail
    assert len([finding for finding in found if "does not exist or is not visible" in finding.detail]) == 20


async def test_a_token_whose_scopes_can_not_be_asked_for_is_not_known_to_be_right(tmp_path: Path) -> None:
    path = "/api/v4/personal_access_tokens/self"
    finding = (await judged(tmp_path, gitlab.check, {path: (404, {})}))["gitlab token"]
    assert finding.verdict.value == "unknown"


async def test_the_latest_delivery_that_ravebot_refused_shows_that_the_secrets_differ(tmp_path: Path) -> None:
    hooks = {HOOKS: (200, [{**HOOK, "id": 5}])}
    for status, verdict in (("401", Verdict.FAILED), ("202", Verdict.OK), ("internal error", Verdict.OK)):
        events = {f"{HOOKS}/5/events": (200, [{"id": 1, "response_status": status}])}
        finding = (await judged(tmp_path, gitlab.check, {**hooks, **events}))["gitlab webhook"]
        assert finding.verdict is verdict, status
    assert "same secret" in (await judged(tmp_path, gitlab.check, {
        **hooks, f"{HOOKS}/5/events": (200, [{"response_status": "401"}])
    }))["gitlab webhook"].fix  # fmt: skip


async def test_whether_tokens_of_jobs_can_be_checked_is_told_where_the_door_is_open(tmp_path: Path) -> None:
    pages = GitLabPages()
    keys, configuration = "/oauth/discovery/keys", "/.well-known/openid-configuration"

    async def found(changes: dict[str, tuple[int, object]], ci: str = "{}") -> Finding:
        async with services({**GOOD, **changes}) as url:
            loaded(tmp_path, url)
            file = tmp_path / "config.yaml"
            file.write_text(file.read_text().replace("  webhook:", f"  ci: {ci}\n  webhook:"))
            made = load(file)
            (one,) = [item async for item in gitlab.check(made) if isinstance(item, Finding) and "ci" in item.name]
            return one

    right: tuple[int, object] = (200, pages.keys())
    issuer: tuple[int, object] = (200, {"issuer": "https://gitlab.example.org"})
    other = await found({keys: right, configuration: issuer})
    assert (other.verdict, other.fix) == (Verdict.WARNING, "set gitlab.ci.issuer: https://gitlab.example.org")
    assert (
        await found({keys: right, configuration: issuer}, "{issuer: https://gitlab.example.org}")
    ).verdict is Verdict.OK
    nothing: tuple[tuple[int, object], ...] = ((404, {}), (200, {"keys": []}), (200, "<html>"))
    for wrong in nothing:
        assert (await found({keys: wrong})).verdict is Verdict.FAILED


async def test_a_server_without_tls_is_told_from_one_that_is_away(tmp_path: Path) -> None:
    async with services(GOOD) as url:
        secure = loaded(tmp_path, url.replace("http:", "https:"))
        [finding] = [item async for item in gitlab.check(secure) if isinstance(item, Finding)]
    assert "can't be reached: TLS fails: " in finding.detail
    assert "correct gitlab.url" in finding.fix


async def test_the_kept_login_is_tried(tmp_path: Path) -> None:
    async with services(GOOD) as url:
        loaded(tmp_path, url)
        text = (tmp_path / "config.yaml").read_text().replace("access_token_file", "password_file")
        (tmp_path / "config.yaml").write_text(text)
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "matrix.json").write_text(json.dumps({"access_token": "kept"}))
        found = matrix.check(load(tmp_path / "config.yaml"))
        assert [item.name async for item in found if isinstance(item, Finding)] == [
            "matrix", "matrix login", "matrix room",
        ]  # fmt: skip


async def test_without_a_kept_login_the_password_is_tried_and_the_login_ended(
    tmp_path: Path, synapse: Synapse, account: MatrixUser, alice: MatrixUser
) -> None:
    name = uuid.uuid4().hex[:8]
    await alice.create_room(f"in-{name}", [account.user_id])
    await alice.create_room(f"out-{name}")
    rooms = [f"#in-{name}:localhost", f"#out-{name}:localhost", f"#gone-{name}:localhost"]

    async def found(password: str) -> list[Finding]:
        loaded(tmp_path, synapse.url)
        (tmp_path / "secret").write_text(password)
        mapped = "\n".join(f'    - {{room: "{room}", projects: [group/app]}}' for room in rooms)
        text = (tmp_path / "config.yaml").read_text()
        for old, new in (
            ("access_token_file", "password_file"),
            ("@ravebot:example.org", account.user_id),
            ("  rooms:", f'  admins: ["{alice.user_id}"]\n  rooms:'),
            ('    - {room: "#dev:example.org", projects: [group/app]}', mapped),
        ):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "config.yaml").write_text(text)
        findings = [item async for item in matrix.check(load(tmp_path / "config.yaml")) if isinstance(item, Finding)]
        assert password not in repr(findings)
        return findings

    before = await account.call("GET", "devices")
    findings = await found(account.password)
    assert [(one.name, one.verdict) for one in findings] == [
        ("matrix", Verdict.OK), ("matrix login", Verdict.OK), ("matrix room", Verdict.OK),
        ("matrix room", Verdict.WARNING), ("matrix room", Verdict.FAILED),
    ]  # fmt: skip
    invited, out, _ = findings[2:]
    assert "invited" in invited.detail
    assert account.user_id in out.fix
    assert len((await account.call("GET", "devices"))["devices"]) == len(before["devices"])
    refused = await found("not-the-password")
    assert (refused[-1].name, refused[-1].verdict) == ("matrix login", Verdict.FAILED)
    assert "password_file" in refused[-1].fix


@asynccontextmanager
async def a_homeserver(login: tuple[int, object], logout: int) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        status, body = GOOD.get(request.path, (404, {"errcode": "M_NOT_FOUND"}))
        return web.json_response(body, status=status)

    async def log_in(_: web.Request) -> web.Response:
        return web.json_response(login[1], status=login[0])

    async def log_out(_: web.Request) -> web.Response:
        return web.json_response({}, status=logout)

    app = web.Application()
    app.router.add_post("/_matrix/client/v3/login", log_in)
    app.router.add_post("/_matrix/client/v3/logout", log_out)
    app.router.add_get("/{path:.*}", answer)
    async with serve(app, "127.0.0.1", 0) as (host, port):
        yield f"http://{host}:{port}"


@pytest.mark.parametrize(
    ("login", "logout", "verdict", "says"),
    [
        ((200, {"access_token": "syt_doctor"}), 200, Verdict.OK, "#dev:example.org"),
        ((200, {"access_token": "syt_doctor"}), 502, Verdict.WARNING, "could not be ended"),
        ((502, {"errcode": "M_UNKNOWN"}), 200, Verdict.UNKNOWN, "502"),
        ((429, {"errcode": "M_LIMIT_EXCEEDED"}), 200, Verdict.UNKNOWN, "429"),
        ((403, {"errcode": "M_FORBIDDEN"}), 200, Verdict.FAILED, "is refused"),
    ],
)
async def test_a_login_that_stays_is_told_and_a_homeserver_in_trouble_refuses_no_password(
    tmp_path: Path, login: tuple[int, object], logout: int, verdict: Verdict, says: str
) -> None:
    async with a_homeserver(login, logout) as url:
        loaded(tmp_path, url)
        text = (tmp_path / "config.yaml").read_text().replace("access_token_file", "password_file")
        (tmp_path / "config.yaml").write_text(text)
        found = [item async for item in matrix.check(load(tmp_path / "config.yaml")) if isinstance(item, Finding)]
    assert found[-1].verdict is verdict
    assert says in found[-1].detail
    assert "syt_doctor" not in repr(found)


async def test_the_running_bot_is_asked_what_it_lacks(tmp_path: Path) -> None:
    async def answered(check: Check) -> Check:
        return check

    checks: dict[str, CheckFunction] = {}
    for name, check in (
        ("matrix", Check(State.OK)),
        ("gitlab", Check(State.DEGRADED, "3 webhooks were refused")),
        ("image", Check(State.FAILED, "it is held")),
    ):
        checks[name] = partial(answered, check)

    async def webhook(_: web.Request) -> web.StreamResponse:
        raise NotImplementedError

    async with serve(make_app(webhook, checks, Metrics()), "127.0.0.1", 0) as (host, port):
        config = loaded(tmp_path, "http://127.0.0.1:1").config
        config = config.model_copy(update={"http": HttpConfig(listen=f"{host}:{port}")})
        assert [item async for item in running.check(config)] == [], "no bot holds the database"
        async with Database(database_path(config.state_dir), SystemClock()):
            findings = [item async for item in running.check(config)]
    assert [(one.verdict, one.detail) for one in findings] == [
        (Verdict.WARNING, "gitlab: 3 webhooks were refused"),
        (Verdict.FAILED, "image: it is held"),
    ]


@pytest.fixture
def namespace() -> Iterator[NetworkTools]:
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield NetworkTools(["ip", "netns", "exec", name])
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


async def test_a_fresh_network_has_nothing_in_the_way(tmp_path: Path, namespace: NetworkTools) -> None:
    config = loaded(tmp_path, "http://127.0.0.1:1").config
    assert (await network.firewall(config, namespace, None)).verdict is Verdict.OK
    assert (await network.routes(config, namespace)).verdict is Verdict.OK


async def test_a_drop_of_only_the_sandboxes_ports_is_found(tmp_path: Path, namespace: NetworkTools) -> None:
    config = loaded(tmp_path, "http://127.0.0.1:1").config
    chain = ("ip", "other", "prerouting")
    await namespace.run("nft", "add", "table", *chain[:2])
    await namespace.run("nft", "add", "chain", *chain, "{ type filter hook prerouting priority 0; }")
    await namespace.run("nft", "add", "rule", *chain, "tcp", "dport", str(config.sandbox.ssh_ports.first), "drop")
    finding = await network.firewall(config, namespace, None)
    assert finding.verdict is Verdict.FAILED
    assert "ip other prerouting" in finding.detail


async def test_a_missing_conntrack_tool_is_told(tmp_path: Path, namespace: NetworkTools) -> None:
    assert (await network.connection_table(namespace)).verdict is Verdict.OK
    finding = await network.connection_table(NetworkTools(("/usr/bin/env", f"PATH={tmp_path}")))
    assert finding.verdict is Verdict.WARNING
    assert finding.fix.startswith("apt-get install conntrack")


async def test_a_second_installation_is_offered_a_network_beside_that_of_the_first(namespace: NetworkTools) -> None:
    for words in ("link add ravebot0 type bridge", "address add 10.80.0.1/24 dev ravebot0", "link set ravebot0 up"):
        await namespace.ip(*words.split())
    asked = Inquiry(BY_NAME, Path("/etc/ravebot/second.yaml"), tools=namespace, answers={"sandbox_host": "192.0.2.7"})
    for name, text in (("bridge", "ravebot1"), ("subnet", "10.81.0.0/24")):
        proposed = text if name == "bridge" else await proposals.subnet(asked)
        assert proposed == text
        assert [one.verdict for one in await trials.network(asked, text)] == [Verdict.OK]
        asked.answers[name] = text
    (finding,) = await trials.network(asked, "10.80.0.0/24")
    assert (finding.verdict, "which this host reaches by ravebot0" in finding.detail) == (Verdict.FAILED, True)


async def test_an_interface_of_another_kind_with_the_bridges_name_is_found(
    tmp_path: Path, namespace: NetworkTools
) -> None:
    config = loaded(tmp_path, "http://127.0.0.1:1").config
    await namespace.ip("link", "add", "ravebot0", "type", "veth", "peer", "name", "lan1")
    assert (await network.routes(config, namespace)).verdict is Verdict.FAILED
    await namespace.ip("link", "delete", "ravebot0")
    await namespace.ip("link", "add", "ravebot0", "type", "bridge")
    assert (await network.routes(config, namespace)).verdict is Verdict.OK


async def test_forwarding_that_is_off_is_told(namespace: NetworkTools) -> None:
    await namespace.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    assert (await network.forwarding(namespace)).verdict is Verdict.WARNING
    await namespace.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    assert (await network.forwarding(namespace)).verdict is Verdict.OK


async def test_ingress_filters_are_tried_out_and_leave_nothing(namespace: NetworkTools) -> None:
    before = await namespace.run("tc", "qdisc", "show")
    assert (await network.ingress_filters(namespace)).verdict is Verdict.OK
    assert await namespace.run("tc", "qdisc", "show") == before


async def test_ingress_filters_that_can_not_be_had_or_tried_are_told(namespace: NetworkTools, tmp_path: Path) -> None:
    (tmp_path / "unshare").symlink_to("/usr/bin/unshare")
    without_tc = await network.ingress_filters(NetworkTools((*namespace.prefix, "env", f"PATH={tmp_path}")))
    assert without_tc.verdict is Verdict.WARNING
    assert "could reach the host's ports" in without_tc.detail
    assert "iproute2" in without_tc.fix
    confined = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin")
    unknown = await network.ingress_filters(NetworkTools((*namespace.prefix, *confined)))
    assert unknown.verdict is Verdict.UNKNOWN
    assert "namespace" in unknown.detail


async def test_a_port_that_the_host_listens_on_is_told(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        config = loaded(tmp_path, "http://127.0.0.1:1").config
        text = (tmp_path / "config.yaml").read_text().replace("memory:", f"web_ports: {port}-{port + 1}, memory:")
        (tmp_path / "config.yaml").write_text(text)
        config = load(tmp_path / "config.yaml").config
        finding = await network.ports(config)
    assert finding.verdict is Verdict.FAILED
    assert str(port) in finding.detail


async def test_a_right_image_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    config = loaded(tmp_path, "http://127.0.0.1:1").config
    assert machines.image(config).verdict is Verdict.FAILED
    (tmp_path / "image.qcow2").write_bytes(b"<html>404</html>" * 100)
    assert "not a qcow2 image" in machines.image(config).detail
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "image.qcow2")]
    subprocess.run([*create, "3G"], check=True)
    assert "larger than sandbox.disk" in machines.image(config).detail
    subprocess.run([*create, "64M"], check=True)
    root = machines.QemuUser(0, frozenset({0}))
    assert (machines.image(config, root).verdict, "64 MiB" in machines.image(config, root).detail) == (Verdict.OK, True)


async def test_each_image_that_projects_may_ask_for_is_looked_at(tmp_path: Path) -> None:
    config = loaded(tmp_path, "http://127.0.0.1:1").config
    images = {"debian-13": tmp_path / "13.qcow2"}
    config = config.model_copy(update={"provider": config.provider.model_copy(update={"images": images})})
    missing = machines.named_image(config, "debian-13")
    assert (missing.name, missing.verdict) == ("image debian-13", Verdict.FAILED)
    assert "provider.images.debian-13" in missing.fix
    images["debian-13"].write_bytes(b"<html>404</html>" * 100)
    wrong = machines.named_image(config, "debian-13")
    assert "not a qcow2 image" in wrong.detail
    assert "qemu-img convert -O qcow2" in wrong.fix
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(images["debian-13"])]
    subprocess.run([*create, "3G"], check=True)
    assert "larger than sandbox.disk" in machines.named_image(config, "debian-13").detail
    subprocess.run([*create, "64M"], check=True)
    root = machines.QemuUser(0, frozenset({0}))
    assert machines.named_image(config, "debian-13", root).verdict is Verdict.OK


async def test_the_folder_of_images_from_pipelines_is_looked_at(tmp_path: Path) -> None:
    config = loaded(tmp_path, "http://127.0.0.1:1").config
    root = machines.QemuUser(0, frozenset({0}))

    def with_images(**kept: object) -> Finding:
        section = PipelineImagesConfig.model_validate({"folder": tmp_path / "kept", "largest": "1MiB", **kept})
        provider = config.provider.model_copy(update={"pipeline_images": section})
        return machines.pipeline_images(config.model_copy(update={"provider": provider}), root)

    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/7-0.qcow2").write_bytes(bytes(1024**2))
    fine = with_images(keep="10MiB")
    kept, _, how = fine.detail.partition("; the programs that read them ")
    assert (fine.verdict, kept) == (Verdict.OK, f"{tmp_path}/kept, 1 images, 1.0 MiB of 10 MiB")
    assert how.startswith("open only their own folder" if cage.closes() else "are another user, with")
    config.state_dir.mkdir()
    os.chown(config.state_dir, 12345, 12345)  # as where ravebot's units run it: not root
    shared = with_images(keep="10MiB")
    if cage.closes():
        assert shared == fine
    else:
        assert (shared.verdict, "util-linux 2.41 and Landlock" in shared.fix) == (Verdict.WARNING, True)
        assert "one that a file breaks reads what ravebot reads" in shared.detail
    os.chown(config.state_dir, 0, 0)
    short = with_images(largest="1000TiB")
    assert (short.verdict, "less than one image may take" in short.detail) == (Verdict.WARNING, True)
    file = with_images(folder=tmp_path / "kept/7-0.qcow2")
    assert (file.verdict, file.fix) == (Verdict.FAILED, "change provider.pipeline_images.folder")


async def test_an_image_in_a_folder_that_qemu_can_not_enter_is_a_failure_as_it_is_for_libvirt(tmp_path: Path) -> None:
    """As which user QEMU runs is asked of the real libvirt."""
    config = loaded(tmp_path, "http://127.0.0.1:1").config
    _, qemu = await machines.libvirt(config.provider)
    assert qemu is not None
    assert qemu.uid != 0
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    image = closed / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "64M"], check=True)
    config = config.model_copy(update={"provider": config.provider.model_copy(update={"image": image})})
    finding = machines.image(config, qemu)
    assert finding.verdict is Verdict.FAILED
    assert str(closed) in finding.fix
    os.chown(closed, qemu.uid, 0)
    assert str(closed) not in machines.image(config, qemu).fix
    os.chown(closed, 0, min(qemu.groups))
    assert str(closed) in machines.image(config, qemu).fix
    closed.chmod(0o710)
    assert str(closed) not in machines.image(config, qemu).fix


async def test_libvirt_is_asked_for_its_version(tmp_path: Path) -> None:
    provider = loaded(tmp_path, "http://127.0.0.1:1").config.provider
    here, _ = await machines.libvirt(provider.model_copy(update={"uri": "test:///default"}))
    assert here.verdict is Verdict.OK


async def test_the_whole_examination_ends_with_services_away_and_shows_no_secret(
    tmp_path: Path, namespace: NetworkTools
) -> None:
    findings = await examine(loaded(tmp_path, "http://127.0.0.1:1"), namespace)
    verdicts = {finding.name: finding.verdict for finding in findings}
    assert verdicts["configuration"] is Verdict.WARNING or verdicts["configuration"] is Verdict.OK
    assert verdicts["matrix"] is Verdict.FAILED
    assert verdicts["gitlab"] is Verdict.FAILED
    assert {"state folder", "database", "libvirt", "image", "kvm", "ports", "bridge"} <= set(verdicts)
    assert all(TOKEN not in f"{finding}" for finding in findings)
    assert not (tmp_path / "state").exists()
