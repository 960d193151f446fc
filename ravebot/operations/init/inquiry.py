"""What is known while init asks: the answers so far, the existing configuration, and what the servers told."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ravebot.access.nftables.nft import NetworkTools
from ravebot.config.file import InvalidConfigError, fill, judge
from ravebot.config.model import Config
from ravebot.config.tree import KeyPath, Problem, Value
from ravebot.operations.init.questions import BY_NAME, QUESTIONS, Form, Question

if TYPE_CHECKING:
    from ravebot.operations.doctor.matrix import Login

SECRET_NAMES = {
    "matrix_password": "matrix-password",
    "matrix_token": "matrix-access-token",
    "gitlab_token": "gitlab-token",
    "webhook_secret": "gitlab-webhook",
    "webhook_signing_token": "gitlab-webhook-signing",
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


@dataclass
class Inquiry:
    """Everything so far. `existing` is the parsed configuration that is there already, {} if none is."""

    path: Path
    existing: dict[str, Value] = field(default_factory=dict)
    tools: NetworkTools = field(default_factory=NetworkTools)
    answers: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    kept_secrets: Mapping[str, str] = field(default_factory=dict)
    login: Login | None = None
    login_stored: bool = False
    room_exists: bool = False
    room_id: str = ""
    joined_rooms: Collection[object] = ()
    gitlab_user: str = ""
    unmaintained: list[str] = field(default_factory=list)
    """Projects on which the token may not register webhooks."""

    @property
    def homeserver(self) -> str:
        return self.answers.get("matrix_homeserver", "").rstrip("/")

    @property
    def gitlab(self) -> str:
        return self.answers.get("gitlab_url", "").rstrip("/")

    @property
    def gitlab_headers(self) -> dict[str, str]:
        return {"PRIVATE-TOKEN": self.secrets.get("gitlab_token", "")}

    @property
    def matrix_access(self) -> str | None:
        """A token of the account."""
        return self.login.token if self.login else self.secrets.get("matrix_token")

    def listed(self, name: str) -> list[str]:
        value = BY_NAME[name].value(self.answers.get(name, ""))
        return [str(item) for item in value] if isinstance(value, list) else []

    def old(self, question: Question) -> str | None:
        """The answer in the existing configuration."""
        return question.text(lookup(self.existing, question.key))

    def secret_file(self, question: Question) -> Path:
        """Where the secret is, or will be."""
        there = lookup(self.existing, question.key)
        return Path(there) if isinstance(there, str) else secrets_folder(self.path) / SECRET_NAMES[question.name]

    def values(self, more: Mapping[str, str] | None = None) -> dict[KeyPath, Value]:
        """The configuration's values that follow from the answers (and from `more`)."""
        answers = {**self.answers, **(more or {})}
        values: dict[KeyPath, Value] = {}
        for question in QUESTIONS:
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
        if isinstance(there, list) and there and isinstance(there[0], dict):
            return [{**there[0], "room": room}, *there[1:]]
        return [{"room": room, "projects": BY_NAME["projects"].value(projects)}]

    def tree(self, more: Mapping[str, str] | None = None) -> dict[str, Value]:
        """Those values alone, as the configuration's tree."""
        tree: dict[str, Value] = {}
        for path, value in self.values(more).items():
            put(tree, path, value)
        return tree

    def complaints(self, name: str, text: str) -> list[str]:
        """What is wrong with an answer as such, or beside the earlier ones."""
        before = self._problems(self.answers)
        return [one.message for one in self._problems({**self.answers, name: text}) if one not in before]

    def _problems(self, answers: Mapping[str, str]) -> list[Problem]:
        tree = fill(Inquiry(self.path, self.existing, answers=dict(answers)).tree())
        try:
            judge(self.path, json.dumps(tree))
        except InvalidConfigError as error:
            return [Problem(0, one.path, one.message) for one in error.problems]
        return []

    def config(self, more: Mapping[str, str] | None = None) -> Config:
        """The configuration so far, with placeholders for what is not known yet."""
        return Config.model_validate(fill(self.tree(more)))
