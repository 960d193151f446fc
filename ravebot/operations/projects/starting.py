"""The files with which a project begins: a commented `.rave.yml`, the jobs of its pipelines, and what includes them."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from ravebot.errors import RavebotError
from ravebot.operations.service.files import write

EXAMPLE_URL = "https://ravebot.example.org"
PROJECT_FILE, JOBS, PIPELINE = Path(".rave.yml"), Path(".gitlab/ravebot.yml"), Path(".gitlab-ci.yml")
_TEMPLATES = {PROJECT_FILE: "rave.yml", JOBS: "ravebot.yml", PIPELINE: "gitlab-ci.yml"}
_URL = re.compile(r'^ +default: "(https?://[^"\n]*)"$', re.MULTILINE)
_LONGEST_URL = 200
_LARGEST_BYTES = 1 << 20


class CannotStart(RavebotError):
    """The files can't be written there; says why, and what to do."""


class Fate(StrEnum):
    """What became of one file."""

    WRITTEN = "written"
    SAME = "there already"
    KEPT = "kept as it was"
    INCOMPLETE = "needs lines"


@dataclass(frozen=True)
class StartedFile:
    path: Path
    fate: Fate


def template(which: Path, url: str = EXAMPLE_URL) -> str:
    """The content of one of the three files."""
    text = files(__package__).joinpath("template", _TEMPLATES[which]).read_text("utf-8")
    return text.replace(EXAMPLE_URL, checked_url(url))


def checked_url(url: str) -> str:
    """The URL as jobs use it. Raises CannotStart."""
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("https", "http") and bool(parts.hostname) and not parts.username and parts.port != 0
    except ValueError:
        fine = False
    # It stands in quotes in YAML and in the jobs' shell.
    plain = url.isascii() and url.isprintable() and not set(url) & set(" \"'\\`$?#{}<>|;&")
    if not fine or not plain or len(url) > _LONGEST_URL:
        raise CannotStart(
            f"{url[:_LONGEST_URL]!r} is no address of ravebot: give the value of http.public_url, like {EXAMPLE_URL}"
        )
    return url


def start(folder: Path, url: str | None = None, *, force: bool = False) -> tuple[StartedFile, ...]:
    """Write what is missing. What is there stays, but `force` brings the jobs up to date. Raises CannotStart.

    Without `url`, that of the jobs that are there.
    """
    if not folder.is_dir():
        raise CannotStart(f"{folder} is no folder: name that of the project's checkout")
    folder = folder.resolve()
    found = {which: _content(folder / which) for which in _TEMPLATES}
    wanted = {which: template(which, url or _url_in(found[JOBS] or b"")).encode() for which in _TEMPLATES}
    return tuple(_one(folder, which, found[which], wanted[which], force=force) for which in _TEMPLATES)


def _one(folder: Path, which: Path, found: bytes | None, wanted: bytes, *, force: bool) -> StartedFile:
    path = folder / which
    if found == wanted:
        return StartedFile(path, Fate.SAME)
    if found is not None and which == PIPELINE:
        return StartedFile(path, Fate.SAME if _includes(found) else Fate.INCOMPLETE)
    if found is not None and not (force and which == JOBS):  # a project's own file is never written over
        return StartedFile(path, Fate.KEPT)
    try:
        path.parent.mkdir(exist_ok=True)
        write(path, wanted.decode(), 0o644)
    except OSError as error:
        raise CannotStart(f"{path} can't be written: {_reason(error)}") from error
    return StartedFile(path, Fate.WRITTEN)


class _PipelineLoader(yaml.SafeLoader):
    """Reads GitLab's own tags, as `!reference`, as if they were not there."""


def _untagged(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return node.value


_PipelineLoader.add_multi_constructor("!", _untagged)


def _includes(pipeline: bytes) -> bool:
    """Whether a project's pipeline includes the jobs: a file, or a list of files, by name or under `local`."""
    try:
        read = list(yaml.load_all(pipeline, Loader=_PipelineLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return False
    listed = read[-1].get("include") if read and isinstance(read[-1], dict) else None
    for one in listed if isinstance(listed, list) else [listed]:
        named = one.get("local") if isinstance(one, dict) else one
        if isinstance(named, str) and named.lstrip("/") == str(JOBS):
            return True
    return False


def _url_in(jobs: bytes) -> str:
    match = _URL.search(jobs.decode(errors="replace"))
    return match[1] if match else EXAMPLE_URL


def _content(path: Path) -> bytes | None:
    """None if it is not there; a link is not followed, as ravebot and GitLab do not."""
    if path.parent.is_symlink():
        raise CannotStart(f"{path.parent} is a symbolic link: make it a folder of the repository")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            return file.read(_LARGEST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CannotStart(f"{path} can't be read: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symbolic link; put a file there"
    return str(error.strerror)
