"""The readiness checks: what one says, and how all are asked without cost to anyone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from ravebot.errors import RavebotError

FRESH_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Check:
    """How one part is; `detail` is for people and holds no secret."""

    ok: bool
    detail: str = ""


Ask = Callable[[], Awaitable[Check]]
Checks = Mapping[str, Ask]


class Checkup:
    """Asks every check, each at most once at a time and once in `fresh_seconds`, however many want to know.

    A check that takes longer than `timeout_seconds` is not ok, and is not begun again before it has ended.
    """

    def __init__(
        self, checks: Checks, *, timeout_seconds: float = TIMEOUT_SECONDS, fresh_seconds: float = FRESH_SECONDS
    ) -> None:
        self._questions = {name: _Question(name, ask, timeout_seconds, fresh_seconds) for name, ask in checks.items()}

    async def run(self) -> dict[str, Check]:
        """How every part is, by name."""
        answers = await asyncio.gather(*(question.answer() for question in self._questions.values()))
        return dict(zip(self._questions, answers, strict=True))

    async def close(self) -> None:
        """Break off what is still being asked."""
        await asyncio.gather(*(question.close() for question in self._questions.values()))


class _Question:
    """One check, and its last answer."""

    def __init__(self, name: str, ask: Ask, timeout_seconds: float, fresh_seconds: float) -> None:
        self._name = name
        self._ask = ask
        self._timeout_seconds = timeout_seconds
        self._fresh_seconds = fresh_seconds
        self._task: asyncio.Task[Check] | None = None
        self._began = self._ended = 0.0  # by the loop's clock

    async def answer(self) -> Check:
        now = asyncio.get_running_loop().time()
        if self._task is None or (self._task.done() and now - self._ended >= self._fresh_seconds):
            self._began = now
            self._task = asyncio.create_task(self._asked())
        # `wait` leaves the task alone when this caller is cancelled or loses patience: the next one goes on with it.
        await asyncio.wait({self._task}, timeout=max(0.0, self._began + self._timeout_seconds - now))
        if not self._task.done():
            return Check(False, f"no answer within {self._timeout_seconds:g} s")
        return self._task.result()

    async def _asked(self) -> Check:
        try:
            return await self._ask()
        except RavebotError as error:
            return Check(False, str(error))
        except Exception:  # a mistake of ours in one check must not hide how the other parts are
            log.exception("a readiness check failed", check=self._name)
            return Check(False, "could not be looked at: see ravebot's log")
        finally:
            self._ended = asyncio.get_running_loop().time()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
