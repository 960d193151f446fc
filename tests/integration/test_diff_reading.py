"""What differs in a sandbox, read for real: Debian's shell and su in a guest's place, and GitLab's stand-in."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.agents.diff import worker
from ravebot.agents.diff.comparing import comparison
from ravebot.agents.diff.diffs import Diffs
from ravebot.agents.diff.model import ChangeKind, Diff, canonical, hash_of
from ravebot.errors import GuestError, GuestTimeout, Refused, Unavailable
from ravebot.gitlab.client import GitLab
from ravebot.providers.base import RunResult
from ravebot.sandboxes.chain.guestjobs import GuestJobs
from ravebot.sandboxes.model import CODE_FOLDER, Machine, MergeRequest, MergeRequestRef, Sandbox, Stage
from ravebot.store import sandboxes
from tests.support import gitlab as stand_in
from tests.support.gitlab import DEVELOPER, GitLabServer
from tests.support.guest_room import Room
from tests.support.records import World, a_world

pytestmark = pytest.mark.integration

USER = "nobody"
CREATED, UPDATED, DELETED = ChangeKind
FILES: dict[str, bytes | str] = {
    "README.md": "hello\n",
    ".gitignore": "*.log\nnode_modules/\n",
    "src/app.py": "one\ntwo\nthree\n",
    "src/logo.png": b"\x89PNG\0\1",
    "bin/run": "#!/bin/sh\n",
    "old/a b.txt": "gone soon\n",
}


@dataclass
class Scene:
    """A sandbox with the code of a merge request in it."""

    world: World
    gitlab: GitLabServer
    room: Room
    client: GitLab
    diffs: Diffs
    sandbox: Sandbox
    machine: Machine
    mr: MergeRequest
    theirs: stand_in.MergeRequest

    async def read(self) -> Diff:
        return await self.diffs.read(self.sandbox, self.machine, self.mr)

    def sh(self, script: str) -> str:
        """Run something in the code's folder, as the sandbox user."""
        return self.room.sh(f"cd {CODE_FOLDER} && su {USER} -s /bin/sh -c '{script}'")


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    room = Room()
    try:
        async with a_world(tmp_path) as world, GitLabServer() as gitlab:
            bot, alice = gitlab.add_user("ravebot"), gitlab.add_user("alice")
            project = gitlab.add_project("group/app", FILES)
            gitlab.set_role(project, bot, DEVELOPER)
            theirs = gitlab.open_merge_request(project, alice)
            client = GitLab(gitlab.url, gitlab.token_for(bot), timeout_seconds=5)
            try:
                mr = await client.merge_request(MergeRequestRef(project.id, theirs.iid))
                sandbox = replace(await world.ready(mr), running_sha=mr.head_sha)
                await world.write(lambda tx: sandboxes.save(tx, sandbox))
                machine = await world.machine(mr)
                await client.archive(project.id, mr.head_sha, tmp_path / "archive", 1024**2)
                await GuestJobs(room, USER).put_code(machine.name, tmp_path / "archive", timedelta(seconds=20))
                diffs = Diffs(world.database, room, client, USER, tmp_path, 64 * 1024**2)
                yield Scene(world, gitlab, room, client, diffs, sandbox, machine, mr, theirs)
            finally:
                gitlab.restore()
                await client.close()
    finally:
        room.close_room()


async def test_a_sandbox_in_which_nothing_was_done_differs_in_nothing(scene: Scene) -> None:
    diff = await scene.read()
    assert (diff.changes, diff.left_out, diff.text, diff.refusal) == ((), (), "", "")


