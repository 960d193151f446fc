"""Metrics for Prometheus; methods are named after what happened.

Every label has a small fixed set of values; any other value becomes `other`, so that no input creates new series.
"""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ravebot.agents.model import DEAD_LETTERS, TurnState
from ravebot.sandboxes.decide import Do
from ravebot.sandboxes.model import KEPT, EndReason, SandboxState, Stage
from ravebot.store.figures import RunningMachine
from ravebot.store.targets import TARGETS, Target
from ravebot.web.metrics import running
from ravebot.web.metrics.projects import OTHER, ProjectPlaces

CONTENT_TYPE = CONTENT_TYPE_LATEST
MOST_PROJECTS = 50

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
_TURN_STATES = tuple(state.value for state in TurnState)
_LIFE_SECONDS = (60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)


def _one_of(known: tuple[str, ...], value: str) -> str:
    return value if value in known else OTHER


def request_result(status: int | None) -> str:
    """One of REQUEST_RESULTS, by the HTTP status of the answer; None: there was none."""
    if status == 429:
        return "slow_down"
    return "failed" if status is None or status >= 500 else "refused" if status >= 400 else "ok"


def _length(time: timedelta) -> float:
    """In seconds; none if the clock was set back meanwhile: a histogram's sum must not shrink."""
    return max(0.0, time.total_seconds())


