"""What must hold between the keys of a configuration, beyond each being right by itself."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from pydantic import HttpUrl

from ravebot.config import Config, matches_project
from ravebot.sandboxes.view import fingerprint
from ravebot.yamltree import KeyPath


@dataclass(frozen=True)
class Finding:
    """Something about the value at a key path, and what to do about it."""

    path: KeyPath
    message: str


@dataclass(frozen=True)
class Findings:
    """`errors` stop the start; `warnings` are told."""

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


def check(config: Config) -> Findings:
    """Everything that is wrong or unwise between the keys."""
    errors = (*_hosts(config), *_ports(config), *_networks(config), *_durations(config), *_agents(config))
    warnings = (*_open_doors(config), *_in_clear(config), *_rooms(config), *_useless_warnings(config))
    return Findings(errors, warnings)


def _host(name: str | None) -> str:
    return (name or "").strip("[]").rstrip(".").casefold()


def _services(config: Config) -> Iterator[tuple[str, str]]:
    yield "GitLab", _host(config.gitlab.url.host)
    yield "Matrix", _host(config.matrix.homeserver.host)
    if config.http.public_url is not None:
        yield "ravebot", _host(config.http.public_url.host)


def _hosts(config: Config) -> Iterator[Finding]:
    """A browser sends cookies to every port of a host, and a parent domain's cookies to all below it."""
    sandbox = _host(config.sandbox.host)
    for service, host in _services(config):
        if sandbox == host:
            yield Finding(
                ("sandbox", "host"),
                f"must not be {service}'s host name: its cookies would reach every sandbox's web page; "
                "give sandboxes a name of their own",
            )
        elif host.endswith(f".{sandbox}"):
            yield Finding(
                ("sandbox", "host"),
                f"must not be a parent domain of {service}'s host ({host}): a sandbox could set its cookies; "
                "give sandboxes a name of their own",
            )


def _ports(config: Config) -> Iterator[Finding]:
    _, listen = config.http.address
    if not 1 <= listen <= 65535:
        yield Finding(("http", "listen"), "a port is a number from 1 to 65535")
    for name, ports in (("ssh_ports", config.sandbox.ssh_ports), ("web_ports", config.sandbox.web_ports)):
        if listen in ports:
            yield Finding(("sandbox", name), f"port {listen} is ravebot's own (http.listen): take another range")
        if ports.last - ports.first + 1 < config.pool.max_running:
            yield Finding(("sandbox", name), "fewer ports than pool.max_running: widen the range")


def _networks(config: Config) -> Iterator[Finding]:
    subnet = config.provider.bridge.subnet
    where: KeyPath = ("provider", "bridge", "subnet")
    # Network, broadcast and the host's own address are not a guest's.
    if subnet.num_addresses - 3 < config.pool.max_running:
        yield Finding(where, "fewer addresses than pool.max_running: take a larger subnet")
    if not subnet.is_private:
        yield Finding(where, "not a private network: its real owner could not be reached any more")
    for place, text in enumerate(config.sandbox.allow):
        if ipaddress.IPv4Network(text.partition(":")[0]).subnet_of(subnet):
            yield Finding(
                ("sandbox", "allow", place),
                f"lies in the sandboxes' own subnet {subnet}: they are kept apart",
            )
    for place, network in enumerate(config.access.allow_from):
        if network.subnet_of(subnet):
            yield Finding(
                ("access", "allow_from", place),
                f"lies in the sandboxes' own subnet {subnet}: nobody is there",
            )


def _durations(config: Config) -> Iterator[Finding]:
    pool, timeouts = config.pool, config.sandbox.timeouts
    positive: dict[KeyPath, timedelta] = {
        ("pool", "lifetime"): pool.lifetime,
        ("pool", "build_timeout"): pool.build_timeout,
        ("pool", "orphan_sweep"): pool.orphan_sweep,
        ("gitlab", "poll"): config.gitlab.poll,
        ("sandbox", "timeouts", "copy"): timeouts.copy_in,
        ("sandbox", "timeouts", "setup"): timeouts.setup,
        ("sandbox", "timeouts", "test"): timeouts.test,
        ("sandbox", "timeouts", "other"): timeouts.other,
    }
    for path, duration in positive.items():
        if duration <= timedelta(0):
            yield Finding(path, "must be more than nothing")


def _agents(config: Config) -> Iterator[Finding]:
    for name, count in Counter(agent.name for agent in config.agents).items():
        if count > 1:
            yield Finding(("agents",), f"{count} agents are called {name}: give each a name of its own")
    for place, agent in enumerate(config.agents):
        for index, key in enumerate(agent.ssh_keys):
            try:
                fingerprint(key)
            except ValueError:
                yield Finding(
                    ("agents", place, "ssh_keys", index),
                    "not a public SSH key; paste the line of a .pub file",
                )


def _open_doors(config: Config) -> Iterator[Finding]:
    if not config.access.allow_from:
        yield Finding(
            ("access", "allow_from"),
            "is empty: whoever reaches this host reaches every sandbox's web port; list who may",
        )
    sandbox = _host(config.sandbox.host)
    for service, host in _services(config):
        if sandbox.endswith(f".{host}"):
            yield Finding(
                ("sandbox", "host"),
                f"lies below {service}'s host name: a sandbox's page can set cookies for {host}",
            )


def _is_loopback(url: HttpUrl) -> bool:
    host = _host(url.host)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_clear(config: Config) -> Iterator[Finding]:
    urls: dict[KeyPath, HttpUrl] = {
        ("matrix", "homeserver"): config.matrix.homeserver,
        ("gitlab", "url"): config.gitlab.url,
    }
    for path, url in urls.items():
        if url.scheme == "http" and not _is_loopback(url):
            yield Finding(path, "is plain http: tokens cross the network in clear; use https")


def _rooms(config: Config) -> Iterator[Finding]:
    if not config.matrix.rooms:
        yield Finding(("matrix", "rooms"), "is empty: no room is told of any sandbox")
    if not config.matrix.admins:
        yield Finding(("matrix", "admins"), "is empty: nobody can invite ravebot to a room")
    for place, room in enumerate(config.matrix.rooms):
        for index, project in enumerate(room.projects):
            if "*" not in project and not matches_project(config.gitlab.projects, project):
                yield Finding(("matrix", "rooms", place, "projects", index), f"{project} is not among gitlab.projects")


def _useless_warnings(config: Config) -> Iterator[Finding]:
    for index, ahead in enumerate(config.pool.warn_before):
        if ahead >= config.pool.lifetime:
            yield Finding(("pool", "warn_before", index), "is not below pool.lifetime: it comes at once or never")
