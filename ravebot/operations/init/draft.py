"""Writes the configuration's text: a new one with comments, or an existing one in which only values change."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from ravebot.config.file import fill
from ravebot.config.model import Config
from ravebot.config.tree import KeyPath, Value, dotted, parse
from ravebot.errors import ConfigError
from ravebot.operations.init.inquiry import lookup, put

_HEAD = """\
# Configuration of ravebot, written by `ravebot init`, which can be run again: it keeps what it does not know.
# config.example.yaml in ravebot's repository has every key. Restart ravebot after a change.
"""
_COMMENTS = {
    "instance": "Two installations on one host need different names, folders, bridges and ports.",
    "matrix.password_file": "One login is made with it, and kept in state_dir.",
    "matrix.admins": "Who may invite ravebot to rooms, and use every command on every project.",
    "matrix.users": "Matrix id: GitLab user name. What people may do in Matrix depends on their role in GitLab.",
    "matrix.operations_room": "Told of alerts, and of what ravebot needs help with.",
    "matrix.rooms": "Which projects are announced in which rooms.",
    "gitlab.projects": "The projects whose merge requests get sandboxes.",
    "http.listen": "Put a TLS proxy in front of it.",
    "http.public_url": "Where GitLab sends webhooks to.",
    "sandbox.host": "What people connect to. It must be no name of GitLab, Matrix or ravebot, nor a parent of one.",
    "access.allow_from": "The networks that can reach the sandboxes. Empty: all.",
    "provider.bridge": "The sandboxes' own network on this host.",
    "monitoring.alertmanager_token_file": "The line that Alertmanager sends, too.",
    "monitoring.usage_report": "Told each Monday what was used in the week before.",
    "provider.image": "The qcow2 file that machines start from.",
}


def _flow(value: Value) -> str:
    """YAML on one line: JSON is YAML, and quotes what needs quotes; plain words stay plain."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        plain = value and value.strip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-:") == ""
        if plain and ": " not in value and not value.endswith(":") and yaml.safe_load(value) == value:
            return value
    return json.dumps(value, ensure_ascii=False)


def fresh(values: Mapping[KeyPath, Value]) -> str:
    """A new configuration."""
    tree: dict[str, Value] = {}
    for path, value in values.items():
        put(tree, path, value)
    lines = [_HEAD.rstrip("\n")]
    for key, value in tree.items():
        lines += ["", *_block(key, value, (), 0)]
    return "\n".join(lines) + "\n"


def _block(key: str, value: Value, above: KeyPath, depth: int) -> list[str]:
    path, indent = (*above, key), "  " * depth
    comment = _COMMENTS.get(dotted(path))
    lines = [f"{indent}# {comment}"] if comment else []
    if isinstance(value, dict) and path != ("matrix", "users"):
        lines.append(f"{indent}{key}:")
        for below, inner in value.items():
            lines += _block(below, inner, path, depth + 1)
    elif isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
        lines.append(f"{indent}{key}:")
        rows = [f"{_flow(one)}: {_flow(other)}" for one, other in value.items()] if isinstance(value, dict) else []
        rows = rows or [f"- {_flow(item)}" for item in value if isinstance(value, list)]
        lines += [f"{indent}  {row}" for row in rows]
    else:
        lines.append(f"{indent}{key}: {_flow(value)}")
    return lines


def edit(text: str, values: Mapping[KeyPath, Value], removed: tuple[KeyPath, ...] = ()) -> str:
    """The text with these values; all else, comments included, stays as it is. Raises ConfigError if that fails."""
    before = parse(text).value
    wanted = before if isinstance(before, dict) else {}
    for path, value in values.items():
        if lookup(wanted, path) != value:
            text = _set(text, path, value)
            put(wanted, path, value)
    for path in removed:
        if lookup(wanted, path) is not None:
            text = _remove(text, path)
            parent = lookup(wanted, path[:-1])
            if isinstance(parent, dict):
                del parent[str(path[-1])]
    if parse(text).value != wanted:
        raise ConfigError("the existing configuration is written in a way that init can't change: change it by hand")
    return text


