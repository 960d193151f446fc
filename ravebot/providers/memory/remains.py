"""`ravebot.providers.base.Remains` on a host in memory."""

from __future__ import annotations

from ravebot.providers.base import Holdings
from ravebot.providers.memory.host import MemoryHost


class MemoryRemains:
    """Finds and removes only what the instance of that id has there."""

    def __init__(self, host: MemoryHost, instance_id: str) -> None:
        self._host = host
        self._instance_id = instance_id

    async def look(self) -> Holdings:
        return self._host.holdings(self._instance_id)

    async def delete(self, name: str) -> None:
        if self._host.find(name, self._instance_id) is not None:
            self._host.undefine(name)

    async def delete_volume(self, volume: str) -> None:
        if volume in self._host.holdings(self._instance_id).volumes:
            del self._host.volumes[volume]

    async def remove(self) -> tuple[str, ...]:
        return self._host.clear(self._instance_id)

    async def close(self) -> None:
        """Nothing to close."""
