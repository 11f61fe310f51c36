/* A long, slow, lossy path between two network namespaces, for kernels without netem.
 *
 *     linkemu NAMESPACE_A NAMESPACE_B DELAY_MS JITTER_MS LOSS_PERCENT RATE_MBIT QUEUE_PACKETS
 *
 * A TUN device `path0` in each namespace is one end. Each way on its own, a packet meets
 *
 *     random loss -> tail-drop queue -> bottleneck (RATE_MBIT, 0: none) -> DELAY + [0, JITTER) -> out
 *
 * The queue holds as many bytes as QUEUE_PACKETS full packets have: one of 100 bytes is not dropped
 * where one of 1,500 bytes finds room.
 *
 * With jitter, packets leave in the order of their due times, so they overtake each other. The seed is
 * fixed. Prints "up" when both devices are there; the caller gives them addresses. At SIGTERM it
 * prints, for each way, a line "forwarded F lost L dropped D" and ends.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { FULL_PACKET = 1500, PACKET_MAX = 1600, PACKETS_MAX = 1 << 15, BATCH = 64 };

typedef unsigned long long nanoseconds;

struct packet {
    nanoseconds due;
    unsigned length;
    unsigned char bytes[PACKET_MAX];
};

/* One way. The packets under way are a binary heap by due time, of indices into `packets`. */
struct way {
    int from, to;
    struct packet *packets;
    unsigned heap[PACKETS_MAX], unused[PACKETS_MAX];
    unsigned under_way, free;
    nanoseconds bottleneck_free, last_due;
    unsigned long long forwarded, lost, dropped;
};

static struct way ways[2];
static double delay, jitter, loss, rate;
static unsigned queue_max;
static volatile sig_atomic_t ended;

static nanoseconds now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (nanoseconds)t.tv_sec * 1000000000ull + (nanoseconds)t.tv_nsec;
}

static double chance(void) { /* splitmix64 */
    static unsigned long long state = 20261127;
    unsigned long long z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

static nanoseconds due_at(struct way *w, unsigned place) { return w->packets[w->heap[place]].due; }

static void swap(struct way *w, unsigned a, unsigned b) {
    unsigned held = w->heap[a];
    w->heap[a] = w->heap[b];
    w->heap[b] = held;
}

static void push(struct way *w, unsigned which) {
    unsigned place = w->under_way++;
    w->heap[place] = which;
    while (place && due_at(w, (place - 1) / 2) > due_at(w, place)) {
        swap(w, place, (place - 1) / 2);
        place = (place - 1) / 2;
    }
}

static unsigned pop(struct way *w) {
    unsigned first = w->heap[0], place = 0;
    w->heap[0] = w->heap[--w->under_way];
    for (;;) {
        unsigned least = place, left = 2 * place + 1;
        for (unsigned child = left; child <= left + 1 && child < w->under_way; child++)
            if (due_at(w, child) < due_at(w, least)) least = child;
        if (least == place) return first;
        swap(w, place, least);
        place = least;
    }
}

static void take_in(struct way *w) {
    for (int i = 0; i < BATCH && w->free; i++) {
        unsigned which = w->unused[w->free - 1];
        struct packet *p = &w->packets[which];
        ssize_t length = read(w->from, p->bytes, PACKET_MAX);
        if (length <= 0) return;
        nanoseconds t = now(), sent = t;
        if (loss > 0 && chance() < loss) {
            w->lost++;
            continue;
        }
        if (rate > 0) {
            double one = (double)length * 8e3 / rate; /* ns on the wire */
            nanoseconds begins = w->bottleneck_free > t ? w->bottleneck_free : t;
            if ((double)(begins - t) >= queue_max * (FULL_PACKET * 8e3 / rate)) {
                w->dropped++;
                continue;
            }
            sent = w->bottleneck_free = begins + (nanoseconds)one;
        }
        p->due = sent + (nanoseconds)(delay + jitter * chance());
        if (jitter == 0 && p->due <= w->last_due) p->due = w->last_due + 1; /* in order */
        w->last_due = p->due;
        p->length = (unsigned)length;
        w->free--;
        push(w, which);
    }
}

static void give_out(struct way *w) {
    nanoseconds t = now();
    while (w->under_way && due_at(w, 0) <= t) {
        unsigned which = pop(w);
        struct packet *p = &w->packets[which];
        if (write(w->to, p->bytes, p->length) == (ssize_t)p->length) w->forwarded++;
        else w->dropped++;
        w->unused[w->free++] = which;
    }
}

static int tun_in(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", name);
    int space = open(path, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET)) {
        perror(path);
        exit(1);
    }
    close(space);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strcpy(request.ifr_name, "path0");
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request)) {
        perror("/dev/net/tun");
        exit(1);
    }
    return fd;
}

static void on_term(int signal) {
    (void)signal;
    ended = 1;
}

int main(int count, char **values) {
    if (count != 8) {
        fprintf(stderr, "usage: linkemu NS_A NS_B DELAY_MS JITTER_MS LOSS_PERCENT RATE_MBIT QUEUE\n");
        return 2;
    }
    delay = atof(values[3]) * 1e6;
    jitter = atof(values[4]) * 1e6;
    loss = atof(values[5]) / 100;
    rate = atof(values[6]);
    queue_max = (unsigned)atoi(values[7]);
    int a = tun_in(values[1]), b = tun_in(values[2]);
    ways[0].from = ways[1].to = a;
    ways[0].to = ways[1].from = b;
    for (int i = 0; i < 2; i++) {
        ways[i].packets = calloc(PACKETS_MAX, sizeof *ways[i].packets);
        if (!ways[i].packets) {
            perror("calloc");
            return 1;
        }
        for (unsigned p = 0; p < PACKETS_MAX; p++) ways[i].unused[p] = p;
        ways[i].free = PACKETS_MAX;
    }
    signal(SIGTERM, on_term);
    signal(SIGINT, on_term);
    puts("up");
    fflush(stdout);
    while (!ended) {
        long long wait = 100000000;
        for (int i = 0; i < 2; i++) {
            take_in(&ways[i]);
            give_out(&ways[i]);
            if (ways[i].under_way) {
                long long until = (long long)(due_at(&ways[i], 0) - now());
                if (until < wait) wait = until > 0 ? until : 0;
            }
        }
        struct pollfd fds[2] = {{.fd = a, .events = POLLIN}, {.fd = b, .events = POLLIN}};
        struct timespec limit = {wait / 1000000000, wait % 1000000000};
        ppoll(fds, 2, &limit, NULL);
    }
    for (int i = 0; i < 2; i++)
        printf("forwarded %llu lost %llu dropped %llu\n", ways[i].forwarded, ways[i].lost, ways[i].dropped);
    return 0;
}
