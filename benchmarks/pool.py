"""One pass of the pool's loop over many machines, on libvirt's in-memory driver and a real database on disk.

Each size runs in a process of its own (`python -m benchmarks.pool COUNT`), so that its memory is its own.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import uuid
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from pydantic import TypeAdapter

from benchmarks.figures import Figure, median, ms, percentile, spread
from ravebot.access.rules import NoFirewall
from ravebot.app import freeze_objects
from ravebot.clock import SystemClock
from ravebot.config.model import Config
from ravebot.errors import NotFound
from ravebot.parts import Core, make_core
from ravebot.providers.base import MachineSpec
from ravebot.providers.libvirt import LibvirtProvider
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.lifecycle import Allocation
from ravebot.sandboxes.model import (
    RAVEBOT,
    Machine,
    MachineId,
    MachineState,
    MergeRequest,
    MergeRequestRef,
    Person,
    SandboxState,
    Stage,
)
from ravebot.sandboxes.naming import names
from ravebot.sandboxes.pool.flights import Flights
from ravebot.store import machines, merge_requests, outbox, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import POOL
from ravebot.store.targets import GITLAB, MATRIX
from ravebot.web.metrics import Metrics

SIZES = (10, 100, 1000)
PASSES = 40
LOOP_SECONDS = 30.0
TICK_SECONDS = 0.005
AIM_SECONDS = 0.1
_TEST_DRIVER = "<node><cpu><nodes>1</nodes></cpu><memory>8000000</memory></node>"


async def measure() -> tuple[Figure, ...]:
    found = {size: await _in_a_process(size) for size in SIZES}
    figures = [
        Figure(f"one pass, {size} machines", spread(found[size]["settled"]), note=f"{PASSES} passes, nothing due")
        for size in SIZES
    ]
    most = found[SIZES[-1]]
    late = percentile(most["settled"], 99)
    figures[-1] = replace(figures[-1], aim=f"< {ms(AIM_SECONDS)}", met=late < AIM_SECONDS)
    growth = median(most["settled"]) / median(found[SIZES[1]]["settled"])
    times = SIZES[-1] // SIZES[1]
    return (
        *figures,
        Figure(
            f"growth from {SIZES[1]} to {SIZES[-1]}",
            f"{growth:.1f} times",
            f"at most {times} times",
            growth <= times,
        ),
        Figure(
            f"the loop at work, {SIZES[-1]} machines",
            spread(most["passes"]),
            note=f"{len(most['passes'])} passes in {LOOP_SECONDS:.0f} s, every machine's health checked each 20 s",
        ),
        Figure(
            "event loop delay meanwhile",
            spread(most["delays"]),
            note=f"how late a sleep of {ms(TICK_SECONDS)} ends; longest {ms(max(most['delays']))}",
        ),
        Figure(
            f"resident memory, {SIZES[-1]} machines",
            f"{most['memory'] / 1024**2:.0f} MiB",
            note=f"{found[SIZES[0]]['memory'] / 1024**2:.0f} MiB with {SIZES[0]}; the driver's own machines included",
        ),
    )


async def _in_a_process(size: int) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.pool", str(size), stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)  # it removes its folder then
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the measurement with {size} machines ended with code {process.returncode}: see above")
    found: dict[str, Any] = json.loads(output)
    return found


class AnsweringProvider(LibvirtProvider):
    """libvirt's in-memory driver has no guests; this answers for them: healthy, and every key is accepted."""

    async def ping(self, name: str, timeout: timedelta) -> bool:
        return True

    async def authorize_keys(self, name: str, user: str, keys: object) -> None:
        return None


class NobodyHasKeys:
    """Stands in for GitLab: nobody has SSH keys, and there is no code."""

    async def ssh_keys(self, user_id: int) -> tuple[str, ...]:
        return ()

    async def archive(self, project_id: int, sha: str, target: Path, max_bytes: int) -> int:
        raise NotFound("there is no code here")


@dataclass
class Passes(Metrics):
    """The bot's metrics, which also record how long each pass took."""

    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def pass_done(self, seconds: float) -> None:
        super().pass_done(seconds)
        self.seconds.append(seconds)


@dataclass
class Delays:
    """Measures the delay of the event loop."""

    seconds: list[float] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(TICK_SECONDS)
            self.seconds.append(max(0.0, loop.time() - began - TICK_SECONDS))


def _config(folder: Path, count: int) -> Config:
    room = {"room": "#dev:localhost", "projects": ["group/*"]}
    return TypeAdapter(Config).validate_python(
        {
            "instance": "bench",
            "state_dir": str(folder / "state"),
            "matrix": {
                "homeserver": "http://127.0.0.1:1",
                "user_id": "@ravebot:localhost",
                "password_file": str(folder / "none"),
                "rooms": [room],
            },
            "gitlab": {
                "url": "http://127.0.0.1:1",
                "token_file": str(folder / "none"),
                "projects": ["group/*"],
                "webhook": {"secret_token_file": str(folder / "none")},
            },
            "pool": {"max_running": count, "lifetime": "8h"},
            "sandbox": {
                "memory": "64MiB",
                "disk": "1GiB",
                "host": "127.0.0.1",
                "ssh_ports": "10000-11999",
                "web_ports": "12000-13999",
            },
            "provider": {
                "uri": f"test://{folder}/driver.xml",
                "network": "none",
                "bridge": {"subnet": "10.64.0.0/16"},
                "storage_pool": str(folder / "disks"),
                "image": str(folder / "image.qcow2"),
            },
        }
    )


