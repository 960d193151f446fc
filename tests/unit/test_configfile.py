"""Every mistake in a configuration is told at once, with its line, its key and what to do."""

from __future__ import annotations

import os
import struct
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ravebot.config.file import InvalidConfigError, LoadedConfig, load, newest_gitlab_token
from ravebot.config.secrets import read_secret
from ravebot.config.tree import Problem
from tests.support.tls import self_signed

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
HIDDEN = "hush-hush-4711"

MINIMAL = """\
matrix:
  homeserver: https://matrix.example.org
  user_id: "@ravebot:example.org"
  password_file: {secrets}/matrix
  admins: ["@ops:example.org"]
  rooms:
    - {{room: "#dev:example.org", projects: [group/app]}}
gitlab:
  url: https://gitlab.example.org
  token_file: {secrets}/gitlab
  projects: [group/app]
  webhook: {{secret_token_file: {secrets}/webhook}}
sandbox: {{host: sandboxes.example.org}}
access: {{allow_from: [192.0.2.0/24]}}
provider: {{image: /images/sandbox.qcow2}}
"""


class Folder:
    """A folder with a configuration that is right, to be spoiled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("matrix", "gitlab", "webhook"):
            self.secret(name)

    def secret(self, name: str, content: str | bytes = HIDDEN, mode: int = 0o600) -> Path:
        file = self.path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return file

    def load(self, text: str | bytes | None = None) -> LoadedConfig:
        file = self.path / "config.yaml"
        text = self.minimal() if text is None else text
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(file)

    def minimal(self, *changes: tuple[str, str]) -> str:
        text = MINIMAL.format(secrets=self.path)
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        return text

    def problems(self, text: str | bytes | None = None) -> list[Problem]:
        with pytest.raises(InvalidConfigError) as caught:
            self.load(text)
        return list(caught.value.problems)

    def one(self, *changes: tuple[str, str]) -> Problem:
        problems = self.problems(self.minimal(*changes))
        assert len(problems) == 1, problems
        return problems[0]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_right_file_loads_with_its_secrets_and_defaults(folder: Folder) -> None:
    folder.secret("gitlab", "token\n")
    loaded = folder.load()
    assert loaded.config.pool.lifetime == timedelta(hours=2)
    assert loaded.secrets.gitlab_token == "token"
    assert loaded.secrets.webhook_signing is None
    assert loaded.warnings == ()


def test_secrets_show_nothing_of_themselves(folder: Folder) -> None:
    loaded = folder.load()
    assert HIDDEN not in repr(loaded)
    assert HIDDEN not in f"{loaded.secrets} {loaded!s}"
    assert loaded.secrets.values() == {HIDDEN}


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(folder: Folder) -> None:
    (folder.path / "webhook").unlink()
    text = folder.minimal(
        ("homeserver: https://matrix.example.org", "homesever: https://matrix.example.org"),
        ("projects: [group/app]\n  webhook", "projects: []\n  poll: soon\n  webhook"),
        ("sandbox: {host: sandboxes.example.org}", "sandbox: {host: example.org, memory: lots}"),
    )
    with pytest.raises(InvalidConfigError) as caught:
        folder.load(text + "lifetime: 2h\n")
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (1, "matrix.homeserver"),
        (2, "matrix.homesever"),
        (11, "gitlab.projects"),
        (12, "gitlab.poll"),
        (13, "gitlab.webhook.secret_token_file"),
        (14, "sandbox.host"),
        (14, "sandbox.memory"),
        (17, "lifetime"),
    ]
    assert f"{folder.path}/config.yaml:12: gitlab.poll: write a duration like 90s" in str(caught.value)


def test_mistakes_between_keys_are_told_together_with_the_others(folder: Folder) -> None:
    text = folder.minimal(("host: sandboxes.example.org", "host: gitlab.example.org, vcpu: 2"))
    assert [problem.path for problem in folder.problems(text)] == ["sandbox.host", "sandbox.vcpu"]


def test_mistakes_between_keys_are_told_also_when_others_are_missing(folder: Folder) -> None:
    text = folder.minimal(
        ("  homeserver: https://matrix.example.org\n", ""),
        (f"  token_file: {folder.path}/gitlab\n", ""),
        (f"  password_file: {folder.path}/matrix\n", ""),
        ("host: sandboxes.example.org", "host: gitlab.example.org, ssh_ports: 8000-8010, web_ports: 8010-8020"),
        ("image: /images/sandbox.qcow2", "initrd: /images/initrd"),
    )
    text += "pool: {lifetime: 9h, max_lifetime: 8h, max_running: 100}\nagents: [{name: a}, {name: a}, {nam: b}]\n"
    assert {problem.path for problem in folder.problems(text)} == {
        "matrix.homeserver", "matrix", "gitlab.token_file", "sandbox", "sandbox.host", "sandbox.ssh_ports",
        "sandbox.web_ports", "provider", "provider.image", "pool", "agents[2].nam", "agents[2].name",
    }  # fmt: skip


def test_what_is_missing_or_wrong_makes_no_complaint_about_what_rests_on_it(folder: Folder) -> None:
    for before, after, path in (
        ("sandbox: {host: sandboxes.example.org}\n", "", "sandbox"),
        ("sandbox: {host: sandboxes.example.org}", "sandbox: {host: ''}", "sandbox.host"),
        ("sandbox: {host: sandboxes.example.org}", "sandbox: 7", "sandbox"),
        ("  projects: [group/app]\n", "  projects: ['a b']\n", "gitlab.projects[0]"),
        (f"  webhook: {{secret_token_file: {folder.path}/webhook}}\n", "", "gitlab.webhook"),
        (f"  password_file: {folder.path}/matrix\n", "  password_file: !x\n", "matrix.password_file"),
        ("sandbox: {host: sandboxes.example.org}",
         "sandbox: {host: sandboxes.example.org, ssh_ports: 8000-8099}\nhttp: {listen: x}", "http.listen"),
    ):  # fmt: skip
        assert folder.one((before, after)).path == path


def test_a_wrong_value_makes_no_second_complaint_about_its_section(folder: Folder) -> None:
    text = folder.minimal() + "pool: {lifetime: forever, max_lifetime: 1h, max_running: 1}\n"
    assert [problem.path for problem in folder.problems(text)] == ["pool.lifetime"]


@pytest.mark.parametrize(
    ("added", "path", "says"),
    [
        ("pool: {lifetme: 2h}", "pool.lifetme", "did you mean lifetime?"),
        ("lifetime: 2h", "lifetime", "did you mean limits.lifetime or pool.lifetime?"),
        ("instnce: x", "instnce", "did you mean instance?"),
        ("http: {zzz: 1}", "http.zzz", "known here: listen, public_url"),
        ("pool: {lifetime: 2 hours}", "pool.lifetime", "write a duration like"),
        ("pool: {lifetime: 9h}", "pool", "lifetime must not be above max_lifetime"),
        ("pool: {lifetime: 0s}", "pool.lifetime", "longer than zero"),
        ("keep: {requests: 13d23h}", "keep.requests", "must be at least 14d"),
        ("keep: {output: 23h}", "keep.output", "must be at least 1d"),
        ("pool: {max_running: two}", "pool.max_running", "valid integer"),
        ("pool: {max_running: 90, max_running: 2}", "pool.max_running", "duplicate key, first in line 16"),
        ("pool: {warn_before: 30m}", "pool.warn_before", "write a list here"),
        ("pool: []", "pool", "write keys with values here"),
        ("instance: Main!", "instance", "lower-case"),
        ("state_dir: var", "state_dir", "absolute path"),
        ("http: {listen: 8080}", "http.listen", "an address and a port"),
        ("http: {listen: '127.0.0.1:99999'}", "http.listen", "from 1 to 65535"),
        ("agents: [{name: a}, {name: a}]", "agents", "2 agents are called a"),
        ("agents: [{name: a, ssh_keys: [not a key]}]", "agents[0].ssh_keys[0]", ".pub file"),
        ("1: x", "", "a key must be text"),
        ("'[key]': x", "[key]", "unknown key"),
        ("state_dir: 7", "state_dir", "absolute path"),
        ('state_dir: "/var/\\0"', "state_dir", "absolute path"),
        (f"state_dir: /{'x' * 96}", "state_dir", "at most 96 bytes"),
        ("pool: {lifetime: 366d}", "pool.lifetime", "at most a year"),
        ("pool: {max_lifetime: 99999999d}", "pool.max_lifetime", "at most a year"),
        ("pool: {warn_before: [10m, 0s]}", "pool.warn_before[1]", "longer than zero"),
        ("pool: {warn_before: [10m, 600s]}", "pool.warn_before", "twice"),
        ("http: {public_url: rave.example.org}", "http.public_url", "like https://example.org"),
        ("http: {public_url: 'ftp://rave.example.org'}", "http.public_url", "like https://example.org"),
        ("http: {listen: '127.0.0.1:0'}", "http.listen", "from 1 to 65535"),
        ("agents: [{name: 'UP'}]", "agents[0].name", "lower-case letters"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_to_do(folder: Folder, added: str, path: str, says: str) -> None:
    (problem,) = folder.problems(folder.minimal() + added + "\n")
    assert (problem.line, problem.path) == (16, path)
    assert says in problem.message


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


def test_unquoted_names_that_yaml_takes_for_something_else_are_explained(folder: Folder) -> None:
    (problem,) = folder.problems(folder.minimal(('admins: ["@ops:example.org"]', "admins: [@ops:example.org]")))
    assert problem.line == 5
    assert "quotes" in problem.message
    problem = folder.one(('  admins: ["@ops:example.org"]', "  command_prefix: !rave"))
    assert (problem.line, problem.path) == (5, "matrix.command_prefix")
    assert "quotes" in problem.message
    problem = folder.one(('{room: "#dev:example.org", projects: [group/app]}', "{room: dev, projects: [group/app]}"))
    assert problem.path == "matrix.rooms[0].room"
    assert '"#dev:example.org"' in problem.message


AGENT = """
api: {{listen: "127.0.0.1:8081"}}
agents:
  - {{name: helper, owner: bob, projects: [group/app], inbox: true}}
  - name: reviewer
    owner: bob
    projects: [group/app]
    webhook:
      url: https://reviewer.example.net/hook
      signing_key_file: {secrets}/key
