"""Checks of Matrix, with the login that the bot has; if it has none yet, with one that is ended afterwards."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

from ravebot.config.file import LoadedConfig
from ravebot.errors import Unavailable
from ravebot.operations.doctor.finding import Finding, failed, ok, unknown, warning
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
    try:
        versions = await get(f"{base}/_matrix/client/versions")
    except Unavailable as error:
        yield failed("matrix", f"{base} can't be reached: {error}", mend(error, "matrix.homeserver"))
        return
    if versions.status != 200 or not isinstance(versions.field("versions"), list):
        fix = "correct matrix.homeserver: ADDRESS/_matrix/client/versions must list the homeserver's versions"
        yield failed("matrix", f"{base} answers with status {versions.status} and is not a Matrix homeserver", fix)
        return
    yield versions
    yield ok("matrix", f"{base} answers")
    token = loaded.secrets.matrix_access_token or _kept_token(loaded.config.state_dir)
    checks = _with_password(loaded, base) if token is None else _account(loaded, base, token)
    async for finding in checks:
        yield finding


async def _with_password(loaded: LoadedConfig, base: str) -> AsyncIterator[Finding]:
    """The checks of the account with a login of their own; the logout afterwards removes its device."""
    user_id = loaded.config.matrix.user_id
    login: dict[str, object] = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user_id},
        "password": loaded.secrets.matrix_password or "",
        "initial_device_display_name": "ravebot doctor",
    }
    try:
        answer = await post(f"{base}/_matrix/client/v3/login", login)
    except Unavailable as error:
        yield failed("matrix login", f"the connection was lost during the login: {error}", "try again")
        return
    token = answer.field("access_token")
    if answer.status == 429:
        yield unknown("matrix login", "the homeserver allows no login now (429)", "try again in some minutes")
        return
    if answer.status not in (200, 400, 401, 403):
        detail = f"the homeserver answers the login with {answer.status} {answer.field('errcode') or ''}".rstrip()
        yield unknown("matrix login", detail, "try again; see the homeserver's log")
        return
    if answer.status != 200 or not isinstance(token, str):
        detail = f"the password of {user_id} is refused ({answer.status} {answer.field('errcode')})"
        yield failed("matrix login", detail, "correct matrix.user_id, or the password in matrix.password_file")
        return
    try:
        async for finding in _account(loaded, base, token):
            yield finding
    finally:
        ended = await _log_out(base, token)
    if not ended:
        fix = "remove the device `ravebot doctor` in the account's settings"
        yield warning("matrix login", f"the login that was made for this check could not be ended: {user_id}", fix)


async def _log_out(base: str, token: str) -> bool:
    try:
        answer = await post(f"{base}/_matrix/client/v3/logout", {}, {"Authorization": f"Bearer {token}"})
    except Unavailable:
        return False
    return answer.status == 200


async def _account(loaded: LoadedConfig, base: str, token: str) -> AsyncIterator[Finding]:
    headers = {"Authorization": f"Bearer {token}"}
    wanted = loaded.config.matrix.user_id
    try:
        me = await get(f"{base}/_matrix/client/v3/account/whoami", headers)
        if me.status != 200:
            fix = "put a new token into access_token_file or, with a password, remove matrix.json from state_dir"
            yield failed("matrix login", f"the token is refused ({me.status} {me.field('errcode')})", fix)
            return
        if me.field("user_id") != wanted:
            fix = f"use a token of {wanted}, or change matrix.user_id"
            yield failed("matrix login", f"the token belongs to {me.field('user_id')}", fix)
            return
        yield ok("matrix login", f"{wanted}, device {me.field('device_id')}")
        joined = (await get(f"{base}/_matrix/client/v3/joined_rooms", headers)).field("joined_rooms")
        found = (await get(f"{base}/_matrix/client/v3/sync?{_INVITES}", headers)).field("rooms", "invite")
        invited: Mapping[str, object] = found if isinstance(found, dict) else {}
        admins = loaded.config.matrix.admins
        for room in loaded.config.matrix.room_names:
            yield await _room(base, headers, room, joined if isinstance(joined, list) else [], invited, wanted, admins)
    except Unavailable as error:
        yield failed(
            "matrix login", f"the connection was lost during the checks: {error}", "try again; see the homeserver's log"
        )


async def _room(
    base: str,
    headers: dict[str, str],
    name: str,
    joined: list[object],
    invited: Mapping[str, object],
    user_id: str,
    admins: Collection[str],
) -> Finding:
    room_id: object = name
    if name.startswith("#"):
        found = await get(f"{base}/_matrix/client/v3/directory/room/{quote(name, safe='')}", headers)
        room_id = found.field("room_id")
        if found.status != 200:
            return failed(
                "matrix room", f"there is no room {name}", "create it, or correct its name in the configuration"
            )
    if room_id not in joined:
        if str(room_id) in invited:
            return invitation(name, invited[str(room_id)], user_id, admins)
        detail = f"{name}: ravebot is not in it yet, and not invited"
        return warning("matrix room", detail, f"let one of matrix.admins invite {user_id} there, unless all may join")
    state = f"{base}/_matrix/client/v3/rooms/{quote(str(room_id), safe='')}/state"
    if (await get(f"{state}/m.room.encryption/", headers)).status == 200:
        fix = "create a room without encryption and name it in the configuration: encryption can't be switched off"
        return failed("matrix room", f"{name} is encrypted, which ravebot does not support yet", fix)
    return ok("matrix room", name)


def _kept_token(state_dir: Path) -> str | None:
    try:
        kept = json.loads((state_dir / "matrix.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    token = kept.get("access_token") if isinstance(kept, dict) else None
    return token if isinstance(token, str) else None
