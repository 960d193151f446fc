"""What GitLab tells and people want, and what becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.sandboxes import machine_life
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.intents import Advice, Outcome
from ravebot.sandboxes.model import Actor, EndReason, Person, Sandbox, SandboxState, Stage
from ravebot.store import images, merge_requests, sandboxes
from ravebot.store.images import ImageRecord
from ravebot.store.signals import POOL
from tests.support.records import NOON, A, B, C, World, a_merge_request, a_world

pytestmark = pytest.mark.integration

S = SandboxState
MR = a_merge_request()
SECOND = a_merge_request(2)
FORK = a_merge_request(source_project_id=99)
DRAFT = a_merge_request(draft=True)
BOB = Actor("matrix", "@bob:example.org")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


@pytest.fixture
async def waiting_drafts(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, gitlab={"drafts": "wait"}) as world:
        yield world


async def wish(world: World, verb: str, *arguments: object) -> Outcome:
    """What a person wants of merge request !1 as it is known now."""
    intent = getattr(world.intents, verb)
    known = await world.mr(MR)
    found: Outcome = await world.write(lambda tx: intent(tx, known, BOB, *arguments))
    return found


async def count(world: World) -> int:
    rows = await world.read(lambda tx: tx.all("SELECT id FROM sandboxes"))
    return len(rows)


async def at_stage(world: World, stage: Stage | None) -> Sandbox:
    sandbox = replace(await world.claimed(MR), stage=stage)
    await world.write(lambda tx: sandboxes.save(tx, sandbox))
    return sandbox


# What GitLab tells.


async def test_an_opened_merge_request_gets_a_sandbox_in_the_queue(world: World) -> None:
    assert await world.told(MR) == "queued"
    sandbox = await world.latest(MR)
    assert (sandbox.state, sandbox.sha) == (S.QUEUED, A)
    assert await world.told_kinds() == ["matrix card", "gitlab note"]
    assert await world.database.signals.wait(POOL, 1)


async def test_being_told_again_changes_nothing(world: World) -> None:
    await world.told(MR)
    before = (await world.kinds(), await world.outbox())
    for _ in range(3):
        assert await world.told(MR) == "nothing new"
    assert (await world.kinds(), await world.outbox()) == before


async def test_one_that_was_open_before_ravebot_came_is_only_noted(world: World) -> None:
    assert await world.told(MR, may_start=False) == "noted"
    assert await count(world) == 0
    assert await world.outbox() == []
    assert await world.told(replace(MR, title="New")) == "noted"
    assert (await wish(world, "start")).accepted


@pytest.mark.parametrize("state", ["merged", "closed"])
async def test_one_that_is_first_heard_of_at_its_end_gets_nothing(world: World, state: str) -> None:
    assert await world.told(replace(MR, state=state)) == "nothing to end"
    assert await count(world) == 0


async def test_one_that_is_being_merged_when_first_heard_of_gets_nothing(world: World) -> None:
    assert await world.told(replace(MR, state="locked")) == "noted"
    assert await count(world) == 0


async def test_a_merge_that_did_not_work_out_is_no_reopening(world: World) -> None:
    await world.queued(MR)
    await wish(world, "stop")
    for state in ("locked", "opened"):
        assert await world.told(replace(MR, state=state)) == "noted"
    assert await count(world) == 1


@pytest.mark.parametrize(("state", "reason"), [("merged", EndReason.MERGED), ("closed", EndReason.CLOSED)])
@pytest.mark.parametrize(
    ("how_far", "then"),
    [("queued", S.ENDED), ("started", S.STOPPING), ("claimed", S.STOPPING), ("ready", S.STOPPING)],
)
async def test_merge_and_close_end_it_wherever_it_stands(
    world: World, state: str, reason: EndReason, how_far: str, then: SandboxState
) -> None:
    await getattr(world, how_far)(MR)
    assert await world.told(replace(MR, state=state)) == f"ending: {reason.value}"
    found = await world.latest(MR)
    assert (found.state, found.end_reason) == (then, reason)
    assert await world.told(replace(MR, state=state)) == "nothing to end"


@pytest.mark.parametrize("how_far", ["queued", "ready"])
async def test_a_reopened_one_gets_a_new_sandbox_behind_the_old(world: World, how_far: str) -> None:
    first = await getattr(world, how_far)(MR)
    await world.told(replace(MR, state="closed"))
    assert await world.told(MR) == "queued"
    second = await world.latest(MR)
    assert second.id != first.id
    assert second.state is S.QUEUED


async def test_an_ended_one_is_not_brought_back_by_new_code(world: World) -> None:
    await world.queued(MR)
    await wish(world, "stop")
    assert await world.told(replace(MR, head_sha=B)) == "noted"
    assert await count(world) == 1


async def test_news_that_come_late_do_not_undo_what_is_known(world: World) -> None:
    await world.queued(MR)
    await world.told(replace(MR, state="merged", updated_at=NOON + timedelta(minutes=1)))
    assert await world.told(MR) == "nothing to end"
    assert await count(world) == 1
    assert (await world.latest(MR)).state is S.ENDED


async def test_late_news_of_older_code_do_not_take_the_sandbox_back(world: World) -> None:
    await world.ready(replace(MR, head_sha=B, updated_at=NOON + timedelta(minutes=1)))
    assert await world.told(MR) == "nothing new"
    assert (await world.latest(MR)).sha == B


async def test_new_people_and_titles_are_noted_in_card_and_note(world: World) -> None:
    await world.ready(MR)
    await world.empty_outbox()
    assert await world.told(replace(MR, people=(Person(5, "carol"),))) == "noted"
    assert await world.told_kinds() == ["matrix card", "gitlab note"]


# New code.


async def test_new_code_while_queued_is_what_will_be_run(world: World) -> None:
    await world.queued(MR)
    assert await world.told(replace(MR, head_sha=B)) == "new code"
    sandbox = await world.latest(MR)
    assert (sandbox.state, sandbox.sha, sandbox.stage) == (S.QUEUED, B, None)


@pytest.mark.parametrize("stage", [None, Stage.HOST_KEYS, Stage.AUTHORIZE])
async def test_new_code_before_the_copy_needs_no_restart(world: World, stage: Stage | None) -> None:
    before = await at_stage(world, stage)
    await world.told(replace(MR, head_sha=B))
    after = await world.latest(MR)
    assert (after.sha, after.stage, after.stage_attempt) == (B, stage, before.stage_attempt)


@pytest.mark.parametrize("stage", [Stage.COPY, Stage.SETUP, Stage.TEST, Stage.OPEN_PORTS, Stage.ANNOUNCE])
async def test_new_code_from_the_copy_on_restarts_at_the_copy(world: World, stage: Stage) -> None:
    before = await at_stage(world, stage)
    world.pass_by(seconds=30)
    await world.told(replace(MR, head_sha=B))
    after = await world.latest(MR)
    assert (after.state, after.sha, after.stage) == (S.STARTING, B, Stage.COPY)
    assert after.stage_attempt == before.stage_attempt + 1
    assert after.stage_started_at == world.clock.now()


async def test_new_code_for_a_ready_one_is_copied_in_and_its_ports_stay(world: World) -> None:
    before = await world.ready(MR)
    await world.told(replace(MR, head_sha=B))
    after = await world.latest(MR)
    assert (after.state, after.stage, after.sha, after.running_sha) == (S.READY, Stage.COPY, B, A)
    assert (after.ssh_port, after.web_port, after.ports_open) == (before.ssh_port, before.web_port, True)
    assert after.expires_at == before.expires_at
    await world.told(replace(MR, head_sha=C))
    assert (await world.latest(MR)).stage_attempt == after.stage_attempt + 1


async def test_new_code_for_one_that_stops_is_nobodys_business(world: World) -> None:
    await world.ready(MR)
    await wish(world, "stop")
    assert await world.told(replace(MR, head_sha=B)) == "noted"
    assert (await world.latest(MR)).sha == A


# Drafts and forks.


async def test_a_draft_starts_like_any_other_unless_told_otherwise(world: World) -> None:
    assert await world.told(DRAFT) == "queued"


async def test_a_waiting_draft_is_told_so_and_starts_when_it_is_marked_ready(waiting_drafts: World) -> None:
    world = waiting_drafts
    assert await world.told(DRAFT) == "waits: drafts wait for a person"
    assert await world.told_kinds() == ["gitlab note"]
    assert await count(world) == 0
    assert await world.told(replace(DRAFT, draft=False)) == "queued"


async def test_a_person_may_start_a_draft_and_its_new_code_is_taken(waiting_drafts: World) -> None:
    world = waiting_drafts
    await world.told(DRAFT)
    assert (await wish(world, "start")).accepted
    assert await world.told(replace(DRAFT, head_sha=B)) == "new code"
    assert (await world.latest(DRAFT)).sha == B


async def test_a_running_sandbox_stays_when_its_merge_request_becomes_a_draft(waiting_drafts: World) -> None:
    world = waiting_drafts
    await world.ready(MR)
    assert await world.told(DRAFT) == "noted"
    assert await world.told(MR) == "noted"
    assert await count(world) == 1
    assert (await world.latest(MR)).state is S.READY


async def test_a_forks_code_starts_only_with_the_very_commit_named(world: World) -> None:
    assert await world.told(FORK) == "waits: a fork's code needs approval"
    assert await world.told_kinds() == ["gitlab note"]
    refused = await wish(world, "start")
    assert not refused.accepted
    assert refused.advice == Advice("To let in exactly this commit", "start", A)
    # A commit that begins like another is made in no time: only the whole name is the commit that was looked at.
    for wrong in (B, "aaaaaa", "b" + "a" * 39, A[:12], A[:39]):
        assert not (await wish(world, "start", wrong)).accepted
    assert await count(world) == 0
    assert (await wish(world, "start", A.upper())).accepted
    assert (await world.mr(FORK)).approved_sha == A
    assert (await world.kinds())[-1] == "fork.approved"


async def test_a_fork_that_is_closed_before_anybody_let_it_in_has_its_note_say_so(world: World) -> None:
    await world.told(FORK)
    await world.write(lambda tx: merge_requests.set_note(tx, FORK.ref, 17))
    await world.empty_outbox()
    await world.told(replace(FORK, state="closed"))
    assert await world.told_kinds() == ["gitlab note"]


async def test_one_without_a_commit_starts_with_its_first_and_not_by_command(world: World) -> None:
    bare = replace(MR, head_sha="")
    assert await world.told(bare) == "waits: it has no commit yet"
    for verb in ("start", "rebuild", "retry"):
        refused = await wish(world, verb)
        assert not refused.accepted
        assert "no commit yet" in refused.message
    assert await count(world) == 0
    assert await world.told(replace(MR, head_sha=A)) == "queued"
    assert (await world.latest(MR)).sha == A


async def test_a_head_that_gitlab_does_not_tell_changes_no_running_code(world: World) -> None:
    await world.told(MR)
    assert await world.told(replace(MR, head_sha="", title="Other")) == "noted"
    assert (await world.latest(MR)).sha == A


@pytest.mark.parametrize("how_far", ["queued", "claimed", "ready"])
async def test_a_forks_new_code_stays_out_until_it_is_named_too(world: World, how_far: str) -> None:
    await world.told(FORK)
    await wish(world, "start", A)
    if how_far != "queued":
        await world.begin(await world.latest(FORK))
        machine = await world.machine(FORK)
        await world.write(lambda tx: machine_life.claim(tx, world.lifecycle, machine))
    if how_far == "ready":
        await world.announced(await world.latest(FORK))
    assert await world.told(replace(FORK, head_sha=B)) == "a fork's new code needs approval"
    assert (await world.latest(FORK)).sha == A
    for verb in ("start", "rebuild"):
        assert not (await wish(world, verb)).accepted
    assert not (await wish(world, "start", A)).accepted
    assert (await world.latest(FORK)).sha == A
    assert (await wish(world, "start", B)).accepted
    assert (await world.latest(FORK)).sha == B
    assert (await world.kinds()).count("fork.approved") == 2


async def test_retry_does_not_let_a_forks_new_code_in(world: World) -> None:
    await world.told(FORK)
    await wish(world, "start", A)
    await wish(world, "stop")
    await world.told(replace(FORK, head_sha=B))
    assert not (await wish(world, "retry")).accepted
    assert (await world.latest(FORK)).state is S.ENDED


async def test_a_forks_new_code_without_a_sandbox_has_its_note_show_the_new_line(world: World) -> None:
    await world.told(FORK)
    await world.empty_outbox()
    assert await world.told(replace(FORK, head_sha=B)) == "noted"
    assert await world.told_kinds() == ["gitlab note"]


async def test_a_fork_whose_head_was_let_in_starts_again_when_it_is_reopened(world: World) -> None:
    await world.told(FORK)
    await wish(world, "start", A)
    await world.told(replace(FORK, state="closed"))
    assert await world.told(FORK) == "queued"
    await world.told(replace(FORK, state="closed"))
    assert await world.told(replace(FORK, head_sha=B)) == "waits: a fork's code needs approval"


# What a person stopped.


@pytest.fixture
async def stopped_fork(waiting_drafts: World) -> World:
    """A fork's sandbox, which a Developer let in and stopped."""
    await waiting_drafts.told(FORK)
    await wish(waiting_drafts, "start", A)
    await wish(waiting_drafts, "stop")
    await waiting_drafts.empty_outbox()
    return waiting_drafts


