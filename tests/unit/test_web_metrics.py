"""Metrics count what happened, and no input makes series without end."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from ravebot.agents.model import TurnState
from ravebot.sandboxes.model import EndReason, SandboxState, Stage
from ravebot.web.metrics import CI_RESULTS, Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"ravebot_{name}", labels)


def test_a_sandboxs_life_is_counted_and_measured() -> None:
    metrics = Metrics()
    metrics.sandbox_requested()
    metrics.stage_done(Stage.SETUP, ok=True, seconds=1.5)
    metrics.sandbox_ready(timedelta(seconds=12))
    metrics.sandbox_ended(EndReason.MERGED, timedelta(hours=1))
    assert value(metrics, "sandboxes_requested_total") == 1
    assert value(metrics, "sandboxes_ready_total") == 1
    assert value(metrics, "sandboxes_ended_total", reason="merged") == 1
    assert value(metrics, "sandboxes_ended_total", reason="lost") == 0
    assert value(metrics, "stage_seconds_sum", stage="setup", ok="yes") == 1.5
    assert value(metrics, "sandbox_lifetime_seconds_sum") == 3600


def test_a_sandbox_that_never_was_ready_has_no_lifetime() -> None:
    metrics = Metrics()
    metrics.sandbox_ended(EndReason.FAILED, None)
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
