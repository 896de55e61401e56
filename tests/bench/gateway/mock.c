/* mock.c - a fast mock of an OpenAI-compatible backend (one thread, epoll).
 *
 *   mock PORT
 *
 * POST (any path)  chat completion; JSON, or SSE when the body says "stream": true.
 *                  Knobs are read from the body text (so they survive any gateway):
 *                    #N<chunks>D<inter-chunk us>W<us before the first byte>#
 *                  e.g. a prompt of "hello #N50D20000W0#".
 *                  Each streamed delta carries "@T<16 hex digits>": CLOCK_MONOTONIC ns
 *                  at the moment it was written, so a load generator on the same
 *                  machine can time the relay of every chunk.
 * GET  /metrics    vLLM-like gauges (running, waiting, kv cache use) + counters
 * GET  /v1/models, /health, /version, /get_model_info, /get_server_info, /server_info
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAXFD 65536
#define RBUF0 8192

typedef struct {
    int fd;
    char *rb; size_t rlen, rcap;      /* request bytes */
    char *wb; size_t wlen, woff, wcap;/* unsent response bytes */
    int streaming;                    /* 1: a stream is under way */
    int waiting;                      /* 1: a delayed non-streaming answer */
    int nchunks, sent; int64_t delay_ns; int64_t due;
    int heap_ix;                      /* -1: not in the timer heap */
    int want_out, close_after, side, counted;
    uint32_t gen;
} conn;

static conn *C[MAXFD];
static int ep;
static conn **heap; static int hn, hcap;
static uint64_t n_req, n_stream, n_chunks, n_other; static int running[16];

static int64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }

static void hswap(int a, int b) { conn *t = heap[a]; heap[a] = heap[b]; heap[b] = t; heap[a]->heap_ix = a; heap[b]->heap_ix = b; }
static void hup(int i) { while (i && heap[(i - 1) / 2]->due > heap[i]->due) { hswap(i, (i - 1) / 2); i = (i - 1) / 2; } }
static void hdown(int i) { for (;;) { int l = 2 * i + 1, m = i; if (l < hn && heap[l]->due < heap[m]->due) m = l; if (l + 1 < hn && heap[l + 1]->due < heap[m]->due) m = l + 1; if (m == i) return; hswap(i, m); i = m; } }
static void hpush(conn *c) { if (c->heap_ix >= 0) return; if (hn == hcap) { hcap = hcap ? hcap * 2 : 1024; heap = realloc(heap, hcap * sizeof *heap); } heap[hn] = c; c->heap_ix = hn; hup(hn++); }
static void hremove(conn *c) { int i = c->heap_ix; if (i < 0) return; c->heap_ix = -1; hn--; if (i != hn) { heap[i] = heap[hn]; heap[i]->heap_ix = i; hup(i); hdown(heap[i]->heap_ix); } }

static void wput(conn *c, const char *s, size_t n) {
    if (c->wlen + n > c->wcap) { c->wcap = (c->wlen + n) * 2 + 1024; c->wb = realloc(c->wb, c->wcap); }
    memcpy(c->wb + c->wlen, s, n); c->wlen += n;
}
static void cclose(conn *c) {
    hremove(c); if (c->streaming || c->waiting) running[c->side]--;
    close(c->fd); C[c->fd] = NULL; free(c->rb); free(c->wb); free(c);
}
/* 0 ok (all sent or waiting for EPOLLOUT), -1 closed */
static int wflush(conn *c) {
    while (c->woff < c->wlen) {
        ssize_t k = send(c->fd, c->wb + c->woff, c->wlen - c->woff, MSG_NOSIGNAL);
        if (k > 0) { c->woff += k; continue; }
        if (k < 0 && errno == EINTR) continue;
        if (k < 0 && errno == EAGAIN) {
            if (!c->want_out) { struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.fd = c->fd}; epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e); c->want_out = 1; }
            return 0;
        }
        cclose(c); return -1;
    }
    c->woff = c->wlen = 0;
    if (c->want_out) { struct epoll_event e = {.events = EPOLLIN, .data.fd = c->fd}; epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e); c->want_out = 0; }
    if (c->close_after && !c->streaming) { cclose(c); return -1; }
    return 0;
}

