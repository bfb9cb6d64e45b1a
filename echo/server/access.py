"""Access lists: networks that may connect and networks that may not.

It knows addresses, and no sockets.
"""

from __future__ import annotations

import bisect
import ipaddress
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

from ..text import printable

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_CLASSES = (ipaddress.IPv4Network, ipaddress.IPv6Network)


class AccessList:
    """``deny`` wins; with any ``allow``, all others are refused; with neither, all may connect.

    Networks are written as ``192.0.2.0/24``, ``2001:db8::/32`` or one address, or are those of ``ipaddress``.
    ``ValueError`` names an invalid one. A look-up takes no longer with 100,000 networks than with ten.
    """

    def __init__(self, allow: Iterable[Any] = (), deny: Iterable[Any] = (), *, option: str = "allow") -> None:
        self._allow = _Networks(option, allow)
        self._deny = _Networks("deny", deny)
        self._permits_all = not self._allow and not self._deny

    def permits(self, host: Optional[str]) -> bool:
        """Whether a client from this address may connect. None, for a client without one (of a Unix socket), is in no
        network, so it may only without ``allow`` and ``deny``."""
        if self._permits_all:
            return True
        if host is None:
            return False
        address = ipaddress.ip_address(host.partition("%")[0])  # fe80::1%eth0: the zone is not part of a network
        address = getattr(address, "ipv4_mapped", None) or address
        return address not in self._deny and (not self._allow or address in self._allow)


class _Networks:
    """Networks as sorted ranges of numbers that do not overlap, for each version of IP."""

    def __init__(self, option: str, networks: Iterable[Any]) -> None:
        ranges: Dict[int, List[Tuple[int, int]]] = {}
        given = as_tuple(option, networks)
        try:
            for each in given:
                found = network(each)
                first = int(found.network_address)
                last = first | (1 << found.max_prefixlen - found.prefixlen) - 1
                ranges.setdefault(found.version, []).append((first, last))
        except ValueError as exc:
            raise ValueError(f"{option}: {exc}") from None
        self._bounds = {version: _merged(found) for version, found in ranges.items()}

    def __bool__(self) -> bool:
        return bool(self._bounds)

    def __contains__(self, address: Any) -> bool:
        firsts, lasts = self._bounds.get(address.version, ((), ()))
        number = int(address)
        index = bisect.bisect_right(firsts, number) - 1
        return index >= 0 and number <= lasts[index]


def _merged(ranges: List[Tuple[int, int]]) -> Tuple[List[int], List[int]]:
    """The first and the last numbers of these ranges, in order and without overlaps."""
    firsts: List[int] = []
    lasts: List[int] = []
    for first, last in sorted(ranges):
        if lasts and first <= lasts[-1]:
            lasts[-1] = max(last, lasts[-1])
        else:
            firsts.append(first)
            lasts.append(last)
    return firsts, lasts


def as_tuple(option: str, networks: Any) -> Tuple[Any, ...]:
    """Return networks, which may also be a single one, as a tuple. The network classes of ``ipaddress`` would yield
    each of their addresses. Raises ``ValueError`` for an iterator that yields nothing, since it may have been read
    before, and ``TypeError`` for other types."""
    if isinstance(networks, (str, *_CLASSES)):
        return (networks,)
    try:
        found = tuple(networks)
        is_iterator = iter(networks) is networks
    except TypeError:
        raise TypeError(f"{option} is {networks!r}; expected networks, like ['192.0.2.0/24']") from None
    if is_iterator and not found:
        raise ValueError(f"{option} is an iterator that yields no networks, or was read before; give a list")
    return found


def network(text: Any) -> Network:
    """Return a network; host bits may be set in a text (``192.0.2.7/24``). ``ValueError`` names an invalid one."""
    found = text if isinstance(text, _CLASSES) else _read(text)
    # A zone, which newer versions of ipaddress take, would be ignored.
    if found is None or getattr(found.network_address, "scope_id", None) or (found is not text and "%" in str(text)):
        raise ValueError(
            f"invalid network {_quoted(text)}: expected 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7, for example"
        )
    mapped = getattr(found.network_address, "ipv4_mapped", None)
    if mapped is not None and found.prefixlen >= 96:  # clients are looked for as IPv4
        return ipaddress.ip_network((mapped, found.prefixlen - 96))
    return found


def _quoted(text: Any) -> str:
    """The text for an error, which is one line, although a line of a file may have any length."""
    return printable(repr(text), 80)


def _read(text: Any) -> Optional[Network]:
    """The network of a text; None if it is invalid."""
    try:
        # str(): ipaddress also takes numbers and bytes, and would read b"10.1" as 49.48.46.49.
        interface = ipaddress.ip_interface(str(text))
    except ValueError:
        return None
    found: Network = interface.network
    address = interface.ip
    mapped = getattr(address, "ipv4_mapped", None)
    lacks_ffff = found.version == 6 and "." in str(text) and not int(address) >> 32  # ::192.0.2.0/120
    if lacks_ffff or (mapped is not None and found.prefixlen < 96):
        # As an IPv6 network, it would hold other addresses than those that it shows.
        raise ValueError(f"invalid network {_quoted(text)}: write it as IPv4, like 192.0.2.0/24")
    if mapped is not None:
        address, found = mapped, ipaddress.ip_network((mapped, found.prefixlen - 96), strict=False)
    if not int(address) and found.prefixlen == found.max_prefixlen:  # as addresses to listen on, these mean all
        raise ValueError(f"no client has the address {text}: write {address}/0 for all IPv{found.version} addresses")
    if not found.prefixlen and int(address):
        what = f"{text!r} would be all IPv{found.version} addresses"
        raise ValueError(f"{what}: write {found} if you mean that, or another prefix length")
    return found
