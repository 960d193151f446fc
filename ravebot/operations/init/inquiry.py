"""What a question is, and what is known while they are asked: answers, what is configured, what servers told."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ravebot.config.file import InvalidConfigError, fill, judge
from ravebot.config.model import Config
from ravebot.config.tree import KeyPath, Problem, Value
from ravebot.config.values import PortRange

if TYPE_CHECKING:
    from ravebot.access.nftables.nft import NetworkTools
    from ravebot.gitlab.route import GitlabRoute
    from ravebot.operations.doctor.finding import Finding
    from ravebot.operations.doctor.matrix import Login
    from ravebot.operations.doctor.services import GitlabAccess

ANY = "any"
"""The answer that lets everybody reach the sandboxes."""

Trial = Callable[["Inquiry", str], Coroutine[Any, Any, Sequence["Finding"]]]
Proposal = Callable[["Inquiry"], Coroutine[Any, Any, str | None]]


class Form(StrEnum):
    """How an answer is written in the configuration."""

    TEXT = "text"
    LIST = "list"  # with commas
    PAIRS = "pairs"  # A=B, with commas
    ROOM = "room"  # one room, with all projects
    SECRET = "secret"  # noqa: S105 - a file of its own; the configuration names it


class Asked(StrEnum):
    """When a person is asked."""

    ALWAYS = "always"
    IF_UNKNOWN = "if unknown"  # only when it can't be found out
    OFFERED = "offered"  # Enter alone leaves it out
    NEVER = "never"  # chosen; an option changes it
    FOLLOWS = "follows"  # from what is offered


@dataclass(frozen=True)
class Question:
    """One question. `needed`: a script must give it; otherwise `propose` finds or chooses an answer. `beside`: the key
    without which what is configured does not count as an answer."""

    name: str
    key: KeyPath
    prompt: str
    help: str
    form: Form = Form.TEXT
    asked: Asked = Asked.ALWAYS
    needed: bool = True
    test: Trial | None = None
    propose: Proposal | None = None
    beside: KeyPath = ()

    @property
    def secret(self) -> bool:
        return self.form is Form.SECRET

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}{'-file' if self.secret else ''}"

    def hint(self, *, kept: bool = False) -> str:
        """The help for a person who types the answer: what an option takes from a file is typed.

        `kept`: Enter alone keeps the secret that is there.
        """
        plain = self.help.removeprefix("File with ")
        more = " Enter alone: give an access token instead." if self.name == "matrix_password" and not kept else ""
        more += " Enter alone: leave it out." if self.asked is Asked.OFFERED else ""
        return plain[0].upper() + plain[1:] + more

    @property
    def variable(self) -> str | None:
        """The environment variable; secrets have none, because other processes can read it."""
        return None if self.secret else f"RAVEBOT_INIT_{self.name.upper()}"

    def value(self, text: str) -> Value:
        """What the answer is in the configuration; of a secret, its file's path stands there instead."""
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if self.form is Form.LIST:
            return list[Value]([] if text.strip() == ANY else parts)
        if self.form is Form.PAIRS:
            pairs = [part.partition("=") for part in parts]
            return {left.strip(): right.strip() for left, _, right in pairs}
        return text.strip()

    def text(self, value: Value) -> str | None:
        """The answer that a value of an existing configuration stands for; None if there is no such answer."""
        if self.form is Form.LIST and isinstance(value, list):
            return ", ".join(map(str, value)) or (ANY if self.name == "allow_from" else "")
        if self.form is Form.PAIRS and isinstance(value, dict):
            return ", ".join(f"{left}={right}" for left, right in value.items())
        if self.form is Form.ROOM:
            first = value[0] if isinstance(value, list) and value else None
            name = first.get("room") if isinstance(first, dict) else None
            return name if isinstance(name, str) else None
        return value if isinstance(value, str) else None


SECRET_NAMES = {
    "matrix_password": "matrix-password",
    "matrix_token": "matrix-access-token",
    "gitlab_token": "gitlab-token",
    "webhook_secret": "gitlab-webhook",
    "webhook_signing_token": "gitlab-webhook-signing",
    "alertmanager_token": "alertmanager-token",
}


def secrets_folder(config: Path) -> Path:
    """Beside the configuration; each configuration of a folder has its own, so that none share secrets."""
    return config.parent / ("secrets" if config.stem == "config" else f"{config.stem}-secrets")


def lookup(tree: Value, path: KeyPath) -> Value:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) and isinstance(key, str) else None
    return tree


def put(tree: dict[str, Value], path: KeyPath, value: Value) -> None:
    """Set the value at a path of keys; sections that are missing are made."""
    *parents, last = map(str, path)
    for key in parents:
        below = tree.get(key)
        if not isinstance(below, dict):
            below = tree[key] = dict[str, Value]()
        tree = below
    tree[last] = value


@dataclass(frozen=True)
class RoomSeen:
    """What a test found of a room: whether it exists, its id, and whether ravebot is in it."""

    exists: bool = False
    room_id: str = ""
    joined: bool = False


