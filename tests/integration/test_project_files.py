"""`.rave.yml` at work: read from the stand-in at the merge request's commit, and followed by the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from ravebot.errors import Unavailable
from ravebot.gitlab import answers
from ravebot.gitlab.client import GitLab
from ravebot.gitlab.escape import JOINER
from ravebot.gitlab.notes import render_note
from ravebot.providers.base import HostUsage, MachineSpec
from ravebot.providers.memory import MemoryProvider
from ravebot.sandboxes.model import MergeRequest as KnownMergeRequest
from ravebot.sandboxes.model import Sandbox
from ravebot.sandboxes.projectfiles import ProjectFiles
from ravebot.sandboxes.settings import of_merge_request
from ravebot.store import project_files
from ravebot.store.images import ImageRecord
from ravebot.store.images import save as save_image
from ravebot.store.project_files import ProjectFileRow
from tests.support.gitlab import DEVELOPER, GUEST, GitLabServer, MergeRequest, Project, User, entities
from tests.support.gitlab.notes import mentions, take_quick_actions
from tests.support.gitlab.published import described, misfits, published
from tests.support.records import BY_ALICE
from tests.support.yard import Yard, a_yard

pytestmark = pytest.mark.integration

GIB = 1024**3
ASKS = """\
memory: 1GiB
vcpus: 3
disk: 2GiB
lifetime: 90m
setup: ["make ready"]
smoke_tests:
  - run: make check
links:
  - {name: Grafana, path: /grafana/}
"""


class Recorder(MemoryProvider):
    """Keeps what it is asked to create."""

    def __init__(self) -> None:
        super().__init__()
        self.specs: list[MachineSpec] = []

    async def create(self, spec: MachineSpec) -> None:
        self.specs.append(spec)
        await super().create(spec)


@dataclass
class Place:
    """A GitLab with a project, our client to it, and a pool."""

    server: GitLabServer
    project: Project
    alice: User
    bot: User
    yard: Yard
    gitlab: GitLab
    provider: Recorder

    def open(self, file: str | bytes | None = None, **more: Any) -> MergeRequest:
        files = {} if file is None else {".rave.yml": file}
        return self.server.open_merge_request(self.project, self.alice, files=files, **more)

    async def told(self, mr: MergeRequest) -> str:
        """As when a webhook reports it."""
        known = self.known(mr)
        await ProjectFiles(self.yard.database, self.gitlab).know(known)
        return await self.yard.told(known)

    async def ready(self, mr: MergeRequest) -> None:
        known = self.known(mr)
        await self.yard.until(lambda: self.yard.is_in(known, "ready"))

    def known(self, mr: MergeRequest) -> KnownMergeRequest:
        """As GitLab's API tells of it."""
        return answers.merge_request(entities.merge_request(self.server.url, mr))

    async def latest(self, mr: MergeRequest) -> Sandbox:
        return await self.yard.latest(self.known(mr))

    async def note(self, mr: MergeRequest) -> str:
        known = self.known(mr)
        view = await self.yard.read(lambda tx: self.yard.views.latest(tx, known.ref))
        assert view
        return render_note(view, "<!-- -->")

    def on_main(self, files: dict[str, str]) -> None:
        state = self.server.state
        sha = state.commit(self.project, {**self.project.commits[self.project.head], **files}, parent=self.project.head)
        self.server.move_branch(self.project, "main", sha, self.alice)

    def asked_for_files(self) -> list[str]:
        """The refs at which files were asked for."""
        asked = [one for one in self.server.requests if one.path.endswith("/raw")]
        return [unquote(one.query.removeprefix("ref=")) for one in asked]

    def commands(self) -> list[str]:
        """What was run in guests."""
        asked = (one.environment.get("RAVE_COMMAND", "") for one in self.provider.commands)
        return [command for command in asked if command]


@asynccontextmanager
async def a_place(folder: Path, **changes: Any) -> AsyncIterator[Place]:
    provider = Recorder()
    async with GitLabServer() as server, a_yard(folder, provider, **changes) as yard:
        bot, alice = server.add_user("ravebot", bot=True), server.add_user("alice")
        project = server.add_project("group/app")
        for user in (bot, alice):
            server.set_role(project, user, DEVELOPER)
        gitlab = GitLab(server.url, server.token_for(bot), yard.clock, 2)
        try:
            yield Place(server, project, alice, bot, yard, gitlab, provider)
        finally:
            await gitlab.close()


