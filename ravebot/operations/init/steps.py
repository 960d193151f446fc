"""Carries out what was confirmed, step by step. Each step can be repeated: init continues what was interrupted."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ravebot.config.file import LoadedConfig, load
from ravebot.errors import RavebotError, Refused
from ravebot.matrix.client import LOGIN_FILE, login_text
from ravebot.operations.doctor.finding import Finding, Verdict
from ravebot.operations.doctor.matrix import kept_token, log_out, whoami
from ravebot.operations.init import write
from ravebot.operations.init.inquiry import Inquiry, RoomSeen, lookup, secrets_folder
from ravebot.operations.init.matrix import OPERATIONS, SANDBOXES, invite_missing, make_room
from ravebot.operations.init.questions import BY_NAME
from ravebot.operations.service import account, systemd
from ravebot.operations.service.install import install
from ravebot.operations.service.layout import Installation

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What to do beside writing the files."""

    service: bool = False
    start: bool = True  # the service, at the end
    webhooks: bool = True
    ssl_verification: bool | None = None  # as it is, or on
    build_image: bool = True
    link_folder: Path | None = Path("/usr/local/bin")


class InstallationSteps:
    """The steps of one installation; `done` says in words what was carried out."""

    def __init__(self, inquiry: Inquiry, text: str, wishes: Wishes, say: Say) -> None:
        self._inquiry = inquiry
        self._text = text
        self._wishes = wishes
        self._say = say
        self._owner = _owner_of(self.state_dir) if "state_dir" in inquiry.answers else None
        self._owners = frozenset({0, os.geteuid()})
        self._has_systemd = False
        self.done: list[str] = []
        self.failed: list[str] = []
        self.start = (
            f"ravebot run -c {inquiry.path}" if inquiry.path != Path("/etc/ravebot/config.yaml") else "ravebot run"
        )

    @property
    def state_dir(self) -> Path:
        return Path(self._inquiry.answers["state_dir"])

    def plan(self) -> list[str]:
        """What will be done beside the configuration, in words."""
        inquiry, wishes = self._inquiry, self._wishes
        lines = [
            f"write {inquiry.secret_file(BY_NAME[name])}, for ravebot's user only"
            for name, secret in inquiry.secrets.items()
            if inquiry.kept_secrets.get(name) != secret
        ]
        if wishes.service:
            lines.insert(0, "make the user ravebot, its folders, command and units")
        if inquiry.login is not None and kept_token(self.state_dir) is None:
            lines.append(f"keep one Matrix login (a device) in {self.state_dir}")
        lines += [
            f"make the room {room}, unencrypted, and invite {inquiry.answers['admins']}"
            for room in self._rooms()
            if not inquiry.rooms.get(room, RoomSeen()).exists
        ]
        if wishes.webhooks:
            lines.append(f"register webhooks to {inquiry.answers['public_url']} in {inquiry.answers['projects']}")
        image = Path(inquiry.answers["image"])
        if wishes.build_image and not image.exists():
            lines.append(f"build {image} (about a minute)")
        if wishes.service and wishes.start:
            lines.append("start ravebot, if the doctor finds nothing that failed")
        return lines

    def check(self) -> None:
        """Refuse before anything is written. Raises Refused."""
        inquiry = self._inquiry
        self.check_early()
        for name, secret in inquiry.secrets.items():
            path = inquiry.secret_file(BY_NAME[name])
            write.check_file(path)
            if inquiry.kept_secrets.get(name) != secret:
                self._check_unshared(path)

    def check_early(self) -> None:
        """Refuse what no answer can change, before anything is asked. Raises Refused."""
        path = self._inquiry.path
        write.check_folder(path.parent, self._owners)
        write.check_file(path)
        if self._wishes.service and os.geteuid() != 0:
            raise Refused("--service needs root: run the command with sudo")
        if self._wishes.service and path.name != "config.yaml":
            raise Refused(
                "--service installs one ravebot a host, whose configuration is called config.yaml: name it so"
            )

    def _check_unshared(self, path: Path) -> None:
        """Another configuration of the folder may use the same file, which must not change under it."""
        for other in sorted(self._inquiry.path.parent.glob("*.y*ml")):
            if other == self._inquiry.path or not other.is_file() or not os.access(other, os.R_OK):
                continue
            if str(path) in other.read_text("utf-8", "replace"):
                raise Refused(
                    f"{other} uses {path} too, and would get another secret: give that file there another name"
                )

    async def run(self) -> LoadedConfig:
        """All steps; a failure of those behind the files is noted in `failed`. Raises RavebotError and OSError."""
        if self._wishes.service:
            self._install_service()
        self._write_files()
        loaded = load(self._inquiry.path)
        await self._tried("the Matrix login", self._keep_login())
        for room, called in self._rooms().items():
            await self._tried(f"the room {room}", self._room(room, called))
        if self._wishes.webhooks:
            await self._tried("the webhooks", self._webhooks(loaded))
        if self._wishes.build_image:
            await self._tried("the image", self._image(loaded))
        self._link()
        return loaded

    async def _tried(self, what: str, step: Awaitable[None]) -> None:
        try:
            await step
        except (RavebotError, OSError) as error:
            self.failed.append(f"{what}: {error}")

    def _did(self, text: str) -> None:
        self.done.append(text)
        self._say(text)

    def _install_service(self) -> None:
        folder = lookup(self._inquiry.existing, ("provider", "pipeline_images", "folder"))
        images = Path(folder) if isinstance(folder, str) else None
        installation = Installation(config=self._inquiry.path, state_dir=self.state_dir, images_folder=images)
        installed = install(installation, self._say)
        self.done += installed.changed
        self.start = installed.start
        self._has_systemd = installed.has_systemd
        found = account.find(installation)
        if found is not None:
            self._owner = (found.owner.uid, found.owner.gid)

    def _write_files(self) -> None:
        inquiry = self._inquiry
        write.make_folder(inquiry.path.parent, 0o755, None, self._owners)
        for name, secret in inquiry.secrets.items():
            path = inquiry.secret_file(BY_NAME[name])
            if inquiry.kept_secrets.get(name) == secret:
                continue
            if path.parent == secrets_folder(inquiry.path):
                write.make_folder(path.parent, 0o700, self._owner, self._all_owners)
            write.check_folder(path.parent, self._all_owners)
            write.check_file(path)
            write.write_file(path, f"{secret}\n", 0o600, self._owner)
            self._did(f"wrote {path}")
        if not inquiry.path.exists() or inquiry.path.read_text("utf-8") != self._text:
            write.check_file(inquiry.path)
            write.write_public(inquiry.path, self._text)
            self._did(f"wrote {inquiry.path}")

    @property
    def _all_owners(self) -> frozenset[int]:
        return self._owners | ({self._owner[0]} if self._owner else set())

    async def _keep_login(self) -> None:
        """The trial login becomes ravebot's own, unless it has one that works; then it is ended."""
        inquiry, login = self._inquiry, self._inquiry.login
        if login is None:
            return
        user_id, base = inquiry.answers["matrix_user"], inquiry.homeserver
        there = kept_token(self.state_dir)
        if there is not None and (await whoami(base, there, user_id)).verdict is Verdict.OK:
            return  # the trial login is ended by whoever made it
        write.make_folder(self.state_dir, 0o711, self._owner, self._all_owners)
        write.check_folder(self.state_dir, self._all_owners)
        path = self.state_dir / LOGIN_FILE
        write.check_file(path)
        write.write_file(path, login_text(base, user_id, login.device_id, login.token), 0o600, self._owner)
        inquiry.login_stored = True
        self._did(f"kept the Matrix login in {path}")

    def _rooms(self) -> dict[str, tuple[str, str]]:
        """The rooms that were answered, with name and topic in case they are made."""
        answers = self._inquiry.answers
        alerts = {answers["alerts_room"]: OPERATIONS} if "alerts_room" in answers else {}
        return {**alerts, answers["room"]: SANDBOXES}

    async def _room(self, name: str, called: tuple[str, str]) -> None:
        inquiry = self._inquiry
        token, seen = inquiry.matrix_access or "", inquiry.rooms.get(name, RoomSeen())
        if not seen.exists:
            room_id = await make_room(inquiry.homeserver, token, name, inquiry.listed("admins"), called)
            inquiry.rooms[name] = RoomSeen(True, room_id, True)
            self._did(f"made the room {name} ({room_id}), unencrypted, and invited {inquiry.answers['admins']}")
        elif seen.joined:
            for person in await invite_missing(inquiry.homeserver, token, seen.room_id, inquiry.listed("admins")):
                self._did(f"invited {person} to {name}")

    async def _webhooks(self, loaded: LoadedConfig) -> None:
        from ravebot.operations.hooks import registry

        states = await registry.install(loaded, ssl_verification=self._wishes.ssl_verification)
        for state in states:
            if not state.ok:
                self.failed.append(f"the webhook of {state.project}: {state.sentence}")
            elif state.changed:
                self._did(f"registered the webhook of {state.project}")

    async def _image(self, loaded: LoadedConfig) -> None:
        path = loaded.config.provider.image
        if path.exists():
            return
        from ravebot.images import sources
        from ravebot.images.build import build
        from ravebot.images.recipe import Preset, Recipe, suite_for
        from ravebot.images.steps import Steps as Shown
        from ravebot.terminal import output

        self._say(f"building {path}, which takes about a minute")
        with Shown(output) as shown:
            await build(Recipe(suite_for(sources.codename()), Preset.WEB), path, progress=shown)
        self._did(f"built {path}")

    def _link(self) -> None:
        """`ravebot` in PATH, if it is in none of its folders."""
        folder, program = self._wishes.link_folder, Path(sys.executable).with_name("ravebot")
        if folder is None or self._wishes.service or not program.is_file() or not os.access(folder, os.W_OK):
            return
        path = folder / "ravebot"
        if path.resolve() == program.resolve() or shutil.which("ravebot") == str(program):
            return
        if path.exists() and not path.is_symlink():
            self._say(f"{path} is another program and stays: run {program}")
            return
        write.put_link(path, program)
        self._did(f"linked {path} to {program}")

    def start_service(self) -> bool:
        """Start the bot, or start it again with what is configured now. False if that is left to the person.

        Raises SystemdFailed.
        """
        if not (self._wishes.service and self._wishes.start and self._has_systemd):
            return False
        self._say("starting ravebot")
        systemd.control("enable", "--quiet", "ravebot.service")
        systemd.control("restart", "ravebot.service")
        self.done.append("started ravebot")
        return True

    async def end_login(self) -> None:
        """End the trial login, unless it became ravebot's own."""
        login = self._inquiry.login
        if login is not None and not self._inquiry.login_stored:
            await log_out(self._inquiry.homeserver, login.token)
            self._inquiry.login = None


def _owner_of(state_dir: Path) -> write.Ids | None:
    """The user that ravebot runs as, if root works for it: it must be able to read what is written."""
    try:
        found = state_dir.stat()
    except OSError:
        return None
    return (found.st_uid, found.st_gid) if os.geteuid() == 0 and found.st_uid != 0 else None


async def at_the_end(loaded: LoadedConfig) -> list[Finding]:
    """The doctor's findings that mean something before the first start."""
    from ravebot.operations.doctor import examine

    later = ("image check", "state folder", "forwarding", "running bot", "ports")
    found = await examine(loaded)
    return [one for one in found if one.verdict is Verdict.FAILED or one.name not in later]
