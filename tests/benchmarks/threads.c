/* The upper bound for a server with a thread for each connection: blocking reads and writes in C, line by line. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 1 << 20 };

static void *serve(void *argument) {
    int fd = (int)(intptr_t)argument;
    size_t size = 64 * 1024, used = 0;
    char *buffer = malloc(size);
    for (;;) {
        if (used == size && size < MOST)
            buffer = realloc(buffer, size *= 2);
        ssize_t n = recv(fd, buffer + used, size - used, 0);
        if (n <= 0)
            break;
        used += n;
        char *end = memrchr(buffer, '\n', used);
        if (!end)
            continue;
        size_t whole = end + 1 - buffer;
        for (size_t sent = 0; sent < whole;) {
            ssize_t m = send(fd, buffer + sent, whole - sent, MSG_NOSIGNAL);
            if (m < 0)
                goto out;
            sent += m;
        }
        memmove(buffer, end + 1, used -= whole);
    }
out:
    free(buffer);
    close(fd);
    return 0;
}

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024) ||
        getsockname(listener, (struct sockaddr *)&address, &size)) {
        perror("listen");
        return 1;
    }
    fprintf(stderr, "listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * 1024);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int fd = accept(listener, 0, 0);
        pthread_t thread;
        if (fd >= 0 && pthread_create(&thread, &small, serve, (void *)(intptr_t)fd))
            close(fd);
    }
}
