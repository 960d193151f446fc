"""What an operator can configure: the shape, units and limits of every key of the YAML file.

Reading the file, with every error at once, is `configfile`'s work.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, HttpUrl, model_validator

_DURATION = re.compile(r"(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m(?:in)?)?\s*(?:(\d+)s)?")
_SIZE_UNITS = {
    "": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4,
}  # fmt: skip


def parse_duration(text: object) -> timedelta:
    """A duration as people write it: `2h`, `1h30m`, `90s`, `1d`. Raises ValueError, saying how to write one."""
    if isinstance(text, timedelta):
        return text
    if isinstance(text, str) and len(text) <= 32:
        match = _DURATION.fullmatch(text.strip().lower())
        if match and any(match.groups()):
            days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
            try:
                return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
            except OverflowError:
                pass
    raise ValueError("write a duration like 90s, 30m, 2h, 1h30m or 1d")


def parse_size(text: object) -> int:
    """A size in bytes as people write it: `4GiB`, `512MiB`, `20G` (G is GiB). Raises ValueError, saying how."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if isinstance(text, str):
        match = re.fullmatch(r"(\d{1,15})\s*([A-Za-z]{0,3})", text.strip())
        if match and match[2].upper() in _SIZE_UNITS:
            return int(match[1]) * _SIZE_UNITS[match[2].upper()]
    raise ValueError("write a size like 512MiB or 4GiB")


