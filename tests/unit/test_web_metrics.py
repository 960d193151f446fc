"""Metrics count what happened, and no input makes series without end."""

from __future__ import annotations

import math
import timeit
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ravebot.agents.model import TurnState
from ravebot.sandboxes.model import EndReason, SandboxState, Stage
from ravebot.store.figures import RunningMachine
from ravebot.web.metrics import Metrics
from ravebot.web.metrics.series import CI_RESULTS
from tests.support.records import NOON

GIB = 1024**3


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"ravebot_{name}", labels)


def test_a_sandboxs_life_is_counted_and_measured() -> None:
    metrics = Metrics()
    metrics.sandbox_requested()
    metrics.stage_done(Stage.SETUP, ok=True, seconds=1.5)
    metrics.sandbox_ready("group/app", timedelta(seconds=12))
    metrics.sandbox_ended("group/app", EndReason.MERGED, timedelta(hours=1))
    assert value(metrics, "sandboxes_requested_total") == 1
    assert value(metrics, "sandboxes_ready_total") == 1
    assert value(metrics, "sandboxes_ended_total", reason="merged") == 1
    assert value(metrics, "sandboxes_ended_total", reason="lost") == 0
    assert value(metrics, "stage_seconds_sum", stage="setup", ok="yes") == 1.5
    assert value(metrics, "sandbox_lifetime_seconds_sum") == 3600


def test_a_clock_that_is_set_back_makes_no_sum_smaller() -> None:
    metrics, back = Metrics(), timedelta(hours=-1)
    metrics.sandbox_started(back)
    metrics.sandbox_ready("group/app", back)
    metrics.sandbox_ended("group/app", EndReason.MERGED, back)
    metrics.first_access("ssh", back)
    for name in ("queue_wait_seconds_sum", "sandbox_start_seconds_sum", "sandbox_lifetime_seconds_sum"):
        assert value(metrics, name) == 0
    assert value(metrics, "first_access_seconds_sum", service="ssh") == 0


def test_a_sandbox_that_never_was_ready_has_no_lifetime() -> None:
    metrics = Metrics()
    metrics.sandbox_ended("group/app", EndReason.FAILED, None)
    assert value(metrics, "sandbox_lifetime_seconds_count") == 0


def test_states_that_no_sandbox_is_in_are_shown_as_none() -> None:
    metrics = Metrics()
    metrics.counted({SandboxState.READY: 2})
    metrics.counted({SandboxState.QUEUED: 1, "kept": 1})
    assert value(metrics, "sandboxes", state="ready") == 0
    assert value(metrics, "sandboxes", state="queued") == 1
    assert value(metrics, "sandboxes", state="kept") == 1


def test_an_empty_outbox_has_no_age() -> None:
    metrics = Metrics()
    metrics.outbox_seen("matrix", 3, timedelta(seconds=9))
    assert value(metrics, "outbox_oldest_seconds", target="matrix") == 9
    metrics.outbox_seen("matrix", 0, None)
    assert value(metrics, "outbox_oldest_seconds", target="matrix") == 0


def test_messages_to_agents_are_counted_by_state_and_those_that_are_answered_are_not() -> None:
    metrics = Metrics()
    metrics.agents_seen({TurnState.ACCEPTED: 2, TurnState.DEAD: 1, TurnState.DONE: 9}, timedelta(seconds=9))
    assert value(metrics, "agent_turns", state="accepted") == 2
    assert value(metrics, "agent_turns", state="dead") == 1
    assert value(metrics, "agent_turns", state="working") == 0
    assert value(metrics, "agent_turns", state="done") is None
    assert value(metrics, "agent_waiting_seconds") == 9
    metrics.agents_seen({}, None)
    assert value(metrics, "agent_turns", state="accepted") == 0
    assert value(metrics, "agent_waiting_seconds") == 0


def test_unknown_labels_become_other_so_that_series_stay_few() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.webhook_answered(f"made up {number}", 0.001)
        metrics.stage_done(f"made up {number}", ok=False, seconds=1)
        metrics.provider_failed(f"made up {number}")
        metrics.delivery_tried(f"made up {number}", "delivered")
    assert value(metrics, "webhooks_total", result="other") == 100
    assert value(metrics, "stage_seconds_count", stage="other", ok="no") == 100
    assert value(metrics, "provider_errors_total", call="other") == 100
    assert value(metrics, "outbox_deliveries_total", target="other", result="delivered") == 100


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("matrix_syncs_total", {"result": "refused"}),
        ("gitlab_polls_total", {"result": "failed"}),
        ("outbox_deliveries_total", {"target": "gitlab", "result": "given up"}),
        ("outbox_deliveries_total", {"target": "matrix", "result": "retried"}),
        ("provider_errors_total", {"call": "list"}),
        ("connections_dropped_total", {"service": "web"}),
        ("firewall_repairs_total", {"flushed": "yes"}),
    ],
)
def test_what_never_happened_yet_is_counted_as_none(name: str, labels: dict[str, str]) -> None:
    assert value(Metrics(), name, **labels) == 0


