"""Talks to an ACP agent over its standard streams, line by line, as a test wants it: it hides nothing."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]


class Talk:
    """`with Talk([...], cwd) as talk:`; `lines` is everything that the agent has written, parsed where it is JSON."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None) -> None:
        self.lines: list[Any] = []
        self.allow: Callable[[Json], str] | None = None  # gives the answer to a question of the agent: an optionId
        self._cwd = cwd
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        self._number = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def _read(self) -> None:
        assert self.process.stdout
        with suppress(ValueError):  # the pipe is closed at the end
            for line in self.process.stdout:
                try:
                    self._queue.put(json.loads(line))
                except ValueError:
                    self._queue.put(line)
        self._queue.put(None)

    def send(self, **message: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.process.stdin.flush()

    def until(self, fits: Callable[[Any], bool], timeout: float = 20) -> Any:
        """The first line that fits; questions are answered meanwhile, if `allow` is set. EOFError when it has ended."""
        end = time.monotonic() + timeout
        while True:
            try:
                line = self._queue.get(timeout=max(end - time.monotonic(), 0.01))
            except queue.Empty:
                raise TimeoutError(f"not said in {timeout} s; the last lines: {str(self.lines[-3:])[-800:]}") from None
            if line is None:
                raise EOFError(f"the agent has ended, with {self.process.wait()}")
            self.lines.append(line)
            if fits(line):
                return line
            self._answer(line)

    def _answer(self, line: Any) -> None:
        if not isinstance(line, dict) or "method" not in line or "id" not in line:
            return
        if line["method"] != "session/request_permission":
            self.send(id=line["id"], error={"code": -32601, "message": "Method not found"})
        elif self.allow:
            outcome = {"outcome": "selected", "optionId": self.allow(line["params"])}
            self.send(id=line["id"], result={"outcome": outcome})

    def call(self, method: str, timeout: float = 20, **params: Any) -> Json:
        """The whole answer, result or error."""
        self._number += 1
        number = self._number
        self.send(id=number, method=method, params=params)
        answer: Json = self.until(lambda line: isinstance(line, dict) and line.get("id") == number, timeout)
        return answer

    def begin(self, timeout: float = 20) -> str:
        """Initialize and make a session; its id."""
        answer = self.call("initialize", timeout, protocolVersion=1, clientCapabilities={})
        assert answer["result"]["protocolVersion"] == 1, answer
        made = self.call("session/new", timeout, cwd=str(self._cwd), mcpServers=[])
        return str(made["result"]["sessionId"])

    def ask(self, session: str, text: str, timeout: float = 20) -> Json:
        """One turn: the answer to its prompt."""
        return self.call("session/prompt", timeout, sessionId=session, prompt=[{"type": "text", "text": text}])

    def start(self, session: str, text: str) -> int:
        """Begin a turn and wait for nothing; the number of its prompt."""
        self._number += 1
        prompt = [{"type": "text", "text": text}]
        self.send(id=self._number, method="session/prompt", params={"sessionId": session, "prompt": prompt})
        return self._number

    @property
    def pieces(self) -> list[str]:
        """What the agent has said so far, as it came."""
        return [
            update["content"]["text"] for update in self.updates if update["sessionUpdate"] == "agent_message_chunk"
        ]

    @property
    def said(self) -> str:
        return "".join(self.pieces)

    @property
    def updates(self) -> list[Json]:
        mine = [line for line in self.lines if isinstance(line, dict) and line.get("method") == "session/update"]
        return [line["params"]["update"] for line in mine]

    @property
    def questions(self) -> list[Json]:
        mine = [line for line in self.lines if isinstance(line, dict)]
        return [line["params"] for line in mine if line.get("method") == "session/request_permission"]
