"""What each section of the configuration refuses, and says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ravebot.config.file import newest_gitlab_token
from tests.support.config_folder import HIDDEN, Folder
from tests.support.tls import self_signed


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("sandbox", "path", "says"),
    [
        ("ssh_ports: 22-99", "sandbox.ssh_ports", "greater than or equal to 1024"),
        ("ssh_ports: 2299-2200", "sandbox.ssh_ports", "must not be above the last"),
        ("ssh_ports: 3050-3060", "sandbox", "must not overlap"),
        ("ssh_ports: 2200", "sandbox.ssh_ports", "a port range like 2200-2299"),
        ("ssh_ports: [2200]", "sandbox.ssh_ports", "a port range like 2200-2299"),
        ("memory: 0", "sandbox.memory", "from 64MiB"),
        ("memory: 4", "sandbox.memory", "from 64MiB"),
        ("disk: 20MB", "sandbox.disk", "from 64MiB"),
        ("disk: 999999999999999TiB", "sandbox.disk", "to 1024TiB"),
        ("max_source: 0", "sandbox.max_source", "from 1MiB"),
        ('setup: [""]', "sandbox.setup[0]", "write a command"),
        ("setup: ['./a', ' ']", "sandbox.setup[1]", "write a command"),
        ("ssh_ports: 8000-8099", "sandbox.ssh_ports", "ravebot's own"),
        ("ssh_ports: 2200-2200", "sandbox.ssh_ports", "fewer ports than pool.max_running"),
        ("memory: 4 gigs", "sandbox.memory", "write a size"),
        ("keep_failed: 9h", "sandbox.keep_failed", "must not be above pool.max_lifetime"),
        ("allow: [10.80.0.0/28]", "sandbox.allow[0]", "own subnet"),
        ("allow: [host.example.org]", "sandbox.allow[0]", "IPv4 network"),
        ("smoke_tests: [{htp: /x}]", "sandbox.smoke_tests[0]", "{http: …} or {run: …}"),
        ("smoke_tests: [{http: x}]", "sandbox.smoke_tests[0]", "{http: …} or {run: …}"),
        ("timeouts: {copy: never}", "sandbox.timeouts.copy", "duration"),
        ("connections_per_minute: {ssh: 0}", "sandbox.connections_per_minute.ssh", "greater than or equal to 1"),
    ],
)
def test_a_mistake_in_the_sandbox_section_is_told(folder: Folder, sandbox: str, path: str, says: str) -> None:
    problem = folder.one(("host: sandboxes.example.org", f"host: sandboxes.example.org, {sandbox}"))
    assert problem.path == path
    assert says in problem.message


@pytest.mark.parametrize("room", ["ops", "'@ops:example.org'", "[]", "{room: '#ops:example.org'}"])
def test_an_operators_room_that_is_none_is_told_how_to_write_one(folder: Folder, room: str) -> None:
    problem = folder.one(("  admins:", f"  operations_room: {room}\n  admins:"))
    assert problem.path == "matrix.operations_room"
    assert 'write a room in quotes, like "#ops:example.org"' in problem.message


def test_alerts_need_a_room_to_be_told_in(folder: Folder) -> None:
    token = folder.secret("alerts", "a-token-of-alertmanagers")
    alerts = f"monitoring: {{alertmanager_token_file: {token}}}\n"
    (problem,) = folder.problems(alerts + folder.minimal())
    assert problem.path == "monitoring.alertmanager_token_file"
    assert "set matrix.operations_room" in problem.message
    right = folder.load(alerts + folder.minimal(("  admins:", "  operations_room: '#ops:example.org'\n  admins:")))
    assert right.secrets.alertmanager_token == "a-token-of-alertmanagers"
    assert "a-token-of-alertmanagers" in right.secrets.values()


@pytest.mark.parametrize(
    ("provider", "path", "says"),
    [
        ("bridge: {name: Upper}", "provider.bridge.name", "lower-case letters"),
        ("bridge: {subnet: 192.0.2.0/24}", "provider.bridge.subnet", "RFC 1918"),
        ("bridge: {subnet: 100.64.0.0/24}", "provider.bridge.subnet", "RFC 1918"),
        ("bridge: {subnet: 10.80.0.0/30}", "provider.bridge.subnet", "room for guests"),
        ("bridge: {subnet: 10}", "provider.bridge.subnet", "like 192.0.2.0/24"),
        ("bridge: {subnet: 10.80.0.1/24}", "provider.bridge.subnet", "with all host bits zero"),
        ("kernel: /boot/vmlinuz", "provider", "kernel and initrd together"),
    ],
)
def test_a_mistake_in_the_provider_section_is_told(folder: Folder, provider: str, path: str, says: str) -> None:
    problem = folder.one(("image: /images/sandbox.qcow2", f"image: /images/sandbox.qcow2, {provider}"))
    assert problem.path == path
    assert says in problem.message


def test_the_report_of_use_goes_to_a_room_that_is_known(folder: Folder) -> None:
    problem = folder.one(
        ("host: sandboxes.example.org", "host: sandboxes.example.org}\nmonitoring: {usage_report: '#x:y'")
    )
    assert problem.path == "monitoring.usage_report"
    assert "a room that matrix.rooms lists, or that of matrix.operations_room" in problem.message


def test_an_agent_in_sandboxes_needs_their_network(folder: Folder) -> None:
    agents = "agents: [{name: coder, owner: alice, projects: [group/app], acp: {command: [opencode, acp]}}]"
    problem = folder.one(("image: /images/sandbox.qcow2}", f"image: /images/sandbox.qcow2, network: none}}\n{agents}"))
    assert problem.path == "agents[0].acp"
    assert "can't be used with provider.network: none" in problem.message


@pytest.mark.parametrize("network", ["10", "10.5", "192.0.2.1/24", "example.org", "'::/0'"])
def test_who_may_reach_sandboxes_is_written_as_networks(folder: Folder, network: str) -> None:
    problem = folder.one(("allow_from: [192.0.2.0/24]", f"allow_from: [{network}]"))
    assert problem.path == "access.allow_from[0]"
    assert "like 192.0.2.0/24" in problem.message


@pytest.mark.parametrize(
    "host",
    ["gitlab.example.org:443", "::1", "'[::1]'", "-a.org", "a-.org", "a..org", ".org", "''", "a_b.org", "a b", "1.2.3",
     "1.2.3.400", "010.1.1.1", f"{'x' * 64}.org", ".".join(["x" * 63] * 4), "https://a.org", "7"],
)  # fmt: skip
def test_a_sandbox_host_that_is_no_address_and_no_name_is_refused(folder: Folder, host: str) -> None:
    problem = folder.one(("host: sandboxes.example.org", f"host: '{host.strip(chr(39))}'"))
    assert problem.path == "sandbox.host"
    assert "without scheme or port" in problem.message


@pytest.mark.parametrize("host", ["203.0.113.7", "a", "sand-boxes.example.org.", "3com.net", f"{'x' * 63}.org"])
def test_an_address_or_a_name_is_a_sandbox_host(folder: Folder, host: str) -> None:
    assert folder.load(folder.minimal(("host: sandboxes.example.org", f"host: {host}"))).config.sandbox.host == host


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://bot:hush@rave.example.org", "user name and password"),
        ("https://rave.example.org/?a=1", "from the '?'"),
        ("https://rave.example.org/#a", "from the '?' or '#'"),
    ],
)
def test_an_address_holds_no_login_and_nothing_behind_its_path(folder: Folder, url: str, said: str) -> None:
    (problem,) = folder.problems(folder.minimal() + f"http: {{public_url: '{url}'}}\n")
    assert problem.path == "http.public_url"
    assert said in problem.message
    assert "hush" not in problem.message


@pytest.mark.parametrize(
    "host",
    ["gitlab.example.org", "GitLab.Example.org.", "matrix.example.org", "rave.example.org", "example.org", "org"],
)
def test_sandboxes_must_not_share_cookies_with_gitlab_matrix_or_ravebot(folder: Folder, host: str) -> None:
    text = folder.minimal(("host: sandboxes.example.org", f"host: {host}"))
    problems = folder.problems(text + "http: {public_url: 'https://rave.example.org'}\n")
    assert {problem.path for problem in problems} == {"sandbox.host"}
    assert "cookies" in problems[0].message


def test_a_host_that_only_ends_alike_is_no_parent_domain(folder: Folder) -> None:
    folder.load(folder.minimal(("host: sandboxes.example.org", "host: ple.org")))


def test_the_door_for_jobs_needs_to_know_what_their_tokens_are_for(folder: Folder) -> None:
    text = folder.minimal(("  webhook:", "  ci: {}\n  webhook:"))
    (problem,) = folder.problems(text)
    assert (problem.path, "set gitlab.ci.audience or http.public_url" in problem.message) == ("gitlab.ci", True)
    found = folder.load(text + "http: {public_url: 'https://rave.example.org'}\n")
    assert (found.config.ci_audience, found.warnings) == ("https://rave.example.org/", ())
    assert folder.load(folder.minimal()).config.ci_audience == ""
    (warning,) = folder.load(text + "http: {public_url: 'http://rave.example.org'}\n").warnings
    assert "the tokens of jobs cross the network unencrypted" in warning


def test_the_way_to_gitlab_is_checked_when_the_configuration_is_loaded(folder: Folder) -> None:
    token = f"  token_file: {folder.path}/gitlab\n"

    def wrong(line: str) -> str:
        problem = folder.one((token, f"{token}  {line}\n"))
        assert problem.path == f"gitlab.{line.partition(':')[0]}"
        return problem.message

    assert "there is no file" in wrong(f"ca_file: {folder.path}/ca.pem")
    (folder.path / "ca.pem").write_text("no certificate")
    assert "has no certificate in PEM" in wrong(f"ca_file: {folder.path}/ca.pem")
    (folder.path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert "has no certificate in PEM" in wrong(f"ca_file: {folder.path}/ca.pem")
    assert "is no regular file" in wrong(f"ca_file: {folder.path}")
    assert "leave the user name and password out" in wrong("proxy: http://name:word@proxy.example.org:3128")
    assert "leave out the path" in wrong("proxy: http://proxy.example.org:3128/path")
    assert "set gitlab.proxy" in wrong(f"proxy_login_file: {folder.path}/matrix")
    self_signed(folder.path)
    more = f"{token}  ca_file: {folder.path}/tls.pem\n  proxy: http://proxy.example.org:3128\n"
    loaded = folder.load(folder.minimal((token, f"{more}  proxy_login_file: {folder.path}/matrix\n")))
    assert loaded.secrets.gitlab_proxy_login == HIDDEN
    folder.secret("gitlab", "another")
    assert newest_gitlab_token(loaded.config) == "another"


@pytest.mark.parametrize(
    ("more", "other"),
    [
        ("pipeline_images: {folder: /var/lib/ravebot}", "state_dir"),
        ("pipeline_images: {folder: /var/lib}", "state_dir"),
        ("pipeline_images: {folder: /var/lib/ravebot/disks}", "provider.storage_pool"),
        ("pipeline_images: {folder: /disks/images}, storage_pool: /disks", "provider.storage_pool"),
        ("storage_pool: /var/lib/ravebot/pipeline-images/disks, pipeline_images: {}", "provider.storage_pool"),
        ("pipeline_images: {folder: /images}", "provider.image"),
        ("pipeline_images: {folder: /more}, images: {web: /more/of/web.qcow2}", "provider.images.web"),
    ],
)
def test_images_of_pipelines_get_a_folder_in_which_nothing_else_is(folder: Folder, more: str, other: str) -> None:
    problem = folder.one(("image: /images/sandbox.qcow2", f"image: /images/sandbox.qcow2, {more}"))
    assert problem.path == "provider.pipeline_images.folder"
    assert f"is for other things too ({other}): give the images a folder of their own" in problem.message


def test_without_a_folder_for_images_of_pipelines_it_is_in_the_state_folder(folder: Folder) -> None:
    text = folder.minimal(("image: /images/sandbox.qcow2", "image: /images/sandbox.qcow2, pipeline_images: {}"))
    config = folder.load(f"state_dir: {folder.path}/second\n{text}").config
    assert config.pipeline_images == folder.path / "second/pipeline-images"
