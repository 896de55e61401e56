"""The hand-made part of the corpus: recorded answers of a real vLLM, and what a hostile upstream or caller would send.

    python -m tests.fuzz.seeds    writes tests/fuzz/corpus/<target>/<name>; what fuzzing found stays as it is

Names say what is nasty. Bodies are short: where length is the point, the input says which
stretch is repeated (draw.py).
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.draw import written

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "samples" / "vllm"
HELLO = b'"messages":[{"role":"user","content":"hi"}]'
DONE = b"data: [DONE]\n\n"
DEEP = b"[" * 300 + b"]" * 300  # deeper than orjson writes; DEEPEST is as deep as it reads
DEEPEST = b"[" * 1000 + b"]" * 1000

HOW = {"stream": {"options": 2, "cuts": (1, 7, 50)}, "events": {"cuts": (1, 30, 90)}, "request": {},
       "metrics": {"options": 4}, "answer": {"cuts": (3,)},
       "reply": {"cuts": (3, 17, 40)}}


def given(body: bytes, **how) -> tuple[bytes, dict]:
    """A body that is not handed over as HOW says."""
    return body, how


def chunk(text: bytes, more: bytes = b"", finish: bytes = b"null", index: int = 0) -> bytes:
    return (b'data: {"id":"x","model":"m","choices":[{"index":%d,"delta":{"content":"%s"},"finish_reason":%s}]%s}\n\n'
            % (index, text, finish, more))


def usage(prompt: bytes, completion: bytes, more: bytes = b"") -> bytes:
    return b',"usage":{"prompt_tokens":%s,"completion_tokens":%s%s}' % (prompt, completion, more)


def usage_only(counts: bytes) -> bytes:
    return b'data: {"id":"x","choices":[]%s,"system_fingerprint":"fp-1"}\n\n' % counts


ENDING = chunk(b"a") + chunk(b"", b"", b'"stop"')
STREAMS = {
    "no-newline-for-long": given(b"data: xyz", repeat=b"xyz"),
    "newlines-only": given(b"\n\r\n\n", repeat=b"\n\r", cuts=(1, 2, 3)),
    "crlf": chunk(b"a").replace(b"\n", b"\r\n") + DONE.replace(b"\n", b"\r\n"),
    "cr": chunk(b"a").replace(b"\n", b"\r") + DONE.replace(b"\n", b"\r"),
    "line-ends-mixed": b"data: {}\n\r\ndata: {}\r\n\ndata: {}\r\rdata: {}\n\rdata: {}\r\n\r\n" + DONE,
    "blank-lines-before": b"\n\r\n\n" + chunk(b"a") + b"\r\r\r" + DONE,
    "byte-order-marks": b"\xef\xbb\xbf" + chunk(b"a") + b"\xef\xbb\xbf" + DONE,
    "nuls": b"\0\0data: {}\0\n\n" + chunk(b"\0") + b"\0",
    "half-utf8": chunk(b"\xe6\xbc") + chunk("漢".encode()) + b"data: \xf0\x9f",
    "deep-json": b"data: " + DEEPEST + b"\n\n",
    "deep-json-unclosed": b"data: " + b"[" * 2000 + b"\n\n",
    "deep-tool-calls": b'data: {"choices":[{"delta":{"tool_calls":' + DEEP + b"}}]}\n\n" + DONE,
    "deep-error": chunk(b"a") + b'data: {"error":' + DEEPEST[1:-1] + b"}\n\n",
    "deep-error-message": chunk(b"a") + b'data: {"error":{"message":{"a":' + DEEP + b"}}}\n\n",
    "error-in-200": chunk(b"a") + b'data: {"error":{"message":"boom","type":"x","code":500}}\n\n' + chunk(b"b") + DONE,
    "error-old-shape": b'data: {"object":"error","message":"boom"}\n\n' + DONE,
    "error-beside-choices": b'data: {"error":"x","choices":[{"delta":{"content":"a"},"finish_reason":"error"}]}\n\n',
    "usage-null": chunk(b"a", b',"usage":null') + ENDING + usage_only(b',"usage":null') + DONE,
    "usage-twice": ENDING + usage_only(usage(b"1", b"1")) + usage_only(usage(b"3", b"9")) + DONE,
    "usage-key-twice": chunk(b"a", usage(b"1", b"1") + usage(b"2", b"2")) + DONE,
    "usage-key-many-times": given(b'data: {"choices":[{"delta":{"x":1}}],"usage":1,"b":2}\n\n', repeat=b'"usage":1,'),
    "usage-key-escaped": chunk(b"a", b',"us\\u0061ge":{"prompt_tokens":1,"completion_tokens":1}') + DONE,
    "usage-negative": ENDING + usage_only(usage(b"-1", b"-5")) + DONE,
    "usage-1e18": ENDING + usage_only(usage(b"1000000000000000000", b"1e18")) + DONE,
    "usage-huge-integer": ENDING + usage_only(usage(b"9" * 40, b"2")) + DONE,
    "usage-nan": ENDING + usage_only(usage(b"NaN", b"Infinity")) + DONE,
    "usage-text": ENDING + usage_only(b',"usage":"5"') + chunk(b"b", b',"usage":5') + DONE,
    "usage-key-many-times-behind": given(
        b'data: {"choices":[{"delta":{"x":[1,{},2]}}],"usage":1,"b":2,"usage":3}\n\n', repeat=b'{},'),
    "usage-key-many-times-behind-much": given(
        b'data: {"choices":[{"delta":{"x":[' + b"{}," * 600 + b'0]}}],"usage":1,"b":2}\n\n', repeat=b'"usage":1,'),
    "usage-opened-often": given(chunk(b"a", b',"usage":{"a":"{}"}'), repeat=b"{}"),
    "usage-opens-in-text": given(chunk(b"a", b',"usage":{"a":"' + b"{" * 2000 + b'","b":"}"}'), repeat=b"}"),
    "calls-many": given(b'data: {"choices":[{"delta":{"tool_calls":[{"a":1},2]}}]}\n\n', repeat=b'{"a":1},'),
    "choices-many": given(b'data: {"choices":[{"finish_reason":"s","index":1},2]}\n\n',
                          repeat=b'{"finish_reason":"s","index":1},'),
    "usage-running": chunk(b"a", usage(b"3", b"1")) + chunk(b"b", usage(b"3", b"2"), index=1) + ENDING,
    "usage-first-key": b'data: {"usage":{"prompt_tokens":1,"completion_tokens":2},"choices":[{"text":"t"}]}\n\n' + DONE,
    "usage-in-comment": b': {"a":1,"usage":null}\ndata: {"a":1,"usage":null}\n\n' + DONE,
    "usage-details-wrong": ENDING + usage_only(usage(
        b"5", b"5", b',"total_tokens":99,"prompt_tokens_details":{"cached_tokens":9},"completion_tokens_details":[]')),
    "data-on-many-lines": b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":1,'
                          b'\ndata:"completion_tokens":2}}\n\n' + DONE,
    "data-without-colon": b"data\n\ndata:\n\ndata: \n\n" + DONE,
    "done-early": DONE + chunk(b"late") + usage_only(usage(b"1", b"2")) + DONE,
    "done-with-more": b"data: [DONE] and more\n\n" + chunk(b"late"),
    "done-without-end": ENDING + b"data: [DONE]",
    "cut-in-usage": ENDING + b'data: {"choices":[],"usage":{"pro',
    "cut-in-a-character": chunk(b"a") + chunk("漢".encode())[:-40],
    "escapes-in-text": chunk(rb'\"\\\"usage\":{}\\', b',"usage":null') + chunk(rb"\u0000\ud83d\ude00") + DONE,
    "fingerprint-huge": given(ENDING + b'data: {"choices":[],"usage":{},"system_fingerprint":"fx"}\n\n', repeat=b"fx"),
    "heartbeats-behind-the-end": given(ENDING + b": ping\n\n" + DONE, repeat=b": ping\n\n"),
    "choices-beyond-number": b"".join(chunk(b"", usage(b"1", b"%d" % i), b'"s"', i) for i in (0, 5, -1, 2**40)) + DONE,
    "types-wrong": b'data: {"choices":3,"usage":4,"model":5,"service_tier":6}\n\ndata: {"choices":[1,null,'
                   b'{"delta":[]}]}\n\n'
                   b'data: {"choices":[{"index":"0","finish_reason":7,"text":8}]}\n\n',
    "not-objects": b"data: 1\n\n", "empty": b"",
}


def named(kind: bytes, members: bytes = b"") -> bytes:
    return b'event: %s\ndata: {"type":"%s","sequence_number":0%s}\n\n' % (kind, kind, members)


USED = b',"response":{"id":"resp_1","model":"m","status":"completed","usage":{"input_tokens":3,"output_tokens":4}}'
DELTA = named(b"response.output_text.delta", b',"delta":"a"')
BEGUN = named(b"response.created", b',"response":{"id":"resp_1","model":"m","service_tier":"auto"}')
EVENTS = {
    "whole": BEGUN + DELTA * 3 + named(b"response.completed", USED),
    "incomplete": BEGUN + DELTA + named(b"response.incomplete", USED),
    "failed": BEGUN + DELTA + named(b"response.failed", b',"response":{"error":{"message":"boom"},"usage":null}'),
    "failed-as-completed": BEGUN + named(b"response.completed", b',"response":{"status":"failed","error":"boom"}'),
    "error": BEGUN + DELTA + named(b"error", b',"code":"x","message":"boom","param":null') + DELTA,
    "error-enveloped": BEGUN + b'data: {"error":{"message":"boom"}}\n\n' + DELTA,
    "error-in-a-delta": BEGUN + named(b"response.output_text.delta", b',"delta":"a","error":{"message":"boom"}'),
    "name-and-type-differ": BEGUN + DELTA.replace(b'"type":"response.output_text.delta"', b'"type":"error"'),
    "done-of-a-chat": BEGUN + DELTA + DONE + named(b"response.completed", USED) + DONE,
    "done-of-a-chat-alone": BEGUN + DELTA + DONE, "no-names": (BEGUN + DELTA).replace(b"event: ", b"x: "),
    "end-twice": named(b"response.completed", USED) * 2 + DELTA,
    "end-without-a-blank-line": BEGUN + DELTA + named(b"response.completed", USED)[:-2],
    "end-cut": BEGUN + DELTA + named(b"response.completed", USED)[:-9],
    "crlf": (BEGUN + DELTA + named(b"response.completed", USED)).replace(b"\n", b"\r\n"),
    "cr": (BEGUN + DELTA + named(b"response.completed", USED)).replace(b"\n", b"\r"),
    "delta-long": given(BEGUN + named(b"response.output_text.delta", b',"delta":"ab"'), repeat=b"ab"),
    "delta-escaped": BEGUN + named(b"response.output_text.delta", rb',"delta":"\"\\\"delta\":\""') + DELTA,
    "delta-empty": BEGUN + named(b"response.output_text.delta", b',"delta":""'),
    "delta-odd": BEGUN + named(b"response.audio.delta", b',"delta":{"a":1}') + named(b"x.delta", b',"delta":3'),
    "deltas-many": given(BEGUN + DELTA, repeat=DELTA), "comments": given(BEGUN + b": ping\n\n", repeat=b": ping\n\n"),
    "usage-odd": named(b"response.completed", b',"response":{"usage":{"input_tokens":-1,"output_tokens":"x"}}'),
    "usage-deep": named(b"response.completed", b',"response":{"error":null,"usage":' + DEEP + b"}"),
    "types-wrong": named(b"response.completed", b',"response":3') + b'data: {"type":[],"delta":1}\n\n',
    "not-objects": b"event: response.x.delta\ndata: 1\n\n", "broken": BEGUN + b'event: a\ndata: {"type":\n\n',
    "chat": chunk(b"a") + DONE, "empty": b"",
}


def body(members: bytes) -> bytes:
    return b'{"model":"m",' + HELLO + b"," + members + b"}"


RESPONSES = 3 * 4 * 3 * 2 * 3 * 2  # of the options: the last draw of the request target
REQUESTS = {
    "stream": body(b'"stream":true,"stream_options":{"include_usage":true,"x":1}'),
    "continuous": body(b'"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}'),
    "no-json": b"hello", "empty": b"", "array": b"[]", "null": b"null", "half": body(b'"stop":["a')[:-3],
    "byte-order-mark": b"\xef\xbb\xbf" + body(b'"n":1'), "nul": b'{"model":"a\0"}',
    "utf16": '{"model":"m"}'.encode("utf-16"),
    "half-utf8": b'{"model":"\xe6\xbc"}', "lone-surrogate": body(rb'"user":"\ud800"'),
    "keys-twice": body(b'"model":"n","n":1,"n":2,"stream":true,"stream":false'),
    "deep": body(b'"tools":' + DEEPEST), "depth-64": body(b'"x":' + b"[" * 63 + b"]" * 63),
    "depth-65": body(b'"x":' + b"[" * 64 + b"]" * 64), "unclosed": b"[" * 3000,
    "huge-integers": body(b'"seed":123456789012345678901234567890,"n":99999999999999999999'),
    "numbers": body(b'"temperature":-0.0,"top_p":1e-400,"seed":18446744073709551616,"x":1E5,"y":5e-324'),
    "nan": body(b'"temperature":NaN'), "infinite": body(b'"temperature":1e999'),
    "limits": body(b'"n":128,"max_tokens":2147483648,"max_completion_tokens":1,"best_of":129'),
    "limits-null": body(b'"n":null,"max_tokens":null,"stream":null,"stream_options":null'),
    "types-wrong": body(b'"n":true,"max_tokens":1.0,"stream":"yes"'),
    "model-odd": '{"model":"a\u202eb\\n","messages":[]}'.encode(),
    "forbidden": body(b'"API-Base":"http://x","extra_body":{}'), "forbidden-prefix": body(b'"AWS_region":null'),
    "dangerous": body(b'"priority":1,"chat_template":"{{x}}"'),
    "dangerous-unicode": body('"\u212aind":1,"l\u0130tellm_x":2,"ﬁle":3'.encode()),
    "media": b'{"model":"m","messages":[{"role":"user","content":[{"type":"image_url",'
             b'"image_url":{"url":"http:\\\\10.0.0.1"}}'
             b',{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}},{"type":"x",'
             b'"u":{"a":{"file_url":"//h"}}}]}]}',
    "media-source": b'{"model":"m","messages":[{"content":{"image":[{"source":{"source":{"url":"data:x"}}},'
                    b'"DATA:,"]}}]}',
    "tools": body(b'"tools":[{"type":"function","function":{"name":"f","parameters":{"x":1e5,"y":[1.50]}}}],'
                  b'"logprobs":0'),
    "schema": body(b'"response_format":{"type":"json_schema","json_schema":{}},"reasoning_effort":"low",'
                   b'"prediction":{}'),
    "parts-odd": b'{"model":"m","messages":[{"content":[null,1,"a",{"text":3},[]]},{"content":5,'
                 b'"tool_calls":{"a":1}}]}',
    "prompt": given(b'{"model":"m","prompt":["a","b"],"suffix":"c","echo":true,"max_tokens":0}', options=1),
    "prompt-ids": given(b'{"model":"m","prompt":[[1,2],[3]]}', options=1),
    "prompt-many": given(b'{"model":"m","prompt":["a","a","a"]}', options=1, repeat=b'"a",'),
    "prompt-odd": given(b'{"model":"m","prompt":[1,true,"x"]}', options=1),
    "embeddings": given(b'{"model":"m","input":"hi","encoding_format":"base64"}', options=2),
    "embeddings-ids": given(b'{"model":"m","input":[1,2,3]}', options=2),
    "responses": given(b'{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a"},{"type":'
                       b'"input_image","image_url":"data:,"}]},{"type":"function_call_output","output":[]}],"text":{'
                       b'"format":{"type":"json_schema"}},"tools":[{"type":"web_search"}]}', options=RESPONSES),
    "responses-references": given(b'{"model":"m","input":[{"type":"item_reference","id":"msg_1"}]}', options=RESPONSES),
    "responses-odd": given(b'{"model":"m","input":[{"content":{"file_id":[]},"output":3,"tools":{"a":1},"result":"x",'
                           b'"type":"image_generation_call"}],"text":3,"include":"x","tools":[{"type":[]}]}',
                           options=RESPONSES),
    "plain-text": given(body(b'"n":1'), options=9), "charset": given(body(b'"n":1'), options=6),
}

METRICS = {
    "vllm": b'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 3\n'
            b'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:cache_config_info{block_size="16",'
            b'num_gpu_blocks="100"} 1.0\n'
            b'vllm:request_success_total{finished_reason="stop"} 5\nvllm:engine_sleep_state{sleep_state="awake"} 1.0\n'
            b"vllm:time_to_first_token_seconds_sum 1.5\nvllm:time_to_first_token_seconds_count 3.0\n"
            b'vllm:num_requests_waiting_by_reason{reason="capacity"} 4\nprocess_start_time_seconds 1.7e9\n',
    "not-numbers": b"vllm:num_requests_running NaN\nvllm:num_requests_waiting +Inf\nvllm:kv_cache_usage_perc -0.1\n",
    "numbers-odd": b"vllm:num_requests_running 1_0\nvllm:num_requests_waiting 0x10\nvllm:prompt_tokens 1e309\n"
                   b"vllm:generation_tokens " + b"9" * 400 + b"\n",
    "sum-infinite": b'vllm:num_requests_running{a="1"} 1e308\nvllm:num_requests_running{a="2"} 1e308\n',
    "capacity-long": b'vllm:cache_config_info{kv_cache_size_tokens="' + b"1" * 5000 + b'"} 1\n',
    "capacity-huge": b'vllm:cache_config_info{block_size="9999999999999999",num_gpu_blocks="9999999999999999"} 1\n',
    "capacity-odd": 'vllm:cache_config_info{block_size="١٦",num_gpu_blocks="²"} 1\n'.encode(),
    "fraction-over-one": b"vllm:kv_cache_usage_perc 1.005\nvllm:gpu_cache_usage_perc 85\n",
    "labels-open": given(b'vllm:num_requests_running{a="b', repeat=b"b"),
    "labels-escaped": b'vllm:num_requests_running{a="\\"} 1"} 2\nvllm:num_requests_waiting{a="}",'
                      b'b="\\\\"} 3 # {x="y"} 1\n',
    "labels-many": given(b'vllm:num_requests_running{a="b",a="b",} 1\n', repeat=b'a="b",'),
    "labels-quotes": given(b'vllm:num_requests_running{"" 1\n', repeat=b'""'),
    "series-many": given(b"vllm:num_requests_running 1\n\n", repeat=b"vllm:num_requests_running 1\n"),
    "newlines": given(b"\n", repeat=b"\n"), "no-newline": given(b"vllm:num_requests_running", repeat=b"g"),
    "value-long": given(b"vllm:num_requests_running 1", repeat=b"1"),
    "spaces-long": given(b'vllm:num_requests_running{a="b"} ', repeat=b" "),
    "crlf": b"vllm:num_requests_running 3\r\nvllm:num_requests_waiting 4 1700000000000\r\n",
    "nuls": b"vllm:num_requests_running 3\0\n\0vllm:num_requests_waiting 4\n", "half-utf8": b'vllm:x{a="\xe6\xbc"} 1\n',
    "byte-order-mark": b"\xef\xbb\xbfvllm:num_requests_running 3\n", "empty": b"",
    "html": b"<html><body>404</body></html>",
    "sglang": given(b'sglang:num_running_reqs{tp_rank="0"} 3\nsglang:num_running_reqs{tp_rank="1"} 3\n'
                      b"sglang:max_total_num_tokens 1e300\nsglang:token_usage 0.5\n", options=1),
    "tgi": given(b'tgi_batch_current_size 2\ntgi_request_failure{err="overloaded"} 3\n', options=2),
    "trtllm": given(b"trtllm_kv_cache_tokens_per_block 1e200\ntrtllm_kv_cache_max_blocks 1e200\n", options=3),
    "llamacpp": given(b"llamacpp:requests_processing 1\nllamacpp:n_decode_total 4\n", options=0),
    "dcgm": b'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a"} 80\nDCGM_FI_DEV_POWER_USAGE{gpu="1"} 300.5\n'
            b'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0"} 9223372036854775794\nDCGM_FI_DEV_XID_ERRORS{gpu="0"} 79\n'
            b'DCGM_FI_DEV_FB_USED{gpu="0",pod="x"} 70000\n',
}

ANSWERS = {
    "usage": b'{"choices":[{"text":"a"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}',
    "usage-first": b'{"usage":{"prompt_tokens":3,"completion_tokens":4},"choices":[],"service_tier":"flex"}',
    "usage-twice": b'{"usage":{"prompt_tokens":1,"completion_tokens":1},"a":1,"usage":{"prompt_tokens":3,'
                   b'"completion_tokens":4}}',
    "usage-in-text": b'{"choices":[{"text":",\\"usage\\":{}}"}],"x":{"a":1,"usage":{"prompt_tokens":1,'
                     b'"completion_tokens":2}}}',
    "usage-nested-last": b'{"x":{"a":1,"usage":{"prompt_tokens":1,"completion_tokens":2}}}',
    "usage-long": given(b'{"a":1,"usage":{"x":"' + b"{" * 2000 + b'","y":"}"}}', repeat=b"}"),
    "message-deep": b'{"message":' + DEEP + b"}", "error-deep": b'{"error":{"message":' + DEEP + b',"code":{}}}',
    "detail-list": b'{"detail":[{"loc":["body","x"],"msg":"bad"}]}',
    "gemini": b'[{"error":{"code":429,"message":"slow"}}]',
    "html": b"\n <!DOCTYPE html><html>10.0.0.1</html>", "text": b"Internal Server Error sk-abcdefgh1234", "empty": b"",
    "null": b"null", "broken": b'{"error":{"message":"x', "half-utf8": b"\xe6\xbcx",
    "controls": b"a\x1b[31m\r\nb\0\xe2\x80\xa8",
    "blanks": given(b"x  y", repeat=b" "), "schemes": given(b"x ab:// ", repeat=b"ab://"),
    "url": b"connect to http://user:secret@10.1.2.3:8000/v1?key=abc failed, vllm-0.internal:8000 refused",
    "param-secret": b'{"error":{"message":"x","param":"sk-abcdefgh1234","type":"None","code":"None"}}',
    "overflow": b'{"error":{"message":"This model\'s maximum context length is 1024 tokens."}}',
    "code-number": b'{"object":"error","message":"","type":"BadRequestError","code":400.5}',
}


ANSWERED = b"HTTP/1.1 200 OK\r\n"
JSON = ANSWERED + b"content-type: application/json\r\n"
CHUNKED = ANSWERED + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CLOSE, RESET, SILENCE = 3, 6, 9  # options of an answer read chunk by chunk, and how its connection ends
REPLIES = {
    "length": JSON + b"content-length: 2\r\n\r\n{}", "no-body": ANSWERED + b"content-length: 0\r\n\r\n",
    "piped": given(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", options=1),
    "read": given(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", options=2),
    "chunks": CHUNKED + b"3;a=b\r\nabc\r\nA\r\n0123456789\r\n00\r\nx-trailer: y\r\n\r\n",
    "until-close": given(ANSWERED + b"\r\nall of it", options=CLOSE),
    "until-reset": given(ANSWERED + b"\r\nall of it", options=RESET),
    "cut": given(CHUNKED + b"3\r\nabc\r\n5\r\nde", options=CLOSE),
    "silent": given(CHUNKED + b"3\r\nab", options=SILENCE),
    "headless": given(ANSWERED + b"content-le", options=SILENCE), "nothing": given(b"", options=CLOSE),
    "interim": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + JSON + b"content-length: 2\r\n\r\n{}",
    "interim-for-long": given(b"HTTP/1.1 100 Go on\r\n\r\n" + ANSWERED, repeat=b"HTTP/1.1 100 Go on\r\n\r\n"),
    "interim-with-a-body": b"HTTP/1.1 199 X\r\ntransfer-encoding: chu\r\n\r\n1\r\naencoding",
    "upgrade": b"HTTP/1.1 101 X\r\nupgrade: y\r\nconnection: upgrade\r\n\r\nabc",
    "redirect": b"HTTP/1.1 302 Found\r\nlocation: http://10.0.0.9/\r\ncontent-length: 3\r\n\r\nabc",
    "compressed": ANSWERED + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b",
    "length-and-chunks": ANSWERED + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "two-lengths": ANSWERED + b"content-length: 3\r\ncontent-length: 2\r\n\r\nabc",
    "coding-twice": ANSWERED + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two-answers": (JSON + b"content-length: 2\r\n\r\n{}") * 2,
    "answer-and-a-half": JSON + b"content-length: 2\r\n\r\n{}HTTP/1.1 2",
    "blank-lines-behind": JSON + b"content-length: 2\r\n\r\n{}\r\n\r\n",
    "closing": JSON + b"connection: close\r\ncontent-length: 2\r\n\r\n{}",
    "old": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "new": b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "no-content": b"HTTP/1.1 204 No\r\ncontent-length: 3\r\n\r\n",
    "refused": b"HTTP/1.1 429 Slow\r\nretry-after: 7\r\n\r\n",
    "line-feeds": b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}", "folded": ANSWERED + b"x: a\r\n b\r\n\r\n",
    "nul": ANSWERED + b"x: a\0b\r\n\r\n", "ssh": b"SSH-2.0-OpenSSH\r\n", "tls": b"\x16\x03\x01\x02\0\x01",
    "chunk-odd": CHUNKED + b"0x3\r\nabc\r\n", "chunk-beyond-counting": CHUNKED + b"fffffffffffffffff\r\nabc",
    "fields-many": given(ANSWERED + b"a: b\r\n\r\n", repeat=b"a: b\r\n"),
    "field-long": given(ANSWERED + b"a: b", repeat=b"b"),
    "trailers-many": given(CHUNKED + b"1\r\na\r\n0\r\na: b\r\n\r\n",
                           repeat=b"a: b\r\n", cuts=(99, 20_000, 40_000, 60_000)),
    "trailer-long": given(CHUNKED + b"1\r\na\r\n0\r\na: b", repeat=b"b", cuts=(99, 20_000, 40_000, 60_000)),
    "chunks-many": given(CHUNKED + b"1\r\na\r\n0\r\n\r\n", repeat=b"1\r\na\r\n", options=1),
}


def recorded() -> dict[tuple[str, str], bytes]:
    """What a real vLLM sent, as inputs; of metrics pages only the lines that are read, to keep the corpus small."""
    found = {}
    for path in sorted(SAMPLES.iterdir()):
        data = path.read_bytes()
        if path.name.startswith("responses") and path.suffix == ".sse":
            found["events", f"vllm-{path.stem}"] = written(data, cuts=(100, 777, 2000))
        elif path.suffix == ".sse":
            for options in range(3):  # NOTHING, RUNNING, ALL
                found["stream", f"vllm-{path.stem}-{options}"] = written(data, options=options, cuts=(100, 777, 1000))
        elif path.suffix == ".txt":
            lines = [line for line in data.splitlines(True) if not line.startswith(b"#") and b"_bucket" not in line]
            found["metrics", f"vllm-{path.stem}"] = written(b"".join(lines[:60]), **HOW["metrics"])
        else:
            found["answer", f"vllm-{path.stem}"] = written(data, **HOW["answer"])
    return found


def inputs() -> dict[tuple[str, str], bytes]:
    """(target, name) -> input."""
    found = recorded()
    for target, seeds in (("stream", STREAMS), ("events", EVENTS), ("request", REQUESTS), ("metrics", METRICS),
                          ("answer", ANSWERS),
                          ("reply", REPLIES)):
        for name, seed in seeds.items():
            body, how = seed if isinstance(seed, tuple) else (seed, {})
            found[target, name] = written(body, **{**HOW[target], **how})
    return found


def main() -> None:
    made = inputs()
    for (target, name), data in made.items():
        path = HERE / "corpus" / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    size = sum(path.stat().st_size for path in (HERE / "corpus").rglob("*") if path.is_file())
    print(f"{len(made)} inputs written; the corpus has {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
