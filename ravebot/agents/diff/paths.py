"""Decides whether a path may go into a commit: it must be safe for Git, GitLab, and everyone who checks it out.

Git's own rules are in `verify_path` of its read-cache.c; those for NTFS and HFS+ in its path.c and utf8.c.
"""

from __future__ import annotations

import re
import unicodedata

_LONGEST_PATH_BYTES = 1024
_LONGEST_NAME_BYTES = 255
_GIT_SHORT_NAME = re.compile(r"git~[0-9]+")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_ON_WINDOWS = frozenset('\\:*?"<>|')


def refusal(path: str, *, new: bool = True) -> str:
    """Why a file of that path can't be committed; empty if it can. Bytes that are not UTF-8 are lone surrogates.

    `new`: the commit that was copied in has no file of that path.
    """
    if any("\udc80" <= char <= "\udcff" for char in path):
        return "its name is not UTF-8"
    if "\n" in path or "\r" in path:
        return "its name has a line break"
    if any(unicodedata.category(char) in _UNSEEN for char in path):
        return "its name has characters that can't be seen"
    names = path.split("/")
    if path.startswith("/") or ".." in names or "." in names or "" in names:
        return "its path leads out of the project's folder"
    if any(_is_gits(name) for name in names):
        return "it belongs to Git itself"
    if len(path.encode()) > _LONGEST_PATH_BYTES or any(len(name.encode()) > _LONGEST_NAME_BYTES for name in names):
        return "its path is too long"
    unusual = any(char in _ON_WINDOWS for char in path) or any(
        name != name.strip() or name.endswith(".") for name in names
    )
    if new and unusual:
        return "its name can't be used on every system"
    return ""


def printable(path: str, limit: int = 200) -> str:
    """An untrusted path for people: one line, whose unseen characters show as `?`."""
    shown = "".join("?" if unicodedata.category(char) in _UNSEEN else char for char in path[: limit + 1])
    return shown if len(path) <= limit else f"{shown[: limit - 1]}…"


def _is_gits(name: str) -> bool:
    """Whether some system takes this name for `.git`: with unseen characters, a stream, or dots and spaces after it."""
    seen = "".join(char for char in name if unicodedata.category(char) != "Cf")
    plain = unicodedata.normalize("NFKC", seen).casefold().partition(":")[0].rstrip(" .")
    return plain == ".git" or _GIT_SHORT_NAME.fullmatch(plain) is not None
