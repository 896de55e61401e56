"""OpenAI's usage object: every token in one bucket, missing told from zero, nonsense survived."""

from __future__ import annotations

import re
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.usage import Usage
from proxy.wire.endpoints import Endpoint
from proxy.wire.usage import (
    TOKENS_MAX,
    _plain,
    _taken_apart,
    read_usage,
    tail_member,
    tier_of,
    usage_from_dict,
    without_member,
)

SAMPLES = Path(__file__).parents[2] / "samples" / "vllm"
CHAT, EMBEDDINGS = Endpoint.CHAT, Endpoint.EMBEDDINGS


def usage(prompt, completion, total=None, ins=None, outs=None, **more):
    members = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total,
               "prompt_tokens_details": ins, "completion_tokens_details": outs, **more}
    return usage_from_dict(members)


@pytest.mark.parametrize(("name", "endpoint", "expected"), [
    ("chat.json", CHAT, Usage(input_text=19, output_text=16)),
    ("chat-n2.json", CHAT, Usage(input_text=19, output_text=16)),
    ("chat-cache-hit.json", CHAT, Usage(input_text=24, cache_read=160, output_text=4)),
    ("chat-tool-required.json", CHAT, Usage(input_text=119, output_text=40)),
    ("responses.json", Endpoint.RESPONSES, Usage(input_text=19, output_text=8)),
    ("completion-batch.json", Endpoint.COMPLETIONS, Usage(input_text=16, output_text=8)),
])
def test_recorded_answers_are_read(name, endpoint, expected):
    assert read_usage(endpoint, (SAMPLES / name).read_bytes()) == expected


def test_embeddings_have_a_prompt_and_no_completion():
    body = (SAMPLES / "embeddings-batch-base64.json").read_bytes()
    read = read_usage(EMBEDDINGS, body)
    assert read is not None and read.consistent and read.output_total == 0
    assert read.input_total == orjson.loads(body)["usage"]["prompt_tokens"]
    assert read_usage(EMBEDDINGS, b'{"usage":{"prompt_tokens":5}}') == Usage(input_text=5)


def test_responses_have_the_same_under_other_names():
    read = usage_from_dict({
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 10},
        "output_tokens": 50, "output_tokens_details": {"reasoning_tokens": 20}, "total_tokens": 150},
        Endpoint.RESPONSES)
    assert read == Usage(input_text=60, cache_read=30, cache_write_5m=10, output_text=30, reasoning=20)
    for none in (None, {}, {"prompt_tokens": 1, "completion_tokens": 2}):  # zero is not the same as nothing
        assert usage_from_dict(none, Endpoint.RESPONSES) is None
    assert usage_from_dict({"input_tokens": 0, "output_tokens": 0}, Endpoint.RESPONSES) == Usage()
    wrong = usage_from_dict({"input_tokens": 5, "output_tokens": 5, "total_tokens": 99}, Endpoint.RESPONSES)
    assert wrong == Usage(input_text=5, output_text=5, consistent=False)


def test_every_token_is_in_one_bucket():
    read = usage(100, 50, 150, {"cached_tokens": 30, "cache_write_tokens": 10, "audio_tokens": 5, "image_tokens": 7},
                 {"reasoning_tokens": 20, "audio_tokens": 4, "rejected_prediction_tokens": 6,
                  "accepted_prediction_tokens": 3})
    assert read == Usage(input_text=48, cache_read=30, cache_write_5m=10, input_audio=5, input_image=7,
                         output_text=26, reasoning=20, output_audio=4)
    assert (read.input_total, read.output_total) == (100, 50)


def test_writes_are_split_by_lifetime_where_the_upstream_says_so():
    read = usage(100, 1, 101, {"cache_creation_tokens": 40,
                               "cache_creation_token_details": {"ephemeral_1h_input_tokens": 15}})
    assert (read.cache_write_5m, read.cache_write_1h, read.input_text) == (25, 15, 60)


def test_zero_is_kept_and_missing_is_none():
    assert usage(0, 0, 0) == Usage()
    assert usage_from_dict(None) is None
    assert usage_from_dict({}) is None
    assert usage_from_dict([]) is None
    assert usage_from_dict({"total_tokens": 5}) is None
    assert usage(None, None) is None
    assert read_usage(CHAT, b'{"usage":null}') is None
    assert read_usage(CHAT, b"not json") is None
    assert read_usage(CHAT, b"[]") is None


def test_reasoning_left_out_of_the_completion_is_added_when_the_total_proves_it():
    assert usage(10, 5, 25, outs={"reasoning_tokens": 10}) == Usage(input_text=10, output_text=5, reasoning=10)
    assert usage(10, 15, 25, outs={"reasoning_tokens": 10}) == Usage(input_text=10, output_text=5, reasoning=10)


