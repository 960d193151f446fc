"""One connection to libvirt with threads of its own: opened when needed, and again after libvirt went away.

libvirt's calls have no time limit, and opening a connection to a libvirtd that hangs never returns. So callers wait for
a limited time here, and a call that never returns blocks only its thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import libvirt

from ravebot.errors import GuestError, GuestTimeout, MachineNotFound, ProviderError, RavebotError, Unavailable
from ravebot.providers.libvirt.eventloop import run_event_loop
from ravebot.providers.libvirt.threads import Threads

T = TypeVar("T")
Handle = Any
"""A `virConnect`; libvirt-python has no types. It, and objects made from it, are used within one call only."""

_KEEPALIVE_SECONDS = 5
_KEEPALIVE_COUNT = 4
_CLOSE_SECONDS = 5.0
_LIMIT_SECONDS = 60.0
"""The longest regular calls start or end a large machine on a busy host."""
_LIBVIRT_GONE = {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_INVALID_CONN}
_TRANSPORT = {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
_AGENT_SILENT = {libvirt.VIR_ERR_AGENT_UNRESPONSIVE}
_AGENT_FAILED = {libvirt.VIR_ERR_AGENT_UNSYNCED}


def translated(error: libvirt.libvirtError) -> RavebotError:
    """Our error for a libvirt error, whose text is shortened, since it may quote the guest or QEMU."""
    code, domain = error.get_error_code(), error.get_error_domain()
    text = " ".join(str(error).split())[:500]
    if code in _LIBVIRT_GONE or (domain in _TRANSPORT and code != libvirt.VIR_ERR_NO_SUPPORT):
        return Unavailable(f"libvirt does not answer ({text}): is libvirtd running (systemctl start libvirtd)?")
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return Unavailable(f"libvirt is busy with this machine: {text}")
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return MachineNotFound(text)
    if code in _AGENT_SILENT:
        return GuestTimeout(f"the guest agent does not answer: {text}")
    if code in _AGENT_FAILED:
        return GuestError(f"the guest agent failed: {text}")
    return ProviderError(f"libvirt refused: {text}")


def found(look_up: Callable[[T], Handle], name: T, missing: int) -> Handle | None:
    """What libvirt finds by that name (or with these flags); None if it raises the error code `missing`."""
    try:
        return look_up(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == missing:
            return None
        raise


def undefine(thing: Handle) -> None:
    """Stop and remove a network or a storage pool."""
    if thing.isActive():
        thing.destroy()
    thing.undefine()


class Connection:
    """Runs functions of a libvirt handle in its own threads and turns libvirt's errors into ours.

    If the caller is cancelled, or `limit_seconds` are over, a call that runs continues in its thread, and a call that
    waits is dropped. `on_open` is called in a worker thread with each new handle, `on_lost` in any thread.
    """

    def __init__(
        self,
        uri: str,
        *,
        name: str,
        threads: int,
        on_open: Callable[[Handle], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        limit_seconds: float = _LIMIT_SECONDS,
    ) -> None:
        self.uri = uri
        self.name = name
        self._limit_seconds = limit_seconds
        self._thread_count = threads
        self._threads: Threads | None = None
        self._on_open = on_open
        self._on_lost = on_lost
        self._lock = threading.Lock()  # held by worker threads while they open a connection, never across an await
        self._handle: Handle | None = None

    async def call(self, work: Callable[[Handle], T], *, limit_seconds: float | None = None) -> T:
        """Run `work` in one of the threads; returns its result. Raises only our errors; Unavailable after the limit."""
        limit = self._limit_seconds if limit_seconds is None else limit_seconds
        try:
            async with asyncio.timeout(limit):
                return await asyncio.wrap_future(self.submit(work))
        except TimeoutError as error:
            raise Unavailable(f"libvirt did not answer within {limit:g} s: does libvirtd hang?") from error

    def submit(self, work: Callable[[Handle], T]) -> Future[T]:
        """The same, for a caller that waits in another way, or not at all."""
        if self._threads is None:
            self._threads = Threads(self._thread_count, self.name)
        return self._threads.submit(lambda: self._run(work))

    async def close(self) -> None:
        """Close the connection; calls that still run end by themselves."""
        threads, self._threads = self._threads, None
        if threads is None:
            return
        threads.close()
        # A thread of its own, since all others may hang. It keeps the handle until closing is done: libvirt's binding
        # closes it again, and waits, in the thread that drops the last reference to it.
        last = Threads(1, f"{self.name}-close")
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(last.submit(self._drop)), _CLOSE_SECONDS)
        last.close()

    def _run(self, work: Callable[[Handle], T]) -> T:
        try:
            handle = self._opened()
            return work(handle)
        except libvirt.libvirtError as error:
            failure = translated(error)
            if isinstance(failure, Unavailable):
                self._drop_dead()
            raise failure from error

    def _opened(self) -> Handle:
        if not self._lock.acquire(timeout=self._limit_seconds):
            raise Unavailable("no connection to libvirt could be opened for a long time: does libvirtd hang?")
        try:
            if self._handle is None or not self._handle.isAlive():
                self._handle = None
                run_event_loop()
                handle = libvirt.open(self.uri)
                with suppress(libvirt.libvirtError):  # libvirt's test driver has neither
                    handle.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
                with suppress(libvirt.libvirtError):
                    handle.registerCloseCallback(self._closed_by_libvirt, None)
                if self._on_open is not None:
                    self._on_open(handle)
                self._handle = handle
            return self._handle
        finally:
            self._lock.release()

    def _closed_by_libvirt(self, _handle: Handle, _reason: int, _opaque: object) -> None:
        """Called in the event thread while the connection closes; the next call finds the handle dead."""
        if self._on_lost is not None:
            self._on_lost()

    def _drop_dead(self) -> None:
        with self._lock:
            handle = self._handle
            if handle is None:
                return
            with suppress(libvirt.libvirtError):
                if handle.isAlive():
                    return
            self._handle = None
        if self._on_lost is not None:
            self._on_lost()

    def _drop(self) -> None:
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(libvirt.libvirtError):
                handle.unregisterCloseCallback()
            with suppress(libvirt.libvirtError):
                handle.close()
