"""What a question to a person shows: the whole of what is asked, who may answer, until when, and what came of it.

Pure; `notify` renders it for each door.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ravebot.agents.model import Approval, ApprovalKind, ApprovalState, Conversation
from ravebot.clock import moment
from ravebot.config.model import MatrixConfig
from ravebot.sandboxes.model import Actor, MergeRequest

MOST_MENTIONED = 5
_PARAMS = "params."
_CALL = f"{_PARAMS}toolCall."
_DEEPEST = 20
_LONGEST_PARTS = 4
"""Times the payload: the names of the objects that a value is in stand before it, and could be long and many."""


@dataclass(frozen=True)
class Part:
    """One value of what is asked, in its order. Both are untrusted where an agent asks."""

    name: str
    text: str


@dataclass(frozen=True)
class ApprovalQuestion:
    """`title` and `parts` are what is asked, whole and untrusted; the rest is ours.

    `agent`: whose request it is; empty: ravebot's own. `whom`: who may answer, in words; `mentions`: the Matrix users
    to be notified of it; `until`: the end of its time, as people read it. `answer`: what was decided and by whom, and
    `outcome`, what came of it: both are empty while it is open, and nothing of the message is edited until then.
    `by`: the Matrix user with whose name `answer` ends, if it does.
    """

    number: int
    kind: ApprovalKind
    state: ApprovalState
    title: str
    parts: tuple[Part, ...]
    agent: str
    ref: str
    whom: str
    mentions: tuple[str, ...]
    until: str
    answer: str = ""
    outcome: str = ""
    by: str = ""

    @property
    def is_open(self) -> bool:
        return self.state is ApprovalState.OPEN

    def how(self, prefix: str) -> str:
        """How it is answered where `prefix` begins a command; `!rave` in a room, `/agent` in a comment."""
        return f"`{prefix} approve {self.number}` or `{prefix} deny {self.number}`"


def hash_of(payload: str) -> str:
    """The SHA-256 of the whole of what is asked."""
    return hashlib.sha256(payload.encode("utf-8", "replace")).hexdigest()


def shown(payload: str) -> tuple[Part, ...]:
    """The whole payload as people read it: an agent's tool call first, a text that it changes once and not twice, and
    in one line at the end the numbers and options around the call, which nobody decides by."""
    parts = parts_of(payload)
    call = [replace(part, name=part.name.removeprefix(_CALL)) for part in parts if part.name.startswith(_CALL)]
    if not call:
        return parts
    around = ", ".join(
        f"{_quoted(part.name.removeprefix(_PARAMS))[1:-1]} {_quoted(part.text)}"
        for part in parts
        if not part.name.startswith(_CALL)
    )
    return (*_compared(call), Part("rest of the request", around))


def _compared(call: list[Part]) -> Iterator[Part]:
    """The parts; an old and a new text, which the protocol has as two whole ones, become one with its lines marked."""
    times = Counter(part.name for part in call)
    texts = {part.name: part.text for part in call if times[part.name] == 1}
    for part in call:
        name = part.name.rpartition(".")[2]
        inside = part.name.removesuffix(name)
        old, new = texts.get(f"{inside}oldText"), texts.get(f"{inside}newText")
        if name not in ("oldText", "newText") or old is None or new is None:
            yield part
        elif name == "newText":
            yield Part(f"{inside}oldText (-) and newText (+)", _marked(old.split("\n"), new.split("\n")))


def _marked(old: list[str], new: list[str]) -> str:
    """Every line of both: those that only the old text has begin with -, those that only the new one has with +.

    What differs is one piece: it takes no time to find, and an agent can't choose a text for which it takes long.
    """
    most = min(len(old), len(new))
    same = next((at for at in range(most) if old[at] != new[at]), most)
    last = next((at for at in range(most - same) if old[-1 - at] != new[-1 - at]), most - same)
    lines = [f" {line}" for line in old[:same]]
    lines += [f"-{line}" for line in old[same : len(old) - last]]
    lines += [f"+{line}" for line in new[same : len(new) - last]]
    return "\n".join(lines + [f" {line}" for line in old[len(old) - last :]])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def payload_of(parts: Mapping[str, str | Mapping[str, str]]) -> str:
    """What ravebot itself asks, in this order, as it is stored."""
    return json.dumps(parts, ensure_ascii=False)


def parts_of(payload: str) -> tuple[Part, ...]:
    """The whole payload, in its order; what is no JSON, or nested without end or with long names, as it is."""
    found: list[Part] = []
    left = _LONGEST_PARTS * len(payload) + 10_000
    try:
        for part in _parts("", json.loads(payload, object_pairs_hook=_Members), 0):
            found.append(part)
            left -= len(part.name) + len(part.text)
            if left < 0:
                return (Part("", payload),)
    except (ValueError, RecursionError):
        return (Part("", payload),)
    return tuple(found)


def question(
    approval: Approval,
    config: MatrixConfig,
    *,
    mr: MergeRequest | None = None,
    conversation: Conversation | None = None,
    asker: Actor | None = None,
) -> ApprovalQuestion:
    """The view of an approval. `asker`: the first person of its conversation's turn."""
    return ApprovalQuestion(
        number=approval.id,
        kind=approval.kind,
        state=approval.state,
        title=approval.title,
        parts=shown(approval.payload),
        agent=conversation.agent if conversation and approval.kind is ApprovalKind.TOOL else "",
        ref=mr.full_ref if mr else "",
        whom=whom(approval, mr.project_path if mr else ""),
        mentions=_mentions(approval, config, mr, asker),
        until=moment(approval.expires_at, approval.created_at),
        answer=_answer(approval),
        outcome=approval.outcome,
        by=_matrix_user(approval),
    )


