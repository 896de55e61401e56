/* mock.c - a fast mock of an OpenAI-compatible backend. One thread, epoll.
 *
 *   mock PORT...
 *
 * Each port is a backend of its own, with gauges of its own; all are served by this thread.
 *
 * POST, any path   a chat completion: JSON, or SSE when the body says "stream": true. What it is to be like is read
 *                  from the prompt, so that it survives every gateway:
 *                    #N<chunks>D<us between chunks>W<us before the first byte>S<1: streams in step>#
 *                  e.g. "hello #N50D20000W0S0#"
 *                  Each delta carries "@T<16 hex digits>", the monotonic nanoseconds at which it was written, so that
 *                  a load generator on the same machine can time its way. As vLLM does, a stream that was asked for
 *                  stream_options.continuous_usage_stats has the running usage in every chunk.
 * GET /metrics     gauges and counters as vLLM words them
 * GET /v1/models, /health, /version, and what SGLang and its routers ask
 */
#include "mock.h"

#define FDS_MAX 65536
#define EVENTS_MAX 512
#define ACCEPTS_MAX 256 /* connections taken in one turn of the loop */
#define DUE_MAX 4096    /* chunks written in one turn of the loop */
#define READ_BYTES 8192 /* the read buffer's first size; it doubles */

static conn *conns[FDS_MAX];
static int side_of[FDS_MAX]; /* of a listening socket: its port's place among all, from 1; 0: it does not listen */
static int epoll_fd;

/* ------------------------------------------------------------ connections */

static void conn_open(int fd, int side) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    conn *c = conns[fd] = must(calloc(1, sizeof *c));
    c->fd = fd, c->side = side, c->place = -1;
    c->in = must(malloc(c->in_room = READ_BYTES));
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
}

static void conn_close(conn *c) {
    due_remove(c);
    if (c->state != IDLE) running[c->side]--;
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->in), free(c->out), free(c);
}

static void block(conn *c, int blocked) {
    if (c->blocked == blocked) return;
    c->blocked = blocked;
    struct epoll_event wanted = {.events = EPOLLIN | (blocked ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &wanted);
}

void put(conn *c, const char *bytes, size_t size) {
    if (c->out_size + size > c->out_room) {
        c->out_room = 2 * (c->out_size + size);
        c->out = must(realloc(c->out, c->out_room));
    }
    memcpy(c->out + c->out_size, bytes, size);
    c->out_size += size;
}

/* Write what there is. -1: the connection is closed and gone. */
static int flush(conn *c) {
    while (c->out_sent < c->out_size) {
        ssize_t took = send(c->fd, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL);
        if (took > 0) {
            c->out_sent += took;
        } else if (took < 0 && errno == EAGAIN) {
            block(c, 1);
            return 0;
        } else if (!(took < 0 && errno == EINTR)) {
            conn_close(c);
            return -1;
        }
    }
    c->out_size = c->out_sent = 0;
    block(c, 0);
    if (c->close_after && c->state != STREAMING) {
        conn_close(c);
        return -1;
    }
    return 0;
}

/* ------------------------------------------------------------ requests */

/* The value of a header in a head of so many bytes; `name` in lower case, with the line feed before and the colon. */
static const char *header(const char *head, size_t size, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; (line = memchr(line, '\n', head + size - line)); line++) {
        if (line + length >= head + size || strncasecmp(line, name, length)) continue;
        for (line += length; *line == ' '; line++) continue;
        return line;
    }
    return NULL;
}

/* A chunked body in place: its size, or -1 while it is not whole. `used`: bytes that it takes with its framing. */
static ssize_t unchunk(char *body, char *end, size_t *used) {
    char *from = body, *after;
    for (;;) {  /* is it whole? */
        char *line = memchr(from, '\n', end - from);
        if (!line) return -1;
        size_t size = strtoul(from, &after, 16);
        from = line + 1 + size + 2;
        if (from > end) return -1;
        if (!size) break;
    }
    *used = from - body;
    char *to = body;
    for (from = body;;) {
        size_t size = strtoul(from, &after, 16);
        char *data = (char *)memchr(from, '\n', end - from) + 1;
        if (!size) return to - body;
        memmove(to, data, size);
        to += size, from = data + size + 2;
    }
}

