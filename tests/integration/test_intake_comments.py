"""Comments to agents on merge requests of the stand-in: what reaches the desk, what is answered, and where."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from ravebot.agents.model import LONGEST_MESSAGE, AgentDoor, ApprovalKind, ApprovalState, Conversation
from ravebot.gitlab.client import MOST_NOTES
from ravebot.gitlab.commands import WORD
from ravebot.sandboxes.model import Actor, MergeRequestRef
from ravebot.store import approvals, conversations
from ravebot.store.database import Transaction
from ravebot.store.targets import NoteLane
from tests.integration.test_delivery_gitlab import Post
from tests.integration.test_intake_gitlab import Desk, a_desk
from tests.support.gitlab import DEVELOPER, GUEST, MergeRequest
from tests.support.gitlab import payloads as hooks

pytestmark = pytest.mark.integration
AGENTS = [
    {
        "name": "coder",
        "owner": "alice",
        "projects": ["group/*"],
        "acp": {"command": ["coder"]},
    },
    {"name": "elsewhere", "owner": "alice", "projects": ["other/app"], "acp": {"command": ["coder"]}},
    {"name": "keys-only", "ssh_keys": []},
]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_desk(tmp_path, agents=AGENTS) as desk:
        yield desk


async def opened(desk: Desk) -> MergeRequest:
    """A merge request that a webhook told of."""
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    return mr


def ref_of(desk: Desk, mr: MergeRequest) -> MergeRequestRef:
    return MergeRequestRef(desk.project.id, mr.iid)


async def talks(desk: Desk, mr: MergeRequest) -> list[tuple[Conversation, list[str]]]:
    """The conversations about a merge request, with what was said in each."""

    def look(tx: Transaction) -> list[tuple[Conversation, list[str]]]:
        found = []
        for one in conversations.of_merge_request(tx, ref_of(desk, mr)):
            turns = conversations.open_turns(tx, one.id)
            found.append((one, [conversations.message(tx, turn.message_id).text for turn in turns]))
        return found

    return await desk.world.read(look)


async def replies(desk: Desk) -> list[dict[str, object]]:
    return [json.loads(body) for _, _, kind, body in await desk.world.outbox() if kind == "reply"]


async def test_what_a_developer_says_reaches_the_agent_in_the_comments_discussion(desk: Desk) -> None:
    mr = await opened(desk)
    note = await desk.say(mr, desk.alice, "/agent coder fix the login test\n\nIt fails since Monday.")
    await desk.work()
    [(conversation, said)] = await talks(desk, mr)
    assert said == ["fix the login test\n\nIt fails since Monday."]
    assert (conversation.agent, conversation.door, conversation.place, conversation.thread) == (
        "coder", AgentDoor.GITLAB, f"{desk.project.id}!{mr.iid}", note.discussion_id,
    )  # fmt: skip
    assert not conversation.own_thread, "other replies in the thread are between people"
    assert conversation.mr == ref_of(desk, mr)
    [reply] = await replies(desk)
    assert reply["text"] == "The sandbox of group/app!1 is being started: coder gets the message when it is ready."
    assert reply["discussion"] == note.discussion_id


async def test_who_writes_to_a_paused_agent_is_told(desk: Desk) -> None:
    mr = await opened(desk)
    await desk.world.write(lambda tx: conversations.pause_agent(tx, "coder", "root"))
    await desk.say(mr, desk.alice, "/agent coder hello")
    await desk.work()
    [reply] = await replies(desk)
    assert "coder is paused, by root" in str(reply["text"])


async def test_an_agent_does_for_nobody_what_its_owner_may_not(desk: Desk) -> None:
    mr = await opened(desk)
    bob = desk.server.add_user("bob")
    desk.server.set_role(desk.project, bob, DEVELOPER)
    desk.server.set_role(desk.project, desk.alice, GUEST)
    await desk.say(mr, bob, "/agent coder hello")
    await desk.work()
    [reply] = await replies(desk)
    assert "coder may do at most what its owner alice may: alice is Guest in group/app." in str(reply["text"])
    assert await talks(desk, mr) == []


async def test_a_thread_is_one_conversation_and_only_what_is_addressed_counts_in_it(desk: Desk) -> None:
    mr = await opened(desk)
    first = await desk.say(mr, desk.alice, "/agent coder one")
    for text in ("what do you think?", "> /agent coder two", "/agent coder two"):
        note = desk.server.comment(mr, desk.alice, text, reply_to=first)
        assert note
        await desk.deliver(hooks.note_event(desk.server.url, mr, note, desk.alice, "create"))
    await desk.say(mr, desk.alice, "/agent coder elsewhere")
    await desk.work()
    assert [said for _, said in await talks(desk, mr)] == [["one", "two"], ["elsewhere"]]


async def test_a_comment_is_taken_once_whether_told_by_webhook_or_found_by_polling(desk: Desk) -> None:
    mr = await desk.known_to_polling()
    note = await desk.say(mr, desk.alice, "/agent coder once")
    await desk.deliver(hooks.note_event(desk.server.url, mr, note, desk.alice, "create"))
    await desk.work()
    await desk.poll_again(mr)
    assert [said for _, said in await talks(desk, mr)] == [["once"]]


async def test_polling_finds_the_discussion_of_a_comment_that_no_webhook_told_of(desk: Desk) -> None:
    mr = await desk.known_to_polling()
    first = await desk.say(mr, desk.alice, "what is this?", webhook=False)
    note = desk.server.comment(mr, desk.alice, "/agent coder explain\nthis", reply_to=first)
    assert note
    await desk.poll_again(mr)
    [(conversation, said)] = await talks(desk, mr)
    assert (conversation.thread, said) == (first.discussion_id, ["explain\nthis"])


async def test_a_webhook_without_a_discussion_is_taken_too(desk: Desk) -> None:
    mr = await opened(desk)
    note = desk.server.comment(mr, desk.alice, "/agent coder hello")
    assert note
    body = hooks.note_event(desk.server.url, mr, note, desk.alice, "create")
    attributes = body["object_attributes"]
    assert isinstance(attributes, dict)
    attributes["discussion_id"] = "../../../users"
    await desk.deliver(body)
    await desk.work()
    [(conversation, _)] = await talks(desk, mr)
    assert conversation.thread == note.discussion_id


async def test_more_comments_than_are_held_at_a_time_are_all_kept_in_order(desk: Desk) -> None:
    mr = await desk.known_to_polling()
    notes = [await desk.say(mr, desk.alice, f"/agent coder {count}", webhook=False) for count in range(MOST_NOTES + 20)]
    mr.updated_at += timedelta(minutes=2)
    await desk.poller.look()
    rows = await desk.world.read(lambda tx: tx.all("SELECT body FROM inbox WHERE kind = 'note' ORDER BY id"))
    assert [json.loads(row["body"])["note_id"] for row in rows] == [note.id for note in notes]


async def test_an_edit_says_nothing_to_an_agent(desk: Desk) -> None:
    mr = await desk.known_to_polling()
    note = await desk.say(mr, desk.alice, "/agentcoder typo", webhook=False)
    desk.server.edit(mr, note, desk.alice, "/agent coder hello")
    note.updated_at = note.created_at + timedelta(seconds=30)
    await desk.poll_again(mr)
    assert await talks(desk, mr) == []


@pytest.mark.parametrize("name", ["project_7_bot_0a1b", "service-account"])
async def test_a_bots_words_address_nobody_whatever_its_role_is(desk: Desk, name: str) -> None:
    mr = await opened(desk)
    robot = desk.server.add_user(name, bot=True)
    desk.server.set_role(desk.project, robot, DEVELOPER)
    for text in ("/agent coder hello", "/agent help", "/agent approve 1"):
        await desk.say(mr, robot, text)
    await desk.say(mr, desk.bot, "/agent coder hello")
    await desk.work()
    assert await talks(desk, mr) == []
    assert await replies(desk) == []
    assert await desk.outcomes() == ["queued", *["a bot's words address no agent"] * 3, "our own comment"]


async def test_a_command_below_words_to_an_agent_is_not_carried_out(desk: Desk) -> None:
    mr = await opened(desk)
    await desk.say(mr, desk.alice, f"/agent coder look\n{WORD} stop")
    await desk.work()
    assert await desk.states() == ["queued"]
    assert [said for _, said in await talks(desk, mr)] == [[f"look\n{WORD} stop"]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/agent codr hello", "There is no such agent. Agents for this project: `coder`. `/agent help`"),
        ("/agent elsewhere hello", "There is no such agent."),
        ("/agent keys-only hello", "There is no such agent."),
        ("/agent Coder hello", "There is no such agent: did you mean `coder`? Type `/agent coder TEXT`."),
        ("/agent coder", "Say what coder is to do: type `/agent coder TEXT`."),
        ("/agent approve", "Say which question you answer"),
        ("/agent deny 99", "There is no approval 99: the number stands in the question's message."),
        (f"/agent coder {'x' * (LONGEST_MESSAGE + 1)}", "That is too long for a message"),
    ],
)
async def test_a_mistake_is_told_in_the_discussion(desk: Desk, text: str, says: str) -> None:
    mr = await opened(desk)
    note = await desk.say(mr, desk.alice, text)
    await desk.work()
    [reply] = await replies(desk)
    assert str(reply["text"]).startswith(says)
    assert (reply["discussion"], reply["username"]) == (note.discussion_id, "alice")
    assert await talks(desk, mr) == []
    assert "no_entry_sign" in await desk.answers()


async def test_a_developer_cancels_a_message_in_its_discussion_and_is_answered_there(desk: Desk) -> None:
    mr = await opened(desk)
    first = await desk.say(mr, desk.alice, "/agent coder one")
    await desk.work()
    for who, text, reply_to, says in (
        (desk.gina, "/agent cancel", first, "Refused: gina is Guest"),
        (desk.alice, "/agent cancel", None, "No agent was spoken to in this thread: reply `/agent cancel` where"),
        (desk.alice, "/agent cancel codr", first, "Say which agent is to stop: type `/agent cancel coder`."),
        (desk.alice, "/agent cancel coder", first, "It is cancelled: coder was not given it."),
        (desk.alice, "/agent cancel", first, "Nothing runs or waits here, so there is nothing to cancel."),
    ):
        note = desk.server.comment(mr, who, text, reply_to=reply_to)
        assert note
        await desk.deliver(hooks.note_event(desk.server.url, mr, note, who, "create"))
        await desk.work()
        reply = (await replies(desk))[-1]
        assert str(reply["text"]).startswith(says)
        assert reply["discussion"] == note.discussion_id
    assert [said for _, said in await talks(desk, mr)] == [[]]
    refused = [one for one in await desk.world.events() if one.kind == "command.refused"]
    assert [(one.actor.name, one.data["verb"]) for one in refused] == [("gina", "cancel")]


async def test_help_names_the_agents_of_the_project(desk: Desk) -> None:
    mr = await opened(desk)
    await desk.say(mr, desk.gina, "/agent help")
    await desk.work()
    [reply] = await replies(desk)
    assert "`/agent NAME TEXT`" in str(reply["text"])
    assert "Agents for this project: `coder`." in str(reply["text"])
    assert "white_check_mark" in await desk.answers()


async def test_a_guest_says_nothing_to_an_agent_and_the_refusal_is_logged(desk: Desk) -> None:
    mr = await opened(desk)
    for agent in ("coder", "nobody"):  # nor is it told which agents there are
        await desk.say(mr, desk.gina, f"/agent {agent} hello")
        await desk.work()
    told = [str(reply["text"]) for reply in await replies(desk)]
    assert len(told) == 2
    assert all(text.startswith("Refused: gina is Guest in group/app.") for text in told)
    event = (await desk.world.events())[-1]
    assert (event.kind, event.actor.name, event.data["verb"]) == ("command.refused", "gina", "agent")
    assert await talks(desk, mr) == []


async def test_strangers_are_answered_once_an_hour_and_cost_no_search_for_their_discussion(desk: Desk) -> None:
    mr = await desk.known_to_polling()
    mallory = desk.server.add_user("mallory")
    for text in ("/agent coder hello", "/agent help", "/agent approve 1", "/agent coder again"):
        await desk.say(mr, mallory, text, webhook=False)
    await desk.poll_again(mr)
    assert len(await replies(desk)) == 1
    assert not [one for one in desk.server.requests if "discussions" in one.path]
    assert await talks(desk, mr) == []


async def test_an_answer_is_taken_from_who_may_give_it_and_from_nobody_else(desk: Desk) -> None:
    mr = await opened(desk)
    await desk.say(mr, desk.alice, "/agent coder hello")
    await desk.work()
    [(conversation, _)] = await talks(desk, mr)

    def ask(tx: Transaction) -> int:
        return approvals.add(
            tx, ApprovalKind.TOOL, title="Run rm", payload="{}", payload_hash=sha256(b"{}").hexdigest(),
            asked_by=Actor("agent", "coder"), door=AgentDoor.GITLAB, place=NoteLane(ref_of(desk, mr)).text,
            thread=conversation.thread, within=timedelta(minutes=30), mr=ref_of(desk, mr),
            conversation_id=conversation.id,
        ).id  # fmt: skip

    number = await desk.world.write(ask)
    await desk.say(mr, desk.gina, f"/agent approve {number}")
    await desk.work()
    assert [one.id for one in await desk.world.read(approvals.are_open)] == [number]
    assert str((await replies(desk))[-1]["text"]).startswith("Refused: gina is Guest")
    await desk.say(mr, desk.alice, f"/agent approve {number}")
    await desk.work()
    [decided] = await desk.world.read(lambda tx: approvals.newest(tx, 1))
    assert (decided.state, str(decided.decided_by)) == (ApprovalState.GRANTED, "alice (gitlab)")
    assert (await desk.answers())[-1] == "white_check_mark"
    await desk.say(mr, desk.alice, f"/agent deny {number}")
    await desk.work()
    assert "was answered by alice (gitlab) before" in str((await replies(desk))[-1]["text"])
    [decided] = await desk.world.read(lambda tx: approvals.newest(tx, 1))
    assert decided.state is ApprovalState.GRANTED


async def test_an_approval_of_another_project_is_not_answered_here(desk: Desk) -> None:
    mr = await opened(desk)

    def ask(tx: Transaction) -> int:
        other = MergeRequestRef(desk.project.id + 1, 1)
        return approvals.add(
            tx, ApprovalKind.TOOL, title="Run rm", payload="{}", payload_hash=sha256(b"{}").hexdigest(),
            asked_by=Actor("agent", "coder"), door=AgentDoor.GITLAB, place=NoteLane(other).text, thread="f" * 40,
            within=timedelta(minutes=30), mr=other,
        ).id  # fmt: skip

    number = await desk.world.write(ask)
    await desk.say(mr, desk.alice, f"/agent approve {number}")
    await desk.work()
    assert [one.id for one in await desk.world.read(approvals.are_open)] == [number]


async def test_a_refusal_is_one_reply_in_the_thread_whatever_crashes(desk: Desk) -> None:
    mr = await opened(desk)
    note = await desk.say(mr, desk.alice, "/agent codr hello")
    await desk.work()
    post = Post(desk, mr)
    while await post.send(crash=True) is not None:
        await post.send()
    thread = mr.discussion(note.discussion_id)
    assert [one.author for one in thread] == [desk.alice, desk.bot]
    assert "There is no such agent." in thread[1].body
    assert desk.server.emoji(note) == ["no_entry_sign"]


async def test_a_reply_to_a_deleted_comment_is_dropped(desk: Desk) -> None:
    mr = await opened(desk)
    note = await desk.say(mr, desk.alice, "/agent codr hello")
    await desk.work()
    desk.server.delete_note(mr, note)
    post = Post(desk, mr)
    results = []
    while (result := await post.send()) is not None:
        results.append(result)
    assert sum(result.startswith("dropped") for result in results) == 2
