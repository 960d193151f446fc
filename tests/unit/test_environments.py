"""What GitLab should show of a sandbox, and the steps to it: every state, and what GitLab does not allow."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from ravebot.errors import Forbidden, NotFound, Unacceptable
from ravebot.notify.environments.keeping import asking, refused
from ravebot.notify.environments.steps import git_ref
from ravebot.notify.environments.wording import foreign, refusal
from ravebot.sandboxes.environments.model import (
    AskedFor,
    DeploymentStatus,
    EnvironmentRecord,
    EnvironmentState,
    without_environment,
)
from ravebot.sandboxes.environments.plan import (
    SETTLE,
    Deed,
    Presence,
    ShownSandbox,
    ShowStep,
    decide,
    wanted,
)
from ravebot.sandboxes.model import NO_KEYS, EndReason, MergeRequestRef, Sandbox, SandboxId, SandboxState, Stage
from tests.support.records import NOON, A, B, a_merge_request, a_sandbox

MR = a_merge_request(1)
WEB = "https://sandboxes.example.org:43000/"
LATER = NOON + timedelta(minutes=1)
AVAILABLE = EnvironmentRecord(
    MR.ref, environment_id=5, state=EnvironmentState.AVAILABLE, external_url=WEB, seen_at=NOON, seen_with=1
)
DEPLOYED = replace(
    AVAILABLE, deployment_id=6, deployment_sandbox=1, deployment_sha=A, deployment_status="success", status_sha=A,
    status_state="success",
)  # fmt: skip


def ready(**facts: Any) -> Sandbox:
    return a_sandbox(1, SandboxState.READY, **{"running_sha": A, "ready_at": NOON, **facts})


def ended(reason: EndReason, **facts: Any) -> Sandbox:
    return a_sandbox(1, SandboxState.ENDED, **{"end_reason": reason, "ended_at": NOON, **facts})


def shown(sandbox: Sandbox, **facts: Any) -> ShownSandbox:
    return wanted(sandbox, replace(MR, **facts), WEB if sandbox.state is SandboxState.READY else None, LATER)


def steps(sandbox: Sandbox, known: EnvironmentRecord | None = None, now: datetime = LATER) -> list[str]:
    """Every step in order, each taken as if GitLab had done it."""
    known, taken = known or EnvironmentRecord(MR.ref), []
    while isinstance(step := decide(shown(sandbox), known, now), ShowStep):
        taken.append(f"{step.deed.value} {step.state}".strip())
        known = done(known, step)
        assert len(taken) < 10, taken
    return taken


def done(known: EnvironmentRecord, step: ShowStep) -> EnvironmentRecord:
    match step.deed:
        case Deed.CREATE_ENVIRONMENT:
            return replace(AVAILABLE, external_url=step.url)
        case Deed.LOOK_AT_ENVIRONMENT:
            return replace(known, seen_with=9)
        case Deed.SET_URL:
            return replace(known, external_url=step.url)
        case Deed.STOP_ENVIRONMENT:
            return replace(known, state=EnvironmentState.STOPPED)
        case Deed.DELETE_ENVIRONMENT:
            return without_environment(known)
        case Deed.CREATE_DEPLOYMENT:
            return replace(
                known, deployment_id=6, deployment_sandbox=step.sandbox, deployment_sha=step.sha,
                deployment_status=step.state,
            )  # fmt: skip
        case Deed.SET_DEPLOYMENT:
            return replace(known, deployment_status=step.state)
        case Deed.SET_STATUS:
            return replace(known, status_sha=step.sha, status_state=step.state)
    raise AssertionError(step)


@pytest.mark.parametrize(
    ("sandbox", "place", "deployment", "status"),
    [
        (a_sandbox(1), Presence.AS_IT_IS, None, "pending"),
        (a_sandbox(1, SandboxState.STARTING), Presence.AVAILABLE, "running", "running"),
        (ready(), Presence.AVAILABLE, "success", "success"),
        (ready(stage=Stage.SETUP), Presence.AVAILABLE, "running", "running"),
        (ready(notice="commit bbbbbbbb was not taken"), Presence.AVAILABLE, "failed", "failed"),
        (ready(notice=NO_KEYS), Presence.AVAILABLE, "success", "success"),  # says nothing of the commit
        (ready(end_reason=EndReason.FAILED, end_detail="set-up failed"), Presence.AVAILABLE, "failed", "failed"),
        (
            ready(end_reason=EndReason.FAILED, end_detail="set-up failed", stage=Stage.SETUP),
            *(Presence.AVAILABLE, "running", "running"),
        ),
        (a_sandbox(1, SandboxState.STOPPING), Presence.STOPPED, "canceled", "canceled"),
        (ended(EndReason.EXPIRED), Presence.GONE, "canceled", "canceled"),
        (ended(EndReason.FAILED), Presence.GONE, "failed", "failed"),
        (ended(EndReason.LOST), Presence.GONE, "failed", "failed"),
        (ended(EndReason.LOST, ready_at=NOON), Presence.GONE, "canceled", "canceled"),
    ],
)
def test_environment_deployment_and_status_follow_the_sandbox(
    sandbox: Sandbox, place: Presence, deployment: str | None, status: str
) -> None:
    found = shown(sandbox)
    assert found.place is place
    assert (found.deployment.status if found.deployment else None) == deployment
    assert found.status
    assert found.status.state == status


def test_a_sandbox_goes_from_its_start_to_its_end_in_eight_requests() -> None:
    assert steps(a_sandbox(1, SandboxState.STARTING)) == [
        "create the environment",
        "create a deployment running",
        "set the commit status running",
    ]
    running = replace(AVAILABLE, external_url=MR.web_url, deployment_id=6, deployment_sandbox=1, deployment_sha=A,
                      deployment_status="running", status_sha=A, status_state="running")  # fmt: skip
    assert steps(ready(), running) == [
        "set the environment's URL",
        "set the deployment's status success",
        "set the commit status success",
    ]
    assert steps(ended(EndReason.MERGED), DEPLOYED) == ["stop the environment", "delete the environment"]


def test_a_sandbox_that_ended_before_it_was_ready_leaves_nothing_that_runs() -> None:
    running = replace(DEPLOYED, deployment_status="running", status_state="running")
    assert steps(ended(EndReason.CLOSED), running) == [
        "set the deployment's status canceled",
        "stop the environment",
        "delete the environment",
        "set the commit status canceled",
    ]


def test_what_was_never_shown_is_not_shown_at_its_end() -> None:
    assert steps(ended(EndReason.CLOSED)) == []
    assert steps(ended(EndReason.FAILED)) == ["set the commit status failed"]
    late = wanted(ended(EndReason.FAILED), MR, None, NOON + timedelta(days=2))
    assert decide(late, EnvironmentRecord(MR.ref), NOON + timedelta(days=2)) is None


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (wanted(ended(EndReason.FAILED), MR, None, NOON + timedelta(days=2)), "failed"),
        (wanted(None, MR, None, NOON), "canceled"),
        (wanted(ready(), replace(MR, source_project_id=99), None, NOON), "canceled"),
    ],
)
def test_a_status_that_is_under_way_always_ends_as_it_would_hold_up_the_merge(found: ShownSandbox, state: str) -> None:
    known = EnvironmentRecord(MR.ref, status_sha=A, status_state="running")
    step = decide(replace(found, place=Presence.GONE), known, NOON + timedelta(days=2))
    assert isinstance(step, ShowStep)
    assert (step.deed, step.state) == (Deed.SET_STATUS, state)


def test_the_first_status_of_a_commit_waits_for_its_pipeline_unless_there_is_a_result() -> None:
    starting = a_sandbox(1, SandboxState.STARTING)
    known = replace(AVAILABLE, external_url=MR.web_url, deployment_id=6, deployment_sandbox=1, deployment_sha=A,
                    deployment_status="running")  # fmt: skip
    assert decide(shown(starting), known, NOON) == NOON + SETTLE
    assert steps(starting, known, NOON + SETTLE) == ["set the commit status running"]
    assert steps(ready(state_since=NOON), DEPLOYED, NOON) == []


def test_a_commit_that_is_tried_again_says_so_and_its_deployment_stays_until_there_is_a_result() -> None:
    failed = replace(DEPLOYED, deployment_status="failed", status_state="failed")
    assert steps(ready(stage=Stage.COPY), failed) == ["set the commit status running"]
    assert steps(ready(), replace(failed, status_state="running")) == [
        "set the deployment's status success",
        "set the commit status success",
    ]


def test_an_environment_that_is_stopped_makes_place_for_a_new_one() -> None:
    stopped = replace(DEPLOYED, state=EnvironmentState.STOPPED)
    assert steps(a_sandbox(2, SandboxState.STARTING), stopped)[:2] == [
        "delete the environment",
        "create the environment",
    ]


def test_a_rebuilt_sandbox_keeps_its_environment_and_gets_a_deployment_of_its_own() -> None:
    again = a_sandbox(1, SandboxState.STARTING)
    taken = steps(replace(again, id=SandboxId(2)), DEPLOYED)
    assert taken == [
        "look at the environment",
        "set the environment's URL",
        "create a deployment running",
        "set the commit status running",
    ]


def looks(sandbox: Sandbox, known: EnvironmentRecord, now: datetime = LATER) -> tuple[Deed, bool]:
    step = decide(shown(sandbox), known, now)
    assert isinstance(step, ShowStep)
    return step.deed, step.look_first


def test_an_environment_is_looked_at_before_each_request_that_would_make_a_stopped_one_available() -> None:
    running = replace(DEPLOYED, deployment_status="running")
    assert looks(ready(), replace(DEPLOYED, external_url=MR.web_url)) == (Deed.SET_URL, True)
    assert looks(ready(), running) == (Deed.SET_DEPLOYMENT, True)
    assert looks(ready(notice="set-up failed"), running) == (Deed.SET_DEPLOYMENT, False)
    assert looks(ready(), AVAILABLE, NOON) == (Deed.CREATE_DEPLOYMENT, True)
    starting, here = a_sandbox(1, SandboxState.STARTING), replace(AVAILABLE, external_url=MR.web_url)
    assert looks(starting, here, NOON) == (Deed.CREATE_DEPLOYMENT, False), "it was made a moment ago"
    assert looks(starting, here, LATER) == (Deed.CREATE_DEPLOYMENT, True)
    assert looks(starting, replace(running, external_url=MR.web_url, deployment_sha=B, deployment_id=None), NOON) == (
        Deed.CREATE_DEPLOYMENT,
        True,
    )


def test_a_new_sandbox_takes_an_environment_over_only_when_it_was_seen_while_that_sandbox_was_there() -> None:
    for state in (SandboxState.QUEUED, SandboxState.STARTING, SandboxState.READY):
        again = replace(a_sandbox(1, state), id=SandboxId(2))
        assert looks(again, DEPLOYED) == (Deed.LOOK_AT_ENVIRONMENT, False)
        step = decide(shown(again), replace(DEPLOYED, seen_with=2), LATER)
        assert not isinstance(step, ShowStep) or step.deed is not Deed.LOOK_AT_ENVIRONMENT
    gone = replace(ended(EndReason.CLOSED), id=SandboxId(2))
    assert looks(gone, DEPLOYED)[0] is Deed.STOP_ENVIRONMENT


def test_a_pause_of_the_environment_does_not_hold_up_the_status() -> None:
    paused = replace(AVAILABLE, environment_since=NOON, environment_until=NOON + timedelta(hours=1))
    step = decide(shown(ready()), paused, LATER)
    assert isinstance(step, ShowStep)
    assert step.deed is Deed.SET_STATUS
    assert decide(shown(ready()), replace(paused, status_sha=A, status_state="success"), LATER) == NOON + timedelta(
        hours=1
    )


def test_a_pause_of_the_deployment_holds_up_neither_the_environments_address_nor_its_end() -> None:
    paused = replace(
        DEPLOYED, external_url="", deployment_status="running", deployment_since=NOON,
        deployment_until=NOON + timedelta(hours=1),
    )  # fmt: skip
    assert steps(ready(), paused) == ["set the environment's URL"]
    assert decide(shown(ready()), replace(paused, external_url=WEB), LATER) == NOON + timedelta(hours=1)
    assert steps(ended(EndReason.MERGED), paused) == ["stop the environment", "delete the environment"]


def test_a_new_sandbox_asks_anew_for_what_was_refused_for_a_day() -> None:
    new = ready(created_at=LATER)
    for hours, is_asked in ((24, True), (1, False)):
        paused = replace(
            EnvironmentRecord(MR.ref), environment_since=NOON, environment_until=NOON + timedelta(hours=hours)
        )
        step = decide(replace(shown(new), status=None), paused, LATER)
        assert isinstance(step, ShowStep) is is_asked
    assert not isinstance(decide(replace(shown(ready()), status=None, since=NOON), paused, LATER), ShowStep)


def test_refusals_are_less_frequent_after_a_day_and_a_clock_that_was_set_back_starts_them_anew() -> None:
    known, now, pauses = EnvironmentRecord(MR.ref), NOON, []
    for _ in range(110):
        known = refused(known, Deed.SET_DEPLOYMENT, now, "no")
        assert known.deployment_until
        pauses.append(known.deployment_until - now)
        now = known.deployment_until
    assert pauses[:5] == [timedelta(seconds=seconds) for seconds in (60, 120, 240, 480, 900)]
    assert pauses[-1] == timedelta(days=1)
    assert known.hint == "no (tried once a day by now, and for a new sandbox)"
    back = refused(known, Deed.SET_DEPLOYMENT, NOON - timedelta(days=1), "no")
    assert (back.hint, back.deployment_until) == ("no", NOON - timedelta(days=1) + timedelta(minutes=15))


def test_for_a_sandbox_that_is_gone_refusals_are_given_up_after_a_week_unless_its_environment_is_known() -> None:
    week: dict[str, Any] = {"environment_refused_since": NOON, "status_refused_since": NOON}
    asked = asking(EnvironmentRecord(MR.ref), ShowStep(Deed.CREATE_ENVIRONMENT, url=WEB), NOON)
    running = replace(asked, **week, status_sha=A, status_state="running")
    for days, found in ((6, "find the environment"), (7, None)):
        step = decide(shown(ended(EndReason.MERGED)), running, NOON + timedelta(days=days))
        assert (step.deed.value if isinstance(step, ShowStep) else step) == found
    lost = asking(DEPLOYED, ShowStep(Deed.CREATE_DEPLOYMENT, sha=B, state="running", sandbox=3), NOON)
    assert looks(ended(EndReason.MERGED), replace(lost, **week), NOON + timedelta(days=7))[0] is Deed.STOP_ENVIRONMENT


def test_an_unanswered_request_is_looked_for_before_anything_else() -> None:
    step = ShowStep(Deed.CREATE_DEPLOYMENT, sha=B, state="running", sandbox=3)
    asked = asking(AVAILABLE, step, NOON)
    assert asked.asked is AskedFor.DEPLOYMENT
    assert decide(shown(ready()), asked, LATER) == ShowStep(Deed.FIND_DEPLOYMENT, sha=B, sandbox=3)
    asked = asking(DEPLOYED, ShowStep(Deed.SET_STATUS, sha=A, state="failed"), NOON)
    assert decide(shown(ready()), asked, LATER) == ShowStep(Deed.FIND_STATUS, sha=A, state="failed")
    asked = asking(EnvironmentRecord(MR.ref), ShowStep(Deed.CREATE_ENVIRONMENT, url=WEB), NOON)
    assert decide(shown(ready()), asked, LATER) == ShowStep(Deed.FIND_ENVIRONMENT, url=WEB)


def test_a_stop_is_ours_from_before_it_is_asked_for() -> None:
    assert asking(AVAILABLE, ShowStep(Deed.STOP_ENVIRONMENT), NOON).state is EnvironmentState.STOPPING


def test_of_a_forks_commit_that_nobody_approved_nothing_is_shown() -> None:
    fork = replace(MR, source_project_id=99)
    found = wanted(ready(), fork, WEB, LATER)
    assert (found.deployment, found.status) == (None, None)
    assert wanted(ready(), replace(fork, approved_sha=A), WEB, LATER).status is not None
    assert git_ref(fork) == "refs/merge-requests/1/head"
    assert git_ref(MR) == "feature"


def test_urls_and_descriptions_are_never_longer_than_gitlab_takes() -> None:
    long = "https://gitlab.example.org/" + "group/" * 60
    assert wanted(ready(), replace(MR, web_url=long), None, LATER).url == ""
    found = shown(ready(notice="set-up failed:\n" + "x" * 1000)).status
    assert found
    assert len(found.description) == 255
    assert "\n" not in found.description


def test_a_sandbox_without_web_page_links_to_the_merge_request() -> None:
    assert wanted(ready(), MR, None, LATER).url == MR.web_url


def test_the_environments_page_is_that_of_the_project() -> None:
    page = AVAILABLE.page_url(replace(MR, web_url="https://example.org/gitlab/group/app/-/merge_requests/1"))
    assert page == "https://example.org/gitlab/group/app/-/environments/5"
    assert EnvironmentRecord(MergeRequestRef(7, 1)).page_url(MR) is None


@pytest.mark.parametrize("deed", list(Deed))
@pytest.mark.parametrize("error", [Forbidden("403"), NotFound("404"), Unacceptable("400: sha is invalid")])
def test_every_refusal_names_cause_and_mend_in_one_line(deed: Deed, error: Forbidden | NotFound) -> None:
    said = refusal(deed, error)
    assert "\n" not in said
    assert said.startswith("GitLab does not ")
    assert ("role Developer" in said) is not isinstance(error, Unacceptable)


def test_an_environment_of_others_is_named() -> None:
    assert "environment review/mr-7 that ravebot did not make: delete it" in foreign("review/mr-7")


def test_the_words_of_deployments_are_those_of_statuses() -> None:
    assert {one.value for one in DeploymentStatus} == {"running", "success", "failed", "canceled"}
