"""Sends one webhook by HTTP: bounded in time and in what is read, no redirect followed, only the answer's status used.

Built of h11: aiohttp's client would go on parsing announcements of an answer (`100 Continue`), in our event loop.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

import h11
from yarl import URL

from ravebot.agents.transports.webhook.outcomes import Posted, PostEnd

TOTAL_SECONDS = 15.0
_CHUNK_BYTES = 4096
_LARGEST_HEAD_BYTES = 16 * 1024
"""Of the answer, with all that announces it."""


class WebhookPoster:
    """Nothing is shared between two requests, no connection, no cookie."""

    def __init__(self, total_seconds: float = TOTAL_SECONDS) -> None:
        self._total_seconds = total_seconds

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Posted:
        """Send it, and say what came of it; raises nothing."""
        until = asyncio.get_running_loop().time() + self._total_seconds
        try:
            target = URL(url)
            async with asyncio.timeout_at(until):
                reader, writer = await _connected(target)
        except (ssl.SSLError, ssl.CertificateError) as error:
            return Posted(PostEnd.UNREACHED, why=f"can't be trusted: {_tls(error)}")
        except (OSError, ValueError) as error:
            return Posted(PostEnd.UNREACHED, why=f"can't be reached: {_connecting(error)}")
        try:
            async with asyncio.timeout_at(until):
                return await _asked(reader, writer, target, body, headers)
        except TimeoutError:
            return Posted(PostEnd.SILENT, why=f"did not answer within {self._total_seconds:g} s")
        except (h11.ProtocolError, OSError):
            return Posted(PostEnd.SILENT, why="closed the connection, or sent something that is no answer in HTTP")
        finally:
            writer.transport.abort()  # the rest of the answer is not read


async def _connected(target: URL) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    secured = await asyncio.to_thread(_tls_context) if target.scheme == "https" else None
    return await asyncio.open_connection(
        target.raw_host, target.port, ssl=secured, limit=_CHUNK_BYTES, happy_eyeballs_delay=0.25
    )


@cache
def _tls_context() -> ssl.SSLContext:
    """Reads all certificates that this host trusts."""
    return ssl.create_default_context()


async def _asked(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: URL, body: bytes, headers: Mapping[str, str]
) -> Posted:
    """Raises h11.ProtocolError, OSError."""
    talk = h11.Connection(h11.CLIENT, _LARGEST_HEAD_BYTES)
    ours = {
        "host": target.host_port_subcomponent or "",
        "user-agent": "ravebot",
        "accept": "*/*",
        "connection": "close",
    }
    about = {"content-type": "application/json", "content-length": str(len(body))}
    request = h11.Request(method="POST", target=target.raw_path_qs, headers=list({**headers, **ours, **about}.items()))
    # It is not waited for until all is sent: a receiver may answer before it has read that.
    writer.writelines(
        [talk.send(request) or b"", talk.send(h11.Data(data=body)) or b"", talk.send(h11.EndOfMessage()) or b""]
    )
    came = 0
    while True:
        event = talk.next_event()
        if isinstance(event, h11.Response):
            fields = dict(event.headers)
            return Posted(PostEnd.ANSWERED, event.status_code, asked_seconds=_seconds(fields.get(b"retry-after", b"")))
        if event is not h11.NEED_DATA:
            continue
        if came > _LARGEST_HEAD_BYTES:
            raise h11.RemoteProtocolError("it announces an answer without end")
        chunk = await reader.read(_CHUNK_BYTES)
        came += len(chunk)
        talk.receive_data(chunk)


def _seconds(retry_after: bytes) -> float | None:
    """The form in seconds; a date, which depends on the receiver's clock, is not read."""
    with suppress(ValueError):
        seconds = float(retry_after[:20])
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    return None


def _connecting(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "its name is not found"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, OSError):
        return os.strerror(error.errno).lower() if error.errno else "no connection"
    return "its address can't be used"


def _tls(error: ssl.SSLError | ssl.CertificateError) -> str:
    return str(getattr(error, "verify_message", "") or getattr(error, "reason", "") or "no TLS connection")[:100]