async def test_what_was_done_is_found_and_git_takes_it_back(scene: Scene, tmp_path: Path) -> None:
    scene.sh(
        "printf \"one\\nTWO\\nthree\\n\" > src/app.py; rm -r old; chmod -x bin/run; mkdir -p new/deep;"
        " echo new > \"new/deep/größe.txt\"; chmod +x new/deep/*; printf \"\\0\" >> src/logo.png;"
        " mkdir node_modules; echo x > node_modules/x.js; echo x > x.log"
    )  # fmt: skip
    diff = await scene.read()
    assert [(one.path, one.kind, one.executable, one.added, one.removed) for one in diff.changes] == [
        ("bin/run", UPDATED, False, 0, 0),
        ("new/deep/größe.txt", CREATED, True, 1, 0),
        ("old/a b.txt", DELETED, None, 0, 1),
        ("src/app.py", UPDATED, None, 1, 1),
        ("src/logo.png", UPDATED, None, 0, 0),
    ]
    assert diff.left_out == ()
    assert diff.hash == hash_of(canonical(scene.mr.head_sha, diff.changes))
    assert "-two\n+TWO\n" in diff.text
    assert "Binary files a/src/logo.png and b/src/logo.png differ" in diff.text
    for path, content in FILES.items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "tree/bin/run").chmod(0o755)
    without_binary = diff.text[: diff.text.index("diff --git a/src/logo.png")]
    subprocess.run(["git", "apply", "-"], input=without_binary.encode(), cwd=tmp_path / "tree", check=True)
    assert (tmp_path / "tree/src/app.py").read_text() == "one\nTWO\nthree\n"
    assert (tmp_path / "tree/new/deep/größe.txt").stat().st_mode & 0o100
    assert not (tmp_path / "tree/old/a b.txt").exists()


async def test_nothing_is_left_in_the_guest_or_on_the_host(scene: Scene, tmp_path: Path) -> None:
    scene.sh("echo x > new")
    before = sorted(path.name for path in tmp_path.iterdir())
    await scene.read()
    assert scene.room.sh("ls /run/ravebot/diff") == ""
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "comparing") == before
    assert list((tmp_path / "comparing").iterdir()) == []


async def test_links_pipes_odd_names_and_gits_own_folder_are_named_and_never_read(scene: Scene) -> None:
    scene.sh(
        'ln -s /etc/shadow link; ln -s .. up; mkfifo pipe; echo x > "$(printf "a\\nb")";'
        ' echo x > "$(printf "c\\377d")"; echo x > "back\\\\slash"; echo x > Readme.md;'
        " git init -q . 2>/dev/null || mkdir .git; echo x > .git/extra"
    )
    diff = await scene.read()
    assert diff.changes == ()
    assert {one.path: one.why for one in diff.left_out} == {
        "link": "it is a symbolic link",
        "up": "it is a symbolic link",
        "pipe": "it is neither a file nor a folder",
        "a?b": "its name has a line break",
        "c?d": "its name is not UTF-8",
        "back\\slash": "its name can't be used on every system",
        "Readme.md": "its name differs from README.md only in case",
    }


async def test_files_are_read_with_the_rights_of_the_sandbox_user_only(scene: Scene) -> None:
    scene.room.sh(f"cd {CODE_FOLDER} && echo secret > root-only && chmod 600 root-only && chmod 000 README.md")
    scene.room.sh(f"cd {CODE_FOLDER} && mkdir closed && chmod 700 closed && echo x > closed/x")
    scene.room.sh(f"cd {CODE_FOLDER} && chown root README.md && chmod 600 README.md")
    diff = await scene.read()
    assert diff.changes == ()
    assert {one.path: one.why for one in diff.left_out} == {
        "README.md": "the sandbox's user can't read it",
        "root-only": "the sandbox's user can't read it",
    }
    assert "secret" not in diff.text


async def test_where_a_folder_is_closed_nothing_in_it_counts_as_deleted(scene: Scene) -> None:
    scene.sh("chmod 000 src; rm README.md")
    diff = await scene.read()
    assert diff.changes == ()
    assert {one.path for one in diff.left_out} == {"README.md", "src/app.py", "src/logo.png"}


