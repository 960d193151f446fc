"""`POST /webhooks/gitlab`: authenticates, reads, stores and answers; `intake` acts on the event later.

The secret token is checked before the body is read. A request with neither the right token nor a well-formed, recent
signature is refused before its body is read. A signature can only be checked with the body, so the bodies of all
requests without the right token share a bounded amount of memory; a body that finds no room waits, then gets a 503.

GitLab expects a 2xx with an empty body within ten seconds, also for ignored events, or it disables the webhook.
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
from ravebot.gitlab.addressing import for_us
from ravebot.gitlab.events import CommentPosted, Ignored, MergeRequestChanged, parse
from ravebot.gitlab.fields import Malformed
from ravebot.gitlab.refusals import Refusals
from ravebot.gitlab.unproven import NoRoom, Share, Unproven
from ravebot.gitlab.webhook import Forged, WebhookDelivery, WebhookSecrets, authenticate, check_headers, delivery

log = structlog.get_logger()

MAX_BODY_BYTES = 25 * 1024**2
"""GitLab sends no larger ones. A body has the whole description, and repeated 4xx answers disable the webhook.
https://docs.gitlab.com/user/gitlab_com/#webhooks"""
MAX_UNPROVEN_BYTES = 5 * 1024**2
"""The most that is read of a body before its signature can be checked."""
MAX_UNPROVEN_TOGETHER_BYTES = 16 * 1024**2
"""The most that all such bodies may take at a time: three of the largest, and little on a host of virtual machines."""
BODY_SECONDS = 10.0
"""How long reading a body may take; GitLab waits no longer for an answer. At most half of it is waiting for room."""
_PIECE_BYTES = 16 * 1024
_RETRY = {"Retry-After": "10"}
_CROWDED = "too many webhooks with unchecked signatures at once: try again later, or send the secret token as well\n"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def webhook_handler(
    secrets: WebhookSecrets,
    clock: Clock,
    accept: Callable[[WebhookDelivery], Awaitable[bool]],
    on_result: Callable[[str, float], None],
    refusals: Refusals,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_seconds: float = BODY_SECONDS,
) -> Handler:
    """The handler. `accept` returns when the delivery is committed: True if it is new, False if it was stored before.

    `on_result` is called with accepted, duplicate, ignored, forged, malformed, too_large or unavailable (the store
    can't be written, or there is no room for an unproven body), and with the time in seconds. `refusals` is told of
    requests whose secret or signature is wrong, and of those whose is right.
    """
    unproven = Unproven(MAX_UNPROVEN_TOGETHER_BYTES, body_seconds / 2)

    async def handle(request: web.Request) -> web.StreamResponse:
        began = time.perf_counter()
        result, response = await _answer(request)
        on_result(result, time.perf_counter() - began)
        if response.status >= 400:
            log.warning("webhook refused", result=result, why=response.text, sender=request.remote)
        return response

    async def _answer(request: web.Request) -> tuple[str, web.Response]:
        share = Share(unproven)
        try:
            proven = check_headers(request.headers, secrets, clock.now())
            limit = max_body_bytes if proven else min(max_body_bytes, MAX_UNPROVEN_BYTES)
            async with asyncio.timeout(body_seconds):
                body = await _body(request, limit, None if proven else share)
            if body is None:
                return "too_large", web.Response(status=413, text=f"at most {limit} bytes\n")
            authenticate(request.headers, body, secrets, clock.now())
            share.give_back()  # proven: free the room before waiting for the store
            refusals.accepted()
            event = _relevant(body)
        except Forged as error:
            if "X-Gitlab-Event" in request.headers:  # other requests are strangers' for sure
                refusals.refused(str(error))
            return "forged", web.Response(status=401, text=f"{error}\n")
        except Malformed as error:
            return "malformed", web.Response(status=400, text=f"{error}\n")
        except (web.RequestPayloadError, ConnectionError) as error:
            return "malformed", web.Response(status=400, text=f"the body can't be read: {type(error).__name__}\n")
        except TimeoutError:
            return "malformed", web.Response(status=408, text=f"the body took more than {body_seconds:g} s\n")
        except NoRoom:
            return "unavailable", web.Response(status=503, text=_CROWDED, headers=_RETRY)
        finally:
            share.give_back()
        if isinstance(event, Ignored):
            return "ignored", web.Response(status=200)
        try:
            new = await accept(delivery(request.headers, body, event))
        except StoreError:
            return "unavailable", web.Response(status=503, text="try again later\n", headers=_RETRY)
        return ("accepted" if new else "duplicate"), web.Response(status=202 if new else 200)

    return handle


async def _body(request: web.Request, limit: int, share: Share | None) -> bytes | None:
    """The body, or None if it is larger than `limit`; read in chunks, so that a larger one is never held in memory.

    `share` is given for an unproven body: room is taken at once for the announced length, or as the body grows if it
    has none or is compressed. Raises NoRoom.
    """
    announced = request.content_length or 0
    if announced > limit:
        return None
    if share:
        await share.grow(announced)
    body = bytearray()
    async for chunk in request.content.iter_chunked(_PIECE_BYTES):
        size = len(body) + len(chunk)
        if size > limit:
            return None
        if share:
            await share.grow(size)
        body += chunk
    return bytes(body)


def _relevant(body: bytes) -> MergeRequestChanged | CommentPosted | Ignored:
    try:
        content = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed("the body is not JSON in UTF-8") from error
    if not isinstance(content, Mapping):
        raise Malformed("the body is not a JSON object")
    event = parse(content)
    if isinstance(event, CommentPosted) and not for_us(event.text):
        return Ignored("a comment that asks nothing of us")
    return event
