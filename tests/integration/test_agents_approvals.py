"""People's answers to approvals: who may, by GitLab's word, where, and once; and what is asked in the first place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.agents.approvals import Answered, Approvals
from ravebot.agents.approved import ApprovedDiffs
from ravebot.agents.asking import MOST_COMMITS_A_DAY, MOST_FORKS_AN_HOUR, diff_of
from ravebot.agents.carryout import CarryOut
from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.diff.model import Change, ChangeKind, Diff
from ravebot.agents.model import (
    AgentDoor,
    Approval,
    ApprovalId,
    ApprovalKind,
    ApprovalState,
    Conversation,
    Turn,
    TurnState,
)
from ravebot.agents.progress import TurnProgress
from ravebot.agents.ruling import Ruling
from ravebot.agents.telling import ConversationTelling
from ravebot.commands.people import People
from ravebot.errors import Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.parts import make_diffs
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.intents import Advice, Intents, Outcome
from ravebot.sandboxes.model import Actor, MergeRequestRef, Person, Sandbox
from ravebot.store import agent_texts, approvals, conversations, events, merge_requests, outbox, sandboxes
from ravebot.store.database import Transaction
from tests.support.gitlab import DEVELOPER, GUEST, GitLabServer, MergeRequest, Project, User
from tests.support.records import ROOM, World, a_world, with_agents

pytestmark = pytest.mark.integration

DEV, OTHER, OPERATIONS = "!dev:example.org", "!other:example.org", "!operations:example.org"
ALICE, GINA, EVE = (Actor("matrix", f"@{name}:example.org") for name in ("alice", "gina", "eve"))
OPS, ROOT = Actor("matrix", "@ops:example.org"), Actor("shell", "root")
OPERATORS = "#operations:example.org"
S = ApprovalState


@dataclass
class Bench:
    """The engine over a real database and a GitLab of its own."""

    server: GitLabServer
    world: World
    approvals: Approvals
    intents: Intents
    work: CarryOut
    diffs: Diffs
    project: Project
    bot: User
    alice: User
    gina: User
    opened: list[MergeRequest] = field(default_factory=list)

    def commits(self) -> list[str]:
        """The messages of the commits that ravebot made on the branches of our merge requests."""
        state, project = self.server.state, self.project
        made = [project.facts[sha] for mr in self.opened for sha in state.history(project, mr.sha)]
        return [facts.message for facts in made if "Ravebot-Approval" in facts.message]

    async def keep(self, mr: MergeRequest, content: bytes = b"print(1)\n") -> str:
        """A diff of its sandbox that is kept; returns its hash."""
        changes = (Change("new.py", ChangeKind.CREATED, content, added=1),)
        return await self.diffs.keep(Diff(mr.sha, changes, "", ""))

    async def told(self, mr: MergeRequest) -> None:
        """As a webhook tells of it."""
        ref = MergeRequestRef(self.project.id, mr.iid)
        known = await self.approvals.people.present(ref)
        await self.world.write(lambda tx: self.intents.merge_request_reported(tx, known, Actor("gitlab", "alice")))

    def ours(self) -> MergeRequest:
        self.opened.append(self.server.open_merge_request(self.project, self.alice))
        return self.opened[-1]

    async def fork(self, *, draft: bool = False) -> MergeRequest:
        """A fork's, that waits."""
        mallory = self.server.add_user(f"mallory{len(self.server.state.merge_requests)}")
        fork = self.server.add_project(f"{mallory.username}/app", public=True)
        self.server.set_role(fork, mallory, DEVELOPER)
        mr = self.server.open_merge_request(fork, mallory, "From outside", fork_of=self.project, draft=draft)
        await self.told(mr)
        return mr

    async def ready(self, mr: MergeRequest) -> Sandbox:
        known = await self.approvals.people.present(MergeRequestRef(self.project.id, mr.iid))
        return await self.world.ready(known)

    async def talk(self, mr: MergeRequest, author: Actor = ALICE, agent: str = "coder") -> tuple[Conversation, Turn]:
        """A conversation about it in the room, with a turn that the agent has."""
        ref = MergeRequestRef(self.project.id, mr.iid)

        def begin(tx: Transaction) -> tuple[Conversation, Turn]:
            new = conversations.begin(tx, agent, AgentDoor.MATRIX, DEV, f"$root{mr.iid}", own_thread=True, mr=ref)
            said = conversations.add_message(tx, new.id, f"$said{mr.iid}", author, author, "fix it", 0)
            assert said
            return new, conversations.add_turn(tx, said, TurnState.WORKING)

        return await self.world.write(begin)

    async def all(self) -> tuple[Approval, ...]:
        return tuple(reversed(await self.world.read(lambda tx: approvals.newest(tx, 100))))

    async def the(self, kind: ApprovalKind) -> Approval:
        """The newest of that kind."""
        return [one for one in await self.all() if one.kind is kind][-1]

    async def answer(
        self, approval: Approval | int, who: Actor | Person, place: str = DEV, *, yes: bool = True, **how: Any
    ) -> Answered:
        number = approval if isinstance(approval, int) else approval.id
        take = await self.approvals.answer(ApprovalId(number), yes, who, place=place, **how)
        return await self.world.write(take)

    async def state(self, approval: Approval) -> ApprovalState:
        return next(one.state for one in await self.all() if one.id == approval.id)

    async def shown(self) -> list[tuple[str, str]]:
        """What waits to be told of questions: lane and what."""
        rows = [(lane, kind, json.loads(body)) for _, lane, kind, body in await self.world.outbox()]
        return [
            (lane, f"{kind} {body.get('approval', body.get('text', ''))}")
            for lane, kind, body in rows
            if kind in ("question", "remark", "news")
        ]

    async def live(self) -> list[str]:
        return [one.state.value for one in await self.world.read(sandboxes.live)]

    async def extend(self, mr: MergeRequest, by: Actor, span: timedelta) -> Outcome:
        ref = MergeRequestRef(self.project.id, mr.iid)

        def step(tx: Transaction) -> Outcome:
            known = merge_requests.get(tx, ref)
            assert known
            return self.intents.extend(tx, known, by, span)

        return await self.world.write(step)


