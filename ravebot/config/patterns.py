"""Patterns of projects, as configured: which paths they match, and whether two may match the same one."""

from __future__ import annotations

from fnmatch import fnmatchcase


def matches_project(patterns: tuple[str, ...], path: str) -> bool:
    """Whether a project's full path matches one of the patterns (`*` also matches `/`)."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def patterns_overlap(some: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether a project's path may match one of the patterns on both sides."""
    return any(_overlap(one, other) for one in some for other in others)


def _overlap(one: str, other: str) -> bool:
    """Whether some text matches both patterns: `reached` are the places of `other` that go with each place of `one`."""
    reached = _beyond_stars(other, {0})
    for character in one:
        if character == "*":
            reached = set(range(min(reached), len(other) + 1)) if reached else set()
            continue
        stay = {place for place in reached if other[place : place + 1] == "*"}
        step = {place + 1 for place in reached if other[place : place + 1] == character}
        reached = _beyond_stars(other, stay | step)
    return len(other) in reached


def _beyond_stars(pattern: str, places: set[int]) -> set[int]:
    """These places, and those after the stars that they are at: a star matches nothing, too."""
    found = set(places)
    for place in sorted(places):
        while pattern[place : place + 1] == "*":
            place += 1
            found.add(place)
    return found
