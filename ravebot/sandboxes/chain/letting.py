"""Who may log in to a machine: lets exactly the keys of a merge request's people in, and ends the sessions of others.

The guest is told first, then its open sessions are ended, and only then is it recorded: after a crash all of it is done
again, which changes nothing. Lost keys stay recorded until their sessions were ended.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from ravebot.clock import Clock, age
from ravebot.config.model import Config
from ravebot.errors import Forbidden, GuestError, NotFound, ProviderError, Unavailable
from ravebot.providers.base import Provider
from ravebot.sandboxes.edges import CodeHost
from ravebot.sandboxes.journal import Journal
from ravebot.sandboxes.machine_life import sandbox_on
from ravebot.sandboxes.model import EventKind, Machine, MachineId, MachineState, MergeRequest, Person
from ravebot.sshkeys import fingerprint
from ravebot.store import granted_keys, machines, merge_requests
from ravebot.store.database import Database, Transaction

log = structlog.get_logger()

KEYS_ARE_NEW_FOR = timedelta(seconds=50)
"""How long a person's keys count as known: each person's are asked for at most so often, whatever they work on."""
_FAILED_FOR = timedelta(seconds=30)
_CALL = timedelta(seconds=20)
_MOST_NAMED = 10
_MOST_KNOWN = 1000
_COUNT = re.compile(r"[0-9]{1,4}")

# $@: the fingerprints of keys whose sessions end. The journal says which process let which key in; the newest line of a
# process counts, since their numbers are used again. Strangers can write into a line's end, not into its beginning.
# Sessions are ended by TERM, which sshd passes on to the session's process; what
# that process started otherwise goes on, as after a session that breaks off. Prints how many were ended; nothing where
# no journal tells.
END_SESSIONS = r"""
set -u
command -v journalctl > /dev/null || exit 0
lines=$(journalctl -q -b --no-pager -o short -t sshd -t sshd-session 2> /dev/null) || exit 0
case "$lines" in *"Accepted publickey for "*) ;; *) exit 0 ;; esac
ended=0
let_in=$(printf '%s\n' "$lines" |
  sed -n 's/^[A-Z][a-z][a-z] [0-9 ][0-9] [0-9:]\{8\} [^ ]* sshd[a-z-]*\[\([0-9]*\)\]: \(.*\)$/\1 \2/p' |
  sed -n 's/^\([0-9]* \)Accepted publickey for .* \(SHA256:[A-Za-z0-9+\/]*\)$/\1\2/p' |
  awk '{ key[$1] = $2 } END { for (pid in key) print pid, key[pid] }')
while read -r pid key; do
  for lost in "$@"; do
    [ "$key" = "$lost" ] || continue
    case "$(cat "/proc/$pid/comm" 2> /dev/null)" in sshd*) ;; *) continue ;; esac
    kill -TERM "$pid" 2> /dev/null && ended=$((ended + 1))
  done
