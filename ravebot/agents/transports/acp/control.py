"""The control connection: an OpenSSH client from the host to a machine's own address, with our own key.

The client is a process of its own, so that a guest whose SSH server floods or hangs costs our event loop nothing. It
gets no configuration, agent, forwards or environment of a person's, and trusts exactly the machine's stored host keys.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ravebot.errors import RavebotError, Unavailable
from ravebot.sandboxes.model import Machine
from ravebot.sshkeys import parse
from ravebot.store.durable import write_file
from ravebot.store.owner import give

CONTROL_KEY = "control_key"
"""File in the state folder: the private key; only its public half is in guests."""
_FOLDER = "control"
PATIENCE_SECONDS = 60.0
"""How long the client may take until the guest's shell answers: an emulated machine that is busy takes half of it."""

OPTIONS: Mapping[str, str] = {
    "AddKeysToAgent": "no",
    "BatchMode": "yes",
    "CanonicalizeHostname": "no",
    "CheckHostIP": "no",
    "ClearAllForwardings": "yes",
    "Compression": "no",
    "ConnectionAttempts": "1",
    "ConnectTimeout": "30",
    "ControlMaster": "no",
    "ControlPath": "none",
    "EnableSSHKeysign": "no",
    "EscapeChar": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "GlobalKnownHostsFile": "none",
    "GSSAPIAuthentication": "no",
    "HostbasedAuthentication": "no",
    "IdentitiesOnly": "yes",
    "IdentityFile": CONTROL_KEY,  # with -i, a missing file would make it try a person's own keys
    "IdentityAgent": "none",
    "KbdInteractiveAuthentication": "no",
    "LogLevel": "ERROR",
    "NumberOfPasswordPrompts": "0",
    "PasswordAuthentication": "no",
    "PermitLocalCommand": "no",
    "PKCS11Provider": "none",
    "PreferredAuthentications": "publickey",
    "ProxyCommand": "none",
    "ProxyJump": "none",
    "RequestTTY": "no",
    "ServerAliveCountMax": "3",
    "ServerAliveInterval": "10",
    "StrictHostKeyChecking": "yes",
    "TCPKeepAlive": "yes",
    "Tunnel": "no",
    "UpdateHostKeys": "no",
    "VerifyHostKeyDNS": "no",
}
"""man 5 ssh_config. LogLevel ERROR also leaves out the server's banner."""


_LIMITED = 'ulimit -c 0; ulimit -f 512; ulimit -n 128; exec "$@"'
"""A server that opens channels without end makes the client log each that it can't open (256 KiB of that are enough: it
is then ended), and have a socket open for each that leads somewhere."""


class OtherHostKey(RavebotError):
    """The machine shows another host key than the one that was stored: never retried by itself."""


class KeyRefused(RavebotError):
    """The machine does not let our control key in."""


class NoSshClient(RavebotError):
    """This host has no OpenSSH client."""


@dataclass(frozen=True)
class Destination:
    """Where the SSH server of a machine is, and how it proves that it is that machine's."""

    name: str
    address: str
    user: str
    host_keys: tuple[str, ...]
    port: int = 22

    @classmethod
    def of(cls, machine: Machine, user: str) -> Destination:
        return cls(machine.name, machine.address, user, machine.host_keys)


@dataclass(frozen=True)
class RemoteForward:
    """A port on the guest's loopback that leads to a Unix socket, whose path is relative to the state folder."""

    port: int
    socket: str


