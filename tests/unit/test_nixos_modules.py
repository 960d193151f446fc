"""The modules in nixos/, evaluated with nixpkgs' own library, which NIXPKGS_LIB names. Nothing is built here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ravebot.config.model import Config, SandboxConfig
from ravebot.config.secrets import SECRET_KEYS
from ravebot.sandboxes.model import CODE_FOLDER
from tests.support.nix import LIBRARY, NIXOS, PROGRAM, Nix, NixError

if PROGRAM is None or LIBRARY is None:
    pytest.skip("without nix-bin and NIXPKGS_LIB the files in nixos/ are only parsed", allow_module_level=True)

DEBIAN = NIXOS.parent / "ravebot/images/guest/rave"
MINIMAL = """\
{ pkgs, ... }:
{
  virtualisation.libvirtd.qemu.package = pkgs.qemu;
  services.ravebot = {
    enable = true;
    package = pkgs.ravebot;
    secrets = {
      matrixPassword = "/run/secrets/matrix";
      gitlabToken = "/run/secrets/gitlab";
      gitlabWebhook = "/run/secrets/webhook";
    };
    settings = {
      matrix.homeserver = "https://matrix.example.org";
      matrix.user_id = "@ravebot:example.org";
      gitlab.url = "https://gitlab.example.org";
      gitlab.projects = [ "group/*" ];
      sandbox.host = "sandboxes.example.net";
      provider.image = "/images/sandbox.qcow2";
      # more
    };
  };
}
"""
EVERYTHING = """\
      instance = "second";
      state_dir = "/var/lib/second";
      matrix.users."@alice:example.org" = "alice";
      matrix.rooms = [ { room = "#dev:example.org"; projects = [ "group/*" ]; } ];
      matrix.operations_room = "#ops:example.org";
      http.listen = "[::1]:8081";
      http.public_url = "https://ravebot.example.org";
      pool.warn_before = [ "1h30m" ];
      sandbox.allow = [ "10.0.5.0/24:443" ];
      sandbox.smoke_tests = [ { http = "/health"; } { run = "make check"; } ];
      access.allow_from = [ "192.0.2.0/24" ];
      provider.bridge = { name = "second0"; subnet = "10.81.0.0/24"; };
      provider.kernel = "/images/vmlinuz";
      provider.initrd = "/images/initrd.img";
