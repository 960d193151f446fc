"""Requests in Google's shape are checked and given a limit, and what they cost is read from the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.models.contents import DOCUMENT_TOKENS, IMAGE_TOKENS
from ravebot.agents.models.events import EventCutter
from ravebot.agents.models.google import GoogleMethod, read_address
from ravebot.agents.models.refusals import ModelRefusal
from ravebot.agents.models.requests import CheckedRequest, check_google_request
from ravebot.agents.models.usage import StreamedUsage, of_answer
from ravebot.config.model import ModelConfig
from ravebot.config.modelapis import ModelApi
from tests.support.models import COSTS, USAGE, google_stream, sse

GOOGLE = ModelApi.GOOGLE
STRICT = ModelConfig.model_validate(
    {"name": "google", "url": "https://g.example.org", "paths": ["/v1beta/models"], "allow": ["gemini-*"],
     "max_output": 500, "header": "x-goog-api-key"}
)  # fmt: skip
LOOSE = STRICT.model_copy(update={"server_tools": "allow"})
BASE = "/v1beta/models/gemini-2.5-pro"
WORDS = {"role": "user", "parts": [{"text": "Say hello."}]}
PICTURE = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
SOUND = {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}


def said(*parts: object, **more: object) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": list(parts) or [{"text": "Say hello."}]}], **more}


def check(body: object, config: ModelConfig = STRICT, path: str = f"{BASE}:streamGenerateContent") -> CheckedRequest:
    call = read_address(path)
    assert call
    return check_google_request(call, config, json.dumps(body).encode())


def sent(body: object, config: ModelConfig = STRICT) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(check(body, config).body)
    return found


def beyond(body: object) -> int:
    """What is reserved beyond the bytes of what is sent."""
    checked = check(body)
    return checked.reserve - len(checked.body)


@pytest.mark.parametrize("method", GoogleMethod)
def test_the_address_names_model_and_method(method: GoogleMethod) -> None:
    call = read_address(f"{BASE}:{method}")
    assert call
    assert (call.base, call.model, call.method) == ("/v1beta/models", "gemini-2.5-pro", method)
    assert call.query == ("alt=sse" if method is GoogleMethod.STREAM else "")


@pytest.mark.parametrize(
    "path",
    [
        f"{BASE}:embedContent", f"{BASE}:batchGenerateContent", f"{BASE}", f"{BASE}:generateContent/x",
        "/v1beta/models/..:generateContent", "/v1beta/models/a%2Fb:generateContent", "/v1beta/models/:generateContent",
        "/v1beta/cachedContents", f"{BASE}:generateContent:countTokens", f"{BASE}:GENERATECONTENT", "",
    ],
)  # fmt: skip
def test_other_addresses_are_none_of_a_model(path: str) -> None:
    assert read_address(path) is None


def test_a_request_without_a_limit_gets_one_and_is_otherwise_sent_as_it_was() -> None:
    body = said(
        systemInstruction=WORDS, tools=[{"functionDeclarations": [{"name": "ls", "parametersJsonSchema": {}}]}],
        generationConfig={"temperature": 1, "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 8192}},
    )  # fmt: skip
    found = sent(body)
    assert found["generationConfig"].pop("maxOutputTokens") == 500
    assert found == body
    assert beyond(body) == 500 + 8192
    assert sent(said())["generationConfig"] == {"maxOutputTokens": 500}
    assert beyond(said(generationConfig={"maxOutputTokens": 77})) == 77
    assert check(said()).stream
    assert not check(said(), path=f"{BASE}:generateContent").stream


def test_to_count_tokens_costs_nothing_and_asks_nothing_else() -> None:
    path = f"{BASE}:countTokens"
    assert check({"contents": [WORDS]}, path=path).reserve == 0
    assert json.loads(check({"contents": [WORDS]}, path=path).body) == {"contents": [WORDS]}
    with pytest.raises(ModelRefusal, match="'generationConfig' in a request to count tokens"):
        check(said(generationConfig={}), path=path)


def test_media_cost_more_than_their_bytes_wherever_they_are() -> None:
    assert beyond(said(PICTURE)) == 500 + IMAGE_TOKENS
    assert beyond(said(SOUND, PICTURE)) == 500 + IMAGE_TOKENS + DOCUMENT_TOKENS
    inside = {"functionResponse": {"id": "1", "name": "look", "response": {"ok": True}, "parts": [PICTURE]}}
    assert beyond(said(inside)) == 500 + IMAGE_TOKENS


FILE = {"fileData": {"fileUri": "https://example.org/secret", "mimeType": "text/plain"}}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (said(FILE), "'fileData' in a part"),
        (said({"file_data": FILE["fileData"]}), "'file_data' in a part"),
        (said({"functionResponse": {"name": "x", "response": {}, "parts": [FILE]}}), "'fileData'"),
        (
            said({"functionResponse": {"name": "x", "response": {}, "parts": [{"functionResponse": {}}]}}),
            "'functionResponse'",
        ),
        (said({"inlineData": {"mimeType": "image/png", "fileUri": "https://example.org"}}), "'fileUri' in inlineData"),
        (said({"inline_data": {}}), "'inline_data'"),
        (said({"executableCode": {}}), "'executableCode'"),
        (said(tools=[{"googleSearch": {}}]), "'googleSearch' in tools"),
        (said(tools=[{"functionDeclarations": [], "urlContext": {}}]), "'urlContext' in tools"),
        (said(tools=[{"code_execution": {}}]), "'code_execution' in tools"),
        (said(cachedContent="cachedContents/1"), "'cachedContent' in the request"),
        (said(cached_content="cachedContents/1"), "'cached_content' in the request"),
        (said(model="models/other"), "'model' in the request"),
        (said(system_instruction=WORDS), "'system_instruction' in the request"),
        (said(generationConfig={"max_output_tokens": 9}), "'max_output_tokens' in generationConfig"),
        (said(generationConfig={"speechConfig": {}}), "'speechConfig' in generationConfig"),
        (said(generationConfig={"responseModalities": ["IMAGE"]}), "must be TEXT only"),
        (said(generationConfig={"thinkingConfig": {"thinking_budget": 1}}), "'thinking_budget' in thinkingConfig"),
        ({**said(), "contents": [{"role": "user", "parts": [], "uri": "x"}]}, "'uri' in contents"),
    ],
)
def test_what_may_have_google_fetch_or_run_something_and_the_unknown_are_refused(body: object, why: str) -> None:
    with pytest.raises(ModelRefusal, match=why) as caught:
        check(body)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "body",
    [
        {}, {"contents": []}, {"contents": "hello"}, {"contents": ["hello"]}, said(generationConfig=[]),
        said(tools="x"),
        said(generationConfig={"maxOutputTokens": "9"}), said(generationConfig={"maxOutputTokens": 0}),
        said(generationConfig={"maxOutputTokens": True}), said(generationConfig={"candidateCount": 2}),
        said(generationConfig={"thinkingConfig": 1}),
        said(generationConfig={"thinkingConfig": {"thinkingBudget": 1.5}}),
        said({"inlineData": "x"}), said({"functionResponse": {"parts": "x"}}), said(systemInstruction="x"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused(body: object) -> None:
    with pytest.raises(ModelRefusal) as caught:
        check(body)
    assert caught.value.status == 400


def test_where_the_operator_allows_it_google_may_fetch_and_limits_still_hold() -> None:
    assert sent(said(FILE, tools=[{"googleSearch": {}}], cachedContent="x"), LOOSE)["tools"] == [{"googleSearch": {}}]
    for body in (said(generationConfig={"max_output_tokens": 9}), said(generation_config={})):
        with pytest.raises(ModelRefusal):
            check(body, LOOSE)


def test_a_model_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(ModelRefusal, match="'veo-3' is not among the models"):
        check(said(), path="/v1beta/models/veo-3:generateContent")


def answer(**usage: object) -> bytes:
    return json.dumps({"candidates": [], "usageMetadata": usage}).encode()


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (json.dumps({"usageMetadata": USAGE["google"]}).encode(), COSTS["google"]),
        (answer(promptTokenCount=10, candidatesTokenCount=5), 15),
        (answer(promptTokenCount=10), 10),
        (answer(promptTokenCount=10, cachedContentTokenCount=9), 10),
        (answer(promptTokenCount=10, candidatesTokenCount=1, totalTokenCount=40), 40),
        (answer(promptTokenCount=10, candidatesTokenCount="5"), None),
        (answer(promptTokenCount=10, thoughtsTokenCount=-5), None),
        (answer(candidatesTokenCount=5), None),
        (b'{"usage": {"promptTokenCount": 1}}', None),
        (b"[]", None),
    ],
)
def test_the_usage_of_an_answer_in_one_piece(body: bytes, tokens: int | None) -> None:
    assert of_answer(GOOGLE, body) == tokens


@given(st.data())
def test_a_stream_that_is_cut_anywhere_says_the_same_and_loses_nothing(data: st.DataObject) -> None:
    whole = b"".join(google_stream())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    cutter, usage, passed = EventCutter(), StreamedUsage(GOOGLE), b""
    for begins, ends in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        passed += b"".join(usage.passed(cutter.feed(whole[begins:ends])))
    assert passed + cutter.rest() == whole
    assert usage.total == COSTS["google"]


def test_before_the_end_the_sums_so_far_do_not_count_and_after_it_later_ones_do() -> None:
    usage = StreamedUsage(GOOGLE)
    *before, last = google_stream()
    assert all(map(usage.passes, before))
    assert usage.total is None
    usage.passes(last)
    assert usage.total == COSTS["google"]
    usage.passes(sse({"responseId": "1"}))
    assert usage.total == COSTS["google"]
    usage.passes(sse({"usageMetadata": {**USAGE["google"], "totalTokenCount": 99}}))
    assert usage.total == 99


def test_a_prompt_that_google_blocks_has_cost_what_it_says() -> None:
    usage = StreamedUsage(GOOGLE)
    usage.passes(sse({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 12}}))
    assert usage.total == 12
