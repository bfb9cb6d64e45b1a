"""A handler whose module leaves something behind, as the variable ``LEAVES`` says: a thread, a pool, an exit function.

For tests of how the server command ends: ``--handler support.leaves:Leaves``.
"""

import atexit
import concurrent.futures
import faulthandler
import io
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time

import echo

WHAT = os.environ.get("LEAVES", "")


def touch(name):
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT))  # no file object, for whose end a signal may leave no time


def hold_the_lock_of_the_interpreter():
    re.match("(a+)+$", "a" * 60 + "b")


def block():
    """For ever. One long wait would miss a signal that comes just before it."""
    while True:
        time.sleep(0.01)


RUN = "running.set(); import time; time.sleep(600)"
"""The program of a process that a handler starts."""


def start_child():
    """A process of ``multiprocessing`` that ends with this one."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    return process


class Blocks(logging.Handler):
    """Blocks at one event, when it is logged the ``count``th time."""

    def __init__(self, event, count=1):
        super().__init__()
        self._event = event
        self._left = count

    def emit(self, record):
        self._left -= getattr(record, "event", None) == self._event
        if not self._left:
            touch("blocked")
            block()


class FailingOutput(io.StringIO):
    def flush(self):
        raise RuntimeError("no flush")


def let_other_code_wait_for_children():
    """Make ``waitpid`` fail for a child that has ended, as if another thread had always waited for it first."""
    waitpid = os.waitpid

    def taken(pid, options):
        if waitpid(pid, options) != (0, 0):
            raise ChildProcessError
        return 0, 0

    os.waitpid = taken


def leave(what):
    if what == "thread":
        threading.Thread(target=threading.Event().wait, name="poller").start()
    elif what == "daemon thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    elif what == "busy pool":
        concurrent.futures.ThreadPoolExecutor(1, "pool").submit(threading.Event().wait)
    elif what == "idle pool":
        concurrent.futures.ThreadPoolExecutor(1).submit(int).result()
    elif what == "exit function":
        atexit.register(os.write, 1, b"exit function called")
    elif what == "exit function that hangs":
        atexit.register(block)
    elif what == "exit function that holds the lock":
        atexit.register(hold_the_lock_of_the_interpreter)
    elif what == "logging handler that blocks":
        logging.getLogger().addHandler(Blocks("signal"))
    elif what == "logging handler that blocks when workers start":
        logging.getLogger().addHandler(Blocks("worker-started", 2))
    elif what == "code that waits for any child":
        let_other_code_wait_for_children()
    elif what == "a daemon":
        if os.fork():
            os._exit(0)
        os.setsid()
    elif what == "timer of faulthandler":
        faulthandler.dump_traceback_later(3600)
    elif what == "signal handlers":
        signal.signal(signal.SIGINT, lambda *_: sys.exit(3))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif what == "signals that kill":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    elif what == "output that fails":
        sys.stdout = FailingOutput()
    elif what == "blocked signals":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    elif what == "thread and an import that hangs":
        threading.Thread(target=threading.Event().wait).start()
        touch("importing")
        block()
    elif what == "thread, child and an import that hangs":
        threading.Thread(target=threading.Event().wait).start()
        with open("child", "w") as file:
            file.write(str(start_child().pid))
        touch("importing")
        block()
    elif what == "import that hangs":
        touch("importing")
        block()
    elif what == "import that catches all":
        while True:
            try:
                touch("importing")
                block()
            except BaseException:
                touch("caught")
                break


leave(WHAT)


class Leaves(echo.EchoRequestHandler):
    def message_received(self, message):
        if message == b"hold":
            self.send(message)
            self.flush()
            hold_the_lock_of_the_interpreter()
        elif message.startswith(b"process "):
            context = multiprocessing.get_context(message.split()[1].decode())
            running = context.Event()
            process = context.Process(target=exec, args=(RUN, {"running": running}))
            process.start()
            if message != b"process fork":
                # Until a child has replaced its program, it has its parent's signal handlers. Before Python 3.10 a
                # parent does not wait for that, and a signal that comes then is lost.
                running.wait()
            process.terminate()
            process.join()
            message = b"%d" % process.exitcode
        elif message == b"child":
            message = b"%d" % start_child().pid
        elif message == b"manager":
            self.server.manager = multiprocessing.get_context("fork").Manager()
            message = b"%d" % self.server.manager._process.pid
        elif message == b"pool":
            self.server.pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
            message = b"%d" % self.server.pool.submit(os.getpid).result()
            self.server.pool.submit(time.sleep, 600)  # the exit function of the pool waits for it
        self.send(message)

    def drain(self):
        if WHAT == "drain that blocks":
            block()
        super().drain()
        if WHAT == "drain that holds the lock":
            hold_the_lock_of_the_interpreter()
        elif WHAT == "drain that exits":
            sys.exit(3)
