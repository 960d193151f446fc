"""The states of turns in the model, in the store's statements and in the database's index are the same."""

from __future__ import annotations

import re
from importlib.resources import files

from ravebot.agents.model import DEAD_LETTERS, OVER, TurnState
from ravebot.store.conversations import OPEN


def test_a_turn_is_open_in_the_store_exactly_in_the_states_that_are_no_end() -> None:
    assert set(re.findall(r"'(\w+)'", OPEN)) == {state.value for state in OVER}


def test_the_index_of_unfinished_turns_has_the_condition_of_the_statements() -> None:
    schema = (files("ravebot.store.migrations") / "0011_agents.sql").read_text()
    index = schema.partition("CREATE INDEX agent_turns_open")[2].partition(";")[0]
    assert index.partition("WHERE ")[2] == OPEN


def test_dead_letters_are_ends_but_for_those_that_a_person_brought_about() -> None:
    assert DEAD_LETTERS | {TurnState.DONE, TurnState.CANCELLED} == OVER