@dataclass
class Inquiry:
    """Everything so far. `existing` is the parsed configuration that is there already, {} if none is."""

    table: Mapping[str, Question]  # by name, in the order in which they are asked
    path: Path
    existing: dict[str, Value] = field(default_factory=dict)
    tools: NetworkTools | None = None  # by default, those of this host
    answers: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    kept_secrets: Mapping[str, str] = field(default_factory=dict)
    login: Login | None = None
    login_stored: bool = False
    rooms: dict[str, RoomSeen] = field(default_factory=dict)  # by the name that was answered
    gitlab_user: str = ""
    least_port: int = 0  # on which the user can listen who will run ravebot
    unmaintained: list[str] = field(default_factory=list)
    """Projects on which the token may not register webhooks."""

    @property
    def homeserver(self) -> str:
        return self.answers.get("matrix_homeserver", "").rstrip("/")

    @property
    def gitlab(self) -> str:
        return self.answers.get("gitlab_url", "").rstrip("/")

    @property
    def gitlab_route(self) -> GitlabRoute:
        """The proxy's login is only in a configuration that is there already."""
        from ravebot.gitlab.route import GitlabRoute, with_login

        ca_file, proxy = self.answers.get("gitlab_ca_file"), self.answers.get("gitlab_proxy")
        login = self.kept_secrets.get("gitlab_proxy_login")
        return GitlabRoute(Path(ca_file) if ca_file else None, with_login(proxy, login) if proxy else None)

    def gitlab_access(self, token: str | None = None) -> GitlabAccess:
        """With that token, or the one that was given."""
        from ravebot.operations.doctor.services import GitlabAccess

        return GitlabAccess(token or self.secrets.get("gitlab_token", ""), self.gitlab_route)

    @property
    def matrix_access(self) -> str | None:
        """A token of the account."""
        return self.login.token if self.login else self.secrets.get("matrix_token")

    def listed(self, name: str) -> list[str]:
        value = self.table[name].value(self.answers.get(name, ""))
        return [str(item) for item in value] if isinstance(value, list) else []

    def old(self, question: Question) -> str | None:
        """The answer in the existing configuration; a default that it uses counts, so that it does not change."""
        there = lookup(self.existing, question.key)
        if question.beside and lookup(self.existing, question.beside) is None:
            return None
        if there is None and self.existing and question.asked is Asked.NEVER and not question.secret:
            return self._default(question)
        return question.text(there)

    def _default(self, question: Question) -> str | None:
        try:
            found: object = Config.model_validate(fill(self.existing))
        except ValueError:  # reported when the configuration is judged
            return None
        for key in question.key:
            found = getattr(found, str(key), None)
        if question.form is not Form.TEXT or found is None:
            return ""
        return f"{found.first}-{found.last}" if isinstance(found, PortRange) else str(found)

    def secret_file(self, question: Question) -> Path:
        """Where the secret is, or will be."""
        there = lookup(self.existing, question.key)
        return Path(there) if isinstance(there, str) else secrets_folder(self.path) / SECRET_NAMES[question.name]

    def values(self, more: Mapping[str, str] | None = None) -> dict[KeyPath, Value]:
        """The configuration's values that follow from the answers (and from `more`)."""
        answers = {**self.answers, **(more or {})}
        values: dict[KeyPath, Value] = {}
        for question in self.table.values():
            if question.secret:
                if question.name in self.secrets or question.name in (more or {}):
                    values[question.key] = str(self.secret_file(question))
            elif question.form is Form.ROOM:
                if question.name in answers:
                    values[question.key] = self._rooms(answers[question.name], answers.get("projects", ""))
            elif question.name in answers:
                value = question.value(answers[question.name])
                if value != {}:
                    values[question.key] = value
        return values

    def _rooms(self, room: str, projects: str) -> Value:
        """Rooms of the existing configuration stay: only the first one's name is asked for."""
        there = lookup(self.existing, ("matrix", "rooms"))
        wanted = self.table["projects"].value(projects)
        if isinstance(there, list) and there and isinstance(there[0], dict):
            had = there[0].get("projects")
            follows = had == lookup(self.existing, ("gitlab", "projects"))
            return [{**there[0], "room": room, "projects": wanted if follows else had}, *there[1:]]
        return [{"room": room, "projects": wanted}]

    def tree(self, more: Mapping[str, str] | None = None) -> dict[str, Value]:
        """Those values alone, as the configuration's tree."""
        tree: dict[str, Value] = {}
        for path, value in self.values(more).items():
            put(tree, path, value)
        return tree

    def complaints(self, name: str, text: str) -> list[str]:
        """What is wrong with an answer as such, or beside the earlier ones."""
        before = self._problems(self.answers)
        found = [one for one in self._problems({**self.answers, name: text}) if one not in before]
        return [one.message.replace(" in quotes", "") for one in found]  # what is typed needs none

    def _problems(self, answers: Mapping[str, str]) -> list[Problem]:
        tree = fill(Inquiry(self.table, self.path, self.existing, answers=dict(answers)).tree())
        try:
            judge(self.path, json.dumps(tree))
        except InvalidConfigError as error:
            return [Problem(0, one.path, one.message) for one in error.problems]
        return []

    def config(self, more: Mapping[str, str] | None = None) -> Config:
        """The configuration so far, with placeholders for what is not known yet."""
        return Config.model_validate(fill(self.tree(more)))
