"""GitLab's public keys, with which it signs the tokens of jobs; read from GitLab and kept for an hour.

https://docs.gitlab.com/ci/secrets/id_token_authentication/. Anybody can name a key in a token, so GitLab is asked at
most once a minute, and everybody who waits for that shares the answer. While it does not answer, known keys go on
working.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from ravebot.errors import RavebotError, Unavailable
from ravebot.gitlab.fields import Malformed

LARGEST_BYTES = 256 * 1024
"""Of GitLab's whole answer."""
ASK_EVERY_SECONDS, KEEP_SECONDS = 60.0, 3600.0
_ANSWER_SECONDS = 15.0
_MOST_KEYS, _LONGEST_KID, _FEWEST_BITS, _MOST_BITS = 50, 200, 2048, 16_384
log = structlog.get_logger()


class UnknownKey(RavebotError):
    """GitLab has no such key."""


class KeyNotYet(Unavailable):
    """The key is not known, and GitLab may not be asked for it yet."""


@dataclass
class JobKeys:
    """`fetch` reads GitLab's JSON Web Key Set; it raises Unavailable. `monotonic`: a clock in seconds."""

    fetch: Callable[[], Awaitable[bytes]]
    monotonic: Callable[[], float] = time.monotonic
    _known: Mapping[str, RSAPublicKey] = field(default_factory=dict)
    _read_at: float | None = None
    _asked_at: float | None = None
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def key(self, kid: str, *, ask: bool = True) -> RSAPublicKey:
        """The key of that name. Raises UnknownKey, and Unavailable while GitLab can't be asked for it.

        Without `ask` GitLab is not asked because a token names a key that is not known.
        """
        known = self._known.get(kid)
        if known is not None and (self._is_fresh() or self._asking.locked() or self._waits() > 0):
            return known
        if known is None and not ask:
            raise KeyNotYet("the token's key is not known", self._waits() or 1.0)
        async with self._asking:
            if kid in self._known and self._is_fresh():  # who came before us has read them
                return self._known[kid]
            if wait := self._waits():
                raise KeyNotYet("GitLab was asked for its keys just now, and this token's was not there", wait)
            self._asked_at = self.monotonic()
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    self._known = read_keys(await self.fetch())
                self._read_at = self.monotonic()
            except (RavebotError, TimeoutError) as error:
                log.warning("the keys of jobs' tokens can't be read", error=str(error) or "no answer in time")
                if known is not None:
                    return known
                why = "GitLab does not give the keys by which tokens of jobs are checked"
                raise Unavailable(why, ASK_EVERY_SECONDS) from error
        try:
            return self._known[kid]
        except KeyError:
            raise UnknownKey("GitLab has no such key") from None

    def _is_fresh(self) -> bool:
        return self._read_at is not None and self.monotonic() - self._read_at < KEEP_SECONDS

    def _waits(self) -> float:
        """Seconds until GitLab may be asked again."""
        return 0.0 if self._asked_at is None else max(0.0, self._asked_at + ASK_EVERY_SECONDS - self.monotonic())


def read_keys(raw: bytes) -> dict[str, RSAPublicKey]:
    """The RSA keys for signatures in a JSON Web Key Set (RFC 7517), by name. Raises Malformed if there is none."""
    try:
        listed = json.loads(raw)["keys"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise Malformed("no JSON Web Key Set") from None
    found: dict[str, RSAPublicKey] = {}
    for one in listed[:_MOST_KEYS] if isinstance(listed, list) else ():
        if not isinstance(one, dict) or one.get("kty") != "RSA":
            continue
        if one.get("use", "sig") != "sig" or one.get("alg", "RS256") != "RS256":
            continue
        kid = one.get("kid")
        if not isinstance(kid, str) or not 0 < len(kid) <= _LONGEST_KID:
            continue
        try:
            key = PyJWK.from_dict(one, algorithm="RS256").key
        except (PyJWTError, ValueError, TypeError):
            continue
        if isinstance(key, RSAPublicKey) and _FEWEST_BITS <= key.key_size <= _MOST_BITS:
            found[kid] = key
    if not found:
        raise Malformed("a key set without an RSA key for signatures")
    return found
