"""What people see of a machine that is paused or does not answer: card, note and lists say so until it is well."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from ravebot.gitlab.notes import render_note
from ravebot.matrix.cards import Style, render_card
from ravebot.matrix.replies import render_list
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.model import Observed
from ravebot.terminal import Output, show_sandboxes
from tests.integration.test_operator import OPS, operator
from tests.support.records import a_merge_request
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration
MR = a_merge_request(1)
SIGNS = ("🟢", "🟠", "⏸")


@pytest.fixture
async def yard(tmp_path: Path, host: MemoryHost) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, MemoryProvider(host), pool={"lifetime": "7d"}) as yard:
        yield yard


async def seen(yard: Yard) -> dict[str, str]:
    """What card, note, the room's list and the shell's two lists show."""
    sandbox = await yard.latest(MR)
    view = await yard.read(lambda tx: yard.views.one(tx, sandbox.id))
    assert view
    lines = await operator(yard).command("list", (), OPS)
    assert isinstance(lines, tuple)
    shell = {}
    for name in ("terminal", "pipe"):
        output, text = Output(), io.StringIO()
        output.console = Console(file=text, force_terminal=name == "terminal", width=300, color_system=None)
        output.raw = lambda line, text=text: text.write(f"{line}\n")  # type: ignore[method-assign,misc,assignment]
        show_sandboxes(output, lines, yard.clock.now())
        shell[name] = text.getvalue()
    return {
        "card": str(render_card(view, Style())["body"]),
        "note": render_note(view, "<!-- mark -->"),
        "list": str(render_list([view])["body"]),
        **shell,
    }


async def all_say(yard: Yard, text: str, sign: str = "") -> None:
    found = await seen(yard)
    assert {name for name, shown in found.items() if text not in shown} == set()
    assert {name for name in ("card", "note") for other in SIGNS if (other in found[name]) != (other == sign)} == set()


async def nobody_says(yard: Yard, text: str) -> None:
    found = await seen(yard)
    assert {name for name, shown in found.items() if text in shown} == set()
    assert all("🟢" in found[name] for name in ("card", "note")), found


async def looks(yard: Yard, times: int) -> None:
    """Pass after pass, each of which looks at the machine."""
    for _ in range(times):
        yard.pass_by(seconds=21)
        await yard.go()


async def restarted_once(yard: Yard, host: MemoryHost) -> str:
    """A ready sandbox whose machine has been restarted; returns its name."""
    await yard.make_ready(MR)
    name = (await yard.machine(MR)).name
    host.set(name, Observed.CRASHED)
    await yard.go()
    await yard.until(lambda: yard.is_in(MR, "ready"))
    assert (await yard.machine(MR)).restarts == 1
    return name


async def told(yard: Yard) -> set[str]:
    """Which of card and note are to be rewritten."""
    kinds = set(await yard.told_kinds())
    await yard.empty_outbox()
    return kinds & {"matrix card", "gitlab note"}


async def test_a_machine_that_was_restarted_and_fell_silent_again_is_shown_as_silent_until_it_answers(
    yard: Yard, host: MemoryHost
) -> None:
    name = await restarted_once(yard, host)
    await nobody_says(yard, "has not answered")
    await told(yard)
    yard.provider.silent.add(name)
    since = yard.clock.now() + timedelta(seconds=21)
    await looks(yard, 5)
    assert await told(yard) == {"matrix card", "gitlab note"}
    await all_say(yard, f"its machine has not answered since {since:%Y-%m-%d %H:%M} UTC", "🟠")
    for _ in range(8):
        await looks(yard, 1)
        await all_say(yard, f"its machine has not answered since {since:%Y-%m-%d %H:%M} UTC", "🟠")
    assert await yard.is_in(MR, "ready")
    await told(yard)
    yard.provider.silent.clear()
    await looks(yard, 1)
    assert await told(yard) == {"matrix card", "gitlab note"}
    await nobody_says(yard, "has not answered")


async def test_a_machine_that_is_paused_is_shown_as_paused_until_it_answers(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    name = (await yard.machine(MR)).name
    await told(yard)
    since = yard.clock.now()
    host.set(name, Observed.PAUSED, "user")
    await yard.go()
    assert await told(yard) == {"matrix card", "gitlab note"}
    await all_say(yard, f"its machine has been paused since {since:%Y-%m-%d %H:%M} UTC", "⏸")
    host.set(name, Observed.AGENT_SILENT)
    await looks(yard, 1)
    assert await told(yard) == {"matrix card", "gitlab note"}
    await nobody_says(yard, "has been paused")


async def test_a_machine_that_goes_on_after_a_pause_and_does_not_answer_is_silent_and_not_paused(
    yard: Yard, host: MemoryHost
) -> None:
    name = await restarted_once(yard, host)
    yard.provider.silent.add(name)
    await looks(yard, 5)
    host.set(name, Observed.PAUSED, "user")
    await yard.go()
    await all_say(yard, "its machine has been paused since", "⏸")
    await told(yard)
    host.set(name, Observed.AGENT_SILENT)
    await looks(yard, 1)
    assert await told(yard) == {"matrix card", "gitlab note"}
    await all_say(yard, "its machine has not answered since", "🟠")


async def test_a_sandbox_that_is_being_stopped_says_nothing_of_how_its_machine_was(
    yard: Yard, host: MemoryHost
) -> None:
    name = await restarted_once(yard, host)
    yard.provider.silent.add(name)
    await looks(yard, 5)
    await yard.told(replace(MR, state="closed"))
    found = await seen(yard)
    assert "not answered" not in found["note"].partition("|")[0]
    assert "Stopping since" in found["card"]
