"""Speaks to the kernel's network tools: nft in JSON, ip and sysctl; each call bounded in time."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from ravebot.errors import Unavailable

JsonObject = dict[str, object]

_MESSAGE_LIMIT = 500
_CROWDED_BYTES = 500_000


class NetworkTools:
    """Runs nft, ip and sysctl, with `prefix` before each (such as `ip netns exec NAME`)."""

    def __init__(self, prefix: Sequence[str] = (), timeout_seconds: float = 10.0) -> None:
        self.prefix = tuple(prefix)
        self._timeout_seconds = timeout_seconds
        self._crowded = False
        self._own_pids: deque[int] = deque(maxlen=1000)

    async def apply(self, commands: Sequence[JsonObject]) -> None:
        """Do all of these nft commands in one transaction, or none; raises Unavailable with nft's message."""
        await self._nft("-j", "-f", "-", stdin=json.dumps({"nftables": list(commands)}).encode())

    async def table(self, family: str, name: str) -> list[JsonObject] | None:
        """A table with all it holds, in the kernel's order; None where there is no such table."""
        try:
            output = await self._nft("-j", "list", "table", family, name)
        except Unavailable as error:
            if "No such file or directory" in str(error):
                return None
            raise
        return _objects(output)

    async def tables(self, name: str, families: Sequence[str]) -> dict[str, list[JsonObject] | None]:
        """The tables of that name. One call reads everything, until others hold so much that one each is cheaper."""
        if not self._crowded:
            output = await self._nft("-j", "list", "ruleset")
            self._crowded = len(output) > _CROWDED_BYTES
            listed = _objects(output)
            return {family: _of_table(listed, family, name) for family in families}
        tables = await asyncio.gather(*(self.table(family, name) for family in families))
        return dict(zip(families, tables, strict=True))

    async def ruleset(self) -> list[JsonObject]:
        """Everything that nftables holds, of everyone."""
        return _objects(await self._nft("-j", "list", "ruleset"))

    async def ip(self, *arguments: str) -> str:
        return await self.run("ip", *arguments)

    async def run(self, *argv: str, stdin: bytes = b"") -> str:
        """What the command printed; raises Unavailable when it failed, is missing, or took too long."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self.prefix,
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise Unavailable(f"{argv[0]} can't be run: {error}; install nftables, iproute2 and procps") from error
        if argv[0] == "nft":
            self._own_pids.append(process.pid)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                output, errors = await process.communicate(stdin)
        except TimeoutError as error:
            raise Unavailable(f"{argv[0]} did not answer in {self._timeout_seconds:g} s") from error
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
        """Whether that process is one of the nft calls made here lately."""
        return pid in self._own_pids

    async def _nft(self, *arguments: str, stdin: bytes = b"") -> str:
        return await self.run("nft", *arguments, stdin=stdin)


def _objects(output: str) -> list[JsonObject]:
    try:
        listed = cast(list[JsonObject], json.loads(output)["nftables"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable("nft answered with something else than its JSON; is it older than 1.0?") from error
    return [entry for entry in listed if "metainfo" not in entry]


def _of_table(listed: list[JsonObject], family: str, name: str) -> list[JsonObject] | None:
    found = []
    for entry in listed:
        for kind, body in entry.items():
            described = cast(JsonObject, body)
            if described.get("family") == family and described.get("name" if kind == "table" else "table") == name:
                found.append(entry)
    return found or None
