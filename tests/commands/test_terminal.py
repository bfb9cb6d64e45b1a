"""``python -m echo.client`` in a real pseudo-terminal: what a user sees, and every way to leave.

Each session is a process. Tests that leave it unchanged share one: see ``conversation``.
"""

import contextlib
import os
import re
import select
import signal
import stat
import sys
import threading
import time

import pytest

import echo
from echo.cli.client import editors
from echo.cli.client.command import _replies
from echo.cli.client.history import History, history_file
from echo.cli.client.letters import Letters
from support import DEADLINE, Recorder, eventually
from support.client import UnixServer, address_options, call_client
from support.processes import Process, state_of

pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
termios = pytest.importorskip("termios", reason="this platform has no pseudo-terminals")

from support.terminal import (  # noqa: E402
    BACKSPACE,
    CTRL_C,
    CTRL_D,
    CTRL_S,
    CTRL_U,
    CTRL_V,
    CTRL_W,
    CTRL_Z,
    DOWN,
    ESC,
    LEFT,
    OWN_TERMINAL,
    UP,
    Terminal,
)

try:
    import readline
except ImportError:
    readline = None

WITHOUT_READLINE = """\
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.modules["readline"] = None
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Like ``OWN_TERMINAL``, on a Python that was built without readline."""

WITHOUT_CTYPES = WITHOUT_READLINE.replace('"readline"', '"ctypes"')
"""Like ``OWN_TERMINAL``, on a Python that cannot call all functions of readline."""

WITHOUT_A_THREAD = WITHOUT_READLINE.replace(
    'sys.modules["readline"] = None',
    """\
import threading
start = threading.Thread.start
def start_others(thread):
    if thread.name == "{name}":
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = start_others""",
)
"""Like ``OWN_TERMINAL``, in a system that cannot start the thread with the name ``name``."""

IN_STEPS = WITHOUT_READLINE.replace(
    'sys.modules["readline"] = None',
    """\
import time
from echo.cli.client import editors
write = editors._write
def write_and_pause(text):
    write(text)
    if text[:1] == "\\r":
        time.sleep(0.2)
editors._write = write_and_pause""",
)
"""Like ``OWN_TERMINAL``. It takes its time between the beginning of a row and the prompt."""

WITHOUT_MEMORY = WITHOUT_READLINE.replace(
    'sys.modules["readline"] = None',
    """\
from echo import connection
def receive(self):
    raise MemoryError
connection.Connection.receive = receive""",
)
"""Like ``OWN_TERMINAL``, in a system that has no memory for a message."""

DROPS_AN_EXCEPTION = WITHOUT_READLINE.replace(
    'sys.modules["readline"] = None',
    """\
from echo.cli.client import prompt
leave = prompt.Prompt._leave
dropped = []
def leave_later(self):
    try:
        leave(self)
    except prompt._Left:
        if dropped:
            raise
        dropped.append(True)
prompt.Prompt._leave = leave_later""",
)
"""Like ``OWN_TERMINAL``. Python drops the first exception of a signal handler, as inside a destructor."""

AS_PROCESS_1 = WITHOUT_READLINE.replace('sys.modules["readline"] = None', "import signal; signal.raise_signal = abs")
"""Like ``OWN_TERMINAL``, as process 1 of a container, which the system spares from signals without a handler."""

WITHOUT_URGENT_SIGNALS = OWN_TERMINAL.replace(
    "os.execv",
    """\
import signal
signal.signal(signal.SIGURG, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
os.execv""",
)
"""Like ``OWN_TERMINAL``, but the parent process has ignored and blocked SIGURG."""

WITHOUT_STDERR = OWN_TERMINAL.replace("os.execv", "os.close(2); os.execv")
"""Like ``OWN_TERMINAL``, but standard error is closed."""

SHELL = """\
import fcntl, os, runpy, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
settings = termios.tcgetattr(0)
pid = os.fork()
if not pid:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
while True:
    status = os.waitpid(pid, os.WUNTRACED)[1]
    if not os.WIFSTOPPED(status):
        break
    os.tcsetpgrp(0, os.getpid())
    found = termios.tcgetattr(0)
    termios.tcsetattr(0, termios.TCSANOW, settings)
    print("stopped", "well" if found == settings else "badly")
    if input() == "kill":
        os.kill(pid, signal.SIGTERM)
    else:
        os.tcsetpgrp(0, pid)
    os.kill(pid, signal.SIGCONT)
if os.WIFSIGNALED(status):
    print("killed by signal", os.WTERMSIG(status))
"""
"""A small shell that runs its arguments as a job. It prints a line after each Ctrl-Z, and continues the job after an
Enter, or kills it if the user types "kill"."""

STRICT_SHELL = SHELL.replace(
    "pid = ", "settings[3] |= termios.TOSTOP\ntermios.tcsetattr(0, termios.TCSANOW, settings)\npid = "
)
"""The same after ``stty tostop``: a job in the background that prints is stopped."""

BACKGROUND_SHELL = SHELL.replace(
    "pid = ",
    "raw = termios.tcgetattr(0)\nraw[3] &= ~(termios.ICANON | termios.ECHO)\n"
    "termios.tcsetattr(0, termios.TCSANOW, raw)\npid = ",
).replace("    os.tcsetpgrp(0, os.getpid())\n    signal.signal", "    signal.signal")
"""The same, but the job begins in the background, while the shell edits a line."""

NO_READLINE = (
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
    WITHOUT_READLINE[WITHOUT_READLINE.index("sys.modules") :].replace("\n", "\n    ").rstrip(),
)

LIMIT = 100
"""Length of the longest message in a shared session, in bytes."""


@pytest.fixture
def terminal(run):
    """``terminal(server, *options, **environment)``: the client in a pseudo-terminal."""
    with contextlib.ExitStack() as stack:

        def start(server, *options, **environment):
            user = Terminal(run, "echo.client", *address_options(server), *options, **environment)
            stack.callback(user.kill)
            return user

        yield start


class Feed(echo.EchoRequestHandler):
    """An echo session in which the test can send, too."""

    def connection_made(self):
        self.server.session = self


def session_of(server):
    """The server's side of the one session."""
    return eventually(lambda: getattr(server, "session", None))


class Session:
    """A user at the prompt, and the test's server. ``messages``: all that the server has received.

    The server replies with the value of ``answer(message)``, unless that is None.
    """

    def __init__(self, stack, starter, kind):
        self._server = stack.enter_context(echo.Server(("127.0.0.1", 0), handler_of(self))).start()
        self.user = Terminal(
            Process,
            "echo.client",
            *address_options(self._server),
            *("--max-message", str(LIMIT)),
            starter=starter,
            TERM=kind,
            LC_ALL="C.UTF-8",
        )
        stack.callback(self.user.kill)
        self.user.until(rb"> ")
        self.begin()

    def begin(self):
        """Remove the previous test's state."""
        self.messages = []
        self.answer = lambda message: message
        self.user.screen, self.user.seen = b"", 0

    def say(self, message):
        """Let the server send a message unprompted."""
        session_of(self._server).connection.send(message)


