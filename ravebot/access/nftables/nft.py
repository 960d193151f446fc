"""Runs the network tools nft (with JSON), ip, tc, sysctl and conntrack, each call with a time limit."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from ravebot.errors import Unavailable

JsonObject = dict[str, object]

_LIMIT_SECONDS = 10.0
_MESSAGE_LIMIT = 500
_TRIES = 10
LONG_BYTES = 100_000
"""Output longer than this is parsed in a thread, since that takes a while."""


class TooSlow(Unavailable):
    """A tool did not finish in time."""


@dataclass(frozen=True)
class RulesetDump:
    """What nft lists, in the kernel's order, and the length of its text."""

    entries: list[JsonObject]
    length: int


class NetworkTools:
    """Runs the tools, each preceded by `prefix` (such as `ip netns exec NAME`)."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.prefix = tuple(prefix)
        self._own_pids: deque[int] = deque(maxlen=1000)

    async def apply(self, commands: Sequence[JsonObject]) -> None:
        """Run all of these nft commands in one transaction, or none. Raises Unavailable with nft's message."""
        await self._nft("-j", "-f", "-", stdin=json.dumps({"nftables": list(commands)}).encode())

    async def ruleset(self) -> list[JsonObject]:
        """All nftables rules of this host, without the elements of named sets."""
        return (await self.listing(terse=True)).entries

    async def listing(self, *, terse: bool = False) -> RulesetDump:
        """All nftables objects of this host; `terse` (fast) leaves out the elements of sets. Raises TooSlow."""
        output = await self._nft("-j", *(["-t"] if terse else []), "list", "ruleset")
        return RulesetDump(await _entries(output), len(output))

    async def elements(self, kind: str, family: str, table: str, name: str) -> list[object]:
        """The elements of that set or map, whatever else the table holds; empty if it does not exist."""
        try:
            output = await self._nft("-j", "list", kind, family, table, name)
        except Unavailable as error:
            if "No such file or directory" in str(error):
                return []
            raise
        bodies = [cast(JsonObject, entry.get(kind, {})) for entry in await _entries(output)]
        return [element for body in bodies for element in cast(list[object], body.get("elem", []))]

    async def ip(self, *arguments: str) -> str:
        return await self.run("ip", *arguments)

    async def ip_listed(self, *arguments: str) -> list[JsonObject]:
        """The output of `ip -j`; empty if it prints nothing."""
        output = await self.ip("-j", *arguments)
        try:
            return cast(list[JsonObject], json.loads(output or "[]"))
        except ValueError as error:
            raise Unavailable("ip did not answer in JSON: install iproute2 5.0 or newer") from error

    async def forget_connections(self, addresses: Iterable[str]) -> None:
        """Remove connections from and to these addresses from the kernel's table. Raises Unavailable."""
        known = sorted(map(ipaddress.IPv4Address, addresses))
        lines = (f"--delete {end} {address}\n" for address in known for end in ("--orig-src", "--reply-src"))
        stdin = "".join(lines).encode()
        for left in reversed(range(_TRIES)):
            try:
                # With such a line as its arguments instead, conntrack would fail if it finds nothing.
                await self.run("conntrack", "--load-file", "-", stdin=stdin)
            except Unavailable as error:
                # It stops at a connection that ended between its listing and its removal.
                if not left or "such conntrack doesn't exist" not in str(error):
                    raise
            else:
                return

    async def run(self, *argv: str, stdin: bytes = b"") -> str:
        """The output of a command. Raises Unavailable if it fails, is missing or takes too long."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self.prefix,
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            packages = "nftables, iproute2, procps and conntrack"
            raise Unavailable(f"{argv[0]} can't be run: {error}; install {packages}") from error
        if argv[0] == "nft":
            self._own_pids.append(process.pid)
        try:
            async with asyncio.timeout(_LIMIT_SECONDS):
                output, errors = await process.communicate(stdin)
        except TimeoutError as error:
            raise TooSlow(f"{argv[0]} did not finish within {_LIMIT_SECONDS:g} s") from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            said = " ".join(errors.decode(errors="replace").split())[:_MESSAGE_LIMIT]
            hint = "; ravebot needs CAP_NET_ADMIN (run it as root)" if "not permitted" in said else ""
            raise Unavailable(f"{' '.join(argv[:2])} failed: {said or f'exit code {process.returncode}'}{hint}")
        return output.decode(errors="replace")

    def is_own(self, pid: int) -> bool:
        """Whether that process is one of our recent nft calls."""
        return pid in self._own_pids

    async def _nft(self, *arguments: str, stdin: bytes = b"") -> str:
        return await self.run("nft", *arguments, stdin=stdin)


def bodies(entry: JsonObject) -> list[tuple[str, JsonObject]]:
    """The objects in one entry of a listing: kind (table, set, rule, …) and content."""
    return [(kind, cast(JsonObject, body)) for kind, body in entry.items()]


async def _entries(output: str) -> list[JsonObject]:
    return await asyncio.to_thread(_parsed, output) if len(output) > LONG_BYTES else _parsed(output)


def _parsed(output: str) -> list[JsonObject]:
    try:
        listed = cast(list[JsonObject], json.loads(output)["nftables"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable("nft did not answer in its JSON format: install nftables 1.0 or newer") from error
    return [entry for entry in listed if "metainfo" not in entry]
