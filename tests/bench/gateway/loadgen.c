/* loadgen.c - load for an OpenAI-compatible gateway. One thread, epoll; prints one line of JSON.
 *
 *   loadgen -p PORT [-c connections] [-t seconds] ...       all options: loadgen_parts.c
 *
 * A closed loop, or with -r an open one, whose latency counts from the scheduled time (as wrk2 does). Without -s every
 * answer must be a 200 that names "usage"; with -s a stream is good when it carried N deltas, a usage and [DONE].
 * Each delta of mock.c says when it was written: "relay" is its way from there to our read, "gap" the time between a
 * stream's deltas, "ttft" from the request's first byte to the first delta. All in microseconds.
 */
#include "loadgen.h"

#define EVENTS_MAX 512
#define READ_BYTES (256 << 10)
#define HEAD_BYTES 4096
#define SEAM 31  /* bytes before a cut that may be the first part of what is looked for */
#define MARK 18  /* bytes of "@T<16 hex digits>" */

typedef struct {
    int fd;
    enum { CLOSED, CONNECTING, READY, SENDING, RECEIVING } state;
    int wants_out;
    size_t sent;                        /* bytes of the request */
    int64_t scheduled_ns, sent_ns, last_ns;
    int status, head_done, closes;
    char head[HEAD_BYTES]; size_t head_size;
    int64_t left;                       /* of the body; -1: chunked, -2: until the connection ends */
    enum { SIZE, EXTENSION, DATA, AFTER_DATA, TRAILER, TRAILER_LINE } chunk;
    int64_t chunk_left;
    char seam[SEAM];                    /* the last bytes of the body so far */
    char part[MARK]; int part_size;     /* a mark that a read has cut */
    int marks, usage, done, reads;      /* what the answer has had */
} conn;

static options asked;
static conn *conns;
static char *request;
static size_t request_size;
static int epoll_fd, *ready, ready_count;
static int64_t from_ns, end_ns;         /* what ends between them is counted */
static struct sockaddr_in address;
static histogram latency, ttft, relay, gap;
static uint64_t good, bad_status, bad_body, broken, started, late, chunks, reads, bytes, first_chunks;
static int last_bad;

/* ------------------------------------------------------------ connections */

static void want_out(conn *c, int wanted) {
    if (c->wants_out == wanted) return;
    c->wants_out = wanted;
    struct epoll_event events = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &events);
}

static void conn_open(conn *c) {
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->state = CONNECTING;
    if (connect(c->fd, (void *)&address, sizeof address) && errno != EINPROGRESS) {
        close(c->fd);
        c->state = CLOSED;
        broken++;
        return;
    }
    c->wants_out = 1;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN | EPOLLOUT, .data.ptr = c});
}

static void conn_drop(conn *c, int again) {
    close(c->fd);
    c->state = CLOSED;
    if (again) conn_open(c);
}

static void push(conn *c) {
    while (c->sent < request_size) {
        ssize_t took = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL);
        if (took > 0) {
            c->sent += took;
        } else if (took < 0 && errno == EAGAIN) {
            want_out(c, 1);
            return;
        } else {
            broken++;
            conn_drop(c, 1);
            return;
        }
    }
    want_out(c, 0);
    c->state = RECEIVING;
}

static void begin(conn *c, int64_t scheduled_ns) {
    started++;
    c->sent_ns = now_ns(), c->scheduled_ns = scheduled_ns ? scheduled_ns : c->sent_ns;
    c->state = SENDING, c->sent = 0, c->last_ns = 0;
    c->status = c->head_done = c->closes = c->head_size = 0;
    c->chunk = SIZE, c->chunk_left = 0, c->part_size = 0;
    c->marks = c->usage = c->done = c->reads = 0;
    memset(c->seam, 0, SEAM);
    push(c);
}

/* It may have another request: at once in a closed loop, when the schedule says so in an open one. */
static void now_ready(conn *c) {
    c->state = READY;
    want_out(c, 0);
    if (asked.rate_s > 0) ready[ready_count++] = c - conns;
    else if (now_ns() < end_ns) begin(c, 0);
}

static void finish(conn *c, int64_t at, int reusable) {
    int right = c->status == 200 && c->usage && (!asked.stream || (c->done && c->marks == asked.chunks));
    if (asked.rate_s > 0 ? c->scheduled_ns >= from_ns : at >= from_ns) {
        if (right) {
            good++;
            reads += c->reads;
            count(&latency, at - c->scheduled_ns);
        } else if (c->status != 200) {
            bad_status++;
            last_bad = c->status;
        } else {
            bad_body++;
        }
    }
    if (reusable && !c->closes) now_ready(c);
    else conn_drop(c, 1);
}

/* ------------------------------------------------------------ the body of an answer */

