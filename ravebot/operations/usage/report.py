"""Adds up what was used, by project, person, agent and week, whether the bot runs or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TypeVar

from ravebot.clock import SystemClock
from ravebot.errors import Refused
from ravebot.operations.offline import opened
from ravebot.operations.reports import AgentUsageLine, UsageBy, UsageLine, UsageLines, UsageQuery
from ravebot.operations.weekly import Week
from ravebot.store import usage
from ravebot.store.database import Transaction
from ravebot.store.usage import AgentDay, SandboxUse, TurnUse, UsageSpan

T = TypeVar("T")
_HOUR = 3600.0
_GIB = 1024**3


def report(tx: Transaction, asked: UsageQuery) -> UsageLines:
    """The groups, by name. Raises Refused if these can't be combined."""
    span = UsageSpan(asked.since, asked.until)
    if UsageBy.AGENT not in asked.by:
        return _sandboxes(usage.of_sandboxes(tx, span), asked.by, tx.now)
    if others := [by.value for by in asked.by if by not in (UsageBy.AGENT, UsageBy.WEEK)]:
        raise Refused(f"what agents did is not kept by {others[0]}: ask for it by agent, or by agent and week")
    return _agents(usage.of_turns(tx, span), usage.of_days(tx, span), asked.by, tx.now)


async def read_offline(state_dir: Path, asked: UsageQuery) -> UsageLines:
    """`report`, while no bot runs. Raises StoreError if there is no database, or if a bot uses it after all."""
    async with opened(state_dir, SystemClock()) as database:
        return await database.read(lambda tx: report(tx, asked))


def week_of(moment: datetime) -> str:
    """Its week: 2026-W48."""
    return str(Week.of(moment))


def _sandboxes(uses: Iterable[SandboxUse], by: Sequence[UsageBy], now: datetime) -> tuple[UsageLine, ...]:
    names: Mapping[UsageBy, Callable[[SandboxUse], str]] = {
        UsageBy.PROJECT: lambda use: use.project,
        UsageBy.PERSON: lambda use: use.person,
        UsageBy.WEEK: lambda use: week_of(use.ended_at or now),
    }
    groups = _grouped(uses, lambda use: tuple(names[one](use) for one in by))
    return tuple(_line(group, found) for group, found in groups)


def _line(group: tuple[str, ...], uses: Sequence[SandboxUse]) -> UsageLine:
    return UsageLine(
        group=group,
        sandboxes=len(uses),
        hours=sum(use.up_seconds for use in uses) / _HOUR,
        queue_hours=sum(use.queued_seconds for use in uses) / _HOUR,
        queue_median_seconds=median(use.queued_seconds for use in uses),
        machine_hours=sum(use.machine_seconds for use in uses) / _HOUR,
        cpu_hours=sum(use.cpu_seconds for use in uses) / _HOUR,
        memory_gib_hours=sum(use.memory_byte_seconds for use in uses) / _GIB / _HOUR,
        memory_peak_bytes=max(use.memory_peak_bytes for use in uses),
        disk_peak_bytes=max(use.disk_peak_bytes for use in uses),
        received_bytes=sum(use.received_bytes for use in uses),
        sent_bytes=sum(use.sent_bytes for use in uses),
        visitor_bytes=sum(use.visitor_bytes for use in uses),
        model_tokens=sum(use.model_tokens for use in uses),
    )


def _agents(
    turns: Iterable[TurnUse], days: Iterable[AgentDay], by: Sequence[UsageBy], now: datetime
) -> tuple[AgentUsageLine, ...]:
    def group(agent: str, week: str) -> tuple[str, ...]:
        names = {UsageBy.AGENT: agent, UsageBy.WEEK: week}
        return tuple(names[one] for one in by)

    worked = dict(_grouped(turns, lambda turn: group(turn.agent, week_of(turn.ended_at or now))))
    spent = dict(_grouped(days, lambda one: group(one.agent, week_of(one.day))))
    return tuple(
        AgentUsageLine(
            name,
            turns=len(worked.get(name, ())),
            hours=sum(turn.worked_seconds for turn in worked.get(name, ())) / _HOUR,
            model_tokens=sum(one.model_tokens for one in spent.get(name, ())),
        )
        for name in sorted({*worked, *spent})
    )


def _grouped(found: Iterable[T], key: Callable[[T], tuple[str, ...]]) -> list[tuple[tuple[str, ...], list[T]]]:
    groups: defaultdict[tuple[str, ...], list[T]] = defaultdict(list)
    for one in found:
        groups[key(one)].append(one)
    return sorted(groups.items())
