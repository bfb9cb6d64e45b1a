/* A closed-loop load for line echo servers: CONNECTIONS connections with DEPTH lines of SIZE bytes in flight each, for
 * SECONDS seconds, every byte of every reply compared. Prints "ECHOES SECONDS", or what went wrong and exits 1.
 *
 * In C, since a client in Python would measure itself. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct peer {
    int fd;
    size_t seen; /* bytes of the current round that are back */
};

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

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: load PORT CONNECTIONS DEPTH SIZE SECONDS\n");
        return 2;
    }
    int port = atoi(argv[1]), connections = atoi(argv[2]), depth = atoi(argv[3]), size = atoi(argv[4]);
    double seconds = atof(argv[5]);
    size_t round = (size_t)depth * size;
    char *sent = malloc(round), *back = malloc(round);
    for (size_t i = 0; i < round; i++)
        sent[i] = (i + 1) % size ? 'a' + (i * 7 + i / size) % 26 : '\n';
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct peer *peers = calloc(connections, sizeof *peers);
    int poll = epoll_create1(0), one = 1;
    for (int i = 0; i < connections; i++) {
        peers[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(peers[i].fd, (struct sockaddr *)&address, sizeof address))
            die("connect");
        setsockopt(peers[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &peers[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, peers[i].fd, &event);
    }
    for (int i = 0; i < connections; i++)
        send_all(peers[i].fd, sent, round);
    double warm = now() + seconds / 5, begin = 0, end = warm + seconds;
    long long echoes = 0;
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(poll, events, 256, 5000);
        if (count <= 0) {
            fprintf(stderr, "no reply for 5 s\n");
            return 1;
        }
        double moment = now();
        if (!begin && moment >= warm)
            begin = moment, echoes = 0;
        if (moment >= end) {
            printf("%lld %.6f\n", echoes, moment - begin);
            return 0;
        }
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            ssize_t n = recv(peer->fd, back, round - peer->seen, 0);
            if (n <= 0)
                die("recv");
            if (memcmp(back, sent + peer->seen, n)) {
                fprintf(stderr, "a reply differs from what was sent\n");
                return 1;
            }
            peer->seen += n;
            if (peer->seen == round) {
                peer->seen = 0;
                echoes += depth;
                send_all(peer->fd, sent, round);
            }
        }
    }
}
