"""Acts that are carried out once for each idempotency key, and the first answers, which are given again for a day.

An answer often repeats what was asked, such as a command: that is not stored, since the same request has it again.
No answer is forgotten before its day is over; a token that keeps as many as there is room for begins nothing new with
a key until then.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel
from pydantic_core import to_json

from ravebot.store import api_tokens
from ravebot.store.api_tokens import KEEP_ANSWERS, KeptAnswer, KeptSize, TokenId
from ravebot.store.database import Transaction, dump_json
from ravebot.tools.problems import ProblemKind, ToolProblem

MOST_KEYS = 10_000
MOST_BYTES = 16 * 1024 * 1024
"""Of one token's answers; the last one may go beyond it."""
_ASKED = "$asked"
"""Where a stored answer names what is as it was asked; no answer has such a name of its own."""


@dataclass(frozen=True)
class Kept:
    """An answer that was given before."""

    status: int
    body: Mapping[str, object]


@dataclass(frozen=True)
class Once:
    """A request with a key."""

    tool: str
    asked: BaseModel
    token_id: TokenId
    key: str

    def answered(self, tx: Transaction) -> Kept | ToolProblem | None:
        """What it was answered before; a problem: the key was for another request."""
        kept = api_tokens.answered(tx, self.token_id, self.key)
        if kept is None:
            return None
        if kept.request != self._digest():
            why = "This idempotency key was used for another request: take a new one for each."
            return ToolProblem(ProblemKind.INVALID, why)
        body = json.loads(kept.body)
        given = self._given()
        for name in body.pop(_ASKED, ()):
            body[name] = given[name]
        return Kept(kept.status, body)

    def keep(self, tx: Transaction, status: int, body: Mapping[str, object]) -> int:
        """Store the answer, in the transaction that carried the request out; returns its size in bytes."""
        given = self._given()
        same = [name for name in body if name in given and given[name] == body[name]]
        short = {**body, **dict.fromkeys(same), _ASKED: same}
        kept = KeptAnswer(self._digest(), status, dump_json(short if same else dict(body)))
        return api_tokens.keep_answer(tx, self.token_id, self.key, kept)

    def _given(self) -> dict[str, object]:
        return self.asked.model_dump(mode="json")

    def _digest(self) -> str:
        canonical = json.dumps(json.loads(to_json(self.asked)), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{self.tool} {canonical}".encode()).hexdigest()


@dataclass
class RoomForAnswers:
    """Knows of each token that there are at most so many answers, and counts again once that is too many.

    What is known is never too little, because answers only go by themselves: after a day, or with a transaction that
    failed.
    """

    most_keys: int = MOST_KEYS
    most_bytes: int = MOST_BYTES
    count_every_seconds: float = 60.0
    _known: dict[TokenId, tuple[KeptSize, float]] = field(default_factory=dict)

    def take(self, tx: Transaction, token_id: TokenId) -> None:
        """Raises ToolProblem if there is no room for another answer."""
        size, counted_at = self._known.get(token_id, (None, 0.0))
        if size is None or (self._is_full(size) and time.monotonic() - counted_at >= self.count_every_seconds):
            size = api_tokens.kept(tx, token_id)
            self._known[token_id] = size, time.monotonic()
        if not self._is_full(size):
            return
        oldest = size.oldest or tx.now
        wait = max(self.count_every_seconds, (oldest + KEEP_ANSWERS - tx.now).total_seconds())
        why = (
            f"This token keeps {size.keys:,} answers to idempotency keys of the last 24 hours, for more there is no"
            " room: wait, or leave the key out where doing it twice would harm nothing."
        )
        raise ToolProblem(ProblemKind.TOO_OFTEN, why, wait)

    def added(self, token_id: TokenId, size_bytes: int) -> None:
        """Another answer was stored."""
        known, counted_at = self._known[token_id]
        self._known[token_id] = known.with_another(size_bytes), counted_at

    def _is_full(self, size: KeptSize) -> bool:
        return size.keys >= self.most_keys or size.bytes >= self.most_bytes
