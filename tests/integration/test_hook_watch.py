"""Webhooks are watched in a stand-in for GitLab, mended there, and operators are told once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ravebot.cli import app
from ravebot.config.file import load
from ravebot.operations.hooks import registry
from ravebot.operations.hooks.watch import HookWatch
from ravebot.store.database import Database, Transaction
from tests.integration.test_hooks import SECRET, Office, office
from tests.support.clock import ManualClock
from tests.support.gitlab import DEVELOPER, MAINTAINER
from tests.support.gitlab.hooks import Attempt, Message

pytestmark = pytest.mark.integration
__all__ = ["office"]
REFUSED: dict[str, datetime] = {}


@pytest.fixture
async def watch(office: Office, tmp_path: Path) -> AsyncIterator[HookWatch]:
    config = office.config()
    config.write_text(config.read_text().replace("  rooms:", '  operations_room: "#ops:example.org"\n  rooms:'))
    loaded, clock = load(config), ManualClock()
    await registry.install(loaded)
    async with Database(tmp_path / "ravebot.db", clock) as database:
        served = [(project.id, project.path) for project in (office.app, office.cli, office.web)]
        watch = HookWatch(loaded, database, clock, lambda: served, lambda: REFUSED.get("at"))
        await watch.look(served)
        yield watch


@pytest.fixture(autouse=True)
def refused() -> dict[str, datetime]:
    REFUSED.clear()
    return REFUSED


async def told(watch: HookWatch) -> list[str]:
    def read(tx: Transaction) -> list[str]:
        rows = tx.all("SELECT body FROM outbox WHERE lane = '#ops:example.org' AND kind = 'news' ORDER BY id")
        return [json.loads(row["body"])["text"] for row in rows]

    return await watch.database.read(read)


async def test_one_that_gitlab_disabled_is_made_anew_and_told_once(watch: HookWatch, office: Office) -> None:
    assert await told(watch) == []
    [hook] = office.hooks(office.cli)
    hook.alert_status = "disabled"
    for _ in range(3):
        await watch.look(watch.projects())
    [new] = office.hooks(office.cli)
    assert (new.alert_status, new.secret_token) == ("executable", SECRET)
    [said] = await told(watch)
    assert said.startswith(
        "The webhook of tools/cli was not right: disabled by GitLab after failures. ravebot mended it"
    )


async def test_one_that_somebody_changed_is_corrected_and_one_that_somebody_removed_is_told(
    watch: HookWatch, office: Office
) -> None:
    office.hooks(office.cli)[0].settings["note_events"] = False
    office.gitlab.hooks.hooks = [hook for hook in office.gitlab.hooks.hooks if hook.project_id != office.web.id]
    await watch.look(watch.projects())
    await watch.look(watch.projects())
    assert office.hooks(office.cli)[0].settings["note_events"] is True
    assert office.hooks(office.web) == []
    changed, removed = await told(watch)
    assert "not enabled for comments" in changed
    assert "The webhook of tools/web is gone" in removed


async def test_one_of_a_project_whose_path_another_took_is_mended_where_it_is(watch: HookWatch, office: Office) -> None:
    old = (office.cli.id, office.cli.path)
    office.hooks(office.cli)[0].settings["note_events"] = False
    office.gitlab.move(office.cli, "tools/renamed")
    other = office.gitlab.add_project("tools/cli")
    office.gitlab.set_role(other, office.bot, MAINTAINER)
    await watch.look([old])
    assert office.hooks(office.cli)[0].settings["note_events"] is True
    assert office.hooks(other) == []
    [said] = await told(watch)
    assert said.startswith("The webhook of tools/renamed was not right")
    assert not watch.is_right("tools/cli")


async def test_one_of_a_project_that_was_moved_out_is_left_as_it_is(watch: HookWatch, office: Office) -> None:
    old = (office.cli.id, office.cli.path)
    office.hooks(office.cli)[0].settings["note_events"] = False
    office.gitlab.move(office.cli, "elsewhere/cli")
    await watch.look([old])
    assert office.hooks(office.cli)[0].settings["note_events"] is False
    [said] = await told(watch)
    assert said.startswith("The webhook of elsewhere/cli was not right")
    assert "it is not in gitlab.projects" in said


async def test_a_refused_delivery_is_looked_at_also_when_gitlab_did_not_answer_before(
    watch: HookWatch, office: Office, refused: dict[str, datetime]
) -> None:
    project = (office.cli.id, office.cli.path)

    async def asked() -> list[str]:
        before = len(office.gitlab.requests)
        await watch.look([project])
        return [one.path.rpartition("/")[2] for one in office.gitlab.requests[before:]]

    assert isinstance(watch.clock, ManualClock)
    watch.clock.advance(timedelta(hours=1))
    refused["at"] = watch.clock.now()
    watch.clock.advance(timedelta(minutes=5))
    office.gitlab.fail(500, path="/hooks")
    assert await asked() == ["hooks"]
    office.gitlab.restore()
    assert await asked() == ["hooks", "events"]
    assert await asked() == ["hooks"]


async def test_a_look_takes_one_request_a_project_and_one_more_only_where_a_delivery_was_refused(
    watch: HookWatch, office: Office, refused: dict[str, datetime]
) -> None:
    async def asked() -> list[str]:
        before = len(office.gitlab.requests)
        await watch.look(watch.projects())
        return [one.path.rpartition("/")[2] for one in office.gitlab.requests[before:]]

    assert await asked() == ["hooks"] * 3
    refused["at"] = watch.clock.now()
    assert await asked() == ["hooks", "events"] * 3
    assert isinstance(watch.clock, ManualClock)
    watch.clock.advance(timedelta(hours=1))
    assert await asked() == ["hooks", "events"] * 3
    assert await asked() == ["hooks"] * 3


async def test_a_webhook_counts_as_right_while_its_last_look_found_it_so_and_is_not_old(
    watch: HookWatch, office: Office
) -> None:
    assert watch.is_right("tools/cli")
    assert not watch.is_right("tools/other")
    office.gitlab.hooks.hooks = [hook for hook in office.gitlab.hooks.hooks if hook.project_id != office.cli.id]
    await watch.look(watch.projects())
    assert (watch.is_right("tools/cli"), watch.is_right("tools/web")) == (False, True)
    office.gitlab.set_role(office.web, office.bot, DEVELOPER)
    await watch.look(watch.projects())
    assert not watch.is_right("tools/web"), "it may not be seen any more"
    assert isinstance(watch.clock, ManualClock)
    assert watch.is_right("group/app")
    watch.clock.advance(timedelta(hours=26))
    assert not watch.is_right("group/app")


async def test_a_secret_that_somebody_changed_is_set_again_once_a_delivery_was_refused_for_it(
    watch: HookWatch, office: Office, refused: dict[str, datetime]
) -> None:
    [hook] = office.hooks(office.cli)
    hook.secret_token = "another"
    office.gitlab.hooks.attempts.append(Attempt(Message(hook, "Merge Request Hook", b"{}"), 401, b"", "", 0.1))
    await watch.look(watch.projects())
    assert hook.secret_token == "another"
    refused["at"] = watch.clock.now()
    await watch.look(watch.projects())
    assert hook.secret_token == SECRET
    assert "refused its latest delivery (401)" in (await told(watch))[0]


async def test_without_the_right_to_see_webhooks_nothing_is_claimed(watch: HookWatch, office: Office) -> None:
    office.gitlab.set_role(office.cli, office.bot, DEVELOPER)
    office.hooks(office.cli)[0].alert_status = "disabled"
    await watch.look(watch.projects())
    assert await told(watch) == []


def test_doctor_mends_webhooks_when_it_is_asked_to(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    config = office.config()
    seen = CliRunner().invoke(app, ["doctor", "--config", str(config)])
    assert "no webhook to https://rave.example.org" in seen.output
    assert office.gitlab.hooks.hooks == []
    mended = CliRunner().invoke(app, ["doctor", "--fix", "--config", str(config)])
    assert len(office.gitlab.hooks.hooks) == 3
    assert "gitlab webhook" in mended.output
    assert "no webhook to" not in mended.output
