"""The PROXY protocol's headers: bytes in, addresses out, and not one byte past the end."""

import ipaddress
import random
import re
import socket
import struct
import sys
from collections import Counter

import pytest

from echo.server.proxy_protocol import Header, HeaderParser, InvalidHeader, crc32c
from echo.text import format_address

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
LOCAL, PROXY = 0x20, 0x21
CRC32C, NOOP, AUTHORITY = 3, 4, 2
LONGEST = 16 + 65535


def block(command, family, body=b"", length=None):
    """A version 2 header."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


def inet(source="192.0.2.1", destination="198.51.100.2", source_port=56324, destination_port=443):
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    hosts = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    return hosts + struct.pack("!HH", source_port, destination_port)


def unix(source=b"", destination=b""):
    return source.ljust(108, b"\0") + destination.ljust(108, b"\0")


def tlv(kind, value=b"", length=None):
    return struct.pack("!BH", kind, len(value) if length is None else length) + value


def slow_crc32c(data):
    """Bit by bit, as the polynomial is divided."""
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
    # What is no header at all.
    "HTTP": (b"GET / HTTP/1.1\r\n", r"no PROXY header begins with GET / HTTP/1\.1\\r"),
    "TLS": (bytes.fromhex("16030100"), r"no PROXY header begins with \\x16"),
    "an empty line": (b"\r\n\r\n\r", "no PROXY header"),
    "lower case": (b"proxy TCP4", "no PROXY header begins with proxy TCP4"),
    "two spaces before the family": (b"PROXY  TCP4", "no PROXY header"),
    "an unknown family": (b"PROXY TCP5 ", "no PROXY header begins with PROXY TCP5"),
    "UDP": (b"PROXY UDP4 ", "no PROXY header begins with PROXY UDP4"),
    "a family and no more": (b"PROXY TCP4\r\n", "no PROXY header"),
    "letters after UNKNOWN": (b"PROXY UNKNOWNS", "no PROXY header"),
    "UNKNOWN and LF": (b"PROXY UNKNOWN\n", "no PROXY header"),
    "UNKNOWN and CR": (b"PROXY UNKNOWN\rX", "no PROXY header"),
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
    "a tab in a word": (b"PROXY TCP4 1.1.1.1\t 2.2.2.2 1 2\r\n", r"no TCP4 address .*: 1\.1\.1\.1\\t$"),
    "an octet of 256": (b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n", r"no TCP4 address .*: 1\.1\.1\.256$"),
    "three octets": (b"PROXY TCP4 1.1.1 2.2.2.2 1 2345\r\n", r"no TCP4 address .*: 1\.1\.1$"),
    "an octet with a zero in front": (b"PROXY TCP4 1.1.1.1 2.2.02.2 1 2\r\n", r"no TCP4 address .*: 2\.2\.02\.2$"),
    "a host name": (b"PROXY TCP4 localhost 2.2.2.2 1 2\r\n", "no TCP4 address .*: localhost$"),
    "a number": (b"PROXY TCP4 16843009 2.2.2.2 1 2\r\n", "no TCP4 address"),
    "other digits": ("PROXY TCP4 ١.1.1.1 2.2.2.2 1 2\r\n".encode(), r"no TCP4 address .*: ١\.1\.1\.1$"),
    "IPv6 in TCP4": (b"PROXY TCP4 2001:db8::1 2.2.2.2 1 2\r\n", "no TCP4 address .*: 2001:db8::1$"),
    "IPv4 in TCP6": (b"PROXY TCP6 ::1 2.2.2.2 1 2\r\n", r"no TCP6 address .*: 2\.2\.2\.2$"),
    "a zone": (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "no TCP6 address .*: fe80::1%eth0$"),
    "brackets": (b"PROXY TCP6 [::1] ::1 1 2\r\n", "no TCP6 address"),
    "a prefix": (b"PROXY TCP6 ::1/128 ::1 1 2\r\n", "no TCP6 address"),
    "five digits": (b"PROXY TCP6 ::00001 ::1 1 2\r\n", "no TCP6 address"),
    "two double colons": (b"PROXY TCP6 1::2::3 ::1 1 2\r\n", "no TCP6 address"),
    "nine groups": (b"PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 2\r\n", "no TCP6 address"),
    "a zero in front in IPv6": (b"PROXY TCP6 ::ffff:01.2.3.4 ::1 1 2\r\n", r"no TCP6 address .*: ::ffff:01\.2\.3\.4$"),
    "a port of 65536": (b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n", "no port .*: 65536$"),
    "a port of 60 digits": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 " + b"9" * 60 + b"\r\n", "no port .*: 9{60}$"),
    "a port with a zero in front": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 02\r\n", "no port .*: 02$"),
    "a port of two zeros": (b"PROXY TCP4 1.1.1.1 2.2.2.2 00 2\r\n", "no port .*: 00$"),
    "a plus": (b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n", r"no port .*: \+1$"),
    "a minus": (b"PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n", "no port .*: -1$"),
    "an underscore": (b"PROXY TCP4 1.1.1.1 2.2.2.2 1_0 2\r\n", "no port .*: 1_0$"),
    "hexadecimal": (b"PROXY TCP4 1.1.1.1 2.2.2.2 0x1 2\r\n", "no port .*: 0x1$"),
    "a port of other digits": ("PROXY TCP4 1.1.1.1 2.2.2.2 ١ 2\r\n".encode(), "no port .*: ١$"),
    "an escape sequence": (b"PROXY TCP4 \x1b[2J\xff 2.2.2.2 1 2\r\n", r"no TCP4 address .*: \\x1b\[2J\\xff$"),
    "an IPv4 line without end": (b"PROXY TCP4 ".ljust(106, b"1"), r"over 107 bytes: .*\(38 more bytes\)$"),
    "an UNKNOWN line without end": (b"PROXY UNKNOWN ".ljust(106), "over 107 bytes"),
    "a line of 108 bytes": (b"PROXY UNKNOWN ".ljust(106) + b"\r\n", "over 107 bytes"),
    # Version 2.
    "version 1 in a block": (SIGNATURE + b"\x11", "0x11 is no PROXY v2 version and command"),
    "version 3": (SIGNATURE + b"\x31", "0x31 is no PROXY v2 version and command"),
    "an unassigned command": (SIGNATURE + b"\x22", "0x22 is no PROXY v2 version and command"),
    "an unassigned family": (SIGNATURE + b"\x21\x41", "0x41 is no PROXY v2 family and transport"),
    "an unassigned transport": (SIGNATURE + b"\x21\x13", "0x13 is no PROXY v2 family and transport"),
    "an unassigned family without transport": (SIGNATURE + b"\x21\x40", "0x40 is no PROXY v2 family"),
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

VALID_ONES = pytest.mark.parametrize("data, header", VALID.values(), ids=VALID)
INVALID_ONES = pytest.mark.parametrize("data, words", INVALID.values(), ids=INVALID)


def consume(stream, size=None):
    """Read the header that the stream begins with, ``missing`` bytes (or ``size``) at a time.

    Return the parser, how many bytes it took, and in how many reads.
    """
    parser, taken, reads = HeaderParser(), 0, 0
    while parser.missing and taken < len(stream):
        piece = stream[taken : taken + (size or parser.missing)]
        taken += len(piece)
        parser.feed(piece)
        reads += 1
    return parser, taken, reads


# What is valid.


@VALID_ONES
def test_a_valid_header_says_its_addresses(data, header):
    parser, taken, _ = consume(data)
    assert parser.header == header
    assert parser.missing == 0
    assert taken == len(data)


@VALID_ONES
def test_addresses_are_of_the_types_that_sockets_have(data, header):
    parser, _, _ = consume(data)
    assert type(parser.header) is Header
    for address, expected in ((parser.header.source, header.source), (parser.header.destination, header.destination)):
        assert type(address) is type(expected)
        assert format_address(address).isprintable()


@VALID_ONES
def test_not_one_byte_past_the_header_is_taken(data, header):
    for following in (b"\x16\x03\x01\x02\x00", b"\r\n", b"\n", b"\0", data, bytes(65536)):
        for size in (None, 1):
            parser, taken, _ = consume(data + following, size)
            assert (parser.header, taken) == (header, len(data))


@VALID_ONES
def test_every_prefix_of_a_header_misses_something_and_not_too_much(data, header):
    parser = HeaderParser()
    for position in range(len(data)):
        assert 1 <= parser.missing <= len(data) - position
        assert parser.header is None
        parser.feed(data[position : position + 1])
    assert (parser.header, parser.missing) == (header, 0)


@VALID_ONES
def test_a_header_in_two_pieces_is_the_same_header(data, header):
    for position in range(len(data)):
        parser = HeaderParser()
        for part in (data[:position], data[position:]):
            while part:
                piece, part = part[: parser.missing], part[parser.missing :]
                parser.feed(piece)
        assert parser.header == header, position


def test_a_header_takes_few_reads():
    assert consume(VALID["block IPv6"][0])[2] == 3
    assert consume(VALID["unknown"][0])[2] == 1
    assert consume(VALID["IPv4"][0])[2] <= 6
    assert consume(VALID["the longest IPv6"][0])[2] <= 16


def test_no_bytes_change_nothing():
    parser = HeaderParser()
    parser.feed(b"")
    assert (parser.header, parser.missing) == (None, 15)


def test_more_than_is_missing_is_the_callers_error_and_takes_nothing():
    parser = HeaderParser()
    with pytest.raises(ValueError, match="fed 16 bytes where 15 were missing") as caught:
        parser.feed(bytes(16))
    assert not isinstance(caught.value, InvalidHeader)
    data, header = VALID["IPv4"]
    while parser.missing:
        size = parser.missing
        parser.feed(data[:size])
        data = data[size:]
    assert parser.header == header
    with pytest.raises(ValueError, match="fed 1 bytes where 0 were missing"):
        parser.feed(b"\x16")


def test_the_longest_header_of_all_is_taken():
    data = checked(PROXY, 0x11, inet(), after=tlv(NOOP, bytes(65535 - 12 - 7 - 3)))
    assert len(data) == LONGEST
    parser, taken, reads = consume(data + b"more")
    assert (parser.header, taken, reads) == (V4, LONGEST, 3)


def test_a_length_that_is_only_announced_costs_no_memory():
    parser, _, _ = consume(block(PROXY, 0x00, length=65535))
    assert parser.missing == 65535
    assert len(parser._received) == 16


def test_the_checksum_is_crc32c():
    assert crc32c(b"123456789") == slow_crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(bytes(range(256))) == slow_crc32c(bytes(range(256)))


# What is not.


@INVALID_ONES
def test_a_malformed_header_is_refused_in_so_many_words(data, words):
    with pytest.raises(InvalidHeader, match=words) as caught:
        consume(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 160


@INVALID_ONES
def test_a_malformed_header_that_comes_byte_by_byte_is_refused_too(data, words):
    with pytest.raises(InvalidHeader):
        consume(data, 1)


@INVALID_ONES
def test_what_comes_after_does_not_make_it_valid(data, words):
    for following in (b"\r\n", bytes(300), VALID["IPv4"][0], b"a" * 300):
        with pytest.raises(InvalidHeader):
            consume(data + following)


def test_a_zero_in_front_is_refused_where_ipaddress_takes_it_too(monkeypatch):
    # As it did until 3.8.11 and 3.9.4.
    monkeypatch.setattr(ipaddress.IPv4Address, "_parse_octet", classmethod(lambda cls, text: int(text)))
    assert str(ipaddress.IPv4Address("010.1.1.1")) == "10.1.1.1"
    for line in (b"PROXY TCP4 010.1.1.1 2.2.2.2 1 2\r\n", b"PROXY TCP6 ::1 ::ffff:1.1.1.01 1 2\r\n"):
        with pytest.raises(InvalidHeader, match=r"no TCP[46] address"):
            consume(line)


@pytest.mark.parametrize(
    "beginning", [BLOCK[:13], b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r\n"]
)
def test_the_first_wrong_byte_is_refused_when_it_comes(beginning):
    right = [data for data, _ in VALID.values()]
    for position in range(len(beginning)):
        possible = {data[position] for data in right if data.startswith(beginning[:position])}
        for byte in range(256):
            parser, _, _ = consume(beginning[:position])
            if byte in possible:
                parser.feed(bytes([byte]))
            else:
                with pytest.raises(InvalidHeader):
                    parser.feed(bytes([byte]))


def test_each_combination_of_family_and_transport_is_known_or_refused_at_once():
    for byte in range(256):
        parser, _, _ = consume(SIGNATURE + b"\x21")
        if byte >> 4 <= 3 and byte & 15 <= 2:
            parser.feed(bytes([byte]))
        else:
            with pytest.raises(InvalidHeader):
                parser.feed(bytes([byte]))


def test_with_a_checksum_no_bit_of_the_addresses_or_of_other_tlvs_may_change():
    data = checked(PROXY, 0x11, inet(), after=tlv(AUTHORITY, b"example.com"))
    assert data[28:31] == tlv(CRC32C, bytes(4))[:3]  # which are left out: without them there is no checksum
    for position in [*range(16, 28), *range(31, len(data))]:
        for bit in range(8):
            broken = bytearray(data)
            broken[position] ^= 1 << bit
            with pytest.raises(InvalidHeader):
                consume(bytes(broken))


# Against other eyes: a builder and a judge that look at whole headers.


def random_host(rng, family):
    packed = bytes(rng.choice((0, 0, rng.randrange(256))) for _ in range(4 if family == socket.AF_INET else 16))
    if len(packed) == 16 and rng.random() < 0.2:
        packed = bytes(10) + b"\xff\xff" + packed[12:]
    return socket.inet_ntop(family, packed)


def test_what_another_builder_writes_is_what_it_meant():
    rng = random.Random(1)
    for _ in range(2000):
        family, more = rng.choice([(socket.AF_INET, ()), (socket.AF_INET6, (0, 0))])
        hosts = [random_host(rng, family) for _ in range(2)]
        ports = [rng.choice((0, 65535, rng.randrange(65536))) for _ in range(2)]
        source, destination = ((host, port, *more) for host, port in zip(hosts, ports))
        word = "TCP6" if more else "TCP4"
        line = f"PROXY {word} {hosts[0]} {hosts[1]} {ports[0]} {ports[1]}\r\n".encode()
        if more and rng.random() < 0.5:
            line = b"PROXY TCP6 " + line[11:].upper()
        assert consume(line + b"x")[0].header == Header(1, False, source, destination), line
        tlvs = [
            tlv(rng.choice((1, 2, 4, 5, 0x20, 0xFF)), bytes(rng.choices(range(256), k=rng.randrange(9))))
            for _ in range(rng.randrange(3))
        ]
        build = rng.choice([lambda *args: block(*args[:2], b"".join(args[2:])), checked])
        data = build(PROXY, 0x21 if more else 0x11, inet(*hosts, *ports), b"".join(tlvs))
        parser, taken, _ = consume(data + b"x")
        assert (parser.header, taken) == (Header(2, False, source, destination), len(data)), data


STARTS = (SIGNATURE, b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r\n")
TCP = re.compile(rb"PROXY TCP([46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n")
UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: .*?)?\r\n", re.DOTALL)


def judge(data):
    """What the specification says of a stream: ``(header, its length)``, "invalid", or "open" if more may come."""
    if not any(data[: len(start)] == start[: len(data)] for start in STARTS):
        return "invalid"
    if data[:1] == b"P":
        match = UNKNOWN.match(data) or TCP.match(data)
        if not match or match.end() > 107:
            return "invalid" if b"\r\n" in data[:107] or len(data) > 106 else "open"
        if match.re is UNKNOWN:
            return Header(1, False, None, None), match.end()
        return judge_tcp(match)
    return judge_block(data) if len(data) >= 16 else "open"


def judge_tcp(match):
    version, *hosts, source_port, destination_port = (group.decode() for group in match.groups())
    family, more = (socket.AF_INET6, (0, 0)) if version == "6" else (socket.AF_INET, ())
    if any(re.search(r"\.0[0-9]|(?<![0-9a-fA-F])0[0-9]+\.", host) for host in hosts):
        return "invalid"
    if max(int(source_port), int(destination_port)) > 65535:
        return "invalid"
    try:
        source, destination = (socket.inet_ntop(family, socket.inet_pton(family, host)) for host in hosts)
    except OSError:
        return "invalid"
    source, destination = (source, int(source_port), *more), (destination, int(destination_port), *more)
    return Header(1, False, source, destination), match.end()


def judge_block(data):
    command, kind = data[12], data[13]
    end = 16 + data[14] * 256 + data[15]
    if command not in (LOCAL, PROXY):
        return "invalid"
    sizes = {0x11: 4, 0x12: 4, 0x21: 16, 0x22: 16, 0x31: 108, 0x32: 108}
    if command == PROXY and kind not in (0x00, 0x01, 0x02, 0x10, 0x20, 0x30, *sizes):
        return "invalid"
    size = sizes.get(kind) if command == PROXY else None
    tlvs_at = 16 + (0 if size is None else 2 * size + (4 if size < 108 else 0))
    if end < tlvs_at:
        return "invalid"
    if len(data) < end:
        return "open"
    if size is None:
        return Header(2, command == LOCAL, None, None), end
    rest, sums = data[tlvs_at:end], []
    while rest:
        length = 3 + int.from_bytes(rest[1:3], "big")
        if len(rest) < max(length, 3):
            return "invalid"
        if rest[0] == CRC32C:
            sums.append(end - len(rest))
            if length != 7:
                return "invalid"
        rest = rest[length:]
    if len(sums) > 1:
        return "invalid"
    for at in sums:
        if slow_crc32c(data[: at + 3] + bytes(4) + data[at + 7 : end]) != int.from_bytes(data[at + 3 : at + 7], "big"):
            return "invalid"
    if kind & 15 == 2:
        return Header(2, False, None, None), end
    source, destination = data[16 : 16 + size], data[16 + size : 16 + 2 * size]
    if size == 108:
        return Header(2, False, *map(judge_path, (source, destination))), end
    ports = struct.unpack("!HH", data[16 + 2 * size : tlvs_at])
    family, more = (socket.AF_INET, ()) if size == 4 else (socket.AF_INET6, (0, 0))
    hosts = [socket.inet_ntop(family, packed) for packed in (source, destination)]
    return Header(2, False, *((host, port, *more) for host, port in zip(hosts, ports))), end


def judge_path(field):
    if field[0] == 0:
        return field.rstrip(b"\0") or ""
    return field.split(b"\0")[0].decode(sys.getfilesystemencoding(), "surrogateescape")


def mutated(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        # Half of the changes are past the beginning, where nearly all are refused alike.
        at = rng.randrange(rng.choice((0, min(11, len(data)))), len(data) + 1)
        deed = rng.randrange(6)
        if deed == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif deed == 1:
            data[at:at] = bytes([rng.choice(b" \r\n.:0159fF%\0\3\4")])
        elif deed == 2:
            del data[at : at + rng.choice((1, 1, 4))]
        elif deed == 3:
            data[at : at + 1] = bytes([rng.choice(b" \r\n.:0159fF%\0\3\4")])
        elif deed == 4:
            del data[at:]
        elif data[:1] == b"\r":
            data[14:16] = struct.pack("!H", rng.choice((0, 11, 12, 15, 19, 36, 216, rng.randrange(300), 65535)))
    return bytes(data)


def fuzz_inputs(rng, count):
    whole = [data for data, _ in VALID.values()] + [data for data, _ in INVALID.values()]
    for number in range(count):
        kind = number % 10
        if kind < 8:
            yield mutated(rng, rng.choice(whole)) + rng.choice((b"", b"", b"\r\n", b"\x16\x03\x01"))
        elif kind == 8:
            noise = bytes(rng.choices(range(256), k=rng.randrange(40)))
            yield rng.choice((b"", SIGNATURE, SIGNATURE + b"\x21", SIGNATURE + b"\x21\x11\0")) + noise
        else:
            yield rng.choice(STARTS[1:]) + bytes(rng.choices(b" \r\n.:0123456789abcdefF", k=rng.randrange(120)))


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_is_a_header_or_refused_and_nothing_past_the_header_is_taken(seed):
    rng = random.Random(seed)
    outcomes = Counter()
    for data in fuzz_inputs(rng, 10_000):
        verdict = judge(data)
        parser, taken = HeaderParser(), 0
        whole_reads = rng.random() < 0.8
        try:
            while parser.missing and taken < len(data):
                piece = data[taken : taken + (parser.missing if whole_reads else rng.randint(1, parser.missing))]
                taken += len(piece)
                parser.feed(piece)
        except InvalidHeader as exc:
            assert verdict in ("invalid", "open"), data
            assert str(exc).isprintable(), data
            outcomes["refused"] += 1
            continue
        assert taken + parser.missing <= LONGEST, data
        if parser.missing:
            assert (verdict, parser.header, taken) == ("open", None, len(data)), data
            outcomes["incomplete"] += 1
        else:
            assert (parser.header, taken) == verdict, data
            outcomes[parser.header.version] += 1
    assert min(outcomes[kind] for kind in ("refused", "incomplete", 1, 2)) > 300, outcomes
