"""Lets jobs in by their tokens. Wrong ones cost a look at their form and at most a signature's check, and are limited
by address; jobs that are right are limited each by itself, so that those behind the same proxy go on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ravebot.gitlab.ci.keys import KeyNotYet
from ravebot.gitlab.ci.tokens import BadToken, JobTokens
from ravebot.tools.limits import AtOnce, Buckets, CallRate
from ravebot.web.api.addresses import network_of
from ravebot.web.api.gate import WRONG
from ravebot.web.ci.answers import JobAnswer
from ravebot.web.ci.door import JobCaller

LOOKS, ACTS = CallRate(burst=30, per_second=1), CallRate(burst=10, per_second=0.2)
MOST_AT_ONCE = 4
"""Requests of one job; some wait up to 25 seconds."""
PROJECT_HEADER = "X-Project-Id"
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


class Turned(Exception):
    """The request ends here, with this answer."""

    def __init__(self, answer: JobAnswer) -> None:
        super().__init__(answer.said.get("error", ""))
        self.answer = answer


@dataclass
class JobGate:
    """`at_once`: how many requests of a job are under way."""

    tokens: JobTokens
    at_once: AtOnce = field(default_factory=lambda: AtOnce(MOST_AT_ONCE))
    _wrong: Buckets = field(default_factory=lambda: Buckets(WRONG))
    _looks: Buckets = field(default_factory=lambda: Buckets(LOOKS))
    _acts: Buckets = field(default_factory=lambda: Buckets(ACTS))

    async def caller(self, headers: Mapping[str, str], address: str, *, acts: bool) -> JobCaller:
        """Who asks. Raises Turned for who may not, and Unavailable while GitLab's keys can't be read."""
        scheme, _, text = headers.get("Authorization", "").partition(" ")
        try:
            claims = await self.tokens.claims(
                text.strip() if scheme.lower() == "bearer" else "", ask=not self._wrong.is_empty(network_of(address))
            )
        except (BadToken, KeyNotYet) as error:  # a flood of unknown keys must not spend what jobs may have us ask
            if wait := self._wrong.take(network_of(address)):
                raise Turned(_too_often("too many wrong tokens came from your address", wait)) from error
            if isinstance(error, KeyNotYet):
                raise
            raise Turned(JobAnswer.error(401, str(error))) from error
        if wait := (self._acts if acts else self._looks).take(str(claims.job_id)):
            raise Turned(_too_often("this job asks too often: use ?wait=20, which answers as soon as it can", wait))
        hint = headers.get(PROJECT_HEADER, "").strip()
        return JobCaller(claims, int(hint) if _NUMBER.fullmatch(hint) else None)

    def crowded(self) -> JobAnswer:
        return _too_often(f"this job has {MOST_AT_ONCE} requests under way: wait for an answer first", 5)


def _too_often(why: str, wait: float) -> JobAnswer:
    return JobAnswer.error(429, why, wait)
