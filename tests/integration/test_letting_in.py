"""Who may log in follows GitLab, and what lost keys have open is ended."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import asyncssh
import pytest

from ravebot.errors import Forbidden, GuestError, Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.providers.base import RunResult
from ravebot.providers.memory import MemoryProvider
from ravebot.providers.memory.host import MemoryHost
from ravebot.sandboxes.chain.letting import END_SESSIONS, PeoplesKeys
from ravebot.sandboxes.model import Person
from ravebot.sandboxes.telling import words
from ravebot.sshkeys import fingerprint
from ravebot.store import events, granted_keys
from ravebot.store.database import Transaction
from tests.support.clock import ManualClock
from tests.support.edges import Code
from tests.support.gitlab import GitLabServer
from tests.support.records import ALICE, a_merge_request
from tests.support.yard import Yard, a_yard

MR, SECOND = a_merge_request(1), a_merge_request(2)
CAROL = Person(7, "carol")
KEYS = {name: f"ssh-ed25519 {'A' * 60}{number}aa=" for number, name in enumerate(("alice", "alice's new", "carol"))}
_SESSIONS = "Accepted publickey for "


@pytest.fixture
def host() -> MemoryHost:
    return MemoryHost()


@pytest.fixture
async def yard(tmp_path: Path, host: MemoryHost) -> AsyncIterator[Yard]:
    async with a_yard(tmp_path, MemoryProvider(host)) as yard:
        yard.code.keys = {ALICE.id: (KEYS["alice"],), CAROL.id: (KEYS["carol"],)}
        yield yard


async def let_in(yard: Yard) -> set[str]:
    """Whose keys the machine was last made to let in."""
    machine = await yard.machine(MR)
    return set((await yard.read(lambda tx: granted_keys.of_machine(tx, machine.id))).values())


async def told(yard: Yard) -> list[str]:
    def read(tx: Transaction) -> list[str]:
        return [words(event) for event in events.newest(tx, 1000) if event.kind == "access.changed"]

    return await yard.read(read)


async def test_within_a_minute_a_new_key_is_let_in_and_an_old_one_is_not(yard: Yard, host: MemoryHost) -> None:
    await yard.make_ready(MR)
    assert await told(yard) == []
    yard.provider.answers[_SESSIONS] = RunResult(0, "2\n")
    yard.code.keys[ALICE.id] = (KEYS["alice's new"],)
    yard.pass_by(seconds=55)
    await yard.go()
    machine = host.machines[(await yard.machine(MR)).name]
    assert machine.authorized["agent"] == (KEYS["alice's new"],)
    assert await told(yard) == ["an SSH key of alice is not let in any more; 2 open sessions were ended"]


async def test_who_is_no_reviewer_any_more_is_out_at_the_next_look_and_the_thread_says_it(yard: Yard) -> None:
    await yard.make_ready(MR)
    await yard.told(replace(MR, people=(CAROL,)))
    yard.pass_by(seconds=20)
    await yard.go()
    assert await let_in(yard) == {"alice", "carol"}
    yard.provider.answers[_SESSIONS] = RunResult(0, "1\n")
    await yard.told(MR)
    yard.pass_by(seconds=20)
    await yard.go()
    assert await let_in(yard) == {"alice"}
    assert sorted(await told(yard)) == [
        "carol can log in now",
        "carol can't log in any more; an open session was ended",
    ]


@pytest.mark.parametrize(
    "answer", [RunResult(0, ""), RunResult(1, "3\n"), RunResult(0, "rm -rf /"), RunResult(0, "-1")]
)
async def test_an_image_that_does_not_say_whose_sessions_there_are_is_said(yard: Yard, answer: RunResult) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    yard.provider.answers[_SESSIONS] = answer
    await yard.told(MR)
    yard.pass_by(seconds=20)
    await yard.go()
    stays = "what is open stays open: this image doesn't tell whose sessions there are"
    assert await told(yard) == [f"carol can't log in any more; {stays}"]


async def test_while_new_code_is_taken_who_lost_the_key_is_out_as_well(yard: Yard) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    await yard.go()
    yard.provider.hold["copy_in"] = asyncio.Event()
    await yard.told(replace(MR, head_sha="b" * 40))
    yard.pass_by(seconds=20)
    await yard.core.pool.one_pass(yard.flights)
    await asyncio.sleep(0.1)
    assert (await yard.latest(MR)).stage == "copy"
    assert await let_in(yard) == {"alice"}, "she was no reviewer any more with that report"


async def test_who_is_taken_out_is_logged_out_though_the_guest_takes_no_keys(yard: Yard) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    await yard.go()
    yard.provider.fails["authorize_keys"] = GuestError("no space left on device")
    before = yard.provider.count("run")
    await yard.told(MR)
    yard.pass_by(seconds=20)
    await yard.go()
    assert yard.provider.count("run") == before + 1
    assert await let_in(yard) == {"alice", "carol"}, "it is tried again"


async def test_a_deleted_account_has_no_keys_and_holds_nobody_up(yard: Yard) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    yard.code.gone.add(CAROL.id)
    yard.pass_by(seconds=60)
    await yard.go()
    assert await let_in(yard) == {"alice"}


async def test_after_a_crash_between_the_guest_and_the_record_it_is_done_again(yard: Yard) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    hold = yard.provider.hold["run"] = asyncio.Event()
    await yard.told(MR)
    yard.pass_by(seconds=20)
    await yard.core.pool.one_pass(yard.flights)
    await asyncio.sleep(0.1)
    assert await let_in(yard) == {"alice", "carol"}
    yard.flights.cancel((await yard.machine(MR)).id)
    await yard.land()
    hold.set()
    yard.provider.hold.clear()
    yard.provider.answers[_SESSIONS] = RunResult(0, "1\n")
    yard.pass_by(seconds=20)
    await yard.go()
    assert await told(yard) == ["carol can't log in any more; an open session was ended"]


async def test_while_gitlab_is_away_everybody_stays_who_is_in_and_it_is_not_asked_at_every_look(yard: Yard) -> None:
    await yard.make_ready(MR)
    yard.code.error = Unavailable("GitLab is away")
    for _ in range(60):
        yard.pass_by(seconds=5)
        await yard.go()
    assert await let_in(yard) == {"alice"}
    assert yard.code.asked_keys <= 1 + 300 / 30 + 1
    yard.code.error = None
    yard.code.keys[ALICE.id] = ()
    yard.pass_by(seconds=40)
    await yard.go()
    assert await let_in(yard) == set()


async def test_who_is_no_reviewer_any_more_is_out_also_while_gitlab_does_not_tell_of_somebody_else(yard: Yard) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    await yard.go()
    assert await let_in(yard) == {"alice", "carol"}
    yard.code.silent.add(ALICE.id)
    yard.pass_by(seconds=55)
    await yard.told(MR)
    await yard.go()
    assert await let_in(yard) == {"alice"}, "she keeps what she had, and nobody else does"
    assert [text.partition(";")[0] for text in await told(yard)] == ["carol can't log in any more"]


@pytest.mark.parametrize("state", ["blocked", "banned", "deactivated"])
async def test_who_may_not_use_gitlab_any_more_is_out_within_six_minutes_and_it_is_told_once(
    yard: Yard, state: str
) -> None:
    async with GitLabServer() as server:
        bot = server.add_user("ravebot", bot=True)
        await yard.make_ready(MR)
        key = asyncssh.generate_private_key("ssh-ed25519").export_public_key("openssh").decode().strip()
        carol = server.add_user("carol", (key,))
        gitlab = GitLab(server.url, server.token_for(bot), yard.clock, 2)
        yard.code.elsewhere[carol.id] = gitlab.ssh_keys
        yard.provider.answers[_SESSIONS] = RunResult(0, "1\n")
        await yard.told(replace(MR, people=(Person(carol.id, "carol"),)))
        yard.pass_by(seconds=20)
        await yard.go()
        assert await let_in(yard) == {"alice", "carol"}
        carol.state = state
        begun = len(server.requests)
        for _ in range(6):
            yard.pass_by(seconds=60)
            await yard.go()
        assert await let_in(yard) == {"alice"}
        states = [one.path for one in server.requests[begun:] if one.path.endswith(f"/users/{carol.id}")]
        assert len(states) <= 2, "only now and then"
        assert sorted(await told(yard)) == [
            "carol can log in now",
            "carol can't log in any more; an open session was ended",
        ]
        carol.state = "active"
        yard.pass_by(seconds=55)
        await yard.go()
        assert await let_in(yard) == {"alice", "carol"}
        await gitlab.close()


async def test_nothing_is_told_of_a_machine_that_is_gone(yard: Yard) -> None:
    await yard.make_ready(MR)
    machine = await yard.machine(MR)
    await yard.told(replace(MR, state="closed"))
    await yard.until(lambda: yard.is_in(MR, "ended"))
    assert await yard.read(lambda tx: granted_keys.of_machine(tx, machine.id)) == {}
    assert await told(yard) == []


async def test_a_person_is_asked_for_once_a_minute_whatever_they_work_on() -> None:
    clock, code = ManualClock(), Code()
    code.keys = {1: (KEYS["alice"],), 2: (KEYS["carol"],)}
    keys = PeoplesKeys(code, clock)
    one, two = Person(1, "alice"), Person(2, "carol")
    for _ in range(60):
        found = await asyncio.gather(keys.of([one, two]), keys.of([one]), keys.of([two, one]))
        assert found[0] == {KEYS["alice"]: "alice", KEYS["carol"]: "carol"}
        clock.advance(timedelta(seconds=60))
    assert code.asked_keys == 120


async def test_sessions_that_could_not_be_ended_for_a_moment_are_ended_at_the_next_look(
    yard: Yard, host: MemoryHost
) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    yard.provider.fails["run"] = GuestError("the guest's agent did not answer in time")
    dave = Person(8, "dave")
    yard.code.keys[dave.id] = (KEYS["alice's new"],)
    await yard.told(replace(MR, people=(dave,)))
    yard.pass_by(seconds=20)
    await yard.go()
    machine = host.machines[(await yard.machine(MR)).name]
    assert set(machine.authorized["agent"]) == {KEYS["alice"], KEYS["alice's new"]}, "it holds up nobody else"
    assert await told(yard) == ["dave can log in now"], "the image is not to blame"
    yard.provider.fails.clear()
    yard.provider.answers[_SESSIONS] = RunResult(0, "1\n")
    yard.pass_by(seconds=20)
    await yard.go()
    assert await let_in(yard) == {"alice", "dave"}
    assert (await told(yard))[1:] == ["carol can't log in any more; an open session was ended"]


async def test_a_lost_key_does_not_come_back_while_its_sessions_wait_and_gitlab_is_away(
    yard: Yard, host: MemoryHost
) -> None:
    await yard.make_ready(MR)
    yard.provider.fails["run"] = GuestError("the guest's agent did not answer in time")
    yard.code.keys[ALICE.id] = (KEYS["alice's new"],)
    yard.pass_by(seconds=55)
    await yard.go()
    machine = host.machines[(await yard.machine(MR)).name]
    assert machine.authorized["agent"] == (KEYS["alice's new"],)
    yard.code.error = Unavailable("GitLab is away")
    for _ in range(5):
        yard.pass_by(seconds=60)
        await yard.go()
    assert machine.authorized["agent"] == (KEYS["alice's new"],)
    yard.provider.fails.clear()
    yard.provider.answers[_SESSIONS] = RunResult(0, "1\n")
    yard.pass_by(seconds=20)
    await yard.go()
    assert await told(yard) == ["an SSH key of alice is not let in any more; an open session was ended"]


async def test_keys_that_were_set_after_an_old_report_are_set_right_at_the_next_look(
    yard: Yard, host: MemoryHost
) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    await yard.go()
    stored = await yard.machine(MR)
    machine = host.machines[stored.name]
    await yard.told(MR)
    await yard.core.chain.authorize(stored, replace(MR, people=(CAROL,)))  # read before GitLab told of it
    assert machine.authorized["agent"] == (KEYS["alice"],), "what is stored counts"
    await yard.write(lambda tx: granted_keys.save(tx, stored.id, {KEYS["carol"]: "carol"}))  # as another process did
    machine.authorized["agent"] = (KEYS["carol"],)
    yard.pass_by(seconds=20)
    await yard.go()
    assert machine.authorized["agent"] == (KEYS["alice"],)


async def test_who_is_let_in_at_a_stage_does_not_overtake_a_look_that_is_under_way(
    yard: Yard, host: MemoryHost
) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    stored = await yard.machine(MR)
    hold = yard.provider.hold["authorize_keys"] = asyncio.Event()
    before = yard.provider.count("authorize_keys")
    letting_in, mr = yard.core.chain.letting_in, replace(MR, people=(CAROL,))
    first = asyncio.create_task(letting_in.follow(stored, mr, again=True))
    await asyncio.sleep(0.1)
    await yard.told(MR)
    second = asyncio.create_task(letting_in.begin(stored, mr))
    await asyncio.sleep(0.1)
    assert yard.provider.count("authorize_keys") == before + 1
    hold.set()
    await asyncio.gather(first, second)
    assert host.machines[stored.name].authorized["agent"] == (KEYS["alice"],)
    assert await let_in(yard) == {"alice"}


async def test_who_is_taken_out_is_out_though_gitlab_refuses_the_keys_of_another(yard: Yard) -> None:
    await yard.told(replace(MR, people=(CAROL,)))
    await yard.until(lambda: yard.is_in(MR, "ready"))
    await yard.go()
    assert await let_in(yard) == {"alice", "carol"}
    yard.pass_by(seconds=60)
    yard.code.error = Forbidden("GitLab refuses it (403)")
    await yard.told(MR)
    for _ in range(20):
        yard.pass_by(seconds=20)
        await yard.go()
    assert await let_in(yard) == {"alice"}
    assert yard.code.asked_keys <= 3 + 400 / 30 + 1, "it is not asked at every look"


LOST, OTHER = (fingerprint(KEYS[name]) for name in ("carol", "alice"))


class Journal:
    """Processes named like OpenSSH's, and a `journalctl` of the test that prints what journald would print of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines, self.processes = folder, list[str](), list[subprocess.Popen[bytes]]()
        for name in ("sshd-session", "sshd", "bash"):
            shutil.copyfile("/bin/sleep", folder / name)
            (folder / name).chmod(0o755)
        self.has("cat", f"{folder}/journal")

    def has(self, *command: str) -> None:
        """What `journalctl` does."""
        program = self.folder / "journalctl"
        program.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
        program.chmod(0o755)

    def session(self, name: str = "sshd-session") -> subprocess.Popen[bytes]:
        process = subprocess.Popen([self.folder / name, "1000"])
        self.processes.append(process)
        return process

    def logs(self, pid: int, message: str, name: str = "sshd-session") -> None:
        self.lines.append(f"Nov  8 17:00:00 rave-1 {name}[{pid}]: {message}\n")

    def accepted(self, pid: int, key: str, name: str = "sshd-session") -> None:
        self.logs(pid, f"Accepted publickey for agent from 10.0.0.1 port 5022 ssh2: ED25519 {key}", name)

    def end(self, *lost: str) -> str:
        (self.folder / "journal").write_text("".join(self.lines))
        command = ["sh", "-c", END_SESSIONS, "sh", *lost]
        environment = {"PATH": f"{self.folder}:/usr/bin:/bin"}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=10).stdout

    @property
    def alive(self) -> list[bool]:
        time.sleep(0.1)
        return [process.poll() is None for process in self.processes]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    for process in journal.processes:
        process.kill()
        process.wait()


