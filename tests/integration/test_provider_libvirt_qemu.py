"""The provider contract on real QEMU machines behind a real bridge, and how their lives go on and end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh
import libvirt
import pytest
from structlog.testing import capture_logs

from ravebot.agents.diff.comparing import comparison
from ravebot.agents.diff.guestfiles import GuestFiles
from ravebot.errors import GuestError, GuestTimeout, ProviderError, Unavailable
from ravebot.providers.base import OUTPUT_LIMIT_BYTES, Holdings, MachineSpec, ProviderEvent
from ravebot.providers.libvirt import LibvirtRemains
from ravebot.providers.libvirt.definitions import dhcp_host_xml, learning_network_xml, network_xml
from ravebot.sandboxes.chain.guestjobs import GuestJobs
from ravebot.sandboxes.model import CODE_FOLDER, Observed
from tests.integration.provider_contract import SECOND, GuestContract, observed, wait_for_state
from tests.integration.provider_libvirt import LibvirtBench, LibvirtContract, bridge_of_its_own
from tests.integration.provider_qemu import BOOT_SECONDS, boot_up, qemu_bench, running_guest
from tests.support.gitlab.archive import tar_gz
from tests.support.libvirtd import restart_libvirtd, without_others

pytestmark = pytest.mark.integration
WEB_PORT = 3002


@pytest.fixture
def bench() -> Iterator[LibvirtBench]:
    with qemu_bench() as bench:
        yield bench


@pytest.fixture(scope="module")
def guest() -> Iterator[tuple[LibvirtBench, MachineSpec]]:
    with running_guest() as guest:
        yield guest


def key_pair() -> tuple[asyncssh.SSHKey, str]:
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key, " ".join(key.export_public_key().decode().split()[:2])


def keeps_macs(bench: LibvirtBench) -> bool:
    """Whether the kernel can have a bridge whose table of MACs libvirt keeps: it needs CONFIG_BRIDGE_VLAN_FILTERING."""
    return Path("/sys/class/net", bench.config.bridge.name, "bridge", "vlan_filtering").exists()


def logged_in(address: str, key: asyncssh.SSHKey, host_keys: tuple[str, ...]) -> AbstractAsyncContextManager[Any]:
    """An SSH connection to the guest; only the given host keys are accepted."""
    known = asyncssh.import_known_hosts("".join(f"{address} {host_key}\n" for host_key in host_keys))
    options = {"username": "agent", "client_keys": [key], "agent_path": None, "known_hosts": known}
    connecting: AbstractAsyncContextManager[Any] = asyncssh.connect(address, **options)
    return connecting


async def log_in(address: str, key: asyncssh.SSHKey, host_keys: tuple[str, ...]) -> str:
    """Log in over SSH and say who we are there."""
    async with logged_in(address, key, host_keys) as connection:
        return str((await connection.run("id -un", check=True)).stdout).strip()


class TestLibvirtQemu(LibvirtContract):
    """The shared contract."""


class TestAGuestThatBehaves(GuestContract):
    async def test_its_host_key_is_read_and_an_authorized_key_logs_in(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        host_keys = await bench.provider.host_keys(spec.name)
        assert [key.split()[0] for key in host_keys] == ["ssh-ed25519"]
        (first, first_public), (second, second_public) = key_pair(), key_pair()
        await bench.provider.authorize_keys(spec.name, "agent", [first_public])
        assert await log_in(spec.address, first, host_keys) == "agent"
        await bench.provider.authorize_keys(spec.name, "agent", [second_public])
        assert await log_in(spec.address, second, host_keys) == "agent"
        with pytest.raises(asyncssh.PermissionDenied):
            await log_in(spec.address, first, host_keys)
        await bench.provider.authorize_keys(spec.name, "agent", [])
        with pytest.raises(asyncssh.PermissionDenied):
            await log_in(spec.address, second, host_keys)

    async def test_what_came_to_the_guest_by_network_counts_as_received_and_its_answers_as_sent(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        key, public = key_pair()
        host_keys = await bench.provider.host_keys(spec.name)
        await bench.provider.authorize_keys(spec.name, "agent", [public])
        before = await bench.provider.usage(spec.name)
        many = secrets.token_bytes(400_000)
        async with logged_in(spec.address, key, host_keys) as connection:
            counted = await connection.run("wc -c", input=many, encoding=None, check=True)
        assert int(counted.stdout or b"0") == len(many)
        after = await bench.provider.usage(spec.name)
        assert len(many) < after.received_bytes - before.received_bytes < 2 * len(many)
        assert 0 < after.sent_bytes - before.sent_bytes < len(many) / 2
        assert 10 < after.open_files < 200

    async def test_keys_for_a_user_that_is_not_there_are_the_guests_error(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        with pytest.raises(GuestError, match=r"no user nobody-there: set sandbox\.user"):
            await bench.provider.authorize_keys(spec.name, "nobody-there", [key_pair()[1]])

    async def test_a_command_gets_its_input_and_environment_and_gives_its_end(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        done = await bench.provider.run(
            spec.name,
            ("sh", "-c", 'echo "$RAVE_TEXT" "$1"; cat; echo wrong >&2; exit 7', "sh", "a  b; $(id)"),
            timeout=20 * SECOND,
            environment={"RAVE_TEXT": "$HOME 'quoted'"},
            stdin=b"from stdin\n",
        )
        assert (done.exit_code, done.output) == (7, "$HOME 'quoted' a  b; $(id)\nfrom stdin\nwrong\n")

    async def test_a_command_that_leaves_a_service_running_ends(self, guest: tuple[LibvirtBench, MachineSpec]) -> None:
        bench, spec = guest
        done = await bench.provider.run(spec.name, ("sh", "-c", "sleep 60 & echo left"), timeout=15 * SECOND)
        assert (done.exit_code, done.output) == (0, "left\n")
        done = await bench.provider.run(spec.name, ("sh", "-c", "pidof sleep"), timeout=15 * SECOND)
        assert done.exit_code == 0

    async def test_binary_noise_is_cut_to_its_end(self, guest: tuple[LibvirtBench, MachineSpec]) -> None:
        bench, spec = guest
        done = await bench.provider.run(
            spec.name, ("sh", "-c", "timeout 3 /bin/noise; echo the end"), timeout=40 * SECOND
        )
        assert OUTPUT_LIMIT_BYTES / 2 < len(done.output) <= OUTPUT_LIMIT_BYTES
        assert done.output.endswith("the end\n")

    async def test_the_end_of_long_text_is_kept_whole(self, guest: tuple[LibvirtBench, MachineSpec]) -> None:
        bench, spec = guest
        done = await bench.provider.run(spec.name, ("seq", "1", "50000"), timeout=60 * SECOND)
        whole = "".join(f"{number}\n" for number in range(1, 50001))
        assert done.output == whole[-OUTPUT_LIMIT_BYTES:]

    async def test_a_command_leaves_nothing_behind_and_what_it_makes_is_for_others_to_read(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        count = ("sh", "-c", "ls /tmp | wc -l; touch /run/made; stat -c %a /run/made")
        first = await bench.provider.run(spec.name, count, timeout=20 * SECOND)
        second = await bench.provider.run(spec.name, count, timeout=20 * SECOND)
        assert first.output == second.output
        assert first.output.endswith("\n644\n")

    async def test_a_command_that_does_not_end_in_time_times_out(self, guest: tuple[LibvirtBench, MachineSpec]) -> None:
        bench, spec = guest
        started = time.monotonic()
        with pytest.raises(GuestTimeout, match="did not finish"):
            await bench.provider.run(spec.name, ("sleep", "20"), timeout=2 * SECOND)
        assert time.monotonic() - started < 4

    async def test_input_that_is_too_long_for_the_agent_is_refused_and_the_agent_lives(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        with pytest.raises(ProviderError, match="copy it in"):
            await bench.provider.run(spec.name, ("cat",), timeout=5 * SECOND, stdin=b"x" * 200_000)
        assert await bench.provider.ping(spec.name, 5 * SECOND)

    async def test_a_file_is_copied_in_whole_and_replaces_what_was_there(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        source = bench.folder / "source"
        for size in (0, 1, 300_001):
            source.write_bytes(os.urandom(size))
            await bench.provider.copy_in(spec.name, source, "/srv/with 'quote'", mode=0o640)
            done = await bench.provider.run(
                spec.name,
                ("sh", "-c", 'sha256sum <"$1"; stat -c %a "$1"; ls /srv | grep -c quote', "sh", "/srv/with 'quote'"),
                timeout=20 * SECOND,
            )
            digest = hashlib.sha256(source.read_bytes()).hexdigest()
            assert done.output == f"{digest}  -\n640\n1\n"

    async def test_a_file_can_not_be_copied_where_there_is_no_folder(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        source = bench.folder / "source"
        source.write_text("text")
        with pytest.raises(GuestError):
            await bench.provider.copy_in(spec.name, source, "/no/such/folder/file")
        with pytest.raises(GuestError, match="put in place"):
            await bench.provider.copy_in(spec.name, source, "/srv")

    async def test_it_has_the_address_that_it_was_given_and_no_name_service(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        done = await bench.provider.run(
            spec.name, ("sh", "-c", "ip -4 -o addr show eth0; cat /etc/resolv.conf"), timeout=20 * SECOND
        )
        assert f"inet {spec.address}/24 " in done.output
        assert "nameserver" not in done.output
        assert (await bench.provider.list()).addresses == (spec.mac,)

    async def test_the_bridge_learns_its_mac_from_libvirt_and_no_mac_from_its_frames(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        port = Path("/sys/class/net", spec.tap, "brport")
        flags = {name: (port / name).read_text().strip() for name in ("learning", "unicast_flood", "isolated")}
        learns = "0" if keeps_macs(bench) else "1"
        assert flags == {"learning": learns, "unicast_flood": learns, "isolated": "1"}

    async def test_it_serves_the_code_that_was_last_moved_into_place(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        url = f"http://{spec.address}:{WEB_PORT}/"
        async with aiohttp.ClientSession() as session:
            async with session.get(url) as answer:
                assert answer.status == 404
            for text in ("first", "second"):
                move = (
                    'mkdir /srv/next && echo "$1" >/srv/next/index.html'
                    " && rm -rf /srv/merge-request && mv /srv/next /srv/merge-request"
                )
                done = await bench.provider.run(spec.name, ("sh", "-c", move, "sh", text), timeout=20 * SECOND)
                assert done.exit_code == 0
                async with session.get(url) as answer:
                    assert await answer.text() == f"{text}\n"

    async def test_its_file_system_fills_the_disk_that_it_was_given(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        done = await bench.provider.run(spec.name, ("stat", "-f", "-c", "%b %S", "/srv"), timeout=20 * SECOND)
        blocks, block_bytes = map(int, done.output.split())
        assert blocks * block_bytes > 0.9 * spec.disk_bytes

    async def test_its_console_is_kept_in_the_state_folder(self, guest: tuple[LibvirtBench, MachineSpec]) -> None:
        bench, spec = guest
        log = bench.folder / f"state-{bench.instance_id}" / "console" / f"{spec.name}.log"
        assert "udhcpc" in log.read_text(errors="replace")

    async def test_its_lease_is_short_so_that_its_address_is_soon_free_for_another(
        self, guest: tuple[LibvirtBench, MachineSpec]
    ) -> None:
        bench, spec = guest
        log = bench.folder / f"state-{bench.instance_id}" / "console" / f"{spec.name}.log"
        assert "lease time 120" in log.read_text(errors="replace")

    @pytest.mark.timeout(900)  # another process's test may have to end first
    async def test_libvirt_restarts_under_it_and_it_goes_on(self, guest: tuple[LibvirtBench, MachineSpec]) -> None:
        bench, spec = guest
        told: list[ProviderEvent] = []

        async def listen() -> None:
            async for event in bench.provider.events():
                told.append(event)

        async with without_others():
            listening = asyncio.create_task(listen())
            command = ("sh", "-c", "sleep 6; echo survived")
            under_way = asyncio.create_task(bench.provider.run(spec.name, command, timeout=40 * SECOND))
            try:
                await asyncio.sleep(1)
                await asyncio.to_thread(restart_libvirtd)
                machine = await observed(bench.provider, spec.name)
                assert machine is not None
                assert machine.state is Observed.AGENT_SILENT
                assert (await under_way).output == "survived\n"
                async with asyncio.timeout(15):
                    while ProviderEvent("", "connected") not in told:
                        await asyncio.sleep(0.05)
                told.clear()
                bench.stranger = bench.reconnected()
                bench.stranger.lookupByName(spec.name).suspend()
                await bench.provider.resume(spec.name)
                async with asyncio.timeout(15):
                    while not any(event.name == spec.name for event in told):
                        await asyncio.sleep(0.05)
            finally:
                under_way.cancel()
                listening.cancel()

    async def test_what_was_done_to_its_code_is_read_by_its_busybox(
        self, guest: tuple[LibvirtBench, MachineSpec], tmp_path: Path
    ) -> None:
        bench, spec = guest
        was = {".gitignore": b"*.log\n", "a b.txt": b"one\ntwo\n", "run": b"#!/bin/sh\n", "old": b"x", "same": b"y"}
        (tmp_path / "archive").write_bytes(tar_gz("app-main", was, {"run"}))
        await GuestJobs(bench.provider, "agent").put_code(spec.name, tmp_path / "archive", 60 * SECOND)
        large = "head -c 900000 /dev/urandom > large"
        work = "printf 'one\\nTWO\\n' > 'a b.txt'; chmod -x run; rm old; echo x > x.log"
        odd = "ln -s /etc/shadow link; mkfifo pipe; echo x > \"$(printf 'n\\nl')\"; mkdir .git; echo x > .git/x"
        script = f"cd {CODE_FOLDER} && {{ {large}; {work}; {odd}; }}"
        done = await bench.provider.run(spec.name, ("su", "agent", "-c", script), timeout=20 * SECOND)
        assert done.exit_code == 0, done.output
        files = GuestFiles.of(bench.provider, spec.name, "agent", tmp_path)
        async with comparison(tmp_path / "archive", "0" * 40) as compared:
            hashes = await files.hashes(await compared.listed(await files.list()))
            diff = await compared.read(await files.contents(await compared.hashed(hashes)))
        await files.done()
        assert [(one.path, one.kind.value, one.executable) for one in diff.changes] == [
            ("a b.txt", "updated", None),
            ("large", "created", None),
            ("old", "deleted", None),
            ("run", "updated", False),
        ]
        assert {one.path for one in diff.left_out} == {"link", "pipe", "n?l"}
        assert "-two\n+TWO\n" in diff.text
        held = await bench.provider.run(spec.name, ("sha256sum", f"{CODE_FOLDER}/large"), timeout=20 * SECOND)
        assert hashlib.sha256(diff.changes[1].content or b"").hexdigest() == held.output.split()[0]
        left = await bench.provider.run(spec.name, ("ls", "/run/ravebot/diff"), timeout=20 * SECOND)
        assert left.output.strip() == ""


class TestAnEnd:
    async def test_a_guest_that_is_asked_ends_itself(self, bench: LibvirtBench) -> None:
        provider, spec = bench.provider, bench.spec()
        await boot_up(provider, spec)
        started = time.monotonic()
        await provider.shutdown(spec.name)
        assert time.monotonic() - started < 2
        await wait_for_state(provider, spec.name, Observed.OFF)

    async def test_a_guest_without_an_agent_heeds_the_power_button(self, bench: LibvirtBench) -> None:
        provider, spec = bench.provider, bench.spec("rave.noagent")
        await provider.open()
        await provider.create(spec)
        await provider.start(spec.name)
        async with asyncio.timeout(BOOT_SECONDS):
            while (machine := await observed(provider, spec.name)) and machine.state is not Observed.OFF:
                await provider.shutdown(spec.name)
                await asyncio.sleep(1)

    async def test_a_kernel_panic_is_seen_as_a_crash(self, bench: LibvirtBench) -> None:
        provider, spec = bench.provider, bench.spec()
        await boot_up(provider, spec)
        with suppress(GuestError):
            await provider.run(spec.name, ("sh", "-c", "echo c >/proc/sysrq-trigger"), timeout=3 * SECOND)
        await wait_for_state(provider, spec.name, Observed.CRASHED)

    async def test_a_guest_that_put_itself_to_sleep_is_woken(self, bench: LibvirtBench) -> None:
        provider, spec = bench.provider, bench.spec()
        await provider.open()
        await provider.create(spec)
        definition = bench.stranger.lookupByName(spec.name).XMLDesc(0)
        assert "<suspend-to-mem enabled='no'/>" in definition
        bench.stranger.defineXML(definition.replace("<suspend-to-mem enabled='no'/>", ""))  # as others may be defined
        await boot_up(provider, spec)
        sleep = "(sleep 1; echo mem >/sys/power/state) >/dev/null 2>&1 &"
        await provider.run(spec.name, ("sh", "-c", sleep), timeout=20 * SECOND)
        await wait_for_state(provider, spec.name, Observed.PAUSED)
        await provider.resume(spec.name)
        await wait_for_state(provider, spec.name, Observed.AGENT_SILENT)

    async def test_a_full_host_disk_pauses_and_space_lets_it_go_on(self, bench: LibvirtBench) -> None:
        provider, spec = bench.provider, bench.spec()
        disks = bench.config.storage_pool
        disks.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=711", "disks", str(disks)], check=True)
        try:
            await boot_up(provider, spec)
            # In the background: a guest that is paused does not answer the one who would wait for it.
            fill = "(dd if=/dev/urandom of=/srv/fill bs=1M count=48 && sync && touch /srv/written) >/dev/null 2>&1 &"
            await provider.run(spec.name, ("sh", "-c", fill), timeout=20 * SECOND)
            paused = await wait_for_state(provider, spec.name, Observed.PAUSED, seconds=60)
            assert paused.pause_reason == "ioerror"
            subprocess.run(["mount", "-o", "remount,size=200m", str(disks)], check=True)
            await provider.resume(spec.name)
            wait = "until test -e /srv/written; do sleep 0.2; done; wc -c </srv/fill"
            assert (await provider.run(spec.name, ("sh", "-c", wait), timeout=90 * SECOND)).output == f"{48 << 20}\n"
            await provider.delete(spec.name)
        finally:
            await bench.clean_instance(bench.instance_id)
            subprocess.run(["umount", "--lazy", str(disks)], check=True)


def lease_of(spec: MachineSpec) -> tuple[object, ...]:
    """The arguments of `virNetwork.update` that give a machine its address, in an active network."""
    host = dhcp_host_xml(name=spec.name, mac=spec.mac, address=spec.address)
    flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG | libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE
    add, section = libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST
    return add, section, -1, host, flags


class TestAChangedNetwork:
    async def test_what_is_there_is_listed_and_ended_and_only_then_the_new_one_is_made(
        self, bench: LibvirtBench
    ) -> None:
        old, spec = bench.provider, bench.spec("rave.noagent")
        await old.open()
        await old.create(spec)
        await old.start(spec.name)
        new = bench.another(bench.instance_id, bench.config.model_copy(update={"bridge": bridge_of_its_own()}))
        try:
            await new.open()
            assert [machine.name for machine in (await new.list()).machines] == [spec.name]
            for refused in (new.create(bench.spec()), new.start(spec.name)):
                with pytest.raises(ProviderError, match=r"provider\.bridge or sandbox\.egress"):
                    await refused
            await new.destroy(spec.name)
            await new.delete(spec.name)
            await new.delete_address(spec.mac)
            await new.create(bench.spec())
            network = bench.stranger.networkLookupByName(f"rave-{bench.instance_id[:8]}")
            assert network.bridgeName() != bench.config.bridge.name
        finally:
            await new.close()

    @pytest.mark.parametrize("added", ["<dnsmasq:options>.*</dnsmasq:options>", ' macTableManager="libvirt"'])
    async def test_one_of_an_earlier_version_goes_on_while_it_has_machines_and_is_then_made_anew(
        self, bench: LibvirtBench, added: str
    ) -> None:
        bench.egress = "internet"
        provider, first, second = bench.another(bench.instance_id), bench.spec(), bench.spec()
        name = f"rave-{bench.instance_id[:8]}"
        xml = network_xml(name, bench.config.bridge, instance_id=bench.instance_id, dns=True)
        old = bench.stranger.networkDefineXML(learning_network_xml(re.sub(added, "", xml)))
        old.create()
        old.update(*lease_of(first))
        outdated = added.startswith("<") or keeps_macs(bench)
        with capture_logs() as logged:
            await provider.open()
        assert [line["event"] for line in logged] == ["network has an outdated definition"] * outdated
        await provider.create(second)
        kept = bench.stranger.networkLookupByName(name)
        assert kept.UUIDString() == old.UUIDString()
        assert second.mac in kept.XMLDesc()
        for spec in (first, second):
            await provider.delete(spec.name)
            await provider.delete_address(spec.mac)
        await provider.create(bench.spec())
        with capture_logs() as logged:
            await provider.open()
        await provider.close()
        assert logged == []
        made = bench.stranger.networkLookupByName(name).XMLDesc()
        assert "dns-forward-max" in made
        assert ("macTableManager='libvirt'" in made) == keeps_macs(bench)

    async def test_where_the_bridge_must_learn_macs_the_log_says_so_and_no_lease_is_lost(
        self, bench: LibvirtBench
    ) -> None:
        provider, spec = bench.provider, bench.spec()
        with capture_logs() as logged:
            await provider.open()
        must_learn = not keeps_macs(bench)
        assert [line["event"] for line in logged] == ["the bridge learns MACs from frames"] * must_learn
        await provider.create(spec)
        network = bench.stranger.networkLookupByName(f"rave-{bench.instance_id[:8]}")
        network.destroy()
        definition = network.XMLDesc().replace(" macTableManager='libvirt'", "")
        bench.stranger.networkDefineXML(definition.replace("<bridge ", "<bridge macTableManager='libvirt' "))
        with capture_logs() as logged:
            await provider.open()
        assert [line["event"] for line in logged] == ["the bridge learns MACs from frames"] * must_learn
        assert (await provider.list()).addresses == (spec.mac,)
        assert network.isActive()

    async def test_it_can_be_taken_away_when_its_machine_is_gone(self, bench: LibvirtBench) -> None:
        spec = bench.spec()
        await bench.provider.open()
        await bench.provider.create(spec)
        new = bench.another(bench.instance_id, bench.config.model_copy(update={"bridge": bridge_of_its_own()}))
        try:
            await new.open()
            await new.delete(spec.name)
            await new.remove()
            assert not [one for one in bench.stranger.listAllNetworks() if bench.instance_id[:8] in one.name()]
        finally:
            await new.close()


class TestAnotherInstancesNetwork:
    async def test_its_bridge_or_subnet_is_refused_with_its_id_also_while_it_is_off(self, bench: LibvirtBench) -> None:
        await bench.provider.open()
        taken, free = bench.config.bridge, bridge_of_its_own()
        network = bench.stranger.networkLookupByName(f"rave-{bench.instance_id[:8]}")
        for is_on in (True, False):
            if not is_on:
                network.destroy()
            for bridge in (taken, *([taken.model_copy(update={"name": free.name})] if is_on else [])):
                changes = {"storage_pool": bench.folder / "other-disks", "bridge": bridge}
                other_id = secrets.token_hex(8)
                other = bench.another(other_id, bench.config.model_copy(update=changes))
                try:
                    with pytest.raises(
                        ProviderError, match=f"`ravebot cleanup --instance-id {bench.instance_id} --all"
                    ):
                        await other.open()
                finally:
                    await other.close()
                    await bench.clean_instance(other_id)


class TestWhatAnInstanceLeft:
    async def test_it_is_found_while_network_and_storage_pool_are_off_and_removed(self, bench: LibvirtBench) -> None:
        spec = bench.spec()
        await bench.provider.open()
        await bench.provider.create(spec)
        pool = bench.stranger.storagePoolLookupByName(f"rave-{bench.instance_id}")
        network = bench.stranger.networkLookupByName(f"rave-{bench.instance_id[:8]}")
        pool.destroy()
        network.destroy()
        remains = LibvirtRemains(bench.config.uri, bench.instance_id)
        try:
            found = await remains.look()
            assert (pool.isActive(), network.isActive()) == (0, 0)
            assert [machine.name for machine in found.machines] == [spec.name]
            assert [path.name for path in bench.config.storage_pool.iterdir()] == list(found.volumes)
            assert found.addresses == (f"{spec.mac} {spec.address}",)
            await remains.delete(spec.name)
            await remains.delete_volume(found.volumes[0])
            assert len(await remains.remove()) == 2
            assert await remains.look() == Holdings()
            assert list(bench.config.storage_pool.iterdir()) == []
        finally:
            await remains.close()


class TestTheConnection:
    async def test_libvirt_that_is_not_there_is_unavailable_and_found_when_it_is_back(
        self, bench: LibvirtBench
    ) -> None:
        socket = bench.folder / "libvirt-sock"
        config = bench.config.model_copy(update={"uri": f"qemu+unix:///system?socket={socket}"})
        provider = bench.another(bench.instance_id, config)
        told: list[ProviderEvent] = []

        async def listen() -> None:
            async for event in provider.events():
                told.append(event)

        listening = asyncio.create_task(listen())
        try:
            assert not await provider.connected()
            with pytest.raises(Unavailable, match="is libvirtd running"):
                await provider.list()
            with pytest.raises(Unavailable):
                await provider.ping("rave-test-any", SECOND)
            assert told == []
            socket.symlink_to("/run/libvirt/libvirt-sock")
            async with asyncio.timeout(5):
                while ProviderEvent("", "connected") not in told:
                    await asyncio.sleep(0.05)
            assert await provider.connected()
            assert (await provider.list()).machines == ()
        finally:
            listening.cancel()
            await provider.close()
