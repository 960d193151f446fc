"""Waits at the shell for what an agent does: its answer as it comes, and a trial step by step.

The bot is asked again and again for what is new, so that its restart ends neither the turn nor the waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TypeVar

from ravebot.errors import NotRunningError, Unavailable
from ravebot.operations.agents.reports import CheckResult, TurnHeard
from ravebot.operations.agents.show import show_step
from ravebot.terminal import clean, output
from ravebot.web.adminagents import AgentClient

T = TypeVar("T")
LOOK_SECONDS = 0.3
PATIENCE_SECONDS = 60.0
"""How long a bot may be away until the waiting is given up: a restart takes seconds."""


async def follow(client: AgentClient, turn: int, *, as_json: bool, look_seconds: float = LOOK_SECONDS) -> bool:
    """Print a turn's answer until it is over; returns whether the agent answered to the end."""
    offset, answer, told, status, at_line_start = 0, "", set[int](), "", True
    while True:
        heard = await _patiently(lambda at=offset: client.hear(turn, at))  # type: ignore[misc]
        offset = heard.offset
        if heard.left_out:
            answer += f"\n[… {heard.left_out} characters were not kept …]\n"
        answer += heard.text
        if not as_json:
            if heard.left_out:
                output.stream(f"\n[… {heard.left_out} characters were not kept …]\n")
            output.stream(heard.text)
            at_line_start = heard.text.endswith("\n") if heard.text else at_line_start
        for question in heard.questions:
            if question.id not in told:
                told.add(question.id)
                output.complain(
                    f"It waits for approval {question.id}: {clean(question.title)}. To answer:"
                    f" `ravebot approvals decide {question.id} --yes` or `--no`",
                    "yellow",
                )
        if heard.status and heard.status != status and output.errors.is_terminal:
            output.complain(clean(f"({heard.status})"), "dim")
        status = heard.status
        if heard.over and (heard.text or heard.left_out):
            continue  # the end may come in pieces
        if heard.over:
            if as_json:
                output.json(_result(turn, heard, answer))
            elif not at_line_start:
                output.stream("\n")
            if not heard.ok:
                output.complain(clean(f"Turn {turn} is {heard.state}: {heard.why or 'it was not answered'}"))
            return heard.ok
        await asyncio.sleep(look_seconds)


def _result(turn: int, heard: TurnHeard, answer: str) -> dict[str, object]:
    return {"turn": turn, "state": heard.state, "ok": heard.ok, "why": heard.why, "answer": answer}


async def check(
    client: AgentClient, name: str, ref: str, prompt: str, *, as_json: bool, look_seconds: float = LOOK_SECONDS
) -> bool:
    """Print the steps of a trial as they end; returns whether all went well."""
    number = await client.start_check(name, ref, prompt)
    shown, under_way = 0, ""
    while True:
        progress = await client.check_progress(number)
        if not as_json:
            for step in progress.steps[shown:]:
                show_step(output, step)
            shown = len(progress.steps)
            if progress.under_way not in ("", under_way) and output.errors.is_terminal:
                output.complain(clean(f"… {progress.under_way}"), "dim")
            under_way = progress.under_way
        if progress.over:
            ok = all(step.result is not CheckResult.FAILED for step in progress.steps)
            if as_json:
                steps = [asdict(step) for step in progress.steps]
                output.json({"ok": ok, "steps": steps})
            return ok
        await asyncio.sleep(look_seconds)


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while the bot is away."""
    since: float | None = None
    while True:
        try:
            return await ask()
        except (NotRunningError, Unavailable):
            now = time.monotonic()
            if since is None:
                since = now
                output.complain("ravebot is away; waiting for it …", "dim")
            if now - since > PATIENCE_SECONDS:
                raise
        await asyncio.sleep(1)
