"""`ravebot run` as a process: it starts with Matrix and GitLab away, says so, and ends when told to."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import pty
import resource
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ravebot.clock import SystemClock
from ravebot.operations import hostlock
from ravebot.operations.offline import database_path
from ravebot.store import stale_notes
from ravebot.store.database import Database
from ravebot.web.admin import socket_path
from tests.integration.test_cli import HIDDEN, Installation
from tests.unit.test_gitlab_events import opened

pytestmark = pytest.mark.integration


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def installed(folder: Path) -> Installation:
    """An installation on libvirt's in-memory driver, without a network, whose services nobody answers for."""
    installation = Installation(folder)
    text = installation.config.read_text()
    for service in ("matrix", "gitlab"):
        text = text.replace(f"https://{service}.example.org", "http://127.0.0.1:1")
    text = text[: text.index("provider:")]
    text += f"provider: {{uri: 'test:///default', network: none, image: {folder}/i, storage_pool: {folder}/disks}}\n"
    text += f"http: {{listen: '127.0.0.1:{free_port()}'}}\n"
    installation.config.write_text(text)
    return installation


@pytest.fixture
def here(tmp_path: Path) -> Installation:
    return installed(tmp_path)


def address(here: Installation) -> str:
    return "http://" + here.config.read_text().rpartition("listen: '")[2].partition("'")[0]


async def healthy(url: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(90):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{url}/healthz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


async def readiness(here: Installation, session: aiohttp.ClientSession) -> dict[str, Any]:
    async with session.get(f"{address(here)}/readyz") as response:
        assert response.status == 503
        body: dict[str, Any] = await response.json()
        return body


@asynccontextmanager
async def running(here: Installation) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await here.start("run")
    try:
        await healthy(address(here))
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_it_runs_without_its_services_says_so_and_ends_with_0_when_told(here: Installation) -> None:
    async with running(here) as process:
        async with aiohttp.ClientSession() as session:
            async with asyncio.timeout(20):
                while (body := await readiness(here, session))["checks"]["provider"]["state"] == "unknown":
                    await asyncio.sleep(0.1)
            async with session.get(f"{address(here)}/metrics") as response:
                assert "ravebot_sandboxes" in await response.text()
        assert body["ready"] is False
        assert body["checks"]["gitlab"]["ok"] is False
        assert body["checks"]["provider"]["ok"] is True
        code, output, errors = await here.run("list")
        assert (code, len(output.splitlines()), errors) == (0, 1, "")
        code, output, _ = await here.run("audit", "--verify")
        assert code == 0
        process.send_signal(signal.SIGTERM)
        _, errors_raw = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert HIDDEN.encode() not in errors_raw
    assert "ravebot runs" in [json.loads(line)["event"] for line in errors_raw.splitlines()]
    assert not socket_path(here.state).exists()


async def test_what_the_host_has_left_is_measured_while_nobody_waits(here: Installation) -> None:
    async with running(here), aiohttp.ClientSession() as session, asyncio.timeout(20):
        while True:
            async with session.get(f"{address(here)}/metrics") as response:
                rows = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[:1] == "r")
            if float(rows["ravebot_host_memory_available_bytes"]) > 0:
                break
            await asyncio.sleep(0.2)


async def test_a_second_one_on_the_same_state_refuses_and_names_the_first(here: Installation) -> None:
    async with running(here) as process:
        code, _, errors = await here.run("run")
    assert code == 1
    assert f"process {process.pid}" in errors.splitlines()[-1]


async def test_after_a_kill_the_next_one_starts_and_answers_on_the_socket(here: Installation) -> None:
    async with running(here) as process:
        process.kill()
        await process.communicate()
    assert socket_path(here.state).exists()
    code, _, errors = await here.run("list")
    assert code == 3
    assert "ravebot run" in errors
    async with running(here):
        code, _, _ = await here.run("list")
        assert code == 0


async def test_hundreds_of_silent_connections_cost_nobody_an_answer(here: Installation) -> None:
    process = await here.start("run")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (256, 256))
    writers: list[asyncio.StreamWriter] = []
    try:
        url = address(here)
        await healthy(url)
        host, port = url.removeprefix("http://").split(":")
        for _ in range(400):
            with suppress(OSError):
                writers.append((await asyncio.wait_for(asyncio.open_connection(host, int(port)), 5))[1])
        async with asyncio.timeout(15):
            await healthy(url)
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    finally:
        for writer in writers:
            writer.close()
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in errors
    assert b"Too many open files" not in errors
    assert len(errors.splitlines()) < 60


async def test_it_may_open_as_many_files_as_the_hard_limit_allows(here: Installation) -> None:
    process = await here.start("run")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (256, 512))
    try:
        await healthy(address(here))
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (512, 512)
    finally:
        process.kill()
        await process.communicate()


