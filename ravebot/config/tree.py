"""Parses YAML into plain values, with the line of every key for error messages.

Stricter than YAML: a duplicate key is an error, keys are strings, and the expansion of aliases is limited.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

Key = str | int
KeyPath = tuple[Key, ...]
Mark = tuple[int, int]
"""A line and a column, from 1."""
Value = dict[str, "Value"] | list["Value"] | str | int | float | bool | None | object

MAX_VALUES = 50_000
MAX_DEPTH = 32
_YAML = "tag:yaml.org,2002:"
_MERGE = f"{_YAML}merge"
_PLAIN = frozenset((f"{_YAML}map", f"{_YAML}seq"))


@dataclass(frozen=True, order=True)
class Problem:
    """One error: the line (from 1; 0: none), the key path and what to do about it; `column`: from 1, 0: none."""

    line: int
    path: str
    message: str
    column: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass
class Tree:
    """A parsed file: its value, line and column of every key path, and the errors found while parsing."""

    value: Value = None
    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: KeyPath) -> int:
        """The line of that key, or of its nearest parent that is in the file."""
        return self.mark_of(path)[0]

    def mark_of(self, path: KeyPath) -> Mark:
        """Line and column of that key, or of its nearest parent that is in the file."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, (1, 1))


def dotted(path: KeyPath) -> str:
    """A key path as people write it: `matrix.rooms[0].projects`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def parse(text: str, max_values: int = MAX_VALUES) -> Tree:
    """Parse YAML; errors in the text are not raised but listed in `problems`."""
    loader = yaml.SafeLoader("")
    tree = Tree()
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            tree.value = _Reader(loader, tree, max_values).read(node, ())
    except _TooLargeError as error:
        line, column = error.mark
        why = f"aliases or nesting expand to more than {max_values} values"
        tree.problems = [Problem(line, "", why, column)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        hint = "; put quotes around text that begins with @ ! # * & % or `" if "token" in what else ""
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        tree.problems.append(Problem(line, "", f"this is not YAML: {what}{hint}", column))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        why = "a character that can't be seen is not allowed: remove it, and save the file as UTF-8 text"
        tree.problems.append(Problem(line, "", f"this is not YAML: {why}", column))
    except yaml.YAMLError as error:
        tree.problems.append(Problem(0, "", f"this is not YAML: {' '.join(str(error).split())}"))
    except RecursionError:
        tree.problems.append(Problem(loader.line + 1, "", "this is nested too deeply", loader.column + 1))
    finally:
        loader.dispose()
    return tree


class _TooLargeError(Exception):
    """More values, or deeper nesting, than any configuration has; `mark`: where the first is that is too much."""

    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self.mark = mark


class _Reader:
    """Turns YAML nodes into values, and records lines and problems."""

    def __init__(self, loader: yaml.SafeLoader, tree: Tree, max_values: int) -> None:
        self._loader = loader
        self._max_values = max_values
        self._tree = tree
        self._count = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Value:
        self._count += 1
        if self._count > self._max_values or len(path) > MAX_DEPTH:
            raise _TooLargeError(_mark(node))
        self._tree.marks.setdefault(path, _mark(node))
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN:
            self._complain(node, path, f"a tag like {_written(node.tag)} means nothing here: remove it")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Value:
        try:
            value: Value = self._loader.construct_object(node)
            if isinstance(value, bytes):
                self._complain(node, path, "a tag like !!binary means nothing here: write the text itself")
                return None
            if isinstance(value, str):
                value.encode()  # an escape can stand for a lone surrogate
            return value
        except yaml.constructor.ConstructorError:
            written = f"{node.tag} {node.value}".strip()
            self._complain(node, path, f'YAML reads a leading ! as a tag; put quotes around it: "{written[:60]}"')
        except (ValueError, LookupError, AttributeError, OverflowError):  # PyYAML raises these for `!!int ""`, say
            self._complain(node, path, "YAML can't read this value; put quotes around it if it is text")
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> Value:
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        merged_marks: dict[KeyPath, Mark] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for source, marks in self._merge_sources(value_node, path):
                    inherited = {(*path, key) for key in source.keys() - merged.keys()}
                    merged_marks |= {at: mark for at, mark in marks.items() if at[: len(path) + 1] in inherited}
                    merged = {**source, **merged}
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in own:
                first = self._tree.line_of((*path, key))
                self._complain(key_node, (*path, key), f"duplicate key, first in line {first}: remove one")
                continue
            self._tree.marks[(*path, key)] = _mark(key_node)
            own[key] = self.read(value_node, (*path, key))
        overridden = {(*path, key) for key in own}
        self._tree.marks |= {at: mark for at, mark in merged_marks.items() if at[: len(path) + 1] not in overridden}
        return {**merged, **own}

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        key = self.read(node, (*path, "?")) if isinstance(node, yaml.ScalarNode) else None
        self._tree.marks.pop((*path, "?"), None)
        if isinstance(key, str):
            return key
        self._complain(node, path, "a key must be text; put quotes around it")
        return None

    def _merge_sources(self, node: yaml.Node, path: KeyPath) -> Iterator[tuple[dict[str, Value], dict[KeyPath, Mark]]]:
        """Each merged mapping with the marks of its keys, which are not mixed with those of the enclosing mapping."""
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            kept, self._tree.marks = self._tree.marks, {}
            value = self.read(source, path)
            marks, self._tree.marks = self._tree.marks, kept
            if isinstance(value, dict):
                yield value, marks
            else:
                self._complain(node, path, "<< takes a mapping or a list of mappings")

    def _complain(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        line, column = _mark(node)
        self._tree.problems.append(Problem(line, dotted(path), message, column))


def _written(tag: str) -> str:
    """A tag as it is in the file."""
    return f"!!{tag.removeprefix(_YAML)}"[:60] if tag.startswith(_YAML) else tag[:60]


def _mark(node: yaml.Node) -> Mark:
    return node.start_mark.line + 1, node.start_mark.column + 1
