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
from ravebot.matrix.cards import (
    Owner,
    Style,
    as_text,
    digest,
    news,
    render_card,
    render_line,
    render_logs,
    render_over,
    render_show,
    render_warning,
    render_why,
)
from ravebot.matrix.content import MAX_CONTENT_BYTES, Content, as_reply, calling_edit, edit_of, in_thread, size_bytes
from ravebot.matrix.replies import render_help, render_list, render_queue, render_reply
from ravebot.sandboxes.model import (
    Actor,
    EndReason,
    MergeRequest,
    MergeRequestRef,
    Person,
    Run,
    Sandbox,
    SandboxId,
    SandboxState,
    Stage,
    StageResult,
)
from ravebot.sandboxes.view import Access, FileNews, HistoryLine, SandboxView, Summary, Trouble
from tests.support.client_links import client_links

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJkGdDWQyd7hLFPBrl5yRpbHNs9DgBZ1oAwqdQ0eKM9M"
ALLOWED_TAGS = {"code", "pre", "strong", "a", "br"}
SHORT = Style("!rave", short=True)
FULL = Style("!rave")
HOSTILE = "</td><script>alert(1)</script> @room @alice:example.org `x` \u202egnp.exe\n/close\n![x](http://evil/)"
HOSTILE += " https://evil.com/x www.evil.com evil.example/x #room:evil.org matrix.to/#/#a:b"
OWN = (
    "https://gitlab.example.org/group/app/-/merge_requests/42",
    "agent@sandboxes.example.org",
    "https://sandboxes.example.org:3001/",
    ".rave.yml",  # no top-level domain
)


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
        stages=(StageResult(Stage.SETUP, True, 4.25), StageResult(Stage.TEST, True, 61.0, "2 tests passed")),
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
        links=tuple((text, "/grafana/") for _ in range(10)),
        file=FileNews(tuple(text for _ in range(20)), tuple(text for _ in range(20))),
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


def test_a_ready_card_says_how_to_ask_an_agent_where_one_serves_the_project() -> None:
    served = replace(SHORT, agent="coder")
    assert render_card(view(), served)["body"].endswith("\nOr ask an agent, in this thread: @coder TEXT")
    assert "agent:" not in render_card(view(SandboxState.QUEUED), served)["body"]


def test_a_ready_card_is_read_at_a_glance() -> None:
    content = render_card(view(), SHORT)
    assert content["msgtype"] == "m.notice"
    assert content["body"].splitlines() == [
        "🟢 group/app!42 Add a button https://gitlab.example.org/group/app/-/merge_requests/42",
        "Ready until 13:40 UTC",
        "Web: https://sandboxes.example.org:3001/",
        "SSH: ssh -o HostKeyAlias=rave-1 -p 2201 agent@sandboxes.example.org",
        "Host key: SHA256:jMRL1dvA2FnETfxNzznrPXRH4/06k5aUw6jtnbQZcNs",
        "Owner alice, commit aaaaaaaa, branch button, set-up done in 4.2 s, tests done in 1 min",
        "Say !rave extend 42, stop, rebuild, logs, show",
    ]
    shown = content["formatted_body"]
    assert "<strong>Ready</strong> until 13:40 UTC<br>" in shown
    assert "<code>ssh -o HostKeyAlias=rave-1 -p 2201 agent@sandboxes.example.org</code>" in shown
    assert shown.count("<br>") == 6
    assert_harmless(content)


def test_a_room_with_several_projects_is_told_the_full_reference() -> None:
    assert "Say !rave extend group/app!42, stop" in render_card(view(), FULL)["body"]
    assert render_line(view(), "ready", FULL)["body"] == "group/app!42 ready"
    assert render_line(view(), "ready", SHORT)["body"] == "!42 ready"


def test_a_card_says_nothing_that_is_wrong_an_hour_later() -> None:
    for state in SandboxState:
        shown = view(state, queue_position=3, queue_wait=timedelta(minutes=40))
        later = replace(shown, now=NOW + timedelta(minutes=59))
        if state is not SandboxState.QUEUED:  # its place and estimate are dated
            assert render_card(shown, SHORT) == render_card(later, SHORT)
        assert " in " not in re.sub(r"done in \d", "", render_card(shown, SHORT)["body"])


