"""Framings turn bytes into messages, and the messages do not depend on the pieces that the bytes arrive in."""

import array
import random
import struct
import tracemalloc

import pytest

from echo.exceptions import MessageTooLong
from echo.framing import DEFAULT_MAX_MESSAGE, FRAMINGS, CRLFFraming, LengthFraming, LineFraming, RawFraming

EVERY_BYTE = bytes(range(256))
EVERY_BYTE_BUT_LF = EVERY_BYTE.replace(b"\n", b"")

MARKING = pytest.mark.parametrize("cls", [LineFraming, CRLFFraming, LengthFraming])
ALL = pytest.mark.parametrize("cls", [LineFraming, CRLFFraming, LengthFraming, RawFraming])


def messages_for(cls):
    """Messages that a framing could get wrong: empty ones, at the ends too, lone and doubled CR, every byte value."""
    every = EVERY_BYTE_BUT_LF if issubclass(cls, LineFraming) else EVERY_BYTE
    return [b"", b"a", b"telnet\r", b"", b"", b"\r", b"\r\r", every, b"\0\0\0\0", b"\0\0\0\1", every[::-1], b"end", b""]


def encode_all(framing, messages):
    return b"".join(framing.encode(message) for message in messages)


def over_the_limit(cls, message):
    """The bytes of a message that the framing itself would refuse to encode."""
    return cls(1 << 20).encode(message)


def feed_all(decoder, pieces):
    """The messages of all pieces up to an error; then a decoder's caller feeds no more."""
    messages = []
    for piece in pieces:
        messages += decoder.feed(piece)
        if decoder.error is not None:
            break
    return messages


def in_pieces(stream, *positions):
    bounds = [0, *positions, len(stream)]
    return [stream[start:end] for start, end in zip(bounds, bounds[1:]) if start < end]


def in_random_pieces(rng, stream):
    longest = rng.choice([1, 2, 7, 64, len(stream) + 1])
    pieces = []
    while stream:
        size = rng.randint(1, longest)
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces


# Round trips.


@MARKING
def test_every_message_comes_back_as_it_went_in(cls):
    for message in messages_for(cls):
        decoder = cls().decoder()
        assert decoder.feed(cls().encode(message)) == [message]
        assert not decoder.pending
        assert decoder.error is None


@MARKING
def test_many_messages_in_one_read_come_out_in_order(cls):
    messages = messages_for(cls)
    assert cls().decoder().feed(encode_all(cls(), messages)) == messages


@MARKING
def test_a_stream_cut_in_two_at_any_position_gives_the_same_messages(cls):
    messages = messages_for(cls)
    stream = encode_all(cls(), messages)
    for position in range(1, len(stream)):
        decoder = cls().decoder()
        assert feed_all(decoder, in_pieces(stream, position)) == messages, position
        assert not decoder.pending
        assert decoder.error is None


@MARKING
def test_a_stream_cut_in_three_at_any_positions_gives_the_same_messages(cls):
    messages = [b"", b"ab", b"\r", b"", b"cde\r", b""]
    stream = encode_all(cls(), messages)
    for first in range(1, len(stream)):
        for second in range(first, len(stream)):
            assert feed_all(cls().decoder(), in_pieces(stream, first, second)) == messages, (first, second)


@MARKING
def test_a_stream_in_single_bytes_gives_each_message_with_its_last_byte(cls):
    messages = messages_for(cls)
    decoder = cls().decoder()
    for message in messages:
        *inner, last = in_pieces(cls().encode(message), *range(1, len(cls().encode(message))))
        assert [decoder.feed(piece) for piece in inner] == [[] for _ in inner]
        assert decoder.feed(last) == [message]


@MARKING
def test_random_messages_in_random_pieces_up_to_the_first_that_is_too_long(cls):
    rng = random.Random(20240229)
    alphabet = EVERY_BYTE_BUT_LF if issubclass(cls, LineFraming) else EVERY_BYTE
    violations = 0
    for case in range(600):
        limit = rng.choice([1, 2, 3, 5, 16, 100])
        longest = rng.choice([limit, limit, limit + 1, 3 * limit])
        messages = [bytes(rng.choices(alphabet, k=rng.randint(0, longest))) for _ in range(rng.randint(1, 20))]
        good = []
        for message in messages:
            if len(message) > limit:
                break
            good.append(message)
        stream = b"".join(over_the_limit(cls, message) for message in messages)
        decoder = cls(limit).decoder()
        assert feed_all(decoder, in_random_pieces(rng, stream)) == good, case
        assert (decoder.error is not None) == (len(good) < len(messages)), case
        assert not decoder.pending, case
        violations += decoder.error is not None
    assert 100 < violations < 500  # both kinds were tried


