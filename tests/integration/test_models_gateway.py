"""Agents use a model through the gateway: a real server on a Unix socket, and a service on loopback."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.models import COSTS, KEY, GatewayYard, a_gateway, a_request

pytestmark = pytest.mark.integration


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayYard]:
    async with a_gateway(tmp_path) as gateway:
        yield gateway


async def test_a_chat_is_answered_with_our_key_and_settled_by_its_usage(gateway: GatewayYard) -> None:
    given = {"Authorization": "Bearer the guest's own", "Cookie": "a=b", "X-Api-Key": "mine", "X-Other": "1"}
    status, _, body = await gateway.ask(headers=given)
    assert (status, json.loads(body)["content"]) == (200, "Hello from the model")
    path, headers, sent = gateway.service.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Host"] == gateway.service.url.removeprefix("http://")
    assert not {"Cookie", "X-Api-Key", "X-Other"} & set(headers)
    assert sent == a_request(max_completion_tokens=32_000)
    assert await gateway.used() == COSTS["chat"]
