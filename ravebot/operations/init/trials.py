"""Tests one answer at once, against the real server or this host, with the doctor's own checks.

Each returns findings; one that failed lets the question be asked again. What a test learns is kept in the inquiry.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from ravebot.operations.doctor.finding import Finding
    from ravebot.operations.init.inquiry import Inquiry


async def homeserver(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    from ravebot.operations.doctor.finding import Finding, ok
    from ravebot.operations.doctor.matrix import homeserver as at

    found = await at(text.strip().rstrip("/"))
    return [found if isinstance(found, Finding) else ok("matrix", f"{text} answers")]


async def password(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    """Logs in; that login is kept for ravebot, or ended by whoever owns the inquiry."""
    from ravebot.matrix.client import DEVICE_NAME
    from ravebot.operations.doctor.finding import Finding, failed, ok
    from ravebot.operations.doctor.matrix import log_in, log_out
    from ravebot.operations.doctor.services import get

    user_id, base = inquiry.answers["matrix_user"], inquiry.homeserver
    login = await log_in(base, user_id, text, DEVICE_NAME)
    if isinstance(login, Finding):
        if "M_FORBIDDEN" in login.detail:
            profile = await get(f"{base}/_matrix/client/v3/profile/{quote(user_id, safe='')}")
            if profile.status in (400, 404):
                fix = "correct the user id or the homeserver's address, or create the account"
                return [failed("matrix login", f"{base} knows no account {user_id}", fix)]
            fix = "type it again, let the homeserver's admin reset it, or reactivate the account if it is deactivated"
            return [failed("matrix login", f"{base} refuses the password of {user_id}", fix)]
        return [login]
    if inquiry.login is not None:
        await log_out(base, inquiry.login.token)
    inquiry.login = login
    return [ok("matrix login", f"logged in as {user_id}")]


async def access_token(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    from ravebot.operations.doctor.matrix import whoami

    return [await whoami(inquiry.homeserver, text, inquiry.answers["matrix_user"])]


async def ca_file(_inquiry: Inquiry, text: str) -> Sequence[Finding]:
    from ravebot.config.certificates import check_certificates
    from ravebot.operations.doctor.finding import failed, ok

    try:
        check_certificates(Path(text))
    except ValueError as error:
        return [failed("gitlab", str(error), "name another file")]
    return [ok("gitlab", f"its certificate must be signed by a CA in {text}")]


async def gitlab(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    """Whether GitLab's API is there: without a token it refuses, in JSON."""
    from ravebot.errors import Unavailable
    from ravebot.operations.doctor.finding import failed, ok
    from ravebot.operations.doctor.gitlab import unreachable
    from ravebot.operations.doctor.services import get

    base = text.strip().rstrip("/")
    try:
        answer = await get(f"{base}/api/v4/version", route=inquiry.gitlab_route)
    except Unavailable as error:
        return [unreachable(base, error)]
    if answer.status not in (200, 401) or not isinstance(answer.body, dict):
        fix = "give GitLab's base address, as browsers open it, without /api"
        return [failed("gitlab", f"{base} answers with status {answer.status} and is not GitLab", fix)]
    return [ok("gitlab", f"{base} answers")]


