"""The times that `--since` and `--until` name on the command line."""

from __future__ import annotations

from datetime import UTC, datetime

import typer

from ravebot.config.values import parse_duration


def span(since: str | None, until: str | None, now: datetime) -> tuple[datetime | None, datetime | None]:
    """From when, and until before when; None: not limited. Raises typer.BadParameter that names the option."""
    begin, end = (_moment(text, now, name) if text else None for text, name in ((since, "--since"), (until, "--until")))
    if begin and end and begin >= end:
        told = f"{begin:%Y-%m-%d %H:%M} and {end:%Y-%m-%d %H:%M} UTC"
        raise typer.BadParameter(f"the time ends before it begins ({told}): exchange --since and --until")
    return begin, end


def _moment(text: str, now: datetime, option: str) -> datetime:
    """How long ago, or a date or time, in UTC unless it says otherwise."""
    try:
        return now - parse_duration(text)
    except (ValueError, OverflowError):
        pass
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter("write how long ago, like 7d, or a date like 2026-01-31", param_hint=option) from error
