"""One login at a Matrix homeserver, and the requests that ravebot makes.

nio sends the requests (and, later, encrypts); the answers are checked here, because nio returns errors instead of
raising them, retries in its own way and ignores `Retry-After`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode

import aiohttp
from nio import AsyncClient

from ravebot.config.model import MatrixConfig
from ravebot.errors import Forbidden, NotFound, Unacceptable, Unavailable
from ravebot.matrix.answers import Json, LoginLost, judge
from ravebot.store.durable import write_file
from ravebot.store.swap import LOGIN

_JOIN_EXTRA_SECONDS = 30.0  # joining over federation is slow
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_UPLOAD_BYTES = 4 * 1024 * 1024
_CLIENT = "/_matrix/client/v3/"
_MEDIA = "/_matrix/media/v3/"
DEVICE_NAME = "ravebot"
_NAME_TIMEOUT_SECONDS = 3.0
"""For a name, which a message waits for: a homeserver asks the user's own one, which may be away."""
_NAME_SECONDS = 3600.0
"""For how long a display name is used before it is asked for again."""


LOGIN_FILE = LOGIN
"""In the state folder: the login that is used until it is ended."""


def login_text(homeserver: str, user_id: str, device_id: str, access_token: str) -> str:
    """The content of that file."""
    return json.dumps(
        {"homeserver": homeserver, "user_id": user_id, "device_id": device_id, "access_token": access_token}
    )


def _ignore(_: object) -> None:
    """The default callback; does nothing."""


