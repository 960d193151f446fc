"""What there is to see: every counter, gauge and histogram, in a registry of its own, with the values of its labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import product
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from ravebot.agents.model import TurnState
from ravebot.sandboxes.decide import Do
from ravebot.sandboxes.model import EndReason, Stage

WEBHOOK_RESULTS = ("accepted", "duplicate", "ignored", "forged", "malformed", "too_large", "unavailable")
ALERT_ANSWERS = ("accepted", "forged", "malformed", "too_large", "unavailable")
ALERT_RESULTS = ("new", "again", "repeated", "resolved", "late", "left_out", "malformed")
CI_RESULTS = ("answered", "refused", "unavailable")
SYNC_RESULTS = ("ok", "failed", "refused")
SERVICES = ("ssh", "web")
MODEL_RESULTS = ("answered", "refused", "failed")
REQUEST_RESULTS = ("ok", "refused", "slow_down", "failed")
"""Of requests to GitLab, to Matrix and to our API: 2xx and 3xx, 4xx, 429, and 5xx or no answer."""
SOURCES = ("gitlab", "matrix")
ORPHANS = ("machine", "volume", "address")
BUDGETS = ("messages", "tokens")
DATABASE_FILES = ("database", "wal")
DELIVERY_RESULTS = ("delivered", "retried", "given up")
PROVIDER_CALLS = ("list", *Do)
"""Calls to the provider: the listing, and the actions of the decision table."""
START_STEPS = ("boot", *Stage)
"""Steps of a start: `boot` until the guest agent answers, then the stages."""

_WAIT_SECONDS = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 43200)
_STAGE_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
_PASS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_LIFE_SECONDS = (60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)

OPEN: tuple[str, ...] = ()
"""Values of a label whose series begin only when something happens."""

T = TypeVar("T", Counter, Histogram)


def _begun(metric: T, labels: Mapping[str, Iterable[str]]) -> T:
    """With the series of all values at 0: Prometheus sees no increase in a series that begins with its first event."""
    for values in product(*labels.values()) if labels else ():
        metric.labels(*values)
    return metric


class Series:
    """One process's. `targets`: of the outbox. A counter's and a histogram's labels are given with all their values."""

    def __init__(self, targets: Iterable[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter, which says when this process began
        self.registry = registry = CollectorRegistry()
        self.labels: dict[str, tuple[str, ...]] = {}
        """Those of each, by its name."""
        ProcessCollector(registry=registry)

        def named(name: str, labels: Iterable[str]) -> str:
            self.labels[name] = tuple(labels)
            return name

        def counter(name: str, text: str, **labels: Iterable[str]) -> Counter:
            full = named(f"ravebot_{name}_total", labels)
            return _begun(Counter(full, text, tuple(labels), registry=registry), labels)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(named(f"ravebot_{name}", labels), text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], **labels: Iterable[str]) -> Histogram:
            full = named(f"ravebot_{name}", labels)
            return _begun(Histogram(full, text, tuple(labels), buckets=buckets, registry=registry), labels)

        self.requested = counter("sandboxes_requested", "Sandboxes that were requested.")
        self.became_ready = counter("sandboxes_ready", "Sandboxes that became ready.")
        self.ended = counter("sandboxes_ended", "Sandboxes that ended, by reason.", reason=EndReason)
        self.limit = gauge("sandboxes_limit", "How many sandboxes run at once at most.")
        self.queue_wait = histogram("queue_wait_seconds", "Time from request to the first machine.", _WAIT_SECONDS)
        self.queue_oldest = gauge("queue_oldest_seconds", "How long the oldest sandbox in the queue has waited.")
        self.lived = histogram("sandbox_lifetime_seconds", "Time from ready to end.", _LIFE_SECONDS)
        self.until_ready = histogram("sandbox_start_seconds", "Time from request to ready.", _STAGE_SECONDS)
        self.stages = histogram(
            "stage_seconds", "How long each step of a start took.", _STAGE_SECONDS, stage=OPEN, ok=OPEN
        )
        self.sandboxes = gauge("sandboxes", "Sandboxes by state.", "state")
        self.memory = gauge("host_memory_available_bytes", "Memory that is available on the host.")
        self.disk = gauge("host_disk_free_bytes", "Free space in the storage pool.")
        self.promised = gauge("host_disk_promised_bytes", "Space by which machines' disks may still grow.")
        self.pending = gauge("outbox_pending", "Messages not yet delivered.", "target")
        self.oldest = gauge("outbox_oldest_seconds", "Age of the oldest message not yet delivered.", "target")
        self.deliveries = counter(
            "outbox_deliveries", "Attempts to deliver, by result.", target=targets, result=DELIVERY_RESULTS
        )
        self.requests = gauge("inbox_pending", "Requests that are not handled yet.", "source")
        self.oldest_request = gauge("inbox_oldest_seconds", "Age of the oldest request not handled.", "source")
        self.turns = gauge("agent_turns", "Messages to agents by state, of those that are not answered.", "state")
        self.ended_turns = counter(
            "agent_turns_ended",
            "Messages to agents that are over, by state.",
            state=(state for state in TurnState if state.is_over),
        )
        self.budgets = gauge("agent_budget_used_ratio", "Part of an agent's budget of today.", "agent", "of")
        self.worked = gauge("agent_worked_today_seconds", "How long an agent worked today.", "agent")
        self.unanswered = gauge("agent_waiting_seconds", "Age of the oldest message that ravebot should have given.")
        self.model_requests = counter(
            "model_requests", "Requests of agents to models, by result.", result=MODEL_RESULTS
        )
        self.model_tokens = counter("model_tokens", "Tokens of models that agents used, or that stay reserved.")
        self.model_seconds = histogram("model_seconds", "Duration of requests of agents to models.", _STAGE_SECONDS)
        self.webhooks = counter("webhooks", "Webhooks received, by result.", result=WEBHOOK_RESULTS)
        self.webhook_seconds = histogram("webhook_seconds", "Time to answer a webhook.", _REQUEST_SECONDS)
        self.alert_requests = counter("alert_requests", "Requests of Alertmanager, by result.", result=ALERT_ANSWERS)
        self.alerts = counter(
            "alerts_received", "Alerts received from Alertmanager, by what they meant.", result=ALERT_RESULTS
        )
        self.ci = counter("ci_requests", "Requests of CI jobs.", result=CI_RESULTS)
        self.gitlab = counter("gitlab_requests", "Requests to GitLab, by result.", result=REQUEST_RESULTS)
        self.gitlab_seconds = histogram("gitlab_request_seconds", "Time until GitLab answers.", _REQUEST_SECONDS)
        self.matrix = counter("matrix_requests", "Requests to the homeserver, by result.", result=REQUEST_RESULTS)
        self.api = counter("api_requests", "Requests to our API and to MCP, by result.", result=REQUEST_RESULTS)
        self.syncs = counter("matrix_syncs", "Matrix syncs, by result.", result=SYNC_RESULTS)
        self.polls = counter(
            "gitlab_polls", "Polls for changes that webhooks did not report, by result.", result=("ok", "failed")
        )
        self.passes = histogram("pool_pass_seconds", "Duration of one pass of the pool's loop.", _PASS_SECONDS)
        self.provider_errors = counter("provider_errors", "Calls to the provider that failed.", call=PROVIDER_CALLS)
        self.provider = gauge("provider_connected", "1 while the provider answers.")
        self.repairs = counter(
            "firewall_repairs", "Repairs after the firewall was changed by others.", flushed=("yes", "no")
        )
        self.connections = counter("connections", "New connections to sandboxes.", service=SERVICES)
        self.dropped = counter("connections_dropped", "New connections dropped by the rate limit.", service=SERVICES)
        self.attempts = counter("connection_attempts", "New connections passed on to a guest.", service=SERVICES)
        self.refused = counter("connections_refused", "New connections from outside of allow_from.", service=SERVICES)
        self.first_access = histogram(
            "first_access_seconds", "Time from ready to the first connection.", _LIFE_SECONDS, service=SERVICES
        )
        self.ports = gauge("ports", "Ports that sandboxes can get.", "service")
        self.ports_used = gauge("ports_used", "Ports that sandboxes have.", "service")
        self.forced = counter("machines_forced", "Machines that were switched off, as they did not shut down.")
        self.orphans = counter(
            "orphans_removed", "Removed things of ours that the database did not know.", kind=ORPHANS
        )
        self.lag = gauge("event_loop_lag_seconds", "The longest delay of ravebot's own work in the last 10 seconds.")
        self.database = gauge("database_bytes", "Size of the database's files.", "file")
        self.project_sandboxes = gauge("project_sandboxes", "Sandboxes with a machine.", "project")
        self.project_memory = gauge("project_memory_bytes", "Memory that its machines use.", "project")
        self.project_disk = gauge("project_disk_bytes", "Disk that its machines take on the host.", "project")
        self.project_cpu = counter("project_cpu_seconds", "CPU time of its machines.", project=OPEN)
        self.project_received = counter("project_received_bytes", "What its guests received.", project=OPEN)
        self.project_sent = counter("project_sent_bytes", "What its guests sent.", project=OPEN)
        self.project_ready = counter("project_sandboxes_ready", "Its sandboxes that became ready.", project=OPEN)
        self.project_failed = counter(
            "project_sandboxes_failed", "Its sandboxes that failed or were lost.", project=OPEN
        )
        for unknown in (self.memory, self.disk, self.promised):
            unknown.set(math.nan)  # 0 would raise an alert

    def of_projects(self) -> tuple[Counter | Gauge, ...]:
        """Those that have a project's label only."""
        return (
            self.project_ready, self.project_failed, self.project_cpu, self.project_received, self.project_sent,
            self.project_sandboxes, self.project_memory, self.project_disk,
        )  # fmt: skip
