"""Headers of the PROXY protocol: builders, and examples of valid and of malformed ones."""

import socket
import struct
import sys

from echo.transport.proxy_protocol import Header

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
LOCAL, PROXY = 0x20, 0x21
CRC32C, NOOP, AUTHORITY = 3, 4, 2
LONGEST = 16 + 65535


def block(command, family, body=b"", length=None):
    """A version 2 header."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


def inet(source="192.0.2.1", destination="198.51.100.2", source_port=56324, destination_port=443):
    """The addresses and ports of TCP over IPv4 or IPv6, in version 2."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    hosts = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    return hosts + struct.pack("!HH", source_port, destination_port)


def unix(source=b"", destination=b""):
    """The paths of a Unix socket's two ends, in version 2."""
    return source.ljust(108, b"\0") + destination.ljust(108, b"\0")


def tlv(kind, value=b"", length=None):
    """A type, length and value, in version 2; ``length`` replaces the right one."""
    return struct.pack("!BH", kind, len(value) if length is None else length) + value


def slow_crc32c(data):
    """Compute the checksum bit by bit, for comparison with the table of the parser."""
    crc = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            low = (crc ^ byte >> bit) & 1
            crc = crc >> 1 ^ 0x82F63B78 * low
    return crc ^ 0xFFFFFFFF


def checked(command, family, addresses, before=b"", after=b"", flip=0):
    """A header with a checksum between other TLVs; with ``flip``, a wrong one."""
    zeroed = block(command, family, addresses + before + tlv(CRC32C, bytes(4)) + after)
    at = 16 + len(addresses + before) + 3
    return zeroed[:at] + struct.pack("!I", slow_crc32c(zeroed) ^ flip) + zeroed[at + 4 :]


V4 = Header(2, False, ("192.0.2.1", 56324), ("198.51.100.2", 443))
V6 = Header(2, False, ("2001:db8::1", 1, 0, 0), ("::", 65535, 0, 0))
INET6 = inet("2001:db8::1", "::", 1, 65535)
UNSAID_1 = Header(1, False, None, None)
UNSAID_2 = Header(2, False, None, None)
ITSELF = Header(2, True, None, None)

