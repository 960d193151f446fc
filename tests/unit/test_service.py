"""What is installed as a service: units, manual page and completion are generated, and everything fits together."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from ravebot.cli import app
from ravebot.config.file import fill
from ravebot.config.model import Config, PipelineImagesConfig
from ravebot.operations.service import beyond, completion, files, manual, ready, units
from ravebot.operations.service.files import FileOwner
from ravebot.operations.service.layout import MARK, Installation, ThingKind, things
from ravebot.operations.service.logs import tend_folder

WEEK = timedelta(days=7)
PROGRAM = Path("/bin/true")  # systemd-analyze looks whether it is there


def rendered(name: str, state_dir: Path = units.STATE_DIR, config: Path = units.CONFIG, user: str = "ravebot") -> str:
    return units.render(name, program=PROGRAM, config=config, state_dir=state_dir, user=user)


def value(text: str, key: str) -> str:
    found = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
    assert len(found) == 1, (key, found)
    return str(found[0])


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_accepts_every_unit_without_a_warning(tmp_path: Path) -> None:
    for name in units.names():
        (tmp_path / name).write_text(rendered(name))
    assert analyze("verify", "--man=no", *(str(tmp_path / name) for name in units.names())) == ""


@pytest.mark.parametrize("name", [name for name in units.names() if name.endswith(".service")])
def test_no_service_is_more_exposed_than_it_must_be(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(rendered(name))
    analyze("security", "--offline=true", "--no-pager", "--threshold=21", str(tmp_path / name))


def test_the_bot_runs_as_its_user_with_one_capability_and_says_when_it_is_ready() -> None:
    text = rendered("ravebot.service")
    assert value(text, "User") == value(text, "Group") == "ravebot"
    assert value(text, "AmbientCapabilities") == value(text, "CapabilityBoundingSet") == "CAP_NET_ADMIN"
    assert value(text, "Type") == "notify"
    assert value(text, "StateDirectoryMode") == "0711"


def test_a_unit_fits_another_installation() -> None:
    text = rendered("ravebot.service", Path("/srv/rave bot/100%"), Path("/etc/other/config.yaml"), "other")
    assert value(text, "ExecStart") == "/bin/true run --config /etc/other/config.yaml"
    assert value(text, "User") == value(text, "Group") == "other"
    assert value(text, "ReadWritePaths") == '"/srv/rave bot/100%%"'
    assert "\nStateDirectory" not in text
    assert value(rendered("ravebot.service", Path("/var/lib/bots/a")), "StateDirectory") == "bots/a"
    logs = value(rendered("ravebot-logs.service", Path("/srv/rave bot")), "ReadWritePaths")
    assert logs == '-/var/log/libvirt/qemu "-/srv/rave bot/console"'


def test_the_bot_may_write_to_a_folder_of_images_elsewhere(tmp_path: Path) -> None:
    here = Installation(state_dir=Path("/srv/bot"), images_folder=Path("/srv/my images"), program=PROGRAM)
    texts = {thing.path.name: thing.text() for thing in things(here) if thing.kind is ThingKind.UNIT and thing.text}
    bot = texts["ravebot.service"].splitlines()
    assert [line for line in bot if line.startswith("ReadWritePaths=")] == [
        'ReadWritePaths="-/srv/my images"',
        "ReadWritePaths=/srv/bot",
    ]
    assert not any("/srv/my images" in text for name, text in texts.items() if name != "ravebot.service")
    (tmp_path / "ravebot.service").write_text(texts["ravebot.service"])
    assert analyze("verify", "--man=no", str(tmp_path / "ravebot.service")) == ""

    for folder in (None, Path("/srv/bot/images")):
        within = things(replace(here, images_folder=folder))
        text = next(thing.text for thing in within if thing.path.name == "ravebot.service")
        assert text is not None
        assert value(text(), "ReadWritePaths") == "/srv/bot"


def test_no_unit_holds_or_passes_on_a_secret() -> None:
    for name in units.names():
        assert not re.search(r"(?i)password|token|secret|Environment|Credential", rendered(name)), name


def test_every_file_that_is_installed_says_whose_it_is(tmp_path: Path) -> None:
    made = [thing for thing in things(Installation()) if thing.kind in (ThingKind.FILE, ThingKind.UNIT)]
    assert {thing.path.name for thing in made} >= {"ravebot.1", "_ravebot", "ravebot.fish", "ravebot.service"}
    for thing in made:
        assert thing.text
        files.write(tmp_path / "file", thing.text(), 0o644)
        assert files.marked(tmp_path / "file", MARK), thing.path
    assert not files.marked(tmp_path / "nothing", MARK)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert not files.marked(tmp_path / "link", MARK)


def names(group: TyperGroup) -> list[str]:
    found: list[str] = []
    for name, command in group.commands.items():
        if not command.hidden:
            found += [f"{name} {one}" for one in names(command)] if isinstance(command, TyperGroup) else [name]
    return found


def test_the_manual_page_has_every_command_and_option_and_is_the_same_each_time() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    page = manual.page()
    assert page == manual.page()
    for name in names(group):
        assert f'.SS "ravebot {name.replace("-", chr(92) + "-")}' in page, name
    assert "tend" not in page  # nobody types it
    for option in ("--older\\-than", "--log\\-level"):
        assert option.replace("--", "\\-\\-") in page


def test_groff_has_nothing_to_say_about_the_manual_page() -> None:
    done = subprocess.run(
        ["groff", "-ww", "-b", "-man", "-Tutf8", "-Kutf8"],
        input=manual.page(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "--older-than" in re.sub(".\b", "", done.stdout)  # bold is printed twice over itself


@pytest.mark.parametrize("shell", list(completion.FILES))
def test_completion_of_each_shell_asks_the_program(shell: str) -> None:
    script = completion.script(shell)
    assert f"_RAVEBOT_COMPLETE=complete_{shell}" in script
    assert "ravebot" in script


def test_the_service_manager_is_told_only_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract,
    ):
        manager.bind(str(path))
        abstract.bind(f"\0ravebot-test-{os.getpid()}")
        manager.settimeout(1)
        abstract.settimeout(1)
        ready.tell(ready.READY, str(path))
        ready.tell(ready.STOPPING, f"@ravebot-test-{os.getpid()}")
        assert (manager.recv(100), abstract.recv(100)) == (b"READY=1", b"STOPPING=1")
    for nobody in (str(path), "", "nonsense"):
        ready.tell(ready.READY, nobody)


def test_a_file_is_replaced_whole_and_no_link_is_written_through(tmp_path: Path) -> None:
    path = tmp_path / "unit"
    other = tmp_path / "other"
    other.write_text("precious")
    path.symlink_to(other)
    files.write(path, "new", 0o640)
    assert (path.is_symlink(), path.read_text(), path.stat().st_mode & 0o777) == (False, "new", 0o640)
    assert other.read_text() == "precious"
    (tmp_path / "folder").symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory"):
        files.write(tmp_path / "folder" / "unit", "new", 0o644)
    assert {one.name for one in tmp_path.iterdir()} == {"unit", "other", "folder"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_logs_become_readable_and_expire_and_nothing_else_is_touched(tmp_path: Path) -> None:
    owner = FileOwner(64_001, 64_001)
    folder = tmp_path / "logs"
    folder.mkdir()
    outside = tmp_path / "shadow"
    outside.write_text("secret")
    for name in ("rave-main-0123456789.log", "rave-main-0123456789.log.0", "rave-main-aaaaaaaaaa.log", "other.log"):
        (folder / name).write_text("text")
        os.utime(folder / name, (0, 0))
    fresh = "rave-main-bbbbbbbbbb.log"
    (folder / fresh).write_text("text")
    (folder / "rave-main-cccccccccc.log").symlink_to(outside)
    os.link(outside, folder / "rave-main-dddddddddd.log")
    (folder / "rave-main-eeeeeeeeee.log").mkdir()

    done = tend_folder(folder, "rave-main-" + "[0-9a-f]" * 10 + ".log*", owner, {"rave-main-aaaaaaaaaa"}, WEEK)
    assert done.removed == ("rave-main-0123456789.log", "rave-main-0123456789.log.0")
    assert done.given == ("rave-main-aaaaaaaaaa.log", fresh)
    assert (folder / fresh).stat().st_uid == owner.uid
    assert outside.stat().st_uid == (folder / "other.log").stat().st_uid == 0
    assert outside.read_text() == "secret"

    unknown = tend_folder(folder, "other.log", owner, None, WEEK)
    assert (unknown.removed, unknown.given) == ((), ("other.log",)), "nothing is removed while libvirt is away"


def test_uninstall_says_that_something_stays_only_of_what_is_outside_the_state_folder() -> None:
    inside = {"storage_pool": "/var/lib/ravebot/disks", "image": "/images/web.qcow2"}
    config = Config.model_validate(fill({"state_dir": "/var/lib/ravebot", "provider": inside}))
    assert [line.partition(":")[0] for line in beyond.kept(config)] == ["/images/web.qcow2"]
    images = PipelineImagesConfig(folder=Path("/built"))
    elsewhere = config.provider.model_copy(update={"storage_pool": Path("/disks"), "pipeline_images": images})
    assert [line.partition(":")[0] for line in beyond.kept(config.model_copy(update={"provider": elsewhere}))] == [
        "/images/web.qcow2",
        "/disks",
        "/built",
    ]
