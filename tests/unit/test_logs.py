"""Logs are one JSON line an event and hold no secret."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from ravebot import logs

SECRET = 'hush/"xyzzy'


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the logs go; the process's own logging is put back afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in logs.QUIET}
    yield io.StringIO()
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    logging.getLogger().handlers[0].flush()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_facts(stream: io.StringIO) -> None:
    logs.set_up("info", stream=stream)
    structlog.get_logger("ravebot.pool").info("sandbox ready", sandbox_id=7, ref="group/app!42", title="a\nb")
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert {
        "sandbox_id": 7,
        "event": "sandbox ready",
        "title": "a\nb",
        "logger": "ravebot.pool",
    }.items() <= line.items()


def test_libraries_that_use_the_standard_logging_come_out_the_same_way(stream: io.StringIO) -> None:
    logs.set_up("info", [SECRET], stream)
    logging.getLogger("aiohttp.server").error("failed with %s", SECRET, extra={"status": 500})
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["status"]) == ("failed with [hidden]", "error", 500)


def test_what_is_below_the_level_is_left_out_and_libraries_chatter_too(stream: io.StringIO) -> None:
    logs.set_up("info", stream=stream)
    structlog.get_logger("ravebot.pool").debug("detail")
    logging.getLogger("nio.client").info("chatter")
    structlog.get_logger("ravebot.pool").warning("told")
    assert [line["event"] for line in lines(stream)] == ["told"]


def test_setting_up_again_does_not_log_twice(stream: io.StringIO) -> None:
    logs.set_up("info", stream=stream)
    logs.set_up("debug", stream=stream)
    structlog.get_logger("ravebot").debug("once")
    assert len(lines(stream)) == 1


def test_known_secrets_are_hidden_wherever_they_are(stream: io.StringIO) -> None:
    logs.set_up("info", [SECRET], stream)
    log = structlog.get_logger("ravebot")
    log.info(f"said {SECRET}", plain=SECRET, deep={"a": [SECRET, (SECRET,)], SECRET: 1}, error=ValueError(SECRET))
    log.info("bytes", body=SECRET.encode(), url="https://x/?q=hush%2F%22xyzzy")
    log.info("formatted %s", SECRET)
    try:
        raise ValueError(SECRET)
    except ValueError:
        log.exception("it broke")
    text = stream.getvalue()
    assert "xyzzy" not in text
    assert text.count("[hidden]") >= 9
    assert len(lines(stream)) == 4


def test_a_secret_that_is_learned_later_is_hidden_from_then_on(stream: io.StringIO) -> None:
    logs.set_up("info", stream=stream)
    logs.hide("learned-later")
    structlog.get_logger("ravebot").info("login", token="learned-later")
    assert "learned-later" not in stream.getvalue()


def test_the_longer_of_two_overlapping_secrets_is_hidden_whole() -> None:
    assert logs.Redaction(["abcd", "abcdefgh"]).text("x abcdefgh y") == "x [hidden] y"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /sync?access_token=abc123&since=1", "GET /sync?access_token=[hidden]&since=1"),
        ("https://user:pass@gitlab.example.org/x", "https://[hidden]@gitlab.example.org/x"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: [hidden]"),
        ("token glpat-AbCdEfGhIjKlMnOp was used", "token [hidden] was used"),
        ("syt_cmF2ZQ_abcdefgh", "[hidden]"),
    ],
)
def test_what_looks_like_a_token_is_hidden_though_nobody_registered_it(text: str, shown: str) -> None:
    assert logs.Redaction().text(text) == shown


@pytest.mark.parametrize(
    "text", ["https://gitlab.example.org/group/app/-/merge_requests/42?tab=diffs", "host:22 user@host", "12:30:05", ""]
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert logs.Redaction(["ab"]).text(text) == text


@pytest.mark.parametrize("evil", ["\x9b2J", "\u202eevil\u202c", "\u2066x\u2069", "\x7f", "\ud800", "\U000e0001"])
def test_json_shows_a_terminal_nothing_that_moves_its_cursor_and_means_the_same(stream: io.StringIO, evil: str) -> None:
    logs.set_up("info", stream=stream)
    structlog.get_logger("ravebot").info(f"käthe {evil}", title=evil, deep={evil: "日本"})
    text = stream.getvalue()
    assert text.removesuffix("\n").isprintable()
    assert "käthe" in text
    assert "日本" in text
    (line,) = lines(stream)
    assert (line["event"], line["title"], line["deep"]) == (f"käthe {evil}", evil, {evil: "日本"})


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_lines_are_for_people_and_untrusted_text_cannot_fake_one(stream: io.StringIO) -> None:
    terminal = Terminal()
    logs.set_up("info", [SECRET], terminal)
    structlog.get_logger("ravebot").info("branch a\nb\x1b[2J", title="c\nd\x1b[2J", secret=SECRET)
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert "\x1b[2J" not in text
    assert "xyzzy" not in text
    assert "branch a" in text


@pytest.mark.parametrize(
    "evil", ["\x1b]0;owned\x07", "\x9b2J", "\u202eevil\u202c", "\u2066x\u2069", "\rfaked", "\x7f", "\x08"]
)
def test_on_a_terminal_no_value_of_any_kind_moves_the_cursor_or_turns_the_line(stream: io.StringIO, evil: str) -> None:
    class Odd:
        def __repr__(self) -> str:
            return evil

    terminal = Terminal()
    logs.set_up("info", stream=terminal)
    log = structlog.get_logger("ravebot")
    log.info("told", bare=evil, deep={"a": [evil]}, odd=Odd(), error=ValueError(evil), who="käthe 日本")
    try:
        raise ValueError(f"first\n{evil}")
    except ValueError:
        log.exception("it broke")
    text = terminal.getvalue()
    assert not {char for char in evil if not char.isprintable()} & set(re.sub(r"\x1b\[\d+m", "", text))
    assert "käthe 日本" in text
    assert len(text.splitlines()) > 5, "a traceback keeps its lines"


def entry(data: bytes) -> dict[str, str]:
    """The fields of a datagram to journald, each with its length."""
    found: dict[str, str] = {}
    while data:
        name, _, data = data.partition(b"\n")
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8 + length : 9 + length] == b"\n"
        found[name.decode()] = data[8 : 8 + length].decode()
        data = data[9 + length :]
    return found


def instead_of_usual(writer: logs.LogWriter) -> None:
    """Has it write what is logged, in the form that `set_up` chose."""
    [usual] = logging.getLogger().handlers
    writer.setFormatter(usual.formatter)
    logging.getLogger().handlers[:] = [writer]


@pytest.fixture
def journal(tmp_path: Path, stream: io.StringIO) -> Iterator[socket.socket]:
    """A socket like journald's, to which the logs go."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.settimeout(1)
        logs.set_up("info", [SECRET], stream)
        handler = logs.LogWriter(logs.JournalHandler(tmp_path / "socket", "main", logs.sink_of(stream)))
        instead_of_usual(handler)
        yield listening
        handler.close()


