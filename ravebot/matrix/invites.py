"""Invites to rooms: accepted only from the configured admins, and only to rooms without encryption.

The inviter reads why an invite was declined: the reason is part of our leaving, also on another homeserver
(https://spec.matrix.org/latest/client-server-api/#post_matrixclientv3roomsroomidleave).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from ravebot.backoff import Backoff
from ravebot.clock import Clock, Wait
from ravebot.errors import Forbidden, NotFound, Unavailable
from ravebot.matrix.answers import Json, LoginLost
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.text import one_line

_log = structlog.get_logger(__name__)

_MAX_REFUSALS = 6
_MAX_PENDING = 1000
_REJECT_SECONDS = 10.0
"""Time limit for rejecting an invite, so that invites from a slow server don't delay those of admins."""
_LOGIN_SECONDS = 10.0
_PAUSES = Backoff.growing(1.0, 60.0)
_REFUSED_PAUSES = Backoff.growing(0.5, 16.0)
_LOOK_SECONDS = 30.0
_STRANGER = (
    "ravebot declines: it takes invites only from its admins. Ask one of them to invite it; "
    "`matrix.admins` in its configuration names them."
)
_NO_ENTRY = "ravebot declines: its homeserver does not let it join ({}). Mend that, then invite it again."
_ENCRYPTED = (
    "ravebot leaves: it can't read encrypted rooms, and encryption can't be switched off. "
    "Make a room without encryption, also to talk to it alone, and invite it there."
)


@dataclass(frozen=True)
class _Pending:
    inviter: str
    from_admin: bool
    wait: Wait
    declined: str = ""  # why, for the inviter
    attempts: int = 0
    refusals: int = 0
    joined: bool = False


async def _never(_: str) -> bool:
    return False