@asynccontextmanager
async def a_bench(folder: Path, matrix: dict[str, Any] | None = None, **gitlab_section: str) -> AsyncIterator[Bench]:
    matrix = {"operations_room": OPERATORS} if matrix is None else matrix
    async with GitLabServer() as server:
        sections = {"gitlab": {"url": server.url, **gitlab_section}, "matrix": matrix}
        async with a_world(folder, **sections) as world:
            bot, alice, gina = server.add_user("ravebot"), server.add_user("alice"), server.add_user("gina")
            project = server.add_project("group/app", public=True)
            for user, level in ((bot, DEVELOPER), (alice, DEVELOPER), (gina, GUEST)):
                server.set_role(project, user, level)
            gitlab = GitLab(server.url, server.token_for(bot), world.clock, 2)
            people = People(world.config, world.database, gitlab)
            world.config = with_agents(world.config)
            engine = Approvals(world.config, ConversationTelling(world.config), world.database, people)
            intents = replace(world.intents, asking=engine)
            diffs = make_diffs(world.config, world.database, MemoryProvider(MemoryHost()), gitlab)
            work = CarryOut(
                world.database, engine, intents, ApprovedDiffs(world.database, diffs, world.config.matrix.users)
            )
            await world.write(lambda tx: outbox.set_room(tx, ROOM, DEV))
            await world.write(lambda tx: outbox.set_room(tx, OPERATORS, OPERATIONS))
            try:
                yield Bench(server, world, engine, intents, work, diffs, project, bot, alice, gina)
            finally:
                server.restore()
                await gitlab.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with a_bench(tmp_path) as made:
        yield made


