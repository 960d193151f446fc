"""What follows from a webhook's answer, and how webhooks are signed, as their specification's library sees it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from ravebot.agents.transports.webhook import signing
from ravebot.agents.transports.webhook.outcomes import (
    LONGEST_PAUSE,
    MOST_TRIES,
    PAUSES,
    Posted,
    PostEnd,
    PostVerdict,
    judge,
)
from ravebot.config.secrets import signing_key
from tests.support.receivers import SIGNING_KEY

ANSWERED, UNREACHED, SILENT = PostEnd

TABLE = [
    # what came, at which try → what follows, whether the agent may have it, words of the reason
    (Posted(ANSWERED, 200), 1, PostVerdict.DONE, False, ""),
    (Posted(ANSWERED, 202), MOST_TRIES, PostVerdict.DONE, False, ""),
    (Posted(ANSWERED, 204), 1, PostVerdict.DONE, False, ""),
    (Posted(ANSWERED, 301), 1, PostVerdict.AGAIN, False, "redirect (301), which is not followed"),
    (Posted(ANSWERED, 307), 1, PostVerdict.AGAIN, False, "redirect (307)"),
    (Posted(ANSWERED, 400), 1, PostVerdict.GIVE_UP, False, "does not understand what ravebot sends (400)"),
    (Posted(ANSWERED, 401), 1, PostVerdict.GIVE_UP, False, "compare the signing key"),
    (Posted(ANSWERED, 403), 1, PostVerdict.GIVE_UP, False, "compare the signing key"),
    (Posted(ANSWERED, 404), 1, PostVerdict.AGAIN, False, "does not take it now (404)"),
    (Posted(ANSWERED, 405), 1, PostVerdict.GIVE_UP, False, "takes no POST"),
    (Posted(ANSWERED, 410), 1, PostVerdict.GIVE_UP, False, "gone for good (410)"),
    (Posted(ANSWERED, 413), 1, PostVerdict.GIVE_UP, False, "no message of that size"),
    (Posted(ANSWERED, 415), 1, PostVerdict.GIVE_UP, False, "takes no JSON"),
    (Posted(ANSWERED, 422), 1, PostVerdict.GIVE_UP, False, "does not understand"),
    (Posted(ANSWERED, 429), 1, PostVerdict.AGAIN, False, "does not take it now (429)"),
    (Posted(ANSWERED, 500), 1, PostVerdict.AGAIN, True, "does not take it now (500)"),
    (Posted(ANSWERED, 502), MOST_TRIES, PostVerdict.GIVE_UP, True, f"(502), at the last of {MOST_TRIES} tries"),
    (Posted(ANSWERED, 404), MOST_TRIES, PostVerdict.GIVE_UP, False, "at the last of"),
    (Posted(UNREACHED, why="can't be reached: x"), 1, PostVerdict.AGAIN, False, "can't be reached: x"),
    (
        Posted(UNREACHED, why="can't be reached: x"),
        MOST_TRIES,
        PostVerdict.GIVE_UP,
        False,
        "can't be reached: x, at the last",
    ),
    (Posted(SILENT, why="closed the connection"), 1, PostVerdict.AGAIN, True, "closed the connection"),
    (
        Posted(SILENT, why="closed the connection"),
        MOST_TRIES,
        PostVerdict.GIVE_UP,
        True,
        "closed the connection, at the last",
    ),
]


@pytest.mark.parametrize(("posted", "tries", "then", "doubtful", "words"), TABLE)
def test_what_follows_from_an_answer(posted: Posted, tries: int, then: PostVerdict, doubtful: bool, words: str) -> None:
    sequel = judge(posted, tries)
    assert (sequel.then, sequel.doubtful) == (then, doubtful)
    assert words in sequel.why
    assert bool(sequel.why) == (then is not PostVerdict.DONE)


def test_all_tries_take_about_an_hour() -> None:
    pauses = [judge(Posted(ANSWERED, 503), tries).pause_seconds for tries in range(1, MOST_TRIES)]
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert 45 * 60 < sum(pauses) < 75 * 60


def test_a_receiver_can_ask_for_a_longer_pause_up_to_a_limit() -> None:
    assert judge(Posted(ANSWERED, 429, asked_seconds=120.0), 1).pause_seconds == 120.0
    assert judge(Posted(ANSWERED, 429, asked_seconds=1e9), 1).pause_seconds == LONGEST_PAUSE
    assert judge(Posted(ANSWERED, 429, asked_seconds=0.1), 1).pause_seconds == PAUSES.steps[0]


@given(st.text(max_size=200))
def test_the_librarys_signature_is_ours(text: str) -> None:
    now, body = datetime.now(UTC), text.encode("utf-8", "replace")
    headers = signing.headers(signing_key(SIGNING_KEY), "msg_1", now, body)
    assert headers["webhook-signature"] == Webhook(SIGNING_KEY).sign("msg_1", now, body.decode())
    Webhook(SIGNING_KEY).verify(body, headers, json_parse=False)


@pytest.mark.parametrize("what", ["webhook-id", "webhook-timestamp", "body", "key"])
def test_whatever_is_changed_the_library_finds_it(what: str) -> None:
    headers = signing.headers(signing_key(SIGNING_KEY), "msg_1", datetime.now(UTC), b"{}")
    body = "{}"
    key = SIGNING_KEY
    match what:
        case "body":
            body = "{ }"
        case "key":
            key = "whsec_" + "B" * 44
        case "webhook-id":
            headers[what] = "msg_2"
        case _:
            headers[what] = str(int(headers[what]) + 1)
    with pytest.raises(WebhookVerificationError):
        Webhook(key).verify(body, headers)


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_!", "whsec_c2hvcnQ=", SIGNING_KEY.removeprefix("whsec_"), f"whsec_{'A' * 400}"]
)
def test_what_is_no_signing_key_is_refused_with_how_to_make_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"docs/agents\.md makes one"):
        signing_key(text)
