"""Metrics for Prometheus; methods are named after what happened.

Every label has a small fixed set of values; any other value becomes `other`, so that no input creates new series.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ravebot.agents.model import DEAD_LETTERS, TurnState
from ravebot.sandboxes.decide import Do
from ravebot.sandboxes.model import KEPT, EndReason, SandboxState, Stage
from ravebot.store.targets import TARGETS, Target

CONTENT_TYPE = CONTENT_TYPE_LATEST

WEBHOOK_RESULTS = ("accepted", "duplicate", "ignored", "forged", "malformed", "too_large", "unavailable")
ALERT_ANSWERS = ("accepted", "forged", "malformed", "too_large", "unavailable")
ALERT_RESULTS = ("new", "again", "repeated", "resolved", "late", "left out", "malformed")
CI_RESULTS = ("answered", "refused", "unavailable")
SYNC_RESULTS = ("ok", "failed", "refused")
SERVICES = ("ssh", "web")
MODEL_RESULTS = ("answered", "refused", "failed")
DELIVERY_RESULTS = ("delivered", "retried", "given up")
PROVIDER_CALLS = ("list", *Do)
"""Calls to the provider: the listing, and the actions of the decision table."""
START_STEPS = ("boot", *Stage)
"""Steps of a start: `boot` until the guest agent answers, then the stages."""

_STAGE_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
_PASS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_LIFE_SECONDS = (60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)


def _one_of(known: tuple[str, ...], value: str) -> str:
    return value if value in known else "other"


class Metrics:
    """One process's metrics, in a registry of their own."""

    def __init__(self, targets: Iterable[Target] = TARGETS) -> None:
        self.registry = registry = CollectorRegistry()
        self._targets = tuple(target.name for target in targets)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ravebot_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"ravebot_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"ravebot_{name}", text, labels, buckets=buckets, registry=registry)

        self._requested = counter("sandboxes_requested", "Sandboxes that were requested.")
        self._became_ready = counter("sandboxes_ready", "Sandboxes that became ready.")
        self._ended = counter("sandboxes_ended", "Sandboxes that ended, by reason.", "reason")
        self._lived = histogram("sandbox_lifetime_seconds", "Time from ready to end.", _LIFE_SECONDS)
        self._until_ready = histogram("sandbox_start_seconds", "Time from request to ready.", _STAGE_SECONDS)
        self._stages = histogram("stage_seconds", "How long each step of a start took.", _STAGE_SECONDS, "stage", "ok")
        self._sandboxes = gauge("sandboxes", "Sandboxes by state.", "state")
        self._memory = gauge("host_memory_available_bytes", "Memory that is available on the host.")
        self._disk = gauge("host_disk_free_bytes", "Free space in the storage pool.")
        self._promised = gauge("host_disk_promised_bytes", "Space by which machines' disks may still grow.")
        self._pending = gauge("outbox_pending", "Messages not yet delivered.", "target")
        self._oldest = gauge("outbox_oldest_seconds", "Age of the oldest message not yet delivered.", "target")
        self._deliveries = counter("outbox_deliveries", "Attempts to deliver, by result.", "target", "result")
        self._turns = gauge("agent_turns", "Messages to agents by state, of those that are not answered.", "state")
        self._unanswered = gauge("agent_waiting_seconds", "Age of the oldest message that no agent was given.")
        self._model_requests = counter("model_requests", "Requests of agents to models, by result.", "result")
        self._model_tokens = counter("model_tokens", "Tokens of models that agents used, or that stay reserved.")
        self._model_seconds = histogram("model_seconds", "Duration of requests of agents to models.", _STAGE_SECONDS)
        self._webhooks = counter("webhooks", "Webhooks received, by result.", "result")
        self._webhook_seconds = histogram("webhook_seconds", "Time to answer a webhook.", _REQUEST_SECONDS)
        self._alert_requests = counter("alert_requests", "Requests of Alertmanager, by result.", "result")
        self._alerts = counter("alerts_received", "Alerts received from Alertmanager, by what they meant.", "result")
        self._ci = counter("ci_requests", "Requests of CI jobs.", "result")
        self._syncs = counter("matrix_syncs", "Matrix syncs, by result.", "result")
        self._polls = counter("gitlab_polls", "Polls for changes that webhooks did not report, by result.", "result")
        self._passes = histogram("pool_pass_seconds", "Duration of one pass of the pool's loop.", _PASS_SECONDS)
        self._provider_errors = counter("provider_errors", "Calls to the provider that failed.", "call")
        self._provider = gauge("provider_connected", "1 while the provider answers.")
        self._repairs = counter("firewall_repairs", "Repairs after the firewall was changed by others.", "flushed")
        self._dropped = counter("connections_dropped", "New connections dropped by the rate limit.", "service")
        self._orphans = counter("orphans_removed", "Removed machines and disks that the database did not know.")
        for unknown in (self._memory, self._disk, self._promised):
            unknown.set(math.nan)  # 0 would raise an alert
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Create the series with value 0: Prometheus sees no increase in a series that begins with its first event."""
        for counter, values in (
            (self._ended, tuple(reason.value for reason in EndReason)),
            (self._model_requests, MODEL_RESULTS),
            (self._webhooks, WEBHOOK_RESULTS),
            (self._alert_requests, ALERT_ANSWERS),
            (self._alerts, ALERT_RESULTS),
            (self._ci, CI_RESULTS),
            (self._syncs, SYNC_RESULTS),
            (self._polls, ("ok", "failed")),
            (self._provider_errors, PROVIDER_CALLS),
            (self._repairs, ("yes", "no")),
            (self._dropped, SERVICES),
        ):
            for value in values:
                counter.labels(value)
        for target, result in product(self._targets, DELIVERY_RESULTS):
            self._deliveries.labels(target, result)

    def sandbox_requested(self) -> None:
        self._requested.inc()

    def sandbox_ready(self, after: timedelta) -> None:
        self._became_ready.inc()
        self._until_ready.observe(after.total_seconds())

    def sandbox_ended(self, reason: EndReason, lived: timedelta | None) -> None:
        """`lived` is the time from ready to end; None when it never was ready."""
        self._ended.labels(reason.value).inc()
        if lived is not None:
            self._lived.observe(lived.total_seconds())

    def stage_done(self, stage: str, ok: bool, seconds: float) -> None:
        """`stage` is one of START_STEPS."""
        self._stages.labels(_one_of(START_STEPS, stage), "yes" if ok else "no").observe(seconds)

    def counted(self, by_status: dict[str, int]) -> None:
        """How many sandboxes are in each state now, or kept; what is not given has none."""
        for status in (*SandboxState, KEPT):
            if status is not SandboxState.ENDED:
                self._sandboxes.labels(str(status)).set(by_status.get(status, 0))

    def capacity_seen(self, memory_available_bytes: int, disk_free_bytes: int, disk_promised_bytes: int) -> None:
        self._memory.set(memory_available_bytes)
        self._disk.set(disk_free_bytes)
        self._promised.set(disk_promised_bytes)

    def outbox_seen(self, target: str, pending: int, oldest: timedelta | None) -> None:
        label = _one_of(self._targets, target)
        self._pending.labels(label).set(pending)
        self._oldest.labels(label).set(oldest.total_seconds() if oldest is not None else 0)

    def agents_seen(self, by_state: Mapping[TurnState, int], oldest: timedelta | None) -> None:
        """How many messages to agents are in each state; `oldest`: age of the oldest one that no agent was given."""
        for state in TurnState:
            if not state.is_over or state in DEAD_LETTERS:
                self._turns.labels(state.value).set(by_state.get(state, 0))
        self._unanswered.set(oldest.total_seconds() if oldest is not None else 0)

    def model_answered(self, result: str, seconds: float, tokens: int) -> None:
        """`result` is one of MODEL_RESULTS; a refused request is one that was not sent."""
        self._model_requests.labels(_one_of(MODEL_RESULTS, result)).inc()
        self._model_tokens.inc(tokens)
        if result != "refused":
            self._model_seconds.observe(seconds)

    def delivery_tried(self, target: str, result: str) -> None:
        """`result` is one of DELIVERY_RESULTS."""
        self._deliveries.labels(_one_of(self._targets, target), _one_of(DELIVERY_RESULTS, result)).inc()

    def webhook_answered(self, result: str, seconds: float) -> None:
        """`result` is one of WEBHOOK_RESULTS."""
        self._webhooks.labels(_one_of(WEBHOOK_RESULTS, result)).inc()
        self._webhook_seconds.observe(seconds)

    def alerts_answered(self, result: str) -> None:
        """A request of Alertmanager got an answer; `result` is one of ALERT_ANSWERS."""
        self._alert_requests.labels(_one_of(ALERT_ANSWERS, result)).inc()

    def alerts_received(self, result: str, count: int) -> None:
        """`result` is one of ALERT_RESULTS."""
        self._alerts.labels(_one_of(ALERT_RESULTS, result)).inc(count)

    def job_answered(self, status: int) -> None:
        """A request of a CI job got an answer with that HTTP status."""
        refused = status in (400, 401, 403, 405, 408, 413, 429)
        self._ci.labels("unavailable" if status >= 500 else "refused" if refused else "answered").inc()

    def synced(self, result: str) -> None:
        """`result` is one of SYNC_RESULTS."""
        self._syncs.labels(_one_of(SYNC_RESULTS, result)).inc()

    def polled(self, ok: bool) -> None:
        self._polls.labels("ok" if ok else "failed").inc()

    def pass_done(self, seconds: float) -> None:
        self._passes.observe(seconds)

    def provider_failed(self, call: str) -> None:
        """`call` is one of PROVIDER_CALLS."""
        self._provider_errors.labels(_one_of(PROVIDER_CALLS, call)).inc()

    def provider_seen(self, connected: bool) -> None:
        self._provider.set(1 if connected else 0)

    def firewall_repaired(self, flushed: bool) -> None:
        self._repairs.labels("yes" if flushed else "no").inc()

    def connections_dropped(self, service: str, count: int) -> None:
        """`service` is one of SERVICES."""
        self._dropped.labels(_one_of(SERVICES, service)).inc(count)

    def orphan_removed(self) -> None:
        self._orphans.inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format, to be served as CONTENT_TYPE."""
        return generate_latest(self.registry)
