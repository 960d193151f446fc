"""One booted machine under check, and what several points ask of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import asyncssh

from ravebot.config.model import Config
from ravebot.errors import GuestError
from ravebot.images.check.point import Found, failed, ok
from ravebot.images.check.trial import Booted, Trial
from ravebot.providers.base import RunResult
from ravebot.sandboxes.chain.guestjobs import GuestJobs

CALL = timedelta(seconds=40)  # su and sudo take long in a machine that has just booted without KVM
_PAUSE_SECONDS = 0.3


@dataclass
class CheckedGuest:
    """The first machine. `host_keys` and `key` are what earlier points found and set."""

    trial: Trial
    booted: Booted
    host_keys: tuple[str, ...] = ()
    key: asyncssh.SSHKey = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))

    @property
    def config(self) -> Config:
        return self.trial.config

    @property
    def user(self) -> str:
        return self.config.sandbox.user

    @property
    def jobs(self) -> GuestJobs:
        return GuestJobs(self.trial.provider, self.user)

    @property
    def public_key(self) -> str:
        """Type and Base64."""
        return " ".join(self.key.export_public_key().decode().split()[:2])

    async def sh(self, script: str, *arguments: str, timeout: timedelta = CALL) -> RunResult:
        """Run a script as root in the guest."""
        argv = ("sh", "-c", script, "sh", *arguments)
        return await self.trial.provider.run(self.booted.name, argv, timeout=timeout)

    async def asked(self, script: str, *arguments: str) -> str:
        """What a script prints. Raises GuestError unless it ends with 0."""
        done = await self.sh(script, *arguments)
        if done.exit_code != 0:
            raise GuestError(
                f"`{script}` ended with code {done.exit_code}: {done.output.strip()[-200:] or 'no output'}"
            )
        return done.output

    async def listens(self, port: int) -> str:
        """How a TCP connection from the host fares: `open`, `refused`, or `silent`, that is no answer in 3 s."""
        try:
            async with asyncio.timeout(3):
                _, writer = await asyncio.open_connection(self.booted.address, port)
        except ConnectionRefusedError:
            return "refused"
        except (OSError, TimeoutError):
            return "silent"
        writer.close()
        return "open"

    async def port_within(self, port: int, limit: timedelta) -> str:
        """The same, tried until it is open or the time is over."""
        deadline = asyncio.get_running_loop().time() + limit.total_seconds()
        while (found := await self.listens(port)) != "open" and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_PAUSE_SECONDS)
        return found


async def answers(trial: Trial, booted: Booted, limit: timedelta) -> Found:
    """Wait for the guest agent, as a build does."""
    loop = asyncio.get_running_loop()
    deadline = booted.started_at + limit.total_seconds()
    while loop.time() < deadline:
        if await trial.provider.ping(booted.name, timedelta(seconds=2)):
            return ok(f"answered {loop.time() - booted.started_at:.1f} s after power-on")
        await asyncio.sleep(_PAUSE_SECONDS)
    return failed(f"no answer within {limit.total_seconds():g} s", "")