class MatrixClient:
    """The bot's account. Its methods raise Unavailable (try later), Forbidden or NotFound, and nothing else.

    `secret` is the password or the access token, depending on which file `config` names. Device id and token are stored
    in `state_dir/matrix.json`: transaction ids are per device and must stay valid after a restart. `timeout_seconds` is
    for a whole request, without the time that a long poll waits. `on_token` is called with every access token that a
    login returns, so that logs can hide it: every homeserver has its own format. `on_answer` is called with the status
    of each answer; None: there was none.
    """

    def __init__(
        self,
        config: MatrixConfig,
        secret: str,
        state_dir: Path,
        *,
        timeout_seconds: float = 30.0,
        on_token: Callable[[str], None] = _ignore,
        on_answer: Callable[[int | None], None] = _ignore,
    ) -> None:
        self.homeserver = str(config.homeserver).rstrip("/")
        self._config = config
        self._secret = secret
        self._timeout_seconds = timeout_seconds
        self._on_token = on_token
        self._on_answer = on_answer
        self._login_file = state_dir / LOGIN_FILE
        self._nio = AsyncClient(self.homeserver, config.user_id)
        self._ready = False
        self._display_names: dict[str, tuple[str, float]] = {}  # with the time by the event loop's clock

    @property
    def user_id(self) -> str:
        return self._config.user_id

    @property
    def device_id(self) -> str:
        """Empty before `open`."""
        return str(self._nio.device_id or "")

    async def open(self) -> None:
        """Log in, or reuse the stored login. May be called again after Unavailable and after LoginLost."""
        if self._ready:
            return
        kept = self._kept_login()
        if self._config.access_token_file is not None:
            self._nio.access_token = self._secret
        elif kept is not None:
            self._on_token(kept["access_token"])
            self._nio.access_token = kept["access_token"]
        else:
            await self._log_in(device_id=self.device_id or None)
        try:
            me = await self._request("GET", ["account", "whoami"])
        except LoginLost:
            if self._config.password_file is None or kept is None:
                raise
            await self._log_in(device_id=kept["device_id"])
            me = await self._request("GET", ["account", "whoami"])
        if me.get("user_id") != self.user_id:
            raise Forbidden(
                f"the Matrix login belongs to {me.get('user_id')}, but matrix.user_id is {self.user_id}: "
                "correct one of them"
            )
        self._nio.user_id, self._nio.device_id = self.user_id, str(me.get("device_id") or "")
        if self._config.password_file is not None:
            self._keep_login()
        self._ready = True

    async def close(self) -> None:
        await self._nio.close()

    async def resolve(self, name: str) -> str:
        """The id of a room given by alias or id; an id is returned without a request."""
        if name.startswith("!"):
            return name
        answer = await self._request("GET", ["directory", "room", name])
        return _text(answer, "room_id")

    async def join(self, room: str) -> str:
        """Join a room by alias or id; returns its id. Joining again changes nothing."""
        answer = await self._request("POST", ["join", room], body={}, extra_seconds=_JOIN_EXTRA_SECONDS)
        return _text(answer, "room_id")

    async def leave(self, room_id: str, reason: str = "") -> None:
        """Leave a room, or reject the invite to it; members of the room can read the reason."""
        await self._request("POST", ["rooms", room_id, "leave"], body={"reason": reason} if reason else {})

    async def joined_rooms(self) -> tuple[str, ...]:
        """The ids of all rooms that we are in."""
        joined = (await self._request("GET", ["joined_rooms"])).get("joined_rooms")
        return tuple(room for room in joined if isinstance(room, str)) if isinstance(joined, list) else ()

    async def direct_members(self, room_id: str) -> frozenset[str]:
        """The members of a room, including the bot; a room with two is a direct chat."""
        answer = await self._request("GET", ["rooms", room_id, "joined_members"])
        joined = answer.get("joined")
        return frozenset(joined) if isinstance(joined, dict) else frozenset()

    async def is_encrypted(self, room_id: str) -> bool:
        """Whether encryption is enabled in a joined room."""
        try:
            await self._request("GET", ["rooms", room_id, "state", "m.room.encryption", ""])
        except NotFound:
            return False
        return True

    async def is_replaced(self, room_id: str) -> bool:
        """Whether a joined room was upgraded, and so replaced by another room."""
        try:
            tombstone = await self._request("GET", ["rooms", room_id, "state", "m.room.tombstone", ""])
        except NotFound:
            return False
        return bool(tombstone.get("replacement_room"))

    async def may_write(self, room_id: str) -> bool:
        """Whether a joined room allows messages from us."""
        try:
            levels = await self._request("GET", ["rooms", room_id, "state", "m.room.power_levels", ""])
        except NotFound:
            return True
        return let_write(levels, self.user_id) or await self._made(room_id)

    async def _made(self, room_id: str) -> bool:
        """Whether we made a room of a version (12 and later) in which creators have all power and stand in no list.

        https://spec.matrix.org/latest/rooms/v12/
        """
        path = ["rooms", room_id, "state", "m.room.create", ""]
        event = await self._request("GET", path, query={"format": "event"})
        content = event.get("content")
        about = content if isinstance(content, dict) else {}
        more, version = about.get("additional_creators"), str(about.get("room_version"))
        creators = [event.get("sender"), *(more if isinstance(more, list) else [])]
        return version.isdecimal() and int(version) >= 12 and self.user_id in creators

    async def send(
        self, room_id: str, content: Mapping[str, object], txn_id: str, event_type: str = "m.room.message"
    ) -> str:
        """Send one event; the same `txn_id` again sends nothing and returns the same event id."""
        path = ["rooms", room_id, "send", event_type, txn_id]
        return _text(await self._request("PUT", path, body=content), "event_id")

    async def redact(self, room_id: str, event_id: str, txn_id: str) -> str:
        """Remove an event of ours; the same `txn_id` again changes nothing."""
        return _text(await self._request("PUT", ["rooms", room_id, "redact", event_id, txn_id], body={}), "event_id")

    async def upload(self, data: bytes, name: str, kind: str) -> str:
        """Store a file of at most `MAX_UPLOAD_BYTES` at the homeserver; returns its address, for an `m.file`."""
        if len(data) > MAX_UPLOAD_BYTES:
            raise Unacceptable(f"a file of {len(data)} bytes is not uploaded: at most {MAX_UPLOAD_BYTES} are")
        answer = await self._request("POST", ["upload"], query={"filename": name}, data=data, kind=kind, api=_MEDIA)
        return _text(answer, "content_uri")

    async def display_name(self, user_id: str) -> str:
        """The name that a user chose, untrusted; the beginning of the id where there is none, or it can't be known."""
        known = self._display_names.get(user_id)
        now = asyncio.get_running_loop().time()
        if known is None or now - known[1] > _NAME_SECONDS:
            try:
                async with asyncio.timeout(_NAME_TIMEOUT_SECONDS):
                    profile = await self._request("GET", ["profile", user_id, "displayname"])
            except LoginLost:
                raise
            except (Unavailable, Forbidden, NotFound, TimeoutError):
                profile = {}
            name = profile.get("displayname")
            chosen = name if isinstance(name, str) and name.strip() else user_id[1:].partition(":")[0]
            known = self._display_names[user_id] = (chosen, now)
        return known[0]

    async def sync(self, since: str | None, timeout_ms: int, filter: Mapping[str, object] | None = None) -> Json:
        """Everything since that token; waits up to `timeout_ms` while there is nothing."""
        query: dict[str, str] = {"timeout": str(timeout_ms), "set_presence": "offline"}
        if since is not None:
            query["since"] = since
        if filter is not None:
            query["filter"] = json.dumps(filter, separators=(",", ":"))
        return await self._request("GET", ["sync"], query=query, extra_seconds=timeout_ms / 1000)

    async def messages(
        self, room_id: str, start: str, *, to: str | None = None, filter: Mapping[str, object] | None = None
    ) -> tuple[list[Json], str | None]:
        """One page of a room's events backwards from `start`, newest first, and the start of the next page."""
        query = {"dir": "b", "from": start, "limit": "100"}
        if to is not None:
            query["to"] = to
        if filter is not None:
            query["filter"] = json.dumps(filter, separators=(",", ":"))
        answer = await self._request("GET", ["rooms", room_id, "messages"], query=query)
        chunk, end = answer.get("chunk"), answer.get("end")
        events = [event for event in chunk if isinstance(event, dict)] if isinstance(chunk, list) else []
        return events, end if isinstance(end, str) else None

    async def _log_in(self, device_id: str | None) -> None:
        body: dict[str, object] = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.user_id},
            "password": self._secret,
            "initial_device_display_name": DEVICE_NAME,
        }
        if device_id:
            body["device_id"] = device_id
        self._nio.access_token = ""
        try:
            answer = await self._request("POST", ["login"], body=body)
        except Forbidden as error:
            advice = "check matrix.password_file, then restart ravebot"
            raise Forbidden(f"Matrix refused to log in {self.user_id}: {advice} ({error})") from error
        token, device = _text(answer, "access_token"), _text(answer, "device_id")
        self._on_token(token)
        self._nio.access_token, self._nio.device_id = token, device
        self._keep_login()

    def _kept_login(self) -> dict[str, str] | None:
        """The stored login, if it is for this account at this homeserver."""
        try:
            kept = json.loads(self._login_file.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise Unavailable(f"{self._login_file} can't be read: {error}") from error
        wanted = {"homeserver": self.homeserver, "user_id": self.user_id}
        if not isinstance(kept, dict) or any(kept.get(key) != value for key, value in wanted.items()):
            return None
        return kept if all(isinstance(kept.get(key), str) for key in ("access_token", "device_id")) else None

    def _keep_login(self) -> None:
        """Store the login by replacing the file, so that a crash leaves the old or the new one. Raises Unavailable."""
        text = login_text(self.homeserver, self.user_id, self.device_id, self._nio.access_token)
        try:
            write_file(self._login_file, text.encode())
        except OSError as error:
            raise Unavailable(f"{self._login_file} can't be written: {error}") from error

    async def _request(
        self,
        method: str,
        path: Sequence[str],
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        data: bytes | None = None,
        kind: str = "application/json",
        api: str = _CLIENT,
        extra_seconds: float = 0.0,
    ) -> Json:
        """One request, without retries, of a JSON `body` or of `data` of that `kind`. The token is sent in a header, so
        that no URL contains it."""
        target = api + "/".join(quote(part, safe="") for part in path)
        if query:
            target += "?" + urlencode(query)
        headers = {"Content-Type": kind}
        if self._nio.access_token:
            headers["Authorization"] = f"Bearer {self._nio.access_token}"
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        try:
            seconds = self._timeout_seconds + extra_seconds
            async with asyncio.timeout(seconds):
                answer = await self._nio.send(method, target, data, headers, timeout=seconds)
                async with answer:
                    raw = await _read(answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._on_answer(None)
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                why = f"the certificate of Matrix at {self.homeserver} is not trusted: install its CA on this host"
                raise Unavailable(why) from error
            why = f"Matrix at {self.homeserver} does not answer ({str(error) or type(error).__name__})"
            fix = "ravebot tries again; check matrix.homeserver, the network and the homeserver's log"
            raise Unavailable(f"{why}: {fix}") from error
        self._on_answer(answer.status)
        try:
            return judge(answer.status, answer.headers.get("Retry-After"), raw)
        except LoginLost as error:
            self._ready = False
            raise LoginLost(self._advice(error)) from error

    def _advice(self, error: Exception) -> str:
        if self._config.access_token_file is not None:
            return (
                f"Matrix refused the access token ({error}): put a new one in matrix.access_token_file, "
                "then restart ravebot"
            )
        return (
            f"Matrix ended ravebot's login ({error}): ravebot logs in again by itself with the password that it read "
            "from matrix.password_file at its start; if that is refused, the account is deactivated or locked, or its "
            "password was changed: correct that, then restart ravebot"
        )


def let_write(levels: object, user_id: str) -> bool:
    """Whether the content of a room's power levels allows messages from that user.

    https://spec.matrix.org/latest/client-server-api/#mroompower_levels
    """
    if not isinstance(levels, dict):
        return True
    users, events = levels.get("users"), levels.get("events")
    ours = users.get(user_id) if isinstance(users, dict) else None
    needed = events.get("m.room.message") if isinstance(events, dict) else None
    ours = levels.get("users_default", 0) if ours is None else ours
    needed = levels.get("events_default", 0) if needed is None else needed
    # Old versions of rooms allow numbers in text: those are left to the homeserver.
    return not (isinstance(ours, int) and isinstance(needed, int) and ours < needed)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The whole answer. Raises ClientPayloadError if it is larger than `_MAX_ANSWER_BYTES`."""
    raw = bytearray()
    async for chunk in answer.content.iter_chunked(256 * 1024):
        raw += chunk
        if len(raw) > _MAX_ANSWER_BYTES:
            raise aiohttp.ClientPayloadError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
    return bytes(raw)


def _text(answer: Json, key: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str):
        raise Unavailable(f"Matrix answered without {key}: is matrix.homeserver really a Matrix homeserver?")
    return value
