"""A handler that logs and prints its client's text in every way that a handler should not. A message is ``WORD TEXT``.

Each word is an action that sends the text to the log or to stderr in a different way.
"""

import logging
import multiprocessing
import os
import sys
import threading
import traceback
import warnings

import echo

warnings.simplefilter("always", UserWarning)
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
log = logging.getLogger("evil")
own = logging.StreamHandler(sys.stderr)  # a program's own handler, at import, as from logging.basicConfig()
own_log = logging.getLogger("evil.own")
own_log.addHandler(own)
own_log.propagate = False


class Odd:
    def __init__(self, text):
        self.text = text

    def __str__(self):
        raise ValueError(self.text)

    __repr__ = __str__


class Dies:
    def __init__(self, text):
        self.text = text

    def __del__(self):
        raise ValueError(self.text)


class Quota(echo.EchoError):
    pass


def fail(text):
    raise ValueError(text)


def fail_with_cause(text):
    try:
        raise KeyError(text)
    except KeyError as exc:
        raise OSError(5, text, text) from exc


def fail_with_group(text):
    if sys.version_info >= (3, 11):
        group = ExceptionGroup(text, [ValueError(text), ExceptionGroup(text, [KeyError(text)])])  # noqa: F821
        group.add_note(text)
        raise group
    fail(text)


def in_thread(text):
    thread = threading.Thread(target=fail, args=(text,), name=text.replace("\0", ""))
    thread.start()
    thread.join()


def in_child(text):
    child = multiprocessing.get_context("fork").Process(target=fail, args=(text,), name=text)
    child.start()
    child.join()


def in_fork(text, function=fail):
    child = os.fork()
    if not child:
        function(text)
    os.waitpid(child, 0)


def print_exception(text):
    try:
        fail_with_cause(text)
    except OSError:
        traceback.print_exc()


def log_exception(text):
    try:
        fail_with_cause(text)
    except OSError:
        log.exception(text, stack_info=True)


ACTIONS = {
    "raise": fail,
    "cause": fail_with_cause,
    "group": fail_with_group,
    "exit": lambda text: sys.exit(text),
    "base": lambda text: (_ for _ in ()).throw(KeyboardInterrupt(text)),
    "reset": lambda text: (_ for _ in ()).throw(ConnectionResetError(text)),
    "thread": in_thread,
    "child": in_child,
    "fork": in_fork,
    "fork_exit": lambda text: in_fork(text, sys.exit),
    "del": Dies,
    "warn": warnings.warn,
    "print": lambda text: print(text, file=sys.stderr),
    "print_there": lambda text: print(text, file=sys.__stderr__),
    "bytes": lambda text: sys.stderr.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n"),
    "traceback": print_exception,
    "info": log.info,
    "arguments": lambda text: log.warning("%s and %r", text, text),
    "exception": log_exception,
    "faulty": lambda text: log.warning("%d", text),
    "odd": lambda text: log.warning("%s", Odd(text)),
    "extra": lambda text: log.info(
        "extra",
        extra={"time": text, "event": text, "peer": text.encode("utf-8", "replace"), text: [text, {text: Odd(text)}]},
    ),
    "own": own_log.warning,
    "own_faulty": lambda text: own_log.warning("%d", text),
    "long": lambda text: log.info(text * (20_000 // (len(text) or 1))),
    "level": lambda text: log.log(33, text),
}


class Evil(echo.EchoRequestHandler):
    def message_received(self, message):
        word, _, text = message.decode("utf-8", "surrogateescape").partition(" ")
        if word == "name":
            self.peer = text
        elif word == "broken":
            raise self.connection.failed(Quota(text))
        elif word == "reason":
            quota = type("Quota", (Quota,), {"reason": text})
            raise self.connection.failed(quota(text))
        elif word == "close2":
            os.close(2)
        elif word in ACTIONS:
            ACTIONS[word](text)
        self.send(message)
