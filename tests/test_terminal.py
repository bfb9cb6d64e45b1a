"""``python -m echo.client`` in a real pseudo-terminal: what a user sees, and every way to leave."""

import os
import re
import select
import sys
import threading

import pytest
from conftest import DEADLINE, Recorder, eventually

import echo

try:
    import pty
    import termios
except ImportError:
    pytest.skip("this platform has no pseudo-terminals", allow_module_level=True)

try:
    import readline  # noqa: F401
except ImportError:
    READLINE = False
else:
    READLINE = True

OWN_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""``python -c OWN_TERMINAL -m MODULE ...`` in a session whose terminal is standard input, for Ctrl-C to work."""

WITHOUT_READLINE = """\
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.modules["readline"] = None
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""The same on a Python that was built without readline."""

CTRL_C, CTRL_D, CTRL_V, ESC = b"\x03", b"\x04", b"\x16", b"\x1b"


class Terminal:
    """A process in a pseudo-terminal. ``screen`` is all that it wrote there."""

    def __init__(self, run, *arguments, starter=OWN_TERMINAL, **environment):
        self.master, slave = pty.openpty()
        try:
            self.process = run(
                *arguments,
                python_options=("-c", starter),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                env=dict({"TERM": "dumb", "INPUTRC": os.devnull}, **environment),
            )
        finally:
            os.close(slave)
        self.screen = b""
        self.seen = 0

    def type(self, data):
        os.write(self.master, data)

    def read(self):
        """Take in what comes next; false at the end."""
        ready = select.select([self.master], [], [], DEADLINE)[0]
        assert ready, f"nothing more after {self.screen!r}"
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: nobody has the other side open any more
            data = b""
        self.screen += data
        return bool(data)

    def until(self, pattern):
        """Read until ``pattern`` stands in what came since the last call; return the match."""
        while True:
            match = re.compile(pattern).search(self.screen, self.seen)
            if match:
                self.seen = match.end()
                return match
            assert self.read(), f"no {pattern!r} in {self.screen[self.seen :]!r}"

    def settle(self):
        """Wait until the process sleeps in its read.

        Between the prompt and that read CPython notices a signal, and does not act on it before the next key.
        """
        if os.path.exists("/proc/self/stat"):
            eventually(lambda: self._state() == "S", "it never came to rest")

    def _state(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]

    def leave(self):
        """Read to the end; return the exit code."""
        while self.read():
            pass
        code = self.process.popen.wait(DEADLINE)
        assert b"Traceback" not in self.screen and b"Error" not in self.screen, self.screen
        return code


@pytest.fixture
def terminal(run):
    """``terminal(server, *options, **environment)``: the client in a pseudo-terminal."""
    terminals = []

    def start(server, *options, **environment):
        host, port = server.server_address
        terminals.append(Terminal(run, "echo.client", host, str(port), *options, **environment))
        return terminals[-1]

    yield start
    for each in terminals:
        each.process.kill()
        os.close(each.master)


class Feed(echo.EchoRequestHandler):
    """An echo session that the test can speak in, too."""

    def connection_made(self):
        self.server.session = self


def session_of(server):
    """The server's side of the one session."""
    return eventually(lambda: getattr(server, "session", None))


both = pytest.mark.parametrize("starter", [OWN_TERMINAL, WITHOUT_READLINE], ids=["readline", "plain"])
needs_readline = pytest.mark.skipif(not READLINE, reason="this Python has no readline")


# A conversation.


@both
def test_a_prompt_appears_and_what_is_typed_comes_back(serve, terminal, starter):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = serve(handler)
    user = terminal(server, starter=starter)
    user.until(rb"connected to 127\.0\.0\.1:%d \(line framing\)[^\n]*\r\n> " % server.server_address[1])
    for line in (b"hello", b"two words", b"hello"):
        user.type(line + b"\r")
        user.until(line + rb"\r\n" + line + rb"\r\n> ")
    assert handler.events == ["made", b"hello", b"two words", b"hello"]


