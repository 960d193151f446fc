"""The verbs: one table for all doors, from which parsing, usage, help and permissions come."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING

from ravebot.commands import refs
from ravebot.commands.permissions import Right
from ravebot.commands.refs import Ref
from ravebot.config.values import parse_duration

if TYPE_CHECKING:  # the shell reads the table too, and starts faster without the domain
    from ravebot.sandboxes.intents import Intents, Outcome
    from ravebot.sandboxes.model import Actor, MergeRequest
    from ravebot.store.database import Transaction

    Act = Callable[[Intents, Transaction, MergeRequest, Actor, "Command"], Outcome]
    """Carries a command out, inside the caller's transaction."""

TOO_MUCH = "There is something after it that does not belong there."
_COMMIT = re.compile(r"[0-9a-f]{8,64}")
_NUMBER = re.compile(r"#?([1-9][0-9]{0,17})", re.ASCII)
_LONGEST_NAME = 50


class Door(Enum):
    """A way in for people."""

    ROOM = auto()
    COMMENT = auto()
    SHELL = auto()


class Takes(Enum):
    """What is typed after a verb, as its usage shows it; what is in brackets may be left out."""

    REF = "REF"
    DURATION = "[1h]"
    SHA = "[SHA]"
    VERB = "[VERB]"
    AGENT = "[AGENT]"
    ANY_REF = "[REF]"
    ID = "ID"
    TEXT = "TEXT"
    TOKEN = "[revoke ID]"  # noqa: S105 - no token


class Show(Enum):
    """What the verbs that change nothing show; each door renders it in its own way."""

    HELP = auto()
    WHOAMI = auto()
    LIVE = auto()  # the sandboxes that have not ended
    QUEUE = auto()
    CARD = auto()
    WHY = auto()
    LOGS = auto()
    AGENTS = auto()  # who can be spoken to here, and their conversations
    BUDGET = auto()
    DIFF = auto()
    TOKENS = auto()  # one's own, and ends one


class AgentAct(Enum):
    """What the verbs for conversations with agents do; `intake.conversations` carries them out."""

    ASK = auto()
    STEER = auto()
    CANCEL = auto()
    RESEND = auto()
    APPROVE = auto()
    DENY = auto()


class Group(Enum):
    """What people want to do with a verb: the headings of the help, in their order."""

    LOOK = "Get in and look"
    KEEP = "Keep or end it"
    MEND = "When it does not work"
    AGENTS = "Agents and approvals"
    ME = "Who am I, and more"


@dataclass(frozen=True)
class Verb:
    """One row of the table. `doors`: where the verb is available, each with the purpose for that door's help.

    `then`: what happens when it is typed, in sentences, for the help on this verb.
    """

    name: str
    does: Act | Show | AgentAct
    group: Group
    doors: Mapping[Door, str]
    then: str
    takes: tuple[Takes, ...] = (Takes.REF,)
    right: Right = Right.COMMAND
    needs_head: bool = False
    """Whether the merge request's present state at GitLab is required."""

    @property
    def takes_text(self) -> bool:
        """Whether all that follows is one text, of many lines; `words` of `parse` is that text alone."""
        return Takes.TEXT in self.takes

    def usage(self, door: Door, prefix: str) -> str:
        """How it is typed at a door."""
        return self.typed(door, prefix, {one: one.value for one in Takes})

    def typed(self, door: Door, prefix: str, words: Mapping[Takes, str]) -> str:
        """The verb with these words; a comment needs no reference, because it belongs to a merge request."""
        taken = [words[one] for one in self.takes if words.get(one) and not (one is Takes.REF and door is Door.COMMENT)]
        return " ".join((prefix, self.name, *taken))


@dataclass(frozen=True)
class Command:
    """A parsed command. It may be forbidden, and `ref` may not exist."""

    verb: Verb
    ref: Ref | None = None
    duration: timedelta | None = None
    sha: str | None = None
    about: Verb | None = None
    agent: str = ""
    number: int | None = None
    text: str = ""  # as typed: of `ask` and `steer`, with the agent and the merge request before it


@dataclass(frozen=True)
class Mistake:
    """A command that could not be parsed.

    `why` says what is wrong with what follows `verb`; without it, `verb` is the most similar verb.
    """

    verb: Verb | None
    why: str = ""


