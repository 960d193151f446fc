"""The parts of ravebot that tools work with."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.agents.answers import AgentAnswers
from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.reception import Reception
from ravebot.commands.people import People
from ravebot.config.model import Config
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Intents
from ravebot.store.database import Database


@dataclass(frozen=True)
class Workbench:
    """Each tool's function gets it."""

    config: Config
    database: Database
    people: People
    intents: Intents
    views: Views
    reception: Reception
    diffs: Diffs
    answers: AgentAnswers