def handler_of(session):
    """The handler class of a ``Session``."""

    class Handler(Feed):
        def message_received(self, message):
            session.messages.append(message)
            answer = session.answer(message)
            if answer is not None:
                self.send(answer)

    return Handler


@pytest.fixture(scope="module")
def sessions():
    """``(sessions at their prompts, by how they were started, exit stack)``."""
    with contextlib.ExitStack() as stack:
        yield {}, stack


@pytest.fixture
def conversation(sessions):
    """``with conversation(starter, kind) as session``: a ``Session`` at its prompt; the block must leave it there.

    If the test fails in the block, the next test gets a new session.
    """
    idle, stack = sessions

    @contextlib.contextmanager
    def lend(starter=OWN_TERMINAL, kind="dumb"):
        session = idle.pop((starter, kind), None) or Session(stack, starter, kind)
        session.begin()
        yield session
        idle[starter, kind] = session

    return lend


both = pytest.mark.parametrize("starter", [OWN_TERMINAL, WITHOUT_READLINE], ids=["readline", "plain"])
needs_history = pytest.mark.skipif(
    not hasattr(readline, "append_history_file"), reason="this Python keeps no history in files"
)
needs_readline = pytest.mark.skipif(readline is None, reason="this Python has no readline")
marks_pasted_text = pytest.mark.skipif(
    getattr(readline, "_READLINE_VERSION", 0) < 0x801, reason="this Python's readline does not know pasted text"
)
PASTE = ESC + b"[200~%b" + ESC + b"[201~"


# A conversation.


@both
def test_each_typed_line_comes_back_and_then_the_prompt(conversation, starter):
    with conversation(starter) as session:
        for line in (b"hello", b"two words", b"hello"):
            session.user.type(line + b"\r")
            session.user.until(line + rb"\r\n" + line + rb"\r\n> ")
    assert session.messages == [b"hello", b"two words", b"hello"]


def test_two_users_talk_while_the_other_idles(serve, terminal, home, tmp_path):
    home.pop("ECHO_HISTFILE")  # Terminal's environment keeps no history, which would be the user's own
    server = serve()
    first, second = terminal(server, "-v", **home), terminal(server, starter=WITHOUT_READLINE, **home)
    for user in (first, second):
        user.until(rb"connected to 127\.0\.0\.1:%d \(line framing\)[^\n]*\r\n[^\n]*> " % server.server_address[1])
    for turn in range(3):
        for name, user in ((b"first", first), (b"second", second)):
            line = name + b"-%d" % turn
            user.type(line + b"\r")
            user.until(line + rb"\r\n[^\n]*" + line + rb"\r\n[^\n]*> ")
    assert len(server.connections) == 2
    for user in (first, second):
        user.type(CTRL_D)
        assert user.leave() == 0
        assert user.screen.endswith(b"3 messages sent, 3 received\r\n")
    assert b"second" not in first.screen and b"first" not in second.screen
    assert not os.listdir(tmp_path)


def test_length_framing_serves_a_conversation(serve, terminal):
    handler = Recorder.of(type("Handler", (echo.EchoRequestHandler,), {"framing": echo.LengthFraming()}))
    user = terminal(serve(handler), "--framing", "length")
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"hello\r\nhello\r\n> ")
    user.type(b"a" + CTRL_V + b"\nb\r")  # Ctrl-V takes the next key as it is
    user.until(rb"a\\nb\r\n> ")
    assert handler.events == ["made", b"hello", b"a\nb"]
    user.type(b"exit\r")
    assert user.leave() == 0


def test_crlf_framing_serves_a_conversation(serve, terminal):
    handler = Recorder.of(type("Handler", (echo.EchoRequestHandler,), {"framing": echo.CRLFFraming()}))
    user = terminal(serve(handler), "--framing", "crlf")
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"hello\r\nhello\r\n> ")
    assert handler.events == ["made", b"hello"]
    user.type(b"exit\r")
    assert user.leave() == 0


def test_an_empty_line_under_raw_framing_only_brings_the_prompt_back(serve, terminal):
    handler = Recorder.of(type("Handler", (echo.EchoRequestHandler,), {"framing": echo.RawFraming()}))
    user = terminal(serve(handler), "--framing", "raw")
    user.until(rb"> ")
    user.type(b"\r")
    user.until(rb"\r\n> ")
    user.type(b"text\r")
    user.until(rb"text\r\ntext\r\n> ")
    assert handler.events == ["made", b"text"]
    user.type(b"exit\r")
    assert user.leave() == 0


@both
def test_an_empty_line_is_a_message(conversation, starter):
    with conversation(starter) as session:
        session.user.type(b"\r")
        session.user.until(rb"\r\n\r\n> ")
    assert session.messages == [b""]


@needs_readline
def test_lines_can_be_edited_and_called_back(conversation):
    with conversation(kind="xterm") as session:
        session.user.type(b"ac" + ESC + b"[D" + b"b\r")  # left, then b
        session.user.until(rb"\nabc\r\n[^\n]*> ")
        session.user.type(UP + b"d\r")  # up, then d
        session.user.until(rb"\nabcd\r\n[^\n]*> ")
    assert session.messages == [b"abc", b"abcd"]


@both
def test_typed_bytes_that_are_no_utf8_pass_untouched(conversation, starter):
    with conversation(starter) as session:
        session.user.type(b"a\xffb\r")
        session.user.until(rb"\na\\xffb\r\n> ")
    assert session.messages == [b"a\xffb"]


@both
def test_typed_letters_pass_in_a_locale_that_has_none_of_them(serve, terminal, starter):
    user = terminal(serve(), starter=starter, LC_ALL="C")
    user.until(rb"> ")
    for letter in ("é", "ñ", "日"):
        user.type(letter.encode() + b"\r")
        user.until(rb"\n%b\r\n[^\n]*> " % letter.encode())
    user.type(CTRL_D)
    assert user.leave() == 0


@both
def test_typed_letters_of_any_script_pass_and_are_shown_as_they_are(conversation, starter):
    with conversation(starter) as session:
        session.user.type("naïve Ω 猫\r".encode())
        session.user.until("\nnaïve Ω 猫\r\n> ".encode())
    assert session.messages == ["naïve Ω 猫".encode()]


LETTERS = "naïve Ω 猫 🙂 и".encode()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_letters_that_arrive_in_pieces_are_shown_whole(size):
    letters = Letters()
    pieces = [letters.feed(LETTERS[at : at + size]) for at in range(0, len(LETTERS), size)]
    assert "".join(piece.decode() for piece in pieces) == LETTERS.decode()
    assert letters.finish() == b""


@pytest.mark.parametrize(
    "noise", [b"\xff", b"\x80\x80\x80\x80", b"\xe7A", b"\xf0\x9f\x99A", b"\xc0\x80", b"\xed\xa0\x80"]
)
def test_bytes_that_are_no_letters_are_not_kept_back(noise):
    letters = Letters()
    assert b"".join(letters.feed(noise[at : at + 1]) for at in range(len(noise))) == noise


