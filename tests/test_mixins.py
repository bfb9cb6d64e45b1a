"""``LoggingMixin``: what stands in the log of a session."""

import logging
import socket

import pytest
from conftest import Recorder, eventually, read_all

import echo


class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
    pass


@pytest.fixture
def log_of(serve, dial, caplog):
    """``log_of(handler, data)``: the peer, and the records of a session in which the client sent ``data``."""

    def hold(handler, data):
        server = serve(handler)
        with caplog.at_level(logging.DEBUG, "echo.session"):
            client = dial(server)
            peer = "127.0.0.1:%d" % client.getsockname()[1]
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            read_all(client)
            eventually(lambda: not server.connections)
        return peer, [record for record in caplog.records if record.name == "echo.session"]

    return hold


def test_a_session_is_a_record_at_its_start_and_one_at_its_end_and_messages_between(log_of):
    peer, records = log_of(Logged, b"hello\nexit\n")
    assert [record.getMessage() for record in records[:-1]] == [
        f"{peer} connected",
        f"{peer} received 5 bytes: hello",
        f"{peer} sent 5 bytes: hello",
        f"{peer} received 4 bytes: exit",
    ]
    assert records[-1].getMessage().startswith(f"{peer} disconnected: exit; 2 in (11 B), 1 out (6 B), ")
    assert {record.levelno for record in records} == {logging.INFO}


def test_records_carry_their_figures_as_attributes(log_of):
    peer, records = log_of(Logged, b"hello\n")
    assert [record.event for record in records] == ["connected", "received", "sent", "disconnected"]
    assert {record.peer for record in records} == {peer}
    end = records[-1]
    assert (end.reason, end.messages_in, end.messages_out, end.bytes_in, end.bytes_out) == ("eof", 1, 1, 6, 6)
    assert end.duration_s >= 0


def test_what_the_peer_sent_cannot_forge_a_line_or_drive_a_terminal(log_of):
    """Row 29."""
    _, records = log_of(Logged, b"a\r\x1b[2J\xff\\n\x00\n")
    assert records[1].getMessage().endswith(r": a\r\x1b[2J\xff\\n\x00")
    assert all(record.getMessage().isprintable() for record in records)


def test_a_long_message_is_shortened(log_of):
    class Short(Logged):
        shown_bytes = 10

    _, records = log_of(Short, b"x" * 1000 + b"\n")
    assert records[1].getMessage().endswith("received 1000 bytes: xxxxxxxxxx... (990 more bytes)")


def test_a_last_line_without_its_end_is_logged_too(log_of):
    _, records = log_of(Logged, b"rest")
    assert records[1].getMessage().endswith("received 4 bytes without an end: rest")


def test_messages_can_be_left_out(log_of):
    class Quiet(Logged):
        message_level = None

    _, records = log_of(Quiet, b"hello\n")
    assert [record.event for record in records] == ["connected", "disconnected"]


def test_levels_are_class_attributes(log_of):
    class Other(Logged):
        session_level = logging.WARNING
        message_level = logging.DEBUG

    _, records = log_of(Other, b"hello\n")
    assert [record.levelname for record in records] == ["WARNING", "DEBUG", "DEBUG", "WARNING"]


def test_the_end_is_logged_even_if_the_handlers_own_hook_raises(log_of):
    class Failing(echo.LoggingMixin, echo.MessageRequestHandler):
        def connection_lost(self, reason):
            super().connection_lost(reason)

    class Inner(echo.EchoRequestHandler):
        def connection_lost(self, reason):
            raise ZeroDivisionError

    _, records = log_of(type("Both", (Failing, Inner), {}), b"hello\n")
    assert records[-1].event == "disconnected"


def test_the_leftmost_mixin_is_the_outermost(serve, dial):
    order = []

    def mixin(name):
        class Mixin(echo.MessageRequestHandler):
            def message_received(self, message):
                order.append(name)
                super().message_received(message)

        return Mixin

    class Handler(mixin("left"), mixin("right"), echo.EchoRequestHandler):
        pass

    handler = Recorder.of(Handler)
    client = dial(serve(handler))
    client.sendall(b"a\nexit\n")
    assert read_all(client) == b"a\n"
    assert order == ["left", "right"] * 2
