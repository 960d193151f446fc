"""Mends what the doctor finds and can mend without a choice: webhooks that are missing or wrong."""

from __future__ import annotations

from ravebot.config.file import LoadedConfig
from ravebot.errors import RavebotError
from ravebot.operations.hooks import registry


async def fix_webhooks(loaded: LoadedConfig) -> list[str]:
    """What was done, a line for each project whose webhook was not right. What can't be done the findings tell."""
    said: list[str] = []
    try:
        for state in await registry.look(loaded):
            if not state.ok:
                said += [
                    f"{one.project}: {one.sentence}" for one in await registry.install(loaded, projects=[state.project])
                ]
    except RavebotError as error:
        said.append(f"webhooks can't be mended: {error}")
    return said
