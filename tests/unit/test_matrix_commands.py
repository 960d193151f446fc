from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.commands.permissions import Right
from ravebot.commands.refs import Ref
from ravebot.commands.verbs import VERBS, Command, Door, Mistake, Verb, at, explain, help_on, help_rows
from ravebot.matrix.commands import command_line, number_in, parse

ONE = ("group/app",)
TWO = ("group/app", "tools/cli")
REF = Ref("group/app", 42)
NAMED = {verb.name: verb for verb in VERBS}


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("!rave", Command(NAMED["help"])),
        ("!rave help", Command(NAMED["help"])),
        ("  !rave   list  ", Command(NAMED["list"])),
        ("!Rave LIST", Command(NAMED["list"])),
        ("!rave show !42", Command(NAMED["show"], REF)),
        ("!rave show 42", Command(NAMED["show"], REF)),
        ("!rave show other/group/app.js!7", Command(NAMED["show"], Ref("other/group/app.js", 7))),
        ("!rave show other/group/app[.]js!7", Command(NAMED["show"], Ref("other/group/app.js", 7))),
        ("!rave extend !42", Command(NAMED["extend"], REF)),
        ("!rave extend !42 1h30m", Command(NAMED["extend"], REF, timedelta(minutes=90))),
        ("!rave extend !42 1h 30m", Command(NAMED["extend"], REF, timedelta(minutes=90))),
        ("!rave start 42 DEADBEEF", Command(NAMED["start"], REF, sha="deadbeef")),
        ("!rave stop !42\nbecause it is done", Command(NAMED["stop"], REF)),
        ("!rave whoami", Command(NAMED["whoami"])),
    ],
)
def test_what_people_type_is_understood(text: str, command: Command) -> None:
    assert parse(text, "!rave", ONE) == command


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("!rave stop 42", 42),
        ("  !RAVE stop !42 now", 42),
        ("!rave extend group/app9!42 1h", 42),
        ("!rave stop\n42", None),
        ("!rave", None),
        ("!rave list", None),
        ("!rave stop !042", None),
        ("!rave stop " + "9" * 400, None),
        ("!rave stop 4²", None),
        ("!rave show group/app[.]js!7", 7),
        ("!rave start deadbee1", None),
        ("!rave extend 1h30", None),
        ("!rave \ud800 \ud8007", None),
    ],
)
def test_the_number_that_a_command_is_about_is_read_off_it(text: str, number: int | None) -> None:
    assert number_in(text, "!rave") == number


@pytest.mark.parametrize("text", ["", "hello", "!raven list", "say !rave list", "\n", "!rav", "!", "> !rave list"])
def test_what_is_not_for_us_is_left_alone(text: str) -> None:
    assert parse(text, "!rave", ONE) is None


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("!rave lsit", "Did you mean `!rave list`?"),
        ("!rave extned !42", "Did you mean `!rave extend REF [1h]`?"),
        ("!rave xyzzy", "Type `!rave help` to see"),
        ("!rave show", "Say which merge request."),
        ("!rave show forty-two", "no merge request"),
        ("!rave show !0", "no merge request"),
        ("!rave show ٤٢", "no merge request"),
        ("!rave show !99999999999999999999", "no merge request"),
        ("!rave show ../../etc/passwd!1 --force", "does not belong"),
        ("!rave extend !42 soon", "write a duration"),
        ("!rave extend !42 0s", "longer than nothing"),
        ("!rave extend !42 999999999999d", "write a duration"),
        ("!rave stop !42 now", "does not belong"),
        ("!rave list everything", "does not belong"),
        ("!rave start !42 main", "hexadecimal"),
        ("!rave show " + "9" * 5000, "too long"),
    ],
)
def test_what_is_wrong_is_answered_with_how_it_would_be(text: str, advice: str) -> None:
    answer = parse(text, "!rave", ONE)
    assert isinstance(answer, Mistake)
    assert advice in explain(answer, Door.ROOM, "!rave")


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("!rave stop", Command(NAMED["stop"], REF)),
        ("!rave why", Command(NAMED["why"], REF)),
        ("!rave extend", Command(NAMED["extend"], REF)),
        ("!rave extend 1h 30m", Command(NAMED["extend"], REF, timedelta(minutes=90))),
        ("!rave start deadbee1", Command(NAMED["start"], REF, sha="deadbee1")),
        ("!rave stop 7", Command(NAMED["stop"], Ref("group/app", 7))),
        ("!rave start 7 deadbee1", Command(NAMED["start"], Ref("group/app", 7), sha="deadbee1")),
        ("!rave extend tools/cli!7 1h", Command(NAMED["extend"], Ref("tools/cli", 7), timedelta(hours=1))),
        ("!rave list", Command(NAMED["list"])),
    ],
)
def test_a_card_says_which_merge_request_is_meant_where_no_word_does(text: str, command: Command) -> None:
    assert parse(text, "!rave", ONE, card=REF) == command


