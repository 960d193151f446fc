"""How people name a merge request: `group/app!42`, or `!42` and `42` where it is known which project they mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

HELP = "REF is a merge request: group/app!42, or just 42 where the room has one project."
FROM_A_CARD = "In the thread of a card or an agent, or in a reply to them, REF may be left out."
_REF = re.compile(r"(?:(?P<project>[\w.-]+(?:/[\w.-]+)+)?!)?(?P<iid>[1-9]\d{0,8})", re.ASCII)
_LONGEST, _LONGEST_IN_A_ROOM = 500, 300


@dataclass(frozen=True)
class Ref:
    """A merge request as people name it: `group/app!42`."""

    project_path: str
    iid: int

    def __str__(self) -> str:
        return f"{self.project_path}!{self.iid}"


def read(word: str, projects: Sequence[str]) -> Ref:
    """The merge request that `word` names; a bare number needs exactly one project in `projects`.

    Raises ValueError, saying how to write one.
    """
    match = _match(word, _LONGEST_IN_A_ROOM)
    if match is None:
        raise ValueError(f"That is no merge request. {HELP}")
    iid = int(match["iid"])
    if match["project"]:
        return Ref(match["project"], iid)
    if len(projects) == 1:
        return Ref(projects[0], iid)
    if not projects:
        raise ValueError(f"No project is known here: write it in full, like group/app!{iid}.")
    shown = " or ".join(f"{project}!{iid}" for project in sorted(projects)[:3])
    raise ValueError(f"This room has several projects: write {shown}{' …' if len(projects) > 3 else ''}.")


def read_full(word: str) -> Ref:
    """The merge request that is named in full. Raises ValueError, saying how to write one."""
    match = _match(word)
    if match is None or not match["project"]:
        raise ValueError(unknown(word))
    return Ref(match["project"], int(match["iid"]))


def unknown(ref: Ref | str) -> str:
    """The reply to a reference to an unknown merge request."""
    return f"No merge request {ref} is known here. Write one like group/app!42."


def missing(ref: Ref | str) -> str:
    """The reply to a reference that GitLab does not know."""
    return f"There is no {ref}, or I may not see it."


def number_in(word: str) -> int | None:
    """The number in a reference, of any project; None for a word that is no reference."""
    match = _match(word, _LONGEST_IN_A_ROOM)
    return int(match["iid"]) if match else None


def _match(word: str, longest: int = _LONGEST) -> re.Match[str] | None:
    return _REF.fullmatch(word) if len(word) <= longest else None
