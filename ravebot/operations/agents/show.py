"""How answers about agents are printed: tables on a terminal, tab-separated lines in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ravebot.operations.agents.reports import (
    AgentReport,
    AgentSummary,
    ApprovalLine,
    CheckResult,
    CheckStep,
    TurnLine,
)
from ravebot.sandboxes.view import in_words
from ravebot.terminal import Cell, Output, clean, utc

_STYLES = {
    "done": "green", "failed": "red", "dead": "red", "uncertain": "yellow", "cancelled": "dim", "working": "cyan",
    "waiting": "yellow", "granted": "green", "denied": "red", "open": "yellow",
}  # fmt: skip
_SIGNS = {CheckResult.OK: ("✓", "green"), CheckResult.FAILED: ("✗", "red"), CheckResult.SKIPPED: ("–", "dim")}


def show_agents(output: Output, lines: Sequence[AgentSummary]) -> None:
    """`ravebot agent list`."""
    if not lines and output.console.is_terminal:
        output.say("No agent is configured that can be spoken to: see agents[] in docs/agents.md.")
        return
    titles = ("Agent", "Owner", "Projects", "State", "Open turns", "Dead letters", "Messages today")
    output.table(
        titles,
        (
            (
                Cell(line.name, "bold"),
                line.owner,
                ", ".join(line.projects),
                Cell(_state(line), "yellow" if line.paused_by else "green"),
                str(line.open_turns),
                Cell(str(line.dead_letters), "red" if line.dead_letters else ""),
                f"{line.messages_today} of {line.messages_per_day}",
            )
            for line in lines
        ),
    )


def show_agent(output: Output, report: AgentReport) -> None:
    """`ravebot agent show`."""
    line = report.line
    output.table(
        ("What", "Value"),
        (
            ("agent", Cell(line.name, "bold")),
            ("owner", line.owner),
            ("projects", ", ".join(line.projects)),
            ("state", Cell(_state(line), "yellow" if line.paused_by else "green")),
            *(
                [("works elsewhere", clean(report.reached))]
                if report.reached
                else [
                    ("command", " ".join(report.command)),
                    ("asks a person before", ", ".join(report.approve) or "nothing"),
                ]
            ),
            ("in forks", "yes" if report.forks else "no"),
            ("longest turn", in_words(report.turn_limit)),
            ("messages today", f"{line.messages_today} of {line.messages_per_day}"),
            *([("tokens of models today", _tokens(line))] if line.tokens_per_day else []),
        ),
    )
    for paused in report.paused_conversations:
        output.complain(clean(f"paused: a conversation about {paused.ref or 'nothing'} ({paused.door}): {paused.why}"))
    if report.turns:
        if output.console.is_terminal:
            output.say("")
        show_turns(output, report.turns)


def _moment(output: Output, at: datetime) -> str:
    """For programs in full; for people without the year."""
    return f"{at.astimezone(UTC):%-d %b %H:%M} UTC" if output.console.is_terminal else utc(at)


def show_turns(output: Output, turns: Sequence[TurnLine]) -> None:
    """Turns: one a line in a pipe; on a terminal with what was said, and why it ended so, below."""
    titles = ("Turn", "When", "Agent", "Merge request", "Asked by", "State", "Why", "Message")
    rows = [
        (
            Cell(str(turn.id), "bold"),
            _moment(output, turn.created_at),
            turn.agent,
            turn.ref,
            turn.asked_by,
            Cell(turn.state, _STYLES.get(turn.state, "")),
            turn.why,
            turn.text,
        )
        for turn in turns
    ]
    if not output.console.is_terminal:
        output.table(titles, rows)
        return
    for number, when, agent, ref, asked_by, state, why, text in rows:
        output.item((number, when, state, f"{agent} in {ref}" if ref else agent, f"for {asked_by}"), (text, why))


def show_dead(output: Output, turns: Sequence[TurnLine]) -> None:
    """`ravebot agent dead list`."""
    if not turns and output.console.is_terminal:
        output.say("There are no dead letters.")
        return
    show_turns(output, turns)
    if output.console.is_terminal:
        output.say("`ravebot agent dead resend TURN` gives one to its agent again; `drop TURN` takes it off.", "dim")


def show_approvals(output: Output, lines: Sequence[ApprovalLine]) -> None:
    """`ravebot approvals list`."""
    if not lines and output.console.is_terminal:
        output.say("Nothing waits for an answer.")
        return
    titles = ("Approval", "Kind", "State", "Merge request", "Asked by", "Until", "What", "Outcome")
    rows = [
        (
            Cell(str(line.id), "bold"),
            line.kind,
            Cell(line.state, _STYLES.get(line.state, "")),
            line.ref,
            line.asked_by,
            _moment(output, line.expires_at),
            line.title,
            "; ".join(filter(None, (f"by {line.decided_by}" if line.decided_by else "", line.outcome))),
        )
        for line in lines
    ]
    if not output.console.is_terminal:
        output.table(titles, rows)
        return
    for number, kind, state, ref, asked_by, until, what, outcome in rows:
        output.item((number, state, kind, ref, f"asked by {asked_by}"), (what, outcome or f"until {until}"))


def show_step(output: Output, step: CheckStep) -> None:
    """One line for a step of `ravebot agent check`, and one for what to do if it failed."""
    sign, style = _SIGNS[step.result]
    if output.console.is_terminal:
        output.say(f"{sign} {step.name} ({step.seconds:.1f} s): {clean(step.detail)}", style)
        if step.fix:
            output.say(f"  → {clean(step.fix)}")
    else:
        output.raw("\t".join((sign, step.name, f"{step.seconds:.1f}", clean(step.detail), clean(step.fix))))


def _tokens(line: AgentSummary) -> str:
    return f"{line.tokens_today:,} of {line.tokens_per_day:,}"


def _state(line: AgentSummary) -> str:
    return f"paused by {line.paused_by}" if line.paused_by else "ready"
