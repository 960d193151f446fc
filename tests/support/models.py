"""A gateway to models at work: a sandbox in which an agent's turn runs, and a service of models that plays a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from ravebot.agents.model import TurnId
from ravebot.agents.models.accounts import ModelAccounts
from ravebot.agents.models.exchange import ExchangeLimits, ExchangeParts
from ravebot.agents.models.gateway import GatewayLimits, ModelGateway, parse_threads
from ravebot.agents.models.upstream import Upstream, UpstreamLimits
from ravebot.agents.telling import ConversationTelling
from ravebot.clock import SystemClock
from ravebot.config.model import Budgets, Config, ModelConfig, PersonBudget, SandboxBudget
from ravebot.sandboxes.model import SandboxId
from ravebot.store import model_uses
from ravebot.store.database import Database
from tests.support.agent_yard import AgentYard, an_agent, an_agent_yard
from tests.support.records import a_merge_request

KEY = "sk-the-key-of-the-service"
USAGE = {
    "messages": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
    },
    "chat": {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20},
    "responses": {"input_tokens": 11, "output_tokens": 9, "total_tokens": 20},
    "google": {"promptTokenCount": 11, "candidatesTokenCount": 4, "thoughtsTokenCount": 6, "totalTokenCount": 21},
}
"""What the service says of its answers."""
COSTS = {"messages": 22, "chat": 20, "responses": 20, "google": 21}
WORDS = ("Hello", " from", " the", " model")
Answerer = Callable[[web.Request, dict[str, Any]], Any]


def sse(data: object, event: str = "") -> bytes:
    """One event of a stream."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()


def messages_stream() -> list[bytes]:
    usage = USAGE["messages"]
    start = {"type": "message", "role": "assistant", "content": [], "usage": {**usage, "output_tokens": 1}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    return [
        sse({"type": "message_start", "message": start}, "message_start"),
        *(
            sse({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}})
            for word in WORDS
        ),
        sse(delta, "message_delta"),
        sse({"type": "message_stop"}, "message_stop"),
    ]


def chat_stream(*, usage: bool = True) -> list[bytes]:
    def chunk(choices: list[dict[str, Any]], **more: object) -> bytes:
        return sse({"object": "chat.completion.chunk", "choices": choices, "usage": None, **more})

    return [
        *(chunk([{"index": 0, "delta": {"content": word}, "finish_reason": None}]) for word in WORDS),
        chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        *([chunk([], usage=USAGE["chat"])] if usage else []),
        sse("[DONE]"),
    ]


def responses_stream() -> list[bytes]:
    return [
        sse({"type": "response.created", "response": {"status": "in_progress", "usage": None}}),
        *(sse({"type": "response.output_text.delta", "delta": word}) for word in WORDS),
        sse({"type": "response.completed", "response": {"status": "completed", "usage": USAGE["responses"]}}),
    ]


def google_stream() -> list[bytes]:
    """As Google's reference has it; lines end with CR LF."""

    def chunk(text: str, usage: dict[str, int], **more: str) -> bytes:
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}
        return sse({"candidates": [candidate], "usageMetadata": usage}).replace(b"\n", b"\r\n")

    so_far = {"promptTokenCount": 11, "totalTokenCount": 12}
    return [*(chunk(word, so_far) for word in WORDS[:-1]), chunk(WORDS[-1], USAGE["google"], finishReason="STOP")]


def whole_answer(shape: str) -> dict[str, Any]:
    if shape == "google":
        return {"candidates": [{"finishReason": "STOP"}], "usageMetadata": USAGE[shape]}
    return {"id": "1", "content": "".join(WORDS), "usage": USAGE[shape]}


@dataclass
class ScriptedService:
    """A service of models on loopback. `answer`: what it does instead of answering as it should."""

    url: str = ""
    asked: list[tuple[str, Mapping[str, str], dict[str, Any]]] = field(default_factory=list)
    answer: Answerer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append((request.raw_path, request.headers, body))
        if self.answer is not None:
            found = self.answer(request, body)
            return await found if asyncio.iscoroutine(found) else found  # type: ignore[no-any-return]
        shape = request.path.rpartition("/")[2].replace("completions", "chat")
        if shape.endswith(":countTokens"):
            return web.json_response({"totalTokens": 7})
        if shape.endswith("GenerateContent"):
            return await stream(request, google_stream())
        if shape.endswith(":generateContent"):
            return web.json_response(whole_answer("google"))
        if shape == "count_tokens":
            return web.json_response({"input_tokens": 7})
        if not body.get("stream"):
            return web.json_response(whole_answer(shape))
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        events = {"messages": messages_stream, "responses": responses_stream}.get(
            shape, lambda: chat_stream(usage=usage)
        )
        return await stream(request, events())

    @property
    def last(self) -> dict[str, Any]:
        """The last request's body."""
        return self.asked[-1][2]