_ROOM, _COMMENT, _SHELL = Door
_REF, _DURATION, _SHA, _VERB, _AGENT, _ANY_REF, _ID, _TEXT, _TOKEN = Takes
_LOOK, _KEEP, _MEND, _AGENTS, _ME = Group

# fmt: off
VERBS: tuple[Verb, ...] = (
    Verb("list", Show.LIVE, _LOOK,
         {_ROOM: "show this room's sandboxes",
          _SHELL: "Show every sandbox that is running or queued, and how to get in."},
         "Each sandbox has a line: its state, until when it stays, and whose it is.",
         takes=(), right=Right.READ),
    Verb("show", Show.CARD, _LOOK,
         {_ROOM: "show how to get in, its state and what happened"},
         "Everything about the sandbox is shown once more, with all details."),
    Verb("queue", Show.QUEUE, _LOOK,
         {_ROOM: "show who waits for a sandbox"},
         "The next one comes first. When its turn comes is an estimate: a place may become free earlier.",
         takes=()),
    Verb("start", lambda do, tx, mr, by, command: do.start(tx, mr, by, command.sha), _KEEP,
         dict.fromkeys((_ROOM, _COMMENT), "start a sandbox; with SHA, let a fork's commit in"),
         "A machine boots, the code is copied in, set up and tested, and you are told when it is ready."
         " A fork's code needs the whole SHA of its head, which lets in exactly that commit.",
         takes=(_REF, _SHA), needs_head=True),
    Verb("extend", lambda do, tx, mr, by, command: do.extend(tx, mr, by, command.duration), _KEEP,
         dict.fromkeys((_ROOM, _COMMENT), "keep it an hour longer, or as long as you say"),
         "Its end moves by that long, up to the longest lifetime. The owner is warned again before the new end.",
         takes=(_REF, _DURATION)),
    Verb("stop", lambda do, tx, mr, by, _: do.stop(tx, mr, by), _KEEP,
         {_ROOM: "end the sandbox", _COMMENT: "end the sandbox", _SHELL: "End a merge request's sandbox."},
         "Its machine is shut down, and everything in it is deleted. The merge request stays as it is."),
    Verb("why", Show.WHY, _MEND,
         {_ROOM: "say why it waits, failed or ended"},
         "The cause comes first, then what happened to the sandbox."),
    Verb("logs", Show.LOGS, _MEND,
         {_ROOM: "show the output of set-up and tests"},
         "Of a long output, the end is shown."),
    Verb("retry", lambda do, tx, mr, by, _: do.retry(tx, mr, by), _MEND,
         dict.fromkeys((_ROOM, _COMMENT), "try again after a failure"),
         "A machine that runs gets the code again, which is set up and tested; otherwise the sandbox starts again."
         " If no machines are built because builds failed, they are built again."),
    Verb("rebuild", lambda do, tx, mr, by, _: do.rebuild(tx, mr, by), _MEND,
         dict.fromkeys((_ROOM, _COMMENT), "start again on a fresh machine"),
         "The old machine is deleted with everything in it. The new one has other ports, a new host key and a new end.",
         needs_head=True),
    Verb("agents", Show.AGENTS, _AGENTS,
         {_ROOM: "show who can be spoken to here, and what they are at"},
         "Each agent has a line, then each of its conversations here. To speak to one, begin a message with its name.",
         takes=(), right=Right.READ),
    Verb("ask", AgentAct.ASK, _AGENTS,
         {_ROOM: "give an agent a message, also without its name"},
         "It is the same as `@AGENT [REF] TEXT`; without a name, the room's own agent gets it. The answer comes in a"
         " thread, where you need no name any more. REF must have its `!` here.",
         takes=(_AGENT, _ANY_REF, _TEXT)),
    Verb("steer", AgentAct.STEER, _AGENTS,
         {_ROOM: "in its thread: stop what it does now, and give it this instead"},
         "Its turn is cancelled, and the message comes next, before those that wait.",
         takes=(_AGENT, _TEXT)),
    Verb("cancel", AgentAct.CANCEL, _AGENTS,
         {_ROOM: "in its thread: stop what it does now"},
         "The turn that runs is cancelled, or if none runs the message that waits longest. What it did stays as it is.",
         takes=(_AGENT,)),
    Verb("resend", AgentAct.RESEND, _AGENTS,
         {_ROOM: "in its thread: give it the last message again"},
         "Of a message that it could not be given, or that failed, or of which it can't be known whether it ran.",
         takes=(_AGENT,)),
    Verb("approve", AgentAct.APPROVE, _AGENTS,
         {_ROOM: "allow what is asked; like ✅ on the question"},
         "The first valid answer counts. It holds for exactly what the question shows, and only once.",
         takes=(_ID,)),
    Verb("deny", AgentAct.DENY, _AGENTS,
         {_ROOM: "refuse what is asked; like ❌ on the question"},
         "The first valid answer counts. A question that nobody answers in time is refused, too.",
         takes=(_ID,)),
    Verb("diff", Show.DIFF, _AGENTS,
         {_ROOM: "show what was changed in the sandbox since its code was copied in"},
         "It can be committed to the merge request's branch, if a Developer approves exactly this."),
    Verb("budget", Show.BUDGET, _AGENTS,
         {_ROOM: "show what you, the agents and the sandboxes used, and may still use"},
         "The day begins at midnight UTC.",
         takes=(), right=Right.READ),
    Verb("whoami", Show.WHOAMI, _ME,
         {_ROOM: "say what you may do"},
         "It names your GitLab user, and your role in each project of the room.",
         takes=(), right=Right.NONE),
    Verb("token", Show.TOKENS, _ME,
         {_ROOM: "in a direct chat: show your tokens for the API, or end one"},
         "One that is revoked is not valid from then on. New ones are made on the host, by `ravebot token create`.",
         takes=(_TOKEN,), right=Right.NONE),
    Verb("help", Show.HELP, _ME,
         dict.fromkeys((_ROOM, _COMMENT), "show these lines, or more about VERB"),
         "With a verb, it says what that does, who may use it, and what happens then.",
         takes=(_VERB,), right=Right.NONE),
)
# fmt: on

