"""Checks a request to a model and builds what is sent instead of it: what was checked is what is sent. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ravebot.agents.models.contents import media_tokens
from ravebot.agents.models.google import GoogleCall, GoogleMethod, check_google
from ravebot.agents.models.parsing import is_quickly_parsed
from ravebot.agents.models.refusals import (
    MOST_OUTPUT,
    ModelRefusal,
    forbidden,
    needs_server_tools,
    shown,
    whole,
)
from ravebot.config.model import ModelConfig
from ravebot.config.modelapis import ModelApi

_MOST_CHOICES = 16
_LONGEST_MODEL = 200
_ANTHROPIC_KEYS = frozenset(
    {
        "model", "messages", "system", "max_tokens", "stream", "stop_sequences", "temperature", "top_k", "top_p",
        "tools", "tool_choice", "thinking", "metadata", "service_tier", "cache_control", "context_management",
        "output_config", "output_format", "speed", "inference_geo", "compaction", "diagnostics",
    }
)  # fmt: skip
_SAMPLING_KEYS = frozenset(
    {
        "model", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "top_a", "typical_p", "seed",
        "frequency_penalty", "presence_penalty", "repetition_penalty", "repeat_penalty", "metadata", "user", "store",
        "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
        "tools", "tool_choice", "parallel_tool_calls", "reasoning", "top_logprobs", "verbosity", "max_tokens",
    }
)  # fmt: skip
_KEYS: Mapping[ModelApi, frozenset[str]] = {
    ModelApi.MESSAGES: _ANTHROPIC_KEYS,
    ModelApi.COUNT_TOKENS: _ANTHROPIC_KEYS,
    ModelApi.CHAT: _SAMPLING_KEYS
    | {
        "messages", "max_completion_tokens", "n", "stop", "logit_bias", "logprobs", "response_format", "prediction",
        "reasoning_effort", "functions", "function_call", "modalities", "audio", "thinking", "enable_thinking",
        "thinking_budget", "chat_template_kwargs", "usage", "include_reasoning", "cache_prompt",
    },
    ModelApi.RESPONSES: _SAMPLING_KEYS
    | {"input", "instructions", "max_output_tokens", "include", "text", "truncation", "context_management"},
}  # fmt: skip
"""What requests may have, so that what providers add later is refused until it is known here."""
_CLIENT_TOOLS: Mapping[ModelApi, tuple[str, ...]] = {
    ModelApi.MESSAGES: ("", "custom", "bash_", "text_editor_", "computer_", "memory_"),
    ModelApi.COUNT_TOKENS: ("", "custom", "bash_", "text_editor_", "computer_", "memory_"),
    ModelApi.CHAT: ("function", "custom"),
    ModelApi.RESPONSES: ("function", "custom", "local_shell", "apply_patch", "computer", "computer_use_preview"),
}
"""The tools that the client runs itself; of those that end in `_` the date follows."""


@dataclass(frozen=True)
class CheckedRequest:
    """What is sent, and what it may cost. `hide_usage`: the client did not ask for the chunk with the usage.

    `choices`: how many answers it asks for at once.
    """

    body: bytes
    model: str
    reserve: int
    stream: bool
    hide_usage: bool = False
    choices: int = 1


def check_google_request(call: GoogleCall, config: ModelConfig, raw: bytes) -> CheckedRequest:
    """The same for one whose address names the model. Raises ModelRefusal."""
    _check_model(config, call.model)
    body = _parsed(raw)
    beyond = check_google(call, body, config.max_output, strict=config.server_tools == "refuse")
    rebuilt = _dumped(body)
    reserve = 0 if call.method is GoogleMethod.COUNT else len(rebuilt) + beyond
    return CheckedRequest(rebuilt, call.model, reserve, stream=call.method is GoogleMethod.STREAM)


def check_request(api: ModelApi, config: ModelConfig, raw: bytes) -> CheckedRequest:
    """Parse, check and rebuild a request. Raises ModelRefusal."""
    body = _parsed(raw)
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= _LONGEST_MODEL:
        raise ModelRefusal(400, "the request names no `model`.")
    _check_model(config, model)
    media = 0
    if config.server_tools == "refuse":
        _check_keys(api, body)
        _check_tools(api, body)
        if model.endswith(":online"):
            raise needs_server_tools(f"the model's ending {shown(':online')}")
        media = media_tokens(api, body)
    else:
        for other in _other_models(body):
            _check_model(config, other)
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise ModelRefusal(400, "`stream` must be true or false.")
    choices = whole("n", body["n"], 1, _MOST_CHOICES) if body.get("n") is not None else 1
    output = _with_limit(api, body, config.max_output) * choices
    hide_usage = api is ModelApi.CHAT and stream and _ask_for_usage(body)
    rebuilt = _dumped(body)
    reserve = 0 if api is ModelApi.COUNT_TOKENS else len(rebuilt) + media + output
    return CheckedRequest(rebuilt, model, reserve, stream, hide_usage, choices)


def _check_model(config: ModelConfig, model: object) -> None:
    if not isinstance(model, str) or not config.allows(model):
        raise forbidden(
            f"{shown(model)} is not among the models that {config.name} allows: {', '.join(config.allow)[:500]}."
            " Take one of them; an admin of ravebot can add it to models[].allow."
        )


def _other_models(body: Mapping[str, Any]) -> Iterator[object]:
    """The models that services ask besides `model`: those that are tried next, and those of their tools.

    https://openrouter.ai/docs/guides/routing/model-fallbacks
    """
    for key in ("models", "fallbacks", "tools"):
        values = body.get(key)
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, dict):
                value = value.get("model")
            elif key == "tools":
                continue
            if value is not None:
                yield value


def _parsed(raw: bytes) -> dict[str, Any]:
    if not is_quickly_parsed(raw):
        raise ModelRefusal(413, "the request has too many values: make it smaller.")
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):  # UnicodeDecodeError, JSONDecodeError and numbers of too many digits included
        raise ModelRefusal(400, "the request's body is not JSON in UTF-8.") from None
    if not isinstance(body, dict):
        raise ModelRefusal(400, "the request's body is not a JSON object.")
    return body


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _dumped(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:  # half a character, as an agent that cuts texts makes them
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (ValueError, RecursionError):
        raise ModelRefusal(400, "the request has a number that is too large.") from None


def _check_keys(api: ModelApi, body: Mapping[str, Any]) -> None:
    for key in body:
        if key not in _KEYS[api] and body[key] is not None:
            raise needs_server_tools(f"the key {shown(key)}")


def _check_tools(api: ModelApi, body: Mapping[str, Any]) -> None:
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise ModelRefusal(400, "`tools` is not a list.")
    for tool in tools:
        kind = (tool.get("type") or "") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or not any(_is_tool(kind, known) for known in _CLIENT_TOOLS[api]):
            raise needs_server_tools(f"a tool of the type {shown(kind)}")


def _is_tool(kind: str, known: str) -> bool:
    return kind.startswith(known) if known.endswith("_") else kind == known


def _with_limit(api: ModelApi, body: dict[str, Any], most: int) -> int:
    """How many tokens each answer may have at most; a request that does not say gets a limit."""
    if api is ModelApi.COUNT_TOKENS:
        return 0
    keys = {
        ModelApi.MESSAGES: ("max_tokens",),
        ModelApi.CHAT: ("max_completion_tokens", "max_tokens"),
        ModelApi.RESPONSES: ("max_output_tokens",),
    }[api]
    # Some servers of OpenAI's shape take 0 as no limit, and no choices as one.
    least = 0 if api.is_anthropic else 1
    limits = [whole(key, body[key], least, MOST_OUTPUT) for key in keys if body.get(key) is not None]
    if not limits:
        body[keys[0]] = most
        limits = [most]
    return max(limits)


def _ask_for_usage(body: dict[str, Any]) -> bool:
    """Have the stream say what was used, at its end; whether the client did not ask for that.

    Usage in every chunk, which some servers offer, is not asked for: only the last one is what was used.
    """
    options = body.get("stream_options")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    obfuscate = options.get("include_obfuscation") if isinstance(options, dict) else None
    others = {"include_obfuscation": obfuscate} if isinstance(obfuscate, bool) else {}
    body["stream_options"] = {**others, "include_usage": True}
    return not asked
