"""Commands from rooms and direct chats: who may, what is answered, and what is kept when GitLab is away."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from ravebot.intake.loop import Intake
from ravebot.intake.matrix import MatrixJournal
from ravebot.matrix.incoming import IncomingMessage
from ravebot.sandboxes.model import MergeRequestRef
from ravebot.store import merge_requests, outbox, sandboxes
from ravebot.store.database import Transaction
from ravebot.store.targets import Kind, RoomLane
from tests.integration.test_intake_gitlab import Desk, desk
from tests.support.gitlab import DEVELOPER, MergeRequest
from tests.support.records import ROOM, B, make_config, pending
from tests.support.rooms import room_handler

pytestmark = pytest.mark.integration
__all__ = ["desk"]  # the fixture, from where it is made

ALICE, GINA, OPS, EVE = "@alice:example.org", "@gina:example.org", "@ops:example.org", "@eve:evil.example"
DEV = "!dev:example.org"
RULE = {GINA: "gina is Guest in group/app.", EVE: "Your Matrix account is not tied to a GitLab user."}
ADVICE = {
    GINA: "This needs the role Developer or more: ask a Maintainer of group/app.",
    EVE: "Ask an admin of ravebot to add it to the users in its configuration.",
}


class Chat:
    """A room and whoever works through what is said in it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.journal = MatrixJournal(desk.world.database, "!rave")
        self._said = 0

    async def say(
        self,
        sender: str,
        text: str,
        *,
        room: str = DEV,
        direct: bool = False,
        thread: str | None = None,
        reply_to: str | None = None,
    ) -> None:
        self._said += 1
        message = IncomingMessage(f"$event{self._said}", room, sender, text, thread, direct, 0, reply_to)
        await self.journal.save((message,), f"batch {self._said}")

    async def work(self, seconds: float = 5) -> None:
        world = self.desk.world
        handler = room_handler(world, self.desk.gitlab, world.config, self.desk.verbs)
        task = asyncio.create_task(Intake(world.database, {"matrix": handler}).run())
        try:
            async with asyncio.timeout(seconds):
                while await world.read(pending):
                    assert not task.done(), task
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def ask(
        self,
        sender: str,
        text: str,
        *,
        room: str = DEV,
        direct: bool = False,
        thread: str | None = None,
        reply_to: str | None = None,
    ) -> str:
        """What is answered, as it reads: without word joiners."""
        await self.say(sender, text, room=room, direct=direct, thread=thread, reply_to=reply_to)
        await self.work()
        replies = await self.replies()
        return replies[-1].replace("\u2060", "") if replies else ""

    async def replies(self) -> list[str]:
        return [content["body"] for content in await self.contents()]

    async def contents(self) -> list[dict[str, Any]]:
        return [json.loads(body)["content"] for _, _, kind, body in await self.desk.world.outbox() if kind == "reply"]

    async def has_card(self, iid: int, event_id: str, *, room_id: str = DEV, name: str = ROOM) -> None:
        """Post a card and a line in its thread (its id has a `.1` behind it), as if they had been delivered."""
        world = self.desk.world
        ref = MergeRequestRef(self.desk.project.id, iid)

        def post(tx: Transaction) -> None:
            sandbox = sandboxes.latest(tx, ref)
            assert sandbox
            outbox.set_card(tx, sandbox.id, name, outbox.Card(room_id, event_id))
            outbox.add(tx, RoomLane(name), Kind.HISTORY, sandbox_id=sandbox.id, body={"text": "it boots"})
            row = tx.one("SELECT MAX(id) AS id FROM outbox")
            assert row
            outbox.delivered(tx, row["id"], f"{event_id}.1")

        await world.write(post)


@pytest.mark.parametrize(("days", "heard"), [(6, 1), (8, 0)])
async def test_a_command_of_long_ago_that_is_heard_again_is_not_obeyed(desk: Desk, days: int, heard: int) -> None:
    said_at = desk.world.clock.now() - timedelta(days=days)
    journal = MatrixJournal(desk.world.database, "!rave")
    message = IncomingMessage("$old", DEV, ALICE, "!rave list", None, False, int(said_at.timestamp() * 1000))
    await journal.save((message,), "s1")
    assert await desk.world.read(pending) == heard
    assert await journal.token() == "s1"


