/* loadgen.h - what was asked of the load generator, and its histograms. */
#ifndef LOADGEN_H
#define LOADGEN_H

#include "common.h"
#include <math.h>

/* ------------------------------------------------------------ options */

typedef struct {
    int port, connections, chunks, gap_us, wait_us, padding, media;
    int stream, in_step;
    double seconds, warm_up_s, ramp_s, rate_s; /* rate_s 0: a closed loop */
    const char *path, *model, *key;
    char headers[4096];
} options;

options parse(int argc, char **argv); /* exits with 2 where it cannot */

/* The one request that is sent again and again. */
char *request_of(const options *asked, size_t *size);

/* ------------------------------------------------------------ histograms of nanoseconds, to a 64th of an octave */

#define STEPS 64
#define OCTAVES 64

typedef struct {
    uint64_t counts[OCTAVES * STEPS], total;
    double sum;
    int64_t most;
} histogram;

void count(histogram *in, int64_t ns);
void print(const char *name, const histogram *one); /* ,"name":{...} in microseconds; -1 where nothing was counted */

#endif
