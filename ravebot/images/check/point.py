"""The result of one point of the contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ravebot.operations.doctor.finding import Verdict


@dataclass(frozen=True)
class Found:
    """What a look found; `fix` says which setting or which step in the image mends it, and is empty if it is right."""

    verdict: Verdict
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Point:
    """The same with the point's name and how long looking took; `console`: the last lines of a silent guest."""

    name: str
    verdict: Verdict
    detail: str
    fix: str
    seconds: float
    console: str = ""


def names(points: Iterable[Point], *verdicts: Verdict) -> list[str]:
    """Of the points with one of these results."""
    return [point.name for point in points if point.verdict in verdicts]


def ok(detail: str) -> Found:
    return Found(Verdict.OK, detail)


def warning(detail: str, fix: str) -> Found:
    """An image may lack it."""
    return Found(Verdict.WARNING, detail, fix)


def failed(detail: str, fix: str = "") -> Found:
    return Found(Verdict.FAILED, detail, fix)
