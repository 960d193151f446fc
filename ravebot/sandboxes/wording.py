"""How a sandbox is, in the words of people: for cards, notes and answers. Texts are raw; the renderers escape them.

What stays readable for long names moments, such as `14:40 UTC`: a relative time is wrong a minute later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ravebot.clock import moment
from ravebot.sandboxes.model import EndReason, SandboxState, Stage, StageResult
from ravebot.sandboxes.view import SandboxView, Summary, in_bytes, in_words

ENDED = {
    EndReason.EXPIRED: "its time was up",
    EndReason.STOPPED: "somebody stopped it",
    EndReason.MERGED: "the merge request was merged",
    EndReason.CLOSED: "the merge request was closed",
    EndReason.SUPERSEDED: "another one took its place",
    EndReason.FAILED: "it could not be set up",
    EndReason.LOST: "its machine was lost",
}

STAGES = {
    Stage.HOST_KEYS: "SSH host key check",
    Stage.AUTHORIZE: "access for its people",
    Stage.COPY: "copy of the code",
    Stage.SETUP: "set-up",
    Stage.TEST: "tests",
    Stage.OPEN_PORTS: "opening of the ports",
    Stage.ANNOUNCE: "announcement",
}

_FIRST_STEPS = ("machine", "access", "copy of the code", "set-up", "tests", "ports")
_FIRST_STEP_OF: Mapping[Stage | None, int] = {
    None: 1, Stage.HOST_KEYS: 2, Stage.AUTHORIZE: 2, Stage.COPY: 3, Stage.SETUP: 4, Stage.TEST: 5,
    Stage.OPEN_PORTS: 6, Stage.ANNOUNCE: 6,
}  # fmt: skip
_UPDATE_STEPS = ("copy of the code", "set-up", "tests")
_UPDATE_STEP_OF: Mapping[Stage | None, int] = {Stage.COPY: 1, Stage.SETUP: 2, Stage.TEST: 3, Stage.ANNOUNCE: 3}

_SIGNS = {
    SandboxState.QUEUED: "🕒",
    SandboxState.STARTING: "🔧",
    SandboxState.READY: "🟢",
    SandboxState.STOPPING: "🌙",
    SandboxState.ENDED: "⚪",
}


@dataclass(frozen=True)
class Headline:
    """`state` is for bold, `rest` is ravebot's own and follows it directly, `why` comes after a colon and is untrusted.

    `rest` and `why` may be empty; `sign` repeats the state as an emoji.
    """

    sign: str
    state: str
    rest: str
    why: str = ""


def failed(stage: Stage | None) -> str:
    """What is said of a stage that failed: `set-up failed`; without one, of the machine."""
    return f"{STAGES[stage] if stage else 'start'} failed"


_FAILURES = frozenset(map(failed, (None, *Stage)))


def took(seconds: float) -> str:
    """How long a stage took."""
    return f"{seconds:.1f} s" if seconds < 10 else in_words(timedelta(seconds=seconds))


def went(result: StageResult) -> str:
    """How a stage went."""
    return f"{STAGES[result.stage]} {'done' if result.ok else 'failed'} in {took(result.seconds)}"


def account(summary: Summary) -> str:
    """What an ended sandbox used."""
    lived = f"lived {in_words(summary.lived)}" if summary.lived is not None else "never was ready"
    cpu = in_words(timedelta(seconds=summary.cpu_seconds))
    return f"It {lived}, used {cpu} of CPU time and at most {in_bytes(summary.memory_peak_bytes)} of memory."


def update_failed(view: SandboxView) -> bool:
    """Whether new code could not be taken, and the sandbox stays up."""
    up = is_up(view) and not view.sandbox.is_kept
    return up and bool(view.sandbox.notice) and bool(view.stages) and not view.stages[-1].ok


def failed_result(view: SandboxView) -> StageResult | None:
    """The result of the step whose failure is to be told, if it printed something."""
    told = view.sandbox.end_reason is EndReason.FAILED or update_failed(view)
    result = view.stages[-1] if told and view.stages else None
    return result if result and not result.ok and result.tail.strip() else None


def is_up(view: SandboxView) -> bool:
    """Whether it is starting or ready."""
    return view.sandbox.state in (SandboxState.STARTING, SandboxState.READY)


def calls_owner(view: SandboxView) -> bool:
    """Whether its state is one that its owner is notified of."""
    return view.sandbox.state is SandboxState.READY or broke(view.sandbox.end_reason)


def broke(reason: EndReason | None) -> bool:
    """Whether it ended although nobody wanted it to."""
    return reason in (EndReason.FAILED, EndReason.LOST)


def headline(view: SandboxView, day: datetime) -> Headline:
    """The state and its moment; `day` is the day that readers see beside the text."""
    sandbox = view.sandbox
    sign, but = _SIGNS[sandbox.state], ""
    if view.trouble:
        sign, but = view.trouble.sign, f", but {view.trouble.words}"
    since = f"since {moment(sandbox.stage_started_at or sandbox.state_since, day)}"
    match sandbox.state:
        case SandboxState.QUEUED:
            return _waiting(view, day)
        case SandboxState.STARTING:
            again = f" (attempt {sandbox.attempt})" if sandbox.attempt > 1 else ""
            return Headline(sign, "Starting", f"{again}: {_step(sandbox.stage, first=True)}, {since}{but}")
        case SandboxState.READY if sandbox.is_kept:
            return _kept(view, day, but)
        case SandboxState.READY:
            until = f" until {moment(sandbox.expires_at, day)}" if sandbox.expires_at else ""
            if sandbox.stage is not None:
                since = f"since {moment(sandbox.stage_started_at or sandbox.state_since, view.now)}"
                until += f"; takes {sandbox.sha[:8]}: {_step(sandbox.stage, first=False)}, {since}"
            elif update_failed(view) and not view.trouble:
                sign = "🟡"
            return Headline(sign, "Ready", until + but)
        case SandboxState.STOPPING | SandboxState.ENDED:
            return _ending(view, day)


def _waiting(view: SandboxView, day: datetime) -> Headline:
    since = f" since {moment(view.sandbox.created_at, day)}"
    sign = _SIGNS[SandboxState.QUEUED]
    now = f" as of {moment(view.now, view.sandbox.created_at)}"
    if view.sandbox.not_before and view.sandbox.not_before > view.now:
        again = moment(view.sandbox.not_before, view.sandbox.created_at)
        return Headline(sign, "Waits", since, f"a machine did not come up, and it is tried again at {again}")
    if view.queue_reason:  # its figures change
        return Headline(sign, "Waits", f"{since};{now}", view.queue_reason)
    if view.queue_position == 1 and not view.queue_wait:
        return Headline(_SIGNS[SandboxState.STARTING], "Starting", since, "its turn is next")
    place = f", number {view.queue_position}{now}" if view.queue_position else ""
    return Headline(sign, "Waits", since + place)


def _ending(view: SandboxView, day: datetime) -> Headline:
    sandbox = view.sandbox
    at = moment(sandbox.ended_at or sandbox.state_since, day)
    if broke(sandbox.end_reason):
        return _failure(view, day)
    why = ENDED[sandbox.end_reason] if sandbox.end_reason else "as asked"
    why += f"; {sandbox.end_detail}" if sandbox.end_detail else ""
    if sandbox.state is SandboxState.STOPPING:
        return Headline(_SIGNS[sandbox.state], "Stopping", f" since {at}", why)
    lived = f" (lived {in_words(view.summary.lived)})" if view.summary and view.summary.lived is not None else ""
    return Headline(_SIGNS[sandbox.state], "Ended", f" at {at}", why + lived)


def _kept(view: SandboxView, day: datetime, but: str) -> Headline:
    """Until when its machine is kept, and why; while its stages run again, which one."""
    sandbox = view.sandbox
    sign = view.trouble.sign if view.trouble else "🔴"
    until = f" until {moment(sandbox.expires_at, day)}" if sandbox.expires_at else ""
    if sandbox.stage is not None:
        since = moment(sandbox.stage_started_at or sandbox.state_since, view.now)
        step = f"{_step(sandbox.stage, first=True)}, since {since}"
        return Headline(sign, "Kept", f"{until}; tries {sandbox.sha[:8]}: {step}{but}")
    failure = _failure(view, day)
    return Headline(
        sign, "Kept", f"{until}; {failure.state[:1].lower()}{failure.state[1:]}{failure.rest}{but}", failure.why
    )


def _failure(view: SandboxView, day: datetime) -> Headline:
    """The stage that failed and why; the same while the machine is taken down and afterwards."""
    sandbox = view.sandbox
    what, _, why = sandbox.end_detail.partition(": ")
    if what not in _FAILURES:  # the machine, or a row of an earlier version
        what, why = "failed" if sandbox.end_reason is EndReason.FAILED else "lost", sandbox.end_detail
    at, after = sandbox.ended_at or sandbox.state_since, ""
    for result in view.stages:
        if not result.ok and sandbox.end_reason is EndReason.FAILED:
            at, after = result.at or at, f", after {took(result.seconds)}"
    return Headline("🔴", what.capitalize(), f" at {moment(at, day)}{after}", why)


def _step(stage: Stage | None, *, first: bool) -> str:
    names, numbers = (_FIRST_STEPS, _FIRST_STEP_OF) if first else (_UPDATE_STEPS, _UPDATE_STEP_OF)
    number = numbers.get(stage, 1)
    return f"{names[number - 1]}, step {number} of {len(names)}"
