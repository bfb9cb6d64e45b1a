"""Errors that newcomers see: each says what may be wrong and what to do."""

import socket
import sys

import pytest

import echo
from echo.cli.client.command import main as client_main
from echo.cli.server.command import main as server_main
from support import plain, read_all
from support.client import address_options, call_client
from support.commands import call

ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
"""The reply of many servers to bytes that are not TLS."""

USES_TLS = "; the server uses TLS; add --tls\n"

CLOSES = (
    "; the server may refuse this client, have another --framing, use TLS (--tls), or expect a PROXY header"
    " (--send-proxy)\n"
)

SILENT = "; the server may be full, have another --framing, use TLS (--tls), or expect a PROXY header (--send-proxy)\n"


NO_HANDSHAKE = (
    "the server may not use TLS (omit --tls), be full, refuse this client, or expect a PROXY header (--send-proxy)"
)


def alerts(sock):
    sock.recv(100)
    sock.sendall(ALERT)
    sock.shutdown(socket.SHUT_WR)
    read_all(sock)


def closes(sock):
    sock.recv(100)
    sock.shutdown(socket.SHUT_WR)
    read_all(sock)


def answers(sock):
    sock.recv(100)
    sock.sendall(b"220 mail.example.org\n")
    read_all(sock)


def answers_at_length(sock):
    sock.recv(100)
    sock.sendall(b"x" * 200 + b"\n")
    read_all(sock)


TOO_LONG = "a message is longer than the limit of 100 bytes; raise --max-message, or give the server's --framing\n"


@pytest.fixture
def ask(serve):
    """``ask(talk, *options)``: run the client command with a server that calls ``talk``; return the code and stderr."""

    def with_server(talk, *options, **streams):
        done = call_client(*address_options(serve(plain(talk))), *options, **streams)
        return done.code, done.log

    return with_server


@pytest.mark.parametrize(
    "talk, options, code, hint",
    [
        (alerts, [], 1, USES_TLS),
        (alerts, ["--no-verify"], 1, USES_TLS),
        (alerts, ["--framing", "raw"], 3, USES_TLS),
        (closes, [], 1, CLOSES),
        (closes, ["--send-proxy", "v2"], 1, CLOSES.replace("a PROXY header (--send-proxy)", "no PROXY header")),
        (read_all, ["-w", "250ms"], 1, SILENT),
        (answers, [], 3, "; if this service is not an echo, add --no-verify\n"),
        (answers, ["--no-verify"], 0, ""),
        (answers_at_length, ["--max-message", "100"], 1, TOO_LONG),
        (answers_at_length, ["--max-message", "100", "--framing", "length"], 1, TOO_LONG),
    ],
)
def test_an_answer_that_is_no_echo_ends_with_a_hint(ask, talk, options, code, hint):
    found, log = ask(talk, "-m", "hello", *options)
    assert found == code
    assert log.endswith(hint) and log.count("\n") == bool(hint)


@pytest.mark.parametrize("talk, hint", [(alerts, USES_TLS), (closes, CLOSES)])
def test_a_pipe_gets_the_same_hint(ask, talk, hint):
    assert ask(talk, data=b"hello\n")[1].endswith(hint)


@pytest.mark.parametrize("options, data", [(["-m", "hello"], b""), ([], b"hello\nagain\n")], ids=["-m", "pipe"])
def test_lines_that_come_back_with_crlf_bring_a_hint(serve, options, data):
    server = serve(type("Handler", (echo.EchoRequestHandler,), {"framing": echo.CRLFFraming()}))
    done = call_client(*address_options(server), *options, data=data)
    assert done.code == 3
    assert done.log.endswith("; the server's lines end with CR LF; add --framing crlf\n")


