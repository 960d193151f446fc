"""OpenCode, which others have written, with the scripted model: what ravebot's transport has to get along with."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import opencode
from tests.support.agents.model import Model
from tests.support.agents.talk import Talk

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed"),
]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with Model(log=tmp_path / "model.log") as model:
        threading.Thread(target=model.serve_forever, daemon=True).start()
        yield model
        model.shutdown()


def test_opencode_answers_and_changes_a_file_once_it_is_allowed(model: Model, tmp_path: Path) -> None:
    settings, folder = tmp_path / "opencode.json", tmp_path / "project"
    settings.write_text(json.dumps(opencode.configuration(model.url)))
    folder.mkdir()
    page = folder / "page.html"
    page.write_text("<h1>Hello</h1>\n")
    places = {f"XDG_{name}_HOME": str(tmp_path / name) for name in ("DATA", "CONFIG", "CACHE", "STATE")}
    environment = {**opencode.ENVIRONMENT, **places, "HOME": str(tmp_path), "OPENCODE_CONFIG": str(settings)}
    with Talk([str(opencode.program()), "acp"], folder, environment) as talk:
        session = talk.begin(timeout=60)
        assert talk.ask(session, "good morning", 60)["result"]["stopReason"] == "end_turn"
        assert talk.said == "Scripted answer 1."
        talk.allow = lambda asked: next(one["optionId"] for one in asked["options"] if one["kind"] == "allow_once")
        assert talk.ask(session, f"edit {page}: Hello => Good day", 60)["result"]["stopReason"] == "end_turn"
        assert page.read_text() == "<h1>Good day</h1>\n"
        (asked,) = talk.questions
        assert asked["toolCall"]["kind"] == "edit"
        assert "+<h1>Good day</h1>" in asked["toolCall"]["rawInput"]["diff"]
        talk.allow = lambda asked: next(one["optionId"] for one in asked["options"] if one["kind"] == "reject_once")
        talk.ask(session, "run rm page.html", 60)
        assert page.exists()
    requests = [json.loads(line) for line in (tmp_path / "model.log").read_text().splitlines()]
    assert not [one for one in requests if "refused" in one]
    assert [one["call"] for one in requests if one["call"]] == ["read", "edit", "bash"]
