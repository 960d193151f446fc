"""Discussions and emoji through our client, at the stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from ravebot.clock import SystemClock
from ravebot.errors import Forbidden, NotFound, Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.discussions import Discussions
from ravebot.gitlab.transport import Unanswered
from ravebot.sandboxes.model import MergeRequestRef
from tests.support.gitlab import DEVELOPER, GitLabServer, MergeRequest, Note, User

pytestmark = pytest.mark.integration
MARK = "<!-- ravebot abc 7!1 answer-1 -->"


@dataclass
class Talk:
    """A merge request with one comment by alice, and the bot's client."""

    server: GitLabServer
    gitlab: GitLab
    mr: MergeRequest
    ref: MergeRequestRef
    alice: User
    bot: User
    note: Note

    @property
    def api(self) -> Discussions:
        return self.gitlab.discussions

    def comment(self, user: User, body: str, reply_to: Note | None = None) -> Note:
        note = self.server.comment(self.mr, user, body, reply_to=reply_to)
        assert note
        return note


@pytest.fixture
async def talk() -> AsyncIterator[Talk]:
    async with GitLabServer() as server:
        alice, bot = server.add_user("alice"), server.add_user("ravebot", bot=True)
        project = server.add_project("group/app", public=True)
        server.set_role(project, bot, DEVELOPER)
        mr = server.open_merge_request(project, alice)
        note = server.comment(mr, alice, "/agent coder hello")
        assert note
        gitlab = GitLab(server.url, server.token_for(bot), SystemClock(), 2)
        try:
            yield Talk(server, gitlab, mr, MergeRequestRef(project.id, mr.iid), alice, bot, note)
        finally:
            server.restore()
            await gitlab.close()


async def test_a_reply_is_in_the_same_thread_and_is_found_again(talk: Talk) -> None:
    thread = talk.note.discussion_id
    assert await talk.api.find_reply(talk.ref, thread, talk.bot.id, MARK) is None
    reply = await talk.api.reply(talk.ref, thread, f"{MARK}\nhello")
    assert [note.id for note in talk.mr.discussion(thread)] == [talk.note.id, reply]
    assert await talk.api.find_reply(talk.ref, thread, talk.bot.id, MARK) == reply
    assert await talk.api.find_reply(talk.ref, thread, talk.alice.id, MARK) is None
    assert await talk.api.find_reply(talk.ref, thread, talk.bot.id, MARK.replace("1 -", "2 -")) is None


async def test_a_reply_is_found_behind_hundreds_of_others(talk: Talk) -> None:
    for number in range(450):
        talk.comment(talk.alice, f"chatter {number}", talk.note)
    reply = await talk.api.reply(talk.ref, talk.note.discussion_id, MARK)
    assert await talk.api.find_reply(talk.ref, talk.note.discussion_id, talk.bot.id, MARK) == reply


async def test_somebody_elses_words_are_not_taken_for_our_reply(talk: Talk) -> None:
    talk.comment(talk.alice, f"{MARK}\nmine", talk.note)
    assert await talk.api.find_reply(talk.ref, talk.note.discussion_id, talk.bot.id, MARK) is None


async def test_a_comments_discussion_is_found_on_any_page(talk: Talk) -> None:
    notes = [talk.comment(talk.alice, f"comment {number}") for number in range(45)]
    late = talk.comment(talk.alice, "late", notes[30])
    assert await talk.api.of_note(talk.ref, late.id) == notes[30].discussion_id
    assert await talk.api.of_note(talk.ref, notes[44].id) == notes[44].discussion_id
    with pytest.raises(NotFound):
        await talk.api.of_note(talk.ref, 1)


async def test_a_deleted_discussion_takes_no_reply(talk: Talk) -> None:
    talk.server.delete_note(talk.mr, talk.note)
    with pytest.raises(NotFound):
        await talk.api.reply(talk.ref, talk.note.discussion_id, "hello")
    with pytest.raises(NotFound):
        await talk.api.find_reply(talk.ref, talk.note.discussion_id, talk.bot.id, MARK)


@pytest.mark.parametrize("identity", ["", "..", "a/b", "a" * 65, "é", "../../../../users"])
async def test_what_is_no_discussions_id_never_becomes_an_address(talk: Talk, identity: str) -> None:
    before = len(talk.server.requests)
    with pytest.raises(NotFound):
        await talk.api.reply(talk.ref, identity, "hello")
    assert len(talk.server.requests) == before


async def test_a_reply_whose_answer_was_lost_is_known_to_be_maybe_there(talk: Talk) -> None:
    talk.server.hang_up(1, method="POST", path="discussions", after=True)
    with pytest.raises(Unanswered):
        await talk.api.reply(talk.ref, talk.note.discussion_id, MARK)
    assert await talk.api.find_reply(talk.ref, talk.note.discussion_id, talk.bot.id, MARK) is not None


@pytest.mark.parametrize(("status", "error"), [(403, Forbidden), (500, Unavailable), (429, Unavailable)])
async def test_a_refused_reply_says_so(talk: Talk, status: int, error: type[Exception]) -> None:
    talk.server.fail(status, 1, path="discussions")
    with pytest.raises(error):
        await talk.api.reply(talk.ref, talk.note.discussion_id, "hello")


async def test_an_emoji_is_given_once_and_taken_back(talk: Talk) -> None:
    given = await talk.api.award(talk.ref, talk.note.id, "eyes")
    assert await talk.api.award(talk.ref, talk.note.id, "eyes") == given
    [award] = talk.note.awards
    assert (award.id, award.user, award.name) == (given, talk.bot, "eyes")
    await talk.api.remove_award(talk.ref, talk.note.id, given)
    await talk.api.remove_award(talk.ref, talk.note.id, given)
    assert talk.server.emoji(talk.note) == []
    talk.server.delete_note(talk.mr, talk.note)
    with pytest.raises(NotFound):
        await talk.api.award(talk.ref, talk.note.id, "eyes")


async def test_bots_are_told_from_people(talk: Talk) -> None:
    assert not await talk.gitlab.is_bot(talk.alice.id)
    assert await talk.gitlab.is_bot(talk.bot.id)
    assert await talk.gitlab.is_bot(999_999), "whoever is gone can't be asked anything"
