"""What a check found."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"  # not looked at


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, or could not be; `mend` says what to do, and is empty where all is well."""

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


def unknown(name: str, detail: str, mend: str = "") -> Finding:
    """What was not looked at, and why; `mend` says how to find out."""
    return Finding(name, Verdict.UNKNOWN, detail, mend)


def unseen(name: str, error: Exception) -> Finding:
    """What to say of a check that was tried, and that the system did not let us make."""
    return failed(name, f"can't be looked at: {error}", "correct that, or run `ravebot doctor` as root")


async def guarded(name: str, check: Awaitable[Finding]) -> Finding:
    """The check's finding; what the system refuses it fails only this one, so that the others are still told."""
    try:
        return await check
    except (OSError, ValueError) as error:
        return unseen(name, error)
