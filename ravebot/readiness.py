"""What /readyz asks: whether each part we depend on works now, by asking it, not by hoping."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from ravebot.access.firewall import NftFirewall
from ravebot.access.rules import Firewall
from ravebot.chat import Chat
from ravebot.clock import Clock
from ravebot.gitlab.client import GitLab
from ravebot.intake.poll import Poller
from ravebot.parts import Core
from ravebot.providers.base import Provider
from ravebot.store import outbox
from ravebot.store.database import Database
from ravebot.store.outbox import GITLAB, MATRIX
from ravebot.web.checks import Check, Checks

_SILENT = timedelta(seconds=120)
_OLD = timedelta(minutes=5)


@dataclass(frozen=True)
class Readiness:
    """One check for each part."""

    clock: Clock
    database: Database
    chat: Chat
    gitlab: GitLab
    poller: Poller
    core: Core
    provider: Provider
    firewall: Firewall

    def checks(self) -> Checks:
        return {
            "matrix": self._matrix,
            "gitlab": self._gitlab,
            "provider": self._provider,
            "firewall": self._firewall,
            "outbox": self._outbox,
            "state": self._state,
        }

    async def _matrix(self) -> Check:
        if problem := self.chat.problem or self.chat.sync.problem:
            return Check(False, problem)
        last = self.chat.sync.last_success
        if last is None or self.clock.now() - last > _SILENT:
            return Check(False, f"last synced {last or 'never'}: is the homeserver up?")
        problems = [status.problem for status in self.chat.rooms.statuses() if status.problem]
        return Check(not problems, "; ".join(problems) or f"synced {last:%H:%M:%S}")

    async def _gitlab(self) -> Check:
        await self.gitlab.me()
        last = self.poller.last_success
        if last is None:
            return Check(False, self.poller.last_error or "not looked at yet")
        return Check(True, f"looked at {last:%H:%M:%S}")

    async def _provider(self) -> Check:
        if self.core.pool.blocked:
            return Check(False, self.core.pool.blocked)
        good = await self.provider.connected()
        return Check(good, "" if good else "libvirt does not answer")

    async def _firewall(self) -> Check:
        if self.core.guard.problem:
            return Check(False, self.core.guard.problem)
        if isinstance(self.firewall, NftFirewall):
            conflicts = await self.firewall.find_conflicts()
            return Check(not conflicts, "; ".join(conflicts) or self.firewall.weakness)
        return Check(True)

    async def _outbox(self) -> Check:
        for target in (MATRIX, GITLAB):
            count, oldest = await self.database.read(partial(outbox.backlog, target=target))
            if oldest and self.clock.now() - oldest > _OLD:
                return Check(False, f"{count} messages wait for {target}, the oldest since {oldest:%H:%M:%S}")
        return Check(True)

    async def _state(self) -> Check:
        problem = await self.database.problem()
        return Check(not problem, problem)
