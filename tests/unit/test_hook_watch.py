"""When operators are told of a webhook, and when it is mended, as a pure decision."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ravebot.gitlab.hooks import HookCondition
from ravebot.operations.hooks.watch import PAUSE, changed, due, should_mend
from ravebot.operations.hooks.wording import HookState
from ravebot.store.hooks import HookRecord

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
C = HookCondition
RIGHT = HookState("group/app", C.RIGHT, "sends to https://rave.example.org")


def state(condition: HookCondition) -> HookState:
    return HookState("group/app", condition, f"it is {condition.value}", "do something")


def record(condition: HookCondition, told_at: datetime | None = None) -> HookRecord:
    return HookRecord("group/app", condition, told_at)


def news(before: HookRecord | None, found: HookState, after: HookState | None = None) -> str:
    change = changed(before, found, after or found, NOW)
    return change.news if change else "nothing is known"


@pytest.mark.parametrize("condition", [C.DISABLED, C.WRONG, C.DOUBLED])
def test_one_that_is_wrong_is_mended_and_told(condition: HookCondition) -> None:
    assert should_mend(state(condition))
    for before in (None, record(C.RIGHT)):
        told = news(before, state(condition), RIGHT)
        assert told.startswith(f"The webhook of group/app was not right: it is {condition.value}. ravebot mended it")
    told = news(record(C.RIGHT), state(condition), state(C.FAILED))
    assert told.endswith("ravebot could not mend it (it is failed). To mend it, do something.")


@pytest.mark.parametrize("condition", [C.MISSING, C.FOREIGN])
def test_one_that_somebody_removed_is_told_and_not_made_again(condition: HookCondition) -> None:
    assert not should_mend(state(condition))
    assert "is gone" in news(record(C.RIGHT), state(condition))
    assert news(None, state(condition)) == "", "who only polls is told nothing"
    assert news(record(condition), state(condition)) == ""


def test_the_same_trouble_is_told_once_and_its_end_too() -> None:
    told = record(C.DISABLED, NOW - timedelta(hours=1))
    assert news(told, state(C.DISABLED)) == ""
    assert news(told, RIGHT) == "The webhook of group/app works again."
    assert news(record(C.RIGHT, NOW), RIGHT) == ""


def test_one_that_is_disabled_again_and_again_is_mended_each_time_and_told_once_a_day() -> None:
    lately, long_ago = NOW - timedelta(hours=23), NOW - timedelta(hours=25)
    assert news(record(C.RIGHT, lately), state(C.DISABLED), RIGHT) == ""
    assert "mended" in news(record(C.RIGHT, long_ago), state(C.DISABLED), RIGHT)


@pytest.mark.parametrize("before", [None, record(C.RIGHT), record(C.DISABLED, NOW)])
def test_what_could_not_be_looked_at_changes_nothing(before: HookRecord | None) -> None:
    assert changed(before, state(C.FAILED), state(C.FAILED), NOW) is None


@pytest.mark.parametrize(("count", "an_hour", "within_hours"), [(1, 1, 1), (4, 4, 1), (20, 4, 6), (300, 16, 24)])
def test_one_project_is_looked_at_each_hour_and_many_a_few_at_a_time_each_once_a_day(
    count: int, an_hour: int, within_hours: int
) -> None:
    projects = [(number, f"group/app-{number}") for number in range(count)]
    looked_at: dict[str, datetime] = {}
    now, looks, longest = NOW, 0, timedelta(0)
    for _ in range(4 * 48):
        for _, path in due(projects, looked_at, now):
            longest = max(longest, now - looked_at.get(path, now))
            looked_at[path] = now
            looks += 1
        now += PAUSE
    assert looks / 48 <= an_hour
    assert len(looked_at) == count
    assert longest <= timedelta(hours=within_hours)
