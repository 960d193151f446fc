"""A new verb is one row and one function: it works at every door that its row names, and is found at no other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ravebot.cli import add_verbs
from ravebot.commands.execute import CANNOT
from ravebot.commands.people import People
from ravebot.commands.verbs import VERBS, Command, Door, Group, Show, Takes, Verb, help_groups, help_rows
from ravebot.operations.operator import Operator
from ravebot.parts import make_core
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.intents import Intents, Outcome
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.store.database import Transaction
from ravebot.web import admin
from ravebot.web.admin import AdminClient, socket_path
from tests.integration.test_intake_gitlab import Desk, desk
from tests.integration.test_intake_matrix import ALICE, GINA, Chat, chat
from tests.support.edges import Code, Fence, Web

pytestmark = pytest.mark.integration
__all__ = ["chat", "desk"]  # the fixtures, from where they are made

ALL = (Door.ROOM, Door.COMMENT, Door.SHELL)
NONE = "There is no such command"


def with_mark(*doors: Door) -> tuple[tuple[Verb, ...], list[str]]:
    """The table with one more verb at these doors, and what that verb does."""
    done: list[str] = []

    def mark(_: Intents, __: Transaction, mr: MergeRequest, actor: Actor, command: Command) -> Outcome:
        done.append(f"{actor.kind}: {mr.full_ref} at {mr.head_sha[:8]} for {command.duration}")
        return Outcome(True, f"{mr.full_ref} is marked")

    row = Verb("mark", mark, Group.KEEP, dict.fromkeys(doors, "Mark it."), "Then it has a mark.",
               takes=(Takes.REF, Takes.DURATION), needs_head=True)  # fmt: skip
    return (*VERBS, row), done


class Shell:
    """The command line, with the table that the bot behind the socket has too."""

    def __init__(self, folder: Path, verbs: tuple[Verb, ...]) -> None:
        self.app = typer.Typer()
        add_verbs(self.app, verbs)
        self.config = folder / "config.yaml"
        self.config.write_text(f"state_dir: {folder}\n")

    async def run(self, *arguments: str) -> tuple[int, str]:
        environment = {"RAVEBOT_CONFIG": str(self.config), "COLUMNS": "200", "NO_COLOR": "1"}
        result = await asyncio.to_thread(CliRunner().invoke, self.app, arguments, env=environment)
        return result.exit_code, result.output


def operator(desk: Desk) -> Operator:
    world, provider = desk.world, MemoryProvider(MemoryHost(), instance_id=desk.world.config.instance)
    core = make_core(world.config, world.database, world.clock, provider, Fence(), Code(), world.metrics, web=Web())
    people = People(world.config, world.database, desk.gitlab)
    return Operator(world.config, world.database, core, provider, people, desk.verbs)


@pytest.mark.parametrize("doors", [ALL, ALL[:1], ALL[1:2], ALL[2:]], ids=str)
async def test_a_new_row_works_at_the_doors_that_it_names_and_is_found_at_no_other(
    desk: Desk, chat: Chat, tmp_path: Path, doors: tuple[Door, ...]
) -> None:
    desk.verbs, done = with_mark(*doors)
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    head = desk.server.push(mr, {"new.txt": "new"})[:8]
    shell = Shell(tmp_path, tuple(desk.verbs))

    said = await chat.ask(ALICE, "!rave mark 1 1h30m")
    await desk.say(mr, desk.alice, "/sandbox mark 2h")
    await desk.work()
    _, emoji, *_ = await desk.answers()  # the first is the room's
    async with admin.serve(admin.make_app(operator(desk)), socket_path(tmp_path)):
        code, printed = await shell.run("mark", "group/app!1", "30m")
        asked = await AdminClient(socket_path(tmp_path)).command("mark", ("group/app!1", "30m"))

    assert (said == "group/app!1 is marked") == (Door.ROOM in doors)
    assert said.startswith(NONE) == (Door.ROOM not in doors)
    assert emoji == ("white_check_mark" if Door.COMMENT in doors else "no_entry_sign")
    assert (code, printed) == (0, "group/app!1 is marked\n") or Door.SHELL not in doors
    assert (code == 2 and "No such command" in printed) == (Door.SHELL not in doors)
    assert asked == Outcome(True, "group/app!1 is marked") or Door.SHELL not in doors
    expected = {
        Door.ROOM: [f"matrix: group/app!1 at {head} for 1:30:00"],
        Door.COMMENT: [f"gitlab: group/app!1 at {head} for 2:00:00"],
        Door.SHELL: [f"shell: group/app!1 at {head} for 0:30:00"] * 2,
    }
    assert done == [line for door in doors for line in expected[door]]


async def test_a_new_row_has_its_permission_its_usage_and_its_help_at_every_door(
    desk: Desk, chat: Chat, tmp_path: Path
) -> None:
    desk.verbs, done = with_mark(*ALL)
    mr = desk.open()
    shell = Shell(tmp_path, tuple(desk.verbs))

    refusal = (
        "Refused: gina is Guest in group/app. This needs the role Developer or more: ask a Maintainer of group/app."
    )
    assert await chat.ask(GINA, "!rave mark group/app!1") == refusal
    assert (await chat.ask(ALICE, "!rave mark group/app!1 soon")).endswith("Type `!rave mark REF [1h]`.")
    assert "!rave mark REF [1h]" in await chat.ask(GINA, "!rave help")
    assert "Then it has a mark." in await chat.ask(GINA, "!rave help mark")
    await desk.say(mr, desk.gina, "/sandbox mark")
    await desk.say(mr, desk.alice, "/sandbox mark soon")
    await desk.work()
    _, refused, _, mistaken = (await desk.answers())[4:]  # the others are the room's
    assert (refused, mistaken.partition(". ")[2]) == (refusal, "Type `/sandbox mark [1h]`.")
    code, printed = await shell.run("mark", "group/app!1", "soon")
    assert (code, "write a duration" in printed) == (2, True)
    await desk.tell(mr)
    await desk.work()
    desk.server.fail(404, path=f"/merge_requests/{mr.iid}$")
    async with admin.serve(admin.make_app(operator(desk)), socket_path(tmp_path)):
        code, printed = await shell.run("mark", "group/app!1")
    assert (code, "There is no group/app!1, or I may not see it." in printed) == (1, True)
    assert done == []

    headed = dict(help_groups(Door.COMMENT, "/sandbox", desk.verbs))
    assert ("/sandbox mark [1h]", "Mark it.") in headed[Group.KEEP.value]
    assert ("ravebot mark REF [1h]", "Mark it.") in help_rows(Door.SHELL, "ravebot", desk.verbs)
    assert "Mark it." in (await shell.run("--help"))[1]


async def test_what_a_verb_shows_is_rendered_at_each_of_its_doors(desk: Desk, chat: Chat, tmp_path: Path) -> None:
    """A new member of `Show` that a door forgot is answered with a refusal, or with a bug in the log."""
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    shows = [verb for verb in VERBS if isinstance(verb.does, Show)]
    assert {verb.does for verb in shows} == set(Show)
    for verb in shows:
        if Door.ROOM in verb.doors:
            said = await chat.ask(ALICE, f"!rave {verb.name}{' group/app!1' if Takes.REF in verb.takes else ''}")
            assert not said.startswith((NONE, CANNOT, "I could not")), verb.name
    for verb in shows:
        if Door.COMMENT in verb.doors:
            before = len(await desk.answers())
            await desk.say(mr, desk.alice, f"/sandbox {verb.name}")
            await desk.work()
            assert (await desk.answers())[before] == "white_check_mark"
        if Door.SHELL in verb.doors:
            async with admin.serve(admin.make_app(operator(desk)), socket_path(tmp_path)):
                assert not isinstance(await AdminClient(socket_path(tmp_path)).command(verb.name), Outcome)