"""


@pytest.fixture
def nix(tmp_path: Path) -> Nix:
    return Nix(tmp_path)


@dataclass(frozen=True)
class File:
    """The configuration file that the module makes: its text, and the script that checks it in the build."""

    text: str
    script: str

    def checked(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run the script as the build does, with this ravebot in the PATH."""
        program = folder / "bin" / "ravebot"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ravebot "$@"\n')
        program.chmod(0o755)
        (folder / "written").write_text(self.text)
        environment = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(NIXOS.parent),
            "writtenPath": str(folder / "written"),
            "out": str(folder / "out"),
        }
        return subprocess.run(
            ["/bin/sh", "-euc", self.script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )


def written(found: Any) -> File:
    made = found["environment"]["etc"]["ravebot/config.yaml"]["source"]
    return File(made["written"], made["script"])


@pytest.mark.parametrize("more", ["", EVERYTHING], ids=["minimal", "everything"])
def test_ravebot_accepts_what_the_settings_become(nix: Nix, tmp_path: Path, more: str) -> None:
    file = written(nix.module("ravebot.nix", MINIMAL.replace("# more", more)))
    done = file.checked(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out").read_text() == file.text
    config = Config.model_validate_json(file.text)
    assert config.sandbox.host == "sandboxes.example.net"
    assert config.provider.bridge.name == ("second0" if more else "ravebot0")
    assert len(config.sandbox.smoke_tests) == (2 if more else 0)
    assert "/run/secrets" not in file.text


def test_what_only_ravebot_can_tell_fails_the_build(nix: Nix, tmp_path: Path) -> None:
    file = written(nix.module("ravebot.nix", MINIMAL.replace("# more", 'pool.lifetime = "9h";')))
    done = file.checked(tmp_path)
    assert done.returncode != 0
    assert "lifetime must not be above max_lifetime" in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_each_secret_becomes_a_credential_that_the_configuration_names(nix: Nix) -> None:
    found = nix.module("ravebot.nix", MINIMAL)
    unit = found["systemd"]["services"]["ravebot"]["serviceConfig"]
    given = dict(entry.split(":", 1) for entry in unit["LoadCredential"])
    config = yaml.safe_load(written(found).text)
    named = set()
    for path in SECRET_KEYS.values():
        value = config
        for key in path:
            value = value.get(key, {})
        if value:
            named.add(value.removeprefix("/run/credentials/ravebot.service/"))
    assert named == set(given)
    assert given["gitlabToken"] == "/run/secrets/gitlab"


def test_the_unit_has_what_agents_and_images_need_and_the_program_brings_the_rest(nix: Nix) -> None:
    unit = nix.module("ravebot.nix", MINIMAL)["systemd"]["services"]["ravebot"]
    assert [one["package"] for one in unit["path"]] == ["qemu", "openssh", "util-linux", "gzip", "xz", "zstd"]


@pytest.mark.parametrize(
    ("images", "paths"),
    [
        ("null", []),
        ("{ }", []),
        ('{ folder = "/var/lib/ravebot/built"; }', []),
        ('{ folder = "/srv/images"; }', ["-/srv/images"]),
    ],
)
def test_the_unit_may_write_to_a_folder_of_images_elsewhere(nix: Nix, images: str, paths: list[str]) -> None:
    more = f"provider.pipeline_images = {images};"
    found = nix.module("ravebot.nix", MINIMAL.replace("# more", more))["systemd"]["services"]
    assert found["ravebot"]["serviceConfig"]["ReadWritePaths"] == paths


def test_images_from_pipelines_need_a_user_of_their_own(nix: Nix) -> None:
    asks = MINIMAL.replace("# more", "provider.pipeline_images = { };")
    user = 'systemd.services.ravebot.serviceConfig.User = "ravebot";'
    own = asks.replace("virtualisation.", f"{user}\n  virtualisation.", 1)
    held = [
        [one["assertion"] for one in nix.module("ravebot.nix", configuration)["assertions"]]
        for configuration in (MINIMAL, asks, own)
    ]
    assert held == [[True], [False], [True]]


def test_a_timer_backs_up_unless_it_is_switched_off(nix: Nix) -> None:
    found = nix.module("ravebot.nix", MINIMAL)["systemd"]
    timer, unit = found["timers"]["ravebot-backup"], found["services"]["ravebot-backup"]["serviceConfig"]
    assert (timer["timerConfig"]["OnCalendar"], timer["timerConfig"]["Persistent"]) == ("daily", True)
    assert unit["ExecStart"].endswith("/bin/ravebot backup --into /var/lib/ravebot/backups --keep 14")
    assert unit["ReadWritePaths"] == ["/var/lib/ravebot", "/var/lib/ravebot/backups"]
    assert found["tmpfiles"]["settings"]["10-ravebot-backup"]["/var/lib/ravebot/backups"]["d"]["mode"] == "0700"

    other = 'services.ravebot.backup = { path = "/srv/my backups"; keep = 3; calendar = "hourly"; };'
    found = nix.module("ravebot.nix", MINIMAL.replace("{\n", f"{{\n  {other}\n", 1))["systemd"]
    assert found["timers"]["ravebot-backup"]["timerConfig"]["OnCalendar"] == "hourly"
    assert found["services"]["ravebot-backup"]["serviceConfig"]["ExecStart"].endswith("'/srv/my backups' --keep 3")

    off = MINIMAL.replace("{\n", "{\n  services.ravebot.backup.enable = false;\n", 1)
    assert set(nix.module("ravebot.nix", off)["systemd"]["services"]) == {"ravebot"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("name", ["ravebot", "ravebot-backup"])
def test_systemd_knows_every_line_of_the_units(nix: Nix, name: str) -> None:
    unit = nix.module("ravebot.nix", MINIMAL)["systemd"]["services"][name]["serviceConfig"]
    lines = [
        f"{name}={('no', 'yes')[value] if isinstance(value, bool) else value}"
        for name, values in {**unit, "ExecStart": "/bin/true"}.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    file = nix.folder / "ravebot.service"
    for more, complaints in ([], False), (["ProtectEverything=yes"], True):
        file.write_text("\n".join(["[Service]", *lines, *more, ""]))
        done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
        assert bool(done.stderr) == complaints, done.stderr


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ('pool.max_running = "two";', "pool.max_running"),
        ('pool.lifetime = "2 hours";', "pool.lifetime"),
        ('matrix.mentions = "loud";', "matrix.mentions"),
        ("sandbox.cpus = 2;", "sandbox.cpus"),
        ('matrix.password_file = "/nix/store/secret";', "matrix.password_file"),
        ('sandbox.smoke_tests = [ { http = "/"; run = "true"; } ];', "sandbox.smoke_tests"),
    ],
)
def test_a_value_of_the_wrong_type_and_an_unknown_key_are_refused(nix: Nix, more: str, complaint: str) -> None:
    with pytest.raises(NixError, match=f"services.ravebot.settings.{complaint}"):
        nix.module("ravebot.nix", MINIMAL.replace("# more", more))


def test_a_secret_in_the_store_is_refused(nix: Nix) -> None:
    inside = nix.folder / "store" / f"{32 * '0'}-secret"
    with pytest.raises(NixError, match=r"services\.ravebot\.secrets\.gitlabToken"):
        nix.module("ravebot.nix", MINIMAL.replace("/run/secrets/gitlab", str(inside)))


def test_an_option_that_is_not_recorded_is_refused(nix: Nix) -> None:
    with pytest.raises(NixError, match=r"services\.openvpn"):
        nix.module("ravebot.nix", MINIMAL.replace("{\n", "{\n  services.openvpn.restartAfterSleep = true;\n", 1))


SANDBOX = """\
{ pkgs, ... }:
{
  services.grafana = { dataDir = "/var/lib/grafana"; package = pkgs.grafana; };
  services.prometheus.package = pkgs.prometheus;
  # more
}
"""


def test_the_sandbox_is_what_the_default_configuration_expects(nix: Nix) -> None:
    found = nix.module("sandbox.nix", SANDBOX)
    user, web_port = SandboxConfig.model_fields["user"].default, SandboxConfig.model_fields["web_port"].default
    assert found["ravebot"]["sandbox"]["user"] == user
    assert found["users"]["users"][user]["isNormalUser"]
    assert found["systemd"]["tmpfiles"]["settings"]["10-ravebot"][CODE_FOLDER]["d"]["user"] == user
    assert found["networking"]["firewall"]["allowedTCPPorts"] == [web_port]
    assert found["services"]["nginx"]["virtualHosts"]["sandbox"]["listen"] == [{"addr": "0.0.0.0", "port": web_port}]


def test_the_sandbox_meets_the_contract(nix: Nix) -> None:
    found = nix.module("sandbox.nix", SANDBOX)
    services, sshd = found["services"], found["services"]["openssh"]
    assert services["qemuGuest"]["enable"]
    assert found["systemd"]["services"]["qemu-guest-agent"]["after"] == ["sshd.service"]
    assert sshd["enable"]
    assert sshd["authorizedKeysInHomedir"]
    assert [key["path"] for key in sshd["hostKeys"]] == ["/etc/ssh/ssh_host_ed25519_key"]
    assert not sshd["settings"]["PasswordAuthentication"]
    assert not sshd["settings"]["KbdInteractiveAuthentication"]
    assert sshd["settings"]["AllowTcpForwarding"]
    assert sshd["settings"]["GatewayPorts"] == "no"
    assert found["boot"]["growPartition"]
    assert "qemu-guest" in found["boot"]["kernelParams"]  # nixpkgs' profile, which has the disk's driver
    network = found["systemd"]["network"]["networks"]["10-ravebot"]
    assert (network["networkConfig"]["DHCP"], network["dhcpV4Config"]["ClientIdentifier"]) == ("ipv4", "mac")


def site(found: Any) -> str:
    """What stands in nginx's server block besides the start page and the merge request's files."""
    text: str = found["services"]["nginx"]["virtualHosts"]["sandbox"]["extraConfig"]
    return text


def start_page(found: Any) -> dict[str, dict[str, str]]:
    """What the start page says of each part, by the part's path."""
    locations = found["services"]["nginx"]["virtualHosts"]["sandbox"]["locations"]
    assert locations["^~ /start/"]["alias"].endswith("-start/")
    return {part["path"]: part for part in json.loads(locations["= /start/parts.json"]["alias"]["written"])}


def test_each_part_of_the_stack_has_the_debian_images_path_and_listens_on_loopback_only(nix: Nix) -> None:
    found = nix.module("sandbox.nix", SANDBOX.replace("# more", "ravebot.sandbox.rave.vibeKanban = pkgs.vibe-kanban;"))
    for file in (DEBIAN / "etc/nginx/rave").iterdir():
        assert file.read_text() in site(found)
    services, units = found["services"], found["systemd"]["services"]
    prometheus, grafana = services["prometheus"], services["grafana"]["settings"]["server"]
    listening = {
        f"{prometheus['listenAddress']}:{prometheus['port']}",
        "{listenAddress}:{port}".format(**prometheus["exporters"]["node"]),
        f"{grafana['http_addr']}:{grafana['http_port']}",
        "{HOST}:{PORT}".format(**units["vibe-kanban"]["environment"]),
        "127.0.0.1:3456",  # in the router's own configuration, which is the Debian image's
    }
    assert set(re.findall(r"proxy_pass http://([^/;]+)", site(found))) == listening
    assert prometheus["configText"] == (DEBIAN / "etc/prometheus/prometheus.yml").read_text()


def test_the_site_is_set_up_as_the_debian_images(nix: Nix) -> None:
    found = nix.module("sandbox.nix", SANDBOX)
    _, server = (DEBIAN / "etc/nginx/sites-enabled/sandbox").read_text().split("root /srv/merge-request;")
    lines = re.findall(r"^    (\w.*;)", server[: server.index("location")], flags=re.MULTILINE)
    assert len(lines) > 8
    assert [line for line in lines if line not in site(found)] == []
    assert not found["services"]["nginx"]["validateConfigFile"]


def test_the_start_page_says_what_the_debian_images_says(nix: Nix) -> None:
    found = nix.module("sandbox.nix", SANDBOX.replace("# more", "ravebot.sandbox.rave.vibeKanban = pkgs.vibe-kanban;"))
    script = (DEBIAN / "install.sh").read_text()
    (keys,) = re.findall(r"keys = \((.*?)\)", script)
    parts = start_page(found)
    assert set(parts) == {"/code/", "/prometheus/", "/node/metrics", "/router/", "/kanban/", "/grafana/"}
    for part in parts.values():
        assert {f'"{key}"' for key in part} < set(keys.split(", "))
        assert re.search(rf"^ *part '?{part['name']}'? {part['path']} ", script, flags=re.MULTILINE)
        assert f"'{part['about'].replace('/var/lib/claude-code-router/.', '/etc/')}'" in script
        assert "left_out" not in part
        assert part.get("version") == (None if part["path"] == "/code/" else "1.0")


def test_the_router_keeps_its_key_to_itself_and_comes_back_when_its_page_restarts_it(nix: Nix) -> None:
    unit = nix.module("sandbox.nix", SANDBOX)["systemd"]["services"]["claude-code-router"]
    assert (unit["serviceConfig"]["Restart"], unit["serviceConfig"]["UMask"]) == ("always", "0077")
    shim = (DEBIAN / "opt/claude-code-router/bin/ccr").read_text()
    assert unit["path"] == [{"package": "ccr", "written": shim}]
    home = nix.folder / "home"
    script = re.sub(r"\S+-config\.json", str(DEBIAN / "etc/claude-code-router/config.json"), unit["preStart"])
    made = home / ".claude-code-router/config.json"
    keys = set()
    for _ in range(2):  # the second run keeps the first one's key
        subprocess.run(["sh", "-euc", script], env={**os.environ, "HOME": str(home)}, check=True)
        keys |= set(re.findall(r'"APIKEY": "([0-9a-f]{48})"', made.read_text()))
    assert len(keys) == 1


def test_what_is_left_out_of_the_stack_has_no_path_and_no_service_and_the_start_page_says_so(nix: Nix) -> None:
    found = nix.module("sandbox.nix", SANDBOX.replace("# more", "ravebot.sandbox.rave.claudeCodeRouter = null;"))
    assert not re.findall("/router/|/kanban/|assets", site(found))
    assert not {"claude-code-router", "vibe-kanban"} & set(found["systemd"]["services"])
    left_out = {path: part["left_out"] for path, part in start_page(found).items() if "left_out" in part}
    assert left_out == {
        "/router/": "ravebot.sandbox.rave.claudeCodeRouter names no package",
        "/kanban/": "ravebot.sandbox.rave.vibeKanban names no package",
    }
    bare = nix.module("sandbox.nix", SANDBOX.replace("# more", "ravebot.sandbox.rave.enable = false;"))
    assert "enable" not in bare["services"]["nginx"]


def test_the_runner_has_kvm_limits_and_a_cache_and_its_token_outside_the_store(nix: Nix) -> None:
    configuration = '{ services.ravebot-runner = { enable = true; tokenFile = "/run/secrets/runner"; # more\n }; }'
    runner = nix.module("gitlab-runner.nix", configuration)["services"]["gitlab-runner"]["services"]["ravebot"]
    assert runner["dockerPrivileged"]
    assert runner["dockerVolumes"] == ["/cache"]
    flags = ["--docker-devices /dev/kvm", "--docker-memory 8g", "--docker-memory-swap 8g", "--docker-cpus 4"]
    assert runner["registrationFlags"] == flags
    assert runner["authenticationTokenConfigFile"] == "/run/secrets/runner"
    assert "registrationConfigFile" not in runner

    older = configuration.replace("# more", 'tokenKind = "registration"; tags = [ "kvm" ];')
    runner = nix.module("gitlab-runner.nix", older)["services"]["gitlab-runner"]["services"]["ravebot"]
    assert (runner["registrationConfigFile"], runner["tagList"]) == ("/run/secrets/runner", ["kvm"])

    (useless,) = nix.module("gitlab-runner.nix", configuration.replace("# more", 'tags = [ "kvm" ];'))["assertions"]
    assert not useless["assertion"]
    with pytest.raises(NixError, match="tokenFile"):
        nix.module("gitlab-runner.nix", configuration.replace('"/run/secrets/runner"', "./configuration.nix"))
