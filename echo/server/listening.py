"""The listening socket: how it is made or taken over, what accepted sockets inherit from it, how it is closed.

The path of a Unix socket is a matter of ``unix_paths``. Nothing here knows sessions.
"""

from __future__ import annotations

import functools
import os
import socket
import socketserver
import sys
from typing import TYPE_CHECKING, Any, Mapping, Optional, Tuple, Type, TypeVar

from ..class_body import check_chain, check_methods, defining
from ..sockets import INET, check_path, keep_urgent_data, prepare, with_zone
from . import forking, unix_paths
from .admission import guarded_socket
from .options import Options, options_of, warn_of_handler

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # none of the checkers' packages is needed to run

    from .options import ServerOptions

_ACCEPTED_BLOCK = sys.platform.startswith("linux")  # elsewhere accepted sockets have the listening one's mode

_CALLED = (
    *("get_request", "verify_request", "process_request", "process_request_thread", "finish_request"),
    *("shutdown_request", "close_request", "handle_error", "handle_timeout", "service_actions"),
    *("server_bind", "server_activate", "server_close"),
)
"""The methods of ``socketserver`` that this server itself calls."""

FORKING: Any = getattr(socketserver, "ForkingMixIn", ())


class PlainListener(socket.socket):
    """A listening socket whose ``family`` and ``type`` are plain numbers, as the system has them.

    ``accept()`` reads both for each connection. The properties of ``socket.socket`` build an ``enum`` member each time:
    3 of the 60 us of a short session.
    """

    __slots__ = ()

    family = socket.SocketType.family  # type: ignore[assignment]
    type = socket.SocketType.type  # type: ignore[assignment]


_Self = TypeVar("_Self", bound="ListeningServer")


