"""Moments that come rarely: a signal in a signal's handler, a pipe filled between look and write, a killed worker."""

import contextlib
import logging
import os
import select
import signal
import socket
import threading

import pytest

import echo
from echo.server import logs as logs_module
from echo.server.logs import DirectLog, LogQueue
from support import DEADLINE, eventually, read_all, read_exactly


def test_a_worker_killed_by_a_signal_without_a_name_is_replaced_too(server_command):
    server = server_command("--workers", "2")
    pid = int(server.read_log_until(r"(?s)worker 0 is process (\d+).*worker 1 is process").group(1))
    os.kill(pid, signal.SIGRTMIN + 1)
    server.read_log_until(r"worker 0: process \d+ was killed by .*; the next in")
    server.read_log_until(r"(?s)the next in.*worker 0 is process")
    assert server.terminate() == 0
    assert "Traceback" not in server.log


@pytest.mark.parametrize("count", ["1", "2"])
def test_what_a_handler_prints_is_not_lost_at_the_end_of_a_worker(server_command, tmp_path, count):
    (tmp_path / "prints.py").write_text(
        "import echo\n"
        "print('imported')\n"
        "class Prints(echo.EchoRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        print(message.decode())\n"
        "        super().message_received(message)\n"
    )
    server = server_command(
        "--workers",
        count,
        "--handler",
        "prints:Prints",
        cwd=str(tmp_path),
        env={"PYTHONUNBUFFERED": ""},
    )
    with echo.connect(server.address) as client:
        client.echo(b"hello")
    server.popen.send_signal(signal.SIGTERM)
    assert server.finish() == (0, b"imported\nhello\n")  # each once


def test_a_shared_queue_counts_bytes_not_characters(monkeypatch):
    reader, writer = os.pipe()
    sizes = []
    monkeypatch.setattr(LogQueue, "_write", lambda queue, data: sizes.append(len(data)))
    logger = logging.Logger("test")
    queue = LogQueue(writer, logging.Formatter("%(message)s"), shared=True)
    logger.addHandler(queue)
    for _ in range(200):
        logger.info("\u20ac" * 80)
    queue.close()
    os.close(reader)
    os.close(writer)
    assert sum(sizes) == 200 * 241
    assert max(sizes) <= select.PIPE_BUF


def test_lines_of_several_shared_queues_stay_whole_in_any_script():
    """The same, seen from outside: UTF-8 is shown as such in the text log."""
    reader, writer = os.pipe()
    text = []

    def read():
        with open(reader, "rb", closefd=False) as file:
            text.append(file.read().decode("utf-8", "replace"))

    def write(name):
        own = logging.Logger(name)
        with contextlib.closing(LogQueue(writer, logging.Formatter("%(message)s."), shared=True)) as queue:
            own.addHandler(queue)
            for number in range(3000):
                own.info(name * (number % 300))

    writers = [threading.Thread(target=write, args=(name,)) for name in "\u20ac\u20ad\u20ae"]
    thread = threading.Thread(target=read)
    for each in writers:
        each.start()
    eventually(lambda: not select.select([], [writer], [], 0)[1])
    thread.start()
    for each in writers:
        each.join(DEADLINE)
    os.close(writer)
    thread.join(DEADLINE)
    os.close(reader)
    lines = text[0].splitlines()
    assert [line for line in lines if line != line[0] * (len(line) - 1) + "."] == []


@pytest.mark.parametrize("value", [7, True, ["a", 0], [[0]]])
def test_a_senseless_cpu_affinity_is_an_error_that_names_the_option(value):
    with pytest.raises((TypeError, ValueError), match="cpu_affinity"):
        echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, cpu_affinity=value).server_close()


def test_processors_that_are_no_whole_numbers_are_told_when_the_server_is_made():
    with pytest.raises((TypeError, ValueError), match="cpu_affinity"):  # now: in start()'s thread, which serves nobody
        echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, cpu_affinity=[0.0]).server_close()


def test_an_iterator_of_processors_is_not_used_up_by_the_check(serve):
    server = echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, cpu_affinity=iter([0]))
    server.shutdown()
    server.serve_forever()
    server.server_close()


@pytest.mark.parametrize("text", ["0-9999"])
def test_the_error_of_a_long_range_is_a_line_that_can_be_read(run, text):
    server = run("echo.server", "0", "--cpu-affinity", text)
    assert server.finish() == (2, b"")
    assert len(server.log) < 500