@pytest.fixture
async def chat(desk: Desk) -> Chat:
    await desk.world.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
    return Chat(desk)


@pytest.fixture
async def mr(desk: Desk) -> MergeRequest:
    """One that runs nothing yet."""
    found = desk.open()
    await desk.poller.look()
    return found


async def test_a_developer_starts_and_stops_and_is_answered_in_the_rooms_lane(chat: Chat, mr: MergeRequest) -> None:
    assert await chat.ask(ALICE, "!rave start group/app!1") == "A sandbox for group/app!1 is on its way."
    assert await chat.desk.states() == ["queued"]
    assert await chat.ask(ALICE, "!RAVE stop 1") == "The sandbox of group/app!1 is being stopped."
    assert await chat.desk.states() == []
    assert {lane for target, lane, kind, _ in await chat.desk.world.outbox() if kind == "reply"} == {ROOM}
    queued = [event for event in await chat.desk.world.events() if event.kind == "sandbox.queued"]
    assert str(queued[0].actor) == f"{ALICE} (matrix)"


@pytest.mark.parametrize("who", [GINA, EVE])
@pytest.mark.parametrize("verb", ["start", "stop", "extend", "rebuild", "retry", "show", "logs", "why"])
async def test_others_are_refused_by_rule_and_it_is_logged(chat: Chat, mr: MergeRequest, who: str, verb: str) -> None:
    refusal = await chat.ask(who, f"!rave {verb} !1")
    assert refusal == f"Refused: {RULE[who]} {ADVICE[who]}"
    event = (await chat.desk.world.events())[-1]
    assert (event.kind, event.actor.name) == ("command.refused", who)
    assert event.data == {"verb": verb, "ref": "group/app!1", "rule": RULE[who]}
    assert await chat.desk.states() == []


async def test_an_admin_may_do_everything(chat: Chat, mr: MergeRequest) -> None:
    assert "on its way" in await chat.ask(OPS, "!rave start 1")


async def test_a_room_that_is_not_mapped_gives_nothing_away(chat: Chat, mr: MergeRequest) -> None:
    for who in (ALICE, EVE):
        for command in ("start group/app!1", "show group/app!1", "list", "queue"):
            assert (await chat.ask(who, f"!rave {command}", room="!other:example.org")).startswith(
                "Refused: This room is not mapped to that project. Ask in a room that is"
            )
    assert await chat.desk.states() == []


async def test_readers_of_a_room_may_list_and_developers_may_see_the_queue(chat: Chat, mr: MergeRequest) -> None:
    assert await chat.ask(EVE, "!rave list") == "There is no sandbox now."
    assert await chat.ask(ALICE, "!rave queue") == "Nobody waits for a sandbox."
    await chat.ask(ALICE, "!rave start 1")
    for who, command in ((EVE, "list"), (ALICE, "list"), (ALICE, "queue"), (OPS, "queue")):
        assert "group/app!1" in await chat.ask(who, f"!rave {command}"), (who, command)
    for who in (EVE, GINA):
        assert (await chat.ask(who, "!rave queue")).startswith("Refused: ")


async def test_in_a_direct_chat_lists_show_only_what_the_asker_may_see(chat: Chat, mr: MergeRequest) -> None:
    await chat.ask(ALICE, "!rave start 1")
    for command in ("list", "queue"):
        for who in (ALICE, OPS):
            assert "group/app!1" in await chat.ask(who, f"!rave {command}", room="!direct:x", direct=True)
        for who in (EVE, GINA):
            answer = await chat.ask(who, f"!rave {command}", room="!direct:x", direct=True)
            assert answer.startswith("Refused: "), (who, answer)
            assert "group/app" not in answer


async def test_a_stranger_in_a_direct_chat_is_refused_also_when_there_is_nothing_to_list(chat: Chat) -> None:
    assert (await chat.ask(EVE, "!rave list", room="!direct:x", direct=True)).startswith("Refused: ")
    assert await chat.ask(ALICE, "!rave list", room="!direct:x", direct=True) == "There is no sandbox now."


