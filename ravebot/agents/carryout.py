"""Carries out what people granted, once; ends questions whose time is over or that are not asked any more.

Level-triggered: it looks at the table. What asks anything outside of the database is committed as attempted before;
its outcome is committed together with what it changed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

import structlog

from ravebot.agents.approvals import Approvals
from ravebot.agents.asking import until_of
from ravebot.agents.model import Approval, ApprovalId, ApprovalKind, ApprovalState, Conversation
from ravebot.agents.questions import hash_of
from ravebot.agents.rights import may_ask
from ravebot.backoff import Backoff
from ravebot.clock import age
from ravebot.errors import Forbidden, NotFound, RavebotError, Refused, StoreError, Unacceptable, Unavailable
from ravebot.sandboxes.intents import Intents, Outcome
from ravebot.sandboxes.model import Actor, MergeRequest, SandboxState
from ravebot.store import approvals, conversations, merge_requests, sandboxes
from ravebot.store.database import Database, Transaction
from ravebot.store.signals import APPROVALS

log = structlog.get_logger()

LOOK_SECONDS = 3.0
GIVE_UP_AFTER = timedelta(days=1)
"""A yes was meant for then; it is not carried out long after, when GitLab or ravebot was away meanwhile."""
_STORE_SECONDS = 1.0
_PAUSES = Backoff.growing(1.0, 60.0)
_LONGEST_PAUSE = timedelta(minutes=5)
"""A due time that lies further ahead is due: the clock was set back."""
_LONGEST_OUTCOME = 500
_ENDED = frozenset({SandboxState.STOPPING, SandboxState.ENDED})
_ABOUT_OPEN_ONES = frozenset({ApprovalKind.FORK, ApprovalKind.START, ApprovalKind.COMMIT})


class Commits(Protocol):
    """Commits an approved diff to a merge request's source branch, and says what came of it.

    The same approval again makes no second commit; if it may have been made before, its `attempted_at` says so.
    Raises Refused, with what to do, and Unavailable.
    """

    async def commit(self, approval: Approval, by: Actor) -> str: ...

    async def forget(self, approval: Approval) -> None:
        """Drop the diff that was kept for it, if nothing else needs it; again does nothing."""


@dataclass
class CarryOut:
    """The loop over approvals."""

    database: Database
    approvals: Approvals
    intents: Intents
    commits: Commits
    _busy: set[ApprovalId] = field(default_factory=set)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    for approval in await self.settle():
                        if approval.id not in self._busy:
                            self._busy.add(approval.id)
                            group.create_task(self._work(approval))
                except StoreError as error:
                    log.warning("approvals could not be read", error=str(error))
                    await asyncio.sleep(_STORE_SECONDS)
                await self.database.signals.wait(APPROVALS, LOOK_SECONDS)

    async def settle(self) -> tuple[Approval, ...]:
        """End what is to be ended; returns what is to be carried out now."""
        if await self.database.read(_to_end):
            await self.database.write(self._end)
        return await self.database.read(_due)

    async def look(self) -> None:
        """One round, to its end."""
        for approval in await self.settle():
            await self.carry_out(approval)

    async def _work(self, approval: Approval) -> None:
        try:
            await self.carry_out(approval)
        except StoreError as error:  # the row is unchanged
            log.warning("approval waits for the database", approval=approval.id, error=str(error))
            await asyncio.sleep(_STORE_SECONDS)
        except Exception:  # nor may what fails after that end the bot: the row is read again
            log.exception("approval could not be settled: this is a bug of ravebot's", approval=approval.id)
            await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._busy.discard(approval.id)

    async def carry_out(self, approval: Approval) -> None:
        """Do what was granted, or note why that can't be; while something is away, try again later."""
        found = await self.database.write(lambda tx: _attempt(tx, approval.id))
        if found is None:
            return
        approval = found
        try:
            await self._do(approval)
        except Unavailable as error:
            pause = _PAUSES.after(approval.tries + 1, error.retry_after_seconds)
            log.warning("approval waits", approval=approval.id, error=str(error), in_s=pause)
            await self.database.write(lambda tx: _postpone(tx, approval.id, timedelta(seconds=pause)))
        except StoreError:
            raise
        except RavebotError as error:
            log.warning("approval could not be carried out", approval=approval.id, error=str(error))
            await self._finish(approval, Outcome(False, _in_words(error)))
        except Exception:  # a bug must not end the bot, nor be tried for ever
            log.exception("approval could not be carried out: this is a bug of ravebot's", approval=approval.id)
            why = "it could not be carried out, which is a bug of ravebot's. The log says more: tell an admin"
            await self._finish(approval, Outcome(False, why))

    async def _do(self, approval: Approval) -> None:
        if approval.state is not ApprovalState.GRANTED:  # a commit's, whose diff was kept until now
            await self.commits.forget(approval)
            await self.database.write(lambda tx: approvals.done(tx, approval, approval.outcome))
            return
        mr = await self.database.read(lambda tx: merge_requests.get(tx, approval.mr) if approval.mr else None)
        by = approval.decided_by
        if mr is None or by is None:
            raise Refused("its merge request is not known any more")
        if hash_of(approval.payload) != approval.payload_hash:
            raise Refused("what was approved is not what is stored: ask for it again")
        now = await self.database.read(lambda tx: tx.now)
        if approval.decided_at and age(approval.decided_at, now) > GIVE_UP_AFTER:
            raise Refused("it could not be carried out within a day: look whether it is done, and ask for it again")
        await self._check_right(approval, mr, by)
        match approval.kind:
            case ApprovalKind.FORK | ApprovalKind.START:
                head = await self.approvals.people.present(mr.ref)
                await self.database.write(partial(self._start, approval=approval, head=head, by=by))
            case ApprovalKind.COMMIT:
                await self._finish(approval, Outcome(True, await self.commits.commit(approval, by)))
            case ApprovalKind.STOP:
                await self.database.write(partial(self._stop, approval=approval, mr=mr, by=by))
            case ApprovalKind.EXTENSION:
                await self.database.write(partial(self._extend, approval=approval, mr=mr, by=by))
            case ApprovalKind.TOOL:  # its agent is told by who runs it
                raise NotImplementedError("an agent's own call is not carried out here")

    async def _finish(self, approval: Approval, outcome: Outcome) -> None:
        """Record an outcome that is not part of a change of ours."""
        if approval.kind is ApprovalKind.COMMIT:
            await self.commits.forget(approval)
        await self.database.write(lambda tx: self._done(tx, approval, outcome))

    async def _check_right(self, approval: Approval, mr: MergeRequest, by: Actor) -> None:
        """The right counts when something is done, and may have been taken away since the answer. Raises Refused.

        What is done for a conversation also needs the rights of its agent's owner and of who asked for it.
        """
        if approval.kind is ApprovalKind.EXTENSION:
            if by.kind != "shell" and by.name not in self.approvals.config.matrix.admins:
                raise Refused(f"{by} is no admin of ravebot any more")
            return
        decision = await self.approvals.people.may_still(
            by, mr.ref.project_id, mr.project_path, as_admin=approval.kind is not ApprovalKind.COMMIT
        )
        if not decision.allowed:
            raise Refused(f"{by} has not the right any more. {decision.rule}")
        conversation = await self.database.read(partial(_conversation, approval=approval))
        if conversation is not None:
            people, config = self.approvals.people, self.approvals.config
            chain = await may_ask(people, config, conversation.agent, approval.asked_by, mr, mapped=False, direct=True)
            if not chain.allowed:
                raise Refused(f"{chain.rule} {chain.advice}".rstrip())

    def _start(self, tx: Transaction, approval: Approval, head: MergeRequest, by: Actor) -> None:
        _, mr = merge_requests.observe(tx, head)
        if approval.head_sha and mr.head_sha != approval.head_sha:
            why = f"not started: the head of {mr.full_ref} is {mr.head_sha[:12]} now, not {approval.head_sha[:12]}"
            asked = approvals.get(tx, approval.id)  # its turn may have got another number since, by `steer`
            assert asked
            if self._done(tx, asked, Outcome(False, f"{why}. It is asked again")) and mr.state == "opened":
                self.approvals.ask_again(tx, asked, mr)
            return
        if _is_undone(tx, approval):
            self._done(tx, approval, self.intents.start(tx, mr, by, approval.head_sha or None))

    def _stop(self, tx: Transaction, approval: Approval, mr: MergeRequest, by: Actor) -> None:
        if not _is_undone(tx, approval):
            return
        sandbox = sandboxes.current(tx, mr.ref)
        if sandbox is None or sandbox.id != approval.sandbox_id:
            self._done(tx, approval, Outcome(True, f"the sandbox of {mr.full_ref} had ended already"))
            return
        self._done(tx, approval, self.intents.stop(tx, mr, by))

    def _extend(self, tx: Transaction, approval: Approval, mr: MergeRequest, by: Actor) -> None:
        if _is_undone(tx, approval) and approval.sandbox_id:
            outcome = self.intents.extend_until(tx, mr, approval.sandbox_id, by, until_of(approval))
            self._done(tx, approval, outcome)

    def _done(self, tx: Transaction, approval: Approval, outcome: Outcome) -> bool:
        """Record what came of it, and show it where it was asked; a failure is also said there."""
        text = outcome.message[:_LONGEST_OUTCOME]
        if not approvals.done(tx, approval, text):
            return False
        self.approvals.telling.question(tx, approval)
        conversation = _conversation(tx, approval)
        if not outcome.accepted and conversation is not None:
            self.approvals.telling.remark(tx, conversation, f"Approval {approval.id} was not carried out: {text}")
        return True

    def _end(self, tx: Transaction) -> None:
        for approval in approvals.are_open(tx):
            moved = self.approvals.brought_back(tx, approval)
            if why := _why_not_asked(tx, moved):
                self.approvals.withdraw(tx, moved, why)
            elif tx.now >= moved.expires_at:
                self.approvals.expire(tx, moved)
        for approval in approvals.undone(tx):
            if _is_unheard(tx, approval):
                self._done(tx, approval, Outcome(True, "the agent was not told: its turn had ended"))


