"""The keys of the configuration file, with their types, units and limits; `config.file` reads the file."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl

from ravebot.config.patterns import matches_project
from ravebot.config.values import (
    AbsolutePath,
    ApiPath,
    Command,
    DayOrLonger,
    Destination,
    DistinctDurations,
    Duration,
    FilePattern,
    FortnightOrLonger,
    GuestNetwork,
    HostName,
    ImageName,
    LabelName,
    ListenAddress,
    ModelPattern,
    Network,
    PortRange,
    PositiveDuration,
    ProjectPattern,
    RoomName,
    SecretFile,
    StateDir,
    Tokens,
    UserId,
    host_and_port,
    size_from,
)

MOST_MACHINES = 10_000
"""The most machines that a pool may run at a time."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Room(Section):
    room: RoomName
    projects: tuple[ProjectPattern, ...] = Field(min_length=1)
    agent: str | None = None


class MatrixConfig(Section):
    homeserver: HttpUrl
    user_id: UserId
    password_file: SecretFile | None = None
    access_token_file: SecretFile | None = None
    store_passphrase_file: SecretFile | None = None
    command_prefix: str = Field("!rave", pattern=r"^\S{1,20}$")
    mentions: Literal["edit", "message", "none"] = "edit"
    admins: tuple[UserId, ...] = ()
    operations_room: RoomName | None = None
    users: dict[UserId, str] = {}
    rooms: tuple[Room, ...] = ()

    def short_refs(self, room: str) -> bool:
        """Whether a bare number names a merge request in a room: it is mapped to exactly one project."""
        projects = {project for mapped in self.rooms if mapped.room == room for project in mapped.projects}
        return len(projects) == 1 and not any("*" in project for project in projects)

    @property
    def room_names(self) -> tuple[str, ...]:
        """Every configured room (alias or id), each once."""
        names = (*(room.room for room in self.rooms), self.operations_room)
        return tuple(dict.fromkeys(name for name in names if name is not None))


class WebhookConfig(Section):
    secret_token_file: SecretFile | None = None
    signing_token_file: SecretFile | None = None
    previous_secret_token_file: SecretFile | None = None
    previous_signing_token_file: SecretFile | None = None


class LabelsConfig(Section):
    """Labels of merge requests that say what their sandboxes are like, whatever `.rave.yml` says."""

    skip: LabelName = "sandbox::off"
    large: LabelName = "sandbox::large"


class CiConfig(Section):
    """The door for jobs of GitLab's CI: it is open where this section is."""

    audience: str | None = Field(None, pattern=r"^[!-~]{1,255}$")
    issuer: HttpUrl | None = None


class GitLabConfig(Section):
    url: HttpUrl
    token_file: SecretFile
    ca_file: AbsolutePath | None = None
    proxy: HttpUrl | None = None
    proxy_login_file: SecretFile | None = None
    projects: tuple[ProjectPattern, ...] = Field(min_length=1)
    drafts: Literal["start", "wait"] = "start"
    labels: LabelsConfig = LabelsConfig()
    environments: bool = True
    commit_status: bool = True
    ci: CiConfig | None = None
    webhook: WebhookConfig
    poll: PositiveDuration = timedelta(minutes=5)
    request_limit: PositiveDuration = timedelta(seconds=60)


class HttpConfig(Section):
    listen: ListenAddress = "127.0.0.1:8080"
    public_url: HttpUrl | None = None

    @property
    def address(self) -> tuple[str, int]:
        return host_and_port(self.listen)


class ApiConfig(Section):
    listen: ListenAddress | None = None
    public_url: HttpUrl | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """None: nothing listens."""
        return host_and_port(self.listen) if self.listen else None


class PoolConfig(Section):
    max_running: int = Field(2, ge=1, le=MOST_MACHINES)
    warm: int = Field(0, ge=0, le=0)
    lifetime: PositiveDuration = timedelta(hours=2)
    max_lifetime: PositiveDuration = timedelta(hours=8)
    warn_before: DistinctDurations = (timedelta(minutes=30), timedelta(minutes=10))
    shutdown_grace: Duration = timedelta(seconds=30)
    build_timeout: PositiveDuration = timedelta(minutes=5)
    orphan_sweep: PositiveDuration = timedelta(minutes=5)


class ConnectionsPerMinute(Section):
    ssh: int = Field(10, ge=1)
    web: int = Field(300, ge=1)


