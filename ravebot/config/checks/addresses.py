"""Checks of addresses: whose they are, and what crosses the network unencrypted."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from pydantic import HttpUrl

from ravebot.config.checks.remarks import Remark
from ravebot.config.model import Config
from ravebot.config.tree import KeyPath


def host_of(name: str | None) -> str:
    return (name or "").strip("[]").rstrip(".").casefold()


def services(config: Config) -> Iterator[tuple[str, str, KeyPath]]:
    """Services that people also open in a browser: name, host, and the key that configures it."""
    yield "GitLab", host_of(config.gitlab.url.host), ("gitlab", "url")
    yield "Matrix", host_of(config.matrix.homeserver.host), ("matrix", "homeserver")
    if config.http.public_url is not None:
        yield "ravebot", host_of(config.http.public_url.host), ("http", "public_url")


def addresses(config: Config) -> Iterator[Remark]:
    """Addresses are shown to people and sent to GitLab, so they hold no login; and paths are put behind them."""
    matrix, gitlab, public = config.matrix.homeserver, config.gitlab.url, config.http.public_url
    addresses: tuple[tuple[KeyPath, HttpUrl | None], ...] = (
        (("matrix", "homeserver"), matrix),
        (("gitlab", "url"), gitlab),
        (("gitlab", "proxy"), config.gitlab.proxy),
        (("gitlab", "ci", "issuer"), config.gitlab.ci.issuer if config.gitlab.ci else None),
        (("http", "public_url"), public),
        (("api", "public_url"), config.api.public_url),
        *((("models", place, "url"), model.url) for place, model in enumerate(config.models)),
    )
    for key, url in addresses:
        if url is None:
            continue
        if url.username or url.password:
            yield Remark(key, "leave the user name and password out of the address: secrets are in files of their own")
        elif url.query is not None or url.fragment is not None:
            yield Remark(key, "leave out everything from the '?' or '#' on: this is a base address")
    if config.gitlab.ci is not None and not config.ci_audience:
        why = "needs to know what jobs' tokens are for: set gitlab.ci.audience or http.public_url to ravebot's address"
        yield Remark(("gitlab", "ci"), why)
    proxy = config.gitlab.proxy
    if proxy is not None and (proxy.path or "/") != "/":
        yield Remark(
            ("gitlab", "proxy"), "is a proxy's address, like http://proxy.example.org:3128: leave out the path"
        )
    if config.gitlab.proxy_login_file is not None and proxy is None:
        yield Remark(("gitlab", "proxy_login_file"), "there is no proxy to log in to: set gitlab.proxy, or remove this")


def hosts(config: Config) -> Iterator[Remark]:
    """A browser sends cookies to every port of a host, and a parent domain's cookies to all below it."""
    sandbox = host_of(config.sandbox.host)
    where: KeyPath = ("sandbox", "host")
    for service, host, key in services(config):
        if sandbox == host:
            yield Remark(
                where,
                f"must not be {service}'s host name: its cookies would reach every sandbox's web page; "
                "give sandboxes a name of their own",
                (where, key),
            )
        elif host.endswith(f".{sandbox}"):
            yield Remark(
                where,
                f"must not be a parent domain of {service}'s host ({host}): a sandbox could set its cookies; "
                "give sandboxes a name of their own",
                (where, key),
            )


def stays_near(url: HttpUrl) -> bool:
    """Whether an address can be told to be this machine's, or a private network's; of a name that can't be known."""
    try:
        address = ipaddress.ip_address(host_of(url.host))
    except ValueError:
        return _is_loopback(url)
    return address.is_loopback or (address.is_private and not address.is_unspecified)


def _is_loopback(url: HttpUrl) -> bool:
    return _is_local(host_of(url.host))


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def unencrypted(config: Config) -> Iterator[Remark]:
    urls: dict[KeyPath, HttpUrl] = {
        ("matrix", "homeserver"): config.matrix.homeserver,
        ("gitlab", "url"): config.gitlab.url,
        **{("models", place, "url"): model.url for place, model in enumerate(config.models) if model.key_file},
    }
    for path, url in urls.items():
        if url.scheme == "http" and not _is_loopback(url):
            yield Remark(path, "is plain http: tokens cross the network unencrypted; use https")
    if config.api.address is not None and not _is_local(config.api.address[0]):
        why = "is reached from other hosts, by plain http: tokens cross the network unencrypted"
        yield Remark(("api", "listen"), f"{why}; listen on 127.0.0.1, and put a proxy that does TLS in front of it")
    door = config.http.public_url
    if config.gitlab.ci is not None and door is not None and door.scheme == "http" and not _is_loopback(door):
        yield Remark(
            ("http", "public_url"), "is plain http: the tokens of jobs cross the network unencrypted; use https"
        )
    public = config.api.public_url
    if public is not None and public.scheme == "http" and not _is_loopback(public):
        yield Remark(("api", "public_url"), "is plain http: tokens cross the network unencrypted; use https")