VALID = {
    # Version 1.
    "IPv4": (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        Header(1, False, ("192.168.0.1", 56324), ("192.168.0.11", 443)),
    ),
    "the shortest IPv4": (
        b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n",
        Header(1, False, ("0.0.0.0", 0), ("0.0.0.0", 0)),
    ),
    "the longest IPv4": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Header(1, False, ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    "IPv6": (
        b"PROXY TCP6 2001:DB8::A 2001:0db8:0:0:0:0:0:b 1 2\r\n",
        Header(1, False, ("2001:db8::a", 1, 0, 0), ("2001:db8::b", 2, 0, 0)),
    ),
    "the shortest IPv6": (b"PROXY TCP6 :: :: 0 0\r\n", Header(1, False, ("::", 0, 0, 0), ("::", 0, 0, 0))),
    "the longest IPv6": (
        b"PROXY TCP6 " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2 + [b"65535"] * 2) + b"\r\n",
        Header(1, False, *[("ffff:" * 7 + "ffff", 65535, 0, 0)] * 2),
    ),
    "IPv4 mapped": (
        b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2\r\n",
        Header(1, False, ("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 2, 0, 0)),
    ),
    "unknown": (b"PROXY UNKNOWN\r\n", UNSAID_1),
    "unknown with addresses": (b"PROXY UNKNOWN ffff::ffff 10.0.0.1 1 2\r\n", UNSAID_1),
    "unknown with anything": (b"PROXY UNKNOWN  \r\0\n\xff\r\r\n", UNSAID_1),
    "the longest unknown": (b"PROXY UNKNOWN ".ljust(105, b"f") + b"\r\n", UNSAID_1),
    # Version 2.
    "block IPv4": (block(PROXY, 0x11, inet()), V4),
    "block IPv6": (block(PROXY, 0x21, INET6), V6),
    "block IPv4 mapped": (
        block(PROXY, 0x21, inet("::ffff:192.0.2.1", "::ffff:192.0.2.2", 1, 2)),
        Header(2, False, ("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 2, 0, 0)),
    ),
    "block Unix": (
        block(PROXY, 0x31, unix(b"/tmp/client", b"/run/server")),
        Header(2, False, "/tmp/client", "/run/server"),
    ),
    "block Unix to the last byte": (
        block(PROXY, 0x31, unix(b"s" * 108, b"d" * 108)),
        Header(2, False, "s" * 108, "d" * 108),
    ),
    "block Unix with rests after the end": (
        block(PROXY, 0x31, unix(b"/a\0rest", b"/b\0/c")),
        Header(2, False, "/a", "/b"),
    ),
    "block Unix, nameless and abstract": (block(PROXY, 0x31, unix(b"", b"\0name")), Header(2, False, "", b"\0name")),
    "block Unix, no UTF-8": (
        block(PROXY, 0x31, unix(b"/\xff", b"/")),
        Header(2, False, b"/\xff".decode(sys.getfilesystemencoding(), "surrogateescape"), "/"),
    ),
    "block unspecified": (block(PROXY, 0x00), UNSAID_2),
    "block unspecified with anything": (block(PROXY, 0x00, b"\3\0"), UNSAID_2),
    "block of no family": (block(PROXY, 0x01, b"anything"), UNSAID_2),
    "block of no transport": (block(PROXY, 0x10, b"anything"), UNSAID_2),
    "block UDP over IPv4": (block(PROXY, 0x12, inet()), UNSAID_2),
    "block UDP over IPv6": (block(PROXY, 0x22, INET6), UNSAID_2),
    "block Unix datagrams": (block(PROXY, 0x32, unix(b"/a", b"/b")), UNSAID_2),
    "block local": (block(LOCAL, 0x00), ITSELF),
    "block local with addresses": (block(LOCAL, 0x11, inet()), ITSELF),
    "block local of an unknown family": (block(LOCAL, 0xFF, b"anything"), ITSELF),
    "block local with a wrong checksum": (checked(LOCAL, 0x11, inet(), flip=1), ITSELF),
    "block with TLVs": (block(PROXY, 0x11, inet() + tlv(AUTHORITY, b"example.com") + tlv(NOOP) + tlv(0xEA, b"x")), V4),
    "block with padding": (block(PROXY, 0x21, INET6 + tlv(NOOP, b"\0\xff\3")), V6),
    "block with a checksum": (checked(PROXY, 0x11, inet()), V4),
    "block with a checksum amid TLVs": (
        checked(PROXY, 0x21, INET6, tlv(AUTHORITY, b"a"), tlv(NOOP, bytes(9))),
        V6,
    ),
    "block Unix with a checksum": (checked(PROXY, 0x31, unix(b"/a", b"/b")), Header(2, False, "/a", "/b")),
}

BLOCK = block(PROXY, 0x11, inet())

INVALID = {
    # Not a header.
    "HTTP": (b"GET / HTTP/1.1\r\n", r"not a PROXY header: GET / HTTP/1\.1\\r"),
    "TLS": (bytes.fromhex("16030100"), r"not a PROXY header: \\x16"),
    "an empty line": (b"\r\n\r\n\r", "not a PROXY header"),
    "lower case": (b"proxy TCP4", "not a PROXY header: proxy TCP4"),
    "two spaces before the family": (b"PROXY  TCP4", "not a PROXY header"),
    "an unknown family": (b"PROXY TCP5 ", "not a PROXY header: PROXY TCP5"),
    "UDP": (b"PROXY UDP4 ", "not a PROXY header: PROXY UDP4"),
    "a family and no more": (b"PROXY TCP4\r\n", "not a PROXY header"),
    "letters after UNKNOWN": (b"PROXY UNKNOWNS", "not a PROXY header"),
    "UNKNOWN and LF": (b"PROXY UNKNOWN\n", "not a PROXY header"),
    "UNKNOWN and CR": (b"PROXY UNKNOWN\rX", "not a PROXY header"),
    # Version 1.
    "LF alone": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", r"a stray CR or LF .*: PROXY TCP4 .* 1 2\\n$"),
    "CR alone": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\rX", "a stray CR or LF"),
    "CR CR LF": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\r\n", "a stray CR or LF"),
    "CRLF too early": (b"PROXY TCP4 1.1.1.1\r\n", "not two addresses and two ports"),
    "one port": (b"PROXY TCP4 1.1.1.1 255.255.255.255 1\r\n", "not two addresses and two ports"),
    "three ports": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", "not two addresses and two ports"),
    "a space at the end": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n", "not two addresses and two ports"),
    "two spaces": (b"PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n", "not two addresses and two ports"),
    "a tab": (b"PROXY TCP4 1.1.1.1\t255.255.255.255 1 2\r\n", "not two addresses and two ports"),
    "a tab in a word": (b"PROXY TCP4 1.1.1.1\t 2.2.2.2 1 2\r\n", r"invalid TCP4 address .*: 1\.1\.1\.1\\t$"),
    "an octet of 256": (b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n", r"invalid TCP4 address .*: 1\.1\.1\.256$"),
    "three octets": (b"PROXY TCP4 1.1.1 2.2.2.2 1 2345\r\n", r"invalid TCP4 address .*: 1\.1\.1$"),
    "an octet with a zero in front": (b"PROXY TCP4 1.1.1.1 2.2.02.2 1 2\r\n", r"invalid TCP4 address .*: 2\.2\.02\.2$"),
    "a host name": (b"PROXY TCP4 localhost 2.2.2.2 1 2\r\n", "invalid TCP4 address .*: localhost$"),
    "a number": (b"PROXY TCP4 16843009 2.2.2.2 1 2\r\n", "invalid TCP4 address"),
    "other digits": ("PROXY TCP4 ١.1.1.1 2.2.2.2 1 2\r\n".encode(), r"invalid TCP4 address .*: ١\.1\.1\.1$"),
    "IPv6 in TCP4": (b"PROXY TCP4 2001:db8::1 2.2.2.2 1 2\r\n", "invalid TCP4 address .*: 2001:db8::1$"),
    "IPv4 in TCP6": (b"PROXY TCP6 ::1 2.2.2.2 1 2\r\n", r"invalid TCP6 address .*: 2\.2\.2\.2$"),
    "a zone": (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "invalid TCP6 address .*: fe80::1%eth0$"),
    "brackets": (b"PROXY TCP6 [::1] ::1 1 2\r\n", "invalid TCP6 address"),
    "a prefix": (b"PROXY TCP6 ::1/128 ::1 1 2\r\n", "invalid TCP6 address"),
    "five digits": (b"PROXY TCP6 ::00001 ::1 1 2\r\n", "invalid TCP6 address"),
    "two double colons": (b"PROXY TCP6 1::2::3 ::1 1 2\r\n", "invalid TCP6 address"),
    "nine groups": (b"PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 2\r\n", "invalid TCP6 address"),
    "a zero in front in IPv6": (
        b"PROXY TCP6 ::ffff:01.2.3.4 ::1 1 2\r\n",
        r"invalid TCP6 address .*: ::ffff:01\.2\.3\.4$",
    ),
    "a port of 65536": (b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n", "invalid port .*: 65536$"),
    "a port of 60 digits": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 " + b"9" * 60 + b"\r\n", "invalid port .*: 9{60}$"),
    "a port with a zero in front": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 02\r\n", "invalid port .*: 02$"),
    "a port of two zeros": (b"PROXY TCP4 1.1.1.1 2.2.2.2 00 2\r\n", "invalid port .*: 00$"),
    "a plus": (b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n", r"invalid port .*: \+1$"),
    "a minus": (b"PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n", "invalid port .*: -1$"),
    "an underscore": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1_0 2\r\n", "invalid port .*: 1_0$"),
    "hexadecimal": (b"PROXY TCP4 1.1.1.1 2.2.2.2 0x1 2\r\n", "invalid port .*: 0x1$"),
    "a port of other digits": ("PROXY TCP4 1.1.1.1 2.2.2.2 ١ 2\r\n".encode(), "invalid port .*: ١$"),
    "an escape sequence": (b"PROXY TCP4 \x1b[2J\xff 2.2.2.2 1 2\r\n", r"invalid TCP4 address .*: \\x1b\[2J\\xff$"),
    "an IPv4 line without end": (b"PROXY TCP4 ".ljust(106, b"1"), r"over 107 bytes: .*\(38 more bytes\)$"),
    "an UNKNOWN line without end": (b"PROXY UNKNOWN ".ljust(106), "over 107 bytes"),
    "a line of 108 bytes": (b"PROXY UNKNOWN ".ljust(106) + b"\r\n", "over 107 bytes"),
    # Version 2.
    "version 1 in a block": (SIGNATURE + b"\x11", "invalid PROXY v2 version and command 0x11"),
    "version 3": (SIGNATURE + b"\x31", "invalid PROXY v2 version and command 0x31"),
    "an unassigned command": (SIGNATURE + b"\x22", "invalid PROXY v2 version and command 0x22"),
    "an unassigned family": (SIGNATURE + b"\x21\x41", "invalid PROXY v2 family and transport 0x41"),
    "an unassigned transport": (SIGNATURE + b"\x21\x13", "invalid PROXY v2 family and transport 0x13"),
    "an unassigned family without transport": (SIGNATURE + b"\x21\x40", "invalid PROXY v2 family and transport 0x40"),
    "too short for IPv4": (block(PROXY, 0x11, length=11), "length of 11 is too short for addresses of 12 bytes"),
    "too short for IPv6": (block(PROXY, 0x21, length=35), "length of 35 is too short for addresses of 36 bytes"),
    "too short for Unix": (block(PROXY, 0x31, length=215), "length of 215 is too short for addresses of 216 bytes"),
    "too short for UDP": (block(PROXY, 0x12, length=0), "length of 0 is too short for addresses of 12 bytes"),
    "one byte of a TLV": (block(PROXY, 0x11, inet() + b"\4"), "TLV runs past the end"),
    "two bytes of a TLV": (block(PROXY, 0x11, inet() + b"\4\0"), "TLV runs past the end"),
    "a TLV past the end": (block(PROXY, 0x11, inet() + tlv(NOOP, b"abc", 4)), "TLV runs past the end"),
    "a second TLV past the end": (block(PROXY, 0x11, inet() + tlv(NOOP) + tlv(NOOP, b"", 65535)), "TLV runs past"),
    "a TLV past the end of UDP": (block(PROXY, 0x12, inet() + b"\4\0"), "TLV runs past the end"),
    "a wrong checksum": (
        checked(PROXY, 0x11, inet(), flip=1 << 31),
        "checksum is 0x[0-9a-f]{8} where 0x[0-9a-f]{8} is right$",
    ),
    "a wrong checksum of UDP": (checked(PROXY, 0x12, inet(), flip=1), "checksum is"),
    "a checksum of 3 bytes": (block(PROXY, 0x11, inet() + tlv(CRC32C, b"abc")), "one checksum of 4 bytes"),
    "a checksum of 5 bytes": (block(PROXY, 0x11, inet() + tlv(CRC32C, b"abcde")), "one checksum of 4 bytes"),
    "two checksums": (checked(PROXY, 0x11, inet(), after=tlv(CRC32C, bytes(4))), "one checksum of 4 bytes"),
}
