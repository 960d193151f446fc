"""The handler of what is said in rooms, with every part that the bot gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ravebot.agents.approvals import Approvals
from ravebot.agents.desk import Desk
from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.reception import Reception
from ravebot.agents.telling import ConversationTelling
from ravebot.commands.people import People
from ravebot.commands.verbs import VERBS, Verb
from ravebot.config.model import Config
from ravebot.gitlab.client import GitLab
from ravebot.intake.conversations import RoomConversations
from ravebot.intake.diffs import RoomDiffs
from ravebot.intake.matrix import MatrixIntake
from ravebot.intake.reactions import RoomReactions
from ravebot.intake.rooms import Rooms
from ravebot.parts import make_diffs
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Intents
from ravebot.store.database import Database


class HasParts(Protocol):
    """The parts that it works with."""

    @property
    def database(self) -> Database: ...

    @property
    def intents(self) -> Intents: ...

    @property
    def views(self) -> Views: ...


def room_handler(
    world: HasParts, gitlab: GitLab, config: Config, verbs: Sequence[Verb] = VERBS, diffs: Diffs | None = None
) -> MatrixIntake:
    """One over a host in memory, whose guests have no files if there are no `diffs`."""
    people = People(config, world.database, gitlab)
    telling = ConversationTelling(config)
    rooms, approvals = Rooms(config, people, world.database), Approvals(config, telling, world.database, people)
    reception = Reception(config, people, Desk(config, telling))
    provider = MemoryProvider(MemoryHost(), instance_id=config.instance)
    return MatrixIntake(
        config,
        people,
        world.intents,
        world.views,
        world.database,
        verbs,
        agents=RoomConversations(rooms, world.views, reception, approvals),
        reactions=RoomReactions(rooms, approvals),
        diffs=RoomDiffs(rooms, approvals, diffs or make_diffs(config, world.database, provider, gitlab)),
    )