"""


def test_the_signing_key_of_an_agent_is_read_with_the_others_and_hidden_like_them(folder: Folder) -> None:
    key = f"whsec_{'A' * 43}="
    folder.secret("key", f"{key}\n")
    secrets = folder.load(folder.minimal() + AGENT.format(secrets=folder.path)).secrets
    assert secrets.agent_signing == {"reviewer": key}
    assert secrets.values() == {HIDDEN, key}


@pytest.mark.parametrize("content", ["whsec_short", HIDDEN, "whsec_c2hvcnQ="])
def test_what_is_no_signing_key_is_refused_at_its_line_and_not_repeated(folder: Folder, content: str) -> None:
    folder.secret("key", content)
    [problem] = folder.problems(folder.minimal() + AGENT.format(secrets=folder.path))
    assert problem.path == "agents[1].webhook.signing_key_file"
    assert "docs/agents.md makes one" in problem.message
    assert content not in str(problem)


def test_no_message_repeats_a_value_where_a_secret_may_have_been_pasted(folder: Folder) -> None:
    text = folder.minimal((f"token_file: {folder.path}/gitlab", f"token_file: {HIDDEN}"))
    with pytest.raises(InvalidConfigError) as caught:
        folder.load(text + f"pasword: {HIDDEN}\n")
    assert len(caught.value.problems) == 2
    assert HIDDEN not in str(caught.value)


def test_exactly_one_login_is_wanted(folder: Folder) -> None:
    (problem,) = folder.problems(folder.minimal((f"  password_file: {folder.path}/matrix\n", "")))
    assert (problem.path, problem.message) == ("matrix", "give exactly one of password_file and access_token_file")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o660])
def test_a_secret_that_others_may_read_or_write_is_refused(folder: Folder, mode: int) -> None:
    file = folder.secret("gitlab", mode=mode)
    problem = folder.one()
    assert problem.path == "gitlab.token_file"
    assert f"chmod 600 {file}" in problem.message


ACL_READER = 4711
"""The user whom an access list lets read a file that belongs to root, as systemd does it with a credential."""


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The attribute with these entries of tag, permissions and id: linux/posix_acl_xattr.h."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize(
    ("group", "reader", "accepted"),
    [(0, ACL_READER, True), (4, ACL_READER, False), (0, ACL_READER + 1, False)],
    ids=["reader", "group", "another"],
)
def test_a_secret_with_an_access_list_may_be_read_by_its_owners_only(
    folder: Folder, group: int, reader: int, accepted: bool
) -> None:
    file = folder.secret("gitlab", mode=0o400)
    anybody = 0xFFFFFFFF
    entries = ((1, 4, anybody), (2, 4, reader), (4, group, anybody), (0x10, 4, anybody), (0x20, 0, anybody))
    os.setxattr(file, "system.posix_acl_access", acl(*entries))
    assert file.stat().st_mode & 0o777 == 0o440  # the mask stands where the group's bits are
    owners = {os.getuid(), ACL_READER}
    if accepted:
        assert read_secret(file, owners) == HIDDEN
    else:
        with pytest.raises(ValueError, match="others may read"):
            read_secret(file, owners)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_secret_that_belongs_to_another_user_is_refused(folder: Folder) -> None:
    file = folder.secret("gitlab")
    os.chown(file, 12345, 12345)
    problem = folder.one()
    assert problem.path == "gitlab.token_file"
    assert "belongs to user 12345" in problem.message
    assert "chown" in problem.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_root_reads_the_secrets_of_the_user_that_runs_ravebot(folder: Folder) -> None:
    state = folder.path / "state"
    state.mkdir()
    for path in (state, folder.path / "gitlab"):
        os.chown(path, 12345, 12345)
    folder.load(folder.minimal() + f"state_dir: {state}\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        (" \n\t\n", "is empty"),
        ("one\ntwo\n", "more than one line"),
        ("a\x00b", "control characters"),
        (b"\xff\xfe", "not UTF-8"),
        ("x" * 70_000, "larger than 64 KiB"),
    ],
)
def test_a_secret_file_that_holds_no_secret_is_refused(folder: Folder, content: str | bytes, says: str) -> None:
    folder.secret("webhook", content)
    problem = folder.one()
    assert problem.path == "gitlab.webhook.secret_token_file"
    assert says in problem.message


def test_a_secret_that_is_missing_a_folder_or_a_pipe_is_refused(folder: Folder) -> None:
    for name in ("matrix", "gitlab", "webhook"):
        (folder.path / name).unlink()
    (folder.path / "gitlab").mkdir(mode=0o700)
    os.mkfifo(folder.path / "webhook", 0o600)
    messages = {problem.path: problem.message for problem in folder.problems()}
    assert "there is no file" in messages["matrix.password_file"]
    assert "is a folder" in messages["gitlab.token_file"]
    assert "not a regular file" in messages["gitlab.webhook.secret_token_file"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a mapping"),
        ("- a\n- b\n", "not a mapping"),
        ("matrix: [", "not YAML"),
        ("a: b: c\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("a: &a [*a]\n", "expand to more than"),
        ("[" * 2000 + "]" * 2000, "nest"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("a: \x07\n", "not YAML"),
        ("a: " + "x" * 1_100_000, "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_configuration_is_told_so(folder: Folder, text: str | bytes, says: str) -> None:
    problems = folder.problems(text)
    assert any(says in problem.message for problem in problems), problems


def test_aliases_that_multiply_are_stopped_early(folder: Folder) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert any("expand to more than" in problem.message for problem in folder.problems(bomb))


def test_anchors_and_merge_keys_work(folder: Folder) -> None:
    text = folder.minimal(("projects: [group/app]}", "projects: &ours [group/app]}")).replace(
        "  projects: [group/app]\n", "  projects: *ours\n"
    )
    text += "pool: {<<: [{max_running: 3, lifetime: 1h}, {lifetime: 3h}], lifetime: 30m, warn_before: [10m]}\n"
    config = folder.load(text).config
    assert config.gitlab.projects == ("group/app",)
    assert (config.pool.max_running, config.pool.lifetime) == (3, timedelta(minutes=30))


def test_a_mistake_in_what_was_merged_in_is_told_where_it_is_written(folder: Folder) -> None:
    text = folder.minimal()
    text += "pool:\n  lifetime: 1h\n  <<: [{max_running: none,\n    lifetime: 3h},\n    {warm: 7, max_running: 1}]\n"
    text += "  orphan_sweep: 0s\n  warn_before: [x]\n"
    found = [(problem.line, problem.path) for problem in folder.problems(text)]
    assert found == [
        (18, "pool.max_running"), (20, "pool.warm"), (21, "pool.orphan_sweep"), (22, "pool.warn_before[0]"),
    ]  # fmt: skip
    (problem,) = folder.problems(folder.minimal() + "pool:\n  lifetime: x\n  <<: {max_running: 1,\n   lifetime: 3h}\n")
    assert (problem.line, problem.path) == (17, "pool.lifetime")


@pytest.mark.parametrize(
    "value",
    ["!!int ''", "!!float ''", "!!int '-'", "!!bool foo", "!!timestamp foo", "!!timestamp 2001-99-99", "!!binary x",
     "!!python/name:os.system x", '"\\ud800"', "9:" * 300 + "9", "9:" * 300 + "9.5", "!!int 0x", "!!float 1:x"],
)  # fmt: skip
def test_a_value_that_yaml_cannot_read_is_told_with_its_line(folder: Folder, value: str) -> None:
    problems = folder.problems(folder.minimal() + f"instance: {value}\npool: {{warm: 7}}\n")
    assert [(problem.line, problem.path) for problem in problems] == [(16, "instance"), (17, "pool.warm")]
    assert "quotes" in problems[0].message or "lower-case" in problems[0].message


@pytest.mark.parametrize(
    ("what", "says"), [("missing", "no such file"), ("folder", "is a folder"), ("pipe", "not a mapping")]
)
def test_a_path_that_is_no_file_is_told_so(tmp_path: Path, what: str, says: str) -> None:
    path = tmp_path / "config.yaml"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    with pytest.raises(InvalidConfigError, match=says):
        load(path)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("allow_from: [192.0.2.0/24]", "allow_from: []", "access.allow_from: is empty"),
        ("url: https://gitlab.", "url: http://gitlab.", "gitlab.url: is plain http"),
        ("projects: [group/app]}", "projects: [group/other]}", "group/other is not among gitlab.projects"),
        ("host: sandboxes.", "host: x.gitlab.", "lies below GitLab's host name"),
        ('  admins: ["@ops:example.org"]\n', "", "nobody can invite"),
        ("provider:", "limits: {memory: 64MiB}\nprovider:", "limits.memory: is below sandbox.memory"),
        ("provider:", 'api: {listen: "0.0.0.0:8081"}\nprovider:', "api.listen: is reached from other hosts"),
    ],
)
def test_what_is_unwise_is_a_warning(folder: Folder, before: str, after: str, says: str) -> None:
    (warning,) = folder.load(folder.minimal((before, after))).warnings
    assert says in warning


def test_the_door_for_jobs_needs_to_know_what_their_tokens_are_for(folder: Folder) -> None:
    text = folder.minimal(("  webhook:", "  ci: {}\n  webhook:"))
    (problem,) = folder.problems(text)
    assert (problem.path, "set gitlab.ci.audience or http.public_url" in problem.message) == ("gitlab.ci", True)
    found = folder.load(text + "http: {public_url: 'https://rave.example.org'}\n")
    assert (found.config.ci_audience, found.warnings) == ("https://rave.example.org/", ())
    assert folder.load(folder.minimal()).config.ci_audience == ""
    (warning,) = folder.load(text + "http: {public_url: 'http://rave.example.org'}\n").warnings
    assert "the tokens of jobs cross the network unencrypted" in warning


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["2h", "@a:b", "9" * 40]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_stands_anywhere_is_told_and_never_a_crash(folder: Folder, data: st.DataObject) -> None:
    """One place of the example, at any depth, is replaced by anything."""
    whole = yaml.safe_load(example_with_secrets(folder))
    place, at = whole, data.draw(st.sampled_from(sorted(whole)))
    while isinstance(place[at], dict | list) and place[at] and data.draw(st.booleans()):
        place = place[at]
        at = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[at] = data.draw(ANYTHING)
    messages = ["none"]
    try:
        folder.load(yaml.safe_dump(whole, allow_unicode=True))
    except InvalidConfigError as error:
        messages = [problem.message for problem in error.problems]
    assert messages
    assert all(message and "<class" not in message for message in messages)


def example_with_secrets(folder: Folder) -> str:
    for name in ("matrix-password", "gitlab-token", "gitlab-webhook"):
        folder.secret(name)
    return EXAMPLE.read_text().replace("/etc/ravebot/secrets", str(folder.path))


def test_the_example_is_right_but_for_its_secret_files(folder: Folder) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        folder.load(EXAMPLE.read_text().replace("/etc/ravebot/secrets", str(folder.path / "none")))
    assert all("there is no file" in problem.message for problem in caught.value.problems)
    loaded = folder.load(example_with_secrets(folder))
    assert [warning.split(":")[0] for warning in loaded.warnings] == ["access.allow_from"]


MODELS = """
models:
  - {name: small, url: "http://127.0.0.1:1", paths: [/v1/messages], allow: ["*"]}
  - {name: big, url: "https://api.example.org", key_file: FILE, paths: [/v1/messages], allow: ["*"]}
"""


def test_the_key_of_a_model_is_read_and_hidden(folder: Folder) -> None:
    folder.secret("key", "the key of the model")
    text = MINIMAL.format(secrets=folder.path) + MODELS.replace("FILE", str(folder.path / "key"))
    loaded = folder.load(text)
    assert loaded.secrets.model_keys == {"big": "the key of the model"}
    assert "the key of the model" in loaded.secrets.values()
    assert "the key of the model" not in f"{loaded}"


def test_a_key_that_is_not_there_is_said_at_its_line(folder: Folder) -> None:
    text = MINIMAL.format(secrets=folder.path) + MODELS.replace("FILE", "/nowhere/key")
    with pytest.raises(InvalidConfigError) as caught:
        folder.load(text)
    (problem,) = caught.value.problems
    assert (problem.path, "there is no file /nowhere/key" in problem.message) == ("models[1].key_file", True)
    assert problem.line == len(text.splitlines())


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