@dataclass(frozen=True)
class ControlConnections:
    """Starts SSH clients; their files are in the state folder."""

    state_dir: Path

    def prepare(self, destination: Destination) -> None:
        """Write the machine's host keys for the client; may block."""
        folder = self.state_dir / _FOLDER
        if not folder.exists():
            folder.mkdir(mode=0o700)
            give(folder)
        path = folder / destination.name
        text = "".join(f"{destination.name} {parse(key)}\n" for key in destination.host_keys).encode()
        try:
            if path.read_bytes() == text:
                return
        except FileNotFoundError:
            pass
        write_file(path, text)

    def clear(self) -> None:
        """Remove what an earlier run left; may block. No client may run."""
        folder = self.state_dir / _FOLDER
        for path in folder.iterdir() if folder.is_dir() else ():
            path.unlink(missing_ok=True)

    def argv(
        self, destination: Destination, log: str, command: str, forwards: Sequence[RemoteForward] = ()
    ) -> list[str]:
        """The client's command line. It runs in the state folder: a path with odd characters is then no argument."""
        known = {"UserKnownHostsFile": f"{_FOLDER}/{destination.name}", "HostKeyAlias": destination.name}
        also = {"ClearAllForwardings": "no", "ExitOnForwardFailure": "yes"} if forwards else {}
        options = [word for name, value in {**OPTIONS, **known, **also}.items() for word in ("-o", f"{name}={value}")]
        ports = [word for one in forwards for word in ("-R", f"127.0.0.1:{one.port}:{one.socket}")]
        where = ["-p", str(destination.port), "-l", destination.user, "--", destination.address, command]
        return ["ssh", "-F", "none", "-T", "-a", "-x", "-E", log, *options, *ports, *where]

    async def start(self, destination: Destination, command: str, forwards: Sequence[RemoteForward] = ()) -> SshClient:
        """Start a client that runs `command` in the guest. Raises NoSshClient."""
        await asyncio.to_thread(self.prepare, destination)
        log = f"{_FOLDER}/{destination.name}-{secrets.token_hex(6)}.log"
        if shutil.which("ssh") is None:
            raise NoSshClient("this host has no SSH client: install Debian's package openssh-client")
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", _LIMITED, "ssh"),
            *self.argv(destination, log, command, forwards),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.state_dir,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            start_new_session=True,
        )
        return SshClient(process, self.state_dir / log, destination)


@dataclass
class SshClient:
    """A running client, and what it wrote to its log."""

    process: asyncio.subprocess.Process
    log: Path
    destination: Destination

    async def close(self) -> None:
        """End the client."""
        process = self.process
        if process.returncode is None:
            process.kill()
        assert process.stdin
        process.stdin.close()
        # What is left in the pipes is read: the loop does not see the end of one that it stopped reading.
        await asyncio.gather(*(pipe.read() for pipe in (process.stdout, process.stderr) if pipe), process.wait())
        self.log.unlink(missing_ok=True)

    def failure(self) -> RavebotError:
        """Why it ended, from the client's own log, in which the guest has no say before it is let in."""
        return read_failure(self.said(), self.destination.name)

    def said(self) -> str:
        """The beginning of the client's own log."""
        try:
            with self.log.open("rb") as file:
                return file.read(8000).decode(errors="replace")
        except FileNotFoundError:  # it had nothing to say
            return ""


def read_failure(log: str, machine: str) -> RavebotError:
    """The error that an OpenSSH client's log tells of."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any(line.startswith(("Host key verification failed", "No ED25519 host key", "No ECDSA host key",
                            "No RSA host key", "@    WARNING: REMOTE HOST")) for line in lines):  # fmt: skip
        return OtherHostKey(
            f"the machine {machine} shows another SSH host key than when it was set up, so nothing was sent to it: "
            "code in it may have changed the key; rebuild the sandbox"
        )
    if any("Permission denied (" in line for line in lines):
        return KeyRefused(
            f"the machine {machine} does not let ravebot's control key in: its authorized_keys was changed, or it was "
            "set up by an older ravebot; rebuild the sandbox"
        )
    last = next((line for line in reversed(lines)), "the connection ended")
    return Unavailable(f"the machine {machine} can't be reached by SSH: {last[:200]}")


def public_key(state_dir: Path) -> str | None:
    """The control key's public half; the key is made if it is missing. None without OpenSSH's tools; may block."""
    tool = shutil.which("ssh-keygen")
    if tool is None:
        return None
    path = state_dir / CONTROL_KEY
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=state_dir, prefix=".control-key-") as folder:
            _run(tool, "-q", "-t", "ed25519", "-N", "", "-C", "ravebot", "-f", f"{folder}/key")
            write_file(path, Path(folder, "key").read_bytes())
    return parse(_run(tool, "-y", "-P", "", "-f", str(path)))


def _run(*command: str) -> str:
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or ""
        raise Unavailable(
            f"the control key in the state folder can't be used: {said.strip()[-200:] or error}; remove the file "
            f"{CONTROL_KEY} there and restart ravebot: it makes a new one, and writes it into the machines that run"
        ) from error
