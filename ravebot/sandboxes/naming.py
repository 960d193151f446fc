"""The names of machines (ours, stored before the create, never used twice) and the form of an instance's id."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass

INSTANCE_ID = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""Regular expression of a valid instance id."""


def is_instance_id(text: str) -> bool:
    """Whether `text` is a valid instance id; the id is part of the names of tables, networks and storage pools."""
    return re.fullmatch(INSTANCE_ID, text) is not None


def removal_command(instance_id: str) -> str:
    """What a person runs to remove what an instance left on this host."""
    return f"`ravebot cleanup --instance-id {instance_id} --all --force`"


def another_instance(instance_id: str, does: str, advice: str) -> str:
    """Error message about a conflict with another instance: what it does, and how to solve that."""
    return (
        f"another ravebot, of instance id {instance_id}, {does}: {advice}; if that one is gone for good, run"
        f" {removal_command(instance_id)}"
    )


CHANGE_BRIDGE = "change provider.bridge.name and its subnet, here or there"
"""Advice where another instance uses our bridge."""


@dataclass(frozen=True)
class Names:
    """What one machine is called at libvirt, on the wire and on the host."""

    name: str
    uuid: str
    mac: str
    tap: str  # host-side interface: Linux allows 15 characters


def names(instance: str, random: bytes) -> Names:
    """The names of a new machine from 16 random bytes."""
    digest = hashlib.sha256(random).digest()
    mark = digest[:5].hex()
    return Names(
        name=f"rave-{instance}-{mark}",
        uuid=str(uuid.UUID(bytes=digest[:16], version=4)),
        mac="52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[5:8]),  # QEMU's own prefix
        tap=f"rv{mark}",
    )


def pattern(instance: str) -> str:
    """A shell pattern that matches the names of that instance's machines only."""
    return f"rave-{instance}-{'[0-9a-f]' * 10}"
