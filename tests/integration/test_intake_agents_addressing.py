"""Whom what people say in rooms reaches, about which merge request, and what others are told."""

from __future__ import annotations

from contextlib import suppress

import pytest

from ravebot.matrix.incoming import IncomingMessage, Removed
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import conversations, merge_requests, outbox, project_files
from ravebot.store.database import Transaction
from ravebot.store.project_files import ProjectFileRow
from tests.integration.test_intake_gitlab import Desk, desk
from tests.support.agent_talk import ALICE, CODER, DEV, EVE, GINA, REVIEWER, Talk, talk
from tests.support.records import ROOM

pytestmark = pytest.mark.integration
__all__ = ["desk", "talk"]  # the fixtures, from where they are made


async def test_a_message_in_the_room_that_names_an_agent_begins_a_conversation_in_a_thread_under_it(talk: Talk) -> None:
    await talk.has_sandbox()
    asked = await talk.say(ALICE, "@coder !1 the login test fails\n\nplease look")
    assert await talk.messages() == [("coder", asked, "the login test fails\n\nplease look")]
    conversation = await talk.conversation("coder", asked)
    assert conversation.own_thread
    assert conversation.mr == MergeRequestRef(talk.desk.project.id, 1)
    assert [content["m.relates_to"]["event_id"] for content in await talk.told()] == [asked]
    assert await talk.last() == (
        "The sandbox of group/app!1 is being started: coder gets the message when it is ready."
    )


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("coder: !1 fix it", "fix it"),
        ("Coder: group/app!1 fix it", "fix it"),
        ("!rave ask coder !1 fix it\nall of it", "fix it\nall of it"),
        ("!rave ASK @coder group/app!1 fix it", "fix it"),
    ],
)
async def test_each_way_to_address_an_agent_reaches_it(talk: Talk, text: str, given: str) -> None:
    await talk.has_sandbox()
    asked = await talk.say(ALICE, text)
    assert await talk.messages() == [("coder", asked, given)]


async def test_the_inbox_takes_what_concerns_us_and_not_more(talk: Talk) -> None:
    await talk.has_sandbox()
    began = await talk.say(ALICE, "@coder !1 fix it")
    before = len(await talk.stored())
    for text in ("hello", "coder, hi", "see !1", "> @coder fix it", "@bob:example.org look"):
        await talk.hear(ALICE, text)
        await talk.hear(ALICE, text, thread="$another")
        await talk.hear(ALICE, text, reply_to="$another")
    assert len(await talk.stored()) == before
    await talk.hear(ALICE, "hello", thread=began)
    assert (await talk.stored())[before:] == [("to agent", f"{DEV} {began}")]


async def test_every_message_in_its_own_thread_and_a_reply_to_its_message_go_on_with_the_conversation(
    talk: Talk,
) -> None:
    await talk.has_sandbox()
    began = await talk.say(ALICE, "@coder !1 fix it")
    conversation = await talk.conversation("coder", began)
    await talk.desk.world.write(lambda tx: conversations.add_event(tx, DEV, "$answer", conversation.id))
    await talk.say(ALICE, "and the tests\n\n  too", thread=began)
    await talk.say(ALICE, "why?", reply_to="$answer")
    await talk.say(ALICE, "> only a quote", thread=began)
    assert [text for _, thread, text in await talk.messages() if thread == began] == [
        "fix it", "and the tests\n\n  too", "why?",
    ]  # fmt: skip


@pytest.mark.parametrize("first", ["@coder !1 one", "!rave ask coder !1 one"])
async def test_what_is_said_in_the_thread_before_its_first_message_is_handled_is_for_the_agent_too(
    talk: Talk, first: str
) -> None:
    await talk.has_sandbox()
    began = await talk.hear(ALICE, first)
    await talk.hear(ALICE, "two", thread=began)
    await talk.work()
    assert await talk.messages() == [("coder", began, "one"), ("coder", began, "two")]


