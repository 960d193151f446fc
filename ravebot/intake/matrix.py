"""Handles commands in Matrix rooms, and replies in the same room."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from ravebot.agents import registry
from ravebot.commands import refs
from ravebot.commands.execute import Subject, execute, in_full
from ravebot.commands.people import People
from ravebot.commands.permissions import Asker, Decision
from ravebot.commands.refs import Ref
from ravebot.commands.verbs import VERBS, AgentAct, Command, Door, Mistake, Show, Verb, explain, help_on, without_agents
from ravebot.config.model import Config
from ravebot.config.patterns import matches_project
from ravebot.errors import NotFound
from ravebot.intake.agentcommands import AgentCommands
from ravebot.intake.concern import NO, SOURCE, STOP, YES, Concern, RowKind, card_at, meant_by_place
from ravebot.intake.conversations import RoomConversations
from ravebot.intake.diffs import RoomDiffs
from ravebot.intake.loop import Step, only
from ravebot.intake.reactions import RoomReactions, as_message
from ravebot.intake.rooms import NOT_MAPPED, NOT_SERVED, Rooms
from ravebot.intake.tokens import RoomTokens
from ravebot.matrix.cards import Style, render_logs, render_show, render_why
from ravebot.matrix.commands import is_command, number_in, parse
from ravebot.matrix.incoming import Heard, IncomingMessage, Reaction, Removed
from ravebot.matrix.replies import render_help, render_list, render_queue, render_reply, render_whoami
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Intents
from ravebot.sandboxes.model import Actor, MergeRequest, SandboxState
from ravebot.store import inbox, outbox, sandboxes
from ravebot.store.database import Database, Transaction, get_meta, set_meta
from ravebot.store.inbox import Request
from ravebot.store.targets import Kind, RoomLane

_MOST_RIGHTS = 6
_MOST_EVENTS = 50
SYNC_TOKEN = "matrix_sync_token"  # noqa: S105 - the name of a row


@dataclass(frozen=True)
class MatrixJournal:
    """Stores what concerns us in a sync in the inbox, together with the sync token. `agents`: whom people may name."""

    database: Database
    prefix: str
    agents: frozenset[str] = frozenset()

    async def token(self) -> str | None:
        return await self.database.read(lambda tx: get_meta(tx, SYNC_TOKEN))

    async def save(self, messages: tuple[Heard, ...], next_batch: str) -> None:
        concern = Concern(self.prefix, self.agents)

        def write(tx: Transaction) -> None:
            for heard in messages:
                if isinstance(heard, Removed):
                    _removed(tx, heard)
                else:
                    concern.keep(tx, heard)
            set_meta(tx, SYNC_TOKEN, next_batch)

        await self.database.write(write)


@dataclass(frozen=True)
class MatrixIntake:
    """The handler of the inbox's `matrix` rows."""

    config: Config
    people: People
    intents: Intents
    views: Views
    database: Database
    verbs: Sequence[Verb] = VERBS
    _: KW_ONLY
    agents: RoomConversations
    reactions: RoomReactions
    diffs: RoomDiffs

    @property
    def rooms(self) -> Rooms:
        return Rooms(self.config, self.people, self.database)

    async def handle(self, request: Request) -> Step:
        if request.kind in (RowKind.REACTION, RowKind.EARLY):
            return await self._reacted(Reaction(**json.loads(request.body)), request.attempts)
        message, patterns = await self.rooms.placed(IncomingMessage(**json.loads(request.body)))
        prefix = self.config.matrix.command_prefix
        if request.kind == RowKind.TO_AGENT and not is_command(message.text, prefix):
            return await self.agents.said(message, patterns)
        card = await self.database.read(lambda tx: meant_by_place(tx, message))
        command = parse(message.text, prefix, (), self.verbs, card)
        if isinstance(command, Mistake) and number_in(message.text, prefix):  # the projects say what a bare one means
            command = parse(message.text, prefix, await self.rooms.nameable(message, patterns), self.verbs, card)
        if command is None:
            return only("not for us")
        if isinstance(command, Mistake):
            said = render_reply(explain(command, Door.ROOM, prefix))
            return self.rooms.says(message, said, "usage", aside=True)
        if isinstance(command.verb.does, AgentAct) or command.verb.does in (Show.AGENTS, Show.BUDGET):
            return await AgentCommands(self.agents).commanded(message, command, patterns)
        if command.verb.does is Show.TOKENS:
            return await RoomTokens(self.rooms).handle(message, command)
        if command.ref is None:
            return await self._about_room(message, command, patterns)
        return await self._about_one(message, command, command.ref, patterns)

    async def _reacted(self, reaction: Reaction, attempts: int) -> Step:
        if reaction.key in (YES, NO):
            return await self.reactions.answered(reaction, attempts)
        ref = await self.database.read(lambda tx: card_at(tx, reaction.room_id, reaction.to))
        if ref is None:
            return only("not for us")
        if reaction.key == STOP:
            return await self.reactions.stop(reaction, ref)
        message, patterns = await self.rooms.placed(await self.reactions.on_card(reaction))
        extend = next(verb for verb in self.verbs if verb.name == "extend")
        return await self._about_one(message, Command(extend, ref), ref, patterns)

    def delayed(self, tx: Transaction, request: Request, why: str) -> None:
        message, noun, again = _answered(request)
        text = f"{why} Your {noun} is kept and carried out as soon as possible: you need not {again} again."
        self.rooms.reply(tx, message, render_reply(text), aside=request.kind != RowKind.MESSAGE)

    def failed(self, tx: Transaction, request: Request, why: str) -> None:
        message, *_ = _answered(request)
        self.rooms.reply(tx, message, render_reply(why), aside=request.kind != RowKind.MESSAGE)

    async def _about_room(self, message: IncomingMessage, command: Command, patterns: tuple[str, ...]) -> Step:
        verb = command.verb
        if verb.does in (Show.LIVE, Show.QUEUE):
            return await self._several(message, command, patterns)
        decision = await self.rooms.may(message, command.verb.right, None, bool(patterns))
        if decision.allowed and verb.does is Show.HELP:
            prefix, about = self.config.matrix.command_prefix, command.about
            useful = self.verbs if registry.names(self.config) else without_agents(self.verbs)
            more = render_reply(help_on(about, Door.ROOM, prefix)) if about else render_help(prefix, useful)
            return self.rooms.says(message, more, verb.name)
        if decision.allowed and verb.does is Show.WHOAMI:
            whoami = render_whoami(message.sender, await self._whoami(message, patterns))
            return self.rooms.says(message, whoami, verb.name)
        return self._executes(message, command, decision)

    async def _several(self, message: IncomingMessage, command: Command, patterns: tuple[str, ...]) -> Step:
        """The sandboxes that the asker may see from here; each project is checked separately."""
        views = await self.database.read(self.views.live)
        views = tuple(view for view in views if matches_project(patterns, view.mr.project_path))
        projects: set[int | None] = {view.mr.ref.project_id for view in views}
        mapped = bool(patterns) and not message.direct  # membership of a direct chat gives no right to read
        decisions = {
            project_id: await self.rooms.may(message, command.verb.right, project_id, mapped)
            for project_id in projects or {None}
        }
        shown = tuple(view for view in views if decisions[view.mr.ref.project_id].allowed)
        nothing_to_hide = not views and bool(patterns) and self.people.is_known(message.sender)
        if not shown and not nothing_to_hide:
            refusal = next((decision for decision in decisions.values() if not decision.allowed), None)
            if refusal:
                return self._executes(message, command, refusal)
        rendered = render_queue(shown) if command.verb.does is Show.QUEUE else render_list(shown)
        return self.rooms.says(message, rendered, command.verb.name)

    async def _whoami(self, message: IncomingMessage, patterns: tuple[str, ...]) -> str:
        lines: list[str] = []
        if message.sender in self.config.matrix.admins:
            lines.append("You are an admin of ravebot: you may do everything, in rooms that have projects.")
        username = self.config.matrix.users.get(message.sender)
        if username is None:
            lines.append("No GitLab user is tied to that account: ask an admin of ravebot to add it to the users.")
            return "\n".join(lines)
        lines.append(f"On GitLab you are `{username}`.")
        rights: list[str] = []
        for path in await self.rooms.nameable(message, patterns):
            decision = await self.people.may_command(message.sender, path, direct=message.direct)
            if decision is None:  # deleted or hidden from us: the other projects still count
                continue
            rights.append(f"`{path}`: you {'may' if decision.allowed else 'may not'} command. {decision.rule}")
        shown = rights[:_MOST_RIGHTS]
        more = [f"and {len(rights) - len(shown)} more"] if len(rights) > len(shown) else []
        return "\n".join([*lines, *shown, *more])

    async def _about_one(self, message: IncomingMessage, command: Command, ref: Ref, patterns: tuple[str, ...]) -> Step:
        mapped = matches_project(patterns, ref.project_path)
        if not mapped or not self.config.serves(ref.project_path):
            return self._executes(message, command, NOT_MAPPED if not mapped else NOT_SERVED)
        # A refusal must not show whether the merge request or project exists.
        project_id = await self.people.project_id(message.sender, ref)
        decision = await self.rooms.may(message, command.verb.right, project_id, mapped, ref.project_path)
        if not decision.allowed:
            return self._executes(message, command, decision)
        verb = command.verb
        try:
            mr = await self.people.merge_request(ref)
            head = await self.people.head(verb, mr.ref)
        except NotFound as error:
            prefix = self.config.matrix.command_prefix
            said = f"{refs.missing(ref)} To see what has a sandbox here, type `{prefix} list`."
            return self.rooms.says(message, render_reply(said), f"no such merge request: {error}", aside=True)
        if verb.does is Show.DIFF:
            return await self.diffs.show(message, mr)
        if isinstance(what := verb.does, Show):
            shown = await self.database.read(lambda tx: self._shown(tx, what, mr, message))
            return self.rooms.says(message, shown, verb.name)
        return self._executes(message, command, decision, head or mr, ref)

    def _shown(self, tx: Transaction, what: Show, mr: MergeRequest, message: IncomingMessage) -> Mapping[str, object]:
        prefix = self.config.matrix.command_prefix
        view = self.views.latest(tx, mr.ref, events=_MOST_EVENTS)
        if view is None:
            return render_reply(
                f"{mr.full_ref} never had a sandbox. To start one, type `{prefix} start {mr.full_ref}`."
            )
        style = Style(prefix, self.config.matrix.short_refs(self.rooms.name_of(tx, message)))
        match what:
            case Show.CARD:
                return render_show(view, style)
            case Show.WHY:
                return render_why(view, style)
            case Show.LOGS:
                return render_logs(view, sandboxes.printed(tx, mr.ref), style)
            case _:  # a bug: every other `Show` is about the whole room, see `_about_room`
                raise NotImplementedError(f"rooms do not show {what}")

    def _executes(
        self,
        message: IncomingMessage,
        command: Command,
        decision: Decision,
        target: Subject | None = None,
        ref: Ref | None = None,
    ) -> Step:
        def step(tx: Transaction) -> str:
            thread = message.thread_root or message.event_id
            asker = Asker(Actor("matrix", message.sender, self.rooms.name_of(tx, message), thread), decision)
            outcome = execute(self.intents, tx, command, asker, target)
            text = in_full(outcome, Door.ROOM, self.config.matrix.command_prefix, str(ref or ""), self.verbs)
            self.rooms.reply(tx, message, render_reply(text), aside=not decision.allowed)
            return outcome.message

        return step


def _removed(tx: Transaction, removal: Removed) -> None:
    """Somebody removed an event: what waits in the inbox is taken back, and of a live sandbox another card is posted.

    What was handled is not taken back.
    """
    inbox.take_back(tx, SOURCE, removal.event_id)
    removed = outbox.remove_card(tx, removal.room_id, removal.event_id)
    if removed is None:
        return
    sandbox_id, room = removed
    sandbox = sandboxes.get(tx, sandbox_id)
    if sandbox and sandbox.state is not SandboxState.ENDED:
        outbox.add(tx, RoomLane(room), Kind.CARD, sandbox_id=sandbox_id)


def _answered(request: Request) -> tuple[IncomingMessage, str, str]:
    """What a reply to a request answers, what that is, and how it would be made again."""
    body = json.loads(request.body)
    match request.kind:
        case RowKind.REACTION | RowKind.EARLY:
            return as_message(Reaction(**body), ""), "reaction", "react"
        case RowKind.TO_AGENT:
            return IncomingMessage(**body), "message", "say it"
        case _:
            return IncomingMessage(**body), "command", "type it"