async def question(bench: Bench, kind: ApprovalKind, agent: str = "coder") -> Approval:
    """One that is open."""
    if kind is ApprovalKind.FORK:
        await bench.fork()
        return await bench.the(kind)
    mr = bench.ours()
    sandbox = await bench.ready(mr)
    conversation, turn = await bench.talk(mr, agent=agent)
    if kind is ApprovalKind.EXTENSION:
        for span in (timedelta(days=1), timedelta(hours=1)):
            await bench.extend(mr, replace(ALICE, place=ROOM), span)
    elif kind is ApprovalKind.STOP:
        await bench.world.write(lambda tx: bench.approvals.ask_stop(tx, sandbox, ALICE.name, place=DEV, thread="$card"))
    elif kind is ApprovalKind.COMMIT:
        kept = await bench.keep(mr)
        await bench.world.write(
            lambda tx: bench.approvals.ask_commit(
                tx, conversation, sandbox, by=ALICE, diff_hash=kept, head_sha=mr.sha, summary={"a.py": "+1 −0"}
            )
        )
    elif kind is ApprovalKind.TOOL:
        progress = TurnProgress(bench.approvals.telling)
        await bench.world.write(lambda tx: progress.asks(tx, turn.id, "Run rm", '{"run": "rm"}'))
    else:
        await bench.world.write(lambda tx: bench.intents.stop(tx, _known(tx, sandbox.mr), ALICE))
        await bench.world.write(lambda tx: tx.execute("UPDATE sandboxes SET state = 'ended', ended_at = 1"))
        await bench.world.write(
            lambda tx: bench.approvals.ask_start(tx, turn, conversation, _known(tx, sandbox.mr), ALICE)
        )
    return await bench.the(kind)


def _known(tx: Transaction, ref: MergeRequestRef) -> Any:
    return merge_requests.get(tx, ref)


def who_may(kind: ApprovalKind) -> Actor:
    return OPS if kind is ApprovalKind.EXTENSION else ALICE


# Who, where, and once.


@pytest.mark.parametrize("kind", ApprovalKind)
async def test_each_kind_is_asked_in_the_room_and_answered_there_once(bench: Bench, kind: ApprovalKind) -> None:
    asked = await question(bench, kind)
    assert (ROOM, f"question {asked.id}") in [(lane.partition(" ")[0], what) for lane, what in await bench.shown()]
    assert (await bench.answer(asked, EVE)).ruling in (Ruling.NO_RIGHT, Ruling.ANOTHER)
    assert (await bench.answer(asked, GINA)).ruling in (Ruling.NO_RIGHT, Ruling.ANOTHER)
    first = await bench.answer(asked, who_may(kind))
    assert (first.ruling, first.text) == (Ruling.GRANTED, f"Approval {asked.id} is approved.")
    again = await bench.answer(asked, who_may(kind), yes=False)
    assert again.ruling is Ruling.ANSWERED
    assert again.text == f"Approval {asked.id} was answered by {who_may(kind)} before: it is approved."
    assert await bench.state(asked) is S.GRANTED
    verified = await bench.world.read(events.verify)
    assert verified.broken_at is None


@pytest.mark.parametrize("kind", ApprovalKind)
async def test_a_denied_one_does_nothing(bench: Bench, kind: ApprovalKind) -> None:
    asked = await question(bench, kind)
    before = await bench.live()
    assert (await bench.answer(asked, who_may(kind), yes=False)).ruling is Ruling.DENIED
    await bench.work.look()
    assert await bench.state(asked) is S.DENIED
    assert await bench.live() == before
    assert bench.commits() == []


