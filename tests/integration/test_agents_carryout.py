"""What people granted is carried out once, with the right that they have then, whatever happens in between."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from ravebot.agents.asking import until_of
from ravebot.agents.desk import Addressed, Desk
from ravebot.agents.model import AgentDoor, Approval, ApprovalKind, ApprovalState, TurnState
from ravebot.agents.questions import question as view_of
from ravebot.agents.ruling import Ruling
from ravebot.commands.people import GitLabFacts
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.model import Actor, MergeRequest, MergeRequestRef
from ravebot.store import approvals, conversations, events, merge_requests, sandboxes
from ravebot.store.database import Transaction
from tests.integration.test_agents_approvals import ALICE, Bench, S, bench, question, who_may
from tests.support.gitlab import GUEST
from tests.support.records import B

pytestmark = pytest.mark.integration
__all__ = ["bench"]  # the fixture, from where it is made

ROOT_FOLDER = Path(__file__).parents[2]
EVERY = (("after", 1), ("before", 2), ("after", 2), ("never", 0))
"""Once its attempt is stored; when it was done at GitLab; once that is stored."""
OURS = [kind for kind in ApprovalKind if kind is not ApprovalKind.TOOL]


async def granted(bench: Bench, kind: ApprovalKind) -> Approval:
    asked = await question(bench, kind)
    assert (await bench.answer(asked, who_may(kind))).ruling is Ruling.GRANTED
    return await bench.the(kind)


async def done(bench: Bench, asked: Approval) -> Approval:
    return next(one for one in await bench.all() if one.id == asked.id)


def known_mr(tx: Transaction, asked: Approval) -> MergeRequest:
    found = merge_requests.get(tx, asked.mr) if asked.mr else None
    assert found
    return found


async def test_a_fork_s_commit_that_was_approved_is_let_in_and_started(bench: Bench) -> None:
    asked = await granted(bench, ApprovalKind.FORK)
    await bench.work.look()
    assert (await done(bench, asked)).outcome == "A sandbox for group/app!1 is on its way."
    (sandbox,) = await bench.world.read(sandboxes.live)
    assert (sandbox.sha, sandbox.requested_by) == (asked.head_sha, ALICE)
    kinds = await bench.world.kinds()
    assert [kind for kind in kinds if "approv" in kind] == [
        "approval.asked", "approval.decided", "fork.approved", "approval.done"
    ]  # fmt: skip
    logged = [event.data for event in await bench.world.events() if event.kind.startswith("approval")]
    assert all(data["hash"] == asked.payload_hash and "feature" not in str(data) for data in logged)


async def test_a_sandbox_is_started_for_an_agent_stopped_and_extended(bench: Bench) -> None:
    start = await granted(bench, ApprovalKind.START)
    await bench.work.look()
    assert await bench.live() == ["queued"]
    stop = await bench.world.write(
        lambda tx: bench.approvals.ask_stop(tx, sandboxes.live(tx)[0], ALICE.name, place="!dev:example.org", thread="")
    )
    await bench.answer(stop, ALICE)
    await bench.work.look()
    assert await bench.live() == []
    assert (await done(bench, stop)).outcome == "The sandbox of group/app!1 is being stopped."
    extension = await granted(bench, ApprovalKind.EXTENSION)
    await bench.work.look()
    (sandbox,) = await bench.world.read(sandboxes.live)
    assert sandbox.expires_at == until_of(extension)
    assert (await done(bench, extension)).outcome == "group/app!2 stays until 21:00 UTC."
    assert (await done(bench, start)).done_at is not None


@pytest.mark.parametrize("kind", [ApprovalKind.FORK, ApprovalKind.STOP, ApprovalKind.EXTENSION])
async def test_what_two_carry_out_at_once_is_done_once(bench: Bench, kind: ApprovalKind) -> None:
    asked = await granted(bench, kind)
    before = len(await bench.world.kinds())
    await asyncio.gather(*(bench.work.carry_out(asked) for _ in range(2)))
    happened = (await bench.world.kinds())[before:]
    assert sorted(happened) == sorted(set(happened)), happened


async def test_what_an_admin_granted_is_not_cut_back_later(bench: Bench) -> None:
    extension = await granted(bench, ApprovalKind.EXTENSION)
    await bench.work.look()
    (sandbox,) = await bench.world.read(sandboxes.live)
    await bench.world.happens(sandbox, Happened.CODE_UPDATED, sha=B, by=ALICE)
    sandbox = await bench.world.announced((await bench.world.read(sandboxes.live))[0])
    assert sandbox.expires_at == until_of(extension)
    await bench.world.happens(sandbox, Happened.RESTARTED, why="it was switched off")
    assert (await bench.world.read(sandboxes.live))[0].expires_at == until_of(extension)
    refused = await bench.extend(bench.opened[0], ALICE, timedelta(hours=1))
    assert "it ends at 21:00 UTC" in refused.message
    assert "approval 2" in refused.message


async def test_an_approved_diff_becomes_one_commit_with_its_trailers(bench: Bench) -> None:
    asked = await granted(bench, ApprovalKind.COMMIT)
    for _ in range(2):
        await bench.work.look()
    (message,) = bench.commits()
    assert f"Ravebot-Approval: {asked.id}.{asked.salt}" in message
    assert "Ravebot-Agent: coder" in message
    assert (await done(bench, asked)).outcome == f"committed as {bench.opened[0].sha[:12]}"
    assert list(bench.diffs.kept.folder.iterdir()) == []


@pytest.mark.parametrize("yes", [False, True])
async def test_an_agent_s_own_call_is_left_to_who_runs_the_agent(bench: Bench, yes: bool) -> None:
    asked = await question(bench, ApprovalKind.TOOL)
    await bench.answer(asked, ALICE, yes=yes)
    await bench.work.look()
    assert (await done(bench, asked)).done_at is None
    turn_id = asked.turn_id
    assert turn_id

    def over(tx: Transaction) -> None:
        turn = conversations.turn(tx, turn_id)
        assert turn
        conversations.save_turn(tx, replace(turn, state=TurnState.CANCELLED))

    await bench.world.write(over)
    await bench.work.look()
    assert (await done(bench, asked)).outcome == "the agent was not told: its turn had ended"


# What changed between the answer and its carrying out.


@pytest.mark.parametrize("kind", [ApprovalKind.FORK, ApprovalKind.STOP, ApprovalKind.START, ApprovalKind.COMMIT])
async def test_who_lost_the_right_gets_nothing_carried_out(bench: Bench, kind: ApprovalKind) -> None:
    asked = await granted(bench, kind)
    bench.server.set_role(bench.project, bench.alice, GUEST)
    bench.approvals.people._levels.clear()  # as after 30 seconds
    before = await bench.live()
    await bench.work.look()
    found = await done(bench, asked)
    assert found.outcome == "@alice:example.org (matrix) has not the right any more. alice is Guest in group/app."
    assert await bench.live() == before
    assert bench.commits() == []


async def test_who_is_no_admin_any_more_extends_nothing_past_the_longest_lifetime(bench: Bench) -> None:
    asked = await granted(bench, ApprovalKind.EXTENSION)
    (before,) = await bench.world.read(sandboxes.live)
    config = bench.approvals.config
    matrix = config.matrix.model_copy(update={"admins": ()})
    now = replace(bench.approvals, config=config.model_copy(update={"matrix": matrix}))
    await replace(bench.work, approvals=now).look()
    assert (await done(bench, asked)).outcome.endswith("is no admin of ravebot any more")
    assert (await bench.world.read(sandboxes.live))[0].expires_at == before.expires_at


@pytest.mark.parametrize("kind", [ApprovalKind.START, ApprovalKind.COMMIT])
async def test_nothing_is_done_for_an_agent_whose_owner_has_not_the_right(bench: Bench, kind: ApprovalKind) -> None:
    asked = await question(bench, kind, agent="hers")
    assert (await bench.answer(asked, ALICE)).ruling is Ruling.GRANTED
    before = await bench.live()
    await bench.work.look()
    assert (await done(bench, asked)).outcome.startswith("hers may do at most what its owner gina may: gina is Guest")
    assert (await bench.live(), bench.commits()) == (before, [])


async def test_a_commit_that_an_admin_or_the_shell_granted_before_it_needed_a_role_is_not_made(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.COMMIT)
    await bench.world.write(lambda tx: approvals.decide(tx, asked, ApprovalState.GRANTED, Actor("shell", "root")))
    await bench.work.look()
    assert "the role Developer or more on GitLab" in (await done(bench, asked)).outcome
    assert bench.commits() == []


async def test_a_head_that_moves_after_the_answer_is_asked_about_again(bench: Bench) -> None:
    mr = await bench.fork()
    asked = await bench.the(ApprovalKind.FORK)
    await bench.answer(asked, ALICE)
    new = bench.server.push(mr, {"evil.txt": "evil"})
    await bench.work.look()
    assert (await done(bench, asked)).outcome.startswith(f"not started: the head of group/app!1 is {new[:12]} now")
    assert await bench.live() == []
    again = await bench.the(ApprovalKind.FORK)
    assert (again.state, again.head_sha) == (S.OPEN, new)


@dataclass
class SteeredMeanwhile:
    """GitLab, which is asked for a merge request while somebody steers the agent."""

    gitlab: GitLabFacts
    steer: Callable[[], Awaitable[object]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.gitlab, name)

    async def merge_request(self, ref: MergeRequestRef) -> MergeRequest:
        await self.steer()
        return await self.gitlab.merge_request(ref)


async def test_what_is_asked_again_is_about_the_message_whose_turn_was_put_behind_another_meanwhile(
    bench: Bench,
) -> None:
    asked = await question(bench, ApprovalKind.START)
    mr, ref = bench.opened[-1], asked.mr
    await bench.world.write(lambda tx: approvals.save(tx, replace(asked, head_sha=mr.sha)))
    await bench.answer(asked, ALICE)
    bench.server.push(mr, {"a.py": "2"})
    desk = Desk(bench.approvals.config, bench.approvals.telling)
    said = Addressed("coder", AgentDoor.MATRIX, asked.place, asked.thread, True, ref, "$next", ALICE, "first this")
    people = bench.approvals.people
    slow = SteeredMeanwhile(people.gitlab, lambda: bench.world.write(lambda tx: desk.steer(tx, said)))
    engine = replace(bench.approvals, people=replace(people, gitlab=cast(GitLabFacts, slow)))
    await replace(bench.work, approvals=engine).look()
    again = [one for one in await bench.all() if one.kind is ApprovalKind.START and one.head_sha == mr.sha]
    assert len(again) == 1

    def about(tx: Transaction) -> str:
        turn = conversations.turn(tx, again[0].turn_id) if again[0].turn_id else None
        return conversations.message(tx, turn.message_id).text if turn else "nothing"

    assert await bench.world.read(about) == "fix it"
    assert again[0].state is S.OPEN


async def test_a_commit_whose_head_moved_after_the_answer_is_refused_with_what_to_do(bench: Bench) -> None:
    asked = await granted(bench, ApprovalKind.COMMIT)
    bench.server.push(bench.opened[0], {"more.txt": "more"})
    await bench.work.look()
    found = await done(bench, asked)
    assert found.outcome.startswith("The source branch has moved on")
    assert bench.commits() == []
    assert any("was not carried out" in what for _, what in await bench.shown())


async def test_a_sandbox_that_was_rebuilt_is_not_stopped_by_the_answer_about_the_old_one(bench: Bench) -> None:
    asked = await granted(bench, ApprovalKind.STOP)

    def rebuild(tx: Transaction) -> None:
        mr = known_mr(tx, asked)
        bench.intents.rebuild(tx, mr, ALICE)

    await bench.world.write(rebuild)
    await bench.work.look()
    assert (await done(bench, asked)).outcome == "the sandbox of group/app!1 had ended already"
    assert "queued" in await bench.live()


async def test_while_gitlab_is_away_it_is_tried_again_with_pauses(bench: Bench) -> None:
    asked = await granted(bench, ApprovalKind.COMMIT)
    bench.server.fail(503, path="/merge_requests/1$")
    await bench.work.look()
    waits = await done(bench, asked)
    assert (waits.done_at, waits.tries) == (None, 1)
    assert waits.next_try_at and waits.next_try_at > bench.world.clock.now()
    bench.server.restore()
    await bench.work.look()
    assert bench.commits() == []
    bench.world.pass_by(hours=-5)
    await bench.work.look()
    assert len(bench.commits()) == 1
    assert (await done(bench, asked)).tries == 2


async def test_a_commit_whose_answer_was_lost_is_not_made_again(bench: Bench) -> None:
    asked = await granted(bench, ApprovalKind.COMMIT)
    bench.server.fail(502, method="POST", path="/repository/commits", after=True)
    await bench.work.look()
    bench.server.restore()
    bench.world.pass_by(minutes=1)
    await bench.work.look()
    assert len(bench.commits()) == 1
    assert (await done(bench, asked)).outcome == f"committed as {bench.opened[0].sha[:12]}"


async def test_a_yes_is_not_carried_out_a_day_later(bench: Bench) -> None:
    asked = await granted(bench, ApprovalKind.COMMIT)
    bench.world.pass_by(days=1, seconds=1)
    await bench.work.look()
    assert (await done(bench, asked)).outcome.startswith("it could not be carried out within a day")
    assert bench.commits() == []


@pytest.mark.parametrize("kind", OURS)
async def test_a_grant_whose_stored_text_was_changed_since_does_nothing(bench: Bench, kind: ApprovalKind) -> None:
    asked = await granted(bench, kind)
    before = await bench.live()
    await bench.world.write(lambda tx: tx.execute("UPDATE approvals SET payload = '{}'"))
    await bench.work.look()
    assert (await done(bench, asked)).outcome == "what was approved is not what is stored: ask for it again"
    assert (await bench.live(), bench.commits()) == (before, [])


# Ends by the clock, and of what they are about.


@pytest.mark.parametrize("kind", ApprovalKind)
async def test_no_answer_in_time_is_a_no(bench: Bench, kind: ApprovalKind) -> None:
    asked = await question(bench, kind)
    bench.world.clock.advance(asked.expires_at - bench.world.clock.now() - timedelta(seconds=1))
    await bench.work.look()
    assert await bench.state(asked) is S.OPEN
    bench.world.pass_by(seconds=1)
    await bench.world.empty_outbox()
    await bench.work.look()
    found = await done(bench, asked)
    assert found.state is S.EXPIRED
    assert view_of(found, bench.world.config.matrix).answer == "nobody answered in time, which is a no"
    assert [what for _, what in await bench.shown()] == [f"question {asked.id}"]
    assert (await bench.answer(asked, who_may(kind))).ruling is Ruling.TOO_LATE
    assert (found.done_at is None) == (kind is ApprovalKind.TOOL)


async def test_a_clock_that_is_set_back_gives_a_question_its_time_anew_and_no_more(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.STOP)
    bench.world.pass_by(days=-3)
    await bench.work.look()
    moved = await done(bench, asked)
    assert moved.expires_at - bench.world.clock.now() == timedelta(minutes=1)
    bench.world.pass_by(minutes=1)
    assert (await bench.answer(asked, ALICE)).ruling is Ruling.TOO_LATE


async def test_a_question_ends_with_the_turn_that_asks_it(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.TOOL)
    await bench.world.write(lambda tx: tx.execute("UPDATE agent_turns SET state = 'failed'"))
    await bench.work.look()
    found = await done(bench, asked)
    assert (found.state, found.done_at is not None) == (S.WITHDRAWN, True)


@pytest.mark.parametrize("kind", [ApprovalKind.EXTENSION, ApprovalKind.STOP, ApprovalKind.COMMIT])
async def test_a_question_ends_with_its_sandbox(bench: Bench, kind: ApprovalKind) -> None:
    asked = await question(bench, kind)
    (sandbox,) = await bench.world.read(sandboxes.live)
    await bench.world.happens(sandbox, Happened.END_ASKED)
    for _ in range(2):
        await bench.work.look()
    found = await done(bench, asked)
    assert (found.state, found.outcome, found.done_at is not None) == (S.WITHDRAWN, "the sandbox has ended", True)
    assert (await bench.answer(asked, who_may(kind))).ruling is Ruling.WITHDRAWN
    assert kind is not ApprovalKind.COMMIT or list(bench.diffs.kept.folder.iterdir()) == []


async def test_a_fork_s_question_ends_when_its_commit_is_let_in_otherwise_or_it_is_closed(bench: Bench) -> None:
    mr = await bench.fork()
    one = await bench.the(ApprovalKind.FORK)

    def start(tx: Transaction) -> None:
        known = known_mr(tx, one)
        bench.intents.start(tx, known, ALICE, one.head_sha)

    await bench.world.write(start)
    await bench.work.look()
    assert (await done(bench, one)).outcome == "the commit was let in"
    other = await bench.fork()
    two = await bench.the(ApprovalKind.FORK)
    bench.server.close(other)
    await bench.told(other)
    await bench.work.look()
    assert (await done(bench, two)).outcome == "group/app!2 is closed"
    assert mr.iid == 1


async def test_the_loop_carries_out_what_is_granted_at_once(bench: Bench) -> None:
    task = asyncio.create_task(bench.work.run())
    try:
        asked = await granted(bench, ApprovalKind.FORK)
        async with asyncio.timeout(30):
            while (await done(bench, asked)).done_at is None:
                assert not task.done()
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert await bench.live() == ["queued"]


# kill -9.


@pytest.mark.parametrize(
    ("kind", "deaths"),
    [(kind, EVERY if kind is ApprovalKind.COMMIT else (EVERY[1], EVERY[3])) for kind in OURS],
    ids=OURS,
)
async def test_a_kill_at_any_commit_neither_loses_nor_repeats_a_grant(
    bench: Bench, kind: ApprovalKind, deaths: tuple[tuple[str, int], ...]
) -> None:
    """In a process of its own, which kills itself before or after one of its commits; the last one lives."""
    asked = await granted(bench, kind)
    before = len(await bench.world.outbox())
    token = bench.server.token_for(bench.bot)
    await bench.world.database.__aexit__(None, None, None)
    folder = bench.world.database.path.parent
    for when, step in deaths:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.dying", str(folder), bench.server.url, when, str(step),
            stdin=asyncio.subprocess.PIPE, cwd=ROOT_FOLDER,
        )  # fmt: skip
        await process.communicate(token.encode())
        assert process.returncode == (-9 if step else 0)
    await bench.world.database.__aenter__()
    found = await done(bench, asked)
    assert (found.state, found.done_at is not None) == (ApprovalState.GRANTED, True)
    kinds = await bench.world.kinds()
    assert (kinds.count("approval.decided"), kinds.count("approval.done")) == (1, 1)
    told = [body for _, _, _, body in (await bench.world.outbox())[before:] if f'"approval":{asked.id}' in body]
    assert len(told) == 1
    assert (await bench.world.read(events.verify)).broken_at is None
    match kind:
        case ApprovalKind.FORK | ApprovalKind.START:
            assert kinds.count("sandbox.queued") == (1 if kind is ApprovalKind.FORK else 2)
        case ApprovalKind.STOP:
            assert kinds.count("sandbox.stopping") == 1
        case ApprovalKind.EXTENSION:
            assert kinds.count("sandbox.extended") == 2
        case ApprovalKind.COMMIT:
            assert len(bench.commits()) == 1
            assert found.outcome == f"committed as {bench.opened[0].sha[:12]}"
