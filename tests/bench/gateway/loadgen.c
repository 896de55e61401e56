/* loadgen.c - load for an OpenAI-compatible gateway (one thread, epoll). Prints one JSON line.
 *
 *   loadgen -p PORT [-u /v1/chat/completions] [-H 'name: value']... [-m model]
 *           [-c connections] [-t seconds] [-w warm-up seconds]
 *           [-r requests/s]            open loop: latency counts from the scheduled time (as wrk2)
 *           [-s]                       stream; [-N chunks] [-D us between] [-W us before the first byte]
 *           [-b bytes of prompt padding]
 *
 * Closed loop unless -r. Without -s every answer must be a 200 that names "usage"; with -s a
 * stream is good when it carried N deltas, a usage object and [DONE].
 * The deltas of mock.c carry the time at which they were written, so "relay" is the one-way
 * time of a delta from the backend's write to this program's read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
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

typedef struct { uint64_t b[64 * 64], n; double sum; int64_t max; } hist;   /* 1/64 of an octave */
static void hadd(hist *h, int64_t v) {
    if (v < 0) v = 0; if (v > h->max) h->max = v; h->n++; h->sum += v;
    int e = v < 64 ? 0 : 63 - __builtin_clzll(v) - 5; h->b[e * 64 + (e ? (v >> (e - 1)) - 64 + 0 : v)]++;
}
static double hval(int i) { int e = i / 64, m = i % 64; return e ? ((double)(m + 64) + 0.5) * (double)(1LL << (e - 1)) : m; }
static double hq(hist *h, double q) { if (!h->n) return -1; uint64_t want = ceil(q * h->n), s = 0; for (int i = 0; i < 64 * 64; i++) { s += h->b[i]; if (s >= want && s) return hval(i); } return h->max; }

typedef struct {
    int fd, state;               /* 0 closed, 1 connecting, 2 idle, 3 sending, 4 waiting for the answer */
    size_t woff;
    int64_t t_sched, t_send;
    int hdr_done, status; char hb[8192]; size_t hlen;
    int64_t left;                /* of the body: >=0 content-length, -1 chunked, -2 until close */
    int cst; int64_t cleft;      /* chunked decoder */
    char carry[32]; int ncarry;  /* a marker cut by a read */
    char tail[32];
    int marks, got_first, usage, done, reads;
    int want_out;
} conn;

static conn *C; static int nc = 64, port = 19100, stream, N = 20, D, W, pad; static double secs = 5, warm = 1, rate;
static char *req; static size_t reqn; static int ep; static int *idle, nidle;
static hist lat, ttft, relay, gap, conn_t; static int64_t t_start, t_from, t_end;
static uint64_t ok, bad_status, bad_body, sock_err, chunks, reads_tot, bytes, started, streams_open_first, late; static int last_bad;
static struct sockaddr_in sa;
static int64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }

static void copen(conn *c) {
    int one = 1; c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = 1; int r = connect(c->fd, (void *)&sa, sizeof sa);
    if (r && errno != EINPROGRESS) { close(c->fd); c->state = 0; sock_err++; return; }
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c}; epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e); c->want_out = 1;
}
static void out(conn *c, int on) { if (c->want_out == on) return; c->want_out = on; struct epoll_event e = {.events = EPOLLIN | (on ? EPOLLOUT : 0), .data.ptr = c}; epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e); }
static void cdrop(conn *c, int again) { close(c->fd); c->state = 0; if (again) copen(c); }
static void push(conn *c) {
    while (c->woff < reqn) {
        ssize_t k = send(c->fd, req + c->woff, reqn - c->woff, MSG_NOSIGNAL);
        if (k > 0) { c->woff += k; continue; }
        if (k < 0 && errno == EAGAIN) { out(c, 1); return; }
        sock_err++; cdrop(c, 1); return;
    }
    out(c, 0); c->state = 4;
}
static void begin(conn *c, int64_t sched) {
    c->t_send = now_ns(); c->t_sched = sched ? sched : c->t_send; c->woff = 0; c->state = 3; started++;
    c->hdr_done = 0; c->hlen = 0; c->status = 0; c->cst = 0; c->cleft = 0; c->ncarry = 0; c->marks = c->got_first = c->usage = c->done = c->reads = 0; memset(c->tail, 0, sizeof c->tail);
    push(c);
}
static void ready(conn *c) { c->state = 2; if (rate > 0) { idle[nidle++] = c - C; out(c, 0); } else if (now_ns() < t_end) begin(c, 0); else out(c, 0); }

