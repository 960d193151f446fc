"""Checks of the host's network: nftables, ports, addresses, and what would block the sandboxes."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import psutil

from ravebot.access.listeners import listening_ports
from ravebot.access.nftables.firewall import conflicts_on_host
from ravebot.access.nftables.ingress import WEAKNESS, try_out
from ravebot.access.nftables.nft import JsonObject, NetworkTools
from ravebot.access.nftables.ruleset import TABLE_PREFIX
from ravebot.config.model import Config
from ravebot.errors import Unavailable
from ravebot.operations.doctor.finding import Finding, failed, guarded, ok, unknown, warning
from ravebot.operations.doctor.services import reason
from ravebot.operations.doctor.state import holder

_CAP_NET_ADMIN = 12  # linux/capability.h
_THREADS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="doctor-dns")


async def check(config: Config, tools: NetworkTools, instance_id: str | None) -> AsyncIterator[Finding]:
    """All checks of this module; `tools` run in the network namespace that is checked."""
    yield await guarded("http.listen", listen(config))
    yield await guarded("sandbox.host", sandbox_host(config.sandbox.host))
    yield await guarded("ports", ports(config))
    if config.provider.network != "bridge":
        yield warning("network", "provider.network is none: nobody can reach the machines")
        return
    if not may_change_network():
        yield failed("permission", "ravebot may not change the network", "run it as root or with CAP_NET_ADMIN")
    yield await guarded("firewall", firewall(config, tools, instance_id))
    yield await guarded("ingress filters", ingress_filters(tools))
    yield await guarded("conntrack", connection_table(tools))
    yield await guarded("forwarding", forwarding(tools))
    yield await guarded("bridge", routes(config, tools))


def may_change_network(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has CAP_NET_ADMIN: proc(5), CapEff."""
    line = next(line for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)


async def listen(config: Config) -> Finding:
    """Whether http.listen can be bound, or is used by the running ravebot."""
    name, (host, port) = "http.listen", config.http.address
    try:
        server = await asyncio.start_server(lambda _, writer: writer.close(), host, port, start_serving=False)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port in await asyncio.to_thread(_ports_of, holder(config.state_dir)):
            return ok(name, f"{config.http.listen} is used by the running ravebot")
        fix = "stop what uses it (`ss -ltnp` names it), or change http.listen"
        return failed(name, f"{config.http.listen} can't be used: {reason(error)}", fix)
    server.close()
    return ok(name, f"{config.http.listen} is free")


def _ports_of(process: int | None) -> frozenset[int]:
    """The ports on which that process listens; none if we may not look."""
    try:
        connections = psutil.Process(process).net_connections("tcp") if process is not None else []
    except psutil.Error:
        return frozenset()
    return frozenset(one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN)


async def firewall(config: Config, tools: NetworkTools, instance_id: str | None) -> Finding:
    """Whether nftables can be asked, and whether other rules drop what we accept."""
    try:
        found = await conflicts_on_host(tools, f"{TABLE_PREFIX}{instance_id}", config.provider.bridge, config.sandbox)
    except Unavailable as error:
        fix = "apt-get install nftables iproute2, and run as root or with CAP_NET_ADMIN"
        return failed("nftables", str(error), fix)
    if found:
        return failed("firewall", "; ".join(found), "follow the advice after each")
    return ok("firewall", "nftables answers; no other rules drop the sandboxes' traffic")


async def ingress_filters(tools: NetworkTools) -> Finding:
    """Whether kernel and tc support the filters that close the host's ports while nftables is flushed."""
    name = "ingress filters"
    try:
        await try_out(tools)
    except PermissionError as error:
        return unknown(name, str(error), "run `ravebot doctor` as root, outside a container")
    except Unavailable as error:
        fix = "apt-get install iproute2, and use a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"
        return warning(name, f"{WEAKNESS}: {error}", fix)
    return ok(name, "the kernel supports them: the host's ports stay closed while nftables is flushed")


async def connection_table(tools: NetworkTools) -> Finding:
    """Whether connections of ended sandboxes can be removed from the kernel's table."""
    try:
        count = (await tools.run("conntrack", "--count")).strip()
    except Unavailable as error:
        fix = "apt-get install conntrack, and run as root or with CAP_NET_ADMIN"
        return warning("conntrack", f"connections of ended sandboxes stay in the kernel's table: {error}", fix)
    return ok("conntrack", f"{count} connections in the kernel's table")


