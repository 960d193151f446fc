from __future__ import annotations

import html
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravebot.commands.verbs import Door, help_rows
from ravebot.matrix.cards import render_card, render_history, render_said, render_warning, render_why
from ravebot.matrix.content import MAX_CONTENT_BYTES, Content, as_reply, edit_of, in_thread, size_bytes
from ravebot.matrix.replies import render_help, render_list, render_queue, render_reply
from ravebot.sandboxes.model import (
    Actor,
    EndReason,
    MergeRequest,
    MergeRequestRef,
    Person,
    Sandbox,
    SandboxId,
    SandboxState,
    Stage,
    StageResult,
)
from ravebot.sandboxes.view import Access, HistoryLine, SandboxView, Summary, Trouble
from tests.support.client_links import client_links

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJkGdDWQyd7hLFPBrl5yRpbHNs9DgBZ1oAwqdQ0eKM9M"
ALLOWED_TAGS = {"table", "tr", "th", "td", "code", "pre", "strong", "a", "br"}
HOSTILE = "</td><script>alert(1)</script> @room @alice:example.org `x` \u202egnp.exe\n/close\n![x](http://evil/)"
HOSTILE += " https://evil.com/x www.evil.com evil.example/x #room:evil.org matrix.to/#/#a:b"
OWN = ("agent@sandboxes.example.org", "https://sandboxes.example.org:3001/")


def view(state: SandboxState = SandboxState.READY, **changed: Any) -> SandboxView:
    mr = MergeRequest(
        ref=MergeRequestRef(7, 42),
        project_path="group/app",
        title="Add a button",
        web_url="https://gitlab.example.org/group/app/-/merge_requests/42",
        source_branch="button",
        source_project_id=7,
        head_sha="a" * 40,
        author=Person(5, "alice"),
    )
    sandbox = Sandbox(
        id=SandboxId(1),
        mr=mr.ref,
        state=state,
        requested_by=Actor("gitlab", "alice"),
        created_at=NOW - timedelta(minutes=30),
        state_since=NOW - timedelta(minutes=20),
        sha="a" * 40,
        running_sha="a" * 40,
        expires_at=NOW + timedelta(minutes=100),
    )
    ready = SandboxView(
        sandbox=sandbox,
        mr=mr,
        now=NOW,
        access=Access("sandboxes.example.org", "agent", 2201, 3001, "https", "rave-1", (KEY,)),
        stages=(StageResult(Stage.SETUP, True, 4.25), StageResult(Stage.TEST, False, 61.0, "2 tests failed")),
        history=(HistoryLine(NOW - timedelta(minutes=20), "ready after 25 s"),),
    )
    return replace(ready, **changed)


def hostile_view(text: str, state: SandboxState = SandboxState.READY) -> SandboxView:
    ordinary = view(state)
    return replace(
        ordinary,
        mr=replace(ordinary.mr, title=text, source_branch=text, web_url=text, author=Person(5, text)),
        sandbox=replace(ordinary.sandbox, end_reason=EndReason.FAILED, end_detail=text),
        notice=text,
        queue_reason=text,
        stages=tuple(StageResult(stage, False, 1.0, text) for stage in Stage),
        history=tuple(HistoryLine(NOW, text) for _ in range(60)),
    )