@pytest.mark.parametrize("kind", ApprovalKind)
async def test_a_late_answer_does_nothing(bench: Bench, kind: ApprovalKind) -> None:
    asked = await question(bench, kind)
    bench.world.clock.advance(asked.expires_at - bench.world.clock.now())
    answered = await bench.answer(asked, who_may(kind))
    assert answered.ruling is Ruling.TOO_LATE
    assert await bench.state(asked) is S.EXPIRED
    assert bench.commits() == []


async def test_a_person_answers_on_the_merge_request_and_at_the_shell_too(bench: Bench) -> None:
    one, two = await question(bench, ApprovalKind.FORK), await question(bench, ApprovalKind.FORK)
    place = f"{bench.project.id}!1"
    alice, gina = Person(bench.alice.id, "alice"), Person(bench.gina.id, "gina")
    refused = await bench.answer(one, gina, place)
    assert refused.text.startswith("Refused: gina is Guest in group/app.")
    assert (await bench.answer(one, alice, "999!1")).ruling is Ruling.ELSEWHERE
    assert (await bench.answer(one, alice, place)).ruling is Ruling.GRANTED
    assert (await bench.answer(two, ROOT, "")).ruling is Ruling.GRANTED
    assert [event.actor for event in await bench.world.events() if event.kind == "approval.decided"] == [
        Actor("gitlab", "alice"),
        ROOT,
    ]


async def test_only_a_developer_on_gitlab_approves_a_commit_and_an_admin_or_the_shell_may_deny_it(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.COMMIT)
    admin = await bench.answer(asked, OPS)
    assert admin.ruling is Ruling.NO_RIGHT
    assert admin.text.startswith("Refused: Your Matrix account is not tied to a GitLab user.")
    shell = await bench.answer(asked, ROOT, "")
    assert shell.ruling is Ruling.NO_RIGHT
    assert "the role Developer or more on GitLab, and the shell does not know who you are there" in shell.text
    assert await bench.state(asked) is S.OPEN
    other = await question(bench, ApprovalKind.COMMIT)
    for one, who, place in ((asked, OPS, DEV), (other, ROOT, "")):
        assert (await bench.answer(one, who, place, yes=False)).ruling is Ruling.DENIED
    third = await question(bench, ApprovalKind.COMMIT)
    assert (await bench.answer(third, ALICE)).ruling is Ruling.GRANTED


async def test_an_answer_from_another_room_counts_only_where_the_person_may_command_the_project(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.FORK)
    foreign = await bench.answer(asked, ALICE, OTHER)
    assert foreign.ruling is Ruling.ELSEWHERE
    assert foreign.text == "Refused: This room is not mapped to that project. Answer it where it was asked."
    assert (await bench.answer(asked, ALICE, OTHER, direct=True)).ruling is Ruling.GRANTED


async def test_agents_bots_and_ravebot_itself_never_answer_and_get_no_word(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.FORK)
    bot = bench.server.add_user("project_7_bot_1a2b")
    bench.server.set_role(bench.project, bot, DEVELOPER)
    for who in (Actor("agent", "coder"), Person(bot.id, bot.username), Actor("ravebot", "ravebot")):
        assert await bench.answer(asked, who, f"{bench.project.id}!1") == Answered(Ruling.NO_PERSON)
    assert await bench.state(asked) is S.OPEN


async def test_only_an_admin_extends_past_the_longest_lifetime(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.EXTENSION)
    alice = Person(bench.alice.id, "alice")
    assert "Only an admin of ravebot" in (await bench.answer(asked, ALICE)).text
    assert "Only an admin of ravebot" in (await bench.answer(asked, alice, f"{bench.project.id}!1")).text
    assert (await bench.answer(asked, OPS, OTHER)).ruling is Ruling.ELSEWHERE
    assert (await bench.answer(asked, OPS, OPERATIONS)).ruling is Ruling.GRANTED