def test_a_connection_has_one_of_the_documented_states_to_the_last(serve, dial):
    class Watched(echo.Server):
        def close_request(self, request):
            super().close_request(request)
            states.extend(info.state for info in self.connections)

    states = []
    server = serve(cls=Watched)
    client = dial(server)
    client.sendall(b"exit\n")
    assert read_all(client) == b""
    eventually(lambda: states)
    assert set(states) <= {"open", "draining", "closing"}


def test_a_direct_log_does_not_wait_when_another_fills_the_pipe_after_its_look(
    monkeypatch,
):
    reader, writer = os.pipe()
    looked = select.select

    def look(*arguments):
        result = looked(*arguments)
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b"x" * 4096)  # a worker's
        except BlockingIOError:
            os.set_blocking(writer, True)
        return result

    monkeypatch.setattr(logs_module.select, "select", look)
    logger = logging.Logger("test")
    logger.addHandler(DirectLog(writer, logging.Formatter("%(message)s")))
    thread = threading.Thread(target=logger.info, args=("hello",), daemon=True)
    thread.start()
    thread.join(2)
    stuck = thread.is_alive()
    os.read(reader, 1_000_000)
    thread.join(DEADLINE)
    os.close(reader)
    os.close(writer)
    assert not stuck


@pytest.mark.parametrize("count", ["1", "2"])
def test_who_has_read_listening_may_stop_the_server_at_once(run, tmp_path, count):
    (tmp_path / "changed.py").write_text(
        "import os, sys\n"
        "from echo.server import __main__ as command\n"
        "announce = command._announce\n"
        "def announce_and_be_told(server):\n"
        "    announce(server)\n"
        "    os.kill(os.getpid(), 15)\n"
        "command._announce = announce_and_be_told\n"
        "sys.exit(command.main())\n"
    )
    server = run("changed", "0", "--workers", count, cwd=str(tmp_path))
    assert server.finish()[0] == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_ends_does_not_make_the_others_block(run, tmp_path, how):
    (tmp_path / "changed.py").write_text(
        "import sys\n"
        "from echo.server import __main__ as command, workers\n"
        "workers.MIN_PAUSE = workers.MAX_PAUSE = 3600.0\n"  # whoever replaces it would put the mode right again
        "sys.exit(command.main())\n"
    )
    server = run("changed", "0", "--workers", "2", cwd=str(tmp_path))
    log = r"(?s)listening on \S+:(\d+)\n.*worker 0 is process (\d+)\n.*worker 1 is process \d+\n"
    port, pid = map(int, server.read_log_until(log).groups())
    clients = []

    def served():
        clients.append(socket.create_connection(("127.0.0.1", port), DEADLINE))
        clients[-1].sendall(b"hello\n")
        assert read_exactly(clients[-1], 6) == b"hello\n"

    served()
    os.kill(pid, how)
    server.read_log_until(f"worker 0: process {pid} ")
    served()
    served()
    server.popen.send_signal(signal.SIGTERM)
    for client in clients[1:]:
        assert read_all(client) == b""
    assert server.finish()[0] == 0
    for client in clients:
        client.close()


def test_a_second_signal_inside_the_first_ones_handler_is_one_with_it(run, tmp_path):
    (tmp_path / "changed.py").write_text(
        "import os, sys\n"
        "from echo.server import __main__ as command\n"
        "command.SAME_SIGNAL = 3600\n"
        "tell = command.tell\n"
        "def interrupted(level, event, text, *arguments, **options):\n"
        "    tell(level, event, text, *arguments, **options)\n"
        "    if arguments[1:] == ('stopping',):\n"
        "        command.tell = tell\n"
        "        os.kill(os.getpid(), 15)\n"
        "command.tell = interrupted\n"
        "import echo, threading\n"
        "class Slow(echo.EchoRequestHandler):\n"
        "    def message_received(self, message):\n"
        "        threading.Event().wait(0.5)\n"
        "        super().message_received(message)\n"
        "command.EchoRequestHandler = Slow\n"
        "sys.exit(command.main())\n"
    )
    server = run("changed", "0", cwd=str(tmp_path))
    port = int(server.read_log_until(r"listening on \S+:(\d+)").group(1))
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
        client.sendall(b"hello\n")
        server.read_log_until("received")
        server.popen.send_signal(signal.SIGTERM)
        assert read_all(client) == b"hello\n"
    assert server.finish()[0] == 0