def test_an_entry_of_the_journal_has_the_facts_as_fields_and_a_message_for_people(journal: socket.socket) -> None:
    why = f"a\nPRIORITY=0 {SECRET} \x1b[2J"
    structlog.get_logger("ravebot.pool").warning("slow down", mr="group/app!42", machine="rave-main-1", in_s=3, why=why)
    assert entry(journal.recv(65536)) == {
        "MESSAGE": 'slow down mr=group/app!42 machine=rave-main-1 in_s=3 why="a\\nPRIORITY=0 [hidden] \\u001b[2J"',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "ravebot",
        "RAVEBOT_INSTANCE": "main",
        "RAVEBOT_EVENT": "slow down",
        "RAVEBOT_LOGGER": "ravebot.pool",
        "RAVEBOT_REF": "group/app!42",
        "RAVEBOT_MR": "group/app!42",
        "RAVEBOT_MACHINE": "rave-main-1",
        "RAVEBOT_IN_S": "3",
        "RAVEBOT_WHY": "a\nPRIORITY=0 [hidden] \\x1b[2J",
    }


def test_the_example_for_loki_reads_fields_that_entries_have_and_labels_only_what_is_bounded(
    journal: socket.socket,
) -> None:
    text = (Path(__file__).parents[2] / "monitoring" / "alloy" / "ravebot.alloy").read_text()
    structlog.get_logger("ravebot").info("sandbox.ready", ref="group/app!42", machine="rave-main-1")
    read = dict(re.findall(r'(\w+) += "([A-Z_]+)",', text))
    assert set(read.values()) <= set(entry(journal.recv(65536)))
    (labels,) = re.findall(r"stage\.labels \{\s*values = \{ (.*) \}", text)
    (others,) = re.findall(r"stage\.structured_metadata \{\s*values = \{ (.*) \}", text)
    assert (labels, others) == ('instance = "", level = ""', 'event = "", ref = "", machine = ""')
    assert {"instance", "event", "ref", "machine", "message", "priority"} == set(read)
    defined = {f"{kind}.{name}.receiver" for kind, name in re.findall(r'^(loki\.\w+) "(\w+)" \{$', text, re.MULTILINE)}
    assert set(re.findall(r"forward_to += \[(.*)\]", text)) <= defined
    outside = re.sub(r'//.*|"(?:\\.|[^"\\])*"', "", text)
    assert all(outside.count(opening) == outside.count(closing) for opening, closing in ("{}", "[]", "()"))


def test_a_traceback_follows_the_message_and_a_flood_is_cut(journal: socket.socket) -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        structlog.get_logger("ravebot").exception("it broke")
    found = entry(journal.recv(300_000))
    assert re.fullmatch(r"it broke\nTraceback .*\nValueError: \[hidden\]", found["MESSAGE"], re.DOTALL)
    structlog.get_logger("ravebot").info("flood", much="€" * 200_000, more={"a": "€" * 200_000})
    assert len(entry(journal.recv(300_000))["RAVEBOT_MUCH"]) == 8000
    logging.getLogger("aiohttp").error("first\nsecond %s", "\u202e")
    found = entry(journal.recv(65536))
    assert (found["MESSAGE"], found["PRIORITY"]) == ("first\\nsecond \\u202e", "3")


