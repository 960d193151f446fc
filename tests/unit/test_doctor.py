"""The doctor's judgements that need no other machine, and how they are shown."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from ravebot.config.model import Config
from ravebot.errors import Unavailable
from ravebot.operations.doctor import Finding, Verdict, machines, network, show, state
from ravebot.operations.doctor.examine import clock, gathered
from ravebot.operations.doctor.services import Answer, get
from ravebot.sandboxes.model import RAVEBOT, EventKind
from ravebot.store import events
from ravebot.store.database import Database
from ravebot.terminal import Output
from tests.support.clock import ManualClock


def config(**changes: object) -> Config:
    whole: dict[str, object] = {
        "matrix": {"homeserver": "https://matrix.example.org", "user_id": "@r:example.org", "password_file": "/x"},
        "gitlab": {
            "url": "https://gitlab.example.org",
            "token_file": "/x",
            "projects": ["group/app"],
            "webhook": {"secret_token_file": "/x"},
        },
        "sandbox": {"host": "sandboxes.example.org"},
        "provider": {"image": "/images/sandbox.qcow2"},
    }
    return Config.model_validate({**whole, **changes})


def test_a_state_folder_that_is_not_there_yet_is_no_fault(tmp_path: Path) -> None:
    assert state.state_folder(tmp_path / "a" / "b").verdict is Verdict.OK


def test_a_file_in_the_state_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert state.state_folder(tmp_path / "state").verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o700, Verdict.OK), (0o711, Verdict.OK), (0o750, Verdict.WARNING), (0o777, Verdict.FAILED)]
)
def test_a_state_folder_that_others_get_into_is_told_with_the_mend(tmp_path: Path, mode: int, verdict: Verdict) -> None:
    tmp_path.chmod(mode)
    finding = state.state_folder(tmp_path)
    assert finding.verdict is verdict
    assert finding.fix == ("" if verdict is Verdict.OK else f"chmod 711 {tmp_path}")


async def test_the_database_is_told_with_its_holder_and_newest_hash(tmp_path: Path) -> None:
    path = tmp_path / "ravebot.db"
    async with Database(path, ManualClock()) as database:
        await database.write(lambda tx: events.append(tx, EventKind.SANDBOX_READY, RAVEBOT))
        head = await database.read(events.head)
        held = state.database(tmp_path)
        assert state.instance_id(tmp_path) == database.instance_id
    assert held.verdict is Verdict.OK
    assert "in use by process" in held.detail
    assert f"event 1, hash {head}" in held.detail
    assert "not in use" in state.database(tmp_path).detail


async def test_a_database_from_a_newer_version_is_told(tmp_path: Path) -> None:
    async with Database(tmp_path / "ravebot.db", ManualClock()) as database:
        await database.write(lambda tx: tx.execute("PRAGMA user_version = 999"))
    finding = state.database(tmp_path)
    assert finding.verdict is Verdict.FAILED
    assert "newer" in finding.fix


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "ravebot.db").write_bytes(b"not a database" * 100)
    assert state.database(tmp_path).verdict is Verdict.FAILED
    assert state.instance_id(tmp_path) is None


def test_too_little_memory_for_one_fails_and_for_all_is_a_warning() -> None:
    sandbox = {"host": "sandboxes.example.org", "memory": "100000GiB"}
    assert machines.memory(config(sandbox=sandbox)).verdict is Verdict.FAILED
    sandbox["memory"] = "64MiB"
    assert machines.memory(config(sandbox=sandbox)).verdict is Verdict.OK
    sandbox["memory"] = "1GiB"
    finding = machines.memory(config(sandbox=sandbox, pool={"max_running": 10_000}))
    assert finding.verdict is Verdict.WARNING


def test_disks_that_qemu_can_not_get_to_are_found(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    provider = {"image": "/images/sandbox.qcow2", "storage_pool": str(closed / "disks")}
    finding = machines.disk(config(sandbox={"host": "sandboxes.example.org", "disk": "64MiB"}, provider=provider))
    assert finding.verdict is Verdict.FAILED
    assert finding.fix.startswith(f"chmod o+x {closed}")


def test_too_little_disk_for_one_fails_and_for_all_is_a_warning() -> None:
    provider = {"image": "/images/sandbox.qcow2", "storage_pool": "/not/there/yet"}
    sandbox = {"host": "sandboxes.example.org", "disk": "900TiB"}
    assert machines.disk(config(sandbox=sandbox, provider=provider)).verdict is Verdict.FAILED
    sandbox["disk"] = "64MiB"
    assert machines.disk(config(sandbox=sandbox, provider=provider)).verdict is Verdict.OK
    sandbox["disk"] = "512MiB"
    many = machines.disk(config(sandbox=sandbox, provider=provider, pool={"max_running": 10_000}))
    assert many.verdict is Verdict.WARNING


def test_a_direct_boots_files_must_be_there(tmp_path: Path) -> None:
    provider = {"image": "/i", "kernel": str(tmp_path / "vmlinuz"), "initrd": str(tmp_path / "initrd")}
    (tmp_path / "vmlinuz").write_bytes(b"x")
    finding = machines.boot_files(config(provider=provider).provider)
    assert finding.verdict is Verdict.FAILED
    assert f"{tmp_path}/initrd" in finding.detail
    assert f"{tmp_path}/vmlinuz" not in finding.detail


async def test_one_check_that_the_system_refuses_leaves_the_others_in_the_report() -> None:
    provider = {"image": "/i", "storage_pool": f"/{'x' * 300}"}  # stat: file name too long
    found = {finding.name: finding async for finding in machines.check(config(provider=provider))}
    assert found["storage pool"].verdict is Verdict.FAILED
    assert "too long" in found["storage pool"].detail
    assert found["storage pool"].fix
    assert {"image", "memory", "kvm"} <= set(found)


async def test_what_was_found_before_a_series_of_checks_broke_is_kept() -> None:
    async def breaks() -> AsyncIterator[Finding]:
        yield Finding("first", Verdict.OK, "fine")
        raise UnicodeError("label too long")

    first, second = await gathered("series", breaks())
    assert isinstance(first, Finding)
    assert isinstance(second, Finding)
    assert (first.name, second.name, second.verdict) == ("first", "series", Verdict.FAILED)
    assert "label too long" in second.detail


async def test_an_address_that_another_program_holds_is_told_from_one_that_our_own_bot_holds(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        whole = config(http={"listen": f"127.0.0.1:{port}"}, state_dir=str(tmp_path))
        assert (await network.listen(whole)).verdict is Verdict.FAILED
        async with Database(tmp_path / "ravebot.db", ManualClock()):  # as by a bot that is this very process
            assert (await network.listen(whole)).verdict is Verdict.OK
    assert (await network.listen(whole)).verdict is Verdict.OK
    elsewhere = await network.listen(config(http={"listen": "192.0.2.1:8080"}))
    assert elsewhere.verdict is Verdict.FAILED
    assert "http.listen" in elsewhere.fix


@pytest.mark.parametrize(
    ("capabilities", "may"), [("000001ffffffffff", True), ("0000000000001000", True), ("00000000a80425fb", False)]
)
def test_the_permission_is_read_from_the_process_own_capabilities(tmp_path: Path, capabilities: str, may: bool) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython\nCapEff:\t{capabilities}\n")
    assert network.may_change_network(status) is may


async def test_a_sandbox_host_that_others_cannot_reach_is_told() -> None:
    assert (await network.sandbox_host("127.0.0.1")).verdict is Verdict.FAILED
    assert (await network.sandbox_host("no-such-host.invalid")).verdict is Verdict.FAILED
    elsewhere = await network.sandbox_host("192.0.2.77")
    assert (elsewhere.verdict, elsewhere.detail) == (Verdict.WARNING, "192.0.2.77 is not an address of this host")


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [(2.0, Verdict.OK), (-45.0, Verdict.WARNING), (400.0, Verdict.FAILED), (-4000.0, Verdict.FAILED)],
)
def test_a_clock_that_is_off_is_told(ahead: float, verdict: Verdict) -> None:
    (finding,) = clock([Answer(200, None, ahead), Answer(200, None, None), Answer(200, None, ahead * 2)])
    assert finding.verdict is verdict
    assert ("ahead" if ahead > 0 else "behind") in finding.detail or verdict is Verdict.OK


def test_without_an_answer_nothing_is_said_of_the_clock() -> None:
    assert clock([]) == []


def shown(width: int | None) -> str:
    """The report as a terminal of that width shows it."""
    output = Output()
    text = io.StringIO()
    output.console = Console(file=text, force_terminal=True, width=width, color_system=None, highlight=False)
    output.errors = output.console
    findings = [
        Finding("gitlab", Verdict.OK, "answers"),
        Finding("image", Verdict.FAILED, "evil\x1b[2J\nline " + "long " * 30, "put one there"),
    ]
    show(output, findings)
    return text.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_the_terminal_and_untrusted_text_cannot_move_the_cursor(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "→ put one there" in text
    assert "1 ok, 0 to look at, 0 unknown, 1 failed" in text


async def test_an_answer_that_comes_in_pieces_is_read_whole_and_an_endless_one_is_refused() -> None:
    async def pieces(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        with suppress(ConnectionError):
            for number in range(int(request.match_info["number"])):
                await answer.write(b"[" if number == 0 else b" " * 100_000)
                await asyncio.sleep(0)
            await answer.write(b"7]")
        return answer

    app = web.Application()
    app.router.add_get("/{number}", pieces)
    async with TestServer(app) as server:
        assert (await get(str(server.make_url("/5")))).body == [7]
        with pytest.raises(Unavailable, match="more than"):
            await get(str(server.make_url("/100")))
