"""Removes from GitLab the environments that sandboxes left there, when no bot will do it any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ravebot.clock import SystemClock
from ravebot.config.file import LoadedConfig
from ravebot.errors import RavebotError
from ravebot.operations.offline import database_path
from ravebot.parts import make_gitlab
from ravebot.sandboxes.environments.model import EnvironmentRecord, without_environment
from ravebot.store import environments
from ravebot.store.database import Database, Transaction


async def remove_environments(loaded: LoadedConfig, say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """Stop and delete them; returns what was removed, and what was left and why. The bot must be stopped."""
    removed: list[str] = []
    left: list[str] = []
    path, clock = database_path(loaded.config.state_dir), SystemClock()
    if not path.exists():
        return removed, left
    gitlab = make_gitlab(loaded, clock)
    try:
        async with Database(path, clock) as database:
            for one, project in await database.read(environments.there):
                name = f"the environment {one.name} of {project}"
                try:
                    await gitlab.environments.stop(one.ref.project_id, one.environment_id or 0)
                    await gitlab.environments.delete(one.ref.project_id, one.environment_id or 0)
                except RavebotError as error:  # GitLab may be gone, or its token revoked: the rest must be removed
                    left.append(f"{name}: {error}; delete it on the project's page Operate, Environments")
                    continue
                await database.write(partial(_forget, known=one))
                say(f"{name}: removed")
                removed.append(name)
    finally:
        await gitlab.close()
    return removed, left


def _forget(tx: Transaction, known: EnvironmentRecord) -> None:
    now = environments.get(tx, known.ref)
    if now:
        environments.save(tx, replace(without_environment(now), settled=now.changes))
