"""Remote forwards of one OpenSSH client: they stand once the guest's shell answers, and end with the client.

The guest's SSH server can open connections to the sockets that were forwarded and to nothing else; how many at once is
bounded by the client's limit of open files, and what they send by whoever serves the sockets.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from ravebot.agents.transports.acp.control import (
    PATIENCE_SECONDS,
    ControlConnections,
    Destination,
    RemoteForward,
    SshClient,
)
from ravebot.errors import RavebotError, Unavailable

_COMMAND = "exec sh -c 'IFS= read -r n && echo \"$n\" && exec cat >/dev/null'"
"""It runs until our end of its input is closed, also by a crash."""
_LISTENS = (
    'exec sh -c \'read -r n ports; echo "$n"; cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | '
    "while read -r s l r state o; do for port in $ports; do "
    'case "$l $state" in *":$port 0A") echo "taken $port";; esac; done; done; echo end\''
)
"""Says on which of the ports, given in hexadecimal, a program of the guest listens. dropbear claims success when it got
a port on ::1 only, because somebody else has it on 127.0.0.1."""
_CHUNK_BYTES = 4096
_GREETING_BYTES = 64 * 1024
"""What the user's shell may print before our command runs."""
_FAILED = re.compile(r"remote port forwarding failed for listen port (\d{1,5})")


class ForwardFailed(RavebotError):
    """The guest's SSH server did not give us a port. `taken`: a program in the guest listens there."""

    def __init__(self, port: int, *, taken: bool) -> None:
        self.port, self.taken = port, taken
        super().__init__(f"the port {port} could not be forwarded")


@dataclass(frozen=True, eq=False)
class StandingForward:
    """A client whose forwards stand."""

    client: SshClient

    @property
    def stands(self) -> bool:
        return self.client.process.returncode is None

    async def ended(self) -> None:
        """Wait until they do not stand any more."""
        await self.client.process.wait()

    async def close(self) -> None:
        await self.client.close()


async def open_forward(
    connections: ControlConnections,
    where: Destination,
    forwards: Sequence[RemoteForward],
    patience_seconds: float = PATIENCE_SECONDS,
) -> StandingForward:
    """Have ports of the guest lead to sockets here.

    Raises ForwardFailed, Unavailable, OtherHostKey, KeyRefused, NoSshClient.
    """
    for port in await _taken(connections, where, [one.port for one in forwards], patience_seconds):
        raise ForwardFailed(port, taken=True)
    client = await connections.start(where, _COMMAND, forwards)
    try:
        try:
            await _answer(client, "", patience_seconds)
        except Unavailable:
            if failed := _FAILED.search(client.said()):
                raise ForwardFailed(int(failed[1]), taken=False) from None
            raise
    except BaseException:  # also when it is cancelled: no client may be left behind
        await client.close()
        raise
    return StandingForward(client)


async def _taken(
    connections: ControlConnections, where: Destination, ports: Sequence[int], patience_seconds: float
) -> list[int]:
    """On which of these ports something in the guest listens, as the guest says."""
    client = await connections.start(where, _LISTENS)
    try:
        words = "".join(f" {port:04X}" for port in ports)
        said = (await _answer(client, words, patience_seconds, until=b"end\n")).decode(errors="replace").splitlines()
    finally:
        await client.close()
    return [port for port in ports if f"taken {port:04X}" in said]


async def _answer(client: SshClient, more: str, patience_seconds: float, until: bytes = b"") -> bytes:
    """What the guest's shell prints after the nonce that it is given, up to `until`. Raises Unavailable."""
    nonce = secrets.token_hex(12)
    stdin, stdout = client.process.stdin, client.process.stdout
    assert stdin
    assert stdout
    said = b""
    try:
        async with asyncio.timeout(patience_seconds):
            try:
                stdin.write(f"{nonce}{more}\n".encode())
                await stdin.drain()
            except ConnectionError:  # it is ending: its log says why
                pass
            while not _has(said, f"{nonce}\n".encode(), until):
                chunk = await stdout.read(_CHUNK_BYTES)
                said += chunk
                if len(said) > _GREETING_BYTES:
                    raise Unavailable(f"the machine {client.destination.name} prints without end to its SSH clients")
                if not chunk:
                    await client.process.wait()
                    raise client.failure()
    except TimeoutError as error:
        raise Unavailable(
            f"the machine {client.destination.name} did not answer by SSH within {patience_seconds:g} s"
        ) from error
    return said


def _has(said: bytes, nonce: bytes, until: bytes) -> bool:
    _, found, rest = said.partition(nonce)
    return bool(found) and until in rest
