/* answers.c - what the mock backend answers: vLLM's words, one completion, streams of any pace. */
#include "mock.h"

#define PROMPT_TOKENS 212 /* what every answer says of its prompt */

int running[SIDES_MAX];
static uint64_t answered[SIDES_MAX], tokens[SIDES_MAX];

#define ID "\"id\":\"chatcmpl-5f2c9a1b7d3e4f60\","
#define CHUNK "data: {" ID "\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"mock\",\"choices\":["
#define CHOICE CHUNK "{\"index\":0,\"delta\":{"
#define USAGE "\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}"

static const char WHOLE[] =
    "{" ID "\"object\":\"chat.completion\",\"created\":1767225600,\"model\":\"mock\",\"choices\":[{\"index\":0,"
    "\"message\":{\"role\":\"assistant\",\"content\":\"The gateway relays this answer unchanged. It is as long as a "
    "short answer of a language model usually is: two or three sentences, some forty tokens, and then a full stop. "
    "Nothing in it depends on the question that was asked.\",\"refusal\":null,\"tool_calls\":[]},\"logprobs\":null,"
    "\"finish_reason\":\"stop\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":212,\"total_tokens\":260,"
    "\"completion_tokens\":48,\"prompt_tokens_details\":{\"cached_tokens\":64}},\"prompt_logprobs\":null}";
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    "transfer-encoding: chunked\r\n\r\n";
static const char ROLE[] =
    CHOICE "\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char FINISH[] =
    CHOICE "\"content\":\"\"},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}]}\n\n";
static const char DONE[] = "data: [DONE]\n\n";

static void put_whole(conn *c, const char *type, const char *body, size_t size) {
    char head[256];
    int length = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: %s\r\n"
                          "content-length: %zu\r\n\r\n", type, size);
    put(c, head, length);
    put(c, body, size);
}

static void put_chunk(conn *c, const char *event, size_t size) { /* one event as one chunk; below 4 KiB */
    char length[5] = {"0123456789abcdef"[size >> 8 & 15], "0123456789abcdef"[size >> 4 & 15],
                      "0123456789abcdef"[size & 15], '\r', '\n'};
    put(c, length, sizeof length);
    put(c, event, size);
    put(c, "\r\n", 2);
}

/* The digits of a number below a million, at `to`; returns what comes after them. */
static char *digits(char *to, int number) {
    char reversed[8];
    int count = 0;
    do reversed[count++] = '0' + number % 10;
    while (number /= 10);
    while (count) *to++ = reversed[--count];
    return to;
}

#define COPY(to, text) ((char *)memcpy(to, text, sizeof text - 1) + sizeof text - 1)

/* Built by hand: this and the load generator share a core, and are to be faster than whatever stands between. */
static void put_delta(conn *c) {
    static const char BEFORE[] = CHOICE "\"content\":\" @T";
    static const char AFTER[] = "\"},\"logprobs\":null,\"finish_reason\":null}]";
    char event[1024], *at = COPY(event, BEFORE);
    uint64_t now = now_ns();
    for (int shift = 60; shift >= 0; shift -= 4) *at++ = "0123456789abcdef"[now >> shift & 15];
    at = COPY(at, AFTER);
    c->sent++;
    tokens[c->side]++;
    if (c->counted) {
        at = digits(COPY(at, ",\"usage\":{\"prompt_tokens\":"), PROMPT_TOKENS);
        at = digits(COPY(at, ",\"total_tokens\":"), PROMPT_TOKENS + c->sent);
        at = digits(COPY(at, ",\"completion_tokens\":"), c->sent);
        *at++ = '}';
    }
    at = COPY(at, "}\n\n");
    put_chunk(c, event, at - event);
}

static void put_end(conn *c) {
    char event[512];
    put_chunk(c, FINISH, sizeof FINISH - 1);
    put_chunk(c, event, snprintf(event, sizeof event, CHUNK "]," USAGE "}\n\n", PROMPT_TOKENS,
                                 PROMPT_TOKENS + c->chunks, c->chunks));
    put_chunk(c, DONE, sizeof DONE - 1);
    put(c, "0\r\n\r\n", 5);
    c->state = IDLE;
    running[c->side]--;
}

