"""Fields that choose an upstream, a credential or a policy are refused by name."""

from __future__ import annotations

import pytest

from proxy.core.errors import ForbiddenField
from proxy.wire.fields import DANGEROUS_ENGINE_FIELDS, FORBIDDEN_FIELDS, ORDINARY_FIELDS, refuse_fields


@pytest.mark.parametrize("field", [
    *sorted(FORBIDDEN_FIELDS), "aws_secret_access_key", "vertex_project", "azure_ad_token", "litellm_params",
    "mock_response", "API_BASE", "Api-Base", "no-log"])
def test_a_forbidden_field_is_refused_even_when_null_and_even_when_allowed(field):
    for value in ("x", None):
        with pytest.raises(ForbiddenField) as caught:
            refuse_fields({"model": "m", field: value}, frozenset({field, field.lower()}))
        assert caught.value.status == 400 and caught.value.param == field
        assert f"'{field}'" in caught.value.message


@pytest.mark.parametrize("field", sorted(DANGEROUS_ENGINE_FIELDS))
def test_a_dangerous_field_is_refused_unless_the_operator_allows_it(field):
    with pytest.raises(ForbiddenField) as caught:
        refuse_fields({field: {}})
    assert DANGEROUS_ENGINE_FIELDS[field] in caught.value.message
    refuse_fields({field: {}}, frozenset({field}))


def test_ordinary_and_unknown_fields_pass():
    refuse_fields(dict.fromkeys([
        "model", "messages", "temperature", "top_k", "min_p", "guided_json", "structured_outputs", "documents",
        "cache_salt", "metadata", "user", "seed", "store", "prompt_cache_key", "safety_identifier", "service_tier",
        "web_search_options", "verbosity", "parallel_tool_calls", "include_reasoning", "something_new", "ignore_eos",
        "repetition_penalty", "logit_bias", "encoding_format", "dimensions", "input", "prompt", "suffix", "echo"]))


@pytest.mark.parametrize("field", sorted(ORDINARY_FIELDS))
def test_what_is_not_looked_at_closely_would_pass(field):
    refuse_fields({field: None, "something_new": None})


def test_one_field_that_may_not_be_sent_among_ordinary_ones_is_refused():
    with pytest.raises(ForbiddenField, match="'api_base'"):
        refuse_fields({"model": "m", "messages": [], "api_base": "x"})


def test_a_hostile_field_name_is_not_echoed_raw():
    with pytest.raises(ForbiddenField) as caught:
        refuse_fields({"aws_\n\x1b[31m" + "x" * 500: 1})
    assert caught.value.param.isprintable() and len(caught.value.param) <= 64
    assert "\n" not in caught.value.message
