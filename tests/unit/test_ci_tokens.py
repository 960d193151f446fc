"""Which tokens a job may show, and when GitLab is asked for its keys."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ravebot.errors import Unavailable
from ravebot.gitlab.ci.keys import ASK_EVERY_SECONDS, KEEP_SECONDS, JobKeys, UnknownKey, read_keys
from ravebot.gitlab.ci.tokens import LONGEST_TOKEN, BadToken, JobClaims, JobTokens
from ravebot.gitlab.fields import Malformed
from tests.support.clock import ManualClock
from tests.support.gitlab import DEVELOPER, Job
from tests.support.gitlab.actions import Actions

URL, AUDIENCE = "https://gitlab.example.org", "https://rave.example.org"


@dataclass
class Issuer:
    """A GitLab that signs, and gives its keys out while it is not `away`."""

    gitlab: Actions
    job: Job
    clock: ManualClock
    asked: int = 0
    away: bool = False
    seconds: float = 100.0
    gate: asyncio.Event | None = None
    keys: JobKeys = field(init=False)

    def __post_init__(self) -> None:
        self.keys = JobKeys(self.fetch, lambda: self.seconds)

    async def fetch(self) -> bytes:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise Unavailable("GitLab does not answer")
        return json.dumps(self.gitlab.keys()).encode()

    def token(self, **claims: Any) -> str:
        return self.gitlab.id_token(self.job, claims.pop("aud", AUDIENCE), **claims)

    async def claims(self, text: str) -> JobClaims:
        return await JobTokens(self.keys, URL, AUDIENCE, self.clock).claims(text)

    async def refusal(self, text: str) -> str:
        with pytest.raises(BadToken) as caught:
            await self.claims(text)
        return str(caught.value)


@pytest.fixture
def issuer() -> Issuer:
    gitlab = Actions()
    gitlab.url = URL
    alice, app = gitlab.add_user("alice"), gitlab.add_project("group/app")
    gitlab.set_role(app, alice, DEVELOPER)
    job = gitlab.start_job(gitlab.run_pipeline(gitlab.open_merge_request(app, alice)).job("review"))
    return Issuer(gitlab, job, ManualClock(datetime.now(UTC)))


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).decode().rstrip("=")


def head_of(token: str) -> dict[str, Any]:
    head = token.partition(".")[0]
    found: dict[str, Any] = json.loads(urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    return found


async def test_a_jobs_token_says_which_job_shows_it_and_which_project_runs_it(issuer: Issuer) -> None:
    told = await issuer.claims(issuer.token())
    project = issuer.job.project
    assert told == JobClaims(issuer.job.id, project.id, is_sure=True, project_path="group/app")
    older = issuer.token(job_project_id=None, job_project_path=None)
    assert await issuer.claims(older) == JobClaims(issuer.job.id, project.id, is_sure=False)
    assert await issuer.claims(issuer.token(aud=[AUDIENCE + "/"])) == told, "a slash at the end makes no other address"


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"aud": "https://vault.example.org"}, "another service"),
        ({"aud": [AUDIENCE, "https://vault.example.org"]}, "several"),
        ({"aud": None}, "another service"),
        ({"aud": []}, "another service"),
        ({"iss": "https://gitlab.com"}, "not from https://gitlab.example.org"),
        ({"iss": None}, "not from"),
        ({"exp": 1_000_000}, "expired"),
        ({"exp": None}, "until when"),
        ({"exp": True}, "until when"),
        ({"exp": "9999999999"}, "until when"),
        ({"exp": 1e300}, "until when"),
        ({"exp": 9_999_999_999}, "more than a day"),
        ({"iat": None}, "until when"),
        ({"iat": 9_999_999_999}, "not valid yet"),
        ({"nbf": 9_999_999_999}, "not valid yet"),
        ({"nbf": None}, "until when"),
        ({"job_id": None}, "no job_id"),
        ({"job_id": "0"}, "no job_id"),
        ({"job_id": True}, "no job_id"),
        ({"job_id": "12; DROP"}, "no job_id"),
        ({"job_id": "9" * 40}, "no job_id"),
        ({"job_id": "１２"}, "no job_id"),
        ({"job_project_id": "../7"}, "no job_project_id"),
        ({"job_project_id": None, "project_id": None}, "no project_id"),
    ],
)
async def test_a_token_that_says_something_wrong_is_refused(issuer: Issuer, claims: dict[str, Any], words: str) -> None:
    aud = {"aud": claims["aud"]} if "aud" in claims else {}
    others = {name: value for name, value in claims.items() if name != "aud"}
    told = {**issuer.gitlab.claims(issuer.job, AUDIENCE), **others, **aud}
    assert words in await issuer.refusal(issuer.gitlab.sign(told))


async def test_clocks_may_differ_by_half_a_minute(issuer: Issuer) -> None:
    token = issuer.token()
    issuer.clock.advance(timedelta(hours=1, seconds=25))
    assert await issuer.claims(token)
    issuer.clock.advance(timedelta(seconds=10))
    assert "expired" in await issuer.refusal(token)
    issuer.clock.advance(-timedelta(hours=1, seconds=55))
    assert await issuer.claims(token)
    issuer.clock.advance(-timedelta(seconds=30))
    assert "not valid yet" in await issuer.refusal(token)


def unsigned(issuer: Issuer) -> str:
    head, body, _ = issuer.token().split(".")
    return f"{part({'alg': 'none', 'typ': 'JWT', 'kid': head_of(head)['kid']})}.{body}."


def nearly_unsigned(issuer: Issuer) -> str:
    return unsigned(issuer) + "AA"


def confused(issuer: Issuer) -> str:
    """HS256, with the public key as the secret."""
    _, body, _ = issuer.token().split(".")
    said = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': issuer.gitlab.kid()})}.{body}"
    return f"{said}.{part(hmac.new(issuer.gitlab.public_key(), said.encode(), hashlib.sha256).digest())}"


def confused_in_secret(issuer: Issuer) -> str:
    """The same, but the head says RS256."""
    _, body, _ = issuer.token().split(".")
    said = f"{part({'alg': 'RS256', 'typ': 'JWT', 'kid': issuer.gitlab.kid()})}.{body}"
    return f"{said}.{part(hmac.new(issuer.gitlab.public_key(), said.encode(), hashlib.sha256).digest())}"


def with_other_claims(issuer: Issuer) -> str:
    head, _, signature = issuer.token().split(".")
    return f"{head}.{part(issuer.gitlab.claims(issuer.job, AUDIENCE) | {'job_id': '1'})}.{signature}"


def with_its_own_key(issuer: Issuer) -> str:
    """The head brings a key and an address for more of them, which count for nothing."""
    other = Actions()
    other.url = URL
    other.rotate_keys(keep=False)
    jwk = other.keys()["keys"][0]
    return other.sign(
        issuer.gitlab.claims(issuer.job, AUDIENCE), kid=issuer.gitlab.kid(), jwk=jwk, jku="https://evil.example/keys"
    )


def with_critical_header(issuer: Issuer) -> str:
    return issuer.gitlab.sign(issuer.gitlab.claims(issuer.job, AUDIENCE), crit=["b64"], b64=False)


FORGERIES = (
    unsigned, nearly_unsigned, confused, confused_in_secret, with_other_claims, with_its_own_key, with_critical_header,
)  # fmt: skip


@pytest.mark.parametrize("make", FORGERIES)
async def test_a_token_that_gitlab_did_not_sign_is_refused(issuer: Issuer, make: Callable[[Issuer], str]) -> None:
    assert await issuer.refusal(make(issuer))
    assert issuer.asked <= 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "glpat-0123456789abcdefghij",
        "a.b",
        "a.b.c.d",
        "é.b.c",
        "a" * (LONGEST_TOKEN + 1),
        f"{'a' * 1000}.{'b' * 10_000_000}.c",
        f"{part(b'[' * 1000)}.b.c",
        f"{part(b'no JSON')}.b.c",
        f"{part(['RS256'])}.b.c",
        f"{part({'alg': 'RS256'})}.b.c",
        f"{part({'alg': 'RS256', 'kid': 7})}.b.c",
        f"{part({'alg': 'RS256', 'kid': 'k' * 300})}.b.c",
        f"{part({'alg': ['RS256'], 'kid': 'k'})}.b.c",
        f"{part({'alg': 'rs256', 'kid': 'k'})}.b.c",
        f"{part({'alg': 'PS256', 'kid': 'k'})}.b.c",
        "a.b.c\n",
    ],
)
async def test_what_is_no_such_token_costs_no_question_to_gitlab(issuer: Issuer, text: str) -> None:
    assert await issuer.refusal(text)
    assert issuer.asked == 0


async def test_a_signed_text_that_is_no_object_is_refused(issuer: Issuer) -> None:
    for payload in (b"no JSON", b"[]", b'"text"', b"7", b"[" * 3000):
        assert await issuer.refusal(issuer.gitlab.sign_bytes(payload))


async def test_keys_are_asked_for_once_an_hour(issuer: Issuer) -> None:
    for _ in range(5):
        await issuer.claims(issuer.token())
    assert issuer.asked == 1
    issuer.seconds += KEEP_SECONDS
    await issuer.claims(issuer.token())
    assert issuer.asked == 2


async def test_a_storm_of_unknown_keys_asks_gitlab_once_a_minute(issuer: Issuer) -> None:
    async def storm() -> list[BaseException | JobClaims]:
        made = [issuer.gitlab.sign(issuer.gitlab.claims(issuer.job, AUDIENCE), kid=f"key-{n}") for n in range(50)]
        return await asyncio.gather(*map(issuer.claims, made), return_exceptions=True)

    said = await storm()
    assert issuer.asked == 1
    assert sum(isinstance(one, BadToken) for one in said) == 1, "whoever asked knows"
    waits = [one.retry_after_seconds for one in said if isinstance(one, Unavailable)]
    assert len(waits) == 49
    assert all(wait and wait <= ASK_EVERY_SECONDS for wait in waits)
    await storm()
    assert issuer.asked == 1
    assert await issuer.claims(issuer.token()), "right ones go on meanwhile"
    issuer.seconds += ASK_EVERY_SECONDS
    await storm()
    assert issuer.asked == 2


async def test_who_comes_while_the_keys_are_read_shares_the_answer(issuer: Issuer) -> None:
    issuer.gate = asyncio.Event()
    waiting = [asyncio.create_task(issuer.claims(issuer.token())) for _ in range(20)]
    await asyncio.sleep(0)
    issuer.gate.set()
    assert len({(await one).job_id for one in waiting}) == 1
    assert issuer.asked == 1


async def test_a_new_key_counts_within_a_minute_and_one_that_gitlab_took_back_within_an_hour(issuer: Issuer) -> None:
    old = issuer.token()
    await issuer.claims(old)
    issuer.gitlab.rotate_keys(keep=False)
    new = issuer.token()
    with pytest.raises(Unavailable):
        await issuer.claims(new)
    issuer.seconds += ASK_EVERY_SECONDS
    assert await issuer.claims(new)
    with pytest.raises(Unavailable):
        await issuer.claims(old)
    issuer.seconds += ASK_EVERY_SECONDS
    assert "no such key" in await issuer.refusal(old)


async def test_while_gitlab_gives_no_keys_known_ones_work_and_others_wait(issuer: Issuer) -> None:
    issuer.away = True
    with pytest.raises(Unavailable) as caught:
        await issuer.claims(issuer.token())
    assert caught.value.retry_after_seconds
    with pytest.raises(Unavailable):
        await issuer.claims(issuer.token())
    assert issuer.asked == 1
    issuer.seconds += ASK_EVERY_SECONDS
    issuer.away = False
    assert await issuer.claims(issuer.token())
    issuer.away = True
    issuer.seconds += KEEP_SECONDS
    for _ in range(3):
        assert await issuer.claims(issuer.token())
    assert issuer.asked == 3, "asked once more in that minute"


async def test_an_unknown_key_is_told_by_its_name(issuer: Issuer) -> None:
    with pytest.raises(UnknownKey):
        await issuer.keys.key("nobody's")


def test_only_large_rsa_keys_for_signatures_are_taken_from_a_key_set(issuer: Issuer) -> None:
    (good,) = issuer.gitlab.keys()["keys"]
    others = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct"},
        {**good, "kid": "for-encryption", "use": "enc"},
        {**good, "kid": "other", "alg": "HS256"},
        {**good, "kid": "small", "n": part(b"\xff" * 64)},
        {**good, "kid": "", "n": "!"},
        {**good, "kid": "broken", "n": "!"},
        {**good, "kid": 7},
        "text",
    ]
    assert list(read_keys(json.dumps({"keys": [*others, good]}).encode())) == [good["kid"]]
    for nothing in (b"", b"{}", b"[]", b'{"keys": {}}', b"[" * 5000, json.dumps({"keys": others}).encode()):
        with pytest.raises(Malformed):
            read_keys(nothing)