void answer_get(conn *c, const char *path) {
    if (!strncmp(path, "/metrics", 8)) {
        char page[2048];
        int size = snprintf(page, sizeof page,
            "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"mock\"} %d\n"
            "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\",model_name=\"mock\"} 0\n"
            "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"mock\"} %.6f\n"
            "# TYPE vllm:request_success_total counter\n"
            "vllm:request_success_total{engine=\"0\",finished_reason=\"stop\",model_name=\"mock\"} %llu\n"
            "# TYPE vllm:generation_tokens_total counter\n"
            "vllm:generation_tokens_total{engine=\"0\",model_name=\"mock\"} %llu\n",
            running[c->side], running[c->side] / 1e6, (unsigned long long)answered[c->side],
            (unsigned long long)tokens[c->side]);
        put_whole(c, "text/plain; version=0.0.4", page, size);
        return;
    }
    const char *body = "{}";
    if (strstr(path, "/models"))
        body = "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1767225600,"
               "\"owned_by\":\"vllm\",\"root\":\"mock\",\"parent\":null,\"max_model_len\":131072}]}";
    else if (!strncmp(path, "/version", 8))
        body = "{\"version\":\"0.11.0\"}";
    else if (strstr(path, "model_info"))
        body = "{\"model_path\":\"mock\",\"tokenizer_path\":\"mock\",\"is_generation\":true,"
               "\"served_model_name\":\"mock\"}";
    else if (strstr(path, "server_info"))
        body = "{\"model_path\":\"mock\",\"served_model_name\":\"mock\",\"tp_size\":1,\"dp_size\":1,"
               "\"max_total_num_tokens\":1000000,\"version\":\"0.5.0\"}";
    put_whole(c, "application/json", body, strlen(body));
}

/* Whether the JSON says that `name` (with its quotes) is true. */
static int is_true(const char *body, size_t size, const char *name) {
    const char *at = body, *end = body + size;
    while ((at = memmem(at, end - at, name, strlen(name)))) {
        for (at += strlen(name); at < end && (*at == ' ' || *at == ':'); at++) continue;
        if (end - at >= 4 && !memcmp(at, "true", 4)) return 1;
    }
    return 0;
}

/* From a stream's first delta to its second. In step: to the next beat of a clock that all streams of this pace go by, as
 * the sequences of one engine do. Else drawn, so that when deltas come does not hang on how fast a gateway asks for its
 * streams: a hundred that are asked for in one moment would come as a burst ever after, and cost less. */
static int64_t first_gap_ns(const conn *c, int in_step) {
    if (!c->gap_ns) return 0;
    return in_step ? c->gap_ns - c->due_ns % c->gap_ns : 1 + (int64_t)(drand48() * c->gap_ns);
}

void answer_post(conn *c, const char *body, size_t size) {
    int chunks = 20, gap_us = 0, wait_us = 0, in_step = 0;
    const char *knobs = memmem(body, size, "#N", 2);
    if (knobs) {
        char text[48] = "";
        size_t length = body + size - knobs;
        memcpy(text, knobs, length < sizeof text ? length : sizeof text - 1);
        sscanf(text, "#N%dD%dW%dS%d#", &chunks, &gap_us, &wait_us, &in_step);
    }
    answered[c->side]++;
    c->due_ns = now_ns() + wait_us * NS_PER_US;
    if (is_true(body, size, "\"stream\"")) {
        running[c->side]++;
        c->state = STREAMING, c->chunks = chunks, c->sent = 0, c->gap_ns = gap_us * NS_PER_US;
        c->counted = is_true(body, size, "\"continuous_usage_stats\"");
        put(c, STREAM_HEAD, sizeof STREAM_HEAD - 1);
        if (!wait_us) {
            put_chunk(c, ROLE, sizeof ROLE - 1);
            put_delta(c);
            c->due_ns += first_gap_ns(c, in_step);
        }
        due_add(c);
    } else if (wait_us) {
        running[c->side]++;
        c->state = WAITING;
        due_add(c);
    } else {
        put_whole(c, "application/json", WHOLE, sizeof WHOLE - 1);
    }
}

void answer_late(conn *c) {
    c->state = IDLE;
    running[c->side]--;
    put_whole(c, "application/json", WHOLE, sizeof WHOLE - 1);
}

int answer_more(conn *c) {
    if (!c->sent) put_chunk(c, ROLE, sizeof ROLE - 1);
    if (c->sent < c->chunks) put_delta(c);
    c->due_ns += c->gap_ns;
    if (c->sent < c->chunks) return 0;
    put_end(c);
    return 1;
}