@pytest.mark.parametrize(
    "between", [{"state": "closed"}, {"draft": True}, {"labels": ("sandbox::off",)}], ids=["closed", "draft", "label"]
)
async def test_what_a_person_stopped_nobody_starts_again_but_by_command(
    stopped_fork: World, between: dict[str, Any]
) -> None:
    world = stopped_fork
    await world.told(replace(FORK, **between))
    await world.empty_outbox()
    assert await world.told(FORK) == "noted: a person stopped it"
    assert await count(world) == 1
    assert await world.told_kinds() == ["matrix card", "gitlab note"], "they say what to type now"
    assert (await wish(world, "start")).accepted
    assert await count(world) == 2


async def test_one_that_was_stopped_while_it_was_kept_after_a_failure_is_stopped_too(tmp_path: Path) -> None:
    async with a_world(tmp_path, sandbox={"keep_failed": "30m"}) as world:
        sandbox = replace(await world.claimed(MR), stage=Stage.SETUP)
        await world.write(lambda tx: sandboxes.save(tx, sandbox))
        await world.happens(sandbox, Happened.STAGE_FAILED, why="no libfoo", answers=True)
        assert (await world.latest(MR)).is_kept
        assert (await wish(world, "stop")).accepted
        await world.told(replace(MR, state="closed"))
        assert await world.told(MR) == "noted: a person stopped it"


