"""`ravebot gitlab hooks`: list, install and remove the webhooks of the configured projects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated

import typer

from ravebot.config.file import load
from ravebot.terminal import DEFAULT_CONFIG, FAILED, Cell, ConfigPath, Json, clean, output, until_interrupted

if TYPE_CHECKING:
    from ravebot.operations.hooks.wording import HookState

app = typer.Typer(name="gitlab", help="Show, register and remove the webhooks in GitLab.", no_args_is_help=True)
_hooks = typer.Typer(name="hooks", help="List, install and remove the projects' webhooks.", no_args_is_help=True)
app.add_typer(_hooks)

Projects = Annotated[
    list[str] | None,
    typer.Option("--project", metavar="PATH", help="Only this project, like group/app; may be given several times."),
]


@_hooks.command("list")
def list_hooks(config: ConfigPath = DEFAULT_CONFIG, project: Projects = None, as_json: Json = False) -> None:
    """Show how the webhook of each project is."""
    from ravebot.operations.hooks import registry

    if not as_json:
        output.complain("GitLab tells no secrets, so they can't be compared; `install` sets them again.", "dim")
    _run(registry.look(load(config), projects=project or None, say=_say(as_json)), as_json)


@_hooks.command()
def install(
    config: ConfigPath = DEFAULT_CONFIG,
    project: Projects = None,
    ssl_verification: Annotated[
        bool | None,
        typer.Option(
            "--ssl-verification/--no-ssl-verification",
            help="Whether GitLab checks the certificate of http.public_url; by default as it is, or checked.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        bool,
        typer.Option(
            "--test", help="Let GitLab send an event of the newest merge request to the running ravebot, at once."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Give each project one right webhook, with the secret of the configuration; may be repeated."""
    from ravebot.operations.hooks import registry

    working = registry.install(
        load(config),
        projects=project or None,
        ssl_verification=ssl_verification,
        test=test,
        say=_say(as_json),
    )
    _run(working, as_json)


@_hooks.command()
def remove(
    config: ConfigPath = DEFAULT_CONFIG,
    project: Projects = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove ravebot's webhook from each project; others are left alone."""
    from ravebot.operations.hooks import registry

    loaded = load(config)
    if not yes:
        which = ", ".join(project or loaded.config.gitlab.projects)
        if not output.is_watched:
            raise typer.BadParameter("there is nobody to ask: add --yes if that is what you want")
        if not output.confirm(clean(f"Remove the webhook to {registry.target(loaded.config).address} from {which}?")):
            output.complain("Nothing was removed.")
            raise typer.Exit(FAILED)
    _run(registry.remove(loaded, projects=project or None, say=_say(as_json)), as_json)


def _say(as_json: bool) -> Callable[[HookState], None]:
    """Tells of each project as it is done, where somebody watches; the table comes at the end."""
    watched = output.errors.is_terminal and not as_json

    def say(state: HookState) -> None:
        if watched:
            output.complain(clean(f"{state.project}: {state.condition.value}"), "dim")

    return say


def _run(working: Coroutine[object, object, list[HookState]], as_json: bool) -> None:
    states = asyncio.run(until_interrupted(working))
    if as_json:
        output.json([_fields(state) for state in states])
    else:
        output.table(
            ("Project", "Webhook", "Detail", "Fix"),
            (
                (
                    Cell(state.project, "bold"),
                    Cell(state.condition.value, "green" if state.ok else "red"),
                    state.detail,
                    state.fix,
                )
                for state in states
            ),
        )
    if not all(state.ok for state in states):
        raise typer.Exit(FAILED)


def _fields(state: HookState) -> dict[str, object]:
    return {
        "project": state.project,
        "ok": state.ok,
        "condition": state.condition.value,
        "detail": state.detail,
        "fix": state.fix,
        "changed": state.changed,
    }
