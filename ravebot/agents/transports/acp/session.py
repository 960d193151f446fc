"""One agent's program, connected: what it says, line by line, and its session, begun or loaded again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ravebot.agents.transports.acp import protocol
from ravebot.agents.transports.acp.lines import Allowance, Bucket, LineReader
from ravebot.agents.transports.acp.protocol import (
    AUTH_REQUIRED,
    INITIALIZE,
    LOAD_SESSION,
    NEW_SESSION,
    AgentAnswered,
    AgentAsks,
    AgentRequests,
    Capabilities,
    Chosen,
    Heard,
    Junk,
    RpcId,
)
from ravebot.agents.transports.acp.stdio import Attached, Given, ProgramEnd
from ravebot.errors import GuestError, RavebotError, Unavailable
from ravebot.sandboxes.model import CODE_FOLDER

SETUP_SECONDS = 300.0
"""How long an agent may take until it has a session; emulated on a busy host a large one takes four minutes."""
_LINES_PER_SECOND, _LINES_AT_ONCE = 1000, 4000
_BATCH_BYTES = 128 * 1024
_SLICE = 50
"""Lines that are read before the event loop may do something else."""
_LONG_LINE = 32 * 1024
"""Reading a line of a megabyte can take half a second: a longer one than this is read in a thread."""


class AgentUnusable(RavebotError):
    """The agent can't be talked to as it is configured: a person must do what the text says."""


class ProgramEnded(GuestError):
    """The agent's program has ended."""

    def __init__(self, end: ProgramEnd) -> None:
        self.end = end
        how = "" if end.code is None else f" with code {end.code}"
        said = f", after it printed: {' / '.join(end.errors)[-600:].rstrip('.')}" if any(end.errors) else ""
        super().__init__(f"its program ended{how}{said}")


@dataclass(frozen=True)
class BegunSession:
    """What the agent answered: its session, whether it can load one again, and whether it remembers an earlier one."""

    session: str
    can_load: bool
    remembers: bool


