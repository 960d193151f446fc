"""The HTTP app over loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import aiohttp
import pytest
from aiohttp import web

from ravebot.errors import ConfigError, Unavailable
from ravebot.web.checks import Check, Checks, State
from ravebot.web.metrics import Metrics
from ravebot.web.server import make_app, serve

pytestmark = pytest.mark.integration


async def accept(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(status=204)


async def fine() -> Check:
    return Check(State.OK, "answers")


async def away() -> Check:
    raise Unavailable("GitLab does not answer")


async def partly() -> Check:
    return Check(State.DEGRADED, "group/archived: refused", timedelta(seconds=12))


async def mistaken() -> Check:
    raise KeyError("a mistake of ours")


@asynccontextmanager
async def running(checks: Checks, metrics: Metrics | None = None) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    async with (
        serve(make_app(accept, checks, metrics or Metrics()), "127.0.0.1", 0) as (host, port),
        aiohttp.ClientSession() as session,
    ):
        yield session, f"http://{host}:{port}"


async def test_healthz_answers_also_when_nothing_is_ready() -> None:
    async with running({"gitlab": away}) as (session, url), session.get(f"{url}/healthz") as response:
        assert (response.status, await response.text()) == (200, "ok\n")


async def test_readyz_says_of_each_part_how_it_is() -> None:
    async with running({"matrix": fine, "provider": fine}) as (session, url), session.get(f"{url}/readyz") as response:
        assert response.status == 200
        body = await response.json()
    assert body["ready"] is True
    age = body["checks"]["matrix"].pop("age_seconds")
    assert body["checks"]["matrix"] == {"ok": True, "state": "ok", "detail": "answers"}
    assert 0 <= age < 5


async def test_readyz_is_503_when_one_part_fails_and_names_it() -> None:
    async with running({"matrix": fine, "gitlab": away}) as (session, url), session.get(f"{url}/readyz") as response:
        assert response.status == 503
        body = await response.json()
    assert body["ready"] is False
    assert body["checks"]["gitlab"] == {
        "ok": False, "state": "failed", "detail": "GitLab does not answer", "age_seconds": pytest.approx(0, abs=5),
    }  # fmt: skip
    assert body["checks"]["matrix"]["ok"] is True


async def test_readyz_is_200_when_a_part_is_only_degraded_and_says_since_when_that_is_known() -> None:
    async with running({"matrix": fine, "gitlab": partly}) as (session, url), session.get(f"{url}/readyz") as response:
        assert response.status == 200
        body = await response.json()
    check = body["checks"]["gitlab"]
    assert (body["ready"], check["ok"], check["state"]) == (True, False, "degraded")
    assert 12.0 <= check["age_seconds"] < 13.0


async def test_a_check_that_raises_what_nobody_foresaw_is_named_like_any_other() -> None:
    async with running({"x": mistaken, "fine": fine}) as (session, url), session.get(f"{url}/readyz") as response:
        assert response.status == 503
        checks = (await response.json())["checks"]
    assert (checks["x"]["state"], checks["fine"]["state"]) == ("unknown", "ok")
    assert (checks["x"]["ok"], checks["x"]["age_seconds"]) == (False, None)
    assert "see ravebot's log" in checks["x"]["detail"]


@pytest.mark.parametrize("said", [b"", b"POST /webhooks/gitlab HTTP/1.1\r\nHost: x\r\nX-Gitlab-Ev"])
async def test_a_connection_without_a_whole_request_is_closed(said: bytes) -> None:
    async with serve(make_app(accept, {}, Metrics()), "127.0.0.1", 0, idle_seconds=0.3) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(said)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_a_client_that_sends_requests_and_reads_no_answer_is_dropped() -> None:
    async def ask_for_ever(client: socket.socket) -> None:
        while True:
            await asyncio.get_running_loop().sock_sendall(client, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)

    async with serve(make_app(accept, {}, Metrics()), "127.0.0.1", 0, idle_seconds=0.3) as address:
        with socket.create_connection(address) as client:
            client.setblocking(False)
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(ask_for_ever(client), 10)


class Costly:
    """A check that counts how often it was made, and how often at the same time."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.made = self.at_once = self.most_at_once = 0
        self._seconds = seconds

    async def __call__(self) -> Check:
        self.made += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self.at_once -= 1
        return Check(State.OK, "answers")


async def test_many_who_ask_at_once_and_in_a_row_have_each_check_made_once() -> None:
    costly = Costly()
    async with running({"costly": costly}) as (session, url):

        async def ask() -> int:
            async with session.get(f"{url}/readyz") as response:
                await response.read()
                return response.status

        assert set(await asyncio.gather(*(ask() for _ in range(200)))) == {200}
        assert {await ask() for _ in range(200)} == {200}
    assert (costly.made, costly.most_at_once) == (1, 1)


async def test_metrics_are_served_in_prometheus_text_format() -> None:
    metrics = Metrics()
    metrics.webhook_answered("accepted", 0.004)
    async with running({}, metrics) as (session, url), session.get(f"{url}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert 'ravebot_webhooks_total{result="accepted"} 1.0' in await response.text()


async def test_webhooks_go_to_the_handler_and_other_paths_nowhere() -> None:
    async with running({}) as (session, url):
        async with session.post(f"{url}/webhooks/gitlab", data=b"{}") as response:
            assert response.status == 204
            assert response.headers["Server"] == "ravebot"
        async with session.get(f"{url}/webhooks/gitlab") as response:
            assert response.status == 405
        async with session.get(f"{url}/nothing-here") as response:
            assert response.status == 404
            assert response.headers["Server"] == "ravebot"


async def test_an_address_in_use_says_which_key_to_change() -> None:
    app = make_app(accept, {}, Metrics())
    async with serve(app, "127.0.0.1", 0) as (host, port):
        with pytest.raises(ConfigError, match=rf"http\.listen: 127\.0\.0\.1:{port} can't be used"):
            async with serve(make_app(accept, {}, Metrics()), host, port):
                pass


async def test_a_name_that_does_not_resolve_says_which_key_to_change() -> None:
    with pytest.raises(ConfigError, match=r"http\.listen"):
        async with serve(make_app(accept, {}, Metrics()), "no-such-host.invalid", 8080):
            pass
