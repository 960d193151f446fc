"""Tells the service manager how far the bot is: sd_notify(3), without a library for one datagram."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

READY, STOPPING = "READY=1", "STOPPING=1"


def tell(state: str, address: str | None = None) -> None:
    """Send the state to the socket that the service manager named; nothing happens without one, as in a shell."""
    address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1)
        with suppress(OSError):  # the manager then waits until its own time limit, and says so
            sender.sendto(state.encode(), b"\0" + address[1:].encode() if address[0] == "@" else address)
