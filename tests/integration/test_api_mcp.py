"""MCP by clients that others made: the SDKs for Python and JavaScript, in both eras of the protocol, and mcporter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from ravebot.operations.tokens.reports import TokenMade
from ravebot.sandboxes.model import SandboxId
from ravebot.tools.callers.sandbox import SandboxCaller
from ravebot.tools.table import TOOLS
from ravebot.web.api.mcp import described
from tests.support import peers
from tests.support.api_yard import ApiYard, an_api_yard

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApiYard]:
    async with an_api_yard(tmp_path_factory.mktemp("api") / "state") as running:
        await running.ready()
        yield running


@asynccontextmanager
async def a_client(yard: ApiYard, made: TokenMade, mode: str) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {made.text}"}) as http:
        transport: Any = streamable_http_client(f"{yard.url}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_pythons_sdk_lists_and_calls_the_tools_of_its_token(yard: ApiYard, mode: str) -> None:
    made = await yard.token(scopes=("read", "sandbox"))
    async with a_client(yard, made, mode) as client:
        listed = (await client.list_tools()).tools
        names = [tool.name for tool in listed]
        assert {"whoami", "sandbox_get", "sandbox_extend"} <= set(names)
        assert not {"run_start", "message_send"} & set(names), "its scopes do not have them"
        shown = await client.call_tool("sandbox_get", {"ref": yard.mr.full_ref})
        assert not shown.is_error
        assert shown.structured_content
        assert shown.structured_content["state"] == "ready"
        given = {"ref": yard.mr.full_ref, "by": "1m", "idempotency_key": f"once {mode}"}
        first, again = [await client.call_tool("sandbox_extend", given) for _ in range(2)]
        assert first.structured_content == again.structured_content
        refused = await client.call_tool("run_start", {"ref": yard.mr.full_ref, "command": "true"})
        assert refused.is_error
        assert "scope run" in str(refused.content)
        wrong = await client.call_tool("sandbox_get", {"reference": 7})
        assert wrong.is_error
        assert "ref" in str(wrong.content)


async def run(*arguments: str, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *arguments, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()[-2000:] + output.decode()[-2000:]
    return output.decode()


async def test_javascripts_sdk_lists_and_calls_them(yard: ApiYard, tmp_path: Path) -> None:
    made = await yard.token(scopes=("read",))
    (tmp_path / "token").write_text(made.text)
    where = await asyncio.to_thread(peers.folder)
    given = json.dumps({"ref": yard.mr.full_ref})
    told = json.loads(
        await run(
            peers.node(where), "client.mjs", f"{yard.url}/mcp", str(tmp_path / "token"), "sandbox_get", given, cwd=where
        )
    )
    assert told["server"] == "ravebot"
    assert "sandbox_get" in told["tools"]
    assert told["result"]["structuredContent"]["ref"] == yard.mr.full_ref


async def test_mcporter_lists_and_calls_them(yard: ApiYard, tmp_path: Path) -> None:
    made = await yard.token(scopes=("read",))
    servers = {"ravebot": {"baseUrl": f"{yard.url}/mcp", "headers": {"Authorization": f"Bearer {made.text}"}}}
    (tmp_path / "mcporter.json").write_text(json.dumps({"mcpServers": servers, "imports": []}))
    where = await asyncio.to_thread(peers.folder)
    program = (peers.node(where), str(where / "node_modules/mcporter/dist/cli.js"))
    settings = ("--config", str(tmp_path / "mcporter.json"))
    listed = await run(*program, *settings, "list", "ravebot", "--json", cwd=tmp_path)
    assert "sandbox_get" in listed
    called = await run(
        *program, *settings, "call", "ravebot.sandbox_get", f"ref={yard.mr.full_ref}", "--output", "json", cwd=tmp_path
    )
    assert json.loads(called)["state"] == "ready"


async def test_without_a_token_and_from_a_page_with_a_name_of_its_own_nothing_is_spoken(yard: ApiYard) -> None:
    made = await yard.token()
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = {"Accept": "application/json, text/event-stream"}
    assert (await yard.ask("POST", "/mcp", json=body, headers=accept)).status == 401
    assert (await yard.ask("POST", "/mcp", made, json=body, headers=accept)).status == 200
    async with yard.session.post(
        f"{yard.url}/mcp", json=body, headers={**accept, "Host": "evil.example", "Authorization": f"Bearer {made.text}"}
    ) as answer:
        told = await answer.json(content_type="application/problem+json")
        assert (answer.status, "api.public_url" in told["detail"]) == (421, True)
    page = await yard.ask("POST", "/mcp", made, json=body, headers={**accept, "Origin": "https://evil.example"})
    assert (page.status, page.body["detail"].partition(":")[0]) == (403, "MCP is not spoken with pages in browsers")
    assert (await yard.ask("GET", "/mcp", made)).status == 405


async def test_who_lists_the_tools_all_day_has_their_schemas_made_once() -> None:
    caller = SandboxCaller(SandboxId(1))
    for tool in (one for one in TOOLS if one.is_for(caller)):
        assert described(tool, caller) is described(tool, caller)
