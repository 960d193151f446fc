"""Checks the door for Alertmanager: whether the running bot has it open, and when it was used last."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from ravebot.config.file import LoadedConfig
from ravebot.errors import Unavailable
from ravebot.intake.alerts import delivered_at
from ravebot.operations.doctor.finding import Finding, failed, ok, unknown, warning
from ravebot.operations.doctor.running import own_address
from ravebot.operations.doctor.services import get
from ravebot.operations.doctor.state import holder
from ravebot.operations.offline import database_path
from ravebot.store import alerts
from ravebot.store.database import Transaction
from ravebot.web.alerts.door import PATH

_NAME = "alerts"
_SHORT = 16


async def check(loaded: LoadedConfig) -> AsyncIterator[Finding]:
    """Findings; none where the door is closed."""
    config, token = loaded.config, loaded.secrets.alertmanager_token
    if token is None:
        return
    if len(token) < _SHORT:
        fix = "put a random one into monitoring.alertmanager_token_file and Alertmanager's: openssl rand -hex 32"
        yield warning(_NAME, f"the token of Alertmanager has only {len(token)} characters and can be guessed", fix)
    if holder(config.state_dir) is not None:
        url = own_address(config) + PATH
        try:
            if (await get(url)).status == 404:
                yield failed(_NAME, "the running bot takes no alerts yet", "restart ravebot: its configuration changed")
            refused = (await get(own_address(config) + "/readyz")).field("checks", "alerts", "detail")
            if isinstance(refused, str) and refused:
                yield warning(
                    _NAME, refused, "if it is not your Alertmanager that asks, nothing is wrong: the log names it"
                )
        except Unavailable:
            pass  # the check of the running bot says so
    yield await asyncio.to_thread(_last, database_path(config.state_dir))


def _last(path: Path) -> Finding:
    """When Alertmanager sent something last; while nothing fires, it sends nothing."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
            connection.row_factory = sqlite3.Row
            tx = Transaction(connection, datetime.now(UTC))
            last, firing = delivered_at(tx), alerts.firing(tx)
    except sqlite3.Error as error:  # there is none yet, or it is older; another check says what is wrong with it
        return unknown(_NAME, f"no alert can be counted: {error}", "start ravebot, and look again")
    if last is None:
        return unknown(_NAME, "Alertmanager has sent nothing yet", "try it: docs/operate.md, Alerts")
    fire = "1 alert fires" if firing == 1 else f"{firing} alerts fire"
    return ok(_NAME, f"Alertmanager sent something last at {last:%Y-%m-%d %H:%M:%S} UTC; {fire}")
