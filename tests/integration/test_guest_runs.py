"""Commands that somebody runs in a sandbox, run for real by Debian's shell in a namespace in the guest's place."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.errors import GuestError, Refused, Unavailable
from ravebot.providers.base import RunResult
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.model import CODE_FOLDER, Actor, MergeRequest, RunState, SandboxState, Stage
from ravebot.sandboxes.runs import MOST_OUTPUT_BYTES, MOST_RUNNING, MOST_WAITING
from ravebot.store import events, restored, runs
from tests.support.clock import ManualClock
from tests.support.forks import FORKS
from tests.support.guest_room import Room
from tests.support.records import B, a_machine
from tests.support.run_world import ALICE, MR, USER, a_run_world, run_until_killed, with_code

pytestmark = pytest.mark.integration
JOBS = "/run/ravebot/jobs"
BOOT = "cat /proc/sys/kernel/random/boot_id"
A_BOOT = "01234567-89ab-cdef-0123-456789abcdef"


class EndlessGuest(MemoryProvider):
    """A guest that always has more of a command's output."""

    async def copy_out(self, name: str, path: str, *, max_bytes: int) -> bytes:
        return b"x" * max_bytes


@pytest.fixture
def room() -> Iterator[Room]:
    room = with_code(Room())
    try:
        yield room
    finally:
        room.close_room()


async def test_a_command_runs_as_the_sandbox_s_user_in_the_code_and_its_end_is_kept(room: Room, tmp_path: Path) -> None:
    async with a_run_world(room, tmp_path) as world:
        run = await world.ask("id -un; pwd; echo $RAVE_MR $RAVE_SHA; echo wrong >&2; exit 3")
        done = await world.over(run)
        assert (done.state, done.exit_code, done.why) == (RunState.DONE, 3, "")
        sandbox = await world.sandbox()
        output = await world.read(run)
        assert output.text.splitlines() == [USER, CODE_FOLDER, f"1 {sandbox.sha}", "wrong"]
        assert (output.more, output.cut, output.next_offset) == (False, False, len(output.text))
        assert (await world.read(run, 5, 3)).text == output.text[5:8]
        await asyncio.sleep(0.1)
        assert room.sh(f"ls {JOBS}") == ""
        kinds = [(one.kind, one.actor, one.data) for one in await world.database.read(lambda tx: events.newest(tx, 9))]
        assert ("run.asked", ALICE, {"run": run.id, "timeout": 20}) in kinds
        assert kinds[-1][0] == "run.ended"
        assert kinds[-1][2] == {"run": run.id, "state": "done", "code": 3}


async def test_output_is_read_while_it_comes_in_whole_characters_and_its_excess_is_left_out(
    room: Room, tmp_path: Path
) -> None:
    async with a_run_world(room, tmp_path) as world:
        slow = await world.ask("printf 'a\\342\\202'; sleep 0.5; printf '\\254b\\000'; sleep 30")
        await world.until(slow, lambda one: one.characters == 1)
        assert (await world.read(slow)).more
        await world.until(slow, lambda one: one.characters == 4)
        assert (await world.read(slow)).text == "a€b\ufffd"
        await world.cancel(slow)
        large = await world.ask("head -c 1100000 /dev/zero | tr '\\0' x")
        done = await world.over(large)
        output = await world.read(large)
        assert (done.state, output.text == "x" * MOST_OUTPUT_BYTES, output.cut) == (RunState.DONE, True, True)
        exact = await world.ask(f"head -c {MOST_OUTPUT_BYTES} /dev/zero | tr '\\0' x; printf '\\303' >&2; exit 1")
        await world.over(exact)
        assert (await world.read(exact)).cut


