/* loadgen_parts.c - the load generator's options, its request, its histograms. */
#include "loadgen.h"

static const char USAGE[] =
    "usage: loadgen -p PORT [-u path] [-m model] [-k key] [-H 'name: value']... [-c connections] [-t seconds]\n"
    "               [-w warm-up seconds] [-R seconds to connect in] [-r requests/s] [-s] [-N chunks] [-D us]\n"
    "               [-W us] [-S (streams in step)] [-b bytes of prompt] [-i bytes of image]\n";

options parse(int argc, char **argv) {
    options asked = {.connections = 64, .chunks = 20, .seconds = 5, .warm_up_s = 1, .path = "/v1/chat/completions",
                     .model = "mock", .key = "sk-bench"};
    for (int letter; (letter = getopt(argc, argv, "p:u:m:k:H:c:t:w:R:r:sSN:D:W:b:i:")) != -1;) {
        size_t used = strlen(asked.headers);
        switch (letter) {
        case 'p': asked.port = atoi(optarg); break;
        case 'u': asked.path = optarg; break;
        case 'm': asked.model = optarg; break;
        case 'k': asked.key = optarg; break;
        case 'H': snprintf(asked.headers + used, sizeof asked.headers - used, "%s\r\n", optarg); break;
        case 'c': asked.connections = atoi(optarg); break;
        case 't': asked.seconds = atof(optarg); break;
        case 'w': asked.warm_up_s = atof(optarg); break;
        case 'R': asked.ramp_s = atof(optarg); break;
        case 'r': asked.rate_s = atof(optarg); break;
        case 's': asked.stream = 1; break;
        case 'S': asked.in_step = 1; break;
        case 'N': asked.chunks = atoi(optarg); break;
        case 'D': asked.gap_us = atoi(optarg); break;
        case 'W': asked.wait_us = atoi(optarg); break;
        case 'b': asked.padding = atoi(optarg); break;
        case 'i': asked.media = atoi(optarg); break;
        default: fputs(USAGE, stderr); exit(2);
        }
    }
    if (!asked.port || asked.connections < 1) {
        fputs(USAGE, stderr);
        exit(2);
    }
    return asked;
}

char *request_of(const options *asked, size_t *size) {
    static const char PROSE[] = "the quick brown fox jumps over the lazy dog and asks a language model why it did so; ";
    size_t room = asked->padding + asked->media + 4096, head_room = 8192;
    char *body = must(malloc(room)), *request = must(malloc(head_room + room)), *at = body;
    at += sprintf(at, "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a terse assistant.\"},"
                  "{\"role\":\"user\",\"content\":%s\"#N%dD%dW%dS%d# ", asked->model,
                  asked->media ? "[{\"type\":\"text\",\"text\":" : "", asked->chunks, asked->gap_us, asked->wait_us,
                  asked->in_step);
    for (int byte = 0; byte < asked->padding; byte++) *at++ = PROSE[byte % (sizeof PROSE - 1)];
    *at++ = '"';
    if (asked->media) {
        at += sprintf(at, "},{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,");
        for (int byte = 0; byte < asked->media; byte++) *at++ = 'A' + byte * 7 % 26;
        at += sprintf(at, "\"}}]");
    }
    at += sprintf(at, "}],\"max_tokens\":256,\"temperature\":0.7%s}",
                  asked->stream ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
    int head = snprintf(request, head_room, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                        "Accept: */*\r\nAuthorization: Bearer %s\r\n%sContent-Length: %zu\r\n\r\n", asked->path,
                        asked->port, asked->key, asked->headers, (size_t)(at - body));
    memcpy(request + head, body, at - body);
    *size = head + (at - body);
    free(body);
    return request;
}

/* ------------------------------------------------------------ histograms */

void count(histogram *in, int64_t ns) {
    if (ns < 0) ns = 0;
    int octave = ns < STEPS ? 0 : 63 - __builtin_clzll(ns) - 5;
    int step = octave ? (int)(ns >> (octave - 1)) - STEPS : (int)ns;
    in->counts[octave * STEPS + step]++;
    in->total++;
    in->sum += ns;
    if (ns > in->most) in->most = ns;
}

/* The middle of a bucket. */
static double value(int bucket) {
    int octave = bucket / STEPS, step = bucket % STEPS;
    return octave ? (step + STEPS + 0.5) * (double)(1LL << (octave - 1)) : step;
}

static double quantile_us(const histogram *of, double share) {
    uint64_t wanted = ceil(share * of->total), seen = 0;
    for (int bucket = 0; of->total && bucket < OCTAVES * STEPS; bucket++)
        if ((seen += of->counts[bucket]) >= wanted && seen) return value(bucket) / 1e3;
    return -1;
}

void print(const char *name, const histogram *one) {
    printf(",\"%s\":{\"n\":%llu,\"mean\":%.2f,\"p50\":%.2f,\"p90\":%.2f,\"p99\":%.2f,\"p999\":%.2f,\"max\":%.2f}", name,
           (unsigned long long)one->total, one->total ? one->sum / one->total / 1e3 : -1, quantile_us(one, 0.5),
           quantile_us(one, 0.9), quantile_us(one, 0.99), quantile_us(one, 0.999), one->most / 1e3);
}