class Invites:
    """The invites that are not answered yet. They are state on the server, so that a restart finds them again.

    `on_joined` is called with each room that was joined. `is_configured` says whether a room is one of `matrix.rooms`:
    if such a room is encrypted, that is reported as its problem, and the bot stays.
    """

    def __init__(
        self,
        client: MatrixClient,
        admins: tuple[str, ...],
        clock: Clock,
        on_joined: Callable[[str], None],
        is_configured: Callable[[str], Awaitable[bool]] = _never,
    ) -> None:
        self._client = client
        self._admins = frozenset(admins)
        self._clock = clock
        self._on_joined = on_joined
        self._is_configured = is_configured
        self._pending: dict[str, _Pending] = {}
        self._news = asyncio.Event()

    def note(self, rooms: Mapping[str, Json]) -> None:
        """Record the invites in a sync's `invite` part."""
        for room_id, room in rooms.items():
            sender = inviter(room, self._client.user_id)
            from_admin = sender in self._admins
            known = self._pending.get(room_id)
            if sender is None or (known is not None and known.inviter == sender):
                continue
            if len(self._pending) >= _MAX_PENDING and not from_admin:
                continue
            now = self._clock.now()
            self._pending[room_id] = _Pending(sender, from_admin, Wait(now, now), "" if from_admin else _STRANGER)
            self._news.set()

    def changed(self, room_id: str) -> None:
        """A room that we are in may be encrypted since: if it is, leave it, as after an invite to it."""
        now = self._clock.now()
        self._pending.setdefault(room_id, _Pending("", from_admin=True, wait=Wait(now, now), joined=True))
        self._news.set()

    def forget(self, room_id: str) -> None:
        """Forget an invite that was withdrawn, or a room that was left."""
        self._pending.pop(room_id, None)

    async def run(self) -> None:
        """Answer invites until cancelled, in parallel to the sync loop, so that slow requests don't delay it."""
        while True:
            self._news.clear()
            await self.answer()
            now = self._clock.now()
            waits = (pending.wait.left(now).total_seconds() for pending in self._pending.values())
            try:
                async with asyncio.timeout(min(_LOOK_SECONDS, max(0.05, min(waits, default=_LOOK_SECONDS)))):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def answer(self) -> None:
        """Join rooms that admins invited to and reject other invites; what fails is tried again later."""
        while due := self._next_due():
            room_id, pending = due
            try:
                done = await self._answer(room_id, pending)
            except LoginLost:
                self._again(room_id, pending, pending, _LOGIN_SECONDS)
            except Unavailable as error:
                wait = error.retry_after_seconds or _PAUSES.after(pending.attempts + 1)
                self._again(room_id, pending, pending, wait)
            except (Forbidden, NotFound) as error:
                # Right after an invite the server may still refuse the join: it has not seen the invite yet.
                if pending.declined or (pending.joined and pending.refusals >= _MAX_REFUSALS):
                    _log.warning("matrix_invite_failed", room_id=room_id, error=str(error))
                    self._end(room_id, pending)
                elif pending.refusals >= _MAX_REFUSALS:
                    declined = _NO_ENTRY.format(one_line(str(error)))
                    self._again(room_id, pending, replace(pending, declined=declined), 0.0)
                else:
                    later = replace(pending, refusals=pending.refusals + 1)
                    self._again(room_id, pending, later, _REFUSED_PAUSES.after(later.refusals))
            else:
                if done:
                    self._end(room_id, pending)
                else:
                    self._again(room_id, pending, replace(pending, joined=True), 0.0)

    def _next_due(self) -> tuple[str, _Pending] | None:
        """Admins' invites come before others; otherwise the one that waits longest."""
        now = self._clock.now()
        due = [item for item in self._pending.items() if item[1].wait.is_over(now)]
        return min(due, key=lambda item: (not item[1].from_admin, item[1].wait.until), default=None)

    async def _answer(self, room_id: str, pending: _Pending) -> bool:
        """Take one step; returns whether it was the last."""
        if pending.declined:
            await self._leave(room_id, pending.declined)
            _log.warning("matrix_invite_rejected", room_id=room_id, inviter=pending.inviter, why=pending.declined)
            return True
        if not pending.joined:
            await self._client.join(room_id)
            _log.info("matrix_joined", room_id=room_id, inviter=pending.inviter)
            self._on_joined(room_id)
            return False
        if await self._client.is_encrypted(room_id) and not await self._is_configured(room_id):
            await self._leave(room_id, _ENCRYPTED)
            _log.warning("matrix_encrypted_room_left", room_id=room_id, inviter=pending.inviter)
        return True

    async def _leave(self, room_id: str, reason: str) -> None:
        try:
            async with asyncio.timeout(_REJECT_SECONDS):
                await self._client.leave(room_id, reason)
        except TimeoutError as error:
            raise Unavailable(f"leaving {room_id} takes too long") from error

    def _end(self, room_id: str, pending: _Pending) -> None:
        """Forget an answered invite, unless a new one replaced it."""
        if self._pending.get(room_id) is pending:
            self.forget(room_id)

    def _again(self, room_id: str, pending: _Pending, later: _Pending, seconds: float) -> None:
        if self._pending.get(room_id) is pending:
            now = self._clock.now()
            wait = Wait(now, now + timedelta(seconds=seconds))
            self._pending[room_id] = replace(later, wait=wait, attempts=pending.attempts + 1)


def inviter(room: Json, our_user_id: str) -> str | None:
    """Who invited us, from the stripped state of an invite; None if that state contains no invite to us."""
    state = room.get("invite_state")
    events = state.get("events") if isinstance(state, dict) else None
    # The stripped state comes from the inviting server, which may put a forged invite there. Our own homeserver appends
    # the real one, which it has checked, so the last one counts.
    for event in reversed(events) if isinstance(events, list) else ():
        if not isinstance(event, dict) or event.get("type") != "m.room.member":
            continue
        content = event.get("content")
        if event.get("state_key") != our_user_id or not isinstance(content, dict):
            continue
        sender = event.get("sender")
        if content.get("membership") == "invite" and isinstance(sender, str):
            return sender
    return None
