"""Is this webhook GitLab's, and have we had it already: the pure half of the receiver.

https://docs.gitlab.com/user/project/integrations/webhooks/ ; signatures: https://www.standardwebhooks.com
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ravebot.errors import ConfigError, RavebotError
from ravebot.gitlab.events import CommentPosted, MergeRequestChanged
from ravebot.gitlab.kept import kept

MAX_SKEW = timedelta(minutes=5)
_MAX_HEADER = 1024
_SIGNATURES_READ = 8


class Forged(RavebotError):
    """The webhook does not carry our secret."""


@dataclass(frozen=True)
class WebhookSecrets:
    """What proves a webhook: the plain secret token, the key of its signatures, or both (while moving over)."""

    secret_token: str | None = field(default=None, repr=False)
    signing_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Delivery:
    """One webhook to be stored: deliveries with one `key` are one; order is kept within a `lane`."""

    key: str
    lane: str
    kind: str
    body: str  # what counts of it (`ravebot.gitlab.kept`)


def signing_key(text: str) -> bytes:
    """The key in GitLab's signing token `whsec_<base64>`; ConfigError when it is none."""
    try:
        key = base64.b64decode(text.strip().removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("a signing token looks like whsec_ and Base64: copy it from GitLab again") from error
    if len(key) < 16:
        raise ConfigError("the signing token is too short to be one: copy it from GitLab again")
    return key


def authenticate(headers: Mapping[str, str], body: bytes, secrets: WebhookSecrets, now: datetime) -> None:
    """Raise Forged unless the request carries our secret.

    Header names must be found whatever their case (as in aiohttp's). A signature that is there must be right; without
    one the secret token counts, if there is one. No secret configured: everything is forged.
    """
    signature = headers.get("webhook-signature")
    if signature is not None and secrets.signing_key is not None:
        _check_signature(headers, signature, body, secrets.signing_key, now)
        return
    token = headers.get("X-Gitlab-Token")
    if secrets.secret_token and token is not None:
        if hmac.compare_digest(_digest(token), _digest(secrets.secret_token)):
            return
        raise Forged("the webhook's secret token is not ours: set the same one in GitLab and in secret_token_file")
    raise Forged("the webhook carries no secret that we know: set its secret or signing token in GitLab")


def _digest(text: str) -> bytes:
    """Equal lengths, so that a comparison does not tell ours."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _check_signature(headers: Mapping[str, str], signatures: str, body: bytes, key: bytes, now: datetime) -> None:
    identity, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise Forged("the webhook's timestamp is missing or no number")
    if len(identity) > _MAX_HEADER or len(signatures) > _MAX_HEADER:
        raise Forged("the webhook's signature headers are too long")
    signed = f"{identity}.{timestamp}.".encode("utf-8", "surrogateescape") + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    given = [part.removeprefix("v1,") for part in signatures.split()[:_SIGNATURES_READ] if part.startswith("v1,")]
    matches = [hmac.compare_digest(one.encode("utf-8", "surrogateescape"), expected) for one in given]
    if not any(matches):
        raise Forged("the webhook's signature is wrong: set the same signing token in GitLab and in signing_token_file")
    if abs(now - datetime.fromtimestamp(int(timestamp), UTC)) > MAX_SKEW:
        raise Forged("the webhook's signature is more than five minutes off: check both machines' clocks")


def delivery(headers: Mapping[str, str], body: bytes, event: MergeRequestChanged | CommentPosted) -> Delivery:
    """What to store of an authenticated webhook whose parsed body is `event`."""
    ref = event.mr.ref if isinstance(event, MergeRequestChanged) else event.ref
    return Delivery(_key(headers, body, event), f"{ref.project_id}!{ref.iid}", *kept(event))


def note_key(note_id: int) -> str:
    """The key of a comment, shared by webhooks and polling, so that it is acted on once whoever brings it."""
    return f"note:{note_id}"


def _key(headers: Mapping[str, str], body: bytes, event: MergeRequestChanged | CommentPosted) -> str:
    if isinstance(event, CommentPosted):
        return note_key(event.note_id)
    # The same over retries and "Resend request", GitLab 17.4 and newer; X-Gitlab-Event-UUID is shared by
    # recursive webhooks and so is no key.
    key = headers.get("Idempotency-Key", "")
    if key and len(key) <= 200 and key.isascii() and key.isprintable():
        return f"delivery:{key}"
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
