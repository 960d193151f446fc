"""Sends one webhook by HTTP: bounded in time, no redirect followed, nothing of the answer read but its status."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Mapping
from contextlib import suppress

import aiohttp

from ravebot.agents.transports.webhook.outcomes import Posted, PostEnd

TOTAL_SECONDS = 15.0
_CONNECT_SECONDS = 5.0
_LONGEST_LINE = 8190


class WebhookPoster:
    """One client for all webhooks; nothing is shared between two requests, no connection, no cookie."""

    def __init__(self, total_seconds: float = TOTAL_SECONDS) -> None:
        self._total_seconds = total_seconds
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Posted:
        """Send it, and say what came of it; raises nothing."""
        session = self._session = self._session or self._opened()
        try:
            response = await session.post(
                url, data=body, headers={**headers, "content-type": "application/json"}, allow_redirects=False
            )
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            return Posted(PostEnd.UNREACHED, why=f"can't be trusted: {_tls(error)}")
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            return Posted(PostEnd.UNREACHED, why=f"can't be reached: {_connecting(error)}")
        except TimeoutError:
            return Posted(PostEnd.SILENT, why=f"did not answer within {self._total_seconds:g} s")
        except (aiohttp.ClientError, OSError, ValueError):
            return Posted(PostEnd.SILENT, why="closed the connection, or sent something that is no answer in HTTP")
        status, asked = response.status, _seconds(response.headers.get("Retry-After", ""))
        response.close()  # the rest of the answer is not read
        return Posted(PostEnd.ANSWERED, status, asked_seconds=asked)

    def _opened(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # Without a limit: who waits for a place would be taken for a receiver that does not answer.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=self._total_seconds, sock_connect=_CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "ravebot"},
            trust_env=False,
            auto_decompress=False,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
        )


def _seconds(retry_after: str) -> float | None:
    """The form in seconds; a date, which depends on the receiver's clock, is not read."""
    with suppress(ValueError):
        seconds = float(retry_after[:20])
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    return None


def _connecting(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not found"
    if isinstance(error, aiohttp.ClientConnectorError):
        return os.strerror(error.os_error.errno).lower() if error.os_error.errno else "no connection"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    return "its address can't be used"


def _tls(error: Exception) -> str:
    reason = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return str(getattr(reason, "verify_message", "") or getattr(reason, "reason", "") or "no TLS connection")[:100]
