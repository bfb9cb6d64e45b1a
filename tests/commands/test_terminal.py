"""``python -m echo.client`` in a real pseudo-terminal: what a user sees, and every way to leave."""

import os
import re
import stat
import sys
import threading

import pytest

import echo
from support import DEADLINE, Recorder, eventually

pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
termios = pytest.importorskip("termios", reason="this platform has no pseudo-terminals")

from support.terminal import CTRL_C, CTRL_D, CTRL_V, DOWN, ESC, OWN_TERMINAL, UP, Terminal  # noqa: E402

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
"""The same on a Python that was built without readline."""


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
needs_history = pytest.mark.skipif(
    not hasattr(readline, "append_history_file"), reason="this Python keeps no history in files"
)
needs_readline = pytest.mark.skipif(readline is None, reason="this Python has no readline")


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
    user.type(UP + b"d\r")  # up, then d
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


@both
@pytest.mark.parametrize("kind", ["dumb", "xterm"])
def test_a_resize_in_the_middle_of_typing_loses_nothing(serve, terminal, starter, kind):
    handler = Recorder.of(echo.EchoRequestHandler)
    user = terminal(serve(handler), starter=starter, TERM=kind)
    user.until(rb"> ")
    typed = [b"a line ", b"that is ty", b"ped while the ", b"window ", b"changes"]
    for part, size in zip(typed, [(24, 80), (50, 200), (10, 60), (24, 80), (60, 250)]):
        user.type(part)
        user.until(re.escape(part[-2:]))
        user.resize(*size)
        user.settle()
    user.type(b"\r")
    user.until(b"".join(typed) + rb"\r\n(\x1b\[\?2004h)?> ")
    user.type(b"exit\r")
    assert user.leave() == 0
    assert handler.events == ["made", b"".join(typed), b"exit", "lost"]


@both
def test_a_resize_during_the_wait_for_a_reply_loses_nothing(serve, terminal, starter):
    waiting = threading.Event()

    class Silent(Feed):
        def message_received(self, message):
            waiting.set()

    server = serve(Silent)
    user = terminal(server, starter=starter)
    user.until(rb"> ")
    user.type(b"hello\r")
    assert waiting.wait(DEADLINE)
    for size in ((24, 80), (50, 200), (10, 40)):
        user.resize(*size)
        user.settle()
    session_of(server).connection.send(b"after all")
    user.until(rb"hello\r\nafter all\r\n> ")
    user.type(CTRL_D)
    assert user.leave() == 0


# -q and -v.


@both
def test_a_quiet_session_shows_the_session_and_how_it_went(serve, terminal, starter):
    user = terminal(serve(), "-q", starter=starter)
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"hello\r\nhello\r\n> ")
    user.type(b"exit\r")
    assert user.leave() == 0
    assert user.screen == b"> hello\r\nhello\r\n> exit\r\n2 messages sent, 1 received\r\n"


@pytest.mark.parametrize("option", ["-q", "-v"])
def test_the_servers_end_is_told_quietly_and_verbosely(serve, terminal, option):
    server = serve(Feed)
    user = terminal(server, option)
    user.until(rb"> ")
    user.settle()
    session_of(server).close()
    assert user.leave() == 1
    assert b"the server has ended the session\r\n" in user.screen


def test_a_verbose_session_is_a_session(serve, terminal):
    user = terminal(serve(), "-v")
    user.until(rb"connected to [^\n]*\r\n> ")
    user.type(b"hello\r")
    user.until(rb"hello\r\nhello\r\n> ")
    user.type(CTRL_D)
    assert user.leave() == 0
    assert user.screen.endswith(b"1 message sent, 1 received\r\n")


