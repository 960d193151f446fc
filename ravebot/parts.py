"""Puts the parts together: which adapter implements which contract, for the bot and for `cleanup`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from ravebot import logs
from ravebot.access.guard import Guard
from ravebot.access.listeners import listening_ports
from ravebot.access.nftables.firewall import NftFirewall
from ravebot.access.probes import HttpProbe
from ravebot.access.rules import Firewall, NoFirewall
from ravebot.agents.allowed import StillAllowed
from ravebot.agents.answers import AgentAnswers
from ravebot.agents.approvals import Approvals
from ravebot.agents.approved import ApprovedDiffs
from ravebot.agents.carryout import CarryOut
from ravebot.agents.desk import Desk
from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.elsewhere import ElsewhereTurns
from ravebot.agents.models.accounts import ModelAccounts
from ravebot.agents.models.exchange import ExchangeParts
from ravebot.agents.models.gateway import ModelGateway, ModelMetrics, parse_threads
from ravebot.agents.models.upstream import Upstream
from ravebot.agents.progress import TurnProgress
from ravebot.agents.reception import Reception
from ravebot.agents.rights import ChainRights
from ravebot.agents.runner import AgentRunner
from ravebot.agents.telling import ConversationTelling
from ravebot.agents.transports.acp import AcpDriver
from ravebot.agents.transports.acp.control import ControlConnections
from ravebot.agents.transports.acp.doors.sandbox_doors import SandboxDoors
from ravebot.agents.transports.choice import ChosenTransport
from ravebot.agents.transports.contract import DoorServer
from ravebot.agents.transports.elsewhere import ElsewhereDriver
from ravebot.agents.transports.webhook.poster import WebhookPoster
from ravebot.agents.transports.webhook.sender import WebhookSender
from ravebot.agents.waiting import SandboxBinding, WaitingLoop
from ravebot.clock import Clock
from ravebot.config.file import LoadedConfig
from ravebot.config.model import Config
from ravebot.config.secrets import signing_key
from ravebot.gitlab.ci.keys import JobKeys
from ravebot.gitlab.ci.places import JobPlaces
from ravebot.gitlab.ci.tokens import JobTokens
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.transport import Told, tell_nobody
from ravebot.images.pipelines.announcing import AnnouncedImages
from ravebot.operations.gitlabroute import gitlab_route
from ravebot.providers.base import Provider, Remains
from ravebot.providers.libvirt import LibvirtProvider, LibvirtRemains
from ravebot.sandboxes.chain.guestjobs import GuestJobs
from ravebot.sandboxes.chain.letting import LettingIn, PeoplesKeys
from ravebot.sandboxes.chain.results import Results
from ravebot.sandboxes.chain.sources import Sources
from ravebot.sandboxes.chain.stages import Chain
from ravebot.sandboxes.edges import CodeHost, Meter, WebProbe
from ravebot.sandboxes.gather import Views
from ravebot.sandboxes.intents import Asks, Intents
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.lifecycle import Lifecycle
from ravebot.sandboxes.pool.actions import Actions
from ravebot.sandboxes.pool.admission import Admission
from ravebot.sandboxes.pool.builds import Builds
from ravebot.sandboxes.pool.health import Health
from ravebot.sandboxes.pool.loop import Pool
from ravebot.sandboxes.pool.sweep import Sweep
from ravebot.sandboxes.projectfiles import ProjectFiles
from ravebot.sandboxes.runloop import Runs, WhyNot
from ravebot.store.database import Database
from ravebot.tools.calls import ToolCalls
from ravebot.tools.workbench import Workbench
from ravebot.web.ci.door import JobDoor
from ravebot.web.ci.gate import JobGate
from ravebot.web.ci.routes import JobRoutes


def make_provider(config: Config, instance_id: str) -> Provider:
    return LibvirtProvider(
        config.provider,
        instance=config.instance,
        instance_id=instance_id,
        egress=config.sandbox.egress,
        state_dir=config.state_dir,
    )


def make_remains(config: Config, instance_id: str) -> Remains:
    return LibvirtRemains(config.provider.uri, instance_id)


def make_firewall(config: Config, instance_id: str, clock: Clock) -> Firewall:
    if config.provider.network == "none":
        return NoFirewall()
    return NftFirewall(
        instance_id=instance_id,
        bridge=config.provider.bridge,
        sandbox=config.sandbox,
        access=config.access,
        clock=clock,
    )


@dataclass(frozen=True)
class Core:
    """The pool, the parts that it works with, and the intents by which sandboxes are started and stopped."""

    lifecycle: Lifecycle
    intents: Intents
    views: Views
    guard: Guard
    sources: Sources
    pool: Pool
    chain: Chain
    runs: Runs


def make_core(
    config: Config,
    database: Database,
    clock: Clock,
    provider: Provider,
    firewall: Firewall,
    code_host: CodeHost,
    meter: Meter,
    asking: Asks | None = None,
    own_keys: tuple[str, ...] = (),
    why_no_run: WhyNot | None = None,
    web: WebProbe | None = None,
) -> Core:
    """Create the domain's parts; those of HTTP, Matrix and the outbox are created elsewhere.

    `own_keys`: public keys of ravebot's own, which every machine lets in. `why_no_run`: why somebody's command is not
    started in a sandbox. `web`: how guests' web ports are asked; by HTTP unless something else is given.
    """
    journal = Journal(config, meter)
    lifecycle = Lifecycle(config, journal)
    guard = Guard(firewall, database, journal, meter, config.sandbox.web_port)
    sources = Sources(code_host, config.state_dir / "sources", config.sandbox.max_source)
    shared = (config, clock, database, provider, lifecycle)
    jobs = GuestJobs(provider, config.sandbox.user)
    letting_in = LettingIn(config, database, provider, journal, PeoplesKeys(code_host, clock), own_keys)
    chain = Chain(
        *shared,
        sources=sources,
        letting_in=letting_in,
        jobs=jobs,
        results=Results(database, jobs, logs.hidden),
        web=web or HttpProbe(),
        guard=guard.ensure,
        meter=meter,
    )
    builds = Builds(*shared, chain=chain, guard=guard, meter=meter)
    health = Health(*shared, chain=chain, meter=meter)
    actions = Actions(config, database, provider, lifecycle, guard, meter, builds, health)
    admission = Admission(*shared, meter=meter, busy_ports=listening_ports)
    sweep = Sweep(clock, database, provider, meter, config.pool.orphan_sweep)
    pool = Pool(*shared, actions=actions, admission=admission, guard=guard, sweep=sweep, meter=meter)
    return Core(
        lifecycle,
        Intents(config, lifecycle, asking),
        Views(config),
        guard,
        sources,
        pool,
        chain,
        Runs(database, jobs, config, why_no_run),
    )


@dataclass(frozen=True)
class AgentParts:
    """What takes messages to agents, has agents answer them, and carries out what people approve."""

    approvals: Approvals
    diffs: Diffs
    approved: ApprovedDiffs
    carry_out: CarryOut
    reception: Reception
    tools: ToolCalls
    doors: SandboxDoors
    driver: AcpDriver
    runner: AgentRunner
    waiting: WaitingLoop
    webhooks: WebhookSender

    async def clear(self) -> None:
        """Remove the files that an earlier process left, before anything runs."""
        await self.approved.clear()
        await asyncio.to_thread(self.driver.connections.clear)
        await asyncio.to_thread(self.doors.clear)

    async def run(self) -> None:
        """Run until cancelled. Nothing is given to an agent before the first look at what turns wait for."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.carry_out.run())
            await self.waiting.first_look()
            group.create_task(self.doors.run())
            group.create_task(self.runner.run())
            group.create_task(self.webhooks.run())
            group.create_task(self.waiting.run())


