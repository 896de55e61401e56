/* due.c - what the mock backend will write later: a binary heap of connections by the moment of their next write. */
#include "mock.h"

static conn **heap;
static int heap_size, heap_room;

conn *first_due(void) { return heap_size ? heap[0] : NULL; }

static void heap_swap(int a, int b) {
    conn *kept = heap[a];
    heap[a] = heap[b], heap[b] = kept;
    heap[a]->place = a, heap[b]->place = b;
}

static void heap_up(int at) {
    for (; at && heap[(at - 1) / 2]->due_ns > heap[at]->due_ns; at = (at - 1) / 2) heap_swap(at, (at - 1) / 2);
}

static void heap_down(int at) {
    for (;;) {
        int left = 2 * at + 1, first = at;
        if (left < heap_size && heap[left]->due_ns < heap[first]->due_ns) first = left;
        if (left + 1 < heap_size && heap[left + 1]->due_ns < heap[first]->due_ns) first = left + 1;
        if (first == at) return;
        heap_swap(at, first);
        at = first;
    }
}

void due_add(conn *c) {
    if (c->place >= 0) return;
    if (heap_size == heap_room) {
        heap_room = heap_room ? 2 * heap_room : 1024;
        heap = must(realloc(heap, heap_room * sizeof *heap));
    }
    heap[heap_size] = c, c->place = heap_size;
    heap_up(heap_size++);
}

void due_remove(conn *c) {
    int at = c->place;
    if (at < 0) return;
    c->place = -1;
    if (at == --heap_size) return;
    heap[at] = heap[heap_size], heap[at]->place = at;
    heap_up(at);
    heap_down(heap[at]->place);
}