async def test_what_follows_a_refused_message_in_its_thread_is_for_nobody(talk: Talk) -> None:
    await talk.has_sandbox()
    began = await talk.hear(GINA, "@coder !1 one")
    await talk.hear(ALICE, "two", thread=began)
    await talk.work()
    assert await talk.messages() == []
    assert len(await talk.told()) == 1


async def test_in_a_card_s_thread_only_a_named_agent_is_meant_and_it_works_on_that_merge_request(talk: Talk) -> None:
    await talk.has_sandbox("one")
    await talk.has_sandbox("two")
    await talk.has_card(2, "$card")
    await talk.say(ALICE, "what do you think, bob?", thread="$card")
    assert await talk.stored() == []
    await talk.say(ALICE, "@coder fix it", thread="$card")
    await talk.say(ALICE, "thanks, all", thread="$card")
    assert await talk.messages() == [("coder", "$card", "fix it")]
    conversation = await talk.conversation("coder", "$card")
    assert conversation.mr == MergeRequestRef(talk.desk.project.id, 2)
    assert not conversation.own_thread
    await talk.say(ALICE, "!rave ask reviewer look at it", thread="$card")
    assert (await talk.messages())[1:] == [("reviewer", "$card", "look at it")]
    assert {lane for _, lane in await talk.stored()} == {f"{DEV} 2"}


async def test_another_agent_named_in_an_agent_s_own_thread_gets_only_what_names_it(talk: Talk) -> None:
    await talk.has_sandbox()
    began = await talk.say(ALICE, "@coder !1 fix it")
    await talk.say(ALICE, "@reviewer !1 look at it", thread=began)
    await talk.say(ALICE, "go on", thread=began)
    assert [(agent, text) for agent, _, text in await talk.messages()] == [
        ("coder", "fix it"), ("reviewer", "look at it"), ("coder", "go on"),
    ]  # fmt: skip


async def test_in_an_agent_s_own_thread_its_merge_request_is_meant_unless_another_is_named(talk: Talk) -> None:
    await talk.has_sandbox("one")
    await talk.has_sandbox("two")
    began = await talk.say(ALICE, "@coder !1 fix it")
    await talk.say(ALICE, "@reviewer look at it", thread=began)
    conversation = await talk.conversation("reviewer", began)
    assert conversation.mr == MergeRequestRef(talk.desk.project.id, 1)
    await talk.say(ALICE, "!rave diff", thread=began)
    assert await talk.last() == "group/app!1 has no machine to compare: its sandbox must be ready."
    await talk.say(ALICE, "!rave diff 2", thread=began)
    assert await talk.last() == "group/app!2 has no machine to compare: its sandbox must be ready."


