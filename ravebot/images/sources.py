"""The host's own package sources for a Debian suite: what the build reads, and what the image keeps.

Formats: sources.list(5), apt_auth.conf(5), apt-transport-mirror(1).
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from ravebot.errors import RavebotError
from ravebot.images.tools import KEYRING

_COMPONENTS = ("main", "contrib", "non-free", "non-free-firmware")
_POCKETS = ("", "-updates", "-security")
_ALIASES = ("stable", "oldstable")
_NO = ("no", "false", "without", "off", "disable", "0")
_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>[^#]+)")


@dataclass(frozen=True)
class Source:
    """One archive and one suite of it."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""  # a key ring's path, a fingerprint, or a whole key; nothing: whatever key the host trusts
    trusted: bool = False
    expires: bool = True  # False: `check-valid-until=no`, as for a snapshot

    @property
    def is_debian(self) -> bool:
        """Whether it is Debian's own archive: so signed, with its usual path, or of security updates."""
        own_key = "/debian-archive-" in self.signed_by
        own_path = {"debian", "debian-security"} & set(urlsplit(self.uri).path.split("/"))
        security = _split(self.suite)[1] == "-security"  # at the root of a host of its own, in older lists
        fits = "main" in self.components and set(self.components) <= set(_COMPONENTS)
        return fits and bool(own_key or own_path or security)


@dataclass(frozen=True)
class PackageSources:
    """What a build needs of the host's apt."""

    all: tuple[Source, ...]
    logins: str  # the entries of apt's auth.conf for these archives

    def for_build(self, keys: Path) -> str:
        """The lines of a sources.list, with what the host signs and logs in with; whole keys go to files in `keys`."""
        lines = []
        for number, source in enumerate(self.all):
            options = ["trusted=yes"] if source.trusted else []
            options += [] if source.expires else ["check-valid-until=no"]
            if "BEGIN PGP" in source.signed_by:
                key = keys / f"source-{number}.asc"
                key.write_text(source.signed_by)
                options.append(f"signed-by={key}")
            elif source.signed_by:
                options.append(f"signed-by={source.signed_by}")
            before = f"[{' '.join(options)}] " if options else ""
            lines.append(f"deb {before}{source.uri} {source.suite} {' '.join(source.components)}\n")
        return "".join(lines)

    def for_image(self) -> str:
        """The image's package sources: none that needs a login, a key of the host's, or has no key at all."""
        kept = [source for source in self.all if self._is_public(source)]
        entries = [
            f"Types: deb\nURIs: {source.uri}\nSuites: {source.suite}\nComponents: {' '.join(source.components)}\n"
            f"Signed-By: {KEYRING}\n"
            for source in kept
        ]
        if len(kept) < len(self.all):
            left_out = len(self.all) - len(kept)
            entries.insert(0, f"# Left out, because they need a login or a key of the builder's host: {left_out}\n")
        return "\n".join(entries)

    def _is_public(self, source: Source) -> bool:
        parts = urlsplit(source.uri)
        signed = not source.signed_by or "/debian-archive-" in source.signed_by
        return (
            signed
            and not source.trusted
            and "@" not in parts.netloc
            and not parts.query
            and not _logins(self.logins, (source,))
        )


def codename() -> str:
    """The host's Debian release; nothing if it is another system."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    return release.get("VERSION_CODENAME", "") if release.get("ID") == "debian" else ""


def read(suite: str, codename: str, etc: Path = Path("/etc/apt")) -> PackageSources:
    """Debian's own archives in the host's sources, for a suite instead of the host's (which is `codename`).

    Raises RavebotError if the host has none.
    """
    found: dict[Source, None] = {}
    for source in _entries(etc):
        stem, pocket = _split(source.suite)
        if source.is_debian and stem in (codename, *_ALIASES) and pocket in _POCKETS:
            for uri in _uris(source.uri):
                found[replace(source, uri=uri, suite=suite + pocket)] = None
    if not any(source.suite == suite for source in found):
        raise RavebotError(
            f"no package source of Debian's {codename} was found in {etc}: add one, as sources.list(5) says"
        )
    files = [etc / "auth.conf", *sorted((etc / "auth.conf.d").glob("*.conf"))]
    texts = [file.read_text() for file in files if file.exists()]
    return PackageSources(tuple(found), _logins("\n".join(texts), found))


def _split(suite: str) -> tuple[str, str]:
    stem, dash, pocket = suite.replace("/updates", "-security").rstrip("/").partition("-")
    return stem, dash + pocket


def _uris(uri: str) -> Iterator[str]:
    """The archive's addresses that can be used in a chroot; a file with a list of mirrors is read."""
    scheme, _, rest = uri.partition(":")
    if scheme == "mirror+file":
        for line in Path("/" + rest.lstrip("/")).read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                yield from _uris(line.split()[0])
                return
    elif scheme in ("http", "https"):
        yield uri


def _entries(etc: Path) -> Iterator[Source]:
    for file in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))):
        if file.exists():
            yield from _one_line(file.read_text())
    for file in sorted((etc / "sources.list.d").glob("*.sources")):
        yield from _deb822(file.read_text())


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        if match := _LINE.match(line.strip()):
            options = dict(word.partition("=")[::2] for word in (match["options"] or "").split())
            yield from _source(
                options, (match["uri"],), (match["suite"],), match["components"].split(), options.get("arch", "")
            )


def _deb822(text: str) -> Iterator[Source]:
    for fields in _paragraphs(text):
        if fields.get("enabled", "yes").lower() in _NO or "deb" not in fields.get("types", "").split():
            continue
        yield from _source(
            fields, fields.get("uris", "").split(), fields.get("suites", "").split(),
            fields.get("components", "").split(), fields.get("architectures", ""),
        )  # fmt: skip


def _source(
    options: Mapping[str, str], uris: Iterable[str], suites: Iterable[str], components: list[str], architectures: str
) -> Iterator[Source]:
    if architectures and "amd64" not in re.split(r"[\s,]+", architectures):
        return
    trusted = options.get("trusted", "").lower() == "yes"
    expires = options.get("check-valid-until", "").lower() not in _NO
    for uri in uris:
        for suite in suites:
            yield Source(uri, suite, tuple(components), options.get("signed-by", ""), trusted, expires)


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a deb822 text, with their fields' names in lower case.

    https://manpages.debian.org/deb822.5
    """
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t"):
                more = line.strip()
                fields[name] = f"{fields.get(name, '')}\n{'' if more == '.' else more}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.lower()
                fields[name] = value.strip()
        if fields:
            yield {name: value.strip() for name, value in fields.items()}


def _logins(text: str, sources: Iterable[Source]) -> str:
    """The entries of an auth.conf whose machine is one of the archives'."""
    kept = []
    for entry in re.split(r"(?:^|\s)machine\s+", re.sub(r"(?m)^\s*#.*$", "", text))[1:]:
        machine = entry.split()[0] if entry.split() else ""
        host, _, path = machine.rpartition("://")[2].partition("/")
        for source in sources:
            parts = urlsplit(source.uri)
            if host in (parts.netloc.rpartition("@")[2], parts.hostname) and f"{parts.path}/".startswith(f"/{path}"):
                kept.append(f"machine {' '.join(entry.split())}\n")
                break
    return "".join(kept)
