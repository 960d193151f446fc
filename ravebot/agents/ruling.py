"""Whether an answer to an approval counts: one pure decision for reactions, commands, comments and the shell.

Only "once" is ever granted: one answer, for exactly what was shown, at the commit that it was shown for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ravebot.agents.model import Approval, ApprovalState
from ravebot.agents.questions import hash_of
from ravebot.sandboxes.model import Actor

_BOTS = re.compile(r"(?:(?:project|group)_\d+_bot|service_account)(?:_.*)?")
"""https://docs.gitlab.com/user/project/settings/project_access_tokens/#bot-users-for-projects"""


class Ruling(StrEnum):
    """What an answer does. Only the first two change the approval to a person's answer."""

    GRANTED = "granted"
    DENIED = "denied"
    CHANGED = "what is asked has changed since"  # it is withdrawn, and asked again as it is now
    TOO_LATE = "no answer came in time"
    ANSWERED = "somebody answered it before"
    WITHDRAWN = "it is not asked any more"
    NO_PERSON = "agents and bots never answer"
    ANOTHER = "only one person may answer it"
    ELSEWHERE = "it is answered in another place"
    NO_RIGHT = "the right is missing"


@dataclass(frozen=True)
class Rights:
    """Who answers, and what they may, as it was looked up just before.

    `allowed`: they have the right that this kind needs. `here`: the place in which they answered is the approval's own,
    or one in which they may command its project. `head_sha`: the commit that is the head now; empty: it was not needed.
    """

    who: Actor
    allowed: bool
    here: bool
    head_sha: str = ""


@dataclass(frozen=True)
class GivenAnswer:
    """A yes or a no. `seen_hash`: of the payload that the person saw, where their door knows it."""

    yes: bool
    seen_hash: str = ""


_OVER = {
    ApprovalState.GRANTED: Ruling.ANSWERED,
    ApprovalState.DENIED: Ruling.ANSWERED,
    ApprovalState.EXPIRED: Ruling.TOO_LATE,
    ApprovalState.WITHDRAWN: Ruling.WITHDRAWN,
}


def judge(approval: Approval, answer: GivenAnswer, rights: Rights, now: datetime) -> Ruling:
    """What that answer does, by the first rule that applies."""
    if not is_person(rights.who):
        return Ruling.NO_PERSON
    if not rights.here:
        return Ruling.ELSEWHERE
    if not rights.allowed:
        return Ruling.NO_RIGHT
    if approval.only_by and not _is_the_one(approval.only_by, rights.who):
        return Ruling.ANOTHER
    if approval.state in _OVER:
        return _OVER[approval.state]
    if now >= approval.expires_at:
        return Ruling.TOO_LATE
    if not answer.yes:
        return Ruling.DENIED
    if answer.seen_hash not in ("", approval.payload_hash) or hash_of(approval.payload) != approval.payload_hash:
        return Ruling.CHANGED
    if approval.head_sha and rights.head_sha != approval.head_sha:
        return Ruling.CHANGED
    return Ruling.GRANTED


def is_person(who: Actor) -> bool:
    """Whether somebody can be a person: no agent, not ravebot itself, no bot user of a GitLab token."""
    if who.kind == "gitlab":
        return not _BOTS.fullmatch(who.name)
    return who.kind in ("matrix", "shell")


def _is_the_one(only_by: str, who: Actor) -> bool:
    """Whether that is the one person: a Matrix user by the id, a GitLab user by the name."""
    return who.name == only_by and who.kind == ("matrix" if only_by.startswith("@") else "gitlab")
