"""Trials of agents for `ravebot agent check`: run in the bot, beside each other, and remembered for a while."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from ravebot.agents import registry
from ravebot.errors import Refused
from ravebot.operations.agents.check import AgentTrial, TrialParts
from ravebot.operations.agents.elsewhere import ElsewhereTrial
from ravebot.operations.agents.reports import CheckProgress
from ravebot.operations.agents.trialsteps import TrialSteps
from ravebot.sandboxes.model import Actor

_AT_ONCE = 2
_REMEMBERED = 50


@dataclass
class Trials:
    """Takes trials, and runs them in its own loop."""

    parts: TrialParts
    _trials: OrderedDict[int, TrialSteps] = field(default_factory=OrderedDict)
    _queue: asyncio.Queue[TrialSteps] = field(default_factory=asyncio.Queue)
    _numbers: int = 0

    def start(self, name: str, ref: str, prompt: str, actor: Actor) -> int:
        """Begin a trial; returns its number."""
        if sum(not trial.over for trial in self._trials.values()) >= _AT_ONCE:
            raise Refused(f"{_AT_ONCE} trials are under way already: wait until one is over.")
        self._numbers += 1
        agent = registry.find(self.parts.config, name)
        trial: TrialSteps = AgentTrial(self.parts, name, ref, prompt, actor)
        if agent is not None and agent.works_elsewhere:
            trial = ElsewhereTrial(self.parts, agent, ref, prompt, actor)
        self._trials[self._numbers] = trial
        while len(self._trials) > _REMEMBERED:
            self._trials.popitem(last=False)
        self._queue.put_nowait(trial)
        return self._numbers

    def progress(self, number: int) -> CheckProgress:
        """How far a trial is."""
        trial = self._trials.get(number)
        if trial is None:
            raise Refused("That trial is not known any more: ravebot was restarted. Begin another.")
        return CheckProgress(tuple(trial.steps), trial.under_way, trial.over)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task((await self._queue.get()).run())
