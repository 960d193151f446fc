"""The lock that prevents two processes of one instance on a host, wherever their state folders are.

It is an abstract Unix socket, named after the instance id: https://man7.org/linux/man-pages/man7/unix.7.html. A file
with flock beside the database would be lost with the state folder; one in /run needs a folder that root and others may
write to, and is another file in another mount namespace. The socket needs neither folder nor permission, is the same
for root and others, and disappears with the process, however that ends. There is one per network namespace, as for the
bridge, the firewall and the ports, over which two processes of one instance would conflict. Any user of the host can
take the name before the bot starts; the bot then does not start, and says whose process has it.
"""

from __future__ import annotations

import errno
import pwd
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ravebot.errors import Refused

_ASK_SECONDS = 1.0


@contextmanager
def held(instance_id: str) -> Iterator[None]:
    """Hold the lock while the block runs. Raises Refused, with the holder, if another process holds it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(_address(instance_id))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            by = holder(instance_id) or "a process that is ending"
            raise Refused(f"a ravebot of instance id {instance_id} runs on this host: {by}; stop it first") from error
        lock.listen(socket.SOMAXCONN)  # so that `holder` can connect, and ask the kernel who listens
        yield


def holder(instance_id: str) -> str | None:
    """The process that holds the lock, and its user; None if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ASK_SECONDS)
        try:
            asking.connect(_address(instance_id))
        except ConnectionRefusedError:
            return None
        except OSError:  # the queue is full, because somebody connects all the time
            return "an unknown process"
        pid, uid, _ = struct.unpack(
            "3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
    user = f"uid {uid}"
    with suppress(KeyError):
        user = pwd.getpwuid(uid).pw_name
    return f"process {pid} of {user}" if pid else f"a process of {user} in another container"


def _address(instance_id: str) -> bytes:
    return b"\0ravebot-" + instance_id.encode()
