"""What a room is left with when removals, refusals, retries and outages come between the steps of telling."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.errors import Forbidden, RavebotError
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.incoming import Removed
from ravebot.notify.delivery import Sent
from ravebot.notify.matrix import MatrixSender
from ravebot.sandboxes import machine_life
from ravebot.sandboxes.decide import Happened
from ravebot.sandboxes.model import EndReason, Sandbox, SandboxState, Stage, StageResult
from ravebot.store import machines, merge_requests, outbox, sandboxes
from ravebot.store.database import Transaction
from ravebot.store.targets import MATRIX
from tests.support.records import BY_ALICE, ROOM, A, B, World, a_merge_request, a_world

pytestmark = pytest.mark.integration

MR, DEV = a_merge_request(), "!dev:example.org"
Content = Mapping[str, object]


class Room:
    """A homeserver's end of the requests: events by transaction id. `meanwhile` happens once, during the next one."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Content]] = []
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        self.refuses_edits = False
        self._transactions: dict[str, str] = {}

    async def send(
        self, room_id: str, content: Mapping[str, object], txn_id: str, event_type: str = "m.room.message"
    ) -> str:
        if self.refuses_edits and "m.new_content" in content:
            raise Forbidden("too old")
        if self.meanwhile:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        if txn_id not in self._transactions:
            self._transactions[txn_id] = f"${len(self.events)}"
            self.events.append((self._transactions[txn_id], content))
        return self._transactions[txn_id]

    async def redact(self, room_id: str, event_id: str, txn_id: str) -> str:
        raise AssertionError("there is no conversation")

    async def upload(self, data: bytes, name: str, kind: str) -> str:
        raise AssertionError("there is no conversation")

    async def display_name(self, user_id: str) -> str:
        return "Alice"

    async def ensure(self, name: str) -> str:
        return DEV

    def refused(self, name: str, error: RavebotError) -> None:
        """It is looked at again, and is fine."""

    def shown(self) -> dict[str, str]:
        """The text of each message, with its last edit, oldest first."""
        texts: dict[str, str] = {}
        for event_id, content in self.events:
            relation, fresh = content.get("m.relates_to"), content.get("m.new_content")
            edited = relation.get("event_id") if isinstance(relation, dict) and fresh else None
            body = fresh.get("body") if isinstance(fresh, dict) else content["body"]
            texts[str(edited or event_id)] = str(body)
        return texts

    def calls(self) -> list[str]:
        """What the owner was notified of."""
        return [str(content["body"]) for _, content in self.events if content.get("m.mentions")]

    def threads(self) -> list[str]:
        """The roots of the messages in threads."""
        relations = [content.get("m.relates_to") for _, content in self.events]
        return [
            str(relation["event_id"])
            for relation in relations
            if isinstance(relation, dict) and relation.get("rel_type") == "m.thread"
        ]


class Desk:
    """The world, and the sender that tells the room of it."""

    def __init__(self, world: World) -> None:
        self.world, self.room = world, Room()
        self.sender = MatrixSender(world.config.matrix, world.database, world.views, self.room, self.room)

    async def tell(self) -> None:
        """Send all that waits, as the delivery does: what is refused is tried again."""
        for _ in range(60):
            message = await self.world.read(lambda tx: outbox.head(tx, MATRIX, ROOM))
            if message is None:
                return
            with suppress(Forbidden):
                await self._one(message)
        raise AssertionError("the lane never gets empty")

    async def _one(self, message: outbox.Message) -> None:
        def attempt(tx: Transaction) -> object:
            outbox.attempt(tx, message.id)
            return self.sender.look(tx, message)

        facts = await self.world.write(attempt)
        sent = await self.sender.send(message, facts)  # type: ignore[arg-type] # what `look` returned

        def delivered(tx: Transaction, sent: Sent = sent) -> None:
            outbox.delivered(tx, message.id, sent.result)
            if sent.keep:
                sent.keep(tx)

        await self.world.write(delivered)

    async def card(self, sandbox: Sandbox) -> outbox.Card:
        found = await self.world.read(lambda tx: outbox.card(tx, sandbox.id, ROOM))
        assert found
        return found

    async def removes(self, event_id: str) -> None:
        await MatrixJournal(self.world.database, "!rave").save((Removed(DEV, event_id),), "s1")

    async def extends(self, minutes: int = 5) -> None:
        await self.world.write(lambda tx: self.world.intents.extend(tx, MR, BY_ALICE, timedelta(minutes=minutes)))

    async def fails(self, sandbox: Sandbox) -> None:
        """Its set-up fails, as the chain reports it."""
        result = StageResult(Stage.SETUP, False, 0.4, "no libfoo-dev")
        broken = replace(sandbox, stage=Stage.SETUP)

        def step(tx: Transaction) -> None:
            sandboxes.save(tx, broken)
            sandboxes.add_result(tx, broken, result)
            self.world.lifecycle.happened(tx, broken, Happened.STAGE_FAILED, why="`./.rave/setup` ended with code 3")

        await self.world.write(step)

    async def is_gone(self, sandbox: Sandbox) -> None:
        """Its machine is."""
        machine = await self.world.read(lambda tx: machines.get(tx, sandbox.machine_id))
        assert machine
        await self.world.write(lambda tx: machine_life.gone(tx, self.world.lifecycle, machine))


