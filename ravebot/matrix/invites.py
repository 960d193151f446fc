"""Invites to rooms: taken from the configured admins only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from ravebot.clock import Clock
from ravebot.errors import Forbidden, NotFound, Unavailable
from ravebot.matrix.answers import Json, LoginLost
from ravebot.matrix.client import MatrixClient

_log = structlog.get_logger(__name__)

_MAX_REFUSALS = 6
_MAX_PENDING = 1000


@dataclass(frozen=True)
class _Pending:
    inviter: str
    welcome: bool
    due: datetime
    attempts: int = 0
    refusals: int = 0


class Invites:
    """What invites are still to be answered. They are state on the server: a restart finds them again."""

    def __init__(
        self, client: MatrixClient, admins: tuple[str, ...], clock: Clock, on_joined: Callable[[str], None]
    ) -> None:
        self._client = client
        self._admins = frozenset(admins)
        self._clock = clock
        self._on_joined = on_joined
        self._pending: dict[str, _Pending] = {}

    def note(self, rooms: Mapping[str, Json]) -> None:
        """Remember the rooms of a sync's `invite` part."""
        for room_id, room in rooms.items():
            sender = inviter(room, self._client.user_id)
            if sender is None or len(self._pending) >= _MAX_PENDING:
                continue
            self._pending[room_id] = _Pending(sender, sender in self._admins, self._clock.now())

    def forget(self, room_id: str) -> None:
        """The invite was taken back, or we left."""
        self._pending.pop(room_id, None)

    def next_try(self) -> datetime | None:
        """When `answer` has something to do; None when there is nothing."""
        return min((pending.due for pending in self._pending.values()), default=None)

    async def answer(self) -> None:
        """Join where an admin asked us to, reject the rest; what fails is tried again. Raises LoginLost."""
        now = self._clock.now()
        for room_id, pending in list(self._pending.items()):
            if pending.due > now:
                continue
            try:
                await self._answer(room_id, pending)
            except LoginLost:
                raise
            except Unavailable as error:
                wait = error.retry_after_seconds or min(2.0**pending.attempts, 60.0)
                self._again(room_id, pending, wait)
            except (Forbidden, NotFound) as error:
                # Right after an invite the server may still refuse the join: it has not seen the invite yet.
                if pending.refusals >= _MAX_REFUSALS or not pending.welcome:
                    _log.warning("matrix_invite_failed", room_id=room_id, error=str(error))
                    self.forget(room_id)
                else:
                    later = replace(pending, refusals=pending.refusals + 1)
                    self._again(room_id, later, 0.5 * 2.0**pending.refusals)
            else:
                self.forget(room_id)

    async def _answer(self, room_id: str, pending: _Pending) -> None:
        if pending.welcome:
            await self._client.join(room_id)
            _log.info("matrix_joined", room_id=room_id, inviter=pending.inviter)
            self._on_joined(room_id)
        else:
            await self._client.leave(room_id)
            _log.warning("matrix_invite_rejected", room_id=room_id, inviter=pending.inviter)

    def _again(self, room_id: str, pending: _Pending, seconds: float) -> None:
        due = self._clock.now() + timedelta(seconds=seconds)
        self._pending[room_id] = replace(pending, due=due, attempts=pending.attempts + 1)


def inviter(room: Json, our_user_id: str) -> str | None:
    """Who invited us, from the stripped state of an invite; None when that state shows no invite to us."""
    state = room.get("invite_state")
    events = state.get("events") if isinstance(state, dict) else None
    for event in events if isinstance(events, list) else []:
        if not isinstance(event, dict) or event.get("type") != "m.room.member":
            continue
        content = event.get("content")
        if event.get("state_key") != our_user_id or not isinstance(content, dict):
            continue
        sender = event.get("sender")
        if content.get("membership") == "invite" and isinstance(sender, str):
            return sender
    return None
