"""Compares the webhooks of a project with the one that ravebot needs, and says what to register. Pure.

https://docs.gitlab.com/api/project_webhooks/ ; GitLab never returns a webhook's secrets, so they can't be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from ravebot.gitlab.fields import Json

NEEDED = {"merge_requests_events": "merge request events", "note_events": "comments"}
"""What ravebot reads, by GitLab's key and by the words of its page."""
_NOT_SETTABLE = "repository_update_events"  # of system hooks only
_EXECUTABLE = (None, "executable")
_PORTS = {"http": 80, "https": 443}


class HookCondition(StrEnum):
    """How the webhook of one project is."""

    RIGHT = "right"
    MISSING = "missing"
    FOREIGN = "foreign"  # only webhooks to another address, which looks like a ravebot's
    WRONG = "wrong"
    DISABLED = "disabled"  # by GitLab, after failures
    DOUBLED = "doubled"
    REMOVED = "removed"
    FAILED = "failed"  # GitLab refused, or did not answer


@dataclass(frozen=True)
class HookTarget:
    """Where webhooks must go. `exact` false: http.public_url is not set, so only the path is known."""

    address: str
    exact: bool = True

    def is_met_by(self, url: str) -> bool:
        """Whether a webhook's URL is this address; a query may follow it."""
        here, there = _place(url), _place(self.address)
        if here is None or there is None:
            return False
        return here == there if self.exact else here[-1].endswith(there[-1])

    def resembles(self, url: str) -> bool:
        """Whether it is another address with the path of a ravebot."""
        here, there = _place(url), _place(self.address)
        return here is not None and there is not None and here != there and here[-1] == there[-1]


@dataclass(frozen=True)
class HookSecrets:
    """The contents of the files that `gitlab.webhook` names."""

    secret_token: str | None = field(default=None, repr=False)
    signing_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class HookComparison:
    """What is there, and what of it is ours; `keep` is the one that stays when there are several."""

    condition: HookCondition
    keep: Json | None
    surplus: tuple[Json, ...] = ()
    missing_events: tuple[str, ...] = ()
    other_events: tuple[str, ...] = ()
    without_secret: bool = False
    unverified: bool = False
    foreign: tuple[str, ...] = ()

    @property
    def keep_id(self) -> int | None:
        return hook_id(self.keep) if self.keep is not None else None


def hook_id(hook: Json) -> int:
    """A webhook's id: a number, although GitLab's OpenAPI says text; -1 if it is neither."""
    value = hook.get("id")
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) else -1


def without_query(url: str) -> str:
    """What may be shown of a webhook's URL: a query or login in it may hold a secret."""
    place = _place(url)
    if place is None:
        return "an unreadable address"
    scheme, host, port, path = place
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}{'' if port == _PORTS[scheme] else f':{port}'}{path}"


def compare(hooks: Iterable[object], target: HookTarget, secrets: HookSecrets) -> HookComparison:
    """How the webhooks that a project has meet what ravebot needs."""
    listed = [hook for hook in hooks if isinstance(hook, Mapping)]
    foreign = tuple(without_query(_url(hook)) for hook in listed if target.exact and target.resembles(_url(hook)))
    ours = sorted((hook for hook in listed if target.is_met_by(_url(hook))), key=_preference)
    if not ours:
        condition = HookCondition.FOREIGN if foreign else HookCondition.MISSING
        return HookComparison(condition, None, foreign=foreign)
    keep = ours[0]
    missing = tuple(words for key, words in NEEDED.items() if not keep.get(key))
    without_secret = not _may_carry(keep, secrets)
    if keep.get("alert_status") not in _EXECUTABLE:
        condition = HookCondition.DISABLED
    elif missing or without_secret:
        condition = HookCondition.WRONG
    elif len(ours) > 1 and target.exact:
        condition = HookCondition.DOUBLED
    else:
        condition = HookCondition.RIGHT
    return HookComparison(
        condition,
        keep,
        tuple(ours[1:]) if target.exact else (),
        missing,
        tuple(sorted(_others(keep))),
        without_secret,
        keep.get("enable_ssl_verification") is False and urlsplit(_url(keep)).scheme == "https",
        foreign,
    )


def to_create(target: HookTarget, secrets: HookSecrets, ssl_verification: bool) -> dict[str, object]:
    """The body that makes the webhook. GitLab's default is push events only."""
    return {
        "url": target.address,
        "name": "ravebot",
        "description": "Made by `ravebot gitlab hooks install`.",
        "push_events": False,
        **_common(secrets, ssl_verification),
    }


def to_edit(hook: Json, secrets: HookSecrets, ssl_verification: bool) -> dict[str, object]:
    """The body that makes a webhook of ours right; its URL stays as it is, with a query that somebody added."""
    return {"url": _url(hook), **dict.fromkeys(_others(hook), False), **_common(secrets, ssl_verification)}


def may_be_made_anew(hook: Json) -> bool:
    """Whether a new one would be the same: nobody gave it headers or variables, whose values GitLab doesn't return."""
    return not (hook.get("custom_headers") or hook.get("url_variables") or urlsplit(_url(hook)).query)


def takes_signing_tokens(hook: Json) -> bool:
    """Whether GitLab took a signing token with its last answer; an old GitLab ignores it without a word."""
    return hook.get("signing_token_present") is True


def was_refused(events: object) -> bool:
    """Whether the newest delivery of a webhook, as GitLab lists them, got a 401.

    https://docs.gitlab.com/api/project_webhooks/#get-a-list-of-project-webhook-events
    """
    latest = events[0] if isinstance(events, list) and events else {}
    return isinstance(latest, Mapping) and str(latest.get("response_status")) == "401"


def _common(secrets: HookSecrets, ssl_verification: bool) -> dict[str, object]:
    body: dict[str, object] = {**dict.fromkeys(NEEDED, True), "enable_ssl_verification": ssl_verification}
    if secrets.secret_token is not None:
        body["token"] = secrets.secret_token
    if secrets.signing_token is not None:
        body["signing_token"] = secrets.signing_token
    return body


def _may_carry(hook: Json, secrets: HookSecrets) -> bool:
    """Whether it has one of our kinds of secret; GitLab before 19 doesn't tell, and then it may."""
    told = (
        (secrets.secret_token, hook.get("token_present")),
        (secrets.signing_token, hook.get("signing_token_present")),
    )
    present = [there for wanted, there in told if wanted is not None]
    return not present or any(there is not False for there in present)


def _others(hook: Json) -> list[str]:
    return [
        key for key, on in hook.items()
        if on is True and key.endswith("_events") and key not in NEEDED and key != _NOT_SETTABLE
    ]  # fmt: skip


def _preference(hook: Json) -> tuple[bool, bool, int]:
    """The same for everybody who looks, so that two who reduce at once keep the same one."""
    return hook.get("alert_status") not in _EXECUTABLE, may_be_made_anew(hook), hook_id(hook)


def _url(hook: Json) -> str:
    return str(hook.get("url", ""))


def _place(url: str) -> tuple[str, str, int, str] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port, parts.path
