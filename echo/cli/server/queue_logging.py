"""The command's short way for logged messages: a line in the queue instead of a log record.

A record costs as much as everything else that is done for a logged message (3.2 us without, 6.2 us with it), and the
text log shows nothing of a record but its line. So where the command's own queue is the only one to see the records of
a session, it gets lines.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any, Dict, List, Optional

from ...log_calls import is_of_logging
from ...logs.log_handlers import LogQueue
from ...mixins.logging import LoggingMixin, SessionLoggingMixin
from ...mixins.records import makes_plain_records


class QueueLoggingMixin(SessionLoggingMixin):
    """``SessionLoggingMixin`` for the command: it logs the same. Listed before ``LoggingMixin``, it serves that too.

    Whether anything else would see the records is looked up when a session begins: for each message it would cost 12 %.
    A handler, a filter or a record factory that a program adds later gets the records of the sessions after that.
    """

    __queue: Optional[LogQueue] = None

    def setup(self) -> None:
        super().setup()
        self.__queue = only_queue(self._echo_log)

    def _echo_emit(self, level: int, line: str, fields: Dict[str, Any]) -> None:
        if self.__queue is not None:
            self.__queue.put_line(level, line)
        else:
            super()._echo_emit(level, line, fields)


def names_kept(classes: List[type]) -> Dict[str, Any]:
    """Return the attributes that the combination of the logging mixins and these classes needs, so that the name
    ``log`` is theirs: a method of a handler that does not know of the mixins, for example."""
    *mixins, handler = classes
    # A LoggingMixin without a log of its own is the command's log in another place.
    classes = [cls for cls in mixins if not (issubclass(cls, LoggingMixin) and cls.log is LoggingMixin.log)] + [handler]
    if any(issubclass(cls, SessionLoggingMixin) for cls in classes):
        return {}
    found = [inspect.getattr_static(cls, "log") for cls in classes if hasattr(cls, "log")]
    return dict({"log": found[0]} if found else {}, _echo_log=SessionLoggingMixin.log)


def only_queue(logger: Any) -> Optional[LogQueue]:
    """Return the queue if it is the only one to see what this logger logs, and needs no records; else None.

    Others that see records are a second handler, a filter, and a record factory or a logger class of the program's own.
    """
    if not makes_plain_records(logger) or logger.filters:
        return None
    if not (is_of_logging(logger.handle) and is_of_logging(logger.callHandlers)):
        return None
    handlers: List[logging.Handler] = []
    place: Optional[logging.Logger] = logger
    while place is not None:
        handlers += place.handlers
        place = place.parent if place.propagate else None
    if len(handlers) != 1:
        return None
    (handler,) = handlers
    if handler.filters or handler.level:
        return None
    return handler if isinstance(handler, LogQueue) and handler.takes_lines else None
