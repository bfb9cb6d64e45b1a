"""Run the pages of the documentation, as a reader would.

A block of ``python`` is run here, one of ``console`` as a terminal would; what a page prints is compared with what
comes out. Comments in front of a block say more (``tests/README.md`` has the list). Figures that differ from run to
run (times, ports, process numbers) are masked; a line ``...`` stands for any lines.
"""

import contextlib
import glob
import importlib
import io
import logging
import os
import re
import select
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import textwrap
from typing import Dict, NamedTuple
from unittest import mock

import echo

from . import DEADLINE, ROOT, eventually, read_all
from .background import Background
from .processes import Process

PORT = "65432"
"""The port in the texts. The reader takes a free one instead."""

NOTES = ("continues", "drawing", "exit", "file", "given", "log", "not run", "output", "slow", "test command", "try")
DATA = {"dockerfile", "ini", "json", "nginx", "text", "toml", "yaml", ""}
"""Languages that are not run; ``json`` is parsed. Any other language but ``python`` and ``console`` is a mistake."""

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(\S*)(.*)$")
_SERVES = re.compile(r"serve_forever|echo\.run\(|\.listen\(|create_server\(")
_SERVER = re.compile(r"python3 -m echo[. ]server\b|echo-server\b")
_CLIENT = re.compile(r"python3 -m echo[. ]client\b|echo-client\b")


class Block(NamedTuple):
    """A block of a page. ``notes`` are the comments in front of it, by their first word."""

    page: str
    line: int
    language: str
    text: str
    notes: Dict[str, str]

    def __str__(self):
        return f"{self.page}:{self.line}"


def pages():
    """All pages, as paths from the root."""
    found = glob.glob(os.path.join(ROOT, "docs", "**", "*.md"), recursive=True)
    return ["README.md", *sorted(os.path.relpath(path, ROOT) for path in found if f"{os.sep}_build" not in path)]


def text_of(page):
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        return file.read()


def blocks_of(page):
    """The blocks of a page, in order, without directives of the documentation's builder such as ``{toctree}``."""
    found = []
    notes, comment = {}, None
    lines = iter(enumerate(text_of(page).splitlines(), 1))
    for number, line in lines:
        if comment is not None or line.lstrip().startswith("<!--"):
            comment = line if comment is None else f"{comment}\n{line}"
            if "-->" in line:
                name, _, rest = comment.strip()[len("<!--") : -len("-->")].partition(":")
                notes[name.strip()] = textwrap.dedent(rest.strip("\n") if "\n" in rest else rest.strip())
                comment = None
            continue
        fence = _FENCE.match(line)
        if fence is None:
            notes = {}
            continue
        inside = []
        for _, line in lines:
            if line.strip() == fence[2]:
                break
            inside.append(line[len(fence[1]) :] if not line[: len(fence[1])].strip() else line)
        if not fence[3].startswith("{"):
            found.append(Block(page, number, fence[3], "".join(f"{each}\n" for each in inside), notes))
        notes = {}
    return found


def commands_of(block):
    """The commands of a ``console`` block, each with the lines that the block shows for it."""
    found = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append([line[2:], []])
        elif found and not found[-1][1] and found[-1][0].endswith("\\"):
            found[-1][0] += "\n" + line
        else:
            assert found, f"{block}: a console block begins with a command, after '$ '"
            found[-1][1].append(line)
    return found


def masked(text):
    """The text with the figures masked that differ from run to run, however wide they are."""
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME", text)
    text = re.sub(r"echo [\w.]+ \(process \d+; \S+ stops it\)", "echo VERSION", text)  # what stops it: see the terminal
    text = re.sub(r"(?<![\d.])\d+\.\d+\.\d+(?!\.?\d)", "VERSION", text)
    text = re.sub(r"(?<=[\w\]]):\d{4,5}\b", ":PORT", text)
    text = re.sub(r"\b(process |pid[= ])\d+", r"\1N", text)
    text = re.sub(r"\b\d+ sessions? drained", "N sessions drained", text)
    text = re.sub(r"(?<![\d.])\d+\.\d+(?![\d.]*\.\d)|\b\d+,\d{3}\b|\b\d{4,}\b|\b\d+(?=[/\d.]* ms\b)", "N", text)
    return re.sub(r"[ \t]+", " ", text).strip()


