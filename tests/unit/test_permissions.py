from __future__ import annotations

import pytest

from ravebot.commands.permissions import Decision, Right, decide
from ravebot.commands.verbs import VERBS

RIGHTS = {verb.name: verb.right for verb in VERBS}
OPEN = tuple(name for name, right in RIGHTS.items() if right is Right.READ)
ACTING = tuple(name for name, right in RIGHTS.items() if right is Right.COMMAND)


def ask(
    verb: str,
    *,
    admin: bool = False,
    mapped: bool = True,
    direct: bool = False,
    username: str | None = "alice",
    level: int | None = 30,
) -> Decision:
    right = RIGHTS[verb]
    return decide(
        right, is_admin=admin, room_maps_project=mapped, direct=direct, gitlab_username=username, access_level=level
    )


@pytest.mark.parametrize("verb", ACTING)
@pytest.mark.parametrize("level", [30, 40, 50])
def test_developers_and_above_may_do_everything_in_a_mapped_room(verb: str, level: int) -> None:
    assert ask(verb, level=level).allowed


@pytest.mark.parametrize("verb", ACTING)
@pytest.mark.parametrize("level", [0, 5, 10, 15, 20, 29])
def test_below_developer_is_refused_and_told_the_role(verb: str, level: int) -> None:
    decision = ask(verb, level=level)
    assert not decision.allowed
    assert "alice" in decision.rule
    assert "Developer" in decision.advice


@pytest.mark.parametrize("verb", ACTING)
def test_who_is_no_member_is_refused(verb: str) -> None:
    decision = ask(verb, level=None)
    assert not decision.allowed
    assert "no member" in decision.rule


@pytest.mark.parametrize("verb", ACTING)
def test_who_is_not_tied_to_gitlab_is_refused_whatever_the_level(verb: str) -> None:
    decision = ask(verb, username=None, level=50)
    assert not decision.allowed
    assert "not tied" in decision.rule


@pytest.mark.parametrize("verb", [*ACTING, *OPEN])
@pytest.mark.parametrize("admin", [True, False])
def test_a_room_that_is_not_mapped_is_refused_even_to_admins(verb: str, admin: bool) -> None:
    decision = ask(verb, admin=admin, mapped=False)
    assert not decision.allowed
    assert "not mapped" in decision.rule


@pytest.mark.parametrize("verb", ACTING)
def test_an_admin_needs_no_role_on_gitlab(verb: str) -> None:
    assert ask(verb, admin=True, username=None, level=None).allowed
    assert ask(verb, admin=True, mapped=False, direct=True, username=None, level=None).allowed


@pytest.mark.parametrize("verb", ["help", "list", "whoami"])
def test_help_list_and_whoami_are_open_to_everybody_in_a_mapped_room(verb: str) -> None:
    assert ask(verb, username=None, level=None).allowed


def test_a_stranger_in_a_direct_chat_may_ask_for_help_but_lists_nothing() -> None:
    assert ask("help", mapped=False, direct=True, username=None, level=None).allowed
    assert ask("whoami", mapped=False, direct=True, username=None, level=None).allowed
    assert not ask("list", mapped=False, direct=True, username=None, level=None).allowed


def test_a_developer_may_act_in_a_direct_chat() -> None:
    assert ask("stop", mapped=False, direct=True).allowed
