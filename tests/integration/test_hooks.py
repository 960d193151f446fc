"""Webhooks are listed, installed and removed through python-gitlab in a stand-in for GitLab."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ravebot.cli import app
from ravebot.config.file import LoadedConfig, load
from ravebot.errors import ConfigError, Unavailable
from ravebot.gitlab.hooks import HookCondition
from ravebot.operations.hooks import registry
from ravebot.operations.hooks.wording import HookState
from ravebot.operations.service import beyond
from ravebot.web.server import WEBHOOK_PATH
from tests.integration.test_gitlab_receiver import SIGNING_TOKEN, receiving
from tests.support.gitlab import GitLabServer
from tests.support.gitlab.hooks import Hook
from tests.support.gitlab.state import DEVELOPER, MAINTAINER, Project, User

pytestmark = pytest.mark.integration

SECRET = "hush-hush-4711"
SIGNING = "whsec_" + "QUJD" * 10 + "QUI="
ADDRESS = f"https://rave.example.org{WEBHOOK_PATH}"
CONFIG = """\
state_dir: {folder}/state
matrix:
  homeserver: https://matrix.invalid
  user_id: "@ravebot:example.org"
  access_token_file: {folder}/token
  rooms:
    - {{room: "#dev:example.org", projects: [group/app]}}
gitlab:
  url: {url}
  token_file: {folder}/token
  projects: [group/app, "tools/*"]
  webhook: {{{webhook}}}
