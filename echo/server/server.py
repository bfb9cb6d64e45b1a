"""``Server``: ``socketserver.ThreadingTCPServer`` with an accept loop that stops, bounds and survives.

It runs any ``socketserver`` handler class and imports none: a handler that wants more attaches itself (``attach``).
It has four layers. Each has a module of its own, and uses only those below::

    Server             server.py           runs: serve_forever, start, shutdown, stop
    AcceptingServer    accepting.py        the accept loop
    SessionServer      session_server.py   sessions, from the accepted socket to the closed one
    ListeningServer    listening.py        the options and the listening socket

The rules of this one:

* A ``shutdown()`` belongs to one run of the loop (``Serving``). With a flag on the server, as in the standard library,
  a second ``shutdown()`` poisons the next ``serve_forever()``, and an early one waits for ever.
* The states of a stop, who waits for whom, and the order of locks are in ``stopping``.
* Code that only some options need (TLS, PROXY, affinity) is imported where the option is read.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Callable, ContextManager, Optional, TypeVar

from ..beginning import Thread
from ..sockets import expect_shut_down
from . import at_exit, forking, threads
from .accepting import AcceptingServer
from .listening import is_listening
from .options import FIXED, OPTIONS, assign
from .serving import Serving
from .signal_safe import MOMENT, blocked_by_caller, is_held
from .stopping import CUT_GRACE, Past, Stop

_Self = TypeVar("_Self", bound="Server")


class Server(AcceptingServer):
    """A TCP server with one thread for each client.

    ``server_address`` is ``(host, port)``, port 0 for any free one, or a Unix socket's path.
    ``RequestHandlerClass`` is any ``socketserver`` handler class. The options (``Options``) are class attributes, as
    in ``socketserver``, and keyword arguments. Raises ``TypeError`` for an unknown option, ``TypeError`` or
    ``ValueError`` with the option's name for a wrong value, and ``OSError`` if the address is not available.

    Use it as ``with Server(...) as server: server.serve_forever()``, or ``server.start()`` to serve in the background
    and ``server.stop()`` to end. All methods may be called in any order and from any thread, a handler's
    and a signal handler's among them. ``max_connections=1`` serves one client at a time.

    A subclass may use every name for its own attributes and methods, except those of ``socketserver`` and those that
    begin with ``_echo_``. An attribute is an option only in the body of a subclass of this class. The methods of the
    standard library may be called by name, as in ``socketserver.TCPServer.__init__(self, ...)``, and each may be
    replaced: a session is known from ``get_request()`` to ``shutdown_request()`` or ``close_request()``.

    It differs from the standard library's server in these points: only one thread serves at a time (``RuntimeError``);
    an exception in ``service_actions()`` does not end the loop; ``server_close()`` ends the sessions, within
    ``shutdown_timeout``, which takes the place of ``block_on_close``
    (``socketserver.TCPServer.server_close(server)`` closes the listening socket only). The children of ``ForkingMixIn``
    have the same time, and are killed then; if the class sets ``block_on_close`` to false, they are left alone.
    """

    _echo_cut_grace = CUT_GRACE

    _echo_when_serving: Optional[Callable[[], None]] = None
    """Called when a run has begun, in the thread that serves."""

    def _echo_prepare(self) -> None:
        super()._echo_prepare()
        self._echo_lock = threading.RLock()
        self._echo_past = Past.NOTHING
        self._echo_thread: Optional[threading.Thread] = None  # of start()

    if not TYPE_CHECKING:  # checkers would allow the assignment of any attribute

        def __setattr__(self, name, value):
            options = vars(self).get("_echo_options") if name in FIXED else None
            # An option that is fixed by now is checked. A subclass that does not set the option may have an attribute
            # of its own with this name.
            if options and (type(self) is Server or getattr(options, name) != OPTIONS[name].default):
                assign(options, name, value)
            super().__setattr__(name, value)

    # Serving.

    def serve_forever(self, poll_interval: Optional[float] = 0.5) -> None:
        """Accept connections until ``shutdown()``, ``stop()`` or ``server_close()``; then return. The last two drain
        the sessions first, so that a program does not end in the middle of that.

        Sleeps while there is nothing to do. ``poll_interval``, in seconds, matters only to a subclass with
        ``service_actions()``, which is called that often. Returns at once if ``shutdown()`` came first or the
        server is closed; raises ``RuntimeError`` if it is serving already.
        """
        serving = self._echo_new_serving()
        if serving is not None:
            self._echo_serve(serving, poll_interval)

    def handle_request(self) -> None:
        """Accept one connection and start its session; after ``timeout`` seconds call ``handle_timeout()`` instead.
        If descriptors are missing, it returns without a client, after a pause of a second at most.
        Raises ``ValueError`` if the server is closed, as the standard library does: a program that calls this in a loop
        would never end. Raises ``RuntimeError`` if it is serving already."""
        if self._echo_is_closed():
            raise ValueError("the server is closed")
        try:
            serving = self._echo_new_serving()
        except OSError as exc:
            self._echo_not_begun(exc)
            return
        if serving is not None:
            timeouts = [seconds for seconds in (serving.listener_timeout, self.timeout) if seconds is not None]
            self._echo_serve(serving, min(timeouts, default=None), once=True)

    def start(self: _Self) -> _Self:
        """Serve in a background thread; return the server. Does nothing if it is serving already; ``RuntimeError`` if
        it is closed. In a subclass that is a ``threading.Thread``, too, this is the thread's ``start()``."""
        if isinstance(self, threading.Thread):
            threading.Thread.start(self)
            return self
        serving = thread = None
        try:
            with self._echo_lock:
                if self._echo_is_closed():
                    raise RuntimeError("the server is closed; make a new one")
                if self._echo_serving is not None:
                    return self
                if self._echo_past is Past.SHUTDOWN:
                    self._echo_past = Past.NOTHING
                serving = self._echo_new_serving()
                if serving is None:  # a stop() has begun since the look above; it takes no lock
                    raise RuntimeError("the server is closed; make a new one")
                self._echo_begin_serving(serving)
                thread = Thread(target=self._echo_serve, args=(serving,), name="echo-server", daemon=True)
                self._echo_thread = thread
            # Without the lock: starting waits for the thread, and a signal handler may run in the meantime.
            at_exit.register(self._echo_close_at_exit)  # daemon threads would die in mid-reply (gh-113964)
            thread.start()
            serving.thread_id = thread.ident or 0  # from here on this thread may wait for it
        except BaseException:
            if serving is not None and (thread is None or not thread.has_begun()):
                self._echo_end_serving(serving)
            raise
        return self

    def _echo_new_serving(self) -> Optional[Serving]:
        """Return what a run needs, before the run is known to anybody; None if the server is closed.

        Apart from ``_echo_begin_serving``, so that a ``try`` that ends with ``_echo_end_serving`` can stand around it:
        KeyboardInterrupt may come between any two lines, and a run that has begun and never ends would make each later
        stop wait.
        """
        with self._echo_lock:
            if self._echo_is_closed():
                return None
            if self._echo_serving is not None:
                raise RuntimeError("the server is serving already")
            try:
                expect_shut_down(self.socket)
                return Serving(self.socket, shared=self._echo_shares_socket())
            except OSError:
                # A signal handler has stopped the server meanwhile; or the program has, in its own way, before the run.
                if self._echo_stop is not None or self._echo_past is Past.SHUTDOWN:
                    return None
                raise

    def _echo_is_closed(self) -> bool:
        """Whether the server is closed. One that has got another listening socket since then is open again."""
        stop = self._echo_stop
        if stop is None:
            return False
        if not stop.ended.is_set() or not is_listening(self.socket):
            return True
        with self._echo_lock:
            self._echo_past = Past.NOTHING
            self._echo_session_threads = threads.Threads()
            vars(self).pop("_echo_stop", None)
        return False

    def _echo_begin_serving(self, serving: Serving) -> None:
        """Begin this run, unless start() has begun it."""
        with self._echo_lock:
            if self._echo_serving is serving:
                return
            if self._echo_serving is not None:
                raise RuntimeError("the server is serving already")
            if self._echo_past < Past.SERVED:
                # Not before: until then a child may serve, too. That is how several processes share a port.
                forking.in_child(self._echo_let_go)
            self._echo_serving = serving
            # Only now: the shutdown() of a signal handler either found no run, and is in _echo_past, or found this one.
            if self._echo_past is Past.SHUTDOWN or self._echo_stop is not None:
                serving.stop()
            self._echo_past = max(self._echo_past, Past.SERVED)

    def _echo_end_serving(self, serving: Serving) -> None:
        with self._echo_lock:
            # Another thread's run may have begun before this one could: then the socket's mode is that run's.
            serving.close(restore=self._echo_stop is None and self._echo_serving in (serving, None))
            if self._echo_serving is not serving:
                return  # it has not begun: it was refused, or a KeyboardInterrupt came first
            self._echo_serving = None
            # Only now: until the line above, a signal handler in this thread may leave its stop to this loop.
            stop = self._echo_stop
            if stop is not None and stop.left_to_loop:
                stop.thread_id = threading.get_ident()
        serving.ended.set()
        if stop is not None:
            if stop.left_to_loop:
                self._echo_run_stop(stop)
            else:
                stop.ended.wait()  # the stop has waited for this run, and for nothing that comes after it

    def _echo_serve(self, serving: Serving, seconds: Optional[float] = 0.5, *, once: bool = False) -> None:
        """Accept clients in the calling thread until a stop or, if ``once``, until a client or ``seconds`` are over."""
        try:
            self._echo_begin_serving(serving)
            if self._echo_when_serving is not None:
                self._echo_when_serving()
            serving.enter()
            if self._echo_balance is not None:
                self._echo_registry.publish = self._echo_balance.set
            if once:
                forking.call(self._echo_accept_clients, serving, seconds, once)
            else:
                self._echo_past = Past.LOOP
                with self._echo_kept_to_processors():
                    forking.call(self._echo_accept_clients, serving, seconds, once)
        finally:
            self._echo_end_serving(serving)

    def _echo_kept_to_processors(self) -> ContextManager[None]:
        processors = self._echo_options.cpu_affinity
        if processors is None:
            return contextlib.nullcontext()
        from ..transport import affinity

        return affinity.kept_to_some(processors)

    # Stopping.

    def shutdown(self) -> None:
        """End ``serve_forever()`` and wait until it has ended; sessions go on.

        Without a run it returns at once. Before the first run, it makes that one return at once: a stop must not
        lose against the start of a thread. In the serving thread itself (a signal handler) it does not wait.
        """
        serving = self._echo_end_loop()
        if serving is not None:
            serving.ended.wait()

    def _echo_end_loop(self) -> Optional[Serving]:
        """Let the loop end; return the run, if this thread may wait for its end."""
        with self._echo_lock:
            serving = self._echo_serving
            if serving is None:
                self._echo_past = max(self._echo_past, Past.SHUTDOWN)
                return None
            serving.stop()
        return None if serving.thread_id == threading.get_ident() or self._echo_holds_lock() else serving

    @property
    def _BaseServer__shutdown_request(self) -> bool:  # noqa: N802 (socketserver's name)
        """The standard library's private flag. Programs set it to end ``serve_forever()`` without waiting."""
        serving = self._echo_serving
        return self._echo_past is Past.SHUTDOWN if serving is None else serving.stopping

    @_BaseServer__shutdown_request.setter
    def _BaseServer__shutdown_request(self, value: bool) -> None:  # noqa: N802
        if value:
            self._echo_end_loop()
        elif self._echo_past is Past.SHUTDOWN:
            self._echo_past = Past.NOTHING

    def _echo_holds_lock(self) -> bool:
        """Whether the calling thread holds a lock that others need to end: a signal handler has interrupted a method
        that holds it, and must not wait for them."""
        serving = self._echo_serving
        in_loop = serving is not None and serving.is_locked_here()
        ours = in_loop or is_held(self._echo_lock) or self._echo_registry.is_locked_here()
        return ours or blocked_by_caller()

    def stop(self, timeout: Optional[float] = None) -> bool:
        """Stop serving, drain, close; return whether all sessions finished in time.

        ``timeout``, in seconds, replaces ``shutdown_timeout``, and brings the deadline of a stop that is under way
        forward. 0 gives no time: it cuts each session that does not end at that very moment, as an idle one may.
        Idempotent. In a session's own thread or the serving thread it begins the stop and returns at once, and the
        value that it returns means nothing.
        """
        if timeout is not None:
            self._echo_hurry(timeout)
        if self._echo_stop is None:
            self.server_close()
        else:  # it has begun: wait for its end, and call the server_close() of a subclass no second time
            Server.server_close(self)
        return self._echo_stop is not None and self._echo_stop.cut == 0

    def _echo_hurry(self, timeout: float) -> None:
        """Bring the deadline forward of the stop that is under way, or replace that of the one to come."""
        OPTIONS["shutdown_timeout"].check(timeout)
        options = self._echo_options
        with self._echo_lock:
            if self._echo_stop is None or options.shutdown_timeout is None:
                options.shutdown_timeout = timeout
            else:
                options.shutdown_timeout = min(timeout, options.shutdown_timeout)
            if self._echo_stop is not None:
                self._echo_stop.hurry(timeout)

    def server_close(self) -> None:
        """Stop serving and accepting, drain the sessions until one deadline, cut the rest, and log how many.

        Idle sessions end at once; a busy one answers what has reached this host. Waits until all that is done, except
        in a session's own thread and in the serving thread: there it begins the stop and returns.
        """
        me = threading.get_ident()
        in_session = self._echo_registry.serves(me)
        may_not_wait = in_session or self._echo_holds_lock()
        new = Stop(self._echo_registry, me, self._echo_cut_grace)
        # setdefault() is atomic. After an "if", the handler of a signal could begin another stop.
        stop = vars(self).setdefault("_echo_stop", new)
        serving = self._echo_serving
        in_loop = serving is not None and serving.thread_id == me
        if in_loop or may_not_wait:  # the table in ``stopping``, except its last line
            # The loop takes no stop if it is one that start() begins here, and another thread has just ended it.
            if stop is new and (in_session or not (in_loop and self._echo_leave_to_loop(stop))):
                self._echo_run_stop_in_thread(stop)
            return
        if stop is new:
            self._echo_run_stop(stop)
        elif stop.thread_id == me:  # a signal handler has interrupted it
            return
        else:
            stop.ended.wait()
            if self._echo_stop is not stop:  # its thread did not start
                self.server_close()
                return
        thread = self._echo_thread
        if thread is not None and thread.ident not in (None, me) and self._echo_serving is None:  # the loop has ended
            thread.join(MOMENT)  # it has only its last lines left to run

    def _echo_leave_to_loop(self, stop: Stop) -> bool:
        """Let the thread that serves run the stop when its loop has ended; return whether one serves."""
        with self._echo_lock:
            if self._echo_serving is None:
                return False
            stop.thread_id, stop.left_to_loop = 0, True
            self._echo_serving.stop()
            return True

    def _echo_run_stop_in_thread(self, stop: Stop) -> None:
        stop.thread_id = 0  # not this thread: its next call may have to wait
        try:
            if blocked_by_caller():  # Thread.start() would wait for this thread
                _thread.start_new_thread(self._echo_run_stop, (stop,))
            else:
                Thread(target=self._echo_run_stop, args=(stop,), name="echo-server-close").start()
        except (RuntimeError, MemoryError):  # the system has no thread now
            if not self._echo_leave_to_loop(stop):
                vars(self).pop("_echo_stop")  # so that another thread can stop the server
                stop.ended.set()
                raise

    def _echo_run_stop(self, stop: Stop) -> None:
        stop.thread_id = threading.get_ident()
        try:
            serving = self._echo_end_loop()
            with self._echo_lock:
                timeout = self._echo_options.shutdown_timeout
                stop.begin(timeout)
                hurried = self._echo_options.shutdown_timeout
                if hurried is not None and hurried != timeout:  # by a signal handler here, before there was a deadline
                    stop.hurry(hurried)
            loop_ended = serving is None or stop.wait_for_loop(serving.ended)
            self._echo_release_path()
            if timeout != 0 and loop_ended:
                self._echo_accept_waiting(stop)
            super().server_close()
            children = getattr(self, "active_children", None) if self._echo_waits_for_children else None
            stop.finish(children or set(), log_end=self._echo_past >= Past.SERVED, loop_ended=loop_ended)
            self._echo_session_threads.close()
        except BaseException:  # Ctrl-C: no later stop would do the rest
            serving = self._echo_end_loop()
            self._echo_release_path()
            super().server_close()
            if serving is not None:  # until its end, it may begin sessions
                serving.ended.wait(time.monotonic() + MOMENT)
            stop.cut_all()
            raise
        finally:
            stop.ended.set()
            # Last: an exit that comes during the stop waits for it, and holds the lock of atexit.
            at_exit.unregister(self._echo_close_at_exit)

    def _echo_accept_waiting(self, stop: Stop) -> None:
        """Accept the clients that wait in the backlog: closing the listening socket would reset them, together with
        what they have sent, and a load balancer would take that for an answer. At most as many as the backlog holds,
        since others may go on coming, and as many as there is room for (``max_connections``)."""
        if self._echo_past is Past.LOOP and self.socket is not self._echo_inherited and is_listening(self.socket):
            try:
                serving = Serving(self.socket)
            except OSError:
                return  # out of descriptors: nobody could be let in
            self._echo_failures.resume()
            try:
                for number in range(max(1, self.request_queue_size)):
                    if not self._echo_accept(serving) or stop.is_over():
                        break
                    if number == 0:
                        stop.start_draining()  # now: after a flood of others, the sessions would have no time left
            finally:
                serving.close(restore=False)

    def _echo_close_at_exit(self) -> None:
        if self._echo_stop is not None:
            self._echo_thread = None  # not to be joined: after its stop it may wait for the lock of atexit, held now
        self.server_close()

    def _echo_let_go(self) -> None:
        """In a forked child: a server that serves is its parent's. Here it is closed, and nobody's sessions end."""
        self._echo_lock = threading.RLock()
        self._echo_registry.let_go()
        serving, self._echo_serving, self._echo_thread = self._echo_serving, None, None
        if serving is not None:
            serving.let_go()
        self._echo_session_threads.let_go()
        self._echo_stop = stop = Stop(self._echo_registry, threading.get_ident(), self._echo_cut_grace)
        stop.cut = 0
        stop.ended.set()
        self.socket.close()  # so that the port is free when the parent closes it, however long the child lives
