"""Webhooks are watched in a stand-in for GitLab, mended there, and operators are told once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
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
from tests.support.gitlab import DEVELOPER

pytestmark = pytest.mark.integration
__all__ = ["office"]


@pytest.fixture
async def watch(office: Office, tmp_path: Path) -> AsyncIterator[HookWatch]:
    config = office.config()
    config.write_text(config.read_text().replace("  rooms:", '  operations_room: "#ops:example.org"\n  rooms:'))
    loaded, clock = load(config), ManualClock()
    await registry.install(loaded)
    async with Database(tmp_path / "ravebot.db", clock) as database:
        watch = HookWatch(loaded, database, clock)
        await watch.look()
        yield watch


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
        await watch.look()
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
    await watch.look()
    await watch.look()
    assert office.hooks(office.cli)[0].settings["note_events"] is True
    assert office.hooks(office.web) == []
    changed, removed = await told(watch)
    assert "not enabled for comments" in changed
    assert "The webhook of tools/web is gone" in removed


async def test_without_the_right_to_see_webhooks_nothing_is_claimed(watch: HookWatch, office: Office) -> None:
    office.gitlab.set_role(office.cli, office.bot, DEVELOPER)
    office.hooks(office.cli)[0].alert_status = "disabled"
    await watch.look()
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
