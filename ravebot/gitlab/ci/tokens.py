"""Whether a token is one that GitLab gave a job for us, and which job that is. Nothing else in it is believed.

https://docs.gitlab.com/ci/secrets/id_token_authentication/. It is checked from the cheapest to the dearest: its length
and form, then the signature by a key of GitLab's, and only then what it says. The algorithm is ours, never the token's.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass

import jwt
from jwt.exceptions import PyJWTError

from ravebot.clock import Clock
from ravebot.errors import RavebotError
from ravebot.gitlab.ci.keys import JobKeys, UnknownKey

LONGEST_TOKEN = 8_000
"""Characters. GitLab's have some 2,000, and some more for each group of who runs the job."""
LEEWAY_SECONDS = 30
LONGEST_LIFE_SECONDS = 25 * 3600
"""A token lives as long as its job may run."""
_FORM = re.compile(r"[A-Za-z0-9_-]{1,2000}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{1,4096}")
_ID = re.compile(r"[1-9][0-9]{0,17}")
_HOW = "Give the job one in .gitlab-ci.yml: id_tokens: {RAVEBOT_TOKEN: {aud: %s}}"


class BadToken(RavebotError):
    """This is no token with which a job may speak to us; the text says what to do."""


@dataclass(frozen=True)
class JobClaims:
    """What a token's signature vouches for. `project_id`: where GitLab may know the job.

    `is_sure`: that is the project that runs the job. Older GitLabs tell only of the project that the code comes from.
    `project_path`: of the project that runs the job, if the token tells; it only serves to refuse early.
    """

    job_id: int
    project_id: int
    is_sure: bool = True
    project_path: str = ""


@dataclass(frozen=True)
class JobTokens:
    """Checks tokens; `issuer` is GitLab's address, `audience` what jobs must ask for."""

    keys: JobKeys
    issuer: str
    audience: str
    clock: Clock

    async def claims(self, text: str, *, ask: bool = True) -> JobClaims:
        """Which job shows this. Raises BadToken, and Unavailable while GitLab's keys can't be read.

        Without `ask` GitLab is not asked for a key that is not known.
        """
        if not text:
            raise BadToken(f"there is no token. {_HOW % self.audience}, and send it as `Authorization: Bearer …`")
        if len(text) > LONGEST_TOKEN or not _FORM.fullmatch(text):
            raise BadToken(f"this is no token of a job. {_HOW % self.audience}")
        kid = _key_name(text)
        try:
            key = await self.keys.key(kid, ask=ask)
        except UnknownKey:
            raise BadToken(f"the token was not signed by {self.issuer}, which has no such key") from None
        try:
            told = jwt.decode(
                text,
                key,
                algorithms=["RS256"],
                options={
                    "verify_signature": True,
                    # what follows is checked below, by our clock and strictly
                    "verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False,
                    "verify_iss": False, "verify_sub": False, "verify_jti": False,
                },
            )  # fmt: skip
        except (PyJWTError, ValueError, RecursionError):
            raise BadToken(f"the token's signature is not that of {self.issuer}") from None
        return self._believed(told)

    def _believed(self, told: Mapping[str, object]) -> JobClaims:
        if not _same_address(told.get("iss"), self.issuer):
            raise BadToken(
                f"the token is not from {self.issuer}: ravebot's gitlab.url, or gitlab.ci.issuer, names another"
            )
        audience = told.get("aud")
        if isinstance(audience, list) and len(audience) == 1:
            audience = audience[0]
        if not _same_address(audience, self.audience):
            raise BadToken(f"the token is for another service, or for several. {_HOW % self.audience}")
        now = self.clock.now().timestamp()
        begins, made, ends = (_seconds(told.get(name)) for name in ("nbf", "iat", "exp"))
        if begins > now + LEEWAY_SECONDS or made > now + LEEWAY_SECONDS:
            raise BadToken("the token is not valid yet: the clocks of GitLab and of ravebot's host differ; set them")
        if ends < now - LEEWAY_SECONDS:
            raise BadToken("the token has expired: it is valid as long as its job may run. Run the job again")
        if ends - made > LONGEST_LIFE_SECONDS or ends < made:
            raise BadToken(
                "the token is valid for more than a day. Set the job's `timeout` in .gitlab-ci.yml, as to 1h"
            )
        is_sure = told.get("job_project_id") is not None
        name = "job_project_id" if is_sure else "project_id"
        path = told.get("job_project_path")
        return JobClaims(
            _number(told.get("job_id"), "job_id"),
            _number(told.get(name), name),
            is_sure,
            path if is_sure and isinstance(path, str) else "",
        )


def _key_name(text: str) -> str:
    """`kid` of a token's head, which must be GitLab's kind of one."""
    head = text.partition(".")[0]
    try:
        told = json.loads(urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or told.get("typ", "JWT") != "JWT" or "crit" in told or "b64" in told:
        raise BadToken("the token's head can't be read: it is no token of a job")
    if told.get("alg") != "RS256":
        raise BadToken("the token is not signed as GitLab signs (RS256)")
    kid = told.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= 200:
        raise BadToken("the token names no key")
    return kid


def _same_address(told: object, ours: str) -> bool:
    return isinstance(told, str) and told.rstrip("/") == ours.rstrip("/")


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e11:
        raise BadToken("the token does not say from when and until when it is valid")
    return float(value)


def _number(value: object, name: str) -> int:
    """GitLab writes ids as texts."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not _ID.fullmatch(text):
        raise BadToken(f"the token has no {name}: only tokens of jobs' `id_tokens` have one")
    return int(text)
