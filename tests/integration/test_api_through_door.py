"""A real agent uses ravebot's tools from inside its sandbox: through sshd's forward, and the sandbox's own socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ravebot.agents.allowed import StillAllowed
from ravebot.agents.answers import AgentAnswers
from ravebot.agents.desk import Desk
from ravebot.agents.elsewhere import ElsewhereTurns
from ravebot.agents.model import TurnState
from ravebot.agents.progress import TurnProgress
from ravebot.agents.reception import Reception
from ravebot.agents.telling import ConversationTelling
from ravebot.commands.people import People
from ravebot.config.model import Config
from ravebot.parts import make_diffs
from ravebot.providers.memory import MemoryProvider
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Intents
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.store import sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.tools.calls import ToolCalls
from ravebot.tools.workbench import Workbench
from ravebot.web.api.server import SandboxMcp
from ravebot.web.metrics import Metrics
from tests.integration.test_agents_shell import Facts
from tests.support.agent_world import AgentWorld, a_guest_with_the_agent, an_agent_world
from tests.support.sshd import SshGuest

pytestmark = pytest.mark.integration
HOME_AGENT = "/home/agent/agent"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshGuest]:
    with a_guest_with_the_agent(tmp_path_factory.mktemp("guest")) as running:
        yield running


def the_tools(config: Config, database: Database) -> SandboxMcp:
    telling, gitlab = ConversationTelling(config), Facts()
    people, turns = People(config, database, gitlab), ElsewhereTurns(config, TurnProgress(telling))
    unused: Any = gitlab  # nothing is compared here
    bench = Workbench(
        config, database, people, Intents(config, Lifecycle(config, Journal(config, Metrics()))), Views(config),
        Reception(config, people, Desk(config, telling)), make_diffs(config, database, MemoryProvider(), unused),
        AgentAnswers(config, database, turns, StillAllowed(database, turns.give_up)),
    )  # fmt: skip
    return SandboxMcp(ToolCalls(bench))


async def said(world: AgentWorld, text: str) -> str:
    turn = await world.over(await world.say(text))
    assert turn.state is TurnState.DONE, turn
    return turn.answer


async def test_an_agent_in_its_turn_acts_on_its_own_sandbox_and_on_no_other(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [HOME_AGENT, "mcp"], gateway=the_tools) as world:
        ref = world.mr.full_ref
        assert f'"sandbox":"{ref}"' in await said(world, "use whoami {}")
        assert '"state":"waiting"' in await said(world, 'use run_start {"command": "make check"}')
        other = await said(world, 'use sandbox_stop {"ref": "group/app!99"}')
        assert "only its own merge request" in other
        assert "There is no tool message_send" in await said(world, "use message_send {}")

        def keep(tx: Transaction) -> None:
            sandbox = sandboxes.current(tx, world.mr.ref)
            assert sandbox
            sandboxes.save(tx, replace(sandbox, expires_at=tx.now))

        await world.database.write(keep)
        assert f"{ref} stays until" in await said(world, 'use sandbox_extend {"by": "5m"}')
        rows = await world.database.read(
            lambda tx: tx.all("SELECT actor_kind, actor, data FROM events WHERE kind = 'api.call' ORDER BY id")
        )
    assert [(row["actor_kind"], row["actor"]) for row in rows] == [("agent", "coder")] * 2
    assert ["run_start" in rows[0]["data"], "sandbox_extend" in rows[1]["data"]] == [True, True]
    assert os.listdir(tmp_path / "doors") == [], "the socket is gone"
