"""Gathers what may be shown of a sandbox from the database; `view` says what that is."""

from __future__ import annotations

from dataclasses import dataclass

from ravebot.config.model import Config
from ravebot.sandboxes.model import MergeRequest, MergeRequestRef, Sandbox, SandboxId, SandboxState
from ravebot.sandboxes.pool import plan
from ravebot.sandboxes.settings import SandboxSettings, of_sandbox
from ravebot.sandboxes.telling import words
from ravebot.sandboxes.view import Access, FileNews, HistoryLine, SandboxView, Summary, Trouble
from ravebot.store import (
    environments,
    events,
    machines,
    merge_requests,
    model_uses,
    pipeline_images,
    results,
    sandboxes,
)
from ravebot.store.database import Transaction


@dataclass(frozen=True)
class Views:
    """Builds views inside a transaction."""

    config: Config

    def one(self, tx: Transaction, sandbox_id: SandboxId, *, events: int = 0) -> SandboxView | None:
        """`events`: of how many of its newest events the history is made."""
        sandbox = sandboxes.get(tx, sandbox_id)
        mr = merge_requests.get(tx, sandbox.mr) if sandbox else None
        return self._view(tx, sandbox, mr, events) if sandbox and mr else None

    def latest(self, tx: Transaction, ref: MergeRequestRef, *, events: int = 0) -> SandboxView | None:
        """View of the newest sandbox of a merge request; a queued one comes before the one that is stopping."""
        sandbox = sandboxes.latest(tx, ref)
        return self.one(tx, sandbox.id, events=events) if sandbox else None

    def live(self, tx: Transaction) -> tuple[SandboxView, ...]:
        """Views of all sandboxes that have not ended, oldest first."""
        found = []
        for sandbox in sandboxes.live(tx):
            mr = merge_requests.get(tx, sandbox.mr)
            assert mr
            found.append(self._view(tx, sandbox, mr, 0))
        return tuple(found)

    def _view(self, tx: Transaction, sandbox: Sandbox, mr: MergeRequest, limit: int) -> SandboxView:
        log = events.of_sandbox(tx, sandbox.id, limit) if limit else ()
        shown, place = environments.get(tx, sandbox.mr), None
        if sandbox.state is SandboxState.QUEUED:
            pool = self.config.pool
            position = sandboxes.queue_position(tx, sandbox.id)
            others = sandboxes.with_machine(tx)
            place = plan.place(position, others, pool.max_running, pool.lifetime, tx.now)
        settings = of_sandbox(tx, self.config, sandbox)
        commands, cases = results.newest(tx, sandbox)
        return SandboxView(
            sandbox=sandbox,
            mr=mr,
            now=tx.now,
            access=self._access(tx, sandbox),
            queue_position=place.position if place else None,
            queue_wait=place.wait if place and not sandbox.wait_reason else None,
            queue_reason=sandbox.wait_reason,
            stages=sandboxes.results(tx, sandbox),
            history=tuple(HistoryLine(event.at, text) for event in log if (text := words(event))),
            summary=self._summary(tx, sandbox),
            notice=_notice(sandbox, mr),
            trouble=_trouble(tx, sandbox),
            links=settings.links,
            file=FileNews((*settings.remarks, *self._next_machine(tx, sandbox, settings)), settings.troubles),
            model_tokens=model_uses.used_in(tx, sandbox.id),
            image_job=self._image_job(tx, sandbox) if settings.image_wish else None,
            environment_url=shown.page_url(mr) if shown else None,
            hint=shown.hint if shown else "",
            commands=commands,
            cases=cases,
        )

    def _image_job(self, tx: Transaction, sandbox: Sandbox) -> tuple[str, str] | None:
        """A page of another host is none of the job's."""
        image = pipeline_images.get(tx, sandbox.mr, sandbox.sha)
        if image is None or not image.job_url.startswith(f"{str(self.config.gitlab.url).rstrip('/')}/"):
            return None
        return image.job_name, image.job_url

    def _access(self, tx: Transaction, sandbox: Sandbox) -> Access | None:
        if sandbox.state is not SandboxState.READY:
            return None  # before the announcement, ports may be closed again
        machine = machines.get(tx, sandbox.machine_id)
        if not sandbox.ports_open or machine is None or not sandbox.ssh_port or not sandbox.web_port:
            return None
        return Access(
            host=self.config.sandbox.host,
            user=self.config.sandbox.user,
            ssh_port=sandbox.ssh_port,
            web_port=None if sandbox.is_kept else sandbox.web_port,
            web_scheme=sandbox.web_scheme,
            host_key_alias=machine.name,
            host_keys=machine.host_keys,
        )

    def _next_machine(self, tx: Transaction, sandbox: Sandbox, settings: SandboxSettings) -> tuple[str, ...]:
        machine = machines.get(tx, sandbox.machine_id) if sandbox.state is SandboxState.READY else None
        if machine is None or not settings.differs_from(machine):
            return ()
        if settings.image_wish and (settings.image_waits or settings.image_key != machine.image):
            of = f"the image that the pipeline of `{sandbox.sha[:8]}` builds"
            return (f"this machine runs another image: `/sandbox rebuild` gives one with {of}",)
        rebuild = "`/sandbox rebuild` gives one that has it"
        return (f"another size or image is asked for now than this machine has: {rebuild}",)

    def _summary(self, tx: Transaction, sandbox: Sandbox) -> Summary | None:
        if sandbox.ended_at is None:
            return None
        had = machines.of_sandbox(tx, sandbox.id)
        return Summary(
            lived=sandbox.ended_at - sandbox.ready_at if sandbox.ready_at else None,
            cpu_seconds=sum(machine.cpu_seconds for machine in had),
            memory_peak_bytes=max((machine.memory_peak_bytes for machine in had), default=0),
        )


def _trouble(tx: Transaction, sandbox: Sandbox) -> Trouble | None:
    if sandbox.state not in (SandboxState.STARTING, SandboxState.READY):
        return None
    machine = machines.get(tx, sandbox.machine_id)
    if machine and machine.is_paused and machine.paused_since:
        return Trouble(paused=True, since=machine.paused_since)
    if machine and machine.unhealthy_told and machine.silent_since:
        return Trouble(paused=False, since=machine.silent_since)
    return None


def _notice(sandbox: Sandbox, mr: MergeRequest) -> str:
    if mr.from_fork and mr.approved_sha != mr.head_sha and sandbox.state is not SandboxState.ENDED:
        return f"the fork has a new commit; to let it in, a Developer says `start {mr.head_sha}`"
    return sandbox.notice
