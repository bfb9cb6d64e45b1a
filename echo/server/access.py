"""Access lists: networks that may connect and networks that may not.

It knows addresses, and no sockets.
"""

from __future__ import annotations

import ipaddress
from typing import Iterable, List, Optional, Union

_Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


class AccessList:
    """``deny`` wins; with any ``allow``, all others are refused; with neither, all may connect.

    Networks are written as ``192.0.2.0/24``, ``2001:db8::/32`` or one address; ``ValueError`` names an invalid one.
    """

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = (), *, option: str = "allow") -> None:
        self._allow = _networks(option, allow)
        self._deny = _networks("deny", deny)

    def permits(self, host: Optional[str]) -> bool:
        """Whether a client from this address may connect. A client without one (a Unix socket) is local: it may."""
        if host is None or not (self._allow or self._deny):
            return True
        address = ipaddress.ip_address(host.partition("%")[0])  # fe80::1%eth0: the zone is not part of a network
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            address = mapped
        if any(address in network for network in self._deny):
            return False
        return not self._allow or any(address in network for network in self._allow)


def expand(texts: Iterable[str], *, may_be_empty: bool = False) -> List[str]:
    """Return the networks that the texts name: a network, or ``@FILE`` for a file with one network a line and ``#`` for
    comments. Raises ``ValueError`` for an invalid network and a file that cannot be read, and for a file without any
    network unless it ``may_be_empty``: an empty list of clients that may connect means all clients."""
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
    """Read a network; host bits may be set (``192.0.2.7/24``). ``ValueError`` names an invalid one."""
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network; write it like 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7") from None
    mapped = getattr(found.network_address, "ipv4_mapped", None)
    if mapped is not None and found.prefixlen >= 96:  # clients are looked for as IPv4
        return ipaddress.ip_network((mapped, found.prefixlen - 96))
    return found
