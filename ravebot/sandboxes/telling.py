"""Which event is reported where, and in which words: one table. Texts are raw; the renderers escape them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from ravebot.sandboxes.model import Event, EventKind
from ravebot.sandboxes.view import in_bytes, in_words

Data = Mapping[str, object]

TAIL_SHOWN = 1500
"""Characters of a failed stage's output that people are told."""
TRIED_AGAIN = (
    "the next sandbox tries it again when the image or its configuration changed, after a while, and when somebody"
    " says `retry`"
)
"""What ends the hold of an image, for people and for the log."""


@dataclass(frozen=True)
class Telling:
    """`words`: the event as a line of history. `thread`: it is also sent as a message in the card's thread;
    `say`: as a message of its own in the room; `operators`: also in these words in `matrix.operations_room`;
    `warn`: as a warning that mentions the owner, in room and MR."""

    words: Callable[[Data], str]
    thread: bool = False
    say: bool = False
    operators: Callable[[Data], str] | None = None
    warn: bool = False


def _text(data: Data, key: str) -> str:
    return str(data.get(key) or "")


def _span(data: Data, key: str) -> str:
    value = data.get(key)
    if not isinstance(value, int | float):
        return "?"
    return f"{value:.1f} s" if value < 10 else in_words(timedelta(seconds=float(value)))


def _by(data: Data) -> str:
    return f" by {data['by']}" if data.get("by") else ""


def _tail(data: Data) -> str:
    tail = _text(data, "tail").strip()
    return f"\n{tail[-TAIL_SHOWN:]}" if tail else ""


def _ended(data: Data) -> str:
    peak = data.get("memory_peak_bytes")
    parts = [f"ended: {_text(data, 'reason')}"]
    if data.get("detail"):
        parts.append(_text(data, "detail"))
    if data.get("lived_seconds") is not None:
        parts.append(f"lived {_span(data, 'lived_seconds')}")
        parts.append(f"CPU time {_span(data, 'cpu_seconds')}")
        parts.append(f"memory at most {in_bytes(peak) if isinstance(peak, int) else '?'}")
    return ", ".join(parts)


def _stage_failed(data: Data) -> str:
    return f"{_text(data, 'stage')} failed after {_span(data, 'seconds')}: {_text(data, 'why')}{_tail(data)}"


def _held(data: Data, key: str = "why") -> str:
    return f"no more machines are built from this image: {_text(data, key)}; {TRIED_AGAIN}"


def _held_for_operators(data: Data) -> str:
    return _held(data, "for_operators" if data.get("for_operators") else "why")


def _resumed(data: Data) -> str:
    return f"machines are built again{_by(data)}"


def _stopping(data: Data) -> str:
    return f"stopping: {_text(data, 'reason')}{_by(data)}" + (f", {data['detail']}" if data.get("detail") else "")


K = EventKind
TELLINGS: Final = MappingProxyType(
    {
        K.SANDBOX_QUEUED: Telling(lambda d: f"asked for{_by(d)}, commit {_text(d, 'sha')[:8]}"),
        K.SANDBOX_WAITING: Telling(lambda d: f"waits: {_text(d, 'reason')}", say=True),
        K.SANDBOX_STARTING: Telling(lambda d: f"machine {_text(d, 'machine')} is being started"),
        K.MACHINE_BOOTED: Telling(lambda d: f"machine is up after {_span(d, 'seconds')}"),
        K.STAGE_DONE: Telling(lambda d: f"{_text(d, 'stage')} done in {_span(d, 'seconds')}"),
        K.STAGE_FAILED: Telling(_stage_failed, thread=True),
        K.SANDBOX_READY: Telling(lambda d: f"ready after {_span(d, 'seconds')}", thread=True),
        K.SANDBOX_CODE: Telling(
            lambda d: f"new commit {_text(d, 'sha')[:8]}{_by(d)}: the sandbox takes it", thread=True
        ),
        K.SANDBOX_UPDATED: Telling(lambda d: f"now runs {_text(d, 'sha')[:8]}", thread=True),
        K.SANDBOX_UPDATE_FAILED: Telling(
            lambda d: f"could not take {_text(d, 'sha')[:8]}: {_text(d, 'why')}; the sandbox stays up as it is",
            thread=True,
        ),
        K.SANDBOX_EXTENDED: Telling(lambda d: f"extended by {_span(d, 'seconds')}{_by(d)}", thread=True),
        K.SANDBOX_WARNED: Telling(lambda d: f"warned: {_span(d, 'left')} left", warn=True),
        K.SANDBOX_STOPPING: Telling(_stopping, thread=True),
        K.SANDBOX_ENDED: Telling(_ended, thread=True),
        K.SANDBOX_REQUEUED: Telling(
            lambda d: f"tried again on a new machine (attempt {_text(d, 'attempt')}): {_text(d, 'why')}", thread=True
        ),
        K.BUILD_HELD: Telling(_held, say=True, operators=_held_for_operators),
        K.BUILD_RESUMED: Telling(_resumed, say=True, operators=_resumed),
        K.MACHINE_FORCED: Telling(lambda d: f"did not shut down within {_span(d, 'grace')}: switched off", thread=True),
        K.MACHINE_UNHEALTHY: Telling(lambda d: "the machine does not answer", thread=True),
        K.MACHINE_HEALTHY: Telling(lambda d: "the machine answers again", thread=True),
        K.MACHINE_RESTARTED: Telling(lambda d: f"machine restarted: {_text(d, 'why')}", thread=True),
        K.MACHINE_DISK_FULL: Telling(
            lambda d: f"machine paused: {_text(d, 'why')}; it goes on when there is room", say=True
        ),
        K.MACHINE_SUSPENDED: Telling(lambda d: f"machine suspended {_text(d, 'why')}".rstrip(), say=True),
        K.MACHINE_RESUMED: Telling(lambda d: "machine goes on", thread=True),
        K.WEB_FOUND: Telling(lambda d: f"something answers on the web port ({_text(d, 'scheme')})", thread=True),
        K.FORK_APPROVED: Telling(lambda d: f"fork's commit {_text(d, 'sha')[:8]} let in{_by(d)}"),
        K.FIREWALL_REPAIRED: Telling(
            lambda d: "someone removed the firewall's rules; they are back and access works again", say=True
        ),
    }
)
"""Events that are not here (refusals, access audit, sweeps) stay in the log."""


def words(event: Event) -> str:
    """The event as a line of history; empty when people are not shown it."""
    telling = TELLINGS.get(event.kind) if isinstance(event.kind, EventKind) else None
    return telling.words(event.data) if telling else ""
