"""Calls of tools: what is asked is checked against the table, done once, recorded, and answered.

An act's lookups come first; then one transaction looks at the token again, does it, records who asked, and keeps the
answer for the idempotency key. Another call with the same key gets that answer, whatever has happened since.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from ravebot.agents.model import AGENT
from ravebot.errors import RavebotError
from ravebot.sandboxes.model import Actor, EventKind, SandboxId
from ravebot.store import agent_work, api_tokens, events
from ravebot.store.api_tokens import KeptAnswer, Scope
from ravebot.store.database import Transaction, dump_json
from ravebot.tools.callers import Caller, SandboxCaller, TokenCaller
from ravebot.tools.limits import Buckets, CallRate
from ravebot.tools.problems import ProblemKind, ToolProblem, mistake, problem_of
from ravebot.tools.reach import NO_TURN
from ravebot.tools.table import Tool
from ravebot.tools.workbench import Workbench

LONGEST_KEY = 200
log = structlog.get_logger()


@dataclass(frozen=True)
class ToolAnswer:
    """What a call is answered: the status that HTTP has for it, and a body in JSON."""

    status: int
    body: Mapping[str, object] = field(repr=False)
    retry_after_seconds: float | None = None
    repeated: bool = False  # an idempotency key's first answer, given again

    @property
    def ok(self) -> bool:
        return self.status < 400

    @classmethod
    def of(cls, result: BaseModel | ToolProblem) -> ToolAnswer:
        if isinstance(result, ToolProblem):
            return cls(result.kind.status, result.body, result.retry_after_seconds)
        return cls(200, result.model_dump(mode="json"))


@dataclass(frozen=True)
class ActLimits:
    """How often somebody may act: acts are told in rooms, and events are kept for good. `runs`: of a sandbox."""

    token: Buckets = field(default_factory=lambda: Buckets(CallRate(burst=60, per_second=2)))
    sandbox: Buckets = field(default_factory=lambda: Buckets(CallRate(burst=10, per_second=1 / 30)))
    runs: Buckets = field(default_factory=lambda: Buckets(CallRate(burst=30, per_second=0.5)))

    def take(self, caller: Caller, tool: Tool) -> None:
        """Raises ToolProblem if it is too often."""
        if isinstance(caller, TokenCaller):
            wait = self.token.take(str(caller.token.id))
        else:
            limit = self.runs if tool.scope is Scope.RUN else self.sandbox
            wait = limit.take(str(caller.sandbox_id))
        if wait:
            why = f"Too much was done from here lately: wait {math.ceil(wait)} s, then try again."
            raise ToolProblem(ProblemKind.TOO_OFTEN, why, wait)


@dataclass(frozen=True)
class ToolCalls:
    """Carries calls out; nothing that a caller does raises here."""

    bench: Workbench
    limits: ActLimits = field(default_factory=ActLimits)

    async def call(self, caller: Caller, tool: Tool, given: Mapping[str, object], key: str = "") -> ToolAnswer:
        """Call a tool with what was given. `key`: by which the same request is carried out once."""
        try:
            asked = tool.takes.model_validate(given)
            _may(caller, tool)
            _check_key(key)
            if tool.look is not None:
                found = await tool.look(self.bench, caller, asked)
                if isinstance(caller, TokenCaller):  # it may have waited long
                    await self.bench.database.read(caller.recheck)
                return ToolAnswer.of(found)
            return await self._act(caller, tool, asked, key)
        except ValidationError as error:
            return ToolAnswer.of(ToolProblem(ProblemKind.INVALID, _in_words(error)))
        except RavebotError as error:
            return ToolAnswer.of(problem_of(error))
        except Exception:
            log.exception("a tool failed", tool=tool.name)
            return ToolAnswer.of(mistake())

    async def _act(self, caller: Caller, tool: Tool, asked: BaseModel, key: str) -> ToolAnswer:
        assert tool.act
        request = _digest(tool, asked)
        if key and isinstance(caller, TokenCaller):
            token_id = caller.token.id
            kept = await self.bench.database.read(lambda tx: api_tokens.answered(tx, token_id, key))
            if kept is not None:
                return _again(kept, request)
        if tool.recorded:
            self.limits.take(caller, tool)
        prepared = await tool.act(self.bench, caller, asked)
        if isinstance(prepared, BaseModel):
            return ToolAnswer.of(prepared)
        step = prepared

        def once(tx: Transaction) -> ToolAnswer:
            actor = _right_now(tx, caller)
            if key and isinstance(caller, TokenCaller):
                kept = api_tokens.answered(tx, caller.token.id, key)
                if kept is not None:
                    return _again(kept, request)
            answer = ToolAnswer.of(step(tx))
            if tool.recorded:
                _record(tx, caller, actor, tool, answer)
            if key and isinstance(caller, TokenCaller):
                kept = KeptAnswer(request, answer.status, dump_json(dict(answer.body)))
                api_tokens.keep_answer(tx, caller.token.id, key, kept)
            return answer

        return await self.bench.database.write(once)


def _may(caller: Caller, tool: Tool) -> None:
    """Raises ToolProblem for a tool that the caller does not have."""
    if tool.is_for(caller):
        return
    if isinstance(caller, SandboxCaller) or tool.scope is None:
        raise ToolProblem(ProblemKind.FORBIDDEN, f"{tool.name} is not offered in sandboxes.")
    needs = f"{tool.name} needs a token with the scope {tool.scope.value}."
    make = f"Make one with `ravebot token create … --scope {tool.scope.value}`."
    raise ToolProblem(ProblemKind.FORBIDDEN, f"{needs} {make}")


def _check_key(key: str) -> None:
    if len(key) > LONGEST_KEY or not key.isprintable():
        why = f"An idempotency key has at most {LONGEST_KEY} printable characters: make one like a UUID."
        raise ToolProblem(ProblemKind.INVALID, why)


def _right_now(tx: Transaction, caller: Caller) -> Actor:
    """In whose name it is done. Raises ToolProblem where the token ended, or the turn, while the call was prepared."""
    if isinstance(caller, TokenCaller):
        caller.recheck(tx)
        return caller.actor
    running = agent_work.running_in(tx, caller.sandbox_id)
    if not running:
        raise ToolProblem(ProblemKind.FORBIDDEN, NO_TURN.refusal)
    return Actor(AGENT, running[0].agent)


def _record(tx: Transaction, caller: Caller, actor: Actor, tool: Tool, answer: ToolAnswer) -> None:
    data = {"tool": tool.name, "status": answer.status, **_marks(caller)}
    events.append(tx, EventKind.API_CALL, actor, sandbox_id=_sandbox_of(caller), data=data)


def _marks(caller: Caller) -> dict[str, object]:
    return caller.marks if isinstance(caller, TokenCaller) else {"sandbox": caller.sandbox_id}


def _sandbox_of(caller: Caller) -> SandboxId | None:
    return caller.sandbox_id if isinstance(caller, SandboxCaller) else None


def _again(kept: KeptAnswer, request: str) -> ToolAnswer:
    if kept.request != request:
        why = "This idempotency key was used for another request: take a new one for each."
        return ToolAnswer.of(ToolProblem(ProblemKind.INVALID, why))
    return ToolAnswer(kept.status, json.loads(kept.body), repeated=True)


def _digest(tool: Tool, asked: BaseModel) -> str:
    canonical = json.dumps(json.loads(to_json(asked)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{tool.name} {canonical}".encode()).hexdigest()


def _in_words(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    said = [f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in found[:3]]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return f"What was sent does not fit: {'; '.join(said)[:1000]}{more}. The API's description says what does."
