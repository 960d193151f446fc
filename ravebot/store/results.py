"""What set-up and tests of a sandbox gave, command by command, and what their reports say."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta

from ravebot.clock import to_us
from ravebot.sandboxes.model import Sandbox, Stage
from ravebot.sandboxes.results import CaseCounts, CommandResult, FailedCase
from ravebot.store.database import Transaction, Value, dump_json
from ravebot.store.rows import load


def begin(tx: Transaction, sandbox: Sandbox, command: CommandResult) -> None:
    """Note that a command begins, unless it did in this attempt: it may have outlived our process."""
    tx.execute(
        "INSERT INTO command_results (sandbox_id, attempt, stage, position, what, seconds, tail, at)"
        " VALUES (?, ?, ?, ?, ?, 0, '', ?) ON CONFLICT DO NOTHING",
        (sandbox.id, sandbox.stage_attempt, command.stage, command.position, command.what, tx.now_us),
    )


def end(tx: Transaction, sandbox: Sandbox, stage: Stage, position: int, *, ok: bool, tail: str = "") -> None:
    """Note how a command ended, unless that is known."""
    tx.execute(
        "UPDATE command_results SET ok = ?, tail = ?, seconds = MAX(0, ? - at) / 1000000.0"
        " WHERE sandbox_id = ? AND attempt = ? AND stage = ? AND position = ? AND ok IS NULL",
        (int(ok), tail, tx.now_us, sandbox.id, sandbox.stage_attempt, stage, position),
    )


def put_report(tx: Transaction, sandbox: Sandbox, report: CaseCounts) -> None:
    values: dict[str, Value] = {
        "sandbox_id": sandbox.id,
        "attempt": sandbox.stage_attempt,
        "report": dump_json(asdict(report)),
        "at": tx.now_us,
    }
    tx.upsert("test_reports", ("sandbox_id", "attempt"), values)


def newest(tx: Transaction, sandbox: Sandbox) -> tuple[tuple[CommandResult, ...], CaseCounts | None]:
    """Of the latest run of the chain that has any: its commands in their order, and what the reports say."""
    row = tx.one(
        "SELECT MAX(attempt) AS attempt FROM (SELECT MAX(attempt) AS attempt FROM command_results WHERE sandbox_id = ?"
        " UNION ALL SELECT MAX(attempt) FROM test_reports WHERE sandbox_id = ?)",
        (sandbox.id, sandbox.id),
    )
    if row is None or row["attempt"] is None:
        return (), None
    at = (sandbox.id, row["attempt"])
    rows = tx.all(
        "SELECT stage, position, what, ok, seconds, tail FROM command_results WHERE sandbox_id = ? AND attempt = ?"
        " ORDER BY stage, position",  # set-up comes before test
        at,
    )
    report = tx.one("SELECT report FROM test_reports WHERE sandbox_id = ? AND attempt = ?", at)
    return tuple(load(CommandResult, row) for row in rows), _report(report["report"]) if report else None


def forget_output(tx: Transaction, older_than: timedelta) -> int:
    """Delete what commands printed so long ago, and reports of that time; the results of the commands stay."""
    before = (to_us(tx.now - older_than),)
    reports = tx.changed("DELETE FROM test_reports WHERE at < ?", before)
    return reports + tx.changed("UPDATE command_results SET tail = '' WHERE at < ? AND tail <> ''", before)


def _report(text: str) -> CaseCounts:
    value = json.loads(text)
    failures = tuple(FailedCase(**one) for one in value.pop("failures"))
    return CaseCounts(**{**value, "failures": failures, "problems": tuple(value["problems"])})
