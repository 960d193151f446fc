"""One run of the demo: sets the stage up, and always takes it down."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import subprocess
import traceback
from contextlib import AsyncExitStack
from pathlib import Path

from ravebot.errors import RavebotError
from tests.support.demo.screen import Screen
from tests.support.demo.story import Story, machines
from tests.support.demo.watch import DemoError, Watch
from tests.support.guest_image import GuestImageError
from tests.support.libvirtd import LibvirtdError
from tests.support.stage import Stage

_FAILED, _INTERRUPTED = 1, 130
_LOG_LINES = 12


class Demo:
    """`run` gives the exit code: 0 only when everything that was told was seen, and nothing is left."""

    def __init__(self, keep: bool, stage: Stage) -> None:
        self._keep, self._stage = keep, stage
        self._screen = Screen()
        self._interrupted = False
        self._through = False  # the story was told to its end

    async def run(self) -> int:
        stage = self._stage
        stack = AsyncExitStack()
        playing = asyncio.create_task(self._play(stage, stack))
        self._screen.on_lost = playing.cancel
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt, playing)
        await asyncio.wait({playing})
        problem = "" if playing.cancelled() else playing.result()
        if hasattr(stage, "bot"):  # set up to its end
            problem = "\n".join(filter(None, (problem, await self._take_away(stage, stack))))
        elif self._interrupted:
            self._screen.say("The stage was not set yet; what there was of it is taken away again.")
        if problem:
            self._screen.failed(problem)
        elif self._through:
            self._screen.say("All of this was seen to happen, none of it was played.", "bold")
        if problem:
            return _FAILED
        return 0 if self._through else _INTERRUPTED

    def _interrupt(self, playing: asyncio.Task[str]) -> None:
        if self._interrupted or playing.done():
            self._screen.say("Still taking everything away: a moment, please.")
            return
        self._interrupted = True
        playing.cancel()
        self._screen.say("")

    async def _play(self, stage: Stage, stack: AsyncExitStack) -> str:
        """Set the stage and tell the story; what went wrong, empty when nothing did."""
        try:
            await self._set(stage, stack)
            await self._tell(stage)
        except (DemoError, AssertionError) as error:
            # The stage's own assertions carry much of the log after their first line.
            what = str(error) if isinstance(error, DemoError) else str(error).partition("\n")[0]
            return "\n".join([what, *_log_of(stage)])
        except (GuestImageError, LibvirtdError, RavebotError, RuntimeError) as error:
            return f"{error}\n./dev demo installs what is missing; ./dev setup does only that."
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode() if isinstance(error.stderr, bytes) else error.stderr or ""
            return (
                f"`{' '.join(map(str, error.cmd))}` failed: {said.strip()}\n"
                "Where this is root in a container, it also needs CAP_NET_ADMIN and CAP_SYS_ADMIN."
            )
        except Exception as error:  # any error is reported, and everything is cleaned up
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                return f"{error}\n--port gives GitLab's stand-in another one."
            return "\n".join([_unforeseen(error), *_log_of(stage)])
        return ""

    async def _set(self, stage: Stage, stack: AsyncExitStack) -> None:
        screen = self._screen
        screen.chapter("Setting the stage: all of it throwaway, all of it on this host")
        if stage.must_build:
            screen.say("The machines' image is built first, once: about a minute. `./dev demo --tiny` needs none.")
        async with screen.waiting("Synapse, the GitLab stand-in, a guest image, a network"):
            await stack.enter_async_context(stage)
        screen.seen(f"Synapse, a real Matrix homeserver: {stage.synapse.url}")
        screen.seen(f"a stand-in for GitLab: {stage.gitlab.url}")

    async def _tell(self, stage: Stage) -> None:
        screen = self._screen
        since = str((await stage.matrix_alice.sync())["next_batch"])
        async with screen.waiting("ravebot starts"):
            await stage.start()
        parts = ", ".join((await stage.readiness())["checks"])
        screen.seen(f"ravebot, ready by its own word ({parts}): {stage.http}/readyz")
        story = Story(stage, screen, Watch(stage, screen, since), self._keep)
        try:
            await story.tell()
        finally:
            self._through = story.through

    async def _take_away(self, stage: Stage, stack: AsyncExitStack) -> str:
        """What the clean-up left, or its error; empty when all is gone."""
        try:
            identity = stage.state_dir / "instance-id"
            instance_id = identity.read_text().strip() if identity.exists() else None
            async with self._screen.waiting("Taking everything away"):
                try:
                    await stage.bot.stop()
                finally:
                    await stack.aclose()
                left = await asyncio.to_thread(_left_over, stage, instance_id)
        except Exception as error:
            return f"Not everything may be taken away: {_unforeseen(error)}"
        if not left:
            self._screen.seen("nothing is left: no machine, no network, no firewall rule, no file")
        return left


def _log_of(stage: Stage) -> list[str]:
    if not hasattr(stage, "bot") or not stage.bot.log.exists():
        return []
    return ["The end of ravebot's log:", *stage.bot.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]]


def _unforeseen(error: Exception) -> str:
    """Enough to report it: what it was, and where."""
    *_, where = traceback.extract_tb(error.__traceback__)
    return f"this was not foreseen, in {Path(where.filename).name}, line {where.lineno}: {error!r}"


def _left_over(stage: Stage, instance_id: str | None) -> str:
    tables = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, text=True, check=True).stdout
    names = {entry["table"]["name"] for entry in json.loads(tables)["nftables"] if "table" in entry}
    rules = [
        rule
        for family in ("-4", "-6")
        for rule in subprocess.run(["ip", family, "rule"], capture_output=True, text=True).stdout.splitlines()
    ]
    left = {
        "machines": machines(stage),
        "network": [stage.bridge] if Path("/sys/class/net", stage.bridge).exists() else [],
        "firewall tables": [name for name in names if instance_id and instance_id in name],
        "routing rules": [rule for rule in rules if f"iif {stage.bridge} " in rule],
        "files": [str(stage.folder)] if stage.folder.exists() else [],
    }
    return "; ".join(f"left over: {what} {', '.join(found)}" for what, found in left.items() if found)
