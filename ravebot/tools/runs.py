"""What the tools for commands do: run one in a sandbox, read its output on, and end it."""

from __future__ import annotations

from datetime import timedelta

from ravebot.agents.reception import refuse
from ravebot.errors import Refused
from ravebot.sandboxes.model import GuestRun, MergeRequest, RunId
from ravebot.sandboxes.runs import RunOutput, run_cancel, run_read, run_start
from ravebot.store import merge_requests, runs, sandboxes
from ravebot.store.database import Transaction
from ravebot.tools import shapes
from ravebot.tools.callers.contract import Caller
from ravebot.tools.problems import ProblemKind, ToolProblem, problem_of
from ravebot.tools.steps import PreparedAct
from ravebot.tools.waiting import LookAgain
from ravebot.tools.workbench import Workbench


async def start(bench: Workbench, caller: Caller, asked: shapes.StartRun) -> PreparedAct:
    reached = await caller.reach(bench, asked.ref, acts=True)
    mr, decision = reached.mr, reached.decision

    def step(tx: Transaction) -> shapes.RunInfo | ToolProblem:
        if not decision.allowed:
            refuse(tx, reached.actor, "run_start", mr.full_ref, decision)
            return ToolProblem(ProblemKind.FORBIDDEN, decision.refusal)
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is None:
            why = f"{mr.full_ref} has no sandbox to run anything in: start one with sandbox_start."
            return ToolProblem(ProblemKind.REFUSED, why)
        try:
            run = run_start(tx, sandbox, asked.command, timedelta(seconds=asked.timeout), reached.actor)
        except Refused as error:  # nothing is written then
            return problem_of(error)
        return info(run, mr)

    return PreparedAct(step, reached)


async def read(bench: Workbench, caller: Caller, asked: shapes.ReadRun) -> shapes.RunHeard:
    _, mr = await _theirs(bench, caller, asked.id)

    def look(tx: Transaction) -> tuple[GuestRun, RunOutput]:
        run = runs.get(tx, RunId(asked.id))
        if run is None:
            raise _none(asked.id)
        return run, run_read(tx, run, asked.offset)

    again = LookAgain(asked.wait)
    while True:
        run, output = await bench.database.read(look)
        if output.text or run.state.is_over or not await again.wait():
            return shapes.RunHeard(
                run=info(run, mr), output=output.text, offset=output.next_offset, more=output.more, cut=output.cut
            )


async def cancel(bench: Workbench, caller: Caller, asked: shapes.OneRun) -> PreparedAct:
    _, mr = await _theirs(bench, caller, asked.id)
    reached = await caller.reach(bench, mr.full_ref, acts=True)

    def step(tx: Transaction) -> shapes.RunInfo | ToolProblem:
        if not reached.decision.allowed:
            refuse(tx, reached.actor, "run_cancel", mr.full_ref, reached.decision)
            return ToolProblem(ProblemKind.FORBIDDEN, reached.decision.refusal)
        run = runs.get(tx, RunId(asked.id))
        return info(run_cancel(tx, run, reached.actor), mr) if run else _none(asked.id)

    return PreparedAct(step, reached)


async def _theirs(bench: Workbench, caller: Caller, number: int) -> tuple[GuestRun, MergeRequest]:
    """A run that the caller may look at. Raises ToolProblem."""

    def look(tx: Transaction) -> tuple[GuestRun, MergeRequest] | None:
        run = runs.get(tx, RunId(number))
        sandbox = sandboxes.get(tx, run.sandbox_id) if run else None
        mr = merge_requests.get(tx, sandbox.mr) if sandbox else None
        return (run, mr) if run and mr else None

    found = await bench.database.read(look)
    if found is None or caller.sandbox_id not in (None, found[0].sandbox_id):
        raise _none(number)
    if not await caller.may_see(bench, found[1]):
        raise _none(number)
    return found


def _none(number: int) -> ToolProblem:
    return ToolProblem(
        ProblemKind.NOT_FOUND, f"There is no run {number} that you may see; they are kept for a while, usually 7 days."
    )


def info(run: GuestRun, mr: MergeRequest) -> shapes.RunInfo:
    """A run, as tools show it."""
    return shapes.RunInfo(
        id=run.id,
        ref=mr.full_ref,
        command=run.command,
        state=run.state,
        over=run.state.is_over,
        exit_code=run.exit_code,
        why=run.why,
        asked_by=run.by,
        created_at=run.created_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
    )