/* look at decoded body bytes */
static void body(conn *c, const char *p, size_t n, int64_t t) {
    if (t >= t_from) bytes += n;
    char tmp[96]; /* needles over the cut: 31 old + 31 new bytes */
    if (!c->usage || stream) {
        int k = n < 31 ? n : 31; memcpy(tmp, c->tail, 31); memcpy(tmp + 31, p, k);
        if (!c->usage && (memmem(tmp, 31 + k, "\"usage\":{", 9) || memmem(tmp, 31 + k, "\"usage\": {", 10) || memmem(p, n, "\"usage\":{", 9) || memmem(p, n, "\"usage\": {", 10))) c->usage = 1;
        if (stream && !c->done && (memmem(tmp, 31 + k, "[DONE]", 6) || (n > 6 && memmem(p + (n > 64 ? n - 64 : 0), n > 64 ? 64 : n, "[DONE]", 6)))) c->done = 1;
        if (n >= 31) memcpy(c->tail, p + n - 31, 31); else { memmove(c->tail, c->tail + n, 31 - n); memcpy(c->tail + 31 - n, p, n); }
    }
    if (!stream) return;
    size_t i = 0;
    while (i < n || c->ncarry) {
        char m[18]; 
        if (c->ncarry) { size_t need = 18 - c->ncarry, k = n - i < need ? n - i : need; memcpy(c->carry + c->ncarry, p + i, k); c->ncarry += k; i += k; if (c->ncarry < 18) { if (c->ncarry >= 2 && c->carry[1] != 'T') c->ncarry = 0; if (i >= n) return; continue; } memcpy(m, c->carry, 18); c->ncarry = 0; if (m[1] != 'T') continue; }
        else { const char *q = memchr(p + i, '@', n - i); if (!q) return; i = q - p; if (n - i < 18) { memcpy(c->carry, q, n - i); c->ncarry = n - i; return; } if (q[1] != 'T') { i++; continue; } memcpy(m, q, 18); i += 18; }
        uint64_t v = 0; for (int j = 2; j < 18; j++) { char d = m[j]; v = v << 4 | (uint64_t)(d <= '9' ? d - '0' : (d | 32) - 'a' + 10); }
        c->marks++;
        if (!c->got_first) { c->got_first = 1; streams_open_first++; if (c->t_send >= t_from) hadd(&ttft, t - c->t_send - W * 1000LL); }
        if (t >= t_from) { chunks++; hadd(&relay, t - (int64_t)v); }
    }
}
static void finish(conn *c, int64_t t, int reusable) {
    int good = c->status == 200 && c->usage && (!stream || (c->done && c->marks == N));
    if (c->t_sched >= t_from || (rate <= 0 && t >= t_from)) {
        if (good) { ok++; hadd(&lat, t - c->t_sched); reads_tot += c->reads; }
        else if (c->status != 200) { bad_status++; last_bad = c->status; } else bad_body++;
    }
    if (!reusable) { cdrop(c, 1); return; }
    ready(c);
}
static int chunked(conn *c, const char *p, size_t n, int64_t t) {   /* 1: the body ended */
    size_t i = 0;
    while (i < n) {
        switch (c->cst) {
        case 0: { char d = p[i++]; if (d == '\n') { c->cst = c->cleft ? 1 : 3; } else if (d == ';') c->cst = 4; else if (d != '\r') c->cleft = c->cleft << 4 | (d <= '9' ? d - '0' : (d | 32) - 'a' + 10); break; }
        case 4: if (p[i++] == '\n') c->cst = c->cleft ? 1 : 3; break;
        case 1: { size_t k = n - i < (size_t)c->cleft ? n - i : (size_t)c->cleft; body(c, p + i, k, t); i += k; c->cleft -= k; if (!c->cleft) c->cst = 2; break; }
        case 2: if (p[i++] == '\n') { c->cst = 0; c->cleft = 0; } break;
        case 3: if (p[i] == '\r') { i++; } else if (p[i] == '\n') return 1; else { c->cst = 5; } break;
        case 5: if (p[i++] == '\n') c->cst = 3; break;
        }
    }
    return 0;
}
static void input(conn *c) {
    static char buf[262144]; ssize_t r = recv(c->fd, buf, sizeof buf, 0); int64_t t = now_ns();
    if (r < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (r <= 0) {
        if (c->state == 4 && c->hdr_done && c->left == -2) { finish(c, t, 0); return; }
        if (c->state >= 3) { if (t >= t_from) sock_err++; } else if (c->state == 1) sock_err++;
        if (c->state == 2 && rate > 0) for (int i = 0; i < nidle; i++) if (C + idle[i] == c) { idle[i] = idle[--nidle]; break; }
        cdrop(c, t < t_end); return;
    }
    if (c->state != 4) { return; }
    c->reads++; char *p = buf; size_t n = r;
    if (!c->hdr_done) {
        size_t k = sizeof c->hb - 1 - c->hlen; if (k > n) k = n; memcpy(c->hb + c->hlen, p, k); size_t old = c->hlen; c->hlen += k; c->hb[c->hlen] = 0;
        char *e = memmem(c->hb, c->hlen, "\r\n\r\n", 4); if (!e) return;
        size_t used = e + 4 - c->hb - old; p += used; n -= used; *e = 0; c->hdr_done = 1; c->status = atoi(c->hb + 9);
        char *v = strcasestr(c->hb, "\ncontent-length:"); if (v) c->left = strtoll(v + 16, NULL, 10);
        else c->left = strcasestr(c->hb, "\ntransfer-encoding:") ? -1 : -2;
        if (c->left == 0) { finish(c, t, 1); return; }
    }
    if (!n) return;
    if (c->left == -1) { if (chunked(c, p, n, t)) finish(c, t, !strcasestr(c->hb, "\nconnection: close")); }
    else { body(c, p, n, t); if (c->left > 0) { c->left -= n; if (c->left <= 0) finish(c, t, !strcasestr(c->hb, "\nconnection: close")); } }
}
static double us(double ns) { return ns < 0 ? -1 : ns / 1000.0; }
static void ph(const char *name, hist *h) { printf(",\"%s\":{\"n\":%llu,\"mean\":%.2f,\"p50\":%.2f,\"p90\":%.2f,\"p99\":%.2f,\"p999\":%.2f,\"max\":%.2f}", name, (unsigned long long)h->n, h->n ? h->sum / h->n / 1000 : -1, us(hq(h, .5)), us(hq(h, .9)), us(hq(h, .99)), us(hq(h, .999)), h->max / 1000.0); }

int main(int argc, char **argv) {
    const char *url = "/v1/chat/completions", *model = "mock"; char hs[4096] = ""; const char *key = "sk-bench"; int media = 0; int o; signal(SIGPIPE, SIG_IGN);
    while ((o = getopt(argc, argv, "p:u:H:m:c:t:w:r:sN:D:W:b:k:i:")) != -1) switch (o) {
        case 'p': port = atoi(optarg); break; case 'u': url = optarg; break; case 'm': model = optarg; break; case 'c': nc = atoi(optarg); break;
        case 'H': strcat(hs, optarg); strcat(hs, "\r\n"); break; case 't': secs = atof(optarg); break; case 'w': warm = atof(optarg); break; case 'r': rate = atof(optarg); break;
        case 'k': key = optarg; break; case 'i': media = atoi(optarg); break; case 's': stream = 1; break; case 'N': N = atoi(optarg); break; case 'D': D = atoi(optarg); break; case 'W': W = atoi(optarg); break; case 'b': pad = atoi(optarg); break; default: return 2; }
    char *b = malloc(pad + media + 4096); int k = sprintf(b, "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a terse assistant.\"},{\"role\":\"user\",\"content\":%s\"#N%dD%dW%d# ", model, media ? "[{\"type\":\"text\",\"text\":" : "", N, D, W);
    static const char lorem[] = "the quick brown fox jumps over the lazy dog and asks a language model why it did so; "; for (int i = 0; i < pad; i++) b[k++] = lorem[i % (sizeof lorem - 1)];
    if (media) { k += sprintf(b + k, "\"},{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,"); for (int i = 0; i < media; i++) b[k++] = 'A' + i * 7 % 26; k += sprintf(b + k, "\"}}]"); } else b[k++] = '"';
    k += sprintf(b + k, "}],\"max_tokens\":256,\"temperature\":0.7%s}", stream ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
    req = malloc(k + 8192); reqn = sprintf(req, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nAccept: */*\r\nAuthorization: Bearer %s\r\n%sContent-Length: %d\r\n\r\n", url, port, key, hs, k); memcpy(req + reqn, b, k); reqn += k;
    sa = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    ep = epoll_create1(EPOLL_CLOEXEC); C = calloc(nc, sizeof *C); idle = malloc(nc * sizeof *idle);
    t_start = now_ns(); t_from = t_start + warm * 1e9; t_end = t_from + secs * 1e9;
    for (int i = 0; i < nc; i++) copen(C + i);
    struct epoll_event evs[512]; int64_t next = t_start + 50000000, step = rate > 0 ? 1e9 / rate : 0; int64_t hard = t_end + (rate > 0 ? 2000000000LL : 0);
    for (;;) {
        int64_t t = now_ns(); if (t >= hard || (rate > 0 && t >= t_end && nidle == nc)) break; if (t >= t_end && rate <= 0) break;
        if (rate > 0) while (t >= next && next < t_end && nidle) { int i = idle[--nidle]; if (t - next > 1000000) late++; begin(C + i, next); next += step; }
        int64_t d = (rate > 0 && nidle && next < t_end ? next : (t < t_end ? t_end : hard)) - t; if (d < 0) d = 0; if (d > 100000000) d = 100000000;
        struct timespec ts = {d / 1000000000, d % 1000000000}; int n = epoll_pwait2(ep, evs, 512, &ts, NULL);
        for (int i = 0; i < n; i++) {
            conn *c = evs[i].data.ptr; if (c->state == 0) continue;
            if (evs[i].events & EPOLLOUT) {
                if (c->state == 1) { int er = 0; socklen_t l = sizeof er; getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &er, &l); if (er) { sock_err++; cdrop(c, 1); usleep(1000); continue; } ready(c); }
                else if (c->state == 3) push(c); else out(c, 0);
            }
            if (evs[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) input(c);
        }
    }
    double el = (now_ns() - t_from) / 1e9; if (rate > 0 || el > secs) el = rate > 0 ? secs : el; struct rusage ru; getrusage(RUSAGE_SELF, &ru);
    printf("{\"elapsed\":%.3f,\"ok\":%llu,\"rps\":%.1f,\"bad_status\":%llu,\"last_bad\":%d,\"bad_body\":%llu,\"sock_err\":%llu,\"started\":%llu,\"late\":%llu,\"chunks\":%llu,\"chunks_s\":%.1f,\"reads_per_req\":%.2f,\"streams_first\":%llu,\"bytes\":%llu,\"cpu\":%.3f",
        el, (unsigned long long)ok, ok / el, (unsigned long long)bad_status, last_bad, (unsigned long long)bad_body, (unsigned long long)sock_err, (unsigned long long)started, (unsigned long long)late, (unsigned long long)chunks, chunks / el, ok ? (double)reads_tot / ok : 0, (unsigned long long)streams_open_first, (unsigned long long)bytes,
        ru.ru_utime.tv_sec + ru.ru_utime.tv_usec / 1e6 + ru.ru_stime.tv_sec + ru.ru_stime.tv_usec / 1e6);
    ph("lat", &lat); if (stream) { ph("ttft", &ttft); ph("relay", &relay); } printf("}\n");
    return 0;
}
