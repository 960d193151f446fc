"""The series of each running sandbox, which go with it.

They are written as text when they are measured: a scrape of many only adds it. prometheus_client takes ten times as
long, at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from ravebot.store.figures import RunningMachine

MOST = 1000
"""Sandboxes that have series; the oldest come first."""


@dataclass(frozen=True)
class _Family:
    name: str
    kind: str
    text: str
    value: Callable[[RunningMachine], float | None]


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None


_FAMILIES = (
    _Family("cpu_seconds_total", "counter", "CPU time of the machine.", lambda one: one.cpu_seconds),
    _Family("vcpus", "gauge", "Processors of the machine.", lambda one: one.vcpus),
    _Family(
        "spinning_seconds",
        "gauge",
        "For how long it has used all its processors with nobody connected.",
        lambda one: one.spun_for.total_seconds(),
    ),
    _Family("memory_bytes", "gauge", "Memory that QEMU uses for the machine.", lambda one: one.memory_used_bytes),
    _Family("memory_limit_bytes", "gauge", "Memory that the machine was given.", lambda one: one.memory_bytes),
    _Family("disk_bytes", "gauge", "Disk that the machine takes on the host.", lambda one: one.disk_used_bytes),
    _Family("open_files", "gauge", "File descriptors that QEMU has open for it.", lambda one: one.open_files or None),
    _Family("received_bytes_total", "counter", "What the guest received.", lambda one: one.received_bytes),
    _Family("sent_bytes_total", "counter", "What the guest sent.", lambda one: one.sent_bytes),
    _Family("ready_timestamp_seconds", "gauge", "When the sandbox became ready.", lambda one: _seconds(one.ready_at)),
    _Family("expires_timestamp_seconds", "gauge", "When the sandbox ends.", lambda one: _seconds(one.expires_at)),
)
NAMES = tuple(f"ravebot_machine_{family.name}" for family in _FAMILIES)
LABELS = ("project", "mr", "machine")
"""As `_labels` writes them."""


def written(running: Iterable[RunningMachine]) -> bytes:
    """The series in Prometheus' text format. Of many this takes a while: not to be done in the event loop."""
    labelled = [(_labels(one), one) for one in list(running)[:MOST]]
    lines: list[str] = []
    for name, family in zip(NAMES, _FAMILIES, strict=True):
        lines += [f"# HELP {name} {family.text}", f"# TYPE {name} {family.kind}"]
        value = family.value
        lines += [f"{name}{labels} {float(now)!r}" for labels, one in labelled if (now := value(one)) is not None]
    return ("\n".join(lines) + "\n").encode()


def _labels(one: RunningMachine) -> str:
    project, machine = _escaped(one.project), _escaped(one.name)
    return f'{{project="{project}",mr="{project}!{one.iid}",machine="{machine}"}}'


def _escaped(value: str) -> str:
    """https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details"""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