def whom(approval: Approval, project: str) -> str:
    """Who may answer, in words."""
    if approval.only_by:
        return f"only {approval.only_by}"
    if approval.kind is ApprovalKind.EXTENSION or approval.mr is None:
        return "an admin of ravebot"
    return f"anybody with the role Developer or more in {project or 'its project'}"


def _mentions(
    approval: Approval, config: MatrixConfig, mr: MergeRequest | None, asker: Actor | None
) -> tuple[str, ...]:
    """Whom it notifies: the one who may answer; admins; else who asked the agent, and the merge request's people.

    Nobody is mentioned who may not answer as far as the configuration tells; their role is looked up when they answer.
    """
    if approval.only_by:
        return (approval.only_by,) if approval.only_by.startswith("@") else _tied(config, (approval.only_by,))
    if approval.kind is ApprovalKind.EXTENSION:
        return config.admins[:MOST_MENTIONED]
    if asker is not None and asker.kind == "matrix":
        may = asker.name in config.users or (asker.name in config.admins and approval.kind is not ApprovalKind.COMMIT)
        return (asker.name,) if may else ()
    names = [asker.name] if asker is not None else [person.username for person in mr.people] if mr else []
    return _tied(config, tuple(names))


def _tied(config: MatrixConfig, usernames: tuple[str, ...]) -> tuple[str, ...]:
    """The Matrix users of GitLab users."""
    found = (user_id for name in usernames for user_id, username in config.users.items() if username == name)
    return tuple(dict.fromkeys(found))[:MOST_MENTIONED]


def _matrix_user(approval: Approval) -> str:
    by = approval.decided_by
    has_name = approval.state in (ApprovalState.GRANTED, ApprovalState.DENIED)
    return by.name if has_name and by is not None and by.kind == "matrix" else ""


def _answer(approval: Approval) -> str:
    by = _matrix_user(approval) or approval.decided_by
    match approval.state:
        case ApprovalState.OPEN:
            return ""
        case ApprovalState.GRANTED:
            return f"approved by {by}"
        case ApprovalState.DENIED:
            return f"denied by {by}"
        case ApprovalState.EXPIRED:
            return "nobody answered in time, which is a no"
        case ApprovalState.WITHDRAWN:
            return "not asked any more"


class _Members(tuple[tuple[str, object], ...]):
    """A JSON object with all its members: of two with the same name, a dict would hide one."""

    __slots__ = ()


def _parts(name: str, value: object, depth: int) -> Iterator[Part]:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    if isinstance(value, _Members) and value:
        for key, inner in value:
            yield from _parts(f"{name}.{key}" if name else key, inner, depth + 1)
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value, 1):
            yield from _parts(f"{name} {number}".strip(), inner, depth + 1)
    elif isinstance(value, _Members):
        yield Part(name, "{}")
    else:
        yield Part(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
