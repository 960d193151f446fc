"""Backup and restore: consistent under load, whole or absent; what a restored database does not know is left alone."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import resource
import signal
import sqlite3
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random

import pytest

from ravebot.errors import Refused, StoreError
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.incoming import IncomingMessage
from ravebot.operations import hostlock
from ravebot.operations.audit.report import read_offline
from ravebot.operations.backup import archive
from ravebot.operations.backup.archive import BackupUnusable, Manifest
from ravebot.operations.backup.make import Maker
from ravebot.operations.backup.restore import Restorer
from ravebot.operations.backup.stopping import Stop, Stopped, in_thread
from ravebot.operations.cleanup import Cleaner, Wish
from ravebot.operations.doctor import state
from ravebot.operations.reports import AuditQuery
from ravebot.providers.memory import Disk, MemoryHost, MemoryLease, MemoryProvider
from ravebot.sandboxes.model import RAVEBOT, Actor, EventKind
from ravebot.store import events, outbox, restored, stale_notes, swap
from ravebot.store.database import Database, Transaction, migrations, set_meta
from ravebot.store.swap import DATABASE, INSTANCE_ID, LOGIN
from ravebot.store.targets import Kind, RoomLane
from tests.support.clock import ManualClock
from tests.support.records import ROOM, a_merge_request, a_world
from tests.support.yard import a_yard

pytestmark = pytest.mark.integration
MR, SECOND = a_merge_request(1), a_merge_request(2)
DAY = timedelta(days=1)
ADOPT = Wish(None, everything=False, force=True, adopt=True, actor=Actor("shell", "root"))


def maker(folder: Path, clock: ManualClock | None = None) -> Maker:
    return Maker("test", folder, clock or ManualClock())


def restore(
    backup: Path,
    state_dir: Path,
    *,
    force: bool = False,
    clock: ManualClock | None = None,
    step: Callable[[str], None] = lambda _: None,
) -> None:
    with Restorer("test", state_dir, clock or ManualClock()) as restorer:
        restorer.prepare(backup, Stop(), force=force).commit(step)


def killer(steps: int) -> Callable[[str], None]:
    """Kills its process after so many steps."""
    left = steps

    def step(_: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return step


async def a_state(folder: Path, key: str) -> None:
    """A database with that key in it, and a login."""
    folder.mkdir(exist_ok=True)
    async with Database(folder / DATABASE, ManualClock()) as database:
        await database.write(lambda tx: set_meta(tx, key, "x"))
        await database.write(lambda tx: event(tx, 1))
    (folder / LOGIN).write_text(json.dumps({"device_id": key}))


async def a_backup(folder: Path, key: str = "backup") -> Path:
    await a_state(folder, key)
    done = maker(folder).to_file(folder.parent / f"{key}.tar", Stop())
    return Path(done.file)


def event(tx: Transaction, number: int) -> None:
    events.append(tx, EventKind.WEB_FOUND, RAVEBOT, data={"number": number})


def whole(folder: Path) -> tuple[str, str]:
    """The instance id, and the login's device."""
    return (folder / INSTANCE_ID).read_text().strip(), json.loads((folder / LOGIN).read_text())["device_id"]


