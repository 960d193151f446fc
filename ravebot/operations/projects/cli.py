"""`ravebot project init|check|schema`: for people and editors that write a `.rave.yml`; needs no running bot."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ravebot.config.tree import Problem
from ravebot.terminal import FAILED, Json, clean, output

if TYPE_CHECKING:
    from ravebot.config.repository import ProjectFile

app = typer.Typer(
    name="project",
    help="Begin a project's .rave.yml and pipeline, check them, or print the schema.",
    no_args_is_help=True,
)


@app.command(
    name="init",
    epilog="For example: `ravebot project init --url https://ravebot.example.org` in a checkout, then commit.",
)
def begin(
    where: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="A checkout. By default: here.")] = Path(),
    url: Annotated[
        str, typer.Option("--url", help="Where ravebot answers: http.public_url of its configuration.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Write .gitlab/ravebot.yml anew, if it is another.")] = False,
) -> None:
    """Write a commented .rave.yml, and jobs for the project's pipelines; what is there stays."""
    from ravebot.operations.projects.starting import EXAMPLE_URL, PIPELINE, CannotStart, Fate, start, template

    try:
        done = start(where, url or None, force=force)
    except CannotStart as error:
        output.complain(clean(str(error)))
        raise typer.Exit(FAILED) from None
    for one in done:
        output.say(f"{clean(str(one.path))}: {one.fate}", "green" if one.fate is Fate.WRITTEN else "")
    jobs, pipeline = done[1], done[2]
    if jobs.fate is Fate.KEPT:
        output.complain(f"{clean(str(jobs.path))} is not what this command would write: --force writes it anew")
    if pipeline.fate is Fate.INCOMPLETE:
        output.complain(f"Add this to {clean(str(pipeline.path))}, which has its own content:", "yellow")
        output.raw("\n" + template(PIPELINE))
    if jobs.fate is Fate.WRITTEN and not url:
        output.complain(f"Put ravebot's address into {clean(str(jobs.path))} instead of {EXAMPLE_URL}.", "yellow")
    if jobs.fate is Fate.KEPT:
        raise typer.Exit(FAILED)
    if any(one.fate is Fate.WRITTEN for one in done):
        output.say("Next: look at .rave.yml, run `ravebot project check`, and commit the files on a branch.")


@app.command(epilog="For example: `ravebot project check` in a checkout; in a pipeline, it ends with 1 for a mistake.")
def check(
    where: Annotated[
        Path, typer.Argument(metavar="[FOLDER|FILE]", help="A checkout, or a file. By default: here.")
    ] = Path(),
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Say also what the limits of this configuration of ravebot change."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List every mistake in a checkout's .rave.yml, with line and column."""
    from ravebot.config.repository import FILE_NAME, ProjectFile, ProjectFileError, read_project_file

    path = where / FILE_NAME if where.is_dir() else where
    problems: tuple[Problem, ...] = ()
    file = ProjectFile()
    raw = None
    try:
        raw = _content(path)
        if raw is not None:
            file = read_project_file(raw)
    except ProjectFileError as error:
        problems = error.problems
    remarks = _remarks(config, file) if config is not None and not problems else ()
    if as_json:
        found = {"ok": not problems, "problems": [asdict(one) for one in problems], "remarks": list(remarks)}
        output.raw(json.dumps(found, indent=2))
    else:
        for one in problems:
            place = f"{path}:{one.line}:{one.column}: " if one.line else f"{path}: "
            output.complain(clean(f"{place}{one}"))
        for remark in remarks:
            output.complain(clean(remark), "yellow")
        if raw is None:
            output.say(
                f"{clean(str(path))} is not there: every sandbox is as the operator has configured it.", "yellow"
            )
        elif not problems:
            output.say(f"{clean(str(path))} is right.", "green")
    if problems:
        raise typer.Exit(FAILED)


@app.command(
    epilog="For example: `ravebot project schema > .rave.schema.json`; docs/gitlab.md shows how editors use it."
)
def schema() -> None:
    """Print the JSON schema of .rave.yml, for editors."""
    from ravebot.config.repository import project_file_schema

    output.raw(json.dumps(project_file_schema(), indent=2))


def _content(path: Path) -> bytes | None:
    """The file's content, and a byte more than may be; None if there is none. Raises ProjectFileError."""
    from ravebot.config.repository import MAX_FILE_BYTES, ProjectFileError

    try:
        # Like ravebot, which has only what is in the repository; and a pipe could wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1) or b""
    except FileNotFoundError:
        return None
    except OSError as error:
        why = f"can't be read: {error.strerror}"
        if error.errno == errno.ELOOP:
            why = "this is a symbolic link: put the file itself here, with keys and values"
        raise ProjectFileError([Problem(1, "", why, 1)]) from None


def _remarks(config: Path, file: ProjectFile) -> tuple[str, ...]:
    from ravebot.config.file import read
    from ravebot.sandboxes.settings import resolve

    return resolve(read(config), file).remarks
