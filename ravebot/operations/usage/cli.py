"""`ravebot usage`: asks the running bot, or reads the database while none runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ravebot.config.file import read_state_dir
from ravebot.errors import NotRunningError
from ravebot.operations.reports import UsageBy, UsageQuery
from ravebot.operations.spans import span
from ravebot.terminal import DEFAULT_CONFIG, ConfigPath, Json, output

if TYPE_CHECKING:
    from pathlib import Path

    from ravebot.operations.reports import UsageLines


MORE = "A sandbox counts when it ended; one that has not ended, with what it used so far, in the present week."


def usage(
    config: ConfigPath = DEFAULT_CONFIG,
    by: Annotated[
        list[UsageBy] | None,
        typer.Option(help="What to add up by; give it twice for both, like --by project --by week. Usual: project."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only what ended from then on: 7d for a week back, or 2026-01-31.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only what ended before that: 7d, or 2026-01-31.")] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show what was used, by project, person, agent or week; works with the bot down, too."""
    from ravebot.operations.usage.show import as_csv as csv
    from ravebot.operations.usage.show import as_records, show_usage

    if as_json and as_csv:
        raise typer.BadParameter("give one of --json and --csv")
    query = UsageQuery(tuple(dict.fromkeys(by or [UsageBy.PROJECT])), *span(since, until, datetime.now(UTC)))
    lines = asyncio.run(_used(config, query))
    if as_json:
        output.json(as_records(lines, query.by))
    elif as_csv:
        output.raw(csv(lines, query.by))
    else:
        show_usage(output, lines, query.by)


async def _used(config: Path, query: UsageQuery) -> UsageLines:
    from ravebot.operations.usage.report import read_offline
    from ravebot.web.admin import AdminClient, socket_path

    state_dir = read_state_dir(config)
    try:
        return await AdminClient(socket_path(state_dir)).usage(query)
    except NotRunningError:
        return await read_offline(state_dir, query)
