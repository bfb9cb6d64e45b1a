"""The check of a handler class's own body, and of a server's methods, when the class is created: mistakes that would
otherwise show in each session, or as silence. It knows classes and names, no session."""

from __future__ import annotations

from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, Iterator, List, Optional, Set, Tuple

_RUNS_LATER = {0x20: "a generator", 0x80: "async", 0x200: "async"}
"""Flags of code that a call does not run: ``CO_GENERATOR``, ``CO_COROUTINE``, ``CO_ASYNC_GENERATOR`` of ``inspect``,
whose import takes milliseconds."""

_SECONDS = ("timeout", "message_timeout", "send_timeout")


def check_body(cls: type, hooks: Tuple[str, ...]) -> None:
    """Raise ``TypeError`` or ``ValueError`` if the body of ``cls`` has a mistake that no program can mean."""
    check_methods(cls, hooks)
    body = vars(cls)
    framing = body.get("framing")
    if isinstance(framing, (type, str)):
        name = framing.__name__ if isinstance(framing, type) else "echo.LineFraming"
        raise TypeError(f"{cls.__name__}.framing is {framing!r}; expected an instance, like {name}()")
    for name in _SECONDS:
        seconds = body.get(name)
        if isinstance(seconds, str):
            raise TypeError(f"{cls.__name__}.{name} is {seconds!r}; expected seconds, like 5.0, or None")
        if isinstance(seconds, (int, float)) and not seconds > 0:  # false for NaN, too
            raise ValueError(
                f"{cls.__name__}.{name} is {seconds!r}; expected more than 0 seconds, or None for no limit"
            )
    if _forgets_super(body.get("__init__")):
        raise TypeError(
            f"{cls.__name__}.__init__() does not call super().__init__(), which serves the session; set what a session"
            " begins with in connection_made()"
        )


def check_methods(cls: type, names: Tuple[str, ...]) -> None:
    """``TypeError`` if one of these methods does not run when it is called: what it returns then is true, so that a
    ``verify_request`` would let everybody in."""
    for name in names:
        method = getattr(cls, name, None)
        is_declared = getattr(method, "__isabstractmethod__", False)  # subclasses write the method that is called
        flags = method.__code__.co_flags if isinstance(method, FunctionType) and not is_declared else 0
        for flag, kind in _RUNS_LATER.items():
            if flags & flag:
                raise TypeError(
                    f"{cls.__name__}.{name} is {kind}, and calling it would do nothing; write an ordinary method:"
                    " sessions run in threads, and not in an event loop"
                )


def check_chain(cls: type, name: str) -> None:
    """``check_methods`` for each class that is called in this method: what they return decides, too."""
    for base in _called(cls, name):
        check_methods(base, (name,))


def check_behind(cls: type, name: str, ours: type) -> None:
    """``TypeError`` if a program's own method would never be called, since it stands behind that of ``ours``, which
    calls no other: it may refuse clients. A method before ``ours`` may call it by its class's name."""
    called = list(_called(cls, name))
    place = cls.__mro__.index(ours)
    before, behind = cls.__mro__[:place], cls.__mro__[place + 1 :]
    methods = [vars(base)[name] for base in called]
    names = [names_in(method, name) for method in methods[:-1]]
    own = {base.__name__ for base in behind} - {base.__name__ for base in before}
    if called[-1] is not ours or any(each is None or not own.isdisjoint(each) for each in names):
        return
    for hidden in defining(cls, name):
        method = vars(hidden)[name]
        if hidden in behind and method not in methods and getattr(method, "__module__", "") != "socketserver":
            raise TypeError(
                f"{cls.__name__}: {hidden.__name__}.{name}() would never be called, since echo.Server stands before it;"
                f" list {hidden.__name__} before echo.Server"
            )


def _called(cls: type, name: str) -> Iterator[type]:
    """The classes whose method of this name is called: the first, and those that a call in it seems to reach."""
    callers = names_of_callers(cls)
    for base in defining(cls, name):
        yield base
        names = names_in(vars(base)[name], name)
        if names is not None and callers.isdisjoint(names):
            break


def names_of_callers(cls: type) -> Set[str]:
    """Names of which one stands in the code of each method that calls the same method of another class."""
    return {base.__name__ for base in cls.__mro__} | {"super", "__class__"}


def defining(cls: type, name: str) -> List[type]:
    """The classes that define this method, in their order; without those that declare what others must have."""
    return [
        base
        for base in cls.__mro__
        if vars(base).get(name) is not None
        and not (getattr(vars(base)[name], "__isabstractmethod__", False) or vars(base).get("_is_protocol"))
    ]


def names_in(method: Any, name: str) -> Optional[Tuple[str, ...]]:
    """The names in the code of a method (``__class__``, too, where it calls ``super()`` without arguments); None if a
    decorator has made it, so that it may call anything, or if it is not in Python."""
    if not isinstance(method, FunctionType) or method.__code__.co_name != name:
        return None
    return method.__code__.co_names + method.__code__.co_freevars


def may_use(cls: type, name: str) -> bool:
    """Whether code in the body of ``cls`` may use an attribute of this name. A function does if it has the name, or the
    word as a text, in its code; functions in a table count, too. What a decorator has made may use anything."""
    codes: List[Any] = []
    for each in vars(cls).values():
        kind = type(each)
        for part in (each.fget, each.fset, each.fdel) if kind is property else (each,):
            value = part.__func__ if type(part) in (classmethod, staticmethod) else part
            functions = list(_functions(value))
            if any(not {"__class__"}.issuperset(function.__code__.co_freevars) for function in functions):
                return True
            codes += [function.__code__ for function in functions]
            if functions or issubclass(type(value), _PLAIN):
                continue
            if callable(value) or hasattr(kind, "__get__"):
                return True
    for code in codes:  # grows: functions inside of functions
        if name in code.co_names or any(type(const) is str and const == name for const in code.co_consts):
            return True
        codes += [const for const in code.co_consts if type(const) is CodeType]
    return False


def _functions(value: Any, depth: int = 2) -> Iterator[FunctionType]:
    """The functions in a value of a class body: one, or a table of them, or of pairs like ``("GET", function)``."""
    if type(value) is FunctionType:
        yield value
    elif depth and type(value) in (list, tuple, set, frozenset, dict):
        for each in value.values() if type(value) is dict else value:
            yield from _functions(each, depth - 1)


_PLAIN = (type, type(None), GetSetDescriptorType, MemberDescriptorType)
"""What uses no attribute by itself: classes, None (an accessor that a property lacks), and the descriptors that Python
adds to each class."""


def _forgets_super(method: Any) -> bool:
    """Whether an ``__init__`` calls nothing that could serve the session."""
    names = names_in(method, "__init__")
    if names is None or method.__code__.co_freevars:
        return False
    return {"__init__", "handle", "super"}.isdisjoint(names)