async def test_too_much_is_said_and_can_not_be_committed(scene: Scene) -> None:
    scene.sh("i=0; while [ $i -lt 230 ]; do echo $i > f$i; i=$((i+1)); done; head -c 2000000 /dev/zero > large")
    diff = await scene.read()
    assert len(diff.changes) == 200
    assert "230 files differ" in diff.refusal
    assert diff.left_out_more == 0
    assert ("large", "it is larger than 1 MiB") in [(one.path, one.why) for one in diff.left_out]


async def test_a_folder_that_is_gone_is_said_with_what_to_do(scene: Scene) -> None:
    scene.room.sh(f"rm -rf {CODE_FOLDER}")
    with pytest.raises(GuestError, match="have it rebuilt"):
        await scene.read()


async def test_an_image_that_lacks_a_program_is_told_which(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ["sh", "su", "setsid", "mkdir", "chmod", "rm", "mv", "cat", "head", "sleep", "kill", "nsenter"]:
        (folder / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    scene.room.path = str(folder)
    with pytest.raises(GuestError, match="lacks find"):
        await scene.read()


async def test_what_an_earlier_reading_left_is_ended_and_removed_by_the_next(scene: Scene) -> None:
    left = "/run/ravebot/diff/0000000000000000"
    mark = f"97{time.monotonic_ns() % 10_000_000}"
    scene.room.sh(
        f"mkdir -p {left}; setsid sh -c 'echo $$ > {left}/pid; exec sleep {mark}' > /dev/null 2>&1 &"
        f" until [ -s {left}/pid ]; do sleep 0.01; done"
    )
    await scene.read()
    assert scene.room.sh("ls /run/ravebot/diff") == ""
    assert subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, check=False).stdout == b""


async def test_a_sandbox_without_code_or_with_code_on_its_way_is_not_read(scene: Scene) -> None:
    for sandbox, why in (
        (replace(scene.sandbox, running_sha=None), "holds no code"),
        (replace(scene.sandbox, stage=Stage.COPY), "being replaced"),
    ):
        with pytest.raises(Refused, match=why):
            await scene.diffs.read(sandbox, scene.machine, scene.mr)
    assert scene.room.count("copy_out") == 0


async def test_code_that_is_replaced_while_it_is_read_is_not_shown(scene: Scene) -> None:
    await scene.world.write(lambda tx: sandboxes.save(tx, replace(scene.sandbox, stage_attempt=7)))
    with pytest.raises(Refused, match="was replaced while"):
        await scene.read()


async def test_two_at_once_do_not_read_the_same_machine(scene: Scene) -> None:
    scene.sh("echo x > new")
    first, second = await asyncio.gather(scene.read(), scene.read(), return_exceptions=True)
    assert isinstance(first, Diff)
    assert isinstance(second, Refused)
    assert "compared already" in str(second)


async def test_gitlab_that_is_away_is_no_fault_of_the_sandbox(scene: Scene, tmp_path: Path) -> None:
    scene.gitlab.truncate_archives()
    with pytest.raises(Unavailable):
        await scene.read()
    assert list((tmp_path / "comparing").iterdir()) == []


async def test_a_guest_that_takes_its_time_is_given_up(scene: Scene) -> None:
    scene.diffs.limit = timedelta(seconds=0.3)
    scene.room.slow_copy = 60
    scene.sh("echo x > new")
    with pytest.raises(GuestTimeout, match="not compared within"):
        await scene.read()
    scene.diffs.limit, scene.room.slow_copy = timedelta(minutes=1), 0
    assert [change.path for change in (await scene.read()).changes] == ["new"]


class Liar(Room):
    """A guest that answers what it likes."""

    def __init__(self, room: Room, lie: Callable[[int], bytes]) -> None:
        self.__dict__ = room.__dict__
        self.lie = lie
        self.asked = 0

    async def copy_out(self, name: str, source: str, *, max_bytes: int) -> bytes:
        self.asked += 1
        return self.lie(self.asked)


LIST = b"81a4 4 ./new\n81a4 6 ./README.md\n= 0\n"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([b"81a4 1 ./a\n81a4"], "malformed"),
        ([b"\xff" * 1000], "malformed"),
        ([b"81a4 1 ./" + b"x" * 10_000 + b"\n= 0\n"], "malformed"),
        ([LIST, b"", b""], "cut off"),
        ([LIST, b"\0" * 100, b"\n!\n.\n"], "not Base64"),
    ],
)
async def test_a_guest_that_answers_nonsense_is_said_to_do_so(scene: Scene, answers: list[bytes], why: str) -> None:
    scene.diffs.provider = Liar(scene.room, lambda number: answers[number - 1])
    with pytest.raises(GuestError, match=why):
        await scene.read()


