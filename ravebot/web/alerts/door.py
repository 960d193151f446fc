"""`POST /webhooks/alertmanager`: takes alerts from Alertmanager, and answers once they are committed.

The bearer token is checked before the body is read. Alertmanager tries again after a 5xx, and not after a 4xx.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from aiohttp import web

from ravebot.errors import StoreError
from ravebot.store.alerts import Heard
from ravebot.web.alerts.reading import AlertDelivery, NotAlerts, read

PATH = "/webhooks/alertmanager"
MAX_BODY_BYTES = 4 * 1024**2
"""A hundred alerts take some 100 KiB."""
_BODY_SECONDS = 10.0
_RETRY = {"Retry-After": "10"}
_UNPROVEN = (
    "the request carries no bearer token: in Alertmanager's webhook_config, name a file with the token of"
    " monitoring.alertmanager_token_file as http_config.authorization.credentials_file\n"
)
_WRONG = (
    "the bearer token is wrong: Alertmanager's credentials_file and monitoring.alertmanager_token_file need the same"
    " one; restart ravebot after its file was changed\n"
)

log = structlog.get_logger()


class AlertRefusals(Protocol):
    """Remembers that Alertmanager is refused."""

    def refused(self, why: str) -> None: ...

    def accepted(self) -> None: ...


class AlertMetrics(Protocol):
    def alerts_answered(self, result: str) -> None: ...

    def alerts_received(self, result: str, count: int) -> None: ...


class AlertDoor:
    """The handler. `take` returns when the alerts are committed, with what they meant."""

    def __init__(
        self,
        token: str,
        take: Callable[[AlertDelivery], Awaitable[Counter[Heard]]],
        metrics: AlertMetrics,
        refusals: AlertRefusals,
    ) -> None:
        self._token = _digest(token)
        self._take = take
        self._metrics = metrics
        self._refusals = refusals

    def add_to(self, app: web.Application) -> None:
        app.router.add_post(PATH, self.handle)

    async def handle(self, request: web.Request) -> web.Response:
        result, response = await self._answer(request)
        self._metrics.alerts_answered(result)
        if response.status >= 400:
            log.warning("alerts refused", result=result, why=(response.text or "").strip(), sender=request.remote)
        return response

    async def _answer(self, request: web.Request) -> tuple[str, web.Response]:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return "forged", web.Response(status=401, text=_UNPROVEN, headers={"WWW-Authenticate": "Bearer"})
        if not hmac.compare_digest(_digest(token.strip()), self._token):
            self._refusals.refused(_WRONG.strip())
            return "forged", web.Response(status=401, text=_WRONG, headers={"WWW-Authenticate": "Bearer"})
        self._refusals.accepted()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await _body(request)
            if body is None:
                return "too_large", web.Response(status=413, text=f"at most {MAX_BODY_BYTES} bytes\n")
            delivery = read(body)
        except NotAlerts as error:
            return "malformed", web.Response(status=400, text=f"{error}\n")
        except (web.RequestPayloadError, ConnectionError) as error:
            return "malformed", web.Response(status=400, text=f"the body can't be read: {type(error).__name__}\n")
        except TimeoutError:
            return "unavailable", web.Response(status=503, text=f"the body took more than {_BODY_SECONDS:g} s\n")
        try:
            heard = await self._take(delivery)
        except StoreError:
            return "unavailable", web.Response(status=503, text="try again later\n", headers=_RETRY)
        for what, count in heard.items():
            self._metrics.alerts_received(what, count)
        if delivery.unread:
            log.warning("alerts were not understood", count=delivery.unread, sender=request.remote)
            self._metrics.alerts_received("malformed", delivery.unread)
        return "accepted", web.Response(status=200)


async def _body(request: web.Request) -> bytes | None:
    """The body, or None if it is too large; a larger one is never held in memory."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _digest(text: str) -> bytes:
    """Hashes have equal lengths, so that comparing them does not reveal the token's length."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
