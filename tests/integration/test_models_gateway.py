"""Agents use a model through the gateway: a real server on a Unix socket, and a service on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from ravebot.agents import overview
from ravebot.agents.models.accounts import ModelAccounts, Reservation
from ravebot.agents.models.gateway import ModelGateway
from ravebot.config.model import ModelConfig
from ravebot.errors import StoreError
from ravebot.intake.agents import AgentReports
from ravebot.store import agent_texts, model_uses
from ravebot.store.database import Transaction
from ravebot.store.model_uses import ModelUser, TokensUsed
from tests.support.agent_yard import ALICE
from tests.support.models import (
    COSTS,
    KEY,
    GatewayYard,
    a_gateway,
    a_model,
    a_request,
    chat_stream,
    messages_stream,
    responses_stream,
    sse,
    stream,
)

pytestmark = pytest.mark.integration
MESSAGES, CHAT, RESPONSES = "/local/v1/messages", "/local/v1/chat/completions", "/local/v1/responses"
SHAPES = {"messages": MESSAGES, "chat": CHAT, "responses": RESPONSES}
ASKED = {"model": "tiny", "input": "hi"}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayYard]:
    async with a_gateway(tmp_path) as gateway:
        yield gateway


def body_of(shape: str, **more: object) -> dict[str, Any]:
    return {**(ASKED if shape == "responses" else a_request()), **more}


async def test_a_request_is_answered_with_our_key_and_nothing_of_the_guest_s_headers(gateway: GatewayYard) -> None:
    given = {"Authorization": "Bearer the guest's own", "Cookie": "a=b", "X-Api-Key": "mine", "X-Other": "1"}
    status, headers, body = await gateway.ask(headers={**given, "Host": "elsewhere.example.org"})
    assert (status, json.loads(body)["content"]) == (200, "Hello from the model")
    path, got, sent = gateway.service.asked[0]
    assert path == "/v1/chat/completions"
    assert got["Authorization"] == f"Bearer {KEY}"
    assert got["Host"] == gateway.service.url.removeprefix("http://")
    assert not {"Cookie", "X-Api-Key", "X-Other"} & set(got)
    assert sent == a_request(max_completion_tokens=32_000)
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_shape_is_settled_by_its_usage_streamed_and_not(gateway: GatewayYard, shape: str) -> None:
    status, _, _ = await gateway.ask(SHAPES[shape], body_of(shape))
    assert (status, await gateway.used()) == (200, COSTS[shape])
    status, headers, streamed = await gateway.ask(SHAPES[shape], body_of(shape, stream=True))
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    whole = {"messages": messages_stream(), "chat": chat_stream(usage=False), "responses": responses_stream()}
    assert streamed == b"".join(whole[shape])
    await gateway.settled(2 * COSTS[shape])
    assert gateway.metrics.results == ["answered", "answered"]
    assert gateway.metrics.tokens == 2 * COSTS[shape]


async def test_the_chunk_with_the_usage_comes_if_the_client_asked_for_it(gateway: GatewayYard) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, _, streamed = await gateway.ask(CHAT, a_request(stream=True, stream_options=options))
    assert streamed == b"".join(chat_stream(usage=True))
    assert gateway.service.last["stream_options"] == {"include_usage": True}


async def test_counting_tokens_costs_nothing_and_the_beta_address_is_passed_on(gateway: GatewayYard) -> None:
    status, _, body = await gateway.ask(f"{MESSAGES}/count_tokens")
    assert (status, json.loads(body), await gateway.used()) == (200, {"input_tokens": 7}, 0)
    given = {"anthropic-version": "2023-06-01", "anthropic-beta": "context-1m"}
    await gateway.ask(f"{MESSAGES}?beta=true", headers=given)
    path, headers, _ = gateway.service.asked[1]
    assert path == "/v1/messages?beta=true"
    assert (headers["Anthropic-Version"], headers["Anthropic-Beta"]) == ("2023-06-01", "context-1m")


async def test_a_key_can_go_into_the_other_header_and_a_model_of_one_s_own_needs_none(tmp_path: Path) -> None:
    async with a_gateway(tmp_path, models=lambda url: (a_model(f"{url}/below/", header="x-api-key"),)) as gateway:
        await gateway.ask(MESSAGES)
        path, headers, _ = gateway.service.asked[0]
        assert (path, headers["X-Api-Key"]) == ("/below/v1/messages", KEY)
        assert "Authorization" not in headers
        gateway.gateway.parts.upstream.keys = {}
        await gateway.ask(MESSAGES)
        assert not {"X-Api-Key", "Authorization"} & set(gateway.service.asked[1][1])


async def test_a_service_of_google_s_shape_is_asked_by_model_and_method_and_counted(tmp_path: Path) -> None:
    def google(url: str) -> tuple[ModelConfig, ...]:
        return (a_model(url, paths=["/v1beta/models"], header="x-goog-api-key", allow=["gemini-*"]),)

    body = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
    async with a_gateway(tmp_path, models=google) as gateway:
        base = "/local/v1beta/models/gemini-2.5-pro"
        for address in (f"{base}:streamGenerateContent?alt=sse", f"{base}:generateContent", f"{base}:countTokens"):
            status, _, answer = await gateway.ask(address, body, headers={"x-goog-api-key": "none"})
            assert (status, b"error" in answer) == (200, False)
        assert [path for path, _, _ in gateway.service.asked] == [
            "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
            "/v1beta/models/gemini-2.5-pro:generateContent",
            "/v1beta/models/gemini-2.5-pro:countTokens",
        ]
        assert {headers["x-goog-api-key"] for _, headers, _ in gateway.service.asked} == {KEY}
        assert "generationConfig" in gateway.service.asked[0][2]
        assert await gateway.used() == 2 * COSTS["google"]
        for address in (
            "/local/v1beta/models", f"{base}:streamGenerateContent", f"{base}:generateContent?key=mine",
            f"{base}:generateContent?alt=sse", "/local/v1beta/models/veo-3:generateContent",
            "/local/v1beta/cachedContents", f"{base}:predict", "/local/v1/models/gemini-2.5-pro:generateContent",
        ):  # fmt: skip
            status, _, _ = await gateway.ask(address, body)
            assert status in (403, 404), address
        assert len(gateway.service.asked) == 3


async def test_without_a_running_turn_nothing_is_passed_on(tmp_path: Path) -> None:
    async with a_gateway(tmp_path, runs=False) as gateway:
        status, message = await gateway.refused()
        assert status == 403
        assert "no message of a person is being worked on" in message
        assert gateway.service.asked == []
        assert gateway.metrics.results == ["refused"]


async def test_an_agent_without_that_model_is_refused_and_another_one_s_turn_counts_for_itself(
    gateway: GatewayYard,
) -> None:
    await gateway.agents.given(await gateway.agents.taken(agent="reviewer"))
    assert (await gateway.ask())[0] == 200  # coder's turn runs, too
    await gateway.agents.ended(gateway.turn_id)
    status, message = await gateway.refused()
    assert status == 403
    assert "reviewer may not use local" in message


@pytest.mark.parametrize(
    ("budget", "word"),
    [
        ({"sandbox_tokens": 40_000}, "This sandbox has used 20 of 40,000 tokens"),
        ({"agent_tokens": 40_000}, "coder today has used 20 of 40,000 tokens"),
        ({"person_tokens": 40_000}, "The person who asked today has used 20 of 40,000 tokens"),
    ],
)
async def test_what_no_budget_has_room_for_is_refused_and_said_once_in_the_conversation(
    tmp_path: Path, budget: dict[str, int], word: str
) -> None:
    async with a_gateway(tmp_path, **budget) as gateway:  # type: ignore[arg-type]
        assert (await gateway.ask())[0] == 200
        for _ in range(2):
            status, message = await gateway.refused(body=a_request(max_tokens=39_990))
            assert status == 403
            assert word in message
        assert len(gateway.service.asked) == 1
        assert await gateway.used() == COSTS["chat"]
        (remark,) = await gateway.agents.remarks()
        assert remark.startswith("coder gets no more of its model.")
        assert word in remark
        assert (await gateway.ask())[0] == 200  # a smaller one has room


async def test_requests_at_once_never_reserve_more_than_a_sandbox_has(tmp_path: Path) -> None:
    async with a_gateway(tmp_path, sandbox_tokens=70_000) as gateway:
        go_on = asyncio.Event()

        async def slow(_: web.Request, __: dict[str, Any]) -> web.Response:
            await go_on.wait()
            return web.json_response({})  # says no usage

        gateway.service.answer = slow
        asking = [asyncio.create_task(gateway.ask()) for _ in range(4)]
        async with asyncio.timeout(60):
            while sum(task.done() for task in asking) < 2:
                await asyncio.sleep(0.01)
        go_on.set()
        statuses = sorted([(await task)[0] for task in asking])
        assert statuses == [200, 200, 403, 403]
        assert 64_000 < await gateway.used() <= 70_000


async def test_without_usage_and_with_the_guest_gone_early_the_reservation_stands(gateway: GatewayYard) -> None:
    gateway.service.answer = lambda _, __: web.json_response({"content": "no usage"})
    await gateway.ask()
    (reserved,) = {await gateway.used()}
    assert reserved > 32_000

    async def starts(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(messages_stream()[0])  # has a usage already, which is not the whole
        await left.wait()
        return response

    left = asyncio.Event()
    gateway.service.answer = starts
    reader, writer = await asyncio.open_unix_connection(str(gateway.socket))
    body = json.dumps(a_request(stream=True)).encode()
    writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MESSAGES.encode(), len(body)) + body)
    await reader.readuntil(b"message_start")
    writer.close()
    async with asyncio.timeout(60):
        while len(gateway.metrics.results) < 2:
            await asyncio.sleep(0.01)
    left.set()
    assert await gateway.used() > 2 * 32_000


@pytest.mark.parametrize("status", [400, 429, 500, 529])
async def test_an_error_of_the_service_is_passed_on_and_costs_nothing(gateway: GatewayYard, status: int) -> None:
    gateway.service.answer = lambda _, __: web.json_response(
        {"error": {"message": f"slow down {KEY} " + "x" * 200_000}},
        status=status,
        headers={"Retry-After": "7", "Set-Cookie": "a=b", "Anthropic-Organization-Id": "org"},
    )
    got, headers, body = await gateway.ask()
    assert (got, headers["Retry-After"], await gateway.used()) == (status, "7", 0)
    assert not {"Set-Cookie", "Anthropic-Organization-Id"} & set(headers)
    assert body.startswith(b'{"error": {"message": "slow down [key] x')
    assert len(body) < 70_000
    assert gateway.metrics.results == ["failed"]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_told_to_admins_and_nothing_of_the_answer_is(tmp_path: Path, status: int) -> None:
    def with_key(url: str) -> tuple[Any, ...]:
        return (a_model(url, key_file="/secret"),)

    async with a_gateway(tmp_path, models=with_key) as gateway:
        gateway.service.answer = lambda _, __: web.json_response({"error": f"wrong key {KEY[:8]}"}, status=status)
        got, message = await gateway.refused()
        assert got == 403
        assert "models[].key_file" in message
        assert KEY[:8] not in message
        assert await gateway.used() == 0


async def test_no_redirect_is_followed(gateway: GatewayYard) -> None:
    gateway.service.answer = lambda _, __: web.Response(status=307, headers={"Location": "/v1/elsewhere"})
    status, message = await gateway.refused()
    assert status == 502
    assert "redirect (307)" in message
    assert len(gateway.service.asked) == 1
    assert await gateway.used() == 0


async def test_a_service_that_is_not_there_is_said(tmp_path: Path) -> None:
    async with a_gateway(tmp_path, models=lambda _: (a_model("http://127.0.0.1:9"),)) as gateway:
        status, message = await gateway.refused()
        assert status == 502
        assert "local can't be reached (Connection refused)" in message
        assert await gateway.used() == 0


async def test_half_a_stream_is_passed_on_and_the_connection_is_cut(gateway: GatewayYard) -> None:
    async def breaks(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in chat_stream()[:2]:
            await response.write(event)
        assert request.transport
        request.transport.abort()
        return response

    gateway.service.answer = breaks
    body = json.dumps(a_request(stream=True)).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
    answer = await gateway.raw(head + body)
    assert b" from" in answer
    assert not answer.endswith(b"0\r\n\r\n")  # a whole body ends so
    assert await gateway.used() > 32_000
    assert gateway.metrics.results == ["failed"]


async def test_half_an_answer_is_none(gateway: GatewayYard) -> None:
    async def breaks(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"usage": {"prompt_tokens": 1, ')
        assert request.transport
        request.transport.abort()
        return response

    gateway.service.answer = breaks
    status, message = await gateway.refused()
    assert status == 502
    assert "broke off" in message
    assert await gateway.used() > 32_000


async def test_neither_key_nor_prompt_is_in_a_log_and_each_request_is_one_line(gateway: GatewayYard) -> None:
    with capture_logs() as logs:
        await gateway.ask(body=a_request(messages=[{"role": "user", "content": "the secret prompt"}]))
        gateway.service.answer = lambda _, __: web.Response(status=500, text=f"{KEY} the secret prompt")
        await gateway.ask(body=a_request(messages=[{"role": "user", "content": "the secret prompt"}]))
    answered, failed = logs
    assert KEY not in str(logs)
    assert "secret prompt" not in str(logs)
    assert {"model": "local", "agent": "coder", "status": 200, "tokens": 20}.items() <= answered.items()
    assert {"status": 500, "tokens": 0, "turn": gateway.turn_id}.items() <= failed.items()


async def test_of_several_answers_at_once_only_the_usage_of_all_counts(gateway: GatewayYard) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    first = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
    gateway.service.answer = lambda request, _: stream(request, [sse(first)])
    await gateway.ask(body=a_request(stream=True, n=2))
    assert await gateway.used() > 2 * 32_000
    await gateway.ask(body=a_request(stream=True))
    assert 2 * 32_000 < await gateway.used() < 3 * 32_000


async def test_a_usage_of_nothing_is_one(gateway: GatewayYard) -> None:
    gateway.service.answer = lambda *_: web.json_response({"usage": {"prompt_tokens": 0, "completion_tokens": 0}})
    await gateway.ask()
    assert await gateway.used() == 0


async def test_a_stream_s_last_event_is_passed_on_without_its_empty_line(gateway: GatewayYard) -> None:
    gateway.service.answer = lambda request, _: stream(request, [sse("1"), b"data: [DONE]"])
    _, _, streamed = await gateway.ask(body=a_request(stream=True))
    assert streamed == sse("1") + b"data: [DONE]"


async def test_a_usage_that_the_model_itself_writes_counts_for_nothing(gateway: GatewayYard) -> None:
    lie = {"choices": [{"delta": {"content": '"usage": {"prompt_tokens": 0, "completion_tokens": 0}'}}]}
    gateway.service.answer = lambda request, _: stream(request, [sse(lie), *chat_stream()])
    await gateway.ask(body=a_request(stream=True))
    await gateway.settled(COSTS["chat"])


async def test_what_was_used_is_shown_to_people_and_at_the_shell(gateway: GatewayYard) -> None:
    await gateway.ask()

    def read(tx: Transaction) -> tuple[str, overview.AgentAtWork]:
        said = AgentReports(gateway.config).budget(tx, ALICE, ["group/*"])
        return said, next(one for one in overview.agents(tx, gateway.config) if one.name == "coder")

    said, coder = await gateway.agents.yard.read(read)
    assert f"You: 1 of 500 messages today, 20 of {10**9:,} tokens of models" in said
    assert f"`coder`: 1 of 200 messages today, 20 of {10**9:,} tokens of models" in said
    assert "`reviewer`: 0 of 200 messages today\n" in said
    assert said.endswith(f"\nSandbox of group/app!1: 20 of {10**9:,} tokens of models, over its life")
    assert (coder.spent.tokens, coder.spent.most_tokens) == (20, 10**9)


async def test_single_uses_are_forgotten_after_their_time_and_the_sum_stays(gateway: GatewayYard) -> None:
    await gateway.ask()
    gateway.agents.yard.pass_by(seconds=100)
    await gateway.agents.yard.write(lambda tx: agent_texts.forget(tx, timedelta(seconds=50), 100))
    assert await gateway.agents.yard.read(lambda tx: tx.all("SELECT * FROM model_uses")) == []
    assert await gateway.used() == COSTS["chat"]


async def test_a_large_body_is_sent_only_once_the_gateway_is_ready_for_it(gateway: GatewayYard) -> None:
    body = json.dumps(a_request(messages=[{"role": "user", "content": "x" * 1_000_000}])).encode()
    reader, writer = await asyncio.open_unix_connection(str(gateway.socket))
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % (CHAT.encode(), len(body)))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_use_is_settled_once(gateway: GatewayYard) -> None:
    user = ModelUser(gateway.sandbox_id, gateway.turn_id, "coder", ALICE, "2026-01-01")

    def step(tx: Transaction) -> list[int]:
        use_id = model_uses.reserve(tx, user, "local", 1000)
        found = [model_uses.used_in(tx, gateway.sandbox_id)]
        for used in (20, 30):
            model_uses.settle(tx, use_id, used)
            found.append(model_uses.used_in(tx, gateway.sandbox_id))
        assert model_uses.used_by(tx, user) == TokensUsed(20, 20, 20)
        return found

    assert await gateway.agents.yard.write(step) == [1000, 20, 20]


class FullDisk(ModelAccounts):
    """Accounts that can't be written when an answer has come."""

    async def settle(self, reservation: Reservation, used: int) -> None:
        raise StoreError("the disk is full")


async def test_an_answer_that_can_not_be_settled_is_cut_and_no_second_one_is_written_into_it(
    gateway: GatewayYard,
) -> None:
    parts = gateway.gateway.parts
    accounts = FullDisk(parts.accounts.config, parts.accounts.database, parts.accounts.telling)
    full = ModelGateway(replace(parts, accounts=accounts), gateway.metrics)
    socket = gateway.folder / "full.sock"
    body = json.dumps(a_request(stream=True)).encode()
    async with full.serve(gateway.sandbox_id, socket):
        reader, writer = await asyncio.open_unix_connection(str(socket))
        head = b"POST /local/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"\r\n0\r\n\r\n")
    assert await gateway.used() > 32_000
    assert gateway.metrics.results == ["failed"]
