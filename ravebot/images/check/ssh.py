"""What is asked of a guest's SSH server, over the network as people come in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncssh

from ravebot.access.rules import GUEST_SSH_PORT
from ravebot.errors import GuestError
from ravebot.images.check.guest import CheckedGuest
from ravebot.images.check.point import Found, failed, ok

_SERVER_WAIT = timedelta(seconds=20)
_SHORT_WAIT = timedelta(seconds=5)  # where another point has waited already
_LOGIN_SECONDS = 30
_LONGEST_NAME = 64
_HOST_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
"""All that asyncssh knows would be too many for dropbear, which then closes the connection without a word."""
_NO_SERVER = "install an SSH server that listens on port 22 and starts at boot"


async def login(guest: CheckedGuest) -> Found:
    """The announced host key is the server's, and a key that was authorized through the agent opens the door."""
    await guest.trial.provider.authorize_keys(guest.booted.name, guest.user, [guest.public_key])
    if (found := await guest.port_within(GUEST_SSH_PORT, _SERVER_WAIT)) != "open":
        return failed(f"port 22: {_port_in_words(found)}", _NO_SERVER)
    try:
        async with _connected(guest) as connection:
            who = await _who(connection)
    except asyncssh.HostKeyNotVerifiable:
        detail = "the server shows another host key than those in /etc/ssh/ssh_host_*_key.pub"
        return failed(detail, "make the SSH server use the host keys in /etc/ssh")
    except asyncssh.PermissionDenied:
        detail = f"{guest.user} can't log in with a key that the agent put into ~{guest.user}/.ssh/authorized_keys"
        fix = "check AuthorizedKeysFile, AllowUsers and PubkeyAuthentication of the SSH server, the modes of the home"
        return failed(detail, f"{fix}, and that the account is not locked for PAM")
    except (OSError, asyncssh.Error) as error:
        return failed(f"{guest.user} can't log in: {error}", "look at the SSH server's log in the guest")
    if who != guest.user:
        return failed(f"the session runs as {who}, not as {guest.user}", "set sandbox.user to the right account")
    return ok(f"{guest.user} with a key; the host key is the one that the agent shows")


async def _who(connection: asyncssh.SSHClientConnection) -> str:
    """What `id -un` prints in a session; only its beginning is read, for a login shell may print without end."""
    async with connection.create_process("id -un", stderr=asyncssh.DEVNULL) as process:
        return str(await process.stdout.read(_LONGEST_NAME)).strip()


async def keys_only(guest: CheckedGuest) -> Found:
    """No account is offered a password."""
    if (found := await guest.port_within(GUEST_SSH_PORT, _SHORT_WAIT)) != "open":
        return failed(f"port 22: {_port_in_words(found)}", _NO_SERVER)
    for user in (guest.user, "root"):
        if offered := await _passwords_offered(guest, user):
            fix = "in sshd_config: PasswordAuthentication no, KbdInteractiveAuthentication no, PermitEmptyPasswords no"
            return failed(f"the SSH server offers {user} {offered}", fix)
    return ok("the SSH server accepts keys only")


class _AuthProbe(asyncssh.SSHClient):
    """Notes what it is asked for, and never answers."""

    def __init__(self) -> None:
        self.asked_for = ""

    def password_auth_requested(self) -> None:
        self.asked_for = "a login by password"

    def kbdint_auth_requested(self) -> None:
        self.asked_for = "a login by keyboard-interactive"


async def _passwords_offered(guest: CheckedGuest, user: str) -> str:
    """By what this account can log in without a key; empty if by nothing."""
    probe = _AuthProbe()
    try:
        connection, _ = await asyncssh.create_connection(
            lambda: probe,
            guest.booted.address,
            GUEST_SSH_PORT,
            username=user,
            client_keys=None,
            preferred_auth=("keyboard-interactive", "password"),
            known_hosts=None,  # nothing is sent that a false server could use
            server_host_key_algs=_HOST_KEY_TYPES,
            agent_path=None,
            config=None,
            connect_timeout=_LOGIN_SECONDS,
            login_timeout=_LOGIN_SECONDS,
        )
    except (asyncssh.PermissionDenied, asyncssh.ConnectionLost):
        return probe.asked_for
    connection.close()
    return "a login without key and password"


async def forwards(guest: CheckedGuest) -> Found:
    """A port of the guest's own 127.0.0.1 can be forwarded to the host, which agents need."""
    fix = "in sshd_config: AllowTcpForwarding yes, and neither PermitListen nor GatewayPorts"
    try:
        async with _connected(guest) as connection:
            listener = await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 9)
            port = listener.get_port()
            # Its local address in hexadecimal: https://man7.org/linux/man-pages/man5/proc_pid_net.5.html
            bound = await guest.asked('cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -i ":$1 "', f"{port:04X}")
            listener.close()
    except asyncssh.ChannelListenError:
        return failed("the SSH server refuses to forward a port of 127.0.0.1 to the host", fix)
    except (OSError, asyncssh.Error) as error:
        return failed(f"can't be tried: {error}", "mend SSH login first")
    if f"0100007F:{port:04X}" not in bound.upper():
        return failed("a port that was asked for at 127.0.0.1 is open to other machines", fix)
    return ok(f"127.0.0.1:{port} of the guest was forwarded to the host, and nothing else of it")


@asynccontextmanager
async def _connected(guest: CheckedGuest) -> AsyncIterator[asyncssh.SSHClientConnection]:
    if not guest.host_keys:
        raise GuestError("the guest shows no SSH host key")
    known = asyncssh.import_known_hosts("".join(f"{guest.booted.address} {key}\n" for key in guest.host_keys))
    async with asyncssh.connect(
        guest.booted.address,
        GUEST_SSH_PORT,
        username=guest.user,
        client_keys=[guest.key],
        known_hosts=known,
        agent_path=None,
        config=None,
        connect_timeout=_LOGIN_SECONDS,
        login_timeout=_LOGIN_SECONDS,
    ) as connection:
        yield connection


def _port_in_words(found: str) -> str:
    return {"refused": "nothing listens there", "silent": "no answer"}[found]