/* Whether a text of at most SEAM bytes is in these bytes, or begins before them. */
static int has(const conn *c, const char *at, size_t size, const char *text) {
    char over_the_cut[2 * SEAM];
    size_t length = strlen(text), after = size < SEAM ? size : SEAM;
    memcpy(over_the_cut, c->seam, SEAM);
    memcpy(over_the_cut + SEAM, at, after);
    return memmem(over_the_cut, SEAM + after, text, length) || memmem(at, size, text, length);
}

static void remember(conn *c, const char *at, size_t size) {
    if (size >= SEAM) {
        memcpy(c->seam, at + size - SEAM, SEAM);
    } else {
        memmove(c->seam, c->seam + size, SEAM - size);
        memcpy(c->seam + SEAM - size, at, size);
    }
}

/* A delta came; `mark` says when it was written. */
static void delta(conn *c, const char *mark, int64_t at) {
    uint64_t written = 0;
    for (int digit = 2; digit < MARK; digit++)
        written = written << 4 | (mark[digit] <= '9' ? mark[digit] - '0' : (mark[digit] | 32) - 'a' + 10);
    if (!c->marks++) {
        first_chunks++;
        if (c->sent_ns >= from_ns) count(&ttft, at - c->sent_ns - asked.wait_us * NS_PER_US);
    } else if (at >= from_ns && c->last_ns >= from_ns) {
        count(&gap, at - c->last_ns);
    }
    c->last_ns = at;
    if (at >= from_ns) {
        chunks++;
        count(&relay, at - (int64_t)written);
    }
}

/* Find the marks of deltas, also those that a read has cut. */
static void deltas(conn *c, const char *at, size_t size, int64_t now) {
    const char *end = at + size;
    while (at < end) {
        if (!c->part_size && !(at = memchr(at, '@', end - at))) return;
        size_t had = c->part_size, take = (size_t)(end - at) < MARK - had ? (size_t)(end - at) : MARK - had;
        memcpy(c->part + had, at, take);
        c->part_size += take;
        if (c->part_size >= 2 && c->part[1] != 'T') { /* another @: look on behind it */
            at += !had;
            c->part_size = 0;
            continue;
        }
        at += take;
        if (c->part_size == MARK) {
            delta(c, c->part, now);
            c->part_size = 0;
        }
    }
}

static void body(conn *c, const char *at, size_t size, int64_t now) {
    if (now >= from_ns) bytes += size;
    if (!c->usage) c->usage = has(c, at, size, "\"usage\":{") || has(c, at, size, "\"usage\": {");
    if (asked.stream && !c->done) c->done = has(c, at, size, "[DONE]");
    remember(c, at, size);
    if (asked.stream) deltas(c, at, size, now);
}

/* The same of a chunked body. 1: it has ended. */
static int chunked(conn *c, const char *at, size_t size, int64_t now) {
    for (const char *end = at + size; at < end;) {
        char byte = *at;
        if (c->chunk == DATA) {
            size_t take = end - at < c->chunk_left ? (size_t)(end - at) : (size_t)c->chunk_left;
            body(c, at, take, now);
            at += take;
            if (!(c->chunk_left -= take)) c->chunk = AFTER_DATA;
            continue;
        }
        at++;
        switch (c->chunk) {
        case SIZE:
            if (byte == '\n') c->chunk = c->chunk_left ? DATA : TRAILER;
            else if (byte == ';') c->chunk = EXTENSION;
            else if (byte != '\r')
                c->chunk_left = c->chunk_left << 4 | (byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10);
            break;
        case EXTENSION:
            if (byte == '\n') c->chunk = c->chunk_left ? DATA : TRAILER;
            break;
        case AFTER_DATA:
            if (byte == '\n') c->chunk = SIZE, c->chunk_left = 0;
            break;
        case TRAILER:
            if (byte == '\n') return 1;
            if (byte != '\r') c->chunk = TRAILER_LINE;
            break;
        default:
            if (byte == '\n') c->chunk = TRAILER;
        }
    }
    return 0;
}

/* ------------------------------------------------------------ answers */

/* The head, once it is whole: how many of these bytes belong to it, or 0. */
static size_t head(conn *c, const char *at, size_t size) {
    size_t before = c->head_size, room = HEAD_BYTES - 1 - before, take = size < room ? size : room;
    memcpy(c->head + before, at, take);
    c->head_size += take;
    c->head[c->head_size] = 0;
    char *end = memmem(c->head, c->head_size, "\r\n\r\n", 4), *length;
    if (!end) return 0;
    *end = 0;
    c->head_done = 1;
    c->status = atoi(c->head + 9);
    c->closes = strcasestr(c->head, "\nconnection: close") != NULL;
    if ((length = strcasestr(c->head, "\ncontent-length:"))) c->left = strtoll(length + 16, NULL, 10);
    else c->left = strcasestr(c->head, "\ntransfer-encoding:") ? -1 : -2;
    return end + 4 - c->head - before;
}

