"""The files of the preset `rave`: units, nginx sites and pages are right, and no service listens to the outside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2] / "ravebot/images/guest/rave"
START = TREE / "usr/share/rave/start"
UNITS = TREE / "etc/systemd/system"
PATHS = {"prometheus": "9090", "node": "9100", "router": "3456", "kanban": "3457", "grafana": "3000"}


def site(name: str) -> str:
    return (TREE / "etc/nginx/rave" / f"{name}.conf").read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_units_pass_systemds_own_check(tmp_path: Path) -> None:
    shutil.copytree("/lib/systemd/system", tmp_path / "lib/systemd/system", symlinks=True)
    shutil.copytree(TREE, tmp_path, dirs_exist_ok=True)
    for script in tmp_path.glob("usr/local/sbin/*"):
        script.chmod(0o755)
    for fetched in ("opt/vibe-kanban/bin/vibe-kanban", "opt/node/bin/node"):
        (tmp_path / fetched).parent.mkdir(parents=True)
        shutil.copy(script, tmp_path / fetched)
    for package in ("prometheus", "prometheus-node-exporter", "grafana-server"):  # these units come from packages
        unit = tmp_path / f"lib/systemd/system/{package}.service"
        unit.write_text("[Service]\nExecStart=/opt/node/bin/node\n")
    ours = [path.name for path in UNITS.iterdir() if path.is_file()] + [path.name[:-2] for path in UNITS.glob("*.d")]
    check = ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", *ours]
    said = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


def test_every_service_starts_after_logins_and_the_guest_agent() -> None:
    wanted = re.findall(r"[a-z-]+\.service", (UNITS / "rave.target").read_text())
    assert len(wanted) == len(PATHS)
    for unit in wanted:
        own, drop_in = UNITS / unit, UNITS / f"{unit}.d/rave.conf"
        assert "After=multi-user.target\n" in (own if own.exists() else drop_in).read_text()


@pytest.mark.parametrize(("name", "port"), PATHS.items())
def test_each_part_has_a_path_behind_nginx_and_listens_on_the_loopback_alone(name: str, port: str) -> None:
    assert f"location ^~ /{name}/" in site(name) or f"location = /{name}/metrics" in site(name)
    assert f"location = /{name} " in site(name)
    assert set(re.findall(r"proxy_pass http://([^/;]+)", site(name))) == {f"127.0.0.1:{port}"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("etc/default/prometheus", "--web.listen-address=127.0.0.1:9090 --web.external-url=/prometheus/ "),
        ("etc/default/prometheus-node-exporter", "--web.listen-address=127.0.0.1:9100"),
        ("etc/systemd/system/vibe-kanban.service", "HOST=127.0.0.1 PORT=3457\n"),
        ("etc/systemd/system/grafana-server.service.d/rave.conf", "GF_SERVER_HTTP_ADDR=127.0.0.1\n"),
        ("etc/claude-code-router/config.json", '"HOST": "127.0.0.1",\n  "PORT": 3456,'),
    ],
)
def test_services_are_told_to_listen_where_nginx_finds_them(file: str, text: str) -> None:
    assert text in (TREE / file).read_text()


def test_the_routers_configuration_holds_no_key_and_makes_one_before_it_starts(tmp_path: Path) -> None:
    plain = (TREE / "etc/claude-code-router/config.json").read_text()
    config = json.loads(re.sub(r"^ *//.*\n", "", plain, flags=re.MULTILINE))
    assert (config["APIKEY"], config["Providers"][0]["api_key"]) == ("", "")
    # Without a provider the router listens on all addresses: https://github.com/musistudio/claude-code-router
    assert config["Providers"]
    script = (TREE / "usr/local/sbin/claude-code-router-key").read_text()
    made = tmp_path / "config.json"
    made.write_text(plain)
    for _ in range(2):  # the second run keeps the first one's key
        run = ["sh", "-c", script.replace("/etc/claude-code-router/config.json", str(made))]
        subprocess.run(run, check=True)
        keys = re.findall(r'"APIKEY": "([0-9a-f]{48})"', made.read_text())
        assert len(keys) == 1
        first = made.read_text()
    assert made.read_text() == first


def test_grafana_makes_its_password_and_key_before_its_first_start(tmp_path: Path) -> None:
    drop_in = (UNITS / "grafana-server.service.d/rave.conf").read_text()
    assert "ExecStartPre=/usr/local/sbin/grafana-secrets\n" in drop_in
    kept = dict(re.findall(r"GF_SECURITY_(\w+)=\$__file\{/var/lib/grafana/([a-z-]+)\}\n", drop_in))
    assert kept == {"ADMIN_PASSWORD": "admin-password", "SECRET_KEY": "secret-key"}
    script = (TREE / "usr/local/sbin/grafana-secrets").read_text()
    made = []
    for _ in range(2):  # the second run keeps what the first has made
        subprocess.run(["sh", "-c", script.replace("/var/lib/grafana", str(tmp_path))], check=True)
        made.append({file.name: file.read_text() for file in tmp_path.iterdir()})
    assert made[0] == made[1]
    assert made[0].keys() == set(kept.values())
    assert all(re.fullmatch("[0-9a-f]{48}", text) for text in made[0].values())
    assert len(set(made[0].values())) == 2
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_nginx_blocks_are_closed_and_every_part_is_included() -> None:
    main = (TREE / "etc/nginx/sites-enabled/sandbox").read_text()
    assert "include /etc/nginx/rave/*.conf;" in main
    for text in (main, *map(site, PATHS)):
        bare = re.sub(r"#.*", "", text)
        assert bare.count("{") == bare.count("}")
        for line in filter(None, map(str.strip, bare.splitlines())):
            assert line.endswith(("{", "}", ";")), line


@pytest.mark.parametrize("page", ["index.html", "no-answer.html"])
def test_pages_load_nothing_from_elsewhere(page: str) -> None:
    text = (START / page).read_text()
    assert not re.findall(r"(?:https?:)?//[a-z]", text)
    assert 'name="viewport"' in text
    assert 'content="light dark"' in text


def test_the_install_script_is_one_that_a_shell_can_read() -> None:
    subprocess.run(["sh", "-n", str(TREE / "install.sh")], check=True)
