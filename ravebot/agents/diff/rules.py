"""What Git's own files in the commit say of its files: what is ignored, what an archive alters, what is a submodule's.

The patterns are the merge request's, and matching them may take any time: run it in the worker only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pathspec import GitIgnoreSpec

_MAX_PATTERNS = 2000
_LONGEST_PATTERN = 500
_PATH_LINE = re.compile(r"\s*path\s*=\s*(.+?)\s*")
_ALTERING = frozenset({"export-subst", "ident", "eol=crlf", "working-tree-encoding"})
"""Attributes by which the content in an archive is another one than in the repository (gitattributes(5))."""
_MISSING = frozenset({"export-ignore"})


@dataclass(frozen=True)
class _Rules:
    """Patterns by the folder of the file that holds them (empty: the top folder)."""

    by_folder: Mapping[str, GitIgnoreSpec]

    def match(self, path: str) -> bool | None:
        """Whether the last pattern that fits, of the deepest file that has one, includes the path."""
        folder = parent(path.rstrip("/"))
        while True:
            spec = self.by_folder.get(folder)
            if spec is not None:
                below = path[len(folder) + 1 :] if folder else path
                if (included := spec.check_file(below).include) is not None:
                    return included
            if not folder:
                return None
            folder = parent(folder)


@dataclass(frozen=True)
class GitRules:
    """What holds for the files of a commit."""

    ignores: _Rules
    altered: _Rules
    missing: _Rules
    submodules: frozenset[str]
    _folders: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, rules: Mapping[str, bytes]) -> GitRules:
        """The rules in these files, by path."""
        ignores: dict[str, GitIgnoreSpec] = {}
        altered: dict[str, GitIgnoreSpec] = {}
        missing: dict[str, GitIgnoreSpec] = {}
        submodules: set[str] = set()
        for path, content in rules.items():
            folder, _, name = path.rpartition("/")
            lines = content.decode("utf-8", "surrogateescape").split("\n")
            match name:
                case ".gitignore":
                    ignores[folder] = _spec(line.rstrip("\r") for line in lines)
                case ".gitattributes":
                    altered[folder] = _spec(_with(lines, _ALTERING))
                    missing[folder] = _spec(_with(lines, _MISSING))
                case ".gitmodules" if not folder:
                    submodules |= {found[1] for line in lines if (found := _PATH_LINE.fullmatch(line))}
        return cls(_Rules(ignores), _Rules(altered), _Rules(missing), frozenset(submodules))

    def ignored(self, path: str) -> bool:
        """Whether Git would not add this file: a pattern fits it, or one of its folders."""
        return self._ignored_folder(parent(path)) or bool(self.ignores.match(path))

    def refusal(self, path: str) -> str:
        """Why a file can't be committed from what an archive holds; empty if it can."""
        if self.submodules and any(folder in self.submodules for folder in (path, *folders_of(path))):
            return "it belongs to a submodule"
        if self.altered.match(path):
            return "a .gitattributes lets GitLab's archive change it, so the sandbox has no true copy"
        if self.missing.match(path) or any(self.missing.match(f"{folder}/") for folder in folders_of(path)):
            return "a .gitattributes keeps it out of GitLab's archive, so the sandbox has no true copy"
        return ""

    def _ignored_folder(self, folder: str) -> bool:
        unknown = []
        while folder and folder not in self._folders:
            unknown.append(folder)
            folder = parent(folder)
        ignored = self._folders.get(folder, False)
        for below in reversed(unknown):
            ignored = self._folders[below] = ignored or bool(self.ignores.match(f"{below}/"))
        return ignored


def parent(path: str) -> str:
    """The folder that a path is in, empty for the top; unlike `posixpath.dirname`, it comes to an end for `/a`, too."""
    return path.rpartition("/")[0]


def folders_of(path: str) -> Iterator[str]:
    """The folders that a file is in, the innermost first."""
    while path := parent(path):
        yield path


def _with(lines: Iterable[str], attributes: frozenset[str]) -> Iterable[str]:
    """The patterns of the lines of a .gitattributes that set one of these attributes; macros are not followed."""
    for line in lines:
        pattern, *words = line.split()[:50] or [""]
        if not pattern.startswith(("#", "[")) and any(word.partition("=")[0] in attributes or word in attributes
                                                      for word in words):  # fmt: skip
            yield pattern


def _spec(lines: Iterable[str]) -> GitIgnoreSpec:
    """The patterns that can be used; Git passes over others as well."""
    usable = [line for line in lines if line.strip() and len(line) <= _LONGEST_PATTERN][:_MAX_PATTERNS]
    try:
        return GitIgnoreSpec.from_lines(usable)
    except ValueError:
        return GitIgnoreSpec.from_lines([line for line in usable if _parses(line)])


def _parses(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True
