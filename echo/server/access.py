"""Who may connect: networks that are allowed and networks that are denied.

It knows addresses, no sockets.
"""

from __future__ import annotations

import ipaddress
from typing import Iterable, List, Optional, Union

_Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


class AccessList:
    """``deny`` wins; with any ``allow``, all others are refused; with neither, all may connect.

    Networks are written as ``192.0.2.0/24``, ``2001:db8::/32`` or one address; ``ValueError`` tells which is none.
    """

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = (), *, option: str = "allow") -> None:
        self._allow = _networks(option, allow)
        self._deny = _networks("deny", deny)

    def permits(self, host: Optional[str]) -> bool:
        """Whether a client from this address may connect. One without an address (a Unix socket) is local: it may."""
        if host is None or not (self._allow or self._deny):
            return True
        address = ipaddress.ip_address(host.partition("%")[0])  # fe80::1%eth0: the zone is no part of a network
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            address = mapped
        if any(address in network for network in self._deny):
            return False
        return not self._allow or any(address in network for network in self._allow)


def expand(texts: Iterable[str], *, may_be_empty: bool = False) -> List[str]:
    """The networks that are named: each as it is, or ``@FILE`` for those in a file, one a line, with ``#`` for remarks.
    ``ValueError`` tells what is none, or cannot be read; or, unless it ``may_be_empty``, which file is: an empty list
    of those who may connect means everybody, and not nobody."""
    networks: List[str] = []
    for text in texts:
        if text.startswith("@"):
            found = _read(text[1:])
            if not found and not may_be_empty:
                raise ValueError(f"{text[1:]} names no network")
            networks += found
        else:
            network(text)
            networks.append(text)
    return networks


def _read(path: str) -> List[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].strip() for line in file]
    except OSError as exc:
        raise ValueError(f"cannot read {path}: {exc.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line:
            try:
                network(line)
            except ValueError as exc:
                raise ValueError(f"{path}, line {number}: {exc}") from None
    return [line for line in lines if line]


def _networks(option: str, texts: Iterable[str]) -> List[_Network]:
    try:
        return [network(text) for text in ([texts] if isinstance(texts, str) else texts)]
    except ValueError as exc:
        raise ValueError(f"{option}: {exc}") from None


def network(text: str) -> _Network:
    """Read a network; host bits may be set (``192.0.2.7/24``). ``ValueError`` names what is none."""
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network; write it like 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7") from None
    mapped = getattr(found.network_address, "ipv4_mapped", None)
    if mapped is not None and found.prefixlen >= 96:  # clients are looked for as IPv4
        return ipaddress.ip_network((mapped, found.prefixlen - 96))
    return found
