"""OpenCode, which others have written, with the scripted model: what ravebot's transport has to get along with."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.support.agents import opencode
from tests.support.agents.model import MODEL, Model
from tests.support.agents.talk import Talk
from tests.support.models import a_gateway, a_model

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


def environment(home: Path, settings: Path) -> dict[str, str]:
    places = {f"XDG_{name}_HOME": str(home / name) for name in ("DATA", "CONFIG", "CACHE", "STATE")}
    return {**opencode.ENVIRONMENT, **places, "HOME": str(home), "OPENCODE_CONFIG": str(settings)}


@asynccontextmanager
async def relayed(socket: Path) -> AsyncIterator[int]:
    """A port on loopback that leads to that socket."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, on = await asyncio.open_unix_connection(str(socket))
        await asyncio.gather(copy(reader, on), copy(back, writer))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def test_opencode_answers_and_changes_a_file_once_it_is_allowed(model: Model, tmp_path: Path) -> None:
    settings, folder = tmp_path / "opencode.json", tmp_path / "project"
    settings.write_text(json.dumps(opencode.configuration(model.url)))
    folder.mkdir()
    page = folder / "page.html"
    page.write_text("<h1>Hello</h1>\n")
    with Talk([str(opencode.program()), "acp"], folder, environment(tmp_path, settings)) as talk:
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


async def test_opencode_works_with_a_model_through_the_gateway_and_has_no_key(model: Model, tmp_path: Path) -> None:
    """The relay stands for the forward of a port in the guest."""
    folder, settings = tmp_path / "project", tmp_path / "opencode.json"
    folder.mkdir()
    service = a_model(model.url.removesuffix("/v1"), allow=[MODEL], paths=["/v1/chat/completions"])
    async with a_gateway(tmp_path, models=lambda _: (service,)) as gateway, relayed(gateway.socket) as port:
        settings.write_text(json.dumps(opencode.configuration(f"http://127.0.0.1:{port}/local/v1")))

        def talk() -> str:
            with Talk([str(opencode.program()), "acp"], folder, environment(tmp_path, settings)) as talk:
                session = talk.begin(timeout=60)
                assert talk.ask(session, "good morning", 60)["result"]["stopReason"] == "end_turn"
                return talk.said

        assert await asyncio.to_thread(talk) == "Scripted answer 1."
        assert set(gateway.metrics.results) == {"answered"}
        assert 0 < await gateway.used() < 32_000  # settled: a reservation is more
