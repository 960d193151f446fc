"""The pictures' own parts: what is cut out of a window, and the room as text."""

from __future__ import annotations

from tests.support.pictures.picture import Picture
from tests.support.pictures.words import as_text
from tests.support.synapse.user import Json

_WHITE, _GREY, _RED = b"\xff\xff\xff", b"\x80\x80\x80", b"\xc0\x10\x10"
_BOT, _ALICE = "@ravebot:localhost", "@alice:localhost"


def picture(*rows: bytes) -> Picture:
    return Picture.read(b"P6\n2 %d\n255\n" % len(rows) + b"".join(rows))


def test_what_is_new_begins_below_what_moved_up() -> None:
    blank, a, b, c = _WHITE + _WHITE, _WHITE + _GREY, _GREY + _WHITE, _RED + _RED
    assert picture(b, c, a, blank).first_row_since(picture(a, b, c, blank)) == 2
    assert picture(a, b, c, blank).first_row_since(picture(a, b, c, blank)) == 3
    assert picture(c, c, b, blank).first_row_since(picture(a, a, a, blank)) == 0


def test_blank_rows_are_cut_off_and_coloured_pixels_are_found() -> None:
    blank = _WHITE * 2
    whole = picture(blank, blank, _GREY + _WHITE, _WHITE + _RED, blank, blank)
    assert whole.without_blank_rows(margin=1).height == 4
    assert whole.coloured() == [(1, 3)]
    assert whole.cut(left=1, top=2, bottom=-2).coloured() == [(0, 1)]


def test_what_the_top_edge_cuts_in_two_is_left_out() -> None:
    blank, filled = _WHITE * 2, _GREY + _WHITE
    whole = picture(filled, blank, filled, blank, blank, filled, blank)
    assert whole.from_first_gap(2).rows == (blank, blank, filled, blank)
    assert whole.from_first_gap(3) == whole


def test_the_room_as_text_has_edits_applied_and_says_who_is_mentioned() -> None:
    def said(event_id: str, sender: str, **content: object) -> Json:
        return {
            "type": "m.room.message",
            "event_id": event_id,
            "sender": sender,
            "origin_server_ts": 1_000,
            "content": {"msgtype": "m.notice"} | content,
        }

    mention = {"user_ids": [_ALICE]}
    ready = {"body": "Ready", "msgtype": "m.notice", "m.mentions": mention}
    edit = {"rel_type": "m.replace", "event_id": "$card"}
    events = [
        said("$card", _BOT, body="Starting"),
        said("$thread", _BOT, body="Done", **{"m.relates_to": {"rel_type": "m.thread", "event_id": "$card"}}),
        said("$edit", _BOT, body="* Ready", **{"m.new_content": ready, "m.relates_to": edit}),
    ]  # fmt: skip
    assert as_text(events, {_BOT: "ravebot", _ALICE: "Alice"}, _BOT) == (
        "== 00:00:01 ravebot · m.notice · edited 1 times · mentions Alice\nReady\n\n"
        "== 00:00:01 ravebot · m.notice · in a thread\nDone\n\n"
        "== 3 events of ravebot: 2 messages and 1 edits\n"
    )