async def test_a_run_that_is_cancelled_or_late_is_ended_with_all_its_processes(room: Room, tmp_path: Path) -> None:
    mark = f"98{time.monotonic_ns() % 10_000_000}"
    async with a_run_world(room, tmp_path) as world:
        cancelled = await world.ask(f"echo begun; sleep {mark} | cat & sleep {mark}")
        await world.until(cancelled, lambda one: one.characters)
        await world.cancel(cancelled)
        late = await world.ask(f"echo begun; sleep {mark} | cat & sleep {mark}", seconds=1)
        ended = await world.over(cancelled)
        assert (ended.state, ended.why) == (RunState.CANCELLED, "alice cancelled it")
        ended = await world.over(late)
        assert (ended.state, ended.why) == (RunState.TIMEOUT, "it was not done after 1 s")
        assert (await world.read(late)).text == "begun\n"
    left = subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True, check=False).stdout
    assert left == ""


async def test_four_run_at_once_the_others_wait_their_turn_and_too_many_are_refused(room: Room, tmp_path: Path) -> None:
    async with a_run_world(room, tmp_path) as world:
        asked = [await world.ask(f"echo {number} >> order; sleep 30") for number in range(6)]
        for one in asked[:MOST_RUNNING]:
            await world.until(one, lambda run: run.state is RunState.RUNNING)
        assert [(await world.get(one.id)).state for one in asked[MOST_RUNNING:]] == [RunState.WAITING] * 2
        await world.cancel(asked[5])
        assert (await world.get(asked[5].id)).state is RunState.CANCELLED
        await world.cancel(asked[0])
        await world.until(asked[4], lambda run: run.state is RunState.RUNNING)
        for _ in range(MOST_WAITING):
            await world.ask("true")
        with pytest.raises(Refused, match="20 commands wait in this sandbox already"):
            await world.ask("true")


@pytest.mark.parametrize("command", ["", "  ", "echo \0", "x" * 8001])
async def test_what_is_no_command_is_refused(tmp_path: Path, command: str) -> None:
    async with a_run_world(MemoryProvider(), tmp_path, works=False) as world:
        with pytest.raises(Refused, match="at most 8000 characters"):
            await world.ask(command)
        with pytest.raises(Refused, match="from a second to an hour"):
            await world.ask("true", seconds=3601)


async def test_a_run_waits_until_its_sandbox_is_ready_and_new_code_is_in(room: Room, tmp_path: Path) -> None:
    async with a_run_world(room, tmp_path) as world:
        await world.change_sandbox(stage=Stage.COPY)
        run = await world.ask("true")
        await asyncio.sleep(0.3)
        assert (await world.get(run.id)).state is RunState.WAITING
        await world.change_sandbox(stage=None)
        assert (await world.over(run)).state is RunState.DONE


async def test_a_run_that_waited_is_started_only_if_it_still_may_be(room: Room, tmp_path: Path) -> None:
    answers: list[str | Unavailable] = [Unavailable("GitLab is away"), ""]

    async def why_not(_: object, mr: MergeRequest, by: Actor) -> str:
        assert (mr.ref, by) == (MR.ref, ALICE)
        answer = answers.pop(0) if answers else "alice is Guest in group/app"
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    async with a_run_world(room, tmp_path, why_not=why_not) as world:
        assert (await world.over(await world.ask("true"))).state is RunState.DONE
        refused = await world.over(await world.ask("touch /tmp/was-run"))
        assert refused.state is RunState.CANCELLED
        assert refused.why == "it was not started: alice is Guest in group/app"
        assert refused.started_at is None
    assert answers == []


async def test_a_mistake_of_ours_ends_one_run_and_not_the_bot(room: Room, tmp_path: Path) -> None:
    mistakes = [ZeroDivisionError("ours")]

    async def why_not(_: object, __: MergeRequest, ___: Actor) -> str:
        if mistakes:
            raise mistakes.pop()
        return ""

    async with a_run_world(room, tmp_path, why_not=why_not) as world:
        lost = await world.over(await world.ask("true"))
        assert (lost.state, "ravebot made a mistake" in lost.why) == (RunState.LOST, True)
        assert (await world.over(await world.ask("true"))).state is RunState.DONE


