"""The Agent Client Protocol, version 1, as far as it is spoken here: an agent's lines read, and ours written.

Pure. Whatever bytes an agent sends, reading them gives one of the classes below and raises nothing.
https://agentclientprotocol.com/protocol/overview
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from typing import Any

from ravebot.agents.model import LONGEST_STATUS, TurnId

VERSION = 1
LONGEST_LINE = 1024 * 1024
LARGEST_QUESTION = 64 * 1024
"""Characters of a permission request's JSON; a larger one can't be shown whole, so it is refused."""
_LARGEST_NUMBER = 2**53
INITIALIZE, NEW_SESSION, LOAD_SESSION = 1, 2, 3
_FIRST_PROMPT = 1000
AUTH_REQUIRED = -32000
_NO_SUCH_METHOD = -32601
_ONCE = {True: "allow_once", False: "reject_once"}

RpcId = int | str


@dataclass(frozen=True)
class AgentWords:
    """The agent says something more to the person."""

    session: str
    text: str


@dataclass(frozen=True)
class AgentStatus:
    """What the agent is doing now."""

    session: str
    title: str


@dataclass(frozen=True)
class PermissionOption:
    """An answer that the agent offers; `kind` is allow_once, allow_always, reject_once or reject_always."""

    id: str
    kind: str


@dataclass(frozen=True)
class AgentAsks:
    """The agent wants a person's permission for a tool call. `payload`: the whole request, as canonical JSON."""

    rpc_id: RpcId
    kind: str
    title: str
    payload: str
    options: tuple[PermissionOption, ...]


@dataclass(frozen=True)
class AgentRequests:
    """The agent wants something of us that we do not offer."""

    rpc_id: RpcId
    method: str


@dataclass(frozen=True)
class AgentAnswered:
    """The answer to a request of ours: a result, or an error's code and text."""

    rpc_id: RpcId
    result: dict[str, Any]
    error_code: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Aside:
    """Something of the protocol that is of no interest here: thoughts, plans, modes, usage."""


@dataclass(frozen=True)
class Junk:
    """No message of the protocol."""

    why: str


Heard = AgentWords | AgentStatus | AgentAsks | AgentRequests | AgentAnswered | Aside | Junk


def read_line(line: bytes) -> Heard:
    """What one line of an agent's output says."""
    if len(line) > LONGEST_LINE:
        return Junk("longer than any line that is read")
    try:
        value = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse,
            parse_float=_number,
            parse_int=_whole,
        )
    except UnicodeDecodeError:
        return Junk("not UTF-8")
    except RecursionError:
        return Junk("nested too deeply")
    except ValueError as error:
        return Junk(f"not JSON that can be read: {_bounded(str(error), 100)}")
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        return Junk("not a message of JSON-RPC 2.0")
    return _message(value)


def _message(value: dict[str, Any]) -> Heard:
    method, params = value.get("method"), value.get("params")
    if method is None:
        return _answer(value)
    if not isinstance(method, str):
        return Junk("a method that is not a text")
    if "id" not in value:
        return _update(params) if method == "session/update" else Aside()
    rpc_id = _rpc_id(value)
    if rpc_id is None:
        return Junk("a request whose id is neither a text nor a number")
    if method != "session/request_permission":
        return AgentRequests(rpc_id, _bounded(method, 100))
    return _asks(rpc_id, params)


def _rpc_id(value: dict[str, Any]) -> RpcId | None:
    found = value.get("id")
    if isinstance(found, str):  # an answer repeats it, so it is taken as it is or not at all
        return found if len(found) <= 200 and _clean(found) == found else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _answer(value: dict[str, Any]) -> Heard:
    rpc_id = _rpc_id(value)
    if rpc_id is None:
        return Junk("an answer to nothing")
    error = value.get("error")
    if isinstance(error, dict):
        code, text = error.get("code"), error.get("message")
        number = code if isinstance(code, int) and not isinstance(code, bool) else 0
        return AgentAnswered(rpc_id, {}, number, _bounded(text, 300) if isinstance(text, str) else "")
    result = value.get("result")
    if "result" not in value or not (result is None or isinstance(result, dict)):
        return Junk("an answer without a result")
    return AgentAnswered(rpc_id, result or {})


def _update(params: object) -> Heard:
    """https://agentclientprotocol.com/protocol/prompt-turn"""
    if not isinstance(params, dict) or not isinstance(params.get("update"), dict):
        return Junk("an update of nothing")
    session, update = params.get("sessionId"), params["update"]
    if not isinstance(session, str):
        return Junk("an update of no session")
    match update.get("sessionUpdate"):
        case "agent_message_chunk":
            content = update.get("content")
            if not isinstance(content, dict):
                return Junk("words without content")
            text = content.get("text")
            if content.get("type") == "text" and isinstance(text, str):
                return AgentWords(session, _clean(text))
        case "tool_call" | "tool_call_update":
            title = update.get("title")
            if isinstance(title, str) and title.strip():
                return AgentStatus(session, _bounded(title, LONGEST_STATUS))
    return Aside()


