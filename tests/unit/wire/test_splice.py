"""A body changed in its bytes says what a body written anew would say; what was not to change has not."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.splice import spliced

OPTIONS = {"include_usage": True, "continuous_usage_stats": True}


def changed(text: str, **changes: object) -> str | None:
    body = text.encode()
    made = spliced(body, orjson.loads(body), changes)
    return None if made is None else made.decode()


@pytest.mark.parametrize(("body", "changes", "made"), [
    ('{"model":"a","messages":[{"role":"user","content":"hi"}]}', {"model": "b"},
     '{"model":"b","messages":[{"role":"user","content":"hi"}]}'),
    ('{"messages": [{"content": "hi"}], "model": "a", "n": 1.50 }\n', {"model": "b"},
     '{"messages": [{"content": "hi"}], "model": "b", "n": 1.50 }\n'),
    ('{"model":"a","messages":[{}],"stream_options":{"include_usage":false}}',
     {"stream_options": OPTIONS, "model": "b"},
     '{"model":"b","messages":[{}],"stream_options":{"include_usage":true,"continuous_usage_stats":true}}'),
    (' {"model" : "a", "x":[{}] } ', {"max_tokens": 5}, ' {"model" : "a", "x":[{}] ,"max_tokens":5} '),
    ('{"stop":["a}","b"],"model":"\\u00fc\\"","x":{"y":[]}}', {"model": "b"},
     '{"stop":["a}","b"],"model":"b","x":{"y":[]}}'),
    ('{"model":"a","max_tokens":null}', {"max_tokens": 7}, '{"model":"a","max_tokens":7}'),
])
def test_only_what_was_to_change_has_changed(body, changes, made):
    assert changed(body, **changes) == made


@pytest.mark.parametrize("body", [
    '{"model":"a","model":"a"}',  # twice: the last counts
    '{"model":"a","mod\\u0065l":"a"}',  # twice, once in disguise
    '{"mod\\u0065l":"a"}',
    '{"x":{"model":"a"},"mod\\u0065l":"a"}',
    '{"messages":[{"content":"model"}],"model":"a"}',  # the word, elsewhere
    '{"messages":[{"model":"a"}],"model":"a","tools":[{}]}',
    '{"a":[{"b":1}],"model":"a","c":[{"d":1}]}',  # in the middle of what would have to be read
])
def test_what_is_not_certain_is_left_to_be_written_anew(body):
    assert changed(body, model="b") is None


def test_a_quoted_key_in_a_text_is_no_key():
    body = json.dumps({"prompt": '"model": "x", {"model": "y"}', "model": "a"})
    assert json.loads(changed(body, model="b")) == {"prompt": '"model": "x", {"model": "y"}', "model": "b"}


names = st.sampled_from(["model", "stream_options", "max_tokens", "messages", "x", "mode", 'a"model"'])
texts = st.one_of(st.text(max_size=8), st.sampled_from(["model", '"model":"a"', "\\", '\\"', "{", "}", "],", "n"]))
atoms = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False), texts)
values = st.recursive(atoms, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(
    st.one_of(names, texts), inner, max_size=3)), max_leaves=8)


@st.composite
def bodies(draw):
    """JSON objects as clients may write them: any order and spacing, keys twice, letters as escapes."""
    members = draw(st.lists(st.tuples(st.one_of(names, texts), values), max_size=6))
    members.insert(draw(st.integers(0, len(members))), ("model", draw(st.text(max_size=5))))
    gap, ascii_only = draw(st.sampled_from(["", " ", "\n\t"])), draw(st.booleans())
    text = ("," + gap).join(json.dumps(key, ensure_ascii=ascii_only) + ":" + gap + json.dumps(
        value, ensure_ascii=ascii_only) for key, value in members)
    if draw(st.booleans()):
        text = text.replace("model", "mod\\u0065l", draw(st.integers(0, 3)))
    return (gap + "{" + text + gap + "}" + gap).encode("utf-8", "surrogatepass")


@given(bodies(), st.dictionaries(st.sampled_from(["model", "stream_options", "max_tokens"]), values, min_size=1))
def test_a_changed_body_says_what_one_written_anew_would(body, changes):
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:  # half a surrogate, say
        return
    made = spliced(body, document, changes)
    if made is not None:
        assert orjson.loads(made) == orjson.loads(orjson.dumps({**document, **changes}))
