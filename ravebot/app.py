"""The running bot: all loops in one task group, from opening the database to a clean shutdown."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web as aiohttp_web

from ravebot import logs
from ravebot.access.rules import Firewall
from ravebot.agents import registry
from ravebot.agents.approvals import Approvals
from ravebot.agents.approved import ApprovedDiffs
from ravebot.agents.carryout import CarryOut
from ravebot.agents.desk import Desk
from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.progress import TurnProgress
from ravebot.agents.reception import Reception
from ravebot.agents.rights import ChainRights
from ravebot.agents.runner import AgentRunner
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.transports.acp import AcpDriver
from ravebot.agents.transports.acp.control import ControlConnections, public_key
from ravebot.agents.waiting import SandboxBinding, WaitingLoop
from ravebot.chat import Chat
from ravebot.clock import Clock, SystemClock
from ravebot.commands.people import People
from ravebot.config.file import LoadedConfig
from ravebot.config.model import Config
from ravebot.errors import ConfigError
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.receiver import webhook_handler
from ravebot.gitlab.refusals import Refusals
from ravebot.gitlab.webhook import WebhookDelivery, WebhookSecrets, signing_key
from ravebot.intake.comments import AgentComments
from ravebot.intake.conversations import RoomConversations
from ravebot.intake.diffs import RoomDiffs
from ravebot.intake.gitlab import GitLabIntake
from ravebot.intake.loop import Intake
from ravebot.intake.matrix import MatrixIntake, MatrixJournal
from ravebot.intake.poll import Poller
from ravebot.intake.reactions import RoomReactions
from ravebot.intake.rooms import Rooms
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.invites import Invites
from ravebot.matrix.rooms import RoomDirectory
from ravebot.matrix.sync import SyncLoop
from ravebot.notify.delivery import Delivery, Sender
from ravebot.notify.gitlab import GitLabSender
from ravebot.notify.matrix import MatrixSender
from ravebot.operations import hostlock
from ravebot.operations.agents.check import TrialParts
from ravebot.operations.agents.operator import AgentOperator
from ravebot.operations.agents.trials import Trials
from ravebot.operations.audit import database_path
from ravebot.operations.housekeeping import Housekeeping
from ravebot.operations.news import Operators
from ravebot.operations.operator import Operator
from ravebot.operations.readiness import Readiness
from ravebot.operations.roomwatch import RoomWatch
from ravebot.operations.service import ready
from ravebot.operations.service.logs import CONSOLES, QEMU_LOGS
from ravebot.operations.stale_notes import StaleNotes
from ravebot.operations.statewatch import StateWatch
from ravebot.parts import Core, make_core, make_diffs, make_firewall, make_gitlab, make_provider
from ravebot.providers.base import Provider
from ravebot.sandboxes import naming
from ravebot.store import inbox
from ravebot.store.database import Database
from ravebot.store.signals import POOL
from ravebot.store.targets import GITLAB, MATRIX, TARGETS, Target
from ravebot.web import admin, adminagents
from ravebot.web.metrics import Metrics
from ravebot.web.server import make_app, serve

log = structlog.get_logger()


@dataclass
class Bot:
    """The parts of a running bot."""

    config: Config
    clock: Clock
    database: Database
    metrics: Metrics
    provider: Provider
    firewall: Firewall
    gitlab: GitLab
    core: Core
    approvals: Approvals
    diffs: Diffs
    poller: Poller
    chat: Chat
    deliveries: tuple[Delivery, ...]  # except Matrix's, which the chat runs while we are logged in
    state: StateWatch
    secrets: WebhookSecrets
    driver: AcpDriver
    agents: AgentRunner
    waiting: WaitingLoop

    async def run(self) -> None:
        """Run every loop until cancelled."""
        await asyncio.to_thread(self.core.sources.clear)
        approved = ApprovedDiffs(self.database, self.diffs)
        await approved.clear()
        people = self.approvals.people
        carry_out = CarryOut(self.database, self.approvals, self.core.intents, approved)
        desk = Desk(self.config, self.approvals.telling)
        reception = Reception(self.config, people, desk)
        rooms = Rooms(self.config, people, self.database)
        comments = AgentComments(self.config, self.gitlab, people, self.database, reception, self.approvals)
        intake = Intake(
            self.database,
            {
                "gitlab": GitLabIntake(self.config, self.gitlab, people, self.core.intents, comments),
                "matrix": MatrixIntake(
                    self.config,
                    people,
                    self.core.intents,
                    self.core.views,
                    self.database,
                    agents=RoomConversations(rooms, self.core.views, reception, self.approvals),
                    reactions=RoomReactions(rooms, self.approvals),
                    diffs=RoomDiffs(rooms, self.approvals, self.diffs),
                ),
            },
        )
        logs = [(self.config.state_dir / CONSOLES, "*.log*")]
        if os.access(QEMU_LOGS, os.W_OK):  # otherwise the timer ravebot-logs removes them
            logs.append((QEMU_LOGS, f"{naming.pattern(self.config.instance)}.log*"))
        housekeeping = Housekeeping(self.clock, self.database, self.provider, self.metrics, TARGETS, tuple(logs))
        operator = Operator(self.config, self.database, self.core, self.provider, people)
        trials = Trials(TrialParts(self.config, self.database, reception, self.driver))
        agent_operator = AgentOperator(self.config, self.database, reception, self.approvals, trials)
        stale_notes = StaleNotes(
            self.database, self.gitlab, self.core.lifecycle.journal, lambda: self.core.pool.machines_known
        )
        async with AsyncExitStack() as doors, asyncio.TaskGroup() as group:
            await doors.enter_async_context(serve(self._http_app(), *self.config.http.address))
            shell = admin.make_app(operator)
            adminagents.add_routes(shell, agent_operator)
            await doors.enter_async_context(admin.serve(shell, admin.socket_path(self.config.state_dir)))
            doors.callback(ready.tell, ready.STOPPING)
            ready.tell(ready.READY)
            log.info("ravebot runs", instance=self.config.instance, instance_id=self.database.instance_id)
            for loop in (
                self.core.pool.run(),
                intake.run(),
                carry_out.run(),
                *(delivery.run() for delivery in self.deliveries),
                self.poller.run(),
                self.chat.run(),
                self._watch_provider(),
                self._watch_firewall(),
                housekeeping.forget(),
                housekeeping.count(),
                self.state.run(),
                stale_notes.run(),
                self._run_agents(),
                trials.run(),
            ):
                group.create_task(loop)

    async def _run_agents(self) -> None:
        await self.waiting.first_look()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.agents.run())
            group.create_task(self.waiting.run())

    def _http_app(self) -> aiohttp_web.Application:
        async def accept(delivery: WebhookDelivery) -> bool:
            return await self.database.write(
                lambda tx: inbox.add(
                    tx,
                    source="gitlab",
                    key=delivery.key,
                    lane=delivery.lane,
                    kind=delivery.kind,
                    body=delivery.body,
                ),
                urgent=True,
            )

        refusals = Refusals(self.clock)
        readiness = Readiness(
            config=self.config,
            clock=self.clock,
            database=self.database,
            chat=self.chat,
            gitlab=self.gitlab,
            webhooks=refusals,
            poller=self.poller,
            core=self.core,
            provider=self.provider,
            firewall=self.firewall,
            targets=TARGETS,
        )
        handler = webhook_handler(self.secrets, self.clock, accept, self.metrics.webhook_answered, refusals)
        return make_app(handler, readiness.checks(), self.metrics)

    async def _watch_provider(self) -> None:
        async for event in self.provider.events():
            log.debug("provider event", machine=event.name, what=event.what)
            self.database.signals.wake(POOL)

    async def _watch_firewall(self) -> None:
        async for _ in self.firewall.changes():
            self.core.guard.alarm()
            self.database.signals.wake(POOL)


@asynccontextmanager
async def assembled(loaded: LoadedConfig, clock: Clock) -> AsyncIterator[Bot]:
    """Open the database and create every part; closes them at the end. Raises Refused if the instance runs already."""
    config, secrets = loaded.config, loaded.secrets
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(database_path(config.state_dir), clock))
        stack.enter_context(hostlock.held(database.instance_id))
        provider = make_provider(config, database.instance_id)
        stack.push_async_callback(provider.close)
        firewall = make_firewall(config, database.instance_id, clock)
        stack.push_async_callback(firewall.close)
        gitlab = make_gitlab(config, secrets.gitlab_token, clock)
        stack.push_async_callback(gitlab.close)
        password = secrets.matrix_password or secrets.matrix_access_token
        if not password:
            raise ConfigError("matrix.password_file or matrix.access_token_file is needed, but no secret was read")
        matrix = MatrixClient(config.matrix, password, config.state_dir, on_token=logs.hide)
        stack.push_async_callback(matrix.close)
        people = People(config, database, gitlab)
        approvals = Approvals(config, ConversationTelling(config), database, people)
        control_key = await asyncio.to_thread(public_key, config.state_dir)
        own_keys = (control_key,) if control_key else ()
        core = make_core(config, database, clock, provider, firewall, gitlab, metrics, approvals, own_keys)
        rooms = RoomDirectory(matrix, config.matrix.rooms, clock, config.matrix.operations_room)
        senders: dict[Target, Sender] = {
            MATRIX: MatrixSender(config.matrix, database, core.views, matrix, rooms),
            GITLAB: GitLabSender(database, core.views, gitlab),
        }
        deliveries = {target: Delivery(database, target, senders[target], metrics.delivery_tried) for target in TARGETS}
        chat = Chat(
            client=matrix,
            rooms=rooms,
            room_watch=RoomWatch(database, matrix, rooms, config.matrix.operations_room, config.matrix.admins),
            sync=SyncLoop(
                matrix,
                MatrixJournal(database, config.matrix.command_prefix, registry.names(config)),
                clock,
                Invites(matrix, config.matrix.admins, clock, rooms.joined, rooms.is_configured),
                on_left=rooms.left,
                on_changed=rooms.changed,
                on_result=lambda result: metrics.synced("ok" if result == "ok" else "failed"),
            ),
            delivery=deliveries.pop(MATRIX),
            database=database,
            metrics=metrics,
        )
        connections = ControlConnections(config.state_dir)
        await asyncio.to_thread(connections.clear)
        driver = AcpDriver(
            config,
            database,
            TurnProgress(ConversationTelling(config)),
            connections,
            core.chain.authorize,
            may_give=ChainRights(config, database, people).still_may,
        )
        yield Bot(
            config=config,
            clock=clock,
            database=database,
            metrics=metrics,
            provider=provider,
            firewall=firewall,
            gitlab=gitlab,
            core=core,
            approvals=approvals,
            diffs=make_diffs(config, database, provider, gitlab),
            poller=Poller(config, database, gitlab, core.intents, clock, metrics.polled),
            chat=chat,
            deliveries=tuple(deliveries.values()),
            state=StateWatch(clock, database, Operators(config.matrix.operations_room, database, matrix, rooms)),
            secrets=WebhookSecrets(
                secret_token=secrets.webhook_secret,
                signing_key=signing_key(secrets.webhook_signing) if secrets.webhook_signing else None,
            ),
            driver=driver,
            agents=AgentRunner(database, driver),
            waiting=WaitingLoop(database, SandboxBinding(config, ConversationTelling(config))),
        )


async def run(loaded: LoadedConfig, clock: Clock | None = None) -> None:
    """Run until cancelled; sandboxes keep running after that."""
    async with assembled(loaded, clock or SystemClock()) as bot:
        freeze_objects()
        await bot.run()


def freeze_objects() -> None:
    """Exempt every object made so far from garbage collection: they live as long as the process, and each collection
    that visits them stops the event loop for some 40 ms (`./dev bench pool`)."""
    gc.collect()
    gc.freeze()
