"""What ravebot does between a room and its agents, in a process of its own that can be killed at any step.

Synapse, the people in the room, SQLite, SSH and the agents are real; GitLab is the stand-in. Left out is what makes
sandboxes: the guest's is ready from the start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, TypeVar

import structlog

from ravebot.agents import registry
from ravebot.agents.rights import ChainRights
from ravebot.agents.runner import AgentRunner
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.transports.acp.control import CONTROL_KEY
from ravebot.agents.waiting import SandboxBinding, WaitingLoop
from ravebot.clock import SystemClock
from ravebot.commands.people import People
from ravebot.config.model import AgentConfig, Budgets, Config, PersonBudget
from ravebot.gitlab.client import GitLab
from ravebot.intake.loop import Intake
from ravebot.intake.matrix import SYNC_TOKEN, MatrixJournal
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.invites import Invites
from ravebot.matrix.rooms import RoomDirectory
from ravebot.matrix.sync import SyncLoop
from ravebot.notify.delivery import Delivery
from ravebot.notify.matrix import MatrixSender
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Intents
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import outbox
from ravebot.store.database import Database, Transaction
from ravebot.store.outbox import Message as OutboxMessage
from ravebot.store.targets import MATRIX
from ravebot.web.metrics import Metrics
from tests.support.agent_world import (
    AGENT_SOURCE,
    CrashingConnections,
    CrashingDatabase,
    make_driver,
    ready_sandbox,
)
from tests.support.forks import FORKS
from tests.support.gitlab import DEVELOPER, GitLabServer
from tests.support.records import make_config
from tests.support.rooms import room_handler
from tests.support.sshd import SshGuest
from tests.support.synapse import MatrixUser, Message, RoomReader, Synapse

T = TypeVar("T")
STRUCK = "struck"
"""In the state's folder: what was about to be done, or had just been done, at each kill."""


@dataclass(frozen=True)
class RoomBot:
    """What a process needs to be the bot."""

    state_dir: Path
    homeserver: str
    user_id: str
    password: str
    alice: str
    room: str
    gitlab: str
    token: str
    port: int
    agents: tuple[dict[str, Any], ...]

    def config(self) -> Config:
        matrix = {
            "homeserver": self.homeserver, "user_id": self.user_id, "users": {self.alice: "alice"},
            "rooms": [{"room": self.room, "projects": ["group/*"]}],
        }  # fmt: skip
        made = make_config(self.state_dir, gitlab={"url": self.gitlab}, matrix=matrix, sandbox={"user": "agent"})
        agents = tuple(AgentConfig.model_validate(one) for one in self.agents)
        budgets = Budgets(person=PersonBudget(messages_per_day=1_000_000))
        return made.model_copy(update={"agents": agents, "budgets": budgets})


