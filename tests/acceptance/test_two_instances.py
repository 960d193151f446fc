"""Two instances on one libvirt, as when tests run beside a production bot: neither touches what is the other's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import AsyncExitStack

import libvirt
import pytest

from tests.support import leftovers
from tests.support.gitlab import Note
from tests.support.stage import ROOT, Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


def instance_id(stage: Stage) -> str:
    return (stage.state_dir / "instance-id").read_text().strip()


def belongings(stage: Stage) -> dict[str, object]:
    """Everything a stage's instance holds on this host, visitors' counters left out."""
    connection = libvirt.open("qemu:///system")
    try:
        domains = {d.name(): d.UUIDString() for d in connection.listAllDomains()}
        networks = {n.name(): n.isActive() for n in connection.listAllNetworks() if n.bridgeName() == stage.bridge}
        pools = [pool.name() for pool in connection.listAllStoragePools() if instance_id(stage) in pool.name()]
    finally:
        connection.close()
    listed = subprocess.run(["nft", "-j", "list", "tables"], check=True, capture_output=True, text=True).stdout
    tables = [item["table"] for item in json.loads(listed)["nftables"] if "table" in item]
    routing = subprocess.run(["ip", "rule"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {
        "machines": {name: domains[name] for name in leftovers.machines(stage)},
        "networks": networks,
        "pools": pools,
        "disks": leftovers.disks(stage),
        "addresses": leftovers.addresses(stage),
        "rules": sorted(leftovers.rules(stage)),
        "tables": sorted((t["family"], t["name"]) for t in tables if instance_id(stage) in t["name"]),
        "routing": sorted(line for line in routing if stage.bridge in line),
    }


async def logs_in(stage: Stage, note: Note) -> bool:
    return (await asyncio.to_thread(stage.ssh, note, "alice", "true")).returncode == 0


async def test_neither_of_two_instances_touches_what_is_the_others_and_a_second_run_on_one_is_refused() -> None:
    async with AsyncExitStack() as stack:
        # Sweeps all the time: what is not its own would be gone soon.
        ours = await stack.enter_async_context(Stage({"pool": {"orphan_sweep": "1s"}}))
        others = await stack.enter_async_context(Stage({"pool": {"orphan_sweep": "1s"}}))
        await asyncio.gather(ours.start(), others.start())
        mrs = [stage.open_merge_request() for stage in (ours, others)]
        our_note, note = await asyncio.gather(ours.ready(mrs[0], 120), others.ready(mrs[1], 120))
        held = belongings(others)
        assert all(held.values()), held
        assert not set(leftovers.machines(ours)) & set(leftovers.machines(others))
        assert ours.ssh(our_note, "alice", "nc", "-w", "2", guest_of(others), "22").returncode != 0

        await asyncio.to_thread(refuses_a_second_run, others)

        done = await ours.bot.command("cleanup", "--all", "--force")
        assert done.returncode == 0, done.stderr
        await ours.note_says(mrs[0], "Sandbox ended", 30)
        assert leftovers.machines(ours) == []
        await asyncio.sleep(5)  # some sweeps of both
        assert belongings(others) == held

        await ours.bot.kill()
        done = await ours.bot.command("cleanup", "--all", "--force")
        assert done.returncode == 0, done.stderr
        assert not any(belongings(ours).values()), belongings(ours)
        await asyncio.sleep(4)
        assert belongings(others) == held
        assert await logs_in(others, note)
        assert await others.is_ready()


def guest_of(stage: Stage) -> str:
    """The address of the stage's only guest."""
    (line,) = leftovers.addresses(stage)
    return line.partition("ip='")[2].partition("'")[0]


def refuses_a_second_run(stage: Stage) -> None:
    assert stage.bot.process
    command = [sys.executable, "-m", "ravebot", "run", "-c", str(stage.bot.config)]
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)
    assert second.returncode == 1
    assert "another ravebot uses" in second.stderr
    assert str(stage.bot.process.pid) in second.stderr
    assert "Traceback" not in second.stderr
