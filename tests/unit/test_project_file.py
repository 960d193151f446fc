"""What is read from a `.rave.yml`, and what is said of one that is wrong or hostile: in time, with line and column."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.config.model import HttpTest, RunTest
from ravebot.config.repository import (
    MAX_FILE_BYTES,
    ImageJob,
    ProjectFile,
    ProjectFileError,
    StartOnLabel,
    project_file_schema,
    read_project_file,
)
from ravebot.config.tree import Problem

WHOLE = b"""\
memory: 6GiB
vcpus: 4
disk: 30GiB
lifetime: 1h30m
image: debian-13
image_job: {job: "ravebot:build", path: out/disk.raw.zst, otherwise: default}
wait_for_image: 30m
setup: [./scripts/install]
smoke_tests:
  - {http: /health}
  - {run: make check}
links:
  - {name: Grafana, path: /grafana/}
results: {junit: ["build/*.xml"]}
start: {label: review}
agent: coder
"""


def problems(raw: bytes | str) -> tuple[Problem, ...]:
    with pytest.raises(ProjectFileError) as caught:
        read_project_file(raw.encode() if isinstance(raw, str) else raw)
    return caught.value.problems


def test_every_key_is_read() -> None:
    file = read_project_file(WHOLE)
    assert (file.memory, file.vcpus, file.disk) == (6 * 1024**3, 4, 30 * 1024**3)
    assert (file.lifetime, file.image, file.agent) == (timedelta(minutes=90), "debian-13", "coder")
    assert file.image_job == ImageJob(job="ravebot:build", path="out/disk.raw.zst", otherwise="default")
    assert file.wait_for_image == timedelta(minutes=30)
    assert (file.setup, file.smoke_tests) == (
        ("./scripts/install",),
        (HttpTest(http="/health"), RunTest(run="make check")),
    )
    assert [(link.name, link.path) for link in file.links] == [("Grafana", "/grafana/")]
    assert (file.results.junit, file.start) == (("build/*.xml",), StartOnLabel(label="review"))
    assert set(ProjectFile.model_fields) == file.model_fields_set, "a new key belongs into this test"


def test_what_is_stored_of_a_file_is_the_file() -> None:
    file = read_project_file(WHOLE)
    assert ProjectFile.model_validate_json(file.model_dump_json(exclude_unset=True)) == file


@pytest.mark.parametrize("raw", [b"", b" \n\n", b"# nothing\n# at all", b"---\n...\n", b"\xef\xbb\xbf{}\n"])
def test_a_file_without_keys_asks_for_nothing(raw: bytes) -> None:
    assert read_project_file(raw) == ProjectFile()


@pytest.mark.parametrize(
    ("raw", "line", "column", "says"),
    [
        ("vcpus: 2\nmemori: 1GiB\n", 2, 1, "memori: unknown key; did you mean memory?"),
        ("links:\n  - {name: x, path: /, pat: 1}\n", 2, 24, "links[0].pat: unknown key; did you mean path?"),
        ("vcpus: '4'\n", 1, 1, "vcpus: this should be a valid integer"),
        ("setup: make\n", 1, 1, "setup: write a list here"),
        ("setup:\n  - true\n", 2, 5, "setup[0]: write text here"),
        ("smoke_tests: [{rum: x}]\n", 1, 15, "smoke_tests[0]: write it as {http: …} or {run: …}"),
        ("image_job: {}\n", 1, 1, "image_job.job: this key is missing"),
        ("image_job: [build]\n", 1, 1, "image_job: write keys with values here"),
        ("image_job: {job: build, path: ../image.qcow2}\n", 1, 25, "image_job.path: write the path of one file"),
        ("image_job: {job: build, otherwise: wait}\n", 1, 25, "image_job.otherwise: this should be 'fail' or 'def"),
        ("wait_for_image: 0s\n", 1, 1, "wait_for_image: must be longer than zero"),
        ("start: sometimes\n", 1, 1, "start: write always, ready"),
        ("start: {lable: x}\n", 1, 1, "start: write always, ready"),
        ("links: [{name: x, path: '//evil.example'}]\n", 1, 19, "links[0].path: write a path that begins with /"),
        ("links: [{name: x, path: '/)[x](//evil'}]\n", 1, 19, "links[0].path: write a path that begins with /"),
        ("results: {junit: [../secret.xml]}\n", 1, 19, "results.junit[0]: write a path below the code's folder"),
        ("memory: 1GiB\nmemory: 2GiB\n", 2, 1, "memory: duplicate key, first in line 1"),
        ("image: ../../etc/shadow\n", 1, 1, "image: write up to 40 small letters"),
        ("a: [\n  b\n", 3, 1, "this is not YAML"),
        ("agent: !!python/object/apply:os.system [id]\n", 1, 8, "agent: a tag like !!python/object/apply:os.syst"),
        ("vcpus: 1\nresults: !own {junit: [a.xml]}\n", 2, 10, "results: a tag like !own means nothing here"),
        ("setup: [!!binary aGk=]\n", 1, 9, "setup[0]: a tag like !!binary means nothing here"),
        ("memory: !size 1GiB\n", 1, 9, "memory: YAML reads a leading ! as a tag"),
        ("results: {junit: [a.xml], junit: [b.xml]}\n", 1, 27, "results.junit: duplicate key, first in line 1"),
        (f"vcpus: 2\n{'k' * 900}: 1\n", 2, 1, f"{'k' * 100}…: unknown key; known here: agent,"),
        (f"agent: {'x' * 60_000}\n", 1, 1, "agent: write a name of up to 40 characters"),
        (f"vcpus: 2\n{'k' * 60_000}: 1\n", 2, 60_001, "this is not YAML"),
    ],
)
def test_a_mistake_is_told_with_line_column_and_what_to_do(raw: str, line: int, column: int, says: str) -> None:
    (problem,) = problems(raw)
    assert (problem.line, problem.column) == (line, column)
    assert str(problem).startswith(says)


def test_a_mark_of_utf_8_and_the_ends_of_lines_of_other_systems_are_no_mistake() -> None:
    assert read_project_file(b"\xef\xbb\xbfvcpus: 3\r\nimage: deb\r\n") == read_project_file(b"vcpus: 3\nimage: deb\n")


def test_every_mistake_is_told_at_once_in_the_order_of_lines() -> None:
    found = problems("vcpus: no\nmemory: much\nlifetime: 0s\n")
    assert [(one.line, one.path) for one in found] == [(1, "vcpus"), (2, "memory"), (3, "lifetime")]


_BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        pytest.param(b"x" * 1024**2, "larger than 64 KiB", id="1 MB"),
        pytest.param(b"[" * 500 + b"]" * 500, "nested too deeply", id="deep lists"),
        pytest.param(b"{a: " * 500 + b"}" * 500, "nested too deeply", id="deep mappings"),
        pytest.param(_BOMB.encode(), "expand to more than 2000 values", id="aliases of aliases"),
        pytest.param(b"a: &a [*a]\n", "expand to more than 2000 values", id="an alias of itself"),
        pytest.param(b"a: &a {<<: *a}\n", "nested too deeply", id="a merge of itself"),
        pytest.param("memory: 1GiB\n".encode("utf-16"), "not UTF-8 text", id="UTF-16"),
        pytest.param("memory: 1GiB\n".encode("utf-16-le"), "can't be seen", id="UTF-16 without a mark"),
        pytest.param("memory: 1GiB\n".encode("utf-32"), "not UTF-8 text", id="UTF-32"),
        pytest.param("agent: café\n".encode("latin-1"), "not UTF-8 text", id="Latin-1"),
        pytest.param(b"\x7fELF\x02\x01\x01" + bytes(99), "can't be seen", id="a program"),
        pytest.param(bytes(range(256)), "not UTF-8 text", id="any bytes"),
        pytest.param(b"../../shared/rave.yml", "symbolic link", id="a symbolic link"),
        pytest.param(b"../my files/rave.yml", "symbolic link", id="a symbolic link with a space"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a pointer of Git LFS",
            id="a pointer of LFS",
        ),
        pytest.param(b"<!doctype html>\n<title>Sign in</title>\n", "not a mapping", id="a web page"),
        pytest.param(b"a:\n" * 12_000, "more than 10000 lines, commas and brackets", id="many lines"),
        pytest.param(b"- a\n- b\n", "not a mapping", id="a list"),
        pytest.param(b"a: 1\n---\nb: 2\n", "not YAML", id="two documents"),
    ],
)
def test_a_hostile_file_is_told_in_one_line_with_its_place(raw: bytes, says: str) -> None:
    (problem,) = problems(raw)
    assert says in problem.message
    assert problem.line >= 1
    assert problem.column >= 1


def test_the_slowest_files_that_are_known_take_seconds_of_a_thread_and_no_more() -> None:
    began = time.process_time()
    for raw in (b"[" + b"1," * 9_000 + b"1]", b"[" + b"1," * 30_000 + b"1]"):
        assert len(raw) <= MAX_FILE_BYTES
        problems(raw)
    assert time.process_time() - began < 10


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_whatever_is_in_the_file_it_is_read_or_its_problems_are_told(raw: bytes) -> None:
    found: ProjectFile | ProjectFileError
    try:
        found = read_project_file(raw)
    except ProjectFileError as error:
        found = error
    assert isinstance(found, ProjectFile) or (found.problems and all(one.message for one in found.problems))


@pytest.mark.parametrize(
    ("key", "item", "most"),
    [
        ("setup", "make", 20),
        ("smoke_tests", "{run: make}", 20),
        ("links", "{name: x, path: /}", 10),
        ("results: {junit", "a.xml", 10),
    ],
)
def test_a_list_is_as_long_as_the_documentation_says_and_no_longer(key: str, item: str, most: int) -> None:
    end = "}" if "{" in key else ""
    assert read_project_file(f"{key}: [{', '.join([item] * most)}]{end}\n".encode()) != ProjectFile()
    (problem,) = problems(f"{key}: [{', '.join([item] * (most + 1))}]{end}\n")
    assert f"at most {most}" in problem.message


def test_no_more_problems_are_told_than_can_be_read() -> None:
    found = problems("".join(f"key{number}: 1\n" for number in range(100)))
    assert len(found) == 21
    assert found[-1].message == "and 80 more errors"


def test_the_job_that_builds_the_image_may_be_given_by_its_name_alone() -> None:
    file = read_project_file(b"image_job: build\n")
    assert file.image_job == ImageJob(job="build", path="image/sandbox.qcow2", otherwise="fail")
    assert read_project_file(file.model_dump_json(exclude_unset=True).encode()).image_job == file.image_job


def test_the_schema_for_editors_has_every_key_and_says_what_each_is() -> None:
    schema = json.loads(json.dumps(project_file_schema()))
    assert set(schema["properties"]) == set(ProjectFile.model_fields)
    described = {name for name, key in schema["properties"].items() if key.get("description")}
    assert set(schema["properties"]) - described == {"results"}, "its own keys are described"
    assert schema["additionalProperties"] is False
    assert schema["properties"]["memory"]["anyOf"][0]["type"] == ["string", "integer"]