async def test_help_and_whoami_say_what_there_is(chat: Chat, mr: MergeRequest) -> None:
    assert "!rave extend REF [1h]" in await chat.ask(EVE, "!rave help")
    mine = await chat.ask(ALICE, "!rave whoami")
    assert "On GitLab you are `alice`." in mine
    assert "`group/app`: you may command. alice is Developer in group/app." in mine
    assert "ask an admin" in await chat.ask(EVE, "!rave whoami")


async def test_a_wrong_command_is_told_its_usage(chat: Chat, mr: MergeRequest) -> None:
    assert await chat.ask(ALICE, "!rave strat 1") == "There is no such command. Did you mean `!rave start REF [SHA]`?"
    assert "Say which merge request." in await chat.ask(ALICE, "!rave stop")
    assert "write a duration like" in await chat.ask(ALICE, "!rave extend 1 soon")


@pytest.mark.parametrize(("thread", "reply_to"), [("$card", None), (None, "$card"), (None, "$card.1"), ("$x", "$card")])
async def test_at_a_card_the_merge_request_need_not_be_named(
    chat: Chat, mr: MergeRequest, thread: str | None, reply_to: str | None
) -> None:
    ask = partial(chat.ask, ALICE, thread=thread, reply_to=reply_to)
    other = chat.desk.open("other")
    await chat.desk.poller.look()
    for ref in (1, other.iid):
        await chat.ask(ALICE, f"!rave start {ref}")
    await chat.has_card(1, "$card")
    assert (await ask("!rave extend 1h")).startswith("The sandbox of group/app!1 is queued.")
    assert "group/app!1" in await ask("!rave why")
    assert (await ask(f"!rave stop {other.iid}")).startswith("The sandbox of group/app!2 is")
    assert await ask("!rave stop") == "The sandbox of group/app!1 is being stopped."
    assert (await ask(f"!rave start {mr.sha[:8]}")).startswith("A sandbox for group/app!1 is on")


async def test_a_card_gives_nobody_a_right_and_counts_in_its_own_room_only(chat: Chat, mr: MergeRequest) -> None:
    await chat.ask(ALICE, "!rave start 1")
    await chat.has_card(1, "$card")
    assert await chat.ask(EVE, "!rave stop", thread="$card") == f"Refused: {RULE[EVE]} {ADVICE[EVE]}"
    assert await chat.ask(GINA, "!rave stop", reply_to="$card") == f"Refused: {RULE[GINA]} {ADVICE[GINA]}"
    for event_id in ("$card", "$card.1", "$none"):
        for room, direct in (("!other:example.org", False), ("!direct:x", True)):
            said = await chat.ask(ALICE, "!rave stop", room=room, direct=direct, reply_to=event_id)
            assert said.startswith("Say which merge request."), (room, event_id)
    assert await chat.desk.states() == ["queued"]


async def test_a_command_at_a_card_keeps_its_place_among_those_on_its_merge_request(
    chat: Chat, mr: MergeRequest
) -> None:
    await chat.ask(ALICE, "!rave start 1")
    await chat.has_card(1, "$card")
    await chat.say(ALICE, "!rave stop 1")
    await chat.say(ALICE, "!rave start deadbee2", thread="$card")
    await chat.say(ALICE, "!rave extend 1h", reply_to="$card")
    lanes = await chat.desk.world.read(lambda tx: tx.all("SELECT lane FROM inbox WHERE handled_at IS NULL"))
    assert [row["lane"] for row in lanes] == [f"{DEV} 1"] * 3


@pytest.mark.parametrize(("who", "text"), [(ALICE, "!rave stpo 1"), (ALICE, "!rave stop"), (ALICE, "!rave stop 77"),
                                           (EVE, "!rave stop 1"), (EVE, "!rave frobnicate")])  # fmt: skip
async def test_a_mistake_or_refusal_is_answered_in_a_thread_under_the_command(
    chat: Chat, mr: MergeRequest, who: str, text: str
) -> None:
    await chat.ask(who, text)
    await chat.ask(who, text, thread="$root")
    await chat.ask(who, text, direct=True, room="!direct:x")
    under, beside, direct = [content["m.relates_to"] for content in await chat.contents()]
    assert (under["rel_type"], under["event_id"]) == ("m.thread", under["m.in_reply_to"]["event_id"])
    assert beside["event_id"] == "$root"
    assert "rel_type" not in direct, "nobody is disturbed in a direct chat"


