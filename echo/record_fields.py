"""Attributes of log records, in a program whose record factory sets some of the same names.

``logging`` raises ``KeyError`` for a name in ``extra`` that the record has already, and the record is lost. A factory
(``logging.setLogRecordFactory``) may set any name, such as ``session``.
"""

from __future__ import annotations

from typing import Any, Callable, Dict


def with_fields(log: Callable[..., Any], *args: Any, fields: Dict[str, Any]) -> Any:
    """Return ``log(*args, extra=fields)``. Fields whose names the factory has taken are left out: its own stay.

    ``log`` is called again only after the ``KeyError`` that names one of them: then nothing has handled the record yet.
    """
    while True:
        try:
            return log(*args, extra=fields)
        except KeyError as exc:
            others = {name: value for name, value in fields.items() if not _is_taken(name, exc)}
            if len(others) == len(fields):
                raise
            fields = others


def _is_taken(name: str, exc: KeyError) -> bool:
    return bool(exc.args) and str(exc.args[0]).startswith(f"Attempt to overwrite {name!r} ")
