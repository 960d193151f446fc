"""Requests to models are checked as what they are and rebuilt, and nothing that providers fetch or run gets through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.models.contents import DOCUMENT_TOKENS, IMAGE_TOKENS
from ravebot.agents.models.refusals import ModelRefusal, error_body
from ravebot.agents.models.requests import CheckedRequest, check_request
from ravebot.config.model import ModelConfig
from ravebot.config.modelapis import ModelApi, api_of

MESSAGES, CHAT, RESPONSES, COUNT = ModelApi.MESSAGES, ModelApi.CHAT, ModelApi.RESPONSES, ModelApi.COUNT_TOKENS
STRICT = ModelConfig.model_validate(
    {"name": "m", "url": "https://m.example.org", "paths": ["/v1/messages"], "allow": ["claude-*", "tiny"],
     "max_output": 500}
)  # fmt: skip
LOOSE = STRICT.model_copy(update={"server_tools": "allow"})
PNG = {"type": "base64", "media_type": "image/png", "data": "AAAA"}


def check(api: ModelApi, body: object, config: ModelConfig = STRICT) -> CheckedRequest:
    return check_request(api, config, body if isinstance(body, bytes) else json.dumps(body).encode())


def said(*content: object, **more: object) -> dict[str, Any]:
    """A request of Messages or Chat with one message of these parts."""
    return {"model": "tiny", "messages": [{"role": "user", "content": list(content)}], **more}


def items(*found: object, **more: object) -> dict[str, Any]:
    return {"model": "tiny", "input": list(found), **more}


def sent(api: ModelApi, body: object, config: ModelConfig = STRICT) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(check(api, body, config).body)
    return found


def test_the_api_follows_from_the_path() -> None:
    assert [api_of(f"/v1{api}") for api in ModelApi] == list(ModelApi)
    assert api_of("/chat/completions") is CHAT
    assert api_of("/v1/embeddings") is None


@pytest.mark.parametrize(
    ("api", "body", "output"),
    [
        (MESSAGES, said(max_tokens=77), 77),
        (CHAT, said(max_tokens=77), 77),
        (CHAT, said(max_completion_tokens=70, max_tokens=7), 70),
        (CHAT, said(max_tokens=10, n=3), 30),
        (RESPONSES, items(max_output_tokens=77), 77),
        (COUNT, said(), 0),
    ],
)
def test_what_a_request_reserves_is_its_bytes_and_the_longest_answer(
    api: ModelApi, body: dict[str, Any], output: int
) -> None:
    checked = check(api, body)
    assert json.loads(checked.body) == body
    assert checked.reserve == (0 if api is COUNT else len(checked.body) + output)


@pytest.mark.parametrize(
    ("api", "key"), [(MESSAGES, "max_tokens"), (CHAT, "max_completion_tokens"), (RESPONSES, "max_output_tokens")]
)
def test_a_request_that_sets_no_limit_to_its_answer_gets_one(api: ModelApi, key: str) -> None:
    body = items() if api is RESPONSES else said()
    assert sent(api, body)[key] == 500
    assert sent(api, {**body, key: None})[key] == 500


def test_each_of_several_answers_at_once_is_reserved_the_limit() -> None:
    checked = check(CHAT, said(n=3))
    assert (checked.reserve, checked.choices) == (len(checked.body) + 3 * 500, 3)


def test_images_and_documents_reserve_more_than_their_bytes() -> None:
    plain = check(MESSAGES, said()).reserve
    image = check(MESSAGES, said({"type": "image", "source": PNG})).reserve
    inside = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image", "source": PNG}]}
    assert IMAGE_TOKENS < image - plain < IMAGE_TOKENS + 1000
    assert check(MESSAGES, said(inside)).reserve > plain + IMAGE_TOKENS
    assert check(MESSAGES, said({"type": "document", "source": PNG})).reserve > DOCUMENT_TOKENS
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}}
    assert check(MESSAGES, said(text)).reserve < plain + 1000
    drawn = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert check(CHAT, said(drawn)).reserve > IMAGE_TOKENS


FINE = [
    (MESSAGES, said({"type": "text", "text": "https://example.org/ is an address"}, system="be kind")),
    (MESSAGES, said(system=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}])),
    (MESSAGES, said({"type": "tool_use", "id": "1", "name": "x", "input": {"source": {"type": "url", "url": "u"}}})),
    (MESSAGES, said({"type": "tool_result", "tool_use_id": "1", "content": "done"})),
    (MESSAGES, said({"type": "thinking", "thinking": "…", "signature": "s"}, thinking={"type": "adaptive"})),
    (MESSAGES, said(tools=[{"name": "a", "input_schema": {"type": "object"}}, {"type": "custom", "name": "b"}])),
    (MESSAGES, said(tools=[{"type": "bash_20250124", "name": "bash"}, {"type": "text_editor_20250728"}])),
    (MESSAGES, said(tools=[{"type": "computer_20251124"}, {"type": "memory_20250818"}])),
    (CHAT, said({"type": "text", "text": "hi"}, tools=[{"type": "function", "function": {"name": "x"}}])),
    (CHAT, said(reasoning_effort="high", response_format={"type": "json_object"}, seed=1)),
    (CHAT, said({"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}})),
    (RESPONSES, {"model": "tiny", "input": "hi", "store": False, "include": ["reasoning.encrypted_content"]}),
    (RESPONSES, items({"role": "user", "content": [{"type": "input_text", "text": "hi"}]})),
    (RESPONSES, items({"type": "function_call", "arguments": "{}"}, {"type": "function_call_output", "output": "x"})),
    (RESPONSES, items({"type": "reasoning", "summary": [], "encrypted_content": "x"})),
    (RESPONSES, items(tools=[{"type": "function", "name": "x"}, {"type": "local_shell"}])),
    (RESPONSES, items({"type": "function_call_output", "output": [
        {"type": "input_image", "image_url": "data:image/png;base64,AA"}]})),
]  # fmt: skip


@pytest.mark.parametrize(("api", "body"), FINE)
def test_what_agents_usually_send_is_passed_on_as_it_is(api: ModelApi, body: dict[str, Any]) -> None:
    rebuilt = sent(api, body)
    assert {key: rebuilt[key] for key in body} == body


REFUSED = [
    (MESSAGES, said(mcp_servers=[{"type": "url", "url": "https://evil.example.org"}])),
    (MESSAGES, said(container="c")),
    (MESSAGES, said(fallbacks=[{"model": "claude-1"}])),
    (MESSAGES, said(a_key_of_tomorrow=1)),
    (MESSAGES, said(tools=[{"type": "web_search_20250305", "name": "web_search"}])),
    (MESSAGES, said(tools=[{"type": "web_fetch_20250910"}])),
    (MESSAGES, said(tools=[{"type": "code_execution_20250825"}])),
    (MESSAGES, said(tools=[{"type": "bash_20250124"}, {"type": "mcp_toolset"}])),
    (MESSAGES, said(tools=["web_search"])),
    (MESSAGES, said(tools=[{"type": {"bash_": 1}}])),
    (MESSAGES, said({"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/"}})),
    (MESSAGES, said({"type": "image", "source": {"type": "file", "file_id": "file_1"}})),
    (MESSAGES, said({"type": "document", "source": {"type": "url", "url": "http://10.0.0.1/"}})),
    (MESSAGES, said({"type": "document", "source": {"type": "content", "content": [
        {"type": "image", "source": {"type": "url", "url": "u"}}]}})),
    (MESSAGES, said({"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]})),
    (MESSAGES, said({"type": "container_upload", "file_id": "file_1"})),
    (MESSAGES, said({"type": "part_of_tomorrow"})),
    (MESSAGES, said(system=[{"type": "document", "source": {"type": "url", "url": "u"}}])),
    (COUNT, said({"type": "image", "source": {"type": "url", "url": "u"}})),
    (CHAT, said({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}})),
    (CHAT, said({"type": "image_url", "image_url": "http://169.254.169.254/"})),
    (CHAT, said({"type": "file", "file": {"file_id": "file-1"}})),
    (RESPONSES, items({"role": "user", "content": [
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "file_id": "file-1"}]})),
    (RESPONSES, items({"role": "user", "content": [
        {"type": "input_file", "file_data": "data:,", "file_url": "https://example.org/a.pdf"}]})),
    (CHAT, said({"type": "file", "file": {"file_data": "data:,", "file_id": "file-1"}})),
    (CHAT, said(web_search_options={})),
    (CHAT, said(plugins=[{"id": "web"}])),
    (CHAT, said(models=["claude-1"])),
    (CHAT, said(tools=[{"type": "web_search"}])),
    (CHAT, {"model": "tiny", "messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
    (RESPONSES, items(background=True)),
    (RESPONSES, items(previous_response_id="resp_1")),
    (RESPONSES, items(conversation="conv_1")),
    (RESPONSES, items(prompt={"id": "pmpt_1"})),
    (RESPONSES, items(tools=[{"type": "web_search"}])),
    (RESPONSES, items(tools=[{"type": "mcp", "server_url": "https://evil.example.org"}])),
    (RESPONSES, items(tools=[{"type": "code_interpreter"}, {"type": "file_search"}])),
    (RESPONSES, items(tools=[{"type": "shell"}])),
    (RESPONSES, items({"type": "item_reference", "id": "msg_1"})),
    (RESPONSES, items({"type": "mcp_approval_response", "approve": True})),
    (RESPONSES, items({"role": "user", "content": [{"type": "input_image", "image_url": "https://example.org"}]})),
    (RESPONSES, items({"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]})),
    (RESPONSES, items({"role": "user", "content": [{"type": "input_file", "file_url": "https://example.org"}]})),
    (RESPONSES, items({"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "f"}})),
]  # fmt: skip


@pytest.mark.parametrize(("api", "body"), REFUSED)
def test_what_providers_fetch_look_up_or_run_is_refused_unless_it_is_allowed(
    api: ModelApi, body: dict[str, Any]
) -> None:
    with pytest.raises(ModelRefusal, match=r"server_tools: allow") as caught:
        check(api, body)
    assert caught.value.status == 403
    rebuilt = sent(api, body, LOOSE)
    assert {key: rebuilt[key] for key in body} == body


@pytest.mark.parametrize(
    "more",
    [
        {"models": ["tiny", "other"]},
        {"models": "other"},
        {"fallbacks": [{"model": "other"}]},
        {"tools": [{"type": "advisor_20260301", "model": "other"}]},
        {"models": [["other"]]},
    ],
)
def test_where_server_tools_are_allowed_no_other_model_is_asked_either(more: dict[str, Any]) -> None:
    with pytest.raises(ModelRefusal, match=r"allows: claude-\*, tiny"):
        check(CHAT, said(**more), LOOSE)
    assert check(CHAT, said(models=["claude-1"], tools=[{"type": "web_search"}]), LOOSE)


def test_parts_that_lie_in_each_other_without_end_are_refused() -> None:
    inner: object = "x"
    for depth in range(200):
        inner = [{"type": "tool_result", "tool_use_id": "1", "content": inner}]
        if depth == 5:
            assert check(MESSAGES, {"model": "tiny", "messages": [{"role": "user", "content": inner}]})
    with pytest.raises(ModelRefusal, match="too deep"):
        check(MESSAGES, {"model": "tiny", "messages": [{"role": "user", "content": inner}]})


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "not JSON"),
        (b"\xff{}", 400, "not JSON"),
        (b"[1]", 400, "not a JSON object"),
        (b'{"model": NaN}', 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"1" * 5000, 400, "not JSON"),
        (b"[]," * 200_000, 413, "too many values"),
        (b'"",' * 110_000, 413, "too many values"),
        (b'{"a": "\\\\", "b": [' + b"1," * 200_000 + b"1]}", 413, "too many values"),
        (b'{"a": "\\"", "b": [' + b"1," * 200_000 + b"1]}", 413, "too many values"),
        (b'{"model": "tiny", "messages": [], "temperature": 1e999}', 400, "too large"),
        ({"messages": []}, 400, "names no `model`"),
        ({"model": ["tiny"], "messages": []}, 400, "names no `model`"),
        ({"model": "x" * 300, "messages": []}, 400, "names no `model`"),
        ({"model": "gpt-1", "messages": []}, 403, "allows: claude-*, tiny"),
        ({"model": "claude-1:online", "messages": []}, 403, "':online'"),
        ({"model": "tiny"}, 403, "no list `messages`"),
        ({"model": "tiny", "messages": ["hi"]}, 403, "messages[0] is not an object"),
        (said(stream="yes"), 400, "`stream`"),
        (said(max_tokens=-1), 400, "`max_tokens`"),
        (said(max_tokens=True), 400, "`max_tokens`"),
        (said(max_tokens=1e3), 400, "`max_tokens`"),
        (said(max_tokens=10**12), 400, "`max_tokens`"),
        (said(n=1000), 400, "`n`"),
        (said(n=0, max_tokens=10_000_000), 400, "`n`"),
        (said(max_tokens=0), 400, "`max_tokens`"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(body: object, status: int, word: str) -> None:
    with pytest.raises(ModelRefusal) as caught:
        check(CHAT, body)
    assert (caught.value.status, word in caught.value.text) == (status, True), caught.value.text


def test_of_two_values_for_a_key_the_one_that_was_checked_is_sent() -> None:
    body = b'{"model": "gpt-9", "model": "tiny", "messages": [], "n": 1, "n": 2}'
    checked = check(CHAT, body)
    assert checked.model == "tiny"
    assert checked.body.count(b"model") == checked.body.count(b'"n"') == 1


def test_a_stream_of_a_chat_says_at_its_end_what_was_used() -> None:
    checked = check(CHAT, said(stream=True))
    assert checked.hide_usage
    assert json.loads(checked.body)["stream_options"] == {"include_usage": True}
    asked = {"include_usage": True, "include_obfuscation": False, "continuous_usage_stats": True}
    checked = check(CHAT, said(stream=True, stream_options=asked))
    assert not checked.hide_usage
    assert json.loads(checked.body)["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert "stream_options" not in sent(MESSAGES, said(stream=True))


def test_a_long_text_may_have_whatever_code_has() -> None:
    body = said({"type": "text", "text": '{"a": [1, 2, "\\"]},\n' * 100_000})
    assert sent(CHAT, body)["messages"] == body["messages"]


def test_half_a_character_is_passed_on_as_it_came() -> None:
    body = said({"type": "text", "text": "\ud83d"})
    assert sent(CHAT, body)["messages"] == body["messages"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["url", "file", "image", "document", "base64", "tool_result", "function", "tiny"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "source", "content", "url", "image_url", "file_id", "role", "output", "x"]), inner
    ),
    max_leaves=8,
)  # fmt: skip
BODIES = st.fixed_dictionaries(
    {"model": st.just("tiny")},
    optional=dict.fromkeys(
        ("messages", "input", "system", "tools", "stream", "stream_options", "max_tokens", "n", "x"), ANYTHING
    ),
)


def checked_or_refused(api: ModelApi, body: object) -> CheckedRequest | ModelRefusal:
    try:
        return check(api, body)
    except ModelRefusal as refusal:
        return refusal


@given(api=st.sampled_from([api for api in ModelApi if api is not ModelApi.GOOGLE]), body=BODIES)
def test_whatever_comes_is_refused_in_words_or_rebuilt_and_allowed_again(api: ModelApi, body: dict[str, Any]) -> None:
    checked = checked_or_refused(api, body)
    if isinstance(checked, ModelRefusal):
        assert checked.status in (400, 403)
        assert json.loads(error_body(checked.status, checked.text))["error"]["message"].startswith("ravebot: ")
    else:
        assert check(api, checked.body).body == checked.body


def test_half_a_character_in_an_error_is_shown_as_a_question_mark() -> None:
    assert json.loads(error_body(400, "half \ud800"))["error"]["message"] == "ravebot: half ?"


def has_remote(value: object) -> bool:
    """Whether a part that a provider would fetch is anywhere in it, as Anthropic's blocks and OpenAI's parts go."""
    if isinstance(value, list):
        return any(map(has_remote, value))
    if not isinstance(value, dict):
        return False
    source = value.get("source")
    if (
        value.get("type") in ("image", "document")
        and isinstance(source, dict)
        and source.get("type") in ("url", "file")
    ):
        return True
    return any(has_remote(inner) for key, inner in value.items() if key in ("content", "source", "output"))


@given(parts=st.lists(ANYTHING, max_size=3))
def test_no_address_gets_through_however_deep_it_lies(parts: list[object]) -> None:
    checked = checked_or_refused(MESSAGES, said(*parts))
    passed_on = json.loads(checked.body)["messages"] if isinstance(checked, CheckedRequest) else []
    assert not any(has_remote(message["content"]) for message in passed_on)
