from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.matrix.answers import Json
from ravebot.matrix.commands import command_line
from ravebot.matrix.incoming import (
    MOST_TEXT,
    Removed,
    our_join,
    read_message,
    read_reaction,
    read_removed,
    since_we_joined,
    slimmed,
    without_reply_fallback,
)
from ravebot.matrix.invites import inviter

US = "@ravebot:example.org"

json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


def event(**changed: Any) -> dict[str, Any]:
    return {
        "type": "m.room.message",
        "event_id": "$1",
        "sender": "@alice:example.org",
        "origin_server_ts": 1_700_000_000_000,
        "content": {"msgtype": "m.text", "body": "!rave list"},
    } | changed


def member(membership: str, *, before: str | None = None, user: str = US, event_id: str = "$m") -> dict[str, Any]:
    unsigned = {"prev_content": {"membership": before}} if before else {}
    content = {"membership": membership}
    return event(
        type="m.room.member", state_key=user, sender=user, content=content, unsigned=unsigned, event_id=event_id
    )


def test_a_message_is_read() -> None:
    message = read_message(event(), "!room", US)
    assert message is not None
    assert (message.event_id, message.room_id, message.text) == ("$1", "!room", "!rave list")
    assert message.at_ms == 1_700_000_000_000


@pytest.mark.parametrize("field", ["type", "event_id", "sender", "origin_server_ts", "content"])
@given(value=json_value)
def test_no_field_of_an_event_breaks_the_reading(field: str, value: Any) -> None:
    read_message(event(**{field: value}), "!room", US)


@pytest.mark.parametrize("field", ["msgtype", "body", "m.relates_to", "m.new_content"])
@given(value=json_value)
def test_no_field_of_a_content_breaks_the_reading(field: str, value: Any) -> None:
    message = read_message(event(content={"msgtype": "m.text", "body": "x"} | {field: value}), "!room", US)
    assert message is None or isinstance(message.text, str)


@pytest.mark.parametrize(
    "more",
    [
        {"msgtype": "m.notice"},
        {"m.relates_to": {"rel_type": "m.replace", "event_id": "$0"}},
        {"m.new_content": {"msgtype": "m.text", "body": "!rave list"}},
    ],
)
def test_notices_and_edits_are_no_messages_also_from_a_gap(more: dict[str, Any]) -> None:
    heard = event(content={"msgtype": "m.text", "body": "!rave list", **more})
    assert read_message(heard, "!room", US) is None
    assert read_message(slimmed(heard), "!room", US) is None


def reacted(key: object = "✅", to: object = "$question", **changed: Any) -> dict[str, Any]:
    relation = {"rel_type": "m.annotation", "event_id": to, "key": key}
    return event(type="m.reaction", content={"m.relates_to": relation}) | changed


@pytest.mark.parametrize(
    ("key", "read"), [("✅", "✅"), ("✅\ufe0f", "✅"), ("🛑\ufe0e", "🛑"), ("👍🏽", "👍🏽"), ("", "")]
)
def test_a_reaction_is_read_without_its_variation_selector_also_from_a_gap(key: str, read: str) -> None:
    for one in (reacted(key), slimmed(reacted(key))):
        found = read_reaction(one, "!room", US)
        assert found is not None
        assert (found.event_id, found.sender, found.to, found.key) == ("$1", "@alice:example.org", "$question", read)


@pytest.mark.parametrize(
    "one",
    [
        reacted("x" * 21), reacted(7), reacted(None), reacted(to=""), reacted(to=7), reacted(to="$" + "x" * 255),
        reacted(sender=US), reacted(state_key=""), reacted(type="m.room.message"), reacted(content="no"),
        reacted(content={}), reacted(content={"m.relates_to": {"rel_type": "m.thread", "event_id": "$1", "key": "✅"}}),
    ],
)  # fmt: skip
def test_what_is_no_reaction_of_others_is_none(one: dict[str, Any]) -> None:
    assert read_reaction(one, "!room", US) is None
    assert read_reaction(slimmed(one), "!room", US) is None


@pytest.mark.parametrize("field", ["type", "event_id", "sender", "origin_server_ts", "content"])
@given(value=json_value)
def test_no_field_of_a_reaction_breaks_the_reading(field: str, value: Any) -> None:
    found = reacted(**{field: value})
    assert read_reaction(slimmed(found), "!room", US) == read_reaction(found, "!room", US)