def test_what_the_host_has_left_is_not_0_while_nobody_knows() -> None:
    metrics = Metrics()
    assert math.isnan(value(metrics, "host_disk_free_bytes") or 0)
    metrics.capacity_seen(1, 2, 3)
    assert value(metrics, "host_disk_free_bytes") == 2


def test_two_bots_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.sandbox_requested()
    assert value(other, "sandboxes_requested_total") == 0
    assert b"ravebot_sandboxes_requested_total 1.0" in one.exposition()


def test_what_jobs_are_answered_is_counted_by_whose_fault_it_is() -> None:
    metrics = Metrics()
    for status in (200, 202, 404, 409, 422, 401, 403, 429, 500, 503):
        metrics.job_answered(status)
    counted = {result: value(metrics, "ci_requests_total", result=result) for result in CI_RESULTS}
    assert counted == {"answered": 5, "refused": 3, "unavailable": 2}


def a_running_machine(number: int = 1, **facts: Any) -> RunningMachine:
    plain: dict[str, Any] = {
        "project": "group/app", "iid": number, "name": f"rave-main-{number}", "vcpus": 2, "memory_bytes": 4 * GIB,
        "cpu_seconds": 12.5, "memory_used_bytes": GIB, "disk_used_bytes": 3 * GIB, "open_files": 30,
        "received_bytes": 700,
        "sent_bytes": 300, "ready_at": None, "expires_at": NOON, "measured_at": NOON,
        "busy_since": None, "visited_at": None,
    }  # fmt: skip
    return RunningMachine(**plain | facts)


def shown(metrics: Metrics) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_each_running_machine_has_series_and_they_go_with_it() -> None:
    metrics = Metrics()
    metrics.running_seen([a_running_machine(42)], 1, 1)
    labels = ("group/app", "group/app!42", "rave-main-42")
    found = shown(metrics)
    assert found["ravebot_machine_cpu_seconds_total", *labels] == 12.5
    assert found["ravebot_machine_memory_limit_bytes", *labels] == 4 * GIB
    assert found["ravebot_machine_expires_timestamp_seconds", *labels] == NOON.timestamp()
    assert ("ravebot_machine_ready_timestamp_seconds", *labels) not in found
    assert found["ravebot_project_memory_bytes", "group/app"] == GIB
    metrics.running_seen([], 0, 0)
    found = shown(metrics)
    assert [name for name, *_ in found if name.startswith("ravebot_machine_cpu")] == []
    assert found["ravebot_project_memory_bytes", "group/app"] == 0
    assert found["ravebot_ports_used", "ssh"] == 0


def test_a_label_can_break_out_of_nothing() -> None:
    metrics, evil = Metrics(), 'a"} 1\nravebot_provider_connected 1\n\\'
    metrics.running_seen([a_running_machine(project=evil)], 1, 1)
    metrics.sandbox_ready(evil, timedelta(seconds=1))
    found = shown(metrics)
    assert found["ravebot_provider_connected",] == 0
    assert found["ravebot_machine_vcpus", *sorted((evil, f"{evil}!1", "rave-main-1"))] == 2


def test_a_project_s_series_begin_at_zero_so_that_its_first_failure_is_an_increase() -> None:
    metrics = Metrics()
    metrics.sandbox_ready("group/app", timedelta(seconds=12))
    assert value(metrics, "project_sandboxes_ready_total", project="group/app") == 1
    assert value(metrics, "project_sandboxes_failed_total", project="group/app") == 0
    assert value(metrics, "project_cpu_seconds_total", project="group/app") == 0


def test_the_first_fifty_projects_have_series_and_all_others_are_one() -> None:
    metrics = Metrics()
    for number in range(200):
        metrics.sandbox_ready(f"group/{number}", timedelta(seconds=1))
        metrics.machine_used(f"group/{number}", 2.0, 10, 5)
    metrics.running_seen([a_running_machine(number, project=f"group/{number}") for number in range(200)], 9, 9)
    found = shown(metrics)
    assert len([key for key in found if key[0] == "ravebot_project_cpu_seconds_total"]) == 51
    assert found["ravebot_project_cpu_seconds_total", "group/49"] == 2
    assert found["ravebot_project_cpu_seconds_total", "other"] == 300
    assert found["ravebot_project_sandboxes", "other"] == 150
    assert found["ravebot_project_sandboxes_ready_total", "other"] == 150


@pytest.mark.parametrize("most", [1, 3])
def test_how_many_projects_have_series_is_the_operator_s_choice(most: int) -> None:
    metrics = Metrics(projects=most)
    for number in range(5):
        metrics.sandbox_ready(f"group/{number}", timedelta(seconds=1))
    assert len([key for key in shown(metrics) if key[0] == "ravebot_project_cpu_seconds_total"]) == most + 1
    assert value(metrics, "project_sandboxes_ready_total", project="other") == 5 - most


SERVED = [(1, "group/a"), (2, "group/b"), (3, "group/c")]


def places(metrics: Metrics) -> set[str]:
    return {labels[0] for name, *labels in shown(metrics) if name == "ravebot_project_sandboxes_ready_total"}