def test_a_moment_of_another_day_than_the_cards_has_its_date() -> None:
    ordinary = view()
    tomorrow = replace(ordinary, sandbox=replace(ordinary.sandbox, expires_at=NOW + timedelta(hours=13)))
    assert "Ready until 2026-11-25 01:00 UTC" in render_card(tomorrow, SHORT)["body"]


def test_a_card_without_a_web_server_says_so_and_links_nothing() -> None:
    access = Access("sandboxes.example.org", "agent", 2201, 3001, None, "rave-1", (KEY,))
    content = render_card(view(access=access), SHORT)
    assert "nothing answers on its web port yet" in content["body"]
    assert Tags(content["formatted_body"]).links == ["https://gitlab.example.org/group/app/-/merge_requests/42"]


def test_a_waiting_card_tells_place_estimate_or_reason_as_of_when() -> None:
    queued = view(SandboxState.QUEUED, access=None, queue_position=2, queue_wait=timedelta(minutes=5))
    assert "Waits since 11:30 UTC, number 2 as of 12:00 UTC\n" in said(queued)
    again = replace(queued, sandbox=replace(queued.sandbox, not_before=NOW + timedelta(minutes=4)))
    assert "Waits since 11:30 UTC: a machine did not come up, and it is tried again at 12:04 UTC" in said(again)
    held = replace(queued, queue_reason="the host is short of memory")
    assert "Waits since 11:30 UTC; as of 12:00 UTC: the host is short of memory" in said(held)
    following = replace(queued, queue_position=1, queue_wait=timedelta(0))
    assert "Starting since 11:30 UTC: its turn is next" in said(following)


def said(shown: SandboxView) -> str:
    """The card's plain text."""
    body = render_card(shown, SHORT)["body"]
    assert isinstance(body, str)
    return body


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (None, "Starting: machine, step 1 of 6, since 11:40 UTC"),
        (Stage.SETUP, "Starting: set-up, step 4 of 6, since 12:00 UTC"),
        (Stage.ANNOUNCE, "Starting: ports, step 6 of 6, since 12:00 UTC"),
    ],
)
def test_a_starting_card_names_the_step(stage: Stage | None, text: str) -> None:
    starting = view(SandboxState.STARTING, access=None, stages=())
    sandbox = replace(starting.sandbox, stage=stage, stage_started_at=NOW if stage else None)
    assert text in said(replace(starting, sandbox=sandbox))


def test_a_failed_card_gives_the_cause_in_a_sentence_and_the_last_whole_lines_once() -> None:
    output = "".join(f"step {n}: resolving dependency number {n}\n" for n in range(60)) + "ERROR: no libfoo-dev\n"
    failed = view(SandboxState.ENDED, access=None, stages=(StageResult(Stage.SETUP, False, 0.4, output),))
    why = "set-up failed: `./.rave/setup` ended with code 3"
    failed = replace(failed, sandbox=replace(failed.sandbox, end_reason=EndReason.FAILED, end_detail=why, ended_at=NOW))
    content = render_card(failed, SHORT)
    lines = content["body"].splitlines()
    assert lines[1] == "Set-up failed at 12:00 UTC, after 0.4 s: `./.rave/setup` ended with code 3"
    assert "<code>./.rave/setup</code> ended with code 3" in content["formatted_body"]
    assert lines[3:-1] == [f"step {n}: resolving dependency number {n}" for n in range(53, 60)] + [
        "ERROR: no libfoo-dev"
    ]
    assert lines[-1] == "Push a fix, then say !rave retry 42 · all output: !rave logs 42"
    assert lines[0].startswith("🔴")
    stopping = replace(failed, sandbox=replace(failed.sandbox, state=SandboxState.STOPPING, state_since=NOW))
    assert digest(render_card(stopping, SHORT)) == digest(content), "while its machine is removed, nothing changes"


def test_an_update_that_failed_keeps_the_card_and_says_why() -> None:
    kept = view(stages=(StageResult(Stage.SETUP, False, 1.0, "boom"),))
    kept = replace(kept, notice="bbbbbbbb was not taken, because its set-up failed: `x` ended with code 1")
    kept = replace(kept, sandbox=replace(kept.sandbox, notice=kept.notice))
    lines = said(kept).splitlines()
    assert lines[0].startswith("🟡 group/app!42 Add a button ")
    assert lines[1] == "Ready until 13:40 UTC"
    assert lines[2] == "⚠️ Bbbbbbbb was not taken, because its set-up failed: `x` ended with code 1."
    assert "boom" in lines


