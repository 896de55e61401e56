/* mock.h - a connection of the mock backend, and what its three files know of each other. */
#ifndef MOCK_H
#define MOCK_H

#include "common.h"

#define SIDES_MAX 1024

typedef struct {
    int fd;
    int side;                                 /* which of our ports it came in by */
    char *in; size_t in_size, in_room;        /* bytes of requests that are not whole yet */
    char *out; size_t out_size, out_sent, out_room; /* bytes of answers that the socket did not take yet */
    enum { IDLE, WAITING, STREAMING } state;  /* WAITING: for the moment of an answer in one piece */
    int chunks, sent;                         /* deltas of this stream, and how many of them are written */
    int counted;                              /* the running usage is in every chunk */
    int64_t gap_ns, due_ns;                   /* between deltas; when the next thing is to be written */
    int place;                                /* in the heap of what is due; -1: not in it */
    int blocked, close_after;                 /* the socket is full; the client wants it closed */
} conn;

/* due.c: what is to be written later. The connection whose `due_ns` comes first is `first_due()`, or NULL. */
conn *first_due(void);
void due_add(conn *c);
void due_remove(conn *c);

/* answers.c: what is answered. They fill the connection's `out`; nothing is sent. */
extern int running[SIDES_MAX];
void answer_get(conn *c, const char *path);
void answer_post(conn *c, const char *body, size_t size);
void answer_late(conn *c);  /* the moment of an answer in one piece has come */
int answer_more(conn *c);   /* that of a stream's next delta; 1: it was the last */

/* mock.c: bytes for the client, sent when the socket takes them. */
void put(conn *c, const char *bytes, size_t size);

#endif
