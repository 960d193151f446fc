"""Which event is told where, and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ravebot
from ravebot.sandboxes.model import RAVEBOT, EndReason, Event, EventKind, SandboxState
from ravebot.sandboxes.telling import TELLINGS, words
from tests.support.records import NOON, A, a_sandbox

WORDS: dict[str, tuple[dict[str, object], str]] = {
    "sandbox.queued": ({"sha": A, "by": "alice (gitlab)"}, "asked for by alice (gitlab), commit aaaaaaaa"),
    "sandbox.waiting": ({"reason": "the host is short of memory"}, "waits: the host is short of memory"),
    "sandbox.starting": ({"machine": "rave-main-1"}, "machine rave-main-1 is being started"),
    "machine.booted": ({"seconds": 8.04}, "machine is up after 8.0 s"),
    "stage.done": ({"stage": "setup", "seconds": 61}, "set-up done in 1 min"),
    "stage.failed": (
        {"stage": "setup", "seconds": 2, "why": "it ended with code 1", "tail": "boom\n"},
        "set-up failed after 2.0 s: it ended with code 1",
    ),
    "sandbox.ready": ({"seconds": 9.96, "sha": A}, "ready after 10.0 s"),
    "sandbox.kept": (
        {"sha": A, "why": "set-up failed: it ended with code 1", "until": "14:30 UTC"},
        "set-up failed: it ended with code 1; its machine is kept until 14:30 UTC",
    ),
    "sandbox.code": ({"sha": A, "by": "alice (gitlab)"}, "new commit aaaaaaaa by alice (gitlab)"),
    "sandbox.updated": ({"sha": A}, "now runs aaaaaaaa"),
    "sandbox.update_failed": (
        {"sha": A, "why": "copy of the code failed: no room"},
        "could not take aaaaaaaa: its copy of the code failed: no room; it runs on as before",
    ),
    "sandbox.extended": (
        {"seconds": 3600, "by": "alice (gitlab)", "until": "14:30 UTC"},
        "extended by 1 h by alice (gitlab), until 14:30 UTC",
    ),
    "sandbox.warned": ({"left": 600}, "warned: 10 min left"),
    "sandbox.stopping": (
        {"reason": "stopped", "by": "alice (gitlab)", "detail": "cleaned up"},
        "stopping: stopped by alice (gitlab); cleaned up",
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


def test_the_end_says_why_and_how_long_it_lived() -> None:
    facts: dict[str, object] = {"reason": "expired", "detail": "", "lived_seconds": 7200, "cpu_seconds": 95.0}
    assert said("sandbox.ended", **facts) == "ended: its time was up (lived 2 h)"


def test_a_failure_is_told_in_the_thread_when_it_happens_and_not_again_at_the_end() -> None:
    failed = {"reason": "failed", "detail": "set-up failed: boom"}
    assert TELLINGS[EventKind.STAGE_FAILED].thread(failed) == ""
    assert TELLINGS[EventKind.SANDBOX_STOPPING].thread(failed) == "set-up failed: boom"
    assert TELLINGS[EventKind.SANDBOX_ENDED].thread(failed) == ""
    assert said("sandbox.stopping", **failed) == "stopping"
    assert said("sandbox.stopping", reason="lost", detail="its machine is gone") == "stopping: its machine is gone"
    assert said("sandbox.ended", **failed, lived_seconds=None) == "ended"


def test_the_end_of_one_that_was_kept_says_what_ended_it_and_calls_nobody_again() -> None:
    over: dict[str, object] = {"reason": "failed", "detail": "set-up failed: boom", "kept": "expired"}
    stopping = TELLINGS[EventKind.SANDBOX_STOPPING]
    assert stopping.thread(over) == "not kept any longer: its time was up"
    assert said("sandbox.stopping", **over) == "not kept any longer: its time was up"
    assert said("sandbox.stopping", **over | {"kept": "stopped", "by": "gina (matrix)"}) == (
        "not kept any longer: stopped by gina (matrix)"
    )
    failed = a_sandbox(state=SandboxState.STOPPING, end_reason=EndReason.FAILED)
    broken: dict[str, object] = {"reason": "failed", "detail": "boom"}
    for data, calls in ((over, False), (broken, True)):
        assert stopping.calls(failed, Event(1, NOON, EventKind.SANDBOX_STOPPING, RAVEBOT, data=data)) is calls


def test_an_end_that_was_asked_for_is_told_in_the_thread_once_it_has_come() -> None:
    asked = {"reason": "stopped", "by": "alice (gitlab)"}
    assert TELLINGS[EventKind.SANDBOX_STOPPING].thread(asked) == ""
    assert TELLINGS[EventKind.SANDBOX_ENDED].thread(asked) == "ended: stopped by alice (gitlab)"


@pytest.mark.parametrize("kind", TELLINGS)
def test_an_event_that_lacks_what_it_should_say_is_told_all_the_same(kind: str) -> None:
    assert said(kind)


@pytest.mark.parametrize("kind", ["command.refused", "access.first", "orphan.removed", "never.heard.of"])
def test_what_is_only_for_the_log_has_no_words(kind: str) -> None:
    assert said(kind) == ""


def test_an_event_is_told_once_in_a_room() -> None:
    assert [kind for kind, telling in TELLINGS.items() if telling.warn] == ["sandbox.warned"]
    for telling in TELLINGS.values():
        in_thread = bool(telling.thread({"reason": "failed"}) or telling.thread({"reason": "expired"}))
        assert in_thread + telling.say + telling.warn <= 1


def test_only_the_first_ready_and_failures_notify_the_owner() -> None:
    calling = {kind for kind, telling in TELLINGS.items() if telling.calls is not TELLINGS[EventKind.WEB_FOUND].calls}
    assert calling == {"sandbox.ready", "sandbox.kept", "sandbox.update_failed", "sandbox.stopping"}


def test_every_event_of_a_sandbox_that_the_code_records_has_its_telling() -> None:
    sources = [path.read_text() for path in Path(ravebot.__file__).parent.rglob("*.py")]

    def named(pattern: str) -> set[EventKind]:
        return {EventKind[name] for source in sources for name in re.findall(pattern, source)}

    of_agents = {kind for kind in EventKind if kind.startswith("agent.")}  # told in their conversations
    assert named(r"\brecord\(\s*tx, EventKind\.(\w+)") - set(TELLINGS) - of_agents == {EventKind.ACCESS_FIRST}
    assert named(r"\bEventKind\.([A-Z_]+)") == set(EventKind)  # the table has its own short name for it
