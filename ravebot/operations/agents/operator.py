"""Answers the shell's requests about agents, from the database and through the desk."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import NoReturn

from ravebot.agents import overview, registry
from ravebot.agents.approvals import Approvals
from ravebot.agents.desk import Addressed, DeskOutcome
from ravebot.agents.hearing import piece
from ravebot.agents.model import (
    AgentDoor,
    Approval,
    ApprovalId,
    ApprovalState,
    Conversation,
    Turn,
    TurnId,
    TurnState,
)
from ravebot.agents.overview import AgentAtWork
from ravebot.agents.reception import Reception, refuse
from ravebot.agents.wording import once_more
from ravebot.commands import refs
from ravebot.config.model import AgentConfig, Config
from ravebot.errors import NotFound, Refused
from ravebot.operations.agents.reports import (
    AgentReport,
    AgentSummary,
    ApprovalLine,
    CheckProgress,
    PausedConversation,
    TurnAsked,
    TurnHeard,
    TurnLine,
)
from ravebot.operations.agents.trials import Trials
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor, MergeRequestRef
from ravebot.store import agent_queue, agent_reading, approvals, conversations, deliveries, merge_requests
from ravebot.store.database import Database, Transaction

_TURNS_SHOWN = 20
_LISTED = 200
_TEXT_SHOWN = 200


@dataclass(frozen=True)
class AgentOperator:
    """Implements `operations.agents.reports.AgentOperations`."""

    config: Config
    database: Database
    reception: Reception
    asking: Approvals
    trials: Trials

    async def agents(self) -> tuple[AgentSummary, ...]:
        """Every agent that can be spoken to."""
        return await self.database.read(self._summaries)

    async def agent(self, name: str) -> AgentReport:
        """One agent, and its newest turns."""
        agent, prefix = self._agent(name), self.config.matrix.command_prefix

        def gather(tx: Transaction) -> AgentReport:
            [summary] = [one for one in self._summaries(tx) if one.name == name]
            paused = tuple(
                PausedConversation(_ref(tx, one.mr), one.door.value, one.paused)
                for one in agent_reading.paused_conversations(tx, name)
            )
            turns = tuple(_line(tx, turn, prefix) for turn in agent_reading.newest_turns(tx, name, _TURNS_SHOWN))
            command = agent.acp.command if agent.acp else ()
            return AgentReport(
                summary, command, _reached(tx, agent), agent.approve, agent.forks, agent.limits.turn, paused, turns
            )

        return await self.database.read(gather)

    async def pause(self, name: str, paused: bool, actor: Actor) -> Outcome:
        """Give nothing to an agent any more, or go on."""
        self._agent(name)
        desk = self.reception.desk
        change = desk.pause_agent if paused else desk.resume_agent
        return await self.database.write(lambda tx: change(tx, name, actor))

    async def send(self, name: str, ref: str, text: str, actor: Actor) -> TurnAsked:
        """Say something to an agent about a merge request."""
        self._agent(name)
        try:
            written = refs.read_full(ref)
            mr = await self.reception.people.merge_request(written)
        except ValueError as error:
            raise Refused(str(error)) from error
        except NotFound as error:
            raise Refused(refs.missing(ref)) from error
        decision = await self.reception.may(name, actor, mr)
        if not decision.allowed:
            await self.database.write(lambda tx: refuse(tx, actor, "agent send", mr.full_ref, decision))
            return TurnAsked(False, decision.refusal)
        said = Addressed(
            agent=name,
            door=AgentDoor.SHELL,
            place="",
            thread=str(secrets.randbits(62)),  # a restored backup can't repeat it
            own_thread=True,
            mr=mr.ref,
            key="1",
            author=actor,
            text=text.strip(),
        )
        return await self.database.write(lambda tx: _asked(self.reception.accept(tx, said, mr)))

    async def hear(self, turn: int, offset: int, actor: Actor) -> TurnHeard:
        """What is new of a turn."""

        def look(tx: Transaction) -> TurnHeard:
            found = conversations.turn(tx, TurnId(turn))
            if found is None:
                _no_turn(turn)
            text, left_out, after = piece(found.answer, found.cut, offset)
            asked = (one for one in approvals.of_turn(tx, found.id) if one.state is ApprovalState.OPEN)
            return TurnHeard(
                found.state.value,
                found.state.is_over,
                found.state is TurnState.DONE,
                found.why,
                found.status,
                text,
                left_out,
                after,
                tuple(_approval(tx, one) for one in asked),
            )

        return await self.database.read(look)

    async def dead(self) -> tuple[TurnLine, ...]:
        """The dead letters, the newest first."""
        prefix = self.config.matrix.command_prefix
        return await self.database.read(
            lambda tx: tuple(_line(tx, turn, prefix) for turn in agent_queue.dead_letters(tx, _LISTED))
        )

    async def resend(self, turn: int, actor: Actor) -> TurnAsked:
        """Give a dead letter's message to its agent once more, if who wrote it still may."""
        found = await self.database.read(lambda tx: _origin(tx, turn))
        conversation, root, ref = found
        mr = await self.database.read(lambda tx: merge_requests.get(tx, ref)) if ref else None
        if mr is not None:
            decision = await self.reception.may(conversation.agent, root, mr)
            if not decision.allowed:
                await self.database.write(lambda tx: refuse(tx, actor, "agent dead resend", mr.full_ref, decision))
                return TurnAsked(False, decision.refusal)
        desk = self.reception.desk
        return await self.database.write(lambda tx: _asked(desk.resend(tx, TurnId(turn), actor)))

    async def drop(self, turn: int, actor: Actor) -> Outcome:
        """Take a dead letter off the list."""
        outcome = await self.database.write(lambda tx: self.reception.desk.drop(tx, TurnId(turn), actor))
        return Outcome(outcome.accepted, outcome.message)

    async def approvals(self, everything: bool) -> tuple[ApprovalLine, ...]:
        """The open questions; with `everything` also the newest of those that are answered."""

        def gather(tx: Transaction) -> tuple[ApprovalLine, ...]:
            found = approvals.newest(tx, _LISTED) if everything else approvals.are_open(tx)
            return tuple(_approval(tx, one) for one in found)

        return await self.database.read(gather)

    async def decide(self, approval: int, yes: bool, actor: Actor) -> Outcome:
        """Answer a question."""
        answering = await self.asking.answer(ApprovalId(approval), yes, actor)
        answered = await self.database.write(answering)
        done = f"Approval {approval} is {'approved' if yes else 'denied'}."
        return Outcome(answered.taken, answered.text or (done if answered.taken else "It could not be answered."))

    async def start_check(self, name: str, ref: str, prompt: str, actor: Actor) -> int:
        """Begin a trial of an agent in a merge request's sandbox; returns its number."""
        return self.trials.start(name, ref, prompt, actor)

    async def check_progress(self, check: int) -> CheckProgress:
        """How far a trial is."""
        return self.trials.progress(check)

    def _agent(self, name: str) -> AgentConfig:
        agent = registry.find(self.config, name)
        if agent is None:
            known = ", ".join(sorted(registry.names(self.config)))
            there = f"There are: {known}." if known else "None is configured: see agents[] in docs/agents.md."
            raise Refused(f"No agent of that name can be spoken to. {there}")
        return agent

    def _summaries(self, tx: Transaction) -> tuple[AgentSummary, ...]:
        dead = agent_queue.dead_letters(tx, 10_000)
        of_agent = [conversation.agent for turn in dead if (conversation := _conversation(tx, turn))]
        return tuple(
            _summary(self._agent(one.name), one, of_agent.count(one.name)) for one in overview.agents(tx, self.config)
        )