async def test_a_command_that_is_right_is_answered_beside_it(chat: Chat, mr: MergeRequest) -> None:
    for text in ("!rave start 1", "!rave list", "!rave extend 1", "!rave help stop"):
        await chat.ask(ALICE, text)
    assert {tuple(content["m.relates_to"]) for content in await chat.contents()} == {("m.in_reply_to",)}


async def test_what_to_type_next_is_said_as_it_is_typed_in_the_room(chat: Chat, mr: MergeRequest) -> None:
    await chat.ask(ALICE, "!rave start 1")
    again = await chat.ask(ALICE, "!rave start 1")
    assert again.endswith("To see all about it, type `!rave show group/app!1`.")
    wrong = await chat.ask(ALICE, f"!rave start 1 {B}")
    assert wrong.endswith(f"Look at it first. To start it then, type `!rave start group/app!1 {mr.sha}`.")


async def test_help_may_be_about_one_verb(chat: Chat) -> None:
    assert (await chat.ask(EVE, "!rave help extend")).splitlines() == [
        "`!rave extend REF [1h]` – keep it an hour longer, or as long as you say.",
        "Its end moves by that long, up to the longest lifetime. The owner is warned again before the new end.",
        "It needs the role Developer in the project.",
        "For example: `!rave extend group/app!42 1h30m`",
    ]
    assert await chat.ask(EVE, "!rave help extned") == "There is no such command. Did you mean `!rave extend REF [1h]`?"


async def test_whoami_is_shorter_than_ten_lines_with_many_projects(chat: Chat, mr: MergeRequest) -> None:
    for number in range(9):
        project = chat.desk.server.add_project(f"group/p{number}", public=True)
        chat.desk.server.set_role(project, chat.desk.bot, DEVELOPER)
        chat.desk.server.open_merge_request(project, chat.desk.alice, "One of many", "feature")
    await chat.desk.poller.look()
    lines = (await chat.ask(ALICE, "!rave whoami")).splitlines()
    assert (len(lines), lines[-1]) == (9, "and 4 more")


async def test_what_gitlab_says_in_its_own_words_is_for_the_log_alone(chat: Chat, mr: MergeRequest) -> None:
    for status, told in (
        (403, "GitLab does not let me do that. Ask a Maintainer of the project to give me the role Developer."),
        (422, "I could not make sense of GitLab's answer. Try again later, or tell an admin of ravebot."),
        (404, "There is no group/app!1, or I may not see it. To see what has a sandbox here, type `!rave list`."),
    ):
        chat.desk.server.fail(status, path=f"/merge_requests/{mr.iid}$")
        assert await chat.ask(ALICE, "!rave start 1") == told
        chat.desk.server.restore()
    for code, outcome in zip(("403", "422", "404"), await chat.desk.outcomes(), strict=True):
        assert code in outcome


async def test_a_merge_request_that_does_not_exist_is_said_so(chat: Chat, mr: MergeRequest) -> None:
    missing = "There is no group/app!77, or I may not see it. To see what has a sandbox here, type `!rave list`."
    for verb in ("show", "start"):
        assert await chat.ask(ALICE, f"!rave {verb} 77") == missing
    assert (await chat.ask(OPS, "!rave stop group/none!1")).startswith("There is no group/none!1, or I may not see it.")


async def test_a_command_about_one_that_was_never_heard_of_asks_gitlab(chat: Chat) -> None:
    chat.desk.open()
    assert "on its way" in await chat.ask(ALICE, "!rave start group/app!1")


async def test_what_was_looked_up_before_does_not_undo_what_came_in_between(chat: Chat, mr: MergeRequest) -> None:
    """A stop needs no question to GitLab: it must leave what is known of the merge request alone."""
    await chat.ask(ALICE, "!rave start 1")
    ref = MergeRequestRef(chat.desk.project.id, 1)
    await chat.desk.world.write(
        lambda tx: tx.execute("UPDATE merge_requests SET head_sha = ?, title = ?", (B, "Newer"))
    )
    await chat.ask(ALICE, "!rave stop 1")
    known = await chat.desk.world.read(lambda tx: merge_requests.get(tx, ref))
    assert known
    assert (known.head_sha, known.title) == (B, "Newer")


