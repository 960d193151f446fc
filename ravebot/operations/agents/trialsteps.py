"""The steps of an agent's trial: each is timed, and said with what to do if it failed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from ravebot.agents.reception import Reception
from ravebot.commands import refs
from ravebot.commands.people import People
from ravebot.config.model import AgentConfig
from ravebot.errors import NotFound, RavebotError
from ravebot.operations.agents.reports import CheckResult, CheckStep
from ravebot.sandboxes.model import Actor, MergeRequest

log = structlog.get_logger()


class StepFailed(Exception):
    """A step went wrong; `fix` says what to do."""

    def __init__(self, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.fix = fix


@dataclass
class TrialSteps:
    """A trial's steps so far."""

    steps: list[CheckStep] = field(default_factory=list, init=False)
    under_way: str = field(default="", init=False)
    over: bool = field(default=False, init=False)

    async def run(self) -> None:
        """Run every step."""
        raise NotImplementedError

    async def _step(self, name: str, step: Callable[[], Awaitable[str]]) -> bool:
        self.under_way, began, fix = name, time.monotonic(), ""
        try:
            detail, result = await step(), CheckResult.OK
        except StepFailed as error:
            detail, fix, result = str(error), error.fix, CheckResult.FAILED
        except RavebotError as error:
            detail, fix, result = str(error), "Mend that, then check again.", CheckResult.FAILED
        # A bug must not end the bot, of which this is a small part.
        except Exception:
            log.exception("an agent could not be tried: this is a bug of ravebot's", step=name)
            detail, fix = "ravebot failed at this, which is a bug", "See ravebot's log."
            result = CheckResult.FAILED
        self.steps.append(CheckStep(name, result, detail[:1000], time.monotonic() - began, fix))
        self.under_way = ""
        return result is CheckResult.OK


async def named(people: People, ref: str) -> MergeRequest:
    """The merge request that a person wrote. Raises StepFailed."""
    try:
        return await people.merge_request(refs.read_full(ref))
    except ValueError as error:
        raise StepFailed(str(error), "Write it like group/app!42.") from error
    except NotFound as error:
        raise StepFailed(refs.missing(ref), "Check the number, and the bot's role in the project.") from error


async def may_ask(reception: Reception, agent: AgentConfig, actor: Actor, mr: MergeRequest) -> str:
    """The agent's owner, the project, and forks. Raises StepFailed."""
    decision = await reception.may(agent.name, actor, mr)
    if not decision.allowed:
        raise StepFailed(decision.rule, decision.advice or "Change agents[] in the configuration.")
    return f"its owner {agent.owner} may command sandboxes of {mr.project_path}"
