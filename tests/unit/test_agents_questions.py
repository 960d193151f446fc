"""What a question shows of what is asked: all of it, in its order, whatever an agent puts there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.model import ApprovalKind, ApprovalState, Conversation, ConversationId
from ravebot.agents.questions import MOST_MENTIONED, Part, hash_of, parts_of, payload_of, question
from ravebot.config.model import MatrixConfig
from ravebot.sandboxes.model import Actor, Person
from tests.support.records import NOON, a_merge_request
from tests.unit.test_agents_ruling import ALICE, ASKED, BOB

CONFIG = MatrixConfig.model_validate(
    {
        "homeserver": "http://127.0.0.1:1",
        "user_id": "@ravebot:example.org",
        "admins": [f"@ops{number}:example.org" for number in range(9)],
        "users": {ALICE.name: "alice", "@gina:example.org": "gina"},
    }
)
MR = a_merge_request(people=(Person(1, "gina"), Person(2, "nobody"), Person(3, "alice")))
CODER = Conversation(ConversationId(1), "coder", ASKED.door, ASKED.place, "$root", NOON, mr=MR.ref)


def test_what_is_asked_is_shown_in_its_order() -> None:
    payload = payload_of({"merge request": "group/app!1", "changes": {"a.py": "+1 −0", "b.py": "new"}, "hash": "ff"})
    assert parts_of(payload) == (
        Part("merge request", "group/app!1"),
        Part("changes.a.py", "+1 −0"),
        Part("changes.b.py", "new"),
        Part("hash", "ff"),
    )


def asked_by_agent(**call: object) -> tuple[Part, ...]:
    params = {"options": [{"kind": 'allow"\n'}], "sessionId": "s", "toolCall": call}
    return question(replace(ASKED, payload=json.dumps({"id": 7, "params": params})), CONFIG).parts


def test_of_an_agent_s_request_the_tool_call_comes_first_and_the_rest_in_one_line_after_it() -> None:
    assert asked_by_agent(title="Edit", kind="edit") == (
        Part("title", "Edit"),
        Part("kind", "edit"),
        Part("rest of the request", 'id "7", options 1.kind "allow\\"\\n", sessionId "s"'),
    )


def test_an_old_and_a_new_text_are_shown_as_one_with_its_lines_marked() -> None:
    change = {"type": "diff", "newText": "a\nB\nb\nd\n", "oldText": "a\nb\nc\nd\n", "path": "x"}
    assert asked_by_agent(content=[change, {"newText": "new file"}])[:-1] == (
        Part("content 1.type", "diff"),
        Part("content 1.oldText (-) and newText (+)", " a\n-b\n-c\n+B\n+b\n d\n "),
        Part("content 1.path", "x"),
        Part("content 2.newText", "new file"),
    )


few_lines = st.lists(st.sampled_from(["", "a", "b", "-a", "+b", " "]), max_size=8).map("\n".join)


@given(few_lines, few_lines)
def test_both_texts_can_be_read_from_the_marked_lines(old: str, new: str) -> None:
    (marked, _) = asked_by_agent(oldText=old, newText=new)
    lines = marked.text.split("\n")
    assert "\n".join(line[1:] for line in lines if line[0] in " -") == old
    assert "\n".join(line[1:] for line in lines if line[0] in " +") == new


def test_a_text_that_is_there_twice_is_not_taken_for_an_old_one() -> None:
    call = '{"oldText": "a", "oldText": "b", "newText": "c"}'
    view = question(replace(ASKED, payload=f'{{"params": {{"toolCall": {call}}}}}'), CONFIG)
    assert [part.text for part in view.parts[:-1]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        ('{"run": "ls", "run": "rm -rf /"}', (Part("run", "ls"), Part("run", "rm -rf /"))),
        ('{"a": [1, {"b": null}], "c": {}, "d": []}',
         (Part("a 1", "1"), Part("a 2.b", "null"), Part("c", "{}"), Part("d", "[]"))),
        ("rm -rf /", (Part("", "rm -rf /"),)),
        ('"rm -rf /"', (Part("", "rm -rf /"),)),
        ("[" * 100 + "]" * 100, (Part("", "[" * 100 + "]" * 100),)),
        ("[" * 100_000, (Part("", "[" * 100_000),)),
        ("", (Part("", ""),)),
    ],
)  # fmt: skip
def test_nothing_of_what_an_agent_asks_is_hidden(payload: str, shown: tuple[Part, ...]) -> None:
    assert parts_of(payload) == shown


values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)), max_leaves=12)  # fmt: skip


@given(values)
def test_every_text_of_a_payload_is_shown_whole(value: object) -> None:
    def texts(of: object) -> list[str]:
        if isinstance(of, dict):
            return [text for inner in of.values() for text in texts(inner)]
        if isinstance(of, list):
            return [text for inner in of for text in texts(inner)]
        return [of] if isinstance(of, str) else []

    shown = [part.text for part in parts_of(json.dumps(value))]
    wanted = texts(value)
    assert [text for text in shown if text in wanted] or not wanted
    assert all(text in shown for text in wanted)


def test_long_names_of_many_values_do_not_make_a_question_grow_without_end() -> None:
    payload = json.dumps({"k" * 30_000: {"l" * 1000: [0] * 15_000}})
    assert parts_of(payload) == (Part("", payload),)


def test_a_payload_that_is_no_text_in_utf_8_has_a_hash() -> None:
    assert hash_of("\ud800") != hash_of("")


def test_a_question_says_who_may_answer_and_mentions_only_who_can() -> None:
    shown = question(ASKED, CONFIG, mr=MR)
    assert shown.whom == "anybody with the role Developer or more in group/app"
    assert shown.mentions == ("@gina:example.org", ALICE.name)
    assert (shown.until, shown.ref, shown.answer, shown.is_open) == ("12:30 UTC", "group/app!1", "", True)
    assert shown.how("!rave") == "`!rave approve 7` or `!rave deny 7`"

    extension = question(replace(ASKED, kind=ApprovalKind.EXTENSION), CONFIG, mr=MR)
    assert extension.whom == "an admin of ravebot"
    assert extension.mentions == CONFIG.admins[:MOST_MENTIONED]

    stop = question(replace(ASKED, kind=ApprovalKind.STOP, only_by=BOB.name), CONFIG, mr=MR)
    assert (stop.whom, stop.mentions) == (f"only {BOB.name}", (BOB.name,))


def test_who_asked_an_agent_is_mentioned_if_they_are_known() -> None:
    tool = replace(ASKED, kind=ApprovalKind.TOOL)

    def mentions(asker: Actor) -> tuple[str, ...]:
        shown = question(tool, CONFIG, mr=MR, conversation=CODER, asker=asker)
        assert shown.agent == "coder"
        return shown.mentions

    assert mentions(ALICE) == (ALICE.name,)
    assert mentions(BOB) == ()
    assert mentions(Actor("gitlab", "alice")) == (ALICE.name,)
    assert mentions(Actor("gitlab", "nobody")) == ()


def test_only_an_agent_s_request_is_asked_by_it() -> None:
    kinds = {kind for kind in ApprovalKind if question(replace(ASKED, kind=kind), CONFIG, conversation=CODER).agent}
    assert kinds == {ApprovalKind.TOOL}


@pytest.mark.parametrize("state", ApprovalState)
def test_every_answer_has_its_words(state: ApprovalState) -> None:
    shown = question(replace(ASKED, state=state, decided_by=ALICE), CONFIG, mr=MR)
    assert bool(shown.answer) == (state is not ApprovalState.OPEN)
    decided = state in (ApprovalState.GRANTED, ApprovalState.DENIED)
    assert (shown.answer.endswith(f"by {ALICE.name}"), shown.by) == (decided, ALICE.name if decided else "")
    at_gitlab = question(replace(ASKED, state=state, decided_by=Actor("gitlab", "alice")), CONFIG, mr=MR)
    assert (at_gitlab.answer.endswith("by alice (gitlab)"), at_gitlab.by) == (decided, "")