class ListeningServer(Options, socketserver.ThreadingTCPServer):
    """The part of ``Server`` that has the options and the listening socket."""

    server_address: Any
    """Where it listens: ``(host, port)``, two numbers more with IPv6, or a Unix socket's path."""
    # Any: socketserver's type knows no paths, and checkers would refuse a wider one where it goes to echo.connect().

    _echo_base_accepts = False
    """Whether a base that stands after this class has a ``get_request``."""

    _echo_before_filter: Optional[type] = None
    """The class before the first one behind ``socketserver``'s that has a ``verify_request``."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_methods(cls, _CALLED)
        check_chain(cls, "verify_request")
        cls._echo_base_accepts = defining(cls, "get_request")[-2:] != [ListeningServer, socketserver.TCPServer]
        classes = defining(cls, "verify_request")
        behind = classes[classes.index(socketserver.BaseServer) + 1 :]
        for mixin in behind[:1]:
            check_methods(mixin, ("verify_request",))
            cls._echo_before_filter = cls.__mro__[cls.__mro__.index(mixin) - 1]

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Any,  # noqa: N803 (socketserver's name)
        bind_and_activate: bool = True,
        **options: Unpack[ServerOptions],
    ) -> None:
        if bind_and_activate:  # else its file may exist, as in from_socket()
            check_path(server_address)
        check_arguments(server_address, RequestHandlerClass, bind_and_activate)
        chosen = self._echo_choose(options, family_of(server_address) or self.address_family)
        warn_of_handler(type(self), RequestHandlerClass, chosen)
        methods = type(self).server_bind, type(self).server_activate
        ours = ListeningServer.server_bind, ListeningServer.server_activate
        self._echo_starts_at_once = bind_and_activate and methods == ours
        super().__init__(server_address, RequestHandlerClass, bind_and_activate)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Make all state here: subclasses may call ``socketserver.TCPServer.__init__`` instead of the method above."""
        self = super().__new__(cls)
        self._echo_prepare()
        return self

    def _echo_prepare(self) -> None:
        self._echo_inherited: Optional[socket.socket] = None  # the listening socket, if it was made elsewhere
        self._echo_forks = forking.forks
        self._echo_waits_for_children = isinstance(self, FORKING) and self.block_on_close
        if self._echo_waits_for_children:
            self.block_on_close = False  # the mixin would wait without a limit, even in a signal handler
        self._echo_path: Any = None
        self._echo_inode: Optional[unix_paths.Inode] = None
        self._echo_starts_at_once = False
        """Whether no code of a program runs between binding and listening: it may set permissions there."""

    @functools.cached_property
    def _echo_options(self) -> Options:
        """The options in force. Each session reads them several times, so that they become a plain attribute."""
        options = self._echo_choose({}, self.address_family)
        warn_of_handler(type(self), getattr(self, "RequestHandlerClass", None), options)
        return options

    def _echo_choose(self, given: Mapping[str, Any], family: Any) -> Options:
        """Check the options and the address family, before anything is bound."""
        options = options_of(self, given)
        self.address_family = family
        self._echo_options = options
        return options

    @classmethod
    def from_socket(
        cls: Type[_Self],
        sock: socket.socket,
        RequestHandlerClass: Any,  # noqa: N803
        **options: Unpack[ServerOptions],
    ) -> _Self:
        """Serve on a listening socket made elsewhere: by systemd, a parent process, the server before this one.

        It is this server's from now on, and is closed with it. Its address, and a Unix socket's path, are left to the
        program that bound it. An ``echo.Server`` that has bound a path removes it at its end: to hand a Unix socket
        from server to server, bind it elsewhere, and let each of them use this method. Its mode becomes non-blocking
        and stays so, since other processes may share that. Raises ``ValueError`` for a socket that does not listen, and
        the rest as ``Server`` does.
        """
        check_listening(sock)
        server = cls(sock.getsockname(), RequestHandlerClass, False, **options)
        server.socket.close()
        server.address_family = sock.family
        options_now = server._echo_options
        check_addresses(server, options_now.allow, options_now.deny, options_now.proxy_allow_from)
        if options_now.unix_mode is not None:
            raise ValueError("unix_mode needs a path that the server itself binds")
        if not options_now.dual_stack and accepts_ipv4(sock):
            raise ValueError("dual_stack=False needs an address that the server itself binds; this socket accepts IPv4")
        server.socket = server._echo_inherited = sock
        sock.setblocking(False)
        server.server_activate()
        return server

    def server_bind(self) -> None:
        if os.name == "nt":
            self.socket.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE"), 1)  # noqa: B009
        if self.address_family not in INET:
            self.allow_reuse_port = False  # only TCP has ports
        if self.allow_reuse_port and hasattr(socket, "SO_REUSEPORT"):  # the standard library does it since 3.11
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if self.address_family == socket.AF_INET6:
            set_dual_stack(self.socket, self._echo_options.dual_stack)
        is_unix = self.address_family == getattr(socket, "AF_UNIX", None)
        if self._echo_options.unix_mode is not None and not (is_unix and unix_paths.is_file(self.server_address)):
            raise ValueError("unix_mode needs a path; nothing else has permissions")
        if not is_unix:
            self.server_address = with_zone(self.server_address)
            super().server_bind()
        else:
            self._echo_path = unix_paths.absolute(self.server_address)
            with unix_paths.start_alone(self._echo_path):
                unix_paths.claim_path(self.server_address)
                super().server_bind()
                self._echo_inode = unix_paths.inode_of(self._echo_path)
                self._echo_bound_by = os.getpid()  # a forked worker's end is not the path's
                if self._echo_inode is not None and self._echo_options.unix_mode is not None:
                    # Nobody can have connected: it does not listen yet.
                    unix_paths.set_mode(self._echo_path, self._echo_options.unix_mode)
                if self._echo_starts_at_once:
                    self.socket.listen(self.request_queue_size)  # until then another start takes it for a dead server's

    def _echo_shares_socket(self) -> bool:
        """Whether another process may have the listening socket, and its mode, as well."""
        return self.socket is self._echo_inherited or self._echo_forks != forking.forks

    def server_activate(self) -> None:
        prepare(self.socket)  # accepted sockets inherit it: no system call for each connection
        if self._echo_inode is not None and not self._echo_starts_at_once:
            with unix_paths.start_alone(self._echo_path):
                super().server_activate()
                unix_paths.check_not_taken(self._echo_path, self._echo_inode)
        elif self.socket is not self._echo_inherited:  # else its maker has chosen the backlog
            super().server_activate()
        if type(self.socket) is socket.socket:
            self.socket.__class__ = PlainListener

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether to serve a client. By default, ask a mixin that is listed after the server's class, too. The standard
        library's method asks nobody: it would let in whom such a mixin rejects."""
        answer = super().verify_request(request, client_address)
        if self._echo_before_filter is not None and answer:
            behind: Any = super(self._echo_before_filter, self)
            answer = behind.verify_request(request, client_address)
        return answer

    def get_request(self) -> Tuple[socket.socket, Any]:
        request, client_address = super().get_request()  # it may be that of a base which stands after this class
        if not _ACCEPTED_BLOCK and request.gettimeout() is None:  # else socket.setdefaulttimeout() says how long
            request.setblocking(True)
        if self.address_family == getattr(socket, "AF_UNIX", None):
            client_address = unix_paths.peer_name(request)
            keep_urgent_data(request)
        options = self._echo_options
        if options.ssl_context is not None or options.proxy_protocol:
            request = guarded_socket(self, request)
        return request, client_address

    def _echo_release_path(self) -> None:
        """Remove a Unix socket's path, while the socket is open."""
        if self._echo_inode is not None and self._echo_bound_by == os.getpid():
            unix_paths.release_path(self._echo_path, self._echo_inode)


