"""The readiness checks: what one says, when it may say `ok`, and how all are asked without cost to anyone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

import structlog

from ravebot.errors import RavebotError

FRESH_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0
UNKNOWN_FRESH_SECONDS = 0.5
"""An answer that rests on no look is out of date as soon as somebody has looked, such as at the start."""
PERIODS = 3
"""How many periods a look counts for."""

log = structlog.get_logger()


class State(StrEnum):
    """How a part is."""

    OK = "ok"  # looked at lately, and it worked
    DEGRADED = "degraded"  # looked at lately, and it works except for what the detail names
    FAILED = "failed"
    UNKNOWN = "unknown"  # not looked at, or not lately


@dataclass(frozen=True)
class Check:
    """How one part is; `detail` is for people and holds no secret.

    `age` is the time since the look that it rests on; None when nobody has looked.
    """

    state: State
    detail: str = ""
    age: timedelta | None = timedelta(0)

    @property
    def fit(self) -> bool:
        """Whether the bot can do its work, except for what the detail names."""
        return self.state in (State.OK, State.DEGRADED)


def judge(looked_at: datetime | None, problem: str, every: timedelta, now: datetime) -> Check:
    """What is known of a part that is looked at `every` so often.

    `looked_at` is when that was done last, `problem` why it did not work then (empty: it did). A look in the future
    (the clock was set back since) is as of now, but for one so far ahead that it would count for too long.
    """
    age = None if looked_at is None or looked_at - now > PERIODS * every else max(timedelta(0), now - looked_at)
    if problem:
        return Check(State.FAILED, problem, age)
    if looked_at is None:
        return Check(State.UNKNOWN, "not looked at yet", None)
    if age is None:
        return Check(State.UNKNOWN, "not looked at since the clock was set back", None)
    if age > PERIODS * every:
        return Check(State.UNKNOWN, f"not looked at since {looked_at:%Y-%m-%d %H:%M:%S} UTC", age)
    return Check(State.OK, f"looked at {looked_at:%H:%M:%S} UTC", age)


Ask = Callable[[], Awaitable[Check]]
Checks = Mapping[str, Ask]


class Checkup:
    """Asks every check, each at most once at a time and once in `fresh_seconds`, however many want to know.

    A check that takes longer than `timeout_seconds` has failed, and is not begun again before it has ended.
    """

    def __init__(
        self, checks: Checks, *, timeout_seconds: float = TIMEOUT_SECONDS, fresh_seconds: float = FRESH_SECONDS
    ) -> None:
        self._questions = {name: _AskedCheck(name, ask, timeout_seconds, fresh_seconds) for name, ask in checks.items()}

    async def run(self) -> dict[str, Check]:
        """How every part is, by name."""
        answers = await asyncio.gather(*(question.answer() for question in self._questions.values()))
        return dict(zip(self._questions, answers, strict=True))

    async def close(self) -> None:
        """Break off what is still being asked."""
        await asyncio.gather(*(question.close() for question in self._questions.values()))


class _AskedCheck:
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
        if self._task is None or (self._task.done() and now - self._ended >= self._fresh(self._task.result())):
            self._began = now
            self._task = asyncio.create_task(self._asked())
        # `wait` leaves the task alone when this caller is cancelled or loses patience: the next one goes on with it.
        await asyncio.wait({self._task}, timeout=max(0.0, self._began + self._timeout_seconds - now))
        if not self._task.done():
            return Check(State.FAILED, f"no answer within {self._timeout_seconds:g} s", None)
        found = self._task.result()
        since = timedelta(seconds=asyncio.get_running_loop().time() - self._ended)
        return found if found.age is None else replace(found, age=found.age + since)

    def _fresh(self, found: Check) -> float:
        return min(self._fresh_seconds, UNKNOWN_FRESH_SECONDS if found.state is State.UNKNOWN else math.inf)

    async def _asked(self) -> Check:
        try:
            return await self._ask()
        except RavebotError as error:
            return Check(State.FAILED, str(error))
        except Exception:  # a mistake of ours in one check must not hide how the other parts are
            log.exception("a readiness check failed", check=self._name)
            return Check(State.UNKNOWN, "could not be looked at: see ravebot's log", None)
        finally:
            self._ended = asyncio.get_running_loop().time()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
