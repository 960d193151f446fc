"""Webhooks and comments from the stand-in, acted on: who may, what is answered, and what happens while it is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ravebot.agents.approvals import Approvals
from ravebot.agents.desk import Desk as AgentDesk
from ravebot.agents.reception import Reception
from ravebot.agents.telling import ConversationTelling
from ravebot.commands.people import People
from ravebot.commands.verbs import VERBS, Verb
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.events import CommentPosted, MergeRequestChanged, parse
from ravebot.gitlab.webhook import delivery
from ravebot.intake.comments import AgentComments
from ravebot.intake.gitlab import GitLabIntake
from ravebot.intake.loop import Intake
from ravebot.intake.poll import Poller
from ravebot.sandboxes.model import MergeRequestRef, SandboxState
from ravebot.sandboxes.settings import of_merge_request
from ravebot.store import images, inbox, merge_requests, outbox, sandboxes
from ravebot.store.images import ImageRecord
from tests.support.gitlab import DEVELOPER, GUEST, MAINTAINER, GitLabServer, MergeRequest, Note, Project, User
from tests.support.gitlab import payloads as hooks
from tests.support.records import World, a_world, pending

pytestmark = pytest.mark.integration


@dataclass
class Desk:
    """A GitLab, our client to it, the inbox and whoever works through it."""

    server: GitLabServer
    world: World
    gitlab: GitLab
    poller: Poller
    project: Project
    alice: User
    gina: User
    bot: User
    verbs: Sequence[Verb] = VERBS

    def open(self, branch: str = "feature", **more: Any) -> MergeRequest:
        return self.server.open_merge_request(self.project, self.alice, "Add a feature", branch, **more)

    async def deliver(self, body: dict[str, Any], key: str = "") -> bool:
        """As the receiver stores a webhook."""
        raw = json.dumps(body).encode()
        event = parse(json.loads(raw))
        assert isinstance(event, MergeRequestChanged | CommentPosted)
        row = delivery({"Idempotency-Key": key} if key else {}, raw, event)
        return await self.world.write(
            lambda tx: inbox.add(tx, source="gitlab", key=row.key, lane=row.lane, kind=row.kind, body=row.body)
        )

    async def tell(self, mr: MergeRequest, action: str = "open") -> None:
        await self.deliver(hooks.merge_request_event(self.server.url, mr, mr.author, action))

    async def say(self, mr: MergeRequest, user: User, text: str, *, webhook: bool = True) -> Note:
        note = self.server.comment(mr, user, text)
        assert note
        if webhook:
            await self.deliver(hooks.note_event(self.server.url, mr, note, user, "create"))
        return note

    async def work(self, *, seconds: float = 5) -> None:
        """Run the intake until no request is left."""
        intake = Intake(self.world.database, {"gitlab": self.handler()})
        task = asyncio.create_task(intake.run())
        try:
            async with asyncio.timeout(seconds):
                while await self.world.read(pending):
                    assert not task.done(), task
                    await asyncio.sleep(0.005)
            await asyncio.sleep(0.02)
            assert not task.done(), task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def known_to_polling(self) -> MergeRequest:
        """A merge request with a sandbox, whose project was polled before."""
        mr = self.open()
        await self.tell(mr)
        await self.work()
        await self.poller.look()
        return mr

    async def poll_again(self, mr: MergeRequest) -> None:
        """Poll when the comments since have moved the merge request."""
        mr.updated_at += timedelta(minutes=2)
        await self.poller.look()
        await self.work()

    def handler(self) -> GitLabIntake:
        people = People(self.world.config, self.world.database, self.gitlab)
        config, telling = self.world.config, ConversationTelling(self.world.config)
        approvals = Approvals(config, telling, self.world.database, people)
        reception = Reception(config, people, AgentDesk(config, telling))
        agents = AgentComments(config, self.gitlab, people, self.world.database, reception, approvals)
        return GitLabIntake(config, self.gitlab, people, self.world.intents, agents, self.verbs)

    async def outcomes(self) -> list[str]:
        rows = await self.world.read(
            lambda tx: tx.all("SELECT outcome FROM inbox WHERE handled_at NOT NULL ORDER BY id")
        )
        return [row["outcome"] for row in rows]

    async def answers(self) -> list[str]:
        """What waits to be told to GitLab beside notes: emoji by name, replies by text."""
        found = [(kind, json.loads(body)) for _, _, kind, body in await self.world.outbox()]
        return [
            str(body.get("emoji") or body.get("text") or "help") for kind, body in found if kind in ("emoji", "reply")
        ]

    async def states(self) -> list[str]:
        return [sandbox.state.value for sandbox in await self.world.read(sandboxes.live)]


@asynccontextmanager
async def a_desk(folder: Path, **config: Any) -> AsyncIterator[Desk]:
    async with GitLabServer() as server, a_world(folder, gitlab={"url": server.url}, **config) as world:
        bot, alice, gina = server.add_user("ravebot", bot=True), server.add_user("alice"), server.add_user("gina")
        project = server.add_project("group/app", public=True)
        for user, level in ((bot, DEVELOPER), (alice, DEVELOPER), (gina, GUEST)):
            server.set_role(project, user, level)
        gitlab = GitLab(server.url, server.token_for(bot), world.clock, 2)
        try:
            poller = Poller(world.config, world.database, gitlab, world.intents, world.clock, lambda _ok: None)
            yield Desk(server, world, gitlab, poller, project, alice, gina, bot)
        finally:
            server.restore()
            await gitlab.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_desk(tmp_path) as desk:
        yield desk


async def test_an_opened_merge_request_is_queued_and_a_merged_one_ended(desk: Desk) -> None:
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    assert await desk.states() == ["queued"]
    desk.server.merge(mr)
    await desk.tell(mr, "merge")
    await desk.work()
    assert await desk.states() == []
    assert await desk.outcomes() == ["queued", "ending: merged"]
    [event] = [event for event in await desk.world.events() if event.kind == "sandbox.queued"]
    assert (event.actor.kind, event.actor.name) == ("gitlab", "alice")


async def test_approvals_are_told_where_the_sandbox_is_told_of_once_each(desk: Desk) -> None:
    mr = desk.open()
    await desk.tell(mr)
    for key in ("one", "one"):  # GitLab sends it again when our answer was lost
        await desk.deliver(hooks.merge_request_event(desk.server.url, mr, desk.gina, "approval"), key)
    await desk.deliver(hooks.merge_request_event(desk.server.url, mr, desk.gina, "approved"), "two")
    await desk.deliver(hooks.merge_request_event(desk.server.url, mr, desk.gina, "unapproved"), "three")
    by_gitlab = hooks.merge_request_event(desk.server.url, mr, desk.alice, "unapproval")
    attributes = by_gitlab["object_attributes"]
    assert isinstance(attributes, dict)
    attributes.update(system=True, system_action="approvals_reset_on_push")
    await desk.deliver(by_gitlab, "four")
    await desk.work()
    lines = [json.loads(body)["text"] for _, _, kind, body in await desk.world.outbox() if kind == "history"]
    assert lines == [
        "the merge request was approved by gina (gitlab)",
        "the merge request was approved by gina (gitlab); it has every approval that it needs",
        "an approval of the merge request was taken back by gina (gitlab)",
        "an approval of the merge request was taken back by GitLab, as after new code",
    ]
    assert await desk.outcomes() == ["queued", *["mr.approved"] * 2, *["mr.unapproved"] * 2]
    other = desk.open("other")
    desk.server.close(other)
    await desk.deliver(hooks.merge_request_event(desk.server.url, other, desk.gina, "approved"), "five")
    await desk.work()
    assert (await desk.outcomes())[-1] == "an approval, but there is no sandbox"


async def test_a_project_that_is_not_configured_is_left_alone(desk: Desk) -> None:
    stranger = desk.server.add_project("elsewhere/app")
    mr = desk.server.open_merge_request(stranger, desk.alice)
    await desk.tell(mr)
    await desk.say(mr, desk.alice, "/sandbox start")
    await desk.work()
    assert await desk.outcomes() == ["elsewhere/app is not one of gitlab.projects"] * 2
    assert await desk.world.outbox() == []


@pytest.mark.parametrize(
    ("text", "emoji", "state"),
    [
        ("/sandbox start", "white_check_mark", ["queued"]),
        ("please\n/sandbox stop\n", "white_check_mark", []),
        ("/sandbox rebuild", "white_check_mark", ["queued"]),
    ],
)
async def test_a_developers_comment_is_obeyed_and_acknowledged_with_an_emoji(
    desk: Desk, text: str, emoji: str, state: list[str]
) -> None:
    mr = desk.open()
    await desk.tell(mr)
    await desk.say(mr, desk.alice, text)
    await desk.work()
    assert await desk.answers() == [emoji]
    assert await desk.states() == state


async def test_a_comment_lifts_the_hold_of_the_image(desk: Desk) -> None:
    image = str(desk.world.config.provider.image)
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    await desk.world.write(lambda tx: images.save(tx, ImageRecord(image, 3, "it broke")))
    await desk.say(mr, desk.alice, "/sandbox retry")
    await desk.work()
    assert (await desk.answers())[-1] == "white_check_mark"
    assert await desk.world.read(lambda tx: images.get(tx, image)) == ImageRecord(image)


async def test_an_extension_is_refused_with_its_reason_where_there_is_nothing_to_extend(desk: Desk) -> None:
    mr = desk.open()
    await desk.tell(mr)
    await desk.say(mr, desk.alice, "/sandbox extend 1h")
    await desk.work()
    emoji, text = await desk.answers()
    assert emoji == "no_entry_sign"
    assert text.startswith("The sandbox of group/app!1 is queued. Only a sandbox")


@pytest.mark.parametrize("verb", ["start", "stop", "extend 1h", "rebuild", "retry"])
async def test_a_guest_is_refused_by_rule_and_the_refusal_is_logged(desk: Desk, verb: str) -> None:
    mr = desk.open()
    await desk.tell(mr)
    await desk.say(mr, desk.gina, f"/sandbox {verb}")
    await desk.work()
    rule = "gina is Guest in group/app."
    advice = "This needs the role Developer or more: ask a Maintainer of group/app."
    assert await desk.answers() == ["no_entry_sign", f"Refused: {rule} {advice}"]
    event = (await desk.world.events())[-1]
    assert (event.kind, event.actor.name, event.data["rule"]) == ("command.refused", "gina", rule)
    assert await desk.states() == ["queued"]


async def test_somebody_who_is_no_member_is_refused(desk: Desk) -> None:
    mr, mallory = desk.open(), desk.server.add_user("mallory")
    await desk.say(mr, mallory, "/sandbox start")
    await desk.work()
    assert (await desk.answers())[1].startswith("Refused: mallory is no member of group/app on GitLab. This needs")
    assert await desk.states() == []


async def test_anybody_gets_help_and_a_wrong_command_is_told_its_usage(desk: Desk) -> None:
    mr = desk.open()
    await desk.say(mr, desk.gina, "/sandbox help")
    await desk.say(mr, desk.gina, "/sandbox help stop")
    await desk.say(mr, desk.alice, "/sandbox strat")
    await desk.say(mr, desk.alice, "/sandbox extend soon")
    await desk.work()
    emoji, helped, _, more, *wrong = await desk.answers()
    assert (emoji, helped) == ("white_check_mark", "help")
    assert more.startswith("`/sandbox stop` – end the sandbox.\nIts machine is shut down")
    assert wrong[0] == "no_entry_sign"
    assert wrong[1] == "There is no such command. Did you mean `/sandbox start [SHA]`?"
    assert wrong[3].endswith("or 1d. Type `/sandbox extend [1h]`.")


@pytest.mark.parametrize("text", ["/sandbox help", "/sandbox start", "/sandbox strat", "/sandbox"])
async def test_a_stranger_is_answered_once_an_hour_and_merge_request(desk: Desk, text: str) -> None:
    """An answer costs two requests, and GitLab limits all of the bot's comments together."""
    one, other, mallory, eve = desk.open(), desk.open(), desk.server.add_user("mallory"), desk.server.add_user("eve")
    for _ in range(5):
        await desk.say(one, mallory, text)
    await desk.work()
    assert len(await desk.answers()) == 2, "an emoji and a reply"
    assert "not answered" in (await desk.outcomes())[-1]
    await desk.say(other, mallory, text)
    await desk.say(one, eve, text)
    await desk.work()
    assert len(await desk.answers()) == 6, "another merge request, and another person"
    for row in await desk.world.read(lambda tx: tx.all("SELECT id FROM outbox")):
        await desk.world.write(partial(outbox.delivered, message_id=row["id"], result="1"))
    desk.world.clock.advance(timedelta(minutes=59))
    await desk.say(one, mallory, text)
    await desk.work()
    assert await desk.answers() == []
    desk.world.clock.advance(timedelta(minutes=2))
    await desk.say(one, mallory, text)
    await desk.work()
    assert len(await desk.answers()) == 2
    for _ in range(2):
        await desk.say(one, desk.gina, text)
    await desk.work()
    assert len(await desk.answers()) == 6, "a member is answered every time"