async def test_with_another_commit_a_stopped_one_that_is_reopened_starts_like_any_other(world: World) -> None:
    await world.queued(MR)
    await wish(world, "stop")
    await world.told(replace(MR, state="closed"))
    assert await world.told(replace(MR, head_sha=B)) == "queued"


async def test_a_rebuild_or_a_start_after_the_stop_ends_its_effect(world: World) -> None:
    await world.queued(MR)
    await wish(world, "stop")
    await wish(world, "start")
    await world.told(replace(MR, state="closed"))
    assert await world.told(MR) == "queued"


# What people want.


async def test_start_starts_one_where_there_is_none_and_says_so_where_there_is(world: World) -> None:
    await world.told(MR, may_start=False)
    assert (await wish(world, "start")).message == "A sandbox for group/app!1 is on its way."
    again = await wish(world, "start")
    assert again.message == "group/app!1 has a sandbox already: it is queued."
    assert again.advice == Advice("To see all about it", "show")
    assert await count(world) == 1


async def test_start_with_another_commit_than_the_head_is_refused(world: World) -> None:
    await world.told(MR, may_start=False)
    refused = await wish(world, "start", B)
    why = f"The head of group/app!1 is {A[:12]}, not {B}. Look at it first."
    assert refused == Outcome(False, why, Advice("To start it then", "start", A))


