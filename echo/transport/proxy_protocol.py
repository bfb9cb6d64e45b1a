"""The PROXY protocol, versions 1 and 2: what a proxy says about its client, before the client's first byte.

Bytes in, addresses out, and for ``encode`` the other way; nothing here sees a connection. It follows HAProxy's
specification, proxy-protocol.txt of 2020/03/05; the numbers in brackets are its sections.

The rules:

* Not one byte past the header is taken: a TLS handshake may follow, and what was read cannot be put back. So the
  parser says how many bytes the header has ``missing`` at least, and its caller reads no more than that. Rejected:
  MSG_PEEK, which returns at once with what is there already, so that waiting for the rest of a header spins; and a
  read of what comes, whose surplus would have to be handed to everything that reads later.
* There is a header, or the connection is refused. Rejected: looking whether there is one, which lets any client
  choose the address that it seems to come from; receivers "MUST not try to guess" [2].
* A wrong byte is refused at once, since a client that speaks another protocol may send no more. Addresses are read when
  they have arrived whole, as they must be [2.1, 2.2].
* Version 1: 107 bytes with CRLF, at most. After UNKNOWN anything may stand before CRLF, and is ignored. [2.1]
* Version 2 may be as long as its length field can say, 16 + 65535 bytes: receivers must always skip so many [2.2],
  and TLVs have no other bound. It costs memory only as it arrives.
* LOCAL is accepted with its family, its addresses and its TLVs unseen: the receiver "must accept this connection as
  valid" and discards the block [2.2]. So not even a checksum is verified: without a family nobody knows where the TLVs
  begin. For the same reason the block is skipped where the family or the transport is UNSPEC.
* Datagrams do not concern a TCP server. It does not support these combinations, and then "falls back to the
  UNSPEC mode" [2.2]: valid, with no addresses. Their block's form is known, so it is checked. Families, transports
  and commands that are assigned to nobody "must be rejected" [2.2].
* TLVs are skipped, but none may run past the end; the checksum is verified where there is one, as it must be [2.2.3].
* A sender of version 1 has UNKNOWN for all that is not TCP over IPv4 or IPv6 [2.1]. Version 2 can carry Unix sockets.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from typing import Any, List, NamedTuple, Optional, Tuple, Union

from ..text import escape

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_BEGINNINGS = (_SIGNATURE, b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r\n")

_MAX_LINE = 107
_MIN_LINE = len(b"PROXY UNKNOWN\r\n")  # no header is shorter, of either version
_SHORTEST_WORDS = {b"TCP4 ": (7, 7, 1, 1), b"TCP6 ": (2, 2, 1, 1)}  # 0.0.0.0 0.0.0.0 0 0; :: :: 0 0

_START = struct.Struct("!12sBBH")  # signature, version and command, family and transport, length of what follows
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_STREAM, _DGRAM = 1, 2
_LAYOUTS = {_INET: struct.Struct("!4s4sHH"), _INET6: struct.Struct("!16s16sHH"), _UNIX: struct.Struct("!108s108s")}
_WORDS = {_INET: "TCP4", _INET6: "TCP6"}
_MAX_PATH = 108
_FILE_NAMES = (sys.getfilesystemencoding(), "surrogateescape")
_TLV = struct.Struct("!BH")
_TYPE_CRC32C = 0x03
_CHECKSUM = struct.Struct("!I")


class InvalidHeader(ValueError):
    """Not a PROXY header. Its text is one line for a log: the peer's bytes are escaped and shortened."""


class Header(NamedTuple):
    """A proxy's statement about its client.

    Addresses are as the socket module gives them: ``(host, port)``; ``(host, port, 0, 0)`` for IPv6; for a Unix socket
    its path, ``""`` without a name, bytes for a name in Linux's abstract namespace."""

    version: int
    local: bool
    """The proxy speaks for itself, as it does to see whether the server lives."""
    source: Any
    """The client's address; None if the header does not say: then the connection's own addresses hold."""
    destination: Any
    """The address that the client connected to, or None."""