@dataclass
class AgentSession:
    """Reads an agent's lines and gives it ours; one task uses it."""

    attached: Attached
    reader: LineReader
    allowance: Allowance = field(default_factory=Allowance)
    _heard: deque[tuple[int, Heard]] = field(default_factory=deque)
    _bucket: Bucket = field(default_factory=lambda: Bucket(_LINES_PER_SECOND, _LINES_AT_ONCE))

    def next_turn(self) -> None:
        self.allowance = Allowance()

    async def heard(self) -> list[tuple[int, Heard]]:
        """What came since, each with the offset behind it; empty when nothing did. Raises AgentBreaksLimits."""
        found: list[tuple[int, Heard]] = []
        read = 0
        while read < _BATCH_BYTES and (piece := self.attached.take()):
            read += len(piece)
            self.allowance.read(len(piece))
            for number, (offset, line) in enumerate(self.reader.feed(piece), 1):
                if line.strip():
                    one = await _read(line)
                    if isinstance(one, Junk):
                        self.allowance.is_junk()
                    found.append((offset, one))
                if number % _SLICE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        if pause := self._bucket.take(len(found)):
            await asyncio.sleep(min(pause, 1.0))
        return found

    async def give(self, key: str, line: bytes) -> None:
        """Give a line under a key. Raises Unavailable, or ProgramEnded."""
        given = await self.attached.give(key, line)
        if given is not Given.OK:
            raise await self.refusal(given)

    async def refusal(self, given: Given) -> RavebotError:
        """Why the guest did not take a line."""
        if given is Given.FULL:
            return Unavailable("the guest could not store a line for its agent: its disk is full")
        return ProgramEnded(await self._ended())

    async def kill(self, patience_seconds: float) -> ProgramEnd:
        """End the agent's program; what it says meanwhile is dropped. Raises Unavailable."""
        attached, loop = self.attached, asyncio.get_running_loop()
        until = loop.time() + patience_seconds
        await attached.kill()
        while attached.end is None:
            attached.changed.clear()
            while attached.take():
                pass
            if attached.is_over or loop.time() > until:
                raise Unavailable("the agent's program could not be ended")
            await attached.wait(1.0)
        return attached.end

    async def answer(self, offset: int, rpc_id: RpcId, chosen: Chosen, option_id: str = "") -> None:
        """Answer a request that was read up to that offset; the same request is answered once."""
        await self.give(f"at-{offset}", protocol.answer(rpc_id, chosen, option_id))

    async def refuse(self, offset: int, request: AgentRequests) -> None:
        """Answer a request for something that we do not offer."""
        await self.give(f"at-{offset}", protocol.no_such_method(request.rpc_id))

    async def drop(self) -> int | None:
        """Read and drop what the agent says while it has nothing to say; returns the offset behind it."""
        before = self.reader.offset
        for offset, one in (*self._heard, *await self.heard()):
            await self._decline(offset, one)
        self._heard.clear()
        return self.reader.offset if self.reader.offset != before else None

    async def begin(self, earlier: str, wanted: Callable[[], bool], mcp_url: str = "") -> BegunSession | None:
        """Have the agent begin a session, or load the `earlier` one if it can; None when that is not `wanted` any more.

        `mcp_url`: of an MCP server that it is told of, if it says that it can use one.
        Raises AgentUnusable, ProgramEnded, Unavailable, AgentBreaksLimits.
        """
        until = asyncio.get_running_loop().time() + SETUP_SECONDS
        await self.give("init", protocol.initialize())
        first = await self._the(INITIALIZE, wanted, until)
        if first is None:
            return None
        offers = protocol.capabilities(first.result)
        _check(first, offers)
        mcp_url = mcp_url if offers.mcp_http else ""
        if earlier and offers.can_load:
            await self.give("load", protocol.load_session(CODE_FOLDER, earlier, mcp_url))
            loaded = await self._the(LOAD_SESSION, wanted, until)
            if loaded is None:
                return None
            if loaded.error_code is None:
                return BegunSession(earlier, True, True)
        await self.give("new", protocol.new_session(CODE_FOLDER, mcp_url))
        answered = await self._the(NEW_SESSION, wanted, until)
        if answered is None:
            return None
        if answered.error_code == AUTH_REQUIRED:
            ways = f" ({', '.join(offers.logins)})" if offers.logins else ""
            raise AgentUnusable(
                f"The agent wants a login first{ways}, and none can be typed here: give it what it needs in the "
                "image or in agents[].acp.environment."
            )
        session = protocol.session_of(answered)
        if session is None:
            raise AgentUnusable(f"The agent began no session: {answered.error or 'its answer had no sessionId'}.")
        return BegunSession(session, offers.can_load, False)

    async def _the(self, rpc_id: int, wanted: Callable[[], bool], until: float) -> AgentAnswered | None:
        """The agent's answer to that request of ours; None when it is not wanted any more."""
        loop = asyncio.get_running_loop()
        while wanted():
            while self._heard:
                offset, one = self._heard.popleft()
                if isinstance(one, AgentAnswered) and one.rpc_id == rpc_id:
                    return one
                await self._decline(offset, one)
            if loop.time() > until:
                raise Unavailable(f"the agent had no session within {SETUP_SECONDS:g} s")
            self._heard.extend(await self.heard())
            if not self._heard:
                await self.more(1.0)
        return None

    async def more(self, timeout_seconds: float = 30.0) -> None:
        """Wait for more output, or a wake-up. Raises ProgramEnded, or why the connection ended."""
        attached = self.attached
        attached.changed.clear()
        if attached.has_output:
            return
        if attached.is_read:
            assert attached.end
            raise ProgramEnded(attached.end)
        if attached.is_over:
            raise attached.failure()
        await attached.wait(timeout_seconds)

    async def _decline(self, offset: int, one: Heard) -> None:
        if isinstance(one, AgentAsks):
            await self.answer(offset, one.rpc_id, Chosen.CANCELLED)
        elif isinstance(one, AgentRequests):
            await self.refuse(offset, one)

    async def _ended(self) -> ProgramEnd:
        for _ in range(50):
            if self.attached.end is not None:
                return self.attached.end
            await asyncio.sleep(0.1)
        return ProgramEnd(None, 0)


async def _read(line: bytes) -> Heard:
    return protocol.read_line(line) if len(line) <= _LONG_LINE else await asyncio.to_thread(protocol.read_line, line)


def _check(first: AgentAnswered, offers: Capabilities) -> None:
    if first.error_code is not None:
        raise AgentUnusable(f"The agent does not begin: {first.error or f'error {first.error_code}'}.")
    if offers.version != protocol.VERSION or isinstance(offers.version, bool):
        raise AgentUnusable(
            f"The agent speaks version {str(offers.version)[:20]} of the Agent Client Protocol, but ravebot speaks "
            f"{protocol.VERSION}: put a version of the agent that speaks {protocol.VERSION} into the image."
        )