@MARKING
def test_messages_are_plain_bytes_however_they_arrived(cls):
    stream = encode_all(cls(), [b"one", b"two", b"three"])
    for position in range(1, len(stream)):
        for message in feed_all(cls().decoder(), in_pieces(stream, position)):
            assert type(message) is bytes


@ALL
def test_decoders_of_one_framing_share_nothing(cls):
    framing = cls(100)
    first, second = framing.decoder(), framing.decoder()
    encoded = framing.encode(b"message")
    first.feed(encoded[:3])
    assert second.feed(encoded) == [b"message"]
    assert not second.pending


def test_a_line_keeps_its_carriage_return():
    assert LineFraming().decoder().feed(b"one\r\n\r\n\rtwo\r\r\n") == [b"one\r", b"\r", b"\rtwo\r\r"]


def test_a_crlf_line_loses_one_carriage_return_and_keeps_all_others():
    assert CRLFFraming().decoder().feed(b"one\r\n\r\n\rt\rwo\r\r\n") == [b"one", b"", b"\rt\rwo\r"]
    assert CRLFFraming().encode(b"one") == b"one\r\n"
    assert CRLFFraming().encode(b"\r") == b"\r\r\n"


def test_a_crlf_line_may_end_with_a_line_feed_alone():
    stream = b"one\ntwo\r\n\n\rthree\n"
    for position in range(1, len(stream)):
        assert feed_all(CRLFFraming().decoder(), in_pieces(stream, position)) == [b"one", b"two", b"", b"\rthree"]


def test_a_line_ends_at_a_line_feed_alone():
    separators = b"\r\v\f\x1c\x1d\x1e\x85\xe2\x80\xa8"
    assert LineFraming().decoder().feed(separators + b"\n") == [separators]


def test_a_length_prefix_is_32_bits_big_endian():
    assert LengthFraming().encode(b"x" * 258) == b"\x00\x00\x01\x02" + b"x" * 258


# Limits.


@MARKING
def test_a_message_at_the_limit_passes_and_one_byte_more_does_not(cls):
    for limit in (1, 2, 7, 100):
        framing = cls(limit)
        decoder = framing.decoder()
        assert decoder.feed(framing.encode(b"x" * limit)) == [b"x" * limit]
        assert decoder.error is None
        assert decoder.feed(over_the_limit(cls, b"x" * (limit + 1))) == []
        assert isinstance(decoder.error, MessageTooLong)
        assert decoder.error.limit == limit


@MARKING
def test_the_limit_does_not_depend_on_where_the_pieces_end(cls):
    limit = 7
    at_limit = over_the_limit(cls, b"x" * limit)
    over = over_the_limit(cls, b"x" * (limit + 1))
    for position in range(1, len(at_limit)):
        decoder = cls(limit).decoder()
        assert feed_all(decoder, in_pieces(at_limit, position)) == [b"x" * limit], position
        assert decoder.error is None, position
    for position in range(1, len(over)):
        decoder = cls(limit).decoder()
        assert feed_all(decoder, in_pieces(over, position)) == [], position
        assert isinstance(decoder.error, MessageTooLong), position


@MARKING
def test_the_good_messages_before_one_that_is_too_long_are_returned(cls):
    good = [b"one", b"", b"seven77"]
    stream = encode_all(cls(7), good) + over_the_limit(cls, b"x" * 8) + cls(7).encode(b"never")
    decoder = cls(7).decoder()
    assert decoder.feed(stream) == good
    assert isinstance(decoder.error, MessageTooLong)
    for position in range(1, len(stream)):
        decoder = cls(7).decoder()
        assert feed_all(decoder, in_pieces(stream, position)) == good, position
        assert isinstance(decoder.error, MessageTooLong), position


@MARKING
def test_the_limit_is_for_each_message_and_not_for_a_read(cls):
    messages = [b"x" * 7] * 1000
    decoder = cls(7).decoder()
    assert decoder.feed(encode_all(cls(7), messages)) == messages
    assert decoder.error is None


