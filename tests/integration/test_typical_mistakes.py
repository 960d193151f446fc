"""Each typical mistake of docs/operate.md, made with real parts: what is then seen is what its row says, mend included.

A row's texts are the start of what is seen and a part of the rest of that line; `…` in them stands for anything.
"""

from __future__ import annotations

import asyncio
import io
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from aiohttp import web

from ravebot.access.nftables.nft import NetworkTools
from ravebot.clock import SystemClock
from ravebot.config.file import LoadedConfig, load
from ravebot.errors import StoreError
from ravebot.operations.doctor import Finding, Verdict, gitlab, machines, matrix, network, show, state
from ravebot.operations.doctor.examine import clock
from ravebot.operations.doctor.services import Answer
from ravebot.operations.offline import database_path
from ravebot.store.database import Database
from ravebot.terminal import Output
from ravebot.web.checks import State
from tests.integration.provider_libvirt import open_folder
from tests.integration.test_gitlab_receiver import receiving
from tests.integration.test_matrix_rooms import encrypt
from tests.integration.test_readiness import a_ward
from tests.support.gitlab import DEVELOPER, GitLabServer, Project, User
from tests.support.netns import Namespace
from tests.support.pages import code, rows
from tests.support.synapse import MatrixUser, Synapse
from tests.support.tls import self_signed

pytestmark = pytest.mark.integration
ROWS = {mistake: (seen, where, mend) for mistake, seen, where, mend in rows("operate.md", "the mistake")}
SUBNET = "10.80.0.5/16"


@dataclass(frozen=True)
class Seen:
    """The first line in which something tells of a mistake, and what tells it."""

    where: str
    line: str


@dataclass(frozen=True)
class Bench:
    """An installation of which everything is right, until a test changes one thing."""

    folder: Path
    synapse: Synapse
    bot: MatrixUser
    alice: MatrixUser
    gitlab: GitLabServer
    user: User
    project: Project

    def loaded(self, room: str = "#none:localhost", **changes: dict[str, Any]) -> LoadedConfig:
        """The configuration as it is read from its file; `changes` are merged in, section by section."""
        sections: dict[str, dict[str, Any]] = {
            "matrix": {
                "homeserver": self.synapse.url,
                "user_id": self.bot.user_id,
                "password_file": self.secret("password", self.bot.password),
                "admins": [self.alice.user_id],
                "rooms": [{"room": room, "projects": ["group/app"]}],
            },
            "gitlab": {
                "url": self.gitlab.url,
                "token_file": self.secret("token", self.gitlab.token_for(self.user)),
                "projects": ["group/app"],
                "webhook": {"secret_token_file": self.secret("webhook", "a-long-enough-secret-of-a-webhook")},
            },
            "http": {"listen": f"127.0.0.1:{free_port()}"},
            "sandbox": {"host": "192.0.2.7", "disk": "64MiB", "memory": "64MiB"},
            "access": {"allow_from": ["192.0.2.0/24"]},
            "provider": {
                "uri": "test:///default",
                "image": str(self.folder / "image.qcow2"),
                "storage_pool": str(self.folder / "disks"),
            },
        }
        for section, values in changes.items():
            sections[section] = {**sections[section], **values}
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump({"state_dir": str(self.folder / "state"), **sections}))
        return load(file)

    def secret(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return str(path)

    async def room(self, *, public: bool = False) -> tuple[str, str]:
        """A new room of alice's: alias and id."""
        name = f"typical-{uuid.uuid4().hex[:8]}"
        return f"#{name}:localhost", await self.alice.create_room(name, public=public)

    async def seen_in_room(self, room: str) -> Seen:
        return told(await found(matrix.check(self.loaded(room))), "matrix room")


@pytest.fixture(scope="module")
def server() -> Iterator[GitLabServer]:
    with GitLabServer() as server:
        yield server


@pytest.fixture(scope="module")
def site(server: GitLabServer) -> tuple[User, Project]:
    user, project = server.add_user("ravebot"), server.add_project("group/app")
    server.set_role(project, user, DEVELOPER)
    return user, project


@pytest_asyncio.fixture(loop_scope="module")
async def bench(
    synapse: Synapse, account: MatrixUser, alice: MatrixUser, server: GitLabServer, site: tuple[User, Project]
) -> AsyncIterator[Bench]:
    with open_folder() as folder:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / "image.qcow2"), "64M"], check=True)
        yield Bench(folder, synapse, account, alice, server, *site)


