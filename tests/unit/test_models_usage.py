"""What an answer cost is read from both providers' shapes, however the stream is cut, and only from its end."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.models.events import LONGEST_EVENT_BYTES, EventCutter, EventTooLong, each
from ravebot.agents.models.usage import StreamedUsage, of_answer
from ravebot.config.modelapis import ModelApi
from tests.support.models import COSTS, USAGE, chat_stream, messages_stream, responses_stream, sse

MESSAGES, CHAT, RESPONSES = ModelApi.MESSAGES, ModelApi.CHAT, ModelApi.RESPONSES
STREAMS = {MESSAGES: messages_stream(), CHAT: chat_stream(), RESPONSES: responses_stream()}
NAMES = {MESSAGES: "messages", CHAT: "chat", RESPONSES: "responses"}


def answer(**usage: object) -> bytes:
    return json.dumps({"usage": usage}).encode()


@pytest.mark.parametrize(
    ("api", "body", "tokens"),
    [
        *((api, json.dumps({"usage": USAGE[name]}).encode(), COSTS[name]) for api, name in NAMES.items()),
        (MESSAGES, answer(input_tokens=1, output_tokens=2), 3),
        (MESSAGES, answer(input_tokens=1, output_tokens=2, cache_read_input_tokens=None), 3),
        (MESSAGES, answer(input_tokens=1, output_tokens=2, iterations=[
            {"input_tokens": 100, "output_tokens": 9}, {"input_tokens": 1, "output_tokens": 2}]), 112),
        (CHAT, answer(prompt_tokens=1, completion_tokens=2), 3),
        (CHAT, answer(prompt_tokens=1, completion_tokens=2, total_tokens=9), 9),
        (RESPONSES, answer(input_tokens=1, output_tokens=0), 1),
        (CHAT, answer(prompt_tokens=1), None),
        (CHAT, answer(prompt_tokens=-1, completion_tokens=2), None),
        (CHAT, answer(prompt_tokens="1", completion_tokens=2), None),
        (CHAT, answer(prompt_tokens=True, completion_tokens=2), None),
        (CHAT, answer(prompt_tokens=10**12, completion_tokens=2), None),
        (CHAT, b'{"usage": null}', None),
        (CHAT, b"{}", None),
        (CHAT, b"[]", None),
        (CHAT, b"no JSON", None),
    ],
)  # fmt: skip
def test_the_usage_of_an_answer_in_one_piece(api: ModelApi, body: bytes, tokens: int | None) -> None:
    assert of_answer(api, body) == tokens


@pytest.mark.parametrize("api", STREAMS)
@given(data=st.data())
def test_a_stream_that_is_cut_anywhere_says_the_same_and_loses_nothing(api: ModelApi, data: st.DataObject) -> None:
    newline = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    whole = b"".join(STREAMS[api]).replace(b"\n", newline)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    cutter, usage, passed = EventCutter(), StreamedUsage(api), b""
    for begins, ends in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        passed += b"".join(usage.passed(cutter.feed(whole[begins:ends])))
    assert passed + cutter.rest() == whole
    assert usage.total == COSTS[NAMES[api]]


@pytest.mark.parametrize("api", STREAMS)
def test_before_a_stream_s_end_nothing_is_known(api: ModelApi) -> None:
    usage = StreamedUsage(api)
    last = -2 if api in (MESSAGES, CHAT) else -1
    assert all(map(usage.passes, STREAMS[api][:last]))
    assert usage.total is None


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete", "response.failed"])
def test_a_response_s_usage_counts_at_each_kind_of_end_and_not_before(end: str) -> None:
    usage = StreamedUsage(RESPONSES)
    usage.passes(sse({"type": "response.in_progress", "response": {"usage": USAGE["responses"]}}))
    assert usage.total is None
    usage.passes(sse({"type": end, "response": {"usage": USAGE["responses"]}}))
    assert usage.total == COSTS["responses"]


def test_usage_in_every_chunk_counts_only_at_the_end() -> None:
    usage = StreamedUsage(CHAT)
    usage.passes(sse({"choices": [{"delta": {}, "finish_reason": None}], "usage": USAGE["chat"]}))
    assert usage.total is None
    usage.passes(sse({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": USAGE["chat"]}))
    assert usage.total == COSTS["chat"]


ENDED = sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE["chat"]})
MORE = sse({"choices": [{"index": 1, "delta": {"content": "more"}}]})
WHOLE = sse({"choices": [], "usage": USAGE["chat"]})
DONE = sse("[DONE]")


@pytest.mark.parametrize(
    ("choices", "events", "tokens"),
    [
        (1, [ENDED, DONE], 20),
        (1, [ENDED, MORE, DONE], None),
        (1, [WHOLE, MORE, DONE], None),
        (1, [WHOLE, MORE, WHOLE, DONE], 20),
        (1, [WHOLE, sse({"choices": [], "usage": None}), DONE], 20),
        (2, [ENDED, DONE], None),
        (2, [ENDED, MORE, ENDED, DONE], None),
        (2, [ENDED, MORE, ENDED, WHOLE, DONE], 20),
        (2, [WHOLE, ENDED, DONE], None),
    ],
)
def test_a_usage_counts_only_if_it_is_that_of_all_choices_to_their_end(
    choices: int, events: list[bytes], tokens: int | None
) -> None:
    apart, at_once = (StreamedUsage(CHAT, choices=choices) for _ in range(2))
    assert all(map(apart.passes, events))
    assert b"".join(at_once.passed(b"".join(events))) == b"".join(events)
    assert (apart.total, at_once.total) == (tokens, tokens)


def test_what_comes_in_a_later_piece_shows_that_a_usage_was_not_the_whole() -> None:
    usage = StreamedUsage(CHAT)
    assert [b"".join(usage.passed(piece)) for piece in (ENDED, MORE)] == [ENDED, MORE]
    assert usage.total is None


@pytest.mark.parametrize("choices", [[], None])
def test_the_chunk_with_the_usage_is_left_out_if_nobody_asked_for_it(choices: list[Any] | None) -> None:
    usage = StreamedUsage(CHAT, hide=True)
    assert not usage.passes(sse({"choices": choices, "usage": USAGE["chat"]}))
    assert usage.total == COSTS["chat"]


def test_sums_of_several_deltas_are_sums_so_far() -> None:
    usage = StreamedUsage(MESSAGES)
    usage.passes(sse({"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}))
    usage.passes(sse({"type": "message_delta", "delta": {}, "usage": {"input_tokens": None, "output_tokens": 10}}))
    assert usage.total is None
    usage.passes(sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}}))
    assert usage.total == 20
    usage.passes(sse({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 25}}))
    assert usage.total == 30


def test_a_message_s_start_need_not_say_what_was_put_out() -> None:
    usage = StreamedUsage(MESSAGES)
    start = sse({"type": "message_start", "message": {"usage": {"input_tokens": 5}}})
    end = sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}})
    assert b"".join(b"".join(usage.passed(event)) for event in (start, end)) == start + end
    assert usage.total == 20


def test_data_may_follow_its_colon_at_once() -> None:
    usage = StreamedUsage(CHAT)
    assert usage.passes(WHOLE.replace(b"data: ", b"data:"))
    assert usage.total == COSTS["chat"]


def test_an_answer_of_more_bytes_than_an_event_may_have_is_not_parsed() -> None:
    body = json.dumps({"usage": USAGE["chat"], "pad": "x" * LONGEST_EVENT_BYTES}).encode()
    assert of_answer(CHAT, body) is None


def test_what_the_model_writes_is_never_taken_for_usage() -> None:
    usage = StreamedUsage(CHAT)
    text = '"usage": {"prompt_tokens": 0, "completion_tokens": 0}, "choices": []'
    assert usage.passes(sse({"choices": [{"delta": {"content": text}}]}))
    assert usage.total is None


def test_many_events_that_must_be_looked_at_come_in_pieces_and_the_others_at_once() -> None:
    event = sse({"choices": [{"index": 0, "delta": {}}], "usage": {"completion_tokens": 1}})
    pieces = list(StreamedUsage(CHAT).passed(event * 1200))
    assert [len(piece) // len(event) for piece in pieces] == [500, 500, 200]
    words = sse({"choices": [{"index": 0, "delta": {"content": "usage"}}], "usage": None}) * 1200
    assert list(StreamedUsage(CHAT).passed(words)) == [words]


def test_a_usage_that_a_service_writes_with_escapes_settles_nothing() -> None:
    usage = StreamedUsage(CHAT)
    (event,) = usage.passed(sse({"choices": [], "usage": USAGE["chat"]}).replace(b"completion_", rb"completion\u005f"))
    assert event.startswith(b"data: ")
    assert usage.total is None


def test_an_event_that_does_not_end_is_given_up() -> None:
    cutter = EventCutter(100)
    assert cutter.feed(b"data: x\n\n" + b"y" * 100) == b"data: x\n\n"
    with pytest.raises(EventTooLong):
        cutter.feed(b"y")


def test_a_long_event_in_many_pieces_takes_time_by_its_length_only() -> None:
    cutter, began = EventCutter(), time.process_time()
    for _ in range(4000):
        cutter.feed(b"x" * 1400)
    assert time.process_time() - began < 2  # ten seconds if each piece has all before it looked at again
    assert cutter.feed(b"\n\n") == b"x" * 5_600_000 + b"\n\n"


@pytest.mark.parametrize("api", STREAMS)
def test_an_answer_that_would_take_long_to_parse_is_not_parsed(api: ModelApi) -> None:
    many = json.dumps({"type": "response.completed", "choices": [], **json.loads(answer(**USAGE[NAMES[api]]))})
    body = many[:-1].encode() + b', "more": [' + b"[]," * 400_000 + b"1]}"
    began = time.process_time()
    assert of_answer(api, body) is None
    usage = StreamedUsage(api)
    assert b"".join(usage.passed(b"data: " + body + b"\n\n")).startswith(b"data: ")
    assert usage.total is None
    assert time.process_time() - began < 0.5


@given(pieces=st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b'"usage": {}', b"data: "]), max_size=20))
def test_events_one_after_the_other_are_the_whole(pieces: list[bytes]) -> None:
    cutter = EventCutter()
    events = b"".join(map(cutter.feed, pieces))
    assert events + cutter.rest() == b"".join(pieces)
    assert b"".join(each(events)) == events
