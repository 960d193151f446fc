"""A file that a job left comes to our disk whole, or not at all, and never takes longer than it may."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from ravebot.errors import Unavailable
from ravebot.gitlab.pipelines import save

pytestmark = pytest.mark.integration

MIB = 1024**2
DOWNLOAD = """
import resource, sys
from pathlib import Path
import requests
from ravebot.gitlab.pipelines import save
resource.setrlimit(resource.RLIMIT_FSIZE, (1536 * 1024, 1536 * 1024))
try:
    save(requests.get(sys.argv[1], stream=True, timeout=20), Path(sys.argv[2]), 2**30, lambda _: None)
except OSError as error:
    print("noticed", error.strerror)
"""


@contextmanager
def sending(size: int, piece: bytes, pause: float, length: bytes = b"") -> Iterator[str]:
    """The address of a server that sends one answer of that size, a piece at a time."""
    ended = threading.Event()

    def serve() -> None:
        peer, _ = server.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n" % (length or b"%d" % size))
            for _ in range(0, size, len(piece)):
                if ended.wait(pause):
                    return
                try:
                    peer.sendall(piece)
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            ended.set()
            thread.join()


def test_a_download_that_only_drips_ends_within_a_second_or_two_when_it_is_told_to(tmp_path: Path) -> None:
    asked: list[int] = []

    def guard(to_come: int) -> None:
        asked.append(to_come)
        if len(asked) > 2:
            raise Unavailable("ravebot is stopping")

    with sending(4 * MIB, b"x", 0.05) as address:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="stopping"):
            save(requests.get(address, stream=True, timeout=20), tmp_path / "file", 1024**3, guard)
    assert time.monotonic() - began < 5
    assert 4 * MIB - 100 < asked[-1] < 4 * MIB


def test_a_disk_that_takes_only_a_part_of_what_came_is_noticed(tmp_path: Path) -> None:
    """Here because of a limit: with a quota or a full disk it is the same."""
    with sending(2 * MIB, bytes(MIB), 0) as address:
        done = subprocess.run(
            [sys.executable, "-c", DOWNLOAD, address, tmp_path / "file"], capture_output=True, text=True, check=True
        )
    assert done.stdout == "noticed File too large\n"


def test_a_length_that_is_no_number_is_as_good_as_none(tmp_path: Path) -> None:
    with sending(5, b"hello", 0, length="²".encode("latin-1")) as address:
        found = save(requests.get(address, stream=True, timeout=20), tmp_path / "file", 1024, lambda _: None)
    assert found.bytes == 5