async def found(items: AsyncIterator[Finding] | AsyncIterator[Finding | Answer]) -> list[Finding]:
    return [item async for item in items if isinstance(item, Finding)]


def told(findings: list[Finding], name: str) -> Seen:
    """What the doctor prints in a pipe for the only check of that name that is not content."""
    [bad] = [finding for finding in findings if finding.name == name and finding.verdict is not Verdict.OK]
    with redirect_stdout(io.StringIO()) as printed:
        show(Output(), [bad])
    _, line, *more = printed.getvalue().splitlines()
    assert not more
    return as_doctor(line)


def as_doctor(line: str) -> Seen:
    verdict, name, rest = line.split("\t", 2)
    assert verdict in ("failed", "warning")
    return Seen(f"`doctor`, `{name}`", rest)


# Each mistake: make it, and return where it was seen, and the line.


async def wrong_token(bench: Bench) -> Seen:
    loaded = bench.loaded(gitlab={"token_file": bench.secret("mistyped", "glpat-mistyped")})
    return told(await found(gitlab.check(loaded)), "gitlab token")


async def wrong_scope(bench: Bench) -> Seen:
    token = bench.gitlab.token_for(bench.user, ("read_api", "read_user"))
    loaded = bench.loaded(gitlab={"token_file": bench.secret("reading", token)})
    return told(await found(gitlab.check(loaded)), "gitlab token")


async def wrong_homeserver(bench: Bench) -> Seen:
    return told(await found(matrix.check(bench.loaded(matrix={"homeserver": bench.gitlab.url}))), "matrix")


async def unreachable_gitlab(bench: Bench) -> Seen:
    return told(await found(gitlab.check(bench.loaded(gitlab={"url": "http://127.0.0.1:1"}))), "gitlab")


async def tls_error(bench: Bench) -> Seen:
    async with site_on_loopback(bench.folder, tls=True) as url:
        return told(await found(gitlab.check(bench.loaded(gitlab={"url": url}))), "gitlab")


async def port_in_use(bench: Bench) -> Seen:
    other = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with other:
        taken = f"127.0.0.1:{other.sockets[0].getsockname()[1]}"
        return told([await network.listen(bench.loaded(http={"listen": taken}).config)], "http.listen")


async def image_missing(bench: Bench) -> Seen:
    (bench.folder / "image.qcow2").unlink()
    return told([machines.image(bench.loaded().config)], "image")


async def image_that_qemu_can_not_read(bench: Bench) -> Seen:
    closed = bench.folder / "closed"
    closed.mkdir(mode=0o700)
    (bench.folder / "image.qcow2").rename(closed / "image.qcow2")
    return told([machines.image(bench.loaded(provider={"image": str(closed / "image.qcow2")}).config)], "image")


async def overlapping_subnet(bench: Bench) -> Seen:
    with Namespace("subn") as namespace:
        namespace.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
        namespace.address("lan0", SUBNET)
        return told([await network.routes(bench.loaded().config, NetworkTools(namespace.prefix))], "bridge")


async def alias_that_does_not_exist(bench: Bench) -> Seen:
    return await bench.seen_in_room("#no-such-room:localhost")


async def encrypted_room(bench: Bench) -> Seen:
    alias, room = await bench.room(public=True)
    await bench.bot.join(room)
    await encrypt(bench.alice, room)
    return await bench.seen_in_room(alias)


