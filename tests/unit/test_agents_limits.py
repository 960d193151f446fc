"""What stops agents that talk to each other, and the daily budgets: tables, and properties for any talk."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.limits import (
    GUARDS,
    MOST_A_MINUTE,
    MOST_HOPS,
    MOST_IN_A_ROW,
    Spent,
    TalkBefore,
    TalkGuard,
    bounds_of,
    day_of,
    guard_against,
    over_budget,
    person_of,
    talk,
    worked,
)
from ravebot.agents.model import AGENT, AgentMessage, ConversationId, MessageId
from ravebot.sandboxes.model import Actor
from tests.support.records import NOON, make_config

ALICE = Actor("matrix", "@alice:example.org")
MOMENTS = st.integers(0, 5_000_000).map(lambda minutes: NOON + timedelta(minutes=minutes))
DIFFERENT = tuple(f"text {number}" for number in range(MOST_IN_A_ROW))


def said(text: str, author: Actor) -> AgentMessage:
    return AgentMessage(MessageId(1), ConversationId(1), "$key", author, ALICE, text, NOON)


@pytest.mark.parametrize(
    ("before", "text", "hops", "guard"),
    [
        (TalkBefore(), "go on", 1, None),
        (TalkBefore(), "go on", MOST_HOPS, None),
        (TalkBefore(), "go on", MOST_HOPS + 1, TalkGuard.HOPS),
        (TalkBefore(("ping",)), "ping", 1, None),
        (TalkBefore(("ping", "ping")), "ping", 1, TalkGuard.SAME),
        (TalkBefore(("Ping", " ping\n")), "PING", 1, TalkGuard.SAME),
        (TalkBefore(("ping", "pong")), "ping", 1, None),
        (TalkBefore(("pong", "ping", "ping")), "ping", 1, None),
        (TalkBefore(DIFFERENT[1:]), "go on", 1, None),
        (TalkBefore(DIFFERENT), "go on", 1, TalkGuard.IN_A_ROW),
        (TalkBefore((), MOST_A_MINUTE - 1), "go on", 1, None),
        (TalkBefore((), MOST_A_MINUTE), "go on", 1, TalkGuard.PAIR),
    ],
)
def test_a_message_of_an_agent_is_passed_on_until_a_limit(
    before: TalkBefore, text: str, hops: int, guard: TalkGuard | None
) -> None:
    assert guard_against(before, text, hops) is guard


@given(st.lists(st.sampled_from(["a", "b"]), max_size=200), st.integers(1, 3))
def test_no_talk_of_agents_goes_on_without_a_person(texts: list[str], hops: int) -> None:
    before: tuple[str, ...] = ()
    for text in texts:
        if guard_against(TalkBefore(before[:MOST_IN_A_ROW]), text, hops):
            break
        before = (text, *before)
    assert len(before) <= MOST_IN_A_ROW
    assert not any(len(set(before[at : at + 3])) == 1 for at in range(len(before) - 2))


@given(st.lists(st.tuples(st.text(max_size=5), st.booleans()), max_size=40))
def test_only_what_agents_said_since_a_person_spoke_counts(messages: list[tuple[str, bool]]) -> None:
    newest = [said(text, ALICE if person else Actor(AGENT, "coder")) for text, person in messages]
    last_person = next((at for at, (_, person) in enumerate(messages) if person), len(messages))
    assert talk(newest, 3) == TalkBefore(tuple(text for text, _ in messages[:last_person]), 3)


def test_each_guard_says_something_else_to_people() -> None:
    assert len(GUARDS) == len(TalkGuard)


@given(MOMENTS, st.timedeltas(timedelta(days=-3), timedelta(days=3)))
def test_the_days_that_a_turn_ran_on_share_its_whole_time(begun: datetime, lasted: timedelta) -> None:
    days = {day_of(begun + timedelta(days=number)) for number in range(-4, 5)}
    assert sum((worked(begun, begun + lasted, day) for day in days), timedelta(0)) == max(timedelta(0), lasted)


@given(MOMENTS)
def test_every_moment_lies_in_its_own_day_and_in_no_other(now: datetime) -> None:
    begins, ends = bounds_of(day_of(now))
    assert begins <= now < ends
    assert ends - begins == timedelta(days=1)


@given(st.integers(0, 1000), st.integers(1, 500), st.integers(0, 1000), st.integers(1, 500))
def test_messages_are_taken_until_either_budget_is_used_up(agent: int, most: int, person: int, own_most: int) -> None:
    why = over_budget("coder", Spent("2026-01-01", agent, most), Spent("2026-01-01", person, own_most))
    assert bool(why) is (agent >= most or person >= own_most)
    assert not why or "00:00 UTC" in why


def test_one_person_has_one_budget_in_rooms_and_on_gitlab(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert person_of(config, ALICE) == person_of(config, Actor("gitlab", "alice"))
    assert person_of(config, Actor("matrix", "@ops:example.org")) == Actor("matrix", "@ops:example.org")
    assert person_of(config, Actor("matrix", "@gina:example.org")) != person_of(config, ALICE)
