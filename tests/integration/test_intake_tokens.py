"""`token` in a direct chat: people see and end their own tokens, admins everybody's; nobody anywhere else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ravebot.sandboxes.model import Actor
from ravebot.store import api_tokens
from ravebot.store.api_tokens import ApiToken, TokenId
from ravebot.store.database import Transaction
from tests.integration.test_intake_gitlab import desk
from tests.integration.test_intake_matrix import ALICE, EVE, GINA, Chat, chat

pytestmark = pytest.mark.integration
__all__ = ["chat", "desk"]  # the fixtures, from where they are made
DIRECT: dict[str, Any] = {"room": "!direct:x", "direct": True}
OPS = "@ops:example.org"


async def made(chat: Chat, owner: str, name: str) -> int:
    def make(tx: Transaction) -> ApiToken:
        fresh = ApiToken(
            TokenId(0), owner, name, ("read",), ("group/*",), "", tx.now, "root (shell)", tx.now + timedelta(days=90)
        )
        return api_tokens.add(tx, fresh, f"hash of {name}", Actor("shell", "root"))

    return (await chat.desk.world.write(make)).id


async def is_valid(chat: Chat, number: int) -> bool:
    token = await chat.desk.world.read(lambda tx: api_tokens.get(tx, TokenId(number)))
    return token is not None and token.revoked_at is None


async def test_people_see_and_end_their_own_tokens(chat: Chat) -> None:
    hers, other = await made(chat, "alice", "laptop"), await made(chat, "gina", "phone")
    listed = await chat.ask(ALICE, "!rave token", **DIRECT)
    assert f"{hers}: laptop – read in group/*; valid until" in listed
    assert "phone" not in listed
    assert "You have no token" in await chat.ask(ALICE, f"!rave token revoke {other}", **DIRECT)
    assert await is_valid(chat, other)
    assert "is revoked" in await chat.ask(ALICE, f"!rave token revoke {hers}", **DIRECT)
    assert not await is_valid(chat, hers)
    assert "was revoked before" in await chat.ask(ALICE, f"!rave token revoke {hers}", **DIRECT)


async def test_an_admin_sees_and_ends_everybodys(chat: Chat) -> None:
    other = await made(chat, "gina", "phone")
    assert "phone of gina" in await chat.ask(OPS, "!rave token list", **DIRECT)
    assert "is revoked" in await chat.ask(OPS, f"!rave token revoke {other}", **DIRECT)


async def test_elsewhere_and_to_strangers_nothing_is_said_of_tokens(chat: Chat) -> None:
    number = await made(chat, "alice", "laptop")
    assert "direct chat" in await chat.ask(ALICE, f"!rave token revoke {number}")
    assert "not tied to a GitLab user" in await chat.ask(EVE, f"!rave token revoke {number}", **DIRECT)
    assert "There is no token." in await chat.ask(GINA, "!rave token", **DIRECT)
    assert "Write `list`, or `revoke`" in await chat.ask(ALICE, "!rave token make", **DIRECT)
    assert await is_valid(chat, number)
