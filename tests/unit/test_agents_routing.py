"""Which agent a message is for: by name, by its place, or none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.routing import Near, ToAgent, Unclear, asked, names_one, route

NAMES = frozenset({"coder", "reviewer", "x9-y"})
ROOM = Near(NAMES)
ITS_THREAD = Near(NAMES, agent="coder")
DEFAULT = Near(NAMES, default="reviewer")

WITH_A_NAME = [
    ("@coder fix it", "coder", "", "fix it"),
    ("@coder: fix it", "coder", "", "fix it"),
    ("coder: fix it", "coder", "", "fix it"),
    ("Coder: fix it", "coder", "", "fix it"),
    ("@Coder fix it", None, "", ""),  # a phone capitalises words, not what follows an @
    ("  @coder   fix it  ", "coder", "", "fix it"),
    ("@coder\nfix it\n\n    as code", "coder", "", "fix it\n\n    as code"),
    ("coder:\nfix it", "coder", "", "fix it"),
    ("@x9-y go", "x9-y", "", "go"),
    ("@coder !42 fix it", "coder", "!42", "fix it"),
    ("@coder !42: fix it", "coder", "!42", "fix it"),
    ("@coder group/app!42 fix it", "coder", "group/app!42", "fix it"),
    ("coder: group/sub/app!42\nfix it", "coder", "group/sub/app!42", "fix it"),
    ("@coder 42 is the answer", "coder", "", "42 is the answer"),
    ("@coder wow! it works", "coder", "", "wow! it works"),
    ("@coder !0 it is", "coder", "", "!0 it is"),
    ("@coder group/app!x fails", "coder", "", "group/app!x fails"),
    ("@coder @reviewer said no", "coder", "", "@reviewer said no"),
    ("@coder fix !42 too", "coder", "", "fix !42 too"),
    ("@coder\u00a0fix it", "coder", "", "fix it"),
    ("> @reviewer says\n> no\n\n@coder why?", "coder", "", "> @reviewer says\n> no\n\nwhy?"),
]
TO_NOBODY = [
    "", "   ", "\n", "hello", "coder", "coder fix it", "coder,fix it", "coder:fix it", "@coder,", "@coders fix it",
    "@coder:example.org said so", "@coder.x hi", "@code r", "hey @coder fix it", "CODER: fix it", "cODER: fix it",
    "coder : fix it", "@ coder fix it", "@unknown fix it", "unknown: fix it", "> @coder fix it", ">@coder fix it",
    "> coder: fix it\n> please", "*@coder fix it", "`@coder fix it`", "@coder\u200b fix it", "\u0421oder: fix it",
    "hello\n@coder fix it",
]  # fmt: skip


@pytest.mark.parametrize(("text", "agent", "ref", "rest"), WITH_A_NAME)
def test_a_name_at_the_beginning_says_whom_it_is_for_and_a_reference_after_it_which_sandbox(
    text: str, agent: str | None, ref: str, rest: str
) -> None:
    for near in (ROOM, DEFAULT):
        assert route(text, near) == (ToAgent(agent, rest, ref) if agent else None)
    assert names_one(text, NAMES) == (agent is not None)


@pytest.mark.parametrize(("text", "agent", "ref", "rest"), [one for one in WITH_A_NAME if one[1]])
def test_a_name_comes_before_the_thread_s_agent(text: str, agent: str, ref: str, rest: str) -> None:
    assert route(text, Near(NAMES, agent="reviewer", default="x9-y")) == ToAgent(agent, rest, ref)


@pytest.mark.parametrize("text", TO_NOBODY)
def test_anything_else_is_for_nobody_in_a_room_whatever_its_own_agent_is(text: str) -> None:
    assert route(text, ROOM) is None
    assert route(text, DEFAULT) is None
    assert not names_one(text, NAMES)


@pytest.mark.parametrize("text", ["hello", "coder fix it", "@bob:example.org look", "fix it\n\n  and more", "!42 too"])
def test_every_message_in_its_own_thread_is_for_the_agent_as_it_is(text: str) -> None:
    assert route(text, ITS_THREAD) == ToAgent("coder", text.strip(), named=False)


@pytest.mark.parametrize("text", ["", " ", "> only a quote", "> a quote\n> of two lines\n\n", ">@reviewer look"])
def test_nothing_but_quotes_is_for_nobody_in_its_own_thread_either(text: str) -> None:
    assert route(text, ITS_THREAD) is None


@pytest.mark.parametrize(
    "text", ["@coder", "coder:", "@coder \n ", "@coder !42", "@coder group/app!42  ", "> x\n@coder"]
)
def test_a_name_without_a_text_is_asked_what_to_do(text: str) -> None:
    routed = route(text, ROOM)
    assert isinstance(routed, Unclear)
    assert routed.why.startswith("Write what coder is to do")


@pytest.mark.parametrize(
    ("text", "near", "expected"),
    [
        ("coder fix it", ROOM, ToAgent("coder", "fix it")),
        ("Coder !42 fix it", ROOM, ToAgent("coder", "fix it", "!42")),
        ("@coder: fix it", DEFAULT, ToAgent("coder", "fix it")),
        ("coder fix it\n\nplease", ROOM, ToAgent("coder", "fix it\n\nplease")),
        ("fix it", DEFAULT, ToAgent("reviewer", "fix it")),
        ("group/app!42 fix it", DEFAULT, ToAgent("reviewer", "fix it", "group/app!42")),
        ("42 tests fail", DEFAULT, ToAgent("reviewer", "42 tests fail")),
        ("fix it", Near(NAMES, agent="coder", default="reviewer"), ToAgent("coder", "fix it")),
        ("reviewer fix it", ITS_THREAD, ToAgent("reviewer", "fix it")),
    ],
)
def test_asking_goes_to_the_named_agent_else_the_thread_s_else_the_room_s(
    text: str, near: Near, expected: ToAgent
) -> None:
    assert asked(text, near) == expected


@pytest.mark.parametrize(
    ("text", "near", "why"),
    [
        ("fix it", ROOM, "Say which agent, before the text: coder or reviewer or x9-y."),
        ("nobody fix it", ROOM, "Say which agent"),
        ("CODER fix it", ROOM, "There is no such agent: did you mean coder?"),
        ("@CoDer: fix it", replace(ROOM, default="reviewer"), "There is no such agent: did you mean coder?"),
        ("fix it", Near(frozenset()), "No agent can be spoken to here"),
        ("coder", ROOM, "Write what coder is to do"),
        ("!42", DEFAULT, "Write what reviewer is to do"),
    ],
)
def test_asking_nobody_or_nothing_is_told_what_to_write(text: str, near: Near, why: str) -> None:
    found = asked(text, near)
    assert isinstance(found, Unclear)
    assert found.why.startswith(why)


pieces = st.sampled_from(
    [
        "@coder",
        "coder:",
        "Coder:",
        "@reviewer",
        "> ",
        ">",
        "\n",
        " ",
        "!42",
        "group/app!42",
        ":",
        "\u00a0",
        "\x00",
        "text",
    ]
)
texts = st.text(max_size=300) | st.lists(pieces | st.text(max_size=5), max_size=12).map("".join)


@given(texts, st.sampled_from([ROOM, ITS_THREAD, DEFAULT, Near(frozenset()), Near(frozenset(), "coder", "coder")]))
def test_no_text_breaks_the_routing_and_what_the_agent_gets_is_from_the_text(text: str, near: Near) -> None:
    for routed in (route(text, near), asked(text, near)):
        if isinstance(routed, ToAgent):
            assert routed.agent in near.names | {near.agent, near.default}
            assert routed.text.strip()
            assert len(routed.text) <= len(text)
            assert routed.text.split()[-1] == text.split()[-1]
            assert routed.ref in text
    assert names_one(text, near.names) == (route(text, Near(near.names)) is not None)


@given(texts)
def test_a_quoted_message_is_never_for_anybody(text: str) -> None:
    quoted = "\n".join(f"> {line}" for line in text.splitlines())
    assert route(quoted, ITS_THREAD) is None