def _asks(rpc_id: RpcId, params: object) -> Heard:
    """https://agentclientprotocol.com/protocol/tool-calls#requesting-permission"""
    call = params.get("toolCall") if isinstance(params, dict) else None
    options = params.get("options") if isinstance(params, dict) else None
    if not isinstance(params, dict) or not isinstance(call, dict) or not isinstance(options, list):
        return AgentRequests(rpc_id, "session/request_permission without a tool call")
    offered = [
        PermissionOption(option["optionId"], option["kind"])
        for option in options[:50]
        if isinstance(option, dict)
        and isinstance(option.get("optionId"), str)
        and len(option["optionId"]) <= 500
        and isinstance(option.get("kind"), str)
    ]
    kind, title = call.get("kind"), call.get("title")
    return AgentAsks(
        rpc_id,
        kind if isinstance(kind, str) and len(kind) <= 50 else "other",
        _bounded(title, LONGEST_STATUS) if isinstance(title, str) and title.strip() else "a tool call without a title",
        _dump({"id": rpc_id, "params": params}),
        tuple(offered),
    )


def initialize() -> bytes:
    return _request(
        INITIALIZE,
        "initialize",
        {
            "protocolVersion": VERSION,
            "clientCapabilities": {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False},
            "clientInfo": {"name": "ravebot", "version": version("ravebot")},
        },
    )


def new_session(folder: str, mcp_url: str = "") -> bytes:
    return _request(NEW_SESSION, "session/new", {"cwd": folder, "mcpServers": _mcp_servers(mcp_url)})


def load_session(folder: str, session: str, mcp_url: str = "") -> bytes:
    known: dict[str, object] = {"cwd": folder, "mcpServers": _mcp_servers(mcp_url), "sessionId": session}
    return _request(LOAD_SESSION, "session/load", known)


def _mcp_servers(url: str) -> list[object]:
    """https://agentclientprotocol.com/protocol/session-setup#http-transport"""
    return [{"type": "http", "name": "ravebot", "url": url, "headers": []}] if url else []


def prompt(turn_id: TurnId, session: str, text: str) -> bytes:
    return _request(
        prompt_id(turn_id), "session/prompt", {"sessionId": session, "prompt": [{"type": "text", "text": text}]}
    )


def prompt_id(turn_id: TurnId) -> int:
    """The id of a turn's request; no other request has it."""
    return _FIRST_PROMPT + turn_id


def cancel(session: str) -> bytes:
    return _line({"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": session}})


class Chosen(StrEnum):
    """How a permission request is answered."""

    ALLOWED = "allowed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"  # also when the agent offers no answer for only this once


def choose(options: Sequence[PermissionOption], *, allow: bool) -> tuple[Chosen, str]:
    """The option to answer with, and its id: only ever one that is for this once."""
    for option in options:
        if option.kind == _ONCE[allow]:
            return (Chosen.ALLOWED if allow else Chosen.REJECTED), option.id
    return Chosen.CANCELLED, ""


def answer(rpc_id: RpcId, chosen: Chosen, option_id: str = "") -> bytes:
    """The answer to a permission request."""
    cancelled = chosen is Chosen.CANCELLED
    outcome = {"outcome": "cancelled"} if cancelled else {"outcome": "selected", "optionId": option_id}
    return _line({"jsonrpc": "2.0", "id": rpc_id, "result": {"outcome": outcome}})


def no_such_method(rpc_id: RpcId) -> bytes:
    """The answer to a request for something that we do not offer."""
    error = {"code": _NO_SUCH_METHOD, "message": "ravebot offers no such method"}
    return _line({"jsonrpc": "2.0", "id": rpc_id, "error": error})


def asked(payload: str) -> AgentAsks | None:
    """The permission request whose payload was stored."""
    try:
        value = json.loads(payload)
        found = _asks(value["id"], value["params"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, AgentAsks) else None


@dataclass(frozen=True)
class Capabilities:
    """What an agent's answer to `initialize` says."""

    version: object
    can_load: bool
    name: str = ""
    logins: tuple[str, ...] = ()
    mcp_http: bool = False


def capabilities(result: dict[str, Any]) -> Capabilities:
    offers, info, methods = result.get("agentCapabilities"), result.get("agentInfo"), result.get("authMethods")
    can_load = isinstance(offers, dict) and offers.get("loadSession") is True
    mcp = offers.get("mcpCapabilities") if isinstance(offers, dict) else None
    name = info.get("name") if isinstance(info, dict) else None
    names = [one.get("name") for one in methods[:10] if isinstance(one, dict)] if isinstance(methods, list) else []
    return Capabilities(
        result.get("protocolVersion"),
        can_load,
        _bounded(name, 60) if isinstance(name, str) else "",
        tuple(_bounded(one, 60) for one in names if isinstance(one, str)),
        isinstance(mcp, dict) and mcp.get("http") is True,
    )


def session_of(answered: AgentAnswered) -> str | None:
    """The session in the answer to `session/new`."""
    found = answered.result.get("sessionId")
    return found if isinstance(found, str) and 0 < len(found) <= 500 and found == _clean(found) else None


def _request(rpc_id: int, method: str, params: dict[str, object]) -> bytes:
    return _line({"jsonrpc": "2.0", "id": rpc_id, "method": method, "params": params})


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode()


def _dump(value: object) -> str:
    return _clean(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def _clean(text: str) -> str:
    """Without what a database or a homeserver takes offence at: halves of surrogate pairs, and NUL."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


def _bounded(text: str, most: int) -> str:
    short = " ".join(_clean(text[: 4 * most]).split())
    return short if len(short) <= most else f"{short[: most - 1]}…"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise ValueError for a key that is there twice: readers differ in which one they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no number of JSON")


def _number(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError("a number is too large")
    return found


def _whole(text: str) -> int:
    if len(text) > 20 or abs(found := int(text)) > _LARGEST_NUMBER:
        raise ValueError("a number is too large")
    return found
