"""What `ravebot project init` writes, and what it leaves alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ravebot.config.repository import ProjectFile, read_project_file
from ravebot.operations.projects.starting import (
    EXAMPLE_URL,
    JOBS,
    PIPELINE,
    PROJECT_FILE,
    CannotStart,
    Fate,
    checked_url,
    start,
    template,
)


def fates(folder: Path, url: str | None = None, *, force: bool = False) -> list[Fate]:
    return [one.fate for one in start(folder, url, force=force)]


def test_an_empty_folder_gets_three_files_and_again_changes_nothing(tmp_path: Path) -> None:
    assert fates(tmp_path, "https://rave.example.org/") == [Fate.WRITTEN] * 3
    inputs = next(yaml.safe_load_all((tmp_path / JOBS).read_text()))["spec"]["inputs"]
    assert inputs["url"]["default"] == "https://rave.example.org"
    assert yaml.safe_load((tmp_path / PIPELINE).read_text()) == {"include": [{"local": str(JOBS)}]}
    before = [(path, path.stat().st_ino) for path in sorted(tmp_path.rglob("*"))]
    assert fates(tmp_path) == [Fate.SAME] * 3
    assert [(path, path.stat().st_ino) for path in sorted(tmp_path.rglob("*"))] == before


def test_what_a_project_has_stays_and_only_force_brings_its_jobs_up_to_date(tmp_path: Path) -> None:
    own = {PROJECT_FILE: "memory: 3GiB\n", JOBS: "# old\n", PIPELINE: "build: {script: [make]}\n"}
    (tmp_path / ".gitlab").mkdir()
    for name, text in own.items():
        (tmp_path / name).write_text(text)
    assert fates(tmp_path) == [Fate.KEPT, Fate.KEPT, Fate.INCOMPLETE]
    assert {name: (tmp_path / name).read_text() for name in own} == own
    assert fates(tmp_path, force=True) == [Fate.KEPT, Fate.WRITTEN, Fate.INCOMPLETE]
    assert {name: (tmp_path / name).read_text() for name in own} == {**own, JOBS: template(JOBS)}


def test_force_keeps_the_address_that_the_jobs_have(tmp_path: Path) -> None:
    start(tmp_path, "https://rave.example.org")
    jobs = tmp_path / JOBS
    jobs.write_text(jobs.read_text().replace("minutes gives up", "") + "# changed\n")
    assert fates(tmp_path, force=True)[1] is Fate.WRITTEN
    assert jobs.read_text() == template(JOBS, "https://rave.example.org")


@pytest.mark.parametrize(
    ("text", "fate"),
    [
        ("include: .gitlab/ravebot.yml\n", Fate.SAME),
        ("include: [/.gitlab/ravebot.yml]\nx: {script: [!reference [.y, script]]}\n", Fate.SAME),
        ("include:\n- template: a.yml\n- local: /.gitlab/ravebot.yml\n  inputs: {patience: 5}\n", Fate.SAME),
        ("spec: {inputs: {a: }}\n---\ninclude: {local: .gitlab/ravebot.yml}\nx: !odd {a: !b c}\n", Fate.SAME),
        ("# later: - local: .gitlab/ravebot.yml\nx: {script: [true]}\n", Fate.INCOMPLETE),
        ("x: {script: [cat .gitlab/ravebot.yml]}\n", Fate.INCOMPLETE),
        ("include: [{project: group/ci, file: .gitlab/ravebot.yml}]\n", Fate.INCOMPLETE),
        ("include: [\n# .gitlab/ravebot.yml\n", Fate.INCOMPLETE),
        ("", Fate.INCOMPLETE),
    ],
)
def test_only_an_include_of_the_jobs_is_one(tmp_path: Path, text: str, fate: Fate) -> None:
    (tmp_path / PIPELINE).write_text(text)
    assert fates(tmp_path)[2] is fate


@pytest.mark.parametrize("name", [PROJECT_FILE, JOBS, PIPELINE])
def test_a_link_is_neither_followed_nor_replaced(tmp_path: Path, name: Path) -> None:
    folder, elsewhere = tmp_path / "code", tmp_path / "elsewhere"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(CannotStart, match="it is a symbolic link; put a file there"):
        start(folder, force=True)
    assert not elsewhere.exists()


def test_nothing_is_written_through_a_folder_that_is_a_link(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "code", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / ".gitlab").symlink_to(elsewhere)
    with pytest.raises(CannotStart, match="make it a folder of the repository"):
        start(folder)
    assert not list(elsewhere.iterdir())
    assert [one.name for one in folder.iterdir()] == [".gitlab"]


@pytest.mark.parametrize(
    "url",
    [
        *("rave.example.org", "ftp://rave.example.org", "https://", "https://a:b@rave.example.org", "https://[x"),
        *('https://x/"', "https://x/$(id)", "https://x/`id`", "https://x/\n", "https://x/a b", "https://ü.example"),
        "https://x/" + "a" * 200,
    ],
)
def test_an_address_that_could_be_anything_else_in_a_job_is_refused(url: str) -> None:
    if url.endswith("\n"):
        url += "y: z"
    with pytest.raises(CannotStart, match=r"give the value of http.public_url"):
        checked_url(url)


def test_the_address_may_have_a_port_and_a_path() -> None:
    assert checked_url(" http://10.0.0.1:8080/rave/ ") == "http://10.0.0.1:8080/rave"
    assert checked_url(EXAMPLE_URL) == EXAMPLE_URL


def test_the_project_file_is_right_as_it_is_and_with_every_line_that_it_offers() -> None:
    text = template(PROJECT_FILE)
    assert read_project_file(text.encode()) == ProjectFile()
    every = read_project_file(re.sub("^#(?! [A-Z`])", "", text, flags=re.MULTILINE).encode())
    assert every.model_fields_set == set(ProjectFile.model_fields) - {"image", "agent"}
    assert every.image_job
    assert every.image_job.job == "ravebot:build"