class MortalDatabase(CrashingDatabase):
    """Once another process has set `armed`, it kills its process at the first step of a kind at which it never did."""

    armed: Synchronized[int]

    def step(self, what: str = "a line to the agent") -> None:
        path = self.path.parent / STRUCK
        if not self.armed.value or what in _lines(path):
            return
        self.armed.value = 0
        with path.open("a") as file:
            file.write(f"{what}\n")
        self.die()

    async def write(self, function: Callable[[Transaction], T], *, urgent: bool = False, synced: bool = True) -> T:
        what: Any = function
        about = ""
        while isinstance(what, partial):
            message = what.keywords.get("message")
            about = f" of the room's {message.kind}" if isinstance(message, OutboxMessage) else about
            what = what.func
        name = f"the commit of {what.__module__.removeprefix('ravebot.')}.{what.__qualname__}{about}"
        self.step(f"before {name}")
        result = await Database.write(self, function, urgent=urgent, synced=synced)
        self.step(f"after {name}")
        return result


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def be_the_bot(bot: RoomBot, armed: Synchronized[int]) -> None:
    """What the process runs, until it is killed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(_be_the_bot(bot, armed))


async def _be_the_bot(bot: RoomBot, armed: Synchronized[int]) -> None:
    database = MortalDatabase(bot.state_dir / "ravebot.db", SystemClock())
    database.armed = armed
    async with database:
        await run_loops(bot, database, CrashingConnections(bot.state_dir, database))


async def run_loops(bot: RoomBot, database: Database, connections: Any = None) -> None:
    """Every loop between the room and the agents."""
    config, clock = bot.config(), SystemClock()
    client = MatrixClient(config.matrix, bot.password, bot.state_dir)
    gitlab = GitLab(bot.gitlab, bot.token, clock, 5)
    lifecycle = Lifecycle(config, Journal(config, Metrics()))
    views, telling = Views(config), ConversationTelling(config)
    directory = RoomDirectory(client, config.matrix.rooms, clock)
    invites = Invites(client, (), clock, directory.joined, directory.is_configured)
    people = People(config, database, gitlab)
    driver = replace(
        make_driver(config, database, bot.port), may_give=ChainRights(config, database, people).still_may,
    )  # fmt: skip
    if connections is not None:
        driver = replace(driver, connections=connections)
    parts = Parts(database, Intents(config, lifecycle), views)
    await client.open()
    try:
        sender = MatrixSender(config.matrix, database, views, client, directory)
        journal = MatrixJournal(database, config.matrix.command_prefix, registry.names(config))
        async with asyncio.TaskGroup() as group:
            for loop in (
                SyncLoop(client, journal, clock, invites).run(),
                Intake(database, {"matrix": room_handler(parts, gitlab, config)}).run(),
                Delivery(database, MATRIX, sender, lambda _target, _result: None).run(),
                AgentRunner(database, driver).run(),
                WaitingLoop(database, SandboxBinding(config, telling)).run(),
            ):
                group.create_task(loop)
    finally:
        await client.close()
        await gitlab.close()


@dataclass(frozen=True)
class Parts:
    """What the handler of the room works with."""

    database: Database
    intents: Intents
    views: Views


@dataclass
class AgentRoom:
    """A room of alice's and bob's with the bot, which is started and killed here."""

    bot: RoomBot
    guest: SshGuest
    alice: MatrixUser
    reader: RoomReader
    """Bob's ears."""
    armed: Synchronized[int] = field(default_factory=lambda: FORKS.Value("i", 0))
    process: BaseProcess | None = None

    @property
    def path(self) -> Path:
        return self.bot.state_dir / "ravebot.db"

    def start(self) -> None:
        self.process = FORKS.Process(target=be_the_bot, args=(self.bot, self.armed))
        self.process.start()

    async def begin(self) -> None:
        """Start it for the first time; what is said from now on is heard."""
        self.start()
        await self.until(lambda: self.rows("SELECT 1 FROM meta WHERE key = ?", SYNC_TOKEN), 60)

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Read the bot's database beside it."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql, parameters).fetchall()

    def counts(self) -> tuple[int, int]:
        """How many turns are over, and how many messages to the room are not delivered yet."""
        (counted,) = self.rows(
            "SELECT (SELECT COUNT(*) FROM agent_turns WHERE ended_at IS NOT NULL),"
            " (SELECT COUNT(*) FROM outbox WHERE delivered_at IS NULL)"
        )
        return counted[0], counted[1]

    def prompts(self, thread: str = "%") -> list[tuple[int, str]]:
        """The turns and texts that the agents were given, in a thread in that order, counted in their own input."""
        folders = self.rows(
            "SELECT p.folder FROM agent_processes p JOIN conversations c ON c.id = p.conversation_id"
            " WHERE c.thread LIKE ? ORDER BY p.id",
            thread,
        )
        lines = [json.loads(line) for (folder,) in folders for line in self.guest.lines(folder)]
        given = [line for line in lines if line.get("method") == "session/prompt"]
        return [(one["id"] - 1000, "".join(block["text"] for block in one["params"]["prompt"])) for one in given]

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def kills(self) -> list[str]:
        """At which steps it killed itself."""
        return _lines(self.bot.state_dir / STRUCK)

    async def say(self, text: str, thread: str = "") -> str:
        """Alice says something, as clients do it."""
        relation: Mapping[str, Any] = {
            "m.relates_to": {
                "rel_type": "m.thread", "event_id": thread, "is_falling_back": True,
                "m.in_reply_to": {"event_id": thread},
            }
        }  # fmt: skip
        return await self.alice.send(self.bot.room, text, **(relation if thread else {}))

    async def messages(self) -> list[Message]:
        return await self.alice.messages(self.bot.room)

    async def until(self, condition: Callable[[], Any], seconds: float = 30, *, restarts: bool = False) -> None:
        """Wait until it is so; `restarts`: a bot that was killed is started again."""
        async with asyncio.timeout(seconds):
            while not condition():
                if not self.is_alive:
                    assert restarts, "the bot ended by itself"
                    self.start()
                await asyncio.sleep(0.03)


def scripted(name: str = "coder", *arguments: str, **facts: Any) -> dict[str, Any]:
    """An agent whose program is the scripted one."""
    return {
        "name": name, "owner": "alice", "projects": ["group/*"], "approve": ["edit"],
        "acp": {"command": ["/home/agent/agent", *arguments]}, "limits": {"messages_per_day": 1_000_000}, **facts,
    }  # fmt: skip


@asynccontextmanager
async def an_agent_room(
    synapse: Synapse, guest: SshGuest, folder: Path, *agents: dict[str, Any]
) -> AsyncIterator[AgentRoom]:
    """The bot is not started yet."""
    folder.mkdir(exist_ok=True)
    shutil.copy(guest.state_dir / CONTROL_KEY, folder / CONTROL_KEY)
    guest.program("agent", AGENT_SOURCE.read_text())
    mark = abs(hash(folder)) % 10**8
    account, alice, bob = [await synapse.user(f"{name}{mark}") for name in ("bot", "alice", "bob")]
    room_id = await alice.create_room(invite=[account.user_id, bob.user_id])
    for one in (account, bob):
        await one.join(room_id)
    async with GitLabServer() as server:
        ours, author = server.add_user("ravebot"), server.add_user("alice")
        project = server.add_project("group/app")
        for user in (ours, author):
            server.set_role(project, user, DEVELOPER)
        opened = server.open_merge_request(project, author, "Add a feature", "feature")
        bot = RoomBot(
            folder, synapse.url, account.user_id, account.password, alice.user_id, room_id, server.url,
            server.token_for(ours), guest.port, agents or (scripted(),),
        )  # fmt: skip
        gitlab = GitLab(bot.gitlab, bot.token, SystemClock(), 2)
        mr = await gitlab.merge_request(MergeRequestRef(project.id, opened.iid))
        await gitlab.close()

        def begin(tx: Transaction) -> None:
            ready_sandbox(tx, mr, guest)
            outbox.set_room(tx, room_id, room_id)

        async with Database(folder / "ravebot.db", SystemClock()) as database:
            await database.write(begin)
        room = AgentRoom(bot, guest, alice, RoomReader(bob, room_id))
        ears = asyncio.create_task(room.reader.run())
        try:
            yield room
        finally:
            room.kill()
            ears.cancel()
            with suppress(asyncio.CancelledError):
                await ears
            for one in (alice, bob):
                await one.close()
