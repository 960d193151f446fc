"""The table of verbs fits the doors that it names."""

from __future__ import annotations

import pytest

from ravebot.commands.verbs import VERBS, AgentAct, Door, Show, Takes, Verb

SHOWN = {Door.ROOM: frozenset(Show), Door.COMMENT: frozenset({Show.HELP}), Door.SHELL: frozenset({Show.LIVE})}
ABOUT_ONE = {Show.CARD, Show.WHY, Show.LOGS, Show.DIFF}


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_a_verb_is_found_only_where_what_it_shows_can_be_shown(verb: Verb) -> None:
    assert verb.doors
    if isinstance(verb.does, Show):
        assert all(verb.does in SHOWN[door] for door in verb.doors)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_a_verb_takes_a_reference_if_it_is_about_one_merge_request(verb: Verb) -> None:
    about_one = not isinstance(verb.does, Show | AgentAct) or verb.does in ABOUT_ONE
    assert (verb.takes[:1] == (Takes.REF,)) == about_one
