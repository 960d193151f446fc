"""One run of the demo, from the stage's setting to its taking away, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from tests.support.demo.screen import Screen
from tests.support.demo.story import SETTINGS, Story, machines
from tests.support.demo.watch import DemoError, Watch
from tests.support.guest_image import GuestImageError
from tests.support.libvirtd import LibvirtdError
from tests.support.stage import Stage

_FAILED, _INTERRUPTED = 1, 130
_LOG_LINES = 12


class Demo:
    """`run` gives the exit code: 0 only when everything that was told was seen, and nothing is left."""

    def __init__(self, keep: bool, port: int, picture: Path | None) -> None:
        self._keep, self._port, self._picture = keep, port, picture
        self._screen = Screen(Console(highlight=False, markup=False, emoji=False, record=picture is not None))
        self._interrupted = False

    async def run(self) -> int:
        task = asyncio.create_task(self._told())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt, task)
        await asyncio.wait({task})
        code = _INTERRUPTED if task.cancelled() else task.result()
        if self._interrupted:
            self._screen.say("Everything that the demo started is gone.")
        if self._picture:
            self._screen.console.save_svg(str(self._picture), title="./dev demo")
        return 0 if self._interrupted and self._keep else code

    def _interrupt(self, task: asyncio.Task[int]) -> None:
        if self._interrupted:
            self._screen.say("Still taking everything away: a moment, please.")
            return
        self._interrupted = True
        self._screen.say("\nInterrupted: taking everything away again …")
        task.cancel()

    async def _told(self) -> int:
        stage = Stage(SETTINGS, gitlab_port=self._port)
        stack = AsyncExitStack()
        problem = ""
        try:
            try:
                await self._set(stage, stack)
                problem = await self._tell(stage)
            finally:
                async with self._screen.waiting("Taking everything away"):
                    instance_id = _instance_id(stage)
                    await stack.aclose()
        except (GuestImageError, LibvirtdError, RuntimeError) as error:
            return self._failed(str(error))
        except OSError as error:
            return self._failed(f"{error}. Is the port taken? --port gives another one")
        except subprocess.CalledProcessError as error:
            said = (error.stderr or b"").decode() if isinstance(error.stderr, bytes) else error.stderr
            return self._failed(
                f"`{' '.join(map(str, error.cmd))}` failed: {said}\n"
                "In a container, root also needs to be let (CAP_NET_ADMIN, CAP_SYS_ADMIN, /dev/net/tun)."
            )
        problem = problem or await asyncio.to_thread(_left_over, stage, instance_id)
        if problem:
            return self._failed(problem)
        self._screen.seen("nothing is left: no machine, no network, no firewall rule, no file")
        self._screen.say("All of this was seen to happen, none of it was played.", "bold")
        return 0

    async def _set(self, stage: Stage, stack: AsyncExitStack) -> None:
        screen = self._screen
        screen.chapter("Setting the stage: all of it throwaway, all of it on this host")
        async with screen.waiting("Synapse, the GitLab stand-in, a guest image, a network"):
            await stack.enter_async_context(stage)
        screen.seen(f"Synapse, a real Matrix homeserver: {stage.synapse.url}")
        screen.seen(f"a stand-in for GitLab: {stage.gitlab.url}")

    async def _tell(self, stage: Stage) -> str:
        """What went wrong; empty when nothing did."""
        screen = self._screen
        try:
            since = str((await stage.matrix_alice.sync())["next_batch"])
            async with screen.waiting("ravebot starts"):
                await stage.start()
            parts = ", ".join((await stage.readiness())["checks"])
            screen.seen(f"ravebot, ready by its own word ({parts}): {stage.http}/readyz")
            await Story(stage, screen, Watch(stage, screen, since), self._keep).tell()
        except (DemoError, AssertionError) as error:
            log = stage.bot.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            return "\n".join([str(error), "The end of ravebot's log:", *log])
        return ""

    def _failed(self, problem: str) -> int:
        self._screen.failed(problem)
        return _FAILED


def _instance_id(stage: Stage) -> str:
    """What the names of everything of that ravebot contain; a word of no meaning where it never ran."""
    path = stage.state_dir / "instance-id" if hasattr(stage, "folder") else None
    return path.read_text().strip() if path and path.exists() else "never-ran"


def _left_over(stage: Stage, instance_id: str) -> str:
    """What is still there after the end; empty when nothing is."""
    tables = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, text=True, check=True).stdout
    names = {entry["table"]["name"] for entry in json.loads(tables)["nftables"] if "table" in entry}
    left = {
        "machines": machines(stage),
        "network": [stage.bridge] if Path("/sys/class/net", stage.bridge).exists() else [],
        "firewall tables": [name for name in names if instance_id in name],
        "files": [str(stage.folder)] if stage.folder.exists() else [],
    }
    return "; ".join(f"left over: {what} {', '.join(found)}" for what, found in left.items() if found)
