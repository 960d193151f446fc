"""The door's HTTP: small requests in, a few lines out, and the right status with each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import structlog
from aiohttp import web

from ravebot.errors import Forbidden, RavebotError, StoreError, Unavailable
from ravebot.gitlab.ci.places import JobRefused
from ravebot.web.ci import PREFIX
from ravebot.web.ci.answers import JobAnswer
from ravebot.web.ci.door import LONGEST_WAIT_SECONDS, ImageTold, JobCaller, JobDoor
from ravebot.web.ci.gate import JobGate, Turned

_LARGEST_BODY, _BODY_SECONDS = 4096, 10.0
_LONGEST_SECONDS = 50.0
"""For a whole request. GitLab may not answer, and curl in a job does not wait for ever."""
_IMAGE_KEYS = frozenset({"job", "path", "sha256"})
log = structlog.get_logger()

Act = Callable[[web.Request, JobCaller], Awaitable[JobAnswer]]


@dataclass(frozen=True)
class JobRoutes:
    """What each address does."""

    door: JobDoor
    gate: JobGate
    on_answer: Callable[[int], None] = lambda _: None
    """Called with the status of each answer."""
    _ends: asyncio.Event = field(default_factory=asyncio.Event)

    def add_to(self, app: web.Application) -> None:
        app.on_shutdown.append(self._end)
        routes = app.router
        routes.add_get(f"{PREFIX}/sandbox", self._route(self._look, acts=False))
        routes.add_post(f"{PREFIX}/sandbox", self._route(self._start))
        routes.add_post(f"{PREFIX}/image", self._route(self._image))
        routes.add_post(f"{PREFIX}/stop", self._route(self._stop))
        routes.add_post(f"{PREFIX}/reconcile", self._route(self._reconcile))
        routes.add_route("*", PREFIX + "/{rest:.*}", self._nothing)

    def _route(self, act: Act, *, acts: bool = True) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            job: int | None = None
            try:
                async with asyncio.timeout(_LONGEST_SECONDS):
                    caller = await self.gate.caller(request.headers, request.remote or "", acts=acts)
                    job = caller.claims.job_id
                    with self.gate.at_once.entered(str(job)) as has_room:
                        answer = await act(request, caller) if has_room else self.gate.crowded()
            except Turned as turned:
                answer = turned.answer
            except JobRefused as error:
                answer = JobAnswer.error(403, str(error))
            except TimeoutError:
                answer = JobAnswer.error(
                    503, "GitLab takes long to say what ravebot asks of it: try again in a while", 10
                )
            except Unavailable as error:
                answer = JobAnswer.error(503, f"{error}: try again in a while", error.retry_after_seconds or 10)
            except StoreError:
                answer = JobAnswer.error(503, "ravebot's database can't be used right now: try again in a while", 10)
            except Forbidden as error:
                answer = JobAnswer.error(503, f"GitLab refuses it to ravebot, which an operator can mend: {error}", 60)
            except RavebotError as error:
                answer = JobAnswer.error(403, str(error))
            # A mistake of ours must not look like the network's.
            except Exception:
                log.exception("a job's request failed: this is a bug of ravebot's", path=request.path)
                answer = JobAnswer.error(500, "this is a mistake in ravebot, whose log says more: tell its operator")
            if answer.status in (401, 403):
                why = answer.said.get("error", "")
                log.info("a job is refused", job=job, sender=request.remote, path=request.path, why=why)
            self.on_answer(answer.status)
            return _response(request, answer)

        return handle

    async def _end(self, _: web.Application) -> None:
        """Jobs that wait must not hold up the end of ravebot: they ask again."""
        self._ends.set()

    async def _look(self, request: web.Request, caller: JobCaller) -> JobAnswer:
        given = request.query.get("wait", "0")
        if not given.isdecimal() or len(given) > 3 or int(given) > LONGEST_WAIT_SECONDS:
            why = f"wait is a number of seconds, at most {LONGEST_WAIT_SECONDS}: correct the request"
            return JobAnswer.error(400, why)
        return await self.door.look(caller, int(given), self._ends)

    async def _start(self, _: web.Request, caller: JobCaller) -> JobAnswer:
        return await self.door.start(caller)

    async def _stop(self, _: web.Request, caller: JobCaller) -> JobAnswer:
        return await self.door.stop(caller)

    async def _reconcile(self, _: web.Request, caller: JobCaller) -> JobAnswer:
        return await self.door.reconcile(caller)

    async def _image(self, request: web.Request, caller: JobCaller) -> JobAnswer:
        told = await _image_told(request)
        return told if isinstance(told, JobAnswer) else await self.door.image(caller, told)

    async def _nothing(self, request: web.Request) -> web.Response:
        there = "GET or POST /sandbox, POST /image, POST /stop, POST /reconcile"
        known = request.path.removeprefix(PREFIX) in ("/sandbox", "/image", "/stop", "/reconcile")
        why = f"there is no {request.method} {request.path[:100]}: below {PREFIX} there are {there}"
        return _response(request, JobAnswer.error(405 if known else 404, why))


async def _image_told(request: web.Request) -> ImageTold | JobAnswer:
    """The body, as JSON or as a form (what `curl --data` sends); an empty one says nothing."""
    raw = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.content.iter_any():
                raw += piece
                if len(raw) > _LARGEST_BODY:
                    return JobAnswer.error(
                        413, f"the body is larger than {_LARGEST_BODY} bytes: send job, path, sha256"
                    )
    except TimeoutError:
        return JobAnswer.error(408, f"the body took more than {_BODY_SECONDS:g} seconds: send it again")
    except (web.RequestPayloadError, ConnectionError):
        return JobAnswer.error(400, "the body can't be read: send it again")
    try:
        text = raw.decode().strip()
        found = json.loads(text) if text.startswith(("{", "[")) else dict(parse_qsl(text, strict_parsing=bool(text)))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return JobAnswer.error(400, "the body is neither a JSON object of texts nor a form: see docs/gitlab.md")
    if more := set(found) - _IMAGE_KEYS:
        return JobAnswer.error(400, f"{sorted(more)[0][:40]} is none of job, path, sha256: correct the request")
    return ImageTold(**found)


def _response(request: web.Request, answer: JobAnswer) -> web.Response:
    if "application/json" in request.headers.get("Accept", ""):
        return web.json_response(answer.json(), status=answer.status, headers=answer.headers)
    return web.Response(text=answer.text(), status=answer.status, headers=answer.headers)
