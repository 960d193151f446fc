"""Agents that take webhooks: real receivers on loopback, which are slow, wrong, gone, or answer as they should."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ravebot.agents.answers import AnswerEnd, AnswerRefusal
from ravebot.agents.model import Channel, Conversation, DeliveryKind, Turn, TurnId, TurnState
from ravebot.agents.transports.contract import Nudge
from ravebot.agents.transports.webhook.outcomes import PostEnd
from ravebot.agents.transports.webhook.poster import WebhookPoster
from ravebot.agents.transports.webhook.sender import MOST_OF_AN_AGENT
from ravebot.commands.permissions import Decision
from ravebot.errors import Unavailable
from ravebot.sandboxes.model import MachineState, SandboxState
from ravebot.store import deliveries, machines, sandboxes
from ravebot.store.database import Transaction
from tests.support.clock import ManualClock
from tests.support.elsewhere import ALICE_IN_ROOM, MR, ElsewhereWorld, an_elsewhere_world
from tests.support.receivers import GotWebhook, a_receiver, a_rude_receiver
from tests.support.records import BY_ALICE, a_machine

pytestmark = pytest.mark.integration
S = TurnState


async def test_a_message_is_sent_once_signed_and_answered_to_its_end(tmp_path: Path) -> None:
    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url) as world:
        turn_id = await world.say(text="what does this change?")
        turn = await world.until(lambda turn: turn.state is S.WORKING, turn_id)
        assert turn.deadline
        assert turn.given_at
        assert turn.deadline - turn.given_at == timedelta(minutes=30)
        [got] = receiver.got
        assert got.id == got.data["id"]
        assert got.data["text"] == "what does this change?"
        assert got.data["author"] == {"kind": "matrix", "name": "@alice:example.org"}
        assert got.data["project"] == {"id": 7, "path": "group/app"}
        assert got.data["merge_request"]["ref"] == MR.full_ref
        assert got.data["sandbox"] is None
        first = await world.answer(got.id, "It adds ", status="reads the diff")
        assert (first.accepted, first.state, first.said) == (True, "working", 8)
        last = await world.answer(got.id, "a feature.", AnswerEnd.DONE)
        assert (last.accepted, last.state, last.said) == (True, "done", 18)
        turn = await world.turn(turn_id)
        assert (turn.state, turn.answer, turn.status) == (S.DONE, "It adds a feature.", "")
        delivery = await world.delivery(turn_id)
        assert delivery
        assert (delivery.body, delivery.tries, delivery.kind) == ("", 1, DeliveryKind.MESSAGE)


async def test_one_message_at_a_time_is_sent_in_a_thread_and_others_beside_it(tmp_path: Path) -> None:
    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url) as world:
        first, second = await world.say(text="1"), await world.say(text="2")
        beside = await world.say(text="3", thread="$other")
        await world.until(lambda turn: turn.state is S.WORKING, beside)
        await world.until(lambda turn: turn.state is S.WORKING, first)
        assert {one.data["text"] for one in receiver.got} == {"1", "3"}
        await world.answer(next(one.id for one in receiver.got if one.data["text"] == "1"), "", AnswerEnd.DONE)
        await world.until(lambda turn: turn.state is S.WORKING, second)
        assert len(receiver.got) == 3


async def test_after_errors_the_same_id_is_sent_again_and_people_hear_of_it_once(tmp_path: Path) -> None:
    statuses = (500, 503, 404, 302)
    async with (
        a_receiver(*statuses, headers={"location": "/other"}) as receiver,
        an_elsewhere_world(tmp_path, receiver.url) as world,
    ):
        turn_id = await world.say()
        await hurry(world, lambda turn: turn.state is S.WORKING, turn_id)
        assert len(receiver.got) == 5
        assert len({one.id for one in receiver.got}) == 1
        assert len({str(one.data) for one in receiver.got}) == 1
        [remark] = await world.remarks()
        assert remark.startswith("The webhook of reviewer does not take it now (404). It is tried again")


async def hurry(world: ElsewhereWorld, condition: Callable[[Turn], bool], turn_id: TurnId) -> None:
    """Until the condition holds, let no pause between two tries be longer than a moment."""
    async with asyncio.timeout(30):
        while not condition(await world.turn(turn_id)):
            await world.database.write(lambda tx: tx.execute("UPDATE deliveries SET next_try_at = NULL"))
            world.database.signals.wake("deliveries")
            await asyncio.sleep(0.02)


async def test_a_receiver_that_is_gone_makes_a_dead_letter_that_can_be_sent_again(tmp_path: Path) -> None:
    async with a_receiver(410) as receiver, an_elsewhere_world(tmp_path, receiver.url) as world:
        turn_id = await world.say()
        turn = await world.over(turn_id)
        assert (turn.state, turn.why) == (S.DEAD, "The webhook of reviewer is gone for good (410).")
        again = await world.database.write(lambda tx: world.desk.resend(tx, turn_id, ALICE_IN_ROOM))
        assert again.turn_id
        await world.until(lambda turn: turn.state is S.WORKING, again.turn_id)
        first, second = receiver.got
        assert first.id != second.id
        assert (first.data["attempt"], second.data["attempt"]) == (1, 2)
        late = await world.answer(first.id, "I have it after all")
        assert late.refused is AnswerRefusal.OVER
        assert (await world.turn(turn_id)).answer == ""


async def test_tries_without_a_clear_answer_end_as_uncertain(tmp_path: Path) -> None:
    async with a_receiver(500, 410) as receiver, an_elsewhere_world(tmp_path, receiver.url) as world:
        turn_id = await world.say()
        await hurry(world, lambda turn: turn.state.is_over, turn_id)
        turn = await world.turn(turn_id)
        assert turn.state is S.UNCERTAIN
        assert turn.why == (
            "It can't be known whether reviewer has it. The webhook of reviewer is gone for good (410)."
            " To have it done again, say `!rave resend` here."
        )


async def test_whoever_answers_has_got_it_even_if_the_webhook_never_said_so(tmp_path: Path) -> None:
    async with a_receiver(*(500,) * 50) as receiver, an_elsewhere_world(tmp_path, receiver.url) as world:

        async def answer(got: GotWebhook) -> None:
            await world.answer(got.id, "done", AnswerEnd.DONE)

        receiver.on_message = answer
        turn_id = await world.say()
        turn = await world.over(turn_id)
        assert (turn.state, turn.answer) == (S.DONE, "done")
        await asyncio.sleep(0.1)
        assert len(receiver.got) == 1


async def test_a_cancelled_message_is_over_at_once_and_its_receiver_is_told(tmp_path: Path) -> None:
    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url) as world:
        turn_id = await world.say()
        await world.until(lambda turn: turn.state is S.WORKING, turn_id)
        receiver.statuses = [503]  # the first try to tell it
        await world.cancel(turn_id)
        turn = await world.over(turn_id)
        assert turn.state is S.CANCELLED
        [given] = receiver.messages
        refused = await world.answer(given.id, "still at it")
        assert refused.refused is AnswerRefusal.CANCELLED
        assert refused.message.startswith("Cancelled by @alice:example.org (matrix). Stop working on it")
        async with asyncio.timeout(30):
            while len(receiver.got) < 3:
                await asyncio.sleep(0.01)
        told = receiver.got[1:]
        assert [(one.type, one.data["id"]) for one in told] == [("turn.cancelled", given.id)] * 2
        assert len({one.id for one in told} | {given.id}) == 2
        assert (await world.turn(turn_id)).answer == ""


async def test_what_was_not_sent_yet_is_cancelled_without_a_word(tmp_path: Path) -> None:
    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url, runs=False) as world:
        turn_id = await world.say()
        await world.cancel(turn_id)
        assert (await world.turn(turn_id)).state is S.CANCELLED
        assert await world.database.read(deliveries.unsettled) == ()
        assert receiver.got == []


async def test_of_many_webhooks_that_wait_only_those_are_read_that_are_due_and_of_each_agent_a_few(
    tmp_path: Path,
) -> None:
    async with an_elsewhere_world(tmp_path, "http://127.0.0.1:1/", runs=False) as world:
        turns = [await world.say(thread=f"${number}") for number in range(9)]

        def fill(tx: Transaction) -> datetime:
            later = tx.now + timedelta(minutes=4)
            for number, turn_id in enumerate(turns):
                agent = "one" if number < 6 else "two"
                fresh = deliveries.add(tx, deliveries.new_id(), turn_id, agent, Channel.WEBHOOK, "{}")
                if number in (0, 8):
                    deliveries.save(tx, replace(fresh, next_try_at=later))
                if number == 1:  # the clock was set back
                    deliveries.save(tx, replace(fresh, next_try_at=tx.now + timedelta(hours=3)))
            return later

        later = await world.database.write(fill)
        due = await world.database.read(lambda tx: deliveries.to_send(tx, timedelta(minutes=20), 3))
        assert [one.turn_id for one in due] == [*turns[1:4], *turns[6:8]]
        assert await world.database.read(deliveries.next_try) == later


async def test_a_receiver_that_hangs_holds_up_only_its_own_messages(tmp_path: Path) -> None:
    async with (
        a_receiver(pause=asyncio.Event()) as receiver,
        an_elsewhere_world(tmp_path, receiver.url, seconds=60) as world,
    ):
        for number in range(MOST_OF_AN_AGENT + 3):
            await world.say(thread=f"${number}")
        async with asyncio.timeout(30):
            while len(receiver.got) < MOST_OF_AN_AGENT:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert len(receiver.got) == MOST_OF_AN_AGENT
        other = await world.say("helper", thread="$other")
        taken = await world.take()
        assert taken
        assert (await world.turn(other)).state is S.DELIVERED
        assert receiver.pause
        receiver.pause.set()
        async with asyncio.timeout(30):
            while len(receiver.got) < MOST_OF_AN_AGENT + 3:
                await asyncio.sleep(0.01)


async def test_a_turn_that_is_not_ended_in_time_fails_and_a_late_answer_changes_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url, clock=clock, runs=False) as world:
        turn_id = await world.say()
        # Signatures are of the receiver's time: what is sent is not looked at here.
        turn = await world.turn(turn_id)
        agent = world.config.agents[0]

        def accepted(tx: Transaction) -> str:
            delivery = world.answers.turns.begin(tx, turn, agent, Channel.WEBHOOK)
            assert delivery
            world.answers.turns.accepted(tx, delivery, agent.limits.turn)
            return delivery.id

        delivery_id = await world.database.write(accepted)
        assert (await world.answer(delivery_id, "half")).accepted
        clock.advance(timedelta(minutes=30))
        late = await world.answer(delivery_id, "the rest", AnswerEnd.DONE)
        assert late.refused is AnswerRefusal.OVER
        turn = await world.turn(turn_id)
        assert (turn.state, turn.answer) == (S.FAILED, "half")
        assert turn.why == "reviewer did not end it within 30 min, the limit of a turn."
        second = await world.answer(delivery_id, "again")
        assert "It is over" in second.message


async def test_rights_are_looked_up_before_the_first_try_and_before_each_other_one(tmp_path: Path) -> None:
    decisions: list[Decision | Unavailable] = [
        Decision(True, "yes"), Decision(False, "Alice is a Guest now.", "Ask a Maintainer."),
    ]  # fmt: skip

    async def may_give(conversation: Conversation, turn: Turn) -> Decision:
        del conversation, turn
        decision = decisions.pop(0)
        if isinstance(decision, Unavailable):
            raise decision
        return decision

    async with a_receiver(503) as receiver, an_elsewhere_world(tmp_path, receiver.url, may_give=may_give) as world:
        turn_id = await world.say()
        turn = await world.over(turn_id)
        assert turn.state is S.UNCERTAIN  # the first try was answered with 503, which proves nothing
        assert "Alice is a Guest now." in turn.why
        assert len(receiver.got) == 1
        decisions[:] = [Unavailable("GitLab is away"), *[Decision(True, "yes")] * 9]
        waiting = await world.say(thread="$other")
        turn = await world.until(lambda turn: turn.next_try_at, waiting)
        assert (turn.state, turn.is_given) == (S.QUEUED, False)
        await world.database.write(lambda tx: tx.execute("UPDATE agent_turns SET next_try_at = NULL"))
        await world.driver.drive(turn.conversation_id, Nudge())
        await world.until(lambda turn: turn.state is S.WORKING, waiting)


async def test_a_sandbox_that_is_ready_comes_with_its_command_and_host_keys(tmp_path: Path) -> None:
    machine = a_machine(1, state=MachineState.LEASED, host_keys=("ssh-ed25519 AAAA",))

    def ready(tx: Transaction, state: SandboxState, **facts: object) -> None:
        found = sandboxes.latest(tx, MR.ref)
        known = replace(found or sandboxes.insert(tx, MR.ref, MR.head_sha, BY_ALICE), state=state)
        sandboxes.save(tx, replace(known, **facts))  # type: ignore[arg-type]

    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url) as world:
        first = await world.say()
        await world.until(lambda turn: turn.state is S.WORKING, first)
        await world.database.write(lambda tx: ready(tx, SandboxState.STARTING))
        second = await world.say(thread="$second")
        await world.until(lambda turn: turn.state is S.WORKING, second)
        kept = await world.database.write(lambda tx: machines.insert(tx, machine))
        access = {"machine_id": kept.id, "ports_open": True, "ssh_port": 20001, "web_port": 20002, "web_scheme": "http"}
        await world.database.write(lambda tx: ready(tx, SandboxState.READY, **access))
        third = await world.say(thread="$third")
        await world.until(lambda turn: turn.state is S.WORKING, third)
        none, starting, there = (one.data["sandbox"] for one in receiver.got)
        assert (none, starting) == (None, None)
        assert (there["state"], there["host_keys"]) == ("ready", ["ssh-ed25519 AAAA"])
        assert "-p 20001 " in there["ssh"]


async def begun(world: ElsewhereWorld, **facts: object) -> TurnId:
    """A message whose delivery is stored, with these facts of it; the loop over webhooks does not run yet."""
    turn = await world.turn(await world.say())
    await world.driver.drive(turn.conversation_id, Nudge())

    def change(tx: Transaction) -> None:
        [stored] = deliveries.unsettled(tx)
        deliveries.save(tx, replace(stored, **facts))  # type: ignore[arg-type]

    await world.database.write(change)
    return turn.id


@asynccontextmanager
async def sending(world: ElsewhereWorld) -> AsyncIterator[None]:
    task = asyncio.create_task(world.sender.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_try_that_a_crash_cut_off_may_have_reached_the_agent(tmp_path: Path) -> None:
    async with a_receiver(410) as receiver, an_elsewhere_world(tmp_path, receiver.url, runs=False) as world:
        turn_id = await begun(world, tries=1, sending_at=datetime.now(UTC))
        async with sending(world):
            turn = await world.over(turn_id)
        assert (turn.state, len(receiver.got)) == (S.UNCERTAIN, 1)


async def test_a_pause_that_was_set_by_a_clock_that_is_set_back_ends_at_once(tmp_path: Path) -> None:
    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url, runs=False) as world:
        turn_id = await begun(world, next_try_at=datetime.now(UTC) + timedelta(days=2))
        async with sending(world):
            await world.until(lambda turn: turn.state is S.WORKING, turn_id, 10)


async def test_a_message_of_an_agent_without_its_webhook_is_given_up_and_says_so(tmp_path: Path) -> None:
    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url, runs=False) as world:
        turn_id = await begun(world)
        world.sender.keys = {}
        async with sending(world):
            turn = await world.over(turn_id)
        assert (turn.state, turn.why) == (S.DEAD, "reviewer is not configured with `webhook` any more.")
        assert receiver.got == []


async def test_a_message_that_is_cancelled_before_its_first_try_is_never_sent_nor_told(tmp_path: Path) -> None:
    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url, runs=False) as world:
        turn_id = await begun(world)
        await world.cancel(turn_id)
        async with sending(world):
            await asyncio.sleep(0.2)
            assert receiver.got == []
            await world.driver.drive((await world.turn(turn_id)).conversation_id, Nudge())
            await asyncio.sleep(0.1)
        assert (await world.turn(turn_id)).state is S.CANCELLED
        assert await world.database.read(deliveries.unsettled) == ()
        assert receiver.got == []


async def test_a_turn_is_given_once_and_what_was_taken_is_given_up_as_uncertain(tmp_path: Path) -> None:
    async with a_receiver() as receiver, an_elsewhere_world(tmp_path, receiver.url, runs=False) as world:
        turn_id = await begun(world)
        turn, agent, turns = await world.turn(turn_id), world.config.agents[0], world.answers.turns
        assert await world.database.write(lambda tx: turns.begin(tx, turn, agent, Channel.WEBHOOK)) is None
        async with sending(world):
            await world.until(lambda turn: turn.state is S.WORKING, turn_id)
        await world.database.write(lambda tx: turns.give_up(tx, turn, "It is gone."))
        assert (await world.turn(turn_id)).state is S.UNCERTAIN


# The request itself.


async def _read_all(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    [length] = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    await reader.readexactly(int(length))


async def test_a_receiver_without_an_answer_or_with_a_flood_of_one_costs_little(tmp_path: Path) -> None:
    flooded = 0

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)

    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal flooded
        await _read_all(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            flooded += 65536
            await writer.drain()

    async def endless_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async def endless_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: y\r\n" * 1000)
            await writer.drain()

    async def long_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000)
        await writer.drain()

    async def endless_announcements(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        while True:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000)
            await writer.drain()

    async def long_announcements(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\n" + b"x: y\r\n" * 2000 + b"\r\n")
            await writer.drain()

    async def announces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 202 Accepted\r\n\r\n")
        await writer.drain()

    async def switches(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n" + b"x" * 100_000)
        await writer.drain()

    async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        writer.write(b"SSH-2.0-OpenSSH_9\r\n")
        await writer.drain()

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        await reader.read(1)

    poster = WebhookPoster(total_seconds=1.0)
    body = b"{" + b" " * 60_000 + b"}"
    for talk, end, status, why in (
        (closes, PostEnd.SILENT, 0, "closed the connection"),
        (hangs, PostEnd.SILENT, 0, "did not answer within 1 s"),
        (floods, PostEnd.ANSWERED, 200, ""),
        (endless_header, PostEnd.SILENT, 0, "no answer in HTTP"),
        (endless_headers, PostEnd.SILENT, 0, "no answer in HTTP"),
        (long_body, PostEnd.ANSWERED, 200, ""),
        (endless_announcements, PostEnd.SILENT, 0, "no answer in HTTP"),
        (long_announcements, PostEnd.SILENT, 0, "no answer in HTTP"),
        (announces, PostEnd.ANSWERED, 202, ""),
        (switches, PostEnd.SILENT, 0, "no answer in HTTP"),
        (no_http, PostEnd.SILENT, 0, "no answer in HTTP"),
        (early, PostEnd.ANSWERED, 413, ""),
    ):
        async with a_rude_receiver(talk) as url:
            posted = await poster.post(url, body, {"webhook-id": "msg_1"})
            assert (posted.end, posted.status) == (end, status), talk.__name__
            assert why in posted.why, talk.__name__
    assert flooded < 8 * 1024 * 1024


async def test_a_request_is_what_servers_expect_and_only_a_sane_pause_is_heard() -> None:
    heads, asked = [], ["120", "1e9", "nan", "inf", "-5", "0", "Wed, 21 Oct 2026 07:28:00 GMT", ""]

    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines())
        writer.write(f"HTTP/1.1 503 Busy\r\nRetry-After: {asked[len(heads) - 1]}\r\n\r\n".encode())
        await writer.drain()

    async with a_rude_receiver(busy) as url:
        heard = [await WebhookPoster().post(f"{url}?a=b", b"{}", {"webhook-id": "msg_1"}) for _ in asked]
    assert [one.asked_seconds for one in heard] == [120.0, 1e9, None, None, None, None, None, None]
    assert heads[0][0] == "post /hook?a=b http/1.1"
    wanted = {"content-type: application/json", "content-length: 2", "webhook-id: msg_1", "connection: close"}
    assert wanted <= set(heads[0])
    assert f"host: {url.split('/')[2]}" in heads[0]


async def test_a_connection_is_closed_after_the_answer_and_when_the_time_is_over() -> None:
    closed, troubles = [], []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: troubles.append(context))

    async def keeps(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        await _until_closed(reader)

    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        await _until_closed(reader)

    async def _until_closed(reader: asyncio.StreamReader) -> None:
        try:
            await reader.read()
        finally:
            closed.append(1)

    for talk in (keeps, hangs):
        async with a_rude_receiver(talk) as url, asyncio.timeout(20):
            await WebhookPoster(total_seconds=0.3).post(url, b"{}", {})
            while not closed:
                await asyncio.sleep(0.01)
            closed.clear()
    assert troubles == [], "it was closed by us, and not because nobody knew of it any more"


async def test_the_loop_is_not_held_up_while_a_receiver_announces_an_answer_without_end() -> None:
    """The receiver is a thread, and time is this thread's on the processor: neither it nor others' load counts."""
    stop, slowest, flood = threading.Event(), 0.0, b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000

    def serve(listening: socket.socket) -> None:
        while not stop.is_set():
            with suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(0.5)
                    connection.recv(65536)
                    while not stop.is_set():
                        connection.sendall(flood)

    async def beats() -> None:
        nonlocal slowest
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.001)
            slowest = max(slowest, time.thread_time() - began)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.5)
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        beating = asyncio.create_task(beats())
        began = time.thread_time()
        try:
            for _ in range(5):
                posted = await WebhookPoster().post(f"http://127.0.0.1:{listening.getsockname()[1]}/", b"{}", {})
                assert posted.end is PostEnd.SILENT
        finally:
            beating.cancel()
            stop.set()
            thread.join()
    print(f"{slowest:.3f} s at a time, {time.thread_time() - began:.3f} s in all")
    assert slowest < 0.15
    assert time.thread_time() - began < 1.0


async def test_a_hundred_receivers_that_hang_take_no_place_from_one_that_answers() -> None:
    async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_all(reader)
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    poster = WebhookPoster(total_seconds=30.0)
    async with a_rude_receiver(hangs) as dead, a_rude_receiver(answers) as well, asyncio.TaskGroup() as group:
        hanging = [group.create_task(poster.post(dead, b"{}", {})) for _ in range(100)]
        await asyncio.sleep(0.3)
        posted = await group.create_task(poster.post(well, b"{}", {}))
        assert not any(one.done() for one in hanging)
        assert posted.status == 204
        for one in hanging:
            one.cancel()


async def test_a_redirect_is_not_followed_and_nothing_is_learnt_of_the_other_place(tmp_path: Path) -> None:
    async with (
        a_receiver() as other,
        a_receiver(307, headers={"location": other.url}) as receiver,
        an_elsewhere_world(tmp_path, receiver.url) as world,
    ):
        turn_id = await world.say()
        await hurry(world, lambda turn: turn.state is S.WORKING, turn_id)
        assert len(receiver.got) == 2
        assert other.got == []


async def test_what_can_not_be_reached_says_why_without_the_address(tmp_path: Path) -> None:
    poster = WebhookPoster(total_seconds=2.0)
    refused = await poster.post("http://127.0.0.1:1/secret-path", b"{}", {})
    unknown = await poster.post("http://no-such-host.invalid/secret-path", b"{}", {})
    async with a_receiver() as plain:
        no_tls = await poster.post(plain.url.replace("http:", "https:"), b"{}", {})
    assert (refused.end, refused.why) == (PostEnd.UNREACHED, "can't be reached: connection refused")
    assert (unknown.end, unknown.why) == (PostEnd.UNREACHED, "can't be reached: its name is not found")
    assert no_tls.end is PostEnd.UNREACHED
    assert no_tls.why.startswith("can't be trusted: ")


async def test_a_connection_that_is_not_taken_in_time_is_given_up_as_not_sent() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        held = [socket.socket() for _ in range(3)]
        for one in held:  # Linux drops who comes when the queue is full
            one.setblocking(False)
            one.connect_ex(address)
        async with asyncio.timeout(20):
            posted = await WebhookPoster(total_seconds=0.3).post(f"http://127.0.0.1:{address[1]}/", b"{}", {})
        for one in held:
            one.close()
    assert (posted.end, posted.why) == (PostEnd.UNREACHED, "can't be reached: no connection in time")
