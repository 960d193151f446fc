"""Sends checked requests to the services of models, with ravebot's key, and says in plain words what went wrong."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from ravebot.agents.models.refusals import ModelRefusal
from ravebot.config.model import ModelConfig
from ravebot.config.modelapis import ModelApi

ANTHROPIC_VERSION = "2023-06-01"
_VERSION = re.compile(r"[0-9-]{1,20}")
_BETA = re.compile(r"[A-Za-z0-9._, -]{1,2000}")
_PASSED_BACK = ("Retry-After", "Retry-After-Ms", "X-Should-Retry", "Request-Id", "X-Request-Id")
_KINDS = ("application/json", "text/event-stream")
_MOST_CONNECTIONS = 256
_KEEP_SECONDS = 15.0
"""Shorter than services keep idle connections, so that a request seldom meets one that is being closed."""


class NotSent(ModelRefusal):
    """A request that the service did not get, so that it cost nothing."""


@dataclass(frozen=True)
class UpstreamLimits:
    """How long services may take. `silence_seconds`: until the next byte; some think for minutes without one."""

    connect_seconds: float = 10.0
    silence_seconds: float = 600.0


@dataclass
class Upstream:
    """The services of models. `keys`: by the model's configured name."""

    keys: Mapping[str, str] = field(repr=False)
    limits: UpstreamLimits = UpstreamLimits()
    _session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def send(
        self, config: ModelConfig, target: str, headers: Mapping[str, str], body: io.BytesIO, seconds: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; yields the answer's head. `seconds`: for all of it.

        Raises NotSent, or ModelRefusal if it can't be known what became of it.
        """
        timeout = aiohttp.ClientTimeout(
            total=seconds, connect=self.limits.connect_seconds, sock_read=self.limits.silence_seconds
        )
        url = URL(str(config.url).rstrip("/") + target, encoded=True)
        sending = self._opened().post(
            url,
            data=body,
            headers={**headers, **self._key(config)},
            allow_redirects=False,
            timeout=timeout,
        )
        del body  # it may be large, and answers take long
        try:
            answer = await sending
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSent(502, _unreachable(config, error)) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ModelRefusal(502, _broken(config, error)) from None
        del sending
        async with answer:
            yield answer

    def hidden(self, config: ModelConfig, text: bytes) -> bytes:
        """The text without the key, which a service may repeat in an error."""
        key = self.keys.get(config.name, "")
        return text.replace(key.encode(), b"[key]") if key else text

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_MOST_CONNECTIONS, keepalive_timeout=_KEEP_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    def _key(self, config: ModelConfig) -> Mapping[str, str]:
        key = self.keys.get(config.name)
        if key is None:
            return {}
        return {"Authorization": f"Bearer {key}"} if config.header == "authorization" else {config.header: key}


def headers_for(api: ModelApi, given: Mapping[str, str], *, stream: bool) -> dict[str, str]:
    """The headers of a request, of the client's only those that choose a version; never its Host or credentials."""
    headers = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream" if stream else "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "ravebot",
    }
    if api.is_anthropic:
        version, beta = given.get("anthropic-version", ""), given.get("anthropic-beta", "")
        headers["Anthropic-Version"] = version if _VERSION.fullmatch(version) else ANTHROPIC_VERSION
        if _BETA.fullmatch(beta):
            headers["Anthropic-Beta"] = beta
    return headers


def headers_back(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers of an answer that the client gets: none that names the account, and no cookies."""
    kind = answer.content_type if answer.content_type in _KINDS else "text/plain"
    kept = {name: answer.headers[name][:200] for name in _PASSED_BACK if name in answer.headers}
    return {**kept, "Content-Type": kind, "Cache-Control": "no-store"}


def refused_by_service(config: ModelConfig, status: int) -> ModelRefusal | None:
    """What is answered instead of an answer that only an admin can do something about; None: it is passed on."""
    if 300 <= status < 400:
        return NotSent(
            502,
            f"the service of {config.name} answered with a redirect ({status}), which ravebot does not follow."
            " An admin of ravebot has to correct models[].url.",
        )
    if status in (401, 403) and config.key_file is not None:
        return NotSent(
            403,
            f"the service of {config.name} refused ravebot's key ({status})."
            " An admin of ravebot has to put a valid one into models[].key_file.",
        )
    if not 200 <= status < 300 and status < 400:
        return ModelRefusal(502, f"the service of {config.name} gave an answer that is none ({status}).")
    return None


def _unreachable(config: ModelConfig, error: Exception) -> str:
    reason = "" if isinstance(error, TimeoutError) else f" ({_reason(error)})"
    return (
        f"the service of {config.name} can't be reached{reason}. Try again later; if it stays so, an admin of ravebot"
        " looks at models[].url and the host's network."
    )


def _broken(config: ModelConfig, error: Exception) -> str:
    took = "took too long" if isinstance(error, TimeoutError | asyncio.TimeoutError) else "broke the connection"
    return f"the service of {config.name} {took} before it answered. Try again."


def _reason(error: Exception) -> str:
    """Without the address, which asyncio writes around the system's words."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(error).__name__