def _to_end(tx: Transaction) -> bool:
    """Whether `_end` has anything to do."""
    return any(
        tx.now < one.created_at or tx.now >= one.expires_at or _why_not_asked(tx, one) for one in approvals.are_open(tx)
    ) or any(_is_unheard(tx, one) for one in approvals.undone(tx))


def _due(tx: Transaction) -> tuple[Approval, ...]:
    """What is to be carried out now by us."""
    return tuple(one for one in approvals.undone(tx) if one.kind is not ApprovalKind.TOOL and _is_due(one, tx.now))


def _is_due(approval: Approval, now: datetime) -> bool:
    due = approval.next_try_at
    return due is None or not now < due <= now + _LONGEST_PAUSE


def _is_unheard(tx: Transaction, approval: Approval) -> bool:
    """Whether an answer can't be given to the agent any more that asked."""
    if approval.kind is not ApprovalKind.TOOL:
        return False
    turn = conversations.turn(tx, approval.turn_id) if approval.turn_id else None
    return turn is None or turn.state.is_over


def _conversation(tx: Transaction, approval: Approval) -> Conversation | None:
    return conversations.get(tx, approval.conversation_id) if approval.conversation_id else None


def _is_undone(tx: Transaction, approval: Approval) -> bool:
    """Whether it is still to be carried out, in the transaction that does so."""
    found = approvals.get(tx, approval.id)
    return found is not None and found.state is ApprovalState.GRANTED and found.done_at is None


