"""Everything real on one machine: Synapse, the GitLab stand-in, libvirt, and ravebot as a process of its own."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import libvirt
import psutil
import yaml

from tests.support import debian_image
from tests.support.gitlab import DEVELOPER, GUEST, MAINTAINER, GitLabServer, MergeRequest, Note, Project
from tests.support.guest_image import build_guest
from tests.support.libvirtd import ensure_libvirtd
from tests.support.netns import Namespace
from tests.support.synapse import MatrixUser, Message, Synapse

ROOT = Path(__file__).resolve().parents[2]
GUEST_CACHE = ROOT / ".cache" / "guest"
DEBIAN_CACHE = ROOT / ".cache" / "debian-image"
SAMPLE = {
    "README.md": "# A sample project\n",
    "index.html": "<!doctype html><title>Sample</title><h1>It works</h1>\n",
}


class Guest(StrEnum):
    """What the machines of a stage run."""

    TINY = "tiny"
    DEBIAN = "debian"


def new_folder() -> Path:
    """For what a stage keeps, its machines' disks too: on disk. /tmp is in memory on Debian 13, and can be small."""
    folder = Path(tempfile.mkdtemp(prefix="ravebot-stage-", dir=os.environ.get("TMPDIR") or "/var/tmp"))
    folder.chmod(0o711)  # QEMU, which libvirt runs as another user, must get into it
    return folder


