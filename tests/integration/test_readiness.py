"""What /readyz says of each part: `ok` is only what was looked at lately, and worked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ravebot.agents.model import AgentDoor, TurnState
from ravebot.chat import Chat
from ravebot.config.model import AgentConfig, ApiConfig
from ravebot.errors import Forbidden, ProviderError, RavebotError, Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.refusals import Refusals
from ravebot.intake.matrix import MatrixJournal
from ravebot.intake.poll import Poller
from ravebot.matrix.client import MatrixClient
from ravebot.matrix.invites import Invites
from ravebot.matrix.rooms import RoomDirectory
from ravebot.matrix.sync import SyncLoop
from ravebot.notify.delivery import Delivery
from ravebot.operations.readiness import Readiness
from ravebot.operations.roomwatch import RoomWatch
from ravebot.providers.memory import MemoryHost, MemoryProvider
from ravebot.sandboxes.environments.model import EnvironmentState
from ravebot.sandboxes.model import RAVEBOT
from ravebot.store import conversations, environments, images, inbox, outbox
from ravebot.store.database import Transaction
from ravebot.store.images import ImageRecord
from ravebot.store.targets import GITLAB, MATRIX, TARGETS, Kind, NoteLane, RoomLane, Target
from ravebot.web.checks import Check, Checkup, State
from tests.integration.test_matrix_chat import FAR, Homeserver, refusal, until
from tests.integration.test_matrix_hostile import US, homeserver
from tests.support.edges import FarEnd
from tests.support.gitlab import DEVELOPER, GUEST, GitLabServer, Project, User
from tests.support.records import ROOM, a_merge_request
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration
ACP = {"owner": "alice", "projects": ["group/*"], "acp": {"command": ["coder"]}}
MR, SECOND = a_merge_request(1), a_merge_request(2)


@dataclass
class Ward:
    """Every part that readiness looks at: real ones, but for guests and firewall, at stand-ins on loopback."""

    yard: Yard
    server: GitLabServer
    homeserver: Homeserver
    gitlab: GitLab
    poller: Poller
    chat: Chat
    bot: User
    project: Project
    far: FarEnd
    webhooks: Refusals
    alerts: Refusals
    targets: tuple[Target, ...] = TARGETS

    async def check(self, name: str, programs: str | None = None) -> Check:
        """What a fresh look says, as /readyz does."""
        yard = self.yard
        readiness = Readiness(
            config=yard.config,
            clock=yard.clock,
            database=yard.database,
            chat=self.chat,
            gitlab=self.gitlab,
            webhooks=self.webhooks,
            alerts=self.alerts,
            poller=self.poller,
            core=yard.core,
            provider=yard.provider,
            firewall=yard.fence,
            targets=self.targets,
            programs=programs,
        )
        checks = readiness.checks()
        assert name in checks, f"nobody looks at the {name}"
        return (await Checkup({name: checks[name]}).run())[name]

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        async with at_work(self.poller.run()):
            yield

    async def polled(self) -> None:
        """One poll that worked, and then none."""
        self.poller.looked_at = None
        async with self.polling():
            await until(lambda: self.poller.looked_at is not None)

    async def synced(self) -> None:
        """One sync that worked, rooms looked up, and then nothing."""
        async with at_work(self.chat.run()):
            await until(lambda: self.chat.sync.last_success is not None)
            await until(lambda: not any("not looked up" in one.problem for one in self.chat.rooms.statuses()))

    async def deliver(self, until_done: Callable[[], bool]) -> None:
        """The outbox of GitLab at work."""
        delivery = Delivery(self.yard.database, GITLAB, self.far, lambda _target, _result: None)
        async with at_work(delivery.run()):
            await until(until_done)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def at_work(loop: object) -> AsyncIterator[None]:
    task = asyncio.ensure_future(loop)  # type: ignore[call-overload]
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def a_ward(
    folder: Path,
    rooms: tuple[str, ...] = (ROOM,),
    projects: tuple[str, ...] = ("group/*",),
    provider: MemoryProvider | None = None,
) -> AsyncIterator[Ward]:
    far_server = Homeserver()
    async with GitLabServer() as server, homeserver(far_server.answer) as url:
        mapped = [{"room": room, "projects": ["group/*"]} for room in rooms]
        changes: dict[str, Any] = {
            "gitlab": {"url": server.url, "poll": "1s", "projects": projects},
            "matrix": {"homeserver": url, "user_id": US, "rooms": mapped},
        }
        async with a_yard(folder, provider, **changes) as yard:
            bot = server.add_user("ravebot")
            project = server.add_project("group/app", public=True)
            server.set_role(project, bot, DEVELOPER)
            gitlab = GitLab(server.url, server.token_for(bot), yard.clock, 2)
            poller = Poller(
                yard.config, yard.database, gitlab, yard.intents, yard.clock, lambda _ok: None,
                on_missed=lambda: made.webhooks.missed(),
            )  # fmt: skip
            client = MatrixClient(yard.config.matrix, "password", folder, timeout_seconds=5)
            try:
                made = Ward(
                    yard,
                    server,
                    far_server,
                    gitlab,
                    poller,
                    a_chat(yard, client),
                    bot,
                    project,
                    FarEnd(),
                    Refusals(yard.clock),
                    Refusals(yard.clock, "requests to /webhooks/alertmanager"),
                )
                yield made
            finally:
                server.restore()
                far_server.over.set()
                await gitlab.close()
                await client.close()


def a_chat(yard: Yard, client: MatrixClient) -> Chat:
    directory = RoomDirectory(client, yard.config.matrix.rooms, yard.clock)
    invites = Invites(client, (), yard.clock, directory.joined, directory.is_configured)
    return Chat(
        client,
        directory,
        RoomWatch(yard.database, client, directory, yard.config.matrix.operations_room, yard.config.matrix.admins),
        SyncLoop(client, MatrixJournal(yard.database, "!rave"), yard.clock, invites, on_changed=directory.changed),
        Delivery(yard.database, MATRIX, FarEnd(), lambda _target, _result: None),
        yard.database,
        yard.metrics,
    )


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    async with a_ward(tmp_path) as ward:
        yield ward


async def test_gitlab_is_not_known_before_the_first_poll(ward: Ward) -> None:
    check = await ward.check("gitlab")
    assert check.state is State.UNKNOWN


async def test_gitlab_is_ok_while_polls_work(ward: Ward) -> None:
    await ward.polled()
    check = await ward.check("gitlab")
    assert check.state is State.OK


async def test_gitlab_polls_that_find_no_project_at_all_are_not_called_well(tmp_path: Path) -> None:
    async with a_ward(tmp_path, projects=("elsewhere/*",)) as ward:
        await ward.polled()
        check = await ward.check("gitlab")
    assert check.state is State.FAILED
    assert "elsewhere/*: " in check.detail


@pytest.mark.parametrize("later", [timedelta(hours=12), -timedelta(hours=1)])
async def test_gitlab_is_not_known_any_more_when_polls_stopped_also_when_the_clock_was_set_back(
    ward: Ward, later: timedelta
) -> None:
    await ward.polled()
    ward.yard.clock.advance(later)
    check = await ward.check("gitlab")
    assert check.state is State.UNKNOWN


async def test_environments_are_degraded_where_gitlab_refuses_them_or_does_not_list_them(ward: Ward) -> None:
    yard, mr = ward.yard, SECOND
    assert (await ward.check("environments")).state is State.OK
    await yard.ready(mr)

    def change(tx: Transaction, **facts: Any) -> None:
        known = environments.get(tx, mr.ref)
        assert known
        environments.save(tx, replace(known, **facts))

    await yard.write(partial(change, environment_refused="give its user the role Developer"))
    check = await ward.check("environments")
    assert (check.state, check.detail) == (State.DEGRADED, "group/app: give its user the role Developer")
    there: dict[str, Any] = {"environment_refused": "", "environment_id": 5, "seen_at": yard.clock.now()}
    await yard.write(partial(change, state=EnvironmentState.AVAILABLE, **there))
    assert (await ward.check("environments")).state is State.OK
    yard.pass_by(minutes=4)
    check = await ward.check("environments")
    assert check.state is State.DEGRADED
    assert "can't be listed" in check.detail


async def test_gitlab_failed_when_the_last_poll_did_though_it_answers(ward: Ward) -> None:
    await ward.polled()
    ward.server.fail(500, path=r"/projects$")
    async with ward.polling():
        await until(lambda: bool(ward.poller.problem))
    check = await ward.check("gitlab")
    assert check.state is State.FAILED
    assert "GitLab answers 500" in check.detail


async def test_gitlab_failed_when_it_refuses_every_project(ward: Ward) -> None:
    await ward.polled()
    ward.server.fail(403, path=r"/projects/\d+/merge_requests$")
    requests = len(ward.server.requests)
    async with ward.polling():
        await until(lambda: len(ward.server.requests) > requests + 1)
        await asyncio.sleep(0.2)
    check = await ward.check("gitlab")
    assert check.state is State.FAILED
    assert "group/app" in check.detail


@pytest.mark.parametrize("status", [403, 500])
async def test_one_project_that_can_not_be_looked_at_makes_gitlab_degraded_and_holds_up_no_other(
    ward: Ward, status: int
) -> None:
    broken = ward.server.add_project("group/broken")
    behind = ward.server.add_project("group/behind")
    for project, level in ((broken, GUEST), (behind, GUEST)):  # so each is asked for by itself
        ward.server.set_role(project, ward.bot, level)
    ward.server.fail(status, path=rf"/projects/{broken.id}/")
    await ward.polled()
    check = await ward.check("gitlab")
    assert check.state is State.DEGRADED
    assert "group/broken: " in check.detail
    assert any(f"/projects/{behind.id}/merge_requests" in request.path for request in ward.server.requests)


async def test_one_refused_project_makes_gitlab_degraded_and_is_named(ward: Ward) -> None:
    closed = ward.server.add_project("group/closed")
    ward.server.set_role(closed, ward.bot, GUEST)
    await ward.polled()
    check = await ward.check("gitlab")
    assert check.state is State.DEGRADED
    assert "group/closed" in check.detail
    assert "group/app" not in check.detail


async def test_gitlab_comments_that_can_not_be_read_are_that_projects_trouble_and_named(ward: Ward) -> None:
    alice = ward.server.add_user("alice")
    mr = ward.server.open_merge_request(ward.project, alice, "Add a feature", "feature")
    ward.server.fail(403, path=rf"/merge_requests/{mr.iid}/notes")
    await ward.polled()
    check = await ward.check("gitlab")
    assert check.state is State.DEGRADED
    assert "group/app: comments on !1" in check.detail
    ward.server.restore()
    await ward.polled()
    assert (await ward.check("gitlab")).state is State.OK


async def test_strangers_who_send_wrong_secrets_and_tokens_do_not_decide_whether_we_are_well(ward: Ward) -> None:
    mr = ward.server.open_merge_request(ward.project, ward.server.add_user("alice"), "Add login", "login")
    await ward.polled()
    for refusals in (ward.webhooks, ward.alerts):
        refusals.refused("it is wrong")
    ward.server.comment(mr, ward.server.add_user("bob"), "nothing that concerns ravebot")
    await ward.polled()
    assert [(await ward.check(name)).state for name in ("gitlab", "alerts")] == [State.OK, State.OK]
    assert "; webhooks are refused (1 since" in (await ward.check("gitlab")).detail
    assert "requests to /webhooks/alertmanager are refused (1 since" in (await ward.check("alerts")).detail


async def test_gitlab_degraded_after_webhooks_were_refused_for_their_secret_and_a_poll_found_what_they_told(
    ward: Ward,
) -> None:
    await ward.polled()
    for _ in range(2):
        ward.webhooks.refused("the secret token is wrong")
    assert (await ward.check("gitlab")).state is State.OK
    mr = ward.server.open_merge_request(ward.project, ward.server.add_user("alice"), "Add login", "login")
    await ward.polled()
    check = await ward.check("gitlab")
    assert check.state is State.DEGRADED
    assert check.detail.startswith("webhooks are refused (2 since 2026-01-01 12:00 UTC")
    assert "the secret token is wrong" in check.detail
    ward.webhooks.accepted()
    assert (await ward.check("gitlab")).state is State.OK
    ward.webhooks.refused("the secret token is wrong")
    assert (await ward.check("gitlab")).state is State.OK
    ward.server.comment(mr, ward.server.add_user("bob"), "/sandbox status")
    await ward.polled()
    assert (await ward.check("gitlab")).state is State.DEGRADED
    ward.yard.pass_by(minutes=61)
    await ward.polled()
    assert (await ward.check("gitlab")).state is State.OK


async def test_gitlab_a_configured_project_that_is_not_among_the_bots_is_named(tmp_path: Path) -> None:
    async with a_ward(tmp_path, projects=("group/app", "group/gone")) as ward:
        await ward.polled()
        check = await ward.check("gitlab")
    assert check.state is State.DEGRADED
    assert check.detail.startswith("group/gone: ")


async def test_gitlab_failed_when_it_does_not_answer_though_the_last_poll_worked(ward: Ward) -> None:
    await ward.polled()
    ward.server.fail(502)
    check = await ward.check("gitlab")
    assert check.state is State.FAILED
    assert "GitLab answers 502" in check.detail


async def test_one_refused_project_makes_the_outbox_degraded_and_is_named(ward: Ward) -> None:
    await ward.yard.ready(MR)
    ward.far.refuses["7!1"] = Forbidden("GitLab refuses it (403: archived)")
    await ward.deliver(lambda: bool(ward.far.tried))
    ward.yard.pass_by(hours=1)
    await ward.yard.write(lambda tx: tx.execute("UPDATE outbox SET delivered_at = 1 WHERE target = 'matrix'"))
    check = await ward.check("outbox")
    assert check.state is State.DEGRADED
    assert "group/app!1" in check.detail
    assert "archived" in check.detail


async def test_outbox_failed_when_anything_else_waits_longer_than_five_minutes(ward: Ward) -> None:
    await ward.yard.ready(MR)
    ward.far.refuses["7!1"] = Forbidden("GitLab refuses it (403: archived)")
    await ward.deliver(lambda: bool(ward.far.tried))
    await ward.yard.write(lambda tx: tx.execute("UPDATE outbox SET delivered_at = 1 WHERE target = 'matrix'"))
    await ward.yard.write(lambda tx: outbox.add(tx, NoteLane(SECOND.ref), Kind.NOTE, body={}))
    assert (await ward.check("outbox")).state is State.DEGRADED
    ward.yard.pass_by(minutes=6)
    check = await ward.check("outbox")
    assert check.state is State.FAILED
    assert "7!2" in check.detail


async def test_outbox_failed_when_a_message_waits_that_the_clock_says_is_of_tomorrow(ward: Ward) -> None:
    await ward.yard.write(lambda tx: outbox.add(tx, NoteLane(SECOND.ref), Kind.NOTE, body={}))
    ward.yard.pass_by(days=-1)
    assert (await ward.check("outbox")).state is State.FAILED


async def test_outbox_one_rooms_backlog_is_that_rooms_while_the_room_has_a_problem(tmp_path: Path) -> None:
    async with a_ward(tmp_path, (ROOM, FAR)) as ward:
        await ward.synced()
        await ward.yard.write(lambda tx: outbox.add(tx, RoomLane(FAR), Kind.SAY, body={"text": "x"}))
        ward.yard.pass_by(minutes=6)
        check = await ward.check("outbox")
        assert check.state is State.DEGRADED
        assert check.detail.startswith(f"{FAR}: ")
        await ward.yard.write(lambda tx: outbox.add(tx, RoomLane(ROOM), Kind.SAY, body={"text": "x"}))
        ward.yard.pass_by(minutes=6)
        assert (await ward.check("outbox")).state is State.FAILED


async def test_matrix_is_not_known_before_the_first_sync(ward: Ward) -> None:
    check = await ward.check("matrix")
    assert check.state is State.UNKNOWN


async def test_matrix_is_ok_once_synced_and_in_its_rooms(ward: Ward) -> None:
    await ward.synced()
    check = await ward.check("matrix")
    assert check.state is State.OK


@pytest.mark.parametrize("later", [timedelta(minutes=3), -timedelta(hours=1)])
async def test_matrix_is_not_known_any_more_when_syncs_stopped_also_when_the_clock_was_set_back(
    ward: Ward, later: timedelta
) -> None:
    await ward.synced()
    ward.yard.clock.advance(later)
    assert (await ward.check("matrix")).state is State.UNKNOWN


async def test_matrix_failed_when_the_homeserver_answers_with_errors(ward: Ward) -> None:
    await ward.synced()
    ward.homeserver.sync_answers = [refusal(502, "M_UNKNOWN")] * 50
    async with at_work(ward.chat.run()):
        await until(lambda: bool(ward.chat.sync.problem))
        check = await ward.check("matrix")
    assert check.state is State.FAILED


async def test_matrix_one_rooms_problem_is_that_rooms_and_is_named(tmp_path: Path) -> None:
    async with a_ward(tmp_path, (ROOM, FAR)) as ward:
        await ward.synced()
        check = await ward.check("matrix")
        assert check.state is State.DEGRADED
        assert FAR in check.detail


async def test_matrix_failed_when_every_room_has_a_problem(tmp_path: Path) -> None:
    async with a_ward(tmp_path, (FAR,)) as ward:
        await ward.synced()
        check = await ward.check("matrix")
        assert check.state is State.FAILED
        assert FAR in check.detail


async def test_provider_is_not_known_before_the_first_pass(ward: Ward) -> None:
    assert (await ward.check("provider")).state is State.UNKNOWN


async def test_provider_and_firewall_are_ok_after_a_pass(ward: Ward) -> None:
    await ward.yard.go()
    for name in ("provider", "firewall"):
        assert (await ward.check(name)).state is State.OK


async def test_firewall_failed_while_another_one_drops_the_sandboxes_traffic(ward: Ward) -> None:
    await ward.yard.go()
    ward.yard.fence.conflicts = ["the chain ip filter FORWARD drops connections to the sandboxes: run `…`"]
    check = await ward.check("firewall")
    assert (check.state, check.detail) == (State.FAILED, ward.yard.fence.conflicts[0])


async def test_firewall_is_degraded_while_it_would_not_survive_a_flush(ward: Ward) -> None:
    await ward.yard.go()
    ward.yard.fence.weakness = "tc can't be run"
    check = await ward.check("firewall")
    assert (check.state, check.detail) == (State.DEGRADED, "tc can't be run")


@pytest.mark.parametrize("call", ["open", "list"])
async def test_provider_failed_while_it_can_not_be_opened_or_listed_though_it_answers(ward: Ward, call: str) -> None:
    error: RavebotError = ProviderError("the storage pool of another instance is in the way")
    if call == "list":
        await ward.yard.go()
    ward.yard.provider.fails[call] = error
    await ward.yard.go()
    check = await ward.check("provider")
    assert check.state is State.FAILED
    assert "in the way" in check.detail
    ward.yard.provider.fails.clear()
    await ward.yard.go()
    assert (await ward.check("provider")).state is State.OK


async def test_provider_failed_and_firewall_not_known_while_another_instances_storage_pool_is_in_the_way(
    tmp_path: Path,
) -> None:
    host = MemoryHost()
    await MemoryProvider(host, instance_id="other", storage="disks").open()
    async with a_ward(tmp_path, provider=MemoryProvider(host, storage="disks")) as ward:
        await ward.yard.go()
        assert await ward.yard.provider.connected()
        check = await ward.check("provider")
        assert check.state is State.FAILED
        assert "another ravebot, of instance id other, has its storage disks" in check.detail
        assert (await ward.check("firewall")).state is State.UNKNOWN


async def test_provider_failed_while_nobody_can_be_let_in(ward: Ward) -> None:
    await ward.yard.queued(MR)
    ward.yard.provider.fails["host"] = Unavailable("the storage pool does not say how large it is")
    await ward.yard.go()
    check = await ward.check("provider")
    assert check.state is State.FAILED
    assert "does not say how large it is" in check.detail
    ward.yard.provider.fails.clear()
    await ward.yard.go()
    assert (await ward.check("provider")).state is State.OK


async def test_provider_failed_while_a_pass_never_ends(ward: Ward) -> None:
    await ward.yard.go()
    ward.yard.provider.hold["list"] = asyncio.Event()
    async with at_work(ward.yard.core.pool.run()):
        await until(lambda: ward.yard.provider.count("list") == 2)
        assert (await ward.check("provider")).state is State.OK
        ward.yard.pass_by(seconds=16)
        check = await ward.check("provider")
    assert check.state is State.FAILED


@pytest.mark.parametrize("later", [timedelta(minutes=1), -timedelta(hours=1)])
@pytest.mark.parametrize("name", ["provider", "firewall"])
async def test_provider_and_firewall_are_not_known_when_passes_stopped_also_when_the_clock_was_set_back(
    ward: Ward, name: str, later: timedelta
) -> None:
    await ward.yard.go()
    ward.yard.clock.advance(later)
    assert (await ward.check(name)).state is State.UNKNOWN


async def test_provider_failed_while_somebody_must_decide_about_machines_it_does_not_know(tmp_path: Path) -> None:
    host = MemoryHost()
    host.put("rave-test-from-before")
    async with a_ward(tmp_path, provider=MemoryProvider(host)) as ward:
        await ward.yard.go()
        check = await ward.check("provider")
        assert check.state is State.FAILED
        assert "ravebot cleanup" in check.detail


async def test_provider_failed_when_libvirt_does_not_answer(ward: Ward) -> None:
    await ward.yard.go()
    ward.yard.provider.fails["connected"] = Unavailable("away")
    assert (await ward.check("provider")).state is State.FAILED


async def test_firewall_is_not_known_before_it_was_verified(ward: Ward) -> None:
    assert (await ward.check("firewall")).state is State.UNKNOWN


async def test_firewall_is_not_known_while_its_rules_are_written_for_the_first_time(ward: Ward) -> None:
    ward.yard.fence.hold = asyncio.Event()
    async with at_work(ward.yard.core.pool.run()):
        await until(lambda: ward.yard.fence.waiting)
        assert (await ward.check("firewall")).state is State.UNKNOWN
        ward.yard.fence.hold.set()
        await until(lambda: ward.yard.fence.there)
        await until(lambda: ward.yard.core.guard.looked_at is not None)
        assert (await ward.check("firewall")).state is State.OK


async def test_firewall_failed_when_it_can_not_be_verified(ward: Ward) -> None:
    await ward.yard.go()
    ward.yard.fence.away = True
    ward.yard.core.guard.alarm()
    await ward.yard.go()
    check = await ward.check("firewall")
    assert check.state is State.FAILED
    assert "nftables does not answer" in check.detail


async def test_firewall_failed_when_who_connected_can_not_be_read(ward: Ward) -> None:
    await ward.yard.go()
    ward.yard.fence.away = True  # the rules were verified a moment ago, and are not looked at again yet
    ward.yard.pass_by(seconds=6)
    await ward.yard.go()
    check = await ward.check("firewall")
    assert check.state is State.FAILED
    assert "nftables does not answer" in check.detail


async def test_inbox_failed_when_requests_are_not_handled_for_five_minutes(ward: Ward) -> None:
    for number in range(2):
        await ward.yard.write(
            partial(inbox.add, source="gitlab", key=f"k{number}", lane=f"7!{number}", kind="note", body="{}")
        )
    assert (await ward.check("inbox")).state is State.OK
    ward.yard.pass_by(minutes=6)
    check = await ward.check("inbox")
    assert check.state is State.FAILED
    assert check.detail.startswith("2 requests")
    assert "12:00" in check.detail


async def test_agents_degraded_when_one_can_not_be_reached_in_its_sandbox(ward: Ward) -> None:
    def said(tx: Transaction, tries: int) -> None:
        here = conversations.begin(tx, "coder", AgentDoor.SHELL, "", f"{tries}", own_thread=True, mr=MR.ref)
        message = conversations.add_message(tx, here.id, "1", RAVEBOT, RAVEBOT, "hello", 0)
        assert message
        turn = conversations.add_turn(tx, message, TurnState.QUEUED)
        conversations.save_turn(tx, replace(turn, tries=tries))

    await ward.yard.write(partial(said, tries=1))
    assert (await ward.check("agents")).state is State.OK
    await ward.yard.write(partial(said, tries=5))
    check = await ward.check("agents")
    assert (check.state, check.detail) == (
        State.DEGRADED,
        "coder can't be reached: 1 conversations wait; the log says why",
    )


@pytest.mark.parametrize(("keys", "state"), [({}, State.OK), (ACP, State.FAILED)])
async def test_agents_failed_when_there_is_no_ssh_client_for_one_in_a_sandbox(
    ward: Ward, tmp_path: Path, keys: dict[str, object], state: State
) -> None:
    agent = AgentConfig.model_validate({"name": "coder", **keys})
    ward.yard.config = ward.yard.config.model_copy(update={"agents": (agent,)})
    check = await ward.check("agents", programs=str(tmp_path))
    assert check.state is state
    assert check.fit or "apt-get install openssh-client" in check.detail


async def test_image_failed_while_it_is_held_and_says_what_lifts_it(ward: Ward) -> None:
    image = str(ward.yard.config.provider.image)
    assert (await ward.check("image")).state is State.OK
    await ward.yard.write(lambda tx: images.save(tx, ImageRecord(image, 3, "its agent never answered")))
    check = await ward.check("image")
    assert check.state is State.FAILED
    assert "its agent never answered" in check.detail
    assert "retry" in check.detail
    await ward.yard.write(lambda tx: images.save(tx, ImageRecord(image)))
    assert (await ward.check("image")).state is State.OK


async def test_the_api_is_asked_on_its_own_address(ward: Ward) -> None:
    assert (await ward.check("api")).state is State.OK
    with socket.create_server(("127.0.0.1", 0)) as silent:
        listen = f"127.0.0.1:{silent.getsockname()[1]}"
    api = ApiConfig(listen=listen)
    ward.yard.config = ward.yard.config.model_copy(update={"api": api})
    nobody = await ward.check("api")
    assert (nobody.state, "does not answer" in nobody.detail) == (State.FAILED, True)
