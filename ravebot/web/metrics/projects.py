"""Which projects have series of their own: a bounded number, whatever they are called and however they are renamed."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"
"""The label of all the rest; no project is called so, as the path of each has a slash."""


class ProjectPlaces:
    """Gives each project its label."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = dict[str, None]()  # paths, in the order in which they came
        self._has_other = False
        self._paths: dict[int, str] = {}  # by id, as last served
        self._moved: dict[str, str] = {}  # from old paths, which may still come, to where those projects are now
        self.busy = frozenset[str]()
        """Labels of those that have a machine."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All that have series."""
        return (*self._taken, *((OTHER,) if self._has_other else ()))

    def label(self, path: str) -> tuple[str, bool]:
        """The label of the project with that path, and whether it is new."""
        path = self._moved.get(path, path)
        if path in self._taken:
            return path, False
        if len(self._taken) < self._most and path != OTHER:
            self._taken[path] = None
            return path, True
        is_new, self._has_other = not self._has_other, True
        return OTHER, is_new

    def served(self, projects: Iterable[tuple[int, str]]) -> tuple[str, ...]:
        """Ids and paths of all that are served now; returns the labels that are given up.

        A project that was renamed takes its place along; one that is gone loses it once it has no machine.
        """
        paths = dict(projects)
        if not paths:
            return ()
        now = frozenset(paths.values())
        given_up = []
        for number, path in paths.items():
            before = self._paths.get(number, path)
            if before in now:
                continue
            self._moved[before] = path
            if before in self._taken:
                given_up.append(before)
                del self._taken[before]
                self._taken.setdefault(path)
        self._paths = paths
        self._moved = {old: new for old, new in self._moved.items() if new in now and old not in now}
        for path in [path for path in self._taken if path not in now and path not in self.busy]:
            given_up.append(path)
            del self._taken[path]
        return tuple(given_up)
