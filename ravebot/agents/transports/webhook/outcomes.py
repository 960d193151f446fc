"""What came of sending a webhook, and what follows: the agent has it, it is sent again, or it is given up. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ravebot.backoff import Backoff

MOST_TRIES = 20
"""How often a webhook is sent; some hour in all."""
TOLD_TRIES = 3
"""After how many tries the people who wait are told, once a message."""
PAUSES = Backoff.growing(1.0, 300.0)
LONGEST_PAUSE = 600.0
"""However long the receiver asks for."""
_WRONG = {
    400: "does not understand what ravebot sends",
    401: "wants another proof of who sends: compare the signing key on both sides",
    403: "refuses what ravebot sends: compare the signing key on both sides",
    405: "takes no POST at that address: look at agents[].webhook.url",
    410: "is gone for good",
    413: "takes no message of that size",
    415: "takes no JSON at that address: look at agents[].webhook.url",
    422: "does not understand what ravebot sends",
}
"""What trying again does not mend."""


class PostEnd(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    UNREACHED = "unreached"  # the request was not sent
    SILENT = "silent"  # it may have been received, and no answer came


@dataclass(frozen=True)
class Posted:
    """What came of one request. `why`: of one that was not answered, as a clause; `asked_seconds`: Retry-After."""

    end: PostEnd
    status: int = 0
    why: str = ""
    asked_seconds: float | None = None


class PostVerdict(StrEnum):
    """What follows."""

    DONE = "done"
    AGAIN = "again"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class Sequel:
    """What follows from an attempt. `doubtful`: the agent may have the message although it did not say so; `why`: a
    clause about the agent's webhook, for people."""

    then: PostVerdict
    why: str = ""
    doubtful: bool = False
    pause_seconds: float = 0.0


def judge(posted: Posted, tries: int, spread: float = 1.0) -> Sequel:
    """What follows from the latest of so many tries."""
    status = posted.status
    if posted.end is PostEnd.ANSWERED and 200 <= status < 300:
        return Sequel(PostVerdict.DONE)
    why, doubtful = _why(posted), posted.end is PostEnd.SILENT or status >= 500
    if status in _WRONG:
        return Sequel(PostVerdict.GIVE_UP, why)
    if tries >= MOST_TRIES:
        return Sequel(PostVerdict.GIVE_UP, f"{why}, at the last of {tries} tries", doubtful)
    asked = min(posted.asked_seconds or 0.0, LONGEST_PAUSE)
    return Sequel(PostVerdict.AGAIN, why, doubtful, PAUSES.after(tries, asked, spread))


def _why(posted: Posted) -> str:
    if posted.end is not PostEnd.ANSWERED:
        return posted.why
    status = posted.status
    if 300 <= status < 400:
        return f"answers with a redirect ({status}), which is not followed: configure the final address"
    return f"{_WRONG.get(status, 'does not take it now')} ({status})"