@pytest.fixture
async def desk(tmp_path: Path) -> object:
    async with a_world(tmp_path) as world:
        await world.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
        yield Desk(world)


async def test_a_card_that_is_removed_during_its_edit_is_posted_anew(desk: Desk) -> None:
    sandbox = await desk.world.ready(MR)
    await desk.tell()
    card = await desk.card(sandbox)
    await desk.extends()
    desk.room.meanwhile = lambda: desk.removes(card.event_id)
    await desk.tell()
    anew = await desk.card(sandbox)
    assert anew.event_id not in ("", card.event_id)
    assert "was removed" in desk.room.shown()[anew.event_id]


async def test_a_card_whose_last_edit_is_removed_is_edited_again(desk: Desk) -> None:
    sandbox = await desk.world.ready(MR)
    await desk.tell()
    await desk.extends()
    await desk.tell()
    edit = next(event for event, content in reversed(desk.room.events) if "\nOwner " in str(content["body"]))
    before = len(desk.room.events)
    await desk.removes(edit)
    await desk.tell()
    assert len(desk.room.events) == before + 1
    assert "m.new_content" in desk.room.events[-1][1]
    assert sandbox.id


async def test_a_retry_during_an_edit_of_the_failed_one_leaves_one_card_with_one_sandbox(desk: Desk) -> None:
    failed = await desk.world.claimed(MR)
    await desk.tell()
    await desk.fails(failed)
    desk.room.meanwhile = lambda: desk.world.write(lambda tx: desk.world.intents.retry(tx, MR, BY_ALICE))
    await desk.tell()
    desk.world.pass_by(minutes=1)
    await desk.is_gone(failed)
    await desk.tell()
    rows = await desk.world.read(lambda tx: [row["sandbox_id"] for row in tx.all("SELECT sandbox_id FROM cards")])
    assert rows == [(await desk.world.latest(MR)).id]
    [card] = [text for text in desk.room.shown().values() if "\nOwner " in text]
    assert "failed" not in card
    assert "Waits since" in card or "Starting since" in card


async def test_the_line_of_a_failed_one_goes_into_the_thread_of_the_card_that_went_on(desk: Desk) -> None:
    failed = await desk.world.claimed(MR)
    await desk.tell()
    await desk.fails(failed)
    await desk.world.write(lambda tx: desk.world.intents.retry(tx, MR, BY_ALICE))  # before the room heard of it
    await desk.tell()
    assert desk.room.threads() == ["$0"]


async def test_edits_that_are_refused_for_ever_hold_up_nothing(desk: Desk) -> None:
    sandbox = await desk.world.ready(MR)
    soon = replace(sandbox, warned=frozenset({600}), expires_at=desk.world.clock.now() + timedelta(minutes=9))
    await desk.world.write(lambda tx: sandboxes.save(tx, soon))
    await desk.world.write(lambda tx: desk.world.lifecycle.happened(tx, soon, Happened.EXPIRED))
    await desk.tell()
    desk.room.refuses_edits = True
    for _ in range(3):
        await desk.extends(40)
        await desk.tell()
    assert sum("\nOwner " in text for text in desk.room.shown().values()) == 2, "one card more, once"