async def test_who_may_not_is_told_once_by_whom_it_is_answered_when_they_react(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.STOP)
    first = await bench.answer(asked, OPS, spoken=False)
    assert first.text == f"Approval {asked.id} waits for another answer. Who may give it: only {ALICE.name}."
    for who in (OPS, GINA, EVE):
        assert (await bench.answer(asked, who, spoken=False)).text == ""
    assert await bench.answer(asked, ALICE, spoken=False) == Answered(Ruling.GRANTED)
    assert await bench.answer(asked, ALICE, spoken=False) == Answered(Ruling.ANSWERED)
    assert await bench.answer(asked, OPS, spoken=False) == Answered(Ruling.ANOTHER)


async def test_a_number_that_names_nothing_is_said_to(bench: Bench) -> None:
    for number in (0, 99, -1, 10**30):
        assert await bench.answer(number, ALICE) == Answered(
            None, f"There is no approval {number}: the number stands in the question's message."
        )


async def test_an_answer_waits_while_gitlab_is_away_and_nothing_is_decided(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.FORK)
    bench.server.fail(503)
    with pytest.raises(Unavailable):
        await bench.answer(asked, ALICE)
    assert await bench.state(asked) is S.OPEN


async def test_of_several_at_once_the_first_counts(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.TOOL)
    takes = [
        await bench.approvals.answer(asked.id, yes, who, place=DEV)
        for who, yes in ((ALICE, True), (OPS, False), (ALICE, False), (OPS, True))
    ]
    answered = await asyncio.gather(*(bench.world.write(take) for take in takes))
    assert [one.ruling for one in answered].count(Ruling.ANSWERED) == 3
    assert sum(event.kind == "approval.decided" for event in await bench.world.events()) == 1


# A head that moved, and what is asked again.


async def test_a_fork_s_head_that_moved_is_not_let_in_but_asked_again(bench: Bench) -> None:
    mr = await bench.fork()
    asked = await bench.the(ApprovalKind.FORK)
    old, new = asked.head_sha, bench.server.push(mr, {"evil.txt": "evil"})
    answered = await bench.answer(asked, ALICE)
    assert answered.ruling is Ruling.CHANGED
    assert f"is {new[:12]} now, not {old[:12]}" in answered.text
    assert await bench.state(asked) is S.WITHDRAWN
    again = await bench.the(ApprovalKind.FORK)
    assert (again.state, again.head_sha) == (S.OPEN, new)
    assert new in again.payload
    assert await bench.live() == []


async def test_a_fork_is_asked_about_once_for_each_head(bench: Bench) -> None:
    mr = await bench.fork()
    for _ in range(3):
        await bench.told(mr)
    assert len(await bench.all()) == 1
    bench.server.push(mr, {"more.txt": "more"})
    mr.updated_at += timedelta(minutes=1)
    await bench.told(mr)
    assert [one.state for one in await bench.all()] == [S.WITHDRAWN, S.OPEN]
    await bench.answer((await bench.all())[-1], ALICE, yes=False)
    await bench.told(mr)
    assert [one.state for one in await bench.all()] == [S.WITHDRAWN, S.DENIED]


async def test_a_crowd_of_forks_and_of_pushes_does_not_fill_the_room(bench: Bench) -> None:
    mr = await bench.fork()
    for number in range(8):
        bench.server.push(mr, {"more.txt": str(number)})
        mr.updated_at += timedelta(minutes=1)
        await bench.told(mr)
    asked = await bench.all()
    assert len(asked) == MOST_COMMITS_A_DAY
    assert {one.state for one in asked} == {S.WITHDRAWN}
    for _ in range(10):
        await bench.fork()
    assert len(await bench.all()) == MOST_FORKS_AN_HOUR
    bench.world.pass_by(hours=1, seconds=1)
    await bench.fork()
    assert len(await bench.all()) == MOST_FORKS_AN_HOUR + 1