def test_a_line_is_too_long_as_soon_as_it_is_known_and_before_it_ends():
    decoder = LineFraming(3).decoder()
    assert decoder.feed(b"abc") == []
    assert decoder.error is None
    assert decoder.feed(b"d") == []
    assert isinstance(decoder.error, MessageTooLong)
    assert not decoder.pending


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_limit_counts_a_crlf_line_without_its_end(end):
    for line, good in ((b"abc", [b"abc"]), (b"ab\r", [b"ab\r"]), (b"abcd", []), (b"abc\r", [])):
        if end == b"\n" and line.endswith(b"\r"):
            continue  # these would be the end CR LF
        stream = line + end
        for position in range(1, len(stream)):
            decoder = CRLFFraming(3).decoder()
            assert feed_all(decoder, in_pieces(stream, position)) == good, (stream, position)
            assert isinstance(decoder.error, MessageTooLong) != bool(good), (stream, position)


def test_a_crlf_line_is_too_long_as_soon_as_its_last_carriage_return_cannot_be_its_end():
    for after in (b"x", b"\r"):
        decoder = CRLFFraming(3).decoder()
        assert decoder.feed(b"abc\r") == []
        assert decoder.error is None
        assert decoder.pending == b"abc\r"
        assert decoder.feed(after) == []
        assert decoder.error.limit == 3
        assert not decoder.pending


def test_a_subclass_has_another_prefix():
    class Short(LengthFraming):
        prefix = struct.Struct("!H")

    stream = Short().encode(b"one") + Short().encode(b"") + Short().encode(b"x" * 0xFFFF)
    assert stream[:7] == b"\x00\x03one\x00\x00"
    for size in (1, 3, len(stream)):
        decoder = Short().decoder()
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert [message for piece in pieces for message in decoder.feed(piece)] == [b"one", b"", b"x" * 0xFFFF]
        assert not decoder.pending
    with pytest.raises(MessageTooLong) as caught:
        Short().encode(b"x" * 0x10000)
    assert caught.value.limit == 0xFFFF


@pytest.mark.parametrize("code", ["!h", "!HH", "2s", "!f"])
def test_a_prefix_is_one_unsigned_number(code):
    class Wrong(LengthFraming):
        prefix = struct.Struct(code)

    with pytest.raises(ValueError, match=r"prefix is '.*'; expected one unsigned number, such as '!H'"):
        Wrong()


def test_a_length_over_the_limit_is_refused_before_anything_is_stored():
    prefix = struct.pack("!I", 0xFFFFFFFF)
    for position in range(1, 5):
        decoder = LengthFraming(1000).decoder()
        assert feed_all(decoder, in_pieces(prefix + b"x" * 500, position)) == []
        assert isinstance(decoder.error, MessageTooLong)
        assert not decoder.pending


def test_a_length_is_refused_with_the_last_byte_of_the_prefix():
    decoder = LengthFraming(0xFFFF).decoder()
    for byte in (b"\x00", b"\x01", b"\x00"):
        decoder.feed(byte)
        assert decoder.error is None
    decoder.feed(b"\x00")
    assert isinstance(decoder.error, MessageTooLong)


# A connection feeds no more after an error, but other callers may.
@MARKING
def test_after_an_error_nothing_more_is_returned_and_nothing_is_stored(cls):
    decoder = cls(3).decoder()
    decoder.feed(over_the_limit(cls, b"x" * 4))
    error = decoder.error
    assert error is not None
    for data in (b"\n", cls(3).encode(b"ok"), cls(3).encode(b"a") * 2, b"rest", b"\n" + cls(3).encode(b"b"), b"\0"):
        assert decoder.feed(data) == [], data
        assert not decoder.pending
        assert decoder.error is error
    assert decoder.finish() == b""


@MARKING
def test_encoding_refuses_a_message_over_the_limit(cls):
    framing = cls(3, max_sent=5)
    assert framing.encode(b"x" * 5)
    with pytest.raises(MessageTooLong) as caught:
        framing.encode(b"x" * 6)
    assert caught.value.limit == 5
    assert caught.value.reason == "too-long"


@ALL
def test_a_message_to_send_is_unlimited_unless_asked_for(cls):
    framing = cls(5)
    assert (framing.max_message, framing.max_sent) == (5, None)
    long = b"x" * 100_000
    assert long in framing.encode(long)
    assert framing.encode_many([long, long]) == framing.encode(long) * 2


def test_a_message_that_no_prefix_can_count_is_too_long():
    framing = type("Byte", (LengthFraming,), {"prefix": struct.Struct("!B")})()
    assert framing.encode(bytes(255))[0] == 255
    with pytest.raises(MessageTooLong, match="255 bytes"):
        framing.encode(bytes(256))


