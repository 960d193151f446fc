"""Which event is reported where, and in which words: one table. Texts are raw; the renderers escape them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from ravebot.sandboxes.model import EndReason, Event, EventKind, Sandbox, Stage
from ravebot.sandboxes.view import in_words
from ravebot.sandboxes.wording import ENDED, STAGES, broke, took

Data = Mapping[str, object]

TAIL_SHOWN = 1500
"""Characters of a failed stage's output that the event log keeps."""
TRIED_AGAIN = (
    "the next sandbox tries it again when the image or its configuration changed, after a while, and when somebody"
    " says `retry`"
)
"""What ends the hold of an image, for people and for the log."""


def _nothing(_: Data) -> str:
    return ""


def _nobody(_sandbox: Sandbox, _event: Event) -> bool:
    return False


@dataclass(frozen=True)
class Telling:
    """`words`: the event as a line of history. `thread`: the line that the card's thread gets, if it is not empty.

    `say`: the words are also a message of their own in the room; `operators`: also, in these words, one in
    `matrix.operations_room`; `warn`: it is a warning that mentions the owner, in room and MR. `calls`: whether the
    owner is notified. `card`: card and note are rewritten at once, and not only if it takes long.
    """

    words: Callable[[Data], str]
    thread: Callable[[Data], str] = _nothing
    say: bool = False
    operators: Callable[[Data], str] | None = None
    warn: bool = False
    calls: Callable[[Sandbox, Event], bool] = _nobody
    card: bool = True


def _in_thread(words: Callable[[Data], str]) -> Telling:
    return Telling(words, thread=words)


def _text(data: Data, key: str) -> str:
    return str(data.get(key) or "")


def _span(data: Data, key: str) -> str:
    value = data.get(key)
    return took(float(value)) if isinstance(value, int | float) else "?"


def _by(data: Data) -> str:
    return f" by {data['by']}" if data.get("by") else ""


def _stage(data: Data) -> str:
    try:
        return STAGES[Stage(_text(data, "stage"))]
    except ValueError:  # of another version
        return _text(data, "stage")


def _until(data: Data) -> str:
    return f", until {data['until']}" if data.get("until") else ""  # not in those of earlier versions


def _reason(data: Data) -> EndReason | None:
    try:
        return EndReason(_text(data, "reason"))
    except ValueError:
        return None


def _kept(data: Data) -> str:
    until = f" until {data['until']}" if data.get("until") else ""
    return f"{_text(data, 'why')}; its machine is kept{until}"


def _no_longer_kept(data: Data) -> str:
    """Why one ends that was kept after its set-up had failed."""
    try:
        reason = EndReason(_text(data, "kept"))
    except ValueError:
        return ""
    return f"not kept any longer: {f'stopped{_by(data)}' if reason is EndReason.STOPPED else ENDED[reason]}"


def _why_it_ends(data: Data) -> str:
    reason = _reason(data)
    if broke(reason) and data.get("detail"):
        return _text(data, "detail")
    why = ENDED[reason] if reason else _text(data, "reason")
    if reason is EndReason.STOPPED and data.get("by"):
        why = f"stopped{_by(data)}"
    return f"{why}; {data['detail']}" if data.get("detail") else why


def _stopping(data: Data) -> str:
    """The stage that failed has said why."""
    failed = _reason(data) is EndReason.FAILED
    return _no_longer_kept(data) or ("stopping" if failed else f"stopping: {_why_it_ends(data)}")


def _ended(data: Data) -> str:
    if broke(_reason(data)):  # that it stops has said why
        return "ended"
    lived = f" (lived {in_words(_seconds(data, 'lived_seconds'))})" if data.get("lived_seconds") is not None else ""
    return f"ended: {_why_it_ends(data)}{lived}"


def _seconds(data: Data, key: str) -> timedelta:
    value = data.get(key)
    return timedelta(seconds=float(value)) if isinstance(value, int | float) else timedelta(0)


def _broke(data: Data) -> str:
    return _no_longer_kept(data) or (_why_it_ends(data) if broke(_reason(data)) else "")


def _ended_well(data: Data) -> str:
    return "" if broke(_reason(data)) else _ended(data)


def _broke_down(sandbox: Sandbox, event: Event) -> bool:
    return broke(sandbox.end_reason) and not event.data.get("kept")  # then it was told when it failed


def _first_ready(sandbox: Sandbox, event: Event) -> bool:
    return sandbox.ready_at == event.at


def _held(data: Data, key: str = "why") -> str:
    if data.get("of_pipeline"):
        return f"no machine comes up from the image that its pipeline built: {_text(data, key)}"
    return f"no more machines are built from this image: {_text(data, key)}; {TRIED_AGAIN}"


def _held_for_operators(data: Data) -> str:
    if data.get("of_pipeline"):
        return ""  # its job built it, and nobody else's machines start from it
    return _held(data, "for_operators" if data.get("for_operators") else "why")


def _resumed(data: Data) -> str:
    return f"machines are built again{_by(data)}"


def _ready(data: Data) -> str:
    return f"ready after {_span(data, 'seconds')}"


def _not_taken(data: Data) -> str:
    sha, why = _text(data, "sha")[:8], _text(data, "why")
    return (
        f"runs {sha}, but its {why}" if data.get("inside") else f"could not take {sha}: its {why}; it runs on as before"
    )


