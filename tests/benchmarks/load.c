/* Loads for line echo servers, every byte of every reply compared:
 *
 *     load busy PORT CONNECTIONS DEPTH SIZE SECONDS    CONNECTIONS with DEPTH lines of SIZE bytes in flight each
 *     load short PORT CONNECTIONS SIZE SECONDS         connect, one line, its reply, close; CONNECTIONS at a time
 *     load idle PORT CONNECTIONS SIZE                  a line and its reply on each, then hold them until end of input
 *
 * The first two print "COUNT SECONDS", of echoes or sessions; the third "ready". Any error ends it with code 1.
 * In C, since a client in Python would measure itself. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct peer {
    int fd;
    size_t seen; /* bytes of the current round that are back */
};

static int port, poller;
static size_t round_size;
static char *sent, *back;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void send_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n < 0)
            die("send");
        data += n;
        size -= n;
    }
}

/* Connect from several addresses in turn: the ports of one would run out, since they stay in TIME_WAIT. */
static int dial(void) {
    static unsigned turn;
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(port)};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + turn++ % 200);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0)
        die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) || connect(fd, (struct sockaddr *)&to, sizeof to))
        die("connect");
    return fd;
}

static void begin(struct peer *peer) {
    peer->fd = dial();
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
    epoll_ctl(poller, EPOLL_CTL_ADD, peer->fd, &event);
}

/* Whether the round is complete. */
static int take(struct peer *peer) {
    ssize_t n = recv(peer->fd, back, round_size - peer->seen, 0);
    if (n <= 0)
        die("recv");
    if (memcmp(back, sent + peer->seen, n)) {
        fprintf(stderr, "a reply differs from what was sent\n");
        exit(1);
    }
    peer->seen = (peer->seen + n) % round_size;
    return !peer->seen;
}

static void drive(struct peer *peers, int connections, int depth, int anew, double seconds) {
    for (int i = 0; i < connections; i++)
        begin(&peers[i]);
    for (int i = 0; i < connections; i++)
        send_all(peers[i].fd, sent, round_size);
    double warm = now() + seconds / 5, start = 0, end = warm + seconds;
    for (long long count = 0;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, 5000);
        if (ready <= 0) {
            fprintf(stderr, "no reply for 5 s\n");
            exit(1);
        }
        double moment = now();
        if (!start && moment >= warm)
            start = moment, count = 0;
        if (moment >= end) {
            printf("%lld %.6f\n", count, moment - start);
            return;
        }
        for (int i = 0; i < ready; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!take(peer))
                continue;
            count += depth;
            if (anew) {
                close(peer->fd);
                begin(peer);
            }
            send_all(peer->fd, sent, round_size);
        }
    }
}

static void hold(struct peer *peers, int connections) {
    for (int i = 0; i < connections; i++) {
        peers[i].fd = dial();
        send_all(peers[i].fd, sent, round_size);
        while (!take(&peers[i]))
            ;
    }
    puts("ready");
    fflush(stdout);
    getchar();
}

int main(int argc, char **argv) {
    int idle = argc == 5 && !strcmp(argv[1], "idle"), brief = argc == 6 && !strcmp(argv[1], "short");
    if (!idle && !brief && !(argc == 7 && !strcmp(argv[1], "busy"))) {
        fprintf(stderr, "usage: load busy PORT CONNECTIONS DEPTH SIZE SECONDS | short PORT CONNECTIONS SIZE SECONDS"
                        " | idle PORT CONNECTIONS SIZE\n");
        return 2;
    }
    port = atoi(argv[2]);
    int connections = atoi(argv[3]), depth = idle || brief ? 1 : atoi(argv[4]);
    int size = atoi(argv[idle || brief ? 4 : 5]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    round_size = (size_t)depth * size;
    sent = malloc(round_size), back = malloc(round_size);
    for (size_t i = 0; i < round_size; i++)
        sent[i] = (i + 1) % size ? 'a' + (i * 7 + i / size) % 26 : '\n';
    struct peer *peers = calloc(connections, sizeof *peers);
    poller = epoll_create1(0);
    if (idle)
        hold(peers, connections);
    else
        drive(peers, connections, depth, brief, atof(argv[argc - 1]));
    return 0;
}
