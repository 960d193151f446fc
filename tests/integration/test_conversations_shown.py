"""What a room shows of conversations with agents, through a real Synapse: answers that grow, receipts, questions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from ravebot.agents.model import AgentDoor, ApprovalState, Conversation, ProcessId, Turn, TurnState
from ravebot.agents.progress import TurnProgress
from ravebot.agents.telling import MOST_EDITS, ConversationTelling
from ravebot.errors import Forbidden, Unavailable
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.rooms import RoomDirectory
from ravebot.notify.delivery import Sent
from ravebot.notify.matrix import MatrixSender
from ravebot.sandboxes.model import Actor
from ravebot.store import approvals, conversations, outbox
from ravebot.store.targets import MATRIX
from tests.support.records import World, a_merge_request, a_world
from tests.support.synapse import MatrixUser, Synapse
from tests.support.synapse.user import Message, timeline

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

ALIAS = "#dev:localhost"


class Killed(BaseException):
    """Ends a send as a kill would: nothing that comes after it happens."""


class FragileClient:
    """Passes everything on to the real client, and is killed before or after the n-th request that changes a room."""

    def __init__(self, client: MatrixClient) -> None:
        self.client = client
        self.before = self.after = 0
        self.requests = 0
        self.takes_files = True

    async def _do(self, call: Any) -> str:
        self.requests += 1
        if self.requests == self.before:
            call.close()
            raise Killed
        answer = str(await call)
        if self.requests == self.after:
            raise Killed
        return answer

    async def send(
        self, room_id: str, content: Mapping[str, object], txn_id: str, event_type: str = "m.room.message"
    ) -> str:
        return await self._do(self.client.send(room_id, content, txn_id, event_type))

    async def redact(self, room_id: str, event_id: str, txn_id: str) -> str:
        return await self._do(self.client.redact(room_id, event_id, txn_id))

    async def upload(self, data: bytes, name: str, kind: str) -> str:
        if not self.takes_files:
            raise Forbidden("Matrix refused: 403 M_FORBIDDEN uploads are off")
        return await self._do(self.client.upload(data, name, kind))

    async def display_name(self, user_id: str) -> str:
        return await self.client.display_name(user_id)


@dataclass
class Talk:
    """A sender, and what agents do."""

    world: World
    client: FragileClient
    rooms: RoomDirectory
    sender: MatrixSender
    room: str
    alice: MatrixUser

    @property
    def telling(self) -> ConversationTelling:
        return ConversationTelling(self.world.config)

    @property
    def progress(self) -> TurnProgress:
        return TurnProgress(self.telling)

    async def asked(self, room: str = "", *, thread: str = "") -> tuple[Conversation, Turn]:
        """Alice says something to the agent, in the room or that one."""
        room = room or self.room
        mr = a_merge_request()
        event = await self.alice.send(room, "@coder please look")

        def take(tx: Any) -> tuple[Conversation, Turn]:
            found = conversations.begin(
                tx, "coder", AgentDoor.MATRIX, room, thread or event, own_thread=True, mr=mr.ref
            )
            actor = Actor("matrix", self.alice.user_id)
            said = conversations.add_message(tx, found.id, event, actor, actor, "please look", 0)
            assert said
            return found, conversations.add_turn(tx, said, TurnState.QUEUED)

        conversation, turn = await self.world.write(take)
        await self.world.write(lambda tx: self.progress.given(tx, turn.id, ProcessId(1), timedelta(minutes=30)))
        await self.world.write(lambda tx: self.progress.delivered(tx, turn.id))
        return conversation, turn

    async def says(self, turn: Turn, text: str) -> None:
        await self.world.write(lambda tx: self.progress.words(tx, turn.id, text))

    async def does(self, turn: Turn, status: str) -> None:
        await self.world.write(lambda tx: self.progress.status(tx, turn.id, status))

    async def ends(self, turn: Turn, state: TurnState = TurnState.DONE, why: str = "") -> None:
        await self.world.write(lambda tx: self.progress.ended(tx, turn.id, state, why))

    async def deliver(self) -> int:
        """Send all that is due, as the delivery does; returns how many rows that were."""
        count = 0
        while True:
            lanes = await self.world.read(lambda tx: outbox.due_lanes(tx, MATRIX))
            if not lanes:
                return count
            await self.send_next(lanes[0])
            count += 1

    async def send_next(self, lane: str) -> str:
        return await self.record(*await self.send(lane))

    async def send(self, lane: str) -> tuple[outbox.Message, Sent]:
        """Send the head of a lane; that it was sent is not recorded yet."""
        message = await self.world.read(lambda tx: outbox.head(tx, MATRIX, lane))
        assert message

        def begin(tx: Any) -> Any:
            outbox.attempt(tx, message.id)
            return self.sender.look(tx, message)

        return message, await self.sender.send(message, await self.world.write(begin))

    async def record(self, message: outbox.Message, sent: Sent) -> str:
        def end(tx: Any) -> None:
            outbox.delivered(tx, message.id, sent.result)
            if sent.keep:
                sent.keep(tx)

        await self.world.write(end)
        return sent.result

    async def later(self, seconds: float = 6) -> None:
        self.world.pass_by(seconds=seconds)
        await self.deliver()

    async def thread(self, conversation: Conversation) -> list[Message]:
        """Our messages in its thread, with their last edit."""
        messages = timeline(await self.alice.events(conversation.place))
        return [one for one in messages if one.thread_root == conversation.thread]

    async def receipts(self, room: str, event_id: str) -> list[str]:
        """The reactions of ours that the room shows on a message."""
        return [
            event["content"]["m.relates_to"]["key"]
            for event in await self.alice.events(room)
            if event["type"] == "m.reaction"
            and event["content"].get("m.relates_to", {}).get("event_id") == event_id
            and "redacted_because" not in event.get("unsigned", {})
        ]

    async def shown(self, turn: Turn) -> tuple[str, str]:
        shown = await self.world.read(lambda tx: conversations.shown(tx, turn.id))
        return shown.answer_event, shown.receipt

    async def message(self, turn: Turn) -> str:
        return (await self.world.read(lambda tx: conversations.message(tx, turn.message_id))).key


@pytest_asyncio.fixture(loop_scope="module")
async def talk(synapse: Synapse, account: MatrixUser, alice: MatrixUser, tmp_path: Path) -> AsyncIterator[Talk]:
    settings = {
        "homeserver": synapse.url,
        "user_id": account.user_id,
        "users": {alice.user_id: "alice"},
        "rooms": [{"room": ALIAS, "projects": ["group/app"]}],
    }
    room = await alice.create_room("dev", public=True)
    async with a_world(tmp_path, matrix=settings) as world:
        client = MatrixClient(world.config.matrix, account.password, tmp_path)
        await client.open()
        rooms = RoomDirectory(client, world.config.matrix.rooms, world.clock)
        await rooms.ensure(ALIAS)
        await world.write(lambda tx: outbox.set_room(tx, ALIAS, room))
        await world.told(a_merge_request())
        await world.empty_outbox()
        fragile = FragileClient(client)
        sender = MatrixSender(world.config.matrix, world.database, world.views, fragile, rooms)
        yield Talk(world, fragile, rooms, sender, room, alice)
        await client.close()
    await alice.call("DELETE", "directory", "room", ALIAS)


async def test_an_answer_is_one_message_that_grows_and_ends_with_all_that_was_said(talk: Talk) -> None:
    conversation, turn = await talk.asked()
    await talk.does(turn, "reading src/app.py")
    await talk.deliver()
    (status,) = await talk.thread(conversation)
    assert (status.kind, status.mentions) == ("m.notice", {})
    assert "reading src/app[.]py" in status.body
    await talk.says(turn, "I **see**")
    await talk.deliver()
    assert (await talk.thread(conversation))[0].edits == 0  # not within the first second
    await talk.says(turn, " it")
    await talk.later(1)
    await talk.says(turn, " now.")
    await talk.ends(turn)
    await talk.deliver()
    (answer,) = await talk.thread(conversation)
    assert answer.event_id == status.event_id
    assert (answer.kind, answer.edits, answer.mentions) == ("m.text", 2, {})
    assert answer.body == "coder in !1: I **see** it now."
    assert answer.html == "<strong data-mx-profile-fallback>coder in !1: </strong>I <strong>see</strong> it now."
    profile = {"id": "ravebot.agent.coder in !1", "displayname": "coder in !1", "has_fallback": True}
    assert answer.content["com.beeper.per_message_profile"] == profile


async def test_edits_but_the_last_are_notices_of_which_no_client_tells(talk: Talk) -> None:
    _, turn = await talk.asked()
    for text in ("one", " two", " three"):
        await talk.says(turn, text)
        await talk.later(1)
    await talk.says(turn, " four")
    await talk.ends(turn)
    await talk.deliver()
    edits = [event["content"] for event in await talk.alice.events(talk.room) if "m.new_content" in event["content"]]
    assert [edit["msgtype"] for edit in edits] == ["m.notice", "m.notice", "m.text"]
    assert {edit["m.new_content"]["msgtype"] for edit in edits} == {"m.text"}


async def test_an_answer_of_many_words_is_edited_ever_more_seldom_and_at_most_so_often(talk: Talk) -> None:
    conversation, turn = await talk.asked()
    for number in range(120):
        await talk.says(turn, f"{number} ")
        await talk.later(1)
        if number == 40:  # five a second apart, five every two, five every three, then every five seconds
            (answer,) = await talk.thread(conversation)
            assert 14 <= answer.edits <= 19
    (answer,) = await talk.thread(conversation)
    assert answer.edits == MOST_EDITS
    assert "the rest is shown at its end" in answer.body
    await talk.ends(turn)
    await talk.deliver()
    (answer,) = await talk.thread(conversation)
    assert answer.edits == MOST_EDITS + 1
    assert answer.body.endswith(" 118 119")


async def test_the_receipt_on_the_message_follows_the_turn(talk: Talk) -> None:
    conversation, turn = await talk.asked()
    message = await talk.message(turn)
    await talk.deliver()
    assert await talk.receipts(talk.room, message) == []
    await talk.later(2)
    assert await talk.receipts(talk.room, message) == ["👀"]
    approval = await talk.world.write(lambda tx: talk.progress.asks(tx, turn.id, "run it", '{"command": "make"}'))
    assert approval
    await talk.deliver()
    assert await talk.receipts(talk.room, message) == ["⏸️"]
    await talk.world.write(lambda tx: talk.progress.goes_on(tx, turn.id))
    await talk.deliver()
    assert await talk.receipts(talk.room, message) == ["👀"]
    await talk.ends(turn, TurnState.FAILED, "its program ended")
    await talk.deliver()
    assert await talk.receipts(talk.room, message) == ["⚠️"]
    assert "⚠️ Its program ended" in (await talk.thread(conversation))[0].body


@pytest.mark.parametrize("recorded_last", ["receipt", "answer"])
async def test_an_answer_and_a_receipt_that_are_sent_at_once_do_not_forget_each_other(
    talk: Talk, recorded_last: str
) -> None:
    conversation, turn = await talk.asked()
    message = await talk.message(turn)
    await talk.later(2)
    assert await talk.receipts(talk.room, message) == ["👀"]
    await talk.says(turn, "I see")
    await talk.world.write(lambda tx: talk.progress.asks(tx, turn.id, "run it", '{"command": "make"}'))
    lanes = await talk.world.read(lambda tx: outbox.due_lanes(tx, MATRIX))
    answer, receipt = sorted(lanes, key=len)
    sent = [await talk.send(receipt), await talk.send(answer)]
    for one in sent if recorded_last == "answer" else reversed(sent):
        await talk.record(*one)
    await talk.world.write(lambda tx: talk.progress.goes_on(tx, turn.id))
    await talk.says(turn, " it.")
    await talk.ends(turn)
    await talk.later()
    assert await talk.receipts(talk.room, message) == ["✅"]
    answers = [one.body for one in await talk.thread(conversation) if "I see" in one.body]
    assert answers == ["coder in !1: I see it."]


async def test_a_quick_turn_gets_no_eyes(talk: Talk) -> None:
    _, turn = await talk.asked()
    await talk.says(turn, "yes")
    await talk.deliver()
    await talk.ends(turn)
    await talk.later()
    events = await talk.alice.events(talk.room)
    message = await talk.message(turn)
    reactions = [event for event in events if event["content"].get("m.relates_to", {}).get("event_id") == message]
    assert [event["content"]["m.relates_to"].get("key") for event in reactions if event["type"] == "m.reaction"] == [
        "✅"
    ]


async def test_a_message_that_is_sent_again_has_the_receipt_of_its_last_turn(talk: Talk) -> None:
    conversation, turn = await talk.asked()
    await talk.ends(turn, TurnState.UNCERTAIN)
    await talk.deliver()
    said = await talk.world.read(lambda tx: conversations.message(tx, turn.message_id))
    again = await talk.world.write(lambda tx: conversations.add_turn(tx, said, TurnState.QUEUED))
    await talk.world.write(lambda tx: talk.progress.delivered(tx, again.id))
    await talk.later()
    assert await talk.receipts(talk.room, said.key) == ["👀"]
    await talk.ends(again, TurnState.FAILED, "again")
    await talk.deliver()
    assert await talk.receipts(talk.room, said.key) == ["⚠️"]
    assert len(await talk.thread(conversation)) == 2


async def test_a_message_that_its_author_removed_gets_no_receipt_and_holds_nothing_up(talk: Talk) -> None:
    _, turn = await talk.asked()
    await talk.alice.redact(talk.room, await talk.message(turn))
    await talk.says(turn, "too late")
    await talk.ends(turn)
    await talk.deliver()
    assert await talk.world.read(lambda tx: outbox.backlog(tx, MATRIX)) == (0, None)
    assert [message.body for message in timeline(await talk.alice.events(talk.room))][-1].endswith("too late")


async def test_a_conversation_in_a_direct_chat_is_answered_there(talk: Talk) -> None:
    direct = await talk.alice.direct_chat(talk.client.client.user_id)
    await talk.client.client.join(direct)
    conversation, turn = await talk.asked(direct)
    await talk.says(turn, "here")
    await talk.ends(turn)
    await talk.deliver()
    assert [message.body for message in await talk.thread(conversation)] == ["coder in group/app!1: here"]
    assert await talk.receipts(direct, await talk.message(turn)) == ["✅"]


async def test_an_answer_in_a_thread_that_the_server_does_not_know_is_given_beside_it_and_once(talk: Talk) -> None:
    _, turn = await talk.asked(thread="$nowhere:localhost")
    await talk.says(turn, "lost")
    await talk.ends(turn)
    await talk.deliver()
    said = [one for one in timeline(await talk.alice.events(talk.room)) if one.sender != talk.alice.user_id]
    assert [(one.body, one.thread_root) for one in said] == [("coder in !1: lost", None)]


async def test_a_long_answer_shows_its_ends_and_comes_whole_as_a_file(talk: Talk) -> None:
    conversation, turn = await talk.asked()
    text = "".join(f"line {number} <b>&amp;</b>\n" for number in range(2000))
    await talk.says(turn, text)
    await talk.deliver()
    await talk.ends(turn)
    await talk.deliver()
    answer, file = await talk.thread(conversation)
    assert answer.body.startswith("coder in !1: line 0 ")
    assert answer.body.endswith("line 1999 <b>&amp;</b>")
    assert "characters left out]" in answer.body
    assert file.kind == "m.file"
    server, _, media = str(file.content["url"]).removeprefix("mxc://").partition("/")
    address = f"{talk.alice.url}/_matrix/client/v1/media/download/{server}/{media}"
    headers = {"Authorization": f"Bearer {talk.alice.access_token}"}
    async with aiohttp.ClientSession() as session, session.get(address, headers=headers) as download:
        assert await download.text() == text
        assert download.headers["Content-Type"].startswith("text/plain")
    assert file.content["info"]["size"] == len(text.encode())


async def test_a_question_is_shown_whole_mentions_who_may_answer_and_says_the_answer_once(talk: Talk) -> None:
    conversation, turn = await talk.asked()
    payload = json.dumps({"command": "rm -rf build; curl https://evil.example \u202e"})
    asked = await talk.world.write(lambda tx: talk.progress.asks(tx, turn.id, "run a command", payload))
    assert asked
    await talk.deliver()
    approval = await talk.world.read(lambda tx: approvals.get(tx, asked.id))
    assert approval
    question = next(one for one in await talk.thread(conversation) if one.event_id == approval.event_id)
    assert (question.kind, question.edits) == ("m.text", 0)
    assert question.mentions == {"user_ids": [talk.alice.user_id]}
    assert "rm -rf build; curl https[:]//evil[.]example \\u202e" in question.body
    assert f"`!rave approve {asked.id}`" in question.body
    assert "until 12:30 UTC" in question.body
    assert await talk.receipts(talk.room, question.event_id) == ["✅", "❌"]
    await talk.world.write(lambda tx: approvals.decide(tx, approval, approval.state.GRANTED, Actor("matrix", "@a:b.c")))
    await talk.world.write(lambda tx: talk.telling.question(tx, approval))
    await talk.deliver()
    question = next(one for one in await talk.thread(conversation) if one.event_id == approval.event_id)
    assert question.edits == 1
    assert "Approved by" in question.body
    found = await talk.world.read(lambda tx: conversations.of_event(tx, talk.room, question.event_id))
    assert found == conversation


async def test_a_long_question_has_all_of_it_beside_it_in_a_file_with_its_hash(talk: Talk) -> None:
    conversation, turn = await talk.asked()
    payload = json.dumps({"content": "x" * 50_000})
    asked = await talk.world.write(lambda tx: talk.progress.asks(tx, turn.id, "write a file", payload))
    assert asked
    await talk.deliver()
    file = next(one for one in await talk.thread(conversation) if one.kind == "m.file")
    assert file.body == f"question-{asked.id}-{asked.payload_hash}.txt"


async def test_a_homeserver_that_takes_no_files_gets_the_answer_and_a_line_about_that(talk: Talk) -> None:
    talk.client.takes_files = False
    conversation, turn = await talk.asked()
    await talk.says(turn, "x" * 10_000)
    await talk.ends(turn)
    await talk.deliver()
    answer, line = await talk.thread(conversation)
    assert "characters left out]" in answer.body
    assert line.body.startswith("The homeserver did not take the file")


async def test_a_room_that_allows_no_reactions_gets_the_answers_all_the_same(talk: Talk) -> None:
    levels = {"events": {"m.reaction": 100}}
    room = str(
        (await talk.alice.call("POST", "createRoom", body={
            "preset": "public_chat", "power_level_content_override": levels,
        }))["room_id"]
    )  # fmt: skip
    await talk.client.client.join(room)
    conversation, turn = await talk.asked(room)
    await talk.says(turn, "yes")
    await talk.ends(turn)
    lanes = await talk.world.read(lambda tx: outbox.due_lanes(tx, MATRIX))
    receipts = next(lane for lane in lanes if lane.endswith("receipts"))
    dropped = await talk.send_next(receipts)
    assert dropped == "dropped: nothing to tell any more"  # the eyes
    with pytest.raises(Unavailable):
        await talk.send_next(receipts)
    assert (await talk.send_next(receipts)).startswith("dropped: Matrix refused: 403")
    await talk.deliver()
    assert [one.body for one in await talk.thread(conversation)] == ["coder in group/app!1: yes"]
    assert await talk.world.read(lambda tx: outbox.backlog(tx, MATRIX)) == (0, None)


async def test_remarks_come_in_the_thread_after_what_was_said_before(talk: Talk) -> None:
    conversation, turn = await talk.asked()
    await talk.says(turn, "one")
    await talk.deliver()
    await talk.says(turn, " two")
    await talk.world.write(lambda tx: talk.telling.remark(tx, conversation, "The sandbox stops soon."))
    await talk.deliver()
    answer, remark = await talk.thread(conversation)
    assert (answer.body, answer.edits) == ("coder in !1: one two", 1)
    assert (remark.body, remark.kind) == ("The sandbox stops soon.", "m.notice")


STORY = 10
"""The requests that change the room in `story`, at least."""
STEPS = 5


async def story(talk: Talk, turn: Turn, step: int) -> None:
    """One step of a turn's life."""
    match step:
        case 0:
            await talk.does(turn, "reading")
        case 1:
            await talk.says(turn, "one ")
        case 2:
            await talk.world.write(lambda tx: talk.progress.asks(tx, turn.id, "run it", '{"command": "make"}'))
        case 3:
            (asked,) = await talk.world.read(lambda tx: approvals.of_turn(tx, turn.id))
            await talk.world.write(
                lambda tx: approvals.decide(tx, asked, ApprovalState.DENIED, Actor("gitlab", "alice"))
            )
            await talk.world.write(lambda tx: talk.telling.question(tx, asked))
            await talk.world.write(lambda tx: talk.progress.goes_on(tx, turn.id))
            await talk.says(turn, "two " + "x" * 10_000)
        case _:
            await talk.ends(turn, TurnState.FAILED, "its program ended")