def without_unchanged_defaults(values: Mapping[KeyPath, Value], existing: dict[str, Value]) -> dict[KeyPath, Value]:
    """Less what an existing configuration leaves to the defaults, and that would be the same written out."""
    same = Config.model_validate(fill(existing)) if existing else None
    kept = {}
    for path, value in values.items():
        if lookup(existing, path) is None and same is not None and _of(same, path) == _default_of(path, value):
            continue
        kept[path] = value
    return kept


def _of(config: Config, path: KeyPath) -> object:
    found: object = config
    for key in path:
        found = getattr(found, str(key), None)
    return found


def _default_of(path: KeyPath, value: Value) -> object:
    tree: dict[str, Value] = {}
    put(tree, path, value)
    return _of(Config.model_validate(fill(tree)), path)


def _find(root: yaml.Node | None, path: KeyPath) -> tuple[yaml.Node, yaml.Node] | None:
    """The nodes of a key and its value."""
    found = None
    for key in path:
        if not isinstance(root, yaml.MappingNode):
            return None
        found = next(((one, other) for one, other in root.value if one.value == key), None)
        if found is None:
            return None
        root = found[1]
    return found


def _end(node: yaml.Node) -> int:
    """Where a value really ends: a block's own mark lies behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _set(text: str, path: KeyPath, value: Value) -> str:
    root = yaml.compose(text, yaml.SafeLoader)
    if found := _find(root, path):
        key, node = found
        start, end = node.start_mark.index, _end(node)
        if start == end or node.start_mark.index < key.end_mark.index:  # `key:` with nothing behind it
            start = end = key.end_mark.index + 1
            return f"{text[:start]} {_flow(value)}{text[end:]}"
        return f"{text[:start]}{_like(node, value)}{text[end:]}"
    for depth in range(len(path) - 1, 0, -1):
        if not (above := _find(root, path[:depth])):
            continue
        key, node = above
        line = f"{path[depth]}: {_flow(_nested(path[depth + 1 :], value))}"
        if isinstance(node, yaml.MappingNode) and node.flow_style:
            inner = ", " if node.value else ""
            at = node.start_mark.index + 1
            return f"{text[:at]}{line}{inner}{text[at:]}"
        if isinstance(node, yaml.MappingNode):
            at, column = node.start_mark.index, node.start_mark.column
            return f"{text[:at]}{line}\n{' ' * column}{text[at:]}"
        at = key.end_mark.index + 1
        return f"{text[:at]}\n{' ' * (key.start_mark.column + 2)}{line}{text[at:]}"
    tail = "\n".join(_block(str(path[0]), _nested(path[1:], value), (), 0))
    return f"{text.rstrip()}\n\n{tail}\n"


def _like(node: yaml.Node, value: Value) -> str:
    """The value in the style of the one that it replaces: a line for each item, or all on one line."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and value:
        lines = [f"- {_flow(item)}" for item in value] if isinstance(value, list) else []
        lines += [f"{_flow(key)}: {_flow(below)}" for key, below in value.items()] if isinstance(value, dict) else []
        return f"\n{' ' * node.start_mark.column}".join(lines)
    return _flow(value)


def _nested(path: KeyPath, value: Value) -> Value:
    for key in reversed(path):
        value = {str(key): value}
    return value


def _remove(text: str, path: KeyPath) -> str:
    """Take a key of one line out, with its line if nothing else stands there."""
    found = _find(yaml.compose(text, yaml.SafeLoader), path)
    if found is None:
        return text
    start, end = found[0].start_mark.index, _end(found[1])
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end + 1
    behind = text[end:line_end].strip()
    if not text[line_start:start].strip() and (not behind or behind.startswith("#")):
        return text[:line_start] + text[line_end:]
    rest = text[end:].lstrip(", ")
    return text[:start].rstrip(", ") + rest if rest.startswith("}") else text[:start] + rest


def difference(before: str, after: str, path: Path) -> list[str]:
    """The lines of a unified diff."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), str(path), f"{path} (new)", lineterm="")
    return list(lines)
