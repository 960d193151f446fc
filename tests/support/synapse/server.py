"""One Synapse process on a free loopback port, with its data in a folder of its own."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.synapse.user import MatrixUser

_PLENTY = {"per_second": 100_000, "burst_count": 100_000}
_START_SECONDS = 120  # beside machines that boot
_STOP_SECONDS = 20


class Synapse:
    """`async with Synapse(folder) as synapse:` runs one and removes all of it afterwards.

    `folder` is made when it is missing, and removed at the end with what is in it; without one, a temporary
    folder is used. To keep a server in the background, call `start()` and leave it: `stop()` and `remove()`
    end it, also from another process: `Synapse(folder)` finds port, secret and process id there.
    With `federates`, it talks to others like it, under a name that has a port of its own.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        strict_limits: bool = False,
        server_name: str = "localhost",
        federates: bool = False,
    ) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="ravebot-synapse-"))
        self.server_name = server_name
        self.strict_limits = strict_limits
        self.federates = federates
        self.port = 0
        self._secret = ""
        self._pid: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._users: list[MatrixUser] = []
        if self._facts.exists():
            facts = json.loads(self._facts.read_text())
            self.server_name, self.port = facts["server_name"], facts["port"]
            self._secret, self._pid = facts["secret"], facts["pid"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The running process; None while it is stopped."""
        return self._pid

    @property
    def log(self) -> str:
        """What Synapse wrote, for a test that wants to know why."""
        path = self.folder / "synapse.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def _facts(self) -> Path:
        return self.folder / "ravebot-synapse.json"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.remove()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.remove()

    async def start(self) -> None:
        """Start it, with the data and port it had before, and wait until it is healthy."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.port:
            self.port = _free_port()
            self._secret = secrets.token_hex(16)
            if self.federates:
                self.server_name = f"127.0.0.1:{_free_port()}"
            self._write_config()
        with (self.folder / "stdout").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "synapse.app.homeserver", "--config-path", "homeserver.yaml",
                cwd=self.folder, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"}, start_new_session=True,
            )  # fmt: skip
        self._pid = self._process.pid
        self._remember()
        await self._healthy()

    async def stop(self) -> None:
        """End the process; the data stay."""
        if self._pid is None:
            return
        await _end(self._pid, self._process)
        self._pid = self._process = None
        self._remember()

    async def remove(self) -> None:
        """End the process, the users' connections and the folder."""
        for user in self._users:
            await user.close()
        self._users.clear()
        await self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def user(self, name: str, *, password: str | None = None, admin: bool = False) -> MatrixUser:
        """Register somebody; their first login is `MatrixUser`'s own access token."""
        password = password or secrets.token_hex(8)
        async with aiohttp.ClientSession(self.url) as session:
            async with session.get("/_synapse/admin/v1/register") as answer:
                nonce = (await answer.json())["nonce"]
            facts = (nonce, name, password, "admin" if admin else "notadmin")
            mac = hmac.new(self._secret.encode(), "\0".join(facts).encode(), hashlib.sha1).hexdigest()
            body = {"nonce": nonce, "username": name, "password": password, "admin": admin, "mac": mac}
            async with session.post("/_synapse/admin/v1/register", json=body) as answer:
                login: dict[str, Any] = await answer.json()
                if answer.status != 200:
                    raise RuntimeError(f"Synapse did not register {name}: {login}")
        user = MatrixUser(self.url, login["user_id"], password, login["access_token"], login["device_id"])
        self._users.append(user)
        return user

    def _remember(self) -> None:
        facts = {"server_name": self.server_name, "port": self.port, "secret": self._secret, "pid": self._pid}
        self._facts.touch(0o600)
        self._facts.write_text(json.dumps(facts))

    def _write_config(self) -> None:
        config = _config(self.folder, self.server_name, self.port, self._secret, self.strict_limits)
        if self.federates:
            _federate(config, self.folder, int(self.server_name.rpartition(":")[2]))
        seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        for name, text in {
            "homeserver.yaml": json.dumps(config),
            "signing.key": f"ed25519 a_ravebot {seed}\n",
            "log.yaml": json.dumps(_log_config(self.folder)),
        }.items():
            path = self.folder / name
            path.touch(0o600)
            path.write_text(text)

    async def _healthy(self) -> None:
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        async with aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                try:
                    async with session.get("/health") as answer:
                        if answer.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                ended = self._process is not None and self._process.returncode is not None
                if ended or asyncio.get_running_loop().time() > deadline:
                    output = (self.folder / "stdout").read_text(errors="replace")[-4000:]
                    await self.stop()
                    raise RuntimeError(f"Synapse did not start on port {self.port}:\n{output}\n{self.log[-4000:]}")
                await asyncio.sleep(0.05)


