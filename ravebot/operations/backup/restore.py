"""`ravebot restore`: checks a backup, shows what would happen, and replaces the state by it while no bot runs.

Everything is prepared in a folder beside the state: the swap itself only renames files (`store/swap.py`).
"""

from __future__ import annotations

import getpass
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ravebot.clock import Clock
from ravebot.errors import Refused, StoreError
from ravebot.operations import hostlock
from ravebot.operations.backup import archive
from ravebot.operations.backup.archive import BackupUnusable, Manifest
from ravebot.operations.backup.stopping import Stop
from ravebot.sandboxes.model import Actor
from ravebot.store import lock, owner, restored, snapshot, swap
from ravebot.store.database import Transaction, make_state_dir, migrations
from ravebot.store.durable import sync_folder
from ravebot.store.swap import DATABASE, INSTANCE_ID


@dataclass(frozen=True)
class RestoreReport:
    """What a restore does or did. `before`: where the present state is kept; empty if there is none.

    `other_instance`: the id of the present state, if it is another one: what it has on the host stays there.
    """

    manifest: Manifest
    state_dir: str
    before: str
    other_instance: str


@dataclass(frozen=True)
class Prepared:
    """A checked backup, ready to take the state's place."""

    report: RestoreReport
    state_dir: Path
    staged: Path
    before: Path

    def commit(self, step: Callable[[str], None] = lambda _: None) -> None:
        """Replace the state. Killed at any point, it is finished by the next start of ravebot."""
        swap.begin(self.state_dir, self.staged, self.before, step)


class Restorer:
    """Restores one installation. Holds the locks from its creation until `close`, so that no bot starts."""

    def __init__(self, instance: str, state_dir: Path, clock: Clock) -> None:
        self._instance = instance
        self._state_dir = state_dir
        self._clock = clock
        self._stack = ExitStack()

    def __enter__(self) -> Restorer:
        try:
            make_state_dir(self._state_dir)
            self._stack.callback(os.close, lock.hold(self._state_dir / DATABASE, self._clock.now()))
            swap.settle(self._state_dir)  # an earlier restore that was interrupted
        except OSError as error:
            self._stack.close()
            raise StoreError(
                f"{self._state_dir} can't be written ({error.strerror}): run this as the user that runs ravebot"
            ) from error
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self, backup: Path, stop: Stop, *, force: bool = False) -> Prepared:
        """Check the backup in every respect, and write its files beside the state, which is not touched.

        `force`: also a backup of an instance with another name. Raises BackupUnusable, Refused, StoreError.
        """
        staged = self._stack.enter_context(_staging(self._state_dir))
        try:
            manifest = archive.read(backup, staged, stop.check)
            self._check(backup, manifest, staged, stop, force)
            self._mark(staged / DATABASE, manifest)
            for name in manifest.members:
                _hand_over(staged / name, self._state_dir)
            sync_folder(staged)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"the backup can't be unpacked in {self._state_dir}: {error}; free space there, or take another backup"
            ) from error
        present = _present_id(self._state_dir)
        before = self._free_name()
        there = any((self._state_dir / name).exists() for name in swap.STATE)
        report = RestoreReport(
            manifest,
            str(self._state_dir),
            str(before) if there else "",
            present if present not in ("", manifest.instance_id) else "",
        )
        self._stack.enter_context(hostlock.held(manifest.instance_id))
        return Prepared(report, self._state_dir, staged, before)

    def _check(self, backup: Path, manifest: Manifest, staged: Path, stop: Stop, force: bool) -> None:
        if manifest.instance != self._instance and not force:
            raise Refused(
                f"{backup} is of the instance {manifest.instance}, but the configuration's `instance` is"
                f" {self._instance}: take the other configuration or backup; --force restores it all the same, and its"
                " machines keep their names"
            )
        newest = migrations()[-1][0]
        if manifest.schema > newest:
            raise Refused(
                f"{backup} is of ravebot {manifest.ravebot}, whose database has version {manifest.schema}; this ravebot"
                f" only knows {newest}: install ravebot {manifest.ravebot} or a newer one, then restore"
            )
        if (staged / INSTANCE_ID).read_text("ascii", "replace").strip() != manifest.instance_id:
            raise BackupUnusable(f"{backup} is damaged: its instance id is not the manifest's; take another backup")
        found = snapshot.examine(staged / DATABASE, stop.is_set)
        if (found.schema, found.events, found.head) != (manifest.schema, manifest.events, manifest.head):
            raise BackupUnusable(f"{backup} is damaged: its database is not the manifest's; take another backup")

    def _mark(self, database: Path, manifest: Manifest) -> None:
        actor = Actor("shell", getpass.getuser())
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            restored.mark(Transaction(connection, self._clock.now()), manifest.made_at, manifest.head, actor)
            connection.execute("COMMIT")

    def _free_name(self) -> Path:
        name = f"before-restore-{self._clock.now():%Y%m%dT%H%M%SZ}"
        names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
        return next(path for path in map(self._state_dir.joinpath, names) if not path.exists())


@contextmanager
def _staging(state_dir: Path) -> Iterator[Path]:
    staged = state_dir / f".restore-{os.urandom(8).hex()}"
    staged.mkdir(mode=0o700)
    try:
        yield staged
    finally:
        if not swap.is_pending(state_dir):  # otherwise the next start needs it
            swap.settle(state_dir)


def _hand_over(path: Path, state_dir: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        owner.give_open(descriptor, state_dir)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _present_id(state_dir: Path) -> str:
    with suppress(OSError):
        return (state_dir / INSTANCE_ID).read_text("ascii", "replace").strip()
    return ""
