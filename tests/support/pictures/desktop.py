"""A virtual screen with a window manager and a D-Bus session of its own: nothing of this machine's desktop is used."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.pictures.picture import Picture
from tests.support.pictures.programs import PictureError, run, running

_START_SECONDS = 20


class Desktop:
    """`async with Desktop(folder, 1280, 900)`; `environment` is what a program needs to show up on it."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self.folder, self.width, self.height = folder, width, height
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_DATA_HOME": str(folder / "data"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "QT_QUICK_BACKEND": "software",
            "LIBGL_ALWAYS_SOFTWARE": "1",
            "QT_SCALE_FACTOR": "1",
            "NO_AT_BRIDGE": "1",
        }
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for name in ("config", "data", "cache", "run"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        try:
            screen = f"{self.width}x{self.height}x24"
            number = await self._start("Xvfb", "-screen", "0", screen, "-nolisten", "tcp", "-displayfd")
            self.environment["DISPLAY"] = f":{number}"
            bus = await self._start("dbus-daemon", "--session", "--nofork", "--print-address", joined=True)
            self.environment["DBUS_SESSION_BUS_ADDRESS"] = bus
            await self.run("openbox")  # without a window manager there are no dialogs and no focus
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, *command: str, stack: AsyncExitStack | None = None) -> subprocess.Popen[bytes]:
        """Start a program on this screen; it ends with the screen, or earlier with `stack`."""
        log = self.folder / f"{command[0]}.log"
        return await (stack or self._stack).enter_async_context(running(command, log, self.environment))

    async def look(self) -> Picture:
        """The whole screen."""
        shot = await run("import", "-window", "root", "-depth", "8", "ppm:-", environment=self.environment)
        return Picture.read(shot)

    async def xdotool(self, *arguments: str) -> str:
        return (await run("xdotool", *arguments, environment=self.environment)).decode().strip()

    async def click(self, x: int, y: int) -> None:
        """Press the left button there, and take the pointer away, so that nothing is highlighted."""
        await self.xdotool("mousemove", str(x), str(y), "click", "1")
        await self.point_at_nothing()

    async def point_at_nothing(self) -> None:
        await self.xdotool("mousemove", str(self.width - 1), str(self.height - 1))

    async def _start(self, *command: str, joined: bool = False) -> str:
        """Start a server that writes its address into an open file, whose number ends its last argument."""
        log, address = self.folder / f"{command[0]}.log", self.folder / f"{command[0]}.address"
        with address.open("wb") as file:
            last = [f"{command[-1]}={file.fileno()}"] if joined else [command[-1], str(file.fileno())]
            started = running([*command[:-1], *last], log, self.environment, (file.fileno(),))
            await self._stack.enter_async_context(started)
        deadline = time.monotonic() + _START_SECONDS
        while not (said := address.read_text()).endswith("\n"):
            if time.monotonic() > deadline:
                raise PictureError(f"{command[0]} did not start: {log.read_text(errors='replace')[-500:]}")
            await asyncio.sleep(0.1)
        return said.strip()
