"""What the gateway to models tells services and takes from them, beyond the body: headers, cookies, odd statuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.models import GatewayYard, a_gateway, a_model, a_request

pytestmark = pytest.mark.integration
MESSAGES = "/local/v1/messages"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayYard]:
    async with a_gateway(tmp_path) as gateway:
        yield gateway


async def test_an_answer_is_asked_for_without_compression(gateway: GatewayYard) -> None:
    await gateway.ask()
    assert gateway.service.asked[0][1]["Accept-Encoding"] == "identity"


async def test_versions_and_betas_that_are_none_are_not_passed_on(gateway: GatewayYard) -> None:
    await gateway.ask(MESSAGES, headers={"anthropic-version": "2023-06-01; x", "anthropic-beta": 'a"b'})
    headers = gateway.service.asked[0][1]
    assert headers["Anthropic-Version"] == "2023-06-01"
    assert "Anthropic-Beta" not in headers


async def test_cookies_of_a_service_are_not_kept(tmp_path: Path) -> None:
    def by_name(url: str) -> tuple[Any, ...]:
        return (a_model(url.replace("127.0.0.1", "localhost")),)

    async with a_gateway(tmp_path, models=by_name) as gateway:
        gateway.service.answer = lambda *_: web.json_response({}, headers={"Set-Cookie": "session=1; Path=/"})
        for _ in range(2):
            await gateway.ask()
        assert len(gateway.service.asked) == 2
        assert all("Cookie" not in headers for _, headers, _ in gateway.service.asked)


async def test_the_environment_s_proxy_is_not_used(gateway: GatewayYard, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await gateway.ask())[0] == 200


async def test_headers_of_an_answer_are_bounded_and_its_kind_is_none_that_a_browser_runs(gateway: GatewayYard) -> None:
    answer = web.Response(body=json.dumps({}), content_type="text/html", headers={"X-Request-Id": "x" * 500})
    gateway.service.answer = lambda *_: answer
    _, headers, _ = await gateway.ask()
    assert (headers["X-Request-Id"], headers["Content-Type"]) == ("x" * 200, "text/plain")


@pytest.mark.parametrize("status", [300, 304, 308])
async def test_every_kind_of_redirect_costs_nothing(gateway: GatewayYard, status: int) -> None:
    gateway.service.answer = lambda *_: web.Response(status=status)
    got, message = await gateway.refused()
    assert (got, f"({status})" in message, await gateway.used()) == (502, True, 0)


async def test_an_upgrade_of_the_connection_is_no_answer(gateway: GatewayYard) -> None:
    async def upgrades(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        assert request.transport
        request.transport.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        request.transport.close()
        return web.Response()

    gateway.service.answer = upgrades
    status, message = await gateway.refused(body=a_request())
    assert (status, "an answer that is none (101)" in message) == (502, True)