def test_the_quote_that_a_person_wrote_in_a_reply_stays_also_in_a_gap() -> None:
    relation = {"m.in_reply_to": {"event_id": "$2"}}
    body = "> <@bob:x> no\n\n> my own quote\n\nyes"
    whole = event(content={"msgtype": "m.text", "body": body, "m.relates_to": relation})
    for one in (whole, slimmed(whole)):
        message = read_message(one, "!room", US)
        assert message is not None
        assert message.text == "> my own quote\n\nyes"


def test_a_message_is_kept_long_enough_to_see_that_it_is_too_long() -> None:
    whole = event(content={"msgtype": "m.text", "body": "x" * 60_000})
    for one in (whole, slimmed(whole)):
        message = read_message(one, "!room", US)
        assert message is not None
        assert (len(message.text), message.whole) == (MOST_TEXT, True)


@given(value=json_value)
def test_no_invite_breaks_the_reading(value: Any) -> None:
    assert inviter({"invite_state": value}, US) is None
    assert inviter({"invite_state": {"events": value}}, US) is None


def test_a_time_that_is_no_time_is_none() -> None:
    for at in (-1, 2**80, True, "now", None):
        message = read_message(event(origin_server_ts=at), "!room", US)
        assert message is not None
        assert message.at_ms == 0


@pytest.mark.parametrize("root", ["", "$" + "x" * 255, "$" + "é" * 128, "$\ud800", 7, None])
def test_a_thread_whose_id_is_none_is_no_thread(root: object) -> None:
    relation = {"rel_type": "m.thread", "event_id": root}
    message = read_message(event(content={"msgtype": "m.text", "body": "x", "m.relates_to": relation}), "!room", US)
    assert message is not None
    assert message.thread_root is None


@pytest.mark.parametrize(
    ("relation", "answered"),
    [
        ({"m.in_reply_to": {"event_id": "$card"}}, "$card"),
        ({"rel_type": "m.thread", "event_id": "$root", "m.in_reply_to": {"event_id": "$one"}}, "$one"),
        (
            {"rel_type": "m.thread", "event_id": "$root", "is_falling_back": True, "m.in_reply_to": {"event_id": "$1"}},
            None,
        ),
        ({"m.in_reply_to": {"event_id": "$" + "x" * 255}}, None),
        ({"m.in_reply_to": {"event_id": 7}}, None),
        ({"m.in_reply_to": "$card"}, None),
        ({}, None),
    ],
)
def test_a_reply_names_the_event_that_it_answers_and_a_threads_fallback_is_none(
    relation: dict[str, Any], answered: str | None
) -> None:
    whole = event(content={"msgtype": "m.text", "body": "x", "m.relates_to": relation})
    for one in (whole, slimmed(whole)):
        message = read_message(one, "!room", US)
        assert message is not None
        assert message.reply_to == answered


@pytest.mark.parametrize("field", ["event_id", "sender"])
def test_an_event_whose_ids_are_longer_than_matrix_allows_is_malformed(field: str) -> None:
    assert read_message(event(**{field: "@" + "x" * 254}), "!room", US) is not None
    assert read_message(event(**{field: "@" + "x" * 255}), "!room", US) is None


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("> <@a:b> quoted\n\nanswer", "answer"),
        ("> <@a:b> quoted\n> more\n>\n\nanswer\n> kept", "answer\n> kept"),
        ("> only a quote", ""),
        ("no quote", "no quote"),
        (">!rave stop", ">!rave stop"),
    ],
)
def test_the_quote_before_a_reply_is_stripped(text: str, stripped: str) -> None:
    assert without_reply_fallback(text) == stripped


def test_only_what_came_after_our_last_join_counts() -> None:
    old, new = event(event_id="$old"), event(event_id="$new")
    assert since_we_joined([old, member("join", before="invite"), new], US) == [new]
    assert since_we_joined([old, member("join"), new, member("leave"), old, member("join"), new], US) == [new]


def test_a_change_of_our_picture_or_somebody_elses_join_hides_nothing() -> None:
    old, new = event(event_id="$old"), event(event_id="$new")
    events = [old, member("join", before="join"), member("join", user="@bob:example.org"), new]
    assert our_join(events, US) is None
    assert since_we_joined(events, US) == events


