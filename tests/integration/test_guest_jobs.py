"""What is run inside a guest, run for real by Debian's shell and su, in a mount namespace in the guest's place."""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.errors import GuestError, GuestTimeout
from ravebot.providers.base import OUTPUT_LIMIT_BYTES, RunResult
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.chain.guestjobs import GuestJobs
from ravebot.sandboxes.model import CODE_FOLDER
from tests.support.guest_room import Room

pytestmark = pytest.mark.integration

USER = "nobody"
LONG = timedelta(seconds=20)


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    try:
        yield room
    finally:
        room.close_room()


@pytest.fixture
def jobs(room: Room) -> GuestJobs:
    return GuestJobs(room, USER)


def an_archive(path: Path, files: Mapping[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"app-main/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


async def test_the_code_belongs_to_the_sandbox_user_and_replaces_the_code_of_before(
    room: Room, jobs: GuestJobs, tmp_path: Path
) -> None:
    await jobs.put_code("m", an_archive(tmp_path / "1", {"old.txt": "old", "a.txt": "1"}), LONG)
    await jobs.put_code("m", an_archive(tmp_path / "2", {"a.txt": "2"}), LONG)
    assert room.sh(f"ls -A {CODE_FOLDER}; cat {CODE_FOLDER}/a.txt") == "a.txt\n2"
    assert room.sh("ls -A /srv").split() == ["merge-request"]
    assert room.sh(f"stat -c %U {CODE_FOLDER}/a.txt").strip() == USER


async def test_an_archive_that_is_none_leaves_the_code_of_before(room: Room, jobs: GuestJobs, tmp_path: Path) -> None:
    await jobs.put_code("m", an_archive(tmp_path / "1", {"a.txt": "1"}), LONG)
    (tmp_path / "2").write_bytes(b"no archive")
    with pytest.raises(GuestError, match="could not be unpacked"):
        await jobs.put_code("m", tmp_path / "2", LONG)
    with tarfile.open(tmp_path / "3", "w:gz"):
        pass
    with pytest.raises(GuestError, match="exactly one folder"):
        await jobs.put_code("m", tmp_path / "3", LONG)
    assert room.sh(f"cat {CODE_FOLDER}/a.txt") == "1"


async def test_new_code_ends_the_unpacking_of_older_code_at_any_moment(
    room: Room, jobs: GuestJobs, tmp_path: Path
) -> None:
    old = an_archive(tmp_path / "old", {f"d{n % 50}/f{n}": "x" * 100 for n in range(6000)})
    new = an_archive(tmp_path / "new", {f"n{n}": "new" for n in range(300)})
    for delay in (0.03, 0.06, 0.1, 0.2, 0.3):
        earlier = asyncio.create_task(jobs.put_code("m", old, LONG))
        await asyncio.sleep(delay)
        earlier.cancel()  # as the pool does; what runs in the guest runs on
        await asyncio.wait({earlier})
        await jobs.put_code("m", new, LONG)
        assert len(room.sh(f"find {CODE_FOLDER} -type f").split()) == 300, delay
        assert room.sh("ls -A /srv").split() == ["merge-request"], delay


async def test_an_older_unpacking_that_starts_late_leaves_the_newer_code_alone(
    room: Room, jobs: GuestJobs, tmp_path: Path
) -> None:
    old = an_archive(tmp_path / "old", {"a.txt": "old"})
    new = an_archive(tmp_path / "new", {f"n{n}": "new" for n in range(300)})
    (tmp_path / "setsid").write_text(f'#!/bin/sh\n: > {tmp_path}/begun\nsleep 1\nexec /usr/bin/setsid "$@"\n')
    (tmp_path / "setsid").chmod(0o755)
    usual, room.path = room.path, f"{tmp_path}:{room.path}"
    earlier = asyncio.create_task(jobs.put_code("m", old, LONG))
    while not (tmp_path / "begun").exists():
        await asyncio.sleep(0.01)
    room.path = usual
    await jobs.put_code("m", new, LONG)
    with pytest.raises(GuestError):
        await earlier
    assert len(room.sh(f"find {CODE_FOLDER} -type f").split()) == 300
    assert room.sh("ls -A /srv").split() == ["merge-request"]


async def test_what_earlier_calls_left_is_removed_and_what_a_later_one_just_copies_is_not(
    room: Room, jobs: GuestJobs, tmp_path: Path
) -> None:
    room.sh("touch /srv/.merge-request.00000000000000000000 /srv/.merge-request.ffffffffffffffffffff.part")
    await jobs.put_code("m", an_archive(tmp_path / "1", {"a.txt": "1"}), LONG)
    assert room.sh("ls -A /srv").split() == [".merge-request.ffffffffffffffffffff.part", "merge-request"]


async def test_a_guest_that_does_not_take_the_code_is_given_up(room: Room, jobs: GuestJobs, tmp_path: Path) -> None:
    room.slow_copy = 60.0
    with pytest.raises(GuestTimeout, match="did not take the code"):
        await jobs.put_code("m", an_archive(tmp_path / "1", {"a.txt": "1"}), timedelta(seconds=0.2))


async def test_a_job_runs_as_the_user_in_the_codes_folder_with_its_facts(
    room: Room, jobs: GuestJobs, tmp_path: Path
) -> None:
    await jobs.put_code("m", an_archive(tmp_path / "1", {"a.txt": "1"}), LONG)
    command = 'id -un; pwd; printf "%s\\n" "$RAVE_BRANCH"; cat; echo to stderr >&2; exit 3'
    done = await jobs.run_job("m", "key", command, {"RAVE_BRANCH": "it's $(id) \\n"}, LONG)
    assert done.exit_code == 3
    assert done.output.splitlines() == [USER, CODE_FOLDER, "it's $(id) \\n", "to stderr"]


async def test_the_same_key_adopts_the_job_that_is_still_running(room: Room, jobs: GuestJobs, tmp_path: Path) -> None:
    await jobs.put_code("m", an_archive(tmp_path / "1", {"a.txt": "1"}), LONG)
    command = f"echo once >> {CODE_FOLDER}/count; sleep 1; cat {CODE_FOLDER}/count"
    first = asyncio.create_task(jobs.run_job("m", "key", command, {}, LONG))
    await asyncio.sleep(0.3)
    first.cancel()
    await asyncio.wait({first})
    done = await jobs.run_job("m", "key", command, {}, LONG)
    assert (done.exit_code, done.output) == (0, "once\n")


@pytest.mark.parametrize("how", ["its time is up", "new code"])
async def test_a_job_that_is_ended_is_ended_with_all_its_processes(
    room: Room, jobs: GuestJobs, tmp_path: Path, how: str
) -> None:
    code = an_archive(tmp_path / "1", {"a.txt": "1"})
    await jobs.put_code("m", code, LONG)
    mark = f"97{time.monotonic_ns() % 10_000_000}"
    job = jobs.run_job("m", "key", f"sleep {mark} | cat & sleep {mark}", {}, timedelta(seconds=1.5))
    if how == "its time is up":
        with pytest.raises(GuestTimeout):
            await job
    else:
        running = asyncio.create_task(job)
        await asyncio.sleep(0.5)
        await jobs.put_code("m", code, LONG)
        assert (await running).exit_code == 137
    await asyncio.sleep(0.1)
    left = subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True, check=False).stdout
    assert left == ""
    assert room.sh("cat /run/ravebot/jobs/key/status").strip() == "137"


@pytest.mark.parametrize("answer", ["²", "9" * 5000, "-1", "", "running\0"])
async def test_a_guest_that_answers_nonsense_has_a_job_that_failed(answer: str) -> None:
    host = MemoryHost()
    host.put("m")
    provider = MemoryProvider(host)
    provider.answers[""] = RunResult(0, f"{answer}\n")
    jobs = GuestJobs(provider, USER)
    assert await jobs.present("m", ("./a",)) == ()
    with pytest.raises(GuestError, match="nonsense"):
        await jobs.run_job("m", "key", "true", {}, LONG)


async def test_only_commands_whose_script_is_there_are_run(room: Room, jobs: GuestJobs, tmp_path: Path) -> None:
    await jobs.put_code("m", an_archive(tmp_path / "1", {"b.sh": "true"}), LONG)
    assert await jobs.present("m", ("./a.sh", "./b.sh --fast", "make check")) == (1, 2)
    assert await jobs.present("m", ()) == ()


async def test_of_long_output_only_whole_lines_are_taken(room: Room, jobs: GuestJobs, tmp_path: Path) -> None:
    """The end of a token is not known as one when secrets are masked."""
    await jobs.put_code("m", an_archive(tmp_path / "1", {"a.txt": "1"}), LONG)
    after_half_the_token = OUTPUT_LIMIT_BYTES - 64 - len("0123456789\n")
    command = f"echo glpat-abcdefghij0123456789; yes 'done' | head -c {after_half_the_token}"
    done = await jobs.run_job("m", "long", command, {}, LONG)
    assert set(done.output.splitlines()[:-1]) == {"done"}
    assert len(done.output) == after_half_the_token
