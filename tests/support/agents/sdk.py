"""An ACP agent written with the protocol's Python SDK, as other people's agents are: it streams, edits, asks first.

Run it as `python3 sdk.py [--log FILE] [--sessions FOLDER]`. It understands these lines, and echoes every other prompt:

- `edit FILE` appends a line to a file of its folder, `edit FILE: OLD => NEW` replaces text in it; it asks first, with
  the whole change;
- `read FILE`: tells what the file holds, at the pace of a model;
- `slow N`: N words, one a second;
- `fail`: an error of the protocol instead of an answer.

With `--sessions` it supports `session/load`. `--log` appends each message that it received, one JSON line each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import acp
from acp import schema
from acp.connection import StreamDirection, StreamEvent
from acp.interfaces import Client

OPTIONS = [
    schema.PermissionOption(option_id="once", name="Allow once", kind="allow_once"),
    schema.PermissionOption(option_id="reject", name="Reject", kind="reject_once"),
]
_COMMAND = re.compile(r"^\W*(?:please )?(edit|read|slow|fail)\b[:,]?[ \t]*(.*)$", re.M | re.I)
_PIECE_SECONDS, _THOUGHTFUL_SECONDS = 0.02, 0.25


@dataclass
class Session:
    """One conversation."""

    id: str
    cwd: Path
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    said: list[str] = field(default_factory=list)  # in the running turn
    busy: bool = False


class SdkAgent:
    """What the SDK calls when a message comes; what has no method here, the SDK refuses."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._sessions: dict[str, Session] = {}
        self._client: Client

    def on_connect(self, conn: Client) -> None:
        self._client = conn

    async def initialize(
        self,
        protocol_version: int,
        client_capabilities: schema.ClientCapabilities | None = None,
        client_info: schema.Implementation | None = None,
        **_: Any,
    ) -> schema.InitializeResponse:
        return schema.InitializeResponse(
            protocol_version=acp.PROTOCOL_VERSION,
            agent_capabilities=schema.AgentCapabilities(load_session=self._folder is not None),
            agent_info=schema.Implementation(name="sdk", version="1", title="A small agent"),
        )

    async def new_session(self, cwd: str, **_: Any) -> schema.NewSessionResponse:
        session = Session(f"sdk-{uuid.uuid4()}", Path(cwd))
        self._sessions[session.id] = session
        self._keep(session, "start", cwd)
        return schema.NewSessionResponse(session_id=session.id)

    async def load_session(self, cwd: str, session_id: str, **_: Any) -> schema.LoadSessionResponse:
        history = list(self._kept(session_id))
        if not history:
            raise acp.RequestError.resource_not_found(session_id)
        self._sessions[session_id] = Session(session_id, Path(cwd))
        for role, text in history:
            if role == "user":
                await self._client.session_update(session_id, acp.update_user_message_text(text))
            elif role == "agent":
                await self._client.session_update(session_id, acp.update_agent_message_text(text))
        return schema.LoadSessionResponse()

    async def cancel(self, session_id: str, **_: Any) -> None:
        if session := self._sessions.get(session_id):
            session.cancelled.set()

    async def prompt(self, session_id: str, prompt: list[Any], **_: Any) -> schema.PromptResponse:
        session = self._sessions.get(session_id)
        if session is None:
            raise acp.RequestError.resource_not_found(session_id)
        if session.busy:
            raise acp.RequestError.invalid_request({"reason": "a turn of this session is running: one at a time"})
        session.busy = True
        session.cancelled.clear()
        session.said.clear()
        text = "\n".join(block.text for block in prompt if isinstance(block, schema.TextContentBlock))
        self._keep(session, "user", text)
        acting = asyncio.create_task(self._act(session, text))
        stopping = asyncio.create_task(session.cancelled.wait())
        try:
            await asyncio.wait({acting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                return schema.PromptResponse(stop_reason="cancelled")
            await acting
            return schema.PromptResponse(stop_reason="end_turn")
        finally:
            acting.cancel()
            stopping.cancel()
            await asyncio.gather(acting, stopping, return_exceptions=True)
            session.busy = False
            self._keep(session, "agent", "".join(session.said))

    async def _act(self, session: Session, text: str) -> None:
        found = _COMMAND.search(text)
        match found[1].lower() if found else "":
            case "edit":
                assert found
                await self._edit(session, found[2].strip())
            case "read":
                assert found
                await self._read(session, found[2].strip(" ?."))
            case "slow":
                assert found
                for second in range(int(found[2] or 5)):
                    await self._say(session, f"{second + 1} ", 1.0)
            case "fail":
                raise acp.RequestError.internal_error({"reason": "asked to fail"})
            case _:
                await self._stream(session, text)

    async def _edit(self, session: Session, words: str) -> None:
        name, _, what = words.partition(":")
        path = session.cwd / name.strip()
        old, arrow, new = (part.strip() for part in what.partition("=>"))
        before = path.read_text() if path.exists() else ""
        if arrow and old not in before:
            await self._stream(session, f"I looked, but {name.strip()} does not hold “{old}”.")
            return
        after = before.replace(old, new) if arrow else f"{before}Edited by the agent.\n"
        await self._stream(session, f"I change {name.strip()}, if you allow it. ")
        number = f"call-{uuid.uuid4().hex[:12]}"
        change = acp.tool_diff_content(str(path), after, before or None)
        where = [schema.ToolCallLocation(path=str(path))]
        title = f"Edit {name.strip()}"
        start = acp.start_tool_call(
            number, title, kind="edit", status="pending", content=[change], locations=where
        )  # the same as in the question below
        await self._client.session_update(session.id, start)
        call = schema.ToolCallUpdate(
            tool_call_id=number, title=title, kind="edit", status="pending", content=[change], locations=where
        )
        answer = await self._client.request_permission(session_id=session.id, tool_call=call, options=OPTIONS)
        outcome = answer.outcome
        if isinstance(outcome, schema.AllowedOutcome) and outcome.option_id == "once":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(after)
            await self._client.session_update(session.id, acp.update_tool_call(number, status="completed"))
            await self._stream(session, f"Done: {name.strip()} is changed.")
        else:
            await self._client.session_update(session.id, acp.update_tool_call(number, status="failed"))
            await self._stream(session, "That was not allowed, so I changed nothing.")

    async def _read(self, session: Session, name: str) -> None:
        path = session.cwd / name
        if not path.is_file():
            await self._stream(session, f"There is no file {name} here.")
            return
        number = f"call-{uuid.uuid4().hex[:12]}"
        start = acp.start_tool_call(number, f"Read {name}", kind="read", status="in_progress")
        await self._client.session_update(session.id, start)
        text = path.read_text()
        await self._client.session_update(session.id, acp.update_tool_call(number, status="completed"))
        count = len(text.splitlines())
        told = f"I have read **{name}**. It has {count} lines, and they say:\n\n```\n{text}```\n\nThat is all."
        await self._stream(session, told, _THOUGHTFUL_SECONDS)

    async def _stream(self, session: Session, text: str, pause: float = _PIECE_SECONDS) -> None:
        for piece in re.findall(r"\S+\s*|\s+", text):
            await self._say(session, piece, pause)

    async def _say(self, session: Session, piece: str, pause: float) -> None:
        session.said.append(piece)
        await self._client.session_update(session.id, acp.update_agent_message_text(piece))
        await asyncio.sleep(pause)

    def _keep(self, session: Session, role: str, text: str) -> None:
        if self._folder:
            with (self._folder / f"{session.id}.jsonl").open("a") as file:
                file.write(json.dumps({"role": role, "text": text}) + "\n")

    def _kept(self, session_id: str) -> Iterator[tuple[str, str]]:
        path = self._folder / f"{Path(session_id).name}.jsonl" if self._folder else None
        if path and path.exists():
            for line in path.read_text().splitlines():
                one = json.loads(line)
                yield one["role"], one["text"]


def logger(log: Path) -> Callable[[StreamEvent], None]:
    def note(event: StreamEvent) -> None:
        if event.direction is StreamDirection.INCOMING:
            with log.open("a") as file:
                file.write(json.dumps(event.message) + "\n")

    return note


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--log", type=Path, help="append each message that was received")
    parser.add_argument("--sessions", type=Path, help="keep sessions in this folder, and so support session/load")
    given = parser.parse_args()
    if given.sessions:
        given.sessions.mkdir(parents=True, exist_ok=True)
    observers = [logger(given.log)] if given.log else []
    asyncio.run(acp.run_agent(cast(acp.Agent, SdkAgent(given.sessions)), observers=observers))


if __name__ == "__main__":
    main()
