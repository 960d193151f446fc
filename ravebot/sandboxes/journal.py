"""Writes an event, and the outbox rows that report it, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection

from ravebot.config.model import Config
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.model import RAVEBOT, Actor, Event, EventKind, MachineId, MergeRequest, MergeRequestRef, Sandbox
from ravebot.sandboxes.telling import TELLINGS
from ravebot.store import events, machines, merge_requests, outbox
from ravebot.store.database import Transaction
from ravebot.store.targets import Kind, NoteLane, RoomLane


def _hears(tx: Transaction, room: str, told: Collection[str]) -> bool:
    """Whether a room is in `told`; either may be a room id or an alias."""
    ids = outbox.rooms(tx)
    return ids.get(room, room) in {ids.get(name, name) for name in told}


class Journal:
    """Writes the event log and the outbox together."""

    def __init__(self, config: Config, meter: Meter) -> None:
        self._config = config
        self._meter = meter

    def record(
        self,
        tx: Transaction,
        kind: EventKind,
        actor: Actor = RAVEBOT,
        *,
        sandbox: Sandbox,
        machine_id: MachineId | None = None,
        data: dict[str, object] | None = None,
        not_in: Collection[str] = (),
    ) -> frozenset[str]:
        """Log what happened to a sandbox and report it as `TELLINGS` says, except in the rooms `not_in`.

        Returns the rooms that are told.
        """
        event = events.append(tx, kind, actor, mr=sandbox.mr, sandbox_id=sandbox.id, machine_id=machine_id, data=data)
        mr = merge_requests.get(tx, sandbox.mr)
        assert mr
        machine = machines.get(tx, machine_id or sandbox.machine_id)
        tx.log(kind.value, ref=mr.full_ref, machine=machine.name if machine else "", by=str(actor))
        self._count(kind, sandbox, event, mr.project_path)
        telling = TELLINGS.get(kind)
        if telling is None:
            return frozenset()
        calls = telling.calls(sandbox, event)
        if telling.card:
            self.refresh(tx, sandbox, mr, calls=calls)
        text, line = telling.words(event.data), telling.thread(event.data)
        threshold = {"threshold": event.data.get("threshold")}
        rooms = frozenset(self._config.rooms_of(mr.project_path)) - frozenset(not_in)
        for room in sorted(rooms):
            if line and room != actor.place:  # there, the answer to the command says it
                body: dict[str, object] = {"text": line, "calls": calls}
                outbox.add(tx, RoomLane(room), Kind.HISTORY, sandbox_id=sandbox.id, body=body)
            if telling.say:
                outbox.add(tx, RoomLane(room), Kind.SAY, sandbox_id=sandbox.id, body={"text": text})
            if telling.warn:
                outbox.add(tx, RoomLane(room), Kind.WARNING, sandbox_id=sandbox.id, body=threshold)
        operations = self._config.matrix.operations_room
        if telling.operators and operations is not None:
            told = telling.operators(event.data)
            if told and (told != text or not _hears(tx, operations, rooms)):
                outbox.add(tx, RoomLane(operations), Kind.SAY, sandbox_id=sandbox.id, body={"text": told})
        if telling.warn:
            outbox.add(tx, NoteLane(mr.ref), Kind.WARNING, sandbox_id=sandbox.id, body=threshold)
        return rooms

    def _count(self, kind: EventKind, sandbox: Sandbox, event: Event, project: str) -> None:
        if kind is EventKind.SANDBOX_QUEUED:
            self._meter.sandbox_requested()
        elif kind is EventKind.SANDBOX_STARTING and sandbox.attempt == 1:
            self._meter.sandbox_started(event.at - sandbox.created_at)
        elif kind is EventKind.SANDBOX_READY and sandbox.ready_at == event.at:  # not after a restart of its machine
            self._meter.sandbox_ready(project, event.at - sandbox.created_at)
        elif kind is EventKind.SANDBOX_ENDED and sandbox.end_reason:
            lived = event.at - sandbox.ready_at if sandbox.ready_at else None
            self._meter.sandbox_ended(project, sandbox.end_reason, lived)
        elif kind is EventKind.MACHINE_FORCED:
            self._meter.machine_forced()

    def refresh(self, tx: Transaction, sandbox: Sandbox, mr: MergeRequest, *, calls: bool = False) -> None:
        """Queue a rewrite of the card and the status note; with `calls`, the card's notifies the owner."""
        for room in self._config.rooms_of(mr.project_path):
            if calls and self._config.matrix.mentions == "edit":
                outbox.add(tx, RoomLane(room), Kind.CALL, sandbox_id=sandbox.id)
            else:
                outbox.add(tx, RoomLane(room), Kind.CARD, sandbox_id=sandbox.id, merge_key=f"card:{sandbox.id}:{room}")
        self.refresh_note(tx, mr.ref)

    def warnings_over(self, tx: Transaction, sandbox: Sandbox, thresholds: Collection[int]) -> None:
        """Queue an edit of these warnings, as far as they were given: they are not true any more."""
        mr = merge_requests.get(tx, sandbox.mr)
        assert mr
        for room in self._config.rooms_of(mr.project_path):
            for threshold in sorted(thresholds):
                outbox.add(tx, RoomLane(room), Kind.OVER, sandbox_id=sandbox.id, body={"threshold": threshold})

    def refresh_note(self, tx: Transaction, ref: MergeRequestRef) -> None:
        """Queue a rewrite of the status note, for a merge request with or without a sandbox."""
        lane = NoteLane(ref)
        outbox.add(tx, lane, Kind.NOTE, merge_key=f"note:{lane.text}")