@pytest.mark.parametrize("begun", [LETTERS[:3], "Ω".encode()[:1], "猫".encode()[:2], "🙂".encode()[:3]])
def test_the_beginning_of_a_letter_is_shown_at_the_end(begun):
    letters = Letters()
    assert letters.feed(begun) + letters.finish() == begun


def test_a_terminal_gets_the_letters_of_a_stream_whole():
    with screen_of_its_own() as (stdout, shown):
        with contextlib.redirect_stdout(stdout), _replies() as write:
            for number in LETTERS + b"\xf0\x9f":
                write(bytes([number]))
    assert b"".join(shown) == LETTERS + rb"\xf0\x9f"


@pytest.mark.parametrize(
    "timeout, pieces, shown",
    [("0", ["猫".encode()[:1], "猫".encode()[1:]], "猫".encode()), ("100ms", ["Ω".encode()[:1]], rb"\xce")],
    ids=["whole", "beginning"],
)
def test_raw_framing_shows_letters_whole_and_a_beginning_after_the_timeout(serve, terminal, timeout, pieces, shown):
    server = serve(type("Raw", (Feed,), {"framing": echo.RawFraming()}), cls=UnixServer)
    user = terminal(server, "--framing", "raw", "-w", timeout, LC_ALL="C.UTF-8")
    user.until(rb"> ")
    for piece in pieces:
        session_of(server).connection.send(piece)
    user.until(re.escape(shown) + rb"\r\n> ")
    user.type(CTRL_D)
    assert user.leave() == 0


def test_a_letter_that_the_terminal_cannot_show_is_shown_in_some_way(serve, terminal):
    server = serve(Feed)
    user = terminal(server, PYTHONIOENCODING="ascii")
    user.until(rb"> ")
    session_of(server).connection.send("é!".encode())
    user.until(rb"!\r\n> ")
    user.type(b"still here\r")
    user.until(rb"\nstill here\r\n> ")
    user.type(b"exit\r")
    assert user.leave() == 0


@pytest.mark.parametrize(
    "starter, kind",
    [(OWN_TERMINAL, "dumb"), (OWN_TERMINAL, "xterm"), (WITHOUT_READLINE, "dumb")],
    ids=["readline-dumb", "readline-xterm", "plain"],
)
def test_a_resize_in_the_middle_of_typing_loses_nothing(conversation, starter, kind):
    typed = [b"a line ", b"that is ty", b"ped while the ", b"window ", b"changes"]
    with conversation(starter, kind) as session:
        user = session.user
        for part, size in zip(typed, [(24, 80), (50, 200), (10, 60), (60, 250), (24, 80)]):
            user.type(part)
            user.until(re.escape(part[-2:]))
            user.resize(*size)
            user.settle()
        user.type(b"\r")
        user.until(b"".join(typed) + rb"\r\n(\x1b\[\?2004h)?> ")
    assert session.messages == [b"".join(typed)]


@both
def test_a_resize_during_the_wait_for_a_reply_loses_nothing(conversation, starter):
    waiting = threading.Event()
    with conversation(starter) as session:
        session.answer = lambda message: waiting.set()
        session.user.type(b"hello\r")
        assert waiting.wait(DEADLINE)
        for size in ((50, 200), (10, 40), (24, 80)):
            session.user.resize(*size)
            session.user.settle()
        session.say(b"after all")
        session.user.until(rb"hello\r\nafter all\r\n> ")


def test_a_line_over_the_limit_is_refused_and_the_session_goes_on(conversation):
    with conversation() as session:
        session.user.type(b"x" * (LIMIT + 1) + b"\r")
        session.user.until(rb"limit of %d bytes\r\n> " % LIMIT)
        session.user.type(b"shorter\r")
        session.user.until(rb"\nshorter\r\n> ")
    assert session.messages == [b"shorter"]


@marks_pasted_text
@pytest.mark.parametrize(
    "keys, sent",
    [
        (b"a" + CTRL_V + b"\n\r", [b"a"]),
        (PASTE % b"a\nb" + b"\r", [b"a", b"b"]),
        (PASTE % b"a\r\rb\r" + b"\r", [b"a", b"", b"b"]),
        (PASTE % (b"a\n%s\nb" % (b"x" * (LIMIT + 1))) + b"\r", [b"a", b"b"]),
    ],
    ids=["typed", "pasted", "with an empty line", "with a line that is too long"],
)
def test_lines_that_are_pasted_together_are_sent_one_by_one(conversation, keys, sent):
    # Ctrl-V takes the next key as it is; a terminal that pastes marks the pasted text for readline to take as it is.
    with conversation(kind="xterm") as session:
        session.user.type(keys)
        session.user.type(b"after\r")
        session.user.until(rb"\nafter\r\n[^\n]*> ")
    assert session.messages == [*sent, b"after"]


@marks_pasted_text
def test_ctrl_c_ends_the_session_in_the_middle_of_pasted_lines(serve, terminal):
    received = []
    arrived = threading.Event()

    class Silent(echo.EchoRequestHandler):
        def message_received(self, message):
            received.append(message)
            arrived.set()

    user = terminal(serve(Silent), TERM="xterm")
    user.until(rb"> ")
    user.type(PASTE % b"a\nb" + b"\r")
    assert arrived.wait(DEADLINE)
    user.settle()
    user.type(CTRL_C)
    assert user.leave() == 0
    assert received == [b"a"]


# -q and -v.


@both
def test_a_quiet_session_shows_the_session_and_how_it_went(serve, terminal, starter):
    user = terminal(serve(), "-q", starter=starter)
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"hello\r\nhello\r\n> ")
    user.type(b"exit\r")
    assert user.leave() == 0
    assert user.screen == b"> hello\r\nhello\r\n> exit\r\n2 messages sent (1 exit), 1 received\r\n"


