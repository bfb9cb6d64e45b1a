"""The border between the framework and the programs around it: which module of ``echo`` imports which.

The *spine* is the part to read first: bytes, messages, sessions, the server. The *rooms* add to it, and the commands
are programs that use it. Imports point one way, so the spine can be read, and a server can run, without the rest.
"""

import ast
import os
import subprocess
import sys

import pytest

from support import DEADLINE, ROOT

ROOMS = ["transport", "logs", "mixins", "client", "measure", "cli"]
"""Each imports the spine and those before it."""

READ_IN_ONE_SITTING = ["framing", "connection", "handlers", "server.sessions", "server.registry"]
READ_IN_ONE_SITTING += ["server.serving", "server.session_server", "server.accepting", "server.stopping"]
READ_IN_ONE_SITTING += ["server.server"]

ENTRANCES = ["echo", "echo.__main__", "echo.server.__main__", "echo.client.__main__"]
"""They gather public names, or start a command."""


def sources():
    """The modules of ``echo`` by name, as syntax trees."""
    found = {}
    for folder, _, files in os.walk(os.path.join(ROOT, "echo")):
        for file in files:
            if file.endswith(".py"):
                path = os.path.join(folder, file)
                name = os.path.relpath(path, ROOT)[: -len(".py")].replace(os.sep, ".")
                with open(path, encoding="utf-8") as text:
                    found[name[: -len(".__init__")] if name.endswith(".__init__") else name] = ast.parse(
                        text.read(), path
                    )
    return found


def imports_at_import_time(node):
    """The import statements that run when the module is imported: not in a function, not for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from (inner for other in child.orelse for inner in imports_at_import_time(ast.Module([other], [])))
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports_at_import_time(child)


def imported_by(name, trees):
    """The modules of ``echo`` that a module imports."""
    is_package = any(other.startswith(name + ".") for other in trees)
    for statement in imports_at_import_time(trees[name]):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names if alias.name in trees)
            continue
        base = statement.module
        if statement.level:
            parts = name.split(".")
            parts = parts[: len(parts) - statement.level + is_package]
            base = ".".join(parts + ([base] if base else []))
        for alias in statement.names:
            if f"{base}.{alias.name}" in trees:
                yield f"{base}.{alias.name}"
            elif base in trees:
                yield base


def rank(name):
    """0 for the spine, more for a room."""
    room = name.split(".")[1]
    return ROOMS.index(room) + 1 if room in ROOMS else 0


@pytest.fixture(scope="module")
def graph():
    """Each module of ``echo``, except the entrances, with the modules that it imports."""
    trees = sources()
    return {name: set(imported_by(name, trees)) for name in trees if name not in ENTRANCES}


def test_imports_point_from_the_commands_to_the_rooms_to_the_spine(graph):
    assert len(graph) > 30
    edges = [(name, other) for name, others in graph.items() for other in others]
    assert not [f"{name} imports {other}" for name, other in edges if rank(other) > rank(name)]


def test_the_server_knows_no_handler_and_no_framing(graph):
    """Any ``socketserver`` handler runs on the server; our handlers attach themselves."""
    server = {name for name in graph if name.startswith("echo.server")}
    assert {other for name in server for other in graph[name]} - server == {
        "echo.beginning",
        "echo.class_body",
        "echo.log_calls",
        "echo.sockets",
        "echo.text",
    }


def test_no_module_imports_itself_by_way_of_others(graph):
    done = set()

    def visit(name, path):
        assert name not in path, " imports ".join([*path, name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_the_spine_can_be_read_in_one_sitting(capsys):
    trees = sources()
    sizes = {name: len(lines_of(name)) for name in READ_IN_ONE_SITTING}
    assert all(f"echo.{name}" in trees for name in sizes)
    with capsys.disabled():
        print(f"\nthe spine: {sum(sizes.values())} lines:", ", ".join(f"{name} {size}" for name, size in sizes.items()))


def lines_of(name):
    with open(os.path.join(ROOT, "echo", *name.split(".")) + ".py", encoding="utf-8") as file:
        return file.readlines()


def loaded_by(statements):
    """The modules that a new Python has loaded after these statements."""
    script = f"{statements}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=DEADLINE, stdout=subprocess.PIPE, check=True
    )
    return set(done.stdout.decode().split())


def test_each_thread_begins_in_time_or_not_at_all():
    """Row 65: ``threading.Thread.start()`` waits for ever for a thread that has no memory for its first line."""
    users = {
        name
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.dump(node.func) == ast.dump(ast.parse("threading.Thread").body[0].value)
    }
    assert not users, "these use threading.Thread, and not echo.beginning.Thread"


def test_a_program_loads_only_what_its_server_needs():
    program = "import echo\necho.Server(('127.0.0.1', 0), echo.EchoRequestHandler).start().stop()"
    needless = {"argparse", "multiprocessing", "echo.cli", "echo.measure"}
    needless |= {f"echo.transport.{name}" for name in ["affinity", "handshake", "proxy_header", "proxy_protocol"]}
    assert not loaded_by(program) & needless


WITHOUT_POSIX = """\
import argparse, ctypes, logging.handlers, multiprocessing.connection, multiprocessing.util
import select, signal, socketserver, ssl, subprocess, sys, tempfile

sys.modules.update(dict.fromkeys(["fcntl", "grp", "pwd", "readline", "resource", "termios"]))
for module, kept in [(signal, "SIGINT SIGTERM SIGABRT SIGFPE SIGILL SIGSEGV SIG_DFL SIG_IGN"), (ssl.socket, "")]:
    for name in dir(module):
        if name.startswith(("SIG", "pthread_", "AF_UNIX", "MSG_DONTWAIT", "SO_REUSEPORT")) and name not in kept.split():
            delattr(module, name)
sys.platform = "win32"
for module in sys.argv[1:]:
    __import__(module)
"""
"""Import modules as on a system without POSIX."""


def test_every_module_can_be_imported_where_there_is_no_posix():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, *sorted(sources())],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        timeout=DEADLINE,
    )
    assert done.stderr == b""