# What was typed in earlier sessions.


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home where nothing says where history is to be kept; a dictionary for ``terminal`` that makes it the user's."""
    for name in ("ECHO_HISTFILE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return {"HOME": str(tmp_path), "ECHO_HISTFILE": None, "TERM": "xterm"}


def converse(user, *lines, farewell=CTRL_D):
    """Type these lines, see each come back, and leave."""
    user.until(rb"> ")
    for line in lines:
        user.type(line + b"\r")
        user.until(rb"\n" + re.escape(line) + rb"\r\n[^\n]*> ")
    if farewell == CTRL_C:
        user.settle()
    user.type(farewell)
    assert user.leave() == 0


def kept_in(path):
    return path.read_bytes().splitlines()


DEFAULT_PLACE = (".local", "state", "echo", "history")


@needs_history
def test_what_was_typed_comes_back_with_the_arrow_keys_in_the_next_session(serve, terminal, home):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = serve(handler)
    converse(terminal(server, **home), b"first", b"two words", "naïve".encode())
    converse(terminal(server, **home), b"in between")
    user = terminal(server, **home)
    user.until(rb"> ")
    for keys, line in [
        (UP, b"in between"),
        (UP + UP + UP, b"two words"),  # what was just called back is a line of its own
        (UP * 5, b"first"),
        (UP + UP + DOWN, b"first"),
    ]:
        user.type(keys + b"\r")
        user.until(rb"\n" + line + rb"\r\n[^\n]*> ")
    user.type(CTRL_D)
    assert user.leave() == 0
    assert handler.events.count(b"first") == 3
    assert handler.events.count(b"two words") == handler.events.count(b"in between") == 2


@needs_history
def test_lines_come_back_byte_for_byte(serve, terminal, home):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = serve(handler)
    line = b' \\ "quoted" $HOME \xc3\xa9 !1 #comment  '
    for keys in (line, UP):
        user = terminal(server, LC_ALL="C.UTF-8", **home)
        user.until(rb"> ")
        user.type(keys + b"\r")
        eventually(lambda: handler.events[-1:] == [line])
        user.until(re.escape(line) + rb"\r\n[^\n]*> ")
        user.type(CTRL_D)
        assert user.leave() == 0
    assert handler.events == ["made", line, "lost"] * 2


@needs_history
@pytest.mark.parametrize("state", [None, "", "relative", "./relative"])
def test_history_is_kept_in_the_users_home(serve, terminal, home, tmp_path, monkeypatch, state):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    converse(terminal(serve(), **home, XDG_STATE_HOME=state), b"hello", b"again")
    assert kept_in(tmp_path.joinpath(*DEFAULT_PLACE)) == [b"hello", b"again"]
    assert not os.listdir(tmp_path / "here")


@needs_history
def test_history_is_kept_where_the_users_state_is(serve, terminal, home, tmp_path):
    converse(terminal(serve(), **home, XDG_STATE_HOME=str(tmp_path / "state")), b"hello")
    assert kept_in(tmp_path / "state" / "echo" / "history") == [b"hello"]
    assert os.listdir(tmp_path) == ["state"]


@needs_history
@pytest.mark.parametrize("name", ["elsewhere", "a folder/of its/own", "here", "./here"])
def test_history_is_kept_where_the_user_says(serve, terminal, home, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    home.update(XDG_STATE_HOME=str(tmp_path / "state"), ECHO_HISTFILE=name if name in ("here", "./here") else str(path))
    converse(terminal(serve(), **home), b"hello")
    assert kept_in(path) == [b"hello"]
    assert len(os.listdir(tmp_path)) == 1


@needs_history
@pytest.mark.parametrize("where", ["", os.devnull], ids=["empty", "null"])
def test_the_user_may_keep_no_history(serve, terminal, home, tmp_path, where):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = serve(handler)
    home["ECHO_HISTFILE"] = where
    converse(terminal(server, **home), b"hello")
    converse(terminal(server, **home), b"other", farewell=UP + UP + b"!\rexit\r")  # there is nothing above "other"
    assert handler.events == ["made", b"hello", "lost", "made", b"other", b"other!", b"exit", "lost"]
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert not os.listdir(tmp_path)


@needs_history
def test_history_is_for_its_users_eyes_only(serve, terminal, home, tmp_path):
    before = os.umask(0)  # the process has it from us
    try:
        converse(terminal(serve(), **home), b"secret")
    finally:
        os.umask(before)
    path = tmp_path.joinpath(*DEFAULT_PLACE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@needs_history
@pytest.mark.parametrize("place", ["below a file", "a folder", "a pipe", "nobody's", "text of another kind"])
def test_a_place_that_cannot_keep_history_is_no_error(serve, terminal, home, tmp_path, place):
    path = tmp_path / "place"
    if place == "below a file":
        path.write_text("not a folder")
        path = path / "history"
    elif place == "a folder":
        path.mkdir()
    elif place == "a pipe":
        os.mkfifo(path)  # opening it would wait for ever
    elif place == "nobody's":
        path = "/proc/1/history/history"  # where not even root can write
    else:
        path.write_bytes(bytes(range(256)) * 100)
    user = terminal(serve(), **dict(home, ECHO_HISTFILE=str(path)))
    converse(user, b"hello", farewell=b"exit\r")
    assert user.screen.endswith(b"2 messages sent, 1 received\r\n")
    assert re.search(rb"connected to [^\n]*\r\n[^\n]*> ", user.screen)


@needs_history
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_place_that_is_forbidden_is_no_error(serve, terminal, home, tmp_path):
    path = tmp_path / "history"
    path.write_bytes(b"not to be read\n")
    path.chmod(0)
    tmp_path.chmod(0o500)
    try:
        user = terminal(serve(), **dict(home, ECHO_HISTFILE=str(path)))
        converse(user, b"hello")
        assert user.screen.endswith(b"1 message sent, 1 received\r\n")
    finally:
        tmp_path.chmod(0o700)


@needs_history
def test_sessions_at_the_same_time_lose_no_lines(serve, terminal, home, tmp_path):
    server = serve()
    converse(terminal(server, **home), b"earlier")
    users = [terminal(server, **home) for _ in range(8)]
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
    assert sorted(kept[1:]) == sorted(b"%d of %d" % (turn, number) for turn in range(3) for number in range(8))
    for number in range(8):
        mine = [line for line in kept if line.endswith(b"of %d" % number)]
        assert mine == [b"%d of %d" % (turn, number) for turn in range(3)]


@needs_history
@pytest.mark.parametrize("before", [995, 998, 1000, 5000])
def test_a_thousand_lines_are_kept_and_the_newest_of_all(serve, terminal, home, tmp_path, before):
    path = tmp_path / "history"
    old = [b"old %d" % number for number in range(before)]
    path.write_bytes(b"".join(line + b"\n" for line in old))
    path.chmod(0o600)
    home["ECHO_HISTFILE"] = str(path)
    new = [b"new %d" % number for number in range(4)]
    server = serve()
    converse(terminal(server, **home), *new[:2])
    converse(terminal(server, **home), *new[2:])
    assert kept_in(path) == (old + new)[-1000:]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@needs_history
@pytest.mark.parametrize("farewell", [CTRL_D, CTRL_C, b"exit\r"], ids=["Ctrl-D", "Ctrl-C", "exit"])
def test_history_is_kept_however_the_user_leaves(serve, terminal, home, tmp_path, farewell):
    converse(terminal(serve(), **home), b"hello", farewell=farewell)
    assert kept_in(tmp_path.joinpath(*DEFAULT_PLACE)) == [b"hello", *farewell.splitlines()[: len(farewell) // 5]]


@needs_history
def test_history_is_kept_when_the_server_leaves(serve, terminal, home, tmp_path):
    server = serve(Feed)
    user = terminal(server, **home)
    user.until(rb"> ")
    user.type(b"hello\r")
    user.until(rb"\nhello\r\n[^\n]*> ")
    user.settle()
    session_of(server).close()
    assert user.leave() == 1
    assert kept_in(tmp_path.joinpath(*DEFAULT_PLACE)) == [b"hello"]


def test_without_readline_there_is_no_history_and_no_error(serve, terminal, home, tmp_path):
    handler = Recorder.of(echo.EchoRequestHandler)
    server = serve(handler)
    for line in (b"hello", b"again"):
        converse(terminal(server, starter=WITHOUT_READLINE, **home), line)
    assert handler.events == ["made", b"hello", "lost", "made", b"again", "lost"]
    assert not os.listdir(tmp_path)


def test_messages_of_the_command_line_are_no_history(serve, terminal, home, tmp_path):
    assert terminal(serve(), "-m", "hello", **home).leave() == 0
    assert not os.listdir(tmp_path)


def test_these_tests_leave_the_users_history_alone(serve, terminal, home, tmp_path):
    home.pop("ECHO_HISTFILE")
    converse(terminal(serve(), **home), b"hello")
    assert not os.listdir(tmp_path)


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