async def test_a_thread_among_people_in_which_an_agent_was_named_is_not_its_own(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.say(ALICE, "@coder !1 fix it", thread="$people")
    await talk.say(ALICE, "lunch?", thread="$people")
    assert await talk.messages() == [("coder", "$people", "fix it")]


async def test_without_a_reference_the_only_sandbox_is_meant_and_that_is_said(talk: Talk) -> None:
    await talk.has_sandbox()
    asked = await talk.say(ALICE, "@coder fix it")
    assert await talk.messages() == [("coder", asked, "fix it")]
    assert (await talk.last()).startswith(
        "coder works in group/app!1: no other sandbox that it serves is here.\nThe sandbox of group/app!1"
    )


async def test_without_a_reference_among_several_it_is_asked_which_and_the_answer_in_the_thread_counts(
    talk: Talk,
) -> None:
    for branch in "abcdefg":
        await talk.has_sandbox(branch)
    asked = await talk.say(ALICE, "@coder fix it")
    assert await talk.messages() == []
    assert await talk.last() == (
        "Say which sandbox it is about: @coder group/app!1 fix it. There are"
        " group/app!1, group/app!2, group/app!3, group/app!4, group/app!5 and 2 more."
    ).replace("@coder group/app!1 fix it", "`@coder group/app!1 fix it`")
    assert (await talk.told())[-1]["m.relates_to"]["event_id"] == asked
    await talk.say(ALICE, "@coder !3 fix it", thread=asked)
    await talk.say(ALICE, "soon, please", thread=asked)
    assert [(thread, text) for _, thread, text in await talk.messages()] == [
        (asked, "fix it"), (asked, "soon, please"),
    ]  # fmt: skip


async def test_without_any_sandbox_it_is_asked_which_merge_request(talk: Talk) -> None:
    await talk.say(ALICE, "@coder fix it")
    assert (await talk.last()).startswith("There is no sandbox here that coder serves. Say which merge request")


async def test_a_thread_stays_with_its_merge_request(talk: Talk) -> None:
    await talk.has_sandbox("one")
    await talk.has_sandbox("two")
    began = await talk.say(ALICE, "@coder !1 fix it")
    await talk.say(ALICE, "@coder !2 and this", thread=began)
    assert [text for *_, text in await talk.messages()] == ["fix it"]
    assert await talk.last() == "This thread is about group/app!1. About group/app!2, begin another one."
    await talk.say(ALICE, "@coder !1 and this", thread=began)
    assert [text for *_, text in await talk.messages()] == ["fix it", "and this"]


@pytest.mark.parametrize(
    ("who", "text", "refusal"),
    [
        (GINA, "@coder !1 fix it", "Refused: gina is Guest in group/app. This needs the role Developer or more: ask"),
        (GINA, "@coder fix it", "Refused: gina is Guest in group/app."),
        (GINA, "!rave ask coder !1 fix it", "Refused: gina is Guest in group/app."),
        (GINA, "@coder group/app!999 fix it", "Refused: gina is Guest in group/app."),
        (EVE, "@coder !1 fix it", "Refused: Your Matrix account is not tied to a GitLab user."),
        (EVE, "@coder fix it", "Refused: Your Matrix account is not tied to a GitLab user."),
        (ALICE, "@coder secret/app!1 fix it", "Refused: This room is not mapped to that project."),
        (ALICE, "@coder group/app!999 fix it", "There is no group/app!999, or I may not see it."),
        (ALICE, "@coder", "Write what coder is to do, after its name"),
        (ALICE, "!rave ask fix it", "Say which agent, before the text: coder or reviewer."),
        (ALICE, "!rave ask", "Write what the agent is to do. Type `!rave ask [AGENT] [REF] TEXT`."),
    ],
)
async def test_who_may_not_or_says_it_wrongly_is_answered_aside_and_no_agent_hears_it(
    talk: Talk, who: str, text: str, refusal: str
) -> None:
    await talk.has_sandbox()
    asked = await talk.say(who, text)
    assert (await talk.last()).startswith(refusal)
    assert (await talk.told())[-1]["m.relates_to"] == {
        "rel_type": "m.thread", "event_id": asked, "is_falling_back": False, "m.in_reply_to": {"event_id": asked},
    }  # fmt: skip
    assert await talk.messages() == []
    refused = [event for event in await talk.desk.world.events() if event.kind == "command.refused"]
    assert [event.data["verb"] for event in refused] == (["ask"] if refusal.startswith("Refused") else [])


async def test_a_stranger_in_an_agent_s_thread_is_not_answered_and_not_heard(talk: Talk) -> None:
    await talk.has_sandbox()
    began = await talk.say(ALICE, "@coder !1 fix it")
    told = len(await talk.told())
    await talk.say(EVE, "hello", thread=began)
    assert len(await talk.told()) == told
    await talk.say(GINA, "hello", thread=began)
    assert (await talk.last()).startswith("Refused: gina is Guest")
    assert [text for *_, text in await talk.messages()] == ["fix it"]


async def test_an_agent_may_do_no_more_than_its_owner(talk: Talk) -> None:
    await talk.has_sandbox()
    talk.config = talk.config.model_copy(update={"agents": (CODER.model_copy(update={"owner": "gina"}),)})
    await talk.say(ALICE, "@coder !1 fix it")
    assert (await talk.last()).startswith("Refused: coder may do at most what its owner gina may: gina is Guest")
    assert await talk.messages() == []


async def test_an_agent_is_not_asked_about_a_project_that_it_does_not_serve(talk: Talk) -> None:
    await talk.has_sandbox()
    other = CODER.model_copy(update={"projects": ("group/other",)})
    talk.config = talk.config.model_copy(update={"agents": (other,)})
    await talk.say(ALICE, "@coder !1 fix it")
    assert (await talk.last()).startswith("Refused: coder does not serve group/app.")
    await talk.say(ALICE, "@coder fix it")
    assert (await talk.last()).startswith("There is no sandbox here that coder serves.")


async def test_the_room_s_own_agent_gets_what_is_asked_without_a_name_and_nothing_else(desk: Desk) -> None:
    await desk.world.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
    talk = Talk(desk, CODER, REVIEWER, default="reviewer")
    await talk.has_sandbox()
    await talk.say(ALICE, "fix it")
    asked = await talk.say(ALICE, "!rave ask !1 fix it")
    assert await talk.messages() == [("reviewer", asked, "fix it")]


async def test_in_a_card_s_thread_the_agent_of_the_project_s_file_gets_what_is_asked_without_a_name(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.has_card(1, "$card")
    ref = MergeRequestRef(talk.desk.project.id, 1)
    await talk.say(ALICE, "!rave ask fix it", thread="$card")
    assert await talk.last() == "Say which agent, before the text: coder or reviewer."

    def names_one(tx: Transaction) -> None:
        mr = merge_requests.get(tx, ref)
        assert mr
        project_files.put(tx, ref.project_id, mr.head_sha, ProjectFileRow('{"agent": "reviewer"}'))

    await talk.desk.world.write(names_one)
    await talk.say(ALICE, "!rave ask fix it", thread="$card")
    assert await talk.messages() == [("reviewer", "$card", "fix it")]


async def test_in_a_room_of_no_project_an_agent_s_name_is_somebody_else_s(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.say(ALICE, "@coder !1 fix it", room="!other:example.org")
    assert await talk.stored() == []
    assert await talk.messages() == []


async def test_in_a_direct_chat_an_agent_is_reached_too(talk: Talk) -> None:
    await talk.has_sandbox()
    asked = await talk.say(ALICE, "@coder group/app!1 fix it", room="!direct:x", direct=True)
    assert await talk.messages() == [("coder", asked, "fix it")]
    await talk.say(EVE, "@coder group/app!1 fix it", room="!other:x", direct=True)
    assert (await talk.last()).startswith("Refused: Your Matrix account")


async def test_a_message_of_which_only_the_beginning_was_read_is_asked_for_again(talk: Talk) -> None:
    await talk.has_sandbox()
    message = IncomingMessage("$cut", DEV, ALICE, "@coder !1 fix", None, False, 0, whole=False)
    await talk.journal.save((message,), "s1")
    await talk.work()
    assert (await talk.last()).startswith("Only the beginning of that message reached me")
    assert await talk.messages() == []


async def test_a_message_that_is_too_long_is_refused(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.say(ALICE, f"@coder !1 {'x' * 16_001}")
    assert (await talk.last()).startswith("That is too long for a message")
    assert await talk.messages() == []


async def test_what_is_heard_twice_is_given_once(talk: Talk) -> None:
    await talk.has_sandbox()
    message = IncomingMessage("$one", DEV, ALICE, "@coder !1 fix it", None, False, 0)
    for token in ("s1", "s2"):
        await talk.journal.save((message,), token)
        await talk.work()
    assert await talk.messages() == [("coder", "$one", "fix it")]


async def test_a_message_that_is_removed_before_it_is_handled_is_taken_back_and_not_afterwards(talk: Talk) -> None:
    await talk.has_sandbox()
    removed = await talk.hear(ALICE, "@coder !1 fix it")
    await talk.journal.save((Removed(DEV, removed),), "s1")
    await talk.work()
    assert await talk.messages() == []
    asked = await talk.say(ALICE, "@coder !1 fix it")
    await talk.journal.save((Removed(DEV, asked),), "s2")
    await talk.work()
    assert await talk.messages() == [("coder", asked, "fix it")]
    rows = await talk.desk.world.read(lambda tx: tx.all("SELECT outcome FROM inbox WHERE source = 'matrix'"))
    assert [row["outcome"] == "taken back" for row in rows] == [True, False]


async def test_messages_of_one_conversation_share_a_lane_and_others_do_not_wait_for_it(talk: Talk) -> None:
    await talk.has_sandbox()
    await talk.has_card(1, "$card")
    began = await talk.say(ALICE, "@coder !1 fix it")
    conversation = await talk.conversation("coder", began)
    await talk.desk.world.write(lambda tx: conversations.add_event(tx, DEV, "$answer", conversation.id))
    await talk.hear(ALICE, "more", thread=began)
    await talk.hear(ALICE, "why", reply_to="$answer")
    await talk.hear(ALICE, "!rave cancel", thread=began)
    await talk.hear(ALICE, "@reviewer look", thread=began)
    other = await talk.hear(ALICE, "@coder !1 something else")
    await talk.hear(ALICE, "@coder here", thread="$card")
    lanes = [lane for _, lane in await talk.stored()]
    assert lanes == [f"{DEV} {began}"] * 5 + [f"{DEV} {other}", f"{DEV} 1"]


async def test_a_gitlab_that_is_away_does_not_change_the_order_and_it_is_said_once_that_messages_are_kept(
    talk: Talk,
) -> None:
    await talk.has_sandbox()
    talk.desk.server.fail(503)
    began = await talk.hear(ALICE, "@coder !1 one")
    for text in ("@coder two", "@coder three"):
        await talk.hear(ALICE, text, thread=began)
    for _ in range(2):
        with suppress(TimeoutError):
            await talk.work(0.2)
        talk.desk.world.pass_by(minutes=2)
    assert len(await talk.told()) == 1
    assert (await talk.last()).endswith(
        "Your message is kept and carried out as soon as possible: you need not say it again."
    )
    assert (await talk.told())[0]["m.relates_to"]["event_id"] == began
    talk.desk.server.restore()
    await talk.work()
    assert await talk.messages() == [("coder", began, text) for text in ("one", "two", "three")]


async def test_who_floods_a_thread_is_told_once_what_is_not_told_yet(talk: Talk) -> None:
    few = CODER.model_copy(update={"limits": CODER.limits.model_copy(update={"messages_per_day": 5})})
    talk = Talk(talk.desk, few)
    await talk.has_sandbox()
    heard = [IncomingMessage(f"$flood{n}", DEV, ALICE, f"@coder !1 {n}", "$people", False, 0) for n in range(30)]
    await talk.journal.save(tuple(heard), "s1")
    await talk.work()
    assert len(await talk.messages()) == 5
    said = [content["body"] for content in await talk.told()]
    assert ["being started" in said[0], "has had its" in said[1]] == [True] * len(said)


async def test_many_threads_at_once_each_keep_their_order(talk: Talk) -> None:
    """Also while GitLab fails now and then: what waits for it holds up its own thread only."""
    await talk.has_sandbox()
    threads = [f"$thread{number}" for number in range(20)]
    heard = [
        IncomingMessage(f"{thread}" if not place else f"{thread}.{place}", DEV, ALICE, f"@coder !1 {place}",
                        thread if place else None, False, 0)
        for place in range(10)
        for thread in threads
    ]  # fmt: skip
    talk.desk.server.fail(503, count=3)
    await talk.journal.save(tuple(heard), "s1")
    with suppress(TimeoutError):
        await talk.work(1)
    assert any("Your message is kept" in content["body"] for content in await talk.told())
    talk.desk.world.pass_by(minutes=2)
    await talk.work(20)
    given = await talk.messages()
    for thread in threads:
        assert [text for _, there, text in given if there == thread] == [str(place) for place in range(10)]
