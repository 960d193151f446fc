from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.errors import Forbidden, NotFound, RavebotError, SlowDown, Unacceptable, Unavailable
from ravebot.matrix.answers import LoginLost, judge
from ravebot.matrix.sync import PAUSES, next_token


def raw(code: str, **more: Any) -> bytes:
    return json.dumps({"errcode": code, "error": "because"} | more).encode()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, raw("M_UNKNOWN_TOKEN", soft_logout=True), LoginLost),
        (401, raw("M_MISSING_TOKEN"), LoginLost),
        (403, raw("M_USER_DEACTIVATED"), LoginLost),
        (401, raw("M_USER_LOCKED"), LoginLost),
        (403, raw("M_FORBIDDEN"), Forbidden),
        (400, raw("M_BAD_JSON"), Unacceptable),
        (413, raw("M_TOO_LARGE"), Unacceptable),
        (404, raw("M_NOT_FOUND"), NotFound),
        (404, raw("M_UNRECOGNIZED"), NotFound),
        (429, raw("M_LIMIT_EXCEEDED"), SlowDown),
        (429, b"slow down", SlowDown),
        (500, raw("M_UNKNOWN"), Unavailable),
        (502, b"<html>Bad Gateway</html>", Unavailable),
        (404, b"<html>Not Found</html>", Unavailable),
        (401, b"", Unavailable),
        (200, b"<html>Welcome</html>", Unavailable),
        (200, b"[]", Unavailable),
        (200, b"", Unavailable),
        (302, b"", Unavailable),
        (200, b"[" * 100_000, Unavailable),
    ],
)
def test_every_answer_means_something(status: int, body: bytes, error: type[RavebotError]) -> None:
    with pytest.raises(error) as raised:
        judge(status, None, body)
    assert type(raised.value) is error
    assert len(str(raised.value)) < 600


def test_an_answer_is_its_json_object() -> None:
    assert judge(200, None, b'{"event_id": "$1"}') == {"event_id": "$1"}


@pytest.mark.parametrize(
    ("header", "in_body", "seconds"),
    [
        (None, 1500, 1.5),
        ("7", None, 7.0),
        ("7", 1500, 7.0),
        ("1", 9000, 9.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 2000, 2.0),
        ("-5", None, None),
        (None, -5, 0.0),
        (None, "soon", None),
        (None, True, None),
        (None, None, None),
        ("999999999", None, 3600.0),
        (None, 1e300, 3600.0),
    ],
)
def test_how_long_to_wait_is_taken_from_header_and_body(
    header: str | None, in_body: Any, seconds: float | None
) -> None:
    with pytest.raises(Unavailable) as raised:
        judge(429, header, raw("M_LIMIT_EXCEEDED", retry_after_ms=in_body))
    assert raised.value.retry_after_seconds == seconds


@given(st.integers(min_value=100, max_value=599), st.binary(max_size=200), st.none() | st.text(max_size=20))
def test_no_answer_raises_anything_but_our_errors(status: int, body: bytes, header: str | None) -> None:
    with contextlib.suppress(RavebotError):
        judge(status, header, body)


@given(st.integers(min_value=1, max_value=10_000), st.floats(min_value=0, max_value=1))
def test_the_pause_is_never_hot_and_never_longer_than_a_minute(failures: int, jitter: float) -> None:
    assert 0.25 <= PAUSES.after(failures, None, jitter) <= 60


def test_the_pause_is_at_least_what_the_server_asks_for() -> None:
    assert PAUSES.after(1, 120.0, 0.5) == 120.0


@pytest.mark.parametrize("answer", [{}, {"next_batch": None}, {"next_batch": ""}, {"next_batch": 5}])
def test_a_sync_without_a_token_is_no_progress(answer: dict[str, Any]) -> None:
    with pytest.raises(Unavailable, match="next_batch"):
        next_token(answer)
