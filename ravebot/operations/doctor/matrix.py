"""Checks of Matrix, with the login that the bot has; if it has none yet, with one that is ended afterwards."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from ravebot.config.file import LoadedConfig
from ravebot.errors import Unavailable
from ravebot.matrix.client import LOGIN_FILE
from ravebot.operations.doctor.finding import Finding, Verdict, failed, ok, unknown, warning
from ravebot.operations.doctor.invitation import invitation
from ravebot.operations.doctor.services import Answer, get, mend, post

_NOTHING: dict[str, object] = {"types": []}
_FILTER = {
    "presence": _NOTHING,
    "account_data": _NOTHING,
    "room": {"timeline": _NOTHING, "state": _NOTHING, "ephemeral": _NOTHING, "account_data": _NOTHING},
}
_INVITES = urlencode({"timeout": 0, "filter": json.dumps(_FILTER)})
"""The query of a sync that lists rooms and what they invite to, and no events."""


async def check(loaded: LoadedConfig) -> AsyncIterator[Finding | Answer]:
    """Findings, and the answers whose clocks are compared."""
    base = str(loaded.config.matrix.homeserver).rstrip("/")
    versions = await homeserver(base)
    yield versions
    if isinstance(versions, Finding):
        return
    yield ok("matrix", f"{base} answers")
    token = loaded.secrets.matrix_access_token or kept_token(loaded.config.state_dir)
    checks = _with_password(loaded, base) if token is None else _account(loaded, base, token)
    async for finding in checks:
        yield finding


async def homeserver(base: str) -> Answer | Finding:
    """Its answer about the versions that it knows; a finding if there is no homeserver."""
    try:
        versions = await get(f"{base}/_matrix/client/versions")
    except Unavailable as error:
        return failed("matrix", f"{base} can't be reached: {error}", mend(error, "matrix.homeserver"))
    if versions.status != 200 or not isinstance(versions.field("versions"), list):
        fix = "correct matrix.homeserver: ADDRESS/_matrix/client/versions must list the homeserver's versions"
        return failed("matrix", f"{base} answers with status {versions.status} and is not a Matrix homeserver", fix)
    return versions


@dataclass(frozen=True, repr=False)
class Login:
    """A login that was made with the password: its token and its device."""

    token: str
    device_id: str


async def log_in(base: str, user_id: str, password: str, device_name: str) -> Login | Finding:
    """A login with a new device; what is wrong, if the homeserver makes none."""
    body: dict[str, object] = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user_id},
        "password": password,
        "initial_device_display_name": device_name,
    }
    try:
        answer = await post(f"{base}/_matrix/client/v3/login", body)
    except Unavailable as error:
        return failed("matrix login", f"the connection was lost during the login: {error}", "try again")
    token, device = answer.field("access_token"), answer.field("device_id")
    if answer.status == 429:
        return unknown("matrix login", "the homeserver allows no login now (429)", "try again in some minutes")
    if answer.status not in (200, 400, 401, 403):
        detail = f"the homeserver answers the login with {answer.status} {answer.field('errcode') or ''}".rstrip()
        return unknown("matrix login", detail, "try again; see the homeserver's log")
    if answer.field("errcode") == "M_USER_DEACTIVATED":
        fix = "let the homeserver's admin reactivate it, or use another account"
        return failed("matrix login", f"the account {user_id} is deactivated", fix)
    if answer.status != 200 or not isinstance(token, str):
        detail = f"the password of {user_id} is refused ({answer.status} {answer.field('errcode')})"
        return failed("matrix login", detail, "correct matrix.user_id, or the password in matrix.password_file")
    return Login(token, str(device or ""))


async def _with_password(loaded: LoadedConfig, base: str) -> AsyncIterator[Finding]:
    """The checks of the account with a login of their own; the logout afterwards removes its device."""
    user_id = loaded.config.matrix.user_id
    login = await log_in(base, user_id, loaded.secrets.matrix_password or "", "ravebot doctor")
    if isinstance(login, Finding):
        yield login
        return
    try:
        async for finding in _account(loaded, base, login.token):
            yield finding
    finally:
        ended = await log_out(base, login.token)
    if not ended:
        fix = "remove the device `ravebot doctor` in the account's settings"
        yield warning("matrix login", f"the login that was made for this check could not be ended: {user_id}", fix)


async def log_out(base: str, token: str) -> bool:
    """Whether the login was ended, which removes its device."""
    try:
        answer = await post(f"{base}/_matrix/client/v3/logout", {}, {"Authorization": f"Bearer {token}"})
    except Unavailable:
        return False
    return answer.status == 200


async def _account(loaded: LoadedConfig, base: str, token: str) -> AsyncIterator[Finding]:
    wanted = loaded.config.matrix.user_id
    try:
        me = await whoami(base, token, wanted)
        yield me
        if me.verdict is not Verdict.OK:
            return
        seat = await seats(base, token, wanted, loaded.config.matrix.admins)
        for room in loaded.config.matrix.room_names:
            yield await room_of(seat, room)
    except Unavailable as error:
        yield failed(
            "matrix login", f"the connection was lost during the checks: {error}", "try again; see the homeserver's log"
        )


async def whoami(base: str, token: str, wanted: str) -> Finding:
    """Whether the token is accepted and belongs to that user. Raises Unavailable."""
    me = await get(f"{base}/_matrix/client/v3/account/whoami", {"Authorization": f"Bearer {token}"})
    if me.status != 200:
        fix = "put a new token into access_token_file or, with a password, remove matrix.json from state_dir"
        return failed("matrix login", f"the token is refused ({me.status} {me.field('errcode')})", fix)
    if me.field("user_id") != wanted:
        fix = f"use a token of {wanted}, or change matrix.user_id"
        return failed("matrix login", f"the token belongs to {me.field('user_id')}", fix)
    return ok("matrix login", f"{wanted}, device {me.field('device_id')}")


@dataclass(frozen=True, repr=False)
class Seats:
    """The rooms that an account is in, and those that it is invited to, with what the invites tell of them."""

    base: str
    headers: dict[str, str]
    user_id: str
    joined: Collection[object]
    invited: Mapping[str, object]
    admins: Collection[str]


async def seats(base: str, token: str, user_id: str, admins: Collection[str]) -> Seats:
    """Raises Unavailable."""
    headers = {"Authorization": f"Bearer {token}"}
    joined = (await get(f"{base}/_matrix/client/v3/joined_rooms", headers)).field("joined_rooms")
    invited = (await get(f"{base}/_matrix/client/v3/sync?{_INVITES}", headers)).field("rooms", "invite")
    rooms = joined if isinstance(joined, list) else []
    return Seats(base, headers, user_id, rooms, invited if isinstance(invited, dict) else {}, admins)


async def room_of(seat: Seats, name: str) -> Finding:
    """Whether ravebot can use the room of that name. Raises Unavailable."""
    base, headers, user_id = seat.base, seat.headers, seat.user_id
    room_id: object = name
    if name.startswith("#"):
        found = await get(f"{base}/_matrix/client/v3/directory/room/{quote(name, safe='')}", headers)
        room_id = found.field("room_id")
        if found.status != 200:
            return failed(
                "matrix room", f"there is no room {name}", "create it, or correct its name in the configuration"
            )
    if room_id not in seat.joined:
        if str(room_id) in seat.invited:
            return invitation(name, seat.invited[str(room_id)], user_id, seat.admins)
        detail = f"{name}: ravebot is not in it yet, and not invited"
        return warning("matrix room", detail, f"let one of matrix.admins invite {user_id} there, unless all may join")
    state = f"{base}/_matrix/client/v3/rooms/{quote(str(room_id), safe='')}/state"
    if (await get(f"{state}/m.room.encryption/", headers)).status == 200:
        fix = "create a room without encryption and name it in the configuration: encryption can't be switched off"
        return failed("matrix room", f"{name} is encrypted, which ravebot does not support yet", fix)
    return ok("matrix room", name)


def kept_token(state_dir: Path) -> str | None:
    """The token of the login that the bot keeps."""
    try:
        kept = json.loads((state_dir / LOGIN_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    token = kept.get("access_token") if isinstance(kept, dict) else None
    return token if isinstance(token, str) else None
