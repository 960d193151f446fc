"""Checks of this host's ports, networks and times, and of keys that need or exclude each other."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from ravebot.config.checks.addresses import host_of, services
from ravebot.config.checks.remarks import Remark
from ravebot.config.model import Config
from ravebot.config.patterns import matches_project
from ravebot.config.tree import KeyPath

_MAX_RUNNING: KeyPath = ("pool", "max_running")


def alternatives(config: Config) -> Iterator[Remark]:
    """Keys that exclude each other, and keys that need each other."""
    matrix, webhook, provider = config.matrix, config.gitlab.webhook, config.provider
    if (matrix.password_file is None) == (matrix.access_token_file is None):
        keys = (("matrix", "password_file"), ("matrix", "access_token_file"))
        yield Remark(("matrix",), "give exactly one of password_file and access_token_file", keys)
    if webhook.secret_token_file is None and webhook.signing_token_file is None:
        where: KeyPath = ("gitlab", "webhook")
        message = "give secret_token_file or signing_token_file: webhooks without a secret are refused"
        yield Remark(where, message, ((*where, "secret_token_file"), (*where, "signing_token_file")))
    if (provider.kernel is None) != (provider.initrd is None):
        keys = (("provider", "kernel"), ("provider", "initrd"))
        yield Remark(("provider",), "give kernel and initrd together, or neither", keys)


def ports(config: Config) -> Iterator[Remark]:
    _, listen = config.http.address
    ssh, web = config.sandbox.ssh_ports, config.sandbox.web_ports
    if ssh.first <= web.last and web.first <= ssh.last:
        keys = (("sandbox", "ssh_ports"), ("sandbox", "web_ports"))
        yield Remark(("sandbox",), "ssh_ports and web_ports must not overlap", keys)
    for name, ports in (("ssh_ports", ssh), ("web_ports", web)):
        where: KeyPath = ("sandbox", name)
        for section, port in (("http", listen), ("api", config.api.address[1] if config.api.address else 0)):
            if port in ports:
                message = f"port {port} is ravebot's own ({section}.listen): take another range"
                yield Remark(where, message, (where, (section, "listen")))
        if ports.last - ports.first + 1 < config.pool.max_running:
            yield Remark(where, "fewer ports than pool.max_running: widen the range", (where, _MAX_RUNNING))


def api(config: Config) -> Iterator[Remark]:
    where: KeyPath = ("api", "listen")
    if config.api.address is not None and config.api.address == config.http.address:
        yield Remark(where, "is http.listen's address: give the API a port of its own", (where, ("http", "listen")))


def folders(config: Config) -> Iterator[Remark]:
    """In the folder for images of pipelines ravebot removes what is needed no more: it holds nothing else."""
    provider, folder = config.provider, config.pipeline_images
    if provider.pipeline_images is None:
        return
    where: KeyPath = ("provider", "pipeline_images", "folder")
    holds = [(("state_dir",), config.state_dir), (("provider", "storage_pool"), provider.storage_pool)]
    holds.append((("provider", "image"), provider.image.parent))
    holds += [(("provider", "images", name), image.parent) for name, image in provider.images.items()]
    direct = (("kernel", provider.kernel), ("initrd", provider.initrd))
    holds += [(("provider", name), file.parent) for name, file in direct if file]
    for key, other in holds:
        if other.is_relative_to(folder) or (key == ("provider", "storage_pool") and folder.is_relative_to(other)):
            message = f"{folder} is for other things too ({'.'.join(key)}): give the images a folder of their own"
            yield Remark(where, message, (where, key))
            return


def networks(config: Config) -> Iterator[Remark]:
    subnet = config.provider.bridge.subnet
    where: KeyPath = ("provider", "bridge", "subnet")
    # Guests get neither the network's, nor the broadcast, nor the host's own address.
    if subnet.num_addresses - 3 < config.pool.max_running:
        yield Remark(where, "fewer addresses than pool.max_running: take a larger subnet", (where, _MAX_RUNNING))
    for place, text in enumerate(config.sandbox.allow):
        if ipaddress.IPv4Network(text.partition(":")[0]).subnet_of(subnet):
            here: KeyPath = ("sandbox", "allow", place)
            message = f"lies in the sandboxes' own subnet {subnet}: sandboxes can't reach each other; remove it"
            yield Remark(here, message, (here, where))
    for place, network in enumerate(config.access.allow_from):
        if network.subnet_of(subnet):
            here = ("access", "allow_from", place)
            message = f"lies in the sandboxes' own subnet {subnet}: no user connects from there; remove it"
            yield Remark(here, message, (here, where))


def lifetimes(config: Config) -> Iterator[Remark]:
    if config.pool.lifetime > config.pool.max_lifetime:
        keys = (("pool", "lifetime"), ("pool", "max_lifetime"))
        yield Remark(("pool",), "lifetime must not be above max_lifetime", keys)
    if config.sandbox.keep_failed > config.pool.max_lifetime:
        where: KeyPath = ("sandbox", "keep_failed")
        yield Remark(where, "must not be above pool.max_lifetime", (where, ("pool", "max_lifetime")))


def open_access(config: Config) -> Iterator[Remark]:
    if not config.access.allow_from:
        yield Remark(
            ("access", "allow_from"),
            "is empty: everyone who can reach this host can reach every sandbox's web port; list the networks that may",
        )
    sandbox = host_of(config.sandbox.host)
    for service, host, _ in services(config):
        if sandbox.endswith(f".{host}"):
            yield Remark(
                ("sandbox", "host"),
                f"lies below {service}'s host name: a sandbox's page can set cookies for {host}",
            )


def rooms(config: Config) -> Iterator[Remark]:
    if not config.matrix.rooms:
        yield Remark(("matrix", "rooms"), "is empty: sandboxes are announced in no room")
    if not config.matrix.admins:
        yield Remark(("matrix", "admins"), "is empty: nobody can invite ravebot to a room")
    for place, room in enumerate(config.matrix.rooms):
        for index, project in enumerate(room.projects):
            if "*" not in project and not matches_project(config.gitlab.projects, project):
                yield Remark(("matrix", "rooms", place, "projects", index), f"{project} is not among gitlab.projects")


def alerts(config: Config) -> Iterator[Remark]:
    if config.monitoring.alertmanager_token_file is not None and config.matrix.operations_room is None:
        yield Remark(
            ("monitoring", "alertmanager_token_file"),
            "there is no room to tell of alerts: set matrix.operations_room, or remove this",
            (("monitoring", "alertmanager_token_file"), ("matrix", "operations_room")),
        )


def usage_report(config: Config) -> Iterator[Remark]:
    """Only rooms that are known otherwise are looked up and joined."""
    room = config.monitoring.usage_report
    known = {*(one.room for one in config.matrix.rooms), config.matrix.operations_room}
    if room is not None and room not in known:
        yield Remark(
            ("monitoring", "usage_report"),
            "write a room that matrix.rooms lists, or that of matrix.operations_room",
            (("monitoring", "usage_report"), ("matrix", "rooms")),
        )


def useless_warnings(config: Config) -> Iterator[Remark]:
    for index, ahead in enumerate(config.pool.warn_before):
        if ahead >= config.pool.lifetime:
            yield Remark(("pool", "warn_before", index), "is not below pool.lifetime: it is sent at once or never")
