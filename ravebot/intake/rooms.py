"""What every answer to something said in a room needs: the room's projects, what the person may, and the reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ravebot.commands.people import People
from ravebot.commands.permissions import Decision, Right, decide
from ravebot.config.model import Config
from ravebot.config.patterns import matches_project
from ravebot.intake.loop import Step
from ravebot.matrix.content import as_reply
from ravebot.matrix.incoming import IncomingMessage
from ravebot.store import merge_requests, outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.targets import Kind, RoomLane

NOT_MAPPED = decide(Right.COMMAND, room_maps_project=False, gitlab_username=None, access_level=None)
NOT_SERVED = Decision(
    False, "That project gets no sandboxes.", "Ask an admin of ravebot to add it to the projects in its configuration."
)


@dataclass(frozen=True)
class Rooms:
    """Looks up what a room means, and queues replies in it."""

    config: Config
    people: People
    database: Database

    async def placed(self, message: IncomingMessage) -> tuple[IncomingMessage, tuple[str, ...]]:
        """The configured projects of the room; in a direct chat all.

        A configured room keeps its readers' rights even while only one person is in it; to
        `matrix.operations_room` no project is mapped.
        """
        names = self.names_of(message.room_id, await self.database.read(outbox.rooms))
        if names:
            mapped = (room.projects for room in self.config.matrix.rooms if room.room in names)
            return replace(message, direct=False), tuple(pattern for projects in mapped for pattern in projects)
        return message, self.config.gitlab.projects if message.direct else ()

    def names_of(self, room_id: str, ids: Mapping[str, str]) -> tuple[str, ...]:
        """The room's names in the configuration; `ids` may contain old names."""
        return tuple(name for name in self.config.matrix.room_names if room_id in (name, ids.get(name)))

    def name_of(self, tx: Transaction, message: IncomingMessage) -> str:
        """The configured name of a message's room; empty where none is configured."""
        return next(iter(self.names_of(message.room_id, outbox.rooms(tx))), "")

    async def nameable(self, message: IncomingMessage, patterns: tuple[str, ...]) -> tuple[str, ...]:
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

    async def may(
        self, message: IncomingMessage, right: Right, project_id: int | None, mapped: bool, project: str = ""
    ) -> Decision:
        """Whether the sender has that right on a project, here."""
        return await self.people.from_room(
            right,
            message.sender,
            project_id=project_id,
            mapped=mapped,
            direct=message.direct,
            project=project,
        )

    def says(
        self, message: IncomingMessage, content: Mapping[str, object], outcome: str, *, aside: bool = False
    ) -> Step:
        """The step that only replies."""

        def step(tx: Transaction) -> str:
            self.reply(tx, message, content, aside=aside)
            return outcome

        return step

    def reply(
        self,
        tx: Transaction,
        message: IncomingMessage,
        content: Mapping[str, object],
        *,
        aside: bool = False,
        thread: str | None = None,
        file: tuple[str, str] | None = None,
        merge_key: str | None = None,
    ) -> None:
        """Reply in that thread, or the message's, if any. An `aside`, about a mistake or refusal, begins a thread under
        the message, so that a busy room is not disturbed.

        Replies use the lane of the room's cards, so that both keep their order. `file`: the name and text of a file
        that follows. `merge_key`: while a reply with that key waits to be sent, this one is left out.
        """
        lane = self.name_of(tx, message) or message.room_id
        thread = thread or message.thread_root or (message.event_id if aside and not message.direct else None)
        body: dict[str, object] = {"content": as_reply(dict(content), message.event_id, thread)}
        if file is not None:
            body["file"] = {"name": file[0], "text": file[1]}
        outbox.add(tx, RoomLane(lane), Kind.REPLY, body=body, merge_key=merge_key)