def accepts_ipv4(sock: socket.socket) -> bool:
    """Whether IPv4 clients can connect to this IPv6 socket, too."""
    wide = sock.family == socket.AF_INET6 and sock.getsockname()[0] == "::"
    return wide and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def set_dual_stack(sock: socket.socket, dual_stack: bool) -> None:
    """Let an IPv6 socket accept IPv4 clients or not, unless a subclass has chosen before."""
    with socket.socket(sock.family, sock.type) as other:
        default = other.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == default:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)


def is_listening(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # closed
        return False


def family_of(address: Any) -> Optional[socket.AddressFamily]:
    """Return the address family that an address needs; None for any."""
    if isinstance(address, (str, bytes)):
        if not hasattr(socket, "AF_UNIX"):
            raise ValueError("this system has no Unix sockets; an address is (host, port)")
        return socket.AF_UNIX
    if isinstance(address, tuple) and address and ":" in str(address[0]):
        return socket.AF_INET6
    return None


def check_arguments(address: Any, handler_class: Any, bind_and_activate: Any) -> None:
    """``TypeError`` for the mistakes that are easily made with these. A program may have an own meaning for other
    values, as the standard library allows it."""
    if bind_and_activate not in (True, False):  # a TLS context, for example, which would otherwise have no effect
        raise TypeError(
            f"bind_and_activate is {bind_and_activate!r}; expected True or False. It is the third positional argument;"
            " give others by their names"
        )
    hint = "; were the address and the handler class exchanged?"
    if isinstance(address, type):
        raise TypeError(f"the address is {address!r}; expected (host, port) or a Unix socket's path{hint}")
    if isinstance(handler_class, (tuple, str, socketserver.BaseRequestHandler)):
        is_other = isinstance(handler_class, tuple)
        raise TypeError(f"the handler class is {handler_class!r}; expected the class itself{hint if is_other else ''}")
    if isinstance(handler_class, type) and handler_class is not object and takes_nothing(handler_class):
        raise TypeError(
            f"the handler class {handler_class.__name__} takes no arguments; derive it from echo.MessageRequestHandler"
        )
    if isinstance(address, tuple) and len(address) > 1 and isinstance(address[1], str):
        raise TypeError(f"the port is {address[1]!r}; expected a number, like int({address[1]!r})")


def takes_nothing(cls: type) -> bool:
    """Whether a class cannot be called with a request, its address and the server, since it defines no ``__init__``."""
    made_by: Any = cls
    return made_by.__init__ is object.__init__ and made_by.__new__ is object.__new__


def check_addresses(server: Any, allow: Any, deny: Any, proxy_allow_from: Any = ()) -> None:
    """``ValueError`` for networks, or a limit for each host, that would do nothing: the clients have no addresses, or
    no header is read, or forked children serve them, which nobody counts."""
    if server._echo_options.max_connections_per_host is not None and isinstance(server, FORKING):
        raise ValueError("max_connections_per_host counts threads; ForkingMixIn has max_children, for all hosts")
    if server.address_family in INET:
        if proxy_allow_from and not server._echo_options.proxy_protocol:
            raise ValueError("proxy_allow_from needs proxy_protocol; without it, every client may connect")
        return
    needing = {"proxy_allow_from": proxy_allow_from}
    if not server._echo_options.proxy_protocol:
        needing.update(allow=allow, deny=deny, max_connections_per_host=server._echo_options.max_connections_per_host)
    for name, value in needing.items():
        if value:
            kind = "a Unix" if server.address_family == getattr(socket, "AF_UNIX", None) else "this kind of"
            raise ValueError(f"{name} needs addresses, and clients of {kind} socket have none")


def check_listening(sock: socket.socket) -> None:
    """``ValueError`` for a socket that clients cannot be accepted from."""
    if sock.type != socket.SOCK_STREAM:
        raise ValueError("not a stream socket; a server needs one that listens")
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise ValueError(f"this socket cannot be served: {exc.strerror}") from None
    if not listens:
        raise ValueError("this socket does not listen; bind it, and call listen(), first")
