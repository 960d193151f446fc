"""Runs all checks. Their order is that in which to fix problems: what others depend on comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ravebot.access.nftables.nft import NetworkTools
from ravebot.config.file import LoadedConfig
from ravebot.operations.doctor import alerts, gitlab, machines, matrix, network, running, state
from ravebot.operations.doctor.finding import Finding, failed, ok, unchecked, warning
from ravebot.operations.doctor.services import Answer

_SKEW_NOTICED_SECONDS = 30
_SKEW_HARMFUL_SECONDS = 300
"""Signed webhooks older than five minutes are refused."""


async def examine(loaded: LoadedConfig, tools: NetworkTools | None = None) -> list[Finding]:
    """Check everything, change nothing. `tools` run in the network namespace whose rules are checked."""
    config = loaded.config
    on_host, on_matrix, on_gitlab, on_machines, on_network, on_bot, on_alerts = await asyncio.gather(
        gathered("state", state.check(loaded)),
        gathered("matrix", matrix.check(loaded)),
        gathered("gitlab", gitlab.check(loaded)),
        gathered("machines", machines.check(config)),
        gathered("network", network.check(config, tools or NetworkTools(), state.instance_id(config.state_dir))),
        gathered("running bot", running.check(config)),
        gathered("alerts", alerts.check(loaded)),
    )
    everything = [*on_host, *on_matrix, *on_gitlab, *on_machines, *on_network, *on_bot, *on_alerts]
    findings = [item for item in everything if isinstance(item, Finding)]
    return [*findings, *clock([item for item in everything if isinstance(item, Answer)])]


async def gathered(
    name: str, found: AsyncIterator[Finding] | AsyncIterator[Finding | Answer]
) -> list[Finding | Answer]:
    """The findings of a series of checks, up to an error, which becomes the last finding."""
    items: list[Finding | Answer] = []
    try:
        async for item in found:
            items.append(item)
    except (OSError, ValueError) as error:
        items.append(unchecked(name, error))
    return items


def clock(answers: list[Answer]) -> list[Finding]:
    """How far this host's clock is from those of GitLab and Matrix; the smallest difference counts."""
    apart = min((answer.ahead_seconds for answer in answers if answer.ahead_seconds is not None), key=abs, default=None)
    if apart is None:
        return []
    detail = f"{abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the others"
    fix = "synchronize the clock: timedatectl set-ntp true"
    if abs(apart) > _SKEW_HARMFUL_SECONDS:
        return [failed("clock", detail, fix)]
    if abs(apart) > _SKEW_NOTICED_SECONDS:
        return [warning("clock", detail, fix)]
    return [ok("clock", "agrees with the others")]