@pytest.mark.parametrize("verb", ["start", "rebuild", "retry"])
@pytest.mark.parametrize("state", ["merged", "closed", "locked"])
async def test_only_an_open_merge_request_gets_a_sandbox(world: World, verb: str, state: str) -> None:
    await world.told(replace(MR, state=state))
    refused = await wish(world, verb)
    assert refused == Outcome(False, f"group/app!1 is {state}. Only an open merge request gets a sandbox.")
    assert await count(world) == 0


async def test_stop_stops_once_and_says_where_there_is_nothing(world: World) -> None:
    await world.told(MR, may_start=False)
    assert await wish(world, "stop") == Outcome(False, "group/app!1 has no sandbox.")
    await wish(world, "start")
    await world.begin(await world.latest(MR))
    assert (await wish(world, "stop")).message == "The sandbox of group/app!1 is being stopped."
    assert (await wish(world, "stop")).message == "The sandbox of group/app!1 is being stopped already."
    assert (await world.events())[-1].actor == BOB


async def test_extend_adds_an_hour_or_what_is_said_and_the_warnings_come_again(world: World) -> None:
    ready = await world.ready(MR)
    assert ready.expires_at
    world.pass_by(hours=1, minutes=55)
    warned = replace(ready, warned=frozenset({1800, 600}))
    await world.write(lambda tx: sandboxes.save(tx, warned))
    done = await wish(world, "extend")
    assert done == Outcome(True, "group/app!1 stays until 15:00 UTC (1 h more).")
    after = await world.latest(MR)
    assert (after.expires_at, after.warned) == (ready.expires_at + timedelta(hours=1), frozenset())
    await wish(world, "extend", timedelta(minutes=10))
    assert (await world.latest(MR)).expires_at == ready.expires_at + timedelta(minutes=70)


