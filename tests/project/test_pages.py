"""Each page of the documentation is correct: its blocks of code run, its links lead somewhere."""

import ast
import glob
import inspect
import json
import logging
import operator
import os
import re
import socketserver
import textwrap

import pytest

import echo
from echo.cli.client import prompt
from echo.cli.client.command import GROUPS as CLIENT_GROUPS
from echo.cli.reference import command_tables, options_table
from echo.cli.server.options import GROUPS as SERVER_GROUPS
from echo.server.options import OPTIONS
from support import ROOT
from support.pages import DATA, NOTES, Reader, blocks_of, pages, same, text_of

PAGES = pages()
BLOCKS = {page: blocks_of(page) for page in PAGES}


def files_before(page):
    """The files that the earlier pages of the tutorial have saved."""
    earlier = PAGES[: PAGES.index(page)] if page.startswith("docs/tutorial") else []
    return [
        block for each in earlier if each.startswith("docs/tutorial") for block in BLOCKS[each] if "file" in block.notes
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/tutorial")])
def test_each_program_of_the_tutorial_begins_with_the_file_that_it_belongs_to(page):
    for block in BLOCKS[page]:
        if block.language == "python":
            file = block.notes.get("file", "try.py") + (", continued" if "continues" in block.notes else "")
            assert block.text.startswith(f"# {file}\n"), str(block)


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
    assert same(["= 0.294/0.321/0.368/0.033 ms"], ["= 412/422/432/8.35 ms"])
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


LINKING = [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md", "tests/README.md"]


@pytest.mark.parametrize("page", LINKING)
def test_the_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert os.path.exists(os.path.join(ROOT, aim)), f"{page} links to {target}"
        if page.startswith("docs"):  # the builder includes no other files
            assert aim.startswith("docs"), f"{page} links to {target}: name the file instead"
        if anchor and aim.endswith(".md"):
            assert anchor in anchors_of(aim), f"{page} links to {target}"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_the_files_that_a_page_names_exist(page):
    for name in re.findall(r"`((?:echo|examples|docs|tests|\.ci)/[\w./-]*)`", text_of(page)):
        assert os.path.exists(os.path.join(ROOT, name)), f"{page} names {name}"


# The reference.

TABLES = {
    "server-command.md": command_tables(SERVER_GROUPS),
    "client-command.md": command_tables(CLIENT_GROUPS),
    "server-options.md": options_table(),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_options_say_what_the_rows_say(name):
    """``ECHO_UPDATE_GOLDEN=1`` writes them again; then read their diff."""
    page = os.path.join("docs", "reference", name)
    begin, table, end = re.split(
        r"(?<=<!-- options -->\n)(.*?)(?=<!-- end of options -->\n)", text_of(page), flags=re.S
    )
    if os.environ.get("ECHO_UPDATE_GOLDEN") == "1":
        with open(os.path.join(ROOT, page), "w", encoding="utf-8") as file:
            file.write(begin + "\n".join(["", *TABLES[name], "", ""]) + end)
    else:
        assert table.strip().splitlines() == TABLES[name]


def drawing_of(path, number):
    """The drawing with this number in the docstring of a module."""
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        docstring = ast.get_docstring(ast.parse(file.read()))
    drawings = re.findall(r"::\n\n((?: {4}.*\n|\n(?= {4}))+)", f"{docstring}\n")
    return textwrap.dedent(drawings[number - 1])


def test_the_drawings_are_those_of_the_source():
    """``ECHO_UPDATE_GOLDEN=1`` writes them again."""
    page = os.path.join("docs", "explanation", "architecture.md")
    text = re.sub(
        r"(<!-- drawing: (\S+) (\d) -->\n```text\n).*?(?=```\n)",
        lambda found: found[1] + drawing_of(found[2], int(found[3])),
        text_of(page),
        flags=re.DOTALL,
    )
    if os.environ.get("ECHO_UPDATE_GOLDEN") == "1":
        with open(os.path.join(ROOT, page), "w", encoding="utf-8") as file:
            file.write(text)
    else:
        assert text_of(page) == text


def rows_of(page):
    """The rows of all tables of a page of the reference, as lists of cells."""
    lines = re.findall(r"^\| (.*) \|$", text_of(os.path.join("docs", "reference", page)), re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def named_in(cells):
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_reference_has_every_public_name():
    text = text_of(os.path.join("docs", "reference", "api.md"))
    assert [name for name in echo.__all__ if f"echo.{name}" not in text and name != "__version__"] == []


def public_names():
    """The items of the list at the top of the page about the API: names, and what they are."""
    return re.findall(r"^\* (`.*?`): (.*)$", text_of(os.path.join("docs", "reference", "api.md")), re.MULTILINE)


def test_the_list_of_public_names_has_each_one_with_its_parameters():
    shown = [each for names, _ in public_names() for each in re.findall(r"`([^`]+)`", names)]
    calls = [re.fullmatch(r"(\w+)(?:\.(\w+))?(?:\((.*)\))?", each) for each in shown]
    assert all(calls) and {call[1] for call in calls} >= set(echo.__all__)
    for name, member, parameters in (call.groups() for call in calls if call[3] is not None):
        function = operator.attrgetter(f"{name}.{member}" if member else name)(echo)
        found = [each for each in inspect.signature(function).parameters if each != "self"]
        names = [each.strip("* ") for each in parameters.split(",") if each.strip("* ")]
        assert names == found or found == ["args", "options"], name  # what Server(...) shows


def test_the_list_of_public_names_has_the_fields_of_the_records():
    fields = {name: re.findall(r"`(\w+)`", text) for name, text in public_names()}
    assert fields["`ConnectionInfo`"] == list(echo.ConnectionInfo._fields)
    assert fields["`Statistics`"] == list(echo.Statistics._fields)


def test_the_reference_has_what_the_server_adds_to_socketserver():
    text = text_of(os.path.join("docs", "reference", "api.md"))
    stock = {*dir(socketserver.ThreadingTCPServer), *dir(socketserver.ThreadingUnixStreamServer), *OPTIONS}
    added = {name for name in dir(echo.Server) if not name.startswith("_")} - stock
    assert "stop" in added
    assert added == added.intersection(re.findall(r"^   \.\. auto\w+:: (\w+)$", text, re.MULTILINE))


def test_the_reference_has_every_end_reason():
    described = named_in(row[0] for row in rows_of("end-reasons.md"))
    errors = {error.reason for error in vars(echo).values() if isinstance(error, type) and issubclass(error, Exception)}
    assert described == errors | {"exit", "eof", "drain", "denied", "limit", "handshake", "proxy"}


def test_the_reference_has_every_signal_that_ends_the_client_at_its_prompt():
    section = text_of(os.path.join("docs", "reference", "signals.md")).partition("## The client command")[2]
    sentence = section.partition("At the prompt, ")[2].partition(" end the")[0]
    assert re.findall(r"SIG\w+", sentence) == list(prompt._ENDING)


def test_the_reference_has_every_event_of_the_log():
    found = set()
    for path in glob.glob(os.path.join(ROOT, "echo", "**", "*.py"), recursive=True):
        with open(path, encoding="utf-8") as file:
            source = file.read()
        found |= set(
            re.findall(
                r'log_(?:event|always)\((?:\s*logging\.\w+(?: if .*? else logging\.\w+)?,\s)?\s*"([\w-]+)"', source
            )
        )
        if "measure" not in os.path.relpath(path, ROOT):
            found |= set(re.findall(r'(?:event=|"event": |\.event = |_log_message\(level, )"([\w-]+)"', source))
            found |= set(re.findall(r'_record\(logging\.\w+, .*"([\w-]+)"\)', source))
    assert len(found) > 25
    assert found - {"log"} == named_in(row[0] for row in rows_of("log.md") if len(row) == 4)


@pytest.mark.parametrize("name", sorted({row[0] for row in rows_of("handler-attributes.md")[2:]}))
def test_the_reference_has_the_defaults_of_handlers(name):
    cls = getattr(echo, name.strip("`"))
    for each, attribute, _, default in rows_of("handler-attributes.md")[2:]:
        if each == name:
            code = default.strip("`")
            value = getattr(cls, attribute.strip("`"))
            if attribute == "`framing`":
                assert repr(type(value)()) == repr(value) or type(value).__name__ in code
            else:
                assert eval(code, {"logging": logging}) == value, attribute


def json_names(*headings):
    """The names in the tables of these sections of the page about JSON."""
    text = text_of(os.path.join("docs", "reference", "json.md"))
    sections = [part.partition("\n")[::2] for part in text.split("\n## ")[1:]]
    return named_in(re.findall(r"^\|.*\|$", "".join(body for title, body in sections if title in headings), re.M))


def undescribed(out, *headings):
    """The names in these lines of JSON that are missing in those sections."""
    names = json_names(*headings) | {"event", "time"}
    found = {name for line in out.splitlines() for name in json.loads(line)}
    return {
        name
        for name in found - names
        if not (re.fullmatch(r"(rtt|raw|connect)_(samples|(min|avg|max|mdev|p\d\d(_\d+)?)_us)", name))
    }


def test_the_reference_has_every_field_of_json(server_command, run):
    address = list(map(str, server_command().address))
    code, out = run("echo.client", *address, "-J", "-m", "hello").finish()
    assert code == 0 and undescribed(out, "Messages (`-m`)") == set()
    code, out = run("echo.client", *address, "-J", "--ping", "-c", "2", "-i", "0", "--fail-if", "loss > 1%").finish()
    assert code == 0 and undescribed(out, "Ping") == set()


@pytest.mark.slow
def test_the_reference_has_every_field_of_a_bench_in_json(server_command, run):
    address = list(map(str, server_command("--no-log-messages").address))
    options = ["-J", "--bench", "-d", "1s", "--rate", "100", "--fail-if", "loss > 100%"]
    for more in (["-i", "500ms"], []):
        code, out = run("echo.client", *address, *options, *more).finish()
        assert code == 0 and undescribed(out, "Bench") == set()
