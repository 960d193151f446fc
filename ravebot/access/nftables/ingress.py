"""The filters at the traffic-control ingress hook, which keep the host's ports closed while nftables is flushed.

They are observed state, like the routing rules. A tap appears when its machine starts, and gets its filter in the next
pass; until then it is restricted by nftables alone.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Collection, Mapping
from typing import cast

import structlog

from ravebot.access.nftables.bpf import Encoded, Program, bytecode
from ravebot.access.nftables.filters import MOST_ADDRESSES, bridge_program, guest_program
from ravebot.access.nftables.nft import JsonObject, NetworkTools
from ravebot.access.rules import Guest
from ravebot.config.model import BridgeConfig, SandboxConfig
from ravebot.errors import Unavailable

log = structlog.get_logger()

_OURS = ("protocol", "all", "pref", "1", "handle", "0x7276", "bpf")
"""Identifies our filter on a device. Preference 1 runs first; a filter of another program there has another handle."""
_HOOKS = ("clsact", "ingress")
"""The queueing disciplines that provide the hook; a device has at most one of them."""
_GONE = ("Cannot find device", "No such device")
WEAKNESS = "after a flush of nftables the sandboxes could reach the host's ports"
"""The consequence of missing filters."""


class Ingress:
    """Keeps the filters of one bridge and its guests' taps. `problem` says why that fails; empty if it works."""

    def __init__(self, tools: NetworkTools, bridge: BridgeConfig, sandbox: SandboxConfig) -> None:
        self._tools = tools
        self._bridge = bridge
        self._dns = sandbox.egress == "internet"
        self._allowed = {address for entry in sandbox.allow if (address := _single_address(entry))}
        self._filtered: dict[str, int] = {}  # devices and their numbers, as of the last check
        self._written: Mapping[str, Program] = {}
        self._told_of_excess = False
        self.problem = ""

    def devices_changed(self, guests: Collection[Guest]) -> bool:
        """Whether the bridge or a tap appeared, or was replaced under the same name, since the last check."""
        devices = (self._bridge.name, *(guest.tap for guest in guests))
        return not self.problem and any(self._number(one) != self._filtered.get(one, 0) for one in devices)

    async def ensure(self, guests: Collection[Guest]) -> bool:
        """Attach the filters to the bridge and to those taps that exist. Returns whether someone had altered one.

        If the kernel or tc can't do that, sandboxes run without filters: nftables and the routing rules still apply.
        """
        try:
            touched = await self._ensure(guests)
        except Unavailable as error:
            problem = f"{WEAKNESS}: {error}"
            if problem != self.problem:
                log.warning("no ingress filters", problem=problem)
            self.problem = problem
            self._filtered = {}
            return False
        self.problem = ""
        return touched

    async def found(self, devices: Collection[str]) -> tuple[str, ...]:
        """Those of these devices that have our filter. Raises Unavailable."""
        listed = await self._qdiscs()
        programs = await self._programs([device for device in devices if _has_hook(listed, device)])
        return tuple(device for device, program in programs.items() if program is not None)

    async def remove(self, devices: Collection[str]) -> tuple[str, ...]:
        """Remove our filters from these devices; returns what was removed. The hook, and others' filters, stay."""
        try:
            ours = await self.found(devices)
        except Unavailable as error:
            log.warning("ingress filters could not be listed", error=str(error))
            return ()
        for device in ours:
            await self._change("filter", "del", "dev", device, "ingress", *_OURS)
        self._filtered = {}
        return tuple(map(in_words, ours))

    async def _ensure(self, guests: Collection[Guest]) -> bool:
        wanted = {guest.tap: guest_program(guest) for guest in guests}
        wanted[self._bridge.name] = bridge_program(self._bridge, await self._protected(), dns=self._dns)
        numbers = {device: number for device in wanted if (number := self._number(device))}
        if numbers == self._filtered:  # the usual case, which takes one call
            found = await self._programs(sorted(numbers))
            if found == {device: wanted[device] for device in numbers}:
                return False
        listed = await self._qdiscs()
        there = {device for device in wanted if device in listed}
        found = await self._programs([device for device in sorted(there) if _has_hook(listed, device)])
        touched, failures = False, []
        for device in sorted(there):
            if found.get(device) == wanted[device]:
                continue
            # A device without the hook is new: nobody altered it.
            same = numbers.get(device) == self._filtered.get(device, 0)
            touched |= same and device in found and found[device] != self._written.get(device)
            program = ("direct-action", "bytecode", bytecode(wanted[device]))
            try:
                if device not in found:
                    await self._change("qdisc", "add", "dev", device, "clsact")
                await self._change("filter", "replace", "dev", device, "ingress", *_OURS, *program)
            except Unavailable as error:  # continue with the other devices
                failures.append(f"{device}: {error}")
        if failures:
            raise Unavailable("; ".join(failures))
        self._filtered = {device: number for device, number in numbers.items() if device in there}
        self._written = wanted
        return touched

    async def _protected(self) -> set[str]:
        """The host's addresses, except those that the configuration allows guests to connect to."""
        links = await self._tools.ip_listed("-4", "addr", "show")
        found = {info.get("local") for link in links for info in cast(list[JsonObject], link.get("addr_info", []))}
        protected = {str(address) for address in found if address} - self._allowed
        if len(protected) > MOST_ADDRESSES and not self._told_of_excess:
            self._told_of_excess = True
            log.warning(
                "the bridge filter tests only some of the host's addresses", count=len(protected), tested=MOST_ADDRESSES
            )
        return protected

    def _number(self, device: str) -> int:
        """The kernel's index of the device; 0 if there is none."""
        if self._tools.prefix:
            return 1  # another network namespace, whose devices we can't query: assume that the device stays the same
        try:
            return socket.if_nametoindex(device)
        except OSError:
            return 0

    async def _qdiscs(self) -> Mapping[str, set[str]]:
        """The queueing disciplines of each device that is up."""
        kinds: dict[str, set[str]] = {}
        for listed in _lists(await self._tools.run("tc", "-j", "qdisc", "show")):
            for entry in listed:
                kinds.setdefault(str(entry.get("dev")), set()).add(str(entry.get("kind")))
        return kinds

    async def _programs(self, devices: list[str]) -> dict[str, Program | None]:
        """Our filter on each device, or None, read in one call. Devices that are gone are left out."""
        if not devices:
            return {}
        # tc takes this only as text, which is safe: the names are from our configuration and our database.
        asked = "".join(f"filter show dev {device} ingress\n" for device in devices)
        try:
            answer = await self._tools.run("tc", "-j", "-batch", "-", stdin=asked.encode())
        except Unavailable as error:
            if len(devices) > 1 and _is_gone(error):  # a machine has just ended, and tc does not say which tap is gone
                one_by_one = [await self._programs([device]) for device in devices]
                return {device: program for answered in one_by_one for device, program in answered.items()}
            if _is_gone(error):
                return {}
            raise
        lists = _lists(answer)
        if len(lists) != len(devices):
            raise Unavailable("tc listed other filters than it was asked for")
        return {device: _ours(listed) for device, listed in zip(devices, lists, strict=True)}

    async def _change(self, *arguments: str) -> None:
        try:
            await self._tools.run("tc", *arguments)
        except Unavailable as error:
            if not _is_gone(error):
                raise