async def test_new_code_ends_a_run_and_it_is_said(room: Room, tmp_path: Path) -> None:
    async with a_run_world(room, tmp_path) as world:
        run = await world.ask("echo begun; sleep 30")
        await world.until(run, lambda one: one.characters)
        await world.change_sandbox(stage=Stage.COPY, sha=B)
        room.sh(f"kill -KILL -$(cat {JOBS}/*/pid); echo 137 > {JOBS}/{run.guest_key}/status")  # as the copying does
        ended = await world.over(run)
        assert (ended.state, ended.why) == (RunState.CANCELLED, "new code came into the sandbox")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("the sandbox ends", "its sandbox ended"),
        ("a rebuild", "its sandbox got a new machine"),
        ("a restart", "its machine was restarted"),
        ("a reboot", "its machine was restarted"),
        ("a restore", "the state was restored from a backup after it was asked for"),
    ],
)
async def test_a_run_whose_guest_is_gone_is_lost_and_never_run_again(
    room: Room, tmp_path: Path, what: str, why: str
) -> None:
    async with a_run_world(room, tmp_path) as world:
        run = await world.ask("echo once >> count; sleep 30")
        await world.until(run, lambda one: one.state is RunState.RUNNING)
        while room.sh(f"cat {CODE_FOLDER}/count") != "once\n":
            await asyncio.sleep(0.01)
        if what == "the sandbox ends":
            await world.change_sandbox(state=SandboxState.STOPPING)
        elif what == "a rebuild":
            await world.change_sandbox(machine_id=(await world.another_machine()).id)
        elif what == "a restart":
            await world.change_machine(restarts=1)
        elif what == "a reboot":  # by the guest itself
            room.sh(f"kill -KILL -$(cat {JOBS}/*/pid); rm -rf /run/ravebot")
        else:
            await world.database.write(lambda tx: restored.mark(tx, tx.now, "", ALICE))
        ended = await world.over(run)
        assert (ended.state, ended.why) == (RunState.LOST, why)
        assert room.sh(f"cat {CODE_FOLDER}/count") == "once\n"


async def test_a_command_that_was_given_to_another_boot_is_not_started(room: Room, tmp_path: Path) -> None:
    async with a_run_world(room, tmp_path, works=False) as world:
        run = await world.ask("echo once >> count")
        boot = (await world.loop.jobs.boot("m")).strip()
        jobs = world.loop.jobs
        assert not await jobs.start("m", run.guest_key, run.command, {}, A_BOOT, 100)
        assert not (await jobs.look("m", run.guest_key, 0)).found
        assert await jobs.start("m", run.guest_key, run.command, {}, boot, 100)


async def test_a_job_that_is_killed_before_it_begins_never_begins(room: Room, tmp_path: Path) -> None:
    async with a_run_world(room, tmp_path, works=False) as world:
        jobs, boot = world.loop.jobs, (await world.loop.jobs.boot("m"))
        await jobs.kill("m", "run-1-x")
        assert await jobs.start("m", "run-1-x", "echo once >> count", {}, boot, 100)
        assert (await jobs.look("m", "run-1-x", 0)).exit_code == 137
        assert room.sh(f"cat {CODE_FOLDER}/count 2>&1") != "once\n"


async def test_a_guest_that_does_not_answer_is_asked_again_until_long_after_the_run_s_time(tmp_path: Path) -> None:
    host, clock = MemoryHost(), ManualClock()
    host.put(a_machine(1).name)
    provider = MemoryProvider(host)
    provider.answers[BOOT] = RunResult(0, f"{A_BOOT}\n")
    provider.answers["piece"] = RunResult(0, "running\n")
    async with a_run_world(provider, tmp_path, clock=clock) as world:
        run = await world.ask("true", seconds=60)
        await world.until(run, lambda one: one.state is RunState.RUNNING)
        provider.fails["run"] = Unavailable("libvirt is away")
        clock.advance(timedelta(minutes=2))
        await asyncio.sleep(0.5)
        assert (await world.get(run.id)).state is RunState.RUNNING
        clock.advance(timedelta(minutes=5))
        ended = await world.over(run)
        assert (ended.state, ended.why) == (RunState.LOST, "its guest does not answer: libvirt is away")


