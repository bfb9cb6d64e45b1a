"""The PROXY protocol's headers: bytes in, addresses out, and not one byte past the end."""

import ipaddress
import re
import socket
import struct
import sys
from collections import Counter

import pytest

from echo.text import format_address
from echo.transport.proxy_protocol import Header, HeaderParser, InvalidHeader, crc32c, encode
from support.proxy_headers import (
    AUTHORITY,
    BLOCK,
    CRC32C,
    INVALID,
    LOCAL,
    LONGEST,
    NOOP,
    PROXY,
    SIGNATURE,
    V4,
    VALID,
    block,
    checked,
    inet,
    slow_crc32c,
    tlv,
    unix,
)

VALID_ONES = pytest.mark.parametrize("data, header", VALID.values(), ids=VALID)
INVALID_ONES = pytest.mark.parametrize("data, words", INVALID.values(), ids=INVALID)


def consume(stream, size=None):
    """Read the header at the beginning of the stream, ``missing`` bytes (or ``size``) at a time.

    Return the parser, the number of bytes that it took, and the number of reads.
    """
    parser, taken, reads = HeaderParser(), 0, 0
    while parser.missing and taken < len(stream):
        piece = stream[taken : taken + (size or parser.missing)]
        taken += len(piece)
        parser.feed(piece)
        reads += 1
    return parser, taken, reads


# Valid headers.


@VALID_ONES
def test_a_valid_header_gives_its_addresses(data, header):
    parser, taken, _ = consume(data)
    assert parser.header == header
    assert parser.missing == 0
    assert taken == len(data)


@VALID_ONES
def test_addresses_have_the_types_that_the_socket_module_uses(data, header):
    parser, _, _ = consume(data)
    assert type(parser.header) is Header
    for address, expected in ((parser.header.source, header.source), (parser.header.destination, header.destination)):
        assert type(address) is type(expected)
        assert format_address(address).isprintable()


@VALID_ONES
def test_no_byte_after_the_header_is_taken(data, header):
    for following in (b"\x16\x03\x01\x02\x00", b"\r\n", b"\n", b"\0", data, bytes(65536)):
        for size in (None, 1):
            parser, taken, _ = consume(data + following, size)
            assert (parser.header, taken) == (header, len(data))


@VALID_ONES
def test_every_prefix_of_a_header_has_bytes_missing_and_never_more_than_are_left(data, header):
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


def test_feeding_no_bytes_changes_nothing():
    parser = HeaderParser()
    parser.feed(b"")
    assert (parser.header, parser.missing) == (None, 15)


def test_feeding_more_than_is_missing_is_a_value_error_and_takes_nothing():
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


def test_the_longest_possible_header_is_accepted():
    data = checked(PROXY, 0x11, inet(), after=tlv(NOOP, bytes(65535 - 12 - 7 - 3)))
    assert len(data) == LONGEST
    parser, taken, reads = consume(data + b"more")
    assert (parser.header, taken, reads) == (V4, LONGEST, 3)


def test_an_announced_length_takes_no_memory_before_its_bytes_arrive():
    parser, _, _ = consume(block(PROXY, 0x00, length=65535))
    assert parser.missing == 65535
    assert len(parser._received) == 16


def test_the_checksum_is_crc32c():
    assert crc32c(b"123456789") == slow_crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(bytes(range(256))) == slow_crc32c(bytes(range(256)))


# Malformed headers.


