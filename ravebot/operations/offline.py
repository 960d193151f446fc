"""Opens an installation's database while no bot runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ravebot.clock import Clock
from ravebot.errors import StoreError
from ravebot.store import swap
from ravebot.store.database import Database


def database_path(state_dir: Path) -> Path:
    """Where an instance keeps its database."""
    return state_dir / swap.DATABASE


@asynccontextmanager
async def opened(state_dir: Path, clock: Clock) -> AsyncIterator[Database]:
    """The database. Raises StoreError if there is none, or if a bot uses it after all."""
    path = database_path(state_dir)
    if not (path.is_file() or swap.is_pending(state_dir)):
        raise StoreError(f"there is no database {path}: has ravebot ever run with this state_dir?")
    async with Database(path, clock) as database:
        yield database