def test_what_the_journal_does_not_take_is_written_as_json(
    journal: socket.socket, stream: io.StringIO, tmp_path: Path
) -> None:
    (tmp_path / "socket").unlink()
    structlog.get_logger("ravebot").info("still told", number=1)
    assert [(line["event"], line["number"]) for line in lines(stream)] == [("still told", 1)]


def test_a_librarys_wrong_use_of_logging_does_not_reach_the_library_and_is_told(journal: socket.socket) -> None:
    [ours, *_] = logging.getLogger().handlers  # pytest's own raise
    ours.handle(logging.LogRecord("lib", logging.WARNING, "lib.py", 1, "%d things", (SECRET,), None))
    found = entry(journal.recv(65536))
    assert (found["RAVEBOT_EVENT"], found["RAVEBOT_LOGGED"]) == ("a message can't be written", "'%d things'")
    assert (found["RAVEBOT_PATH"], found["RAVEBOT_LINE"], found["PRIORITY"]) == ("lib.py", "1", "3")
    logging.getLogger("lib").warning("goes on")
    assert entry(journal.recv(65536))["RAVEBOT_EVENT"] == "goes on"


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe whose end nobody reads yet, and a stream to it."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
    with suppress(OSError):
        os.close(reading)


def told(reading: int, enough: Callable[[str], bool]) -> list[dict[str, object]]:
    """What is in the pipe, read until it is enough."""
    text = ""
    while not enough(text):
        text += os.read(reading, 65536).decode()
    return [json.loads(line) for line in text.splitlines()]


def test_an_entry_is_written_when_the_call_returns_so_that_no_crash_takes_it_back(
    stream: io.StringIO, pipe: tuple[int, TextIO]
) -> None:
    reading, full = pipe
    logs.set_up("info", stream=full)
    instead_of_usual(logs.LogWriter(logs.sink_of(full), patience_seconds=30))
    threads = threading.active_count()
    os.set_blocking(reading, False)
    for number in range(50):
        structlog.get_logger("ravebot").info("told", number=number)
        [line] = told(reading, lambda text: text.endswith("\n"))
        assert line["number"] == number
    assert threading.active_count() == threads, "an ordinary entry needs no other thread, for which it would wait"


def test_a_full_pipe_holds_up_nobody_and_gets_every_entry_in_turn_when_it_is_read(
    stream: io.StringIO, pipe: tuple[int, TextIO]
) -> None:
    reading, full = pipe
    logs.set_up("info", stream=full)
    log = structlog.get_logger("ravebot")
    begin = time.monotonic()
    for number in range(1000):
        log.info("told", number=number, pad="x" * 500)
    assert time.monotonic() - begin < 5, "for as long as nobody reads, before"
    found = told(reading, lambda text: text.count("\n") == 1000)
    assert [line["number"] for line in found] == list(range(1000))
    logging.getLogger().handlers[0].flush()
    log.info("told at once again")
    os.set_blocking(reading, False)
    assert [line["event"] for line in told(reading, bool)] == ["told at once again"]


def test_the_end_of_the_process_does_not_wait_for_a_pipe_that_nobody_reads(
    stream: io.StringIO, pipe: tuple[int, TextIO]
) -> None:
    reading, full = pipe
    logs.set_up("info", stream=full)
    writes = logs.sink_of(full)
    writer = logs.LogWriter(writes, closing_seconds=0.1)
    instead_of_usual(writer)
    structlog.get_logger("ravebot").info("told", pad="x" * 200_000)
    logging.shutdown([weakref.ref(writer), weakref.ref(writes)])
    assert len(told(reading, lambda text: text.endswith("\n"))) == 1


def test_what_is_beyond_the_bound_is_dropped_and_counted(stream: io.StringIO, pipe: tuple[int, TextIO]) -> None:
    reading, full = pipe
    logs.set_up("info", stream=full)
    writer = logs.LogWriter(logs.sink_of(full), most_held=100_000)
    instead_of_usual(writer)
    for number in range(1000):
        structlog.get_logger("ravebot").info("told", number=number, pad="x" * 500)
    found = told(reading, lambda text: '"count"' in text and text.endswith("\n"))
    structlog.get_logger("ravebot").info("after")
    assert [line["event"] for line in told(reading, bool)] == ["after"]
    *before, last = found
    numbers = [line["number"] for line in before]
    assert numbers == list(range(len(numbers)))
    assert last["event"] == "the log could not be written for a while: messages were dropped"
    assert last["count"] == 1000 - len(numbers) > 100
    writer.close()


def test_the_journal_is_used_only_for_the_stream_that_systemd_connected_to_it(
    stream: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("w") as file:
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not logs.is_journal(file)
        found = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert logs.is_journal(file)
        assert not logs.is_journal(stream)
        logs.set_up("info", [], file)
        [writer] = logging.getLogger().handlers
        assert isinstance(writer, logs.LogWriter)
        assert isinstance(writer.writes, logs.JournalHandler)
        monkeypatch.setenv("JOURNAL_STREAM", "rubbish")
        assert not logs.is_journal(file)
