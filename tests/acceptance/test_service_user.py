"""The installed service as an ordinary user: its command brings a sandbox up, and it is removed without a trace."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Iterator

import pytest
import yaml

from tests.support.host import ROOT, Host, InstalledBot
from tests.support.stage import Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

_INSTALL = """
import sys
from pathlib import Path
from ravebot.operations.service.install import by_hand, install
from ravebot.operations.service.layout import Installation

installation = Installation(program=Path("/opt/ravebot/bin/ravebot"), state_dir=Path(sys.argv[1]))
done = install(installation, print)
again = install(installation, lambda text: None)
assert not again.changed, again
print(by_hand(installation))
"""
_PROGRAM = f"""#!{sys.executable}
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
sys.executable = "/opt/ravebot/bin/python"
from ravebot.cli import main
main()
"""
_WHERE = ("/etc", "/usr/local", "/opt", "/var/lib/ravebot")
_SECRETS = {
    "matrix-password": ("matrix", "password_file"),
    "gitlab-token": ("gitlab", "token_file"),
    "gitlab-webhook": ("gitlab", "webhook", "secret_token_file"),
}


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as host:
        host.put("/opt/ravebot/bin/ravebot", _PROGRAM, "755")
        yield host


def place(host: Host, stage: Stage) -> None:
    """Put the stage's configuration and secrets where an installation has them, as root would."""
    config = yaml.safe_load(stage.bot.config.read_text())
    for name, keys in _SECRETS.items():
        section = config
        for key in keys[:-1]:
            section = section[key]
        with open(section[keys[-1]]) as secret:
            host.put(f"/etc/ravebot/secrets/{name}", secret.read(), "600")
        section[keys[-1]] = f"/etc/ravebot/secrets/{name}"
    host.put("/etc/ravebot/config.yaml", yaml.safe_dump(config), "644")


async def test_what_the_unit_starts_runs_a_sandbox_as_its_user_and_is_uninstalled_without_a_trace(host: Host) -> None:
    async with Stage({"pool": {"orphan_sweep": "1s"}}) as stage:
        said = host.python(_INSTALL, str(stage.state_dir)).splitlines()
        place(host, stage)
        host.python(_INSTALL, str(stage.state_dir))  # gives root's new secrets to ravebot's user
        assert "No systemd runs here" in said[-2]
        by_hand = shlex.split(said[-1])
        unit = host.run("sed", "-n", "s/^ExecStart=//p", "/etc/systemd/system/ravebot.service").stdout.split()
        assert by_hand[-len(unit) :] == unit, "what is started by hand is what the unit starts"

        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify = stage.folder / "notify"
        manager.bind(str(notify))
        manager.settimeout(1)
        notify.chmod(0o777)
        bot = InstalledBot(
            stage.bot.config, stage.bot.log, {"NOTIFY_SOCKET": str(notify)}, host=host, started_by=by_hand
        )
        stage.bot = bot
        await stage.start()
        assert manager.recv(100) == b"READY=1"
        uid = int(host.run("id", "-u", "ravebot").stdout)
        status = host.run("cat", f"/proc/{bot.inner}/status").stdout
        assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in status
        assert {line.split()[1] for line in status.splitlines() if line.startswith("Cap")} == {f"{1 << 12:016x}"}

        mr = stage.open_merge_request()
        note = await stage.ready(mr)
        assert stage.ssh(note, "alice", "cat", "/srv/merge-request/feature.txt").stdout == "new\n"
        (console,) = (stage.state_dir / "console").iterdir()
        assert (console.stat().st_uid, len(console.read_bytes()) > 0) == (uid, True)
        log = f"/var/log/libvirt/qemu/{console.name}"
        owner = ("stat", "--format=%U", log)
        assert host.run(*owner).stdout == "root\n"
        logs = ("runuser", "-u", "ravebot", "--", "/opt/ravebot/bin/ravebot", "logs", f"group/app!{mr.iid}")
        shown = host.run(*logs)
        assert f"==> The machine's console: {console} <==" in shown.stdout
        assert f"QEMU's log, {log}: it can't be read as this user. It belongs to root" in shown.stderr
        assert (await bot.command("tend-logs")).returncode == 0
        assert host.run(*owner).stdout == "ravebot\n"
        assert f"==> QEMU's log: {log} <==" in host.run(*logs).stdout
        refused = await bot.command("uninstall", "--purge", "--yes")
        assert (refused.returncode, "ravebot still runs" in refused.stderr) == (1, True), refused

        unasked = await bot.command("uninstall")
        assert (unasked.returncode, "add --yes" in unasked.stderr) == (1, True), unasked
        await bot.stop()
        assert manager.recv(100) == b"STOPPING=1"
        done = await bot.command("uninstall", "--purge", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ravebot is uninstalled." in done.stdout
        assert not stage.state_dir.exists()
        left = host.run("find", *_WHERE, "-iname", "*ravebot*", check=False).stdout.split()
        assert left == ["/opt/ravebot", "/opt/ravebot/bin/ravebot"]
        assert host.run("getent", "passwd", "ravebot", check=False).stdout == ""
        assert host.run("virsh", "-c", "qemu:///system", "-q", "list", "--all").stdout.split() == []
        again = host.run("/opt/ravebot/bin/ravebot", "uninstall", "--purge", "--yes")
        assert "Nothing that ravebot installed is left" in again.stdout