@pytest.mark.parametrize(("when", "meanwhile", "every"), [("before", STEPS, 4), ("after", 1, 2), ("after", STEPS, 2)])
async def test_kills_at_any_request_leave_one_answer_one_question_and_the_receipt_of_the_table(
    talk: Talk, when: str, meanwhile: int, every: int
) -> None:
    """Before the restart life goes on by so many steps: what is sent then is not what was sent before."""
    killed = 0
    for number in range(1, 40, every):
        room = await talk.alice.create_room(public=True)
        await talk.client.client.join(room)
        conversation, turn = await talk.asked(room)
        client = FragileClient(talk.client.client)
        setattr(client, when, number)
        world = talk.world
        sender = MatrixSender(world.config.matrix, world.database, world.views, client, talk.rooms)
        running, step, ended = replace(talk, sender=sender), 0, False
        while step < STEPS:
            await story(running, turn, step)
            step += 1
            try:
                await running.later(3)
            except Killed:
                ended = True
                for missed in range(step, min(STEPS, step + meanwhile)):
                    await story(running, turn, missed)
                    step = missed + 1
                running.sender = talk.sender
                await running.later(3)
        await running.later(3)
        assert await talk.world.read(lambda tx: outbox.backlog(tx, MATRIX)) == (0, None)
        messages = await talk.thread(conversation)
        answer_event, receipt = await talk.shown(turn)
        questions = [one for one in messages if "❓" in one.body]
        answers = [one for one in messages if one.kind == "m.text" and one not in questions]
        assert [one.event_id for one in answers] == [answer_event], number
        assert "Its program ended" in answers[0].body
        assert all("Denied by alice" in one.body for one in questions)
        assert len(questions) <= 1  # it may have been answered elsewhere, before it could be asked here
        assert len([one for one in messages if one.kind == "m.file"]) == 1
        assert len(messages) == len(questions) + 2
        assert (receipt, await talk.receipts(room, await talk.message(turn))) == ("trouble", ["⚠️"])
        killed += ended
        if not ended:
            break
    assert killed >= STORY // every
