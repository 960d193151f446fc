"""Looks at every point of the contract, in order; none can hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import asyncssh

from ravebot.config.model import Config
from ravebot.errors import GuestError, GuestTimeout, ProviderError
from ravebot.images.check.contract import AGENT, CONTRACT, host_keys
from ravebot.images.check.guest import CheckedGuest, answers
from ravebot.images.check.point import Found, Point, failed, ok
from ravebot.images.check.trial import Trial
from ravebot.operations.doctor import machines
from ravebot.operations.doctor.finding import Verdict
from ravebot.providers.libvirt.disks import image_size
from ravebot.sandboxes.view import in_bytes, without_terminal_codes

_CONSOLE_LINES = 12
_FINE = (Verdict.OK, Verdict.WARNING)
_MORE = timedelta(seconds=10)  # beyond the limit that the wait itself keeps
_HOST_KEYS = timedelta(minutes=2)
_NO_IMAGE = "give a qcow2 file; `qemu-img convert -O qcow2` makes one of other formats, without references"
_SILENT = (
    "install qemu-guest-agent and let it start at boot; if the console ends before a login prompt, the boot hangs; if"
    " the machine is only slow, raise pool.build_timeout"
)


@dataclass
class Examination:
    """One image. `begins` is called with a point's name before it is looked at, `told` with each result."""

    config: Config
    begins: Callable[[str], None]
    told: Callable[[Point], None]

    async def run(self) -> tuple[Point, ...]:
        """Raises Refused, Unavailable and ProviderError if the host can't try an image at all."""
        self._points: list[Point] = []
        file = await self._look("file", timedelta(seconds=10), _NO_IMAGE, lambda: _file(self.config))
        if file.verdict is Verdict.OK:
            self.begins("machine")
            async with Trial(self.config, image_size(self.config.provider.image)) as trial:
                await self._first_machine(trial)
        return tuple(self._points)

    async def _first_machine(self, trial: Trial) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            booted = await trial.boot()
        except ProviderError as error:
            self._tell(Point("machine", Verdict.FAILED, str(error), "see libvirt's log", loop.time() - began))
            return
        limit = self.config.pool.build_timeout
        await self._look(AGENT, limit + _MORE, _SILENT, lambda: answers(trial, booted, limit), trial)
        guest = CheckedGuest(trial, booted)
        for clause in CONTRACT:
            broken = [point.name for point in self._points if point.name in clause.needs and point.verdict not in _FINE]
            if broken:
                self._tell(Point(clause.name, Verdict.UNKNOWN, f"not looked at: {broken[0]} comes first", "", 0.0))
            else:
                await self._look(clause.name, clause.limit, clause.fix, partial(clause.look, guest))
        await trial.provider.destroy(booted.name)
        if guest.host_keys:
            again = partial(_second_boot, trial, guest, limit)
            await self._look("first boot", limit + _HOST_KEYS, _SILENT, again, trial)

    async def _look(
        self,
        name: str,
        limit: timedelta,
        fix: str,
        look: Callable[[], Awaitable[Found]],
        silent: Trial | None = None,
    ) -> Point:
        self.begins(name)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(limit.total_seconds()):
                found = await look()
        except TimeoutError:
            found = failed(f"not done within {limit.total_seconds():g} s", fix)
        except GuestTimeout as error:
            found = failed(str(error), f"{fix}; or the machine is slow: does it have KVM, and enough processors?")
        except (GuestError, ProviderError, asyncssh.Error, OSError, ValueError) as error:
            found = failed(str(error) or type(error).__name__, fix)
        console = ""
        if found.verdict is Verdict.FAILED and silent is not None:
            console = _end_of(await silent.console())
        fix = "" if found.verdict is Verdict.OK else found.fix or fix
        point = Point(name, found.verdict, found.detail, fix, loop.time() - began, console)
        self._tell(point)
        return point

    def _tell(self, point: Point) -> None:
        self._points.append(point)
        self.told(point)


async def _file(config: Config) -> Found:
    image, disk_bytes = config.provider.image, config.sandbox.disk
    size = await asyncio.to_thread(image_size, image)
    if size > disk_bytes:
        detail = f"a disk of {in_bytes(size)}, and a sandbox's has only {in_bytes(disk_bytes)}"
        return failed(detail, "raise sandbox.disk, or make the image smaller")
    _, qemu = await machines.libvirt(config.provider)
    if hidden := await asyncio.to_thread(machines.closed_to_qemu, image, qemu):
        fix = f"chmod o+x {hidden}, or put the image elsewhere"
        return failed(f"QEMU's user can't reach {image}: it can't enter {hidden}", fix)
    facts = await asyncio.to_thread(image.stat)
    return ok(f"qcow2 of {in_bytes(size)}, takes {in_bytes(facts.st_blocks * 512)}")


async def _second_boot(trial: Trial, guest: CheckedGuest, limit: timedelta) -> Found:
    """Another machine of the same image has other host keys."""
    second = CheckedGuest(trial, await trial.boot())
    answered = await answers(trial, second.booted, limit)
    if answered.verdict is not Verdict.OK:
        return failed(f"a second machine: {answered.detail}")
    shown = await host_keys(second)
    if shown.verdict is not Verdict.OK:
        return failed(f"a second machine: {shown.detail}", shown.fix)
    if set(second.host_keys) & set(guest.host_keys):
        fix = "remove /etc/ssh/ssh_host_* from the image, and make them at the first boot: ssh-keygen -A"
        return failed("two machines show the same SSH host key: it is baked into the image", fix)
    return ok("a second machine has other host keys")


def _end_of(console: str) -> str:
    lines = [line.rstrip() for line in without_terminal_codes(console).splitlines()]
    return "\n".join([line for line in lines if line][-_CONSOLE_LINES:])