async def test_after_an_outage_the_owner_is_called_once_for_how_it_is_now(desk: Desk) -> None:
    ready = await desk.world.ready(MR)
    for sha in (B, "c" * 40):
        desk.world.pass_by(seconds=1)
        await desk.world.told(replace(MR, head_sha=sha, updated_at=desk.world.clock.now()))
        await desk.fails(await desk.world.latest(MR))
    await desk.tell()
    assert len(desk.room.calls()) == 1
    assert "its set-up failed: `./.rave/setup` ended with code 3" in desk.room.calls()[0]
    await desk.extends()
    await desk.fails(await desk.world.latest(MR))
    await desk.world.write(lambda tx: desk.world.intents.stop(tx, MR, BY_ALICE))
    await desk.tell()
    assert len(desk.room.calls()) == 1, "nobody is called because somebody stopped it"
    assert ready.ready_at


@pytest.mark.parametrize("inside", [False, True])
async def test_new_code_that_fails_says_whether_it_is_in_the_machine(desk: Desk, inside: bool) -> None:
    ready = await desk.world.ready(MR)
    await desk.tell()
    updating = replace(ready, sha=B, running_sha=B if inside else A)
    await desk.fails(updating)
    await desk.tell()
    card = desk.room.shown()["$0"]
    said = "is in the machine, but its set-up failed" if inside else "was not taken, because its set-up failed"
    assert f"⚠️ Commit bbbbbbbb {said}" in card
    assert f"commit {'bbbbbbbb' if inside else 'aaaaaaaa'}," in card


async def test_a_failure_is_dated_once_and_edits_nothing_more_when_the_machine_is_gone(desk: Desk) -> None:
    claimed = await desk.world.claimed(MR)
    await desk.tell()
    await desk.fails(claimed)
    await desk.tell()
    before = len(desk.room.events)
    desk.world.pass_by(minutes=1)
    await desk.is_gone(claimed)
    await desk.tell()
    assert len(desk.room.events) == before


async def test_a_retry_in_an_old_card_dates_its_moments_by_the_card_s_day(desk: Desk) -> None:
    failed = replace(await desk.world.ready(MR), state=SandboxState.ENDED, end_reason=EndReason.FAILED, machine_id=None)
    await desk.world.write(lambda tx: sandboxes.save(tx, failed))
    await desk.tell()
    desk.world.pass_by(days=1)
    await desk.world.write(lambda tx: desk.world.intents.retry(tx, MR, BY_ALICE))
    await desk.tell()
    assert "Starting since 2026-01-02 12:00 UTC" in desk.room.shown()["$0"]


async def test_a_card_does_not_offer_what_a_merge_request_that_is_over_can_not_have(desk: Desk) -> None:
    stopped = await desk.world.ready(MR)
    await desk.world.happens(stopped, Happened.END_ASKED, by=BY_ALICE)
    await desk.is_gone(stopped)
    await desk.tell()
    assert "For a new one" in desk.room.shown()["$0"]
    desk.world.pass_by(seconds=1)
    await desk.world.told(replace(MR, state="merged", updated_at=desk.world.clock.now()))
    await desk.tell()
    assert "For a new one" not in desk.room.shown()["$0"]


async def test_a_reason_to_wait_that_is_gone_is_gone_from_the_card(desk: Desk) -> None:
    waiting = await desk.world.queued(MR)
    await desk.world.write(lambda tx: desk.world.lifecycle.wait(tx, waiting, "the host is short of memory"))
    await desk.tell()
    assert "short of memory" in desk.room.shown()["$0"]
    again = await desk.world.latest(MR)
    await desk.world.write(lambda tx: desk.world.lifecycle.wait(tx, again, ""))
    await desk.tell()
    assert "short of memory" not in desk.room.shown()["$0"]
    assert await desk.world.read(lambda tx: merge_requests.get(tx, MR.ref))


async def test_every_warning_that_was_given_is_edited_by_an_extension(desk: Desk) -> None:
    ready = await desk.world.ready(MR)
    await desk.tell()
    for left, threshold in ((25, 1800), (5, 600)):
        near = replace(
            await desk.world.latest(MR),
            expires_at=desk.world.clock.now() + timedelta(minutes=left),
            warned=frozenset({1800} if threshold == 600 else ()),
        )
        await desk.world.write(lambda tx, near=near: sandboxes.save(tx, near))  # type: ignore[misc]
        await desk.world.happens(near, Happened.EXPIRED)
        await desk.tell()
    await desk.extends(15)  # less than the first warning's threshold
    await desk.tell()
    warnings = [text for text in desk.room.shown().values() if "ends at" in text or "was extended until" in text]
    assert len(warnings) == 2
    assert all("was extended until" in text for text in warnings), warnings
    assert ready.id
