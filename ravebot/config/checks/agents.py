"""Checks of agents, and of the rooms that they are in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from pydantic import HttpUrl

from ravebot.config.checks.addresses import stays_near
from ravebot.config.checks.remarks import Remark
from ravebot.config.model import AgentConfig, Config
from ravebot.config.patterns import patterns_overlap
from ravebot.config.tree import KeyPath
from ravebot.sshkeys import fingerprint

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


def agents(config: Config) -> Iterator[Remark]:
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


def _webhook_address(url: HttpUrl, where: KeyPath) -> Iterator[Remark]:
    """What people write is sent there: encrypted, unless it stays in this machine or network."""
    if url.username or url.password:
        message = "leave the user name and password out of the address: the signature shows who sends"
        yield Remark(where, message)
    elif url.fragment is not None:
        yield Remark(where, "leave out everything from the '#' on: it is not sent")
    elif url.scheme == "http" and not stays_near(url):
        message = (
            "what people write would cross the network unencrypted: use https; plain http only to an IP address of"
        )
        yield Remark(where, f"{message} this machine or of a private network")


def default_agents(config: Config) -> Iterator[Remark]:
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


def useless_agents(config: Config) -> Iterator[Remark]:
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