async def test_what_was_asked_is_not_kept_for_good(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.TOOL)
    await bench.answer(asked, ALICE)
    await bench.world.write(lambda tx: approvals.done(tx, asked, "the agent was told"))
    for days, kept in ((13, asked.payload), (2, asked.payload), (1, "")):
        if not kept:  # before, what shows it was not delivered
            await bench.world.empty_outbox()
        bench.world.pass_by(days=days)
        await bench.world.write(lambda tx: agent_texts.forget(tx, timedelta(days=14), 10))
        (found,) = await bench.all()
        assert (found.payload, found.payload_hash) == (kept, asked.payload_hash)


async def test_a_commit_s_head_that_moved_is_said_in_the_thread_with_what_to_do(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.COMMIT)
    bench.server.push(bench.opened[0], {"more.txt": "more"})
    assert (await bench.answer(asked, ALICE)).ruling is Ruling.CHANGED
    said = [what for _, what in await bench.shown() if what.startswith("remark")]
    assert len(said) == 1
    assert "was not granted" in said[0]
    assert "ask for the diff of group/app!1" in said[0]
    await bench.work.look()
    assert bench.commits() == []


async def test_another_diff_is_another_question(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.COMMIT)

    async def ask(diff_hash: str) -> Approval:
        def step(tx: Transaction) -> Approval:
            assert asked.conversation_id
            assert asked.sandbox_id
            conversation, sandbox = conversations.get(tx, asked.conversation_id), sandboxes.get(tx, asked.sandbox_id)
            assert conversation
            assert sandbox
            return bench.approvals.ask_commit(
                tx, conversation, sandbox, by=ALICE, diff_hash=diff_hash, head_sha=asked.head_sha,
                summary={"a.py": "+1 −0"},
            )  # fmt: skip

        return await bench.world.write(step)

    assert (await ask(diff_of(asked))).id == asked.id
    other = await ask("e" * 64)
    assert other.id != asked.id
    assert (await bench.answer(asked, ALICE)).ruling is Ruling.WITHDRAWN
    assert (await bench.answer(other, ALICE)).ruling is Ruling.GRANTED


async def test_a_question_whose_stored_text_was_changed_is_not_granted(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.TOOL)
    await bench.world.write(lambda tx: tx.execute("""UPDATE approvals SET payload = '{"run": "ls"}'"""))
    assert (await bench.answer(asked, ALICE)).ruling is Ruling.CHANGED
    assert await bench.state(asked) is S.WITHDRAWN


# Extensions.


async def test_an_extension_past_the_longest_lifetime_is_asked_of_the_admins(bench: Bench) -> None:
    mr = bench.ours()
    sandbox = await bench.ready(mr)
    by = replace(ALICE, place=ROOM, thread="$said")
    await bench.extend(mr, by, timedelta(days=1))
    refused = await bench.extend(mr, by, timedelta(hours=1))
    assert not refused.accepted
    assert refused.message == (
        "group/app!1 has its longest lifetime already, 8 h: it ends at 20:00 UTC."
        " An admin of ravebot is asked to keep it until 21:00 UTC: approval 1."
    )
    asked = await bench.the(ApprovalKind.EXTENSION)
    assert (asked.place, asked.thread, asked.sandbox_id) == (DEV, "$said", sandbox.id)
    assert any(lane == OPERATORS and "approve 1" in what for lane, what in await bench.shown())
    assert (await bench.extend(mr, by, timedelta(hours=1))).message == refused.message
    assert len(await bench.all()) == 1
    assert "approval 2" in (await bench.extend(mr, by, timedelta(hours=2))).message
    assert [one.state for one in await bench.all()] == [S.WITHDRAWN, S.OPEN]


async def test_an_admin_s_own_extension_needs_no_other_admin(bench: Bench) -> None:
    mr = bench.ours()
    await bench.ready(mr)
    for _ in range(2):
        assert (await bench.extend(mr, OPS, timedelta(hours=7))).accepted
    assert (await bench.world.read(sandboxes.live))[0].expires_at == bench.world.clock.now() + timedelta(hours=16)
    assert (await bench.extend(mr, OPS, timedelta(days=400))).message.endswith("(7 d more, not 400 d: 7 d at a time).")
    assert await bench.all() == ()


