"""How much agents may be asked: what stops agents that talk to each other, and the daily budgets. Pure.

`store.agent_figures` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from ravebot.agents.model import AGENT, AgentMessage
from ravebot.config.model import Config
from ravebot.sandboxes.model import Actor

MOST_HOPS = 4
MOST_IN_A_ROW = 30
"""Messages of agents in a thread until a person speaks."""
MOST_A_MINUTE = 20
"""Messages of one agent to another one."""
SAME_TEXTS = 3
PAIR_WITHIN = timedelta(minutes=1)


class TalkGuard(StrEnum):
    """What pauses a thread in which agents talk to each other, in words for people; kept as `Conversation.paused`."""

    HOPS = f"agents passed a message on more than {MOST_HOPS} times"
    IN_A_ROW = f"agents wrote {MOST_IN_A_ROW} messages to each other since a person spoke"
    PAIR = f"an agent wrote more than {MOST_A_MINUTE} messages to another one within a minute"
    SAME = f"agents wrote the same text {SAME_TEXTS} times in a row"


GUARDS = frozenset(guard.value for guard in TalkGuard)


@dataclass(frozen=True)
class TalkBefore:
    """What comes before a message of an agent to another one. `texts`: the messages of agents in the thread since a
    person spoke, the newest first, at most `MOST_IN_A_ROW`; `of_pair`: those of the two, anywhere, in a minute."""

    texts: tuple[str, ...] = ()
    of_pair: int = 0


def talk(newest: Sequence[AgentMessage], of_pair: int) -> TalkBefore:
    """From the newest messages of a thread, the newest first."""
    texts = []
    for message in newest:
        if message.author.kind != AGENT:
            break
        texts.append(message.text)
    return TalkBefore(tuple(texts), of_pair)


def guard_against(before: TalkBefore, text: str, hops: int) -> TalkGuard | None:
    """Why the thread is paused instead of passing on one more message of an agent; None: it may be passed on."""
    if hops > MOST_HOPS:
        return TalkGuard.HOPS
    in_a_row = [text, *before.texts[: SAME_TEXTS - 1]]
    if len(in_a_row) == SAME_TEXTS and len({_gist(one) for one in in_a_row}) == 1:
        return TalkGuard.SAME
    if len(before.texts) >= MOST_IN_A_ROW:
        return TalkGuard.IN_A_ROW
    if before.of_pair >= MOST_A_MINUTE:
        return TalkGuard.PAIR
    return None


def _gist(text: str) -> str:
    return " ".join(text.split()).casefold()


@dataclass(frozen=True)
class Spent:
    """What was used on a UTC day: messages given to agents, of how many, and the seconds that agents worked.

    `most_tokens`: 0 where no model is used through ravebot.
    """

    day: str
    messages: int
    most: int
    seconds: float = 0.0
    tokens: int = 0
    most_tokens: int = 0

    @property
    def left(self) -> int:
        return max(0, self.most - self.messages)


def day_of(now: datetime) -> str:
    """The UTC day, by which budgets are counted: one that a clock jumped to has figures of its own."""
    return f"{now.astimezone(UTC):%Y-%m-%d}"


def bounds_of(day: str) -> tuple[datetime, datetime]:
    """When the day begins and ends."""
    begins = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    return begins, begins + timedelta(days=1)


def worked(given: datetime, until: datetime, day: str) -> timedelta:
    """How much of a turn lies in that day; nothing where the clock was set back in between."""
    begins, ends = bounds_of(day)
    return max(timedelta(0), min(until, ends) - max(given, begins))


def person_of(config: Config, who: Actor) -> Actor:
    """One person for the budget, whether they speak in Matrix or on GitLab."""
    username = config.matrix.users.get(who.name) if who.kind == "matrix" else None
    return Actor("gitlab", username) if username else who


def over_budget(name: str, agent: Spent, person: Spent) -> str:
    """Why no more messages are taken today; empty: they are."""
    until = "From 00:00 UTC on there are new ones."
    if not agent.left:
        return f"{name} has had its {agent.most} messages of today (agents[].limits.messages_per_day). {until}"
    if not person.left:
        return f"The {person.most} messages a person and day are used up (budgets.person.messages_per_day). {until}"
    return ""