async def test_our_own_comments_are_not_commands(desk: Desk) -> None:
    mr = desk.open()
    await desk.say(mr, desk.bot, "/sandbox start")
    await desk.work()
    assert await desk.outcomes() == ["our own comment"]
    assert await desk.world.outbox() == []


async def test_the_file_of_a_forks_commit_counts_once_a_developers_comment_let_it_in(desk: Desk) -> None:
    fork = desk.server.add_project("mallory/app", public=True)
    files = {".rave.yml": "lifetime: 3h\nsetup: [make evil]\n"}
    mr = desk.server.open_merge_request(fork, desk.alice, files=files, fork_of=desk.project)
    await desk.tell(mr)
    await desk.work()
    ref, config = MergeRequestRef(desk.project.id, mr.iid), desk.world.config

    async def setup() -> tuple[str, ...]:
        known = await desk.world.read(lambda tx: merge_requests.get(tx, ref))
        assert known
        return (await desk.world.read(lambda tx: of_merge_request(tx, config, known))).setup

    assert await setup() == config.sandbox.setup
    await desk.say(mr, desk.alice, f"/sandbox start {mr.sha}")
    await desk.work()
    assert await desk.states() == [SandboxState.QUEUED.value]
    assert await setup() == ("make evil",)
    desk.server.push(mr, {"more": "code"})
    await desk.tell(mr, "update")
    await desk.work()
    assert await setup() == config.sandbox.setup


