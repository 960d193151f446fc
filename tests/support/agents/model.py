"""An OpenAI-compatible model on loopback that plays a script: no service, no key, and nothing but Python 3.11.

Run it as `python3 model.py [--port 8790] [--log FILE]`; it prints its port once it listens. What it does follows from
the last message of the person, by its first line that begins with one of these:

- `run COMMAND`: a call of the tool `bash`;
- `write FILE TEXT`: a call of `write`;
- `edit FILE: OLD => NEW`: a call of `read`, and when its result is there, a call of `edit`;
- `slow N`: N words, one a second;
- anything else: `Scripted answer N.`, where N counts the messages of people in this conversation.

After a tool's result it says how that went. It is strict, as such services are: unknown paths, models, roles and
fields of the wrong type are refused, and so are results of tools that it did not call, or that it has had already.
`--log` appends one JSON line a request.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]
MODEL = "scripted"
_ROLES = ("system", "developer", "user", "assistant", "tool")
_COMMAND = re.compile(r"^\W*(run|write|edit|slow)\b[:,]?[ \t]+(.+)$", re.M)
_LONGEST_BODY_BYTES = 16 * 1024**2
_WORD_SECONDS = 0.05


class Refused(Exception):
    """What is answered instead, in the form that OpenAI's API has for errors."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Script:
    """What the model says next. It knows which tool calls it has made, and in which order it was asked."""

    def __init__(self) -> None:
        self._calls: dict[str, str] = {}  # id: the tool's name
        self._lock = threading.Lock()

    def check(self, body: Any) -> None:
        """Raises Refused for a request that a service would not take."""
        if not isinstance(body, dict):
            raise Refused(400, "the body must be an object")
        if body.get("model") != MODEL:
            raise Refused(404, f"The model {body.get('model')!r} does not exist")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refused(400, "messages must be a list that is not empty")
        for key, kind in (("stream", bool), ("tools", list), ("temperature", (int, float)), ("max_tokens", int)):
            if key in body and not isinstance(body[key], kind):
                raise Refused(400, f"{key} has the wrong type")
        for tool in body.get("tools", []):
            if tool.get("type") != "function" or not isinstance(tool.get("function", {}).get("parameters"), dict):
                raise Refused(400, "a tool must be a function with parameters")
        self._check_order(messages)

    def _check_order(self, messages: list[Json]) -> None:
        open_calls: set[str] = set()
        for number, message in enumerate(messages):
            if message.get("role") not in _ROLES:
                raise Refused(400, f"messages[{number}].role is {message.get('role')!r}")
            if message["role"] == "tool":
                identity = message.get("tool_call_id")
                if identity not in open_calls:
                    raise Refused(400, f"messages[{number}] answers the tool call {identity!r}, which is not open")
                open_calls.discard(identity)
                continue
            if open_calls:
                raise Refused(400, f"messages[{number}] comes before the results of {', '.join(sorted(open_calls))}")
            for call in message.get("tool_calls") or []:
                with self._lock:
                    if self._calls.get(call.get("id")) != call.get("function", {}).get("name"):
                        raise Refused(400, f"messages[{number}] has a tool call that this model did not make")
                json.loads(call["function"]["arguments"])
                open_calls.add(call["id"])
        if open_calls:
            raise Refused(400, f"the results of {', '.join(sorted(open_calls))} are missing")

    def next(self, body: Json) -> tuple[str, Json | None]:
        """What it says, and the tool call that it makes then."""
        messages = body["messages"]
        tools = {tool["function"]["name"] for tool in body.get("tools", [])}
        asked = [message for message in messages if message["role"] == "user"]
        text = text_of(asked[-1]) if asked else ""
        if not tools:
            return "A scripted title", None
        found = _COMMAND.search(text)
        results = messages[len(messages) - 1 - messages[::-1].index(asked[-1]) + 1 :] if asked else []
        results = [message for message in results if message["role"] == "tool"]
        if found is None:
            return f"Scripted answer {len(asked)}.", None
        if found[1] == "slow":
            return " ".join(str(second + 1) for second in range(int(found[2].split()[0]))), None
        steps = list(calls(found[1], found[2].strip()))
        if len(results) < len(steps) and not (results and failed(results[-1])):
            name, arguments = steps[len(results)]
            if name not in tools:
                return f"I have no tool {name}.", None
            return "", self._call(name, arguments)
        return f"The tool said: {text_of(results[-1])[:200]}", None

    def _call(self, name: str, arguments: Json) -> Json:
        identity = f"call_{uuid.uuid4().hex[:16]}"
        with self._lock:
            self._calls[identity] = name
        return {"id": identity, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def calls(command: str, rest: str) -> Iterator[tuple[str, Json]]:
    """The tool calls of a command, by the names and fields that OpenCode's tools have."""
    if command == "run":
        yield "bash", {"command": rest, "description": "Runs what was asked for"}
    elif command == "write":
        name, _, text = rest.partition(" ")
        yield "write", {"filePath": f"/srv/merge-request/{name}" if name[0] != "/" else name, "content": f"{text}\n"}
    elif command == "edit":
        name, _, what = rest.partition(":")
        path = name if name.startswith("/") else f"/srv/merge-request/{name}"
        old, _, new = what.partition("=>")
        yield "read", {"filePath": path}
        yield "edit", {"filePath": path, "oldString": old.strip(), "newString": new.strip()}


def failed(result: Json) -> bool:
    return "rejected" in text_of(result) or "Error" in text_of(result)[:40]


def text_of(message: Json) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if part.get("type") == "text")