def test_a_kept_card_says_until_when_why_how_to_look_inside_and_what_to_type() -> None:
    shown = view(access=Access("sandboxes.example.org", "agent", 2201, None, None, "rave-1", (KEY,)),
                 stages=(StageResult(Stage.TEST, False, 2.0, "boom\n", at=NOW),))  # fmt: skip
    kept = replace(shown, sandbox=replace(shown.sandbox, end_reason=EndReason.FAILED, end_detail="tests failed: boom"))
    lines = render_card(kept, SHORT)["body"].splitlines()
    until, at = f"{NOW + timedelta(minutes=100):%H:%M} UTC", f"{NOW:%H:%M} UTC"
    assert lines[1] == f"Kept until {until}; tests failed at {at}, after 2.0 s: boom"
    assert lines[2] == "SSH: ssh -o HostKeyAlias=rave-1 -p 2201 agent@sandboxes.example.org"
    assert lines[-1] == (
        "Look inside over SSH. To run copy, set-up and tests again, push a fix or say !rave retry 42 · or extend, stop,"
        " rebuild, logs"
    )
    assert not any(line.startswith("Web") for line in lines)
    assert news(kept, Owner("@alice:example.org", "alice")).endswith(f"kept until {until}; tests failed at {at},"
                                                                     " after 2.0 s: boom")  # fmt: skip


def test_an_ended_card_has_its_end_and_no_way_in() -> None:
    ended = view(SandboxState.ENDED, access=None, summary=Summary(timedelta(hours=2), 75.0, 3 * 1024**3))
    ended = replace(ended, sandbox=replace(ended.sandbox, end_reason=EndReason.EXPIRED, ended_at=NOW))
    lines = said(ended).splitlines()
    assert lines[1] == "Ended at 12:00 UTC: its time was up (lived 2 h)"
    assert lines[-1] == "For a new one, say !rave start 42"
    assert len(lines) == 4
    merged = replace(ended, mr=replace(ended.mr, state="merged"))
    assert "say" not in said(merged)


def test_show_has_the_account_the_folder_and_the_events_that_the_card_leaves_out() -> None:
    ended = view(SandboxState.ENDED, summary=Summary(timedelta(hours=2), 75.0, 3 * 1024**3))
    body = render_show(ended, SHORT)["body"]
    assert "It lived 2 h, used 1 min of CPU time and at most 3.0 GiB of memory." in body
    assert "11-24 11:40:00 ready after 25 s" in body
    assert "/srv/merge-request" in body


def test_why_gives_the_cause_first_and_up_to_fifty_events() -> None:
    history = tuple(HistoryLine(NOW, f"event {n}") for n in range(50))
    lines = render_why(view(history=history), SHORT)["body"].splitlines()
    assert lines[0] == "!42: Ready until 13:40 UTC"
    assert len(lines) == 51


def test_logs_show_the_newest_run_and_the_last_one_that_failed() -> None:
    failed = Run(NOW - timedelta(minutes=10), (StageResult(Stage.SETUP, False, 0.4, "no libfoo-dev"),))
    newest = Run(NOW, (StageResult(Stage.SETUP, True, 3.0, "built"), StageResult(Stage.TEST, True, 1.0, "passed")))
    assert render_logs(view(), (newest, failed), SHORT)["body"].splitlines() == [
        "!42 Set-up and tests at 12:00 UTC:", "✅ set-up done in 3.0 s", "built", "✅ tests done in 1.0 s", "passed",
        "!42 The run that failed, at 11:50 UTC:", "❌ set-up failed in 0.4 s", "no libfoo-dev",
    ]  # fmt: skip
    assert render_logs(view(), (), SHORT)["body"] == "!42 Set-up and tests have printed nothing so far."


def test_new_code_on_its_way_is_named_beside_what_runs() -> None:
    updating = view()
    sandbox = replace(updating.sandbox, sha="b" * 40, stage=Stage.SETUP, stage_started_at=NOW)
    body = said(replace(updating, sandbox=sandbox))
    assert "Ready until 13:40 UTC; takes bbbbbbbb: set-up, step 2 of 3, since 12:00 UTC" in body
    assert "commit aaaaaaaa" in body


