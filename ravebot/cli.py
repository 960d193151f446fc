"""The `ravebot` command. What a subcommand needs is imported inside it, so that each starts fast."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import version
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ravebot import terminal
from ravebot.commands.verbs import VERBS, Door, Show, Takes, Verb, at, read_duration, read_sha
from ravebot.config.file import InvalidConfigError, LoadedConfig, load, read_state_dir
from ravebot.config.values import parse_duration
from ravebot.errors import NotRunningError, RavebotError
from ravebot.images import cli as images
from ravebot.operations.agents import cli as agents
from ravebot.operations.audit import cli as audit
from ravebot.operations.backup import cli as backups
from ravebot.operations.hooks import cli as hooks
from ravebot.operations.init import cli as initial
from ravebot.operations.projects import cli as projects
from ravebot.operations.sandboxlogs import cli as sandboxlogs
from ravebot.operations.service import cli as service
from ravebot.operations.tokens import cli as tokens
from ravebot.operations.usage import cli as usage
from ravebot.terminal import (
    DEFAULT_CONFIG,
    FAILED,
    INTERRUPTED,
    NOT_RUNNING,
    UNUSABLE,
    ConfigPath,
    Json,
    output,
    reference,
    until_interrupted,
)

if TYPE_CHECKING:
    from ravebot.operations.reports import CleanupReport, Strangers
    from ravebot.web.admin import AdminClient

app = typer.Typer(
    help="Gives every GitLab merge request an isolated sandbox VM and runs it from Matrix.",
    epilog="Ends with 0 when all is well, 1 when something failed or was refused, 2 for a mistake on the command "
    "line or in the configuration, 3 when no ravebot is running.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(images.app)
app.add_typer(hooks.app)
app.add_typer(agents.app)
app.add_typer(agents.approvals)
app.add_typer(tokens.app)
app.add_typer(projects.app)


def _instance_id(text: str | None) -> str | None:
    from ravebot.sandboxes import naming

    if text is not None and not naming.is_instance_id(text):
        raise typer.BadParameter(
            "that is no instance id: copy it from the message that named the other instance"
            " (letters, digits, '.', '_' and '-')"
        )
    return text


class Level(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def main() -> NoReturn:
    """Run the command; our own errors are printed as one sentence, without a traceback."""
    if "_RAVEBOT_COMPLETE" in os.environ:  # the shell asks for completions
        from typer.completion import completion_init  # type: ignore[attr-defined]  # from its private module

        completion_init()
    try:
        app()
    except InvalidConfigError as error:
        terminal.show_invalid(output, error)
        sys.exit(UNUSABLE)
    except RavebotError as error:
        output.complain(f"ravebot: {terminal.clean(str(error))}")
        sys.exit(NOT_RUNNING if isinstance(error, NotRunningError) else FAILED)
    except BrokenPipeError:
        # The reader closed the pipe; the interpreter's flush at exit must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(INTERRUPTED)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        full = f"a disk is full{where}: free space; `df -h` shows where there is none"
        said = full if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        output.complain(f"ravebot: {terminal.clean(said)}")
        sys.exit(FAILED)
    sys.exit(0)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.raw(f"ravebot {version('ravebot')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("init", help=initial.HELP, epilog=initial.MORE)(initial.command())


@app.command()
def run(
    config: ConfigPath = DEFAULT_CONFIG,
    log_level: Annotated[Level, typer.Option(help="How much to log.")] = Level.INFO,
) -> None:
    """Run the bot until it is told to stop (Ctrl-C or SIGTERM); sandboxes go on without it."""
    loaded = load(config)
    _raise_file_limit()
    import structlog

    from ravebot import logs
    from ravebot.app import run as run_app

    logs.set_up(log_level.value, loaded.secrets.values(), instance=loaded.config.instance)
    for warning in loaded.warnings:
        structlog.get_logger("ravebot").warning("unwise configuration", about=warning)
    asyncio.run(until_told_to_stop(run_app(loaded)))


def _raise_file_limit() -> None:
    """The usual soft limit of 1,024 is for programs that use select(), which we do not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def until_told_to_stop(running: Coroutine[object, object, None]) -> None:
    """Run until it ends or is interrupted; raises our own errors without their exception group."""
    try:
        await until_interrupted(running)
    except asyncio.CancelledError:
        return
    except BaseExceptionGroup as group:  # of the TaskGroup that everything runs in
        raise _only_reason(group) or group from group