class Tags(HTMLParser):
    """Which tags and links a piece of HTML has, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []
        self.unlinked = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.unlinked += "\n"
        assert {name for name, _ in attrs} <= {"href"}
        self.links += [value or "" for _, value in attrs]
        if tag != "br":
            self.open.append(tag)

    def handle_data(self, data: str) -> None:
        self.unlinked += "" if "a" in self.open else data

    def handle_endtag(self, tag: str) -> None:
        self.unlinked += "\n"
        assert self.open.pop() == tag


def assert_harmless(content: Content, mentions: dict[str, list[str]] | None = None) -> None:
    tags = Tags(content["formatted_body"])
    assert tags.open == []
    assert tags.seen <= ALLOWED_TAGS
    assert content["m.mentions"] == (mentions or {})
    for text in (content["body"], content["formatted_body"]):
        assert "@room" not in text.lower()
        assert "\u202e" not in text
    for text in (content["body"], tags.unlinked):
        for own in (*OWN, *(mentions or {}).get("user_ids", [])):
            text = text.replace(own, "")
        assert client_links(text) == []
    assert size_bytes(edit_of("$" + "e" * 60, content)) < 60_000


def test_a_card_has_what_is_needed_at_a_glance() -> None:
    content = render_card(view())
    assert content["msgtype"] == "m.notice"
    for text in (content["body"], html.unescape(content["formatted_body"])):
        assert "ssh -o HostKeyAlias=rave-1 -p 2201 agent@sandboxes.example.org" in text
        assert "https://sandboxes.example.org:3001/" in text
        assert re.search(r"SHA256:[A-Za-z0-9+/]{43}", text)
        assert "2026-11-24 13:40 UTC, in 1 h 40 min" in text
        assert "aaaaaaaa" in text
        assert "✅ setup (4.2 s)" in text
        assert "❌ test (61 s)" in text
        assert "2 tests failed" in text
        assert "ready after 25 s" in text
        assert "!rave extend group/app!42" in text
    assert "<code>ssh -o HostKeyAlias=rave-1 -p 2201 agent@sandboxes.example.org</code>" in content["formatted_body"]
    assert_harmless(content)


def test_a_card_without_a_web_server_says_so_and_links_nothing() -> None:
    access = Access("sandboxes.example.org", "agent", 2201, 3001, None, "rave-1", (KEY,))
    content = render_card(view(access=access))
    assert "nothing answers on its web port yet" in content["body"]
    assert Tags(content["formatted_body"]).links == ["https://gitlab.example.org/group/app/-/merge_requests/42"]


def test_a_queued_card_tells_place_wait_and_reason() -> None:
    queued = view(SandboxState.QUEUED, access=None, queue_position=2, queue_wait=timedelta(minutes=5),
                  queue_reason="the host is short of memory")  # fmt: skip
    assert "queued, place 2, about 5 min" in render_card(queued)["body"]
    assert "the host is short of memory" in render_card(queued)["body"]


def test_an_ended_card_has_the_account_and_no_way_in() -> None:
    ended = view(SandboxState.ENDED, access=None, summary=Summary(timedelta(hours=2), 75.0, 3 * 1024**3))
    ended = replace(ended, sandbox=replace(ended.sandbox, end_reason=EndReason.EXPIRED))
    body = render_card(ended)["body"]
    assert "ended: expired" in body
    assert "lived 2 h, CPU time 1 min 15 s, memory at most 3.0 GiB" in body
    assert "ssh " not in body
    assert "Ends:" not in body


def test_new_code_on_its_way_is_shown_beside_what_runs() -> None:
    ordinary = view()
    body = render_card(replace(ordinary, sandbox=replace(ordinary.sandbox, sha="b" * 40)))["body"]
    assert "aaaaaaaa" in body
    assert "bbbbbbbb" in body


@pytest.mark.parametrize("state", SandboxState)
def test_hostile_text_stays_text_everywhere(state: SandboxState) -> None:
    hostile = hostile_view(HOSTILE, state)
    for content in (
        render_card(hostile),
        render_why(hostile),
        render_list([hostile]),
        render_queue([hostile]),
        render_said(hostile, hostile.history[0]),
        render_history(hostile.history[0]),
        render_warning(hostile, None),
        render_reply(HOSTILE, output=HOSTILE),
    ):
        assert_harmless(content)
        assert "@alice" not in content["body"]


@settings(max_examples=60)
@given(text=st.text(max_size=300), state=st.sampled_from(list(SandboxState)))
def test_no_text_breaks_a_card(text: str, state: SandboxState) -> None:
    assert_harmless(render_card(hostile_view(text, state)))
    assert_harmless(render_why(hostile_view(text, state)))


@pytest.mark.parametrize(
    "text", ["&" * 10_000, '"' * 10_000, "🎉" * 10_000, "\n" * 10_000, "a\u0301" * 10_000, "&\n" * 9000]
)
def test_the_largest_card_and_its_edit_fit_an_event(text: str) -> None:
    hostile = hostile_view(text)
    for content in (render_card(hostile), render_why(hostile), as_reply(render_reply(text, output=text), "$a", "$b")):
        assert size_bytes(content) <= MAX_CONTENT_BYTES
        assert_harmless(content)
    many = [hostile] * 500
    for content in (render_list(many), render_queue([replace(each, queue_position=1) for each in many])):
        assert size_bytes(content) <= MAX_CONTENT_BYTES


def test_a_warning_mentions_the_owner_and_nobody_else() -> None:
    owner = "@alice:example.org"
    content = render_warning(hostile_view(HOSTILE), owner)
    assert_harmless(content, {"user_ids": [owner]})
    assert content["msgtype"] == "m.text"
    assert f"https://matrix.to/#/{owner}" in Tags(content["formatted_body"]).links
    assert "!rave extend group/app!42 1h" in content["body"]
    assert "in 1 h 40 min" in content["body"]


def test_a_warning_without_an_owner_mentions_nobody() -> None:
    assert render_warning(view(), None)["m.mentions"] == {}


def test_an_edit_carries_the_new_content_and_a_short_copy() -> None:
    content = render_card(hostile_view("x" * 5000))
    edit = edit_of("$card", content)
    assert edit["m.relates_to"] == {"rel_type": "m.replace", "event_id": "$card"}
    assert edit["m.new_content"] == content
    assert edit["m.mentions"] == {}
    assert len(edit["body"]) < 1100


def test_an_edit_of_a_threaded_message_keeps_the_relation_out_of_the_new_content() -> None:
    edit = edit_of("$1", in_thread("$root", render_card(view())))
    assert "m.relates_to" not in edit["m.new_content"]


def test_messages_of_a_thread_fall_back_to_replies_to_its_root() -> None:
    relation = in_thread("$root", render_card(view()))["m.relates_to"]
    assert relation["rel_type"] == "m.thread"
    assert relation["event_id"] == relation["m.in_reply_to"]["event_id"] == "$root"


def test_a_reply_stays_in_the_thread_it_answers() -> None:
    plain = as_reply(render_help("!rave"), "$asked")
    assert plain["m.relates_to"] == {"m.in_reply_to": {"event_id": "$asked"}}
    relation = as_reply(render_help("!rave"), "$asked", "$root")["m.relates_to"]
    assert (relation["rel_type"], relation["event_id"]) == ("m.thread", "$root")
    assert relation["m.in_reply_to"] == {"event_id": "$asked"}


def test_code_in_a_reply_is_marked_and_output_is_preformatted() -> None:
    content = as_reply(render_reply("Did you mean `!rave list`?", output="a < b\nsecond line"), "$1")
    assert "<code>!rave list</code>" in content["formatted_body"]
    assert "<pre><code>a &lt; b\nsecond line</code></pre>" in content["formatted_body"]


def test_the_queue_lists_who_waits_next_first() -> None:
    first = view(SandboxState.QUEUED, queue_position=1, queue_wait=timedelta(minutes=3))
    second = replace(view(SandboxState.QUEUED, queue_position=2), mr=replace(first.mr, title="Second"))
    body = render_queue([second, view(), first])["body"]
    assert body.index("Add a button") < body.index("Second")
    assert body.splitlines() == [
        "Next group/app!42 Add a button · at about 12:03 UTC · alice",
        "Number 2 group/app!42 Second · alice",
    ]


def test_a_list_has_a_short_line_for_each_sandbox() -> None:
    ready = view()
    tomorrow = replace(ready.sandbox, expires_at=NOW + timedelta(hours=13), stage=Stage.SETUP)
    paused = Trouble(paused=True, since=NOW)
    content = render_list(
        [
            ready,
            replace(ready, sandbox=tomorrow, mr=replace(ready.mr, title="T" * 100)),
            replace(
                view(SandboxState.QUEUED), sandbox=replace(ready.sandbox, state=SandboxState.QUEUED, expires_at=None)
            ),
            replace(ready, trouble=paused),
        ]
    )
    assert content["body"].splitlines() == [
        "🟢 Ready group/app!42 Add a button · until 13:40 UTC · alice",
        f"🟢 Ready group/app!42 {'T' * 59}… · until 2026-11-25 01:00 UTC · alice · is being updated",
        "🕒 Waiting group/app!42 Add a button · alice",
        "⏸ Ready group/app!42 Add a button · until 13:40 UTC · alice · but its machine has been paused since"
        " 2026-11-24 12:00 UTC",
    ]
    first = content["formatted_body"].partition("<br>")[0]
    assert first == (
        '🟢 <strong>Ready</strong> <a href="https://gitlab.example.org/group/app/-/merge_requests/42">group/app!42</a>'
        " Add a button · until 13:40 UTC · alice"
    )


@pytest.mark.parametrize(("many", "lines", "last"), [(9, 9, "· alice"), (10, 9, "and 2 more"), (100, 9, "and 92 more")])
def test_a_long_list_is_cut_to_fewer_than_ten_lines(many: int, lines: int, last: str) -> None:
    for content in (render_list([view()] * many), render_queue([view(SandboxState.QUEUED)] * many)):
        shown = content["body"].splitlines()
        assert (len(shown), shown[-1].endswith(last)) == (lines, True)


def test_empty_lists_say_so() -> None:
    assert render_list([])["body"] == "There is no sandbox now."
    assert render_queue([view()])["body"] == "Nobody waits for a sandbox."


def test_help_shows_every_command() -> None:
    content = render_help("!box")
    for usage, purpose in help_rows(Door.ROOM, "!box"):
        assert f"{usage} – {purpose}" in content["body"]
        assert f"<code>{usage}</code> – {purpose}" in html.unescape(content["formatted_body"])
    assert "<strong>When it does not work</strong>" in content["formatted_body"]
    assert len(content["body"].splitlines()) <= 15, "it fits one screen"
    assert_harmless(content)


def test_a_link_that_is_not_of_the_web_is_no_link() -> None:
    ordinary = view()
    for url in ("javascript:alert(1)", 'https://x/" onclick="', "data:text/html,x", "https://a b", ""):
        content = render_card(replace(ordinary, mr=replace(ordinary.mr, web_url=url)))
        assert Tags(content["formatted_body"]).links == ["https://sandboxes.example.org:3001/"]