class Metrics:
    """One process's metrics, in a registry of their own.

    At most `projects` projects have series of their own, the first that are seen; the rest is `other`. One that is
    renamed keeps its place, and one that is gone gives it up (`served`).
    """

    def __init__(self, targets: Iterable[Target] = TARGETS, projects: int = MOST_PROJECTS) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter, which says when this process began
        self.registry = registry = CollectorRegistry()
        self._targets = tuple(target.name for target in targets)
        self._projects = ProjectPlaces(projects)
        self._turns_ended: Mapping[str, int] | None = None  # at the last look
        self._running = running.written(())
        self.labels: dict[str, tuple[str, ...]] = dict.fromkeys(running.NAMES, running.LABELS)
        """Those of each of our metrics, by its name."""
        ProcessCollector(registry=registry)

        def named(name: str, *labels: str) -> str:
            self.labels[name] = labels
            return name

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(named(f"ravebot_{name}_total", *labels), text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(named(f"ravebot_{name}", *labels), text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(named(f"ravebot_{name}", *labels), text, labels, buckets=buckets, registry=registry)

        self._requested = counter("sandboxes_requested", "Sandboxes that were requested.")
        self._became_ready = counter("sandboxes_ready", "Sandboxes that became ready.")
        self._ended = counter("sandboxes_ended", "Sandboxes that ended, by reason.", "reason")
        self._limit = gauge("sandboxes_limit", "How many sandboxes run at once at most.")
        self._queue_wait = histogram("queue_wait_seconds", "Time from request to the first machine.", _WAIT_SECONDS)
        self._queue_oldest = gauge("queue_oldest_seconds", "How long the oldest sandbox in the queue has waited.")
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
        self._requests = gauge("inbox_pending", "Requests that are not handled yet.", "source")
        self._oldest_request = gauge("inbox_oldest_seconds", "Age of the oldest request not handled.", "source")
        self._turns = gauge("agent_turns", "Messages to agents by state, of those that are not answered.", "state")
        self._ended_turns = counter("agent_turns_ended", "Messages to agents that are over, by state.", "state")
        self._budgets = gauge("agent_budget_used_ratio", "Part of an agent's budget of today.", "agent", "of")
        self._worked = gauge("agent_worked_today_seconds", "How long an agent worked today.", "agent")
        self._unanswered = gauge("agent_waiting_seconds", "Age of the oldest message that ravebot should have given.")
        self._model_requests = counter("model_requests", "Requests of agents to models, by result.", "result")
        self._model_tokens = counter("model_tokens", "Tokens of models that agents used, or that stay reserved.")
        self._model_seconds = histogram("model_seconds", "Duration of requests of agents to models.", _STAGE_SECONDS)
        self._webhooks = counter("webhooks", "Webhooks received, by result.", "result")
        self._webhook_seconds = histogram("webhook_seconds", "Time to answer a webhook.", _REQUEST_SECONDS)
        self._alert_requests = counter("alert_requests", "Requests of Alertmanager, by result.", "result")
        self._alerts = counter("alerts_received", "Alerts received from Alertmanager, by what they meant.", "result")
        self._ci = counter("ci_requests", "Requests of CI jobs.", "result")
        self._gitlab = counter("gitlab_requests", "Requests to GitLab, by result.", "result")
        self._gitlab_seconds = histogram("gitlab_request_seconds", "Time until GitLab answers.", _REQUEST_SECONDS)
        self._matrix = counter("matrix_requests", "Requests to the homeserver, by result.", "result")
        self._api = counter("api_requests", "Requests to our API and to MCP, by result.", "result")
        self._syncs = counter("matrix_syncs", "Matrix syncs, by result.", "result")
        self._polls = counter("gitlab_polls", "Polls for changes that webhooks did not report, by result.", "result")
        self._passes = histogram("pool_pass_seconds", "Duration of one pass of the pool's loop.", _PASS_SECONDS)
        self._provider_errors = counter("provider_errors", "Calls to the provider that failed.", "call")
        self._provider = gauge("provider_connected", "1 while the provider answers.")
        self._repairs = counter("firewall_repairs", "Repairs after the firewall was changed by others.", "flushed")
        self._connections = counter("connections", "New connections to sandboxes.", "service")
        self._dropped = counter("connections_dropped", "New connections dropped by the rate limit.", "service")
        self._attempts = counter("connection_attempts", "New connections passed on to a guest.", "service")
        self._refused = counter("connections_refused", "New connections from outside of allow_from.", "service")
        self._first_access = histogram(
            "first_access_seconds", "Time from ready to the first connection.", _LIFE_SECONDS, "service"
        )
        self._ports = gauge("ports", "Ports that sandboxes can get.", "service")
        self._ports_used = gauge("ports_used", "Ports that sandboxes have.", "service")
        self._forced = counter("machines_forced", "Machines that were switched off, as they did not shut down.")
        self._orphans = counter("orphans_removed", "Removed things of ours that the database did not know.", "kind")
        self._lag = gauge("event_loop_lag_seconds", "The longest delay of ravebot's own work in the last 10 seconds.")
        self._database = gauge("database_bytes", "Size of the database's files.", "file")
        self._project_sandboxes = gauge("project_sandboxes", "Sandboxes with a machine.", "project")
        self._project_memory = gauge("project_memory_bytes", "Memory that its machines use.", "project")
        self._project_disk = gauge("project_disk_bytes", "Disk that its machines take on the host.", "project")
        self._project_cpu = counter("project_cpu_seconds", "CPU time of its machines.", "project")
        self._project_received = counter("project_received_bytes", "What its guests received.", "project")
        self._project_sent = counter("project_sent_bytes", "What its guests sent.", "project")
        self._project_ready = counter("project_sandboxes_ready", "Its sandboxes that became ready.", "project")
        self._project_failed = counter("project_sandboxes_failed", "Its sandboxes that failed or were lost.", "project")
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
            (self._connections, SERVICES),
            (self._attempts, SERVICES),
            (self._refused, SERVICES),
            (self._gitlab, REQUEST_RESULTS),
            (self._matrix, REQUEST_RESULTS),
            (self._api, REQUEST_RESULTS),
            (self._orphans, ORPHANS),
            (self._ended_turns, tuple(state.value for state in TurnState if state.is_over)),
        ):
            for value in values:
                counter.labels(value)
        for target, result in product(self._targets, DELIVERY_RESULTS):
            self._deliveries.labels(target, result)
        for service in SERVICES:
            self._first_access.labels(service)

    def sandbox_requested(self) -> None:
        self._requested.inc()

    def limits_known(self, sandboxes: int, ssh_ports: int, web_ports: int) -> None:
        """How many there can be."""
        self._limit.set(sandboxes)
        for service, count in zip(SERVICES, (ssh_ports, web_ports), strict=True):
            self._ports.labels(service).set(count)

    def sandbox_started(self, after: timedelta) -> None:
        """It got its first machine."""
        self._queue_wait.observe(_length(after))

    def sandbox_ready(self, project: str, after: timedelta) -> None:
        self._became_ready.inc()
        self._until_ready.observe(_length(after))
        self._project_ready.labels(self._project(project)).inc()

    def sandbox_ended(self, project: str, reason: EndReason, lived: timedelta | None) -> None:
        """`lived` is the time from ready to end; None when it never was ready."""
        self._ended.labels(reason.value).inc()
        if reason in (EndReason.FAILED, EndReason.LOST):
            self._project_failed.labels(self._project(project)).inc()
        if lived is not None:
            self._lived.observe(_length(lived))

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

    def machine_used(self, project: str, cpu_seconds: float, received_bytes: int, sent_bytes: int) -> None:
        """What one of the project's machines used since it was looked at last."""
        label = self._project(project)
        self._project_cpu.labels(label).inc(cpu_seconds)
        self._project_received.labels(label).inc(received_bytes)
        self._project_sent.labels(label).inc(sent_bytes)

    def running_seen(
        self, machines: Sequence[RunningMachine], ssh_ports: int, web_ports: int, written: bytes | None = None
    ) -> None:
        """The machines of all sandboxes, and how many ports they have. `written`: their series, if another thread wrote
        them already (`running.written`)."""
        for service, used in zip(SERVICES, (ssh_ports, web_ports), strict=True):
            self._ports_used.labels(service).set(used)
        count, memory, disk = Tally[str](), Tally[str](), Tally[str]()
        for one in machines:
            label = self._project(one.project)
            count[label] += 1
            memory[label] += one.memory_used_bytes
            disk[label] += one.disk_used_bytes
        self._projects.busy = frozenset(count)
        for label in self._projects.labels:
            for gauge, seen in (
                (self._project_sandboxes, count),
                (self._project_memory, memory),
                (self._project_disk, disk),
            ):
                gauge.labels(label).set(seen[label])
        self._running = running.written(machines) if written is None else written

    def queue_seen(self, oldest: timedelta | None) -> None:
        """How long the oldest sandbox in the queue has waited; None: none waits."""
        self._queue_oldest.set(oldest.total_seconds() if oldest is not None else 0)

    def inbox_seen(self, source: str, pending: int, oldest: timedelta | None) -> None:
        """`source` is one of SOURCES."""
        label = _one_of(SOURCES, source)
        self._requests.labels(label).set(pending)
        self._oldest_request.labels(label).set(oldest.total_seconds() if oldest is not None else 0)

    def outbox_seen(self, target: str, pending: int, oldest: timedelta | None) -> None:
        label = _one_of(self._targets, target)
        self._pending.labels(label).set(pending)
        self._oldest.labels(label).set(oldest.total_seconds() if oldest is not None else 0)

    def agents_seen(self, by_state: Mapping[TurnState, int], oldest: timedelta | None) -> None:
        """How many messages to agents are in each state; `oldest`: age of the oldest one to be given."""
        for state in TurnState:
            if not state.is_over or state in DEAD_LETTERS:
                self._turns.labels(state.value).set(by_state.get(state, 0))
        self._unanswered.set(oldest.total_seconds() if oldest is not None else 0)

    def turns_seen(self, ended: Mapping[str, int]) -> None:
        """How many turns of agents ever ended in each state: what came since the last look is added."""
        before = ended if self._turns_ended is None else self._turns_ended
        for state, count in ended.items():
            self._ended_turns.labels(_one_of(_TURN_STATES, state)).inc(max(0, count - before.get(state, 0)))
        self._turns_ended = ended

    def worked_seen(self, agent: str, seconds: float) -> None:
        """`agent` is one of the configuration; the day is UTC's."""
        self._worked.labels(agent).set(seconds)

    def budget_seen(self, agent: str, of: str, ratio: float) -> None:
        """`agent` is one of the configuration, `of` one of BUDGETS."""
        self._budgets.labels(agent, _one_of(BUDGETS, of)).set(ratio)

    def lagged(self, seconds: float) -> None:
        self._lag.set(seconds)

    def database_seen(self, file: str, size: int) -> None:
        """`file` is one of DATABASE_FILES."""
        self._database.labels(_one_of(DATABASE_FILES, file)).set(size)

    def gitlab_answered(self, status: int | None, seconds: float) -> None:
        """With that HTTP status; None: it did not answer."""
        self._gitlab.labels(request_result(status)).inc()
        if status is not None:
            self._gitlab_seconds.observe(seconds)

    def matrix_answered(self, status: int | None) -> None:
        """With that HTTP status; None: the homeserver did not answer."""
        self._matrix.labels(request_result(status)).inc()

    def api_answered(self, status: int) -> None:
        """We answered a request to the API or to MCP with that HTTP status."""
        self._api.labels(request_result(status)).inc()

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

    def connected(self, service: str, count: int, dropped: int) -> None:
        """New connections, and others that were over the limit; `service` is one of SERVICES."""
        label = _one_of(SERVICES, service)
        self._connections.labels(label).inc(count)
        self._dropped.labels(label).inc(dropped)

    def attempted(self, service: str, passed: int, refused: int) -> None:
        """New connections, whether or not a guest answers: passed on to it, and refused; `service`: one of SERVICES."""
        label = _one_of(SERVICES, service)
        self._attempts.labels(label).inc(passed)
        self._refused.labels(label).inc(refused)

    def first_access(self, service: str, after: timedelta) -> None:
        """Somebody connected to a sandbox's service for the first time, that long after it was ready."""
        self._first_access.labels(_one_of(SERVICES, service)).observe(_length(after))

    def machine_forced(self) -> None:
        self._forced.inc()

    def orphan_removed(self, kind: str) -> None:
        """`kind` is one of ORPHANS."""
        self._orphans.labels(_one_of(ORPHANS, kind)).inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format, to be served as CONTENT_TYPE. Asks nobody."""
        return generate_latest(self.registry) + self._running

    def projects_served(self, served: Iterable[tuple[int, str]]) -> None:
        """Ids and paths of all projects that ravebot serves now; none: they are not known yet."""
        given_up = self._projects.served(served)
        for label, metric in product(given_up, self._of_projects()):
            with suppress(KeyError):
                metric.remove(label)
        for label, metric in product(self._projects.labels if given_up else (), self._of_projects()):
            metric.labels(label)  # of what was renamed, at 0

    def _project(self, path: str) -> str:
        label, is_new = self._projects.label(path)
        if is_new:
            for metric in self._of_projects():
                metric.labels(label)  # at 0, as in _begin_at_zero
        return label

    def _of_projects(self) -> tuple[Counter | Gauge, ...]:
        return (
            self._project_ready, self._project_failed, self._project_cpu, self._project_received, self._project_sent,
            self._project_sandboxes, self._project_memory, self._project_disk,
        )  # fmt: skip
