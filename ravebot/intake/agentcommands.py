"""Carries out the commands for conversations with agents in rooms; what is said to agents is in `conversations`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ravebot.agents import routing
from ravebot.agents.model import AgentDoor, ApprovalId, Conversation
from ravebot.agents.routing import Unclear
from ravebot.commands.execute import in_full
from ravebot.commands.permissions import Right
from ravebot.commands.refs import Ref
from ravebot.commands.verbs import AgentAct, Command, Door, Show
from ravebot.intake.agents import AgentReports
from ravebot.intake.concern import about_conversation
from ravebot.intake.conversations import RoomConversations
from ravebot.intake.loop import Step
from ravebot.intake.rooms import NOT_MAPPED
from ravebot.matrix.incoming import IncomingMessage
from ravebot.matrix.replies import render_reply
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor
from ravebot.store import conversations, merge_requests, outbox
from ravebot.store.database import Transaction

Act = Callable[[Transaction, Conversation, Actor], Outcome]
"""What is done with a conversation, inside the caller's transaction."""


@dataclass(frozen=True)
class AgentCommands:
    """The verbs of the group for agents, but `diff`."""

    talk: RoomConversations

    async def commanded(self, message: IncomingMessage, command: Command, patterns: tuple[str, ...]) -> Step:
        """A command for agents."""
        near = await self.talk.rooms.database.read(lambda tx: self.talk.near(tx, message))
        match command.verb.does:
            case AgentAct.ASK:
                return await self.talk.routed(message, routing.asked(command.text, near), patterns)
            case AgentAct.STEER:
                return await self.talk.routed(
                    message, routing.asked(command.text, replace(near, default="")), patterns, steer=True
                )
            case AgentAct.CANCEL:
                return await self._with_one(
                    message, command, patterns, lambda tx, one, by: self.talk.desk.cancel(tx, one.id, by)
                )
            case AgentAct.RESEND:
                return await self._with_one(
                    message, command, patterns, lambda tx, one, by: self.talk.desk.resend_last(tx, one.id, by)
                )
            case AgentAct.APPROVE | AgentAct.DENY:
                return await self._answers(message, command)
            case _:
                return await self._reports(message, command, patterns)

    async def _answers(self, message: IncomingMessage, command: Command) -> Step:
        actor = await self.talk.rooms.database.read(lambda tx: self.talk.actor(tx, message))
        take = await self.talk.approvals.answer(
            ApprovalId(command.number or 0),
            command.verb.does is AgentAct.APPROVE,
            actor,
            place=message.room_id,
            direct=message.direct,
        )

        def step(tx: Transaction) -> str:
            taken = take(tx)
            if taken.text:
                self.talk.rooms.reply(tx, message, render_reply(taken.text), aside=not taken.taken)
            return taken.text

        return step

    async def _reports(self, message: IncomingMessage, command: Command, patterns: tuple[str, ...]) -> Step:
        """What `agents` and `budget` show: in a direct chat only of the asker's own projects."""
        decision = await self.talk.rooms.may(message, Right.NONE, None, bool(patterns))
        projects = patterns
        if message.direct:
            projects = await self.talk.rooms.nameable(message, patterns)
            if not projects:
                decision = await self.talk.rooms.may(message, Right.READ, None, mapped=False)
        if not decision.allowed:
            return self.talk.refusal(message, command.verb.name, decision)
        reports = AgentReports(self.talk.config)

        def step(tx: Transaction) -> str:
            if command.verb.does is Show.BUDGET:
                text = reports.budget(tx, self.talk.actor(tx, message), projects)
            else:
                names = self.talk.rooms.names_of(message.room_id, outbox.rooms(tx))
                text = reports.agents(tx, projects, (message.room_id, *names))
            self.talk.rooms.reply(tx, message, render_reply(text))
            return command.verb.name

        return step

    async def _with_one(self, message: IncomingMessage, command: Command, patterns: tuple[str, ...], act: Act) -> Step:
        """A command about the conversation in whose thread it is, or one of whose messages it answers."""
        found = await self.talk.rooms.database.read(lambda tx: _meant(tx, message, command))
        if isinstance(found, Unclear):
            return self.talk.mistake(message, found.why)
        one, ref = found
        decision = await self.talk.may_at(message, ref, patterns) if ref else NOT_MAPPED
        if not decision.allowed:
            return self.talk.refusal(message, command.verb.name, decision, str(ref or ""))

        def step(tx: Transaction) -> str:
            outcome = act(tx, one, self.talk.actor(tx, message))
            text = in_full(outcome, Door.ROOM, self.talk.config.matrix.command_prefix, str(ref or ""))
            self.talk.rooms.reply(tx, message, render_reply(text), aside=not outcome.accepted)
            return outcome.message

        return step


def _meant(tx: Transaction, message: IncomingMessage, command: Command) -> tuple[Conversation, Ref | None] | Unclear:
    """The conversation that a command is about, and its merge request."""
    about = about_conversation(tx, message)
    there = conversations.in_thread(tx, AgentDoor.MATRIX, message.room_id, message.thread_root or "")
    if about and about not in there:
        there = (*there, about)
    if command.agent:
        about = next((one for one in there if one.agent == command.agent), None)
        if about is None and there:
            return Unclear(f"Here is no conversation with it, only with {_names(there)}.")
    elif about is None and len(there) == 1:
        about = there[0]
    if about is None and there:
        return Unclear(f"Say which agent is meant: `{command.verb.name} {there[0].agent}`. Here are {_names(there)}.")
    if about is None:
        return Unclear("Say it in the thread of a conversation with an agent, or in a reply to the agent's message.")
    mr = merge_requests.get(tx, about.mr) if about.mr else None
    return about, Ref(mr.project_path, mr.ref.iid) if mr else None


def _names(some: Iterable[Conversation]) -> str:
    return " and ".join(sorted({one.agent for one in some}))
