"""Somebody with a Matrix account: says things, reads rooms, waits for an answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

Json = dict[str, Any]


class MatrixError(Exception):
    """The homeserver refused: status and body."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body


@dataclass(frozen=True)
class Message:
    """One message as a client shows it: with its last edit applied."""

    event_id: str
    sender: str
    content: Json  # of the last edit, or the original
    at_ms: int
    edits: int = 0
    redacted: bool = False
    original: Json | None = None

    @property
    def body(self) -> str:
        return str(self.content.get("body", ""))

    @property
    def html(self) -> str:
        return str(self.content.get("formatted_body", ""))

    @property
    def kind(self) -> str:
        return str(self.content.get("msgtype", ""))

    @property
    def mentions(self) -> Json:
        mentions = self.content.get("m.mentions", {})
        assert isinstance(mentions, dict)
        return mentions

    @property
    def thread_root(self) -> str | None:
        relation = (self.original or self.content).get("m.relates_to", {})
        return relation.get("event_id") if relation.get("rel_type") == "m.thread" else None


class MatrixUser:
    """A logged-in account."""

    def __init__(self, url: str, user_id: str, password: str, access_token: str, device_id: str) -> None:
        self.url = url
        self.user_id = user_id
        self.password = password
        self.access_token = access_token
        self.device_id = device_id
        self._transaction = 0
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self, method: str, *path: str, body: Json | None = None, query: Mapping[str, str | int] | None = None
    ) -> Json:
        """One request of the client-server API (version 3); path parts are quoted here."""
        if self._session is None:
            headers = {"Authorization": f"Bearer {self.access_token}"}
            self._session = aiohttp.ClientSession(self.url, headers=headers)
        target = "/_matrix/client/v3/" + "/".join(quote(part, safe="") for part in path)
        async with self._session.request(method, target, json=body, params=query or {}) as answer:
            parsed: Json = await answer.json()
            if answer.status != 200:
                raise MatrixError(answer.status, parsed)
            return parsed

    async def create_room(
        self,
        alias: str | None = None,
        invite: Iterable[str] = (),
        *,
        name: str = "",
        public: bool = False,
        direct: bool = False,
    ) -> str:
        """A new room's id; `alias` is its local part (`dev` for `#dev:localhost`)."""
        body: Json = {"preset": "public_chat" if public else "private_chat", "invite": list(invite)}
        if alias:
            body["room_alias_name"] = alias
        if name:
            body["name"] = name
        if direct:
            body |= {"is_direct": True, "preset": "trusted_private_chat"}
        return str((await self.call("POST", "createRoom", body=body))["room_id"])

    async def set_display_name(self, name: str) -> None:
        await self.call("PUT", "profile", self.user_id, "displayname", body={"displayname": name})

    async def direct_chat(self, user_id: str) -> str:
        """A direct chat as clients make one: flagged in the invite, and in the own account data."""
        room = await self.create_room(invite=[user_id], direct=True)
        await self.call("PUT", "user", self.user_id, "account_data", "m.direct", body={user_id: [room]})
        return room

    async def join(self, room: str) -> str:
        return str((await self.call("POST", "join", room, body={}))["room_id"])

    async def invite(self, room: str, user_id: str) -> None:
        await self.call("POST", "rooms", room, "invite", body={"user_id": user_id})

    async def leave(self, room: str) -> None:
        await self.call("POST", "rooms", room, "leave", body={})

    async def kick(self, room: str, user_id: str, *, reason: str = "") -> None:
        await self.call("POST", "rooms", room, "kick", body={"user_id": user_id, "reason": reason})

    async def ban(self, room: str, user_id: str) -> None:
        await self.call("POST", "rooms", room, "ban", body={"user_id": user_id})

    async def members(self, room: str) -> set[str]:
        return set((await self.call("GET", "rooms", room, "joined_members"))["joined"])

    async def joined_rooms(self) -> set[str]:
        return set((await self.call("GET", "joined_rooms"))["joined_rooms"])

    async def send(self, room: str, text: str, **extra: Any) -> str:
        """Say something; `extra` are further keys of the content. Returns the event id."""
        return await self.send_content(room, {"msgtype": "m.text", "body": text} | extra)

    async def send_content(self, room: str, content: Json, *, kind: str = "m.room.message") -> str:
        self._transaction += 1
        transaction = f"{time.monotonic_ns()}.{self._transaction}"
        answer = await self.call("PUT", "rooms", room, "send", kind, transaction, body=content)
        return str(answer["event_id"])

    async def react(self, room: str, event_id: str, key: str) -> str:
        """React to a message. Returns the reaction's event id."""
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self.send_content(room, {"m.relates_to": relation}, kind="m.reaction")

    async def reactions(self, room: str, event_id: str) -> list[tuple[str, str]]:
        """Who has reacted with what to that message, in order; what was taken back is left out."""
        return reactions(await self.events(room), event_id)

    async def redact(self, room: str, event_id: str) -> None:
        self._transaction += 1
        transaction = f"{time.monotonic_ns()}.{self._transaction}"
        await self.call("PUT", "rooms", room, "redact", event_id, transaction, body={})

    async def sync(self, since: str | None = None, *, timeout_ms: int = 0, at_most: int = 10) -> Json:
        """Everything since then, but of each room only the newest `at_most` events: 10 is the server's own limit."""
        query: dict[str, str | int] = {"timeout": timeout_ms}
        if at_most != 10:
            query["filter"] = json.dumps({"room": {"timeline": {"limit": at_most}}})
        if since:
            query["since"] = since
        else:
            # Synapse answers the same first sync again from a cache: a timeout, which it does not wait for then,
            # makes each a request of its own.
            self._transaction += 1
            query["timeout"] = self._transaction
        return await self.call("GET", "sync", query=query)

    async def events(self, room: str) -> list[Json]:
        """Every event of the room that this user may see, oldest first, as they are."""
        found: list[Json] = []
        query: dict[str, str | int] = {"dir": "b", "limit": 500}
        while True:
            page = await self.call("GET", "rooms", room, "messages", query=query)
            found += page["chunk"]
            if not page["chunk"] or "end" not in page:
                return found[::-1]
            query["from"] = page["end"]

    async def messages(self, room: str) -> list[Message]:
        """The whole timeline, oldest first; edits are applied to what they edit, not listed."""
        return timeline(await self.events(room))

    async def wait_for(self, room: str, predicate: Callable[[Message], bool], timeout: float = 15.0) -> Message:
        """The first message that fits, also one of before; TimeoutError shows what was there instead."""
        deadline = asyncio.get_running_loop().time() + timeout
        since = str((await self.sync())["next_batch"])
        while True:
            messages = await self.messages(room)
            for message in messages:
                if predicate(message):
                    return message
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                seen = "\n".join(f"{message.sender}: {message.body!r}" for message in messages)
                raise TimeoutError(f"no such message in {timeout} s; there were:\n{seen}")
            answer = await self.sync(since, timeout_ms=min(int(left * 1000), 5000))
            since = str(answer["next_batch"])


