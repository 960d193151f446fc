"""Large files for a guest, on a read-only disk that is plugged in for as long as it takes to copy them off.

The guest agent's channel takes 3 MB a second without KVM, a disk thirty times as much.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import structlog

from ravebot.errors import GuestError, MachineNotFound, ProviderError, RavebotError
from ravebot.providers.libvirt.connection import Connection, Handle
from ravebot.providers.libvirt.disks import Disks
from ravebot.providers.libvirt.domains import Domains
from ravebot.providers.libvirt.guest import GuestAgents, beside_of

log = structlog.get_logger()

LARGE_BYTES = 4 * 1024**2
"""From here on it is worth the half second that plugging takes."""
_UPLOAD_SECONDS = 300.0
_COPY_TIME = timedelta(minutes=10)
_UNSEEN = 66

# $1 the disk's serial, $2 how many bytes of it, $3 where to. A kernel takes a moment to find a new disk; where it finds
# none while it runs, the end is UNSEEN.
_COPY = """
for tick in $(seq 1 50); do
    for disk in /sys/block/vd*; do
        [ "$(cat "$disk/serial" 2>/dev/null)" = "$1" ] || continue
        dd bs=1M if="/dev/${disk##*/}" of="$3" && truncate -s "$2" "$3" && exit
        rm -f "$3"
        exit 1
    done
    sleep 0.1
done
exit UNSEEN
""".replace("UNSEEN", str(_UNSEEN))


class Parcels:
    """Carries files into guests."""

    def __init__(self, control: Connection, domains: Domains, disks: Disks, agents: GuestAgents) -> None:
        self._control = control
        self._domains = domains
        self._disks = disks
        self._agents = agents

    async def carry(self, name: str, source: Path, target: str, *, mode: int) -> bool:
        """Write a large host file to an absolute path in the guest; False where it has to go another way.

        Raises GuestError when the guest can't keep it, MachineNotFound, and Unavailable.
        """
        size_bytes = await asyncio.to_thread(_size, source)
        if size_bytes < LARGE_BYTES:
            return False
        beside, mark = beside_of(target), secrets.token_hex(6)
        volume = plugged = ""
        try:
            volume, path = await self._control.call(
                lambda handle: self._disks.upload(handle, name, mark, source), limit_seconds=_UPLOAD_SECONDS
            )
            plugged = await self._control.call(lambda handle: self._domains.plug_in(handle, name, path, mark))
            command = ("sh", "-c", _COPY, "sh", mark, str(size_bytes), beside)
            done = await self._agents.run(name, command, timeout=_COPY_TIME)
        except MachineNotFound:
            raise
        except ProviderError as error:
            log.info("large file goes by the agent's channel", machine=name, error=str(error))
            return False
        finally:
            await self._take_back(name, plugged, volume)
        if done.exit_code == _UNSEEN:
            log.info("large file goes by the agent's channel", machine=name, error="the guest sees no new disk")
            return False
        if done.exit_code != 0:
            raise GuestError(f"{target} could not be written in the guest: {done.output.strip()[-200:]}")
        await self._agents.put_in_place(name, beside, target, mode=mode)
        return True

    async def _take_back(self, name: str, plugged: str, volume: str) -> None:
        """What can't be taken back goes with the machine."""

        def work(handle: Handle) -> None:
            if plugged:
                self._domains.unplug(handle, name, plugged)
            if volume:
                self._disks.delete(handle, volume)

        if volume:
            with suppress(RavebotError):
                await self._control.call(work)


def _size(path: Path) -> int:
    """Nothing for what can't be read: whoever reads it says so."""
    with suppress(OSError):
        return path.stat().st_size
    return 0