async def test_a_forks_commit_is_let_in_by_a_developers_comment_and_no_ones_else(desk: Desk) -> None:
    mallory = desk.server.add_user("mallory")
    fork = desk.server.add_project("mallory/app", public=True)
    desk.server.set_role(fork, mallory, MAINTAINER)
    mr = desk.server.open_merge_request(fork, mallory, fork_of=desk.project)
    await desk.tell(mr)
    await desk.say(mr, mallory, f"/sandbox start {mr.sha}")
    await desk.say(mr, desk.alice, "/sandbox start")
    await desk.work()
    assert await desk.states() == []
    assert (await desk.answers())[-1].endswith(f"To let in exactly this commit, type `/sandbox start {mr.sha}`.")
    await desk.say(mr, desk.alice, f"/sandbox start {mr.sha}")
    await desk.work()
    assert await desk.states() == ["queued"]


async def test_a_comment_names_the_head_that_gitlab_has_now_not_the_one_last_heard_of(desk: Desk) -> None:
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    head = desk.server.push(mr, {"new.txt": "new"})
    await desk.say(mr, desk.alice, f"/sandbox start {head[:8]}")
    await desk.work()
    assert [sandbox.sha for sandbox in await desk.world.read(sandboxes.live)] == [head]


async def test_a_doubled_delivery_is_acted_on_once(desk: Desk) -> None:
    mr = desk.open()
    body = hooks.merge_request_event(desk.server.url, mr, desk.alice, "open")
    assert await desk.deliver(body, "one key")
    assert not await desk.deliver(body, "one key")
    await desk.work()
    assert await desk.outcomes() == ["queued"]