class Model(ThreadingHTTPServer):
    """Listens on 127.0.0.1; port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, port: int = 0, log: Path | None = None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script, self._log, self._lock = Script(), log, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def note(self, **what: Any) -> None:
        if self._log:
            with self._lock, self._log.open("a") as file:
                file.write(json.dumps(what) + "\n")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Model

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "tests"}]})
        else:
            self._refuse(Refused(404, f"there is no {self.path}"))

    def do_POST(self) -> None:
        try:
            body = self._body()
            self.server.script.check(body)
            text, call = self.server.script.next(body)
        except Refused as error:
            self.server.note(refused=error.message)
            self._refuse(error)
            return
        asked = [text_of(message) for message in body["messages"] if message["role"] == "user"]
        self.server.note(
            asked=asked[-1][:1000] if asked else "",
            people=len(asked),
            messages=len(body["messages"]),
            tools=sorted(tool["function"]["name"] for tool in body.get("tools", [])),
            said=text,
            call=call and call["function"]["name"],
        )
        pause = 1.0 if re.fullmatch(r"[\d ]+", text) else _WORD_SECONDS
        if body.get("stream"):
            self._stream(body, text, call, pause)
        else:
            self._answer(200, whole(body, text, call))

    def _body(self) -> Any:
        if self.path != "/v1/chat/completions":
            raise Refused(404, f"there is no {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= _LONGEST_BODY_BYTES:
            raise Refused(413, "a body of at most 16 MiB is needed, with its length")
        try:
            return json.loads(self.rfile.read(length))
        except ValueError as error:
            raise Refused(400, f"the body is no JSON: {error}") from error

    def _stream(self, body: Json, text: str, call: Json | None, pause: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        identity = f"chatcmpl-{uuid.uuid4().hex[:12]}"

        def event(data: Json | str) -> None:
            line = data if isinstance(data, str) else json.dumps(data)
            chunk = f"data: {line}\n\n".encode()
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")

        def delta(change: Json, finish: str | None = None) -> None:
            choice = {"index": 0, "delta": change, "finish_reason": finish}
            event({**head(identity, body, "chat.completion.chunk"), "choices": [choice]})

        delta({"role": "assistant", "content": ""})
        for word in re.findall(r"\S+\s*", text):
            delta({"content": word})
            time.sleep(pause)
        if call:
            delta({"tool_calls": [{"index": 0, **call}]})
        delta({}, "tool_calls" if call else "stop")
        if (body.get("stream_options") or {}).get("include_usage"):
            event({**head(identity, body, "chat.completion.chunk"), "choices": [], "usage": usage(body, text)})
        event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _refuse(self, error: Refused) -> None:
        kind = "invalid_request_error"
        self._answer(error.status, {"error": {"message": error.message, "type": kind, "param": None, "code": None}})

    def _answer(self, status: int, content: Json) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def head(identity: str, body: Json, kind: str) -> Json:
    return {"id": identity, "object": kind, "created": int(time.time()), "model": body["model"]}


def whole(body: Json, text: str, call: Json | None) -> Json:
    message = {"role": "assistant", "content": text, **({"tool_calls": [call]} if call else {})}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if call else "stop"}
    identity = f"chatcmpl-{uuid.uuid4().hex[:12]}"
    return {**head(identity, body, "chat.completion"), "choices": [choice], "usage": usage(body, text)}


def usage(body: Json, text: str) -> Json:
    """A token is four bytes here."""
    given, said = len(json.dumps(body["messages"])) // 4 + 1, len(text) // 4 + 1
    return {"prompt_tokens": given, "completion_tokens": said, "total_tokens": given + said}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8790)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    with Model(given.port, given.log) as model:
        print(model.server_port, flush=True)
        model.serve_forever()


if __name__ == "__main__":
    main()
