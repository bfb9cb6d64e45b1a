"""Networks for ``--allow``, ``--deny`` and ``--proxy-allow-from``: valid files, and errors for the others."""

import pytest

from echo.cli.server.networks import NetworkLists, checked
from echo.files import read_file
from echo.server.access import AccessList


@pytest.fixture
def lists():
    return NetworkLists(read_file)


@pytest.mark.parametrize("text", ["", "# nobody\n", "\n  \n# nobody\n"], ids=["empty", "a remark", "blank lines"])
def test_an_empty_file_of_allowed_networks_is_an_error_and_one_of_denied_networks_is_not(lists, tmp_path, text):
    path = tmp_path / "networks"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        lists.allowed(["192.0.2.1", f"@{path}"])
    assert str(caught.value) == f"{path} names no network"
    assert list(map(str, lists.denied(["192.0.2.1", f"@{path}"]))) == ["192.0.2.1/32"]


@pytest.mark.parametrize("others", [[], ["198.51.100.0/24"]], ids=["alone", "beside another network"])
def test_a_file_of_denied_networks_that_becomes_empty_is_an_error(lists, tmp_path, others):
    """Row 61: it is being written, or was lost."""
    path = tmp_path / "networks"
    path.write_text("192.0.2.1\n")
    lists.denied([*others, f"@{path}"])
    for text in ("", "\n", "# 192.0.2.1\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"^{path} names no network now, but did before"):
            lists.denied([*others, f"@{path}"])
    path.write_text("192.0.2.2\n")
    assert str(lists.denied([*others, f"@{path}"])[-1]) == "192.0.2.2/32"


def test_a_last_line_that_may_have_been_cut_is_an_error(lists, tmp_path):
    """Row 61: it may hold far more addresses than the whole line."""
    path = tmp_path / "networks"
    for whole, cut in (("192.0.2.0/24", "192.0.2.0/2"), ("2001:db8::/32", "2001:db8::/3")):
        path.write_text(f"192.0.2.1\n{whole}")
        assert str(lists.allowed([f"@{path}"])[-1]) == whole
        path.write_text(f"192.0.2.1\n{cut}")
        with pytest.raises(
            ValueError, match=f"^{path}, line 2: {cut} may have lost its end; write a line feed after it"
        ):
            lists.allowed([f"@{path}"])
        path.write_text(f"192.0.2.1\n{cut}\n")
        assert len(lists.allowed([f"@{path}"])) == 2


ENCODED = {
    "UTF-8": b"192.0.2.1\n192.0.2.2\n",
    "UTF-8 with a mark": b"\xef\xbb\xbf192.0.2.1\n192.0.2.2\n",
    "two files with marks": b"\xef\xbb\xbf192.0.2.1\n\xef\xbb\xbf192.0.2.2\n",
    "only LF at the end": b"# \xff\r\n192.0.2.1\r\n192.0.2.2",
    "CR": b"192.0.2.1\r192.0.2.2\r",
    "UTF-16": "\ufeff192.0.2.1\r\n192.0.2.2\r\n".encode("utf-16-le"),
    "UTF-16, the other order": "\ufeff192.0.2.1\r\n192.0.2.2\r\n".encode("utf-16-be"),
}


@pytest.mark.parametrize("data", ENCODED.values(), ids=ENCODED)
def test_a_byte_order_mark_and_any_end_of_line_are_accepted(lists, tmp_path, data):
    """Row 78."""
    path = tmp_path / "networks"
    path.write_bytes(data)
    for read in (lists.allowed, lists.denied):
        assert list(map(str, read([f"@{path}"]))) == ["192.0.2.1/32", "192.0.2.2/32"]


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x0c", "\x1c", "\x85"], ids=ascii)
def test_a_comment_ends_where_an_editor_shows_its_end(lists, tmp_path, separator):
    path = tmp_path / "networks"
    path.write_text(f"192.0.2.1 # not{separator}0.0.0.0/0\n", encoding="utf-8")
    assert not AccessList(allow=lists.allowed([f"@{path}"])).permits("198.51.100.1")


def test_an_argument_is_checked_without_reading_its_file():
    """Row 61: a pipe can be read only once."""
    assert checked("@/nowhere/at/all") == "@/nowhere/at/all"
    assert checked("192.0.2.0/24") == "192.0.2.0/24"
    for text in ("@", "", "example", "192.0.2.0/33"):
        with pytest.raises(ValueError):
            checked(text)
