"""The lock that keeps two processes of one instance apart, wherever their state folders are.

It is an abstract Unix socket, named by the instance id: https://man7.org/linux/man-pages/man7/unix.7.html. A file with
flock, beside the database, is lost with the state folder; one in /run needs a folder that root and others may write,
and is another file in another mount namespace. This one needs neither folder nor permission, is the same for root and
others, and is gone with the process, whatever ends it. It is one for each network namespace: so are the bridge, the
firewall and the ports, which are what two processes of one instance would fight for. Anyone on the host may take the
name first; then the bot does not start and says whose process that is.
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
    """Hold the lock while the block runs. Raises Refused, with who holds it, when another process does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(_address(instance_id))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            by = holder(instance_id) or "a process that is ending"
            raise Refused(f"a ravebot of instance id {instance_id} runs on this host: {by}; stop it first") from error
        lock.listen(socket.SOMAXCONN)  # for `holder`, which is told by the kernel who called this
        yield


def holder(instance_id: str) -> str | None:
    """Which process holds the lock, and whose it is; None when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ASK_SECONDS)
        try:
            asking.connect(_address(instance_id))
        except ConnectionRefusedError:
            return None
        except OSError:  # its queue is full: somebody asks all the time
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
