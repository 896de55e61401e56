"""The wire, pure: bytes and dicts in, values out. No I/O, no clock, no async, no logging.

    openai.py          a request's known facts, and the body that goes upstream
    prompt.py          what a prompt holds: bytes of text, media, remote URLs
    fields.py          fields nobody may send, and those an operator must allow
    envelope.py        errors in OpenAI's shape, ours and the upstream's
    usage.py           OpenAI's usage object -> disjoint buckets
    sse.py             event streams, split and written
    metering.py        usage from a stream; the client's bytes with our injection taken out again
    engine_metrics.py  an engine's metrics page -> gauges

Standard library and orjson only; the one room below is `proxy.core`.
"""
