"""`POST /webhooks/gitlab`: prove, read, store, answer; what the event means is somebody else's work.

GitLab wants a 2xx with an empty body within ten seconds, for events we ignore too, or it disables the hook.
https://docs.gitlab.com/user/project/integrations/webhooks/
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog
from aiohttp import web

from ravebot.clock import Clock
from ravebot.errors import StoreError
from ravebot.gitlab.commands import parse_comment
from ravebot.gitlab.events import CommentPosted, Ignored, Malformed, MergeRequestChanged, parse
from ravebot.gitlab.webhook import Delivery, Forged, WebhookSecrets, authenticate, delivery

log = structlog.get_logger()

MAX_BODY_BYTES = 25 * 1024**2
"""GitLab sends no larger ones: a body has the whole description, and each 4xx brings the hook nearer to its end.
https://docs.gitlab.com/user/gitlab_com/#webhooks"""
MAX_UNPROVEN_BYTES = 5 * 1024**2
"""Of a body that is read before its signature can be checked."""
BODY_SECONDS = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def webhook_handler(
    secrets: WebhookSecrets,
    clock: Clock,
    accept: Callable[[Delivery], Awaitable[bool]],
    on_result: Callable[[str, float], None],
    max_body_bytes: int = MAX_BODY_BYTES,
    body_seconds: float = BODY_SECONDS,
) -> Handler:
    """The handler. `accept` returns once the delivery is committed: true when new, false when we had it already.

    `on_result` is told accepted, duplicate, ignored, forged, malformed, too_large or unavailable, and how long it
    took in seconds.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        began = time.perf_counter()
        result, response = await _answer(request)
        on_result(result, time.perf_counter() - began)
        if response.status >= 400:
            log.warning("webhook refused", result=result, why=response.text, sender=request.remote)
        return response

    async def _answer(request: web.Request) -> tuple[str, web.Response]:
        try:
            limit = min(max_body_bytes, MAX_UNPROVEN_BYTES)
            if "webhook-signature" not in request.headers:
                # The token needs no body: whoever has none of our secrets makes us read nothing.
                authenticate(request.headers, b"", secrets, clock.now())
                limit = max_body_bytes
            body = await _body(request, limit, body_seconds)
            if body is None:
                return "too_large", web.Response(status=413, text=f"at most {limit} bytes\n")
            authenticate(request.headers, body, secrets, clock.now())
            event = _relevant(body)
        except Forged as error:
            return "forged", web.Response(status=401, text=f"{error}\n")
        except Malformed as error:
            return "malformed", web.Response(status=400, text=f"{error}\n")
        except (web.RequestPayloadError, ConnectionError) as error:
            return "malformed", web.Response(status=400, text=f"the body can't be read: {type(error).__name__}\n")
        except TimeoutError:
            return "malformed", web.Response(status=408, text=f"the body took more than {body_seconds:g} s\n")
        if isinstance(event, Ignored):
            return "ignored", web.Response(status=200)
        try:
            new = await accept(delivery(request.headers, body, event))
        except StoreError:
            return "unavailable", web.Response(status=503, text="try again later\n", headers={"Retry-After": "10"})
        return ("accepted" if new else "duplicate"), web.Response(status=202 if new else 200)

    return handle


async def _body(request: web.Request, limit: int, seconds: float) -> bytes | None:
    """The body, or None when it is larger than that; read piece by piece, so that a large one is never held."""
    if (request.content_length or 0) > limit:
        return None
    body = bytearray()
    async with asyncio.timeout(seconds):
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit:
                return None
    return bytes(body)


def _relevant(body: bytes) -> MergeRequestChanged | CommentPosted | Ignored:
    try:
        content = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed("the body is no JSON in UTF-8") from error
    if not isinstance(content, Mapping):
        raise Malformed("the body is no JSON object")
    event = parse(content)
    if isinstance(event, CommentPosted) and parse_comment(event.text) is None:
        return Ignored("a comment that asks nothing of us")
    return event
