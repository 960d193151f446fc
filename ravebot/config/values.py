"""Types of single configuration values: durations, sizes, ports, networks, names, paths.

A value that can't work is an error here, with a message for the person who wrote it; `checks` compares values.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LONGEST = timedelta(days=365)
"""Longer than any use needs, and short enough that dates with it added never overflow."""
_DURATION = re.compile(r"(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m(?:in)?)?\s*(?:(\d+)s)?")
_SIZE_UNITS = {
    "": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4,
}  # fmt: skip
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!\d+\.?$){_LABEL}\.?")
_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918
_LONGEST_STATE_DIR_BYTES = 107 - len("/admin.sock")  # the admin socket lies in it: sockaddr_un, unix(7)


def parse_duration(text: object) -> timedelta:
    """A duration as people write it: `2h`, `1h30m`, `90s`, `1d`. Raises ValueError that says how to write one."""
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
    """A size in bytes as people write it: `4GiB`, `512MiB`, `20G` (G is GiB). Raises ValueError that says how."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if isinstance(text, str):
        match = re.fullmatch(r"(\d{1,15})\s*([A-Za-z]{0,3})", text.strip())
        if match and match[2].upper() in _SIZE_UNITS:
            return int(match[1]) * _SIZE_UNITS[match[2].upper()]
    raise ValueError("write a size like 512MiB or 4GiB")


def _bounded(duration: timedelta) -> timedelta:
    if duration > LONGEST:
        raise ValueError("must be at most a year (365d)")
    return duration


def _positive(duration: timedelta) -> timedelta:
    if not duration:
        raise ValueError("must be longer than zero")
    return duration


def _at_least(days: int) -> Callable[[timedelta], timedelta]:
    def check(duration: timedelta) -> timedelta:
        if duration < timedelta(days=days):
            raise ValueError(f"must be at least {days}d")
        return duration

    return check


def _distinct(durations: tuple[timedelta, ...]) -> tuple[timedelta, ...]:
    if len(set(durations)) < len(durations):
        raise ValueError("the same duration is listed twice: remove one")
    return durations


Duration = Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_bounded)]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
DayOrLonger = Annotated[Duration, AfterValidator(_at_least(1))]
FortnightOrLonger = Annotated[Duration, AfterValidator(_at_least(14))]
DistinctDurations = Annotated[tuple[PositiveDuration, ...], AfterValidator(_distinct)]


def size_from(smallest: str) -> BeforeValidator:
    """Sizes from `smallest` to the largest that disks and the database can represent."""
    largest = "1024TiB"

    def validate(text: object) -> int:
        size = parse_size(text)
        if not parse_size(smallest) <= size <= parse_size(largest):
            raise ValueError(f"out of range: write a size from {smallest} to {largest}")
        return size

    return BeforeValidator(validate)


def parse_amount(text: object) -> int:
    """A number as people write it: `5M`, `200k`, `1_000_000`. Raises ValueError that says how."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if isinstance(text, str):
        match = re.fullmatch(r"(\d{1,12})\s*([kKMG]?)", text.strip().replace("_", ""), re.ASCII)
        if match:
            return int(match[1]) * {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}[match[2].upper()]
    raise ValueError("write a number like 200k, 5M or 1000000")


def _amount(text: object) -> int:
    amount = parse_amount(text)
    if not 1 <= amount <= _MOST_TOKENS:
        raise ValueError("out of range: write a number from 1 to 1000G")
    return amount


_MOST_TOKENS = 1000**4
Tokens = Annotated[int, BeforeValidator(_amount)]
"""A number of a model's tokens."""


class PortRange(BaseModel):
    """Ports from `first` to `last`, both included; written `2200-2299`."""

    model_config = ConfigDict(frozen=True)
    first: int = Field(ge=1024, le=65535)
    last: int = Field(ge=1024, le=65535)

    @property
    def size(self) -> int:
        """How many there are."""
        return self.last - self.first + 1

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, dict | PortRange):
            return value
        match = re.fullmatch(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*", value) if isinstance(value, str) else None
        if not match:
            raise ValueError("write a port range like 2200-2299")
        return {"first": int(match[1]), "last": int(match[2])}

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


def _with_port(text: str) -> str:
    if not 1 <= int(text.rpartition(":")[2]) <= 65535:
        raise ValueError("a port is a number from 1 to 65535")
    return text


ListenAddress = Annotated[
    str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:\[\]]+):[0-9]{1,5}$"), AfterValidator(_with_port)
]


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of a ListenAddress."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _host(text: object) -> str:
    if isinstance(text, str) and len(text) <= 253:
        if _DNS_NAME.fullmatch(text):
            return text
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            pass
    raise ValueError("write the IPv4 address or the DNS name that people connect to, without scheme or port")