@pytest.mark.parametrize("sent, reason", [(70_000, " have a lower --max-message,"), (64, "")])
@pytest.mark.parametrize("mode", ["-m", "--ping"])
def test_a_message_that_is_too_long_for_a_server_alone_brings_a_hint(ask, mode, sent, reason):
    what = ["-m", "é" * (sent // 2)] if mode == "-m" else ["--ping", "-c", "1", "-s", str(sent)]
    code, log = ask(closes, "--max-message", "1M", *what)
    assert code == 1
    assert f"refuse this client, have another --framing,{reason} use TLS (--tls)" in log


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("framing", ["line", "raw"])
def test_an_echo_of_the_proxy_header_ends_with_a_hint(ask, version, framing):
    def echoes(sock):
        sock.sendall(sock.recv(100))
        read_all(sock)

    code, log = ask(echoes, "-m", "hello", "--send-proxy", version, "--framing", framing)
    assert code == 3
    assert log.endswith(
        "; the server has echoed the PROXY header; start it with --proxy-protocol, or omit --send-proxy\n"
    )


def test_a_pipe_cannot_be_told_to_compare_nothing(ask):
    assert ask(answers, data=b"hello\n")[1].endswith("; if this service is not an echo, use -m with --no-verify\n")


def test_a_session_that_ends_after_a_reply_gets_no_hint(ask):
    def once(sock):
        sock.sendall(sock.recv(100))
        closes(sock)

    code, log = ask(once, "-m", "one", "-m", "two")
    assert (code, log) == (1, "echo.client: the server has ended the session; 1 of 2 replies are missing\n")


def test_a_ping_without_any_reply_ends_with_a_hint(ask):
    code, log = ask(closes, "--ping", "-c", "1")
    assert code == 1
    assert log == (
        "echo.client: no reply came; the server may be full, refuse this client, have another --framing, use TLS"
        " (--tls), or expect a PROXY header (--send-proxy)\n"
    )
    assert ask(closes, "--ping", "-c", "1", "-J") == ask(closes, "--ping", "-c", "1", "-q") == (1, "")


def test_a_ping_with_tls_of_a_server_without_it_ends_with_a_hint(ask):
    code, log = ask(read_all, "--ping", "-c", "1", "-w", "50ms", "--tls", "--insecure")
    assert (code, log) == (1, f"echo.client: no reply came; {NO_HANDSHAKE}\n")


def test_a_server_that_ends_the_connection_before_a_tls_handshake_may_refuse_the_client(ask):
    """Row 60: one with TLS that denies the client, or expects a PROXY header, was taken for one without TLS."""
    code, log = ask(closes, "-m", "hello", "--tls", "--insecure")
    assert code == 1
    assert log.endswith(f": the peer left in mid-handshake; {NO_HANDSHAKE}\n")


def test_a_ping_of_a_port_where_nothing_listens_gets_no_hint_about_tls():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        host, port = nobody.getsockname()
        finished = call_client(host, str(port), "--ping", "-c", "1", "--tls", "--insecure")
    assert (finished.code, finished.log) == (1, "")
    assert b"lost: cannot connect: Connection refused" in finished.out


# Options that other programs have.

START = "python3 -m echo"


@pytest.mark.parametrize(
    "main, arguments, error",
    [
        (server_main, ["--port", "7000"], f"unknown option --port: give the port alone, as in {START}.server 7000"),
        (server_main, ["-p7000"], f"unknown option -p: give the port alone, as in {START}.server 7000"),
        (server_main, ["70000"], "invalid port '70000': expected 0 to 65535"),
        (server_main, ["-p", "7000"], f"unknown option -p: give the port alone, as in {START}.server 7000"),
        (server_main, ["--host=::", "7000"], "unknown option --host: write --bind ADDRESS"),
        (server_main, ["--tls"], "unknown option --tls: write --tls-cert FILE"),
        (server_main, ["0.0.0.0"], "invalid port '0.0.0.0': expected 0 to 65535, or HOST:PORT, like 0.0.0.0:65432"),
        (server_main, ["--handler", "a/b.py:C"], "expected the module's name, without folder and .py, like b:C"),
        (server_main, ["--handler", "b.py:C"], "expected the module's name, without folder and .py, like b:C"),
        (server_main, ["--handler", "support.leaves:leaves"], "has no class 'leaves'; it has Leaves"),
        (server_main, ["--handler", "json:encoder.c.d"], "has no class 'encoder.c.d'; check its name"),
        (client_main, ["--host", "h"], f"give host and port alone, as in {START}.client 127.0.0.1 7000"),
        (client_main, ["h", "--port", "1"], f"give host and port alone, as in {START}.client 127.0.0.1 7000"),
        (client_main, ["http://h:80"], "invalid address 'http://h:80': expected a host, or HOST:PORT, without http://"),
    ],
)
def test_an_option_of_other_programs_gets_an_error_with_the_right_option(main, arguments, error):
    code, out, err = call(main, *arguments)
    assert (code, out) == (2, "")
    assert err.endswith(f"{error}; see --help\n") and err.count("\n") == 1


def test_a_file_that_python_has_another_module_for_is_named_with_that_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "queue.py").write_text("class Mine: pass\n")
    error = "the module queue has no class 'Mine'; Python has another module with this name; rename queue.py"
    assert call(server_main, "--handler", "queue:Mine") == (2, "", f"echo.server: {error}; see --help\n")


def test_a_word_behind_two_dashes_is_no_option():
    assert "invalid port '--port'" in call(server_main, "--", "--port").err


# --handler of a file that serves when it is imported.

SERVES = {
    "echo.run(Handler, ('127.0.0.1', 0))": "serves when it is imported",
    "import sys; sys.exit(echo.run(Handler, ('127.0.0.1', 0)))": "serves when it is imported",
    "echo.Server(('127.0.0.1', 0), Handler).serve_forever()": "serves when it is imported",
    "import http.server as h; h.HTTPServer(('127.0.0.1', 0), Handler).serve_forever()": "serves when it is imported",
    "import sys; sys.exit(1)": "failed: SystemExit: 1",
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the module's server is never closed
@pytest.mark.parametrize("number", range(len(SERVES)))
def test_a_module_that_serves_when_it_is_imported_is_refused_with_what_to_do(number, tmp_path, monkeypatch):
    statement, problem = list(SERVES.items())[number]
    name = f"serves_{number}"
    (tmp_path / f"{name}.py").write_text(f"import echo\nclass Handler(echo.EchoRequestHandler): pass\n{statement}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = call(server_main, "0", "--handler", f"{name}:Handler")
    assert (code, out) == (2, "")
    assert problem in err
    assert err.endswith("; put the lines that run it under if __name__ == '__main__'; see --help\n")


BESIDE = """
import http.server, threading
import echo
class Handler(echo.EchoRequestHandler): pass
beside = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
threading.Thread(target=beside.serve_forever, args=[0.001]).start()
try:
    other = echo.Server(("127.0.0.1", 0), Handler).start()
    other.stop()
finally:
    beside.shutdown()
    beside.server_close()
"""


def test_a_module_may_serve_in_other_threads(tmp_path, monkeypatch):
    from echo.cli.server.loading import load_handler

    (tmp_path / "serves_beside.py").write_text(BESIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_handler("serves_beside:Handler").__name__ == "Handler"
