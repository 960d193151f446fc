"""A provider whose machines exist only in memory: it needs no libvirt, no disk space and no root.

It is for tests in which a provider must fail, wait or return wrong answers, and for whoever writes another
provider: it is the whole contract (`ravebot.providers.base`) in a few hundred lines.

`MemoryHost` holds the machines of all instances, `MemoryProvider` is the provider of one instance, and `MemoryRemains`
finds what a lost instance left. Faults and the guests' answers are attributes of the provider: see `script.Script`.
"""

from ravebot.providers.memory.host import INSTANCE_ID, Disk, MemoryHost, MemoryLease
from ravebot.providers.memory.provider import MemoryProvider
from ravebot.providers.memory.remains import MemoryRemains
from ravebot.providers.memory.script import GuestCommand

__all__ = ["INSTANCE_ID", "Disk", "GuestCommand", "MemoryHost", "MemoryLease", "MemoryProvider", "MemoryRemains"]