def test_the_pages_and_the_first_mistake_of_the_projects_file_are_on_the_card() -> None:
    pages = tuple((f"Page <b>{number}", f"/{number}/") for number in range(7))
    troubles = ("line 1, column 1: memori: unknown key; did you mean memory?", "line 2, column 1: another")
    shown = render_card(view(links=pages[:2], file=FileNews(("image is not allowed",), troubles)), SHORT)
    lines = shown["body"].splitlines()
    assert (
        "Pages: Page <b>0 https://sandboxes.example.org:3001/0/, Page <b>1 https://sandboxes.example.org:3001/1/"
        in lines
    )
    assert '<a href="https://sandboxes.example.org:3001/0/">Page &lt;b&gt;0</a>' in shown["formatted_body"]
    mistake = "memori: unknown key; did you mean memory? (1 more in the note on the merge request)"
    assert any("has mistakes, so it does not count here:" in line and line.endswith(mistake) for line in lines)
    assert any(line.endswith("image is not allowed") for line in lines)
    asks = "`.rave.yml` asks for 16 GiB of memory; it gets 8 GiB, the most here"
    small = render_card(view(file=FileNews((asks,))), SHORT)
    assert f"⚠️ {asks}" in small["body"].splitlines()
    assert "⚠️ <code>.rave.yml</code> asks for 16 GiB" in small["formatted_body"]
    many = said(view(links=pages))
    assert "/4/, 2 more in the note on the merge request" in many
    assert "/5/" not in many
    over = said(view(SandboxState.ENDED, access=None, links=pages, file=FileNews((), troubles)))
    assert "Pages" not in over
    assert "mistakes" not in over


def test_a_card_that_replaces_another_says_so() -> None:
    body = render_card(view(), SHORT, replaced=True)["body"]
    assert body.endswith("\nThe card before this one was removed or could not be edited any more.")


@pytest.mark.parametrize("state", SandboxState)
def test_hostile_text_stays_text_everywhere(state: SandboxState) -> None:
    hostile = hostile_view(HOSTILE, state)
    for content in (
        render_card(hostile, FULL),
        render_show(hostile, FULL),
        render_why(hostile, FULL),
        render_logs(hostile, (Run(NOW, hostile.stages),), FULL),
        render_list([hostile]),
        render_queue([hostile]),
        render_line(hostile, HOSTILE, FULL),
        render_warning(hostile, FULL, Owner("@alice:example.org", HOSTILE)),
        render_over(hostile, FULL),
        render_reply(HOSTILE, output=HOSTILE),
    ):
        assert_harmless(content)
        assert "@alice" not in content["body"]


@settings(max_examples=60)
@given(text=st.text(max_size=300), state=st.sampled_from(list(SandboxState)))
def test_no_text_breaks_a_card(text: str, state: SandboxState) -> None:
    for render in (render_card, render_show, render_why):
        assert_harmless(render(hostile_view(text, state), FULL))


@pytest.mark.parametrize(
    "text", ["&" * 10_000, '"' * 10_000, "🎉" * 10_000, "\n" * 10_000, "a\u0301" * 10_000, "&\n" * 9000]
)
def test_the_largest_card_and_its_edit_fit_an_event(text: str) -> None:
    hostile = hostile_view(text)
    shown = [render(hostile, FULL) for render in (render_card, render_show, render_why)]
    for content in (*shown, as_reply(render_reply(text, output=text), "$a", "$b")):
        assert size_bytes(content) <= MAX_CONTENT_BYTES
        assert_harmless(content)
    many = [hostile] * 500
    for content in (render_list(many), render_queue([replace(each, queue_position=1) for each in many])):
        assert size_bytes(content) <= MAX_CONTENT_BYTES


def test_a_warning_names_its_owner_and_notifies_nobody_until_an_edit_calls_them() -> None:
    owner = Owner("@alice:example.org", "Alice")
    warning = render_warning(view(), SHORT, owner)
    assert warning["body"] == "Alice: group/app!42 ends at 13:40 UTC, in 1 h 40 min. To keep it: `!rave extend 42`"
    assert '<a href="https://matrix.to/#/@alice:example.org">Alice</a>' in warning["formatted_body"]
    assert (warning["msgtype"], warning["m.mentions"]) == ("m.notice", {})
    edit = calling_edit("$warning", warning, owner.user_id, "news")
    assert (edit["msgtype"], edit["body"], edit["m.mentions"]) == ("m.text", "* news", {"user_ids": [owner.user_id]})
    assert edit["m.new_content"]["m.mentions"] == {"user_ids": [owner.user_id]}
    assert edit["m.new_content"]["msgtype"] == "m.notice"
    text = as_text(warning, owner)
    assert (text["msgtype"], text["m.mentions"]) == ("m.text", {"user_ids": [owner.user_id]})


