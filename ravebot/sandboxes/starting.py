"""What a merge request's sandbox waits for before it starts by itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ravebot.config.model import Config
from ravebot.config.repository import StartOnLabel
from ravebot.sandboxes.model import MergeRequest
from ravebot.sandboxes.settings import SandboxSettings
from ravebot.sandboxes.view import NO_NEWS, FileNews


class StartGate(StrEnum):
    """Why none starts by itself; a Developer's command starts one all the same."""

    DRAFT = "drafts wait for a person"
    SKIP = "a label says that it starts by command only"
    LABEL = "it has not the label that starts one"
    COMMAND = "one starts by command only"


@dataclass(frozen=True)
class StartWait:
    """A gate and, where it is one, the label that it is about; and what is to be said of the file that says so."""

    gate: StartGate
    label: str = ""
    file: FileNews = NO_NEWS


def start_wait(config: Config, mr: MergeRequest, settings: SandboxSettings) -> StartWait | None:
    """What people are told that a merge request waits for; None: one starts by itself."""
    gate = start_gate(config, mr, settings)
    if gate is None:
        return None
    label = config.gitlab.labels.skip if gate is StartGate.SKIP else ""
    if isinstance(settings.start, StartOnLabel) and gate is StartGate.LABEL:
        label = settings.start.label
    return StartWait(gate, label, FileNews(settings.remarks, settings.troubles))


def start_gate(config: Config, mr: MergeRequest, settings: SandboxSettings) -> StartGate | None:
    """None: one starts by itself. Labels beat the file."""
    if config.gitlab.labels.skip in mr.labels:
        return StartGate.SKIP
    match settings.start:
        case "always":
            return None
        case "ready":
            return StartGate.DRAFT if mr.draft else None
        case StartOnLabel(label=label):
            return None if label in mr.labels else StartGate.LABEL
        case _:
            return StartGate.COMMAND