async def bot_not_invited(bench: Bench) -> Seen:
    alias, _ = await bench.room()
    return await bench.seen_in_room(alias)


async def invited_by_someone_else(bench: Bench) -> Seen:
    mallory = await bench.synapse.user(f"mallory-{uuid.uuid4().hex[:8]}")
    alias, room = await bench.room()
    await bench.alice.invite(room, mallory.user_id)
    await mallory.join(room)
    await mallory.invite(room, bench.bot.user_id)
    return await bench.seen_in_room(alias)


async def wrong_webhook_secret(bench: Bench) -> Seen:
    async with receiving(100_000) as receiver, a_ward(bench.folder / "ward") as ward:
        ward.webhooks = receiver.refusals
        await ward.polled()
        ward.server.add_hook(ward.project, receiver.url, secret_token="mistyped")
        ward.server.open_merge_request(ward.project, ward.server.add_user("alice"), "Add login", "login")
        await ward.server.settle()
        await ward.polled()
        check = await ward.check("gitlab")
    assert check.state is State.DEGRADED
    return Seen("`/readyz`, `gitlab`", check.detail)


async def wrong_time(bench: Bench) -> Seen:
    async with site_on_loopback(bench.folder, ahead=timedelta(hours=1)) as url:
        items = [item async for item in gitlab.check(bench.loaded(gitlab={"url": url}))]
    return told(clock([item for item in items if isinstance(item, Answer)]), "clock")


async def no_kvm(bench: Bench) -> Seen:
    """The whole `ravebot doctor`, in a mount namespace in which the device is another one."""
    bench.loaded(provider={"network": "none"})
    hide = 'test ! -e /dev/kvm || mount --bind /dev/null /dev/kvm; exec "$@"'
    doctor = [sys.executable, "-m", "ravebot", "doctor", "-c", str(bench.folder / "config.yaml")]
    done = await asyncio.to_thread(
        subprocess.run, ["unshare", "--mount", "sh", "-c", hide, "sh", *doctor], capture_output=True, text=True
    )
    [line] = [line for line in done.stdout.splitlines() if line.split("\t")[1:2] == ["kvm"]]
    return as_doctor(line)


async def libvirtd_down(bench: Bench) -> Seen:
    uri = f"qemu+unix:///system?socket={bench.folder}/libvirt-sock"
    finding, _ = await machines.libvirt(bench.loaded(provider={"uri": uri}).config.provider)
    return told([finding], "libvirt")


async def disk_full(bench: Bench) -> Seen:
    loaded = bench.loaded()
    with full_disk(bench.folder / "disks") as fill:
        async with Database(bench.folder / "disks" / "ravebot.db", SystemClock()) as database:
            fill()
            with pytest.raises(StoreError, match="disk is full; free space on its file system"):
                await database.write(lambda tx: tx.execute("INSERT INTO meta VALUES ('k', ?)", ("x" * 100_000,)))
        assert "free space there" in state.state_folder(bench.folder / "disks").fix
        return told([machines.disk(loaded.config)], "storage pool")


async def foreign_firewall(bench: Bench) -> Seen:
    with Namespace("forei") as namespace:
        namespace.nft("table ip other { chain forward { type filter hook forward priority 0; policy drop; }\n}")
        tools = NetworkTools(namespace.prefix)
        return told([await network.firewall(bench.loaded().config, tools, None)], "firewall")


async def two_instances(bench: Bench) -> Seen:
    loaded = bench.loaded(provider={"network": "none"})
    command = [sys.executable, "-m", "ravebot", "run", "-c", str(loaded.path)]
    async with Database(database_path(loaded.config.state_dir), SystemClock()):
        second = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    [line] = [line for line in second.stderr.splitlines() if line.startswith("ravebot: ")]
    return Seen("log", line)


