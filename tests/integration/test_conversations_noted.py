"""What a merge request shows of a conversation with an agent, through the stand-in: each reply once, and the emoji."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from ravebot.agents.model import AgentDoor, ApprovalState, Conversation, ProcessId, Turn, TurnState
from ravebot.agents.progress import TurnProgress
from ravebot.agents.telling import ConversationTelling
from ravebot.notify.gitlab import GitLabSender
from ravebot.sandboxes.model import Actor, MergeRequestRef
from ravebot.store import approvals, conversations, outbox
from ravebot.store.targets import GITLAB, NoteLane
from tests.integration.test_intake_gitlab import Desk, desk
from tests.support.gitlab import MergeRequest, Note

pytestmark = pytest.mark.integration
__all__ = ["desk"]  # the fixture, from where it is made


class Killed(BaseException):
    """Ends a step as a kill would."""


@dataclass
class Thread:
    """A discussion with an agent, and what is delivered to it."""

    desk: Desk
    mr: MergeRequest
    note: Note
    conversation: Conversation
    turn: Turn
    sender: GitLabSender

    @property
    def telling(self) -> ConversationTelling:
        return ConversationTelling(self.desk.world.config)

    @property
    def progress(self) -> TurnProgress:
        return TurnProgress(self.telling)

    async def do(self, step: Callable[[Any], Any]) -> Any:
        return await self.desk.world.write(step)

    async def deliver(self, *, kill: int = 0) -> int:
        """Send what is due in the conversation's lanes; killed before the result of the n-th row is noted."""
        count = 0
        while lanes := await self.lanes():
            count += 1
            await self.send_next(lanes[0], kill=count == kill)
        return count

    async def lanes(self) -> list[str]:
        """Those of conversations that are due."""
        due = await self.desk.world.read(lambda tx: outbox.due_lanes(tx, GITLAB))
        return [lane for lane in due if NoteLane.read(lane).conversation is not None]

    async def send_next(self, lane: str, *, kill: bool) -> None:
        world = self.desk.world
        message = await world.read(lambda tx: outbox.head(tx, GITLAB, lane))
        assert message

        def begin(tx: Any) -> Any:
            outbox.attempt(tx, message.id)
            return self.sender.look(tx, message)

        sent = await self.sender.send(message, await world.write(begin))
        if kill:
            raise Killed

        def end(tx: Any) -> None:
            outbox.delivered(tx, message.id, sent.result)
            if sent.keep:
                sent.keep(tx)

        await world.write(end)

    async def happens(self, step: int) -> None:
        """One step of a turn's life."""
        turn = self.turn
        match step:
            case 0:
                await self.do(lambda tx: self.progress.asks(tx, turn.id, "run it", "{}"))
            case 1:
                await self.do(lambda tx: self.progress.goes_on(tx, turn.id))
            case 2:
                await self.do(lambda tx: self.progress.ended(tx, turn.id, TurnState.FAILED, "it broke"))
            case _:
                await self.do(lambda tx: self.telling.remark(tx, self.conversation, "So it is."))

    def replies(self) -> list[str]:
        """Our notes in the discussion, without the marker."""
        notes = self.mr.discussion(self.note.discussion_id)
        return [note.body.partition("\n")[2] for note in notes if note.author is self.desk.bot]

    async def receipt(self) -> str:
        """What the table says that the comment shows."""
        return (await self.desk.world.read(lambda tx: conversations.shown(tx, self.turn.id))).receipt

    def emoji(self) -> list[str]:
        return self.desk.server.emoji(self.note)


@pytest.fixture
async def thread(desk: Desk) -> Thread:
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    return await asked(desk, mr)


async def asked(desk: Desk, mr: MergeRequest) -> Thread:
    """Alice says something to the agent in a comment, and the agent has it."""
    note = desk.server.comment(mr, desk.alice, "/agent coder please look")
    assert note
    ref = MergeRequestRef(mr.project.id, mr.iid)

    def take(tx: Any) -> tuple[Conversation, Turn]:
        place = f"{ref.project_id}!{ref.iid}"
        found = conversations.begin(tx, "coder", AgentDoor.GITLAB, place, note.discussion_id, own_thread=True, mr=ref)
        actor = Actor("gitlab", "alice")
        said = conversations.add_message(tx, found.id, str(note.id), actor, actor, "please look", 0)
        assert said
        return found, conversations.add_turn(tx, said, TurnState.QUEUED)

    conversation, turn = await desk.world.write(take)
    sender = GitLabSender(desk.world.database, desk.world.views, desk.gitlab)
    thread = Thread(desk, mr, note, conversation, turn, sender)
    await thread.do(lambda tx: thread.progress.given(tx, turn.id, ProcessId(1), timedelta(minutes=30)))
    await thread.do(lambda tx: thread.progress.delivered(tx, turn.id))
    return thread


