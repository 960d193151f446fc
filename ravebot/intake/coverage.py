"""Which projects a poll asks for together, by their group, and which one by one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ravebot.config.patterns import matches_project

_FEWEST = 2
"""Projects from which on one request about their group is fewer than one about each."""


def whole_groups(patterns: Iterable[str]) -> tuple[str, ...]:
    """The groups of which everything is served: `tools` of `tools/*`. The outermost of several, once each."""
    found = {pattern.removesuffix("/*") for pattern in patterns if pattern.endswith("/*")}
    plain = {group for group in found if group and not set("*?[") & set(group)}
    return tuple(sorted(group for group in plain if not any(_is_in(group, other) for other in plain)))


def cover(
    patterns: tuple[str, ...], projects: Iterable[tuple[int, str]], readable: frozenset[int]
) -> Mapping[str, frozenset[int]]:
    """By group, which projects its listing shows. Others are asked for one by one: GitLab leaves out of a group's
    merge requests those that may not be read, and says so only when it is asked about the project."""
    served = [(number, path) for number, path in projects if number in readable and matches_project(patterns, path)]
    found = {
        group: frozenset(number for number, path in served if _is_in(path, group)) for group in whole_groups(patterns)
    }
    return {group: ids for group, ids in found.items() if len(ids) >= _FEWEST}


def put_off(alone: Sequence[tuple[int, str]], is_heard: Callable[[str], bool], turn: int) -> frozenset[int]:
    """Of the projects that are asked for one by one, those that a poll leaves to a later one: all that have a right
    webhook but one, in turn. The polls that ask for everything leave out none."""
    heard = [number for number, path in sorted(alone, key=lambda one: one[1]) if is_heard(path)]
    return frozenset(heard) - {heard[turn % len(heard)]} if heard else frozenset()


def _is_in(path: str, group: str) -> bool:
    return path.startswith(f"{group}/")
