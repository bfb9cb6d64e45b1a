"""What is written about the project is so."""

import contextlib
import glob
import http.client
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess

import pytest

import echo
from echo.cli.client.command import GROUPS as CLIENT_GROUPS
from echo.cli.reference import command_table, options_table
from echo.cli.server.options import GROUPS as SERVER_GROUPS
from support import DEADLINE, ROOT, TESTS, read_all

TEST_FILES = {os.path.basename(path): path for path in glob.glob(os.path.join(TESTS, "*", "test_*.py"))}


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def test_each_row_of_what_goes_wrong_names_tests_that_exist():
    tests = set()
    for path in TEST_FILES.values():
        tests |= set(re.findall(r"^def (test_\w+)", read(path), re.MULTILINE))
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", read("tests", "README.md"), re.MULTILINE)
    numbers = [int(number) for number, _ in rows]
    assert numbers[:40] == list(range(1, 41)) and numbers == sorted(set(numbers))
    for number, cell in rows:
        named = re.findall(r"`(test_\w+)`", cell)
        assert named, f"row {number} names no test"
        assert set(named) <= tests, f"row {number} names {set(named) - tests}"


def test_each_test_file_is_described():
    described = set(re.findall(r"`(test_\w+\.py)`", read("tests", "README.md")))
    assert described == set(TEST_FILES)


TABLES = {
    "The server command": command_table(SERVER_GROUPS),
    "The client command": command_table(CLIENT_GROUPS),
    "It still is socketserver": options_table(),
}


@pytest.mark.parametrize("heading", TABLES)
def test_the_reference_tables_in_readme_say_what_the_rows_say(heading):
    """``ECHO_UPDATE_GOLDEN=1`` writes them again; then read their diff."""
    text = read("README.md")
    begin = text.index("| option | meaning | default |\n", text.index(f"\n## {heading}\n"))
    end = text.index("\n\n", begin)
    if os.environ.get("ECHO_UPDATE_GOLDEN") == "1":
        with open(os.path.join(ROOT, "README.md"), "w", encoding="utf-8") as file:
            file.write(text[:begin] + "\n".join(TABLES[heading]) + text[end:])
    else:
        assert text[begin:end].splitlines() == TABLES[heading]


@pytest.mark.parametrize("command, groups", [("server", SERVER_GROUPS), ("client", CLIENT_GROUPS)])
def test_the_usage_in_readme_has_every_option(command, groups):
    usage = read("README.md").partition(f"## The {command} command")[2].split("```")[1]
    for row in [row for group in groups for row in group.rows]:
        assert any(re.search(rf"(?<![\w-]){name}(?![\w-])", usage) for name in row.flags or [row.dest]), row.names


# README's Python, as it stands there, but on a free port.

BLOCKS = re.findall(r"^```python\n(.*?)^```$", read("README.md"), re.MULTILINE | re.DOTALL)


def line_of(address, *lines):
    """What a plain client gets for these lines, to the end of its input."""
    with socket.create_connection(address[:2], DEADLINE) as sock:
        sock.sendall(b"".join(line + b"\n" for line in lines))
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def upper(address):
    assert line_of(address, b"abc") == b"ABC\n"


def counter(address):
    assert line_of(address, b"a", b"b", b"bye", b"c") == b"say something\n1 of 1\n2 of 2\nyou said 2 things\n"


def guarded(address):
    assert line_of(address, b"abc", b"exit") == b"abc\n"


def files(address):
    connection = http.client.HTTPConnection(*address[:2], timeout=DEADLINE)
    connection.request("GET", "/README.md")
    assert connection.getresponse().read() == read("README.md").encode()
    connection.close()


def over_tls(address):
    context = ssl.create_default_context(cafile="ca.pem")
    with echo.connect(address, ssl_context=context) as client:
        assert client.echo(b"abc") == b"abc"


def stopping(address):
    assert line_of(address, b"abc", b"exit") == b"abc\n"
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # a signal's end is test_run's


