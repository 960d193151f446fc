"""Authenticates webhooks, and gives each a key by which a repeated delivery is recognised. Pure.

https://docs.gitlab.com/user/project/integrations/webhooks/ ; signatures: https://www.standardwebhooks.com
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ravebot.errors import ConfigError, RavebotError
from ravebot.gitlab.events import CommentPosted, MergeRequestChanged
from ravebot.gitlab.kept import kept

MAX_SKEW = timedelta(minutes=5)
_MAX_HEADER = 1024
_SIGNATURES_READ = 8
_SIGNATURE = re.compile(r"v1,[A-Za-z0-9+/]{43}=")  # SHA-256 in Base64


class Forged(RavebotError):
    """The webhook does not carry our secret."""


@dataclass(frozen=True)
class WebhookSecrets:
    """What proves a webhook: the secret token, the key of its signatures, or both (while changing over).

    `previous` proves one as well, while it is replaced by these in GitLab.
    """

    secret_token: str | None = field(default=None, repr=False)
    signing_key: bytes | None = field(default=None, repr=False)
    previous: WebhookSecrets | None = field(default=None, repr=False)

    @property
    def each(self) -> tuple[WebhookSecrets, ...]:
        return (self, *(self.previous.each if self.previous else ()))


@dataclass(frozen=True)
class WebhookDelivery:
    """A webhook to store; deliveries with the same `key` are the same one, and order is kept within a `lane`."""

    key: str
    lane: str
    kind: str
    body: str  # the fields that are needed (`ravebot.gitlab.kept`)


def signing_key(text: str) -> bytes:
    """The key in GitLab's signing token `whsec_<base64>`. Raises ConfigError if it is malformed."""
    try:
        key = base64.b64decode(text.strip().removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("a signing token is whsec_ followed by Base64: copy it from GitLab again") from error
    if len(key) < 16:
        raise ConfigError("the signing token is too short: copy it from GitLab again")
    return key


def check_headers(headers: Mapping[str, str], secrets: WebhookSecrets, now: datetime) -> bool:
    """True: the token proves the sender. False: the body's signature has to.

    Raises Forged if the headers alone show that neither can: no secret configured, a wrong token, or neither a token
    nor a well-formed signature. A signature counts only if a signing key is configured.
    """
    found: list[bool] = []
    refused: list[Forged] = []
    for one in secrets.each:
        try:
            found.append(_headers_prove(headers, one, now))
        except Forged as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return any(found)


def _headers_prove(headers: Mapping[str, str], secrets: WebhookSecrets, now: datetime) -> bool:
    token, ours = headers.get("X-Gitlab-Token"), secrets.secret_token
    known = bool(ours and token is not None and hmac.compare_digest(_digest(token), _digest(ours)))
    if "webhook-signature" in headers and secrets.signing_key is not None:
        _check_form(headers, now)
        return known
    if known:
        return True
    if ours and token is not None:
        raise Forged("the webhook's secret token is wrong: set the same one in GitLab and in secret_token_file")
    raise Forged("the webhook carries no secret that ravebot knows: set its secret or signing token in GitLab")


def authenticate(headers: Mapping[str, str], body: bytes, secrets: WebhookSecrets, now: datetime) -> None:
    """Raise Forged unless the request carries our secret.

    Header names must be found in any case (as in aiohttp's). If a signing key is configured, a signature must be right,
    even with the right token; without a signature, the secret token counts. If no secret is configured, every request
    is forged.
    """
    refused: list[Forged] = []
    for one in secrets.each:
        try:
            _headers_prove(headers, one, now)
            if "webhook-signature" in headers and one.signing_key is not None:
                _check_signature(headers, body, one.signing_key)
        except Forged as error:
            refused.append(error)
        else:
            return
    raise refused[0]


def _digest(text: str) -> bytes:
    """Hashes have equal lengths, so that comparing them does not reveal the secret's length."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _check_form(headers: Mapping[str, str], now: datetime) -> None:
    """Raise Forged for a signature that can't be right, whatever the body."""
    identity, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise Forged("the webhook's timestamp is missing or not a number")
    if len(identity) > _MAX_HEADER or len(headers["webhook-signature"]) > _MAX_HEADER:
        raise Forged("the webhook's signature headers are too long")
    if not _signatures(headers):
        raise Forged(
            "the header webhook-signature holds no signature that ravebot knows ('v1,' and 44 characters of Base64):"
            " check that GitLab sends it"
        )
    if abs(now.timestamp() - int(timestamp)) > MAX_SKEW.total_seconds():
        raise Forged("the webhook's signature is more than five minutes off: check both machines' clocks")


def _signatures(headers: Mapping[str, str]) -> list[str]:
    """The signatures of a known kind; there are several while the key is changed."""
    parts = headers["webhook-signature"].split()[:_SIGNATURES_READ]
    return [part.removeprefix("v1,") for part in parts if _SIGNATURE.fullmatch(part)]


def _check_signature(headers: Mapping[str, str], body: bytes, key: bytes) -> None:
    signed = f"{headers.get('webhook-id', '')}.{headers.get('webhook-timestamp', '')}."
    digest = hmac.new(key, signed.encode("utf-8", "surrogateescape"), hashlib.sha256)
    digest.update(body)  # not concatenated, which would copy the body
    expected = base64.b64encode(digest.digest()).decode()
    matches = [hmac.compare_digest(given, expected) for given in _signatures(headers)]
    if not any(matches):
        raise Forged("the webhook's signature is wrong: set the same signing token in GitLab and in signing_token_file")


def delivery(headers: Mapping[str, str], body: bytes, event: MergeRequestChanged | CommentPosted) -> WebhookDelivery:
    """What to store of an authenticated webhook whose parsed body is `event`."""
    ref = event.mr.ref if isinstance(event, MergeRequestChanged) else event.ref
    return WebhookDelivery(_key(headers, body, event), f"{ref.project_id}!{ref.iid}", *kept(event))


def note_key(note_id: int) -> str:
    """The key of a comment, the same for webhooks and polling, so that a comment is acted on once."""
    return f"note:{note_id}"


def _key(headers: Mapping[str, str], body: bytes, event: MergeRequestChanged | CommentPosted) -> str:
    if isinstance(event, CommentPosted):
        return note_key(event.note_id)
    # GitLab 17.4 and newer send the same key with retries and "Resend request". X-Gitlab-Event-UUID is no key, because
    # recursive webhooks share it.
    key = headers.get("Idempotency-Key", "")
    if key and len(key) <= 200 and key.isascii() and key.isprintable():
        return f"delivery:{key}"
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
