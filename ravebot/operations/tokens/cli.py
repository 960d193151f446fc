"""`ravebot token …`: asks the running bot, and prints what it answers. A new token is printed this once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ravebot.config.file import read_state_dir
from ravebot.config.values import LONGEST, parse_duration
from ravebot.terminal import DEFAULT_CONFIG, FAILED, ConfigPath, Json, clean, output

if TYPE_CHECKING:
    from ravebot.web.admintokens import TokenClient

app = typer.Typer(name="token", help="Tokens for the API and MCP: make, list and revoke them.", no_args_is_help=True)
SCOPES = ("read", "sandbox", "run", "message", "agent")
"""As `store.api_tokens.Scope`, which would load the store."""


def _scopes(words: list[str]) -> list[str]:
    for word in words:
        if word not in SCOPES:
            raise typer.BadParameter(f"there is no scope {clean(word)[:50]!r}: take some of {', '.join(SCOPES)}")
    return words


def _expires(text: str) -> timedelta:
    try:
        found = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not timedelta(0) < found <= LONGEST:
        raise typer.BadParameter("a token ends after at most a year: write a time like 30d, 90d or 365d")
    return found


def _short(text: str) -> str:
    if not text.strip() or len(text) > 100 or not text.isprintable():
        raise typer.BadParameter("write a word or a few")
    return text


def _number(word: str) -> int:
    if not (word.isascii() and word.isdecimal() and len(word) <= 15 and int(word)):
        raise typer.BadParameter("write its number, as the list shows it")
    return int(word)


@app.command(
    epilog="For example: `ravebot token create --owner alice --name laptop --scope read --scope sandbox"
    " --project 'group/*' > token`. Whoever has the token may do what it says: keep it in a file with mode 600."
)
def create(
    owner: Annotated[
        str,
        typer.Option("--owner", metavar="USER", callback=_short, help="The GitLab user in whose name it acts."),
    ],
    name: Annotated[str, typer.Option("--name", metavar="TEXT", callback=_short, help="What it is for.")],
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope", metavar="SCOPE", callback=_scopes, help=f"What it may: {', '.join(SCOPES)}. Repeat it for more."
        ),
    ],
    project: Annotated[
        list[str],
        typer.Option(
            "--project", metavar="PATTERN", help="Where: a project like group/app, or a pattern. Repeat it for more."
        ),
    ],
    agent: Annotated[
        str, typer.Option("--agent", metavar="NAME", help="With the scope agent: whose messages it takes.")
    ] = "",
    expires: Annotated[
        timedelta,
        typer.Option("--expires", metavar="TIME", parser=_expires, help="How long it is valid, at most 365d."),
    ] = "90d",  # type: ignore[assignment]
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Make a token, and print it; it can't be shown again. It never may more than its owner."""
    made = asyncio.run(
        _client(config).create_token(
            owner=owner, name=name, scopes=tuple(scope), projects=tuple(project), agent=agent, expires=expires
        )
    )
    for remark in made.remarks:
        output.complain(clean(remark), "yellow")
    if as_json:
        output.json(made)
        return
    output.raw(made.text)
    until = f"{made.line.expires_at:%Y-%m-%d}"
    output.complain(f"Token {made.line.id}, valid until {until}. It is shown only now.", "green")


@app.command("list", epilog="For example: `ravebot token list --json`")
def list_tokens(config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show every token: whose it is, what it may, until when, and when it was last used."""
    from ravebot.operations.tokens.show import show_tokens

    lines = asyncio.run(_client(config).tokens())
    if as_json:
        output.json(lines)
    else:
        show_tokens(output, lines)


@app.command(epilog="For example: `ravebot token revoke 3`")
def revoke(
    token: Annotated[int, typer.Argument(metavar="TOKEN", parser=_number, help="Its number, as the list shows it.")],
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """End a token for good, at once."""
    outcome = asyncio.run(_client(config).revoke_token(token))
    if not outcome.accepted:
        output.complain(clean(outcome.message))
        raise typer.Exit(FAILED)
    output.say(clean(outcome.message))


def _client(config: Path) -> TokenClient:
    from ravebot.web.admin import socket_path
    from ravebot.web.admintokens import TokenClient

    return TokenClient(socket_path(read_state_dir(config)))
