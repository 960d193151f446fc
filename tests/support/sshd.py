"""A guest without a machine: a real SSH server with namespaces of its own, in which a user `agent` can run programs.

Mounts and processes are the guest's own: when it is closed, nothing that ran in it is left. It listens on loopback.
Needs root, util-linux's unshare, and dropbear or OpenSSH's server (`./dev` unpacks it; it is not installed).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from ravebot.agents.transports.acp.control import Destination, public_key

UNPACKED = Path(__file__).parents[2] / ".cache/sshd"
_UID = 12345
_SETUP = """
set -eu
mount -t tmpfs none /srv
mkdir /srv/merge-request /srv/etc
chown 12345:12345 /srv/merge-request
mount --bind "$1/home" /home
{ cat /etc/passwd; echo 'agent:x:12345:12345::/home/agent:/bin/sh'; echo 'sshd:x:12346:12346::/run/sshd:/bin/false'; } >/srv/etc/passwd
{ cat /etc/shadow; echo 'agent:*:19000::::::'; } >/srv/etc/shadow
mount --bind /srv/etc/passwd /etc/passwd
mount --bind /srv/etc/shadow /etc/shadow
mount -t tmpfs none /run
mkdir -p /run/sshd
[ "$2" != busybox ] || mount --bind /usr/bin/busybox "$(readlink -f /bin/sh)"
shift 2
exec "$@"
"""  # noqa: E501 - as the guest's files have it


@dataclass
class SshGuest:
    """The guest; `shell` is dash or busybox, `server` dropbear or openssh."""

    folder: Path
    state_dir: Path
    shell: str = "dash"
    server: str = "dropbear"
    port: int = 0
    options: Mapping[str, str] = field(default_factory=dict)  # of OpenSSH's
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def home(self) -> Path:
        return self.folder / "home/agent"

    def start(self, *, fresh: bool = False) -> None:
        """Boot it; `fresh`: with an empty home, as after a rebuild."""
        if fresh:
            shutil.rmtree(self.home)
        if not self.port:
            self.port = free_port()
        key = public_key(self.state_dir)
        assert key
        (self.home / ".ssh").mkdir(parents=True, exist_ok=True)
        (self.home / ".ssh/authorized_keys").write_text(f"{key}\n")
        for folder, _, files in os.walk(self.home):
            os.chown(folder, _UID, _UID)
            for name in files:
                os.chown(Path(folder, name), _UID, _UID)
        host_key = self.folder / "host_key"
        if not host_key.exists():
            self._make_host_key(host_key)
        inner = ["sh", "-c", _SETUP, "guest", str(self.folder), self.shell, *self._server(host_key)]
        flags = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", *flags, "--", *inner], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "LD_LIBRARY_PATH": str(UNPACKED / "usr/lib/x86_64-linux-gnu")},
            )  # fmt: skip
        self._wait()

    def stop(self) -> None:
        """Cut its power."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def destination(self) -> Destination:
        key = subprocess.run(
            ["ssh-keygen", "-y", "-f", self.folder / "openssh_host_key"], check=True, capture_output=True, text=True
        ).stdout.strip()
        return Destination("rave-guest", "127.0.0.1", "agent", (key,), self.port)

    def program(self, name: str, text: str) -> str:
        """Put a program into the guest; returns its path there."""
        path = self.home / name
        path.write_text(text)
        path.chmod(0o755)
        return f"/home/agent/{name}"

    def file(self, name: str) -> Path:
        """A file of an agent's process, by FOLDER/NAME."""
        return self.home / ".ravebot/agents" / name

    def lines(self, folder: str) -> list[str]:
        """What the agent was given."""
        path = self.file(f"{folder}/in")
        return path.read_text().splitlines() if path.exists() else []

    def _make_host_key(self, host_key: Path) -> None:
        plain = self.folder / "openssh_host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", plain], check=True)
        if self.server == "openssh":
            shutil.copyfile(plain, host_key)
            host_key.chmod(0o600)
        else:
            convert = shutil.which("dropbearconvert") or "/usr/lib/dropbear/dropbearconvert"
            subprocess.run([convert, "openssh", "dropbear", plain, host_key], check=True, capture_output=True)

    def _server(self, host_key: Path) -> list[str]:
        if self.server == "dropbear":
            return ["dropbear", "-F", "-E", "-s", "-p", f"127.0.0.1:{self.port}", "-r", str(host_key), "-P", ""]
        options: dict[str, object] = {
            "UsePAM": "no", "HostKey": host_key, "PidFile": "none", "ListenAddress": "127.0.0.1", "Port": self.port,
            "PasswordAuthentication": "no", "StrictModes": "no", "MaxStartups": "100",
            **self.options,
        }  # fmt: skip
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return [str(UNPACKED / "usr/sbin/sshd"), "-D", "-e", "-f", "/dev/null", *words]

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert self._process
            assert self._process.poll() is None, (self.folder / "sshd.log").read_text()
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    probe.recv(10)
                return
            except OSError:
                time.sleep(0.01)
        raise TimeoutError((self.folder / "sshd.log").read_text())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
