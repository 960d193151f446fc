"""How a merge request's sandbox stands, for the job that waits for it. Pure.

200: it is ready with the job's commit. 202: it is on its way. 404: there is none, and why. 409: a newer commit came.
422: it failed.
"""

from __future__ import annotations

from ravebot.sandboxes.model import EndReason, MergeRequest, SandboxState
from ravebot.sandboxes.view import SandboxView, in_words, without_terminal_codes
from ravebot.web.ci.answers import JobAnswer

READY, COMING, NONE, OVERTAKEN, FAILED = 200, 202, 404, 409, 422


def overtaken(mr: MergeRequest, sha: str) -> JobAnswer:
    """The job's pipeline runs a commit that is the head no more."""
    why = f"{mr.full_ref} is at commit {mr.head_sha[:8]} now; the pipeline of that one goes on. This one runs {sha[:8]}"
    return JobAnswer.of(OVERTAKEN, state="overtaken", reason=why)


def closed(mr: MergeRequest) -> JobAnswer | None:
    """For a merge request that gets no sandbox any more."""
    if mr.state == "opened":
        return None
    why = f"{mr.full_ref} is {mr.state}: only an open merge request gets a sandbox"
    return JobAnswer.of(NONE, state="none", reason=why)


def unapproved(mr: MergeRequest) -> JobAnswer | None:
    """For a fork's commit that nobody has let in."""
    if not mr.from_fork or mr.approved_sha == mr.head_sha:
        return None
    why = (
        f"{mr.full_ref} comes from a fork, and nobody let its commit in: a Developer who has looked at its code"
        f" comments `/sandbox start {mr.head_sha}`. Then run this job again"
    )
    return JobAnswer.of(NONE, state="none", reason=why)


def standing(mr: MergeRequest, view: SandboxView | None, why_none: str) -> JobAnswer:
    """`view`: of the newest sandbox, `why_none`: why none starts by itself; `mr` is open, and its head may run."""
    if view is None:
        return none(mr, why_none, "there is no sandbox yet")
    sandbox = view.sandbox
    match sandbox.state:
        case SandboxState.QUEUED:
            return _coming(view, view.queue_reason or _place(view))
        case SandboxState.STARTING:
            return _coming(view, f"it is at: {sandbox.stage.value}" if sandbox.stage else "its machine starts")
        case SandboxState.STOPPING | SandboxState.ENDED:
            failed = sandbox.end_reason in (EndReason.FAILED, EndReason.LOST) and sandbox.sha == mr.head_sha
            if failed:
                return _failed(view, sandbox.end_detail)
            ended = f"the last one {_how_it_ended(view)}"
            return none(mr, why_none, ended)
        case SandboxState.READY:
            return _ready(view, mr.head_sha)


def none(mr: MergeRequest, why_none: str, otherwise: str) -> JobAnswer:
    how = "POST to this address starts one" if not why_none else "A Developer starts one with `/sandbox start`"
    return JobAnswer.of(NONE, state="none", reason=f"{mr.full_ref} has no sandbox: {why_none or otherwise}. {how}")


def had_one(answer: JobAnswer) -> JobAnswer:
    """The same, for a job that may not start another."""
    if answer.status != NONE:
        return answer
    why = answer.said["reason"].partition(". POST ")[0]
    return JobAnswer.of(NONE, state="none", reason=f"{why}. A job starts at most one: run the job again for another")


def _ready(view: SandboxView, sha: str) -> JobAnswer:
    sandbox = view.sandbox
    if sandbox.is_kept:
        return _failed(view, sandbox.end_detail)
    if sandbox.sha != sha:
        return _coming(view, f"it takes commit {sha[:8]} next")
    if sandbox.stage is not None:
        return _coming(view, f"it takes commit {sha[:8]}, and is at: {sandbox.stage.value}")
    if sandbox.update_failed:
        return _failed(view, sandbox.notice)
    access = view.access
    if access is None or sandbox.running_sha != sha:
        return _coming(view, "its ports are being opened")
    return JobAnswer.of(
        READY,
        state="ready",
        url=access.web_url or "",
        ssh=access.ssh_command,
        sha=sha,
        expires=sandbox.expires_at.isoformat(timespec="seconds") if sandbox.expires_at else "",
        trouble=view.trouble.words if view.trouble else sandbox.notice,
        environment=view.environment_url or "",
    )


def _coming(view: SandboxView, waits: str) -> JobAnswer:
    return JobAnswer.of(COMING, state=view.sandbox.status, waits=waits)


def _failed(view: SandboxView, why: str) -> JobAnswer:
    """With the end of what the failed stage printed."""
    reason = why or "its machine is lost"
    failed = next((one for one in reversed(view.stages) if not one.ok), None)
    answer = JobAnswer.of(FAILED, state="failed", reason=f"the sandbox of {view.mr.full_ref} failed: {reason}")
    return answer.with_log(without_terminal_codes(failed.tail)) if failed else answer


def _place(view: SandboxView) -> str:
    if view.queue_position is None:
        return "it waits for a machine"
    wait = f", in about {in_words(view.queue_wait)}" if view.queue_wait else ""
    return f"it is number {view.queue_position} in the queue{wait}"


def _how_it_ended(view: SandboxView) -> str:
    reason = view.sandbox.end_reason
    how = {
        EndReason.EXPIRED: "came to its end",
        EndReason.STOPPED: "was stopped",
        EndReason.MERGED: "ended with its merge request",
        EndReason.CLOSED: "ended with its merge request",
        EndReason.SUPERSEDED: "was replaced",
    }
    return how.get(reason, "failed at an earlier commit") if reason else "is stopping"
