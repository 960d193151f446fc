"""REST below /api/v1: a route for each tool, which reads what it takes from path, query and body."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from pydantic_core import from_json
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ravebot.errors import RavebotError
from ravebot.tools.calls import ToolAnswer, ToolCalls
from ravebot.tools.problems import ProblemKind, ToolProblem, problem_of
from ravebot.tools.table import TOOLS, Tool
from ravebot.web.api import openapi
from ravebot.web.api.answers import answer, page_headers, problem
from ravebot.web.api.clients import while_there
from ravebot.web.api.gate import Gate

BASE = "/api/v1"
MAX_BODY_BYTES = 1024**2
"""The longest text of a tool has 60,000 characters, of which each may come as two escapes of six bytes."""
BODY_SECONDS = 10.0
_NO_SUCH_PATH = "no such path: the description is at /api/v1/openapi.json"


class _ReferenceConvertor(Convertor[str]):
    """`group/app!42` in a path, with or without its slashes escaped."""

    regex = r"[^!]{1,490}![^/!]{1,12}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def routes(calls: ToolCalls, gate: Gate) -> list[Route]:
    """All routes of the API."""
    register_url_convertor("reference", _ReferenceConvertor())
    described = openapi.description()

    async def describe(_: Request) -> Response:
        return answer(ToolAnswer(200, described))

    found = [Route(f"{BASE}/openapi.json", describe, methods=["GET"])]
    for tool in TOOLS:
        path = f"{BASE}{tool.path}".replace("{ref}", "{ref:reference}")
        found.append(Route(path, _endpoint(calls, gate, tool), methods=[tool.method], name=tool.name))
    return found


def _endpoint(calls: ToolCalls, gate: Gate, tool: Tool) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        try:
            address = request.client.host if request.client else ""
            caller = await gate.caller(request.headers.get("authorization", ""), address)
            with gate.at_work(caller):
                given = await _given(request, tool)
                key = request.headers.get("idempotency-key", "") if tool.acts else ""
                call = calls.call(caller, tool, given, key)
                found = await (while_there(request.receive, call) if tool.waits else call)
        except RavebotError as error:
            return answer(ToolAnswer.of(problem_of(error)))
        headers = None
        if found.ok and "next_page" in found.body:
            headers = page_headers(request.url.path, request.query_params, found.body)
        return answer(found, headers)

    return handle


async def _given(request: Request, tool: Tool) -> Mapping[str, object]:
    """What the request gives to the tool. Raises ToolProblem if that can't be read."""
    given: dict[str, object] = dict(request.path_params)
    if tool.method == "GET":
        more: Mapping[str, object] = request.query_params
        if len(request.query_params.multi_items()) != len(request.query_params):
            raise ToolProblem(ProblemKind.INVALID, "A parameter is given twice: give each once.")
    else:
        more = await _body(request)
    if twice := sorted(given.keys() & more.keys()):
        raise ToolProblem(ProblemKind.INVALID, f"{twice[0]} is in the path: leave it out elsewhere.")
    return {**given, **more}


async def _body(request: Request) -> Mapping[str, object]:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    raise ToolProblem(ProblemKind.TOO_LARGE, "A request has at most 1 MiB: send less.")
    except TimeoutError:
        raise ToolProblem(ProblemKind.SLOW, "The body did not come within 10 seconds: send it at once.") from None
    except ClientDisconnect:
        raise ToolProblem(ProblemKind.MALFORMED, "The body ended too early.") from None
    if not body:
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ToolProblem(ProblemKind.MEDIA_TYPE, "Send JSON, with `Content-Type: application/json`.")
    try:
        given = from_json(bytes(body), allow_inf_nan=False)
    except ValueError:
        raise ToolProblem(ProblemKind.MALFORMED, "The body is no JSON.") from None
    if not isinstance(given, dict):
        raise ToolProblem(ProblemKind.MALFORMED, "The body must be one JSON object, like {}.")
    return given


async def not_served(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == ProblemKind.METHOD.status:
        return problem(ProblemKind.METHOD, f"{request.method} is not for this path.", error.headers)
    return problem(ProblemKind.NOT_FOUND, f"There is {_NO_SUCH_PATH}.")
