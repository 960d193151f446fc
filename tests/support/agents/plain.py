"""An ACP agent in one file of plain Python, which does what a prompt's line says: `echo`, `edit`, `slow` … or mischief.

Run it as `python3 plain.py [--log FILE] [--sessions FOLDER] [--no-load]`. `SCRIPT` lists what it understands; every
other prompt is echoed. It is strict where a client could be wrong: a second prompt in a running turn is an error, and
so are a relative `cwd` and methods it does not know. `--log` appends every line that it received, as it came, so that
a test can count them. It needs nothing but Python 3.11, so it runs in any guest that has one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

PARSE_ERROR, INVALID_REQUEST, NO_SUCH_METHOD, INVALID_PARAMS, FAILED = -32700, -32600, -32601, -32602, -32603
OPTIONS = (
    {"optionId": "once", "name": "Allow once", "kind": "allow_once"},
    {"optionId": "always", "name": "Always allow", "kind": "allow_always"},
    {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
)
HTML = '<script>alert("from the agent")</script><img src=x onerror=alert(1)><h1>Not a heading</h1>\n'
ANSI = "\x1b[2J\x1b[31mred\x1b[0m \x1b]0;a title\x07 \x9b31m \u202egnp.exe \u200b\x00"


class RpcError(Exception):
    """What is answered instead of a result."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Cancelled(Exception):
    """The client has cancelled this turn."""


class Wire:
    """Standard output, one JSON line a message; and what this agent has asked the client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, Json] = {}
        self._answered = threading.Condition()
        self._asked = 0

    def raw(self, data: bytes) -> None:
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]

    def send(self, **message: Any) -> None:
        self.raw(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def ask(self, method: str, params: Json, is_cancelled: Callable[[], bool]) -> Json:
        """The client's whole answer. Raises Cancelled when the turn is cancelled before it has come."""
        self._asked += 1
        number = f"ask-{self._asked}"
        self.send(id=number, method=method, params=params)
        with self._answered:
            while number not in self._answers:
                if is_cancelled():
                    raise Cancelled
                self._answered.wait(0.1)
            return self._answers.pop(number)

    def answered(self, message: Json) -> None:
        with self._answered:
            self._answers[str(message["id"])] = message
            self._answered.notify_all()


class Session:
    """One conversation as this agent keeps it: in a file, if it has a folder for that."""

    def __init__(self, identity: str, cwd: str, folder: Path | None) -> None:
        self.id, self.cwd = identity, Path(cwd)
        self._file = folder / f"{identity}.jsonl" if folder else None
        self.turn: Turn | None = None

    def said(self, role: str, text: str) -> None:
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps({"role": role, "text": text}) + "\n")

    def history(self) -> Iterator[tuple[str, str]]:
        if self._file and self._file.exists():
            for line in self._file.read_text().splitlines():
                one = json.loads(line)
                yield one["role"], one["text"]


class Turn:
    """One prompt, until its answer ends; a thread of its own, so that a cancellation is heard meanwhile."""

    def __init__(self, wire: Wire, session: Session, number: Any, text: str) -> None:
        self.wire, self.session, self._number, self._text = wire, session, number, text
        self._cancelled = threading.Event()
        self._said: list[str] = []
        self.deaf = False  # to a cancellation

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def cancel(self) -> None:
        self._cancelled.set()

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set() and not self.deaf

    def _run(self) -> None:
        session = self.session
        session.said("user", self._text)
        try:
            reason = perform(self, self._text) or "end_turn"
        except Cancelled:
            reason = "cancelled"
        except (RpcError, OSError, ValueError) as raised:
            session.turn = None
            error = raised if isinstance(raised, RpcError) else RpcError(FAILED, str(raised))
            self.wire.send(id=self._number, error={"code": error.code, "message": error.message})
            return
        session.said("agent", "".join(self._said))
        session.turn = None
        self.wire.send(id=self._number, result={"stopReason": reason})

    # What actions are made of.

    def update(self, what: str, **more: Any) -> None:
        if self.is_cancelled():
            raise Cancelled
        update = {"sessionUpdate": what, **more}
        self.wire.send(method="session/update", params={"sessionId": self.session.id, "update": update})

    def say(self, text: str, kind: str = "agent_message_chunk") -> None:
        if kind == "agent_message_chunk":
            self._said.append(text)
        self.update(kind, content={"type": "text", "text": text})

    def stream(self, text: str, pause: float = 0.02) -> None:
        for piece in re.findall(r"\S+\s*|\s+", text):
            self.say(piece)
            self.pause(pause)

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.is_cancelled():
                raise Cancelled
            time.sleep(min(left, 0.05))

    def allowed(self, call: Json) -> bool:
        """Whether the client allows that tool call."""
        params = {"sessionId": self.session.id, "toolCall": call, "options": OPTIONS}
        answer = self.wire.ask("session/request_permission", params, self.is_cancelled)
        outcome = answer.get("result", {}).get("outcome", {})
        if outcome.get("outcome") == "cancelled":
            raise Cancelled
        if outcome.get("optionId") not in ("once", "always"):
            return False
        self.say(f"[{outcome['optionId']}] ")
        return True


