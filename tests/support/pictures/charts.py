"""Draws what Prometheus answered, as SVG and HTML: plain charts with the units, colours and limits of a dashboard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_PALETTE = ("#4080d0", "#b87a00", "#3a9150", "#a85cc8", "#c4604a", "#2b8c8c", "#80802a", "#6a72ba", "#b85085")
_NAMED = {
    "green": "#2f8a45", "red": "#d03a3a", "dark-red": "#7a1515", "orange": "#c06a00", "yellow": "#a58a00",
    "blue": "#3573c4", "light-blue": "#6fa3e0", "purple": "#9350c0", "text": "#222222", "transparent": "none",
}  # fmt: skip
"""Darker than Grafana's, as they stand on white."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 8, 18
_LINES = 4  # across a chart
_BINARY = ("bytes", "binBps")
_ROUND = (1, 2, 2.5, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000)
_SPANS = (15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_POWERS = tuple(2**power for power in range(12))


@dataclass(frozen=True)
class Line:
    """One series: its points are (seconds, value). `beside`: it is not stacked on the others."""

    name: str
    points: tuple[tuple[float, float], ...]
    color: str = ""
    beside: bool = False


@dataclass(frozen=True)
class Frame:
    """What a chart shows: its size in pixels, its time, and the unit and limits of its values."""

    width: int
    height: int
    since: float
    until: float
    unit: str
    limits: tuple[tuple[float, str], ...] = ()
    least: float | None = None
    most: float | None = None
    stacked: bool = False  # areas, one on the other


def color(name: str, number: int = 0) -> str:
    """A colour of Grafana's by its name, or the palette's one of that number."""
    return _NAMED.get(name) or _PALETTE[number % len(_PALETTE)]


def words(value: float, unit: str, decimals: int | None = None) -> str:
    """The value as people read it, about as Grafana writes it; `decimals`: of those that have no larger unit."""
    if not math.isfinite(value):
        return "–"
    if decimals is not None and unit in ("short", "none", "percentunit") and abs(value) < 1000:
        percent = unit == "percentunit"
        return f"{value * 100 if percent else value:.{decimals}f}{' %' if percent else ''}"
    if unit == "percentunit":
        return f"{_short(value * 100)} %"
    if unit == "s":
        return _span(value)
    if unit in ("bytes", "binBps"):
        return _bytes(value) + ("/s" if unit == "binBps" else "")
    return _short(value) + {"reqps": " req/s", "cps": " c/s"}.get(unit, "")


def chart(lines: Sequence[Line], frame: Frame) -> str:
    """An SVG with the lines, and a legend below it."""
    shown = _on_each_other(lines) if frame.stacked else [(line, [0.0] * len(line.points)) for line in lines]
    tops = [
        (line, [base + value for base, (_, value) in zip(bases, line.points, strict=True)]) for line, bases in shown
    ]
    values = [value for _, top in tops for value in top if math.isfinite(value)]
    if not values:
        return '<p class="none">no data</p>'
    low = min([*values, frame.least if frame.least is not None else math.inf])
    high = max([*values, frame.most if frame.most is not None else -math.inf])
    low, step = _scale(low, high, frame.unit)
    high = low + _LINES * step

    def x(at: float) -> float:
        return _LEFT + (at - frame.since) / (frame.until - frame.since) * (frame.width - _LEFT - _RIGHT)

    def y(value: float) -> float:
        part = (value - low) / (high - low)
        return frame.height - _BOTTOM - part * (frame.height - _TOP - _BOTTOM)

    drawn = [f'<svg width="{frame.width}" height="{frame.height}">']
    for number in range(_LINES + 1):
        at = low + number * step
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y(at):.1f}" y2="{y(at):.1f}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y(at) + 4:.1f}" text-anchor="end">{words(at, frame.unit)}</text>')
    for part, anchor in enumerate(("start", "middle", "end")):
        at = frame.since + (frame.until - frame.since) * part / 2
        ago = f"−{_span(frame.until - at)}" if frame.until - at > 1 else "now"
        drawn.append(f'<text x="{x(at):.1f}" y="{frame.height - 3}" text-anchor="{anchor}">{ago}</text>')
    for number, (line, bases) in enumerate(shown):
        stroke = color(line.color, number)
        tops_of = tops[number][1]
        for run in _runs(tops_of):
            path = " ".join(f"{x(line.points[n][0]):.1f},{y(tops_of[n]):.1f}" for n in run)
            if frame.stacked and not line.beside:
                below = " ".join(f"{x(line.points[n][0]):.1f},{y(bases[n]):.1f}" for n in reversed(run))
                drawn.append(f'<polygon points="{path} {below}" fill="{stroke}" fill-opacity="0.6"/>')
                continue
            dash = ' stroke-dasharray="6 4"' if line.beside else ""
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="1.6"{dash}/>')
    for limit, name in frame.limits:
        if low <= limit <= high:
            drawn.append(
                f'<line x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}"'
                f' stroke="{color(name)}" stroke-dasharray="3 3"/>'
            )
    keys = (
        f'<span><i style="background:{color(line.color, number)}"></i>{escape(line.name)}</span>'
        for number, line in enumerate(lines)
    )
    return "".join([*drawn, "</svg>", '<div class="keys">', *keys, "</div>"])