HostName = Annotated[str, BeforeValidator(_host)]


def _network(value: object) -> object:
    if isinstance(value, ipaddress.IPv4Network):
        return value
    if isinstance(value, str):
        try:
            return ipaddress.IPv4Network(value)
        except ValueError:
            pass
    raise ValueError("write an IPv4 network like 192.0.2.0/24, with all host bits zero")


def _for_guests(network: ipaddress.IPv4Network) -> ipaddress.IPv4Network:
    if network.prefixlen > 29:
        raise ValueError("the bridge's subnet must have room for guests: /29 or larger")
    if not any(network.subnet_of(private) for private in _PRIVATE):
        raise ValueError("not a private network (RFC 1918): its public addresses could no longer be reached")
    return network


Network = Annotated[ipaddress.IPv4Network, BeforeValidator(_network)]
GuestNetwork = Annotated[Network, AfterValidator(_for_guests)]

_ALLOW = re.compile(r"(.+?)(?::([0-9]{1,5}))?")


def _destination(text: str) -> str:
    match = _ALLOW.fullmatch(text)
    try:
        ipaddress.IPv4Network(match[1] if match else "")
    except ValueError:
        raise ValueError("write an IPv4 network, with or without a port, like 10.0.5.0/24:443") from None
    if match and match[2] and not 1 <= int(match[2]) <= 65535:
        raise ValueError("a port is a number from 1 to 65535")
    return text


Destination = Annotated[str, AfterValidator(_destination)]


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError("write an absolute path")
    return path


def _short_enough_for_socket(path: Path) -> Path:
    if len(os.fsencode(path)) > _LONGEST_STATE_DIR_BYTES:
        raise ValueError(f"too long for the admin socket in it: use at most {_LONGEST_STATE_DIR_BYTES} bytes")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
StateDir = Annotated[AbsolutePath, AfterValidator(_short_enough_for_socket)]
SecretFile = AbsolutePath
"""A file with one secret; its owner and mode are checked when the configuration is loaded."""


def _glob(pattern: str) -> str:
    if not re.fullmatch(r"[\w.\-*/]{1,255}", pattern):
        raise ValueError("write a project path such as group/app, or a pattern such as group/*")
    return pattern


def _command(text: str) -> str:
    if not text.strip() or "\0" in text or len(text) > 4000:
        raise ValueError("write a command of up to 4,000 characters")
    return text


ProjectPattern = Annotated[str, AfterValidator(_glob)]
UserId = Annotated[str, Field(pattern=r"^@[^\s:]{1,200}:[^\s]{1,200}$")]
RoomName = Annotated[str, Field(pattern=r"^[#!][^\s]{1,254}$")]
Command = Annotated[str, AfterValidator(_command)]


def _api_path(text: str) -> str:
    if not re.fullmatch(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,60}){1,8}", text):
        raise ValueError("write a path such as /v1/messages")
    return text


def _image_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", text):
        raise ValueError("write up to 40 small letters, digits, dots, hyphens and underscores, like debian-13")
    return text


def _label(text: str) -> str:
    if not text.strip() or len(text) > 255 or not text.isprintable() or "," in text:
        raise ValueError("write the name of a label of GitLab's, up to 255 characters, without a comma")
    return text


def _file_pattern(text: str) -> str:
    parts = PurePosixPath(text).parts
    if not re.fullmatch(r"[\w.@+*?\-/ ]{1,200}", text, re.ASCII) or text.startswith(("/", "-")) or ".." in parts:
        raise ValueError("write a path below the code's folder, in which * stands for any name, like build/*.xml")
    return text


def _job_name(text: str) -> str:
    if not text.strip() or len(text) > 255 or not text.isprintable():
        raise ValueError("write the name of a job of the pipeline, up to 255 characters, on one line")
    return text.strip()


def _artifact_path(text: str) -> str:
    parts = text.split("/")
    if not text.isprintable() or not 0 < len(text) <= 200 or "\\" in text or {"", ".", ".."}.intersection(parts):
        raise ValueError("write the path of one file among the job's artifacts, like image/sandbox.qcow2")
    return text


JobName = Annotated[str, AfterValidator(_job_name)]
ArtifactPath = Annotated[str, AfterValidator(_artifact_path)]
FilePattern = Annotated[str, AfterValidator(_file_pattern)]
"""Of files below the code's folder."""
ImageName = Annotated[str, AfterValidator(_image_name)]
LabelName = Annotated[str, AfterValidator(_label)]
ApiPath = Annotated[str, AfterValidator(_api_path)]
ModelPattern = Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]
