"""The options of ``Server``, each declared once: name, type, default, meaning, and the values that it takes.

They are class attributes, as in ``socketserver``, and keyword arguments. A new one is a line in ``Options``, and a
line at the same place in ``ServerOptions``, which only type checkers and editors read (a test compares them). The
command line and the reference refer to ``OPTIONS``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import warnings
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple, TypedDict, TypeVar, Union, cast

from ..class_body import may_use
from .access import AccessList

MIN_HEADER_TIMEOUT = 3.0
"""Minimum of ``handshake_timeout``, in seconds, with a PROXY header: its packet may be lost and sent again
(specification, section 2)."""

_T = TypeVar("_T")


class Option:
    """A declared option. Class creation replaces it by its default, so that the attribute is a plain value."""

    name: str

    def __init__(self, default: Any, meaning: str, types: Any, minimum: Optional[float], none: str, shown: str) -> None:
        self.default = default
        self.meaning = meaning
        self.types: Tuple[Any, ...] = types if isinstance(types, tuple) else (types,)
        """The types that it takes. Empty: the code that uses the value checks it."""
        self.minimum = minimum
        self.none = none
        """The meaning of None; empty: None is not allowed."""
        self.shown = shown or repr(default)
        """The default as the reference shows it; given where the value depends on the system."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        OPTIONS[name] = self
        setattr(owner, name, self.default)

    @property
    def unit(self) -> str:
        return "seconds" if float in self.types else ""

    def check(self, value: object) -> None:
        """Raise ``TypeError`` or ``ValueError``, with the option's name, for a wrong value."""
        if not self.types or (value is None and self.none):
            return
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            raise TypeError(f"{self.name} is {value!r}; {self._rule()}")
        if self.minimum is not None and not self.minimum <= cast(float, value) < float("inf"):  # false for NaN
            raise ValueError(f"{self.name} is {value!r}; {self._rule()}")

    def _rule(self) -> str:
        cls = self.types[0]
        names = {bool: "True or False", int: "a number"}
        what = self.unit or names.get(cls, f"an {cls.__module__}.{cls.__name__}")
        least = "" if self.minimum is None else f", {self.minimum} or more"
        return f"expected {what}{least}" + (f", or None for {self.none}" if self.none else "")


OPTIONS: Dict[str, Option] = {}
"""The options by name, in the order of their declaration."""

_SECONDS = (int, float)


def _option(
    default: _T, meaning: str, types: Any = (), minimum: Optional[float] = None, *, none: str = "", shown: str = ""
) -> _T:
    """Declare an option, as ``dataclasses.field`` declares a field. Type checkers see its default."""
    return cast(_T, Option(default, meaning, types, minimum, none, shown))


class Options:
    """The options of a server, with their defaults. ``Server`` inherits them."""

    max_connections: Optional[int] = _option(
        1024,
        "maximum number of sessions at a time; further clients wait in the backlog",
        int,
        1,
        none="no limit",
    )
    max_connections_per_host: Optional[int] = _option(
        None,
        "maximum number of sessions at a time from one address; further connections are closed at once",
        int,
        1,
        none="no limit",
    )
    shutdown_timeout: Optional[float] = _option(
        10.0,
        "total time that a stop gives the sessions to finish; 0 cuts them at once",
        _SECONDS,
        0,
        none="no limit",
    )
    allow: Iterable[str] = _option((), "networks that may connect, like 192.0.2.0/24; empty: all")
    deny: Iterable[str] = _option((), "networks that may not connect; overrides `allow`")
    ssl_context: Optional[ssl.SSLContext] = _option(
        None,
        "the TLS context; another one may be assigned while the server runs, for later connections",
        ssl.SSLContext,
        none="no TLS",
    )
    handshake_timeout: Optional[float] = _option(
        10.0,
        "maximum time for the TLS handshake, and for the PROXY header, which needs 3 s or more",
        _SECONDS,
        0.001,
        none="no limit",
    )
    proxy_protocol: bool = _option(
        # Required, never guessed: a server that accepts a missing header lets clients forge their address.
        False,
        "every connection must begin with a PROXY header, version 1 or 2, which names the client",
        bool,
    )
    proxy_allow_from: Iterable[str] = _option(
        (), "networks that may send a PROXY header; other connections are closed at once; empty: all"
    )
    dual_stack: bool = _option(True, "the IPv6 address `::` accepts IPv4 clients, too", bool)
    unix_mode: Optional[int] = _option(
        None, "permissions of a Unix socket's path, like 0o660", int, 0, none="the umask's"
    )
    cpu_affinity: Union[str, Iterable[int], None] = _option(
        # The default is none: handlers that release the GIL for long, as in zlib or a database driver, need them all.
        None,
        'processors that the server\'s threads run on: `"auto"` for one of them on a build with the GIL, or their'
        " numbers",
        none="all",
    )
    request_queue_size: int = _option(
        socket.SOMAXCONN,
        "maximum number of clients that wait to be accepted; the system may allow fewer",
        int,
        0,
        shown="socket.SOMAXCONN",
    )
    allow_reuse_address: bool = _option(
        os.name == "posix",  # on Windows another program could take the port (tornado #551)
        "a restarted server gets its port at once; not on Windows",
        shown="True",
    )
    allow_reuse_port: bool = _option(False, "other processes may listen on the same port")
    daemon_threads: bool = _option(
        True, "sessions do not keep the process alive; a server that `start()` runs drains when the process exits"
    )
    reuse_threads: bool = _option(
        True,
        "a session may get the thread of an earlier one, with its `threading.local` data; False: a new thread",
        bool,
    )
    timeout: Optional[float] = _option(
        None,
        "maximum time that `handle_request()` waits for a client; the idle limit is `timeout` of the handler",
        _SECONDS,
        0,
        none="no limit",
    )


