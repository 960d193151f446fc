"""Checks a leased machine: whether it answers, what it uses, who may log in, whether its web port answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from ravebot.clock import Clock, is_due
from ravebot.config.model import Config
from ravebot.errors import ProviderError, RavebotError
from ravebot.providers.base import Provider
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.chain.stages import Chain
from ravebot.sandboxes.edges import Meter
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.machine_life import change, sandbox_and_merge_request
from ravebot.sandboxes.model import NO_KEYS, EventKind, Machine, MachineId, MergeRequest, Sandbox, SandboxState
from ravebot.store import merge_requests, sandboxes
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()

PING = timedelta(seconds=2)
_FOLLOW_SECONDS = 20.0
KEYS_SET_EVERY = timedelta(minutes=5)
"""Keys are set again after this time though nobody's changed: somebody may have edited the file in the guest."""


@dataclass(frozen=True)
class Health:
    """Checks leased machines and records the results."""

    config: Config
    clock: Clock
    database: Database
    provider: Provider
    lifecycle: Lifecycle
    chain: Chain
    meter: Meter
    _keys_set: dict[MachineId, datetime] = field(default_factory=dict)
    """When they were. In memory only: after a restart they are set again."""

    async def check(self, machine: Machine) -> None:
        """Continue a leased machine's chain, or check its health, usage and authorized keys."""
        sandbox, mr = await self.database.read(lambda tx: sandbox_and_merge_request(tx, machine))
        if sandbox is None or mr is None:
            return
        if sandbox.stage is not None:
            await self._run_chain(machine, sandbox)
            return
        await self.sample(machine)
        answers = await self.provider.ping(machine.name, PING)
        await change(
            self.database, machine, lambda tx, fresh: machine_life.looked_at(tx, self.lifecycle, fresh, answers)
        )
        if not answers:
            return
        if sandbox.web_scheme is None and sandbox.web_open:
            scheme = await self.chain.web.scheme(machine.address, self.config.sandbox.web_port)
            if scheme:
                await self._note(sandbox, scheme=scheme)
        await self._set_keys(machine, sandbox, mr)

    async def _run_chain(self, machine: Machine, sandbox: Sandbox) -> None:
        """One that is ready lets people in while it takes new code, so who can log in is looked at meanwhile."""
        ready = sandbox.state is SandboxState.READY
        following = asyncio.create_task(self._follow_keys(machine)) if ready else None
        try:
            await self.chain.run(sandbox.id)
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _follow_keys(self, machine: Machine) -> None:
        while True:  # a push cancels this, and pushes may come often: so the look comes first
            try:
                sandbox, mr = await self.database.read(lambda tx: sandbox_and_merge_request(tx, machine))
                if sandbox is not None and mr is not None:
                    await self._set_keys(machine, sandbox, mr)
            except RavebotError as error:
                log.info("keys not set", machine=machine.name, error=str(error))
            await asyncio.sleep(_FOLLOW_SECONDS)

    async def _set_keys(self, machine: Machine, sandbox: Sandbox, mr: MergeRequest) -> None:
        now, last = self.clock.now(), self._keys_set.get(machine.id)
        again = last is None or is_due(last, KEYS_SET_EVERY, now)
        keys = await self.chain.letting_in.follow(machine, mr, again=again)
        if keys is not None:
            self._keys_set[machine.id] = now
            await self._note(sandbox, notice_keys=not keys)

    async def sample(self, machine: Machine) -> None:
        """Store what the machine used so far, for the summary at the end."""
        try:
            used = await self.provider.usage(machine.name)
        except ProviderError:
            return

        def store(tx: Transaction, fresh: Machine) -> None:
            grown = machine_life.used(tx, fresh, used)
            _, mr = sandbox_and_merge_request(tx, fresh)
            if mr is not None:
                self.meter.machine_used(mr.project_path, grown.cpu_seconds, grown.received_bytes, grown.sent_bytes)

        await change(self.database, machine, store)

    def forget(self, machine: Machine) -> None:
        """It is gone."""
        self._keys_set.pop(machine.id, None)
        self.chain.letting_in.forget(machine)

    # Web port and keys are only shown to people: they are not part of the lifecycle.
    async def _note(self, then: Sandbox, *, notice_keys: bool | None = None, scheme: str | None = None) -> None:
        def write(tx: Transaction) -> None:
            sandbox = sandboxes.get(tx, then.id)
            if sandbox is None or sandbox.state is not SandboxState.READY:
                return
            if scheme:
                found = replace(sandbox, web_scheme=scheme)
                sandboxes.save(tx, found)
                self.lifecycle.journal.record(tx, EventKind.WEB_FOUND, sandbox=found, data={"scheme": scheme})
            if notice_keys is not None and notice_keys != (sandbox.notice == NO_KEYS):
                told = replace(sandbox, notice=NO_KEYS if notice_keys else "")
                if not notice_keys or not sandbox.notice:
                    sandboxes.save(tx, told)
                    mr = merge_requests.get(tx, sandbox.mr)
                    assert mr
                    self.lifecycle.journal.refresh(tx, told, mr)

        await self.database.write(write)
