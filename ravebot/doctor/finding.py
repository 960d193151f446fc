"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` says what to do, and is empty where all is well."""

    name: str
    verdict: Verdict
    detail: str
    mend: str = ""


def ok(name: str, detail: str) -> Finding:
    return Finding(name, Verdict.OK, detail)


def warning(name: str, detail: str, mend: str = "") -> Finding:
    return Finding(name, Verdict.WARNING, detail, mend)


def failed(name: str, detail: str, mend: str = "") -> Finding:
    return Finding(name, Verdict.FAILED, detail, mend)
