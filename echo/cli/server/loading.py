"""Handlers and mixins by their name on the command line, ``MODULE:CLASS``.

Every failure is a ``ValueError`` with one line that gives the reason.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import socketserver
import sys
import threading
from typing import Any, Iterator, List, Tuple

from ... import running
from ...handlers import MessageRequestHandler
from ...running import Stopped
from ...server.server import Server

_GUARD = "put the lines that run it under if __name__ == '__main__'"


class _Serves(Exception):
    """The module that is imported has begun to serve, in the importing thread: the import would never end."""


@contextlib.contextmanager
def _nothing_serves() -> Iterator[None]:
    """In this thread, a server that is to serve raises ``_Serves``. Other threads may serve: a module may start a
    server of its own beside its handler, for metrics for example."""
    me = threading.get_ident()

    def replacing(original: Any) -> Any:
        @functools.wraps(original)
        def serve(*args: Any, **options: Any) -> Any:
            if threading.get_ident() == me:
                raise _Serves
            return original(*args, **options)

        return serve

    places: List[Tuple[Any, str]] = [(running, "serve"), (Server, "serve_forever")]
    places.append((socketserver.BaseServer, "serve_forever"))
    with contextlib.ExitStack() as stack:
        for place, name in places:
            original = vars(place)[name]
            stack.callback(setattr, place, name, original)
            setattr(place, name, replacing(original))
        yield


def load_handler(spec: str) -> type:
    """Return the handler class ``MODULE:CLASS``, from the current folder or an installed module."""
    cls = _load(spec)
    if not (isinstance(cls, type) and issubclass(cls, socketserver.BaseRequestHandler)):
        raise ValueError(f"{spec} is not a request handler; derive it from echo.MessageRequestHandler")
    return cls


def load_mixin(spec: str) -> type:
    """Return the mixin ``MODULE:CLASS``, as ``load_handler`` does."""
    cls = _load(spec)
    if not (isinstance(cls, type) and issubclass(cls, MessageRequestHandler)):
        raise ValueError(f"{spec} is not a mixin; derive it from echo.MessageRequestHandler")
    return cls


def combine(handler: type, mixins: List[type], **attributes: Any) -> type:
    """Return a class of the mixins, leftmost outermost, and the handler. One that is a base of another is left out, and
    one that is listed twice has its last place: ``LoggingMixin`` behind a mixin that asks for a password."""
    classes = list(dict.fromkeys([handler, *reversed(mixins)]))[::-1]
    wanted = [mixin for mixin in classes if not any(issubclass(cls, mixin) for cls in classes if cls is not mixin)]
    bases: Tuple[type, ...] = (*(mixin for mixin in wanted if mixin is not handler), handler)
    try:
        return type(handler.__name__, bases, attributes)
    except Exception as exc:  # of a check of ours, or of the classes' own
        kind = "" if isinstance(exc, TypeError) else f"{type(exc).__name__}: "
        raise ValueError(f"cannot combine these classes: {kind}{_one_line(exc)}") from None


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())


def _load(spec: str) -> Any:
    module_name, colon, class_name = spec.partition(":")
    if not (module_name and colon and class_name):
        raise ValueError(f"invalid class {spec!r}: expected MODULE:CLASS, like chat:ChatHandler")
    if "/" in module_name or module_name.endswith(".py"):
        module = os.path.basename(module_name[: -len(".py")] if module_name.endswith(".py") else module_name)
        raise ValueError(
            f"invalid class {spec!r}: expected the module's name, without folder and .py, like {module}:{class_name}"
        )
    with contextlib.suppress(OSError):  # the current folder is gone
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.insert(0, os.getcwd())
    try:
        with _nothing_serves():
            imported: Any = importlib.import_module(module_name)
            thing = holder = imported
            for part in class_name.split("."):
                holder, thing = thing, getattr(thing, part, None)  # a module may import a class when it is asked for it
                if thing is None:
                    break
    except _Serves:
        raise ValueError(f"{module_name} serves when it is imported; {_GUARD}") from None
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise ValueError(f"importing {module_name} failed: {exc}") from None
        raise ValueError(
            f"cannot find the module {exc.name!r}: it is neither in the current folder nor installed"
        ) from None
    except Stopped:  # by a signal
        raise
    except BaseException as exc:
        kind, text = type(exc).__name__, _one_line(exc)
        why = f"importing {module_name} failed: {kind}: {text}" if text else f"importing {module_name} failed: {kind}"
        raise ValueError(f"{why}; {_GUARD}" if isinstance(exc, SystemExit) else why) from exc
    if thing is None:
        advice = _other_file(imported, module_name) or _handlers(holder, module_name) or "check its name"
        raise ValueError(f"the module {module_name} has no class {class_name!r}; {advice}")
    return thing


def _other_file(module: Any, module_name: str) -> str:
    """Advice if a file of the current folder has the name of the module, and is not it."""
    file = f"{module_name.replace('.', os.sep)}.py"
    origin = getattr(module, "__file__", None) or ""  # a module in C has none
    if not os.path.exists(file) or os.path.realpath(file) == os.path.realpath(origin):
        return ""
    return f"Python has another module with this name; rename {file}"


def _handlers(thing: Any, module_name: str) -> str:
    """The handler classes that the module defines there; empty if there are none."""
    names = [name for name, value in getattr(thing, "__dict__", {}).items() if _is_handler(value, module_name)]
    return f"it has {', '.join(names)}" if names else ""


def _is_handler(value: Any, module_name: str) -> bool:
    """Whether this is a handler class that the module itself defines."""
    is_one = isinstance(value, type) and issubclass(value, socketserver.BaseRequestHandler)
    return is_one and value.__module__ == module_name
