"""Acts on what was said in the rooms: commands, answered in the room in which they were given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

from ravebot.config.model import Config, matches_project
from ravebot.errors import Forbidden, NotFound
from ravebot.gitlab.client import GitLab
from ravebot.intake.loop import Step
from ravebot.intake.people import People
from ravebot.intake.poll import STILL_OBEYED
from ravebot.matrix.cards import render_card, render_why
from ravebot.matrix.commands import Command, Ref, Usage, command_line, number_in, parse
from ravebot.matrix.content import as_reply
from ravebot.matrix.incoming import IncomingMessage
from ravebot.matrix.replies import render_help, render_list, render_queue, render_reply, render_whoami
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Intents, Outcome
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.sandboxes.view import SandboxView
from ravebot.store import events, inbox, merge_requests, outbox
from ravebot.store.database import Database, Transaction, get_meta, set_meta
from ravebot.store.inbox import Request
from ravebot.store.targets import Kind, RoomLane

SYNC_TOKEN = "matrix_sync_token"  # noqa: S105 - the name of a row
_NEEDS_HEAD = frozenset({"start", "rebuild"})


@dataclass(frozen=True)
class MatrixJournal:
    """What the sync loop hears goes to the inbox together with how far it has heard."""

    database: Database
    prefix: str

    async def token(self) -> str | None:
        return await self.database.read(lambda tx: get_meta(tx, SYNC_TOKEN))

    async def save(self, messages: tuple[IncomingMessage, ...], next_batch: str) -> None:
        def write(tx: Transaction) -> None:
            for message in messages:
                addressed = message.text.lstrip()[: len(self.prefix)].lower() == self.prefix.lower()
                if addressed and not _is_too_old(message, tx):
                    body, lane = _kept(message), self._lane(message)
                    inbox.add(tx, source="matrix", key=message.event_id, lane=lane, kind="message", body=body)
            set_meta(tx, SYNC_TOKEN, next_batch)

        await self.database.write(write)

    def _lane(self, message: IncomingMessage) -> str:
        """Order counts among commands about one merge request, and one that GitLab can't tell of must hold up no other.

        The number is enough: whether `!42` and `group/app!42` are the same is not known yet.
        """
        number = number_in(message.text, self.prefix)
        return message.room_id if number is None else f"{message.room_id} {number}"


@dataclass(frozen=True)
class MatrixIntake:
    """The handler of the inbox's `matrix` rows."""

    config: Config
    gitlab: GitLab
    people: People
    intents: Intents
    views: Views
    database: Database

    async def handle(self, request: Request) -> Step:
        message, patterns = await self._placed(IncomingMessage(**json.loads(request.body)))
        prefix = self.config.matrix.command_prefix
        command = parse(message.text, prefix, ())
        if isinstance(command, Usage) and number_in(message.text, prefix):  # a bare one means something by projects
            command = parse(message.text, prefix, await self._nameable(message, patterns))
        if command is None:
            return _nothing
        if isinstance(command, Usage):
            return self._says(message, render_reply(command.message, None), "usage")
        if command.ref is None:
            return await self._about_room(message, command, patterns)
        return await self._about_one(message, command, command.ref, patterns)

    def delayed(self, tx: Transaction, request: Request, why: str) -> None:
        message = IncomingMessage(**json.loads(request.body))
        text = f"I can't do that right now and try again until I can: {why}"
        self._reply(tx, message, render_reply(text, None))

    def failed(self, tx: Transaction, request: Request, why: str) -> None:
        message = IncomingMessage(**json.loads(request.body))
        self._reply(tx, message, render_reply(why, None))

    async def _placed(self, message: IncomingMessage) -> tuple[IncomingMessage, tuple[str, ...]]:
        """The projects of the room, as configured; in a direct chat all.

        A configured room stays one, with its readers' rights, also while only one person is in it; to
        `matrix.operations_room` no project is mapped.
        """
        names = self._names_of(message.room_id, await self.database.read(outbox.rooms))
        if names:
            mapped = (room.projects for room in self.config.matrix.rooms if room.room in names)
            return replace(message, direct=False), tuple(pattern for projects in mapped for pattern in projects)
        return message, self.config.gitlab.projects if message.direct else ()

    def _names_of(self, room_id: str, ids: Mapping[str, str]) -> tuple[str, ...]:
        """What a room is called in the configuration; `ids` may hold names that were there once."""
        return tuple(name for name in self.config.matrix.room_names if room_id in (name, ids.get(name)))

    async def _nameable(self, message: IncomingMessage, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """The projects that a bare `!42` may mean, and be told of by name: in a direct chat only the asker's own."""
        projects = await self._projects(patterns)
        if not message.direct or message.sender in self.config.matrix.admins:
            return projects
        levels = [(path, await self._level(message, path)) for path in projects]
        return tuple(path for path, level in levels if level)

    async def _level(self, message: IncomingMessage, project_path: str) -> int:
        """The sender's access level in a project; 0 for none, and where GitLab has no such project any more."""
        username = self.config.matrix.users.get(message.sender)
        if username is None:
            return 0
        try:
            project_id, _ = await self.gitlab.project(project_path)
            return await self.people.level_of(username, project_id)
        except (NotFound, Forbidden):
            return 0

    async def _projects(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """The projects that a bare `!42` may mean: those named in full, and those heard of."""
        heard = await self.database.read(merge_requests.project_paths)
        named = {pattern for pattern in patterns if "*" not in pattern}
        return tuple(sorted(named | {path for path in heard if matches_project(patterns, path)}))

    async def _about_room(self, message: IncomingMessage, command: Command, patterns: tuple[str, ...]) -> Step:
        if command.verb in ("list", "queue"):
            return await self._several(message, command, patterns)
        decision = await self.people.from_room(
            command.verb, message.sender, project_id=None, mapped=bool(patterns), direct=message.direct
        )
        if not decision.allowed:
            return self._refuses(message, command, decision.rule)
        if command.verb == "help":
            return self._says(message, render_help(self.config.matrix.command_prefix), "help")
        return self._says(message, render_whoami(message.sender, await self._whoami(message, patterns)), "whoami")

    async def _several(self, message: IncomingMessage, command: Command, patterns: tuple[str, ...]) -> Step:
        """The sandboxes of the projects that the asker may see from here, each project decided on by itself."""
        views = await self.database.read(self.views.live)
        views = tuple(view for view in views if matches_project(patterns, view.mr.project_path))
        projects: set[int | None] = {view.mr.ref.project_id for view in views}
        decisions = {
            project_id: await self.people.from_room(
                command.verb,
                message.sender,
                project_id=project_id,
                mapped=bool(patterns) and not message.direct,  # a direct chat is no room whose readers may read all
                direct=message.direct,
            )
            for project_id in projects or {None}
        }
        shown = tuple(view for view in views if decisions[view.mr.ref.project_id].allowed)
        nothing_to_hide = not views and bool(patterns) and self.people.is_known(message.sender)
        if not shown and not nothing_to_hide:
            refusal = next((decision for decision in decisions.values() if not decision.allowed), None)
            if refusal:
                return self._refuses(message, command, refusal.rule)
        return self._says(message, render_queue(shown) if command.verb == "queue" else render_list(shown), command.verb)

    async def _whoami(self, message: IncomingMessage, patterns: tuple[str, ...]) -> str:
        lines: list[str] = []
        if message.sender in self.config.matrix.admins:
            lines.append("You are one of `matrix.admins`: you may do everything, in rooms that are mapped.")
        username = self.config.matrix.users.get(message.sender)
        if username is None:
            lines.append("No GitLab user is tied to that in `matrix.users`: ask an admin.")
            return "\n".join(lines)
        lines.append(f"On GitLab you are `{username}`.")
        for path in await self._nameable(message, patterns):
            try:
                project_id, _ = await self.gitlab.project(path)
                decision = await self.people.from_room(
                    "stop", message.sender, project_id=project_id, mapped=True, direct=message.direct
                )
            except (NotFound, Forbidden):  # gone on GitLab, or hidden from us: the others count still
                continue
            lines.append(f"`{path}`: {'you may command' if decision.allowed else 'you may not'} ({decision.rule})")
        return "\n".join(lines)

    async def _about_one(self, message: IncomingMessage, command: Command, ref: Ref, patterns: tuple[str, ...]) -> Step:
        mapped = matches_project(patterns, ref.project_path)
        if not mapped or not self.config.serves(ref.project_path):
            rule = "this room is not mapped to that project" if not mapped else "that project gets no sandboxes"
            return self._refuses(message, command, rule)
        # Whoever may not is told only that, in the same words whether or not there is such a merge request or project.
        decision = await self.people.from_room(
            command.verb,
            message.sender,
            project_id=await self._project_id(message.sender, ref),
            mapped=mapped,
            direct=message.direct,
        )
        if not decision.allowed:
            return self._refuses(message, command, decision.rule)
        mr = await self.people.merge_request(ref.project_path, ref.iid)
        if command.verb in ("show", "why", "logs"):
            view = await self.database.read(lambda tx: self.views.latest(tx, mr.ref))
            return self._says(message, self._shown(command.verb, view, mr), command.verb)
        fresh = await self.gitlab.merge_request(mr.ref) if command.verb in _NEEDS_HEAD else None
        return lambda tx: self._obey(tx, message, command, mr, fresh)

    async def _project_id(self, sender: str, ref: Ref) -> int | None:
        """By what is known, else by GitLab; None where it has none, or where there is no need to ask."""
        known = await self.database.read(lambda tx: merge_requests.find(tx, ref.project_path, ref.iid))
        if known is not None:
            return known.ref.project_id
        if sender in self.config.matrix.admins or not self.people.is_known(sender):
            return None
        try:
            return (await self.gitlab.project(ref.project_path))[0]
        except NotFound:
            return None

    def _shown(self, verb: str, view: SandboxView | None, mr: MergeRequest) -> Mapping[str, object]:
        prefix = self.config.matrix.command_prefix
        if view is None:
            return render_reply(f"`{mr.full_ref}` never had a sandbox; say `{prefix} start {mr.full_ref}`.", None)
        if verb == "show":
            return render_card(view, prefix)
        if verb == "why":
            return render_why(view)
        output = "\n".join(
            f"== {result.stage.value}: {'ok' if result.ok else 'failed'}, {result.seconds:.1f} s\n{result.tail}"
            for result in view.stages
            if result.tail.strip()
        )
        if not output:
            return render_reply(f"Nothing was printed by set-up and tests of `{mr.full_ref}`.", None)
        return render_reply(f"Set-up and tests of `{mr.full_ref}`:", None, output=output)

    def _obey(
        self,
        tx: Transaction,
        message: IncomingMessage,
        command: Command,
        found: MergeRequest,
        fresh: MergeRequest | None,
    ) -> str:
        actor = Actor("matrix", message.sender)
        mr = merge_requests.get(tx, found.ref)
        if mr is None or fresh is not None:  # what was only looked up before may be older than what is known by now
            _, mr = merge_requests.observe(tx, fresh or found)
        intents = self.intents
        match command.verb:
            case "start":
                outcome = intents.start(tx, mr, actor, command.sha)
            case "stop":
                outcome = intents.stop(tx, mr, actor)
            case "extend":
                outcome = intents.extend(tx, mr, actor, command.duration)
            case "rebuild":
                outcome = intents.rebuild(tx, mr, actor)
            case "retry":
                outcome = intents.retry(tx, mr, actor)
            case _:
                outcome = Outcome(False, "that can't be done here")
        self._reply(tx, message, render_reply(outcome.message, None))
        return outcome.message

    def _says(self, message: IncomingMessage, content: Mapping[str, object], outcome: str) -> Step:
        def step(tx: Transaction) -> str:
            self._reply(tx, message, content)
            return outcome

        return step

    def _refuses(self, message: IncomingMessage, command: Command, rule: str) -> Step:
        def step(tx: Transaction) -> str:
            data: dict[str, object] = {"verb": command.verb, "ref": str(command.ref or ""), "rule": rule}
            events.append(tx, "command.refused", Actor("matrix", message.sender), data=data)
            self._reply(tx, message, render_reply(f"Refused: {rule}", None))
            return f"refused: {rule}"

        return step

    def _reply(self, tx: Transaction, message: IncomingMessage, content: Mapping[str, object]) -> None:
        """In the same lane as the room's cards, so that answers and news keep their order."""
        lane = next(iter(self._names_of(message.room_id, outbox.rooms(tx))), message.room_id)
        body = {"content": as_reply(dict(content), message.event_id, message.thread_root)}
        outbox.add(tx, RoomLane(lane), Kind.REPLY, body={**body})


def _kept(message: IncomingMessage) -> str:
    """A message as the inbox keeps it until it is acted on: of its text only the line that is a command."""
    return json.dumps(asdict(replace(message, text=command_line(message.text))))


def _is_too_old(message: IncomingMessage, tx: Transaction) -> bool:
    """Whether a command is no longer obeyed: it is heard again when a backup is restored, whose sync token is old."""
    return message.at_ms > 0 and tx.now_us - 1000 * message.at_ms > STILL_OBEYED // timedelta(microseconds=1)


def _nothing(_: Transaction) -> str:
    return "not for us"
