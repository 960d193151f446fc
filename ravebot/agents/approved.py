"""Commits the diffs that people approved: implements `carryout.Commits` over the diffs that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from ravebot.agents.asking import diff_of
from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.diff.model import CommitOrder
from ravebot.agents.model import Approval, ApprovalKind, ApprovalState
from ravebot.errors import Refused
from ravebot.sandboxes.model import Actor
from ravebot.store import approvals, conversations
from ravebot.store.database import Database, Transaction


@dataclass(frozen=True)
class ApprovedDiffs:
    """Makes the order of a commit from its approval. `users`: the GitLab user of each Matrix user (`matrix.users`)."""

    database: Database
    diffs: Diffs
    users: Mapping[str, str]

    async def commit(self, approval: Approval, by: Actor) -> str:
        agent = await self.database.read(lambda tx: _agent(tx, approval))
        if approval.mr is None:
            raise Refused("its merge request is not known any more")
        made = await self.diffs.commit(
            CommitOrder(
                mr=approval.mr,
                head_sha=approval.head_sha,
                diff_hash=diff_of(approval),
                agent=agent,
                asked_by=self._on_gitlab(approval.asked_by),
                approved_by=self._on_gitlab(by),
                approval=approval.id,
                salt=approval.salt,
                attempted=approval.attempted_at is not None,
            )
        )
        return f"committed as {made.sha[:12]}"

    def _on_gitlab(self, who: Actor) -> str:
        """Their name on GitLab, where the commit is read; else their name here."""
        return self.users.get(who.name, who.name) if who.kind == "matrix" else who.name

    async def clear(self) -> None:
        """Drop what an earlier process left: comparisons that it had not finished, diffs that no approval is about."""
        await asyncio.to_thread(self.diffs.clear)
        await self.diffs.keep_only(await self.database.read(_needed))

    async def forget(self, approval: Approval) -> None:
        """Drop its diff, unless another approval that is open, or not carried out yet, is about the same."""
        diff_hash = diff_of(approval)
        if diff_hash not in await self.database.read(lambda tx: _needed(tx, approval)):
            await self.diffs.forget(diff_hash)


def _agent(tx: Transaction, approval: Approval) -> str:
    found = conversations.get(tx, approval.conversation_id) if approval.conversation_id else None
    return found.agent if found else ""


def _needed(tx: Transaction, but: Approval | None = None) -> frozenset[str]:
    """The diffs of all approvals, except that one."""
    waiting = (*approvals.are_open(tx), *(one for one in approvals.undone(tx) if one.state is ApprovalState.GRANTED))
    return frozenset(
        diff_of(one) for one in waiting if one.kind is ApprovalKind.COMMIT and (but is None or one.id != but.id)
    )
