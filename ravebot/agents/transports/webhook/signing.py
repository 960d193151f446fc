"""Signs webhooks as Standard Webhooks says, so that who gets one can tell that it is ravebot's. Pure.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime


def headers(key: bytes, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """What a webhook carries; `at`: when it is sent, which is part of what is signed."""
    timestamp = str(int(at.timestamp()))
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    signature = base64.b64encode(digest).decode()
    return {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{signature}"}