static const char JSON_BODY[] =
    "{\"id\":\"chatcmpl-5f2c9a1b7d3e4f60\",\"object\":\"chat.completion\",\"created\":1767225600,\"model\":\"mock\","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The gateway relays this answer unchanged. "
    "It is as long as a short answer of a language model usually is: two or three sentences, some forty tokens, and then a full stop. "
    "Nothing in it depends on the question that was asked.\",\"refusal\":null,\"tool_calls\":[]},\"logprobs\":null,"
    "\"finish_reason\":\"stop\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":212,\"total_tokens\":260,"
    "\"completion_tokens\":48,\"prompt_tokens_details\":{\"cached_tokens\":64}},\"prompt_logprobs\":null}";
static char json_resp[2048]; static size_t json_resp_n;
static const char SSE_HEAD[] = "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
#define EV_PRE "data: {\"id\":\"chatcmpl-5f2c9a1b7d3e4f60\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" @T"
#define EV_POST "\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n"
static const char EV_ROLE[] = "data: {\"id\":\"chatcmpl-5f2c9a1b7d3e4f60\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char EV_FIN[] = "data: {\"id\":\"chatcmpl-5f2c9a1b7d3e4f60\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}]}\n\n";

static void put_chunk(conn *c, const char *s, size_t n) { char h[32]; int k = sprintf(h, "%zx\r\n", n); wput(c, h, k); wput(c, s, n); wput(c, "\r\n", 2); }
static char ev[512]; static size_t ev_n, ev_off; static char ev_chunked[600]; static size_t evc_n, evc_off;
static void put_delta(conn *c) {
    if (c->counted) {
        char b[768]; int k = sprintf(b, "%s%016llx\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":212,\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n", EV_PRE, (unsigned long long)now_ns(), 212 + c->sent + 1, c->sent + 1);
        put_chunk(c, b, k); n_chunks++; c->sent++; return;
    }
    static const char hx[] = "0123456789abcdef"; uint64_t t = now_ns(); char *p = ev_chunked + evc_off + 15;
    for (int i = 0; i < 16; i++, t >>= 4) *p-- = hx[t & 15];
    wput(c, ev_chunked, evc_n); n_chunks++; c->sent++;
}
static void put_end(conn *c) {
    char b[400]; int k;
    put_chunk(c, EV_FIN, sizeof EV_FIN - 1);
    k = sprintf(b, "data: {\"id\":\"chatcmpl-5f2c9a1b7d3e4f60\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"mock\",\"choices\":[],\"usage\":{\"prompt_tokens\":212,\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n", 212 + c->nchunks, c->nchunks);
    put_chunk(c, b, k);
    put_chunk(c, "data: [DONE]\n\n", 14);
    wput(c, "0\r\n\r\n", 5);
    c->streaming = 0; running[c->side]--;
}

static void simple(conn *c, const char *ctype, const char *body, size_t n) {
    char h[256]; int k = sprintf(h, "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n", ctype, n);
    wput(c, h, k); wput(c, body, n);
}
static void get(conn *c, const char *path) {
    int running_ = running[c->side];
    n_other++;
    if (!strncmp(path, "/metrics", 8)) {
        char b[2048]; struct rusage ru; getrusage(RUSAGE_SELF, &ru);
        int k = sprintf(b,
            "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"mock\"} %d\n"
            "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\",model_name=\"mock\"} 0\n"
            "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"mock\"} %.4f\n"
            "# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc{engine=\"0\",model_name=\"mock\"} %.4f\n"
            "# TYPE vllm:request_success_total counter\nvllm:request_success_total{engine=\"0\",finished_reason=\"stop\",model_name=\"mock\"} %llu\n"
            "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total{engine=\"0\",model_name=\"mock\"} %llu\n"
            "# TYPE mock:streams_total counter\nmock:streams_total %llu\n# TYPE mock:cpu_seconds_total counter\nmock:cpu_seconds_total %.6f\n",
            running_, running_ / 100000.0, running_ / 100000.0,
            (unsigned long long)n_req, (unsigned long long)n_chunks, (unsigned long long)n_stream,
            ru.ru_utime.tv_sec + ru.ru_utime.tv_usec / 1e6 + ru.ru_stime.tv_sec + ru.ru_stime.tv_usec / 1e6);
        simple(c, "text/plain; version=0.0.4", b, k); return;
    }
    const char *b = "{}";
    if (strstr(path, "/models")) b = "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1767225600,\"owned_by\":\"vllm\",\"root\":\"mock\",\"parent\":null,\"max_model_len\":32768}]}";
    else if (!strncmp(path, "/version", 8)) b = "{\"version\":\"0.11.0\"}";
    else if (strstr(path, "model_info")) b = "{\"model_path\":\"mock\",\"tokenizer_path\":\"mock\",\"is_generation\":true,\"served_model_name\":\"mock\"}";
    else if (strstr(path, "server_info")) b = "{\"model_path\":\"mock\",\"served_model_name\":\"mock\",\"tp_size\":1,\"dp_size\":1,\"max_total_num_tokens\":1000000,\"version\":\"0.5.0\"}";
    simple(c, "application/json", b, strlen(b));
}

static int continuous(const char *b, size_t n) { const char *p = memmem(b, n, "\"continuous_usage_stats\"", 24); if (!p) return 0; p += 24; while (*p == ' ' || *p == ':') p++; return *p == 't'; }
static int has_stream_true(const char *b, size_t n) {
    const char *p = b, *e = b + n;
    while ((p = memmem(p, e - p, "\"stream\"", 8))) {
        p += 8; while (p < e && (*p == ' ' || *p == ':')) p++;
        if (e - p >= 4 && !memcmp(p, "true", 4)) return 1;
    }
    return 0;
}
static void post(conn *c, const char *b, size_t n) {
    int N = 20, D = 0, W = 0; n_req++;
    const char *p = memmem(b, n, "#N", 2);
    if (p) sscanf(p, "#N%dD%dW%d#", &N, &D, &W);
    if (has_stream_true(b, n)) {
        n_stream++; running[c->side]++; c->counted = continuous(b, n);
        c->streaming = 1; c->nchunks = N; c->sent = 0; c->delay_ns = D * 1000LL;
        wput(c, SSE_HEAD, sizeof SSE_HEAD - 1);
        c->due = now_ns() + W * 1000LL;
        if (W == 0) { put_chunk(c, EV_ROLE, sizeof EV_ROLE - 1); put_delta(c); c->due += c->delay_ns; }
        hpush(c);
    } else if (W) { running[c->side]++; c->waiting = 1; c->due = now_ns() + W * 1000LL; hpush(c); }
    else wput(c, json_resp, json_resp_n);
}

/* find a header (lower-case name with the leading "\n" and trailing ":") */
static const char *hdr(const char *h, size_t n, const char *name) {
    size_t m = strlen(name);
    for (size_t i = 0; i + m < n; i++) if (h[i] == '\n' && !strncasecmp(h + i, name, m)) { const char *v = h + i + m; while (*v == ' ') v++; return v; }
    return NULL;
}
/* parse as many whole requests as there are; -1: closed */
static int consume(conn *c) {
    size_t off = 0;
    while (!c->streaming && !c->waiting && off < c->rlen) {
        char *s = c->rb + off; size_t n = c->rlen - off;
        char *he = memmem(s, n, "\r\n\r\n", 4); if (!he) break;
        size_t hn_ = he + 4 - s, bn = 0, used;
        const char *v; char *body = he + 4;
        if ((v = hdr(s, hn_, "\ncontent-length:"))) {
            bn = strtoul(v, NULL, 10);
            if (n < hn_ + bn) break;
            used = hn_ + bn;
        } else if ((v = hdr(s, hn_, "\ntransfer-encoding:"))) {  /* chunked: check it is whole, then unchunk in place */
            char *p = body, *e = s + n; int whole = 0;
            while (p < e) { char *q; char *nl = memchr(p, '\n', e - p); if (!nl) break; size_t k = strtoul(p, &q, 16);
                if (k == 0) { if (nl + 2 < e) { whole = 1; p = nl + 3; } break; }
                p = nl + 1 + k + 2; }
            if (!whole) break;
            used = p - s; char *w = body; p = body;
            for (;;) { char *q; size_t k = strtoul(p, &q, 16); char *nl = memchr(p, '\n', e - p); if (!k) break; memmove(w, nl + 1, k); w += k; p = nl + 1 + k + 2; }
            bn = w - body;
        } else used = hn_;
        if ((v = hdr(s, hn_, "\nconnection:")) && !strncasecmp(v, "close", 5)) c->close_after = 1;
        if (!memcmp(s, "POST", 4)) post(c, body, bn);
        else { char *sp = memchr(s, ' ', hn_); get(c, sp ? sp + 1 : "/"); }
        off += used;
    }
    if (off) { memmove(c->rb, c->rb + off, c->rlen - off); c->rlen -= off; }
    return wflush(c);
}

int main(int argc, char **argv) {
    int port = argc > 1 ? atoi(argv[1]) : 19100; signal(SIGPIPE, SIG_IGN);
    json_resp_n = sprintf(json_resp, "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", sizeof JSON_BODY - 1, JSON_BODY);
    ev_n = sprintf(ev, "%s0000000000000000%s", EV_PRE, EV_POST); ev_off = sizeof EV_PRE - 1;
    evc_n = sprintf(ev_chunked, "%zx\r\n", ev_n); evc_off = evc_n + ev_off; memcpy(ev_chunked + evc_n, ev, ev_n); evc_n += ev_n; memcpy(ev_chunked + evc_n, "\r\n", 2); evc_n += 2;
    int ls[16], nls = 0, one = 1; ep = epoll_create1(EPOLL_CLOEXEC);
    do {
        int l = ls[nls] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(nls ? atoi(argv[nls + 1]) : port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        if (bind(l, (void *)&a, sizeof a) || listen(l, 4096)) { perror("bind"); return 1; }
        struct epoll_event e = {.events = EPOLLIN, .data.fd = l}; epoll_ctl(ep, EPOLL_CTL_ADD, l, &e);
    } while (++nls < argc - 1 && nls < 16);
    struct epoll_event evs[512];
    for (;;) {
        struct timespec ts, *tp = NULL;
        if (hn) { int64_t d = heap[0]->due - now_ns(); if (d < 0) d = 0; ts.tv_sec = d / 1000000000; ts.tv_nsec = d % 1000000000; tp = &ts; }
        int k = epoll_pwait2(ep, evs, 512, tp, NULL);
        for (int i = 0; i < k; i++) {
            int fd = evs[i].data.fd;
            int side = 0; while (side < nls && ls[side] != fd) side++;
            if (side < nls) {
                for (int j = 0; j < 256; j++) {
                    int f = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC); if (f < 0) break;
                    if (f >= MAXFD) { close(f); continue; }
                    setsockopt(f, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conn *c = calloc(1, sizeof *c); c->fd = f; c->heap_ix = -1; c->side = side; c->rcap = RBUF0; c->rb = malloc(c->rcap); C[f] = c;
                    struct epoll_event x = {.events = EPOLLIN, .data.fd = f}; epoll_ctl(ep, EPOLL_CTL_ADD, f, &x);
                }
                continue;
            }
            conn *c = C[fd]; if (!c) continue;
            if (evs[i].events & EPOLLOUT) { if (wflush(c)) continue; if (c->streaming && !c->want_out) hpush(c); }
            if (evs[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                if (c->rlen == c->rcap) { c->rcap *= 2; c->rb = realloc(c->rb, c->rcap); }
                ssize_t r = recv(fd, c->rb + c->rlen, c->rcap - c->rlen, 0);
                if (r == 0 || (r < 0 && errno != EAGAIN && errno != EINTR)) { cclose(c); continue; }
                if (r > 0) { c->rlen += r; consume(c); }
            }
        }
        int64_t t = now_ns();
        for (int budget = 4096; hn && heap[0]->due <= t && budget--; ) {
            conn *c = heap[0]; hremove(c);
            if (c->waiting) { c->waiting = 0; running[c->side]--; wput(c, json_resp, json_resp_n); if (!wflush(c)) consume(c); continue; }
            if (c->want_out) continue;               /* back-pressure: EPOLLOUT puts it back */
            if (c->sent == 0) put_chunk(c, EV_ROLE, sizeof EV_ROLE - 1);
            if (c->sent < c->nchunks) put_delta(c);
            int end = c->sent >= c->nchunks; if (end) put_end(c);
            c->due += c->delay_ns;
            if (wflush(c)) continue;
            if (end) consume(c); else if (!c->want_out) hpush(c);
        }
    }
}
