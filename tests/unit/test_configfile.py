"""Every mistake in a configuration is told at once, with its line, its key and what to do."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ravebot.config.file import InvalidConfigError, load
from tests.support.config_folder import Folder, example_with_secrets


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


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
