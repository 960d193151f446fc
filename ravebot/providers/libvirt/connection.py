"""One connection to libvirt with threads of its own: opened when needed, and anew after libvirt went away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import libvirt

from ravebot.errors import GuestError, GuestTimeout, MachineNotFound, ProviderError, RavebotError, Unavailable
from ravebot.providers.libvirt.eventloop import run_event_loop

T = TypeVar("T")
Handle = Any
"""A `virConnect`; libvirt-python has no types. It, and objects made from it, never outlive one call."""

_KEEPALIVE_SECONDS = 5
_KEEPALIVE_COUNT = 4
_CLOSE_SECONDS = 5.0
_LIBVIRT_GONE = {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_INVALID_CONN}
_TRANSPORT = {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
_AGENT_SILENT = {libvirt.VIR_ERR_AGENT_UNRESPONSIVE}
_AGENT_FAILED = {libvirt.VIR_ERR_AGENT_UNSYNCED}


def translated(error: libvirt.libvirtError) -> RavebotError:
    """What a libvirt error means to us. Its text may quote the guest or QEMU, so it is cut."""
    code, domain = error.get_error_code(), error.get_error_domain()
    text = " ".join(str(error).split())[:500]
    if code in _LIBVIRT_GONE or (domain in _TRANSPORT and code != libvirt.VIR_ERR_NO_SUPPORT):
        return Unavailable(f"libvirt does not answer ({text}): is libvirtd running?")
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return Unavailable(f"libvirt is busy with this machine: {text}")
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return MachineNotFound(text)
    if code in _AGENT_SILENT:
        return GuestTimeout(f"the guest agent does not answer: {text}")
    if code in _AGENT_FAILED:
        return GuestError(f"the guest agent failed: {text}")
    return ProviderError(f"libvirt refused: {text}")


class Connection:
    """Runs functions of a libvirt handle in its own threads and turns libvirt's errors into ours.

    A cancelled caller does not stop its call: it ends in its thread, and no lock is held over it.
    `on_open` is called in a worker thread with each new handle, `on_lost` in any thread.
    """

    def __init__(
        self,
        uri: str,
        *,
        name: str,
        threads: int,
        on_open: Callable[[Handle], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.uri = uri
        self.name = name
        self._threads = threads
        self._on_open = on_open
        self._on_lost = on_lost
        self._lock = threading.Lock()  # held by worker threads while they open, never over an await
        self._handle: Handle | None = None
        self._executor: ThreadPoolExecutor | None = None

    async def call(self, work: Callable[[Handle], T]) -> T:
        """What `work` returns, run in one of the threads. Raises our errors only."""
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Callable[[Handle], T]) -> Any:
        """The same as a `concurrent.futures.Future`, for a caller that may stop waiting."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix=self.name)
        return self._executor.submit(self._run, work)

    async def close(self) -> None:
        """Close the connection; calls still under way end by themselves."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(executor.submit(self._drop)), _CLOSE_SECONDS)
        executor.shutdown(wait=False, cancel_futures=True)

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
        with self._lock:
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

    def _closed_by_libvirt(self, _handle: Handle, _reason: int, _opaque: object) -> None:
        """Called in the event thread, in the middle of closing: the next call finds the handle dead."""
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