def test_a_project_that_is_renamed_keeps_its_place_and_leaves_no_series_behind() -> None:
    metrics = Metrics(projects=1)
    metrics.projects_served(SERVED)
    for path in ("group/a", "group/b"):
        metrics.sandbox_ready(path, timedelta(seconds=1))
    assert places(metrics) == {"group/a", "other"}
    metrics.projects_served([(1, "group/renamed"), *SERVED[1:]])
    assert places(metrics) == {"group/renamed", "other"}
    for path in ("group/b", "group/renamed", "group/a"):  # the last as a row has it that was not told yet
        metrics.sandbox_ready(path, timedelta(seconds=1))
    metrics.running_seen([a_running_machine(project="group/a")], 1, 1)
    found = shown(metrics)
    assert found["ravebot_project_sandboxes_ready_total", "group/renamed"] == 2
    assert found["ravebot_project_sandboxes_ready_total", "other"] == 2
    assert found["ravebot_project_sandboxes", "group/renamed"] == 1


def test_a_project_that_takes_another_s_old_path_is_counted_by_itself() -> None:
    metrics = Metrics(projects=2)
    metrics.projects_served(SERVED)
    for path in ("group/a", "group/b"):
        metrics.sandbox_ready(path, timedelta(seconds=1))
    metrics.projects_served([(1, "group/b"), (2, "group/a")])  # they changed names
    assert places(metrics) == {"group/a", "group/b"}
    metrics.projects_served([(1, "group/b"), (2, "group/d")])
    metrics.projects_served([(1, "group/b"), (2, "group/d"), (4, "group/a")])
    metrics.sandbox_ready("group/a", timedelta(seconds=1))
    found = shown(metrics)
    assert found["ravebot_project_sandboxes_ready_total", "group/d"] == 0
    assert found["ravebot_project_sandboxes_ready_total", "other"] == 1


def test_a_project_that_is_gone_gives_its_place_up_once_it_has_no_machine() -> None:
    metrics = Metrics(projects=1)
    metrics.projects_served(SERVED)
    metrics.running_seen([a_running_machine(project="group/a")], 1, 1)
    metrics.projects_served(())  # not known for now
    metrics.projects_served(SERVED[1:])
    metrics.sandbox_ready("group/b", timedelta(seconds=1))
    assert places(metrics) == {"group/a", "other"}
    metrics.running_seen([], 0, 0)
    metrics.projects_served(SERVED[1:])
    metrics.sandbox_ready("group/b", timedelta(seconds=1))
    assert places(metrics) == {"group/b", "other"}


def test_ten_thousand_projects_that_come_and_go_and_are_renamed_make_no_more_series_than_the_bound() -> None:
    metrics, chance = Metrics(projects=5), Random(7)
    for _ in range(50):
        served = [(number, f"group/{number}-{chance.randrange(3)}") for number in chance.sample(range(10_000), 200)]
        metrics.projects_served(served)
        for _, path in served[:20]:
            metrics.machine_used(path, 1.0, 1, 1)
        metrics.running_seen([a_running_machine(project=path) for _, path in served[:10]], 0, 0)
        assert len(places(metrics)) <= 6


def test_a_thousand_machines_have_series_and_no_more() -> None:
    metrics = Metrics()
    metrics.running_seen([a_running_machine(number) for number in range(1200)], 0, 0)
    assert len([key for key in shown(metrics) if key[0] == "ravebot_machine_vcpus"]) == 1000


def test_a_scrape_writes_nothing_anew_however_many_machines_run() -> None:
    """What a thousand machines cost is paid when they are measured: their text is there already."""
    metrics = Metrics()
    few = min(timeit.repeat(metrics.exposition, number=1, repeat=5))
    metrics.running_seen([a_running_machine(number) for number in range(1000)], 0, 0)
    many = min(timeit.repeat(metrics.exposition, number=1, repeat=5))
    assert many < 2 * few + 0.005


def test_turns_that_ended_before_we_looked_are_not_counted_again() -> None:
    metrics = Metrics()
    metrics.turns_seen({"done": 7})
    assert value(metrics, "agent_turns_ended_total", state="done") == 0
    metrics.turns_seen({"done": 9, "failed": 1})
    assert value(metrics, "agent_turns_ended_total", state="done") == 2
    assert value(metrics, "agent_turns_ended_total", state="failed") == 1


@pytest.mark.parametrize(
    ("status", "result"),
    [(200, "ok"), (304, "ok"), (404, "refused"), (429, "slow_down"), (500, "failed"), (None, "failed")],
)
def test_a_request_s_result_is_what_its_status_says(status: int | None, result: str) -> None:
    metrics = Metrics()
    metrics.gitlab_answered(status, 0.2)
    metrics.matrix_answered(status)
    assert value(metrics, "gitlab_requests_total", result=result) == 1
    assert value(metrics, "matrix_requests_total", result=result) == 1
    assert value(metrics, "gitlab_request_seconds_count") == (0 if status is None else 1)