class HttpTest(Section):
    http: str = Field(pattern=r"^/[!-~]{0,500}$")


class RunTest(Section):
    run: Command


class StageTimeouts(Section):
    """How long each stage, from the booted machine to the announcement, may take."""

    copy_in: PositiveDuration = Field(timedelta(minutes=10), alias="copy")
    setup: PositiveDuration = timedelta(minutes=15)
    test: PositiveDuration = timedelta(minutes=10)
    other: PositiveDuration = timedelta(minutes=1)


class SandboxConfig(Section):
    memory: Annotated[int, size_from("64MiB")] = 4 * 1024**3
    vcpus: int = Field(2, ge=1, le=256)
    disk: Annotated[int, size_from("64MiB")] = 20 * 1024**3
    user: str = Field("agent", pattern=r"^[a-z_][a-z0-9_-]{0,30}$")
    web_port: int = Field(3002, ge=1, le=65535)
    host: HostName
    ssh_ports: PortRange = PortRange(first=2200, last=2299)
    web_ports: PortRange = PortRange(first=3000, last=3099)
    connections_per_minute: ConnectionsPerMinute = ConnectionsPerMinute(ssh=10, web=300)
    egress: Literal["internet", "none"] = "internet"
    allow: tuple[Destination, ...] = ()
    max_source: Annotated[int, size_from("1MiB")] = 512 * 1024**2
    setup: tuple[Command, ...] = ("./.rave/setup",)
    smoke_tests: tuple[HttpTest | RunTest, ...] = ()
    junit: tuple[FilePattern, ...] = Field((), max_length=10)
    keep_failed: Duration = timedelta(0)
    timeouts: StageTimeouts = StageTimeouts()


class LimitsConfig(Section):
    """The most that a project may ask for in its `.rave.yml`; never less than what every sandbox gets."""

    memory: Annotated[int, size_from("64MiB")] = 8 * 1024**3
    vcpus: int = Field(4, ge=1, le=256)
    disk: Annotated[int, size_from("64MiB")] = 40 * 1024**3
    lifetime: PositiveDuration = timedelta(hours=8)


class AccessConfig(Section):
    allow_from: tuple[Network, ...] = ()


class BridgeConfig(Section):
    name: str = Field("ravebot0", pattern=r"^[a-z][a-z0-9_-]{0,14}$")
    subnet: GuestNetwork = ipaddress.IPv4Network("10.80.0.0/24")


class PipelineImagesConfig(Section):
    """Images that jobs of merge requests' pipelines build: the section switches them on."""

    folder: AbsolutePath | None = None
    largest: Annotated[int, size_from("1MiB")] = 4 * 1024**3
    keep: Annotated[int, size_from("1MiB")] = 40 * 1024**3
    longest_wait: PositiveDuration = timedelta(hours=1)


class LibvirtConfig(Section):
    type: Literal["libvirt"] = "libvirt"
    uri: str = "qemu:///system"
    network: Literal["bridge", "none"] = "bridge"
    bridge: BridgeConfig = BridgeConfig()
    storage_pool: AbsolutePath = Path("/var/lib/ravebot/disks")
    image: AbsolutePath
    images: dict[ImageName, AbsolutePath] = {}
    pipeline_images: PipelineImagesConfig | None = None
    kernel: AbsolutePath | None = None
    initrd: AbsolutePath | None = None
    cmdline: str = ""
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"


class AcpConfig(Section):
    command: tuple[Command, ...] = Field(min_length=1, max_length=50)
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], str] = {}


class AgentWebhook(Section):
    """Where messages to an agent that works elsewhere are sent, and the key that signs them."""

    url: HttpUrl
    signing_key_file: SecretFile


class AgentLimits(Section):
    turn: PositiveDuration = timedelta(minutes=30)
    messages_per_day: int = Field(200, ge=1)
    tokens_per_day: Tokens = 20_000_000


ToolKind = Literal["read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other"]
"""https://agentclientprotocol.com/protocol/tool-calls"""


