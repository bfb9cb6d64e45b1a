"""A connection's clock alone: the timeout that it sets for the next read, with a simulated time."""

import pytest

from echo.exceptions import MessageTimeout, ReceiveTimeout
from echo.message_clock import MessageClock


class Told(MessageClock):
    """Appends timeouts to a list in place of a socket."""

    set_timeout = staticmethod(list.append)


class Peer:
    """A clock, the time that it measures (``now``), and the timeouts that it has set (``allowed``)."""

    def __init__(self, idle_timeout=None, message_timeout=10):
        self.now = 0.0
        self.allowed = []
        self.clock = Told(self.allowed, idle_timeout, message_timeout, lambda: self.now)

    def part(self, at, begins=False):
        self.now = at
        return self.clock.part_arrived(begins)

    def resume(self, at):
        self.now = at
        self.clock.resume()


def test_without_timeouts_nothing_is_set_and_no_message_is_out_of_time():
    peer = Peer(message_timeout=None)
    assert peer.part(at=0)
    assert peer.part(at=1_000_000)
    assert peer.clock.left is None
    assert peer.allowed == []


def test_the_idle_timeout_is_set_once_at_the_beginning():
    assert Peer(idle_timeout=5).allowed == [5]


def test_a_part_of_a_message_leaves_the_next_read_what_is_left_of_its_time():
    peer = Peer()
    assert [peer.part(at=time) for time in (100, 104, 109)] == [True, True, True]
    assert peer.allowed == [10, 6, 1]
    assert peer.clock.left == 1


@pytest.mark.parametrize("late", [110, 111])
def test_parts_do_not_renew_the_time_of_a_message(late):
    peer = Peer()
    assert all([peer.part(at=time) for time in range(100, 110)])
    assert not peer.part(at=late)


def test_a_message_that_begins_with_the_end_of_another_has_its_whole_time():
    peer = Peer()
    peer.part(at=0)
    assert peer.part(at=9, begins=True)
    assert peer.clock.left == 10
    assert peer.part(at=18)
    assert not peer.part(at=19)


def test_after_a_message_a_read_may_wait_for_the_idle_timeout_again():
    peer = Peer(idle_timeout=5)
    peer.part(at=0)
    peer.clock.message_ended()
    assert peer.clock.left is None
    assert peer.allowed == [5, 10, 5]


def test_the_next_message_has_a_time_of_its_own():
    peer = Peer()
    peer.part(at=0)
    peer.part(at=9)
    peer.clock.message_ended()
    assert peer.part(at=50)
    assert peer.clock.left == 10
    assert peer.allowed == [10, 1, None, 10]


def test_the_time_that_the_owner_spends_between_reads_does_not_count():
    peer = Peer()
    peer.part(at=0, begins=True)
    peer.resume(at=100)
    assert peer.part(at=104)
    peer.resume(at=200)
    assert peer.part(at=205)
    assert peer.allowed == [10, 6, 1]
    assert not peer.part(at=206)


def test_a_timeout_that_stays_the_same_is_not_set_again():
    peer = Peer(idle_timeout=10)
    for time in range(3):
        peer.part(at=time, begins=True)
    peer.clock.message_ended()
    assert peer.allowed == [10]


def test_a_timeout_between_messages_is_a_receive_timeout():
    error = Peer(idle_timeout=2.5).clock.timed_out()
    assert isinstance(error, ReceiveTimeout)
    assert str(error) == "nothing arrived for 2.5 s"


def test_without_a_message_timeout_silence_inside_a_message_is_a_receive_timeout():
    peer = Peer(idle_timeout=5, message_timeout=None)
    peer.part(at=0)
    assert isinstance(peer.clock.timed_out(), ReceiveTimeout)
    assert peer.allowed == [5]


def test_after_a_timeout_inside_a_message_it_has_its_whole_time_again():
    peer = Peer()
    peer.part(at=0)
    peer.part(at=8)
    error = peer.clock.timed_out()
    assert isinstance(error, MessageTimeout)
    assert str(error) == "a message was not complete after 10 s"
    assert peer.allowed == [10, 2, 10]
    peer.resume(at=100)
    assert peer.part(at=109)
    assert not peer.part(at=110)


@pytest.mark.parametrize("new, text", [(3, "after 3 s"), (30, "after 30 s")])
def test_a_new_message_timeout_is_for_the_message_that_has_begun_too(new, text):
    peer = Peer()
    peer.part(at=0)
    peer.part(at=8)
    peer.clock.change_message_timeout(new, inside=True)
    assert peer.allowed[-1] == peer.clock.left == new
    assert text in str(peer.clock.timed_out())


def test_a_message_that_has_begun_has_no_limit_any_more_when_the_timeout_is_taken_away():
    peer = Peer(idle_timeout=5)
    peer.part(at=0)
    peer.clock.change_message_timeout(None, inside=True)
    assert peer.part(at=1_000_000)
    assert peer.allowed == [5, 10, 5]
    assert isinstance(peer.clock.timed_out(), ReceiveTimeout)


def test_a_message_that_began_without_a_limit_gets_one():
    peer = Peer(idle_timeout=5, message_timeout=None)
    peer.part(at=0)
    peer.clock.change_message_timeout(10, inside=True)
    peer.resume(at=100)
    assert peer.part(at=109)
    assert not peer.part(at=110)


def test_a_read_that_ends_by_a_timeout_of_the_programs_own_is_named():
    assert str(Peer().clock.timed_out()) == "nothing arrived in time"


def test_a_new_idle_timeout_is_for_the_next_read_between_messages():
    peer = Peer(idle_timeout=5)
    peer.clock.change_idle_timeout(7)
    peer.part(at=0)
    peer.clock.change_idle_timeout(9)
    peer.clock.message_ended()
    assert peer.allowed == [5, 7, 10, 9]


def test_between_messages_a_new_message_timeout_changes_nothing_yet():
    peer = Peer(idle_timeout=5)
    peer.clock.change_message_timeout(3, inside=False)
    assert (peer.clock.left, peer.allowed) == (None, [5])
    peer.part(at=0)
    assert peer.allowed == [5, 3]