SERVERS = {
    "class Upper": upper,
    "class Counter": counter,
    "class Guarded": guarded,
    "import http.server": files,
    "sys.exit(echo.run": stopping,
    "import ssl": over_tls,
}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_python_in_readme_does_what_it_says(number, serve, monkeypatch, capsys, tmp_path, request):
    code = BLOCKS[number]
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(ROOT)
    if "serve_forever" in code or "echo.run(" in code:
        (drive,) = [drive for mark, drive in SERVERS.items() if mark in code]
        if drive is over_tls:
            monkeypatch.chdir(tmp_path)
            certificates = request.getfixturevalue("certificates")
            for pem, name in zip(
                (*certificates.server, certificates.authority.certificate), ("cert.pem", "key.pem", "ca.pem")
            ):
                shutil.copy(pem, name)
        driven = []

        def serve_and_drive(server):
            server.start()
            drive(server.server_address)
            driven.append(server)

        monkeypatch.setattr(echo.Server, "serve_forever", serve_and_drive)
        with contextlib.suppress(SystemExit):
            exec(compile(code.replace("65432", "0"), "README.md", "exec"), {"__name__": "__main__"})
        assert driven and not driven[0].connections  # the block's end has closed it
        assert handlers == {signum: signal.getsignal(signum) for signum in handlers}
    else:
        port = serve(type("Handler", (echo.EchoRequestHandler,), {})).server_address[1]
        exec(compile(code.replace("65432", str(port)), "README.md", "exec"), {"__name__": "__main__"})
        out = capsys.readouterr().out
        if "def test_" in code or "class Counted" in code:
            assert out == ""
        elif "echo_many" in code:
            assert out == "b'hello'\nb'again'\nb'a'\nb'b'\nb'c'\n"
        elif "client.recv()" in code:
            assert out == "b'hello'\n"
        elif "server.stats()" in code:
            assert re.fullmatch(r"127\.0\.0\.1:\d+ \d+\.\d+ open 1 6\n1 1 {} {} 1 0\n", out)
        else:
            assert re.fullmatch(r"\('127\.0\.0\.1', \d+\)\n", out)


def test_both_tables_of_other_peoples_suites_are_the_same():
    (table,) = re.findall(r"^\| suite \|.*\n(?:\|.*\n)+", read("README.md"), re.MULTILINE)
    assert table in read("docs", "guides", "moving-from-socketserver.md")


def test_every_kind_of_python_block_is_there():
    """So that the test above cannot pass for want of blocks."""
    assert len(BLOCKS) == 12
    assert all(sum(mark in block for block in BLOCKS) == 1 for mark in SERVERS)


# README's terminal.


def masked(text, *figures):
    """The same, with an asterisk for each of these figures, however wide."""
    return re.sub(rf" *({'|'.join(figures)})", " *", text)


def console_blocks():
    return re.findall(r"^```console\n(.*?)^```$", read("README.md"), re.MULTILINE | re.DOTALL)


def test_the_commands_in_readme_are_ones_that_a_test_runs():
    commands = [
        line[2:] if line.startswith("$ ") else line
        for block in console_blocks()
        for line in block.splitlines()
        if line.startswith(("$ ", "python3 -m venv"))
    ]
    assert commands == [
        "python3 -m echo.server",  # test_the_session_in_readme_looks_like_that, on a free port
        "python3 -m echo.client",  # the same
        "python3 -m echo.server --handler shout:Upper",  # test_the_handler_in_readme_runs_from_the_command_line
        "head -c 200M /dev/urandom | python3 -m echo.client --framing raw | sha256sum"
        "   # with a server --framing raw",  # test_the_pipe_in_readme_brings_everything_back
        "python3 -m echo.client --ping -c 3",  # test_the_ping_in_readme_looks_like_that, in less time
        "python3 -m echo.client --bench --rate 5000 -d 2",  # test_the_bench_in_readme_looks_like_that, the same
        # test_the_certificates_in_readme_are_ones_that_client_and_server_take
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost"
        " -keyout key.pem -out cert.pem",
        "python3 -m echo.server --tls-cert cert.pem --tls-key key.pem",
        "python3 -m echo.client localhost --tls --cacert cert.pem",
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=CA -keyout ca.key -out ca.pem",
        "openssl req -newkey rsa:2048 -nodes -subj /O=Example/CN=alice -keyout alice.key -out alice.csr",
        "openssl x509 -req -in alice.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out alice.pem",
        "python3 -m echo.server --tls-cert cert.pem --tls-key key.pem --tls-client-ca ca.pem",
        "python3 -m echo.client localhost --tls --cacert cert.pem --cert alice.pem --key alice.key",
        "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/python -m pytest",  # .ci/run
    ]


