"""`./dev demo` as people run it, but in a pipe: a process that ends well, and told what it promises."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import libvirt
import pytest

from tests.support.demo.run import Demo
from tests.support.demo.story import SETTINGS
from tests.support.stage import Stage

pytestmark = pytest.mark.acceptance

_ROOT = Path(__file__).resolve().parents[2]
_WHOLE_SECONDS = 280
_WITH_BUILD_SECONDS = 1200  # on a busy host, with the build of the Debian image, when no test before has built it


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a demo keeps its files, so that they can be told from another's. QEMU's user must get into it."""
    path = Path(tempfile.mkdtemp(prefix="ravebot-demo-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def _start(*arguments: str, folder: Path | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-m", "tests.support.demo", *arguments,
        cwd=_ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "80"} | ({"TMPDIR": str(folder)} if folder else {}),
    )  # fmt: skip


def _lines_until(pipe: TextIO, text: str) -> str:
    told = ""
    while text not in told:
        line = pipe.readline()
        assert line, f"the demo ended without {text!r}:\n{told}"
        told += line
    return told


def _machines_with_disks_in(folder: Path) -> list[str]:
    connection = libvirt.open("qemu:///system")
    found = []
    for domain in connection.listAllDomains():
        with suppress(libvirt.libvirtError):  # another test's, gone meanwhile
            if str(folder) in domain.XMLDesc():
                found.append(domain.name())
    connection.close()
    return found


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to clean up, also when the test failed in between."""
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
        await process.wait()


async def _read_until(process: asyncio.subprocess.Process, text: str) -> str:
    """Everything up to the line with that text."""
    assert process.stdout
    told = ""
    while text not in told:
        line = (await process.stdout.readline()).decode()
        assert line, f"the demo ended without {text!r}:\n{told}"
        told += line
    return told


@pytest.mark.timeout(_WITH_BUILD_SECONDS + 30)
async def test_the_demo_tells_the_whole_story_and_ends_with_nothing_left() -> None:
    process = await _start()
    try:
        async with asyncio.timeout(_WITH_BUILD_SECONDS):
            output, _ = await process.communicate()
    finally:
        await _end(process)
    told = output.decode()

    assert process.returncode == 0, told
    order = [
        "ravebot, ready by its own word",
        "opens group/app!1",
        "the sandbox waits for the image, as .rave.yml says",
        "ravebot:build: has left image/sandbox.qcow2",
        "ravebot:review: is told: starting",
        "🟢 Sandbox is ready",
        "environments page links to the sandbox",
        "the machine runs from the image of that job",
        "GitLab's own “View app”",
        "Alice's key opens the door",
        "the host key is the announced one, SHA256:",
        "Mallory's key does not open it",
        "answers with a page of commit",
        "<h1>Hello from the sandbox!</h1>",
        "!rave extend !1 10s",
        "warned, in both places",
        "it lives an hour longer",
        "alice: @coder !1 please edit page.html: Hello from the sandbox! => Hello from the agent!",
        "nothing is changed yet",
        "alice: reacts with ✅ to",
        "the agent has changed the file",
        "alice: !rave diff !1",
        "Ravebot-Agent: coder",
        "exactly what was shown is on the branch",
        "the sandbox has taken the new commit",
        "alice: presses Stop on",
        "⚪ Sandbox ended",
        "the environment is stopped and deleted",
        "the machine is gone, and its ports are closed",
        "Where the time went",
        "nothing is left",
        "All of this was seen to happen",
    ]
    places = [told.find(text) for text in order]
    assert -1 not in places, f"missing: {[text for text in order if text not in told]}\n{told}"
    assert places == sorted(places), told
    assert re.search(r"^ +ssh -i /\S+ .*HostKeyAlias=\S+ -p \d+ agent@[\d.]+$", told, re.MULTILINE), told
    for step in ("queued", "agent answers", "copy", "setup", "card in Alice's room", "machine gone"):
        assert re.search(rf"{step}.* \d+\.\d\d s", told), f"no time for {step}\n{told}"
    assert "\x1b[" not in told, "a pipe gets no colours"


async def test_an_interrupt_takes_everything_away(folder: Path) -> None:
    process = await _start("--tiny", folder=folder)
    try:
        async with asyncio.timeout(_WHOLE_SECONDS):
            told = await _read_until(process, "posts a card: Starting")
            process.send_signal(signal.SIGINT)
            output, _ = await process.communicate()
    finally:
        await _end(process)
    told += output.decode()

    assert process.returncode == 130, told
    assert "nothing is left" in told
    assert "All of this was seen" not in told, "it was not"
    assert list(folder.iterdir()) == []
    assert _machines_with_disks_in(folder) == []


async def test_a_reader_who_leaves_takes_everything_away_too(folder: Path) -> None:
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-m", "tests.support.demo", "--tiny",
        cwd=_ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=writing, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    os.close(writing)
    try:
        async with asyncio.timeout(_WHOLE_SECONDS):
            with os.fdopen(reading) as pipe:
                told = await asyncio.to_thread(_lines_until, pipe, "posts the note")
            _, errors = await process.communicate()
    finally:
        await _end(process)

    assert process.returncode == 130, (told, errors)
    assert errors == b""
    assert list(folder.iterdir()) == []
    assert _machines_with_disks_in(folder) == []


async def test_a_demo_that_was_kept_can_be_worked_from_another_terminal() -> None:
    kept = await _start("--keep", "--tiny")
    try:
        async with asyncio.timeout(_WHOLE_SECONDS):
            told = await _read_until(kept, "ravebot list -c ")
            said = await _start("say", "!rave list")
            assert await said.wait() == 0, said
            told += await _read_until(kept, "room   alice: !rave list")
            commented = await _start("comment", "/sandbox stop")
            assert await commented.wait() == 0, commented
            told += await _read_until(kept, "⚪ Sandbox ended")
            kept.send_signal(signal.SIGINT)
            output, _ = await kept.communicate()
    finally:
        await _end(kept)
    told += output.decode()

    assert kept.returncode == 0, told
    assert "nothing is left" in told
    late = await _start("say", "hello?")
    answer, _ = await late.communicate()
    assert late.returncode == 1
    assert "no demo was kept running" in answer.decode()


async def test_a_port_that_is_taken_is_told_with_what_to_do() -> None:
    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(ignore, "127.0.0.1", 0) as taken:
        port = taken.sockets[0].getsockname()[1]
        process = await _start("--tiny", "--port", str(port))
        try:
            async with asyncio.timeout(_WHOLE_SECONDS):
                output, _ = await process.communicate()
        finally:
            await _end(process)

    assert process.returncode == 1
    assert "--port" in output.decode()


class BreaksOff(Stage):
    """Set up to its end; then what nobody foresaw happens."""

    async def start(self, timeout: float = 40) -> None:
        await super().start(timeout)
        raise subprocess.TimeoutExpired(["ssh", "somewhere"], 60)


async def test_what_nobody_foresaw_is_told_and_everything_taken_away(capsys: pytest.CaptureFixture[str]) -> None:
    stage = BreaksOff(SETTINGS)
    assert await Demo(False, stage).run() == 1
    told = capsys.readouterr().out
    assert "this was not foreseen, in test_demo.py" in told
    assert "TimeoutExpired" in told
    assert "nothing is left" in told
    assert not stage.folder.exists()