class ServerOptions(TypedDict, total=False):
    """The keyword arguments of ``Server``, for type checkers: ``**options: Unpack[ServerOptions]``."""

    max_connections: Optional[int]
    max_connections_per_host: Optional[int]
    shutdown_timeout: Optional[float]
    allow: Iterable[str]
    deny: Iterable[str]
    ssl_context: Optional[ssl.SSLContext]
    handshake_timeout: Optional[float]
    proxy_protocol: bool
    proxy_allow_from: Iterable[str]
    dual_stack: bool
    unix_mode: Optional[int]
    cpu_affinity: Union[str, Iterable[int], None]
    request_queue_size: int
    allow_reuse_address: bool
    allow_reuse_port: bool
    daemon_threads: bool
    reuse_threads: bool
    timeout: Optional[float]


STANDARD = ["request_queue_size", "allow_reuse_address", "allow_reuse_port", "daemon_threads", "timeout"]
"""These are attributes of every ``socketserver`` server, which programs assign to at any time."""


FIXED = frozenset(OPTIONS).difference(STANDARD)
"""The others are read once, when the server is made. They may not be assigned later, except ``ssl_context``."""


_DECISIVE = frozenset(
    [
        "max_connections_per_host",
        "allow",
        "deny",
        "ssl_context",
        "proxy_protocol",
        "proxy_allow_from",
        "dual_stack",
        "unix_mode",
    ]
)
"""Those that decide who gets in."""


_INSTEAD = {
    **dict.fromkeys(("allow", "deny", "proxy_allow_from"), "call set_access(allow, deny, proxy_allow_from)"),
    "shutdown_timeout": "call stop(timeout)",
}


_OF_HANDLERS = {
    "framing": "framing",
    "idle_timeout": "timeout",
    "message_timeout": "message_timeout",
    "send_timeout": "send_timeout",
}
"""Names that are easily taken for options of the server, and the attributes of handler classes that are meant."""


def no_option(owner: str, name: str, meant: str) -> str:
    """Return the text of an error: the option belongs to the handler, as its attribute ``meant``."""
    return f"{owner}() has no option {name!r}; set {meant} in the body of the handler class"


def options_of(server: Any, given: Mapping[str, Any]) -> Options:
    """Return the options of ``server``: those that are ``given``, then those in the body of a subclass of ``Server``.

    An attribute of another class, an attribute of the object and a method have the name of an option by chance; they
    are the program's own. Raises ``TypeError`` for an unknown option or a value of the wrong type, ``ValueError`` for a
    wrong value.
    """
    found = Options()
    for name in _DECISIVE.difference(given):
        _warn_of_attribute(type(server), name)
    for name in OPTIONS:
        bodies = [vars(cls) for cls in type(server).__mro__ if issubclass(cls, Options) and name in vars(cls)]
        values = [body[name] for body in bodies if not hasattr(body[name], "__get__")]
        setattr(found, name, getattr(server, name) if name in STANDARD else values[0])
    for name, value in given.items():
        if name in _OF_HANDLERS:
            raise TypeError(no_option(type(server).__name__, name, _OF_HANDLERS[name]))
        if name not in OPTIONS:
            raise TypeError(f"{type(server).__name__}() has no option {name!r}; it has {', '.join(OPTIONS)}")
        setattr(found, name, value)
        if not hasattr(getattr(type(server), name), "__get__"):
            vars(server)[name] = value
    for name, option in OPTIONS.items():
        option.check(getattr(found, name))
    if found.ssl_context is not None:
        _check_context(found.ssl_context)
    if found.cpu_affinity is not None:
        from ..transport import affinity

        found.cpu_affinity = affinity.checked(found.cpu_affinity)
    if found.unix_mode is not None and found.unix_mode > 0o777:  # 600 in decimal is 0o1130, which lets the group in
        raise ValueError(f"unix_mode is {found.unix_mode:#o}; expected permissions of three octal digits, like 0o660")
    seconds = found.handshake_timeout
    if found.proxy_protocol and seconds is not None and seconds < MIN_HEADER_TIMEOUT:
        raise ValueError(
            f"handshake_timeout is {seconds!r} s; a PROXY header needs {MIN_HEADER_TIMEOUT:g} s or more, since it may"
            " have to be sent again"
        )
    return found