def _names(data: Data, key: str) -> str:
    value = data.get(key)
    names = [str(name) for name in value] if isinstance(value, list) else []
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _access_changed(data: Data) -> str:
    """Who can log in now, who can't any more, and what became of what their keys had open."""
    gained, out, changed = (_names(data, key) for key in ("in", "out", "changed"))
    told = [f"{gained} can log in now" if gained else "", f"{out} can't log in any more" if out else ""]
    told.append(f"an SSH key of {changed} is not let in any more" if changed else "")
    ended = data.get("ended")
    if ended is None:
        told.append("what is open stays open: this image doesn't tell whose sessions there are")
    elif ended:
        told.append("an open session was ended" if ended == 1 else f"{ended} open sessions were ended")
    return "; ".join(part for part in told if part)


def _approved(data: Data) -> str:
    complete = "; it has every approval that it needs" if data.get("complete") else ""
    return f"the merge request was approved{_by(data)}{complete}"


def _unapproved(data: Data) -> str:
    return f"an approval of the merge request was taken back{_by(data) or ' by GitLab, as after new code'}"


K = EventKind
TELLINGS: Final = MappingProxyType(
    {
        K.SANDBOX_QUEUED: Telling(lambda d: f"asked for{_by(d)}, commit {_text(d, 'sha')[:8]}"),
        K.SANDBOX_WAITING: Telling(lambda d: f"waits: {_text(d, 'reason')}"),
        K.SANDBOX_STARTING: Telling(lambda d: f"machine {_text(d, 'machine')} is being started", card=False),
        K.MACHINE_BOOTED: Telling(lambda d: f"machine is up after {_span(d, 'seconds')}", card=False),
        K.STAGE_DONE: Telling(lambda d: f"{_stage(d)} done in {_span(d, 'seconds')}", card=False),
        K.STAGE_FAILED: Telling(
            lambda d: f"{_stage(d)} failed after {_span(d, 'seconds')}: {_text(d, 'why')}", card=False
        ),
        K.SANDBOX_READY: Telling(_ready, thread=_ready, calls=_first_ready),
        K.SANDBOX_KEPT: Telling(_kept, thread=_kept, calls=lambda _sandbox, _event: True),
        K.SANDBOX_CODE: Telling(lambda d: f"new commit {_text(d, 'sha')[:8]}{_by(d)}", card=False),
        K.SANDBOX_UPDATED: _in_thread(lambda d: f"now runs {_text(d, 'sha')[:8]}"),
        K.SANDBOX_UPDATE_FAILED: Telling(_not_taken, thread=_not_taken, calls=lambda _sandbox, _event: True),
        K.SANDBOX_EXTENDED: _in_thread(lambda d: f"extended by {_span(d, 'seconds')}{_by(d)}{_until(d)}"),
        K.SANDBOX_WARNED: Telling(lambda d: f"warned: {in_words(_seconds(d, 'left'))} left", warn=True),
        K.SANDBOX_STOPPING: Telling(_stopping, thread=_broke, calls=_broke_down),
        K.SANDBOX_ENDED: Telling(_ended, thread=_ended_well),
        K.SANDBOX_REQUEUED: _in_thread(
            lambda d: f"tried again on a new machine (attempt {_text(d, 'attempt')}): {_text(d, 'why')}"
        ),
        K.BUILD_HELD: Telling(_held, say=True, operators=_held_for_operators),
        K.BUILD_RESUMED: Telling(_resumed, say=True, operators=lambda d: "" if d.get("of_pipeline") else _resumed(d)),
        K.MACHINE_FORCED: Telling(lambda d: f"did not shut down within {_span(d, 'grace')}: switched off", card=False),
        K.MACHINE_UNHEALTHY: _in_thread(lambda _: "the machine does not answer"),
        K.MACHINE_HEALTHY: _in_thread(lambda _: "the machine answers again"),
        K.MACHINE_RESTARTED: _in_thread(lambda d: f"machine restarted: {_text(d, 'why')}"),
        K.MACHINE_DISK_FULL: Telling(
            lambda d: f"machine paused: {_text(d, 'why')}; it goes on when there is room", say=True
        ),
        K.MACHINE_SUSPENDED: _in_thread(lambda d: f"machine paused {_text(d, 'why')}".rstrip()),
        K.MACHINE_RESUMED: _in_thread(lambda _: "the machine goes on"),
        K.WEB_FOUND: Telling(lambda d: f"something answers on the web port ({_text(d, 'scheme')})"),
        K.MR_APPROVED: Telling(_approved, thread=_approved, card=False),
        K.MR_UNAPPROVED: Telling(_unapproved, thread=_unapproved, card=False),
        K.ACCESS_CHANGED: Telling(_access_changed, thread=_access_changed, card=False),
        K.FORK_APPROVED: Telling(lambda d: f"fork's commit {_text(d, 'sha')[:8]} let in{_by(d)}"),
        K.FIREWALL_REPAIRED: Telling(
            lambda _: "someone removed the firewall's rules; they are back and access works again", say=True
        ),
    }
)
"""Events that are not here (refusals, access audit, sweeps) stay in the log."""


def words(event: Event) -> str:
    """The event as a line of history; empty when people are not shown it."""
    telling = TELLINGS.get(event.kind) if isinstance(event.kind, EventKind) else None
    return telling.words(event.data) if telling else ""
