"""Tokens for the API: who made them, what they may, until when; and the answers that idempotency keys give again.

Only a token's hash is stored. A look-up goes by that hash, so that its time says nothing about tokens that exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType

from ravebot.clock import from_us, to_us
from ravebot.sandboxes.model import Actor, EventKind
from ravebot.store import events
from ravebot.store.database import Transaction
from ravebot.store.rows import dump, load

TokenId = NewType("TokenId", int)
USED_EVERY = timedelta(minutes=1)
KEEP_ANSWERS = timedelta(hours=24)


class Scope(StrEnum):
    """What a token may, besides saying whose it is."""

    READ = "read"  # look at sandboxes, runs, logs, changes, messages and approvals
    SANDBOX = "sandbox"  # start, extend and stop sandboxes
    RUN = "run"  # run commands in sandboxes
    MESSAGE = "message"  # say something to agents
    AGENT = "agent"  # be the agent: take its messages, and answer them


@dataclass(frozen=True)
class ApiToken:
    """`owner`: the GitLab user; the token may never do more than they. `agent`: whose messages it takes; or empty."""

    id: TokenId
    owner: str
    name: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...]
    agent: str
    created_at: datetime
    created_by: str
    expires_at: datetime
    used_at: datetime | None = None
    revoked_at: datetime | None = None
    revoked_by: str = ""

    @property
    def actor(self) -> Actor:
        """In whose name is done what it does."""
        return Actor("gitlab", self.owner)

    def problem(self, now: datetime) -> str:
        """Why it is not valid any more; empty: it is."""
        if self.revoked_at is not None:
            return "was revoked"
        return "has expired" if now >= self.expires_at else ""

    def has(self, scope: Scope) -> bool:
        return scope.value in self.scopes


@dataclass(frozen=True)
class KeptAnswer:
    """The first answer to a request. `request`: the hash of what was asked."""

    request: str
    status: int
    body: str


@dataclass(frozen=True)
class KeptSize:
    """How much is kept of one token's answers, and since when."""

    keys: int
    bytes: int
    oldest: datetime | None

    def with_another(self, size_bytes: int) -> KeptSize:
        return replace(self, keys=self.keys + 1, bytes=self.bytes + size_bytes)


def add(tx: Transaction, token: ApiToken, token_hash: str, by: Actor) -> ApiToken:
    """Store a new token; its id is chosen here."""
    row_id = tx.insert("api_tokens", dump(token, without=("id",)) | {"hash": token_hash})
    found = get(tx, TokenId(row_id))
    assert found
    _log(tx, EventKind.TOKEN_CREATED, found, by)
    return found


def get(tx: Transaction, token_id: TokenId) -> ApiToken | None:
    if not 0 < token_id < 2**63:  # of a number that a person wrote, SQLite takes only these
        return None
    row = tx.one("SELECT * FROM api_tokens WHERE id = ?", (token_id,))
    return load(ApiToken, row) if row else None


def by_hash(tx: Transaction, token_hash: str) -> ApiToken | None:
    """The token of that hash, valid or not."""
    row = tx.one("SELECT * FROM api_tokens WHERE hash = ?", (token_hash,))
    return load(ApiToken, row) if row else None


def valid_hashes(tx: Transaction) -> frozenset[str]:
    """The hashes of all tokens that are valid now."""
    rows = tx.all("SELECT hash FROM api_tokens WHERE revoked_at IS NULL AND expires_at > ?", (tx.now_us,))
    return frozenset(row["hash"] for row in rows)


def listed(tx: Transaction, owner: str | None = None) -> tuple[ApiToken, ...]:
    """One person's tokens, or everybody's, the newest first; those that ended more than 30 days ago are left out."""
    ended = to_us(tx.now - timedelta(days=30))
    rows = tx.all(
        "SELECT * FROM api_tokens WHERE (? IS NULL OR owner = ?) AND COALESCE(revoked_at, expires_at) > ?"
        " ORDER BY id DESC LIMIT 1000",
        (owner, owner, ended),
    )
    return tuple(load(ApiToken, row) for row in rows)


def used(tx: Transaction, token: ApiToken) -> None:
    """Remember that it was used now."""
    tx.execute("UPDATE api_tokens SET used_at = ? WHERE id = ?", (tx.now_us, token.id))


def revoke(tx: Transaction, token: ApiToken, by: Actor) -> bool:
    """End a token for good; False if it was revoked before."""
    done = tx.changed(
        "UPDATE api_tokens SET revoked_at = ?, revoked_by = ? WHERE id = ? AND revoked_at IS NULL",
        (tx.now_us, str(by), token.id),
    )
    if done:
        _log(tx, EventKind.TOKEN_REVOKED, token, by)
    return bool(done)


def end_all(tx: Transaction) -> None:
    """Revoke every token, in a database of any version."""
    if tx.one("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'api_tokens'"):
        sql = "UPDATE api_tokens SET revoked_at = ?, revoked_by = 'the restore of a backup' WHERE revoked_at IS NULL"
        tx.execute(sql, (tx.now_us,))


def answered(tx: Transaction, token_id: TokenId, key: str) -> KeptAnswer | None:
    """The answer that a key got in the last 24 hours."""
    row = tx.one(
        "SELECT request, status, body FROM api_answers WHERE token_id = ? AND key = ? AND at > ?",
        (token_id, key, to_us(tx.now - KEEP_ANSWERS)),
    )
    return load(KeptAnswer, row) if row else None


def keep_answer(tx: Transaction, token_id: TokenId, key: str, kept: KeptAnswer) -> int:
    """Remember the answer to a key, in the transaction that carried the request out; returns its size in bytes."""
    tx.upsert("api_answers", ("token_id", "key"), {"token_id": token_id, "key": key, **dump(kept), "at": tx.now_us})
    return len(key.encode()) + len(kept.body.encode())


def kept(tx: Transaction, token_id: TokenId) -> KeptSize:
    """How much is kept of a token's answers of the last 24 hours; reads all of them."""
    row = tx.one(
        "SELECT COUNT(*) AS keys, TOTAL(LENGTH(CAST(key AS BLOB)) + LENGTH(CAST(body AS BLOB))) AS bytes,"
        " MIN(at) AS oldest FROM api_answers WHERE token_id = ? AND at > ?",
        (token_id, to_us(tx.now - KEEP_ANSWERS)),
    )
    assert row
    oldest = from_us(row["oldest"]) if row["oldest"] is not None else None
    return KeptSize(row["keys"], int(row["bytes"]), oldest)


def forget_answers(tx: Transaction, at_most: int) -> int:
    """Delete some of the answers that are given no more; returns how many."""
    return tx.changed(
        "DELETE FROM api_answers WHERE rowid IN (SELECT rowid FROM api_answers WHERE at <= ? ORDER BY at LIMIT ?)",
        (to_us(tx.now - KEEP_ANSWERS), at_most),
    )


def _log(tx: Transaction, kind: EventKind, token: ApiToken, by: Actor) -> None:
    data = {"token": token.id, "owner": token.owner, "name": token.name, "scopes": list(token.scopes)}
    events.append(tx, kind, by, data={**data, "projects": list(token.projects)})
