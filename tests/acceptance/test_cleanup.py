"""`ravebot cleanup`, beside the bot and without it: what it is asked for is gone, and nothing else."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import libvirt
import pytest
import pytest_asyncio

from tests.support import leftovers
from tests.support.crashes import rows
from tests.support.stage import Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with Stage({"pool": {"orphan_sweep": "1s"}}) as stage:
        await stage.start()
        yield stage


def nothing_is_left(stage: Stage) -> None:
    assert leftovers.machines(stage) == []
    assert leftovers.disks(stage) == []
    assert leftovers.addresses(stage) == []
    assert leftovers.rules(stage) == []
    assert leftovers.ports(stage) == []


def processes(stage: Stage) -> list[str]:
    """QEMU processes of the stage's machines."""
    found = subprocess.run(["pgrep", "-a", "-f", f"guest=rave-t{stage.mark}-"], capture_output=True, text=True)
    return found.stdout.splitlines()


async def test_cleanup_refuses_what_makes_no_sense(stage: Stage) -> None:
    for arguments, advice in (
        ((), "say what to clean up"),
        (("--all",), "add --force"),
        (("--all", "--force", "--older-than", "1h"), "give one of"),
        (("--older-than", "soon"), "write a duration like"),
        (("--older-than", "4h", "everything"), "unexpected"),
    ):
        done = await stage.bot.command("cleanup", *arguments)
        assert done.returncode == 2, (arguments, done)
        assert advice in re.sub(r"[\s│]+", " ", done.stderr)


async def test_beside_the_bot_only_what_is_old_enough_ends_and_that_is_told(stage: Stage) -> None:
    mr = stage.open_merge_request("Old", "old")
    await stage.ready(mr)
    done = await stage.bot.command("cleanup", "--older-than", "4h")
    assert (done.returncode, "nothing to clean up" in done.stdout) == (0, True), done
    assert len(leftovers.machines(stage)) == 1
    done = await stage.bot.command("cleanup", "--older-than", "1s")
    assert done.returncode == 0, done.stderr
    assert f"group/app!{mr.iid}" in done.stdout
    nothing_is_left(stage)
    note = await stage.note_says(mr, "Sandbox ended: somebody stopped it")
    assert "cleaned up" in note.body


async def test_after_a_kill_cleanup_ends_the_running_machine_gracefully_and_the_bot_tells_of_it_later(
    stage: Stage,
) -> None:
    mr = stage.open_merge_request("Left behind", "left")
    await stage.ready(mr)
    await stage.bot.kill()
    assert len(processes(stage)) == 1
    done = await stage.bot.command("cleanup", "--older-than", "1s")
    assert done.returncode == 0, done.stderr
    assert "No ravebot is running" in done.stderr
    nothing_is_left(stage)
    assert processes(stage) == []
    assert "HostKeyAlias=" in str(stage.note(mr))
    await stage.start()
    await stage.note_says(mr, "Sandbox ended: somebody stopped it")


async def test_a_database_that_lost_its_memory_touches_nothing_until_somebody_says_adopt(stage: Stage) -> None:
    mr = stage.open_merge_request("Forgotten", "forgotten")
    await stage.ready(mr)
    await stage.bot.kill()
    for path in stage.state_dir.glob("ravebot.db*"):
        path.unlink()
    machines, disks = leftovers.machines(stage), leftovers.disks(stage)
    assert (len(machines), len(disks)) == (1, 1)
    stage.bot.start()
    await stage.until(lambda: is_blocked(stage), 20, "/readyz does not say that somebody must decide")
    await asyncio.sleep(6)  # several sweeps
    assert (leftovers.machines(stage), leftovers.disks(stage)) == (machines, disks)
    assert len(processes(stage)) == 1
    other = stage.open_merge_request("Newer", "newer")
    done = await stage.bot.command("cleanup", "--adopt")
    assert done.returncode == 0, done.stderr
    assert machines[0] in done.stdout
    await stage.until(stage.is_ready, 30, "ravebot is not ready again")
    await stage.ready(other)
    assert machines[0] not in leftovers.machines(stage)
    assert len(leftovers.machines(stage)) == 1


