"""What the status note shows in every state, and that hostile facts change nothing about its shape."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ravebot.commands.verbs import Door, help_groups
from ravebot.gitlab.commands import parse_comment
from ravebot.gitlab.escape import JOINER
from ravebot.gitlab.notes import (
    marker,
    render_fork_waiting,
    render_help,
    render_none,
    render_note,
    render_reply,
    render_start_waiting,
    render_warning,
)
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
from ravebot.sandboxes.starting import StartGate, StartWait
from ravebot.sandboxes.view import Access, FileNews, HistoryLine, SandboxView, Summary
from tests.support.gitlab.notes import links, mentions, take_quick_actions

NOW = datetime(2026, 3, 1, 12, 20, tzinfo=UTC)
REF = MergeRequestRef(7, 42)
MARKER = marker(REF, "0a1b2c3d4e")
SHA, OLD = "a1b2c3d4e5" * 4, "0123456789" * 4
MR = MergeRequest(
    REF, "group/app", "Add login", "https://h/group/app/-/merge_requests/42", "login", 7, SHA, Person(1, "alice")
)
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGk0TnVtYmVyT2ZCeXRlc0ZvclRlc3RpbmdPbmx5ISEh"
ACCESS = Access("sandboxes.example.org", "agent", 2203, 3003, "https", "rave-main-42", (HOST_KEY,))
HOSTILE = (
    "/close\n@all <script>alert(1)</script> </details> ``` | \u202e \x00 <!-- ravebot 0a1b2c3d4e 7!42 status -->\n"
    "/merge\n/sandbox stop\n[x](http://evil.example) group/app#1 GL-12 PROJ-7 0123456789abcdef www.x.y " + "x" * 10_000
)


def view(state: SandboxState = SandboxState.READY, **changes: object) -> SandboxView:
    sandbox = Sandbox(
        SandboxId(5), REF, state, Actor("gitlab", "alice"), NOW, NOW, SHA,
        running_sha=SHA, ready_at=NOW, expires_at=NOW + timedelta(hours=1, minutes=40),
    )  # fmt: skip
    return replace(SandboxView(sandbox, MR, NOW), **changes)  # type: ignore[arg-type] # tests name the fields


def test_a_ready_sandbox_shows_how_to_get_in_and_until_when() -> None:
    stages = (StageResult(Stage.COPY, True, 1.25), StageResult(Stage.TEST, True, 75))
    history = (HistoryLine(NOW, "ready after 31 s"),)
    note = render_note(view(access=ACCESS, stages=stages, history=history), MARKER)
    assert note.startswith(f"{MARKER}\n### 🟢 Sandbox is ready until 2026-03-01 14:00 UTC\n")
    for part in (
        "```sh\nssh -o HostKeyAlias=rave-main-42 -p 2203 agent@sandboxes.example.org\n```",
        "| **Web** | <https://sandboxes.example.org:3003/> |",
        f"| **Host key** | `{ACCESS.fingerprints[0]}` |",
        "| **Commit** | `a1b2c3d4e5a1` on `login`, in `/srv/merge-request` |",
        "| **Set-up and tests** | ✅ tests done in 1 min |",
        "comment `/sandbox extend 1h` or `/sandbox rebuild` or `/sandbox stop`.",
    ):
        assert part in note, part
    shown, folded = note.split("<details>")
    assert "- 2026-03-01 12:20:00 UTC: ready after 31 s" in folded
    assert "ready after" not in shown
    assert "copy" not in shown


def test_the_environment_is_linked_and_a_refusal_of_gitlab_s_is_told_while_the_sandbox_lives() -> None:
    page, hint = "https://gitlab.example.org/group/app/-/environments/5", "GitLab does not let ravebot: give it a role"
    note = render_note(view(access=ACCESS, environment_url=page), MARKER)
    assert f"| **Environment** | <{page}> |" in note
    assert "⚠️" not in note
    assert "⚠️ GitLab does not let ravebot" in render_note(view(hint=hint), MARKER)
    assert "⚠️" not in render_note(view(SandboxState.ENDED, hint=hint), MARKER)


def test_a_web_port_that_does_not_answer_is_said_so() -> None:
    note = render_note(view(access=replace(ACCESS, web_scheme=None)), MARKER)
    assert "nothing answers on the web port (3003) yet" in note


def test_the_queue_tells_place_estimate_or_reason() -> None:
    queued = view(SandboxState.QUEUED, queue_position=3, queue_wait=timedelta(minutes=12))
    note = render_note(queued, MARKER)
    assert "### 🕒 Sandbox waits in the queue since 2026-03-01 12:20 UTC, number 3 as of 12:20 UTC\n" in note
    assert "queue since 2026-03-01 12:20 UTC; as of 12:20 UTC: disk is short\n" in render_note(
        replace(queued, queue_reason="disk is short"), MARKER
    )


def test_what_is_said_of_the_project_s_file_and_of_new_code_reads_as_sentences() -> None:
    news = FileNews(("`.rave.yml` asks for 64 vcpus; it gets 4", "`.rave.yml` names the agent x; did you mean y?"))
    note = render_note(view(notice="commit a1b2c3d4 is in the machine, but its tests failed", file=news), MARKER)
    assert "\n⚠️ Commit a1b2c3d4 is in" in note.replace(JOINER, "")
    assert "⚠️ `.rave.yml` asks for 64 vcpus; it gets 4.\n" in note
    assert note.count("did you mean y?\n") == 1


@pytest.mark.parametrize("state", list(SandboxState))
def test_every_state_has_a_headline_of_its_own(state: SandboxState) -> None:
    headlines = {render_note(view(one), MARKER).splitlines()[1] for one in SandboxState}
    assert len(headlines) == len(SandboxState)
    assert render_note(view(state), MARKER).count("### ") == 1


@pytest.mark.parametrize("reason", list(EndReason))
def test_an_ended_sandbox_says_why_and_what_it_used(reason: EndReason) -> None:
    ended = view(SandboxState.ENDED, summary=Summary(timedelta(hours=1, minutes=58), 182.4, 812 * 1024**2))
    sandbox = replace(ended.sandbox, end_reason=reason, end_detail="exit code 3", ended_at=NOW)
    note = render_note(replace(ended, sandbox=sandbox), MARKER)
    assert "exit code 3" in note.splitlines()[1]
    assert "| **Ended** | 2026-03-01 12:20 UTC |" in note
    assert "It lived 1 h 58 min, used 3 min of CPU time and at most 812 MiB of memory." in note
    assert f"comment `/sandbox {'retry' if reason is EndReason.FAILED else 'start'}`." in note


def test_a_failure_is_the_headline_with_its_command_as_code() -> None:
    ended = view(SandboxState.ENDED, stages=(StageResult(Stage.SETUP, False, 0.4, "one\nERROR: no libfoo-dev\n"),))
    detail = "set-up failed: `./.rave/setup` ended with code 3"
    sandbox = replace(ended.sandbox, end_reason=EndReason.FAILED, end_detail=detail, ended_at=NOW)
    note = render_note(replace(ended, sandbox=sandbox), MARKER)
    assert "### 🔴 Set-up failed: `./.rave/setup` ended with code 3\n\n<details>\n" in note
    assert "\n\n```text\none\nERROR: no libfoo-dev\n```\n\n</details>" in note
    assert note.count("libfoo") == 1
    assert note.count("ended with code 3") == 1


def test_one_that_is_kept_says_until_when_why_how_to_look_inside_and_what_to_type() -> None:
    failed = (StageResult(Stage.SETUP, False, 0.4, "ERROR: no libfoo-dev\n", at=NOW),)
    kept = view(access=replace(ACCESS, web_port=None, web_scheme=None), stages=failed)
    kept = replace(kept, sandbox=replace(kept.sandbox, ready_at=None, end_reason=EndReason.FAILED,
                                         end_detail="set-up failed: `./.rave/setup` ended with code 1"))  # fmt: skip
    note = render_note(kept, MARKER)
    assert note.splitlines()[1] == (
        "### 🔴 Sandbox is kept until 2026-03-01 14:00 UTC; set-up failed at 2026-03-01 12:20 UTC, after 0.4 s:"
        " `./.rave/setup` ended with code 1"
    )
    assert "ERROR: no libfoo-dev" in note
    assert f"```sh\n{ACCESS.ssh_command}\n```" in note
    assert "**Web**" not in note
    assert "To run copy, set-up and tests again, push a fix or comment `/sandbox retry`." in note
    assert "comment `/sandbox stop` or `/sandbox rebuild` or `/sandbox extend 1h`." in note
    trying = render_note(replace(kept, sandbox=replace(kept.sandbox, stage=Stage.SETUP)), MARKER)
    assert trying.splitlines()[1].startswith(
        "### 🔴 Sandbox is kept until 2026-03-01 14:00 UTC; tries a1b2c3d4: set-up, step 4 of 6, since"
    )


def test_an_ended_sandbox_of_a_fork_asks_for_the_commit_and_a_merged_one_for_nothing() -> None:
    ended = view(SandboxState.ENDED)
    assert f"`/sandbox start {SHA}`" in render_note(replace(ended, mr=replace(MR, source_project_id=9)), MARKER)
    assert "/sandbox" not in render_note(replace(ended, mr=replace(MR, state="merged")), MARKER)


def test_an_update_that_failed_shows_the_end_of_its_output_in_a_box() -> None:
    failed = (StageResult(Stage.SETUP, False, 12, tail=f"```\n</details>\n{HOSTILE[:300]}"),)
    kept = view(stages=failed, notice="it was not taken, because its set-up failed: `x` ended with code 1")
    kept = replace(kept, sandbox=replace(kept.sandbox, notice=kept.notice))
    note = render_note(kept, MARKER)
    assert "❌ set-up failed in 12 s" in note
    assert "⚠️ It was not taken, because its set-up failed" in note
    kinds = [token.type for token in MarkdownIt("commonmark").enable("table").parse(note)]
    assert kinds.count("fence") == 1


def test_the_output_of_a_failure_stands_before_what_is_said_of_the_project_s_file() -> None:
    failed = (StageResult(Stage.SETUP, False, 12, tail="no libfoo-dev"),)
    news = FileNews(("`.rave.yml` asks for 64 vcpus; it gets 4",))
    shown = view(stages=failed, file=news, notice="set-up failed")
    shown = replace(shown, sandbox=replace(shown.sandbox, notice=shown.notice))
    note = render_note(shown, MARKER)
    assert -1 < note.find("no libfoo-dev") < note.find("asks for 64 vcpus")


def test_an_update_under_way_names_both_commits() -> None:
    updating = view()
    updating = replace(updating, sandbox=replace(updating.sandbox, running_sha=OLD, stage=Stage.SETUP))
    note = render_note(updating, MARKER)
    assert "; takes a1b2c3d4: set-up, step 2 of 3" in note.splitlines()[1]
    assert "| **Commit** | `012345678901` on `login` |\n| **Newest commit** | `a1b2c3d4e5a1` |" in note


def test_a_waiting_fork_prints_the_line_for_exactly_its_head() -> None:
    note = render_fork_waiting(MR, MARKER)
    assert note.startswith(MARKER)
    assert f"`/sandbox start {SHA}`" in note
    assert "`/sandbox start`" in render_start_waiting(MR, MARKER, StartWait(StartGate.DRAFT))


def test_a_warning_pings_the_owner_only() -> None:
    warning = render_warning(view(notice="@bob"), "alice")
    assert mentions(warning) == ["alice"]
    assert "at 2026-03-01 14:00 UTC, in 1 h 40 min" in warning
    assert mentions(render_warning(view(), "all) @bob")) == []


def test_a_reply_is_plain_text_for_one_person() -> None:
    reply = render_reply("There is no @all\n/close", "alice")
    assert mentions(reply) == ["alice"]
    assert take_quick_actions(reply)[1] == []
    assert mentions(render_help("alice")) == ["alice"]
    lines = render_help().splitlines()
    for _, rows in help_groups(Door.COMMENT, "/sandbox"):
        for usage, purpose in rows:
            assert f"  - `{usage}` – {purpose}" in lines
    assert "- **Keep or end it**" in lines


def test_a_command_in_an_answer_is_code_and_the_words_beside_it_stay_apart() -> None:
    assert render_reply("No such thing. Did you mean `/sandbox start`?\n`/sandbox stop` ends it.").replace(
        JOINER, ""
    ) == ("No such thing. Did you mean `/sandbox start`?\n\n`/sandbox stop` ends it.\n")


def test_a_commit_copied_from_an_answer_can_be_pasted_into_a_command() -> None:
    copied = render_reply(f"say start {SHA}").split()[-1]
    assert copied != SHA
    assert parse_comment(f"/sandbox start {copied}") == parse_comment(f"/sandbox start {SHA}")


def test_markers_tell_merge_requests_instances_and_purposes_apart() -> None:
    markers = {
        marker(ref, instance, what)
        for ref in (REF, MergeRequestRef(7, 43), MergeRequestRef(74, 2))
        for instance in ("a", "b")
        for what in ("status", "warning:5:600")
    }
    assert len(markers) == 12
    assert marker(REF, "a --> <script>", "-->") == "<!-- ravebot ascript 7!42  -->"


def test_two_rows_never_have_one_marker() -> None:
    keys = ["1", "12", "1.2000000000000000", "12.0000000000000000", "12.000000000000000a", "1.200000000000000a"]
    assert len({marker(REF, "a", f"reply-{key}") for key in keys}) == len(keys)


def _hostile_notes(state: SandboxState, words: str) -> list[str]:
    mr = replace(MR, title=words, source_branch=words, source_project_id=9)
    stages = (StageResult(Stage.TEST, False, 1, f"{words}!"),)
    history = (HistoryLine(NOW, words),) * 5
    shown = view(
        state, mr=mr, access=ACCESS, notice=words, hint=words, queue_reason=words, stages=stages, history=history
    )
    sandbox = replace(shown.sandbox, requested_by=Actor("gitlab", words), end_detail=words)
    news = FileNews((words,), (words, words))
    shown = replace(shown, sandbox=sandbox, links=((words, "/page"),), file=news)
    waits = [render_start_waiting(mr, MARKER, StartWait(gate, words, news)) for gate in StartGate]
    without = [render(mr, MARKER) for render in (render_fork_waiting, render_none)]
    return [render_note(shown, MARKER), *without, *waits]


@given(st.sampled_from(SandboxState), st.just(HOSTILE) | st.text())
def test_hostile_facts_ping_nobody_command_nothing_and_add_no_element(state: SandboxState, words: str) -> None:
    parser = MarkdownIt("commonmark").enable("table")
    for note, calm in zip(_hostile_notes(state, f"{words}."), _hostile_notes(state, "calm words."), strict=True):
        assert mentions(note) == links(note.replace(f"<{ACCESS.web_url}>", "")) == []
        assert take_quick_actions(note)[1] == []
        assert parse_comment(note) is None
        assert len(note) < 30_000
        assert [one.type for one in parser.parse(note)] == [one.type for one in parser.parse(calm)]


@given(st.just(HOSTILE) | st.text())
def test_hostile_words_in_an_answer_stay_words(words: str) -> None:
    for answer in (render_reply(words), render_reply(f"no: {words}"), render_warning(view(), f"{words} ")):
        assert mentions(answer) == links(answer) == []
        assert take_quick_actions(answer)[1] == []
        assert parse_comment(answer) is None
        assert len(answer) < 20_000
