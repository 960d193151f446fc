"""Checks that concern several keys of a configuration; `values` and `model` check each key by itself."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import HttpUrl

from ravebot.config.apis import ModelApi, api_of
from ravebot.config.model import AgentConfig, Config, LimitsConfig, matches_project, patterns_overlap
from ravebot.config.tree import KeyPath
from ravebot.sshkeys import fingerprint

_MAX_RUNNING: KeyPath = ("pool", "max_running")
_ADDRESSABLE = re.compile(r"[a-z][a-z0-9-]{1,30}")
RESERVED_NAMES = frozenset(
    {
        "approve", "deny", "help", "all", "room",  # `/agent approve ID`; `@all` and `@room` notify everybody
        "list", "show", "queue", "start", "extend", "stop", "why", "logs", "retry", "rebuild", "whoami",
        "agents", "ask", "steer", "cancel", "resend", "diff", "budget", "token",
    }
)  # fmt: skip
"""What no agent is called: commands, and what addresses others."""
_ONLY_IF_SPOKEN_TO = ("models", "approve", "limits", "forks")


@dataclass(frozen=True)
class Remark:
    """A problem with the value at a key path, and what to do about it.

    `depends_on`: the keys that it follows from; empty when that is only the key at `path`.
    """

    path: KeyPath
    message: str
    depends_on: tuple[KeyPath, ...] = ()


@dataclass(frozen=True)
class Remarks:
    """`errors` prevent the start; `warnings` are only reported."""

    errors: tuple[Remark, ...]
    warnings: tuple[Remark, ...]


def check(config: Config) -> Remarks:
    """Every error and every warning."""
    errors = (
        *_alternatives(config), *_addresses(config), *_hosts(config), *_ports(config), *_api(config),
        *_networks(config), *_lifetimes(config), *_agents(config), *_default_agents(config), *_models(config),
        *_project_labels(config),
    )  # fmt: skip
    warnings = (
        *_open_access(config),
        *_unencrypted(config),
        *_rooms(config),
        *_useless_warnings(config),
        *_useless_limits(config),
        *_useless_agents(config),
        *_useless_models(config),
    )
    return Remarks(errors, warnings)


def _host(name: str | None) -> str:
    return (name or "").strip("[]").rstrip(".").casefold()


def _alternatives(config: Config) -> Iterator[Remark]:
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


def _services(config: Config) -> Iterator[tuple[str, str, KeyPath]]:
    """Services that people also open in a browser: name, host, and the key that configures it."""
    yield "GitLab", _host(config.gitlab.url.host), ("gitlab", "url")
    yield "Matrix", _host(config.matrix.homeserver.host), ("matrix", "homeserver")
    if config.http.public_url is not None:
        yield "ravebot", _host(config.http.public_url.host), ("http", "public_url")


def _addresses(config: Config) -> Iterator[Remark]:
    """Addresses are shown to people and sent to GitLab, so they hold no login; and paths are put behind them."""
    matrix, gitlab, public = config.matrix.homeserver, config.gitlab.url, config.http.public_url
    addresses: tuple[tuple[KeyPath, HttpUrl | None], ...] = (
        (("matrix", "homeserver"), matrix),
        (("gitlab", "url"), gitlab),
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


def _hosts(config: Config) -> Iterator[Remark]:
    """A browser sends cookies to every port of a host, and a parent domain's cookies to all below it."""
    sandbox = _host(config.sandbox.host)
    where: KeyPath = ("sandbox", "host")
    for service, host, key in _services(config):
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


def _ports(config: Config) -> Iterator[Remark]:
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


def _api(config: Config) -> Iterator[Remark]:
    where: KeyPath = ("api", "listen")
    if config.api.address is not None and config.api.address == config.http.address:
        yield Remark(where, "is http.listen's address: give the API a port of its own", (where, ("http", "listen")))


def _networks(config: Config) -> Iterator[Remark]:
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


def _lifetimes(config: Config) -> Iterator[Remark]:
    if config.pool.lifetime > config.pool.max_lifetime:
        keys = (("pool", "lifetime"), ("pool", "max_lifetime"))
        yield Remark(("pool",), "lifetime must not be above max_lifetime", keys)
    if config.sandbox.keep_failed > config.pool.max_lifetime:
        where: KeyPath = ("sandbox", "keep_failed")
        yield Remark(where, "must not be above pool.max_lifetime", (where, ("pool", "max_lifetime")))