async def test_a_merge_request_gets_the_memory_set_up_and_tests_that_its_file_asks_for(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        mr = place.open(ASKS)
        assert await place.told(mr) == "queued"
        await place.ready(mr)
        (spec,) = place.provider.specs
        assert (spec.memory_bytes, spec.vcpus, spec.disk_bytes) == (GIB, 3, 2 * GIB)
        assert place.commands() == ["make ready", "make check"]
        sandbox = await place.latest(mr)
        assert sandbox.expires_at and sandbox.ready_at
        assert sandbox.expires_at - sandbox.ready_at == timedelta(minutes=90)
        note = await place.note(mr)
        assert "| **Pages** | [Grafana](https://sandboxes.example.org:43000/grafana/) |" in note


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("memori: 1GiB\n", "line 1, column 1: memori: unknown key; did you mean memory?"),
        (b"x: " + b"y" * 1024**2, "line 1, column 1: the file is larger than 64 KiB"),
        ("../README.md", "this is a symbolic link or a single line of text"),
        ("</details>\n/close @all: [\n", "this is not YAML"),
        ("memory: 1GiB\n".encode("utf-16"), "line 1, column 1: not UTF-8 text"),
        (b"a: &a [*a]\n", "line 1, column 4: aliases or nesting expand to more than 2000 values"),
        ("version https://git-lfs.github.com/spec/v1\nsize 9\n", "line 1, column 1: this is a pointer of Git LFS"),
        ('"<b>@all": 1\n', "unknown key"),
    ],
)
async def test_a_file_that_can_t_be_used_is_told_in_the_note_and_the_defaults_run(
    tmp_path: Path, file: str | bytes, says: str
) -> None:
    async with a_place(tmp_path, sandbox={"setup": ["the default"]}) as place:
        mr = place.open(file)
        assert await place.told(mr) == "queued"
        await place.ready(mr)
        assert place.commands() == ["the default"]
        note = await place.note(mr)
        assert "⚠️ `.rave.yml` has mistakes, so it does not count here:" in note
        assert says in note.replace(JOINER, "").replace("\\", "")
        assert mentions(note) == []
        assert take_quick_actions(note)[1] == []
        assert "<b>" not in note


async def test_a_folder_of_that_name_is_no_file_as_gitlab_gives_none(tmp_path: Path) -> None:
    async with a_place(tmp_path, sandbox={"setup": ["the default"]}) as place:
        mr = place.server.open_merge_request(place.project, place.alice, files={".rave.yml/notes.txt": "x"})
        assert await place.told(mr) == "queued"
        await place.ready(mr)
        assert place.commands() == ["the default"]
        assert [one.status for one in place.server.requests if one.path.endswith("/raw")] == [404]
        assert "⚠️" not in await place.note(mr)


