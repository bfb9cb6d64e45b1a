"""The smallest loop that echoes lines with a thread for each client: the minimum cost of threads in Python.

Blocking sockets, reused threads, one processor; no limits, no timeouts, no statistics, no lingering close.
"""

import collections
import os
import queue
import socket
import sys
import threading

idle = collections.deque()


def work(sock):
    tasks = queue.SimpleQueue()
    while True:
        serve(sock)
        sock = None
        idle.append(tasks)
        sock = tasks.get()


def serve(sock):
    with sock:
        recv, sendall = sock.recv, sock.sendall
        rest = b""
        while True:
            data = recv(65536)
            if not data:
                return
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            if lines:
                sendall(b"\n".join(lines) + b"\n")


if getattr(sys, "_is_gil_enabled", lambda: True)():
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print("listening on %s:%d" % listener.getsockname(), file=sys.stderr, flush=True)
while True:
    client, _ = listener.accept()
    try:
        waiting = idle.pop()
    except IndexError:
        threading.Thread(target=work, args=(client,), daemon=True).start()
    else:
        waiting.put(client)
