#!/usr/bin/python3
"""A little agent that speaks ACP and does what the prompt says. Needs only Python's standard library; runs in guests.

Each line of a prompt is one step: `say TEXT`, `clock` (when it got the prompt, and when it says so), `words N` (N
words, a message each), `wait SECONDS`, `do TITLE` (a tool call), `ask KIND TITLE` (a permission; says the answer),
`always KIND TITLE` (offers no "once"), `big N` (a permission with N characters), `unseen N` (the same, of characters
that can't be seen), `method NAME` (a request to the client), `get URL` (what is there, or why not; with its
environment's variables), `await URL` (the same, once it is there), `use TOOL JSON` (the tool by MCP),
`servers` (the MCP servers that it was told of),
`fail TEXT`, `stop REASON`, `die CODE`, `deaf` (never ends the turn, also when it is cancelled), `chatter` (the same,
and talks), `flood`, `endless`, `binary`, `junk N`, `raw JSON`.
Its arguments: `version=N`, `login`, `load`, `noload`, `mcp` (it can use MCP servers over HTTP), `mute`, `echo=NAME`
(says every prompt to that agent), `more=NAME` (the same, with more text each time).
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

MEMORY = os.path.expanduser("~/.scripted-agent-session")
cancelled = False
got_at = 0
numbers = iter(range(1, 10**9))
servers: object = None


def send(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def update(session: str, **fields: Any) -> None:
    send(method="session/update", params={"sessionId": session, "update": fields})


def say(session: str, text: str) -> None:
    update(session, sessionUpdate="agent_message_chunk", content={"type": "text", "text": text})


def lines() -> Iterator[dict[str, Any]]:
    data = b""
    while True:
        chunk = os.read(0, 65536)
        if not chunk:
            return
        data += chunk
        *whole, data = data.split(b"\n")
        for line in whole:
            yield json.loads(line)


INCOMING = lines()
LATER: list[dict[str, Any]] = []
AFTERWARDS: list[str] = []
OUTCOMES: list[str] = []


def receive() -> dict[str, Any] | None:
    return LATER.pop(0) if LATER else next(INCOMING, None)


def ask_client(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Send a request and wait for its answer; what else comes is kept, except a cancellation."""
    global cancelled
    number = f"q{next(numbers)}"
    send(id=number, method=method, params=params)
    kept: list[dict[str, Any]] = []
    while True:
        message = receive()
        if message is None:
            sys.exit(0)
        if message.get("id") == number and "method" not in message:
            LATER[:0] = kept
            return message
        if message.get("method") == "session/cancel":
            cancelled = True
        else:
            kept.append(message)


def permission(session: str, kind: str, title: str, kinds: Sequence[str], **more: Any) -> str:
    options = [{"optionId": f"{one}!", "name": one, "kind": one} for one in kinds]
    call = {"toolCallId": f"t{next(numbers)}", "title": title, "kind": kind, **more}
    answer = ask_client("session/request_permission", {"sessionId": session, "toolCall": call, "options": options})
    outcome = answer.get("result", {}).get("outcome", {})
    return str(outcome.get("optionId", outcome.get("outcome", "?"))).rstrip("!")


def nap(seconds: float) -> None:
    """Wait, unless the client cancels."""
    global cancelled
    until = time.monotonic() + seconds
    while time.monotonic() < until and not cancelled:
        if select.select([0], [], [], min(0.05, seconds))[0]:
            message = next(INCOMING, None)
            if message is None:
                sys.exit(0)
            if message.get("method") == "session/cancel":
                cancelled = True
            else:
                LATER.append(message)


