"""A session: its hooks, its ends and their reasons, and the echo protocol."""

import contextlib
import functools
import logging
import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
import time

import pytest

import echo
from echo.mixins.wrapper import SocketWrapper
from echo.sockets import LINGER_SILENCE
from support import DEADLINE, ROOT, Recorder, eventually, read_all, read_exactly, reset
from support.background import Background


def talk(sock, data):
    """Send ``data``, which fits into the socket's buffers, end the output, and return everything that comes back."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    return read_all(sock)


@pytest.fixture
def serve_later():
    """``serve_later(handler_class)``: an ``echo.Server`` that is not started yet, so that a client's data is there
    before its session begins."""
    with contextlib.ExitStack() as stack:

        def start(handler_class):
            server = echo.Server(("127.0.0.1", 0), handler_class)
            stack.callback(server.stop, 1.0)
            return server

        yield start


# The echo protocol.


@pytest.mark.parametrize("word", [b"exit", b"EXIT", b"Exit", b"  exit ", b"\texit\r", b"eXiT\r"])
def test_exit_in_any_case_and_with_white_space_ends_the_session_and_is_not_echoed(serve, dial, word):
    client = dial(serve())
    client.sendall(b"one\n" + word + b"\nafter\n")
    assert read_all(client) == b"one\n"


@pytest.mark.parametrize("word", [b"exit!", b"exi", b"exit now", b"e xit", b"", b"\xe9xit"])
def test_a_message_that_only_resembles_exit_comes_back(serve, dial, word):
    assert talk(dial(serve()), word + b"\n") == word + b"\n"


def test_every_byte_value_comes_back_and_a_carriage_return_stays(serve, dial):
    data = bytes(range(256)) * 3 + b"\r\n\r\n\n"
    assert talk(dial(serve()), data) == data


@pytest.mark.parametrize("data", [b"a\nb", b"a", b"\n", b"\r", b"a\r\n\x00", b""])
def test_a_last_line_without_its_end_comes_back_as_it_came(serve, dial, data):
    assert talk(dial(serve()), data) == data


def test_exit_without_a_line_feed_ends_the_session_too(serve, dial):
    handler = Recorder.of(echo.EchoRequestHandler)
    assert talk(dial(serve(handler)), b"a\nexit") == b"a\n"
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit"]


def test_the_exit_word_can_be_switched_off(serve, dial):
    class NoExit(echo.EchoRequestHandler):
        exit_word = None

    assert talk(dial(serve(NoExit)), b"exit\n") == b"exit\n"


@pytest.mark.parametrize("framing", [echo.LineFraming(), echo.LengthFraming()], ids=["line", "length"])
def test_messages_come_back_in_order_in_each_framing(serve, framing):
    class Handler(echo.EchoRequestHandler):
        pass

    Handler.framing = framing
    messages = [b"x" * size for size in (0, 1, 2, 1000, 65536)]
    with echo.connect(serve(Handler).server_address, framing=framing, timeout=DEADLINE) as client:
        for message in messages:
            client.send(message)
        assert [client.recv() for _ in messages] == messages


def test_replies_before_exit_arrive_although_junk_behind_it_is_not_read(serve, dial):
    """Row 20: a close over unread input would send RST and cost replies that are on their way."""

    class Late(echo.EchoRequestHandler):
        def close(self):
            assert all_sent.wait(DEADLINE)
            super().close()

    all_sent = threading.Event()
    lines = b"".join(b"line %07d\n" % number for number in range(1000))
    client = dial(serve(Late))
    client.sendall(lines + b"exit\n" + bytes(50_000))
    all_sent.set()
    assert read_all(client) == lines


@pytest.mark.parametrize("attempt", [*range(3), *(pytest.param(n, marks=pytest.mark.stress) for n in range(3, 100))])
def test_every_echo_before_exit_arrives_whatever_junk_follows(serve, dial, attempt):
    """Row 20, with junk that is still being sent when the session ends."""
    lines = b"".join(b"line %07d of the megabyte\n" % number for number in range(40_000))
    client = dial(serve())
    junk = os.urandom(1 << 20)
    received = []

    def send():
        with contextlib.suppress(OSError):  # the server may have closed before all junk is sent
            client.sendall(lines + b"exit\n" + junk)

    began = time.monotonic()
    sender = threading.Thread(target=send)
    sender.start()
    with contextlib.suppress(OSError):
        received.append(read_all(client))
    # The server waits for LINGER_SILENCE while a client sends nothing. On a busy machine our threads may be slower.
    assert received == [lines] or time.monotonic() - began > LINGER_SILENCE
    sender.join()


def test_a_byte_after_exit_costs_no_reply_that_the_client_has_not_read_yet(serve):
    """Row 83: the client is silent for longer than a close waits for the next byte."""
    server = serve()
    server._echo_linger_silence = 0.01
    lines = b"".join(b"line %07d\n" % number for number in range(20_000))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(DEADLINE)
        client.connect(server.server_address)
        client.sendall(lines + b"exit\n")
        threading.Event().wait(0.2)
        client.sendall(b"?")
        assert read_all(client) == lines


def test_replies_arrive_after_the_client_has_half_closed(serve, dial):
    """Row 35: the end of input is not the end of output."""

    class Slow(echo.MessageRequestHandler):
        def message_received(self, message):
            half_closed.wait(DEADLINE)
            self.send(message * 1000)

    half_closed = threading.Event()
    client = dial(serve(Slow))
    client.sendall(b"abc\n")
    client.shutdown(socket.SHUT_WR)
    half_closed.set()
    assert read_all(client) == b"abc" * 1000 + b"\n"


# Hooks and reasons.


def test_a_service_is_a_handler_of_three_lines(serve, dial):
    class Upper(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message.upper())

    assert talk(dial(serve(Upper)), b"abc\ndef\n") == b"ABC\nDEF\n"


def test_the_hooks_come_in_order_and_the_last_exactly_once(serve, dial):
    handler = Recorder.of(echo.EchoRequestHandler)
    talk(dial(serve(handler)), b"a\nb\n")
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"a", b"b", "lost"]


def test_end_of_input_inside_a_message_ends_the_session_as_incomplete(serve, dial):
    handler = Recorder.of(echo.MessageRequestHandler)
    talk(dial(serve(handler)), b"whole\npart")
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"whole", "lost"]
    assert handler.reasons == ["incomplete"]


LINES = [b"line %d" % number for number in range(50)]


class Doubled(echo.EchoRequestHandler):
    def send(self, message):
        super().send(message * 2)


class Reversed(echo.EchoRequestHandler):
    def message_received(self, message):
        self.send(message[::-1])


class Replaced(echo.EchoRequestHandler):
    def connection_made(self):
        self.message_received = lambda message: self.send(message.upper())


class Joined(echo.MessageRequestHandler):
    def message_received(self, message):
        self.send(message)

    def messages_received(self, messages):
        self.send(b" ".join(messages))


class ReturnedLines(echo.LineFraming):
    def encode(self, message):
        return super().encode(message + b"\r")


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (echo.EchoRequestHandler, LINES),
        (Doubled, [line * 2 for line in LINES]),
        (Reversed, [line[::-1] for line in LINES]),
        (Replaced, [line.upper() for line in LINES]),
        (Joined, [b" ".join(LINES)]),
        (type("Handler", (echo.EchoRequestHandler,), {"framing": ReturnedLines()}), [line + b"\r" for line in LINES]),
        (type("Handler", (echo.ThrottlingMixin, Joined), {}), LINES),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_messages_that_one_read_completes_may_be_handled_together(serve, dial, handler, expected):
    """With any overridden method, the result is the same as for single messages."""
    client = dial(serve(handler))
    client.sendall(b"\n".join(LINES) + b"\n")
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"".join(line + b"\n" for line in expected)


@pytest.mark.parametrize("where", [0, 1, 25, 49])
def test_exit_ends_the_session_wherever_it_is_in_one_read(serve, dial, where):
    client = dial(serve())
    client.sendall(b"\n".join([*LINES[:where], b" eXit\r", *LINES[where:]]) + b"\n")
    assert read_all(client) == b"".join(line + b"\n" for line in LINES[:where])


def test_close_ends_the_session_and_ignores_what_follows(serve, dial):
    class Once(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message)
            self.close()

    handler = Recorder.of(Once)
    assert talk(dial(serve(handler)), b"one\ntwo\nthree") == b"one\n"
    assert handler.ended.wait(DEADLINE)
    assert handler.events == ["made", b"one", "lost"]
    assert handler.reasons == ["exit"]


@pytest.mark.parametrize("cls", [echo.Server, socketserver.ThreadingTCPServer], ids=["ours", "stock"])
def test_replies_before_a_close_from_another_thread_reach_a_client_that_sends_more(monkeypatch, cls):
    """Row 83: after five seconds, or at once on a stock server, the connection was ended, and the client's next byte
    was answered with a reset."""

    class Closes(echo.MessageRequestHandler):
        def message_received(self, message):
            threading.Thread(target=self.close_later).start()

        def close_later(self):
            self.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self.send(b"x" * 300000)  # waits there
            self.close()
            closed.set()

    closed = threading.Event()
    monkeypatch.setattr("echo.server.session_server.LINGER_TIMEOUT", 0.01)
    with cls(("127.0.0.1", 0), Closes) as server, socket.socket() as sock:
        serving = Background(server.handle_request)
        sock.settimeout(DEADLINE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(server.server_address)
        sock.sendall(b"hello\n")
        assert closed.wait(DEADLINE)
        time.sleep(0.3)  # the connection would be ended by now
        sock.sendall(b"more\n")
        assert len(read_all(sock)) == 300001
        serving.result()


class Replies(echo.MessageRequestHandler):
    """Sends a reply that waits in this host's buffer, and closes."""

    made = None
    send_timeout = DEADLINE

    def message_received(self, message):
        self.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.send(b"x" * 300000)
        if message == b"close":
            self.close()
        Replies.made = self