def _useless_limits(config: Config) -> Iterator[Remark]:
    """A limit that is below what every sandbox gets; one that nobody changed may be."""
    usual = {
        "memory": ("sandbox.memory", config.sandbox.memory),
        "vcpus": ("sandbox.vcpus", config.sandbox.vcpus),
        "disk": ("sandbox.disk", config.sandbox.disk),
        "lifetime": ("pool.lifetime", config.pool.lifetime),
    }
    for key, (name, given) in usual.items():
        limit = getattr(config.limits, key)
        if limit < given and limit != LimitsConfig.model_fields[key].default:
            yield Remark(("limits", key), f"is below {name}, which every sandbox gets: it has no effect")


def _project_labels(config: Config) -> Iterator[Remark]:
    where: KeyPath = ("gitlab", "labels")
    if config.gitlab.labels.skip == config.gitlab.labels.large:
        yield Remark(where, "skip and large are the same label: give each one of its own", (where,))


def _agents(config: Config) -> Iterator[Remark]:
    for name, count in Counter(agent.name for agent in config.agents).items():
        if count > 1:
            yield Remark(("agents",), f"{count} agents are called {name}: give each a name of its own")
    for place, agent in enumerate(config.agents):
        if agent.acp is not None and config.provider.network == "none":
            keys: tuple[KeyPath, ...] = (("agents", place, "acp"), ("provider", "network"))
            message = "an agent is reached over the network: it can't be used with provider.network: none"
            yield Remark(("agents", place, "acp"), message, keys)
        if agent.works_elsewhere and config.api.listen is None:
            message = f"{agent.name} answers by the API, which is off: set api.listen"
            yield Remark(("agents", place), message, (("agents", place), ("api", "listen")))
        if agent.can_be_spoken_to:
            yield from _agent_to_speak_to(agent, ("agents", place))
        else:
            for key in (key for key in _ONLY_IF_SPOKEN_TO if key in agent.model_fields_set):
                message = "nobody can speak to this agent, so this has no effect: add `acp`, `webhook` or `inbox`"
                yield Remark(("agents", place, key), message)
        for index, key in enumerate(agent.ssh_keys):
            try:
                fingerprint(key)
            except ValueError:
                yield Remark(
                    ("agents", place, "ssh_keys", index),
                    "not a public SSH key; paste the line of a .pub file",
                )


def _agent_to_speak_to(agent: AgentConfig, where: KeyPath) -> Iterator[Remark]:
    ways = {"acp": agent.acp is not None, "webhook": agent.webhook is not None, "inbox": agent.inbox}
    if sum(ways.values()) > 1:
        given = " and ".join(f"`{way}`" for way, there in ways.items() if there)
        keys = tuple((*where, way) for way, there in ways.items() if there)
        yield Remark(where, f"has {given}: its messages go one way, so keep one of them", keys)
    if agent.approve and agent.acp is None:
        message = "only an agent with `acp` asks before it uses a tool: remove it; what others may do, their token says"
        yield Remark((*where, "approve"), message, (where,))
    if agent.models and agent.acp is None:
        yield Remark(
            (*where, "models"), "only an agent with `acp` works in a sandbox, where they are: remove it", (where,)
        )
    if agent.webhook is not None:
        yield from _webhook_address(agent.webhook.url, (*where, "webhook", "url"))
    if not _ADDRESSABLE.fullmatch(agent.name):
        message = "people write this name: take 2 to 31 small letters, digits and hyphens, the first of them a letter"
        yield Remark((*where, "name"), message)
    elif agent.name in RESERVED_NAMES:
        yield Remark((*where, "name"), f"{agent.name} means something else where people write it: take another name")
    if not agent.owner:
        message = "give the GitLab user whose agent it is: it may never do more than they"
        yield Remark((*where, "owner"), message, (where,))
    elif agent.owner.startswith("@"):
        yield Remark((*where, "owner"), "write the GitLab user's name without the @")
    if not agent.projects:
        yield Remark((*where, "projects"), "list the projects on whose merge requests it may work", (where,))


def _models(config: Config) -> Iterator[Remark]:
    """The services of models, and who uses them."""
    names = Counter(model.name for model in config.models)
    for name, count in names.items():
        if count > 1:
            yield Remark(("models",), f"{count} models are called {name}: give each a name of its own")
    for place, model in enumerate(config.models):
        for index, path in enumerate(model.paths):
            if api_of(path) is None:
                known = ", ".join(f"…{api}" for api in ModelApi)
                message = f"ravebot can't read what is used there; paths that it can count end in one of {known}"
                yield Remark(("models", place, "paths", index), message)
        if model.key_file is None and "header" in model.model_fields_set:
            yield Remark(("models", place, "header"), "without key_file there is no key to send: remove it, or add one")
    for place, agent in enumerate(config.agents):
        for index, name in enumerate(agent.models):
            if name not in names:
                where: KeyPath = ("agents", place, "models", index)
                yield Remark(
                    where, f"no model is called {name}: write the name of one in `models`", (where, ("models",))
                )