async def test_a_commit_s_file_is_read_once_and_another_commit_s_is_read_anew(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        mr = place.open("memory: 1GiB\n")
        for _ in range(3):
            await place.told(mr)
        assert len(place.asked_for_files()) == 1
        place.server.push(mr, {".rave.yml": "setup: [make anew]\n"})
        assert await place.told(mr) == "new code"
        await place.ready(mr)
        assert place.commands() == ["make anew"]
        assert len(place.asked_for_files()) == 2


async def test_while_gitlab_is_away_nothing_is_taken_for_a_missing_file(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        mr = place.open(ASKS)
        place.server.fail(503)
        with pytest.raises(Unavailable):
            await place.told(mr)
        place.server.restore()
        assert await place.told(mr) == "queued"
        await place.ready(mr)
        assert place.commands() == ["make ready", "make check"]


async def test_a_fork_is_set_up_by_its_own_file_only_once_that_commit_was_let_in(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        place.on_main({".rave.yml": "start: ready\n"})
        fork = place.server.add_project("mallory/app")
        mr = place.server.open_merge_request(
            fork,
            place.alice,
            files={".rave.yml": "start: always\nsetup: [make evil]\n"},
            fork_of=place.project,
            draft=True,
        )
        assert await place.told(mr) == "waits: a fork's code needs approval"
        await place.yard.go()
        assert place.asked_for_files() == ["refs/heads/main"], "not at its own commit"
        assert (place.provider.specs, place.commands()) == ([], []), "neither a machine nor set-up"
        assert [one for one in place.server.requests if "/keys" in one.path or one.method != "GET"] == []
        waits = await place.yard.read(lambda tx: of_merge_request(tx, place.yard.config, place.known(mr)))
        assert (waits.start, waits.setup) == ("ready", ("./.rave/setup",))

        await ProjectFiles(place.yard.database, place.gitlab).know(place.known(mr), approves=True)
        started = await place.yard.write(
            lambda tx: place.yard.intents.start(tx, place.known(mr), BY_ALICE, place.known(mr).head_sha)
        )
        assert started.accepted
        await place.ready(mr)
        assert place.commands() == ["make evil"]

        place.server.push(mr, {".rave.yml": "setup: [make worse]\n"})
        assert await place.told(mr) == "a fork's new code needs approval"
        await place.yard.go()
        assert place.commands() == ["make evil"]


async def test_a_sandbox_starts_when_its_label_is_set_and_not_while_another_forbids_it(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        mr = place.open("start: {label: go}\n")
        assert await place.told(mr) == "waits: it has not the label that starts one"
        place.server.label(mr, "go", "sandbox::off")
        assert await place.told(mr) == "noted"
        place.server.label(mr, "go", "sandbox::large")
        assert await place.told(mr) == "queued"
        await place.ready(mr)
        (spec,) = place.provider.specs
        assert (spec.memory_bytes, spec.vcpus, spec.disk_bytes) == (8 * GIB, 4, 40 * GIB)
        place.server.label(mr)
        assert await place.told(mr) == "noted", "one that runs goes on"
        assert "`/sandbox rebuild` gives one that has it" in await place.note(mr)


async def test_a_sandbox_with_another_image_goes_on_while_one_image_is_held(tmp_path: Path) -> None:
    images = {"other": str(tmp_path / "other.qcow2")}
    async with a_place(tmp_path, provider={"images": images}) as place:
        usual, other = place.open(), place.open("image: other\n", branch="another")
        held = ImageRecord(str(place.yard.config.provider.image), held="it is broken", tried_at=place.yard.clock.now())
        await place.yard.write(lambda tx: save_image(tx, held))
        await place.told(usual)
        await place.told(other)
        await place.ready(other)
        assert [str(spec.image) for spec in place.provider.specs] == [images["other"]]
        assert (await place.latest(usual)).wait_reason


@pytest.mark.parametrize("what", ["memory", "disk"])
async def test_one_that_is_too_large_for_the_host_lets_others_pass(tmp_path: Path, what: str) -> None:
    async with a_place(tmp_path, limits={what: "1TiB"}) as place:
        large, small = place.open(f"{what}: 1TiB\n"), place.open(branch="another")
        await place.told(large)
        await place.told(small)
        await place.ready(small)
        assert f"of {what}, 1024.0 GiB needed" in (await place.latest(large)).wait_reason
        assert (await place.latest(large)).wait_reason.startswith("the host is too small for it: ")


async def test_one_that_does_not_fit_yet_is_passed_by_smaller_ones_for_a_while_and_then_room_is_kept(
    tmp_path: Path,
) -> None:
    sizes: dict[str, Any] = {"limits": {"memory": "8GiB"}, "sandbox": {"memory": "4GiB"}}
    async with a_place(tmp_path, **sizes, pool={"max_running": 3}) as place:
        place.provider.host_usage = HostUsage(10 * GIB, 500 * GIB, 0)
        mrs = [place.open(branch=f"usual-{number}") for number in range(4)]
        await place.told(mrs[0])
        await place.ready(mrs[0])  # 4 GiB of the 10 are its
        large = place.open("memory: 8GiB\n", branch="large")
        await place.told(large)
        await place.told(mrs[1])
        await place.ready(mrs[1])
        why = (await place.latest(large)).wait_reason
        assert why.startswith("the host is short of memory: ")
        assert why.endswith("8.0 GiB needed; smaller ones may start before it for a while")
        await place.yard.told(replace(place.known(mrs[1]), state="closed"))
        await place.yard.until(lambda: place.yard.is_in(place.known(mrs[1]), "ended"))

        place.yard.clock.advance(timedelta(minutes=31))
        await place.told(mrs[2])
        for _ in range(5):
            await place.yard.go()
        assert (await place.latest(mrs[2])).state.value == "queued", "there is memory for it, and it is not next"
        note = await place.note(large)
        assert "room is kept for it, since the host is short of memory" in note.replace(JOINER, "")
        await place.yard.told(replace(place.known(mrs[0]), state="closed"))
        await place.ready(large)
        assert (await place.latest(mrs[2])).state.value == "queued"


async def test_the_file_is_asked_for_as_gitlab_describes_it(tmp_path: Path) -> None:
    published()
    async with a_place(tmp_path) as place:
        await place.told(place.open(ASKS))
        asked = [one for one in place.server.requests if one.path.endswith("/raw")]
        assert len(asked) == 1
        assert misfits(asked) == []
        assert described(asked[0])


async def test_a_file_that_ravebot_may_not_read_is_named_and_read_when_somebody_asks_again(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        mr = place.open(ASKS)
        known = place.known(mr)
        place.server.set_role(place.project, place.bot, GUEST)
        files = ProjectFiles(place.yard.database, place.gitlab)
        await files.know(known)
        await place.yard.told(known)
        (why,) = (await place.yard.read(lambda tx: of_merge_request(tx, place.yard.config, known))).troubles
        assert why.startswith("ravebot may not read it: GitLab refuses it (403")
        place.server.set_role(place.project, place.bot, DEVELOPER)
        await files.know(known)
        assert len(place.asked_for_files()) == 1, "not at every report"
        await files.know(known, approves=True)
        found = await place.yard.read(lambda tx: of_merge_request(tx, place.yard.config, known))
        assert (found.troubles, found.memory) == ((), GIB)


@pytest.mark.parametrize("status", [403, 404])
async def test_a_file_that_was_refused_for_a_moment_is_read_again_minutes_later(tmp_path: Path, status: int) -> None:
    async with a_place(tmp_path) as place:
        mr = place.open(ASKS)
        place.server.fail(status, 1, path="/repository/files")
        files = ProjectFiles(place.yard.database, place.gitlab)
        await files.know(place.known(mr))
        known = place.known(mr)
        await place.yard.told(known)
        assert (await place.yard.read(lambda tx: of_merge_request(tx, place.yard.config, known))).troubles
        await files.know(known)
        assert len(place.asked_for_files()) == 1, "not at every poll"
        place.yard.clock.advance(timedelta(minutes=15))
        for _ in range(3):
            await files.know(replace(known, updated_at=place.yard.clock.now()))
        assert len(place.asked_for_files()) == 2
        found = await place.yard.read(lambda tx: of_merge_request(tx, place.yard.config, known))
        assert (found.troubles, found.memory) == ((), GIB)


async def test_a_file_that_stays_refused_is_not_asked_for_for_ever(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        known = replace(place.known(place.open(ASKS)), updated_at=place.yard.clock.now())
        place.server.fail(403, path="/repository/files")
        files = ProjectFiles(place.yard.database, place.gitlab)
        await files.know(known)
        await place.yard.told(known)
        for _ in range(100):
            place.yard.clock.advance(timedelta(hours=1))
            await files.know(known)
        assert len(place.asked_for_files()) == 24


async def test_a_commit_that_gitlab_does_not_have_yet_counts_as_none_only_for_minutes(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        mr = place.open(ASKS)
        known = replace(place.known(mr), head_sha="1234567890" * 4, updated_at=place.yard.clock.now())
        files = ProjectFiles(place.yard.database, place.gitlab)
        await files.know(known)
        await place.yard.told(known)
        (why,) = (await place.yard.read(lambda tx: of_merge_request(tx, place.yard.config, known))).troubles
        assert why.startswith("GitLab does not find the commit, ravebot asks again")
        place.project.commits[known.head_sha] = place.project.commits[mr.sha]
        place.yard.clock.advance(timedelta(minutes=15))
        await files.know(known)
        found = await place.yard.read(lambda tx: of_merge_request(tx, place.yard.config, known))
        assert (found.troubles, found.memory) == ((), GIB)


async def test_a_stored_file_that_this_version_does_not_take_counts_as_none(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        known = place.known(place.open(ASKS))
        row = ProjectFileRow(content='{"memory": 1073741824, "of_a_later_version": 1}')
        await place.yard.write(lambda tx: project_files.put(tx, known.ref.project_id, known.head_sha, row))
        found = await place.yard.read(lambda tx: of_merge_request(tx, place.yard.config, known))
        assert (found.setup, found.troubles) == (place.yard.config.sandbox.setup, ())


async def test_a_file_whose_answer_breaks_off_is_asked_for_again(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        mr = place.open(ASKS)
        place.server.hang_up(1, path="/raw")
        with pytest.raises(Unavailable):
            await place.told(mr)
        assert await place.told(mr) == "queued"
