"""What a job is answered: lines `key=value` that `sh` can read, or JSON for who accepts that."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

_LONGEST_VALUE, _LONGEST_LINE, _MOST_LINES = 1_000, 300, 30


@dataclass(frozen=True)
class JobAnswer:
    """`facts` in their order; `log` is the end of some output, untrusted as all texts here."""

    status: int
    facts: tuple[tuple[str, str], ...]
    log: tuple[str, ...] = ()
    retry_after_seconds: float | None = None

    @classmethod
    def of(cls, status: int, **facts: str) -> Self:
        """Facts that are empty are left out."""
        return cls(status, tuple((name, value) for name, value in facts.items() if value))

    @classmethod
    def error(cls, status: int, why: str, retry_after_seconds: float | None = None) -> Self:
        return cls(status, (("error", why),), (), retry_after_seconds)

    def with_log(self, output: str) -> Self:
        lines = [line for line in output.splitlines() if line.strip()]
        return replace(self, log=tuple(lines[-_MOST_LINES:]))

    def also(self, **facts: str) -> Self:
        return replace(self, facts=(*self.facts, *((name, value) for name, value in facts.items() if value)))

    @property
    def said(self) -> dict[str, str]:
        return dict(self.facts)

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP wants with this status."""
        headers: dict[str, str] = {}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_seconds)))
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="ravebot", error="invalid_token"'
        return headers

    def text(self) -> str:
        """One fact a line, and one line of the log a line."""
        lines = [f"{name}={in_one_line(value, _LONGEST_VALUE)}" for name, value in self.facts]
        lines += [f"log={in_one_line(line, _LONGEST_LINE)}" for line in self.log]
        return "".join(f"{line}\n" for line in lines)

    def json(self) -> dict[str, object]:
        body: dict[str, object] = {name: in_one_line(value, _LONGEST_VALUE) for name, value in self.facts}
        if self.log:
            body["log"] = [in_one_line(line, _LONGEST_LINE) for line in self.log]
        return body


def in_one_line(text: str, most: int) -> str:
    """Without what could end a line or move a terminal's cursor, and not too long."""
    clean = "".join(char if char.isprintable() else " " for char in text[: 4 * most]).strip()
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"