class AgentConfig(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$")
    owner: str | None = None
    projects: tuple[ProjectPattern, ...] = ()
    acp: AcpConfig | None = None
    models: tuple[str, ...] = ()
    webhook: AgentWebhook | None = None
    inbox: bool = False
    approve: tuple[ToolKind, ...] = ()
    forks: bool = False
    limits: AgentLimits = AgentLimits()
    ssh_keys: tuple[str, ...] = ()

    @property
    def can_be_spoken_to(self) -> bool:
        """Whether it is an agent to talk to, and not only SSH keys."""
        return self.acp is not None or self.works_elsewhere

    @property
    def works_elsewhere(self) -> bool:
        """Whether it is spoken to without a sandbox: its program runs wherever its owner has it."""
        return self.webhook is not None or self.inbox

    def serves(self, project_path: str) -> bool:
        """Whether it may be spoken to about that project's merge requests."""
        return matches_project(self.projects, project_path)


class ModelConfig(Section):
    """A service of models that agents use without its key."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")
    url: HttpUrl
    key_file: SecretFile | None = None
    header: Literal["authorization", "x-api-key", "x-goog-api-key"] = "authorization"
    paths: tuple[ApiPath, ...] = Field(min_length=1, max_length=20)
    allow: tuple[ModelPattern, ...] = Field(min_length=1, max_length=100)
    max_output: Tokens = 32_000
    max_request: Annotated[int, size_from("1KiB")] = 8 * 1024**2
    server_tools: Literal["refuse", "allow"] = "refuse"

    def allows(self, model: str) -> bool:
        """Whether requests may name that model."""
        return any(fnmatchcase(model, pattern) for pattern in self.allow)


class PersonBudget(Section):
    messages_per_day: int = Field(500, ge=1)
    tokens_per_day: Tokens = 40_000_000


class SandboxBudget(Section):
    tokens: Tokens = 20_000_000


class Budgets(Section):
    person: PersonBudget = PersonBudget(messages_per_day=500)
    sandbox: SandboxBudget = SandboxBudget()


class MonitoringConfig(Section):
    """What ravebot tells of how it is doing, beside its metrics."""

    alertmanager_token_file: SecretFile | None = None
    usage_report: RoomName | None = None
    projects: int = Field(50, ge=1, le=1000)


class KeepConfig(Section):
    """How long what may be forgotten is kept."""

    consoles: DayOrLonger = timedelta(days=7)
    output: DayOrLonger = timedelta(days=7)
    messages: DayOrLonger = timedelta(days=7)
    requests: FortnightOrLonger = timedelta(days=14)  # GitLab and Matrix may deliver one again for that long
    talks: DayOrLonger = timedelta(days=30)


class Config(Section):
    """The whole configuration file."""

    instance: str = Field("main", pattern=r"^[a-z0-9](?:[a-z0-9-]{0,14}[a-z0-9])?$")
    state_dir: StateDir = Path("/var/lib/ravebot")
    matrix: MatrixConfig
    gitlab: GitLabConfig
    http: HttpConfig = HttpConfig(listen="127.0.0.1:8080")
    api: ApiConfig = ApiConfig()
    pool: PoolConfig = PoolConfig(max_running=2)
    sandbox: SandboxConfig
    limits: LimitsConfig = LimitsConfig(vcpus=4)
    access: AccessConfig = AccessConfig()
    provider: LibvirtConfig
    agents: tuple[AgentConfig, ...] = ()
    models: tuple[ModelConfig, ...] = ()
    budgets: Budgets = Budgets()
    monitoring: MonitoringConfig = MonitoringConfig()
    keep: KeepConfig = KeepConfig()

    @property
    def pipeline_images(self) -> Path:
        """The folder for images of pipelines: below `state_dir`, which QEMU's user has to get through for disks too."""
        kept = self.provider.pipeline_images
        return (kept and kept.folder) or self.state_dir / "pipeline-images"

    def rooms_of(self, project_path: str) -> tuple[str, ...]:
        """The rooms (as configured: alias or id) that a project is mapped to, each once."""
        rooms = (room.room for room in self.matrix.rooms if matches_project(room.projects, project_path))
        return tuple(dict.fromkeys(rooms))

    @property
    def ci_audience(self) -> str:
        """What tokens of jobs must be for; "" where jobs find no door."""
        ci = self.gitlab.ci
        if ci is None:
            return ""
        return ci.audience or (str(self.http.public_url) if self.http.public_url else "")

    def serves(self, project_path: str) -> bool:
        """Whether that project's merge requests get sandboxes."""
        return matches_project(self.gitlab.projects, project_path)
