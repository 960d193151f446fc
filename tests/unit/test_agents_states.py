"""The states of turns in the model, in the store's statements and in the database's index are the same."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from ravebot.agents.model import DEAD_LETTERS, OVER, AgentDoor, TurnId, TurnState
from ravebot.agents.wording import once_more
from ravebot.store.agent_queue import DEAD
from ravebot.store.conversations import OPEN


def test_a_turn_is_open_in_the_store_exactly_in_the_states_that_are_no_end() -> None:
    assert set(re.findall(r"'(\w+)'", OPEN)) == {state.value for state in OVER}


@pytest.mark.parametrize(("index", "statement"), [("agent_turns_open", OPEN), ("agent_turns_given_up", DEAD)])
def test_the_indexes_have_the_conditions_of_the_statements(index: str, statement: str) -> None:
    schema = (files("ravebot.store.migrations") / "0011_agents.sql").read_text()
    condition = schema.partition(f"CREATE INDEX {index} ")[2].partition(";")[0].partition("WHERE ")[2]
    assert condition.startswith("state ")
    assert condition in statement


def test_dead_letters_are_the_ends_that_no_person_brought_about() -> None:
    assert set(re.findall(r"'(\w+)'", DEAD)) == {state.value for state in DEAD_LETTERS}
    assert {TurnState.DONE, TurnState.CANCELLED} == OVER - DEAD_LETTERS


def test_how_a_message_is_sent_again_is_said_as_it_is_typed_at_that_door() -> None:
    assert "`!sb resend`" in once_more(AgentDoor.MATRIX, "!sb", TurnId(7))
    assert "resend" not in once_more(AgentDoor.GITLAB, "!sb", TurnId(7))
    assert "`ravebot agent dead resend 7`" in once_more(AgentDoor.SHELL, "!sb", TurnId(7))