def test_two_users_talk_while_the_other_idles(serve, terminal):
    server = serve()
    first, second = terminal(server), terminal(server)
    first.until(rb"> ")
    second.until(rb"> ")
    for turn in range(3):
        for name, user in ((b"first", first), (b"second", second)):
            line = name + b"-%d" % turn
            user.type(line + b"\r")
            user.until(line + rb"\r\n" + line + rb"\r\n> ")
    assert len(server.connections) == 2
    for user in (first, second):
        user.type(b"exit\r")
        assert user.leave() == 0
    assert b"second" not in first.screen and b"first" not in second.screen


@pytest.mark.parametrize("framing", [echo.LengthFraming, echo.RawFraming])
def test_every_framing_serves_a_conversation(serve, terminal, framing):
    handler = Recorder.of(type("Handler", (echo.EchoRequestHandler,), {"framing": framing()}))
    user = terminal(serve(handler), "--framing", framing.name)
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"hello\r\nhello\r\n> ")
    assert handler.events == ["made", b"hello"]
    user.type(b"exit\r")
    assert user.leave() == 0


def test_an_empty_line_is_a_message(serve, terminal):
    handler = Recorder.of(echo.EchoRequestHandler)
    user = terminal(serve(handler))
    user.until(rb"> ")
    user.type(b"\r")
    user.until(rb"\r\n\r\n> ")
    assert handler.events == ["made", b""]


def test_an_empty_line_under_raw_framing_only_brings_the_prompt_back(serve, terminal):
    handler = Recorder.of(type("Handler", (echo.EchoRequestHandler,), {"framing": echo.RawFraming()}))
    user = terminal(serve(handler), "--framing", "raw")
    user.until(rb"> ")
    user.type(b"\r")
    user.until(rb"\r\n> ")
    user.type(b"text\r")
    user.until(rb"text\r\ntext\r\n> ")
    assert handler.events == ["made", b"text"]


@needs_readline
def test_lines_can_be_edited_and_called_back(serve, terminal):
    handler = Recorder.of(echo.EchoRequestHandler)
    user = terminal(serve(handler), TERM="xterm")
    user.until(rb"> ")
    user.type(b"ac" + ESC + b"[D" + b"b\r")  # left, then b
    user.until(rb"\nabc\r\n")
    user.until(rb"> ")
    user.type(ESC + b"[A" + b"d\r")  # up, then d
    user.until(rb"\nabcd\r\n")
    assert handler.events == ["made", b"abc", b"abcd"]


@both
def test_typed_bytes_that_are_no_utf8_pass_untouched(serve, terminal, starter):
    handler = Recorder.of(echo.EchoRequestHandler)
    user = terminal(serve(handler), starter=starter)
    user.until(rb"> ")
    user.type(b"a\xffb\r")
    user.until(rb"\na\\xffb\r\n")
    assert handler.events == ["made", b"a\xffb"]


@both
def test_typed_letters_of_any_script_pass_and_are_shown_as_they_are(serve, terminal, starter):
    handler = Recorder.of(echo.EchoRequestHandler)
    user = terminal(serve(handler), starter=starter, LC_ALL="C.UTF-8")
    user.until(rb"> ")
    user.type("naïve Ω 猫\r".encode())
    user.until("\nnaïve Ω 猫\r\n".encode())
    assert handler.events == ["made", "naïve Ω 猫".encode()]


def test_a_terminal_that_cannot_show_a_letter_shows_it_in_some_way(serve, terminal):
    server = serve(Feed)
    user = terminal(server, PYTHONIOENCODING="ascii")
    user.until(rb"> ")
    session_of(server).connection.send("é!".encode())
    user.until(rb"!\r\n> ")
    user.type(b"still here\r")
    user.until(rb"\nstill here\r\n> ")
    user.type(b"exit\r")
    assert user.leave() == 0


# What a server may try.


