"""The check that no mixin is listed where its steps are never called. It knows classes and names, no session."""

from __future__ import annotations

from typing import Optional, Set, Tuple

from .class_body import defining, names_in, names_of_callers


def check_order(cls: type, handler: type, hooks: Tuple[str, ...], steps: Tuple[str, ...]) -> None:
    """Raise ``TypeError`` if the order of ``cls``'s bases hides a mixin; it would be ignored without a word.

    ``handler`` is the class with the innermost ``hooks`` and ``steps``.

    Two things hide a mixin's method: the handler class before it, whose methods call no ``super()``; and a step
    before it that calls no ``super()``, in a class that does not derive from the mixin. (A class may replace the steps
    of its own bases, as any subclass may.) Python cannot say whether a method calls ``super()``, so this looks for that
    name in the method's code, or for the name of a class that it may call instead. Another method of its class may make
    the call: one that the step calls, such as one of its own for a state of the session; or later, since a mixin that
    asks for a password does not begin the session in ``dispatch_made``.
    """
    names = names_of_callers(cls)
    for name in hooks + steps:
        hider: Optional[type] = None
        for base in defining(cls, name):
            passes_on = name in hooks or _passes_on(base, name, names, handler)  # a hook that does not is a handler's
            replaces_its_own = hider is not None and (not passes_on or issubclass(hider, base))
            if base is handler or (hider is None and not passes_on):
                hider = base
            elif hider is not None and (hider is handler or not replaces_its_own):
                raise TypeError(
                    f"{cls.__name__}: {base.__name__}.{name}() would never be called, since {hider.__name__}.{name}()"
                    f" does not call super(); list {_listed(cls, base)} before {_listed(cls, hider)}"
                )


def _passes_on(cls: type, name: str, names: Set[str], handler: type) -> bool:
    found = names_in(vars(cls)[name], name)
    if found is None:
        return True
    callers = [found]
    for of, method in vars(cls).items():
        other = names_in(method, of)
        if other is not None and name in other and (name == "dispatch_made" or of in found or not hasattr(handler, of)):
            callers.append(other)
    return any(not names.isdisjoint(caller) for caller in callers)


def _listed(cls: type, base: type) -> str:
    """The name under which ``base`` is in the list of bases."""
    return [entry for entry in cls.__bases__ if issubclass(entry, base)][-1].__name__