def test_what_a_notification_tells_is_one_line() -> None:
    owner = Owner("@alice:example.org", "Alice")
    assert news(view(), owner) == "Alice: group/app!42: ready until 13:40 UTC"
    assert "@room" not in news(hostile_view(HOSTILE, SandboxState.ENDED), Owner("@alice:example.org", HOSTILE))


def test_a_warning_that_is_over_says_what_came_of_it() -> None:
    assert render_over(view(), SHORT)["body"] == "group/app!42 was extended until 13:40 UTC."
    ended = view(SandboxState.ENDED)
    ended = replace(ended, sandbox=replace(ended.sandbox, end_reason=EndReason.EXPIRED, ended_at=NOW))
    assert render_over(ended, SHORT)["body"] == "group/app!42: Ended at 12:00 UTC: its time was up"


def test_a_line_that_calls_its_owner_is_a_text() -> None:
    line = render_line(view(), "ready after 30 s", SHORT, Owner("@alice:example.org", "Alice"))
    assert line["body"] == "Alice: !42 ready after 30 s"
    assert (line["msgtype"], line["m.mentions"]) == ("m.text", {"user_ids": ["@alice:example.org"]})


def test_an_edit_carries_the_new_content_and_a_short_copy() -> None:
    content = render_card(hostile_view("x " * 5000), FULL)
    edit = edit_of("$card", content)
    assert edit["m.relates_to"] == {"rel_type": "m.replace", "event_id": "$card"}
    assert edit["m.new_content"] == content
    assert edit["m.mentions"] == {}
    assert len(edit["body"]) < 1100


def test_an_edit_of_a_threaded_message_keeps_the_relation_out_of_the_new_content() -> None:
    edit = edit_of("$1", in_thread("$root", render_card(view(), FULL)))
    assert "m.relates_to" not in edit["m.new_content"]


def test_messages_of_a_thread_fall_back_to_replies_to_its_root() -> None:
    relation = in_thread("$root", render_card(view(), FULL))["m.relates_to"]
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
            view(SandboxState.STOPPING),
        ]
    )
    assert content["body"].splitlines() == [
        "🟢 Ready group/app!42 Add a button · until 13:40 UTC · alice",
        f"🟢 Ready group/app!42 {'T' * 59}… · until 2026-11-25 01:00 UTC; takes aaaaaaaa: set-up, step 2 of 3, since"
        " 11:40 UTC · alice",
        "🕒 Waits group/app!42 Add a button · since 11:30 UTC · alice",
        "⏸ Ready group/app!42 Add a button · until 13:40 UTC, but its machine has been paused since"
        " 2026-11-24 12:00 UTC · alice",
        "🌙 Stopping group/app!42 Add a button · since 11:40 UTC · as asked · alice",
    ]
    first = content["formatted_body"].partition("<br>")[0]
    assert first == (
        '🟢 <strong>Ready</strong> <a href="https://gitlab.example.org/group/app/-/merge_requests/42">group/app!42</a>'
        " Add a button · until 13:40 UTC · alice"
    )


@pytest.mark.parametrize(
    ("many", "lines", "last"), [(40, 40, "alice"), (41, 40, "and 2 more"), (100, 40, "and 61 more")]
)
def test_a_long_list_is_cut(many: int, lines: int, last: str) -> None:
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
    assert len(content["body"].splitlines()) <= 16, "it fits one screen"
    assert_harmless(content)


def test_a_link_that_is_not_of_the_web_is_no_link() -> None:
    ordinary = view()
    for url in ("javascript:alert(1)", 'https://x/" onclick="', "data:text/html,x", "https://a b", ""):
        content = render_card(replace(ordinary, mr=replace(ordinary.mr, web_url=url)), FULL)
        assert Tags(content["formatted_body"]).links == ["https://sandboxes.example.org:3001/"]
