"""`.rave.yml`: what a project says, in its own repository, that its sandboxes need. The text is not trusted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError, WithJsonSchema

from ravebot.config.complaints import complaints
from ravebot.config.model import HttpTest, RunTest, Section
from ravebot.config.tree import KeyPath, Problem, dotted, parse
from ravebot.config.values import (
    ArtifactPath,
    Command,
    FilePattern,
    ImageName,
    JobName,
    LabelName,
    PositiveDuration,
    size_from,
)

FILE_NAME = ".rave.yml"
MAX_FILE_BYTES = 64 * 1024
_MAX_VALUES = 2_000
_MAX_MARKS = 10_000
"""Lines, commas and brackets: more are not parsed, which takes a second for each 20,000."""
_MOST_PROBLEMS = 20
_LONGEST_PATH = 100
_LFS = b"version https://git-lfs.github.com/spec/"

_SIZE_SCHEMA = WithJsonSchema({"type": ["string", "integer"], "examples": ["512MiB", "4GiB"]})
_IN_SECONDS = PlainSerializer(lambda duration: f"{duration.total_seconds():.0f}s", when_used="json")
_DURATION_SCHEMA = WithJsonSchema({"type": "string", "examples": ["90s", "30m", "2h", "1h30m"]})


def _one_line(text: str) -> str:
    if not text.strip() or len(text) > 40 or not text.isprintable():
        raise ValueError("write a name of up to 40 characters, on one line")
    return text.strip()


def _web_path(text: str) -> str:
    if not re.fullmatch(r"/[!-~]{0,200}", text) or text.startswith("//") or re.search(r"[<>\"'`()\\|\[\]{}]", text):
        raise ValueError("write a path that begins with /, of letters, digits and -._~/?=&%:, like /grafana/")
    return text


def _start(value: object) -> object:
    if isinstance(value, dict) and set(value) == {"label"}:
        return value
    if isinstance(value, StartOnLabel) or value in ("always", "ready", "command"):
        return value
    raise ValueError("write always, ready (when it is no draft), command, or {label: NAME}")


class StartOnLabel(Section):
    """When the merge request has that label."""

    label: LabelName


Start = Annotated[Literal["always", "ready", "command"] | StartOnLabel, BeforeValidator(_start)]


class ProjectLink(Section):
    """A page of the sandbox's web server."""

    name: Annotated[str, AfterValidator(_one_line)] = Field(description="What the link is called.")
    path: Annotated[str, AfterValidator(_web_path)] = Field(description="Its path there, like /grafana/.")


class ProjectResults(Section):
    """Files that tests leave in the sandbox."""

    junit: tuple[FilePattern, ...] | None = Field(
        None, max_length=10, description="JUnit reports, below the code's folder; `*` stands for any name."
    )


def _by_name(value: object) -> object:
    return {"job": value} if isinstance(value, str) else value


class ImageJob(Section):
    """The job of the merge request's pipeline that builds the image, and the file that it leaves."""

    job: JobName = Field(description="Its name in the pipeline.")
    path: ArtifactPath = Field(
        "image/sandbox.qcow2", description="The file among its artifacts: .qcow2, or a disk as .gz, .xz or .zst."
    )
    otherwise: Literal["fail", "default"] = Field(
        "fail", description="Without an image, the sandbox fails, or starts from the default one."
    )