HOSTILE = b"\x1b[2J\x1b]0;title\x07\xff\xc2\x9b31m\r\x08\x7f\\"
SHOWN = rb"\x1b[2J\x1b]0;title\x07\xff\u009b31m\r\x08\x7f" + b"\\"


def assert_harmless(screen):
    """The peer's controls did not reach the terminal. The client itself writes CR, LF, and ESC [ K to clear a line."""
    own = screen.replace(b"\r\x1b[K", b"").replace(b"\r\n", b"")
    assert not re.search(rb"[\x00-\x1f\x7f\xff]|\xc2[\x80-\x9f]", own), own


def test_controls_in_a_reply_are_shown_and_not_obeyed(serve, terminal):
    class Hostile(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(HOSTILE)

    user = terminal(serve(Hostile))
    user.until(rb"> ")
    user.type(b"x\r")
    user.until(re.escape(SHOWN) + rb"\r\n> ")
    assert_harmless(user.screen)


def test_controls_that_come_at_the_prompt_are_shown_and_not_obeyed(serve, terminal):
    server = serve(Feed)
    user = terminal(server)
    user.until(rb"> ")
    session_of(server).connection.send(HOSTILE)
    user.until(re.escape(SHOWN) + rb"\r\n> ")
    assert_harmless(user.screen)


def test_controls_in_a_last_half_message_are_shown_and_not_obeyed(serve, terminal):
    class Half(echo.EchoRequestHandler):
        def message_received(self, message):
            self.connection.write_raw(HOSTILE)
            self.close()

    user = terminal(serve(Half))
    user.until(rb"> ")
    user.type(b"x\r")
    user.until(re.escape(SHOWN))
    assert user.leave() == 1
    assert_harmless(user.screen)


def test_replies_to_messages_of_the_command_line_are_shown_and_not_obeyed(serve, terminal):
    class Hostile(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(HOSTILE)

    user = terminal(serve(Hostile), "-m", "x")
    assert user.leave() == 3
    assert user.screen.startswith(SHOWN + b"\r\necho.client: ")
    assert_harmless(user.screen)


def test_a_reply_that_is_text_is_shown_as_it_is_with_m(serve, terminal):
    user = terminal(serve(), "-m", "naïve", LC_ALL="C.UTF-8")
    assert user.leave() == 0
    assert user.screen == "naïve\r\n".encode()


@needs_readline
def test_what_comes_at_the_prompt_leaves_the_typed_text_alone(serve, terminal):
    server = serve(Feed)
    user = terminal(server)
    user.until(rb"> ")
    user.type(b"ab")
    user.until(rb"ab")
    session_of(server).connection.send(b"news")
    user.until(rb"\r\x1b\[Knews\r\n> ab")
    user.type(b"c\r")
    user.until(rb"\nabc\r\n> ")


# Ways to leave.


@both
@pytest.mark.parametrize("farewell", [b"exit\r", b" EXIT\r", CTRL_D, CTRL_C], ids=["exit", "EXIT", "Ctrl-D", "Ctrl-C"])
def test_the_user_leaves_in_peace(serve, terminal, farewell, starter):
    handler = Recorder.of(echo.EchoRequestHandler)
    user = terminal(serve(handler), starter=starter)
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"\nhello\r\n> ")
    if farewell == CTRL_C:
        user.settle()
    user.type(farewell)
    assert user.leave() == 0
    assert user.screen.endswith(b" sent, 1 received\r\n")
    assert b"the server has ended" not in user.screen
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit" if b"x" in farewell.lower() else "eof"]


def test_ctrl_c_ends_the_wait_for_a_reply(serve, terminal):
    waiting = threading.Event()

    class Silent(echo.EchoRequestHandler):
        def message_received(self, message):
            waiting.set()

    user = terminal(serve(Silent), "-w", "0")
    user.until(rb"> ")
    user.type(b"hello\r")
    assert waiting.wait(DEADLINE)
    user.type(CTRL_C)
    assert user.leave() == 0


def test_no_reply_in_time_brings_the_prompt_back(serve, terminal):
    class Silent(echo.EchoRequestHandler):
        def message_received(self, message):
            pass

    user = terminal(serve(Silent), "-w", "200ms")
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"no reply after 0\.2 s\r\n> ")
    user.type(CTRL_D)
    assert user.leave() == 0