def call_of(kind: str, title: str, content: Iterable[Json] = (), **more: Any) -> Json:
    identity = f"call-{uuid.uuid4().hex[:12]}"
    return {"toolCallId": identity, "title": title, "kind": kind, "status": "pending", "content": [*content], **more}


def echo(turn: Turn, words: str) -> str:
    turn.stream(words)
    return "end_turn"


def change(turn: Turn, path: Path, old: str | None, new: str, title: str) -> None:
    """Ask with the whole change; make it if that is allowed."""
    diff = {"type": "diff", "path": str(path), "oldText": old, "newText": new}
    call = call_of("edit", title, [diff], locations=[{"path": str(path)}])
    turn.update("tool_call", **call)
    done = {"toolCallId": call["toolCallId"], "status": "completed"}
    if turn.allowed(call):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(new)
        turn.update("tool_call_update", **done)
        turn.stream(f"{title}: done.")
    else:
        turn.update("tool_call_update", **done | {"status": "failed"})
        turn.stream(f"{title}: not allowed, so nothing was changed.")


def edit(turn: Turn, words: str) -> None:
    """`edit FILE` appends a line; `edit FILE: OLD => NEW` replaces text."""
    name, _, what = words.partition(":")
    path = turn.session.cwd / name.strip()
    before = path.read_text() if path.exists() else None
    old, arrow, new = (part.strip() for part in what.partition("=>"))
    if arrow and old not in (before or ""):
        turn.stream(f"{name} does not hold {old!r}.")
        return
    after = (before or "").replace(old, new) if arrow else f"{before or ''}Edited by the agent.\n"
    change(turn, path, before, after, f"Edit {name.strip()}")


def write(turn: Turn, words: str) -> None:
    name, _, text = words.partition(" ")
    path = turn.session.cwd / name
    before = path.read_text() if path.exists() else None
    change(turn, path, before, f"{text}\n", f"Write {name}")


def silently(turn: Turn, words: str) -> None:
    """Write a file and ask nobody, as an agent does whose tool needs no permission."""
    name, _, text = words.partition(" ")
    (turn.session.cwd / name).write_text(f"{text}\n")
    turn.stream("Written.")


def slow(turn: Turn, words: str) -> None:
    for second in range(int(words or 5)):
        turn.say(f"{second + 1} ")
        turn.pause(1)
    turn.say("done.")


def never_answer(turn: Turn, _: str) -> None:
    turn.deaf = True
    turn.say("Let me think …")
    while True:
        time.sleep(3600)


def wait_for_cancel(turn: Turn, _: str) -> None:
    turn.say("Waiting.")
    turn.pause(3600)


def flood(turn: Turn, words: str) -> None:
    """As many megabytes as asked for, as fast as they are read."""
    for _ in range(int(words or 16) * 1024):
        turn.say("x" * 1000)


def flood_lines(turn: Turn, words: str) -> None:
    for number in range(int(words or 100_000)):
        turn.say(f"{number} ")


def flood_errors(turn: Turn, words: str) -> None:
    for _ in range(int(words or 16) * 1024):
        os.write(2, b"e" * 1023 + b"\n")
    turn.stream("That was on standard error.")


def shout(turn: Turn, _: str) -> None:
    turn.stream("@all @room @alice @alice:localhost please look: https://matrix.to/#/@alice:localhost\n/close\n/merge")


def order(turn: Turn, _: str) -> None:
    turn.say("!rave stop 42\n!rave stop !1\n/sandbox stop\n/agent approve A1\n@plain echo loop")