def _reached(tx: Transaction, agent: AgentConfig) -> str:
    """How an agent gets its messages that works elsewhere; an address's query, which may be secret, is left out."""
    if agent.webhook is not None:
        return f"by webhook, at {str(agent.webhook.url).partition('?')[0]}"
    last = deliveries.visited(tx, agent.name)
    asked = f"it last asked at {last:%Y-%m-%d %H:%M} UTC" if last else "it has never asked"
    return f"from its inbox; {asked}" if agent.inbox else ""


def _asked(outcome: Outcome) -> TurnAsked:
    turn = outcome.turn_id if isinstance(outcome, DeskOutcome) else None
    return TurnAsked(outcome.accepted, outcome.message, turn)


def _no_turn(turn: int) -> NoReturn:
    raise Refused(f"There is no turn {turn}: `ravebot agent show NAME` and `ravebot agent dead list` show which exist.")


def _origin(tx: Transaction, turn: int) -> tuple[Conversation, Actor, MergeRequestRef | None]:
    found = conversations.turn(tx, TurnId(turn))
    conversation = _conversation(tx, found) if found else None
    if found is None or conversation is None:
        _no_turn(turn)
    return conversation, conversations.message(tx, found.message_id).root, conversation.mr


def _conversation(tx: Transaction, turn: Turn) -> Conversation | None:
    return conversations.get(tx, turn.conversation_id)


def _summary(agent: AgentConfig, work: AgentAtWork, dead: int) -> AgentSummary:
    return AgentSummary(
        agent.name,
        agent.owner or "",
        agent.projects,
        work.paused_by,
        work.running + work.waiting,
        dead,
        work.spent.messages,
        agent.limits.messages_per_day,
        work.spent.tokens,
        work.spent.most_tokens,
    )


def _line(tx: Transaction, turn: Turn, prefix: str) -> TurnLine:
    conversation = _conversation(tx, turn)
    at_its_door = once_more(conversation.door, prefix, turn.id) if conversation else ""
    message = conversations.message(tx, turn.message_id)
    text = " ".join(message.text[: 4 * _TEXT_SHOWN].split())
    return TurnLine(
        turn.id,
        conversation.agent if conversation else "",
        _ref(tx, conversation.mr if conversation else None),
        conversation.door.value if conversation else "",
        str(message.root),
        turn.state.value,
        turn.why.removesuffix(at_its_door).rstrip(),  # the shell says by itself how it is sent again
        text if len(text) <= _TEXT_SHOWN else f"{text[: _TEXT_SHOWN - 1]}…",
        turn.attempt,
        turn.created_at,
        turn.ended_at,
    )


def _approval(tx: Transaction, one: Approval) -> ApprovalLine:
    return ApprovalLine(
        one.id,
        one.kind.value,
        one.state.value,
        one.title,
        one.payload,
        _ref(tx, one.mr),
        str(one.asked_by),
        one.created_at,
        one.expires_at,
        str(one.decided_by) if one.decided_by else "",
        one.outcome,
    )


def _ref(tx: Transaction, ref: MergeRequestRef | None) -> str:
    mr = merge_requests.get(tx, ref) if ref else None
    return mr.full_ref if mr else f"!{ref.iid}" if ref else ""
