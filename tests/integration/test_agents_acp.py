"""Conversations with an agent in a guest, over real SSH: every way that a turn can go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ravebot.agents.model import ApprovalState, Turn, TurnId, TurnState
from ravebot.sandboxes.model import Machine, MergeRequest, SandboxState
from ravebot.store import agent_queue, approvals, conversations, sandboxes
from ravebot.store.database import Transaction
from tests.support.agent_world import AGENT_SOURCE, AgentWorld, a_guest_with_the_agent, an_agent_world
from tests.support.sshd import SshGuest

pytestmark = pytest.mark.integration
AGENT = "/home/agent/agent"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshGuest]:
    with a_guest_with_the_agent(tmp_path_factory.mktemp("guest")) as running:
        yield running


async def answered(world: AgentWorld, text: str) -> tuple[TurnState, str, str]:
    turn = await world.over(await world.say(text))
    return turn.state, turn.answer, turn.why


async def remarks(world: AgentWorld) -> list[str]:
    rows = await world.database.read(lambda tx: tx.all("SELECT body FROM outbox WHERE kind = 'remark' ORDER BY id"))
    return [json.loads(row["body"])["text"] for row in rows]


async def test_turns_are_answered_one_after_the_other_in_their_order(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        turns = [await world.say(f"do Look\nsay {number}") for number in range(8)]
        found = [await world.over(turn) for turn in turns]
        assert [(turn.state, turn.answer) for turn in found] == [(TurnState.DONE, str(number)) for number in range(8)]
        assert await world.prompts() == turns
        assert len(await world.folders()) == 1
        order = [turn.ended_at for turn in found]
        assert order == sorted(order, key=str)


@pytest.mark.parametrize(
    ("text", "state", "answer", "why"),
    [
        ("words 300", TurnState.DONE, "".join(f"{n} " for n in range(300)), ""),
        ("say one\ndo Read\nsay two", TurnState.DONE, "one\n\ntwo", ""),
        ("say half\nstop max_tokens", TurnState.FAILED, "half", "reached its limit of tokens"),
        ("stop refusal", TurnState.FAILED, "", "refused to go on"),
        ("stop something", TurnState.FAILED, "", "not known here: something"),
        ("fail the model is away", TurnState.FAILED, "", "reports an error: the model is away"),
        ("binary\njunk 100\nsay on", TurnState.DONE, "on", ""),
        ('raw {"jsonrpc":"2.0","method":"session/update","params":7}\nsay on', TurnState.DONE, "on", ""),
        ("method fs/read_text_file", TurnState.DONE, "[-32601]", ""),
    ],
)
async def test_a_turn_ends_as_the_agent_says(
    guest: SshGuest, tmp_path: Path, text: str, state: TurnState, answer: str, why: str
) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        found = await answered(world, text)
        assert found[:2] == (state, answer)
        assert why in found[2]


async def test_a_person_is_asked_only_about_the_kinds_that_are_configured(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT], approve=["edit"]) as world:
        assert await answered(world, "ask read Look into a file") == (TurnState.DONE, "[allow_once]", "")
        for decision, word in (
            (ApprovalState.GRANTED, "allow_once"),
            (ApprovalState.DENIED, "reject_once"),
            (ApprovalState.EXPIRED, "reject_once"),
        ):
            turn = await world.say("ask edit Change a file\nsay more")
            question = await world.question(turn)
            assert (await world.turn(turn)).state is TurnState.WAITING
            assert (question.title, json.loads(question.payload)["params"]["toolCall"]["rawInput"]) == (
                "Change a file",
                {"path": "Change a file"},
            )
            await world.decide(question, decision)
            assert (await world.over(turn)).answer == f"[{word}]more"
            done = await world.database.read(partial(approvals.get, approval_id=question.id))
            assert done
            assert done.done_at


async def test_what_can_not_be_granted_once_or_shown_whole_is_refused(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT], approve=["edit"]) as world:
        assert await answered(world, "always edit Everything") == (TurnState.DONE, "[cancelled]", "")
        assert await answered(world, "big 70000") == (TurnState.DONE, "[reject_once]", "")
        assert await answered(world, "unseen 60000") == (TurnState.DONE, "[reject_once]", "")
        assert await world.database.read(lambda tx: approvals.newest(tx, 10)) == ()


async def test_what_an_agent_asks_outside_a_turn_is_declined_and_nobody_is_asked(
    guest: SshGuest, tmp_path: Path
) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT], approve=["edit"]) as world:
        assert await answered(world, "afterwards Everything") == (TurnState.DONE, "", "")
        await asyncio.sleep(1.0)
        assert await answered(world, "outcomes") == (TurnState.DONE, "cancelled", "")
        assert await world.database.read(lambda tx: approvals.newest(tx, 10)) == ()


async def test_an_agent_that_asks_without_end_has_five_questions_open_and_the_others_are_refused(
    guest: SshGuest, tmp_path: Path
) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT], approve=["edit"]) as world:
        asks = [
            {
                "jsonrpc": "2.0",
                "id": number,
                "method": "session/request_permission",
                "params": {
                    "toolCall": {"kind": "edit", "title": f"Change {number}"},
                    "options": [{"optionId": "y", "kind": "allow_once"}, {"optionId": "n", "kind": "reject_once"}],
                },
            }
            for number in range(100, 140)
        ]
        turn = await world.say("\n".join(["wait 1", *(f"raw {json.dumps(one)}" for one in asks), "wait 2"]))
        ended = await world.over(turn)
        asked = await world.database.read(lambda tx: approvals.newest(tx, 100))
        assert (ended.state, len(asked)) == (TurnState.DONE, 5)
        given = [json.loads(line) for line in guest.lines((await world.folders())[0])]
        answers = [one["result"]["outcome"].get("optionId") for one in given if one.get("id") in range(100, 140)]
        assert answers == ["n"] * 35


async def test_an_answer_to_another_payload_than_was_asked_is_a_no(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        turn = await world.say("ask edit Change a file")
        question = await world.question(turn)
        sql = "UPDATE approvals SET payload = replace(payload, 'Change', 'Remove')"
        await world.database.write(lambda tx: tx.execute(sql))
        await world.decide(question, ApprovalState.GRANTED)
        assert (await world.over(turn)).answer == "[reject_once]"


async def test_a_turn_is_cancelled_also_while_a_person_is_asked(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        turn = await world.say("say a\nwait 60\nsay b")
        await world.until(lambda one: one.answer == "a", turn)
        later = await world.say("say later")
        await world.cancel(turn)
        assert (await world.over(turn)).state is TurnState.CANCELLED
        assert (await world.over(later)).answer == "later"
        turn = await world.say("ask edit Change\nsay b")
        question = await world.question(turn)
        await world.cancel(turn)
        ended = await world.over(turn)
        assert (ended.state, ended.answer) == (TurnState.CANCELLED, "[cancelled]")
        asked = await world.database.read(lambda tx: approvals.get(tx, question.id))
        assert asked
        assert asked.state is ApprovalState.WITHDRAWN
        assert len(await world.folders()) == 1


@pytest.mark.parametrize("how", ["deaf", "chatter"])
async def test_an_agent_that_does_not_stop_is_killed_and_the_next_one_says_that_it_remembers_nothing(
    guest: SshGuest, tmp_path: Path, how: str
) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        turn = await world.say(how)
        await world.until(lambda one: one.state is not TurnState.QUEUED, turn)
        await world.cancel(turn)
        assert (await world.over(turn, 15)).state is TurnState.CANCELLED
        assert await answered(world, "say back") == (TurnState.DONE, "back", "")
        assert await remarks(world) == ["The agent begins without memory of what was said here before."]


async def test_an_agent_that_can_not_be_told_to_stop_as_its_disk_is_full_is_killed(
    guest: SshGuest, tmp_path: Path
) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        turn = await running(world)
        queue = guest.file(f"{(await world.folders())[0]}/q")
        queue.rename(queue.with_name("gone"))  # nothing can be written there, as on a full disk
        await world.cancel(turn.id)
        assert (await world.over(turn.id, 10)).state is TurnState.CANCELLED
        assert await answered(world, "say on") == (TurnState.DONE, "on", "")


async def test_a_turn_that_takes_too_long_is_ended(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT], limits={"turn": "1s"}) as world:
        state, answer, why = await answered(world, "say a\nwait 60")
        assert (state, answer, why) == (TurnState.FAILED, "a", "It took longer than 1 s, the limit of a turn.")


async def test_an_agent_that_dies_in_a_turn_leaves_it_uncertain_and_the_next_turn_begins_anew(
    guest: SshGuest, tmp_path: Path
) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT, "load"]) as world:
        assert (await answered(world, "say first"))[0] is TurnState.DONE
        turn = await world.say("ask edit Change\nsay b")
        question = await world.question(turn)
        folder = (await world.folders())[-1]
        pid = int(guest.file(f"{folder}/pid").read_text())
        killer = guest.program("killer", f"#!/bin/sh\nkill -9 {pid}\n")
        await inside(guest, world, killer)
        ended = await world.over(turn)
        assert ended.state is TurnState.UNCERTAIN
        assert "its program ended with code 137" in ended.why
        asked = await world.database.read(lambda tx: approvals.get(tx, question.id))
        assert asked
        assert asked.state is ApprovalState.WITHDRAWN
        assert await answered(world, "say again") == (TurnState.DONE, "again", "")
        assert await remarks(world) == []  # it loaded its session, and what was replayed is not said again
        methods = [json.loads(line).get("method") for line in guest.lines((await world.folders())[-1])]
        assert methods == ["initialize", "session/load", "session/prompt"]


async def inside(guest: SshGuest, world: AgentWorld, program: str) -> None:
    """Run a program in the guest, beside the agent."""
    client = await world.driver.connections.start(guest.destination, program)
    await client.process.wait()
    await client.close()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["version=2"], "speaks version 2 of the Agent Client Protocol, but ravebot speaks 1"),
        (["login"], "wants a login first (Log in with a browser)"),
    ],
)
async def test_an_agent_that_can_not_be_used_is_said_to_be_so_at_once(
    guest: SshGuest, tmp_path: Path, arguments: list[str], why: str
) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT, *arguments]) as world:
        state, _, said = await answered(world, "say x")
        assert state is TurnState.DEAD
        assert why in said
        assert await world.prompts() == []
        async with asyncio.timeout(30):  # and it does not stay in the guest
            while not guest.file(f"{(await world.folders())[0]}/ended").exists():
                await asyncio.sleep(0.05)


async def test_a_missing_program_is_told_with_what_to_install(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, ["opencode", "acp"]) as world:
        state, _, why = await answered(world, "say x")
        assert (state, why) == (
            TurnState.DEAD,
            "The sandbox's image has no program `opencode`: install it in the image and rebuild the sandbox, or change "
            "agents[].acp.command of coder.",
        )


async def test_a_program_that_ends_before_it_is_ready_is_tried_a_few_times(guest: SshGuest, tmp_path: Path) -> None:
    broken = guest.program("broken", "#!/bin/sh\necho no such option >&2\nexit 64\n")
    async with an_agent_world(guest, tmp_path, [broken]) as world:
        state, _, why = await answered(world, "say x")
        assert state is TurnState.DEAD
        assert "its program ended with code 64, after it printed: no such option" in why
        assert len(await world.folders()) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("endless", "a line of its output is longer than 1024 KiB"),
        ("flood", "its output was more than 16 MiB in one turn"),
        ("junk 600", "lines of its output were not of the Agent Client Protocol"),
    ],
)
async def test_an_agent_that_sends_too_much_is_ended_and_its_turn_has_failed(
    guest: SshGuest, tmp_path: Path, text: str, why: str
) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        state, _, said = await answered(world, text)
        assert state is TurnState.FAILED
        assert why in said
        assert await answered(world, "say fine") == (TurnState.DONE, "fine", "")


async def test_another_host_key_is_told_and_nothing_is_sent(guest: SshGuest, tmp_path: Path) -> None:
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    async with an_agent_world(guest, tmp_path, [AGENT], runs=False) as world:
        await world.change_machine(host_keys=(other,))
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        state, _, why = await answered(world, "say x")
        assert state is TurnState.DEAD
        assert "shows another SSH host key" in why


@pytest.mark.parametrize("mended", [True, False])
async def test_a_guest_in_which_no_agent_can_be_started_says_why_at_once_and_is_tried_once_more(
    tmp_path: Path, mended: bool
) -> None:
    with a_guest_with_the_agent(tmp_path) as guest:
        in_the_way = guest.home / ".ravebot"
        in_the_way.write_text("a file")
        async with an_agent_world(guest, tmp_path / "bot", [AGENT]) as world:
            turn = await world.say("say hello")
            first = await world.until(lambda one: one.tries, turn)
            assert first.next_try_at
            assert 30 < (first.next_try_at - await world.database.read(lambda tx: tx.now)).total_seconds() <= 60
            (told,) = await remarks(world)
            assert told.startswith(
                "coder does not start. The sandbox says: the agent can't be started: ~/.ravebot must be a folder in"
                " which the sandbox's user can write (mkdir: "
            )
            if mended:
                in_the_way.unlink()
            await world.database.write(partial(tried_now, turn_id=turn))
            ended = await world.over(turn)
            assert ended.state is (TurnState.DONE if mended else TurnState.DEAD)
            assert mended or "Mend that there, or rebuild it, and ask again." in ended.why


def tried_now(tx: Transaction, turn_id: TurnId) -> None:
    """Its next try is due."""
    turn = conversations.turn(tx, turn_id)
    assert turn
    conversations.save_turn(tx, replace(turn, next_try_at=None))
    tx.wake("agents")


async def test_a_machine_that_lacks_the_control_key_gets_it_once(guest: SshGuest, tmp_path: Path) -> None:
    keys = guest.home / ".ssh/authorized_keys"
    right = keys.read_text()
    keys.write_text("")
    asked: list[str] = []

    async def authorize(machine: Machine, mr: MergeRequest) -> None:
        asked.append(f"{machine.name} {mr.full_ref}")
        keys.write_text(right)

    async with an_agent_world(guest, tmp_path, [AGENT], authorize=authorize) as world:
        assert await answered(world, "say x") == (TurnState.DONE, "x", "")
    assert asked == ["rave-guest group/app!1"]


async def test_an_idle_connection_is_ended_and_the_agent_lives_on(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT], idle_seconds=0.3) as world:
        for text in ("say one", "say two"):
            assert (await answered(world, text))[0] is TurnState.DONE
            async with asyncio.timeout(30):
                while list((tmp_path / "control").glob("*.log")):  # a client's, as long as it runs
                    await asyncio.sleep(0.05)
        assert len(await world.folders()) == 1
        methods = [json.loads(line).get("method") for line in guest.lines((await world.folders())[0])]
        assert methods == ["initialize", "session/new", "session/prompt", "session/prompt"]


async def test_a_fork_gets_no_agent_unless_it_is_allowed(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT], runs=False) as world:
        turn = await world.say("say x")
        await world.database.write(lambda tx: tx.execute("UPDATE merge_requests SET source_project_id = 99"))
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        ended = await world.over(turn)
        assert (ended.state, ended.why) == (TurnState.DEAD, "coder is off in forks: agents[].forks allows it.")
        assert await world.folders() == []


async def test_an_agent_that_is_taken_from_the_configuration_while_it_works_is_ended(
    guest: SshGuest, tmp_path: Path
) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        turn = await running(world)
    async with an_agent_world(guest, tmp_path, [AGENT], name="other") as world:
        ended = await world.over(turn.id)
        assert ended.state is TurnState.UNCERTAIN
        assert "no agent called coder with `acp` is configured any more" in ended.why
        assert (await world.database.read(agent_queue.live_processes)) == ()


async def running(world: AgentWorld) -> Turn:
    turn = await world.say("say a\nwait 60\nsay b")
    return await world.until(lambda one: one.answer == "a", turn)


async def test_a_machine_that_was_restarted_leaves_the_turn_uncertain(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        turn = await running(world)
        await world.change_machine(restarts=1)
        await world.database.write(lambda tx: tx.wake("agents"))
        ended = await world.over(turn.id)
        assert ended.state is TurnState.UNCERTAIN
        assert "its machine was restarted" in ended.why


async def test_a_sandbox_that_ended_leaves_the_turn_uncertain(guest: SshGuest, tmp_path: Path) -> None:
    async with an_agent_world(guest, tmp_path, [AGENT]) as world:
        turn = await running(world)

        def end(tx: Transaction) -> None:
            sandbox = sandboxes.latest(tx, world.mr.ref)
            assert sandbox
            sandboxes.save(tx, type(sandbox)(**{**vars(sandbox), "state": SandboxState.STOPPING}))

        await world.database.write(end)
        assert (await world.over(turn.id)).state is TurnState.UNCERTAIN


async def test_a_guest_that_loses_power_or_its_files_leaves_the_turn_uncertain(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for fresh in (False, True):
        guest = SshGuest(tmp_path, tmp_path / "state")
        with guest:
            guest.program("agent", AGENT_SOURCE.read_text())
            async with an_agent_world(guest, tmp_path / f"bot-{fresh}", [AGENT]) as world:
                turn = await running(world)
                guest.stop()
                await world.until(lambda one: one.tries > 0, turn.id)
                assert not (await world.turn(turn.id)).state.is_over
                guest.start(fresh=fresh)
                guest.program("agent", AGENT_SOURCE.read_text())
                ended = await world.over(turn.id)
                assert ended.state is TurnState.UNCERTAIN
                assert ("its folder in the guest is gone" if fresh else "its program ended") in ended.why
                assert await answered(world, "say back") == (TurnState.DONE, "back", "")
