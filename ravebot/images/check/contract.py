"""The guest contract as one table: what is looked at, in which order, and how long that may take at most.

docs/image.md explains each point; a test keeps the two in step.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ravebot.access.probes import HttpProbe
from ravebot.access.rules import GUEST_SSH_PORT
from ravebot.errors import GuestError, GuestTimeout
from ravebot.images.check import ssh
from ravebot.images.check.guest import CALL, CheckedGuest
from ravebot.images.check.point import Found, failed, ok, warning
from ravebot.sandboxes.model import CODE_FOLDER, Observed
from ravebot.sandboxes.view import in_bytes

TOOLS = (
    *("sh", "su", "tar", "gzip", "setsid", "mkfifo", "dd", "truncate", "mktemp", "tail", "head", "seq"),
    *("cat", "chmod", "chown", "kill", "mkdir", "mv", "rm", "sleep"),
)
"""What ravebot's own scripts call in a guest."""

_GROWN = 0.8  # of the disk; the rest is boot partitions and the file system's own
_GROWTH_SECONDS = 20
_LARGE_BYTES = 5 * 1024**2  # which providers copy in by a faster way than the agent
_WEB_WAIT = timedelta(seconds=15)
_JOB = timedelta(seconds=60)
_LISTED_USERS = 5


@dataclass(frozen=True)
class Clause:
    """One point. What takes longer than `limit` has failed; it is looked at only if the points it `needs` are right."""

    name: str
    look: Callable[[CheckedGuest], Awaitable[Found]]
    fix: str  # where the point knows no better one
    needs: tuple[str, ...] = ()
    limit: timedelta = timedelta(seconds=90)


async def host_keys(guest: CheckedGuest) -> Found:
    """There is at least one when the agent answers, or soon after."""
    why = ""
    for _ in range(int(guest.config.sandbox.timeouts.other.total_seconds())):
        try:
            guest.host_keys = await guest.trial.provider.host_keys(guest.booted.name)
        except GuestError as error:
            why = str(error)
            await asyncio.sleep(1)
        else:
            return ok(", ".join(key.split()[0] for key in guest.host_keys))
    return failed(why, "make them at the first boot, before the SSH server starts: ssh-keygen -A")


async def address(guest: CheckedGuest) -> Found:
    """The assigned address is in use: the guest answers there, if only with a refusal."""
    wanted = guest.booted.address
    if await guest.port_within(GUEST_SSH_PORT, timedelta(seconds=20)) == "silent":
        if not await asyncio.to_thread(_has_mac, wanted):
            fix = "ask for an address by DHCP on the first network card, with the card's MAC as the client's id"
            if guest.trial.conflicts:
                drops = f"let this host's firewall accept DHCP from the bridges rvchk*: {guest.trial.conflicts[0]}"
                fix = f"{drops}; or {fix}"
            return failed(f"no machine answers at {wanted}, the address that DHCP offers", fix)
        return failed(f"{wanted} is in use, but answers no connection", "open port 22 in the guest's firewall")
    return ok(f"{wanted}, by DHCP")


def _has_mac(address: str) -> bool:
    """Whether the kernel knows the MAC of the one who has it: https://man7.org/linux/man-pages/man7/arp.7.html"""
    lines = [line.split() for line in Path("/proc/net/arp").read_text().splitlines()]
    return any(fields[0] == address and fields[2] != "0x0" for fields in lines)


async def user(guest: CheckedGuest) -> Found:
    """The account exists and is not root."""
    account = guest.user
    found = await guest.sh('id -u "$1" && eval echo "~$1"', account)
    if found.exit_code != 0:
        others = await guest.asked("awk -F: '$3 >= 1000 && $3 < 60000 { print $1 }' /etc/passwd")
        listed = ", ".join(others.split()[:_LISTED_USERS]) or "no ordinary user"
        fix = f"add it to the image, or set sandbox.user to one that it has ({listed})"
        return failed(f"the image has no user {account}", fix)
    number, home = (*found.output.split(), "", "")[:2]
    if number == "0":
        return failed(f"{account} is root", "set sandbox.user to an ordinary user")
    may = "sudo did not answer"
    with suppress(GuestTimeout):
        sudo = await guest.sh('echo "sudo -n true" | su "$1" -s /bin/sh', account)
        may = "may use sudo" if sudo.exit_code == 0 else "may not use sudo"
    return ok(f"{account}, number {number}, home {home}, {may}")


async def tools(guest: CheckedGuest) -> Found:
    """Every program that ravebot calls is found with its PATH."""
    missing = await guest.asked('for tool; do command -v "$tool" >/dev/null || echo "$tool"; done', *TOOLS)
    if missing.strip():
        return failed(f"missing: {', '.join(missing.split())}", "install them (Debian: coreutils, util-linux, tar)")
    return ok(f"all {len(TOOLS)} are there")


async def code(guest: CheckedGuest) -> Found:
    """The code can be put in its place, belongs to the user, and set-up runs there as the user."""
    with tempfile.NamedTemporaryFile() as archive:
        await asyncio.to_thread(Path(archive.name).write_bytes, _archive())
        await guest.jobs.put_code(guest.booted.name, Path(archive.name), _JOB)
    done = await guest.jobs.run_job(
        guest.booted.name, "image-check", 'pwd; id -un; stat -c %U index.html; echo "$RAVE_MR"', {"RAVE_MR": "1"}, _JOB
    )
    if done.exit_code != 0 or done.output.split() != [CODE_FOLDER, guest.user, guest.user, "1"]:
        fix = f"let {guest.user} own what is unpacked in /srv, and `su {guest.user} -s /bin/sh` keep the environment"
        return failed(f"a command in {CODE_FOLDER} said: {done.output.strip()[-300:]}", fix)
    return ok(f"{CODE_FOLDER} belongs to {guest.user}, and commands run there as {guest.user}")


