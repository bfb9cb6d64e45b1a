"""The third layer of ``Server``: the accept loop.

Nothing that a client, a handler or the system does ends the loop. Only a stop does, or the loss of the listening
socket.
"""

from __future__ import annotations

import errno
import logging
import socketserver
import sys
import threading
import time
from typing import Any, Optional

from ..sockets import is_readable
from . import forking, threads
from .admission import Refused, log_refused
from .back_off import BackOff
from .listening import ListeningServer, is_listening
from .reporting import log_event
from .serving import Serving, SharedPort
from .session_server import SessionServer
from .sessions import Session
from .signal_safe import STEP

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class AcceptingServer(SessionServer):
    """The part of ``Server`` that has the accept loop."""

    _echo_serving: Optional[Serving] = None
    """The run of the accept loop, while there is one."""

    _echo_balance: Optional[SharedPort] = None
    """Keeps the sessions even over several processes that share the port; None: this process is alone."""

    def _echo_prepare(self) -> None:
        super()._echo_prepare()
        self._echo_failures = BackOff()

    def _echo_accept_clients(self, serving: Serving, seconds: Optional[float], once: bool) -> None:
        """The accept loop, of ``serve_forever()`` and, with ``once``, of ``handle_request()``."""
        # Polling is for subclasses that asked for it by overriding service_actions(); others sleep (gh-85265).
        service_actions = getattr(self.service_actions, "__func__", None)
        polls = not once and service_actions is not socketserver.BaseServer.service_actions
        deadline = _after(seconds if polls or once else None)
        while not serving.stopping:
            try:
                self._echo_wait(serving, deadline)
                while not serving.stopping and self._echo_accept(serving):
                    if once:
                        return
                    if _is_over(deadline) or (self._echo_balance is not None and self._echo_balance.is_ahead()):
                        break
            except MemoryError as exc:  # raised by any line: it passes, as a shortage of descriptors does
                try:
                    self._echo_rest(exc)
                except MemoryError:  # for its line in the log, too
                    pass
            if polls:
                if not serving.stopping:  # as in the standard library; the stop counts children that a signal has ended
                    self._echo_call_service_actions()
                deadline = _after(seconds)
            elif _is_over(deadline):
                self.handle_timeout()
                return
            elif once and self._echo_failures.resting():
                return  # as in the standard library: the program may free something before its next call

    def _echo_call_service_actions(self) -> None:
        """Call the subclass's method; an exception in it does not end the loop."""
        try:
            forking.call(self.service_actions)
        except Exception as exc:
            log_event(logging.ERROR, "error", "exception in service_actions(); serving on", exc_info=exc)

    def _echo_wait(self, serving: Serving, deadline: Optional[float]) -> None:
        """Sleep until a client may be accepted, the run is to end, or the deadline has come."""
        listening = self._echo_has_room(serving)
        if listening and self._echo_failures.resting():
            listening = False
            deadline = _earlier(deadline, self._echo_failures.resume_at)
        elif not listening and self._echo_registry.may_close_unseen():  # a subclass's code, which wakes nobody
            deadline = _earlier(deadline, time.monotonic() + STEP)
        serving.wait(listening, deadline)
        if self._echo_balance is not None:
            self._echo_balance.hold_back(lambda: serving.stopping)

    def _echo_has_room(self, serving: Serving) -> bool:
        """Whether ``max_connections`` allows one session more. If not, the next one that ends wakes the loop."""
        limit = self._echo_options.max_connections
        return limit is None or self._echo_registry.has_room(limit, serving.wake)

    def _echo_accept(self, serving: Serving) -> bool:
        """Accept one connection and begin its session; return whether to go on accepting."""
        if not self._echo_has_room(serving) or self._echo_failures.resting():
            return False
        # Trying is quicker than asking first, but a get_request() of a subclass may wait for a client.
        replaced = type(self).get_request is not ListeningServer.get_request or self._echo_base_accepts
        if replaced and not is_readable(self.socket, 0):
            return False
        try:
            request, client_address = forking.call(self.get_request) if replaced else self.get_request()
        except BlockingIOError:
            return False
        except Exception as exc:
            return self._echo_accept_failed(serving, exc)
        self._echo_registry.accepted()
        return self._echo_begin_session(request, client_address)

    def _echo_accept_failed(self, serving: Serving, exc: Exception) -> bool:
        """``get_request()`` has raised ``exc``; return whether to call it again at once."""
        if isinstance(exc, OSError) and not is_listening(self.socket):
            if not serving.stopping:
                log_event(logging.ERROR, "listener-gone", "the listening socket is gone (%s); serving ends", exc)
            serving.stop()
            return False
        self._echo_registry.accept_failed()
        if isinstance(exc, OSError) and exc.errno not in _EXHAUSTED:
            # accept(2) reports errors of the connection that it would have returned, and a subclass's get_request()
            # may fail with its client, in a handshake for example. Neither must delay the next client.
            return True
        self._echo_back_off(exc)
        return False

    def _echo_begin_session(self, request: Any, client_address: Any) -> bool:
        """Admit an accepted client, and give it a session; return whether to go on accepting."""
        try:
            session = Session(request, client_address, proxied=self._echo_options.proxy_protocol)
        except MemoryError:
            try:
                request.close()  # not close_request(): that of a subclass has never seen this client
            except Exception:
                pass
            raise
        try:
            if self._echo_options.proxy_protocol or self._echo_options.ssl_context is not None:
                self._echo_admission.guard(self, session)
            self._echo_admission.check_at_door(self, session)
            self._echo_registry.add(session)
            self.process_request(session.request, client_address)
        except Refused as exc:
            log_refused(client_address, exc)
            self._echo_turn_away(session, exc.reason)
        except threads.NotStarted as exc:
            self._echo_registry.accept_failed()
            log_refused(client_address, Refused("error", str(exc)))
            self._echo_turn_away(session, "error")
            self._echo_back_off(exc)
            return False
        except BaseException as exc:  # who closes the socket: this thread, its own one, or nobody yet
            if isinstance(exc, Exception):
                self._echo_report(session.request, client_address)
            if session.thread_id == threading.get_ident():  # a subclass serves its clients in this thread
                session.failed(exc)
                self._echo_end_session(session)
            elif not session.begun:  # otherwise its thread runs, and will close it
                self._echo_turn_away(session, "error")
            if not isinstance(exc, Exception):
                raise
        if self._echo_failures.succeeded():
            log_event(logging.INFO, "accept-recovered", "accepting connections again")
        return True

    def _echo_report(self, request: Any, client_address: Any) -> None:
        """Call ``handle_error``; an exception in it does not end the loop."""
        try:
            self.handle_error(request, client_address)
        except Exception:  # a subclass's own; it goes where one in a session's thread goes
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

    def _echo_back_off(self, exc: Exception) -> None:
        """Accept nothing for a moment. Log it once for each shortage, however often it fails."""
        if self._echo_failures.failed():
            why = str(exc) or type(exc).__name__
            log_event(logging.WARNING, "accept-failed", "cannot accept connections for now: %s; trying again", why)

    def _echo_rest(self, exc: Exception) -> None:
        """Back off, where something other than accepting has failed: nothing else waits for the end of the pause."""
        self._echo_back_off(exc)
        time.sleep(self._echo_failures.pause)

    def _echo_not_begun(self, exc: OSError) -> None:
        """A run needs two descriptors. Without them, a program's loop goes on, as after an ``accept()`` that failed."""
        if exc.errno not in _EXHAUSTED:
            raise exc
        self._echo_rest(exc)

    def _handle_request_noblock(self) -> None:
        """The standard library's own loops, and those of some programs, call this when a client has connected."""
        try:
            serving = self._echo_serving or Serving(self.socket, shared=self._echo_shares_socket())
        except OSError as exc:
            self._echo_not_begun(exc)
            return
        try:
            self._echo_accept(serving)
        finally:
            if serving is not self._echo_serving:
                serving.close()


def _after(seconds: Optional[float]) -> Optional[float]:
    """The time so many seconds from now; None, which never comes, for None."""
    return None if seconds is None else time.monotonic() + seconds


def _earlier(deadline: Optional[float], other: float) -> float:
    return other if deadline is None else min(deadline, other)


def _is_over(deadline: Optional[float]) -> bool:
    return deadline is not None and time.monotonic() >= deadline