class HeaderParser:
    """Takes one header, in pieces of any size::

        parser = HeaderParser()
        while parser.missing:
            parser.feed(read_some(parser.missing))  # fails at the end of input: half a header is none
        print(parser.header)

    That is three reads for version 2 and about six for version 1, if all of it is there. After an ``InvalidHeader``
    there is nothing more to be had.
    """

    def __init__(self) -> None:
        self.header: Optional[Header] = None
        self._received = bytearray()
        self._missing = _MIN_LINE

    @property
    def missing(self) -> int:
        """Bytes that the header still has at least; 0 when it is complete."""
        return self._missing

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raise ``InvalidHeader`` if they cannot be a header's.

        Raises ``ValueError`` for more than ``missing`` bytes: its caller has read past the header.
        """
        if len(data) > self._missing:
            raise ValueError(f"fed {len(data)} bytes where {self._missing} were missing")
        self._received += data
        start = bytes(self._received[: _START.size])
        if not any(beginning.startswith(start[: len(beginning)]) for beginning in _BEGINNINGS):
            raise InvalidHeader(f"not a PROXY header: {_shown(start)}")
        self._missing = self._feed_block(start) if start[:1] == _SIGNATURE[:1] else self._feed_line()

    def _feed_line(self) -> int:
        """Go on with version 1; return how many bytes it has missing at least."""
        line = bytes(self._received)
        shortest = _SHORTEST_WORDS.get(line[6:11])  # None for UNKNOWN, and until it is known
        text, _, end = line.partition(b"\r")
        if shortest and (b"\n" in text or end not in (b"", b"\n")):
            raise InvalidHeader(f"a stray CR or LF in a PROXY v1 line: {_shown(line)}")
        if line.endswith(b"\r\n"):
            self.header = _read_line(line)
            return 0
        missing = 1 if line.endswith(b"\r") else 2
        if shortest:
            # How many bytes each word lacks of the shortest one; a word that has not begun lacks its space, too.
            lengths = [len(word) for word in text[11:].split(b" ")] + [-1] * len(shortest)
            missing += sum(max(0, least - length) for least, length in zip(shortest, lengths))
        missing = max(missing, _MIN_LINE - len(line))
        if len(line) + missing > _MAX_LINE:
            raise InvalidHeader(f"a PROXY v1 line is over {_MAX_LINE} bytes: {_shown(line)}")
        return missing

    def _feed_block(self, start: bytes) -> int:
        """Go on with version 2, which begins with ``start``; return how many bytes it has missing at least."""
        if len(start) > 12 and start[12] not in (_LOCAL, _PROXY):
            raise InvalidHeader(f"invalid PROXY v2 version and command 0x{start[12]:02x}")
        if len(start) > 13 and start[12] == _PROXY and (start[13] >> 4 > _UNIX or start[13] & 15 > _DGRAM):
            raise InvalidHeader(f"invalid PROXY v2 family and transport 0x{start[13]:02x}")
        if len(start) < _START.size:
            return _START.size - len(start)
        _, _, _, length = _START.unpack(start)
        layout = _layout(start)
        if layout and length < layout.size:
            raise InvalidHeader(f"a PROXY v2 length of {length} is too short for addresses of {layout.size} bytes")
        missing = _START.size + int(length) - len(self._received)
        if not missing:
            self.header = _read_block(bytes(self._received))
        return missing


def encode(header: Header) -> bytes:
    """Return the bytes of a header, which ``HeaderParser`` reads as the same header. Raises ``ValueError`` if it has
    addresses of two families, a path that is too long, or an address that is not one.

    Version 1 has no word for ``local`` nor for Unix sockets: both become UNKNOWN.
    """
    family, source, destination = _packed(header)
    if header.version == 1:
        if family not in _WORDS:
            return b"PROXY UNKNOWN\r\n"
        hosts = [_address(*end)[0] for end in (source, destination)]
        return f"PROXY {_WORDS[family]} {' '.join(hosts)} {source[1]} {destination[1]}\r\n".encode("ascii")
    block = b""
    if family != _UNSPEC:
        block = _LAYOUTS[family].pack(source[0], destination[0], *source[1:], *destination[1:])
    kind = family << 4 | _STREAM if family else 0
    return _START.pack(_SIGNATURE, _LOCAL if header.local else _PROXY, kind, len(block)) + block


def _packed(header: Header) -> Tuple[int, Any, Any]:
    """Return the family and the two addresses in bytes, each with its port if it has one."""
    ends = header.source, header.destination
    if header.local or None in ends:
        return _UNSPEC, (), ()
    if all(isinstance(end, (str, bytes)) for end in ends):
        paths = [end.encode(*_FILE_NAMES) if isinstance(end, str) else end for end in ends]
        if max(map(len, paths)) > _MAX_PATH:
            raise ValueError(f"a PROXY header carries paths of {_MAX_PATH} bytes at most")
        return _UNIX, (paths[0],), (paths[1],)
    family = socket.AF_INET6 if ":" in ends[0][0] else socket.AF_INET
    try:
        source, destination = ((socket.inet_pton(family, end[0].partition("%")[0]), end[1]) for end in ends)
    except OSError:
        raise ValueError(f"not two addresses of one family: {ends[0]!r} and {ends[1]!r}") from None
    return _INET6 if family == socket.AF_INET6 else _INET, source, destination


def _read_line(line: bytes) -> Header:
    _, protocol, *words = line[:-2].split(b" ")
    if protocol == b"UNKNOWN":
        return Header(1, False, None, None)
    if len(words) != 4:
        raise InvalidHeader(f"not two addresses and two ports in a PROXY v1 line: {_shown(line)}")
    source, destination = (_read_host(word, protocol) for word in words[:2])
    source_port, destination_port = (_read_port(word) for word in words[2:])
    return Header(1, False, _address(source, source_port), _address(destination, destination_port))


def _read_host(word: bytes, protocol: bytes) -> bytes:
    """Return the bytes of an address. IPv6 may end in an IPv4 address, as ``inet_ntop`` writes mapped ones."""
    text = word.decode("ascii", "replace")
    quad = text.rpartition(":")[2]
    try:
        packed = (ipaddress.IPv4Address if protocol == b"TCP4" else ipaddress.IPv6Address)(text).packed
        # Two that ipaddress takes, in some versions: 010 for 10 (until 3.8.11, 3.9.4), and a zone (since 3.9).
        if "%" not in text and ("." not in quad or str(ipaddress.IPv4Address(quad)) == quad):
            return packed
    except ValueError:
        pass
    raise InvalidHeader(f"invalid {protocol.decode()} address in a PROXY v1 line: {_shown(word)}")


def _read_port(word: bytes) -> int:
    if not (word.isdigit() and int(word) <= 65535 and b"%d" % int(word) == word):
        raise InvalidHeader(f"invalid port in a PROXY v1 line: {_shown(word)}")
    return int(word)


def _read_block(block: bytes) -> Header:
    layout = _layout(block)
    if layout:
        _check_tlvs(block, _START.size + layout.size)
    if not layout or block[13] & 15 != _STREAM:
        return Header(2, block[12] == _LOCAL, None, None)
    source, destination, *ports = layout.unpack_from(block, _START.size)
    if not ports:
        return Header(2, False, _path(source), _path(destination))
    return Header(2, False, _address(source, ports[0]), _address(destination, ports[1]))


def _layout(start: bytes) -> Optional[struct.Struct]:
    """The layout of the addresses after these 16 bytes; None if it is unknown or not needed."""
    if start[12] == _LOCAL or start[13] & 15 == _UNSPEC:
        return None
    return _LAYOUTS.get(start[13] >> 4)


def _check_tlvs(block: bytes, offset: int) -> None:
    checksum_at = 0
    while offset + _TLV.size <= len(block):
        kind, length = _TLV.unpack_from(block, offset)
        if kind == _TYPE_CRC32C:
            if length != _CHECKSUM.size or checksum_at:  # of two, neither could be computed before the other
                raise InvalidHeader("a PROXY v2 header has one checksum of 4 bytes at most")
            checksum_at = offset + _TLV.size
        offset += _TLV.size + length
    if offset != len(block):
        raise InvalidHeader("a PROXY v2 TLV runs past the end of the header")
    if checksum_at:
        (given,) = _CHECKSUM.unpack_from(block, checksum_at)
        computed = crc32c(block[:checksum_at] + bytes(_CHECKSUM.size) + block[checksum_at + _CHECKSUM.size :])
        if computed != given:
            raise InvalidHeader(f"a PROXY v2 checksum is 0x{given:08x} where 0x{computed:08x} is right")


def _address(packed: bytes, port: int) -> Any:
    # inet_ntop, since the socket module's addresses come from it; ipaddress writes ::ffff:192.0.2.1 as
    # ::ffff:c000:201, before 3.13.
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed), port
    return socket.inet_ntop(socket.AF_INET6, packed), port, 0, 0


def _path(field: bytes) -> Union[str, bytes]:
    if field.startswith(b"\0"):
        return field.rstrip(b"\0") or ""  # how long an abstract name is, the header does not say
    # As os.fsdecode does on POSIX; elsewhere that raises for bytes that are not UTF-8.
    return field.partition(b"\0")[0].decode(*_FILE_NAMES)


def _shown(data: bytes) -> str:
    return escape(data, 64)


def _crc32c_table() -> List[int]:
    table = list(range(256))
    for _ in range(8):
        table = [(crc >> 1) ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table


_CRC32C_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960, appendix B (Castagnoli's polynomial), which zlib does not have."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
