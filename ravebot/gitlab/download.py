"""Downloads source archives to a file, with limits on size and time."""

from __future__ import annotations

import time
from pathlib import Path

import requests

from ravebot.errors import Refused, Unavailable
from ravebot.gitlab.transport import Transport
from ravebot.sandboxes.view import in_bytes

_CHUNK_BYTES = 256 * 1024
_DEADLINE_SECONDS = 600.0  # for the whole download; each chunk has the transport's timeout


def save(transport: Transport, address: str, sha: str, target: Path, max_bytes: int) -> int:
    """Write the archive of that commit to `target`; returns its size. If it raises, no file is left."""

    def take(response: requests.Response) -> int:
        announced = response.headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) > max_bytes:
            raise _too_large(max_bytes)
        deadline = time.monotonic() + _DEADLINE_SECONDS
        size = 0
        with target.open("wb") as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                if transport.stopping.is_set():
                    raise Unavailable("ravebot is stopping")
                if time.monotonic() > deadline:
                    raise Unavailable("GitLab takes more than ten minutes to send the source archive")
                file.write(chunk)
        return size

    try:
        return transport.stream(address, take, sha=sha)
    except BaseException:  # also when it is interrupted: half an archive is of no use
        target.unlink(missing_ok=True)
        raise


def _too_large(max_bytes: int) -> Refused:
    return Refused(
        f"the source archive is larger than {in_bytes(max_bytes)}: make the repository smaller, "
        "or have an operator raise sandbox.max_source"
    )