_BETWEEN = ("echo.", "functools.", "socketserver.")
_NOT_OF_PROGRAMS = ("echo.", "builtins.", "socketserver.", "typing.")


def warn_of_handler(server: type, handler: Any, options: Options) -> None:
    """``RuntimeWarning`` for an attribute of the class ``handler`` that could be an option, if ``options`` have its
    default, or could be meant as the server's ``verify_request``, if no method of either class uses it."""
    if not isinstance(handler, type):
        return
    for name, option in OPTIONS.items():
        if name in _DECISIVE and getattr(options, name) in (option.default, []):
            _warn_of_attribute(handler, name, server)
    name = "verify_request"
    owner = next((base for base in handler.__mro__ if name in vars(base)), None)
    if owner is None or issubclass(server, owner) or not callable(vars(owner)[name]):
        return
    if not _is_used(name, handler, server):
        _warn(f"{owner.__name__}.{name} refuses nobody: {name} is a method of the server, not of its handlers")


def _warn_of_attribute(cls: type, name: str, server: Optional[type] = None) -> None:
    """``RuntimeWarning`` for an attribute of a class that is not a server of ours, as of a mixin, if it could be this
    option and no method of the classes uses it: it refuses nobody, and encrypts nothing. ``server``: the server's
    class, if ``cls`` is that of its handlers.

    Rejected: an error. A handler may use it, or any other code of a program that was written for ``socketserver``.
    """
    owner = next((base for base in cls.__mro__ if name in vars(base) and base is not Options), Options)
    if issubclass(owner, Options) or not _could_be(OPTIONS[name], vars(owner)[name]):
        return
    if _is_used(name, cls, *([] if server is None else [server])):
        return
    if server is not None:
        _warn(f"{owner.__name__}.{name} sets no option: {name} is one of the server, not of its handlers")
    else:
        _warn(
            f"{owner.__name__}.{name} is not an option, since {owner.__name__} is not a subclass of echo.Server; to"
            f" make it one, set it in the body of {cls.__name__}, or give it to the constructor"
        )


def _is_used(name: str, *classes: type) -> bool:
    """Whether a method of the program's in one of these classes may use the attribute."""
    bases = [base for cls in classes for base in cls.__mro__]
    own = [base for base in bases if not f"{base.__module__}.".startswith(_NOT_OF_PROGRAMS)]
    return any(may_use(base, name) for base in own)


def _warn(text: str) -> None:
    frame, depth = sys._getframe(), 1  # those of the program begin where it makes the server
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(_BETWEEN):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(text, RuntimeWarning, stacklevel=depth)


def _could_be(option: Option, value: Any) -> bool:
    if option.types:
        # Its type, and not isinstance(), for which an object that loads its content late would load it.
        if not issubclass(type(value), option.types) or value is option.default:
            return False
        with contextlib.suppress(TypeError, ValueError):
            option.check(value)
            return True
        return False
    if not issubclass(type(value), (str, list, tuple, set, frozenset)):  # to look into another iterable could use it up
        return False
    try:
        AccessList(value)
        return bool(value)
    except Exception:  # of the program's own classes, too
        return False


def _check_context(context: ssl.SSLContext) -> None:
    from ..transport import certificates

    certificates.check_revocation(context)


def assign(options: Options, name: str, value: Any) -> None:
    """A program assigns one of the ``FIXED`` options of a server that has been made. Only a TLS context takes effect,
    in the place of another one. Anything else is an ``AttributeError``."""
    now = getattr(options, name)
    if name == "ssl_context" and now is not None and isinstance(value, ssl.SSLContext):
        _check_context(value)
        options.ssl_context = value
    elif value is not now:
        how = _INSTEAD.get(name, "give it to the constructor")
        raise AttributeError(f"{name} cannot be assigned once the server is made; {how}")
