"""Checks that the state folder still holds the files that were opened.

SQLite does not notice: when its files are deleted, moved away or replaced, it keeps reading and writing the files that
it has open (seen with 3.40 in WAL mode, also across checkpoints), and after a restart those writes are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class OpenFiles:
    """Device and inode of each file of an open database; no other file can have the same while these are open."""

    database: Mapping[Path, tuple[int, int]]  # the database file first
    lock: Mapping[Path, tuple[int, int]]
    id_file: Path
    instance_id: str

    @classmethod
    def of(cls, database: Path, id_file: Path, instance_id: str) -> Self:
        """Call it after the database was opened, which creates its log and index.

        If the log (`-wal`) is gone, a crash loses the last commits; if the index (`-shm`) is gone, another process
        makes a new one and damages the database.
        """
        names = (database.name, f"{database.name}-wal", f"{database.name}-shm")
        files = [database.with_name(name) for name in names]
        lock = database.with_suffix(".lock")
        known = {path: _identity(path) for path in files if path.exists()}
        return cls(known, {lock: _identity(lock)}, id_file, instance_id)

    def lost(self) -> str:
        """Which of the database's files is gone; empty when none is. Takes a few microseconds."""
        return _first_gone(self.database)

    def problem(self) -> str:
        """What is wrong with the state folder and what to do; empty when nothing is."""
        database = next(iter(self.database))
        if why := _gone(database, self.database[database]):
            return (
                f"{why} while ravebot runs. Until it is back nothing new is taken on, for nothing can be kept; the "
                "machines that run go on. If it was only moved, move it back: ravebot then goes on by itself. "
                "Otherwise stop ravebot, put the backup of the whole folder there, and start it. Without a backup, "
                "restart it: it then begins with nothing, under a new id. After that, remove what this instance left "
                "on the host, and have its status notes corrected, with "
                f"`ravebot cleanup --instance-id {self.instance_id} --all --force`"
            )
        if why := self.lost():
            return (
                f"{why} while ravebot runs. Restart ravebot: a clean stop keeps everything, a kill or crash would not"
            )
        if why := _first_gone(self.lock):
            return f"{why} while ravebot runs: restart ravebot, or a second one could start beside it"
        try:
            same = self.id_file.read_text("ascii").strip() == self.instance_id
        except (OSError, ValueError):
            same = False
        if not same:
            return (
                f"{self.id_file} is gone or holds another id: write {self.instance_id} there again, or the next start "
                "does not know this instance's machines"
            )
        return ""


def _first_gone(known: Mapping[Path, tuple[int, int]]) -> str:
    return next((why for path, identity in known.items() if (why := _gone(path, identity))), "")


def _gone(path: Path, known: tuple[int, int]) -> str:
    try:
        found = _identity(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} was deleted or moved away"
    except OSError as error:
        return f"{path} can't be looked at ({error.strerror})"
    return "" if found == known else f"{path} was replaced by another file"


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode."""
    found = path.stat()
    return found.st_dev, found.st_ino