async def test_an_answer_is_one_reply_at_the_end_and_the_emoji_say_how_far_it_is(thread: Thread) -> None:
    turn, desk = thread.turn, thread.desk
    await thread.do(lambda tx: thread.progress.words(tx, turn.id, "one "))
    await thread.deliver()
    assert (thread.replies(), thread.emoji()) == ([], [])
    desk.world.pass_by(seconds=3)
    await thread.deliver()
    assert (thread.replies(), thread.emoji()) == ([], ["eyes"])
    question = await thread.do(lambda tx: thread.progress.asks(tx, turn.id, "run it", '{"command": "make"}'))
    await thread.deliver()
    assert thread.emoji() == ["pause_button"]
    [shown] = thread.replies()
    assert "❓ **coder** asks: run it" in shown
    assert f"comment `/agent approve {question.id}`" in shown
    await thread.do(lambda tx: approvals.decide(tx, question, ApprovalState.GRANTED, Actor("gitlab", "alice")))
    await thread.do(lambda tx: thread.telling.question(tx, question))
    await thread.do(lambda tx: thread.progress.goes_on(tx, turn.id))
    await thread.do(lambda tx: thread.progress.words(tx, turn.id, "two"))
    await thread.do(lambda tx: thread.progress.ended(tx, turn.id, TurnState.DONE))
    await thread.do(lambda tx: thread.telling.remark(tx, thread.conversation, "That was all."))
    await thread.deliver()
    assert thread.emoji() == ["white_check_mark"]
    question_note, answer, remark = thread.replies()
    assert "➡️ **Approved by alice" in question_note
    assert answer == "**coder**, in this merge request's sandbox:\n\none two\n"
    assert remark == "That was all.\n"
    assert desk.server.quick_actions == []


async def test_an_emoji_that_is_not_true_any_more_is_never_given(thread: Thread) -> None:
    turn, world = thread.turn, thread.desk.world
    await thread.do(lambda tx: thread.progress.words(tx, turn.id, "one"))
    world.pass_by(seconds=3)  # 👀 is due, and GitLab was away until the end
    await thread.do(lambda tx: thread.progress.ended(tx, turn.id, TurnState.DONE))
    await thread.deliver()
    sql = "SELECT result FROM outbox WHERE kind = 'receipt' ORDER BY id"
    results = [row["result"] for row in await world.read(lambda tx: tx.all(sql))]
    assert [result == "awarded" for result in results] == [False, True], results
    assert thread.emoji() == ["white_check_mark"]


async def test_kills_before_any_result_is_noted_leave_each_reply_once_and_the_emoji_of_the_table(desk: Desk) -> None:
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    killed = 0
    for number in range(1, 20):
        thread = await asked(desk, mr)
        step, done, ended = 0, 0, False
        while step < 4:
            await thread.happens(step)
            step += 1
            desk.world.pass_by(seconds=3)
            try:
                done += await thread.deliver(kill=0 if ended else max(0, number - done))
            except Killed:
                ended = True
                if step < 4:
                    await thread.happens(step)
                    step += 1
                desk.world.pass_by(minutes=5)
        desk.world.pass_by(minutes=5)
        await thread.deliver()
        told = "\n".join(thread.replies())
        assert [told.count(text) for text in ("❓", "It broke", "So it is")] == [1, 1, 1], number
        assert len(thread.replies()) == 3
        assert (await thread.receipt(), thread.emoji()) == ("trouble", ["warning"])
        killed += ended
        if not ended:
            break
    assert killed >= 6


async def test_a_comment_that_its_author_deleted_gets_no_emoji_and_holds_nothing_up(thread: Thread) -> None:
    thread.desk.server.delete_note(thread.mr, thread.note)
    await thread.do(lambda tx: thread.progress.ended(tx, thread.turn.id, TurnState.DONE))
    await thread.deliver()
    waiting = await thread.desk.world.read(lambda tx: outbox.waiting(tx, GITLAB))
    assert [row for row in waiting if "conversation" in row.lane.text] == []
