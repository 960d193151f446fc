"""The weekly report of use, for a room: all together, the projects that used most, and agents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from ravebot.matrix.content import Content, Span, bold, joined, message, theirs, words
from ravebot.operations.reports import AgentUsageLine, UsageBy, UsageLine, UsageQuery
from ravebot.operations.usage import report
from ravebot.operations.weekly import Week
from ravebot.sandboxes.view import in_words
from ravebot.store.database import Transaction

_MOST = 5


def render_usage(tx: Transaction, week: Week) -> Content | None:
    """The message about a week; None if nothing was used in it."""
    whole = _sandboxes(tx, week, UsageBy.WEEK)
    agents = [line for line in report.report(tx, _query(week, UsageBy.AGENT)) if isinstance(line, AgentUsageLine)]
    if not whole and not agents:
        return None
    days = f"{week.begin:%d %b} to {week.end - timedelta(days=1):%d %b}"
    parts = [joined([bold(f"Usage in the week {week}"), words(f"({days})")])]
    if whole:
        wait = in_words(timedelta(seconds=whole[0].queue_median_seconds))
        parts.append(words(f"{_used(whole[0])}; usual wait in the queue: {wait}"))
        parts += _projects(_sandboxes(tx, week, UsageBy.PROJECT))
    for line in agents[:_MOST]:
        did = f"{_count(line.turns, 'message')}, {line.hours:.1f} h, {_tokens(line)}"
        parts.append(joined([theirs(line.group[0], 100), words(did)], ": ", ": "))
    return message([joined(parts, "\n", "<br>")])


def _sandboxes(tx: Transaction, week: Week, by: UsageBy) -> list[UsageLine]:
    return [line for line in report.report(tx, _query(week, by)) if isinstance(line, UsageLine)]


def _query(week: Week, by: UsageBy) -> UsageQuery:
    return UsageQuery(by=(by,), since=week.begin, until=week.end)


def _projects(lines: Sequence[UsageLine]) -> Iterator[Span]:
    ordered = sorted(lines, key=lambda line: (-line.machine_hours, line.group))
    for line in ordered[:_MOST]:
        yield joined([theirs(line.group[0], 100), words(_used(line))], ": ", ": ")
    if others := ordered[_MOST:]:
        yield words(f"{_count(len(others), 'more project')}: {sum(line.hours for line in others):.1f} h")


def _used(line: UsageLine) -> str:
    amounts = f"{line.hours:.1f} h, {line.cpu_hours:.1f} CPU hours, {line.memory_gib_hours:.1f} GiB hours"
    return f"{_count(line.sandboxes, 'sandbox')}, {amounts}" + (f", {_tokens(line)}" if line.model_tokens else "")


def _tokens(line: UsageLine | AgentUsageLine) -> str:
    return f"{line.model_tokens:,} tokens"


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("x") else "s"
    return f"{number} {what}{'' if number == 1 else plural}"