async def test_while_gitlab_is_away_it_is_said_once_and_done_later(chat: Chat, mr: MergeRequest) -> None:
    chat.desk.server.fail(503)
    await chat.say(ALICE, "!rave start 1")
    for _ in range(2):
        with suppress(TimeoutError):
            await chat.work(0.2)
        chat.desk.world.pass_by(minutes=2)
    [told] = await chat.replies()
    assert told == (
        "GitLab does not answer as it should right now."
        " Your command is kept and carried out as soon as possible: you need not type it again."
    )
    chat.desk.server.restore()
    await chat.work()
    assert (await chat.replies())[-1] == "A sandbox for group/app!1 is on its way."
    assert len(await chat.desk.world.read(sandboxes.live)) == 1


async def test_only_what_begins_with_the_prefix_is_kept_and_the_token_always(chat: Chat) -> None:
    for text in ("hello", "say !rave list", "", "\ud83d!rave"):
        await chat.say(ALICE, text)
    assert await chat.desk.world.read(pending) == 0
    assert await chat.journal.token() == "batch 4"
    await chat.say(ALICE, "  !Rave list")
    assert await chat.desk.world.read(pending) == 1


async def test_a_message_that_a_sync_brings_twice_is_acted_on_once(chat: Chat, mr: MergeRequest) -> None:
    message = IncomingMessage("$same", DEV, ALICE, "!rave start 1", None, False, 0)
    for batch in ("one", "two"):
        await chat.journal.save((message, message), batch)
    await chat.work()
    assert len(await chat.replies()) == 1


@pytest.mark.parametrize("text", ["!rave start \ud800", "!rave show " + "9" * 400, "!rave\u202e list", "!rave \x00"])
async def test_hostile_text_is_answered_or_ignored_and_breaks_nothing(chat: Chat, mr: MergeRequest, text: str) -> None:
    await chat.say(ALICE, text)
    await chat.work()
    assert "on its way" in await chat.ask(ALICE, "!rave start 1")


async def test_a_mapped_room_with_one_person_keeps_the_rights_of_its_readers(chat: Chat, mr: MergeRequest) -> None:
    await chat.ask(ALICE, "!rave start 1")
    assert "group/app!1" in await chat.ask(EVE, "!rave list", direct=True)
    assert (await chat.ask(EVE, "!rave stop 1", direct=True)).startswith("Refused: Your Matrix account")


async def test_a_room_that_was_configured_under_another_name_is_answered_under_its_present_one(
    chat: Chat, mr: MergeRequest
) -> None:
    for old in ("#zz-old:example.org", "#aa-old:example.org"):
        await chat.desk.world.write(partial(outbox.set_room, name=old, room_id=DEV))
    await chat.ask(ALICE, "!rave list")
    assert [lane for target, lane, kind, _ in await chat.desk.world.outbox() if kind == "reply"] == [ROOM]


async def test_a_room_that_is_no_longer_configured_is_answered_by_its_id(chat: Chat, mr: MergeRequest) -> None:
    await chat.desk.world.write(lambda tx: outbox.set_room(tx, "#old:example.org", "!gone:example.org"))
    assert (await chat.ask(ALICE, "!rave list", room="!gone:example.org")).startswith("Refused: This room is not")
    assert [lane for _, lane, kind, _ in await chat.desk.world.outbox() if kind == "reply"] == ["!gone:example.org"]


async def test_whoami_leaves_out_a_project_that_is_gone(chat: Chat, mr: MergeRequest) -> None:
    gone = chat.desk.server.add_project("group/gone", public=True)
    chat.desk.server.set_role(gone, chat.desk.bot, DEVELOPER)
    chat.desk.server.open_merge_request(gone, chat.desk.alice, "Soon away", "feature")
    await chat.desk.poller.look()
    assert "group/gone" in await chat.ask(ALICE, "!rave whoami")
    chat.desk.server.fail(404, path="/projects/group%2Fgone")
    mine = await chat.ask(ALICE, "!rave whoami")
    assert "`group/app`: you may command" in mine
    assert "group/gone" not in mine


