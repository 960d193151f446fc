"""Clients that wait for an answer: what they wait for is only done while they are there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.types import Receive

from ravebot.tools.problems import ProblemKind, ToolProblem

T = TypeVar("T")


async def while_there(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """Do it while the client waits for the answer; `receive`: behind the body. Raises ToolProblem once it is gone."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ToolProblem(ProblemKind.MALFORMED, "The client did not wait for the answer.")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.wait((task, gone))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
