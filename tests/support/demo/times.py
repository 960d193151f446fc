"""Where the time went: from ravebot's own event log, and from what the demo saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tests.support.demo.watch import DemoError


@dataclass(frozen=True)
class Happened:
    """One event of the log."""

    at: datetime
    kind: str
    data: dict[str, object]

    @property
    def seconds(self) -> float:
        """How long it took, as ravebot measured."""
        value = self.data.get("seconds")
        return float(value) if isinstance(value, int | float) else 0.0


def read(audit_json: str) -> list[Happened]:
    """Out of what `ravebot audit --json` prints."""
    return [
        Happened(datetime.fromisoformat(line["at"]), line["kind"], json.loads(line["detail"]))
        for line in json.loads(audit_json)["lines"]
    ]


def first(events: Sequence[Happened], kind: str) -> Happened:
    """Raises DemoError when there is none."""
    found = next((event for event in events if event.kind == kind), None)
    if found is None:
        raise DemoError(f"ravebot's event log has no {kind}")
    return found


def start_rows(
    events: Sequence[Happened], opened: datetime, card_seen: datetime, ready_seen: datetime
) -> list[tuple[str, str, str]]:
    """From the merge request's opening to the announcement: what, how long it took, and when it was done."""
    queued, starting = first(events, "sandbox.queued"), first(events, "sandbox.starting")
    booted, ready = first(events, "machine.booted"), first(events, "sandbox.ready")

    def row(what: str, seconds: float, until: datetime) -> tuple[str, str, str]:
        return what, _seconds(seconds), _seconds((until - opened).total_seconds())

    rows = [
        row("opened → webhook committed, queued", (queued.at - opened).total_seconds(), queued.at),
        row("queued → its place is taken", (starting.at - queued.at).total_seconds(), starting.at),
        row("machine: made, booted, agent answers", (booted.at - starting.at).total_seconds(), booted.at),
    ]
    rows += [
        row(f"stage: {event.data['stage']}", event.seconds, event.at)
        for event in events
        if event.kind == "stage.done" and event.at <= ready.at
    ]
    boot = (booted.at - starting.at).total_seconds()
    whole = (ready.at - opened).total_seconds()
    rows += [
        row("ready → seen in note and card", (ready_seen - ready.at).total_seconds(), ready_seen),
        ("opened → ready, but for the machine's boot", _seconds(whole - boot), ""),
        row("webhook sent → card in Alice's room", (card_seen - opened).total_seconds(), card_seen),
    ]
    return rows


def stop_row(events: Sequence[Happened], asked: datetime) -> tuple[str, str, str]:
    """From the comment that asked for it to a machine that is gone."""
    ended = first(events, "sandbox.ended")
    return "stop asked → machine gone, ended", _seconds((ended.at - asked).total_seconds()), ""


def _seconds(value: float) -> str:
    return f"{value:.2f} s"
