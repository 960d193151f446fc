"""Checks a request to Google's Gemini API, whose address names the model and what is asked of it. Pure.

https://ai.google.dev/api/generate-content. Google takes every key in two ways of writing, `maxOutputTokens` and
`max_output_tokens`, so on each level that is checked only the known keys pass, in the first way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ravebot.agents.models.contents import DOCUMENT_TOKENS, IMAGE_TOKENS
from ravebot.agents.models.refusals import (
    MOST_OUTPUT,
    ModelRefusal,
    forbidden,
    needs_server_tools,
    shown,
    whole,
)

_ADDRESS = re.compile(
    r"(?P<base>/.+)/(?P<model>[A-Za-z0-9][A-Za-z0-9._-]{0,99}):(?P<method>streamGenerateContent|generateContent|countTokens)"
)
_KEYS = frozenset({"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "safetySettings"})
_ASKS_SERVICE = frozenset({"cachedContent"})
_CONFIG_KEYS = frozenset(
    {
        "temperature", "topP", "topK", "thinkingConfig", "responseMimeType", "responseJsonSchema", "responseSchema",
        "maxOutputTokens", "candidateCount", "stopSequences", "seed", "presencePenalty", "frequencyPenalty",
        "responseLogprobs", "logprobs", "mediaResolution", "responseModalities",
    }
)  # fmt: skip
_THINKING_KEYS = frozenset({"includeThoughts", "thinkingBudget", "thinkingLevel"})
_CONTENT_KEYS = frozenset({"role", "parts"})
_PART_KEYS = frozenset(
    {
        "text",
        "inlineData",
        "functionCall",
        "functionResponse",
        "thought",
        "thoughtSignature",
        "videoMetadata",
        "mediaResolution",
    }
)
_MEDIA_KEYS = frozenset({"mimeType", "data", "displayName"})
_RESPONSE_KEYS = frozenset({"id", "name", "response", "parts", "willContinue", "scheduling"})
_TOOL_KEYS = frozenset({"functionDeclarations"})


class GoogleMethod(StrEnum):
    """What is asked of a model."""

    STREAM = "streamGenerateContent"
    GENERATE = "generateContent"
    COUNT = "countTokens"  # costs nothing


@dataclass(frozen=True)
class GoogleCall:
    """What a request's address says: a model, and what is asked of it. `base`: the path before them, as configured."""

    base: str
    model: str
    method: GoogleMethod

    @property
    def query(self) -> str:
        """The only query that such a request may have, and has to: without it, a stream is no list of events."""
        return "alt=sse" if self.method is GoogleMethod.STREAM else ""


def read_address(path: str) -> GoogleCall | None:
    """The call at a path such as /v1beta/models/gemini-2.5-pro:generateContent; None if it is no such path."""
    found = _ADDRESS.fullmatch(path)
    return GoogleCall(found["base"], found["model"], GoogleMethod(found["method"])) if found else None


def check_google(call: GoogleCall, body: dict[str, Any], most: int, *, strict: bool) -> int:
    """Check a request and give it a limit of `most` if it has none; how many tokens it may cost beyond its bytes.

    `strict`: nothing in it may have Google fetch, look up or run something. Raises ModelRefusal.
    """
    _only(body, _KEYS if strict else _KEYS | _ASKS_SERVICE, "the request")
    if call.method is GoogleMethod.COUNT:
        _only(body, frozenset({"contents"}), "a request to count tokens")
        _media(body, strict)
        return 0
    if strict:
        for tool in _objects(body.get("tools"), "tools"):
            _only(tool, _TOOL_KEYS, "tools", needs_server_tools)
    return _media(body, strict) + _limit(body, most)


def _limit(body: dict[str, Any], most: int) -> int:
    config = body.setdefault("generationConfig", {})
    if not isinstance(config, dict):
        raise ModelRefusal(400, "`generationConfig` is not an object.")
    _only(config, _CONFIG_KEYS, "generationConfig")
    if config.get("candidateCount") not in (None, 1):
        raise ModelRefusal(400, "`candidateCount` must be 1: ask again for another answer.")
    modalities = config.get("responseModalities")
    if modalities is not None and modalities != ["TEXT"]:
        raise forbidden("`responseModalities` must be TEXT only: what pictures and speech cost can't be foreseen.")
    thinking = config.get("thinkingConfig") or {}
    if not isinstance(thinking, dict):
        raise ModelRefusal(400, "`thinkingConfig` is not an object.")
    _only(thinking, _THINKING_KEYS, "thinkingConfig")
    if config.get("maxOutputTokens") is None:
        config["maxOutputTokens"] = most
    limit = whole("maxOutputTokens", config["maxOutputTokens"], 1, MOST_OUTPUT)
    budget = thinking.get("thinkingBudget")
    # Whether thoughts count towards the limit is not said anywhere; -1 leaves their number to the model.
    return limit + max(0, whole("thinkingBudget", budget, -1, MOST_OUTPUT) if budget is not None else 0)


def _media(body: Mapping[str, Any], strict: bool) -> int:
    """The tokens of pictures and documents beyond their bytes."""
    contents = _objects(body.get("contents"), "contents")
    system = body.get("systemInstruction")
    holders = [*contents, *([] if system is None else _objects([system], "systemInstruction"))]
    if not contents:
        raise ModelRefusal(400, "the request has no list `contents`.")
    if not strict:
        return 0
    for holder in holders:
        _only(holder, _CONTENT_KEYS, "contents")
    return sum(_part_tokens(part) for holder in holders for part in _objects(holder.get("parts"), "parts"))


def _part_tokens(part: Mapping[str, Any]) -> int:
    _only(part, _PART_KEYS, "a part", needs_server_tools)
    tokens = 0
    media = part.get("inlineData")
    if media is not None:
        (media,) = _objects([media], "inlineData")
        _only(media, _MEDIA_KEYS, "inlineData", needs_server_tools)
        kind = media.get("mimeType")
        tokens = IMAGE_TOKENS if isinstance(kind, str) and kind.startswith("image/") else DOCUMENT_TOKENS
    response = part.get("functionResponse")
    if response is not None:
        (response,) = _objects([response], "functionResponse")
        _only(response, _RESPONSE_KEYS, "functionResponse")
        for inner in _objects(response.get("parts"), "functionResponse.parts"):
            if set(inner) - {"inlineData"}:
                raise needs_server_tools(f"the key {shown(sorted(set(inner) - {'inlineData'})[0])}")
            tokens += _part_tokens(inner)
    return tokens


def _objects(value: object, where: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ModelRefusal(400, f"`{where}` is not a list of objects.")
    return value


def _only(
    value: Mapping[str, Any], known: frozenset[str], where: str, refusal: Callable[[str], ModelRefusal] | None = None
) -> None:
    for key in value:
        if key not in known:
            raise (refusal or _unknown)(f"the key {shown(key)} in {where}")


def _unknown(what: str) -> ModelRefusal:
    return forbidden(f"the request has {what}, which ravebot does not know, so it is not passed on: leave it out.")