# The history: lines of earlier sessions.


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder without settings for the history; return an environment for ``terminal`` with it."""
    for name in ("ECHO_HISTFILE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return {"HOME": str(tmp_path), "ECHO_HISTFILE": None, "TERM": "xterm"}


def converse(user, *lines):
    """Type these lines, wait for each echo, and leave."""
    user.until(rb"> ")
    for line in lines:
        user.type(line + b"\r")
        user.until(rb"\n" + re.escape(line) + rb"\r\n[^\n]*> ")
    user.type(CTRL_D)
    assert user.leave() == 0


def keep(*lines):
    """Keep these lines in the history, as a session does when they are typed; return the lines before them."""
    readline.clear_history()
    try:
        history = History()
        earlier = [readline.get_history_item(number + 1) for number in range(readline.get_current_history_length())]
        for line in lines:
            readline.add_history(line)
        history.save()
    finally:
        readline.clear_history()
    return earlier


def kept_in(path):
    return path.read_bytes().splitlines()


DEFAULT_PLACE = (".local", "state", "echo", "history")


@needs_history
def test_typed_lines_come_back_with_the_arrow_keys_in_the_next_session(serve, terminal, home):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = serve(handler)
    special = b' \\ "quoted" $HOME \xc3\xa9 !1 #comment  '
    home["LC_ALL"] = "C.UTF-8"
    converse(terminal(server, **home), b"first", b"two words", special)
    user = terminal(server, **home)
    user.until(rb"> ")
    for keys, line in [
        (UP, special),
        (UP + UP, b"two words"),
        (UP * 4, b"first"),  # the line that was just called back is the newest one
        (UP + UP + DOWN, b"first"),
    ]:
        user.type(keys + b"\r")
        user.until(rb"\n" + re.escape(line) + rb"\r\n[^\n]*> ")
    user.type(CTRL_D)
    assert user.leave() == 0
    first = ["made", b"first", b"two words", special, "lost"]
    assert handler.events[: len(first)] == first
    assert handler.events[len(first) :][:5] == ["made", special, b"two words", b"first", b"first"]


@needs_history
def test_a_line_is_kept_once_however_often_the_history_is_saved(home, tmp_path):
    readline.clear_history()
    try:
        history = History()
        for line in ("first", "second"):
            readline.add_history(line)
            history.save()
            history.save()  # as at the end of a session, and then for a signal that ends the process
    finally:
        readline.clear_history()
    assert kept_in(tmp_path.joinpath(*DEFAULT_PLACE)) == [b"first", b"second"]


@needs_history
@pytest.mark.parametrize("state", [None, "", "relative", "./relative"])
def test_history_is_kept_in_the_users_home(home, tmp_path, monkeypatch, state):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if state is not None:
        monkeypatch.setenv("XDG_STATE_HOME", state)
    assert keep("hello", "again") == []
    assert kept_in(tmp_path.joinpath(*DEFAULT_PLACE)) == [b"hello", b"again"]
    assert keep("more") == ["hello", "again"]
    assert not os.listdir(tmp_path / "here")


@needs_history
@pytest.mark.parametrize("elsewhere", [None, "~/history", "~/a folder/history"])
def test_no_history_is_kept_if_the_users_home_is_unknown(home, tmp_path, monkeypatch, elsewhere):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    if elsewhere is not None:
        monkeypatch.setenv("ECHO_HISTFILE", elsewhere)
    pwd = pytest.importorskip("pwd")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])  # as in a container whose user has no name
    assert keep("hello") == []
    assert history_file() is None
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("unusable", ["", "relative", "./relative", "/nonexistent"])
def test_no_history_is_kept_in_a_home_that_is_not_a_folder_of_its_own(home, monkeypatch, unusable):
    """Row 52: root would make the home of a user who has none."""
    monkeypatch.setenv("HOME", unusable)
    assert history_file() is None
    monkeypatch.setenv("ECHO_HISTFILE", "~/history")
    assert history_file() is None


@pytest.mark.parametrize("name, value", [("ECHO_HISTFILE", "~/h"), ("XDG_STATE_HOME", "/nonexistent/state")])
def test_no_history_is_kept_below_a_home_that_is_missing(home, monkeypatch, name, value):
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv(name, value)
    assert history_file() is None


def test_a_tilde_in_echo_histfile_is_the_users_home(home, tmp_path, monkeypatch):
    monkeypatch.setenv("ECHO_HISTFILE", "~/history")
    assert history_file() == str(tmp_path / "history")


@needs_history
def test_history_is_kept_where_the_users_state_is(home, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    keep("hello")
    assert kept_in(tmp_path / "state" / "echo" / "history") == [b"hello"]
    assert os.listdir(tmp_path) == ["state"]


@needs_history
@pytest.mark.parametrize("name", ["elsewhere", "a folder/of its/own", "here", "./here"])
def test_history_is_kept_where_the_user_says(home, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("ECHO_HISTFILE", name if name in ("here", "./here") else str(path))
    keep("hello")
    assert kept_in(path) == [b"hello"]
    assert len(os.listdir(tmp_path)) == 1


@needs_history
@pytest.mark.parametrize("where", ["", os.devnull], ids=["empty", "null"])
def test_the_user_may_keep_no_history(home, tmp_path, monkeypatch, where):
    monkeypatch.setenv("ECHO_HISTFILE", where)
    for _ in range(2):
        assert keep("hello") == []
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert not os.listdir(tmp_path)


@needs_history
def test_only_the_user_may_read_the_history(home, tmp_path):
    before = os.umask(0)
    try:
        keep("secret")
    finally:
        os.umask(before)
    path = tmp_path.joinpath(*DEFAULT_PLACE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@needs_history
@pytest.mark.parametrize("place", ["below a file", "a folder", "a pipe", "nobody's", "text of another kind"])
def test_a_path_that_cannot_hold_a_history_is_not_an_error(home, tmp_path, monkeypatch, place):
    path = tmp_path / "place"
    if place == "below a file":
        path.write_text("not a folder")
        path = path / "history"
    elif place == "a folder":
        path.mkdir()
    elif place == "a pipe":
        os.mkfifo(path)  # opening it would block for ever
    elif place == "nobody's":
        path = "/proc/1/history/history"  # where not even root can write
    else:
        path.write_bytes(bytes(range(256)) * 100)
    monkeypatch.setenv("ECHO_HISTFILE", str(path))
    keep("hello")


@needs_history
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_path_without_permission_is_not_an_error(home, tmp_path, monkeypatch):
    path = tmp_path / "history"
    path.write_bytes(b"not to be read\n")
    path.chmod(0)
    tmp_path.chmod(0o500)
    monkeypatch.setenv("ECHO_HISTFILE", str(path))
    try:
        assert keep("hello") == []
    finally:
        tmp_path.chmod(0o700)


@needs_history
@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_sessions_at_the_same_time_lose_no_lines(serve, terminal, home, tmp_path, count):
    keep("earlier")
    server = serve()
    users = [terminal(server, **home) for _ in range(count)]
    for turn in range(3):
        for number, user in enumerate(users):
            line = b"%d of %d" % (turn, number)
            user.until(rb"> ")
            user.type(line + b"\r")
            user.until(rb"\n" + line + rb"\r\n")
    for user in users:
        user.until(rb"> ")
    for user in users:
        user.type(CTRL_D)
    for user in users:
        assert user.leave() == 0
    kept = kept_in(tmp_path.joinpath(*DEFAULT_PLACE))
    assert kept[0] == b"earlier"
    assert sorted(kept[1:]) == sorted(b"%d of %d" % (turn, number) for turn in range(3) for number in range(count))
    for number in range(count):
        mine = [line for line in kept if line.endswith(b"of %d" % number)]
        assert mine == [b"%d of %d" % (turn, number) for turn in range(3)]


@needs_history
@pytest.mark.parametrize("before", [995, 998, 1000, 5000])
def test_a_thousand_lines_are_kept_and_the_newest_of_all(home, tmp_path, monkeypatch, before):
    path = tmp_path / "history"
    old = [b"old %d" % number for number in range(before)]
    path.write_bytes(b"".join(line + b"\n" for line in old))
    path.chmod(0o600)
    monkeypatch.setenv("ECHO_HISTFILE", str(path))
    keep("new 0", "new 1")
    keep("new 2", "new 3")
    assert kept_in(path) == (old + [b"new %d" % number for number in range(4)])[-1000:]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_messages_of_the_command_line_are_not_kept(serve, home, tmp_path):
    assert on_a_terminal(serve(), "-m", "hello") == (0, b"hello\r\n")
    assert not os.listdir(tmp_path)


# Replies that would control the terminal.


HOSTILE = b"\x1b[2J\x1b]0;title\x07\xff\xc2\x9b31m\r\x08\x7f\\"
SHOWN = rb"\x1b[2J\x1b]0;title\x07\xff\u009b31m\r\x08\x7f" + b"\\"


def assert_harmless(screen):
    """Check that no control character of the peer is on the screen. The client's own are CR LF."""
    own = screen.replace(b"\r\n", b"")
    assert not re.search(rb"[\x00-\x1f\x7f\xff]|\xc2[\x80-\x9f]", own), own


