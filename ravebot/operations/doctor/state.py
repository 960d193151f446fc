"""Checks of ravebot's own parts on this host: configuration, Python, the state folder, the database."""

from __future__ import annotations

import asyncio
import fcntl
import os
import platform
import pwd
import re
import shlex
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ravebot.config.file import LoadedConfig
from ravebot.operations.doctor.finding import Finding, failed, guarded, ok, warning
from ravebot.operations.offline import database_path
from ravebot.sandboxes.view import in_bytes
from ravebot.store import restored, swap
from ravebot.store.database import Transaction, instance_id_path, migrations

_LEAST_FREE_BYTES = 64 * 1024**2
"""Below this, the database's log of changes alone may fill the rest."""


async def check(loaded: LoadedConfig) -> AsyncIterator[Finding]:
    """All checks of this module."""
    state_dir = loaded.config.state_dir
    for finding in configuration(loaded):
        yield finding
    yield versions()
    yield await guarded("state folder", asyncio.to_thread(state_folder, state_dir))
    yield await guarded("database", asyncio.to_thread(database, state_dir))


def configuration(loaded: LoadedConfig) -> list[Finding]:
    """File and secrets are right, since they were loaded; unwise settings are warnings."""
    unwise = [warning("configuration", text) for text in loaded.warnings]
    return unwise or [ok("configuration", f"{loaded.path} and its secret files are right")]


def versions() -> Finding:
    """The versions, for bug reports."""
    python, sqlite = platform.python_version(), sqlite3.sqlite_version
    return ok("versions", f"ravebot {version('ravebot')}, Python {python}, SQLite {sqlite}")


def instance_id(state_dir: Path) -> str | None:
    """The installation's random id, once it has run."""
    try:
        return instance_id_path(state_dir).read_text("utf-8").strip() or None
    except (OSError, ValueError):
        return None


def state_folder(path: Path) -> Finding:
    name, shown = "state folder", shlex.quote(str(path))
    if not path.exists():
        parent = next(folder for folder in path.parents if folder.exists())
        if not os.access(parent, os.W_OK):
            fix = f"as root: install -d -m 711 -o {_user()} {shown}"
            return failed(name, f"{path} does not exist and can't be created in {parent}", fix)
        return ok(name, f"{path} does not exist yet: `ravebot run` creates it")
    if not path.is_dir():
        return failed(name, f"{path} is not a folder", "move it away, or change state_dir")
    facts = path.stat()
    if not os.access(path, os.W_OK | os.X_OK):
        return failed(name, f"{path} can't be written by {_user()}", f"as root: chown -R {_user()} {shown}")
    if facts.st_mode & stat.S_IWOTH:
        return failed(name, f"everybody can write to {path}", f"chmod 711 {shown}")
    if facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~(stat.S_IXGRP | stat.S_IXOTH):
        return warning(name, f"others can read {path}", f"chmod 711 {shown}")
    if os.geteuid() not in (0, facts.st_uid):  # what root makes in it, root gives to its owner
        fix = "run the doctor as the user that runs ravebot"
        return warning(name, f"{path} belongs to user {facts.st_uid}, not to {_user()}", fix)
    free = shutil.disk_usage(path).free
    if free < _LEAST_FREE_BYTES:
        detail = f"{in_bytes(free)} free in {path}: once that is full, ravebot can accept nothing"
        return failed(name, detail, "free space there (df -h shows how much there is)")
    return ok(name, str(path))


def database(state_dir: Path) -> Finding:
    """Its version, whether a bot holds it, and the hash of the newest event, to be kept elsewhere."""
    path = database_path(state_dir)
    name = "database"
    if swap.is_pending(state_dir):
        return warning(name, "a restore was interrupted", "start ravebot, which finishes it, or restore again")
    if not path.exists():
        return ok(name, f"{path} does not exist yet: `ravebot run` creates it")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
            schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
            newest = migrations()[-1][0]
            if schema > newest:
                fix = "install the newer ravebot again"
                return failed(name, f"has version {schema}; this ravebot supports versions up to {newest}", fix)
            damage = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            if damage != "ok":
                return failed(name, f"{path} is damaged: {damage}", "stop ravebot and restore a backup")
            row = connection.execute("SELECT id, hash FROM events ORDER BY id DESC LIMIT 1").fetchone()
            connection.row_factory = sqlite3.Row
            undecided = restored.is_unsettled(Transaction(connection, datetime.now(UTC)))
    except (sqlite3.Error, OSError) as error:
        return failed(name, f"{path} can't be read: {error}", "check its owner and mode, or restore a backup")
    events = f"event {row[0]}, hash {row[1]}" if row else "no events yet"
    held = _held(path)
    if undecided:
        fix = "start ravebot; if it then says that it does not know some machines: ravebot cleanup --adopt"
        return warning(name, "was restored from a backup, and nobody has decided yet about what it does not know", fix)
    return ok(name, f"version {schema}, {f'in use by {held}' if held else 'not in use'}; {events}")


def _held(path: Path) -> str:
    """What the process that holds the database's lock wrote about itself; empty if nobody holds it."""
    try:
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
    finally:
        os.close(descriptor)
    return ""


def holder(state_dir: Path) -> int | None:
    """The process id of the ravebot that uses this state folder."""
    match = re.match(r"process (\d+)", _held(database_path(state_dir)))
    return int(match[1]) if match else None


def _user() -> str:
    """The name of our user, whatever the environment says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
