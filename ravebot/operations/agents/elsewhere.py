"""A trial of an agent that works elsewhere: its webhook or inbox, its token, its owner's right. It gets no message."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from ravebot.agents.transports.webhook import signing
from ravebot.agents.transports.webhook.outcomes import PostVerdict, judge
from ravebot.config.model import AgentConfig
from ravebot.operations.agents.check import TrialParts
from ravebot.operations.agents.reports import CheckResult, CheckStep
from ravebot.operations.agents.trialsteps import StepFailed, TrialSteps, may_ask, named
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.store import api_tokens, deliveries, merge_requests
from ravebot.store.api_tokens import Scope
from ravebot.store.database import Transaction

_ASKS_WITHIN = timedelta(minutes=5)


@dataclass
class ElsewhereTrial(TrialSteps):
    """What it needs from one step to the next."""

    parts: TrialParts
    agent: AgentConfig
    ref: str
    prompt: str
    actor: Actor
    _mr: MergeRequest | None = None

    async def run(self) -> None:
        """Run every step, also after one that failed: they do not depend on each other."""
        reached = ("webhook", self._webhook) if self.agent.webhook else ("inbox", self._inbox)
        steps: tuple[tuple[str, Callable[[], Awaitable[str]]], ...] = (
            ("configuration", self._configuration),
            ("rights", self._rights),
            ("token", self._token),
            reached,
        )
        try:
            for name, step in steps:
                await self._step(name, step)
            if self.prompt:
                why = "say it with `ravebot agent send`: a trial gives no message to an agent that works elsewhere"
                self.steps.append(CheckStep("prompt", CheckResult.SKIPPED, why, 0.0))
        finally:
            self.under_way, self.over = "", True

    async def _configuration(self) -> str:
        how = "its webhook is sent messages" if self.agent.webhook else "it takes its messages itself"
        return f"{how}, for {', '.join(self.agent.projects)}"

    async def _rights(self) -> str:
        if self.ref:
            mr = await named(self.parts.reception.people, self.ref)
        else:
            known = await self.parts.database.read(merge_requests.opened)
            served = [one for one in known if self.agent.serves(one.project_path)]
            if not served:
                why = "No open merge request is known that the agent serves."
                raise StepFailed(why, "Open one, or name one: `ravebot agent check NAME 'group/app!42'`.")
            mr = served[-1]
        return await may_ask(self.parts.reception, self.agent, self.actor, mr)

    async def _token(self) -> str:
        name, owner = self.agent.name, self.agent.owner

        def look(tx: Transaction) -> list[str]:
            return [
                token.name
                for token in api_tokens.listed(tx, owner)
                if token.agent == name and token.has(Scope.AGENT) and not token.problem(tx.now)
            ]

        found = await self.parts.database.read(look)
        if not found:
            project = self.agent.projects[0]
            make = f"ravebot token create --owner {owner} --name {name} --agent {name} --scope agent --project"
            raise StepFailed(f"{name} has no valid token to answer with.", f"Make one: `{make} '{project}'`.")
        return f"it can answer with its token {found[0]}"

    async def _webhook(self) -> str:
        """Sends an event that is no message: whoever gets it only answers 2xx."""
        webhooks, webhook = self.parts.webhooks, self.agent.webhook
        key = webhooks.keys.get(self.agent.name)
        assert webhook
        assert key
        now = await self.parts.database.read(lambda tx: tx.now)
        event = {"type": "agent.check", "timestamp": f"{now:%Y-%m-%dT%H:%M:%SZ}", "data": {"agent": self.agent.name}}
        body = json.dumps(event).encode()
        headers = signing.headers(key, f"msg_{secrets.token_hex(16)}", now, body)
        posted = await webhooks.poster.post(str(webhook.url), body, headers)
        sequel = judge(posted, 1)
        if sequel.then is not PostVerdict.DONE:
            fix = "See whether it runs, and compare the address and the signing key; docs/agents.md has an example."
            raise StepFailed(f"The webhook {sequel.why}.", fix)
        return f"it answered {posted.status} to a signed event of the type agent.check"

    async def _inbox(self) -> str:
        name = self.agent.name
        now, last = await self.parts.database.read(lambda tx: (tx.now, deliveries.visited(tx, name)))
        fix = "Start it: it asks with `inbox_take`, by the API or MCP; docs/agents.md has an example."
        if last is None:
            raise StepFailed(f"{name} has never asked for messages.", fix)
        if now - last > _ASKS_WITHIN:
            raise StepFailed(f"{name} has not asked for messages since {last:%Y-%m-%d %H:%M} UTC.", fix)
        return "it asked for messages within the last minutes"