def test_control_characters_in_a_reply_are_shown_escaped(conversation):
    with conversation() as session:
        session.answer = lambda message: HOSTILE
        session.user.type(b"x\r")
        session.user.until(re.escape(SHOWN) + rb"\r\n> ")
        assert_harmless(session.user.screen)


def test_control_characters_that_come_at_the_prompt_are_shown_escaped(conversation):
    with conversation() as session:
        session.say(HOSTILE)
        session.user.until(re.escape(SHOWN) + rb"\r\n> ")
        assert_harmless(session.user.screen)


def test_control_characters_in_a_last_half_message_are_shown_escaped(serve, terminal):
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


@contextlib.contextmanager
def screen_of_its_own():
    """``(standard output at a terminal, list of what its screen shows afterwards)``."""
    master, slave = pty.openpty()
    shown = []
    with open(master, "rb", buffering=0) as screen:
        with open(slave, "w", encoding="utf-8") as stdout:
            yield stdout, shown
        with contextlib.suppress(OSError):  # EIO: the end
            shown.extend(iter(lambda: screen.read(4096), b""))


def on_a_terminal(server, *options):
    """Run the command in this process, with its output at a terminal; return its exit code and the screen's text."""
    with screen_of_its_own() as (stdout, shown):
        code = call_client(*address_options(server), *options, stdout=stdout).code
    return code, b"".join(shown)