def _attempt(tx: Transaction, approval_id: ApprovalId) -> Approval | None:
    """Record, before anything is asked outside, that it may be under way from now on; returns it as it was before, None
    when it is done."""
    found = approvals.get(tx, approval_id)
    if found is None or found.state is ApprovalState.OPEN or found.done_at is not None:
        return None
    attempted = found.attempted_at or tx.now
    approvals.save(tx, replace(found, attempted_at=attempted, tries=found.tries + 1, next_try_at=None))
    return found


def _postpone(tx: Transaction, approval_id: ApprovalId, pause: timedelta) -> None:
    found = approvals.get(tx, approval_id)
    assert found
    approvals.save(tx, replace(found, next_try_at=tx.now + pause))


def _why_not_asked(tx: Transaction, approval: Approval) -> str:
    """Why an open question is not asked any more; empty while it is."""
    turn = conversations.turn(tx, approval.turn_id) if approval.turn_id else None
    if approval.turn_id and (turn is None or turn.state.is_over):
        return "the agent's turn has ended"
    sandbox = sandboxes.get(tx, approval.sandbox_id) if approval.sandbox_id else None
    if approval.sandbox_id and (sandbox is None or sandbox.state in _ENDED):
        return "the sandbox has ended"
    mr = merge_requests.get(tx, approval.mr) if approval.mr else None
    if mr is None or approval.kind not in _ABOUT_OPEN_ONES:
        return ""
    if mr.state in ("merged", "closed"):
        return f"{mr.full_ref} is {mr.state}"
    if approval.kind is ApprovalKind.FORK and mr.approved_sha == approval.head_sha:
        return "the commit was let in"
    if approval.kind is ApprovalKind.FORK and mr.head_sha != approval.head_sha:
        return f"there is a newer commit, {mr.head_sha[:12]}"
    if approval.kind is ApprovalKind.START and sandboxes.current(tx, mr.ref) is not None:
        return f"{mr.full_ref} has a sandbox"
    return ""


def _in_words(error: RavebotError) -> str:
    match error:
        case NotFound():
            return "GitLab does not have that, or ravebot may not see it: ask a Maintainer of the project to add it"
        case Forbidden() if not isinstance(error, Unacceptable):
            return "GitLab does not let ravebot do that: ask a Maintainer of the project for the role Developer for it"
        case _:
            return str(error)
