"""Answers the requests of the shell to the running bot, from the database and the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ravebot.commands import refs
from ravebot.commands.execute import CANNOT, execute
from ravebot.commands.people import People
from ravebot.commands.permissions import SHELL, Asker
from ravebot.commands.verbs import VERBS, Door, Mistake, Show, Verb, at, parse
from ravebot.config.model import Config
from ravebot.errors import NotFound
from ravebot.operations.audit import export
from ravebot.operations.audit import report as audit
from ravebot.operations.cleanup import Cleaner, Wish, find_strangers
from ravebot.operations.reports import (
    AuditQuery,
    AuditReport,
    CleanupReport,
    ExportPiece,
    ExportPlace,
    LogsReport,
    SandboxLine,
    Strangers,
    UsageLines,
    UsageQuery,
)
from ravebot.operations.sandboxlogs.find import find as find_logs
from ravebot.operations.usage import report as usage
from ravebot.parts import Core
from ravebot.providers.base import Provider
from ravebot.sandboxes.intents import Outcome
from ravebot.sandboxes.model import Actor, SandboxState
from ravebot.sandboxes.view import SandboxView
from ravebot.store import machines, stale_notes
from ravebot.store.database import Database, Transaction


@dataclass(frozen=True)
class Operator:
    """Implements `operations.reports.Operations`."""

    config: Config
    database: Database
    core: Core
    provider: Provider
    people: People
    verbs: Sequence[Verb] = VERBS

    async def command(self, verb: str, words: tuple[str, ...], actor: Actor) -> Outcome | tuple[SandboxLine, ...]:
        """Run a command of the verb table; returns its outcome, or the sandboxes that it lists."""
        command = parse(verb, words, at(Door.SHELL, self.verbs), refs.read_full)
        if isinstance(command, Mistake):
            return Outcome(False, command.why or "There is no such command: is the running bot of another version?")
        if command.verb.does is Show.LIVE:
            return await self._live()
        if command.ref is None:
            return Outcome(False, CANNOT)
        known = await self.people.known(command.ref)
        if known is None:
            return Outcome(False, refs.unknown(command.ref))
        try:
            target = await self.people.head(command.verb, known.ref) or known
        except NotFound:
            return Outcome(False, refs.missing(command.ref))
        asker = Asker(actor, SHELL)
        return await self.database.write(lambda tx: execute(self.core.intents, tx, command, asker, target))

    async def cleanup(
        self, *, older_than: timedelta | None, everything: bool, force: bool, adopt: bool, actor: Actor
    ) -> CleanupReport:
        """End sandboxes older than that, or all; remove leftovers."""
        cleaner = Cleaner(self.database, self.core, self.provider)
        patience = self.config.pool.shutdown_grace + timedelta(seconds=30)
        return await cleaner.beside_bot(Wish(older_than, everything, force, adopt, actor), patience)

    async def strangers(self) -> Strangers:
        """What a cleanup with `adopt` would end and remove."""
        return await find_strangers(self.database, self.provider)

    async def replace_instance(self, instance_id: str) -> None:
        """Record that this instance replaces that one, so that the other one's status notes are corrected."""
        await self.database.write(lambda tx: stale_notes.expect(tx, instance_id))

    async def audit(self, asked: AuditQuery) -> AuditReport:
        """The newest of those events; `verify` checks the whole log's hashes."""
        return await audit.read(self.database, asked)

    async def export(self, asked: AuditQuery, place: ExportPlace | None) -> ExportPiece:
        """The next piece of an export of those events; the first without a place."""
        return await export.piece(self.database, asked, place)

    async def logs(self, ref: str) -> LogsReport:
        """Where the logs of a merge request's sandbox are, and what set-up and tests printed."""
        return await self.database.read(lambda tx: find_logs(tx, ref))

    async def usage(self, asked: UsageQuery) -> UsageLines:
        """What was used, by group."""
        return await self.database.read(lambda tx: usage.report(tx, asked))

    async def _live(self) -> tuple[SandboxLine, ...]:
        """Every sandbox that has not ended; those in the queue last, in its order."""

        def gather(tx: Transaction) -> tuple[SandboxLine, ...]:
            views = self.core.views.live(tx)
            ordered = sorted(views, key=lambda view: view.sandbox.state is SandboxState.QUEUED)
            return tuple([_line(tx, view) for view in ordered])

        return await self.database.read(gather)


def _line(tx: Transaction, view: SandboxView) -> SandboxLine:
    sandbox = view.sandbox
    machine = machines.get(tx, sandbox.machine_id)
    return SandboxLine(
        ref=view.mr.full_ref,
        title=view.mr.title,
        state=sandbox.status,
        stage=sandbox.stage.value if sandbox.stage else "",
        queue_position=view.queue_position,
        owner=view.mr.author.username,
        sha=sandbox.sha,
        machine=machine.name if machine else "",
        ssh_command=view.access.ssh_command if view.access else "",
        web_url=(view.access.web_url or "") if view.access else "",
        created_at=sandbox.created_at,
        ready_at=sandbox.ready_at,
        expires_at=sandbox.expires_at,
        trouble=view.trouble.words if view.trouble else "",
        model_tokens=view.model_tokens,
    )
