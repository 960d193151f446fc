"""`ravebot backup`: writes a backup beside the running bot or without it, checks it, and removes old ones.

It is made in a hidden folder beside its place, which it gets when it is complete and checked. What a killed run left is
removed by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ravebot.clock import Clock
from ravebot.errors import Refused, StoreError
from ravebot.operations.backup import archive
from ravebot.operations.backup.archive import Manifest
from ravebot.operations.backup.stopping import Stop
from ravebot.operations.offline import database_path
from ravebot.sandboxes import naming
from ravebot.store import lock, owner, snapshot, swap
from ravebot.store.durable import sync_folder
from ravebot.store.swap import DATABASE, INSTANCE_ID, LOGIN

_WORK = re.compile(r"\.ravebot-backup-[0-9a-f]{16}\.part")


@dataclass(frozen=True)
class BackupReport:
    """The backup that was written, its size, and the old ones that were removed."""

    file: str
    size_bytes: int
    manifest: Manifest
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Maker:
    """Makes backups of one installation."""

    instance: str
    state_dir: Path
    clock: Clock

    def to_file(self, target: Path, stop: Stop, *, force: bool = False) -> BackupReport:
        """Write a backup to that file. Raises Refused if it exists, except with `force`, and StoreError."""
        if target.is_dir():
            raise Refused(f"{target} is a folder: name a file in it, or use --into {target}")
        if not force and os.path.lexists(target):
            raise Refused(f"{target} exists: choose another name, or add --force to replace it")
        if not target.parent.is_dir():
            raise Refused(f"there is no folder {target.parent}: make it first, for ravebot's user (mode 700)")
        try:
            with _workplace(target.parent) as work:
                manifest = self._make(work, stop)
                return self._publish(work / "backup", target, manifest, force)
        except OSError as error:
            raise StoreError(f"the backup {target} can't be written: {error}{_advice(error)}") from error

    def into(self, folder: Path, keep: int, stop: Stop) -> BackupReport:
        """Write a backup with a name of its own into the folder, then remove all but the newest `keep` of them."""
        if not folder.exists():
            try:
                folder.mkdir(mode=0o700)
                owner.hand_over(folder, self.state_dir)  # the timer, which runs as ravebot's user, uses it, too
            except OSError as error:
                raise StoreError(
                    f"{folder} can't be made ({error.strerror}): make it for ravebot's user (mode 700)"
                ) from error
        done = self.to_file(folder / f"ravebot-{self.instance}-{self.clock.now():%Y%m%dT%H%M%SZ}.tar", stop)
        ours = re.compile(rf"ravebot-{re.escape(self.instance)}-[0-9]{{8}}T[0-9]{{6}}Z\.tar")
        found = sorted(path for path in folder.iterdir() if ours.fullmatch(path.name) and path != Path(done.file))
        old = found[: len(found) - (keep - 1)] if len(found) >= keep else []
        for path in old:
            path.unlink(missing_ok=True)
        return BackupReport(done.file, done.size_bytes, done.manifest, tuple(str(path) for path in old))

    def _make(self, work: Path, stop: Stop) -> Manifest:
        database = database_path(self.state_dir)
        if swap.is_pending(self.state_dir):
            raise StoreError(
                f"a restore into {self.state_dir} was interrupted: start ravebot, which finishes it, and try again"
            )
        if not database.is_file():
            raise StoreError(f"there is no database {database}: has ravebot ever run with this state_dir?")
        sources = {DATABASE: work / DATABASE, INSTANCE_ID: work / INSTANCE_ID}
        copied = database.stat()
        snapshot.take(database, sources[DATABASE], stop.is_set)
        try:
            _copy(self.state_dir / INSTANCE_ID, sources[INSTANCE_ID])
            if (self.state_dir / LOGIN).exists():  # there is none with an access token
                sources[LOGIN] = work / LOGIN
                _copy(self.state_dir / LOGIN, sources[LOGIN])
        except OSError as error:
            raise StoreError(
                f"{error.filename} can't be read ({error.strerror}): run this as ravebot's user"
            ) from error
        instance_id = sources[INSTANCE_ID].read_text("ascii", "replace").strip()
        if not naming.is_instance_id(instance_id):
            raise StoreError(f"{self.state_dir / INSTANCE_ID} holds no instance id: correct it first")
        found = snapshot.examine(sources[DATABASE], stop.is_set)
        members = {name: archive.measure(path, stop.check) for name, path in sources.items()}
        if swap.is_pending(self.state_dir) or not os.path.samestat(copied, database.stat()):
            raise StoreError(f"the state in {self.state_dir} was replaced meanwhile: make the backup again")
        manifest = Manifest(
            format=archive.FORMAT,
            ravebot=version("ravebot"),
            schema=found.schema,
            instance=self.instance,
            instance_id=instance_id,
            made_at=self.clock.now(),
            events=found.events,
            head=found.head,
            members=members,
        )
        with (work / "backup").open("xb") as file:
            archive.write(file, manifest, sources, stop.check)
            file.flush()
            os.fchmod(file.fileno(), 0o600)
            os.fsync(file.fileno())
        # The database in it is the one that was examined, since the hashes are the same.
        if archive.read(work / "backup", None, stop.check) != manifest:
            raise StoreError("the backup reads otherwise than it was written: check the disk")
        return manifest

    def _publish(self, made: Path, target: Path, manifest: Manifest, force: bool) -> BackupReport:
        size = made.stat().st_size
        if force:
            made.replace(target)
        else:
            try:
                target.hardlink_to(made)  # unlike a renaming, it never replaces a file
            except FileExistsError:
                raise Refused(f"{target} exists: choose another name, or add --force to replace it") from None
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or os.path.lexists(target):
                    raise
                made.rename(target)  # this file system has no second names for a file
        sync_folder(target.parent)
        return BackupReport(str(target), size, manifest)


def _copy(source: Path, target: Path) -> None:
    """Copy one of ravebot's small files; root copies nothing else that its owner put a link to."""
    with os.fdopen(lock.open_plain(source, os.O_RDONLY), "rb") as reading, target.open("xb") as writing:
        shutil.copyfileobj(reading, writing)


@contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A folder for the files of this run; first removes what killed runs left, while no other run is at work there."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another backup is being written to {parent}: wait until it is done") from None
        for left in parent.glob(".ravebot-backup-*.part"):
            if _WORK.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)
        work = parent / f".ravebot-backup-{os.urandom(8).hex()}.part"
        work.mkdir(mode=0o700)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(descriptor)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space there: while it is made, a backup needs twice the database's size"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "; ravebot's user must be able to write there"
    return ""