def make_diffs(config: Config, database: Database, provider: Provider, gitlab: GitLab) -> Diffs:
    sandbox = config.sandbox
    return Diffs(database, provider, gitlab, sandbox.user, config.state_dir, sandbox.max_source)


def make_agents(
    config: Config,
    database: Database,
    approvals: Approvals,
    core: Core,
    provider: Provider,
    gitlab: GitLab,
    signing_keys: Mapping[str, str],
    models: ModelGateway,
) -> AgentParts:
    """`signing_keys`: of the agents with `webhook`, by name, as their files have them."""
    telling, people = approvals.telling, approvals.people
    diffs = make_diffs(config, database, provider, gitlab)
    reception = Reception(config, people, Desk(config, telling))
    progress, may_give = TurnProgress(telling), ChainRights(config, database, people).still_may
    turns = ElsewhereTurns(config, progress)
    allowed = StillAllowed(database, turns.give_up, may_give)
    answers = AgentAnswers(config, database, turns, allowed)
    tools = ToolCalls(Workbench(config, database, people, core.intents, core.views, reception, diffs, answers))
    connections = ControlConnections(config.state_dir)
    doors = SandboxDoors(database, connections, _servers(config, models, tools))
    approved = ApprovedDiffs(database, diffs, config.matrix.users)
    driver = AcpDriver(
        config,
        database,
        progress,
        connections,
        core.chain.authorize,
        may_give=may_give,
        doors=doors,
    )
    chosen = ChosenTransport(config, database, driver, ElsewhereDriver(database, turns, allowed))
    keys = {agent: signing_key(text) for agent, text in signing_keys.items()}
    return AgentParts(
        approvals=approvals,
        diffs=diffs,
        approved=approved,
        carry_out=CarryOut(database, approvals, core.intents, approved),
        reception=reception,
        tools=tools,
        doors=doors,
        driver=driver,
        runner=AgentRunner(database, chosen),
        waiting=WaitingLoop(database, SandboxBinding(config, telling)),
        webhooks=WebhookSender(database, turns, allowed, WebhookPoster(), keys),
    )