def _only_reason(group: BaseExceptionGroup[BaseException]) -> RavebotError | None:
    """The group's first error, if all are our own, which need no traceback; else None."""
    ours, others = group.split(RavebotError)
    reason: BaseException | None = ours
    while isinstance(reason, BaseExceptionGroup):
        reason = reason.exceptions[0]
    return reason if others is None and isinstance(reason, RavebotError) else None


@app.command()
def check_config(config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """List everything that is wrong with the configuration, with file, line and key."""
    try:
        loaded = load(config)
    except InvalidConfigError as error:
        if not as_json:
            raise
        output.raw(json.dumps({"ok": False, "problems": [asdict(problem) for problem in error.problems]}, indent=2))
        raise typer.Exit(UNUSABLE) from error
    if as_json:
        output.raw(json.dumps({"ok": True, "warnings": list(loaded.warnings)}, indent=2))
        return
    for warning in loaded.warnings:
        output.complain(f"warning: {warning}", "yellow")
    output.say(f"{config} is right.", "green")


@app.command()
def doctor(
    config: ConfigPath = DEFAULT_CONFIG,
    fix: Annotated[bool, typer.Option("--fix", help="Mend webhooks that are missing or wrong first.")] = False,
    as_json: Json = False,
) -> None:
    """Check everything a new installation can have wrong, and say how to fix it."""
    from ravebot.operations.doctor import Verdict, examine, fix_webhooks, show

    loaded = load(config)
    if fix:
        for said in asyncio.run(fix_webhooks(loaded)):
            output.complain(said)
    findings = asyncio.run(examine(loaded))
    if as_json:
        _print_json(findings)
    else:
        show(output, findings)
    if any(finding.verdict is Verdict.FAILED for finding in findings):
        raise typer.Exit(FAILED)


def add_verbs(to: typer.Typer, verbs: Sequence[Verb] = VERBS) -> None:
    """Add a command for each verb that has the shell's door."""
    for verb in at(Door.SHELL, verbs):
        to.command(verb.name, help=verb.doors[Door.SHELL])(_asking(verb))


def _checked(read: Callable[[str], object]) -> Callable[[str | None], str | None]:
    def check(text: str | None) -> str | None:
        try:
            if text is not None:
                read(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        return text

    return check


_TYPED = {
    Takes.REF: typer.Argument(
        metavar="REF", callback=reference, help="Which sandbox, like group/app!42 (in quotes: ! is the shell's)."
    ),
    Takes.DURATION: typer.Argument(metavar="1h", callback=_checked(read_duration), help="How long, like 1h30m."),
    Takes.SHA: typer.Argument(metavar="SHA", callback=_checked(read_sha), help="Which commit."),
}


def _asking(verb: Verb) -> Callable[..., None]:
    """The command function that sends a verb to the running bot, with the parameters of its row."""

    def ask(config: Path, as_json: bool = False, **typed: str | None) -> None:
        from ravebot.sandboxes.intents import Outcome

        words = tuple(word for word in typed.values() if word is not None)
        answer = asyncio.run(_client(config).command(verb.name, words))
        if isinstance(answer, Outcome):
            if not answer.accepted:
                output.complain(terminal.clean(answer.message))
                raise typer.Exit(FAILED)
            output.say(terminal.clean(answer.message))
        elif as_json:
            _print_json(answer)
        else:
            terminal.show_sandboxes(output, answer, datetime.now(UTC))

    parameters = [
        _parameter(one.name.lower(), Annotated[str | None, _TYPED[one]], ... if one is Takes.REF else None)
        for one in verb.takes
    ]
    parameters.append(_parameter("config", ConfigPath, DEFAULT_CONFIG))
    if isinstance(verb.does, Show):
        parameters.append(_parameter("as_json", Json, False))
    ask.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    return ask


def _parameter(name: str, kind: object, default: object) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)


add_verbs(app)


@app.command()
def cleanup(
    config: ConfigPath = DEFAULT_CONFIG,
    older_than: Annotated[
        str | None, typer.Option(help="End sandboxes that were asked for longer ago, like 4h.")
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="End every sandbox, and remove what machines share (network, storage pool, firewall); needs --force.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Do not wait for guests to shut down, and ask nothing.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="End and remove machines of this instance that the database does not know.")
    ] = False,
    instance_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            callback=_instance_id,
            help="Another instance of this host, whose state folder was lost: with --all, list what it has here; with "
            "--all --force, end and remove it. Refused while its bot runs.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """End sandboxes and remove what is left over; works with the bot down, too."""
    if instance_id is not None:
        if older_than is not None or adopt or not everything:
            raise typer.BadParameter("--instance-id goes with --all (which lists) or --all --force, and nothing else")
        _cleanup_other(config, instance_id, force, as_json)
        return
    if everything and older_than is not None:
        raise typer.BadParameter("give one of --older-than and --all")
    if not (everything or older_than or adopt):
        raise typer.BadParameter("say what to clean up: --older-than 4h, --all --force, or --adopt")
    if everything and not force:
        raise typer.BadParameter("--all ends every sandbox of this instance: add --force if that is what you want")
    age = _duration(older_than) if older_than else None
    if adopt and (found := asyncio.run(_strangers(config))):
        terminal.announce_adoption(output, found)
        if output.is_watched and not force and not output.confirm("Go on?"):
            output.complain("Nothing was removed.")
            raise typer.Exit(FAILED)
    report = asyncio.run(_cleanup(config, age, everything, force, adopt))
    _show_report(report, as_json)


def _show_report(report: CleanupReport, as_json: bool) -> None:
    if as_json:
        _print_json(report)
    else:
        terminal.show_cleanup(output, report)
    if report.failed:
        raise typer.Exit(FAILED)


def _cleanup_other(config: Path, instance_id: str, force: bool, as_json: bool) -> None:
    from ravebot.operations import remains

    loaded = load(config)
    if force:
        report = asyncio.run(remains.remove(loaded.config, instance_id, _progress))
        _show_report(report, as_json)  # ends here if something failed
        if not asyncio.run(_replace_instance(config, loaded, instance_id)):
            output.complain(
                f"This installation has no database yet, so status notes of {instance_id} are not corrected: "
                "run this command again after its first start."
            )
        return
    found = asyncio.run(remains.look(loaded.config, instance_id))
    if as_json:
        _print_json(found)
    else:
        terminal.show_remains(output, found)


def _progress(text: str) -> None:
    output.complain(terminal.clean(text), "dim")


app.command(epilog=sandboxlogs.MORE)(sandboxlogs.logs)
app.command(epilog=audit.MORE)(audit.audit)
app.command(epilog=usage.MORE)(usage.usage)
backups.add(app)
app.command()(service.uninstall)
app.command(hidden=True)(service.tend_logs)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def demo(context: typer.Context) -> None:
    """Show the whole bot at work on throwaway parts; needs the repository."""
    script = demo_script(Path(__file__).parents[1])
    if script is None:
        output.complain("The demo is part of the repository: run `./dev demo` in a checkout of it.")
        raise typer.Exit(FAILED)
    become(script, ["demo", *context.args])


def demo_script(checkout: Path) -> Path | None:
    """The repository's `dev`, where that folder is a checkout of it."""
    script = checkout / "dev"
    return script if os.access(script, os.X_OK) else None


def become(script: Path, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the script, so that it gets the terminal's Ctrl-C directly and cleans up."""
    os.execv(script, [os.fspath(script), *arguments])  # noqa: S606 - no shell is meant


def _client(config: Path) -> AdminClient:
    from ravebot.web.admin import AdminClient, socket_path

    return AdminClient(socket_path(read_state_dir(config)))


async def _replace_instance(config: Path, loaded: LoadedConfig, instance_id: str) -> bool:
    try:
        await _client(config).replace_instance(instance_id)
    except NotRunningError:
        from ravebot.operations.cleanup import replace_instance_offline

        return await replace_instance_offline(loaded, instance_id)
    return True


async def _strangers(config: Path) -> Strangers:
    try:
        return await _client(config).strangers()
    except NotRunningError:
        from ravebot.operations.cleanup import strangers_offline

        return await strangers_offline(load(config))


async def _cleanup(
    config: Path, older_than: timedelta | None, everything: bool, force: bool, adopt: bool
) -> CleanupReport:
    try:
        return await _client(config).cleanup(older_than=older_than, everything=everything, force=force, adopt=adopt)
    except NotRunningError:
        from ravebot import logs
        from ravebot.operations.cleanup import cleanup as clean_up

        loaded: LoadedConfig = load(config)
        logs.set_up(Level.ERROR.value, loaded.secrets.values())  # `progress` prints what is done
        _progress("No ravebot is running: cleaning up without it.")
        return await clean_up(loaded, older_than, everything, force, adopt, _progress)


def _duration(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _print_json(value: object) -> None:
    output.json(value)
