"""What the pool needs from outside, beside the provider and the firewall: narrow contracts that adapters fulfil."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Protocol

from ravebot.sandboxes.model import EndReason


class CodeHost(Protocol):
    """What is asked of GitLab. Raises `Unavailable` for now, `NotFound`, `Forbidden` or `Refused` for good."""

    async def ssh_keys(self, user_id: int) -> tuple[str, ...]:
        """Public keys that the user may log in with."""

    async def archive(self, project_id: int, sha: str, target: Path, max_bytes: int) -> int:
        """Write the gzipped tar of a commit to `target`; returns its size."""


class WebProbe(Protocol):
    """Sends requests to a guest's web port from the host. The guest may be hostile: do not trust the answers."""

    async def scheme(self, address: str, port: int) -> str | None:
        """`https` or `http`, whichever answers; None when nothing does."""

    async def expect(self, address: str, port: int, path: str, timeout: timedelta) -> None:
        """Wait until GET `path` is answered below 400. Raises GuestError with the last answer, GuestTimeout."""


class Meter(Protocol):
    """Counts and measures; never raises."""

    def sandbox_requested(self) -> None: ...

    def sandbox_started(self, after: timedelta) -> None: ...

    def sandbox_ready(self, project: str, after: timedelta) -> None: ...

    def sandbox_ended(self, project: str, reason: EndReason, lived: timedelta | None) -> None: ...

    def stage_done(self, stage: str, ok: bool, seconds: float) -> None: ...

    def counted(self, by_status: dict[str, int]) -> None: ...

    def capacity_seen(self, memory_available_bytes: int, disk_free_bytes: int, disk_promised_bytes: int) -> None: ...

    def pass_done(self, seconds: float) -> None: ...

    def provider_failed(self, call: str) -> None: ...

    def provider_seen(self, connected: bool) -> None: ...

    def firewall_repaired(self, flushed: bool) -> None: ...

    def connected(self, service: str, count: int, dropped: int) -> None: ...

    def attempted(self, service: str, passed: int, refused: int) -> None: ...

    def first_access(self, service: str, after: timedelta) -> None: ...

    def machine_used(self, project: str, cpu_seconds: float, received_bytes: int, sent_bytes: int) -> None: ...

    def machine_forced(self) -> None: ...

    def orphan_removed(self, kind: str) -> None: ...