def _servers(config: Config, models: ModelGateway, tools: ToolCalls) -> tuple[DoorServer, ...]:
    """What agents find in their sandboxes."""
    if not any(agent.acp for agent in config.agents):
        return ()
    from ravebot.web.api.server import SandboxMcp  # importing MCP's library takes a second

    return models, SandboxMcp(tools)


def make_models(
    config: Config, keys: Mapping[str, str], database: Database, telling: ConversationTelling, metrics: ModelMetrics
) -> ModelGateway:
    """The gateway to models; `keys` by the models' names."""
    accounts = ModelAccounts(config, database, telling)
    return ModelGateway(ExchangeParts(config.models, accounts, Upstream(keys), parse_threads()), metrics)


def make_job_routes(
    config: Config,
    clock: Clock,
    database: Database,
    gitlab: GitLab,
    core: Core,
    look_now: Callable[[int, str], Awaitable[None]],
    on_answer: Callable[[int], None],
) -> JobRoutes:
    """The door for jobs of GitLab's CI. `look_now` has a project compared with GitLab."""
    assert config.gitlab.ci is not None
    issuer = str(config.gitlab.ci.issuer or config.gitlab.url)
    tokens = JobTokens(JobKeys(gitlab.ci.keys), issuer.rstrip("/"), config.ci_audience.rstrip("/"), clock)
    door = JobDoor(
        config,
        database,
        places=JobPlaces(config, gitlab.ci),
        files=ProjectFiles(database, gitlab),
        intents=core.intents,
        views=core.views,
        look_now=look_now,
        images=AnnouncedImages(config) if config.provider.pipeline_images else None,
    )
    return JobRoutes(door, JobGate(tokens), on_answer)


def make_gitlab(loaded: LoadedConfig, clock: Clock, told: Told = tell_nobody) -> GitLab:
    route = gitlab_route(loaded)
    return GitLab(str(loaded.config.gitlab.url), loaded.secrets.gitlab_token, clock, route=route, told=told)
