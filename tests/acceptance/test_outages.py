"""Every part that ravebot depends on goes away for a while, under one sandbox that lives through it all."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import pytest_asyncio

from tests.support import leftovers
from tests.support.crashes import rows
from tests.support.gitlab import DEVELOPER, MergeRequest, Note
from tests.support.inside import inside
from tests.support.libvirtd import ensure_libvirtd, without_others
from tests.support.stage import Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Life:
    """The stage, its merge request and what has been asked for so far."""

    stage: Stage
    mr: MergeRequest
    extensions: int = 0

    @property
    def machine(self) -> str:
        (row,) = rows(self.stage, "SELECT name FROM machines WHERE state = 'leased'")
        return str(row["name"])

    def extend(self) -> str:
        """Ask in the merge request for a length that nobody asked for before; returns what the note will say."""
        self.extensions += 1
        self.stage.gitlab.comment(self.mr, self.stage.alice, f"/sandbox extend {self.extensions}m")
        return f"extended by {self.extensions} min"

    async def lets_in(self) -> bool:
        note = self.stage.note(self.mr)
        assert note
        done = await asyncio.to_thread(self.stage.ssh, note, "alice", "cat", "/srv/merge-request/feature.txt")
        return done.returncode == 0

    async def all_told(self) -> None:
        """Wait until everything is told, and look whether it was told once and in order."""
        stage = self.stage
        await stage.until(self._settled, 60, "something is still to be told or done")
        asked = [n for n in stage.gitlab.notes(self.mr) if n.body.startswith("/sandbox")]
        assert [[award.name for award in n.awards] for n in asked] == [["white_check_mark"]] * len(asked)
        kinds = rows(stage, "SELECT data FROM events WHERE kind = 'sandbox.extended' ORDER BY id")
        minutes = [round(json.loads(row["data"])["seconds"] / 60) for row in kinds]
        assert minutes == list(range(1, self.extensions + 1))
        assert stage.note(self.mr) is not None
        assert len(await stage.cards(self.mr)) == 1
        sent = [
            event["event_id"]
            for event in await stage.matrix_ops.events(stage.room)
            if event["sender"] == stage.matrix_bot.user_id and event["type"] == "m.room.message"
        ]
        noted = rows(stage, "SELECT result FROM outbox WHERE target = 'matrix' AND lane = '#dev:localhost' ORDER BY id")
        assert sent == [row["result"] for row in noted if row["result"].startswith("$")]

    def _settled(self) -> bool:
        # What is written once again some time after an outage is no news.
        pending = (
            "SELECT 1 FROM outbox WHERE delivered_at IS NULL AND lane NOT LIKE '% again'"
            " UNION SELECT 1 FROM inbox WHERE handled_at IS NULL"
        )
        return not rows(self.stage, pending)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def life() -> AsyncIterator[Life]:
    # She speaks for somebody whose role nobody has asked GitLab for yet.
    people = {"@alice:localhost": "alice", "@gina:localhost": "bob"}
    changes = {"gitlab": {"poll": "4s"}, "pool": {"max_running": 1}, "matrix": {"users": people}}
    async with Stage(changes) as stage:
        await stage.start()
        mr = stage.open_merge_request()
        await stage.ready(mr)
        yield Life(stage, mr)


async def is_unready(stage: Stage, check: str) -> bool:
    """/readyz says 503 and names that check, while /healthz is well."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{stage.http}/healthz") as healthy:
            assert healthy.status == 200
        async with session.get(f"{stage.http}/readyz") as answer:
            checks = (await answer.json())["checks"]
            assert (answer.status == 200) == all(one["state"] in ("ok", "degraded") for one in checks.values())
            return not checks[check]["ok"] and bool(checks[check]["detail"])


async def is_ready_again(stage: Stage) -> None:
    await stage.until(stage.is_ready, 40, "ravebot is not ready again")


async def test_what_happens_while_synapse_is_down_is_told_in_order_afterwards(life: Life) -> None:
    stage, mr, machine = life.stage, life.mr, life.machine
    await stage.synapse.stop()
    try:
        await stage.until(lambda: is_unready(stage, "matrix"), 20, "/readyz does not see that Synapse is down")
        first, second = life.extend(), life.extend()
        await stage.note_says(mr, second)
        sha = stage.gitlab.push(mr, {"feature.txt": "newer\n"})
        await stage.note_says(mr, f"now runs {sha[:8]}")
        assert await life.lets_in()
    finally:
        await stage.synapse.start()
    asked = await stage.matrix_alice.send(stage.room, "!rave whoami")
    await is_ready_again(stage)
    await stage.matrix_ops.wait_for(stage.room, lambda message: answers(message.content, asked), 60)
    await life.all_told()
    story = [m.body for m in await stage.matrix_ops.messages(stage.room) if m.thread_root]
    told = [next(i for i, line in enumerate(story) if text in line) for text in (first, second, sha[:8], "now runs")]
    assert told == sorted(told)
    assert life.machine == machine


