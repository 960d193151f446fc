"""Replaces the whole state (database, its log and index, instance id, Matrix login) by another one.

A journal file says how far it is. From the moment it exists the new state is decided on, and whoever opens the database
next finishes the swap: a process that is killed at any point leaves the old or the new state, never a mix.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from ravebot.errors import StoreError
from ravebot.store.durable import remove_parts, sync_folder, write_file
from ravebot.store.owner import hand_over

DATABASE, INSTANCE_ID, LOGIN = "ravebot.db", "instance-id", "matrix.json"
STATE = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", INSTANCE_ID, LOGIN)
"""The files that belong together."""
STAGED = re.compile(r"\.restore-[0-9a-f]{16}")
_BEFORE = re.compile(r"before-restore-[0-9]{8}T[0-9]{6}Z(-[0-9]+)?")
_JOURNAL = "restore.journal"


class Phase(StrEnum):
    """What is still to be done."""

    ASIDE = "aside"  # move the present state aside, then the new one in
    IN = "in"  # move the new state in


def is_pending(state_dir: Path) -> bool:
    """Whether a swap was begun and not finished."""
    return (state_dir / _JOURNAL).exists()


def begin(state_dir: Path, staged: Path, before: Path, step: Callable[[str], None] = lambda _: None) -> None:
    """Replace the state by the files in `staged`, which lie on the disk; the old ones are moved to `before`.

    Both are folders in the state folder, whose lock the caller holds. `step` is called after each change.
    """
    _write(state_dir, staged.name, before.name, Phase.ASIDE)
    step("decided")
    settle(state_dir, step)


def settle(state_dir: Path, step: Callable[[str], None] = lambda _: None) -> None:
    """Finish an interrupted swap; remove what interrupted preparations and writers left. Needs the folder's lock.

    Raises StoreError if the journal can't be followed.
    """
    if is_pending(state_dir):
        staged, before, phase = _read(state_dir)
        if phase is Phase.ASIDE and not (staged / DATABASE).exists():  # somebody deleted the new state: undo
            _move(before, state_dir, step)
        else:
            if phase is Phase.ASIDE:
                before.mkdir(mode=0o700, exist_ok=True)
                hand_over(before, state_dir)
                _move(state_dir, before, step)
                _write(state_dir, staged.name, before.name, Phase.IN)
                step("old state is aside")
            _move(staged, state_dir, step)
        (state_dir / _JOURNAL).unlink()
        sync_folder(state_dir)
        step("done")
    remove_parts(state_dir)
    for folder in state_dir.glob(".restore-*"):
        if STAGED.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _move(source: Path, target: Path, step: Callable[[str], None]) -> None:
    """Move the files of the state that are there; repeated after an interruption, it moves the rest."""
    for name in STATE:
        if (source / name).exists():
            (source / name).rename(target / name)
            step(f"{name} is in {target.name}")
    for folder in (target, source):
        if folder.exists():
            sync_folder(folder)


def _write(state_dir: Path, staged: str, before: str, phase: Phase) -> None:
    write_file(state_dir / _JOURNAL, json.dumps({"staged": staged, "before": before, "phase": phase}).encode())


def _read(state_dir: Path) -> tuple[Path, Path, Phase]:
    path = state_dir / _JOURNAL
    try:
        found = json.loads(path.read_bytes())
        staged, before, phase = found["staged"], found["before"], Phase(found["phase"])
        named_by_us = STAGED.fullmatch(staged) and _BEFORE.fullmatch(before)
    except (ValueError, TypeError, KeyError):
        named_by_us = None
    if not named_by_us:
        raise StoreError(
            f"an interrupted restore can't be finished, because {path} was changed or damaged: the old state is in the"
            f" newest before-restore-… folder of {state_dir}: move its files back, remove {path}, and restore again"
        )
    return state_dir / staged, state_dir / before, phase