done <<END
$let_in
END
echo "$ended"
"""


@dataclass(frozen=True)
class _Asked:
    at: datetime
    keys: tuple[str, ...] = ()
    trouble: Unavailable | Forbidden | None = None


@dataclass(frozen=True)
class PeoplesKeys:
    """The SSH keys of people on GitLab, asked for at most once in a while for each person. In memory only."""

    host: CodeHost
    clock: Clock
    _asked: dict[int, _Asked] = field(default_factory=dict)
    _locks: dict[int, asyncio.Lock] = field(default_factory=dict)

    async def of(self, people: Iterable[Person], *, had: Mapping[str, str] | None = None) -> dict[str, str]:
        """Each key with its owner's name. Raises `Unavailable` and `Forbidden`.

        With `had`, the keys that were let in so far: of whom GitLab does not tell now, or refuses to, these stay, and
        it is not asked again at once.
        """
        each = {person.id: person for person in people}
        found = await asyncio.gather(*(self._keys_or_had(person, had) for person in each.values()))
        return {key: person.username for person, keys in zip(each.values(), found, strict=True) for key in keys}

    async def _keys_or_had(self, person: Person, had: Mapping[str, str] | None) -> tuple[str, ...]:
        try:
            return await self._keys(person.id, patient=had is not None)
        except (Unavailable, Forbidden) as error:
            if had is None:
                raise
            log.debug("a person's keys stay as they are", person=person.username, error=str(error))
            return tuple(key for key, whose in had.items() if whose == person.username)

    def _forget_old(self, now: datetime) -> None:
        for person_id, asked in list(self._asked.items()):
            if not self._is_new(asked, now) and not self._locks[person_id].locked():
                del self._asked[person_id], self._locks[person_id]

    async def _keys(self, person_id: int, patient: bool) -> tuple[str, ...]:
        async with self._locks.setdefault(person_id, asyncio.Lock()):
            known, now = self._asked.get(person_id), self.clock.now()
            if known is None or not self._is_new(known, now) or (known.trouble and not patient):
                try:
                    known = _Asked(now, await self.host.ssh_keys(person_id))
                except NotFound:  # the account was deleted, and its keys with it
                    known = _Asked(now)
                except (Unavailable, Forbidden) as error:
                    if isinstance(error, Forbidden):
                        log.warning("a person's keys are refused", person=person_id, error=str(error))
                    known = _Asked(now, trouble=error)
                self._asked[person_id] = known
                if len(self._asked) > _MOST_KNOWN:
                    self._forget_old(now)
        if known.trouble is not None:
            raise known.trouble
        return known.keys

    def _is_new(self, asked: _Asked, now: datetime) -> bool:
        return age(asked.at, now) < (_FAILED_FOR if asked.trouble else KEYS_ARE_NEW_FOR)


@dataclass(frozen=True)
class LettingIn:
    """Keeps who may log in to a machine true. `own_keys`: public keys of ravebot's own, which every machine lets in."""

    config: Config
    database: Database
    provider: Provider
    journal: Journal
    people: PeoplesKeys
    own_keys: tuple[str, ...] = ()
    _locks: dict[MachineId, asyncio.Lock] = field(default_factory=dict)
    _open: dict[MachineId, frozenset[str]] = field(default_factory=dict)
    """Lost keys that are recorded still, since their sessions were not ended: while GitLab does not tell, they don't
    come back."""

    async def follow(self, machine: Machine, mr: MergeRequest, *, again: bool) -> tuple[str, ...] | None:
        """Let in who is on the merge request now, where others are in or with `again`; returns the keys but our own, or
        None where there was nothing to do.

        Of whom GitLab does not tell now, or refuses to, the same keys stay; who is no longer on the merge request is
        out all the same.
        """
        return await self._set(machine, mr, started=True, again=again)

    async def begin(self, machine: Machine, mr: MergeRequest) -> tuple[str, ...]:
        """Let in who is on the merge request now, for whom GitLab must tell of all; returns the keys but our own.

        Raises `Unavailable` and `Forbidden`.
        """
        return await self._set(machine, mr, started=False, again=True) or ()

    def forget(self, machine: Machine) -> None:
        """It is gone."""
        self._locks.pop(machine.id, None)
        self._open.pop(machine.id, None)

    async def _set(self, machine: Machine, told: MergeRequest, *, started: bool, again: bool) -> tuple[str, ...] | None:
        def look(tx: Transaction) -> tuple[MergeRequest, dict[str, str]]:
            return merge_requests.get(tx, told.ref) or told, granted_keys.of_machine(tx, machine.id)

        async with self._locks.setdefault(machine.id, asyncio.Lock()):  # two would overwrite each other's
            mr, before = await self.database.read(look)  # what the caller knows may be old
            lost = self._open.get(machine.id, frozenset())
            had = {key: whose for key, whose in before.items() if key not in lost}
            keys = await self._wanted(mr, had if started else None)
            if not again and keys == before:
                return None
            await self._let_in(machine, keys, before)
            return tuple(keys)

    async def _wanted(self, mr: MergeRequest, had: Mapping[str, str] | None) -> dict[str, str]:
        """The keys of author, assignees and reviewers, and of the configured agents, each with its owner's name."""
        keys = await self.people.of((mr.author, *mr.people), had=had)
        agents = ((key, agent.name) for agent in self.config.agents for key in agent.ssh_keys)
        return {**keys, **{key: name for key, name in agents if key not in keys}}

    async def _let_in(self, machine: Machine, keys: Mapping[str, str], before: Mapping[str, str]) -> None:
        """Let in exactly these, and ravebot itself; end what others' keys have open, and tell of it."""
        lost = {key: whose for key, whose in before.items() if key not in keys}
        refused: GuestError | ProviderError | None = None
        try:
            await self.provider.authorize_keys(machine.name, self.config.sandbox.user, (*keys, *self.own_keys))
        except (GuestError, ProviderError) as error:
            refused = error
        ended: int | None = 0
        self._open.pop(machine.id, None)
        if lost:  # what is open ends all the same, also when the guest's disk is full
            try:
                ended = await self._end_sessions(machine, lost)
            except (GuestError, ProviderError) as error:
                log.warning("sessions not ended, tried again at the next look", machine=machine.name, error=str(error))
                self._open[machine.id] = frozenset(lost)
                keys, lost = {**lost, **keys}, {}
        if refused:
            raise refused
        if dict(before) == dict(keys):
            return

        def record(tx: Transaction) -> None:
            fresh = machines.get(tx, machine.id)
            if fresh is None or fresh.state is MachineState.GONE:
                return
            granted_keys.save(tx, machine.id, keys)
            sandbox = sandbox_on(tx, fresh)
            if sandbox is None or not before:  # at the start it goes without saying
                return
            gained = {whose for key, whose in keys.items() if key not in before} - set(before.values())
            out = set(lost.values()) - set(keys.values())
            if not gained and not lost:
                return
            data: dict[str, object] = {
                "in": sorted(gained)[:_MOST_NAMED],
                "out": sorted(out)[:_MOST_NAMED],
                "changed": sorted(set(lost.values()) - out)[:_MOST_NAMED],
                "ended": ended,
            }
            self.journal.record(tx, EventKind.ACCESS_CHANGED, sandbox=sandbox, machine_id=machine.id, data=data)

        await self.database.write(record)

    async def _end_sessions(self, machine: Machine, keys: Iterable[str]) -> int | None:
        """How many sessions were ended; None where the image doesn't tell which there are.

        Raises GuestError and ProviderError.
        """
        fingerprints = [found for key in keys if (found := _fingerprint(key))]
        result = await self.provider.run(machine.name, ("sh", "-c", END_SESSIONS, "sh", *fingerprints), timeout=_CALL)
        said = result.output.strip()
        return int(said) if result.exit_code == 0 and _COUNT.fullmatch(said) else None


def _fingerprint(key: str) -> str:
    try:
        return fingerprint(key)
    except ValueError:
        return ""