@INVALID_ONES
def test_a_malformed_header_is_refused_with_one_line_that_says_why(data, words):
    with pytest.raises(InvalidHeader, match=words) as caught:
        consume(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 160


@INVALID_ONES
def test_a_malformed_header_that_comes_byte_by_byte_is_refused_too(data, words):
    with pytest.raises(InvalidHeader):
        consume(data, 1)


@INVALID_ONES
def test_further_bytes_do_not_make_a_malformed_header_valid(data, words):
    for following in (b"\r\n", bytes(300), VALID["IPv4"][0], b"a" * 300):
        with pytest.raises(InvalidHeader):
            consume(data + following)


def test_a_leading_zero_is_refused_even_where_ipaddress_accepts_it(monkeypatch):
    # As ``ipaddress`` did until 3.8.11 and 3.9.4.
    monkeypatch.setattr(ipaddress.IPv4Address, "_parse_octet", classmethod(lambda cls, text: int(text)))
    assert str(ipaddress.IPv4Address("010.1.1.1")) == "10.1.1.1"
    for line in (b"PROXY TCP4 010.1.1.1 2.2.2.2 1 2\r\n", b"PROXY TCP6 ::1 ::ffff:1.1.1.01 1 2\r\n"):
        with pytest.raises(InvalidHeader, match=r"invalid TCP[46] address"):
            consume(line)


@pytest.mark.parametrize(
    "beginning", [BLOCK[:13], b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r\n"]
)
def test_the_first_wrong_byte_is_refused_when_it_arrives(beginning):
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


def test_an_unassigned_family_or_transport_is_refused_at_once():
    for byte in range(256):
        parser, _, _ = consume(SIGNATURE + b"\x21")
        if byte >> 4 <= 3 and byte & 15 <= 2:
            parser.feed(bytes([byte]))
        else:
            with pytest.raises(InvalidHeader):
                parser.feed(bytes([byte]))


def test_with_a_checksum_a_changed_bit_in_the_addresses_or_tlvs_is_refused():
    data = checked(PROXY, 0x11, inet(), after=tlv(AUTHORITY, b"example.com"))
    assert data[28:31] == tlv(CRC32C, bytes(4))[:3]  # which are left out: without them there is no checksum
    for position in [*range(16, 28), *range(31, len(data))]:
        for bit in range(8):
            broken = bytearray(data)
            broken[position] ^= 1 << bit
            with pytest.raises(InvalidHeader):
                consume(bytes(broken))


# Headers from a client.


@VALID_ONES
def test_a_header_that_is_encoded_is_read_as_the_same_header(data, header):
    parser, taken, _ = consume(encode(header) + b"x")
    assert parser.header == header
    assert taken == len(encode(header))


@pytest.mark.parametrize(
    "header, data",
    [
        (
            Header(1, False, ("192.0.2.1", 56324), ("198.51.100.2", 443)),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        ),
        (Header(1, False, ("fe80::1%eth0", 1, 0, 2), ("::1", 2, 0, 0)), b"PROXY TCP6 fe80::1 ::1 1 2\r\n"),
        (Header(1, False, "", "/run/server"), b"PROXY UNKNOWN\r\n"),
        (Header(1, True, ("192.0.2.1", 1), ("192.0.2.2", 2)), b"PROXY UNKNOWN\r\n"),
        (Header(2, False, ("192.0.2.1", 56324), ("198.51.100.2", 443)), block(PROXY, 0x11, inet())),
        (Header(2, False, "", b"\0name"), block(PROXY, 0x31, unix(b"", b"\0name"))),
        (Header(2, True, ("192.0.2.1", 1), ("192.0.2.2", 2)), block(LOCAL, 0)),
        (Header(2, False, None, None), block(PROXY, 0)),
    ],
)
def test_a_header_has_the_bytes_of_the_specification(header, data):
    assert encode(header) == data


@pytest.mark.parametrize(
    "source, destination, words",
    [
        (("192.0.2.1", 1), ("::1", 2, 0, 0), "not two addresses of one family"),
        (("localhost", 1), ("192.0.2.1", 2), "not two addresses of one family"),
        ("/a", "/" + "b" * 108, "108 bytes at most"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_header_of_addresses_that_it_cannot_carry_is_a_value_error(version, source, destination, words):
    with pytest.raises(ValueError, match=words):
        encode(Header(version, False, source, destination))


# Compared with a second builder and a second judge, which look at whole headers.


def random_host(rng, family):
    packed = bytes(rng.choice((0, 0, rng.randrange(256))) for _ in range(4 if family == socket.AF_INET else 16))
    if len(packed) == 16 and rng.random() < 0.2:
        packed = bytes(10) + b"\xff\xff" + packed[12:]
    return socket.inet_ntop(family, packed)


def test_headers_of_another_builder_are_read_as_it_meant_them(trials):
    for rng in trials(500):
        family, more = rng.choice([(socket.AF_INET, ()), (socket.AF_INET6, (0, 0))])
        hosts = [random_host(rng, family) for _ in range(2)]
        ports = [rng.choice((0, 65535, rng.randrange(65536))) for _ in range(2)]
        source, destination = ((host, port, *more) for host, port in zip(hosts, ports))
        word = "TCP6" if more else "TCP4"
        line = f"PROXY {word} {hosts[0]} {hosts[1]} {ports[0]} {ports[1]}\r\n".encode()
        if more and rng.random() < 0.5:
            line = b"PROXY TCP6 " + line[11:].upper()
        assert consume(line + b"x")[0].header == Header(1, False, source, destination), line
        assert encode(Header(2, False, source, destination)) == block(
            PROXY, 0x21 if more else 0x11, inet(*hosts, *ports)
        )
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
    """Judge a stream by the specification: ``(header, its length)``, "invalid", or "open" if more may follow."""
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
        change = rng.randrange(6)
        if change == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif change == 1:
            data[at:at] = bytes([rng.choice(b" \r\n.:0159fF%\0\3\4")])
        elif change == 2:
            del data[at : at + rng.choice((1, 1, 4))]
        elif change == 3:
            data[at : at + 1] = bytes([rng.choice(b" \r\n.:0159fF%\0\3\4")])
        elif change == 4:
            del data[at:]
        elif data[:1] == b"\r":
            data[14:16] = struct.pack("!H", rng.choice((0, 11, 12, 15, 19, 36, 216, rng.randrange(300), 65535)))
    return bytes(data)


def random_inputs(rng, count):
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


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.stress)])
def test_on_random_input_the_parser_agrees_with_a_second_judge(trials, count):
    outcomes = Counter()
    for rng in trials(1):
        for data in random_inputs(rng, count):
            outcomes[outcome(rng, data)] += 1
    # Each outcome occurs often: of 2,000 inputs about 90 are valid headers of each version.
    assert min(outcomes[kind] for kind in ("refused", "incomplete", 1, 2)) > count // 100, outcomes


def outcome(rng, data):
    """Parse ``data`` as it might arrive, compare with ``judge``; return "refused", "incomplete" or the version."""
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
        return "refused"
    assert taken + parser.missing <= LONGEST, data
    if parser.missing:
        assert (verdict, parser.header, taken) == ("open", None, len(data)), data
        return "incomplete"
    assert (parser.header, taken) == verdict, data
    return parser.header.version