async def test_in_a_direct_chat_no_project_is_named_in_which_the_asker_has_no_role(
    chat: Chat, mr: MergeRequest
) -> None:
    for name in ("hidden", "other"):
        project = chat.desk.server.add_project(f"group/{name}", public=True)
        chat.desk.server.set_role(project, chat.desk.bot, DEVELOPER)
        chat.desk.server.open_merge_request(project, chat.desk.bot, "Secret", "feature")
    await chat.desk.poller.look()
    whoami = await chat.ask(ALICE, "!rave whoami", room="!direct:x", direct=True)
    assert "group/app" in whoami
    assert "group/hidden" not in whoami
    assert "group/hidden" in await chat.ask(ALICE, "!rave whoami")
    assert "group/hidden" not in await chat.ask(EVE, "!rave stop 7", room="!direct:x", direct=True)
    assert "on its way" in await chat.ask(ALICE, "!rave start 1", room="!direct:x", direct=True)


async def test_whoever_may_not_is_told_the_same_whether_or_not_there_is_such_a_merge_request(
    chat: Chat, mr: MergeRequest
) -> None:
    unheard = chat.desk.open("unheard")
    refs = ("group/app!1", f"group/app!{unheard.iid}", "group/app!77", "group/missing!1")
    before = len(chat.desk.server.requests)
    strangers = {await chat.ask(EVE, f"!rave show {ref}") for ref in refs}
    assert len(strangers) == 1
    assert len(chat.desk.server.requests) == before, "GitLab is asked for nobody whom it does not know"
    guests = {await chat.ask(GINA, f"!rave show {ref}") for ref in refs[:3]}
    assert guests == {f"Refused: gina is Guest in group/app. {ADVICE[GINA]}"}
    chat.desk.server.set_role(chat.desk.project, chat.desk.gina, 0)
    chat.desk.world.pass_by(minutes=1)
    for ref in refs:  # what she typed is all that the answer has of it
        project = ref.partition("!")[0]
        refusal = f"Refused: gina is no member of {project} on GitLab. {ADVICE[GINA].replace('group/app', project)}"
        assert await chat.ask(GINA, f"!rave show {ref}") == refusal
    assert "There is no group/app!77, or I may not see it." in await chat.ask(OPS, "!rave show group/app!77")


async def test_one_merge_request_that_gitlab_cannot_tell_of_holds_up_no_other_command(
    chat: Chat, mr: MergeRequest
) -> None:
    second = chat.desk.open("second")
    chat.desk.server.fail(503, path=f"/merge_requests/{mr.iid}$")
    await chat.say(ALICE, f"!rave start !{mr.iid}")
    await chat.say(ALICE, f"!rave stop group/app!{mr.iid}")
    await chat.say(ALICE, f"!rave start {second.iid}")
    await chat.say(ALICE, "!rave list")
    with suppress(TimeoutError):
        await chat.work(0.5)
    replies = await chat.replies()
    assert any("A sandbox for group/app!2 is on its way." in reply for reply in replies)
    assert len(replies) == 3, replies
    chat.desk.server.restore()
    chat.desk.world.pass_by(minutes=2)
    await chat.work()
    assert (await chat.replies())[-2:] == [
        "A sandbox for group/app!1 is on its way.",
        "The sandbox of group/app!1 is being stopped.",
    ]


@pytest.mark.parametrize("direct", [False, True])  # with one operator in it, the room looks like a direct chat
async def test_in_the_operators_room_nothing_is_done_to_any_project(
    chat: Chat, mr: MergeRequest, desk: Desk, direct: bool
) -> None:
    world = desk.world
    world.config = make_config(
        world.config.state_dir, gitlab={"url": desk.server.url}, matrix={"operations_room": "#ops:example.org"}
    )
    await world.write(lambda tx: outbox.set_room(tx, "#ops:example.org", "!ops:example.org"))
    for sender in (OPS, ALICE):
        answer = await chat.ask(sender, f"!rave start group/app!{mr.iid}", room="!ops:example.org", direct=direct)
        assert answer.startswith("Refused: This room is not mapped to that project.")
    assert await desk.states() == []
    assert {lane for target, lane, _, _ in await world.outbox() if target == "matrix"} == {"#ops:example.org"}