class ProjectFile(Section):
    """What a project asks for. A key that is absent is as the operator of ravebot has configured it."""

    memory: Annotated[int, size_from("64MiB"), _SIZE_SCHEMA] | None = Field(
        None, description="Of the machine, like 4GiB."
    )
    vcpus: int | None = Field(None, ge=1, le=256, strict=True, description="Processors of the machine.")
    disk: Annotated[int, size_from("64MiB"), _SIZE_SCHEMA] | None = Field(
        None, description="Of the machine, like 20GiB."
    )
    lifetime: Annotated[PositiveDuration, _IN_SECONDS, _DURATION_SCHEMA] | None = Field(
        None, description="How long a sandbox lives, from ready, like 2h."
    )
    image: ImageName | None = Field(
        None, description="What the machine starts from: one of the names that the operator has given images."
    )
    image_job: Annotated[ImageJob, BeforeValidator(_by_name, json_schema_input_type=ImageJob | str)] | None = Field(
        None, description="The job of the merge request's pipeline whose image the machine starts from, instead."
    )
    wait_for_image: Annotated[PositiveDuration, _IN_SECONDS, _DURATION_SCHEMA] | None = Field(
        None, description="How long to wait for that job, from when the sandbox is asked for; 20m if it is not said."
    )
    setup: tuple[Command, ...] | None = Field(
        None,
        max_length=20,
        description="Commands to run in the code's folder, in this order. One whose file does not exist is skipped.",
    )
    smoke_tests: tuple[HttpTest | RunTest, ...] | None = Field(
        None, max_length=20, description="What to try after set-up: {http: /path}, or {run: command}."
    )
    links: tuple[ProjectLink, ...] = Field(
        (), max_length=10, description="Pages of the sandbox's web server to link on the merge request."
    )
    results: ProjectResults = ProjectResults()
    start: Start | None = Field(
        None,
        description="When a sandbox starts by itself: `always`, `ready` (when the merge request is no draft),"
        " {label: NAME} (when it has that label), or `command` (never by itself).",
    )
    agent: Annotated[str, AfterValidator(_one_line)] | None = Field(
        None, description="The agent that is meant where none is named."
    )


class ProjectFileError(Exception):
    """The file can't be used; `problems` lists every error, in the order of lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        found = sorted({replace(one, path=_short(one.path)) for one in problems})
        more = len(found) - _MOST_PROBLEMS
        self.problems = tuple(found[:_MOST_PROBLEMS])
        if more > 0:
            self.problems += (Problem(0, "", f"and {more} more errors"),)
        super().__init__("; ".join(map(str, self.problems)))


def read_project_file(raw: bytes) -> ProjectFile:
    """Read the file's content. Raises ProjectFileError. Takes up to a second: call it in a thread."""
    text = _text(raw)
    if sum(map(text.count, "\n,[{")) > _MAX_MARKS:
        why = f"has more than {_MAX_MARKS} lines, commas and brackets: a sandbox's settings are shorter than that"
        raise ProjectFileError([Problem(1, "", why, 1)])
    tree = parse(text, _MAX_VALUES)
    if tree.problems:
        raise ProjectFileError(tree.problems)
    if tree.value is None:
        return ProjectFile()
    if not isinstance(tree.value, dict):
        raise ProjectFileError([Problem(1, "", _no_mapping(raw), 1)])
    try:
        return ProjectFile.model_validate(tree.value)
    except ValidationError as error:
        found = complaints(error, tree.value, ProjectFile)
        raise ProjectFileError(_problem(item.path, item.message, tree.mark_of(item.path)) for item in found) from None


def project_file_schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors."""
    schema = ProjectFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": FILE_NAME}


def _problem(path: KeyPath, message: str, mark: tuple[int, int]) -> Problem:
    return Problem(mark[0], dotted(path), message, mark[1])


def _short(path: str) -> str:
    """So that a key that is very long leaves room for what is wrong with it."""
    return path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}…"


def _text(raw: bytes) -> str:
    if len(raw) > MAX_FILE_BYTES:
        why = f"the file is larger than {MAX_FILE_BYTES // 1024} KiB: a sandbox's settings are shorter than that"
        raise ProjectFileError([Problem(1, "", why, 1)])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        raise ProjectFileError([Problem(line, "", "not UTF-8 text: save it as UTF-8", column)]) from None


def _no_mapping(raw: bytes) -> str:
    if b"\n" not in raw:  # as GitLab gives a symbolic link: its target's name
        return "this is a symbolic link or a single line of text: put the file itself here, with keys and values"
    if raw.startswith(_LFS):
        return "this is a pointer of Git LFS: take the file out of LFS, and put its text itself here"
    return "this is not a mapping of keys to values: write keys with values, like `memory: 4GiB`"
