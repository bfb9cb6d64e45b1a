"""Access lists: networks and files of networks, as text alone."""

import pytest

from echo.server.access import AccessList, expand


@pytest.mark.parametrize("text", ["", "# nobody\n", "\n  \n# nobody\n"], ids=["empty", "a remark", "blank lines"])
def test_an_empty_file_of_allowed_networks_is_an_error_and_one_of_denied_networks_is_not(tmp_path, text):
    path = tmp_path / "networks"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        expand(["192.0.2.1", f"@{path}"])
    assert str(caught.value) == f"{path} names no network"
    assert expand(["192.0.2.1", f"@{path}"], may_be_empty=True) == ["192.0.2.1"]


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