def test_the_session_in_readme_looks_like_that(server_command, run):
    pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
    (session,) = [block for block in console_blocks() if block.startswith("$ python3 -m echo.client\n")]
    expected = session.splitlines()[1:]
    server = server_command()
    master, slave = pty.openpty()
    client = run(
        "echo.client", *map(str, server.address), stdin=slave, stdout=slave, stderr=slave, env={"TERM": "dumb"}
    )
    os.close(slave)
    screen = b""
    typed = 0
    for line in expected:
        text = "> " if line.startswith("> ") else line.replace("65432", str(server.address[1])) + "\r\n"
        while text.encode() not in screen:
            assert select.select([master], [], [], DEADLINE)[0], screen
            screen += os.read(master, 65536)
        screen = screen.partition(text.encode())[2]
        if line.startswith("> "):
            os.write(master, line[2:].encode() + b"\n")
            typed += 1
            while line[2:].encode() + b"\r\n" not in screen:  # as the terminal shows what is typed
                screen += os.read(master, 65536)
            screen = screen.partition(line[2:].encode() + b"\r\n")[2]
    assert typed == 3
    assert client.popen.wait(DEADLINE) == 0
    os.close(master)

    told = [
        block for block in re.findall(r"^```\n(.*?)^```$", read("README.md"), re.M | re.S) if "listening on" in block
    ]
    server.read_log_until("disconnected.*\n")

    figures = (r"\d{4}-\S+ \S+", r"127\.0\.0\.1:\d+", r"\d+\.\d+ s", r"echo \S+ \(process \d+; \S+")
    assert masked(server.log, *figures) == masked(told[0], *figures)


def test_the_handler_in_readme_runs_from_the_command_line(server_command, tmp_path):
    (block,) = [block for block in BLOCKS if "class Upper" in block]
    (tmp_path / "shout.py").write_text(block)
    server = server_command("--handler", "shout:Upper", cwd=str(tmp_path))
    upper(server.address)


@pytest.mark.needs_programs("openssl")
@pytest.mark.slow
def test_the_certificates_in_readme_are_ones_that_client_and_server_take(server_command, run, tmp_path):
    held = 0
    for line in [
        line[2:] for block in console_blocks() for line in block.splitlines() if re.search("openssl|[.]pem", line)
    ]:
        command = line.split()
        if command[0] == "openssl":
            subprocess.run(command, cwd=tmp_path, check=True, stderr=subprocess.PIPE, timeout=DEADLINE)
        elif "echo.server" in command:
            server = server_command(*command[3:], cwd=str(tmp_path))
        else:
            port = str(server.address[1])
            client = run(command[2], "localhost", port, *command[4:], "-m", "hello", cwd=str(tmp_path))
            assert client.finish() == (0, b"hello\n")
            held += 1
    assert held == 2
    server.read_log_until(" connected TLSv1.3, CN=alice,O=Example\n")


def test_the_pipe_in_readme_brings_everything_back(server_command, run):
    server = server_command("--framing", "raw", "--no-log-messages")
    data = os.urandom(5 << 20)
    client = run("echo.client", *map(str, server.address), "--framing", "raw")
    assert client.finish(data) == (0, data)