@pytest.mark.parametrize(
    ("matrix", "place"),
    [
        ({"operations_room": OPERATORS}, OPERATIONS),
        ({}, DEV),
        ({"admins": []}, None),
        ({"rooms": []}, None),
    ],
)
async def test_what_is_asked_on_gitlab_of_the_admins_is_asked_where_they_are(
    tmp_path: Path, matrix: dict[str, Any], place: str | None
) -> None:
    async with a_bench(tmp_path, matrix) as bench:
        mr = bench.ours()
        await bench.ready(mr)
        by = Actor("gitlab", "alice")
        await bench.extend(mr, by, timedelta(days=1))
        refused = await bench.extend(mr, by, timedelta(hours=1))
        assert not refused.accepted
        if place is None:
            assert refused.message == "group/app!1 has its longest lifetime already, 8 h: it ends at 20:00 UTC."
            assert refused.advice == Advice("For a fresh machine with a new end", "rebuild")
            assert await bench.all() == ()
        else:
            assert (await bench.the(ApprovalKind.EXTENSION)).place == place
            assert [what for _, what in await bench.shown()] == ["question 1"]


async def test_a_fork_s_draft_is_asked_about_when_it_is_finished(tmp_path: Path) -> None:
    async with a_bench(tmp_path, drafts="wait") as bench:
        mr = await bench.fork(draft=True)
        assert await bench.all() == ()
        bench.server.mark_ready(mr)
        await bench.told(mr)
        assert (await bench.the(ApprovalKind.FORK)).state is S.OPEN


async def test_new_code_of_a_fork_that_runs_already_is_asked_about(bench: Bench) -> None:
    mr = await bench.fork()
    await bench.answer(await bench.the(ApprovalKind.FORK), ALICE)
    await bench.work.look()
    new = bench.server.push(mr, {"more.txt": "more"})
    await bench.told(mr)
    asked = await bench.the(ApprovalKind.FORK)
    assert (asked.state, asked.head_sha) == (S.OPEN, new)
    await bench.answer(asked, ALICE)
    await bench.work.look()
    assert (await bench.world.read(sandboxes.live))[0].sha == new
    assert (await bench.the(ApprovalKind.FORK)).outcome == f"The sandbox of group/app!1 gets commit {new[:8]}."


async def test_one_answer_is_enough_where_several_rooms_are_asked(tmp_path: Path) -> None:
    rooms = [{"room": room, "projects": ["group/*"]} for room in (ROOM, OTHER)]
    async with a_bench(tmp_path, {"rooms": rooms}) as bench:
        await bench.fork()
        one, two = await bench.all()
        assert {one.place, two.place} == {DEV, OTHER}
        assert (await bench.answer(two, ALICE, OTHER)).ruling is Ruling.GRANTED
        late = await bench.answer(one, ALICE, yes=False)
        assert late.ruling is Ruling.WITHDRAWN
        assert "the same question, was answered by @alice:example.org" in late.text


async def test_a_start_drops_the_diffs_that_no_open_question_is_about(bench: Bench) -> None:
    asked = await question(bench, ApprovalKind.COMMIT)
    orphan = await bench.keep(bench.opened[-1], b"left by a crash\n")
    kept = bench.diffs.kept.folder
    assert {path.name for path in kept.iterdir()} == {diff_of(asked), orphan}
    await ApprovedDiffs(bench.world.database, bench.diffs, {}).clear()
    assert [path.name for path in kept.iterdir()] == [diff_of(asked)]
    await bench.answer(asked, ALICE)
    await ApprovedDiffs(bench.world.database, bench.diffs, {}).clear()
    await bench.work.look()
    assert len(bench.commits()) == 1
    assert list(kept.iterdir()) == []