async def test_a_state_folder_that_is_deleted_under_it_is_said_and_no_webhook_is_acknowledged(
    here: Installation,
) -> None:
    async with running(here) as process, aiohttp.ClientSession() as session:

        async def deliver(key: str) -> int:
            headers = {"X-Gitlab-Token": HIDDEN, "Idempotency-Key": key}
            async with session.post(f"{address(here)}/webhooks/gitlab", json=opened(), headers=headers) as answer:
                return answer.status

        assert await deliver("before") == 202
        shutil.rmtree(here.state)
        assert await deliver("after") == 503
        async with session.get(f"{address(here)}/readyz") as response:
            state = (await response.json())["checks"]["state"]
        assert process.stderr
        async with asyncio.timeout(30):
            while True:
                line = json.loads(await process.stderr.readline())
                if line["level"] == "error":
                    break
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert b"Traceback" not in errors
    assert state["ok"] is False
    assert line["problem"] == state["detail"]
    assert "was deleted or moved away" in state["detail"]


async def test_an_address_that_is_taken_ends_the_start_with_the_key_to_change(here: Installation) -> None:
    async with running(here):
        other = here.config.read_text().replace(f"{here.state}", f"{here.state}-2")
        here.config.write_text(other)
        code, _, errors = await here.run("run")
    assert code == 1
    assert "http.listen" in errors


async def test_a_second_one_of_the_same_id_refuses_wherever_its_state_is_until_the_first_is_dead(
    here: Installation, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    copy = installed(tmp_path / "copy")
    async with running(here) as process:
        (copy.state / "instance-id").write_bytes((here.state / "instance-id").read_bytes())
        for arguments in (("run",), ("cleanup", "--all", "--force")):
            second = await copy.start(*arguments)
            ended = asyncio.create_task(second.communicate())
            await asyncio.wait({ended}, timeout=60)  # to start alone takes ten, beside machines that boot
            if second.returncode is None:
                second.kill()
            _, errors = await ended
            assert second.returncode == 1
            assert f"process {process.pid} of {getpass.getuser()}; stop it first" in errors.decode().splitlines()[-1]
        process.kill()
        await process.communicate()
        assert (await copy.run("cleanup", "--all", "--force"))[0] == 0


@pytest.mark.parametrize("kept", ["ravebot.db", "instance-id"])
async def test_cleanup_works_with_the_bot_down_and_what_is_left_of_its_state(here: Installation, kept: str) -> None:
    async with running(here):
        pass
    for path in here.state.iterdir():
        if not path.name.startswith(kept) and path.is_file():
            path.unlink()
    code, output, errors = await here.run("cleanup", "--all", "--force")
    assert (code, output.strip()) == (0, "There was nothing to clean up.")
    assert "No ravebot is running" in errors


async def test_cleanup_of_a_state_folder_that_is_none_makes_nothing_and_says_so(here: Installation) -> None:
    here.state.rmdir()
    code, output, errors = await here.run("cleanup", "--all", "--force")
    assert (code, output) == (1, "")
    assert "is state_dir right?" in errors
    assert not here.state.exists()


@pytest.fixture
def forgetful(here: Installation, tmp_path: Path) -> Installation:
    """An installation whose database is new, on a libvirt that runs a machine with its id and keeps a disk of it."""
    (here.state / "instance-id").write_text("0123456789\n")
    (tmp_path / "disks").mkdir()
    (tmp_path / "host.xml").write_text(HOST.format(folder=tmp_path))
    here.config.write_text(here.config.read_text().replace("test:///default", f"test://{tmp_path}/host.xml"))
    return here


HOST = """\
<node>
  <domain type='test'>
    <name>rave-main-00000000aa</name>
    <metadata><rave:machine xmlns:rave="urn:ravebot:machine:1" instance="0123456789"/></metadata>
    <memory unit='MiB'>16</memory>
    <os><type>hvm</type></os>
  </domain>
  <pool type='dir'>
    <name>rave-0123456789</name>
    <target><path>{folder}/disks</path></target>
    <volume type='file'>
      <name>rave-0123456789-rave-main-00000000bb.qcow2</name>
      <capacity unit='bytes'>1000000</capacity>
    </volume>
  </pool>
</node>
"""
FOUND = ("rave-main-00000000aa", "rave-0123456789-rave-main-00000000bb.qcow2")


async def test_adopt_says_before_it_acts_what_it_will_end_and_in_a_pipe_goes_on(forgetful: Installation) -> None:
    code, output, errors = await forgetful.run("cleanup", "--adopt")
    assert code == 0, errors
    assert [line.split("\t")[1] for line in output.splitlines()[1:]] == list(FOUND)
    announced = errors.partition(f"{FOUND[0]}: removed")[0]
    assert "will be ended and removed" in announced
    assert all(name in announced for name in FOUND)


@pytest.mark.parametrize("answer", ["y", "n"])
async def test_adopt_asks_on_a_terminal_and_does_nothing_without_a_yes(forgetful: Installation, answer: str) -> None:
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ravebot", "cleanup", "--adopt", "--json",
            stdin=theirs, stdout=asyncio.subprocess.PIPE, stderr=theirs, env=forgetful.environment,
        )  # fmt: skip
        os.write(ours, f"{answer}\n".encode())
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
        said = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "[y/N]" in said
    if answer == "n":
        assert (process.returncode, output) == (1, b"")
        assert "Nothing was removed" in said
    else:
        assert json.loads(output)["machines"] == [FOUND[0]]
        assert process.returncode == 0