static void lost(conn *c, int64_t now) {
    if (c->state == RECEIVING && c->head_done && c->left == -2) {
        finish(c, now, 0);
        return;
    }
    if (c->state == CONNECTING || (c->state >= SENDING && now >= from_ns)) broken++;
    for (int at = 0; c->state == READY && at < ready_count; at++)
        if (conns + ready[at] == c) ready[at] = ready[--ready_count];
    conn_drop(c, now < end_ns);
}

static void receive(conn *c) {
    static char buffer[READ_BYTES];
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    int64_t now = now_ns();
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        lost(c, now);
        return;
    }
    if (c->state != RECEIVING) return; /* an answer before the request is whole: it ends the connection */
    c->reads++;
    const char *at = buffer;
    if (!c->head_done) {
        size_t used = head(c, at, got);
        if (!c->head_done) return;
        at += used, got -= used;
        if (!c->left) {
            finish(c, now, 1);
            return;
        }
    }
    if (!got) return;
    if (c->left == -1) {
        if (chunked(c, at, got, now)) finish(c, now, 1);
        return;
    }
    body(c, at, got, now);
    if (c->left > 0 && (c->left -= got) <= 0) finish(c, now, 1);
}

static void connected(conn *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (!error) {
        now_ready(c);
        return;
    }
    broken++;
    conn_drop(c, 1);
    usleep(1000);
}

static void event(conn *c, uint32_t events) {
    if (c->state == CLOSED) return;
    if (events & EPOLLOUT) {
        if (c->state == CONNECTING) connected(c);
        else if (c->state == SENDING) push(c);
        else want_out(c, 0);
    }
    if (c->state != CLOSED && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
}

/* ------------------------------------------------------------ the loop */

static void report(double elapsed) {
    printf("{\"elapsed\":%.3f,\"ok\":%llu,\"rps\":%.1f,\"bad_status\":%llu,\"last_bad\":%d,\"bad_body\":%llu,"
           "\"sock_err\":%llu,\"started\":%llu,\"late\":%llu,\"chunks\":%llu,\"chunks_s\":%.1f,"
           "\"reads_per_req\":%.2f,\"streams_first\":%llu,\"bytes\":%llu,\"cpu\":%.3f",
           elapsed, (unsigned long long)good, good / elapsed, (unsigned long long)bad_status, last_bad,
           (unsigned long long)bad_body, (unsigned long long)broken, (unsigned long long)started,
           (unsigned long long)late, (unsigned long long)chunks, chunks / elapsed, good ? (double)reads / good : 0,
           (unsigned long long)first_chunks, (unsigned long long)bytes, cpu_seconds());
    print("lat", &latency);
    if (asked.stream) print("ttft", &ttft), print("relay", &relay), print("gap", &gap);
    puts("}");
}

int main(int argc, char **argv) {
    asked = parse(argc, argv);
    request = request_of(&asked, &request_size);
    address = loopback(asked.port);
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    conns = must(calloc(asked.connections, sizeof *conns));
    ready = must(malloc(asked.connections * sizeof *ready));
    int64_t start_ns = now_ns(), next_ns = start_ns + NS_PER_S / 20;
    from_ns = start_ns + asked.warm_up_s * NS_PER_S, end_ns = from_ns + asked.seconds * NS_PER_S;
    int64_t step_ns = asked.rate_s > 0 ? NS_PER_S / asked.rate_s : 0;
    int64_t stop_ns = end_ns + (step_ns ? 2 * NS_PER_S : 0); /* an open loop waits for what it has begun */
    for (int opened = 0;;) {
        int64_t now = now_ns();
        if (now >= stop_ns || (step_ns && now >= end_ns && ready_count == asked.connections)) break;
        int due = asked.ramp_s > 0 ? (now - start_ns) / 1e9 / asked.ramp_s * asked.connections + 1 : asked.connections;
        for (; opened < due && opened < asked.connections; opened++) conn_open(conns + opened);
        for (; step_ns && now >= next_ns && next_ns < end_ns && ready_count; next_ns += step_ns) {
            if (now - next_ns > NS_PER_S / 1000) late++;
            begin(conns + ready[--ready_count], next_ns);
        }
        int64_t wait_ns = (step_ns && ready_count && next_ns < end_ns ? next_ns : now < end_ns ? end_ns : stop_ns) - now;
        int64_t most_ns = opened < asked.connections ? NS_PER_S / 1000 : NS_PER_S / 10;
        struct timespec patience = timespec_of(wait_ns < most_ns ? wait_ns : most_ns);
        struct epoll_event events[EVENTS_MAX];
        int found = epoll_pwait2(epoll_fd, events, EVENTS_MAX, &patience, NULL);
        for (int at = 0; at < found; at++) event(events[at].data.ptr, events[at].events);
    }
    double elapsed = (now_ns() - from_ns) / 1e9;
    report(step_ns || elapsed < asked.seconds ? asked.seconds : elapsed);
    return 0;
}
