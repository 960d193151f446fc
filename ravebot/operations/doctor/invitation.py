"""Judges an invite to a configured room: ravebot follows only those of its admins."""

from __future__ import annotations

from collections.abc import Collection

from ravebot.matrix.invites import inviter
from ravebot.operations.doctor.finding import Finding, ok, warning

_NAME = "matrix room"


def invitation(room: str, invite: object, user_id: str, admins: Collection[str]) -> Finding:
    """What becomes of an invite, which is a sync's stripped state of that room."""
    by = inviter(invite, user_id) if isinstance(invite, dict) else None
    if by is None or by in admins:
        return ok(_NAME, f"ravebot is invited to {room}, and joins it when it runs")
    detail = f"{room}: ravebot was invited by {by}, who is not among matrix.admins, and declines"
    return warning(_NAME, detail, f"let one of matrix.admins invite {user_id} there, or add {by} to them")