async def test_a_comment_that_webhook_and_polling_both_bring_is_acted_on_once(desk: Desk) -> None:
    mr = desk.open()
    await desk.poller.look()
    note = await desk.say(mr, desk.alice, "/sandbox start")
    await desk.poller.look()
    await desk.work()
    assert await desk.answers() == ["white_check_mark"]
    other = await desk.say(mr, desk.alice, "/sandbox stop", webhook=False)
    await desk.poller.look()
    await desk.deliver(hooks.note_event(desk.server.url, mr, other, desk.alice, "create"))
    await desk.work()
    assert await desk.answers() == ["white_check_mark", "white_check_mark"]
    keys = await desk.world.read(lambda tx: tx.all("SELECT delivery_key FROM inbox ORDER BY id"))
    assert [row["delivery_key"] for row in keys] == [f"note:{note.id}", f"note:{other.id}"]


async def test_a_comment_that_is_edited_into_a_command_is_not_obeyed_by_polling_either(desk: Desk) -> None:
    mr = await desk.known_to_polling()
    edited = await desk.say(mr, desk.alice, "I wonder", webhook=False)
    desk.server.edit(mr, edited, desk.alice, "/sandbox stop")
    edited.updated_at = edited.created_at + timedelta(seconds=30)
    await desk.poll_again(mr)
    assert await desk.states() == ["queued"]
    resolved = await desk.say(mr, desk.alice, "/sandbox stop", webhook=False)
    resolved.in_thread = True
    resolved.updated_at = resolved.resolved_at = resolved.created_at + timedelta(seconds=30)
    await desk.poll_again(mr)
    assert await desk.states() == [], "the thread of a command may be resolved"