@pytest.mark.parametrize(
    "message", [array.array("H", [1, 2]), memoryview(b"12345678").cast("I")], ids=["array", "view"]
)
@pytest.mark.parametrize("cls", [LengthFraming, RawFraming])
def test_a_buffer_of_wider_items_is_sent_as_its_bytes(cls, message):
    """Its length in items stood before its bytes, and the stream was torn."""
    framing = cls(max_sent=8)
    data = bytes(message)
    assert framing.encode(message) == framing.encode(data)
    with pytest.raises(MessageTooLong):
        cls(max_sent=len(data) - 1).encode(message)


@pytest.mark.parametrize("message", [b"\n", b"two\nlines", b"one\n", b"\none"])
@pytest.mark.parametrize("cls", [LineFraming, CRLFFraming])
def test_encoding_refuses_a_line_feed_in_a_line(cls, message):
    with pytest.raises(ValueError, match="line feed"):
        cls().encode(message)


@ALL
@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_byte_is_refused(cls, limit):
    with pytest.raises(ValueError, match=f"max_message is {limit}; .* at least 1 byte"):
        cls(limit)
    with pytest.raises(ValueError, match=f"max_sent is {limit}; .* at least 1 byte"):
        cls(max_sent=limit)


@ALL
def test_a_limit_cannot_be_forgotten(cls):
    assert cls().max_message == DEFAULT_MAX_MESSAGE == 65536
    assert cls().decoder().limit == DEFAULT_MAX_MESSAGE


@ALL
def test_a_subclass_may_set_its_limits_as_class_attributes(cls):
    framing = type("Small", (cls,), {"max_message": 10, "max_sent": 20})()
    assert (framing.max_message, framing.max_sent, framing.decoder().limit) == (10, 20, 10)
    assert type(framing)(5, 6).max_sent == 6


# The end of the input.


@pytest.mark.parametrize("cls", [LineFraming, CRLFFraming])
def test_the_end_inside_a_line_returns_its_bytes_as_they_came(cls):
    decoder = cls().decoder()
    assert decoder.feed(b"one\ntw") == [b"one"]
    assert decoder.feed(b"o\r") == []
    assert decoder.finish() == b"two\r"
    assert decoder.finish() == b""
    assert not decoder.pending


def test_the_end_inside_a_length_message_returns_its_bytes_and_its_prefix():
    stream = LengthFraming().encode(b"hello")
    for position in range(1, len(stream)):
        decoder = LengthFraming().decoder()
        assert decoder.feed(LengthFraming().encode(b"one") + stream[:position]) == [b"one"]
        assert decoder.finish() == stream[:position]
        assert decoder.finish() == b""


@ALL
def test_the_end_between_messages_leaves_nothing(cls):
    decoder = cls().decoder()
    assert decoder.finish() == b""
    decoder.feed(cls().encode(b"whole"))
    assert decoder.finish() == b""


# Time and memory.


class Witness(bytearray):
    """Counts how many stored bytes are read again, by any method."""

    looked_at = 0

    def __getitem__(self, key):
        self.looked_at += len(range(*key.indices(len(self)))) if isinstance(key, slice) else 1
        return super().__getitem__(key)

    def __bytes__(self):
        self.looked_at += len(self)
        return bytes(memoryview(self))


def _counting(name, searches_from):
    method = getattr(bytearray, name)

    def counting(self, *arguments):
        start = arguments[1] if searches_from and len(arguments) > 1 else 0
        self.looked_at += len(self) - start
        return method(self, *arguments)

    return counting


for _name in ("find", "rfind", "index", "rindex", "count"):
    setattr(Witness, _name, _counting(_name, True))
for _name in (
    "split",
    "rsplit",
    "splitlines",
    "partition",
    "rpartition",
    "replace",
    "__contains__",
    "__add__",
    "__iter__",
):
    setattr(Witness, _name, _counting(_name, False))


def test_the_witness_sees_a_scan():
    witness = Witness(b"12345678")
    witness.find(b"\n")
    witness.find(b"\n", 6)
    witness.split(b"\n")
    bytes(witness)
    assert witness[2:5] == b"345"
    assert witness.looked_at == 8 + 2 + 8 + 8 + 3


