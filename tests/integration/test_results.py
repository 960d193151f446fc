"""Results of set-up and tests, from the guest into the note, the card and the commit's status."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot import logs
from ravebot.errors import GuestError, MachineNotFound, Unavailable
from ravebot.gitlab.notes import render_note
from ravebot.matrix.cards import Style, render_card
from ravebot.providers.base import OUTPUT_LIMIT_BYTES
from ravebot.providers.memory import MemoryProvider
from ravebot.sandboxes.chain.guestjobs import GuestJobs
from ravebot.sandboxes.chain.results import COLLECT, unpack
from ravebot.sandboxes.environments.plan import wanted
from ravebot.sandboxes.model import CODE_FOLDER, MergeRequest, Stage
from ravebot.sandboxes.view import SandboxView
from ravebot.store import machines, results, sandboxes
from tests.support.guest_room import Room
from tests.support.records import B, a_merge_request
from tests.support.yard import HOW_A_JOB_GOES, Yard, a_yard, job_ended

pytestmark = pytest.mark.integration

TOKEN = "glpat-abcdefghij0123456789"
REPORT = (
    b'<testsuite><testcase name="works"/><testcase name="breaks"><failure message="'
    + TOKEN.encode()
    + b' is wrong"/></testcase></testsuite>'
)


class Reporter(MemoryProvider):
    """Its guests leave a report, unless `gives` is an error."""

    def __init__(self, gives: bytes | Exception) -> None:
        super().__init__()
        self.gives = gives

    async def copy_out(self, name: str, source: str, *, max_bytes: int) -> bytes:
        if not source.endswith("-reports/out"):
            return await super().copy_out(name, source, max_bytes=max_bytes)
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@asynccontextmanager
async def a_reporting_yard(folder: Path, gives: bytes | Exception, **more: Any) -> AsyncIterator[Yard]:
    sandbox = {
        "setup": ["make ready"], "smoke_tests": [{"run": "make check"}], "junit": ["build/*.xml", "more.xml"], **more
    }  # fmt: skip
    async with a_yard(folder, Reporter(gives), sandbox=sandbox) as yard:
        yield yard


async def the_view(yard: Yard, mr: MergeRequest) -> SandboxView:
    view = await yard.read(lambda tx: yard.views.latest(tx, mr.ref))
    assert view
    return view


def a_file(content: bytes) -> bytes:
    return b"file %d build/tests.xml\n%s" % (len(content), content)


async def test_commands_and_reports_are_in_the_note_the_card_and_the_status(tmp_path: Path) -> None:
    async with a_reporting_yard(tmp_path, a_file(REPORT)) as yard:
        mr = a_merge_request()
        await yard.make_ready(mr)
        view = await the_view(yard, mr)
        note = render_note(view, "<!-- -->")
        assert "| set-up `make ready` | ✅ done | " in note
        assert "| test `make check` | ✅ done | " in note
        assert "❌ **2 tests, 1 failed**" in note
        assert "| `breaks` | " in note
        assert TOKEN not in note
        assert "masked" in note
        assert "2 tests, 1 failed" in str(render_card(view, Style())["body"])
        shown = wanted(view.sandbox, mr, None, view.now, view.cases.in_short if view.cases else "")
        assert shown.status
        assert shown.status.description == "The sandbox is ready: 2 tests, 1 failed"
        asked = [one.environment["RAVE_REPORTS"] for one in yard.provider.commands if "RAVE_REPORTS" in one.environment]
        assert set(asked) == {"build/*.xml\nmore.xml"}


async def test_reports_are_read_when_a_test_failed_and_its_output_is_folded_and_masked(tmp_path: Path) -> None:
    async with a_reporting_yard(tmp_path, a_file(REPORT)) as yard:
        mr = a_merge_request()
        yard.provider.answers[HOW_A_JOB_GOES] = lambda command: (
            job_ended(2, f"line\ntoken {TOKEN}\n") if command.argv[-2].endswith("-test-0") else job_ended(0)
        )
        await yard.told(mr)
        await yard.until(lambda: yard.is_in(mr, "ended"))
        view = await the_view(yard, mr)
        note = render_note(view, "<!-- -->")
        assert "| test `make check` | ❌ ended with code 2 | " in note
        assert "❌ **2 tests, 1 failed**" in note
        assert "<summary>The end of what it printed</summary>\n\n```text\nline\ntoken [masked]\n```" in note
        assert TOKEN not in str((view, await yard.log("stage.failed")))
        shown = wanted(view.sandbox, mr, None, view.now, "2 tests, 1 failed")
        assert shown.status
        assert shown.status.description == "Tests failed: `make check` ended with code 2: 2 tests, 1 failed"


async def test_secrets_are_masked_wherever_a_guest_or_a_project_puts_them(tmp_path: Path) -> None:
    """Also one that ravebot was given, which has no shape, and which colours part."""
    logs.hide("violet walrus")
    report = f'<testsuite><testcase name="{TOKEN}"><failure message="violet walrus"/></testcase></testsuite>'
    command = f"curl -H 'PRIVATE-TOKEN: {TOKEN}' violet\x1b[1m walrus"
    async with a_reporting_yard(
        tmp_path, a_file(report.encode()), smoke_tests=[{"run": "make check"}, {"run": command}]
    ) as yard:
        mr = a_merge_request()
        yard.provider.answers[HOW_A_JOB_GOES] = lambda made: (
            job_ended(2, "it is violet\x1b[31m walrus\n") if made.argv[-2].endswith("-test-1") else job_ended(0)
        )
        await yard.told(mr)
        await yard.until(lambda: yard.is_in(mr, "ended"))
        view = await the_view(yard, mr)
        assert [one.ok for one in view.commands] == [True, True, False]
        told = str(
            (view.commands, view.cases, view.stages, render_note(view, "<!-- -->"), await yard.log("stage.failed"))
        )
        assert "masked" in told
        assert "[hidden]" in told
        assert TOKEN not in told
        assert "walrus" not in told


async def test_of_the_output_of_many_tests_the_end_has_no_half_secret(tmp_path: Path) -> None:
    tests = [{"run": "make one"}, {"run": "make two"}]
    async with a_reporting_yard(tmp_path, b"", smoke_tests=tests) as yard:
        mr = a_merge_request()
        first, length = f"{TOKEN}\n{'z' * 59}\n", OUTPUT_LIMIT_BYTES - 70  # together, the limit is in the token
        second = ("x\n" * length)[:length]
        yard.provider.answers[HOW_A_JOB_GOES] = lambda made: job_ended(
            0, second if made.argv[-2].endswith("-test-1") else first
        )
        await yard.make_ready(mr)
        [tested] = [one for one in (await the_view(yard, mr)).stages if one.stage is Stage.TEST]
        assert tested.tail == f"{'z' * 59}\n{second}"


async def test_what_ends_after_new_code_came_is_not_taken_for_the_new_code_s(tmp_path: Path) -> None:
    async with a_reporting_yard(tmp_path, a_file(REPORT)) as yard:
        mr = a_merge_request()
        await yard.make_ready(mr)
        before, old = await the_view(yard, mr), await yard.latest(mr)
        machine = await yard.read(lambda tx: machines.get(tx, old.machine_id))
        assert machine
        await yard.write(lambda tx: sandboxes.save(tx, replace(old, sha=B)))
        kept = yard.core.chain.results
        async with kept.of_command(old, Stage.TEST, 7, "make late"):
            pass
        assert isinstance(yard.provider, Reporter)
        yard.provider.gives = a_file(b"<testsuite><testcase/></testsuite>")
        await kept.collect(old, machine, ("late.xml",))
        await yard.write(lambda tx: sandboxes.save(tx, old))
        after = await the_view(yard, mr)
        assert (after.commands, after.cases) == (before.commands, before.cases)


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        (b"", "no file is where reports should be"),
        (GuestError("the guest is gone"), "the reports could not be fetched"),
        (a_file(b"<html/>"), "`build/tests.xml` can't be used: it is XML, but no JUnit report"),
    ],
)
async def test_reports_that_can_t_be_used_are_one_line_and_the_sandbox_is_ready(
    tmp_path: Path, gives: bytes | Exception, says: str
) -> None:
    async with a_reporting_yard(tmp_path, gives) as yard:
        mr = a_merge_request()
        await yard.make_ready(mr)
        assert f"⚠️ Test report: {says}" in render_note(await the_view(yard, mr), "<!-- -->")


async def test_a_machine_that_is_gone_is_not_called_one_without_reports(tmp_path: Path) -> None:
    async with a_reporting_yard(tmp_path, MachineNotFound("gone")) as yard:
        mr = a_merge_request()
        await yard.told(mr)
        await yard.go()
        assert (await the_view(yard, mr)).cases is None


async def test_while_the_provider_is_away_the_reports_wait(tmp_path: Path) -> None:
    async with a_reporting_yard(tmp_path, Unavailable("libvirt is away")) as yard:
        mr = a_merge_request()
        await yard.told(mr)
        await yard.go()
        await yard.go()
        assert await yard.is_in(mr, "starting")
        assert isinstance(yard.provider, Reporter)
        yard.provider.gives = a_file(REPORT)
        await yard.core.chain.run((await yard.latest(mr)).id)  # as the pool does after a pause
        assert await yard.is_in(mr, "ready")
        view = await the_view(yard, mr)
        assert [one.ok for one in view.commands] == [True, True]
        assert view.cases
        assert view.cases.in_short == "2 tests, 1 failed"


async def test_what_was_printed_and_reported_is_forgotten_in_time_and_the_results_stay(tmp_path: Path) -> None:
    async with a_reporting_yard(tmp_path, a_file(REPORT)) as yard:
        mr = a_merge_request()
        await yard.make_ready(mr)
        yard.pass_by(days=8)
        await yard.write(lambda tx: results.forget_output(tx, timedelta(days=7)))
        view = await the_view(yard, mr)
        assert view.cases is None
        assert len(view.commands) == 2


async def test_a_real_shell_gives_the_files_that_patterns_name_and_none_outside_the_code() -> None:
    room = Room()
    try:
        room.sh(
            f"mkdir -p {CODE_FOLDER}/build/more && cd {CODE_FOLDER}"
            " && printf '<a/>\\n' > build/a.xml && : > 'build/b c.xml'"
            " && ln -s /etc/passwd build/p.xml && ln -s a.xml build/l.xml && mkfifo build/pipe.xml && mkdir build/d.xml"
            " && head -c 2000000 /dev/zero > build/z.xml && for n in $(seq 30); do echo $n > build/more/$n.txt; done"
        )
        jobs = GuestJobs(room, "nobody")
        variables = {"RAVE_REPORTS": "build/*.xml\nnone/*.xml\n$(touch /tmp/x).xml\nbuild/more/*.txt"}
        raw = await jobs.output_of("m", "1-reports", COLLECT, variables, 1024**2, timedelta(seconds=20))
        found = unpack(raw)
        assert [name for name, _ in found.files[:3]] == ["build/a.xml", "build/b c.xml", "build/l.xml"]
        assert [content for _, content in found.files[:3]] == [b"<a/>\n", b"", b"<a/>\n"]
        assert len(found.files) == 19
        assert [problem.split("`")[1] for problem in found.problems[:2]] == ["build/p.xml", "build/z.xml"]
        assert "more than 20 reports" in found.problems[2]
        assert len(found.problems) == 3
    finally:
        room.close_room()
