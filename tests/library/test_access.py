"""Access lists: which addresses the networks of a server let in."""

import ipaddress
import sys

import pytest

from echo.server.access import AccessList


@pytest.mark.parametrize(
    "network, inside, outside",
    [
        ("::ffff:192.0.2.0/120", "192.0.2.255", "192.0.3.0"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.8"),
        ("::ffff:0.0.0.0/96", "198.51.100.1", "2001:db8::1"),
    ],
)
def test_an_ipv4_network_written_as_ipv6_matches_its_ipv4_clients(network, inside, outside):
    for host in (inside, f"::ffff:{inside}"):
        assert AccessList(allow=[network]).permits(host)
        assert not AccessList(deny=[network]).permits(host)
    assert not AccessList(allow=[network]).permits(outside)
    assert AccessList(deny=[network]).permits(outside)


def test_a_client_without_an_address_is_let_in_only_where_there_are_no_networks():
    """Row 89."""
    assert AccessList().permits(None)
    assert not AccessList(allow=["0.0.0.0/0", "::/0"]).permits(None)
    assert not AccessList(deny=["192.0.2.0/24"]).permits(None)


def test_a_look_up_agrees_with_a_search_through_all_networks(trials):
    """Row 90: many networks are sorted and joined, however they overlap."""
    for rng in trials(50):
        texts = [random_network(rng) for _ in range(rng.randrange(1, 30))]
        networks = [ipaddress.ip_network(text, strict=False) for text in texts]
        allow, deny = AccessList(allow=texts), AccessList(deny=networks)
        edges = [ip + step for each in networks for ip in (each[0], each[-1]) for step in (-1, 0, 1) if valid(ip, step)]
        for address in edges:
            found = any(address in network for network in networks)
            assert allow.permits(str(address)) is found
            assert deny.permits(str(address)) is not found


def random_network(rng):
    if rng.random() < 0.3:
        return f"2001:db8::{rng.randrange(64):x}:0/{rng.randrange(100, 129)}"
    return f"10.0.{rng.randrange(4)}.{rng.randrange(256)}/{rng.randrange(18, 33)}"


def valid(address, step):
    return 0 <= int(address) + step < 2**address.max_prefixlen


def test_a_look_up_among_many_networks_takes_as_many_steps_as_among_few():
    """Row 90: a search through 100,000 networks took 24 ms for each client."""
    few, many = (AccessList(deny=[f"10.{n // 256}.{n % 256}.0/25" for n in range(count)]) for count in (3, 10_000))
    assert calls_of(few.permits, "192.0.2.1") == calls_of(many.permits, "192.0.2.1")


def calls_of(function, *arguments):
    """The number of function calls that this call makes."""
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event) if event.endswith("call") else None)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return len(calls)


@pytest.mark.parametrize(
    "networks",
    [b"10.0.0.0/8", [b"10.1"], [10], ["10.0.0.0/8", ""], [None], "10.0.0.0/8,192.0.2.0/24", ["fe80::%eth0/64"]],
    ids=repr,
)
def test_what_is_not_a_network_is_refused_whatever_type_it_has(networks):
    """Row 61: ``ipaddress`` accepts bytes and numbers, but as other networks than intended."""
    for options in ({"allow": networks}, {"deny": networks}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: invalid network "):
            AccessList(**options)


def test_an_invalid_network_of_any_length_makes_a_short_error():
    """Row 61: a file of networks may be one line of megabytes."""
    with pytest.raises(ValueError, match="999920 more characters") as caught:
        AccessList(deny=["1" * 999_998])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "network",
    [
        *("::ffff:192.0.2.0/24", "::ffff:0:0/95", "::ffff:192.0.2.7/0", "::192.0.2.0/120", "::192.0.2.7"),
        *("192.0.2.7/0", "192.0.2.7/0.0.0.0", "2001:db8::/0", "0.0.0.0", "0.0.0.0/32", "::", "::0"),
        *("::ffff:192.0.2.0/96", "::ffff:0.0.0.0"),
    ],
)
def test_a_network_that_would_hold_other_addresses_than_it_shows_is_refused(network):
    """Row 61: they were ``::/24``, which holds no IPv4 client, all addresses, or addresses that no client has."""
    for options in ({"allow": [network]}, {"deny": [network]}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: .*{network}.*write "):
            AccessList(**options)


@pytest.mark.parametrize("network", ["0.0.0.0/0", "0.0.0.0/0.0.0.0", "::/0"])
def test_all_addresses_of_a_version_are_a_network(network):
    host = "2001:db8::1" if ":" in network else "192.0.2.1"
    assert AccessList(allow=[network]).permits(host)
    assert not AccessList(deny=[network]).permits(host)


def test_one_network_may_be_given_without_a_list():
    """Not as a list of its addresses: an IPv6 network has too many."""
    for one in ("2001:db8::/32", ipaddress.ip_network("2001:db8::/32")):
        assert not AccessList(deny=one).permits("2001:db8::1")


def test_an_iterator_is_read_once_and_refused_when_it_has_nothing_left():
    """Row 61: the second server that got the same iterator let everybody in."""
    networks = iter(["192.0.2.0/24"])
    assert not AccessList(deny=networks).permits("192.0.2.1")
    for options in ({"allow": networks}, {"deny": networks}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))} is an iterator that yields no networks"):
            AccessList(**options)