def test_the_sessions_of_lost_keys_are_ended_and_no_others(journal: Journal) -> None:
    for key in (LOST, OTHER, LOST):
        journal.accepted(journal.session().pid, key)
    assert journal.end(LOST) == "2\n"
    assert journal.alive == [False, True, False]


def test_servers_before_openssh_9_8_log_under_their_own_name(journal: Journal) -> None:
    journal.accepted(journal.session("sshd").pid, LOST, "sshd")
    assert journal.end(OTHER, LOST) == "1\n"
    assert journal.alive == [False]


def test_a_number_that_is_used_again_belongs_to_who_came_last(journal: Journal) -> None:
    used_again = journal.session().pid
    journal.accepted(used_again, LOST)
    journal.accepted(used_again, OTHER)
    journal.accepted(journal.session("bash").pid, LOST)  # sshd's number is that of another program now
    assert journal.end(LOST) == "0\n"
    assert journal.alive == [True, True]


def test_what_strangers_get_into_the_log_ends_nothing(journal: Journal) -> None:
    victim = journal.session("sshd").pid
    lie = f"sshd[{victim}]: Accepted publickey for agent from 10.0.0.1 port 1 ssh2: ED25519 {LOST}"
    journal.logs(77, f"Invalid user {lie} from 10.0.0.9 port 2")
    journal.logs(77, f"Invalid user x rave-1 {lie}")
    journal.accepted(journal.session().pid, OTHER)
    assert journal.end(LOST) == "0\n"
    assert journal.alive == [True, True]


def test_without_a_journal_nothing_is_said_to_be_ended(journal: Journal) -> None:
    journal.session()
    assert journal.end(LOST) == ""
    journal.has("false")
    assert journal.end(LOST) == ""