def answers(content: dict[str, object], event_id: str) -> bool:
    relation = content.get("m.relates_to")
    return isinstance(relation, dict) and relation.get("m.in_reply_to", {}).get("event_id") == event_id


async def test_an_admin_commands_while_gitlab_answers_500_and_the_others_are_told_to_wait(life: Life) -> None:
    stage, mr = life.stage, life.mr
    stage.gitlab.fail(500)
    try:
        await stage.until(lambda: is_unready(stage, "gitlab"), 20, "/readyz does not see that GitLab is down")
        life.extensions += 1
        await stage.matrix_ops.send(stage.room, f"!rave extend !{mr.iid} {life.extensions}m")
        said = await stage.matrix_ops.wait_for(stage.room, lambda m: "stays until" in m.body)
        assert f"({life.extensions} min more)" in said.body
        commented = life.extend()  # the webhook comes, but nobody can say who may
        assert await life.lets_in()
        assert commented not in str(stage.note(mr))
    finally:
        stage.gitlab.restore()
    await stage.note_says(mr, commented, 90)
    await is_ready_again(stage)
    await life.all_told()


async def test_a_person_is_told_that_their_command_waits_for_gitlab_and_it_is_done_once(life: Life) -> None:
    stage, mr = life.stage, life.mr
    stage.gitlab.fail(502, path="/members/|/users")
    try:
        life.extensions += 1
        asked = await stage.matrix_gina.send(stage.room, f"!rave extend !{mr.iid} {life.extensions}m")
        waits = await stage.matrix_gina.wait_for(stage.room, lambda m: answers(m.content, asked))
        assert "Your command is kept" in waits.body
    finally:
        stage.gitlab.restore()
    await stage.note_says(mr, f"extended by {life.extensions} min", 90)
    await life.all_told()
    replies = [m.body for m in await stage.matrix_alice.messages(stage.room) if answers(m.content, asked)]
    assert len(replies) == 2, replies


async def test_a_gitlab_that_asks_for_patience_is_given_it(life: Life) -> None:
    stage, mr = life.stage, life.mr
    begin = len(stage.gitlab.requests)
    stage.gitlab.fail(429, retry_after=4, method="PUT", path="/notes/")
    try:
        wanted = life.extend()
        await asyncio.sleep(6)
        tried = [r.at for r in stage.gitlab.requests[begin:] if r.status == 429]
    finally:
        stage.gitlab.restore()
    await stage.note_says(mr, wanted)
    assert 1 <= len(tried) <= 2, tried
    assert all(later - earlier >= 3.9 for earlier, later in pairwise(tried))
    await life.all_told()


async def test_a_gitlab_that_does_not_answer_at_all_holds_up_nothing_else(life: Life) -> None:
    """Neither the requests that hang, of more lanes than can be handled at once, nor the notes that can't be sent."""
    stage, mr = life.stage, life.mr
    new = stage.gitlab.add_user("nora")  # whose role was not asked lately
    stage.gitlab.set_role(stage.project, new, DEVELOPER)
    crowd = [stage.open_merge_request(f"One of many {n}", f"many-{n}") for n in range(12)]
    for one in crowd:
        await stage.note_says(one, "Sandbox waits in the queue")
    stage.gitlab.drop()
    try:
        for one in crowd:
            stage.gitlab.comment(one, new, "/sandbox stop")
        await stage.until(lambda: is_unready(stage, "gitlab"), 30, "/readyz does not see that GitLab is silent")
        await stage.until(lambda: len(_unhandled(stage)) >= len(crowd), 10, "no crowd of requests waits")
        life.extensions += 1
        asked = await stage.matrix_ops.send(stage.room, f"!rave extend !{mr.iid} {life.extensions}m")
        await stage.matrix_ops.wait_for(stage.room, lambda m: answers(m.content, asked) and "stays until" in m.body, 10)
        assert await life.lets_in()
    finally:
        stage.gitlab.restore()
    await stage.note_says(mr, f"extended by {life.extensions} min", 90)
    await is_ready_again(stage)
    for one in crowd:
        await stage.note_says(one, "Sandbox ended", 90)
    await life.all_told()


