"""An agent's lines, which may be anything, and ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ravebot.agents.model import LONGEST_STATUS, TurnId
from ravebot.agents.transports.acp import protocol
from ravebot.agents.transports.acp.protocol import (
    AgentAnswered,
    AgentAsks,
    AgentRequests,
    AgentStatus,
    AgentWords,
    Aside,
    Chosen,
    Heard,
    Junk,
    PermissionOption,
    read_line,
)

_WORDS = st.sampled_from(
    ["jsonrpc", "id", "method", "params", "update", "sessionUpdate", "sessionId", "content", "text", "type", "result",
     "error", "code", "message", "toolCall", "options", "optionId", "kind", "title", "2.0", "session/update",
     "session/request_permission", "agent_message_chunk", "tool_call", "allow_once", "\ud800", "\0"]
)  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS | st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
_MESSAGES = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0")},
    optional={
        "id": _VALUES,
        "method": st.just("session/update") | st.just("session/request_permission") | _VALUES,
        "params": st.fixed_dictionaries(
            {}, optional={"sessionId": _VALUES, "update": _VALUES, "toolCall": _VALUES, "options": st.lists(_VALUES)}
        )
        | _VALUES,
        "result": _VALUES,
        "error": _VALUES,
    },
)


def heard(**message: Any) -> Heard:
    return read_line(json.dumps({"jsonrpc": "2.0", **message}).encode())


def update(**fields: Any) -> Heard:
    return heard(method="session/update", params={"sessionId": "s", "update": fields})


@given(st.binary(max_size=300))
@example(b"[" * 200_000)
@example(b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b"}")
@example(b'{"a":' * 100_000)
@example(b"\xff\xfe{}")
@example(b"")
def test_any_bytes_are_read_without_an_error(line: bytes) -> None:
    assert isinstance(read_line(line), Heard)


@given(_MESSAGES)
@example({"jsonrpc": "2.0", "method": "session/update", "id": "\ud800"})
@example({"jsonrpc": "2.0", "id": "a\0b", "result": {}})
def test_any_message_is_read_and_what_it_says_can_be_stored(message: dict[str, Any]) -> None:
    found = read_line(json.dumps(message).encode())
    assert isinstance(found, Heard)
    for text in vars(found).values():
        if isinstance(text, str):
            assert "\0" not in text
            text.encode("utf-8")
    if isinstance(found, AgentAsks):
        assert len(found.title) <= LONGEST_STATUS
        assert protocol.asked(found.payload) is not None


@pytest.mark.parametrize(
    "line",
    [
        b"\xff",
        b'{"jsonrpc":"2.0","id":1,"result":{"x":"\xff"}}',
        b"hello",
        b"[1]",
        b"7",
        b'{"jsonrpc":"1.0","id":1,"result":{}}',
        b'{"jsonrpc":"2.0","jsonrpc":"2.0","id":1,"result":{}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"x":NaN}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"x":1e999}}',
        b'{"jsonrpc":"2.0","id":123456789012345678901,"result":{}}',
        b'{"jsonrpc":"2.0","id":true,"result":{}}',
        b'{"jsonrpc":"2.0","id":null,"result":{}}',
        b'{"jsonrpc":"2.0","id":1,"result":"done"}',
        b'{"jsonrpc":"2.0","method":["session/update"]}',
        b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":1,"update":{}}}',
        b"[" * 100_000,
        b'{"jsonrpc":"2.0","id":1,"result":{}}' + b" " * protocol.LONGEST_LINE,
    ],
)
def test_what_is_no_message_is_junk(line: bytes) -> None:
    assert isinstance(read_line(line), Junk)


def test_an_agents_words_and_what_it_does_are_read() -> None:
    text = {"type": "text", "text": "Hel\u0000lo\ud800"}
    assert update(sessionUpdate="agent_message_chunk", content=text) == AgentWords("s", "Hel\ufffdlo?")
    assert update(sessionUpdate="tool_call", title="Read\n a  file", toolCallId="1") == AgentStatus("s", "Read a file")
    assert update(sessionUpdate="agent_thought_chunk", content=text) == Aside()
    assert update(sessionUpdate="agent_message_chunk", content={"type": "image", "data": "x"}) == Aside()
    assert update(sessionUpdate="something of version 2") == Aside()


def test_answers_to_our_requests_are_read() -> None:
    assert heard(id=1017, result={"stopReason": "end_turn"}) == AgentAnswered(1017, {"stopReason": "end_turn"})
    assert heard(id=3, result=None) == AgentAnswered(3, {})
    assert heard(id=2, error={"code": -32000, "message": "Log in\nfirst"}) == AgentAnswered(
        2, {}, -32000, "Log in first"
    )


def test_a_method_that_we_do_not_offer_is_answered_so() -> None:
    found = heard(id="a-1", method="fs/read_text_file", params={"path": "/etc/passwd"})
    assert found == AgentRequests("a-1", "fs/read_text_file")
    assert json.loads(protocol.no_such_method("a-1")) == {
        "jsonrpc": "2.0",
        "id": "a-1",
        "error": {"code": -32601, "message": "ravebot offers no such method"},
    }


def asks(*kinds: str) -> AgentAsks:
    options = [{"optionId": f"my {kind}", "name": kind, "kind": kind} for kind in kinds]
    call = {"toolCallId": "1", "title": "Fetch a page", "kind": "fetch", "rawInput": {"url": "http://x"}}
    found = heard(id=7, method="session/request_permission", params={"toolCall": call, "options": options})
    assert isinstance(found, AgentAsks)
    return found


def test_only_an_option_for_this_once_is_ever_chosen() -> None:
    found = asks("allow_always", "allow_once", "reject_always", "reject_once")
    assert (found.kind, found.title) == ("fetch", "Fetch a page")
    assert protocol.choose(found.options, allow=True) == (Chosen.ALLOWED, "my allow_once")
    assert protocol.choose(found.options, allow=False) == (Chosen.REJECTED, "my reject_once")
    only_always = asks("allow_always", "reject_always").options
    assert protocol.choose(only_always, allow=True) == (Chosen.CANCELLED, "")
    assert protocol.choose(only_always, allow=False) == (Chosen.CANCELLED, "")


def test_what_is_asked_is_found_again_in_what_was_stored() -> None:
    found = asks("allow_once", "reject_once")
    assert protocol.asked(found.payload) == found
    assert found.options == (
        PermissionOption("my allow_once", "allow_once"),
        PermissionOption("my reject_once", "reject_once"),
    )
    assert json.loads(protocol.answer(found.rpc_id, Chosen.ALLOWED, "my allow_once"))["result"] == {
        "outcome": {"outcome": "selected", "optionId": "my allow_once"}
    }
    assert json.loads(protocol.answer(found.rpc_id, Chosen.CANCELLED))["result"] == {
        "outcome": {"outcome": "cancelled"}
    }
    assert protocol.asked("{}") is None


def test_the_same_turn_is_the_same_line_and_only_one() -> None:
    line = protocol.prompt(TurnId(17), "s-1", 'do "it"\nnow \u2028 é')
    assert line == protocol.prompt(TurnId(17), "s-1", 'do "it"\nnow \u2028 é')
    assert b"\n" not in line
    value = json.loads(line)
    assert (value["id"], value["method"]) == (1017, "session/prompt")
    assert value["params"] == {"sessionId": "s-1", "prompt": [{"type": "text", "text": 'do "it"\nnow \u2028 é'}]}


def test_neither_files_nor_terminals_are_offered() -> None:
    params = json.loads(protocol.initialize())["params"]
    assert params["protocolVersion"] == 1
    assert params["clientCapabilities"] == {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}


def test_what_an_agent_says_of_itself_is_read_whatever_it_is() -> None:
    found = protocol.capabilities(
        {
            "protocolVersion": 1,
            "agentCapabilities": {"loadSession": True},
            "authMethods": [{"id": "x", "name": "Log in"}, 7],
        }
    )
    assert (found.version, found.can_load, found.logins) == (1, True, ("Log in",))
    assert protocol.capabilities({"agentCapabilities": 7, "agentInfo": [], "authMethods": {}}).can_load is False
    assert protocol.session_of(AgentAnswered(2, {"sessionId": "x" * 501})) is None
    assert protocol.session_of(AgentAnswered(2, {"sessionId": "x\0"})) is None