async def test_a_command_that_somebody_reacted_to_before_polling_found_it_is_obeyed(desk: Desk) -> None:
    """A reaction moves the comment's `updated_at` as an edit does."""
    mr = await desk.known_to_polling()
    note = await desk.say(mr, desk.alice, "/sandbox stop", webhook=False)
    note.created_at -= timedelta(seconds=20)
    gina = GitLab(desk.server.url, desk.server.token_for(desk.gina), desk.world.clock, 2)
    await gina.react(MergeRequestRef(desk.project.id, mr.iid), note.id, "thumbsup")
    await gina.close()
    assert note.updated_at - note.created_at > timedelta(seconds=10)
    await desk.poll_again(mr)
    assert await desk.states() == []


async def test_a_member_whose_request_fails_is_answered_again_a_minute_later(desk: Desk) -> None:
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    desk.server.fail(404, path=f"/merge_requests/{mr.iid}")  # what `start` asks for; every other request works
    for _ in range(2):
        for _ in range(2):
            await desk.say(mr, desk.alice, "/sandbox start")
            await desk.work()
        _, reply = await desk.answers()
        assert reply.startswith("GitLab does not have that, or I may not see it.")
        for row in await desk.world.read(lambda tx: tx.all("SELECT id FROM outbox")):
            await desk.world.write(partial(outbox.delivered, message_id=row["id"], result="1"))
        desk.world.clock.advance(timedelta(seconds=61))


