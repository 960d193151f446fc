"""A little server behind an agent's door, which says for which sandbox it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from ravebot.config.model import AgentConfig
from ravebot.sandboxes.model import SandboxId
from tests.support.sshd import free_port


@dataclass
class LittleDoor:
    """Behind the door `name`. `paths`: of the sockets that it had; `held`: connections now, and at most."""

    name: str
    port: int = field(default_factory=free_port)
    paths: list[Path] = field(default_factory=list)
    held: int = 0
    most_held: int = 0
    fails: OSError | None = None

    @property
    def path(self) -> str:
        return f"/{self.name}" if self.name == "mcp" else ""

    def is_for(self, agent: AgentConfig) -> bool:
        return self.name != "models" or bool(agent.models)

    @asynccontextmanager
    async def serve(self, sandbox_id: SandboxId, path: Path) -> AsyncIterator[None]:
        if self.fails:
            raise self.fails

        async def answer(request: web.Request) -> web.Response:
            return web.Response(text=f"{self.name} of sandbox {sandbox_id} at {request.path}")

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        server = runner.server
        assert server

        def connected() -> asyncio.BaseProtocol:
            self.held = len(server.connections) + 1
            self.most_held = max(self.most_held, self.held)
            return server()

        listening = await asyncio.get_running_loop().create_unix_server(connected, str(path))
        self.paths.append(path)
        try:
            yield
        finally:
            listening.close()
            await runner.cleanup()
