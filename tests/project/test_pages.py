"""Each page of the documentation does what it says: its blocks of code run, its links lead somewhere."""

import json
import os
import re

import pytest

from support import ROOT
from support.pages import DATA, NOTES, Reader, blocks_of, pages, same, text_of

PAGES = pages()
BLOCKS = {page: blocks_of(page) for page in PAGES if page != "README.md"}  # test_readme.py runs those


def files_before(page):
    """The files of the pages of the tutorial that come before this one of it."""
    earlier = PAGES[: PAGES.index(page)] if page.startswith("docs/tutorial") else []
    return [
        block for each in earlier if each.startswith("docs/tutorial") for block in BLOCKS[each] if "file" in block.notes
    ]


@pytest.fixture
def reader(tmp_path, serve, request):
    if os.name != "posix":
        pytest.skip("the pages show terminals of Linux and macOS")
    with Reader(tmp_path, serve, lambda: request.getfixturevalue("certificates")) as reader:
        yield reader


@pytest.mark.parametrize("page", [page for page in BLOCKS if any("slow" not in block.notes for block in BLOCKS[page])])
def test_the_quick_blocks_of_a_page_do_what_it_says(page, reader):
    for block in files_before(page):
        reader.save(block)
    for block in BLOCKS[page]:
        if "slow" not in block.notes:
            reader(block)


@pytest.mark.slow
@pytest.mark.needs_programs("openssl")
@pytest.mark.parametrize("page", [page for page in BLOCKS if any("slow" in block.notes for block in BLOCKS[page])])
def test_all_blocks_of_a_page_do_what_it_says(page, reader):
    for block in files_before(page):
        reader.save(block)
    for block in BLOCKS[page]:
        reader(block)


@pytest.mark.parametrize("page", BLOCKS)
def test_each_block_of_a_page_is_of_a_kind_that_is_checked(page):
    for block in BLOCKS[page]:
        assert set(block.notes) <= set(NOTES), str(block)
        assert block.notes.get("not run", "a reason"), f"{block}: why is it not run?"
        assert block.language in DATA | {"python", "console"}, f"{block} is of an unknown language"
        if block.language == "json":
            for line in block.text.splitlines():
                json.loads(line)


def test_a_page_differs_from_what_a_program_prints_in_figures_alone():
    assert same(["time=0.301 ms", "seq=1"], ["time=1.2 ms", "seq=1"])
    assert not same(["time=0.301 ms", "seq=1"], ["time=1.2 ms", "seq=2"])
    assert same(["a", "...", "z"], ["a", "b", "c", "z"])
    assert not same(["a", "..."], ["b", "c"])
    assert same(["listening on 127.0.0.1:65432"], ["listening on 127.0.0.1:40001"])
    assert not same(["listening on 127.0.0.1:65432"], ["listening on 127.0.0.2:40001"])


# Links and names.


def anchors_of(page):
    """The anchors of its headings, as GitHub and the documentation's builder make them."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    found = set(re.findall(r"^\((\S+)\)=$", text, re.MULTILINE))
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        title = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)
        found.add(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert os.path.exists(os.path.join(ROOT, aim)), f"{page} links to {target}"
        assert page == "README.md" or not aim.startswith(".."), f"{page} links out of the repository"
        assert page == "README.md" or aim.startswith("docs"), f"{page} links out of docs: name the file instead"
        if anchor and aim.endswith(".md"):
            assert anchor in anchors_of(aim), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page):
    for name in re.findall(r"`((?:echo|examples|docs|tests|\.ci)/[\w./-]*)`", text_of(page)):
        assert os.path.exists(os.path.join(ROOT, name)), f"{page} names {name}"
