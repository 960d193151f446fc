"""Exports the event log as lines of JSON, piece by piece, each event with all that is needed to check its hash.

A piece is one reading of the database, so that a log of any length is exported in little memory while the bot works.
The export ends with the event that was the newest when it began, and with who had connected by then or a little later.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from ravebot.clock import from_us
from ravebot.operations.audit.report import people, unreadable, which
from ravebot.operations.reports import AuditQuery, ExportPiece, ExportPlace
from ravebot.store import connections, events
from ravebot.store.connections import NamedVisit
from ravebot.store.database import Database, Transaction
from ravebot.store.events import GENESIS, Intact, Which

FORMAT = 1
_AT_ONCE = 250


class Exporter(Protocol):
    """Gives an export in pieces: the running bot, or `OfflineExporter`."""

    async def export(self, asked: AuditQuery, place: ExportPlace | None) -> ExportPiece: ...


class OfflineExporter:
    """Reads the pieces from a database that no bot uses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def export(self, asked: AuditQuery, place: ExportPlace | None) -> ExportPiece:
        return await piece(self._database, asked, place)


async def pieces(of: Exporter, asked: AuditQuery) -> AsyncIterator[ExportPiece]:
    """All of them; one with a `broken_at` is the last."""
    place = None
    while True:
        found = await of.export(asked, place)
        yield found
        place = found.place
        if place is None:
            return


async def piece(database: Database, asked: AuditQuery, place: ExportPlace | None) -> ExportPiece:
    """The next piece. Raises Refused for an unknown merge request or project, StoreError for an unreadable log."""
    try:
        return await database.read(lambda tx: _piece(tx, asked, place))
    except (sqlite3.DatabaseError, OverflowError) as error:  # the latter: a stored time is none
        raise unreadable(database, error) from error


def _piece(tx: Transaction, asked: AuditQuery, place: ExportPlace | None) -> ExportPiece:
    if place is None:
        found = which(tx, asked)
        first = ExportPlace(found.projects, found.iid, events.newest_id(tx), hash=GENESIS)
        return ExportPiece((_line("export", format=FORMAT, at=_time(tx.now), asked=_filters(asked)),), first)
    of = Which(place.projects, place.iid, people(asked), asked.kinds, asked.since, asked.until)
    if place.event < place.last:
        rows, broken_at = events.intact(tx, place.event, place.hash, place.last, of, _AT_ONCE)
        lines = tuple(_event(row) for row in rows if row.is_wanted)
        if broken_at is not None:
            return ExportPiece(lines, None, broken_at)
        return ExportPiece(
            lines, replace(place, event=rows[-1].id, hash=rows[-1].hash, events=place.events + len(lines))
        )
    visits = connections.page(tx, place.visit, of, _AT_ONCE) if asked.with_access else ()
    if visits:
        there = replace(place, visit=visits[-1].key, visits=place.visits + len(visits))
        return ExportPiece(tuple(_access(one) for one in visits), there)
    end = _line("end", checked=place.last, events=place.events, access=place.visits, head=place.hash)
    return ExportPiece((end,), None)


def _event(row: Intact) -> str:
    return _line(
        "event",
        time=_time_of(row.content["at"]),
        ref=row.ref,
        machine=row.machine,
        event=row.content,
        before=row.before,
        hash=row.hash,
    )


def _access(named: NamedVisit) -> str:
    visit = named.visit
    return _line(
        "access",
        ref=named.ref,
        project_id=named.project_id,
        iid=named.iid,
        sandbox_id=visit.sandbox_id,
        service=visit.service,
        source=visit.source,
        first=_time(visit.first_at),
        last=_time(visit.last_at),
        connections=visit.count,
        dropped=visit.dropped,
        bytes=visit.bytes,
    )


def _filters(asked: AuditQuery) -> dict[str, Any]:
    given = {
        "ref": asked.ref,
        "project": asked.project,
        "people": asked.people,
        "kinds": asked.kinds,
        "since": _time(asked.since) if asked.since else None,
        "until": _time(asked.until) if asked.until else None,
    }
    return {key: value for key, value in given.items() if value}


def _line(kind: str, **facts: Any) -> str:
    """ASCII, so that nothing in it can move a terminal's cursor."""
    return json.dumps({"type": kind, **facts}, separators=(",", ":"))


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _time_of(stored: Any) -> str | None:
    """None: the stored number is no valid time."""
    try:
        return _time(from_us(stored))
    except OverflowError:
        return None
