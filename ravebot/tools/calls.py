"""Calls of tools: what is asked is checked against the table, done once, recorded, and answered.

An act's lookups come first; then one transaction looks at the caller again, does it, records who asked, and keeps the
answer for the idempotency key. Another call with the same key gets that answer, whatever has happened since.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog
from pydantic import BaseModel, ValidationError

from ravebot.errors import RavebotError
from ravebot.sandboxes.model import EventKind
from ravebot.store import events
from ravebot.store.database import Transaction
from ravebot.tools.callers.contract import Caller
from ravebot.tools.limits import Buckets, CallRate
from ravebot.tools.once import Kept, Once, RoomForAnswers
from ravebot.tools.problems import ProblemKind, ToolProblem, mistake, problem_of
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


@dataclass
class ActLimits:
    """How often somebody may act: acts are told in rooms, and events are kept for good.

    `of_all`: in place of what kinds of callers say of themselves.
    """

    of_all: CallRate | None = None
    _buckets: dict[CallRate, Buckets] = field(default_factory=dict)

    def take(self, caller: Caller, tool: Tool) -> None:
        """Raises ToolProblem if it is too often."""
        rate = self.of_all or caller.act_rate(tool.scope)
        wait = self._buckets.setdefault(rate, Buckets(rate)).take(f"{caller.kind.name} {caller.name}")
        if wait:
            why = f"Too much was done from here lately: wait {math.ceil(wait)} s, then try again."
            raise ToolProblem(ProblemKind.TOO_OFTEN, why, wait)


@dataclass(frozen=True)
class ToolCalls:
    """Carries calls out; nothing that a caller does raises here."""

    bench: Workbench
    limits: ActLimits = field(default_factory=ActLimits)
    room: RoomForAnswers = field(default_factory=RoomForAnswers)

    async def call(self, caller: Caller, tool: Tool, given: Mapping[str, object], key: str = "") -> ToolAnswer:
        """Call a tool with what was given. `key`: by which the same request is carried out once."""
        try:
            asked = tool.takes.model_validate(given)
            _may(caller, tool)
            _check_key(key)
            if tool.look is not None:
                found = await tool.look(self.bench, caller, asked)
                await self.bench.database.read(caller.recheck)  # it may have waited long
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
        once = Once(tool.name, asked, caller.token.id, key) if key and caller.token else None
        if once and (kept := await self.bench.database.read(once.answered)):
            return _again(kept)
        if tool.recorded:
            self.limits.take(caller, tool)
        found = await tool.act(self.bench, caller, asked)
        if isinstance(found, BaseModel):
            return ToolAnswer.of(found)
        prepared = found

        def step(tx: Transaction) -> ToolAnswer:
            actor = caller.acting(tx, prepared.reached)
            if once:
                if kept := once.answered(tx):
                    return _again(kept)
                self.room.take(tx, once.token_id)
            answer = ToolAnswer.of(prepared.step(tx))
            if tool.recorded:
                data = {"tool": tool.name, "status": answer.status, **caller.marks(prepared.reached)}
                events.append(tx, EventKind.API_CALL, actor, sandbox_id=caller.sandbox_id, data=data)
            if once:
                self.room.added(once.token_id, once.keep(tx, answer.status, answer.body))
            return answer

        return await self.bench.database.write(step)


def _again(kept: Kept | ToolProblem) -> ToolAnswer:
    return ToolAnswer.of(kept) if isinstance(kept, ToolProblem) else ToolAnswer(kept.status, kept.body, repeated=True)


def _may(caller: Caller, tool: Tool) -> None:
    """Raises ToolProblem for a tool that the caller does not have."""
    if why := tool.why_not(caller):
        raise ToolProblem(ProblemKind.FORBIDDEN, why)


def _check_key(key: str) -> None:
    if len(key) > LONGEST_KEY or not key.isprintable():
        why = f"An idempotency key has at most {LONGEST_KEY} printable characters: make one like a UUID."
        raise ToolProblem(ProblemKind.INVALID, why)


def _in_words(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    said = [f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in found[:3]]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return f"What was sent does not fit: {'; '.join(said)[:1000]}{more}. The API's description says what does."