@pytest.mark.parametrize("read", [
    usage(10, 5, 15, {"cached_tokens": 11}),
    usage(10, 5, 15, {"cached_tokens": 6, "audio_tokens": 6}),
    usage(10, 5, 15, {"cached_tokens": -1}),
    usage(10, 5, 15, {"cached_tokens": 10**18}),
    usage(10, 5, 15, {"cached_tokens": "3"}),
    usage(10, 5, 15, {"cached_tokens": 1.5}),
    usage(10, 5, 15, "details"),
    usage(10, 5, 15, outs={"reasoning_tokens": 6}),
    usage(10, 5, 99),
    usage(10, 5, -1),
])
def test_contradictions_are_marked_and_the_totals_win(read):
    assert (read.input_total, read.output_total, read.consistent) == (10, 5, False)


@pytest.mark.parametrize("bad", [-1, 10**18, 1.5, "12", True, [], float("nan"), float("inf")])
def test_a_count_that_is_no_count_is_missing(bad):
    assert usage(bad, bad) is None
    assert usage(bad, 5) is None
    assert usage(bad, 5, 15) == Usage(input_text=10, output_text=5)
    one_sided = usage(10, bad)
    assert one_sided.input_total == 10 and not one_sided.consistent


NUMBERS = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3), st.integers(0, 100), st.booleans())
DETAILS = st.one_of(st.none(), st.dictionaries(
    st.sampled_from(["cached_tokens", "audio_tokens", "image_tokens", "reasoning_tokens", "cache_write_tokens",
                     "cache_creation_token_details"]), NUMBERS), NUMBERS)


@given(NUMBERS, NUMBERS, NUMBERS, DETAILS, DETAILS)
def test_no_numbers_crash_it_and_no_bucket_is_negative(prompt, completion, total, ins, outs):
    read = usage(prompt, completion, total, ins, outs)
    if read is not None:
        counts = [getattr(read, name) for name in ("input_text", "cache_read", "cache_write_5m", "cache_write_1h",
                                                   "input_audio", "input_image", "output_text", "reasoning",
                                                   "output_audio")]
        assert all(type(count) is int and count >= 0 for count in counts)
        if type(prompt) is int and 0 <= prompt <= 1 << 31:
            assert read.input_total == prompt


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=6),
              st.sampled_from(['"usage":', "usage", ',"usage":null}', "}", "{", "\\"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3),
                            st.dictionaries(st.sampled_from(["usage", "choices", "x", 'a"usage']), inner, max_size=3)),
    max_leaves=8)


FEW = st.one_of(st.integers(-1, 3), st.just(TOKENS_MAX), st.booleans(), st.none(), st.just(2.0))


@given(FEW, FEW, FEW, st.one_of(st.none(), st.dictionaries(st.sampled_from(["cached_tokens", "x"]), FEW)))
def test_the_quick_look_sees_what_the_closer_one_does(prompt, completion, total, details):
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total,
             "prompt_tokens_details": details}
    quick = _plain(usage)
    assert quick is None or quick == _taken_apart(usage, Endpoint.CHAT)


def test_the_quick_look_takes_what_engines_say():
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
             "prompt_tokens_details": {"cached_tokens": 4}}
    assert _plain(usage) == Usage(input_text=1, cache_read=4, output_text=3)


@given(st.dictionaries(st.sampled_from(["usage", "choices", "id", "z", '"usage":']), VALUES, max_size=4),
       st.booleans())
def test_a_member_is_cut_out_exactly_whatever_else_looks_like_it(document, spaced):
    text = orjson.dumps(document)
    if spaced:
        text = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    rest = {name: value for name, value in document.items() if name != "usage"}
    assert orjson.loads(without_member(text, b"usage")) == rest
    assert "usage" in document or without_member(text, b"usage") == text
    for at in (match.start() for match in re.finditer(b'"usage"', text)):
        quick = tail_member(text, at)
        if quick:
            assert quick[2] == document["usage"]
            assert orjson.loads(text[:quick[0]] + text[quick[1]:]) == rest


@pytest.mark.parametrize(("text", "rest"), [
    (b'{"usage":1,"usage":[2]}', b"{}"),
    (b'{"usage":1 , "usage":2,"a":3}', b'{"a":3}'),
    (b'{"a":{"usage":1} , "usage":"x","usage":{"usage":3}}', b'{"a":{"usage":1} }'),
    (b'{"usage":null,"a":"usage" ,\n"usage":4,"b":5,"usage":6 }', b'{"a":"usage" ,"b":5 }'),
])
def test_a_member_given_several_times_is_cut_out_each_time(text, rest):
    assert without_member(text, b"usage") == rest


def test_megabytes_of_embeddings_are_not_parsed_for_their_usage():
    numbers = b"[" + b"0.125," * 500_000 + b"}broken]"
    body = b'{"data":' + numbers + b',"usage":{"prompt_tokens":7,"total_tokens":7}}'
    assert read_usage(EMBEDDINGS, body) == Usage(input_text=7)


def test_the_served_tier_is_the_answers():
    assert [tier_of({"service_tier": given}) for given in ("flex", None, 5, "", "x" * 40)] == [
        "flex", None, None, None, "x" * 32]