async def test_with_force_or_with_nothing_to_adopt_nobody_is_asked(forgetful: Installation, here: Installation) -> None:
    ours, theirs = pty.openpty()
    try:
        for arguments, exits in ((("--force",), 0), ((), 0)):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ravebot", "cleanup", "--adopt", *arguments,
                stdin=theirs, stdout=asyncio.subprocess.PIPE, stderr=theirs, env=forgetful.environment,
            )  # fmt: skip
            async with asyncio.timeout(30):
                await process.communicate()
            assert process.returncode == exits
            assert "[y/N]" not in os.read(ours, 65536).decode()
            forgetful.config.write_text(here.config.read_text().replace("host.xml", "empty.xml"))
            (here.config.parent / "empty.xml").write_text("<node/>")
    finally:
        os.close(ours)
        os.close(theirs)


async def test_what_cleanup_logs_does_not_stand_in_its_answer(forgetful: Installation) -> None:
    code, output, _ = await forgetful.run("cleanup", "--all", "--force", "--json")
    assert output.startswith("{"), output
    assert (code, json.loads(output)["machines"]) == (0, [FOUND[0]])


async def test_what_another_instance_left_is_listed_and_with_force_removed(forgetful: Installation) -> None:
    (forgetful.state / "instance-id").write_text("ffffffffff\n")
    listed = ("cleanup", "--instance-id", "0123456789", "--all")
    for _ in range(2):
        code, output, errors = await forgetful.run(*listed)
        assert code == 0, errors
        assert output.splitlines() == [
            "WHAT\tWHICH",
            f"machine\t{FOUND[0]}, running",
            f"disk\t{FOUND[1]}",
            f"shared\tstorage pool rave-0123456789 in {forgetful.config.parent}/disks",
        ]
        assert "Nothing was changed" in errors
        assert "`ravebot cleanup --instance-id 0123456789 --all --force`" in errors
    code, output, _ = await forgetful.run(*listed, "--json")
    assert json.loads(output)["machines"] == [{"name": FOUND[0], "state": "running"}]
    code, output, errors = await forgetful.run(*listed, "--force")
    assert code == 0, errors
    assert output.splitlines()[1:] == [
        f"machine removed\t{FOUND[0]}",
        f"disk removed\t{FOUND[1]}",
        f"removed\tstorage pool rave-0123456789 in {forgetful.config.parent}/disks",
    ]
    assert (await forgetful.run("cleanup", "--instance-id", "9876543210", "--all"))[:2] == (
        0,
        "This host has nothing of instance id 9876543210.\n",
    )
    code, output, errors = await forgetful.run("cleanup", "--instance-id", "9876543210", "--all", "--force")
    assert (code, output) == (0, "There was nothing to clean up.\n")
    assert "run this command again after its first start" in errors
    assert sorted(path.name for path in forgetful.state.iterdir()) == ["instance-id"]


async def test_whoever_cleans_another_instance_away_has_its_notes_made_true(forgetful: Installation) -> None:
    (forgetful.state / "instance-id").write_text("ffffffffff\n")
    path = database_path(forgetful.state)
    async with Database(path, SystemClock()) as database:
        assert await database.read(stale_notes.predecessors) == ()
    code, _, errors = await forgetful.run("cleanup", "--instance-id", "0123456789", "--all", "--force")
    assert code == 0, errors
    async with Database(path, SystemClock()) as database:
        assert await database.read(stale_notes.predecessors) == ("0123456789",)


async def test_cleanup_of_another_instance_refuses_this_one_and_one_that_runs(forgetful: Installation) -> None:
    for arguments in ((), ("--force",)):
        code, output, errors = await forgetful.run("cleanup", "--instance-id", "0123456789", "--all", *arguments)
        assert (code, output) == (1, "")
        assert "run `ravebot cleanup --all --force` without --instance-id" in errors
    (forgetful.state / "instance-id").unlink()
    with hostlock.held("0123456789"):
        code, output, errors = await forgetful.run("cleanup", "--instance-id", "0123456789", "--all", "--force")
        assert (code, output) == (1, "")
        assert f"process {os.getpid()} of {getpass.getuser()}; stop it first" in errors
        code, output, errors = await forgetful.run("cleanup", "--instance-id", "0123456789", "--all")
        assert (code, len(output.splitlines())) == (0, 4)
        assert f"This instance is running: process {os.getpid()}" in errors