def test_an_inviter_is_who_sent_the_invite_to_us_and_nobody_else() -> None:
    def room(*events: dict[str, Any]) -> dict[str, Any]:
        return {"invite_state": {"events": list(events)}}

    for_us = {"type": "m.room.member", "state_key": US, "sender": "@ops:x", "content": {"membership": "invite"}}
    assert inviter(room(for_us), US) == "@ops:x"
    assert inviter(room(for_us | {"state_key": "@bob:x"}), US) is None
    assert inviter(room(for_us | {"content": {"membership": "join"}}), US) is None
    assert inviter(room(for_us | {"type": "m.room.message"}), US) is None
    assert inviter(room(for_us | {"state_key": "@bob:x", "sender": "@admin:x"}, for_us), US) == "@ops:x"


def test_an_invite_that_a_remote_server_forged_before_the_true_one_does_not_count() -> None:
    true = {"type": "m.room.member", "state_key": US, "sender": "@eve:evil", "content": {"membership": "invite"}}
    forged = true | {"sender": "@ops:x"}
    assert inviter({"invite_state": {"events": [forged, forged, true]}}, US) == "@eve:evil"


LONG = "x" * 60_000


@pytest.mark.parametrize(
    "content",
    [
        {"msgtype": "m.text", "body": f"  !rave stop !1\n{LONG}"},
        {"msgtype": "m.text", "body": f"> <@bob> {LONG}\n\n!rave stop !1", "m.relates_to": {"m.in_reply_to": {}}},
        {"msgtype": "m.text", "body": "!rave list", "m.relates_to": {"rel_type": "m.thread", "event_id": "$root"}},
        {"msgtype": "m.text", "body": "!rave list", "m.relates_to": {"rel_type": "m.thread", "event_id": LONG}},
        {"msgtype": "m.text", "body": "* !rave list", "m.new_content": {"body": LONG}},
        {"msgtype": "m.text", "body": "!rave list", "m.relates_to": {"rel_type": "m.replace", "event_id": "$1"}},
        {"msgtype": "m.notice", "body": LONG},
        {"msgtype": "m.text", "body": 7},
        "nonsense",
    ],
)
def test_a_slimmed_message_is_small_and_says_the_same(content: Any) -> None:
    whole = event(content=content, unsigned={"prev_content": {"displayname": LONG}})
    slim = slimmed(whole)
    assert len(json.dumps(slim)) < 1500 + MOST_TEXT
    read = read_message(whole, "!room", US)
    assert read_message(slim, "!room", US) == read
    short = slimmed(whole, 0)
    assert len(json.dumps(short)) < 1500
    again = read_message(short, "!room", US)
    cut = bool(read and read.text)
    assert again == (read and replace(read, text=command_line(read.text), whole=not cut))


def test_a_slimmed_join_is_small_and_still_ours() -> None:
    for events in ([member("join")], [member("join", before="join")], [member("leave")]):
        slim = [slimmed({**one, "content": {**one["content"], "displayname": LONG}}) for one in events]
        assert our_join(slim, US) == our_join(events, US)
        assert len(json.dumps(slim)) < 1500


@pytest.mark.parametrize("field", ["content", "unsigned", "sender", "type"])
@given(value=json_value)
def test_no_field_of_an_event_breaks_the_slimming(field: str, value: Any) -> None:
    slimmed(event(**{field: value}))


@pytest.mark.parametrize("named", [{"redacts": "$card", "content": {}}, {"content": {"redacts": "$card"}}])
def test_a_redaction_names_what_it_removes_in_old_and_new_versions_of_rooms(named: Json) -> None:
    event = named | {"type": "m.room.redaction", "event_id": "$r", "sender": "@ops:x"}
    assert read_removed(event, "!dev:x") == Removed("!dev:x", "$card")
    assert read_removed(slimmed(event), "!dev:x") == Removed("!dev:x", "$card")


@pytest.mark.parametrize("redacts", [None, 7, "", "$" + "x" * 300, "\ud800", ["$card"]])
def test_a_redaction_of_nothing_is_none(redacts: object) -> None:
    event: Json = {"type": "m.room.redaction", "redacts": redacts, "content": {"redacts": redacts}}
    assert read_removed(event, "!dev:x") is None
    assert read_removed(slimmed(event), "!dev:x") is None
    assert read_removed({"type": "m.room.message", "redacts": "$card"}, "!dev:x") is None
