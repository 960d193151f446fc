"""What a sandbox gets of what its project asks for: the operator's limits win, labels beat the file, and it is said."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ravebot.config.repository import read_project_file
from ravebot.sandboxes.settings import SandboxSettings, file_at, resolve
from ravebot.sandboxes.starting import StartGate, start_gate, start_wait
from tests.support.records import A, B, a_machine, a_merge_request, make_config

GIB = 1024**3
AGENT = {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["coder"]}}


def settled(file: str | None, *labels: str, **changes: Any) -> SandboxSettings:
    config = make_config(Path("/none"), **changes)
    return resolve(config, read_project_file(file.encode()) if file is not None else None, labels)


def test_without_a_file_a_sandbox_is_as_it_is_configured() -> None:
    found = settled(None, sandbox={"setup": ["./up"], "smoke_tests": [{"http": "/"}]}, pool={"lifetime": "3h"})
    assert (found.memory, found.disk, found.vcpus) == (64 * 1024**2, 64 * 1024**2, 2)
    assert (found.setup, len(found.smoke_tests), found.lifetime) == (("./up",), 1, timedelta(hours=3))
    assert (found.start, found.remarks, found.image) == ("always", (), Path("/none/image.qcow2"))
    assert settled("") == settled(None)


def test_a_project_gets_what_it_asks_for_within_the_limits() -> None:
    found = settled("memory: 8GiB\nvcpus: 4\ndisk: 40GiB\nlifetime: 8h\nsetup: []\nsmoke_tests: []\n")
    assert (found.memory, found.vcpus, found.disk, found.lifetime) == (8 * GIB, 4, 40 * GIB, timedelta(hours=8))
    assert (found.setup, found.smoke_tests, found.remarks) == ((), (), ())


def test_the_operators_limits_win_and_each_time_it_is_said() -> None:
    found = settled("memory: 16GiB\nvcpus: 64\ndisk: 1TiB\nlifetime: 30d\n", limits={"memory": "1GiB"})
    assert (found.memory, found.vcpus, found.disk, found.lifetime) == (GIB, 4, 40 * GIB, timedelta(hours=8))
    assert found.remarks == (
        "`.rave.yml` asks for 16 GiB of memory; it gets 1 GiB, the most here",
        "`.rave.yml` asks for 1024 GiB of disk; it gets 40 GiB, the most here",
        "`.rave.yml` asks for 64 vcpus; it gets 4, the most here",
        "`.rave.yml` asks for a lifetime of 30 d; it gets 8 h, the longest here",
    )


def test_the_longest_lifetime_of_the_pool_counts_too() -> None:
    assert settled("lifetime: 6h\n", pool={"max_lifetime": "4h"}).lifetime == timedelta(hours=4)


def test_a_machine_is_never_smaller_than_the_operators_so_that_no_image_looks_broken() -> None:
    found = settled("memory: 64MiB\ndisk: 64MiB\nvcpus: 1\n", sandbox={"memory": "4GiB", "disk": "20GiB"})
    assert (found.memory, found.disk, found.vcpus) == (4 * GIB, 20 * GIB, 2)
    assert found.remarks[-1] == "`.rave.yml` asks for 1 vcpus; it gets 2, the least here"
    assert found.remarks[0] == "`.rave.yml` asks for 64 MiB of memory; it gets 4 GiB, the least here"


def test_a_limit_below_what_every_sandbox_gets_takes_nothing_away() -> None:
    found = settled("memory: 20GiB\n", sandbox={"memory": "16GiB"})
    assert found.memory == 16 * GIB


def test_an_image_is_asked_for_by_name_and_an_unknown_one_is_said() -> None:
    images = {"provider": {"images": {"debian-13": "/images/13.qcow2"}}}
    assert settled("image: debian-13\n", **images).image == Path("/images/13.qcow2")
    unknown = settled("image: debian-31\n", **images)
    assert unknown.image == Path("/none/image.qcow2")
    assert unknown.remarks == ("`.rave.yml` asks for the image debian-31, which is not here; did you mean debian-13?",)


def test_an_agent_is_named_only_if_people_can_speak_to_it() -> None:
    assert settled("agent: coder\n", agents=[AGENT]).agent == "coder"
    unknown = settled("agent: coda\n", agents=[AGENT])
    assert (unknown.agent, unknown.remarks) == (
        "",
        ("`.rave.yml` names the agent coda, which is not here; did you mean coder?",),
    )


def test_the_label_for_large_ones_beats_the_file() -> None:
    found = settled("memory: 1GiB\nvcpus: 1\n", "sandbox::large")
    assert (found.memory, found.vcpus, found.disk, found.remarks) == (8 * GIB, 4, 40 * GIB, ())


@pytest.mark.parametrize(
    ("file", "drafts", "draft", "labels", "gate"),
    [
        ("", "start", True, (), None),
        ("", "wait", True, (), StartGate.DRAFT),
        ("start: always", "wait", True, (), None),
        ("start: ready", "start", True, (), StartGate.DRAFT),
        ("start: ready", "start", False, (), None),
        ("start: command", "start", False, (), StartGate.COMMAND),
        ("start: {label: go}", "start", False, (), StartGate.LABEL),
        ("start: {label: go}", "start", True, ("go",), None),
        ("start: always", "start", False, ("sandbox::off",), StartGate.SKIP),
        ("start: {label: go}", "start", False, ("go", "sandbox::off"), StartGate.SKIP),
    ],
)
def test_when_one_starts_by_itself(
    file: str, drafts: str, draft: bool, labels: tuple[str, ...], gate: StartGate | None
) -> None:
    config = make_config(Path("/none"), gitlab={"drafts": drafts})
    settings = resolve(config, read_project_file(file.encode()), labels)
    mr = a_merge_request(draft=draft, labels=labels)
    assert start_gate(config, mr, settings) is gate
    wait = start_wait(config, mr, settings)
    assert (wait.gate if wait else None) is gate
    if gate is StartGate.LABEL:
        assert wait
        assert wait.label == "go"


def test_a_forks_own_file_counts_only_for_the_commit_that_was_let_in() -> None:
    fork = a_merge_request(source_project_id=9, target_branch="main")
    assert file_at(fork) == "refs/heads/main"
    assert file_at(replace(fork, approved_sha=A)) == A
    assert file_at(replace(fork, approved_sha=A, head_sha=B)) == "refs/heads/main"
    assert file_at(a_merge_request()) == A


def test_reports_are_where_the_project_says_or_else_where_the_operator_does() -> None:
    configured = {"sandbox": {"junit": ["all.xml"]}}
    assert settled("vcpus: 2\n", **configured).junit == ("all.xml",)
    assert settled("results: {junit: [own.xml]}\n", **configured).junit == ("own.xml",)
    assert settled("results: {junit: []}\n", **configured).junit == ()


def test_an_agent_that_people_can_not_speak_to_is_not_here() -> None:
    key_only = {"name": "keys", "owner": "alice", "projects": ["group/*"]}
    found = settled("agent: keys\n", agents=[AGENT, key_only])
    assert (found.agent, len(found.remarks)) == ("", 1)


def test_a_machine_of_another_size_or_image_is_another_machine() -> None:
    given = settled(None)
    same = a_machine(vcpus=given.vcpus, memory_bytes=given.memory, disk_bytes=given.disk, image=given.image_key)
    assert not given.differs_from(same)
    for other in ({"vcpus": 9}, {"memory_bytes": 1}, {"disk_bytes": 1}, {"image": "/other.qcow2"}):
        assert given.differs_from(replace(same, **other))
    assert not given.differs_from(replace(same, vcpus=0, image="/other.qcow2")), "of before sizes were kept"


def test_while_one_waits_its_note_says_what_is_wrong_in_the_file() -> None:
    config = make_config(Path("/none"))
    settings = resolve(config, read_project_file(b"start: command\nvcpus: 64\n"))
    wait = start_wait(config, a_merge_request(), replace(settings, troubles=("line 1",)))
    assert wait
    assert (len(wait.file.remarks), wait.file.troubles) == (1, ("line 1",))
    skipped = start_wait(config, a_merge_request(labels=("sandbox::off",)), settings)
    assert skipped
    assert (skipped.gate, skipped.label) == (StartGate.SKIP, "sandbox::off")
