"""TLS on both command lines: sessions, also with other programs; reports of rejections; SIGHUP.

Most clients run in this process, and most servers are objects. A test starts a process only to test one.
"""

import errno
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import socketserver
import ssl

import pytest

import echo
from echo.cli.client.command import main as client_main
from echo.cli.server import command, workers
from echo.cli.server.command import main as server_main
from echo.cli.server.options import parser
from echo.client.endpoint import Endpoint
from echo.logs.formatters import JsonFormatter
from echo.transport.certificates import client_context, server_context
from support import DEADLINE, eventually, plain, read_all, read_exactly, reset
from support.background import Background
from support.client import address_options, call_client
from support.measuring import one_complaint, run_client
from support.usage_errors import error_line

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")

NO_WARNINGS = ("-lf", os.devnull)  # socat 1.8 would print a warning that it checks no revocation list

PATIENT = ("-w", f"{DEADLINE:g}s")

FRAMINGS = {"line": echo.LineFraming, "length": echo.LengthFraming, "raw": echo.RawFraming}

PIDS = """\
import echo, os

class Pids(echo.EchoRequestHandler):
    def message_received(self, message):
        self.send(b"%d" % os.getpid() if message == b"pid" else message)
"""


class Logged(echo.LoggingMixin, echo.EchoRequestHandler):
    """The handler of the server command."""


@pytest.fixture
def secure_command(server_command, certificates):
    """``secure_command(*options)``: the server's command with a valid certificate."""

    def start(*options, pair=certificates.server, **popen_options):
        patient = ("--handshake-timeout", "60s", "--shutdown-timeout", "60s")
        return server_command(
            *("--tls-cert", pair.certificate, "--tls-key", pair.key, *patient, *options), **popen_options
        )

    return start


@pytest.fixture
def secure(serve, certificates):
    """``secure(handler_class, pair=..., client_ca=...)``: a server with TLS in this process."""

    def start(handler_class=Logged, *, pair=certificates.server, client_ca=None, **options):
        context = server_context(*pair, client_ca)
        return serve(handler_class, ssl_context=context, handshake_timeout=DEADLINE, **options)

    return start


@pytest.fixture
def arguments(certificates):
    """``arguments(server, *options)``: arguments for a client command that trusts the tests' CA."""

    def combine(server, *options, host="localhost", cacert=certificates.authority.certificate):
        trusted = () if cacert is None else ("--cacert", cacert)
        return (host, address_options(server)[1], "--tls", *trusted, *options)

    return combine


@pytest.fixture
def client(arguments):
    """``client(server, *options)``: call the client command; return its exit code, output and log."""

    def call(server, *options, data=b"", **more):
        return call_client(*arguments(server, *options, **more), data=data)

    return call


@pytest.fixture
def talk(certificates):
    """``talk(server)``: an ``echo.Client``."""
    context = client_context(certificates.authority.certificate)

    def connect(server):
        return echo.connect(server.address, ssl_context=context, server_hostname="localhost", timeout=DEADLINE)

    return connect


@pytest.fixture
def log(caplog):
    """``log(event)``: the records of that event, logged by servers in this process."""
    caplog.set_level(logging.INFO, "echo.server")
    caplog.set_level(logging.INFO, "echo.session")
    return lambda event: [record for record in caplog.records if getattr(record, "event", "") == event]


def subject(client):
    """The subject of the server's certificate."""
    return client.connection.socket.subject


# Sessions.


def test_both_commands_hold_a_session_over_tls(secure_command, run, arguments):
    server = secure_command()
    assert re.search(r" listening on 127\.0\.0\.1:\d+ with TLS\n", server.log)
    process = run("echo.client", *arguments(server, *PATIENT, "-m", "hello", "-m", "exit"))
    assert process.finish() == (0, b"hello\n")
    assert process.log == ""
    server.read_log_until("disconnected: exit")
    assert re.search(r" 127\.0\.0\.1:\d+ connected TLSv1\.[23]\n", server.log)


@pytest.mark.parametrize("options, data", [(("-m", "hello"), b""), ((), b"hello\n")], ids=["messages", "pipe"])
def test_a_verbose_client_prints_version_cipher_and_subject_of_the_certificate(
    secure, client, certificates, options, data
):
    code, out, log = client(secure(pair=certificates.next_server), "-v", *options, data=data)
    assert (code, out) == (0, b"hello\n")
    words = r"connected to localhost:\d+ in [\d.]+ ms, TLSv1\.[23] [A-Z0-9_-]+, O=Next,CN=localhost\n"
    assert re.match(words, log)


def test_a_verbose_client_that_verifies_nothing_prints_no_subject(secure, client):
    code, out, log = client(secure(), "-v", "--insecure", "-m", "hello", cacert=None)
    assert (code, out) == (0, b"hello\n")
    assert re.match(r"connected to localhost:\d+ in [\d.]+ ms, TLSv1\.[23] [A-Z0-9_-]+\n", log)


