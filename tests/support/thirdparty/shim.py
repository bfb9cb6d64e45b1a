"""Imported at the start of every Python of ``tests/thirdparty.py``'s virtual environment, also those a suite starts.

While a suite runs, keeps it on this machine and, with ``ECHO_THIRDPARTY=echo``, puts ``echo.Server`` in place of every
TCP server of ``socketserver`` before anything derives from one: ``HTTPServer``, ``WSGIServer`` and the suite's own.
"""

import errno
import ipaddress
import os
import socket
import socketserver
import sys


def host_of(value):
    """``value`` as an address, or as a name if it is not an address."""
    text = value.decode("ascii", "replace") if isinstance(value, (bytes, bytearray)) else str(value or "localhost")
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text


def is_outside(host):
    """Whether this address, or this name, may belong to another machine."""
    if isinstance(host, str):
        return host not in ("localhost", "<broadcast>", socket.gethostname())
    return not (host.is_loopback or host.is_unspecified)


def stay_on_this_machine(event, args):
    """An audit hook: calls that would reach another machine or a name server fail, as they do without a network."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if isinstance(address, tuple) and is_outside(host_of(address[0])):
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = host_of(args[0])
        if is_outside(host) and (isinstance(host, str) or event == "socket.gethostbyaddr"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def replace_the_servers():
    sys.path.insert(0, os.environ["ECHO_THIRDPARTY_ROOT"])
    try:
        import echo
    finally:
        del sys.path[0]

    class TCPServer(echo.Server):
        __module__ = "socketserver"

        def __init__(self, *args, **kwargs):
            with open(os.environ["ECHO_THIRDPARTY_COUNT"], "ab") as file:
                file.write(b".")  # the length of the file is the number of servers
            super().__init__(*args, **kwargs)

    class ThreadingTCPServer(TCPServer):
        __module__ = "socketserver"

    socketserver.TCPServer = TCPServer
    socketserver.ThreadingTCPServer = ThreadingTCPServer
    if hasattr(socketserver, "UnixStreamServer"):

        class UnixStreamServer(TCPServer):
            __module__ = "socketserver"
            address_family = socket.AF_UNIX

        class ThreadingUnixStreamServer(UnixStreamServer):
            __module__ = "socketserver"

        socketserver.UnixStreamServer = UnixStreamServer
        socketserver.ThreadingUnixStreamServer = ThreadingUnixStreamServer

    standard = socketserver.ThreadingMixIn

    class Threads:
        """Serve each request in a thread, as ``class S(ThreadingMixIn, Base)`` expects, whatever ``Base`` does."""

        process_request = echo.Server.process_request
        process_request_thread = echo.Server.process_request_thread

    class ThreadingMixIn:
        """Stands for the standard mixin in a list of bases. Before an ``echo.Server`` it cannot be the standard one,
        since that is a base of ``echo.Server`` itself and Python refuses a class with such an order."""

        __module__ = "socketserver"

        def __mro_entries__(self, bases):
            serves = any(isinstance(base, type) and issubclass(base, echo.Server) for base in bases)
            return (Threads if serves else standard,)

        def __getattr__(self, name):
            return getattr(standard, name)

        def __instancecheck__(self, instance):
            return isinstance(instance, standard)

        def __subclasscheck__(self, cls):
            return issubclass(cls, standard)

    socketserver.ThreadingMixIn = ThreadingMixIn()


if "ECHO_THIRDPARTY" in os.environ:
    sys.addaudithook(stay_on_this_machine)
    if os.environ["ECHO_THIRDPARTY"] == "echo":
        replace_the_servers()