@pytest.mark.parametrize("text", ["!rave stop now", "!rave stop !042", "!rave extend !042 1h", "!rave why app!7"])
def test_what_is_no_reference_is_a_mistake_at_a_card_too(text: str) -> None:
    assert isinstance(parse(text, "!rave", ONE, card=REF), Mistake)


def test_who_names_no_merge_request_learns_where_that_is_not_needed() -> None:
    answer = parse("!rave stop", "!rave", ONE)
    assert isinstance(answer, Mistake)
    assert "In the thread of a card or an agent, or in a reply to them, REF may be left out." in explain(
        answer, Door.ROOM, "!rave"
    )


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_help_on_a_verb_says_what_it_does_what_happens_then_and_who_may(verb: Verb) -> None:
    for door, prefix in ((Door.ROOM, "!box"), (Door.COMMENT, "/sandbox")):
        if door not in verb.doors:
            continue
        typed, then, needs, *example = help_on(verb, door, prefix).splitlines()
        assert typed == f"`{verb.usage(door, prefix)}` – {verb.doors[door]}."
        assert then == verb.then
        assert ("Developer" in needs) == (verb.right is Right.COMMAND)
        assert bool(example) == (verb.usage(door, prefix) != f"{prefix} {verb.name}")
        for line in example:
            shown = line.removeprefix("For example: `").removesuffix("`")
            if door is Door.ROOM:
                assert isinstance(parse(shown, prefix, ()), Command)


def test_help_on_an_unknown_verb_names_the_closest() -> None:
    answer = parse("!rave help extned", "!rave", ONE)
    assert isinstance(answer, Mistake)
    assert "Did you mean `!rave extend REF [1h]`?" in explain(answer, Door.ROOM, "!rave")


def test_a_short_reference_in_a_room_of_several_projects_is_asked_back() -> None:
    answer = parse("!rave stop !42", "!rave", TWO)
    assert isinstance(answer, Mistake)
    assert "group/app!42 or tools/cli!42" in explain(answer, Door.ROOM, "!rave")


def test_a_short_reference_where_no_project_is_known_is_asked_back() -> None:
    answer = parse("!rave stop 42", "!rave", ())
    assert isinstance(answer, Mistake)
    assert "group/app!42" in explain(answer, Door.ROOM, "!rave")


def test_help_lists_every_command_with_the_configured_prefix() -> None:
    rows = dict(help_rows(Door.ROOM, "!box"))
    assert len(rows) == len(at(Door.ROOM))
    assert "!box extend REF [1h]" in rows
    assert all(rows.values())


@pytest.mark.parametrize("verb", at(Door.ROOM), ids=lambda verb: verb.name)
def test_every_command_can_be_typed_as_its_own_usage_says(verb: Verb) -> None:
    typed = (
        verb.usage(Door.ROOM, "!rave")
        .replace("REF", "!42")
        .replace("[1h]", "1h")
        .replace("[SHA]", "deadbeef")
        .replace("[VERB]", "stop")
        .replace("[revoke ID]", "revoke ID")
        .replace("ID", "7")
    )
    assert isinstance(parse(typed, "!rave", ONE), Command)


@given(st.text(max_size=2000), st.sampled_from(["!rave ", "!rave show ", "!rave extend !42 ", "!rave start !42 ", ""]))
def test_no_text_breaks_the_parser_or_is_repeated_at_length(text: str, start: str) -> None:
    answer = parse(start + text, "!rave", TWO)
    if isinstance(answer, Mistake):
        assert len(explain(answer, Door.ROOM, "!rave")) < 600
        assert "\n" not in explain(answer, Door.ROOM, "!rave")


@given(
    st.sampled_from(["!rave", " !rave", "!rave show", "!rave start 42", ""]),
    st.text(alphabet=" \t\n!4\ud83d\u2028xé", max_size=40),
    st.integers(0, 700),
)
def test_the_line_that_is_kept_of_a_message_means_what_the_message_means(said: str, more: str, long: int) -> None:
    for text in (said + more, said + "x" * long + more, said + " " * long + more):
        line = command_line(text)
        assert len(line) <= 601
        for projects in ((), ONE, TWO):
            assert parse(line, "!rave", projects) == parse(text, "!rave", projects)
