"""The readiness checks: their states, when a check may report `ok`, and a limit on how often they run."""

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
"""`unknown` is kept for a shorter time, because it ends with the next check, for example at the start."""
PERIODS = 3
"""For how many periods the result of a check counts."""

log = structlog.get_logger()


class State(StrEnum):
    """The state of a part."""

    OK = "ok"  # checked lately, and it worked
    DEGRADED = "degraded"  # checked lately, and it works except for what the detail names
    FAILED = "failed"
    UNKNOWN = "unknown"  # not checked, or not lately


@dataclass(frozen=True)
class Check:
    """The state of one part; `detail` is for people and contains no secret.

    `age` is the time since the part was checked; None when it never was.
    """

    state: State
    detail: str = ""
    age: timedelta | None = timedelta(0)

    @property
    def fit(self) -> bool:
        """Whether the part works, except for what the detail names."""
        return self.state in (State.OK, State.DEGRADED)


def judge(looked_at: datetime | None, problem: str, every: timedelta, now: datetime) -> Check:
    """The state of a part that is checked once per `every`.

    `looked_at` is when it was checked last, `problem` what was wrong then (empty: nothing). A time in the future (the
    clock was set back since) counts as now, unless it is so far ahead that it would count for too long.
    """
    age = None if looked_at is None or looked_at - now > PERIODS * every else max(timedelta(0), now - looked_at)
    if problem:
        return Check(State.FAILED, problem, age)
    if looked_at is None:
        return Check(State.UNKNOWN, "not checked yet", None)
    if age is None:
        return Check(State.UNKNOWN, "not checked since the clock was set back", None)
    if age > PERIODS * every:
        return Check(State.UNKNOWN, f"not checked since {looked_at:%Y-%m-%d %H:%M:%S} UTC", age)
    return Check(State.OK, f"checked at {looked_at:%H:%M:%S} UTC", age)


CheckFunction = Callable[[], Awaitable[Check]]
Checks = Mapping[str, CheckFunction]


class Checkup:
    """Runs every check, each at most once at a time and once in `fresh_seconds`, however many requests there are.

    A check that takes longer than `timeout_seconds` has failed, and is not started again before it has ended.
    """

    def __init__(
        self, checks: Checks, *, timeout_seconds: float = TIMEOUT_SECONDS, fresh_seconds: float = FRESH_SECONDS
    ) -> None:
        self._cached = {
            name: _CachedCheck(name, check, timeout_seconds, fresh_seconds) for name, check in checks.items()
        }

    async def run(self) -> dict[str, Check]:
        """The state of every part, by name."""
        results = await asyncio.gather(*(cached.result() for cached in self._cached.values()))
        return dict(zip(self._cached, results, strict=True))

    async def close(self) -> None:
        """Cancel the checks that are still running."""
        await asyncio.gather(*(cached.close() for cached in self._cached.values()))


class _CachedCheck:
    """One check, and its last result."""

    def __init__(self, name: str, check: CheckFunction, timeout_seconds: float, fresh_seconds: float) -> None:
        self._name = name
        self._check = check
        self._timeout_seconds = timeout_seconds
        self._fresh_seconds = fresh_seconds
        self._task: asyncio.Task[Check] | None = None
        self._began = self._ended = 0.0  # by the loop's clock

    async def result(self) -> Check:
        now = asyncio.get_running_loop().time()
        if self._task is None or (self._task.done() and now - self._ended >= self._fresh(self._task.result())):
            self._began = now
            self._task = asyncio.create_task(self._run())
        # `wait` does not cancel the task when this caller is cancelled or times out: the next caller waits for it.
        await asyncio.wait({self._task}, timeout=max(0.0, self._began + self._timeout_seconds - now))
        if not self._task.done():
            return Check(State.FAILED, f"no answer within {self._timeout_seconds:g} s", None)
        found = self._task.result()
        since = timedelta(seconds=asyncio.get_running_loop().time() - self._ended)
        return found if found.age is None else replace(found, age=found.age + since)

    def _fresh(self, found: Check) -> float:
        return min(self._fresh_seconds, UNKNOWN_FRESH_SECONDS if found.state is State.UNKNOWN else math.inf)

    async def _run(self) -> Check:
        try:
            return await self._check()
        except RavebotError as error:
            return Check(State.FAILED, str(error))
        except Exception:  # a bug in one check must not hide the state of the other parts
            log.exception("a readiness check failed", check=self._name)
            return Check(State.UNKNOWN, "the check itself failed: see ravebot's log", None)
        finally:
            self._ended = asyncio.get_running_loop().time()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