def _unhandled(stage: Stage) -> list[sqlite3.Row]:
    return rows(stage, "SELECT 1 FROM inbox WHERE source = 'gitlab' AND handled_at IS NULL")


async def test_an_answer_that_is_lost_after_the_deed_makes_no_second_note_nor_comment(life: Life) -> None:
    stage, mr = life.stage, life.mr
    stage.gitlab.hang_up(2, method="POST", path="/notes$", after=True)
    stage.gitlab.hang_up(1, method="POST", path="/award_emoji$", after=True)
    stage.gitlab.fail(500, 1, method="PUT", path="/notes/", after=True)
    other = stage.open_merge_request("Waits for its turn", "waits")  # there is one place, and it is taken
    try:
        await stage.note_says(other, "Sandbox waits in the queue")
        wrong = stage.gitlab.comment(other, stage.alice, "/sandbox explode")
        assert wrong

        def refusals() -> list[Note]:
            return [n for n in stage.gitlab.notes(other) if n.author is stage.ravebot and "no such command" in n.body]

        await stage.until(refusals, 30, "nobody said that there is no such command")
        wanted = life.extend()
        await stage.note_says(mr, wanted)
        await asyncio.sleep(2)
        assert len(refusals()) == 1
        assert stage.note(other) is not None  # fails when there are two
        assert [award.name for award in wrong.awards] == ["no_entry_sign"]
    finally:
        stage.gitlab.restore()
        stage.gitlab.close(other)
    await stage.note_says(other, "Sandbox ended")
    await life.all_told()


async def test_what_lost_webhooks_would_have_told_is_found_by_polling(life: Life) -> None:
    stage, mr = life.stage, life.mr
    stage.gitlab.hooks_paused = True
    try:
        sha = stage.gitlab.push(mr, {"feature.txt": "polled\n"})
        wanted = life.extend()
        await stage.note_says(mr, f"now runs {sha[:8]}", 30)
        await stage.note_says(mr, wanted, 30)
    finally:
        stage.gitlab.hooks_paused = False
    await asyncio.sleep(5)  # another look finds the same, and does nothing
    await life.all_told()