def in_words(device: str) -> str:
    """The description of our filter on that device, for people."""
    return f"ingress filter of {device}"


async def try_out(tools: NetworkTools) -> None:
    """Attach a filter in a temporary network namespace. Raises Unavailable if that fails.

    Raises PermissionError if only the namespace can't be made: that needs CAP_SYS_ADMIN, which filters do not.
    """
    program = bytecode(bridge_program(BridgeConfig(), (), dns=True))
    commands = (
        f"qdisc add dev lo clsact\nfilter add dev lo ingress {' '.join(_OURS)} direct-action bytecode '{program}'\n"
    )
    try:
        await tools.run("unshare", "--net", "tc", "-batch", "-", stdin=commands.encode())
    except Unavailable as error:
        if "unshare failed" in str(error):
            raise PermissionError("no network namespace could be made to try them in") from error
        raise


def _single_address(allowed: str) -> str | None:
    """The address in an entry of sandbox.allow; None if the entry is a network."""
    network = ipaddress.IPv4Network(allowed.partition(":")[0])
    return str(network.network_address) if network.num_addresses == 1 else None


def _has_hook(listed: Mapping[str, set[str]], device: str) -> bool:
    return any(kind in listed.get(device, ()) for kind in _HOOKS)


def _is_gone(error: Unavailable) -> bool:
    return any(text in str(error) for text in _GONE)


def _lists(output: str) -> list[list[JsonObject]]:
    """Parse what tc printed: a JSON list for each command."""
    decoder, found, rest = json.JSONDecoder(), [], output.strip()
    try:
        while rest:
            listed, end = decoder.raw_decode(rest)
            found.append(cast(list[JsonObject], listed))
            rest = rest[end:].strip()
    except ValueError as error:
        raise Unavailable("tc did not answer in JSON: install iproute2 5.0 or newer") from error
    return found


def _ours(listed: list[JsonObject]) -> Program | None:
    """The program of our filter among these; None if it is missing or has other options than ours."""
    for entry in listed:
        options = cast(JsonObject, entry.get("options", {}))
        of = ("protocol", entry.get("protocol"), "pref", str(entry.get("pref")), "handle", options.get("handle"))
        if (*of, entry.get("kind")) == _OURS and options.get("direct-action"):
            code = cast(dict[str, list[dict[str, int]]], options.get("bytecode", {}))
            try:
                return tuple(Encoded(one["code"], one["jt"], one["jf"], one["k"]) for one in code["insns"])
            except (KeyError, TypeError) as error:
                raise Unavailable("tc lists a filter's program in an unknown form") from error
    return None
