"""`ravebot init` as a process of its own, against a real Synapse and the GitLab stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_asyncio

from ravebot.config.file import load
from tests.support.gitlab.server import GitLabServer
from tests.support.gitlab.state import GUEST, MAINTAINER, Project, User
from tests.support.synapse import MatrixUser, Synapse

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

PASSWORD = "hush-hush-pass-word"
ROOT = Path(__file__).parents[2]


@dataclass
class World:
    """Both servers, with an account of ravebot's at each."""

    synapse: Synapse
    gitlab: GitLabServer
    account: MatrixUser
    ops: MatrixUser
    bot: User
    project: Project
    token: str
    folder: Path

    @property
    def secrets(self) -> tuple[str, str]:
        return PASSWORD, self.token

    async def devices(self) -> list[str]:
        """The account's devices, without the one that these tests use."""
        listed = (await self.account.call("GET", "devices"))["devices"]
        return [one["device_id"] for one in listed if one["device_id"] != self.account.device_id]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(synapse: Synapse, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    account = await synapse.user("ravebot", password=PASSWORD)
    ops = await synapse.user("ops")
    async with GitLabServer() as gitlab:
        bot = gitlab.add_user("ravebot")
        gitlab.add_user("ops")
        project = gitlab.add_project("group/app")
        gitlab.set_role(project, bot, MAINTAINER)
        token = gitlab.token_for(bot, expires_at="2999-01-01")
        yield World(synapse, gitlab, account, ops, bot, project, token, tmp_path_factory.mktemp("init"))


class Place:
    """One host's folders, and the command that is run on it."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.config = folder / "etc" / "config.yaml"
        self.state = folder / "state"
        self.image = folder / "image.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.image, "8M"], check=True)
        for name, text in (("pw", PASSWORD), ("token", world.token)):
            (folder / name).write_text(text + "\n")
            (folder / name).chmod(0o600)
        self.room = f"#r{uuid.uuid4().hex[:8]}:localhost"
        self.alerts_room = f"#a{uuid.uuid4().hex[:8]}:localhost"
        self.answers = {
            "--state-dir": str(self.state),
            "--matrix-user": world.account.user_id,
            "--matrix-homeserver": world.synapse.url,
            "--matrix-password-file": str(folder / "pw"),
            "--gitlab-url": world.gitlab.url,
            "--gitlab-token-file": str(folder / "token"),
            "--projects": "group/app",
            "--admins": world.ops.user_id,
            "--room": self.room,
            "--sandbox-host": "192.0.2.7",
            "--allow-from": "192.0.2.0/24",
            "--public-url": "https://ravebot.example.org",
            "--image": str(self.image),
            "--alerts-room": self.alerts_room,
        }
        self.environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}

    def command(self, *more: str, **changes: str | None) -> list[str]:
        """The command with all answers; `changes` by the options' names, None leaves one out."""
        answers = {**self.answers, **{f"--{name.replace('_', '-')}": text for name, text in changes.items()}}
        given = [word for option, text in answers.items() if text is not None for word in (option, text)]
        return [*self.bare(), *given, *more]

    def bare(self) -> list[str]:
        return [sys.executable, "-m", "ravebot", "init", "-c", str(self.config), "--no-link"]

    async def run(self, command: list[str], stdin: str = "") -> tuple[int, str]:
        """Exit code and everything that was printed. A secret in it is an error."""
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate(stdin.encode())
        text = output.decode()
        assert "Traceback" not in text, text
        assert not any(secret in text for secret in self.world.secrets), text
        assert process.returncode is not None
        return process.returncode, text

    def readable_by_others(self) -> list[Path]:
        """Files with a secret that another user could read."""
        known = [*self.world.secrets]
        made = [self.config.parent / "secrets" / name for name in ("gitlab-webhook", "alertmanager-token")]
        known += [path.read_text().strip() for path in made if path.exists()]
        files = [path for path in self.folder.rglob("*") if path.is_file() and path != self.image]
        open_ones = [path for path in files if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]
        return [path for path in open_ones if any(secret in path.read_text(errors="replace") for secret in known)]


@pytest.fixture
def place(servers: World) -> Iterator[Place]:
    """In a folder that QEMU's user may enter."""
    with TemporaryDirectory(prefix="ravebot-init-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield Place(servers, folder)


@dataclass
class Installed:
    """What the first run made and printed; the tests of what comes after share it."""

    place: Place
    code: int
    text: str
    devices_before: list[str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(servers: World) -> AsyncIterator[Installed]:
    with TemporaryDirectory(prefix="ravebot-init-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        place, devices = Place(servers, folder), await servers.devices()
        code, text = await place.run(place.command("--matrix-password-file", "-", matrix_password_file=None), PASSWORD)
        yield Installed(place, code, text, devices)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


async def test_a_script_gets_a_configuration_that_works_and_can_repeat_it(installed: Installed) -> None:
    place, code, text, before = installed.place, installed.code, installed.text, installed.devices_before
    world = place.world
    assert "Next: " in text, text
    loaded = load(place.config)
    assert loaded.warnings == ()
    assert loaded.config.matrix.users == {world.ops.user_id: "ops"}  # found in GitLab by the same name
    assert (loaded.secrets.matrix_password, loaded.secrets.gitlab_token) == world.secrets
    assert re.fullmatch("[0-9a-f]{64}", loaded.secrets.webhook_secret or "")
    assert place.readable_by_others() == []
    assert "reverse_proxy 127.0.0.1:80" in text
    assert "2200-" in text

    # Alerts: a token that only ravebot reads, its room, and what Alertmanager needs.
    token = loaded.secrets.alertmanager_token or ""
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert token not in text
    assert place.config.parent.joinpath("secrets", "alertmanager-token").stat().st_mode & 0o777 == 0o600
    assert loaded.config.matrix.operations_room == loaded.config.monitoring.usage_report == place.alerts_room
    assert "/webhooks/alertmanager" in text
    alerts_room = (await world.account.call("GET", "directory", "room", place.alerts_room))["room_id"]
    named = await world.account.call("GET", "rooms", alerts_room, "state", "m.room.name", "")
    assert named["name"] == "Operations of ravebot"

    # Its login is the one that `ravebot run` will use, and the only new device.
    kept = json.loads((place.state / "matrix.json").read_text())
    assert set(await world.devices()) - set(before) == {kept["device_id"]}

    # The room is unencrypted, and the admin is invited.
    room_id = (await world.account.call("GET", "directory", "room", place.room))["room_id"]
    state: Any = await world.account.call("GET", "rooms", room_id, "state")
    events = {(event["type"], event["state_key"]): event["content"] for event in state}
    assert ("m.room.encryption", "") not in events
    assert events["m.room.member", world.ops.user_id]["membership"] == "invite"

    hooks = [hook for hook in world.gitlab.hooks.hooks if "ravebot.example.org" in hook.url]
    assert [hook.secret_token for hook in hooks] == [loaded.secrets.webhook_secret]

    # Again, with nothing said: everything stays as it is.
    was = {path: path.read_bytes() for path in place.config.parent.rglob("*") if path.is_file()}
    again, text = await place.run([*place.bare(), "--yes"])
    assert again == code, text
    assert {path: path.read_bytes() for path in place.config.parent.rglob("*") if path.is_file()} == was
    assert json.loads((place.state / "matrix.json").read_text()) == kept
    assert set(await world.devices()) - set(before) == {kept["device_id"]}


async def test_all_missing_answers_are_listed_at_once_and_nothing_is_written(place: Place) -> None:
    before = tree(place.folder)
    code, text = await place.run(place.command(gitlab_url=None, room=None, matrix_password_file=None))
    assert code == 2
    assert text.startswith("3 answers are missing")
    for wanted in ("--gitlab-url", "RAVEBOT_INIT_GITLAB_URL", "--room", "--matrix-password-file"):
        assert wanted in text
    assert tree(place.folder) == before


async def test_two_secrets_can_not_both_come_from_standard_input(place: Place) -> None:
    code, text = await place.run(place.command(gitlab_token_file="-", matrix_password_file="-"), PASSWORD)
    assert (code, "only one of" in text) == (2, True)


async def test_a_variable_answers_as_an_option_does_and_a_wrong_answer_ends_with_cause_and_mend(place: Place) -> None:
    before, devices = tree(place.folder), await place.world.devices()
    place.environment["RAVEBOT_INIT_PROJECTS"] = "group/nope"
    code, text = await place.run(place.command(projects=None))
    assert code == 2
    assert "group/nope does not exist or is not visible to the bot (404); add the bot to it as Developer" in text
    assert tree(place.folder) == before
    assert await place.world.devices() == devices  # the trial login was ended


class Dialogue:
    """`ravebot init` on a terminal of its own, answered as a person does."""

    def __init__(self, place: Place, command: list[str]) -> None:
        self.text = ""
        self._seen = 0
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execvpe(command[0], command, {**place.environment, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"})

    def expect(self, words: str, within: float = 30.0) -> None:
        """Wait until those words were printed behind what was expected before; lines are joined."""
        deadline = time.monotonic() + within
        while (found := self._flat().find(words, self._seen)) < 0:
            left = deadline - time.monotonic()
            more = self._read() if left > 0 and select.select([self._terminal], [], [], left)[0] else ""
            assert more, f"{words!r} did not come; the end of what did:\n{self.text[-3000:]}"
        self._seen = found + len(words)

    def _flat(self) -> str:
        return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text).split())

    def _read(self) -> str:
        """More of what it prints; nothing at its end, which Linux makes an error."""
        try:
            more = os.read(self._terminal, 65536).decode(errors="replace")
        except OSError:
            return ""
        self.text += more
        return more

    def answer(self, text: str) -> None:
        os.write(self._terminal, text.encode() + b"\r")

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)

    def facts(self) -> str:
        """Arguments and environment, which other users can see with ps, or root."""
        folder = Path(f"/proc/{self.pid}")
        return (folder / "cmdline").read_text() + (folder / "environ").read_text()

    def end(self) -> int:
        """Wait for it; its exit code."""
        while self._read():
            pass
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


async def encrypted_room(world: World) -> str:
    name = f"e{uuid.uuid4().hex[:8]}"
    room_id = await world.ops.create_room(name)
    content = {"algorithm": "m.megolm.v1.aes-sha2"}
    await world.ops.call("PUT", "rooms", room_id, "state", "m.room.encryption", "", body=content)
    await world.ops.invite(room_id, world.account.user_id)
    return f"#{name}:localhost"


async def test_wrong_answers_are_asked_again_with_cause_and_mend(place: Place) -> None:
    world, before = place.world, tree(place.folder)
    devices, hooks = await world.devices(), len(world.gitlab.hooks.hooks)
    readonly = world.gitlab.token_for(world.bot, ("read_api",))
    guest = world.gitlab.add_project("other/guest")
    world.gitlab.set_role(guest, world.bot, GUEST)
    eve = await world.synapse.user(f"eve{uuid.uuid4().hex[:6]}")
    gone = await world.synapse.user(f"gone{uuid.uuid4().hex[:6]}", password="gone-gone")
    auth = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": gone.user_id}}
    await gone.call("POST", "account", "deactivate", body={"auth": {**auth, "password": "gone-gone"}})
    strange = f"s{uuid.uuid4().hex[:8]}"
    await eve.create_room(strange, [world.account.user_id])
    encrypted = await encrypted_room(world)

    def talk() -> Dialogue:
        with_image = [*place.bare(), "--state-dir", str(place.state), "--image", str(place.image)]
        talk = Dialogue(place, with_image)
        talk.expect("Matrix id of ravebot's account")
        asked: list[tuple[str, str]] = [
            ("ravebot", "write a Matrix id, like"),
            (gone.user_id, "press Ctrl-C and begin again 2. Address of its homeserver"),
            (
                world.gitlab.url,
                "is not a Matrix homeserver; correct matrix.homeserver: ADDRESS/_matrix/client/versions must list the",
            ),
            ("http://127.0.0.1:1", "can't be reached: Connection refused; correct matrix.homeserver, or"),
            (world.synapse.url, "hidden:"),
            ("gone-gone", "or reactivate the account if it is deactivated hidden:"),
        ]
        for text, then in asked:
            talk.answer(text)
            talk.expect(then)
        talk.press(b"\x03")
        assert talk.end() == 130
        assert "nothing was written" in talk.text

        talk = Dialogue(place, [*with_image, "--matrix-homeserver", world.synapse.url])
        talk.expect("Matrix id of ravebot's account")
        asked = [
            (world.account.user_id, "hidden:"),
            (
                "wrong",
                "refuses the password of @ravebot:localhost; type it again, let the homeserver's admin reset it, "
                "or reactivate the account if it is deactivated hidden:",
            ),
            (PASSWORD, "Address of GitLab"),
            (world.synapse.url, "is not GitLab; give GitLab's base address"),
            (world.gitlab.url, "hidden:"),
            (
                "glpat-wrong",
                "expired, revoked or without scope; put a token with the scope api into gitlab.token_file hidden:",
            ),
            (
                readonly,
                "create a token with the scope api, and put it into gitlab.token_file hidden:",
            ),
            (world.token, "Projects that get sandboxes"),
            ("other/guest", "the bot's role is below Developer; give it at least this role"),
            ("nowhere/*", "is in no such project; add @ravebot to one as Developer"),
            ("group/app", "Matrix ids of the admins"),
            ("@nobody:localhost", "knows no account @nobody:localhost; correct the id"),
            (world.ops.user_id, "Room that is told"),
            ("#dev:nowhere.invalid", "there is no room #dev:nowhere.invalid"),
            (encrypted, "is encrypted, which ravebot does not support yet; name a room without encryption"),
            (f"#{strange}:localhost", f"{eve.user_id} invited ravebot and is no admin: declined; let an admin invite"),
            (place.room, "Name or address of this host"),
            ("localhost", "use an address of this host that others can reach"),
            ("no-such-host.invalid", "can't be resolved"),
            ("192.0.2.7", "Networks that may reach sandboxes"),
            ("192.0.2.7/24", "with all host bits zero"),
            ("192.0.2.0/24", "Address of ravebot"),
            ("https://192.0.2.7", "must not be ravebot's host name"),
            ("https://ravebot.example.org", "Enter alone: leave it out"),
            ("#dev:nowhere.invalid", "there is no room #dev:nowhere.invalid"),
            ("", "Do all this?"),
            ("subnet", "Private network"),
            ("127.0.0.0/8", "not a private network"),
            ("10.201.0.0/24", "Do all this?"),
            ("nonsense", "There is no answer 'nonsense'"),
        ]
        for text, then in asked:
            talk.answer(text)
            talk.expect(then)
        return talk

    talk_ = await asyncio.to_thread(talk)
    assert tree(place.folder) == before
    assert not any(secret in talk_.facts() for secret in world.secrets)
    talk_.answer("no")
    assert await asyncio.to_thread(talk_.end) == 1
    assert "subnet: 10.201.0.0/24" in talk_.text
    assert not any(secret in talk_.text for secret in (*world.secrets, readonly))
    assert tree(place.folder) == before
    assert await world.devices() == devices
    assert len(world.gitlab.hooks.hooks) == hooks


async def test_what_failed_is_said_and_running_it_again_continues(place: Place) -> None:
    world, devices = place.world, await place.world.devices()
    world.gitlab.fail(403, method="POST", path="hooks")
    try:
        code, text = await place.run(place.command("--yes", public_url="https://other.example.org"))
    finally:
        world.gitlab.restore()
    assert code == 1
    assert "failed: the webhook of group/app" in text
    assert "run the same command again: it continues" in text
    room_id = (await world.account.call("GET", "directory", "room", place.room))["room_id"]
    code, text = await place.run([*place.bare(), "--yes"])
    assert "registered the webhook of group/app" in text
    assert "failed: the webhook" not in text
    assert len([hook for hook in world.gitlab.hooks.hooks if hook.url.startswith("https://other.")]) == 1
    assert (await world.account.call("GET", "directory", "room", place.room))["room_id"] == room_id
    assert len(await world.devices()) == len(devices) + 1


async def test_an_interrupt_after_the_confirmation_says_what_was_done(place: Place) -> None:
    world = place.world
    world.gitlab.drop(method="POST", path="hooks")
    try:

        def talk() -> Dialogue:
            talk = Dialogue(place, place.command("--yes", public_url="https://third.example.org"))
            talk.expect("made the room")
            deadline = time.monotonic() + 30
            while "POST" not in world.gitlab.under_way:
                assert time.monotonic() < deadline, talk.text
                time.sleep(0.02)
            talk.press(b"\x03")
            talk.expect("^C")
            world.gitlab.restore()
            assert talk.end() == 130
            return talk

        text = (await asyncio.to_thread(talk)).text
    finally:
        world.gitlab.restore()
    flat = " ".join(text.split())
    assert "Interrupted. Done so far: wrote " in flat
    assert "Run the same command again: it continues." in flat
    assert load(place.config).secrets.gitlab_token == world.token


async def test_two_configurations_in_one_folder_share_no_secret(installed: Installed) -> None:
    place, first = installed.place, installed.place.config
    token = place.folder / "other-token"
    token.write_text(place.world.gitlab.token_for(place.world.bot))
    try:
        place.config = first.with_name("second.yaml")
        await place.run(place.command("--yes", "--no-webhooks", state_dir=str(place.folder / "state-2")))
        one, other = load(first), load(place.config)
        assert other.config.instance == "second"
        assert one.secrets.webhook_secret != other.secrets.webhook_secret
        place.config = first.with_name("third.yaml")
        place.config.write_text(first.read_text())
        code, text = await place.run([*place.bare(), "--yes", "--gitlab-token-file", str(token)])
        assert code == 1
        assert f"{first} uses {first.parent}/secrets/gitlab-token too" in text
        assert load(first).secrets == one.secrets
    finally:
        place.config = first


async def test_an_existing_configuration_is_kept_but_for_what_changed_and_can_be_checked(installed: Installed) -> None:
    place = installed.place
    text = place.config.read_text().replace("matrix:\n", "matrix:\n  mentions: none  # quiet, please\n", 1)
    place.config.write_text(text + "pool: {max_running: 1}  # a small host\n")
    await place.run([*place.bare(), "--yes", "--no-webhooks", "--projects", "group/*"])
    after = place.config.read_text()
    assert "  mentions: none  # quiet, please\n" in after
    assert "pool: {max_running: 1}  # a small host\n" in after
    assert load(place.config).config.gitlab.projects == ("group/*",)
    assert load(place.config).config.matrix.rooms[0].projects == ("group/*",)

    was, devices = tree(place.folder), await place.world.devices()
    _, said = await place.run([*place.bare(), "--check"])
    assert "logged in as @ravebot:localhost" in said
    (place.config.parent / "secrets" / "gitlab-token").write_text("glpat-revoked\n")
    code, said = await place.run([*place.bare(), "--check"])
    assert code == 1
    assert "gitlab token: refused by" in said
    assert "matrix room" not in said or "not looked at" not in said
    assert tree(place.folder) == was
    assert place.config.read_text() == after
    assert await place.world.devices() == devices


async def test_a_folder_that_others_may_write_to_gets_no_secret(place: Place) -> None:
    place.config.parent.mkdir()
    place.config.parent.chmod(0o777)
    code, text = await place.run(place.command("--yes"))
    assert code == 1
    assert f"others may write to {place.config.parent}, and so replace what is in it: chmod go-w" in text
    assert list(place.config.parent.iterdir()) == []
    assert not place.state.exists()
