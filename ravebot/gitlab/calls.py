"""What the groups of API calls share: running what blocks in a thread, reading lists, addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from ravebot.gitlab.fields import Json, Malformed
from ravebot.gitlab.transport import Unanswered
from ravebot.sandboxes.model import MergeRequestRef

T = TypeVar("T")
_log = structlog.get_logger(__name__)


async def in_thread(pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    """Run a call in that pool. An answer that can't be understood is none: something else may have given it."""
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, function)
    except Malformed as error:
        raise Unanswered(f"GitLab answered with something that is not its API ({error})") from error


def readable(items: Iterable[Json], read: Callable[[Json], T]) -> Iterator[T]:
    """Each item as parsed by `read`; a malformed one is logged and left out, so that the others still count."""
    for item in items:
        try:
            yield read(item)
        except Malformed as error:
            _log.warning("gitlab_item_skipped", id=item.get("id"), reason=str(error))


def mr_address(ref: MergeRequestRef) -> str:
    return f"/projects/{ref.project_id:d}/merge_requests/{ref.iid:d}"
