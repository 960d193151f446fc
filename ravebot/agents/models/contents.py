"""What the messages of a request may hold: nothing that has the provider fetch, look up or run something. Pure.

Every kind of part is listed, so that a kind that providers add later is refused until it is known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ravebot.agents.models.refusals import forbidden
from ravebot.config.modelapis import ModelApi

IMAGE_TOKENS = 40_000
"""More than providers count for an image, which may be few bytes."""
DOCUMENT_TOKENS = 1_000_000
"""A compressed document of few bytes can fill a model's whole context."""
_DEEPEST = 20
"""Agents nest a few; Python gives up at some hundreds."""
_LONGEST_WHERE = 60
_PLAIN = frozenset(
    {
        "text", "thinking", "redacted_thinking", "tool_use", "tool_reference", "compaction",  # Anthropic
        "refusal",  # OpenAI
        "input_text", "output_text", "summary_text", "reasoning_text",  # Responses
    }
)  # fmt: skip
_ITEMS = frozenset(
    {
        "message", "reasoning", "compaction", "function_call", "function_call_output", "custom_tool_call",
        "custom_tool_call_output", "local_shell_call", "local_shell_call_output", "apply_patch_call",
        "apply_patch_call_output", "computer_call", "computer_call_output",
    }
)  # fmt: skip
"""Items of Responses that the client itself made, or that are the model's own words."""


@dataclass(frozen=True)
class _Part:
    """A part of a message; `where`: how a person finds it."""

    value: Mapping[str, Any]
    where: str

    @property
    def kind(self) -> str:
        kind = self.value.get("type")
        return kind if isinstance(kind, str) else ""


def media_tokens(api: ModelApi, body: Mapping[str, Any]) -> int:
    """Check everything in the messages; how many tokens images and documents may cost beyond their bytes.

    Raises ModelRefusal.
    """
    if api is ModelApi.RESPONSES:
        return sum(_tokens(part) for item in _items(body) for part in _parts_of_item(item))
    parts = (part for where, holder in _holders(body) for part in _parts(holder.get("content"), where))
    system = _parts(body.get("system"), "system") if api.is_anthropic else iter(())
    return sum(_tokens(part) for part in (*parts, *system))


def _holders(body: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise forbidden("the request has no list `messages`.")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict):
            raise forbidden(f"{where} is not an object.")
        if message.get("audio"):
            raise _refused("audio", where)
        yield where, message


def _items(body: Mapping[str, Any]) -> Iterator[_Part]:
    items = body.get("input")
    if items is None or isinstance(items, str):
        return
    if not isinstance(items, list):
        raise forbidden("`input` is neither a text nor a list.")
    for place, item in enumerate(items):
        where = f"input[{place}]"
        if not isinstance(item, dict):
            raise forbidden(f"{where} is not an object.")
        yield _Part(item, where)


def _parts_of_item(item: _Part) -> Iterator[_Part]:
    kind = item.kind or ("message" if "role" in item.value else "")
    if kind not in _ITEMS:
        raise _refused(kind, item.where)
    for key in ("content", "output"):
        value = item.value.get(key)
        if isinstance(value, dict):
            value = [value]
        yield from _parts(value, f"{item.where}.{key}")


def _parts(content: object, where: str, deep: int = 0) -> Iterator[_Part]:
    """The parts of a content, those that lie in others included; a text has none."""
    if content is None or isinstance(content, str):
        return
    if deep > _DEEPEST:
        raise forbidden(f"{where[:_LONGEST_WHERE]}… has parts that lie in each other too deep: at most {_DEEPEST} do.")
    if not isinstance(content, list):
        raise forbidden(f"{where} has a content that is neither a text nor a list.")
    for place, part in enumerate(content):
        here = f"{where}[{place}]"
        if isinstance(part, str):
            continue
        if not isinstance(part, dict):
            raise forbidden(f"{here} is neither a text nor an object.")
        yield _Part(part, here)
        if part.get("type") in ("tool_result", "search_result"):
            yield from _parts(part.get("content"), here, deep + 1)
        source = part.get("source")
        if part.get("type") == "document" and isinstance(source, dict) and source.get("type") == "content":
            yield from _parts(source.get("content"), here, deep + 1)


def _tokens(part: _Part) -> int:
    """Check one part. Raises ModelRefusal."""
    match part.kind:
        case kind if kind in _PLAIN or kind in ("tool_result", "search_result"):
            return 0
        case "image":
            _check_source(part, ("base64",))
            return IMAGE_TOKENS
        case "document":
            kind = _check_source(part, ("base64", "text", "content"))
            return DOCUMENT_TOKENS if kind == "base64" else 0
        case "image_url" | "input_image" | "computer_screenshot":
            _check_image(part)
            return IMAGE_TOKENS
        case "input_audio":
            return DOCUMENT_TOKENS
        case "file" | "input_file":
            inner = part.value.get("file") if part.kind == "file" else part.value
            _check_file(inner, part.where)
            return DOCUMENT_TOKENS
        case kind:
            raise _refused(kind, part.where)


def _check_source(part: _Part, kinds: tuple[str, ...]) -> str:
    source = part.value.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise _refused(f"{part.kind} with a source of the type {_shown(kind)}", part.where)
    return kind


def _check_image(part: _Part) -> None:
    """An image is in the request itself; an address would have the provider fetch it."""
    image = part.value.get("image_url")
    address = image.get("url") if isinstance(image, dict) else image
    if part.value.get("file_id") or not isinstance(address, str) or not address[:5].lower() == "data:":
        raise _refused("image that is not in the request itself (data:…)", part.where)


def _check_file(file: object, where: str) -> None:
    if not isinstance(file, dict) or file.get("file_id") or file.get("file_url") or not file.get("file_data"):
        raise _refused("file that is not in the request itself (file_data)", where)


def _refused(kind: str, where: str) -> Exception:
    return forbidden(
        f"{where} has a part that is not passed on: {_shown(kind)}. What makes the provider fetch, look up or run"
        " something needs models[].server_tools: allow, which an admin of ravebot can set."
    )


def _shown(value: object) -> str:
    """A name from a request, as an error shows it."""
    return repr(str(value)[:60]) if value else "one without a type"