async def gitlab_token(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    from ravebot.operations.doctor.finding import Verdict
    from ravebot.operations.doctor.gitlab import token, user

    access, api = inquiry.gitlab_access(text), f"{inquiry.gitlab}/api/v4"
    me = await access.get(f"{api}/user")
    who = user(inquiry.gitlab, me)
    if who.verdict is not Verdict.OK:
        return [who]
    inquiry.gitlab_user = str(me.field("username"))
    return [who, await token(api, access)]


async def projects(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    """The role on each project that is named or that a pattern matches."""
    from ravebot.config.patterns import matches_project
    from ravebot.gitlab.hookapi import MAINTAINER
    from ravebot.operations.doctor.finding import Finding, Verdict, failed, ok, warning
    from ravebot.operations.doctor.gitlab import listed_projects, role

    api, access = f"{inquiry.gitlab}/api/v4", inquiry.gitlab_access()
    value = inquiry.table["projects"].value(text)
    wanted = [str(item) for item in value] if isinstance(value, list) else []
    named = [path for path in wanted if "*" not in path]
    findings: list[Finding] = []
    if len(named) < len(wanted):
        listed = await listed_projects(api, access)
        if isinstance(listed, Finding):
            return [listed]
        for pattern in (path for path in wanted if "*" in path):
            matching = [path for path in listed if matches_project((pattern,), path)]
            if not matching:
                fix = f"add @{inquiry.gitlab_user} to one as Developer, or name other projects"
                findings.append(
                    failed("gitlab project", f"{pattern}: @{inquiry.gitlab_user} is in no such project", fix)
                )
            named += [path for path in matching if path not in named]
    found = [await role(api, access, path) for path in named]
    findings += [one for one, _ in found if one.verdict is not Verdict.OK]
    low = [
        path
        for path, (one, level) in zip(named, found, strict=True)
        if one.verdict is Verdict.OK and level < MAINTAINER
    ]
    inquiry.unmaintained = low
    if findings:
        return findings
    fine = ok("gitlab project", f"{len(named)} project{'s' if len(named) != 1 else ''}: the role is sufficient")
    if not low:
        return [fine]
    shown = ", ".join(low[:3]) + (", …" if len(low) > 3 else "")
    fix = f"give @{inquiry.gitlab_user} the role Maintainer there, or add the webhooks by hand as described at the end"
    return [fine, warning("gitlab webhook", f"below Maintainer ravebot can't register webhooks: {shown}", fix)]


async def admins(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    """Those of ravebot's own homeserver must exist; others can't be asked for."""
    from ravebot.operations.doctor.finding import failed, ok
    from ravebot.operations.doctor.services import get

    value = inquiry.table["admins"].value(text)
    people = [str(item) for item in value] if isinstance(value, list) else []
    own = inquiry.answers["matrix_user"]
    if not people:
        return [failed("matrix admins", "nobody could invite ravebot to a room", "name at least one person")]
    if own in people:
        return [failed("matrix admins", f"{own} is ravebot's own account", "name people")]
    for person in people:
        if person.partition(":")[2] != own.partition(":")[2]:
            continue
        headers = {"Authorization": f"Bearer {inquiry.matrix_access}"} if inquiry.matrix_access else {}
        profile = await get(f"{inquiry.homeserver}/_matrix/client/v3/profile/{quote(person, safe='')}", headers)
        if profile.status == 404:
            return [failed("matrix admins", f"{inquiry.homeserver} knows no account {person}", "correct the id")]
    return [ok("matrix admins", ", ".join(people))]


async def room(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    """Whether ravebot is in it or invited by an admin; an alias that does not exist is made later."""
    from ravebot.operations.doctor.finding import failed, ok, unknown
    from ravebot.operations.doctor.matrix import room_of, seats
    from ravebot.operations.doctor.services import get
    from ravebot.operations.init.inquiry import RoomSeen
    from ravebot.operations.init.matrix import invite_to

    own = inquiry.answers["matrix_user"]
    if inquiry.matrix_access is None:
        return [unknown("matrix room", f"{text} was not looked at, because there is no login", "correct that first")]
    seat = await seats(inquiry.homeserver, inquiry.matrix_access, own, inquiry.listed("admins"))
    room_id = text
    if text.startswith("#"):
        found = await get(f"{seat.base}/_matrix/client/v3/directory/room/{quote(text, safe='')}", seat.headers)
        if found.status == 404 and text.partition(":")[2] == own.partition(":")[2]:
            inquiry.rooms[text] = RoomSeen()
            return [
                ok("matrix room", f"{text} does not exist yet: it will be made, unencrypted, with the admins invited")
            ]
        if found.status != 200:
            detail = f"there is no room {text} ({found.status} {found.field('errcode') or ''})".replace(" )", ")")
            fix = f"create it without encryption, or name one of {own.partition(':')[2]}, which init can make"
            return [failed("matrix room", detail, fix)]
        room_id = str(found.field("room_id"))
    inquiry.rooms[text] = RoomSeen(True, room_id, room_id in seat.joined)
    invite = invite_to(seat.invited.get(room_id), own)
    if room_id not in seat.joined and invite is not None:
        if invite.encrypted:
            fix = "name a room without encryption: it can't be switched off"
            return [failed("matrix room", f"{text} is encrypted, which ravebot does not support yet", fix)]
        if invite.sender not in inquiry.listed("admins"):
            fix = f"let an admin invite {own}, or add {invite.sender} to the admins"
            return [failed("matrix room", f"{text}: {invite.sender} invited ravebot and is no admin: declined", fix)]
    return [await room_of(seat, text)]


async def sandbox_host(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    from ravebot.operations.doctor.network import sandbox_host as resolved

    return [await resolved(text.strip())]


async def public_url(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    """Whether its name can be resolved here: GitLab resolves it elsewhere, so that this only warns."""
    from ravebot.operations.doctor.finding import ok, warning

    parts = urlsplit(text.strip())
    if parts.scheme == "http" and (low := _too_low(inquiry, parts.port or 80)):
        return [low]
    loop = asyncio.get_running_loop()
    try:
        await loop.getaddrinfo(parts.hostname or "", parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        detail = f"{parts.hostname} can't be resolved here: {error.strerror or error}"
        return [warning("http.public_url", detail, "add it to DNS before GitLab sends webhooks")]
    return [ok("http.public_url", text)]


async def image(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    from ravebot.operations.doctor.finding import failed, ok
    from ravebot.operations.doctor.machines import image as examined

    path = Path(text.strip())
    if await asyncio.to_thread(path.exists):
        return [await asyncio.to_thread(examined, inquiry.config({"image": str(path)}))]
    if path.suffix != ".qcow2":
        return [failed("image", f"{path} does not exist", "name an image that exists, or a new FILE.qcow2 to be built")]
    if not await asyncio.to_thread(path.parent.is_dir):
        fix = "apt-get install libvirt-daemon-system, or name a file in a folder that exists"
        return [failed("image", f"there is no folder {path.parent}", fix)]
    return [ok("image", f"{path} does not exist yet: it will be built (preset web, about a minute)")]


async def listen(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    from ravebot.operations.doctor.network import listen as tried

    if low := _too_low(inquiry, int(text.rpartition(":")[2])):
        return [low]
    return [await tried(inquiry.config({"listen": text}))]


def _too_low(inquiry: Inquiry, port: int) -> Finding | None:
    from ravebot.operations.doctor.finding import failed

    if port >= inquiry.least_port:
        return None
    fix = f"give one from {inquiry.least_port} on, like http://ravebot.example.org:8080, or https:// and a TLS proxy"
    return failed("http.listen", f"the service's user can't listen on port {port}", fix)


async def network(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    """A bridge's name by itself, because its subnet is asked for next; a subnet together with the bridge."""
    from ravebot.access.nftables.nft import NetworkTools
    from ravebot.operations.doctor.network import bridge_name, routes

    tools = inquiry.tools or NetworkTools()
    if "/" in text:
        return [await routes(inquiry.config({"subnet": text}), tools)]
    return [await bridge_name(inquiry.config({"bridge": text}), tools)]


async def ports(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    from ravebot.operations.doctor.network import ports as tried

    return [await tried(inquiry.config())]


async def signing_token(inquiry: Inquiry, text: str) -> Sequence[Finding]:
    from ravebot.errors import ConfigError
    from ravebot.gitlab.webhook import signing_key
    from ravebot.operations.doctor.finding import failed, ok

    try:
        signing_key(text)
    except ConfigError as error:
        return [failed("gitlab webhook", str(error), "copy it from GitLab again")]
    return [ok("gitlab webhook", "the signing token has the right form")]