@dataclass
class Bot:
    """ravebot as people run it: a process with a configuration file, which can be killed at any moment."""

    config: Path
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ravebot", "run", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env={**os.environ, **self.environment},
                start_new_session=True,  # a terminal's Ctrl-C is not for it: who started it ends it
            )

    async def stop(self) -> None:
        """As an init system ends it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self.process.wait, 20)
        await self.kill()

    async def kill(self) -> None:
        """As a power cut ends it."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            await asyncio.to_thread(self.process.wait)
            self.process = None

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ravebot …` with this configuration."""
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "ravebot", *arguments, "-c", str(self.config)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            start_new_session=True,
        )


def _reserved_number() -> tuple[int, int]:
    """A number whose networks and ports no other stage on this host uses, and the open lock that keeps others off."""
    addresses = {one.address for link in psutil.net_if_addrs().values() for one in link}
    for number in random.sample(range(20, 220), 200):
        lock = os.open(f"/tmp/ravebot-tests-stage-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if not addresses & {f"10.78.{number}.1", f"10.79.{number}.1"}:
            return number, lock
        os.close(lock)
    raise AssertionError("two hundred stages are on this host")


class Stage:
    """`async with Stage() as stage:`; `changes` are merged into the configuration, section by section. `files`: what
    the project's main branch has."""

    def __init__(
        self,
        changes: dict[str, Any] | None = None,
        *,
        guest: Guest = Guest.TINY,
        cmdline: str = "",
        gitlab_port: int = 0,
        files: Mapping[str, str] = SAMPLE,
    ) -> None:
        self._changes = changes or {}
        self.guest = guest
        self._cmdline = cmdline
        self._gitlab_port = gitlab_port
        self._files = dict(files)
        self._stack = AsyncExitStack()
        self.number, self._lock = _reserved_number()
        self.mark = secrets.token_hex(2)
        self.folder: Path
        self.image: Path
        self.synapse: Synapse
        self.gitlab: GitLabServer
        self.client: Namespace
        self.bot: Bot

    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        told_to_stop = kind is not None and issubclass(kind, asyncio.CancelledError | KeyboardInterrupt)
        if kind is not None and not told_to_stop and self.bot.log.exists():
            print(f"--- ravebot's log\n{self.bot.log.read_text(errors='replace')[-12_000:]}")
        await self._stack.aclose()

    async def _set_up(self) -> None:
        self._stack.callback(os.close, self._lock)
        self.folder = new_folder()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        await asyncio.to_thread(ensure_libvirtd)
        self._machine = await (self._debian_machine() if self.guest is Guest.DEBIAN else self._tiny_machine())
        self.client = self._stack.enter_context(Namespace("client"))
        self.client.link_host("eth0", f"{self.elsewhere}/24", f"{self.host}/24")
        self.client.route("default", self.host)
        self.gitlab = await self._stack.enter_async_context(GitLabServer(self._gitlab_port))
        self.synapse = await self._stack.enter_async_context(Synapse(self.folder / "synapse"))
        await self._people()
        self._configure()
        self.bot = Bot(self.folder / "config.yaml", self.folder / "ravebot.log")
        self._stack.push_async_callback(self._clean)

    async def _tiny_machine(self) -> dict[str, dict[str, Any]]:
        """What the configuration says of it."""
        cache = self.folder / "guest"
        if GUEST_CACHE.exists():  # what ./dev built
            await asyncio.to_thread(shutil.copytree, GUEST_CACHE, cache)
        guest = await asyncio.to_thread(build_guest, cache)
        self.image = guest.image
        return {
            "sandbox": {"memory": "256MiB", "disk": "1GiB"},
            "provider": {
                "kernel": str(guest.kernel),
                "initrd": str(guest.initrd),
                "cmdline": f"{guest.cmdline} {self._cmdline}".strip(),
            },
        }

    async def _debian_machine(self) -> dict[str, dict[str, Any]]:
        self.image = self.folder / "debian.qcow2"
        await debian_image.place(DEBIAN_CACHE, self.image)
        return {
            "pool": {"build_timeout": "15m", "shutdown_grace": "90s"},
            "sandbox": {"memory": "512MiB", "disk": "4GiB"},
        }

    @property
    def must_build(self) -> bool:
        """Whether the set-up will build the Debian image."""
        return self.guest is Guest.DEBIAN and not debian_image.cached(DEBIAN_CACHE).exists()

    @property
    def host(self) -> str:
        """The host's address as the client sees it."""
        return f"10.79.{self.number}.1"

    @property
    def elsewhere(self) -> str:
        """The client's address as the host sees it."""
        return f"10.79.{self.number}.2"

    @property
    def subnet(self) -> IPv4Network:
        return IPv4Network(f"10.78.{self.number}.0/24")

    @property
    def bridge(self) -> str:
        return f"rvt{self.mark}"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def pipeline_images(self) -> Path:
        """Where images from pipelines are kept, if they are switched on."""
        return self.folder / "pipeline-images"

    async def _people(self) -> None:
        self.keys = {name: self._key(name) for name in ("alice", "mallory")}
        gitlab = self.gitlab
        self.ravebot = gitlab.add_user("ravebot")
        self.alice = gitlab.add_user("alice", [self.public_key("alice")])
        self.bob = gitlab.add_user("bob")
        self.guest_user = gitlab.add_user("gina")
        self.project: Project = gitlab.add_project("group/app", self._files)
        gitlab.set_role(self.project, self.ravebot, MAINTAINER)
        gitlab.set_role(self.project, self.alice, DEVELOPER)
        gitlab.set_role(self.project, self.bob, DEVELOPER)
        gitlab.set_role(self.project, self.guest_user, GUEST)
        self.matrix_bot: MatrixUser = await self.synapse.user("ravebot")
        self.matrix_alice: MatrixUser = await self.synapse.user("alice")
        self.matrix_ops: MatrixUser = await self.synapse.user("ops")
        self.matrix_gina: MatrixUser = await self.synapse.user("gina")
        others = [self.matrix_bot.user_id, self.matrix_alice.user_id, self.matrix_gina.user_id]
        self.room = await self.matrix_ops.create_room("dev", invite=others, name="dev")
        await self.matrix_alice.join(self.room)
        await self.matrix_gina.join(self.room)

    def _key(self, name: str) -> Path:
        path = self.folder / f"id_{name}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)], check=True)
        return path

    def public_key(self, name: str) -> str:
        return self.keys[name].with_suffix(".pub").read_text().strip()

    def _secret(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return str(path)

    def _configure(self) -> None:
        port = 20_000 + self.number * 20
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.http = f"http://127.0.0.1:{free.getsockname()[1]}"
        config: dict[str, Any] = {
            "instance": f"t{self.mark}",
            "state_dir": str(self.state_dir),
            "matrix": {
                "homeserver": self.synapse.url,
                "user_id": self.matrix_bot.user_id,
                "password_file": self._secret("matrix-password", self.matrix_bot.password),
                "admins": [self.matrix_ops.user_id],
                "users": {self.matrix_alice.user_id: "alice", self.matrix_gina.user_id: "gina"},
                "rooms": [{"room": "#dev:localhost", "projects": ["group/*"]}],
            },
            "gitlab": {
                "url": self.gitlab.url,
                "token_file": self._secret("gitlab-token", self.gitlab.token_for(self.ravebot)),
                "projects": ["group/*"],
                "webhook": {"secret_token_file": self._secret("webhook-secret", "correct horse battery")},
            },
            "http": {"listen": self.http.removeprefix("http://")},
            "pool": {"max_running": 2, "shutdown_grace": "10s", "build_timeout": "90s"},
            "sandbox": {
                "vcpus": 1,
                "host": self.host,
                "ssh_ports": f"{port}-{port + 9}",
                "web_ports": f"{port + 10}-{port + 19}",
            },
            "provider": {
                "accelerator": "tcg",
                "bridge": {"name": self.bridge, "subnet": str(self.subnet)},
                "storage_pool": str(self.folder / "disks"),
                "image": str(self.image),
            },
        }
        for section, values in (*self._machine.items(), *self._changes.items()):
            config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
        if "ci" in config["gitlab"]:
            config["gitlab"]["ci"] = {"audience": self.http, **config["gitlab"]["ci"]}
        if "pipeline_images" in config["provider"]:
            config["provider"]["pipeline_images"] = {"folder": str(self.pipeline_images)}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))
        self.gitlab.add_hook(self.project, f"{self.http}/webhooks/gitlab", secret_token="correct horse battery")

    async def _clean(self) -> None:
        """Remove what a test left: its machines, disks, network and rules."""
        await self.bot.kill()
        tries = 3 if (self.state_dir / "instance-id").exists() else 0  # it never ran: there is nothing to clean up
        for _ in range(tries):  # another test may just restart libvirtd
            await asyncio.to_thread(ensure_libvirtd)
            done = await self.bot.command("cleanup", "--all", "--force")
            if done.returncode == 0:
                break
            print(f"cleanup failed: {done.stdout}{done.stderr}")
        await asyncio.to_thread(self._remove_network)

    def _remove_network(self) -> None:
        path = self.state_dir / "instance-id"
        instance_id = path.read_text().strip() if path.exists() else "none"
        connection = libvirt.open("qemu:///system")
        for network in connection.listAllNetworks():
            with suppress(libvirt.libvirtError):  # another test's, which was removed meanwhile
                if network.bridgeName() == self.bridge:
                    if network.isActive():
                        network.destroy()
                    network.undefine()
        for pool in connection.listAllStoragePools():
            if instance_id in pool.name():
                if pool.isActive():
                    pool.destroy()
                pool.undefine()
        connection.close()

    async def start(self, timeout: float = 40) -> None:
        """Start ravebot and wait until it says that it is ready."""
        self.bot.start()
        await self.until(self.is_ready, timeout, "ravebot is not ready")

    async def is_ready(self) -> bool:
        assert self.bot.process is None or self.bot.process.poll() is None, self.bot.log.read_text()[-3000:]
        with suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(f"{self.http}/readyz") as answer:
                return answer.status == 200
        return False

    async def readiness(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.http}/readyz") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def metrics(self) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{self.http}/metrics") as answer:
            return await answer.text()

    async def until(self, condition: Callable[[], Any], timeout: float, what: str) -> Any:
        """Wait until the condition (plain or async) holds, and return what it gave.

        What is async asks Synapse, the guest or another process, which costs them time: the longer it takes, the rarer.
        """
        began, pause = asyncio.get_running_loop().time(), 0.1
        while True:
            found = condition()
            waited = asyncio.get_running_loop().time() - began
            if asyncio.iscoroutine(found):
                found = await found
                pause = min(max(0.1, waited / 40), 0.5)
            if found:
                return found
            if waited > timeout:
                raise AssertionError(f"{what}, after {timeout} s\n{self.bot.log.read_text(errors='replace')[-6000:]}")
            await asyncio.sleep(pause)

    def open_merge_request(self, title: str = "Add a feature", branch: str = "feature", **more: Any) -> MergeRequest:
        files = more.pop("files", {"feature.txt": "new\n"})
        return self.gitlab.open_merge_request(self.project, self.alice, title, branch, files, **more)

    def note(self, mr: MergeRequest) -> Note | None:
        """The status note; more than one is an error."""
        found = [note for note in self.gitlab.notes(mr) if " status -->" in note.body]
        assert len(found) <= 1, [note.body for note in found]
        return found[0] if found else None

    async def note_says(self, mr: MergeRequest, text: str, timeout: float = 60) -> Note:
        def look() -> Note | None:
            note = self.note(mr)
            return note if note and text in note.body.replace("\u2060", "") else None

        found: Note = await self.until(look, timeout, f"the note does not say {text!r}: {self.note(mr)}")
        return found

    async def ready(self, mr: MergeRequest, timeout: float = 90) -> Note:
        return await self.note_says(mr, "ssh -o HostKeyAlias=", timeout)

    async def cards(self, mr: MergeRequest) -> list[Message]:
        """The cards of that merge request's sandboxes, as they read now."""
        messages = await self.matrix_ops.messages(self.room)
        ref = re.compile(rf"!{mr.iid}(?!\d)")
        return [
            message
            for message in messages
            if message.sender == self.matrix_bot.user_id
            and message.thread_root is None
            and "m.in_reply_to" not in json.dumps(message.content)
            and ref.search(message.body)
            and "\nOwner " in message.body
        ]

    def ssh(
        self, note: Note, user: str, *command: str, extra: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Log in from the client's machine with the command that the note shows, trusting only the announced key."""
        line = next(line for line in note.body.splitlines() if line.startswith("ssh "))
        known = self.folder / "known_hosts"
        options = [
            *extra,
            *("-i", str(self.keys[user]), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
            *("-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={known}-{secrets.token_hex(4)}"),
            *("-o", "ConnectTimeout=60", "-o", "LogLevel=VERBOSE"),
        ]
        first, *rest = line.split()
        return self.client.run([first, *options, *rest, *command], timeout=300)  # emulated, on a busy host

    def web_url(self, note: Note) -> str:
        url = re.search(rf"https?://{re.escape(self.host)}:\d+/", note.body)
        assert url, note.body
        return url[0]

    async def web(self, note: Note) -> str:
        """What the web link of the note answers to the client's machine."""
        url = self.web_url(note)
        fetch = f"import urllib.request; print(urllib.request.urlopen('{url}', timeout=60).read().decode())"
        done = await self.client.arun([sys.executable, "-c", fetch], timeout=90)
        return done.stdout