@MARKING
def test_a_long_message_in_small_pieces_is_never_scanned_again(cls):
    size, piece = 200_000, 50
    framing = cls(size)
    decoder = framing.decoder()
    decoder.pending = witness = Witness()
    stream = framing.encode(b"x" * size)
    messages = feed_all(decoder, [stream[start : start + piece] for start in range(0, len(stream), piece)])
    assert messages == [b"x" * size]
    assert decoder.pending is witness  # otherwise it was not used
    # Once to take the message out, and a little for its beginning and end; scanning again would be 2,000 times that.
    assert witness.looked_at < 3 * size


def peak_is_below(size, action):
    """Whether ``action`` has fewer than ``size`` bytes allocated at any time.

    A thread that an earlier test has left may allocate at the same time, so the least of several peaks counts.
    """
    for _ in range(20):
        tracemalloc.start()
        try:
            action()
            if tracemalloc.get_traced_memory()[1] < size:
                return True
        finally:
            tracemalloc.stop()
    return False


@MARKING
def test_memory_is_bounded_by_the_limit_when_single_bytes_arrive(cls):
    limit = 30_000
    pieces = in_pieces(cls(limit).encode(b"x" * limit), *range(1, limit))

    def decode():
        assert [len(message) for message in feed_all(cls(limit).decoder(), pieces)] == [limit]

    assert peak_is_below(5 * limit, decode)  # a list of the pieces alone is more


@MARKING
def test_memory_does_not_grow_after_a_message_that_is_too_long(cls):
    decoder = cls(1000).decoder()
    decoder.feed(over_the_limit(cls, b"x" * 1001))
    piece = b"x" * 1000

    def flood():
        for _ in range(1000):
            decoder.feed(piece)

    assert peak_is_below(50_000, flood)
    assert not decoder.pending


def test_memory_grows_with_what_has_arrived_and_not_with_what_was_announced():
    def announce():
        decoder = LengthFraming(1 << 31).decoder()
        assert decoder.feed(struct.pack("!I", 1 << 30) + b"x") == []
        assert decoder.error is None
        assert len(decoder.pending) == 5

    assert peak_is_below(100_000, announce)


# Raw.


def test_raw_messages_are_what_was_read():
    decoder = RawFraming().decoder()
    for data in (b"one\n", EVERY_BYTE, b"\0"):
        assert decoder.feed(data) == [data]
        assert not decoder.pending


def test_raw_encoding_adds_and_refuses_nothing():
    assert RawFraming().encode(EVERY_BYTE) == EVERY_BYTE
    assert RawFraming(2).encode(b"longer\n") == b"longer\n"


@pytest.mark.parametrize("size", [1, 6, 7, 8, 13, 14, 15, 700])
def test_raw_hands_on_no_more_than_the_limit_at_once_and_loses_nothing(size):
    data = (EVERY_BYTE * 3)[:size]
    decoder = RawFraming(7).decoder()
    messages = decoder.feed(data)
    assert b"".join(messages) == data
    assert all(1 <= len(message) <= 7 for message in messages)
    assert decoder.error is None
    assert decoder.finish() == b""


def test_raw_bytes_keep_their_order_however_they_are_cut():
    rng = random.Random(862)
    for _ in range(300):
        stream = bytes(rng.choices(EVERY_BYTE, k=rng.randint(1, 500)))
        limit = rng.randint(1, 50)
        messages = feed_all(RawFraming(limit).decoder(), in_random_pieces(rng, stream))
        assert b"".join(messages) == stream
        assert max(map(len, messages)) <= limit


# All framings.


@ALL
@pytest.mark.parametrize("message", ["text", "", 7, None])
def test_a_message_that_is_not_bytes_cannot_be_encoded(cls, message):
    with pytest.raises(TypeError):
        cls().encode(message)


@ALL
@pytest.mark.parametrize("message", [b"", b"one"])
def test_an_encoded_message_does_not_change_with_the_buffer_that_it_came_from(cls, message):
    buffer = bytearray(message)
    data = cls().encode(buffer)
    buffer[:] = b"another"
    assert data == cls().encode(message)


# Names.


def test_framings_have_names_and_say_whether_they_keep_boundaries():
    assert FRAMINGS == {"line": LineFraming, "crlf": CRLFFraming, "length": LengthFraming, "raw": RawFraming}
    assert LineFraming.keeps_boundaries
    assert CRLFFraming.keeps_boundaries
    assert LengthFraming.keeps_boundaries
    assert not RawFraming.keeps_boundaries


@ALL
def test_a_framing_shows_its_limit(cls):
    assert repr(cls(123)) == f"{cls.__name__}(max_message=123)"
    assert repr(cls(123, 45)) == f"{cls.__name__}(max_message=123, max_sent=45)"
