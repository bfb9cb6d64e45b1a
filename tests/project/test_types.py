"""Type checking of programs that use the package: no errors in correct ones, and an error at each wrong line.

mypy reads all programs in one run, in its strictest mode. Its errors are then sorted by program.
"""

import os
import re
import subprocess
import sys
import textwrap

import pytest

from support import DEADLINE, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_modules("mypy"),
    pytest.mark.skipif(sys.version_info < (3, 9), reason="the last mypy for this Python reports other errors"),
    pytest.mark.timeout(DEADLINE * 15),  # mypy reads the package and what it imports
]

RIGHT = os.path.join(ROOT, "tests", "project", "typed_program.py")

OPTIONS = "--strict --config-file= --cache-dir=cache --no-color-output --show-error-codes --hide-error-context".split()

WRONG = {
    "a hook without its message": """
        class Handler(echo.MessageRequestHandler):
            def message_received(self) -> None: ...  # override
    """,
    "a hook for text": """
        class Handler(echo.MessageRequestHandler):
            def message_received(self, message: str) -> None: ...  # override
    """,
    "a hook without its reason": """
        class Handler(echo.MessageRequestHandler):
            def connection_lost(self) -> None: ...  # override
    """,
    "a hook without the rest": """
        class Handler(echo.EchoRequestHandler):
            def eof_received(self) -> None: ...  # override
    """,
    "a hook that returns its reply": """
        class Handler(echo.MessageRequestHandler):
            def message_received(self, message: bytes) -> bytes:  # override
                return message
    """,
    "a hook of a mixin for text": """
        class Mixin(echo.LoggingMixin):
            def message_received(self, message: str) -> None: ...  # override
    """,
    "a step for text": """
        class Mixin(echo.MessageRequestHandler):
            def dispatch_message(self, message: str) -> None: ...  # override
    """,
    "an unknown option of run": """
        echo.run(echo.EchoRequestHandler, max_clients=5)  # call-arg
    """,
    "a handler that sends text": """
        class Handler(echo.MessageRequestHandler):
            def connection_made(self) -> None:
                self.send("text")  # arg-type
    """,
    "a handler that sends two at a time": """
        class Handler(echo.MessageRequestHandler):
            def connection_made(self) -> None:
                self.send(b"one", b"two")  # call-arg
    """,
    "a handler that sends nothing": """
        class Handler(echo.MessageRequestHandler):
            def connection_made(self) -> None:
                self.send()  # call-arg
    """,
    "a handler that waits for what sending returns": """
        class Handler(echo.MessageRequestHandler):
            def connection_made(self) -> None:
                sent = self.send(b"one")  # func-returns-value
    """,
    "a handler whose server lacks that": """
        class Room(echo.Server):
            topic = b""

        class Handler(echo.MessageRequestHandler):
            server: Room

            def connection_made(self) -> None:
                self.send(self.server.subject)  # attr-defined
    """,
    "a timeout in words": """
        class Handler(echo.MessageRequestHandler):
            timeout = "5m"  # assignment
    """,
    "a framing given by name": """
        class Handler(echo.MessageRequestHandler):
            framing = "line"  # assignment
    """,
    "a framing that encodes into text": """
        class Framing(echo.Framing):
            def encode(self, message: bytes) -> str:  # override
                return str(message)
    """,
    "a client that sends text": """
        echo.connect().send("text")  # arg-type
    """,
    "a reply taken for text": """
        reply: str = echo.connect().recv()  # assignment
    """,
    "an echo taken for text": """
        reply: str = echo.connect().echo(b"text")  # assignment
    """,
    "a method that a reply lacks": """
        echo.connect().recv().encode()  # attr-defined
    """,
    "an address in two arguments": """
        echo.connect("localhost", 65432)  # call-arg
    """,
    "a port in words": """
        echo.connect(("localhost", "65432"))  # arg-type
    """,
    "an option that connecting lacks": """
        echo.connect(deadline=1.0)  # call-arg
    """,
    "an option that the server lacks": """
        echo.Server(("localhost", 0), echo.EchoRequestHandler, max_conections=5)  # call-arg
    """,
    "an option in words": """
        echo.Server(("localhost", 0), echo.EchoRequestHandler, max_connections="5")  # arg-type
    """,
    "an option that cannot be None": """
        echo.Server(("localhost", 0), echo.EchoRequestHandler, request_queue_size=None)  # arg-type
    """,
    "an option by position": """
        echo.Server(("localhost", 0), echo.EchoRequestHandler, True, 5)  # call-arg
    """,
    "an option that a server on a given socket lacks": """
        import socket

        echo.Server.from_socket(socket.socket(), echo.EchoRequestHandler, max_conections=5)  # call-arg
    """,
    "an option in words for a server on a given socket": """
        import socket

        echo.Server.from_socket(socket.socket(), echo.EchoRequestHandler, shutdown_timeout="1s")  # arg-type
    """,
    "an option of a subclass in words": """
        class Room(echo.Server):
            max_connections = "5"  # assignment
    """,
    "an attribute that a started server lacks": """
        echo.Server(("localhost", 0), echo.EchoRequestHandler).start().port  # attr-defined
    """,
    "a figure that the statistics lack": """
        echo.Server(("localhost", 0), echo.EchoRequestHandler).stats().rejected  # attr-defined
    """,
    "a figure taken for text": """
        for info in echo.Server(("localhost", 0), echo.EchoRequestHandler).connections:
            print("bytes: " + info.bytes_in)  # operator
    """,
}


def program(text):
    return "import echo\n" + textwrap.dedent(text)


def name_of(case):
    return case.replace(" ", "_") + ".py"


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """``errors[file]``: mypy's errors, as pairs of a line's number and the error's code."""
    folder = tmp_path_factory.mktemp("types")
    for case, text in WRONG.items():
        (folder / name_of(case)).write_text(program(text))
    told = subprocess.run(
        [sys.executable, "-m", "mypy", *OPTIONS, RIGHT, *sorted(map(name_of, WRONG))],
        cwd=folder,
        env=dict(os.environ, MYPYPATH=ROOT, PYTHONDEVMODE="", PYTHONWARNINGS=""),  # no warnings of mypy's own
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=DEADLINE * 10,
    ).stdout
    assert re.search(r"^Found \d+ errors? in \d+ files? ", told, re.MULTILINE), told
    found = {}
    for path, line, code in re.findall(r"^(.*?):(\d+): error: .*\[([\w-]+)\]$", told, re.MULTILINE):
        found.setdefault(os.path.basename(path), []).append((int(line), code))
    return found


def test_a_correct_program_has_no_type_errors(errors):
    assert errors.get(os.path.basename(RIGHT), []) == []


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_program_gets_an_error_at_the_wrong_line(case, errors):
    lines = program(WRONG[case]).splitlines()
    ((number, code),) = [(number, line.partition("  # ")[2]) for number, line in enumerate(lines, 1) if "  # " in line]
    told = errors.get(name_of(case), [])
    assert (number, code) in told
    assert {line for line, _ in told} == {number}  # and no error elsewhere


def test_the_package_itself_has_no_errors(errors):
    assert set(errors) - {os.path.basename(RIGHT)} == set(map(name_of, WRONG))
