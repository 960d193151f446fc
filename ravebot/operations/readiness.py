"""The checks of /readyz: whether each part that we depend on works, judged by its last observation.

A new check is one method and one entry in `checks`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path

import aiohttp
from yarl import URL

from ravebot.access.rules import Firewall
from ravebot.chat import NOT_CONNECTED, Chat
from ravebot.clock import Clock
from ravebot.config.model import Config
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.refusals import Refusals
from ravebot.intake.poll import Poller
from ravebot.matrix.rooms import NOT_LOOKED_UP, PROJECT_ROOMS
from ravebot.notify.environments.stops import LOOK_EVERY
from ravebot.operations.resources import OwnProcess, troubles
from ravebot.parts import Core
from ravebot.providers.base import Provider
from ravebot.sandboxes.pool.loop import IDLE_PAUSE_SECONDS
from ravebot.sandboxes.telling import TRIED_AGAIN
from ravebot.store import agent_work, environments, figures, images, inbox, outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.targets import Target
from ravebot.web.checks import PERIODS, Check, Checks, State, judge

_SYNC_EVERY = timedelta(seconds=40)
"""A sync waits up to 30 s for news; the rest is time for its answer."""
_PASS_EVERY = timedelta(seconds=IDLE_PAUSE_SECONDS)
_LONG = timedelta(minutes=5)
"""How long a message or a request may wait before that counts as a failure."""
_API_TIMEOUT = aiohttp.ClientTimeout(total=5)
_MOST_NAMED = 5
_MANY_TRIES = 5
"""Of reaching an agent; it took half a minute until then."""


@dataclass(frozen=True)
class Readiness:
    """One check for each part."""

    config: Config
    clock: Clock
    database: Database
    chat: Chat
    gitlab: GitLab
    webhooks: Refusals
    alerts: Refusals
    poller: Poller
    core: Core
    provider: Provider
    firewall: Firewall
    targets: tuple[Target, ...]
    programs: str | None = None  # the folders of programs; None: those of PATH

    def checks(self) -> Checks:
        return {
            "matrix": self._matrix,
            "gitlab": self._gitlab,
            "provider": self._provider,
            "firewall": self._firewall,
            "image": self._image,
            "inbox": self._inbox,
            "outbox": self._outbox,
            "environments": self._environments,
            "agents": self._agents,
            "api": self._api,
            "alerts": self._alerts,
            "resources": self._resources,
            "state": self._state,
        }

    async def _matrix(self) -> Check:
        sync, problem = self.chat.sync, self.chat.problem
        if problem == NOT_CONNECTED:
            return Check(State.UNKNOWN, problem, None)
        found = judge(sync.looked_at, problem or sync.problem, _SYNC_EVERY, self.clock.now())
        if not found.fit:
            last = f"; last synced {sync.last_success:%Y-%m-%d %H:%M:%S} UTC" if sync.last_success else ""
            return replace(found, detail=found.detail + last)
        rooms = self.chat.rooms.statuses()
        bad = [f"{room.name}: {room.problem}" for room in rooms if room.problem]
        if not bad:
            return found
        if any(room.problem == NOT_LOOKED_UP for room in rooms):
            return replace(found, state=State.UNKNOWN, detail=_named(bad))
        projects = [room for room in rooms if room.key == PROJECT_ROOMS]
        mute = bool(projects) and all(room.problem for room in projects)
        return replace(found, state=State.FAILED if mute else State.DEGRADED, detail=_named(bad))

    async def _gitlab(self) -> Check:
        found = judge(self.poller.looked_at, self.poller.problem, self.config.gitlab.poll, self.clock.now())
        if not found.fit:
            return found
        await self.gitlab.me()  # the last poll may have been long ago
        troubles = [f"{at}: {why}" for at, why in self.poller.refusals.items()]
        if self.webhooks.problem:
            troubles.insert(0, self.webhooks.problem)
        if troubles:
            return replace(found, state=State.DEGRADED, detail=_named(troubles))
        return replace(found, detail=f"{found.detail}; {self.webhooks.said}") if self.webhooks.said else found

    async def _provider(self) -> Check:
        pool, now = self.core.pool, self.clock.now()
        passes = pool.passes
        problem = "; ".join(
            filter(
                None,
                (
                    pool.blocked,
                    passes.provider,
                    passes.admission and f"no queued sandbox can be started: {passes.admission}",
                    passes.broken_off and f"a pass of the pool failed: {passes.broken_off}",
                ),
            )
        )
        found = judge(passes.ended_at, problem, _PASS_EVERY, now)
        began = passes.began_at
        if not problem and began is not None and abs(now - began) > PERIODS * _PASS_EVERY:
            hangs = (
                f"the pool's pass of {began:%H:%M:%S} UTC has not ended: see the log; restart ravebot if it stays so"
            )
            return replace(found, state=State.FAILED, detail=hangs)
        if found.fit and not await self.provider.connected():
            return Check(State.FAILED, "libvirt does not answer: start libvirtd (systemctl start libvirtd)")
        return found

    async def _firewall(self) -> Check:
        guard = self.core.guard
        audit = self.core.pool.passes.audit
        problem = guard.problem or (audit and f"the firewall's counters of who connected can't be read: {audit}")
        found = judge(guard.looked_at, problem, _PASS_EVERY, self.clock.now())
        if not found.fit:
            return found
        if conflicts := await self.firewall.find_conflicts():
            return Check(State.FAILED, "; ".join(conflicts))
        weakness = self.firewall.weakness
        return replace(found, state=State.DEGRADED, detail=weakness) if weakness else found

    async def _image(self) -> Check:
        image = str(self.config.provider.image)
        held = (await self.database.read(partial(images.get, image=image))).held
        if held:
            return Check(State.FAILED, f"no machines are built from {image}: {held}; {TRIED_AGAIN}")
        named = await self.database.read(lambda tx: _held_by_name(tx, self.config.provider.images))
        return Check(State.DEGRADED, f"{_named(named)}; {TRIED_AGAIN}") if named else Check(State.OK)

    async def _inbox(self) -> Check:
        count, since = await self.database.read(partial(inbox.unhandled, longer_than=_LONG))
        if since is None:
            return Check(State.OK)
        why = f"{count} requests are not handled, the oldest since {since:%Y-%m-%d %H:%M:%S} UTC"
        return Check(State.FAILED, f"{why}: the log says why each failed; restart ravebot if it says nothing")

    async def _outbox(self) -> Check:
        """Messages that wait too long are a failure, unless a single project or room refuses them."""
        troubles = {room.name: room.problem for room in self.chat.rooms.statuses()}
        late, refused = [], []
        for target in self.targets:
            for row in await self.database.read(partial(outbox.waiting, target=target)):
                is_late = abs(self.clock.now() - row.since) > _LONG
                if trouble := row.refused or (is_late and troubles.get(row.name)):
                    refused.append(f"{row.name}: {trouble}")
                elif is_late:
                    late.append(f"{row.name}: {row.count} messages wait, the oldest since {row.since:%H:%M:%S} UTC")
        if late:
            return Check(State.FAILED, _named(late + refused))
        return Check(State.DEGRADED, _named(refused)) if refused else Check(State.OK)

    async def _environments(self) -> Check:
        """What GitLab refuses concerns single projects; so does a list of theirs that can't be read."""
        troubles = [f"{path}: {why}" for path, why in await self.database.read(environments.refused)]
        now = self.clock.now()
        unseen = {
            one.ref.project_id: one.seen_at
            for one in await self.database.read(environments.available)
            if one.seen_at is None or now - one.seen_at > PERIODS * LOOK_EVERY
        }
        troubles += [
            f"project {project}: its environments can't be listed, so nobody can stop a sandbox there"
            for project in sorted(unseen)
        ]
        return Check(State.DEGRADED, _named(troubles)) if troubles else Check(State.OK)

    async def _agents(self) -> Check:
        """Without an SSH client no agent in a sandbox can be reached; otherwise each conversation is on its own."""
        if any(agent.acp for agent in self.config.agents) and shutil.which("ssh", path=self.programs) is None:
            fix = "apt-get install openssh-client, then restart ravebot"
            return Check(State.FAILED, f"no agent can be reached, as OpenSSH's client is not installed: {fix}")
        heads = await self.database.read(agent_work.heads)
        stuck = Counter(one.agent for one in heads if one.tries >= _MANY_TRIES)
        troubles = [f"{agent} can't be reached: {count} conversations wait" for agent, count in sorted(stuck.items())]
        return Check(State.DEGRADED, f"{_named(troubles)}; the log says why") if troubles else Check(State.OK)

    async def _api(self) -> Check:
        """Whether the API answers on its own address, if it has one."""
        if self.config.api.address is None:
            return Check(State.OK, "api.listen is not set: there is none")
        host, port = self.config.api.address
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
        url = URL.build(scheme="http", host=here, port=port, path="/api/v1/openapi.json")
        try:
            async with aiohttp.ClientSession(timeout=_API_TIMEOUT) as session, session.get(url) as answer:
                found = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            why = f"the API does not answer on {host}:{port} ({error or 'too slow'})"
            return Check(State.FAILED, f"{why}: see the log, and restart ravebot if it stays so")
        if found != HTTPStatus.OK:
            return Check(State.FAILED, f"something else answers on api.listen ({host}:{port}): HTTP {found}")
        return Check(State.OK)

    async def _alerts(self) -> Check:
        """Anybody may send a wrong token, and Alertmanager's own requests may be rare: that is told, and no trouble."""
        return Check(State.OK, self.alerts.said)

    async def _resources(self) -> Check:
        """Whether nothing uses more than it should; that hurts, but does not stop ravebot."""
        running = await self.database.read(figures.running)
        found = troubles(await asyncio.to_thread(OwnProcess.now), running)
        return Check(State.DEGRADED, _named(found)) if found else Check(State.OK)

    async def _state(self) -> Check:
        problem = await self.database.problem()
        return Check(State.FAILED if problem else State.OK, problem)


def _held_by_name(tx: Transaction, named: Mapping[str, Path]) -> list[str]:
    """Which images that projects ask for are held, and why."""
    records = {name: images.get(tx, str(path)) for name, path in sorted(named.items())}
    return [
        f"no machines are built from the image {name}: {record.held}" for name, record in records.items() if record.held
    ]


def _named(troubles: Iterable[str]) -> str:
    """The first few, and the number of the others."""
    each = list(troubles)
    more = [f"and {len(each) - _MOST_NAMED} more"] if len(each) > _MOST_NAMED else []
    return "; ".join(each[:_MOST_NAMED] + more)
