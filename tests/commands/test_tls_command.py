"""TLS on both command lines: sessions with the programs that people have, who is refused and in which words, SIGHUP."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl

import pytest

import echo
from echo.certificates import client_context
from echo.server import workers
from support import DEADLINE, eventually, read_all, read_exactly

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")

NO_WARNINGS = ("-lf", os.devnull)  # of socat 1.8, that it looks at no revocation list; they would stand in its output

PIDS = """\
import echo, os

class Pids(echo.EchoRequestHandler):
    def message_received(self, message):
        self.send(b"%d" % os.getpid() if message == b"pid" else message)
"""


@pytest.fixture
def secure_command(server_command, certificates):
    """``secure_command(*options)``: the server's command with a good certificate."""

    def start(*options, pair=certificates.server, **popen_options):
        return server_command("--tls-cert", pair.certificate, "--tls-key", pair.key, *options, **popen_options)

    return start


@pytest.fixture
def client(run, certificates):
    """``client(server, *options)``: the client's command, which believes the tests' CA."""

    def start(server, *options, host="localhost", cacert=certificates.authority.certificate, **popen_options):
        believed = () if cacert is None else ("--cacert", cacert)
        return run("echo.client", host, str(server.address[1]), "--tls", *believed, *options, **popen_options)

    return start


@pytest.fixture
def talk(certificates):
    """``talk(server)``: an ``echo.Client``."""
    context = client_context(certificates.authority.certificate)

    def connect(server):
        return echo.connect(server.address, ssl_context=context, server_hostname="localhost", timeout=DEADLINE)

    return connect


def subject(client):
    """Of the certificate that the server showed."""
    return client.connection.socket.subject


def refusals(server):
    """What the log says of those who were refused, without their ports."""
    return re.findall(r"(\w+) +127\.0\.0\.1:\d+ refused: (.*)", server.log)


# Sessions.


def test_the_first_line_says_that_it_speaks_tls(secure_command):
    assert re.search(r"INFO    listening on 127\.0\.0\.1:\d+ with TLS\n", secure_command().log)


def test_our_own_client_holds_a_session_over_tls(secure_command, client):
    server = secure_command()
    process = client(server, "-m", "hello", "-m", "exit")
    assert process.finish() == (0, b"hello\n")
    assert process.log == ""
    server.read_log_until("disconnected: exit")
    assert re.search(r" 127\.0\.0\.1:\d+ connected TLSv1\.[23]\n", server.log)


@pytest.mark.parametrize("arguments, data", [(("-m", "hello"), None), ((), b"hello\n")], ids=["messages", "pipe"])
def test_a_verbose_client_tells_the_version_the_cipher_and_whose_certificate_it_saw(
    secure_command, client, certificates, arguments, data
):
    process = client(secure_command(pair=certificates.next_server), "-v", *arguments)
    assert process.finish(data) == (0, b"hello\n")
    words = r"connected to localhost:\d+ in [\d.]+ ms, TLSv1\.[23] [A-Z0-9_-]+, O=Next,CN=localhost\n"
    assert re.match(words, process.log)


def test_a_verbose_client_that_verifies_nothing_names_nobody(secure_command, client):
    process = client(secure_command(), "-v", "--insecure", "-m", "hello", cacert=None)
    assert process.finish() == (0, b"hello\n")
    assert re.match(r"connected to localhost:\d+ in [\d.]+ ms, TLSv1\.[23] [A-Z0-9_-]+\n", process.log)


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


@pytest.mark.parametrize("version", ["1_2", "1_3"])
def test_openssl_s_client_sees_the_end_said_in_both_versions(secure_command, program, certificates, version):
    server = secure_command()
    peer = program(
        *("openssl", "s_client", "-msg", f"-tls{version}", "-connect", "127.0.0.1:%d" % server.address[1]),
        *("-CAfile", certificates.authority.certificate),
    )
    peer.until(rb"(?s)Verif.*\n---\n")
    peer.type(b"exit\n")
    peer.until(rb"<<< TLS 1.[23], Alert \[length 0002\], warning close_notify")


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


