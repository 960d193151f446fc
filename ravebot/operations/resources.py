"""What uses more than it should: ravebot's own process, a machine's QEMU, or a guest that computes without end."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import psutil

from ravebot.sandboxes.view import in_bytes, in_words
from ravebot.store.figures import RunningMachine

_GIB = 1024**3
MOST_MEMORY_BYTES = _GIB
"""Of ravebot itself; it usually takes a tenth of that."""
_MOST_OF_FILES = 0.8
MOST_BEYOND_BYTES = _GIB
"""By which QEMU's memory may exceed what it gives to its guest."""
MOST_MACHINE_FILES = 1000
"""That QEMU may have open for one machine; it usually has 30 to 60."""
BUSY_FOR = timedelta(minutes=30)


@dataclass(frozen=True)
class OwnProcess:
    """What this process uses."""

    memory_bytes: int
    files: int
    most_files: int

    @classmethod
    def now(cls) -> OwnProcess:
        """Reads it from the system."""
        process = psutil.Process()
        return cls(process.memory_info().rss, process.num_fds(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def troubles(own: OwnProcess, running: Iterable[RunningMachine]) -> list[str]:
    """What is wrong, and what to do; empty: nothing is."""
    found = []
    if own.memory_bytes > MOST_MEMORY_BYTES:
        found.append(f"ravebot uses {in_bytes(own.memory_bytes)} of memory: restart it when it suits, sandboxes go on")
    if own.files > _MOST_OF_FILES * own.most_files:
        found.append(f"ravebot has {own.files} of {own.most_files} files open: restart it when it suits")
    for one in running:
        name = f"{one.project}!{one.iid}"
        if one.spun_for >= BUSY_FOR:
            used_for = f"has used all its processors for {in_words(one.spun_for)} while nobody was connected"
            found.append(f"{name} {used_for}: ask its people, or stop it")
        if one.memory_used_bytes > one.memory_bytes + MOST_BEYOND_BYTES:
            used, given = in_bytes(one.memory_used_bytes), in_bytes(one.memory_bytes)
            found.append(f"QEMU uses {used} for {name}, whose machine has {given}: rebuild it")
        if one.open_files > MOST_MACHINE_FILES:
            found.append(f"QEMU has {one.open_files} files open for {name}: rebuild it")
    return found