@pytest.mark.needs_programs("openssl")
def test_openssl_s_client_holds_a_session(secure_command, program, certificates):
    server = secure_command()
    peer = program(
        *("openssl", "s_client", "-quiet", "-connect", "127.0.0.1:%d" % server.address[1]),
        *("-CAfile", certificates.authority.certificate, "-verify_return_error", "-verify_hostname", "localhost"),
    )
    peer.type(b"hello there\n")
    peer.until(b"hello there\n")
    peer.type(b"exit\n")
    server.read_log_until("disconnected: exit; 2 in")
    assert peer.finish()[0] == 0


@pytest.mark.needs_programs("openssl")
@pytest.mark.parametrize("version", ["1_2", "1_3"])
def test_openssl_s_client_receives_close_notify_in_both_versions(secure_command, program, certificates, version):
    server = secure_command()
    peer = program(
        *("openssl", "s_client", "-msg", f"-tls{version}", "-connect", "127.0.0.1:%d" % server.address[1]),
        *("-CAfile", certificates.authority.certificate),
    )
    peer.until(rb"(?s)Verif.*\n---\n")
    peer.type(b"exit\n")
    peer.until(rb"<<< TLS 1.[23], Alert \[length 0002\], warning close_notify")


@pytest.mark.needs_programs("ncat")
def test_ncat_holds_a_session(secure_command, program, certificates):
    server = secure_command()
    peer = program(
        *("ncat", "--ssl-verify", "--ssl-trustfile", certificates.authority.certificate),
        *("--ssl-servername", "localhost", "127.0.0.1", server.address[1]),
    )
    peer.type(b"hello there\n")
    peer.until(b"^hello there\n$")
    peer.type(b"exit\n")
    assert peer.finish() == (0, b"hello there\n")
    server.read_log_until("disconnected: exit; 2 in")


@pytest.mark.needs_programs("socat")
def test_socat_holds_a_session(secure_command, program, certificates):
    server = secure_command()
    where = f"OPENSSL:127.0.0.1:{server.address[1]},cafile={certificates.authority.certificate},commonname=localhost"
    peer = program("socat", *NO_WARNINGS, "-", where)
    peer.type(b"hello there\n")
    peer.until(b"^hello there\n$")
    peer.type(b"exit\n")
    assert peer.finish() == (0, b"hello there\n")
    server.read_log_until("disconnected: exit; 2 in")


@pytest.mark.needs_programs("socat")
def test_socat_gets_back_a_megabyte_that_it_pipes(secure_command, program, certificates):
    server = secure_command("--no-log-messages")
    where = f"OPENSSL:127.0.0.1:{server.address[1]},cafile={certificates.authority.certificate},commonname=localhost"
    data = b"0123456789abcde\n" * 65536
    code, out = program("socat", *NO_WARNINGS, "-t", str(DEADLINE), "-", where).finish(data)
    assert (code, out == data) == (0, True)
    server.read_log_until("disconnected: eof; 65536 in")


@pytest.mark.needs_programs("socat")
def test_our_client_holds_a_session_with_socat(program, client, certificates):
    """socat as an echo server."""
    pair = certificates.server
    where = f"OPENSSL-LISTEN:0,bind=127.0.0.1,cert={pair.certificate},key={pair.key},verify=0"
    port = program("socat", "-d", "-d", where, "PIPE").until(rb"listening on .*:(\d+)").group(1)
    outcome = client(("127.0.0.1", int(port)), "-m", "hello", "-m", "again", host="127.0.0.1")
    assert outcome == (0, b"hello\nagain\n", "")


def send_back(sock):
    for data in iter(lambda: sock.recv(65536), b""):
        sock.sendall(data)


def test_our_client_holds_a_session_with_another_tls_server(client, certificates):
    """A server like the one in the documentation of ``ssl``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificates.server)
    with socketserver.TCPServer(("127.0.0.1", 0), plain(send_back)) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = Background(server.handle_request)
        outcome = client(server, "-m", "hello", "-m", "again")
        serving.result()
    assert outcome == (0, b"hello\nagain\n", "")


def send_back_until_the_end(sock):
    """As asyncio does: the end of the client's output is that of the session, whatever was not sent yet."""
    data = sock.recv(65536)
    sock.settimeout(0.2)
    try:
        while data:
            data += sock.recv(65536) or pytest.fail("the end came before the reply")
    except socket.timeout:
        sock.settimeout(DEADLINE)
        sock.sendall(data.replace(b"exit\n", b""))


@pytest.mark.parametrize(
    "end, code, error",
    [
        (b"", 0, ""),
        (b"exit\n", 0, ""),
        (b"x" * 65537 + b"\n", 1, "echo.client: line 4 of the input is over 65536 bytes; it was not sent\n"),
    ],
    ids=["end", "exit", "error"],
)
def test_piped_input_comes_back_from_a_tls_server_that_knows_no_half_close(
    client, certificates, monkeypatch, end, code, error
):
    monkeypatch.setattr("echo.cli.client.pipe.Pipe.tls_patience", DEADLINE)  # however busy this machine is
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificates.server)
    with socketserver.TCPServer(("127.0.0.1", 0), plain(send_back_until_the_end)) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = Background(server.handle_request)
        outcome = client(server, data=b"1\n2\n3\n" + end)
        serving.result()
    assert outcome == (code, b"1\n2\n3\n", error)


