"""Finds or chooses an answer: what the existing configuration has comes first, and is no concern of this module."""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from ravebot.operations.init.inquiry import lookup

if TYPE_CHECKING:
    from ravebot.operations.init.inquiry import Inquiry

_IMAGE = Path("/var/lib/libvirt/images/ravebot-sandbox.qcow2")
_MOST_LISTED = 5
_SPAN = 100


async def instance(inquiry: Inquiry) -> str | None:
    stem = re.sub(r"[^a-z0-9]+", "-", inquiry.path.stem.lower()).strip("-")[:16].strip("-")
    return "main" if stem in ("", "config", "ravebot") else stem


async def state_dir(inquiry: Inquiry) -> str | None:
    name = inquiry.answers["instance"]
    return "/var/lib/ravebot" if name == "main" else f"/var/lib/ravebot-{name}"


async def storage_pool(inquiry: Inquiry) -> str | None:
    return f"{inquiry.answers['state_dir']}/disks"


async def homeserver(inquiry: Inquiry) -> str | None:
    """What the server of the user id publishes: https://spec.matrix.org/latest/client-server-api/#well-known-uri"""
    from ravebot.errors import Unavailable
    from ravebot.operations.doctor.finding import Finding
    from ravebot.operations.doctor.matrix import homeserver as at
    from ravebot.operations.doctor.services import get

    server = inquiry.answers["matrix_user"].partition(":")[2]
    try:
        found = (await get(f"https://{server}/.well-known/matrix/client")).field("m.homeserver", "base_url")
    except Unavailable:
        found = None
    for base in (found, f"https://{server}"):
        if (
            isinstance(base, str)
            and base.startswith("https://")
            and not isinstance(await at(base.rstrip("/")), Finding)
        ):
            return base.rstrip("/")
    return None


async def projects(inquiry: Inquiry) -> str | None:
    """The projects that the token's user is a member of; their groups, if these are many."""
    from ravebot.operations.doctor.finding import Finding
    from ravebot.operations.doctor.gitlab import listed_projects

    found = await listed_projects(f"{inquiry.gitlab}/api/v4", inquiry.gitlab_access())
    if isinstance(found, Finding) or not found:
        return None
    if len(found) <= _MOST_LISTED:
        return ", ".join(sorted(found))
    return ", ".join(sorted({f"{path.partition('/')[0]}/*" for path in found}))


async def users(inquiry: Inquiry) -> str | None:
    """The admins whose name in Matrix is a user's name in GitLab, too."""
    access, pairs = inquiry.gitlab_access(), []
    for admin in inquiry.listed("admins"):
        name = admin[1:].partition(":")[0]
        answer = await access.get(f"{inquiry.gitlab}/api/v4/users?username={quote(name, safe='')}")
        found = answer.body if isinstance(answer.body, list) else []
        names = [one.get("username") for one in found if isinstance(one, dict)]
        pairs += [f"{admin}={one}" for one in names if isinstance(one, str) and one.lower() == name.lower()]
    return ", ".join(pairs)


async def room(inquiry: Inquiry) -> str | None:
    return f"#ravebot-sandboxes:{inquiry.answers['matrix_user'].partition(':')[2]}"


def _own_address() -> ipaddress.IPv4Interface | None:
    """The address by which this host reaches the internet, with its network. Nothing is sent."""
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        own = probe.getsockname()[0]
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.address == own and entry.netmask:
                return ipaddress.IPv4Interface(f"{own}/{entry.netmask}")
    return None


async def sandbox_host(inquiry: Inquiry) -> str | None:
    """This host's full name, if it leads to an address that others can reach; else its address."""
    from ravebot.operations.doctor.finding import Verdict
    from ravebot.operations.doctor.network import sandbox_host as resolved

    name = socket.getfqdn()
    if "." in name and (await resolved(name)).verdict is Verdict.OK and not inquiry.complaints("sandbox_host", name):
        return name
    own = _own_address()
    return str(own.ip) if own else None


async def allow_from(inquiry: Inquiry) -> str | None:
    own = _own_address()
    return str(own.network) if own else None


async def public_url(inquiry: Inquiry) -> str | None:
    """A sibling of the sandboxes' name."""
    host = inquiry.answers["sandbox_host"]
    parent = host.partition(".")[2]
    return f"https://ravebot.{parent}" if "." in parent and not host[-1].isdigit() else None


async def usage_report(inquiry: Inquiry) -> str | None:
    """The room for alerts, when it is new: who has alerts already decided then."""
    new = lookup(inquiry.existing, ("monitoring", "alertmanager_token_file")) is None
    return inquiry.answers.get("alerts_room", "") if new else ""


async def image(inquiry: Inquiry) -> str | None:
    return str(_IMAGE)


async def listen(inquiry: Inquiry) -> str | None:
    from ravebot.operations.doctor.finding import Verdict
    from ravebot.operations.doctor.network import listen as tried

    public = urlsplit(inquiry.answers["public_url"])
    bare = public.scheme == "http"  # no proxy: GitLab itself connects
    host = "0.0.0.0" if bare and public.hostname not in ("127.0.0.1", "localhost") else "127.0.0.1"  # noqa: S104
    for port in [public.port or 80] if bare else range(8080, 8100):
        address = f"{host}:{port}"
        if (await tried(inquiry.config({"listen": address}))).verdict is Verdict.OK:
            return address
    return None


async def bridge(inquiry: Inquiry) -> str | None:
    taken = {name for _, name in socket.if_nameindex()}
    return next((name for name in (f"ravebot{number}" for number in range(100)) if name not in taken), None)


async def subnet(inquiry: Inquiry) -> str | None:
    """The first candidate that overlaps nothing this host reaches."""
    from ravebot.access.nftables.nft import NetworkTools
    from ravebot.operations.doctor.finding import Verdict
    from ravebot.operations.doctor.network import routes

    tools = inquiry.tools or NetworkTools()
    candidates = [f"10.{number}.0.0/24" for number in range(80, 200)]
    candidates += [f"172.{number}.80.0/24" for number in range(20, 32)]
    for candidate in candidates:
        if (await routes(inquiry.config({"subnet": candidate}), tools)).verdict is Verdict.OK:
            return candidate
    return None


async def ssh_ports(inquiry: Inquiry) -> str | None:
    return await _span(inquiry, "ssh_ports", 2200)


async def web_ports(inquiry: Inquiry) -> str | None:
    return await _span(inquiry, "web_ports", 3000)


async def _span(inquiry: Inquiry, name: str, first: int) -> str | None:
    """The first hundred ports on none of which this host listens."""
    from ravebot.access.listeners import listening_ports
    from ravebot.errors import Unavailable

    try:
        taken = await listening_ports()
    except Unavailable:
        taken = frozenset()
    listen = int(inquiry.answers["listen"].rpartition(":")[2])
    for start in range(first, first + 70 * _SPAN, _SPAN):
        span = range(start, start + _SPAN)
        text = f"{start}-{start + _SPAN - 1}"
        if listen not in span and not taken.intersection(span) and not inquiry.complaints(name, text):
            return text
    return None
