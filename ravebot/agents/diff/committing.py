"""What a commit of a diff is made of, and why GitLab or we refuse it: pure."""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Iterable, Mapping

from ravebot.agents.diff.model import BranchCommit, BranchHead, Change, ChangeKind, CommitOrder, Diff
from ravebot.sandboxes.model import MergeRequest

TRAILER = "Ravebot-Approval"
_LONGEST_NAME = 100
_OTHERS = re.compile(r"[^\w.:+-]+")
_ORDER = {ChangeKind.DELETED: 0, ChangeKind.UPDATED: 1, ChangeKind.CREATED: 2}

Action = dict[str, object]


def message(order: CommitOrder) -> str:
    """The commit's message. Nothing in it is a text of the agent's, which could close issues or skip pipelines."""
    agent = name(order.agent)
    return (
        f"Apply the changes of {agent} in its sandbox\n"
        "\n"
        f"Ravebot-Agent: {agent}\n"
        f"Ravebot-Asked-By: {name(order.asked_by)}\n"
        f"Ravebot-Approved-By: {name(order.approved_by)}\n"
        f"{TRAILER}: {order.mark}\n"
    )


def name(untrusted: str) -> str:
    """A person's or agent's name as one word, that can neither begin a line nor mention or reference anything."""
    plain = unicodedata.normalize("NFC", untrusted[: 4 * _LONGEST_NAME])
    return _OTHERS.sub("_", plain)[:_LONGEST_NAME].strip("_.") or "unknown"


def made_by(commits: Iterable[BranchCommit], order: CommitOrder) -> BranchCommit | None:
    """The commit whose trailers name this approval."""
    line = f"{TRAILER}: {order.mark}"
    return next((one for one in commits if line in one.message.splitlines()), None)


def actions(diff: Diff, last_commits: Mapping[str, str]) -> list[Action]:
    """The actions of GitLab's Commits API (https://docs.gitlab.com/api/commits/). `last_commits`: the last commit of
    each file that is there already; GitLab refuses the whole if one has changed since.

    What is deleted comes first, so that a folder can take the place of a file. A mode has an action of its own.
    """
    made: list[Action] = []
    for change in sorted(diff.changes, key=lambda change: (_ORDER[change.kind], change.path)):
        guard: Action = {"last_commit_id": last_commits[change.path]} if change.path in last_commits else {}
        if change.kind is ChangeKind.DELETED:
            made.append({"action": "delete", "file_path": change.path, **guard})
            continue
        if change.content is not None:
            action = "create" if change.kind is ChangeKind.CREATED else "update"
            content = base64.b64encode(change.content).decode()
            made.append(
                {"action": action, "file_path": change.path, "content": content, "encoding": "base64", **guard}
            )  # fmt: skip
        if change.executable is not None:
            made.append({"action": "chmod", "file_path": change.path, "execute_filemode": change.executable})
    return made


def guarded(changes: Iterable[Change]) -> tuple[str, ...]:
    """The files whose last commit GitLab is to compare."""
    return tuple(change.path for change in changes if change.kind is not ChangeKind.CREATED)


def merge_request_refusal(mr: MergeRequest, order: CommitOrder) -> str:
    """Why nothing can be committed to this merge request; empty if it can."""
    if mr.state != "opened":
        return f"{mr.full_ref} is {mr.state}: reopen it, or commit the changes from the diff's file by hand."
    if mr.from_fork:
        return (
            f"{mr.full_ref} comes from a fork, where ravebot may not push: send the diff's file to its author, who can"
            " apply it with `git apply`."
        )
    if mr.head_sha and mr.head_sha != order.head_sha:
        return moved(order)
    return ""


def branch_refusal(head: BranchHead | None, order: CommitOrder) -> str:
    """Why nothing can be committed to the source branch; empty if it can."""
    if head is None:
        return "The source branch is gone: push it again, or commit the changes from the diff's file by hand."
    if head.sha != order.head_sha:
        return moved(order)
    if not head.can_push and head.protected:
        return (
            "The source branch is protected, and ravebot's user may not push to it: allow it in GitLab (Settings,"
            " Repository, Protected branches), or commit the changes from the diff's file by hand."
        )
    if not head.developers_can_push:
        return (
            "The source branch is protected, and not everybody who may approve this may push to it: commit the changes"
            " from the diff's file by hand, or let Developers push to it (Settings, Repository, Protected branches)."
        )
    if not head.can_push:
        return "ravebot's user may not push there: have it given the role Developer in the project, then ask again."
    return ""


def diff_refusal(diff: Diff, order: CommitOrder) -> str:
    """Why these changes can't be committed; empty if they can."""
    if diff.refusal:
        return diff.refusal
    if diff.is_empty:
        return "There is nothing to commit: no file differs that could be committed."
    if diff.base_sha != order.head_sha:
        return moved(order)
    return ""


def moved(order: CommitOrder) -> str:
    return (
        f"The source branch has moved on from commit {order.head_sha[:8]}, which was approved: wait until the sandbox"
        " has the new commit, look at the diff again, and approve that."
    )