class PortRange(BaseModel):
    """Ports from `first` to `last`, both included; written `2200-2299`."""

    model_config = ConfigDict(frozen=True)
    first: int = Field(ge=1024, le=65535)
    last: int = Field(ge=1024, le=65535)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            match = re.fullmatch(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*", value)
            if not match:
                raise ValueError("write a port range like 2200-2299")
            return {"first": int(match[1]), "last": int(match[2])}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first > self.last:
            raise ValueError("the first port of a range must not be above the last")
        return self

    @property
    def ports(self) -> range:
        return range(self.first, self.last + 1)

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("write an absolute path")
    return path


def _glob(pattern: str) -> str:
    if not re.fullmatch(r"[\w.\-*/]{1,255}", pattern):
        raise ValueError("write a project path such as group/app, or a pattern such as group/*")
    return pattern


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
SecretFile = Annotated[Path, AfterValidator(_absolute)]
"""A file that holds one secret; who may read it is checked when the configuration is loaded."""
ProjectPattern = Annotated[str, AfterValidator(_glob)]
UserId = Annotated[str, Field(pattern=r"^@[^\s:]{1,200}:[^\s]{1,200}$")]
RoomName = Annotated[str, Field(pattern=r"^[#!][^\s]{1,254}$")]


def matches_project(patterns: tuple[str, ...], path: str) -> bool:
    """Whether a project's full path is named by one of the patterns (`*` also crosses `/`)."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Room(Section):
    room: RoomName
    projects: tuple[ProjectPattern, ...] = Field(min_length=1)


class MatrixConfig(Section):
    homeserver: HttpUrl
    user_id: UserId
    password_file: SecretFile | None = None
    access_token_file: SecretFile | None = None
    store_passphrase_file: SecretFile | None = None
    command_prefix: str = Field("!rave", pattern=r"^\S{1,20}$")
    admins: tuple[UserId, ...] = ()
    users: dict[UserId, str] = {}
    rooms: tuple[Room, ...] = ()

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        if (self.password_file is None) == (self.access_token_file is None):
            raise ValueError("give exactly one of password_file and access_token_file")
        return self


class WebhookConfig(Section):
    secret_token_file: SecretFile | None = None
    signing_token_file: SecretFile | None = None

    @model_validator(mode="after")
    def _some_secret(self) -> Self:
        if self.secret_token_file is None and self.signing_token_file is None:
            raise ValueError("give secret_token_file or signing_token_file: webhooks without a secret are refused")
        return self


class GitLabConfig(Section):
    url: HttpUrl
    token_file: SecretFile
    projects: tuple[ProjectPattern, ...] = Field(min_length=1)
    drafts: Literal["start", "wait"] = "start"
    webhook: WebhookConfig
    poll: Duration = timedelta(minutes=5)


class HttpConfig(Section):
    listen: str = Field("127.0.0.1:8080", pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:\[\]]+):\d{1,5}$")
    public_url: HttpUrl | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class PoolConfig(Section):
    max_running: int = Field(2, ge=1, le=10_000)
    warm: int = Field(0, ge=0, le=0)
    lifetime: Duration = timedelta(hours=2)
    max_lifetime: Duration = timedelta(hours=8)
    warn_before: tuple[Duration, ...] = (timedelta(minutes=30), timedelta(minutes=10))
    shutdown_grace: Duration = timedelta(seconds=30)
    build_timeout: Duration = timedelta(minutes=5)
    orphan_sweep: Duration = timedelta(minutes=5)

    @model_validator(mode="after")
    def _lifetimes(self) -> Self:
        if self.lifetime > self.max_lifetime:
            raise ValueError("lifetime must not be above max_lifetime")
        return self


class ConnectionsPerMinute(Section):
    ssh: int = Field(10, ge=1)
    web: int = Field(300, ge=1)


class HttpTest(Section):
    http: str = Field(pattern=r"^/[!-~]{0,500}$")


class RunTest(Section):
    run: str = Field(min_length=1, max_length=4000)


class StageTimeouts(Section):
    """How long each step from machine to announcement may take."""

    copy_in: Duration = Field(timedelta(minutes=10), alias="copy")
    setup: Duration = timedelta(minutes=15)
    test: Duration = timedelta(minutes=10)
    other: Duration = timedelta(minutes=1)


_ALLOW = re.compile(r"(.+?)(?::(\d{1,5}))?")


def _allowed(text: str) -> str:
    match = _ALLOW.fullmatch(text)
    try:
        ipaddress.IPv4Network(match[1] if match else "")
    except ValueError:
        raise ValueError("write an IPv4 network, with or without a port, like 10.0.5.0/24:443") from None
    if match and match[2] and not 1 <= int(match[2]) <= 65535:
        raise ValueError("a port is a number from 1 to 65535")
    return text


class SandboxConfig(Section):
    memory: Size = 4 * 1024**3
    vcpus: int = Field(2, ge=1, le=256)
    disk: Size = 20 * 1024**3
    user: str = Field("agent", pattern=r"^[a-z_][a-z0-9_-]{0,30}$")
    web_port: int = Field(3002, ge=1, le=65535)
    host: str = Field(pattern=r"^[A-Za-z0-9.\-:]{1,253}$")
    ssh_ports: PortRange = PortRange(first=2200, last=2299)
    web_ports: PortRange = PortRange(first=3000, last=3099)
    connections_per_minute: ConnectionsPerMinute = ConnectionsPerMinute(ssh=10, web=300)
    egress: Literal["internet", "none"] = "internet"
    allow: tuple[Annotated[str, AfterValidator(_allowed)], ...] = ()
    max_source: Size = 512 * 1024**2
    setup: tuple[str, ...] = ("./.rave/setup",)
    smoke_tests: tuple[HttpTest | RunTest, ...] = ()
    timeouts: StageTimeouts = StageTimeouts()

    @model_validator(mode="after")
    def _ports_apart(self) -> Self:
        if self.ssh_ports.first <= self.web_ports.last and self.web_ports.first <= self.ssh_ports.last:
            raise ValueError("ssh_ports and web_ports must not overlap")
        return self


class AccessConfig(Section):
    allow_from: tuple[ipaddress.IPv4Network, ...] = ()


class BridgeConfig(Section):
    name: str = Field("ravebot0", pattern=r"^[a-z][a-z0-9_-]{0,14}$")
    subnet: ipaddress.IPv4Network = ipaddress.IPv4Network("10.80.0.0/24")

    @model_validator(mode="after")
    def _room_for_guests(self) -> Self:
        if self.subnet.prefixlen > 29:
            raise ValueError("the bridge's subnet must have room for guests: /29 or larger")
        return self


class LibvirtConfig(Section):
    type: Literal["libvirt"] = "libvirt"
    uri: str = "qemu:///system"
    network: Literal["bridge", "none"] = "bridge"
    bridge: BridgeConfig = BridgeConfig()
    storage_pool: AbsolutePath = Path("/var/lib/ravebot/disks")
    image: AbsolutePath
    kernel: AbsolutePath | None = None
    initrd: AbsolutePath | None = None
    cmdline: str = ""
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"

    @model_validator(mode="after")
    def _direct_boot(self) -> Self:
        if (self.kernel is None) != (self.initrd is None):
            raise ValueError("give kernel and initrd together, or neither")
        return self


class AgentConfig(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$")
    ssh_keys: tuple[str, ...] = ()


class Config(Section):
    """The whole file."""

    instance: str = Field("main", pattern=r"^[a-z0-9](?:[a-z0-9-]{0,14}[a-z0-9])?$")
    state_dir: AbsolutePath = Path("/var/lib/ravebot")
    matrix: MatrixConfig
    gitlab: GitLabConfig
    http: HttpConfig = HttpConfig(listen="127.0.0.1:8080")
    pool: PoolConfig = PoolConfig(max_running=2)
    sandbox: SandboxConfig
    access: AccessConfig = AccessConfig()
    provider: LibvirtConfig
    agents: tuple[AgentConfig, ...] = ()

    def rooms_of(self, project_path: str) -> tuple[str, ...]:
        """The rooms (as configured: alias or id) that a project is mapped to."""
        return tuple(room.room for room in self.matrix.rooms if matches_project(room.projects, project_path))

    def serves(self, project_path: str) -> bool:
        """Whether sandboxes are given to that project's merge requests."""
        return matches_project(self.gitlab.projects, project_path)
