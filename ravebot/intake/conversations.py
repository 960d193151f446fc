"""Takes what people in rooms say to agents, and finds out which merge request it is about and where the answer goes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ravebot.agents import overview, registry, routing
from ravebot.agents.approvals import Approvals
from ravebot.agents.desk import Addressed, Desk, DeskOutcome
from ravebot.agents.model import AgentDoor, Conversation, TurnState
from ravebot.agents.reception import Reception, refuse
from ravebot.agents.routing import Near, ToAgent, Unclear
from ravebot.commands import refs
from ravebot.commands.permissions import Decision, Right
from ravebot.commands.refs import Ref
from ravebot.config.model import AgentConfig, Config
from ravebot.config.patterns import matches_project
from ravebot.errors import NotFound
from ravebot.intake.concern import SOURCE, RowKind, about_conversation, meant_by_place
from ravebot.intake.loop import Step, only
from ravebot.intake.rooms import NOT_MAPPED, NOT_SERVED, Rooms
from ravebot.matrix.incoming import IncomingMessage
from ravebot.matrix.replies import render_reply
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.model import Actor, MergeRequest, SandboxState
from ravebot.sandboxes.settings import of_merge_request
from ravebot.store import approvals, conversations, inbox, merge_requests, outbox
from ravebot.store.database import Transaction

_MOST_NAMED = 5
_DIGITS = re.compile("[0-9]+")
_NOT_WHOLE = (
    "Only the beginning of that message reached me, because too much was said while I was away. Please send it again."
)


@dataclass(frozen=True)
class Spot:
    """Where a conversation is held: its thread, whether it has that to itself, and the conversation if it began."""

    thread: str
    own: bool
    conversation: Conversation | None


@dataclass(frozen=True)
class About:
    """The merge request that a message is about; `chosen`: by us, as the only one."""

    mr: MergeRequest
    chosen: bool = False


@dataclass(frozen=True)
class RoomConversations:
    """The rooms' half of what people want of agents."""

    rooms: Rooms
    views: Views
    reception: Reception
    approvals: Approvals

    @property
    def desk(self) -> Desk:
        return self.reception.desk

    @property
    def config(self) -> Config:
        return self.rooms.config

    async def said(self, message: IncomingMessage, patterns: tuple[str, ...]) -> Step:
        """A message that names an agent, answers one, or is in an agent's thread."""
        if not patterns:  # whoever is called that here is no agent of ours
            return only("not for us")
        near = await self.rooms.database.read(lambda tx: self.near(tx, message))
        return await self.routed(message, routing.route(message.text, near), patterns)

    async def routed(
        self,
        message: IncomingMessage,
        routed: ToAgent | Unclear | None,
        patterns: tuple[str, ...],
        *,
        steer: bool = False,
    ) -> Step:
        """What is done with a message whose recipient was found. `steer`: instead of what runs now."""
        if routed is None:
            return only("not for us")
        if isinstance(routed, Unclear) or not message.whole:
            why = routed.why if isinstance(routed, Unclear) else _NOT_WHOLE
            return self.mistake(message, why)
        agent = registry.find(self.config, routed.agent)
        if agent is None:
            return self.mistake(message, f"There is no agent {routed.agent} any more.")
        about = await self._about(message, routed, agent, patterns)
        if not isinstance(about, About):
            return about
        decision = await self.reception.may(
            agent.name,
            Actor("matrix", message.sender),
            about.mr,
            mapped=bool(patterns),
            direct=message.direct,
        )
        if not decision.allowed:
            return self.refusal(message, "ask", decision, about.mr.full_ref, quiet=self._is_unasked(message, routed))
        return lambda tx: self._accept(tx, message, routed, about, steer=steer)

    def _accept(self, tx: Transaction, message: IncomingMessage, routed: ToAgent, about: About, *, steer: bool) -> str:
        spot = _spot(tx, message, routed.agent)
        said = Addressed(
            agent=routed.agent,
            door=AgentDoor.MATRIX,
            place=message.room_id,
            thread=spot.thread,
            own_thread=spot.own,
            mr=about.mr.ref,
            key=message.event_id,
            author=self.actor(tx, message),
            text=routed.text,
        )
        outcome = self.reception.accept(tx, said, about.mr, steer=steer)
        lines = [outcome.message] if not outcome.accepted or self._is_news(tx, outcome) else []
        if outcome.accepted and about.chosen:
            lines.insert(0, f"{routed.agent} works in {about.mr.full_ref}: no other sandbox that it serves is here.")
        if lines:
            text = "\n".join(lines)
            thread = spot.thread if outcome.accepted else None
            key = f"told {message.room_id} {message.sender} {spot.thread} {_DIGITS.sub('', text)}"  # of many, once
            self.rooms.reply(tx, message, render_reply(text), aside=True, thread=thread, merge_key=key)
        return outcome.message

    def _is_news(self, tx: Transaction, outcome: DeskOutcome) -> bool:
        """Whether what became of a message is said in words: not if the agent gets it at once, which the receipt says,
        or if somebody is asked about it."""
        turn = conversations.turn(tx, outcome.turn_id) if outcome.turn_id else None
        pending = overview.pending(tx, turn.conversation_id) if turn else None
        if turn is None or pending is None or approvals.of_turn(tx, turn.id):
            return False
        alone = pending.waiting == (turn,) and pending.running is None
        stopped = pending.paused_by or pending.conversation.paused
        return not alone or bool(stopped) or turn.state is not TurnState.QUEUED

    async def _about(
        self, message: IncomingMessage, routed: ToAgent, agent: AgentConfig, patterns: tuple[str, ...]
    ) -> About | Step:
        """The merge request that is named, or else the one of the conversation, the card, or the only sandbox here."""

        def known(tx: Transaction) -> tuple[Spot, Ref | None]:
            spot = _spot(tx, message, agent.name)
            bound = spot.conversation.mr if spot.conversation else None
            mr = merge_requests.get(tx, bound) if bound else None
            return spot, Ref(mr.project_path, mr.ref.iid) if mr else meant_by_place(tx, message)

        spot, ref = await self.rooms.database.read(known)
        if routed.ref:
            try:
                named = refs.read(routed.ref, await self.rooms.nameable(message, patterns))
            except ValueError as error:
                return self.mistake(message, str(error))
            if spot.conversation and ref and named != ref:
                return self.mistake(message, f"This thread is about {ref}. About {named}, begin another one.")
            ref = named
        if ref is None:
            return await self._only_one(message, routed, agent, patterns)
        return await self._at(message, routed, ref, patterns)

    async def _at(self, message: IncomingMessage, routed: ToAgent, ref: Ref, patterns: tuple[str, ...]) -> About | Step:
        decision = await self.may_at(message, ref, patterns)
        if not decision.allowed:
            return self.refusal(message, "ask", decision, str(ref), quiet=self._is_unasked(message, routed))
        try:
            return About(await self.rooms.people.merge_request(ref))
        except NotFound:
            prefix = self.config.matrix.command_prefix
            return self.mistake(message, f"{refs.missing(ref)} To see what has a sandbox here, type `{prefix} list`.")

    async def may_at(self, message: IncomingMessage, ref: Ref, patterns: tuple[str, ...]) -> Decision:
        """Whether the sender may command that merge request's sandbox, here."""
        mapped = matches_project(patterns, ref.project_path)
        if not mapped or not self.config.serves(ref.project_path):
            return NOT_SERVED if mapped else NOT_MAPPED
        # A refusal must not show whether the merge request or project exists.
        project_id = await self.rooms.people.project_id(message.sender, ref)
        return await self.rooms.may(message, Right.COMMAND, project_id, mapped, ref.project_path)

    async def _only_one(
        self, message: IncomingMessage, routed: ToAgent, agent: AgentConfig, patterns: tuple[str, ...]
    ) -> About | Step:
        """The only sandbox of the room's projects that the agent serves; each project is checked separately."""
        views = await self.rooms.database.read(self.views.live)
        there = [
            view.mr
            for view in views
            if matches_project(patterns, view.mr.project_path)
            and agent.serves(view.mr.project_path)
            and (agent.forks or not view.mr.from_fork)
            and view.sandbox.state is not SandboxState.STOPPING
        ]
        projects: dict[int | None, str] = {mr.ref.project_id: mr.project_path for mr in there}
        decisions = {
            one: await self.rooms.may(message, Right.COMMAND, one, bool(patterns), "" if message.direct else path)
            for one, path in (projects or {None: ""}).items()
        }
        allowed = [mr for mr in there if decisions[mr.ref.project_id].allowed]
        refusal = next((one for one in decisions.values() if not one.allowed), None)
        if not allowed and refusal and (there or not self.rooms.people.is_known(message.sender)):
            return self.refusal(message, "ask", refusal, quiet=self._is_unasked(message, routed))
        if len(allowed) == 1:
            return About(allowed[0], chosen=True)
        if not allowed:
            why = f"There is no sandbox here that {agent.name} serves. Say which merge request it is about"
            return self.mistake(message, f"{why}, like `@{agent.name} group/app!42 {_beginning(routed.text)}`.")
        names = [mr.full_ref for mr in allowed]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        why = f"Say which sandbox it is about: `@{agent.name} {names[0]} {_beginning(routed.text)}`."
        return self.mistake(message, f"{why} There are {', '.join(names[:_MOST_NAMED])}{more}.")

    def near(self, tx: Transaction, message: IncomingMessage) -> Near:
        """What is known of the message's place."""
        about = about_conversation(tx, message)
        names = self.rooms.names_of(message.room_id, outbox.rooms(tx))
        return Near(
            registry.names(self.config),
            agent=about.agent if about else "",
            default=registry.default_of(self.config, names) or self._of_project(tx, message),
        )

    def _of_project(self, tx: Transaction, message: IncomingMessage) -> str:
        """The agent that `.rave.yml` names, of the merge request whose card the message is about."""
        ref = meant_by_place(tx, message)
        mr = merge_requests.find(tx, ref.project_path, ref.iid) if ref else None
        name = of_merge_request(tx, self.config, mr).agent if mr else ""
        agent = registry.find(self.config, name) if name else None
        return name if agent and mr and agent.serves(mr.project_path) else ""

    def actor(self, tx: Transaction, message: IncomingMessage) -> Actor:
        """Who said it, and in which configured room."""
        return Actor("matrix", message.sender, place=self.rooms.name_of(tx, message))

    def mistake(self, message: IncomingMessage, why: str) -> Step:
        """Only says what to write instead."""
        return self.rooms.says(message, render_reply(why), "unclear", aside=True)

    def _is_unasked(self, message: IncomingMessage, routed: ToAgent) -> bool:
        """Whether a stranger only wrote in an agent's thread: nobody waits for an answer to that."""
        return not routed.named and not self.rooms.people.is_known(message.sender)

    def refusal(
        self, message: IncomingMessage, verb: str, decision: Decision, ref: str = "", *, quiet: bool = False
    ) -> Step:
        """Refuse, and say so unless `quiet`; it is recorded in any case."""

        def step(tx: Transaction) -> str:
            refuse(tx, self.actor(tx, message), verb, ref, decision)
            if not quiet:
                self.rooms.reply(tx, message, render_reply(decision.refusal), aside=True)
            return decision.refusal

        return step


def _spot(tx: Transaction, message: IncomingMessage, agent: str) -> Spot:
    """The message's thread, or that of the message which it answers; in the room itself, a new one under it."""
    place = message.room_id
    if message.thread_root:
        found = conversations.find(tx, agent, AgentDoor.MATRIX, place, message.thread_root)
        # The thread began with a message for an agent, which was refused or unclear.
        began = inbox.kind_of(tx, SOURCE, message.thread_root) == RowKind.TO_AGENT
        others = conversations.in_thread(tx, AgentDoor.MATRIX, place, message.thread_root)
        own = found.own_thread if found else began and not others
        return Spot(message.thread_root, own, found)
    answered = conversations.of_event(tx, place, message.reply_to) if message.reply_to else None
    if answered and answered.agent == agent:
        return Spot(answered.thread, answered.own_thread, answered)
    found = conversations.find(tx, agent, AgentDoor.MATRIX, place, message.event_id)
    return Spot(message.event_id, True, found)


def _beginning(text: str) -> str:
    line = text.split("\n", 1)[0].replace("`", "'")
    return line if len(line) <= 40 else f"{line[:40]}…"
