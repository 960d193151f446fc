"""The result of a check."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The result in one word."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"  # not checked


@dataclass(frozen=True)
class Finding:
    """One thing that was checked, or could not be; `fix` says what to do, and is empty if nothing is wrong."""

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Finding:
    return Finding(name, Verdict.OK, detail)


def warning(name: str, detail: str, fix: str = "") -> Finding:
    return Finding(name, Verdict.WARNING, detail, fix)


def failed(name: str, detail: str, fix: str = "") -> Finding:
    return Finding(name, Verdict.FAILED, detail, fix)


def unknown(name: str, detail: str, fix: str = "") -> Finding:
    """Something that was not checked, and why; `fix` says how to find out."""
    return Finding(name, Verdict.UNKNOWN, detail, fix)


def unchecked(name: str, error: Exception) -> Finding:
    """The finding of a check that failed with an error of the system."""
    return failed(name, f"can't be checked: {error}", "fix that, or run `ravebot doctor` as root")


async def guarded(name: str, check: Awaitable[Finding]) -> Finding:
    """The check's finding. An error of the system fails only this check, so that the others are still shown."""
    try:
        return await check
    except (OSError, ValueError) as error:
        return unchecked(name, error)