async def _populate(core: Core, database: Database, provider: LibvirtProvider, config: Config, count: int) -> None:
    """Create that many ready sandboxes on running machines, by the pool's own steps."""
    for number in range(count):
        machine = await database.write(partial(_one, core=core, config=config, number=number))
        await provider.create(
            MachineSpec(
                name=machine.name,
                uuid=machine.uuid,
                mac=machine.mac,
                address=machine.address,
                tap=machine.tap,
                memory_bytes=machine.memory_bytes,
                vcpus=1,
                disk_bytes=machine.disk_bytes,
                image=config.provider.image,
                kernel=None,
                initrd=None,
                cmdline="",
            )
        )
        await provider.start(machine.name)


def _one(tx: Transaction, core: Core, config: Config, number: int) -> Machine:
    ref = MergeRequestRef(1, number + 1)
    sha = f"{number:040x}"
    author = Person(1, "alice")
    told = MergeRequest(ref, "group/app", f"Change {number}", "http://127.0.0.1:1/", "branch", 1, sha, author)
    _, mr = merge_requests.observe(tx, told)
    core.lifecycle.asked(tx, mr, Happened.START_ASKED, RAVEBOT)
    sandbox = sandboxes.current(tx, ref)
    assert sandbox
    fresh = names(config.instance, uuid.uuid4().bytes)
    subnet = config.provider.bridge.subnet
    machine = Machine(
        MachineId(0), fresh.name, fresh.uuid, MachineState.BUILDING, str(config.provider.image),
        str(subnet.network_address + 2 + number), fresh.mac, fresh.tap, tx.now, tx.now,
        memory_bytes=config.sandbox.memory, disk_bytes=config.sandbox.disk,
    )  # fmt: skip
    place = Allocation(machine, 10_000 + number, 12_000 + number)
    core.lifecycle.happened(tx, sandbox, Happened.MACHINE_READY, allocation=place)
    [machine] = machines.of_sandbox(tx, sandbox.id)
    assert machine_life.claim(tx, core.lifecycle, machine)
    claimed = sandboxes.get(tx, sandbox.id)
    assert claimed
    announced = replace(claimed, stage=Stage.ANNOUNCE, ports_open=True, web_scheme="http")
    core.lifecycle.happened(tx, announced, Happened.MACHINE_READY)
    for target, lane in ((MATRIX, "#dev:localhost"), (GITLAB, f"1!{number + 1}")):
        while message := outbox.head(tx, target, lane):
            outbox.delivered(tx, message.id, "told")
    saved = machines.get(tx, machine.id)
    found = sandboxes.get(tx, sandbox.id)
    assert saved
    assert found
    assert found.state is SandboxState.READY
    return saved


async def _settled(core: Core, flights: Flights) -> None:
    """Run one pass that starts whatever is due, and wait until that has ended."""
    await core.pool.one_pass(flights)
    while flights.any():
        await asyncio.sleep(0.05)


async def _measure(count: int, folder: Path) -> dict[str, Any]:
    config, clock, metrics = _config(folder, count), SystemClock(), Passes()
    (folder / "driver.xml").write_text(_TEST_DRIVER)
    image = ("qemu-img", "create", "-q", "-f", "qcow2", str(config.provider.image), "1G")
    await (await asyncio.create_subprocess_exec(*image)).wait()
    async with Database(folder / "state" / "ravebot.db", clock) as database:
        provider = AnsweringProvider(
            config.provider, instance="bench", instance_id=database.instance_id, egress="none", state_dir=folder
        )
        core = make_core(config, database, clock, provider, NoFirewall(), NobodyHasKeys(), metrics)
        try:
            await provider.open()
            freeze_objects()  # as the bot does at its start
            await _populate(core, database, provider, config, count)
            async with asyncio.TaskGroup() as group:
                flights = Flights(group, lambda: database.signals.wake(POOL))
                await _settled(core, flights)
                await _settled(core, flights)
                metrics.seconds.clear()
                for _ in range(PASSES):
                    await core.pool.one_pass(flights)
                    await asyncio.sleep(0.01)
                while flights.any():
                    await asyncio.sleep(0.05)
                settled, metrics.seconds = metrics.seconds, []
                async with Delays() as delays:
                    running = asyncio.create_task(core.pool.run())
                    await asyncio.sleep(LOOP_SECONDS)
                    running.cancel()
                    await asyncio.wait({running})
            memory = psutil.Process().memory_info().rss
        finally:
            await provider.close()
    return {"settled": settled, "passes": metrics.seconds, "delays": delays.seconds, "memory": memory}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ravebot-bench-") as folder:
        print(json.dumps(asyncio.run(_measure(int(sys.argv[1]), Path(folder)))))


if __name__ == "__main__":
    main()