_ANSWERS = (AgentAct.APPROVE, AgentAct.DENY)
_EXAMPLE = {
    _REF: "group/app!42", _DURATION: "1h30m", _SHA: "1a2b3c4d", _VERB: "extend", _AGENT: "coder", _ANY_REF: "!42",
    _ID: "7", _TOKEN: "revoke 3", _TEXT: "the login test fails, please look",
}  # fmt: skip
_NEEDS = {
    Right.NONE: "Everybody may use it.",
    Right.READ: "Everybody in a room of the project may use it.",
    Right.COMMAND: "It needs the role Developer in the project.",
}


def at(door: Door, verbs: Sequence[Verb] = VERBS) -> tuple[Verb, ...]:
    """The verbs of a door."""
    return tuple(verb for verb in verbs if door in verb.doors)


def without_agents(verbs: Sequence[Verb] = VERBS) -> tuple[Verb, ...]:
    """The verbs that are of use where no agent can be spoken to."""
    return tuple(verb for verb in verbs if verb.group is not Group.AGENTS or verb.does in _ANSWERS)


def help_rows(door: Door, prefix: str, verbs: Sequence[Verb] = VERBS) -> tuple[tuple[str, str], ...]:
    """Every command of a door as it is typed, with what it does."""
    return tuple((verb.usage(door, prefix), verb.doors[door]) for verb in at(door, verbs))