async def _end(pid: int, process: asyncio.subprocess.Process | None) -> None:
    """Ask, then insist. A process that another run of ours started is no child of this one: it is polled."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            break
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                if process is not None:
                    await process.wait()
                    return
                while _running(pid):
                    await asyncio.sleep(0.05)
                return
        except TimeoutError:
            continue
    if process is not None:
        await process.wait()


def _running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _config(folder: Path, server_name: str, port: int, secret: str, strict: bool) -> dict[str, Any]:
    """Synapse's configuration: small, closed to the outside, without what costs time in a test."""
    return {
        "server_name": server_name,
        "public_baseurl": f"http://127.0.0.1:{port}/",
        "listeners": [{
            "port": port, "bind_addresses": ["127.0.0.1"], "type": "http", "tls": False,
            "resources": [{"names": ["client"], "compress": False}],
        }],
        "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
        "log_config": str(folder / "log.yaml"),
        "media_store_path": str(folder / "media"),
        "signing_key_path": str(folder / "signing.key"),
        "registration_shared_secret": secret,
        "macaroon_secret_key": secrets.token_hex(16),
        "form_secret": secrets.token_hex(16),
        "report_stats": False,
        "trusted_key_servers": [],
        "federation_domain_whitelist": [],
        "enable_registration": False,
        "enable_metrics": False,
        "bcrypt_rounds": 4,
        "presence": {"enabled": False},
        "stats": {"enabled": False},
        "user_directory": {"enabled": False},
        "enable_search": False,
        "url_preview_enabled": False,
    } | _limits(strict)  # fmt: skip


def _federate(config: dict[str, Any], folder: Path, port: int) -> None:
    """Let it talk to other servers on loopback, which have certificates of their own making."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")]), datetime.now(UTC)
    wanted = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.crt").write_bytes(wanted.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    del config["federation_domain_whitelist"]
    config["listeners"].append({
        "port": port, "bind_addresses": ["127.0.0.1"], "type": "http", "tls": True,
        "resources": [{"names": ["federation"], "compress": False}],
    })  # fmt: skip
    config |= {
        "tls_certificate_path": str(folder / "tls.crt"),
        "tls_private_key_path": str(folder / "tls.key"),
        "federation_verify_certificates": False,
        "ip_range_blacklist": [],
        "federation_ip_range_blacklist": [],
        # Otherwise it leaves a server alone for ten minutes that once did not answer in time, on a busy machine.
        "federation": {"destination_min_retry_interval": "1s", "destination_max_retry_interval": "2s"},
    }


def _limits(strict: bool) -> dict[str, Any]:
    """Out of the way, or so small for messages that a handful of them is refused (429)."""
    return {
        "rc_message": {"per_second": 2, "burst_count": 3} if strict else _PLENTY,
        "rc_registration": _PLENTY,
        "rc_login": dict.fromkeys(("address", "account", "failed_attempts"), _PLENTY),
        "rc_admin_redaction": _PLENTY,
        "rc_joins": {"local": _PLENTY, "remote": _PLENTY},
        "rc_joins_per_room": _PLENTY,
        "rc_invites": dict.fromkeys(("per_room", "per_user", "per_issuer"), _PLENTY),
        "rc_room_creation": _PLENTY,
    }


def _log_config(folder: Path) -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"file": {
            "class": "logging.FileHandler", "filename": str(folder / "synapse.log"), "formatter": "line",
        }},
        "root": {"level": "WARNING", "handlers": ["file"]},
    }  # fmt: skip
