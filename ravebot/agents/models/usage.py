"""Reads from a model's answer how many tokens it cost, streamed or not. Pure.

Anthropic: `message_start` has the input, each `message_delta` the sums so far, of which the last one counts:
https://docs.claude.com/en/docs/build-with-claude/streaming. OpenAI: the last chunk of a chat stream, whose `choices`
are empty, if the request asked for it: https://platform.openai.com/docs/api-reference/chat-streaming; of Responses the
event that ends it: https://platform.openai.com/docs/api-reference/responses-streaming. Google: every event may have the
sums so far, that of the end counts: https://ai.google.dev/api/generate-content#UsageMetadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ravebot.agents.models.events import LONGEST_EVENT_BYTES, each
from ravebot.agents.models.parsing import is_quickly_parsed
from ravebot.config.modelapis import ModelApi

_MOST_TOKENS = 1_000_000_000
_EVENTS_AT_ONCE = 500
_ANTHROPIC_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_GOOGLE_OUTPUT = ("candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount")
_IN_EVERY_USAGE = {
    ModelApi.MESSAGES: b"put_tokens",
    ModelApi.COUNT_TOKENS: b"put_tokens",
    ModelApi.CHAT: b"completion_tokens",
    ModelApi.RESPONSES: b"output_tokens",
    ModelApi.GOOGLE: b"usageMetadata",
}
"""What a usage that counts has in it, and most pieces of a stream have not. Long words are found the fastest.

A service that writes it with escapes has nothing settled: what was reserved stands.
"""
_WITH_USAGE = re.compile(rb'"usage(?:Metadata)?"\s*:\s*\{')
"""In a text of the model's the quotes would be escaped."""
_ENDS = ("response.completed", "response.incomplete", "response.failed")


def of_answer(api: ModelApi, body: bytes) -> int | None:
    """The tokens of an answer that is not streamed; None if it does not say, or would take long to read."""
    return _total(api, _object(body).get("usageMetadata" if api is ModelApi.GOOGLE else "usage"))


@dataclass
class StreamedUsage:
    """Looks at a stream event by event; `total` is known only once the end was seen.

    `choices`: how many answers were asked for at once, which a chat stream has side by side.
    """

    api: ModelApi
    hide: bool = False
    choices: int = 1
    total: int | None = None
    _so_far: dict[str, Any] = field(default_factory=dict)

    def passed(self, events: bytes) -> Iterator[bytes]:
        """Take whole events, as they came; what the client gets of them, in pieces that do not take long each."""
        if self.total is None and _IN_EVERY_USAGE[self.api] not in events:  # as it mostly is
            yield events
            return
        rest = each(events)
        while some := tuple(islice(rest, _EVENTS_AT_ONCE)):
            yield b"".join(event for event in some if self.passes(event))

    def passes(self, event: bytes) -> bool:
        """Take one event, as it came; whether the client gets it."""
        if self.total is None and not _WITH_USAGE.search(event):
            return True
        data = _object(b"".join(_data_of(event)))
        match self.api:
            case ModelApi.MESSAGES:
                self._anthropic(data)
            case ModelApi.RESPONSES:
                if data.get("type") in _ENDS:
                    self.total = _total(self.api, _inner(data, "response").get("usage"))
            case ModelApi.CHAT:
                return self._chat(data)
            case ModelApi.GOOGLE:
                self._google(data)
            case ModelApi.COUNT_TOKENS:
                pass
        return True

    def _anthropic(self, data: Mapping[str, Any]) -> None:
        if data.get("type") == "message_start":
            self._so_far = dict(_inner(_inner(data, "message"), "usage"))
        elif data.get("type") == "message_delta":
            self._so_far.update({key: value for key, value in _inner(data, "usage").items() if value is not None})
            if _inner(data, "delta").get("stop_reason") or self.total is not None:
                self.total = _total(self.api, self._so_far)

    def _google(self, data: Mapping[str, Any]) -> None:
        """The end says why it ended: of the only candidate, or of the prompt."""
        candidates = data.get("candidates")
        listed = candidates if isinstance(candidates, list) else []
        usage = data.get("usageMetadata")
        ended = any(isinstance(one, dict) and one.get("finishReason") for one in listed)
        blocked = _inner(data, "promptFeedback").get("blockReason")
        if usage is not None and (ended or blocked or self.total is not None):
            self.total = _total(self.api, usage)

    def _chat(self, data: Mapping[str, Any]) -> bool:
        """Whatever choices come after a usage, it was not the whole.

        Some servers put the usage into the chunk that says why the choice ended, instead of into one without choices;
        with several choices nobody can tell whether that is of all of them.
        """
        choices, has_usage = data.get("choices") or [], isinstance(data.get("usage"), dict)
        if not choices:
            self.total = _total(self.api, data.get("usage")) if has_usage else self.total
            return not (has_usage and self.hide)
        ended = any(isinstance(choice, dict) and choice.get("finish_reason") for choice in choices)
        self.total = _total(self.api, data.get("usage")) if ended and self.choices == 1 else None
        return True


def _data_of(event: bytes) -> Iterable[bytes]:
    """The data of a server-sent event, whose lines are joined as one JSON text allows it."""
    for line in event.splitlines():
        if line.startswith(b"data:"):
            yield line[5:]


def _object(body: bytes) -> Mapping[str, Any]:
    if len(body) > LONGEST_EVENT_BYTES or not is_quickly_parsed(body):
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _inner(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _total(api: ModelApi, usage: object) -> int | None:
    if not isinstance(usage, dict):
        return None
    if api is ModelApi.MESSAGES:
        iterations = usage.get("iterations")  # with compaction, the sums leave out the iterations before the last
        parts = [part for part in iterations if isinstance(part, dict)] if isinstance(iterations, list) else []
        counts = [_anthropic_total(usage), _known_sum(_anthropic_total(part) for part in parts)]
    elif api is ModelApi.GOOGLE:
        counts = [_google_total(usage), _count(usage.get("totalTokenCount"))]
    elif api is ModelApi.CHAT:
        counts = [_sum(usage, ("prompt_tokens",), "completion_tokens"), _count(usage.get("total_tokens"))]
    else:
        counts = [_sum(usage, ("input_tokens",), "output_tokens"), _count(usage.get("total_tokens"))]
    if counts[0] is None:
        return None
    return max(count for count in counts if count is not None)


def _google_total(usage: Mapping[str, Any]) -> int | None:
    """Cached tokens are part of the prompt's. What there was none of is left out; what is no count makes it unknown."""
    counts = [_count(usage.get("promptTokenCount"))]
    counts += [_count(usage[key]) for key in _GOOGLE_OUTPUT if usage.get(key) is not None]
    return None if None in counts else _known_sum(counts)


def _anthropic_total(usage: Mapping[str, Any]) -> int | None:
    return _sum(usage, _ANTHROPIC_INPUT, "output_tokens")


def _sum(usage: Mapping[str, Any], inputs: tuple[str, ...], output: str) -> int | None:
    """The first input and the output must be there."""
    counts = [_count(usage.get(key)) for key in (inputs[0], output)]
    more = [_count(usage.get(key)) or 0 for key in inputs[1:]]
    return None if None in counts else sum(count or 0 for count in (*counts, *more))


def _known_sum(counts: Iterable[int | None]) -> int:
    return sum(count or 0 for count in counts)


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TOKENS:
        return None
    return value
