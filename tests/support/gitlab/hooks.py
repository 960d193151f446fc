"""Webhooks as GitLab delivers them: in the background, signed, logged, and given up on.

https://docs.gitlab.com/user/project/integrations/webhooks/
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp

TIMEOUT_SECONDS = 10
_RETRY_SECONDS = (0.1, 0.4, 1.0)
_KEYS = {"Merge Request Hook": "merge_requests_events", "Note Hook": "note_events"}


@dataclass(eq=False)
class Hook:
    """Where events go. `project_id` None: a system hook, which gets every project's."""

    id: int
    url: str
    project_id: int | None
    secret_token: str | None
    signing_token: str | None  # whsec_<base64>
    retries: int
    failures_in_a_row: int = 0
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    settings: dict[str, object] = field(default_factory=lambda: {"merge_requests_events": True, "note_events": True})
    """The attributes that the API takes and returns as they are; without an event's key it is off."""
    alert_status: str = "executable"
    disabled_until: str | None = None
    custom_headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """One event for one hook; sent again it keeps its ids."""

    hook: Hook
    event: str
    body: bytes
    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(frozen=True)
class Attempt:
    """One try to deliver, as GitLab's list of recent events shows it. `status` None: no answer, see `error`."""

    message: Message
    status: int | None
    answer: bytes
    error: str
    seconds: float


class Hooks:
    """The hooks and their deliveries; sending happens on the server's loop, in order for each hook."""

    def __init__(self) -> None:
        self.hooks: list[Hook] = []
        self.attempts: list[Attempt] = []
        self.paused = False
        self._ids = itertools.count(1)
        self._pending = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: dict[int, asyncio.Queue[Message]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession

    @property
    def pending(self) -> int:
        return self._pending

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS), trust_env=False)

    async def stop(self) -> None:
        self._loop = None
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._session.close()

    def add(
        self, url: str, project_id: int | None, secret_token: str | None, signing_token: str | None, retries: int
    ) -> Hook:
        hook = Hook(next(self._ids), url, project_id, secret_token, signing_token, retries)
        self.hooks.append(hook)
        return hook

    def fire(self, project_id: int, event: str, payload: Mapping[str, object]) -> None:
        """Tell every hook that wants to know; while paused the event is lost."""
        if self.paused:
            return
        body = json.dumps(payload).encode()
        for hook in self.hooks:
            if hook.project_id is None:
                self.send(Message(hook, "System Hook", body))
            elif (
                hook.project_id == project_id and hook.alert_status == "executable" and hook.settings.get(_KEYS[event])
            ):
                self.send(Message(hook, event, body))

    def send(self, message: Message) -> None:
        if self._loop is None:
            return
        with self._lock:
            self._pending += 1
        self._loop.call_soon_threadsafe(self._enqueue, message)

    def _enqueue(self, message: Message) -> None:
        queue = self._queues.get(message.hook.id)
        if queue is None:
            queue = self._queues[message.hook.id] = asyncio.Queue()
            worker = asyncio.ensure_future(self._work(queue))
            self._workers.add(worker)
        queue.put_nowait(message)

    async def _work(self, queue: asyncio.Queue[Message]) -> None:
        while True:
            message = await queue.get()
            try:
                await self._deliver(message)
            finally:
                with self._lock:
                    self._pending -= 1

    async def _deliver(self, message: Message) -> None:
        for wait in (*_RETRY_SECONDS[: message.hook.retries], None):
            attempt = await self._attempt(message)
            self.attempts.append(attempt)
            if attempt.status is not None and 200 <= attempt.status < 300:
                message.hook.failures_in_a_row = 0
                return
            message.hook.failures_in_a_row += 1
            if attempt.status is not None and attempt.status < 500:
                return
            if wait is not None:
                await asyncio.sleep(wait)

    async def test(self, message: Message) -> Attempt:
        """Deliver it now, as GitLab's test requests do; on the server's loop."""
        attempt = await self._attempt(message)
        self.attempts.append(attempt)
        if attempt.status is not None and 200 <= attempt.status < 300:
            message.hook.alert_status, message.hook.disabled_until = "executable", None
        return attempt

    async def _attempt(self, message: Message) -> Attempt:
        started = time.monotonic()
        try:
            async with self._session.post(
                message.hook.url,
                data=message.body,
                headers=_headers(message, int(time.time())),
                allow_redirects=False,
            ) as response:
                answer = await response.content.read(8192)
                return Attempt(message, response.status, answer, "", time.monotonic() - started)
        except (aiohttp.ClientError, TimeoutError) as error:
            return Attempt(message, None, b"", repr(error), time.monotonic() - started)


def _headers(message: Message, now: int) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitLab/18.0.0",
        "X-Gitlab-Event": message.event,
        "X-Gitlab-Instance": "http://127.0.0.1",
        "X-Gitlab-Webhook-UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, str(message.hook.id))),
        "X-Gitlab-Event-UUID": message.uuid,
        "Idempotency-Key": message.key,
    }
    if message.hook.secret_token is not None:
        headers["X-Gitlab-Token"] = message.hook.secret_token
    if message.hook.signing_token is not None:
        headers["webhook-id"] = message.key
        headers["webhook-timestamp"] = str(now)
        headers["webhook-signature"] = sign(message.hook.signing_token, message.key, now, message.body)
    return headers


def sign(signing_token: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` header of Standard Webhooks (https://www.standardwebhooks.com)."""
    key = base64.b64decode(signing_token.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
