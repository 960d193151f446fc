"""What the running bot says of itself: every check of its /readyz that is not `ok`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ravebot.config.model import Config
from ravebot.errors import Unavailable
from ravebot.operations.doctor.finding import Finding, failed, ok, unknown, warning
from ravebot.operations.doctor.services import get
from ravebot.operations.doctor.state import holder

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a server listens that listens everywhere
_NAME = "running bot"


def own_address(config: Config) -> str:
    """Where the running bot listens, for requests from this host."""
    host, port = config.http.address
    host = _ANYWHERE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def check(config: Config) -> AsyncIterator[Finding]:
    """Findings; none when no bot runs."""
    if holder(config.state_dir) is None:
        return
    url = f"{own_address(config)}/readyz"
    try:
        checks = (await get(url)).field("checks")
    except Unavailable as error:
        yield failed(_NAME, f"a bot runs, but {url} does not answer: {error}", "see its log; restart it")
        return
    if not isinstance(checks, dict):
        yield failed(_NAME, f"a bot runs, but {url} is not its own", "check http.listen; restart the bot")
        return
    bad = {name: found for name, found in checks.items() if isinstance(found, dict) and found.get("state") != "ok"}
    for name, found in bad.items():
        verdict = {"failed": failed, "degraded": warning}.get(str(found.get("state")), unknown)
        yield verdict(_NAME, f"{name}: {found.get('detail')}", "see its log")
    if not bad:
        yield ok(_NAME, f"all {len(checks)} checks of {url} are ok")