MISTAKES: dict[str, Callable[[Bench], Awaitable[Seen]]] = {
    "wrong token": wrong_token,
    "wrong scope": wrong_scope,
    "wrong homeserver": wrong_homeserver,
    "unreachable GitLab": unreachable_gitlab,
    "TLS error": tls_error,
    "port in use": port_in_use,
    "image missing": image_missing,
    "image that QEMU's user can't read": image_that_qemu_can_not_read,
    "overlapping subnet": overlapping_subnet,
    "alias that does not exist": alias_that_does_not_exist,
    "encrypted room": encrypted_room,
    "bot not invited": bot_not_invited,
    "invited by someone else": invited_by_someone_else,
    "wrong webhook secret": wrong_webhook_secret,
    "wrong time": wrong_time,
    "no KVM": no_kvm,
    "libvirtd down": libvirtd_down,
    "disk full": disk_full,
    "foreign firewall": foreign_firewall,
    "two instances": two_instances,
}


@asynccontextmanager
async def site_on_loopback(folder: Path, *, tls: bool = False, ahead: timedelta = timedelta()) -> AsyncIterator[str]:
    """A server that is nobody's: with a certificate of its own, or a clock of its own."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({}, headers={"Date": format_datetime(datetime.now(UTC) + ahead, usegmt=True)})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self_signed(folder) if tls else None).start()
        yield f"{'https' if tls else 'http'}://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def full_disk(folder: Path, size: str = "4m") -> Iterator[Callable[[], None]]:
    """A small file system at that folder, and what fills it."""

    def fill() -> None:
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)

    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "disks", str(folder)], check=True)
    try:
        yield fill
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fits(row: tuple[str, str, str], line: str) -> bool:
    """Whether the line begins as the row says, and then names the mend."""
    seen, _, mend = (".*?".join(re.escape(part) for part in cell.split("…")) for cell in (code(row[0]), "", mends(row)))
    return re.match(f"{seen}.*?{mend}", line) is not None


def mends(row: tuple[str, str, str]) -> str:
    """The words of the mend, without the backticks that the page needs."""
    return row[2].replace("`", "")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("mistake", list(MISTAKES))
async def test_a_typical_mistake_is_told_where_its_row_says_with_cause_and_mend_in_one_line(
    bench: Bench, mistake: str
) -> None:
    seen = await MISTAKES[mistake](bench)
    row = ROWS[mistake]
    assert seen.where == row[1]
    assert fits(row, seen.line.replace("`", "")), seen.line
    for other, its in ROWS.items():
        assert other == mistake or not fits(its, seen.line.replace("`", "")), f"looks like {other}, too"


async def test_a_first_start_on_a_disk_that_becomes_full_is_told_with_what_mends_it(tmp_path: Path) -> None:
    with full_disk(tmp_path / "disk", size="64k"), pytest.raises(StoreError, match="disk is full; free space"):
        async with Database(tmp_path / "disk" / "ravebot.db", SystemClock()):
            pytest.fail("a database of that size holds the tables")


def test_every_row_is_provoked_and_there_are_no_others() -> None:
    assert list(ROWS) == list(MISTAKES)
    assert len(MISTAKES) == len(set(MISTAKES.values())) == 20


@pytest.mark.asyncio(loop_scope="module")
async def test_without_a_mistake_no_row_is_seen(bench: Bench) -> None:
    alias, room = await bench.room(public=True)
    await bench.bot.join(room)
    loaded = bench.loaded(alias)
    with Namespace("right") as namespace:
        tools = NetworkTools(namespace.prefix)
        findings = [
            *await found(matrix.check(loaded)),
            *await found(gitlab.check(loaded)),
            await network.listen(loaded.config),
            await network.routes(loaded.config, tools),
            await network.firewall(loaded.config, tools, None),
            machines.image(loaded.config),
            (await machines.libvirt(loaded.config.provider))[0],
        ]
    unwell = {(one.name, one.detail) for one in findings if one.verdict in (Verdict.FAILED, Verdict.WARNING)}
    assert unwell == set()
