"""Which webhooks are GitLab's, and which of them are the same."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
from multidict import CIMultiDict

from ravebot.errors import ConfigError
from ravebot.gitlab.events import CommentPosted, MergeRequestChanged
from ravebot.gitlab.webhook import Forged, WebhookSecrets, authenticate, check_headers, delivery, signing_key
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Person

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = b"0123456789abcdef0123456789abcdef"
BODY = b'{"object_kind": "merge_request"}'
TOKEN = WebhookSecrets(secret_token="s3cret")
SIGNED = WebhookSecrets(signing_key=KEY)
BOTH = WebhookSecrets("s3cret", KEY)


def signed(at: datetime = NOW, key: bytes = KEY, body: bytes = BODY, identity: str = "msg_1") -> dict[str, str]:
    timestamp = str(int(at.timestamp()))
    digest = hmac.new(key, f"{identity}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": identity, "webhook-timestamp": timestamp, "webhook-signature": signature}


def test_the_published_example_of_standard_webhooks_verifies() -> None:
    # https://github.com/standard-webhooks/standard-webhooks, spec: its own example of secret, headers and body
    secret = WebhookSecrets(signing_key=signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    headers = CIMultiDict(
        {
            "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "Webhook-Timestamp": "1614265330",
            "Webhook-Signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        }
    )
    authenticate(headers, b'{"test": 2432232314}', secret, datetime.fromtimestamp(1614265330, UTC))


@pytest.mark.parametrize("secrets", [TOKEN, BOTH])
def test_the_right_token_passes(secrets: WebhookSecrets) -> None:
    authenticate(CIMultiDict({"x-gitlab-token": "s3cret"}), BODY, secrets, NOW)


@pytest.mark.parametrize("secrets", [SIGNED, BOTH])
@pytest.mark.parametrize("skew", [timedelta(), timedelta(minutes=4, seconds=59), -timedelta(minutes=4, seconds=59)])
def test_the_right_signature_passes_within_five_minutes(secrets: WebhookSecrets, skew: timedelta) -> None:
    authenticate(CIMultiDict(signed(NOW + skew)), BODY, secrets, NOW)


@pytest.mark.parametrize("token", ["", "S3cret", "s3cret ", "s3cre", "s3crett", "é", "\udcff"])
@pytest.mark.parametrize("secrets", [TOKEN, SIGNED, BOTH, WebhookSecrets(), WebhookSecrets("")])
def test_another_token_is_forged(secrets: WebhookSecrets, token: str) -> None:
    with pytest.raises(Forged):
        authenticate(CIMultiDict({"X-Gitlab-Token": token}), BODY, secrets, NOW)


def test_nothing_at_all_is_forged() -> None:
    for secrets in (TOKEN, SIGNED, BOTH, WebhookSecrets()):
        with pytest.raises(Forged):
            authenticate(CIMultiDict[str](), BODY, secrets, NOW)


@pytest.mark.parametrize(
    "headers",
    [
        signed(NOW - timedelta(minutes=5, seconds=1)),
        signed(NOW + timedelta(minutes=5, seconds=1)),
        signed(key=b"another key that is long enough."),
        signed(body=BODY + b" "),
        signed() | {"webhook-id": "msg_2"},
        signed() | {"webhook-timestamp": str(int(NOW.timestamp()) + 1)},
        signed() | {"webhook-timestamp": ""},
        signed() | {"webhook-timestamp": "9" * 400},
        signed() | {"webhook-timestamp": "999999999999"},
        signed() | {"webhook-timestamp": "²"},
        signed() | {"webhook-signature": ""},
        signed() | {"webhook-signature": "v1,"},
        signed() | {"webhook-signature": "v2," + signed()["webhook-signature"][3:]},
        signed() | {"webhook-signature": "v1,é"},
        signed() | {"webhook-signature": "v1,AAAA " * 500},
    ],
)
def test_another_signature_is_forged_even_beside_the_right_token(headers: dict[str, str]) -> None:
    with pytest.raises(Forged):
        authenticate(CIMultiDict(headers | {"X-Gitlab-Token": "s3cret"}), BODY, BOTH, NOW)


@pytest.mark.parametrize(
    ("secrets", "headers", "proven"),
    [
        (TOKEN, {"X-Gitlab-Token": "s3cret"}, True),
        (TOKEN, {"X-Gitlab-Token": "s3cret", "webhook-signature": "anything"}, True),
        (BOTH, {"X-Gitlab-Token": "s3cret"}, True),
        (BOTH, signed() | {"X-Gitlab-Token": "s3cret"}, True),
        (BOTH, signed() | {"X-Gitlab-Token": "another"}, False),
        (SIGNED, signed(key=b"another key that is long enough."), False),
    ],
)
def test_the_token_proves_a_sender_before_the_body_is_read_and_a_signature_does_not(
    secrets: WebhookSecrets, headers: dict[str, str], proven: bool
) -> None:
    assert check_headers(CIMultiDict(headers), secrets, NOW) is proven


def test_one_good_signature_among_several_is_enough() -> None:
    headers = signed()
    headers["webhook-signature"] = "v1,AAAA v1a,BBBB " + headers["webhook-signature"]
    authenticate(CIMultiDict(headers), BODY, SIGNED, NOW)


OLD = WebhookSecrets("the old one", b"the old key, long enough")
BOTH_VALID = [
    (WebhookSecrets("s3cret", KEY, OLD), {"X-Gitlab-Token": "s3cret"}),
    (WebhookSecrets("s3cret", KEY, OLD), {"X-Gitlab-Token": "the old one"}),
    (WebhookSecrets("s3cret", KEY, OLD), signed()),
    (WebhookSecrets("s3cret", KEY, OLD), signed(key=b"the old key, long enough")),
    (WebhookSecrets(None, KEY, WebhookSecrets("the old one")), {"X-Gitlab-Token": "the old one"}),
    (WebhookSecrets("s3cret", None, WebhookSecrets(None, KEY)), signed()),
]


@pytest.mark.parametrize(("secrets", "headers"), BOTH_VALID)
def test_while_secrets_are_replaced_both_prove_a_sender(secrets: WebhookSecrets, headers: dict[str, str]) -> None:
    check_headers(CIMultiDict(headers), secrets, NOW)
    authenticate(CIMultiDict(headers), BODY, secrets, NOW)


@pytest.mark.parametrize(
    "headers", [{"X-Gitlab-Token": "another"}, signed(key=b"another key that is long enough."), {}]
)
def test_while_secrets_are_replaced_no_third_one_counts(headers: dict[str, str]) -> None:
    with pytest.raises(Forged):
        authenticate(CIMultiDict(headers), BODY, WebhookSecrets("s3cret", KEY, OLD), NOW)


def test_secrets_are_not_shown() -> None:
    assert repr(BOTH) == "WebhookSecrets()"


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_not base64!", "whsec_QUJD"])
def test_a_signing_token_that_is_none_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigError, match="copy it from GitLab again"):
        signing_key(text)


def _changed() -> MergeRequestChanged:
    mr = MergeRequest(
        MergeRequestRef(7, 42), "g/a", "t", "http://h/g/a/-/merge_requests/42", "b", 7, "a" * 40, Person(1, "alice")
    )
    return MergeRequestChanged(mr, Person(1, "alice"))


def test_a_delivery_is_known_by_its_idempotency_key_else_by_its_body() -> None:
    keyed = CIMultiDict({"idempotency-key": "0c98-77"})
    first, other = (delivery(keyed, body, _changed()) for body in (b"{}", b"[]"))
    assert first.key == other.key == "delivery:0c98-77"
    assert (first.lane, first.kind) == ("7!42", "merge_request")
    bare = CIMultiDict({"X-Gitlab-Event-UUID": "shared"})
    assert delivery(bare, b"{}", _changed()).key == f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
    assert delivery(CIMultiDict({"Idempotency-Key": "x" * 201}), b"{}", _changed()).key.startswith("sha256:")


def test_a_comment_is_known_by_its_number_whoever_brings_it() -> None:
    comment = CommentPosted(MergeRequestRef(7, 42), "g/a", 99, Person(1, "alice"), "/sandbox stop", None)
    found = delivery(CIMultiDict({"Idempotency-Key": "k"}), b"{}", comment)
    assert (found.key, found.lane, found.kind) == ("note:99", "7!42", "note")
