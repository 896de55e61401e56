"""Prompts counted again with the tokenizer of the baseline's model: beside the answer, and only as a number."""

import pytest

from proxy.upstream import tokenizers
from tests.support.world import world

CHAT = {"model": "gpt-4o", "messages": [{"role": "system", "content": "You are kind."},
                                        {"role": "user", "content": [{"type": "text", "text": "hello there"}]}],
        "max_tokens": 4}


def test_prompts_are_counted_by_openais_encoding_and_the_formula_of_its_cookbook():
    """Nothing here has asked the API itself; the two tokens of "hello world" are o200k_base's own."""
    encoding = tokenizers.encoding_of("gpt-4o-2024-08-06")
    assert encoding.name == "o200k_base"
    assert encoding.encode_ordinary("hello world") == [24912, 2375]
    assert tokenizers.count(encoding, CHAT) == 3 + 2 * 3 + len("system user".split()) + 4 + 2
    assert tokenizers.count(encoding, {"prompt": ["hello world", "hello"]}) == 3
    assert tokenizers.encoding_of("claude-sonnet-4-5") is None


def test_a_file_that_is_not_the_one_we_know_is_not_used(monkeypatch):
    monkeypatch.setitem(tokenizers.FILES, "cl100k_base", (tokenizers.FILES["cl100k_base"][0], "0" * 64))
    tokenizers._encoding.cache_clear()
    assert tokenizers.encoding_of("gpt-4") is None


async def test_a_share_of_what_gpus_answer_is_counted(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, report={"recount": "10%"}) as there:
        numbers = [0.05, 0.5, 0.05]
        there.gateway.recounter._chance = lambda: numbers.pop(0)
        for request in (CHAT, CHAT, {**CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}):
            status, _, body = await there.post(request)
            assert status == 200, body
        assert [row["recounted_tokens"] for row in there.rows()] == [17, None, None]
        assert there.gateway.recounter._waiting == 0


@pytest.mark.parametrize("report", [{}, {"recount": "0%"}])
async def test_without_the_setting_nothing_is_loaded(tmp_path, monkeypatch, report):
    monkeypatch.setattr(tokenizers, "encoding_of", None)
    async with world(tmp_path, monkeypatch, report=report) as there:
        await there.post(CHAT)
        assert [row["recounted_tokens"] for row in there.rows()] == [None]