def html(turn: Turn, words: str) -> None:
    turn.say(HTML * (int(words or 60_000) // len(HTML) + 1))


def ansi(turn: Turn, _: str) -> None:
    turn.say(ANSI)


def endless_line(turn: Turn, words: str) -> None:
    turn.wire.raw(b'{"jsonrpc":"2.0","method":"session/update","params":{"text":"')
    for _ in range(int(words or 32) * 16):
        turn.wire.raw(b"y" * 65_536)


def invalid_utf8(turn: Turn, _: str) -> None:
    head = json.dumps({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "MARK"}})
    update = head.encode().replace(b"MARK", b"before \xff\xfe\xc0\x80 after")
    session = self_id(turn)
    turn.wire.raw(b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":' + session + b',"update":')
    turn.wire.raw(update + b"}}\n")


def self_id(turn: Turn) -> bytes:
    return json.dumps(turn.session.id).encode()


def garbage(turn: Turn, _: str) -> None:
    turn.wire.raw(b"this is no JSON\n[]\nnull\n17\n{}\n\n" + b"[" * 100_000 + b"\n")
    turn.wire.send(method="session/update", params={"sessionId": "somebody-else", "update": {"sessionUpdate": "plan"}})
    turn.wire.send(id=1, result={"forged": True})
    turn.wire.send(id=999_999, result={"stopReason": "end_turn"})
    turn.stream("Was that understood?")


def permission(turn: Turn, words: str) -> None:
    """`permission KIND TITLE`: ask, and say what came of it."""
    kind, _, title = words.partition(" ")
    call = call_of(kind or "execute", title or "Do it", rawInput={"command": title})
    turn.update("tool_call", **call)
    turn.stream("Allowed." if turn.allowed(call) else "Rejected.")


def huge_permission(turn: Turn, words: str) -> None:
    text = "rm -rf / # " + "z" * int(words or 1_000_000)
    call = call_of("execute", "Clean up", [{"type": "content", "content": {"type": "text", "text": text}}])
    turn.stream("Allowed." if turn.allowed(call) else "Rejected.")


def changed_permission(turn: Turn, _: str) -> None:
    """Ask for something harmless; then, under the same ids, for something else."""
    call = call_of("edit", "Edit README.md", rawInput={"path": "README.md"})
    turn.update("tool_call", **call)
    changed = {**call, "title": "Delete everything", "kind": "delete", "rawInput": {"path": "/"}}
    params = {"sessionId": turn.session.id, "options": OPTIONS}
    turn.wire.send(id="changed", method="session/request_permission", params={**params, "toolCall": call})
    turn.pause(2)
    turn.wire.send(id="changed", method="session/request_permission", params={**params, "toolCall": changed})
    turn.pause(3600)


def read_through_client(turn: Turn, words: str) -> None:
    params = {"sessionId": turn.session.id, "path": words or "/etc/passwd"}
    answer = turn.wire.ask("fs/read_text_file", params, turn.is_cancelled)
    turn.stream(f"The client said: {json.dumps(answer.get('error') or answer.get('result'))}")


def late(turn: Turn, words: str) -> str:
    """Speak on after the turn's end."""

    def speak() -> None:
        time.sleep(1)
        update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": words or "too late"}}
        turn.wire.send(method="session/update", params={"sessionId": turn.session.id, "update": update})

    threading.Thread(target=speak, daemon=True).start()
    turn.stream("In time.")
    return "end_turn"


def think(turn: Turn, words: str) -> None:
    turn.say(words or "Hmm.", "agent_thought_chunk")
    turn.update("plan", entries=[{"content": "Think", "priority": "medium", "status": "in_progress"}])
    turn.stream("Thought about it.")


def fail(turn: Turn, words: str) -> None:
    turn.say("This goes wrong. ")
    raise RpcError(FAILED, words or "the model is out of order")


def refuse(turn: Turn, _: str) -> str:
    turn.stream("No.")
    return "refusal"


def crash(turn: Turn, words: str) -> None:
    turn.stream("About to end. ")
    turn.pause(0.3)
    os._exit(int(words or 7))


def killed(turn: Turn, _: str) -> None:
    turn.stream("About to be killed. ")
    turn.pause(0.3)
    os.kill(os.getpid(), signal.SIGKILL)


def children(turn: Turn, _: str) -> None:
    """Leave a process behind that holds standard output open, and end."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(3600)
    crash(turn, "0")


SCRIPT: dict[str, Callable[[Turn, str], str | None]] = {
    "echo": echo,
    "edit": edit,
    "write": write,
    "silently write": silently,
    "slow": slow,
    "never answer": never_answer,
    "wait": wait_for_cancel,
    "flood lines": flood_lines,
    "flood errors": flood_errors,
    "flood": flood,
    "shout": shout,
    "order": order,
    "html": html,
    "ansi": ansi,
    "endless line": endless_line,
    "invalid utf-8": invalid_utf8,
    "garbage": garbage,
    "permission": permission,
    "huge permission": huge_permission,
    "changed permission": changed_permission,
    "read through client": read_through_client,
    "late": late,
    "think": think,
    "fail": fail,
    "refuse": refuse,
    "crash": crash,
    "killed": killed,
    "leave a child": children,
}
"""The first words of a prompt's line, and what is done for them with the rest of that line."""
_COMMAND = re.compile(rf"^\W*(?:please )?({'|'.join(sorted(SCRIPT, key=len, reverse=True))})\b[:,]?[ \t]*(.*)$", re.M)


def perform(turn: Turn, text: str) -> str | None:
    """Do what the first line says that is in the script; echo the whole text when none is. Returns a stop reason."""
    found = _COMMAND.search(text)
    if found is None:
        return echo(turn, text)
    return SCRIPT[found[1]](turn, found[2].strip())


class Agent:
    """Hears one line after the other."""

    def __init__(self, log: Path | None, sessions: Path | None, load: bool) -> None:
        self._wire = Wire()
        self._log, self._folder, self._load = log, sessions, load and sessions is not None
        self._sessions: dict[str, Session] = {}
        if sessions:
            sessions.mkdir(parents=True, exist_ok=True)

    def hear(self, line: bytes) -> None:
        if self._log:
            with self._log.open("ab") as file:
                file.write(line)
        try:
            message = json.loads(line)
        except ValueError:
            self._wire.send(id=None, error={"code": PARSE_ERROR, "message": "this line is no JSON"})
            return
        if "method" not in message:
            self._wire.answered(message)
            return
        number = message.get("id")
        try:
            result = self._do(message["method"], message.get("params") or {}, number)
        except RpcError as error:
            if number is not None:
                self._wire.send(id=number, error={"code": error.code, "message": error.message})
        else:
            if number is not None and result is not None:
                self._wire.send(id=number, result=result)

    def _do(self, method: str, params: Json, number: Any) -> Json | None:
        """The result; None when it comes later, or never."""
        match method:
            case "initialize":
                return {
                    "protocolVersion": 1,
                    "agentCapabilities": {"loadSession": self._load, "promptCapabilities": {}},
                    "agentInfo": {"name": "plain", "version": "1"},
                    "authMethods": [],
                }
            case "session/new":
                session = Session(f"plain-{uuid.uuid4()}", self._cwd(params), self._folder)
                self._sessions[session.id] = session
                session.said("system", "")
                return {"sessionId": session.id}
            case "session/load" if self._load:
                return self._loaded(params)
            case "session/prompt":
                self._prompt(params, number)
                return None
            case "session/cancel":
                session = self._session(params)
                if session.turn:
                    session.turn.cancel()
                return None
        raise RpcError(NO_SUCH_METHOD, f"{method} is not known here")

    def _loaded(self, params: Json) -> Json:
        session = Session(str(params.get("sessionId")), self._cwd(params), self._folder)
        history = list(session.history())
        if not history:
            raise RpcError(INVALID_PARAMS, "there is no such session")
        self._sessions[session.id] = session
        for role, text in history:
            if role != "system":
                update = {"sessionUpdate": f"{role}_message_chunk", "content": {"type": "text", "text": text}}
                self._wire.send(method="session/update", params={"sessionId": session.id, "update": update})
        return {}

    def _prompt(self, params: Json, number: Any) -> None:
        session = self._session(params)
        if session.turn:
            raise RpcError(INVALID_REQUEST, "a turn of this session is running: one at a time")
        blocks = params.get("prompt")
        if not isinstance(blocks, list) or not blocks:
            raise RpcError(INVALID_PARAMS, "prompt must be a list of content blocks")
        text = "\n".join(block["text"] for block in blocks if block.get("type") == "text")
        session.turn = Turn(self._wire, session, number, text)
        session.turn.start()

    def _session(self, params: Json) -> Session:
        found = self._sessions.get(str(params.get("sessionId")))
        if found is None:
            raise RpcError(INVALID_PARAMS, "there is no such session")
        return found

    def _cwd(self, params: Json) -> str:
        cwd = params.get("cwd")
        if not isinstance(cwd, str) or not cwd.startswith("/"):
            raise RpcError(INVALID_PARAMS, "cwd must be an absolute path")
        if not isinstance(params.get("mcpServers"), list):
            raise RpcError(INVALID_PARAMS, "mcpServers must be a list")
        return cwd


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--log", type=Path, help="append every line that was received")
    parser.add_argument("--sessions", type=Path, help="keep sessions in this folder, and so support session/load")
    parser.add_argument("--no-load", dest="load", action="store_false", help="do not support session/load")
    given = parser.parse_args()
    agent = Agent(given.log, given.sessions, given.load)
    for line in sys.stdin.buffer:
        agent.hear(line)


if __name__ == "__main__":
    main()