http: {{public_url: "{public}"}}
sandbox: {{host: 192.0.2.7, disk: 1GiB, memory: 64MiB}}
access: {{allow_from: [192.0.2.0/24]}}
provider: {{image: {folder}/image.qcow2, storage_pool: {folder}/disks}}
"""


@dataclass
class Office:
    """A GitLab with three projects, and the configuration of a bot that is Maintainer of them."""

    gitlab: GitLabServer
    folder: Path
    bot: User
    app: Project
    cli: Project
    web: Project

    def config(self, *, webhook: str = "secret_token_file: {folder}/secret", public: str = "") -> Path:
        file = self.folder / "config.yaml"
        where = webhook.format(folder=self.folder)
        public = public or "https://rave.example.org"
        file.write_text(CONFIG.format(folder=self.folder, url=self.gitlab.url, webhook=where, public=public))
        return file

    def loaded(self, **changes: str) -> LoadedConfig:
        return load(self.config(**changes))

    def hooks(self, project: Project) -> list[Hook]:
        return [hook for hook in self.gitlab.hooks.hooks if hook.project_id == project.id]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with GitLabServer() as gitlab:
        bot = gitlab.add_user("ravebot")
        projects = [gitlab.add_project(path) for path in ("group/app", "tools/cli", "tools/web")]
        for project in projects:
            gitlab.set_role(project, bot, MAINTAINER)
        for name, text in (("token", gitlab.token_for(bot)), ("secret", SECRET), ("signing", SIGNING)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o600)
        yield Office(gitlab, tmp_path, bot, *projects)


async def no_wait(_: float) -> None:
    await asyncio.sleep(0)


def conditions(states: list[HookState]) -> dict[str, str]:
    return {state.project: state.condition.value for state in states}


async def test_each_configured_project_gets_one_webhook_and_loses_it_again(office: Office) -> None:
    gitlab, loaded = office.gitlab, office.loaded()
    other = gitlab.add_hook(office.app, "https://ci.example.org/webhooks/gitlab", secret_token="another")
    before = await registry.look(loaded)
    assert conditions(before) == {"group/app": "foreign", "tools/cli": "missing", "tools/web": "missing"}
    assert "https://ci.example.org/webhooks/gitlab" in before[0].detail

    first = await registry.install(loaded)
    assert [(state.condition, state.changed) for state in first] == [(HookCondition.RIGHT, True)] * 3
    [hook] = office.hooks(office.cli)
    assert (hook.url, hook.secret_token, hook.signing_token) == (ADDRESS, SECRET, None)
    events = {key for key, on in hook.settings.items() if key.endswith("_events") and on}
    assert events == {"merge_requests_events", "note_events"}
    assert hook.settings["enable_ssl_verification"] is True

    hook.secret_token = "changed by hand"  # GitLab tells nobody, so it is always set again
    again = await registry.install(loaded, ssl_verification=False)
    assert [state.ok for state in again] == [True] * 3
    assert office.hooks(office.cli) == [hook]
    assert (hook.secret_token, hook.settings["enable_ssl_verification"]) == (SECRET, False)
    seen = await registry.look(loaded)
    assert [state.ok for state in seen] == [True] * 3
    assert "doesn't check the certificate" in seen[1].detail
    hook.alert_status = "disabled"
    await registry.install(loaded)
    assert {
        one.settings["enable_ssl_verification"] for one in (*office.hooks(office.cli), *office.hooks(office.web))
    } == {False}, "what was chosen for a webhook stays until somebody says otherwise"

    gone = await registry.remove(loaded)
    assert set(conditions(gone).values()) == {"removed"}
    assert gitlab.hooks.hooks == [other]
    assert not any(state.changed for state in await registry.remove(loaded))


async def test_both_secrets_are_registered_and_an_old_gitlab_that_ignores_a_signing_token_is_told_of(
    office: Office,
) -> None:
    both = "secret_token_file: {folder}/secret, signing_token_file: {folder}/signing"
    assert all(state.ok for state in await registry.install(office.loaded(webhook=both)))
    [hook] = office.hooks(office.web)
    assert (hook.secret_token, hook.signing_token) == (SECRET, SIGNING)
    office.gitlab.hooks.hooks.clear()
    office.gitlab.knows_signing_tokens = False
    states = await registry.install(office.loaded(webhook="signing_token_file: {folder}/signing"))
    assert set(conditions(states).values()) == {"wrong"}
    assert "too old" in states[0].sentence
    assert "secret_token_file" in states[0].fix


async def test_a_project_that_refuses_does_not_stop_the_others(office: Office) -> None:
    office.gitlab.set_role(office.app, office.bot, DEVELOPER)
    office.gitlab.set_role(office.cli, office.bot, 0)
    states = await registry.install(office.loaded())
    assert conditions(states) == {"group/app": "failed", "tools/web": "right"}
    assert "role Developer in group/app" in states[0].detail
    assert "Maintainer" in states[0].fix
    [state] = await registry.look(office.loaded(), projects=["group/other"])
    assert "gitlab.projects" in state.sentence
    office.gitlab.set_role(office.app, office.bot, 0)
    office.gitlab.set_role(office.web, office.bot, 0)
    states = await registry.install(office.loaded())
    assert conditions(states) == {"group/app": "failed", "tools/*": "failed"}
    assert "no member" in states[0].detail


async def test_an_address_that_gitlab_refuses_is_told_with_where_an_administrator_allows_it(office: Office) -> None:
    office.gitlab.local_hooks_allowed = False
    states = await registry.install(office.loaded(public="http://192.168.0.7:8080"))
    assert set(conditions(states).values()) == {"failed"}
    assert "Invalid url given" in states[0].detail
    assert "Outbound requests" in states[0].fix


async def test_what_two_installs_or_a_crash_doubled_is_reduced_to_one(office: Office) -> None:
    for _ in range(3):
        office.gitlab.add_hook(office.app, ADDRESS, secret_token="old")
    before = await registry.look(office.loaded(), projects=["group/app"])
    assert (before[0].condition, "3 webhooks" in before[0].detail) == (HookCondition.DOUBLED, True)
    done = await asyncio.gather(*(registry.install(office.loaded()) for _ in range(3)))
    assert all(state.ok for states in done for state in states), done
    for project in (office.app, office.cli, office.web):
        assert [hook.secret_token for hook in office.hooks(project)] == [SECRET]


async def test_a_webhook_that_gitlab_disabled_is_made_anew(office: Office) -> None:
    old = office.gitlab.add_hook(office.app, ADDRESS, secret_token="old")
    old.alert_status = "disabled"
    kept = office.gitlab.add_hook(office.cli, ADDRESS)
    kept.alert_status, kept.custom_headers = "disabled", {"X-Proxy": "hush"}
    states = {state.project: state for state in await registry.install(office.loaded())}
    [hook] = office.hooks(office.app)
    assert (hook is not old, hook.alert_status, states["group/app"].ok) == (True, "executable", True)
    assert office.hooks(office.cli) == [kept]  # its headers can't be copied
    assert states["tools/cli"].condition is HookCondition.DISABLED
    assert "send a test" in states["tools/cli"].fix


async def test_an_answer_that_was_lost_or_put_off_is_asked_for_again_without_a_second_webhook(office: Office) -> None:
    office.gitlab.hang_up(1, method="POST", path=r"/hooks$", after=True)
    office.gitlab.fail(429, 1, retry_after=40, method="GET", path=r"/hooks$")
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    states = await registry.install(office.loaded(), sleep=sleep)
    assert [state.ok for state in states] == [True] * 3
    assert waits == [40.0, 1.0]
    assert [len(office.hooks(project)) for project in (office.app, office.cli, office.web)] == [1, 1, 1]
    office.gitlab.fail(500, method="GET", path=r"/hooks$")
    states = await registry.remove(office.loaded(), sleep=no_wait)
    assert set(conditions(states).values()) == {"failed"}
    assert "500" in states[0].detail


async def test_a_token_that_is_refused_and_a_missing_address_are_one_error(office: Office) -> None:
    loaded = office.loaded()
    office.gitlab.fail(401, path="/user$")
    with pytest.raises(Unavailable, match=r"gitlab\.token_file"):
        await registry.look(loaded)
    file = office.config()
    file.write_text(file.read_text().replace('http: {public_url: "https://rave.example.org"}\n', ""))
    with pytest.raises(ConfigError, match=r"http\.public_url is not set"):
        await registry.install(load(file))


async def test_a_test_event_shows_whether_ravebot_takes_what_gitlab_sends(office: Office) -> None:
    both = "secret_token_file: {folder}/secret, signing_token_file: {folder}/signing"
    only = "signing_token_file: {folder}/signing"
    for project in (office.app, office.cli):
        office.gitlab.open_merge_request(project, office.bot)
    (office.folder / "signing").write_text(SIGNING_TOKEN)  # those of the receiver
    (office.folder / "secret").write_text("a plain secret")
    async with receiving(100_000) as receiver:
        public = receiver.url.removesuffix(WEBHOOK_PATH)
        for webhook in (both, only):
            app, cli, web = await registry.install(office.loaded(webhook=webhook, public=public), test=True)
            assert ["reached ravebot" in state.detail for state in (app, cli)] == [True, True], (app, cli)
            assert (web.ok, "no merge request" in web.detail) == (True, True)
        assert receiver.results == ["accepted"] * 4
        (office.folder / "secret").write_text("a newer secret, which the running bot does not know")
        loaded = office.loaded(public=public)
        office.gitlab.hooks.hooks.clear()
        [state] = await registry.install(loaded, projects=["group/app"], test=True)
        assert (state.condition, "restart" in state.fix) == (HookCondition.FAILED, True)
        assert "secret token is wrong" in state.detail
        [state] = await registry.look(loaded, projects=["group/app"])
        assert (state.condition, "401" in state.detail) == (HookCondition.WRONG, True)
    [state] = await registry.install(loaded, projects=["group/app"], test=True)  # nobody listens there now
    assert (state.condition, "http.public_url" in state.fix) == (HookCondition.FAILED, True)


def ravebot(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["gitlab", "hooks", *map(str, arguments)], env={"NO_COLOR": "1"})
    return result.exit_code, result.stdout, result.stderr


def test_the_commands_print_tables_and_json_and_ask_before_they_remove(office: Office) -> None:
    config = ("-c", office.config())
    status, printed, _ = ravebot("list", *config)
    assert (status, printed.splitlines()[1].split("\t")[:2]) == (1, ["group/app", "missing"])
    status, printed, complaints = ravebot("install", *config, "--project", "tools/cli", "--json")
    told = [(one["project"], one["ok"], one["condition"]) for one in json.loads(printed)]
    assert (status, told) == (0, [("tools/cli", True, "right")])
    assert SECRET not in printed + complaints
    status, _, complaints = ravebot("remove", *config)
    assert (status, "--yes" in complaints, len(office.hooks(office.cli))) == (2, True, 1)
    assert ravebot("remove", "--yes", *config)[0] == 0
    assert office.hooks(office.cli) == []


async def test_uninstalling_removes_the_webhooks_and_says_which_it_may_not_remove(office: Office) -> None:
    loaded = office.loaded()
    await registry.install(loaded)
    office.gitlab.set_role(office.web, office.bot, DEVELOPER)
    (step,) = beyond.steps(loaded)  # it never ran, so there are no machines
    assert "https://rave.example.org" in step.what
    said: list[str] = []

    outcome = await step.remove(said.append)

    assert list(outcome.removed) == ["the webhook of group/app", "the webhook of tools/cli"]
    (left,) = outcome.left
    assert left.startswith("the webhook of tools/web: ")
    assert "Developer" in left
    assert [len(office.hooks(project)) for project in (office.app, office.cli, office.web)] == [0, 0, 1]
    assert len(said) == 3


async def test_a_gitlab_that_refuses_the_token_keeps_nothing_else_from_being_uninstalled(office: Office) -> None:
    (step,) = beyond.steps(office.loaded())
    office.gitlab.revoke((office.folder / "token").read_text())
    outcome = await step.remove(lambda _: None)
    (left,) = outcome.left
    assert left.startswith("the webhooks in group/app, tools/*: ")
    assert left.endswith("remove them in each project under Settings, Webhooks")