class Doorbell:
    """A TCP and a UDP port on every address of the host, and who came there."""

    def __init__(self) -> None:
        self.visits: list[str] = []

    async def __aenter__(self) -> Self:
        self._tcp = await asyncio.start_server(self._came, "0.0.0.0", 0)
        self.port: int = self._tcp.sockets[0].getsockname()[1]
        self._tcp6 = await asyncio.start_server(self._came, "::", self.port)
        visits = self.visits

        class Datagrams(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
                visits.append(f"UDP from {addr[0]}")

        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=("0.0.0.0", self.port))
        return self

    async def _came(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits.append(f"TCP from {writer.get_extra_info('peername')[0]}")
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self._tcp.close()
        self._tcp6.close()
        self._udp.close()

    def knocks(self, *addresses: str) -> str:
        """The guest's command that tries them all."""
        tries = [
            f"nc -w 1 {address} {self.port} </dev/null; timeout 1 tftp -g -l /dev/null -r x {address} {self.port};"
            for address in addresses
        ]
        return " ".join(tries) + " echo done"


async def test_removed_firewall_rules_are_put_back_within_a_pass_and_the_host_stays_shut_meanwhile(life: Life) -> None:
    stage, mr = life.stage, life.mr
    note = stage.note(mr)
    assert note
    async with Doorbell() as bell:
        knock = f"for i in $(seq 11); do nc -w 1 {stage.host} {bell.port} </dev/null; sleep 0.2; done; echo done"
        knocking = asyncio.create_task(asyncio.to_thread(inside, life.machine, knock, 40))
        try:
            await asyncio.sleep(2)
            await asyncio.to_thread(delete_our_tables, stage)
            await stage.until(lambda: has_tables(stage), 7, "the rules are not back")
            await asyncio.sleep(3)
            assert await life.lets_in()
        finally:
            await asyncio.wait({knocking})
        assert "done" in (await knocking)[1]  # it knocked all the time
        assert bell.visits == []
    said = await stage.matrix_ops.wait_for(stage.room, lambda m: "someone removed the firewall's rules" in m.body)
    assert f"!{mr.iid}" in said.body
    assert re.search(r'firewall_repairs_total\{flushed="yes"\} [1-9]', await stage.metrics())
    await life.all_told()


async def test_with_ravebot_killed_and_the_firewall_flushed_a_guest_reaches_no_port_of_the_hosts(life: Life) -> None:
    stage = life.stage
    (row,) = rows(stage, "SELECT address, tap FROM machines WHERE state = 'leased'")
    guest, gateway = str(row["address"]), str(stage.subnet.network_address + 1)
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
    ssh = ["ssh", *options, "-i", str(stage.keys["alice"]), "-o", "ConnectTimeout=10", f"agent@{guest}"]
    async with Doorbell() as bell:
        held = await asyncio.create_subprocess_exec(
            *ssh, "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert await echo(held, b"before\n") == b"before\n"
            await stage.bot.kill()
            await asyncio.to_thread(delete_our_tables, stage)
            addresses = [gateway, stage.host, *ipv6_of(stage.bridge)]
            code, said = await asyncio.to_thread(inside, life.machine, bell.knocks(*addresses), 40)
            assert (code, "done" in said) == (0, True)
            assert bell.visits == []
            assert our_tables(stage) == []
            assert await echo(held, b"still here\n") == b"still here\n"
            new = await asyncio.to_thread(subprocess.run, [*ssh, "hostname"], capture_output=True, check=False)
            assert new.returncode == 0, new.stderr
            assert [has_filter(device) for device in (stage.bridge, row["tap"])] == [True, True]
            # Without what stopped it, the same guest reaches both: or the rest would prove nothing.
            subprocess.run(["tc", "qdisc", "del", "dev", stage.bridge, "clsact"], check=True)
            await asyncio.to_thread(inside, life.machine, bell.knocks(gateway), 40)
            assert {f"TCP from {guest}", f"UDP from {guest}"} <= set(bell.visits)
        finally:
            held.kill()
            await held.wait()
            if stage.bot.process is None:
                await stage.start()
        await stage.until(lambda: has_tables(stage), 10, "the rules are not back")
        assert await life.lets_in()
        assert has_filter(stage.bridge)
    await life.all_told()


def has_filter(device: str) -> bool:
    done = subprocess.run(["tc", "filter", "show", "dev", device, "ingress"], check=True, capture_output=True)
    return b"handle 0x7276 direct-action" in done.stdout


async def echo(process: asyncio.subprocess.Process, line: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    return await asyncio.wait_for(process.stdout.readline(), 15)


def ipv6_of(interface: str) -> list[str]:
    """Its link-local address, as the guest writes it; none where libvirt switched IPv6 off."""
    listed = subprocess.run(["ip", "-j", "-6", "addr", "show", "dev", interface], check=True, capture_output=True)
    found = [info["local"] for link in json.loads(listed.stdout) for info in link.get("addr_info", [])]
    return [f"{address}%eth0" for address in found]


def our_tables(stage: Stage) -> list[tuple[str, str]]:
    instance_id = (stage.state_dir / "instance-id").read_text().strip()
    listed = subprocess.run(["nft", "-j", "list", "tables"], check=True, capture_output=True, text=True).stdout
    tables = [item["table"] for item in json.loads(listed)["nftables"] if "table" in item]
    return [(table["family"], table["name"]) for table in tables if instance_id in table["name"]]


def has_tables(stage: Stage) -> bool:
    return {family for family, _ in our_tables(stage)} >= {"inet", "bridge"} and leftovers.rules(stage) != []


def delete_our_tables(stage: Stage) -> None:
    """Behind ravebot's back, as a reload of the host's firewall would, but only this stage's."""
    commands = "".join(f"delete table {family} {name}\n" for family, name in our_tables(stage))
    subprocess.run(["nft", "-f", "-"], input=commands, check=True, text=True)  # all at once


async def end_libvirtd() -> None:
    pid_file = Path("/run/libvirtd.pid")
    pid = int(pid_file.read_text())
    subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(pid)], check=True)
    while Path(f"/proc/{pid}").exists():
        await asyncio.sleep(0.02)


async def test_a_state_folder_that_is_moved_away_and_back_loses_nothing_that_was_asked_meanwhile(life: Life) -> None:
    stage, mr, machine = life.stage, life.mr, life.machine
    away = stage.state_dir.with_name("away")
    stage.state_dir.rename(away)
    try:
        await stage.until(lambda: is_unready(stage, "state"), 10, "/readyz does not see that the state folder is gone")
        refused = len(stage.gitlab.deliveries)
        wanted = life.extend()
        asked = await stage.matrix_alice.send(stage.room, "!rave whoami")
        await stage.until(lambda: len(stage.gitlab.deliveries) > refused, 10, "no webhook was sent")
        assert [attempt.status for attempt in stage.gitlab.deliveries[refused:]] == [503]
        await stage.until(lambda: is_unready(stage, "matrix"), 10, "the sync went on")
        assert await life.lets_in()
    finally:
        away.rename(stage.state_dir)
    await is_ready_again(stage)
    await stage.note_says(mr, wanted, 30)
    await stage.matrix_ops.wait_for(stage.room, lambda message: answers(message.content, asked), 60)
    await life.all_told()
    assert life.machine == machine


@pytest.mark.timeout(900)  # another process's test may have to end first
async def test_a_sandbox_outlives_libvirtd_and_one_that_boots_meanwhile_gets_ready(life: Life) -> None:
    stage, mr, machine = life.stage, life.mr, life.machine
    async with without_others():
        await end_libvirtd()
        try:
            if not Path("/run/systemd/system").is_dir():  # there it would be started again by whoever asks
                await stage.until(
                    lambda: is_unready(stage, "provider"), 10, "/readyz does not see that libvirtd is down"
                )
            assert await life.lets_in()
            wanted = life.extend()
            await stage.note_says(mr, wanted)
        finally:
            await asyncio.to_thread(ensure_libvirtd)
    await is_ready_again(stage)
    assert life.machine == machine
    async with without_others():
        stage.gitlab.comment(mr, stage.alice, "/sandbox rebuild")

        def boots() -> bool:
            return bool(rows(stage, "SELECT 1 FROM machines WHERE state = 'building'"))

        await stage.until(boots, 60, "no new machine is being built")
        await asyncio.sleep(1)
        await end_libvirtd()
        await asyncio.to_thread(ensure_libvirtd)
    await stage.until(lambda: new_one_is_ready(life, machine), 120, "the rebuilt sandbox is not ready")
    assert await life.lets_in()
    assert not rows(stage, "SELECT 1 FROM events WHERE kind IN ('sandbox.requeued', 'machine.restarted')")
    assert len(leftovers.machines(stage)) == 1


async def new_one_is_ready(life: Life, before: str) -> bool:
    note = life.stage.note(life.mr)
    return bool(note and "HostKeyAlias=" in note.body and before not in note.body)


async def test_a_sandbox_lives_on_without_ravebot_and_never_expires_unwarned(life: Life) -> None:
    stage, mr, machine = life.stage, life.mr, life.machine
    await stage.bot.stop()
    assert await life.lets_in()
    a_minute_ago = int((datetime.now(UTC) - timedelta(minutes=1)).timestamp() * 1_000_000)
    with sqlite3.connect(stage.state_dir / "ravebot.db") as database:  # its time ran out while ravebot was away
        database.execute("UPDATE sandboxes SET expires_at = ? WHERE state = 'ready'", (a_minute_ago,))
    database.close()
    await stage.start()

    def warning() -> list[Note]:
        return [n for n in stage.gitlab.notes(mr) if n.author is stage.ravebot and "This sandbox ends" in n.body]

    await stage.until(warning, 20, "nobody was warned in the merge request")
    alice = {"user_ids": [stage.matrix_alice.user_id]}  # the warning's edit notifies her
    await stage.matrix_alice.wait_for(stage.room, lambda m: "ends at" in m.body and m.mentions == alice)
    (row,) = rows(stage, "SELECT state, expires_at FROM sandboxes WHERE state <> 'ended'")
    assert row["state"] == "ready"
    assert row["expires_at"] / 1e6 - datetime.now(UTC).timestamp() > 9 * 60
    assert life.machine == machine
    assert await life.lets_in()
    assert len(warning()) == 1


async def test_in_the_end_nothing_is_left_and_the_log_holds_together(life: Life) -> None:
    stage, mr = life.stage, life.mr
    stage.gitlab.hooks_paused = True
    stage.gitlab.merge(mr)
    await stage.note_says(mr, "Sandbox ended: the merge request was merged", 60)
    await stage.until(lambda: not leftovers.machines(stage), 20, "a machine is left")
    assert leftovers.disks(stage) == []
    assert leftovers.addresses(stage) == []
    assert leftovers.rules(stage) == []
    assert leftovers.ports(stage) == []
    audit = await stage.bot.command("audit", "--verify")
    assert audit.returncode == 0, audit.stderr
    assert "Traceback" not in stage.bot.log.read_text()
