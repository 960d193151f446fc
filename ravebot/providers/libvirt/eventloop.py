"""libvirt's event loop: one daemon thread per process, because libvirt has one such loop per process."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import libvirt

_start = threading.Lock()
_thread: threading.Thread | None = None


def run_event_loop() -> None:
    """Start the thread unless it runs. libvirt requires this before the first connection is opened."""
    global _thread
    with _start:
        if _thread is None:
            libvirt.registerErrorHandler(_ignore_error, None)
            libvirt.virEventRegisterDefaultImpl()
            _thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
            _thread.start()


def _run() -> None:
    while True:
        with suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()
            continue
        time.sleep(0.1)


def _ignore_error(_context: object, _error: object) -> None:
    """Ignore an error: without a handler libvirt prints all errors to stderr, even those that we handle."""