def measured(command, address, run, *options):
    """What README shows for this command, and what it says here, with further options; of both the lines."""
    (block,) = [block for block in console_blocks() if block.startswith(f"$ {command}\n")]
    arguments = command.split()[2:]
    process = run(arguments[0], *map(str, address), *arguments[1:], *options)
    code, out = process.finish()
    assert (code, process.log) == (0, "")
    return block.partition("\n")[2], out.decode()


def figures_after(pattern, text):
    """What stands between the slashes of the one line that begins like this."""
    (found,) = re.findall(rf"^{pattern} ([\d./]+) ms$", text, re.MULTILINE)
    return [float(figure) for figure in found.split("/")]


def test_the_ping_in_readme_looks_like_that(server_command, run):
    shown, told = measured("python3 -m echo.client --ping -c 3", server_command().address, run, "-i", "20ms")
    figures = (r"127\.0\.0\.1:\d+", r"time \d+ ms", r"[\d.]+(/[\d.]+){3} ms", r"[\d.]+ ms")
    assert masked(told, *figures) == masked(shown, *figures)
    for text in (shown, told):
        times = [float(time) for time in re.findall(r" time=(\S+) ms", text)]
        least, mean, greatest, deviation = figures_after("rtt min/avg/max/mdev =", text)
        assert (least, greatest) == (min(times), max(times))
        assert mean == pytest.approx(sum(times) / 3, rel=0.01)
        assert 0 <= deviation < greatest
        assert figures_after("rtt p50 =", text) == pytest.approx([sorted(times)[1]], rel=0.01)
        assert figures_after("connect", text) == figures_after("ECHO .* connected in", text)


@pytest.mark.slow
def test_the_bench_in_readme_looks_like_that(server_command, run):
    server = server_command("--no-log-messages")
    shown, told = measured("python3 -m echo.client --bench --rate 5000 -d 2", server.address, run)
    client = re.compile(r"^client +\d+% of a processor in each process(, .* ms at most)?\n", re.MULTILINE)
    assert client.search(shown) and client.search(told)
    told = re.sub(r"^warning .*\n", "", told, flags=re.MULTILINE)  # on a busy machine
    shown, told = client.sub("", shown), client.sub("", told)
    unsent = re.search(r"^never sent +([\d,]+), .*\n", told, re.MULTILINE)
    if unsent:  # on a busy machine, where there may be too few samples for a percentile, too
        told = told.replace(unsent[0], "").replace(" - ", " 0.1 ")
        told = re.sub(r"^(due .*) [\d,]+ never sent", r"\1 0 never sent", told, flags=re.MULTILINE)
    figures = (r"127\.0\.0\.1:\d+", r"[\d.]+ s\b", r"[\d,]+/s\b", r"[\d.]+ MB/s", r"[\d.]+(/[\d.]+){2} ms")
    figures += (r"\d+\.\d+(?= )", r"(?<=  )\d\d+(?= )", r"\d+,\d+")
    assert masked(told, *figures) == masked(shown, *figures)
    for text, lacking in ((shown, 0), (told, number(unsent[1]) if unsent else 0)):
        assert " 5000 messages/s, 2 s\n" in text
        (row,) = re.findall(r"^messages +([\d,]+) in 2 s, ([\d,]+)/s, (\S+) MB/s$", text, re.MULTILINE)
        messages, rate, volume = map(number, row)
        assert rate == pytest.approx(messages / 2, abs=1)
        assert volume == pytest.approx(rate * 64 / 1e6, abs=0.01)
        assert figures_after("connect +min/avg/max", text) == sorted(figures_after("connect +min/avg/max", text))
        titles, *rows = text.splitlines()[-3:]
        for row in rows:
            assert len(row) == len(titles)
            *times, samples = map(number, row.split()[1:])
            assert unsent or times == sorted(times)
            assert samples + lacking == pytest.approx(10_000, abs=10)  # one for each connection
        corrected, raw = (list(map(number, row.split()[1:-1])) for row in rows)
        assert all(ours >= theirs for ours, theirs in zip(corrected, raw))  # by the wait for its turn


def number(text):
    return float(text.replace(",", ""))