async def test_a_guest_that_lists_paths_outside_gets_none_of_them_committed(scene: Scene) -> None:
    answers = [b"81a4 1 ../../x\n81a4 1 /etc/x\n81a4 1 ./.git/config\n81a4 1 ./a/../b\n= 1\n"]
    scene.diffs.provider = Liar(scene.room, lambda number: answers[number - 1])
    diff = await scene.read()
    assert diff.changes == ()


async def test_the_reading_fails_when_the_guest_does(scene: Scene) -> None:
    scene.room.fails["copy_in"] = GuestTimeout("away")
    scene.diffs.provider = Dead(scene.room)
    with pytest.raises(GuestTimeout):
        await scene.read()
    scene.diffs.provider = scene.room
    assert (await scene.read()).changes == ()


class Dead(Room):
    """A guest that takes no time to be of no use."""

    def __init__(self, room: Room) -> None:
        self.__dict__ = room.__dict__

    async def run(self, *arguments: object, **more: object) -> RunResult:
        raise GuestTimeout("the guest did not answer")


async def test_a_pattern_that_takes_for_ever_ends_at_the_limits_of_its_process(scene: Scene, tmp_path: Path) -> None:
    pattern = "a*" * 30 + "b\n"
    sha = scene.gitlab.push(scene.theirs, {".gitignore": pattern})
    await scene.client.archive(scene.mr.ref.project_id, sha, tmp_path / "hostile", 1024**2)
    command = (sys.executable, "-m", "ravebot.agents.diff.worker", str(tmp_path / "hostile"), sha)
    ticks = 0
    async with comparison(tmp_path / "hostile", sha, ("prlimit", "--cpu=2:2", *command)) as compared:
        looking = asyncio.create_task(compared.listed(b"81a4 1 ./" + b"a" * 200 + b"\n= 0\n"))
        while not looking.done():
            await asyncio.sleep(0.01)
            ticks += 1
        with pytest.raises(Refused, match="patterns with many"):
            await looking
    assert ticks > 50


async def test_the_process_that_compares_limits_itself(scene: Scene, tmp_path: Path) -> None:
    sha = scene.gitlab.push(scene.theirs, {"a": "x"})
    await scene.client.archive(scene.mr.ref.project_id, sha, tmp_path / "archive", 1024**2)
    command = (sys.executable, "-m", "ravebot.agents.diff.worker", str(tmp_path / "archive"), sha)
    noted = ("sh", "-c", 'echo $$ > "$0"; exec "$@"', str(tmp_path / "pid"), *command)
    async with comparison(tmp_path / "archive", sha, noted) as compared:
        await compared.listed(b"= 0\n")
        pid = int((tmp_path / "pid").read_text())
        kinds = resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE
        assert [resource.prlimit(pid, kind)[0] for kind in kinds] == [worker.CPU_SECONDS, worker.MEMORY_BYTES, 0]


async def test_a_damaged_archive_is_gitlabs_fault(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"no archive")
    async with comparison(tmp_path / "archive", "0" * 40) as compared:
        with pytest.raises(Unavailable, match="can't be read"):
            await compared.listed(b"= 0\n")