def reactions(events: Iterable[Json], event_id: str) -> list[tuple[str, str]]:
    """Of one message, out of a room's events: sender and key."""
    found = []
    for event in events:
        relation = event["content"].get("m.relates_to", {}) if event["type"] == "m.reaction" else {}
        if relation.get("rel_type") == "m.annotation" and relation.get("event_id") == event_id:
            found.append((str(event["sender"]), str(relation.get("key"))))
    return found


def timeline(events: Iterable[Json]) -> list[Message]:
    """Messages out of events, oldest first; an edit counts only when it is its author's own."""
    messages: dict[str, Message] = {}
    for event in events:
        if event["type"] != "m.room.message":
            continue
        content = event["content"]
        relation = content.get("m.relates_to", {})
        target = messages.get(str(relation.get("event_id")))
        if relation.get("rel_type") == "m.replace" and target and target.sender == event["sender"]:
            messages[target.event_id] = Message(
                target.event_id,
                target.sender,
                content.get("m.new_content", {}),
                target.at_ms,
                target.edits + 1,
                target.redacted,
                target.original,
            )
        elif relation.get("rel_type") != "m.replace":
            messages[event["event_id"]] = Message(
                event["event_id"], event["sender"], content, event["origin_server_ts"],
                redacted="redacted_because" in event.get("unsigned", {}), original=content,
            )  # fmt: skip
    return list(messages.values())
