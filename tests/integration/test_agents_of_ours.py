"""The agents and the model that other tests use, each as a process: they do what tests rely on, and are strict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import model, plain, sdk
from tests.support.agents.talk import Talk

pytestmark = pytest.mark.integration

PROGRAMS = {"plain": plain.__file__, "sdk": sdk.__file__}
# acplint 0.1.0 sends the prompt as `content`, and wants the protocol's version as a text and `agentMessageChunk`. ACP's
# schema has `prompt`, a whole number and `agent_message_chunk`; the SDK's own agent fails the same checks.
WRONG_IN_ACPLINT = {
    "initialize_v1",
    "protocol_version_returned",
    "schema_initialize",
    "session_update_received",
    "agent_message_chunk_received",
    "prompt_stop_reason",
}


@pytest.fixture(params=sorted(PROGRAMS))
def command(request: pytest.FixtureRequest) -> list[str]:
    return [sys.executable, PROGRAMS[request.param]]


def test_an_agent_streams_in_pieces_and_keeps_what_it_received(command: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Talk([*command, "--log", str(log)], tmp_path) as talk:
        session = talk.begin()
        assert talk.ask(session, "one two three")["result"] == {"stopReason": "end_turn"}
        assert talk.pieces == ["one ", "two ", "three"]
        methods = [json.loads(line)["method"] for line in log.read_text().splitlines()]
        assert methods == ["initialize", "session/new", "session/prompt"]


def test_an_edit_is_asked_for_with_the_whole_change_and_made_only_when_allowed(
    command: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text("<h1>Hello</h1>\n<p>More</p>\n")
    with Talk(command, tmp_path) as talk:
        session = talk.begin()
        talk.allow = lambda _: "reject"
        talk.ask(session, "please edit page.html: Hello => Good day")
        assert page.read_text() == "<h1>Hello</h1>\n<p>More</p>\n"
        talk.allow = lambda _: "once"
        talk.ask(session, "Alice says:\nedit page.html: Hello => Good day")
        assert page.read_text() == "<h1>Good day</h1>\n<p>More</p>\n"
        [_, asked] = talk.questions
        assert asked["toolCall"]["kind"] == "edit"
        (change,) = asked["toolCall"]["content"]
        assert change["path"] == str(page)
        assert (change["oldText"], change["newText"]) == ("<h1>Hello</h1>\n<p>More</p>\n", page.read_text())


def test_a_cancelled_turn_ends_as_cancelled_also_while_a_question_is_open(command: list[str], tmp_path: Path) -> None:
    with Talk(command, tmp_path) as talk:
        session = talk.begin()
        for prompt, sign in (("slow 60", "session/update"), ("edit a.txt", "session/request_permission")):
            number = talk.start(session, prompt)
            talk.until(lambda line: line.get("method") == sign)  # noqa: B023 - called at once
            talk.send(method="session/cancel", params={"sessionId": session})
            answer = talk.until(lambda line: line.get("id") == number)  # noqa: B023
            assert answer["result"]["stopReason"] == "cancelled"
        assert not (tmp_path / "a.txt").exists()


def test_a_second_prompt_in_a_running_turn_is_an_error(command: list[str], tmp_path: Path) -> None:
    with Talk(command, tmp_path) as talk:
        session = talk.begin()
        talk.start(session, "slow 60")
        talk.until(lambda line: line.get("method") == "session/update")
        assert talk.ask(session, "and this")["error"]["code"] == plain.INVALID_REQUEST


def test_a_session_is_loaded_by_a_new_process_where_sessions_are_kept(command: list[str], tmp_path: Path) -> None:
    keeping = [*command, "--sessions", str(tmp_path / "sessions")]
    with Talk(keeping, tmp_path) as talk:
        session = talk.begin()
        talk.ask(session, "remember the milk")
    with Talk(keeping, tmp_path) as talk:
        answer = talk.call("initialize", protocolVersion=1, clientCapabilities={})
        assert answer["result"]["agentCapabilities"]["loadSession"] is True
        assert "error" in talk.call("session/load", sessionId="another", cwd=str(tmp_path), mcpServers=[])
        assert "result" in talk.call("session/load", sessionId=session, cwd=str(tmp_path), mcpServers=[])
        roles = [(update["sessionUpdate"], update["content"]["text"]) for update in talk.updates]
        assert roles == [("user_message_chunk", "remember the milk"), ("agent_message_chunk", "remember the milk")]
        assert talk.ask(session, "again")["result"]["stopReason"] == "end_turn"
    with Talk(command, tmp_path) as talk:
        answer = talk.call("initialize", protocolVersion=1, clientCapabilities={})
        assert not answer["result"]["agentCapabilities"].get("loadSession")
        assert "error" in talk.call("session/load", sessionId=session, cwd=str(tmp_path), mcpServers=[])


def test_the_plain_agent_makes_the_mischief_that_it_is_asked_for(tmp_path: Path) -> None:
    with Talk([sys.executable, plain.__file__], tmp_path) as talk:
        session = talk.begin()
        talk.ask(session, "html")
        assert len(talk.said) > 60_000
        talk.ask(session, "invalid utf-8")
        broken = [line for line in talk.lines if isinstance(line, bytes)]
        assert len(broken) == 1
        assert b"\xff\xfe" in broken[0]
        talk.allow = lambda _: "once"
        talk.ask(session, "huge permission 2000000")
        assert len(json.dumps(talk.questions[-1])) > 2_000_000
        answer = talk.ask(session, "read through client")
        assert answer["result"] == {"stopReason": "end_turn"}
        assert talk.ask(session, "fail")["error"]["code"] == plain.FAILED
        assert talk.ask(session, "flood 8")["result"]["stopReason"] == "end_turn"
        assert len(talk.said) > 8 * 1000 * 1024
        talk.start(session, "endless line 1")
        with pytest.raises(TimeoutError):
            talk.until(lambda _: False, 1)
    with Talk([sys.executable, plain.__file__], tmp_path) as talk:
        talk.start(talk.begin(), "crash 9")
        with pytest.raises(EOFError, match="with 9"):
            talk.until(lambda _: False)
        assert talk.said == "About to end. "


def test_an_agent_that_never_answers_does_not_hear_a_cancellation_either(tmp_path: Path) -> None:
    with Talk([sys.executable, plain.__file__], tmp_path) as talk:
        session = talk.begin()
        talk.start(session, "never answer")
        talk.until(lambda line: line.get("method") == "session/update")
        talk.send(method="session/cancel", params={"sessionId": session})
        with pytest.raises(TimeoutError):
            talk.until(lambda _: False, 1)


def test_agents_of_the_sdk_need_a_pipe_as_their_standard_output_and_end_at_once_with_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, sdk.__file__], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, timeout=30
        )
    assert done.returncode == 1
    assert b"Pipe transport is" in done.stderr


def test_acplint_finds_nothing_but_what_it_gets_wrong_itself(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-c", "from acplint.cli import main; raise SystemExit(main())",
            "--agent", command[0], "--agent-args", command[1], "--cwd", str(tmp_path), "--timeout", "5",
            "--output", "json", "--categories", "initialization", "session_lifecycle", "cancel", "stress",
            "schema_validation",
        ],
        capture_output=True, text=True, timeout=60, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    report = json.loads(done.stdout)
    results = {test["name"]: test["status"] for test in report["results"]}
    assert len(results) >= 18, results
    assert {name for name, status in results.items() if status != "PASS"} <= WRONG_IN_ACPLINT, done.stdout


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[str]:
    """The model's address; its log is `model.log`."""
    process = subprocess.Popen(
        [sys.executable, model.__file__, "--port", "0", "--log", str(tmp_path / "model.log")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    process.kill()
    process.communicate()


def _post(url: str, **body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


TOOLS = [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}]


def test_the_model_calls_a_tool_and_takes_its_result_once(scripted: str) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "run echo hi"}]
    status, answer = _post(scripted, model=model.MODEL, messages=messages, tools=TOOLS)
    assert status == 200
    said = answer["choices"][0]["message"]
    (call,) = said["tool_calls"]
    assert json.loads(call["function"]["arguments"])["command"] == "echo hi"
    result = {"role": "tool", "tool_call_id": call["id"], "content": "hi"}
    messages += [said, result]
    _, answer = _post(scripted, model=model.MODEL, messages=messages, tools=TOOLS)
    assert answer["choices"][0]["message"]["content"] == "The tool said: hi"
    assert answer["usage"]["total_tokens"] > 0
    assert _post(scripted, model=model.MODEL, messages=[*messages, result], tools=TOOLS)[0] == 400


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"model": "another", "messages": [{"role": "user", "content": "x"}]}),
        (400, {"model": model.MODEL, "messages": []}),
        (400, {"model": model.MODEL, "messages": [{"role": "robot", "content": "x"}]}),
        (400, {"model": model.MODEL, "messages": [{"role": "tool", "tool_call_id": "made-up", "content": "x"}]}),
        (400, {"model": model.MODEL, "messages": [{"role": "user", "content": "x"}], "stream": "yes"}),
    ],
)
def test_the_model_refuses_what_a_service_would_refuse(scripted: str, status: int, body: dict[str, Any]) -> None:
    answered, error = _post(scripted, **body)
    assert answered == status
    assert error["error"]["message"]
