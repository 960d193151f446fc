"""What the admin socket answers about agents, and the shell's side of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from pydantic import Field, TypeAdapter

from ravebot.operations.agents.reports import (
    AgentOperations,
    AgentReport,
    AgentSummary,
    ApprovalLine,
    CheckProgress,
    TurnAsked,
    TurnHeard,
    TurnLine,
)
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor
from ravebot.web.admin import AdminQuestion, ask, route

_MOST_TEXT = 20_000
_LARGEST_ID = 2**63 - 1
_NAME = Field(max_length=50)


class NameQuestion(AdminQuestion):
    name: str = _NAME


class PauseQuestion(AdminQuestion):
    name: str = _NAME
    paused: bool


class SendQuestion(AdminQuestion):
    name: str = _NAME
    ref: str = Field(max_length=500)
    text: str = Field(max_length=_MOST_TEXT)


class HearQuestion(AdminQuestion):
    turn: int = Field(ge=1, le=_LARGEST_ID)
    offset: int = Field(0, ge=0, le=_LARGEST_ID)


class TurnQuestion(AdminQuestion):
    turn: int = Field(ge=1, le=_LARGEST_ID)


class ApprovalsQuestion(AdminQuestion):
    everything: bool = False


class DecideQuestion(AdminQuestion):
    approval: int = Field(ge=1, le=_LARGEST_ID)
    yes: bool


class StartCheckQuestion(AdminQuestion):
    name: str = _NAME
    ref: str = Field(max_length=500)
    prompt: str = Field("", max_length=_MOST_TEXT)


class CheckQuestion(AdminQuestion):
    check: int = Field(ge=1, le=_LARGEST_ID)


_AGENTS = TypeAdapter(tuple[AgentSummary, ...])
_AGENT = TypeAdapter(AgentReport)
_OUTCOME = TypeAdapter(Outcome)
_ASKED = TypeAdapter(TurnAsked)
_HEARD = TypeAdapter(TurnHeard)
_TURNS = TypeAdapter(tuple[TurnLine, ...])
_APPROVALS = TypeAdapter(tuple[ApprovalLine, ...])
_NUMBER = TypeAdapter(int)
_PROGRESS = TypeAdapter(CheckProgress)


def add_routes(app: web.Application, operations: AgentOperations) -> None:
    """One POST route per question, as in `admin.make_app`."""

    async def agents(_: AdminQuestion, __: Actor) -> tuple[AgentSummary, ...]:
        return await operations.agents()

    async def agent(asked: NameQuestion, _: Actor) -> AgentReport:
        return await operations.agent(asked.name)

    async def pause(asked: PauseQuestion, actor: Actor) -> Outcome:
        return await operations.pause(asked.name, asked.paused, actor)

    async def send(asked: SendQuestion, actor: Actor) -> TurnAsked:
        return await operations.send(asked.name, asked.ref, asked.text, actor)

    async def hear(asked: HearQuestion, actor: Actor) -> TurnHeard:
        return await operations.hear(asked.turn, asked.offset, actor)

    async def dead(_: AdminQuestion, __: Actor) -> tuple[TurnLine, ...]:
        return await operations.dead()

    async def resend(asked: TurnQuestion, actor: Actor) -> TurnAsked:
        return await operations.resend(asked.turn, actor)

    async def drop(asked: TurnQuestion, actor: Actor) -> Outcome:
        return await operations.drop(asked.turn, actor)

    async def approvals(asked: ApprovalsQuestion, _: Actor) -> tuple[ApprovalLine, ...]:
        return await operations.approvals(asked.everything)

    async def decide(asked: DecideQuestion, actor: Actor) -> Outcome:
        return await operations.decide(asked.approval, asked.yes, actor)

    async def start_check(asked: StartCheckQuestion, actor: Actor) -> int:
        return await operations.start_check(asked.name, asked.ref, asked.prompt, actor)

    async def check_progress(asked: CheckQuestion, _: Actor) -> CheckProgress:
        return await operations.check_progress(asked.check)

    app.add_routes(
        [
            web.post("/agents", route(AdminQuestion, agents)),
            web.post("/agent", route(NameQuestion, agent)),
            web.post("/agent/pause", route(PauseQuestion, pause)),
            web.post("/agent/send", route(SendQuestion, send)),
            web.post("/agent/hear", route(HearQuestion, hear)),
            web.post("/agent/dead", route(AdminQuestion, dead)),
            web.post("/agent/resend", route(TurnQuestion, resend)),
            web.post("/agent/drop", route(TurnQuestion, drop)),
            web.post("/approvals", route(ApprovalsQuestion, approvals)),
            web.post("/approvals/decide", route(DecideQuestion, decide)),
            web.post("/agent/check", route(StartCheckQuestion, start_check)),
            web.post("/agent/check/progress", route(CheckQuestion, check_progress)),
        ]
    )


@dataclass(frozen=True)
class AgentClient:
    """`AgentOperations` over the socket. Raises NotRunningError, Forbidden, Refused or Unavailable."""

    path: Path

    async def agents(self) -> tuple[AgentSummary, ...]:
        return await ask(self.path, "agents", AdminQuestion(), _AGENTS)

    async def agent(self, name: str) -> AgentReport:
        return await ask(self.path, "agent", NameQuestion(name=name), _AGENT)

    async def pause(self, name: str, paused: bool) -> Outcome:
        return await ask(self.path, "agent/pause", PauseQuestion(name=name, paused=paused), _OUTCOME)

    async def send(self, name: str, ref: str, text: str) -> TurnAsked:
        return await ask(self.path, "agent/send", SendQuestion(name=name, ref=ref, text=text), _ASKED)

    async def hear(self, turn: int, offset: int) -> TurnHeard:
        return await ask(self.path, "agent/hear", HearQuestion(turn=turn, offset=offset), _HEARD)

    async def dead(self) -> tuple[TurnLine, ...]:
        return await ask(self.path, "agent/dead", AdminQuestion(), _TURNS)

    async def resend(self, turn: int) -> TurnAsked:
        return await ask(self.path, "agent/resend", TurnQuestion(turn=turn), _ASKED)

    async def drop(self, turn: int) -> Outcome:
        return await ask(self.path, "agent/drop", TurnQuestion(turn=turn), _OUTCOME)

    async def approvals(self, everything: bool) -> tuple[ApprovalLine, ...]:
        return await ask(self.path, "approvals", ApprovalsQuestion(everything=everything), _APPROVALS)

    async def decide(self, approval: int, yes: bool) -> Outcome:
        return await ask(self.path, "approvals/decide", DecideQuestion(approval=approval, yes=yes), _OUTCOME)

    async def start_check(self, name: str, ref: str, prompt: str) -> int:
        return await ask(self.path, "agent/check", StartCheckQuestion(name=name, ref=ref, prompt=prompt), _NUMBER)

    async def check_progress(self, check: int) -> CheckProgress:
        return await ask(self.path, "agent/check/progress", CheckQuestion(check=check), _PROGRESS)