def test_control_characters_in_replies_to_m_are_shown_escaped(serve):
    class Hostile(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(HOSTILE)

    code, screen = on_a_terminal(serve(Hostile), "-m", "x")
    assert (code, screen) == (3, SHOWN + b"\r\n")
    assert_harmless(screen)


def test_a_reply_to_m_that_is_text_is_shown_as_it_is(serve):
    assert on_a_terminal(serve(), "-m", "naïve") == (0, "naïve\r\n".encode())


@pytest.mark.parametrize(
    "starter, kind",
    [
        (OWN_TERMINAL, "xterm"),
        (OWN_TERMINAL, "dumb"),
        (WITHOUT_READLINE, "xterm"),
        (WITHOUT_READLINE, "dumb"),
        (WITHOUT_CTYPES, "xterm"),
        (WITHOUT_CTYPES, "dumb"),
    ],
    ids=["readline", "readline-dumb", "plain", "plain-dumb", "no-ctypes", "no-ctypes-dumb"],
)
def test_a_message_that_comes_at_the_prompt_leaves_the_typed_text_in_view(conversation, starter, kind):
    with conversation(starter, kind) as session:
        session.user.type(b"ab")
        session.user.until(rb"ab")
        for news in (b"news", b"more"):
            session.say(news)
            session.user.until(rb"(\r\x1b\[[KJ]\r?|\n)" + news + rb"\r\n> ab")
        session.user.settle()  # keys that come while the line is redrawn are read, but perhaps not shown
        session.user.type(b"c\r")
        session.user.until(rb"c\r\nabc\r\n[^\n]*> ")
    assert session.messages == [b"abc"]
    if kind == "dumb":
        assert ESC not in session.user.screen


def test_a_message_comes_at_the_prompt_whatever_the_parent_has_done_with_signals(serve, terminal):
    server = serve(Feed)
    user = terminal(server, starter=WITHOUT_URGENT_SIGNALS)
    user.until(rb"> ")
    user.type(b"ab")
    user.until(rb"ab")
    session_of(server).connection.send(b"news")
    user.until(rb"news\r\n> ab")
    user.type(CTRL_C)
    assert user.leave() == 0


@both
def test_many_messages_that_come_at_the_prompt_are_shown_in_their_order(conversation, starter):
    numbers = [b"number %d" % number for number in range(500)]
    with conversation(starter) as session:
        session.user.type(b"ab")
        session.user.until(rb"ab")
        for number in numbers:
            session.say(number)
        session.user.until(numbers[-1] + rb"\r\n> ab")
        session.user.type(b"\r")
        session.user.until(rb"\nab\r\n> ")
        assert re.findall(rb"(?m)^number \d+(?=\r$)", session.user.screen) == numbers


@needs_readline
def test_a_message_that_comes_while_the_user_edits_leaves_the_cursor_where_it_was(conversation):
    with conversation(kind="xterm") as session:
        session.user.type(b"acd" + LEFT * 2)
        session.user.until(rb"acd\x08\x08")
        session.say(b"news")
        session.user.until(rb"\r\x1b\[K\r?news\r\n> acd\x08\x08")
        session.user.type(b"b\r")
        session.user.until(rb"\nabcd\r\n[^\n]*> ")


@pytest.mark.parametrize("starter", [OWN_TERMINAL, WITHOUT_READLINE], ids=["readline", "plain"])
def test_a_message_that_comes_at_a_line_of_several_rows_replaces_all_of_them(conversation, starter):
    line = b"0123456789" * 5
    with conversation(starter, "xterm") as session:
        session.user.resize(24, 20)
        session.user.settle()
        session.user.type(line)
        session.user.until(rb"(9[^9]*){4}9")
        session.say(b"news")
        before = session.user.until(rb"(.*)news\r\n").group(1)
        assert before.count(ESC + b"[A") == 2 or before.startswith(ESC + b"[2A")
        session.user.until(rb"> 012345")
        session.user.type(b"\r")
        session.user.until(rb"\n[^\n]*> ")
        session.user.resize(24, 80)
        session.user.settle()
    assert session.messages == [line]


def test_a_message_that_comes_at_decomposed_hangul_removes_only_its_row(conversation):
    """Row 54: vowels and final consonants take no columns of their own."""
    line = ("\u1112\u1161\u11ab" * 8).encode()
    with conversation(WITHOUT_READLINE, "xterm") as session:
        session.user.resize(24, 20)
        session.user.settle()
        session.user.type(line)
        session.user.until(re.escape(line))
        session.say(b"news")
        assert session.user.until(rb"(.*)news\r\n> ").group(1) == b"\r" + ESC + b"[J"
        session.user.type(b"\r")
        session.user.until(rb"\n[^\n]*> ")
        session.user.resize(24, 80)
        session.user.settle()
    assert session.messages == [line]


def test_without_readline_a_message_replaces_all_rows_of_a_line_whose_letters_the_output_escapes(serve, terminal):
    """Row 54: six columns for each of these letters, and not two."""
    server = serve(Feed)
    user = terminal(server, starter=WITHOUT_READLINE, TERM="xterm", PYTHONIOENCODING="ascii")
    user.until(rb"> ")
    user.type("猫".encode() * 20)
    user.until(rb"(\\u732b){20}")
    session_of(server).connection.send(b"news")
    assert user.until(rb"(.*)news\r\n> (\\u732b){20}").group(1) == ESC + b"[1A\r" + ESC + b"[J"


def test_without_readline_a_line_can_be_edited(conversation):
    with conversation(WITHOUT_READLINE, "xterm") as session:
        for keys, line in [
            ("aß猫x".encode() + BACKSPACE * 2 + b"b", "aßb".encode()),
            (b"a\xb0\xb0" + BACKSPACE + b"b", b"a\xb0b"),
            (b"one two  " + CTRL_W + b"three", b"one three"),
            (b"all wrong" + CTRL_U + b"right", b"right"),
            (BACKSPACE + CTRL_W + CTRL_U + b"x", b"x"),
            (b"a" + CTRL_V + CTRL_D + b"b", b"a" + CTRL_D + b"b"),
            (b"a" + CTRL_D + b"b", b"ab"),
        ]:
            session.messages.clear()
            session.user.type(keys + b"\r")
            session.user.until(rb"\n[^\n]*\r\n> ")
            assert session.messages == [line]


# Long lines, and lines that are typed ahead.


@both
@pytest.mark.parametrize("size", [5000, pytest.param(60_000, marks=pytest.mark.slow)])
def test_lines_that_are_typed_while_a_reply_is_awaited_are_whole(serve, terminal, starter, size):
    waiting, answer = threading.Event(), threading.Event()

    class Handler(Recorder.of(echo.EchoRequestHandler)):
        def message_received(self, message):
            super().message_received(message)
            if message == b"first":
                waiting.set()
                answer.wait(DEADLINE)

    user = terminal(serve(Handler), starter=starter)
    user.until(rb"> ")
    user.type(b"first\r")
    assert waiting.wait(DEADLINE)
    typing = threading.Thread(target=user.type, args=(b"x" * size + b"\rlast\r",))
    typing.start()
    if size < 10_000:
        typing.join()  # the terminal takes more only when the client reads it
    answer.set()
    user.until(rb"\nlast\r\n> ")
    typing.join()
    assert Handler.events == ["made", b"first", b"x" * size, b"last"]
    user.type(CTRL_D)
    assert user.leave() == 0


@both
def test_what_is_typed_while_a_reply_is_awaited_is_shown_once_at_the_next_prompt(conversation, starter):
    waiting = threading.Event()
    with conversation(starter) as session:
        session.answer = lambda message: waiting.set()
        session.user.type(b"hello\r")
        assert waiting.wait(DEADLINE)
        session.user.type(b"ahead")
        session.answer = lambda message: message
        session.say(b"the reply")
        session.user.until(rb"^hello\r\nthe reply\r\n> ahead")
        session.user.type(b"\r")
        session.user.until(rb"\nahead\r\n> ")


# Ways to leave.


@both
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGXCPU"])
def test_a_signal_that_ends_the_client_at_its_prompt_leaves_terminal_and_history_in_order(
    serve, terminal, home, tmp_path, starter, name
):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))  # SIGQUIT would leave a core file
    try:
        user = terminal(serve(), starter=starter, **home)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"\nhello\r\n[^\n]*> ")  # and then any output: the signal may come before the client waits for a key
    user.process.popen.send_signal(getattr(signal, name))
    assert user.leave() == -getattr(signal, name)
    assert user.screen.endswith(b"\r\n")
    if sys.platform.startswith("linux"):
        assert termios.tcgetattr(user.master) == user.settings
    if starter == OWN_TERMINAL and hasattr(readline, "append_history_file"):
        assert kept_in(tmp_path.joinpath(*DEFAULT_PLACE)) == [b"hello"]
        assert user.screen.count(ESC + b"[?2004h") == user.screen.count(ESC + b"[?2004l")


def test_a_signal_ends_a_client_at_its_prompt_that_is_process_1_of_a_container(serve, terminal):
    user = terminal(serve(), starter=AS_PROCESS_1)
    user.until(rb"> ")
    user.process.popen.send_signal(signal.SIGTERM)
    assert user.leave() == 128 + signal.SIGTERM
    assert termios.tcgetattr(user.master) == user.settings


@both
def test_a_signal_ends_a_client_whose_terminal_was_halted_by_ctrl_s(serve, terminal, starter):
    user = terminal(serve(), starter=starter, TERM="xterm")
    user.until(rb"> ")
    user.type(b"hello")
    user.until(rb"hello")
    slave = os.open(user.name, os.O_WRONLY | os.O_NOCTTY)
    try:
        user.type(CTRL_S)
        eventually(lambda: not select.select([], [slave], [], 0)[1])
        user.process.popen.send_signal(signal.SIGTERM)
        assert user.process.popen.wait(DEADLINE) == -signal.SIGTERM
    finally:
        os.close(slave)
    if sys.platform.startswith("linux"):
        assert termios.tcgetattr(user.master) == user.settings


@both
def test_a_signal_ends_a_client_that_waits_for_a_reply_while_the_terminal_takes_no_output(serve, terminal, starter):
    """The thread that prints the reply has the lock that the main thread wants when its wait is over."""

    class Answers(echo.MessageRequestHandler):
        def message_received(self, message):
            assert halted.wait(DEADLINE)
            self.send(b"x" * 60000)
            sent.set()

    halted, sent = threading.Event(), threading.Event()
    user = terminal(serve(Answers), starter=starter, TERM="xterm")
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"hello\r?\n")  # not the echo of the keys alone: then nothing is sent yet
    slave = os.open(user.name, os.O_WRONLY | os.O_NOCTTY)
    try:
        user.type(CTRL_S)
        eventually(lambda: not select.select([], [slave], [], 0)[1])
        halted.set()
        assert sent.wait(DEADLINE)
        time.sleep(0.5)  # more than a step of the main thread's wait; on a busy machine the test may pass without it
        user.process.popen.send_signal(signal.SIGTERM)
        assert user.process.popen.wait(DEADLINE) == -signal.SIGTERM
    finally:
        os.close(slave)