async def stream(request: web.Request, events: list[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(event)
    return response


@asynccontextmanager
async def a_service() -> AsyncIterator[ScriptedService]:
    service = ScriptedService()
    app = web.Application(client_max_size=64 * 1024**2)
    app.router.add_post("/{tail:.*}", service.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield service
    finally:
        await runner.cleanup()


@dataclass
class CountedModels:
    """What metrics were told."""

    results: list[str] = field(default_factory=list)
    tokens: int = 0

    def model_answered(self, result: str, seconds: float, tokens: int) -> None:
        del seconds
        self.results.append(result)
        self.tokens += tokens


@dataclass
class GatewayYard:
    """What tests of the gateway work with: one sandbox, its socket, and an agent's turn in it."""

    agents: AgentYard
    config: Config
    service: ScriptedService
    gateway: ModelGateway
    metrics: CountedModels
    folder: Path
    sandbox_id: SandboxId
    turn_id: TurnId
    socket: Path

    async def used(self) -> int:
        """What counts for the sandbox."""
        return await self.agents.yard.read(lambda tx: model_uses.used_in(tx, self.sandbox_id))

    async def ask(
        self, path: str = "/local/v1/chat/completions", body: object = None, **more: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request over the socket: status, headers, body."""
        async with client(self.socket) as session, session.post(f"http://gateway{path}", **_body(body, more)) as answer:
            return answer.status, answer.headers, await answer.read()

    async def refused(
        self, path: str = "/local/v1/chat/completions", body: object = None, **more: Any
    ) -> tuple[int, str]:
        """The status and the message of a request that is refused."""
        status, _, answer = await self.ask(path, body, **more)
        return status, json.loads(answer)["error"]["message"]

    @asynccontextmanager
    async def neighbour(self) -> AsyncIterator[Path]:
        """The socket of another sandbox, in which another turn runs."""
        other = a_merge_request(2)
        await self.agents.ready(other)
        turn_id = await self.agents.taken(mr=other.ref, thread="$other")
        await self.agents.promote()
        sandbox_id = (await self.agents.given(turn_id)).sandbox_id
        socket = self.folder / "other.sock"
        async with self.gateway.serve(sandbox_id, socket):
            yield socket

    async def raw(self, sent: bytes, seconds: float = 5) -> bytes:
        """What is answered to these bytes, until the connection is closed."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            writer.write(sent)
            async with asyncio.timeout(seconds):
                return await reader.read()
        finally:
            writer.close()

    async def settled(self, tokens: int) -> None:
        """Wait until so much counts for the sandbox."""
        async with asyncio.timeout(60):
            while await self.used() != tokens:
                await asyncio.sleep(0.005)


def _body(body: object, more: dict[str, Any]) -> dict[str, Any]:
    return more if "data" in more else {"json": a_request() if body is None else body, **more}


def a_request(**more: object) -> dict[str, Any]:
    """A request that every API of models takes as far as its path's keys go."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **more}


@asynccontextmanager
async def client(socket: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
        yield session


def a_model(url: str, name: str = "local", **more: Any) -> ModelConfig:
    known: dict[str, Any] = {
        "name": name, "url": url, "allow": ["tiny", "claude-*"],
        "paths": ["/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions", "/v1/responses"],
    }  # fmt: skip
    return ModelConfig.model_validate({**known, **more})


@asynccontextmanager
async def a_gateway(
    folder: Path,
    *,
    models: Callable[[str], tuple[ModelConfig, ...]] = lambda url: (a_model(url),),
    sandbox_tokens: int = 10**9,
    person_tokens: int = 10**9,
    agent_tokens: int = 10**9,
    runs: bool = True,
    upstream: UpstreamLimits | None = None,
    limits: GatewayLimits | None = None,
    exchange: ExchangeLimits | None = None,
) -> AsyncIterator[GatewayYard]:
    """A gateway, one sandbox with its socket, and `coder`, whose turn runs in it unless `runs` is false."""
    coder = an_agent(models=["local"], limits={"tokens_per_day": agent_tokens})
    async with a_service() as service, an_agent_yard(folder / "state", coder, an_agent("reviewer")) as agents:
        await agents.ready()
        turn_id = await agents.taken()
        await agents.promote()
        sandbox_id = (await agents.given(turn_id)).sandbox_id
        if not runs:
            await agents.ended(turn_id)
        budgets = Budgets(
            person=PersonBudget(messages_per_day=500, tokens_per_day=person_tokens),
            sandbox=SandboxBudget(tokens=sandbox_tokens),
        )
        config = agents.config.model_copy(update={"models": models(service.url), "budgets": budgets})
        telling = replace(agents.desk.telling, config=config)
        metrics = CountedModels()
        parts = ExchangeParts(
            config.models,
            ModelAccounts(config, agents.yard.database, telling),
            Upstream({"local": KEY}, upstream or UpstreamLimits()),
            parse_threads(),
            exchange or ExchangeLimits(),
        )
        quick = limits or GatewayLimits(refusal_seconds=0)
        gateway = ModelGateway(parts, metrics, quick)
        socket = folder / "models.sock"
        try:
            async with gateway.serve(sandbox_id, socket):
                yield GatewayYard(agents, config, service, gateway, metrics, folder, sandbox_id, turn_id, socket)
        finally:
            await gateway.close()


def serve_until_killed(state_dir: Path, config: Config, sandbox_id: SandboxId, socket: Path) -> None:
    """What a process of its own runs: a gateway over that database, which is killed by whoever started it."""
    asyncio.run(_serve(state_dir, config, sandbox_id, socket))


async def _serve(state_dir: Path, config: Config, sandbox_id: SandboxId, socket: Path) -> None:
    async with Database(state_dir / "ravebot.db", SystemClock()) as database:
        accounts = ModelAccounts(config, database, ConversationTelling(config))
        parts = ExchangeParts(config.models, accounts, Upstream({"local": KEY}), parse_threads())
        async with ModelGateway(parts, CountedModels()).serve(sandbox_id, socket):
            await asyncio.Event().wait()
