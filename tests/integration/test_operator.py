"""What the shell is answered from the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ravebot.commands.people import People
from ravebot.errors import StoreError
from ravebot.gitlab.client import GitLab
from ravebot.operations.operator import Operator
from ravebot.operations.reports import AuditQuery
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor
from tests.support.records import a_merge_request
from tests.support.yard import HOW_A_JOB_GOES, Yard, a_yard, job_ended

pytestmark = pytest.mark.integration
MR, SECOND, THIRD = a_merge_request(1), a_merge_request(2), a_merge_request(3)
OPS = Actor("shell", "root")


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path) as yard:
        yield yard


def operator(yard: Yard) -> Operator:
    """With a GitLab that is never reached: what is known is enough for the shell."""
    people = People(yard.config, yard.database, GitLab("http://127.0.0.1:1", "no token"))
    return Operator(yard.config, yard.database, yard.core, yard.provider, people)


async def test_the_list_has_the_queue_last_and_says_how_to_get_in(yard: Yard) -> None:
    await yard.make_ready(SECOND)
    await yard.make_ready(THIRD)
    await yard.told(MR)
    lines = await operator(yard).command("list", (), OPS)
    assert isinstance(lines, tuple)
    assert [(line.ref, line.state, line.queue_position) for line in lines] == [
        ("group/app!2", "ready", None), ("group/app!3", "ready", None), ("group/app!1", "queued", 1),
    ]  # fmt: skip
    assert lines[0].ssh_command.endswith("agent@sandboxes.example.org")
    assert lines[2].ssh_command == ""


async def test_stop_stops_what_is_named_as_people_write_it(yard: Yard) -> None:
    await yard.make_ready(MR)
    done = await operator(yard).command("stop", ("group/app!1",), OPS)
    assert done == Outcome(True, "The sandbox of group/app!1 is being stopped.")
    assert await yard.is_in(MR, "stopping")


@pytest.mark.parametrize("ref", ["", "!", "group/app", "group/app!", "group/app!x", "group/app!²", "group/app!2",
                                 "other!1", "group/app!" + "9" * 40])  # fmt: skip
async def test_a_reference_that_is_none_is_told_how_to_write_one(yard: Yard, ref: str) -> None:
    await yard.told(MR)
    refused = await operator(yard).command("stop", (ref,), OPS)
    assert isinstance(refused, Outcome)
    assert not refused.accepted
    assert refused.message.endswith("Write one like group/app!42.")


async def test_one_that_is_kept_after_its_set_up_failed_is_listed_as_such(tmp_path: Path) -> None:
    async with a_yard(tmp_path, sandbox={"keep_failed": "15m"}) as yard:
        yard.provider.answers[HOW_A_JOB_GOES] = job_ended(3)
        await yard.make_ready(MR)  # in the database it is ready
        [line] = await operator(yard).command("list", (), OPS)  # type: ignore[misc]
        assert (line.state, line.web_url, line.ssh_command[:4]) == ("kept", "", "ssh ")


async def test_a_log_that_was_removed_under_the_running_bot_is_told_as_such(yard: Yard) -> None:
    await yard.database.write(lambda tx: tx.execute("DROP TABLE events"))
    with pytest.raises(StoreError, match="compare with a backup"):
        await operator(yard).audit(AuditQuery(verify=True))