async def test_a_guest_that_prints_without_end_and_ends_nothing_is_given_up_long_after_the_run_s_time(
    tmp_path: Path,
) -> None:
    host, clock = MemoryHost(), ManualClock()
    host.put(a_machine(1).name)
    provider = EndlessGuest(host)
    provider.answers[BOOT] = RunResult(0, f"{A_BOOT}\n")
    provider.answers["piece"] = RunResult(0, "running\nmore\n")
    async with a_run_world(provider, tmp_path, clock=clock) as world:
        run = await world.ask("true", seconds=60)
        cut = await world.until(run, lambda one: one.cut)
        assert cut.characters == MOST_OUTPUT_BYTES
        clock.advance(timedelta(minutes=2))
        await asyncio.sleep(0.5)
        assert (await world.get(run.id)).state is RunState.RUNNING
        clock.advance(timedelta(minutes=5))
        ended = await world.over(run)
        assert (ended.state, ended.why) == (RunState.LOST, "its guest does not end it")


@pytest.mark.parametrize("answer", ["²", "9" * 5000, "-1", "", "running\0"])
async def test_a_guest_that_answers_nonsense_tells_nothing(tmp_path: Path, answer: str) -> None:
    host = MemoryHost()
    host.put("m")
    provider = MemoryProvider(host)
    provider.answers[""] = RunResult(0, f"{answer}\n")
    async with a_run_world(provider, tmp_path, works=False) as world:
        with pytest.raises(GuestError, match="nonsense"):
            await world.loop.jobs.look("m", "key", 0)
        with pytest.raises(GuestError, match="which boot"):
            await world.loop.jobs.boot("m")


async def test_old_runs_are_forgotten_with_their_output(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_run_world(MemoryProvider(), tmp_path, works=False, clock=clock) as world:
        run = await world.ask("true")
        await world.database.write(lambda tx: runs.add_output(tx, run, "text"))
        await world.cancel(run)
        clock.advance(timedelta(days=6))
        assert not await world.database.write(lambda tx: runs.forget(tx, timedelta(days=7), 100))
        clock.advance(timedelta(days=2))
        assert await world.database.write(lambda tx: runs.forget(tx, timedelta(days=7), 100)) == 1
        assert await world.database.read(lambda tx: tx.all("SELECT * FROM run_output")) == []


async def test_a_kill_at_any_point_neither_loses_nor_repeats_a_run(room: Room, tmp_path: Path) -> None:
    async with a_run_world(room, tmp_path, works=False) as world:
        gate = "while [ ! -e gate ]; do sleep 0.05; done"
        run = await world.ask(f"echo once >> count; seq 1 9000; {gate}; seq 9001 30000")
    struck = 0
    for crash_at in (*range(1, 25), *range(1, 25)):
        if struck == 24:
            room.sh(f": > {CODE_FOLDER}/gate")
            time.sleep(0.2)
        process = FORKS.Process(target=run_until_killed, args=(tmp_path, room.holder_pid, crash_at))
        process.start()
        with closing(sqlite3.connect(tmp_path / "ravebot.db", timeout=5)) as connection:
            over = False
            while process.is_alive() and not over:
                time.sleep(0.01)
                over = not connection.execute("SELECT 1 FROM runs WHERE state IN ('waiting', 'running')").fetchone()
        process.kill()
        process.join()
        if over:
            break
        struck += 1
    async with a_run_world(room, tmp_path, works=False) as world:
        done = await world.get(run.id)
        assert (done.state, done.exit_code) == (RunState.DONE, 0)
        assert (await world.read(run)).text == "".join(f"{number}\n" for number in range(1, 30001))
        assert room.sh(f"cat {CODE_FOLDER}/count") == "once\n"
    assert struck >= 30, struck
