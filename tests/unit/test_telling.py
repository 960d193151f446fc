"""Which event is told where, and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ravebot
from ravebot.sandboxes.model import RAVEBOT, Event, EventKind
from ravebot.sandboxes.telling import TELLINGS, words
from tests.support.records import NOON, A

WORDS: dict[str, tuple[dict[str, object], str]] = {
    "sandbox.queued": ({"sha": A, "by": "alice (gitlab)"}, "asked for by alice (gitlab), commit aaaaaaaa"),
    "sandbox.waiting": ({"reason": "the host is short of memory"}, "waits: the host is short of memory"),
    "sandbox.starting": ({"machine": "rave-main-1"}, "machine rave-main-1 is being started"),
    "machine.booted": ({"seconds": 8.04}, "machine is up after 8.0 s"),
    "stage.done": ({"stage": "setup", "seconds": 61}, "setup done in 1 min 1 s"),
    "stage.failed": (
        {"stage": "setup", "seconds": 2, "why": "it ended with code 1", "tail": "boom\n"},
        "setup failed after 2.0 s: it ended with code 1\nboom",
    ),
    "sandbox.ready": ({"seconds": 9.96, "sha": A}, "ready after 10.0 s"),
    "sandbox.code": ({"sha": A, "by": "alice (gitlab)"}, "new commit aaaaaaaa by alice (gitlab): the sandbox takes it"),
    "sandbox.updated": ({"sha": A}, "now runs aaaaaaaa"),
    "sandbox.update_failed": (
        {"sha": A, "why": "no room"}, "could not take aaaaaaaa: no room; the sandbox stays up as it is",
    ),
    "sandbox.extended": ({"seconds": 3600, "by": "alice (gitlab)"}, "extended by 1 h by alice (gitlab)"),
    "sandbox.warned": ({"left": 600}, "warned: 10 min left"),
    "sandbox.stopping": (
        {"reason": "stopped", "by": "alice (gitlab)", "detail": "cleaned up"},
        "stopping: stopped by alice (gitlab), cleaned up",
    ),
    "sandbox.requeued": ({"why": "its machine is gone", "attempt": 2},
                         "tried again on a new machine (attempt 2): its machine is gone"),
    "build.resumed": ({"by": "alice (gitlab)"}, "machines are built again by alice (gitlab)"),
    "machine.forced": ({"grace": 30.0}, "did not shut down within 30 s: switched off"),
}  # fmt: skip


def said(kind: str, **data: object) -> str:
    return words(Event(1, NOON, EventKind.read(kind), RAVEBOT, data=data))


@pytest.mark.parametrize("kind", WORDS)
def test_an_event_is_told_in_these_words(kind: str) -> None:
    data, text = WORDS[kind]
    assert said(kind, **data) == text


def test_the_end_of_one_that_was_ready_gives_its_account() -> None:
    text = said("sandbox.ended", reason="expired", detail="", lived_seconds=7200, cpu_seconds=95.0,
                memory_peak_bytes=300 * 1024**2)  # fmt: skip
    assert text == "ended: expired, lived 2 h, CPU time 1 min 35 s, memory at most 300 MiB"


def test_the_end_of_one_that_never_was_ready_says_why_alone() -> None:
    text = said("sandbox.ended", reason="failed", detail="setup: boom", lived_seconds=None, cpu_seconds=0,
                memory_peak_bytes=0)  # fmt: skip
    assert text == "ended: failed, setup: boom"


@pytest.mark.parametrize("kind", TELLINGS)
def test_an_event_that_lacks_what_it_should_say_is_told_all_the_same(kind: str) -> None:
    assert said(kind)


def test_a_long_output_is_told_by_its_end() -> None:
    text = said("stage.failed", stage="setup", seconds=1, why="it ended", tail="x" * 5000 + "the end")
    assert text.endswith("the end")
    assert len(text) < 1700


@pytest.mark.parametrize("kind", ["command.refused", "access.first", "orphan.removed", "never.heard.of"])
def test_what_is_only_for_the_log_has_no_words(kind: str) -> None:
    assert said(kind) == ""


def test_only_a_warning_mentions_anybody_and_nothing_is_said_twice_in_a_room() -> None:
    assert [kind for kind, telling in TELLINGS.items() if telling.warn] == ["sandbox.warned"]
    for telling in TELLINGS.values():
        assert telling.thread + telling.say + telling.warn <= 1


def test_every_event_of_a_sandbox_that_the_code_records_has_its_telling() -> None:
    sources = [path.read_text() for path in Path(ravebot.__file__).parent.rglob("*.py")]

    def named(pattern: str) -> set[EventKind]:
        return {EventKind[name] for source in sources for name in re.findall(pattern, source)}

    assert named(r"\brecord\(\s*tx, EventKind\.(\w+)") - set(TELLINGS) == {EventKind.ACCESS_FIRST}
    assert named(r"\bEventKind\.([A-Z_]+)") == set(EventKind)  # the table has its own short name for it