@both
def test_ctrl_z_gives_the_terminal_back_until_the_client_goes_on(serve, terminal, starter):
    user = terminal(serve(), starter=SHELL if starter == OWN_TERMINAL else SHELL.replace(*NO_READLINE), TERM="xterm")
    user.until(rb"> ")
    user.type(b"hell")
    user.until(rb"hell")
    user.type(CTRL_Z)
    user.until(rb"stopped well\r\n")
    user.type(b"\r")
    user.until(rb"> hell")
    user.type(b"o\r")
    user.until(rb"\nhello\r\n[^\n]*> ")
    user.type(CTRL_D)
    assert user.leave() == 0


@both
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings can be read from the other side on Linux")
@pytest.mark.parametrize("shell", [SHELL, BACKGROUND_SHELL], ids=["stopped", "background"])
def test_the_settings_that_the_terminal_has_when_the_client_gets_it_are_there_afterwards(
    serve, terminal, starter, shell
):
    """After an stty while the client was stopped, and for a client that began beside a shell at its prompt."""
    user = terminal(serve(), starter=shell if starter == OWN_TERMINAL else shell.replace(*NO_READLINE), TERM="xterm")
    if shell == SHELL:
        user.until(rb"> ")
        user.type(CTRL_Z)
    user.until(rb"stopped \w+\r\n")
    changed = list(user.settings)
    changed[3] &= ~termios.ECHOE
    termios.tcsetattr(user.master, termios.TCSANOW, changed)
    user.type(b"\r")
    user.until(rb"> ")
    user.type(CTRL_D)
    assert user.leave() == 0
    assert termios.tcgetattr(user.master) == changed


def test_a_client_in_the_background_that_needs_the_terminals_input_waits_for_the_foreground(serve, terminal, tmp_path):
    """``echo.client > FILE &``, and then ``fg``: the input failed, since the signal that stops the job was blocked."""
    redirected = f"os.dup2(os.open({str(tmp_path / 'replies')!r}, os.O_WRONLY | os.O_CREAT), 1)\n    os.execv"
    user = terminal(serve(), starter=BACKGROUND_SHELL.replace("os.execv", redirected))
    user.until(rb"stopped \w+\r\n")
    user.type(b"\r")
    user.until(rb"\r\n")
    user.type(b"hello\n" + CTRL_D)
    assert user.leave() == 0
    assert (tmp_path / "replies").read_bytes() == b"hello\n"


@both
@pytest.mark.parametrize("shell", [SHELL, STRICT_SHELL], ids=["", "tostop"])
def test_a_client_that_was_stopped_by_ctrl_z_can_be_killed(serve, terminal, starter, shell):
    user = terminal(serve(), starter=shell if starter == OWN_TERMINAL else shell.replace(*NO_READLINE), TERM="xterm")
    user.until(rb"> ")
    user.type(b"hello")
    user.until(rb"hello")
    user.type(CTRL_Z)
    user.until(rb"stopped well\r\n")
    user.type(b"kill\r")
    assert user.until(rb"(killed by signal \d+|stopped \w+)\r\n").group(1) == b"killed by signal %d" % signal.SIGTERM
    assert user.leave() == 0


@both
def test_a_client_that_was_paused_prepares_the_terminal_again(conversation, starter):
    with conversation(starter, "xterm") as session:
        user = session.user
        user.type(b"hell")
        user.until(rb"hell")
        prepared = termios.tcgetattr(user.master)
        user.process.popen.send_signal(signal.SIGSTOP)
        eventually(lambda: state_of(user.process.pid) == "T")
        termios.tcsetattr(user.master, termios.TCSANOW, user.settings)  # as a shell does
        user.process.popen.send_signal(signal.SIGCONT)
        user.until(rb"> hell")
        eventually(lambda: termios.tcgetattr(user.master) == prepared)
        user.type(b"o\r")
        user.until(rb"\nhello\r\n[^\n]*> ")
    assert session.messages == [b"hello"]


@pytest.mark.parametrize("starter", [SHELL, SHELL.replace(*NO_READLINE)], ids=["readline", "plain"])
@pytest.mark.parametrize("typed, rest", [(b"", b"0123456789" * 5), (b"0123456789" * 5, b"x")], ids=["before", "within"])
def test_a_client_that_was_stopped_while_the_window_changed_knows_its_size(conversation, starter, typed, rest):
    """Row 54: readline did not, and messages removed too many rows or too few, to the end of the session."""
    with conversation(starter, "xterm") as session:
        user = session.user
        user.type(typed)
        user.until(re.escape(typed))
        user.type(CTRL_Z)
        user.until(rb"stopped well\r\n")
        user.resize(24, 20)
        user.type(b"\r")
        user.until(rb"> ")
        user.type(rest)
        user.until(rb"(9[^9]*){4}" + rest[-1:])
        session.say(b"news")
        before = user.until(rb"(.*)news\r\n").group(1)
        assert before.count(ESC + b"[A") == 2 or ESC + b"[2A" in before
        user.type(b"\r")
        user.until(rb"\n[^\n]*> ")
        user.resize(24, 80)
        user.settle()
    assert session.messages == [typed + rest]


def test_a_message_that_came_during_a_pause_does_not_show_the_prompt_twice(conversation):
    with conversation(IN_STEPS, "xterm") as session:
        user = session.user
        user.type(b"hell")
        user.until(rb"hell")
        user.process.popen.send_signal(signal.SIGSTOP)
        eventually(lambda: state_of(user.process.pid) == "T")
        session.say(b"news")
        user.process.popen.send_signal(signal.SIGCONT)
        user.until(rb"news\r\n")
        user.type(b"o\r")
        assert user.until(rb"([^\n\r]*)\r\nhello\r\n[^\n]*> ").group(1).count(b"> hell") == 1


def test_a_message_right_after_a_pause_leaves_the_rows_of_the_shell_and_the_line_comes_once(monkeypatch):
    """Row 51: without readline it removed as many rows as the typed line had before the pause."""
    for step in ("take_terminal", "release_terminal"):
        monkeypatch.setattr(editors._TerminalEditor, step, lambda editor: None)
    written = []
    monkeypatch.setattr(editors, "_write", written.append)
    editor = object.__new__(editors.PlainEditor)
    editor._shown, editor._waits, editor._is_lost = "hello " * 40, True, False
    editor.release_terminal()
    editor.above("news")
    editor.take_terminal()
    assert "".join(written) == "\rnews\n\r> " + "hello " * 40


@both
def test_several_interrupts_at_once_are_one(serve, terminal, starter):
    user = terminal(serve(), starter=starter)
    user.until(rb"> ")  # and then any output: they may come before the client waits for a key
    for _ in range(3):
        user.process.popen.send_signal(signal.SIGINT)
    assert user.leave() in (0, 130, -signal.SIGINT)  # the last one may come while Python ends
    assert termios.tcgetattr(user.master) == user.settings or not sys.platform.startswith("linux")


