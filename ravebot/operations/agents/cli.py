"""`ravebot agent …` and `ravebot approvals …`: asks the running bot, and prints what it answers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ravebot.config.file import read_state_dir
from ravebot.terminal import DEFAULT_CONFIG, FAILED, ConfigPath, Json, clean, output, until_interrupted

if TYPE_CHECKING:
    from ravebot.sandboxes.intents import Outcome
    from ravebot.web.adminagents import AgentClient

app = typer.Typer(name="agent", help="Look at coding agents, try them, and give them messages.", no_args_is_help=True)
_dead = typer.Typer(name="dead", help="Dead letters: messages that no agent answered to the end.", no_args_is_help=True)
app.add_typer(_dead)
approvals = typer.Typer(name="approvals", help="Questions that wait for a person's yes or no.", no_args_is_help=True)

LONGEST_TEXT = 16_000
"""As `agents.model.LONGEST_MESSAGE`, which would load the domain."""
_LONGEST_NUMBER = 15
"""Digits, as in rooms and comments."""


def _word(longest: int, example: str) -> Callable[[str], str]:
    """Check only the form: the bot knows what exists."""

    def check(text: str) -> str:
        if len(text) > longest or not text.isprintable():
            raise typer.BadParameter(f"write one like {example}")
        return text

    return check


def _number(word: str) -> int:
    if not (word.isascii() and word.isdecimal() and len(word) <= _LONGEST_NUMBER and int(word)):
        raise typer.BadParameter("write its number, as the list shows it")
    return int(word)


def _text(text: str) -> str:
    if len(text) > LONGEST_TEXT:
        raise typer.BadParameter(f"an agent takes {LONGEST_TEXT:,} characters: shorten it, or put it into a file there")
    return text.encode("utf-8", "replace").decode()


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", callback=_word(50, "coder"), help="The agent's name, as in agents[].name."),
]
Turn = Annotated[int, typer.Argument(metavar="TURN", parser=_number, help="The turn's number, as the list shows it.")]
Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        callback=_word(500, "group/app!42"),
        help="Which merge request, like group/app!42 (in quotes: ! is the shell's).",
    ),
]


@app.command("list", epilog="For example: `ravebot agent list --json`")
def list_agents(config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show the agents that can be spoken to, and how much they have to do."""
    from ravebot.operations.agents import show

    lines = asyncio.run(_client(config).agents())
    if as_json:
        _print_json(lines)
    else:
        show.show_agents(output, lines)


@app.command("show", epilog="For example: `ravebot agent show coder`")
def show_agent(name: Name, config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show one agent: how it is configured, and its newest turns."""
    from ravebot.operations.agents import show

    report = asyncio.run(_client(config).agent(name))
    if as_json:
        _print_json(report)
    else:
        show.show_agent(output, report)


@app.command(epilog="For example: `ravebot agent check coder 'group/app!42' --prompt 'Say hello.'`")
def check(
    name: Name,
    ref: Annotated[
        str,
        typer.Argument(
            metavar="[REF]",
            callback=_word(500, "group/app!42"),
            help="In which merge request's sandbox; by default in one that is ready.",
        ),
    ] = "",
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            callback=_text,
            help="Also have the agent answer this; a model may cost money.",
        ),
    ] = "",
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Try an agent end to end in a sandbox that is ready, and say at each step what to do if it fails."""
    from ravebot.operations.agents import following

    if not asyncio.run(until_interrupted(following.check(_client(config), name, ref, prompt, as_json=as_json))):
        raise typer.Exit(FAILED)


@app.command(
    epilog="For example: `ravebot agent send coder 'group/app!42' 'Why does the login test fail?'`, or with the text"
    " from a file: `ravebot agent send coder 'group/app!42' - < task.md`"
)
def send(
    name: Name,
    ref: Ref,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", callback=_text, help="What to say; `-` reads it from standard input.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the answer, and print it as it comes.")
    ] = True,
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Say something to an agent, in a conversation of its own. Ctrl-C stops the waiting, not the agent."""
    from ravebot.operations.agents import following

    said = _text(sys.stdin.buffer.read(4 * LONGEST_TEXT + 1).decode("utf-8", "replace")) if text == "-" else text
    client = _client(config)
    asked = asyncio.run(client.send(name, ref, said))
    if not asked.accepted or asked.turn is None:
        output.complain(clean(asked.message))
        raise typer.Exit(FAILED)
    if not wait:
        if as_json:
            _print_json(asked)
        else:
            output.say(f"Turn {asked.turn}: {clean(asked.message)}")
        return
    try:
        done = asyncio.run(until_interrupted(following.follow(client, asked.turn, as_json=as_json)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        output.complain(
            f"No longer waiting; turn {asked.turn} goes on. Its state: `ravebot agent show {clean(name)}`", "yellow"
        )
        raise
    if not done:
        raise typer.Exit(FAILED)


@app.command(epilog="For example: `ravebot agent pause coder`")
def pause(name: Name, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Give an agent nothing any more; what it works on goes on, and messages wait."""
    _tell(asyncio.run(_client(config).pause(name, True)))


@app.command(epilog="For example: `ravebot agent resume coder`")
def resume(name: Name, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Go on giving a paused agent its messages, the oldest first."""
    _tell(asyncio.run(_client(config).pause(name, False)))


@_dead.command("list", epilog="For example: `ravebot agent dead list`")
def list_dead(config: ConfigPath = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show the messages that no agent answered to the end, and why."""
    from ravebot.operations.agents import show

    turns = asyncio.run(_client(config).dead())
    if as_json:
        _print_json(turns)
    else:
        show.show_dead(output, turns)


@_dead.command(epilog="For example: `ravebot agent dead resend 17`")
def resend(turn: Turn, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Give a message to its agent once more; an uncertain one may have been carried out before."""
    asked = asyncio.run(_client(config).resend(turn))
    if not asked.accepted:
        output.complain(clean(asked.message))
        raise typer.Exit(FAILED)
    output.say(clean(asked.message))


@_dead.command(epilog="For example: `ravebot agent dead drop 17`")
def drop(turn: Turn, config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Take a message off the list for good."""
    _tell(asyncio.run(_client(config).drop(turn)))


@approvals.command("list", epilog="For example: `ravebot approvals list --all --json`")
def list_approvals(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were answered lately.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show what waits for a person's answer; `--json` has the whole of what is asked."""
    from ravebot.operations.agents import show

    lines = asyncio.run(_client(config).approvals(everything))
    if as_json:
        _print_json(lines)
    else:
        show.show_approvals(output, lines)


@approvals.command(epilog="For example: `ravebot approvals decide 12 --yes`")
def decide(
    approval: Annotated[
        int, typer.Argument(metavar="APPROVAL", parser=_number, help="Its number, as the list shows it.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="The answer: it may.")] = False,
    no: Annotated[bool, typer.Option("--no", help="The answer: it may not.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Answer a question; the first answer counts."""
    if yes == no:
        raise typer.BadParameter("say either --yes or --no")
    _tell(asyncio.run(_client(config).decide(approval, yes)))


def _client(config: Path) -> AgentClient:
    from ravebot.web.admin import socket_path
    from ravebot.web.adminagents import AgentClient

    return AgentClient(socket_path(read_state_dir(config)))


def _tell(outcome: Outcome) -> None:
    if not outcome.accepted:
        output.complain(clean(outcome.message))
        raise typer.Exit(FAILED)
    output.say(clean(outcome.message))


def _print_json(value: object) -> None:
    output.json(value)
