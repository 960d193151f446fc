"""Tokens for the API in a direct chat: whoever they act for sees them, and ends them; an admin everybody's."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.clock import moment
from ravebot.commands.verbs import Command
from ravebot.intake.loop import Step
from ravebot.intake.rooms import Rooms
from ravebot.matrix.incoming import IncomingMessage
from ravebot.matrix.replies import render_reply
from ravebot.sandboxes.model import Actor
from ravebot.store import api_tokens
from ravebot.store.api_tokens import ApiToken, TokenId
from ravebot.store.database import Transaction

_MOST_SHOWN = 30


@dataclass(frozen=True)
class RoomTokens:
    """Carries out `token`; a new one is made at the shell only."""

    rooms: Rooms

    async def handle(self, message: IncomingMessage, command: Command) -> Step:
        if not message.direct:
            said = "Tokens are spoken of in a direct chat: write to me there."
            return self.rooms.says(message, render_reply(said), "not here", aside=True)
        config = self.rooms.config.matrix
        owner = None if message.sender in config.admins else config.users.get(message.sender, "")
        if owner == "":
            said = "Your Matrix account is not tied to a GitLab user: ask an admin of ravebot to add it to the users."
            return self.rooms.says(message, render_reply(said), "not known", aside=True)

        def step(tx: Transaction) -> str:
            if command.number is None:
                text, outcome = _list(tx, owner), "tokens"
            else:
                text = outcome = _revoke(tx, owner, command.number, Actor("matrix", message.sender))
            self.rooms.reply(tx, message, render_reply(text))
            return outcome

        return step


def _list(tx: Transaction, owner: str | None) -> str:
    found = api_tokens.listed(tx, owner)
    if not found:
        return "There is no token. `ravebot token create` makes one, on the host."
    lines = [_line(tx, token, owner is None) for token in found[:_MOST_SHOWN]]
    more = [f"and {len(found) - _MOST_SHOWN} more: `ravebot token list`, on the host"]
    return "\n".join([*lines, *(more if len(found) > _MOST_SHOWN else ())])


def _line(tx: Transaction, token: ApiToken, with_owner: bool) -> str:
    whose = f" of {token.owner}" if with_owner else ""
    last = f"last used {moment(token.used_at, tx.now)}" if token.used_at else "never used"
    state = token.problem(tx.now) or f"valid until {moment(token.expires_at, tx.now)}"
    agent = f" as {token.agent}" if token.agent else ""
    what = f"{', '.join(token.scopes)}{agent} in {', '.join(token.projects)}"
    return f"{token.id}: {token.name}{whose} – {what}; {state}; {last}"


def _revoke(tx: Transaction, owner: str | None, number: int, by: Actor) -> str:
    token = api_tokens.get(tx, TokenId(number))
    if token is None or owner not in (None, token.owner):
        return f"You have no token {number}: `token list` shows yours."
    if api_tokens.revoke(tx, token, by):
        return f"Token {number} ({token.name}) is revoked: it is not valid from now on."
    return f"Token {number} ({token.name}) was revoked before."