@contextlib.contextmanager
def one_reply(cls, message):
    """A session in its thread, the client's socket, and the session's handler, which has just sent its reply."""
    Replies.made = None
    with cls(("127.0.0.1", 0), Replies) as server, socket.socket() as sock:
        serving = Background(server.handle_request)
        sock.settimeout(DEADLINE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(server.server_address)
        sock.sendall(message)
        eventually(lambda: Replies.made is not None)
        yield sock, Replies.made
        serving.result()


@pytest.mark.parametrize("cls", [echo.Server, socketserver.ThreadingTCPServer], ids=["ours", "stock"])
def test_a_close_from_another_thread_after_the_session_has_ended_costs_no_reply(cls):
    """Row 83: it ended the input for good, so that the client's next byte was answered with a reset."""
    with one_reply(cls, b"close\n") as (sock, handler):
        time.sleep(0.1)  # the session's thread waits for the client's end
        handler.close()
        time.sleep(0.1)  # and does not stop waiting
        sock.sendall(b"more\n")
        assert len(read_all(sock)) == 300001


@pytest.mark.parametrize("cls", [echo.Server, socketserver.ThreadingTCPServer], ids=["ours", "stock"])
def test_abort_ends_a_close_that_waits_for_its_client(cls):
    with one_reply(cls, b"hello\n") as (sock, handler):
        handler.close()
        time.sleep(0.1)  # the session's thread waits until the client has the reply
        handler.abort()
        ended = select.poll()
        ended.register(sock, 0)
        assert ended.poll(DEADLINE * 500)
        with pytest.raises(ConnectionResetError):
            read_all(sock)


@pytest.mark.parametrize("before", ["nothing", "drain", "close in another thread"])
def test_abort_is_a_reset_and_no_end_of_the_output(serve, dial, before):
    """A client would take the half of a reply for all of it."""

    class Aborts(echo.MessageRequestHandler):
        framing = echo.RawFraming()

        def message_received(self, message):
            self.send(b"half")
            self.flush()
            if before == "drain":
                self.drain()
            elif before == "close in another thread":
                closing = threading.Thread(target=self.close)
                closing.start()
                closing.join()
            self.abort()

    sock = dial(serve(Aborts))
    sock.sendall(b"hello")
    with pytest.raises(ConnectionResetError):
        read_all(sock)


def test_close_works_from_another_thread(serve, dial):
    class Kept(echo.EchoRequestHandler):
        def connection_made(self):
            kept.append(self)

    kept = []
    handler = Recorder.of(Kept)
    client = dial(serve(handler))
    client.sendall(b"a\n")
    assert read_exactly(client, 2) == b"a\n"
    kept[0].close()
    assert read_all(client) == b""
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit"]


def test_a_message_over_the_limit_ends_its_session_alone_and_what_came_before_is_answered(serve, dial, caplog):
    """Row 32."""

    class Small(echo.EchoRequestHandler):
        framing = echo.LineFraming(max_message=10)

    handler = Recorder.of(Small)
    server = serve(handler)
    other = dial(server)
    with caplog.at_level(logging.WARNING, "echo.session"):
        assert talk(dial(server), b"0123456789\nok\n01234567890\nlost\n") == b"0123456789\nok\n"
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["too-long"]
    assert "too-long" in caplog.text
    other.sendall(b"still here\n")
    assert read_exactly(other, 11) == b"still here\n"


@pytest.mark.parametrize("framing", [echo.LineFraming, echo.LengthFraming, echo.RawFraming])
def test_a_reply_may_be_longer_than_a_message_that_arrives(serve, framing):
    class Repeats(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message * 100_000)

    Repeats.framing = framing(max_message=10)
    with echo.connect(serve(Repeats).server_address, framing=framing(1 << 20)) as client:
        assert client.echo(b"") == b"" if framing.keeps_boundaries else True
        client.send(b"0123456789")
        received = b""
        while len(received) < 1_000_000:
            received += client.recv()
        assert received == b"0123456789" * 100_000


@pytest.mark.parametrize("framing", [echo.LineFraming, echo.LengthFraming, echo.RawFraming])
def test_a_limit_for_replies_that_was_asked_for_is_the_handlers_error(serve, framing):
    class Repeats(echo.MessageRequestHandler):
        def message_received(self, message):
            try:
                self.send(message * 3)
            except echo.MessageTooLong as exc:
                self.send(b"%d" % exc.limit)

    Repeats.framing = framing(max_sent=10)
    with echo.connect(serve(Repeats).server_address, framing=framing()) as client:
        client.send(b"0123")
        assert client.recv() == b"10"


def test_input_that_breaks_a_framing_of_ones_own_is_logged_once_and_ends_the_session_as_error(serve, dial, caplog):
    class Digits(echo.LineFraming):
        def decoder(self):
            decoder = super().decoder()
            feed = decoder.feed

            def feed_digits(data):
                messages = feed(data)
                if not all(message.isdigit() for message in messages):
                    decoder.error = echo.ProtocolError("not a number")
                    return [message for message in messages if message.isdigit()]
                return messages

            decoder.feed = feed_digits
            return decoder

    handler = Recorder.of(type("Numbers", (echo.EchoRequestHandler,), {"framing": Digits()}))
    with caplog.at_level(logging.WARNING, "echo.session"):
        assert talk(dial(serve(handler)), b"1\n2\nthree\n") == b"1\n2\n"
        assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["error"]
    (record,) = caplog.records
    assert (record.event, record.reason, record.levelname) == ("failed", "error", "WARNING")
    assert "not a number" in record.getMessage()


def test_an_idle_session_ends_as_idle(serve_later, dial):
    class Idle(echo.EchoRequestHandler):
        timeout = 0.05

    handler = Recorder.of(Idle)
    server = serve_later(handler)
    client = dial(server)
    client.sendall(b"a\n")
    server.start()
    assert read_all(client) == b"a\n"
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["idle"]


def test_a_dripping_client_ends_as_slow(serve, dial):
    """Row 21: each byte would renew a deadline for each read."""

    class Impatient(echo.EchoRequestHandler):
        message_timeout = 0.1

    handler = Recorder.of(Impatient)
    client = dial(serve(handler))
    client.sendall(b"a\n")
    while not handler.ended.wait(0.02):
        try:
            client.sendall(b"x")
        except OSError:
            break
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["slow"]


def test_a_client_that_never_reads_ends_as_slow(serve, dial):
    """Row 22."""

    class Impatient(echo.MessageRequestHandler):
        send_timeout = 0.05

        def message_received(self, message):
            self.send(b"x" * 60_000)

    handler = Recorder.of(Impatient)
    client = dial(serve(handler))
    client.sendall(b"\n" * 1000)
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["slow"]


@pytest.mark.parametrize("said", [b"", b"half", b"whole\n"])
def test_a_client_that_resets_is_reset_and_no_error(serve, dial, caplog, said):
    """Row 26: a client that has gone is logged at DEBUG, without a traceback."""
    handler = Recorder.of(echo.EchoRequestHandler)
    with caplog.at_level(logging.DEBUG):
        server = serve(handler)
        client = dial(server)
        eventually(lambda: handler.events)
        client.sendall(said)
        eventually(lambda: server.stats().bytes_in == len(said))
        reset(client)
        assert handler.ended.wait(DEADLINE)
        eventually(lambda: not server.connections)
    assert handler.reasons == ["reset"]
    assert not [record for record in caplog.records if record.levelno > logging.INFO or record.exc_info]


@pytest.mark.parametrize("hook", ["connection_made", "message_received", "connection_lost", "eof_received"])
def test_an_exception_in_a_hook_is_logged_once_and_ends_its_session_alone(serve_later, dial, caplog, hook):
    def fail(self, *arguments):
        raise ZeroDivisionError("on purpose")

    handler = Recorder.of(type("Failing", (echo.EchoRequestHandler,), {hook: fail}))
    server = serve_later(handler)
    client = dial(server)
    peer = "127.0.0.1:%d" % client.getsockname()[1]
    client.sendall(b"a\n")
    client.shutdown(socket.SHUT_WR)
    server.start()
    read_all(client)
    eventually(lambda: server.stats().ended)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert peer in errors[0].getMessage()
    assert errors[0].exc_info[0] is ZeroDivisionError
    assert server.stats().ended == {"eof" if hook == "connection_lost" else "error": 1}
    if hook != "connection_lost":
        assert handler.reasons == ["error"]
    assert eventually(lambda: not server.connections)
    dial(server)  # and the server lives


def test_replies_sent_before_an_exception_are_delivered(serve, dial):
    class Failing(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(message)
            if message == b"2":
                raise ZeroDivisionError

    assert talk(dial(serve(Failing)), b"1\n2\n3\n") == b"1\n2\n"


def test_an_unexpected_error_of_the_last_flush_skips_no_hook(serve, dial):
    """A mixin's stream may raise something other than an ``EchoError``."""

    class Broken(SocketWrapper):
        def sendall(self, data):
            raise RuntimeError("no way out")

    class Failing(echo.MessageRequestHandler):
        def stream(self):
            return Broken(super().stream())

        def message_received(self, message):
            self.send(message)
            raise ZeroDivisionError

    handler = Recorder.of(Failing)
    server = serve(handler)
    assert talk(dial(server), b"1\n2\n") == b""
    eventually(lambda: server.stats().ended == {"error": 1})
    assert handler.events == ["made", b"1", "lost"]
    assert handler.reasons == ["error"]


def test_a_failure_of_another_connection_inside_a_hook_is_an_error_of_the_hook(serve, dial):
    class Proxy(echo.MessageRequestHandler):
        def message_received(self, message):
            raise echo.ConnectionClosed("of an upstream server")

    handler = Recorder.of(Proxy)
    talk(dial(serve(handler)), b"a\n")
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["error"]


def test_a_reset_that_another_thread_meets_first_is_still_a_reset(serve, dial, caplog):
    class Kept(echo.EchoRequestHandler):
        def connection_made(self):
            kept.append(self)
            receive = self.connection.receive

            def watched():
                try:
                    return receive()
                except echo.ConnectionClosed:
                    for _ in range(5):
                        with contextlib.suppress(echo.ConnectionClosed):
                            self.connection.send(b"to nobody")
                    raise

            self.connection.receive = watched

    kept = []
    handler = Recorder.of(Kept)
    client = dial(serve(handler))
    eventually(lambda: kept)
    reset(client)
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["reset"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("how", ["after a send", "idle, from another thread", "and sends on", "throttled"])
def test_abort_ends_the_session_as_reset_and_logs_no_error(serve, dial, caplog, how):
    class Aborting(echo.ThrottlingMixin if how == "throttled" else echo.MessageRequestHandler):
        messages_per_second, burst_seconds = 0.001, 1000.0

        def connection_made(self):
            kept.append(self)

        def dispatch_message(self, message):
            arrived.append(message)
            super().dispatch_message(message)

        def message_received(self, message):
            if how != "throttled":
                self.send(message)
                self.abort()
                if how == "and sends on":
                    self.send(message)
                    self.flush()

    kept, arrived = [], []
    handler = Recorder.of(Aborting)
    client = dial(serve(handler))
    eventually(lambda: kept)
    if how == "idle, from another thread":
        kept[0].abort()
    else:
        client.sendall(b"one\ntwo\n")
        if how == "throttled":
            eventually(lambda: len(arrived) == 2)
            kept[0].abort()
    with pytest.raises(ConnectionResetError):
        read_all(client)
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["reset"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_messages_sent_in_connection_lost_still_arrive(serve, dial):
    class Polite(echo.EchoRequestHandler):
        def connection_lost(self, reason):
            self.send(b"goodbye: " + reason.encode())

    assert talk(dial(serve(Polite)), b"a\n") == b"a\ngoodbye: eof\n"


def test_a_client_that_is_gone_when_connection_lost_sends_is_no_error(serve, dial, caplog):
    class Polite(echo.EchoRequestHandler):
        def connection_lost(self, reason):
            self.send(b"goodbye")
            self.flush()

    server = serve(Polite)
    with caplog.at_level(logging.DEBUG, "echo"):
        reset(dial(server))
        eventually(lambda: server.stats().ended == {"reset": 1})
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_flush_lets_a_reply_go_before_the_next_read(serve, dial):
    class Progress(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(b"working")
            self.flush()
            seen.wait(DEADLINE)
            self.send(b"done")

    seen = threading.Event()
    client = dial(serve(Progress))
    client.sendall(b"\n")
    assert read_exactly(client, 8) == b"working\n"
    seen.set()
    assert read_exactly(client, 5) == b"done\n"


def test_send_from_other_threads_sends_whole_messages_without_waiting_for_a_read(serve, dial):
    """Row 34."""
    senders, size = 8, 30_000

    class Broadcast(echo.EchoRequestHandler):
        def connection_made(self):
            for number in range(senders):
                threading.Thread(target=self.pour, args=(b"%d" % number,)).start()

        def pour(self, digit):
            for _ in range(20):
                self.send(digit * size)

    client = dial(serve(Broadcast))
    lines = read_exactly(client, senders * 20 * (size + 1)).splitlines()
    assert sorted(lines) == sorted(b"%d" % number * size for number in range(senders) for _ in range(20))


def test_send_from_another_thread_after_the_end_is_refused(serve, dial):
    class Kept(echo.EchoRequestHandler):
        def connection_made(self):
            kept.append(self)

    kept = []
    server = serve(Kept)
    client = dial(server)
    client.sendall(b"exit\n")
    assert read_all(client) == b""
    client.close()
    eventually(lambda: not server.connections)
    with pytest.raises(echo.ConnectionClosed):
        kept[0].send(b"too late")
    kept[0].close()
    kept[0].abort()


def test_an_ending_session_lets_another_thread_finish_its_message(serve, dial):
    class Kept(echo.EchoRequestHandler):
        def connection_made(self):
            kept.append(self)

    kept = []
    Kept.framing = echo.LengthFraming(50_000_000)
    client = dial(serve(Kept))
    eventually(lambda: kept)
    sender = threading.Thread(target=kept[0].send, args=(b"x" * 20_000_000,))
    sender.start()
    select.select([client], [], [], DEADLINE)
    client.sendall(echo.LengthFraming().encode(b"exit"))
    assert len(read_all(client)) == 20_000_004
    sender.join()


def test_a_reply_that_the_framing_cannot_carry_is_an_error_of_the_hook(serve, dial):
    class Wrong(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(b"two\nlines")

    handler = Recorder.of(Wrong)
    talk(dial(serve(handler)), b"a\n")
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["error"]


@pytest.mark.parametrize("framing", [echo.LineFraming, echo.LengthFraming, echo.RawFraming])
def test_a_hook_that_sends_text_ends_its_session_as_an_error(serve, dial, caplog, framing):
    class Wrong(echo.MessageRequestHandler):
        def message_received(self, message):
            self.send(b"bytes")
            self.send("text")
            self.send("more")

    Wrong.framing = framing()
    handler = Recorder.of(Wrong)
    server = serve(handler)
    assert talk(dial(server), Wrong.framing.encode(b"a")) == Wrong.framing.encode(b"bytes")
    eventually(lambda: server.stats().ended == {"error": 1})
    assert handler.events == ["made", b"a", "lost"]
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info[0] is TypeError
    assert str(record.exc_info[1]) == "a message is bytes, not str; encode it first, with .encode()"


@pytest.mark.parametrize("framing", [echo.LineFraming, echo.LengthFraming, echo.RawFraming])
def test_a_buffer_may_be_used_again_once_it_was_sent(serve, dial, framing):
    class Reuses(echo.MessageRequestHandler):
        def message_received(self, message):
            buffer = bytearray(b"one")
            self.send(buffer)
            buffer[:] = b"two"
            self.send(buffer)

    Reuses.framing = framing()
    expected = b"".join(map(Reuses.framing.encode, (b"one", b"two")))
    assert talk(dial(serve(Reuses)), Reuses.framing.encode(b"a")) == expected


def test_a_server_and_client_work_without_assertions():
    script = (
        "import echo, socket\n"
        "with echo.Server(('127.0.0.1', 0), echo.EchoRequestHandler).start() as server:\n"
        "    with echo.connect(server.server_address, timeout=60) as client:\n"
        "        print(client.echo(b'hello').decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", script], cwd=ROOT, timeout=DEADLINE, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout.split() == [b"hello"]


def test_the_exit_word_may_change_in_a_session(serve):
    class Changing(echo.EchoRequestHandler):
        def message_received(self, message):
            super().message_received(message)
            self.exit_word = b"bye"

    with echo.connect(serve(Changing).server_address, timeout=DEADLINE) as client:
        assert client.echo(b"hello") == b"hello"
        assert client.echo(b"exit") == b"exit"
        client.send(b"bye")
        assert list(client) == []


# Mistakes in a class's body.

BODIES = {
    "async def message_received(self, message): pass": r"H\.message_received is async, and calling it would do nothing",
    "def message_received(self, message): yield message": r"H\.message_received is a generator",
    "async def connection_made(self): yield": r"H\.connection_made is async",
    "framing = echo.RawFraming": r"H\.framing is <class .*; expected an instance, like RawFraming\(\)",
    "framing = 'line'": r"H\.framing is 'line'; expected an instance, like echo\.LineFraming\(\)",
    "timeout = '5'": r"H\.timeout is '5'; expected seconds, like 5\.0, or None",
    "send_timeout = ''": r"H\.send_timeout is ''",
    "timeout = 0": r"H\.timeout is 0; expected more than 0 seconds, or None for no limit",
    "message_timeout = -1.0": r"H\.message_timeout is -1\.0",
    "send_timeout = float('nan')": r"H\.send_timeout is nan",
    "async def messages_received(self, messages): pass": r"H\.messages_received is async",
    "async def dispatch_made(self): self.close()": r"H\.dispatch_made is async",
    "def dispatch_message(self, message): yield message": r"H\.dispatch_message is a generator",
    "async def close(self): pass": r"H\.close is async",
    "def __init__(self, *args): self.count = 0": r"H\.__init__\(\) does not call super\(\)\.__init__\(\)",
    "def __init__(self): self.count = 0": r"set what a session begins with in connection_made\(\)",
}


@pytest.mark.parametrize("body", BODIES)
def test_a_mistake_in_a_handlers_body_is_an_error_when_the_class_is_made(body):
    with pytest.raises((TypeError, ValueError), match=BODIES[body]):
        exec(f"class H(echo.MessageRequestHandler):\n    {body}", {"echo": echo})


@pytest.mark.parametrize(
    "body",
    [
        "def __init__(self, *args): super().__init__(*args)",
        "def __init__(self, *args): echo.MessageRequestHandler.__init__(self, *args)",
        "def __init__(self, request, *_): self.request = request; self.handle()",
        "__init__ = functools.partialmethod(echo.MessageRequestHandler.__init__)",
        "__init__ = (lambda original: lambda self, *args: original(self, *args))(echo.EchoRequestHandler.__init__)",
        "timeout = property(lambda self: 5.0)",
        "framing = property(lambda self: echo.LineFraming())",
        "message_received = functools.partialmethod(print)",
        "timeout = message_timeout = send_timeout = None",
    ],
)
def test_what_a_program_may_mean_is_no_mistake(body):
    exec(f"class H(echo.MessageRequestHandler):\n    {body}", {"echo": echo, "functools": functools})