async def forwarding(tools: NetworkTools) -> Finding:
    try:
        value = (await tools.run("sysctl", "-n", "net.ipv4.ip_forward")).strip()
    except Unavailable as error:
        return failed("forwarding", str(error), "apt-get install procps")
    if value != "1":
        fix = "to enable it at boot: echo net.ipv4.ip_forward=1 > /etc/sysctl.d/50-ravebot.conf"
        return warning("forwarding", "is off; `ravebot run` switches it on", fix)
    return ok("forwarding", "is on")


async def routes(config: Config, tools: NetworkTools) -> Finding:
    """Whether something else on this host uses the bridge's subnet or name."""
    bridge = config.provider.bridge
    try:
        listed = await tools.ip_listed("-4", "route", "show", "table", "main")
    except Unavailable as error:
        return failed("bridge", f"the host's routes can't be read: {error}", "apt-get install iproute2")
    for route in listed:
        target = str(route.get("dst", "default"))
        if target == "default" or route.get("dev") == bridge.name:
            continue
        if ipaddress.IPv4Network(target, strict=False).overlaps(bridge.subnet):
            detail = f"{bridge.subnet} overlaps {target}, which this host reaches by {route.get('dev')}"
            return failed(
                "bridge", detail, "choose another provider.bridge.subnet, which this host does not reach otherwise"
            )
    return await bridge_name(config, tools)


async def bridge_name(config: Config, tools: NetworkTools) -> Finding:
    """Whether something else than a bridge has the bridge's name."""
    bridge = config.provider.bridge
    try:
        links = await tools.ip_listed("-d", "link", "show")
    except Unavailable as error:
        return failed("bridge", f"the host's links can't be read: {error}", "apt-get install iproute2")
    for link in links:
        kind = cast(JsonObject, link.get("linkinfo", {})).get("info_kind")
        if link.get("ifname") == bridge.name and kind != "bridge":
            return failed("bridge", f"{bridge.name} exists and is not a bridge", "choose another provider.bridge.name")
    return ok("bridge", f"{bridge.name}, {bridge.subnet}")


async def ports(config: Config) -> Finding:
    """Whether the host itself listens on ports of the ranges, which are then never given to sandboxes."""
    try:
        taken = await listening_ports()
    except Unavailable as error:
        return warning("ports", str(error), "run `ravebot doctor` as root")
    ssh, web = config.sandbox.ssh_ports, config.sandbox.web_ports
    found = sorted(port for port in taken if port in ssh or port in web)
    if not found:
        return ok("ports", f"{ssh.first}-{ssh.last} and {web.first}-{web.last} are free")
    listed = ", ".join(map(str, found[:10])) + (", …" if len(found) > 10 else "")
    left = min(sum(port not in taken for port in range(span.first, span.last + 1)) for span in (ssh, web))
    if left < config.pool.max_running:
        return failed("ports", f"this host itself listens on {listed}: {left} left", "choose other ranges")
    return warning("ports", f"this host listens on {listed}: not given out", "choose other ranges if too few are left")


async def sandbox_host(name: str) -> Finding:
    """It must resolve to an address of this host that others can reach."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.run_in_executor(_THREADS, lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
    except OSError as error:
        return failed(
            "sandbox.host", f"{name} can't be resolved: {reason(error)}", "add it to DNS, or change sandbox.host"
        )
    addresses = {str(entry[4][0]).partition("%")[0] for entry in found}
    shown = ", ".join(sorted(addresses))
    if all(ipaddress.ip_address(address).is_loopback for address in addresses):
        fix = "use an address of this host that others can reach: ports are not forwarded on loopback"
        return failed("sandbox.host", f"{name} is {shown}", fix)
    own = {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}
    if not addresses & own:
        fix = "correct if address translation forwards the port ranges to this host; else change sandbox.host"
        what = "is" if addresses == {name} else f"is {shown},"
        return warning("sandbox.host", f"{name} {what} not an address of this host", fix)
    return ok("sandbox.host", f"{name} is {shown}")
