"""Lets callers with a valid token in, and makes wrong ones cheap: they are limited by address, and never logged.

An address that sent many wrong tokens costs no look-up any more. Whoever is behind the same proxy goes on: the hashes
of all valid tokens are read every few seconds while that lasts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from ravebot.clock import age
from ravebot.errors import StoreError
from ravebot.store import api_tokens
from ravebot.store.api_tokens import USED_EVERY, ApiToken
from ravebot.store.database import Database, Transaction
from ravebot.tools import tokens
from ravebot.tools.callers.token import HOW_TO_GET_ONE, TokenCaller
from ravebot.tools.limits import AtOnce, Buckets, CallRate
from ravebot.tools.problems import ProblemKind, ToolProblem
from ravebot.web.api.addresses import network_of

WRONG = CallRate(burst=20, per_second=0.5)
REQUESTS = CallRate(burst=120, per_second=20)
MOST_AT_ONCE = 16
"""Requests of one token; some wait up to 25 seconds."""
_LONGEST_HEADER = 200
_REMEMBER_SECONDS = 5.0


@dataclass
class Gate:
    """Knows tokens by their hashes."""

    database: Database
    requests: Buckets = field(default_factory=lambda: Buckets(REQUESTS))
    _wrong: Buckets = field(default_factory=lambda: Buckets(WRONG))
    _at_once: AtOnce = field(default_factory=lambda: AtOnce(MOST_AT_ONCE))
    _valid: frozenset[str] = frozenset()
    _valid_at: float = -_REMEMBER_SECONDS
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def caller(self, authorization: str, address: str) -> TokenCaller:
        """Whose token this is. Raises ToolProblem for one that is not valid, or if it is used too often."""
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text or len(text) > _LONGEST_HEADER:
            raise ToolProblem(ProblemKind.NO_TOKEN, f"Send `Authorization: Bearer TOKEN`. {HOW_TO_GET_ONE}")
        network = network_of(address)
        token_hash = tokens.hash_of(text.strip())
        if token_hash is None:
            self._wrong.take(network)
            why = "That is no token of ravebot's, or a part of one is missing: copy all of it, from `rave_` on."
            raise ToolProblem(ProblemKind.NO_TOKEN, why)
        token = await self._look_up(token_hash, network)
        if wait := self.requests.take(str(token.id)):
            raise _too_often("This token is used too often: 20 requests a second are allowed in the long run.", wait)
        return TokenCaller(token)

    @contextmanager
    def at_work(self, caller: TokenCaller) -> Iterator[None]:
        """While a request of a token is worked on. Raises ToolProblem if there are too many at once."""
        with self._at_once.entered(str(caller.token.id)) as has_room:
            if not has_room:
                raise _too_often(f"This token has {MOST_AT_ONCE} requests under way: wait for an answer first.", 1)
            yield

    async def _look_up(self, token_hash: str, network: str) -> ApiToken:
        if (wait := self._wrong.is_empty(network)) and token_hash not in await self._all_valid():
            raise _too_often("Too many wrong tokens came from your address.", wait)

        def look(tx: Transaction) -> tuple[ApiToken | None, str, bool]:
            found = api_tokens.by_hash(tx, token_hash)
            if found is None:
                return None, "is not known", False
            return found, found.problem(tx.now), found.used_at is None or age(found.used_at, tx.now) >= USED_EVERY

        token, problem, is_news = await self.database.read(look)
        if token is None or problem:
            self._wrong.take(network)
            raise ToolProblem(ProblemKind.NO_TOKEN, f"The token {problem}. {HOW_TO_GET_ONE}")
        if is_news:
            with suppress(StoreError):  # a full disk keeps nobody out who only looks
                await self.database.write(partial(api_tokens.used, token=token))
        return token

    async def _all_valid(self) -> frozenset[str]:
        async with self._reading:  # whoever comes meanwhile waits for it, and is not judged by what was before
            if time.monotonic() - self._valid_at >= _REMEMBER_SECONDS:
                self._valid = await self.database.read(api_tokens.valid_hashes)
                self._valid_at = time.monotonic()
            return self._valid


def _too_often(why: str, wait: float) -> ToolProblem:
    return ToolProblem(ProblemKind.TOO_OFTEN, f"{why} Wait {max(1, round(wait + 0.5))} s, then try again.", wait)
