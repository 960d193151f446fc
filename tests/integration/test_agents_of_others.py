"""Agents that others have written, or written with others' SDK, driven by ravebot's runner over real SSH.

They are unmodified programs in a guest without a machine (`SshGuest`); tests/acceptance/test_agents.py has machines.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import acp as acp_sdk
import psutil
import pytest

from ravebot.agents.model import ApprovalState, TurnState
from ravebot.agents.models.accounts import ModelAccounts
from ravebot.agents.models.exchange import ExchangeParts
from ravebot.agents.models.gateway import ModelGateway, parse_threads
from ravebot.agents.models.upstream import Upstream
from ravebot.agents.telling import ConversationTelling
from ravebot.config.model import Config, ModelConfig
from ravebot.store.database import Database
from tests.support.agent_world import an_agent_world
from tests.support.agents import opencode, plain, sdk
from tests.support.agents.model import Model
from tests.support.models import CountedModels
from tests.support.sshd import SshGuest, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
_SECONDS = 60


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[SshGuest]:
    (tmp_path / "state").mkdir()
    with SshGuest(tmp_path, tmp_path / "state") as running:
        yield running


@pytest.fixture
def page(guest: SshGuest) -> Path:
    """A file in the code's folder, which only the guest's processes see: by the way through one of them."""
    assert guest._process
    (inside,) = psutil.Process(guest._process.pid).children()
    folder = Path(f"/proc/{inside.pid}/root/srv/merge-request")
    path = folder / "page.html"
    path.write_text("<h1>Hello</h1>\n")
    shutil.chown(path, 12345, 12345)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with Model(log=tmp_path / "model.log") as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ours(guest: SshGuest, program: ModuleType) -> dict[str, Any]:
    """One of our agents in the guest, as the configuration's `acp`; the SDK comes from this environment."""
    source = Path(str(program.__file__))
    packages = Path(acp_sdk.__file__).parents[1]
    command = ["/usr/bin/python3", guest.program(source.name, source.read_text())]
    return {"command": command, "environment": {"PYTHONPATH": str(packages)}}


def open_code(guest: SshGuest, model_url: str) -> dict[str, Any]:
    """The program in the guest, as the configuration's `acp`."""
    program = guest.home / "opencode"
    shutil.copy(opencode.program(), program)
    settings = guest.home / "opencode.json"
    settings.write_text(json.dumps(opencode.configuration(model_url)))
    environment = {**opencode.ENVIRONMENT, "OPENCODE_CONFIG": "/home/agent/opencode.json"}
    return {"command": ["/home/agent/opencode", "acp"], "environment": environment}


@needs_npm
async def test_opencode_works_with_a_model_behind_its_door_also_when_ravebot_is_away_while_it_asks(
    guest: SshGuest, page: Path, model: Model, tmp_path: Path
) -> None:
    port = free_port()  # the guest has this host's loopback
    service = ModelConfig.model_validate(
        {"name": "ours", "url": model.url.removesuffix("/v1"), "paths": ["/v1/chat/completions"], "allow": ["*"]}
    )
    tokens = CountedModels()

    def gateway(config: Config, database: Database) -> ModelGateway:
        accounts = ModelAccounts(config, database, ConversationTelling(config))
        made = ModelGateway(ExchangeParts(config.models, accounts, Upstream({}), parse_threads()), tokens)
        made.port = port
        return made

    acp = open_code(guest, f"http://127.0.0.1:{port}/ours/v1")
    given: dict[str, Any] = {"acp": acp, "models": ["ours"], "services": [service], "gateway": gateway}
    async with an_agent_world(guest, guest.state_dir, [], **given) as world:
        first = await world.over(await world.say("good morning"), _SECONDS)
        assert (first.state, first.answer) == (TurnState.DONE, "Scripted answer 1.")
        second = await world.say("edit page.html: Hello => Good day")
        approval = await world.question(second, _SECONDS)
        assert "+<h1>Good day</h1>" in approval.payload
        assert page.read_text() == "<h1>Hello</h1>\n"
    async with an_agent_world(guest, guest.state_dir, [], **given) as world:
        assert (await world.question(second)).id == approval.id, "the same question, asked once"
        await world.decide(approval, ApprovalState.GRANTED)
        turn = await world.over(second, _SECONDS)
        assert turn.state is TurnState.DONE
        assert page.read_text() == "<h1>Good day</h1>\n"
        assert await world.prompts() == [first.id, second], "each was given to it once"
        assert len(await world.folders()) == 1, "and all to one process"
    asked = [json.loads(line) for line in (tmp_path / "model.log").read_text().splitlines()]
    assert not [one for one in asked if "refused" in one]
    assert [one["call"] for one in asked if one["call"]] == ["read", "edit"]
    assert tokens.results == ["answered"] * len(asked)


@pytest.mark.parametrize("program", [plain, sdk])
async def test_an_agent_of_ours_is_refused_an_edit_and_then_allowed_it(
    guest: SshGuest, page: Path, program: ModuleType
) -> None:
    async with an_agent_world(guest, guest.state_dir, [], acp=ours(guest, program)) as world:
        refused = await world.say("edit page.html: Hello => Good day")
        await world.decide(await world.question(refused, _SECONDS), ApprovalState.DENIED)
        turn = await world.over(refused)
        assert turn.state is TurnState.DONE
        assert "not allowed" in turn.answer
        assert page.read_text() == "<h1>Hello</h1>\n"
        allowed = await world.say("edit page.html: Hello => Good day")
        approval = await world.question(allowed)
        assert "Good day" in approval.payload
        await world.decide(approval, ApprovalState.GRANTED)
        assert (await world.over(allowed)).state is TurnState.DONE
        assert page.read_text() == "<h1>Good day</h1>\n"
        assert await world.prompts() == [refused, allowed]


async def test_what_is_said_after_a_tool_was_used_at_once_is_one_text(
    guest: SshGuest, page: Path, tmp_path: Path
) -> None:
    async with an_agent_world(guest, tmp_path, [], acp=ours(guest, sdk)) as world:
        turn = await world.over(await world.say("read page.html"), _SECONDS)
        assert turn.answer.startswith(
            "I have read **page.html**. It has 1 lines, and they say:\n\n```\n<h1>Hello</h1>\n```"
        )


@pytest.mark.parametrize(
    ("mischief", "state"),
    [
        ("shout", TurnState.DONE),
        ("order", TurnState.DONE),
        ("html", TurnState.DONE),
        ("ansi", TurnState.DONE),
        ("invalid utf-8", TurnState.DONE),
        ("garbage", TurnState.DONE),
        ("late", TurnState.DONE),
        ("refuse", TurnState.FAILED),
        ("fail", TurnState.FAILED),
        ("crash", TurnState.UNCERTAIN),
        ("leave a child", TurnState.UNCERTAIN),
        ("read through client", TurnState.DONE),
        ("huge permission 3000000", None),
        ("endless line 64", None),
        ("flood 2", TurnState.DONE),
    ],
)
async def test_mischief_ends_its_turn_and_the_next_message_is_answered(
    guest: SshGuest, mischief: str, state: TurnState | None
) -> None:
    async with an_agent_world(guest, guest.state_dir, [], acp=ours(guest, plain), approve=[]) as world:
        turn = await world.over(await world.say(mischief), _SECONDS)
        if state is not None:
            assert turn.state is state, turn
        assert len(turn.answer) <= 60_100
        after = await world.over(await world.say("echo and now?"), _SECONDS)
        assert (after.state, after.answer) == (TurnState.DONE, "and now?")
