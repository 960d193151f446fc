"""Handles commands in Matrix rooms, and replies in the same room."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

from ravebot.clock import to_us
from ravebot.commands import refs
from ravebot.commands.execute import Subject, execute, in_full
from ravebot.commands.people import People
from ravebot.commands.permissions import Asker, Decision, Right, decide
from ravebot.commands.refs import Ref
from ravebot.commands.verbs import VERBS, Command, Door, Mistake, Show, Verb, explain, help_on
from ravebot.config.model import Config, matches_project
from ravebot.errors import NotFound
from ravebot.intake.loop import Step
from ravebot.intake.poll import MAX_COMMAND_AGE
from ravebot.matrix.cards import Style, render_logs, render_show, render_why
from ravebot.matrix.commands import command_line, number_in, parse
from ravebot.matrix.content import as_reply
from ravebot.matrix.incoming import Heard, IncomingMessage, Removed
from ravebot.matrix.replies import render_help, render_list, render_queue, render_reply, render_whoami
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Intents
from ravebot.sandboxes.model import Actor, MergeRequest, SandboxState
from ravebot.store import inbox, merge_requests, outbox, restored, sandboxes
from ravebot.store.database import Database, Transaction, get_meta, set_meta
from ravebot.store.inbox import Request
from ravebot.store.targets import Kind, RoomLane

NOT_MAPPED = decide(Right.COMMAND, room_maps_project=False, gitlab_username=None, access_level=None)
NOT_SERVED = Decision(
    False, "That project gets no sandboxes.", "Ask an admin of ravebot to add it to the projects in its configuration."
)
_MOST_RIGHTS = 6
_MOST_EVENTS = 50
SYNC_TOKEN = "matrix_sync_token"  # noqa: S105 - the name of a row


@dataclass(frozen=True)
class MatrixJournal:
    """Stores the commands of a sync in the inbox, together with the sync token."""

    database: Database
    prefix: str

    async def token(self) -> str | None:
        return await self.database.read(lambda tx: get_meta(tx, SYNC_TOKEN))

    async def save(self, messages: tuple[Heard, ...], next_batch: str) -> None:
        def write(tx: Transaction) -> None:
            for message in messages:
                if isinstance(message, Removed):
                    _card_removed(tx, message)
                    continue
                addressed = message.text.lstrip()[: len(self.prefix)].lower() == self.prefix.lower()
                if addressed and not _is_too_old(message, tx):
                    body, lane = _kept(message), self._lane(tx, message)
                    if _is_before_restore(message, tx):
                        inbox.record(tx, "matrix", message.event_id, lane, "message", restored.TOO_OLD)
                        continue
                    inbox.add(tx, source="matrix", key=message.event_id, lane=lane, kind="message", body=body)
            set_meta(tx, SYNC_TOKEN, next_batch)

        await self.database.write(write)

    def _lane(self, tx: Transaction, message: IncomingMessage) -> str:
        """The lane of a command: commands on one merge request stay in order, and do not delay others.

        It is keyed by the number, because `!42`, `group/app!42` and a card may be the same merge request.
        """
        number = number_in(message.text, self.prefix)
        if number is None and (card := _card(tx, message)):
            number = card.iid
        return message.room_id if number is None else f"{message.room_id} {number}"


@dataclass(frozen=True)
class MatrixIntake:
    """The handler of the inbox's `matrix` rows."""

    config: Config
    people: People
    intents: Intents
    views: Views
    database: Database
    verbs: Sequence[Verb] = VERBS

    async def handle(self, request: Request) -> Step:
        message, patterns = await self._placed(IncomingMessage(**json.loads(request.body)))
        prefix = self.config.matrix.command_prefix
        card = await self.database.read(lambda tx: _card(tx, message))
        command = parse(message.text, prefix, (), self.verbs, card)
        if isinstance(command, Mistake) and number_in(message.text, prefix):  # the projects say what a bare one means
            command = parse(message.text, prefix, await self._nameable(message, patterns), self.verbs, card)
        if command is None:
            return _nothing
        if isinstance(command, Mistake):
            said = render_reply(explain(command, Door.ROOM, prefix))
            return self._says(message, said, "usage", aside=True)
        if command.ref is None:
            return await self._about_room(message, command, patterns)
        return await self._about_one(message, command, command.ref, patterns)

    def delayed(self, tx: Transaction, request: Request, why: str) -> None:
        message = IncomingMessage(**json.loads(request.body))
        text = f"{why} Your command is kept and carried out as soon as possible: you need not type it again."
        self._reply(tx, message, render_reply(text))

    def failed(self, tx: Transaction, request: Request, why: str) -> None:
        message = IncomingMessage(**json.loads(request.body))
        self._reply(tx, message, render_reply(why))

    async def _placed(self, message: IncomingMessage) -> tuple[IncomingMessage, tuple[str, ...]]:
        """The configured projects of the room; in a direct chat all.

        A configured room keeps its readers' rights even while only one person is in it; to
        `matrix.operations_room` no project is mapped.
        """
        names = self._names_of(message.room_id, await self.database.read(outbox.rooms))
        if names:
            mapped = (room.projects for room in self.config.matrix.rooms if room.room in names)
            return replace(message, direct=False), tuple(pattern for projects in mapped for pattern in projects)
        return message, self.config.gitlab.projects if message.direct else ()

    def _names_of(self, room_id: str, ids: Mapping[str, str]) -> tuple[str, ...]:
        """The room's names in the configuration; `ids` may contain old names."""
        return tuple(name for name in self.config.matrix.room_names if room_id in (name, ids.get(name)))

    def _name_of(self, tx: Transaction, message: IncomingMessage) -> str:
        """The configured name of a message's room; empty where none is configured."""
        return next(iter(self._names_of(message.room_id, outbox.rooms(tx))), "")

    async def _nameable(self, message: IncomingMessage, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """The projects that a bare `!42` may mean and that may be named: in a direct chat only the asker's own."""
        projects = await self._projects(patterns)
        if not message.direct or message.sender in self.config.matrix.admins:
            return projects
        return tuple([path for path in projects if await self.people.has_role(message.sender, path)])

    async def _projects(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """The projects that a bare `!42` may mean: those configured by full path, and those in the database."""
        heard = await self.database.read(merge_requests.project_paths)
        named = {pattern for pattern in patterns if "*" not in pattern}
        return tuple(sorted(named | {path for path in heard if matches_project(patterns, path)}))

    async def _about_room(self, message: IncomingMessage, command: Command, patterns: tuple[str, ...]) -> Step:
        verb = command.verb
        if verb.does in (Show.LIVE, Show.QUEUE):
            return await self._several(message, command, patterns)
        decision = await self._may(message, command, None, bool(patterns))
        if decision.allowed and verb.does is Show.HELP:
            prefix, about = self.config.matrix.command_prefix, command.about
            more = render_reply(help_on(about, Door.ROOM, prefix)) if about else render_help(prefix, self.verbs)
            return self._says(message, more, verb.name)
        if decision.allowed and verb.does is Show.WHOAMI:
            whoami = render_whoami(message.sender, await self._whoami(message, patterns))
            return self._says(message, whoami, verb.name)
        return self._executes(message, command, decision)

    async def _several(self, message: IncomingMessage, command: Command, patterns: tuple[str, ...]) -> Step:
        """The sandboxes that the asker may see from here; each project is checked separately."""
        views = await self.database.read(self.views.live)
        views = tuple(view for view in views if matches_project(patterns, view.mr.project_path))
        projects: set[int | None] = {view.mr.ref.project_id for view in views}
        mapped = bool(patterns) and not message.direct  # membership of a direct chat gives no right to read
        decisions = {
            project_id: await self._may(message, command, project_id, mapped) for project_id in projects or {None}
        }
        shown = tuple(view for view in views if decisions[view.mr.ref.project_id].allowed)
        nothing_to_hide = not views and bool(patterns) and self.people.is_known(message.sender)
        if not shown and not nothing_to_hide:
            refusal = next((decision for decision in decisions.values() if not decision.allowed), None)
            if refusal:
                return self._executes(message, command, refusal)
        rendered = render_queue(shown) if command.verb.does is Show.QUEUE else render_list(shown)
        return self._says(message, rendered, command.verb.name)

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
        for path in await self._nameable(message, patterns):
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
        decision = await self._may(message, command, project_id, mapped, ref.project_path)
        if not decision.allowed:
            return self._executes(message, command, decision)
        verb = command.verb
        try:
            mr = await self.people.merge_request(ref)
            head = await self.people.head(verb, mr.ref)
        except NotFound as error:
            prefix = self.config.matrix.command_prefix
            said = f"{refs.missing(ref)} To see what has a sandbox here, type `{prefix} list`."
            return self._says(message, render_reply(said), f"no such merge request: {error}", aside=True)
        if isinstance(what := verb.does, Show):
            shown = await self.database.read(lambda tx: self._shown(tx, what, mr, message))
            return self._says(message, shown, verb.name)
        return self._executes(message, command, decision, head or mr, ref)

    def _shown(self, tx: Transaction, what: Show, mr: MergeRequest, message: IncomingMessage) -> Mapping[str, object]:
        prefix = self.config.matrix.command_prefix
        view = self.views.latest(tx, mr.ref, events=_MOST_EVENTS)
        if view is None:
            return render_reply(
                f"{mr.full_ref} never had a sandbox. To start one, type `{prefix} start {mr.full_ref}`."
            )
        style = Style(prefix, self.config.matrix.short_refs(self._name_of(tx, message)))
        match what:
            case Show.CARD:
                return render_show(view, style)
            case Show.WHY:
                return render_why(view, style)
            case Show.LOGS:
                return render_logs(view, sandboxes.printed(tx, mr.ref), style)
            case _:  # a bug: every other `Show` is about the whole room, see `_about_room`
                raise NotImplementedError(f"rooms do not show {what}")

    async def _may(
        self, message: IncomingMessage, command: Command, project_id: int | None, mapped: bool, project: str = ""
    ) -> Decision:
        return await self.people.from_room(
            command.verb.right,
            message.sender,
            project_id=project_id,
            mapped=mapped,
            direct=message.direct,
            project=project,
        )

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
            asker = Asker(Actor("matrix", message.sender, self._name_of(tx, message), thread), decision)
            outcome = execute(self.intents, tx, command, asker, target)
            text = in_full(outcome, Door.ROOM, self.config.matrix.command_prefix, str(ref or ""), self.verbs)
            self._reply(tx, message, render_reply(text), aside=not decision.allowed)
            return outcome.message

        return step

    def _says(
        self, message: IncomingMessage, content: Mapping[str, object], outcome: str, *, aside: bool = False
    ) -> Step:
        def step(tx: Transaction) -> str:
            self._reply(tx, message, content, aside=aside)
            return outcome

        return step

    def _reply(
        self, tx: Transaction, message: IncomingMessage, content: Mapping[str, object], *, aside: bool = False
    ) -> None:
        """Reply in the message's thread, if any. An `aside`, about a mistake or refusal, begins a thread under the
        message, so that a busy room is not disturbed.

        Replies use the lane of the room's cards, so that both keep their order.
        """
        lane = self._name_of(tx, message) or message.room_id
        thread = message.thread_root or (message.event_id if aside and not message.direct else None)
        body = {"content": as_reply(dict(content), message.event_id, thread)}
        outbox.add(tx, RoomLane(lane), Kind.REPLY, body={**body})


def _kept(message: IncomingMessage) -> str:
    """A message as it is stored in the inbox: of its text only the command line."""
    return json.dumps(asdict(replace(message, text=command_line(message.text))))


def _card_removed(tx: Transaction, removal: Removed) -> None:
    """Somebody removed a message: if it was the card of a live sandbox, another one is posted."""
    removed = outbox.remove_card(tx, removal.room_id, removal.event_id)
    if removed is None:
        return
    sandbox_id, room = removed
    sandbox = sandboxes.get(tx, sandbox_id)
    if sandbox and sandbox.state is not SandboxState.ENDED:
        outbox.add(tx, RoomLane(room), Kind.CARD, sandbox_id=sandbox_id)


def _card(tx: Transaction, message: IncomingMessage) -> Ref | None:
    """The merge request of the card that a message answers, or in whose thread it is."""
    for event_id in (message.reply_to, message.thread_root):
        sandbox_id = outbox.sandbox_of_card(tx, message.room_id, event_id) if event_id else None
        sandbox = sandboxes.get(tx, sandbox_id) if sandbox_id else None
        mr = merge_requests.get(tx, sandbox.mr) if sandbox else None
        if mr:
            return Ref(mr.project_path, mr.ref.iid)
    return None


def _is_too_old(message: IncomingMessage, tx: Transaction) -> bool:
    """Whether a command is too old: a restored backup has an old sync token, so that old commands arrive again."""
    return message.at_ms > 0 and tx.now_us - 1000 * message.at_ms > MAX_COMMAND_AGE // timedelta(microseconds=1)


def _is_before_restore(message: IncomingMessage, tx: Transaction) -> bool:
    """Whether it was said before the state was restored: it may have been carried out, and the backup not know it."""
    moment = restored.since(tx)
    return moment is not None and 1000 * message.at_ms < to_us(moment)


def _nothing(_: Transaction) -> str:
    return "not for us"