def _useless_models(config: Config) -> Iterator[Remark]:
    used = {name for agent in config.agents for name in agent.models}
    for place, model in enumerate(config.models):
        if model.name not in used:
            yield Remark(("models", place), f"no agent may use {model.name}: add it to agents[].models of one")


def _webhook_address(url: HttpUrl, where: KeyPath) -> Iterator[Remark]:
    """What people write is sent there: encrypted, unless it stays in this machine or network."""
    if url.username or url.password:
        message = "leave the user name and password out of the address: the signature shows who sends"
        yield Remark(where, message)
    elif url.fragment is not None:
        yield Remark(where, "leave out everything from the '#' on: it is not sent")
    elif url.scheme == "http" and not _stays_near(url):
        message = (
            "what people write would cross the network unencrypted: use https; plain http only to an IP address of"
        )
        yield Remark(where, f"{message} this machine or of a private network")


def _stays_near(url: HttpUrl) -> bool:
    """Whether an address can be told to be this machine's, or a private network's; of a name that can't be known."""
    try:
        address = ipaddress.ip_address(_host(url.host))
    except ValueError:
        return _is_loopback(url)
    return address.is_loopback or (address.is_private and not address.is_unspecified)


def _default_agents(config: Config) -> Iterator[Remark]:
    """The agents of rooms."""
    for place, room in enumerate(config.matrix.rooms):
        if room.agent is None:
            continue
        where: KeyPath = ("matrix", "rooms", place, "agent")
        agent = next((one for one in config.agents if one.name == room.agent and one.can_be_spoken_to), None)
        if agent is None:
            message = f"no agent to speak to is called {room.agent}: write the name of another of `agents`"
            yield Remark(where, message, (where, ("agents",)))
        elif not patterns_overlap(agent.projects, room.projects):
            message = f"{room.agent} serves none of this room's projects: take another, or add a project to its own"
            yield Remark(where, message, (where, ("agents",)))


def _useless_agents(config: Config) -> Iterator[Remark]:
    for place, agent in enumerate(config.agents):
        if not agent.can_be_spoken_to and not agent.ssh_keys:
            message = (
                f"{agent.name} has no `acp`, `webhook` or `inbox`, so that people could speak to it, and no `ssh_keys`"
            )
            message += ": it does nothing"
            yield Remark(("agents", place), message)
        for index, project in enumerate(agent.projects):
            if not patterns_overlap((project,), config.gitlab.projects):
                yield Remark(("agents", place, "projects", index), f"{project} is not among gitlab.projects")


def _open_access(config: Config) -> Iterator[Remark]:
    if not config.access.allow_from:
        yield Remark(
            ("access", "allow_from"),
            "is empty: everyone who can reach this host can reach every sandbox's web port; list the networks that may",
        )
    sandbox = _host(config.sandbox.host)
    for service, host, _ in _services(config):
        if sandbox.endswith(f".{host}"):
            yield Remark(
                ("sandbox", "host"),
                f"lies below {service}'s host name: a sandbox's page can set cookies for {host}",
            )


def _is_loopback(url: HttpUrl) -> bool:
    return _is_local(_host(url.host))


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unencrypted(config: Config) -> Iterator[Remark]:
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
    public = config.api.public_url
    if public is not None and public.scheme == "http" and not _is_loopback(public):
        yield Remark(("api", "public_url"), "is plain http: tokens cross the network unencrypted; use https")


def _rooms(config: Config) -> Iterator[Remark]:
    if not config.matrix.rooms:
        yield Remark(("matrix", "rooms"), "is empty: sandboxes are announced in no room")
    if not config.matrix.admins:
        yield Remark(("matrix", "admins"), "is empty: nobody can invite ravebot to a room")
    for place, room in enumerate(config.matrix.rooms):
        for index, project in enumerate(room.projects):
            if "*" not in project and not matches_project(config.gitlab.projects, project):
                yield Remark(("matrix", "rooms", place, "projects", index), f"{project} is not among gitlab.projects")


def _useless_warnings(config: Config) -> Iterator[Remark]:
    for index, ahead in enumerate(config.pool.warn_before):
        if ahead >= config.pool.lifetime:
            yield Remark(("pool", "warn_before", index), "is not below pool.lifetime: it is sent at once or never")
