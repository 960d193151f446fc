"""Metrics for Prometheus; methods are named after what happened.

Every label has a small fixed set of values; any other value becomes `other`, so that no input creates new series.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import product

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ravebot.agents.model import DEAD_LETTERS, TurnState
from ravebot.sandboxes.model import KEPT, EndReason, SandboxState
from ravebot.store.figures import RunningMachine
from ravebot.store.targets import TARGETS, Target
from ravebot.web.metrics import running
from ravebot.web.metrics.projects import OTHER, ProjectPlaces
from ravebot.web.metrics.series import (
    ALERT_ANSWERS,
    ALERT_RESULTS,
    BUDGETS,
    DATABASE_FILES,
    DELIVERY_RESULTS,
    MODEL_RESULTS,
    ORPHANS,
    PROVIDER_CALLS,
    SERVICES,
    SOURCES,
    START_STEPS,
    SYNC_RESULTS,
    WEBHOOK_RESULTS,
    Series,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
MOST_PROJECTS = 50
_TURN_STATES = tuple(state.value for state in TurnState)


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
    renamed keeps its place, and one that is gone gives it up (`projects_served`).
    """

    def __init__(self, targets: Iterable[Target] = TARGETS, projects: int = MOST_PROJECTS) -> None:
        self._targets = tuple(target.name for target in targets)
        self._series = Series(self._targets)
        self.registry = self._series.registry
        self.labels = {**dict.fromkeys(running.NAMES, running.LABELS), **self._series.labels}
        """Those of each of our metrics, by its name."""
        self._projects = ProjectPlaces(projects)
        self._turns_ended: Mapping[str, int] | None = None  # at the last look
        self._running = running.written(())

    def sandbox_requested(self) -> None:
        self._series.requested.inc()

    def limits_known(self, sandboxes: int, ssh_ports: int, web_ports: int) -> None:
        """How many there can be."""
        self._series.limit.set(sandboxes)
        for service, count in zip(SERVICES, (ssh_ports, web_ports), strict=True):
            self._series.ports.labels(service).set(count)

    def sandbox_started(self, after: timedelta) -> None:
        """It got its first machine."""
        self._series.queue_wait.observe(_length(after))

    def sandbox_ready(self, project: str, after: timedelta) -> None:
        self._series.became_ready.inc()
        self._series.until_ready.observe(_length(after))
        self._series.project_ready.labels(self._project(project)).inc()

    def sandbox_ended(self, project: str, reason: EndReason, lived: timedelta | None) -> None:
        """`lived` is the time from ready to end; None when it never was ready."""
        self._series.ended.labels(reason.value).inc()
        if reason in (EndReason.FAILED, EndReason.LOST):
            self._series.project_failed.labels(self._project(project)).inc()
        if lived is not None:
            self._series.lived.observe(_length(lived))

    def stage_done(self, stage: str, ok: bool, seconds: float) -> None:
        """`stage` is one of START_STEPS."""
        self._series.stages.labels(_one_of(START_STEPS, stage), "yes" if ok else "no").observe(seconds)

    def counted(self, by_status: dict[str, int]) -> None:
        """How many sandboxes are in each state now, or kept; what is not given has none."""
        for status in (*SandboxState, KEPT):
            if status is not SandboxState.ENDED:
                self._series.sandboxes.labels(str(status)).set(by_status.get(status, 0))

    def capacity_seen(self, memory_available_bytes: int, disk_free_bytes: int, disk_promised_bytes: int) -> None:
        self._series.memory.set(memory_available_bytes)
        self._series.disk.set(disk_free_bytes)
        self._series.promised.set(disk_promised_bytes)

    def machine_used(self, project: str, cpu_seconds: float, received_bytes: int, sent_bytes: int) -> None:
        """What one of the project's machines used since it was looked at last."""
        label = self._project(project)
        self._series.project_cpu.labels(label).inc(cpu_seconds)
        self._series.project_received.labels(label).inc(received_bytes)
        self._series.project_sent.labels(label).inc(sent_bytes)

    def running_seen(
        self, machines: Sequence[RunningMachine], ssh_ports: int, web_ports: int, written: bytes | None = None
    ) -> None:
        """The machines of all sandboxes, and how many ports they have. `written`: their series, if another thread wrote
        them already (`running.written`)."""
        for service, used in zip(SERVICES, (ssh_ports, web_ports), strict=True):
            self._series.ports_used.labels(service).set(used)
        count, memory, disk = Tally[str](), Tally[str](), Tally[str]()
        for one in machines:
            label = self._project(one.project)
            count[label] += 1
            memory[label] += one.memory_used_bytes
            disk[label] += one.disk_used_bytes
        self._projects.busy = frozenset(count)
        for label in self._projects.labels:
            for gauge, seen in (
                (self._series.project_sandboxes, count),
                (self._series.project_memory, memory),
                (self._series.project_disk, disk),
            ):
                gauge.labels(label).set(seen[label])
        self._running = running.written(machines) if written is None else written

    def queue_seen(self, oldest: timedelta | None) -> None:
        """How long the oldest sandbox in the queue has waited; None: none waits."""
        self._series.queue_oldest.set(oldest.total_seconds() if oldest is not None else 0)

    def inbox_seen(self, source: str, pending: int, oldest: timedelta | None) -> None:
        """`source` is one of SOURCES."""
        label = _one_of(SOURCES, source)
        self._series.requests.labels(label).set(pending)
        self._series.oldest_request.labels(label).set(oldest.total_seconds() if oldest is not None else 0)

    def outbox_seen(self, target: str, pending: int, oldest: timedelta | None) -> None:
        label = _one_of(self._targets, target)
        self._series.pending.labels(label).set(pending)
        self._series.oldest.labels(label).set(oldest.total_seconds() if oldest is not None else 0)

    def agents_seen(self, by_state: Mapping[TurnState, int], oldest: timedelta | None) -> None:
        """How many messages to agents are in each state; `oldest`: age of the oldest one to be given."""
        for state in TurnState:
            if not state.is_over or state in DEAD_LETTERS:
                self._series.turns.labels(state.value).set(by_state.get(state, 0))
        self._series.unanswered.set(oldest.total_seconds() if oldest is not None else 0)

    def turns_seen(self, ended: Mapping[str, int]) -> None:
        """How many turns of agents ever ended in each state: what came since the last look is added."""
        before = ended if self._turns_ended is None else self._turns_ended
        for state, count in ended.items():
            self._series.ended_turns.labels(_one_of(_TURN_STATES, state)).inc(max(0, count - before.get(state, 0)))
        self._turns_ended = ended

    def worked_seen(self, agent: str, seconds: float) -> None:
        """`agent` is one of the configuration; the day is UTC's."""
        self._series.worked.labels(agent).set(seconds)

    def budget_seen(self, agent: str, of: str, ratio: float) -> None:
        """`agent` is one of the configuration, `of` one of BUDGETS."""
        self._series.budgets.labels(agent, _one_of(BUDGETS, of)).set(ratio)

    def lagged(self, seconds: float) -> None:
        self._series.lag.set(seconds)

    def database_seen(self, file: str, size: int) -> None:
        """`file` is one of DATABASE_FILES."""
        self._series.database.labels(_one_of(DATABASE_FILES, file)).set(size)

    def gitlab_answered(self, status: int | None, seconds: float) -> None:
        """With that HTTP status; None: it did not answer."""
        self._series.gitlab.labels(request_result(status)).inc()
        if status is not None:
            self._series.gitlab_seconds.observe(seconds)

    def matrix_answered(self, status: int | None) -> None:
        """With that HTTP status; None: the homeserver did not answer."""
        self._series.matrix.labels(request_result(status)).inc()

    def api_answered(self, status: int) -> None:
        """We answered a request to the API or to MCP with that HTTP status."""
        self._series.api.labels(request_result(status)).inc()

    def model_answered(self, result: str, seconds: float, tokens: int) -> None:
        """`result` is one of MODEL_RESULTS; a refused request is one that was not sent."""
        self._series.model_requests.labels(_one_of(MODEL_RESULTS, result)).inc()
        self._series.model_tokens.inc(tokens)
        if result != "refused":
            self._series.model_seconds.observe(seconds)

    def delivery_tried(self, target: str, result: str) -> None:
        """`result` is one of DELIVERY_RESULTS."""
        self._series.deliveries.labels(_one_of(self._targets, target), _one_of(DELIVERY_RESULTS, result)).inc()

    def webhook_answered(self, result: str, seconds: float) -> None:
        """`result` is one of WEBHOOK_RESULTS."""
        self._series.webhooks.labels(_one_of(WEBHOOK_RESULTS, result)).inc()
        self._series.webhook_seconds.observe(seconds)

    def alerts_answered(self, result: str) -> None:
        """A request of Alertmanager got an answer; `result` is one of ALERT_ANSWERS."""
        self._series.alert_requests.labels(_one_of(ALERT_ANSWERS, result)).inc()

    def alerts_received(self, result: str, count: int) -> None:
        """`result` is one of ALERT_RESULTS."""
        self._series.alerts.labels(_one_of(ALERT_RESULTS, result)).inc(count)

    def job_answered(self, status: int) -> None:
        """A request of a CI job got an answer with that HTTP status."""
        refused = status in (400, 401, 403, 405, 408, 413, 429)
        self._series.ci.labels("unavailable" if status >= 500 else "refused" if refused else "answered").inc()

    def synced(self, result: str) -> None:
        """`result` is one of SYNC_RESULTS."""
        self._series.syncs.labels(_one_of(SYNC_RESULTS, result)).inc()

    def polled(self, ok: bool) -> None:
        self._series.polls.labels("ok" if ok else "failed").inc()

    def pass_done(self, seconds: float) -> None:
        self._series.passes.observe(seconds)

    def provider_failed(self, call: str) -> None:
        """`call` is one of PROVIDER_CALLS."""
        self._series.provider_errors.labels(_one_of(PROVIDER_CALLS, call)).inc()

    def provider_seen(self, connected: bool) -> None:
        self._series.provider.set(1 if connected else 0)

    def firewall_repaired(self, flushed: bool) -> None:
        self._series.repairs.labels("yes" if flushed else "no").inc()

    def connected(self, service: str, count: int, dropped: int) -> None:
        """New connections, and others that were over the limit; `service` is one of SERVICES."""
        label = _one_of(SERVICES, service)
        self._series.connections.labels(label).inc(count)
        self._series.dropped.labels(label).inc(dropped)

    def attempted(self, service: str, passed: int, refused: int) -> None:
        """New connections, whether or not a guest answers: passed on to it, and refused; `service`: one of SERVICES."""
        label = _one_of(SERVICES, service)
        self._series.attempts.labels(label).inc(passed)
        self._series.refused.labels(label).inc(refused)

    def first_access(self, service: str, after: timedelta) -> None:
        """Somebody connected to a sandbox's service for the first time, that long after it was ready."""
        self._series.first_access.labels(_one_of(SERVICES, service)).observe(_length(after))

    def machine_forced(self) -> None:
        self._series.forced.inc()

    def orphan_removed(self, kind: str) -> None:
        """`kind` is one of ORPHANS."""
        self._series.orphans.labels(_one_of(ORPHANS, kind)).inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format, to be served as CONTENT_TYPE. Asks nobody."""
        return generate_latest(self.registry) + self._running

    def projects_served(self, served: Iterable[tuple[int, str]]) -> None:
        """Ids and paths of all projects that ravebot serves now; none: they are not known yet."""
        given_up = self._projects.served(served)
        for label, metric in product(given_up, self._series.of_projects()):
            with suppress(KeyError):
                metric.remove(label)
        for label, metric in product(self._projects.labels if given_up else (), self._series.of_projects()):
            metric.labels(label)  # of what was renamed, at 0

    def _project(self, path: str) -> str:
        label, is_new = self._projects.label(path)
        if is_new:
            for metric in self._series.of_projects():
                metric.labels(label)  # at 0, as Series begins the others
        return label
