"""A folder with a configuration that is right, to be spoiled: what the tests of the configuration file share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ravebot.config.file import InvalidConfigError, LoadedConfig, load
from ravebot.config.tree import Problem

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"


HIDDEN = "hush-hush-4711"


MINIMAL = """\
matrix:
  homeserver: https://matrix.example.org
  user_id: "@ravebot:example.org"
  password_file: {secrets}/matrix
  admins: ["@ops:example.org"]
  rooms:
    - {{room: "#dev:example.org", projects: [group/app]}}
gitlab:
  url: https://gitlab.example.org
  token_file: {secrets}/gitlab
  projects: [group/app]
  webhook: {{secret_token_file: {secrets}/webhook}}
sandbox: {{host: sandboxes.example.org}}
access: {{allow_from: [192.0.2.0/24]}}
provider: {{image: /images/sandbox.qcow2}}
"""


class Folder:
    """A folder with a configuration that is right, to be spoiled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("matrix", "gitlab", "webhook"):
            self.secret(name)

    def secret(self, name: str, content: str | bytes = HIDDEN, mode: int = 0o600) -> Path:
        file = self.path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return file

    def load(self, text: str | bytes | None = None) -> LoadedConfig:
        file = self.path / "config.yaml"
        text = self.minimal() if text is None else text
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(file)

    def minimal(self, *changes: tuple[str, str]) -> str:
        text = MINIMAL.format(secrets=self.path)
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        return text

    def problems(self, text: str | bytes | None = None) -> list[Problem]:
        with pytest.raises(InvalidConfigError) as caught:
            self.load(text)
        return list(caught.value.problems)

    def one(self, *changes: tuple[str, str]) -> Problem:
        problems = self.problems(self.minimal(*changes))
        assert len(problems) == 1, problems
        return problems[0]


def example_with_secrets(folder: Folder) -> str:
    for name in ("matrix-password", "gitlab-token", "gitlab-webhook"):
        folder.secret(name)
    return EXAMPLE.read_text().replace("/etc/ravebot/secrets", str(folder.path))
