"""Calls to guest agents, which are not trusted: an answer may be false, late or missing.

Agent commands: https://qemu-project.gitlab.io/qemu/interop/qemu-ga-ref.html
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from ravebot.backoff import Backoff
from ravebot.errors import GuestError, GuestTimeout, MachineNotFound, ProviderError, Unavailable
from ravebot.providers.base import OUTPUT_LIMIT_BYTES, RunResult
from ravebot.providers.guest import check_authorized_keys, check_target, larger_than, read_source
from ravebot.providers.libvirt.answers import field, file_piece, host_keys, returned, run_result
from ravebot.providers.libvirt.connection import Connection, Handle
from ravebot.providers.libvirt.domains import Domains

CHUNK_BYTES = 64 * 1024
READ_BYTES = 256 * 1024
"""How much is read at once: libvirt takes answers of up to 10 MiB, but parsing a long one stops the event loop."""
# libvirt 9.0 garbles a command that does not fit into its socket's send buffer (208 KiB by default) in one
# write, and the agent stops answering: seen from 180,000 bytes in base64 on, never at 128 KiB.
_LONGEST_COMMAND = 128 * 1024
_CALL_SECONDS = 15.0
_QUEUE_SECONDS = 15.0
_POLLS = Backoff.growing(0.02, 0.5, factor=1.5)
_PATH = "/run/wrappers/bin:/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The command writes to a pipe whose reader keeps only the last part in files, so that endless output fills no disk.
# The agent's own pipe can't be used: a service that the command leaves running would keep it open for ever. With such a
# service the reader keeps running, and what it has kept is returned a second after the command's end.
# The blocks are small, because each read fills one: of a program that writes line by line a thousand lines are kept.
_RUN = """\
umask 022
folder=$(mktemp -d) && mkfifo "$folder/pipe" || exit 125
(
    exec <"$folder/pipe" >/dev/null 2>&1
    while dd bs=256 count=1024 of="$folder/c" && [ -s "$folder/c" ]; do
        [ ! -e "$folder/b" ] || mv "$folder/b" "$folder/a"
        mv "$folder/c" "$folder/b"
    done
    [ ! -e "$folder/left" ] || rm -rf "$folder"
) &
reader=$!
"$@" >"$folder/pipe" 2>&1
code=$?
trap : USR1
(sleep 1; kill -USR1 $$) </dev/null >/dev/null 2>&1 &
timer=$!
wait "$reader"
kill "$timer" 2>/dev/null
cat "$folder/a" "$folder/b" "$folder/c" 2>/dev/null | tail -c LIMIT
if kill -0 "$reader" 2>/dev/null; then : >"$folder/left"; else rm -rf "$folder"; fi
exit "$code"
""".replace("LIMIT", str(OUTPUT_LIMIT_BYTES))
_MOVE = '[ ! -d "$2" ] && chmod "$3" "$1" && mv -f "$1" "$2" || { rm -f "$1"; exit 1; }'
_HOST_KEYS = "cat /etc/ssh/ssh_host_*_key.pub"


class GuestAgents:
    """The agents of all guests, over connections of their own, so that an agent that hangs delays nothing else.

    Each machine has at most one call at a time, so that a hostile guest can block one thread, not all.
    """

    def __init__(self, connections: Sequence[Connection], domains: Domains) -> None:
        self._connections = tuple(connections)
        self._domains = domains
        self._under_way: dict[str, Future[Any]] = {}
        self._busy = dict.fromkeys(self._connections, 0)  # calls that run or wait
        self._counting = threading.Lock()

    async def ping(self, name: str, timeout: timedelta) -> bool:
        try:
            await self._ask(name, "guest-ping", timeout.total_seconds())
        except GuestError:
            return False
        return True

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: timedelta,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunResult:
        """Run a command as root; see the contract. While it runs, libvirt may be away for a time."""
        deadline = _now() + timeout.total_seconds()
        variables = {"PATH": _PATH, **(environment or {})}
        started = await self._ask(
            name,
            "guest-exec",
            min(_CALL_SECONDS, timeout.total_seconds()),
            {
                "path": "/bin/sh",
                "arg": ["-c", _RUN, "sh", *argv],
                "env": [f"{key}={value}" for key, value in variables.items()],
                "input-data": base64.b64encode(stdin).decode(),
                "capture-output": True,
            },
        )
        pid = field(started, "pid", int)
        pauses = iter(_POLLS)
        missed: GuestTimeout | Unavailable | None = None
        while (left := deadline - _now()) > 0:
            await asyncio.sleep(min(next(pauses), left))
            try:
                status = await self._ask(name, "guest-exec-status", min(_CALL_SECONDS, max(left, 1)), {"pid": pid})
            except (GuestTimeout, Unavailable) as error:  # only the deadline counts
                missed = error
                continue
            missed = None
            if field(status, "exited", bool):
                return run_result(status)
        if isinstance(missed, Unavailable):
            raise missed
        raise GuestTimeout(f"{argv[0]} did not finish within {timeout.total_seconds():.0f} s")

    async def copy_in(self, name: str, source: Path, target: str, *, mode: int) -> None:
        """Write a host file to a temporary file in the guest, beside its target, then move it there."""
        temporary = temporary_path(target)
        opened = await self._ask(name, "guest-file-open", _CALL_SECONDS, {"path": temporary, "mode": "wb"})
        guest_file = field({"handle": opened}, "handle", int)
        try:
            await self._write(name, source, guest_file)
        finally:
            with suppress(GuestError, ProviderError):
                await self._ask(name, "guest-file-close", _CALL_SECONDS, {"handle": guest_file})
        await self.put_in_place(name, temporary, target, mode=mode)

    async def put_in_place(self, name: str, temporary: str, target: str, *, mode: int) -> None:
        """Move a temporary file within the guest to its target; it is removed if that fails."""
        done = await self.run(
            name, ("sh", "-c", _MOVE, "sh", temporary, target, f"{mode:o}"), timeout=timedelta(seconds=_CALL_SECONDS)
        )
        if done.exit_code != 0:
            raise GuestError(f"{target} could not be put in place in the guest: {done.output.strip()[-200:]}")

    async def _write(self, name: str, source: Path, guest_file: int) -> None:
        offset = 0
        while chunk := await asyncio.to_thread(read_source, source, offset, CHUNK_BYTES):
            answer = await self._ask(
                name,
                "guest-file-write",
                _CALL_SECONDS,
                {"handle": guest_file, "buf-b64": base64.b64encode(chunk).decode()},
            )
            count = field(answer, "count", int)
            if not 0 < count <= len(chunk):
                raise GuestError("the guest agent wrote nothing: is the guest's disk full?")
            offset += count

    async def copy_out(self, name: str, source: str, max_bytes: int) -> bytes:
        """Read a file in the guest, piece by piece; see the contract."""
        check_target(source)
        opened = await self._ask(name, "guest-file-open", _CALL_SECONDS, {"path": source, "mode": "rb"})
        handle = field({"handle": opened}, "handle", int)
        content = bytearray()
        try:
            while True:
                asked = {"handle": handle, "count": READ_BYTES}
                piece, at_end = file_piece(await self._ask(name, "guest-file-read", _CALL_SECONDS, asked), READ_BYTES)
                content += piece
                if len(content) > max_bytes:
                    raise larger_than(source, max_bytes)
                if at_end:
                    return bytes(content)
                if not piece:
                    raise GuestError("the guest agent reads a file without coming to its end")
        finally:
            with suppress(GuestError, ProviderError):
                await self._ask(name, "guest-file-close", _CALL_SECONDS, {"handle": handle})

    async def authorize_keys(self, name: str, user: str, keys: Sequence[str]) -> None:
        check_authorized_keys(keys)
        arguments = {"username": user, "keys": list(keys), "reset": True}
        try:
            await self._ask(name, "guest-ssh-add-authorized-keys", _CALL_SECONDS, arguments)
        except GuestTimeout:
            raise
        except GuestError as error:
            if "failed to lookup user" not in str(error):  # qemu-ga's words, qga/commands-posix-ssh.c
                raise
            raise GuestError(f"the image has no user {user}: set sandbox.user to one that it has") from error

    async def host_keys(self, name: str) -> tuple[str, ...]:
        done = await self.run(name, ("sh", "-c", _HOST_KEYS), timeout=timedelta(seconds=_CALL_SECONDS))
        if done.exit_code != 0:
            raise GuestError("the guest has no SSH host keys in /etc/ssh: does its image start an SSH server?")
        return host_keys(done.output)

    def begin_shutdown(self, name: str) -> None:
        """Ask the agent to shut the guest down, without waiting; no other agent call can be made meanwhile."""
        if name in self._under_way:
            return

        def work(handle: Handle) -> None:
            domain = self._domains.get(handle, name)
            self._domains.limit_agent(domain)
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)

        self._submit(name, work)

    async def _ask(
        self, name: str, command: str, timeout_seconds: float, arguments: Mapping[str, object] | None = None
    ) -> object:
        """The agent's answer to one command. Raises GuestError, GuestTimeout, MachineNotFound, Unavailable."""
        question: dict[str, object] = {"execute": command}
        if arguments:
            question["arguments"] = arguments
        text = json.dumps(question)
        if len(text) > _LONGEST_COMMAND:
            raise ProviderError(f"this is too long for the guest agent ({len(text)} bytes): copy it in as a file")
        whole_seconds = max(1, math.ceil(timeout_seconds))

        def work(handle: Handle) -> object:
            domain = self._domains.get(handle, name)
            self._domains.limit_agent(domain)
            try:
                return libvirt_qemu.qemuAgentCommand(domain, text, whole_seconds, 0)
            except (SystemError, UnicodeDecodeError) as error:  # the binding's errors for an answer that is not UTF-8
                raise GuestError(f"the guest agent's answer to {command} is not text") from error

        try:
            answer = await self._exclusively(name, work, timeout_seconds)
        except MachineNotFound:
            raise
        except ProviderError as error:
            raise GuestError(f"{command} failed in the guest: {error}") from error
        return returned(str(answer), command)

    async def _exclusively(self, name: str, work: Callable[[Handle], object], timeout_seconds: float) -> object:
        deadline = _now() + timeout_seconds
        while (other := self._under_way.get(name)) is not None and not other.done():
            if await _unfinished(other, deadline - _now()):
                raise GuestTimeout("the guest agent has not answered an earlier call yet")
        begun: Future[None] = Future()

        def timed(handle: Handle) -> object:
            begun.set_result(None)
            return work(handle)

        future = self._submit(name, timed)
        future.add_done_callback(lambda _: begun.done() or begun.cancel())
        # The time limit starts with the call: it is not this guest's fault if others keep the connections busy.
        if await _unfinished(begun, _QUEUE_SECONDS):
            future.cancel()
            raise Unavailable(f"all connections to the guest agents were busy for {_QUEUE_SECONDS:g} s")
        if await _unfinished(future, timeout_seconds):
            raise GuestTimeout(f"the guest agent did not answer within {timeout_seconds:g} s")
        return future.result()

    def _submit(self, name: str, work: Callable[[Handle], object]) -> Future[Any]:
        connection = min(self._connections, key=lambda one: self._busy[one])
        with self._counting:
            self._busy[connection] += 1
        future: Future[Any] = connection.submit(work)
        self._under_way[name] = future
        future.add_done_callback(lambda done: self._forget(name, connection, done))
        return future

    def _forget(self, name: str, connection: Connection, done: Future[Any]) -> None:
        """Called in any thread."""
        with self._counting:
            self._busy[connection] -= 1
        if self._under_way.get(name) is done:
            del self._under_way[name]


def temporary_path(target: str) -> str:
    """Where a file is written before it is moved to its target. Raises ProviderError unless that is absolute."""
    check_target(target)
    return f"{target}.{secrets.token_hex(6)}"


async def _unfinished(future: Future[Any], timeout_seconds: float) -> bool:
    waiter = asyncio.wrap_future(future)
    # Retrieve the outcome even if nobody waits any more, or asyncio logs a warning.
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
    done, _ = await asyncio.wait({waiter}, timeout=max(0.0, timeout_seconds))
    return not done


def _now() -> float:
    return asyncio.get_running_loop().time()