def figure(text: str, name: str) -> str:
    """One large value."""
    return f'<p class="figure" style="color:{color(name) if name else _NAMED["text"]}">{escape(text)}</p>'


def bars(values: Iterable[tuple[str, float, str]], most: float, unit: str, decimals: int | None = None) -> str:
    """One bar for each (name, value, colour)."""
    drawn = [
        f'<div class="bar"><b>{escape(name)}</b><span><i style="width:{min(1, max(0, value / most)) * 100:.1f}%;'
        f'background:{color(of)}"></i></span><em>{words(value, unit, decimals)}</em></div>'
        for name, value, of in values
    ]
    return "".join(drawn) or '<p class="none">no data</p>'


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rows = ["".join(f"<td>{escape(cell)}</td>" for cell in line) for line in lines]
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _on_each_other(lines: Sequence[Line]) -> list[tuple[Line, list[float]]]:
    """Each with what it stands on, at each of its points."""
    sums: dict[float, float] = {}
    found = []
    for line in lines:
        if line.beside:
            found.append((line, [0.0] * len(line.points)))
            continue
        found.append((line, [sums.get(at, 0.0) for at, _ in line.points]))
        for at, value in line.points:
            sums[at] = sums.get(at, 0.0) + (value if math.isfinite(value) else 0.0)
    return found


def _runs(values: Sequence[float]) -> list[list[int]]:
    """The numbers of the values, in groups without a gap."""
    found: list[list[int]] = [[]]
    for number, value in enumerate(values):
        if math.isfinite(value):
            found[-1].append(number)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def _scale(low: float, high: float, unit: str) -> tuple[float, float]:
    """Where the axis begins, and a round step with which it ends at or above `high`."""
    if 0 <= low < 0.7 * high:
        low = 0.0
    if high <= low:
        high = low + (abs(low) or 1)
    if unit == "s" and low == 0 and 40 < high <= _LINES * _SPANS[-1]:
        return low, next(span for span in _SPANS if _LINES * span >= high)
    base, factors = (1024, _POWERS) if unit in _BINARY else (1000, _ROUND)
    size = base ** math.floor(math.log((high - low) / _LINES, base))
    for factor in factors:
        start = math.floor(low / (size * factor)) * size * factor
        if start + _LINES * size * factor >= high:
            return start, size * factor
    raise AssertionError((low, high))


def _short(value: float) -> str:
    for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def _bytes(value: float) -> str:
    for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return f"{value / 1024**power:.3g} {name}"
    return f"{value:.3g} B"


def _span(value: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value * 1000:.3g} ms" if value else "0 s"
