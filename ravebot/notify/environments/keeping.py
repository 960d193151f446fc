"""What is kept of requests about environments, before they are made and of their answers. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from ravebot.backoff import Backoff
from ravebot.notify.environments.wording import lasting
from ravebot.sandboxes.environments.model import AskedFor, EnvironmentRecord, EnvironmentState, without_environment
from ravebot.sandboxes.environments.plan import LASTING, Deed, ShowStep

Change = Callable[[EnvironmentRecord], EnvironmentRecord]
_TAKEN_PAUSES = Backoff.growing(2.0, 900.0)
_REFUSED_PAUSES = Backoff.growing(60.0, 900.0)


def asking(known: EnvironmentRecord, step: ShowStep, now: datetime) -> EnvironmentRecord:
    """What must be recorded before the request is made, as the process may be killed meanwhile."""
    match step.deed:
        case Deed.CREATE_ENVIRONMENT:
            return replace(known, asked=AskedFor.ENVIRONMENT, asked_what=step.url, asked_at=now, asked_since=now)
        case Deed.CREATE_DEPLOYMENT:
            what = f"{step.sha} {step.sandbox}"
            return replace(known, asked=AskedFor.DEPLOYMENT, asked_what=what, asked_at=now, asked_since=now)
        case Deed.SET_STATUS:
            return replace(known, status_asked=f"{step.sha} {step.state}", status_asked_at=now)
        case Deed.STOP_ENVIRONMENT:  # from now on a stop that is seen is ours
            return replace(known, state=EnvironmentState.STOPPING)
    return known


def in_time(known: EnvironmentRecord, now: datetime) -> EnvironmentRecord:
    """Without moments that are still to come, as the clock was set back: what was asked for may have been asked just
    now, and when it was asked for first says nothing."""

    def past(moment: datetime | None) -> datetime | None:
        return min(moment, now) if moment else None

    since = known.asked_since if known.asked_since and known.asked_since <= now else None
    return replace(known, asked_at=past(known.asked_at), asked_since=since, status_asked_at=past(known.status_asked_at))


def answered(known: EnvironmentRecord) -> EnvironmentRecord:
    """GitLab no longer works on the environment or deployment that it was asked for."""
    return replace(known, asked=AskedFor.NOTHING, asked_what="", asked_at=None, asked_since=None)


def looked_for(known: EnvironmentRecord, deed: Deed) -> EnvironmentRecord:
    """GitLab said that something is wrong, so that it is not at work any more; it may have done it all the same."""
    if deed.is_of_status:
        return replace(known, status_asked_at=None)
    return replace(known, asked_at=None)


def status_answered(known: EnvironmentRecord) -> EnvironmentRecord:
    """GitLab no longer works on the commit status that it was asked for."""
    return replace(known, status_asked="", status_asked_at=None)


def taken(record: EnvironmentRecord, now: datetime) -> EnvironmentRecord:
    """It is looked at next: at once, but later if GitLab says so again and shows none of that name."""
    failures = record.environment_failures + 1
    pause = timedelta(0) if failures == 1 else timedelta(seconds=_TAKEN_PAUSES.after(failures))
    return replace(record, environment_failures=failures, environment_since=now, environment_until=now + pause)


def has(environment_id: int, state: EnvironmentState, url: str, now: datetime, sandbox: int) -> Change:
    return lambda record: answered(
        replace(
            without_environment(record),
            environment_id=environment_id,
            state=state,
            external_url=url,
            seen_at=now,
            seen_with=sandbox,
        )
    )


def deployed(step: ShowStep, deployment_id: int, environment_id: int, now: datetime, sandbox: int) -> Change:
    def keep(record: EnvironmentRecord) -> EnvironmentRecord:
        known = answered(
            replace(
                record,
                newest_deployment=deployment_id,
                deployment_id=deployment_id,
                deployment_sha=step.sha,
                deployment_status=step.state,
                deployment_sandbox=step.sandbox,
            )
        )
        if environment_id == record.environment_id:
            return known
        # Somebody deleted the environment a moment ago: this made it again, without a link.
        available = EnvironmentState.AVAILABLE
        return replace(
            known, environment_id=environment_id, state=available, external_url="", seen_at=now, seen_with=sandbox
        )

    return keep


def refused(known: EnvironmentRecord, deed: Deed, now: datetime, why: str) -> EnvironmentRecord:
    """GitLab refuses it, for a reason that people are told; it is tried again, after a day of refusals once a day."""
    part = _part(deed)
    since: datetime = min(getattr(known, f"{part}_refused_since") or now, now)
    failures: int = getattr(known, f"{part}_failures") + 1
    lasts = now - since >= LASTING
    kept: dict[str, Any] = {
        "refused": lasting(why) if lasts else why,
        "refused_since": since,
        "failures": failures,
        "since": now,
        "until": now + (LASTING if lasts else timedelta(seconds=_REFUSED_PAUSES.after(failures))),
    }
    return replace(known, **{f"{part}_{name}": value for name, value in kept.items()})


def at_peace(known: EnvironmentRecord, deed: Deed) -> EnvironmentRecord:
    """GitLab did it, and refuses nothing of the kind any more."""
    if deed.is_of_status:
        return _without(known, "status")
    if known.environment_id is None and deed in (Deed.CREATE_ENVIRONMENT, Deed.FIND_ENVIRONMENT):
        return known  # the name is taken: whether by one of ours is still to be seen
    if deed is Deed.FIND_DEPLOYMENT or _part(deed) == "deployment":
        known = _without(known, "deployment")
    return _without(known, "environment")


def without_refusals(known: EnvironmentRecord) -> EnvironmentRecord:
    """It is over: the next sandbox asks anew."""
    return _without(_without(_without(known, "environment"), "deployment"), "status")


def _part(deed: Deed) -> str:
    """What has pauses and refusals of its own."""
    if deed.is_of_status:
        return "status"
    return "deployment" if deed in (Deed.CREATE_DEPLOYMENT, Deed.SET_DEPLOYMENT) else "environment"


def _without(known: EnvironmentRecord, part: str) -> EnvironmentRecord:
    none: dict[str, Any] = {"refused": "", "refused_since": None, "failures": 0, "since": None, "until": None}
    return replace(known, **{f"{part}_{name}": value for name, value in none.items()})