def test_a_line_over_the_limit_is_refused_and_the_session_goes_on(serve, terminal):
    handler = Recorder.of(echo.EchoRequestHandler)
    user = terminal(serve(handler), "--max-message", "5")
    user.until(rb"> ")
    user.type(b"123456\r")
    user.until(rb"limit of 5 bytes\r\n> ")
    user.type(b"12345\r")
    user.until(rb"\n12345\r\n> ")
    assert handler.events == ["made", b"12345"]


@needs_readline
@pytest.mark.parametrize(
    "keys", [b"a" + CTRL_V + b"\nb\r", ESC + b"[200~a\nb" + ESC + b"[201~\r"], ids=["typed", "pasted"]
)
def test_a_line_feed_inside_a_line_does_not_end_the_session(serve, terminal, keys):
    # Ctrl-V takes the next key as it is; a terminal that pastes marks the pasted text for readline to take as it is.
    handler = Recorder.of(echo.EchoRequestHandler)
    user = terminal(serve(handler), TERM="xterm")
    user.until(rb"> ")
    user.type(keys)
    user.type(b"after\r")
    user.until(rb"\nafter\r\n")
    user.type(b"exit\r")
    assert user.leave() == 0
    assert handler.events in (["made", b"after", b"exit", "lost"], ["made", b"a", b"b", b"after", b"exit", "lost"])


@both
def test_the_servers_end_is_told_at_the_prompt_at_once(serve, terminal, starter):
    server = serve(Feed)
    user = terminal(server, starter=starter)
    user.until(rb"> ")
    user.settle()
    session_of(server).close()
    assert user.leave() == 1  # nobody has pressed a key
    assert b"the server has ended the session\r\n" in user.screen


def test_a_killed_server_is_told_at_the_prompt_at_once(server_command, run):
    process = server_command()
    user = Terminal(run, "echo.client", "127.0.0.1", str(process.address[1]))
    try:
        user.until(rb"> ")
        user.type(b"hello\r")
        user.until(rb"\nhello\r\n> ")
        user.settle()
        process.popen.kill()
        assert user.leave() == 1
        assert b"ended the session" in user.screen or b"lost" in user.screen
    finally:
        os.close(user.master)


@both
def test_the_servers_end_is_told_however_close_to_the_prompt_it_comes(serve, terminal, starter):
    class Gone(echo.EchoRequestHandler):
        def connection_made(self):
            self.close()

    server = serve(Gone)
    for user in [terminal(server, starter=starter) for _ in range(20)]:
        assert user.leave() == 1
        assert b"the server has ended the session\r\n" in user.screen


@both
def test_the_servers_end_right_after_a_reply_is_told(serve, terminal, starter):
    class Once(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(message)
            self.close()

    server = serve(Once)
    users = [terminal(server, starter=starter) for _ in range(20)]
    for user in users:
        user.until(rb"> ")
        user.type(b"hello\r")
    for user in users:
        assert user.leave() == 1
        assert b"\nhello\r\n" in user.screen
        assert b"the server has ended the session\r\n" in user.screen


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a terminal without a user has no settings")
@pytest.mark.parametrize("farewell", [b"exit\r", CTRL_D, CTRL_C], ids=["exit", "Ctrl-D", "Ctrl-C"])
def test_the_terminal_is_left_as_it_was(serve, terminal, farewell):
    user = terminal(serve())
    before = termios.tcgetattr(user.master)
    user.until(rb"> ")
    if farewell == CTRL_C:
        user.settle()
    user.type(farewell)
    assert user.leave() == 0
    assert termios.tcgetattr(user.master) == before