@pytest.mark.parametrize("ending", [b"exit\r", CTRL_D, CTRL_C], ids=["exit", "Ctrl-D", "Ctrl-C"])
def test_a_session_without_standard_error_works_as_usual(serve, terminal, ending):
    user = terminal(serve(), starter=WITHOUT_STDERR)
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"\nhello\r\n> ")
    assert user.screen == b"> hello\r\nhello\r\n> "
    user.settle()
    user.type(ending)
    assert user.leave() == 0


def test_ctrl_c_ends_the_session_although_python_has_dropped_its_exception(serve, terminal):
    user = terminal(serve(), starter=DROPS_AN_EXCEPTION)
    user.until(rb"> ")
    user.type(CTRL_C)
    assert user.leave() == 0


@pytest.mark.parametrize("name", ["echo-signals", "echo-receive"])
def test_without_a_thread_there_is_no_session(serve, terminal, name):
    user = terminal(serve(), "-q", starter=WITHOUT_A_THREAD.format(name=name))
    assert user.leave() == 1
    assert re.fullmatch(rb"echo\.client: can't start new thread; raise the limits [^\n]*\r\n", user.screen)
    assert termios.tcgetattr(user.master) == user.settings or not sys.platform.startswith("linux")


def test_without_memory_for_a_message_the_session_ends_with_one_line(serve, terminal):
    """The thread that receives ended with a traceback, and the user waited for replies that it did not receive."""
    user = terminal(serve(), "-q", starter=WITHOUT_MEMORY)
    assert user.leave() == 1
    assert re.fullmatch(rb"(> )?(\r\n)?echo\.client: not enough memory; close [^\n]*\r\n", user.screen)


@pytest.mark.parametrize("number", [0, 1])
def test_without_standard_input_or_output_there_is_no_session(serve, terminal, number):
    starter = WITHOUT_STDERR.replace("os.close(2)", f"os.close({number})")
    user = terminal(serve(), starter=starter)
    assert user.leave() == 1
    assert user.screen.startswith(b"echo.client: standard input or output is closed") and user.screen.count(b"\n") == 1


@pytest.mark.parametrize(
    "starter, farewell",
    [
        pytest.param(OWN_TERMINAL, b"exit\r", id="exit-readline"),
        pytest.param(WITHOUT_READLINE, b" EXIT\r", id="EXIT-plain"),
        pytest.param(OWN_TERMINAL, CTRL_D, id="Ctrl-D-readline"),
        pytest.param(WITHOUT_READLINE, CTRL_D, id="Ctrl-D-plain"),
        pytest.param(OWN_TERMINAL, CTRL_C, id="Ctrl-C-readline"),
        pytest.param(WITHOUT_READLINE, CTRL_C, id="Ctrl-C-plain"),
    ],
)
def test_the_user_leaves_and_the_terminal_is_as_it_was(serve, terminal, home, tmp_path, farewell, starter):
    handler = Recorder.of(echo.EchoRequestHandler)
    user = terminal(serve(handler), starter=starter, **dict(home, TERM="dumb"))
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"\nhello\r\n> ")
    user.type(farewell)
    assert user.leave() == 0
    exits = b"2 messages sent (1 exit)" if b"x" in farewell.lower() else b"1 message sent"
    assert user.screen.endswith(exits + b", 1 received\r\n")
    assert b"the server has ended" not in user.screen
    assert handler.ended.wait(DEADLINE)
    assert handler.reasons == ["exit" if b"x" in farewell.lower() else "eof"]
    if sys.platform.startswith("linux"):  # elsewhere a terminal whose other end is closed has no settings
        assert termios.tcgetattr(user.master) == user.settings
    if starter == WITHOUT_READLINE:
        assert not os.listdir(tmp_path)  # neither a history nor an error
    elif hasattr(readline, "append_history_file"):
        kept = [b"hello", b"exit"] if farewell == b"exit\r" else [b"hello"]
        assert kept_in(tmp_path.joinpath(*DEFAULT_PLACE)) == kept


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


@pytest.mark.parametrize("line", [b"", b"hello\r"], ids=["at once", "after a line"])
def test_ctrl_c_does_not_wait_for_a_server_that_does_not_end_its_side(serve, terminal, line):
    """With ``-w 0`` for ever, and else for the time of a reply."""
    released, waiting = threading.Event(), threading.Event()

    class Stays(echo.EchoRequestHandler):
        def connection_made(self):
            if line:
                self.request.recv(100)
            waiting.set()
            released.wait(10 * DEADLINE)

    user = terminal(serve(Stays), "-w", "0")
    user.until(rb"> ")
    user.type(line)
    assert waiting.wait(DEADLINE)
    user.type(CTRL_C)
    try:
        assert user.leave() == 0
    finally:
        released.set()


def test_no_reply_in_time_brings_the_prompt_back(serve, terminal):
    class Silent(echo.EchoRequestHandler):
        def message_received(self, message):
            pass

    user = terminal(serve(Silent, cls=UnixServer), "-w", "100ms")
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"no reply after 0\.1 s\r\n> ")
    user.type(CTRL_D)
    assert user.leave() == 0


@pytest.mark.parametrize(
    "starter, option", [(OWN_TERMINAL, "-q"), (WITHOUT_READLINE, "-v")], ids=["readline-q", "plain-v"]
)
def test_the_servers_end_is_shown_at_the_prompt_at_once(serve, terminal, home, tmp_path, starter, option):
    server = serve(Feed)
    user = terminal(server, option, starter=starter, **dict(home, TERM="dumb"))
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"\nhello\r\n> ")
    session_of(server).close()
    assert user.leave() == 1  # nobody has pressed a key
    assert b"the server has ended the session\r\n" in user.screen
    if starter == OWN_TERMINAL and hasattr(readline, "append_history_file"):
        assert kept_in(tmp_path.joinpath(*DEFAULT_PLACE)) == [b"hello"]


def test_the_end_of_a_killed_server_is_shown_at_the_prompt_at_once(server_command, terminal):
    server = server_command()
    user = terminal(server)
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"\nhello\r\n> ")
    server.popen.kill()
    assert user.leave() == 1
    assert b"ended the session" in user.screen or b"lost" in user.screen


SESSIONS = pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])


@SESSIONS
@both
def test_the_servers_end_is_shown_however_close_to_the_prompt_it_comes(serve, terminal, starter, count):
    class Gone(echo.EchoRequestHandler):
        def connection_made(self):
            self.close()

    server = serve(Gone)
    for user in [terminal(server, starter=starter) for _ in range(count)]:
        assert user.leave() == 1
        assert b"the server has ended the session\r\n" in user.screen


@SESSIONS
@both
def test_the_servers_end_right_after_a_reply_is_shown(serve, terminal, starter, count):
    class Once(echo.EchoRequestHandler):
        def message_received(self, message):
            self.send(message)
            self.close()

    server = serve(Once)
    users = [terminal(server, starter=starter) for _ in range(count)]
    for user in users:
        user.until(rb"> ")
        user.type(b"hello\r")
    for user in users:
        assert user.leave() == 1
        assert b"\nhello\r\n" in user.screen
        assert b"the server has ended the session\r\n" in user.screen
