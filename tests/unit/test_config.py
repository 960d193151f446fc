"""Durations, sizes and port ranges as people write them; which project is whose."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ravebot.config.patterns import matches_project
from ravebot.config.values import PortRange, StateDir, parse_duration, parse_size
from ravebot.web.admin import MAX_PATH_BYTES, socket_path
from tests.support.records import ROOM, make_config


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("30m", 1800), ("30min", 1800), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("1d2h3m4s", 93784),
        (" 1h ", 3600), ("1H", 3600), ("1h 30m", 5400), ("0s", 0), ("007s", 7),
    ],
)  # fmt: skip
def test_a_duration_is_what_people_write(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "1", "h", "-1h", "1.5h", "1w", "1h1d", "1h1h", "30m2h", "1 year", "1h; rm",
     "9" * 33 + "s", "9" * 31 + "d",
     None, 5, 5.0, True, [], {}],
)  # fmt: skip
def test_anything_else_is_told_how_to_write_a_duration(text: object) -> None:
    with pytest.raises(ValueError, match="write a duration like 90s"):
        parse_duration(text)


@given(text=st.text(max_size=40))
def test_no_text_makes_a_duration_fail_otherwise(text: str) -> None:
    try:
        found = parse_duration(text)
    except ValueError:
        return
    assert found >= timedelta(0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 1024**3), ("512MiB", 512 * 1024**2), ("20G", 20 * 1024**3), ("1k", 1024), ("1kB", 1000),
        ("3 TB", 3 * 1000**4), ("17", 17), ("17B", 17), (17, 17), (0, 0), ("1gib", 1024**3),
    ],
)  # fmt: skip
def test_a_size_is_what_people_write(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1.5GiB", "1 PiB", "4GiBs", "9" * 16, -1, True, None, 1.5, []])
def test_anything_else_is_told_how_to_write_a_size(text: object) -> None:
    with pytest.raises(ValueError, match="write a size like 512MiB"):
        parse_size(text)


def test_a_port_range_includes_both_ends() -> None:
    ports = PortRange.model_validate("2200-2202")
    assert list(ports.ports) == [2200, 2201, 2202]
    assert 2200 in ports
    assert 2202 in ports
    assert 2203 not in ports
    assert list(PortRange.model_validate(" 2200 - 2200 ").ports) == [2200]


@pytest.mark.parametrize(
    "text", ["2200", "2200-", "-2200", "2300-2200", "80-90", "2200-70000", "a-b", "2200-2299-2300"]
)
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        PortRange.model_validate(text)


def test_the_defaults_are_those_of_the_manual(tmp_path: Path) -> None:
    pool = make_config(tmp_path).pool
    assert (pool.max_running, pool.lifetime, pool.max_lifetime) == (2, timedelta(hours=2), timedelta(hours=8))
    assert pool.warn_before == (timedelta(minutes=30), timedelta(minutes=10))
    assert (pool.shutdown_grace, pool.orphan_sweep) == (timedelta(seconds=30), timedelta(minutes=5))


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("group/app", "group/app", True), ("group/app", "group/apps", False), ("group/*", "group/app", True),
        ("group/*", "group/deep/app", True), ("group/*", "other/app", False), ("group/*", "xgroup/app", False),
        ("*", "group/app", True), ("group/App", "group/app", False),
    ],
)  # fmt: skip
def test_a_pattern_names_projects(pattern: str, path: str, matches: bool) -> None:
    assert matches_project((pattern,), path) is matches
    assert not matches_project((), path)


def test_a_project_is_told_of_in_its_rooms_only(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert config.rooms_of("group/app") == (ROOM,)
    assert config.rooms_of("other/app") == ()
    assert config.serves("group/app")
    assert not config.serves("other/app")


def test_a_room_that_is_listed_twice_is_told_once(tmp_path: Path) -> None:
    rooms = [{"room": ROOM, "projects": ["group/*"]}, {"room": ROOM, "projects": ["group/app"]}]
    assert make_config(tmp_path, matrix={"rooms": rooms}).rooms_of("group/app") == (ROOM,)


def test_the_longest_state_folder_there_may_be_has_a_path_for_the_admin_socket(tmp_path: Path) -> None:
    def longest(length: int) -> Path:
        return Path("/" + "x" * (length - 1))

    adapter: TypeAdapter[Path] = TypeAdapter(StateDir)
    for length in range(80, 120):
        fits = len(str(socket_path(longest(length)))) <= MAX_PATH_BYTES
        try:
            adapter.validate_python(str(longest(length)))
        except ValidationError:
            assert not fits
        else:
            assert fits


def test_ravebot_is_in_every_room_that_is_named_once_each(tmp_path: Path) -> None:
    rooms = [{"room": ROOM, "projects": ["a/*"]}, {"room": "!b:example.org", "projects": ["b/*"]}]
    for operations, expected in (
        (None, (ROOM, "!b:example.org")),
        (ROOM, (ROOM, "!b:example.org")),
        ("#ops:example.org", (ROOM, "!b:example.org", "#ops:example.org")),
    ):
        config = make_config(tmp_path, matrix={"rooms": rooms, "operations_room": operations})
        assert config.matrix.room_names == expected
        assert config.rooms_of("a/x") == (ROOM,)