def same(expected, told):
    """Whether a page's lines equal these, with the figures masked."""
    pattern = "\n".join(re.escape(masked(line)) for line in expected)
    pattern = re.sub(r"^\\\.\\\.\\\.$", r"(?:.*\n)*?.*", pattern, flags=re.MULTILINE)
    return re.fullmatch(pattern.strip(), "\n".join(masked(line) for line in told).strip()) is not None


def lines(address, *sent):
    """Send these lines as a plain client; return all bytes that come back."""
    with socket.create_connection(address[:2], DEADLINE) as sock:
        sock.sendall(b"".join(line + b"\n" for line in sent))
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def _put_back(log, handlers, level):
    log.handlers[:] = handlers
    log.setLevel(level)


class Reader:
    """Reads a page in ``folder``: call it with each block. ``serve`` is the fixture; a context manager."""

    def __init__(self, folder, serve, certificates):
        self.folder, self.serve, self.certificates = str(folder), serve, certificates
        self.namespace = {}
        self.printed = []
        self.code = 0  # of the last command
        self.server = None  # the one that commands talk to

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._end_server)
        for log in map(logging.getLogger, (None, "echo", "echo.server", "echo.session")):
            self._stack.callback(_put_back, log, list(log.handlers), log.level)
        self._stack.callback(self._forget_modules, set(sys.modules), sys.dont_write_bytecode)
        sys.dont_write_bytecode = True
        # Programs that the page's programs start find this project, installed or not.
        self._stack.enter_context(mock.patch.dict(os.environ, PYTHONPATH=ROOT))
        for name in ("README.md", "examples"):
            os.symlink(os.path.join(ROOT, name), os.path.join(self.folder, name))
        # This socket reserves the port; servers may bind it, too, since it does not listen.
        reserved = self._stack.enter_context(socket.socket())
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        self.port = str(reserved.getsockname()[1])
        os.mkdir(os.path.join(self.folder, "bin"))
        for name, arguments in (("python3", ""), ("echo-server", "-m echo.server"), ("echo-client", "-m echo.client")):
            path = os.path.join(self.folder, "bin", name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
            os.chmod(path, 0o755)
        self.environment = {
            "ECHO_DEFAULT_PORT": self.port,
            "PATH": os.path.join(self.folder, "bin") + os.pathsep + os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([os.path.join(os.path.dirname(__file__), "other_port"), ROOT]),
            "PYTHONUNBUFFERED": "1",
            "TERM": "dumb",
        }
        return self

    def __exit__(self, *exc_info):
        self._stack.__exit__(*exc_info)

    def _forget_modules(self, before, dont_write_bytecode):
        sys.dont_write_bytecode = dont_write_bytecode
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(self.folder + os.sep):
                del sys.modules[name]

    def __call__(self, block):
        assert set(block.notes) <= set(NOTES), f"{block}: unknown notes {set(block.notes) - set(NOTES)}"
        if "not run" in block.notes or "test command" in block.notes:
            return
        if ".pem" in block.text and not os.path.exists(os.path.join(self.folder, "cert.pem")):
            if "openssl" not in block.text:
                self._copy_certificates()
        if "file" in block.notes:
            self.save(block)
            if "try" in block.notes:
                self._program(block)
        elif "output" in block.notes:
            assert same(block.text.splitlines(), self.printed), f"{block} differs from:\n" + "\n".join(self.printed)
        elif "log" in block.notes:
            self._read_log(block, block.text.splitlines())
        elif block.language == "python":
            self._program(block)
        elif block.language == "console":
            self._terminal(block)

    def save(self, block):
        """Write the file that the block is. A module of this name is imported anew, without the bytecode of a file that
        was written in the same second."""
        name = block.notes["file"]
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
            file.write(block.text.replace(PORT, self.port))
        sys.modules.pop(name.partition(".")[0], None)
        importlib.invalidate_caches()

    # Python.

    def _program(self, block):
        """Run it here. A server that it serves gets a free port, and is tried by the block's ``try``."""
        namespace = self.namespace if "continues" in block.notes else {"__name__": "__main__"}
        helpers = {"lines": lines, "serve": self.serve, "eventually": eventually, "folder": self.folder}
        tried = []

        def attempt(server=None):
            names = {**helpers, "echo": echo, "printed": out.getvalue, **namespace}
            if server is not None:
                names.update(server=server, address=server.server_address)
            self._execute(block, block.notes["try"], names)
            tried.append(True)

        @contextlib.contextmanager
        def serving():
            patched = [(echo.Server, "serve_forever"), (socketserver.BaseServer, "serve_forever"), (echo, "run")]
            patched = [(owner, name, vars(owner)[name]) for owner, name in patched if name in vars(owner)]
            stock = socketserver.BaseServer.serve_forever
            signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

            def serve_and_try(server, *args, **options):
                if isinstance(server, echo.Server):
                    server.start()
                    attempt(server)
                else:
                    loop = Background(stock, server, 0.01)
                    attempt(server)
                    server.shutdown()
                    loop.result()

            def run(handler_class, address=("127.0.0.1", 0), server_class=echo.Server, **options):
                with server_class(address, handler_class, **options) as server:
                    server.serve_forever()
                return 0

            try:
                for owner, name, _ in patched:
                    setattr(owner, name, run if name == "run" else serve_and_try)
                yield
            finally:
                for owner, name, was in patched:
                    setattr(owner, name, was)
                for number, handler in signals.items():
                    signal.signal(number, handler)

        port = "0"
        if not _SERVES.search(block.text):
            if "given" in block.notes:
                given = dict(helpers, echo=echo)
                self._execute(block, block.notes["given"], given)
                namespace.update((name, value) for name, value in given.items() if name not in helpers)
                port = str(given["address"][1]) if "address" in given else port
            elif PORT in block.text and self.server is not None:
                port = self.port
            elif PORT in block.text:
                port = str(self.serve(type("Handler", (echo.EchoRequestHandler,), {})).server_address[1])
        out = io.StringIO()
        before = os.getcwd()
        os.chdir(self.folder)
        sys.path.insert(0, self.folder)
        try:
            with contextlib.redirect_stdout(out), serving():
                try:
                    self._execute(block, block.text.replace(PORT, port), namespace)
                except SystemExit as exc:
                    assert not exc.code, f"{block} ends with {exc.code}"
                if "try" in block.notes and not tried:
                    attempt()
        finally:
            sys.path.remove(self.folder)
            os.chdir(before)
        if _SERVES.search(block.text) and "continues" not in block.notes:
            assert tried, f"{block} serves: a 'try' in front of it has to talk to it"
        self.namespace = namespace
        self.printed = re.sub(r".*\r", "", out.getvalue()).splitlines()  # \r returns to the line's start

    def _execute(self, block, code, namespace):
        blank = "\n" * block.line  # so that a traceback has the page's lines
        exec(compile(blank + code, block.page, "exec", optimize=0), namespace)  # asserts hold under -O, too

    def _copy_certificates(self):
        certificates = self.certificates()
        for path, name in zip((*certificates.server, certificates.authority.certificate), ("cert", "key", "ca")):
            shutil.copy(path, os.path.join(self.folder, f"{name}.pem"))

    # A terminal.

    def _terminal(self, block):
        commands = commands_of(block)
        for (command, shown), (following, _) in zip(commands, [*commands[1:], ("", [])]):
            command = command.replace(PORT, self.port)
            if self._is_server(command):
                self._start_server(block, command.rstrip("& "), shown)
            elif any(line.startswith("> ") for line in shown):
                self._talk(block, command, shown)
            else:
                done = subprocess.run(
                    ["bash", "-c", f"(exit {self.code}); {command}"],
                    cwd=self.folder,
                    env=self._whole_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=DEADLINE,
                )
                self.code = done.returncode
                self.printed = done.stdout.decode().splitlines()
                if shown:
                    assert same(shown, self.printed), f"{block}: {command} printed:\n" + "\n".join(self.printed)
                if not following.startswith("echo $?"):
                    assert self.code in (0, int(block.notes.get("exit", 0))), (str(block), command, self.printed)

    def _is_server(self, command):
        script = re.fullmatch(r"python3 (\S+\.py)\b.*?&?", command)
        if script:
            with open(os.path.join(self.folder, script[1]), encoding="utf-8") as file:
                return _SERVES.search(file.read()) is not None
        return _SERVER.match(command) is not None and "--help" not in command and "--version" not in command

    def _whole_environment(self):
        own = {"ECHO_HISTFILE": os.devnull, "PYTHONWARNINGS": "error"}
        return dict(os.environ, **own, **self.environment)

    def _start_server(self, block, command, shown):
        self._end_server()
        self.server = Process(command, program=["bash", "-c"], cwd=self.folder, env=self.environment)
        if shown or (_SERVER.match(command) and not re.search(" -q| --quiet", command)):
            self.server.read_log_until("listening on|\n")
        else:  # it says nothing
            eventually(self._is_there, f"{block}: {command} does not listen: {self.server.log}")
        self._read_log(block, shown)

    def _is_there(self):
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", int(self.port))) == 0

    def _read_log(self, block, shown):
        """Read the server's log until it equals the page's; ``^C`` stops the server."""
        until_stop = list(shown)
        if "^C" in shown:
            until_stop = shown[: shown.index("^C")]
        if until_stop:
            assert self.server, f"{block}: no server runs"
            count = r"(.*\n){%d}" % len(until_stop)
            self.server.read_log_until(count if "..." not in until_stop else ".")
            told = self.server.log.splitlines()
            assert same(until_stop, told), f"{block} differs from:\n{self.server.log}"
        if "^C" in shown:
            self.server.popen.send_signal(signal.SIGINT)
            self.server.finish()
            rest = shown[shown.index("^C") + 1 :]
            told = self.server.log.splitlines()[len(until_stop) :]
            if "draining" not in "".join(rest):  # a session whose end is logged already may still be closing
                told = [line for line in told if "draining" not in line]
            assert same(rest, told), f"{block} differs from:\n{self.server.log}"
            self.code = self.server.popen.returncode
            self.server.kill()
            self.server = None

    def _end_server(self):
        if self.server is not None:
            server, self.server = self.server, None
            try:
                server.popen.send_signal(signal.SIGINT)
                server.finish()
            finally:
                server.kill()

    def _talk(self, block, command, shown):
        """Run the session that the page shows, at a pseudo-terminal: the text after ``> `` is typed."""
        import pty

        master, slave = pty.openpty()
        client = Process(
            command, program=["bash", "-c"], cwd=self.folder, stdin=slave, stdout=slave, stderr=slave,
            env=self.environment,
        )  # fmt: skip
        os.close(slave)
        screen = ""
        try:
            for line in shown:
                prompt, typed = ("> ", line[2:]) if line.startswith("> ") else (line.replace(PORT, self.port), None)
                for text in [prompt] if typed is None else [prompt, typed]:
                    if text is typed:
                        os.write(master, typed.encode() + b"\n")
                    while text not in screen:
                        assert select.select([master], [], [], DEADLINE)[0], f"{block}: no {text!r} in {screen!r}"
                        screen += os.read(master, 65536).decode()
                    screen = screen.partition(text)[2]
            self.code = client.popen.wait(DEADLINE)
        finally:
            client.kill()
            os.close(master)
