"""One door of one sandbox: its socket, served in a task of its own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from ravebot.agents.transports.contract import DoorServer
from ravebot.errors import Unavailable
from ravebot.sandboxes.model import SandboxId

log = structlog.get_logger()

_MAX_PATH_BYTES = 107  # sockaddr_un, unix(7)


class ServedDoor:
    """Serves a socket from `begin` to `close`. Whoever serves may use scopes that belong to a task: so it has one."""

    def __init__(self, server: DoorServer, sandbox_id: SandboxId, folder: Path) -> None:
        self._server, self._sandbox_id, self._folder = server, sandbox_id, folder
        self._stop = asyncio.Event()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Returns when it listens. Raises Unavailable."""
        self._task = asyncio.create_task(self._serve())
        try:
            await asyncio.shield(self._ready)
        except OSError as error:
            why = error.strerror or error
            raise Unavailable(f"the socket of the agents' door `{self._server.name}` can't be made: {why}") from error

    async def close(self) -> None:
        """End it, and what is open in it; the socket is removed."""
        self._stop.set()
        if self._task is None:
            return
        await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()):
            log.error(
                "an agents' door did not end well: this is a bug of ravebot's", door=self._server.name, exc_info=error
            )

    async def _serve(self) -> None:
        descriptor = -1
        path = self._folder / f"{self._server.name}.sock"
        try:
            if len(os.fsencode(path)) > _MAX_PATH_BYTES:  # a shorter name for the same folder
                descriptor = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                path = Path(f"/proc/self/fd/{descriptor}") / path.name
            path.unlink(missing_ok=True)
            async with self._server.serve(self._sandbox_id, path):
                path.chmod(0o600)
                self._ready.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            if self._ready.done():
                raise
            # Whoever waits for it raises it, also when this task is cancelled: it would wait for ever.
            self._ready.set_exception(error if isinstance(error, Exception) else OSError("it was ended"))
            self._ready.exception()
        finally:
            path.unlink(missing_ok=True)
            if descriptor >= 0:
                os.close(descriptor)