@pytest.mark.parametrize("size", [1_000_000, pytest.param(20_000_000, marks=pytest.mark.stress)])
@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_piped_input_comes_back_unchanged_over_tls(secure, client, framing, size):
    server = secure(type("Handler", (echo.EchoRequestHandler,), {"framing": FRAMINGS[framing]()}))
    data = random.Random(7).getrandbits(8 * size).to_bytes(size, "big")
    if framing == "line":
        data = data.hex("\n", 100).encode()
    code, out, log = client(server, "--framing", framing, data=data)
    assert (code, log) == (0, "")
    assert out == data


def test_a_ping_over_tls_gets_all_back(secure, arguments):
    code, out, log = run_client(*arguments(secure(), *PATIENT, "--ping", "-c", "20", "-i", "0", "-s", "20000"))
    assert (code, log) == (0, "")
    assert "20 transmitted, 20 received, 0 corrupted, 0 lost, 0% loss" in out


@pytest.mark.parametrize(
    "options",
    [
        # sends all due messages and waits for the replies: some are measured however busy the machine is
        ("--rate", "50", "-d", "100ms", "-P", "1"),
        pytest.param(("--rate", "500", "-d", "5s"), marks=pytest.mark.slow),
        pytest.param(("-d", "5s"), marks=pytest.mark.slow),
        pytest.param(("-d", "5s", "--depth", "50"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_bench_over_tls_gets_all_back_although_its_ca_is_in_a_pipe(secure, run, arguments, certificates, options):
    """Row 61: each of its processes read the file anew, and found nothing in a pipe."""
    server = secure(echo.EchoRequestHandler)
    process = run("echo.client", *arguments(server, *PATIENT, "--bench", "-J", *options, cacert="/dev/stdin"))
    with open(certificates.authority.certificate, "rb") as authority:
        code, out = process.finish(authority.read())
    summary = json.loads(out.splitlines()[-1])
    assert code == 0
    assert process.log == "" or summary["client_is_bottleneck"]  # on a busy machine, which has a warning
    assert summary["rtt_samples"] > 0
    assert not any(summary[name] for name in ("corrupted", "lost", "errors"))
    assert not any(summary["wrong"].values())


def test_a_session_at_the_terminal_over_tls(secure, run, arguments):
    from support.terminal import Terminal  # which skips where there are no pseudo-terminals

    server = secure()
    user = Terminal(run, "echo.client", *arguments(server, *PATIENT))
    try:
        user.until(rb"connected to localhost:\d+ \(line framing\)[^\n]*\r\n> ")
        for line in (b"hello", b"two words"):
            user.type(line + b"\r")
            user.until(line + rb"\r\n" + line + rb"\r\n> ")
        user.type(b"exit\r")
        user.until(rb"3 messages sent \(1 exit\), 2 received")
        assert user.leave() == 0
    finally:
        os.close(user.master)
    eventually(lambda: server.stats().ended == {"exit": 1})


# Rejected certificates and clients.

FROM_NOBODY = "give the CA that issued it as --cacert"

UNKNOWN_CA = "the peer says: unknown CA; it does not trust the issuer of the certificate"

NO_ISSUER = "its certificate is not accepted: unable to get local issuer certificate"


def check_rejection(server, log, outcome, client_says, server_says):
    """Check that the client has ended with code 1 and printed one line, and that the server has logged one."""
    assert (outcome.code, outcome.out) == (1, b"")
    assert re.sub(r":\d+", ":PORT", outcome.log) == f"echo.client: {client_says}\n"
    eventually(lambda: server.stats().refused == {"handshake": 1})
    (record,) = log("refused")
    assert record.levelname == "INFO"
    assert re.sub(r":\d+", ":PORT", record.getMessage()) == f"127.0.0.1:PORT refused: handshake ({server_says})"


def test_a_client_that_trusts_another_ca_reports_that(secure, client, certificates, log):
    server = secure()
    outcome = client(server, "-m", "hello", cacert=certificates.other_authority.certificate)
    check_rejection(server, log, outcome, f"TLS with localhost:PORT failed: {NO_ISSUER}; {FROM_NOBODY}", UNKNOWN_CA)


def test_without_cacert_a_client_trusts_the_cas_of_the_system(secure, client, log):
    server = secure()
    outcome = client(server, "-m", "hello", cacert=None)
    check_rejection(server, log, outcome, f"TLS with localhost:PORT failed: {NO_ISSUER}; {FROM_NOBODY}", UNKNOWN_CA)


def test_a_ping_that_rejects_the_certificate_gives_no_other_reason(secure, client, certificates):
    """Row 60: its last line was that the server may not use TLS."""
    outcome = client(secure(), "--ping", "-c", "1", cacert=certificates.other_authority.certificate)
    assert (outcome.code, outcome.log) == (1, "")
    assert f"seq=1 lost: cannot connect: {NO_ISSUER}\n" in outcome.out.decode()


def test_a_client_reports_an_expired_certificate(secure, client, certificates, log):
    server = secure(pair=certificates.expired)
    words = (
        "TLS with localhost:PORT failed: its certificate is not accepted: certificate has expired;"
        " the server's owner has to renew it"
    )
    check_rejection(server, log, client(server, "-m", "hello"), words, "the peer says: certificate expired")


@pytest.mark.parametrize(
    "number, words",
    [
        (7, "certificate signature failure; give the CA that issued it as --cacert"),  # another with the same name
        (9, "certificate is not yet valid; check this machine's clock"),
        (12, "CRL has expired; give a current revocation list (CRL) of its issuer in --cacert"),
        (18, "self-signed certificate; give the CA that issued it as --cacert"),
        (23, "certificate revoked; the server's owner has to renew it"),
        (26, "unsuitable certificate purpose; check the server's certificate"),
        (66, "EE certificate key too weak; the server's owner has to renew it"),
        (79, "invalid CA certificate; give the CA that issued it as --cacert"),
    ],
)
def test_each_reason_why_a_certificate_is_rejected_has_its_own_advice(monkeypatch, number, words):
    """Row 60: the CA that issued it was asked for, whatever the reason was."""

    def reject(*args):
        error = ssl.SSLCertVerificationError("rejected")
        error.verify_code, error.verify_message = number, words.partition(";")[0]
        raise error

    monkeypatch.setattr(Endpoint, "open", reject)
    outcome = call_client("localhost:7000", "--tls", "--insecure", "-m", "hello")
    assert outcome[:2] == (1, b"")
    assert one_complaint(outcome, f"its certificate is not accepted: {words}\n")


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, "\u2024", "\u2024a"])
def test_a_name_that_no_certificate_can_have_is_a_usage_error(name):
    """Row 60: the host was called invalid."""
    outcome = call_client("localhost:1", "--tls", "--insecure", "--sni", name, "-m", "hello")
    assert outcome[:2] == (2, b"")
    assert one_complaint(outcome, f"argument --sni: invalid name {name!r}: expected one like echo.example.com")


def test_a_client_reports_a_wrong_host_name(secure, client, certificates, log):
    server = secure(pair=certificates.misnamed)
    words = (
        "TLS with localhost:PORT failed: its certificate is not accepted: Hostname mismatch, certificate is not"
        " valid for 'localhost'; give the name in it as --sni"
    )
    check_rejection(server, log, client(server, "-m", "hello"), words, "the peer says: bad certificate")


def test_a_client_may_expect_another_name_of_the_server(secure, client, certificates):
    server = secure(pair=certificates.misnamed)
    outcome = client(server, "-m", "hello", "--sni", "elsewhere.example", host="127.0.0.1")
    assert outcome == (0, b"hello\n", "")


@pytest.mark.parametrize("name", ["expired", "misnamed", "server"])
def test_an_insecure_client_accepts_every_certificate(secure, client, certificates, name):
    server = secure(pair=getattr(certificates, name))
    assert client(server, "-m", "hello", "--insecure", cacert=None) == (0, b"hello\n", "")


def own(pair):
    return ("--cert", pair.certificate, "--key", pair.key)


def logged(server, event):
    """The records of that event in a JSON log."""
    return [record for record in map(json.loads, server.log.splitlines()) if record["event"] == event]


def test_the_json_log_of_a_server_with_a_client_ca_names_its_clients(secure_command, client, certificates):
    server = secure_command("--tls-client-ca", certificates.authority.certificate, "--log-format", "json")
    assert client(server, "-m", "hello", *own(certificates.client)) == (0, b"hello\n", "")
    assert client(server, "-m", "hello").code == 1
    server.read_log_until('"disconnected"')
    server.read_log_until('"refused".*\n')
    assert server.terminate() == 0
    (record,) = logged(server, "connected")
    assert record["tls"] in ("TLSv1.2", "TLSv1.3")
    assert record["subject"] == "CN=alice,O=Example"
    assert record["message"].endswith(f"connected {record['tls']}, CN=alice,O=Example")
    (record,) = logged(server, "refused")
    assert record["message"].endswith("refused: handshake (it gave no certificate)")


def test_without_a_client_ca_the_json_log_has_the_version_and_no_subject(secure, client, log):
    assert client(secure(), "-m", "hello") == (0, b"hello\n", "")
    (record,) = log("connected")
    fields = json.loads(JsonFormatter().format(record))
    assert fields["tls"].startswith("TLSv1.") and fields["subject"] is None


CAUSES = {
    # the client's certificate: what the server logs, what the client prints
    None: ("it gave no certificate", "a client certificate is required"),
    "stranger": (NO_ISSUER, UNKNOWN_CA.partition(": ")[2]),
    "expired_client": ("its certificate is not accepted: certificate has expired", "certificate expired"),
}

needs_tls_1_3 = pytest.mark.skipif(not ssl.HAS_TLSv1_3, reason="the messages are those of TLS 1.3")


@needs_tls_1_3
@pytest.mark.parametrize("name", CAUSES)
def test_a_client_without_a_certificate_of_the_client_ca_is_rejected_with_the_cause(
    secure, client, certificates, log, name
):
    server = secure(client_ca=certificates.authority.certificate)
    server_says, client_says = CAUSES[name]
    outcome = client(server, "-m", "hello", *(() if name is None else own(getattr(certificates, name))))
    words = f"the connection was lost: the peer says: {client_says}; 1 of 1 replies are missing"
    check_rejection(server, log, outcome, words, server_says)


def check_that_it_reports_the_missing_certificate(code, output):
    assert code == 1
    assert "the peer says: a client certificate is required" in output
    assert "Traceback" not in output


@needs_tls_1_3
def test_a_rejected_client_reports_the_cause_when_it_pipes(secure, client, certificates):
    code, _, log = client(secure(client_ca=certificates.authority.certificate), data=b"hello\n")
    check_that_it_reports_the_missing_certificate(code, log)


@needs_tls_1_3
def test_a_rejected_client_reports_the_cause_at_the_terminal_and_guesses_no_other(secure, run, arguments, certificates):
    from support.terminal import Terminal

    user = Terminal(run, "echo.client", *arguments(secure(client_ca=certificates.authority.certificate), *PATIENT))
    try:
        assert user.leave() == 1
    finally:
        os.close(user.master)
    check_that_it_reports_the_missing_certificate(1, user.screen.decode())
    assert user.screen.endswith(b"0 messages sent, 0 received\r\n")


@needs_tls_1_3
def test_a_rejected_client_reports_the_cause_when_it_pings_and_guesses_no_other(secure, arguments, certificates):
    server = secure(client_ca=certificates.authority.certificate)
    code, out, log = run_client(*arguments(server, *PATIENT, "--ping", "-c", "1"))
    check_that_it_reports_the_missing_certificate(code, out)
    assert log == ""


@needs_tls_1_3
def test_a_rejected_client_reports_the_cause_when_it_measures(secure, run, arguments, certificates):
    server = secure(client_ca=certificates.authority.certificate)
    process = run("echo.client", *arguments(server, *PATIENT, "--bench", "-d", "100ms", "-P", "1"))
    code, out = process.finish()
    check_that_it_reports_the_missing_certificate(code, out.decode() + process.log)


@pytest.mark.needs_programs("openssl")
def test_a_client_with_tls_1_1_is_rejected_with_the_cause(secure, program, log):
    server = secure()
    peer = program(
        *("openssl", "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
        *("-connect", "127.0.0.1:%d" % server.server_address[1]),
    )
    code, said = peer.finish(b"")
    if b"unknown option" in said or b"no protocols available" in said:
        pytest.skip("this openssl has no TLS 1.1")
    assert code == 1
    assert b"alert protocol version" in said
    eventually(lambda: server.stats().refused)
    (record,) = log("refused")
    assert record.getMessage().endswith("handshake (it offers only versions of TLS that are too old)")


def rejections(server):
    """The rejected clients in the log, with the reasons."""
    return dict(re.findall(r"INFO    127\.0\.0\.1:(\d+) refused: handshake \((.*)\)", server.log))


def test_clients_that_do_no_handshake_get_one_line_each_and_disturb_nobody(secure_command, dial, talk):
    server = secure_command()
    with talk(server) as good:
        _, slow, talking, resetting = (dial(server.address) for _ in range(4))  # the first one sends nothing
        ports = {sock: str(sock.getsockname()[1]) for sock in (talking, resetting)}
        slow.sendall(b"\x16\x03\x01\x02\x00\x01")
        talking.sendall(b"hello\n")
        resetting.sendall(b"\x16\x03\x01")
        reset(resetting)
        assert good.echo(b"while they try") == b"while they try"
        read_all(talking)
        server.read_log_until(r"(?s)(refused: .*){2}\n")
        assert good.echo(b"and after") == b"and after"
    assert server.log.count("refused") == 2
    assert rejections(server) == {
        ports[talking]: "the data received is not TLS",
        ports[resetting]: "Connection reset by peer",
    }
    assert "Traceback" not in server.log


def test_the_option_handshake_timeout_limits_the_time_of_a_handshake(secure_command, dial):
    server = secure_command("--handshake-timeout", "100ms")
    silent, slow = dial(server.address), dial(server.address)
    ports = [str(sock.getsockname()[1]) for sock in (silent, slow)]
    slow.sendall(b"\x16\x03\x01\x02\x00\x01")
    server.read_log_until(r"(?s)(refused: .*){2}\n")
    assert rejections(server) == dict.fromkeys(ports, "the handshake was not done after 0.1 s")


def test_a_client_reports_a_server_without_tls(serve, client):
    class Greets(echo.EchoRequestHandler):
        def connection_made(self):
            self.send(b"welcome to a plain server")

    code, out, log = client(serve(Greets), "-m", "hello")
    assert (code, out) == (1, b"")
    assert re.fullmatch(
        r"echo\.client: TLS with localhost:\d+ failed: the data received is not TLS;"
        r" check that the server uses TLS, and what it requires\n",
        log,
    )


# Invalid options.


@pytest.fixture
def paths(certificates, tmp_path):
    (tmp_path / "no.pem").write_text("this is no PEM\n")
    return {
        "CERT": certificates.server.certificate,
        "KEY": certificates.server.key,
        "CA": certificates.authority.certificate,
        "OTHER": certificates.client.key,
        "LOCKED": certificates.locked_key,
        "MISSING": str(tmp_path / "missing.pem"),
        "NO-PEM": str(tmp_path / "no.pem"),
    }


def filled(text, paths):
    return re.sub(r"[A-Z][A-Z-]+[A-Z]", lambda match: paths.get(match.group(), match.group()), text)


@pytest.mark.parametrize(
    "options, words",
    [
        ("--tls-key KEY", "--tls-key needs --tls-cert"),
        ("--tls-client-ca CA", "--tls-client-ca needs --tls-cert"),
        ("--tls-cert MISSING", "cannot read MISSING: No such file or directory"),
        ("--tls-cert CERT", "CERT holds no certificate with its key, as PEM; name the key's file, too"),
        ("--tls-cert NO-PEM --tls-key KEY", "NO-PEM holds no certificate, as PEM"),
        ("--tls-cert CERT --tls-key OTHER", "the key in OTHER is not that of the certificate in CERT"),
        ("--tls-cert CERT --tls-key LOCKED", "the key in LOCKED needs a password; give one without"),
        ("--tls-cert CERT --tls-key KEY --tls-client-ca NO-PEM", "NO-PEM holds no certificate, as PEM"),
        ("--tls-cert CERT --tls-key KEY --handshake-timeout soon", "invalid duration 'soon'"),
        ("--tls-cert=", "argument --tls-cert: the name of a file is empty"),
        ("--tls-cert CERT --tls-key=", "argument --tls-key: the name of a file is empty"),
        ("--tls-cert CERT --tls-key KEY --tls-client-ca=", "argument --tls-client-ca: the name of a file is empty"),
    ],
)
def test_invalid_tls_options_of_the_server_are_a_usage_error(capsys, paths, options, words):
    code, line = error_line(capsys, server_main, "0", *filled(options, paths).split())
    assert code == 2
    assert filled(words, paths) in line and "--help" in line


def test_the_password_of_a_key_is_never_read_from_standard_input(run, paths):
    server = run("echo.server", "0", *filled("--tls-cert CERT --tls-key LOCKED", paths).split())
    assert server.finish(b"secret\n") == (2, b"")
    assert server.log.count("\n") == 1
    assert "needs a password; give one without" in server.log


@pytest.mark.parametrize(
    "options, words",
    [
        ("--cacert CA", "--cacert needs --tls"),
        ("--cert CERT", "--cert needs --tls"),
        ("--key KEY", "--key needs --cert"),
        ("--sni localhost", "--sni needs --tls"),
        ("--insecure", "--insecure needs --tls"),
        ("--tls --insecure --cacert CA", "--insecure and --cacert exclude each other; give one of them"),
        ("--tls --unix MISSING", "--tls over --unix needs --sni"),
        ("--tls --key KEY", "--key needs --cert"),
        ("--tls --cacert MISSING", "cannot read MISSING: No such file or directory"),
        ("--tls --cacert NO-PEM", "NO-PEM holds no certificate, as PEM"),
        ("--tls --cert CERT --key OTHER", "the key in OTHER is not that of the certificate in CERT"),
        ("--tls --cert CERT --key LOCKED", "the key in LOCKED needs a password; give one without"),
        ("--tls --cacert=", "argument --cacert: the name of a file is empty"),
        ("--tls --cert=", "argument --cert: the name of a file is empty"),
        ("--tls --cert CERT --key=", "argument --key: the name of a file is empty"),
    ],
)
def test_invalid_tls_options_of_the_client_are_a_usage_error(capsys, paths, options, words):
    code, line = error_line(capsys, client_main, *filled(options, paths).split(), "-m", "hello")
    assert code == 2
    assert filled(words, paths) in line


@pytest.mark.parametrize(
    "lack, words",
    [
        (OSError(errno.EMFILE, "no descriptor"), "cannot read {}: no descriptor; raise the limit"),
        (OSError(errno.EFBIG, "no room"), "cannot read {}: no room; raise the limit of file sizes (ulimit -f)"),
        (OSError(errno.ENOSPC, "no room"), "cannot read {}: no room; free some space on the disk"),
        (MemoryError(), "not enough memory"),
    ],
    ids=["descriptors", "limit", "disk", "memory"],
)
def test_a_certificate_that_cannot_be_read_for_want_of_something_is_no_usage_error(
    capsys, monkeypatch, certificates, lack, words
):
    """Row 65."""
    path, opened = certificates.authority.certificate, os.open

    def open_others(name, *arguments, **options):
        if name == path:
            raise lack
        return opened(name, *arguments, **options)

    monkeypatch.setattr(os, "open", open_others)
    code, line = error_line(capsys, client_main, "--tls", "--cacert", path, "-m", "hello")
    assert code == 1
    assert words.format(path) in line


# SIGHUP.

RELOADED = "SIGHUP: certificates and networks read again"

needs_sighup = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")


@pytest.fixture
def live(tmp_path, certificates):
    """``live(pair)`` copies a certificate and its key over the server's own, and returns those paths."""
    paths = type(certificates.server)(str(tmp_path / "live.pem"), str(tmp_path / "live.key"))

    def put(pair):
        for source, target in zip(pair, paths):
            shutil.copyfile(source, target)
        return paths

    return put


@needs_sighup
def test_sighup_gives_new_sessions_the_new_certificate_and_old_ones_go_on(secure_command, talk, certificates, live):
    server = secure_command(pair=live(certificates.server))
    with talk(server) as old:
        assert subject(old) == "CN=localhost"
        live(certificates.next_server)
        with talk(server) as other:
            assert subject(other) == "CN=localhost"  # nothing changes before the signal
        server.popen.send_signal(signal.SIGHUP)
        server.read_log_until(RELOADED)
        with talk(server) as new:
            assert subject(new) == "O=Next,CN=localhost"
            assert new.echo(b"new") == b"new"
        assert old.echo(b"old") == b"old"
    assert server.terminate() == 0


@needs_sighup
def test_a_broken_file_at_sighup_is_logged_and_the_old_certificate_stays(secure_command, talk, certificates, live):
    paths = live(certificates.server)
    server = secure_command(pair=paths)
    with open(paths.certificate, "w", encoding="ascii") as file:
        file.write("half of what the program wan")
    server.popen.send_signal(signal.SIGHUP)
    match = server.read_log_until(r"WARNING SIGHUP: (.*)\n")
    words = f"{paths.certificate} holds no certificate, as PEM; all stays as it was"
    assert match.group(1) == words
    with talk(server) as client:
        assert subject(client) == "CN=localhost"
        assert client.echo(b"still here") == b"still here"
    live(certificates.next_server)
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until(RELOADED)
    with talk(server) as client:
        assert subject(client) == "O=Next,CN=localhost"


@needs_sighup
@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that can be opened and not read")
def test_a_file_that_cannot_be_read_at_sighup_is_logged_and_the_old_certificate_stays(
    secure_command, talk, certificates, live
):
    paths = live(certificates.server)
    server = secure_command(pair=paths)
    for path in paths:
        os.rename(path, path + ".good")
        os.symlink("/proc/self/mem", path)
        server.log = ""
        server.popen.send_signal(signal.SIGHUP)
        words = server.read_log_until(r"WARNING SIGHUP: (.*)\n").group(1)
        assert words.startswith(f"cannot read {path}: ")
        with talk(server) as client:
            assert client.echo(b"still here") == b"still here"
        os.replace(path + ".good", path)


@needs_sighup
def test_sighup_reads_the_client_ca_again(secure_command, client, certificates, tmp_path):
    ca = tmp_path / "clients.pem"
    shutil.copyfile(certificates.authority.certificate, str(ca))
    server = secure_command("--tls-client-ca", str(ca))
    assert client(server, "-m", "hello", *own(certificates.client)) == (0, b"hello\n", "")
    shutil.copyfile(certificates.other_authority.certificate, str(ca))
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until(RELOADED)
    assert client(server, "-m", "hello", *own(certificates.client)).code == 1
    assert client(server, "-m", "hello", *own(certificates.stranger)) == (0, b"hello\n", "")
    server.read_log_until("connected TLSv1.*, CN=mallory")


def test_a_client_ca_that_has_lost_its_revocation_lists_is_an_error(certificates, monkeypatch):
    """Row 72: while its file was being written, revoked clients were let in."""
    contexts = [server_context(*certificates.server) for _ in range(3)]
    for context in contexts[:2]:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    given = iter(contexts)
    monkeypatch.setattr(command, "server_context", lambda *args, **options: next(given))
    files = command.Files(parser().parse_complete(["--tls-cert", "own.pem", "--tls-client-ca", "/ca.pem"]))
    assert [files.server_options()["ssl_context"] for _ in range(2)] == contexts[:2]
    with pytest.raises(ValueError, match=r"^/ca\.pem holds no revocation list \(CRL\) now, but did before"):
        files.server_options()


@needs_sighup
def test_sighup_reads_the_networks_again_and_a_broken_list_changes_nothing(
    secure_command, talk, dial, certificates, live, tmp_path
):
    denied = tmp_path / "denied"
    denied.write_text("# not us\n192.0.2.0/24\n")
    server = secure_command("--deny", f"@{denied}", pair=live(certificates.server))
    with talk(server) as old:
        assert old.echo(b"hello") == b"hello"
        denied.write_text("192.0.2.0/24\nloopback\n")
        live(certificates.next_server)
        server.popen.send_signal(signal.SIGHUP)
        match = server.read_log_until(r"WARNING SIGHUP: (.*)\n")
        assert f"{denied}, line 2: invalid network 'loopback'" in match.group(1)
        with talk(server) as client:
            assert subject(client) == "CN=localhost"  # all or nothing
        denied.write_text("192.0.2.0/24\n127.0.0.0/8  # us\n")
        server.popen.send_signal(signal.SIGHUP)
        server.read_log_until(RELOADED)
        assert read_all(dial(server.address)) == b""
        server.read_log_until(r"refused: denied \(not from this address\)")
        assert old.echo(b"I was here before") == b"I was here before"
        os.remove(str(denied))
        server.popen.send_signal(signal.SIGHUP)
        server.read_log_until(re.escape(f"cannot read {denied}: No such file or directory; all stays as it was"))
        assert read_all(dial(server.address)) == b""


@needs_sighup
def test_sighup_without_tls_reads_the_networks_again(server_command, dial, tmp_path):
    allowed = tmp_path / "allowed"
    allowed.write_text("192.0.2.0/24\n")
    server = server_command("--allow", f"@{allowed}")
    assert read_all(dial(server.address)) == b""
    allowed.write_text("127.0.0.1\n")
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until(RELOADED)
    client = dial(server.address)
    client.sendall(b"hello\n")
    assert read_exactly(client, 6) == b"hello\n"


# Several processes.

needs_fork = pytest.mark.skipif(not workers.SUPPORTED, reason="this system has no fork()")


@pytest.fixture
def two_workers(secure_command, certificates, live, tmp_path):
    """The command with two workers, whose handler replies to ``pid`` with its process number."""
    (tmp_path / "pids.py").write_text(PIDS)
    server = secure_command(
        *("--workers", "2", "--handler", "pids:Pids"), pair=live(certificates.server), cwd=str(tmp_path)
    )
    server.read_log_until(r"(?s)(worker \d is process \d+.*){2}")
    return server


def pids(server):
    """The latest process of each worker, by the worker's number."""
    return {int(number): int(pid) for number, pid in re.findall(r"worker (\d+) is process (\d+)", server.log)}


def subjects_by_process(server, talk, count):
    """The subject of the certificate of each of ``count`` workers, by process."""
    found, clients = {}, []

    def all_there():
        clients.append(talk(server))
        found[process_of(clients[-1])] = subject(clients[-1])
        return len(found) == count

    try:
        eventually(all_there)
    finally:
        for client in clients:
            client.close()
    return found


def process_of(client):
    client.send(b"pid")
    return int(client.recv())


@needs_fork
def test_all_workers_have_tls_and_a_pipe_through_one_comes_back(two_workers, client, talk):
    assert subjects_by_process(two_workers, talk, 2) == {pid: "CN=localhost" for pid in pids(two_workers).values()}
    data = b"0123456789abcde\n" * 10_000
    assert client(two_workers, data=data) == (0, data, "")
    assert two_workers.terminate() == 0


@needs_fork
@needs_sighup
def test_sighup_reaches_every_worker_and_one_that_starts_later(two_workers, talk, certificates, live):
    server = two_workers
    with talk(server) as old:
        live(certificates.next_server)
        server.popen.send_signal(signal.SIGHUP)
        server.read_log_until(f"(?s)({RELOADED}.*){{3}}")  # by the parent and by each worker
        first = pids(server)
        assert subjects_by_process(server, talk, 2) == {pid: "O=Next,CN=localhost" for pid in first.values()}
        spared = process_of(old)
        killed = next(number for number, pid in first.items() if pid != spared)
        os.kill(first[killed], signal.SIGKILL)
        server.read_log_until(
            rf"(?s)worker {killed}: process {first[killed]} was killed.*worker {killed} is process \d+"
        )
        second = pids(server)
        assert second[killed] != first[killed]
        assert subjects_by_process(server, talk, 2) == {pid: "O=Next,CN=localhost" for pid in second.values()}
        assert old.echo(b"still here") == b"still here"
    assert server.terminate() == 0


@needs_fork
@needs_sighup
def test_a_broken_file_at_sighup_leaves_the_old_certificate_in_every_worker(two_workers, talk, certificates, live):
    server = two_workers
    paths = live(certificates.server)
    with open(paths.key, "w", encoding="ascii") as file:
        file.write("no key")
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("all stays as it was")
    assert subjects_by_process(server, talk, 2) == {pid: "CN=localhost" for pid in pids(server).values()}
    killed = pids(server)[0]
    os.kill(killed, signal.SIGKILL)
    server.read_log_until(rf"(?s)process {killed} was killed.*worker 0 is process \d+")
    assert subjects_by_process(server, talk, 2) == {pid: "CN=localhost" for pid in pids(server).values()}
    assert server.terminate() == 0