def _archive() -> bytes:
    """As GitLab makes one: a single folder, and the files in it."""
    page = b"<!doctype html><title>Image check</title>\n"
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        entry = tarfile.TarInfo("image-check/index.html")
        entry.size = len(page)
        tar.addfile(entry, io.BytesIO(page))
    return made.getvalue()


async def hotplug(guest: CheckedGuest) -> Found:
    """The kernel finds a disk that is attached while it runs."""
    target = "/srv/.image-check"
    with tempfile.NamedTemporaryFile() as large:
        large.truncate(_LARGE_BYTES)
        began = asyncio.get_running_loop().time()
        by_disk = await guest.trial.provider.copy_in(guest.booted.name, Path(large.name), target)
        seconds = asyncio.get_running_loop().time() - began
    await guest.sh('rm -f "$1"', target)
    if not by_disk:
        fix = "use a kernel with PCI Express hot plug (CONFIG_HOTPLUG_PCI_PCIE) and virtio-blk"
        return warning("the kernel sees no new disk, so large code is copied 30 times as slowly", fix)
    return ok(f"{in_bytes(_LARGE_BYTES)} copied by way of a disk in {seconds:.1f} s")


async def growth(guest: CheckedGuest) -> Found:
    """The file system of /srv takes the whole disk, soon after the boot."""
    disk_bytes = guest.trial.disk_bytes
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _GROWTH_SECONDS
    while True:
        fields = (await guest.asked("df -P -k /srv | tail -n 1")).split()
        size_bytes = int(fields[1]) * 1024 if len(fields) > 1 and fields[1].isdigit() else 0
        if size_bytes >= _GROWN * disk_bytes and size_bytes > guest.trial.image_bytes:
            return ok(f"/srv has {in_bytes(size_bytes)} of a disk of {in_bytes(disk_bytes)}")
        if loop.time() > deadline:
            fix = "grow the partition and the file system at boot (sfdisk or growpart, then resize2fs)"
            return failed(f"/srv has only {in_bytes(size_bytes)} of a disk of {in_bytes(disk_bytes)}", fix)
        await asyncio.sleep(1)


async def web(guest: CheckedGuest) -> Found:
    """Something answers on the web port; if nothing listens there, the merge request's set-up has to start it."""
    port = guest.config.sandbox.web_port
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WEB_WAIT.total_seconds()
    while (scheme := await HttpProbe().scheme(guest.booted.address, port)) is None and loop.time() < deadline:
        await asyncio.sleep(1)
    if scheme is not None:
        return ok(f"{port} answers by {scheme}")
    match await guest.listens(port):
        case "refused":
            fix = "start a web server with the image or in .rave/setup, or set sandbox.web_port to the right port"
            return warning(f"nothing listens on {port}: the web link leads nowhere until set-up starts it", fix)
        case "open":
            fix = "mend the server that listens there: it must answer HTTP or HTTPS"
            return failed(f"{port} accepts connections, but answers no request", fix)
        case _:
            return failed(f"{port} does not answer", f"open port {port} in the guest's firewall")


async def shutdown(guest: CheckedGuest) -> Found:
    """It is off in time when it is asked to."""
    grace = guest.config.pool.shutdown_grace
    loop = asyncio.get_running_loop()
    began = loop.time()
    await guest.trial.provider.shutdown(guest.booted.name)
    while loop.time() < began + grace.total_seconds():
        listing = await guest.trial.provider.list()
        if any(one.name == guest.booted.name and one.state is Observed.OFF for one in listing.machines):
            return ok(f"off {loop.time() - began:.1f} s after it was asked")
        await asyncio.sleep(0.3)
    fix = "let the agent's guest-shutdown or the power button end it (acpid, or systemd-logind), or raise"
    return failed(f"still on {grace.total_seconds():g} s after it was asked", f"{fix} pool.shutdown_grace")


AGENT, ADDRESS, HOST_KEYS, USER = "guest agent", "address", "host keys", "user"
CONTRACT = (
    Clause(HOST_KEYS, host_keys, "allow guest-exec in the guest agent's configuration", (AGENT,), timedelta(minutes=3)),
    Clause(ADDRESS, address, "ask for an address by DHCP on the first network card"),
    Clause(USER, user, "add the user to the image, or set sandbox.user", (AGENT,)),
    Clause("tools", tools, "install coreutils, util-linux and tar", (AGENT,)),
    Clause("code and set-up", code, "let the user own what is unpacked in /srv", (AGENT, USER), timedelta(minutes=3)),
    Clause(
        "SSH login",
        ssh.login,
        "allow guest-ssh-add-authorized-keys in the guest agent's configuration",
        (AGENT, ADDRESS, HOST_KEYS, USER),
    ),
    Clause("no passwords", ssh.keys_only, "in sshd_config: PasswordAuthentication no", (ADDRESS,)),
    Clause(
        "remote forward",
        ssh.forwards,
        "in sshd_config: AllowTcpForwarding yes",
        (AGENT, ADDRESS, HOST_KEYS, USER, "SSH login"),
    ),
    Clause("hot plug", hotplug, "use a kernel with PCI Express hot plug", (AGENT,)),
    Clause("growth", growth, "grow the partition and the file system at boot", (AGENT,), CALL + timedelta(minutes=1)),
    Clause("web port", web, "start a web server, or set sandbox.web_port", (ADDRESS,)),
    Clause("graceful stop", shutdown, "let the agent's guest-shutdown end it", (AGENT,), timedelta(minutes=10)),
)
"""What is looked at once the first machine was switched on, in this order."""