def test_socat_holds_a_session(secure_command, program, certificates):
    server = secure_command()
    where = f"OPENSSL:127.0.0.1:{server.address[1]},cafile={certificates.authority.certificate},commonname=localhost"
    peer = program("socat", *NO_WARNINGS, "-", where)
    peer.type(b"hello there\n")
    peer.until(b"^hello there\n$")
    peer.type(b"exit\n")
    assert peer.finish() == (0, b"hello there\n")
    server.read_log_until("disconnected: exit; 2 in")


def test_socat_gets_back_a_megabyte_that_it_pipes(secure_command, program, certificates):
    server = secure_command("--no-log-messages")
    where = f"OPENSSL:127.0.0.1:{server.address[1]},cafile={certificates.authority.certificate},commonname=localhost"
    data = b"0123456789abcde\n" * 65536
    code, out = program("socat", *NO_WARNINGS, "-t", str(DEADLINE), "-", where).finish(data)
    assert (code, out == data) == (0, True)
    server.read_log_until("disconnected: eof; 65536 in")


def test_our_client_holds_a_session_with_another_tls_server(program, client, certificates):
    """socat sends back whatever comes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = certificates.server
    program(
        "socat",
        "-d",
        "-d",
        f"OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,cert={pair.certificate},key={pair.key},verify=0",
        "PIPE",
    ).until(b"listening on")
    other = type("Other", (), {"address": ("127.0.0.1", port)})
    process = client(other, "-m", "hello", "-m", "again", host="127.0.0.1")
    assert process.finish() == (0, b"hello\nagain\n")
    assert process.log == ""


@pytest.mark.parametrize("framing", ["line", "length", "raw"])
def test_a_pipe_of_megabytes_over_tls_comes_back_as_it_was_sent(secure_command, client, framing):
    server = secure_command("--framing", framing, "--no-log-messages")
    data = random.Random(7).getrandbits(8 * 5_000_000).to_bytes(5_000_000, "big")
    if framing == "line":
        data = data.hex("\n", 100).encode()
    process = client(server, "--framing", framing)
    code, out = process.finish(data)
    assert (code, process.log) == (0, "")
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def test_a_ping_over_tls_gets_all_back(secure_command, client):
    process = client(secure_command("--no-log-messages"), "--ping", "-c", "20", "-i", "0", "-s", "20000")
    code, out = process.finish()
    assert (code, process.log) == (0, "")
    assert b"20 transmitted, 20 received, 0 corrupted, 0% loss" in out


@pytest.mark.parametrize("options", [(), ("--depth", "50"), ("--rate", "500")], ids=" ".join)
def test_a_bench_over_tls_gets_all_back(secure_command, client, options):
    process = client(secure_command("--no-log-messages"), "--bench", "-d", "500ms", "-J", *options)
    code, out = process.finish()
    assert (code, process.log) == (0, "")
    summary = json.loads(out.splitlines()[-1])
    assert summary["messages"] > 0
    assert not any(summary[name] for name in ("wrong", "lost", "errors"))


def test_a_session_at_the_terminal_over_tls(secure_command, run, certificates):
    from support.terminal import Terminal  # which skips where there are no pseudo-terminals

    server = secure_command()
    user = Terminal(
        run, "echo.client", "localhost", str(server.address[1]), "--tls", "--cacert", certificates.authority.certificate
    )
    try:
        user.until(rb"connected to localhost:\d+ \(line framing\)[^\n]*\r\n> ")
        for line in (b"hello", b"two words"):
            user.type(line + b"\r")
            user.until(line + rb"\r\n" + line + rb"\r\n> ")
        user.type(b"exit\r")
        user.until(rb"3 messages sent, 2 received")
        assert user.leave() == 0
    finally:
        os.close(user.master)
    server.read_log_until("disconnected: exit")


# Who is refused, and in which words.

FROM_NOBODY = "give the CA that issued it as --cacert"

UNKNOWN_CA = "the peer says: unknown CA; the certificate was not issued by one that it trusts"

NO_ISSUER = "its certificate is not accepted: unable to get local issuer certificate"


def refused(server, process, client_says, server_says):
    """The client ends with code 1 and one line, the server logs one line."""
    assert process.finish() == (1, b"")
    assert re.sub(r":\d+", ":PORT", process.log) == f"echo.client: {client_says}\n"
    server.read_log_until("refused: ")
    assert server.terminate() == 0
    assert refusals(server) == [("INFO", f"handshake ({server_says})")]
    assert "Traceback" not in server.log
    return True


def test_a_client_that_trusts_another_ca_is_refused_with_the_cause(secure_command, client, certificates):
    server = secure_command()
    process = client(server, "-m", "hello", cacert=certificates.other_authority.certificate)
    assert refused(server, process, f"no TLS with localhost:PORT: {NO_ISSUER}; {FROM_NOBODY}", UNKNOWN_CA)


def test_a_certificate_is_verified_by_the_systems_authorities_unless_told_otherwise(secure_command, client):
    server = secure_command()
    process = client(server, "-m", "hello", cacert=None)
    assert refused(server, process, f"no TLS with localhost:PORT: {NO_ISSUER}; {FROM_NOBODY}", UNKNOWN_CA)


def test_an_expired_certificate_is_refused_with_the_cause(secure_command, client, certificates):
    server = secure_command(pair=certificates.expired)
    words = (
        "no TLS with localhost:PORT: its certificate is not accepted: certificate has expired;"
        " whoever runs the server has to renew it"
    )
    assert refused(server, client(server, "-m", "hello"), words, "the peer says: certificate expired")


def test_a_wrong_host_name_is_refused_with_the_cause(secure_command, client, certificates):
    server = secure_command(pair=certificates.misnamed)
    words = (
        "no TLS with localhost:PORT: its certificate is not accepted: Hostname mismatch, certificate is not valid for"
        " 'localhost'; give the name that stands in it as --sni"
    )
    assert refused(server, client(server, "-m", "hello"), words, "the peer says: bad certificate")


def test_another_name_may_be_expected_of_the_server(secure_command, client, certificates):
    server = secure_command(pair=certificates.misnamed)
    process = client(server, "-m", "hello", "--sni", "elsewhere.example", host="127.0.0.1")
    assert process.finish() == (0, b"hello\n")
    assert process.log == ""


@pytest.mark.parametrize("name", ["expired", "misnamed", "server"])
def test_insecure_believes_whoever_answers(secure_command, client, certificates, name):
    server = secure_command(pair=getattr(certificates, name))
    process = client(server, "-m", "hello", "--insecure", cacert=None)
    assert process.finish() == (0, b"hello\n")
    assert process.log == ""


def own(pair):
    return ("--cert", pair.certificate, "--key", pair.key)


def test_a_client_with_a_certificate_of_the_client_ca_gets_in_and_is_named(secure_command, client, certificates):
    server = secure_command("--tls-client-ca", certificates.authority.certificate, "--log-format", "json")
    process = client(server, "-m", "hello", *own(certificates.client))
    assert process.finish() == (0, b"hello\n")
    server.read_log_until('"disconnected"')
    server.terminate()
    (record,) = [each for each in map(json.loads, server.log.splitlines()) if each["event"] == "connected"]
    assert record["tls"] in ("TLSv1.2", "TLSv1.3")
    assert record["subject"] == "CN=alice,O=Example"
    assert record["message"].endswith(f"connected {record['tls']}, CN=alice,O=Example")


def test_without_a_client_ca_the_json_log_names_the_version_and_nobody(secure_command, client):
    server = secure_command("--log-format", "json")
    assert client(server, "-m", "hello").finish() == (0, b"hello\n")
    server.read_log_until('"disconnected"')
    server.terminate()
    (record,) = [each for each in map(json.loads, server.log.splitlines()) if each["event"] == "connected"]
    assert record["tls"].startswith("TLSv1.") and record["subject"] is None


CAUSES = {
    # the client's certificate: what the server says, what the client says
    None: ("it gave no certificate", "certificate required; it lets in only who gives one"),
    "stranger": (NO_ISSUER, UNKNOWN_CA.partition(": ")[2]),
    "expired_client": ("its certificate is not accepted: certificate has expired", "certificate expired"),
}

needs_tls_1_3 = pytest.mark.skipif(not ssl.HAS_TLSv1_3, reason="the words are those of TLS 1.3")


@needs_tls_1_3
@pytest.mark.parametrize("name", CAUSES)
def test_a_client_without_a_certificate_of_the_client_ca_is_refused_with_the_cause(
    secure_command, client, certificates, name
):
    server = secure_command("--tls-client-ca", certificates.authority.certificate)
    server_says, client_says = CAUSES[name]
    process = client(server, "-m", "hello", *(() if name is None else own(getattr(certificates, name))))
    words = f"the connection was lost: the peer says: {client_says}; 1 of 1 replies are missing"
    assert refused(server, process, words, server_says)


@needs_tls_1_3
@pytest.mark.parametrize("options", [(), ("--ping", "-c", "1"), ("--bench", "-d", "500ms", "-P", "1")], ids=" ".join)
def test_who_is_not_let_in_hears_why_in_every_mode(secure_command, client, certificates, options):
    server = secure_command("--tls-client-ca", certificates.authority.certificate)
    process = client(server, *options)
    code, out = process.finish(b"hello\n")
    assert code == 1
    assert "the peer says: certificate required; it lets in only who gives one" in process.log + out.decode()
    server.read_log_until(r"refused: handshake \(it gave no certificate\)")
    assert "Traceback" not in process.log


def test_old_versions_of_tls_are_refused_with_the_cause(secure_command, program):
    server = secure_command()
    peer = program(
        *("openssl", "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
        *("-connect", "127.0.0.1:%d" % server.address[1]),
    )
    code, said = peer.finish(b"")
    if b"unknown option" in said or b"no protocols available" in said:
        pytest.skip("this openssl speaks no TLS 1.1")
    assert code == 1
    assert b"alert protocol version" in said
    server.read_log_until("refused: ")
    assert refusals(server) == [("INFO", "handshake (it offers only versions of TLS that are too old)")]


def test_silent_slow_plain_and_resetting_clients_get_one_line_each_and_hurt_nobody(secure_command, dial, talk):
    server = secure_command("--handshake-timeout", "500ms")
    with talk(server) as good:
        silent, slow, plain, resetting = (dial(server.address) for _ in range(4))
        slow.sendall(b"\x16\x03\x01\x02\x00\x01")
        plain.sendall(b"hello\n")
        resetting.sendall(b"\x16\x03\x01")
        resetting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peers = {"127.0.0.1:%d" % sock.getsockname()[1]: sock for sock in (silent, slow, plain, resetting)}
        resetting.close()
        assert good.echo(b"while they try") == b"while they try"
        for sock in (silent, slow, plain):
            read_all(sock)
        server.read_log_until(r"(?s)(refused: .*){4}")
        assert good.echo(b"and after") == b"and after"
    assert server.terminate() == 0
    said = dict(re.findall(r"INFO    (127\.0\.0\.1:\d+) refused: handshake \((.*)\)", server.log))
    assert server.log.count("refused") == 4
    assert said == dict(
        zip(
            peers,
            [
                "the handshake was not done after 0.5 s",
                "the handshake was not done after 0.5 s",
                "what came is no TLS",
                "Connection reset by peer",
            ],
        )
    )
    assert "Traceback" not in server.log


def test_a_client_of_a_server_without_tls_is_told_in_one_line(server_command, client, tmp_path):
    (tmp_path / "greets.py").write_text(
        "import echo\n"
        "class Greets(echo.EchoRequestHandler):\n"
        "    def connection_made(self):\n"
        "        self.send(b'welcome to a plain server')\n"
    )
    server = server_command("--handler", "greets:Greets", cwd=str(tmp_path))
    process = client(server, "-m", "hello")
    assert process.finish() == (1, b"")
    assert re.fullmatch(
        r"echo\.client: no TLS with localhost:\d+: what came is no TLS; check that the server speaks it, and what it"
        r" asks for\n",
        process.log,
    )


# Command lines that make no sense.


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
    "arguments, words",
    [
        ("--tls-key KEY", "--tls-key and --tls-client-ca are for --tls-cert; give that, too"),
        ("--tls-client-ca CA", "--tls-key and --tls-client-ca are for --tls-cert; give that, too"),
        ("--tls-cert MISSING", "cannot read MISSING: No such file or directory"),
        ("--tls-cert CERT", "CERT holds no certificate with its key, as PEM; name the key's file, too"),
        ("--tls-cert NO-PEM --tls-key KEY", "NO-PEM and KEY hold no certificate with its key, as PEM"),
        ("--tls-cert CERT --tls-key OTHER", "the key in OTHER is not that of the certificate in CERT"),
        ("--tls-cert CERT --tls-key LOCKED", "the key in LOCKED needs a password; give one without"),
        ("--tls-cert CERT --tls-key KEY --tls-client-ca NO-PEM", "NO-PEM holds no certificate, as PEM"),
        ("--tls-cert CERT --tls-key KEY --handshake-timeout soon", "'soon' is no duration"),
    ],
)
def test_a_servers_tls_options_that_make_no_sense_get_one_line_and_code_2(run, paths, arguments, words):
    server = run("echo.server", "0", *filled(arguments, paths).split())
    assert server.finish(b"secret\n") == (2, b"")
    assert server.log.count("\n") == 1
    assert filled(words, paths) in server.log and "--help" in server.log


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--cacert CA", "--cacert is for --tls"),
        ("--cert CERT", "--cert is for --tls"),
        ("--key KEY", "--key is for --tls"),
        ("--sni localhost", "--sni is for --tls"),
        ("--insecure", "--insecure is for --tls"),
        ("--tls --insecure --cacert CA", "--insecure verifies nothing, and --cacert is to verify by; give one of them"),
        ("--tls --unix MISSING", "--tls over --unix needs --sni"),
        ("--tls --key KEY", "--key is the key of a --cert; give that, too"),
        ("--tls --cacert MISSING", "cannot read MISSING: No such file or directory"),
        ("--tls --cacert NO-PEM", "NO-PEM holds no certificate, as PEM"),
        ("--tls --cert CERT --key OTHER", "the key in OTHER is not that of the certificate in CERT"),
        ("--tls --cert CERT --key LOCKED", "the key in LOCKED needs a password; give one without"),
    ],
)
def test_a_clients_tls_options_that_make_no_sense_get_one_line_and_code_2(run, paths, arguments, words):
    process = run("echo.client", *filled(arguments, paths).split(), "-m", "hello")
    assert process.finish(b"") == (2, b"")
    assert process.log.count("\n") == 1
    assert filled(words, paths) in process.log


# SIGHUP.

RELOADED = "SIGHUP: certificates and networks read again"

needs_sighup = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")


@pytest.fixture
def live(tmp_path, certificates):
    """``live(pair)`` puts another certificate where the server finds its own."""
    paths = type(certificates.server)(str(tmp_path / "live.pem"), str(tmp_path / "live.key"))

    def put(pair):
        for source, target in zip(pair, paths):
            shutil.copyfile(source, target)
        return paths

    return put


@needs_sighup
def test_sighup_gives_new_sessions_the_new_certificate_and_old_ones_live_on(secure_command, talk, certificates, live):
    server = secure_command(pair=live(certificates.server))
    with talk(server) as old:
        assert subject(old) == "CN=localhost"
        live(certificates.next_server)
        with talk(server) as other:
            assert subject(other) == "CN=localhost"  # nothing happens before the signal
        server.popen.send_signal(signal.SIGHUP)
        server.read_log_until(RELOADED)
        with talk(server) as new:
            assert subject(new) == "O=Next,CN=localhost"
            assert new.echo(b"new") == b"new"
        assert old.echo(b"old") == b"old"
    assert server.terminate() == 0


@needs_sighup
def test_a_broken_file_at_sighup_keeps_the_old_certificate_and_says_so(secure_command, talk, certificates, live):
    paths = live(certificates.server)
    server = secure_command(pair=paths)
    with open(paths.certificate, "w", encoding="ascii") as file:
        file.write("half of what was to be wri")
    server.popen.send_signal(signal.SIGHUP)
    match = server.read_log_until(r"WARNING SIGHUP: (.*)\n")
    words = f"{paths.certificate} and {paths.key} hold no certificate with its key, as PEM; all stays as it was"
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
@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file here that can be opened and not read")
@pytest.mark.parametrize("number", [0, 1], ids=["certificate", "key"])
def test_a_file_that_fails_while_sighup_reads_it_keeps_the_old_certificate_and_says_so(
    secure_command, talk, certificates, live, number
):
    paths = live(certificates.server)
    server = secure_command(pair=paths)
    os.remove(paths[number])
    os.symlink("/proc/self/mem", paths[number])
    server.popen.send_signal(signal.SIGHUP)
    words = server.read_log_until(r"WARNING SIGHUP: (.*)\n").group(1)
    assert words.startswith(f"cannot read {paths.certificate} or {paths.key}: ")
    with talk(server) as client:
        assert client.echo(b"still here") == b"still here"


@needs_sighup
def test_sighup_reads_the_client_ca_again(secure_command, client, certificates, tmp_path):
    ca = tmp_path / "clients.pem"
    shutil.copyfile(certificates.authority.certificate, str(ca))
    server = secure_command("--tls-client-ca", str(ca))
    assert client(server, "-m", "hello", *own(certificates.client)).finish() == (0, b"hello\n")
    shutil.copyfile(certificates.other_authority.certificate, str(ca))
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until(RELOADED)
    assert client(server, "-m", "hello", *own(certificates.client)).finish()[0] == 1
    assert client(server, "-m", "hello", *own(certificates.stranger)).finish() == (0, b"hello\n")
    server.read_log_until("connected TLSv1.*, CN=mallory")


@needs_sighup
def test_sighup_reads_the_networks_again_and_a_broken_list_changes_nothing(
    secure_command, talk, dial, certificates, live, tmp_path
):
    denied = tmp_path / "denied"
    denied.write_text("# nobody yet\n192.0.2.0/24\n")
    server = secure_command("--deny", f"@{denied}", pair=live(certificates.server))
    with talk(server) as old:
        assert old.echo(b"hello") == b"hello"
        denied.write_text("192.0.2.0/24\nloopback\n")
        live(certificates.next_server)
        server.popen.send_signal(signal.SIGHUP)
        match = server.read_log_until(r"WARNING SIGHUP: (.*)\n")
        assert f"{denied}, line 2: 'loopback' is no network" in match.group(1)
        with talk(server) as client:
            assert subject(client) == "CN=localhost"  # all or nothing
        denied.write_text("192.0.2.0/24\n127.0.0.0/8  # all of us\n")
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

needs_fork = pytest.mark.skipif(not workers.SUPPORTED, reason="this system cannot fork")


@pytest.fixture
def two_workers(secure_command, certificates, live, tmp_path):
    """The command with two workers, whose handler tells its process."""
    (tmp_path / "pids.py").write_text(PIDS)
    server = secure_command(
        *("--workers", "2", "--handler", "pids:Pids"), pair=live(certificates.server), cwd=str(tmp_path)
    )
    server.read_log_until(r"(?s)(worker \d is process \d+.*){2}")
    return server


def pids(server):
    """The latest process of each worker."""
    return {int(number): int(pid) for number, pid in re.findall(r"worker (\d+) is process (\d+)", server.log)}


def subjects_by_process(server, talk, count):
    """What certificate each of so many workers shows."""
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
def test_all_workers_speak_tls_and_a_pipe_through_one_comes_back(two_workers, client, talk):
    assert subjects_by_process(two_workers, talk, 2) == {pid: "CN=localhost" for pid in pids(two_workers).values()}
    data = b"0123456789abcde\n" * 65536
    process = client(two_workers)
    assert process.finish(data) == (0, data)
    assert process.log == ""
    assert two_workers.terminate() == 0


@needs_fork
@needs_sighup
def test_sighup_reaches_every_worker_and_one_that_is_started_later(two_workers, talk, certificates, live):
    server = two_workers
    with talk(server) as old:
        live(certificates.next_server)
        server.popen.send_signal(signal.SIGHUP)
        server.read_log_until(f"(?s)({RELOADED}.*){{3}}")  # the parent's, and each worker's
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
def test_a_broken_file_at_sighup_keeps_the_old_certificate_in_every_worker(two_workers, talk, certificates, live):
    server = two_workers
    paths = live(certificates.server)
    with open(paths.key, "w", encoding="ascii") as file:
        file.write("no key")
    server.popen.send_signal(signal.SIGHUP)
    server.read_log_until("(?s)(all stays as it was.*){3}")
    assert subjects_by_process(server, talk, 2) == {pid: "CN=localhost" for pid in pids(server).values()}
    killed = pids(server)[0]
    os.kill(killed, signal.SIGKILL)
    server.read_log_until(rf"(?s)process {killed} was killed.*worker 0 is process \d+")
    assert subjects_by_process(server, talk, 2) == {pid: "CN=localhost" for pid in pids(server).values()}
    assert server.terminate() == 0
