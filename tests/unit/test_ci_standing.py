"""What a job hears of its sandbox in each state, and how that is written."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ravebot.gitlab.ci.jobs import CiJob, HeadOf, JobPipeline
from ravebot.gitlab.ci.places import runs_head
from ravebot.sandboxes.model import NO_KEYS, EndReason, MergeRequest, Person, SandboxState, Stage, StageResult
from ravebot.sandboxes.view import Access, SandboxView
from ravebot.web.ci import standing
from ravebot.web.ci.answers import JobAnswer
from ravebot.web.ci.door import ImageTold
from tests.support.records import NOON, A, B, C, a_merge_request, a_sandbox

MR = a_merge_request()
ACCESS = Access("sandboxes.example.org", "rave", 42200, 43000, "https", "rave-test", ())


def view(state: SandboxState, access: Access | None = ACCESS, **facts: Any) -> SandboxView:
    around = {name: facts.pop(name) for name in ("queue_position", "queue_reason", "stages") if name in facts}
    return SandboxView(sandbox=a_sandbox(state=state, **facts), mr=MR, now=NOON, access=access, **around)


def heard(what: SandboxView | None, mr: MergeRequest = MR, why_none: str = "") -> JobAnswer:
    return standing.standing(mr, what, why_none)


def ready(**facts: Any) -> SandboxView:
    return view(SandboxState.READY, **{"running_sha": A, "ready_at": NOON, "expires_at": NOON, **facts})


@pytest.mark.parametrize(
    ("state", "facts", "words"),
    [
        (SandboxState.QUEUED, {}, "waits for a machine"),
        (SandboxState.QUEUED, {"queue_position": 3}, "number 3"),
        (
            SandboxState.QUEUED,
            {"queue_position": 3, "queue_reason": "the job build makes it"},
            "job build",
        ),
        (SandboxState.STARTING, {}, "machine starts"),
        (SandboxState.STARTING, {"stage": Stage.SETUP}, "setup"),
        (SandboxState.READY, {"sha": B}, "takes commit aaaaaaaa next"),
        (SandboxState.READY, {"stage": Stage.TEST}, "test"),
        (SandboxState.READY, {"access": None, "running_sha": A}, "ports"),
        (SandboxState.READY, {"running_sha": B}, "ports"),
    ],
)
def test_what_is_on_its_way_says_what_it_waits_for(state: SandboxState, facts: dict[str, Any], words: str) -> None:
    answer = heard(view(state, **facts))
    assert (answer.status, answer.said["state"]) == (202, state.value)
    assert words in answer.said["waits"]


def test_a_ready_one_says_how_to_get_in() -> None:
    answer = heard(ready())
    assert answer.status == 200
    assert answer.said["url"] == "https://sandboxes.example.org:43000/"
    assert answer.said["ssh"] == "ssh -o HostKeyAlias=rave-test -p 42200 rave@sandboxes.example.org"
    assert answer.said["sha"] == A
    without_keys = heard(ready(notice=NO_KEYS))
    assert (without_keys.status, without_keys.said["trouble"]) == (200, NO_KEYS)
    assert "url" not in heard(replace(ready(), access=replace(ACCESS, web_scheme=None))).said


@pytest.mark.parametrize(
    "failed",
    [
        view(
            SandboxState.READY,
            end_reason=EndReason.FAILED,
            end_detail="setup: see https://gitlab.example.org/group/app/-/jobs/7",
        ),
        view(
            SandboxState.ENDED,
            end_reason=EndReason.FAILED,
            end_detail="setup: see https://gitlab.example.org/group/app/-/jobs/7",
        ),
        view(
            SandboxState.STOPPING,
            end_reason=EndReason.LOST,
            end_detail="setup: see https://gitlab.example.org/group/app/-/jobs/7",
        ),
        ready(notice="setup: see https://gitlab.example.org/group/app/-/jobs/7"),
    ],
)
def test_a_failed_one_says_why_with_the_end_of_the_output(failed: SandboxView) -> None:
    output = "".join(f"line {number}\n" for number in range(100)) + "\x1b[31mlast\x1b[0m\n"
    stages = (StageResult(Stage.SETUP, ok=False, seconds=1, tail=output),)
    answer = heard(replace(failed, stages=stages))
    assert (answer.status, answer.said["state"]) == (422, "failed")
    assert answer.said["reason"].endswith("failed: setup: see https://gitlab.example.org/group/app/-/jobs/7")
    assert (len(answer.log), answer.log[-1]) == (30, "last")


@pytest.mark.parametrize(
    ("what", "why_none", "words"),
    [
        (None, "", "no sandbox yet. POST"),
        (None, "drafts wait for a person", "drafts wait for a person. A Developer"),
        (view(SandboxState.ENDED, end_reason=EndReason.EXPIRED), "", "came to its end. POST"),
        (view(SandboxState.ENDED, end_reason=EndReason.STOPPED), "", "was stopped"),
        (view(SandboxState.ENDED, end_reason=EndReason.FAILED, sha=B), "", "failed at an earlier commit"),
        (view(SandboxState.STOPPING), "", "is stopping"),
    ],
)
def test_where_there_is_none_it_is_said_why_and_who_starts_one(
    what: SandboxView | None, why_none: str, words: str
) -> None:
    answer = heard(what, why_none=why_none)
    assert (answer.status, answer.said["state"]) == (404, "none")
    assert words in answer.said["reason"]


def test_a_closed_merge_request_and_an_unapproved_fork_have_none() -> None:
    assert standing.closed(MR) is None
    for state in ("merged", "closed", "locked"):
        answer = standing.closed(replace(MR, state=state))
        assert answer
        assert (answer.status, state in answer.said["reason"]) == (404, True)
    fork = replace(MR, source_project_id=8)
    assert standing.unapproved(MR) is None
    assert standing.unapproved(replace(fork, approved_sha=A)) is None
    for unapproved in (fork, replace(fork, approved_sha=B)):
        answer = standing.unapproved(unapproved)
        assert answer
        assert f"/sandbox start {A}" in answer.said["reason"]


def test_no_text_of_others_adds_a_line_or_a_control_character() -> None:
    evil = "x\nstate=ready\rurl=http://evil\u2028ssh=\x1b[2J\u202e" + "y" * 5000
    answer = JobAnswer.of(422, state="failed", reason=evil).with_log(evil + "\nstate=ready")
    lines = answer.text().splitlines()
    assert [line.partition("=")[0] for line in lines] == ["state", "reason", *["log"] * (len(lines) - 2)]
    assert all(len(line) <= 1_010 and line.isprintable() for line in lines)
    assert answer.json()["reason"] == lines[1].removeprefix("reason=")


def test_headers_say_when_to_come_again_and_what_a_token_must_be() -> None:
    assert JobAnswer.error(429, "too often", 0.2).headers == {"Retry-After": "1"}
    assert "WWW-Authenticate" in JobAnswer.error(401, "no token").headers
    assert JobAnswer.of(200, state="ready").headers == {}


@pytest.mark.parametrize(
    ("told", "fits"),
    [
        ({}, True),
        ({"job": "ravebot:build", "path": "image/sandbox.qcow2", "sha256": "0" * 64}, True),
        ({"path": "/etc/passwd"}, False),
        ({"path": "image/../../x"}, False),
        ({"path": "image//x"}, False),
        ({"path": "./image/x"}, False),
        ({"path": "image/./x"}, False),
        ({"path": "x" * 501}, False),
        ({"path": "a\nb"}, False),
        ({"job": "x" * 256}, False),
        ({"job": "a\x00"}, False),
        ({"sha256": "0" * 63}, False),
        ({"sha256": "A" * 64}, False),
    ],
)
def test_only_what_can_be_an_artifact_is_taken_as_an_image(told: dict[str, str], fits: bool) -> None:
    assert (not ImageTold(**told).problem()) is fits


def test_times_of_the_answer_are_whole_seconds_in_utc() -> None:
    assert heard(ready(expires_at=NOON + timedelta(hours=2))).said["expires"] == "2026-01-01T14:00:00+00:00"


@pytest.mark.parametrize(("parents", "fits"), [((B, A), True), ((A, B), False), ((B,), False), ((), False)])
def test_a_merged_results_pipeline_is_of_what_it_merges_and_not_of_the_target(
    parents: tuple[str, ...], fits: bool
) -> None:
    pipeline = JobPipeline(5, 7, C, "refs/merge-requests/1/merge", "merge_request_event")
    job = CiJob(9, "review", "running", Person(1, "alice"), None, False, pipeline, parents)
    assert runs_head(job, HeadOf(replace(MR, head_sha=A), 5), "merge") == fits