async def test_while_gitlab_is_away_commands_are_kept_and_then_obeyed_in_their_order(desk: Desk) -> None:
    mr = desk.open()
    await desk.tell(mr)
    await desk.work()
    desk.server.fail(503)
    for verb in ("stop", "start", "stop"):
        await desk.say(mr, desk.alice, f"/sandbox {verb}")
    with suppress(TimeoutError):
        await desk.work(seconds=0.3)
    assert {request.status for request in desk.server.requests[-1:]} == {503}
    assert await desk.world.read(pending) == 3
    assert await desk.answers() == []
    desk.server.restore()
    desk.world.pass_by(minutes=1)
    await desk.work()
    assert await desk.answers() == ["white_check_mark"] * 3
    kinds = [kind for kind in await desk.world.kinds() if kind.startswith("sandbox.")]
    assert kinds == ["sandbox.queued", "sandbox.ended"] * 2


async def test_gitlabs_word_on_when_to_come_back_is_kept(desk: Desk) -> None:
    mr = desk.open()
    desk.server.fail(429, retry_after=300)
    await desk.say(mr, desk.alice, "/sandbox start")
    with suppress(TimeoutError):
        await desk.work(seconds=0.3)
    row = await desk.world.read(lambda tx: tx.one("SELECT next_attempt_at - received_at AS pause FROM inbox"))
    assert row
    assert row["pause"] == 300 * 1_000_000


async def test_an_outage_of_weeks_does_not_end_the_intake(desk: Desk) -> None:
    mr = desk.open()
    desk.server.fail(503)
    await desk.say(mr, desk.alice, "/sandbox start")
    await desk.world.write(lambda tx: tx.execute("UPDATE inbox SET attempts = 5000"))
    with suppress(TimeoutError):
        await desk.work(seconds=0.3)
    row = await desk.world.read(lambda tx: tx.one("SELECT attempts, next_attempt_at - received_at AS pause FROM inbox"))
    assert row
    assert (row["attempts"], row["pause"]) == (5001, 60 * 1_000_000)


@pytest.mark.parametrize(
    "body",
    ["no json", "[]", "null", "{}", '{"object_kind": "note"}', "[" * 5_000,
     '{"object_kind": "merge_request", "object_attributes": 5}'],
)  # fmt: skip
async def test_what_can_not_be_read_is_set_aside_and_the_lane_goes_on(desk: Desk, body: str) -> None:
    await desk.world.write(
        lambda tx: inbox.add(tx, source="gitlab", key="poison", lane=f"{desk.project.id}!1", kind="note", body=body)
    )
    await desk.tell(desk.open())
    with capture_logs() as logs:
        await desk.work()
    assert len(logs) >= 2
    first, second = await desk.outcomes()
    assert first.startswith("given up: ")
    assert second == "queued"


async def test_a_comment_on_a_merge_request_that_gitlab_no_longer_has_is_answered_and_set_aside(desk: Desk) -> None:
    mr = desk.open()
    note = desk.server.comment(mr, desk.alice, "/sandbox start")
    assert note
    body = hooks.note_event(desk.server.url, mr, note, desk.alice, "create")
    mr.iid = 99
    await desk.deliver(body)
    await desk.work()
    assert (await desk.outcomes())[0].startswith("given up: GitLab has no such thing")
    assert (await desk.answers())[0] == "no_entry_sign"


async def test_a_wake_up_is_enough_to_act_at_once(desk: Desk) -> None:
    mr = desk.open()
    intake = Intake(desk.world.database, {"gitlab": desk.handler()})
    task = asyncio.create_task(intake.run())
    try:
        await asyncio.sleep(0.05)
        await desk.tell(mr)
        async with asyncio.timeout(1):
            while not await desk.states():
                await asyncio.sleep(0.005)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_merge_requests_of_one_burst_are_all_handled(desk: Desk) -> None:
    for number in range(30):
        await desk.tell(desk.open(f"branch-{number}"))
    await desk.work()
    assert await desk.states() == [SandboxState.QUEUED.value] * 30
    queue = [sandbox.mr.iid for sandbox in await desk.world.read(sandboxes.live)]
    assert sorted(queue) == list(range(1, 31))
    assert queue[0] <= 8, "nearly in the order in which they came: some are handled at a time"
