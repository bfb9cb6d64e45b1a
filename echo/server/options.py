"""The options of ``Server``: their names, and which values they take."""

from __future__ import annotations

import ssl
from typing import Any, Dict, Mapping, Tuple

MIN_HEADER_TIMEOUT = 3.0
"""Seconds that a PROXY header must be waited for at least: its packet may be lost and sent again (specification,
section 2)."""

CHECKED: Dict[str, Tuple[str, Any, float, bool]] = {
    # option: what it is, the types, the least, whether None switches it off
    "max_connections": ("a number", int, 1, True),
    "max_connections_per_host": ("a number", int, 1, True),
    "shutdown_timeout": ("seconds", (int, float), 0, True),
    "handshake_timeout": ("seconds", (int, float), 0.001, True),
    "request_queue_size": ("a number", int, 0, False),
}
OPTIONS = (
    *CHECKED,
    "allow",
    "deny",
    "ssl_context",
    "proxy_protocol",
    "proxy_allow_from",
    "dual_stack",
    "unix_mode",
    "allow_reuse_address",
    "allow_reuse_port",
    "cpu_affinity",
    "daemon_threads",
    "timeout",
)


def check(name: str, value: Any) -> None:
    what, types, least, may_be_none = CHECKED[name]
    if may_be_none and value is None:
        return
    rule = f"it is {what}, {least} or more{', or None for no limit' if may_be_none else ''}"
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"{name} is {value!r}; {rule}")
    if not least <= value < float("inf"):  # and so is no NaN
        raise ValueError(f"{name} is {value!r}; {rule}")


def set_options(server: Any, options: Mapping[str, Any]) -> None:
    """Set ``options`` as attributes of ``server``, and check those that it has now.

    ``TypeError`` for an unknown option or a value of the wrong type, ``ValueError`` for a senseless value.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise TypeError(f"{type(server).__name__}() has no option {name!r}; it has {', '.join(OPTIONS)}")
        setattr(server, name, value)
    for name in CHECKED:
        check(name, getattr(server, name))
    if server.ssl_context is not None and not isinstance(server.ssl_context, ssl.SSLContext):
        raise TypeError(f"ssl_context is {server.ssl_context!r}; it is an ssl.SSLContext, or None for no TLS")
    seconds = server.handshake_timeout
    if server.proxy_protocol and seconds is not None and seconds < MIN_HEADER_TIMEOUT:
        raise ValueError(
            f"handshake_timeout is {seconds!r}; a PROXY header, which may have to be sent again, needs"
            f" {MIN_HEADER_TIMEOUT:g} s or more"
        )
