"""The service is installed and uninstalled below another root: again and again, beside what belongs to others."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ravebot.errors import Refused, Unavailable
from ravebot.operations import hostlock
from ravebot.operations.service import account
from ravebot.operations.service.install import Installed, install
from ravebot.operations.service.layout import Installation, things
from ravebot.operations.service.uninstall import RemovalStep, Say, StepOutcome, Uninstalled, look, remove, stop

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user"),
]


def quiet(text: str) -> None:
    """Nobody reads it."""


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """Below a root with the users of a host that has libvirt."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (etc / "group").write_text("root:x:0:\nlibvirt:x:110:\nkvm:x:107:\n")
    for name in ("shadow", "gshadow"):
        (etc / name).write_text("")
    return Installation(root=tmp_path, program=Path("/bin/true"))


def uid(installation: Installation) -> int:
    found = account.find(installation)
    assert found
    return found.owner.uid


def files_of(installation: Installation) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder with its mode, its owner and what it holds."""
    return {
        str(path.relative_to(installation.root)): (
            path.lstat().st_mode,
            path.lstat().st_uid,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in installation.root.rglob("*")
        if not path.name.endswith(("-", ".lock"))  # what useradd leaves beside its own files
    }


async def uninstall(
    installation: Installation, *, purge: bool = False, steps: Sequence[RemovalStep] = ()
) -> Uninstalled:
    return await remove(installation, look(installation, purge=purge, steps=steps), quiet)


def test_everything_is_there_with_its_owner_and_mode_and_again_changes_nothing(installation: Installation) -> None:
    said: list[str] = []
    done = install(installation, said.append)
    for thing in things(installation)[1:]:
        found = installation.at(thing.path).lstat()
        assert found.st_uid == (uid(installation) if thing.owned else 0), thing
        assert stat.S_ISLNK(found.st_mode) or stat.S_IMODE(found.st_mode) == thing.mode, thing
        assert any(line.startswith(thing.name) for line in said), thing
    assert account.find(installation).groups == {"libvirt", "kvm"}  # type: ignore[union-attr]
    assert not done.has_systemd
    before = files_of(installation)
    again = install(installation, said.append)
    assert (again.changed, files_of(installation)) == ((), before)


async def test_a_purge_leaves_what_was_there_before(installation: Installation) -> None:
    before = files_of(installation).keys()
    install(installation, quiet)
    (installation.at(installation.state_dir) / "ravebot.db").write_text("x")
    done = await uninstall(installation, purge=True)
    assert (done.kept, done.failed) == ((), ())
    left = {name for name in files_of(installation).keys() - before if (installation.root / name).is_file()}
    assert left == set()
    assert not installation.at(installation.state_dir).exists()
    assert account.find(installation) is None
    assert look(installation, purge=True).is_empty


async def test_without_purge_data_stays_and_belongs_to_root_until_the_next_installation(
    installation: Installation,
) -> None:
    install(installation, quiet)
    secret = installation.at(installation.secrets) / "gitlab-token"
    secret.write_text("x")
    config = installation.at(installation.config)
    config.write_text("x")
    config.chmod(0o600)
    install(installation, quiet)
    assert (secret.stat().st_uid, config.stat().st_uid) == (uid(installation), 0)
    assert (config.stat().st_gid, stat.S_IMODE(config.stat().st_mode)) == (uid(installation), 0o640)
    done = await uninstall(installation)
    assert [line.partition(":")[0] for line in done.kept] == [
        str(installation.state_dir),
        str(installation.secrets),
        str(installation.config.parent),
    ]
    assert secret.stat().st_uid == secret.parent.stat().st_uid == 0, "somebody else may get the user's number"
    install(installation, quiet)
    assert secret.stat().st_uid == uid(installation)


def test_a_folder_of_the_system_is_not_given_to_ravebots_user(installation: Installation) -> None:
    (installation.root / "var/lib/dpkg").mkdir(parents=True)
    before = files_of(installation)
    with pytest.raises(Refused, match=r"/var/lib is also used for dpkg.*a folder of its own"):
        install(replace(installation, state_dir=Path("/var/lib")), quiet)
    assert files_of(installation) == before


async def test_what_belongs_to_others_is_set_aside_at_installation_and_kept_at_removal(
    installation: Installation,
) -> None:
    state, unit = installation.at(installation.state_dir), installation.root / "etc/systemd/system/ravebot.service"
    state.mkdir(parents=True)
    (state / "precious").write_text("x")
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/my/own\n")
    done: Installed = install(installation, quiet)
    assert [Path(path).read_text() for path in done.set_aside] == ["[Service]\nExecStart=/my/own\n"]
    page = installation.root / "usr/local/share/man/man1/ravebot.1"
    page.write_text("mine now\n")
    gone = await uninstall(installation, purge=True)
    assert {line.partition(":")[0] for line in gone.kept} == {
        str(installation.state_dir),
        "/usr/local/share/man/man1/ravebot.1",
    }
    assert ((state / "precious").read_text(), page.read_text()) == ("x", "mine now\n")
    assert not unit.exists()


async def test_another_configuration_of_the_host_is_not_removed(installation: Installation) -> None:
    install(installation, quiet)
    second = installation.at(installation.config).with_name("second.yaml")
    second.write_text("instance: second\n")
    with pytest.raises(Refused, match=r"uses /etc/ravebot/config.yaml: nothing was removed"):
        look(replace(installation, config=Path("/etc/ravebot/second.yaml")), purge=True)
    done = await uninstall(installation, purge=True)
    assert any("holds second.yaml, too" in line for line in done.kept)
    assert (second.read_text(), done.failed) == ("instance: second\n", ())


async def test_no_link_is_followed(installation: Installation, tmp_path: Path) -> None:
    install(installation, quiet)
    state = installation.at(installation.state_dir)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (state / "inside").symlink_to(elsewhere)
    link = installation.root / "usr/local/bin/ravebot"
    link.unlink()
    link.symlink_to("/bin/false")
    done = await uninstall(installation, purge=True)
    assert [line.partition(":")[0] for line in done.kept] == ["/usr/local/bin/ravebot"]
    assert (state.exists(), (elsewhere / "precious").read_text()) == (False, "x")
    state.symlink_to(elsewhere)
    with pytest.raises(Refused, match="is a link to"):
        install(installation, quiet)
    assert [thing.name for thing in look(installation, purge=True).removed if "lib" in thing.name] == []


@pytest.mark.parametrize(
    "line",
    [
        "ravebot:x:1000:1000::/home/ravebot:/bin/bash",
        "ravebot:x:500:500::/home/ravebot:/bin/bash",
        "ravebot:x:0:0::/:/usr/sbin/nologin",
    ],
)
def test_a_user_who_can_log_in_or_is_root_is_not_given_the_rights(installation: Installation, line: str) -> None:
    with (installation.root / "etc/passwd").open("a") as passwd:
        passwd.write(f"{line}\n")
    with pytest.raises(Refused, match="exists already and can log in"):
        install(installation, quiet)
    assert not installation.at(installation.config.parent).exists()


async def test_a_system_user_that_somebody_made_is_used_and_stays(installation: Installation) -> None:
    with (installation.root / "etc/passwd").open("a") as passwd:
        passwd.write("ravebot:x:500:500:of the site:/nonexistent:/usr/sbin/nologin\n")
    install(installation, quiet)
    assert uid(installation) == 500
    done = await uninstall(installation, purge=True)
    assert done.kept == ("user ravebot: this user was not made by ravebot",)


def test_without_libvirt_nothing_is_installed(installation: Installation) -> None:
    (installation.root / "etc/group").write_text("root:x:0:\nkvm:x:107:\n")
    with pytest.raises(Refused, match=r"there is no group libvirt.*install libvirt first"):
        install(installation, quiet)


async def test_while_machines_are_left_what_knows_of_them_stays_and_the_next_time_goes_on(
    installation: Installation,
) -> None:
    install(installation, quiet)

    async def fails(say: Say) -> StepOutcome:
        raise Unavailable("libvirt does not answer")

    async def works(say: Say) -> StepOutcome:
        return StepOutcome(["rave-main-0123456789"], ["the webhook of group/app: a Maintainer removes it"])

    done = await uninstall(installation, purge=True, steps=[RemovalStep("the machines", fails)])
    assert done.failed == ("the machines: libvirt does not answer",)
    assert installation.at(installation.state_dir).is_dir()
    assert not (installation.root / "usr/local/share/man/man1/ravebot.1").exists()
    assert (installation.root / "usr/local/bin/ravebot").is_symlink(), "the command that is run again"
    done = await uninstall(installation, purge=True, steps=[RemovalStep("the machines", works)])
    kept = ("the webhook of group/app: a Maintainer removes it",)
    assert (done.failed, done.kept, done.removed[0]) == ((), kept, "rave-main-0123456789")
    assert not installation.at(installation.state_dir).exists()


async def test_one_thing_that_fails_does_not_keep_the_rest(installation: Installation) -> None:
    install(installation, quiet)
    page = installation.root / "usr/local/share/man/man1/ravebot.1"
    found = look(installation, purge=True)
    page.unlink()
    page.mkdir()
    done = await remove(installation, found, quiet)
    assert [line.partition(":")[0] for line in done.failed] == ["/usr/local/share/man/man1/ravebot.1"]
    assert len(done.removed) == len(found.removed) - 1


def test_nothing_is_removed_while_a_bot_runs(installation: Installation) -> None:
    install(installation, quiet)
    (installation.at(installation.state_dir) / "instance-id").write_text("stillrunning\n")
    with hostlock.held("stillrunning"), pytest.raises(Refused, match=r"ravebot still runs.*process"):
        stop(installation, quiet)
    stop(installation, quiet)


def test_a_file_system_that_is_mounted_in_the_state_folder_is_not_emptied(installation: Installation) -> None:
    install(installation, quiet)
    disks = installation.at(installation.state_dir) / "disks"
    disks.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(disks)], check=True)
    try:
        (kept,) = look(installation, purge=True).kept
        assert "is another file system: unmount it first" in kept
    finally:
        subprocess.run(["umount", str(disks)], check=True)
