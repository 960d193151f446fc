"""What the tools for sandboxes do: look, start, extend, stop, and read what set-up printed and what was changed."""

from __future__ import annotations

import asyncio
from typing import Any

from ravebot.commands import refs
from ravebot.commands.execute import execute
from ravebot.commands.permissions import Asker
from ravebot.commands.verbs import VERBS, Command, read_duration
from ravebot.errors import NotFound
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Machine, Sandbox
from ravebot.sandboxes.view import SandboxView, without_terminal_codes
from ravebot.store import machines, sandboxes
from ravebot.store.database import Transaction
from ravebot.tools import shapes
from ravebot.tools.callers.contract import Caller, Reached
from ravebot.tools.problems import ProblemKind, ToolProblem
from ravebot.tools.steps import PreparedAct
from ravebot.tools.workbench import Workbench

Running = tuple[Sandbox, Machine]
_VERBS = {verb.name: verb for verb in VERBS}
_LONGEST_DIFF = 200_000
_NO_SANDBOX = "{} has no sandbox: start one with sandbox_start."


async def whoami(bench: Workbench, caller: Caller, _: shapes.Nothing) -> shapes.Me:
    return await caller.me(bench)


async def list_live(bench: Workbench, caller: Caller, asked: shapes.ListSandboxes) -> shapes.SandboxPage:
    views = await bench.database.read(bench.views.live)
    named = [view for view in views if asked.project in ("", view.mr.project_path)]
    named = [view for view in named if caller.sandbox_id in (None, view.sandbox.id)]
    of_project = {view.mr.ref.project_id: view.mr for view in named}
    may = {number for number, mr in of_project.items() if await caller.may_see(bench, mr)}
    seen = [view for view in named if view.mr.ref.project_id in may]
    first = (asked.page - 1) * asked.per_page
    last = first + asked.per_page
    return shapes.SandboxPage(
        items=tuple(map(info, seen[first:last])),
        page=asked.page,
        per_page=asked.per_page,
        total=len(seen),
        next_page=asked.page + 1 if last < len(seen) else None,
    )


async def show(bench: Workbench, caller: Caller, asked: shapes.OneSandbox) -> shapes.SandboxInfo:
    reached = await caller.reach(bench, asked.ref)
    view = await bench.database.read(lambda tx: bench.views.latest(tx, reached.mr.ref))
    if view is None:
        raise ToolProblem(ProblemKind.NOT_FOUND, _NO_SANDBOX.format(reached.mr.full_ref))
    return info(view)


async def start(bench: Workbench, caller: Caller, asked: shapes.StartSandbox) -> PreparedAct:
    reached = await caller.reach(bench, asked.ref, acts=True)
    return await _command(bench, reached, "start", sha=asked.sha.lower() or None)


async def extend(bench: Workbench, caller: Caller, asked: shapes.ExtendSandbox) -> PreparedAct:
    try:
        by = read_duration(asked.by)
    except ValueError as error:
        raise ToolProblem(ProblemKind.INVALID, str(error)) from error
    reached = await caller.reach(bench, asked.ref, acts=True)
    return await _command(bench, reached, "extend", by=by)


async def stop(bench: Workbench, caller: Caller, asked: shapes.OneSandbox) -> PreparedAct:
    reached = await caller.reach(bench, asked.ref, acts=True)
    return await _command(bench, reached, "stop")


async def logs(bench: Workbench, caller: Caller, asked: shapes.OneSandbox) -> shapes.SandboxLogs:
    reached = await caller.reach(bench, asked.ref)
    runs = await bench.database.read(lambda tx: sandboxes.printed(tx, reached.mr.ref))
    return shapes.SandboxLogs(
        ref=reached.mr.full_ref,
        runs=tuple(
            shapes.SetUpRun(
                at=run.at,
                ok=run.ok,
                stages=tuple(
                    shapes.StageOutput(
                        stage=one.stage.value,
                        ok=one.ok,
                        seconds=one.seconds,
                        output=without_terminal_codes(one.tail),
                    )
                    for one in run.results
                ),
            )
            for run in runs
        ),
    )


