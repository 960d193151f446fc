"""The running bot: all loops in one task group, from opening the database to a clean shutdown."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import structlog
from aiohttp import web as aiohttp_web

from ravebot import logs
from ravebot.access.rules import Firewall
from ravebot.agents import registry
from ravebot.agents.approvals import Approvals
from ravebot.agents.rights import RunRights
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.transports.acp.control import public_key
from ravebot.chat import Chat
from ravebot.clock import Clock, SystemClock
from ravebot.commands.people import People
from ravebot.config.file import LoadedConfig
from ravebot.config.model import Config
from ravebot.config.secrets import Secrets
from ravebot.errors import ConfigError
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.receiver import webhook_handler
from ravebot.gitlab.refusals import Refusals
from ravebot.gitlab.webhook import WebhookDelivery, WebhookSecrets, signing_key
from ravebot.images.pipelines.loop import PipelineImageLoop
from ravebot.intake.alerts import AlertIntake
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
from ravebot.notify.environments.loop import EnvironmentLoop
from ravebot.notify.environments.steps import EnvironmentSteps
from ravebot.notify.environments.stops import EnvironmentStops
from ravebot.notify.gitlab import GitLabSender
from ravebot.notify.matrix import MatrixSender
from ravebot.operations import hostlock
from ravebot.operations.agents.check import TrialParts
from ravebot.operations.agents.operator import AgentOperator
from ravebot.operations.agents.trials import Trials
from ravebot.operations.audit.weekly import render_head
from ravebot.operations.hooks.watch import HookWatch
from ravebot.operations.housekeeping import Housekeeping
from ravebot.operations.measuring import Measuring
from ravebot.operations.news import Operators
from ravebot.operations.offline import database_path
from ravebot.operations.operator import Operator
from ravebot.operations.readiness import Readiness
from ravebot.operations.roomwatch import RoomWatch
from ravebot.operations.service import ready
from ravebot.operations.service.logs import CONSOLES, QEMU_LOGS
from ravebot.operations.stale_notes import StaleNotes
from ravebot.operations.statewatch import StateWatch
from ravebot.operations.tokens.operator import TokenOperator
from ravebot.operations.usage.weekly import render_usage
from ravebot.operations.weekly import Weekly, WeeklyNews
from ravebot.parts import (
    AgentParts,
    Core,
    make_agents,
    make_core,
    make_firewall,
    make_gitlab,
    make_job_routes,
    make_models,
    make_provider,
)
from ravebot.providers.base import Provider
from ravebot.sandboxes import naming
from ravebot.store import inbox
from ravebot.store.alerts import Heard
from ravebot.store.database import Database
from ravebot.store.signals import POOL
from ravebot.store.targets import GITLAB, MATRIX, TARGETS, Target
from ravebot.web import admin, adminagents, admintokens
from ravebot.web.alerts.door import AlertDoor
from ravebot.web.alerts.reading import AlertDelivery
from ravebot.web.api.gate import Gate
from ravebot.web.metrics import Metrics
from ravebot.web.server import make_app, serve

log = structlog.get_logger()

_WEEKS_OF_USAGE = 2
"""That are reported if ravebot was down; those before are for `ravebot usage`."""


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
    people: People
    poller: Poller
    chat: Chat
    deliveries: tuple[Delivery, ...]  # except Matrix's, which the chat runs while we are logged in
    state: StateWatch
    secrets: WebhookSecrets
    alert_token: str | None = field(repr=False)
    agents: AgentParts
    hooks: HookWatch
    refusals: Refusals  # of webhooks
    alert_refusals: Refusals
    stops: EnvironmentStops

    async def run(self) -> None:
        """Run every loop until cancelled."""
        await asyncio.to_thread(self.core.sources.clear)
        await self.agents.clear()
        logs = [(self.config.state_dir / CONSOLES, "*.log*")]
        if os.access(QEMU_LOGS, os.W_OK):  # otherwise the timer ravebot-logs removes them
            logs.append((QEMU_LOGS, f"{naming.pattern(self.config.instance)}.log*"))
        housekeeping = Housekeeping(self.clock, self.database, self.provider, self.config.keep, tuple(logs))
        measuring = Measuring(
            self.config, self.clock, self.database, self.provider, self.metrics, TARGETS, lambda: self.poller.projects
        )
        operator = Operator(self.config, self.database, self.core, self.provider, self.people)
        reception, approvals = self.agents.reception, self.agents.approvals
        trials = Trials(TrialParts(self.config, self.database, reception, self.agents.driver, self.agents.webhooks))
        agent_operator = AgentOperator(self.config, self.database, reception, approvals, trials)
        stale_notes = StaleNotes(
            self.database, self.gitlab, self.core.lifecycle.journal, lambda: self.core.pool.machines_known
        )
        async with AsyncExitStack() as doors, asyncio.TaskGroup() as group:
            await doors.enter_async_context(serve(self._http_app(), *self.config.http.address))
            shell = admin.make_app(operator)
            adminagents.add_routes(shell, agent_operator)
            admintokens.add_routes(shell, TokenOperator(self.config, self.database, self.people))
            await doors.enter_async_context(admin.serve(shell, admin.socket_path(self.config.state_dir)))
            if self.config.api.address is not None:
                from ravebot.web.api.server import serve_api  # importing MCP's library takes a second

                gate = Gate(self.database)
                told = self.metrics.api_answered
                await doors.enter_async_context(serve_api(self.config.api, self.agents.tools, gate, told))
            doors.callback(ready.tell, ready.STOPPING)
            ready.tell(ready.READY)
            log.info("ravebot runs", instance=self.config.instance, instance_id=self.database.instance_id)
            for loop in (
                self.core.pool.run(),
                self.core.runs.run(),
                self._intake().run(),
                *(delivery.run() for delivery in self.deliveries),
                self.poller.run(),
                self.chat.run(),
                self._watch_provider(),
                self._watch_firewall(),
                housekeeping.forget(),
                measuring.run(),
                measuring.watch_loop(),
                self.state.run(),
                stale_notes.run(),
                *self._environments(),
                PipelineImageLoop(self.config, self.database, self.core.lifecycle, self.gitlab.pipelines).run(),
                self.agents.run(),
                trials.run(),
                self.hooks.run(),
                Weekly(self.database, self._weekly_news()).run(),
            ):
                group.create_task(loop)

    def _weekly_news(self) -> tuple[WeeklyNews, ...]:
        """What is told once a week, and where."""
        operations, usage = self.config.matrix.operations_room, self.config.monitoring.usage_report
        news = [WeeklyNews("log head", operations, render_head)] if operations else []
        news += [WeeklyNews("usage", usage, render_usage, catch_up=_WEEKS_OF_USAGE)] if usage else []
        return tuple(news)

    def _intake(self) -> Intake:
        """What handles the requests of people and GitLab."""
        config, people, views, intents = self.config, self.people, self.core.views, self.core.intents
        reception, approvals = self.agents.reception, self.agents.approvals
        rooms = Rooms(config, people, self.database)
        comments = AgentComments(config, self.gitlab, people, self.database, reception, approvals)
        matrix = MatrixIntake(
            config,
            people,
            intents,
            views,
            self.database,
            agents=RoomConversations(rooms, views, reception, approvals),
            reactions=RoomReactions(rooms, approvals),
            diffs=RoomDiffs(rooms, approvals, self.agents.diffs),
        )
        gitlab = GitLabIntake(config, self.gitlab, people, intents, comments)
        return Intake(self.database, {"gitlab": gitlab, "matrix": matrix})

    def _environments(self) -> tuple[Coroutine[None, None, None], ...]:
        """What shows sandboxes in GitLab beside the note."""
        lifecycle, calls = self.core.lifecycle, self.gitlab.environments
        steps = EnvironmentSteps(self.config, calls)
        loop = EnvironmentLoop(self.database, self.core.views, lifecycle, steps)
        return loop.run(), self.stops.run()

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

        readiness = Readiness(
            config=self.config,
            clock=self.clock,
            database=self.database,
            chat=self.chat,
            gitlab=self.gitlab,
            webhooks=self.refusals,
            alerts=self.alert_refusals,
            poller=self.poller,
            core=self.core,
            provider=self.provider,
            firewall=self.firewall,
            targets=TARGETS,
        )
        handler = webhook_handler(self.secrets, self.clock, accept, self.metrics.webhook_answered, self.refusals)
        return make_app(handler, readiness.checks(), self.metrics, add_more=self._more_routes)

    def _more_routes(self, app: aiohttp_web.Application) -> None:
        """Open the doors that the configuration asks for: for alerts, and for jobs of GitLab's CI."""
        room = self.config.matrix.operations_room
        if self.alert_token and room:
            intake = AlertIntake(self.database, room)

            async def take(delivery: AlertDelivery) -> Counter[Heard]:
                return await intake.take(delivery.alerts, delivery.left_out)

            AlertDoor(self.alert_token, take, self.metrics, self.alert_refusals).add_to(app)

        async def look_now(project_id: int, path: str) -> None:
            self.poller.ask_for(project_id, path)
            self.stops.ask_for(project_id)

        if self.config.gitlab.ci is not None:
            told = self.metrics.job_answered
            routes = make_job_routes(self.config, self.clock, self.database, self.gitlab, self.core, look_now, told)
            routes.add_to(app)

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
    metrics = Metrics(projects=config.monitoring.projects)
    metrics.limits_known(config.pool.max_running, config.sandbox.ssh_ports.size, config.sandbox.web_ports.size)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(database_path(config.state_dir), clock))
        stack.enter_context(hostlock.held(database.instance_id))
        provider = make_provider(config, database.instance_id)
        stack.push_async_callback(provider.close)
        firewall = make_firewall(config, database.instance_id, clock)
        stack.push_async_callback(firewall.close)
        gitlab = make_gitlab(loaded, clock, metrics.gitlab_answered)
        stack.push_async_callback(gitlab.close)
        password = secrets.matrix_password or secrets.matrix_access_token
        if not password:
            raise ConfigError("matrix.password_file or matrix.access_token_file is needed, but no secret was read")
        matrix = MatrixClient(
            config.matrix, password, config.state_dir, on_token=logs.hide, on_answer=metrics.matrix_answered
        )
        stack.push_async_callback(matrix.close)
        people = People(config, database, gitlab)
        telling = ConversationTelling(config)
        approvals = Approvals(config, telling, database, people)
        models = make_models(config, secrets.model_keys, database, telling, metrics)
        stack.push_async_callback(models.close)
        control_key = await asyncio.to_thread(public_key, config.state_dir)
        own_keys = (control_key,) if control_key else ()
        core = make_core(
            config,
            database,
            clock,
            provider,
            firewall,
            gitlab,
            metrics,
            approvals,
            own_keys,
            RunRights(database, people).why_not,
        )
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
        refusals = Refusals(clock)
        hooks = HookWatch(loaded, database, clock, lambda: poller.projects, lambda: refusals.last_at)
        poller = Poller(config, database, gitlab, core.intents, clock, metrics.polled, hooks.is_right, refusals.missed)
        yield Bot(
            config=config,
            clock=clock,
            database=database,
            metrics=metrics,
            provider=provider,
            firewall=firewall,
            gitlab=gitlab,
            core=core,
            people=people,
            poller=poller,
            chat=chat,
            deliveries=tuple(deliveries.values()),
            state=StateWatch(clock, database, Operators(config.matrix.operations_room, database, matrix, rooms)),
            secrets=_webhook_secrets(secrets),
            alert_token=secrets.alertmanager_token,
            hooks=hooks,
            refusals=refusals,
            alert_refusals=Refusals(clock, "requests to /webhooks/alertmanager"),
            stops=EnvironmentStops(config, database, gitlab.environments, core.lifecycle, clock),
            agents=make_agents(config, database, approvals, core, provider, gitlab, secrets.agent_signing, models),
        )


def _webhook_secrets(secrets: Secrets) -> WebhookSecrets:
    def pair(token: str | None, signing: str | None, previous: WebhookSecrets | None = None) -> WebhookSecrets:
        return WebhookSecrets(token, signing_key(signing) if signing else None, previous)

    earlier = (secrets.previous_webhook_secret, secrets.previous_webhook_signing)
    previous = pair(*earlier) if any(earlier) else None
    return pair(secrets.webhook_secret, secrets.webhook_signing, previous)


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