async def test_an_extension_that_is_still_inside_a_threshold_does_not_warn_for_it_again(world: World) -> None:
    ready = await world.ready(MR)
    world.pass_by(hours=1, minutes=55)
    await world.write(lambda tx: sandboxes.save(tx, replace(ready, warned=frozenset({1800, 600}))))
    await wish(world, "extend", timedelta(minutes=10))
    assert (await world.latest(MR)).warned == frozenset({1800})


async def test_extend_goes_up_to_the_longest_lifetime_and_no_further(world: World) -> None:
    ready = await world.ready(MR)
    assert ready.ready_at
    granted = await wish(world, "extend", timedelta(hours=20))
    assert granted.accepted
    assert granted.message == "group/app!1 stays until 20:00 UTC (6 h more, not 20 h: 8 h is the longest lifetime)."
    assert (await world.latest(MR)).expires_at == ready.ready_at + timedelta(hours=8)
    refused = await wish(world, "extend")
    why = "group/app!1 has its longest lifetime already, 8 h: it ends at 20:00 UTC."
    assert refused == Outcome(False, why, Advice("For a fresh machine with a new end", "rebuild"))


async def test_an_extension_beyond_the_end_of_all_calendars_is_one_up_to_the_longest(world: World) -> None:
    ready = await world.ready(MR)
    assert ready.ready_at
    assert (await wish(world, "extend", timedelta.max)).accepted
    assert (await world.latest(MR)).expires_at == ready.ready_at + timedelta(hours=8)


async def test_an_extension_of_nothing_is_refused(world: World) -> None:
    await world.ready(MR)
    for nothing in (timedelta(seconds=-5), timedelta.min):
        assert not (await wish(world, "extend", nothing)).accepted


@pytest.mark.parametrize("how_far", ["queued", "started", "claimed"])
async def test_only_one_that_was_ready_can_be_extended(world: World, how_far: str) -> None:
    sandbox = await getattr(world, how_far)(MR)
    refused = await wish(world, "extend")
    assert not refused.accepted
    why = "Only a sandbox that was ready can be extended."
    assert refused.message == f"The sandbox of group/app!1 is {sandbox.state.value}. {why}"
    await wish(world, "stop")
    nothing = "group/app!1 has no sandbox, so there is nothing to extend."
    assert await wish(world, "extend") == Outcome(False, nothing, Advice("To start one", "start"))


async def test_an_overdue_one_is_extended_from_now(world: World) -> None:
    await world.ready(MR)
    world.pass_by(hours=3)
    assert (await wish(world, "extend")).accepted
    assert (await world.latest(MR)).expires_at == world.clock.now() + timedelta(hours=1)


async def test_rebuild_ends_the_old_and_queues_a_new_one_behind_it(world: World) -> None:
    first = await world.ready(MR)
    assert (await wish(world, "rebuild")).message == "group/app!1 gets a fresh machine. The old one ends first."
    old = await world.read(lambda tx: sandboxes.get(tx, first.id))
    assert old
    assert (old.state, old.end_reason, old.end_detail) == (S.STOPPING, EndReason.SUPERSEDED, "rebuilt")
    assert (await world.latest(MR)).state is S.QUEUED
    assert (await wish(world, "rebuild")).message == "group/app!1 waits in the queue, and gets a fresh machine anyway."
    assert await count(world) == 2