def help_groups(
    door: Door, prefix: str, verbs: Sequence[Verb] = VERBS
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """The same by what people want to do: each heading with its commands."""
    groups = ((group, [verb for verb in verbs if verb.group is group]) for group in Group)
    return tuple((group.value, rows) for group, some in groups if (rows := help_rows(door, prefix, some)))


def help_on(verb: Verb, door: Door, prefix: str) -> str:
    """More about one verb, line by line: what it does, what happens then, who may use it, and an example."""
    example = verb.typed(door, prefix, _EXAMPLE)
    lines = [f"`{verb.usage(door, prefix)}` – {verb.doors[door]}.", verb.then, _NEEDS[verb.right]]
    return "\n".join([*lines, f"For example: `{example}`"] if " " in example.removeprefix(f"{prefix} ") else lines)


def parse(
    name: str,
    words: Sequence[str],
    verbs: Sequence[Verb],
    read_ref: Callable[[str], Ref] | None,
    card: Ref | None = None,
) -> Command | Mistake:
    """Parse a verb's name and the words after it; `verbs` are those of the door.

    `read_ref` raises ValueError for a word that names no merge request; None: the place says which one is meant.
    `card`: the merge request that is meant where no word names one.
    """
    named = {verb.name: verb for verb in verbs}
    verb = named.get(name.lower())
    if verb is None:
        return Mistake(_nearest(name, named))
    if Takes.VERB in verb.takes and words and words[0].lower() not in named:
        return Mistake(_nearest(words[0], named))
    try:
        return _command(verb, list(words), read_ref, card, named)
    except ValueError as error:
        return Mistake(verb, str(error))


def explain(mistake: Mistake, door: Door, prefix: str) -> str:
    """The reply to a command that could not be parsed: what is wrong, then what to type."""
    if mistake.verb is None:
        return f"{mistake.why or 'There is no such command.'} Type `{prefix} help` to see what there is."
    usage = mistake.verb.usage(door, prefix)
    return f"{mistake.why} Type `{usage}`." if mistake.why else f"There is no such command. Did you mean `{usage}`?"


def _nearest(name: str, named: Mapping[str, Verb]) -> Verb | None:
    near = difflib.get_close_matches(name[:50].lower(), named, n=1, cutoff=0.5)
    return named[near[0]] if near else None


def _command(
    verb: Verb, rest: list[str], read_ref: Callable[[str], Ref] | None, card: Ref | None, named: Mapping[str, Verb]
) -> Command:
    ref = duration = sha = about = number = None
    agent = text = ""
    for one in verb.takes:
        if one is Takes.REF and read_ref is not None:
            if card is not None and not (rest and _names_another(rest[0], verb)):
                ref = card
            elif rest:
                ref = read_ref(rest.pop(0))
            else:
                raise ValueError(f"Say which merge request. {refs.HELP} {refs.FROM_A_CARD}")
        elif one is Takes.DURATION and rest:
            duration = read_duration(" ".join(rest))
            rest.clear()
        elif one is Takes.SHA and rest:
            sha = read_sha(rest.pop(0))
        elif one is Takes.VERB and rest:
            about = named[rest.pop(0).lower()]
        elif one is Takes.TOKEN:
            number = _token(rest)
            rest.clear()
        elif one is Takes.ID:
            number = read_number(rest.pop(0) if rest else "")
        elif one is Takes.TEXT:
            if not rest:
                raise ValueError("Write what the agent is to do.")
            text = rest.pop(0)
        elif one is Takes.AGENT and rest and not verb.takes_text:
            agent = rest.pop(0).removeprefix("@").lower()[:_LONGEST_NAME]
    if rest:
        raise ValueError(TOO_MUCH)
    return Command(verb, ref, duration, sha, about, agent, number, text)


def _token(words: Sequence[str]) -> int | None:
    """The number of the token that is to be revoked; None: they are to be listed."""
    if [word.lower() for word in words] in ([], ["list"]):
        return None
    if len(words) == 2 and words[0].lower() == "revoke" and (match := _NUMBER.fullmatch(words[1])):
        return int(match[1])
    raise ValueError("Write `list`, or `revoke` and the number that the list shows.")


def _names_another(word: str, verb: Verb) -> bool:
    """Whether a word after a verb at a card is a reference; a bare number may also be a SHA, or lack its unit."""
    if word.isdecimal() and Takes.DURATION in verb.takes:
        raise ValueError(f"Write a time with its unit, like {word[:9]}m, and another merge request like !{word[:9]}.")
    if Takes.SHA in verb.takes and _COMMIT.fullmatch(word):
        return False
    return refs.number_in(word) is not None


def read_duration(text: str) -> timedelta:
    """Raises ValueError, saying how to write one."""
    try:
        duration = parse_duration(text)
    except ValueError as error:
        raise ValueError(f"That is no duration: {error}.") from error
    if not duration:
        raise ValueError("Write a duration that is longer than nothing.")
    return duration


def read_sha(text: str) -> str:
    """Of a commit, or its beginning, in lower case. Raises ValueError, saying how to write one."""
    sha = text.lower()
    if not _COMMIT.fullmatch(sha):
        raise ValueError("A commit is at least its first 8 hexadecimal digits.")
    return sha


def read_number(text: str) -> int:
    """The number of a question to a person. Raises ValueError, saying where it is found."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError("Say which question: its number stands in its message.")
    return int(match[1])
