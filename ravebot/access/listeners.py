"""The TCP ports on which the host itself listens: sandboxes do not get these."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import psutil

from ravebot.errors import Unavailable

_THREADS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="listeners")


async def listening_ports() -> frozenset[int]:
    """The host's listening TCP ports, on any address. Raises Unavailable if they can't be read."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, _read)


def _read() -> frozenset[int]:
    try:
        sockets = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError) as error:
        raise Unavailable(f"the host's listening ports can't be read: {error}") from error
    return frozenset(socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN and socket.laddr)
