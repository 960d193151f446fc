"""What the checks of Matrix and GitLab share: requests with limits, and the difference of the clocks."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp

from ravebot.errors import Unavailable
from ravebot.gitlab.route import DIRECT, GitlabRoute

_TIMEOUT = aiohttp.ClientTimeout(total=10)
_MAX_BYTES = 4 * 1024 * 1024


class NotTrusted(Unavailable):
    """The server has no certificate that this host trusts, or speaks no TLS at all."""


def mend(error: Unavailable, key: str) -> str:
    """What to do when the address that `key` names can't be reached."""
    if isinstance(error, NotTrusted):
        named = "name the file of its own CA in gitlab.ca_file; or " if key == "gitlab.url" else ""
        return (
            f"correct {key}; or {named}add the certificate of the server's own CA to this host, in"
            " /usr/local/share/ca-certificates, and run update-ca-certificates"
        )
    return f"correct {key}, or the network, name server or proxy between this host and it"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `body` is its JSON, or None. `ahead_seconds`: how far our clock is ahead."""

    status: int
    body: object
    ahead_seconds: float | None

    def field(self, *keys: str) -> object:
        """The value at those keys of nested objects; None if there is none."""
        value = self.body
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True, repr=False)
class GitlabAccess:
    """A token of GitLab's, and the way there."""

    token: str
    route: GitlabRoute

    async def get(self, url: str) -> Answer:
        return await get(url, {"PRIVATE-TOKEN": self.token}, self.route)


async def get(url: str, headers: dict[str, str] | None = None, route: GitlabRoute = DIRECT) -> Answer:
    """One GET without redirects, which could send tokens elsewhere. Raises Unavailable with the reason."""
    return await _request("GET", url, headers, route=route)


async def post(url: str, body: dict[str, object], headers: dict[str, str] | None = None) -> Answer:
    """One POST of JSON, otherwise like `get`."""
    return await _request("POST", url, headers, body)


async def _request(
    method: str,
    url: str,
    headers: dict[str, str] | None,
    body: dict[str, object] | None = None,
    route: GitlabRoute = DIRECT,
) -> Answer:
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.request(
                method, url, headers=headers, json=body, allow_redirects=False, proxy=route.proxy, ssl=route.tls()
            ) as response,
        ):
            raw = await _read(response)
            return Answer(response.status, _json(raw), _ahead(response.headers.get("Date")))
    except TimeoutError as error:
        raise Unavailable("no answer within 10 s") from error
    except aiohttp.ClientConnectorCertificateError as error:
        why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        raise NotTrusted(f"its certificate is not trusted: {why}") from error
    except aiohttp.ClientConnectorSSLError as error:
        raise NotTrusted(f"TLS fails: {reason(error.os_error)}") from error
    except aiohttp.ClientProxyConnectionError as error:
        raise Unavailable(f"the proxy (gitlab.proxy) can't be reached: {reason(error.os_error)}") from error
    except aiohttp.ClientHttpProxyError as error:  # its text has the proxy's address with the login
        raise Unavailable(f"the proxy (gitlab.proxy) does not connect: it answers {error.status}") from None
    except aiohttp.ClientConnectorError as error:
        raise Unavailable(reason(error.os_error)) from error
    except (aiohttp.ClientError, ValueError) as error:
        raise Unavailable(str(error) or type(error).__name__) from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole answer: one read returns only what has arrived. Raises Unavailable if it is too large."""
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > _MAX_BYTES:
            raise Unavailable(f"an answer of more than {_MAX_BYTES} bytes")
    return bytes(raw)


def reason(error: OSError) -> str:
    """The system's own words, without what asyncio writes around them."""
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _json(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _ahead(date: str | None) -> float | None:
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    if theirs.tzinfo is None:
        return None
    return (datetime.now(UTC) - theirs).total_seconds()