/* Answer as many whole requests as there are. */
static void serve(conn *c) {
    size_t done = 0;
    while (c->state == IDLE && done < c->in_size) {
        char *head = c->in + done, *end = c->in + c->in_size, *body = memmem(head, end - head, "\r\n\r\n", 4);
        if (!body) break;
        body += 4;
        size_t used = 0, head_size = body - head;
        ssize_t size = 0;
        const char *value;
        if ((value = header(head, head_size, "\ncontent-length:"))) {
            used = size = strtoul(value, NULL, 10);
            if (end - body < size) break;
        } else if (header(head, head_size, "\ntransfer-encoding:")) {
            if ((size = unchunk(body, end, &used)) < 0) break;
        }
        if ((value = header(head, head_size, "\nconnection:")) && !strncasecmp(value, "close", 5)) c->close_after = 1;
        if (!memcmp(head, "POST", 4)) {
            answer_post(c, body, size);
        } else {
            char *path = memchr(head, ' ', head_size);
            answer_get(c, path ? path + 1 : "/");
        }
        done += head_size + used;
    }
    if (done) {
        memmove(c->in, c->in + done, c->in_size - done);
        c->in_size -= done;
    }
    flush(c);
}

static void receive(conn *c) {
    if (c->in_size == c->in_room) c->in = must(realloc(c->in, c->in_room *= 2));
    ssize_t got = recv(c->fd, c->in + c->in_size, c->in_room - c->in_size, 0);
    if (got > 0) {
        c->in_size += got;
        serve(c);
    } else if (!(got < 0 && (errno == EAGAIN || errno == EINTR))) {
        conn_close(c);
    }
}

/* The next write of a connection whose moment has come. */
static void write_due(conn *c) {
    due_remove(c);
    if (c->state == WAITING) {
        answer_late(c);
        serve(c);
    } else if (!c->blocked) { /* else the client reads too slowly; when it has, it comes back here */
        if (answer_more(c)) serve(c);
        else if (!flush(c) && !c->blocked) due_add(c);
    }
}

/* ------------------------------------------------------------ the loop */

static void take(int listener, int side) {
    for (int count = 0; count < ACCEPTS_MAX; count++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd < FDS_MAX) conn_open(fd, side);
        else close(fd);
    }
}

static void listen_on(int port, int side) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = loopback(port);
    if (fd < 0 || bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)) {
        perror("mock: listen");
        exit(1);
    }
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
    side_of[fd] = side + 1;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (argc < 2 || argc > SIDES_MAX + 1) {
        fprintf(stderr, "usage: mock PORT...\n");
        return 2;
    }
    for (int side = 0; side < argc - 1; side++) listen_on(atoi(argv[side + 1]), side);
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        conn *next = first_due();
        struct timespec patience = timespec_of(next ? next->due_ns - now_ns() : 0);
        int count = epoll_pwait2(epoll_fd, events, EVENTS_MAX, next ? &patience : NULL, NULL);
        for (int at = 0; at < count; at++) {
            int fd = events[at].data.fd;
            if (side_of[fd]) take(fd, side_of[fd] - 1);
            conn *c = conns[fd];
            if (!c) continue;
            if (events[at].events & EPOLLOUT) {
                if (flush(c)) continue;
                if (c->state == STREAMING && !c->blocked) due_add(c);
            }
            if (events[at].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
        }
        int64_t now = now_ns();
        for (count = 0; count < DUE_MAX && (next = first_due()) && next->due_ns <= now; count++) write_due(next);
    }
}