async def changes(bench: Workbench, caller: Caller, asked: shapes.OneSandbox) -> shapes.SandboxChanges:
    # Of all that looks it costs most: in a sandbox it is for its agent's turns only.
    reached = await caller.reach(bench, asked.ref, acts=caller.sandbox_id is not None)
    if not reached.decision.allowed:
        raise ToolProblem(ProblemKind.FORBIDDEN, reached.decision.refusal)
    ref = reached.mr.ref

    def running(tx: Transaction) -> Running | None:
        sandbox = sandboxes.current(tx, ref)
        machine = machines.get(tx, sandbox.machine_id) if sandbox else None
        return (sandbox, machine) if sandbox and machine else None

    found = await bench.database.read(running)
    if found is None:
        why = f"{reached.mr.full_ref} has no machine to compare: its sandbox must be ready."
        raise ToolProblem(ProblemKind.REFUSED, why)
    try:
        async with asyncio.timeout(shapes.LONGEST_WAIT_SECONDS):
            diff = await bench.diffs.read(*found, reached.mr)
    except TimeoutError:
        why = f"The sandbox was not compared within {shapes.LONGEST_WAIT_SECONDS} seconds:"
        raise ToolProblem(ProblemKind.UNAVAILABLE, f"{why} try again when less is running there.", 10) from None
    return shapes.SandboxChanges(
        ref=reached.mr.full_ref,
        base_sha=diff.base_sha,
        hash=diff.hash,
        files=tuple(
            shapes.ChangedFile(
                path=one.path, kind=one.kind.value, added=one.added, removed=one.removed, binary=one.binary
            )
            for one in diff.changes
        ),
        diff=diff.text[:_LONGEST_DIFF],
        cut=max(0, len(diff.text) - _LONGEST_DIFF),
        left_out=tuple(shapes.FileLeftOut(path=one.path, why=one.why) for one in diff.left_out),
        left_out_more=diff.left_out_more,
        refusal=diff.refusal,
    )


async def _command(bench: Workbench, reached: Reached, name: str, **said: Any) -> PreparedAct:
    """One of the verbs, as every door has it carried out."""
    verb = _VERBS[name]
    command = Command(verb, duration=said.get("by"), sha=said.get("sha"))
    try:
        head = await bench.people.head(verb, reached.mr.ref) if reached.decision.allowed else None
    except NotFound:
        raise ToolProblem(ProblemKind.NOT_FOUND, refs.missing(reached.mr.full_ref)) from None

    def step(tx: Transaction) -> shapes.SandboxDone | ToolProblem:
        outcome = execute(bench.intents, tx, command, Asker(reached.actor, reached.decision), head or reached.mr)
        if not outcome.accepted:
            kind = ProblemKind.REFUSED if reached.decision.allowed else ProblemKind.FORBIDDEN
            return ToolProblem(kind, _in_full(outcome))
        view = bench.views.latest(tx, reached.mr.ref)
        return shapes.SandboxDone(message=outcome.message, sandbox=info(view) if view else None)

    return PreparedAct(step, reached)


def _in_full(outcome: Outcome) -> str:
    """A reply, with the tool that goes on from there."""
    advice = outcome.advice
    if advice is None or advice.verb not in ("start", "extend", "stop", "show"):
        return outcome.message
    tool = "sandbox_get" if advice.verb == "show" else f"sandbox_{advice.verb}"
    given = {"start": "sha", "extend": "by"}.get(advice.verb, "")
    argument = f" with {given} {advice.argument}" if advice.argument and given else ""
    return f"{outcome.message} {advice.purpose}: {tool}{argument}."


def info(view: SandboxView) -> shapes.SandboxInfo:
    """A sandbox, as tools show it."""
    sandbox, access = view.sandbox, view.access
    return shapes.SandboxInfo(
        ref=view.mr.full_ref,
        title=view.mr.title,
        state=sandbox.status,
        stage=sandbox.stage.value if sandbox.stage else "",
        queue_position=view.queue_position,
        author=view.mr.author.username,
        sha=sandbox.sha,
        running_sha=sandbox.running_sha or "",
        ssh_command=access.ssh_command if access else "",
        host_keys=access.host_keys if access else (),
        web_url=(access.web_url or "") if access else "",
        created_at=sandbox.created_at,
        ready_at=sandbox.ready_at,
        expires_at=sandbox.expires_at,
        ended_at=sandbox.ended_at,
        trouble=view.trouble.words if view.trouble else "",
        notice=view.notice,
        model_tokens=view.model_tokens,
    )
