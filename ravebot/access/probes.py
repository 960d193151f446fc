"""HTTP checks of a guest's web port, made from the host; limited in time and size, since no guest is trusted."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import aiohttp

from ravebot.errors import GuestError, GuestTimeout

_ONE_TRY_SECONDS = 2.0
_TLS_SECONDS = 0.5


class HttpProbe:
    """Implements `WebProbe`. Certificates are not verified: the guest's is self-signed."""

    async def scheme(self, address: str, port: int) -> str | None:
        """`https` or `http`, whichever answers (`https` if both do); None if neither does."""
        async with asyncio.TaskGroup() as group:
            https = group.create_task(_answers(f"https://{address}:{port}/"))
            http = group.create_task(_answers(f"http://{address}:{port}/"))
            if await http:  # a TLS server may also answer plain HTTP, with an error
                await asyncio.wait({https}, timeout=_TLS_SECONDS)
                https.cancel()
        if not https.cancelled() and https.result():
            return "https"
        return "http" if http.result() else None

    async def expect(self, address: str, port: int, path: str, timeout: timedelta) -> None:
        """Wait for a status below 400 from GET `path`. Raises GuestError for a 4xx, and GuestTimeout."""
        said = "nothing"
        scheme = "http"
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                while True:
                    scheme = await self.scheme(address, port) or scheme
                    try:
                        status = await _status(f"{scheme}://{address}:{port}{path}")
                    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                        said = str(error) or type(error).__name__
                    else:
                        if status < 400:
                            return
                        if status < 500:
                            raise GuestError(f"GET {path} returned status {status}")
                        said = f"{status}"
                    await asyncio.sleep(0.5)
        except TimeoutError as error:
            raise GuestTimeout(f"GET {path} did not succeed within {timeout}; the last answer: {said}") from error


async def _answers(url: str) -> bool:
    try:
        await _status(url)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return False
    return True


async def _status(url: str) -> int:
    timeout = aiohttp.ClientTimeout(total=_ONE_TRY_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session,
        session.get(url, ssl=False, allow_redirects=False) as response,
    ):
        return response.status
