"""Hooks are the handler's, steps are the mixins': any order of both, and an error where an order would hide a mixin."""

import abc
import functools
import gc
import itertools
import logging
import socket
import sys
import weakref
from typing import Generic, Protocol, TypeVar

import pytest

import echo
from support import DEADLINE, Recorder, eventually, read_all

T = TypeVar("T")


def talk(sock, data):
    """Send ``data`` and the end of input; return all replies."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    return read_all(sock)


class Hooks(echo.MessageRequestHandler):
    """A handler whose hooks call no ``super()``."""

    def connection_made(self):
        self.send(b"welcome")

    def message_received(self, message):
        self.send(message.upper())

    def eof_received(self, rest):
        self.send(rest + b"?")

    def connection_lost(self, reason):
        self.send(b"goodbye")


HOOKS = {name: value for name, value in vars(Hooks).items() if name in echo.handlers.HOOKS}


class Waits(echo.ThrottlingMixin):
    """A throttle that records the messages that it lets pass."""

    messages_per_second = 1e9

    def dispatch_message(self, message):
        self.server.passed.append(message)
        super().dispatch_message(message)


def in_the_body(mixins):
    return type("Handler", (*mixins, echo.MessageRequestHandler), HOOKS)


def left_of_the_handler_class(mixins):
    return type("Handler", (*mixins, Hooks), {})


def right_of_the_handler_class(mixins):
    return type("Handler", (Hooks, *mixins), {})


def around_the_handler_class(mixins):
    return type("Handler", (mixins[0], Hooks, *mixins[1:]), {})


def in_a_subclass(mixins):
    return type("Handler", (type("Base", (*mixins, echo.MessageRequestHandler), {}),), HOOKS)


def in_a_body_without_a_handler_class(mixins):
    return type("Handler", mixins, HOOKS)


LAYOUTS = [
    in_the_body,
    left_of_the_handler_class,
    right_of_the_handler_class,
    around_the_handler_class,
    in_a_subclass,
    in_a_body_without_a_handler_class,
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mixins", list(itertools.permutations([echo.LoggingMixin, Waits])))
def test_mixins_work_around_hooks_that_call_no_super(serve, dial, caplog, layout, mixins):
    server = serve(layout(mixins))
    server.passed = []
    with caplog.at_level(logging.INFO, "echo.session"):
        client = dial(server)
        peer = "127.0.0.1:%d" % client.getsockname()[1]
        assert talk(client, b"one\ntwo\nrest") == b"welcome\nONE\nTWO\nrest?\ngoodbye\n"
        eventually(lambda: not server.connections)
    records = [record for record in caplog.records if getattr(record, "peer", None) == peer]
    assert [(record.event, getattr(record, "text", "")) for record in records] == [
        ("connected", ""),
        ("sent", "welcome"),
        ("received", "one"),
        ("sent", "ONE"),
        ("received", "two"),
        ("sent", "TWO"),
        ("received", "rest"),
        ("sent", "rest?"),
        ("sent", "goodbye"),
        ("disconnected", ""),
    ]
    assert server.passed == [b"one", b"two"]


def noting(name, *, override):
    """A mixin that records its calls in ``server.order``, in its hooks or in its steps."""
    mixin = type(name, (echo.MessageRequestHandler,), {})

    def method(attribute):
        def noted(self, *arguments):
            self.server.order.append(f"{name}.{attribute}")
            getattr(super(mixin, self), attribute)(*arguments)

        return noted

    for attribute in echo.handlers.HOOKS if override == "hooks" else echo.handlers.STEPS[:-1]:  # all but stream()
        setattr(mixin, attribute, method(attribute))
    return mixin


def order_of(serve, dial, handler):
    server = serve(handler)
    server.order = []
    talk(dial(server), b"hello\n")
    eventually(lambda: not server.connections)
    return server.order


def test_steps_go_from_the_left_to_the_right_and_then_to_the_hook(serve, dial):
    class Handler(noting("Left", override="steps"), noting("Right", override="steps"), echo.MessageRequestHandler):
        def message_received(self, message):
            self.server.order.append("hook")
            self.send(message)

    assert order_of(serve, dial, Handler) == [
        "Left.dispatch_made",
        "Right.dispatch_made",
        "Left.dispatch_message",
        "Right.dispatch_message",
        "hook",
        "Left.send",
        "Right.send",
        "Left.dispatch_eof",
        "Right.dispatch_eof",
        "Left.dispatch_lost",
        "Right.dispatch_lost",
    ]


def test_mixins_that_override_hooks_and_call_super_keep_their_order(serve, dial):
    """As mixins were written before there were steps. Their hooks run inside all steps, wherever they are listed."""
    old = [noting(name, override="hooks") for name in ("First", "Second")]
    new = noting("Step", override="steps")

    def order(*bases):
        return [
            entry
            for entry in order_of(serve, dial, type("Handler", (*bases, echo.EchoRequestHandler), {}))
            if entry.endswith(("dispatch_message", "message_received"))
        ]

    for bases in ([new, *old], [old[0], new, old[1]], [*old, new]):
        assert order(*bases) == ["Step.dispatch_message", "First.message_received", "Second.message_received"]


def test_a_hook_may_be_replaced_during_the_session(serve, dial):
    class Handler(echo.MessageRequestHandler):
        def message_received(self, message):
            self.message_received = self.other
            self.send(b"first")

        def other(self, message):
            self.send(b"other")

    assert talk(dial(serve(Handler)), b"1\n2\n") == b"first\nother\n"
    assert talk(dial(serve(type("Logged", (echo.LoggingMixin, Handler), {}))), b"1\n2\n") == b"first\nother\n"


# connection_made and connection_lost.


@pytest.mark.parametrize("mixins", [(), (echo.LoggingMixin, echo.ThrottlingMixin)])
def test_connection_lost_is_called_once_after_a_connection_made_that_raised(serve, dial, mixins):
    class Failing(*mixins, echo.MessageRequestHandler):
        def connection_made(self):
            raise ZeroDivisionError

    handler = Recorder.of(Failing)
    server = serve(handler)
    assert talk(dial(server), b"") == b""
    assert handler.ended.wait(DEADLINE)
    eventually(lambda: server.stats().ended == {"error": 1})
    assert handler.events == ["made", "lost"]


@pytest.mark.parametrize("how", ["close", "raise"])
def test_a_step_can_reject_a_client_before_the_handler_sees_it(serve, dial, how):
    class Rejects(echo.MessageRequestHandler):
        def dispatch_made(self):
            self.send(b"not today")
            if how == "raise":
                raise ZeroDivisionError
            self.close()

    handler = Recorder.of(type("Handler", (Rejects, Hooks), {}))
    server = serve(handler)
    assert talk(dial(server), b"hello\n") == b"not today\n"
    eventually(lambda: server.stats().ended == {"exit" if how == "close" else "error": 1})
    assert handler.events == []


def test_a_mixin_that_closes_a_session_in_setup_rejects_its_client_before_the_handler_sees_it(serve, dial):
    steps = []

    class Counts(echo.MessageRequestHandler):
        def dispatch_made(self):
            steps.append("made")
            super().dispatch_made()

        def dispatch_lost(self, reason):
            steps.append("lost")
            super().dispatch_lost(reason)

    class Rejects(echo.MessageRequestHandler):
        def setup(self):
            super().setup()
            self.close()

    handler = Recorder.of(type("Handler", (Counts, Rejects, Hooks), {}))
    server = serve(handler)
    assert talk(dial(server), b"hello\n") == b""
    eventually(lambda: server.stats().ended == {"exit": 1})
    assert handler.events == []
    assert steps == ["made", "lost"]


def test_a_mixin_that_closes_a_session_as_it_begins_it_lets_the_handler_say_one_thing(serve, dial):
    class Once(echo.MessageRequestHandler):
        def dispatch_made(self):
            self.close()
            super().dispatch_made()

    assert talk(dial(serve(type("Handler", (Once, Hooks), {}))), b"") == b"welcome\ngoodbye\n"


class Rejects(echo.MessageRequestHandler):
    def setup(self):
        super().setup()
        self.send(b"no")
        self.close()


@pytest.mark.parametrize("bases", [(echo.LoggingMixin, Rejects, Hooks), (echo.LoggingMixin, Rejects)])
def test_a_mixin_that_rejects_in_setup_may_say_why_although_it_stands_behind_the_log(serve, dial, bases):
    server = serve(type("Handler", bases, {}))
    assert talk(dial(server), b"") == b"no\n"
    eventually(lambda: server.stats().ended == {"exit": 1})


def test_a_log_that_depends_on_the_session_is_used(serve, dial, caplog):
    class Chooses(echo.LoggingMixin, echo.EchoRequestHandler):
        @property
        def log(self):
            return logging.getLogger(f"chosen.{self.peer.partition(':')[0]}")

    caplog.set_level(logging.INFO)
    assert talk(dial(serve(Chooses)), b"a\n") == b"a\n"
    eventually(lambda: len(caplog.records) == 4)
    assert {record.name for record in caplog.records} == {"chosen.127.0.0.1"}


def test_a_handler_whose_session_a_mixin_has_not_begun_gets_no_end_of_input_either(serve, dial):
    """Row 61: a line without its end came past a mixin that asked for a password, and was echoed."""

    class Asks(echo.MessageRequestHandler):
        def dispatch_made(self):
            self.send(b"password?")

        def dispatch_message(self, message):
            self.close()

    handler = Recorder.of(type("Handler", (Asks, Hooks), {}))
    server = serve(handler)
    assert talk(dial(server), b"hello") == b"password?\n"
    assert talk(dial(server), b"") == b"password?\n"
    eventually(lambda: server.stats().ended == {"incomplete": 1, "eof": 1})
    assert handler.events == []


# Orders that would hide a mixin.


def plain(**attributes):
    return type("Plain", (), attributes)


class Shouts(echo.MessageRequestHandler):
    def send(self, message):
        self.connection.write(message.upper())


class Answers(echo.MessageRequestHandler):
    """Its other method calls ``send`` and ``super()``, but not ``super().send``."""

    def send(self, message):
        self.connection.write(message.upper())

    def dispatch_message(self, message):
        self.send(b"wait")
        super().dispatch_message(message)


class Batches(echo.MessageRequestHandler):
    """Its other step calls this one, and ``super()`` for itself."""

    def dispatch_message(self, message):
        self.connection.write(message)

    def dispatch_eof(self, rest):
        self.dispatch_message(rest)
        super().dispatch_eof(b"")


@pytest.mark.parametrize("name", [*echo.handlers.HOOKS, *echo.handlers.STEPS])
def test_a_plain_mixin_listed_behind_the_handler_class_is_an_error(name):
    mixin = plain(**{name: lambda self, *arguments: None})
    text = (
        rf"^KV: Plain\.{name}\(\) would never be called, since MessageRequestHandler\.{name}\(\) does not call"
        r" super\(\); list Plain before EchoRequestHandler$"
    )
    with pytest.raises(TypeError, match=text):
        type("KV", (echo.EchoRequestHandler, mixin), {})
    with pytest.raises(TypeError, match=text):  # a body that would hide it does not hide the mistake
        type("KV", (echo.EchoRequestHandler, mixin), HOOKS)
    with pytest.raises(TypeError, match=text):
        type("KV", (echo.LoggingMixin, echo.EchoRequestHandler, mixin), {})
    type("KV", (mixin, echo.EchoRequestHandler), {})


def test_a_mixin_listed_behind_a_handler_class_whose_own_step_hides_it_is_an_error():
    text = (
        r"^KV: LoggingMixin\.send\(\) would never be called, since Shouts\.send\(\) does not call super\(\);"
        r" list LoggingMixin before Shouts$"
    )
    with pytest.raises(TypeError, match=text):
        type("KV", (Shouts, echo.LoggingMixin), {})
    with pytest.raises(TypeError, match=text.replace("Shouts$", "Louder$")):
        type("KV", (type("Louder", (Shouts,), {}), echo.LoggingMixin), {})
    with pytest.raises(TypeError, match=r"^KV: Plain\.send\(\) .* list Plain before Shouts$"):
        type("KV", (Shouts, plain(send=Shouts.send)), {})
    with pytest.raises(TypeError, match=text.replace("Shouts", "Answers")):
        type("KV", (Answers, echo.LoggingMixin), {})
    with pytest.raises(TypeError, match=r"^KV: LoggingMixin\.dispatch_message\(\) .* before Batches$"):
        type("KV", (Batches, echo.LoggingMixin), {})
    type("KV", (echo.LoggingMixin, Shouts), {})
    type("KV", (Shouts, echo.ThrottlingMixin), {})  # which has no such step


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


class Inner(echo.MessageRequestHandler):
    """Its step calls ``super()`` in a function inside."""

    def send(self, message):
        def really():
            super(Inner, self).send(message)

        really()


class Named(echo.MessageRequestHandler):
    """Its step names the class behind it, as was done before ``super()``."""

    def send(self, message):
        echo.LoggingMixin.send(self, message)


class Later(echo.MessageRequestHandler):
    """It begins the session when a password has come."""

    def dispatch_made(self):
        self.send(b"password?")

    def dispatch_message(self, message):
        super().dispatch_made()


class Helps(echo.MessageRequestHandler):
    """Its step calls a method that calls ``super()``."""

    def dispatch_message(self, message):
        self.pass_on(message)

    def pass_on(self, message):
        super().dispatch_message(message)


class States(echo.MessageRequestHandler):
    """Its step calls a method for each state of the session."""

    state = "open"

    def dispatch_message(self, message):
        getattr(self, "in_" + self.state)(message)

    def in_open(self, message):
        super().dispatch_message(message)


class Sends(abc.ABC):
    @abc.abstractmethod
    def send(self, message): ...


RIGHT = {
    "a plain class with a method of its own": lambda: type("H", (echo.MessageRequestHandler, plain(helper=1)), {}),
    "an abstract method": lambda: type("H", (echo.MessageRequestHandler, Sends), {}),
    "a body that replaces a step of its bases": lambda: type(
        "H", (echo.LoggingMixin, echo.MessageRequestHandler), {"send": Shouts.send}
    ),
    "a step with a decorator": lambda: type(
        "H",
        (type("D", (echo.MessageRequestHandler,), {"send": decorated(Shouts.send)}), echo.LoggingMixin),
        {},
    ),
    "a step that calls super() further inside": lambda: type("H", (Inner, echo.LoggingMixin), {}),
    "a step that names the next class": lambda: type("H", (Named, echo.LoggingMixin), {}),
    "a step that calls a method which passes on": lambda: type("H", (Helps, echo.LoggingMixin), {}),
    "a step that calls a method for each state, which passes on": lambda: type("H", (States, echo.LoggingMixin), {}),
    "a step that another method passes on": lambda: type("H", (Later, echo.LoggingMixin), {}),
    "two handlers with the same step": lambda: type(
        "H", (Shouts, type("Other", (echo.MessageRequestHandler,), {"send": Shouts.send})), {}
    ),
    "two handlers": lambda: type("H", (Hooks, echo.EchoRequestHandler), {}),
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_class_that_hides_no_mixin_is_accepted(case):
    RIGHT[case]()


def test_generic_handlers_and_protocols_are_accepted():
    class Typed(echo.MessageRequestHandler, Generic[T]):
        pass

    class Number(Typed[int]):
        pass

    class CanSend(Protocol):
        def send(self, message: bytes) -> None: ...

    class Both(echo.EchoRequestHandler, CanSend):
        pass


def test_keyword_arguments_of_a_class_reach_the_next_one():
    class Registered:
        def __init_subclass__(cls, name=None, **others):
            super().__init_subclass__(**others)
            cls.name = name

    class Handler(echo.MessageRequestHandler, Registered, name="upper"):
        pass

    assert Handler.name == "upper"


# No cost for unused features.


class Asks(echo.MessageRequestHandler):
    """Records which functions its session calls for a message."""

    def connection_made(self):
        self.server.sessions.append(weakref.ref(self))

    def message_received(self, message):
        self.server.paths.append((self.dispatch_message.__func__, self.send.__func__))
        self.send(message)


def path_of(serve, dial, caplog, *bases, **attributes):
    server = serve(type("Handler", bases, attributes))
    server.sessions, server.paths = [], []
    with caplog.at_level(logging.INFO, "echo.session"):
        assert talk(dial(server), b"hello\n") == b"hello\n"
        eventually(lambda: not server.connections)
    (path,) = server.paths
    return server, path


def test_a_session_without_messages_in_the_log_has_no_step_for_them_in_its_path(serve, dial, caplog):
    plain_path = (echo.MessageRequestHandler.dispatch_message, echo.MessageRequestHandler.send)
    logged_path = (echo.LoggingMixin.dispatch_message, echo.LoggingMixin.send)
    assert path_of(serve, dial, caplog, Asks)[1] == plain_path
    assert path_of(serve, dial, caplog, echo.LoggingMixin, Asks)[1] == logged_path
    assert path_of(serve, dial, caplog, Asks, echo.LoggingMixin, message_level=None)[1] == plain_path
    throttled = (echo.ThrottlingMixin.dispatch_message, plain_path[1])
    for bases in ((echo.LoggingMixin, echo.ThrottlingMixin, Asks), (echo.ThrottlingMixin, echo.LoggingMixin, Asks)):
        assert path_of(serve, dial, caplog, *bases, message_level=None)[1] == throttled


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="counts are merged late without a GIL")
def test_a_session_without_messages_in_the_log_is_freed_without_the_garbage_collector(serve, dial, caplog):
    gc.collect()
    gc.disable()
    try:
        server, _ = path_of(serve, dial, caplog, echo.LoggingMixin, Asks, message_level=None)
        eventually(lambda: server.sessions[0]() is None)
    finally:
        gc.enable()


def test_a_level_of_messages_may_be_set_for_one_session(serve, dial, caplog):
    class Verbose(Asks):
        def connection_made(self):
            super().connection_made()
            self.message_level = logging.INFO

    path_of(serve, dial, caplog, echo.LoggingMixin, Verbose, message_level=None)
    assert [record.event for record in caplog.records if record.name == "echo.session"] == [
        "connected",
        "received",
        "sent",
        "disconnected",
    ]