def fetched(url: str) -> str:
    """What is there, or why not."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=20) as response:
            return str(response.read(10_000).decode())
    except (OSError, ValueError) as error:
        return f"not there: {error}"


def used(rest: str) -> str:
    """What a tool answers by MCP, in the words for models."""
    name, _, given = rest.partition(" ")
    asked = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": name, "arguments": json.loads(given)},
    }
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = urllib.request.Request(os.environ["RAVEBOT_MCP_URL"], json.dumps(asked).encode(), headers)
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=20) as response:
            return str(json.loads(response.read(100_000))["result"]["content"][0]["text"])
    except (OSError, ValueError) as error:
        return f"not there: {error}"


def step(session: str, line: str) -> dict[str, Any] | None:
    """One step of a prompt; returns why the turn ends here, if it does."""
    word, _, rest = line.partition(" ")
    once = ("allow_once", "allow_always", "reject_once")
    if word == "say":
        say(session, rest)
    elif word == "clock":
        say(session, f"{got_at} {time.time_ns()}")
    elif word == "words":
        for number in range(int(rest)):
            say(session, f"{number} ")
    elif word == "wait":
        nap(float(rest))
    elif word == "do":
        update(session, sessionUpdate="tool_call", toolCallId="t", title=rest, kind="read", status="in_progress")
    elif word == "ask":
        kind, _, title = rest.partition(" ")
        say(session, f"[{permission(session, kind, title, once, rawInput={'path': title})}]")
    elif word == "afterwards":
        AFTERWARDS.append(rest)
    elif word == "outcomes":
        say(session, " ".join(OUTCOMES))
    elif word == "always":
        kind, _, title = rest.partition(" ")
        say(session, f"[{permission(session, kind, title, ('allow_always', 'reject_always'))}]")
    elif word == "big":
        say(session, f"[{permission(session, 'edit', 'big', once, rawInput='x' * int(rest))}]")
    elif word == "unseen":
        say(session, f"[{permission(session, 'edit', 'unseen', once, rawInput=chr(0x202E) * int(rest))}]")
    elif word == "method":
        say(session, f"[{ask_client(rest, {})['error']['code']}]")
    elif word == "get":
        say(session, fetched(os.path.expandvars(rest)))
    elif word == "await":
        found = "not there"
        while found.startswith("not there"):
            time.sleep(0.05)
            found = fetched(os.path.expandvars(rest))
        say(session, found)
    elif word == "use":
        say(session, used(rest))
    elif word == "servers":
        say(session, json.dumps(servers))
    elif word == "fail":
        return {"error": {"code": -32603, "message": rest}}
    elif word == "stop":
        return {"result": {"stopReason": rest}}
    elif word == "die":
        sys.stderr.write("I die, as I was told.\n")
        sys.exit(int(rest))
    elif word == "deaf":
        time.sleep(1000)
    elif word == "chatter":
        while True:
            say(session, "x")
            time.sleep(0.002)
    elif word == "flood":
        while True:
            say(session, "x" * 8000)
    elif word == "endless":
        while True:
            os.write(1, b"y" * 65536)
    elif word == "binary":
        os.write(1, b"\xff\xfe\x00\x80 is not text\n")
    elif word == "junk":
        for _ in range(int(rest)):
            os.write(1, b"this is a log line\n")
    elif word == "raw":
        os.write(1, rest.encode() + b"\n")
    return None


def turn(message: dict[str, Any], echo: str = "", more: str = "") -> None:
    global cancelled, got_at
    cancelled, got_at = False, time.time_ns()
    session = message["params"]["sessionId"]
    text = "".join(block["text"] for block in message["params"]["prompt"])
    with open(MEMORY, "a") as file:
        file.write(json.dumps(text) + "\n")
    if echo or more:
        text = f"say @{echo or more} {text}{' more' if more else ''}"
    end: dict[str, Any] | None = None
    for line in text.splitlines():
        end = end or step(session, line)
        if cancelled or end:
            break
    send(id=message["id"], **({"result": {"stopReason": "cancelled"}} if cancelled else end or END))
    while AFTERWARDS:
        time.sleep(0.3)  # in another batch than the end
        OUTCOMES.append(permission(session, "edit", AFTERWARDS.pop(), ("allow_once", "reject_once")))


END = {"result": {"stopReason": "end_turn"}}


def main(arguments: Sequence[str]) -> None:
    global servers
    options = {name: value for name, _, value in (word.partition("=") for word in arguments)}
    while (message := receive()) is not None:
        method, number = message.get("method"), message.get("id")
        if "mute" in options:
            continue
        if method in ("session/new", "session/load"):
            servers = message["params"]["mcpServers"]
        if method == "initialize":
            version = int(options.get("version", "1"))
            methods = [{"id": "web", "name": "Log in with a browser"}] if "login" in options else []
            offers = {"loadSession": "load" in options, "mcpCapabilities": {"http": "mcp" in options}}
            send(id=number, result={"protocolVersion": version, "agentCapabilities": offers, "authMethods": methods})
        elif method == "session/new" and "login" in options:
            send(id=number, error={"code": -32000, "message": "Authentication required"})
        elif method == "session/new":
            open(MEMORY, "w").close()
            send(id=number, result={"sessionId": f"session-{os.getpid()}"})
        elif method == "session/load" and os.path.exists(MEMORY):
            with open(MEMORY) as file:
                for said in file:
                    say(message["params"]["sessionId"], f"replayed {said}")
            send(id=number, result=None)
        elif method == "session/prompt":
            turn(message, options.get("echo", ""), options.get("more", ""))
        elif number is not None and method:
            send(id=number, error={"code": -32601, "message": "no such method"})


if __name__ == "__main__":
    main(sys.argv[1:])