async def is_blocked(stage: Stage) -> bool:
    with suppress(aiohttp.ClientError):
        check = (await stage.readiness())["checks"]["provider"]
        return not check["ok"] and "ravebot cleanup" in check["detail"]
    return False


async def test_all_with_the_bot_down_leaves_nothing_of_the_instance(stage: Stage) -> None:
    assert len(leftovers.machines(stage)) == 1
    instance_id = (stage.state_dir / "instance-id").read_text().strip()
    await stage.bot.kill()
    done = await stage.bot.command("cleanup", "--all", "--force")
    assert done.returncode == 0, done.stderr
    nothing_is_left(stage)
    assert processes(stage) == []
    assert not rows(stage, "SELECT 1 FROM sandboxes WHERE state <> 'ended'")
    tables = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout
    assert instance_id not in tables
    routing = subprocess.run(["ip", "rule"], check=True, capture_output=True, text=True).stdout
    assert stage.bridge not in routing
    links = subprocess.run(["ip", "-brief", "link"], check=True, capture_output=True, text=True).stdout
    assert stage.bridge not in links
    done = await stage.bot.command("cleanup", "--all", "--force")
    assert (done.returncode, "nothing to clean up" in done.stdout) == (0, True), done


def of_instance(stage: Stage, instance_id: str) -> dict[str, list[str]]:
    """What libvirt, nftables and the host hold of that instance on the stage's bridge."""
    connection = libvirt.open("qemu:///system")
    try:
        networks = [name for name, xml in leftovers.described(connection.listAllNetworks()) if instance_id in xml]
        machines = [name for name, xml in leftovers.described(connection.listAllDomains()) if instance_id in xml]
        pools = [pool.name() for pool in connection.listAllStoragePools() if instance_id in pool.name()]
    finally:
        connection.close()

    def lines(*command: str, holding: str) -> list[str]:
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [line for line in output.splitlines() if holding in line]

    return {
        "machines": machines,
        "networks": networks,
        "pools": pools,
        "disks": [name for name in leftovers.disks(stage) if instance_id in name],
        "tables": lines("nft", "list", "tables", holding=instance_id),
        "routing": lines("ip", "rule", holding=stage.bridge),
    }


async def test_a_lost_state_folder_leaves_the_host_to_a_new_instance_once_the_old_one_is_cleaned_away() -> None:
    async with Stage() as stage:
        await stage.start()
        await stage.ready(stage.open_merge_request("Before", "before"))
        old = instance_id_of(stage)
        held = of_instance(stage, old)
        assert all(held.values()), held
        shutil.rmtree(stage.state_dir)

        command = ("cleanup", "--instance-id", old, "--all")
        done = await stage.bot.command(*command, "--force")
        assert (done.returncode, "stop it first" in done.stderr) == (1, True), done

        await stage.bot.kill()
        stage.bot.log.write_text("")
        stage.bot.start()
        mend = f"`ravebot cleanup --instance-id {old} --all --force`"
        await stage.until(lambda: mend in stage.bot.log.read_text(), 20, "the log does not say what to do")

        done = await stage.bot.command(*command)
        assert done.returncode == 0, done.stderr
        for names in (held["machines"], held["networks"], held["pools"], held["disks"]):
            assert all(name in done.stdout for name in names), done.stdout
        assert of_instance(stage, old) == held

        done = await stage.bot.command(*command, "--force")
        assert done.returncode == 0, done.stderr
        assert processes(stage) == []
        gone = of_instance(stage, old)
        assert not any(gone[kind] for kind in ("machines", "networks", "pools", "disks", "tables")), gone

        await stage.until(stage.is_ready, 40, "the new instance does not come up")
        new = instance_id_of(stage)
        shared = ("networks", "pools", "tables")
        assert new != old
        there = of_instance(stage, new)
        assert all(there[kind] for kind in shared), there
        done = await stage.bot.command("cleanup", "--all", "--force")
        assert done.returncode == 0, done.stderr
        assert not any(of_instance(stage, new).values()), "beside the running bot something was left"
        await stage.ready(stage.open_merge_request("After", "after"))
        assert all(of_instance(stage, new).values())


def instance_id_of(stage: Stage) -> str:
    return (stage.state_dir / "instance-id").read_text().strip()