@pytest.mark.parametrize(
    ("verb", "message"),
    [("start", "A sandbox for group/app!1 is on its way."), ("rebuild", "group/app!1 gets a fresh machine."),
     ("retry", "A sandbox for group/app!1 is on its way.")],
)  # fmt: skip
async def test_whatever_asks_for_a_sandbox_while_the_old_one_stops_gets_a_new_one_behind_it(
    world: World, verb: str, message: str
) -> None:
    await world.ready(MR)
    await wish(world, "stop")
    assert await wish(world, verb) == Outcome(True, message)
    old, new = await world.read(sandboxes.live)
    assert (old.state, old.end_reason, new.state) == (S.STOPPING, EndReason.STOPPED, S.QUEUED)


async def test_rebuild_without_a_sandbox_starts_one(world: World) -> None:
    await world.told(MR, may_start=False)
    assert await wish(world, "rebuild") == Outcome(True, "group/app!1 gets a fresh machine.")
    assert await count(world) == 1


async def test_retry_lifts_the_hold_and_the_backoff(world: World) -> None:
    image = str(world.config.provider.image)
    sandbox = await world.queued(MR)
    held = replace(sandbox, not_before=NOON + timedelta(hours=1), wait_reason="no machines are built: it broke")
    await world.write(lambda tx: sandboxes.save(tx, held))
    await world.write(lambda tx: images.save(tx, ImageRecord(image, 3, "it broke")))
    await world.empty_outbox()
    assert await wish(world, "retry") == Outcome(True, "group/app!1 is tried again now.")
    assert await world.read(lambda tx: images.get(tx, image)) == ImageRecord(image)
    after = await world.latest(MR)
    assert (after.not_before, after.wait_reason) == (None, "")
    assert (await world.kinds())[-1] == "build.resumed"
    assert "matrix say" in await world.told_kinds()


async def test_retry_lifts_a_hold_also_when_no_failure_is_counted_any_more(world: World) -> None:
    image = str(world.config.provider.image)
    await world.queued(MR)
    await world.write(lambda tx: images.save(tx, ImageRecord(image, 0, "it broke")))
    await wish(world, "retry")
    assert await world.read(lambda tx: images.get(tx, image)) == ImageRecord(image)


async def test_a_hold_that_retry_lifts_for_a_merge_request_without_a_sandbox_is_told_as_well(world: World) -> None:
    image = str(world.config.provider.image)
    waits = await world.queued(SECOND)
    await world.write(lambda tx: sandboxes.save(tx, replace(waits, wait_reason="no machines are built: it broke")))
    await world.write(lambda tx: images.save(tx, ImageRecord(image, 3, "it broke")))
    await world.told(MR, may_start=False)
    assert (await wish(world, "retry")).message == "A sandbox for group/app!1 is on its way."
    assert (await world.kinds())[-1] == "build.resumed"
    assert (await world.latest(SECOND)).wait_reason == ""


async def test_a_retry_that_is_refused_lifts_no_hold(world: World) -> None:
    image = str(world.config.provider.image)
    await world.write(lambda tx: images.save(tx, ImageRecord(image, 3, "it broke")))
    await world.told(replace(MR, state="closed"))
    assert not (await wish(world, "retry")).accepted
    assert await world.read(lambda tx: images.get(tx, image)) == ImageRecord(image, 3, "it broke")


async def test_retry_runs_the_chain_of_a_ready_one_again(world: World) -> None:
    ready = await world.ready(MR)
    assert (await wish(world, "retry")).message == "The code of group/app!1 is copied in and set up again."
    after = await world.latest(MR)
    assert (after.stage, after.sha, after.stage_attempt) == (Stage.COPY, A, ready.stage_attempt + 1)
    assert (await wish(world, "retry")).message == "group/app!1 is ready: there is nothing to retry."


async def test_what_retry_says_of_the_image_comes_before_what_follows_for_the_sandbox(world: World) -> None:
    await world.ready(MR)
    image = str(world.config.provider.image)
    await world.write(lambda tx: images.save(tx, ImageRecord(image, 3, "it broke")))
    await wish(world, "retry")
    assert (await world.kinds())[-2:] == ["build.resumed", "sandbox.code"]


async def test_retry_without_a_sandbox_starts_one(world: World) -> None:
    await world.told(MR, may_start=False)
    assert (await wish(world, "retry")).message == "A sandbox for group/app!1 is on its way."