def in_child(work: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> int:
    """Run it in a forked process; returns 0, 1 for one of our own errors, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            work()
        except StoreError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def test_a_backup_under_load_has_every_transaction_that_was_acknowledged_before_it_began(tmp_path: Path) -> None:
    here, there, done = tmp_path / "here", tmp_path / "there", threading.Event()
    here.mkdir()
    async with Database(here / DATABASE, ManualClock()) as database:
        acknowledged: list[int] = []

        async def writer(start: int) -> None:
            number = start
            while not done.is_set():
                await database.write(lambda tx, n=number: event(tx, n))  # type: ignore[misc]
                acknowledged.append(number)
                number += 4

        async with asyncio.TaskGroup() as group:
            for start in range(4):
                group.create_task(writer(start))
            while len(acknowledged) < 400:
                await asyncio.sleep(0.01)
            before = list(acknowledged)
            report = await in_thread(lambda stop: maker(here).to_file(tmp_path / "b.tar", stop))
            while len(acknowledged) < len(before) + 50:  # the writers were not kept out for good
                await asyncio.sleep(0.01)
            done.set()
    assert stat.S_IMODE((tmp_path / "b.tar").stat().st_mode) == 0o600
    restore(tmp_path / "b.tar", there)
    async with Database(there / DATABASE, ManualClock()) as database:
        rows = await database.read(lambda tx: tx.all("SELECT json_extract(data, '$.number') AS n FROM events"))
    assert set(before) <= {row["n"] for row in rows}
    audit = await read_offline(there, AuditQuery(verify=True))
    assert (audit.broken_at, audit.checked_rows) == (None, report.manifest.events + 1)
    assert [line.kind for line in audit.lines][-1] == "state.restored"


async def test_after_a_restore_what_the_database_does_not_know_is_left_alone_until_it_is_adopted(
    tmp_path: Path, host: MemoryHost
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    async with a_yard(here, MemoryProvider(host)) as yard:
        await yard.make_ready(MR)
        known = (await yard.machine(MR)).name
        maker(here).to_file(tmp_path / "b.tar", Stop())
        await yard.make_ready(SECOND)
        unknown = (await yard.machine(SECOND)).name
        host.volumes["rave-test-lonely.qcow2"] = Disk()
        host.addresses["52:54:00:aa:bb:cc"] = MemoryLease()
    restore(tmp_path / "b.tar", there)
    there_is = {*host.machines}, {*host.volumes}, {*host.addresses}
    async with a_yard(there, MemoryProvider(host)) as yard:
        yard.provider.fails["list"] = StoreError("libvirt is away")
        await yard.go()
        assert "can't be listed" in yard.core.pool.blocked
        assert yard.fence.history == []
        yard.provider.fails.clear()
        await yard.told(a_merge_request(3))
        for _ in range(3):
            await yard.go()
            yard.pass_by(minutes=6)
        assert ({*host.machines}, {*host.volumes}, {*host.addresses}) == there_is
        assert yard.fence.history == []
        assert yard.provider.count("create") == 0
        assert not yard.core.pool.machines_known
        assert "was restored from a backup of 2026-01-01" in yard.core.pool.blocked
        assert unknown in yard.core.pool.blocked
        cleaner, old = Cleaner(yard.database, yard.core, yard.provider), replace(ADOPT, adopt=False, older_than=DAY)
        for refused in (cleaner.beside_bot(old, timedelta(0)), cleaner.alone(old, timedelta(0), lambda _: None)):
            with pytest.raises(Refused, match="add --adopt to this command"):
                await refused
        report = await cleaner.beside_bot(ADOPT, timedelta(seconds=1))
        assert unknown in report.machines
        assert known in host.machines
        await yard.until(lambda: yard.is_in(a_merge_request(3), "ready"))
        assert yard.core.pool.blocked == ""
        assert yard.core.pool.machines_known


async def test_after_a_restore_that_knows_everything_there_is_the_pool_goes_on_at_once(
    tmp_path: Path, host: MemoryHost
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    async with a_yard(here, MemoryProvider(host)) as yard:
        await yard.make_ready(MR)
        maker(here).to_file(tmp_path / "b.tar", Stop())
    restore(tmp_path / "b.tar", there)
    assert "nobody has decided" in state.database(there).detail
    async with a_yard(there, MemoryProvider(host)) as yard:
        await yard.go()
        assert yard.core.pool.blocked == ""
        assert not await yard.read(restored.is_unsettled)
        assert await yard.is_in(MR, "ready")


async def test_commands_from_before_the_restore_are_recorded_and_not_carried_out(tmp_path: Path) -> None:
    def said(event_id: str, minutes: int) -> IncomingMessage:
        at = ManualClock().now() + timedelta(minutes=minutes)
        return IncomingMessage(event_id, "!room", "@a:b", "!rave stop 1", None, False, int(at.timestamp() * 1000))

    backup, clock = await a_backup(tmp_path / "here"), ManualClock()
    clock.advance(timedelta(hours=1))
    restore(backup, tmp_path / "there", clock=clock)
    async with a_world(tmp_path / "there") as world:
        world.pass_by(hours=2)
        journal = MatrixJournal(world.database, "!rave")
        await journal.save((said("$old", 59), said("$new", 61)), "s2")
        await journal.save((said("$old", 59), said("$new", 61)), "s2")
        rows = await world.read(lambda tx: tx.all("SELECT delivery_key, outcome, body FROM inbox ORDER BY id"))
    assert [(row["delivery_key"], row["outcome"]) for row in rows] == [("$old", restored.TOO_OLD), ("$new", None)]
    assert rows[0]["body"] == ""


async def test_commands_are_carried_out_again_when_the_clock_was_ahead_during_the_restore(tmp_path: Path) -> None:
    backup, clock = await a_backup(tmp_path / "here"), ManualClock()
    clock.advance(365 * DAY)
    restore(backup, tmp_path / "there", clock=clock)
    async with a_world(tmp_path / "there") as world:
        assert await world.database.write(restored.since) == world.clock.now()
        world.pass_by(hours=1)
        at = int(world.clock.now().timestamp() * 1000)
        said = IncomingMessage("$new", "!room", "@a:b", "!rave stop 1", None, False, at)
        await MatrixJournal(world.database, "!rave").save((said,), "s2")
        (row,) = await world.read(lambda tx: tx.all("SELECT outcome FROM inbox"))
    assert row["outcome"] is None


async def test_a_message_that_follows_a_restore_has_an_id_that_no_message_before_had(tmp_path: Path) -> None:
    async with a_world(tmp_path / "here") as world:
        maker(tmp_path / "here").to_file(tmp_path / "b.tar", Stop())
        await world.write(lambda tx: outbox.add(tx, RoomLane(ROOM), Kind.REPLY))
        lost = await world.read(lambda tx: outbox.head(tx, RoomLane(ROOM).target, ROOM))
    restore(tmp_path / "b.tar", tmp_path / "there")
    async with a_world(tmp_path / "there") as world:
        await world.write(lambda tx: outbox.add(tx, RoomLane(ROOM), Kind.REPLY))
        fresh = await world.read(lambda tx: outbox.head(tx, RoomLane(ROOM).target, ROOM))
        assert await world.read(stale_notes.to_search) == ()
    assert lost
    assert fresh
    assert (lost.id, lost.key != fresh.key) == (fresh.id, True)


async def test_a_restore_killed_at_any_point_is_finished_by_the_next_start_or_did_not_begin(tmp_path: Path) -> None:
    """Also with a log of the old database, which must never meet the new one."""
    backup = await a_backup(tmp_path / "source", "new")
    points = 0
    while True:
        here = tmp_path / f"state-{points}"
        await a_state(here, "old")
        (here / f"{DATABASE}-wal").write_bytes(b"the old log")
        (here / f"{DATABASE}-shm").write_bytes(b"the old index")
        old = whole(here)
        ended = in_child(partial(restore, backup, here, step=killer(points)))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        if points % 2:  # killed a second time while it is finished
            assert in_child(partial(swap.settle, here, killer(0))) == -signal.SIGKILL
        async with Database(here / DATABASE, ManualClock()) as database:
            keys = {row["key"] for row in await database.read(lambda tx: tx.all("SELECT key FROM meta"))}
        assert ("new" in keys, "old" in keys) == (True, False)
        assert whole(here) == whole(tmp_path / "source") != old
        (before,) = here.glob("before-restore-*")
        assert whole(before) == old
        assert (before / f"{DATABASE}-wal").read_bytes() == b"the old log"
        assert stat.S_IMODE(before.stat().st_mode) == 0o700
        assert [path.name for path in here.glob(".restore-*")] == []
        points += 1
    assert points >= 10
    assert whole(here) == whole(tmp_path / "source")


async def test_a_decided_restore_whose_new_state_somebody_deleted_is_undone(tmp_path: Path) -> None:
    backup, here = await a_backup(tmp_path / "source", "new"), tmp_path / "here"
    await a_state(here, "old")
    old = whole(here)

    def kill(step: str) -> None:
        if step.startswith(INSTANCE_ID):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Restorer("test", here, ManualClock()) as restorer:
        restorer.prepare(backup, Stop()).commit(kill)
    with pytest.raises(StoreError, match=r"restore into .* was interrupted: start ravebot"):
        maker(here).to_file(tmp_path / "early.tar", Stop())
    for path in here.glob(".restore-*/*"):
        path.unlink()
    async with Database(here / DATABASE, ManualClock()):
        pass
    assert whole(here) == old


async def test_a_restore_killed_while_it_prepared_changed_nothing_and_its_files_go_with_the_next_start(
    tmp_path: Path,
) -> None:
    await a_state(tmp_path, "old")
    old, left = whole(tmp_path), tmp_path / ".restore-0123456789abcdef"
    left.mkdir()
    (left / DATABASE).write_bytes(b"half")
    part = tmp_path / ".matrix.json.0123456789abcdef.part"
    part.write_bytes(b"half a login")
    async with Database(tmp_path / DATABASE, ManualClock()):
        pass
    assert (whole(tmp_path), left.exists(), part.exists()) == (old, False, False)


async def test_a_restore_is_refused_while_a_bot_runs_here_or_elsewhere_on_the_host(tmp_path: Path) -> None:
    backup = await a_backup(tmp_path / "here")
    before = whole(tmp_path / "here")
    async with Database(tmp_path / "here" / DATABASE, ManualClock()) as database:
        with pytest.raises(StoreError, match=f"another ravebot uses .*process {os.getpid()}"):
            restore(backup, tmp_path / "here")
        with hostlock.held(database.instance_id), pytest.raises(Refused, match="runs on this host"):
            restore(backup, tmp_path / "there")
    assert whole(tmp_path / "here") == before
    assert not (tmp_path / "there" / DATABASE).exists()
    assert list((tmp_path / "there").glob(".restore-*")) == []


Change = Callable[[dict[str, bytes]], None]


def remade(backup: Path, change: Change, extra: tarfile.TarInfo | None = None) -> Path:
    """The backup, unpacked and packed again by another program after a change."""
    with tarfile.open(backup) as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    change(members)
    other = backup.with_name("changed.tar")
    with tarfile.open(other, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(content), 0o4777, 12345
            tar.addfile(info, io.BytesIO(content))
        if extra:
            tar.addfile(extra)
    return other


def manifest_with(**changes: object) -> Change:
    def change(members: dict[str, bytes]) -> None:
        members["manifest.json"] = json.dumps({**json.loads(members["manifest.json"]), "seal": "", **changes}).encode()

    return change


def renamed(new: str) -> Change:
    def change(members: dict[str, bytes]) -> None:
        members[new] = members.pop(LOGIN)
        manifest_with()(members)
        members["manifest.json"] = members["manifest.json"].replace(LOGIN.encode(), new.encode())

    return change


def damaged(members: dict[str, bytes]) -> None:
    members[DATABASE] = members[DATABASE][:5000] + b"?" + members[DATABASE][5001:]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (damaged, "is damaged: ravebot.db has another hash"),
        (lambda members: members.pop(INSTANCE_ID), "is no backup of ravebot's, or it is damaged"),
        (lambda members: members.pop("manifest.json"), "is no backup of ravebot's"),
        (renamed("../../etc/cron.d/x"), "is no backup of ravebot's"),
        (renamed("/etc/cron.d/x"), "is no backup of ravebot's"),
        (manifest_with(head="0" * 64), "its database is not the manifest's"),
        (manifest_with(instance_id="another"), "its instance id is not the manifest's"),
        (manifest_with(instance_id="../x"), "is no backup of ravebot's"),
        (manifest_with(format=2, ravebot="9.9"), r"is of a newer ravebot \(9.9\): install that one"),
        (manifest_with(schema=999, ravebot="9.9"), "only knows .*: install ravebot 9.9 or a newer one"),
        (manifest_with(made_at="2020-01-01T00:00:00"), "is no backup of ravebot's"),
        (manifest_with(instance="other"), "is of the instance other, but the configuration's `instance` is test"),
    ],
)
async def test_what_is_no_whole_backup_of_this_instance_is_refused_before_anything_is_touched(
    tmp_path: Path, change: Change, complaint: str
) -> None:
    backup = remade(await a_backup(tmp_path / "here"), change)
    before = whole(tmp_path / "here")
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    with pytest.raises((StoreError, Refused), match=complaint):
        restore(backup, tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == names
    assert whole(tmp_path / "here") == before


async def test_a_database_that_can_not_be_marked_as_restored_is_an_error_with_its_mend(tmp_path: Path) -> None:
    state = tmp_path / "here"
    await a_state(state, "key")
    with closing(sqlite3.connect(state / DATABASE)) as connection:
        connection.execute("DROP TABLE sightings")
    backup = maker(state).to_file(tmp_path / "odd.tar", Stop()).file
    with pytest.raises(StoreError, match="no such table: sightings; free space there, or take another backup"):
        restore(Path(backup), state)
    assert whole(state)[1] == "key"


async def test_a_file_with_any_damage_is_refused_or_reads_as_before(tmp_path: Path) -> None:
    backup, random = await a_backup(tmp_path / "here"), Random(7)
    good, known = backup.read_bytes(), archive.read(backup, None, lambda: None)
    for _ in range(150):
        bad = bytearray(good)
        place = random.choice((random.randrange(len(bad)), random.randrange(2048)))
        bad[place] = random.randrange(256)
        backup.write_bytes(bad[: random.choice((len(bad), place))])
        with suppress(BackupUnusable):
            assert archive.read(backup, None, lambda: None) == known


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
async def test_what_root_restores_and_backs_up_belongs_to_the_owner_of_the_state_folder(tmp_path: Path) -> None:
    backup, there = await a_backup(tmp_path / "here"), tmp_path / "there"
    await a_state(there, "old")
    os.chown(there, 65534, 65534)
    restore(backup, there)
    maker(there).into(there / "backups", 3, Stop())
    (before,) = there.glob("before-restore-*")
    for path in (*(there / name for name in (DATABASE, INSTANCE_ID, LOGIN, "ravebot.lock", "backups")), before):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534), path


async def test_a_backup_is_never_a_mix_of_the_states_before_and_after_a_restore(tmp_path: Path) -> None:
    backup, state = await a_backup(tmp_path / "other"), tmp_path / "state"
    await a_state(state, "old")

    class RestoreMeanwhile(Stop):
        def check(self) -> None:
            if whole(state)[1] == "old":
                restore(backup, state)

    with pytest.raises(StoreError, match="was replaced meanwhile"):
        maker(state).to_file(tmp_path / "mixed.tar", RestoreMeanwhile())
    assert not (tmp_path / "mixed.tar").exists()


async def test_no_file_of_others_gets_into_a_backup_through_a_link(tmp_path: Path) -> None:
    state, outside = tmp_path / "state", tmp_path / "outside"
    await a_state(state, "key")
    outside.write_text("of others")
    (state / LOGIN).unlink()
    (state / LOGIN).symlink_to(outside)
    with pytest.raises(StoreError, match="is a link"):
        maker(state).to_file(tmp_path / "leak.tar", Stop())
    assert not (tmp_path / "leak.tar").exists()


async def test_links_modes_and_owners_of_a_tar_have_no_effect(tmp_path: Path) -> None:
    backup = await a_backup(tmp_path / "here")
    link = tarfile.TarInfo(LOGIN)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
    with pytest.raises(BackupUnusable, match="is no backup"):
        restore(remade(backup, lambda members: members.__delitem__(LOGIN), link), tmp_path / "there")
    restore(remade(backup, manifest_with(instance="other")), tmp_path / "there", force=True)
    for name in (DATABASE, INSTANCE_ID, LOGIN):
        facts = (tmp_path / "there" / name).stat()
        assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o600, os.geteuid())
    (tmp_path / "cut.tar").write_bytes(backup.read_bytes()[:-4000])
    (tmp_path / "text.tar").write_text("hello")
    for name in ("cut.tar", "text.tar", "none.tar", "there"):
        with pytest.raises(BackupUnusable):
            restore(tmp_path / name, tmp_path / "there")


async def test_a_folder_keeps_so_many_backups_of_this_instance_and_nothing_else_is_removed(tmp_path: Path) -> None:
    await a_backup(tmp_path / "here")
    folder, clock = tmp_path / "backups", ManualClock()
    folder.mkdir()
    others = ["ravebot-other-20200101T000000Z.tar", "ravebot-test-20200101T000000Z.tar.gz", "note.txt"]
    for name in others:
        (folder / name).touch()
    left = folder / ".ravebot-backup-0123456789abcdef.part"
    left.mkdir()
    (left / "half").touch()
    for _ in range(4):
        report = maker(tmp_path / "here", clock).into(folder, 2, Stop())
        clock.advance(timedelta(days=1))
    made = [f"ravebot-test-2026010{day}T120000Z.tar" for day in (3, 4)]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, *made])
    assert report.removed == (str(folder / "ravebot-test-20260102T120000Z.tar"),)


async def test_a_backup_replaces_no_file_without_force_and_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    backup = await a_backup(tmp_path / "here")
    with pytest.raises(Refused, match=r"exists: choose another name, or add --force"):
        maker(tmp_path / "here").to_file(backup, Stop())
    maker(tmp_path / "here").to_file(backup, Stop(), force=True)
    target = tmp_path / "other" / "b.tar"
    with pytest.raises(Refused, match="no folder"):
        maker(tmp_path / "here").to_file(target, Stop())
    target.parent.mkdir()
    stop = Stop()
    stop.now()
    with pytest.raises((Stopped, StoreError)):
        maker(tmp_path / "here").to_file(target, stop)
    with another_run(target.parent), pytest.raises(Refused, match="another backup is being written"):
        maker(tmp_path / "here").to_file(target, Stop())
    with pytest.raises(StoreError, match="no database"):
        maker(tmp_path / "nowhere").to_file(target, Stop())
    assert list(target.parent.iterdir()) == []


class Killer(Stop):
    """Kills its process at the n-th look whether to stop."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    def check(self) -> None:
        self.is_set()

    def is_set(self) -> bool:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def test_a_backup_that_is_killed_leaves_nothing_under_its_name_and_the_next_one_clears_up(tmp_path: Path) -> None:
    asyncio.run(a_state(tmp_path / "here", "x"))
    folder, looks, clock = tmp_path / "backups", 0, ManualClock()
    while True:
        clock.advance(timedelta(days=1))
        ended = in_child(partial(maker(tmp_path / "here", clock).into, folder, 3, Killer(looks)))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        (left,) = folder.iterdir()  # what the one before left is gone
        assert left.name.endswith(".part")
        looks += 1
    assert looks >= 5
    (made,) = folder.iterdir()
    restore(made, tmp_path / "there")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    asyncio.run(a_state(tmp_path / "here", "x"))
    (tmp_path / "backups").mkdir()
    whole = maker(tmp_path / "here").to_file(tmp_path / "whole", Stop()).size_bytes

    def limit(most: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    for most in (whole // 2, whole - 100):  # while the database is copied, and while the file is written
        work = partial(maker(tmp_path / "here").into, tmp_path / "backups", 3, Stop())
        full = in_child(work, partial(limit, most))
        assert full == 1
        assert list((tmp_path / "backups").iterdir()) == []


async def test_an_interrupted_backup_ends_before_its_caller_goes_on_and_leaves_nothing(tmp_path: Path) -> None:
    await a_state(tmp_path / "here", "x")
    began = threading.Event()

    def work(stop: Stop) -> object:
        began.set()
        while not stop.is_set():
            time.sleep(0.001)
        return maker(tmp_path / "here").to_file(tmp_path / "b.tar", stop)

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(began.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


@contextmanager
def another_run(folder: Path) -> Iterator[None]:
    """Another backup, which is being written to that folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


async def test_a_log_that_was_tampered_with_is_not_backed_up_as_if_it_were_whole(tmp_path: Path) -> None:
    await a_backup(tmp_path / "here")
    async with Database(tmp_path / "here" / DATABASE, ManualClock()) as database:
        await database.write(lambda tx: tx.execute("DROP TRIGGER events_are_never_changed"))
        await database.write(lambda tx: tx.execute("UPDATE events SET data = '{}'"))
    with pytest.raises(StoreError, match="event log was changed or damaged: event 1"):
        maker(tmp_path / "here").to_file(tmp_path / "b.tar", Stop())
    assert not (tmp_path / "b.tar").exists()


def test_the_manifest_names_versions_instance_and_newest_hash(tmp_path: Path) -> None:
    backup = asyncio.run(a_backup(tmp_path / "here"))
    with tarfile.open(backup) as tar:
        assert tar.getnames() == ["manifest.json", DATABASE, INSTANCE_ID, LOGIN]
        found = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert set(found) == set(Manifest.__dataclass_fields__)
    assert (found["schema"], found["instance"], found["events"]) == (migrations()[-1][0], "test", 1)
    assert found["instance_id"] == whole(tmp_path / "here")[0]
